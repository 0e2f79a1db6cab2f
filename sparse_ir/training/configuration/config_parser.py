"""Read, check and write training configurations."""

from __future__ import annotations

import dataclasses
import difflib
import tomllib
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from sparse_ir import extras
from sparse_ir.errors import ConfigError
from sparse_ir.training.configuration.config import TrainConfig
from sparse_ir.training.teachers.kinds import TEACHERS

_ADAPTER = TypeAdapter(TrainConfig)
_SHOWN = 60  # characters of a value in a message
# pydantic's words for a container of Python, in words of TOML
_CONTAINERS = {
    "dataclass_type": "a table",
    "dict_type": "a table",
    "model_attributes_type": "a table",
    "tuple_type": "a list of tables, each under [[{place}]]",
}
# Keys that every [[teacher]] section has in a written file, in this order, whatever its kind. Run
# folders depend on it: a training is resumed only if its configuration is written the same way.
_TEACHER_KEYS: dict[str, Any] = {
    "kind": None,
    "model": None,
    "revision": None,
    "weight": None,
    "dtype": "float32",
    "max_length": None,
    "k1": 0.9,
    "b": 0.4,
    "allow_pickle": False,
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
    table = dict(table)
    if isinstance(table.get("teacher"), list):
        table["teacher"] = list(map(_without_foreign_keys, table["teacher"]))
    try:
        return _ADAPTER.validate_python(table)
    except ValidationError as error:
        errors = error.errors(include_url=False)
        # a misspelled key comes first, because a key that is missing may be the same one
        errors.sort(key=lambda each: each["type"] != "unexpected_keyword_argument")
        raise ConfigError(_describe(errors[0])) from error


def config_to_json(config: TrainConfig) -> dict[str, Any]:
    """All keys with their values; unset keys are left out, because TOML has no null."""
    table = dataclasses.asdict(config)
    table["teacher"] = [_TEACHER_KEYS | teacher for teacher in table["teacher"]]
    without_none: dict[str, Any] = _without_none(table)
    return without_none


def format_config(config: TrainConfig) -> str:
    """The configuration as TOML with every default; ``read_config`` reads an equal object."""
    with extras.importing():
        import tomli_w

    return tomli_w.dumps(config_to_json(config))


def _without_none(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_none(part) for key, part in value.items() if part is not None}
    if isinstance(value, (list, tuple)):
        return [_without_none(part) for part in value]
    return value


def _without_foreign_keys(section: Any) -> Any:
    """Drop keys of other kinds of teachers that are at their defaults, as in a written file."""
    if not isinstance(section, Mapping) or not isinstance(section.get("kind"), str):
        return section
    settings = TEACHERS.get(section["kind"])
    if settings is None:
        return section
    own = _keys_of(settings)
    kept = {}
    for key, value in section.items():
        default = _TEACHER_KEYS.get(key)
        is_default = type(value) is type(default) and value == default
        if key in own or not is_default:
            kept[key] = value
    return kept


def _describe(error: ErrorDetails) -> str:
    """One line for an error of pydantic."""
    location = error["loc"]
    if location[:1] == ("teacher",):  # the third part is the kind, which is not in the file
        location = location[:2] + location[3:]
    place = ".".join(map(str, location))
    kind = error["type"]
    if kind == "missing":
        return f"{place} is missing"
    if kind == "unexpected_keyword_argument":
        return _describe_unknown(place, error)
    if kind == "value_error":
        # the message of a validator, behind the section or the key that it checks
        message = str(error["ctx"]["error"])
        if place and isinstance(error["input"], Mapping):
            return f"[{place}] {message}"
        return f"{place}: {message}" if place else message
    if kind == "union_tag_not_found":
        return f"{place}.kind is missing"
    value = error["input"]
    expected = error["msg"].removeprefix("Input should be ")
    if kind in _CONTAINERS:
        expected = _CONTAINERS[kind].format(place=place)
    if kind == "union_tag_invalid":
        place = f"{place}.kind"
        value = value["kind"]
        expected = f"one of {error['ctx']['expected_tags']}"
    return f"{place} is {value!r:.{_SHOWN}} but must be {expected}"


def _describe_unknown(place: str, error: ErrorDetails) -> str:
    """A key that its section does not have, with the key that was probably meant."""
    location = error["loc"]
    key = str(location[-1])
    section: Any = TrainConfig
    if place.startswith("teacher."):
        kind = str(location[2])
        section = TEACHERS[kind]
        users = [name for name, settings in TEACHERS.items() if key in _keys_of(settings)]
        if users:
            return (
                f"{place} is {error['input']!r:.{_SHOWN}}, but a teacher of kind {kind!r} does not "
                f"use it; it is for {', '.join(users)}"
            )
    elif len(location) > 1:
        section = typing.get_type_hints(TrainConfig)[str(location[0])]
        if not dataclasses.is_dataclass(section):  # such as tuple[DataSettings, ...]
            section = next(filter(dataclasses.is_dataclass, typing.get_args(section)))
    keys = _keys_of(section)
    similar = difflib.get_close_matches(key, keys, 1)
    if similar:
        return f"unknown key {place}; did you mean {similar[0]}?"
    return f"unknown key {place}; known keys: {', '.join(keys)}"


def _keys_of(section: Any) -> list[str]:
    return list(section.__dataclass_fields__)
