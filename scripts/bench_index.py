"""Compare the speed of building an impact index with Pyserini's indexer in one run.

    python scripts/bench_index.py --documents 20000 --terms 190 --threads 1 2 --rounds 3

All systems index the same impacts with the same number of threads. Every build has a process of its
own. The clock runs from the first document to the closed index, after Python and Java have started,
so Pyserini's slow import does not count against it. Systems take turns within each round, and the
table shows medians. "build" quantizes, writes, merges, verifies and flushes to disk; "write" only
quantizes, writes and merges. Pyserini (``pyserini.index.lucene --impact --pretokenized``) reads its
own format, JSON lines. Without ``--vectors``, a corpus is drawn from Zipf's law.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from sparse_ir.engines.base import SPARSE, FieldTerms, ImpactBatch
from sparse_ir.engines.lucene import java, writer
from sparse_ir.engines.lucene.impact_reader import ImpactReader
from sparse_ir.indexing import builder, json_vectors, quantization
from sparse_ir.indexing.quantization import Rule
from sparse_ir.indexing.vectors import Vectors
from sparse_ir.storage import files

PEER, BUILD, WRITE = "pyserini", "build", "write"
SYSTEMS = (PEER, BUILD, WRITE)
VOCABULARY_SIZE = 30_000
LARGEST_IMPACT = 255
SHARDS = 8
QUERY_TERMS = 12


def main() -> None:
    arguments = parse_arguments()
    if arguments.worker:
        print(json.dumps(measure(arguments.worker, Path(arguments.work), arguments.threads[0])))
        return
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
        result = compare(prepare(Path(scratch), arguments), arguments)
    print(as_markdown(result))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--documents", type=int, default=20_000)
    parser.add_argument("--terms", type=int, default=190, help="terms of a document")
    parser.add_argument(
        "--vectors",
        type=Path,
        help="JsonVectorCollection with integer weights; default: a drawn corpus",
    )
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--queries", type=int, default=200, help="queries whose hits are compared")
    parser.add_argument("--scratch", type=Path, help="folder on the disk that is measured")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--worker", choices=SYSTEMS, help=argparse.SUPPRESS)
    parser.add_argument("--work", help=argparse.SUPPRESS)
    return parser.parse_args()


# --- the corpus ---


def prepare(work: Path, arguments: argparse.Namespace) -> Path:
    """Write the same impacts twice: ``json`` for Pyserini, ``vectors`` for this package."""
    if arguments.vectors:
        shutil.copytree(arguments.vectors, work / "json")
    else:
        draw_corpus(work / "json", arguments.documents, arguments.terms)
    json_vectors.import_json_vectors(work / "json", work / "vectors", shard_size=1024)
    return work


def draw_corpus(folder: Path, documents: int, terms: int) -> None:
    """Terms by Zipf's law without repetition, impacts from a gamma distribution, in files of equal
    size.
    """
    generator = np.random.default_rng(0)
    frequencies = 1 / (np.arange(VOCABULARY_SIZE) + 10.0)
    cumulated = np.cumsum(frequencies / frequencies.sum())
    for shard, numbers in enumerate(np.array_split(np.arange(documents), SHARDS)):
        with files.atomic_writer(folder / f"vectors-{shard:06d}.jsonl") as stream:
            for number in numbers:
                drawn = np.unique(np.searchsorted(cumulated, generator.random(terms * 3)))
                chosen = generator.permutation(np.minimum(drawn, VOCABULARY_SIZE - 1))[:terms]
                values = np.clip(
                    np.rint(generator.gamma(2.0, 25.0, len(chosen))), 1, LARGEST_IMPACT
                ).astype(int)
                vector = {
                    f"term{term}": value
                    for term, value in zip(chosen.tolist(), values.tolist(), strict=True)
                }
                stream.write(
                    json.dumps({"id": f"doc{number}", "contents": "", "vector": vector}) + "\n"
                )


# --- one build ---


def measure(system: str, work: Path, threads: int) -> dict[str, float]:
    """Seconds of one build in this process, after Python and Java have started."""
    output = work / system
    shutil.rmtree(output, ignore_errors=True)
    java.start()
    if system == PEER:
        indexer = java.java_class("io.anserini.index.IndexCollection")
        options = [
            "-collection",
            "JsonVectorCollection",
            "-input",
            str(work / "json"),
            "-index",
            str(output),
            "-generator",
            "DefaultLuceneDocumentGenerator",
            "-threads",
            str(threads),
            "-impact",
            "-pretokenized",
        ]
        start = time.perf_counter()
        indexer.main(options)
    else:
        source = Vectors(work / "vectors")
        start = time.perf_counter()
        if system == BUILD:
            builder.build_impact_index(source, output, Rule(1.0), None, threads=threads)
        else:
            write_only(source, output, threads)
    return {
        "seconds": time.perf_counter() - start,
        "bytes": files.folder_size(lucene_folder(work, system)),
    }


def write_only(source: Vectors, output: Path, threads: int) -> None:
    def batch(number: int) -> ImpactBatch:
        doc_ids, weights = source.read_shard(number)
        return ImpactBatch(doc_ids, {SPARSE: quantization.quantize(weights, Rule(1.0)).impacts})

    batches = [lambda number=number: batch(number) for number in range(source.num_shards)]
    writer.write_impacts(output, batches, {SPARSE: source.vocabulary}, threads=threads)


def lucene_folder(work: Path, system: str) -> Path:
    return work / system / "lucene" if system == BUILD else work / system


def measure_in_new_process(system: str, work: Path, threads: int) -> dict[str, float]:
    command = [
        sys.executable,
        __file__,
        "--worker",
        system,
        "--work",
        str(work),
        "--threads",
        str(threads),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{system} failed: {done.stderr or done.stdout}")
    return json.loads(done.stdout.strip().splitlines()[-1])


# --- comparison ---


def compare(work: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Time all systems with each number of threads in turn, and compare their hits."""
    cases = [(system, threads) for threads in arguments.threads for system in SYSTEMS]
    measured: dict[tuple[str, int], list[dict[str, float]]] = {case: [] for case in cases}
    equal = {}
    for _ in range(arguments.rounds):
        for system, threads in cases:
            measured[system, threads].append(measure_in_new_process(system, work, threads))
            if system == SYSTEMS[-1] and threads not in equal:
                equal[threads] = same_hits(work, arguments.queries)
    source = Vectors(work / "vectors")
    rows = []
    for (system, threads), runs in measured.items():
        seconds, peer = (
            [run["seconds"] for run in runs],
            [run["seconds"] for run in measured[PEER, threads]],
        )
        rows.append({
            "system": system, "threads": threads, "seconds": seconds,
            "documents_per_second": len(source) / statistics.median(seconds),
            "speedup": statistics.median(p / s for p, s in zip(peer, seconds, strict=True)),
            "index_bytes": runs[-1]["bytes"],
            "same_hits": equal[threads],
        })  # fmt: skip
    return {
        "documents": len(source),
        "terms_per_document": source.manifest["weights"] / len(source),
        "queries_compared": arguments.queries,
        "rounds": arguments.rounds,
        "rows": rows,
    }


def same_hits(work: Path, count: int) -> bool:
    """True when every query has the same 100 best documents with the same scores in all three
    indexes.
    """
    generator = np.random.default_rng(1)
    collection = [vector for _, vector in json_vectors.read_json_vectors(work / "json")]
    readers = [ImpactReader(lucene_folder(work, system)) for system in SYSTEMS]
    equal = True
    for _ in range(count):
        terms = list(collection[generator.integers(len(collection))])[:QUERY_TERMS]
        boosts = generator.integers(1, 50, len(terms)).tolist()
        query = {SPARSE: FieldTerms(terms, boosts)}
        found = [reader.search(query, 100) for reader in readers]
        equal &= all(
            (hits.doc_ids, hits.scores.tolist()) == (found[0].doc_ids, found[0].scores.tolist())
            for hits in found[1:]
        )
    for reader in readers:
        reader.close()
    return equal


def as_markdown(result: dict[str, Any]) -> str:
    facts = (
        f"{result['documents']} documents of {result['terms_per_document']:.0f} terms, "
        "medians of "
        f"{result['rounds']} rounds, hits of {result['queries_compared']} queries compared"
    )
    lines = [
        facts,
        "",
        "| system | threads | documents/s | times Pyserini | MB on disk | same hits |",
        "| --- | ---: | ---: | ---: | ---: | --- |",
    ]
    lines += [
        f"| {row['system']} | {row['threads']} | {row['documents_per_second']:.0f} | "
        f"{row['speedup']:.2f} | "
        f"{row['index_bytes'] / 1e6:.1f} | {'yes' if row['same_hits'] else 'NO'} |"
        for row in result["rows"]
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
