"""The engines by name. A new engine is a module beside this one and two entries here.

An engine's module is imported when the engine is first asked for, so that the names cost nothing
and an engine needs its packages only where it is used.
"""

from __future__ import annotations

import functools
import importlib
from typing import TYPE_CHECKING, Literal, cast, get_args

from sparse_ir.errors import ConfigError

if TYPE_CHECKING:
    from sparse_ir.engines.base import Engine

EngineName = Literal["lucene", "exact"]
DEFAULT_ENGINE: EngineName = "lucene"
ENGINES: tuple[EngineName, ...] = get_args(EngineName)

_CLASSES: dict[EngineName, str] = {
    "lucene": "sparse_ir.engines.lucene.engine:LuceneEngine",
    "exact": "sparse_ir.engines.exact:ExactEngine",
}


@functools.cache
def find_engine(name: str) -> Engine:
    """The engine of this name; raises ``ConfigError`` for an unknown one."""
    if name not in _CLASSES:
        raise ConfigError(f"engine {name!r} is unknown; it must be one of {', '.join(_CLASSES)}")
    module, _, class_name = _CLASSES[name].partition(":")
    return cast("Engine", getattr(importlib.import_module(module), class_name)())
