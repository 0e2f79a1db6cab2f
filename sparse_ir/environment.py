"""What a figure depends on besides the code: the machine, the versions of packages, the commit."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import sparse_ir


def describe_latency(seconds: Sequence[float] | np.ndarray) -> dict[str, float] | None:
    """Mean, p50, p95 and p99 in milliseconds; None for no query."""
    if not len(seconds):
        return None
    values = 1000 * np.asarray(seconds, dtype=np.float64)
    return {
        "mean": round(float(values.mean()), 4),
        **{f"p{part}": round(float(np.percentile(values, part)), 4) for part in (50, 95, 99)},
    }


def describe_machine() -> dict[str, Any]:
    """Processor, cores, memory, accelerator (when torch is loaded and has
    one), system and Python.
    """
    torch = sys.modules.get("torch")
    cuda = torch is not None and torch.cuda.is_available()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gb": round(memory / 1e9, 1),
        "accelerator": torch.cuda.get_device_name() if torch is not None and cuda else None,
        "platform": platform.platform(),
        "python": platform.python_version(),
    }


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found.group(1) if found else platform.processor() or platform.machine()


def find_versions(names: Iterable[str]) -> dict[str, str]:
    """Installed versions of packages, by the names of their distributions; those that are missing
    are left out.
    """
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {"sparse_ir": sparse_ir.__version__, **found}


def find_commit() -> str | None:
    """The commit of this package's own checkout, with ``-dirty`` for changed files; None for an
    installed package.
    """
    checkout = Path(sparse_ir.__file__).resolve().parent.parent
    git = shutil.which("git")
    if git is None or not (checkout / ".git").exists():
        return None
    command = [
        git,
        "-C",
        str(checkout),
        "describe",
        "--always",
        "--dirty",
        "--abbrev=40",
        "--exclude",
        "*",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return done.stdout.strip() or None if done.returncode == 0 else None
