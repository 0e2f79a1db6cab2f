"""The log of a training: ``log.jsonl``, and TensorBoard where it is asked for."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from sparse_ir import extras
from sparse_ir.storage import files


class Log:
    """Writes one line of numbers for each logged step.

    A resumed training drops the lines after its checkpoint and writes them again.
    """

    def __init__(self, folder: Path, is_main: bool, first: int, *, tensorboard: bool) -> None:
        self._path = folder / "log.jsonl"
        self._is_main = is_main
        self._writer: Any = None
        if not is_main:
            return
        text = ""
        if self._path.is_file():
            text = self._path.read_text(encoding="utf-8", errors="replace")
        with files.atomic_writer(self._path) as stream:
            stream.writelines(f"{line}\n" for line in text.splitlines() if _step_of(line) <= first)
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
        """Write the numbers of a step."""
        if not self._is_main:
            return
        with self._path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"step": step} | facts) + "\n")
        if self._writer is not None:
            for name, value in facts.items():
                self._writer.add_scalar(name, value, step)


def _step_of(line: str) -> float:
    """The step of a line; infinity for a line that a kill cut in half."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf
