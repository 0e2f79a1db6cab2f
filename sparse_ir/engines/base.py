"""The contract between an index and its search engine.

A document is one vector of integer impacts per *field*; a query is weighted tokens per field. The
score of a document is the sum over all fields and tokens of ``boost x impact``. Tokenization,
statistics and quantization are finished before an engine sees anything. An engine declares in its
``Capabilities`` what it can hold and how exactly it computes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from scipy import sparse

SPARSE = "sparse"  # the field of the learned-sparse encoder
BM25 = "bm25"  # the field of analysed words, weighed by BM25
LARGEST_IMPACT = 2**16 - 1

FindIds = Callable[[Sequence[int]], list[str]]  # document numbers -> doc_ids


class EngineHits(NamedTuple):
    """The result of one search as plain arrays, best first."""

    doc_ids: list[str]
    scores: np.ndarray  # float32 or float64 (k,)
    numbers: list[int]  # document numbers


class FieldTerms(NamedTuple):
    """The part of a query that belongs to one field; a repeated token counts each time."""

    tokens: Sequence[str]
    boosts: Sequence[int]  # each at least 1


EngineQuery = Mapping[str, FieldTerms]  # field -> its part of the query


class ImpactBatch(NamedTuple):
    """Some neighbouring documents: their ids, and for each field their impacts."""

    doc_ids: Sequence[str]  # (N,)
    fields: Mapping[str, sparse.csr_matrix]  # int32 (N, V of the field)


class EngineStatistics(NamedTuple):
    """Counts over a whole index, summed over its fields."""

    documents: int
    terms: int  # distinct (field, token) pairs
    postings: int
    sum_impacts: int


@dataclass(frozen=True)
class Capabilities:
    """What an engine can hold, and its arithmetic."""

    largest_impact: int
    exact_below: int  # scores below this bound are exact integer sums
    longest_token_bytes: int | None  # in UTF-8; None: no limit
    longest_doc_id_bytes: int | None
    needs_java: bool


class EngineReader(Protocol):
    """An open index of one engine; safe to use from several threads.

    Every search breaks ties by doc_id, descending, as trec_eval sorts a run. Document numbers
    follow the order in which the documents were written.
    """

    num_documents: int

    def search(self, query: EngineQuery, k: int) -> EngineHits:
        """The ``k`` best documents; documents that share no token with the query are no hits.

        Raises ``DataError`` when ``k`` is below 1.
        """

    def find_candidates(self, query: EngineQuery, count: int) -> np.ndarray:
        """Numbers of the ``count`` best documents, int64; the order of ties is not defined."""

    def rank(self, numbers: np.ndarray, scores: np.ndarray, k: int) -> EngineHits:
        """The ``k`` best of documents ``(N,)`` that were scored elsewhere, scores ``(N,)``."""

    def score(self, doc_id: str, query: EngineQuery) -> float:
        """The score of one document; 0.0 when no token matches or the document is missing."""

    def contributions(self, doc_id: str, query: EngineQuery) -> dict[tuple[str, str], float]:
        """``(field, token)`` -> its part of a document's score, for the tokens that match."""

    def explainer(self, query: EngineQuery) -> Callable[[int], dict[tuple[str, str], float]]:
        """A function from a document number to its ``contributions``.

        It takes a fraction of the time where one query is explained for many documents.
        """

    def has_document(self, doc_id: str) -> bool:
        """True when the index holds a document of this id."""

    def document_frequencies(self, field: str, tokens: Sequence[str]) -> np.ndarray:
        """The number of documents that hold each token in a field, int64 ``(T,)``."""

    def statistics(self) -> EngineStatistics:
        """Counts as the engine itself keeps them."""

    def stored_ids(self, numbers: Sequence[int]) -> list[str]:
        """The doc_id of each document number, read from the engine's own files."""

    def end_thread(self) -> None:
        """Release what the engine keeps for the calling thread; call it before the thread ends."""

    def close(self) -> None:
        """Release all files; using the reader afterwards is an error."""


class Engine(Protocol):
    """A search engine that can hold an impact index in a folder."""

    name: str  # as the manifest records it; also the name of its folder in an index
    capabilities: Capabilities

    def version(self) -> str:
        """The version of the engine's software or of its format."""

    def write(
        self,
        folder: Path,
        batches: Sequence[Callable[[], ImpactBatch]],
        vocabularies: Mapping[str, Sequence[str]],
        *,
        threads: int = 1,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        """Write a new index into ``folder``; document numbers follow the order of the batches.

        ``vocabularies`` names the columns of each field's matrix. The result does not depend on
        ``threads``. Raises ``DataError`` for an impact outside 1 to 65,535.
        """

    def check(self, folder: Path) -> None:
        """Check every file without writing.

        Raises ``DamagedError`` for damage, ``UncheckedError`` when the files cannot be read.
        """

    def open(self, folder: Path, find_ids: FindIds | None = None) -> EngineReader:
        """Open an index; ``find_ids`` replaces the engine's own, slower way from number to doc_id.

        Raises ``DamagedError`` when the folder cannot be opened.
        """
