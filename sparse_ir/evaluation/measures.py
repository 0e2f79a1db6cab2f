"""Measures of a run against qrels, by query and in the mean over all judged queries.

The mean is that of ``trec_eval -c``. The measures are those of ``ir_measures`` (mostly pytrec_eval,
which is trec_eval's own code). This module makes all of its providers see the same order of hits,
and refuses input that would give a wrong number.
"""

from __future__ import annotations

import math
import re
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from sparse_ir.data.records import Qrels, Run, check_id, rank_hits
from sparse_ir.errors import ConfigError, DataError

_EXAMPLES = "nDCG@10, R@100, RR@10, AP, P@5"

Content = TypeVar("Content")
Ranked = dict[str, dict[str, float]]  # query_id -> doc_id -> score, all scores different


class Evaluation(NamedTuple):
    """The result of ``evaluate_run``; keys are measures as printed, such as ``nDCG@10``."""

    mean: dict[str, float]  # measure -> mean over all queries of the qrels
    # measure -> query_id -> value, for all queries of the qrels
    per_query: dict[str, dict[str, float]]
    num_queries: int  # queries of the qrels: the divisor of the mean
    num_missing: int  # of these, queries without a hit; measured as an empty ranking
    num_unjudged: int  # queries of the run that the qrels do not know; they are left out


def evaluate_run(
    run: Run, qrels: Qrels, measures: Sequence[str] | str = "nDCG@10 R@100"
) -> Evaluation:
    """Measures of ``run`` by query and in the mean, with the meaning of ``trec_eval -c``.

    ``measures`` are names as ``ir_measures`` writes them (``nDCG@10``, ``R@100``, ``RR@10``,
    ``AP``, ``P@5``), in one string or a list. Its other spellings are understood (``MRR@10`` is
    returned as ``RR@10``). nDCG is graded, with the relevance as gain; for the others a document is
    relevant from grade 1 on, or from the one of ``AP(rel=2)``.

    The mean is over all queries of the qrels. A query without hits counts as 0, and so does a query
    without any relevant document, which no run can answer (trec_eval keeps it in the mean too).
    Hits are ordered by score as float32, then by doc_id, both descending, for every measure and
    whatever the order of the lists.

    Raises:
        ConfigError: a measure is unknown, or cannot be computed here.
        DataError: the qrels are empty, run and qrels have no query in common, an id or a relevance
            is not allowed, or a hit has a score that is not finite or appears twice.
    """
    parsed = parse_measures(measures)
    _check_qrels(qrels)
    ranked = {}
    for query_id, hits in run.items():
        if query_id in qrels and hits:
            ranked[query_id] = _rank_scores(query_id, hits)
    if not ranked:
        raise DataError(
            f"run: none of its {len(run)} queries has both hits and judgements (first query of the "
            f"run: {next(iter(run), None)!r}, of the qrels: {next(iter(qrels))!r}); at least one "
            "must have both"
        )
    per_query = _calculate(parsed, qrels, ranked)
    mean = {}
    for name, measure in parsed.items():
        aggregator = measure.aggregator()
        for value in per_query[name].values():
            aggregator.add(value)
        mean[name] = float(aggregator.result())
    return Evaluation(
        mean=mean,
        per_query=per_query,
        num_queries=len(qrels),
        num_missing=len(qrels) - len(ranked),
        num_unjudged=len(run.keys() - qrels.keys()),
    )


def remove_identical(run: Run) -> Run:
    """A new run without the hits whose doc_id is their own query_id, for ArguAna and Quora.

    There the queries are documents of the corpus, and each would find itself first. Retrieve one
    hit more than needed.
    """
    cleaned = {}
    for query_id, hits in run.items():
        cleaned[query_id] = [hit for hit in hits if hit[0] != query_id]
    return cleaned


def parse_measures(measures: Sequence[str] | str) -> dict[str, Any]:
    """Name as it is printed -> measure of ``ir_measures``.

    Raises ``ConfigError`` as ``evaluate_run`` does.
    """
    names = list(measures)
    if isinstance(measures, str):
        names = measures.split()
    if not names:
        raise ConfigError(f"measures: none given; name some, such as {_EXAMPLES}")
    parsed = list(map(_parse_measure, names))
    return dict(zip(map(str, parsed), parsed, strict=True))


def _parse_measure(name: str) -> Any:
    import ir_measures

    try:
        measure = ir_measures.parse_measure(name)
        is_supported = ir_measures.DefaultPipeline.supports(measure)
    except (NameError, ValueError, TypeError, AttributeError, AssertionError) as error:
        reason = re.sub(r"=<object object at \w+>", " that is missing", str(error))
        raise ConfigError(
            f"measure {name!r} is unknown ({reason}); it must be one such as {_EXAMPLES}"
        ) from error
    # trec_eval ends the whole process at a cutoff of 0
    cutoff = measure.params.get("cutoff", 1)
    if isinstance(cutoff, bool) or cutoff < 1:
        raise ConfigError(f"measure {name!r} has the cutoff {cutoff}; it must be 1 or more")
    if not is_supported:
        raise ConfigError(
            f"measure {name!r} needs a provider that is not installed; use one such as {_EXAMPLES}"
        )
    return measure


def _check_qrels(qrels: Qrels) -> None:
    # trec_eval's code trusts its input: an id that is not UTF-8 ends the whole process
    if not qrels:
        raise DataError("qrels: no judgement; there must be at least one")
    for query_id, judgements in qrels.items():
        where = f"qrels, query {check_id('qrels: query id', query_id)!r}"
        if not judgements:
            raise DataError(f"{where}: no judgement; there must be at least one")
        for doc_id, relevance in judgements.items():
            check_id(f"{where}: doc id", doc_id)
            if not isinstance(relevance, int):
                raise DataError(
                    f"{where}: relevance of document {doc_id!r} is {relevance!r}; it must be an int"
                )


def _rank_scores(query_id: str, hits: list[tuple[str, float]]) -> dict[str, float]:
    """``{doc_id: score}`` with new scores, all different, in trec_eval's order.

    Providers break ties in their own ways: that of ``RR@10`` takes the lower doc_id first,
    trec_eval the higher one.
    """
    where = f"run, query {query_id!r}"
    for doc_id, score in hits:
        check_id(f"{where}: doc id", doc_id)
        if not math.isfinite(score):
            raise DataError(f"{where}: score of document {doc_id!r} is {score}; it must be finite")
    ranked = {}
    for place, (doc_id, _) in enumerate(rank_hits(hits)):
        ranked[doc_id] = float(len(hits) - place)
    if len(ranked) != len(hits):
        raise DataError(f"{where}: a document appears twice; it must appear once")
    return ranked


def choose_numbers(qrels: Qrels) -> dict[str, str]:
    """A number for each query."""
    return {query_id: str(number) for number, query_id in enumerate(qrels, 1)}


def number_queries(
    by_query: Mapping[str, Content], numbers: Mapping[str, str]
) -> dict[str, Content]:
    """A run or qrels with its judged queries named by their numbers.

    gdeval (ERR, nDCG with exponential gains) accepts numbers only; of ``x-12`` and ``y-12`` it
    keeps the 12.
    """
    numbered = {}
    for query_id, content in by_query.items():
        if query_id in numbers:
            numbered[numbers[query_id]] = content
    return numbered


def _calculate(
    parsed: Mapping[str, Any], qrels: Qrels, ranked: Ranked
) -> dict[str, dict[str, float]]:
    """Measure -> query_id -> value."""
    numbers = choose_numbers(qrels)
    numbered = number_queries(ranked, numbers)
    # trec_eval loops forever on negative grades if nDCG has no cutoff
    endless = []
    others = []
    for measure in parsed.values():
        if measure.NAME == "nDCG" and "cutoff" not in measure.params:
            endless.append(measure)
        else:
            others.append(measure)
    raised: Qrels = {}  # grades below 0 as 0, which is the same to nDCG
    if endless:
        for query_id, judged in qrels.items():
            raised[numbers[query_id]] = {doc_id: max(grade, 0) for doc_id, grade in judged.items()}
    found: dict[str, dict[str, float]] = {name: {} for name in parsed}
    try:
        _run_providers(others, number_queries(qrels, numbers), numbered, found)
        _run_providers(endless, raised, numbered, found)
    except subprocess.CalledProcessError as error:  # the provider that is a separate program
        raise DataError(
            f"measures {', '.join(parsed)}: gdeval.pl, which computes ERR and "
            "nDCG(dcg='exp-log2'), does not accept this run or these qrels; use other measures"
        ) from error
    per_query = {}
    for name, values in found.items():
        per_query[name] = {query_id: values[number] for query_id, number in numbers.items()}
    return per_query


def _run_providers(
    measures: Sequence[Any], qrels: Qrels, ranked: Ranked, found: dict[str, dict[str, float]]
) -> None:
    """Compute some measures and add their values to ``found``."""
    import ir_measures

    if not measures:
        return
    for metric in ir_measures.iter_calc(measures, qrels, ranked):
        found[str(metric.measure)][metric.query_id] = float(metric.value)
