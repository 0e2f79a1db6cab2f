"""Search one open index from many threads for minutes, and check every answer.

    python scripts/soak_search.py --index I --queries Q --callers 16 --minutes 5 --replace

There must be no error, no growth of memory, and only answers that a single thread gives too. With
``--replace``, copies of the index are swapped in meanwhile, and one more caller opens and searches
each version; searches on versions that were opened before must lose nothing. The exit code is 1 if
an answer differs or memory grows by more than ``--allowed-mb``. Memory is read at half time, when
caches are full and code is compiled, and at the end. The Java heap is 1 GB unless
``SPARSE_IR_JAVA_HEAP`` says otherwise.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import random
import shutil
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from sparse_ir.data import readers
from sparse_ir.engines.lucene import java
from sparse_ir.engines.lucene.runtime import HEAP_VARIABLE
from sparse_ir.engines.threads import run_threads
from sparse_ir.retrieval.searcher import Index
from sparse_ir.storage import files

Answer = tuple[list[str], list[float]]


def main() -> None:
    arguments = parse_arguments()
    # Java fills its heap before it collects garbage
    os.environ.setdefault(HEAP_VARIABLE, "1g")
    texts = [query.text for folder in arguments.queries for query in readers.read_queries(folder)]
    texts = random.Random(0).sample(texts, min(len(texts), arguments.texts))
    with tempfile.TemporaryDirectory(dir=arguments.index.parent) as scratch:
        place = Path(scratch) / "index"
        shutil.copytree(arguments.index, place)
        found = soak(
            place,
            texts,
            callers=arguments.callers,
            seconds=60 * arguments.minutes,
            k=arguments.hits,
            replace=arguments.replace,
        )
    print(json.dumps(found, indent=2))
    arguments.json.write_text(json.dumps(found, indent=2) + "\n")
    if found["wrong"] or found["growth_mb"] > arguments.allowed_mb:
        sys.exit(1)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--index", type=Path, required=True)
    parser.add_argument("--queries", type=Path, nargs="+", required=True, help="BEIR folders")
    parser.add_argument("--texts", type=int, default=500, help="number of different questions")
    parser.add_argument("--hits", type=int, default=100)
    parser.add_argument("--callers", type=int, default=16)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--replace", action="store_true", help="swap new versions in meanwhile")
    parser.add_argument("--allowed-mb", type=float, default=50.0, help="growth of resident memory")
    results = Path(__file__).parent / "results" / "soak_search.json"
    parser.add_argument("--json", type=Path, default=results, help="file for the figures")
    arguments = parser.parse_args()
    if not arguments.minutes > 0 or min(arguments.texts, arguments.hits, arguments.callers) < 1:
        parser.error("texts, hits and callers must be at least 1, and minutes above 0")
    if not (arguments.index / "manifest.json").is_file():
        parser.error(f"{arguments.index} is no index")
    return arguments


def soak(
    place: Path, texts: list[str], *, callers: int, seconds: float, k: int, replace: bool
) -> dict[str, Any]:
    """Search until the time is over; returns counts of searches, wrong answers and swaps, and memory."""
    with Index(place) as index:
        expected = {text: answer(index, text, k) for text in texts}
        counts, wrong, versions, lock = [0] * callers, list[str](), [0], threading.Lock()
        end = time.monotonic() + seconds

        def note(text: str, searched: Index) -> None:
            if answer(searched, text, k) != expected[text]:
                with lock:
                    wrong.append(text)

        def call(caller: int) -> None:
            own = random.Random(caller)
            while time.monotonic() < end:
                note(own.choice(texts), index)
                counts[caller] += 1

        def exchange() -> None:
            while time.monotonic() < end:
                swap_in_a_copy(place)
                with Index(place) as newer:
                    for text in texts[:20]:
                        note(text, newer)
                versions[0] += 1

        memory: list[float] = []
        watch = functools.partial(read_memory, memory, (end - 0.5 * seconds, end - 0.02 * seconds))
        run_threads(
            [
                *(functools.partial(call, caller) for caller in range(callers)),
                watch,
                *([exchange] if replace else []),
            ],
            java.detach_thread,
        )
        # the version that was opened first is still whole
        after = {text: answer(index, text, k) for text in texts}
    return {
        "searches": sum(counts),
        "callers": callers,
        "seconds": seconds,
        "k": k,
        "versions": versions[0],
        "wrong": len(wrong) + sum(after[text] != expected[text] for text in texts),
        "fewest_searches_of_a_caller": min(counts),
        "memory_mb": memory,
        "growth_mb": round(memory[1] - memory[0], 1),
    }


def answer(index: Index, text: str, k: int) -> Answer:
    hits = index.search(text, k)
    return hits.doc_ids, hits.scores.tolist()


def swap_in_a_copy(place: Path) -> None:
    """Swap in a copy, as a build does at its end."""
    copy = files.temporary_sibling(place)
    shutil.copytree(place, copy)
    files.swap_folder(copy, place)


def read_memory(memory: list[float], moments: tuple[float, ...]) -> None:
    """Resident megabytes of this process at the given moments, after Java's garbage collection."""
    system = java.java_class("java.lang.System")
    for moment in moments:
        time.sleep(max(0.0, moment - time.monotonic()))
        system.gc()
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        resident = next(line for line in status.splitlines() if line.startswith("VmRSS"))
        memory.append(round(int(resident.split()[1]) / 1024, 1))


if __name__ == "__main__":
    main()
