"""Opening a source: from a file, a folder, a hub data set or Python objects to numbered records."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from sparse_ir.data import json_arrays, sources, spool, tables, text_files
from sparse_ir.data.lines import InputFile, parse_jsonl, read_lines
from sparse_ir.data.metadata import MetadataSchema
from sparse_ir.data.records import Document, show
from sparse_ir.errors import ConfigError, DataError

ID_FIELDS = ("_id", "id", "doc_id")  # the first that the first record has
_DELIMITERS = {"csv": ",", "tsv": "\t"}


class Record(NamedTuple):
    """One record, and its place: ``place:number`` in messages."""

    place: str
    number: int
    values: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class RecordSource:
    """A source that can be read as often as needed.

    ``schema`` holds the types of all fields if the format states them. ``reads_texts`` is True for
    formats in which every value is a text.
    """

    place: str
    read: Callable[[], Iterator[Record]]
    schema: MetadataSchema | None = None
    reads_texts: bool = False
    survey: Callable[[], Iterator[Record]] | None = None  # the metadata alone, read faster
    kept: object = None  # what must live as long as this source


def open_records(
    source: object,
    stem: str,
    *,
    revision: str | None = None,
    input_format: str | None = None,
    has_names: bool = False,
) -> RecordSource:
    """Open a corpus or queries (``stem``).

    ``has_names`` says that fields are named, so that a TSV file must have a header.

    Raises ``DataError`` if there is no such source or its format is unknown, ``ConfigError`` for a
    Python object that cannot be read and a revision of something else than a hub data set.
    """
    if not isinstance(source, str | Path):
        return _open_objects(source)
    hub_name = sources.find_hub_name(source)
    if hub_name is not None:
        place = f"hf:{hub_name}/{stem}"
        arguments = (hub_name, stem, stem, revision)
        return RecordSource(place, partial(_number, place, sources.read_hub, *arguments))
    if revision is not None:
        raise ConfigError(
            f"{source}: revision {revision!r} is for data sets of the hub, but this is a path"
        )
    if str(source) == sources.STANDARD_INPUT:
        spooled, file = spool.spool_standard_input()
        return _open_file(file, input_format or spool.guess_format(file), has_names, spooled)
    path = Path(source)
    if path.is_dir() and stem == "corpus" and not sources.has_records(path, stem):
        return _open_folder(path)
    if input_format is None:
        path = sources.find_records(path, stem)
        input_format = sources.find_format(path)
    sources.check_exists(path, stem)
    return _open_file(InputFile.at(path), input_format, has_names)


def _open_file(
    file: InputFile, input_format: str | None, has_names: bool, kept: object = None
) -> RecordSource:
    place = file.place
    if input_format is None:
        raise DataError(
            f"{place}: unknown format; the option --input-format must name it: jsonl, json, csv, "
            "tsv or parquet"
        )
    if input_format == "parquet":
        if file.compression:
            raise DataError(f"{place}: a Parquet file must be without .gz or .zst")
        table = tables.ParquetTable(file.path, place)
        return RecordSource(place, partial(_number, place, table.read), table.schema(), kept=kept)
    if input_format == "json" and spool.guess_format(file) != "jsonl":
        read = partial(_number, place, json_arrays.read_json_array, file)
        return RecordSource(place, read, kept=kept)
    if input_format in ("jsonl", "json"):
        return RecordSource(place, partial(_number, place, parse_jsonl, file), kept=kept)
    delimiter = _DELIMITERS[input_format]
    if input_format == "tsv" and not has_names and not _has_header(file):
        return RecordSource(place, partial(_number, place, _read_marco, file), kept=kept)
    if len(tables.read_header(file, delimiter)) == 1 and len(tables.read_header(file, ";")) > 1:
        delimiter = ";"  # as programs write it where the comma is in numbers
    read = partial(_number, place, tables.read_csv, file, delimiter)
    return RecordSource(place, read, reads_texts=True, kept=kept)


def _has_header(file: InputFile) -> bool:
    """True if the first line of a TSV file names an id and a text; MS MARCO's files do not."""
    cells = tables.read_header(file, "\t")
    return "text" in cells and any(name in cells for name in ID_FIELDS)


def _read_marco(file: InputFile) -> Iterator[tables.Numbered]:
    for number, line in read_lines(file):
        columns = line.split("\t")
        if len(columns) != 2:
            raise DataError(
                f"{file.place}:{number}: {len(columns)} columns, {show(line)}; they must be "
                "id<TAB>text, or the first line must name the columns"
            )
        yield number, {"_id": columns[0], "text": columns[1]}


def _open_folder(folder: Path) -> RecordSource:
    if next(text_files.find_text_files(folder), None) is None:
        raise DataError(
            f"{folder}: no corpus; looked for {folder / 'corpus.jsonl'} and "
            f"{folder / 'corpus.jsonl.gz'}, and for files that end in "
            f"{', '.join(text_files.TEXT_SUFFIXES)}"
        )
    survey = partial(_survey_folder, folder)
    return RecordSource(str(folder), partial(_read_folder, folder), survey=survey)


def _survey_folder(folder: Path) -> Iterator[Record]:
    for path in text_files.find_text_files(folder):
        yield Record(str(path), 1, text_files.read_front_matter(path) | {"_id": ""})


def _read_folder(folder: Path) -> Iterator[Record]:
    for path in text_files.find_text_files(folder):
        file = text_files.read_text_file(path)
        values = dict(file.fields)
        values["_id"] = path.relative_to(folder).as_posix()
        values["title"] = file.title
        values["text"] = file.text
        yield Record(str(path), 1, values)


def _open_objects(source: object) -> RecordSource:
    """Documents, dicts or a table that a caller from Python passes."""
    if hasattr(source, "__arrow_c_stream__"):
        table = tables.ArrowTable(source)
        return RecordSource("input", partial(_number, "input", table.read), table.schema())
    if not isinstance(source, Iterable):
        raise ConfigError(
            f"input must be a path, a name on the hub, a table, or dicts or documents, not "
            f"{source!r:.80}"
        )
    start: Callable[[], Iterator[Any]] = partial(iter, source)
    if isinstance(source, Iterator):
        start = spool.spool_items(source)
    return RecordSource("input", partial(_read_items, start))


def _read_items(start: Callable[[], Iterator[Any]]) -> Iterator[Record]:
    for number, item in enumerate(start(), 1):
        if isinstance(item, Document):
            fields: dict[str, Any] = {"_id": item.doc_id, "title": item.title, "text": item.text}
            fields["metadata"] = dict(item.metadata)
            yield Record("input", number, fields)
        elif isinstance(item, Mapping):
            yield Record("input", number, {name: _as_plain(item[name]) for name in item})
        else:
            raise ConfigError(
                f"input must be a path, a name on the hub, a table, or dicts or documents, but "
                f"item {number} is {item!r:.80}"
            )


def _as_plain(value: Any) -> Any:
    """A value of numpy as one of Python, and the missing value of pandas as None."""
    if type(value).__module__ == "numpy":
        return value.tolist()
    if type(value).__name__ == "NAType":
        return None
    return value


def _number(
    place: str, read: Callable[..., Iterator[tables.Numbered]], *arguments: Any
) -> Iterator[Record]:
    for number, values in read(*arguments):
        yield Record(place, number, values)
