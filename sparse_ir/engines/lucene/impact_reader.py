"""Searching impacts in Lucene."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sparse_ir.engines.base import (
    EngineHits,
    EngineQuery,
    EngineStatistics,
    FieldTerms,
    FindIds,
)
from sparse_ir.engines.lucene import java, java_classes
from sparse_ir.engines.lucene.directory import impact_similarity
from sparse_ir.engines.lucene.opened import OpenLucene, scores_all
from sparse_ir.engines.lucene.terms import ID_FIELD, lucene_field, term_of_token
from sparse_ir.engines.ranking import order_hits
from sparse_ir.errors import DamagedError

_REPEATED_BOOST = 3  # the largest boost that is made by repeating a term
_KEPT_TERMS = 2**14  # terms whose place in an open index is remembered, about 10 MB


class ImpactReader(OpenLucene):
    """An open Lucene impact index; see ``base.EngineReader``. Scores are float32."""

    def __init__(self, folder: Path, find_ids: FindIds | None = None) -> None:
        super().__init__(folder, impact_similarity(), find_ids)
        self._generator = java.java_class("io.anserini.search.query.BagOfWordsQueryGenerator")()
        self._boosts_reader = java_classes.boosts_reader()
        self._lists = java.java_class("java.util.Arrays")
        self._sum = java_classes.sum_query_class()
        # a cache around a method would keep this object, and Java's, alive after its last use
        self._token_query = functools.lru_cache(maxsize=_KEPT_TERMS)(
            functools.partial(_find_token, self._searcher)
        )

    def search(self, query: EngineQuery, k: int) -> EngineHits:
        """The ``k`` best documents; see ``base.EngineReader.search``."""
        num_terms = _count_tokens(query)
        if not num_terms:
            return EngineHits([], np.empty(0, np.float32), [])
        return self._top(self._lucene_query(query), k, scores_all(k, num_terms, len(query)))

    def find_candidates(self, query: EngineQuery, count: int) -> np.ndarray:
        """Numbers of the ``count`` best documents, int64; ties by ascending number."""
        num_terms = _count_tokens(query)
        if not num_terms or not self.num_documents:
            return np.empty(0, np.int64)
        lucene_query = self._lucene_query(query)
        wanted = min(count, self.num_documents)
        numbers, _ = self._collect(
            lucene_query, wanted, score_all=scores_all(count, num_terms, len(query))
        )
        return np.asarray(numbers, dtype=np.int64)

    def rank(self, numbers: np.ndarray, scores: np.ndarray, k: int) -> EngineHits:
        """The ``k`` best of documents ``(N,)`` that were scored elsewhere, as float32."""
        rounded = scores.astype(np.float32)  # as Lucene's own scores are
        best = np.argsort(-rounded, kind="stable")
        return order_hits(
            numbers[best].tolist(), rounded[best].tolist(), k, self._find_ids, np.float32
        )

    def score(self, doc_id: str, query: EngineQuery) -> float:
        """The score of one document; 0.0 when no token matches or the document is missing."""
        if not _count_tokens(query):
            return 0.0
        return self._score_within(doc_id, self._lucene_query(query))

    def contributions(self, doc_id: str, query: EngineQuery) -> dict[tuple[str, str], float]:
        """``(field, token)`` -> the engine's score of one document for this token alone."""
        java.check_process()
        parts: dict[tuple[str, str], float] = {}
        for field, terms in query.items():
            for token, boost in _boosts_by_token(terms).items():
                single = java_classes.term_query(lucene_field(field), term_of_token(token))
                score = self._score_within(doc_id, java_classes.boosted(single, boost))
                if score:
                    parts[field, token] = score
        return parts

    def explainer(self, query: EngineQuery) -> Callable[[int], dict[tuple[str, str], float]]:
        """A function from a document number to its ``contributions``, by Lucene's explanations."""
        if not _count_tokens(query):
            return lambda number: {}
        named = {}
        for field, terms in query.items():
            for token, boost in _boosts_by_token(terms).items():
                named[lucene_field(field), term_of_token(token)] = ((field, token), boost)
        explain = self._explainer(self._lucene_query(query))

        def explain_by_token(number: int) -> dict[tuple[str, str], float]:
            parts = {}
            for place, impact in explain(number).items():  # Anserini explains without the boost
                name, boost = named[place]
                parts[name] = boost * impact
            return parts

        return explain_by_token

    def document_frequencies(self, field: str, tokens: Sequence[str]) -> np.ndarray:
        """The number of documents that hold each token in a field, int64 ``(T,)``."""
        name = lucene_field(field)
        counts = [self._document_frequency(name, term_of_token(token)) for token in tokens]
        return np.array(counts, dtype=np.int64)

    def statistics(self) -> EngineStatistics:
        """Counts over all fields, as Lucene keeps them."""
        infos = java.java_class("org.apache.lucene.index.FieldInfos").getMergedFieldInfos(
            self._reader
        )
        names = []
        walker = infos.iterator()
        while walker.hasNext():
            info = walker.next()
            name = str(info.getName())
            if name != ID_FIELD:
                names.append(name)
        return self._count(names)

    def _lucene_query(self, query: EngineQuery) -> Any:
        """The sum over all fields and tokens.

        Tokens of small boosts, as under a folded rule, become queries whose place in the index is
        remembered; one that counts twice is in the sum twice. Other boosts go over to Java as one
        JSON object for each field: a call for each term would cost more than the search.
        """
        java.check_process()
        clauses: list[Any] = []
        for field, terms in query.items():
            if not len(terms.tokens):
                continue
            if max(terms.boosts) <= _REPEATED_BOOST:
                for token, boost in zip(terms.tokens, terms.boosts, strict=True):
                    clauses.extend([self._token_query(field, token)] * boost)
            else:
                clauses.append(self._boosted_query(field, terms))
        if len(clauses) == 1:
            return clauses[0]
        collection = self._lists.asList(*clauses)
        return self._sum(collection, 1.0)

    def _boosted_query(self, field: str, terms: FieldTerms) -> Any:
        weights = {}
        for token, boost in _boosts_by_token(terms).items():
            weights[term_of_token(token)] = boost
        text = json.dumps(weights)
        boosts_by_term = self._boosts_reader.readValue(text)
        name = lucene_field(field)
        return self._generator.buildQuery(name, boosts_by_term)


def _find_token(searcher: Any, field: str, token: str) -> Any:
    """The query of one token together with the token's place in the index."""
    place = java.java_class("org.apache.lucene.index.Term")(
        lucene_field(field), term_of_token(token)
    )
    with java.translated_errors("the search failed", DamagedError):
        states = java.java_class("org.apache.lucene.index.TermStates").build(searcher, place, True)
    return java.java_class("org.apache.lucene.search.TermQuery")(place, states)


def _count_tokens(query: EngineQuery) -> int:
    return sum(len(terms.tokens) for terms in query.values())


def _boosts_by_token(terms: FieldTerms) -> dict[str, int]:
    """Each token once, with the sum of its boosts."""
    boosts: dict[str, int] = {}
    for token, boost in zip(terms.tokens, terms.boosts, strict=True):
        boosts[token] = boosts.get(token, 0) + boost
    return boosts
