"""Text files line by line, with the line number in every error."""

from __future__ import annotations

import collections
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple, cast

import zstandard

from sparse_ir.data.records import show
from sparse_ir.errors import DataError
from sparse_ir.storage import reading

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_ZSTD_CHUNK_BYTES = 4096  # compressed; such a chunk can hold 128 MB of repeated bytes
_BLANKS = re.compile(r"[ \t]+")


class InputFile(NamedTuple):
    """A file that is read, its name in messages, and how it is compressed."""

    path: Path
    place: str
    compression: Literal["", "gz", "zst"] = ""

    @classmethod
    def at(cls, path: Path) -> InputFile:
        """The file of a path; the end of its name (.gz, .zst) says how it is compressed."""
        if path.suffix == ".gz":
            return cls(path, str(path), "gz")
        if path.suffix == ".zst":
            return cls(path, str(path), "zst")
        return cls(path, str(path))


def parse_jsonl(source: Path | InputFile) -> Iterator[tuple[int, dict[str, Any]]]:
    """Numbered JSON objects (from 1), one per line; raises ``DataError`` for any other line."""
    file = _as_file(source)
    for number, line in read_lines(file):
        try:
            record = json.loads(line, object_pairs_hook=make_object)
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"{file.place}:{number}: not JSON ({error}): {show(line)}; it must be one object"
            ) from error
        if not isinstance(record, dict):
            raise DataError(
                f"{file.place}:{number}: not a JSON object but {show(record)}; each line must be "
                "one"
            )
        yield number, record


def make_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The pairs of a JSON object as a dict; raises ``ValueError`` for a key that appears twice.

    Python silently keeps the last of two equal keys, which here would lose an id, a text or a
    score.
    """
    made = dict(pairs)
    if len(made) != len(pairs):
        counts = collections.Counter(key for key, _ in pairs)
        ((repeated, _),) = counts.most_common(1)
        raise ValueError(f"key {show(repeated)} twice in one object")
    return made


def read_lines(source: Path | InputFile) -> Iterator[tuple[int, str]]:
    """Numbered lines (from 1) of a plain or compressed file, without their ends.

    A byte order mark and empty lines at the end of the file are ignored. Raises ``DataError`` for a
    file that cannot be read to its end, for text other than UTF-8, and for an empty line before the
    end of the file.
    """
    file = _as_file(source)
    first_blank = 0
    for number, raw in read_raw_lines(file):
        line = raw.rstrip("\r\n")
        if not line:
            first_blank = first_blank or number
            continue
        if first_blank:
            raise DataError(f"{file.place}:{first_blank}: empty line; each must hold a record")
        yield number, line


def read_raw_lines(file: InputFile) -> Iterator[tuple[int, str]]:
    """Numbered lines (from 1) with their ends; only a line feed ends a line.

    Raises ``DataError`` for a file that cannot be read to its end and for text other than UTF-8,
    ``UncheckedError`` when the system refuses to read it.
    """
    number = 0
    reading.check_file(file.path, DataError)
    try:
        with open_bytes(file) as stream:
            for number, raw in enumerate(stream, 1):
                if number == 1:
                    raw = raw.removeprefix(_BYTE_ORDER_MARK)
                yield number, _decode_line(f"{file.place}:{number}", raw)
    except (OSError, EOFError, zlib.error) as error:
        reading.raise_refusal(file.path, error)
        raise DataError(
            f"{file.place}:{number + 1}: cannot be read to its end ({error}); it must be a "
            "complete plain file, or a complete gzip or zstd file whose name ends in .gz or .zst"
        ) from error


def read_text(file: InputFile) -> str:
    """The whole text of a small file; errors as in ``read_raw_lines``."""
    return "".join(line for _, line in read_raw_lines(file))


def split_columns(line: str) -> list[str]:
    """The columns of a TREC file, which stand between blanks and tabs.

    Unlike ``str.split``, no other white space of Unicode separates columns.
    """
    if line.isascii():
        return line.split()
    return _BLANKS.split(line.strip(" \t"))


def open_bytes(file: InputFile) -> BinaryIO:
    """The content of a file, decompressed while it is read."""
    if file.compression == "gz":
        return cast(BinaryIO, gzip.open(file.path, "rb"))
    if file.compression == "zst":
        return io.BufferedReader(_ZstdStream(file.path))
    return file.path.open("rb")


class _ZstdStream(io.RawIOBase):
    """The frames of a zstd file; raises ``EOFError`` if the last one is cut short."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._compressed = path.open("rb")
        self._frame: Any = None
        self._pending = memoryview(b"")

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._compressed.close()
        super().close()

    def readinto(self, target: Any) -> int:
        while not self._pending:
            chunk = self._compressed.read(_ZSTD_CHUNK_BYTES)
            if self._frame is not None and self._frame.eof:
                chunk = self._frame.unused_data + chunk
                self._frame = None
            if not chunk:
                if self._frame is not None:
                    raise EOFError("the zstd file ended before its end-of-frame marker")
                return 0
            self._pending = memoryview(self._decompress(chunk))
        count = min(len(target), len(self._pending))
        target[:count] = self._pending[:count]
        self._pending = self._pending[count:]
        return count

    def _decompress(self, chunk: bytes) -> bytes:
        if self._frame is None:
            self._frame = zstandard.ZstdDecompressor().decompressobj()
        try:
            return cast(bytes, self._frame.decompress(chunk))
        except zstandard.ZstdError as error:
            raise OSError(str(error)) from error


def _as_file(source: Path | InputFile) -> InputFile:
    if isinstance(source, InputFile):
        return source
    return InputFile.at(source)


def _decode_line(where: str, raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        rest = raw[error.start : error.start + 8]
        raise DataError(
            f"{where}: not UTF-8 ({error.reason} at byte {error.start + 1} of the line, {rest!r}); "
            "the file must be UTF-8"
        ) from error
