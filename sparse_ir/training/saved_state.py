"""What a training run keeps in its folder: checkpoints, the network with which ranking began, and
the log.

It knows tensors and facts by their names, and nothing of training.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from sparse_ir import extras
from sparse_ir.errors import DamagedError, TrainingError
from sparse_ir.storage import files

FORMAT = 2  # of a training checkpoint
WEIGHTS, TENSORS = "model.safetensors", "state.safetensors"
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
    """Where the checkpoint of a step lies."""
    return folder / f"checkpoint-{step:07d}"


def write_checkpoint(
    target: Path,
    write_weights: Callable[[Path], None],
    tensors: Mapping[str, Tensor],
    state: Mapping[str, Any],
) -> None:
    """A whole checkpoint or none: the network as ``write_weights`` writes it, tensors by name,
    JSON-able facts.
    """
    from safetensors.torch import save_file

    with files.building(target) as folder:
        write_weights(folder / WEIGHTS)
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / TENSORS)
        hashes = {name: files.sha256_of_file(folder / name) for name in (WEIGHTS, TENSORS)}
        whole = {**state, "sha256": hashes}
        files.write_json(
            folder / _STATE,
            {"format": FORMAT, **whole, "state_sha256": files.sha256_of_json(whole)},
        )


def read_state(checkpoint: Path) -> dict[str, Any]:
    """The facts of a checkpoint. Raises ``DamagedError``, or ``TrainingError`` for one of another
    release.
    """
    advice = f"delete {checkpoint} to go on from the checkpoint before it"
    try:
        state = files.read_json(checkpoint / _STATE)
    except DamagedError as error:
        raise DamagedError(f"{error}; {advice}") from error
    if not isinstance(state, dict) or "format" not in state:
        raise DamagedError(f"{checkpoint / _STATE} holds no state of a run; {advice}")
    if (found := state.pop("format")) != FORMAT:
        raise TrainingError(
            f"{checkpoint} has the format {found!r}; this release resumes format {FORMAT}"
        )
    if state.pop("state_sha256", None) != files.sha256_of_json(state):
        raise DamagedError(f"{checkpoint / _STATE} is not what was written; {advice}")
    return state


def check_files(checkpoint: Path, state: Mapping[str, Any]) -> None:
    """Raises ``DamagedError`` unless the files of a checkpoint are what was written."""
    for name, expected in state["sha256"].items():
        if not (checkpoint / name).is_file() or files.sha256_of_file(checkpoint / name) != expected:
            raise DamagedError(
                f"{checkpoint / name} is missing or damaged; delete {checkpoint} "
                "to go on from the "
                "checkpoint before it"
            )


def check_same_training(
    checkpoint: Path, state: Mapping[str, Any], fingerprint: Mapping[str, Any]
) -> None:
    """Raises ``TrainingError``, naming the difference, when a checkpoint belongs to a run of
    another fingerprint.
    """
    before, now = state["fingerprint"], json.loads(json.dumps(fingerprint))
    if before != now:
        place, was, asked = _first_difference(before, now, "")
        raise TrainingError(
            f"{checkpoint} belongs to another run: {place} was {was!r:.80} and is "
            f"now {asked!r:.80}; "
            "use the old configuration, data and models to go on, or another "
            "output folder to begin "
            "anew"
        )


def remove_old_checkpoints(folder: Path, keep: int) -> None:
    """Keep the last ``keep``, and of each of them the step that was best so far, which a finished
    run is made of.
    """
    found = list_checkpoints(folder)
    kept = set(found[-keep:])
    for path in found[-keep:]:
        # an older one that is damaged harms no newer one
        with contextlib.suppress(DamagedError, TrainingError):
            if (step := read_state(path)["progress"]["best_step"]) is not None:
                kept.add(checkpoint_of(folder, step))
    for old in found:
        if old not in kept:
            files.remove_folder(old)


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
    """The file of ``write_start``. Raises ``TrainingError`` when there was none, ``DamagedError``
    when it changed.
    """
    path = folder / _START
    if sha256 is None:
        raise TrainingError(
            f"{path} was never written, the network with which ranking began: it "
            "is kept only where "
            "blend.start was set from the first step on; drop it, or begin anew "
            "in another folder"
        )
    if not path.is_file() or files.sha256_of_file(path) != sha256:
        raise DamagedError(
            f"{path} is missing or damaged, the network with which ranking began; "
            "blend.start needs it: "
            "put it back, drop blend.start, or begin anew in another folder"
        )
    return path


@contextlib.contextmanager
def exclusive(folder: Path, is_main: bool) -> Iterator[None]:
    """Only one run writes to a folder; its own processes count as one."""
    with files.write_lock(folder) if is_main else contextlib.nullcontext():
        yield


class Log:
    """``log.jsonl`` and TensorBoard. After a resume, lines behind the checkpoint are dropped and
    come again.
    """

    def __init__(self, folder: Path, is_main: bool, first: int, *, tensorboard: bool) -> None:
        self._path, self._writer, self._is_main = folder / "log.jsonl", None, is_main
        if not is_main:
            return
        text = (
            self._path.read_text(encoding="utf-8", errors="replace") if self._path.is_file() else ""
        )
        with files.atomic_writer(self._path) as stream:
            stream.writelines(line + "\n" for line in text.splitlines() if _step_of(line) <= first)
        if tensorboard:
            with extras.importing():
                from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=first + 1)

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *_: object) -> None:
        if self._writer is not None:
            self._writer.close()

    def write(self, step: int, facts: dict[str, float]) -> None:
        """One line of numbers."""
        if not self._is_main:
            return
        with self._path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"step": step, **facts}) + "\n")
        if self._writer is not None:
            for name, value in facts.items():
                self._writer.add_scalar(name, value, step)


def _step_of(line: str) -> float:
    """The step of a line; a line that a kill cut in half counts as behind everything."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf


def _first_difference(before: Any, now: Any, place: str) -> tuple[str, Any, Any]:
    if isinstance(before, dict) and isinstance(now, dict):
        for key in [*before, *now]:
            if before.get(key) != now.get(key):
                return _first_difference(
                    before.get(key), now.get(key), f"{place}.{key}" if place else key
                )
    if isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        for number, (one, other) in enumerate(zip(before, now, strict=True)):
            if one != other:
                name = one.get("name", number) if isinstance(one, dict) else number
                return _first_difference(one, other, f"{place}.{name}")
    return place, before, now
