"""A folder of text files: plain text, Markdown and HTML."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml

from sparse_ir import extras
from sparse_ir.data.lines import InputFile, read_text
from sparse_ir.errors import DataError

if TYPE_CHECKING:
    from markdown_it import MarkdownIt

TEXT_SUFFIXES = (".txt", ".md", ".html", ".htm")

_FRONT_MATTER = re.compile(
    r"---[ \t]*\r?\n(.*?)^(?:---|\.\.\.)[ \t]*(?:\r?\n|\Z)", re.DOTALL | re.M
)
_TAG = re.compile(r"<[^<>]*>")
_BREAK = re.compile(r"[\r\n]+")
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_HIDDEN = {"script", "style", "template", "noscript", "head", "iframe", "svg"}
_INLINE = frozenset(
    {"a", "abbr", "b", "bdi", "bdo", "cite", "code", "data", "del", "dfn", "em", "font", "i"}
    | {"ins", "kbd", "mark", "q", "s", "samp", "small", "span", "strong", "sub", "sup", "time"}
    | {"tt", "u", "var", "wbr"}
)


class TextFile(NamedTuple):
    """The parts of a file: its title, its text, and the fields of its front matter."""

    title: str
    text: str
    fields: dict[str, Any]


def find_text_files(folder: Path) -> Iterator[Path]:
    """The text files in a folder and its subfolders in a fixed order, except hidden ones."""
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith(".") and name.lower().endswith(TEXT_SUFFIXES):
                yield Path(place) / name


def read_front_matter(path: Path) -> dict[str, Any]:
    """The fields of one file, without the work of reading its text; errors as read_text_file."""
    if path.suffix.lower() != ".md":
        return {}
    fields, _ = _split_front_matter(str(path), read_text(InputFile(path, str(path))))
    fields.pop("title", None)
    return fields


def read_text_file(path: Path) -> TextFile:
    """Read one file; raises ``DataError`` if it is not UTF-8 or its front matter is not YAML."""
    text = read_text(InputFile(path, str(path)))
    suffix = path.suffix.lower()
    if suffix == ".md":
        return _read_markdown(str(path), text)
    if suffix == ".txt":
        return TextFile("", text.strip(), {})
    return _read_html(text)


@functools.cache
def _markdown_parser() -> MarkdownIt:
    from markdown_it import MarkdownIt

    return MarkdownIt("commonmark").enable("table")


def _read_markdown(place: str, text: str) -> TextFile:
    fields, body = _split_front_matter(place, text)
    title = fields.pop("title", None)
    tokens = _markdown_parser().parse(body)
    blocks = []
    for number, token in enumerate(tokens):
        content = token.content
        if token.type == "inline":
            content = _inline_text(token.children or [])
            if title is None and tokens[number - 1].type == "heading_open":
                title = content
                continue
        elif token.type == "html_block":
            content = _TAG.sub(" ", content)
        if content.strip():
            blocks.append(content.strip())
    return TextFile(str(title or ""), "\n".join(blocks), fields)


def _split_front_matter(place: str, text: str) -> tuple[dict[str, Any], str]:
    """The fields of a Markdown file, and the text after them."""
    front_matter = _FRONT_MATTER.match(text)
    if front_matter is None:
        return {}, text
    return _parse_front_matter(place, front_matter[1]), text[front_matter.end() :]


def _inline_text(tokens: list[Any]) -> str:
    parts = []
    for token in tokens:
        if token.type in ("softbreak", "hardbreak"):
            parts.append(" ")
        elif token.type == "image":
            parts.append(_inline_text(token.children or []))
        elif token.type != "html_inline":
            parts.append(token.content)
    return "".join(parts)


def _parse_front_matter(place: str, text: str) -> dict[str, Any]:
    try:
        for event in yaml.parse(text, Loader=_LOADER):
            # by which a few lines can stand for billions of values
            if isinstance(event, yaml.AliasEvent):
                raise yaml.YAMLError("aliases (*name) are not read")
        # plain values only: no Python objects
        fields = yaml.load(text, Loader=_LOADER)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        line = 2 if mark is None else mark.line + 2
        problem = getattr(error, "problem", None) or str(error)
        raise DataError(
            f"{place}:{line}: front matter is not YAML ({problem}); it must be, or the file must "
            "not begin with ---"
        ) from error
    if fields is None:
        return {}
    if not isinstance(fields, dict):
        raise DataError(
            f"{place}:2: front matter is a {type(fields).__name__}; it must be fields with values, "
            "or the file must not begin with ---"
        )
    return {str(name): value for name, value in fields.items()}


def _read_html(text: str) -> TextFile:
    with extras.importing():
        from selectolax.lexbor import LexborHTMLParser

    tree = LexborHTMLParser(text)
    heading = tree.css_first("title")
    title = ""
    if heading is not None:
        title = " ".join(heading.text().split())
    return TextFile(title, _visible_text(tree.body or tree.root), {})


def _visible_text(root: Any) -> str:
    """The text that a browser would show, a line for each block."""
    parts: list[str] = []
    stack = [root]
    while stack:
        node = stack.pop()
        if isinstance(node, str):
            parts.append(node)
        elif node.tag == "-text":
            parts.append(_BREAK.sub(" ", node.text_content or ""))
        elif node.tag not in _HIDDEN:
            if node.tag not in _INLINE:
                parts.append("\n")
                stack.append("\n")
            stack.extend(reversed(list(node.iter(include_text=True))))
    lines = []
    for line in "".join(parts).split("\n"):
        if line.strip():
            lines.append(" ".join(line.split()))
    return "\n".join(lines)
