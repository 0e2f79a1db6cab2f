"""The same run under the conventions of others, and what the order of tied hits could make of it.

Tools that print ``nDCG@10`` differ in the queries of their mean, in gains, and in the order of
equal scores: ``RULES``. Ties leave a measure a range. Its ends are exact: each measure here grows
when a better hit moves up, so a group of tied hits gives most with its best first and least with
its best last. So is its mean over all orders, in closed form, after McSherry and Najork 2008,
"Computing information retrieval performance measures efficiently in the presence of tied scores"
(ECIR), extended to cut-offs. Hits that tie with the last one and were never retrieved are unknown
to both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from sparse_ir.data.records import Qrels, Run, rank_hits
from sparse_ir.errors import ConfigError
from sparse_ir.evaluation.measures import (
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
    "judged queries, ties as "
    "written",
    "sentence-transformers": "mean over queries with a relevant document; gains are 0 or 1; AP@k "
    "divided by at most k; "
    "ties by doc_id, ascending",
    "MS MARCO": "MRR alone, over all judged queries; whatever is judged is relevant; hits in the "
    "order written, "
    "whatever their scores",
    "ir_measures": "mean over all judged queries; ties as each provider has them: RR@k by doc_id "
    "ascending, others "
    "descending",
}
_SHAPES = ("nDCG", "AP", "P", "R", "RR", "Success")


class Shape(NamedTuple):
    """A measure that is worked out here."""

    name: str  # one of nDCG, AP, P, R, RR, Success
    cutoff: int | None
    # the grade from which on a document is relevant; nDCG takes the grade as its gain
    level: int = 1


class Range(NamedTuple):
    """What the order of tied hits makes of the mean of a measure over all judged queries."""

    minimum: float
    expected: float  # over all orders of the tied hits, each as likely
    rule: float  # in the order of this package and of trec_eval: by doc_id, descending
    maximum: float
    queries: int  # whose value depends on that order


def measure_conventions(
    run: Run, qrels: Qrels, measures: Sequence[str] | str, written: Run | None = None
) -> dict[str, dict[str, float | None]]:
    """Convention -> measure -> mean, by the names in ``RULES``; None where its tool has no such
    measure.

    ``written`` is the run in the order of its file (default: that of ``run``), which two of the
    conventions keep. None of the values is rounded, though BEIR prints five digits. Errors as in
    ``measures.evaluate_run``.
    """
    written = run if written is None else written
    found = evaluate_run(run, qrels, measures)
    parsed = parse_measures(measures)
    answered = [query_id for query_id in qrels if run.get(query_id)]
    table: dict[str, dict[str, float | None]] = {
        "trec_eval -c": dict(found.mean),
        "trec_eval": {
            name: sum(values[query_id] for query_id in answered) / len(answered)
            for name, values in found.per_query.items()
        },
    }
    shapes = {name: find_shape(measure) for name, measure in parsed.items()}
    for convention, measure in (
        ("BEIR", _beir),
        ("sentence-transformers", _sentence_transformers),
        ("MS MARCO", _ms_marco),
    ):
        known = measure(
            {name: shape for name, shape in shapes.items() if shape and shape.cutoff},
            written,
            qrels,
        )
        table[convention] = {name: known.get(name) for name in shapes}
    return {**table, "ir_measures": _ir_measures(parsed, run, qrels)}


# grades of a query's hits in some order, and of its judged documents
Graded = tuple[np.ndarray, np.ndarray]
Shapes = Mapping[str, Shape]  # with a cut-off: none of these tools prints a measure without


def _beir(shapes: Shapes, written: Run, qrels: Qrels) -> dict[str, float | None]:
    """``EvaluateRetrieval.evaluate``, and its ``mrr`` and ``top_k_accuracy``, which divide by all
    judged queries.
    """
    judged = {
        query_id: hits for query_id, hits in remove_identical(written).items() if query_id in qrels
    }
    ranked = [_grade(rank_hits(hits), qrels[query_id]) for query_id, hits in judged.items()]
    listed = [
        _grade(sorted(hits, key=lambda hit: -hit[1]), qrels[query_id])
        for query_id, hits in judged.items()
    ]
    return {
        name: _average(shape, listed, len(qrels))
        if shape.name in ("RR", "Success")
        else _average(shape, ranked)
        for name, shape in shapes.items()
    }


def _sentence_transformers(shapes: Shapes, written: Run, qrels: Qrels) -> dict[str, float | None]:
    """``InformationRetrievalEvaluator``: nothing but a set of relevant documents for each query."""
    ordered = {
        query_id: sorted(written.get(query_id, []), key=lambda hit: (-np.float32(hit[1]), hit[0]))
        for query_id in qrels
    }
    by_level: dict[int, list[Graded]] = {}
    for level in {shape.level for shape in shapes.values()}:
        relevant = {
            query_id: {doc_id: 1 for doc_id, grade in of.items() if grade >= level}
            for query_id, of in qrels.items()
        }
        by_level[level] = [_grade(ordered[query_id], of) for query_id, of in relevant.items() if of]
    return {
        name: _average(shape._replace(level=1), by_level[shape.level], capped=True)
        for name, shape in shapes.items()
    }


def _ms_marco(shapes: Shapes, written: Run, qrels: Qrels) -> dict[str, float | None]:
    """The official script of the passage ranking task, for any cut-off; its own is 10."""
    listed = [
        _grade(written.get(query_id, []), dict.fromkeys(judgements, 1))
        for query_id, judgements in qrels.items()
    ]
    return {
        name: _average(shape._replace(level=1), listed)
        for name, shape in shapes.items()
        if shape.name == "RR"
    }


def _grade(ordered: Sequence[tuple[str, float]], judgements: Mapping[str, int]) -> Graded:
    return _grades(ordered, judgements), np.array(list(judgements.values()))


def _average(
    shape: Shape, queries: Sequence[Graded], count: int | None = None, capped: bool = False
) -> float | None:
    """The sum over the queries divided by ``count``; ``capped``: AP@k is divided by at most k."""
    values = [_value(shape, grades, judged) for grades, judged in queries]
    if capped and shape.name == "AP" and shape.cutoff:
        values = [
            value * len(judged) / min(len(judged), shape.cutoff)
            for value, (_, judged) in zip(values, queries, strict=True)
        ]
    return sum(values) / (count or len(values)) if values else None


def _ir_measures(parsed: Mapping[str, Any], run: Run, qrels: Qrels) -> dict[str, float | None]:
    import ir_measures

    numbers = {query_id: str(number) for number, query_id in enumerate(qrels, 1)}
    scores = {
        query_id: dict(hits) for query_id, hits in number_queries(run, numbers).items() if hits
    }
    found = ir_measures.calc_aggregate(
        list(parsed.values()), number_queries(qrels, numbers), scores
    )
    return {name: float(found[measure]) for name, measure in parsed.items()}


def measure_ties(run: Run, qrels: Qrels, measures: Sequence[str] | str) -> dict[str, Range]:
    """Measure -> its range over all orders of hits whose scores are equal as float32, for
    trec_eval's ``-c``.

    Raises ``ConfigError`` for a measure other than nDCG, AP, P, R, RR and Success with their usual
    gains, and errors as ``measures.evaluate_run``.
    """
    evaluate_run(run, qrels, measures)  # refuses what cannot be measured
    rankings = [
        _read_ranking(run.get(query_id, []), judgements) for query_id, judgements in qrels.items()
    ]
    ranges = {}
    for name, parsed in parse_measures(measures).items():
        shape = find_shape(parsed)
        if shape is None:
            raise ConfigError(
                f"measure {name!r} has no range over ties here, allowed: {', '.join(_SHAPES)}"
            )
        values = np.array([_range(shape, ranking) for ranking in rankings])
        least, expected, rule, most = values.mean(axis=0).tolist()
        ranges[name] = Range(
            least, expected, rule, most, int((values[:, 3] - values[:, 0] > 1e-12).sum())
        )
    return ranges


def count_tied_queries(run: Run) -> int:
    """Queries in which at least two hits have the same score as float32."""
    return sum(_read_ranking(hits, {}).has_ties for hits in run.values())


class _Ranking(NamedTuple):
    """The hits of a query by the rule, in groups of equal scores."""

    grades: np.ndarray  # float64 (N,), of the hits
    starts: np.ndarray  # int64 (G,), of the groups: the first is 0
    judged: np.ndarray  # int64 (M,), grades of all judged documents

    @property
    def has_ties(self) -> bool:
        return len(self.starts) < len(self.grades)

    @property
    def sizes(self) -> np.ndarray:
        """Hits of each group."""
        return np.diff(self.starts, append=len(self.grades))


def _read_ranking(hits: Sequence[tuple[str, float]], judgements: Mapping[str, int]) -> _Ranking:
    ranked = rank_hits(hits)
    scores = np.array([score for _, score in ranked], dtype=np.float32)
    differs = np.concatenate([np.ones(min(len(scores), 1), dtype=bool), scores[1:] != scores[:-1]])
    return _Ranking(
        _grades(ranked, judgements), np.flatnonzero(differs), np.array(list(judgements.values()))
    )


def _range(shape: Shape, ranking: _Ranking) -> tuple[float, ...]:
    """Minimum, expected value, value by the rule, and maximum, of one query."""
    rule = _value(shape, ranking.grades, ranking.judged)
    if not ranking.has_ties:
        return (rule,) * 4
    groups = np.repeat(np.arange(len(ranking.starts)), ranking.sizes)
    worst, best = (ranking.grades[np.lexsort((sign * ranking.grades, groups))] for sign in (1, -1))
    return (
        _value(shape, worst, ranking.judged),
        _expect(shape, ranking),
        rule,
        _value(shape, best, ranking.judged),
    )


def find_shape(measure: Any) -> Shape | None:
    """An ``ir_measures`` measure as one that is worked out here; None for any other, or with other
    parameters.
    """
    parameters = dict(measure.params)
    cutoff, level = parameters.pop("cutoff", None), parameters.pop("rel", 1)
    known = measure.NAME in _SHAPES and not parameters
    return Shape(measure.NAME, cutoff, level) if known else None


def _grades(hits: Iterable[tuple[str, float]], judgements: Mapping[str, int]) -> np.ndarray:
    return np.array([judgements.get(doc_id, 0) for doc_id, _ in hits], dtype=np.float64)


def _value(shape: Shape, grades: np.ndarray, judged: np.ndarray) -> float:
    """The measure of one ranking: ``grades`` of its hits from the first on, and of all judged
    documents.
    """
    if shape.name in _LINEAR:
        return _linear_value(shape, _gains(shape, grades), judged)
    ranks = np.flatnonzero(grades[: shape.cutoff] >= shape.level) + 1
    if not len(ranks):
        return 0.0
    if shape.name == "AP":
        return float((np.arange(1, len(ranks) + 1) / ranks).sum() / (judged >= shape.level).sum())
    return 1.0 if shape.name == "Success" else float(1 / ranks[0])


def _expect(shape: Shape, ranking: _Ranking) -> float:
    """The mean of the measure over all orders within the groups of tied hits."""
    sizes = ranking.sizes
    if shape.name in _LINEAR:  # so the mean of each place will do
        means = np.add.reduceat(_gains(shape, ranking.grades), ranking.starts) / sizes
        return _linear_value(shape, np.repeat(means, sizes), ranking.judged)
    relevant = np.add.reduceat((ranking.grades >= shape.level).astype(np.int64), ranking.starts)
    if not relevant.any():
        return 0.0
    if shape.name == "AP":
        return _expect_average_precision(shape, ranking, relevant)
    first = int(np.flatnonzero(relevant)[0])
    return _expect_first(shape, int(ranking.starts[first]), int(sizes[first]), int(relevant[first]))


_LINEAR: dict[str, Callable[[int], np.ndarray]] = {  # name -> weights of the first places
    "nDCG": lambda count: 1 / np.log2(np.arange(2, count + 2)),
    "P": np.ones,
    "R": np.ones,
}


def _gains(shape: Shape, grades: np.ndarray) -> np.ndarray:
    """nDCG: the grade, and 0 for a negative one, as in trec_eval; P and R: 1 for a relevant hit."""
    return (
        np.maximum(grades, 0.0)
        if shape.name == "nDCG"
        else (grades >= shape.level).astype(np.float64)
    )


def _linear_value(shape: Shape, gains: np.ndarray, judged: np.ndarray) -> float:
    """nDCG (Jarvelin and Kekalainen 2002, with log2(rank + 1)), precision and recall: weighted sums
    of gains.
    """
    all_gains = np.sort(_gains(shape, judged))[::-1]
    if not all_gains.any():
        return 0.0
    weigh = _LINEAR[shape.name]
    top, ideal = (
        gains[: shape.cutoff],
        all_gains if shape.name == "R" else all_gains[: shape.cutoff],
    )
    norm = float(shape.cutoff or 1) if shape.name == "P" else float(weigh(len(ideal)) @ ideal)
    return float(weigh(len(top)) @ top / norm)


def _expect_first(shape: Shape, before: int, size: int, relevant: int) -> float:
    """Reciprocal rank and success: the first relevant hit is one of the first group with a relevant
    hit.

    Among ``n`` tied hits with ``r`` relevant ones it stands at place ``i`` with the probability
    ``C(n - i, r - 1) / C(n, r)``: ``r / n`` for the first place, and from place to place times
    ``(n - i - r + 1) / (n - i)``.
    """
    places = np.arange(1, size - relevant + 2)
    steps = (size - places[:-1] - relevant + 1) / (size - places[:-1])
    chances = relevant / size * np.cumprod([1.0, *steps])
    ranks = before + places
    inside = ranks <= (shape.cutoff or ranks[-1])
    return float((chances / (1 if shape.name == "Success" else ranks))[inside].sum())


def _expect_average_precision(shape: Shape, ranking: _Ranking, relevant: np.ndarray) -> float:
    """Each place of a group is relevant with the chance ``r / n``; if it is, so are, before it in
    the group, ``(i - 1)(r - 1) / (n - 1)`` on average.
    """
    found, sizes, value = np.cumsum(relevant) - relevant, ranking.sizes, 0.0
    for group in np.flatnonzero(relevant):
        before, size, count = int(ranking.starts[group]), int(sizes[group]), int(relevant[group])
        last = min(size, (shape.cutoff or before + size) - before)
        places = np.arange(1, last + 1)
        within = 1 + (places - 1) * ((count - 1) / max(size - 1, 1))
        value += float((count / size * (found[group] + within) / (before + places)).sum())
    return value / int((ranking.judged >= shape.level).sum())
