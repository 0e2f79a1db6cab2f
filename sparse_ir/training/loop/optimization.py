"""The optimizer: groups of weights, the learning rate, and moments in checkpoints."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sparse_ir.training.configuration.config import OptimizerSettings, TrainConfig
from sparse_ir.training.encoders.trainable_encoder import TokenWeights, TrainableEncoder


def make_optimizer(
    settings: OptimizerSettings, student: TrainableEncoder, query_side: TokenWeights | None
) -> torch.optim.AdamW:
    """AdamW over the weights that train.

    Matrices decay, vectors do not. Learned query weights form a group with a rate of their own. A
    group's ``base`` is its learning rate at the top of the schedule.
    """
    decayed: list[Tensor] = []
    kept: list[Tensor] = []
    for parameter in student.parameters():
        if parameter.requires_grad:
            group = decayed if parameter.ndim > 1 else kept
            group.append(parameter)
    rate = settings.learning_rate
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": settings.weight_decay, "base": rate},
        {"params": kept, "weight_decay": 0.0, "base": rate},
    ]
    if query_side is not None and query_side.weights_V.requires_grad:
        query_rate = settings.query_learning_rate or rate
        groups.append({"params": [query_side.weights_V], "weight_decay": 0.0, "base": query_rate})
    return torch.optim.AdamW(groups, lr=rate, fused=True)


def learning_rate(config: TrainConfig, step: int) -> float:
    """The rate of a step, a pure function.

    The warm start has a rate of its own after a warm-up over a tenth of its steps. Ranking warms up
    to ``optimizer.learning_rate``, then follows the schedule to zero.
    """
    settings = config.optimizer
    warm = config.warm_start
    if step < warm.steps:
        return warm.learning_rate * min((step + 1) / max(warm.steps / 10, 1), 1.0)
    step -= warm.steps
    if step < settings.warmup_steps:
        return settings.learning_rate * (step + 1) / settings.warmup_steps
    left = config.run.steps - warm.steps - settings.warmup_steps
    done = (step - settings.warmup_steps) / max(left, 1)
    if settings.schedule == "linear":
        return settings.learning_rate * (1 - done)
    if settings.schedule == "cosine":
        return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * done))
    return settings.learning_rate


def set_learning_rate(optimizer: Any, config: TrainConfig, step: int) -> float:
    """Set the rate of every group for a step; returns ``learning_rate``."""
    rate = learning_rate(config, step)
    for group in optimizer.param_groups:
        group["lr"] = rate
        if step >= config.warm_start.steps:
            group["lr"] = rate * group["base"] / config.optimizer.learning_rate
    return rate


def take_moments(optimizer: Any) -> dict[str, Tensor]:
    """The state of an optimizer as tensors named ``number.name``, for ``restore_moments``."""
    moments: dict[str, Tensor] = {}
    for number, values in optimizer.state_dict()["state"].items():
        for name, tensor in values.items():
            moments[f"{number}.{name}"] = tensor
    return moments


def restore_moments(optimizer: Any, tensors: Mapping[str, Tensor]) -> None:
    """Take back what ``take_moments`` gave; tensors of other names are ignored."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        number, _, name = key.partition(".")
        if number.isdigit():
            state.setdefault(int(number), {})[name] = tensor
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
