"""The benchmarks run from beginning to end in a small form; what they measure is for people, not for tests."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parent.parent / "scripts"
SMALL = {
    "bench_encode.py": ["--texts", "8", "--max-length", "32", "--rounds", "1", "--threads", "1",
                        "--systems", "float32", "int8"],
    "bench_train.py": ["--batch", "4", "--max-length", "32", "--steps", "4", "--rounds", "1", "--threads", "1"],
    "bench_index.py": ["--documents", "300", "--terms", "20", "--rounds", "1", "--threads", "1"],
}


def test_every_benchmark_is_listed_here() -> None:
    assert sorted(path.name for path in SCRIPTS.glob("bench_*.py")) == sorted(SMALL)


@pytest.mark.parametrize("name", sorted(SMALL))
def test_benchmark_runs_and_writes_its_figures(name: str, tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    command = [sys.executable, str(SCRIPTS / name), *SMALL[name], "--json", str(figures)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "|" in done.stdout  # the Markdown table
    assert json.loads(figures.read_text())
