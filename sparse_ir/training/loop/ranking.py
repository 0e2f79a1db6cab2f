"""A ranking step: vectors, losses, penalties and control, up to the gradients of the weights.

D documents, Q queries, N texts of one side, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sparse_ir.training.loop.objective import Objective
from sparse_ir.training.loop.representation import represent_batch
from sparse_ir.training.loop.sparsity import SparsityControl
from sparse_ir.training.loop.training_setup import TrainingSetup
from sparse_ir.training.sources.batches import TrainingBatch


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
