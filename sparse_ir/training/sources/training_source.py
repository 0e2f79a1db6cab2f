"""A source of training pairs in memory, and what its texts and pairs must be."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import math
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from sparse_ir.data import records
from sparse_ir.errors import ConfigError, DataError
from sparse_ir.storage import files

NO_DOCUMENTS = np.empty(0, dtype=np.int32)
Item = TypeVar("Item")


@dataclass(frozen=True, eq=False)
class TrainingSource:
    """Queries with their positive and negative documents, as positions in ``documents``.

    ``positives[i]`` and ``negatives[i]`` (best first, maybe empty) are int32 and belong to
    ``queries[i]``. ``scores[i]`` is float32: the teacher's scores of the positives, then of the
    negatives.
    """

    name: str
    query_ids: Sequence[str] = field(repr=False)
    queries: Sequence[str] = field(repr=False)
    doc_ids: Sequence[str] | None = field(repr=False)  # None: the file held texts and no ids
    documents: Sequence[str] = field(repr=False)
    positives: Sequence[np.ndarray] = field(repr=False)
    negatives: Sequence[np.ndarray] = field(repr=False)
    scores: Sequence[np.ndarray] | None = field(default=None, repr=False)
    weight: float = 1.0
    fingerprint: dict[str, Any] = field(default_factory=dict, repr=False)


def check_weight(weight: float) -> None:
    """Raise ``ConfigError`` unless the weight of a source is a finite number above 0."""
    if not 0 < weight < math.inf:
        raise ConfigError(f"weight is {weight!r}; it must be a finite number above 0")


def is_blank(text: str) -> bool:
    """Whether a text gives no token: it holds only spaces, control and format characters."""
    return all(unicodedata.category(character)[0] in "CZ" for character in text)


def check_visible(what: str, text: str) -> None:
    """Raise ``DataError`` that begins with ``what`` for a text that ``is_blank``."""
    if is_blank(text):
        raise DataError(
            f"{what} is {records.show(text)}; it must be a text of at least one visible character"
        )


def check_once(where: str, documents: Sequence[str]) -> None:
    """Raise ``DataError`` for a list that holds a document twice."""
    if len(set(documents)) == len(documents):
        return
    twice = max(documents, key=documents.count)
    raise DataError(
        f"{where}: {records.show(twice)} is listed twice; each document of a list must occur once"
    )


def check_apart(source: TrainingSource, where: Callable[[int], str]) -> None:
    """Raise ``DataError`` when a negative of a query is one of its positives.

    Documents are compared by position and by text. ``where(query)`` names the line of a query.
    """
    same = merge_equal(source.documents)
    positive_keys = pair_keys(source.positives, same)
    negative_keys = pair_keys(source.negatives, same)
    clashes = np.flatnonzero(np.isin(negative_keys, positive_keys))
    if not len(clashes):
        return
    query, shared = divmod(int(negative_keys[clashes[0]]), len(same))
    negatives = source.negatives[query]
    positives = source.positives[query]
    negative = int(negatives[same[negatives] == shared][0])
    positive = int(positives[same[positives] == shared][0])
    how = "is one of its positives"
    if positive != negative:
        how = f"has the text of its positive {show_document(source, positive)}"
    raise DataError(
        f"{where(query)}: query {source.query_ids[query]!r}: negative "
        f"{show_document(source, negative)} {how}; negatives must differ from all positives"
    )


def show_document(source: TrainingSource, document: int) -> str:
    """A document as messages show it: its id, or the text where there is none."""
    if source.doc_ids is None:
        return records.show(source.documents[document])
    return records.show(source.doc_ids[document])


def pick(items: Sequence[Item], rows: Iterable[int]) -> list[Item]:
    """The items at these positions."""
    return list(map(items.__getitem__, rows))


def positions_of(names: Iterable[str]) -> dict[str, int]:
    """Each name with its position."""
    return {name: position for position, name in enumerate(names)}


def merge_equal(texts: Sequence[str]) -> np.ndarray:
    """For each text, the position of the first text equal to it: int32 ``(N,)``."""
    first: dict[str, int] = {}
    positions = (first.setdefault(text, position) for position, text in enumerate(texts))
    return np.fromiter(positions, np.int32, len(texts))


def pair_keys(lists: Sequence[np.ndarray], same: np.ndarray) -> np.ndarray:
    """The key ``query * N + document`` of each pair: int64, in the order of the queries.

    ``same`` is what ``merge_equal`` gives for the N documents: equal texts count as one document.
    """
    queries = np.repeat(np.arange(len(lists), dtype=np.int64), list(map(len, lists)))
    keys: np.ndarray = queries * len(same) + same[np.concatenate([NO_DOCUMENTS, *lists])]
    return keys


def with_fingerprint(
    source: TrainingSource,
    *,
    path: Path,
    split: str | None,
    limit: int | None,
    files_read: Sequence[Path],
    counts: Mapping[str, int],
) -> TrainingSource:
    """The source with JSON-able facts that decide its pairs: options, counts, and hashes."""
    fingerprint: dict[str, Any] = {
        "path": path.name,
        "split": split,
        "limit": limit,
        "queries": len(source.queries),
        "documents": len(source.documents),
        "positives": sum(map(len, source.positives)),
        "negatives": sum(map(len, source.negatives)),
        "queries_without_negatives": list(map(len, source.negatives)).count(0),
    }
    fingerprint |= counts
    digest = hashlib.sha256()
    for text in itertools.chain(source.queries, source.documents):
        raw = text.encode()
        # each text after its length: different lists never give equal bytes
        digest.update(len(raw).to_bytes(8, "little"))
        digest.update(raw)
    fingerprint["texts_sha256"] = digest.hexdigest()
    fingerprint["files"] = {file.name: files.sha256_of_file(file) for file in files_read}
    return dataclasses.replace(source, fingerprint=fingerprint)
