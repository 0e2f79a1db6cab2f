"""Search options from a measured budget: the smallest loss that holds, say, ``p95 <= 1.0 x bm25``
on this machine.

Every setting of a small grid answers the same queries twice: once for what it loses against exact
search, and then in turn with exact search and BM25 for its time. The setting that keeps most of the
exact hits and holds the budget is measured again, alone with the baselines; what holds twice is
stored in ``INDEX/tuned.json``. Hits and not nDCG decide: the best nDCG of many settings on a few
queries would be chance.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from sparse_ir import environment
from sparse_ir.data.records import Qrels, Query
from sparse_ir.errors import ConfigError
from sparse_ir.evaluation import approximation_loss
from sparse_ir.evaluation.approximation_loss import MEASURE, Loss
from sparse_ir.indexing import manifest
from sparse_ir.models.interfaces import QueryEncoder
from sparse_ir.reports import Report
from sparse_ir.retrieval import timing
from sparse_ir.retrieval.options import EXACT, SearchOptions
from sparse_ir.retrieval.searcher import Index
from sparse_ir.retrieval.timing import Latency, Search

BM25, _EXACT = "bm25", "exact"
_BUDGET = re.compile(
    r"(p50|p95|p99)\s*<=?\s*([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*(?:[x×*]\s*(bm25|exact)|(ms))"
)
_MASSES = (0.95, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2)
_CANDIDATES = (20.0, 5.0)
_STOP_SHARES = (0.5, 0.3, 0.2, 0.1)


class Limit(NamedTuple):
    """One condition of a budget: a percentile of the latency is at most ``factor`` times that of a
    baseline.
    """

    percentile: str  # p50, p95 or p99
    factor: float
    unit: str  # bm25, exact, or ms: then the factor itself is the time

    def share_used(self, found: Latency, baselines: Mapping[str, Latency]) -> float:
        """1.0 is all that the limit allows."""
        base = 1.0 if self.unit == "ms" else getattr(baselines[self.unit], self.percentile)
        return float(getattr(found, self.percentile) / (self.factor * base))


class Trial(NamedTuple):
    """One setting, what it loses and how long it takes."""

    options: SearchOptions
    overlap: float  # mean share of the exact hits that it keeps
    loss: Loss | None  # where there are qrels
    latency: Latency
    share_used: float  # of the tightest limit of the budget


def open_bm25(folder: Path, opened: Index) -> Index:
    """The BM25 index of the same corpus; raises ``ConfigError`` for any other index."""
    found, documents = manifest.read_manifest(folder), opened.manifest["counts"]["documents"]
    if found["kind"] != "bm25" or found["counts"]["documents"] != documents:
        raise ConfigError(
            f"{folder} is no BM25 index of the same corpus: it is of kind "
            f"{found['kind']} and has "
            f"{found['counts']['documents']} documents, {opened.folder} has "
            f"{documents}"
        )
    return Index(folder)


def parse_budget(text: str) -> list[Limit]:
    """The limits of a budget such as ``p50 <= 1.1 x bm25 and p95 <= 12 ms``.

    Raises ``ConfigError`` for another text.
    """
    limits = []
    for part in re.split(r"\s+and\s+|\s*,\s*", text.strip()):
        found = _BUDGET.fullmatch(part.strip())
        if found is None or not float(found[2]) > 0:
            raise ConfigError(
                f"budget {part!r} is not understood; allowed: p50, p95 or p99, <=, "
                "and a number above 0 "
                "of ms, x bm25 or x exact, such as 'p95 <= 1.0 x bm25'"
            )
        limits.append(Limit(found[1], float(found[2]), found[3] or found[4]))
    return limits


def choose_queries(asked: Sequence[Query], qrels: Qrels | None, count: int) -> list[Query]:
    """At most ``count`` of the queries, evenly spaced; of the judged ones where there are qrels."""
    known = [
        query
        for query in asked
        if query.text.strip() and (qrels is None or query.query_id in qrels)
    ]
    if not known:
        raise ConfigError(
            f"none of the {len(asked)} queries has a text"
            + (" and a judgement" if qrels is not None else "")
            + "; name others"
        )
    return [
        known[place]
        for place in np.unique(np.linspace(0, len(known) - 1, min(count, len(known))).astype(int))
    ]


def settings(*, two_phases: bool) -> Iterator[SearchOptions]:
    """The grid, by expected loss: exact, then ever smaller first phases, rescored where that is
    possible.
    """
    yield EXACT
    for mass in _MASSES:
        if two_phases:
            yield from (
                SearchOptions(mass=mass, candidates=candidates) for candidates in _CANDIDATES
            )
        else:
            yield SearchOptions(mass=mass)
    for share in _STOP_SHARES:
        yield SearchOptions(stop_share=share, candidates=_CANDIDATES[-1] if two_phases else 0.0)


class Remembering:
    """A query encoder that reads each text once: for timing what comes after it."""

    def __init__(self, encoder: QueryEncoder) -> None:
        self.vocabulary, self.fingerprint, self.save = (
            encoder.vocabulary,
            encoder.fingerprint,
            encoder.save,
        )
        self.encode: Callable[[str], tuple[np.ndarray, np.ndarray]] = functools.cache(
            encoder.encode
        )


class Bench(NamedTuple):
    """What is measured: the index, its baselines, the queries, and how."""

    opened: Index
    baselines: Mapping[str, Index]
    asked: Sequence[Query]
    limits: Sequence[Limit]
    hits: int
    rounds: int

    def time(self, grid: Sequence[SearchOptions]) -> dict[str, Latency]:
        """The times of all settings and baselines, in turn."""
        systems = {
            name: timed_search(baseline, self.hits) for name, baseline in self.baselines.items()
        }
        systems |= {str(options): timed_search(self.opened, self.hits, options) for options in grid}
        seconds = timing.time_queries(
            systems, [query.text for query in self.asked], rounds=self.rounds
        )
        return {name: timing.summarize(found) for name, found in seconds.items()}

    def share_used(self, options: SearchOptions, times: Mapping[str, Latency]) -> float:
        """Of the tightest limit; at most 1.0 where all hold."""
        return max(limit.share_used(times[str(options)], times) for limit in self.limits)


def find_losses(
    bench: Bench,
    qrels: Qrels | None,
    progress: bool,
) -> dict[SearchOptions, tuple[float, Loss | None]]:
    """Overlap with the exact hits, and loss of nDCG where there are qrels, of each setting."""
    grid, losses = list(settings(two_phases=bench.opened.forward is not None)), {}
    exact = bench.opened.search_batch(bench.asked, bench.hits, options=EXACT)[0]
    for options in tqdm(grid, desc="trying", unit=" settings", disable=None if progress else True):
        run = bench.opened.search_batch(bench.asked, bench.hits, options=options)[0]
        losses[options] = (
            approximation_loss.overlap(exact, run, bench.hits),
            approximation_loss.loss(exact, run, qrels) if qrels is not None else None,
        )
    return losses


def confirm_choice(
    bench: Bench, trials: Sequence[Trial]
) -> tuple[Trial | None, dict[str, Latency]]:
    """The trial that keeps most hits of those that hold the budget a second time too, alone with
    the baselines.

    Of equal ones the first of the grid, whose expected loss is smaller. With it the times of that
    second measurement.
    """
    for trial in sorted(trials, key=lambda trial: -trial.overlap):
        if trial.share_used <= 1:
            again = bench.time(list(dict.fromkeys([EXACT, trial.options])))
            used = bench.share_used(trial.options, again)
            if used <= 1:
                return trial._replace(latency=again[str(trial.options)], share_used=used), again
    return None, {}


def timed_search(opened: Index, hits: int, options: SearchOptions | None = None) -> Search:
    """A search as ``latency`` times it: from the text to a list of ``(doc_id, score)``."""

    def search(text: str) -> list[tuple[str, float]]:
        found = opened.search(text, hits, options)
        return list(zip(found.doc_ids, found.scores.tolist(), strict=True))

    return search


def make_report(
    bench: Bench,
    trials: Sequence[Trial],
    times: Mapping[str, Latency],
    found: Trial | None,
    again: Mapping[str, Latency],
) -> Report:
    """Trials beside the baselines of their own measurement, the setting beside those of its second
    one.
    """
    bases = sorted({limit.unit for limit in bench.limits} - {"ms"}) or [_EXACT]
    return {
        "queries": len(bench.asked),
        "hits": bench.hits,
        "setting": str(found.options) if found else None,
        **({"measured": _row(found, again, bases)} if found else {}),
        "baselines": {
            name: {f"{key}_ms": round(value, 3) for key, value in time._asdict().items()}
            for name, time in (again or times).items()
            if name in (BM25, _EXACT)
        },
        "machine": environment.describe_machine(),
        "trials": {str(trial.options): _row(trial, times, bases) for trial in trials},
    }


def describe_nearest_miss(budget: str, trials: Sequence[Trial]) -> str:
    nearest = min(trials, key=lambda trial: trial.share_used)
    if nearest.share_used <= 1:
        return (
            f"no setting holds {budget!r} twice in a row; measure more queries or rounds, or "
            "allow a little more"
        )
    return (
        f"no setting holds {budget!r}; the nearest, {nearest.options}, needs "
        f"{nearest.share_used:.2f} times as "
        f"long (p50 {nearest.latency.p50:.2f} ms, p95 {nearest.latency.p95:.2f} ms, overlap "
        f"{nearest.overlap:.3f})"
        "; nothing was stored"
    )


def _row(trial: Trial, times: Mapping[str, Latency], bases: Sequence[str]) -> dict[str, Any]:
    """Plain figures of one setting; its times in ms, and as multiples of the baselines that the
    budget names.
    """
    row: dict[str, Any] = {"overlap": round(trial.overlap, 4)}
    if trial.loss is not None:
        row |= {
            MEASURE: round(trial.loss.mean, 4),
            "difference": round(trial.loss.difference, 4),
            "low": round(trial.loss.low, 4),
            "high": round(trial.loss.high, 4),
        }
    row |= {f"{name}_ms": round(getattr(trial.latency, name), 3) for name in ("p50", "p95", "p99")}
    for base in bases:
        row |= {
            f"{name}_x_{base}": round(getattr(trial.latency, name) / getattr(times[base], name), 3)
            for name in ("p50", "p95")
        }
    return {**row, "holds": trial.share_used <= 1}
