"""Training checkpoints: what they hold, when they may be resumed, and which of them stay."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from sparse_ir.errors import DamagedError
from sparse_ir.storage import files, reading
from sparse_ir.training.configuration.config_parser import config_to_json, format_config
from sparse_ir.training.encoders import trainable_encoder
from sparse_ir.training.loop import optimization, saved_state
from sparse_ir.training.loop.adaptation import Adaptation
from sparse_ir.training.loop.dev_sets import DevEvaluation
from sparse_ir.training.loop.final_model import RankingStart
from sparse_ir.training.loop.ranking import Objective, WeightedTeacher
from sparse_ir.training.loop.saved_state import TENSORS, WEIGHTS, TrainingProgress
from sparse_ir.training.loop.sparsity import SparsityControl
from sparse_ir.training.loop.training_setup import TrainingSetup

# Settings that may change between two calls: they do not decide the weights.
_RUN_MAY_CHANGE = (
    "stop_after",
    "save_every",
    "keep",
    "evaluate_every",
    "log_every",
    "tensorboard",
)
_MODEL_MAY_CHANGE = ("saved_dtype", "allow_pickle")
_SECTIONS_MAY_CHANGE = ("card", "dev", "blend")


@dataclasses.dataclass(frozen=True)
class TrainingParts:
    """Everything that has a state beside the setup."""

    objective: Objective
    sparsity: SparsityControl
    adaptation: Adaptation
    ranking_start: RankingStart
    dev: DevEvaluation
    progress: TrainingProgress


class Checkpoints:
    """Saves and resumes one training in its folder."""

    def __init__(
        self,
        setup: TrainingSetup,
        folder: Path,
        parts: TrainingParts,
        teachers: Sequence[WeightedTeacher],
    ) -> None:
        self._setup = setup
        self._folder = folder
        self._parts = parts
        self.fingerprint = _fingerprint(setup, teachers)

    def save(self) -> None:
        """Write a checkpoint of the present step, and remove the old ones."""
        self._setup.accelerator.wait_for_everyone()
        if self._setup.accelerator.is_main_process:
            facts: dict[str, Any] = {
                "progress": dataclasses.asdict(self._parts.progress),
                "fingerprint": self.fingerprint,
            }
            facts |= self._parts.sparsity.state()
            facts["world"] = self._setup.accelerator.num_processes
            facts["dev"] = self._parts.dev.facts
            facts["start_sha256"] = self._parts.ranking_start.sha256
            saved_state.write_checkpoint(
                saved_state.checkpoint_of(self._folder, self._parts.progress.step),
                self._setup.student.write_weights,
                self._tensors(),
                facts,
            )
            saved_state.remove_old_checkpoints(self._folder, self._setup.config.run.keep)
        self._setup.accelerator.wait_for_everyone()

    def resume(self) -> None:
        """Restore the newest checkpoint, if there is one, and write the configuration.

        Raises:
            TrainingError: The checkpoint belongs to another training.
            DamagedError: The newest checkpoint, the best one, or the start of a blend is damaged.
        """
        is_main = self._setup.accelerator.is_main_process
        if is_main:
            files.remove_leftovers_in(self._folder)
        checkpoints = saved_state.list_checkpoints(self._folder)
        if checkpoints:
            self._restore(checkpoints[-1])
            self._parts.ranking_start.check(self._parts.progress.step)
            self._find_best()
        # What may change between two calls is kept up to date.
        if is_main:
            with files.atomic_writer(self._folder / "config.toml") as stream:
                stream.write(format_config(self._setup.config))
        self._setup.accelerator.wait_for_everyone()

    def load_best(self) -> None:
        """Take the weights of the best step by the dev sets, if it is not the present one."""
        best = self._find_best()
        if best is not None:
            self._read_networks(best)

    def _find_best(self) -> Path | None:
        """The checked checkpoint of the best step; None when that is the present step."""
        step = self._parts.progress.best_step
        if step is None or step == self._parts.progress.step:
            return None
        folder = saved_state.checkpoint_of(self._folder, step)
        if not folder.is_dir():
            raise DamagedError(
                f"{folder} is missing, the best step so far by the dev sets; put it back, or begin "
                "anew in another folder"
            )
        saved_state.check_files(folder, saved_state.read_state(folder))
        return folder

    def _tensors(self) -> dict[str, Tensor]:
        tensors = optimization.take_moments(self._setup.optimizer)
        tensors["frequency"] = self._parts.objective.frequency_V
        if self._setup.query_side is not None:
            tensors["query_weights"] = self._setup.query_side.weights_V.detach()
        packed = self._parts.adaptation.packed
        if packed is not None:
            tensors["packed_starts"] = torch.tensor(packed.starts)
        return tensors

    def _restore(self, folder: Path) -> None:
        state = saved_state.read_state(folder)
        saved_state.check_same_training(folder, state, self.fingerprint)
        saved_state.check_files(folder, state)
        tensors = self._read_networks(folder)
        parts = self._parts
        parts.objective.frequency_V.copy_(tensors["frequency"])
        if parts.adaptation.packed is not None:
            parts.adaptation.packed.starts = tensors["packed_starts"].tolist()
        optimization.restore_moments(self._setup.optimizer, tensors)
        parts.sparsity.restore(state)
        parts.ranking_start.sha256 = state["start_sha256"]
        parts.progress.restore(state["progress"])
        if state["dev"] != parts.dev.facts:
            parts.progress.forget_best()

    def _read_networks(self, folder: Path) -> dict[str, Tensor]:
        """Take the weights of both sides from a checkpoint; returns its other tensors, too."""
        device = self._setup.accelerator.device
        self._setup.student.read_weights(folder / WEIGHTS, device)
        with reading.reading(folder / TENSORS, "safetensors"):
            tensors = load_file(
                folder / TENSORS, device=trainable_encoder.safetensors_device(device)
            )
        if self._setup.query_side is not None:
            with torch.no_grad():
                self._setup.query_side.weights_V.copy_(tensors["query_weights"])
        return tensors


def _fingerprint(setup: TrainingSetup, teachers: Sequence[WeightedTeacher]) -> dict[str, Any]:
    """JSON-able facts that must be equal for a checkpoint to be resumed."""
    config = config_to_json(setup.config)
    for key in _RUN_MAY_CHANGE:
        config["run"].pop(key, None)
    for key in _MODEL_MAY_CHANGE:
        config["model"].pop(key)
    for settings in config["teacher"]:
        settings.pop("allow_pickle")
    for section in _SECTIONS_MAY_CHANGE:
        config.pop(section, None)
    idf = setup.config.model.idf
    return {
        "config": config,
        "start": setup.start.fingerprint,
        "data": setup.batches.fingerprint,
        "idf_sha256": None if idf is None else files.sha256_of_file(Path(idf)),
        "teachers": [getattr(teacher, "fingerprint", None) for teacher, _ in teachers],
    }
