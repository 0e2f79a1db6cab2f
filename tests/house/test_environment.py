"""The memory that a process may use: of the machine, its container, or ``ulimit``."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from sparse_ir import environment
from sparse_ir.engines.lucene import runtime

MACHINE = environment.usable_memory(Path("/nowhere"))
GIBIBYTE = 1024**3


def write(root: Path, name: str, text: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_a_machine_without_limits(tmp_path):
    write(tmp_path, "proc/self/cgroup", "0::/\n")
    write(tmp_path, "sys/fs/cgroup/memory.max", "max\n")
    assert environment.usable_memory(tmp_path) == MACHINE


def test_the_smallest_limit_around_the_group_counts(tmp_path):
    write(tmp_path, "proc/self/cgroup", "0::/outer/inner\n")
    write(tmp_path, "sys/fs/cgroup/outer/inner/memory.max", "max\n")
    write(tmp_path, "sys/fs/cgroup/outer/memory.max", "2000000\n")
    write(tmp_path, "sys/fs/cgroup/memory.max", "3000000\n")
    assert environment.usable_memory(tmp_path) == 2_000_000


def test_control_groups_of_version_1(tmp_path):
    write(tmp_path, "proc/self/cgroup", "9:name=systemd:/\n4:cpu,memory:/docker/abc\n")
    # a container sees its own group at the top
    write(tmp_path, "sys/fs/cgroup/memory/memory.limit_in_bytes", "1000000\n")
    assert environment.usable_memory(tmp_path) == 1_000_000
    write(tmp_path, "sys/fs/cgroup/memory/memory.limit_in_bytes", str(2**63 - 4096))
    assert environment.usable_memory(tmp_path) == MACHINE


def test_the_limit_of_the_address_space(monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda which: (5_000_000, 5_000_000))
    assert environment.usable_memory(Path("/nowhere")) == 5_000_000


@pytest.mark.parametrize(
    ("memory", "heap"),
    [(64, "8192m"), (8, "2048m"), (1, "512m"), (0.5, "256m"), (0.05, "64m")],
)
def test_the_java_heap_fits_into_the_memory(memory, heap, monkeypatch):
    monkeypatch.setattr(runtime, "usable_memory", lambda: int(memory * GIBIBYTE))
    assert runtime.default_heap() == heap
