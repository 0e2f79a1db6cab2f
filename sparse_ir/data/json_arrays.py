"""A JSON file with one array of objects, read object by object."""

from __future__ import annotations

import codecs
import json
import re
import zlib
from collections.abc import Iterator
from functools import partial
from typing import Any

from sparse_ir.data.lines import InputFile, make_object, open_bytes
from sparse_ir.data.records import show
from sparse_ir.errors import DataError

_BLANKS = re.compile(r"[ \t\n\r]*")
_CHUNK_BYTES = 1 << 16
_LONGEST_TOKEN = 16  # characters that a cut token other than a string can have


def read_json_array(file: InputFile) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of an array, each with the number of the line on which it begins, from 1.

    Memory is bounded by the largest object. Raises ``DataError`` for anything but an array of
    objects in UTF-8.
    """
    text = _Text(file)
    text.skip_blanks()
    if text.next_character() != "[":
        raise text.error("not a JSON array; the file must be one array of objects")
    text.skip(1)
    text.skip_blanks()
    if text.next_character() == "]":
        text.skip(1)
    else:
        yield from _read_elements(text)
    text.skip_blanks()
    if text.next_character():
        raise text.error("text after the end of the array; there must be none")


def _read_elements(text: _Text) -> Iterator[tuple[int, dict[str, Any]]]:
    while True:
        text.skip_blanks()
        if text.next_character() not in ("{", ""):
            raise text.error("not a JSON object; each element of the array must be one")
        number = text.line
        yield number, text.read_object()
        text.skip_blanks()
        separator = text.next_character()
        if separator not in (",", "]"):
            raise text.error("the array does not go on or end here; a comma or ] must follow")
        text.skip(1)
        if separator == "]":
            return


class _Text:
    """The text of a file, of which only the part in hand is kept."""

    def __init__(self, file: InputFile) -> None:
        self._file = file
        self._chunks = self._decode_chunks()
        self._decoder = json.JSONDecoder(object_pairs_hook=make_object)
        self._text = ""
        self._position = 0
        self.line = 1

    def next_character(self) -> str:
        """The next character; "" at the end of the file."""
        if self._position == len(self._text):
            self._read_more()
        return self._text[self._position : self._position + 1]

    def skip(self, count: int) -> None:
        """Go on by some characters of the part in hand."""
        end = self._position + count
        self.line += self._text.count("\n", self._position, end)
        self._position = end

    def skip_blanks(self) -> None:
        """Go on to the next character that is not a blank."""
        while self.next_character():
            blanks = _BLANKS.match(self._text, self._position)
            self.skip(len(blanks[0]) if blanks else 0)
            if self._position < len(self._text):
                return

    def read_object(self) -> dict[str, Any]:
        """The object that begins here."""
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._position)
            except (ValueError, RecursionError) as error:
                if not (self._may_be_cut(error) and self._read_more()):
                    # the message without the position, which counts from the part in hand
                    problem = getattr(error, "msg", str(error))
                    raise self.error(f"not JSON ({problem})") from error
            else:
                self.skip(end - self._position)
                return dict(value)

    def error(self, problem: str) -> DataError:
        """An error about the place in hand."""
        rest = self._text[self._position : self._position + 100]
        return DataError(f"{self._file.place}:{self.line}: {problem}: {show(rest)}")

    def _may_be_cut(self, error: Exception) -> bool:
        if not isinstance(error, json.JSONDecodeError):
            return False
        is_near_the_end = error.pos >= len(self._text) - _LONGEST_TOKEN
        return is_near_the_end or error.msg.startswith("Unterminated string")

    def _read_more(self) -> bool:
        """Append at least as much as is in hand, so that decoding again stays linear in total."""
        parts = [self._text[self._position :]]
        wanted = len(parts[0]) + 1
        while wanted > 0:
            chunk = next(self._chunks, "")
            if not chunk:
                break
            parts.append(chunk)
            wanted -= len(chunk)
        self._text = "".join(parts)
        self._position = 0
        return len(parts) > 1

    def _decode_chunks(self) -> Iterator[str]:
        decoder = codecs.getincrementaldecoder("utf-8-sig")()
        line = 1
        try:
            with open_bytes(self._file) as stream:
                for chunk in iter(partial(stream.read, _CHUNK_BYTES), b""):
                    text = decoder.decode(chunk)
                    if text:
                        yield text
                    line += chunk.count(b"\n")
                decoder.decode(b"", final=True)
        except UnicodeDecodeError as error:
            line += error.object.count(b"\n", 0, error.start)
            raise DataError(
                f"{self._file.place}:{line}: not UTF-8 ({error.reason}); the file must be UTF-8"
            ) from error
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(
                f"{self._file.place}:{line}: cannot be read to its end ({error}); it must be a "
                "complete plain file, or a complete gzip or zstd file whose name ends in .gz or "
                ".zst"
            ) from error
