"""Write the reference pages of the commands and the training keys from the code.

    python scripts/make_reference.py
    python scripts/make_reference.py --check

The commands come from the signatures and docstrings that also make ``--help``; the training keys
come from the classes that check a configuration. ``--check`` writes nothing and exits with 1 if a
page is out of date.
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import sys
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

import sparse_ir
from sparse_ir import cli
from sparse_ir.training.configuration.config import TrainConfig
from sparse_ir.training.fields import LARGEST

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "reference"
NOTE = "<!-- Written by scripts/make_reference.py; edit the docstrings in the code instead. -->"
ABOUT_COMMANDS = """Every command takes `--help` and `--json` (print the report as JSON). In Python,
each command is a function of `sparse_ir` with the same name; an option such as `--prune-mass` is
the parameter `prune_mass`."""
ABOUT_TRAINING = """A training configuration is a TOML file with these sections. `sparse-ir train`
refuses unknown keys, values out of range and settings that nothing would read, and writes the
complete configuration to `config.toml` in its output folder."""
_VALUES = {bool: "", int: "INTEGER", float: "NUMBER", str: "TEXT"}
_JSON_TYPES = {
    "string": "text",
    "number": "number",
    "integer": "integer",
    "boolean": "true or false",
    "object": "table",
}
_LIMITS = {
    "minimum": "at least",
    "exclusiveMinimum": "above",
    "maximum": "at most",
    "exclusiveMaximum": "below",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="only report pages out of date")
    arguments = parser.parse_args()
    outdated = []
    for name, lines in (("commands.md", describe_commands()), ("training.md", describe_training())):
        text = "\n".join(lines) + "\n"
        path = FOLDER / name
        if path.is_file() and path.read_text(encoding="utf-8") == text:
            continue
        outdated.append(f"docs/reference/{name}")
        if not arguments.check:
            path.write_text(text, encoding="utf-8")
    if outdated and arguments.check:
        sys.exit(f"out of date: {', '.join(outdated)}; run python scripts/make_reference.py")


def describe_commands() -> Iterator[str]:
    """The lines of the page about commands."""
    yield from ("# Commands", "", NOTE, "", ABOUT_COMMANDS)
    for title, names in cli.COMMANDS.items():
        yield from ("", f"## {title}")
        for name in names:
            function = getattr(sparse_ir, name)
            description = (inspect.getdoc(function) or "").partition("\n\nArgs:")[0]
            yield from ("", f"### {name}", "", as_markdown(description), "")
            yield from ("| option | value | default | meaning |", "| --- | --- | --- | --- |")
            for option in cli.find_options(function):
                yield describe_option(option)
            if "progress" in inspect.signature(function).parameters:
                yield "| `--quiet` | | | Show no progress. |"
                yield "| `--verbose` | | | Also log the single steps. |"
                yield describe_option(cli.LOG_FORMAT)
            if name == "search":
                yield "| `--trec` | | | Print the answers as a TREC run. |"


def describe_option(option: cli.Option) -> str:
    """One row of a command's table."""
    flag = "--" + option.name.replace("_", "-")
    if option.positional:
        flag = option.name.upper() + " ..."
    elif option.hint == bool | None:
        flag = f"{flag}`, `--no-{flag[2:]}"
    default = ""
    if option.default is inspect.Parameter.empty:
        default = "required"
    elif option.default not in (None, (), False):
        default = f"`{option.default}`"
    cells = [f"`{flag}`", describe_value(option.hint), default, as_cell(option.text)]
    return f"| {' | '.join(cells)} |"


def describe_value(hint: Any) -> str:
    """The value of an option, as a user writes it."""
    parts = [part for part in typing.get_args(hint) if part is not types.NoneType]
    if typing.get_origin(hint) is typing.Literal:
        return ", ".join(f"`{part}`" for part in parts)
    if typing.get_origin(hint) is tuple:
        return describe_value(parts[0])
    if len(parts) == 1:
        return describe_value(parts[0])
    if any(typing.get_origin(part) is tuple for part in parts):
        return "TEXT"
    if parts:
        return "PATH" if os.PathLike[str] in parts else "NAME or PATH"
    return _VALUES.get(hint, "PATH")


def describe_training() -> Iterator[str]:
    """The lines of the page about training keys."""
    yield from ("# Training keys", "", NOTE, "", ABOUT_TRAINING)
    schema = TypeAdapter(TrainConfig).json_schema()
    titles: dict[str, list[str]] = {}
    for key, value in schema["properties"].items():
        section = find_section(value)
        if section:
            title = f"[[{key}]]" if value.get("type") == "array" else f"[{key}]"
            titles.setdefault(section, []).append(f"`{title}`")
        else:
            yield from ("", f"At the top of the file: `{key}`, {describe_schema(value)}.")
    for section, names in titles.items():
        definition = schema["$defs"][section]
        yield from ("", f"## {' and '.join(names)}", "")
        description = as_markdown(definition["description"]).partition(": ")[2]
        yield from (description[0].upper() + description[1:], "")
        yield from ("| key | value | default | meaning |", "| --- | --- | --- | --- |")
        for key, value in definition["properties"].items():
            default = "required"
            if key not in definition.get("required", ()):
                default = describe_default(value.get("default"))
            cells = [f"`{key}`", describe_schema(value), default, as_cell(value["description"])]
            yield f"| {' | '.join(cells)} |"


def find_section(schema: Mapping[str, Any]) -> str | None:
    """The name of the class that a key of the file holds, once or in a list."""
    for part in (schema, schema.get("items", {}), *schema.get("anyOf", ())):
        if "$ref" in part:
            return str(part["$ref"].rpartition("/")[2])
    return None


def describe_schema(schema: Mapping[str, Any]) -> str:
    """The values that a key accepts."""
    if "anyOf" in schema:
        parts = [describe_schema(part) for part in schema["anyOf"] if part.get("type") != "null"]
        return " or ".join(parts)
    if "enum" in schema:
        return ", ".join(f"`{json.dumps(value)}`" for value in schema["enum"])
    if "const" in schema:
        return f"`{json.dumps(schema['const'])}`"
    limits = [
        f"{word} {schema[key]:,g}"
        for key, word in _LIMITS.items()
        if key in schema and schema[key] < LARGEST
    ]
    return ", ".join([_JSON_TYPES.get(schema.get("type", ""), "number or text"), *limits])


def describe_default(value: Any) -> str:
    """A default as TOML writes it; nothing for a key that is not set."""
    if value is None or value == {}:
        return ""
    return f"`{json.dumps(value)}`"


def as_markdown(text: str) -> str:
    """A docstring as paragraphs of Markdown, one line each."""
    paragraphs = [" ".join(paragraph.split()) for paragraph in text.split("\n\n")]
    return "\n\n".join(paragraphs).replace("``", "`")


def as_cell(text: str) -> str:
    """A docstring as one cell of a table."""
    return as_markdown(text).replace("\n\n", " ").replace("|", "\\|")


if __name__ == "__main__":
    main()
