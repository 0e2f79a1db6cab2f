"""Weights to integer impacts: the rule, its error bound, and an account of what it changed.

Engines store whole numbers, so every float weight is multiplied by a scale and rounded. The rule is
stored with the index, and both sides of a search use it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
from scipy import sparse

from sparse_ir.engines.base import LARGEST_IMPACT
from sparse_ir.errors import ConfigError, DataError


@dataclass(frozen=True)
class Rule:
    """``impact = min(rint(weight * scale), max_impact)``, halves to even; 0 is not stored.

    Error bound: a weight of at most ``max_impact / scale`` is kept to within ``0.5 / scale``;
    larger weights are clipped and counted.

    ``folded``: the document weights were multiplied by the static query weights, such as IDF,
    before rounding. Every query term then has weight 1: ``sum_t q_t d_t = sum_t 1 * (q_t d_t)``.
    """

    scale: float = 100.0
    max_impact: int = LARGEST_IMPACT
    folded: bool = False

    def __post_init__(self) -> None:
        if not (np.isfinite(self.scale) and self.scale > 0):
            raise ConfigError(f"scale is {self.scale}; it must be a positive number")
        if not 1 <= self.max_impact <= LARGEST_IMPACT:
            raise ConfigError(
                f"the largest impact is {self.max_impact}; it must lie in 1 to {LARGEST_IMPACT}"
            )

    def to_json(self) -> dict[str, Any]:
        """The rule as a manifest records it."""
        return {**asdict(self), "rounding": "half-even"}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Rule:
        """The rule that ``to_json`` wrote; ``ConfigError`` for an unknown rounding."""
        if value.get("rounding") != "half-even":
            raise ConfigError(
                f"rounding {value.get('rounding')!r} is unknown; this version knows 'half-even'"
            )
        return cls(float(value["scale"]), int(value["max_impact"]), bool(value["folded"]))


def rule_from_range(largest_weight: float, bits: int, *, folded: bool = False) -> Rule:
    """The rule that spreads weights up to ``largest_weight`` over ``bits`` bits, clipping none."""
    if not 2 <= bits <= 16:
        raise ConfigError(f"bits is {bits}; it must be 2 to 16")
    top = 2**bits - 1
    scale = top / largest_weight if largest_weight > 0 else 1.0
    return Rule(scale, top, folded)


class Quantized(NamedTuple):
    """Impacts, and what the rule changed on the way."""

    impacts: sparse.csr_matrix  # int32 (N, V), all stored values >= 1
    num_zeroed: int  # weights that rounded to zero
    num_clipped: int  # weights above max_impact / scale


def quantize(
    weights: sparse.csr_matrix, rule: Rule, query_weights: np.ndarray | None = None
) -> Quantized:
    """Integer impacts of float weights ``(N, V)``; the input is not modified.

    ``query_weights`` float ``(V,)`` are multiplied in before rounding; they are required if and
    only if ``rule.folded``. A term with query weight 0 cannot score: it is dropped and not counted
    as zeroed. Raises ``DataError`` for NaN, infinite and negative weights.
    """
    if (query_weights is not None) != rule.folded:
        raise ConfigError(
            "a folded rule needs the query weights, and only a folded rule takes them"
        )
    check_weights(weights.data)
    values = weights.data.astype(np.float64)
    if query_weights is not None:
        values = values * query_weights.astype(np.float64)[weights.indices]
    rounded = np.rint(values * rule.scale)
    clipped = np.minimum(rounded, rule.max_impact).astype(np.int32)
    parts = (clipped, weights.indices.copy(), weights.indptr.copy())
    impacts = sparse.csr_matrix(parts, shape=weights.shape)
    impacts.eliminate_zeros()
    num_zeroed = int(((rounded == 0) & (values > 0)).sum())
    num_clipped = int((rounded > rule.max_impact).sum())
    return Quantized(impacts, num_zeroed, num_clipped)


def quantize_query(
    token_ids: np.ndarray, weights: np.ndarray, rule: Rule
) -> tuple[np.ndarray, np.ndarray]:
    """Query terms under the rule of an index: ``(token_ids, impacts)``, int32, without zeros.

    Under a folded rule every term with a positive weight counts 1; otherwise weights are scaled and
    rounded like document weights.
    """
    check_weights(weights)
    if rule.folded:
        impacts = (weights > 0).astype(np.int32)
    else:
        rounded = np.rint(weights.astype(np.float64) * rule.scale)
        impacts = np.minimum(rounded, rule.max_impact).astype(np.int32)
    kept = impacts > 0
    return token_ids[kept], impacts[kept]


def check_weights(weights: np.ndarray) -> None:
    """Raise ``DataError`` when a weight is NaN, infinite or negative."""
    if len(weights) and weights.min() >= 0 and weights.max() < np.inf:  # false where one is NaN
        return
    for name, bad in (("not a finite number", ~np.isfinite(weights)), ("negative", weights < 0)):
        if bad.any():
            raise DataError(
                f"weight {weights[bad.argmax()]} is {name}; weights must be finite and at least 0"
            )
