"""The price of an approximation, against figures that can be worked out by hand and against
pytrec_eval.
"""

from __future__ import annotations

import numpy as np
import pytest
import pytrec_eval

from sparse_ir.errors import DataError
from sparse_ir.evaluation import approximation_loss


def hits(*doc_ids: str) -> list[tuple[str, float]]:
    return [(doc_id, 100.0 - place) for place, doc_id in enumerate(doc_ids)]


EXACT = {"q1": hits("a", "b", "c", "d"), "q2": hits("e", "f"), "q3": []}
RUN = {"q1": hits("b", "x", "a", "c"), "q2": hits("f"), "q3": []}


@pytest.mark.parametrize(("depth", "expected"), [
    (1, (0 + 0 + 1) / 3),  # a became b, e became f, nothing to lose
    (2, (1 / 2 + 1 / 2 + 1) / 3),
    (4, (3 / 4 + 1 / 2 + 1) / 3),  # two exact hits are all there are
    (1000, (3 / 4 + 1 / 2 + 1) / 3),
])  # fmt: skip
def test_overlap_is_the_share_of_the_exact_hits(depth, expected):
    assert approximation_loss.overlap(EXACT, RUN, depth) == pytest.approx(expected)
    assert approximation_loss.overlap(EXACT, EXACT, depth) == 1.0


def test_overlap_needs_the_same_queries():
    with pytest.raises(
        DataError,
        match="the runs answer 3 and 1 queries, 1 of them in common; they must answer the same",
    ):
        approximation_loss.overlap(EXACT, {"q1": []}, 10)
    with pytest.raises(DataError, match="at least one"):
        approximation_loss.overlap({}, {}, 10)


def random_runs(seed: int, count: int) -> tuple[dict, dict, dict]:
    """Judged documents on random places; in the second run some have lost them."""
    generator = np.random.default_rng(seed)
    exact, run, qrels = {}, {}, {}
    for number in range(count):
        order = [f"d{document}" for document in generator.permutation(20)]
        exact[f"q{number}"] = hits(*order)
        run[f"q{number}"] = hits(*(order[1:] + order[:1] if number % 3 else order))
        qrels[f"q{number}"] = {
            f"d{document}": 1 + int(document) % 3 for document in generator.permutation(20)[:4]
        }
    return exact, run, qrels


def test_loss_is_the_mean_difference_of_trec_evals_ndcg():
    exact, run, qrels = random_runs(1, 60)
    evaluator = pytrec_eval.RelevanceEvaluator(qrels, {"ndcg_cut_10"})
    values = [
        {
            query: found["ndcg_cut_10"]
            for query, found in evaluator.evaluate(
                {query: dict(pairs) for query, pairs in system.items()}
            ).items()
        }
        for system in (exact, run)
    ]
    differences = [values[1][query] - values[0][query] for query in qrels]
    found = approximation_loss.loss(exact, run, qrels)
    assert found.queries == 60
    assert found.exact == pytest.approx(np.mean(list(values[0].values())))
    assert found.difference == pytest.approx(np.mean(differences))
    assert found.mean - found.exact == pytest.approx(found.difference)
    assert found.kept == pytest.approx(found.mean / found.exact)
    spread = 1.96 * np.std(differences) / np.sqrt(60)
    assert found.low == pytest.approx(found.difference - spread, abs=spread / 5)
    assert found.high == pytest.approx(found.difference + spread, abs=spread / 5)


def test_a_run_loses_nothing_against_itself():
    exact, _, qrels = random_runs(2, 10)
    found = approximation_loss.loss(exact, exact, qrels)
    assert (found.difference, found.low, found.high, found.kept) == (0, 0, 0, 1)


def test_only_judged_queries_that_were_asked_count():
    exact, run, qrels = random_runs(3, 9)
    some = (
        {query: exact[query] for query in list(exact)[:5]},
        {query: run[query] for query in list(exact)[:5]},
    )
    more = {**qrels, "never asked": {"d1": 1}}
    assert approximation_loss.loss(*some, more) == approximation_loss.loss(
        *some, {query: qrels[query] for query in some[0]}
    )
    with pytest.raises(DataError, match="none of the 5 queries of the run is judged"):
        approximation_loss.loss(*some, {"other": {"d1": 1}})


def test_a_run_without_hits_loses_everything():
    exact, _, qrels = random_runs(4, 6)
    found = approximation_loss.loss(exact, {query: [] for query in exact}, qrels)
    assert (found.mean, found.kept, found.difference) == (0, 0, pytest.approx(-found.exact))
    assert (
        approximation_loss.loss(
            {query: [] for query in exact}, {query: [] for query in exact}, qrels
        ).kept
        == 1
    )
