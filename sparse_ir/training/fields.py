"""Types of the values in a training configuration, with their ranges."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import (
    AfterValidator,
    ConfigDict,
    Field,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
)
from pydantic_core import PydanticCustomError

from sparse_ir.errors import ConfigError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

LARGEST = 10**9  # of steps, tokens and texts: a larger number is a typing error
# Every section of a configuration is a frozen pydantic dataclass with this configuration. The
# string below a field describes it, for readers and for the generated reference.
SECTION = ConfigDict(extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

Text = StrictStr
Flag = StrictBool
Number = StrictFloat
Positive = Annotated[StrictFloat, Field(gt=0)]
NotNegative = Annotated[StrictFloat, Field(ge=0)]
Probability = Annotated[StrictFloat, Field(ge=0, le=1)]
ShareBelowOne = Annotated[StrictFloat, Field(ge=0, lt=1)]
OpenShare = Annotated[StrictFloat, Field(gt=0, lt=1)]
Count = Annotated[StrictInt, Field(ge=1, le=LARGEST)]
CountOrZero = Annotated[StrictInt, Field(ge=0, le=LARGEST)]
Length = Annotated[StrictInt, Field(ge=4, le=LARGEST)]


def name_in(*tables: Iterable[str]) -> AfterValidator:
    """Accept the names in ``tables``, as they are when a configuration is read."""

    def check(value: str) -> str:
        names = list(itertools.chain(*tables))
        if value not in names:
            *first, last = [f"'{name}'" for name in names]
            raise PydanticCustomError("name", f"Input should be {', '.join(first)} or {last}")
        return value

    return AfterValidator(check)


def refuse_unused(
    section: DataclassInstance, names: Sequence[str], key: str, used_by: Sequence[str]
) -> None:
    """Raise ``ConfigError`` if a setting differs from its default but nothing will read it.

    Args:
        section: A section of a configuration.
        names: Fields of the section that only some values of ``key`` use.
        key: The field that decides, such as ``"penalty"``.
        used_by: The values of ``key`` that use the fields ``names``.
    """
    chosen: Any = getattr(section, key)
    if chosen in used_by:
        return
    for field in dataclasses.fields(section):
        value = getattr(section, field.name)
        if field.name in names and value != field.default:
            raise ConfigError(
                f"{field.name} is {value!r}, but {key} is {chosen!r}, which does not use it; it is "
                f"for {', '.join(used_by)}"
            )
