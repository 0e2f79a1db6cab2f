"""Means over groups of rows, such as the forums of CQADupStack and the BEIR average."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sparse_ir.benchmark.results import COLUMNS, FORMAT, Row
from sparse_ir.data.datasets import BEIR_13, GROUPS
from sparse_ir.storage import files


def merge_groups(rows: Sequence[Row]) -> list[Row]:
    """The rows with the twelve forums of CQADupStack put together into one row of each system that
    has all twelve.

    Its measures are the means of the forums' means (as BEIR counts them, every forum alike), and
    its queries are ``FORUM/QUERY_ID``. A system with fewer forums gets no row for them.
    """
    names = GROUPS["cqadupstack"]
    forums: dict[str, dict[str, Row]] = {}
    others = []
    for row in rows:
        if row.dataset in names:
            forums.setdefault(row.system, {})[row.dataset] = row
        else:
            others.append(row)
    whole = [
        [found[name] for name in names] for found in forums.values() if len(found) == len(names)
    ]
    merged = [*others, *map(_merge_forums, whole)]
    return sorted(merged, key=lambda row: (row.dataset, row.system))


def _merge_forums(forums: Sequence[Row]) -> Row:
    first = forums[0].result
    counted = {
        key: sum(row.result["dataset"][key] for row in forums)
        for key in ("documents", "queries", "judgements", "absent_documents", "absent_queries")
    }
    hashes = {
        key: files.sha256_of_json([row.result["dataset"][key] for row in forums])
        for key in ("corpus_sha256", "queries_sha256", "qrels_sha256")
    }
    per_query = {
        column: {
            f"{_forum(row)}/{query_id}": value
            for row in forums
            for query_id, value in row.per_query[column].items()
        }
        for column in COLUMNS
    }
    efficiency = {
        key: _mean([row.result["efficiency"][key] for row in forums]) for key in first["efficiency"]
    }
    efficiency["index_bytes"] = sum(row.result["efficiency"]["index_bytes"] for row in forums)
    return Row(
        {
            "format": FORMAT,
            "dataset": {
                **first["dataset"],
                **counted,
                **hashes,
                "name": "cqadupstack",
                "source": "cqadupstack",
                "parts": {_forum(row): row.result["dataset"] for row in forums},
            },
            "system": first["system"],
            "measures": {
                column: _mean([row.measures[column] for row in forums]) for column in COLUMNS
            },
            "per_query": per_query,
            "efficiency": efficiency,
            "run": {"hits_per_query": min(row.result["run"]["hits_per_query"] for row in forums)},
            "versions": first["versions"],
            "commit": first.get("commit"),
            "command": first.get("command"),
        },
        {},
    )


def _forum(row: Row) -> str:
    return row.dataset.removeprefix("cqadupstack-")


def average(
    rows: Sequence[Row], names: Sequence[str] = BEIR_13
) -> dict[str, dict[str, float | None]]:
    """System -> column -> mean over the data sets ``names``; only systems that have a row for every
    one of them.

    None where one of the runs is too short for the measure.
    """
    found: dict[str, dict[str, Mapping[str, float | None]]] = {}
    for row in merge_groups(rows):
        found.setdefault(row.system, {})[row.dataset] = row.shown_measures
    return {
        system: {column: _mean_of_all([of[name][column] for name in names]) for column in COLUMNS}
        for system, of in found.items()
        if set(names) <= set(of)
    }


def _mean_of_all(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return _mean(known) if len(known) == len(values) else None


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
