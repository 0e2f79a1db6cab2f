"""In which order documents stand in an index: similar ones side by side, by recursive graph
bisection.

A search skips blocks of neighbouring postings whose largest impact cannot help; where similar
documents are neighbours, blocks are alike inside and more of them are skipped. Scores and rankings
do not depend on the order, because ties are broken by doc_id. Sources: Dhulipala et al.,
"Compressing Graphs and Indexes with Recursive Graph Bisection", KDD 2016; Mackenzie et al.,
"Tradeoff Options for Bipartite Graph Partitioning", TKDE 2022. It knows no Lucene.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy import sparse

from sparse_ir.indexing.vectors import Vectors

_LEAF = 64  # documents that stay as they are: half a block of Lucene's postings
_ITERATIONS = 20
_SETTLED = 500  # a half is settled when fewer than one in so many documents change sides
_SHARD_SIZE = 1024


class Reordered(Vectors):
    """The same vectors with their documents in another order; held in memory, 8 bytes a weight."""

    def __init__(self, source: Vectors, progress: Callable[[int], None] | None = None) -> None:
        self.folder, self.manifest, self.vocabulary = (
            source.folder,
            source.manifest,
            source.vocabulary,
        )
        shards = [source.read_shard(number) for number in range(source.num_shards)]
        doc_ids = [doc_id for found, _ in shards for doc_id in found]
        weights = (
            sparse.vstack([found for _, found in shards], format="csr")
            if shards
            else sparse.csr_matrix((0, 0))
        )
        del shards
        order = bisection_order(weights, progress)
        self._doc_ids, self._weights = [doc_ids[number] for number in order], weights[order]

    @property
    def num_shards(self) -> int:
        """Shards of another size than the source's."""
        return -(-len(self._doc_ids) // _SHARD_SIZE)

    def read_shard(self, number: int) -> tuple[list[str], sparse.csr_matrix]:
        """As ``Vectors.read_shard``."""
        part = slice(number * _SHARD_SIZE, (number + 1) * _SHARD_SIZE)
        return self._doc_ids[part], self._weights[part]


def bisection_order(
    rows: sparse.csr_matrix, progress: Callable[[int], None] | None = None
) -> np.ndarray:
    """Row numbers in their new order, int64 ``(N,)``: always the same one for the same rows.

    Only which terms a row has counts. The rows are cut in half so that each half shares terms, then
    each half again. ``progress(n)``: the places of n more rows are settled.
    """
    order = np.empty(rows.shape[0], np.int64)
    ones = np.ones(rows.nnz, np.float32)  # shared by all parts: a part costs 4 bytes a posting
    waiting = [(0, np.arange(rows.shape[0]), rows.indices, rows.indptr)]
    while waiting:
        start, numbers, indices, indptr = waiting.pop()
        if len(numbers) <= _LEAF:
            order[start : start + len(numbers)] = numbers
            if progress is not None:
                progress(len(numbers))
            continue
        part = _narrow(indices, indptr, ones)
        in_right = _bisect(part)
        for side, place in ((in_right, start + int((~in_right).sum())), (~in_right, start)):
            half = part[np.flatnonzero(side)]
            waiting.append((place, numbers[side], half.indices, half.indptr))
    return order


def _narrow(indices: np.ndarray, indptr: np.ndarray, ones: np.ndarray) -> sparse.csr_matrix:
    """A 0/1 matrix of the rows with only the columns that occur in them."""
    columns, narrowed = np.unique(indices, return_inverse=True)
    content = ones[: len(indices)], narrowed.astype(np.int32), indptr
    return sparse.csr_matrix(content, shape=(len(indptr) - 1, len(columns)), copy=False)


def _bisect(rows: sparse.csr_matrix) -> np.ndarray:
    """Which rows go to the right half, bool ``(N,)``, from a start with the halves as they stand.

    Each round sends every row to the side whose terms it shares more, ``sum_t log2((r_t + 1) / (l_t
    + 1))`` with the frequencies ``l``, ``r`` of its terms in the two halves: the gain of a move in
    Dhulipala et al. (eq. 3) to first order. The halves stay equal: the larger half of the sums goes
    to the right.
    """
    count = rows.shape[0]
    in_right = np.arange(count) >= count // 2
    transposed = rows.T
    total = transposed @ np.ones(count, np.float32)
    for _ in range(_ITERATIONS):
        right = transposed @ in_right.astype(np.float32)
        preference = rows @ np.log2((right + 1) / (total - right + 1))
        moved = np.zeros(count, bool)
        moved[np.argsort(preference, kind="stable")[count // 2 :]] = True
        changed = np.count_nonzero(moved != in_right)
        in_right = moved
        if changed <= max(2, count // _SETTLED):
            break
    return in_right
