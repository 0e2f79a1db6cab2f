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

import jinja2

from sparse_ir.benchmark import columns
from sparse_ir.benchmark.averages import by_dataset
from sparse_ir.benchmark.board import Board
from sparse_ir.benchmark.results import RUN, row_folder, sha256_of_content
from sparse_ir.benchmark.rows import DatasetFacts, Row
from sparse_ir.data import datasets, readers, runs
from sparse_ir.data.datasets import Collection
from sparse_ir.data.records import Qrels, Run
from sparse_ir.errors import DataError

SHOWN_CHARACTERS = 500  # of a document, and of a query


@dataclasses.dataclass
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
    data = {
        "board": board.model_dump(),
        "details": {name: dataclasses.asdict(dataset) for name, dataset in details.items()},
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
    collected = {}
    for name, by_system in by_dataset(rows).items():
        if selection.baseline in by_system and len(by_system) > 1:
            collected[name] = _collect(by_system, selection)
    return collected


def _collect(rows: Mapping[str, Row], selection: Selection) -> ShownDataset:
    values = {system: row.per_query[selection.measure] for system, row in rows.items()}
    queries = []
    for query_id in _choose(values, selection.baseline, selection.queries):
        own = {system: round(value[query_id], 4) for system, value in values.items()}
        hits: dict[str, list[str]] = {}
        if selection.documents:
            hits = {system: [] for system in rows}
        queries.append(ShownQuery(query_id, None, own, hits))
    shown = ShownDataset(len(values[selection.baseline]), queries, {}, {})
    for prefix, part in rows[selection.baseline].parts.items():
        # the ids of one forum may be those of another: with a prefix, they are different
        own_queries = {}
        for query in queries:
            if query.id.startswith(prefix):
                own_queries[query.id.removeprefix(prefix)] = query
        if selection.documents:
            for system in rows:
                path = row_folder(selection.results, part.result.dataset.name, system) / RUN
                _add_hits(own_queries, system, prefix, runs.read_run(path), selection.documents)
        collection = _find_collection(part.result.dataset, selection.data_dir)
        if collection is not None:
            _add_texts(shown, own_queries, prefix, collection)
    return shown


def _add_hits(
    queries: Mapping[str, ShownQuery], system: str, prefix: str, run: Run, depth: int
) -> None:
    """The first hits of the queries (by their own ids), from a stored run."""
    for query_id, query in queries.items():
        for doc_id, _ in run.get(query_id, [])[:depth]:
            query.hits[system].append(prefix + doc_id)


def _add_texts(
    shown: ShownDataset, queries: Mapping[str, ShownQuery], prefix: str, collection: Collection
) -> None:
    """The texts of the queries (by their own ids) and hits, and the grades of relevant hits."""
    for query in readers.read_queries(collection.queries):
        if query.query_id in queries:
            queries[query.query_id].text = _cut(query.text)
    wanted: set[str] = set()
    for shown_query in queries.values():
        wanted.update(*shown_query.hits.values())
    if not wanted:
        return
    for document in readers.read_documents(collection.corpus, check_unique=False):
        if prefix + document.doc_id in wanted:
            shown.documents[prefix + document.doc_id] = _cut(document.contents)
    qrels = readers.read_qrels(collection.qrels)
    for query_id in queries:
        relevant = shown.qrels.setdefault(prefix + query_id, {})
        for doc_id, grade in qrels[query_id].items():
            if grade > 0 and prefix + doc_id in wanted:
                relevant[prefix + doc_id] = grade


def _choose(values: Mapping[str, Mapping[str, float]], baseline: str, count: int) -> list[str]:
    """The ``count`` queries of each system that differ most, in the order of the data set."""
    chosen: set[str] = set()
    for system in values.keys() - {baseline}:
        differences = {}
        for query_id, value in values[system].items():
            size = abs(value - values[baseline][query_id])
            if size:
                differences[query_id] = size
        largest_first = sorted(differences, key=differences.__getitem__, reverse=True)
        chosen.update(largest_first[:count])
    return [query_id for query_id in values[baseline] if query_id in chosen]


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


def _cut(text: str) -> str:
    if len(text) <= SHOWN_CHARACTERS:
        return text
    return text[: SHOWN_CHARACTERS - 1] + "…"
