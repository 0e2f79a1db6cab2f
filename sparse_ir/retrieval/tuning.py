"""Search options from a measured budget, such as ``p95 <= 1.0 x bm25`` on this machine.

Every setting of a small grid answers the same queries twice: once to see what it loses against
exact search, and then in turn with exact search and BM25 for its time. The setting that keeps most
of the exact hits and holds the budget is measured again, alone with the baselines; one that holds
twice is the result. Hits decide and not nDCG, because the best nDCG of many settings on a few
queries would be chance.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sparse_ir import environment
from sparse_ir.console import progress_bar
from sparse_ir.data.records import Qrels, Query
from sparse_ir.errors import ConfigError
from sparse_ir.evaluation import approximation_loss
from sparse_ir.evaluation.approximation_loss import MEASURE, ApproximationLoss
from sparse_ir.indexing import manifest
from sparse_ir.reports import Report
from sparse_ir.retrieval import timing
from sparse_ir.retrieval.encoded_query import EncodedQuery
from sparse_ir.retrieval.options import EXACT, SearchOptions
from sparse_ir.retrieval.searcher import Index
from sparse_ir.retrieval.timing import Latency, Search

BM25 = "bm25"
_EXACT = "exact"
_BUDGET = re.compile(
    r"(p50|p95|p99)\s*<=?\s*([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*(?:[x×*]\s*(bm25|exact)|(ms))"
)
_MASSES = (0.95, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2)
_CANDIDATES = (20.0, 5.0)


class Limit(NamedTuple):
    """One condition of a budget: a percentile of the latency is at most ``factor`` baselines."""

    percentile: str  # p50, p95 or p99
    factor: float
    unit: str  # bm25, exact, or ms: then the factor itself is the time

    def share_used(self, latency: Latency, baselines: Mapping[str, Latency]) -> float:
        """The latency as a share of what the limit allows."""
        base = 1.0
        if self.unit != "ms":
            base = getattr(baselines[self.unit], self.percentile)
        return float(getattr(latency, self.percentile) / (self.factor * base))


class Trial(NamedTuple):
    """One setting, what it loses and how long it takes."""

    options: SearchOptions
    overlap: float  # mean share of the exact hits that it keeps
    loss: ApproximationLoss | None  # where there are qrels
    latency: Latency
    share_used: float  # of the tightest limit of the budget


def open_bm25(folder: Path, opened: Index) -> Index:
    """The BM25 index of the same corpus; raises ``ConfigError`` for any other index."""
    record = manifest.read_manifest(folder)
    documents = opened.manifest["counts"]["documents"]
    counted = record["counts"]["documents"]
    if record["kind"] != "bm25" or counted != documents:
        raise ConfigError(
            f"{folder} must be a BM25 index of the same corpus: it is of kind {record['kind']} and "
            f"has {counted} documents, {opened.folder} has {documents}"
        )
    return Index(folder)


def parse_budget(text: str) -> list[Limit]:
    """The limits of a budget such as ``p50 <= 1.1 x bm25 and p95 <= 12 ms``.

    Raises ``ConfigError`` for another text.
    """
    limits = []
    for part in re.split(r"\s+and\s+|\s*,\s*", text.strip()):
        match = _BUDGET.fullmatch(part.strip())
        if match is None or not float(match[2]) > 0:
            raise ConfigError(
                f"budget {part!r} must be p50, p95 or p99, then <=, then a number above 0 of ms, "
                "x bm25 or x exact, such as 'p95 <= 1.0 x bm25'"
            )
        limits.append(Limit(match[1], float(match[2]), match[3] or match[4]))
    return limits


def choose_queries(queries: Sequence[Query], qrels: Qrels | None, count: int) -> list[Query]:
    """At most ``count`` of the queries, evenly spaced; of the judged ones where there are qrels."""
    usable = []
    for query in queries:
        if query.text.strip() and (qrels is None or query.query_id in qrels):
            usable.append(query)
    if not usable:
        needed = "a text" if qrels is None else "a text and a judgement"
        raise ConfigError(f"none of the {len(queries)} queries has {needed}; name others")
    places = np.linspace(0, len(usable) - 1, min(count, len(usable))).astype(int)
    return [usable[place] for place in np.unique(places)]


def settings(*, two_phases: bool) -> Iterator[SearchOptions]:
    """The grid, by expected loss: exact, then ever smaller first phases.

    With ``two_phases`` each is rescored.
    """
    yield EXACT
    for mass in _MASSES:
        if not two_phases:
            yield SearchOptions(mass=mass)
            continue
        for candidates in _CANDIDATES:
            yield SearchOptions(mass=mass, candidates=candidates)


class Bench(NamedTuple):
    """What is measured: the index, its baselines, the queries, and how."""

    opened: Index
    baselines: Mapping[str, Index]
    queries: Sequence[Query]
    limits: Sequence[Limit]
    hits: int
    rounds: int
    without_encoding: bool  # leave the encoding of queries out of the times

    def time(self, grid: Sequence[SearchOptions]) -> dict[str, Latency]:
        """The times of all settings and baselines, in turn."""
        systems = {}
        for name, baseline in self.baselines.items():
            systems[name] = timed_search(baseline, self.hits)
        encoded = self._encode() if self.without_encoding else None
        for options in grid:
            systems[str(options)] = timed_search(self.opened, self.hits, options, encoded)
        texts = [query.text for query in self.queries]
        seconds = timing.time_queries(systems, texts, rounds=self.rounds)
        return {name: timing.summarize(measured) for name, measured in seconds.items()}

    def _encode(self) -> dict[str, EncodedQuery]:
        return {query.text: self.opened.encode(query.text) for query in self.queries}

    def share_used(self, options: SearchOptions, times: Mapping[str, Latency]) -> float:
        """The share of the tightest limit; at most 1.0 where all hold."""
        return max(limit.share_used(times[str(options)], times) for limit in self.limits)


def find_losses(
    bench: Bench, qrels: Qrels | None, progress: bool
) -> dict[SearchOptions, tuple[float, ApproximationLoss | None]]:
    """For each setting the overlap with the exact hits and, with qrels, the loss of nDCG."""
    grid = list(settings(two_phases=bench.opened.forward is not None))
    exact = bench.opened.search_batch(bench.queries, bench.hits, options=EXACT)[0]
    losses = {}
    with progress_bar(len(grid), progress, desc="trying", unit=" settings") as bar:
        for options in grid:
            run = bench.opened.search_batch(bench.queries, bench.hits, options=options)[0]
            overlap = approximation_loss.overlap(exact, run, bench.hits)
            loss = None if qrels is None else approximation_loss.loss(exact, run, qrels)
            losses[options] = (overlap, loss)
            bar.update(1)
    return losses


def confirm_choice(
    bench: Bench, trials: Sequence[Trial]
) -> tuple[Trial | None, dict[str, Latency]]:
    """The trial that keeps most hits among those that hold the budget twice.

    The second measurement has the trial alone with the baselines; its times come second. Of equal
    trials the first of the grid is taken, whose expected loss is smaller.
    """
    for trial in sorted(trials, key=lambda trial: -trial.overlap):
        if trial.share_used <= 1:
            again = bench.time(list(dict.fromkeys([EXACT, trial.options])))
            used = bench.share_used(trial.options, again)
            if used <= 1:
                return trial._replace(latency=again[str(trial.options)], share_used=used), again
    return None, {}


def timed_search(
    opened: Index,
    hits: int,
    options: SearchOptions | None = None,
    encoded: Mapping[str, EncodedQuery] | None = None,
) -> Search:
    """A search from the text, or from the encoded query, to a list of ``(doc_id, score)``."""

    def search(text: str) -> list[tuple[str, float]]:
        query = text if encoded is None else encoded[text]
        result = opened.search(query, hits, options)
        return list(zip(result.doc_ids, result.scores.tolist(), strict=True))

    return search


def make_report(
    bench: Bench,
    trials: Sequence[Trial],
    times: Mapping[str, Latency],
    chosen: Trial | None,
    again: Mapping[str, Latency],
) -> Report:
    """All trials beside the baselines of their measurement, and the choice beside those of its own.

    Times are in milliseconds, and as multiples of the baselines that the budget names.
    """
    bases = sorted({limit.unit for limit in bench.limits} - {"ms"}) or [_EXACT]
    report: Report = {
        "queries": len(bench.queries),
        "hits": bench.hits,
        "setting": None if chosen is None else str(chosen.options),
    }
    if chosen is not None:
        report["measured"] = _row(chosen, again, bases)
    baselines = {}
    for name, latency in (again or times).items():
        if name in (BM25, _EXACT):
            values = latency._asdict().items()
            baselines[name] = {f"{key}_ms": round(value, 3) for key, value in values}
    report["baselines"] = baselines
    report["machine"] = environment.describe_machine()
    report["trials"] = {str(trial.options): _row(trial, times, bases) for trial in trials}
    return report


def describe_nearest_miss(budget: str, trials: Sequence[Trial]) -> str:
    """The sentence for a budget that no setting holds."""
    nearest = min(trials, key=lambda trial: trial.share_used)
    if nearest.share_used <= 1:
        return (
            f"no setting holds {budget!r} twice in a row; measure more queries or rounds, or allow "
            "a little more"
        )
    return (
        f"no setting holds {budget!r}; the nearest, {nearest.options}, takes "
        f"{nearest.share_used:.2f} times as long (p50 {nearest.latency.p50:.2f} ms, p95 "
        f"{nearest.latency.p95:.2f} ms, overlap {nearest.overlap:.3f}); nothing was stored"
    )


def _row(trial: Trial, times: Mapping[str, Latency], bases: Sequence[str]) -> dict[str, Any]:
    """The figures of one setting."""
    row: dict[str, Any] = {"overlap": round(trial.overlap, 4)}
    if trial.loss is not None:
        row[MEASURE] = round(trial.loss.mean, 4)
        for name in ("difference", "low", "high"):
            row[name] = round(getattr(trial.loss, name), 4)
    for name in ("p50", "p95", "p99"):
        row[f"{name}_ms"] = round(getattr(trial.latency, name), 3)
    for base in bases:
        for name in ("p50", "p95"):
            ratio = getattr(trial.latency, name) / getattr(times[base], name)
            row[f"{name}_x_{base}"] = round(ratio, 3)
    row["holds"] = trial.share_used <= 1
    return row
