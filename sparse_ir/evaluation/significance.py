"""Is a difference more than chance? Paired tests, their correction, and bootstrap intervals.

Everything is a pure function of its numbers and a seed. The caller decides what is measured, and on
which queries.

The interval is that of ``scipy.stats.bootstrap``. The randomization test is our own:
``scipy.stats.permutation_test`` takes three to six times as long for 300 to 3,500 differences and
10,000 samples, and its two-sided p-value doubles the smaller tail instead of counting both.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from sparse_ir.errors import ConfigError, DataError

_EXACT_UP_TO = 16  # differences: 2^16 sign patterns
_CELLS = 2_000_000  # numbers drawn at a time

Values = Sequence[float] | np.ndarray


class Comparison(NamedTuple):
    """A system beside a baseline on the same queries; differences are system - baseline."""

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
    """Each system against the baseline, by query, with p-values adjusted for their number.

    All values belong to the same queries, in any order. Raises ``DataError`` if a system has other
    queries than the baseline, if there are none, or if a value is not finite.
    """
    if not baseline:
        raise DataError("the baseline has no query; there must be at least one")
    differences = {}
    p_values = []
    query_ids = sorted(baseline)
    for name, values in systems.items():
        unpaired = sorted(baseline.keys() ^ values.keys())
        if unpaired:
            raise DataError(
                f"{name}: {len(unpaired)} queries are measured for one system only, such as "
                f"{unpaired[0]!r}; both systems must have the same queries"
            )
        what = f"value of {name} or the baseline"
        after = _check_finite(what, list(map(values.__getitem__, query_ids)))
        differences[name] = after - _check_finite(what, list(map(baseline.__getitem__, query_ids)))
        p_values.append(randomization_test(differences[name], samples=samples, seed=seed))
    adjusted = holm(p_values)
    baseline_mean = math.fsum(baseline.values()) / max(len(baseline), 1)
    comparisons = {}
    for position, (name, own) in enumerate(differences.items()):
        mean = float(own.mean())
        low, high = bootstrap_interval(own, seed=seed)
        wins = int((own > 0).sum())
        losses = int((own < 0).sum())
        comparisons[name] = Comparison(
            queries=len(own),
            baseline_mean=baseline_mean,
            mean=baseline_mean + mean,
            difference=mean,
            low=low,
            high=high,
            p=p_values[position],
            p_adjusted=adjusted[position],
            wins=wins,
            ties=len(own) - wins - losses,
            losses=losses,
        )
    return comparisons


def randomization_test(differences: Values, *, samples: int = 100_000, seed: int = 0) -> float:
    """Two-sided p-value of paired differences, if the sign of each were chance.

    Fisher's randomization test: the share of sign patterns whose mean is as far from zero as the
    observed one. Up to 16 differences, all patterns are counted. Beyond, these are ``samples``
    random ones and the observed one itself, so that p is never 0 and the test never too generous.
    Without differences, or with zeros only, p is 1.
    """
    values = _check_finite("difference", differences)
    values = values[values != 0.0]  # their sign changes nothing
    if not len(values):
        return 1.0
    # sums that are equal on paper differ by rounding
    threshold = abs(values.sum()) - 1e-12 * np.abs(values).sum()
    if len(values) <= _EXACT_UP_TO:
        # a pattern and its mirror image have the same distance, so the first sign stays
        patterns = np.array(list(itertools.product((1.0, -1.0), repeat=len(values) - 1)))
        sums = values[0] + patterns @ values[1:]
        return float(np.mean(np.abs(sums) >= threshold))
    if samples < 1:
        raise ConfigError(f"{samples} samples are not allowed; draw at least 1")
    as_far = 0
    generator = np.random.default_rng(seed)
    block = max(_CELLS // len(values), 1)
    for start in range(0, samples, block):
        size = (min(block, samples - start), len(values))
        signs = 2.0 * generator.integers(2, size=size, dtype=np.int8) - 1.0
        as_far += int(np.count_nonzero(np.abs(signs @ values) >= threshold))
    return (as_far + 1) / (samples + 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values in the order given, which control the chance of any false alarm.

    Step-down method of Holm 1979, Scandinavian Journal of Statistics 6, 65-70.
    """
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, position in enumerate(order):
        scaled = (len(order) - rank) * p_values[position]
        largest = max(largest, min(scaled, 1.0))
        adjusted[position] = largest
    return adjusted


def bootstrap_interval(
    values: Values, *, confidence: float = 0.95, samples: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean.

    Percentiles rather than the bias-corrected form: for a mean of bounded values the two agree to
    the third digit, and readers can check percentiles by hand. Source: Efron and Tibshirani 1993,
    chapter 13. Raises ``DataError`` without values.
    """
    import scipy.stats

    checked = _check_finite("value", values)
    if not len(checked):
        raise DataError("no values, so there is no mean; there must be at least one query")
    if not 0 < confidence < 1 or samples < 1:
        raise ConfigError(
            f"confidence {confidence} with {samples} samples is not allowed; use 0 < confidence "
            "< 1 and at least 1 sample"
        )
    if len(checked) == 1:  # scipy asks for two
        return float(checked[0]), float(checked[0])
    interval = scipy.stats.bootstrap(
        (checked,),
        np.mean,
        confidence_level=confidence,
        n_resamples=samples,
        batch=max(_CELLS // len(checked), 1),
        vectorized=True,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(interval.low), float(interval.high)


def _check_finite(what: str, values: Values) -> np.ndarray:
    checked = np.asarray(values, dtype=np.float64)
    is_finite = np.isfinite(checked)
    if not is_finite.all():
        raise DataError(f"a {what} is {checked[~is_finite][0]}; it must be a finite number")
    return checked
