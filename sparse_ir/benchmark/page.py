"""The leaderboard as one HTML file: sortable tables, plots, and the queries won and lost.

The page is a Jinja2 template (``resources/leaderboard.html``) that holds the data as JSON. It makes
no request to the network, and it shows texts as text, whatever they contain.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.resources
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from sparse_ir.benchmark import columns
from sparse_ir.benchmark.board import Board
from sparse_ir.benchmark.results import RUN, row_folder, sha256_of_content
from sparse_ir.benchmark.rows import DatasetFacts, Row
from sparse_ir.data import datasets, readers, runs
from sparse_ir.data.datasets import Collection
from sparse_ir.data.records import Qrels
from sparse_ir.errors import DataError

SHOWN_CHARACTERS = 500  # of a document, and of a query

Hits = dict[str, dict[str, list[str]]]  # system -> query_id -> doc_ids, best first


@dataclasses.dataclass(frozen=True)
class ShownQuery:
    """A query on the page."""

    id: str
    text: str | None  # None if the data set is not there
    values: dict[str, float]  # system -> value
    hits: dict[str, list[str]]  # system -> its first doc_ids; empty if no documents are shown


@dataclasses.dataclass(frozen=True)
class ShownDataset:
    """The queries of a data set that are on the page."""

    total: int  # queries of the data set
    queries: list[ShownQuery]
    documents: dict[str, str]  # doc_id -> text
    qrels: Qrels  # of the documents that are shown, relevant ones only


@dataclasses.dataclass(frozen=True)
class Selection:
    """Which queries and documents the page shows."""

    results: Path
    data_dir: Path
    baseline: str
    measure: str
    queries: int  # for each system: those that differ most from the baseline
    documents: int  # the first hits of each query


def format_page(board: Board, details: Mapping[str, ShownDataset]) -> str:
    """The page as HTML."""
    shown = {name: dataclasses.asdict(dataset) for name, dataset in details.items()}
    data = {
        "board": board.to_json(),
        "details": shown,
        "columns": columns.describe_for_page(board.measure, board.baseline),
    }
    return _template().render(data=data)


@functools.cache
def _template() -> jinja2.Template:
    """The template. ``tojson`` escapes every sign that could end the script element."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, keep_trailing_newline=True
    )
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    path = importlib.resources.files("sparse_ir") / "resources" / "leaderboard.html"
    return environment.from_string(path.read_text(encoding="utf-8"))


def collect_queries(rows: Sequence[Row], selection: Selection) -> dict[str, ShownDataset]:
    """Data set -> the queries in which systems differ most from the baseline.

    Texts are included if the data set is below the data folder. Data sets without a row of the
    baseline are left out. Raises ``DataError`` if the data differ from those that the rows were
    measured on.
    """
    grid: dict[str, dict[str, Row]] = {}
    for row in rows:
        grid.setdefault(row.dataset, {})[row.system] = row
    collected = {}
    for name, by_system in grid.items():
        if selection.baseline in by_system and len(by_system) > 1:
            collected[name] = _collect(by_system, selection)
    return collected


def _collect(rows: Mapping[str, Row], selection: Selection) -> ShownDataset:
    values = {}
    for system, row in rows.items():
        values[system] = row.per_query[selection.measure]
    chosen = _choose(values, selection.baseline, selection.queries)
    texts: dict[str, str] = {}
    hits: Hits = {system: {} for system in rows}
    documents: dict[str, str] = {}
    qrels: Qrels = {}
    for prefix, part in rows[selection.baseline].parts.items():
        facts = part.result.dataset
        own = [query_id.removeprefix(prefix) for query_id in chosen if query_id.startswith(prefix)]
        collection = _find_collection(facts, selection.data_dir)
        part_hits: Hits = {}
        if selection.documents:
            part_hits = _read_hits(list(rows), facts.name, own, selection)
        part_documents, part_qrels = _read_documents(collection, part_hits, own)
        # the ids of one forum may be those of another: with a prefix, they are different
        texts |= _with_prefix(prefix, _read_query_texts(collection, own))
        documents |= _with_prefix(prefix, part_documents)
        for query_id, judged in part_qrels.items():
            qrels[prefix + query_id] = _with_prefix(prefix, judged)
        for system, found in part_hits.items():
            for query_id, doc_ids in found.items():
                hits[system][prefix + query_id] = [prefix + doc_id for doc_id in doc_ids]
    queries = []
    for query_id in chosen:
        own_values = {system: round(value[query_id], 4) for system, value in values.items()}
        own_hits = {}
        if selection.documents:
            own_hits = {system: found.get(query_id, []) for system, found in hits.items()}
        queries.append(ShownQuery(query_id, texts.get(query_id), own_values, own_hits))
    return ShownDataset(len(values[selection.baseline]), queries, documents, qrels)


def _with_prefix(prefix: str, values: Mapping[str, Any]) -> dict[str, Any]:
    return {prefix + key: value for key, value in values.items()}


def _choose(values: Mapping[str, Mapping[str, float]], baseline: str, count: int) -> list[str]:
    """The ``count`` queries of each system that differ most, in the order of the data set."""
    baseline_values = values[baseline]
    chosen: set[str] = set()
    for system in values.keys() - {baseline}:
        differences = {}
        for query_id, value in values[system].items():
            size = abs(value - baseline_values[query_id])
            if size:
                differences[query_id] = size
        largest_first = sorted(differences, key=differences.__getitem__, reverse=True)
        chosen.update(largest_first[:count])
    return [query_id for query_id in baseline_values if query_id in chosen]


def _find_collection(facts: DatasetFacts, data_dir: Path) -> Collection | None:
    """The data set that rows were measured on; None if it is not below ``data_dir``."""
    collection = datasets.find(facts.source, data_dir)
    if collection is None:
        return None
    for part in ("corpus", "queries", "qrels"):
        path = getattr(collection, part)
        sha256 = sha256_of_content(path)
        measured = getattr(facts, f"{part}_sha256")
        if sha256 != measured:
            raise DataError(
                f"{path}: sha256 is {sha256}, but must be {measured}, the {part} that the rows of "
                f"{facts.name} were measured on; name another data folder"
            )
    return collection


def _read_query_texts(collection: Collection | None, chosen: Sequence[str]) -> dict[str, str]:
    if collection is None:
        return {}
    wanted = set(chosen)
    texts = {}
    for query in readers.read_queries(collection.queries):
        if query.query_id in wanted:
            texts[query.query_id] = _cut(query.text)
    return texts


def _read_hits(
    systems: Sequence[str], dataset: str, chosen: Sequence[str], selection: Selection
) -> Hits:
    """The first hits of the chosen queries, from the stored runs."""
    hits: Hits = {}
    for system in systems:
        run = runs.read_run(row_folder(selection.results, dataset, system) / RUN)
        hits[system] = {}
        for query_id in chosen:
            first = run.get(query_id, [])[: selection.documents]
            hits[system][query_id] = [doc_id for doc_id, _ in first]
    return hits


def _read_documents(
    collection: Collection | None, hits: Hits, chosen: Sequence[str]
) -> tuple[dict[str, str], Qrels]:
    """The texts of all hits, and the grades of the relevant ones by query."""
    shown: set[str] = set()
    for run in hits.values():
        for doc_ids in run.values():
            shown.update(doc_ids)
    if collection is None or not shown:
        return {}, {}
    texts = {}
    for document in readers.read_documents(collection.corpus, check_unique=False):
        if document.doc_id in shown:
            texts[document.doc_id] = _cut(document.contents)
    qrels = readers.read_qrels(collection.qrels)
    relevant: Qrels = {}
    for query_id in chosen:
        relevant[query_id] = {}
        for doc_id, grade in qrels[query_id].items():
            if grade > 0 and doc_id in shown:
                relevant[query_id][doc_id] = grade
    return texts, relevant


def _cut(text: str) -> str:
    if len(text) <= SHOWN_CHARACTERS:
        return text
    return text[: SHOWN_CHARACTERS - 1] + "…"
