"""Conventions by hand and beside the tools that have them; ranges over ties beside all orders
counted out.
"""

from __future__ import annotations

import itertools
import math
import random
from typing import Any

import numpy as np
import pytest
import pytrec_eval

from sparse_ir.data import records
from sparse_ir.data.records import Qrels, Run
from sparse_ir.errors import ConfigError, DataError
from sparse_ir.evaluation.conventions import (
    RULES,
    count_tied_queries,
    measure_conventions,
    measure_ties,
)
from sparse_ir.evaluation.measures import evaluate_run

G2 = 1 / math.log2(3)  # gain of the second rank
MEASURES = (
    "nDCG@10",
    "nDCG@3",
    "nDCG",
    "AP",
    "AP@3",
    "P@1",
    "P@5",
    "R@2",
    "R@100",
    "RR",
    "RR@2",
    "Success@1",
    "Success@3",
    "AP(rel=2)",
    "RR(rel=2)@3",
    "P(rel=2)@2",
)

# the run in the order of its file, and judgements: what each query is about stands beside it
WRITTEN: Run = {
    "q1": [("a", 1.0), ("b", 1.0)],  # a tie that a lower doc_id wins
    "q3": [("c", 2.0)],  # judged, and not relevant
    "q4": [("q4", 3.0), ("x", 2.0)],  # the first hit is the query itself
    "q5": [("y", 1.0), ("z", 2.0)],  # scores that contradict the order of the file
    "q6": [("c", 1.0), ("b", 1.0), ("a", 1.0)],  # a tie that a higher doc_id wins
}
JUDGED: Qrels = {
    "q1": {"a": 1},
    "q2": {"a": 1},
    "q3": {"c": 0},
    "q4": {"x": 2, "w": 1},
    "q5": {"y": 1},
    "q6": {"c": 1},
}


def make_case(
    seed: int, *, queries: int = 8, documents: int = 12, levels: int = 3
) -> tuple[Run, Qrels]:
    """A run full of ties, hits in shuffled order, and graded judgements; some queries are not
    answered.
    """
    dice = random.Random(seed)
    ids = [f"d{number}" for number in range(documents)]
    names = [f"q{number}" for number in range(queries)]
    run = {
        name: [
            (doc_id, float(dice.randint(1, levels)))
            for doc_id in dice.sample(ids, dice.randint(1, 8))
        ]
        for name in names
        if dice.random() < 0.9
    }
    return run, {
        name: {doc_id: dice.choice([-1, 0, 1, 1, 2, 3]) for doc_id in dice.sample(ids, 6)}
        for name in names
    }


# --- conventions ---


def test_six_conventions_give_six_reciprocal_ranks():
    ranks = {
        "trec_eval -c": (1 / 2 + 0 + 0 + 1 / 2 + 1 / 2 + 1) / 6,
        "trec_eval": (1 / 2 + 0 + 1 / 2 + 1 / 2 + 1) / 5,
        "BEIR": (1 + 0 + 0 + 1 + 1 / 2 + 1) / 6,
        "sentence-transformers": (1 + 0 + 1 / 2 + 1 / 2 + 1 / 3) / 5,
        "MS MARCO": (1 + 0 + 1 + 1 / 2 + 1 + 1) / 6,
        "ir_measures": (1 + 0 + 0 + 1 / 2 + 1 / 2 + 1 / 3) / 6,
    }
    assert len({round(value, 6) for value in ranks.values()}) == 6
    found = measure_conventions(WRITTEN, JUDGED, "RR@10")
    assert {name: values["RR@10"] for name, values in found.items()} == pytest.approx(ranks)
    assert list(found) == list(RULES)


def test_ndcg_by_hand():
    graded = 2 * G2 / (2 + G2)  # of q4 behind itself
    expected = {
        "trec_eval -c": (G2 + 0 + 0 + graded + G2 + 1) / 6,
        "trec_eval": (G2 + 0 + graded + G2 + 1) / 5,
        "BEIR": (G2 + 0 + 2 / (2 + G2) + G2 + 1) / 5,
        "sentence-transformers": (1 + 0 + G2 / (1 + G2) + G2 + 1 / 2) / 5,
        "ir_measures": (G2 + 0 + 0 + graded + G2 + 1) / 6,
    }
    found = measure_conventions(WRITTEN, JUDGED, "nDCG@10")
    assert found["MS MARCO"]["nDCG@10"] is None
    assert {name: found[name]["nDCG@10"] for name in expected} == pytest.approx(expected)


def test_average_precision_and_accuracy_by_hand():
    run: Run = {"q": [("a", 2.0), ("x", 1.0)], "none": []}
    qrels: Qrels = {"q": {"a": 1, "b": 1, "c": 2}, "none": {"a": 1}}
    found = measure_conventions(run, qrels, "AP@1 Success@1 AP")
    assert [found[name]["AP@1"] for name in RULES] == pytest.approx(
        [1 / 6, 1 / 3, 1 / 6, 1 / 2, None, 1 / 6], nan_ok=True
    )
    assert found["BEIR"]["Success@1"] == found["sentence-transformers"]["Success@1"] == 0.5
    # neither prints an average precision without a cut-off
    assert [found[name]["AP"] for name in ("BEIR", "sentence-transformers", "MS MARCO")] == [
        None,
        None,
        None,
    ]
    assert found["trec_eval"]["AP"] == pytest.approx(1 / 3)


@pytest.mark.parametrize("seed", range(8))
def test_means_over_answered_queries_are_those_of_beirs_computation(seed):
    run, qrels = make_case(seed)
    names = {"nDCG@10": "ndcg_cut_10", "AP@10": "map_cut_10", "R@100": "recall_100", "P@5": "P_5"}
    values = pytrec_eval.RelevanceEvaluator(qrels, set(names.values())).evaluate(
        {query_id: dict(hits) for query_id, hits in run.items()}
    )
    expected = {
        name: sum(of[theirs] for of in values.values()) / len(values)
        for name, theirs in names.items()
    }
    found = measure_conventions(run, qrels, list(names))
    assert found["BEIR"] == pytest.approx(expected)
    assert found["trec_eval"] == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(8))
def test_values_are_those_of_the_evaluator_of_sentence_transformers(seed):
    from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator

    run, qrels = make_case(seed)
    relevant = {
        query_id: {doc_id for doc_id, grade in of.items() if grade > 0}
        for query_id, of in qrels.items()
    }
    evaluator = InformationRetrievalEvaluator(
        dict.fromkeys(qrels, ""),
        {f"d{number}": "" for number in range(12)},
        relevant,
        mrr_at_k=[2],
        ndcg_at_k=[3, 10],
        accuracy_at_k=[1],
        precision_recall_at_k=[5],
        map_at_k=[2, 100],
    )
    theirs = evaluator.compute_metrics(
        [
            [{"corpus_id": doc_id, "score": score} for doc_id, score in run.get(name, [])]
            for name in evaluator.queries_ids
        ]
    )
    names = {
        "RR@2": ("mrr@k", 2),
        "nDCG@3": ("ndcg@k", 3),
        "nDCG@10": ("ndcg@k", 10),
        "Success@1": ("accuracy@k", 1),
        "P@5": ("precision@k", 5),
        "R@5": ("recall@k", 5),
        "AP@2": ("map@k", 2),
        "AP@100": ("map@k", 100),
    }
    expected = {name: float(theirs[key][cutoff]) for name, (key, cutoff) in names.items()}
    assert measure_conventions(run, qrels, list(names))["sentence-transformers"] == pytest.approx(
        expected
    )


@pytest.mark.parametrize("seed", range(8))
def test_mrr_is_that_of_the_script_of_ms_marco(seed):
    run, qrels = make_case(seed)
    total = 0.0
    for query_id, hits in run.items():  # rank by rank, as the script reads its candidates
        for rank, (doc_id, _) in enumerate(hits[:10]):
            if doc_id in qrels.get(query_id, {}):
                total += 1 / (rank + 1)
                break
    ranked = {query_id: records.rank_hits(hits) for query_id, hits in run.items()}
    assert measure_conventions(ranked, qrels, "RR@10", run)["MS MARCO"]["RR@10"] == pytest.approx(
        total / len(qrels)
    )


def test_measures_that_only_trec_eval_has():
    found = measure_conventions(WRITTEN, JUDGED, "Rprec Bpref")
    for values in (found["BEIR"], found["sentence-transformers"], found["MS MARCO"]):
        assert set(values.values()) == {None}
    assert found["trec_eval -c"]["Rprec"] == pytest.approx(found["ir_measures"]["Rprec"])


# --- ties ---


def all_orders(hits: list[tuple[str, float]]) -> list[list[str]]:
    """Every order of the hits that their scores allow."""
    groups = [
        [doc_id for doc_id, _ in group]
        for _, group in itertools.groupby(
            records.rank_hits(hits), key=lambda hit: np.float32(hit[1])
        )
    ]
    return [
        list(itertools.chain.from_iterable(order))
        for order in itertools.product(*map(itertools.permutations, groups))
    ]


def counted_out(run: Run, qrels: Qrels, measure: str) -> list[tuple[float, float, float]]:
    """Least, mean and largest value of each query, from trec_eval's code on every order."""
    found = []
    for query_id, judgements in qrels.items():
        orders = all_orders(run.get(query_id, []))
        many = {
            str(number): [(doc_id, -float(rank)) for rank, doc_id in enumerate(order)]
            for number, order in enumerate(orders)
        }
        if not run.get(query_id):
            found.append((0.0, 0.0, 0.0))
            continue
        values = list(
            evaluate_run(many, dict.fromkeys(many, judgements), measure).per_query[measure].values()
        )
        found.append((min(values), sum(values) / len(values), max(values)))
    return found


@pytest.mark.parametrize("measure", MEASURES)
def test_ranges_are_those_of_all_orders(measure):
    for seed in range(6):
        run, qrels = make_case(seed, queries=4, levels=4)
        found = measure_ties(run, qrels, measure)[measure]
        least, mean, most = np.array(counted_out(run, qrels, measure)).mean(axis=0)
        assert found[:2] == pytest.approx((least, mean), abs=1e-12)
        assert found.maximum == pytest.approx(most, abs=1e-12)
        assert found.rule == pytest.approx(
            evaluate_run(run, qrels, measure).mean[measure], abs=1e-12
        )


def test_a_tie_by_hand():
    # two of four tied hits are relevant: the first relevant one stands at place 1, 2, 3 with
    # chances 3/6, 2/6, 1/6
    run: Run = {"q": [(doc_id, 1.0) for doc_id in "abcd"]}
    found = measure_ties(run, {"q": {"a": 1, "b": 1}}, "RR P@1 Success@2 R@2 nDCG@10 AP")
    assert found["RR"] == pytest.approx((1 / 3, 3 / 6 + 2 / 6 / 2 + 1 / 6 / 3, 1 / 3, 1.0, 1))
    assert found["P@1"] == (0.0, 0.5, 0.0, 1.0, 1)
    assert found["Success@2"] == pytest.approx((0.0, 5 / 6, 0.0, 1.0, 1))
    assert found["R@2"] == pytest.approx((0.0, 0.5, 0.0, 1.0, 1))
    ideal = 1 + G2
    assert found["nDCG@10"][:2] == pytest.approx(
        ((1 / 2 + 1 / math.log2(5)) / ideal, (1 + G2 + 1 / 2 + 1 / math.log2(5)) / 2 / ideal)
    )
    # the pairs of places 12 13 14 23 24 34
    assert found["AP"].expected == pytest.approx(
        sum((1 / i + 2 / j) / 2 for i, j in itertools.combinations((1, 2, 3, 4), 2)) / 6
    )


def test_without_ties_there_is_one_value():
    run: Run = {"q": [("a", 3.0), ("b", 2.0)], "p": [("b", 1.0)]}
    found = measure_ties(run, {"q": {"b": 1}, "p": {"a": 1}, "gone": {"a": 1}}, "RR")["RR"]
    assert found == (1 / 6, 1 / 6, 1 / 6, 1 / 6, 0)
    assert count_tied_queries(run) == 0


def test_scores_that_differ_beyond_float32_are_ties():
    run: Run = {"q": [("a", 16777217.0), ("b", 16777216.0)], "p": []}
    assert count_tied_queries(run) == 1
    assert measure_ties(run, {"q": {"a": 1}}, "RR")["RR"] == (0.5, 0.75, 0.5, 1.0, 1)


def test_a_long_tie_is_no_trouble():
    hits = [(f"d{number}", 1.0) for number in range(5000)]
    found = measure_ties(
        {"q": hits}, {"q": {f"d{number}": 1 for number in range(2500)}}, "RR AP nDCG@10 Success@10"
    )
    chances = [math.comb(5000 - place, 2499) / math.comb(5000, 2500) for place in range(1, 12)]
    first = sum(chance / place for place, chance in enumerate(chances, 1))
    assert found["RR"].expected == pytest.approx(first, abs=1e-4)
    assert found["Success@10"].expected == pytest.approx(sum(chances[:10]))
    assert found["nDCG@10"].expected == pytest.approx(0.5)


def test_what_has_no_range():
    with pytest.raises(
        ConfigError,
        match="measure 'Rprec' has no range over ties here; it must be one of nDCG, AP, P, R, RR",
    ):
        measure_ties(WRITTEN, JUDGED, "Rprec")
    with pytest.raises(DataError, match="none of its 0 queries"):
        measure_ties({}, JUDGED, "RR")


# --- the verb ---


def test_the_verb_shows_both(tmp_path):
    from sparse_ir.commands import evaluating

    lines = [
        f"{query_id} Q0 {doc_id} {rank} {score} x\n"
        for query_id, hits in WRITTEN.items()
        for rank, (doc_id, score) in enumerate(hits, 1)
    ]
    (tmp_path / "run").write_text("".join(lines))
    (tmp_path / "qrels").write_text(
        "".join(
            f"{query_id} 0 {doc_id} {grade}\n"
            for query_id, of in JUDGED.items()
            for doc_id, grade in of.items()
        )
    )
    options: dict[str, Any] = {"measures": "RR@10, nDCG@10"}
    plain = evaluating.evaluate(tmp_path / "run", str(tmp_path / "qrels"), **options)
    report = evaluating.evaluate(
        tmp_path / "run", str(tmp_path / "qrels"), ties=True, conventions=True, **options
    )
    assert {key: report[key] for key in plain} == plain
    assert report["conventions"] == measure_conventions(WRITTEN, JUDGED, "RR@10 nDCG@10")
    assert report["ties"]["RR@10"]["rule"] == pytest.approx(plain["RR@10"])
    assert (report["queries_with_ties"], report["ties"]["RR@10"]["queries"]) == (2, 2)
    assert [rule.split(":")[0] for rule in report["rules"]] == list(report["conventions"])
    clean = evaluating.evaluate(
        tmp_path / "run", str(tmp_path / "qrels"), conventions=True, remove_query=True, **options
    )
    assert clean["conventions"]["trec_eval"]["nDCG@10"] == pytest.approx(
        report["conventions"]["BEIR"]["nDCG@10"]
    )
