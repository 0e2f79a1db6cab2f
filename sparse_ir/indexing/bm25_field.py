"""The weights of the field ``bm25``: texts are analysed once, counted, and weighed by BM25.

Lucene's formula, with Lucene's coded lengths (``BM25Similarity``, ``SmallFloat.intToByte4``):

    weight(t, d) = share x idf(t) x tf / (tf + k1 x (1 - b + b x length(d) / average length))
    idf(t)       = ln(1 + (N - df + 0.5) / (df + 0.5))

``N`` and the average length are of the documents that have a term. Counts are kept in a scratch
folder between the two passes, because a weight needs the statistics of the whole collection.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import sparse

from sparse_ir.data.records import Document
from sparse_ir.engines.lucene.analysis import AnalyzerSettings, TextAnalyzer
from sparse_ir.errors import ConfigError, IndexMismatch

_EXACT_LENGTHS = 24  # shorter lengths keep their number in Lucene's byte
_LEADING_BITS = 4  # of what a length has beyond them
_BATCH = 1024  # documents of a shard where no vectors divide them


@dataclass(frozen=True)
class Bm25Settings:
    """How the field ``bm25`` is made; the defaults are Anserini's for English.

    ``share``: the factor of BM25 in the sum with the sparse field. Raises ``ConfigError`` for a
    value out of range.
    """

    k1: float = 0.9
    b: float = 0.4
    analyzer: str = "language"
    language: str = "en"
    share: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.k1 < np.inf:
            raise ConfigError(f"k1 is {self.k1}; it must be at least 0")
        if not 0 <= self.b <= 1:
            raise ConfigError(f"b is {self.b}; it must be between 0 and 1")
        if not 0 < self.share < np.inf:
            raise ConfigError(f"the share of BM25 is {self.share}; it must be above 0")
        _ = self.analyzer_settings  # raises for an unknown name

    @property
    def analyzer_settings(self) -> AnalyzerSettings:
        """Which analyzer reads texts and queries."""
        return AnalyzerSettings(self.analyzer, self.language)

    def to_json(self) -> dict[str, Any]:
        """The settings as a manifest records them."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Bm25Settings:
        """The settings that ``to_json`` wrote."""
        return cls(**value)


class Bm25Counts(NamedTuple):
    """Statistics of analysed texts."""

    vocabulary: list[str]  # terms, in the order of their first occurrence
    frequencies: np.ndarray  # int64 (V,): documents that hold each term
    documents: int  # that have a term
    tokens: int  # in all documents

    @property
    def average_length(self) -> float:
        """Tokens of a document that has any."""
        return self.tokens / max(self.documents, 1)

    def idf(self) -> np.ndarray:
        """``ln(1 + (N - df + 0.5) / (df + 0.5))`` of each term, float64 ``(V,)``."""
        missing = self.documents - self.frequencies
        idf: np.ndarray = np.log1p((missing + 0.5) / (self.frequencies + 0.5))
        return idf


class Bm25Weights:
    """The weights of analysed documents by shards; safe to use from several threads."""

    def __init__(
        self,
        scratch: Path,
        settings: Bm25Settings,
        counts: Bm25Counts,
        doc_ids: Sequence[Sequence[str]],
    ) -> None:
        self.settings = settings
        self.counts = counts
        self.vocabulary = counts.vocabulary
        self._scratch = scratch
        self._doc_ids = doc_ids
        self._factors = settings.share * counts.idf()

    def __len__(self) -> int:
        return sum(len(doc_ids) for doc_ids in self._doc_ids)

    @property
    def num_shards(self) -> int:
        """Number of shards."""
        return len(self._doc_ids)

    def read_shard(self, number: int) -> tuple[list[str], sparse.csr_matrix]:
        """``doc_ids`` and weights CSR float64 ``(N, V)`` of one shard."""
        counted = _read_counts(self._scratch, number, len(self.vocabulary))
        lengths = coded_lengths(np.asarray(counted.sum(axis=1)).ravel())
        relative = lengths / max(self.counts.average_length, 1e-9)
        saturation = self.settings.k1 * (1 - self.settings.b + self.settings.b * relative)
        by_posting = np.repeat(saturation, np.diff(counted.indptr))
        data = self._factors[counted.indices] * counted.data / (counted.data + by_posting)
        parts = (data, counted.indices, counted.indptr)
        return list(self._doc_ids[number]), sparse.csr_matrix(parts, shape=counted.shape)

    def largest_weight(self) -> float:
        """The largest weight of all documents."""
        largest = 0.0
        for number in range(self.num_shards):
            largest = max(largest, float(self.read_shard(number)[1].data.max(initial=0.0)))
        return largest


def weigh_documents(
    documents: Iterable[Document],
    scratch: Path,
    settings: Bm25Settings,
    shards: Iterable[Sequence[str]] | None = None,
    progress: Callable[[int], None] | None = None,
) -> Bm25Weights:
    """Analyse and count documents; the counts stay in the folder ``scratch`` while they are used.

    ``shards``: the doc_ids of each shard of vectors, which the documents must have in this order;
    by default shards of 1,024 documents. Raises ``IndexMismatch`` for other documents.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    analyzer = TextAnalyzer(settings.analyzer_settings)
    term_ids: dict[str, int] = {}
    frequencies: Counter[int] = Counter()
    filled = 0
    tokens = 0
    doc_ids: list[list[str]] = []
    batches = _any_batches(documents) if shards is None else _matched_batches(documents, shards)
    for number, batch in enumerate(batches):
        rows = []
        for document in batch:
            row = _count_terms(analyzer.terms(document.contents), term_ids)
            rows.append(row)
            frequencies.update(row.keys())
            filled += bool(row)
            tokens += sum(row.values())
            if progress is not None:
                progress(1)
        _write_counts(scratch, number, rows)
        doc_ids.append([document.doc_id for document in batch])
    counted = np.array([frequencies[place] for place in range(len(term_ids))], dtype=np.int64)
    counts = Bm25Counts(list(term_ids), counted, filled, tokens)
    return Bm25Weights(scratch, settings, counts, doc_ids)


def coded_lengths(lengths: np.ndarray) -> np.ndarray:
    """Lengths as Lucene's norms give them back, int64 ``(N,)``.

    Below 24 they are exact; of what is above 23, the four leading bits stay.
    """
    beyond = np.maximum(lengths.astype(np.int64) - _EXACT_LENGTHS, 0)
    bits = np.frexp(beyond.astype(np.float64))[1]  # 2**(bits - 1) <= beyond < 2**bits
    shifts = np.maximum(bits - _LEADING_BITS, 0)
    coded = _EXACT_LENGTHS + ((beyond >> shifts) << shifts)
    return np.where(lengths < _EXACT_LENGTHS, lengths, coded)


def _count_terms(terms: Iterable[str], term_ids: dict[str, int]) -> dict[int, int]:
    """Term id -> how often a text has it; new terms get the next ids."""
    row: dict[int, int] = {}
    for term, count in Counter(terms).items():
        row[term_ids.setdefault(term, len(term_ids))] = count
    return row


def _any_batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    iterator = iter(documents)
    batch = list(itertools.islice(iterator, _BATCH))
    while batch:
        yield batch
        batch = list(itertools.islice(iterator, _BATCH))


def _matched_batches(
    documents: Iterable[Document], shards: Iterable[Sequence[str]]
) -> Iterator[list[Document]]:
    """The documents of each shard; they must be those of the vectors, in the same order."""
    iterator = iter(documents)
    place = 0
    for doc_ids in shards:
        batch = list(itertools.islice(iterator, len(doc_ids)))
        for offset, expected in enumerate(doc_ids):
            if offset >= len(batch):
                raise IndexMismatch(
                    f"the texts end after {place + offset} documents, but the vectors go on with "
                    f"{expected!r}; name the corpus that was encoded"
                )
            if batch[offset].doc_id != expected:
                raise IndexMismatch(
                    f"document {place + offset + 1} of the texts is {batch[offset].doc_id!r}, that "
                    f"of the vectors is {expected!r}; name the corpus that was encoded"
                )
        place += len(batch)
        yield batch
    extra = next(iterator, None)
    if extra is not None:
        raise IndexMismatch(
            f"the vectors end after {place} documents, but the texts go on with "
            f"{extra.doc_id!r}; name the corpus that was encoded"
        )


def _write_counts(scratch: Path, number: int, rows: Sequence[dict[int, int]]) -> None:
    lengths = [len(row) for row in rows]
    indptr = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    term_ids = np.fromiter(itertools.chain.from_iterable(rows), np.int32, int(indptr[-1]))
    values = itertools.chain.from_iterable(row.values() for row in rows)
    counts = np.fromiter(values, np.int32, int(indptr[-1]))
    with (scratch / f"{number:06d}.npz").open("wb") as stream:
        np.savez(stream, indptr=indptr, term_ids=term_ids, counts=counts)


def _read_counts(scratch: Path, number: int, vocabulary_size: int) -> sparse.csr_matrix:
    """Term counts int32 ``(N, V)`` of one shard, term ids ascending in each row."""
    with np.load(scratch / f"{number:06d}.npz") as stored:
        parts = (stored["counts"], stored["term_ids"], stored["indptr"])
        counted = sparse.csr_matrix(parts, shape=(len(stored["indptr"]) - 1, vocabulary_size))
    counted.sort_indices()
    return counted
