"""How long searches take: several systems answer the same queries in turn.

The machine's speed drifts, so systems take turns in blocks of queries, and each query counts with
the median over all rounds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from sparse_ir.errors import ConfigError

Search = Callable[[str], list[tuple[str, float]]]  # text -> (doc_id, score) pairs
Clock = Callable[[], float]  # seconds

_BLOCK = 20  # queries of one system before the next has its turn


class Latency(NamedTuple):
    """Milliseconds of one system: percentiles over queries of each query's median over rounds."""

    p50: float
    p95: float
    p99: float
    worst: float  # 99th percentile of all single measurements, pauses of the machine included


def time_queries(
    systems: Mapping[str, Search],
    texts: Sequence[str],
    *,
    rounds: int = 5,
    warm_up: int = 1,
    clock: Clock = time.perf_counter,
) -> dict[str, np.ndarray]:
    """Seconds of each query, float64 ``(rounds, Q)``, for each system.

    ``warm_up`` rounds come first and are not counted. ``clock``: on a busy machine
    ``time.thread_time`` counts what the calling thread did, without what others did meanwhile.
    """
    check_systems(systems, texts, rounds)
    names = list(systems)
    seconds = {name: np.zeros((warm_up + rounds, len(texts))) for name in names}
    starts = range(0, len(texts), _BLOCK)
    for number in range(warm_up + rounds):
        for turn, start in enumerate(starts):
            block = range(start, min(start + _BLOCK, len(texts)))
            for name in rotated(names, number + turn):
                _time_block(systems[name], texts, block, seconds[name][number], clock)
    return {name: measured[warm_up:] for name, measured in seconds.items()}


def summarize(seconds: np.ndarray) -> Latency:
    """Percentiles in milliseconds of what ``time_queries`` measured, ``(rounds, Q)``."""
    medians = np.median(seconds, axis=0)
    p50, p95, p99 = 1000 * np.percentile(medians, (50, 95, 99))
    worst = 1000 * np.percentile(seconds, 99)
    return Latency(float(p50), float(p95), float(p99), float(worst))


def check_systems(systems: Mapping[str, Search], texts: Sequence[str], rounds: int) -> None:
    """Raise ``ConfigError`` when there is nothing to time."""
    if not systems or not texts or rounds < 1:
        raise ConfigError(
            f"nothing to time: {len(systems)} systems, {len(texts)} queries, {rounds} rounds; "
            "there must be at least 1 of each"
        )


def rotated(names: Sequence[str], turn: int) -> list[str]:
    """The names, beginning with another one each turn."""
    first = turn % len(names)
    return [*names[first:], *names[:first]]


def _time_block(
    search: Search, texts: Sequence[str], block: range, seconds: np.ndarray, clock: Clock
) -> None:
    for position in block:
        text = texts[position]
        begun = clock()
        search(text)
        seconds[position] = clock() - begun
