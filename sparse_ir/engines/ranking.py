"""The tie rule of this package: score descending, then doc_id descending, as trec_eval sorts."""

from __future__ import annotations

import bisect
import itertools
import operator
from collections.abc import Sequence

import numpy as np

from sparse_ir.engines.base import EngineHits, FindIds


def order_hits(
    numbers: Sequence[int],
    scores: Sequence[float],
    k: int,
    find_ids: FindIds,
    dtype: type[np.floating],
) -> EngineHits:
    """The first ``k`` hits by the tie rule; ``scores`` must be descending and hold every tie.

    It works on lists: for ten hits, and for a thousand, they are faster than numpy arrays.
    """
    end = len(scores)
    if len(scores) > k:
        end = bisect.bisect_right(scores, -scores[k - 1], key=operator.neg)
    doc_ids = find_ids(numbers[:end])
    kept = scores[:end]
    ordered = list(numbers[:end])
    if len(set(kept)) < end:
        _sort_ties(doc_ids, ordered, kept)
    return EngineHits(doc_ids[:k], np.array(kept[:k], dtype=dtype), ordered[:k])


def _sort_ties(doc_ids: list[str], numbers: list[int], scores: Sequence[float]) -> None:
    """Sort the doc_ids of equal scores in place, descending, and their numbers with them."""
    end = 0
    for _, group in itertools.groupby(scores):
        start = end
        end += len(list(group))
        if end - start > 1:
            pairs = sorted(zip(doc_ids[start:end], numbers[start:end], strict=True), reverse=True)
            doc_ids[start:end] = [doc_id for doc_id, _ in pairs]
            numbers[start:end] = [number for _, number in pairs]
