"""The engines by name. A new engine is a module beside this one and a line here."""

from __future__ import annotations

from typing import Literal

from sparse_ir.engines.base import Engine
from sparse_ir.engines.exact import ExactEngine
from sparse_ir.engines.lucene.engine import LuceneEngine
from sparse_ir.errors import ConfigError

EngineName = Literal["lucene", "exact"]
DEFAULT_ENGINE: EngineName = "lucene"

_ENGINES: dict[str, Engine] = {
    "lucene": LuceneEngine(),
    "exact": ExactEngine(),
}


def find_engine(name: str) -> Engine:
    """The engine of this name; raises ``ConfigError`` for an unknown one."""
    if name not in _ENGINES:
        raise ConfigError(f"engine {name!r} is unknown; it must be one of {', '.join(_ENGINES)}")
    return _ENGINES[name]
