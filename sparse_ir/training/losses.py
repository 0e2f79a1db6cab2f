"""Training objectives as pure functions of tensors: ranking losses, sparsity penalties, the
ensemble of teachers.

No model, no data, no device: the tensors of the whole (gathered) batch come in, one scalar comes
out. bf16 and fp16 are computed in float32; float64 stays float64. Tensors that make no sense raise
``DataError``, options ``ConfigError``.

Q queries, D documents that a batch's queries can choose from, N texts whose weights are penalised,
V vocabulary. ``allowed_QD`` (bool) says which documents are candidates of a query; None means all
of them. A teacher's score of NaN says "this pair was not scored".
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sparse_ir.errors import ConfigError, DataError


def info_nce(
    scores_QD: Tensor,
    positive_Q: Tensor,
    allowed_QD: Tensor | None = None,
    temperature: float = 1.0,
) -> Tensor:
    """Scalar: the mean over queries of ``-log softmax(scores / temperature)`` at the positive.

    ``positive_Q`` (int64) holds the column of each query's positive, which must be allowed. Only
    allowed documents stand in the denominator, so a second known positive of a query is kept out of
    it with ``allowed_QD``. A query whose only candidate is its positive adds 0. Source: van den
    Oord et al. 2018, arXiv 1807.03748, equation 4.

    Raises DataError for scores that are not finite, wrong shapes, a query without candidates, a
    positive that is not allowed; ConfigError for a temperature that is not above 0.
    """
    scores = _student(scores_QD, _temperature(temperature))
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
    """Scalar: the mean over queries of ``KL(softmax(teacher / t) || softmax(scores / t))``, natural
    logarithm.

    Both distributions run over the same candidates of a query: those allowed *and* scored by the
    teacher. An allowed pair with a teacher score of NaN leaves the softmax on both sides. A query
    with one candidate adds 0. The teacher is a constant (no gradient flows into it), and there is
    no factor t²: multiply the loss by it to keep the size of the gradient when t grows. Source:
    Hinton et al. 2015, arXiv 1503.02531; Geng et al. 2024, arXiv 2411.04403, equation 1 (t = 1).

    Raises DataError for scores that are not finite, an infinite teacher score of an allowed pair,
    wrong shapes, a query without candidates or without any scored one; ConfigError for a
    temperature that is not above 0.
    """
    scores = _student(scores_QD, _temperature(temperature))
    teacher, kept = _teacher(teacher_QD.detach(), _candidates(scores, allowed_QD), scores)
    log_p = _log_shares(teacher / temperature, kept)
    log_q = _log_shares(scores, kept)
    return ((log_p - log_q) * log_p.exp().masked_fill(~kept, 0.0)).sum(dim=1).mean()


def margin_mse(
    scores_QD: Tensor, teacher_QD: Tensor, positive_Q: Tensor, allowed_QD: Tensor | None = None
) -> Tensor:
    """Scalar: mean of ``((s(q, d+) - s(q, d)) - (t(q, d+) - t(q, d)))²`` over all pairs of a query
    and a negative.

    The negatives of a query are its allowed documents except its positive. A negative with a
    teacher score of NaN leaves the mean, in which every *pair* weighs the same (not every query); a
    query without a scored negative has no pair. The teacher is a constant. Source: Hofstätter et
    al. 2020, arXiv 2010.02666, equation 2.

    Raises DataError for scores that are not finite, wrong shapes, a positive that is not allowed or
    has no teacher score, a query without candidates or without any scored one, and a batch without
    any pair.
    """
    scores = _student(scores_QD)
    allowed = _candidates(scores, allowed_QD)
    positive = _positives(positive_Q, allowed)[:, None]
    teacher, kept = _teacher(teacher_QD.detach(), allowed, scores)
    _refuse_rows(
        ~kept.gather(1, positive)[:, 0],
        "the teacher's score of the positive is NaN, a number is needed",
    )
    pairs = kept.scatter(1, positive, False)
    if not pairs.any():
        raise DataError(
            "margin_mse: no query of the batch has a scored negative, at least one is needed"
        )
    off = (scores.gather(1, positive) - scores) - (teacher.gather(1, positive) - teacher)
    return off.masked_fill(~pairs, 0.0).square().sum() / pairs.sum()


def min_max(teacher_QD: Tensor, allowed_QD: Tensor | None = None) -> Tensor:
    """``[Q, D]``: each query's scores moved to 0..1, ``(s - min) / (max - min)`` over its allowed
    and scored documents.

    Pairs that are not allowed or not scored come out as NaN. There is no epsilon: the worst
    candidate gets exactly 0 and the best exactly 1, and a row of equal scores, where the formula is
    0/0, gives zeros. (The authors' code adds 1e-6 to the range instead; it differs from this by
    less than 1e-6 / range.) Source: Geng et al. 2024, arXiv 2411.04403, equation 8.

    Raises DataError for wrong shapes, an infinite score of an allowed pair, a query without any
    scored candidate.
    """
    teacher, kept = _teacher(teacher_QD, _candidates(teacher_QD, allowed_QD))
    low = teacher.masked_fill(~kept, math.inf).amin(dim=1, keepdim=True)
    span = teacher.masked_fill(~kept, -math.inf).amax(dim=1, keepdim=True) - low
    return ((teacher - low) / span.masked_fill(span == 0, 1.0)).masked_fill(~kept, math.nan)


def ensemble(
    teachers: Sequence[Tensor],
    weights: Sequence[float] | None = None,
    scale: float = 1.0,
    normalization: str = "minmax",
    allowed_QD: Tensor | None = None,
) -> Tensor:
    """``[Q, D]``: ``scale * Σ_k weight_k * score_k`` over the teachers, with the weights divided by
    their sum.

    With ``normalization="minmax"`` (see ``min_max``) the result lies in 0..scale whatever the
    number of teachers and the size of their weights, so ``scale`` alone says how sharp the softmax
    over it is. "none" mixes raw scores. Weights of None are equal weights; a weight of 0 leaves
    that teacher out. A pair that one of the remaining teachers has not scored is NaN in the result;
    so is a pair that is not allowed. Source: Geng et al. 2024, arXiv 2411.04403, equation 9 (equal
    weights, scale 10 in pre-training, 30 after).

    Raises ConfigError for an unknown normalization, a scale that is not above 0, weights that do
    not fit; DataError as ``min_max`` does, and for teachers of different shapes.
    """
    if normalization not in ("minmax", "none"):
        raise ConfigError(f"normalization: {normalization!r}, allowed are 'minmax' and 'none'")
    above_zero("scale", scale)
    shares = _shares(weights, len(teachers))
    shapes = {tuple(teacher.shape) for teacher in teachers}
    if len(shapes) > 1:
        raise DataError(f"teachers: shapes {sorted(shapes)}, all must be the same [Q, D]")
    use = min_max if normalization == "minmax" else _raw
    terms = [
        share * use(teacher, allowed_QD)
        for share, teacher in zip(shares, teachers, strict=True)
        if share > 0
    ]
    return scale * torch.stack(terms).sum(dim=0)


def floating(name: str, tensor: Tensor) -> Tensor:
    """A ``[rows, columns]`` tensor, both at least 1, in float32 or float64."""
    if tensor.ndim != 2 or 0 in tensor.shape:
        raise DataError(
            f"{name}: shape {tuple(tensor.shape)}, two dimensions of at least 1 are needed"
        )
    if not tensor.is_floating_point():
        raise DataError(f"{name}: {tensor.dtype}, a floating point type is needed")
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _student(scores_QD: Tensor, temperature: float = 1.0) -> Tensor:
    scores = floating("scores_QD", scores_QD)
    _refuse_rows(~scores.isfinite().all(dim=1), "a score of the student is NaN or infinite")
    return scores / temperature


def _candidates(scores_QD: Tensor, allowed_QD: Tensor | None) -> Tensor:
    if allowed_QD is None:
        return torch.ones_like(scores_QD, dtype=torch.bool)
    if allowed_QD.shape != scores_QD.shape or allowed_QD.dtype != torch.bool:
        found = f"{allowed_QD.dtype} {tuple(allowed_QD.shape)}"
        raise DataError(f"allowed_QD: {found}, torch.bool {tuple(scores_QD.shape)} is needed")
    _refuse_rows(~allowed_QD.any(dim=1), "no document is allowed, at least one candidate is needed")
    return allowed_QD


def _positives(positive_Q: Tensor, allowed_QD: Tensor) -> Tensor:
    queries, documents = allowed_QD.shape
    if positive_Q.shape != (queries,) or positive_Q.dtype != torch.int64:
        found = f"{positive_Q.dtype} {tuple(positive_Q.shape)}"
        raise DataError(f"positive_Q: {found}, torch.int64 ({queries},) is needed")
    outside = (positive_Q < 0) | (positive_Q >= documents)
    _refuse_rows(outside, f"its positive is not one of the {documents} documents")
    _refuse_rows(
        ~allowed_QD.gather(1, positive_Q[:, None])[:, 0],
        "its positive is not allowed as a candidate",
    )
    return positive_Q


def _teacher(
    teacher_QD: Tensor, allowed_QD: Tensor, like: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The teacher's scores with 0 at every pair that does not count, and the pairs that count
    (allowed and scored).
    """
    teacher = floating("teacher_QD", teacher_QD)
    if teacher.shape != allowed_QD.shape:
        raise DataError(
            f"teacher_QD: shape {tuple(teacher.shape)}, {tuple(allowed_QD.shape)} is needed"
        )
    kept = allowed_QD & ~teacher.isnan()
    _refuse_rows(~kept.any(dim=1), "the teacher scored none of its candidates (all NaN)")
    teacher = teacher.masked_fill(~kept, 0.0)
    _refuse_rows(teacher.isinf().any(dim=1), "a teacher's score of an allowed pair is infinite")
    return teacher.to(teacher.dtype if like is None else like.dtype), kept


def _raw(teacher_QD: Tensor, allowed_QD: Tensor | None) -> Tensor:
    teacher, kept = _teacher(teacher_QD, _candidates(teacher_QD, allowed_QD))
    return teacher.masked_fill(~kept, math.nan)


def _log_shares(scores_QD: Tensor, kept_QD: Tensor) -> Tensor:
    # The second mask replaces -inf, so that a term outside the softmax is 0 and not inf - inf, also
    # in the gradient.
    return scores_QD.masked_fill(~kept_QD, -math.inf).log_softmax(dim=1).masked_fill(~kept_QD, 0.0)


def _refuse_rows(bad_Q: Tensor, what: str) -> None:
    if bad_Q.any():
        raise DataError(f"query {int(bad_Q.nonzero()[0])} of the batch: {what}")


def above_zero(name: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise ConfigError(f"{name}: {value!r}, a finite number above 0 is needed")


def _temperature(value: float) -> float:
    above_zero("temperature", value)
    return value


def _shares(weights: Sequence[float] | None, teachers: int) -> list[float]:
    if teachers == 0:
        raise ConfigError("teachers: none, at least one is needed")
    weights = [1.0] * teachers if weights is None else list(weights)
    if len(weights) != teachers:
        raise ConfigError(f"weights: {len(weights)} for {teachers} teachers, one each is needed")
    if not all(0 <= weight < math.inf for weight in weights) or sum(weights) == 0:
        raise ConfigError(
            f"weights: {weights}, finite numbers of 0 or more are needed, and not all 0"
        )
    return [weight / sum(weights) for weight in weights]
