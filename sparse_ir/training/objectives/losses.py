"""Ranking losses: one table that the trainer, the configuration and the model card read.

An entry of ``LOSSES`` is the whole of a loss: its formula, what the formula needs of a batch, the
settings that it takes, and its words for the model card. The formulas, and ``ensemble``, which
mixes teachers into one target, are pure functions of the tensors of the whole (gathered) batch.
They compute bf16 and fp16 in float32, and float64 in float64. Tensors that make no sense raise
``DataError``, options ``ConfigError``.

Q queries, D documents that the queries of a batch choose from. ``allowed_QD`` (bool) marks the
candidates of each query; None allows all documents. A teacher's score of NaN says "not scored".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, Self

import torch
from pydantic import model_validator
from pydantic.dataclasses import dataclass as pydantic_dataclass
from torch import Tensor

from sparse_ir.errors import ConfigError, DataError
from sparse_ir.training.fields import SECTION, Positive, Text, name_in, refuse_unused
from sparse_ir.training.objectives.tensor_checks import above_zero, floating, select_arguments

BatchFacts = Literal["positive_Q", "allowed_QD", "teacher_QD"]


def info_nce(
    scores_QD: Tensor,
    positive_Q: Tensor,
    allowed_QD: Tensor | None = None,
    temperature: float = 1.0,
) -> Tensor:
    """Scalar: the mean over queries of ``-log softmax(scores / temperature)`` at the positive.

    ``positive_Q`` (int64) holds the column of each query's positive, which must be allowed. Only
    allowed documents enter the denominator; ``allowed_QD`` keeps a second known positive of a query
    out of it. A query whose only candidate is its positive adds 0. Source: van den Oord et al.
    2018, arXiv 1807.03748, equation 4.

    Raises ``DataError`` for scores that are not finite, wrong shapes, a query without candidates,
    or a positive that is not allowed; ``ConfigError`` for a temperature that is not above 0.
    """
    above_zero("temperature", temperature)
    scores = _finite_scores(scores_QD) / temperature
    allowed = _candidates(scores, allowed_QD)
    positive = _positives(positive_Q, allowed)
    log_share = scores.masked_fill(~allowed, -math.inf).log_softmax(dim=1)
    return -log_share.gather(1, positive[:, None]).mean()


def kl_divergence(
    scores_QD: Tensor,
    teacher_QD: Tensor,
    allowed_QD: Tensor | None = None,
    temperature: float = 1.0,
) -> Tensor:
    """Scalar: the mean over queries of ``KL(softmax(teacher / t) || softmax(scores / t))``.

    The logarithm is natural. Both distributions run over the same candidates of a query: those
    allowed *and* scored by the teacher. A query with one candidate adds 0. The teacher is a
    constant: no gradient flows into it. There is no factor t²; multiply the loss by it to keep the
    size of the gradient when t grows. Source: Hinton et al. 2015, arXiv 1503.02531; Geng et al.
    2024, arXiv 2411.04403, equation 1 (t = 1).

    Raises ``DataError`` for scores that are not finite, an infinite teacher score of an allowed
    pair, wrong shapes, or a query without any candidate that is scored; ``ConfigError`` for a
    temperature that is not above 0.
    """
    above_zero("temperature", temperature)
    scores = _finite_scores(scores_QD) / temperature
    teacher, scored = _teacher(teacher_QD.detach(), _candidates(scores, allowed_QD), scores)
    log_p = _log_shares(teacher / temperature, scored)
    log_q = _log_shares(scores, scored)
    return ((log_p - log_q) * log_p.exp().masked_fill(~scored, 0.0)).sum(dim=1).mean()


def margin_mse(
    scores_QD: Tensor, teacher_QD: Tensor, positive_Q: Tensor, allowed_QD: Tensor | None = None
) -> Tensor:
    """Scalar: the mean of ``((s(q, d+) - s(q, d)) - (t(q, d+) - t(q, d)))²`` over all pairs.

    A pair is a query and one of its negatives: an allowed document other than its positive that the
    teacher has scored. Every *pair* weighs the same, not every query. The teacher is a constant.
    Source: Hofstätter et al. 2020, arXiv 2010.02666, equation 2.

    Raises ``DataError`` for scores that are not finite, wrong shapes, a positive that is not
    allowed or has no teacher score, a query without any candidate that is scored, or a batch
    without pairs.
    """
    scores = _finite_scores(scores_QD)
    allowed = _candidates(scores, allowed_QD)
    positive = _positives(positive_Q, allowed)[:, None]
    teacher, scored = _teacher(teacher_QD.detach(), allowed, scores)
    _refuse_rows(
        ~scored.gather(1, positive)[:, 0],
        "the teacher's score of the positive is NaN; it must be a number",
    )
    pairs = scored.scatter(1, positive, False)
    if not pairs.any():
        raise DataError("margin_mse: no query of the batch has a negative with a teacher score")
    off = (scores.gather(1, positive) - scores) - (teacher.gather(1, positive) - teacher)
    return off.masked_fill(~pairs, 0.0).square().sum() / pairs.sum()


@dataclass(frozen=True)
class RankingLoss:
    """One entry of ``LOSSES``."""

    # takes scores_QD, then the ``batch_facts`` and the ``settings`` by their names
    formula: Callable[..., Tensor]
    sentence: str  # of the model card
    batch_facts: tuple[BatchFacts, ...]  # what the formula must know about the batch
    settings: tuple[str, ...] = ()  # fields of LossSettings that the formula takes
    skips_single_candidates: bool = False  # a query with one scored candidate adds 0, not an error

    @property
    def needs_teachers(self) -> bool:
        """Whether the loss distils teachers."""
        return "teacher_QD" in self.batch_facts

    def compute(
        self, scores_QD: Tensor, settings: LossSettings, facts: Mapping[BatchFacts, Tensor]
    ) -> Tensor:
        """The loss of a batch, a scalar without its weight."""
        options = select_arguments(self.settings, vars(settings))
        return self.formula(scores_QD, **select_arguments(self.batch_facts, facts), **options)


LOSSES: dict[str, RankingLoss] = {
    "kl": RankingLoss(
        kl_divergence,
        "KL divergence from the teachers' distribution over the candidates of a query to the "
        "model's",
        batch_facts=("teacher_QD", "allowed_QD"),
        settings=("temperature",),
        skips_single_candidates=True,
    ),
    "info_nce": RankingLoss(
        info_nce,
        "InfoNCE, the cross-entropy of the positive among the candidates of a query",
        batch_facts=("positive_Q", "allowed_QD"),
        settings=("temperature",),
    ),
    "margin_mse": RankingLoss(
        margin_mse,
        "MarginMSE, the squared difference between the teachers' margins (positive minus other "
        "candidate) and the model's",
        batch_facts=("teacher_QD", "positive_Q", "allowed_QD"),
    ),
}


@pydantic_dataclass(frozen=True, config=SECTION)
class LossSettings:
    """``[[loss]]``: a ranking loss; training minimises the weighted sum of all losses."""

    name: Annotated[Text, name_in(LOSSES)]
    """Which loss."""
    weight: Positive = 1.0
    """Weight in the sum."""
    temperature: Positive = 1.0
    """Divisor of the scores in kl and info_nce."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        users = [name for name, entry in LOSSES.items() if "temperature" in entry.settings]
        refuse_unused(self, ("temperature",), "name", users)
        return self


def describe(settings: LossSettings) -> str:
    """A loss in the words of the model card."""
    entry = LOSSES[settings.name]
    sentence = f"{entry.sentence}; weight {settings.weight:.10g}"
    for name in entry.settings:
        sentence += f", {name} {getattr(settings, name):.10g}"
    return sentence


def min_max(teacher_QD: Tensor, allowed_QD: Tensor | None = None) -> Tensor:
    """``[Q, D]``: each query's scores moved to 0..1 over its allowed and scored documents.

    The formula is ``(s - min) / (max - min)``. Pairs that are not allowed or not scored become NaN.
    There is no epsilon: the worst candidate gets exactly 0 and the best exactly 1; a row of equal
    scores, where the formula is 0/0, becomes zeros. (The authors' code adds 1e-6 to the range
    instead, which differs by less than 1e-6 / range.) Source: Geng et al. 2024, arXiv 2411.04403,
    equation 8.

    Raises ``DataError`` for wrong shapes, an infinite score of an allowed pair, or a query without
    any candidate that is scored.
    """
    teacher, scored = _teacher(teacher_QD, _candidates(teacher_QD, allowed_QD))
    low = teacher.masked_fill(~scored, math.inf).amin(dim=1, keepdim=True)
    span = teacher.masked_fill(~scored, -math.inf).amax(dim=1, keepdim=True) - low
    return ((teacher - low) / span.masked_fill(span == 0, 1.0)).masked_fill(~scored, math.nan)


def ensemble(
    teachers: Sequence[Tensor],
    weights: Sequence[float] | None = None,
    scale: float = 1.0,
    normalization: str = "minmax",
    allowed_QD: Tensor | None = None,
) -> Tensor:
    """``[Q, D]``: ``scale * Σ_k weight_k * score_k`` over the teachers, with weights that sum to 1.

    The weights given are divided by their sum; None means equal weights, and a weight of 0 leaves
    that teacher out. With ``normalization="minmax"`` (see ``min_max``) the result lies in 0..scale
    whatever the number of teachers, so ``scale`` alone decides how sharp the softmax over it is;
    "none" mixes raw scores. A pair is NaN in the result when it is not allowed, or when one of the
    teachers that count has not scored it. Source: Geng et al. 2024, arXiv 2411.04403, equation 9
    (equal weights, scale 10 in pre-training, 30 after).

    Raises ``ConfigError`` for an unknown normalization, a scale that is not above 0, or weights
    that do not fit; ``DataError`` as ``min_max``, and for teachers of different shapes.
    """
    if normalization not in ("minmax", "none"):
        raise ConfigError(f"normalization is {normalization!r}; it must be 'minmax' or 'none'")
    above_zero("scale", scale)
    shares = _shares(weights, len(teachers))
    shapes = {tuple(teacher.shape) for teacher in teachers}
    if len(shapes) > 1:
        raise DataError(f"teachers have the shapes {sorted(shapes)}; all must be the same [Q, D]")
    terms = []
    for share, teacher in zip(shares, teachers, strict=True):
        if share == 0:
            continue
        if normalization == "minmax":
            scores = min_max(teacher, allowed_QD)
        else:
            scores, scored = _teacher(teacher, _candidates(teacher, allowed_QD))
            scores = scores.masked_fill(~scored, math.nan)
        terms.append(share * scores)
    return scale * torch.stack(terms).sum(dim=0)


def _finite_scores(scores_QD: Tensor) -> Tensor:
    scores = floating("scores_QD", scores_QD)
    _refuse_rows(~scores.isfinite().all(dim=1), "a score of the model is NaN or infinite")
    return scores


def _candidates(scores_QD: Tensor, allowed_QD: Tensor | None) -> Tensor:
    if allowed_QD is None:
        return torch.ones_like(scores_QD, dtype=torch.bool)
    if allowed_QD.shape != scores_QD.shape or allowed_QD.dtype != torch.bool:
        raise DataError(
            f"allowed_QD is {allowed_QD.dtype} {tuple(allowed_QD.shape)}; it must be torch.bool "
            f"{tuple(scores_QD.shape)}"
        )
    _refuse_rows(~allowed_QD.any(dim=1), "no document is allowed; there must be a candidate")
    return allowed_QD


def _positives(positive_Q: Tensor, allowed_QD: Tensor) -> Tensor:
    queries, documents = allowed_QD.shape
    if positive_Q.shape != (queries,) or positive_Q.dtype != torch.int64:
        raise DataError(
            f"positive_Q is {positive_Q.dtype} {tuple(positive_Q.shape)}; it must be torch.int64 "
            f"({queries},)"
        )
    outside = (positive_Q < 0) | (positive_Q >= documents)
    _refuse_rows(outside, f"its positive is not one of the {documents} documents")
    allowed_Q = allowed_QD.gather(1, positive_Q[:, None])[:, 0]
    _refuse_rows(~allowed_Q, "its positive is not allowed as a candidate")
    return positive_Q


def _teacher(
    teacher_QD: Tensor, allowed_QD: Tensor, like: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The scores of the pairs that count, 0 elsewhere, and which those are (allowed and scored)."""
    teacher = floating("teacher_QD", teacher_QD)
    if teacher.shape != allowed_QD.shape:
        raise DataError(
            f"teacher_QD has the shape {tuple(teacher.shape)}; it must be {tuple(allowed_QD.shape)}"
        )
    scored = allowed_QD & ~teacher.isnan()
    _refuse_rows(~scored.any(dim=1), "the teacher scored none of its candidates (all NaN)")
    teacher = teacher.masked_fill(~scored, 0.0)
    _refuse_rows(teacher.isinf().any(dim=1), "a teacher's score of an allowed pair is infinite")
    if like is not None:
        teacher = teacher.to(like.dtype)
    return teacher, scored


def _log_shares(scores_QD: Tensor, scored_QD: Tensor) -> Tensor:
    # The second mask replaces -inf: a document outside the softmax must add 0 and not inf - inf,
    # also in the gradient.
    log_shares = scores_QD.masked_fill(~scored_QD, -math.inf).log_softmax(dim=1)
    return log_shares.masked_fill(~scored_QD, 0.0)


def _refuse_rows(bad_Q: Tensor, reason: str) -> None:
    if bad_Q.any():
        raise DataError(f"query {int(bad_Q.nonzero()[0])} of the batch: {reason}")


def _shares(weights: Sequence[float] | None, teachers: int) -> list[float]:
    if teachers == 0:
        raise ConfigError("teachers is empty; there must be at least one")
    if weights is None:
        weights = [1.0] * teachers
    if len(weights) != teachers:
        raise ConfigError(f"weights has {len(weights)} numbers for {teachers} teachers")
    if not all(0 <= weight < math.inf for weight in weights) or sum(weights) == 0:
        raise ConfigError(
            f"weights is {list(weights)}; it must hold finite numbers of 0 or more, not all 0"
        )
    return [weight / sum(weights) for weight in weights]
