"""The command line: one command for each verb, its options taken from the verb's signature and docstring.

There is nothing to keep in step by hand: a new parameter of a verb is a new option here. An error of the user's making
is one line on standard error and exit code 2; anything else is a defect and shows its traceback. A report that says
``healthy`` is false ends with exit code 1.
"""

from __future__ import annotations

import inspect
import json
import os
import re
import signal
import sys
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import click

import sparse_ir
from sparse_ir import beir, comparison, explanation, explanation_view, leaderboard, mining, showcase, tuning, verbs
from sparse_ir.errors import SparseIRError

VERBS: tuple[Callable[..., verbs.Report], ...] = (
    verbs.encode, verbs.index, verbs.build, verbs.bm25, verbs.search, tuning.tune, verbs.evaluate, verbs.verify,
    verbs.export, comparison.compare, explanation.explain, verbs.idf, mining.mine, verbs.teach, verbs.train,
    verbs.doctor, beir.beir, leaderboard.leaderboard, showcase.demo,
)

# verbs whose reports have a form of their own for human eyes
_FORMATS: dict[Callable[..., verbs.Report], Callable[[Mapping[str, Any]], str]] = {
    explanation.explain: explanation_view.format_terminal,
}


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(sparse_ir.__version__, prog_name="sparse-ir")
def main() -> None:
    """Learned-sparse retrieval: text in, a ranked and measured search engine out.

    The road: encode -> index -> search -> evaluate; build is encode and index in one. Begin with: sparse-ir demo
    """


def run() -> None:
    """Entry point of ``sparse-ir`` and of ``python -m sparse_ir``."""
    try:
        sys.exit(main(sys.argv[1:] or ["--help"], prog_name="sparse-ir", standalone_mode=False))
    except (SparseIRError, click.ClickException, OSError) as error:
        click.echo(f"sparse-ir: error: {_sentence(error)}", err=True)
        sys.exit(2)
    except click.Abort:
        sys.exit(128 + signal.SIGINT)


def _sentence(error: Exception) -> str:
    """The message of a user's error in one line."""
    text = str(error)
    if isinstance(error, click.ClickException):
        text = error.format_message()
    elif isinstance(error, OSError):  # a full disk, a missing permission: the machine's sentence is the best there is
        text = f"{error.filename or 'file system'}: {error.strerror or error}"
    return re.sub(r"\s*\n\s*", " ", text.strip())


def _make_command(verb: Callable[..., verbs.Report]) -> click.Command:
    parameters = inspect.signature(verb).parameters
    shows_progress = "progress" in parameters
    several = next((name for name, parameter in parameters.items() if parameter.kind is parameter.VAR_POSITIONAL), None)

    def callback(json_output: bool, quiet: bool = False, **values: Any) -> None:
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # its load report would stand before our own sentence
        if quiet or not sys.stderr.isatty():
            os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # of the hub and of transformers, not yet loaded
        given = {name: value for name, value in values.items() if value is not None}
        listed = given.pop(several, ()) if several else ()
        report = verb(*listed, **given, **({"progress": not quiet} if shows_progress else {}))
        if verb is not verbs.train or os.environ.get("RANK", "0") == "0":  # of several that train, one speaks
            click.echo(json.dumps(report, indent=2) if json_output else _FORMATS.get(verb, _format)(report))
        if report.get("healthy") is False:
            click.get_current_context().exit(1)

    options: list[click.Parameter] = [
        click.Argument([name], nargs=-1, required=True) if name == several else _make_option(name, *facts)
        for name, *facts in _parameters(verb)]
    if shows_progress:
        options.append(click.Option(["--quiet"], is_flag=True, help="Show no progress bar."))
    options.append(click.Option(["--json", "json_output"], is_flag=True, help="Print the report as JSON."))
    summary = (inspect.getdoc(verb) or "").split("\n\nArgs:")[0]
    if several:
        summary += f"\n\n{several.upper()}: {_argument_texts(verb)[several]}"
    return click.Command(verb.__name__, params=options, callback=callback, help=summary)


def _parameters(verb: Callable[..., Any]) -> Iterator[tuple[str, Any, Any, str]]:
    """Name, type, default and help of each option of a verb."""
    hints, texts = typing.get_type_hints(verb), _argument_texts(verb)
    for name, parameter in inspect.signature(verb).parameters.items():
        if name == "progress":
            continue
        if parameter.kind is parameter.VAR_KEYWORD:
            options = typing.get_args(hints[name])[0]
            for key, hint in typing.get_type_hints(options).items():
                yield key, hint, None, _argument_texts(options)[key]
        else:
            yield name, hints[name], parameter.default, texts[name]


def _argument_texts(documented: Any) -> Mapping[str, str]:
    """The lines of the ``Args:`` part of a docstring, by name."""
    _, _, part = (inspect.getdoc(documented) or "").partition("Args:")
    return dict(re.findall(r"^    (\w+): (.+)$", part, re.MULTILINE))


def _make_option(name: str, hint: Any, default: Any, text: str) -> click.Option:
    flag = "--" + name.replace("_", "-")
    if type(None) in typing.get_args(hint) and isinstance(hint, types.UnionType):
        hint = next(part for part in typing.get_args(hint) if part is not type(None))
    if default is inspect.Parameter.empty:  # click takes even a default of None for an answer
        return click.Option([flag, name], type=_click_type(hint), required=True, help=text)
    if typing.get_origin(hint) is tuple:
        return click.Option([flag, name], type=str, multiple=True, help=text)
    if hint is bool:
        both = [f"{flag}/--no-{flag[2:]}"] if default is None else [flag]
        return click.Option([*both, name], is_flag=True, default=default, help=text)
    shown = default is not None
    return click.Option([flag, name], type=_click_type(hint), default=default, show_default=shown, help=text)


def _click_type(hint: Any) -> Any:
    if typing.get_origin(hint) is typing.Literal:
        return click.Choice(typing.get_args(hint))
    return click.Path(path_type=Path) if hint is Path else hint


def _format(report: Mapping[str, Any]) -> str:
    return "\n".join(_lines(report))


def _lines(report: Mapping[str, Any], indent: str = "") -> Iterator[str]:
    """A report for human eyes: a fact a line, rows with the same columns as a table, small leaves side by side."""
    width = max((len(str(key)) for key in report), default=0)
    for key, value in report.items():
        if isinstance(value, list):
            yield f"{indent}{key}" if value else f"{indent}{key:<{width}}  none"
            for item in value:
                yield from (_lines(item, indent + "  ") if isinstance(item, Mapping) else [f"{indent}  {item}"])
        elif not isinstance(value, Mapping):
            yield f"{indent}{key:<{width}}  {_show(value)}"
        elif not any(isinstance(part, Mapping | list) for part in value.values()):
            yield f"{indent}{key:<{width}}  " + ", ".join(f"{name} {_show(part)}" for name, part in value.items())
        elif _is_table(value):
            yield from ("", *(indent + line for line in _table(key, value)), "")
        else:
            yield f"{indent}{key}"
            yield from _lines(value, indent + "  ")


def _is_table(rows: Mapping[str, Any]) -> bool:
    columns = [list(row) for row in rows.values() if isinstance(row, Mapping)]
    return len(columns) == len(rows) > 1 and all(column == columns[0] for column in columns)


def _table(title: str, rows: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    header = [title, *next(iter(rows.values()))]
    body = [[name, *map(_show, row.values())] for name, row in rows.items()]
    widths = [max(len(line[column]) for line in (header, *body)) for column in range(len(header))]
    for line in (header, *body):
        first, *rest = line
        cells = [cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True)]
        yield "  ".join([first.ljust(widths[0]), *cells])


def _show(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        whole = value.is_integer() and abs(value) >= 1
        return str(int(value)) if whole else f"{value:.1g}" if 0 < abs(value) < 5e-5 else f"{value:.4f}"
    return str(value)


for _verb in VERBS:
    main.add_command(_make_command(_verb))
