"""sparse_ir: learned-sparse retrieval, from text to a verified and measured Lucene impact index.

Each command of the shell is a function here with the same name and options. The folders are the
wings of the package; the docstring of each says which question it answers. Importing this package
loads neither torch nor a Java virtual machine: a public name is loaded when it is first asked for.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "Encoder": "sparse_ir.models.encoder",
    "Index": "sparse_ir.retrieval.searcher",
    "SearchOptions": "sparse_ir.retrieval.options",
    "beir": "sparse_ir.commands.benchmarking",
    "bm25": "sparse_ir.commands.indexing",
    "build": "sparse_ir.commands.indexing",
    "compare": "sparse_ir.commands.evaluating",
    "demo": "sparse_ir.commands.demo",
    "doctor": "sparse_ir.commands.doctor",
    "encode": "sparse_ir.commands.indexing",
    "evaluate": "sparse_ir.commands.evaluating",
    "explain": "sparse_ir.commands.searching",
    "export": "sparse_ir.commands.indexing",
    "idf": "sparse_ir.commands.indexing",
    "index": "sparse_ir.commands.indexing",
    "info": "sparse_ir.commands.inspecting",
    "leaderboard": "sparse_ir.commands.benchmarking",
    "mine": "sparse_ir.commands.training",
    "search": "sparse_ir.commands.searching",
    "show": "sparse_ir.commands.searching",
    "teach": "sparse_ir.commands.training",
    "train": "sparse_ir.commands.training",
    "tune": "sparse_ir.commands.searching",
    "verify": "sparse_ir.commands.indexing",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    """Load a public name from its module when it is first asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module 'sparse_ir' has no attribute {name!r}")
    from sparse_ir import extras

    with extras.importing():
        home = importlib.import_module(_HOMES[name])
    return getattr(home, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
