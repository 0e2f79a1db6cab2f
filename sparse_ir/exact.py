"""Brute-force search over impact matrices: the truth that every engine must equal, score for score.

No index and no approximation: one sparse product and a full sort by the tie rule of this package (score descending,
then doc_id descending, as trec_eval orders). Next file to read: ``measures``.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import sparse

from sparse_ir.errors import DataError


def search_exact(
    queries: sparse.csr_matrix, impacts: sparse.csr_matrix, doc_ids: Sequence[str], k: int
) -> list[list[tuple[str, int]]]:
    """The ``k`` best ``(doc_id, score)`` of each query row, best first; documents with score 0 are not hits.

    ``queries`` int ``(Q, V)``, ``impacts`` int ``(N, V)``; scores are exact integers (int64).
    """
    if queries.shape[1] != impacts.shape[1] or impacts.shape[0] != len(doc_ids):
        raise DataError(f"shapes do not fit: queries {queries.shape}, impacts {impacts.shape}, {len(doc_ids)} doc_ids")
    transposed = impacts.astype(np.int64).T.tocsr()
    return [_best((row @ transposed).tocsr(), doc_ids, k) for row in queries.astype(np.int64)]


def order_hits(doc_ids: Sequence[str], scores: Sequence[float], k: int) -> list[int]:
    """Positions of the ``k`` best hits under the tie rule: score descending, then doc_id descending."""
    return sorted(range(len(doc_ids)), key=lambda i: (scores[i], doc_ids[i]), reverse=True)[:k]


def _best(scores: sparse.csr_matrix, doc_ids: Sequence[str], k: int) -> list[tuple[str, int]]:
    found = [(doc_ids[column], int(score)) for column, score in zip(scores.indices, scores.data, strict=True) if score]
    order = order_hits([doc_id for doc_id, _ in found], [score for _, score in found], k)
    return [found[position] for position in order]
