"""Documents, queries, qrels and runs, and what ids, texts and scores must be."""

from __future__ import annotations

import array
import re
from collections.abc import Iterable, Iterator, Mapping
from operator import itemgetter
from typing import NamedTuple

from sparse_ir.errors import DataError

MAX_ID_BYTES = 32766  # Lucene's limit
MetadataValue = str | int | float | bool | list[str]
Metadata = Mapping[str, MetadataValue]


class NoMetadata(Metadata):
    """The metadata of a document without any: empty, immutable, and shared by all of them."""

    def __getitem__(self, name: str) -> MetadataValue:
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0

    def __hash__(self) -> int:
        return 0

    def __repr__(self) -> str:
        return "{}"


NO_METADATA = NoMetadata()


class Document(NamedTuple):
    """One document; title and text may both be empty.

    ``metadata`` holds the other fields of the corpus by name. Encoders do not read it.
    """

    doc_id: str
    title: str
    text: str
    metadata: Metadata = NO_METADATA

    @property
    def contents(self) -> str:
        """Title and text in one string: what encoders read."""
        return f"{self.title} {self.text}".strip()


class Query(NamedTuple):
    """One query; an empty text is legal and finds nothing."""

    query_id: str
    text: str


Qrels = dict[str, dict[str, int]]  # query_id -> doc_id -> relevance (> 0: relevant)
Run = dict[str, list[tuple[str, float]]]  # query_id -> (doc_id, score), best first
FORBIDDEN_IN_ID = re.compile(r"[\s\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_FORBIDDEN_EVERYWHERE = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]|\A\s|\s\Z")
LONE_SURROGATE = re.compile(r"[\ud800-\udfff]")
FLOAT32_MAX = 3.4028234663852886e38
_SHOWN_CHARACTERS = 80


def rank_hits(hits: Iterable[tuple[str, float]]) -> list[tuple[str, float]]:
    """The hits, best first, in trec_eval's order: by score as float32, then doc_id, descending."""
    hits = list(hits)
    scores = array.array("f", [score for _, score in hits])
    keyed = [(score, hit[0], hit) for score, hit in zip(scores, hits, strict=True)]
    keyed.sort(key=itemgetter(0, 1), reverse=True)
    return [hit for _, _, hit in keyed]


def check_text(text: str, name: str = "the text") -> None:
    """Raise ``DataError`` for a text that neither a tokenizer nor Java can read.

    Such is anything but a ``str``, and a ``str`` with half of a character (a lone surrogate).
    """
    if not isinstance(text, str):
        raise DataError(f"{text!r:.60} is a {type(text).__name__}; it must be a text")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{name} holds a lone surrogate ({text[error.start]!r} at character {error.start}); it "
            "must be Unicode text"
        ) from error


def check_string(what: str, value: object) -> str:
    """The string itself; raises ``DataError`` that begins with ``what`` for anything else."""
    if not isinstance(value, str):
        raise DataError(f"{what} is {show(value)}; it must be a string")
    if not value.isascii() and LONE_SURROGATE.search(value):
        raise DataError(
            f"{what} is {show(value)}; it must be text without lone surrogates, which UTF-8 cannot "
            "hold"
        )
    return value


def check_id(what: str, value: object) -> str:
    """The id itself, if it is a non-empty ``str`` without control characters.

    It has at most ``MAX_ID_BYTES`` bytes. Blanks inside are legal (``check_trec_id`` is stricter).
    Raises ``DataError`` that begins with ``what`` (a place and a field) for anything else.
    """
    if not isinstance(value, str):
        raise DataError(f'{what} is {show(value)}; it must be a string, such as "42" in quotes')
    if not value:
        raise DataError(f"{what} is empty; it must be a string of at least one character")
    size = len(value.encode("utf-8", "surrogatepass"))
    if size > MAX_ID_BYTES:
        raise DataError(f"{what} has {size} bytes; it must have at most {MAX_ID_BYTES}")
    if _FORBIDDEN_EVERYWHERE.search(value):
        raise DataError(
            f"{what} is {show(value)}; it must be without white space at its ends, control "
            "characters and lone surrogates"
        )
    return value


def check_trec_id(what: str, value: object) -> str:
    """The id itself, if TREC files can hold it: like ``check_id``, and without white space."""
    if isinstance(value, str) and FORBIDDEN_IN_ID.search(value):
        raise DataError(
            f"{what} is {show(value)}; it must be without white space, control characters and lone "
            "surrogates (TREC files are columns between spaces)"
        )
    return check_id(what, value)


def check_score(where: str, score: object) -> float:
    """The score as a float; raises ``DataError`` that begins with ``where`` if it is not finite."""
    is_number = isinstance(score, int | float) and not isinstance(score, bool)
    # trec_eval reads scores as float32; a NaN fails every comparison
    if not is_number or not -FLOAT32_MAX <= score <= FLOAT32_MAX:  # type: ignore[operator]
        raise DataError(
            f"{where}: score is {show(score)}; it must be a finite number within float32"
        )
    return float(score)  # type: ignore[arg-type]


def show(value: object) -> str:
    """The value as messages show it, cut to 80 characters."""
    text = repr(value)
    if len(text) <= _SHOWN_CHARACTERS:
        return text
    return f"{text[: _SHOWN_CHARACTERS - 3]}..."
