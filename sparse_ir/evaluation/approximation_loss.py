"""What an approximation costs: how many of the exact hits it keeps, and what becomes of nDCG@10.

Both runs answer the same queries; the exact one is the measure of overlap, and the baseline of the
difference. It compares runs and knows no index.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from sparse_ir.data.records import Qrels, Run
from sparse_ir.errors import DataError
from sparse_ir.evaluation.measures import evaluate_run
from sparse_ir.evaluation.significance import bootstrap_interval

MEASURE = "nDCG@10"


class Loss(NamedTuple):
    """nDCG@10 beside that of exact search, in the mean over the judged queries."""

    queries: int
    exact: float
    mean: float
    difference: float  # mean - exact
    low: float  # of the difference: bounds of the 95 % interval, a bootstrap over queries
    high: float

    @property
    def kept(self) -> float:
        """Share of the exact nDCG@10."""
        return self.mean / self.exact if self.exact else 1.0


def overlap(exact: Run, run: Run, depth: int) -> float:
    """Mean share of each query's exact top ``depth`` that the run has in its own top ``depth``.

    A query without exact hits has nothing to lose and counts 1. Raises ``DataError`` unless both
    runs answer the same queries.
    """
    if exact.keys() != run.keys() or not exact:
        raise DataError(
            f"the runs answer {len(exact)} and {len(run)} queries, "
            f"{len(exact.keys() & run.keys())} of "
            "them in common; allowed: the same queries, at least one"
        )
    shares = []
    for query_id, hits in exact.items():
        wanted = {doc_id for doc_id, _ in hits[:depth]}
        found = {doc_id for doc_id, _ in run[query_id][:depth]}
        shares.append(len(wanted & found) / len(wanted) if wanted else 1.0)
    return float(np.mean(shares))


def loss(exact: Run, run: Run, qrels: Qrels) -> Loss:
    """What the run loses of nDCG@10 against exact search, over the queries of the qrels that the
    runs answer.

    Raises ``DataError`` when none of them is judged.
    """
    judged = {query_id: hits for query_id, hits in qrels.items() if query_id in exact}
    if not judged:
        raise DataError(
            f"none of the {len(exact)} queries of the run is judged; allowed: qrels "
            "of the same queries"
        )
    before, after = _values(exact, judged), _values(run, judged)
    low, high = bootstrap_interval(after - before)
    return Loss(
        len(judged),
        float(before.mean()),
        float(after.mean()),
        float((after - before).mean()),
        low,
        high,
    )


def _values(run: Run, judged: Qrels) -> np.ndarray:
    """The measure of each judged query, float64; 0 for all where the run has no hit at all."""
    if not any(run.get(query_id) for query_id in judged):
        return np.zeros(len(judged))
    values = evaluate_run(run, judged, MEASURE).per_query[MEASURE]
    return np.array([values[query_id] for query_id in judged])
