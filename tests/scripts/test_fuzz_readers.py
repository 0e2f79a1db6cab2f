"""The long fuzzing of readers: it counts what it tried, and keeps an input that breaks a reader."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture
def fuzz_readers(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    monkeypatch.setattr(sys, "path", list(sys.path))
    return importlib.import_module("fuzz_readers")


def test_a_sound_reader(fuzz_readers: Any, tmp_path: Path) -> None:
    result = fuzz_readers.run_hypothesis("test.qrels", 1, tmp_path)
    assert result["inputs"] > 100 and result["failed"] is False
    assert not list(tmp_path.iterdir())


def test_a_reader_that_breaks(
    fuzz_readers: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(path: Path) -> None:
        if b"\xff" in path.read_bytes():
            raise KeyError("x")

    monkeypatch.setitem(fuzz_readers.fuzzed_readers.READERS, "broken", (b"sound", read))
    result = fuzz_readers.run_hypothesis("broken", 30, tmp_path)
    assert result["failed"] is True
    assert b"\xff" in (tmp_path / "broken-hypothesis").read_bytes()
