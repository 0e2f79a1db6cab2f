"""An open Lucene index: what impact and BM25 readers share."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from sparse_ir.engines.base import EngineHits, EngineStatistics, FindIds
from sparse_ir.engines.lucene import java, java_classes
from sparse_ir.engines.lucene.directory import open_directory
from sparse_ir.engines.lucene.terms import ID_FIELD
from sparse_ir.engines.ranking import order_hits
from sparse_ir.errors import DamagedError, DataError

_MANY_HITS = 100
_MANY_HITS_OF_FIELDS = 500
_MANY_TERMS = 24
# how Lucene's explanation names the part of one term: weight(FIELD:TERM in NUMBER) [Similarity]
_TERM_PART = re.compile(r"weight\(([^:]+):(.*) in \d+\) \[", re.DOTALL)


class OpenLucene:
    """An open Lucene index, safe to use from several threads; a context manager.

    ``find_ids`` gives the doc_ids of document numbers; without it they are read from Lucene's
    stored fields. Raises ``DamagedError`` when Lucene cannot open the folder.
    """

    def __init__(self, folder: Path, similarity: Any, find_ids: FindIds | None) -> None:
        with java.translated_errors(f"{folder} cannot be opened as a Lucene index", DamagedError):
            self._directory = open_directory(folder)
            opened = java.java_class("org.apache.lucene.index.DirectoryReader").open(
                self._directory
            )
        self._reader = java.cast("org.apache.lucene.index.IndexReader", opened)
        limits = java.java_class("org.apache.lucene.search.IndexSearcher")
        limits.setMaxClauseCount(2**31 - 1)  # Lucene refuses more than 1,024 query terms by default
        self._searcher = java_classes.top_searcher_class()(self._reader)
        self._scanner = java_classes.collecting_searcher_class()(self._reader)
        for searcher in (self._searcher, self._scanner):
            searcher.setSimilarity(similarity)
            searcher.setQueryCache(None)
        self._make_collector = java_classes.collector_maker()
        self._hits_writer = java_classes.hits_writer()
        self._explaining = java_classes.explaining_searcher_class()(self._reader)
        self._explaining.setSimilarity(similarity)
        self._find_ids = find_ids or self.stored_ids
        self.num_documents = int(self._reader.numDocs())

    def has_document(self, doc_id: str) -> bool:
        """True when the index holds a document of this id."""
        java.check_process()
        place = java.java_class("org.apache.lucene.index.Term")(ID_FIELD, doc_id)
        return int(self._reader.docFreq(place)) > 0

    def stored_ids(self, numbers: Sequence[int]) -> list[str]:
        """The stored doc_id of each document number, read from Lucene itself."""
        java.check_process()
        fields = self._reader.storedFields()
        doc_ids = []
        for number in map(int, numbers):
            document = fields.document(number)
            doc_ids.append(str(document.get(ID_FIELD)))
        return doc_ids

    def end_thread(self) -> None:
        """Detach the calling thread from Java."""
        java.detach_thread()

    def close(self) -> None:
        """Free the files and the memory map; using the reader afterwards is an error."""
        if not java.is_usable():  # a forked process shares the files, but not Java
            return
        self._reader.close()
        self._directory.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _count(self, fields: Sequence[str]) -> EngineStatistics:
        """Counts over Lucene fields, as Lucene keeps them."""
        java.check_process()
        terms = 0
        postings = 0
        sum_impacts = 0
        for field in fields:
            counted = java.java_class("org.apache.lucene.index.MultiTerms").getTerms(
                self._reader, field
            )
            if counted is not None:
                terms += _count_terms(counted)
                postings += int(counted.getSumDocFreq())
                sum_impacts += int(counted.getSumTotalTermFreq())
        return EngineStatistics(self.num_documents, terms, postings, sum_impacts)

    def _document_frequency(self, field: str, term: str) -> int:
        java.check_process()
        place = java.java_class("org.apache.lucene.index.Term")(field, term)
        return int(self._reader.docFreq(place))

    def _score_within(self, doc_id: str, query: Any) -> float:
        """The score of one document alone; 0.0 when the query does not match it."""
        occur = java.java_class("org.apache.lucene.search.BooleanClause$Occur")
        builder = java.java_class("org.apache.lucene.search.BooleanQuery$Builder")()
        only_document = java_classes.term_query(ID_FIELD, doc_id)
        for part, role in ((query, occur.MUST), (only_document, occur.FILTER)):
            builder.add(part, role)
        restricted = builder.build()
        _, scores = self._collect(restricted, 1)
        return float(np.float32(sum(scores)))

    def _explainer(self, query: Any) -> Callable[[int], dict[tuple[str, str], float]]:
        """Document number -> ``(Lucene field, term)`` -> its part of the score, if it matches.

        The query is prepared once. An explanation costs a tenth of a search for each term.
        """
        complete = java.java_class("org.apache.lucene.search.ScoreMode").COMPLETE
        with java.translated_errors("the search failed", DamagedError):
            rewritten = self._explaining.rewrite(query)
            weight = self._explaining.createWeight(rewritten, complete, 1.0)

        def explain(number: int) -> dict[tuple[str, str], float]:
            with java.translated_errors("the search failed", DamagedError):
                explained = self._explaining.explain(weight, number)
                text = self._hits_writer.writeValueAsString(explained)
            parts: dict[tuple[str, str], float] = {}
            for place, value in _term_parts(json.loads(text)):
                parts[place] = parts.get(place, 0.0) + value
            return parts

        return explain

    def _top(self, query: Any, k: int, score_all: bool | None = None) -> EngineHits:
        """The ``k`` best hits by the tie rule.

        Lucene breaks ties by document number, so more hits are fetched until every hit that ties
        with the last one is there.
        """
        if k < 1:
            raise DataError(f"the number of hits is {k}; it must be at least 1")
        if score_all is None:
            score_all = scores_all(k, 1, 1)
        wanted = k + 4 + k // 8  # enough for 97 of 100 questions
        while True:
            wanted = max(1, min(wanted, self.num_documents))
            numbers, scores = self._collect(query, wanted, score_all=score_all)
            if len(numbers) < wanted or wanted == self.num_documents or scores[-1] < scores[k - 1]:
                return order_hits(numbers, scores, k, self._find_ids, np.float32)
            wanted *= 4

    def _collect(
        self, query: Any, k: int, *, score_all: bool = False
    ) -> tuple[list[int], list[float]]:
        """Document numbers and scores of one search, transferred as one JSON text.

        ``score_all``: score every match instead of skipping documents that cannot be among the
        best.
        """
        with java.translated_errors("the search failed", DamagedError):
            if score_all:
                collector = self._make_collector(k)
                top = self._scanner.search(query, collector)
            else:
                top = self._searcher.search(query, k)
            text = self._hits_writer.writeValueAsString(top)
        (hits,) = json.loads(text)
        return [number for _, number in hits], [score for score, _ in hits]


def scores_all(k: int, num_terms: int, num_fields: int) -> bool:
    """True where finding out what can be skipped takes longer than scoring everything.

    Long queries are a third faster that way, searches for many hits up to a fifth. Short queries
    for few hits are not, and less so the larger the collection is. A query in two fields has rare
    words of large impacts, and up to some hundred hits it is faster by skipping.
    """
    if num_fields > 1:
        return k >= _MANY_HITS_OF_FIELDS
    return k >= _MANY_HITS or num_terms > _MANY_TERMS


def _count_terms(terms: Any) -> int:
    """The number of distinct terms; Lucene knows it for one segment, several are walked."""
    known = int(terms.size())
    if known >= 0:
        return known
    walker = terms.iterator()
    count = 0
    # not iter(walker.next, None): a method that is kept forgets its receiver
    while walker.next() is not None:
        count += 1
    return count


def _term_parts(explained: Mapping[str, Any]) -> Iterator[tuple[tuple[str, str], float]]:
    """The parts of an explanation that belong to one term each."""
    match = _TERM_PART.match(explained["description"])
    if match is None:
        for detail in explained["details"]:
            yield from _term_parts(detail)
    elif explained["match"]:
        yield (match[1], match[2]), explained["value"]
