"""Tests of significance: by hand, beside scipy, and on simulated worlds whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from sparse_ir.errors import ConfigError, DataError
from sparse_ir.evaluation import significance
from sparse_ir.evaluation.significance import bootstrap_interval, compare, holm, randomization_test


@pytest.mark.parametrize(
    ("differences", "expected"),
    [
        ([1.0, 1.0, 1.0], 2 / 8),  # only +++ and --- are as far from zero
        (
            [1.0, 2.0, -1.0],
            6 / 8,
        ),  # sums 4, 2, 0, 2 and their mirror images: 2 or more in six of eight
        ([0.0, 0.0, 0.5], 1.0),  # one difference has no other pattern than its mirror
        (
            [0.1, 0.2, 0.3, 0.0],
            2 / 8,
        ),  # zeros do not count, and 0.1 + 0.2 + 0.3 is as far as itself
        ([], 1.0),
        ([0.0, 0.0], 1.0),
    ],
)
def test_small_samples_are_counted_out(differences, expected):
    assert randomization_test(differences) == expected


@pytest.mark.parametrize("count", [9, 60])
def test_the_p_value_is_that_of_scipy(count):
    differences = np.random.default_rng(count).normal(0.25, 1.0, count)
    reference = scipy.stats.permutation_test(
        (differences,),
        np.mean,
        permutation_type="samples",
        n_resamples=100_000,
        rng=np.random.default_rng(1),
        alternative="two-sided",
    )
    assert randomization_test(differences) == pytest.approx(reference.pvalue, abs=0.004)


def test_a_sampled_p_value_is_never_zero_and_depends_on_the_seed_alone():
    differences = np.linspace(0.1, 1.0, 40)
    assert randomization_test(differences, samples=999) == 1 / 1000
    mixed = np.random.default_rng(5).normal(0.1, 1.0, 40)
    assert randomization_test(mixed, samples=999, seed=1) == randomization_test(
        mixed, samples=999, seed=1
    )
    assert randomization_test(mixed, samples=999, seed=1) != randomization_test(
        mixed, samples=999, seed=2
    )


def test_five_percent_of_nulls_are_false_alarms():
    generator = np.random.default_rng(7)
    differences = generator.normal(size=(1500, 30)) * generator.choice(
        [0.0, 0.2, 1.0], size=(1500, 30)
    )
    alarms = np.mean(
        [
            randomization_test(row, samples=400, seed=number) < 0.05
            for number, row in enumerate(differences)
        ]
    )
    assert 0.035 < alarms < 0.065


def test_holm_keeps_the_chance_of_any_false_alarm_among_several_systems():
    generator = np.random.default_rng(17)
    alarms = []
    for number in range(400):
        p_values = [
            randomization_test(row, samples=400, seed=number)
            for row in generator.normal(size=(4, 25))
        ]
        alarms.append((min(p_values) < 0.05, min(holm(p_values)) < 0.05))
    without, corrected = np.mean(alarms, axis=0)
    assert without > 0.14  # 1 - .95^4 = .185
    assert 0.02 < corrected < 0.075


def test_holm_by_hand_and_against_its_definition():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.5]) == [1.0, 1.0]
    assert holm([]) == []
    values = np.random.default_rng(3).random(20)
    order = np.argsort(values)
    expected = np.minimum(np.maximum.accumulate(values[order] * np.arange(20, 0, -1)), 1.0)
    assert np.array(holm(values.tolist()))[order] == pytest.approx(expected)


def test_the_interval_is_that_of_scipy():
    values = np.random.default_rng(11).beta(0.5, 0.8, 120)
    reference = scipy.stats.bootstrap(
        (values,), np.mean, method="percentile", n_resamples=10_000, rng=np.random.default_rng(0)
    ).confidence_interval
    assert bootstrap_interval(values) == pytest.approx((reference.low, reference.high), abs=0.004)


def test_the_interval_covers_the_true_mean():
    generator = np.random.default_rng(13)
    worlds = generator.beta(0.5, 0.5, size=(400, 50))
    found = [
        bootstrap_interval(values, samples=500, seed=number) for number, values in enumerate(worlds)
    ]
    assert 0.91 < np.mean([low <= 0.5 <= high for low, high in found]) < 0.98


def test_systems_beside_a_baseline():
    baseline = {"q1": 0.5, "q2": 0.5, "q3": 0.5, "q4": 0.0}
    systems = {"better": {"q4": 0.2, "q3": 0.6, "q2": 0.6, "q1": 0.6}, "same": dict(baseline)}
    found = compare(baseline, systems)
    better, same = found["better"], found["same"]
    assert (better.queries, better.wins, better.ties, better.losses) == (4, 4, 0, 0)
    assert (better.baseline_mean, better.mean) == pytest.approx((0.375, 0.5))
    assert better.difference == pytest.approx(0.125)
    assert 0.0999 <= better.low <= better.difference <= better.high <= 0.2
    assert (better.p, better.p_adjusted) == pytest.approx((2 / 16, 4 / 16))
    assert same == (4, 0.375, 0.375, 0.0, 0.0, 0.0, 1.0, 1.0, 0, 4, 0)


def test_blocks_change_nothing(monkeypatch):
    values = np.random.default_rng(2).normal(size=50)
    before = randomization_test(values, samples=1000), bootstrap_interval(values, samples=1000)
    monkeypatch.setattr(significance, "_CELLS", 50 * 64)
    after = randomization_test(values, samples=1000), bootstrap_interval(values, samples=1000)
    assert after[0] == pytest.approx(before[0], abs=0.05)
    assert after[1] == pytest.approx(before[1], abs=0.05)


@pytest.mark.parametrize(
    ("systems", "message"),
    [
        ({"b": {"q1": 1.0}}, "b: 1 queries are measured for one system only, such as 'q2'"),
        (
            {"b": {"q1": 1.0, "q2": float("nan")}},
            "a value of b or the baseline is nan; it must be a finite number",
        ),
    ],
)
def test_values_that_cannot_be_compared(systems, message):
    with pytest.raises(DataError, match=message):
        compare({"q1": 0.1, "q2": 0.2}, systems)


def test_nothing_to_compare_and_options_out_of_range():
    with pytest.raises(DataError, match="the baseline has no query"):
        compare({}, {"b": {}})
    with pytest.raises(DataError, match="no values, so there is no mean"):
        bootstrap_interval([])
    with pytest.raises(ConfigError, match=r"confidence 1\.5 with 10 samples"):
        bootstrap_interval([0.1], confidence=1.5, samples=10)
    with pytest.raises(ConfigError, match="0 samples are not allowed"):
        randomization_test(np.ones(20), samples=0)
