"""Rows: worked measures by hand, files that are the same whenever written, verification, and what
it refuses.
"""

from __future__ import annotations

import gzip
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from shell import read_tree

import sparse_ir
from sparse_ir import environment
from sparse_ir.benchmark import averages, verification
from sparse_ir.benchmark import results as results_module
from sparse_ir.benchmark.columns import measure_names, names_for_ir_measures
from sparse_ir.benchmark.results import (
    RESULT,
    TIMING,
    measure,
    read_row,
    read_rows,
    row_folder,
    sha256_of_content,
    write_row,
)
from sparse_ir.benchmark.rows import Result, Row, Timing
from sparse_ir.data import readers, runs
from sparse_ir.data.datasets import GROUPS, Collection
from sparse_ir.data.records import Qrels, Run
from sparse_ir.errors import ConfigError, DamagedError, DataError
from sparse_ir.storage import files

QRELS = {"q1": {"d1": 1}, "q2": {"d2": 2, "d3": 1}, "q3": {"d4": 1}}
RUN = {"q1": [("d9", 3.0), ("d1", 2.5)], "q2": [("d2", 7.0), ("d3", 1.0)], "q3": []}


def write_qrels(path: Path, qrels: Qrels) -> Path:
    lines = [
        f"{query_id}\t{doc_id}\t{grade}\n"
        for query_id, judged in qrels.items()
        for doc_id, grade in judged.items()
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("query-id\tcorpus-id\tscore\n" + "".join(lines), encoding="utf-8")
    return path


def write_texts(folder: Path) -> None:
    """Nine documents and three queries beside the qrels."""
    for stem, ids in (
        ("corpus", [f"d{number}" for number in range(1, 10)]),
        ("queries", list(QRELS)),
    ):
        lines = [
            json.dumps({"_id": text_id, "text": f"text of {text_id}"}) + "\n" for text_id in ids
        ]
        (folder / f"{stem}.jsonl").write_text("".join(lines), encoding="utf-8")


def parts_of(qrels_path: Path) -> dict[str, Path]:
    folder = qrels_path.parent.parent
    return {
        "corpus": folder / "corpus.jsonl",
        "queries": folder / "queries.jsonl",
        "qrels": qrels_path,
    }


def make_row(
    qrels_path: Path,
    *,
    dataset: str = "made",
    system: str = "bm25",
    run: Run | None = None,
    level: int = 1,
) -> Row:
    means, per_query = measure(RUN if run is None else run, readers.read_qrels(qrels_path), level)
    facts = {
        "name": dataset,
        "source": dataset,
        "split": "test",
        "documents": 9,
        "queries": 3,
        "judgements": 4,
        "absent_documents": 0,
        "absent_queries": 0,
        "remove_identical": False,
        "relevance_level": level,
        **{
            f"{part}_sha256": sha256_of_content(path) for part, path in parts_of(qrels_path).items()
        },
    }
    result = Result.model_validate(
        {
            "dataset": facts,
            "measures": means,
            "system": {
                "name": system,
                "kind": "bm25",
                "hash": "h",
                "model": None,
                "revision": None,
            },
            "efficiency": {
                "mean_query_terms": 2.0,
                "mean_document_terms": 10.0,
                "flops": 0.5,
                "index_bytes": 100,
            },
            "run": {"hits_per_query": 1000},
            "versions": {"sparse_ir": "1"},
            "identity": {},
            "per_query": per_query,
        }
    )
    return Row(result, Timing(date="today"))


@pytest.fixture
def qrels_path(tmp_path: Path) -> Path:
    path = write_qrels(tmp_path / "data" / "made" / "qrels" / "test.tsv", QRELS)
    write_texts(tmp_path / "data" / "made")
    return path


@pytest.fixture
def collection(qrels_path: Path) -> Collection:
    return Collection("made", **parts_of(qrels_path))


@pytest.fixture
def folder(tmp_path: Path, qrels_path: Path) -> Path:
    """A good row, written."""
    return write_row(tmp_path / "results", make_row(qrels_path), RUN)


def change(path: Path, *keys: str, value: Any) -> None:
    """Replace one value deep inside a JSON file."""
    whole = json.loads(path.read_text())
    part = whole
    for key in keys[:-1]:
        part = part[key]
    part[keys[-1]] = value
    files.write_json(path, whole)


# --- measuring ---


def test_worked_example_of_the_four_columns():
    means, per_query = measure(RUN, QRELS)
    assert list(means) == list(per_query) == measure_names()
    # q1 finds its one document in place 2: nDCG 1 / log2(3); q2 finds both in the ideal order; q3
    # nothing
    assert per_query["nDCG@10"] == pytest.approx({"q1": 0.63093, "q2": 1.0, "q3": 0.0}, abs=1e-5)
    assert per_query["MRR@10"] == {"q1": 0.5, "q2": 1.0, "q3": 0.0}
    assert per_query["R@100"] == per_query["R@1000"] == {"q1": 1.0, "q2": 1.0, "q3": 0.0}
    assert means["MRR@10"] == 0.5
    assert means["R@100"] == pytest.approx(2 / 3)


def test_the_relevance_level_of_deep_learning_counts_grades_of_two_and_more():
    means, per_query = measure({"q2": [("d3", 2.0), ("d2", 1.0)]}, {"q2": {"d2": 2, "d3": 1}}, 2)
    # d3 has grade 1: under level 2 the first relevant hit is the second
    assert per_query["MRR@10"] == {"q2": 0.5}
    assert per_query["R@100"] == {"q2": 1.0}
    # grades are gains as ever
    assert means["nDCG@10"] == pytest.approx((1 + 2 / 1.5849625) / (2 + 1 / 1.5849625))
    assert names_for_ir_measures(2)["R@1000"] == "R(rel=2)@1000"


def test_a_run_that_answers_unknown_queries_or_nothing_is_refused():
    with pytest.raises(
        DataError,
        match=r"run: 1 of its 2 queries are unknown to the qrels "
        r"\(first: 'q7'\); it must answer judged queries only",
    ):
        measure({"q1": [("d1", 1.0)], "q7": []}, QRELS)
    with pytest.raises(DataError, match="none of its 0 queries has both hits and judgements"):
        measure({}, QRELS)
    with pytest.raises(DataError, match="none of its 2 queries has both hits and judgements"):
        measure({"q1": [], "q2": []}, QRELS)


def test_latency_in_milliseconds():
    assert environment.describe_latency([0.001 * value for value in range(1, 102)]) == {
        "mean": 51.0,
        "p50": 51.0,
        "p95": 96.0,
        "p99": 100.0,
    }
    assert environment.describe_latency([]) is None


def test_the_hash_of_a_file_does_not_depend_on_its_packing(tmp_path):
    (tmp_path / "a.tsv").write_bytes(b"content")
    (tmp_path / "a.tsv.gz").write_bytes(gzip.compress(b"content"))
    assert sha256_of_content(tmp_path / "a.tsv") == sha256_of_content(tmp_path / "a.tsv.gz")
    assert sha256_of_content(tmp_path / "a.tsv") == files.sha256_of_file(tmp_path / "a.tsv")


def test_machine_and_versions():
    machine = environment.describe_machine()
    assert machine["cores"] >= 1
    assert machine["processor"]
    assert json.loads(json.dumps(machine)) == machine
    found = environment.find_versions(["numpy", "no-such-package"])
    assert set(found) == {"sparse_ir", "numpy"}


def test_the_commit_is_that_of_our_own_checkout(tmp_path, monkeypatch):
    package = tmp_path / "checkout" / "sparse_ir"
    package.mkdir(parents=True)
    monkeypatch.setattr(sparse_ir, "__file__", str(package / "__init__.py"))
    assert environment.find_commit() is None

    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        command = ["git", "-C", str(package.parent), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "-q")
    assert environment.find_commit() is None  # nothing committed
    (package / "__init__.py").write_text("")
    git("add", ".")
    git("commit", "-q", "-m", "first")
    git("tag", "-a", "v1", "-m", "v1")
    assert environment.find_commit() == git("rev-parse", "HEAD")
    (package / "__init__.py").write_text("changed")
    assert environment.find_commit() == git("rev-parse", "HEAD") + "-dirty"


# --- files ---


def test_a_row_comes_back_as_it_was_written(tmp_path, qrels_path, folder):
    assert folder == tmp_path / "results" / "made" / "bm25"
    row = read_row(folder)
    assert (row.dataset, row.system, row.timing) == ("made", "bm25", Timing(date="today"))
    written = make_row(qrels_path)
    assert row.measures == written.measures
    assert row.per_query == written.per_query
    assert row.result.run.model_dump() == {
        "hits_per_query": 1000,
        "queries": 3,
        "queries_without_hits": 1,
        "hits": 4,
        "sha256": sha256_of_content(folder / results_module.RUN),
    }
    assert runs.read_run(folder / results_module.RUN) == {
        query_id: hits for query_id, hits in RUN.items() if hits
    }


def test_the_same_row_has_the_same_bytes_under_any_name(tmp_path, qrels_path, folder):
    other = write_row(tmp_path / "elsewhere", make_row(qrels_path), RUN)
    assert read_tree(folder) == read_tree(other)
    assert set(read_tree(folder)) == {RESULT, TIMING, results_module.RUN}


def test_leftovers_of_a_killed_writer_are_removed(tmp_path, qrels_path, folder):
    left = files.temporary_sibling(folder)
    left.mkdir()
    (left / results_module.RUN).write_text("half a run")
    assert len(read_rows(tmp_path / "results")) == 1
    write_row(tmp_path / "results", make_row(qrels_path), RUN)
    assert set(read_tree(tmp_path / "results" / "made")) == {
        f"bm25/{name}" for name in read_tree(folder)
    }
    assert set(read_tree(folder)) == {RESULT, TIMING, results_module.RUN}


def test_rows_are_read_in_order_and_unfinished_ones_are_not_there(tmp_path, qrels_path, folder):
    results = tmp_path / "results"
    write_row(results, make_row(qrels_path, dataset="another"), RUN)
    write_row(results, make_row(qrels_path, system="zz"), RUN)
    (results / ".work" / "x").mkdir(parents=True)
    (results / ".work" / "x" / RESULT).write_text("{}")
    assert [(row.dataset, row.system) for row in read_rows(results)] == [
        ("another", "bm25"),
        ("made", "bm25"),
        ("made", "zz"),
    ]
    assert read_rows(tmp_path / "nowhere") == []


@pytest.mark.parametrize("name", ["", "a/b", "..", ".hidden", "a b", "naïve"])
def test_names_that_are_no_folders_are_refused(tmp_path, name):
    with pytest.raises(ConfigError, match=r"system .* must be letters, digits and"):
        row_folder(tmp_path, "scifact", name)
    with pytest.raises(ConfigError, match=r"data set .* must be letters, digits and"):
        row_folder(tmp_path, name, "bm25")


def test_a_data_set_is_not_called_as_the_mean_of_all(tmp_path, qrels_path):
    with pytest.raises(
        ConfigError,
        match=r"data set 'mean': the tables use this name for the mean .* rename the folder",
    ):
        write_row(tmp_path / "results", make_row(qrels_path, dataset="mean"), RUN)
    assert row_folder(tmp_path, "meaning", "mean") == tmp_path / "meaning" / "mean"


def test_damaged_results_are_refused(folder):
    path = folder / RESULT
    good = path.read_text()
    change(path, "format", value=2)
    with pytest.raises(DamagedError, match=r"result.json is not a row of format 1"):
        read_row(folder)
    path.write_text(good[:-20])
    with pytest.raises(DamagedError, match=r"result.json is not readable as JSON"):
        read_row(folder)
    path.write_text(
        json.dumps({key: value for key, value in json.loads(good).items() if key != "per_query"})
    )
    with pytest.raises(DamagedError, match=r"result.json lacks per_query"):
        read_row(folder)
    path.write_text(good)
    change(path, "measures", value={"nDCG@10": 1.0})
    with pytest.raises(
        DamagedError,
        match=r"result.json lacks measures.R@100, measures.R@1000, "
        r"measures.MRR@10",
    ):
        read_row(folder)
    for name in ("dataset.name", "dataset.relevance_level", "efficiency.flops", "run.sha256"):
        part, field = name.split(".")
        whole = json.loads(good)
        del whole[part][field]
        files.write_json(path, whole)
        with pytest.raises(DamagedError, match=rf"result.json lacks {name}$"):
            read_row(folder)
    files.write_json(path, {**json.loads(good), "efficiency": 7})
    with pytest.raises(
        DamagedError, match=r"result.json: efficiency is 7; it must be a JSON object"
    ):
        read_row(folder)
    files.write_json(path, json.loads(good))
    change(path, "dataset", "relevance_level", value="1")
    with pytest.raises(
        DamagedError,
        match=r"dataset.relevance_level is '1'; it must be a whole number",
    ):
        read_row(folder)
    path.unlink()
    with pytest.raises(DamagedError, match=r"result.json is missing"):
        read_row(folder)


def test_a_row_in_the_folder_of_another_is_refused(tmp_path, folder):
    """Copied or renamed, it would count twice, and verifying it would look at the one that it is a
    copy of.
    """
    for place in ("made/better", "other/bm25"):
        copy = tmp_path / "results" / place
        shutil.copytree(folder, copy)
        with pytest.raises(
            DamagedError,
            match=rf"is the row made/bm25, but must be {place} like its folder",
        ):
            read_rows(tmp_path / "results")
        with pytest.raises(
            DamagedError,
            match=rf"is the row made/bm25, but must be {place} like its folder",
        ):
            verification.verify_rows(tmp_path / "results", tmp_path / "data")
        shutil.rmtree(copy)
    assert len(read_rows(tmp_path / "results")) == 1


def test_means_that_are_not_those_of_their_queries_are_noticed_by_every_reader(folder):
    path = folder / RESULT
    good = path.read_text()
    change(path, "measures", "nDCG@10", value=0.99)
    with pytest.raises(
        DamagedError,
        match=r"result.json: nDCG@10 is 0.99, the mean of its "
        r"queries 0.54",
    ):
        read_row(folder)
    path.write_text(good)
    change(path, "per_query", "R@100", "q3", value=float("nan"))
    with pytest.raises(
        DamagedError,
        match=r"result.json: per_query.R@100.q3 is nan; it must be a finite number",
    ):
        read_row(folder)


# --- verifying ---


def test_a_good_row_is_verified(folder, collection):
    report = verification.verify_row(folder, collection)
    assert report == {
        "dataset": "made",
        "system": "bm25",
        "ok": True,
        "queries": 3,
        **read_row(folder).measures,
    }


def test_one_changed_digit_is_noticed(folder, collection):
    value = read_row(folder).measures["MRR@10"]
    change(folder / RESULT, "measures", "MRR@10", value=value + 1e-15)
    with pytest.raises(
        DamagedError,
        match=r"result.json: MRR@10 is 0.50000000000000\d+, its run "
        r"gives 0.5$",
    ):
        verification.verify_row(folder, collection)


def test_one_changed_query_is_noticed(folder, collection):
    values = read_row(folder).per_query["MRR@10"]
    change(
        folder / RESULT,
        "per_query",
        "MRR@10",
        value={**values, "q1": values["q3"], "q3": values["q1"]},
    )
    with pytest.raises(
        DamagedError,
        match=r"result.json: MRR@10 of query q1 is 0.0, its run "
        r"gives 0.5",
    ):
        verification.verify_row(folder, collection)


def test_a_query_that_was_added_or_renamed_is_noticed(folder, collection):
    path, values = folder / RESULT, read_row(folder).per_query["R@100"]
    change(path, "per_query", "R@100", value={**values, "q9": 1.0})
    with pytest.raises(DamagedError, match=r"result.json: R@100 has 4 queries, its data set 3"):
        verification.verify_row(folder, collection)
    change(
        path,
        "per_query",
        "R@100",
        value={{"q3": "q9"}.get(key, key): value for key, value in values.items()},
    )
    with pytest.raises(
        DamagedError,
        match=r"result.json: R@100 has values for other queries than "
        r"its qrels",
    ):
        verification.verify_row(folder, collection)


def test_a_changed_a_damaged_and_a_missing_run_are_noticed(folder, collection):
    path = folder / results_module.RUN
    good = path.read_bytes()
    path.write_bytes(gzip.compress(gzip.decompress(good).replace(b"d9", b"d8")))
    with pytest.raises(
        DamagedError,
        match=r"run.trec.gz: sha256 of the run is [0-9a-f]{64}, "
        r"result.json says ",
    ):
        verification.verify_row(folder, collection)
    path.write_bytes(good[:-12])
    with pytest.raises(DamagedError, match=r"run.trec.gz is not readable as a compressed run \("):
        verification.verify_row(folder, collection)
    path.write_bytes(good[:20] + bytes([good[20] ^ 255]) + good[21:])
    with pytest.raises(DamagedError, match=r"run.trec.gz(: sha256 of the run| is not readable as)"):
        verification.verify_row(folder, collection)
    path.unlink()
    with pytest.raises(DamagedError, match=r"run.trec.gz is missing; make the row again"):
        verification.verify_row(folder, collection)


def test_other_qrels_are_noticed(tmp_path, folder, collection):
    other = write_qrels(tmp_path / "other.tsv", {**QRELS, "q3": {"d5": 1}})
    with pytest.raises(
        DataError,
        match=r"other.tsv: sha256 is [0-9a-f]{64}, but must be "
        r"[0-9a-f]{64}, the qrels that",
    ):
        verification.verify_row(folder, collection._replace(qrels=other))


def test_a_forged_run_with_unknown_queries_is_refused(folder, collection):
    text = b"q7 Q0 d1 1 1.000000 bm25\n"
    (folder / results_module.RUN).write_bytes(gzip.compress(text))
    change(folder / RESULT, "run", "hits", value=1)
    change(folder / RESULT, "run", "sha256", value=sha256_of_content(folder / results_module.RUN))
    with pytest.raises(
        DataError,
        match=r"run: 1 of its 1 queries are unknown to the qrels "
        r"\(first: 'q7'\)",
    ):
        verification.verify_row(folder, collection)


def test_a_forged_run_with_a_score_that_is_no_number_is_refused(folder, collection):
    (folder / results_module.RUN).write_bytes(gzip.compress(b"q1 Q0 d1 1 nan bm25\n"))
    change(folder / RESULT, "run", "sha256", value=sha256_of_content(folder / results_module.RUN))
    with pytest.raises(
        DataError,
        match=r"run.trec.gz:1: score is 'nan'; it must be a finite number",
    ):
        verification.verify_row(folder, collection)


def test_all_rows_are_verified_against_the_data_folder(tmp_path, qrels_path):
    results = tmp_path / "results"
    with pytest.raises(DataError, match=r"results holds no row \(DATASET/SYSTEM/result.json\)"):
        verification.verify_rows(results, tmp_path / "data")
    for system in ("bm25", "other"):
        write_row(results, make_row(qrels_path, system=system), RUN)
    with pytest.raises(DataError, match=r"row made/bm25: its data set 'made' is not in "):
        verification.verify_rows(results, tmp_path / "nowhere")
    made = tmp_path / "data" / "made"
    assert [report["ok"] for report in verification.verify_rows(results, tmp_path / "data")] == [
        True,
        True,
    ]
    made.rename(made.with_name("easy"))
    change(results / "made" / "bm25" / RESULT, "dataset", "source", value="easy")
    with pytest.raises(
        DamagedError,
        match=r"row made/bm25: name is 'made', its data set 'easy' "
        r"has 'easy'",
    ):
        verification.verify_rows(results, tmp_path / "data")


@pytest.mark.parametrize(
    ("part", "line"),
    [
        ("corpus", '{"_id": "d99", "text": "one more"}\n'),
        ("queries", '{"_id": "q99", "text": "one more"}\n'),
    ],
)
def test_another_corpus_and_other_queries_are_noticed(folder, collection, part, line):
    with getattr(collection, part).open("a") as stream:
        stream.write(line)
    with pytest.raises(
        DataError,
        match=rf"{part}.jsonl: sha256 is [0-9a-f]{{64}}, but must be .*, "
        rf"the {part} that ",
    ):
        verification.verify_row(folder, collection)


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        (
            ("dataset", "documents"),
            5183,
            "row made/bm25: documents is 5183, its data set 'made' has 9",
        ),
        (("dataset", "judgements"), 5, "judgements is 5, its data set 'made' has 4"),
        (("dataset", "absent_documents"), 1, "absent_documents is 1, its data set 'made' has 0"),
        (
            ("run", "hits_per_query"),
            1,
            (
                r"run.trec.gz has 2 hits for a query, result.json says 1 at "
                r"most"
            ),
        ),
        (("run", "hits"), 9, r"run.trec.gz has 4 hits, result.json says 9"),
        (("identity",), {"hits": 10}, "identity.hits is 10, elsewhere in it 1000"),
    ],
)
def test_a_row_that_says_otherwise_of_its_data_or_its_run_is_noticed(
    folder, collection, keys, value, message
):
    change(folder / RESULT, *keys, value=value)
    with pytest.raises(DamagedError, match=message):
        verification.verify_row(folder, collection)


@pytest.mark.parametrize(
    ("file", "keys", "value", "message"),
    [
        (
            TIMING,
            ("search_latency_ms",),
            "x",
            "timing.json: search_latency_ms is 'x'; it must be a JSON object",
        ),
        (
            TIMING,
            ("search_latency_ms",),
            {"p50": float("nan")},
            "search_latency_ms.p50 is nan; it must be a finite number",
        ),
        (TIMING, ("hardware",), "x", "timing.json: hardware is 'x'; it must be a JSON object"),
        (TIMING, ("hardware",), {"processor": 3}, "hardware.processor is 3; it must be a string"),
        (
            TIMING,
            ("encode_documents_per_second",),
            "x",
            "encode_documents_per_second is 'x'; it must be a number",
        ),
        (
            RESULT,
            ("efficiency", "flops"),
            float("inf"),
            "result.json: efficiency.flops is inf; it must be a finite number",
        ),
        (
            RESULT,
            ("efficiency", "flops"),
            True,
            "efficiency.flops is True; it must be a number",
        ),
        (
            RESULT,
            ("efficiency", "index_bytes"),
            -1,
            "efficiency.index_bytes is -1; it must be 0 or more",
        ),
        (RESULT, ("system", "revision"), 7, "system.revision is 7; it must be a string"),
        (RESULT, ("commit",), {}, "commit is {}; it must be a string"),
        (
            RESULT,
            ("dataset", "parts"),
            {},
            "dataset.parts is {}; no such field is known",
        ),
    ],
)
def test_a_value_that_no_table_can_hold_is_refused(folder, file, keys, value, message):
    change(folder / file, *keys, value=value)
    with pytest.raises(DamagedError, match=message):
        read_row(folder)


def test_a_row_whose_figures_were_deleted_does_not_vanish(tmp_path, folder):
    (folder / RESULT).unlink()
    with pytest.raises(
        DamagedError,
        match=r"result.json is missing, but its run.trec.gz is "
        r"there; make the row again",
    ):
        read_rows(tmp_path / "results")


# --- means ---


def forum_rows(qrels_path: Path, system: str = "bm25") -> list[Row]:
    """A row for each forum; the odd ones find everything first, the even ones nothing but q1."""
    best = {"q1": [("d1", 1.0)], "q2": [("d2", 2.0), ("d3", 1.0)], "q3": [("d4", 1.0)]}
    poor = {"q1": [("d1", 1.0)], "q2": [], "q3": []}
    return [
        make_row(qrels_path, dataset=name, system=system, run=best if number % 2 else poor)
        for number, name in enumerate(GROUPS["cqadupstack"])
    ]


def test_cqadupstack_is_the_mean_of_its_twelve_forums(qrels_path):
    others = [make_row(qrels_path, dataset="scifact")]
    merged = averages.merge_groups(
        [*forum_rows(qrels_path), *others, *forum_rows(qrels_path, "half")[:6]]
    )
    assert [(row.dataset, row.system) for row in merged] == [
        ("cqadupstack", "bm25"),
        ("scifact", "bm25"),
    ]
    row = merged[0]
    assert row.measures["MRR@10"] == pytest.approx((6 * 1 + 6 / 3) / 12)
    assert row.result.dataset.documents == 12 * 9
    assert len(row.per_query["nDCG@10"]) == 36
    assert (row.per_query["R@100"]["android/q2"], row.per_query["R@100"]["english/q2"]) == (
        0.0,
        1.0,
    )
    assert (row.result.efficiency.index_bytes, row.result.efficiency.flops) == (
        1200,
        0.5,
    )
    assert len(row.parts) == 12


def test_the_average_is_over_complete_systems_only(qrels_path):
    names = ("scifact", "cqadupstack")
    whole = [make_row(qrels_path, dataset="scifact"), *forum_rows(qrels_path)]
    found = averages.average(
        [*whole, make_row(qrels_path, dataset="scifact", system="half")], names
    )
    assert set(found) == {"bm25"}
    assert found["bm25"]["MRR@10"] == pytest.approx((0.5 + 8 / 12) / 2)
    assert averages.average(whole) == {}
    run = whole[3].result.run.model_copy(update={"hits_per_query": 5})  # of 9 documents
    whole[3] = Row(whole[3].result.model_copy(update={"run": run}))
    shallow = averages.average(whole, names)["bm25"]
    assert shallow == {**dict.fromkeys(measure_names()), "MRR@10": None}
    assert averages.average(whole[:1], names[:1])["bm25"]["R@1000"] == whole[0].measures["R@1000"]
