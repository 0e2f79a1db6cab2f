"""The end of a training: the saved model, its active terms, and the targets that it missed."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from tqdm import tqdm

from sparse_ir.training.configuration.config import BlendSettings, TrainConfig
from sparse_ir.training.loop.ranking_start import RankingStart
from sparse_ir.training.loop.sparsity import SIDES, spread
from sparse_ir.training.loop.training_setup import TrainingSetup
from sparse_ir.training.objectives.controller import TOLERANCE
from sparse_ir.training.sources.training_source import pick

_DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "float8": torch.float8_e4m3fn,
}
_COUNTED_BATCHES = 4  # the last batches, on which the terms of the saved model are counted
_COUNTED = 32  # texts of each of them


def save_model(
    setup: TrainingSetup, step: int, ranking_start: RankingStart, folder: Path
) -> dict[str, float]:
    """Write the model of the present weights, blended where the configuration says so.

    Returns the mean active terms of documents and queries; nothing in the warm start.
    """
    terms = _count_terms(setup, step)
    if setup.config.blend != BlendSettings():
        terms["documents_terms"] = ranking_start.blend()
    query_weights = None if setup.query_side is None else setup.query_side.numpy()
    setup.student.save(folder, query_weights, dtype=_DTYPES[setup.config.model.saved_dtype])
    return terms


def report_missed_targets(config: TrainConfig, terms: Mapping[str, float]) -> list[str]:
    """The targets of active terms that were missed; each is also printed as a warning."""
    missed: list[str] = []
    for side in SIDES:
        target = getattr(config, side).target_terms
        reached = terms.get(f"{side}_terms")
        is_blended = side == "documents" and config.blend != BlendSettings()
        if target is None or reached is None or is_blended:
            continue
        if abs(reached / target - 1) > TOLERANCE:
            missed.append(
                f"{side}: {reached:.1f} active terms on average, {target:g} were asked for; give "
                "the training more steps after ramp_steps, or a target nearer to this"
            )
    for line in missed:
        tqdm.write(f"warning: {line}", file=sys.stderr)
    return missed


def _count_terms(setup: TrainingSetup, step: int) -> dict[str, float]:
    """Mean active terms of texts of the last batches, cut as in training, without dropout."""
    first = max(step - _COUNTED_BATCHES, setup.config.warm_start.steps)
    batches = list(map(setup.batches.at, range(first, step)))
    if not batches:
        return {}
    documents: list[str] = []
    queries: list[str] = []
    for batch in batches:  # texts from all over each batch
        documents += pick(batch.documents, spread(len(batch.documents), _COUNTED))
        queries += pick(batch.queries, spread(len(batch.queries), _COUNTED))
    document_vectors = setup.student.vectors(documents, whole=False)
    if setup.query_side is None:
        query_vectors = setup.student.vectors(queries, neural_queries=True, whole=False)
        query_terms = query_vectors.getnnz(1)
    else:
        weights_QV = setup.query_side(setup.student.tokenize_queries(queries))
        query_terms = (weights_QV > 0).sum(1).cpu().numpy()
    return {
        "documents_terms": float(document_vectors.getnnz(1).mean()),
        "queries_terms": float(query_terms.mean()),
    }
