"""Dev sets: small collections that are searched during training and choose the best step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy import sparse

from sparse_ir import extras
from sparse_ir.data import readers, records
from sparse_ir.data.records import Document, Qrels, Query, Run
from sparse_ir.errors import ConfigError, DataError
from sparse_ir.evaluation import measures
from sparse_ir.storage import files
from sparse_ir.training.encoders.trainable_encoder import TokenWeights, TrainableEncoder
from sparse_ir.training.loop.saved_state import TrainingProgress
from sparse_ir.training.loop.training_setup import TrainingSetup

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
    queries: int | None = None,
    documents: int | None = None,
) -> DevSet:
    """Read a dev set from a BEIR folder; the options are those of ``DevSettings``.

    Raises:
        ConfigError: The measure is unknown, or ``documents`` is less than the judged ones.
        DataError: The split has no queries.
    """
    measures.parse_measures(measure)
    qrels = readers.read_qrels(path, split)
    judged = [query for query in readers.read_queries(path) if query.query_id in qrels][:queries]
    if not judged:
        raise DataError(f"{path}: no query of split {split!r} is in the queries file")
    qrels = {query.query_id: qrels[query.query_id] for query in judged}
    doc_ids = []
    texts = []
    for document in _read_documents(path, qrels, documents):
        doc_ids.append(document.doc_id)
        texts.append(document.contents)
    return DevSet(name or Path(path).name, doc_ids, texts, judged, qrels, measure)


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


class DevEvaluation:
    """Measures the dev sets and keeps the best step in ``progress``."""

    def __init__(
        self, setup: TrainingSetup, dev: Sequence[DevSet], progress: TrainingProgress
    ) -> None:
        self._setup = setup
        self._dev = list(dev)
        self._progress = progress

    @property
    def facts(self) -> list[dict[str, str]]:
        """JSON-able facts; a best step counts only as long as they stay the same."""
        return [
            {"name": dev.name, "measure": dev.measure, "sha256": files.sha256_of_json(dev)}
            for dev in self._dev
        ]

    @property
    def lacks_best(self) -> bool:
        """Whether there are dev sets by which no step was chosen yet."""
        return bool(self._dev) and self._progress.best_step is None

    def evaluate_if_due(self, facts: dict[str, Any], *, is_sparse_enough: bool) -> bool:
        """``evaluate`` after every ``run.evaluate_every`` steps and after the last."""
        config = self._setup.config
        is_ranking = self._progress.step > config.warm_start.steps
        if not self._dev or not is_ranking:
            return False
        if not self._progress.is_due(config.run.evaluate_every, config.run.steps):
            return False
        return self.evaluate(facts, is_sparse_enough=is_sparse_enough)

    def evaluate(self, facts: dict[str, Any], *, is_sparse_enough: bool) -> bool:
        """Measure all dev sets into ``facts``; returns whether this is the best step so far.

        While nothing is found at all, the latest step is the best. A step that is not sparse enough
        is best only when it is the last and no other step was.
        """
        with extras.importing():
            from accelerate.utils import broadcast_object_list

        setup = self._setup
        measured: dict[str, float] = {}
        for dev in self._dev:
            measured[f"dev/{dev.name}"] = evaluate(setup.student, setup.query_side, dev)
        # All processes must agree on the best step, whatever their rounding.
        measured = broadcast_object_list([measured])[0]
        progress = self._progress
        mean = sum(measured.values()) / len(measured)
        progress.dev = mean
        if is_sparse_enough:
            is_best = not progress.best or mean > progress.best
        else:
            is_best = progress.step == setup.config.run.steps and progress.best is None
        if is_best:
            progress.best = mean
            progress.best_step = progress.step
        facts |= measured
        facts["dev"] = mean
        return is_best

    def describe(self) -> str:
        """The last measure and the best, for the progress bar; empty before the first."""
        progress = self._progress
        if progress.dev is None:
            return ""
        measures = ", ".join(dict.fromkeys(dev.measure for dev in self._dev))
        best = "none yet" if progress.best is None else f"{progress.best:.4f}"
        return f"{measures} {progress.dev:.4f} (best {best})"
