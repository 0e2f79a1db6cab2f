"""Text files line by line, with the line number in every error."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sparse_ir.data.records import show
from sparse_ir.errors import DataError


def parse_jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in read_lines(path):
        try:
            record = json.loads(line, object_pairs_hook=make_object)
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"{path}:{number}: not JSON ({error}): {show(line)}, allowed: one object"
            ) from error
        if not isinstance(record, dict):
            raise DataError(
                f"{path}:{number}: not a JSON object but {show(record)}, allowed: an "
                "object per line"
            )
        yield number, record


def make_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # Python keeps the last of two equal keys without a word; here that would lose an id, a text or
    # a score.
    made = dict(pairs)
    if len(made) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"key {show(twice)} twice in one object")
    return made


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines (from 1) without their ends; empty lines may stand at the end of the file
    alone.
    """
    number, blank = 0, 0
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as stream:
            for number, raw in enumerate(stream, 1):
                line = _decode_line(f"{path}:{number}", raw, first=number == 1)
                if not line:
                    blank = blank or number
                    continue
                if blank:
                    raise DataError(f"{path}:{blank}: empty line, allowed: a record on every line")
                yield number, line
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(
            f"{path}:{number + 1}: cannot be read on ({error}), allowed: "
            "a whole plain file, or a whole gzip file that ends in .gz"
        ) from error


def _decode_line(where: str, raw: bytes, *, first: bool) -> str:
    if first and raw.startswith(b"\xef\xbb\xbf"):
        raise DataError(
            f"{where}: the file starts with a byte order mark, allowed: UTF-8 without one"
        )
    try:
        return raw.decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{where}: not UTF-8 ({error.reason} at byte {error.start + 1} of the "
            "line, "
            f"{raw[error.start : error.start + 8]!r}), allowed: UTF-8"
        ) from error
