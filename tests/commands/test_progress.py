"""Progress and the log: a line every few seconds where there is no terminal, and silence by default."""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys
from pathlib import Path

import pytest
from shell import write_collection

import sparse_ir
from sparse_ir import cli, console
from sparse_ir.console import progress_bar
from sparse_ir.errors import ConfigError


@pytest.fixture
def collection(tmp_path: Path) -> Path:
    return write_collection(tmp_path / "collection", 60)


def test_a_line_says_how_far_how_fast_and_how_long(monkeypatch, caplog):
    clock = iter([100.0, 102.0, 110.0, 111.0, 120.0, 120.0])
    monkeypatch.setattr(console.time, "monotonic", lambda: next(clock))
    monkeypatch.delenv("SPARSE_IR_LOG_SECONDS")
    caplog.set_level(logging.INFO, "sparse_ir")
    with progress_bar(1000, True, desc="encoding", unit=" documents", initial=100) as bar:
        bar.update(10)  # after 2 seconds: too early for a line
        bar.update(90)
        bar.update(1)
        bar.update(799)
    lines = [record.message for record in caplog.records]
    assert lines == [
        "encoding: 200 of 1,000 documents (20 %), 10 per second, 80 s left",
        "encoding: 1,000 of 1,000 documents (100 %), 45 per second, 0 s left",
        "encoding: 1,000 of 1,000 documents (100 %), 45 per second, 0 s left",
    ]
    assert caplog.records[0].facts["seconds_left"] == 80


def test_the_variable_is_checked(monkeypatch):
    monkeypatch.setenv("SPARSE_IR_LOG_SECONDS", "often")
    with pytest.raises(ConfigError, match="SPARSE_IR_LOG_SECONDS is 'often'; it must be a whole"):
        progress_bar(10, True, desc="indexing", unit=" documents")


def test_an_unknown_total_and_a_long_time_left(monkeypatch, caplog):
    monkeypatch.setenv("SPARSE_IR_LOG_SECONDS", "0")
    caplog.set_level(logging.INFO, "sparse_ir")
    with progress_bar(None, True, desc="checking", unit=" documents") as bar:
        bar.update(2000)
    assert caplog.records[0].message.startswith("checking: 2,000 documents, ")
    facts = {"task": "t", "unit": "u", "done": 1, "total": 7200, "per_second": 1.0}
    assert console._describe_progress(facts | {"seconds_left": 7199}).endswith("120 min left")


@pytest.mark.parametrize("shown", [True, False])
def test_short_or_hidden_work_says_nothing(shown, caplog):
    caplog.set_level(logging.DEBUG, "sparse_ir")
    with progress_bar(10, shown, desc="indexing", unit=" documents") as bar:
        bar.update(10)
    assert caplog.records == []


def test_a_terminal_gets_a_bar(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with progress_bar(3, True, desc="indexing", unit=" documents") as bar:
        bar.update(3)
    assert "indexing: 100%" in capsys.readouterr().err


def build(collection: Path, *words: str) -> None:
    command = ["build", "--model", "lexical", "--input", str(collection), "--engine", "exact"]
    output = str(collection.parent / "index")
    assert cli.main([*command, "--fields", "sparse", "--output", output, *words]) == 0


def test_a_build_without_a_terminal_logs_its_progress(collection, monkeypatch, capfd):
    build(collection)
    assert capfd.readouterr().err == ""  # too short for a line
    monkeypatch.setenv("SPARSE_IR_LOG_SECONDS", "0")
    build(collection, "--quiet")
    assert capfd.readouterr().err == ""
    build(collection)
    lines = capfd.readouterr().err.splitlines()
    done = [line for line in lines if re.search(r"^\d\d:\d\d:\d\d indexing: \d+ of 60 doc", line)]
    assert done  # documents without a posting are not indexed
    assert not any("verifying" in line for line in lines)
    build(collection, "--verbose")
    lines = capfd.readouterr().err.splitlines()
    assert any(line.endswith("index: verifying") for line in lines)
    build(collection, "--log-format", "json")
    records = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    last = [record for record in records if record.get("task") == "indexing"][-1]
    assert (last["level"], last["logger"], last["total"]) == ("info", "sparse_ir.progress", 60)
    assert logging.getLogger("sparse_ir").level == logging.NOTSET


def test_python_is_silent_by_default_and_logs_on_request(collection, monkeypatch, caplog, capfd):
    monkeypatch.setenv("SPARSE_IR_LOG_SECONDS", "0")
    options = {"engine": "exact", "fields": "sparse", "progress": True}
    sparse_ir.build("lexical", collection, collection.parent / "index", **options)
    assert capfd.readouterr().err == ""
    caplog.set_level(logging.INFO, "sparse_ir")
    sparse_ir.build("lexical", collection, collection.parent / "index", **options)
    assert any(" of 60 documents" in record.message for record in caplog.records)


def test_the_package_has_a_handler_that_prints_nothing():
    code = "import sparse_ir.console, logging; print(logging.getLogger('sparse_ir').handlers)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "NullHandler" in done.stdout
