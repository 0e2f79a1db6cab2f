"""How a decoder reads a text: the settings in ``sparse_ir.json``."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from sparse_ir.errors import ConfigError, ModelError
from sparse_ir.models.model_files import DECODER_FILE, read_object
from sparse_ir.storage import files

Pooling = Literal["max", "sum"]
Activation = Literal["relu", "log1p_relu"]
Mode = Literal["causal", "echo", "bidirectional"]
Pooled = Literal["text", "all"]
Task = Literal["document", "query"]
_DECODER_FORMAT = 1
_HIDDEN_SCALE = "hidden^-1/4"
TEXT_PLACEHOLDER = "{text}"


@dataclass(frozen=True)
class DecoderSettings:
    """How a decoder reads a text, and what happens to its logits.

    Raises ``ConfigError`` for a bad value.

    Attributes:
        mode: "causal"; "echo", which reads the text twice and pools the second copy, so that every
            token has seen the whole text; "bidirectional", which removes the causal mask.
        document_template: What is read for a document, with ``{text}`` once, under echo twice.
            None stands for ``{text}``, under echo for
            ``Document: {text}\\nDocument again: {text}``.
        query_template: The same for a query, with ``Query`` for ``Document``.
        document_prompt: A text before the document's template.
        query_prompt: A text before the query's template.
        pooled: "text" pools the tokens of the text only, without prompt, template and special
            tokens; "all" pools every token.
        bos: Whether the tokenizer's own special tokens frame the text (BOS for Llama, Mistral,
            Gemma and OPT). BOS is an attention sink with large logits for the same tokens in every
            text. If it is pooled, it makes all vectors alike: SciFact nDCG@10 falls from .65 to
            .02 for LACONIC-1B.
        pooling: "max" or "sum" over tokens.
        activation: ``log1p(relu(x))`` once ("relu") or its ``log1p`` again ("log1p_relu").
        logit_scale: The factor of a logit; "hidden^-1/4" is ``hidden_size ** -0.25`` (Lion-SP,
            arXiv 2502.15526).
        logit_shift: What is subtracted from a scaled logit before the activation.
        centered: Whether the mean over the vocabulary is subtracted from each token's logits first.
            Softmax ignores that mean, so a language model leaves it to chance. The maximum over
            tokens and the shift do not ignore it, and a mean that sinks is the shortest way to a
            dead ReLU.
        temperature: What training divides scores by. Vectors do not depend on it.
        top_k: The largest number of terms of a text; None keeps all.
        max_length: Tokens read of a text, both copies, prompt and template included.
        fold_tokens: Whether tokens that differ only in case and surrounding white space become one
            term, with the largest of their weights.
    """

    mode: Mode = "causal"
    document_template: str | None = None
    query_template: str | None = None
    document_prompt: str = ""
    query_prompt: str = ""
    pooled: Pooled = "text"
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
        for name, choices in _CHOICES.items():
            check_choice(name, getattr(self, name), choices)
        for name in ("document_prompt", "query_prompt"):
            _require(isinstance(getattr(self, name), str), name, getattr(self, name), "a text")
        for name in ("bos", "centered", "fold_tokens"):
            value = getattr(self, name)
            _require(isinstance(value, bool), name, value, "true or false")
        self._check_numbers()
        self._check_template("document_template", self.document_template)
        self._check_template("query_template", self.query_template)
        if self.mode == "echo" and self.pooled != "text":
            raise ConfigError(
                "mode 'echo' pools the second copy of the text only; pooled must be 'text'"
            )

    def _check_numbers(self) -> None:
        scale = self.logit_scale
        is_scale = scale == _HIDDEN_SCALE or _is_positive(scale)
        _require(is_scale, "logit_scale", scale, f"a number above 0, or {_HIDDEN_SCALE!r}")
        _require(_is_number(self.logit_shift), "logit_shift", self.logit_shift, "a number")
        temperature = self.temperature
        _require(_is_positive(temperature), "temperature", temperature, "a number above 0")
        is_limit = self.top_k is None or _is_count(self.top_k)
        _require(is_limit, "top_k", self.top_k, "1 or more, or None")
        _require(_is_count(self.max_length), "max_length", self.max_length, "1 or more")

    def _check_template(self, name: str, template: Any) -> None:
        if template is None:
            return
        _require(isinstance(template, str), name, template, "a text or None")
        count = 1
        times = "once"
        if self.mode == "echo":
            count = 2
            times = "twice"
        if template.count(TEXT_PLACEHOLDER) != count:
            raise ConfigError(
                f"{name} is {template!r}; in mode {self.mode!r} it must hold {TEXT_PLACEHOLDER} "
                f"{times}"
            )

    def template(self, task: Task) -> str:
        """Return the template of documents or queries."""
        stated = self.document_template if task == "document" else self.query_template
        if stated is not None:
            return stated
        if self.mode != "echo":
            return TEXT_PLACEHOLDER
        name = task.capitalize()
        return f"{name}: {TEXT_PLACEHOLDER}\n{name} again: {TEXT_PLACEHOLDER}"

    def scale_for(self, hidden_size: int) -> float:
        """Return ``logit_scale`` as a number, for a network of this hidden width."""
        if self.logit_scale == _HIDDEN_SCALE:
            return float(hidden_size**-0.25)
        return float(self.logit_scale)


_CHOICES: dict[str, tuple[str, ...]] = {
    "mode": get_args(Mode),
    "pooled": get_args(Pooled),
    "pooling": get_args(Pooling),
    "activation": get_args(Activation),
}


def read_decoder_settings(folder: Path) -> DecoderSettings | None:
    """Read ``sparse_ir.json`` in a folder; None if there is none.

    Raises ``ModelError`` for another format or key.
    """
    path = folder / DECODER_FILE
    return read_decoder_file(path) if path.is_file() else None


def read_decoder_file(path: Path) -> DecoderSettings:
    """Read a file like ``sparse_ir.json``. Raises ``ModelError`` for another format or key."""
    record = read_object(path, required=True)
    if record.get("format") != _DECODER_FORMAT:
        raise ModelError(
            f"{path}: format is {record.get('format')!r}; it must be {_DECODER_FORMAT}"
        )
    known = [item.name for item in fields(DecoderSettings)]
    unknown = sorted(set(record) - {"format", "base_sha256", *known})
    if unknown:
        raise ModelError(f"{path}: {', '.join(unknown)} is unknown; known: {', '.join(known)}")
    try:
        return DecoderSettings(**{name: record[name] for name in known if name in record})
    except ConfigError as error:
        raise ModelError(f"{path}: {error}") from error


def write_decoder_settings(
    folder: Path, settings: DecoderSettings, *, base_sha256: str | None = None
) -> None:
    """Write ``sparse_ir.json``.

    ``base_sha256`` is the ``weights_hash`` of the base model of an adapter.
    """
    record: dict[str, Any] = {"format": _DECODER_FORMAT} | asdict(settings)
    if base_sha256 is not None:
        record["base_sha256"] = base_sha256
    files.write_json(folder / DECODER_FILE, record)


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise ``ConfigError`` unless the value is one of the choices."""
    if value not in choices:
        raise ConfigError(f"{name} is {value!r}; it must be one of {', '.join(choices)}")


def _require(is_valid: bool, name: str, value: object, expected: str) -> None:
    if not is_valid:
        raise ConfigError(f"{name} is {value!r}; it must be {expected}")


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_positive(value: Any) -> bool:
    return _is_number(value) and value > 0


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
