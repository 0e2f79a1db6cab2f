"""The commands ``search``, ``explain`` and ``tune``.

Numeric libraries are imported inside the functions, so that a help text appears at once.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import re
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack, cast

from sparse_ir.commands.arguments import Source, StrPath, command
from sparse_ir.console import progress_bar
from sparse_ir.errors import (
    BudgetMissed,
    ConfigError,
    DataError,
    IndexMismatch,
    SparseIRWarning,
)
from sparse_ir.reports import ExplainReport, Report

if TYPE_CHECKING:
    import numpy as np

    from sparse_ir.data.records import Qrels, Query, Run
    from sparse_ir.retrieval.options import SearchOptions
    from sparse_ir.retrieval.searcher import Index
    from sparse_ir.retrieval.tuning import Bench, Limit, Trial


Ranking = Literal["sparse", "bm25", "hybrid"]
RUN_HITS = 1000
QUESTION_HITS = 10
_OTHER_SCRIPT = re.compile(r"[^\W\d_\u0000-\u024f]")  # a letter that is not Latin


class Approximations(TypedDict, total=False):
    """What a search may leave out to save time; see ``retrieval.options.SearchOptions``.

    Args:
        min_ratio: Ignore query terms whose weight is below this share of the largest weight
            (max_ratio in OpenSearch).
        mass: Keep the heaviest query terms that make up this share of the total weight
            (alpha_mass in OpenSearch).
        top_terms: Keep at most this many query terms, heaviest first.
        postings: Keep the heaviest query terms whose postings, divided by the number of documents,
            add up to at most this number.
        candidates: Rerank the first CANDIDATES x HITS documents with all query terms, read from the
            forward index.
    """

    min_ratio: float | None
    mass: float | None
    top_terms: int | None
    postings: float | None
    candidates: float | None


@command
def search(
    index: StrPath,
    queries: Source | None = None,
    output: StrPath | None = None,
    *,
    question: tuple[str, ...] = (),
    query_file: StrPath | None = None,
    hits: int | None = None,
    threads: int = 1,
    remove_query: bool = False,
    query_model: Source | None = None,
    scale: float | None = None,
    ranking: Ranking | None = None,
    tag: str = "sparse_ir",
    encode_ids: bool = False,
    tuned: bool = False,
    progress: bool = False,
    **options: Unpack[Approximations],
) -> Report:
    """Search an index: ask it questions, or run a set of queries and write a TREC run.

    Questions are answered with titles and passages. --queries with --output writes a run. The
    search is exact unless an option of the group "Approximation", or --tuned, leaves something out.
    Documents of equal scores are ordered as trec_eval orders them.

    Args:
        index: Folder of an impact or BM25 index, or of a Lucene impact index built by Pyserini.
        queries: BEIR folder, queries.jsonl[.gz], queries.tsv[.gz], or a hub data set such as
            BeIR/scifact.
        output: File for the run of the queries.
        question: Text of a question, or several; "-" reads one question per line from standard
            input.
        query_file: File with one question per line.
        hits: Number of documents per query: by default 1000 in a run, and 10 for a question.
        threads: Number of threads that search.
        remove_query: Drop the hit whose doc_id is the query's own id (ArguAna, Quora).
        query_model: Model that encodes the queries, if the index names none or the model has moved.
        scale: Scale of the impacts, if the index does not record it: one built by Pyserini or from
            JSON vectors (often 100).
        ranking: What ranks: the model alone ("sparse"), BM25 alone ("bm25"), or the sum of both
            ("hybrid"). The default is hybrid if the index has both fields.
        tag: Name of the run, its last column.
        encode_ids: Write white space and "%" in ids as percent codes ("a b" as "a%20b"). Without
            this, ids with white space are refused, because a TREC file cannot hold them.
        tuned: Search with the options that tune stored with the index.
        progress: Show a progress bar.
    """
    from sparse_ir.data import readers, runs
    from sparse_ir.retrieval.opening import open_index

    asks_questions = bool(question) or query_file is not None
    _check_what_is_searched(asks_questions, queries, output)
    if hits is None:
        hits = QUESTION_HITS if asks_questions else RUN_HITS
    _check_hits(hits)
    if threads < 1:
        raise ConfigError(f"threads is {threads}; it must be at least 1")
    chosen = _choose_options(options, tuned)
    if queries is None:
        asked = list(_read_questions(question, query_file))
    else:
        runs.check_run_target(Path(output or ""), tag)
        asked = list(readers.read_queries(queries))
    with open_index(
        Path(index), _optional_text(query_model), scale, tuned=tuned, ranking=ranking
    ) as opened:
        report: Report = {"ranking": opened.ranking}
        report["options"] = str(opened.options if chosen is None else chosen)
        if asks_questions:
            answers = [_answer(opened, query, hits, chosen) for query in asked]
            _warn_of_unread(asked, [bool(answer["hits"]) for answer in answers])
            return {"index": str(index), "tag": tag} | report | {"answers": answers}
        batch = functools.partial(
            opened.search_batch, asked, hits, threads=threads, remove_query=remove_query
        )
        started = time.perf_counter()
        with progress_bar(len(asked), progress, desc="searching", unit=" queries") as bar:
            run, seconds = batch(options=chosen, progress=bar.update)
        elapsed = time.perf_counter() - started
    _warn_of_unread(asked, [bool(run[query.query_id]) for query in asked])
    runs.write_run(Path(output or ""), run, tag, encode_ids=encode_ids)
    return _report_run(str(output), run, seconds, elapsed) | report


def _warn_of_unread(asked: Sequence[Query], has_hits: Sequence[bool]) -> None:
    """Warn once of queries in other scripts than Latin that found nothing.

    A model has no tokens for a language that it did not learn, so such a query is as good as empty.
    """
    unread = []
    for query, is_answered in zip(asked, has_hits, strict=True):
        if not is_answered and _OTHER_SCRIPT.search(query.text):
            unread.append(query.query_id)
    if unread:
        warnings.warn(
            f"{len(unread)} of {len(asked)} queries found nothing and are not in Latin script "
            f"(first: {unread[0]}); the model may not read their language (default reads English)",
            SparseIRWarning,
            stacklevel=3,
        )


def _check_what_is_searched(
    asks_questions: bool, queries: Source | None, output: StrPath | None
) -> None:
    if asks_questions and (queries is not None or output is not None):
        raise ConfigError("questions are answered on standard output; drop --queries and --output")
    if asks_questions:
        return
    if queries is None:
        raise ConfigError("search needs a question, or queries (--queries) and --output")
    if output is None:
        raise ConfigError("queries need a file for their run; name it with --output")


def _read_questions(questions: tuple[str, ...], file: StrPath | None) -> Iterator[Query]:
    """The questions as queries with the ids 1, 2, 3 ...; empty lines are left out."""
    from sparse_ir.data.records import Query

    texts: list[str] = []
    for question in questions:
        if question == "-":
            texts.extend(line.rstrip("\n") for line in sys.stdin)
        else:
            texts.append(question)
    if file is not None:
        try:
            texts.extend(Path(file).read_text(encoding="utf-8-sig").splitlines())
        except UnicodeDecodeError as error:
            raise DataError(f"{file} holds {error.reason}; it must be UTF-8 text") from error
    asked = [text for text in texts if text.strip()]
    if not asked:
        raise ConfigError("the question is empty; it must be a text")
    for number, text in enumerate(asked, start=1):
        yield Query(str(number), text)


def _answer(
    opened: Index, query: Query, hits: int, options: SearchOptions | None
) -> dict[str, Any]:
    started = time.perf_counter()
    found = opened.search(query.text, hits, options)
    seconds = time.perf_counter() - started
    return {
        "query_id": query.query_id,
        "question": query.text,
        "milliseconds": round(seconds * 1000, 3),
        "hits": found.to_list(),
    }


def _report_run(output: str, run: Run, seconds: np.ndarray, elapsed: float) -> Report:
    import statistics

    return {
        "run": output,
        "queries": len(run),
        "queries_without_hits": sum(not query_hits for query_hits in run.values()),
        "hits": sum(len(query_hits) for query_hits in run.values()),
        "seconds": round(elapsed, 3),
        "p50_ms": round(statistics.median(seconds) * 1000, 3) if len(seconds) else None,
    }


@command
def show(index: StrPath, doc_id: tuple[str, ...]) -> Report:
    """Show documents of an index: title, text and metadata.

    Args:
        index: Folder of an index that keeps its documents.
        doc_id: Id of a document, or several.
    """
    from sparse_ir.indexing import document_store, manifest

    if not doc_id:
        raise ConfigError("there is no doc_id; name at least one document")
    folder = Path(index)
    if not manifest.has_documents(manifest.read_manifest(folder)):
        raise ConfigError(
            f"{index} keeps no documents; build it from vectors with documents, without --no-store"
        )
    store = document_store.DocumentStore(folder / document_store.FOLDER)
    documents = []
    for wanted in doc_id:
        document = store.find(wanted)
        if document is None:
            raise DataError(f"{index} has no document {wanted!r}")
        documents.append(document._asdict() | {"metadata": dict(document.metadata)})
    return {"index": str(index), "documents": documents}


def _check_hits(hits: int) -> None:
    if hits < 1:
        raise ConfigError(f"hits is {hits}; it must be at least 1")


def _choose_options(options: Approximations, tuned: bool) -> SearchOptions | None:
    """The options that were given; None for exact search or the tuned options of the index."""
    from sparse_ir.retrieval.options import SearchOptions

    given = {name: value for name, value in options.items() if value is not None}
    if not given:
        return None
    chosen = SearchOptions(**cast("dict[str, Any]", given))
    if tuned:
        raise ConfigError(f"tuned options cannot be combined with others ({chosen}); drop one")
    return chosen


def _optional_text(source: Source | None) -> str | None:
    return None if source is None else str(source)


@command
def explain(
    index: StrPath,
    query: str,
    *,
    doc: tuple[str, ...] = (),
    hits: int = 3,
    input: Source | None = None,
    vectors: StrPath | None = None,
    page: StrPath | None = None,
    query_model: Source | None = None,
    scale: float | None = None,
    ranking: Ranking | None = None,
) -> ExplainReport:
    """Explain the scores of an exact search, term by term.

    The report shows the contribution of each term, expansion terms, terms lost to rounding, and why
    each document ranks above the next one.

    Args:
        index: Folder of an impact or BM25 index, or of a Lucene impact index built by Pyserini.
        query: Text of the query.
        doc: Id of a document to explain; repeat the option for more. By default, the first hits are
            explained.
        hits: Number of hits to explain if no document is named.
        input: The corpus. It is needed to tell expansion terms from terms of the document's text.
        vectors: The vectors that the index was built from. They are needed to find what rounding
            and pruning removed.
        page: Also write a self-contained web page to this file.
        query_model: Model that encodes the query, if the index names none or the model has moved.
        scale: Scale of the impacts, if the index does not record it: one built by Pyserini or from
            JSON vectors (often 100).
        ranking: What ranks: the model alone ("sparse"), BM25 alone ("bm25"), or the sum of both
            ("hybrid"). The default is hybrid if the index has both fields.
    """

    from sparse_ir.retrieval import explanation, explanation_view
    from sparse_ir.retrieval.opening import open_index
    from sparse_ir.storage import files

    _check_hits(hits)
    with open_index(Path(index), _optional_text(query_model), scale, ranking=ranking) as opened:
        if vectors is not None and opened.query_encoder is None:
            raise ConfigError(f"{index} is ranked by BM25 alone, which no vectors explain")
        encoded = opened.encode(query)
        ranked = explanation.rank_documents(opened, encoded, doc, hits)
        texts = {}
        if input is not None:
            texts = explanation.read_texts(str(input), [hit.doc_id for hit in ranked])
        traces = {}
        if vectors is not None:
            traces = explanation.trace_losses(opened, Path(vectors), encoded, ranked)
        places = {doc_id: explanation.find_terms(opened, text) for doc_id, text in texts.items()}
        query_places = explanation.find_terms(opened, query)
        query_names = explanation.name_terms(query_places)
        documents = []
        for hit in ranked:
            names = explanation.name_terms(places.get(hit.doc_id))
            trace = traces.get(hit.doc_id)
            documents.append(
                explanation.explain_hit(opened, encoded, hit, query_names, names, trace)
            )
        report: ExplainReport = {
            "index": str(index),
            "kind": opened.manifest["kind"],
            "ranking": opened.ranking,
            "query": query,
            "query_terms": explanation.describe_query(encoded, query_names),
            "lost_in_query": explanation.lost_query_terms(encoded),
            "documents": documents,
            "comparisons": list(
                itertools.starmap(explanation.compare_hits, itertools.pairwise(documents))
            ),
        }
    if page is not None:
        with files.atomic_writer(Path(page)) as stream:
            stream.write(explanation_view.format_page(report, query_places or [], texts, places))
        report["page"] = str(page)
    return report


@command
def tune(
    index: StrPath,
    queries: Source,
    budget: str | None = None,
    *,
    share: bool = False,
    qrels: Source | None = None,
    split: str = "test",
    bm25: StrPath | None = None,
    hits: int = 10,
    max_queries: int = 200,
    rounds: int = 3,
    without_encoding: bool = False,
    query_model: Source | None = None,
    scale: float | None = None,
    ranking: Ranking | None = None,
    progress: bool = False,
) -> Report:
    """Find the search options that lose least within a latency budget, and store them.

    The options are stored with the index and used by search --tuned only. If no setting holds the
    budget, the nearest one is named, nothing is stored, and the exit code is 2. With --share, the
    share of BM25 in the sum of both fields is found instead: from the scores of the queries, or
    from judgements. The report names it; building the index again with it encodes nothing.

    Args:
        index: Folder of an impact index. If it has a forward index (--forward), two-phase search is
            tried as well.
        queries: BEIR folder, queries.jsonl[.gz], queries.tsv[.gz], or a hub data set such as
            BeIR/scifact.
        budget: Limits such as "p95 <= 1.0 x bm25", "p50 <= 0.5 x exact" or "p99 <= 20 ms", joined
            by "and".
        share: Find the share of BM25 instead of search options.
        qrels: BEIR folder, BEIR tsv, TREC qrels, or a hub data set. If given, the loss of nDCG@10
            is measured too, and the share of the best nDCG@10 is taken.
        split: Split of the qrels in a BEIR folder.
        bm25: Folder of a BM25 index of the same corpus, for budgets relative to BM25.
        hits: Number of documents per query.
        max_queries: Measure at most this many queries, evenly spaced; with qrels, judged ones.
        rounds: How often each query is timed with each setting.
        without_encoding: Exclude the encoding of queries, which no option speeds up, from the
            times.
        query_model: Model that encodes the queries, if the index names none or the model has moved.
        scale: Scale of the impacts, if the index does not record it.
        ranking: What ranks: the model alone ("sparse"), BM25 alone ("bm25"), or the sum of both
            ("hybrid"). The default is hybrid if the index has both fields.
        progress: Show a progress bar.
    """

    from sparse_ir.data import readers
    from sparse_ir.indexing import manifest
    from sparse_ir.retrieval import tuning
    from sparse_ir.retrieval.opening import open_index
    from sparse_ir.retrieval.options import write_tuned

    if share:
        _check_no_budget(budget)
        return _find_share(index, queries, qrels, split, max_queries, query_model)
    if budget is None:
        raise ConfigError("tune needs a budget (--budget), or --share")
    limits = _read_budget(budget, bm25)
    for name, value in (("hits", hits), ("max_queries", max_queries), ("rounds", rounds)):
        if value < 1:
            raise ConfigError(f"{name} is {value}; it must be at least 1")
    judged = None
    if qrels is not None:
        judged = readers.read_qrels(qrels, split)
    asked = tuning.choose_queries(list(readers.read_queries(queries)), judged, max_queries)
    with contextlib.ExitStack() as stack:
        opened = stack.enter_context(
            open_index(Path(index), _optional_text(query_model), scale, ranking=ranking)
        )
        if opened.manifest["kind"] == "bm25" or "sha256" not in opened.manifest:
            raise ConfigError(
                f"{index} has no options to tune; it must be an impact index of this package"
            )
        baselines = {}
        if bm25 is not None:
            baselines[tuning.BM25] = stack.enter_context(tuning.open_bm25(Path(bm25), opened))
        bench = tuning.Bench(opened, baselines, asked, limits, hits, rounds, without_encoding)
        trials, chosen, measured = _measure_settings(bench, judged, progress)
    report = {"index": str(index), "budget": budget} | measured
    if manifest.read_manifest(Path(index))["sha256"] != opened.manifest["sha256"]:
        raise IndexMismatch(f"{index} was replaced by another version in the meantime; tune again")
    if chosen is None:
        raise BudgetMissed(tuning.describe_nearest_miss(budget, trials), report)
    kept = {key: value for key, value in report.items() if key not in ("index", "trials")}
    path = Path(index) / manifest.TUNED
    write_tuned(path, opened.manifest["sha256"], chosen.options, kept, opened.ranking)
    return report


def _check_no_budget(budget: str | None) -> None:
    if budget is not None:
        raise ConfigError(
            f"a share is found without a budget, but {budget!r} was given; drop one of the two"
        )


def _read_budget(budget: str, bm25: StrPath | None) -> list[Limit]:
    from sparse_ir.retrieval import tuning

    limits = tuning.parse_budget(budget)
    needs_bm25 = any(limit.unit == tuning.BM25 for limit in limits)
    if bm25 is None and needs_bm25:
        raise ConfigError(
            f"the budget {budget!r} is relative to BM25; name a BM25 index of the same corpus "
            "(--bm25)"
        )
    return limits


def _find_share(
    index: StrPath,
    queries: Source,
    qrels: Source | None,
    split: str,
    max_queries: int,
    query_model: Source | None,
) -> Report:
    """The share of BM25 for an index with both fields."""
    from sparse_ir.data import readers
    from sparse_ir.retrieval import share_tuning, tuning
    from sparse_ir.retrieval.opening import open_index

    judged = None
    if qrels is not None:
        judged = readers.read_qrels(qrels, split)
    asked = tuning.choose_queries(list(readers.read_queries(queries)), judged, max_queries)
    model = _optional_text(query_model)
    with (
        open_index(Path(index), ranking="bm25") as words,
        open_index(Path(index), model, ranking="sparse") as sparse,
    ):
        found = share_tuning.find_share(sparse, words, asked, judged)
    report: Report = {"index": str(index), "queries": len(asked)}
    report |= {"share": found.share, "share_now": found.now, "found_by": found.by}
    if found.measured:
        report[share_tuning.MEASURE] = {str(key): value for key, value in found.measured.items()}
    report["next"] = f"build the index again with --share {found.share:g}"
    return report


def _measure_settings(
    bench: Bench, judged: Qrels | None, progress: bool
) -> tuple[list[Trial], Trial | None, Report]:
    """All trials, the one that holds the budget (None if none does), and the report."""
    from sparse_ir.retrieval import tuning

    losses = tuning.find_losses(bench, judged, progress)
    times = bench.time(list(losses))
    trials = []
    for options, (overlap, loss) in losses.items():
        share_used = bench.share_used(options, times)
        trials.append(tuning.Trial(options, overlap, loss, times[str(options)], share_used))
    chosen, confirmed = tuning.confirm_choice(bench, trials)
    report = tuning.make_report(bench, trials, times, chosen, confirmed)
    return trials, chosen, report
