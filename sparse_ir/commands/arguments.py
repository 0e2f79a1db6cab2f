"""The types of command arguments, and the check that callers from Python pass them."""

from __future__ import annotations

import functools
import inspect
import json
import numbers
import os
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from sparse_ir import extras
from sparse_ir.data.options import ArrowStream, InputOptions
from sparse_ir.errors import ConfigError
from sparse_ir.models.options import EncodeOptions

StrPath = str | os.PathLike[str]  # a file or a folder on this machine
Source = str | Path  # a file, a folder, or a name on the Hugging Face hub


class CorpusEncodeOptions(EncodeOptions, InputOptions, total=False):
    """How a corpus is read and encoded."""


# a record of options -> the records that it is made of, in the order of a help text
_PARTS: dict[str, tuple[type, ...]] = {"CorpusEncodeOptions": (InputOptions, EncodeOptions)}
_OUTPUTS = {"output", "page"}
_SEALED_KINDS = ("impact", "bm25", "vectors")  # of folders that are checked as a whole
_READ_IN_FOLDERS = ("corpus", "queries")  # how the names of files begin that a folder is read for

P = ParamSpec("P")
R = TypeVar("R")

_DESCRIPTIONS = {
    str: "a string",
    int: "a whole number",
    float: "a number",
    bool: "True or False",
    Path: "a path",
    os.PathLike: "a path",
    types.NoneType: "None",
    Iterable: "documents",
    ArrowStream: "a table",
}


def command(function: Callable[P, R]) -> Callable[P, R]:
    """Mark a function as a command and check the types of its arguments at each call.

    Raises ``ConfigError``, which names the argument and its value, for an argument of another type
    than the signature states, for an unknown name among the ``**options`` and for an output that
    would replace an input; ``MissingExtra`` for
    an optional package that is not installed.
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        given = signature.bind(*args, **kwargs).arguments
        paths: dict[str, Path] = {}
        for name, value, hint in _arguments(function, given):
            if not _matches(value, hint):
                raise ConfigError(f"{name} must be {_describe(hint)}, not {value!r}")
            if _accepts_path(hint) and isinstance(value, str | os.PathLike):
                paths[name] = Path(value)
        _check_outputs(paths)
        with extras.importing():
            return function(*args, **kwargs)

    return checked


def _arguments(
    function: Callable[..., Any], given: dict[str, Any]
) -> Iterator[tuple[str, Any, Any]]:
    """Name, value and type of each argument of a call."""
    hints = typing.get_type_hints(function)
    for name, parameter in inspect.signature(function).parameters.items():
        if name not in given:
            continue
        if parameter.kind is parameter.VAR_POSITIONAL:
            for value in given[name]:
                yield name, value, hints[name]
        elif parameter.kind is parameter.VAR_KEYWORD:
            options = option_types(hints[name])
            for key, value in given[name].items():
                if key not in options:
                    raise ConfigError(f"{function.__name__} has no option {key!r}")
                yield key, value, options[key]
        else:
            yield name, given[name], hints[name]


def option_records(hint: Any) -> tuple[type, ...]:
    """The records of options in ``**options: Unpack[SomeTypedDict]``, each with its docstring."""
    (record,) = typing.get_args(hint)
    return _PARTS.get(record.__name__, (record,))


def split_options(
    options: Mapping[str, Any],
) -> tuple[InputOptions, EncodeOptions]:
    """The options that say how a corpus is read, and those that say how it is encoded."""
    names = set(typing.get_type_hints(InputOptions))
    reading = {name: value for name, value in options.items() if name in names}
    encoding = {name: value for name, value in options.items() if name not in names}
    return typing.cast(InputOptions, reading), typing.cast(EncodeOptions, encoding)


def option_types(hint: Any) -> dict[str, Any]:
    """Name -> type of the options in ``**options: Unpack[SomeTypedDict]``."""
    (options,) = typing.get_args(hint)
    return typing.get_type_hints(options)


def _matches(value: Any, hint: Any) -> bool:
    origin = typing.get_origin(hint)
    if origin is typing.Literal:
        return value in typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return any(_matches(value, part) for part in typing.get_args(hint))
    if origin is tuple:
        return isinstance(value, tuple | list) and all(isinstance(part, str) for part in value)
    if hint in (int, float):
        kind = numbers.Integral if hint is int else numbers.Real
        return isinstance(value, kind) and not isinstance(value, bool)
    return isinstance(value, origin or hint)


def _accepts_path(hint: Any) -> bool:
    parts = typing.get_args(hint)
    return any(part is Path or typing.get_origin(part) is os.PathLike for part in parts)


def _check_outputs(paths: Mapping[str, Path]) -> None:
    """Raise ``ConfigError`` for an output that is an input, or part of an input or an index."""
    for name in paths.keys() & _OUTPUTS:
        output = paths[name]
        owner = _find_owner(output)
        if owner is not None:
            raise ConfigError(
                f"{name} is {output}, which lies inside {owner}, an index or vectors; it must be "
                "another place"
            )
        for other in paths.keys() - {name}:
            if _is_part(output, paths[other]):
                raise ConfigError(
                    f"{name} is {output}, which {other} reads; it must be another place"
                )


def _find_owner(output: Path) -> Path | None:
    """Return the index or the vectors folder that an output lies in, None if it lies in none."""
    for folder in Path(os.path.realpath(output)).parents:
        try:
            manifest = json.loads((folder / "manifest.json").read_bytes())
        except (OSError, ValueError):
            continue
        if isinstance(manifest, dict) and manifest.get("kind") in _SEALED_KINDS:
            return folder
    return None


def _is_part(output: Path, source: Path) -> bool:
    """Return whether an output is an input, or a file that is read in the folder of an input."""
    if not (output.is_file() or output.is_dir()) or not source.exists():
        return False
    if output.samefile(source):
        return True
    place = Path(os.path.realpath(output))
    folder = Path(os.path.realpath(source))
    if place.is_dir():
        return False
    if place.parent == folder:
        return place.name.startswith(_READ_IN_FOLDERS)
    return place.parent == folder / "qrels"


def _describe(hint: Any) -> str:
    origin = typing.get_origin(hint)
    if origin is typing.Literal:
        return "one of " + ", ".join(map(repr, typing.get_args(hint)))
    if origin in (types.UnionType, typing.Union):
        return " or ".join(_describe(part) for part in typing.get_args(hint))
    if origin is tuple:
        return "a tuple of strings"
    return _DESCRIPTIONS[origin or hint]
