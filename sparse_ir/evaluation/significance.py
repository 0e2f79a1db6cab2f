"""Is a difference more than chance? Paired tests, their correction, and intervals, over the values
of queries.

Everything is a pure function of its numbers and a seed; what is measured, and on which queries, is
decided elsewhere.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from sparse_ir.errors import ConfigError, DataError

_EXACT_UP_TO = 16  # queries: 2^16 sign patterns
_CELLS = 2_000_000  # numbers drawn at a time


class Comparison(NamedTuple):
    """System B beside a baseline A on the same queries; differences are B - A."""

    queries: int
    baseline_mean: float
    mean: float
    difference: float
    low: float  # of the difference: bounds of the 95 % interval
    high: float
    p: float  # two-sided
    p_adjusted: float  # Holm over the systems compared with this baseline
    wins: int
    ties: int
    losses: int


def compare(
    baseline: Mapping[str, float],
    systems: Mapping[str, Mapping[str, float]],
    *,
    samples: int = 100_000,
    seed: int = 0,
) -> dict[str, Comparison]:
    """Each system against the baseline, by query; the p-values are adjusted for the number of
    systems.

    All values belong to the same queries, in any order. Raises ``DataError`` when a system has
    other queries than the baseline, when there are none, or when a value is no finite number.
    """
    differences = {name: _differences(name, baseline, values) for name, values in systems.items()}
    p_values = {
        name: randomization_test(found, samples=samples, seed=seed)
        for name, found in differences.items()
    }
    adjusted = dict(zip(p_values, holm(list(p_values.values())), strict=True))
    mean = math.fsum(baseline.values()) / max(len(baseline), 1)
    return {
        name: _describe(found, mean, p_values[name], adjusted[name], seed)
        for name, found in differences.items()
    }


def randomization_test(
    differences: Sequence[float] | np.ndarray, *, samples: int = 100_000, seed: int = 0
) -> float:
    """Two-sided p-value of paired differences under the hypothesis that the sign of each is chance.

    Fisher's randomization test: the share of sign patterns whose mean is as far from zero as the
    observed one. Up to 16 differences all patterns are counted; beyond, ``samples`` random ones and
    the observed one itself (so that p is never 0, and the test never too generous). No differences,
    or only zeros: 1.
    """
    values = _checked("difference", differences)
    values = values[values != 0.0]  # their sign changes nothing
    if not len(values):
        return 1.0
    observed = abs(values.sum())
    near = observed - 1e-12 * np.abs(values).sum()  # equal sums differ by rounding
    if len(values) <= _EXACT_UP_TO:
        free = len(values) - 1
        signs = np.array(
            list(itertools.product((1.0, -1.0), repeat=free)), dtype=np.float64
        ).reshape(2**free, free)
        # the mirror images are alike
        return float(np.mean(np.abs(values[0] + signs @ values[1:]) >= near))
    if samples < 1:
        raise ConfigError(f"{samples} samples are not allowed; draw at least 1")
    as_far = sum(
        int(np.count_nonzero(np.abs((2.0 * bits - 1.0) @ values) >= near))
        for bits in _draw(len(values), samples, seed)
    )
    return (as_far + 1) / (samples + 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values in the order given: step-down, so that the chance of any false alarm keeps
    its level.

    Source: Holm 1979, Scandinavian Journal of Statistics 6, 65-70.
    """
    order = sorted(range(len(p_values)), key=lambda position: p_values[position])
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, position in enumerate(order):
        largest = max(largest, min((len(order) - rank) * p_values[position], 1.0))
        adjusted[position] = largest
    return adjusted


def bootstrap_interval(
    values: Sequence[float] | np.ndarray,
    *,
    confidence: float = 0.95,
    samples: int = 10_000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean over queries.

    Percentiles, and not the bias-corrected form: for a mean of bounded values the two agree to the
    third digit, and this one is what readers can check by hand. Source: Efron and Tibshirani 1993,
    chapter 13. Raises ``DataError`` without values.
    """
    found = _checked("value", values)
    if not len(found):
        raise DataError("no values, so there is no mean; allowed: at least one query")
    if not 0 < confidence < 1 or samples < 1:
        raise ConfigError(
            f"confidence {confidence} with {samples} samples is not allowed; use 0 "
            "< confidence < 1 and "
            "at least 1 sample"
        )
    generator = np.random.default_rng(seed)
    size = max(_CELLS // len(found), 1)
    means = [
        found[generator.integers(len(found), size=(min(size, samples - start), len(found)))].mean(
            axis=1
        )
        for start in range(0, samples, size)
    ]
    low, high = np.quantile(np.concatenate(means), [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def _describe(
    differences: np.ndarray, baseline_mean: float, p: float, adjusted: float, seed: int
) -> Comparison:
    difference = float(differences.mean())
    low, high = bootstrap_interval(differences, seed=seed)
    wins, losses = int((differences > 0).sum()), int((differences < 0).sum())
    return Comparison(
        len(differences),
        baseline_mean,
        baseline_mean + difference,
        difference,
        low,
        high,
        p,
        adjusted,
        wins,
        len(differences) - wins - losses,
        losses,
    )


def _differences(
    name: str, baseline: Mapping[str, float], values: Mapping[str, float]
) -> np.ndarray:
    if not baseline:
        raise DataError("the baseline has no query; allowed: at least one")
    if others := sorted(baseline.keys() ^ values.keys()):
        raise DataError(
            f"{name}: {len(others)} queries are measured for one system only, such as "
            f"{others[0]!r}; "
            "allowed: the same queries on both sides"
        )
    pairs = [(values[query_id], baseline[query_id]) for query_id in sorted(baseline)]
    both = _checked(
        f"value of {name} or the baseline", [value for pair in pairs for value in pair]
    ).reshape(-1, 2)
    return both[:, 0] - both[:, 1]


def _checked(what: str, values: Sequence[float] | np.ndarray) -> np.ndarray:
    found = np.asarray(values, dtype=np.float64)
    if not np.isfinite(found).all():
        raise DataError(f"a {what} is {found[~np.isfinite(found)][0]}; allowed: finite numbers")
    return found


def _draw(width: int, samples: int, seed: int) -> Iterator[np.ndarray]:
    """Rows of random bits, ``samples`` of them in blocks."""
    generator = np.random.default_rng(seed)
    size = max(_CELLS // width, 1)
    for start in range(0, samples, size):
        yield generator.integers(2, size=(min(size, samples - start), width), dtype=np.int8).astype(
            np.float64
        )
