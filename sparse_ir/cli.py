"""The command line: one command for each verb, its options taken from the verb's signature and
docstring.

There is nothing to keep in step by hand: a new parameter of a verb is a new option here. An error
of the user's making is one line on standard error and exit code 2; anything else is a defect and
shows its traceback. A report that says ``healthy`` is false ends with exit code 1.
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
from sparse_ir import extras
from sparse_ir.commands import benchmarking, demo, doctor, evaluating, indexing, searching, training
from sparse_ir.console import format_report
from sparse_ir.errors import SparseIRError
from sparse_ir.reports import Report
from sparse_ir.retrieval import explanation_view

VERBS: tuple[Callable[..., Report], ...] = (
    indexing.encode,
    indexing.index,
    indexing.build,
    indexing.bm25,
    searching.search,
    searching.tune,
    evaluating.evaluate,
    indexing.verify,
    indexing.export,
    evaluating.compare,
    searching.explain,
    indexing.idf,
    training.mine,
    training.teach,
    training.train,
    doctor.doctor,
    benchmarking.beir,
    benchmarking.leaderboard,
    demo.demo,
)
# verbs whose reports have a form of their own for human eyes
_FORMATS: dict[Callable[..., Report], Callable[[Mapping[str, Any]], str]] = {
    searching.explain: explanation_view.format_terminal,
}


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(sparse_ir.__version__, prog_name="sparse-ir")
def main() -> None:
    """Learned-sparse retrieval: text in, a ranked and measured search engine out.

    The road: encode -> index -> search -> evaluate; build is encode and index in one. Begin with:
    sparse-ir demo
    """


def run() -> None:
    """Entry point of ``sparse-ir`` and of ``python -m sparse_ir``."""
    try:
        with extras.importing():
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
    # a full disk, a missing permission: the machine's sentence is the best there is
    elif isinstance(error, OSError):
        text = f"{error.filename or 'file system'}: {error.strerror or error}"
    return re.sub(r"\s*\n\s*", " ", text.strip())


def _make_command(verb: Callable[..., Report]) -> click.Command:
    parameters = inspect.signature(verb).parameters
    shows_progress = "progress" in parameters
    several = next(
        (
            name
            for name, parameter in parameters.items()
            if parameter.kind is parameter.VAR_POSITIONAL
        ),
        None,
    )

    def callback(json_output: bool, quiet: bool = False, **values: Any) -> None:
        # its load report would stand before our own sentence
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        if quiet or not sys.stderr.isatty():
            # of the hub and of transformers, not yet loaded
            os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        given = {name: value for name, value in values.items() if value is not None}
        listed = given.pop(several, ()) if several else ()
        report = verb(*listed, **given, **({"progress": not quiet} if shows_progress else {}))
        # of several that train, one speaks
        if verb is not training.train or os.environ.get("RANK", "0") == "0":
            click.echo(
                json.dumps(report, indent=2)
                if json_output
                else _FORMATS.get(verb, format_report)(report)
            )
        if report.get("healthy") is False:
            click.get_current_context().exit(1)

    options: list[click.Parameter] = [
        click.Argument([name], nargs=-1, required=True)
        if name == several
        else _make_option(name, *facts)
        for name, *facts in _parameters(verb)
    ]
    if shows_progress:
        options.append(click.Option(["--quiet"], is_flag=True, help="Show no progress bar."))
    options.append(
        click.Option(["--json", "json_output"], is_flag=True, help="Print the report as JSON.")
    )
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
    """The texts of the ``Args:`` part of a docstring, by name; each may take several lines."""
    _, _, part = (inspect.getdoc(documented) or "").partition("Args:")
    texts: dict[str, str] = {}
    name = ""
    for line in part.splitlines():
        begins = re.match(r"^    (\w+): (.+)$", line)
        if begins:
            name = begins[1]
            texts[name] = begins[2]
        elif line.startswith("        "):
            texts[name] += " " + line.strip()
    return texts


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
    return click.Option(
        [flag, name], type=_click_type(hint), default=default, show_default=shown, help=text
    )


def _click_type(hint: Any) -> Any:
    if typing.get_origin(hint) is typing.Literal:
        return click.Choice(typing.get_args(hint))
    return click.Path(path_type=Path) if hint is Path else hint


for _verb in VERBS:
    main.add_command(_make_command(_verb))
