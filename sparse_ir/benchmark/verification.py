"""Is a stored row true? Its run and data set are checked by hash, its measures computed again."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Collection as Sized
from collections.abc import Iterable
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
from sparse_ir.benchmark.rows import HASHES, Row
from sparse_ir.data import datasets, readers, runs
from sparse_ir.data.datasets import Collection
from sparse_ir.data.records import Run
from sparse_ir.errors import DamagedError, DataError

_RULES = ("name", "split", "remove_identical", "relevance_level")  # of a data set


@dataclasses.dataclass(frozen=True)
class Survey:
    """Counts of a data set."""

    documents: int
    queries: int  # with judgements
    judgements: int
    absent_documents: int  # judged, but not in the corpus
    absent_queries: int  # judged, but not among the queries


@dataclasses.dataclass(frozen=True)
class Description:
    """What a row says about its data set, read again from the files."""

    hashes: dict[str, str]  # corpus_sha256, queries_sha256, qrels_sha256
    facts: dict[str, Any]  # name, rules and counts


def verify_row(
    folder: Path, collection: Collection, known: Description | None = None
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
    _check_dataset(path, row, collection, known or describe(collection))
    run = _read_stored_run(folder, row)
    qrels = readers.read_qrels(collection.qrels)
    means, per_query = measure(run, qrels, row.result.dataset.relevance_level)
    verified = {column: mean for column, mean in means.items() if column in row.measures}
    for column, mean in verified.items():
        stored = row.measures[column]
        if mean != stored:
            raise DamagedError(f"{path}: {column} is {stored}, its run gives {mean}")
        _check_values(path, row, column, per_query[column])
    return {
        "dataset": row.dataset,
        "system": row.system,
        "ok": True,
        "queries": len(qrels),
        **verified,
    }


def _check_values(path: Path, row: Row, column: str, values: dict[str, float]) -> None:
    stored = row.per_query[column]
    if set(values) != set(stored):
        raise DamagedError(f"{path}: {column} has values for other queries than its qrels")
    for query_id, value in values.items():
        if stored[query_id] != value:
            raise DamagedError(
                f"{path}: {column} of query {query_id} is {stored[query_id]}, its run gives {value}"
            )


def verify_rows(results: Path, data_dir: Path) -> list[dict[str, Any]]:
    """Verify every row below ``results`` against the data sets below ``data_dir``.

    Returns one report for each row. Raises ``DataError`` if there is no row, or if the data set of
    a row is missing; other errors as in ``verify_row``.
    """
    folders = row_folders(results)
    if not folders:
        raise DataError(f"{results} holds no row (DATASET/SYSTEM/{RESULT})")
    known: dict[Collection, Description] = {}
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
            known[collection] = describe(collection)
        reports.append(verify_row(folder, collection, known[collection]))
    return reports


def _check_dataset(path: Path, row: Row, collection: Collection, known: Description) -> None:
    """Check that the row's data set is this one, by its files, its rules and its counts."""
    facts = row.result.dataset
    for field, sha256 in known.hashes.items():
        stored = getattr(facts, field)
        part = field.removesuffix("_sha256")
        if stored != sha256:
            raise DataError(
                f"{getattr(collection, part)}: sha256 is {sha256}, but must be {stored}, the "
                f"{part} that {path} was measured with"
            )
    for field, value in known.facts.items():
        stored = getattr(facts, field)
        if stored != value:
            raise DamagedError(
                f"row {row.dataset}/{row.system}: {field} is {stored!r}, its data set "
                f"{facts.source!r} has {value!r}"
            )
    stated = facts.model_dump()
    stated["hits"] = row.result.run.hits_per_query
    stated["kind"] = row.result.system.kind
    for field, value in row.result.identity.items():
        if field in stated and value != stated[field]:
            raise DamagedError(
                f"{path}: identity.{field} is {value!r}, elsewhere in it {stated[field]!r}"
            )


def describe(collection: Collection) -> Description:
    """The hashes, rules and counts of a data set, read from its files."""
    hashes = {}
    for field in HASHES:
        part = field.removesuffix("_sha256")
        hashes[field] = sha256_of_content(getattr(collection, part))
    facts = {field: getattr(collection, field) for field in _RULES}
    facts |= dataclasses.asdict(survey(collection))
    return Description(hashes, facts)


def survey(collection: Collection) -> Survey:
    """Count a data set, and what its qrels name that does not exist.

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
    query_ids = {query.query_id for query in readers.read_queries(collection.queries)}
    absent_queries = qrels.keys() - query_ids
    _check_overlap(collection, "documents", absent_documents, judged, collection.corpus)
    _check_overlap(collection, "queries", absent_queries, qrels, collection.queries)
    return Survey(
        documents=documents,
        queries=len(qrels),
        judgements=sum(len(judgements) for judgements in qrels.values()),
        absent_documents=len(absent_documents),
        absent_queries=len(absent_queries),
    )


def _check_overlap(
    collection: Collection, what: str, absent: Iterable[str], judged: Sized[str], place: Path
) -> None:
    missing = sorted(absent)
    if len(missing) == len(judged):
        raise DataError(
            f"{collection.qrels}: none of its {len(judged)} {what} is in {place} (first: "
            f"{missing[0]!r}); these must be the qrels of this data set"
        )


def _read_stored_run(folder: Path, row: Row) -> Run:
    path = folder / RUN
    facts = row.result.run
    if not path.is_file():
        raise DamagedError(f"{path} is missing; make the row again")
    try:
        sha256 = sha256_of_content(path)
    except (OSError, EOFError, zlib.error) as error:
        raise DamagedError(f"{path} is damaged ({error}); make the row again") from error
    if sha256 != facts.sha256:
        raise DamagedError(f"{path}: sha256 of the run is {sha256}, {RESULT} says {facts.sha256}")
    run = runs.read_run(path)
    depths = [len(hits) for hits in run.values()]
    deepest = max(depths, default=0)
    if deepest > facts.hits_per_query:
        raise DamagedError(
            f"{path} has {deepest} hits for a query, {RESULT} says {facts.hits_per_query} at most"
        )
    if facts.hits is not None and sum(depths) != facts.hits:
        raise DamagedError(f"{path} has {sum(depths)} hits, {RESULT} says {facts.hits}")
    return run
