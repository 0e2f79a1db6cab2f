"""Small sources of training pairs: files, folders, and lists of positions."""

import gzip
import json

import numpy as np

from sparse_ir.training.sources.training_source import TrainingSource

HEADER = "query-id\tcorpus-id\tscore\n"
INLINE = {"query": "salt", "positive": "sea salt", "negatives": ["sugar", "sand"]}


def write_lines(path, records):
    path.parent.mkdir(parents=True, exist_ok=True)
    raw = "".join(json.dumps(record) + "\n" for record in records).encode()
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)
    return path


def write_folder(root, *, documents=None, queries=None, judgements=None, split="train"):
    """A BEIR folder: q1 -> d1, q2 -> d2 and d3 (and d4 judged 0), over six documents of which d5
    equals d1 in text.
    """
    documents = documents or {
        "d1": "one",
        "d2": "two",
        "d3": "three",
        "d4": "four",
        "d5": "one",
        "d6": "",
    }
    queries = queries or {"q0": "unused", "q1": "first", "q2": "second"}
    judgements = judgements or [("q1", "d1", 1), ("q2", "d2", 1), ("q2", "d3", 2), ("q2", "d4", 0)]
    write_lines(
        root / "corpus.jsonl", [{"_id": key, "text": text} for key, text in documents.items()]
    )
    write_lines(
        root / "queries.jsonl.gz", [{"_id": key, "text": text} for key, text in queries.items()]
    )
    qrels = root / "qrels" / f"{split}.tsv"
    qrels.parent.mkdir(exist_ok=True)
    qrels.write_text(
        HEADER + "".join(f"{query}\t{document}\t{value}\n" for query, document, value in judgements)
    )
    return root


def mined(query_id, positives, negatives):
    return {"query_id": query_id, "positives": positives, "negatives": negatives}


def make_source(
    positives, negatives=None, *, name="made", documents=None, queries=None, scores=None, weight=1.0
):
    """A source from lists of positions; document i is "document i" unless given."""
    lists = [np.array(entry, dtype=np.int32) for entry in positives]
    others = [np.array(entry, dtype=np.int32) for entry in negatives or [[] for _ in positives]]
    count = 1 + max(int(entry.max()) for entry in [*lists, *others] if len(entry))
    return TrainingSource(
        name=name,
        query_ids=[f"q{i}" for i in range(len(lists))],
        queries=queries or [f"query {i}" for i in range(len(lists))],
        doc_ids=None,
        documents=documents or [f"document {i}" for i in range(count)],
        positives=lists,
        negatives=others,
        scores=scores,
        weight=weight,
    )


def make_line(count, *, near=0, **options):
    """Query i has the positive i, and the ``near`` following documents as negatives."""
    negatives = [[(i + j) % count for j in range(1, near + 1)] for i in range(count)]
    return make_source([[i] for i in range(count)], negatives, **options)


def as_lists(arrays):
    return [entry.tolist() for entry in arrays]


def show(batch):
    """The batch as values that compare."""
    scores = None if batch.scores_QD is None else batch.scores_QD.tobytes()
    return (
        batch.source,
        batch.queries,
        batch.documents,
        batch.positive_Q.tolist(),
        batch.allowed_QD.tolist(),
        scores,
    )


def positives_of(batch):
    return [batch.documents[column] for column in dict.fromkeys(batch.positive_Q.tolist())]
