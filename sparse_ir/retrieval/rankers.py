"""Rankers: how the two kinds of index answer an encoded query."""

from __future__ import annotations

import collections
import functools
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

import numpy as np

from sparse_ir.data import records
from sparse_ir.engines.base import BM25, SPARSE, EngineHits, EngineReader, EngineStatistics
from sparse_ir.engines.lucene.analysis import TextAnalyzer
from sparse_ir.engines.lucene.bm25 import Bm25Reader
from sparse_ir.engines.lucene.terms import CONTENTS_FIELD
from sparse_ir.errors import ConfigError
from sparse_ir.indexing.bm25_field import Bm25Settings
from sparse_ir.indexing.forward import ForwardIndex
from sparse_ir.indexing.quantization import Rule, quantize_query
from sparse_ir.indexing.statistics import BM25_TERMS, Statistics
from sparse_ir.models.interfaces import QueryEncoder
from sparse_ir.models.static_queries import StaticQueryEncoder
from sparse_ir.retrieval.encoded_query import (
    EncodedQuery,
    FieldsQuery,
    HybridQuery,
    ImpactQuery,
    TextQuery,
    WordQuery,
    name_word,
)
from sparse_ir.retrieval.options import EXACT, SearchOptions, choose_terms
from sparse_ir.storage import files

_NO_IDS = np.empty(0, np.int32)
_NO_WEIGHTS = np.empty(0, np.float32)


class Ranker(Protocol):
    """What ``Index`` asks of a ranker."""

    def encode(self, text: str) -> EncodedQuery:
        """The query of a text; raises ``DataError`` for a lone surrogate."""

    def search(self, query: EncodedQuery, k: int, options: SearchOptions) -> EngineHits:
        """The ``k`` best documents."""

    def score(self, query: EncodedQuery, doc_id: str) -> float:
        """The exact score of one document; 0.0 when nothing matches."""

    def contributions(self, query: EncodedQuery, doc_id: str) -> dict[str, float]:
        """Term -> its part of the score of one document."""

    def explainer(self, query: EncodedQuery) -> Callable[[int], dict[str, float]]:
        """A function from a document number to its ``contributions``."""

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


class SparseField:
    """Queries of the field ``sparse``: encoded, and quantized under the rule of the index.

    ``statistics`` may be None for an older or foreign index; document frequencies are then asked of
    the engine, once for each token.
    """

    def __init__(
        self,
        reader: EngineReader,
        query_encoder: QueryEncoder,
        rule: Rule,
        statistics: Statistics | None,
    ) -> None:
        self._reader = reader
        self._query_encoder = query_encoder
        self._rule = rule
        self._statistics = statistics
        self._known_frequencies: dict[str, int] = {}

    def encode(self, text: str) -> ImpactQuery:
        """Encode a text and quantize its weights under the rule of the index."""
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

    def frequencies(self, query: ImpactQuery) -> np.ndarray:
        """The number of documents that hold each token, int64 ``(T,)``."""
        if self._statistics is not None:
            frequencies: np.ndarray = self._statistics.frequencies[SPARSE][query.token_ids]
            return frequencies
        unknown = [token for token in query.tokens if token not in self._known_frequencies]
        if unknown:
            counts = self._reader.document_frequencies(SPARSE, unknown)
            self._known_frequencies.update(zip(unknown, counts.tolist(), strict=True))
        known = [self._known_frequencies[token] for token in query.tokens]
        return np.array(known, dtype=np.int64)


class WordField:
    """Queries of the field ``bm25``: analysed as the documents were, each word counted.

    ``rule``: boosts are counts under a folded rule, and counts times its scale under a plain one,
    as the weights of sparse queries are.
    """

    def __init__(
        self, folder: Path, settings: Bm25Settings, analyzer: TextAnalyzer, rule: Rule
    ) -> None:
        self._folder = folder
        self._settings = settings
        self._analyzer = analyzer
        self._boost = 1.0 if rule.folded else rule.scale

    def encode(self, text: str) -> WordQuery:
        """Analyse a text; a word that it has twice counts twice."""
        counts = collections.Counter(self._analyzer.terms(text))
        boosts = np.rint(np.fromiter(counts.values(), np.float64, len(counts)) * self._boost)
        impacts = np.maximum(boosts, 1).astype(np.int32)
        return WordQuery(text, list(counts), impacts)

    def ids(self, query: WordQuery) -> np.ndarray:
        """The place of each word in the statistics, int64 ``(T,)``; -1 for an unknown word."""
        known = self._known
        return np.array([known.get(token, -1) for token in query.tokens], dtype=np.int64)

    def frequencies(self, query: WordQuery) -> np.ndarray:
        """The number of documents that hold each word, int64 ``(T,)``."""
        ids = self.ids(query)
        if not len(ids):
            return ids
        return np.where(ids >= 0, self._statistics.frequencies[BM25][ids], 0)

    def weights(self, query: WordQuery) -> np.ndarray:
        """The part of each word's score that the query decides, float64 ``(T,)``."""
        texts = self._statistics.texts
        assert texts is not None
        frequencies = self.frequencies(query)
        idf = np.log1p((texts.documents - frequencies + 0.5) / (frequencies + 0.5))
        weights: np.ndarray = self._settings.share * idf * query.impacts / self._boost
        return weights

    @functools.cached_property
    def _statistics(self) -> Statistics:
        return Statistics.load(self._folder)

    @functools.cached_property
    def _known(self) -> dict[str, int]:
        vocabulary = files.read_json(self._folder / BM25_TERMS)
        return {token: place for place, token in enumerate(vocabulary)}


class ImpactRanker:
    """Ranks by integer impacts of one field or of both, with any engine."""

    def __init__(
        self,
        reader: EngineReader,
        sparse_field: SparseField | None,
        word_field: WordField | None,
        forward: ForwardIndex | None,
    ) -> None:
        self._reader = reader
        self._sparse_field = sparse_field
        self._word_field = word_field
        self._forward = forward

    def encode(self, text: str) -> FieldsQuery:
        """The query of a text in the fields that are ranked by."""
        records.check_text(text)
        if self._word_field is None:
            assert self._sparse_field is not None
            return self._sparse_field.encode(text)
        words = self._word_field.encode(text)
        if self._sparse_field is None:
            return words
        return HybridQuery(self._sparse_field.encode(text), words)

    def search(self, query: EncodedQuery, k: int, options: SearchOptions) -> EngineHits:
        """Search exactly, or with some of the terms and perhaps a second phase."""
        assert not isinstance(query, TextQuery)
        if options.candidates and self._forward is None:
            raise ConfigError(
                "two-phase search needs a forward index; build the index with --forward"
            )
        covers_all = options.candidates * k >= self._reader.num_documents
        if not options.leaves_out or covers_all:
            return self._reader.search(query.engine_query, k)
        frequencies = self._frequencies(query)
        weights = self._weights(query)
        chosen = choose_terms(options, weights, frequencies, self._reader.num_documents)
        part = query.part(chosen)
        is_whole = len(chosen) == np.count_nonzero(frequencies)
        if self._forward is None or not options.candidates or is_whole:
            return self._reader.search(part, k)
        count = math.ceil(options.candidates * k)
        numbers = self._reader.find_candidates(part, count)
        token_ids = self._forward_ids(query, self._forward)
        known = token_ids >= 0
        scores = self._forward.scores(numbers, token_ids[known], query.impacts[known])
        return self._reader.rank(numbers, scores.astype(np.float64), k)

    def score(self, query: EncodedQuery, doc_id: str) -> float:
        """The engine's score of one document."""
        assert not isinstance(query, TextQuery)
        return self._reader.score(doc_id, query.engine_query)

    def contributions(self, query: EncodedQuery, doc_id: str) -> dict[str, float]:
        """Token -> its part of a document's score; words beside tokens are named ``bm25:WORD``."""
        assert not isinstance(query, TextQuery)
        return _name_fields(query, self._reader.contributions(doc_id, query.engine_query))

    def explainer(self, query: EncodedQuery) -> Callable[[int], dict[str, float]]:
        """A function from a document number to its ``contributions``."""
        assert not isinstance(query, TextQuery)
        explain = self._reader.explainer(query.engine_query)
        return lambda number: _name_fields(query, explain(number))

    def count_postings(self, query: EncodedQuery) -> int:
        """The number of postings that the tokens of a query meet."""
        assert not isinstance(query, TextQuery)
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

    def _frequencies(self, query: FieldsQuery) -> np.ndarray:
        """The number of documents that hold each term, int64 ``(T,)``."""
        if isinstance(query, HybridQuery):
            parts = [self._frequencies(query.sparse), self._frequencies(query.words)]
            return np.concatenate(parts)
        if isinstance(query, WordQuery):
            assert self._word_field is not None
            return self._word_field.frequencies(query)
        assert self._sparse_field is not None
        return self._sparse_field.frequencies(query)

    def _weights(self, query: FieldsQuery) -> np.ndarray:
        """The weight of each term in the query, float ``(T,)``."""
        if isinstance(query, HybridQuery):
            return np.concatenate([self._weights(query.sparse), self._weights(query.words)])
        if isinstance(query, WordQuery):
            assert self._word_field is not None
            return self._word_field.weights(query)
        return query.weights

    def _forward_ids(self, query: FieldsQuery, forward: ForwardIndex) -> np.ndarray:
        """The id of each term in the forward index, int ``(T,)``; -1 for an unknown word."""
        if isinstance(query, HybridQuery):
            sparse_ids = self._forward_ids(query.sparse, forward)
            return np.concatenate([sparse_ids, self._forward_ids(query.words, forward)])
        if isinstance(query, WordQuery):
            assert self._word_field is not None
            ids = self._word_field.ids(query)
            return np.where(ids >= 0, ids + forward.first_ids[BM25], -1)
        return query.token_ids


class Bm25Ranker:
    """Ranks by Lucene's BM25."""

    def __init__(self, reader: Bm25Reader) -> None:
        self._reader = reader

    def encode(self, text: str) -> TextQuery:
        """The text itself; it is analysed when it is searched for."""
        records.check_text(text)
        return TextQuery(text)

    def search(self, query: EncodedQuery, k: int, options: SearchOptions) -> EngineHits:
        """The ``k`` best documents; raises ``ConfigError`` for any search option."""
        if options != EXACT:
            raise ConfigError(f"a BM25 index takes no search options ({options})")
        return self._reader.search(query.text, k)

    def score(self, query: EncodedQuery, doc_id: str) -> float:
        """Lucene's score of one document."""
        return self._reader.score(doc_id, query.text)

    def contributions(self, query: EncodedQuery, doc_id: str) -> dict[str, float]:
        """Term -> its part of the score; a term in a field for titles is named ``title:TERM``."""
        return _name_terms(self._reader.contributions(doc_id, query.terms))

    def explainer(self, query: EncodedQuery) -> Callable[[int], dict[str, float]]:
        """A function from a document number to its ``contributions``."""
        explain = self._reader.explainer(query.text)
        return lambda number: _name_terms(explain(number))

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


def _name_fields(query: FieldsQuery, parts: Mapping[tuple[str, str], float]) -> dict[str, float]:
    """Tokens without their field; words beside tokens are named ``bm25:WORD``."""
    named = {}
    for (field, token), part in parts.items():
        is_word = field == BM25 and isinstance(query, HybridQuery)
        named[name_word(token) if is_word else token] = part
    return named


def _name_terms(parts: Mapping[tuple[str, str], float]) -> dict[str, float]:
    """Terms without their field, except those in a field for titles."""
    named = {}
    for (field, term), part in parts.items():
        name = term if field == CONTENTS_FIELD else f"{field}:{term}"
        named[name] = part
    return named
