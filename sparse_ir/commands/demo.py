"""The main job on an embedded default: a search engine over the documentation that this machine
already has.

It walks the whole road that any corpus takes (collect, build, BM25, search, evaluate), so it can be
read as an example.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tqdm import tqdm

from sparse_ir.commands import evaluating, indexing, searching
from sparse_ir.data import pydocs, readers
from sparse_ir.data.pydocs import DEFAULT
from sparse_ir.data.records import Query
from sparse_ir.models.catalog import DEFAULT_MODEL, LEXICAL_MODEL, EncodeOptions
from sparse_ir.reports import Report
from sparse_ir.retrieval.searcher import Index
from sparse_ir.storage import files

SHOWN_QUESTIONS = ("q001", "q042", "q050")
STANDARD_LIBRARY = ("python",)
MEASURES = "nDCG@10 R@100"


def demo(
    output: Path = Path("indexes/demo"),
    *,
    model: str = DEFAULT_MODEL,
    full: bool = False,
    progress: bool = False,
) -> Report:
    """Build, measure and question a search engine over the documentation of Python's standard
    library.

    Args:
        output: Folder for the collection and the two indexes; everything in it can be deleted.
        model: Hub name or folder of a model, "lexical", or "default", the model inside this
            package.
        full: Also the documentation of numpy, scipy, torch and transformers as installed here.
        progress: Show progress bars.
    """
    output = Path(output)
    packages = DEFAULT if full else STANDARD_LIBRARY
    missing = _write_collection(output, packages, progress)
    systems = {}
    built = {
        "sparse_ir": _build_sparse(model, output, progress),
        "BM25": _build_bm25(output, progress),
    }
    for name, report in built.items():
        systems[name] = _measure(output, report, output / f"{name}.trec")
    with Index(output / "index") as index:
        answers = [_answer(index, query) for query in _shown(readers.read_queries(output))]
    return {
        "collection": str(output),
        "packages": pydocs.installed_versions(packages),
        "judged_documents_not_installed": len(missing),
        "systems": systems,
        "answers": answers,
    }


def _write_collection(output: Path, packages: Iterable[str], progress: bool) -> list[str]:
    """Write the collection as a BEIR folder; the judged documents that are not installed here."""
    doc_ids = []
    total = len(pydocs.find_modules(tuple(packages)))
    with (
        tqdm(
            total=total, desc="collecting", unit=" files", disable=None if progress else True
        ) as bar,
        files.atomic_writer(output / "corpus.jsonl") as stream,
    ):
        for document in pydocs.read_pydocs(tuple(packages), bar.update):
            record = {"_id": document.doc_id, "title": document.title, "text": document.text}
            stream.write(json.dumps(record, ensure_ascii=False) + "\n")
            doc_ids.append(document.doc_id)
    queries, qrels = pydocs.read_questions()
    kept, missing = pydocs.restrict_qrels(qrels, doc_ids)
    with files.atomic_writer(output / "queries.jsonl") as stream:
        for query in queries:
            if query.query_id in kept:
                stream.write(json.dumps({"_id": query.query_id, "text": query.text}) + "\n")
    with files.atomic_writer(output / "qrels" / "test.tsv") as stream:
        stream.write("query-id\tcorpus-id\tscore\n")
        for query_id, judged in kept.items():
            stream.writelines(
                f"{query_id}\t{doc_id}\t{grade}\n" for doc_id, grade in judged.items()
            )
    return missing


def _build_sparse(model: str, output: Path, progress: bool) -> Report:
    # another model, or packages that have changed since the last demo, are other vectors: nothing
    # to resume
    corpus = files.sha256_of_file(output / "corpus.jsonl")[:12]
    vectors = output / f"vectors-{Path(model).name}-{corpus}"
    # several times faster than float32, and where that rounds (int8), it costs half a point of
    # nDCG@10 at most
    chosen: EncodeOptions = {} if model == LEXICAL_MODEL else {"precision": "auto"}
    return indexing.build(
        model, str(output), output / "index", vectors=vectors, progress=progress, **chosen
    )


def _build_bm25(output: Path, progress: bool) -> Report:
    return indexing.bm25(str(output), output / "bm25", progress=progress)


def _measure(output: Path, built: Report, run: Path) -> dict[str, Any]:
    folder = Path(built["index"])
    # the first pass warms up, the second is timed
    searching.search(folder, str(output), run, hits=100)
    searched = searching.search(folder, str(output), run, hits=100)
    measured = evaluating.evaluate(run, str(output), measures=MEASURES)
    return {
        "documents": built["documents"],
        "questions": measured["queries"],
        **{name: round(measured[name], 4) for name in MEASURES.split()},
        "megabytes": round(files.folder_size(folder / "lucene") / 1e6, 2),
        "p50_ms": searched["p50_ms"],
    }


def _shown(queries: Iterable[Query]) -> list[Query]:
    found = list(queries)
    return [query for query in found if query.query_id in SHOWN_QUESTIONS] or found[:3]


def _answer(index: Index, query: Query) -> dict[str, Any]:
    hits = index.search(query.text, 3)
    return {
        "question": query.text,
        "hits": [
            {"doc_id": doc_id, "score": score, "matched": index.matched_terms(query.text, doc_id)}
            for doc_id, score in zip(hits.doc_ids, hits.scores.tolist(), strict=True)
        ],
    }
