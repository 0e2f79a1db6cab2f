"""Systems compared with a baseline over one or several data sets, each of which counts alike.

A data set comes as *strata*: the forums of CQADupStack, or the whole set. Every stratum of a data
set counts alike, however many queries it has, and so does every data set. The interval and the test
use the same weights as the mean.
"""

from __future__ import annotations

import dataclasses
import math
import operator
from collections.abc import Mapping, Sequence

from sparse_ir.benchmark.rows import Row
from sparse_ir.evaluation import significance

SAMPLES = 20_000  # sign patterns of the randomization test

Values = Mapping[str, float]  # query_id -> value
Stratum = Mapping[str, Values]  # system -> values


@dataclasses.dataclass(frozen=True)
class Standing:
    """The interval of a system's mean, and how the mean differs from that of the baseline.

    All fields after ``high`` are None for the baseline itself, and without a baseline.
    """

    low: float  # bounds of the 95 % interval
    high: float
    delta: float | None = None
    delta_low: float | None = None  # bounds of the 95 % interval
    delta_high: float | None = None
    p: float | None = None
    p_adjusted: float | None = None  # Holm over the systems
    wins: int | None = None  # queries
    ties: int | None = None
    losses: int | None = None

    def verdict(self, level: float) -> int:
        """1: better than the baseline; -1: worse; 0: not known to differ at this level."""
        if self.p_adjusted is None or self.p_adjusted >= level or not self.delta:
            return 0
        if self.delta > 0:
            return 1
        return -1


def split_into_strata(rows: Mapping[str, Row], measure: str) -> Sequence[Stratum]:
    """The values of a data set's rows (by system), one stratum for each part of the data set."""
    any_row = next(iter(rows.values()))
    strata = []
    for prefix in any_row.parts:
        stratum: dict[str, dict[str, float]] = {}
        for system, row in rows.items():
            stratum[system] = {}
            for query_id, value in row.per_query[measure].items():
                if query_id.startswith(prefix):
                    stratum[system][query_id] = value
        strata.append(stratum)
    return strata


def compare_systems(datasets: Sequence[Sequence[Stratum]], baseline: str) -> dict[str, Standing]:
    """System -> its standing over the data sets, all of which have the same systems."""
    strata = []
    shares = []
    for dataset in datasets:
        for stratum in dataset:
            strata.append(stratum)
            shares.append(1 / (len(datasets) * len(dataset)))
    pooled = {}
    for system in strata[0]:
        pooled[system] = pool(list(map(operator.itemgetter(system), strata)), shares)
    tests: dict[str, significance.Comparison] = {}
    if baseline in pooled and len(pooled) > 1:
        others = dict(pooled)
        del others[baseline]
        tests = significance.compare(pooled[baseline], others, samples=SAMPLES)
    standings = {}
    for system in pooled:
        values = [list(stratum[system].values()) for stratum in strata]
        low, high = _weighted_interval(values, shares)
        standings[system] = Standing(low, high)
        if system not in tests:
            continue
        differences = []
        for stratum in strata:
            pairs = stratum[system].items()
            differences.append([value - stratum[baseline][query_id] for query_id, value in pairs])
        test = tests[system]
        delta_low, delta_high = _weighted_interval(differences, shares)
        standings[system] = Standing(
            low=low,
            high=high,
            delta=test.difference,
            delta_low=delta_low,
            delta_high=delta_high,
            p=test.p,
            p_adjusted=test.p_adjusted,
            wins=test.wins,
            ties=test.ties,
            losses=test.losses,
        )
    return standings


def pool(strata: Sequence[Values], shares: Sequence[float]) -> dict[str, float]:
    """All queries of several strata in one set whose plain mean is the weighted mean.

    A stratum with ``n`` of all ``N`` queries and share ``s`` has each value multiplied by
    ``s * N / n``. The mean over all ``N`` products is the sum of the strata's means, each times its
    share.
    """
    total = sum(map(len, strata))
    pooled = {}
    for number, values in enumerate(strata):
        weight = total * shares[number] / len(values)
        for query_id, value in values.items():
            pooled[f"{number}/{query_id}"] = value * weight
    return pooled


def _weighted_interval(
    strata: Sequence[Sequence[float]], shares: Sequence[float]
) -> tuple[float, float]:
    """Bootstrap interval of the sum of the strata's means, each times its share.

    The strata are fixed and only their queries are drawn. Each value therefore enters by its
    distance from the mean of its stratum, with the weight that ``pool`` gives it. The variance of
    the overall mean is then that of drawing within each stratum.
    """
    total = sum(map(len, strata))
    means = [math.fsum(values) / len(values) for values in strata]
    center = math.fsum(map(operator.mul, means, shares))
    shifted = []
    for values, mean, share in zip(strata, means, shares, strict=True):
        weight = total * share / len(values)
        for value in values:
            shifted.append(center + (value - mean) * weight)
    return significance.bootstrap_interval(shifted)
