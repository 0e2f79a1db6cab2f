"""BM25 as a teacher: Lucene's score of any text for any query, by the statistics of one collection.

Terms come from Lucene's own analysis (``engines.lucene.bm25.analyze``); the rest is a product of
two sparse matrices, because a search engine finds the best documents of a collection, and training
asks for given pairs.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Container, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from pydantic.dataclasses import dataclass

from sparse_ir.engines.lucene.bm25 import analyze
from sparse_ir.engines.lucene.checking import lucene_version
from sparse_ir.errors import ConfigError, DataError
from sparse_ir.models.batching import rows_to_csr
from sparse_ir.storage import files, reading
from sparse_ir.training.fields import SECTION, NotNegative, Probability
from sparse_ir.training.markdown import Markdown, number
from sparse_ir.training.sources.training_source import TrainingSource, positions_of
from sparse_ir.training.teachers.base import Teacher, TeacherSettings
from sparse_ir.training.teachers.cache import OnProgress, Prepared, key_of


@dataclass(frozen=True, config=SECTION, kw_only=True)
class Bm25Settings(TeacherSettings):
    """BM25 with the statistics of all documents of all sources."""

    kind: Literal["bm25"] = "bm25"
    k1: NotNegative = 0.9
    """Saturation of term frequencies."""
    b: Probability = 0.4
    """Normalisation of document lengths."""

    def open(self, sources: Sequence[TrainingSource], cache: Path) -> Bm25Teacher:
        """The teacher; the analysed collection is kept in the folder ``cache``."""
        texts: list[str] = []
        for source in sources:
            texts += source.documents
        return Bm25Teacher(texts, self.k1, self.b, cache=cache)

    def sentence(self) -> Markdown:
        """The model card's words, without the weight."""
        return Markdown(f"BM25 with k1 {number(self.k1)} and b {number(self.b)}")


class Bm25Teacher(Teacher):
    """Lucene's BM25 with Anserini's English analysis and the statistics of one collection.

    The score is the sum over query terms of ``count x idf x f / (f + k1 (1 - b + b L / avg L))``
    with ``idf = ln(1 + (N - df + .5) / (df + .5))``. ``N`` and ``avg L`` count documents with at
    least one term. ``L`` is rounded down like Lucene's one-byte norms. The scores equal those of an
    index up to float32 rounding. Any text can be scored; a text outside the collection is scored
    with its statistics, and a term that the collection lacks has ``df = 0``.
    """

    def __init__(
        self,
        documents: Sequence[str],
        k1: float = 0.9,
        b: float = 0.4,
        *,
        cache: Path | None = None,
    ) -> None:
        """Analyse the collection, or read the analysed one from the cache.

        Args:
            documents: Texts of the collection.
            k1: Saturation of term frequencies, 0 or more.
            b: Normalisation of document lengths, 0 to 1.
            cache: Folder for the analysed collection; None does not keep it.

        Raises:
            ConfigError: A parameter is out of range.
            DataError: The collection has no term.
            JavaError: Lucene's analysis does not run.
        """
        if not (math.isfinite(k1) and k1 >= 0 and 0 <= b <= 1):
            raise ConfigError(f"k1 is {k1} and b {b}, but k1 must be 0 or more and b 0 to 1")
        self.name = "bm25"
        keys = list(map(key_of, documents))
        self.fingerprint = {
            "kind": "bm25",
            "name": self.name,
            "k1": k1,
            "b": b,
            "documents": len(documents),
            "collection_sha256": files.sha256_of_json([key.hex() for key in keys]),
            "analyzer": "io.anserini.analysis.DefaultEnglishAnalyzer",
            "lucene": lucene_version(),
        }
        collection = _analysed(documents, self.fingerprint, cache)
        if not collection.lengths.any():
            raise DataError(
                f"none of the {len(documents)} documents of the BM25 collection has a term"
            )
        self._terms = positions_of(collection.terms)
        self._k1 = k1
        self._b = b
        self._average = float(collection.lengths.sum() / np.count_nonzero(collection.lengths))
        self._filled = int(np.count_nonzero(collection.lengths))
        frequency = np.bincount(collection.ids, minlength=len(collection.terms))
        self._idf = np.log1p((self._filled - frequency + 0.5) / (frequency + 0.5))
        self._ids = collection.ids
        self._bounds = collection.bounds
        lengths = np.repeat(collection.lengths, np.diff(collection.bounds))
        self._weights = self._weigh(collection.ids, collection.counts, lengths)
        self._rows = {key: row for row, key in enumerate(keys)}
        self._others: dict[bytes, tuple[np.ndarray, np.ndarray]] = {}
        self._queries: dict[bytes, tuple[np.ndarray, np.ndarray]] = {}

    def scores(
        self, queries: Sequence[str], documents: Sequence[str], wanted_QD: np.ndarray | None = None
    ) -> np.ndarray:
        """float32 ``[Q, D]`` of all pairs, 0 for a pair without a common term.

        ``wanted_QD`` is ignored.
        """
        self.prepare(queries, documents)
        query_rows = list(map(self._queries.__getitem__, map(key_of, queries)))
        document_rows = list(map(self._document_row, map(key_of, documents)))
        width = len(self._terms)
        query_QT = rows_to_csr(query_rows, width)
        document_DT = rows_to_csr(document_rows, width)
        scores_QD: np.ndarray = (query_QT @ document_DT.T).toarray()
        return scores_QD

    def prepare(
        self, queries: Sequence[str], documents: Sequence[str], progress: OnProgress | None = None
    ) -> Prepared:
        """Analyse new texts and keep them in memory; ``progress(n)``: n more texts are done."""
        asked_queries = dict(zip(map(key_of, queries), queries, strict=True))
        asked_documents = dict(zip(map(key_of, documents), documents, strict=True))
        new_queries = _without(asked_queries, self._queries)
        new_documents = _without(_without(asked_documents, self._rows), self._others)
        for key, (ids, counts, _) in self._analyse(new_queries, progress):
            self._queries[key] = ids, counts.astype(np.float32)
        for key, (ids, counts, length) in self._analyse(new_documents, progress):
            self._others[key] = ids, self._weigh(ids, counts, np.array(length))
        total = len(asked_queries) + len(asked_documents)
        if progress is not None:
            progress(total - len(new_queries) - len(new_documents))
        return Prepared(total, 0)  # there is no network

    def _analyse(
        self, texts: Mapping[bytes, str], progress: OnProgress | None
    ) -> Iterator[tuple[bytes, tuple[np.ndarray, np.ndarray, int]]]:
        for key, terms in zip(texts, analyze(texts.values()), strict=True):
            yield key, _count_terms(terms, self._terms)
            if progress is not None:
                progress(1)

    def _document_row(self, key: bytes) -> tuple[np.ndarray, np.ndarray]:
        row = self._rows.get(key)
        if row is None:
            return self._others[key]
        start, end = self._bounds[row], self._bounds[row + 1]
        return self._ids[start:end], self._weights[start:end]

    def _weigh(self, ids: np.ndarray, counts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        unseen = len(self._terms) - len(self._idf)  # terms with df = 0
        if unseen > 0:
            self._idf = np.append(self._idf, np.full(unseen, np.log1p((self._filled + 0.5) / 0.5)))
        norms = self._k1 * (1 - self._b + self._b * _length_in_one_byte(lengths) / self._average)
        weights: np.ndarray = (self._idf[ids] * counts / (counts + norms)).astype(np.float32)
        return weights


class _Collection(NamedTuple):
    """Analysed documents; those of document d are at ``bounds[d]:bounds[d + 1]``."""

    terms: list[str]
    ids: np.ndarray  # int32
    counts: np.ndarray  # int32
    bounds: np.ndarray  # int64 (N + 1,)
    lengths: np.ndarray  # int32 (N,): terms with repetitions


def _analysed(
    documents: Sequence[str], fingerprint: Mapping[str, Any], cache: Path | None
) -> _Collection:
    path = None
    if cache is not None:
        facts = {key: fingerprint[key] for key in ("collection_sha256", "analyzer", "lucene")}
        path = cache / f"bm25-{files.sha256_of_json(facts)[:24]}.npz"
        if path.is_file():
            return _read_collection(path)
    numbers: dict[str, int] = {}
    rows = []
    for terms in analyze(documents):
        rows.append(_count_terms(terms, numbers))
    ids, counts, lengths = zip(*rows, strict=True) if rows else ((), (), ())
    empty = [np.empty(0, dtype=np.int32)]
    collection = _Collection(
        list(numbers),
        np.concatenate([*ids, *empty]),
        np.concatenate([*counts, *empty]),
        np.cumsum([0, *map(len, ids)], dtype=np.int64),
        np.array(lengths, dtype=np.int32),
    )
    if path is not None:
        # no term holds white space
        joined = np.frombuffer("\n".join(collection.terms).encode(), dtype=np.uint8)
        with files.atomic_writer(path, "wb") as stream:
            np.savez(stream, **(collection._asdict() | {"terms": joined}))
    return collection


def _read_collection(path: Path) -> _Collection:
    remedy = "; delete it, and it is made again"
    with reading.reading(path, "an analysed collection", remedy=remedy):
        # numpy leaves a file open that it cannot read, unless the file is ours
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as stored:
            values = {name: stored[name] for name in _Collection._fields}
        text = values.pop("terms").tobytes().decode()
    return _Collection(terms=text.split("\n") if text else [], **values)


def _count_terms(
    terms: Sequence[str], numbers: dict[str, int]
) -> tuple[np.ndarray, np.ndarray, int]:
    """Ascending term numbers, their counts, and the length; new terms get the next numbers."""
    ids = [numbers.setdefault(term, len(numbers)) for term in terms]
    counted = sorted(Counter(ids).items())
    table = np.array(counted, dtype=np.int32).reshape(-1, 2)
    return table[:, 0].copy(), table[:, 1].copy(), len(terms)


def _length_in_one_byte(lengths: np.ndarray) -> np.ndarray:
    """Document lengths as Lucene remembers them (``SmallFloat``).

    They are exact below 40; above, four significant bits of the part above 24 stay.
    """
    above = np.maximum(np.asarray(lengths, dtype=np.int64) - 24, 0)
    bits = np.frexp(above.astype(np.float64))[1]
    shift = np.maximum(bits - 4, 0)
    return np.where(lengths < 24, lengths, 24 + ((above >> shift) << shift))


def _without(texts: Mapping[bytes, str], known: Container[bytes]) -> dict[bytes, str]:
    return {key: text for key, text in texts.items() if key not in known}
