"""The leaderboard: worked means and comparisons, every format read back, and what it refuses."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from made_rows import make_run, write_dataset, write_results, write_row
from shell import read_tree

from sparse_ir.benchmark import averages, formats, mteb, page
from sparse_ir.benchmark.board import Board, make_board, merge_forums
from sparse_ir.benchmark.columns import measure_names
from sparse_ir.benchmark.comparison import SAMPLES, pool
from sparse_ir.benchmark.page import Selection
from sparse_ir.benchmark.results import read_row, read_rows
from sparse_ir.benchmark.rows import Row
from sparse_ir.commands import benchmarking
from sparse_ir.data import datasets
from sparse_ir.data.datasets import BEIR_13, GROUPS, REGISTRY
from sparse_ir.errors import ConfigError, DamagedError, DataError
from sparse_ir.evaluation import significance
from sparse_ir.storage import files

FORUMS = [name.removeprefix("cqadupstack-") for name in GROUPS["cqadupstack"]]
# gain of the one relevant document at rank 1, 2, 3; a document that is not found gains nothing
G1, G2, G3 = 1.0, 1 / math.log2(3), 0.5
RANKS = {
    "made": {"bm25": [1, 2, 3, 0], "my_model+v1": [1, 1, 1, 1], "weak": [2, 3, 0, 0]},
    "scifact": {"bm25": [1] * 10 + [2] * 10, "my_model+v1": [1] * 20, "weak": [3] * 20},
}


@pytest.fixture(scope="module", autouse=True)
def any_size():
    """Sets of any size stand for those of the names that they have here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets, "published_size", {}.get)
        yield


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Rows and data sets of ``RANKS``. Read only."""
    return write_results(tmp_path_factory.mktemp("leaderboard"), RANKS)


@pytest.fixture(scope="module")
def board(folders: tuple[Path, Path]) -> Board:
    return make_board(read_rows(folders[0]))


def cell_of(board: Board, system: str, dataset: str | None = None) -> dict[str, Any]:
    """A cell as leaderboard.json holds it."""
    entry = next(entry for entry in board.systems if entry.name == system)
    cell = entry.mean if dataset is None else entry.datasets[dataset]
    assert cell is not None
    return cell.model_dump()


def read_markdown(text: str) -> list[list[list[str]]]:
    """The tables of a Markdown text: a list of rows of cells for each, headers first, rules left
    out.
    """
    tables, now = [], []
    for line in [*text.splitlines(), ""]:
        if line.startswith("|"):
            now.append(
                [cell.strip().replace("\\", "") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
            )
        elif now:
            tables.append([now[0], *now[2:]])
            now = []
    return tables


# --- the board ---


def test_worked_example_of_one_data_set(board):
    bm25, model, weak = (
        cell_of(board, system, "made") for system in ("bm25", "my_model+v1", "weak")
    )
    assert bm25["nDCG@10"] == pytest.approx((G1 + G2 + G3) / 4)
    assert (bm25["delta"], bm25["p"], bm25["p_adjusted"], bm25["wins"]) == (None, None, None, None)
    assert model["delta"] == pytest.approx(1 - (G1 + G2 + G3) / 4)
    assert (model["wins"], model["ties"], model["losses"]) == (3, 1, 0)
    assert (weak["wins"], weak["ties"], weak["losses"]) == (0, 1, 3)
    assert weak["delta_low"] <= weak["delta"] <= weak["delta_high"] < model["delta"]
    assert bm25["low"] <= bm25["nDCG@10"] <= bm25["high"]
    assert model["low"] == model["high"] == 1.0
    # of the 2 x 2 x 2 ways to exchange three differences of one sign, two are as far apart: the
    # exact p is 1/4
    assert model["p"] == pytest.approx(0.25, abs=0.02)
    # Holm over two systems: the smaller p counts twice, and no adjusted p is below a smaller one's
    assert model["p_adjusted"] == pytest.approx(min(1, 2 * min(model["p"], weak["p"])), abs=0.05)
    assert bm25["MRR@10"] == pytest.approx((1 + 1 / 2 + 1 / 3) / 4)
    assert bm25["R@100"] == 0.75


def test_a_clear_difference_is_marked_and_a_large_p_is_not(board):
    weak = cell_of(board, "weak", "scifact")
    assert weak["p_adjusted"] < 0.001
    tables = read_markdown(formats.format_markdown(board))
    lines = {line[0]: line[1:] for line in tables[1][1:]}
    assert lines["weak"][1] == f"{G3:.4f} ▼"
    assert lines["my_model+v1"][1] == "1.0000 ▲"
    assert lines["my_model+v1"][0] == "1.0000"
    assert lines["bm25"][0] == f"{(G1 + G2 + G3) / 4:.4f}"


def test_in_the_mean_each_data_set_counts_alike(board):
    mean = cell_of(board, "bm25")
    first, second = (G1 + G2 + G3) / 4, (G1 + G2) / 2
    assert mean["nDCG@10"] == pytest.approx((first + second) / 2)
    assert mean["low"] < mean["nDCG@10"] < mean["high"]
    model = cell_of(board, "my_model+v1")
    assert model["delta"] == pytest.approx(1 - (first + second) / 2)
    assert (model["wins"], model["ties"], model["losses"]) == (13, 11, 0)
    assert [entry.name for entry in board.systems] == ["my_model+v1", "bm25", "weak"]
    assert board.common == ["made", "scifact"]


def test_the_cost_of_several_data_sets(board):
    cost = cell_of(board, "my_model+v1")["efficiency"]
    assert cost["query_terms"] == 4.0
    assert cost["document_terms"] == 12.0  # (4 + 20) / 2
    assert cost["index_megabytes"] == 2.0  # a sum
    # 14 documents at 40 a second and 30 at 200: 0.35 s and 0.15 s, so 44 documents in half a second
    assert cost["documents_per_second"] == pytest.approx(88.0)
    assert (cost["p50_ms"], cost["p95_ms"], cost["p99_ms"]) == (2.0, 4.0, 6.0)
    assert cell_of(board, "bm25")["efficiency"]["documents_per_second"] is None


def test_the_board_says_where_each_figure_comes_from(board, folders):
    found = cell_of(board, "weak", "made")["provenance"]
    row = read_row(folders[0] / "made" / "weak")
    assert found["run_sha256"] == row.result.run.sha256
    assert (found["hash"], found["commit"], found["date"]) == (
        "hash of weak",
        "abc",
        "2026-01-02T03:04:05Z",
    )
    assert found["command"] == "sparse-ir beir --model weak"
    assert found["processor"] == "Made CPU"


def test_a_system_without_a_data_set_narrows_the_mean_and_leaves_a_gap(tmp_path):
    results, _ = write_results(tmp_path, RANKS | {"other": {"bm25": [1, 2], "weak": [0, 0]}})
    found = make_board(read_rows(results))
    assert found.common == ["made", "scifact"]
    assert list(found.datasets) == ["made", "other", "scifact"]
    lines = read_markdown(formats.format_markdown(found))[1]
    assert next(line for line in lines if line[0] == "my_model+v1")[2] == "–"
    assert "--" in next(
        line for line in formats.format_latex(found).splitlines() if line.startswith(r"my\_model")
    )


def test_without_a_data_set_in_common_there_is_no_mean(tmp_path):
    results, _ = write_results(tmp_path, {"one": {"bm25": [1, 2]}, "two": {"weak": [0, 1]}})
    found = make_board(read_rows(results), published="none")
    assert found.common == []
    assert [entry.mean for entry in found.systems] == [None, None]
    assert cell_of(found, "weak", "two")["delta"] is None
    assert formats.format_summary(found) == ""
    assert "none: no data set has all systems" in formats.format_markdown(found)
    assert [line["dataset"] for line in csv.DictReader(io.StringIO(formats.format_csv(found)))] == [
        "one",
        "two",
    ]
    assert r"\midrule" in formats.format_latex(found)


def test_other_measures_and_baselines(folders):
    found = make_board(read_rows(folders[0]), baseline="weak", measure="R@100")
    assert cell_of(found, "bm25", "made")["delta"] == pytest.approx(0.25)
    assert cell_of(found, "weak", "made")["delta"] is None
    assert read_markdown(formats.format_summary(found))[0][0][:4] == [
        "system",
        "R@100",
        "95 %",
        "Δ weak",
    ]


def test_forums_of_cqadupstack_are_one_data_set_when_a_system_has_all_twelve(tmp_path):
    names = [f"cqadupstack/{forum}" for forum in FORUMS]
    for number, name in enumerate(names):
        write_dataset(tmp_path / "data", name, 2)
        for system, ranks in (("bm25", [1, 2]), ("half", [1, 1])):
            if system == "bm25" or number < 6:
                write_row(
                    tmp_path / "results", tmp_path / "data", name, system, ranks, p50=1.0 + number
                )
    found = read_rows(tmp_path / "results")
    board = make_board(found)
    assert list(board.datasets) == ["cqadupstack"]
    assert board.not_shown == [f"cqadupstack-{forum}/half" for forum in FORUMS[:6]]
    assert cell_of(board, "bm25", "cqadupstack")["nDCG@10"] == pytest.approx((G1 + G2) / 2)
    # the mean of 1 to 12
    assert cell_of(board, "bm25", "cqadupstack")["efficiency"]["p50_ms"] == 6.5
    singly = make_board([row for row in found if row.dataset != "cqadupstack-tex"])
    assert len(singly.datasets) == 11
    assert singly.not_shown == []


def test_forums_count_alike_in_the_figure_and_in_all_that_is_said_of_it(tmp_path):
    """One large forum in which a system is better, eleven small ones in which it is worse."""
    for forum in FORUMS:
        name, large = f"cqadupstack/{forum}", forum == "tex"
        write_dataset(tmp_path / "data", name, 60 if large else 2)
        for system, ranks in (
            ("bm25", [2] * 60 if large else [1, 1]),
            ("other", [1] * 60 if large else [2, 3]),
        ):
            write_row(tmp_path / "results", tmp_path / "data", name, system, ranks)
    write_dataset(tmp_path / "data", "made", 4)
    for system in ("bm25", "other"):
        write_row(tmp_path / "results", tmp_path / "data", "made", system, [1, 1, 1, 2])
    board = make_board(read_rows(tmp_path / "results"))
    bm25, other = (cell_of(board, system, "cqadupstack") for system in ("bm25", "other"))
    assert bm25["nDCG@10"] == pytest.approx((11 * G1 + G2) / 12)
    assert other["nDCG@10"] == pytest.approx((11 * (G2 + G3) / 2 + G1) / 12)
    assert other["delta"] == pytest.approx(other["nDCG@10"] - bm25["nDCG@10"])
    assert other["delta_low"] < other["delta"] < other["delta_high"] < 0
    assert other["low"] < other["nDCG@10"] < other["high"]
    assert (other["wins"], other["losses"]) == (60, 22)  # queries, whatever they weigh
    assert cell_of(board, "other")["delta"] == pytest.approx(other["delta"] / 2)
    # each forum by its queries: what the randomization test gets
    weights = {
        query_id: 82 / (12 * (60 if query_id.startswith("tex/") else 2))
        for row in averages.merge_groups(read_rows(tmp_path / "results"))
        if len(row.parts) == 12
        for query_id in row.per_query["nDCG@10"]
    }
    differences = [
        weights[query_id]
        * (
            (G1 - G2)
            if query_id.startswith("tex/")
            else (G2 - G1 if query_id.endswith("q0") else G3 - G1)
        )
        for query_id in weights
    ]
    assert other["p"] == pytest.approx(
        significance.randomization_test(differences, samples=SAMPLES), abs=0.002
    )


def test_a_board_with_forums_has_their_texts(tmp_path):
    for forum in FORUMS:
        name = f"cqadupstack/{forum}"
        write_dataset(tmp_path / "data", name, 2)
        for system, ranks in (("bm25", [1, 2]), ("other", [1, 1])):
            write_row(tmp_path / "results", tmp_path / "data", name, system, ranks)
    report = benchmarking.leaderboard(
        tmp_path / "results",
        tmp_path / "board",
        data_dir=tmp_path / "data",
        documents=2,
        verify=True,
    )
    assert (report["verified_rows"], report["mean_over"]) == (24, ["cqadupstack"])
    found = page.collect_queries(
        merge_forums(read_rows(tmp_path / "results")),
        Selection(tmp_path / "results", tmp_path / "data", "bm25", "nDCG@10", 40, 2),
    )["cqadupstack"]
    assert found.total == 24
    assert [query.id for query in found.queries] == [f"{forum}/q1" for forum in FORUMS]
    query = found.queries[0]
    assert query.text.startswith("question 1 ")
    assert query.hits == {"bm25": ["android/f0", "android/d1"], "other": ["android/d1"]}
    assert found.qrels["unix/q1"] == {"unix/d1": 1}
    assert found.documents["unix/d1"].startswith("answer 1 ")


# --- published figures ---


def test_published_figures_stand_apart_and_only_for_our_data_sets(board):
    assert {entry.name for entry in board.systems} == {"bm25", "my_model+v1", "weak"}
    found = {record.system: record for record in board.published}
    assert found["BM25 flat (Pyserini)"].values == {"scifact": 0.6789}
    assert all(set(record.values) <= {"scifact"} for record in found.values())
    # no one has published our set "made"
    assert all(record.mean is None for record in found.values())
    assert "Echo-Mistral-SPLADE" not in found  # only an average of 13 sets is known
    text = formats.format_markdown(board)
    assert text.index("## Data sets") < text.index("## Published elsewhere, not measured here")
    header, *lines = read_markdown(text)[2]
    assert header == ["nDCG@10", "kind", "scifact", "mean", "status", "source"]
    assert next(line for line in lines if line[0] == "SPLADE-v3-Doc")[2:5] == [
        "0.6880",
        "–",
        "secondary",
    ]


def test_published_means_are_over_exactly_our_sets(tmp_path):
    results, _ = write_results(tmp_path, {name: {"bm25": [1]} for name in ("scifact", "nfcorpus")})
    found = {record.system: record for record in make_board(read_rows(results)).published}
    assert found["BM25 flat (Pyserini)"].mean == pytest.approx((0.6789 + 0.3218) / 2)
    assert "Echo-Mistral-SPLADE" not in found
    for name in set(BEIR_13) - {"scifact", "nfcorpus"}:
        write_dataset(tmp_path / "data", name, 1)
        write_row(results, tmp_path / "data", name, "bm25", [1])
    found = {record.system: record for record in make_board(read_rows(results)).published}
    assert found["Echo-Mistral-SPLADE"].mean == 0.5507
    assert found["Echo-Mistral-SPLADE"].status == "secondary"
    assert found["SPLADE-v3-Doc"].mean == pytest.approx(0.4697, abs=0.0001)


def test_a_set_of_another_size_has_no_published_figures(folders, monkeypatch):
    found = read_rows(folders[0])
    monkeypatch.setattr(datasets, "published_size", {"scifact": (30, 20)}.get)
    board = make_board(found)
    assert board.published and "No published" not in " ".join(board.notes)
    assert any("SciFact" in name for name in mteb.make_mteb_files(found))
    for documents, queries in ((30, 21), (5183, 20)):
        monkeypatch.setattr(datasets, "published_size", {"scifact": (documents, queries)}.get)
        board = make_board(found)
        assert board.published == []
        assert (
            "No published figures and no MTEB file for scifact: it is not the published "
            f"set of {documents} "
            f"documents and {queries} queries."
        ) in board.notes
        assert mteb.make_mteb_files(found) == {}


def test_published_figures_can_be_chosen_or_left_out(folders):
    found = read_rows(folders[0])
    assert make_board(found, published="none").published == []
    assert "Published" not in formats.format_markdown(make_board(found, published="none"))
    chosen = make_board(found, published="SPLADE-v3; TAS-B").published
    assert {record.system for record in chosen} == {"SPLADE-v3", "TAS-B"}
    recall = make_board(found, measure="R@100").published
    assert {record.system: record.values for record in recall}["BM25 flat (Pyserini)"] == {
        "scifact": 0.9253
    }
    with pytest.raises(ConfigError, match="published system 'nobody' is unknown"):
        make_board(found, published="nobody")


# --- formats ---


def test_the_summary_has_every_system_with_its_mean_and_its_cost(board):
    (table,) = read_markdown(formats.format_summary(board))
    assert [line[0] for line in table[1:]] == ["my_model+v1", "bm25", "weak"]
    assert all(len(line) == len(table[0]) for line in table)
    model = dict(zip(table[0], table[1], strict=True))
    mean = cell_of(board, "my_model+v1")
    assert model["nDCG@10"] == "1.0000"
    assert model["Δ bm25"] == f"{mean['delta']:+.4f}"
    assert model["wins / ties / losses"] == "13 / 11 / 0"
    assert model["terms q / d"] == "4.0 / 12.0"
    assert (model["MB"], model["docs/s"], model["p50 / p95 / p99 ms"]) == (
        "2.0",
        "88",
        "2.0 / 4.0 / 6.0",
    )
    assert dict(zip(table[0], table[2], strict=True))["p"] == ""


def test_csv_gives_every_figure_back_to_the_last_digit(board, folders):
    lines = list(csv.DictReader(io.StringIO(formats.format_csv(board))))
    measured = {
        (line["system"], line["dataset"]): line for line in lines if line["origin"] == "measured"
    }
    assert len(measured) == 9  # three systems; two data sets and a mean
    for row in read_rows(folders[0]):
        line = measured[row.system, row.dataset]
        assert {column: float(line[column]) for column in measure_names()} == row.measures
        assert line["run_sha256"] == row.result.run.sha256
    assert float(measured["weak", "mean"]["p_adjusted"]) == cell_of(board, "weak")["p_adjusted"]
    published = [line for line in lines if line["origin"] == "published"]
    assert {line["dataset"] for line in published} == {"scifact"}
    assert all(line["status"] and line["source"] for line in published)


def test_latex_has_the_same_columns_in_every_line(board):
    text = formats.format_latex(board)
    body = [
        line for line in text.splitlines() if line.endswith(r"\\") and "multicolumn" not in line
    ]
    assert {line.count("&") for line in body} == {8}
    assert r"\begin{tabular}{lrrrrrrrr}" in text
    assert [
        text.count(rule) for rule in (r"\toprule", r"\midrule", r"\bottomrule", r"\end{tabular}")
    ] == [1, 2, 1, 1]
    assert r"my\_model+v1 & \textbf{100.0} & \textbf{100.0}$^{\uparrow}$ & \textbf{100.0}" in text
    assert r"weak & 28.3 & 50.0$^{\downarrow}$ &" in text
    assert r"SPLADE-v3-Doc (secondary) & -- & 68.8 & -- & -- & -- & -- & -- & -- \\" in text


def test_latex_and_markdown_escape_what_means_something_to_them():
    assert formats._escape_latex(r"a_b & 5% of $1 #2 {x} ~ ^ \y") == (
        r"a\_b \& 5\% of \$1 \#2 \{x\} \textasciitilde{} \textasciicircum{} \textbackslash{}y"
    )
    assert formats._escape_markdown("a|b_c*<i>") == r"a\|b\_c\*\<i\>"


def test_mteb_files_have_its_layout(folders):
    made = mteb.make_mteb_files(read_rows(folders[0]))
    revision = files.sha256_of_json(["hash of weak"])[:16]
    result = made[f"mteb/results/local__weak/{revision}/SciFact.json"]
    assert set(result) == {
        "dataset_revision",
        "task_name",
        "mteb_version",
        "scores",
        "evaluation_time",
        "kg_co2_emissions",
    }
    (scores,) = result["scores"]["test"]
    row = read_row(folders[0] / "scifact" / "weak")
    assert scores["main_score"] == scores["ndcg_at_10"] == row.measures["nDCG@10"]
    assert (scores["mrr_at_10"], scores["recall_at_100"]) == (
        row.measures["MRR@10"],
        row.measures["R@100"],
    )
    assert (scores["hf_subset"], scores["languages"], result["task_name"]) == (
        "default",
        ["eng-Latn"],
        "SciFact",
    )
    meta = made[f"mteb/results/local__weak/{revision}/model_meta.json"]
    assert (meta["name"], meta["revision"]) == ("local/weak", revision)
    assert len(made) == 6  # three systems; MTEB does not know the set "made"


def test_mteb_names_of_hub_models_and_of_all_data_sets(tmp_path):
    write_dataset(tmp_path / "data", "fiqa", 1)
    write_row(tmp_path / "results", tmp_path / "data", "fiqa", "naver--splade-v3", [1])
    found = read_row(tmp_path / "results" / "fiqa" / "naver--splade-v3")

    def with_revision(revision: str) -> Row:
        system = found.result.system.model_copy(update={"revision": revision})
        return Row(found.result.model_copy(update={"system": system}))

    made = mteb.make_mteb_files([with_revision("0123abcd")])
    assert set(made) == {
        "mteb/results/naver__splade-v3/0123abcd/FiQA2018.json",
        "mteb/results/naver__splade-v3/0123abcd/model_meta.json",
    }
    assert (
        made["mteb/results/naver__splade-v3/0123abcd/model_meta.json"]["name"] == "naver/splade-v3"
    )
    for revision, folder in (("../../evil", "__.._evil"), ("refs/pr/1", "refs_pr_1"), ("..", "_")):
        made = mteb.make_mteb_files([with_revision(revision)])
        assert {name.rpartition("/")[0] for name in made} == {
            f"mteb/results/naver__splade-v3/{folder}"
        }
    public = {*BEIR_13, *GROUPS["cqadupstack"], "cqadupstack", "msmarco"}
    tasks = {}
    for name in (*REGISTRY, "cqadupstack"):
        facts = datasets.find_facts(name)
        assert facts is not None
        if facts.mteb:
            tasks[name] = facts.mteb
    assert set(tasks) == public
    assert len(set(tasks.values())) == len(public)
    assert tasks["cqadupstack-gis"] == "CQADupstackGisRetrieval"


# --- the command ---


def test_the_command_writes_everything_and_twice_the_same(folders, tmp_path):
    results, data_dir = folders
    report = benchmarking.leaderboard(
        results, tmp_path / "one", data_dir=data_dir, documents=2, verify=True
    )
    assert json.loads(json.dumps(report)) == report
    written = read_tree(tmp_path / "one")
    assert len(written) == report["files"] == 11
    assert {name for name in written if "/" not in name} == {
        f"leaderboard.{end}" for end in ("md", "csv", "tex", "json", "html")
    }
    assert report["verified_rows"] == 6
    assert report["systems"]["weak"]["losses"] == 23
    assert report["mean_over"] == ["made", "scifact"]
    assert json.loads(written["leaderboard.json"]) == make_board(read_rows(results)).model_dump()
    benchmarking.leaderboard(results, tmp_path / "two", data_dir=data_dir, documents=2)
    assert read_tree(tmp_path / "two") == written


def test_a_changed_row_is_found_with_and_without_verifying(tmp_path):
    results, data_dir = write_results(tmp_path, {"made": {"bm25": [1, 2]}})
    with pytest.raises(DataError, match="row made/bm25: its data set 'made' is not in"):
        benchmarking.leaderboard(
            results, tmp_path / "out", data_dir=tmp_path / "nowhere", verify=True
        )
    path = results / "made" / "bm25" / "result.json"
    good = path.read_text()
    path.write_text(good.replace('"nDCG@10": 0.8', '"nDCG@10": 0.9', 1))
    with pytest.raises(DamagedError, match=r"nDCG@10 is 0\.9\d+, the mean of its queries 0\.8\d+"):
        benchmarking.leaderboard(results, tmp_path / "out", data_dir=data_dir)
    whole = json.loads(good)
    whole["per_query"]["MRR@10"] = {"q0": 0.75, "q1": 0.75}  # the same mean
    path.write_text(json.dumps(whole))
    with pytest.raises(DamagedError, match=r"MRR@10 of query q0 is 0\.75, its run gives 1\.0"):
        benchmarking.leaderboard(results, tmp_path / "out", data_dir=data_dir, verify=True)
    assert not (tmp_path / "out").exists()


def test_what_is_refused(folders, tmp_path):
    results, _ = folders
    with pytest.raises(
        ConfigError,
        match=r"the baseline 'bm52' has no row; it must be one of bm25, "
        r"my_model\+v1, weak",
    ):
        benchmarking.leaderboard(results, tmp_path / "out", baseline="bm52")
    with pytest.raises(DataError, match=r"empty holds no row \(DATASET/SYSTEM/result\.json\)"):
        benchmarking.leaderboard(tmp_path / "empty", tmp_path / "out")
    with pytest.raises(ConfigError, match="queries is -1; it must be at least 0"):
        benchmarking.leaderboard(results, tmp_path / "out", queries=-1)


def test_rows_of_different_data_are_not_compared(tmp_path):
    results, data_dir = write_results(tmp_path, {"made": {"bm25": [1, 2]}})
    (data_dir / "made" / "corpus.jsonl").write_text(
        '{"_id": "d0", "text": "changed"}\n{"_id": "d1", "text": ""}\n'
    )
    write_row(results, data_dir, "made", "weak", [1, 2])
    with pytest.raises(
        DataError,
        match=r"made/bm25 and made/weak were measured on different data "
        r"\(corpus_sha256\)",
    ):
        make_board(read_rows(results))


def test_a_measure_deeper_than_the_run_is_left_out(tmp_path):
    results, _ = write_results(tmp_path, {"scifact": {"bm25": [1] * 200, "shallow": [1] * 200}})
    path = results / "scifact" / "shallow" / "result.json"
    files.write_json(
        path,
        json.loads(path.read_text().replace('"hits_per_query": 1000', '"hits_per_query": 100')),
    )
    board = make_board(read_rows(results), published="none")
    for name in (None, "scifact"):
        cell = cell_of(board, "shallow", name)
        assert (cell["nDCG@10"], cell["R@100"], cell["R@1000"]) == (1.0, 1.0, None)
        assert cell_of(board, "bm25", name)["R@1000"] == 1.0
    assert any("fewer hits per query than" in note for note in board.notes)
    assert "–" in next(
        line for line in formats.format_summary(board).splitlines() if "shallow" in line
    )
    made = mteb.make_mteb_files(read_rows(results))
    (scores,) = next(of for name, of in made.items() if "shallow" in name and "SciFact" in name)[
        "scores"
    ]["test"]
    assert "recall_at_1000" not in scores and scores["recall_at_100"] == 1.0
    with pytest.raises(
        DataError,
        match=r"row scifact/shallow has 100 hits per query; there must be as "
        r"many as R@1000",
    ):
        make_board(read_rows(results), measure="R@1000")


def test_systems_without_latency_and_with_equal_answers(tmp_path):
    write_dataset(tmp_path / "data", "made", 3)
    for system in ("bm25", "same"):
        write_row(tmp_path / "results", tmp_path / "data", "made", system, [1, 2, 0], p50=None)
    found = make_board(read_rows(tmp_path / "results"))
    same = cell_of(found, "same")
    assert (same["delta"], same["p"], same["p_adjusted"]) == (0.0, 1.0, 1.0)
    assert (same["wins"], same["ties"], same["losses"]) == (0, 3, 0)
    assert same["efficiency"]["p50_ms"] is None
    assert "– / – / –" in formats.format_summary(found)


def test_the_mean_of_pooled_queries_is_the_mean_of_the_means():
    values: Sequence[Mapping[str, float]] = [
        {"a": 0.25, "b": 0.75},
        {"a": 1.0, "b": 0.5, "c": 0.0, "d": 0.3},
    ]
    pooled = pool(values, [0.5, 0.5])
    assert len(pooled) == 6
    assert sum(pooled.values()) / 6 == pytest.approx((0.5 + 0.45) / 2)
    assert make_run([2])["q0"] == [("f0", 100.0), ("d0", 99.0)]
