"""Control of lambda, and the end of trainings that have collapsed."""

from __future__ import annotations

import json

import pytest

from sparse_ir.errors import ConfigError, TrainingError
from sparse_ir.training.configuration.config import PenaltySettings
from sparse_ir.training.objectives.controller import CollapseDetector, PenaltyController, ramp


def test_ramp_by_hand():
    values = [ramp(step, 4) for step in range(7)]
    assert values == [0.0, 0.0625, 0.25, 0.5625, 1.0, 1.0, 1.0]
    assert ramp(0, 0) == 1.0


@pytest.mark.parametrize(("step", "steps"), [(-1, 5), (1, -5)])
def test_a_ramp_has_no_negative_steps(step, steps):
    with pytest.raises(ConfigError, match=f"ramp: step is {step} of {steps}; both must be 0 or"):
        ramp(step, steps)


def test_terms_that_run_ahead_of_the_ramp_are_not_called_back():
    controller = PenaltyController(PenaltySettings("flops", target_terms=50.0, ramp_steps=100))
    for step in range(40):
        controller.observe(step, 400.0 if step < 5 else 120.0)  # the ramp is at 174 by now
    before = controller.weight(40)
    for step in range(40, 60):
        controller.observe(step, 120.0)
    assert controller.weight(60) == pytest.approx(before, rel=0.2)


def test_a_ramp_is_a_function_of_the_step():
    controller = PenaltyController(PenaltySettings("flops", weight=0.8, ramp_steps=10))
    assert [controller.weight(step) for step in (0, 5, 10, 99)] == pytest.approx(
        [0.0, 0.2, 0.8, 0.8]
    )


def test_a_controller_goes_on_where_its_state_was_taken():
    settings = PenaltySettings("flops", target_terms=50.0, ramp_steps=20)
    one, other = PenaltyController(settings), PenaltyController(settings)
    for step in range(30):
        one.observe(step, 200.0 / (step + 1))
    other.restore(json.loads(json.dumps(one.state())))
    assert one.weight(30) == other.weight(30) != PenaltyController(settings).weight(30)


def test_what_is_empty_without_dropout_is_a_collapse():
    """However many terms dropout wakes."""
    detector = CollapseDetector(1000)
    detector.note_without_dropout(0.9)
    for step in range(49):
        detector.observe(step, 1.0, 30.0, 0.0)
    other = CollapseDetector(1000)
    other.restore(json.loads(json.dumps(detector.state())))
    with pytest.raises(
        TrainingError, match="for 50 steps more than half of the texts had no active term"
    ):
        other.observe(49, 1.0, 30.0, 0.0)


@pytest.mark.parametrize(
    ("terms", "empty", "steps", "message"),
    [
        (0.2, 0.8, 50, "all-zero collapse, dying ReLU"),
        (600.0, 0.0, 500, "600 of 1000 terms .*dense blow-up"),
    ],
)
def test_a_lasting_collapse_stops_the_run(terms, empty, steps, message):
    detector = CollapseDetector(1000)
    for step in range(steps - 1):
        detector.observe(step, 1.0, terms, empty)
    with pytest.raises(TrainingError, match=message):
        detector.observe(steps - 1, 1.0, terms, empty)


def test_a_collapse_that_heals_does_not_stop_the_run():
    detector = CollapseDetector(1000)
    for step in range(200):
        detector.observe(step, 1.0, 10.0, 0.9 if step % 49 else 0.0)


def test_a_loss_that_is_no_number_stops_at_once():
    with pytest.raises(TrainingError, match="step 7: the loss is nan"):
        CollapseDetector(10).observe(7, float("nan"), 5.0, 0.0)
