"""Training objectives as pure functions of tensors: ranking losses, sparsity penalties, the ensemble of teachers.

No model, no data, no device: the tensors of the whole (gathered) batch come in, one scalar comes out. bf16 and fp16 are
computed in float32; float64 stays float64. Tensors that make no sense raise ``DataError``, options ``ConfigError``.

Q queries, D documents that a batch's queries can choose from, N texts whose weights are penalised, V vocabulary.
``allowed_QD`` (bool) says which documents are candidates of a query; None means all of them. A teacher's score of NaN
says "this pair was not scored". Next file to read: ``pairs``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sparse_ir.errors import ConfigError, DataError

LAMBDA_ORIGINS = ("naver", "naver-hf", "opensearch", "tevatron", "sentence-transformers")


# ---------------------------------------------------------------------------------------------------- ranking losses


def info_nce(
    scores_QD: Tensor, positive_Q: Tensor, allowed_QD: Tensor | None = None, temperature: float = 1.0
) -> Tensor:
    """Scalar: the mean over queries of ``-log softmax(scores / temperature)`` at the positive.

    ``positive_Q`` (int64) holds the column of each query's positive, which must be allowed. Only allowed documents
    stand in the denominator, so a second known positive of a query is kept out of it with ``allowed_QD``. A query
    whose only candidate is its positive adds 0. Source: van den Oord et al. 2018, arXiv 1807.03748, equation 4.

    Raises DataError for scores that are not finite, wrong shapes, a query without candidates, a positive that is not
    allowed; ConfigError for a temperature that is not above 0.
    """
    scores = _student(scores_QD, _temperature(temperature))
    allowed = _candidates(scores, allowed_QD)
    positive = _positives(positive_Q, allowed)
    log_share = scores.masked_fill(~allowed, -math.inf).log_softmax(dim=1)
    return -log_share.gather(1, positive[:, None]).mean()


def kl_divergence(
    scores_QD: Tensor, teacher_QD: Tensor, allowed_QD: Tensor | None = None, temperature: float = 1.0
) -> Tensor:
    """Scalar: the mean over queries of ``KL(softmax(teacher / t) || softmax(scores / t))``, natural logarithm.

    Both distributions run over the same candidates of a query: those allowed *and* scored by the teacher. An allowed
    pair with a teacher score of NaN leaves the softmax on both sides. A query with one candidate adds 0. The teacher
    is a constant (no gradient flows into it), and there is no factor t²: multiply the loss by it to keep the size of
    the gradient when t grows. Source: Hinton et al. 2015, arXiv 1503.02531; Geng et al. 2024, arXiv 2411.04403,
    equation 1 (t = 1).

    Raises DataError for scores that are not finite, an infinite teacher score of an allowed pair, wrong shapes, a
    query without candidates or without any scored one; ConfigError for a temperature that is not above 0.
    """
    scores = _student(scores_QD, _temperature(temperature))
    teacher, kept = _teacher(teacher_QD.detach(), _candidates(scores, allowed_QD), scores)
    log_p = _log_shares(teacher / temperature, kept)
    log_q = _log_shares(scores, kept)
    return ((log_p - log_q) * log_p.exp().masked_fill(~kept, 0.0)).sum(dim=1).mean()


def margin_mse(
    scores_QD: Tensor, teacher_QD: Tensor, positive_Q: Tensor, allowed_QD: Tensor | None = None
) -> Tensor:
    """Scalar: mean of ``((s(q, d+) - s(q, d)) - (t(q, d+) - t(q, d)))²`` over all pairs of a query and a negative.

    The negatives of a query are its allowed documents except its positive. A negative with a teacher score of NaN
    leaves the mean, in which every *pair* weighs the same (not every query); a query without a scored negative has no
    pair. The teacher is a constant. Source: Hofstätter et al. 2020, arXiv 2010.02666, equation 2.

    Raises DataError for scores that are not finite, wrong shapes, a positive that is not allowed or has no teacher
    score, a query without candidates or without any scored one, and a batch without any pair.
    """
    scores = _student(scores_QD)
    allowed = _candidates(scores, allowed_QD)
    positive = _positives(positive_Q, allowed)[:, None]
    teacher, kept = _teacher(teacher_QD.detach(), allowed, scores)
    _refuse_rows(~kept.gather(1, positive)[:, 0], "the teacher's score of the positive is NaN, a number is needed")
    pairs = kept.scatter(1, positive, False)
    if not pairs.any():
        raise DataError("margin_mse: no query of the batch has a scored negative, at least one is needed")
    off = (scores.gather(1, positive) - scores) - (teacher.gather(1, positive) - teacher)
    return off.masked_fill(~pairs, 0.0).square().sum() / pairs.sum()


# --------------------------------------------------------------------------------------------------------- teachers


def min_max(teacher_QD: Tensor, allowed_QD: Tensor | None = None) -> Tensor:
    """``[Q, D]``: each query's scores moved to 0..1, ``(s - min) / (max - min)`` over its allowed and scored documents.

    Pairs that are not allowed or not scored come out as NaN. There is no epsilon: the worst candidate gets exactly 0
    and the best exactly 1, and a row of equal scores, where the formula is 0/0, gives zeros. (The authors' code adds
    1e-6 to the range instead; it differs from this by less than 1e-6 / range.)
    Source: Geng et al. 2024, arXiv 2411.04403, equation 8.

    Raises DataError for wrong shapes, an infinite score of an allowed pair, a query without any scored candidate.
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
    """``[Q, D]``: ``scale * Σ_k weight_k * score_k`` over the teachers, with the weights divided by their sum.

    With ``normalization="minmax"`` (see ``min_max``) the result lies in 0..scale whatever the number of teachers and
    the size of their weights, so ``scale`` alone says how sharp the softmax over it is. "none" mixes raw scores.
    Weights of None are equal weights; a weight of 0 leaves that teacher out. A pair that one of the remaining teachers
    has not scored is NaN in the result; so is a pair that is not allowed.
    Source: Geng et al. 2024, arXiv 2411.04403, equation 9 (equal weights, scale 10 in pre-training, 30 after).

    Raises ConfigError for an unknown normalization, a scale that is not above 0, weights that do not fit; DataError as
    ``min_max`` does, and for teachers of different shapes.
    """
    if normalization not in ("minmax", "none"):
        raise ConfigError(f"normalization: {normalization!r}, allowed are 'minmax' and 'none'")
    _above_zero("scale", scale)
    shares = _shares(weights, len(teachers))
    shapes = {tuple(teacher.shape) for teacher in teachers}
    if len(shapes) > 1:
        raise DataError(f"teachers: shapes {sorted(shapes)}, all must be the same [Q, D]")
    use = min_max if normalization == "minmax" else _raw
    terms = [share * use(teacher, allowed_QD) for share, teacher in zip(shares, teachers, strict=True) if share > 0]
    return scale * torch.stack(terms).sum(dim=0)


# ---------------------------------------------------------------------------------------------------------- sparsity


def flops(weights_NV: Tensor, exempt_up_to: int | None = None) -> Tensor:
    """Scalar: ``Σ_j (mean_i w_ij)²``, the mean over all N texts of the global batch (positives and negatives pooled).

    This is the one FLOPS convention of this package; ``translate_lambda`` gives the weight that another code base's
    lambda corresponds to. With ``exempt_up_to`` (the l0 mask), texts with that many active terms or fewer add nothing
    and get no gradient, but still count in N. Sources: Paria et al. 2020, arXiv 2004.05665; the mask: arXiv 2504.14839.

    Raises DataError for no texts, a wrong shape, weights that are not finite; ConfigError for a negative threshold.
    """
    return _finite("flops", _mean_weights(weights_NV, exempt_up_to).square().sum())


def idf_flops(weights_NV: Tensor, idf_V: Tensor, power: int = 1, exempt_up_to: int | None = None) -> Tensor:
    """Scalar: ``Σ_j (mean_i w_ij / idf_j^power)²``: rare terms are penalised less than frequent ones.

    power=1 belongs to a score *without* IDF (binary query): with ``w = idf * d`` it is the objective "IDF in the score,
    plain ``flops`` of d" in other coordinates, equal in value, and ``∂/∂d_j = idf_j ∂/∂w_j``. power=2 is another
    objective: what one gets, in the same coordinates, by an IDF in the score and in the penalty at once.
    Source: Geng et al. 2024, arXiv 2411.04403 (version 1 divides the penalty, version 2 multiplies the score).

    Raises as ``flops``; DataError for an IDF of the wrong length or not above 0; ConfigError for another power.
    """
    if power not in (1, 2):
        raise ConfigError(f"power: {power!r}, allowed are 1 and 2")
    mean_V = _mean_weights(weights_NV, exempt_up_to)
    idf = _per_token("idf_V", idf_V, mean_V)
    if not ((idf > 0) & idf.isfinite()).all():
        raise DataError("idf_V: holds a value that is not a finite number above 0")
    return _finite("idf_flops", (mean_V / idf**power).square().sum())


def df_flops(
    weights_NV: Tensor,
    document_frequency_V: Tensor,
    alpha: float = 0.1,
    beta: float = 5.0,
    exempt_up_to: int | None = None,
) -> Tensor:
    """Scalar: ``Σ_j a_j (mean_i w_ij)²`` with ``a_j = 1 / (1 + (x_j^(log_alpha 2) - 1)^beta)``.

    ``document_frequency_V`` is x: the share (0..1) of a collection's documents in which the token is active, estimated
    by the caller now and then. a rises from 0 (x = 0) over 1/2 (x = alpha) to 1 (x = 1, the plain ``flops`` term), the
    more steeply the larger beta. The factor is a constant: no gradient flows into x. The defaults are this package's
    choice. Source: Porco et al. 2025, arXiv 2505.15070, in the convention of ``flops``.

    Raises as ``flops``; DataError for shares of the wrong length or outside 0..1; ConfigError unless 0 < alpha < 1 and
    beta > 0.
    """
    if not 0 < alpha < 1:
        raise ConfigError(f"alpha: {alpha!r}, a number between 0 and 1 is needed")
    _above_zero("beta", beta)
    mean_V = _mean_weights(weights_NV, exempt_up_to)
    share = _per_token("document_frequency_V", document_frequency_V.detach(), mean_V).double()
    if not ((share >= 0) & (share <= 1)).all():
        raise DataError("document_frequency_V: holds a value outside 0..1 (shares are needed, not counts)")
    # With y = log_alpha(2) ln(x) >= 0 the factor is sigmoid(-beta ln(e^y - 1)); this form cannot overflow.
    y = share.log() * (math.log(2) / math.log(alpha))
    factor = torch.sigmoid(-beta * (y + (-torch.expm1(-y)).log()))
    return _finite("df_flops", (factor.to(mean_V.dtype) * mean_V.square()).sum())


def l1(weights_NV: Tensor) -> Tensor:
    """Scalar: ``mean_i Σ_j |w_ij|``. Raises DataError for no texts, a wrong shape, weights that are not finite."""
    return _finite("l1", _weights(weights_NV).abs().sum(dim=1).mean())


def anti_zero(queries_QV: Tensor, documents_NV: Tensor) -> Tensor:
    """Scalar: ``1 / (Σ queries)² + 1 / (Σ documents)²``, each sum over all weights of the batch.

    It grows without bound as one side of the model goes silent. At a sum of 0 it has no value and no useful gradient,
    so that is a DataError; so are wrong shapes and weights that are not finite. Source: naver's SPLADE trainer.
    """
    queries, documents = (_finite("anti_zero", _weights(side).sum()) for side in (queries_QV, documents_NV))
    if queries == 0 or documents == 0:
        raise DataError("anti_zero: all weights of the queries or of the documents are 0, the model has collapsed")
    return queries.square().reciprocal() + documents.square().reciprocal()


def ramp(step: int, steps: int) -> float:
    """``(min(step, steps) / steps)²``: 0 at step 0, 1 from ``steps`` on; always 1 when ``steps`` is 0 (no ramp).

    The step counts optimiser steps, so gradient accumulation and resuming do not change it. ConfigError if negative.
    """
    if step < 0 or steps < 0:
        raise ConfigError(f"ramp: step {step} of {steps}, both must be 0 or more")
    return 1.0 if step >= steps else (step / steps) ** 2


def translate_lambda(
    value: float, origin: str, *, group_size: int = 1, world_size: int = 1, times_counted: int = 1
) -> float:
    """The weight of ``flops`` that corresponds to a FLOPS weight published with another code base.

    ``group_size`` G: documents per query (positive and negatives; 1 on the query side). ``world_size`` W: processes.
    F is ``flops``: pooled over groups and processes. The ranking loss is taken to be a mean over the global batch.

    =====================  ==================================================  ======  ==============================
    origin                 what lambda is multiplied with (effective gradient)  factor  equal to factor * F ...
    =====================  ==================================================  ======  ==============================
    naver                  mean of F(positives) and F(negatives), per batch    1       if both have the same mean
                           on each device; k times over, see below             * k     vector (else it is larger)
    naver-hf               F of all documents of a process, averaged by DDP    1       if the processes' means agree
    opensearch             Σ over the G group slots of F(slot), gathered       G       if the slots' means agree
    tevatron               W * F of a process, averaged by DDP                 W       if the processes' means agree
    sentence-transformers  F of all documents of a process, averaged by DDP    1       if the processes' means agree
    =====================  ==================================================  ======  ==============================

    Each line is exact under its condition, so naver-hf, tevatron and sentence-transformers are exact for W = 1, and
    opensearch for G = 1. For random batches the means agree only in the limit: with mean μ_j and variance σ²_j of a
    weight, F over n texts is ``Σ_j μ_j² + σ²_j / n`` in expectation, so a convention that squares means over fewer
    texts adds ``σ²/n`` more, most of all for rare terms. No factor on lambda can mend that: a translated lambda is a
    starting point, nearer the larger the batches are.

    Tevatron multiplies by W to undo the averaging of DDP, as its gathered ranking loss needs it. But the FLOPS of each
    process is already a mean, so lambda acts W-fold; versions before its pull request 36 do not multiply: give
    world_size=1. naver's first trainer adds the running sum of all regularisers inside its loop over them: with
    FLOPS first and L1 second (the Efficient SPLADE configurations) FLOPS counts twice. Give times_counted=2 then.

    Raises ConfigError for an unknown origin, a negative value, sizes below 1, times_counted with an origin not naver.
    """
    factors = {"naver": times_counted, "naver-hf": 1, "opensearch": group_size, "tevatron": world_size}
    if origin not in LAMBDA_ORIGINS:
        raise ConfigError(f"origin: {origin!r}, allowed are {', '.join(LAMBDA_ORIGINS)}")
    if not 0 <= value < math.inf:
        raise ConfigError(f"lambda: {value!r}, a finite number of 0 or more is needed")
    for name, size in (("group_size", group_size), ("world_size", world_size), ("times_counted", times_counted)):
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ConfigError(f"{name}: {size!r}, a whole number of 1 or more is needed")
    if times_counted != 1 and origin != "naver":
        raise ConfigError(f"times_counted: {times_counted} with origin {origin!r}, only 'naver' counts more than once")
    return float(value * factors.get(origin, 1))


# ------------------------------------------------------------------------------------------------------------ checks


def _floating(name: str, tensor: Tensor) -> Tensor:
    """A ``[rows, columns]`` tensor, both at least 1, in float32 or float64."""
    if tensor.ndim != 2 or 0 in tensor.shape:
        raise DataError(f"{name}: shape {tuple(tensor.shape)}, two dimensions of at least 1 are needed")
    if not tensor.is_floating_point():
        raise DataError(f"{name}: {tensor.dtype}, a floating point type is needed")
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _student(scores_QD: Tensor, temperature: float = 1.0) -> Tensor:
    scores = _floating("scores_QD", scores_QD)
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
    _refuse_rows(~allowed_QD.gather(1, positive_Q[:, None])[:, 0], "its positive is not allowed as a candidate")
    return positive_Q


def _teacher(teacher_QD: Tensor, allowed_QD: Tensor, like: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The teacher's scores with 0 at every pair that does not count, and the pairs that count (allowed and scored)."""
    teacher = _floating("teacher_QD", teacher_QD)
    if teacher.shape != allowed_QD.shape:
        raise DataError(f"teacher_QD: shape {tuple(teacher.shape)}, {tuple(allowed_QD.shape)} is needed")
    kept = allowed_QD & ~teacher.isnan()
    _refuse_rows(~kept.any(dim=1), "the teacher scored none of its candidates (all NaN)")
    teacher = teacher.masked_fill(~kept, 0.0)
    _refuse_rows(teacher.isinf().any(dim=1), "a teacher's score of an allowed pair is infinite")
    return teacher.to(teacher.dtype if like is None else like.dtype), kept


def _raw(teacher_QD: Tensor, allowed_QD: Tensor | None) -> Tensor:
    teacher, kept = _teacher(teacher_QD, _candidates(teacher_QD, allowed_QD))
    return teacher.masked_fill(~kept, math.nan)


def _log_shares(scores_QD: Tensor, kept_QD: Tensor) -> Tensor:
    # The second mask replaces -inf, so that a term outside the softmax is 0 and not inf - inf, also in the gradient.
    return scores_QD.masked_fill(~kept_QD, -math.inf).log_softmax(dim=1).masked_fill(~kept_QD, 0.0)


def _weights(weights_NV: Tensor) -> Tensor:
    return _floating("weights_NV", weights_NV)


def _mean_weights(weights_NV: Tensor, exempt_up_to: int | None) -> Tensor:
    weights = _weights(weights_NV)
    if exempt_up_to is None:
        return weights.mean(dim=0)
    if exempt_up_to < 0:
        raise ConfigError(f"exempt_up_to: {exempt_up_to}, 0 or more active terms are needed")
    counted = (weights != 0).sum(dim=1, keepdim=True) > exempt_up_to
    return (weights * counted).mean(dim=0)


def _per_token(name: str, values_V: Tensor, mean_V: Tensor) -> Tensor:
    if values_V.shape != mean_V.shape:
        raise DataError(f"{name}: shape {tuple(values_V.shape)}, one value per token {tuple(mean_V.shape)} is needed")
    return values_V.to(mean_V.dtype)


def _finite(name: str, loss: Tensor) -> Tensor:
    # NaN and infinity survive every sum and square: one look at the scalar checks all weights.
    if not loss.isfinite():
        raise DataError(f"{name}: {loss.item()}, a weight is NaN or infinite (or too large to be squared)")
    return loss


def _refuse_rows(bad_Q: Tensor, what: str) -> None:
    if bad_Q.any():
        raise DataError(f"query {int(bad_Q.nonzero()[0])} of the batch: {what}")


def _above_zero(name: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise ConfigError(f"{name}: {value!r}, a finite number above 0 is needed")


def _temperature(value: float) -> float:
    _above_zero("temperature", value)
    return value


def _shares(weights: Sequence[float] | None, teachers: int) -> list[float]:
    if teachers == 0:
        raise ConfigError("teachers: none, at least one is needed")
    weights = [1.0] * teachers if weights is None else list(weights)
    if len(weights) != teachers:
        raise ConfigError(f"weights: {len(weights)} for {teachers} teachers, one each is needed")
    if not all(0 <= weight < math.inf for weight in weights) or sum(weights) == 0:
        raise ConfigError(f"weights: {weights}, finite numbers of 0 or more are needed, and not all 0")
    return [weight / sum(weights) for weight in weights]
