"""The metadata of documents: the types of its fields, inferred or given, and values of a type.

A value of type ``date`` is a string of ISO 8601, and one of type ``keywords`` a list of strings.
"""

from __future__ import annotations

import datetime
import decimal
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, get_args

from sparse_ir.data.records import LONE_SURROGATE, MetadataValue, show
from sparse_ir.errors import DataError

FieldType = Literal["keyword", "number", "date", "boolean", "keywords"]
MetadataSchema = dict[str, FieldType]
FIELD_TYPES: tuple[FieldType, ...] = get_args(FieldType)
MOST_FIELDS = 1000

_NESTED = "metadata"  # BEIR's object of further fields, whose name is not part of theirs
_LARGEST_INTEGER = 2**63 - 1
_WHOLE = re.compile(r"[+-]?[0-9]+")
_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_LEADING_ZERO = re.compile(r"[+-]?0[0-9]")
_DATE = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}"
    r"(?:[T ][0-9]{2}:[0-9]{2}(?::[0-9]{2}(?:\.[0-9]{1,6})?)?(?:Z|[+-][0-9]{2}:?[0-9]{2})?)?"
)
_TRUTH = {"true": True, "false": False}
_WORDS = {
    "keyword": "a string",
    "number": "a finite number",
    "date": "a date such as 2024-12-31 or 2024-12-31T23:59:00Z",
    "boolean": "true or false",
    "keywords": "a list of strings",
}


def flatten(values: Mapping[str, Any], left_out: frozenset[str]) -> Iterator[tuple[str, Any]]:
    """The names and values of all fields but some; nested fields have dotted names.

    The fields of the object ``metadata`` have no prefix. Missing values (null, not a number) are
    left out.
    """
    stack: list[tuple[str, Iterator[tuple[Any, Any]]]] = [("", iter(values.items()))]
    while stack:
        prefix, pairs = stack[-1]
        for key, value in pairs:
            name = f"{prefix}{key}"
            if name in left_out or value is None or value != value:  # NaN, NaT
                continue
            if isinstance(value, Mapping):
                nested = "" if name == _NESTED else f"{name}."
                stack.append((nested, iter(value.items())))
                break
            yield name, value
        else:
            stack.pop()


class SchemaBuilder:
    """Infers the types of fields from their values.

    A field gets the narrowest type that all of its values have: boolean, number, date, keyword; and
    keywords if any of them is a list. Fields with other mixtures are keywords. ``reads_texts`` is
    for formats in which every value is a text, such as CSV: "12" may then be a number.
    """

    def __init__(self, *, reads_texts: bool) -> None:
        self._reads_texts = reads_texts
        self._possible: dict[str, frozenset[FieldType]] = {}
        self._lists: set[str] = set()

    def add(self, where: str, name: str, value: Any) -> None:
        """Take a value into account; raises ``DataError`` for too many fields."""
        known = self._possible.get(name)
        if known == _TEXT_ONLY and isinstance(value, str):
            return
        if isinstance(value, list | tuple):
            self._lists.add(name)
        possible = _possible_types(value, self._reads_texts)
        if known is None:
            if not name or LONE_SURROGATE.search(name):
                raise DataError(
                    f"{where}: field {show(name)} must have a name without lone surrogates, of at "
                    "least one character"
                )
            if len(self._possible) == MOST_FIELDS:
                raise DataError(
                    f"{where}: field {show(name)} is one more than {MOST_FIELDS} metadata fields; "
                    "name the fields to keep with --metadata-field"
                )
            self._possible[name] = possible
        else:
            self._possible[name] = known & possible

    def finish(self) -> MetadataSchema:
        """The type of each field, in the order in which the fields appeared."""
        schema: MetadataSchema = {}
        for name, possible in self._possible.items():
            schema[name] = _choose_type(possible, name in self._lists)
        return schema


_KINDS: tuple[tuple[type, FieldType], ...] = (
    (bool, "boolean"),  # before int, of which it is a kind
    (int, "number"),
    (float, "number"),
    (decimal.Decimal, "number"),
    (datetime.date, "date"),
    (list, "keywords"),
    (tuple, "keywords"),
)
_TEXT_ONLY: frozenset[FieldType] = frozenset({"keyword"})
_PRIORITY: tuple[FieldType, ...] = ("boolean", "number", "date", "keyword", "keywords")


def _choose_type(possible: frozenset[FieldType], has_lists: bool) -> FieldType:
    for kind in _PRIORITY:
        if kind in possible:
            return kind
    return "keywords" if has_lists else "keyword"


def _possible_types(value: Any, reads_texts: bool) -> frozenset[FieldType]:
    if isinstance(value, str):
        return _types_of_text(value, reads_texts)
    if isinstance(value, int) and abs(value) > _LARGEST_INTEGER:
        return _TEXT_ONLY
    for python_type, kind in _KINDS:
        if isinstance(value, python_type):
            return frozenset({kind})
    return _TEXT_ONLY


def _types_of_text(text: str, reads_texts: bool) -> frozenset[FieldType]:
    if _is_date(text):
        return frozenset({"date", "keyword"})
    if reads_texts:
        if text.lower() in _TRUTH:
            return frozenset({"boolean", "keyword"})
        # "007" is a code rather than a number
        if not _LEADING_ZERO.match(text) and _parse_number(text) is not None:
            return frozenset({"number", "keyword"})
    return _TEXT_ONLY


def convert(what: str, value: Any, kind: FieldType) -> MetadataValue:
    """The value as one of type ``kind``; raises ``DataError`` that begins with ``what``."""
    converted = _CONVERTERS[kind](value)
    if converted is None:
        raise DataError(f"{what} is {show(value)}; it must be {_WORDS[kind]} (its type is {kind})")
    return converted


def _to_keyword(value: Any) -> str | None:
    if isinstance(value, str):
        text = value
    elif isinstance(value, datetime.date | datetime.time):
        text = value.isoformat()
    elif isinstance(value, decimal.Decimal | datetime.timedelta):
        text = str(value)
    else:
        try:
            text = json.dumps(value, ensure_ascii=False, allow_nan=False, default=_to_json)
        except (TypeError, ValueError, RecursionError):
            return None
    if LONE_SURROGATE.search(text):
        return None
    return text


def _to_json(value: Any) -> str:
    """A value that JSON does not know, inside of a list."""
    text = _to_keyword(value)
    if text is None:
        raise TypeError
    return text


def _to_keywords(value: Any) -> list[str] | None:
    if not isinstance(value, list | tuple):
        value = [value]
    keywords = []
    for part in value:
        if part is None:
            continue
        keyword = _to_keyword(part)
        if keyword is None:
            return None
        keywords.append(keyword)
    return keywords


def _to_number(value: Any) -> int | float | None:
    if isinstance(value, str):
        return _parse_number(value)
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return int(value) if abs(value) <= _LARGEST_INTEGER else None
    if isinstance(value, float | decimal.Decimal):
        number = float(value)
        return number if math.isfinite(number) else None
    return None


def _parse_number(text: str) -> int | float | None:
    """The number in a text of at most 40 characters."""
    if len(text) > 40 or not _NUMBER.fullmatch(text):
        return None
    if _WHOLE.fullmatch(text):
        whole = int(text)
        return whole if abs(whole) <= _LARGEST_INTEGER else None
    number = float(text)
    return number if math.isfinite(number) else None


def _to_date(value: Any) -> str | None:
    if isinstance(value, datetime.date):
        return value.isoformat()
    if isinstance(value, str) and _is_date(value):
        return value
    return None


def _is_date(text: str) -> bool:
    if not _DATE.fullmatch(text):
        return False
    try:
        datetime.datetime.fromisoformat(text)
    except ValueError:
        return False
    return True


def _to_boolean(value: Any) -> bool | None:
    if isinstance(value, bool):
        return value
    if isinstance(value, str):
        return _TRUTH.get(value.lower())
    return None


_CONVERTERS: dict[FieldType, Callable[[Any], MetadataValue | None]] = {
    "keyword": _to_keyword,
    "number": _to_number,
    "date": _to_date,
    "boolean": _to_boolean,
    "keywords": _to_keywords,
}
