"""Is a stored row true? Its run and data set are checked by hash, its measures computed again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sparse_ir.benchmark.results import (
    RESULT,
    RUN,
    measure,
    read_row,
    row_folders,
    sha256_of_content,
)
from sparse_ir.benchmark.rows import HASHES, DatasetFacts, Row
from sparse_ir.data import datasets, readers, runs
from sparse_ir.data.datasets import Collection
from sparse_ir.data.records import Run
from sparse_ir.errors import DamagedError, DataError
from sparse_ir.storage import reading


def verify_row(
    folder: Path, collection: Collection, known: DatasetFacts | None = None
) -> dict[str, Any]:
    """Measure the stored run again; every measure must be the stored one to the last digit.

    This vouches for run, data set, measures and means. No stored file can prove that the named
    system made the run, or the depth, speed, cost and versions of the search; to check these, run
    the row's command again.

    ``known`` is what ``describe`` returns for the collection, for callers with several rows of it.
    A measure that the row lacks, because it is older than the column, is not checked.

    Raises:
        DamagedError: the row, its run or a measure differs.
        DataError: the data set is not that of the row.
    """
    row = read_row(folder)
    path = folder / RESULT
    _check_dataset(path, row, collection, known or describe(collection, row.result.dataset.source))
    run = _read_stored_run(folder, row)
    qrels = readers.read_qrels(collection.qrels)
    means, per_query = measure(run, qrels, row.result.dataset.relevance_level)
    report: dict[str, Any] = {
        "dataset": row.dataset,
        "system": row.system,
        "ok": True,
        "queries": len(qrels),
    }
    for column, stored in row.measures.items():
        mean = means.get(column)
        if mean is None:
            continue
        if mean != stored:
            raise DamagedError(f"{path}: {column} is {stored}, its run gives {mean}")
        values = row.per_query[column]
        if per_query[column].keys() != values.keys():
            raise DamagedError(f"{path}: {column} has values for other queries than its qrels")
        for query_id, value in per_query[column].items():
            if values[query_id] != value:
                raise DamagedError(
                    f"{path}: {column} of query {query_id} is {values[query_id]}, its run gives "
                    f"{value}"
                )
        report[column] = mean
    return report


def verify_rows(results: Path, data_dir: Path) -> list[dict[str, Any]]:
    """Verify every row below ``results`` against the data sets below ``data_dir``.

    Returns one report for each row. Raises ``DataError`` if there is no row, or if the data set of
    a row is missing; other errors as in ``verify_row``.
    """
    folders = row_folders(results)
    if not folders:
        raise DataError(f"{results} holds no row (DATASET/SYSTEM/{RESULT})")
    known: dict[Collection, DatasetFacts] = {}
    reports = []
    for folder in folders:
        row = read_row(folder)
        source = row.result.dataset.source
        collection = datasets.find(source, data_dir)
        if collection is None:
            raise DataError(
                f"row {row.dataset}/{row.system}: its data set {source!r} is not in {data_dir}"
            )
        if collection not in known:
            known[collection] = describe(collection, source)
        reports.append(verify_row(folder, collection, known[collection]))
    return reports


def _check_dataset(path: Path, row: Row, collection: Collection, known: DatasetFacts) -> None:
    """Check that the row's data set is this one, by its files, its rules and its counts."""
    facts = row.result.dataset.model_dump()
    for field in (*HASHES, *facts):
        stored = facts[field]
        value = getattr(known, field)
        if stored == value:
            continue
        if field in HASHES:
            part = field.removesuffix("_sha256")
            raise DataError(
                f"{getattr(collection, part)}: sha256 is {value}, but must be {stored}, the "
                f"{part} that {path} was measured with"
            )
        raise DamagedError(
            f"row {row.dataset}/{row.system}: {field} is {stored!r}, its data set "
            f"{known.source!r} has {value!r}"
        )
    facts["hits"] = row.result.run.hits_per_query
    facts["kind"] = row.result.system.kind
    for field, value in row.result.identity.items():
        if field in facts and value != facts[field]:
            raise DamagedError(
                f"{path}: identity.{field} is {value!r}, elsewhere in it {facts[field]!r}"
            )


def describe(
    collection: Collection, source: str, hashes: Mapping[str, Any] | None = None
) -> DatasetFacts:
    """The rules, counts and hashes of a data set (by default made here), read from its files.

    Raises ``DataError`` if none of the judged queries, or none of the judged documents, exists: the
    files do not belong together.
    """
    qrels = readers.read_qrels(collection.qrels)
    judged: set[str] = set()
    for judgements in qrels.values():
        judged.update(judgements)
    absent_documents = set(judged)
    documents = 0
    for document in readers.read_documents(collection.corpus, check_unique=False):
        documents += 1
        absent_documents.discard(document.doc_id)
    absent_queries = set(qrels)
    for query in readers.read_queries(collection.queries):
        absent_queries.discard(query.query_id)
    for what, absent, known, place in (
        ("documents", absent_documents, judged, collection.corpus),
        ("queries", absent_queries, qrels, collection.queries),
    ):
        if len(absent) == len(known):
            raise DataError(
                f"{collection.qrels}: none of its {len(known)} {what} is in {place} (first: "
                f"{min(absent)!r}); these must be the qrels of this data set"
            )
    return DatasetFacts(
        name=collection.name,
        split=collection.split,
        source=source,
        documents=documents,
        queries=len(qrels),
        judgements=sum(map(len, qrels.values())),
        absent_documents=len(absent_documents),
        absent_queries=len(absent_queries),
        remove_identical=collection.remove_identical,
        relevance_level=collection.relevance_level,
        **(hashes or hash_files(collection)),
    )


def hash_files(collection: Collection) -> dict[str, Any]:
    """The SHA-256 of corpus, queries and qrels, by the names in a row."""
    hashes = {}
    for field in HASHES:
        hashes[field] = sha256_of_content(getattr(collection, field.removesuffix("_sha256")))
    return hashes


def _read_stored_run(folder: Path, row: Row) -> Run:
    path = folder / RUN
    facts = row.result.run
    if not path.is_file():
        raise DamagedError(f"{path} is missing; make the row again")
    with reading.reading(path, "a compressed run", remedy="; make the row again"):
        sha256 = sha256_of_content(path)
    if sha256 != facts.sha256:
        raise DamagedError(f"{path}: sha256 of the run is {sha256}, {RESULT} says {facts.sha256}")
    run = runs.read_run(path)
    depths = list(map(len, run.values()))
    deepest = max(depths, default=0)
    if deepest > facts.hits_per_query:
        raise DamagedError(
            f"{path} has {deepest} hits for a query, {RESULT} says {facts.hits_per_query} at most"
        )
    if facts.hits is not None and sum(depths) != facts.hits:
        raise DamagedError(f"{path} has {sum(depths)} hits, {RESULT} says {facts.hits}")
    return run
