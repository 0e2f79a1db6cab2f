"""What can be read only once, kept in a file without a name so that it can be read again."""

from __future__ import annotations

import pickle
import shutil
import sys
import tempfile
import weakref
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

from sparse_ir.data.lines import InputFile, open_bytes
from sparse_ir.errors import DataError

_GZIP = b"\x1f\x8b"
_ZSTD = b"\x28\xb5\x2f\xfd"
_PARQUET = b"PAR1"


class Spool:
    """A temporary file that the system deletes however this process ends."""

    def __init__(self, write: Callable[[BinaryIO], object]) -> None:
        file = cast(BinaryIO, tempfile.TemporaryFile())  # noqa: SIM115 (closed by finalize)
        weakref.finalize(self, file.close)
        try:
            write(file)
            file.flush()
        except OSError as error:
            raise DataError(
                f"the temporary folder cannot hold the input ({error.strerror}); it must have "
                "room, or TMPDIR must name another one"
            ) from error
        # opening this path starts at the beginning, apart from all other readers
        self.path = Path(f"/proc/self/fd/{file.fileno()}")


def spool_standard_input() -> tuple[Spool, InputFile]:
    """The whole standard input; compressed input is recognized by its first bytes."""
    place = "standard input"
    spool = Spool(lambda file: shutil.copyfileobj(sys.stdin.buffer, file))
    with spool.path.open("rb") as stream:
        start = stream.read(4)
    if start.startswith(_GZIP):
        return spool, InputFile(spool.path, place, "gz")
    if start.startswith(_ZSTD):
        return spool, InputFile(spool.path, place, "zst")
    return spool, InputFile(spool.path, place)


def spool_items(items: Iterable[Any]) -> Callable[[], Iterator[Any]]:
    """The items of an iterator, and a function that starts reading them again."""

    def write(file: BinaryIO) -> None:
        for item in items:
            pickle.dump(item, file)

    spool = Spool(write)

    def read() -> Iterator[Any]:
        with spool.path.open("rb") as file:
            while True:
                try:
                    yield pickle.load(file)
                except EOFError:
                    return

    return read


def guess_format(file: InputFile) -> str | None:
    """The format that the beginning shows: Parquet, JSON by its first character, or a table.

    A first line with tabs begins a TSV file, and one with commas a CSV file.
    """
    try:
        with open_bytes(file) as stream:
            start = stream.read(1024)
    except (OSError, EOFError, zlib.error):
        return None  # a reader of the file says it better
    start = start.removeprefix(b"\xef\xbb\xbf").lstrip(b" \r\n")
    if start.startswith(_PARQUET):
        return "parquet"
    if start.startswith(b"["):
        return "json"
    if start.startswith(b"{"):
        return "jsonl"
    first_line = start.partition(b"\n")[0]
    for separator, name in ((b"\t", "tsv"), (b",", "csv")):
        if separator in first_line:
            return name
    return None
