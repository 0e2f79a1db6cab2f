"""Control of sparsity in ranking steps: the active terms that are counted, and who acts on them.

Texts pass the network under dropout in training, but the saved model reads them without. So some
texts of a batch are read a second time without dropout, and all control is by those counts.

D documents, Q queries, N texts of one side, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparse_ir.training.encoders import trainable_encoder
from sparse_ir.training.loop.training_setup import TrainingSetup
from sparse_ir.training.objectives.controller import CollapseDetector, PenaltyController
from sparse_ir.training.sources.batches import TrainingBatch
from sparse_ir.training.sources.training_source import pick

SIDES = ("documents", "queries")
_READ_EVERY = 2  # ranking steps between two readings without dropout
_READ = 8  # texts of each reading


class SparsityControl:
    """The controllers of both sides, and the detector of collapse."""

    def __init__(self, setup: TrainingSetup) -> None:
        self._setup = setup
        self.controllers = {
            "documents": PenaltyController(setup.config.documents),
            "queries": PenaltyController(setup.config.queries),
        }
        self.detector = CollapseDetector(setup.student.size)
        self._has_dropout = trainable_encoder.has_dropout(setup.student.model)
        self._bias_step = 0.0  # logits by which output biases rise after this step

    def read_without_dropout(
        self, ranking_step: int, batch: TrainingBatch, documents_DV: Tensor, queries_QV: Tensor
    ) -> None:
        """Every second step, count the terms of some texts as the saved model has them.

        ``documents_DV`` and ``queries_QV`` are the weights of the batch under dropout.
        """
        if ranking_step % _READ_EVERY:
            return
        setup = self._setup
        target = setup.config.documents.target_terms
        if self._has_dropout or target is not None:
            # Positives come first and negatives may be unlike them: take texts from all over.
            rows = spread(len(batch.documents), _READ)
            texts = pick(batch.documents, rows)
            scores_NV = self._scores(setup.student.tokenize_documents(texts))
            empty = self._compare("documents", scores_NV, documents_DV[rows])
            self.detector.note_without_dropout(empty)
            if target is not None:
                threshold = trainable_encoder.threshold_of(scores_NV, target)
                needed = float(setup.accelerator.reduce(-threshold, "mean"))
                controller = self.controllers["documents"]
                self._bias_step = controller.bias_step(ranking_step, needed)
        if self._has_dropout and setup.query_side is None:
            rows = spread(len(batch.queries), _READ)
            texts = pick(batch.queries, rows)
            scores_NV = self._scores(setup.student.tokenize_queries(texts))
            self._compare("queries", scores_NV, queries_QV[rows])

    def terms_without_dropout(self, side: str, weights_NV: Tensor) -> float:
        """Mean active terms of texts, as they would be counted without dropout."""
        return self.controllers[side].without_dropout(_mean_terms(weights_NV))

    def move_biases(self) -> None:
        """Move the output biases as the last reading asked for."""
        self._setup.student.lift(self._bias_step)
        self._bias_step = 0.0

    def is_sparse_enough(self) -> bool:
        """Whether documents have reached their target, if there is one.

        Dense models measure better, so a step counts as best only when it is as sparse as asked.
        """
        controller = self.controllers["documents"]
        return controller.has_reached_target

    def state(self) -> dict[str, Any]:
        """A JSON-able state for ``restore``."""
        return {
            "governors": {side: each.state() for side, each in self.controllers.items()},
            "guard": self.detector.state(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on where ``state`` was taken."""
        for side, controller in self.controllers.items():
            controller.restore(state["governors"][side])
        self.detector.restore(state["guard"])

    @torch.no_grad()
    def _scores(self, ids: Sequence[Any]) -> Tensor:
        student = self._setup.student
        student.eval()
        scores_NV: Tensor = student(ids, scores=True)
        student.train()
        return scores_NV

    def _compare(self, side: str, scores_NV: Tensor, weights_NV: Tensor) -> float:
        """Tell a controller the terms of equal texts without and under dropout.

        Returns the share of texts that are empty without dropout.
        """
        terms_N = (scores_NV > 0).sum(1).float()
        means_2 = torch.stack([terms_N.mean(), (terms_N == 0).float().mean()])
        # All processes must act on the same numbers, whatever their rounding.
        without, empty = self._setup.accelerator.reduce(means_2, "mean").tolist()
        self.controllers[side].compare(_mean_terms(weights_NV), without)
        return float(empty)


def spread(count: int, most: int) -> list[int]:
    """At most ``most`` of ``count`` places, evenly from the first to the last."""
    places = np.linspace(0, count - 1, min(count, most)).round().astype(int)
    return list(np.unique(places).tolist())


def _mean_terms(weights_NV: Tensor) -> float:
    return float((weights_NV.detach() > 0).sum(1).float().mean())
