"""What a training keeps in its folder: checkpoints, and the network with which ranking began.

This module knows tensors and facts by their names, and nothing about training.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from sparse_ir.errors import DamagedError, TrainingError
from sparse_ir.storage import files
from sparse_ir.training.encoders.trainable_encoder import save_tensors

FORMAT = 2  # of a training checkpoint
WEIGHTS = "model.safetensors"
TENSORS = "state.safetensors"
_STATE = "state.json"
_START = "start.safetensors"  # the network with which ranking began


@dataclass
class TrainingProgress:
    """How far a training has come, and its best step by the dev sets."""

    step: int = 0
    dev: float | None = None  # the last measure
    best: float | None = None
    best_step: int | None = None

    def is_due(self, every: int, last: int) -> bool:
        """Whether something that comes every so many steps, and after the last, comes now.

        A step at which a training only pauses (``stop_after``) is not its last: a pause changes
        neither what is logged nor which step is best.
        """
        return self.step % every == 0 or self.step == last

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take the values of a checkpoint."""
        self.step = state["step"]
        self.dev = state["dev"]
        self.best = state["best"]
        self.best_step = state["best_step"]

    def forget_best(self) -> None:
        """Drop all measures, because the dev sets have changed."""
        self.dev = None
        self.best = None
        self.best_step = None


def list_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted(path for path in folder.glob("checkpoint-*") if (path / _STATE).is_file())


def checkpoint_of(folder: Path, step: int) -> Path:
    """The folder of the checkpoint of a step."""
    return folder / f"checkpoint-{step:07d}"


def write_checkpoint(
    target: Path,
    write_weights: Callable[[Path], None],
    tensors: Mapping[str, Tensor],
    state: Mapping[str, Any],
) -> None:
    """Write a whole checkpoint or none.

    It holds the network as ``write_weights`` writes it, tensors by name, and the JSON-able facts of
    ``state``.
    """
    with files.building(target) as folder:
        write_weights(folder / WEIGHTS)
        save_tensors(folder / TENSORS, tensors)
        hashes = {}
        for name in (WEIGHTS, TENSORS):
            hashes[name] = files.sha256_of_file(folder / name)
        sealed = dict(state) | {"sha256": hashes}
        seal = files.sha256_of_json(sealed)
        files.write_json(folder / _STATE, {"format": FORMAT} | sealed | {"state_sha256": seal})


def read_state(checkpoint: Path) -> dict[str, Any]:
    """The facts of a checkpoint.

    Raises ``DamagedError``, or ``TrainingError`` for a checkpoint of another release.
    """
    path = checkpoint / _STATE
    advice = f"delete {checkpoint} to go on from the checkpoint before it"
    try:
        state = files.read_json(path)
    except DamagedError as error:
        raise DamagedError(f"{error}; {advice}") from error
    if not isinstance(state, dict) or "format" not in state:
        raise DamagedError(f"{path} does not hold the state of a training; {advice}")
    stored_format = state.pop("format")
    if stored_format != FORMAT:
        raise TrainingError(
            f"{checkpoint} has the format {stored_format!r}; this release resumes format {FORMAT}"
        )
    if state.pop("state_sha256", None) != files.sha256_of_json(state):
        raise DamagedError(f"{path} has changed since it was written; {advice}")
    return state


def check_files(checkpoint: Path, state: Mapping[str, Any]) -> None:
    """Raise ``DamagedError`` when the files of a checkpoint are not what was written."""
    for name, expected in state["sha256"].items():
        path = checkpoint / name
        if not path.is_file() or files.sha256_of_file(path) != expected:
            raise DamagedError(
                f"{path} is missing or damaged; delete {checkpoint} to go on from the checkpoint "
                "before it"
            )


def check_same_training(
    checkpoint: Path, state: Mapping[str, Any], fingerprint: Mapping[str, Any]
) -> None:
    """Raise ``TrainingError`` that names the first fact that differs from ``fingerprint``."""
    before = state["fingerprint"]
    now = json.loads(json.dumps(fingerprint))
    if before != now:
        place, old, new = _first_difference(before, now, "")
        raise TrainingError(
            f"{checkpoint} belongs to another training: {place} was {old!r:.80} and is now "
            f"{new!r:.80}; use the old configuration, data and models to go on, or another output "
            "folder to begin anew"
        )


def remove_old_checkpoints(folder: Path, keep: int) -> None:
    """Keep the last ``keep`` checkpoints, and the best step that each of them names."""
    checkpoints = list_checkpoints(folder)
    kept = set(checkpoints[-keep:])
    for path in checkpoints[-keep:]:
        # A damaged older checkpoint must not stop a newer one from being saved.
        with contextlib.suppress(DamagedError, TrainingError):
            best = read_state(path)["progress"]["best_step"]
            if best is not None:
                kept.add(checkpoint_of(folder, best))
    for path in checkpoints:
        if path not in kept:
            files.remove_folder(path)


def write_start(folder: Path, write_weights: Callable[[Path], None]) -> str:
    """Keep the network with which ranking begins; returns the SHA-256 of its file."""
    path = folder / _START
    part = files.temporary_sibling(path)
    try:
        with files.naming_disk_errors(path):
            write_weights(part)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return files.sha256_of_file(path)


def find_start(folder: Path, sha256: str | None) -> Path:
    """The file that ``write_start`` wrote.

    Raises ``TrainingError`` when it was never written, ``DamagedError`` when it has changed.
    """
    path = folder / _START
    if sha256 is None:
        raise TrainingError(
            f"{path} was never written, the network with which ranking began: it is kept only "
            "where blend.start was set from the first step on; drop it, or begin anew in another "
            "folder"
        )
    if not path.is_file() or files.sha256_of_file(path) != sha256:
        raise DamagedError(
            f"{path} is missing or damaged, the network with which ranking began; blend.start "
            "needs it: put it back, drop blend.start, or begin anew in another folder"
        )
    return path


def _first_difference(before: Any, now: Any, place: str) -> tuple[str, Any, Any]:
    """The place of the first difference between two JSON values, and both values there."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in [*before, *now]:
            if before.get(key) != now.get(key):
                inner = f"{place}.{key}" if place else key
                return _first_difference(before.get(key), now.get(key), inner)
    if isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        for number, (old, new) in enumerate(zip(before, now, strict=True)):
            if old != new:
                name = old.get("name", number) if isinstance(old, dict) else number
                return _first_difference(old, new, f"{place}.{name}")
    return place, before, now
