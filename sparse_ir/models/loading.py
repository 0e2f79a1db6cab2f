"""Networks of transformers, loaded without surprises and opened where this package needs them.

The output layer is taken off, so that a network's "logits" are the hidden states before it, and
``pooling`` can join that layer with the pooling. Code of a model folder is never run; a network
that lacks weights is refused.
"""

from __future__ import annotations

import pickle
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from safetensors import SafetensorError
from tokenizers import Tokenizer
from torch import Tensor

from sparse_ir.errors import ModelError, first_line
from sparse_ir.models import model_files
from sparse_ir.models.logits import OutputScaling
from sparse_ir.storage import files

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

# what transformers and torch raise for files that are not what their names say
LOADING_ERRORS = (
    OSError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    RuntimeError,
    ImportError,
    EOFError,
    pickle.UnpicklingError,
    SafetensorError,
)
_PROBE = "A probe of 7 words, and one more."
_PROBE_TOKENS = 16
_SHOWN_NAMES = 4
_NEUTRAL_SCALING = (
    ("logit_scale", 1.0),
    ("logits_scaling", 1.0),
    ("final_logit_softcapping", None),
)
ModelClass = Literal["AutoModelForMaskedLM", "AutoModelForCausalLM"]
_KINDS = {"AutoModelForMaskedLM": "masked language model", "AutoModelForCausalLM": "decoder"}


class _Pass(torch.nn.Module):
    """Takes the place of the output layer and returns its input."""

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden


class Slot(NamedTuple):
    """The place of a network's output layer."""

    parent: torch.nn.Module
    name: str

    def put(self, module: torch.nn.Module) -> torch.nn.Module:
        """Put a module there and return the one that was there."""
        before: torch.nn.Module = getattr(self.parent, self.name)
        setattr(self.parent, self.name, module)
        return before


def load_masked_lm(folder: Path, allow_pickle: bool) -> PreTrainedModel:
    """Load the masked language model of a folder in float32, without gradients.

    Raises ``ModelError`` when weights are missing.
    """
    model, missing = _load(folder, allow_pickle, "AutoModelForMaskedLM")
    _check_complete(folder, model, missing, "AutoModelForMaskedLM")
    return model.eval().requires_grad_(False)


def load_causal_lm(folder: Path, allow_pickle: bool, **options: Any) -> PreTrainedModel:
    """Load the decoder of a folder without gradients.

    ``options`` (``dtype`` ...) go to ``from_pretrained`` of transformers. Raises ``ModelError``
    when weights are missing.
    """
    model, missing = _load(folder, allow_pickle, "AutoModelForCausalLM", **options)
    _check_complete(folder, model, missing, "AutoModelForCausalLM")
    return model.eval().requires_grad_(False)


def load_or_grow_masked_lm(
    folder: Path, allow_pickle: bool = False
) -> tuple[PreTrainedModel, list[str]]:
    """Load a masked language model for training, and give it an output layer if it has none.

    A new output layer is that of the architecture: tied to the word embeddings, with biases 0, and
    with the identity as square matrices in between, so that what the backbone computes passes.

    Returns the network and the names of new weights. Raises ``ModelError`` when anything else is
    missing.
    """
    model, missing = _load(folder, allow_pickle, "AutoModelForMaskedLM")
    inside = _of_backbone(model, missing)
    if inside:
        raise ModelError(
            f"{folder} lacks weights of the backbone itself ({', '.join(inside[:_SHOWN_NAMES])}); "
            "training must start from a whole network"
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
            f"{folder}: the output layer of {type(model).__name__} is not tied to its word "
            "embeddings and would be random; use a checkpoint saved as ...ForMaskedLM"
        )
    return model, missing


def _load(
    folder: Path, allow_pickle: bool, model_class: ModelClass, **options: Any
) -> tuple[PreTrainedModel, list[str]]:
    """Load a network; return it and the names of missing weights."""
    if sys.flags.optimize > 1:
        raise ModelError(
            f"{folder}: transformers reads docstrings, which python -OO removes; Python must run "
            "without -OO and PYTHONOPTIMIZE=2"
        )
    import transformers

    model_files.read_config(folder)
    weight_files = model_files.weight_files(folder, allow_pickle=allow_pickle)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected pickle protocol")  # or the file is refused
            model, report = getattr(transformers, model_class).from_pretrained(
                folder,
                trust_remote_code=False,
                output_loading_info=True,
                use_safetensors=weight_files[0].suffix == ".safetensors",
                **({"dtype": torch.float32} | options),
            )
    except LOADING_ERRORS as error:
        hint = ""
        if model_class == "AutoModelForMaskedLM" and is_decoder(folder):
            hint = "; a decoder needs sparse_ir.json beside it, or decoder=..."
        raise ModelError(
            f"{folder} cannot be loaded as a {_KINDS[model_class]} ({first_line(error)}){hint}"
        ) from error
    missing = sorted(report["missing_keys"])
    _refuse_other_heads(folder, report["unexpected_keys"], missing)
    check_finite(folder, model, missing)
    return model, missing


def _refuse_other_heads(folder: Path, unexpected: Iterable[str], missing: list[str]) -> None:
    """Raise ``ModelError`` for a head that weighs the tokens of a text and adds none."""
    if not missing:
        return
    if (folder / "sparse_linear.pt").is_file():
        kind = "BGE-M3, whose sparse head (sparse_linear.pt)"
    elif any("tok_proj" in name for name in unexpected):
        kind = "uniCOIL, whose head (tok_proj)"
    else:
        return
    raise ModelError(
        f"{folder} is {kind} gives one weight to each token of a text, which is not supported; it "
        "must be a model with an output layer over the vocabulary (SPLADE)"
    )


def check_finite(folder: Path, model: torch.nn.Module, missing: Sequence[str] = ()) -> None:
    """Raise ``ModelError`` for a weight that is NaN or infinite, except in missing tensors."""
    for name, tensor in model.named_parameters():
        if name in missing or not tensor.is_floating_point():
            continue
        if not torch.isfinite(tensor).all():
            count = int((~torch.isfinite(tensor)).sum())
            raise ModelError(
                f"{folder}: {count} of {tensor.numel()} weights of the tensor {name} are NaN or "
                "infinite; they must be finite, so fetch or save the model again"
            )


def _check_complete(
    folder: Path, model: PreTrainedModel, missing: list[str], model_class: ModelClass
) -> None:
    if not missing:
        return
    inside = _of_backbone(model, missing)
    names = inside or missing
    shown = ", ".join(names[:_SHOWN_NAMES])
    if len(names) > _SHOWN_NAMES:
        shown += f" and {len(names) - _SHOWN_NAMES} more"
    if inside:
        remedy = (
            "the network itself is incomplete, and random weights would take their place; fetch or "
            "save the whole checkpoint again"
        )
    else:
        remedy = (
            "this is a backbone without its output layer, and random weights would take its place; "
            f"use a checkpoint saved as ...{model_class.removeprefix('AutoModel')}"
        )
    raise ModelError(
        f"{folder} lacks weights that a {_KINDS[model_class]} needs ({shown}): {remedy}"
    )


def _of_backbone(model: PreTrainedModel, missing: list[str]) -> list[str]:
    """Return the missing weights that lie before the output layer."""
    return [name for name in missing if name.startswith(f"{model.base_model_prefix}.")]


def is_decoder(folder: Path) -> bool:
    """Return whether ``config.json`` names the class of a decoder."""
    path = folder / "config.json"
    if not path.is_file():
        return False
    names: Sequence[str] = files.read_json(path).get("architectures") or []
    return any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in names)


def checkpoint_activations(model: PreTrainedModel) -> None:
    """Let the backward pass compute activations again instead of keeping them."""
    # transformers 5 has a new name for it
    switch = getattr(model, "activation_checkpointing_enable", None)
    if switch is None:
        switch = model.gradient_checkpointing_enable
    switch({"use_reentrant": False})


def read_tensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield name and tensor of everything in a weight file."""
    if path.suffix == ".bin":
        yield from torch.load(path, weights_only=True, map_location="cpu", mmap=True).items()
        return
    from safetensors import safe_open

    with safe_open(path, framework="pt") as tensors:
        for name in tensors.keys():  # noqa: SIM118 (safe_open is not a dict)
            yield name, tensors.get_tensor(name)


def disable_output_scaling(
    model: PreTrainedModel, tokenizer: Tokenizer, folder: Path
) -> OutputScaling:
    """Switch off what a network does to its logits after the output layer, and return what it was.

    Gemma caps its logits, Cohere and Granite scale them. The model's configuration and its copies
    change, so keep the old one for saving. Raises ``ModelError`` when the logits of a few tokens
    show that there is more to it.
    """
    ids = _probe_ids(tokenizer).to(model.device)
    config = model.config.get_text_config()
    with torch.inference_mode():
        expected = model(input_ids=ids).logits.float()
        scaling = _read_output_scaling(config, folder)
        for holder in (model, config):
            for name, neutral in _NEUTRAL_SCALING:
                if getattr(holder, name, neutral) != neutral:
                    setattr(holder, name, neutral)
        rebuilt = scaling.apply(model(input_ids=ids).logits.float())
    if not _agree(model, rebuilt, expected):
        raise ModelError(
            f"{folder}: what {type(model).__name__} does to its logits is not supported"
        )
    return scaling


def _read_output_scaling(config: PretrainedConfig, folder: Path) -> OutputScaling:
    scales = []
    for name in ("logit_scale", "logits_scaling"):
        scale = getattr(config, name, None)
        if not isinstance(scale, int | float | None):
            raise ModelError(
                f"{folder}: {name} is {scale!r}, which is not supported; it must be a number"
            )
        scales.append(1.0 if scale is None else scale)  # MPT names a scale and has none
    factor, divisor = scales
    return OutputScaling(factor / divisor, getattr(config, "final_logit_softcapping", None))


def detach_output_layer(
    model: PreTrainedModel, tokenizer: Tokenizer, folder: Path
) -> tuple[Slot, torch.nn.Linear]:
    """Take the output layer off, and prove on a few tokens that nothing else made the logits.

    Raises ``ModelError`` when there is no such layer, or when it is used in another way.
    """
    slot, layer = _find_output_layer(model, folder)
    if max(tokenizer.get_vocab().values()) >= layer.out_features:
        raise ModelError(
            f"{folder}: the tokenizer has more tokens than the output layer has rows "
            f"({layer.out_features}); they do not belong together"
        )
    ids = _probe_ids(tokenizer).to(layer.weight.device)
    with torch.inference_mode():
        expected = model(input_ids=ids).logits
        slot.put(_Pass())
        try:
            rebuilt = layer(model(input_ids=ids).logits.to(layer.weight.dtype))
        except (AttributeError, RuntimeError, TypeError) as error:
            raise ModelError(
                f"{folder}: {type(model).__name__} uses its output layer in a way that is not "
                f"supported ({first_line(error)})"
            ) from error
    if not _agree(model, rebuilt, expected):
        raise ModelError(
            f"{folder}: {type(model).__name__} changes the logits after its output layer, which is "
            "not supported"
        )
    return slot, layer


def _find_output_layer(model: PreTrainedModel, folder: Path) -> tuple[Slot, torch.nn.Linear]:
    layer = model.get_output_embeddings()
    if isinstance(layer, torch.nn.Linear):
        for name, module in model.named_modules():
            if module is layer:
                path, _, leaf = name.rpartition(".")
                return Slot(model.get_submodule(path), leaf), layer
    raise ModelError(
        f"{folder}: {type(model).__name__} has no linear output layer over the vocabulary"
    )


def _probe_ids(tokenizer: Tokenizer) -> Tensor:
    """Return the tokens of a fixed sentence, ``[1, L]``."""
    return torch.tensor([tokenizer.encode(_PROBE).ids[:_PROBE_TOKENS]])


def _agree(model: PreTrainedModel, rebuilt: Tensor, expected: Tensor) -> bool:
    """Return whether logits are equal up to the rounding of the network's type."""
    if rebuilt.shape != expected.shape:
        return False
    if model.dtype == torch.float32:
        return torch.allclose(rebuilt.float(), expected.float(), rtol=1e-4, atol=1e-4)
    return torch.allclose(rebuilt.float(), expected.float(), rtol=2e-2, atol=0.25)


def capacity_of(model: PreTrainedModel) -> int | None:
    """Return the number of tokens that the position table can hold, None for no limit."""
    size: int | None = getattr(model.config, "max_position_embeddings", None)
    if not size or size < 1:
        return None
    for module in model.modules():
        padding = getattr(module, "padding_idx", None)
        positions = getattr(module, "position_embeddings", None)
        if isinstance(padding, int) and isinstance(positions, torch.nn.Embedding):
            return size - padding - 1  # RoBERTa's positions begin behind the padding index
    return size
