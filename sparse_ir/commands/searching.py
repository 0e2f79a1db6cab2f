"""The commands ``search``, ``tune`` and ``explain``."""

from __future__ import annotations

import contextlib
import itertools
import time
from pathlib import Path
from typing import TypedDict, Unpack

import numpy as np
from tqdm import tqdm

from sparse_ir.data import readers, runs
from sparse_ir.errors import BudgetMissed, ConfigError, IndexMismatch
from sparse_ir.indexing import manifest
from sparse_ir.indexing.manifest import TUNED
from sparse_ir.reports import Report
from sparse_ir.retrieval import explanation_view
from sparse_ir.retrieval.explanation import (
    compare_hits,
    describe_query,
    explain_hit,
    find_terms,
    lost_query_terms,
    name_terms,
    rank_documents,
    read_texts,
    trace_losses,
)
from sparse_ir.retrieval.opening import open_index
from sparse_ir.retrieval.options import SearchOptions, write_tuned
from sparse_ir.retrieval.tuning import (
    BM25,
    Bench,
    Trial,
    choose_queries,
    confirm_choice,
    describe_nearest_miss,
    find_losses,
    make_report,
    open_bm25,
    parse_budget,
)
from sparse_ir.storage import files


def explain(
    index: Path,
    query: str,
    *,
    doc: tuple[str, ...] = (),
    hits: int = 3,
    input: str | None = None,
    vectors: Path | None = None,
    page: Path | None = None,
    query_model: str | None = None,
    scale: float | None = None,
) -> Report:
    """Explain scores of exact search: each term's part, expansions, lost terms, and why A is above
    B.

    Args:
        index: Folder of an index, impact or BM25, or a Lucene impact index that Pyserini built.
        query: Text of the query.
        doc: Id of a document to explain; give it again for more. Default: the first hits.
        hits: How many of the first hits, where no document is named.
        input: The corpus, to tell expansions from the terms that stand in a document's text.
        vectors: The vectors that the index was built from, to find what rounding and pruning have
            taken away.
        page: Also write a web page that needs no network.
        query_model: Model that encodes the query, where the index holds none or the model has
            moved.
        scale: Scale of the impacts where the index cannot say: built by Pyserini, or from JSON
            vectors (often 100).
    """
    if hits < 1:
        raise ConfigError(f"{hits} hits are not allowed; ask for at least 1")
    with open_index(Path(index), query_model, scale) as opened:
        if vectors is not None and opened.query_encoder is None:
            raise ConfigError(f"{index} is a BM25 index and was not built from vectors")
        encoded = opened.encode(query)
        ranked = rank_documents(opened, encoded, doc, hits)
        texts = read_texts(input, [hit.doc_id for hit in ranked]) if input is not None else {}
        traces = trace_losses(opened, Path(vectors), encoded, ranked) if vectors is not None else {}
        places = {
            hit.doc_id: find_terms(opened, texts[hit.doc_id])
            for hit in ranked
            if hit.doc_id in texts
        }
        asked = find_terms(opened, query)
        documents = [
            explain_hit(
                opened,
                encoded,
                hit,
                name_terms(asked),
                name_terms(places.get(hit.doc_id)),
                traces.get(hit.doc_id),
            )
            for hit in ranked
        ]
        report = {
            "index": str(index),
            "kind": opened.manifest["kind"],
            "query": query,
            "query_terms": describe_query(encoded, name_terms(asked)),
            "lost_in_query": lost_query_terms(encoded),
            "documents": documents,
            "comparisons": [compare_hits(*pair) for pair in itertools.pairwise(documents)],
        }
    if page is not None:
        with files.atomic_writer(Path(page)) as stream:
            stream.write(explanation_view.format_page(report, asked or [], texts, places))
        report["page"] = str(page)
    return report


def tune(
    index: Path,
    queries: str,
    budget: str,
    *,
    qrels: str | None = None,
    split: str = "test",
    bm25: Path | None = None,
    hits: int = 10,
    max_queries: int = 200,
    rounds: int = 3,
    without_encoding: bool = False,
    query_model: str | None = None,
    scale: float | None = None,
    progress: bool = False,
) -> Report:
    """Find the search options that lose least and hold a latency budget, and store them with the
    index.

    Searches use them only when they are asked to (search --tuned). Exit code 2 when no setting
    holds the budget.

    Args:
        index: Folder of an impact index; with a forward index (--forward) two-phase search is tried
            as well.
        queries: BEIR folder, queries.jsonl[.gz], queries.tsv[.gz], or a hub data set such as
            BeIR/scifact.
        budget: Such as "p95 <= 1.0 x bm25", "p50 <= 0.5 x exact", "p99 <= 20 ms"; several are
            joined by "and".
        qrels: BEIR folder, BEIR tsv, TREC qrels, or a hub data set: then the loss of nDCG@10 is
            measured too.
        split: Which qrels of a BEIR folder.
        bm25: Folder of a BM25 index of the same corpus, for budgets in its terms.
        hits: Documents per query.
        max_queries: Measure at most so many queries, evenly spaced; with qrels of the judged ones.
        rounds: How often each query is timed with each setting.
        without_encoding: Leave the encoding of queries out of the times, which no option can speed
            up.
        query_model: Model that encodes the queries, where the index holds none or the model has
            moved.
        scale: Scale of the impacts where the index cannot say.
        progress: Show a progress bar.
    """
    limits = parse_budget(budget)
    if bm25 is None and any(limit.unit == BM25 for limit in limits):
        raise ConfigError(
            f"the budget {budget!r} is in terms of BM25: name a BM25 index of the "
            "same corpus (--bm25)"
        )
    if min(hits, max_queries, rounds) < 1:
        raise ConfigError(
            f"{hits} hits, {max_queries} queries, {rounds} rounds are not allowed; "
            "use at least 1 each"
        )
    judged = readers.read_qrels(qrels, split) if qrels is not None else None
    asked = choose_queries(list(readers.read_queries(queries)), judged, max_queries)
    with contextlib.ExitStack() as stack:
        opened = stack.enter_context(open_index(Path(index), query_model, scale))
        if opened.query_encoder is None or "sha256" not in opened.manifest:
            raise ConfigError(
                f"{index} has no options to tune; only impact indexes of this package do"
            )
        baselines = {BM25: stack.enter_context(open_bm25(bm25, opened))} if bm25 is not None else {}
        bench = Bench(opened, baselines, asked, limits, hits, rounds, without_encoding)
        losses = find_losses(bench, judged, progress)
        times = bench.time(list(losses))
        trials = [
            Trial(options, *lost, times[str(options)], bench.share_used(options, times))
            for options, lost in losses.items()
        ]
        found, again = confirm_choice(bench, trials)
    report = make_report(bench, trials, times, found, again)
    if manifest.read_manifest(Path(index))["sha256"] != opened.manifest["sha256"]:
        raise IndexMismatch(f"{index} was replaced by another version meanwhile; tune again")
    if found is None:
        raise BudgetMissed(
            describe_nearest_miss(budget, trials), {"index": str(index), "budget": budget, **report}
        )
    write_tuned(
        Path(index) / TUNED,
        opened.manifest["sha256"],
        found.options,
        {"budget": budget, **{name: report[name] for name in report if name != "trials"}},
    )
    return {"index": str(index), "budget": budget, **report}


class Approximations(TypedDict, total=False):
    """What a search may leave out; see ``approximation.SearchOptions``.

    Args:
        min_ratio: Leave out query terms lighter than this share of the heaviest (OpenSearch:
            max_ratio).
        mass: Keep the heaviest query terms that hold this share of all weight (OpenSearch:
            alpha_mass).
        top_terms: Keep at most so many query terms, the heaviest.
        postings: Keep the heaviest query terms whose postings are together at most so many per
            document.
        candidates: Then rank the first so many times HITS documents by all terms, from the forward
            index.
    """

    min_ratio: float | None
    mass: float | None
    top_terms: int | None
    postings: float | None
    candidates: float | None


def search(
    index: Path,
    queries: str,
    output: Path,
    *,
    hits: int = 1000,
    threads: int = 1,
    remove_query: bool = False,
    query_model: str | None = None,
    scale: float | None = None,
    tag: str = "sparse_ir",
    tuned: bool = False,
    progress: bool = False,
    **options: Unpack[Approximations],
) -> Report:
    """Answer all queries and write a TREC run; ties are ordered as trec_eval orders them.

    Search is exact unless something is to be left out, by options or by what tune has found.

    Args:
        index: Folder of an index, impact or BM25, or a Lucene impact index that Pyserini built.
        queries: BEIR folder, queries.jsonl[.gz], queries.tsv[.gz], or a hub data set such as
            BeIR/scifact.
        output: File for the run.
        hits: Documents per query.
        threads: Threads that search.
        remove_query: Drop the hit whose doc_id is the query's id (ArguAna, Quora).
        query_model: Model that encodes the queries, where the index holds none or the model has
            moved.
        scale: Scale of the impacts where the index cannot say: built by Pyserini, or from JSON
            vectors (often 100).
        tag: Name of the run, its last column.
        tuned: Leave out what tune has stored with the index.
        progress: Show a progress bar.
    """
    if hits < 1:
        raise ConfigError(f"{hits} hits are not allowed; ask for at least 1")
    given = {name: value for name, value in options.items() if value is not None}
    chosen = SearchOptions(**given) if given else None  # type: ignore[arg-type]
    if chosen and tuned:
        raise ConfigError(
            f"tuned options and others ({chosen}) are not allowed together; drop one of the two"
        )
    runs.check_run_target(Path(output), tag)
    asked = list(readers.read_queries(queries))
    with open_index(Path(index), query_model, scale, tuned=tuned) as opened:
        started = time.perf_counter()
        with tqdm(
            total=len(asked), desc="searching", unit=" queries", disable=None if progress else True
        ) as bar:
            run, seconds = opened.search_batch(
                asked,
                hits,
                threads=threads,
                remove_query=remove_query,
                options=chosen,
                progress=bar.update,
            )
        elapsed, used = time.perf_counter() - started, opened.options if chosen is None else chosen
    runs.write_run(Path(output), run, tag)
    return {
        "run": str(output),
        "queries": len(asked),
        "queries_without_hits": sum(not found for found in run.values()),
        "hits": sum(len(found) for found in run.values()),
        "options": str(used),
        "seconds": round(elapsed, 3),
        "p50_ms": round(float(np.median(seconds)) * 1000, 3) if len(seconds) else None,
    }
