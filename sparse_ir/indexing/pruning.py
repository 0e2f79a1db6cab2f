"""Static pruning: documents give up their light terms once and for all when the index is built, and
it is counted.

A smaller index is a faster one for every query, and each posting that is gone may cost
effectiveness; ``price`` says how much. Pruning works on impacts, that is on what a term can add to
a score, folded query weights included. It is a pure function of a matrix and knows no files.
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
    """What a document keeps; each condition looks at the whole document, and a posting that fails
    one is dropped.

    ``terms``: at most so many, the heaviest (equal ones by ascending token id). ``min_impact``:
    only impacts of at least this. ``mass``: the heaviest terms that together hold this share of the
    document's sum of impacts.
    """

    terms: int | None = None
    min_impact: int = 1
    mass: float = 1.0

    def __post_init__(self) -> None:
        if self.terms is not None and self.terms < 1:
            raise ConfigError(
                f"pruning to {self.terms} terms of a document is not allowed; keep at least 1"
            )
        if not 1 <= self.min_impact <= LARGEST_IMPACT:
            raise ConfigError(
                f"a smallest impact of {self.min_impact} is not allowed; use 1 to {LARGEST_IMPACT}"
            )
        if not 0 < self.mass <= 1:
            raise ConfigError(
                f"a mass of {self.mass} is not allowed; keep a share above 0 and up "
                "to 1 of the impacts"
            )

    def __bool__(self) -> bool:
        """False when nothing is ever dropped."""
        return self != Pruning()

    def to_json(self) -> dict[str, Any]:
        """The setting as it stands in a manifest."""
        return asdict(self)


class Pruned(NamedTuple):
    """Impacts, and what was dropped on the way."""

    impacts: sparse.csr_matrix  # int32 (N, V)
    num_postings: int  # dropped postings
    sum_impacts: int  # of the dropped postings


def prune(impacts: sparse.csr_matrix, pruning: Pruning) -> Pruned:
    """The postings that ``pruning`` keeps of impacts int32 ``(N, V)``, all of them at least 1; the
    input stays.

    Only ``min_impact`` can empty a document: of the other conditions each keeps the heaviest term.
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
    left = sparse.csr_matrix(
        (impacts.data[kept], impacts.indices[kept], bounds), shape=impacts.shape
    )
    return Pruned(
        left,
        int(impacts.nnz - left.nnz),
        int(impacts.data.sum(dtype=np.int64) - left.data.sum(dtype=np.int64)),
    )


def _kept_in_order(
    values: np.ndarray, bounds: np.ndarray, lengths: np.ndarray, pruning: Pruning
) -> np.ndarray:
    """Which of the impacts stay, given row by row and within a row the heaviest first: bool, as
    long as ``values``.
    """
    summed = np.concatenate([[0], np.cumsum(values)])
    # what stands before it in its row
    heavier = summed[:-1] - np.repeat(summed[bounds[:-1]], lengths)
    totals = np.repeat(np.diff(summed[bounds]), lengths)
    kept = (values >= pruning.min_impact) & (heavier < pruning.mass * totals)
    if pruning.terms is not None:
        kept &= np.arange(len(values)) - np.repeat(bounds[:-1], lengths) < pruning.terms
    return kept
