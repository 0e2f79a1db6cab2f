"""sparse_ir: learned-sparse retrieval, from text to a verified and measured Lucene impact index.

    corpus ──data──▶ Document ──encoder──▶ weights ──vectors──▶ shards on disk
           ──impacts──▶ integer impacts ──lucene──▶ postings ──indexes──▶ a verified index folder
    query  ──queries──▶ weights ──impacts──▶ the same rule ──lucene──▶ hits ──data──▶ TREC run ──measures──▶ nDCG@10

The verbs of the command line are functions here: ``encode index build bm25 search evaluate verify export idf compare
explain demo``.
Importing this package loads neither torch nor a Java virtual machine. First file to read: ``errors``.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_HOMES = dict.fromkeys(
    ("encode", "index", "build", "bm25", "search", "evaluate", "verify", "export", "idf"), "sparse_ir.verbs"
) | {"compare": "sparse_ir.comparison", "explain": "sparse_ir.explanation", "tune": "sparse_ir.tuning",
     "demo": "sparse_ir.showcase", "Index": "sparse_ir.searcher", "SearchOptions": "sparse_ir.approximation",
     "Encoder": "sparse_ir.encoder"}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    """Load a public name from its module when it is first asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module 'sparse_ir' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
