"""The command ``sparse-ir`` as a user runs it, and small corpora in BEIR's form to run it on."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import tiny_models

COMMAND = Path(sys.executable).with_name("sparse-ir")
ENVIRONMENT = {
    # however slow this machine is, no progress among the lines that tests look for
    "SPARSE_IR_LOG_SECONDS": "3600",
    **os.environ,
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
WORDS = (
    " ".join(tiny_models.SENTENCES)
    .lower()
    .replace(",", "")
    .replace(".", "")
    .replace("?", "")
    .split()
)


def run_command(
    *arguments: object,
    before: Callable[[], None] | None = None,
    variables: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """``sparse-ir ARGUMENTS`` in a process of its own; ``before`` runs in that process before the
    command.
    """
    return subprocess.run(
        [COMMAND, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        env={**ENVIRONMENT, **(variables or {})},
        preexec_fn=before,
    )


def start_command(*arguments: object) -> subprocess.Popen[bytes]:
    """``sparse-ir ARGUMENTS`` begun and not waited for; what it prints is kept in pipes, and Ctrl-C
    reaches it.
    """
    return subprocess.Popen(
        [COMMAND, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=ENVIRONMENT,
        preexec_fn=_hear_interrupts,
    )


def _hear_interrupts() -> None:
    """A job in the background may have inherited that it ignores Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def report_of(*arguments: object) -> dict[str, Any]:
    """The report of a command that must succeed, read from its ``--json``."""
    done = run_command(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def error_of(*arguments: object, **options: Any) -> str:
    """The one line that a command prints about an error of its user's, without its ``sparse-ir:
    error:``.
    """
    done = run_command(*arguments, **options)
    assert (done.returncode, done.stdout) == (2, ""), (done.returncode, done.stdout, done.stderr)
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("sparse-ir: error: "), done.stderr
    return done.stderr.removeprefix("sparse-ir: error: ").rstrip("\n")


def make_documents(count: int, *, seed: int = 0) -> list[dict[str, str]]:
    """Documents of five to twenty words; every tenth is empty."""
    dice = random.Random(seed)
    return [
        {"_id": f"d{number}", "title": "", "text": ""}
        if number % 10 == 7
        else {
            "_id": f"d{number}",
            "title": dice.choice(WORDS),
            "text": " ".join(dice.choices(WORDS, k=dice.randint(4, 19))),
        }
        for number in range(count)
    ]


def write_lines(path: Path, records: list[Any]) -> Path:
    """A file with a JSON value on each line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def write_collection(folder: Path, count: int, *, queries: int = 8, seed: int = 0) -> Path:
    """A BEIR folder: each query is four words of one document, which is its judged answer."""
    documents = make_documents(count, seed=seed)
    write_lines(folder / "corpus.jsonl", documents)
    answers = [document for document in documents if document["text"]][:queries]
    asked = [
        {"_id": f"q{number}", "text": " ".join(answer["text"].split()[:4])}
        for number, answer in enumerate(answers)
    ]
    write_lines(folder / "queries.jsonl", asked)
    lines = [
        f"{query['_id']}\t{answer['_id']}\t1\n"
        for query, answer in zip(asked, answers, strict=True)
    ]
    (folder / "qrels").mkdir()
    (folder / "qrels" / "test.tsv").write_text(
        "query-id\tcorpus-id\tscore\n" + "".join(lines), encoding="utf-8"
    )
    return folder


def read_tree(folder: Path) -> dict[str, bytes]:
    """Every file below the folder, hidden ones too: relative name -> bytes."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }
