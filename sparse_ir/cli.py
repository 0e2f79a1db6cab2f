"""The command line: each public function in ``COMMANDS`` is a command.

Options come from the signature of the function and their texts from its docstring, so a new
parameter is a new option. Only the module of the command that runs is imported. Exit codes are
listed in ``sparse_ir.errors``; an exception outside that module is a defect and shows its
traceback.
"""

from __future__ import annotations

import collections
import inspect
import itertools
import json
import os
import re
import signal
import sys
import types
import typing
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple, TextIO

from cyclopts import (
    App,
    CycloptsError,
    Group,
    MissingArgumentError,
    Parameter,
    UnusedCliTokensError,
)
from docstring_parser import google

import sparse_ir
from sparse_ir.commands.arguments import StrPath, option_records
from sparse_ir.console import (
    format_answers,
    format_demo,
    format_documents,
    format_report,
    logging_to_stderr,
)
from sparse_ir.errors import (
    EXIT_ERROR,
    EXIT_INTERRUPTED,
    EXIT_UNHEALTHY,
    ConfigError,
    SparseIRError,
    SparseIRWarning,
)

COMMANDS = {
    "Build": ("build", "encode", "index", "bm25", "export", "idf", "verify", "info"),
    "Search": ("search", "show", "explain", "tune"),
    "Evaluate": ("evaluate", "compare", "beir", "leaderboard"),
    "Train": ("doctor", "mine", "teach", "train"),
    "Try": ("demo",),
}
NAMES = tuple(itertools.chain(*COMMANDS.values()))

_DESCRIPTION = """Learned-sparse retrieval: from text to a ranked and measured search engine.

The usual order is build (encode and index), search, evaluate. Start with: sparse-ir demo"""

# Options that are shown together in a help text, where a command has all of them.
_OPTION_GROUPS = {
    "Fields": ("fields", "share", "k1", "b", "analyzer", "language"),
    "Impacts": ("scale", "bits", "fold"),
    "Pruning": ("prune_terms", "prune_impact", "prune_mass"),
}
_READS_STANDARD_INPUT = ("--input", "--queries")
# The title of a TypedDict of options in a help text.
_OPTION_TITLES = {
    "InputOptions": "Input",
    "EncodeOptions": "Encoding",
    "Approximations": "Approximation",
}


# The options whose values are the words of the command line that have no name.
_WORDS = {"search": "question", "show": "doc_id", "info": "path"}


class Option(NamedTuple):
    """An option of a command, or its positional arguments."""

    name: str  # of the parameter in Python
    hint: Any
    default: Any  # inspect.Parameter.empty for a required option
    text: str
    group: str
    positional: bool = False


LOG_FORMAT = Option(
    "log_format",
    Literal["text", "json"],
    "text",
    "Form of progress and log on standard error.",
    "Output",
)


def run() -> None:
    """Entry point of ``sparse-ir`` and of ``python -m sparse_ir``."""
    warnings.showwarning = _show_warning
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
    except BrokenPipeError:
        # The reader left early (sparse-ir ... | head). Python would complain again at its exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except (SparseIRError, CycloptsError, OSError) as error:
        print(f"sparse-ir: error: {_describe_error(error)}", file=sys.stderr)  # noqa: T201
        sys.exit(getattr(error, "exit_code", EXIT_ERROR))


def main(arguments: Iterable[str]) -> int:
    """Run one command line and return its exit code; raises what the command raises."""
    words = _join_dashes(arguments)
    # The app of one command needs one module; a help text or a typing error needs all.
    names = (words[0],) if words and words[0] in NAMES else NAMES
    code = make_app(names)(words, exit_on_error=False, print_error=False)
    sys.stdout.flush()
    return code or 0


def _join_dashes(arguments: Iterable[str]) -> list[str]:
    """The words with ``--input -`` as ``--input=-``, since "-" alone would be read as an option."""
    words: list[str] = []
    for word in arguments:
        if word == "-" and words and words[-1] in _READS_STANDARD_INPUT:
            words[-1] += "=-"
        else:
            words.append(word)
    return words


def make_app(names: Sequence[str] = NAMES) -> App:
    """The command line application with some of the commands."""
    app = App(
        name="sparse-ir",
        help=_DESCRIPTION,
        help_format="plaintext",
        version=f"sparse-ir, version {sparse_ir.__version__}",
        version_flags=["--version"],
        group_commands=Group("General", sort_key=len(COMMANDS)),
        result_action="return_value",
        suppress_keyboard_interrupt=False,
    )
    for place, (title, members) in enumerate(COMMANDS.items()):
        group = Group(title, sort_key=place)
        for name in members:
            if name in names:
                command = _make_command(name)
                app.command(command, name=name, group=group, sort_key=NAMES.index(name))
    return app


def find_options(function: Callable[..., Any]) -> Iterator[Option]:
    """The options of a command, in the order of its signature."""
    hints = typing.get_type_hints(function)
    texts = _argument_texts(function)
    parameters = inspect.signature(function).parameters
    for name, parameter in parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            for record in option_records(hints[name]):
                title = _OPTION_TITLES[record.__name__]
                option_texts = _argument_texts(record)
                for key, hint in typing.get_type_hints(record).items():
                    yield Option(key, hint, None, option_texts[key], title)
        elif parameter.kind is parameter.VAR_POSITIONAL:
            yield Option(name, hints[name], parameter.empty, texts[name], "Required", True)
        elif name == _WORDS.get(function.__name__):
            group = _find_group(name, parameters)
            yield Option(name, str, parameter.default, texts[name], group, True)
        elif name != "progress":
            group = _find_group(name, parameters)
            yield Option(name, hints[name], parameter.default, texts[name], group)


def _find_group(name: str, parameters: Mapping[str, inspect.Parameter]) -> str:
    if parameters[name].default is inspect.Parameter.empty:
        return "Required"
    for title, members in _OPTION_GROUPS.items():
        if name in members and set(members) <= set(parameters):
            return title
    return "Options"


def _argument_texts(documented: Any) -> dict[str, str]:
    """The texts of the ``Args:`` part of a docstring, by name; none under ``python -OO``."""
    if sys.flags.optimize > 1:
        return collections.defaultdict(str)
    parsed = google.parse(inspect.getdoc(documented) or "")
    return {part.arg_name: " ".join((part.description or "").split()) for part in parsed.params}


def _description(function: Callable[..., Any]) -> str:
    """The docstring without its arguments, one line per paragraph."""
    text = (inspect.getdoc(function) or "").partition("\n\nArgs:")[0]
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in text.split("\n\n"))


def _make_command(name: str) -> Callable[..., int]:
    """A function that runs a command, prints its report, and returns the exit code."""
    function = getattr(sparse_ir, name)
    shows_progress = "progress" in inspect.signature(function).parameters
    options = list(find_options(function))
    groups = {title: Group(title, sort_key=place) for place, title in enumerate(_titles(options))}

    def call(*positional: str, json: bool = False, quiet: bool = False, **given: Any) -> int:
        trec = given.pop("trec", False)
        verbose = given.pop("verbose", False)
        as_json = given.pop("log_format", "text") == "json"
        _silence_libraries(quiet)
        if name in _WORDS:
            given[_WORDS[name]] = _convert_words(function, _WORDS[name], positional)
            positional = ()
        if shows_progress:
            given["progress"] = not quiet
        with logging_to_stderr(verbose=verbose, quiet=quiet, as_json=as_json):
            report = function(*positional, **given)
        # of the processes of one training, the first prints
        if name != "train" or os.environ.get("RANK", "0") == "0":
            text = _format_run(report, given) if trec else _format(name, report, json)
            print(text)  # noqa: T201
        return EXIT_UNHEALTHY if report.get("healthy") is False else 0

    parameters = [_make_parameter(option, groups[option.group]) for option in options]
    output = groups["Output"]
    if shows_progress:
        parameters.append(_make_flag("quiet", "Show no progress.", output))
        parameters.append(_make_flag("verbose", "Also log the single steps.", output))
        parameters.append(_make_parameter(LOG_FORMAT, output))
    parameters.append(_make_flag("json", "Print the report as JSON.", output))
    if name == "search":
        parameters.append(_make_flag("trec", "Print the answers as a TREC run.", output))
    parameters.sort(key=lambda parameter: parameter.kind)  # Python wants unnamed words first
    call.__name__ = name
    call.__doc__ = _description(function)
    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    call.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return call


def _convert_words(function: Callable[..., Any], name: str, words: tuple[str, ...]) -> Any:
    """The unnamed words of a command line as the function takes them: all, or exactly one."""
    unknown = [word for word in words if word.startswith("-") and word != "-"]
    if unknown:
        raise ConfigError(f"Unknown option: {unknown[0]}.")
    hint = typing.get_type_hints(function)[name]
    if typing.get_origin(hint) is tuple:
        return words
    if len(words) != 1:
        raise ConfigError(f"{function.__name__} takes one {name}, not {len(words)}")
    return words[0]


def _titles(options: Iterable[Option]) -> list[str]:
    """The groups of a help text in their order."""
    used = {option.group for option in options}
    order = ["Required", "Options", *_OPTION_GROUPS, *_OPTION_TITLES.values()]
    return [title for title in order if title in used] + ["Output"]


def _make_parameter(option: Option, group: Group) -> inspect.Parameter:
    hint, metavar = _command_line_type(option.hint)
    takes_several = typing.get_origin(hint) is tuple
    if option.default is None:
        hint = hint | None
    details: dict[str, Any] = {"help": option.text, "group": group, "metavar": metavar}
    details["show_default"] = option.default not in (None, (), False, inspect.Parameter.empty)
    if option.default is not None:
        details["negative"] = ()  # --no-... exists where it differs from leaving out the option
    if takes_several:
        details["negative"] = ()
    elif not option.positional:
        details["allow_repeating"] = True  # the last one counts
    if option.positional:
        details["allow_leading_hyphen"] = True  # for "-", standard input
    annotation: Any = Annotated[hint, Parameter(**details)]
    if option.positional:
        return inspect.Parameter(
            option.name, inspect.Parameter.VAR_POSITIONAL, annotation=annotation
        )
    return inspect.Parameter(
        option.name, inspect.Parameter.KEYWORD_ONLY, default=option.default, annotation=annotation
    )


def _make_flag(name: str, text: str, group: Group) -> inspect.Parameter:
    details = Parameter(help=text, group=group, negative=(), show_default=False)
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=False,
        annotation=Annotated[bool, details],
    )


def _command_line_type(hint: Any) -> tuple[Any, str | None]:
    """The type to which an argument is converted, and its name in a help text."""
    parts = [part for part in typing.get_args(hint) if part is not types.NoneType]
    if typing.get_origin(hint) is types.UnionType:
        if len(parts) == 1:
            hint = parts[0]
        elif hint == StrPath or hint == StrPath | None:
            return str, "PATH"
        elif any(typing.get_origin(part) is tuple for part in parts):
            return tuple[str, ...], "TEXT"
        else:
            return str, "NAME"
    if typing.get_origin(hint) is typing.Literal:
        return hint, None
    names = {str: "TEXT", int: "INTEGER", float: "NUMBER"}
    return hint, names.get(hint)


def _silence_libraries(quiet: bool) -> None:
    """Hide the reports of libraries that are not imported yet."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if quiet or not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def _format(name: str, report: Mapping[str, Any], as_json: bool) -> str:
    if as_json:
        return json.dumps(report, indent=2)
    if name == "explain":
        from sparse_ir.retrieval import explanation_view

        return explanation_view.format_terminal(report)
    if name == "search" and "answers" in report:
        return format_answers(report["answers"])
    if name == "demo":
        return format_demo(report)
    if name == "show":
        return format_documents(report["documents"])
    return format_report(report)


def _format_run(report: Mapping[str, Any], given: Mapping[str, Any]) -> str:
    """The answers as the lines of a TREC run."""
    from sparse_ir.data import runs

    if "answers" not in report:
        raise ConfigError("--trec prints answers; a run of --queries goes to the file of --output")
    run = {}
    for answer in report["answers"]:
        run[answer["query_id"]] = [(hit["doc_id"], hit["score"]) for hit in answer["hits"]]
    encode_ids = bool(given.get("encode_ids"))
    return "\n".join(runs.trec_lines(run, report["tag"], encode_ids=encode_ids))


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Print a warning of this package on one line, and any other as Python does."""
    text = f"sparse-ir: warning: {message}\n"
    if not issubclass(category, SparseIRWarning):
        text = warnings.formatwarning(message, category, filename, lineno, line)
    (file or sys.stderr).write(text)


def _describe_error(error: Exception) -> str:
    """The message of an error on one line."""
    text = str(error)
    if isinstance(error, MissingArgumentError) and error.argument is not None:
        text = _describe_missing(error, error.argument.name)
    elif isinstance(error, UnusedCliTokensError) and error.unused_tokens:
        text = f"Unexpected argument: {error.unused_tokens[0]}"
    elif isinstance(error, OSError) and not isinstance(error, SparseIRError):
        # a full disk or a missing permission: the system's own message says it best
        text = f"{error.filename or 'file system'}: {error.strerror or error}"
    return re.sub(r"\s*\n\s*", " ", text.strip())


def _describe_missing(error: MissingArgumentError, option: str) -> str:
    if error.keyword is not None:
        return f"Option {error.keyword} requires a value."
    unknown = [token for token in error.unused_tokens or () if token.startswith("-")]
    if unknown:
        return f"Missing option {option}; unknown option {unknown[0]}."
    return f"Missing option {option}."
