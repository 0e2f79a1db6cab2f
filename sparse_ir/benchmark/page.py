"""The leaderboard as one HTML file: sortable tables, plots, and every query that a system wins or
loses.

The page is a template (``resources/leaderboard.html``) with the data in it as JSON. It asks nothing
of the network, and it shows texts as text, whatever they contain.
"""

from __future__ import annotations

import importlib.resources
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sparse_ir.benchmark.results import RUN, Row, row_folder, sha256_of_content
from sparse_ir.data import datasets, readers, runs
from sparse_ir.data.datasets import Collection
from sparse_ir.errors import DataError

SHOWN_CHARACTERS = 500  # of a document, and of a query
_PLACE = "@DATA@"
# no text can end the script element, or begin a comment in it; the same JSON to every reader
_UNSAFE = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"}


def format_page(board: Mapping[str, Any], details: Mapping[str, Any]) -> str:
    """The page as HTML, from ``leaderboard.make_board`` and ``collect_queries``."""
    template = (
        importlib.resources.files("sparse_ir")
        .joinpath("resources/leaderboard.html")
        .read_text(encoding="utf-8")
    )
    return template.replace(_PLACE, _embed({"board": board, "details": details}), 1)


def _embed(value: Any) -> str:
    """JSON that is safe inside of a script element: ASCII only, without any sign of HTML."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    for sign, escape in _UNSAFE.items():
        text = text.replace(sign, escape)
    return text


def collect_queries(
    found: Sequence[Row],
    results: Path,
    data_dir: Path,
    baseline: str,
    measure: str,
    queries: int,
    documents: int,
) -> dict[str, dict[str, Any]]:
    """Data set -> the queries in which systems differ most from the baseline, with texts as far as
    they are there.

    For each system the ``queries`` with the largest differences; of each, the values of all
    systems, and the first ``documents`` hits with their relevance. Data sets without a row of the
    baseline are left out. Raises ``DataError`` when the data below ``data_dir`` are not those that
    the rows were measured on.
    """
    grid: dict[str, dict[str, Row]] = {}
    for row in found:
        grid.setdefault(row.dataset, {})[row.system] = row
    return {
        name: _collect(of, results, data_dir, baseline, measure, queries, documents)
        for name, of in grid.items()
        if baseline in of and len(of) > 1
    }


def _collect(
    of: Mapping[str, Row],
    results: Path,
    data_dir: Path,
    baseline: str,
    measure: str,
    queries: int,
    documents: int,
) -> dict[str, Any]:
    values = {system: row.per_query[measure] for system, row in of.items()}
    chosen = _choose(values, baseline, queries)
    texts: dict[str, str] = {}
    hits: dict[str, dict[str, list[str]]] = {system: {} for system in of}
    judged: dict[str, dict[str, Any]] = {"documents": {}, "qrels": {}}
    for prefix, facts in of[baseline].parts.items():
        own = [query_id.removeprefix(prefix) for query_id in chosen if query_id.startswith(prefix)]
        collection = _find(facts, data_dir)
        texts |= _prefixed(prefix, _query_texts(collection, own))
        found = _first_hits(of, results, facts["name"], own, documents) if documents else {}
        for system, run in found.items():
            hits[system] |= {
                prefix + query_id: [prefix + doc_id for doc_id in ranked]
                for query_id, ranked in run.items()
            }
        shown = _judged_documents(collection, found, own)
        judged["documents"] |= _prefixed(prefix, shown["documents"])
        judged["qrels"] |= {
            prefix + query_id: _prefixed(prefix, of_query)
            for query_id, of_query in shown["qrels"].items()
        }
    return {
        "total": len(values[baseline]),
        "queries": [
            {
                "id": query_id,
                "text": texts.get(query_id),
                "values": {system: round(value[query_id], 4) for system, value in values.items()},
                "hits": {system: run.get(query_id, []) for system, run in hits.items()}
                if documents
                else {},
            }
            for query_id in chosen
        ],
        **judged,
    }


def _prefixed(prefix: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Ids of one forum may be those of another: with the name of the forum they are different."""
    return {prefix + key: value for key, value in values.items()}


def _choose(values: Mapping[str, Mapping[str, float]], baseline: str, count: int) -> list[str]:
    """The queries that differ most from the baseline, for any system; in
    the order of the data set.
    """
    first = values[baseline]
    chosen: set[str] = set()
    for system in values.keys() - {baseline}:
        differences = {
            query_id: abs(value - first[query_id]) for query_id, value in values[system].items()
        }
        ranked = sorted(
            (query_id for query_id, size in differences.items() if size),
            key=lambda key: -differences[key],
        )
        chosen |= set(ranked[:count])
    return [query_id for query_id in first if query_id in chosen]


def _find(facts: Mapping[str, Any], data_dir: Path) -> Collection | None:
    """The data set that rows were measured on; None where it does not lie below ``data_dir``."""
    collection = datasets.find(facts["source"], data_dir)
    if collection is None:
        return None
    for what, path in (
        ("corpus", collection.corpus),
        ("queries", collection.queries),
        ("qrels", collection.qrels),
    ):
        if (sha256 := sha256_of_content(path)) != facts[f"{what}_sha256"]:
            raise DataError(
                f"{path}: sha256 is {sha256}, allowed: {facts[f'{what}_sha256']}, the "
                f"{what} that the rows "
                f"of {facts['name']} were measured on; name another data folder"
            )
    return collection


def _query_texts(collection: Collection | None, chosen: Sequence[str]) -> dict[str, str]:
    if collection is None:
        return {}
    wanted = set(chosen)
    return {
        query.query_id: _cut(query.text)
        for query in readers.read_queries(collection.queries)
        if query.query_id in wanted
    }


def _first_hits(
    of: Mapping[str, Row], results: Path, dataset: str, chosen: Sequence[str], count: int
) -> dict[str, dict[str, Any]]:
    """System -> query -> its first hits."""
    found = {}
    for system in of:
        run = runs.read_run(row_folder(results, dataset, system) / RUN)
        found[system] = {
            query_id: [doc_id for doc_id, _ in run.get(query_id, [])[:count]] for query_id in chosen
        }
    return found


def _judged_documents(
    collection: Collection | None,
    hits: Mapping[str, Mapping[str, Sequence[str]]],
    chosen: Sequence[str],
) -> dict[str, Any]:
    """The texts of all hits, and the relevance of the relevant ones."""
    shown = {doc_id for run in hits.values() for found in run.values() for doc_id in found}
    if collection is None or not shown:
        return {"documents": {}, "qrels": {}}
    qrels = readers.read_qrels(collection.qrels)
    texts = {
        document.doc_id: _cut(document.contents)
        for document in readers.read_documents(collection.corpus, check_unique=False)
        if document.doc_id in shown
    }
    relevant = {
        query_id: {
            doc_id: grade
            for doc_id, grade in qrels[query_id].items()
            if grade > 0 and doc_id in shown
        }
        for query_id in chosen
    }
    return {"documents": texts, "qrels": relevant}


def _cut(text: str) -> str:
    return text if len(text) <= SHOWN_CHARACTERS else text[: SHOWN_CHARACTERS - 1] + "…"
