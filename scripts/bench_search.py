"""Compare search latency with BM25 and Pyserini's impact searcher, from text to hits.

    python scripts/bench_search.py --corpus C --vectors V --queries Q1 Q2 --json found.json \\
        --plot found.svg

All systems answer the same questions in one process, in turn (``sparse_ir.retrieval.timing``). BM25
and the impacts index the same texts. Before anything is timed, the hits are compared with brute
force over the same impacts. Peak memory and cold starts of the command lines are measured in
processes of their own. ``--growth`` repeats the collection with perturbed weights (for BM25, with
words left out) up to a given size. No model encoded these documents: that curve is about the
engines, not about a real collection. Without ``--corpus``, the demo's collection and questions are
used.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import peers
from scipy import sparse

from sparse_ir.commands import indexing
from sparse_ir.data import pydocs, readers
from sparse_ir.data.records import Document
from sparse_ir.engines.lucene import checking
from sparse_ir.engines.lucene.opened import scores_all
from sparse_ir.engines.lucene.terms import term_of_token
from sparse_ir.indexing import bm25_builder, builder, manifest
from sparse_ir.indexing.vectors import Vectors
from sparse_ir.retrieval import timing, tuning
from sparse_ir.retrieval.options import SearchOptions
from sparse_ir.retrieval.searcher import Index
from sparse_ir.retrieval.timing import Search
from sparse_ir.storage import files

BM25, PEER, OURS = "BM25 (LuceneSearcher)", "LuceneImpactSearcher", "sparse_ir, exact"
FLOOR = "Lucene's part of exact search"
SOURCES = "sources.json"
CHECKED = 5  # queries of each set whose hits are compared with brute force
# of a repeated document: deviation of a weight's logarithm, share of terms left out
NOISE, DROPPED = 0.2, 0.15
PYSERINI_COMMAND = """
import os, runpy, sys
os.environ.setdefault("OPENAI_API_KEY", "not-used")
from sparse_ir.engines.lucene import java
java.start()
sys.argv[0] = "pyserini.search.lucene"
runpy.run_module("pyserini.search.lucene", run_name="__main__")
"""


def main() -> None:
    arguments = parse_arguments()
    with tempfile.TemporaryDirectory() as scratch:
        work = arguments.work or Path(scratch)
        if arguments.worker:
            print(json.dumps(measure_memory(arguments.worker, work, arguments)))
            return
        result = compare(work, arguments)
    print(as_markdown(result))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")
    if arguments.plot:
        draw(result, arguments.plot)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--corpus", type=Path, help="BEIR folder; default: the documentation of Python's library"
    )
    parser.add_argument(
        "--vectors",
        type=Path,
        help="vectors of the same documents; default: those of the lexical encoder",
    )
    parser.add_argument(
        "--documents", type=int, help="use only this many documents of the default corpus"
    )
    parser.add_argument("--queries", type=Path, nargs="+", default=[], help="BEIR folders")
    parser.add_argument(
        "--per-set", type=int, default=100, help="questions of each set, drawn at random"
    )
    parser.add_argument("--hits", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--options",
        nargs="+",
        default=[],
        type=parse_options,
        help='search options, such as "mass=0.8 candidates=5"',
    )
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument(
        "--no-processes",
        dest="processes",
        action="store_const",
        const=(),
        default=(BM25, PEER, OURS),
        help="skip memory and cold starts, which need processes of their own",
    )
    parser.add_argument(
        "--growth", type=int, nargs="+", default=[], help="sizes of the repeated collection"
    )
    parser.add_argument("--work", type=Path, help="folder that keeps the indexes for later runs")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--plot", type=Path, help="also draw them as SVG")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    counts = [
        arguments.per_set,
        arguments.rounds,
        *arguments.hits,
        *arguments.threads,
        *arguments.growth,
    ]
    if min(counts) < 1:
        parser.error("questions, rounds, hits, threads and sizes must be at least 1")
    for folder in (arguments.corpus, arguments.vectors, *arguments.queries):
        if folder is not None and not folder.exists():
            parser.error(f"{folder} does not exist")
    return arguments


def compare(work: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    work.mkdir(parents=True, exist_ok=True)
    prepare(work, arguments)
    questions = read_questions(arguments)
    with Index(work / "index") as index:
        facts = {
            "documents": index.manifest["counts"]["documents"],
            "postings": index.manifest["counts"]["postings"],
            "rounds": arguments.rounds,
            "lucene": checking.lucene_version(),
            "questions": {
                name: {"count": len(texts), "terms": mean_terms(index, texts)}
                for name, texts in questions.items()
            },
        }
        checked = count_equal(
            index, Vectors(vectors_folder(work, arguments)), questions, max(arguments.hits)
        )
        times = {
            str(k): time_sets(
                {**systems(work, index, k, arguments), FLOOR: lucene_alone(index, k)},
                questions,
                arguments,
            )
            for k in arguments.hits
        }
        texts = [text for part in questions.values() for text in part]
        found = systems(work, index, arguments.hits[0], arguments)
        throughput = {
            str(threads): {
                name: float(np.median(speeds))
                for name, speeds in peers.measure_throughput(
                    found, texts, threads=threads, rounds=arguments.rounds
                ).items()
            }
            for threads in arguments.threads
        }
    return {
        **facts,
        "equal_to_brute_force": checked,
        "times": times,
        "throughput": throughput,
        "memory_mb": {
            name: measure_in_new_process(name, work, arguments) for name in arguments.processes
        },
        "index_mb": {
            name: files.folder_size(work / folder / "lucene") / 1e6
            for name, folder in ((BM25, "bm25"), (OURS, "index"))
        },
        "cold_start_s": measure_cold_starts(work, texts[0]) if arguments.processes else {},
        "growth": [measure_growth(work, size, questions, arguments) for size in arguments.growth],
    }


# --- collection ---


def prepare(work: Path, arguments: argparse.Namespace) -> None:
    """The two indexes; those that an earlier run on the same collection left are kept."""
    sources = {
        name: str(value)
        for name in ("corpus", "vectors", "documents")
        if (value := getattr(arguments, name))
    }
    if (work / SOURCES).exists() and (found := files.read_json(work / SOURCES)) != sources:
        raise SystemExit(
            f"{work} holds the indexes of {found or 'the demo'}, not of "
            f"{sources or 'the demo'}; allowed: "
            "another --work folder"
        )
    files.write_json(work / SOURCES, sources)
    needs_forward = any(options.candidates for options in arguments.options)
    if needs_forward and (work / "index").exists() and not (work / "index" / "forward").exists():
        shutil.rmtree(work / "index")  # of a run without candidates
    corpus = arguments.corpus or work / "corpus"
    if not corpus.exists():
        write_demo(corpus, arguments.documents)
    if not arguments.vectors and not (work / "vectors").exists():
        indexing.encode("lexical", str(corpus), work / "vectors")
    if not (work / "bm25").exists():
        indexing.bm25(str(corpus), work / "bm25")
    if not (work / "index").exists():
        indexing.index(
            vectors_folder(work, arguments),
            work / "index",
            fields="sparse",
            forward=needs_forward,
        )
    counts = [
        manifest.read_manifest(work / name)["counts"]["documents"] for name in ("bm25", "index")
    ]
    if counts[0] != counts[1]:
        raise SystemExit(
            f"the corpus has {counts[0]} documents and the vectors have {counts[1]}; "
            "allowed: vectors of this corpus, and a --work folder of no other"
        )


def vectors_folder(work: Path, arguments: argparse.Namespace) -> Path:
    return arguments.vectors or work / "vectors"


def write_demo(folder: Path, documents: int | None) -> None:
    with files.atomic_writer(folder / "corpus.jsonl") as stream:
        for document in itertools.islice(pydocs.read_pydocs(), documents):
            stream.write(
                json.dumps({"_id": document.doc_id, "title": document.title, "text": document.text})
                + "\n"
            )


def read_questions(arguments: argparse.Namespace) -> dict[str, list[str]]:
    sets = {folder.name: list(readers.read_queries(folder)) for folder in arguments.queries}
    sets = sets or {"demo": pydocs.read_questions()[0]}
    return {
        name: [
            query.text
            for query in random.Random(0).sample(found, min(len(found), arguments.per_set))
        ]
        for name, found in sets.items()
    }


# --- one collection ---


def systems(work: Path, index: Index, k: int, arguments: argparse.Namespace) -> dict[str, Search]:
    found = {
        BM25: peers.pyserini_bm25(work / "bm25" / "lucene", k),
        PEER: peers.pyserini_impact(index.folder / "lucene", k, lucene_query(index)),
        OURS: tuning.timed_search(index, k),
    }
    for options in arguments.options:
        found[f"sparse_ir, {options}"] = tuning.timed_search(index, k, options)
    return found


def lucene_alone(index: Index, k: int) -> Search:
    """Lucene's part of our exact search, with prepared queries: a lower bound for any caller."""
    reader = index._ranker._reader

    @functools.cache
    def prepare(text: str) -> tuple[object, bool]:
        encoded = index.encode(text)
        query = reader._lucene_query(encoded.engine_query)
        return query, scores_all(k, len(encoded.tokens), 1)

    def search(text: str) -> list[tuple[str, float]]:
        query, finds_all = prepare(text)
        if finds_all:
            manager = reader._make_collector(k)
            reader._scanner.search(query, manager)
        else:
            reader._searcher.search(query, k)
        return []

    return search


def lucene_query(index: Index) -> Callable[[str], dict[str, int]]:
    return lambda text: {
        term_of_token(token): weight for token, weight in index.encode_query(text).items()
    }


def parse_options(text: str) -> SearchOptions:
    try:
        pairs = [part.split("=") for part in text.split()]
        return SearchOptions.from_json(
            {name: int(value) if name == "top_terms" else float(value) for name, value in pairs}
        )
    except ValueError as error:  # ConfigError is a ValueError
        raise argparse.ArgumentTypeError(f"{text!r} is no list of NAME=NUMBER ({error})") from error


def mean_terms(index: Index, texts: list[str]) -> float:
    return statistics.mean(len(index.encode_query(text)) for text in texts)


def time_sets(
    found: dict[str, Search], questions: dict[str, list[str]], arguments: argparse.Namespace
) -> dict[str, Any]:
    """Set of questions -> system -> percentiles, with their ratios to BM25."""
    seconds = timing.time_queries(
        found,
        [text for texts in questions.values() for text in texts],
        rounds=arguments.rounds,
        warm_up=2,
    )
    result, start = {}, 0
    for name, texts in questions.items():
        part = {system: values[:, start : start + len(texts)] for system, values in seconds.items()}
        against_bm25, against_peer = peers.ratios(part, BM25), peers.ratios(part, PEER)
        result[name] = {
            system: {
                "ms": timing.summarize(values)._asdict(),
                "x_bm25": against_bm25[system]._asdict(),
                "x_peer": against_peer[system]._asdict(),
            }
            for system, values in part.items()
        }
        start += len(texts)
    return result


def count_equal(index: Index, vectors: Vectors, questions: dict[str, list[str]], k: int) -> str:
    """Count the queries with exactly the hits and scores of the exact engine."""
    texts = [text for part in questions.values() for text in part[:CHECKED]]
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch) / "exact"
        builder.build_impact_index(
            vectors, place, index.rule, index.query_encoder, engine="exact", forward_index=False
        )
        equal = 0
        with Index(place, query_encoder=index.query_encoder) as truth:
            expected = tuning.timed_search(truth, k)
            ours = tuning.timed_search(index, k)
            for text in texts:
                equal += ours(text) == expected(text)
    return f"{equal} of {len(texts)}"


# --- own processes ---


def measure_in_new_process(system: str, work: Path, arguments: argparse.Namespace) -> float:
    command = [
        sys.executable,
        __file__,
        "--worker",
        system,
        "--work",
        str(work),
        "--per-set",
        "20",
        "--hits",
        str(max(arguments.hits)),
        *(["--queries", *map(str, arguments.queries)] if arguments.queries else []),
    ]
    return float(run(command).strip().splitlines()[-1])


def measure_memory(system: str, work: Path, arguments: argparse.Namespace) -> float:
    """Peak resident megabytes of this process after some queries on one system."""
    texts = [text for part in read_questions(arguments).values() for text in part]
    with Index(work / "index") as index:
        search = {
            BM25: lambda k: peers.pyserini_bm25(work / "bm25" / "lucene", k),
            PEER: lambda k: peers.pyserini_impact(index.folder / "lucene", k, lucene_query(index)),
            OURS: lambda k: tuning.timed_search(index, k),
        }[system](arguments.hits[0])
        for text in texts * 3:
            search(text)
    # getrusage would report the peak of the parent process
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return (
        int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])
        / 1024
    )


def measure_cold_starts(work: Path, text: str) -> dict[str, float]:
    """Seconds of a command line that answers one question, Pyserini's (BM25) and ours."""
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / "queries.tsv").write_text(f"1\t{' '.join(text.split())}\n")
        asked, output = f"{scratch}/queries.tsv", f"{scratch}/run"
        search = [
            sys.executable,
            "-m",
            "sparse_ir",
            "search",
            "--queries",
            asked,
            "--hits",
            "10",
            "--output",
            output,
        ]
        commands = {
            "pyserini.search.lucene, BM25": [
                sys.executable,
                "-c",
                PYSERINI_COMMAND,
                "--index",
                str(work / "bm25" / "lucene"),
                "--topics",
                asked,
                "--output",
                output,
                "--hits",
                "10",
                "--bm25",
            ],
            "sparse-ir search, BM25": [*search, "--index", str(work / "bm25")],
            "sparse-ir search": [*search, "--index", str(work / "index")],
        }
        seconds: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(3):
            for name, command in commands.items():
                begun = time.perf_counter()
                run(command)
                seconds[name].append(time.perf_counter() - begun)
    return {name: statistics.median(values) for name, values in seconds.items()}


def run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ})
    if done.returncode != 0:
        raise RuntimeError(
            f"{' '.join(command[:4])} ... failed: {done.stderr[-2000:] or done.stdout[-2000:]}"
        )
    return done.stdout


# --- growth ---


class Repeated:
    """Vectors read again and again up to a number of documents, each time with other noise; made
    while they are read.

    The first time they are as they were encoded. Afterwards weights are multiplied by
    ``exp(normal(0, 0.2))``, at most up to the largest weight that occurs, and 15 % of the terms are
    left out.
    """

    has_documents = False  # nothing to show: the texts are those of the source

    def __init__(self, source: Vectors, documents: int) -> None:
        self.folder, self.vocabulary, self.manifest = (
            source.folder,
            source.vocabulary,
            dict(source.manifest),
        )
        self._source, self._documents = source, documents
        lengths = [facts["documents"] for facts in source.manifest["shards"]]
        whole, rest = divmod(documents, sum(lengths))
        self._full_shards = whole * len(lengths) + int(
            np.searchsorted(np.cumsum(lengths), rest, side="right")
        )
        self._last = documents - sum(
            lengths[number % len(lengths)] for number in range(self._full_shards)
        )
        self.num_shards = self._full_shards + (self._last > 0)

    def __len__(self) -> int:
        return self._documents

    def read_shard(self, number: int) -> tuple[list[str], sparse.csr_matrix]:
        turn, shard = divmod(number, self._source.num_shards)
        doc_ids, weights = self._source.read_shard(shard)
        if number == self._full_shards:
            doc_ids, weights = doc_ids[: self._last], weights[: self._last]
        if turn == 0:
            return doc_ids, weights
        generator = np.random.default_rng([turn, shard])
        changed = np.minimum(
            weights.data * np.exp(generator.normal(0, NOISE, weights.nnz)), weights.data.max()
        )
        changed[generator.random(weights.nnz) < DROPPED] = 0
        repeated = sparse.csr_matrix(
            (changed.astype(np.float32), weights.indices.copy(), weights.indptr.copy()),
            shape=weights.shape,
        )
        repeated.eliminate_zeros()
        return [f"{doc_id}#{turn}" for doc_id in doc_ids], repeated


def repeated_texts(corpus: Path, documents: int) -> Iterator[Document]:
    """The corpus over and over, from the second time on with 15 % of the words left out."""
    count, turn = 0, 0
    while count < documents:
        generator = random.Random(turn)
        for document in readers.read_documents(corpus):
            if count == documents:
                return
            if turn:
                words = [
                    word for word in document.contents.split() if generator.random() >= DROPPED
                ]
                document = Document(
                    f"{document.doc_id}#{turn}", "", " ".join(words) or document.contents
                )
            yield document
            count += 1
        turn += 1


def measure_growth(
    work: Path, documents: int, questions: dict[str, list[str]], arguments: argparse.Namespace
) -> dict[str, Any]:
    place = work / f"growth-{documents}"
    source = Repeated(Vectors(vectors_folder(work, arguments)), documents)
    query_encoder = Vectors(source.folder).query_encoder()
    rule = builder.choose_rule(Vectors(source.folder), query_encoder)
    builder.build_impact_index(source, place / "index", rule, query_encoder)  # type: ignore[arg-type]
    corpus = arguments.corpus or work / "corpus"
    bm25_builder.build_bm25_index(lambda: repeated_texts(corpus, documents), place / "bm25")
    name = next(iter(questions))
    few = {name: questions[name][:40]}
    plain = argparse.Namespace(
        **{**vars(arguments), "options": [], "rounds": min(arguments.rounds, 5)}
    )
    with Index(place / "index") as index:
        times = {
            str(k): time_sets(systems(place, index, k, plain), few, plain)[name]
            for k in arguments.hits
        }
    sizes = {
        BM25: files.folder_size(place / "bm25" / "lucene") / 1e6,
        OURS: files.folder_size(place / "index" / "lucene") / 1e6,
    }
    shutil.rmtree(place)
    return {"documents": documents, "times": times, "index_mb": sizes}


# --- output ---


def as_markdown(result: dict[str, Any]) -> str:
    return "\n\n".join(
        [
            format_latency(result),
            format_costs(result),
            *([format_growth(result)] if result["growth"] else []),
        ]
    )


def format_latency(result: dict[str, Any]) -> str:
    """One row for each set of questions and system: p50 and p95 as multiples of BM25's."""
    depths = list(result["times"])
    lines = [
        f"| questions (terms) | system | {' | '.join(f'k={k}: p50, p95' for k in depths)} |",
        "| --- | --- |" + " ---: |" * len(depths),
    ]
    for name, facts in result["questions"].items():
        for system in result["times"][depths[0]][name]:
            cells = [cell(result["times"][k][name][system], system) for k in depths]
            lines.append(f"| {name} ({facts['terms']:.0f}) | {system} | {' | '.join(cells)} |")
    return "\n".join(lines)


def cell(measured: dict[str, Any], system: str) -> str:
    if system == BM25:
        return f"1 = {measured['ms']['p50']:.2f} ms, {measured['ms']['p95']:.2f} ms"
    return f"{measured['x_bm25']['p50']:.2f}, {measured['x_bm25']['p95']:.2f}"


def format_costs(result: dict[str, Any]) -> str:
    threads = list(result["throughput"])
    speeds = " | ".join(
        f"queries/s, {count} thread{'s' if count != '1' else ''}" for count in threads
    )
    lines = [
        f"| system | {speeds} | peak memory, MiB | Lucene index, MB |",
        "| --- |" + " ---: |" * (len(threads) + 2),
    ]
    for system in result["throughput"][threads[0]]:
        speeds = " | ".join(f"{result['throughput'][count][system]:.0f}" for count in threads)
        memory, size = (
            result["memory_mb"].get(system),
            result["index_mb"].get(OURS if system == PEER else system),
        )
        lines.append(
            f"| {system} | {speeds} | {format_number(memory, 0)} | {format_number(size, 1)} |"
        )
    starts = ", ".join(
        f"{name} {seconds:.1f} s" for name, seconds in result["cold_start_s"].items()
    )
    return "\n".join(
        [
            *lines,
            "",
            f"One question from the command line, start to hits: {starts or 'not measured'}.",
        ]
    )


def format_number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def format_growth(result: dict[str, Any]) -> str:
    depths = list(result["times"])
    lines = [
        (
            "| documents (repeated, perturbed) | system | "
            f"{' | '.join(f'k={k}: p50, p95' for k in depths)} |"
        ),
        "| ---: | --- |" + " ---: |" * len(depths),
    ]
    for row in result["growth"]:
        for system in row["times"][depths[0]]:
            cells = [cell(row["times"][k][system], system) for k in depths]
            lines.append(f"| {row['documents']:,} | {system} | {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(result: dict[str, Any], path: Path) -> None:
    """Plot latency by depth as multiples of BM25's, and milliseconds by collection size."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "sparse_ir"  # makes the file reproducible
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        1, 2 if result["growth"] else 1, figsize=(9, 3.4), layout="constrained", squeeze=False
    )
    depths = list(result["times"])
    names = list(result["questions"])
    for offset, (system, color) in enumerate(((PEER, "tab:orange"), (OURS, "tab:blue"))):
        for depth, k in enumerate(depths):
            values = [result["times"][k][name][system]["x_bm25"]["p50"] for name in names]
            places = [
                depth * (2 * len(names) + 2) + 2 * number + offset for number in range(len(names))
            ]
            axes[0, 0].bar(places, values, color=color, label=system if depth == 0 else None)
    axes[0, 0].axhline(1.0, color="black", linewidth=1, label="BM25")
    axes[0, 0].set_xticks(
        [depth * (2 * len(names) + 2) + len(names) - 0.5 for depth in range(len(depths))],
        [f"k={k}" for k in depths],
    )
    axes[0, 0].set(ylabel="p50, times BM25", title=", ".join(names), yscale="log")
    axes[0, 0].legend(fontsize="small")
    for system in (BM25, PEER, OURS) if result["growth"] else ():
        points = [
            (row["documents"], row["times"][depths[0]][system]["ms"]["p50"])
            for row in result["growth"]
        ]
        axes[0, 1].plot(*zip(*points, strict=True), marker="o", label=system)
        axes[0, 1].set(
            xscale="log",
            yscale="log",
            xlabel="documents (repeated, perturbed)",
            ylabel=f"p50, ms, k={depths[0]}",
        )
        axes[0, 1].legend(fontsize="small")
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main()
