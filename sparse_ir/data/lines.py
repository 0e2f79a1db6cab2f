"""Text files line by line, with the line number in every error."""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sparse_ir.data.records import show
from sparse_ir.errors import DataError

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_BLANKS = re.compile(r"[ \t]+")


def parse_jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Numbered JSON objects (from 1), one per line; raises ``DataError`` for any other line."""
    for number, line in read_lines(path):
        try:
            record = json.loads(line, object_pairs_hook=make_object)
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"{path}:{number}: not JSON ({error}): {show(line)}; it must be one object"
            ) from error
        if not isinstance(record, dict):
            raise DataError(
                f"{path}:{number}: not a JSON object but {show(record)}; each line must be one"
            )
        yield number, record


def make_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The pairs of a JSON object as a dict; raises ``ValueError`` for a key that appears twice.

    Python silently keeps the last of two equal keys, which here would lose an id, a text or a
    score.
    """
    made = dict(pairs)
    if len(made) != len(pairs):
        keys = [key for key, _ in pairs]
        repeated = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"key {show(repeated)} twice in one object")
    return made


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines (from 1) of a plain or gzipped file, without their ends.

    Raises ``DataError`` for a file that cannot be read to its end, for text other than UTF-8, and
    for an empty line before the end of the file.
    """
    number = 0
    first_blank = 0
    try:
        with _open_bytes(path) as stream:
            for number, raw in enumerate(stream, 1):
                line = _decode_line(f"{path}:{number}", raw, is_first=number == 1)
                if not line:
                    first_blank = first_blank or number
                    continue
                if first_blank:
                    raise DataError(f"{path}:{first_blank}: empty line; each must hold a record")
                yield number, line
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(
            f"{path}:{number + 1}: cannot be read to its end ({error}); it must be a complete "
            "plain file, or a complete gzip file whose name ends in .gz"
        ) from error


def split_columns(line: str) -> list[str]:
    """The columns of a TREC file, which stand between blanks and tabs.

    Unlike ``str.split``, no other white space of Unicode separates columns.
    """
    if line.isascii():
        return line.split()
    return _BLANKS.split(line.strip(" \t"))


def _open_bytes(path: Path) -> Any:
    if path.suffix == ".gz":
        return gzip.open(path, "rb")
    return path.open("rb")


def _decode_line(where: str, raw: bytes, *, is_first: bool) -> str:
    if is_first and raw.startswith(_BYTE_ORDER_MARK):
        raise DataError(
            f"{where}: the file starts with a byte order mark; it must be UTF-8 without one"
        )
    try:
        return raw.decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        rest = raw[error.start : error.start + 8]
        raise DataError(
            f"{where}: not UTF-8 ({error.reason} at byte {error.start + 1} of the line, {rest!r}); "
            "the file must be UTF-8"
        ) from error
