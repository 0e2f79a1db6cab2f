"""Measure what each approximation costs and what it saves: time, kept hits and nDCG@10.

    python scripts/bench_approximations.py --collection my_corpus --vectors my_vectors --expand 60 \\
        --work work

One index with a forward index answers the queries exactly and under each search option. Pruned
indexes of the same vectors answer them exactly. All systems take turns in one process and on one
thread, and are timed from the text to the list of ``(doc_id, score)``. The fastest round counts for
each query, because other work on the machine only adds time. Overlap is the share of the first 10
and 1000 exact hits that are kept. The interval of the difference of nDCG@10 is a bootstrap over
queries. ``bm25`` is this package's search on a BM25 index of the same corpus, and ``pyserini`` is
Pyserini's LuceneSearcher on that index.

``--expand N`` asks expanded queries of at most N terms. The package ships no neural query encoder,
so its document network reads the question as well: the query has the terms of the question with the
model's weights, and 0.1 times the terms that the network adds. The time of the network is left out.
Without ``--expand``, queries are encoded by the vectors' own model. Without a collection, one is
drawn by Zipf's law and encoded by the lexical model.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import peers

from sparse_ir import environment
from sparse_ir.commands import indexing
from sparse_ir.data import readers
from sparse_ir.data.records import Qrels, Query, Run
from sparse_ir.evaluation import approximation_loss
from sparse_ir.indexing import builder
from sparse_ir.indexing.pruning import Pruning
from sparse_ir.indexing.vectors import Vectors
from sparse_ir.models import catalog
from sparse_ir.models.static_queries import StaticQueryEncoder
from sparse_ir.retrieval import timing, tuning
from sparse_ir.retrieval.options import EXACT, SearchOptions
from sparse_ir.retrieval.searcher import Index
from sparse_ir.retrieval.timing import Latency
from sparse_ir.storage import files

DEPTHS = (10, 1000)
EXPANSION = 0.1  # weight of an expansion beside a term of the question
PRUNINGS = (Pruning(mass=0.9), Pruning(mass=0.7), Pruning(terms=64))
OPTIONS = (
    EXACT,
    *(SearchOptions(mass=mass, candidates=20) for mass in (0.8, 0.6, 0.5, 0.4, 0.3)),
    *(SearchOptions(mass=mass, candidates=5) for mass in (0.7, 0.6, 0.5, 0.4, 0.3)),
    SearchOptions(top_terms=8, candidates=10),
    SearchOptions(mass=0.8), SearchOptions(mass=0.5),
)  # fmt: skip
BM25, PYSERINI = "bm25", "pyserini"


def main() -> None:
    arguments = parse_arguments()
    with tempfile.TemporaryDirectory() as scratch:
        work = arguments.work or Path(scratch)
        collection = arguments.collection or draw_collection(
            work / "collection", arguments.documents
        )
        result = measure(collection, work, arguments)
    text = as_markdown(result)
    print(text)
    if arguments.markdown:
        arguments.markdown.write_text(text + "\n")
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--collection", type=Path, help="BEIR folder: corpus, queries, qrels/test.tsv"
    )
    parser.add_argument(
        "--vectors", type=Path, help="vectors of this corpus; default: those of the lexical model"
    )
    parser.add_argument(
        "--expand", type=int, default=0, help="ask expanded queries of at most this many terms"
    )
    parser.add_argument(
        "--documents", type=int, default=5000, help="documents of the drawn collection"
    )
    parser.add_argument("--hits", type=int, default=10, help="hits per query in the timed searches")
    parser.add_argument("--max-queries", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2, help="threads for building indexes")
    parser.add_argument("--work", type=Path, help="folder that keeps the indexes for later runs")
    parser.add_argument("--markdown", type=Path, help="also write the table to this file")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    return parser.parse_args()


# --- what is searched ---


def draw_collection(folder: Path, documents: int) -> Path:
    """Words by Zipf's law; each of 100 queries is 12 words of one document, which is its answer."""
    generator = np.random.default_rng(0)
    frequencies = 1 / (np.arange(5000) + 10.0)
    words = np.array([f"word{number}" for number in range(5000)])
    drawn = generator.choice(words, (documents, 60), p=frequencies / frequencies.sum())
    answers = generator.permutation(documents)[:100]
    with files.atomic_writer(folder / "corpus.jsonl") as stream:
        for number, text in enumerate(drawn):
            stream.write(
                json.dumps({"_id": f"d{number}", "title": "", "text": " ".join(text)}) + "\n"
            )
    with files.atomic_writer(folder / "queries.jsonl") as stream:
        for answer in answers:
            text = " ".join(generator.permutation(drawn[answer])[:12])
            stream.write(json.dumps({"_id": f"q{answer}", "text": text}) + "\n")
    with files.atomic_writer(folder / "qrels" / "test.tsv") as stream:
        stream.write(
            "query-id\tcorpus-id\tscore\n"
            + "".join(f"q{answer}\td{answer}\t1\n" for answer in answers)
        )
    return folder


class ExpandedQueries:
    """The terms of a question, and terms that the document network adds to them.

    Each text is read once, so that only the first, untimed search pays for the network.
    """

    def __init__(self, own: StaticQueryEncoder, most: int) -> None:
        from sparse_ir.models.encoder import Encoder

        self._own, self._most = own, most
        self._network = Encoder.load(str(catalog.shipped_model()), precision="int8").query_encoder(
            "neural"
        )
        self.vocabulary, self.save = own.vocabulary, own.save
        self.fingerprint = {**self._network.fingerprint, "kind": "expanded", "most": most}
        self.encode = functools.cache(self._read)

    def _read(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        weights = np.zeros(len(self.vocabulary), np.float32)
        token_ids, found = self._network.encode(text)
        weights[token_ids] = EXPANSION * found * self._own.weights[token_ids]
        token_ids, found = self._own.encode(text)
        weights[token_ids] += found
        kept = np.sort(np.argsort(-weights, kind="stable")[: self._most])
        kept = kept[weights[kept] > 0].astype(np.int32)
        return kept, weights[kept]


def build_indexes(
    collection: Path, work: Path, arguments: argparse.Namespace
) -> tuple[dict[str, Path], Any]:
    """The folders of the whole, the pruned and the BM25 index, and the query encoder.

    Existing indexes are kept.
    """
    if arguments.vectors is None:
        indexing.encode("lexical", str(collection), work / "vectors")
    opened = Vectors(arguments.vectors or work / "vectors")
    own = opened.query_encoder()
    expanded = ExpandedQueries(own, arguments.expand) if arguments.expand else None
    stored = None if expanded else own
    rule = builder.choose_rule(opened, stored)
    places = {}
    for pruning in (Pruning(), *PRUNINGS):
        name = name_of(pruning)
        places[name] = work / (name.replace(" ", "-") + ("-expanded" if expanded else ""))
        if not (places[name] / "manifest.json").exists():
            builder.build_impact_index(
                opened,
                places[name],
                rule,
                stored,
                pruning=pruning,
                threads=arguments.threads,
                forward_index=not pruning,
            )
    if not (work / BM25 / "manifest.json").exists():
        indexing.bm25(str(collection), work / BM25)
    return places, expanded or own


def name_of(pruning: Pruning) -> str:
    """The name of a system, such as ``pruned mass=0.9``; the whole index is ``exact``."""
    if not pruning:
        return str(EXACT)
    changed = {
        name: value
        for name, value in pruning.to_json().items()
        if value != Pruning().to_json()[name]
    }
    return "pruned " + " ".join(f"{name}={value:g}" for name, value in changed.items())


# --- measuring ---


def measure(collection: Path, work: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    places, encoder = build_indexes(collection, work, arguments)
    qrels = readers.read_qrels(str(collection))
    asked = tuning.choose_queries(
        list(readers.read_queries(str(collection))), qrels, arguments.max_queries
    )
    given, encode_ms = encoder if arguments.expand else None, time_encoder(encoder, asked)
    opened = {name: Index(place, query_encoder=given) for name, place in places.items()}
    bm25 = Index(work / BM25)
    cases: dict[str, tuple[str, SearchOptions]] = {
        str(options): (str(EXACT), options) for options in OPTIONS
    }
    cases |= {name: (name, EXACT) for name in places}
    losses = find_losses(opened, cases, asked, qrels)
    systems = {
        BM25: tuning.timed_search(bm25, arguments.hits),
        PYSERINI: peers.pyserini_bm25(work / BM25 / "lucene", arguments.hits),
    }
    systems |= {
        name: tuning.timed_search(opened[place], arguments.hits, options)
        for name, (place, options) in cases.items()
    }
    seconds = timing.time_queries(systems, [query.text for query in asked], rounds=arguments.rounds)
    times = {
        name: timing.summarize(found.min(axis=0, keepdims=True)) for name, found in seconds.items()
    }
    exact = opened[str(EXACT)]
    counts = [len(exact.encode_query(query.text)) for query in asked]
    return {
        "documents": exact.statistics().documents, "queries": len(asked), "hits": arguments.hits,
        "rounds": arguments.rounds, "expanded": arguments.expand, "mean_query_terms": statistics.mean(counts),
        "encode_ms": encode_ms,
        "machine": environment.describe_machine(), "lucene": exact.manifest["versions"]["lucene"],
        "forward_bytes": files.folder_size(places[str(EXACT)] / "forward"),
        "bm25_ndcg": approximation_loss.loss(run_of(exact, asked, 10), run_of(bm25, asked, 10), qrels).mean,
        "baselines": {name: times[name]._asdict() for name in (BM25, PYSERINI)},
        "rows": [{"system": name, **losses[name], **times[name]._asdict(),
                  "lucene_bytes": files.folder_size(places[place] / "lucene"),
                  "ratios": {base: ratios(times[name], times[base]) for base in (BM25, PYSERINI, str(EXACT))}}
                 for name, (place, _) in cases.items()],
    }  # fmt: skip


def ratios(found: Latency, base: Latency) -> list[float]:
    """The ratios of p50 and p95 to those of the baseline."""
    return [found.p50 / base.p50, found.p95 / base.p95]


def time_encoder(encoder: Any, asked: list[Query]) -> float:
    """Median milliseconds to encode a query; the encoder must not have seen these queries."""
    seconds = []
    for query in asked:
        begun = time.perf_counter()
        encoder.encode(query.text)
        seconds.append(time.perf_counter() - begun)
    return 1000 * statistics.median(seconds)


def find_losses(
    opened: dict[str, Index],
    cases: dict[str, tuple[str, SearchOptions]],
    asked: list[Query],
    qrels: Qrels,
) -> dict[str, dict[str, Any]]:
    exact = {depth: run_of(opened[str(EXACT)], asked, depth) for depth in DEPTHS}
    losses = {}
    for name, (place, options) in cases.items():
        runs = {depth: run_of(opened[place], asked, depth, options) for depth in DEPTHS}
        lost = approximation_loss.loss(exact[DEPTHS[0]], runs[DEPTHS[0]], qrels)
        losses[name] = {
            **{
                f"overlap_{depth}": approximation_loss.overlap(exact[depth], runs[depth], depth)
                for depth in DEPTHS
            },
            "ndcg": lost.mean,
            "kept": lost.kept,
            "difference": lost.difference,
            "low": lost.low,
            "high": lost.high,
        }
    return losses


def run_of(index: Index, asked: list[Query], depth: int, options: SearchOptions = EXACT) -> Run:
    return index.search_batch(asked, depth, options=options)[0]


def as_markdown(result: dict[str, Any]) -> str:
    base, peer = (result["baselines"][name] for name in (BM25, PYSERINI))
    kind = f"expanded to at most {result['expanded']}" if result["expanded"] else "of the model"
    facts = (
        f"{result['documents']} documents, {result['queries']} queries {kind} (mean "
        f"{result['mean_query_terms']:.1f} "
        f"terms; {result['encode_ms']:.2f} ms to read "
        f"one{', not in the times' if result['expanded'] else ''}), "
        f"k={result['hits']}, Lucene {result['lucene']}, one thread, {result['rounds']} rounds in "
        "turn, the fastest of "
        f"each query; forward index {result['forward_bytes'] / 1e6:.1f} MB. bm25: p50 "
        f"{base['p50']:.2f} ms, p95 "
        f"{base['p95']:.2f} ms, nDCG@10 {result['bm25_ndcg']:.4f}; pyserini: p50 "
        f"{peer['p50']:.2f} ms, p95 "
        f"{peer['p95']:.2f} ms."
    )
    lines = [
        facts,
        "",
        (
            "| setting | p50 / p95 × bm25 | × pyserini | × exact | overlap@10 | @1000 | nDCG@10 | "
            "Δ "
            "(95 %) | Lucene MB |"
        ),
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in result["rows"]:
        both = [
            " / ".join(f"{value:.2f}" for value in row["ratios"][name])
            for name in (BM25, PYSERINI, str(EXACT))
        ]
        lines.append(
            f"| {row['system']} | {' | '.join(both)} | {row['overlap_10']:.3f} | "
            f"{row['overlap_1000']:.3f} | "
            f"{row['ndcg']:.4f} | {row['difference']:+.4f} ({row['low']:+.4f} to "
            f"{row['high']:+.4f}) | "
            f"{row['lucene_bytes'] / 1e6:.1f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
