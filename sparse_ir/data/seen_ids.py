"""Exact checks that no id appears twice, in bounded memory."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator

from sparse_ir.data.records import show
from sparse_ir.errors import DataError

_CACHE_KIB = 4096


@contextlib.contextmanager
def open_seen_ids() -> Iterator[sqlite3.Connection]:
    """A temporary database of ids, for ``remember_id``."""
    # The name "" is SQLite's private temporary database. It spills to the disk when the cache is
    # full, and the system deletes it however this process ends.
    connection = sqlite3.connect("", isolation_level=None, check_same_thread=False)
    try:
        connection.execute("PRAGMA journal_mode = OFF")
        connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
        connection.execute("CREATE TABLE seen (id TEXT PRIMARY KEY, line INTEGER) WITHOUT ROWID")
        connection.execute("BEGIN")
        yield connection
    finally:
        connection.close()


def remember_id(
    seen: sqlite3.Connection, place: str, number: int, record_id: str, field: str = "_id"
) -> None:
    """Store the id of line ``number`` of ``place``; raises ``DataError`` for a repeated id."""
    try:
        seen.execute("INSERT INTO seen VALUES (?, ?)", (record_id, number))
    except sqlite3.IntegrityError:
        (first,) = seen.execute("SELECT line FROM seen WHERE id = ?", (record_id,)).fetchone()
        raise DataError(
            f'{place}:{number}: "{field}" is {show(record_id)} as in line {first}; each id must be '
            "unique"
        ) from None
    except sqlite3.OperationalError as error:
        raise DataError(
            f"{place}:{number}: the temporary folder cannot hold the ids that are checked for "
            f"repetition ({error}); it must have room, or TMPDIR must name another one"
        ) from error
