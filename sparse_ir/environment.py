"""What a figure depends on besides the code: the machine, the versions of packages, the commit.

The processor's name is read from /proc/cpuinfo, because py-cpuinfo takes a second for it.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import sparse_ir

if TYPE_CHECKING:
    import numpy as np

_PERCENTILES = (50, 95, 99)


class Machine(TypedDict):
    """The facts of a machine that decide how fast it is."""

    processor: str
    cores: int | None
    memory_gb: float
    accelerator: str | None  # None without one, and if torch is not loaded
    platform: str
    python: str


def describe_latency(seconds: Sequence[float] | np.ndarray) -> dict[str, float] | None:
    """Mean, p50, p95 and p99 in milliseconds; None without queries."""
    import numpy as np

    if not len(seconds):
        return None
    milliseconds = 1000 * np.asarray(seconds, dtype=np.float64)
    latency = {"mean": round(float(milliseconds.mean()), 4)}
    for percentile in _PERCENTILES:
        latency[f"p{percentile}"] = round(float(np.percentile(milliseconds, percentile)), 4)
    return latency


def describe_machine() -> Machine:
    """The machine that runs this process."""
    accelerator = None
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        accelerator = torch.cuda.get_device_name()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gb": round(memory / 1e9, 1),
        "accelerator": accelerator,
        "platform": platform.platform(),
        "python": platform.python_version(),
    }


def usable_memory(root: Path = Path("/")) -> int:
    """Bytes of memory that this process may use.

    That is the machine's memory, or less where a container (cgroup v1 or v2) or ``ulimit -v`` sets
    a limit. ``root`` is the root of the file system.
    """
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    limits.extend(_cgroup_limits(root))
    address_space, _ = resource.getrlimit(resource.RLIMIT_AS)
    if address_space != resource.RLIM_INFINITY:
        limits.append(address_space)
    return min(limits)


def _cgroup_limits(root: Path) -> Iterator[int]:
    """The memory limits of this process's control group and of the groups around it."""
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    mounts = root / "sys/fs/cgroup"
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if controllers == "":  # version 2
            top = mounts
            name = "memory.max"
        elif "memory" in controllers.split(","):
            top = mounts / "memory"
            name = "memory.limit_in_bytes"
        else:
            continue
        folder = top / group.lstrip("/")
        for place in (folder, *folder.parents):
            if not place.is_relative_to(top):
                break
            try:
                text = (place / name).read_text(encoding="ascii").strip()
            except OSError:  # a container may see its group as the root
                continue
            if text.isdecimal():  # "max" means no limit
                yield int(text)


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    match = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    if match:
        return match[1]
    return platform.processor() or platform.machine()


def package_versions(names: Iterable[str]) -> dict[str, str]:
    """Distribution -> version of the distributions that are installed."""
    versions = {}
    for name in names:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def find_versions(names: Iterable[str]) -> dict[str, str]:
    """The version of this package, then those of the distributions that are installed."""
    return {"sparse_ir": sparse_ir.__version__} | package_versions(names)


def find_commit() -> str | None:
    """The commit of this package's own checkout, with ``-dirty`` for changed files.

    None for an installed package.
    """
    checkout = Path(sparse_ir.__file__).resolve().parent.parent
    git = shutil.which("git")
    if git is None or not (checkout / ".git").exists():
        return None
    # --exclude '*' ignores tags, so that the hash is printed
    describe = ["describe", "--always", "--dirty", "--abbrev=40", "--exclude", "*"]
    done = subprocess.run(
        [git, "-C", str(checkout), *describe],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if done.returncode != 0:
        return None
    return done.stdout.strip() or None
