"""The soak of killed builds, for a few seconds."""

from __future__ import annotations

import importlib
from pathlib import Path

import core_program
import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.mark.slow
def test_killed_builds_leave_a_whole_index(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(SCRIPTS)
    soak_kills = importlib.import_module("soak_kills")
    core_program.write_corpus(tmp_path / "corpus")
    found = soak_kills.soak(str(tmp_path / "corpus"), tmp_path, seconds=6.0, seed=1)
    assert found["documents"] == 3
    assert found["killed"] >= 1
    assert found["verified"] == found["builds"]
    assert found["damaged"] == []


def test_a_damaged_index_is_reported(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(SCRIPTS)
    soak_kills = importlib.import_module("soak_kills")
    (tmp_path / "manifest.json").write_text("{}")
    assert soak_kills.check(tmp_path, 3)
