"""A ranking step: vectors, losses, targets of the teachers, penalties and control.

D documents, Q queries, N texts of one side, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sparse_ir.errors import DataError
from sparse_ir.training.loop.representation import represent_batch
from sparse_ir.training.loop.sparsity import SparsityControl
from sparse_ir.training.loop.training_setup import TrainingSetup
from sparse_ir.training.objectives import losses, penalties
from sparse_ir.training.objectives.losses import LOSSES, BatchFacts
from sparse_ir.training.objectives.penalties import NONE, PENALTIES, PenaltySettings, TokenFacts
from sparse_ir.training.sources.batches import TrainingBatch
from sparse_ir.training.teachers.base import Teacher

_FREQUENCY_MEMORY = 0.99  # of the running mean of document frequencies


class WeightedTeacher(NamedTuple):
    """A teacher and its weight in the ensemble."""

    teacher: Teacher | None  # None: the scores in the training files
    weight: float


class PenaltyValue(NamedTuple):
    """The penalty of one side at one step."""

    value: Tensor  # scalar without lambda
    total: Tensor  # scalar, lambda times value plus the anti-zero loss


class Objective:
    """Losses and penalties of a training; ``frequency_V`` is its only state.

    ``frequency_V`` is the running mean, over steps, of the share of documents in which each token
    is active. It begins at zero.
    """

    def __init__(self, setup: TrainingSetup, teachers: Sequence[WeightedTeacher]) -> None:
        self._config = setup.config
        self._teachers = teachers
        self.frequency_V = torch.zeros(setup.student.size, device=setup.accelerator.device)
        self._idf_V: Tensor | None = None
        if setup.idf_V is not None:  # special tokens have none
            self._idf_V = torch.where(setup.idf_V > 0, setup.idf_V, 1.0)

    def ranking_losses(
        self, batch: TrainingBatch, scores_QD: Tensor
    ) -> dict[str, tuple[Tensor, float]]:
        """Each loss and its weight, by the name in the log.

        A loss that the configuration names twice, for instance at two temperatures, gets a number.
        """
        device = scores_QD.device
        allowed = batch.candidates(self._config.batch.in_batch)
        allowed_QD = torch.from_numpy(allowed).to(device)
        facts: dict[BatchFacts, Tensor] = {
            "positive_Q": torch.from_numpy(batch.positive_Q).to(device),
            "allowed_QD": allowed_QD,
        }
        if self._teachers:
            facts["teacher_QD"] = self._teacher_targets(batch, allowed_QD)
        values: dict[str, tuple[Tensor, float]] = {}
        for settings in self._config.loss:
            value = LOSSES[settings.name].compute(scores_QD, settings, facts)
            name = settings.name
            if name in values:
                name = f"{name}_{len(values)}"
            values[name] = (value, settings.weight)
        return values

    def _teacher_targets(self, batch: TrainingBatch, allowed_QD: Tensor) -> Tensor:
        """The ensemble of all teachers' scores for a batch, ``[Q, D]``."""
        scores = []
        weights = []
        for teacher, weight in self._teachers:
            scored = batch.scores_QD
            if teacher is not None:
                scored = teacher.scores(batch.queries, batch.documents, allowed_QD.cpu().numpy())
            if scored is None:
                raise DataError(
                    f"source {batch.source}: its file holds no teacher scores, which kind = 'file' "
                    "needs"
                )
            scores.append(torch.from_numpy(scored).to(allowed_QD.device))
            weights.append(weight)
        settings = self._config.ensemble
        return losses.ensemble(
            scores,
            weights,
            settings.scale,
            normalization=settings.normalization,
            allowed_QD=allowed_QD,
        )

    def penalty(
        self, side: str, ranking_step: int, weights_NV: Tensor, weight: float
    ) -> PenaltyValue | None:
        """The penalty of one side with lambda ``weight``; None where the side has none."""
        settings: PenaltySettings = getattr(self._config, side)
        if settings.penalty == NONE and settings.anti_zero == 0:
            return None
        value = weights_NV.new_zeros(())
        if settings.penalty != NONE:
            # The running mean began at zero: this is the share of its weights given so far.
            observed = 1 - _FREQUENCY_MEMORY ** (ranking_step + 1)
            frequency_V = (self.frequency_V / observed).clamp(max=1.0)
            facts: dict[TokenFacts, Tensor] = {"document_frequency_V": frequency_V}
            if self._idf_V is not None:
                facts["idf_V"] = self._idf_V
            value = PENALTIES[settings.penalty].compute(weights_NV, settings, facts)
        total = weight * value
        if settings.anti_zero:
            total = total + settings.anti_zero * penalties.anti_zero(weights_NV)
        return PenaltyValue(value, total)

    def observe_documents(self, documents_DV: Tensor) -> None:
        """Update the document frequencies with the active terms of a batch."""
        active_V = (documents_DV.detach() > 0).float().mean(0)
        self.frequency_V.mul_(_FREQUENCY_MEMORY).add_(active_V, alpha=1 - _FREQUENCY_MEMORY)


class Ranking:
    """The steps after the warm start."""

    def __init__(
        self, setup: TrainingSetup, objective: Objective, sparsity: SparsityControl
    ) -> None:
        self._setup = setup
        self._objective = objective
        self._sparsity = sparsity

    def take_step(self, step: int, batch: TrainingBatch) -> dict[str, float]:
        """Leave the gradients of a step on the weights; returns what is worth logging.

        Raises ``TrainingError`` for a collapse.
        """
        ranking_step = step - self._setup.config.warm_start.steps
        documents_DV, queries_QV, send_back = represent_batch(self._setup, step, batch)
        sides = {"documents": documents_DV, "queries": queries_QV}
        self._sparsity.read_without_dropout(
            ranking_step, batch, documents_DV.detach(), queries_QV.detach()
        )
        scores_QD = queries_QV @ documents_DV.t()
        detector = self._sparsity.detector
        detector.check_number(step, "score", float(scores_QD.detach().sum()))
        losses = self._objective.ranking_losses(batch, scores_QD)
        loss = torch.stack([weight * value for value, weight in losses.values()]).sum()
        facts = {name: float(value.detach()) for name, (value, _) in losses.items()}
        self._objective.observe_documents(documents_DV)
        for side, weights_NV in sides.items():
            loss = loss + self._penalise(side, ranking_step, weights_NV, facts)
        total = float(loss.detach())
        empty_D = (documents_DV.detach() > 0).any(1).logical_not()
        detector.observe(step, total, facts["documents_terms"], float(empty_D.float().mean()))
        torch.autograd.backward(loss)
        self._scale_query_gradient()
        send_back()
        for side in sides:
            self._sparsity.controllers[side].observe(ranking_step, facts[f"{side}_terms"])
        return {"loss": total} | facts

    def _penalise(
        self, side: str, ranking_step: int, weights_NV: Tensor, facts: dict[str, float]
    ) -> Tensor:
        """The penalty of one side; its terms, value and lambda are added to ``facts``."""
        facts[f"{side}_terms"] = self._sparsity.terms_without_dropout(side, weights_NV)
        weight = self._sparsity.controllers[side].weight(ranking_step)
        penalty = self._objective.penalty(side, ranking_step, weights_NV, weight)
        if penalty is None:
            return weights_NV.new_zeros(())
        facts[f"{side}_penalty"] = float(penalty.value.detach())
        facts[f"{side}_lambda"] = weight
        return penalty.total

    def _scale_query_gradient(self) -> None:
        """Scale the gradient of learned query weights as the scaler scaled that of the network.

        In float16 the optimizer divides all gradients by the scale.
        """
        scaler = self._setup.accelerator.scaler
        query_side = self._setup.query_side
        if scaler is None or query_side is None or query_side.weights_V.grad is None:
            return
        query_side.weights_V.grad *= scaler.get_scale()
