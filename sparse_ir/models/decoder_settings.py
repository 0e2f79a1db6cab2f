"""How a decoder reads a text: the settings in ``sparse_ir.json``."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from sparse_ir.errors import ConfigError, ModelError
from sparse_ir.models.model_files import DECODER_FILE, read_object
from sparse_ir.storage import files

Pooling = Literal["max", "sum"]
Activation = Literal["relu", "log1p_relu"]
Mode = Literal["causal", "echo", "bidirectional"]
_DECODER_FORMAT = 1
TEXT_PLACEHOLDER = "{text}"


@dataclass(frozen=True)
class DecoderSettings:
    """How a decoder reads a text and what becomes of its logits; ``sparse_ir.json`` beside the
    weights.

    * ``mode``: ``"causal"``; ``"echo"``, the text twice, of which only the second copy is pooled,
        so that every token
      has seen the whole text; ``"bidirectional"``, the causal mask taken away.
    * ``document_template``, ``query_template``: what is read, with ``{text}`` once, under echo
        twice; None: ``{text}``,
      under echo ``Document: {text}\\nDocument again: {text}`` (``Query:`` for queries). A prompt
          goes before it.
    * ``pooled``: ``"text"`` leaves prompt, template and special tokens out of the pooling;
        ``"all"`` does not.
    * ``bos``: put around the text what the tokenizer puts there (BOS for Llama, Mistral, Gemma,
        OPT). Off by default:
      as an attention sink BOS has large logits for the same tokens in every text, and the maximum
          takes them; pooled,
      it makes all vectors alike (SciFact nDCG@10 .02 instead of .65 for LACONIC-1B).
    * ``pooling``, ``activation``: as for ``NeuralSide``. A logit ``x`` becomes ``x * logit_scale -
        logit_shift``
      before them; ``"hidden^-1/4"`` stands for hidden_size ** -0.25 (Lion-SP, arXiv 2502.15526).
    * ``centered``: of each token's logits their mean over the vocabulary is taken off first. A
        language model leaves
      that mean to chance (softmax does not see it), but the maximum over tokens, and one shift for
          all texts, compare
      it; and all logits sinking together is the shortest way to a dead ReLU.
    * ``temperature``: what training divides scores by. Vectors do not depend on it.
    * ``top_k``: at most so many terms per text. ``max_length``: tokens read, everything counted
        (both copies, too).
    * ``fold_tokens``: tokens that differ only in case and outer white space are one term, with the
        largest weight.

    Raises ``ConfigError`` for a value that is not allowed.
    """

    mode: Mode = "causal"
    document_template: str | None = None
    query_template: str | None = None
    document_prompt: str = ""
    query_prompt: str = ""
    pooled: Literal["text", "all"] = "text"
    bos: bool = False
    pooling: Pooling = "max"
    activation: Activation = "relu"
    logit_scale: float | Literal["hidden^-1/4"] = 1.0
    logit_shift: float = 0.0
    centered: bool = False
    temperature: float = 1.0
    top_k: int | None = None
    max_length: int = 512
    fold_tokens: bool = False

    def __post_init__(self) -> None:
        for name, allowed in _DECODER_CHOICES.items():
            check_choice(name, getattr(self, name), allowed)
        for name, (allowed_text, is_allowed) in _DECODER_RULES.items():
            if not is_allowed(value := getattr(self, name)):
                raise ConfigError(f"{name} is {value!r}; allowed: {allowed_text}")
        copies = 2 if self.mode == "echo" else 1
        for name in ("document_template", "query_template"):
            if (template := getattr(self, name)) is not None and template.count(
                TEXT_PLACEHOLDER
            ) != copies:
                raise ConfigError(
                    f"{name} is {template!r}; in mode {self.mode!r} it must hold "
                    f"{TEXT_PLACEHOLDER} "
                    f"{'twice' if copies == 2 else 'once'}"
                )
        if self.mode == "echo" and self.pooled != "text":
            raise ConfigError(
                "mode 'echo' pools the second copy of the text only; pooled must be 'text'"
            )

    def template(self, task: str) -> str:
        """The template of ``"document"`` or ``"query"``."""
        stated = getattr(self, f"{task}_template")
        if stated is not None:
            return str(stated)
        name = task.capitalize()
        return (
            f"{name}: {TEXT_PLACEHOLDER}\n{name} again: {TEXT_PLACEHOLDER}"
            if self.mode == "echo"
            else TEXT_PLACEHOLDER
        )


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


_DECODER_CHOICES: dict[str, tuple[str, ...]] = {
    "mode": get_args(Mode),
    "pooled": ("text", "all"),
    "pooling": get_args(Pooling),
    "activation": get_args(Activation),
}
_DECODER_RULES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "document_template": ("a text or None", lambda value: value is None or isinstance(value, str)),
    "query_template": ("a text or None", lambda value: value is None or isinstance(value, str)),
    "document_prompt": ("a text", lambda value: isinstance(value, str)),
    "query_prompt": ("a text", lambda value: isinstance(value, str)),
    "bos": ("true or false", lambda value: isinstance(value, bool)),
    "logit_scale": (
        "a number above 0, or 'hidden^-1/4'",
        lambda value: value == "hidden^-1/4" or (_is_number(value) and value > 0),
    ),
    "logit_shift": ("a number", _is_number),
    "centered": ("true or false", lambda value: isinstance(value, bool)),
    "temperature": ("a number above 0", lambda value: _is_number(value) and value > 0),
    "top_k": ("1 or more, or None", lambda value: value is None or _is_count(value)),
    "max_length": ("1 or more", _is_count),
    "fold_tokens": ("true or false", lambda value: isinstance(value, bool)),
}


def read_decoder_settings(folder: Path) -> DecoderSettings | None:
    """What ``sparse_ir.json`` says; None where there is none. Raises ``ModelError`` for another
    format or key.
    """
    path = folder / DECODER_FILE
    return read_decoder_file(path) if path.is_file() else None


def read_decoder_file(path: Path) -> DecoderSettings:
    """The settings in a file like ``sparse_ir.json``, wherever it lies. Raises ``ModelError``."""
    record = read_object(path, required=True)
    if record.get("format") != _DECODER_FORMAT:
        raise ModelError(
            f"{path}: format is {record.get('format')!r}; this version reads {_DECODER_FORMAT}"
        )
    known = [item.name for item in fields(DecoderSettings)]
    if unknown := sorted(set(record) - {"format", "base_sha256", *known}):
        raise ModelError(f"{path}: {', '.join(unknown)} is unknown; known: {', '.join(known)}")
    try:
        return DecoderSettings(**{name: record[name] for name in known if name in record})
    except ConfigError as error:
        raise ModelError(f"{path}: {error}") from error


def write_decoder_settings(
    folder: Path, settings: DecoderSettings, *, base_sha256: str | None = None
) -> None:
    """Write ``sparse_ir.json``. ``base_sha256``: the ``weights_hash`` of the base model, for an
    adapter.
    """
    base = {} if base_sha256 is None else {"base_sha256": base_sha256}
    files.write_json(folder / DECODER_FILE, {"format": _DECODER_FORMAT, **asdict(settings), **base})


def check_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigError(f"{name} {value!r} is unknown; allowed: {', '.join(allowed)}")
