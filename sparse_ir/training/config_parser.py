"""Reading, checking and writing training configurations."""

from __future__ import annotations

import dataclasses
import difflib
import tomllib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from sparse_ir.errors import ConfigError
from sparse_ir.training.config import LARGEST_INTEGER, TrainConfig, join_names


def read_config(path: Path) -> TrainConfig:
    """The checked configuration of a TOML file; raises ``ConfigError`` with file, key, value and
    what is allowed.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror})") from error
    # also bytes that are no UTF-8, and numbers of thousands of digits
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not TOML ({error})") from error
    try:
        return parse_config(table)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def parse_config(table: Mapping[str, Any]) -> TrainConfig:
    """The checked configuration of a parsed file."""
    return _build(TrainConfig, table, "")


def config_to_json(config: TrainConfig) -> dict[str, Any]:
    """All keys with their values; keys that are unset are left out, because TOML has no null."""
    return _without_none(dataclasses.asdict(config))


def format_config(config: TrainConfig) -> str:
    """The configuration as TOML, every default written out: what ``read_config`` reads to the same
    object.
    """
    import tomli_w

    return tomli_w.dumps(config_to_json(config))


def _without_none(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_none(part) for key, part in value.items() if part is not None}
    if isinstance(value, (list, tuple)):
        return [_without_none(part) for part in value]
    return value


def _build(kind: Any, table: Any, place: str) -> Any:
    """A settings object from a table, recursively; ``place`` is the key so far, for messages."""
    if not isinstance(table, Mapping):
        raise ConfigError(f"{place} is {table!r:.60}; allowed: a table")
    hints = typing.get_type_hints(kind)
    for key in table:
        if key not in hints:
            near = difflib.get_close_matches(key, hints, 1)
            meant = f"; did you mean {near[0]}?" if near else f"; allowed: {', '.join(hints)}"
            raise ConfigError(f"unknown key {join_names(place, key)}{meant}")
    values = {
        key: _convert(hints[key], value, join_names(place, key)) for key, value in table.items()
    }
    required = [
        f.name
        for f in dataclasses.fields(kind)
        if f.default is f.default_factory is dataclasses.MISSING
    ]
    if missing := [name for name in required if name not in values]:
        raise ConfigError(f"{join_names(place, missing[0])} is missing")
    made = kind(**values)
    try:
        made.check()
    except ConfigError as error:
        raise ConfigError(f"[{place}] {error}" if place else str(error)) from error
    return made


def _convert(hint: Any, value: Any, place: str) -> Any:
    if isinstance(value, int) and abs(value) > LARGEST_INTEGER:
        raise ConfigError(
            f"{place} is a whole number of {value.bit_length()} bits; allowed: of 63 bits at most"
        )
    if dataclasses.is_dataclass(hint):
        return _build(hint, value, place)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple:
        if not isinstance(value, list):
            raise ConfigError(
                f"{place} is {value!r:.60}; allowed: a list of tables, each under [[{place}]]"
            )
        return tuple(
            _build(arguments[0], part, f"{place}.{number}") for number, part in enumerate(value)
        )
    if origin is Literal:
        # True equals 1
        fits = any(value == word and type(value) is type(word) for word in arguments)
        return _check(fits, value, place, "one of " + ", ".join(map(repr, arguments)))
    if origin in (types.UnionType, typing.Union):
        words = [
            word
            for part in arguments
            for word in typing.get_args(part)
            if typing.get_origin(part) is Literal
        ]
        if value in words:
            return value
        return _convert(next(part for part in arguments if part is not type(None)), value, place)
    if origin is not None:
        table = dict(_check(isinstance(value, Mapping), value, place, "a table"))
        return {
            key: _convert(arguments[1], part, join_names(place, key)) for key, part in table.items()
        }
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    fits = isinstance(value, hint) and not (hint is int and isinstance(value, bool))
    # NaN differs from itself
    return _check(fits and value == value, value, place, f"a value of type {hint.__name__}")


def _check(fits: bool, value: Any, place: str, allowed: str) -> Any:
    if not fits:
        raise ConfigError(f"{place} is {value!r:.60}; allowed: {allowed}")
    return value
