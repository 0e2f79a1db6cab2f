"""Static pruning: documents lose their light terms when the index is built, and each is counted.

A smaller index is faster for every query, but each missing posting may cost effectiveness. Pruning
works on impacts, that is, on what a term can add to a score, folded query weights included.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
from scipy import sparse

from sparse_ir.engines.base import LARGEST_IMPACT
from sparse_ir.errors import ConfigError


@dataclass(frozen=True)
class Pruning:
    """What a document keeps; a posting that fails one of the conditions is dropped.

    ``terms``: at most this number, the heaviest (equal ones by ascending token id).
    ``min_impact``: only impacts of at least this.
    ``mass``: the heaviest terms that together hold this share of the document's sum of impacts.
    """

    terms: int | None = None
    min_impact: int = 1
    mass: float = 1.0

    def __post_init__(self) -> None:
        if self.terms is not None and self.terms < 1:
            raise ConfigError(f"pruning keeps {self.terms} terms; it must keep at least 1")
        if not 1 <= self.min_impact <= LARGEST_IMPACT:
            raise ConfigError(
                f"the smallest impact is {self.min_impact}; it must be 1 to {LARGEST_IMPACT}"
            )
        if not 0 < self.mass <= 1:
            raise ConfigError(
                f"the mass to keep is {self.mass}; it must be a share above 0 and up to 1"
            )

    def __bool__(self) -> bool:
        """False when nothing is ever dropped."""
        return self != Pruning()

    def to_json(self) -> dict[str, Any]:
        """The setting as a manifest records it."""
        return asdict(self)


class Pruned(NamedTuple):
    """Impacts, and what was dropped on the way."""

    impacts: sparse.csr_matrix  # int32 (N, V)
    num_postings: int  # dropped postings
    sum_impacts: int  # of the dropped postings


def prune(impacts: sparse.csr_matrix, pruning: Pruning) -> Pruned:
    """The postings that are kept of impacts int32 ``(N, V)``, each at least 1.

    The input is not modified. Only ``min_impact`` can empty a document: the other conditions keep
    its heaviest term.
    """
    if not pruning:
        return Pruned(impacts, 0, 0)
    lengths = np.diff(impacts.indptr)
    rows = np.repeat(np.arange(impacts.shape[0]), lengths)
    order = np.lexsort((impacts.indices, -impacts.data, rows))  # within each row the heaviest first
    kept = np.zeros(impacts.nnz, dtype=bool)
    kept[order] = _kept_in_order(
        impacts.data[order].astype(np.int64), impacts.indptr, lengths, pruning
    )
    bounds = np.concatenate([[0], np.cumsum(kept)])[impacts.indptr]
    parts = (impacts.data[kept], impacts.indices[kept], bounds)
    left = sparse.csr_matrix(parts, shape=impacts.shape)
    sum_dropped = impacts.data.sum(dtype=np.int64) - left.data.sum(dtype=np.int64)
    return Pruned(left, int(impacts.nnz - left.nnz), int(sum_dropped))


def _kept_in_order(
    values: np.ndarray, bounds: np.ndarray, lengths: np.ndarray, pruning: Pruning
) -> np.ndarray:
    """Which impacts stay, bool; they come row by row, the heaviest of a row first."""
    summed = np.concatenate([[0], np.cumsum(values)])
    # the sum of the heavier impacts of the same row
    heavier = summed[:-1] - np.repeat(summed[bounds[:-1]], lengths)
    totals = np.repeat(np.diff(summed[bounds]), lengths)
    kept: np.ndarray = (values >= pruning.min_impact) & (heavier < pruning.mass * totals)
    if pruning.terms is not None:
        kept &= np.arange(len(values)) - np.repeat(bounds[:-1], lengths) < pruning.terms
    return kept
