"""The bridge to Lucene: writes impact and BM25 postings, checks them, opens them and searches.

It talks to the classes inside Pyserini's jar directly and knows nothing of manifests, encoders or
rules (see ``indexes``). An impact is stored as the term frequency; Anserini's ``ImpactSimilarity``
scores a term as ``frequency x boost``, so a score is the dot product of two integer vectors, exact
up to 2**24 (float32). Tie rule: score descending, then doc_id descending, which is how trec_eval
orders a run.

pyjnius keeps the receiver of ``object.method`` in a place shared by all objects of the class until
the call is made. Therefore every argument of a Java method is computed in a line before the call: a
call among the arguments would let another object, or another thread, take the receiver's place. The
receiver itself stands in a variable: a temporary one, as in ``a.b().c()``, is freed as soon as
another thread takes its place, and Java then finds a null pointer.
"""

from __future__ import annotations

import bisect
import functools
import itertools
import json
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sparse_ir.data import records
from sparse_ir.engines.base import Bm25, Hits
from sparse_ir.engines.lucene import java
from sparse_ir.engines.lucene.parts import Kind, make_analyzer, make_similarity, open_directory
from sparse_ir.engines.lucene.terms import FIELD, ID_FIELD, TITLE_FIELD
from sparse_ir.errors import DamagedError, DataError, JavaError

_MANY_HITS, _MANY_TERMS = 100, 24
_KEPT_TERMS = 2**14  # whose places in an open index are remembered, about 10 MB


class Reader:
    """An open Lucene index, safe to use from several threads; a context manager.

    ``find_ids``: gives the doc_ids of document numbers; without it (an index that Pyserini built)
    they are read from Lucene's stored fields. Raises ``DamagedError`` when Lucene cannot open the
    folder.
    """

    def __init__(
        self,
        folder: Path,
        kind: Kind,
        find_ids: Callable[[Sequence[int]], list[str]] | None = None,
        parameters: Bm25 | None = None,
    ) -> None:
        with java.translated_errors(f"{folder} cannot be opened as a Lucene index", DamagedError):
            self._directory = open_directory(folder)
            opened = java.java_class("org.apache.lucene.index.DirectoryReader").open(
                self._directory
            )
        self._reader = java.cast("org.apache.lucene.index.IndexReader", opened)
        limits = java.java_class("org.apache.lucene.search.IndexSearcher")
        limits.setMaxClauseCount(2**31 - 1)  # Lucene refuses more than 1,024 query terms by default
        parameters = parameters or Bm25()
        similarity = make_similarity(kind, parameters)
        self._fields = (
            {FIELD: 1.0, TITLE_FIELD: parameters.title} if parameters.title else {FIELD: 1.0}
        )
        self._searcher, self._scanner = (
            searcher_class(self._reader) for searcher_class in _searcher_classes()
        )
        for searcher in (self._searcher, self._scanner):
            searcher.setSimilarity(similarity)
            searcher.setQueryCache(None)
        self._make_manager = _manager_maker()
        self._generator = java.java_class("io.anserini.search.query.BagOfWordsQueryGenerator")()
        self._analyzer = make_analyzer("bm25") if kind == "bm25" else None
        self._writer, self._boosts_reader = _hits_writer(), _boosts_reader()
        self._lists, self._sum = java.java_class("java.util.Arrays"), _sum_class()
        # not a method of this object, which would keep it alive after its last use, and with it
        # Java's objects
        self._found_term = functools.lru_cache(maxsize=_KEPT_TERMS)(
            functools.partial(_find_term, self._searcher)
        )
        self._find_ids = find_ids or self.stored_ids
        self.num_documents = int(self._reader.numDocs())

    def search_terms(self, terms: Sequence[str], boosts: Sequence[int], k: int) -> Hits:
        """The ``k`` best documents for ``sum boost x impact`` over the given Lucene terms; no terms
        give no hits.
        """
        if not terms:
            return Hits([], np.empty(0, np.float32))
        return self._top(self._impact_query(terms, boosts), k, len(terms))

    def find_candidates(
        self, terms: Sequence[str], boosts: Sequence[int], count: int
    ) -> np.ndarray:
        """Numbers of the ``count`` best documents for the given Lucene terms, int64; ties by
        ascending number.
        """
        if not terms or not self.num_documents:
            return np.empty(0, np.int64)
        query, wanted = self._impact_query(terms, boosts), min(count, self.num_documents)
        return np.asarray(
            self._collect(query, wanted, _finds_all(count, len(terms)))[0], dtype=np.int64
        )

    def rank(self, numbers: np.ndarray, scores: np.ndarray, k: int) -> Hits:
        """The ``k`` best of documents ``(N,)`` that were scored elsewhere, float32 ``(N,)``, by the
        tie rule.
        """
        best = np.argsort(-scores, kind="stable")
        return self._order(numbers[best].tolist(), scores[best].tolist(), k)

    def search_text(self, text: str, k: int) -> Hits:
        """The ``k`` best documents by BM25 for an analysed text; a text without terms gives no
        hits.
        """
        return self._top(self._text_query(text), k)

    def score(self, doc_id: str, terms: Sequence[str], boosts: Sequence[int]) -> float:
        """The engine's score of one document; 0.0 when no term matches."""
        return self._score_within(doc_id, self._impact_query(terms, boosts))

    def score_text(self, doc_id: str, text: str) -> float:
        """The engine's BM25 score of one document for an analysed text; 0.0
        when no term matches.
        """
        return self._score_within(doc_id, self._text_query(text))

    def score_terms(self, doc_id: str, boosts: Mapping[str, int]) -> dict[tuple[str, str], float]:
        """``(field, Lucene term)`` -> the engine's score of one document for this term alone, where
        it matches.
        """
        found = {}
        for field, weight in self._fields.items():
            for term, boost in boosts.items():
                query = _boosted(_term_query(field, term), boost * weight)
                if score := self._score_within(doc_id, query):
                    found[field, term] = score
        return found

    def has_document(self, doc_id: str) -> bool:
        """True when the index holds a document of this id."""
        place = java.java_class("org.apache.lucene.index.Term")(ID_FIELD, doc_id)
        return int(self._reader.docFreq(place)) > 0

    def statistics(self) -> dict[str, int]:
        """Whole-index counts as Lucene keeps them: documents, terms, postings, sum of the impacts;
        of all fields.
        """
        fields = [
            java.java_class("org.apache.lucene.index.MultiTerms").getTerms(self._reader, field)
            for field in self._fields
        ]
        filled = [terms for terms in fields if terms is not None]
        return {
            "documents": self.num_documents,
            "terms": sum(map(_count_terms, filled)),
            "postings": sum(int(terms.getSumDocFreq()) for terms in filled),
            "sum_impacts": sum(int(terms.getSumTotalTermFreq()) for terms in filled),
        }

    def document_frequencies(self, terms: Iterable[str]) -> dict[str, int]:
        """Documents that hold each Lucene term, summed over the fields that are searched; 0 for an
        unknown term.
        """
        term_class, found = java.java_class("org.apache.lucene.index.Term"), {}
        for term in terms:
            places = [term_class(field, term) for field in self._fields]
            found[term] = sum(int(self._reader.docFreq(place)) for place in places)
        return found

    def stored_ids(self, numbers: Sequence[int]) -> list[str]:
        """The stored doc_id of each document number, read from Lucene itself."""
        fields = self._reader.storedFields()
        documents = [fields.document(number) for number in map(int, numbers)]
        return [str(document.get(ID_FIELD)) for document in documents]

    def close(self) -> None:
        """Free the files and the memory map; using the reader afterwards is an error."""
        self._reader.close()
        self._directory.close()

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _text_query(self, text: str) -> Any:
        records.check_text(text)
        where = FIELD if len(self._fields) == 1 else java.java_map(self._fields)
        return self._generator.buildQuery(where, self._analyzer, text)

    def _score_within(self, doc_id: str, query: Any) -> float:
        """The score of one document alone."""
        occur = java.java_class("org.apache.lucene.search.BooleanClause$Occur")
        builder = java.java_class("org.apache.lucene.search.BooleanQuery$Builder")()
        roles = (query, occur.MUST), (_term_query(ID_FIELD, doc_id), occur.FILTER)
        for part, role in roles:
            builder.add(part, role)
        restricted = builder.build()
        return float(np.float32(sum(self._collect(restricted, 1)[1])))

    def _impact_query(self, terms: Sequence[str], boosts: Sequence[int]) -> Any:
        """The sum over the terms. Java is called twice, not for each term: that would cost more
        than to search.

        Terms that count once, as under a folded rule, were found before; with boosts they come over
        as a JSON object.
        """
        if boosts.count(1) == len(boosts) == len(terms) == len(set(terms)):
            parts = [self._found_term(term) for term in terms]
            clauses = self._lists.asList(*parts)
            # the largest clause, and once the others: Lucene makes it a plain sum
            return self._sum(clauses, 1.0)
        weights = dict.fromkeys(terms, 0)
        for term, boost in zip(terms, boosts, strict=True):
            weights[term] += boost
        text = json.dumps(weights)
        boosts_by_term = self._boosts_reader.readValue(text)
        return self._generator.buildQuery(FIELD, boosts_by_term)

    def _top(self, query: Any, k: int, num_terms: int = 1) -> Hits:
        """Lucene breaks ties by document number, so hits that tie with the last one are fetched
        until all are here.
        """
        if k < 1:
            raise DataError(f"{k} hits are not allowed; ask for at least 1")
        # with room for hits that tie with the last: enough for 97 of 100 questions
        wanted = k + 4 + k // 8
        while True:
            wanted = max(1, min(wanted, self.num_documents))
            numbers, scores = self._collect(query, wanted, _finds_all(k, num_terms))
            if len(numbers) < wanted or wanted == self.num_documents or scores[-1] < scores[k - 1]:
                break
            wanted *= 4
        return self._order(numbers, scores, k)

    def _order(self, numbers: Sequence[int], scores: Sequence[float], k: int) -> Hits:
        """Hits in the order of the tie rule; the scores, descending, already stand right.

        Plain lists: for ten hits, as for a thousand, they are faster than arrays that numpy has to
        make first.
        """
        tied = (
            bisect.bisect_right(scores, -scores[k - 1], key=operator.neg)
            if len(scores) > k
            else len(scores)
        )
        doc_ids, scores = self._find_ids(numbers[:tied]), scores[:tied]
        if len(set(scores)) < tied:
            end = 0
            for _, group in itertools.groupby(scores):
                start, end = end, end + len(list(group))
                if end - start > 1:
                    doc_ids[start:end] = sorted(doc_ids[start:end], reverse=True)
        return Hits(doc_ids[:k], np.array(scores[:k], dtype=np.float32))

    def _collect(self, query: Any, k: int, find_all: bool = False) -> tuple[list[int], list[float]]:
        """Document numbers and scores of one search, brought over in a single transfer as JSON
        text.

        ``find_all``: score every match instead of passing over documents that cannot be among the
        best.
        """
        with java.translated_errors("the search failed", DamagedError):
            if find_all:
                manager = self._make_manager(k)
                found = self._scanner.search(query, manager)
            else:
                found = self._searcher.search(query, k)
            text = self._writer.writeValueAsString(found)
        (hits,) = json.loads(text)
        return [number for _, number in hits], [score for score, _ in hits]


def _count_terms(terms: Any) -> int:
    """Distinct terms; Lucene knows the number of one segment, those of
    several have to be walked.
    """
    known = int(terms.size())
    if known >= 0:
        return known
    walker = terms.iterator()
    count = 0
    # not iter(walker.next, None): a kept method forgets its receiver
    while walker.next() is not None:
        count += 1
    return count


def _term_query(field: str, term: str) -> Any:
    return java.java_class("org.apache.lucene.search.TermQuery")(
        java.java_class("org.apache.lucene.index.Term")(field, term)
    )


def _find_term(searcher: Any, term: str) -> Any:
    """The query of one term, and with it the term's place in the index, which is then looked up no
    more.
    """
    place = java.java_class("org.apache.lucene.index.Term")(FIELD, term)
    with java.translated_errors("the search failed", DamagedError):
        states = java.java_class("org.apache.lucene.index.TermStates").build(searcher, place, True)
    return java.java_class("org.apache.lucene.search.TermQuery")(place, states)


def _finds_all(k: int, num_terms: int) -> bool:
    """True where it takes longer to find out what can be passed over than to score it.

    So it is for long queries, by a third, and for many hits, by up to a fifth; for few hits of
    short ones it is not, and the less so the larger the collection.
    """
    return k >= _MANY_HITS or num_terms > _MANY_TERMS


@functools.lru_cache(maxsize=1)
def _searcher_classes() -> tuple[Any, Any]:
    """``IndexSearcher`` for the best hits only, and for a collector manager."""
    query, shared = (
        "Lorg/apache/lucene/search/Query;",
        {
            "setSimilarity": "(Lorg/apache/lucene/search/similarities/Similarity;)V",
            "setQueryCache": "(Lorg/apache/lucene/search/QueryCache;)V",
        },
    )
    searches = (
        f"({query}I)Lorg/apache/lucene/search/TopDocs;",
        f"({query}Lorg/apache/lucene/search/CollectorManager;)Ljava/lang/Object;",
    )
    name, constructor = (
        "org.apache.lucene.search.IndexSearcher",
        "(Lorg/apache/lucene/index/IndexReader;)V",
    )
    best, every = (
        java.narrow_class(name, constructor, search=search, **shared) for search in searches
    )
    return best, every


def _manager_maker() -> Callable[[int], Any]:
    """Makes what collects the ``k`` best of all matches; Lucene 10 has a class for it, Lucene 9 a
    method.
    """
    whole = 2**31 - 1  # hits that are counted, and therefore found, before any is passed over
    try:
        manager_class = java.java_class("org.apache.lucene.search.TopScoreDocCollectorManager")
    except JavaError:
        collector_class = java.java_class("org.apache.lucene.search.TopScoreDocCollector")
        return lambda k: collector_class.createSharedManager(k, None, whole)
    return lambda k: manager_class(k, whole)


@functools.lru_cache(maxsize=1)
def _sum_class() -> Any:
    return java.narrow_class(
        "org.apache.lucene.search.DisjunctionMaxQuery", "(Ljava/util/Collection;F)V"
    )


def _hits_writer() -> Any:
    """Writes ``TopDocs`` as ``[[[score, document number], ...]]``: half the time and a third of the
    text of objects.
    """
    writer = java.java_class("com.fasterxml.jackson.databind.ObjectMapper")()
    array = java.java_class("com.fasterxml.jackson.annotation.JsonFormat$Shape").ARRAY
    form = java.java_class("com.fasterxml.jackson.annotation.JsonFormat$Value").forShape(array)
    for name, unused in (("TopDocs", "totalHits"), ("ScoreDoc", "shardIndex")):
        ignored = java.java_class("com.fasterxml.jackson.annotation.JsonIgnoreProperties$Value")
        left_out = ignored.forIgnoredProperties(unused)
        written = java.class_object(f"org.apache.lucene.search.{name}")
        override = writer.configOverride(written)
        override.setFormat(form)
        override.setIgnorals(left_out)
    return writer


def _boosts_reader() -> Any:
    """Reads a JSON object as a Java map from terms to Floats."""
    mapper = java.java_class("com.fasterxml.jackson.databind.ObjectMapper")()
    number = java.class_object("java.lang.Float")
    return mapper.readerForMapOf(number)


def _boosted(query: Any, boost: float) -> Any:
    return java.java_class("org.apache.lucene.search.BoostQuery")(query, float(boost))
