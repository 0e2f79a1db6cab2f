"""Checks of ``sentence_bert_config.json`` that all families share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sparse_ir.errors import ModelError

_HARMLESS_MODEL_OPTIONS = {"dtype", "torch_dtype", "attn_implementation", "trust_remote_code"}
_REFUSED_OPTIONS = (
    "query_expansion",
    "processor_kwargs",
    "tokenizer_args",
    "config_kwargs",
    "config_args",
)


def check_reading(path: Path, config: Mapping[str, Any]) -> None:
    """Raise ``ModelError`` unless a text is passed through the network and its logits are taken."""
    plain = {"method": "forward", "method_output_name": "logits"}
    modalities = config.get("modality_config", {"text": plain})
    if modalities.get("text") != plain or "message" in modalities:
        raise ModelError(
            f"{path}: modality_config is not the plain reading of text, which must be "
            "forward > logits"
        )


def refuse_options(path: Path, config: Mapping[str, Any], refused: Sequence[str]) -> None:
    """Raise ``ModelError`` for settings that would change the vectors and are not supported.

    ``refused`` names settings that the family refuses on top of the common ones.
    """
    for key in (*refused, *_REFUSED_OPTIONS):
        options = dict(config.get(key) or {})
        options.pop("trust_remote_code", None)
        if options:
            raise ModelError(f"{path}: {key} is set ({config[key]}), which is not supported")
    for key in ("model_kwargs", "model_args"):
        unknown = sorted(set(config.get(key) or {}) - _HARMLESS_MODEL_OPTIONS)
        if unknown:
            raise ModelError(f"{path}: {key} sets {', '.join(unknown)}, which is not supported")
