"""Fair timing of search systems side by side: seconds from a query's text to its list of ``(doc_id,
score)``.

A system is a function. All systems answer the same texts in one process, in turn, in blocks of a
few texts and in an order that rotates, so that a busy machine is busy for all of them; only ratios
to a baseline mean anything elsewhere. Beside any system of ours stand Pyserini's two searchers,
driven as their users do.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sparse_ir.engines.lucene import java, parts
from sparse_ir.errors import ConfigError

Search = Callable[[str], Sequence[tuple[str, float]]]
# texts that one system answers before the next has its turn: enough to find its own caches warm
_BLOCK = 20


class Latency(NamedTuple):
    """Milliseconds of one system: percentiles over queries of each query's
    median over the rounds.
    """

    p50: float
    p95: float
    p99: float
    worst: float  # 99th percentile of all single measurements, pauses of the machine included


def time_queries(
    systems: Mapping[str, Search], texts: Sequence[str], *, rounds: int = 5, warm_up: int = 1
) -> dict[str, np.ndarray]:
    """Seconds of each query, float64 ``(rounds, Q)``, for each system; ``warm_up`` rounds before
    are not counted.
    """
    _check(systems, texts, rounds)
    names = list(systems)
    seconds = {name: np.zeros((warm_up + rounds, len(texts))) for name in names}
    blocks = [
        range(start, min(start + _BLOCK, len(texts))) for start in range(0, len(texts), _BLOCK)
    ]
    for number in range(warm_up + rounds):
        for turn, block in enumerate(blocks):
            for name in _rotated(names, number + turn):
                _time_block(systems[name], texts, block, seconds[name][number])
    return {name: found[warm_up:] for name, found in seconds.items()}


def measure_throughput(
    systems: Mapping[str, Search], texts: Sequence[str], *, threads: int = 1, rounds: int = 5
) -> dict[str, np.ndarray]:
    """Queries per second with ``threads`` callers at once, float64 ``(rounds,)``; each round
    answers all texts.
    """
    _check(systems, texts, rounds)
    if threads < 1:
        raise ConfigError(f"{threads} threads are not allowed; use at least 1")
    names = list(systems)
    found = {name: np.zeros(rounds) for name in names}
    for number in range(rounds):
        for name in _rotated(names, number):
            tasks = [
                functools.partial(_answer, systems[name], texts[start::threads])
                for start in range(threads)
            ]
            begun = time.perf_counter()
            parts.run_threads(tasks)
            found[name][number] = len(texts) / (time.perf_counter() - begun)
    return found


def summarize(seconds: np.ndarray) -> Latency:
    """Percentiles in milliseconds of what ``time_queries`` measured for one system, ``(rounds,
    Q)``.
    """
    usual = np.percentile(np.median(seconds, axis=0), (50, 95, 99))
    return Latency(*map(float, 1000 * np.append(usual, np.percentile(seconds, 99))))


def ratios(seconds: Mapping[str, np.ndarray], baseline: str) -> dict[str, Latency]:
    """Each system's percentiles divided by those of the baseline."""
    base = summarize(seconds[baseline])
    return {
        name: Latency(*(ours / theirs for ours, theirs in zip(summarize(found), base, strict=True)))
        for name, found in seconds.items()
    }


def pyserini_bm25(folder: Path, k: int) -> Search:
    """Pyserini's ``LuceneSearcher`` on a Lucene BM25 index, docid and score read from each hit."""
    searcher = java.import_pyserini().LuceneSearcher(str(folder))
    return lambda text: [(hit.docid, hit.score) for hit in searcher.search(text, k)]


def pyserini_impact(folder: Path, k: int, encode: Callable[[str], Mapping[str, int]]) -> Search:
    """Pyserini's ``LuceneImpactSearcher`` on a Lucene impact index; ``encode`` gives each Lucene
    term its weight.
    """
    searcher = java.import_pyserini().LuceneImpactSearcher(str(folder), _Encoder(encode))
    return lambda text: [(hit.docid, hit.score) for hit in searcher.search(text, k)]


class _Encoder(NamedTuple):
    """A query encoder in the form that Pyserini asks for."""

    encode: Callable[[str], Mapping[str, int]]


def _check(systems: Mapping[str, Search], texts: Sequence[str], rounds: int) -> None:
    if not systems or not texts or rounds < 1:
        raise ConfigError(
            f"nothing to time: {len(systems)} systems, {len(texts)} queries, "
            f"{rounds} rounds; "
            "allowed: at least 1 of each"
        )


def _rotated(names: Sequence[str], turn: int) -> list[str]:
    first = turn % len(names)
    return [*names[first:], *names[:first]]


def _time_block(search: Search, texts: Sequence[str], block: range, seconds: np.ndarray) -> None:
    for position in block:
        text, begun = texts[position], time.perf_counter()
        search(text)
        seconds[position] = time.perf_counter() - begun


def _answer(search: Search, texts: Sequence[str]) -> None:
    for text in texts:
        search(text)
