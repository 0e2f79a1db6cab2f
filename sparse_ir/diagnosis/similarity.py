"""Cosines and ranks of the vectors of some texts.

Dimensions: N texts, V vocabulary, Q queries, D documents.
"""

from __future__ import annotations

import numpy as np
from scipy import sparse


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
