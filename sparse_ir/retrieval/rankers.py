"""Rankers: how the two kinds of index answer an encoded query."""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np

from sparse_ir.data import records
from sparse_ir.engines.base import SPARSE, EngineReader, EngineStatistics, Hits
from sparse_ir.engines.lucene.bm25 import Bm25Reader
from sparse_ir.engines.lucene.terms import CONTENTS_FIELD
from sparse_ir.errors import ConfigError
from sparse_ir.indexing.forward import ForwardIndex
from sparse_ir.indexing.quantization import Rule, quantize_query
from sparse_ir.indexing.statistics import Statistics
from sparse_ir.models.interfaces import QueryEncoder
from sparse_ir.models.static_queries import StaticQueryEncoder
from sparse_ir.retrieval.encoded_query import EncodedQuery, ImpactQuery, TextQuery
from sparse_ir.retrieval.options import EXACT, SearchOptions, choose_terms

_NO_IDS = np.empty(0, np.int32)
_NO_WEIGHTS = np.empty(0, np.float32)


class Ranker(Protocol):
    """What ``Index`` asks of a ranker."""

    def encode(self, text: str) -> EncodedQuery:
        """The query of a text; raises ``DataError`` for a lone surrogate."""

    def search(self, query: EncodedQuery, k: int, options: SearchOptions) -> Hits:
        """The ``k`` best documents."""

    def score(self, query: EncodedQuery, doc_id: str) -> float:
        """The exact score of one document; 0.0 when nothing matches."""

    def contributions(self, query: EncodedQuery, doc_id: str) -> dict[str, float]:
        """Term -> its part of the score of one document."""

    def count_postings(self, query: EncodedQuery) -> int:
        """The number of postings that the terms of a query meet."""

    def has_document(self, doc_id: str) -> bool:
        """True when the index holds a document of this id."""

    def statistics(self) -> EngineStatistics:
        """Counts as the engine keeps them."""

    def end_thread(self) -> None:
        """Release what the engine keeps for the calling thread."""

    def close(self) -> None:
        """Release all files."""


class ImpactRanker:
    """Ranks by integer impacts, with any engine.

    ``statistics`` may be None for an older or foreign index; document frequencies are then asked of
    the engine, once for each token.
    """

    def __init__(
        self,
        reader: EngineReader,
        query_encoder: QueryEncoder,
        rule: Rule,
        forward: ForwardIndex | None,
        statistics: Statistics | None,
    ) -> None:
        self._reader = reader
        self._query_encoder = query_encoder
        self._rule = rule
        self._forward = forward
        self._statistics = statistics
        self._known_frequencies: dict[str, int] = {}

    def encode(self, text: str) -> ImpactQuery:
        """Encode a text and quantize its weights under the rule of the index."""
        records.check_text(text)
        vocabulary = self._query_encoder.vocabulary
        if not text.strip():  # a network would give the weights of its special tokens
            empty = np.empty(0, np.int32)
            return ImpactQuery(text, vocabulary, _NO_IDS, _NO_WEIGHTS, empty, _NO_IDS, _NO_WEIGHTS)
        token_ids, weights = self._query_encoder.encode(text)
        if self._rule.folded and isinstance(self._query_encoder, StaticQueryEncoder):
            ones = np.ones(len(token_ids), np.int32)  # its weights are all above 0
            return ImpactQuery(text, vocabulary, token_ids, weights, ones, token_ids, weights)
        kept, impacts = quantize_query(token_ids, weights, self._rule)
        kept_weights = weights[np.searchsorted(token_ids, kept)]
        return ImpactQuery(text, vocabulary, kept, kept_weights, impacts, token_ids, weights)

    def search(self, query: EncodedQuery, k: int, options: SearchOptions) -> Hits:
        """Search exactly, or with some of the terms and perhaps a second phase."""
        assert isinstance(query, ImpactQuery)
        if options.candidates and self._forward is None:
            raise ConfigError(
                "two-phase search needs a forward index; build the index with --forward"
            )
        covers_all = options.candidates * k >= self._reader.num_documents
        if not options.leaves_out or covers_all:
            return self._reader.search(query.engine_query, k)
        frequencies = self._frequencies(query)
        chosen = choose_terms(options, query.weights, frequencies, self._reader.num_documents)
        part = query.part(chosen)
        is_whole = len(chosen) == np.count_nonzero(frequencies)
        if self._forward is None or not options.candidates or is_whole:
            return self._reader.search(part, k)
        count = math.ceil(options.candidates * k)
        numbers = self._reader.find_candidates(part, count)
        scores = self._forward.scores(numbers, query.token_ids, query.impacts)
        return self._reader.rank(numbers, scores.astype(np.float64), k)

    def score(self, query: EncodedQuery, doc_id: str) -> float:
        """The engine's score of one document."""
        assert isinstance(query, ImpactQuery)
        return self._reader.score(doc_id, query.engine_query)

    def contributions(self, query: EncodedQuery, doc_id: str) -> dict[str, float]:
        """Token -> its part of the score of one document."""
        assert isinstance(query, ImpactQuery)
        parts = self._reader.contributions(doc_id, query.engine_query)
        return {token: part for (_, token), part in parts.items()}

    def count_postings(self, query: EncodedQuery) -> int:
        """The number of postings that the tokens of a query meet."""
        assert isinstance(query, ImpactQuery)
        return int(self._frequencies(query).sum())

    def has_document(self, doc_id: str) -> bool:
        """True when the index holds a document of this id."""
        return self._reader.has_document(doc_id)

    def statistics(self) -> EngineStatistics:
        """Counts as the engine keeps them."""
        return self._reader.statistics()

    def end_thread(self) -> None:
        """Release what the engine keeps for the calling thread."""
        self._reader.end_thread()

    def close(self) -> None:
        """Release the engine's files."""
        self._reader.close()

    def _frequencies(self, query: ImpactQuery) -> np.ndarray:
        """The number of documents that hold each token, int64 ``(T,)``."""
        if self._statistics is not None:
            frequencies: np.ndarray = self._statistics.frequencies[query.token_ids]
            return frequencies
        unknown = [token for token in query.tokens if token not in self._known_frequencies]
        if unknown:
            counts = self._reader.document_frequencies(SPARSE, unknown)
            self._known_frequencies.update(zip(unknown, counts.tolist(), strict=True))
        known = [self._known_frequencies[token] for token in query.tokens]
        return np.array(known, dtype=np.int64)


class Bm25Ranker:
    """Ranks by Lucene's BM25."""

    def __init__(self, reader: Bm25Reader) -> None:
        self._reader = reader

    def encode(self, text: str) -> TextQuery:
        """The text itself; it is analysed when it is searched for."""
        records.check_text(text)
        return TextQuery(text)

    def search(self, query: EncodedQuery, k: int, options: SearchOptions) -> Hits:
        """The ``k`` best documents; raises ``ConfigError`` for any search option."""
        if options != EXACT:
            raise ConfigError(f"a BM25 index takes no search options ({options})")
        return self._reader.search(query.text, k)

    def score(self, query: EncodedQuery, doc_id: str) -> float:
        """Lucene's score of one document."""
        return self._reader.score(doc_id, query.text)

    def contributions(self, query: EncodedQuery, doc_id: str) -> dict[str, float]:
        """Term -> its part of the score; a term in a field for titles is named ``title:TERM``."""
        parts = self._reader.contributions(doc_id, query.terms)
        named = {}
        for (field, term), part in parts.items():
            name = term if field == CONTENTS_FIELD else f"{field}:{term}"
            named[name] = part
        return named

    def count_postings(self, query: EncodedQuery) -> int:
        """The number of postings that the terms of a query meet, over all fields."""
        return sum(self._reader.document_frequencies(query.terms).values())

    def has_document(self, doc_id: str) -> bool:
        """True when the index holds a document of this id."""
        return self._reader.has_document(doc_id)

    def statistics(self) -> EngineStatistics:
        """Counts as Lucene keeps them."""
        return self._reader.statistics()

    def end_thread(self) -> None:
        """Detach the calling thread from Java."""
        self._reader.end_thread()

    def close(self) -> None:
        """Release Lucene's files."""
        self._reader.close()
