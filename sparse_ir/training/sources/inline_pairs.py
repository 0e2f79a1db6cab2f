"""Training pairs from one JSONL file that holds the texts, in our format or Tevatron's."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sparse_ir.data import records
from sparse_ir.data.lines import parse_jsonl
from sparse_ir.errors import DataError
from sparse_ir.training.sources.training_source import (
    TrainingSource,
    check_apart,
    check_once,
    check_visible,
    with_fingerprint,
)

_QUERY_KEYS = ("query", "query_id")
_POSITIVE_KEYS = ("positive", "positives")
_NEGATIVE_KEYS = ("negative", "negatives")
_SCORE_KEYS = ("positive_scores", "negative_scores", "label")
_KEYS = (*_QUERY_KEYS, *_POSITIVE_KEYS, *_NEGATIVE_KEYS, *_SCORE_KEYS)
_TEVATRON_KEYS = {"positive_passages": "positive", "negative_passages": "negative"}
_TEVATRON_UNUSED = "answers"


class _Line(NamedTuple):
    number: int
    query_id: str
    query: str
    positives: list[str]
    negatives: list[str]
    scores: list[float] | None


def read_inline_pairs(path: Path, limit: int | None) -> TrainingSource:
    """The pairs of a file, as ``pairs.read_source`` describes it; equal texts are one document."""
    lines = list(_read_lines(path, limit))
    if not lines:
        raise DataError(f"{path}: the file is empty; it must hold at least one line")
    positions: dict[str, int] = {}
    positives = [_intern(line.positives, positions) for line in lines]
    negatives = [_intern(line.negatives, positions) for line in lines]
    scores: list[np.ndarray] | None = None
    if lines[0].scores is not None:
        scores = [np.array(line.scores, dtype=np.float32) for line in lines]
    source = TrainingSource(
        name=path.name,
        query_ids=[line.query_id for line in lines],
        queries=[line.query for line in lines],
        doc_ids=None,
        documents=list(positions),
        positives=positives,
        negatives=negatives,
        scores=scores,
    )
    check_apart(source, lambda query: f"{path}:{lines[query].number}")
    return with_fingerprint(
        source, path=path, split=None, limit=limit, files_read=[path], counts={}
    )


def _intern(texts: list[str], positions: dict[str, int]) -> np.ndarray:
    """The positions of texts; new texts get the next ones."""
    for text in texts:
        positions.setdefault(text, len(positions))
    return np.array(list(map(positions.__getitem__, texts)), dtype=np.int32)


def _read_lines(path: Path, limit: int | None) -> Iterator[_Line]:
    seen: dict[str, int] = {}
    has_scores: bool | None = None
    for number, record in itertools.islice(parse_jsonl(path), limit):
        where = f"{path}:{number}"
        line = _read_line(where, number, _unpack_passages(where, record))
        first = seen.setdefault(line.query_id, number)
        if first != number:
            raise DataError(
                f'{where}: "query_id" is {line.query_id!r}, the same as in line {first}; each id '
                "must occur once"
            )
        if has_scores is None:
            has_scores = line.scores is not None
        if has_scores != (line.scores is not None):
            what = "has no scores" if has_scores else "has scores"
            raise DataError(
                f"{where}: this line {what}, unlike line 1; all lines must have scores, or none"
            )
        yield line


def _read_line(where: str, number: int, record: dict[str, Any]) -> _Line:
    for key in record:
        if key not in _KEYS:
            raise DataError(
                f"{where}: unknown key {records.show(key)}; it must be one of {', '.join(_KEYS)}"
            )
    query = records.check_string(f'{where}: "query"', get_field(where, record, "query"))
    check_visible(f'{where}: "query"', query)
    positives = _read_texts(where, record, _POSITIVE_KEYS)
    if not positives:
        raise DataError(
            f'{where}: "positive" is missing or empty (keys: {", ".join(record)}); it must hold at '
            "least one text"
        )
    negatives = _read_texts(where, record, _NEGATIVE_KEYS)
    scores = _read_scores(where, record, len(positives), len(negatives))
    query_id = records.check_id(f'{where}: "query_id"', record.get("query_id", str(number)))
    return _Line(number, query_id, query, positives, negatives, scores)


def get_field(where: str, record: dict[str, Any], key: str) -> Any:
    """The value of a key; raises ``DataError`` that names the place when it is missing."""
    if key not in record:
        keys = ", ".join(record) or "none"
        raise DataError(f'{where}: "{key}" is missing (keys: {keys}); each record must have it')
    return record[key]


def _read_texts(where: str, record: dict[str, Any], names: tuple[str, str]) -> list[str]:
    """The texts under one of two names: a text, or a list of texts."""
    singular, plural = names
    if singular in record and plural in record:
        raise DataError(f'{where}: both "{singular}" and "{plural}" are given; one must be')
    key = singular if singular in record else plural
    texts = record.get(key, [])
    if not isinstance(texts, list):
        texts = [texts]
    for text in texts:
        check_visible(f'{where}: "{key}"', records.check_string(f'{where}: "{key}"', text))
    check_once(where, texts)
    return texts


def _read_scores(
    where: str, record: dict[str, Any], positives: int, negatives: int
) -> list[float] | None:
    """The scores of the positives, then of the negatives; None where the line has no scores."""
    keys = [key for key in _SCORE_KEYS if key in record]
    if not keys:
        return None
    if "label" not in keys:
        scores = _check_scores(where, record, "positive_scores", positives)
        return scores + _check_scores(where, record, "negative_scores", negatives)
    if len(keys) > 1:
        raise DataError(f'{where}: both "label" and "{keys[0]}" are given; one must be')
    return _check_scores(where, record, "label", positives + negatives)


def _check_scores(where: str, record: dict[str, Any], key: str, count: int) -> list[float]:
    scores = record.get(key, [])
    if not isinstance(scores, list):
        scores = [scores]
    if len(scores) != count:
        texts = "positives and negatives" if key == "label" else key.removesuffix("_scores") + "s"
        raise DataError(
            f'{where}: "{key}" holds {len(scores)} scores; it must hold one for each of the '
            f"{count} {texts}"
        )
    for score in scores:
        is_number = isinstance(score, int | float) and not isinstance(score, bool)
        if not is_number or not abs(score) <= records.FLOAT32_MAX:  # a NaN fails every comparison
            raise DataError(
                f'{where}: "{key}" holds {records.show(score)}; it must hold finite numbers within '
                "float32"
            )
    return list(map(float, scores))


def _unpack_passages(where: str, record: dict[str, Any]) -> dict[str, Any]:
    """Tevatron's record as one of ours; other records are returned unchanged."""
    if not any(key in record for key in _TEVATRON_KEYS):
        return record
    unpacked = dict(record)
    unpacked.pop(_TEVATRON_UNUSED, None)
    for key, ours in _TEVATRON_KEYS.items():
        passages = unpacked.pop(key, [])
        is_list = isinstance(passages, list)
        if not is_list or not all(isinstance(passage, dict) for passage in passages):
            raise DataError(
                f'{where}: "{key}" is {records.show(passages)}; it must be a list of '
                '{"title", "text"}'
            )
        texts: list[str] = []
        for passage in passages:
            title = passage.get("title") or ""
            texts.append(f"{title} {get_field(where, passage, 'text')}".strip())
        unpacked[ours] = texts
    return unpacked
