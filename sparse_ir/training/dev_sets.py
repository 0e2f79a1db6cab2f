"""Dev sets: small collections that are searched exactly while training goes on, and the measure of
each.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from scipy import sparse

from sparse_ir.data import readers, records
from sparse_ir.data.records import Qrels, Query, Run
from sparse_ir.errors import ConfigError, DataError
from sparse_ir.evaluation import measures
from sparse_ir.training.trainable_encoder import TokenWeights, TrainableEncoder

_DEPTH = 100


class DevSet(NamedTuple):
    """A collection that is searched exactly while training goes on."""

    name: str
    doc_ids: list[str]
    documents: list[str]
    queries: list[Query]
    qrels: Qrels
    measure: str


def evaluate(model: TrainableEncoder, query_side: TokenWeights | None, dev: DevSet) -> float:
    """The measure over the dev set by exact search, as the saved model encodes before its numbers
    are rounded.
    """
    documents = model.vectors(dev.documents)
    texts = [query.text for query in dev.queries]
    if query_side is None:
        asked = model.vectors(texts, neural_queries=True)
    else:
        with torch.no_grad():
            asked = sparse.csr_matrix(
                query_side(model.tokenize_queries(texts, whole=True)).cpu().numpy()
            )
    scores = (asked @ documents.T).tocsr()
    run: Run = {}
    for query, start, end in zip(dev.queries, scores.indptr[:-1], scores.indptr[1:], strict=True):
        best = np.argsort(-scores.data[start:end], kind="stable")[:_DEPTH] + start
        run[query.query_id] = records.rank_hits(
            (dev.doc_ids[scores.indices[i]], float(scores.data[i])) for i in best
        )
    # a model that is dead finds nothing, which no file of a run could be meant to say
    if not any(run.values()):
        return 0.0
    return measures.evaluate_run(run, dev.qrels, dev.measure).mean[dev.measure]


def read_dev_set(
    path: str,
    *,
    name: str | None = None,
    split: str = "dev",
    measure: str = "nDCG@10",
    max_queries: int | None = None,
    max_documents: int | None = None,
) -> DevSet:
    """A dev set from a BEIR folder; a smaller corpus keeps all judged documents, then the first of
    the others.

    Raises ``ConfigError`` for an unknown measure or too few documents, ``DataError`` for a split
    without queries.
    """
    measures.parse_measures(measure)
    qrels = readers.read_qrels(path, split)
    asked = [query for query in readers.read_queries(path) if query.query_id in qrels][:max_queries]
    if not asked:
        raise DataError(f"{path}: no query of split {split!r} is in the queries file")
    qrels = {query.query_id: qrels[query.query_id] for query in asked}
    judged = {doc_id for judgements in qrels.values() for doc_id in judgements}
    if max_documents is not None and max_documents < len(judged):
        raise ConfigError(
            f"dev.documents is {max_documents}, and {path} has {len(judged)} judged documents"
        )
    kept = [document for document in readers.read_documents(path) if document.doc_id in judged]
    free = math.inf if max_documents is None else max_documents - len(kept)
    for document in readers.read_documents(path):
        if free <= 0:
            break
        if document.doc_id not in judged:
            kept.append(document)
            free -= 1
    return DevSet(
        name or Path(path).name,
        [document.doc_id for document in kept],
        [document.contents for document in kept],
        asked,
        qrels,
        measure,
    )
