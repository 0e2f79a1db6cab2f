"""Brute-force search over impact matrices: the truth that every engine must equal, score for score.

No index and no approximation: one sparse product and a full sort by the tie rule of this package
(score descending, then doc_id descending, as trec_eval orders).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import sparse

from sparse_ir.errors import DataError


def search_exact(
    queries: sparse.csr_matrix, impacts: sparse.csr_matrix, doc_ids: Sequence[str], k: int
) -> list[list[tuple[str, int]]]:
    """The ``k`` best ``(doc_id, score)`` of each query row, best first; documents with score 0 are
    not hits.

    ``queries`` int ``(Q, V)``, ``impacts`` int ``(N, V)``; scores are exact integers (int64).
    """
    if queries.shape[1] != impacts.shape[1] or impacts.shape[0] != len(doc_ids):
        raise DataError(
            f"shapes do not fit: queries {queries.shape}, impacts {impacts.shape}, "
            f"{len(doc_ids)} doc_ids"
        )
    transposed = impacts.astype(np.int64).T.tocsr()
    return [_best((row @ transposed).tocsr(), doc_ids, k) for row in queries.astype(np.int64)]


def _best(scores: sparse.csr_matrix, doc_ids: Sequence[str], k: int) -> list[tuple[str, int]]:
    found = [
        (doc_ids[column], int(score))
        for column, score in zip(scores.indices, scores.data, strict=True)
        if score
    ]
    return sorted(found, key=lambda hit: (hit[1], hit[0]), reverse=True)[:k]
