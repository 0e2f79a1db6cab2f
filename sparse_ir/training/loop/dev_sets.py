"""Dev sets: small collections that are searched exactly during training."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from scipy import sparse

from sparse_ir.data import readers, records
from sparse_ir.data.records import Document, Qrels, Query, Run
from sparse_ir.errors import ConfigError, DataError
from sparse_ir.evaluation import measures
from sparse_ir.training.encoders.trainable_encoder import TokenWeights, TrainableEncoder

_DEPTH = 100


class DevSet(NamedTuple):
    """A collection in memory, with the measure that judges a search of it."""

    name: str
    doc_ids: list[str]
    documents: list[str]
    queries: list[Query]
    qrels: Qrels
    measure: str


def evaluate(model: TrainableEncoder, query_side: TokenWeights | None, dev: DevSet) -> float:
    """The measure of an exact search with float weights, before they become impacts.

    Args:
        model: Encodes the documents.
        query_side: Encodes the queries; None: ``model`` does.
        dev: The collection.
    """
    document_DV = model.vectors(dev.documents)
    texts = [query.text for query in dev.queries]
    if query_side is None:
        query_QV = model.vectors(texts, neural_queries=True)
    else:
        with torch.no_grad():
            weights_QV = query_side(model.tokenize_queries(texts, whole=True))
        query_QV = sparse.csr_matrix(weights_QV.cpu().numpy())
    scores_QD = (query_QV @ document_DV.T).tocsr()
    run: Run = {}
    for row, query in enumerate(dev.queries):
        start = scores_QD.indptr[row]
        end = scores_QD.indptr[row + 1]
        best = np.argsort(-scores_QD.data[start:end], kind="stable")[:_DEPTH] + start
        run[query.query_id] = records.rank_hits(
            (dev.doc_ids[scores_QD.indices[place]], float(scores_QD.data[place])) for place in best
        )
    # a collapsed model finds nothing, which ``evaluate_run`` refuses
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
    """Read a dev set from a BEIR folder.

    Args:
        path: BEIR folder.
        name: By default the last component of the path.
        split: Split of the qrels.
        measure: One measure, as ir_measures spells it.
        max_queries: Use only the first queries.
        max_documents: Use all judged documents, then the first of the others, up to this number.

    Raises:
        ConfigError: The measure is unknown, or ``max_documents`` is less than the judged ones.
        DataError: The split has no queries.
    """
    measures.parse_measures(measure)
    qrels = readers.read_qrels(path, split)
    queries = [query for query in readers.read_queries(path) if query.query_id in qrels]
    queries = queries[:max_queries]
    if not queries:
        raise DataError(f"{path}: no query of split {split!r} is in the queries file")
    qrels = {query.query_id: qrels[query.query_id] for query in queries}
    documents = _read_documents(path, qrels, max_documents)
    return DevSet(
        name or Path(path).name,
        [document.doc_id for document in documents],
        [document.contents for document in documents],
        queries,
        qrels,
        measure,
    )


def _read_documents(path: str, qrels: Qrels, max_documents: int | None) -> list[Document]:
    """The judged documents, then the first of the others."""
    judged: set[str] = set()
    for judgements in qrels.values():
        judged.update(judgements)
    if max_documents is not None and max_documents < len(judged):
        raise ConfigError(
            f"dev.documents is {max_documents} but must be at least the {len(judged)} judged "
            f"documents of {path}"
        )
    documents = [each for each in readers.read_documents(path) if each.doc_id in judged]
    free = math.inf if max_documents is None else max_documents - len(documents)
    for document in readers.read_documents(path):
        if free <= 0:
            break
        if document.doc_id not in judged:
            documents.append(document)
            free -= 1
    return documents
