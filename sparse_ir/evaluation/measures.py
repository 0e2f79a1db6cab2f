"""Measures of a run against qrels: per query, and in the mean over all judged queries as
``trec_eval -c`` has it.

The measures themselves are those of ``ir_measures`` (mostly pytrec_eval, that is trec_eval's own
code). This module makes all of its providers see one and the same order of hits, and refuses input
that would give a wrong number. It does not compare systems.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from sparse_ir.data.records import Qrels, Run, check_id, rank_hits
from sparse_ir.errors import ConfigError, DataError

_EXAMPLES = "nDCG@10, R@100, RR@10, AP, P@5"


class Evaluation(NamedTuple):
    """What ``evaluate_run`` found; the keys are measures as they are
    printed, such as ``nDCG@10``.
    """

    mean: dict[str, float]  # measure -> mean over all queries of the qrels
    # measure -> query_id -> value, for all queries of the qrels
    per_query: dict[str, dict[str, float]]
    num_queries: int  # queries of the qrels: what the mean divides by
    # of these, queries without a hit in the run; each measure gives them its value for an empty
    # list
    num_missing: int
    num_unjudged: int  # queries of the run that the qrels do not know; they are left out


def evaluate_run(
    run: Run, qrels: Qrels, measures: Sequence[str] | str = "nDCG@10 R@100"
) -> Evaluation:
    """Measures of ``run`` per query and in the mean, with the meaning of ``trec_eval -c``.

    ``measures`` are names as ``ir_measures`` writes them (``nDCG@10``, ``R@100``, ``RR@10``,
    ``AP``, ``P@5``), in one string or a list; its other spellings are understood (``MRR@10`` is
    given back as ``RR@10``). nDCG is graded, with the relevance as gain; the others take a
    relevance of 1 or more as relevant, or the one of ``AP(rel=2)``.

    The mean is over all queries of the qrels: a query without hits counts as 0, and so does a query
    without any relevant document, which no run can answer (trec_eval keeps it in the mean too).
    Hits are ordered by score as float32, then by doc_id, both descending, for every measure,
    whatever order the lists have.

    Raises:
        ConfigError: a measure that is unknown, or that cannot be computed here.
        DataError: the qrels are empty, run and qrels have no query in common, an id or a relevance
            is not allowed, or
            a hit has a score that is not finite or is there twice.
    """
    parsed = parse_measures(measures)
    _check_qrels(qrels)
    judged = {query_id: hits for query_id, hits in run.items() if query_id in qrels and hits}
    if not judged:
        raise DataError(
            f"run: none of its {len(run)} queries has both hits and judgements (first "
            "query of the run: "
            f"{next(iter(run), None)!r}, of the qrels: {next(iter(qrels))!r}), "
            "allowed: one or more"
        )
    per_query = _calculate(
        parsed, qrels, {query_id: _rank_scores(query_id, hits) for query_id, hits in judged.items()}
    )
    return Evaluation(
        mean={name: _aggregate(measure, per_query[name]) for name, measure in parsed.items()},
        per_query=per_query,
        num_queries=len(qrels),
        num_missing=len(qrels) - len(judged),
        num_unjudged=sum(query_id not in qrels for query_id in run),
    )


def remove_identical(run: Run) -> Run:
    """The run without the hits whose doc_id is their own query_id (a new run; needed for ArguAna
    and Quora).

    There the queries are documents of the corpus, and each would find itself first. Retrieve one
    hit more than needed.
    """
    return {query_id: [hit for hit in hits if hit[0] != query_id] for query_id, hits in run.items()}


def parse_measures(measures: Sequence[str] | str) -> dict[str, Any]:
    """Name as it is printed -> measure of ``ir_measures``; raises ``ConfigError`` as
    ``evaluate_run`` does.
    """
    names = measures.split() if isinstance(measures, str) else list(measures)
    if not names:
        raise ConfigError(f"measures: none given, allowed: names such as {_EXAMPLES}")
    parsed = [_parse_measure(name) for name in names]
    return {str(measure): measure for measure in parsed}


def _parse_measure(name: str) -> Any:
    import ir_measures

    try:
        measure = ir_measures.parse_measure(name)
        is_supported = ir_measures.DefaultPipeline.supports(measure)
    except (NameError, ValueError, TypeError, AttributeError, AssertionError) as error:
        reason = re.sub(r"=<object object at \w+>", " that is missing", str(error))
        raise ConfigError(
            f"measure {name!r} is unknown ({reason}), allowed: names such as {_EXAMPLES}"
        ) from error
    # trec_eval ends the whole process on a cut-off of 0.
    cutoff = measure.params.get("cutoff", 1)
    if isinstance(cutoff, bool) or cutoff < 1:
        raise ConfigError(f"measure {name!r} has the cut-off {cutoff}, allowed: 1 or more")
    if not is_supported:
        raise ConfigError(
            f"measure {name!r} needs a provider that is not installed, allowed: such as {_EXAMPLES}"
        )
    return measure


def _check_qrels(qrels: Qrels) -> None:
    # trec_eval's code trusts its input: an id that is no UTF-8 ends the whole process.
    if not qrels:
        raise DataError("qrels: no judgement, at least one is needed")
    for query_id, judgements in qrels.items():
        where = f"qrels, query {check_id('qrels: query id', query_id)!r}"
        if not judgements:
            raise DataError(f"{where}: no judgement, at least one is needed")
        for doc_id, relevance in judgements.items():
            check_id(f"{where}: doc id", doc_id)
            if not isinstance(relevance, int):
                raise DataError(
                    f"{where}: relevance of document {doc_id!r} is {relevance!r}, allowed: an int"
                )


def _rank_scores(query_id: str, hits: list[tuple[str, float]]) -> dict[str, float]:
    """``{doc_id: score}`` with new scores, all different, in trec_eval's order.

    Providers break ties in their own ways: that of ``RR@10`` takes the lower doc_id first,
    trec_eval the higher one.
    """
    for doc_id, score in hits:
        check_id(f"run, query {query_id!r}: doc id", doc_id)
        if score - score != 0:  # NaN or infinite
            raise DataError(
                f"run, query {query_id!r}: score of document {doc_id!r} is {score}, allowed: finite"
            )
    ranked = {doc_id: float(len(hits) - place) for place, (doc_id, _) in enumerate(rank_hits(hits))}
    if len(ranked) != len(hits):
        raise DataError(
            f"run, query {query_id!r}: a document is there twice, allowed: each "
            "document once per query"
        )
    return ranked


def number_queries(of: Mapping[str, Any], numbers: Mapping[str, str]) -> dict[str, Any]:
    """A run or qrels with its judged queries named by their numbers.

    gdeval (ERR, nDCG with exponential gains) takes numbers alone, and of ``x-12`` and ``y-12`` the
    12 only.
    """
    return {numbers[query_id]: hits for query_id, hits in of.items() if query_id in numbers}


def _calculate(
    parsed: dict[str, Any], qrels: Qrels, ranked: dict[str, dict[str, float]]
) -> dict[str, dict[str, float]]:
    import ir_measures

    numbers = {query_id: str(number) for number, query_id in enumerate(qrels, 1)}
    found: dict[str, dict[str, float]] = {name: {} for name in parsed}
    endless = [
        measure
        for measure in parsed.values()
        if measure.NAME == "nDCG" and "cutoff" not in measure.params
    ]
    others = [measure for measure in parsed.values() if measure not in endless]
    groups = [
        (of, judged) for of, judged in ((endless, _without_negative(qrels)), (others, qrels)) if of
    ]
    try:
        for of, judged in groups:
            for metric in ir_measures.iter_calc(
                of, number_queries(judged, numbers), number_queries(ranked, numbers)
            ):
                found[str(metric.measure)][metric.query_id] = float(metric.value)
    except subprocess.CalledProcessError as error:  # the provider that is a program of its own
        raise DataError(
            f"measures {', '.join(parsed)}: gdeval.pl, which computes ERR and "
            "nDCG(dcg='exp-log2'), does "
            "not take this run or these qrels; allowed: other measures"
        ) from error
    return {
        name: {query_id: values[numbers[query_id]] for query_id in qrels}
        for name, values in found.items()
    }


def _without_negative(qrels: Qrels) -> Qrels:
    """Grades below 0 as 0, which is the same to nDCG; over them trec_eval's code loses itself when
    it has no cutoff.
    """
    return {
        query_id: {doc_id: max(grade, 0) for doc_id, grade in judged.items()}
        for query_id, judged in qrels.items()
    }


def _aggregate(measure: Any, values: dict[str, float]) -> float:
    aggregator = measure.aggregator()
    for value in values.values():
        aggregator.add(value)
    return float(aggregator.result())
