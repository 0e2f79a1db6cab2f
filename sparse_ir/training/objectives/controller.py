"""How strong the sparsity penalty is at each step, and when a training has failed beyond repair.

``PenaltyController`` gives lambda: by a quadratic ramp, or by control towards a number of active
terms. ``CollapseDetector`` ends a training that cannot recover. Both carry a small JSON-able state,
so that a resumed training goes on as if it had never stopped.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from sparse_ir.errors import ConfigError, TrainingError
from sparse_ir.training.objectives.penalties import NONE, PenaltySettings

TOLERANCE = 0.10  # relative distance from a target above which it counts as missed
_GAIN = 0.1  # share of the relative error by which log(lambda) moves in a step
_MEMORY = 0.85  # of the running mean of active terms
_HORIZON = 20  # steps over which the present trend is extrapolated
_LEAST_TERMS = 0.5  # fewer active terms count as this many, so that a logarithm exists
_RATIO_MEMORY = 0.6  # of the running ratio between terms without and under dropout
_FIRST_LAMBDA = 1e-3
_LAMBDA_RANGE = (1e-9, 1e4)
_BOOST_RANGE = (0.25, 4.0)
_BIAS_GAIN = 0.15  # share of the needed logits by which output biases move at a time
_LARGEST_BIAS_STEP = 0.08
_PATIENCE_EMPTY = 50
_PATIENCE_DENSE = 500  # a dense start is normal, and a penalty needs time


class PenaltyController:
    """Lambda of one side. ``step`` counts from the first ranking step.

    With a target, ``log lambda`` moves by ``0.1 log(terms in 20 steps / goal)`` a step, clipped to
    0.1; "terms in 20 steps" extrapolates the trend of the running mean. In addition, lambda is
    multiplied by ``terms / goal``. Both damp the swing. The goal falls geometrically from the first
    count to the target within ``ramp_steps``; it never rises above the present terms.

    Lambda alone would act late or never. A penalty can only remove terms, and what a ReLU has
    switched off gets no gradient by which to return. Weights also move no faster than the learning
    rate allows, which ends at zero. So ``bias_step`` moves all output biases alike by a share of
    what is needed: upwards whenever terms are below the target, which wakes the terms nearest to
    being active, and downwards as well once the ramp is over.
    """

    def __init__(self, settings: PenaltySettings) -> None:
        self._settings = settings
        self._lambda = _FIRST_LAMBDA
        self._terms: float | None = None  # running mean
        self._first_terms: float | None = None
        self._ratio: float | None = None  # terms without dropout / terms under dropout

    def weight(self, step: int) -> float:
        """Lambda of this step."""
        if self._settings.penalty == NONE:
            return 0.0
        if self._settings.target_terms is None:
            assert self._settings.weight is not None
            return self._settings.weight * ramp(step, self._settings.ramp_steps)
        if self._terms is None:
            return self._lambda
        return self._lambda * _clip(self._terms / self._goal(step), *_BOOST_RANGE)

    @property
    def has_reached_target(self) -> bool:
        """Whether terms are at most twice the tolerance above the target; true without a target."""
        target = self._settings.target_terms
        if target is None or self._terms is None:
            return True
        return self._terms <= target * (1 + 2 * TOLERANCE)

    def compare(self, under_dropout: float, without: float) -> None:
        """Observe mean active terms of equal texts under dropout and as the saved model reads them.

        Dropout wakes terms that would be silent and silences others: the two counts may differ by a
        factor of two.
        """
        ratio = max(without, _LEAST_TERMS) / max(under_dropout, _LEAST_TERMS)
        if self._ratio is None:
            self._ratio = ratio
        else:
            self._ratio = self._ratio**_RATIO_MEMORY * ratio ** (1 - _RATIO_MEMORY)

    def without_dropout(self, active_terms: float) -> float:
        """An estimate, from a number of active terms under dropout, of that without dropout."""
        if self._ratio is None:
            return active_terms
        return active_terms * self._ratio

    def observe(self, step: int, active_terms: float) -> None:
        """Observe the mean number of active terms of this step's texts, without dropout."""
        active_terms = max(active_terms, _LEAST_TERMS)
        if self._first_terms is None or self._terms is None:
            self._first_terms = self._terms = active_terms
        before = self._terms
        self._terms = _MEMORY * before + (1 - _MEMORY) * active_terms
        if self._settings.target_terms is None:
            return
        trend = _HORIZON * math.log(self._terms / before)
        error = math.log(self._terms / self._goal(step)) + trend
        factor = math.exp(_GAIN * _clip(error, -1.0, 1.0))
        self._lambda = _clip(self._lambda * factor, *_LAMBDA_RANGE)

    def bias_step(self, step: int, needed: float) -> float:
        """Logits to add to every output bias now.

        ``needed`` logits would bring the texts just read to the target.
        """
        lowest = -_LARGEST_BIAS_STEP if step >= self._settings.ramp_steps else 0.0
        return _clip(_BIAS_GAIN * needed, lowest, _LARGEST_BIAS_STEP)

    def _goal(self, step: int) -> float:
        target = self._settings.target_terms
        assert target is not None
        assert self._first_terms is not None
        assert self._terms is not None
        done = 1.0
        if self._settings.ramp_steps:
            done = min(step / self._settings.ramp_steps, 1.0)
        on_ramp: float = target * max(self._first_terms / target, 1.0) ** (1.0 - done)
        return max(min(on_ramp, self._terms), target)

    def state(self) -> dict[str, float | None]:
        """A JSON-able state for ``restore``."""
        return {
            "lambda": self._lambda,
            "terms": self._terms,
            "first_terms": self._first_terms,
            "share": self._ratio,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on where ``state`` was taken."""
        self._lambda = state["lambda"]
        self._terms = state["terms"]
        self._first_terms = state["first_terms"]
        self._ratio = state["share"]


class CollapseDetector:
    """Ends a training that has collapsed, with the reason and a remedy, before it burns hours.

    It knows three failures. Every text is empty: the penalty is too strong, or ReLUs have died, and
    neither gets a gradient again. Every token is active: the penalty is too weak, or the learning
    rate has blown the logits up. The loss is not a number. Empty texts must last for 50 steps and
    dense ones for 500; a loss that is not a number ends the training at once.
    """

    def __init__(self, vocabulary_size: int) -> None:
        self._vocabulary_size = vocabulary_size
        self._empty_steps = 0
        self._dense_steps = 0
        self._share_empty = 0.0

    def note_without_dropout(self, share_empty: float) -> None:
        """Observe the share of texts without an active term as the saved model reads them."""
        self._share_empty = share_empty

    def observe(self, step: int, loss: float, active_terms: float, share_empty: float) -> None:
        """Observe a step; raises ``TrainingError`` when the training has collapsed."""
        self.check_number(step, "loss", loss)
        is_empty = max(share_empty, self._share_empty) > 0.5
        is_dense = active_terms > 0.5 * self._vocabulary_size
        self._empty_steps = self._empty_steps + 1 if is_empty else 0
        self._dense_steps = self._dense_steps + 1 if is_dense else 0
        if self._empty_steps >= _PATIENCE_EMPTY:
            raise TrainingError(
                f"step {step}: for {_PATIENCE_EMPTY} steps more than half of the texts had no "
                "active term (all-zero collapse, dying ReLU); lower the penalty or lengthen its "
                "ramp, lower the learning rate, or begin with a [warm_start]"
            )
        if self._dense_steps >= _PATIENCE_DENSE:
            raise TrainingError(
                f"step {step}: for {_PATIENCE_DENSE} steps a text had {active_terms:.0f} of "
                f"{self._vocabulary_size} terms on average (dense blow-up); raise the penalty, "
                "give it a target_terms, or lower the learning rate"
            )

    def check_number(self, step: int, name: str, value: float) -> None:
        """Raise ``TrainingError`` for a loss or a score that is not a number."""
        if not math.isfinite(value):
            raise TrainingError(
                f"step {step}: the {name} is {value}; lower optimizer.learning_rate, set "
                "optimizer.max_grad_norm, or train in float32 or bfloat16"
            )

    def state(self) -> dict[str, float]:
        """A JSON-able state for ``restore``."""
        return {
            "empty": self._empty_steps,
            "dense": self._dense_steps,
            "share_empty": self._share_empty,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on where ``state`` was taken."""
        self._empty_steps = state["empty"]
        self._dense_steps = state["dense"]
        self._share_empty = state["share_empty"]


def ramp(step: int, steps: int) -> float:
    """``(min(step, steps) / steps)²``: 0 at step 0, 1 from ``steps`` on; always 1 without a ramp.

    The step counts optimizer steps, so neither micro-batches nor resuming change it. Raises
    ``ConfigError`` for a negative step.
    """
    if step < 0 or steps < 0:
        raise ConfigError(f"ramp: step is {step} of {steps}; both must be 0 or more")
    if step >= steps:
        return 1.0
    return float((step / steps) ** 2)


def _clip(value: float, lowest: float, highest: float) -> float:
    return min(max(value, lowest), highest)
