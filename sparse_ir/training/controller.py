"""How strong the sparsity penalty is at each step, and when training has gone wrong beyond repair.

``Governor`` gives lambda: by a quadratic ramp, or by control towards a number of active terms (the
autopilot). ``Guard`` watches for collapse. Both carry a small JSON-able state, so that a resumed
run goes on as if never stopped.
"""

from __future__ import annotations

import math
from typing import Any

from sparse_ir.errors import TrainingError
from sparse_ir.training.config import PenaltySettings
from sparse_ir.training.penalties import ramp

_GAIN = 0.1  # share of the relative error by which log(lambda) moves in a step
_MEMORY = 0.85  # of the running mean of active terms
_HORIZON = 20  # steps that the present trend is thought to go on
_LEAST = 0.5  # active terms: less has no logarithm worth the name
_SHARE_MEMORY = 0.6
_FIRST_LAMBDA = 1e-3
_LAMBDA_RANGE = (1e-9, 1e4)
_BOOST_RANGE = (0.25, 4.0)
# share of the needed logits that output biases are moved by at a time, and most
_TRIM, _LARGEST_TRIM = 0.15, 0.08
TOLERANCE = 0.10  # a target that was missed by more is told
_PATIENCE_EMPTY = 50
_PATIENCE_DENSE = 500  # a dense start is normal, and a penalty needs its time


class Governor:
    """Lambda of one side. ``step`` counts from the first ranking step.

    With a target, ``log lambda`` moves by ``0.1 log(terms in 20 steps / goal)`` a step, clipped to
    0.1, where the trend of the running mean is prolonged; ``terms / goal`` multiplies lambda on
    top. Both damp the swing. The goal falls geometrically from the first count observed to the
    target within ``ramp_steps``; terms that run ahead of it are not called back.

    Lambda alone would come late or never. A penalty can only take terms away, and what ReLU has
    switched off gets no gradient by which to return; and it moves weights no faster than the
    learning rate allows, which ends at zero. So a second hand helps: ``lift`` moves all output
    biases alike by a share of what is needed, upwards whenever the terms are below the target,
    which wakes those that are nearest to being active, and downwards too once the ramp is over.
    """

    def __init__(self, settings: PenaltySettings) -> None:
        self._settings = settings
        self._lambda = _FIRST_LAMBDA
        self._terms: float | None = None
        self._first_terms: float | None = None
        self._share: float | None = None

    def weight(self, step: int) -> float:
        """Lambda of this step."""
        if self._settings.penalty == "none":
            return 0.0
        if self._settings.target_terms is None:
            assert self._settings.weight is not None
            return self._settings.weight * ramp(step, self._settings.ramp_steps)
        if self._terms is None:
            return self._lambda
        low, high = _BOOST_RANGE
        return self._lambda * min(max(self._terms / self._goal(step), low), high)

    @property
    def terms(self) -> float | None:
        """The running mean of active terms; None before ranking."""
        return self._terms

    def compare(self, under_dropout: float, without: float) -> None:
        """Take note of the mean numbers of active terms of the same texts under dropout, and as the
        saved model reads.

        Dropout wakes terms that would be silent and silences others, so the two may be a factor of
        two apart.
        """
        found = max(without, _LEAST) / max(under_dropout, _LEAST)
        self._share = (
            found
            if self._share is None
            else self._share**_SHARE_MEMORY * found ** (1 - _SHARE_MEMORY)
        )

    def without_dropout(self, active_terms: float) -> float:
        """What a number of active terms under dropout would be without it."""
        return active_terms * (1.0 if self._share is None else self._share)

    def observe(self, step: int, active_terms: float) -> None:
        """Take note of the mean number of active terms of this step's texts, without dropout."""
        active_terms = max(active_terms, _LEAST)
        if self._first_terms is None or self._terms is None:
            self._first_terms = self._terms = active_terms
        before = self._terms
        self._terms = _MEMORY * before + (1 - _MEMORY) * active_terms
        if self._settings.target_terms is None:
            return
        trend = _HORIZON * math.log(self._terms / before)
        error = math.log(self._terms / self._goal(step)) + trend
        low, high = _LAMBDA_RANGE
        self._lambda = min(
            max(self._lambda * math.exp(_GAIN * min(max(error, -1.0), 1.0)), low), high
        )

    def lift(self, step: int, needed: float) -> float:
        """Logits to add to every output bias now, where ``needed`` would bring the texts just read
        to the target.
        """
        least = -_LARGEST_TRIM if step >= self._settings.ramp_steps else 0.0
        return min(max(_TRIM * needed, least), _LARGEST_TRIM)

    def _goal(self, step: int) -> float:
        target, first, terms = self._settings.target_terms, self._first_terms, self._terms
        assert target is not None and first is not None and terms is not None
        done = min(step / self._settings.ramp_steps, 1.0) if self._settings.ramp_steps else 1.0
        return max(min(target * max(first / target, 1.0) ** (1.0 - done), terms), target)

    def state(self) -> dict[str, Any]:
        """JSON-able; ``restore`` takes it back. ``terms``: the running mean of active terms, None
        before ranking.
        """
        return {
            "lambda": self._lambda,
            "terms": self._terms,
            "first_terms": self._first_terms,
            "share": self._share,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on where ``state`` was taken."""
        self._lambda, self._terms, self._first_terms = (
            state["lambda"],
            state["terms"],
            state["first_terms"],
        )
        self._share = state["share"]


class Guard:
    """Stops a run that has collapsed, with the reason and a remedy, before it burns hours.

    Three ends are known: every text empty (a penalty too strong, or ReLUs that died: none of them
    gets a gradient again), every term active (a penalty too weak, or a learning rate that blew the
    logits up), and a loss that is no number. Empty texts must last for 50 steps and dense ones for
    500; a loss that is no number ends the run at once.
    """

    def __init__(self, vocabulary_size: int) -> None:
        self._size = vocabulary_size
        self._empty = 0
        self._dense = 0
        self._share_empty = 0.0

    def note_without_dropout(self, share_empty: float) -> None:
        """Take note of the share of texts that have no active term as the
        saved model reads them.
        """
        self._share_empty = share_empty

    def observe(self, step: int, loss: float, active_terms: float, share_empty: float) -> None:
        """Raises ``TrainingError``."""
        self.check_number(step, "loss", loss)
        self._empty = self._empty + 1 if max(share_empty, self._share_empty) > 0.5 else 0
        self._dense = self._dense + 1 if active_terms > 0.5 * self._size else 0
        if self._empty >= _PATIENCE_EMPTY:
            raise TrainingError(
                f"step {step}: for {_PATIENCE_EMPTY} steps more than half of the texts had no "
                "active term (all-zero "
                "collapse, dying ReLU); lower the penalty or lengthen its ramp, lower the "
                "learning rate, or begin with "
                "a [warm_start]"
            )
        if self._dense >= _PATIENCE_DENSE:
            raise TrainingError(
                f"step {step}: for {_PATIENCE_DENSE} steps a text had {active_terms:.0f} of "
                f"{self._size} terms on "
                "average (dense blow-up); raise the penalty, give it a target_terms, or lower the "
                "learning rate"
            )

    def check_number(self, step: int, what: str, value: float) -> None:
        """Raises ``TrainingError`` for a loss or a score that is no number."""
        if not math.isfinite(value):
            raise TrainingError(
                f"step {step}: the {what} is {value}; lower "
                "optimizer.learning_rate, set "
                "optimizer.max_grad_norm, or train in float32 or bfloat16"
            )

    def state(self) -> dict[str, Any]:
        """JSON-able; ``restore`` takes it back."""
        return {"empty": self._empty, "dense": self._dense, "share_empty": self._share_empty}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on where ``state`` was taken."""
        self._empty, self._dense, self._share_empty = (
            state["empty"],
            state["dense"],
            state["share_empty"],
        )
