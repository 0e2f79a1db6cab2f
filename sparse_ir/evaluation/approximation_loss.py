"""What an approximation loses: the share of the exact hits that it keeps, and its nDCG@10.

Both runs answer the same queries. Overlap and loss are measured against the exact one.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from sparse_ir.data.records import Qrels, Run
from sparse_ir.errors import DataError
from sparse_ir.evaluation.measures import evaluate_run
from sparse_ir.evaluation.significance import bootstrap_interval

MEASURE = "nDCG@10"


class ApproximationLoss(NamedTuple):
    """nDCG@10 beside that of exact search, in the mean over the judged queries."""

    queries: int
    exact: float
    mean: float
    difference: float  # mean - exact
    low: float  # of the difference: bounds of the 95 % interval, a bootstrap over queries
    high: float

    @property
    def kept(self) -> float:
        """Share of the exact nDCG@10; 1 if that is 0."""
        if not self.exact:
            return 1.0
        return self.mean / self.exact


def overlap(exact: Run, run: Run, depth: int) -> float:
    """Mean share of each query's exact top ``depth`` that is in the run's top ``depth``.

    A query without exact hits has nothing to lose and counts as 1. Raises ``DataError`` unless both
    runs answer the same queries.
    """
    if exact.keys() != run.keys() or not exact:
        common = exact.keys() & run.keys()
        raise DataError(
            f"the runs answer {len(exact)} and {len(run)} queries, {len(common)} of them in "
            "common; they must answer the same queries, at least one"
        )
    shares = []
    for query_id, hits in exact.items():
        wanted = dict(hits[:depth]).keys()
        kept = wanted & dict(run[query_id][:depth]).keys()
        if wanted:
            shares.append(len(kept) / len(wanted))
        else:
            shares.append(1.0)
    return float(np.mean(shares))


def loss(exact: Run, run: Run, qrels: Qrels) -> ApproximationLoss:
    """What the run loses of nDCG@10 against exact search, over the judged queries of the runs.

    Raises ``DataError`` if none of them is judged.
    """
    judged = {query_id: hits for query_id, hits in qrels.items() if query_id in exact}
    if not judged:
        raise DataError(
            f"none of the {len(exact)} queries of the run is judged; the qrels must be of the same "
            "queries"
        )
    before = _measure_queries(exact, judged)
    after = _measure_queries(run, judged)
    differences = after - before
    low, high = bootstrap_interval(differences)
    return ApproximationLoss(
        queries=len(judged),
        exact=float(before.mean()),
        mean=float(after.mean()),
        difference=float(differences.mean()),
        low=low,
        high=high,
    )


def _measure_queries(run: Run, judged: Qrels) -> np.ndarray:
    """nDCG@10 of each judged query, float64 ``(Q,)``; 0 for all if the run has no hit at all."""
    if not any(map(run.get, judged)):
        return np.zeros(len(judged))
    values = evaluate_run(run, judged, MEASURE).per_query[MEASURE]
    return np.array(list(map(values.__getitem__, judged)))
