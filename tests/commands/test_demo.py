"""The demo from end to end, as a user starts it, and once more over what the first left behind."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from shell import run_command

from sparse_ir.commands import demo
from sparse_ir.commands.demo import SHOWN_QUESTIONS
from sparse_ir.data import pydocs, readers, runs
from sparse_ir.data.records import Query
from sparse_ir.evaluation import measures

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo") / "demo"


@pytest.fixture(scope="module")
def printed(folder: Path) -> str:
    """What the first run of the demo prints."""
    done = run_command("demo", "--model", "lexical", "--output", folder)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.fixture(scope="module")
def report(folder: Path, printed: str) -> dict[str, Any]:
    """The report of a second run over the folder of the first."""
    done = run_command("demo", "--model", "lexical", "--output", folder, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_the_figures_are_sane(report):
    assert set(report["systems"]) == {"sparse_ir", "BM25"}
    assert set(report["packages"]) == {"python"}
    for figures in report["systems"].values():
        assert figures["documents"] > 3000
        assert figures["questions"] > 50
        assert 0.1 < figures["nDCG@10"] < 1
        assert figures["nDCG@10"] < figures["R@100"] <= 1
        assert 0 < figures["megabytes"] < 10
        assert 0 < figures["p50_ms"] < 1000


def test_the_figures_are_those_of_the_runs_that_are_left(report, folder):
    qrels = readers.read_qrels(folder)
    for name, figures in report["systems"].items():
        evaluation = measures.evaluate_run(
            runs.read_run(folder / f"{name}.trec"), qrels, ["nDCG@10", "R@100"]
        )
        assert figures["questions"] == evaluation.num_queries == len(qrels)
        for measure, value in evaluation.mean.items():
            assert figures[measure] == pytest.approx(value, abs=5e-5)


def test_contributions_of_the_matched_terms_add_up_to_the_score(report):
    assert len(report["answers"]) == 3
    for answer in report["answers"]:
        assert len(answer["hits"]) == 3
        scores = [hit["score"] for hit in answer["hits"]]
        assert scores == sorted(scores, reverse=True)
        for hit in answer["hits"]:
            assert hit["matched"]
            assert sum(hit["matched"].values()) == hit["score"]
            assert list(hit["matched"].values()) == sorted(hit["matched"].values(), reverse=True)


def test_the_answers_are_the_first_hits_of_the_run(report, folder):
    run = runs.read_run(folder / "sparse_ir.trec")
    ids = {query.text: query.query_id for query in readers.read_queries(folder)}
    for answer in report["answers"]:
        hits = [(hit["doc_id"], hit["score"]) for hit in answer["hits"]]
        assert hits == run[ids[answer["question"]]][:3]


def test_people_see_questions_passages_and_both_systems(printed, report):
    for answer in report["answers"]:
        assert answer["question"] in printed
        for hit in answer["hits"]:
            assert hit["doc_id"] in printed
            snippet = hit["snippet"]
            assert hit["text"][snippet["start"] : snippet["end"]] == snippet["text"]
            for start, end in snippet["highlights"]:
                assert f"**{snippet['text'][start:end]}**" in printed
    assert any(hit["snippet"]["highlights"] for hit in report["answers"][0]["hits"])
    assert printed.rstrip().endswith(report["ask"])
    words = shlex.split(report["ask"])
    done = run_command(*words[1:-1], "how do I wait for several threads")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("how do I wait for several threads\n")
    for name, figures in report["systems"].items():
        (line,) = [line for line in printed.splitlines() if line.split()[:1] == [name]]
        assert f"{figures['nDCG@10']:.4f}" in line
        assert str(figures["documents"]) in line


def test_the_second_run_does_the_same_and_encodes_nothing_again(folder, report):
    (vectors,) = folder.glob("vectors-*")
    shards = {path: path.stat().st_mtime_ns for path in (vectors / "shards").iterdir()}
    before = [(folder / f"{name}.trec").read_bytes() for name in report["systems"]]
    again = demo.demo(folder, model="lexical")
    assert {path: path.stat().st_mtime_ns for path in (vectors / "shards").iterdir()} == shards
    assert [(folder / f"{name}.trec").read_bytes() for name in report["systems"]] == before
    for name, figures in report["systems"].items():
        assert again["systems"][name]["nDCG@10"] == figures["nDCG@10"]


def test_the_collection_is_a_folder_like_any_other(folder, report):
    queries = list(readers.read_queries(folder))
    doc_ids = {document.doc_id for document in readers.read_documents(folder)}
    assert len(doc_ids) == report["systems"]["BM25"]["documents"]
    qrels = readers.read_qrels(folder)
    assert [query.query_id for query in queries] == list(qrels)
    assert all(doc_id in doc_ids for judged in qrels.values() for doc_id in judged)
    known = {query.query_id: query.text for query in pydocs.read_questions()[0]}
    assert all(known[query.query_id] == query.text for query in queries)


def test_other_questions_are_shown_when_the_chosen_ones_are_not_there():
    others = [Query(f"x{number}", "text") for number in range(5)]
    assert demo.choose_questions(others) == others[:3]
    chosen = [Query(query_id, "text") for query_id in SHOWN_QUESTIONS]
    assert demo.choose_questions([*others, *chosen]) == chosen
