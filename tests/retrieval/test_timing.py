"""Timing: what is counted, in which order the systems take turns, and Pyserini's searchers as
systems.
"""

from __future__ import annotations

import time

import numpy as np
import pytest

from sparse_ir.errors import ConfigError
from sparse_ir.retrieval import timing
from sparse_ir.retrieval.timing import Search

TEXTS = [f"q{number}" for number in range(50)]


def sleeper(milliseconds: float) -> Search:
    def search(text: str) -> list[tuple[str, float]]:
        time.sleep(milliseconds / 1000)
        return [(text, 1.0)]

    return search


def test_each_system_answers_each_text_in_each_round_in_rotating_blocks():
    asked: list[tuple[str, str]] = []
    systems = {name: lambda text, name=name: asked.append((name, text)) or [] for name in "abc"}
    found = timing.time_queries(systems, TEXTS, rounds=2, warm_up=1)
    assert {name: seconds.shape for name, seconds in found.items()} == dict.fromkeys("abc", (2, 50))
    assert all((seconds > 0).all() for seconds in found.values())
    for name in "abc":
        assert [text for who, text in asked if who == name] == TEXTS * 3
    firsts = [name for name, text in asked if text == "q0"][::3]
    # in each of the three rounds another system comes first
    assert sorted(firsts) == ["a", "b", "c"]


def test_percentiles_ascend_and_are_at_least_the_sleep():
    seconds = timing.time_queries({"fast": sleeper(2)}, TEXTS[:20], rounds=3)
    fast = timing.summarize(seconds["fast"])
    assert 2 <= fast.p50 <= fast.p95 <= fast.p99 <= fast.worst * 1.0001


def test_summary_is_over_queries_of_each_querys_median():
    """One slow round is no slow query; a query that is slow each time is."""
    seconds = np.full((5, 100), 0.001)
    seconds[0] = 1.0  # the machine was busy
    seconds[:, 7] = 0.5
    assert timing.summarize(seconds).p50 == pytest.approx(1.0)
    assert timing.summarize(seconds).p99 > 1.0
    assert timing.summarize(seconds).worst == pytest.approx(1000.0)


@pytest.mark.parametrize(
    ("systems", "texts", "rounds"),
    [({}, TEXTS, 1), ({"s": sleeper(0)}, [], 1), ({"s": sleeper(0)}, TEXTS, 0)],
)
def test_nothing_to_time_is_an_error(systems, texts, rounds):
    with pytest.raises(ConfigError, match="nothing to time"):
        timing.time_queries(systems, texts, rounds=rounds)
