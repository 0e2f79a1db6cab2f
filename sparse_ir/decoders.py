"""What is particular to decoders: templates and echo, the causal mask, adapters, and vocabularies to be folded.

``checkpoint.DecoderSettings`` says how a decoder is read; here it is carried out. A network comes out that ``encoder``
treats like any other, its attention switched by transformers' own means and proven to be so layer by layer.

B texts, L tokens, H hidden width, V vocabulary. Next file to read: ``heads``.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Encoding, Tokenizer
from torch import Tensor

from sparse_ir import checkpoint as layouts
from sparse_ir import files, networks, queries
from sparse_ir.checkpoint import DecoderSettings, NeuralSide
from sparse_ir.errors import ConfigError, ModelError
from sparse_ir.networks import Tokens

_TEXT = "{text}"
_LEAST_CHANGE = 1e-6  # of a state's norm; experts sum in another order when their load changes
_ABOVE_NOISE = 3
# of peft's warnings, what is no news: its own use of a name that transformers has replaced, and faults of an adapter
# that are refused here with a sentence of ours
_NO_NEWS = ("`is_gradient_checkpointing` is deprecated", "Found missing adapter keys", ".*a tied layer is part of the")
_WEIGHT_NAMES = ("adapter_model.safetensors", "adapter_model.bin")


# ------------------------------------------------------------------------------------------------ reading texts


class Reader:
    """Texts to token ids, by the template of one side, with the positions that are pooled.

    Prompt, template and text are tokenized as one string, so that words meet their neighbours as they did in training.
    Where ``max_length`` is exceeded, every copy of the text keeps the same number of its first tokens.
    """

    def __init__(self, tokenizer: Tokenizer, settings: DecoderSettings, template: str, max_length: int | None,
                 limit_name: str = "max_length") -> None:
        self._tokenizer = tokenizer
        self._settings = settings
        self._parts = template.split(_TEXT)
        self._max_length, self._limit_name = max_length, limit_name
        self._special = np.array(queries.special_token_ids(tokenizer), dtype=np.int64)

    def read(self, texts: Sequence[str], prompt: str) -> list[Tokens]:
        """One ``Tokens`` for each text. Raises ``ConfigError`` when prompt and template leave no room for a text."""
        rendered = [prompt + text.join(self._parts) for text in texts]
        found = self._tokenizer.encode_batch(rendered, add_special_tokens=self._settings.bos)
        return [self._place(text, encoding, prompt) for text, encoding in zip(texts, found, strict=True)]

    def _place(self, text: str, encoding: Encoding, prompt: str) -> Tokens:
        ids = np.array(encoding.ids, dtype=np.int32)
        copies = self._copies(text, np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2), prompt)
        kept = self._fit(copies)
        pooled = copies[-1] if self._settings.pooled == "text" else np.ones(len(ids), dtype=bool)
        if self._settings.pooled == "text":
            pooled = pooled & ~np.isin(ids, self._special)
        return Tokens(ids[kept], np.flatnonzero(pooled[kept]))

    def _copies(self, text: str, offsets: np.ndarray, prompt: str) -> np.ndarray:
        """Boolean ``[copies, L]``: the tokens that hold a character of each copy of the text."""
        start, copies = len(prompt), []
        for part in self._parts[:-1]:
            start += len(part)
            copies.append((offsets[:, 1] > start) & (offsets[:, 0] < start + len(text)))
            start += len(text)
        return np.array(copies)

    def _fit(self, copies: np.ndarray) -> np.ndarray:
        """Boolean ``[L]``: the tokens that stay when as little as possible of each copy is cut off at its end."""
        kept = np.ones(copies.shape[1], dtype=bool)
        if self._max_length is None or len(kept) <= self._max_length:
            return kept
        frame = int((~copies.any(0)).sum())
        room = (self._max_length - frame) // len(copies)
        if room < 1:
            raise ConfigError(f"{self._limit_name} is {self._max_length}; prompt and template alone take {frame} "
                              "tokens, and nothing of a text would be read")
        for copy in copies:
            kept[np.flatnonzero(copy)[room:]] = False
        return kept


def scale_of(settings: DecoderSettings, hidden_size: int) -> float:
    """The number that ``logit_scale`` stands for."""
    return hidden_size**-0.25 if settings.logit_scale == "hidden^-1/4" else float(settings.logit_scale)


def center(weight_VH: Tensor, bias_V: Tensor) -> tuple[Tensor, Tensor]:
    """An output layer whose logits are those of another less their mean over the vocabulary, token by token."""
    mean_H = weight_VH.mean(0, dtype=torch.float32)
    return (weight_VH.float() - mean_H).to(weight_VH.dtype), bias_V - bias_V.mean()


# ------------------------------------------------------------------------------------------------ attention


def set_attention(model: Any, tokenizer: Tokenizer, settings: DecoderSettings, folder: Path) -> None:
    """Give the network the attention of its mode, and prove on a few tokens that it has it; else ``ModelError``."""
    if settings.mode == "bidirectional":
        make_bidirectional(model, tokenizer, folder)
        return
    ids = _probe(model, tokenizer)
    ids[1, 1:] = ids[1, 1:].flip(0)
    ids[1, 1] = ids[0, 0]
    with torch.inference_mode(), _tokens_apart(model):
        first_BV = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits[:, 0].float()
    if (first_BV[0] - first_BV[1]).norm() > _LEAST_CHANGE * first_BV[0].norm():
        raise ModelError(f"{folder}: {type(model).__name__} is not causal (its first token sees later ones), and mode "
                         f"is {settings.mode!r}")


def make_bidirectional(model: Any, tokenizer: Tokenizer, folder: Path) -> None:
    """Take the causal mask away in every layer, and prove on a few tokens that it is gone.

    ``config.is_causal`` is transformers' own switch for its masks and kernels. Families that build their masks
    otherwise, and layers that are no attention (state spaces, convolutions), stay causal, as do all in versions of
    transformers before the switch: for them this raises ``ModelError``.
    """
    model.config.get_text_config().is_causal = False
    for number, (seen, leaked) in enumerate(_look(model, tokenizer, folder)):
        if seen <= max(_LEAST_CHANGE, _ABOVE_NOISE * leaked):
            raise ModelError(
                f"{folder}: {type(model).__name__} cannot be made bidirectional (its layer {number} still hides later "
                "tokens, or lets padding in); use mode 'echo' or 'causal'"
            )


def _look(model: Any, tokenizer: Tokenizer, folder: Path) -> list[tuple[float, float]]:
    """For each layer, how much of the first token's state depends on the second token, and how much on padding."""
    ids = _probe(model, tokenizer)
    mask = torch.ones_like(ids)
    padded = mask.clone()
    padded[1, 4:] = 0
    with torch.inference_mode(), _tokens_apart(model):
        try:
            whole, cut = _changes(model, ids, mask, 1), _changes(model, ids, padded, 1)
            padding = _changes(model, ids, padded, 5)
        except (AttributeError, RuntimeError, TypeError, ValueError) as error:
            raise ModelError(f"{folder}: {type(model).__name__} cannot be made bidirectional "
                             f"({networks.first_line(error)}); use mode 'echo' or 'causal'") from error
    return [(float(torch.minimum(one, two).min()), float(three[1]))
            for one, two, three in zip(whole, cut, padding, strict=True)]


@contextlib.contextmanager
def _tokens_apart(model: Any) -> Iterator[None]:
    """8-bit layers without their outliers, which are those of all tokens together: each would depend on the others."""
    states: list[Any] = [getattr(module, "state", None) for module in model.modules()]
    states = [state for state in states if hasattr(state, "threshold")]
    kept = [state.threshold for state in states]
    try:
        for state in states:
            state.threshold = 0.0
        yield
    finally:
        for state, threshold in zip(states, kept, strict=True):
            state.threshold = threshold


def _probe(model: Any, tokenizer: Tokenizer) -> Tensor:
    """Two equal rows of six token ids."""
    ids = tokenizer.encode("one two three four five six", add_special_tokens=False).ids
    return torch.tensor([(ids * 6)[:6]] * 2, device=model.device)


def _changes(model: Any, ids: Tensor, mask: Tensor, position: int) -> list[Tensor]:
    """For each layer ``[B]``: the part of the first token's state that changes with what another position holds."""
    layers = _layers(model)
    calls: list[Any] = []
    hooks = [layer.register_forward_hook(lambda *call: calls.append(call), with_kwargs=True) for layer in layers]
    try:
        model(input_ids=ids, attention_mask=mask, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    found = []
    for layer, inputs, named, output in calls:
        hidden_BLH = inputs[0] if inputs else named["hidden_states"]
        changed_BLH = hidden_BLH.clone()
        changed_BLH[:, position] = changed_BLH[:, position].roll(1, dims=-1)
        again = layer(changed_BLH, *inputs[1:], **named) if inputs else layer(**{**named, "hidden_states": changed_BLH})
        before_BH, after_BH = _state(output)[:, 0].float(), _state(again)[:, 0].float()
        found.append((before_BH - after_BH).norm(dim=-1) / before_BH.norm(dim=-1))
    return found


def _layers(model: Any) -> Any:
    """The stack of layers: the one list of modules that is as long as the network is deep."""
    depth = model.config.get_text_config().num_hidden_layers
    found = [module for module in model.modules() if isinstance(module, torch.nn.ModuleList) and len(module) == depth]
    if not found:
        raise AttributeError("its layers cannot be told apart")
    return found[0]


def _state(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


# ------------------------------------------------------------------------------------------------ loading, adapters


def load_decoder(side: NeuralSide, allow_pickle: bool, **options: Any) -> Any:
    """The decoder of a side, its adapter merged; ``options`` (``dtype``, ``device_map`` ...) as transformers has them.

    Merging into weights of 8 or 4 bits would round the adapter away, so there it stays beside them.
    """
    model = networks.load_causal_lm(side.folder, allow_pickle, **options)
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):  # 4-bit weights packed for a processor have no gradient
            module.support_avx512bf16_for_cpu = False
    if side.adapter is None:
        return model
    return load_adapter(model, side.adapter, merge="quantization_config" not in options, allow_pickle=allow_pickle)


def quantization(bits: int, device: str) -> dict[str, Any]:
    """The options for ``load_decoder`` that load 8- or 4-bit weights; ``ConfigError`` without bitsandbytes."""
    import importlib.util

    if importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigError(f"weights in {bits} bits need the package bitsandbytes, which is not installed; install it "
                          "(the extra 'bits'), or use 'bfloat16'")
    import transformers

    _quiet_bitsandbytes()
    config = transformers.BitsAndBytesConfig(load_in_8bit=True) if bits == 8 else transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
    return {"quantization_config": config, "device_map": {"": device}}


def load_adapter(model: Any, folder: Path, *, merge: bool = True, allow_pickle: bool = False) -> Any:
    """The decoder with the LoRA adapter of a peft folder, merged into its weights by default.

    Raises ``ModelError`` for another kind of adapter, and when adapter and network do not fit each other exactly.
    """
    peft = import_peft()
    layouts.weight_files(folder, allow_pickle=allow_pickle)
    try:
        config = peft.PeftConfig.from_pretrained(str(folder))
        if config.peft_type != peft.PeftType.LORA:
            raise ModelError(f"{folder} is an adapter of type {config.peft_type.value}; supported: LORA")
        with quiet_peft():
            adapted = peft.PeftModel.from_pretrained(model, str(folder), config=config)
    except (OSError, ValueError, KeyError, RuntimeError, TypeError) as error:
        if isinstance(error, ModelError):
            raise
        raise ModelError(f"{folder} does not fit its base model ({_reason(error)})") from error
    _check_adapter(adapted, folder)
    found = adapted.merge_and_unload() if merge else adapted.base_model.model
    return found.eval().requires_grad_(False)


@contextlib.contextmanager
def quiet_peft() -> Iterator[None]:
    """Without the warnings of peft that tell nothing; all others are heard."""
    with warnings.catch_warnings():
        for message in _NO_NEWS:
            warnings.filterwarnings("ignore", message)
        yield


def save_adapter(
    adapted: Any, folder: Path, *, base: str, tokenizer: Any, settings: DecoderSettings, base_sha256: str | None = None
) -> None:
    """Write the adapter of a peft model, its base model named, with tokenizer and settings; whole or not at all.

    ``base``: the base model's folder or hub name. ``base_sha256``: its ``checkpoint.weights_hash``, checked on loading.
    """
    with files.building(folder) as target:
        for config in adapted.peft_config.values():
            config.base_model_name_or_path = base
            if isinstance(getattr(config, "target_modules", None), set):  # whose order differs in every process
                config.target_modules = sorted(config.target_modules)
        adapted.save_pretrained(target)
        tokenizer.save_pretrained(target)
        layouts.write_decoder_settings(target, settings, base_sha256=base_sha256)


def _quiet_bitsandbytes() -> None:
    """Without its lines for every 8-bit product, and for a kernel from the hub, which are warnings there."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def import_peft() -> Any:
    """The package, which imports bitsandbytes where that is installed; raises ``ModelError`` without it."""
    _quiet_bitsandbytes()
    try:
        import peft
    except ImportError as error:
        raise ModelError("an adapter needs the package peft, which is not installed") from error
    return peft


def _check_adapter(adapted: Any, folder: Path) -> None:
    """Every tensor of the file has its place, every place its tensor, and tied weights are left alone."""
    from peft import get_peft_model_state_dict

    stored = set(_tensor_names(folder))
    missing = set(get_peft_model_state_dict(adapted, save_embedding_layers=False)) - stored
    strange = stored - set(get_peft_model_state_dict(adapted, save_embedding_layers=True))
    if missing or strange:
        raise ModelError(f"{folder} does not fit its base model: {len(strange)} tensors have no place in it, "
                         f"{len(missing)} are missing (first: {sorted(missing | strange)[0]})")
    inner = adapted.base_model.model
    ends = {id(module): module for module in (inner.get_input_embeddings(), inner.get_output_embeddings())}
    if len({id(module.weight) for module in ends.values()}) < len(ends) and any(
        hasattr(module, "lora_A") or hasattr(module, "lora_embedding_A") for module in ends.values()
    ):
        raise ModelError(f"{folder} adapts an output layer that is tied to the word embeddings; merging would change "
                         "both, which is not supported")


def _reason(error: BaseException) -> str:
    """The first two lines: torch tells only in the second what does not fit."""
    return " ".join(line.strip() for line in str(error).strip().splitlines()[:2]) or type(error).__name__


def _tensor_names(folder: Path) -> list[str]:
    path = next(folder / name for name in _WEIGHT_NAMES if (folder / name).is_file())
    if path.suffix == ".bin":
        return list(torch.load(path, weights_only=True, map_location="cpu"))
    from safetensors import safe_open

    with safe_open(path, framework="pt") as tensors:
        return list(tensors.keys())


# ------------------------------------------------------------------------------------------------ folding


def fold_vocabulary(tokenizer: Tokenizer, size: int) -> tuple[list[str], np.ndarray]:
    """The folded terms and, int64 ``[V]``, the term of each token.

    Tokens whose text is the same without outer white space and case are one term (``Ġthe``, ``the``, ``The``), named
    by the token that is that text already, else by its first. Special tokens, white space and pieces of characters
    stay alone. Every name is a token of the vocabulary, so that names stay distinct.
    """
    tokens = queries.vocabulary_of(tokenizer, size)
    special = {*queries.special_token_ids(tokenizer), *range(max(tokenizer.get_vocab().values()) + 1, size)}
    groups: dict[tuple[bool, str], list[int]] = {}
    for token_id, token in enumerate(tokens):
        text = "" if token_id in special else _text_of(tokenizer, token).strip().casefold()
        groups.setdefault((True, text) if text else (False, token), []).append(token_id)
    terms_V = np.empty(size, dtype=np.int64)
    names = []
    for term, ((_, text), members) in enumerate(groups.items()):
        terms_V[members] = term
        names.append(text if any(tokens[member] == text for member in members) else tokens[members[0]])
    return names, terms_V


def _text_of(tokenizer: Tokenizer, token: str) -> str:
    """What a token stands for; nothing for a piece of a character."""
    text = token if tokenizer.decoder is None else tokenizer.decoder.decode([token])
    return "" if "\ufffd" in text else text


def fold(scores_BV: Tensor, terms_V: Tensor, size: int) -> Tensor:
    """``[B, terms]``: of each term's tokens the largest score."""
    folded = torch.full((len(scores_BV), size), -torch.inf, device=scores_BV.device, dtype=scores_BV.dtype)
    return folded.scatter_reduce_(1, terms_V.expand(len(scores_BV), -1), scores_BV, "amax")
