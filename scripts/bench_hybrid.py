"""BM25 beside the model in one index: how good, how fast, how large.

    python scripts/bench_hybrid.py --data D --vectors V --collections scifact nq-utd \
        --documents 73000 --json scripts/results/hybrid.json

``D/NAME`` are BEIR folders and ``V/NAME`` the same collections encoded. Effectiveness: the BM25
index of Lucene, the field bm25 alone, the sparse field alone, their sum in one search, and
reciprocal rank fusion of two searches, with a paired randomization test against BM25 and against
the sparse field. Latency: all systems answer the questions of each collection in turn, over one
index of all collections, repeated up to ``--documents`` with perturbed weights and with words left
out: that part is about the engine and not about a real collection.
"""

from __future__ import annotations

import argparse
import collections
import functools
import itertools
import json
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import peers
from scipy import sparse

from sparse_ir import environment
from sparse_ir.data import readers
from sparse_ir.data.records import Document, Qrels, Query, Run
from sparse_ir.engines.lucene.analysis import TextAnalyzer
from sparse_ir.evaluation import significance
from sparse_ir.evaluation.measures import evaluate_run
from sparse_ir.indexing import bm25_builder, builder, manifest
from sparse_ir.indexing.bm25_field import Bm25Settings, Bm25Weights, weigh_documents
from sparse_ir.indexing.vectors import Vectors
from sparse_ir.retrieval import timing, tuning
from sparse_ir.retrieval.hits import Hits
from sparse_ir.retrieval.searcher import Index
from sparse_ir.retrieval.timing import Search
from sparse_ir.storage import files

MEASURE = "nDCG@10"
BASELINE = "BM25 (LuceneSearcher)"
WORDS, MODEL, HYBRID = "field bm25", "field sparse", "hybrid"
FUSION = "two searches and RRF"
RANKINGS = {WORDS: "bm25", MODEL: "sparse", HYBRID: "hybrid"}
FUSED_HITS = 100  # of each of the two searches
RRF_CONSTANT = 60
NOISE = 0.2  # deviation of the logarithm of a repeated weight
DROPPED = 0.15  # share of the terms and words that a repeated document lacks
REMOVES_QUERY = {"arguana"}
CUT = 8  # words of a very short document
ANALYZERS = {
    "English": Bm25Settings(),
    "standard": Bm25Settings(analyzer="standard"),
    "whitespace": Bm25Settings(analyzer="whitespace"),
    "German": Bm25Settings(language="de"),
}


def main() -> None:
    arguments = parse_arguments()
    result: dict[str, Any] = {"machine": environment.describe_machine()}
    with tempfile.TemporaryDirectory(dir=arguments.work) as scratch:
        work = Path(scratch)
        if arguments.parity:
            result["parity"] = {}
            for name in arguments.parity:
                result["parity"][name] = measure_parity(work / f"{name}-words", name, arguments)
                print(json.dumps({name: result["parity"][name]}), flush=True)
        if not arguments.no_effectiveness:
            result["effectiveness"] = {}
            for name in arguments.collections:
                result["effectiveness"][name] = measure_effectiveness(work / name, name, arguments)
                print(json.dumps({name: result["effectiveness"][name]}), flush=True)
        if arguments.limits:
            result["limits"] = {}
            for name in arguments.collections:
                result["limits"][name] = measure_limits(work / f"{name}-limits", name, arguments)
                print(json.dumps({name: result["limits"][name]}), flush=True)
        if arguments.documents:
            result["latency"] = measure_latency(work / "latency", arguments)
    print(as_markdown(result))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of BEIR folders")
    parser.add_argument("--vectors", type=Path, required=True, help="folder of vectors folders")
    parser.add_argument("--collections", nargs="*", default=[])
    parser.add_argument(
        "--parity",
        nargs="*",
        default=[],
        help="collections in D whose field bm25 is compared with Lucene's BM25; needs no vectors",
    )
    parser.add_argument(
        "--scale", type=float, help="of that field; default: the largest impact is 511"
    )
    parser.add_argument("--share", type=float, default=1.0)
    parser.add_argument(
        "--limits", action="store_true", help="measure other analyzers and very short documents"
    )
    parser.add_argument("--documents", type=int, default=0, help="0: no latency")
    parser.add_argument("--no-effectiveness", action="store_true")
    parser.add_argument(
        "--questions", nargs="*", help="folders in D with questions; default: the collections"
    )
    parser.add_argument("--per-set", type=int, default=60, help="questions of each collection")
    parser.add_argument("--hits", type=int, nargs="+", default=[10, 100])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--cpu-time", action="store_true", help="time the calling thread, for a busy machine"
    )
    parser.add_argument("--work", type=Path, help="folder for the indexes")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    return parser.parse_args()


# --- parity ---


def measure_parity(work: Path, name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """The field bm25 beside Lucene's own BM25: nDCG of both, overlap, and the largest impact."""
    corpus = str(arguments.data / name)
    read = functools.partial(readers.read_documents, corpus)
    bm25_builder.build_bm25_index(read, work / "lucene-bm25")
    words = weigh_documents(read(), work / "counts", Bm25Settings())
    rule = builder.choose_rule(None, None, scale=arguments.scale, bm25=words)
    builder.build_impact_index(None, work / "words", rule, None, bm25=words)
    qrels = readers.read_qrels(corpus)
    queries = [query for query in readers.read_queries(corpus) if query.query_id in qrels]
    removes = name in REMOVES_QUERY
    theirs = run_of(work / "lucene-bm25", None, queries, removes)
    ours = run_of(work / "words", "bm25", queries, removes)
    return {
        "documents": len(words),
        "queries": len(queries),
        "largest_impact": round(words.largest_weight() * rule.scale),
        "lucene": round(evaluate_run(theirs, qrels, MEASURE).mean[MEASURE], 4),
        "field bm25": round(evaluate_run(ours, qrels, MEASURE).mean[MEASURE], 4),
        "overlap_at_10": overlap(theirs, ours),
    }


# --- effectiveness ---


def measure_effectiveness(work: Path, name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    corpus = arguments.data / name
    vectors = Vectors(arguments.vectors / name)
    read = functools.partial(readers.read_documents, str(corpus))
    costs = build_all(work, vectors, read, arguments.share)
    qrels = readers.read_qrels(str(corpus))
    queries = [query for query in readers.read_queries(str(corpus)) if query.query_id in qrels]
    removes = name in REMOVES_QUERY
    runs = {BASELINE: run_of(work / "lucene-bm25", None, queries, removes)}
    for system, ranking in RANKINGS.items():
        runs[system] = run_of(work / "both", ranking, queries, removes)
    runs["RRF"] = fuse_runs(runs[BASELINE], runs[MODEL])
    return {
        "documents": len(vectors),
        "queries": len(queries),
        "costs": costs,
        "overlap_at_10": overlap(runs[BASELINE], runs[WORDS]),
        "systems": score_runs(runs, qrels),
    }


def build_all(
    work: Path, vectors: Vectors, read: Callable[[], Iterator[Document]], share: float
) -> dict[str, dict[str, float]]:
    """Build the BM25 index, the sparse field alone, and both fields; seconds and megabytes."""
    begun = time.perf_counter()
    bm25_builder.build_bm25_index(read, work / "lucene-bm25")
    seconds = {"lucene-bm25": time.perf_counter() - begun}
    query_encoder = vectors.query_encoder()
    begun = time.perf_counter()
    rule = builder.choose_rule(vectors, query_encoder)
    builder.build_impact_index(vectors, work / "sparse", rule, query_encoder)
    seconds["sparse"] = time.perf_counter() - begun
    begun = time.perf_counter()
    words = weigh(vectors, read, work / "words", share)
    analysed = time.perf_counter() - begun
    rule = builder.choose_rule(vectors, query_encoder, bm25=words)
    builder.build_impact_index(vectors, work / "both", rule, query_encoder, bm25=words)
    seconds["both"] = time.perf_counter() - begun
    costs = {}
    for name, taken in seconds.items():
        megabytes = files.folder_size(work / name / "lucene") / 1e6
        costs[name] = {"seconds": round(taken, 2), "megabytes": round(megabytes, 2)}
    costs["both"]["of which analysing"] = round(analysed, 2)
    costs["both"]["fields"] = manifest.read_manifest(work / "both")["fields"]
    costs["both"]["rule"] = rule.to_json()
    return costs


def weigh(
    vectors: Any, read: Callable[[], Iterator[Document]], scratch: Path, share: float
) -> Bm25Weights:
    shards = (vectors.read_shard(number)[0] for number in range(vectors.num_shards))
    return weigh_documents(read(), scratch, Bm25Settings(share=share), shards)


def run_of(folder: Path, ranking: str | None, queries: Sequence[Query], removes_query: bool) -> Run:
    with Index(folder, ranking=ranking) as index:
        return index.search_batch(queries, FUSED_HITS, remove_query=removes_query)[0]


def fuse_runs(first: Run, second: Run) -> Run:
    return {query_id: fuse([first[query_id], second[query_id]]) for query_id in first}


def fuse(rankings: Sequence[Sequence[tuple[str, float]]]) -> list[tuple[str, float]]:
    """Reciprocal rank fusion (Cormack et al. 2009)."""
    scores: dict[str, float] = collections.defaultdict(float)
    for ranking in rankings:
        for rank, (doc_id, _) in enumerate(ranking, 1):
            scores[doc_id] += 1 / (RRF_CONSTANT + rank)
    return sorted(scores.items(), key=lambda hit: (hit[1], hit[0]), reverse=True)[:FUSED_HITS]


def overlap(first: Run, second: Run) -> float:
    """The mean share of the ten best of one run that the other has among its ten best."""
    shares = []
    for query_id, hits in first.items():
        best = {doc_id for doc_id, _ in hits[:10]}
        if best:
            others = {doc_id for doc_id, _ in second[query_id][:10]}
            shares.append(len(best & others) / len(best))
    return round(float(np.mean(shares)), 4)


def score_runs(runs: dict[str, Run], qrels: Qrels) -> dict[str, dict[str, float]]:
    measured = {name: evaluate_run(run, qrels, MEASURE) for name, run in runs.items()}
    values = {}
    for name, result in measured.items():
        values[name] = np.array(list(result.per_query[MEASURE].values()))
    rows: dict[str, dict[str, float]] = {}
    for name, result in measured.items():
        rows[name] = {MEASURE: round(result.mean[MEASURE], 4)}
        for label, other in (("bm25", BASELINE), ("sparse", MODEL)):
            if name != other:
                difference = values[name] - values[other]
                test = significance.randomization_test(difference)
                rows[name][f"p_against_{label}"] = round(float(test), 5)
    return rows


# --- limits ---


def measure_limits(work: Path, name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Analyzers that do not know the language, questions without words, very short documents."""
    corpus = str(arguments.data / name)
    vectors = Vectors(arguments.vectors / name)
    query_encoder = vectors.query_encoder()
    qrels = readers.read_qrels(corpus)
    queries = [query for query in readers.read_queries(corpus) if query.query_id in qrels]
    removes = name in REMOVES_QUERY
    analyzers = {}
    for label, settings in ANALYZERS.items():
        shards = (vectors.read_shard(number)[0] for number in range(vectors.num_shards))
        documents = readers.read_documents(corpus)
        words = weigh_documents(documents, work / f"{label}-counts", settings, shards)
        rule = builder.choose_rule(vectors, query_encoder, bm25=words)
        place = work / label
        builder.build_impact_index(vectors, place, rule, query_encoder, bm25=words)
        analyzers[label] = {}
        for ranking in ("bm25", "hybrid"):
            run = run_of(place, ranking, queries, removes)
            analyzers[label][ranking] = round(evaluate_run(run, qrels, MEASURE).mean[MEASURE], 4)
    analyzer = TextAnalyzer()
    without = sum(not analyzer.terms(query.text) for query in queries)
    return {
        "analyzers": analyzers,
        "questions": len(queries),
        "questions_without_words": without,
        "cut_to_8_words": measure_cut(work / "cut", corpus, queries),
    }


def measure_cut(work: Path, corpus: str, queries: Sequence[Query]) -> dict[str, Any]:
    """Parity with Lucene's BM25 where every document has eight words."""

    def read() -> Iterator[Document]:
        for document in readers.read_documents(corpus):
            cut = " ".join(document.contents.split()[:CUT])
            yield Document(document.doc_id, "", cut)

    bm25_builder.build_bm25_index(read, work / "lucene-bm25")
    words = weigh_documents(read(), work / "counts", Bm25Settings())
    rule = builder.choose_rule(None, None, bm25=words)
    builder.build_impact_index(None, work / "words", rule, None, bm25=words)
    theirs = run_of(work / "lucene-bm25", None, queries, False)
    ours = run_of(work / "words", "bm25", queries, False)
    return {"overlap_at_10": overlap(theirs, ours)}


# --- latency ---


class Repeated:
    """Several folders of vectors, one after the other and again, up to a number of documents."""

    def __init__(self, sources: Sequence[Vectors], documents: int) -> None:
        self.folder = sources[0].folder
        self.vocabulary = sources[0].vocabulary
        self.manifest = sources[0].manifest
        self.has_documents = False
        self._shards: list[tuple[Vectors, int, int, int]] = []
        left = documents
        for turn in itertools.count():
            for source in sources:
                for number, facts in enumerate(source.manifest["shards"]):
                    kept = min(left, facts["documents"])
                    if kept:
                        self._shards.append((source, number, turn, kept))
                    left -= kept
            if not left:
                break
        self._documents = documents

    def __len__(self) -> int:
        return self._documents

    @property
    def num_shards(self) -> int:
        return len(self._shards)

    def read_shard(self, number: int) -> tuple[list[str], sparse.csr_matrix]:
        source, shard, turn, kept = self._shards[number]
        doc_ids, weights = source.read_shard(shard)
        doc_ids = [f"{source.folder.name}-{doc_id}#{turn}" for doc_id in doc_ids[:kept]]
        weights = weights[:kept]
        if turn == 0:
            return doc_ids, weights
        generator = np.random.default_rng([turn, shard])
        noise = np.exp(generator.normal(0, NOISE, weights.nnz))
        changed = np.minimum(weights.data * noise, weights.data.max()).astype(np.float32)
        changed[generator.random(weights.nnz) < DROPPED] = 0
        parts = (changed, weights.indices.copy(), weights.indptr.copy())
        repeated = sparse.csr_matrix(parts, shape=weights.shape)
        repeated.eliminate_zeros()
        return doc_ids, repeated


def repeated_documents(corpora: Sequence[Path], documents: int) -> Iterator[Document]:
    """The same documents in the same order, from the second time on with words left out."""
    left = documents
    for turn in itertools.count():
        generator = random.Random(turn)
        for corpus in corpora:
            for document in readers.read_documents(str(corpus)):
                if not left:
                    return
                left -= 1
                words = document.contents.split()
                if turn:
                    words = [word for word in words if generator.random() >= DROPPED]
                name = f"{corpus.name}-{document.doc_id}#{turn}"
                yield Document(name, "", " ".join(words) or document.contents)


def measure_latency(work: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    sources = [Vectors(arguments.vectors / name) for name in arguments.collections]
    corpora = [arguments.data / name for name in arguments.collections]
    vectors: Any = Repeated(sources, arguments.documents)
    read = functools.partial(repeated_documents, corpora, arguments.documents)
    vectors.query_encoder = sources[0].query_encoder
    costs = build_all(work, vectors, read, arguments.share)
    questions = {}
    for name in arguments.questions or arguments.collections:
        asked = [query.text for query in readers.read_queries(str(arguments.data / name))]
        questions[name] = random.Random(0).sample(asked, min(len(asked), arguments.per_set))
    times: dict[str, Any] = {}
    for k in arguments.hits:
        times[str(k)] = time_systems(work, k, questions, arguments)
    clock = "CPU time of the thread" if arguments.cpu_time else "wall time"
    facts = {"documents": arguments.documents, "clock": clock}
    return facts | {"costs": costs, "times": times}


def time_systems(
    work: Path, k: int, questions: dict[str, list[str]], arguments: argparse.Namespace
) -> dict[str, dict[str, Any]]:
    """Set of questions -> system -> percentiles, and their ratios to BM25."""
    opened = {name: Index(work / "both", ranking=ranking) for name, ranking in RANKINGS.items()}
    systems: dict[str, Search] = {BASELINE: peers.pyserini_bm25(work / "lucene-bm25" / "lucene", k)}
    for name, index in opened.items():
        systems[name] = tuning.timed_search(index, k)
    with Index(work / "lucene-bm25") as own_bm25, Index(work / "sparse") as alone:
        systems["own BM25 index"] = tuning.timed_search(own_bm25, k)
        systems["sparse index"] = tuning.timed_search(alone, k)
        systems[FUSION] = fused_search(own_bm25, alone, k)
        result: dict[str, dict[str, Any]] = {}
        texts = list(itertools.chain.from_iterable(questions.values()))
        clock = time.thread_time if arguments.cpu_time else time.perf_counter
        seconds = timing.time_queries(
            systems, texts, rounds=arguments.rounds, warm_up=2, clock=clock
        )
        start = 0
        for name, part in questions.items():
            chosen = {key: found[:, start : start + len(part)] for key, found in seconds.items()}
            ratios = peers.ratios(chosen, BASELINE)
            result[name] = {}
            for system, found in chosen.items():
                latency = timing.summarize(found)
                result[name][system] = {
                    "p50_ms": round(latency.p50, 3),
                    "p95_ms": round(latency.p95, 3),
                    "x_bm25_p50": round(ratios[system].p50, 3),
                    "x_bm25_p95": round(ratios[system].p95, 3),
                }
            start += len(part)
    for index in opened.values():
        index.close()
    return result


def fused_search(words: Index, model: Index, k: int) -> Search:
    """What people do today: two searches of 100 hits each, and reciprocal rank fusion."""

    def pairs(hits: Hits) -> list[tuple[str, float]]:
        return list(zip(hits.doc_ids, hits.scores.tolist(), strict=True))

    def search(text: str) -> list[tuple[str, float]]:
        depth = max(k, FUSED_HITS)
        return fuse([pairs(words.search(text, depth)), pairs(model.search(text, depth))])[:k]

    return search


# --- output ---


def as_markdown(result: dict[str, Any]) -> str:
    lines = []
    if "effectiveness" in result:
        names = [BASELINE, *RANKINGS, "RRF"]
        lines.append(f"| collection | {' | '.join(names)} | overlap at 10 |")
        lines.append("| --- |" + " ---: |" * (len(names) + 1))
        for name, row in result["effectiveness"].items():
            cells = [f"{row['systems'][system][MEASURE]:.4f}" for system in names]
            lines.append(f"| {name} | {' | '.join(cells)} | {row['overlap_at_10']:.4f} |")
        lines.append("")
    if "latency" in result:
        for k, sets in result["latency"]["times"].items():
            systems = list(next(iter(sets.values())))
            lines.append(f"| k={k}, x BM25 | {' | '.join(systems)} |")
            lines.append("| --- |" + " ---: |" * len(systems))
            for name, measured in sets.items():
                cells = [f"{measured[system]['x_bm25_p50']:.2f}" for system in systems]
                lines.append(f"| {name} | {' | '.join(cells)} |")
            lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
