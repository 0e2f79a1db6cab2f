"""Small data sets and rows with known answers: each query has one relevant document, found at a
rank that is given.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sparse_ir.benchmark import results as results_module
from sparse_ir.benchmark.results import measure, read_row, sha256_of_content
from sparse_ir.benchmark.rows import Result, Row, Timing
from sparse_ir.data import readers
from sparse_ir.data.records import Run

# what a data set may contain and a page must show as it is
HOSTILE = (
    "</script><script>document.title = 'taken'</script>",
    "<!-- <script> --> &lt;b&gt; \u2028 ]]>",
    "<img src=x onerror=\"document.title = 'taken'\">",
    "naïve 検索 \\u003c {{x}} {{ data }}",
)
FILLERS = [f"f{number}" for number in range(10)]


def write_dataset(data_dir: Path, name: str, queries: int) -> Path:
    """A BEIR folder: query ``qN`` asks for document ``dN``; ten fillers answer nothing."""
    folder = data_dir / name
    (folder / "qrels").mkdir(parents=True)
    documents = [
        {"_id": f"d{number}", "title": "", "text": f"answer {number} {HOSTILE[number % 4]}"}
        for number in range(queries)
    ] + [{"_id": filler, "title": "", "text": "filler"} for filler in FILLERS]
    asked = [
        {"_id": f"q{number}", "text": f"question {number} {HOSTILE[number % 4]}"}
        for number in range(queries)
    ]
    for stem, records in (("corpus", documents), ("queries", asked)):
        lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
        (folder / f"{stem}.jsonl").write_text("".join(lines), encoding="utf-8")
    lines = [f"q{number}\td{number}\t1\n" for number in range(queries)]
    (folder / "qrels" / "test.tsv").write_text(
        "query-id\tcorpus-id\tscore\n" + "".join(lines), encoding="utf-8"
    )
    return folder


def make_run(ranks: Sequence[int]) -> Run:
    """Query ``qN`` finds ``dN`` at ``ranks[N]``, behind fillers; 0: fillers alone."""
    found = {}
    for number, rank in enumerate(ranks):
        ranking = [*FILLERS[: rank - 1], f"d{number}"] if rank else FILLERS
        found[f"q{number}"] = [(doc_id, 100.0 - place) for place, doc_id in enumerate(ranking)]
    return found


def write_row(
    results: Path,
    data_dir: Path,
    name: str,
    system: str,
    ranks: Sequence[int],
    *,
    p50: float | None = 2.0,
) -> Row:
    """Measure and write one row of a data set in ``data_dir``; the row."""
    folder = data_dir / name
    run = make_run(ranks)
    qrels = readers.read_qrels(folder / "qrels" / "test.tsv")
    means, per_query = measure(run, qrels)
    parts = {"corpus": "corpus.jsonl", "queries": "queries.jsonl", "qrels": "qrels/test.tsv"}
    hashes = {f"{what}_sha256": sha256_of_content(folder / file) for what, file in parts.items()}
    counts = {
        "documents": len(ranks) + 10,
        "queries": len(ranks),
        "judgements": len(ranks),
        "absent_documents": 0,
        "absent_queries": 0,
    }
    latency = None if p50 is None else {"mean": p50, "p50": p50, "p95": 2 * p50, "p99": 3 * p50}
    timing = {
        "encode_documents_per_second": None if system == "bm25" else 10.0 * len(ranks),
        "search_latency_ms": latency,
        "hardware": {"processor": "Made CPU"},
        "date": "2026-01-02T03:04:05Z",
    }
    result: dict[str, Any] = {
        "dataset": {
            "name": name.replace("/", "-"),
            "source": name.replace("/", "-"),
            "split": "test",
            **counts,
            "remove_identical": False,
            "relevance_level": 1,
            **hashes,
        },
        "system": {
            "name": system,
            "kind": "bm25" if system == "bm25" else "impact",
            "model": None,
            "revision": None,
            "hash": f"hash of {system}",
        },
        "measures": means,
        "per_query": per_query,
        "identity": {},
        "versions": {"sparse_ir": "1"},
        "commit": "abc",
        "command": f"sparse-ir beir --model {system}",
        "run": {"hits_per_query": 1000},
        "efficiency": {
            "mean_query_terms": 4.0,
            "mean_document_terms": float(len(ranks)),
            "flops": 0.5,
            "index_bytes": 1_000_000,
        },
    }
    row = Row(Result.model_validate(result), Timing.model_validate(timing))
    results_module.write_row(results, row, run)
    return read_row(results / result["dataset"]["name"] / system)


def write_results(
    root: Path, ranks: Mapping[str, Mapping[str, Sequence[int]]]
) -> tuple[Path, Path]:
    """Data set -> system -> ranks, written; the folders of rows and of data sets."""
    for name, of in ranks.items():
        write_dataset(root / "data", name, len(next(iter(of.values()))))
        for system, found in of.items():
            write_row(root / "results", root / "data", name, system, found)
    return root / "results", root / "data"
