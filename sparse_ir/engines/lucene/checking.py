"""Lucene's own check of an index, and its version."""

from __future__ import annotations

from pathlib import Path

from sparse_ir.engines.lucene import java
from sparse_ir.engines.lucene.directory import open_directory_without_lock
from sparse_ir.errors import DamagedError, JavaError, UncheckedError


def check_index(folder: Path) -> None:
    """Run Lucene's CheckIndex over every file; it takes no lock and writes nothing.

    Raises ``DamagedError`` with its finding, ``UncheckedError`` when Java could not read the folder
    or has too little memory.
    """
    try:
        _run_check(folder)
    except JavaError as error:
        raise UncheckedError(f"{folder} could not be checked: {error}") from error


def _run_check(folder: Path) -> None:
    with java.translated_errors(f"{folder} is damaged", DamagedError):
        directory = open_directory_without_lock(folder)
        try:
            checker = java.java_class("org.apache.lucene.index.CheckIndex")(directory)
            log = java.java_class("java.io.ByteArrayOutputStream")()
            output = java.cast("java.io.OutputStream", log)
            stream = java.java_class("java.io.PrintStream")(output)
            checker.setInfoStream(stream)
            status = checker.checkIndex()
            clean = bool(status.clean)
            checker.close()
        finally:
            directory.close()
    if clean:
        return
    problems = []
    for line in log.toString().splitlines():
        if "FAILED" in line or "Exception" in line:
            problems.append(line.strip())
    reason = "; ".join(problems[:2]) or "CheckIndex says it is not clean"
    raise DamagedError(f"{folder} is damaged: {reason}")


def lucene_version() -> str:
    """The version of Lucene in Pyserini's jar, for example ``9.9.1``."""
    version = java.java_class("org.apache.lucene.util.Version").LATEST
    return str(version.toString())
