"""Exact search in numpy: an engine without Java, and the truth that every engine must equal.

    exact/fields.json                 format, and the vocabulary of each field
    exact/doc_ids.json                the doc_id of each document number
    exact/FIELD.offsets.npy           int64 (V + 1,): where the postings of each token begin
    exact/FIELD.documents.npy         int32 (postings,): document numbers, ascending for each token
    exact/FIELD.impacts.npy           uint16 (postings,)

A search adds up the postings of the query's tokens for all documents, so its time grows with the
collection; it suits collections of up to some hundred thousand documents. Postings are read through
memory maps. Writing holds the whole matrix in memory.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import sparse

from sparse_ir.engines.base import (
    LARGEST_IMPACT,
    Capabilities,
    EngineHits,
    EngineQuery,
    EngineStatistics,
    FindIds,
    ImpactBatch,
)
from sparse_ir.engines.ranking import order_hits
from sparse_ir.errors import ClosedError, DamagedError, DataError
from sparse_ir.storage import files, reading

_FORMAT = 1
_FIELDS = "fields.json"
_DOC_IDS = "doc_ids.json"


class ExactEngine:
    """The engine ``exact``; see ``base.Engine``."""

    name = "exact"
    capabilities = Capabilities(
        largest_impact=LARGEST_IMPACT,
        exact_below=2**53,
        longest_token_bytes=None,
        longest_doc_id_bytes=None,
        needs_java=False,
    )

    def version(self) -> str:
        """The version of the format of the files."""
        return str(_FORMAT)

    def write(
        self,
        folder: Path,
        batches: Sequence[Callable[[], ImpactBatch]],
        vocabularies: Mapping[str, Sequence[str]],
        *,
        threads: int = 1,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        """Write the postings of all batches; one thread does all the work."""
        folder.mkdir(parents=True, exist_ok=True)
        doc_ids: list[str] = []
        rows: dict[str, list[sparse.csr_matrix]] = {field: [] for field in vocabularies}
        for read_batch in batches:
            batch = read_batch()
            doc_ids.extend(batch.doc_ids)
            for field, impacts in batch.fields.items():
                _check_impacts(impacts)
                rows[field].append(impacts)
            if progress is not None:
                progress(len(batch.doc_ids))
        for field, vocabulary in vocabularies.items():
            _write_postings(folder, field, rows[field], len(vocabulary))
        _write_json(folder / _DOC_IDS, doc_ids)
        stored = {field: list(vocabulary) for field, vocabulary in vocabularies.items()}
        _write_json(folder / _FIELDS, {"format": _FORMAT, "fields": stored})

    def check(self, folder: Path) -> None:
        """Check that the postings of every token are ascending, in range and not zero."""
        reader = ExactReader(folder)
        for field, postings in reader.fields.items():
            _check_postings(folder, field, postings, reader.num_documents)

    def open(self, folder: Path, find_ids: FindIds | None = None) -> ExactReader:
        """Open the postings through memory maps."""
        return ExactReader(folder, find_ids)


class _Postings(NamedTuple):
    """The postings of one field."""

    columns: dict[str, int]  # token -> its place in offsets
    offsets: np.ndarray  # int64 (V + 1,)
    documents: np.ndarray  # int32 (P,)
    impacts: np.ndarray  # uint16 (P,)

    def of_token(self, token: str) -> tuple[np.ndarray, np.ndarray]:
        """Document numbers and impacts of one token; empty for an unknown token."""
        column = self.columns.get(token)
        if column is None:
            return self.documents[:0], self.impacts[:0]
        chosen = slice(self.offsets[column], self.offsets[column + 1])
        return self.documents[chosen], self.impacts[chosen]


class ExactReader:
    """An open exact index; see ``base.EngineReader``. Scores are float64."""

    def __init__(self, folder: Path, find_ids: FindIds | None = None) -> None:
        record = files.read_json(folder / _FIELDS)
        if not isinstance(record, dict) or record.get("format") != _FORMAT:
            raise DamagedError(f"{folder / _FIELDS} must be of format {_FORMAT}; build it again")
        self._folder = folder
        self._doc_ids: list[str] = files.read_json(folder / _DOC_IDS)
        self._numbers: dict[str, int] | None = None
        self._find_ids = find_ids or self.stored_ids
        self._closed = False
        self.num_documents = len(self._doc_ids)
        self.fields: dict[str, _Postings] = {}
        for field, vocabulary in record["fields"].items():
            self.fields[field] = _open_postings(folder, field, vocabulary)

    def search(self, query: EngineQuery, k: int) -> EngineHits:
        """The ``k`` best documents; see ``base.EngineReader.search``."""
        if k < 1:
            raise DataError(f"the number of hits is {k}; it must be at least 1")
        scores = self._scores(query)
        numbers = _best(scores, k)
        return self._order(numbers, scores[numbers], k)

    def find_candidates(self, query: EngineQuery, count: int) -> np.ndarray:
        """Numbers of the ``count`` best documents, int64."""
        return _best(self._scores(query), count)[:count]

    def rank(self, numbers: np.ndarray, scores: np.ndarray, k: int) -> EngineHits:
        """The ``k`` best of documents that were scored elsewhere."""
        best = np.argsort(-scores, kind="stable")
        return self._order(numbers[best], scores[best], k)

    def score(self, doc_id: str, query: EngineQuery) -> float:
        """The score of one document; 0.0 when no token matches or the document is missing."""
        return float(sum(self.contributions(doc_id, query).values()))

    def contributions(self, doc_id: str, query: EngineQuery) -> dict[tuple[str, str], float]:
        """``(field, token)`` -> its part of the score of one document."""
        number = self._number(doc_id)
        return {} if number is None else self._explain(query, number)

    def explainer(self, query: EngineQuery) -> Callable[[int], dict[tuple[str, str], float]]:
        """A function from a document number to its ``contributions``."""
        return functools.partial(self._explain, query)

    def _explain(self, query: EngineQuery, number: int) -> dict[tuple[str, str], float]:
        parts: dict[tuple[str, str], float] = {}
        for field, terms in query.items():
            postings = self._field(field)
            for token, boost in zip(terms.tokens, terms.boosts, strict=True):
                documents, impacts = postings.of_token(token)
                place = int(np.searchsorted(documents, number))
                if place < len(documents) and documents[place] == number:
                    before = parts.get((field, token), 0.0)
                    parts[field, token] = before + boost * float(impacts[place])
        return parts

    def has_document(self, doc_id: str) -> bool:
        """True when the index holds a document of this id."""
        return self._number(doc_id) is not None

    def document_frequencies(self, field: str, tokens: Sequence[str]) -> np.ndarray:
        """The number of documents that hold each token, int64 ``(T,)``."""
        postings = self._field(field)
        return np.array([len(postings.of_token(token)[0]) for token in tokens], dtype=np.int64)

    def statistics(self) -> EngineStatistics:
        """Counts over all fields."""
        fields = self.fields.values()
        return EngineStatistics(
            documents=self.num_documents,
            terms=sum(int(np.count_nonzero(np.diff(field.offsets))) for field in fields),
            postings=sum(len(field.documents) for field in fields),
            sum_impacts=sum(int(field.impacts.sum(dtype=np.int64)) for field in fields),
        )

    def stored_ids(self, numbers: Sequence[int]) -> list[str]:
        """The doc_id of each document number."""
        return [self._doc_ids[number] for number in numbers]

    def end_thread(self) -> None:
        """Nothing is kept for a thread."""

    def close(self) -> None:
        """Let go of the memory maps."""
        self._closed = True
        self.fields = {}

    def __enter__(self) -> ExactReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _field(self, field: str) -> _Postings:
        if self._closed:
            raise ClosedError(f"{self._folder} was closed; open it again")
        if field not in self.fields:
            raise DataError(f"{self._folder} has no field {field!r}; it has {sorted(self.fields)}")
        return self.fields[field]

    def _number(self, doc_id: str) -> int | None:
        if self._numbers is None:
            self._numbers = {name: number for number, name in enumerate(self._doc_ids)}
        return self._numbers.get(doc_id)

    def _scores(self, query: EngineQuery) -> np.ndarray:
        """The score of every document, float64 ``(N,)``."""
        scores = np.zeros(self.num_documents)
        for field, terms in query.items():
            postings = self._field(field)
            for token, boost in zip(terms.tokens, terms.boosts, strict=True):
                documents, impacts = postings.of_token(token)
                # a token has each document at most once, so plain indexing adds each posting
                scores[documents] += boost * impacts.astype(np.float64)
        return scores

    def _order(self, numbers: np.ndarray, scores: np.ndarray, k: int) -> EngineHits:
        return order_hits(numbers.tolist(), scores.tolist(), k, self._find_ids, np.float64)


def _best(scores: np.ndarray, k: int) -> np.ndarray:
    """Numbers of the ``k`` largest scores above 0, descending, with all that tie with the last."""
    matched = np.flatnonzero(scores)
    if len(matched) > k:
        least = np.partition(scores[matched], -k)[-k]
        matched = matched[scores[matched] >= least]
    return matched[np.argsort(-scores[matched], kind="stable")]


def _check_impacts(impacts: sparse.csr_matrix) -> None:
    smallest = int(impacts.data.min(initial=1))
    largest = int(impacts.data.max(initial=1))
    if smallest < 1 or largest > LARGEST_IMPACT:
        raise DataError(
            f"impacts range from {smallest} to {largest}; they must lie in 1 to {LARGEST_IMPACT}"
        )


def _write_json(path: Path, value: Any) -> None:
    """Write JSON in ASCII, since a token may hold a lone surrogate, which UTF-8 cannot."""
    with files.atomic_writer(path) as stream:
        json.dump(value, stream)


def _write_postings(
    folder: Path, field: str, rows: list[sparse.csr_matrix], vocabulary_size: int
) -> None:
    matrix = sparse.csr_matrix((0, vocabulary_size), dtype=np.int32)
    if rows:
        matrix = sparse.vstack(rows, format="csr")
    columns = matrix.tocsc()
    columns.sort_indices()
    arrays: dict[str, np.ndarray[Any, Any]] = {
        "offsets": columns.indptr.astype(np.int64),
        "documents": columns.indices.astype(np.int32),
        "impacts": columns.data.astype(np.uint16),
    }
    for name, array in arrays.items():
        with files.atomic_writer(folder / f"{field}.{name}.npy", "wb") as stream:
            np.save(stream, array)


def _open_postings(folder: Path, field: str, vocabulary: Sequence[str]) -> _Postings:
    offsets = reading.load_array(folder / f"{field}.offsets.npy")
    documents = reading.load_array(folder / f"{field}.documents.npy", mmap_mode="r")
    impacts = reading.load_array(folder / f"{field}.impacts.npy", mmap_mode="r")
    columns = {token: column for column, token in enumerate(vocabulary)}
    fits = len(offsets) == len(vocabulary) + 1 and len(documents) == len(impacts) == offsets[-1]
    if not fits:
        raise DamagedError(f"{folder}: the postings of {field!r} do not fit their offsets")
    # plain views: the class memmap slows every look-up down
    return _Postings(columns, offsets, np.asarray(documents), np.asarray(impacts))


def _check_postings(folder: Path, field: str, postings: _Postings, num_documents: int) -> None:
    if (np.diff(postings.offsets) < 0).any():
        raise DamagedError(f"{folder}: the offsets of {field!r} must ascend")
    documents = postings.documents
    if len(documents) and not 0 <= documents.min() <= documents.max() < num_documents:
        raise DamagedError(f"{folder}: {field!r} names documents beyond the last")
    steps = np.diff(documents.astype(np.int64))
    inside = np.ones(len(steps), dtype=bool)
    first = postings.offsets[1:-1]
    inside[first[(first > 0) & (first < len(documents))] - 1] = False
    if (steps[inside] <= 0).any():
        raise DamagedError(f"{folder}: the documents of a token of {field!r} must ascend")
    if len(postings.impacts) and postings.impacts.min() < 1:
        raise DamagedError(f"{folder}: {field!r} holds an impact of 0")
