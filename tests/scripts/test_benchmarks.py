"""The benchmarks run from beginning to end in a small form; what they measure is for people, not
for tests.
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from shell import write_collection

import sparse_ir

SCRIPTS = Path(__file__).parents[2] / "scripts"
SMALL = {
    "bench_approximations.py": [
        "--documents",
        "150",
        "--max-queries",
        "5",
        "--rounds",
        "1",
        "--threads",
        "1",
    ],
    "bench_encode.py": [
        "--texts",
        "8",
        "--max-length",
        "32",
        "--rounds",
        "1",
        "--threads",
        "1",
        "--systems",
        "float32",
        "int8",
    ],
    "bench_train.py": [
        "--batch",
        "4",
        "--max-length",
        "32",
        "--steps",
        "4",
        "--rounds",
        "1",
        "--threads",
        "1",
    ],
    "bench_decoder.py": [
        "--size",
        "tiny",
        "--tokens",
        "32",
        "--texts",
        "4",
        "--batch",
        "2",
        "--rounds",
        "1",
        "--threads",
        "1",
        "--device",
        "cpu",
        "--precision",
        "float32",
    ],
    "bench_search.py": [
        "--documents",
        "400",
        "--per-set",
        "6",
        "--rounds",
        "1",
        "--hits",
        "5",
        "50",
        "--threads",
        "1",
        "--growth",
        "300",
        "--options",
        "mass=0.8 candidates=4",
        "--no-processes",
    ],
    "bench_input.py": ["--documents", "8", "--rounds", "1"],
    "bench_hybrid.py": ["--collections", "made", "--documents", "200", "--rounds", "1", "--limits"],
    "bench_index.py": ["--documents", "300", "--terms", "20", "--rounds", "1", "--threads", "1"],
}


def test_every_benchmark_is_listed_here() -> None:
    assert sorted(path.name for path in SCRIPTS.glob("bench_*.py")) == sorted(SMALL)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(SMALL))
def test_benchmark_runs_and_writes_its_figures(name: str, tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    command = [sys.executable, str(SCRIPTS / name), *SMALL[name], "--json", str(figures)]
    if name == "bench_hybrid.py":
        collection = write_collection(tmp_path / "data" / "made", 60)
        sparse_ir.encode("lexical", str(collection), tmp_path / "vectors" / "made")
        command += ["--data", str(tmp_path / "data"), "--vectors", str(tmp_path / "vectors")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "|" in done.stdout  # the Markdown table
    assert json.loads(figures.read_text())


def test_too_few_steps_are_refused() -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPTS / "bench_train.py"), "--steps", "2"],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert (
        done.returncode == 2
        and "--steps is 2; the first 2 are not counted, so allowed: 3 or more" in done.stderr
    )


def test_the_estimate_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """One layer of width 2: four square matrices, three of 2 x 3, and a tied table of 10 words."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    bench = importlib.import_module("bench_decoder")
    size = bench.Size(layers=1, width=2, inner=3, heads=1, groups=1, vocabulary=10, tied=True)
    network = 4 * 2 * 2 + 3 * 2 * 3 + 10 * 2
    for lora, weights, passes in ((True, 2, 8), (False, 18, 10)):
        found = bench.estimate(size, 1, lora)
        assert found["weights_gb"] == pytest.approx(weights * network / 1e9)
        assert found["hours_an_epoch"] == pytest.approx(
            passes * network * 15_717 * (32 * 16 * 192 + 32 * 32) / (312e12 * 0.4) / 3600
        )
        assert bench.estimate(size, 8, lora)["hours_an_epoch"] == pytest.approx(
            found["hours_an_epoch"] / 8
        )
        assert bench.estimate(size, 8, lora)["memory_gb"] == found["memory_gb"]
    assert (
        bench.estimate(size, 1, False)["adapters_gb"] == 0 and found["trained_m"] == network / 1e6
    )


@pytest.mark.parametrize("planted", [0, 2])
def test_printed_figures_are_checked_to_the_last_digit(planted: int, tmp_path: Path) -> None:
    write_collection(tmp_path / "data" / "made", 30)
    checks = tmp_path / "checks"
    (checks / "made-runs").mkdir(parents=True)
    # two of eight queries at the first rank
    run = {"q0": {"d0": 2.0, "d1": 1.0}, "q1": {"d1": 1.0}, "q2": {"d0": 1.0}}
    (checks / "made-runs" / "x_results.json").write_text(json.dumps(run))
    recall = 0.25001 if planted else 0.25
    printed = json.dumps(
        [{"NDCG@10": 0.25}, {"Recall@100": recall}, {"MAP@10": 0.25}, {"P@1": 0.25}], indent=4
    )
    (checks / "made-runs" / "eval_result_x.txt").write_text(f"Evaluation Scores:\n{printed}\n")
    lines = [
        "dataset\tmodel\tmetric\tvalue",
        f"made\tflat\tR@1000\t{'0.9999' if planted else '1.0000'}",
        "made\tsplade\tR@1000\t0.5000",
        "absent\tflat\tR@100\t0.5000",
    ]
    (checks / "anserini-beir-expected.tsv").write_text("\n".join(lines) + "\n")
    command = [
        sys.executable,
        str(SCRIPTS / "check_figures.py"),
        "--checks",
        str(checks),
        "--data",
        str(tmp_path / "data"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == int(planted > 0), done.stderr
    assert done.stdout.count("| same |") == 5 - planted
    assert done.stdout.count("| DIFFERENT |") == planted


@pytest.fixture
def compare_decoders(tmp_path, monkeypatch):
    """Runs the comparison in its smallest form, with further options; returns the figures."""
    write_collection(tmp_path / "pairs", 60, queries=30, seed=1)
    (tmp_path / "pairs" / "qrels" / "test.tsv").rename(tmp_path / "pairs" / "qrels" / "train.tsv")
    write_collection(tmp_path / "made", 40, queries=12)
    monkeypatch.syspath_prepend(SCRIPTS)
    module = importlib.import_module("compare_decoders")
    small = {
        "train": tmp_path / "pairs",
        "collections": tmp_path / "made",
        "output": tmp_path / "runs",
        "json": tmp_path / "figures.json",
        "layers": 1,
        "width": 64,
        "vocabulary": 400,
        "length": 24,
        "batch": 4,
        "steps": 4,
        "adaptation-steps": 2,
        "terms": 20,
        "query-terms": 8,
        "words": 12,
        "documents": 30,
        "lora": 2,
    }

    def run(*options: str) -> dict[str, Any]:
        fixed = [word for name, value in small.items() for word in (f"--{name}", str(value))]
        monkeypatch.setattr(sys, "argv", ["compare_decoders.py", *fixed, *options])
        module.main()
        return json.loads((tmp_path / "figures.json").read_text())

    return run


@pytest.mark.slow
def test_decoders_are_compared_at_the_same_sparsity_and_what_is_done_stays(
    compare_decoders, tmp_path, capsys
):
    found = compare_decoders("--only", "causal", "bidirectional, mntp", "echo, untrained")
    assert list(found) == ["BM25", "causal", "bidirectional, mntp", "echo, untrained"]
    for name, row in found.items():
        made = row["collections"]["made"]
        assert len(made["per_query"]) == 12 and 0 < made["terms"] <= 20
        assert name == "BM25" or made["terms_found"] >= made["terms"]
    configuration = (
        tmp_path / "runs" / "variants" / "bidirectional-mntp-1" / "config.toml"
    ).read_text()
    assert 'objective = "mntp"' in configuration and "centered = true" in configuration
    corpus = (tmp_path / "runs" / "collections" / "made" / "corpus.jsonl").read_text().splitlines()
    assert len(corpus) == 30 and max(len(json.loads(line)["text"].split()) for line in corpus) == 12
    done = sorted((tmp_path / "runs" / "variants").glob("*/figures.json"))
    times = [path.stat().st_mtime_ns for path in done]
    again = compare_decoders("--only", "causal", "--seeds", "1", "2")
    assert [path.stat().st_mtime_ns for path in done] == times
    assert (
        again["causal"]["seeds"] == [1, 2] and again["echo, untrained"] == found["echo, untrained"]
    )
    first, second = again["causal"]["collections"]["made"]["by_seed"]
    assert again["causal"]["collections"]["made"]["nDCG@10"] == pytest.approx((first + second) / 2)
    assert first == found["causal"]["collections"]["made"]["nDCG@10"]
    table = capsys.readouterr().out.rstrip().split("\n")[-4:]
    assert [row.split(" | ")[0][2:] for row in table] == list(again)
