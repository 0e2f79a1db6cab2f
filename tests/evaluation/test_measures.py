"""Measures: worked examples by hand, trec_eval's own code as the other implementation, ties, and
every refusal.
"""

import math
import os
import random

import pytest
import pytrec_eval

from sparse_ir.data.records import rank_hits
from sparse_ir.errors import ConfigError, DataError
from sparse_ir.evaluation.measures import evaluate_run, remove_identical

TREC_NAMES = {
    "nDCG@10": "ndcg_cut_10",
    "nDCG@3": "ndcg_cut_3",
    "R@100": "recall_100",
    "R@5": "recall_5",
    "AP": "map",
    "AP@5": "map_cut_5",
    "P@5": "P_5",
    "P@1": "P_1",
    "RR": "recip_rank",
}


def evaluate_with_trec_eval(run, qrels, name):
    """Per query, by trec_eval's code, without our ordering; queries that are not in the run are
    missing.
    """
    scores = {query_id: dict(hits) for query_id, hits in run.items()}
    results = pytrec_eval.RelevanceEvaluator(qrels, {name}).evaluate(scores)
    return {query_id: values[name] for query_id, values in results.items()}


def make_random_case(seed, num_queries=12, num_documents=30):
    """A run full of ties, graded qrels with zeros and negatives, in shuffled order."""
    rng = random.Random(seed)
    documents = [f"d{number}" for number in range(num_documents)]
    run, qrels = {}, {}
    for number in range(num_queries):
        hits = [
            (doc_id, float(rng.randint(0, 4)))
            for doc_id in rng.sample(documents, rng.randint(1, 20))
        ]
        run[f"q{number}"] = hits
        qrels[f"q{number}"] = {
            doc_id: rng.choice([-1, 0, 1, 2, 3]) for doc_id in rng.sample(documents, 8)
        }
    return run, qrels


def test_worked_example_of_graded_ndcg_and_the_others():
    # Ranks: a (grade 1), x (unjudged), b (grade 2); c (grade 1) is not found.
    run = {"q": [("a", 3.0), ("x", 2.0), ("b", 1.0)]}
    qrels = {"q": {"a": 1, "b": 2, "c": 1}}
    dcg = 1 / math.log2(2) + 2 / math.log2(4)
    ideal = 2 / math.log2(2) + 1 / math.log2(3) + 1 / math.log2(4)
    expected = {
        "nDCG@10": dcg / ideal,
        "R@100": 2 / 3,
        "RR@10": 1.0,
        "AP": (1 / 1 + 2 / 3) / 3,
        "P@5": 2 / 5,
    }
    found = evaluate_run(run, qrels, list(expected))
    assert found.mean == pytest.approx(expected)
    assert found.per_query["AP"] == {"q": pytest.approx(expected["AP"])}


def test_the_default_measures_are_those_of_beir():
    found = evaluate_run({"q": [("a", 1.0)]}, {"q": {"a": 1}})
    assert found.mean == {"nDCG@10": 1.0, "R@100": 1.0}


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("name", TREC_NAMES)
def test_equals_trec_eval_on_runs_full_of_ties(seed, name):
    run, qrels = make_random_case(seed)
    expected = evaluate_with_trec_eval(run, qrels, TREC_NAMES[name])
    assert evaluate_run(run, qrels, name).per_query[name] == pytest.approx(expected, abs=1e-12)


def test_ndcg_without_a_cutoff_takes_negative_grades():
    """trec_eval's code never comes back from some of these."""
    for seed in range(300):
        run, qrels = make_random_case(seed, num_queries=3)
        found = evaluate_run(run, qrels, "nDCG nDCG@10 AP")
        for query_id, judged in qrels.items():
            gains = [max(judged.get(doc_id, 0), 0) for doc_id, _ in rank_hits(run[query_id])]
            ideal = sorted((max(grade, 0) for grade in judged.values()), reverse=True)
            value, best = (
                sum(gain / math.log2(place + 2) for place, gain in enumerate(of))
                for of in (gains, ideal)
            )
            assert found.per_query["nDCG"][query_id] == pytest.approx(value / best if best else 0.0)


@pytest.mark.parametrize("seed", range(20))
def test_rr_with_a_cutoff_keeps_the_tie_rule_of_trec_eval(seed):
    # trec_eval -M 10 cuts its own order at rank 10 and then takes the reciprocal rank.
    run, qrels = make_random_case(seed)
    expected = {}
    for query_id, hits in run.items():
        ranked = sorted(hits, key=lambda hit: (hit[1], hit[0]), reverse=True)
        ranks = [
            rank
            for rank, (doc_id, _) in enumerate(ranked[:10], 1)
            if qrels[query_id].get(doc_id, 0) > 0
        ]
        expected[query_id] = 1 / ranks[0] if ranks else 0.0
    assert evaluate_run(run, qrels, "RR@10").per_query["RR@10"] == pytest.approx(expected)


def test_among_equal_scores_the_higher_doc_id_stands_first_for_every_provider():
    run = {"q": [("a", 1.0), ("b", 1.0)]}
    assert evaluate_run(run, {"q": {"b": 1}}, "P@1 RR RR@1 nDCG@1 AP").mean == dict.fromkeys(
        ["P@1", "RR", "RR@1", "nDCG@1", "AP"], 1.0
    )
    assert evaluate_run(run, {"q": {"a": 1}}, "P@1 RR@1 RR@2 RR").mean == {
        "P@1": 0.0,
        "RR@1": 0.0,
        "RR@2": 0.5,
        "RR": 0.5,
    }


def test_scores_that_differ_only_beyond_float32_are_ties_as_in_trec_eval():
    run = {"q": [("a", 16777217.0), ("b", 16777216.0)]}
    qrels = {"q": {"b": 1}}
    assert evaluate_with_trec_eval(run, qrels, "P_1") == {"q": 1.0}
    assert evaluate_run(run, qrels, "P@1 RR@1").mean == {"P@1": 1.0, "RR@1": 1.0}


def test_doc_ids_are_ordered_by_their_bytes_as_in_trec_eval():
    ids = ["é", "z", "Z", "~", "10", "9", "\uff5e", "\U0001f600"]
    for best in ids:
        run, qrels = {"q": [(doc_id, 1.0) for doc_id in ids]}, {"q": {best: 1}}
        expected = evaluate_with_trec_eval(run, qrels, "recip_rank")["q"]
        found = evaluate_run(run, qrels, "RR RR@100").mean
        assert found == pytest.approx({"RR": expected, "RR@100": expected})


def test_the_mean_is_over_all_judged_queries():
    run = {"found": [("a", 1.0)], "emptied": [], "foreign": [("a", 1.0)]}
    qrels = {"found": {"a": 1}, "emptied": {"a": 1}, "absent": {"a": 1}, "hopeless": {"a": 0}}
    found = evaluate_run(run, qrels, "nDCG@10 RR@10 R@5")
    assert found.mean == {"nDCG@10": 0.25, "RR@10": 0.25, "R@5": 0.25}
    assert found.per_query["RR@10"] == {
        "found": 1.0,
        "emptied": 0.0,
        "absent": 0.0,
        "hopeless": 0.0,
    }
    assert (found.num_queries, found.num_missing, found.num_unjudged) == (4, 3, 1)


def test_a_query_without_relevant_documents_counts_as_zero_as_in_trec_eval():
    run, qrels = {"q": [("a", 1.0)]}, {"q": {"a": 0, "b": -1}}
    for name, trec_name in TREC_NAMES.items():
        assert evaluate_with_trec_eval(run, qrels, trec_name) == {"q": 0.0}
        assert evaluate_run(run, qrels, name).mean == {name: 0.0}


def test_a_level_of_relevance_can_be_asked_for():
    run, qrels = {"q": [("a", 2.0), ("b", 1.0)]}, {"q": {"a": 1, "b": 2}}
    expected = {"RR": 1.0, "RR(rel=2)": 0.5, "AP(rel=2)@10": 0.5}
    assert evaluate_run(run, qrels, list(expected)).mean == expected


def test_other_spellings_of_ir_measures_come_back_in_its_own():
    found = evaluate_run(
        {"q": [("a", 1.0)]}, {"q": {"a": 1}}, "MRR@10 NDCG@10 Recall@100 MAP@100 nDCG@10"
    )
    assert list(found.mean) == ["RR@10", "nDCG@10", "R@100", "AP@100"]


def test_the_order_of_the_lists_does_not_matter_and_input_is_left_alone():
    run, qrels = make_random_case(3)
    before = {query_id: list(hits) for query_id, hits in run.items()}
    ranked = {query_id: rank_hits(hits) for query_id, hits in run.items()}
    assert evaluate_run(run, qrels, "nDCG@10 RR@10") == evaluate_run(ranked, qrels, "nDCG@10 RR@10")
    assert run == before


@pytest.mark.parametrize(
    "name",
    ["nope@10", "ndcg_cut_10", "ndcg_cut.10", "nDCG@ten", "R", "P@2.5", "AP(level=3)", "P@-1"],
)
def test_unknown_measures_are_named(name):
    with pytest.raises(
        ConfigError,
        match=r"measure '.*' is unknown .*; it must be one such as "
        r"nDCG@10",
    ):
        evaluate_run({"q": [("a", 1.0)]}, {"q": {"a": 1}}, name)


@pytest.mark.parametrize("name", ["nDCG@0", "P@0", "RR@0", "P@True"])
def test_a_cutoff_below_one_is_refused(name):
    # trec_eval's code would abort the whole process.
    with pytest.raises(ConfigError, match=r"has the cutoff (0|True); it must be 1 or more"):
        evaluate_run({"q": [("a", 1.0)]}, {"q": {"a": 1}}, name)


@pytest.mark.parametrize("measures", ["", " ", []])
def test_no_measure_is_refused(measures):
    with pytest.raises(ConfigError, match="measures: none given"):
        evaluate_run({"q": [("a", 1.0)]}, {"q": {"a": 1}}, measures)


def test_a_measure_without_its_provider_is_refused(monkeypatch):
    import ir_measures

    monkeypatch.setattr(
        ir_measures.DefaultPipeline, "providers", [ir_measures.providers.registry["judged"]]
    )
    with pytest.raises(ConfigError, match="'P@5' needs a provider that is not installed"):
        evaluate_run({"q": [("a", 1.0)]}, {"q": {"a": 1}}, "P@5")


@pytest.mark.parametrize(
    ("qrels", "message"),
    [
        ({}, "qrels: no judgement; there must be at least one"),
        ({"q": {}}, "qrels, query 'q': no judgement; there must be at"),
    ],
)
def test_empty_qrels_are_refused(qrels, message):
    with pytest.raises(DataError, match=message):
        evaluate_run({"q": [("a", 1.0)]}, qrels)


@pytest.mark.parametrize("run", [{}, {"q": []}, {"other": [("a", 1.0)]}])
def test_a_run_without_a_judged_query_is_refused(run):
    with pytest.raises(DataError, match=r"none of its \d queries has both hits and judgements"):
        evaluate_run(run, {"q": {"a": 1}})


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf])
def test_scores_that_are_not_finite_are_refused(score):
    with pytest.raises(
        DataError,
        match=r"query 'q': score of document 'b' is -?(nan|inf); "
        r"it must be finite",
    ):
        evaluate_run({"q": [("a", 1.0), ("b", score)]}, {"q": {"a": 1}})


@pytest.mark.parametrize(
    ("hit", "qrels", "message"),
    [
        (
            "\ud800",
            {"q": {"a": 1}},
            r"run, query 'q': doc id is '\\ud800'; it must be without white space",
        ),
        (
            " ab",
            {"q": {"a": 1}},
            r"run, query 'q': doc id is ' ab'; it must be without white space",
        ),
        (7, {"q": {"a": 1}}, r"run, query 'q': doc id is 7; it must be a string"),
        (
            "a",
            {"q": {"\udfff": 1}},
            (
                r"qrels, query 'q': doc id is '\\udfff'; it must be without white "
                r"space"
            ),
        ),
        (
            "a",
            {"q": {"a": 1}, "\ud800": {"a": 1}},
            (
                r"qrels: query id is '\\ud800'; it must be without "
                r"white space"
            ),
        ),
        (
            "a",
            {"q": {"a": 1.0}},
            (
                r"qrels, query 'q': relevance of document 'a' is 1\.0; it must be "
                r"an int"
            ),
        ),
    ],
)
def test_what_would_crash_trec_eval_is_refused(hit, qrels, message):
    with pytest.raises(DataError, match=message):
        evaluate_run({"q": [(hit, 1.0)]}, qrels)


def test_a_document_twice_is_refused():
    with pytest.raises(DataError, match="query 'q': a document appears twice"):
        evaluate_run({"q": [("a", 2.0), ("a", 1.0)]}, {"q": {"a": 1}})


def test_remove_identical_drops_only_the_query_itself():
    run = {"d1": [("d1", 9.0), ("d2", 3.0)], "d2": [("d1", 2.0)], "d3": [("d3", 1.0)]}
    assert remove_identical(run) == {"d1": [("d2", 3.0)], "d2": [("d1", 2.0)], "d3": []}
    assert run["d1"] == [("d1", 9.0), ("d2", 3.0)]


@pytest.mark.parametrize("names", [("qa", "qb"), ("x-1", "y-1"), ("1", "2")])
def test_gdeval_measures_queries_of_any_name(names):
    """ERR by hand: grade 1 of at most 4 gives (2^1 - 1) / 2^4 in place 1, half of it in place 2."""
    first, second = names
    run = {first: [("d1", 2.0)], second: [("d9", 2.0), ("d2", 1.0)]}
    found = evaluate_run(
        run, {first: {"d1": 1}, second: {"d2": 1}}, ["ERR@10", "nDCG(dcg='exp-log2')@10"]
    )
    assert found.per_query["ERR@10"] == pytest.approx({first: 1 / 16, second: 1 / 32}, abs=1e-5)
    assert found.per_query["nDCG(dcg='exp-log2')@10"] == pytest.approx(
        {first: 1.0, second: 0.63093}, abs=1e-5
    )


def test_a_gdeval_that_fails_is_an_error_of_one_line(tmp_path, monkeypatch):
    (tmp_path / "perl").write_text("#!/bin/sh\nexit 25\n")
    (tmp_path / "perl").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with pytest.raises(
        DataError,
        match=r"measures ERR@10: gdeval.pl, which computes ERR .* does "
        r"not accept this run",
    ):
        evaluate_run({"q": [("d1", 1.0)]}, {"q": {"d1": 1}}, "ERR@10")


def test_a_missing_parameter_is_named_without_its_address():
    with pytest.raises(
        ConfigError,
        match=r"measure 'INST' is unknown \(invalid param max_rel "
        r"that is missing\)",
    ):
        evaluate_run({"q": [("d", 1.0)]}, {"q": {"d": 1}}, "INST")
