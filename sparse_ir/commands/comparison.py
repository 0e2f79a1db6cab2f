"""The work of the command ``compare``: runs beside a baseline, query by query."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparse_ir.data import readers
from sparse_ir.data.records import Qrels
from sparse_ir.data.runs import read_run
from sparse_ir.errors import ConfigError, DataError
from sparse_ir.evaluation import significance
from sparse_ir.evaluation.measures import Evaluation, evaluate_run, parse_measures, remove_identical
from sparse_ir.reports import Report

_SUFFIXES = (".gz", ".json", ".trec", ".txt", ".run", ".tsv")  # dropped from the name of a run
_SHOWN_CHARACTERS = 80  # of the text of a query
# column of the report -> field of significance.Comparison
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


@dataclass(frozen=True)
class Options:
    """How runs are compared; raises ``ConfigError`` for a value out of range."""

    measures: str  # names of ir_measures, separated by spaces
    remove_query: bool
    show: int
    samples: int
    seed: int

    def __post_init__(self) -> None:
        for name, lowest in (("show", 0), ("samples", 1), ("seed", 0)):
            value = getattr(self, name)
            if value < lowest:
                raise ConfigError(f"{name} is {value}; it must be at least {lowest}")
        for name, measure in parse_measures(self.measures).items():
            if type(measure.aggregator()).__name__ == "SumAgg":
                raise ConfigError(
                    f"measure {name!r} is summed over the queries; compare needs a mean, such as "
                    "nDCG@10, R@100 or RR@10 (evaluate can report it)"
                )


def name_runs(runs: Iterable[str]) -> dict[str, Path]:
    """Name -> path of each run; a run without a name of its own gets that of its file.

    Raises ``ConfigError`` for two runs of one name and for fewer than two runs.
    """
    paths: dict[str, Path] = {}
    for text in runs:
        name, separator, path = text.partition("=")
        if not separator or Path(text).exists():
            path = text
            name = _strip_suffixes(Path(text).name)
        if name in paths:
            raise ConfigError(
                f"two runs have the name {name!r} ({paths[name]} and {path}); rename one with "
                "NAME=RUN"
            )
        paths[name] = Path(path)
    if len(paths) < 2:
        raise ConfigError(f"{len(paths)} runs given; compare needs at least two")
    return paths


def _strip_suffixes(name: str) -> str:
    while name.endswith(_SUFFIXES) and name not in _SUFFIXES:
        name = name.rpartition(".")[0]
    return name


def compare_runs(
    paths: Mapping[str, Path],
    baseline: str,
    judged: Qrels,
    options: Options,
    queries: str | Path | None,
) -> Report:
    """The report: for each measure a table of the runs, then the queries that differ most."""
    evaluations = {}
    for name, path in paths.items():
        evaluations[name] = _evaluate(path, judged, options)
    report: Report = {
        "queries": len(judged),
        "baseline": baseline,
        "runs": {
            name: {
                "file": str(paths[name]),
                "queries_without_hits": evaluation.num_missing,
                "queries_not_judged": evaluation.num_unjudged,
            }
            for name, evaluation in evaluations.items()
        },
    }
    measures = list(evaluations[baseline].mean)
    for measure in measures:
        report[measure] = _compare_measure(measure, evaluations, baseline, options)
    tables = _differing_queries(measures[0], evaluations, baseline, options.show)
    if queries is not None:
        _add_texts(tables.values(), queries)
    return report | tables


def _evaluate(path: Path, judged: Qrels, options: Options) -> Evaluation:
    run = read_run(path)
    if options.remove_query:
        run = remove_identical(run)
    try:
        return evaluate_run(run, judged, options.measures)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


def _compare_measure(
    measure: str, evaluations: Mapping[str, Evaluation], baseline: str, options: Options
) -> dict[str, dict[str, Any]]:
    """Run -> mean, interval, and difference from the baseline (None for the baseline itself)."""
    values = {name: evaluation.per_query[measure] for name, evaluation in evaluations.items()}
    others = {name: per_query for name, per_query in values.items() if name != baseline}
    comparisons = significance.compare(
        values[baseline], others, samples=options.samples, seed=options.seed
    )
    table = {}
    for name, evaluation in evaluations.items():
        low, high = significance.bootstrap_interval(list(values[name].values()), seed=options.seed)
        row: dict[str, Any] = {"mean": evaluation.mean[measure], "low": low, "high": high}
        for column, field in _COLUMNS.items():
            row[column] = getattr(comparisons[name], field) if name in comparisons else None
        table[name] = row
    return table


def _differing_queries(
    measure: str, evaluations: Mapping[str, Evaluation], baseline: str, count: int
) -> dict[str, dict[str, dict[str, Any]]]:
    """Title -> query_id -> values, for each run that differs from the baseline in any query."""
    tables = {}
    before = evaluations[baseline].per_query[measure]
    for name, evaluation in evaluations.items():
        if name == baseline:
            continue
        table = _largest_differences(before, evaluation.per_query[measure], count)
        if table:
            tables[f"{name} against {baseline}, {measure}"] = table
    return tables


def _largest_differences(
    before: Mapping[str, float], after: Mapping[str, float], count: int
) -> dict[str, dict[str, Any]]:
    """query_id -> both values and their difference, largest first, without equal ones."""
    rows = []
    for query_id in before:
        difference = after[query_id] - before[query_id]
        if difference:
            rows.append((-abs(difference), query_id, difference))
    table = {}
    for _, query_id, difference in sorted(rows)[:count]:
        table[query_id] = {
            "baseline": before[query_id],
            "run": after[query_id],
            "difference": difference,
        }
    return table


def _add_texts(tables: Iterable[dict[str, dict[str, Any]]], source: str | Path) -> None:
    """Add the text of each query to its row, shortened; None for an unknown query."""
    texts = {query.query_id: query.text for query in readers.read_queries(source)}
    for table in tables:
        for query_id, row in table.items():
            text = texts.get(query_id)
            if text:
                text = textwrap.shorten(text, _SHOWN_CHARACTERS, placeholder=" …")
            row["text"] = text
