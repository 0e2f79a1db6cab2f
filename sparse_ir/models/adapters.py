"""Decoders with fewer bits and with LoRA adapters."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sparse_ir import extras
from sparse_ir.errors import ConfigError, ModelError
from sparse_ir.models import decoder_settings, loading, model_files
from sparse_ir.models.decoder_settings import DecoderSettings
from sparse_ir.models.families.base import NeuralSide
from sparse_ir.storage import files, reading

if TYPE_CHECKING:
    from types import ModuleType

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# warnings of peft about its own use of a name that transformers has replaced, and about faults of
# an adapter for which this package raises an error of its own
_IGNORED_WARNINGS = (
    "`is_gradient_checkpointing` is deprecated",
    "Found missing adapter keys",
    ".*a tied layer is part of the",
)
_WEIGHT_NAMES = ("adapter_model.safetensors", "adapter_model.bin")


def load_decoder(side: NeuralSide, allow_pickle: bool, **options: Any) -> PreTrainedModel:
    """Load the decoder of a side with its adapter merged.

    ``options`` (``dtype``, ``device_map`` ...) go to transformers. In weights of 8 or 4 bits a
    merged adapter would be rounded away, so there it stays beside them.
    """
    model = loading.load_causal_lm(side.folder, allow_pickle, **options)
    for module in model.modules():
        # 4-bit weights packed for a processor have no gradient
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    if side.adapter is None:
        return model
    merge = "quantization_config" not in options
    return load_adapter(model, side.adapter, merge=merge, allow_pickle=allow_pickle)


def quantization(bits: int, device: str) -> dict[str, Any]:
    """Return the options for ``load_decoder`` that load 8- or 4-bit weights.

    Raises ``ConfigError`` without bitsandbytes.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigError(
            f"weights in {bits} bits: {extras.missing('bitsandbytes')}; or use 'bfloat16'"
        )
    import transformers

    _silence_bitsandbytes()
    if bits == 8:
        config = transformers.BitsAndBytesConfig(load_in_8bit=True)
    else:
        config = transformers.BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
        )
    return {"quantization_config": config, "device_map": {"": device}}


def load_adapter(
    model: PreTrainedModel, folder: Path, *, merge: bool = True, allow_pickle: bool = False
) -> PreTrainedModel:
    """Add the LoRA adapter of a peft folder to a decoder, by default merged into its weights.

    Raises ``ModelError`` for another kind of adapter, and when adapter and network do not fit each
    other exactly.
    """
    peft = import_peft()
    model_files.weight_files(folder, allow_pickle=allow_pickle)
    try:
        config = peft.PeftConfig.from_pretrained(str(folder))
        if config.peft_type != peft.PeftType.LORA:
            raise ModelError(
                f"{folder} is an adapter of type {config.peft_type.value}; it must be LORA"
            )
        with quiet_peft():
            adapted = peft.PeftModel.from_pretrained(model, str(folder), config=config)
    except loading.LOADING_ERRORS as error:
        if isinstance(error, ModelError):
            raise
        raise ModelError(f"{folder} does not fit its base model ({_reason(error)})") from error
    _check_tensors(adapted, folder)
    _check_tied_layers(adapted, folder)
    network = adapted.merge_and_unload() if merge else adapted.base_model.model
    return network.eval().requires_grad_(False)


@contextlib.contextmanager
def quiet_peft() -> Iterator[None]:
    """Silence the warnings of peft that tell nothing; all others are heard."""
    with warnings.catch_warnings():
        for message in _IGNORED_WARNINGS:
            warnings.filterwarnings("ignore", message)
        yield


def save_adapter(
    adapted: Any,
    folder: Path,
    *,
    base: str,
    hf_tokenizer: PreTrainedTokenizerBase,
    settings: DecoderSettings,
    base_sha256: str | None = None,
) -> None:
    """Write the adapter of a peft model with tokenizer and settings; whole or not at all.

    Args:
        adapted: The peft model.
        folder: Where to write.
        base: The base model's folder or hub name.
        hf_tokenizer: The tokenizer of transformers.
        settings: How the decoder reads a text.
        base_sha256: The ``model_files.weights_hash`` of the base model, checked on loading.
    """
    with files.building(folder) as target:
        for config in adapted.peft_config.values():
            config.base_model_name_or_path = base
            # a set has another order in every process
            if isinstance(getattr(config, "target_modules", None), set):
                config.target_modules = sorted(config.target_modules)
        adapted.save_pretrained(target)
        hf_tokenizer.save_pretrained(target)
        decoder_settings.write_decoder_settings(target, settings, base_sha256=base_sha256)


def _silence_bitsandbytes() -> None:
    """Silence its warnings for every 8-bit product and for a kernel from the hub."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def import_peft() -> ModuleType:
    """Import peft, which imports bitsandbytes if that is installed.

    Raises ``ModelError`` without it.
    """
    _silence_bitsandbytes()
    try:
        import peft
    except ImportError as error:
        raise ModelError(f"an adapter: {extras.missing('peft')}") from error
    return peft


def _check_tensors(adapted: Any, folder: Path) -> None:
    """Raise ``ModelError`` unless every tensor has its place, and every place its tensor."""
    from peft import get_peft_model_state_dict

    stored = set(_tensor_names(folder))
    missing = set(get_peft_model_state_dict(adapted, save_embedding_layers=False)) - stored
    unknown = stored - set(get_peft_model_state_dict(adapted, save_embedding_layers=True))
    if missing or unknown:
        raise ModelError(
            f"{folder} does not fit its base model: {len(unknown)} tensors have no place in it, "
            f"{len(missing)} are missing (first: {sorted(missing | unknown)[0]})"
        )


def _check_tied_layers(adapted: Any, folder: Path) -> None:
    """Raise ``ModelError`` for an adapter to an output layer that is tied to the embeddings."""
    network = adapted.base_model.model
    embeddings = network.get_input_embeddings()
    output_layer = network.get_output_embeddings()
    if embeddings is output_layer or embeddings.weight is not output_layer.weight:
        return
    for layer in (embeddings, output_layer):
        if hasattr(layer, "lora_A") or hasattr(layer, "lora_embedding_A"):
            raise ModelError(
                f"{folder} adapts an output layer that is tied to the word embeddings; merging "
                "would change both, which is not supported"
            )


def _reason(error: BaseException) -> str:
    """Return the first two lines; torch says only in the second what does not fit."""
    lines = str(error).strip().splitlines()[:2]
    return " ".join(line.strip() for line in lines) or type(error).__name__


def _tensor_names(folder: Path) -> list[str]:
    path = next(folder / name for name in _WEIGHT_NAMES if (folder / name).is_file())
    with reading.reading(path, "tensors", ModelError, "; fetch or copy it again"):
        return [name for name, _ in loading.read_tensors(path)]
