"""The command ``demo``: a search engine over the documentation of Python itself.

It takes the steps that any corpus takes (collect, build, BM25, search, evaluate), so it can be read
as an example. Numeric libraries are imported inside the functions, so that a help text appears at
once.
"""

from __future__ import annotations

import json
import platform
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparse_ir.commands import evaluating, indexing, searching
from sparse_ir.commands.arguments import Source, StrPath, command
from sparse_ir.console import progress_bar
from sparse_ir.errors import ConfigError
from sparse_ir.models.options import DEFAULT_MODEL, LEXICAL_MODEL, EncodeOptions
from sparse_ir.reports import DemoAnswer, DemoReport, IndexReport

if TYPE_CHECKING:
    from sparse_ir.data.records import Query
    from sparse_ir.retrieval.searcher import Index

SHOWN_QUESTIONS = ("q001", "q042", "q050")
MEASURES = "nDCG@10 R@100"
_MARK = "demo.json"


@command
def demo(
    output: StrPath = Path("indexes/demo"),
    *,
    model: Source = DEFAULT_MODEL,
    progress: bool = False,
) -> DemoReport:
    """Build, evaluate and query a search engine over the documentation of Python.

    The corpus is the documentation of the standard library as installed on this machine.

    Args:
        output: Folder for the collection and the two indexes. Everything in it can be deleted.
        model: Hub name or folder of a model, "default" (the model inside this package), or
            "lexical".
        progress: Show progress bars.
    """

    from sparse_ir.data import readers
    from sparse_ir.retrieval.searcher import Index

    output = Path(output)
    _check_folder(output)
    missing = _write_collection(output, progress)
    built = {
        "sparse_ir": _build_sparse(str(model), output, progress),
        "BM25": indexing.bm25(str(output), output / "bm25", progress=progress),
    }
    systems = {}
    for name, report in built.items():
        systems[name] = _measure(output, report, output / f"{name}.trec")
    questions = choose_questions(readers.read_queries(output))
    with Index(output / "index") as index:
        answers = [_answer(index, question) for question in questions]
    return {
        "collection": str(output),
        "packages": {"python": platform.python_version()},
        "judged_documents_not_installed": len(missing),
        "systems": systems,
        "answers": answers,
        "ask": f'sparse-ir search --index {shlex.quote(str(output / "index"))} "your question"',
    }


def _check_folder(output: Path) -> None:
    """Raise ``ConfigError`` unless the demo may write into a folder, and mark it as the demo's."""
    from sparse_ir.storage import files

    files.check_folder(output)
    is_own = (output / _MARK).exists() or (output / "BM25.trec").exists()  # the latter: of 0.1.0
    if output.is_dir() and any(output.iterdir()) and not is_own:
        raise ConfigError(
            f"{output} is not empty and was not made by the demo; it must be another folder"
        )
    files.write_json(output / _MARK, {"made_by": "sparse-ir demo"})


def _write_collection(output: Path, progress: bool) -> list[str]:
    """Write the collection as a BEIR folder.

    Returns the ids of judged documents that are not installed on this machine.
    """

    from sparse_ir.data import pydocs
    from sparse_ir.storage import files

    doc_ids = _write_corpus(output / "corpus.jsonl", progress)
    queries, qrels = pydocs.read_questions()
    kept, missing = pydocs.restrict_qrels(qrels, doc_ids)
    with files.atomic_writer(output / "queries.jsonl") as stream:
        for query in queries:
            if query.query_id in kept:
                stream.write(json.dumps({"_id": query.query_id, "text": query.text}) + "\n")
    with files.atomic_writer(output / "qrels" / "test.tsv") as stream:
        stream.write("query-id\tcorpus-id\tscore\n")
        for query_id, judged in kept.items():
            for doc_id, grade in judged.items():
                stream.write(f"{query_id}\t{doc_id}\t{grade}\n")
    return missing


def _write_corpus(path: Path, progress: bool) -> list[str]:
    """Write one JSON line per document; the ids of the documents."""

    from sparse_ir.data import pydocs
    from sparse_ir.storage import files

    doc_ids = []
    total = len(pydocs.find_modules())
    with (
        progress_bar(total, progress, desc="collecting", unit=" files") as bar,
        files.atomic_writer(path) as stream,
    ):
        for document in pydocs.read_pydocs(bar.update):
            record = {"_id": document.doc_id, "title": document.title, "text": document.text}
            stream.write(json.dumps(record, ensure_ascii=False) + "\n")
            doc_ids.append(document.doc_id)
    return doc_ids


def _build_sparse(model: str, output: Path, progress: bool) -> IndexReport:

    from sparse_ir.storage import files

    # Vectors of another model, or of packages updated since the last demo, cannot be resumed.
    corpus = files.sha256_of_file(output / "corpus.jsonl")[:12]
    vectors = output / f"vectors-{Path(model).name}-{corpus}"
    options: EncodeOptions = {}
    if model != LEXICAL_MODEL:
        # several times faster than float32; int8 costs at most half a point of nDCG@10
        options["precision"] = "auto"
    return indexing.build(
        model, str(output), output / "index", vectors=vectors, progress=progress, **options
    )


def _measure(output: Path, built: IndexReport, run: Path) -> dict[str, Any]:

    from sparse_ir.storage import files

    folder = Path(built["index"])
    # the first pass warms up, the second is timed
    searching.search(folder, str(output), run, hits=100)
    searched = searching.search(folder, str(output), run, hits=100)
    measured = evaluating.evaluate(run, str(output), measures=MEASURES)
    figures = {"documents": built["documents"], "questions": measured["queries"]}
    for measure in MEASURES.split():
        figures[measure] = round(measured[measure], 4)
    figures["megabytes"] = round(files.folder_size(folder / "lucene") / 1e6, 2)
    figures["p50_ms"] = searched["p50_ms"]
    return figures


def choose_questions(queries: Iterable[Query]) -> list[Query]:
    """The questions that the demo answers; the first three if those are not in the collection."""
    known = list(queries)
    chosen = [query for query in known if query.query_id in SHOWN_QUESTIONS]
    return chosen or known[:3]


def _answer(index: Index, question: Query) -> DemoAnswer:
    hits = []
    for hit in index.search(question.text, 3):
        matched = index.matched_terms(question.text, hit.doc_id)
        hits.append(hit.to_dict() | {"matched": matched})
    return {"question": question.text, "hits": hits}
