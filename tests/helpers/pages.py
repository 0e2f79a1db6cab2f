"""The pages of README.md and docs/: their code blocks, what a comment says about each, and how to
run them.

A comment in front of a block says what a test does with it:

    <!-- ci -->                .ci/run runs these commands, because they need the network
    <!-- not run: REASON -->   nobody runs it here, for this reason
    <!-- tested by: PATH -->   a test of its own runs these commands
    <!-- file: NAME -->        its text is written to that file
    <!-- output -->            what the block before it prints; "..." stands for anything
    <!-- excerpt: PATH -->     a part of that JSON file: every key must exist there

``<!-- after: PAGE -->`` anywhere on a page names a page whose blocks run first.
"""

from __future__ import annotations

import contextlib
import doctest
import io
import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
LANGUAGES = ("bash", "python", "toml", "json", "text", "")
DIRECTIVES = ("ci", "not run", "tested by", "file", "output", "excerpt")
OTHER_COMMENTS = ("after", "table", "end")  # not about the next block
_COMMENT = re.compile(r"<!-- ([a-z ]+?)(?:: (.+?))? -->")
_ELLIPSIS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
_TIMEOUT_SECONDS = 300


@dataclass(frozen=True)
class Block:
    """A fenced block of a page, and the comment in front of it."""

    place: str  # page:line
    language: str
    text: str
    directive: str = ""
    value: str = ""


def find_pages() -> list[str]:
    """README.md and the pages of the site, by their names in docs/ and in the order of the menu."""
    menu = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:\n")[2]
    return ["README.md", *re.findall(r"([\w/-]+\.md)$", menu, re.MULTILINE)]


def read_page(name: str) -> str:
    """The text of a page."""
    folder = ROOT if name == "README.md" else DOCS
    return (folder / name).read_text(encoding="utf-8")


def find_blocks(name: str) -> list[Block]:
    """The fenced blocks of a page, in their order."""
    blocks = []
    directive = value = ""
    lines = iter(enumerate(read_page(name).splitlines(), start=1))
    for number, line in lines:
        comment = _COMMENT.fullmatch(line)
        if comment and comment[1] not in OTHER_COMMENTS:
            directive = comment[1]
            value = comment[2] or ""
        elif line.startswith("```"):
            body = []
            for _, inner in lines:
                if inner == "```":
                    break
                body.append(inner)
            text = "".join(f"{inner}\n" for inner in body)
            blocks.append(Block(f"{name}:{number}", line[3:], text, directive, value))
            directive = value = ""
        elif line.strip():
            directive = value = ""
    return blocks


def find_earlier_pages(name: str) -> list[str]:
    """The pages that a page builds on."""
    return re.findall(r"<!-- after: (.+?) -->", read_page(name))


class Reader:
    """Somebody who tries every block of the pages in one folder, each page once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._done: set[str] = set()

    def try_page(self, name: str) -> None:
        """Run the blocks of a page, after those of the pages that it builds on."""
        if name in self._done:
            return
        for earlier in find_earlier_pages(name):
            self.try_page(earlier)
        self._done.add(name)
        printed = ""
        for block in find_blocks(name):
            if block.directive == "output":
                check_output(block, printed)
            elif block.directive == "file":
                (self.folder / block.value).write_text(block.text, encoding="utf-8")
            elif block.directive == "excerpt":
                stored = json.loads((self.folder / block.value).read_text(encoding="utf-8"))
                check_excerpt(block.place, json.loads(block.text), stored)
            elif block.language in ("bash", "python") and not block.directive:
                printed = self._run(block, in_this_process=name != "README.md")

    def _run(self, block: Block, *, in_this_process: bool) -> str:
        """What a block prints. ``in_this_process`` saves the start of Python and Java where it can."""
        if block.language == "python":
            if in_this_process:
                return self._run_python(block)
            return self._run_process(block, [sys.executable, "-c", block.text])
        lines = block.text.replace("\\\n", "").splitlines()
        commands = [shlex.split(line) for line in lines]
        if in_this_process and all(command[0] == "sparse-ir" for command in commands):
            return "".join(self._run_command(block, command) for command in commands)
        return self._run_process(block, ["bash", "-euo", "pipefail", "-c", block.text])

    def _run_python(self, block: Block) -> str:
        printed = io.StringIO()
        with contextlib.chdir(self.folder), contextlib.redirect_stdout(printed):
            exec(compile(block.text, block.place, "exec"), {})
        return printed.getvalue()

    def _run_process(self, block: Block, command: list[str]) -> str:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        done = subprocess.run(
            command,
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
            env=os.environ | {"PATH": path, "HF_HUB_OFFLINE": "1"},
            timeout=_TIMEOUT_SECONDS,
        )
        assert done.returncode == 0, f"{block.place}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def _run_command(self, block: Block, command: list[str]) -> str:
        from sparse_ir import cli

        code: Any = 0
        printed, complaints = io.StringIO(), io.StringIO()
        with (
            contextlib.chdir(self.folder),
            contextlib.redirect_stdout(printed),
            contextlib.redirect_stderr(complaints),
            mock.patch.object(sys, "argv", command),
            mock.patch.dict(os.environ),
        ):
            try:
                cli.run()
            except SystemExit as end:
                code = end.code
        assert not code, f"{block.place}: {shlex.join(command)}\n{complaints.getvalue()}"
        return printed.getvalue()


def check_output(block: Block, printed: str) -> None:
    """Fail unless a block shows what was printed."""
    same = doctest.OutputChecker().check_output(block.text, printed, _ELLIPSIS)
    assert same, f"{block.place} shows\n{block.text}\nand this was printed:\n{printed}"


def check_excerpt(place: str, shown: Any, stored: Any) -> None:
    """Fail unless every key that is shown is stored, at the same place."""
    if isinstance(shown, dict):
        for key, value in shown.items():
            assert key in stored, f"{place}.{key} is not among {sorted(stored)}"
            check_excerpt(f"{place}.{key}", value, stored[key])
    elif isinstance(shown, list):
        check_excerpt(f"{place}[0]", shown[0], stored[0])
    else:
        assert not isinstance(stored, dict | list), f"{place} is {type(stored).__name__}"
