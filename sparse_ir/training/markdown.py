"""Texts of users in Markdown: escaped, quoted as code, and without paths of this machine."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_PATH_START = re.compile(r"[/~]|\.\.?[/\\]|[A-Za-z]:[/\\]")
_FILE_ENDING = re.compile(r"\.(toml|jsonl?|gz|tsv|py|sh|txt)$")
_SPECIAL = re.compile(r"[\\`*\[\]<>|#&~$]|(?<!\w)_|_(?!\w)")
_SHELL_SIGNS = {"&&", "||", "|", ";", ">", "<", "2>&1", "&"}


class Markdown(str):
    """Text that already is Markdown and is not escaped again."""

    __slots__ = ()


def escape(value: object) -> str:
    """One line of plain text without any Markdown or HTML syntax in it.

    ``Markdown`` is returned unchanged. Line breaks become spaces.
    """
    if isinstance(value, Markdown):
        return value
    line = " ".join(str(value).split())
    return _SPECIAL.sub(lambda match: "\\" + match.group(), line)


def code(text: str) -> Markdown:
    """A code span, delimited by more backticks than the text holds in a row."""
    line = " ".join(text.split())
    ticks = "`" * (_longest_run(line) + 1)
    pad = ""
    if line.startswith("`") or line.endswith("`"):
        pad = " "
    return Markdown(f"{ticks}{pad}{line}{pad}{ticks}")


def fence(text: str, language: str) -> Markdown:
    """A code block, fenced by more backticks than the text holds in a row."""
    ticks = "`" * max(_longest_run(text) + 1, 3)
    return Markdown(f"{ticks}{language}\n{text}\n{ticks}")


def number(value: float) -> str:
    """Up to ten significant digits, without trailing zeros."""
    return f"{value:.10g}"


def hide_path(name: str) -> str:
    """A model, file or folder by a name that can be published.

    Hub names and single words stay; of a path only the last component stays.
    """
    if "/" not in name and not _PATH_START.match(name):
        return name
    is_hub_name = _HUB_NAME.fullmatch(name) and not _FILE_ENDING.search(name)
    if is_hub_name and not Path(name).exists():
        return name
    return last_component(name)


def hide_folder(name: str) -> str:
    """The name of a collection: any text stays, unless it begins like a path."""
    if _PATH_START.match(name):
        return last_component(name)
    return name


def hide_paths_of_command(command: str) -> str:
    """A shell command in which every path is cut to its last component."""
    try:
        words = shlex.split(command)
    except ValueError:  # an open quote; splitting at spaces still hides the paths
        words = command.split()
    return " ".join(_hide_in_word(word) for word in words)


def last_component(path: str) -> str:
    """The part of a path behind its last slash or backslash."""
    return re.split(r"[/\\]", path.rstrip("/\\"))[-1]


def _hide_in_word(word: str) -> str:
    if word in _SHELL_SIGNS:
        return word
    option, equals, value = word.partition("=")
    if equals and "/" not in option:
        return shlex.quote(option + equals + hide_path(value))
    return shlex.quote(hide_path(word))


def _longest_run(text: str) -> int:
    return max(map(len, re.findall("`+", text)), default=0)
