"""The BM25 baseline: Lucene's own ranking of analysed texts, as Anserini sets it up.

It is no ``Engine``: it ranks texts in float32, not integer impacts. Its figures are the published
ones, and the leaderboard compares every model with it.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from sparse_ir.data import records
from sparse_ir.engines.base import EngineHits, EngineStatistics, FindIds
from sparse_ir.engines.lucene import java, java_classes
from sparse_ir.engines.lucene.analysis import TextAnalyzer, make_analyzer
from sparse_ir.engines.lucene.opened import OpenLucene
from sparse_ir.engines.lucene.terms import CONTENTS_FIELD, TITLE_FIELD
from sparse_ir.engines.lucene.writer import ReusableDocument, open_writer

Texts = Iterable[tuple[str, ...]]  # doc_id and text; with a field for titles, the title too


class Bm25(NamedTuple):
    """Parameters of BM25; the defaults are Anserini's."""

    k1: float = 0.9
    b: float = 0.4
    # weight of the title as a field of its own (Anserini's "multifield"); 0: title and text in one
    title: float = 0.0

    @property
    def field_weights(self) -> dict[str, float]:
        """Lucene field -> its weight in the sum of the scores."""
        if self.title:
            return {CONTENTS_FIELD: 1.0, TITLE_FIELD: self.title}
        return {CONTENTS_FIELD: 1.0}


def write_texts(
    folder: Path, texts: Texts, parameters: Bm25, progress: Callable[[int], None] | None = None
) -> None:
    """Write a new BM25 index in ``folder``; Lucene keeps the lengths of texts in its norms."""
    with open_writer(folder, make_analyzer(), _similarity(parameters)) as writer:
        document = ReusableDocument(list(parameters.field_weights), norms=True)
        for doc_id, *parts in texts:
            writer.add(document.filled(doc_id, parts))
            if progress is not None:
                progress(1)


class Bm25Reader(OpenLucene):
    """An open BM25 index, safe to use from several threads; a context manager."""

    def __init__(
        self, folder: Path, parameters: Bm25 | None = None, find_ids: FindIds | None = None
    ) -> None:
        parameters = parameters or Bm25()
        super().__init__(folder, _similarity(parameters), find_ids)
        self._weights = parameters.field_weights
        self._generator = java.java_class("io.anserini.search.query.BagOfWordsQueryGenerator")()
        self._analyzer = make_analyzer()

    def search(self, text: str, k: int) -> EngineHits:
        """The ``k`` best documents for a text; a text without terms has no hits."""
        return self._top(self._lucene_query(text), k)

    def score(self, doc_id: str, text: str) -> float:
        """The score of one document for a text; 0.0 when no term matches."""
        return self._score_within(doc_id, self._lucene_query(text))

    def contributions(self, doc_id: str, counts: Mapping[str, int]) -> dict[tuple[str, str], float]:
        """``(Lucene field, term)`` -> the score of one document for this term alone.

        ``counts``: how often the query has each analysed term.
        """
        java.check_process()
        parts: dict[tuple[str, str], float] = {}
        for field, weight in self._weights.items():
            for term, count in counts.items():
                single = java_classes.term_query(field, term)
                score = self._score_within(doc_id, java_classes.boosted(single, count * weight))
                if score:
                    parts[field, term] = score
        return parts

    def explainer(self, text: str) -> Callable[[int], dict[tuple[str, str], float]]:
        """A function from a document number to its ``contributions``, by Lucene's explanations."""
        return self._explainer(self._lucene_query(text))

    def document_frequencies(self, terms: Iterable[str]) -> dict[str, int]:
        """The number of documents that hold each term, summed over the fields."""
        frequencies = {}
        for term in terms:
            counts = [self._document_frequency(field, term) for field in self._weights]
            frequencies[term] = sum(counts)
        return frequencies

    def statistics(self) -> EngineStatistics:
        """Counts over the fields that are searched; impacts are term frequencies here."""
        return self._count(list(self._weights))

    def _lucene_query(self, text: str) -> Any:
        records.check_text(text)
        java.check_process()
        if len(self._weights) == 1:
            return self._generator.buildQuery(CONTENTS_FIELD, self._analyzer, text)
        weights = java.java_map(self._weights)
        return self._generator.buildQuery(weights, self._analyzer, text)


def count_terms(text: str) -> dict[str, int]:
    """How often a text has each analysed term."""
    return dict(collections.Counter(TextAnalyzer().terms(text)))


def analyze(texts: Iterable[str]) -> Iterator[list[str]]:
    """The terms of each text in order, repetitions kept, as ``write_texts`` and searches see them.

    Anserini's default for English: standard tokens, lower case, stop words removed, Porter stems.
    An empty text gives an empty list. Raises ``DataError`` for a text with a lone surrogate, which
    Java cannot take.
    """
    analyzer = TextAnalyzer()
    for position, text in enumerate(texts):
        records.check_text(text, f"text {position}")
        yield analyzer.terms(text)


def _similarity(parameters: Bm25) -> Any:
    similarity_class = java.java_class("org.apache.lucene.search.similarities.BM25Similarity")
    return similarity_class(parameters.k1, parameters.b)
