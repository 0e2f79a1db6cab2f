"""Decoders with fewer bits and with LoRA adapters."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from sparse_ir import extras
from sparse_ir.errors import ConfigError, ModelError
from sparse_ir.models import decoder_settings, loading, model_files
from sparse_ir.models.checkpoint import NeuralSide
from sparse_ir.models.decoder_settings import DecoderSettings
from sparse_ir.storage import files

# of peft's warnings, what is no news: its own use of a name that transformers has replaced, and
# faults of an adapter
# that are refused here with a sentence of ours
_NO_NEWS = (
    "`is_gradient_checkpointing` is deprecated",
    "Found missing adapter keys",
    ".*a tied layer is part of the",
)
_WEIGHT_NAMES = ("adapter_model.safetensors", "adapter_model.bin")


def load_decoder(side: NeuralSide, allow_pickle: bool, **options: Any) -> Any:
    """The decoder of a side, its adapter merged; ``options`` (``dtype``, ``device_map`` ...) as
    transformers has them.

    Merging into weights of 8 or 4 bits would round the adapter away, so there it stays beside them.
    """
    model = loading.load_causal_lm(side.folder, allow_pickle, **options)
    for module in model.modules():
        # 4-bit weights packed for a processor have no gradient
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    if side.adapter is None:
        return model
    return load_adapter(
        model, side.adapter, merge="quantization_config" not in options, allow_pickle=allow_pickle
    )


def quantization(bits: int, device: str) -> dict[str, Any]:
    """The options for ``load_decoder`` that load 8- or 4-bit weights; ``ConfigError`` without
    bitsandbytes.
    """
    import importlib.util

    if importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigError(
            f"weights in {bits} bits: {extras.missing('bitsandbytes')}; or use 'bfloat16'"
        )
    import transformers

    _quiet_bitsandbytes()
    config = (
        transformers.BitsAndBytesConfig(load_in_8bit=True)
        if bits == 8
        else transformers.BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
        )
    )
    return {"quantization_config": config, "device_map": {"": device}}


def load_adapter(
    model: Any, folder: Path, *, merge: bool = True, allow_pickle: bool = False
) -> Any:
    """The decoder with the LoRA adapter of a peft folder, merged into its weights by default.

    Raises ``ModelError`` for another kind of adapter, and when adapter and network do not fit each
    other exactly.
    """
    peft = import_peft()
    model_files.weight_files(folder, allow_pickle=allow_pickle)
    try:
        config = peft.PeftConfig.from_pretrained(str(folder))
        if config.peft_type != peft.PeftType.LORA:
            raise ModelError(
                f"{folder} is an adapter of type {config.peft_type.value}; supported: LORA"
            )
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
    adapted: Any,
    folder: Path,
    *,
    base: str,
    tokenizer: Any,
    settings: DecoderSettings,
    base_sha256: str | None = None,
) -> None:
    """Write the adapter of a peft model, its base model named, with tokenizer and settings; whole
    or not at all.

    ``base``: the base model's folder or hub name. ``base_sha256``: its ``checkpoint.weights_hash``,
    checked on loading.
    """
    with files.building(folder) as target:
        for config in adapted.peft_config.values():
            config.base_model_name_or_path = base
            # whose order differs in every process
            if isinstance(getattr(config, "target_modules", None), set):
                config.target_modules = sorted(config.target_modules)
        adapted.save_pretrained(target)
        tokenizer.save_pretrained(target)
        decoder_settings.write_decoder_settings(target, settings, base_sha256=base_sha256)


def _quiet_bitsandbytes() -> None:
    """Without its lines for every 8-bit product, and for a kernel from the hub, which are warnings
    there.
    """
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def import_peft() -> Any:
    """The package, which imports bitsandbytes where that is installed; raises ``ModelError``
    without it.
    """
    _quiet_bitsandbytes()
    try:
        import peft
    except ImportError as error:
        raise ModelError(f"an adapter: {extras.missing('peft')}") from error
    return peft


def _check_adapter(adapted: Any, folder: Path) -> None:
    """Every tensor of the file has its place, every place its tensor, and tied weights are left
    alone.
    """
    from peft import get_peft_model_state_dict

    stored = set(_tensor_names(folder))
    missing = set(get_peft_model_state_dict(adapted, save_embedding_layers=False)) - stored
    strange = stored - set(get_peft_model_state_dict(adapted, save_embedding_layers=True))
    if missing or strange:
        raise ModelError(
            f"{folder} does not fit its base model: {len(strange)} tensors have no "
            "place in it, "
            f"{len(missing)} are missing (first: {sorted(missing | strange)[0]})"
        )
    inner = adapted.base_model.model
    ends = {
        id(module): module
        for module in (inner.get_input_embeddings(), inner.get_output_embeddings())
    }
    if len({id(module.weight) for module in ends.values()}) < len(ends) and any(
        hasattr(module, "lora_A") or hasattr(module, "lora_embedding_A") for module in ends.values()
    ):
        raise ModelError(
            f"{folder} adapts an output layer that is tied to the word embeddings; "
            "merging would change "
            "both, which is not supported"
        )


def _reason(error: BaseException) -> str:
    """The first two lines: torch tells only in the second what does not fit."""
    return (
        " ".join(line.strip() for line in str(error).strip().splitlines()[:2])
        or type(error).__name__
    )


def _tensor_names(folder: Path) -> list[str]:
    path = next(folder / name for name in _WEIGHT_NAMES if (folder / name).is_file())
    if path.suffix == ".bin":
        return list(torch.load(path, weights_only=True, map_location="cpu"))
    from safetensors import safe_open

    with safe_open(path, framework="pt") as tensors:
        return list(tensors.keys())
