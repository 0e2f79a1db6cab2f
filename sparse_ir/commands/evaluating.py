"""The commands ``evaluate`` and ``compare``.

Numeric libraries are imported inside the functions, so that a help text appears at once.
"""

from __future__ import annotations

from pathlib import Path

from sparse_ir.commands.arguments import Source, StrPath, command
from sparse_ir.errors import ConfigError, DataError
from sparse_ir.reports import Report


@command
def evaluate(
    run: StrPath,
    qrels: Source,
    *,
    measures: str = "nDCG@10 R@100",
    split: str = "test",
    per_query: bool = False,
    remove_query: bool = False,
    ties: bool = False,
    conventions: bool = False,
) -> Report:
    """Evaluate a run against qrels as trec_eval -c does.

    A judged query without hits scores 0. Documents of equal scores are ordered by doc_id,
    descending.

    Args:
        run: TREC run, or JSON of the form {query_id: {doc_id: score}}.
        qrels: BEIR folder, BEIR tsv, TREC qrels, or a hub data set such as BeIR/scifact.
        measures: Measures as named by ir_measures, separated by spaces or commas.
        split: Split of the qrels in a BEIR folder.
        per_query: Also report the values of each query.
        remove_query: Drop hits whose doc_id is the query's own id before measuring (ArguAna,
            Quora).
        ties: Also report the smallest, expected and largest value over all orders of documents with
            equal scores.
        conventions: Also report the values by the conventions of trec_eval without -c, BEIR,
            sentence-transformers, MS MARCO and ir_measures.
    """

    from sparse_ir.data import readers, records
    from sparse_ir.data.runs import read_run
    from sparse_ir.evaluation.measures import evaluate_run, remove_identical

    written = read_run(Path(run), as_written=True)
    if remove_query:
        written = remove_identical(written)
    hits = {query_id: records.rank_hits(query_hits) for query_id, query_hits in written.items()}
    judged = readers.read_qrels(qrels, split)
    names = measures.replace(",", " ")
    try:
        result = evaluate_run(hits, judged, names)
    except DataError as error:
        raise DataError(f"{run} with {qrels}: {error}") from error
    report: Report = dict(result.mean)
    report["queries"] = result.num_queries
    report["queries_without_hits"] = result.num_missing
    report["queries_not_judged"] = result.num_unjudged
    if ties:
        from sparse_ir.evaluation.conventions import count_tied_queries, measure_ties

        ranges = measure_ties(hits, judged, names)
        report["queries_with_ties"] = count_tied_queries(hits)
        report["ties"] = {name: limits._asdict() for name, limits in ranges.items()}
    if conventions:
        from sparse_ir.evaluation.conventions import RULES, measure_conventions

        report["conventions"] = measure_conventions(hits, judged, names, written)
        report["rules"] = [f"{name}: {rule}" for name, rule in RULES.items()]
    if per_query:
        report["per_query"] = result.per_query
    return report


@command
def compare(
    *run: str,
    qrels: Source,
    measures: str = "nDCG@10 R@100",
    baseline: str | None = None,
    split: str = "test",
    remove_query: bool = False,
    queries: Source | None = None,
    show: int = 5,
    samples: int = 100_000,
    seed: int = 0,
) -> Report:
    """Compare two or more runs query by query, with tests of significance.

    Each run is compared with the baseline on the same judged queries; as in trec_eval -c, a query
    without hits scores 0. The report has 95 % intervals, wins and losses, and p-values of a paired
    randomization test, corrected for the number of runs (Holm).

    Args:
        run: TREC runs, or JSON of the form {query_id: {doc_id: score}}; NAME=RUN names one.
        qrels: BEIR folder, BEIR tsv, TREC qrels, or a hub data set such as BeIR/scifact.
        measures: Measures as named by ir_measures, separated by spaces or commas. The first decides
            which queries are shown.
        baseline: Name of the run that all others are compared with. The default is the first run.
        split: Split of the qrels in a BEIR folder.
        remove_query: Drop hits whose doc_id is the query's own id before measuring (ArguAna,
            Quora).
        queries: BEIR folder, queries.jsonl[.gz] or queries.tsv[.gz], to show the text of queries.
        show: Number of queries shown per comparison, those that differ most.
        samples: Number of random sign patterns of the test, if more than 16 queries differ.
        seed: Seed of the test and of the intervals.
    """

    from sparse_ir.commands import comparison
    from sparse_ir.data import readers

    paths = comparison.name_runs(run)
    chosen = next(iter(paths)) if baseline is None else baseline
    if chosen not in paths:
        raise ConfigError(f"baseline is {chosen!r}; it must be one of the runs: {', '.join(paths)}")
    options = comparison.Options(measures.replace(",", " "), remove_query, show, samples, seed)
    judged = readers.read_qrels(qrels, split)
    return comparison.compare_runs(paths, chosen, judged, options, queries)
