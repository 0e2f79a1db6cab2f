"""The verb ``compare``: worked differences, names, texts, runs as others write them, and what it
refuses.
"""

from __future__ import annotations

import gzip
import json
import math
from pathlib import Path
from typing import Any

import pytest
import pytrec_eval
from shell import error_of, report_of, write_lines

from sparse_ir.commands import comparison
from sparse_ir.commands.evaluating import compare
from sparse_ir.errors import ConfigError, DataError

G2 = 1 / math.log2(3)  # gain of the second rank
# of query q1 to q5 the rank of its one relevant document, d1 to d5; 0: not found
RANKS = {"base": [1, 2, 2, 1, 0], "better": [1, 1, 1, 1, 1], "other": [2, 1, 2, 1, 0]}


def write_run(path: Path, ranks: list[int], *, tag: str = "x", separator: str = " ") -> Path:
    """Query qN finds dN at a rank, behind fillers; the lines stand in no order, and the ranks in
    them are wrong.
    """
    lines = []
    for number, rank in enumerate(ranks, 1):
        found = [*(f"f{place}" for place in range(1, rank)), f"d{number}"] if rank else ["f1"]
        lines += [
            separator.join((f"q{number}", "Q0", doc_id, "0", f"{9 - place}", tag)) + "\n"
            for place, doc_id in enumerate(found)
        ]
    text = "".join(reversed(lines))
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three runs of ``RANKS``, each in another form, with qrels and queries. Read only."""
    root = tmp_path_factory.mktemp("compare")
    (root / "qrels.txt").write_text("".join(f"q{number} 0 d{number} 1\n" for number in range(1, 6)))
    write_lines(
        root / "queries.jsonl",
        [{"_id": f"q{number}", "text": f"question {number}"} for number in range(1, 5)]
        + [{"_id": "q5", "text": "very " * 30}],
    )
    write_run(root / "base.trec", RANKS["base"])
    write_run(root / "better.txt.gz", RANKS["better"], separator="\t")
    scores = {
        f"q{number}": {f"d{number}": 1.0, **({"f": 2.0} if rank == 2 else {})}
        if rank
        else {"f": 1.0}
        for number, rank in enumerate(RANKS["other"], 1)
    }
    (root / "other.json").write_text(json.dumps(scores))
    return root


def run(folder: Path, *names: str, **options: Any) -> dict[str, Any]:
    return compare(
        *(str(folder / name) for name in names), qrels=str(folder / "qrels.txt"), **options
    )


def test_worked_example(folder):
    found = run(folder, "base.trec", "better.txt.gz", measures="nDCG@10,RR@10")
    table = found["nDCG@10"]
    assert table["base"]["mean"] == pytest.approx((2 + 2 * G2) / 5)
    assert table["base"]["low"] < table["base"]["mean"] < table["base"]["high"]
    assert {table["base"][key] for key in ("difference", "p", "p_holm", "wins")} == {None}
    better = table["better"]
    assert (better["mean"], better["low"], better["high"]) == (1.0, 1.0, 1.0)
    assert better["difference"] == pytest.approx(1 - (2 + 2 * G2) / 5)
    # three differences of one sign: two of eight sign patterns are as far apart
    assert (better["p"], better["p_holm"]) == (0.25, 0.25)
    assert (better["wins"], better["ties"], better["losses"]) == (3, 2, 0)
    assert better["difference_low"] <= better["difference"] <= better["difference_high"]
    assert found["RR@10"]["base"]["mean"] == pytest.approx((1 + 1 / 2 + 1 / 2 + 1 + 0) / 5)
    assert (found["queries"], found["baseline"]) == (5, "base")


def test_several_runs_are_corrected_together_and_the_baseline_can_be_chosen(folder):
    found = run(folder, "base.trec", "better.txt.gz", "other.json", baseline="other")
    table = found["nDCG@10"]
    assert list(table) == ["base", "better", "other"]
    assert table["other"]["p"] is None
    assert (table["base"]["wins"], table["base"]["ties"], table["base"]["losses"]) == (1, 3, 1)
    assert (table["base"]["p"], table["base"]["p_holm"]) == (1.0, 1.0)
    assert (table["better"]["p"], table["better"]["p_holm"]) == (0.25, 0.5)


def test_means_are_those_of_trec_eval(folder):
    found = run(folder, "base.trec", "better.txt.gz", measures="nDCG@10")
    qrels = {f"q{number}": {f"d{number}": 1} for number in range(1, 6)}
    scores: dict[str, dict[str, float]] = {}
    for line in (folder / "base.trec").read_text().splitlines():
        query_id, _, doc_id, _, score, _ = line.split()
        scores.setdefault(query_id, {})[doc_id] = float(score)
    values = pytrec_eval.RelevanceEvaluator(qrels, {"ndcg_cut_10"}).evaluate(scores)
    assert found["nDCG@10"]["base"]["mean"] == pytest.approx(
        sum(of["ndcg_cut_10"] for of in values.values()) / 5
    )


def test_queries_that_differ_most_with_their_texts(folder):
    found = run(folder, "base.trec", "better.txt.gz", queries=str(folder / "queries.jsonl"), show=2)
    shown = found["better against base, nDCG@10"]
    assert list(shown) == ["q5", "q2"]
    assert shown["q2"] == {
        "baseline": pytest.approx(G2),
        "run": 1.0,
        "difference": pytest.approx(1 - G2),
        "text": "question 2",
    }
    assert shown["q5"]["text"].endswith("very …")
    assert len(shown["q5"]["text"]) <= 80
    assert list(run(folder, "base.trec", "other.json")["other against base, nDCG@10"]) == [
        "q1",
        "q2",
    ]
    assert "better against base, nDCG@10" not in run(folder, "base.trec", "better.txt.gz", show=0)


def test_equal_runs_have_no_queries_to_show_and_no_evidence(folder):
    paths = str(folder / "base.trec"), f"again={folder / 'base.trec'}"
    found = compare(*paths, qrels=str(folder / "qrels.txt"))
    assert found["nDCG@10"]["again"]["p"] == 1.0
    assert found["nDCG@10"]["again"]["ties"] == 5
    assert not [title for title in found if "against" in title]


def test_more_samples_and_another_seed_change_what_is_drawn_and_nothing_else(tmp_path):
    count = 40
    (tmp_path / "qrels").write_text(
        "".join(f"q{number} 0 d{number} 1\n" for number in range(1, count + 1))
    )
    paths = [
        str(write_run(tmp_path / name, [1 + (number * step) % 4 for number in range(count)]))
        for name, step in (("a", 1), ("b", 3))
    ]
    found = [
        compare(*paths, qrels=str(tmp_path / "qrels"), samples=99, seed=seed)["nDCG@10"]["b"]
        for seed in (1, 1, 2)
    ]
    assert found[0] == found[1] != found[2]
    assert found[0]["mean"] == found[2]["mean"]
    assert found[0]["p"] * 100 == pytest.approx(round(found[0]["p"] * 100))


def test_the_querys_own_document_can_be_left_out(tmp_path):
    (tmp_path / "qrels").write_text("d1 0 d2 1\n")
    for name, first in (("self", "d1"), ("clean", "d3")):
        (tmp_path / name).write_text(f"d1 Q0 {first} 1 9 x\nd1 Q0 d2 2 8 x\n")
    paths = [str(tmp_path / "self"), str(tmp_path / "clean")]
    assert compare(*paths, qrels=str(tmp_path / "qrels"))["nDCG@10"]["self"][
        "mean"
    ] == pytest.approx(G2)
    found = compare(*paths, qrels=str(tmp_path / "qrels"), remove_query=True)["nDCG@10"]
    assert (found["self"]["mean"], found["clean"]["mean"]) == (1.0, pytest.approx(G2))


def test_queries_without_hits_and_without_judgements_are_counted(folder, tmp_path):
    (tmp_path / "short").write_text("q1 Q0 d1 1 1 x\nq9 Q0 d1 1 1 x\n")
    found = compare(
        str(folder / "base.trec"), str(tmp_path / "short"), qrels=str(folder / "qrels.txt")
    )
    assert found["runs"]["short"] == {
        "file": str(tmp_path / "short"),
        "queries_without_hits": 4,
        "queries_not_judged": 1,
    }
    assert found["nDCG@10"]["short"]["mean"] == 0.2


def test_the_command(folder):
    arguments = (
        folder / "base.trec",
        f"best={folder / 'better.txt.gz'}",
        "--qrels",
        folder / "qrels.txt",
    )
    report = report_of("compare", *arguments, "--measures", "RR@10")
    assert report == json.loads(
        json.dumps(compare(*map(str, arguments[:2]), qrels=str(arguments[3]), measures="RR@10"))
    )
    assert list(report["runs"]) == ["base", "best"]


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        (["base.trec"], {}, "1 runs given; compare needs at least two"),
        (
            ["base.trec", "base.trec"],
            {},
            (
                r"two runs have the name 'base' \(.*\); rename one with "
                r"NAME=RUN"
            ),
        ),
        (
            ["base.trec", "other.json"],
            {"baseline": "bm25"},
            "baseline is 'bm25'; it must be one of the runs: base, other",
        ),
        (
            ["base.trec", "other.json"],
            {"show": -1},
            "show is -1; it must be at least 0",
        ),
        (["base.trec", "other.json"], {"samples": 0}, "samples is 0; it must be at least 1"),
        (["base.trec", "other.json"], {"seed": -1}, "seed is -1; it must be at least 0"),
        (
            ["base.trec", "other.json"],
            {"measures": "nDCG@10,NumRet"},
            "measure 'NumRet' is summed over the queries",
        ),
        (["base.trec", "other.json"], {"measures": "nDGC@10"}, "measure 'nDGC@10' is unknown"),
    ],
)
def test_what_cannot_be_compared(folder, names, options, message):
    with pytest.raises(ConfigError, match=message):
        run(folder, *names, **options)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"bad: run: none of its 0 queries has both hits and judgements"),
        (
            "x1 Q0 d1 1 1 x\n",
            (
                r"bad: run: none of its 1 queries has both hits and judgements \(first "
                r"query.*'x1'"
            ),
        ),
        ("q1 Q0 d1 1 nan x\n", r"bad:1: score is 'nan'; it must be a finite number"),
        ("q1 Q0 d1 1 x\n", r"bad:1: 5 columns"),
        ("q1 Q0 d1 1 2 x\nq1 Q0 d1 2 1 x\n", r"bad:2: query 'q1' finds document 'd1' twice"),
    ],
)
def test_broken_runs_are_named(folder, tmp_path, text, message):
    (tmp_path / "bad").write_text(text)
    with pytest.raises(DataError, match=message):
        compare(str(folder / "base.trec"), str(tmp_path / "bad"), qrels=str(folder / "qrels.txt"))


def test_an_error_is_one_line(folder):
    assert error_of(
        "compare", folder / "base.trec", folder / "none", "--qrels", folder / "qrels.txt"
    ).startswith(f"{folder / 'none'}: no such run")
    assert (
        error_of("compare", "--qrels", folder / "qrels.txt")
        == "0 runs given; compare needs at least two"
    )


def test_names_of_files(tmp_path):
    found = comparison.name_runs(["a/bm25.run.gz", "b/splade.v3.trec", "x=c/bm25.run"])
    assert list(found) == ["bm25", "splade.v3", "x"]
    assert list(comparison.name_runs(["a/.trec", "b/run.trec.gz"])) == [".trec", "run"]
    (tmp_path / "a=b").write_text("")
    assert list(comparison.name_runs([str(tmp_path / "a=b"), "c"])) == ["a=b", "c"]
