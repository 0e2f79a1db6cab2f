"""Documents, queries, qrels and runs, and what an id, a text and a score must be."""

from __future__ import annotations

import array
import re
from collections.abc import Iterable
from typing import NamedTuple

from sparse_ir.errors import DataError


class Document(NamedTuple):
    """One document; title and text may both be empty."""

    doc_id: str
    title: str
    text: str

    @property
    def contents(self) -> str:
        """Title and text in one string: what encoders read."""
        return f"{self.title} {self.text}".strip()


class Query(NamedTuple):
    """One query; the text may be empty (it finds nothing)."""

    query_id: str
    text: str


Qrels = dict[str, dict[str, int]]  # query_id -> doc_id -> relevance (> 0: relevant)
Run = dict[str, list[tuple[str, float]]]  # query_id -> (doc_id, score), best first
FORBIDDEN_IN_ID = re.compile(r"[\s\x00-\x1f\x7f-\x9f\ud800-\udfff]")
LONE_SURROGATE = re.compile(r"[\ud800-\udfff]")
FLOAT32_MAX = 3.4028234663852886e38


def check_text(text: str, name: str = "the text") -> None:
    """Raise ``DataError`` for what neither a tokenizer nor Java can take: no text at all, or half
    of a character.
    """
    if not isinstance(text, str):
        raise DataError(f"{text!r:.60} is a {type(text).__name__}; allowed: a text")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{name} holds a lone surrogate ({text[error.start]!r} at character "
            f"{error.start}); allowed: "
            "Unicode text"
        ) from error


def rank_hits(hits: Iterable[tuple[str, float]]) -> list[tuple[str, float]]:
    """The hits, best first, in trec_eval's order: by score as float32, then by doc_id, both
    descending.
    """
    hits = list(hits)
    keys = zip(array.array("f", [score for _, score in hits]), hits, strict=True)
    return [hit for _, hit in sorted(keys, key=lambda key: (key[0], key[1][0]), reverse=True)]


def check_id(what: str, value: object) -> str:
    """The id itself, when runs and qrels can hold it: a non-empty ``str`` without white space or
    control characters.

    Raises ``DataError`` that begins with ``what`` (a place and a field) otherwise.
    """
    if not isinstance(value, str):
        raise DataError(f'{what} is {show(value)}, allowed: a string, such as "42" in quotes')
    if not value:
        raise DataError(f"{what} is empty, allowed: a string of at least one character")
    if FORBIDDEN_IN_ID.search(value):
        raise DataError(
            f"{what} is {show(value)}, allowed: no white space, control character or "
            "lone surrogate "
            "(runs and qrels are columns between spaces)"
        )
    return value


def check_score(where: str, score: object) -> float:
    number = isinstance(score, int | float) and not isinstance(score, bool)
    # Scores are float32 to trec_eval; a NaN fails every comparison.
    if not number or not -FLOAT32_MAX <= score <= FLOAT32_MAX:  # type: ignore[operator]
        raise DataError(f"{where}: score is {show(score)}, allowed: a finite number within float32")
    return float(score)  # type: ignore[arg-type]


def show(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
