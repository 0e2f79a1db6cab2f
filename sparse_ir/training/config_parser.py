"""Read, check and write training configurations."""

from __future__ import annotations

import dataclasses
import difflib
import tomllib
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from sparse_ir.errors import ConfigError
from sparse_ir.training.config import TrainConfig

_ADAPTER = TypeAdapter(TrainConfig)
_SHOWN = 60  # characters of a value in a message
# pydantic's words for a container of Python, in words of TOML
_CONTAINERS = {
    "dataclass_type": "a table",
    "dict_type": "a table",
    "tuple_type": "a list of tables, each under [[{place}]]",
}


def read_config(path: Path) -> TrainConfig:
    """Read and check a TOML file.

    Raises:
        ConfigError: The file cannot be read, is not TOML, or has a wrong value. The message names
            the file, the key, its value and what it must be.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror})") from error
    # ValueError also covers bytes that are not UTF-8 and integers with thousands of digits
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not TOML ({error})") from error
    try:
        return parse_config(table)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def parse_config(table: Mapping[str, Any]) -> TrainConfig:
    """Check the tables of a parsed file; raises ``ConfigError`` as ``read_config`` does."""
    try:
        return _ADAPTER.validate_python(table)
    except ValidationError as error:
        errors = error.errors(include_url=False)
        unknown = [each for each in errors if each["type"] == "unexpected_keyword_argument"]
        # a misspelled key comes first, because a key that is missing may be the same one
        raise ConfigError(_describe([*unknown, *errors][0])) from error


def config_to_json(config: TrainConfig) -> dict[str, Any]:
    """All keys with their values; unset keys are left out, because TOML has no null."""
    table: dict[str, Any] = _without_none(dataclasses.asdict(config))
    return table


def format_config(config: TrainConfig) -> str:
    """The configuration as TOML with every default; ``read_config`` reads an equal object."""
    return tomli_w.dumps(config_to_json(config))


def _without_none(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_none(part) for key, part in value.items() if part is not None}
    if isinstance(value, (list, tuple)):
        return [_without_none(part) for part in value]
    return value


def _describe(error: ErrorDetails) -> str:
    """One line for an error of pydantic."""
    location = error["loc"]
    place = ".".join(map(str, location))
    kind = error["type"]
    if kind == "missing":
        return f"{place} is missing"
    if kind == "unexpected_keyword_argument":
        return f"unknown key {place}; {_suggest(location)}"
    value = f"{error['input']!r:.{_SHOWN}}"
    if kind == "value_error":
        message = str(error["ctx"]["error"])
        is_section = isinstance(error["input"], Mapping)
        if not place:
            return message
        return f"[{place}] {message}" if is_section else f"{place}: {message}"
    expected = error["msg"].removeprefix("Input should be ")
    if kind in _CONTAINERS:
        expected = _CONTAINERS[kind].format(place=place)
    return f"{place} is {value} but must be {expected}"


def _suggest(location: Sequence[str | int]) -> str:
    """The key that was probably meant, or all keys of the section."""
    section: Any = TrainConfig
    if len(location) > 1:
        section = _section_in(typing.get_type_hints(TrainConfig)[str(location[0])])
    keys = [field.name for field in dataclasses.fields(section)]
    similar = difflib.get_close_matches(str(location[-1]), keys, 1)
    if similar:
        return f"did you mean {similar[0]}?"
    return f"known keys: {', '.join(keys)}"


def _section_in(hint: Any) -> Any:
    """The section class in a hint such as ``tuple[DataSettings, ...]``."""
    if dataclasses.is_dataclass(hint):
        return hint
    candidates = [part for part in typing.get_args(hint) if dataclasses.is_dataclass(part)]
    return candidates[0]
