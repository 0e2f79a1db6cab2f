"""Kill index builds at random moments and check that the disk never holds half an index.

    python scripts/soak_kills.py --input my_corpus --minutes 30

Each round starts ``sparse-ir build --model lexical`` in a process, kills it with ``kill -9`` at a
random moment, and verifies the index if there is one. A last build must finish what is left behind.
The figures go to ``scripts/results/soak_kills.json``; a damaged index ends the script with exit
code 1.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import sparse_ir
from sparse_ir.errors import SparseIRError

RESULTS = Path(__file__).parent / "results" / "soak_kills.json"


def main() -> None:
    arguments = parse_arguments()
    with tempfile.TemporaryDirectory() as scratch:
        found = soak(
            arguments.input, Path(scratch), seconds=60 * arguments.minutes, seed=arguments.seed
        )
    text = json.dumps(found, indent=2)
    arguments.json.write_text(text + "\n")
    print(text)
    sys.exit(1 if found["damaged"] else 0)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--input", required=True, help="BEIR folder")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, default=RESULTS, help="file for the figures")
    return parser.parse_args()


def soak(source: str, folder: Path, *, seconds: float, seed: int) -> dict[str, Any]:
    """Counts of builds, kills and verified indexes, and a line for each damaged one."""
    chance = random.Random(seed)
    index = folder / "index"
    start = time.monotonic()
    assert start_build(source, index).wait() == 0, "a build without a kill must succeed"
    length = time.monotonic() - start
    documents = sparse_ir.verify(index)["documents"]
    counts = {"builds": 1, "killed": 0, "verified": 1}
    damaged: list[str] = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        counts["builds"] += 1
        counts["killed"] += kill_build(source, index, chance.uniform(0, 1.1 * length))
        problem = check(index, documents)
        if problem:
            damaged.append(f"build {counts['builds']}: {problem}")
        counts["verified"] += 1
    if start_build(source, index).wait() != 0:
        damaged.append("the last build could not finish what was left behind")
    return {"documents": documents, **counts, "damaged": damaged}


def start_build(source: str, index: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "sparse_ir", "build", "--model", "lexical", "--quiet"]
    options = ["--input", source, "--output", str(index)]
    return subprocess.Popen([*command, *options], stdout=subprocess.DEVNULL)


def kill_build(source: str, index: Path, seconds: float) -> bool:
    """Build again for at most ``seconds``; returns whether the build had to be killed."""
    process = start_build(source, index)
    try:
        process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.wait()
    return process.returncode == -signal.SIGKILL


def check(index: Path, documents: int) -> str | None:
    """What is wrong with the index, in one sentence."""
    try:
        found = sparse_ir.verify(index)["documents"]
    except SparseIRError as error:
        return str(error)
    return None if found == documents else f"{found} documents instead of {documents}"


if __name__ == "__main__":
    main()
