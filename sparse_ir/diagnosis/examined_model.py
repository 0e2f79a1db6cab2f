"""The model under examination, and what several measurements need of it."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from sparse_ir.models import tokenization
from sparse_ir.models.checkpoint import NeuralSide
from sparse_ir.models.encoder import Encoder
from sparse_ir.models.interfaces import QueryEncoder


@dataclass
class ExaminedModel:
    """A loaded model with texts to encode; what is computed once is kept.

    Dimensions: L tokens of a text, V vocabulary, N texts.
    """

    encoder: Encoder
    query_encoder: QueryEncoder
    passages: list[str]
    questions: list[str]  # one per passage; none for texts of the user

    @functools.cached_property
    def special_columns(self) -> set[int]:
        """The columns of special tokens."""
        tokenizer = self.encoder.network.tokenizer
        special_ids = tokenization.special_token_ids(tokenizer)
        names = {tokenizer.id_to_token(token_id) for token_id in special_ids}
        columns = set()
        for column, token in enumerate(self.encoder.vocabulary):
            if token in names:
                columns.add(column)
        return columns

    @functools.cached_property
    def vectors(self) -> sparse.csr_matrix:
        """CSR ``(N, V)``: the passages, encoded in batches."""
        return self.encoder.encode(self.passages)

    @functools.cached_property
    def token_scores(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """For each passage the columns of its pooled tokens and their scores ``[L, V]``."""
        return [self.encoder.token_scores(text) for text in self.passages]

    @functools.cached_property
    def own_columns(self) -> list[set[int]]:
        """For each passage the columns of its own tokens, without special ones."""
        return [set(columns.tolist()) - self.special_columns for columns, _ in self.token_scores]

    @property
    def side(self) -> NeuralSide:
        """How documents are read."""
        return self.encoder.checkpoint.document

    def pool(self, scores_LV: np.ndarray) -> np.ndarray:
        """The vector ``[V]`` that the model makes of the scores of some tokens."""
        if self.side.pooling == "sum":
            summed_V: np.ndarray = scores_LV.sum(0)
            return summed_V
        return self.encoder.activate(scores_LV.max(0))
