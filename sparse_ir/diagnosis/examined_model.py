"""The model under examination, and cosines and ranks of its vectors.

Dimensions: L tokens of a text, V vocabulary, N texts, Q queries, D documents.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from sparse_ir.models import tokenization
from sparse_ir.models.checkpoint import NeuralSide
from sparse_ir.models.encoder import Encoder
from sparse_ir.models.interfaces import QueryEncoder


def pairwise_cosines(vectors_NV: np.ndarray) -> np.ndarray:
    """The cosines of all pairs of rows that are not zero."""
    if not len(vectors_NV):
        return np.empty(0)
    norms_N = np.linalg.norm(vectors_NV, axis=1)
    used = norms_N > 0
    if used.sum() < 2:
        return np.empty(0)
    unit_NV = vectors_NV[used] / norms_N[used, None]
    cosines: np.ndarray = (unit_NV @ unit_NV.T)[np.triu_indices(len(unit_NV), 1)]
    return cosines


def smallest_row_cosine(one_NV: np.ndarray, other_NV: np.ndarray) -> float:
    """The smallest cosine of two vectors of the same text; two empty vectors are equal."""
    norms_N = np.linalg.norm(one_NV, axis=1) * np.linalg.norm(other_NV, axis=1)
    cosines_N = (one_NV * other_NV).sum(1) / np.maximum(norms_N, 1e-12)
    both_empty_N = ~one_NV.any(1) & ~other_NV.any(1)
    return float(np.where(both_empty_N, 1.0, cosines_N).min())


def mean_reciprocal_rank(queries_QV: sparse.csr_matrix, documents_DV: sparse.csr_matrix) -> float:
    """Mean reciprocal rank of the document in the row of the query; ties count as lost."""
    scores_QD = (queries_QV @ documents_DV.T).toarray()
    own_Q = scores_QD.diagonal()
    ranks_Q = (scores_QD >= own_Q[:, None]).sum(1)
    return float((1.0 / ranks_Q).mean())


def mean(values: np.ndarray) -> float:
    """The mean of the values, 0.0 when there are none."""
    return float(values.mean()) if len(values) else 0.0


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
        names = set(map(tokenizer.id_to_token, special_ids))
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
        return list(map(self.encoder.token_scores, self.passages))

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
