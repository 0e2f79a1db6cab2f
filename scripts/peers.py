"""Pyserini's searchers beside ours, throughput, and ratios: what the benchmarks share."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sparse_ir.engines.lucene import java
from sparse_ir.engines.threads import run_threads
from sparse_ir.errors import ConfigError
from sparse_ir.retrieval.timing import Latency, Search, check_systems, rotated, summarize


def pyserini_bm25(folder: Path, k: int) -> Search:
    """Pyserini's ``LuceneSearcher`` on a Lucene BM25 index; docid and score of each hit are read."""
    searcher = java.import_pyserini().LuceneSearcher(str(folder))
    return lambda text: [(hit.docid, hit.score) for hit in searcher.search(text, k)]


def pyserini_impact(folder: Path, k: int, encode: Callable[[str], Mapping[str, int]]) -> Search:
    """Pyserini's ``LuceneImpactSearcher``; ``encode`` gives each Lucene term its weight."""
    searcher = java.import_pyserini().LuceneImpactSearcher(str(folder), _Encoder(encode))
    return lambda text: [(hit.docid, hit.score) for hit in searcher.search(text, k)]


class _Encoder(NamedTuple):
    """A query encoder in Pyserini's form."""

    encode: Callable[[str], Mapping[str, int]]


def measure_throughput(
    systems: Mapping[str, Search], texts: Sequence[str], *, threads: int = 1, rounds: int = 5
) -> dict[str, np.ndarray]:
    """Queries per second with ``threads`` concurrent callers, float64 ``(rounds,)``.

    Each round answers all texts with each system in turn.
    """
    check_systems(systems, texts, rounds)
    if threads < 1:
        raise ConfigError(f"threads is {threads}; it must be at least 1")
    names = list(systems)
    speeds = {name: np.zeros(rounds) for name in names}
    for number in range(rounds):
        for name in rotated(names, number):
            tasks = []
            for start in range(threads):
                part = texts[start::threads]
                tasks.append(functools.partial(_answer, systems[name], part))
            begun = time.perf_counter()
            run_threads(tasks, java.detach_thread)
            speeds[name][number] = len(texts) / (time.perf_counter() - begun)
    return speeds


def ratios(seconds: Mapping[str, np.ndarray], baseline: str) -> dict[str, Latency]:
    """Each system's percentiles divided by those of the baseline."""
    base = summarize(seconds[baseline])
    compared = {}
    for name, measured in seconds.items():
        ours = summarize(measured)
        parts = [own / theirs for own, theirs in zip(ours, base, strict=True)]
        compared[name] = Latency(*parts)
    return compared


def _answer(search: Search, texts: Sequence[str]) -> None:
    for text in texts:
        search(text)
