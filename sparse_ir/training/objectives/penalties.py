"""Sparsity penalties: one table that the trainer, the configuration and the model card read.

An entry of ``PENALTIES`` is the whole of a penalty: its formula, the settings that the formula
takes, what it must know about the tokens, and its words for the model card. To add a penalty, write
its formula here, add the settings that are new to ``PenaltySettings``, and add the entry.

N texts whose weights are penalised, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Literal, Self

import torch
from pydantic import Field, StrictInt, model_validator
from pydantic.dataclasses import dataclass as pydantic_dataclass
from torch import Tensor

from sparse_ir.errors import ConfigError, DataError
from sparse_ir.training.fields import (
    SECTION,
    CountOrZero,
    NotNegative,
    OpenShare,
    Positive,
    Text,
    name_in,
    refuse_unused,
)
from sparse_ir.training.objectives.tensor_checks import above_zero, floating, select_arguments

NONE = "none"  # the name for "no penalty"
TokenFacts = Literal["idf_V", "document_frequency_V"]
_STRENGTH = ("weight", "target_terms", "ramp_steps")  # settings of every penalty
_SMALLEST_SUM = 1e-6


def flops(weights_NV: Tensor) -> Tensor:
    """Scalar: ``Σ_j (mean_i w_ij)²``.

    The mean runs over all N texts of the global batch, positives and negatives pooled; this is the
    only FLOPS convention of this package. Source: Paria et al. 2020, arXiv 2004.05665.

    Raises ``DataError`` for no texts, a wrong shape, or weights that are not finite.
    """
    return _finite("flops", floating("weights_NV", weights_NV).mean(dim=0).square().sum())


def idf_flops(weights_NV: Tensor, idf_V: Tensor, power: int = 1) -> Tensor:
    """Scalar: ``Σ_j (mean_i w_ij / idf_j^power)²``; rare tokens are penalised less than common ones.

    power=1 belongs to a score *without* IDF (binary query): with ``w = idf * d`` it is the
    objective "IDF in the score, plain ``flops`` of d" in other coordinates, equal in value, and
    ``∂/∂d_j = idf_j ∂/∂w_j``. power=2 is a different objective: in the same coordinates, it equals
    an IDF in the score and another in the penalty. Source: Geng et al. 2024, arXiv 2411.04403
    (version 1 divides the penalty, version 2 multiplies the score).

    Raises as ``flops``; ``DataError`` for an IDF of the wrong length or not above 0;
    ``ConfigError`` for another power.
    """
    if power not in (1, 2):
        raise ConfigError(f"power is {power!r}; it must be 1 or 2")
    mean_V = floating("weights_NV", weights_NV).mean(dim=0)
    idf = _per_token("idf_V", idf_V, mean_V)
    if not ((idf > 0) & idf.isfinite()).all():
        raise DataError("idf_V holds a value that is not a finite number above 0")
    return _finite("idf_flops", (mean_V / idf**power).square().sum())


def df_flops(
    weights_NV: Tensor,
    document_frequency_V: Tensor,
    alpha: float = 0.1,
    beta: float = 5.0,
) -> Tensor:
    """Scalar: ``Σ_j a_j (mean_i w_ij)²`` with ``a_j = 1 / (1 + (x_j^(log_alpha 2) - 1)^beta)``.

    x is ``document_frequency_V``: the share (0..1) of documents in which the token is active. The
    factor a rises from 0 (x = 0) over 1/2 (x = alpha) to 1 (x = 1, the plain ``flops`` term), the
    more steeply the larger beta. The factor is a constant: no gradient flows into x. The defaults
    are this package's choice. Source: Porco et al. 2025, arXiv 2505.15070, in the convention of
    ``flops``.

    Raises as ``flops``; ``DataError`` for shares of the wrong length or outside 0..1;
    ``ConfigError`` unless 0 < alpha < 1 and beta > 0.
    """
    if not 0 < alpha < 1:
        raise ConfigError(f"alpha is {alpha!r}; it must lie between 0 and 1")
    above_zero("beta", beta)
    mean_V = floating("weights_NV", weights_NV).mean(dim=0)
    share = _per_token("document_frequency_V", document_frequency_V.detach(), mean_V).double()
    if not ((share >= 0) & (share <= 1)).all():
        raise DataError(
            "document_frequency_V holds a value outside 0..1; it must hold shares, not counts"
        )
    # With y = log_alpha(2) ln(x) >= 0 the factor is sigmoid(-beta ln(e^y - 1)). This form cannot
    # overflow.
    y = share.log() * (math.log(2) / math.log(alpha))
    factor = torch.sigmoid(-beta * (y + (-torch.expm1(-y)).log()))
    return _finite("df_flops", (factor.to(mean_V.dtype) * mean_V.square()).sum())


def l1(weights_NV: Tensor) -> Tensor:
    """Scalar: ``mean_i Σ_j |w_ij|``.

    Raises ``DataError`` for no texts, a wrong shape, or weights that are not finite.
    """
    return _finite("l1", floating("weights_NV", weights_NV).abs().sum(dim=1).mean())


def anti_zero(weights_NV: Tensor) -> Tensor:
    """Scalar: ``1 / (Σ_ij w_ij)²`` of one side; it grows as that side falls silent.

    It goes beside a penalty, weighted by ``anti_zero`` of ``[documents]`` or ``[queries]``. A sum
    below 1e-6 counts as 1e-6 and has no gradient; the collapse detector ends such a training.
    Source: naver's SPLADE trainer, which adds the two sides.

    Raises ``DataError`` for no texts, a wrong shape, or weights that are not finite.
    """
    total = floating("weights_NV", weights_NV).sum()
    return _finite("anti_zero", total).clamp_min(_SMALLEST_SUM).square().reciprocal()


@dataclass(frozen=True)
class Penalty:
    """One entry of ``PENALTIES``."""

    # takes weights_NV, then the ``token_facts`` and the ``settings`` by their names
    formula: Callable[..., Tensor]
    sentence: str  # of the model card
    settings: tuple[str, ...] = ()  # fields of PenaltySettings that the formula takes
    token_facts: tuple[TokenFacts, ...] = ()  # what the formula must know about each token
    details: str = ""  # of the model card: a format string over the fields of PenaltySettings

    def compute(
        self, weights_NV: Tensor, settings: PenaltySettings, facts: Mapping[TokenFacts, Tensor]
    ) -> Tensor:
        """The penalty of these weights, a scalar without lambda."""
        options = select_arguments(self.settings, vars(settings))
        return self.formula(weights_NV, **select_arguments(self.token_facts, facts), **options)


PENALTIES: dict[str, Penalty] = {
    "flops": Penalty(
        flops,
        "FLOPS: the sum over all tokens of the squared mean weight in the batch",
    ),
    "idf_flops": Penalty(
        idf_flops,
        "IDF-aware FLOPS: the sum over all tokens of the squared mean weight divided by the "
        "token's IDF",
        settings=("power",),
        token_facts=("idf_V",),
        details="power {power} of the IDF",
    ),
    "df_flops": Penalty(
        df_flops,
        "DF-FLOPS: FLOPS in which a token counts the more, the more documents it is active in",
        settings=("alpha", "beta"),
        token_facts=("document_frequency_V",),
        details="alpha {alpha:.10g}, beta {beta:.10g}",
    ),
    "l1": Penalty(l1, "L1: the mean sum of a text's weights"),
}


@pydantic_dataclass(frozen=True, config=SECTION)
class PenaltySettings:
    """``[documents]`` and ``[queries]``: the sparsity penalty of one side."""

    penalty: Annotated[Text, name_in([NONE], PENALTIES)] = "flops"
    """Which penalty."""
    weight: NotNegative | None = None
    """Lambda, the weight of the penalty; give either this or target_terms."""
    target_terms: Positive | None = None
    """Mean number of active terms towards which lambda, and for documents the output biases, are
    controlled."""
    ramp_steps: CountOrZero = 0
    """Steps of the quadratic ramp of lambda; with a target, steps until it must be reached."""
    power: Annotated[StrictInt, Field(ge=1, le=2)] = 1
    """Power of the IDF in idf_flops."""
    alpha: OpenShare = 0.1
    """Document frequency, as a share, at which df_flops weighs a token by one half."""
    beta: Positive = 5.0
    """Steepness of the weights in df_flops."""
    anti_zero: NotNegative = 0.0
    """Weight of 1 / (sum of all weights)^2, which keeps a side from falling silent."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.penalty != NONE and (self.weight is None) == (self.target_terms is None):
            raise ConfigError("a penalty needs either weight (lambda) or target_terms, not both")
        refuse_unused(self, _STRENGTH, "penalty", tuple(PENALTIES))
        users: dict[str, list[str]] = {}
        for key, entry in PENALTIES.items():
            for name in entry.settings:
                users.setdefault(name, []).append(key)
        for name, keys in users.items():
            refuse_unused(self, (name,), "penalty", keys)
        return self


def describe(settings: PenaltySettings) -> str:
    """The penalty of one side in the words of the model card."""
    parts = [NONE]
    if settings.penalty != NONE:
        entry = PENALTIES[settings.penalty]
        if settings.target_terms is None:
            strength = f"lambda {settings.weight or 0.0:.10g}"
            ramp = f"quadratic ramp over {settings.ramp_steps:,} steps"
        else:
            strength = f"lambda controlled towards {settings.target_terms:.10g} active terms"
            ramp = f"to be reached within {settings.ramp_steps:,} steps"
        parts = [entry.sentence, strength]
        if settings.ramp_steps:
            parts.append(ramp)
        if entry.details:
            parts.append(entry.details.format(**vars(settings)))
    if settings.anti_zero:
        parts.append(f"plus {settings.anti_zero:.10g} times the anti-zero loss")
    return "; ".join(parts)


def _per_token(name: str, values_V: Tensor, mean_V: Tensor) -> Tensor:
    if values_V.shape != mean_V.shape:
        raise DataError(
            f"{name} has the shape {tuple(values_V.shape)}; it must be one value per token, "
            f"{tuple(mean_V.shape)}"
        )
    return values_V.to(mean_V.dtype)


def _finite(name: str, loss: Tensor) -> Tensor:
    # NaN and infinity survive every sum and square: one look at the scalar checks all weights.
    if not loss.isfinite():
        raise DataError(
            f"{name} is {loss.item()}: a weight is NaN or infinite, or too large to be squared"
        )
    return loss
