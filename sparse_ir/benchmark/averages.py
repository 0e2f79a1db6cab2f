"""Means over groups of rows: the forums of CQADupStack, and the average of BEIR."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sparse_ir.benchmark import columns
from sparse_ir.benchmark.columns import mean_of_all
from sparse_ir.benchmark.rows import (
    COUNTS,
    HASHES,
    DatasetFacts,
    Efficiency,
    Result,
    Row,
    RunFacts,
)
from sparse_ir.data.datasets import BEIR_13, GROUPS
from sparse_ir.storage import files

MERGED = "cqadupstack"


def merge_groups(rows: Sequence[Row]) -> list[Row]:
    """The rows, with the forums of CQADupStack merged for each system that has all twelve.

    The measures of a merged row are the means of the forums' means (as in BEIR, every forum counts
    alike), and its queries are named ``FORUM/QUERY_ID``. The forums of a system that lacks some are
    left out.
    """
    names = GROUPS[MERGED]
    forums: dict[str, dict[str, Row]] = {}
    merged = []
    for row in rows:
        if row.dataset in names:
            forums.setdefault(row.system, {})[row.dataset] = row
        else:
            merged.append(row)
    for by_name in forums.values():
        if len(by_name) == len(names):
            merged.append(_merge_forums([by_name[name] for name in names]))
    return sorted(merged, key=_dataset_and_system)


def _dataset_and_system(row: Row) -> tuple[str, str]:
    return row.dataset, row.system


def _merge_forums(forums: Sequence[Row]) -> Row:
    first = forums[0].result
    measures = {}
    per_query = {}
    for column in columns.measure_names():
        mean = mean_of_all([row.measures.get(column) for row in forums])
        if mean is not None:
            measures[column] = mean
            per_query[column] = _join_queries(forums, column)
    result = Result(
        dataset=_merge_datasets([row.result.dataset for row in forums]),
        system=first.system,
        measures=measures,
        efficiency=_merge_efficiency([row.result.efficiency for row in forums]),
        run=RunFacts(hits_per_query=min(row.result.run.hits_per_query for row in forums)),
        versions=first.versions,
        commit=first.commit,
        command=first.command,
        identity={},
        per_query=per_query,
    )
    return Row(result, merged_from=tuple(forums))


def _join_queries(forums: Sequence[Row], column: str) -> dict[str, float]:
    joined = {}
    for row in forums:
        forum = row.dataset.removeprefix(f"{MERGED}-")
        for query_id, value in row.per_query[column].items():
            joined[f"{forum}/{query_id}"] = value
    return joined


def _merge_datasets(forums: Sequence[DatasetFacts]) -> DatasetFacts:
    changed: dict[str, str | int] = {"name": MERGED, "source": MERGED}
    for field in COUNTS:
        changed[field] = sum(getattr(facts, field) for facts in forums)
    for field in HASHES:
        changed[field] = files.sha256_of_json([getattr(facts, field) for facts in forums])
    return forums[0].model_copy(update=changed)


def _merge_efficiency(forums: Sequence[Efficiency]) -> Efficiency:
    count = len(forums)
    return Efficiency(
        mean_query_terms=sum(cost.mean_query_terms for cost in forums) / count,
        mean_document_terms=sum(cost.mean_document_terms for cost in forums) / count,
        flops=sum(cost.flops for cost in forums) / count,
        index_bytes=sum(cost.index_bytes for cost in forums),
    )


def average(
    rows: Sequence[Row], names: Sequence[str] = BEIR_13
) -> dict[str, dict[str, float | None]]:
    """System -> column -> mean over the data sets ``names``, for systems that have all of them.

    None where one of the rows lacks the measure, or its run is too short for it.
    """
    by_system: dict[str, dict[str, Row]] = {}
    for row in merge_groups(rows):
        by_system.setdefault(row.system, {})[row.dataset] = row
    averages = {}
    for system, by_name in by_system.items():
        if by_name.keys() >= set(names):
            averages[system] = _average_columns(by_name, names)
    return averages


def _average_columns(rows: Mapping[str, Row], names: Sequence[str]) -> dict[str, float | None]:
    averages = {}
    for column in columns.measure_names():
        averages[column] = mean_of_all([rows[name].shown_measure(column) for name in names])
    return averages
