"""The commands ``evaluate`` and ``compare``."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sparse_ir.data import readers, records
from sparse_ir.data.records import Qrels
from sparse_ir.data.runs import read_run
from sparse_ir.errors import ConfigError, DataError
from sparse_ir.evaluation import significance
from sparse_ir.evaluation.conventions import (
    RULES,
    count_tied_queries,
    measure_conventions,
    measure_ties,
)
from sparse_ir.evaluation.measures import Evaluation, evaluate_run, parse_measures, remove_identical
from sparse_ir.reports import Report

_SUFFIXES = (".gz", ".json", ".trec", ".txt", ".run", ".tsv")  # left out of a run's name
_SHOWN_CHARACTERS = 80  # of a query
_COLUMNS = {
    "difference": "difference",
    "difference_low": "low",
    "difference_high": "high",
    "p": "p",
    "p_holm": "p_adjusted",
    "wins": "wins",
    "ties": "ties",
    "losses": "losses",
}


def compare(
    *run: str,
    qrels: str,
    measures: str = "nDCG@10 R@100",
    baseline: str | None = None,
    split: str = "test",
    remove_query: bool = False,
    queries: str | None = None,
    show: int = 5,
    samples: int = 100_000,
    seed: int = 0,
) -> Report:
    """Compare two or more runs by query: intervals, wins and losses, and a paired randomization
    test (Holm).

    Each run is compared with the baseline on the same judged queries, as trec_eval -c has them: one
    without hits scores 0. The p-values of a measure are corrected for the number of runs; the
    intervals are of 95 %.

    Args:
        run: TREC runs, or {query_id: {doc_id: score}} as JSON; NAME=RUN names one.
        qrels: BEIR folder, BEIR tsv, TREC qrels, or a hub data set such as BeIR/scifact.
        measures: Names of ir_measures, separated by blanks or commas; the first decides which
            queries are shown.
        baseline: Name of the run that the others are compared with; default: the first.
        split: Which qrels of a BEIR folder.
        remove_query: Drop hits whose doc_id is the query's id before measuring (ArguAna, Quora).
        queries: BEIR folder, queries.jsonl[.gz] or queries.tsv[.gz], for the texts of the queries
            that are shown.
        show: Queries shown of each comparison: those that differ most.
        samples: Random sign patterns of the test, for more than 16 queries that differ.
        seed: Seed of the test and of the intervals.
    """
    paths = _read_names(run)
    chosen = next(iter(paths)) if baseline is None else baseline
    if chosen not in paths:
        raise ConfigError(f"the baseline {chosen!r} is no run, allowed: {', '.join(paths)}")
    if show < 0 or samples < 1:
        raise ConfigError(
            f"{show} queries and {samples} samples are not allowed; show 0 or more, draw at least 1"
        )
    if seed < 0:
        raise ConfigError(f"the seed {seed} is not allowed; use 0 or more")
    _check_measures(measures)
    judged = readers.read_qrels(qrels, split)
    found = {
        name: _measure(name, path, judged, measures, remove_query) for name, path in paths.items()
    }
    names = list(found[chosen].mean)
    tables = {measure: _compare(measure, found, chosen, samples, seed) for measure in names}
    first = found[chosen].per_query[names[0]]
    differing = {
        f"{name} against {chosen}, {names[0]}": _largest_differences(
            first, of.per_query[names[0]], show
        )
        for name, of in found.items()
        if name != chosen
    }
    if queries:
        _add_texts(differing.values(), queries)
    return {
        "queries": len(judged),
        "baseline": chosen,
        "runs": {
            name: {
                "file": str(paths[name]),
                "queries_without_hits": of.num_missing,
                "queries_not_judged": of.num_unjudged,
            }
            for name, of in found.items()
        },
        **tables,
        **{title: of for title, of in differing.items() if of},
    }


def _read_names(runs: Iterable[str]) -> dict[str, Path]:
    """Name -> path; a run without a name of its own goes by that of its file."""
    paths: dict[str, Path] = {}
    for text in runs:
        name, separator, path = text.partition("=")
        if not separator or Path(text).exists():
            name, path = Path(text).name, text
            while name.endswith(_SUFFIXES) and name not in _SUFFIXES:
                name = name.rpartition(".")[0]
        if name in paths:
            raise ConfigError(
                f"two runs would be called {name!r} ({paths[name]} and {path}); "
                "name one with NAME=RUN"
            )
        paths[name] = Path(path)
    if len(paths) < 2:
        raise ConfigError(f"{len(paths)} runs are not enough to compare; name at least two")
    return paths


def _check_measures(measures: str) -> None:
    for name, measure in parse_measures(measures.replace(",", " ")).items():
        if type(measure.aggregator()).__name__ == "SumAgg":
            raise ConfigError(
                f"measure {name!r} is summed over the queries, and what is compared "
                "here are means; "
                "evaluate prints it, allowed here: such as nDCG@10, R@100, RR@10"
            )


def _measure(name: str, path: Path, judged: Qrels, names: str, remove_query: bool) -> Evaluation:
    run = read_run(path)
    try:
        return evaluate_run(
            remove_identical(run) if remove_query else run, judged, names.replace(",", " ")
        )
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


def _compare(
    measure: str, found: Mapping[str, Evaluation], baseline: str, samples: int, seed: int
) -> dict[str, dict[str, Any]]:
    """Run -> its mean with an interval, and how it stands to the baseline (None for that one
    itself).
    """
    values = {name: of.per_query[measure] for name, of in found.items()}
    compared = significance.compare(
        values[baseline],
        {name: of for name, of in values.items() if name != baseline},
        samples=samples,
        seed=seed,
    )
    table = {}
    for name, of in found.items():
        low, high = significance.bootstrap_interval(list(values[name].values()), seed=seed)
        known = compared.get(name)
        table[name] = {
            "mean": of.mean[measure],
            "low": low,
            "high": high,
            **{column: known and getattr(known, field) for column, field in _COLUMNS.items()},
        }
    return table


def _largest_differences(
    before: Mapping[str, float], after: Mapping[str, float], count: int
) -> dict[str, dict[str, Any]]:
    """Query -> two values and their difference; the largest differences
    first, those of 0 left out.
    """
    differences = {query_id: after[query_id] - before[query_id] for query_id in before}
    ranked = sorted(
        (query_id for query_id, size in differences.items() if size),
        key=lambda query_id: (-abs(differences[query_id]), query_id),
    )
    return {
        query_id: {
            "baseline": before[query_id],
            "run": after[query_id],
            "difference": differences[query_id],
        }
        for query_id in ranked[:count]
    }


def _add_texts(tables: Iterable[dict[str, dict[str, Any]]], source: str) -> None:
    """Put the text of each query into its line, cut to what a terminal shows; None where there is
    none.
    """
    texts = {query.query_id: query.text for query in readers.read_queries(source)}
    for table in tables:
        for query_id, line in table.items():
            text = texts.get(query_id)
            line["text"] = text and textwrap.shorten(text, _SHOWN_CHARACTERS, placeholder=" …")


def evaluate(
    run: Path,
    qrels: str,
    *,
    measures: str = "nDCG@10 R@100",
    split: str = "test",
    per_query: bool = False,
    remove_query: bool = False,
    ties: bool = False,
    conventions: bool = False,
) -> Report:
    """Measure a run against qrels as trec_eval -c does: a judged query without hits scores 0.

    Equal scores are ordered by doc_id, descending, as trec_eval does.

    Args:
        run: TREC run, or {query_id: {doc_id: score}} as JSON.
        qrels: BEIR folder, BEIR tsv, TREC qrels, or a hub data set such as BeIR/scifact.
        measures: Names of ir_measures, separated by blanks or commas.
        split: Which qrels of a BEIR folder.
        per_query: Also list the values of each query.
        remove_query: Drop hits whose doc_id is the query's id before measuring (ArguAna, Quora).
        ties: Also the least, the expected and the largest value over all orders of equal scores.
        conventions: Also what trec_eval without -c, BEIR, sentence-transformers, MS MARCO and
            ir_measures would print.
    """
    written = read_run(Path(run), as_written=True)
    if remove_query:
        written = remove_identical(written)
    hits = {query_id: records.rank_hits(found) for query_id, found in written.items()}
    judged, names = readers.read_qrels(qrels, split), measures.replace(",", " ")
    try:
        result = evaluate_run(hits, judged, names)
    except DataError as error:
        raise DataError(f"{run} with {qrels}: {error}") from error
    report: Report = {
        **result.mean,
        "queries": result.num_queries,
        "queries_without_hits": result.num_missing,
        "queries_not_judged": result.num_unjudged,
    }
    if ties:
        ranges = measure_ties(hits, judged, names)
        report |= {
            "queries_with_ties": count_tied_queries(hits),
            "ties": {name: found._asdict() for name, found in ranges.items()},
        }
    if conventions:
        report |= {
            "conventions": measure_conventions(hits, judged, names, written),
            "rules": [f"{name}: {rule}" for name, rule in RULES.items()],
        }
    return {**report, "per_query": result.per_query} if per_query else report
