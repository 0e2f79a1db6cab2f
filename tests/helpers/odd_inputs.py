"""Odd bytes and odd JSON for fuzzing, and the two outcomes that a reader may have."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import strategies

from sparse_ir.errors import EXIT_ERROR, EXIT_UNCHECKED, SparseIRError

PLAIN_VALUES = strategies.sampled_from(
    [None, True, False, 0, -1, 1, 2**70, 1.5, 1e400, -0.0, "", "x", "\ud800", "é\n", [], {}, [[]]]
)
JSON_VALUES = strategies.recursive(
    PLAIN_VALUES,
    lambda inner: (
        strategies.lists(inner, max_size=3)
        | strategies.dictionaries(strategies.sampled_from(["", "a", "_id", "text"]), inner)
    ),
    max_leaves=6,
)


@strategies.composite
def changed_bytes(draw: Callable[..., Any], content: bytes) -> bytes:
    """A file in which some bytes were replaced, removed or put in."""
    changed = bytearray(content)
    for _ in range(draw(strategies.integers(1, 4))):
        start = draw(strategies.integers(0, len(changed)))
        removed = draw(strategies.integers(0, 6))
        inserted = draw(
            strategies.binary(max_size=6)
            | strategies.sampled_from(
                [b"\n", b"\r", b"\t", b"\0", b"\xff", b'"', b"{", b"[", b"]}", b"1e999", b"NaN"]
            )
        )
        changed[start : start + removed] = inserted
    return bytes(changed)


@strategies.composite
def changed_json(draw: Callable[..., Any], value: Any) -> str:
    """The text of a JSON value in which one part was replaced or removed."""
    changed = {"": copy.deepcopy(value)}
    parent: Any = changed
    key: Any = ""
    while isinstance(parent[key], dict | list) and parent[key] and draw(strategies.booleans()):
        parent = parent[key]
        keys = sorted(parent) if isinstance(parent, dict) else list(range(len(parent)))
        key = draw(strategies.sampled_from(keys))
    if parent is not changed and draw(strategies.integers(0, 3)) == 0:
        del parent[key]
    else:
        parent[key] = draw(JSON_VALUES)
    return json.dumps(changed[""])


def check_outcome(task: Callable[[], object], path: Path | None = None) -> SparseIRError | None:
    """Run a task: it ends well, or with one line that names the file and a documented code."""
    try:
        task()
    except SparseIRError as error:
        text = str(error)
        assert text
        assert len(text) < 5000, text[:500]
        assert error.exit_code in (EXIT_ERROR, EXIT_UNCHECKED)
        if path is not None:
            assert path.name in text, text
        return error
    return None
