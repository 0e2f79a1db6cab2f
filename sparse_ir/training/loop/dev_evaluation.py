"""Dev sets in training: when they are searched, and which step is the best so far."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sparse_ir import extras
from sparse_ir.storage import files
from sparse_ir.training.loop import dev_sets
from sparse_ir.training.loop.dev_sets import DevSet
from sparse_ir.training.loop.saved_state import TrainingProgress
from sparse_ir.training.loop.training_setup import TrainingSetup


class DevEvaluation:
    """Measures the dev sets and keeps the best step in ``progress``."""

    def __init__(
        self, setup: TrainingSetup, dev: Sequence[DevSet], progress: TrainingProgress
    ) -> None:
        self._setup = setup
        self._dev = list(dev)
        self._progress = progress

    @property
    def facts(self) -> list[dict[str, str]]:
        """JSON-able facts; a best step counts only as long as they stay the same."""
        return [
            {"name": dev.name, "measure": dev.measure, "sha256": files.sha256_of_json(dev)}
            for dev in self._dev
        ]

    @property
    def lacks_best(self) -> bool:
        """Whether there are dev sets by which no step was chosen yet."""
        return bool(self._dev) and self._progress.best_step is None

    def evaluate_if_due(self, facts: dict[str, Any], *, is_sparse_enough: bool) -> bool:
        """``evaluate`` after every ``run.evaluate_every`` steps and after the last."""
        config = self._setup.config
        is_ranking = self._progress.step > config.warm_start.steps
        if not self._dev or not is_ranking:
            return False
        if not self._progress.is_due(config.run.evaluate_every, config.run.steps):
            return False
        return self.evaluate(facts, is_sparse_enough=is_sparse_enough)

    def evaluate(self, facts: dict[str, Any], *, is_sparse_enough: bool) -> bool:
        """Measure all dev sets into ``facts``; returns whether this is the best step so far.

        While nothing is found at all, the latest step is the best. A step that is not sparse enough
        is best only when it is the last and no other step was.
        """
        with extras.importing():
            from accelerate.utils import broadcast_object_list

        setup = self._setup
        measured: dict[str, float] = {}
        for dev in self._dev:
            measured[f"dev/{dev.name}"] = dev_sets.evaluate(setup.student, setup.query_side, dev)
        # All processes must agree on the best step, whatever their rounding.
        measured = broadcast_object_list([measured])[0]
        progress = self._progress
        mean = sum(measured.values()) / len(measured)
        progress.dev = mean
        if is_sparse_enough:
            is_best = not progress.best or mean > progress.best
        else:
            is_best = progress.step == setup.config.run.steps and progress.best is None
        if is_best:
            progress.best = mean
            progress.best_step = progress.step
        facts |= measured
        facts["dev"] = mean
        return is_best

    def describe(self) -> str:
        """The last measure and the best, for the progress bar; empty before the first."""
        progress = self._progress
        if progress.dev is None:
            return ""
        measures = ", ".join(dict.fromkeys(dev.measure for dev in self._dev))
        best = "none yet" if progress.best is None else f"{progress.best:.4f}"
        return f"{measures} {progress.dev:.4f} (best {best})"
