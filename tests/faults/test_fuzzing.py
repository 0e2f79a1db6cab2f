"""Odd bytes in every reader and odd words on the command line have two outcomes: a right result,
or one line and the documented exit code.

The cases are the same in every run. ``scripts/fuzz_readers.py`` looks for new ones.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import odd_inputs
import pytest
from fuzzed_readers import READERS
from hypothesis import HealthCheck, given, settings, strategies
from shell import write_collection

import sparse_ir
from sparse_ir import cli
from sparse_ir.models.checkpoint import read_layout
from sparse_ir.models.encoder import Encoder

FUZZ = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)


@pytest.mark.parametrize("name", READERS)
def test_changed_files(name: str, tmp_path: Path) -> None:
    content, read = READERS[name]
    path = tmp_path / name
    path.write_bytes(content)
    read(path)

    @FUZZ
    @given(odd_inputs.changed_bytes(content) | strategies.binary(max_size=60))
    def check(changed: bytes) -> None:
        path.write_bytes(changed)
        odd_inputs.check_outcome(lambda: read(path), path)

    check()


JSON_READERS = {
    "corpus.jsonl": {"_id": "a", "title": "t", "text": "one"},
    "corpus.json": [{"_id": "a", "text": "one"}],
    "run.json": {"q": {"a": 2.5}},
    "sparse_ir.json": {"format": 1, "mode": "causal", "top_k": 5, "bos": True},
    "idf.json": {"a": 1.5},
    "tokenizer.json": json.loads(READERS["tokenizer.json"][0]),
}


@pytest.mark.parametrize("name", JSON_READERS)
def test_changed_json(name: str, tmp_path: Path) -> None:
    path = tmp_path / name

    @FUZZ
    @given(odd_inputs.changed_json(JSON_READERS[name]))
    def check(text: str) -> None:
        path.write_text(text, encoding="utf-8")
        odd_inputs.check_outcome(lambda: READERS[name][1](path), path)

    check()


@pytest.fixture(scope="module")
def model(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A router in the layout of sentence-transformers. Read only."""
    folder = tmp_path_factory.mktemp("fuzzed") / "router"
    encoder = Encoder.load(tiny_folder)
    weights = np.ones(len(encoder.vocabulary), dtype=np.float32)
    encoder.save(folder, layout="router", query_weights=weights)
    return folder


def test_changed_descriptions_of_a_model(model: Path, tmp_path: Path) -> None:
    names = []
    for path in sorted(model.rglob("*.json")):
        if path.name not in ("tokenizer.json", "idf.json"):
            names.append(path.relative_to(model))
    contents = {name: json.loads((model / name).read_text(encoding="utf-8")) for name in names}
    folder = shutil.copytree(model, tmp_path / "m")

    @FUZZ
    @given(strategies.data())
    def check(data: Any) -> None:
        name = data.draw(strategies.sampled_from(names))
        text = data.draw(odd_inputs.changed_json(contents[name]))
        (folder / name).write_text(text, encoding="utf-8")
        odd_inputs.check_outcome(lambda: read_layout(folder))
        (folder / name).write_text(json.dumps(contents[name]), encoding="utf-8")

    check()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with good and bad files, in which commands run."""
    root = tmp_path_factory.mktemp("words")
    write_collection(root / "corpus", 12)
    sparse_ir.build("lexical", root / "corpus", root / "index", engine="exact")
    sparse_ir.search(root / "index", root / "corpus", root / "run.trec")
    (root / "noise").write_bytes(bytes(range(256)))
    (root / "empty").touch()
    (root / "pointer").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    return root


@pytest.fixture
def inside(place: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(place)
    yield
    os.chdir(before)


COMMANDS = ("verify", "search", "explain", "evaluate", "compare", "export", "index", "show")
VALUES = (
    "corpus", "index", "index.vectors", "run.trec", "noise", "empty", "pointer", "./nosuch", ".",
    "corpus/queries.jsonl", "corpus/qrels/test.tsv", "0", "-1", "1e999", "nan", "3", "", "é", "q0",
    "nDCG@10", "d1", "the river", "exact", "\ud800", "a b", "--", "-x",
)  # fmt: skip
OPTIONS = (
    "--index", "--queries", "--output", "--run", "--qrels", "--vectors", "--hits", "--threads",
    "--measures", "--scale", "--bits", "--engine", "--tag", "--tuned", "--json", "--quiet",
    "--doc-id", "--question", "--query", "--min-ratio", "--candidates", "--ranking", "--prune-mass",
)  # fmt: skip


def test_words_on_the_command_line(place: Path, inside: None) -> None:
    from cyclopts import CycloptsError

    words = strategies.lists(strategies.sampled_from(VALUES + OPTIONS), max_size=8)
    index = tempfile.mkdtemp(dir=place)

    @FUZZ
    @given(strategies.sampled_from(COMMANDS), words)
    def check(command: str, words: list[str]) -> None:
        outputs = {"index": "export", "export": "export"}
        if command in outputs and "--output" not in words:
            words = [*words, "--output", f"{index}/new"]

        def call() -> None:
            try:
                code = cli.main([command, *words])
            except (CycloptsError, OSError) as error:
                assert "\n" not in cli._describe_error(error)
            else:
                assert code in (0, 1)

        odd_inputs.check_outcome(call)

    check()
    assert (place / "corpus" / "corpus.jsonl").is_file()
    assert sparse_ir.verify(place / "index")["ok"]
