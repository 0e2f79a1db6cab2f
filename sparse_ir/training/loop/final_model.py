"""The network with which ranking begins, and the saved model at the end of a training."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from tqdm import tqdm

from sparse_ir.training.configuration.config import BlendSettings, TrainConfig
from sparse_ir.training.loop import saved_state
from sparse_ir.training.loop.sparsity import SIDES, spread
from sparse_ir.training.loop.training_setup import TrainingSetup
from sparse_ir.training.objectives.controller import TOLERANCE
from sparse_ir.training.sources.batches import TrainingBatch
from sparse_ir.training.sources.training_source import pick


class RankingStart:
    """Prepares the network for ranking; ``sha256`` of the copy is its only state."""

    def __init__(self, setup: TrainingSetup, folder: Path) -> None:
        self._setup = setup
        self._folder = folder
        self.sha256: str | None = None  # None: no copy was kept

    def begin(self, batch: TrainingBatch) -> None:
        """Set the number of active terms by a batch's own logits, and keep a copy for a blend."""
        config = self._setup.config
        terms = None  # None keeps the biases as they are
        if config.decoder is not None:
            terms = config.decoder.initial_terms
        elif config.warm_start.steps or self._setup.has_new_head:
            terms = config.warm_start.active_terms
        if terms is not None:
            self._setup.student.set_terms(batch.documents, terms)
        if config.blend.start:
            if self._setup.accelerator.is_main_process:
                write = self._setup.student.write_weights
                self.sha256 = saved_state.write_start(self._folder, write)
            self._setup.accelerator.wait_for_everyone()

    def check(self, step: int) -> None:
        """Raise, long before the last step needs it, when a blend lacks its copy.

        Raises ``TrainingError`` when it was never written, ``DamagedError`` when it has changed.
        """
        config = self._setup.config
        if config.blend.start and step > config.warm_start.steps:
            saved_state.find_start(self._folder, self.sha256)

    def blend(self) -> float:
        """Turn the network into the saved model of ``[blend]``; the trained weights are lost.

        Returns the mean active terms of the sample documents, as the saved model encodes them.
        """
        setup = self._setup
        settings = setup.config.blend
        if settings.start:
            copy = saved_state.find_start(self._folder, self.sha256)
            setup.student.blend_with(copy, settings.start, setup.accelerator.device)
        if settings.terms is not None:
            setup.student.set_terms(setup.sample, settings.terms, whole=True)
        return float(setup.student.vectors(setup.sample).nnz / len(setup.sample))


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
