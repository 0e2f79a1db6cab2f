"""Locale, interpreter, working directory, home and interruption of the process around a command."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from shell import ENVIRONMENT, write_collection

import sparse_ir
from sparse_ir.errors import EXIT_ERROR, EXIT_INTERRUPTED

COMMAND = [sys.executable, "-m", "sparse_ir"]
WITHOUT_LOCALE = {
    name: value
    for name, value in ENVIRONMENT.items()
    if name not in ("LANG", "LANGUAGE", "HOME", "PYTHONUTF8") and not name.startswith("LC_")
} | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


def run(
    *arguments: object,
    folder: Path | None = None,
    variables: Mapping[str, str] | None = None,
    options: tuple[str, ...] = (),
) -> subprocess.CompletedProcess[str]:
    """A command in an environment without locale and home."""
    return subprocess.run(
        [sys.executable, *options, "-m", "sparse_ir", *map(str, arguments)],
        capture_output=True,
        encoding="utf-8",
        timeout=240,
        check=False,
        cwd=folder,
        env=WITHOUT_LOCALE | dict(variables or {}),
    )


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BEIR folder with an accent in its name. Read only."""
    return write_collection(tmp_path_factory.mktemp("surroundings") / "données é", 20)


@pytest.mark.slow
@pytest.mark.parametrize("locale", ["C", "POSIX", "C.UTF-8"])
@pytest.mark.parametrize("engine", ["lucene", "exact"])
def test_paths_with_accents_in_every_locale(
    collection: Path, locale: str, engine: str, tmp_path: Path
) -> None:
    index = tmp_path / "Index ß 日本"
    arguments = ["--model", "lexical", "--input", collection, "--output", index]
    done = run("build", *arguments, "--engine", engine, variables={"LC_ALL": locale})
    assert done.returncode == 0, done.stderr
    done = run("verify", "--index", index, "--json", variables={"LC_ALL": locale})
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["ok"] is True


@pytest.mark.slow
@pytest.mark.parametrize("options", [("-O",), ("-OO",)])
def test_an_interpreter_without_docstrings(
    collection: Path, options: tuple[str, ...], tmp_path: Path
) -> None:
    for command in ("--help", "--version", "build --help", "train --help"):
        done = run(*command.split(), options=options)
        assert done.returncode == 0, done.stderr
    index = tmp_path / "index"
    arguments = ["--model", "lexical", "--input", collection, "--output", index]
    done = run("build", *arguments, options=options)
    assert done.returncode == 0, done.stderr
    arguments = ["--index", index, "--queries", collection, "--output", tmp_path / "run"]
    done = run("search", *arguments, options=options)
    assert done.returncode == 0, done.stderr
    done = run("doctor", "--model", "default", "--json", options=options)
    if options == ("-O",):
        assert done.returncode == 0, done.stderr
    else:  # transformers itself does not work
        assert "transformers reads docstrings, which python -OO" in done.stdout


def test_a_deleted_working_directory(collection: Path, tmp_path: Path) -> None:
    """Absolute paths work where Java is not needed; Java cannot start there and says so."""
    index = tmp_path / "index"
    script = f"""
import os, runpy, sys
os.mkdir({str(tmp_path / "gone")!r})
os.chdir({str(tmp_path / "gone")!r})
os.rmdir({str(tmp_path / "gone")!r})
sys.argv = ["sparse-ir", "build", "--model", "lexical", "--input", {str(collection)!r},
            "--output", {str(index)!r}, *sys.argv[1:]]
runpy.run_module("sparse_ir", run_name="__main__")
"""
    for engine in ("exact", "lucene"):
        done = subprocess.run(
            [sys.executable, "-c", script, "--engine", engine],
            capture_output=True,
            text=True,
            check=False,
            env=WITHOUT_LOCALE,
        )
        if engine == "exact":
            assert done.returncode == 0, done.stderr
        else:
            assert done.returncode == EXIT_ERROR, done.stderr
            assert "the working directory was deleted" in done.stderr
            assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("module", ["sparse_ir.cli", "cyclopts", "rich"])
def test_ctrl_c_while_the_program_starts(module: str) -> None:
    """From the first import on; before that, the interpreter answers by itself."""
    code = f"""
import sys, time

class SlowImport:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            print("started", flush=True)
            time.sleep(60)

sys.meta_path.insert(0, SlowImport())
sys.argv = ["sparse-ir", "--help"]
from sparse_ir.__main__ import run
run()
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=WITHOUT_LOCALE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"started\n"
    process.send_signal(signal.SIGINT)
    _, printed = process.communicate(timeout=60)
    assert process.returncode == EXIT_INTERRUPTED
    assert b"Traceback" not in printed


def test_nothing_is_written_into_the_package(collection: Path, tmp_path: Path) -> None:
    """So that it may be installed where its user cannot write."""
    package = Path(sparse_ir.__file__).parent
    places = [package, *(path for path in package.rglob("*") if path.is_dir())]
    before = {path: path.stat().st_mtime_ns for path in places}
    arguments = ["--model", "lexical", "--input", collection, "--output", tmp_path / "index"]
    done = run("build", *arguments, variables={"PYTHONDONTWRITEBYTECODE": "1"})
    assert done.returncode == 0, done.stderr
    assert {path: path.stat().st_mtime_ns for path in places} == before
