"""Sparsity penalties and their schedule."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sparse_ir.errors import ConfigError, DataError
from sparse_ir.training.losses import above_zero, floating

LAMBDA_ORIGINS = ("naver", "naver-hf", "opensearch", "tevatron", "sentence-transformers")


def flops(weights_NV: Tensor, exempt_up_to: int | None = None) -> Tensor:
    """Scalar: ``Σ_j (mean_i w_ij)²``, the mean over all N texts of the global batch (positives and
    negatives pooled).

    This is the one FLOPS convention of this package; ``translate_lambda`` gives the weight that
    another code base's lambda corresponds to. With ``exempt_up_to`` (the l0 mask), texts with that
    many active terms or fewer add nothing and get no gradient, but still count in N. Sources: Paria
    et al. 2020, arXiv 2004.05665; the mask: arXiv 2504.14839.

    Raises DataError for no texts, a wrong shape, weights that are not finite; ConfigError for a
    negative threshold.
    """
    return _finite("flops", _mean_weights(weights_NV, exempt_up_to).square().sum())


def idf_flops(
    weights_NV: Tensor, idf_V: Tensor, power: int = 1, exempt_up_to: int | None = None
) -> Tensor:
    """Scalar: ``Σ_j (mean_i w_ij / idf_j^power)²``: rare terms are penalised less than frequent
    ones.

    power=1 belongs to a score *without* IDF (binary query): with ``w = idf * d`` it is the
    objective "IDF in the score, plain ``flops`` of d" in other coordinates, equal in value, and
    ``∂/∂d_j = idf_j ∂/∂w_j``. power=2 is another objective: what one gets, in the same coordinates,
    by an IDF in the score and in the penalty at once. Source: Geng et al. 2024, arXiv 2411.04403
    (version 1 divides the penalty, version 2 multiplies the score).

    Raises as ``flops``; DataError for an IDF of the wrong length or not above 0; ConfigError for
    another power.
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

    ``document_frequency_V`` is x: the share (0..1) of a collection's documents in which the token
    is active, estimated by the caller now and then. a rises from 0 (x = 0) over 1/2 (x = alpha) to
    1 (x = 1, the plain ``flops`` term), the more steeply the larger beta. The factor is a constant:
    no gradient flows into x. The defaults are this package's choice. Source: Porco et al. 2025,
    arXiv 2505.15070, in the convention of ``flops``.

    Raises as ``flops``; DataError for shares of the wrong length or outside 0..1; ConfigError
    unless 0 < alpha < 1 and beta > 0.
    """
    if not 0 < alpha < 1:
        raise ConfigError(f"alpha: {alpha!r}, a number between 0 and 1 is needed")
    above_zero("beta", beta)
    mean_V = _mean_weights(weights_NV, exempt_up_to)
    share = _per_token("document_frequency_V", document_frequency_V.detach(), mean_V).double()
    if not ((share >= 0) & (share <= 1)).all():
        raise DataError(
            "document_frequency_V: holds a value outside 0..1 (shares are needed, not counts)"
        )
    # With y = log_alpha(2) ln(x) >= 0 the factor is sigmoid(-beta ln(e^y - 1)); this form cannot
    # overflow.
    y = share.log() * (math.log(2) / math.log(alpha))
    factor = torch.sigmoid(-beta * (y + (-torch.expm1(-y)).log()))
    return _finite("df_flops", (factor.to(mean_V.dtype) * mean_V.square()).sum())


def l1(weights_NV: Tensor) -> Tensor:
    """Scalar: ``mean_i Σ_j |w_ij|``. Raises DataError for no texts, a wrong shape, weights that are
    not finite.
    """
    return _finite("l1", _weights(weights_NV).abs().sum(dim=1).mean())


def anti_zero(queries_QV: Tensor, documents_NV: Tensor) -> Tensor:
    """Scalar: ``1 / (Σ queries)² + 1 / (Σ documents)²``, each sum over all weights of the batch.

    It grows without bound as one side of the model goes silent. At a sum of 0 it has no value and
    no useful gradient, so that is a DataError; so are wrong shapes and weights that are not finite.
    Source: naver's SPLADE trainer.
    """
    queries, documents = (
        _finite("anti_zero", _weights(side).sum()) for side in (queries_QV, documents_NV)
    )
    if queries == 0 or documents == 0:
        raise DataError(
            "anti_zero: all weights of the queries or of the documents are 0, the "
            "model has collapsed"
        )
    return queries.square().reciprocal() + documents.square().reciprocal()


def ramp(step: int, steps: int) -> float:
    """``(min(step, steps) / steps)²``: 0 at step 0, 1 from ``steps`` on; always 1 when ``steps`` is
    0 (no ramp).

    The step counts optimiser steps, so gradient accumulation and resuming do not change it.
    ConfigError if negative.
    """
    if step < 0 or steps < 0:
        raise ConfigError(f"ramp: step {step} of {steps}, both must be 0 or more")
    return 1.0 if step >= steps else (step / steps) ** 2


def translate_lambda(
    value: float, origin: str, *, group_size: int = 1, world_size: int = 1, times_counted: int = 1
) -> float:
    """The weight of ``flops`` that corresponds to a FLOPS weight published with another code base.

    ``group_size`` G: documents per query (positive and negatives; 1 on the query side).
    ``world_size`` W: processes. F is ``flops``: pooled over groups and processes. The ranking loss
    is taken to be a mean over the global batch.

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

    Each line is exact under its condition, so naver-hf, tevatron and sentence-transformers are
    exact for W = 1, and opensearch for G = 1. For random batches the means agree only in the limit:
    with mean μ_j and variance σ²_j of a weight, F over n texts is ``Σ_j μ_j² + σ²_j / n`` in
    expectation, so a convention that squares means over fewer texts adds ``σ²/n`` more, most of all
    for rare terms. No factor on lambda can mend that: a translated lambda is a starting point,
    nearer the larger the batches are.

    Tevatron multiplies by W to undo the averaging of DDP, as its gathered ranking loss needs it.
    But the FLOPS of each process is already a mean, so lambda acts W-fold; versions before its pull
    request 36 do not multiply: give world_size=1. naver's first trainer adds the running sum of all
    regularisers inside its loop over them: with FLOPS first and L1 second (the Efficient SPLADE
    configurations) FLOPS counts twice. Give times_counted=2 then.

    Raises ConfigError for an unknown origin, a negative value, sizes below 1, times_counted with an
    origin not naver.
    """
    factors = {
        "naver": times_counted,
        "naver-hf": 1,
        "opensearch": group_size,
        "tevatron": world_size,
    }
    if origin not in LAMBDA_ORIGINS:
        raise ConfigError(f"origin: {origin!r}, allowed are {', '.join(LAMBDA_ORIGINS)}")
    if not 0 <= value < math.inf:
        raise ConfigError(f"lambda: {value!r}, a finite number of 0 or more is needed")
    for name, size in (
        ("group_size", group_size),
        ("world_size", world_size),
        ("times_counted", times_counted),
    ):
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ConfigError(f"{name}: {size!r}, a whole number of 1 or more is needed")
    if times_counted != 1 and origin != "naver":
        raise ConfigError(
            f"times_counted: {times_counted} with origin {origin!r}, only 'naver' "
            "counts more than once"
        )
    return float(value * factors.get(origin, 1))


def _weights(weights_NV: Tensor) -> Tensor:
    return floating("weights_NV", weights_NV)


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
        raise DataError(
            f"{name}: shape {tuple(values_V.shape)}, one value per token "
            f"{tuple(mean_V.shape)} is needed"
        )
    return values_V.to(mean_V.dtype)


def _finite(name: str, loss: Tensor) -> Tensor:
    # NaN and infinity survive every sum and square: one look at the scalar checks all weights.
    if not loss.isfinite():
        raise DataError(
            f"{name}: {loss.item()}, a weight is NaN or infinite (or too large to be squared)"
        )
    return loss
