"""Networks and tokenizers of transformers, loaded without surprises and opened where this package
needs them.

The output layer is taken off, so that a network's "logits" are the hidden states before it, and
``heads`` can join that layer with the pooling. Code of a model folder is never run; a network that
lacks weights is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from sparse_ir.errors import ModelError, first_line
from sparse_ir.models import model_files
from sparse_ir.storage import files

_PROBE = "A probe of 7 words, and one more."
_PROBE_TOKENS = 16


class Bend(NamedTuple):
    """What a family does to its logits after the output layer: ``cap * tanh(scale * x / cap)``, or
    without a cap.
    """

    scale: float = 1.0
    cap: float | None = None

    def apply(self, logits: Tensor) -> Tensor:
        scaled = logits * self.scale
        return scaled if self.cap is None else torch.tanh(scaled / self.cap) * self.cap


class _Pass(torch.nn.Module):
    """Stands where the output layer was and returns its input, so that ``logits`` become hidden
    states.
    """

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden


def load_masked_lm(folder: Path, allow_pickle: bool) -> Any:
    """The masked language model of a folder, float32, without gradients; raises ``ModelError`` when
    weights lack.
    """
    model, missing = _load_with_report(folder, allow_pickle)
    _check_complete(folder, model, missing, "masked language model", "ForMaskedLM")
    return model.eval().requires_grad_(False)


def load_causal_lm(folder: Path, allow_pickle: bool, **options: Any) -> Any:
    """The decoder of a folder without gradients; ``options`` (``dtype`` ...) go to transformers'
    ``from_pretrained``.

    Raises ``ModelError`` when weights lack.
    """
    model, missing = _load_with_report(folder, allow_pickle, "AutoModelForCausalLM", **options)
    _check_complete(folder, model, missing, "decoder", "ForCausalLM")
    return model.eval().requires_grad_(False)


def _check_complete(folder: Path, model: Any, missing: list[str], kind: str, suffix: str) -> None:
    if not missing:
        return
    inside = _inside(model, missing)
    listed = inside or missing
    shown = ", ".join(listed[:4]) + (f" and {len(listed) - 4} more" if len(listed) > 4 else "")
    cure = (
        (
            "the network itself is incomplete, and random weights would take their place; fetch "
            "or save the whole "
            "checkpoint again"
        )
        if inside
        else (
            "this is a backbone without its output layer, and random weights would take its place; "
            "use a checkpoint saved "
            f"as ...{suffix}"
        )
    )
    raise ModelError(f"{folder} lacks weights that a {kind} needs ({shown}): {cure}")


def _inside(model: Any, missing: list[str]) -> list[str]:
    """Of the missing weights those of the backbone, and not of what stands behind it."""
    return [name for name in missing if name.startswith(f"{model.base_model_prefix}.")]


def load_or_grow_masked_lm(folder: Path, allow_pickle: bool = False) -> tuple[Any, list[str]]:
    """The masked language model of a folder, and the names of the weights that are new: those of
    its output layer.

    A backbone without one gets the layer of its architecture: tied to the word embeddings, biases
    0, and square matrices in between the identity, so that what the backbone computes passes.
    Raises ``ModelError`` when anything else is missing.
    """
    model, missing = _load_with_report(folder, allow_pickle)
    if inside := _inside(model, missing):
        raise ModelError(
            f"{folder} lacks weights of the backbone itself "
            f"({', '.join(inside[:4])}); training cannot "
            "start from a part of a network"
        )
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if name not in missing:
                continue
            if tensor.ndim == 2 and tensor.shape[0] == tensor.shape[1]:
                torch.nn.init.eye_(tensor)
            elif name.endswith("bias"):
                tensor.zero_()
    model.tie_weights()
    if missing and model.get_output_embeddings().weight is not model.get_input_embeddings().weight:
        raise ModelError(
            f"{folder}: the output layer of {type(model).__name__} is not tied to "
            "its word embeddings "
            "and would be random; use a checkpoint saved as ...ForMaskedLM"
        )
    return model, missing


def checkpoint_activations(model: Any) -> None:
    """Let the backward pass compute activations again instead of keeping them; transformers 5 has a
    new name for it.
    """
    switch = (
        getattr(model, "activation_checkpointing_enable", None)
        or model.gradient_checkpointing_enable
    )
    switch({"use_reentrant": False})


_KINDS = {"AutoModelForMaskedLM": "a masked language model", "AutoModelForCausalLM": "a decoder"}


def _load_with_report(
    folder: Path, allow_pickle: bool, classes: str = "AutoModelForMaskedLM", **options: Any
) -> tuple[Any, list[str]]:
    import transformers

    found = model_files.weight_files(folder, allow_pickle=allow_pickle)
    try:
        model, report = getattr(transformers, classes).from_pretrained(
            folder,
            trust_remote_code=False,
            output_loading_info=True,
            use_safetensors=found[0].suffix == ".safetensors",
            **{"dtype": torch.float32, **options},
        )
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        as_masked = classes == "AutoModelForMaskedLM"
        hint = (
            "; a decoder needs sparse_ir.json beside it, or decoder=..."
            if as_masked and is_decoder(folder)
            else ""
        )
        raise ModelError(
            f"{folder} cannot be loaded as {_KINDS[classes]} ({first_line(error)}){hint}"
        ) from error
    return model, sorted(report["missing_keys"])


def is_decoder(folder: Path) -> bool:
    """Whether ``config.json`` names the class of a decoder."""
    path = folder / "config.json"
    named = (files.read_json(path) if path.is_file() else {}).get("architectures") or []
    return any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in named)


def read_tensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    """Name and tensor of everything in a weight file, one after the other."""
    if path.suffix == ".bin":
        yield from torch.load(path, weights_only=True, map_location="cpu", mmap=True).items()
        return
    from safetensors import safe_open

    with safe_open(path, framework="pt") as tensors:
        for name in tensors.keys():  # noqa: SIM118 (safe_open is no dict)
            yield name, tensors.get_tensor(name)


def select_states(
    hidden_BLH: Tensor, pooled: Sequence[np.ndarray | None], scale: float
) -> tuple[Tensor, np.ndarray]:
    """The scaled states of the pooled positions, moved to the left; behind them stands what does
    not count.
    """
    positions = [np.empty(0, dtype=np.int64) if found is None else found for found in pooled]
    lengths = np.array([len(found) for found in positions])
    index = np.zeros((len(positions), int(lengths.max())), dtype=np.int64)
    for row, found in zip(index, positions, strict=True):
        row[: len(found)] = found
    index_BP = torch.from_numpy(index).to(hidden_BLH.device)
    return hidden_BLH.gather(
        1, index_BP[:, :, None].expand(-1, -1, hidden_BLH.shape[2])
    ) * scale, lengths


def straighten(model: Any, tokenizer: Tokenizer, folder: Path) -> Bend:
    """Switch off what the family does to its logits behind the output layer, and tell what it was,
    proven on a probe.

    Gemma caps them, Cohere and Granite scale them; the model's configuration and its copies change,
    so keep the old one for saving. Raises ``ModelError`` when the probe shows that there is more to
    it.
    """
    ids = _probe_ids(tokenizer)
    config = model.config.get_text_config()
    with torch.inference_mode():
        expected = model(input_ids=ids.to(model.device)).logits.float()
        scales = [getattr(config, name, None) for name in ("logit_scale", "logits_scaling")]
        if wrong := [scale for scale in scales if not isinstance(scale, int | float | None)]:
            raise ModelError(
                f"{folder}: a scale of the logits of {wrong[0]!r} is not supported; "
                "allowed: a number"
            )
        # MPT names one and has none
        multiplied, divided = (1.0 if scale is None else scale for scale in scales)
        bend = Bend(multiplied / divided, getattr(config, "final_logit_softcapping", None))
        for owner in (model, config):
            for name, neutral in (
                ("logit_scale", 1.0),
                ("logits_scaling", 1.0),
                ("final_logit_softcapping", None),
            ):
                if getattr(owner, name, neutral) != neutral:
                    setattr(owner, name, neutral)
        found = bend.apply(model(input_ids=ids.to(model.device)).logits.float())
    if not _agree(model, found, expected):
        raise ModelError(
            f"{folder}: what {type(model).__name__} does to its logits is not supported"
        )
    return bend


def detach_output_layer(
    model: Any, tokenizer: Tokenizer, folder: Path
) -> tuple[tuple[Any, str], Any]:
    """Take the output layer off, and prove on a few tokens that nothing but it made the logits."""
    layer = model.get_output_embeddings()
    name = next((name for name, module in model.named_modules() if module is layer), None)
    if layer is None or name is None or not isinstance(layer, torch.nn.Linear):
        raise ModelError(
            f"{folder}: {type(model).__name__} has no linear output layer over the vocabulary"
        )
    if max(tokenizer.get_vocab().values()) >= layer.out_features:
        raise ModelError(
            f"{folder}: the tokenizer has more tokens than the output layer has rows "
            f"({layer.out_features}); they do not belong together"
        )
    path, _, leaf = name.rpartition(".")
    parent = model.get_submodule(path)
    ids = _probe_ids(tokenizer).to(layer.weight.device)
    with torch.inference_mode():
        expected = model(input_ids=ids).logits
        setattr(parent, leaf, _Pass())
        try:
            found = layer(model(input_ids=ids).logits.to(layer.weight.dtype))
        except (AttributeError, RuntimeError, TypeError) as error:
            raise ModelError(
                f"{folder}: {type(model).__name__} uses its output layer in a way "
                "that is not supported "
                f"({first_line(error)})"
            ) from error
    if not _agree(model, found, expected):
        raise ModelError(
            f"{folder}: {type(model).__name__} changes the logits after its output "
            "layer, which is not "
            "supported"
        )
    return (parent, leaf), layer


def _probe_ids(tokenizer: Tokenizer) -> Tensor:
    return torch.tensor([tokenizer.encode(_PROBE).ids[:_PROBE_TOKENS]])


def _agree(model: Any, found: Tensor, expected: Tensor) -> bool:
    """Equal but for the rounding of the network's type."""
    relative, absolute = (1e-4, 1e-4) if model.dtype == torch.float32 else (2e-2, 0.25)
    return found.shape == expected.shape and torch.allclose(
        found.float(), expected.float(), relative, absolute
    )


def capacity_of(model: Any) -> int | None:
    """Tokens that the position table can hold. RoBERTa's positions start
    behind the padding index.
    """
    size = getattr(model.config, "max_position_embeddings", None)
    if not size or size < 1:
        return None
    for module in model.modules():
        padding = getattr(module, "padding_idx", None)
        if isinstance(padding, int) and isinstance(
            getattr(module, "position_embeddings", None), torch.nn.Embedding
        ):
            return size - padding - 1
    return size
