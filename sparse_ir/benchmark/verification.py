"""Is a stored row true? Runs and data sets are checked by their hashes, measures computed again."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sparse_ir.benchmark.results import (
    COLUMNS,
    RESULT,
    RUN,
    Row,
    measure,
    read_row,
    row_folders,
    sha256_of_content,
)
from sparse_ir.data import datasets, readers, runs
from sparse_ir.data.datasets import Collection
from sparse_ir.data.records import Run
from sparse_ir.errors import DamagedError, DataError

_RULES = ("name", "split", "remove_identical", "relevance_level")  # of a data set


def verify_row(
    folder: Path, collection: Collection, known: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Measure the stored run again; a report. All measures must come out as they are stored, to the
    last digit.

    It vouches for run, data set, measures and means. That the named system made the run, how deep
    it was asked to go, how fast, at what cost and with which versions, no stored file can prove;
    whoever doubts it runs the row's command again.

    ``known`` is what ``describe`` says of the collection, for callers with several rows of it.
    Raises ``DamagedError`` for a row, a run or a measure that differs, ``DataError`` for a data set
    that is not that of the row.
    """
    row = read_row(folder)
    _check_dataset(folder / RESULT, row, collection, known or describe(collection))
    run = _read_stored_run(folder, row)
    means, values = measure(
        run, readers.read_qrels(collection.qrels), row.result["dataset"]["relevance_level"]
    )
    for column, mean in means.items():
        if mean != row.measures[column]:
            raise DamagedError(
                f"{folder / RESULT}: {column} is {row.measures[column]}, its run gives {mean}"
            )
        if set(values[column]) != set(row.per_query[column]):
            raise DamagedError(
                f"{folder / RESULT}: {column} has values for other queries than its qrels"
            )
        if values[column] != row.per_query[column]:
            query_id = next(
                key for key in values[column] if row.per_query[column][key] != values[column][key]
            )
            raise DamagedError(
                f"{folder / RESULT}: {column} of query {query_id} is "
                f"{row.per_query[column][query_id]}, its run gives "
                f"{values[column][query_id]}"
            )
    return {
        "dataset": row.dataset,
        "system": row.system,
        "ok": True,
        "queries": len(values[COLUMNS[0]]),
        **means,
    }


def verify_rows(results: Path, data_dir: Path) -> list[dict[str, Any]]:
    """Verify every row below ``results`` against the data sets below ``data_dir``; one report for
    each.

    Raises ``DataError`` when there is no row, or a row's data set does not lie there, and errors as
    ``verify_row``.
    """
    folders = row_folders(results)
    if not folders:
        raise DataError(f"{results} holds no row (DATASET/SYSTEM/{RESULT})")
    known: dict[Collection, dict[str, Any]] = {}
    reports = []
    for folder in folders:
        collection = _find(read_row(folder), data_dir)
        if collection not in known:
            known[collection] = describe(collection)
        reports.append(verify_row(folder, collection, known[collection]))
    return reports


def _find(row: Row, data_dir: Path) -> Collection:
    """The data set that a row names as its source."""
    source = row.result["dataset"]["source"]
    found = datasets.find(source, data_dir)
    if found is None:
        raise DataError(
            f"row {row.dataset}/{row.system}: its data set {source!r} is not in {data_dir}"
        )
    return found


def _check_dataset(path: Path, row: Row, collection: Collection, known: Mapping[str, Any]) -> None:
    """The row's data set is this one: by its files, its rules and its counts, wherever the row
    states them.
    """
    facts = row.result["dataset"]
    for field, value in known.items():
        part = field.removesuffix("_sha256")
        if facts[field] != value and part != field:
            raise DataError(
                f"{getattr(collection, part)}: sha256 is {value}, allowed: "
                f"{facts[field]}, the {part} that "
                f"{path} was measured with"
            )
        if facts[field] != value:
            raise DamagedError(
                f"row {row.dataset}/{row.system}: {field} is {facts[field]!r}, its "
                "data set "
                f"{facts['source']!r} has {value!r}"
            )
    stated = {
        **facts,
        "hits": row.result["run"]["hits_per_query"],
        "kind": row.result["system"]["kind"],
    }
    for field, value in row.result["identity"].items():
        if field in stated and value != stated[field]:
            raise DamagedError(
                f"{path}: identity.{field} is {value!r}, elsewhere in it {stated[field]!r}"
            )


def describe(collection: Collection) -> dict[str, Any]:
    """What a row says of its data set, read anew: SHA-256 of its three files, its rules, and
    ``survey``.
    """
    hashes = {
        f"{part}_sha256": sha256_of_content(getattr(collection, part))
        for part in ("corpus", "queries", "qrels")
    }
    return {
        **hashes,
        **{field: getattr(collection, field) for field in _RULES},
        **survey(collection),
    }


def survey(collection: Collection) -> dict[str, int]:
    """Counts of a data set: documents, judged queries, judgements, and what the qrels name that is
    not there.

    Raises ``DataError`` when no judged query, or no judged document, is there at all: the parts do
    not belong together.
    """
    qrels = readers.read_qrels(collection.qrels)
    judged = {doc_id for judgements in qrels.values() for doc_id in judgements}
    absent, documents = set(judged), 0
    for document in readers.read_documents(collection.corpus, check_unique=False):
        documents += 1
        absent.discard(document.doc_id)
    asked = {query.query_id for query in readers.read_queries(collection.queries)}
    missing = [query_id for query_id in qrels if query_id not in asked]
    for what, gone, of, place in (
        ("documents", absent, judged, collection.corpus),
        ("queries", missing, qrels, collection.queries),
    ):
        if len(gone) == len(of):
            raise DataError(
                f"{collection.qrels}: none of its {len(of)} {what} is in {place} "
                f"(first: {min(gone)!r}), "
                "allowed: qrels of this data set"
            )
    return {
        "documents": documents,
        "queries": len(qrels),
        "judgements": sum(map(len, qrels.values())),
        "absent_documents": len(absent),
        "absent_queries": len(missing),
    }


def _read_stored_run(folder: Path, row: Row) -> Run:
    path = folder / RUN
    if not path.is_file():
        raise DamagedError(f"{path} is missing; make the row again")
    try:
        found = sha256_of_content(path)
    except (OSError, EOFError, zlib.error) as error:
        raise DamagedError(f"{path} is damaged ({error}); make the row again") from error
    if found != row.result["run"]["sha256"]:
        raise DamagedError(
            f"{path}: sha256 of the run is {found}, {RESULT} says {row.result['run']['sha256']}"
        )
    run = runs.read_run(path)
    deepest = max(map(len, run.values()), default=0)
    if deepest > row.result["run"]["hits_per_query"]:
        raise DamagedError(
            f"{path} has {deepest} hits for a query, {RESULT} says "
            f"{row.result['run']['hits_per_query']} at most"
        )
    if (hits := sum(map(len, run.values()))) != row.result["run"].get("hits", hits):
        raise DamagedError(f"{path} has {hits} hits, {RESULT} says {row.result['run']['hits']}")
    return run
