"""A query as an index sees it: encoded once, then used for searching, scoring and explaining."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sparse_ir.engines.base import SPARSE, EngineQuery, FieldTerms
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


EncodedQuery = ImpactQuery | TextQuery
