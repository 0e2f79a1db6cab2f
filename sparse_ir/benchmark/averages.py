"""Means over groups of rows: the forums of CQADupStack, and the average of BEIR."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from operator import attrgetter

from sparse_ir.benchmark import columns
from sparse_ir.benchmark.columns import mean_of_all
from sparse_ir.benchmark.rows import COUNTS, HASHES, Efficiency, Result, Row, RunFacts
from sparse_ir.data.datasets import BEIR_13, GROUPS
from sparse_ir.storage import files

MERGED = "cqadupstack"

Grid = dict[str, dict[str, Row]]  # data set -> system -> row, or the other way round


def by_dataset(rows: Iterable[Row]) -> Grid:
    """Data set -> system -> row."""
    grid: Grid = {}
    for row in rows:
        grid.setdefault(row.dataset, {})[row.system] = row
    return grid


def by_system(rows: Iterable[Row]) -> Grid:
    """System -> data set -> row."""
    grid: Grid = {}
    for row in rows:
        grid.setdefault(row.system, {})[row.dataset] = row
    return grid


def merge_groups(rows: Sequence[Row]) -> list[Row]:
    """The rows, with the forums of CQADupStack merged for each system that has all twelve.

    The measures of a merged row are the means of the forums' means (as in BEIR, every forum counts
    alike), and its queries are named ``FORUM/QUERY_ID``. The forums of a system that lacks some are
    left out.
    """
    forums = set(GROUPS[MERGED])
    merged = [row for row in rows if row.dataset not in forums]
    for own in by_system(rows).values():
        if own.keys() >= forums:
            merged.append(_merge_forums([own[name] for name in GROUPS[MERGED]]))
    return sorted(merged, key=attrgetter("dataset", "system"))


def _merge_forums(forums: Sequence[Row]) -> Row:
    first = forums[0].result
    measures = {}
    per_query: dict[str, dict[str, float]] = {}
    for column in columns.measure_names():
        mean = mean_of_all([row.measures.get(column) for row in forums])
        if mean is None:
            continue
        measures[column] = mean
        per_query[column] = {}
        for row in forums:
            forum = row.dataset.removeprefix(f"{MERGED}-")
            for query_id, value in row.per_query[column].items():
                per_query[column][f"{forum}/{query_id}"] = value
    facts: dict[str, str | int] = {"name": MERGED, "source": MERGED}
    for field in COUNTS:
        facts[field] = sum(map(attrgetter(f"result.dataset.{field}"), forums))
    for field in HASHES:
        hashes = map(attrgetter(f"result.dataset.{field}"), forums)
        facts[field] = files.sha256_of_json(list(hashes))
    costs = dict.fromkeys(Efficiency.model_fields, 0.0)
    for field in costs:
        costs[field] = sum(map(attrgetter(f"result.efficiency.{field}"), forums))
        if field != "index_bytes":
            costs[field] /= len(forums)
    result = Result(
        dataset=first.dataset.model_copy(update=facts),
        system=first.system,
        measures=measures,
        efficiency=Efficiency.model_validate(costs),
        run=RunFacts(hits_per_query=min(map(attrgetter("result.run.hits_per_query"), forums))),
        versions=first.versions,
        commit=first.commit,
        command=first.command,
        identity={},
        per_query=per_query,
    )
    return Row(result, merged_from=tuple(forums))


def average(
    rows: Sequence[Row], names: Sequence[str] = BEIR_13
) -> dict[str, dict[str, float | None]]:
    """System -> column -> mean over the data sets ``names``, for systems that have all of them.

    None where one of the rows lacks the measure, or its run is too short for it.
    """
    averages: dict[str, dict[str, float | None]] = {}
    for system, own in by_system(merge_groups(rows)).items():
        if own.keys() >= set(names):
            averages[system] = {}
            for column in columns.measure_names():
                values = [own[name].shown_measure(column) for name in names]
                averages[system][column] = mean_of_all(values)
    return averages
