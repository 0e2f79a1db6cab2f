"""Every command of the README is executed: the set-up by CI, all others here, as they stand, on a
small collection.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_decoders
import tiny_models

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SETUP, *BLOCKS = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
BENCHMARKS = [block for block in BLOCKS if "bench_" in block]
COMMANDS = [
    line for block in BLOCKS if block not in BENCHMARKS for line in block.strip().split("\n")
]
TEXTS = {
    "d1": "Wait for several threads with join.",
    "d2": "A lock protects what threads share.",
    "d3": "Read a table of comma separated values.",
}


@pytest.fixture(scope="module")
def folder_with_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("readme")
    corpus = folder / "my_corpus"
    (corpus / "qrels").mkdir(parents=True)
    lines = [
        f'{{"_id": "{doc_id}", "title": "", "text": "{text}"}}\n' for doc_id, text in TEXTS.items()
    ]
    (corpus / "corpus.jsonl").write_text("".join(lines))
    (corpus / "queries.jsonl").write_text('{"_id": "q1", "text": "wait for threads"}\n')
    (corpus / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td1\t1\n")
    tiny_models.build("bert", folder / "my_model")
    tiny_decoders.build("llama", folder / "my_decoder")
    (settings,) = re.findall(r"```json\n(.*?)```", README, re.DOTALL)
    (folder / "my_decoder.json").write_text(settings)
    shutil.copytree(ROOT / "scripts", folder / "scripts")
    (configuration,) = re.findall(r"```toml\n(.*?)```", README, re.DOTALL)
    (folder / "my_training.toml").write_text(configuration)
    write_pairs(folder / "my_pairs")
    return folder


def write_pairs(folder: Path) -> None:
    """Each sentence twice, cut in different places, and its first words as the question."""
    (folder / "qrels").mkdir(parents=True)
    texts = [
        text + " " + more for text in tiny_models.SENTENCES for more in ("and then", "but why")
    ]
    with (
        (folder / "corpus.jsonl").open("w") as corpus,
        (folder / "queries.jsonl").open("w") as queries,
        (folder / "qrels" / "train.tsv").open("w") as qrels,
    ):
        qrels.write("query-id\tcorpus-id\tscore\n")
        for number, text in enumerate(texts):
            corpus.write(json.dumps({"_id": f"d{number}", "title": "", "text": text}) + "\n")
            queries.write(
                json.dumps({"_id": f"q{number}", "text": f"{text.split()[1]} {text.split()[-1]}"})
                + "\n"
            )
            qrels.write(f"q{number}\td{number}\t1\n")


def test_set_up_is_what_ci_runs() -> None:
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    for command in SETUP.strip().replace("\n", " && ").split(" && "):
        assert command.replace(".venv", ".ci-venv") in ci


def run_in(folder: Path, command: list[str] | str) -> str:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        command,
        shell=isinstance(command, str),
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ, "PATH": path},
        timeout=300,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.slow
def test_commands_run_in_their_order(folder_with_corpus: Path) -> None:
    assert len(COMMANDS) >= 10
    outputs = {command: run_in(folder_with_corpus, command) for command in COMMANDS}
    evaluated = next(
        text for command, text in outputs.items() if command.startswith("sparse-ir evaluate")
    )
    assert re.search(r"nDCG@10\s+1\b", evaluated)


def test_python_example_runs(folder_with_corpus: Path) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert "d1" in run_in(folder_with_corpus, [sys.executable, "-c", example])


def test_every_verb_is_in_the_readme() -> None:
    from sparse_ir.cli import VERBS

    for verb in VERBS:
        assert f"sparse-ir {verb.__name__}" in README


def test_measured_tables_are_those_of_the_kept_figures() -> None:
    from sparse_ir.benchmark import formats
    from sparse_ir.benchmark.board import read_board

    path = ROOT / "scripts" / "results" / "leaderboard.json"
    board = read_board(json.loads(path.read_text(encoding="utf-8")))
    assert formats.format_summary(board) in README
    assert formats.format_datasets(board) in README


@pytest.mark.parametrize("name", ["ablation", "ablation_240"])
def test_ablation_tables_are_those_of_the_kept_figures(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.syspath_prepend(ROOT / "scripts")
    ablate = importlib.import_module("ablate")
    found = json.loads((ROOT / "scripts" / "results" / f"{name}.json").read_text(encoding="utf-8"))
    assert ablate.as_markdown(found) in README
    assert ablate.as_pairs(found) in README


def test_rows_of_approximations_are_those_of_the_kept_figures(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(ROOT / "scripts")
    bench = importlib.import_module("bench_approximations")
    found = json.loads(
        (ROOT / "scripts" / "results" / "approximations.json").read_text(encoding="utf-8")
    )
    (part,) = re.findall(r"### Approximations\n(.*?)\n### ", README, re.DOTALL)
    shown = [line for line in part.split("\n") if line.startswith("|")]
    assert len(shown) > 10
    assert set(shown) <= set(bench.as_markdown(found).split("\n"))


def test_decoder_table_is_that_of_the_kept_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "scripts")
    compare = importlib.import_module("compare_decoders")
    found = json.loads((ROOT / "scripts" / "results" / "decoders.json").read_text(encoding="utf-8"))
    assert compare.as_markdown(found) in README


def test_search_tables_are_those_of_the_kept_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "scripts")
    bench_search = importlib.import_module("bench_search")
    found = json.loads((ROOT / "scripts" / "results" / "search.json").read_text(encoding="utf-8"))
    assert bench_search.format_latency(found) in README
    assert bench_search.format_costs(found) in README
    assert bench_search.format_growth(found) in README


def test_files_that_the_readme_links_to_exist() -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", README)
    assert links
    assert not [link for link in links if not (ROOT / link).is_file()]
