"""The same run under the conventions of other tools, and the range that tied hits leave.

Tools that print ``nDCG@10`` differ in the queries of their mean, in gains, and in the order of
equal scores; see ``RULES``. Ties give a measure a range. Its ends are exact: each measure here
grows when a better hit moves up, so a group of tied hits gives most with its best hit first and
least with its best hit last. The mean over all orders has a closed form, after McSherry and Najork
2008, "Computing information retrieval performance measures efficiently in the presence of tied
scores" (ECIR), extended to cutoffs. Documents that tie with the last hit and were not retrieved are
unknown to both.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np

from sparse_ir.data.records import Qrels, Run, rank_hits
from sparse_ir.errors import ConfigError
from sparse_ir.evaluation.measures import (
    choose_numbers,
    evaluate_run,
    number_queries,
    parse_measures,
    remove_identical,
)

RULES = {
    "trec_eval -c": "mean over all judged queries; gain is the grade; ties by doc_id, descending "
    "(this package)",
    "trec_eval": "as above, but the mean is over the queries that have hits",
    "BEIR": "as trec_eval, without the hit that is the query itself; MRR and accuracy over all "
    "judged queries, ties as written",
    "sentence-transformers": "mean over queries with a relevant document; gains are 0 or 1; AP@k "
    "divided by at most k; ties by doc_id, ascending",
    "MS MARCO": "MRR only, over all judged queries; every judged document is relevant; hits in the "
    "order written, whatever their scores",
    "ir_measures": "mean over all judged queries; ties as each provider breaks them: RR@k by "
    "doc_id ascending, others descending",
}
_SHAPES = ("nDCG", "AP", "P", "R", "RR", "Success")
_LINEAR = ("nDCG", "P", "R")  # sums of gains, each weighted by its place
_SMALLEST_RANGE = 1e-12

Hits = Sequence[tuple[str, float]]
Means = dict[str, float | None]  # measure -> mean; None: the tool has no such measure


class Shape(NamedTuple):
    """A measure that is computed here."""

    name: str  # one of nDCG, AP, P, R, RR, Success
    cutoff: int | None
    # the lowest grade of a relevant document; nDCG uses the grade as its gain
    level: int = 1


class Range(NamedTuple):
    """What the order of tied hits makes of the mean of a measure over all judged queries."""

    minimum: float
    expected: float  # over all orders of the tied hits, all equally likely
    rule: float  # in the order of this package and of trec_eval: by doc_id, descending
    maximum: float
    queries: int  # whose value depends on that order


class _Graded(NamedTuple):
    """One query: the grades of its hits in some order, and of its judged documents."""

    hits: np.ndarray  # float64 (N,)
    judged: np.ndarray  # int64 (M,)


def measure_conventions(
    run: Run, qrels: Qrels, measures: Sequence[str] | str, written: Run | None = None
) -> dict[str, Means]:
    """Convention -> measure -> mean, by the names in ``RULES``.

    ``written`` is the run in the order of its file (default: that of ``run``), which two of the
    conventions keep. No value is rounded, although BEIR prints five digits. Errors as in
    ``measures.evaluate_run``.
    """
    if written is None:
        written = run
    evaluation = evaluate_run(run, qrels, measures)
    answered = [query_id for query_id in qrels if run.get(query_id)]
    over_answered: Means = {}
    for name, values in evaluation.per_query.items():
        over_answered[name] = sum(map(values.__getitem__, answered)) / len(answered)
    parsed = parse_measures(measures)
    shapes = {}
    for name, measure in parsed.items():
        shape = find_shape(measure)
        if shape is not None and shape.cutoff:  # none of the tools prints a measure without one
            shapes[name] = shape
    tools = {
        "BEIR": _measure_as_beir(shapes, written, qrels),
        "sentence-transformers": _measure_as_sentence_transformers(shapes, written, qrels),
        "MS MARCO": _measure_as_ms_marco(shapes, written, qrels),
    }
    table: dict[str, Means] = {"trec_eval -c": dict(evaluation.mean), "trec_eval": over_answered}
    for convention, known in tools.items():
        table[convention] = dict.fromkeys(parsed) | known
    table["ir_measures"] = _measure_as_ir_measures(parsed, run, qrels)
    return table


def _measure_as_beir(shapes: Mapping[str, Shape], written: Run, qrels: Qrels) -> Means:
    """BEIR's ``EvaluateRetrieval.evaluate``, ``mrr`` and ``top_k_accuracy``.

    The latter two divide by all judged queries and keep ties as written.
    """
    ranked = []
    listed = []
    for query_id, hits in remove_identical(written).items():
        if query_id in qrels:
            ranked.append(_grade(rank_hits(hits), qrels[query_id]))
            listed.append(_grade(sorted(hits, key=itemgetter(1), reverse=True), qrels[query_id]))
    means: Means = {}
    for name, shape in shapes.items():
        if shape.name in ("RR", "Success"):
            means[name] = _average(shape, listed, len(qrels))
        else:
            means[name] = _average(shape, ranked)
    return means


def _measure_as_sentence_transformers(
    shapes: Mapping[str, Shape], written: Run, qrels: Qrels
) -> Means:
    """``InformationRetrievalEvaluator``, which knows only a set of relevant documents by query."""
    means: Means = {}
    for name, shape in shapes.items():
        graded = []
        for query_id, judgements in qrels.items():
            relevant = {doc_id: 1 for doc_id, grade in judgements.items() if grade >= shape.level}
            if relevant:
                hits = sorted(
                    written.get(query_id, []), key=lambda hit: (-np.float32(hit[1]), hit[0])
                )
                graded.append(_grade(hits, relevant))
        means[name] = _average(shape._replace(level=1), graded, is_capped=True)
    return means


def _measure_as_ms_marco(shapes: Mapping[str, Shape], written: Run, qrels: Qrels) -> Means:
    """The official script of the passage ranking task, for any cutoff; its own is 10."""
    listed = []
    for query_id, judgements in qrels.items():
        listed.append(_grade(written.get(query_id, []), dict.fromkeys(judgements, 1)))
    means: Means = {}
    for name, shape in shapes.items():
        if shape.name == "RR":
            means[name] = _average(shape._replace(level=1), listed)
    return means


def _measure_as_ir_measures(parsed: Mapping[str, Any], run: Run, qrels: Qrels) -> Means:
    import ir_measures

    numbers = choose_numbers(qrels)
    scores = {}
    for number, hits in number_queries(run, numbers).items():
        if hits:
            scores[number] = dict(hits)
    aggregates = ir_measures.calc_aggregate(
        list(parsed.values()), number_queries(qrels, numbers), scores
    )
    return {name: float(aggregates[measure]) for name, measure in parsed.items()}


def _grade(hits: Hits, judgements: Mapping[str, int]) -> _Graded:
    grades = [judgements.get(doc_id, 0) for doc_id, _ in hits]
    judged = np.array(list(judgements.values()))
    return _Graded(np.array(grades, dtype=np.float64), judged)


def _average(
    shape: Shape,
    queries: Sequence[_Graded],
    count: int | None = None,
    *,
    is_capped: bool = False,
) -> float | None:
    """The sum over the queries divided by ``count`` (default: their number); None for no query.

    ``is_capped``: AP@k is divided by at most k.
    """
    if not queries:
        return None
    total = 0.0
    for query in queries:
        value = _measure(shape, query.hits, query.judged)
        if is_capped and shape.name == "AP" and shape.cutoff:
            value *= len(query.judged) / min(len(query.judged), shape.cutoff)
        total += value
    return total / (count or len(queries))


def find_shape(measure: Any) -> Shape | None:
    """An ``ir_measures`` measure as one that is computed here.

    None for any other measure, or for one with other parameters.
    """
    parameters = dict(measure.params)
    cutoff = parameters.pop("cutoff", None)
    level = parameters.pop("rel", 1)
    if measure.NAME not in _SHAPES or parameters:
        return None
    return Shape(measure.NAME, cutoff, level)


def measure_ties(run: Run, qrels: Qrels, measures: Sequence[str] | str) -> dict[str, Range]:
    """Measure -> its range over all orders of hits with equal scores (as float32).

    The means are those of ``trec_eval -c``. Raises ``ConfigError`` for a measure other than nDCG,
    AP, P, R, RR and Success with their usual gains, and errors as ``measures.evaluate_run`` does.
    """
    evaluate_run(run, qrels, measures)  # refuses what cannot be measured
    rankings = []
    for query_id, judgements in qrels.items():
        rankings.append(_group_ties(run.get(query_id, []), judgements))
    ranges = {}
    for name, parsed in parse_measures(measures).items():
        shape = find_shape(parsed)
        if shape is None:
            raise ConfigError(
                f"measure {name!r} has no range over ties here; it must be one of "
                f"{', '.join(_SHAPES)}"
            )
        values = np.array([_measure_range(shape, ranking) for ranking in rankings])
        minimum, expected, rule, maximum = values.mean(axis=0).tolist()
        widths = values[:, 3] - values[:, 0]
        queries = int((widths > _SMALLEST_RANGE).sum())
        ranges[name] = Range(minimum, expected, rule, maximum, queries)
    return ranges


def count_tied_queries(run: Run) -> int:
    """Queries in which at least two hits have the same score as float32."""
    return sum(_group_ties(hits, {}).has_ties for hits in run.values())


@dataclasses.dataclass(frozen=True)
class _Ranking:
    """The hits of a query in the order of the rule, in groups of equal scores."""

    grades: np.ndarray  # float64 (N,), of the hits
    starts: np.ndarray  # int64 (G,), of the groups: the first is 0
    judged: np.ndarray  # int64 (M,), grades of all judged documents

    @property
    def has_ties(self) -> bool:
        """Whether any group has two hits."""
        return len(self.starts) < len(self.grades)

    @property
    def sizes(self) -> np.ndarray:
        """Hits of each group, int64 ``(G,)``."""
        return np.diff(self.starts, append=len(self.grades))


def _group_ties(hits: Hits, judgements: Mapping[str, int]) -> _Ranking:
    ranked = rank_hits(hits)
    scores = np.array(list(map(itemgetter(1), ranked)), dtype=np.float32)
    starts_group = np.ones(len(scores), dtype=bool)
    starts_group[1:] = scores[1:] != scores[:-1]
    graded = _grade(ranked, judgements)
    return _Ranking(graded.hits, np.flatnonzero(starts_group), graded.judged)


def _measure_range(shape: Shape, ranking: _Ranking) -> tuple[float, float, float, float]:
    """Minimum, expected value, value by the rule, and maximum, of one query."""
    rule = _measure(shape, ranking.grades, ranking.judged)
    if not ranking.has_ties:
        return rule, rule, rule, rule
    groups = np.repeat(np.arange(len(ranking.starts)), ranking.sizes)
    worst = ranking.grades[np.lexsort((ranking.grades, groups))]
    best = ranking.grades[np.lexsort((-ranking.grades, groups))]
    return (
        _measure(shape, worst, ranking.judged),
        _expect(shape, ranking),
        rule,
        _measure(shape, best, ranking.judged),
    )


def _measure(shape: Shape, grades: np.ndarray, judged: np.ndarray) -> float:
    """The measure of one ranking, from the grades of its hits and of all judged documents."""
    if shape.name in _LINEAR:
        return _sum_gains(shape, _gains(shape, grades), judged)
    ranks = np.flatnonzero(grades[: shape.cutoff] >= shape.level) + 1
    if not len(ranks):
        return 0.0
    if shape.name == "Success":
        return 1.0
    if shape.name == "RR":
        return float(1 / ranks[0])
    precisions = np.arange(1, len(ranks) + 1) / ranks
    return float(precisions.sum() / (judged >= shape.level).sum())


def _gains(shape: Shape, grades: np.ndarray) -> np.ndarray:
    """nDCG: the grade, and 0 for a negative one, as in trec_eval; P and R: 1 if relevant."""
    if shape.name == "nDCG":
        gains: np.ndarray = np.maximum(grades, 0.0)
    else:
        gains = (grades >= shape.level).astype(np.float64)
    return gains


def _sum_gains(shape: Shape, gains: np.ndarray, judged: np.ndarray) -> float:
    """The value of nDCG (Järvelin and Kekäläinen 2002, discount log2(rank + 1)), P or R."""
    ideal = np.sort(_gains(shape, judged))[::-1]
    if not ideal.any():
        return 0.0
    top = gains[: shape.cutoff]
    if shape.name == "P":
        return float(top.sum() / (shape.cutoff or 1))
    if shape.name == "R":
        return float(top.sum() / ideal.sum())
    ideal = ideal[: shape.cutoff]
    return float(top @ _discounts(len(top)) / (ideal @ _discounts(len(ideal))))


def _discounts(count: int) -> np.ndarray:
    """The weights of the first places in nDCG, float64 ``(count,)``."""
    weights: np.ndarray = 1 / np.log2(np.arange(2, count + 2))
    return weights


def _expect(shape: Shape, ranking: _Ranking) -> float:
    """The mean of the measure over all orders within the groups of tied hits."""
    sizes = ranking.sizes
    if shape.name in _LINEAR:  # the mean of a sum needs only the mean gain of each place
        means = np.add.reduceat(_gains(shape, ranking.grades), ranking.starts) / sizes
        return _sum_gains(shape, np.repeat(means, sizes), ranking.judged)
    is_relevant = (ranking.grades >= shape.level).astype(np.int64)
    relevant = np.add.reduceat(is_relevant, ranking.starts)
    if not relevant.any():
        return 0.0
    if shape.name == "AP":
        return _expect_average_precision(shape, ranking, relevant)
    first = int(np.flatnonzero(relevant)[0])
    return _expect_first(shape, int(ranking.starts[first]), int(sizes[first]), int(relevant[first]))


def _expect_first(shape: Shape, before: int, size: int, relevant: int) -> float:
    """Reciprocal rank and success, which depend on the first group with a relevant hit.

    Among ``n`` tied hits with ``r`` relevant ones, the first relevant one is at place ``i`` with
    the probability ``C(n - i, r - 1) / C(n, r)``: ``r / n`` for the first place, and from place to
    place times ``(n - i - r + 1) / (n - i)``.
    """
    places = np.arange(1, size - relevant + 2)
    steps = (size - places[:-1] - relevant + 1) / (size - places[:-1])
    chances = relevant / size * np.cumprod([1.0, *steps])
    ranks = before + places
    inside = ranks <= (shape.cutoff or ranks[-1])
    if shape.name == "RR":
        chances = chances / ranks
    return float(chances[inside].sum())


def _expect_average_precision(shape: Shape, ranking: _Ranking, relevant: np.ndarray) -> float:
    """Average precision, from the relevant hits of each group (int64 ``(G,)``).

    Each place of a group of ``n`` hits is relevant with the chance ``r / n``. If place ``i`` is,
    then ``(i - 1)(r - 1) / (n - 1)`` hits before it in the group are relevant on average.
    """
    relevant_before = np.cumsum(relevant) - relevant
    total = 0.0
    for group in np.flatnonzero(relevant):
        before = int(ranking.starts[group])
        size = int(ranking.sizes[group])
        count = int(relevant[group])
        last = size
        if shape.cutoff:
            last = min(size, shape.cutoff - before)
        places = np.arange(1, last + 1)
        within = 1 + (places - 1) * ((count - 1) / max(size - 1, 1))
        precisions = (relevant_before[group] + within) / (before + places)
        total += float((count / size * precisions).sum())
    return total / int((ranking.judged >= shape.level).sum())
