"""A query as an index sees it: encoded once, then used for searching, scoring and explaining."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sparse_ir.engines.base import BM25, SPARSE, EngineQuery, FieldTerms
from sparse_ir.engines.lucene.bm25 import count_terms


@dataclass(frozen=True, eq=False)
class ImpactQuery:
    """The terms of a query under the rule of an index; arrays ``(T,)`` in ascending token id."""

    text: str
    vocabulary: Sequence[str]
    token_ids: np.ndarray  # int32; tokens whose impact is 0 are left out
    weights: np.ndarray  # float32, as the query encoder gave them
    impacts: np.ndarray  # int32, each at least 1
    encoded_ids: np.ndarray  # int32; all tokens that the encoder gave
    encoded_weights: np.ndarray  # float32

    @functools.cached_property
    def tokens(self) -> list[str]:
        """The tokens that score."""
        vocabulary = self.vocabulary
        return [vocabulary[token_id] for token_id in self.token_ids.tolist()]

    @property
    def engine_query(self) -> EngineQuery:
        """The query in the form that engines take."""
        return {SPARSE: FieldTerms(self.tokens, self.impacts.tolist())}

    def part(self, positions: np.ndarray) -> EngineQuery:
        """The terms at some positions only."""
        tokens = [self.tokens[position] for position in positions]
        return {SPARSE: FieldTerms(tokens, self.impacts[positions].tolist())}

    @functools.cached_property
    def terms(self) -> dict[str, int]:
        """Token -> its impact in the query."""
        return dict(zip(self.tokens, self.impacts.tolist(), strict=True))

    @functools.cached_property
    def encoder_weights(self) -> dict[str, float]:
        """Token -> its weight before any rounding, for all tokens that the encoder gave."""
        tokens = [self.vocabulary[token_id] for token_id in self.encoded_ids.tolist()]
        return dict(zip(tokens, self.encoded_weights.tolist(), strict=True))


@dataclass(frozen=True, eq=False)
class WordQuery:
    """The analysed words of a query in the field ``bm25``, each once."""

    text: str
    tokens: list[str]  # in the order of their first occurrence
    impacts: np.ndarray  # int32 (T,): how often the query has each, times what boosts it

    @property
    def engine_query(self) -> EngineQuery:
        """The query in the form that engines take."""
        return {BM25: FieldTerms(self.tokens, self.impacts.tolist())}

    def part(self, positions: np.ndarray) -> EngineQuery:
        """The terms at some positions only."""
        tokens = [self.tokens[position] for position in positions]
        return {BM25: FieldTerms(tokens, self.impacts[positions].tolist())}

    @functools.cached_property
    def terms(self) -> dict[str, int]:
        """Term -> its impact in the query."""
        return dict(zip(self.tokens, self.impacts.tolist(), strict=True))

    @property
    def encoder_weights(self) -> dict[str, float]:
        """Empty: no encoder weighs the terms."""
        return {}


@dataclass(frozen=True, eq=False)
class HybridQuery:
    """A query in both fields; positions count the sparse terms first."""

    sparse: ImpactQuery
    words: WordQuery

    @property
    def text(self) -> str:
        """The text that was encoded."""
        return self.sparse.text

    @property
    def impacts(self) -> np.ndarray:
        """The impacts of all terms, int32 ``(T,)``."""
        return np.concatenate([self.sparse.impacts, self.words.impacts])

    @property
    def engine_query(self) -> EngineQuery:
        """The query in the form that engines take."""
        return dict(self.sparse.engine_query) | dict(self.words.engine_query)

    def part(self, positions: np.ndarray) -> EngineQuery:
        """The terms at some positions only."""
        count = len(self.sparse.tokens)
        of_words = positions[positions >= count] - count
        sparse = self.sparse.part(positions[positions < count])
        return dict(sparse) | dict(self.words.part(of_words))

    @functools.cached_property
    def terms(self) -> dict[str, int]:
        """Term -> its impact in the query; words are named ``bm25:WORD``."""
        words = {name_word(word): impact for word, impact in self.words.terms.items()}
        return self.sparse.terms | words

    @property
    def encoder_weights(self) -> dict[str, float]:
        """Token -> its weight before any rounding, for all tokens that the encoder gave."""
        return self.sparse.encoder_weights


@dataclass(frozen=True, eq=False)
class TextQuery:
    """A query of a BM25 index: Lucene analyses its text."""

    text: str

    @functools.cached_property
    def terms(self) -> dict[str, int]:
        """Analysed term -> how often the query has it."""
        return count_terms(self.text)

    @property
    def encoder_weights(self) -> dict[str, float]:
        """Empty: no encoder weighs the terms."""
        return {}


FieldsQuery = ImpactQuery | WordQuery | HybridQuery  # of an impact index
EncodedQuery = FieldsQuery | TextQuery


def name_word(word: str) -> str:
    """The name of a word beside the terms of the sparse field."""
    return f"{BM25}:{word}"
