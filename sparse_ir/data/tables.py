"""Tables: CSV and TSV files with a header, Parquet files, and Arrow streams.

A numbered record is ``(number, values)``: the line on which the record begins, or the row, from 1.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from sparse_ir import extras
from sparse_ir.data.lines import InputFile, read_raw_lines
from sparse_ir.data.metadata import FieldType, MetadataSchema
from sparse_ir.data.records import show
from sparse_ir.errors import DataError

Numbered = tuple[int, dict[str, Any]]

_LONGEST_CELL = 1 << 30  # characters; Python's own limit of 131,072 is too small for long texts
_BATCH_ROWS = 512


def read_csv(file: InputFile, delimiter: str) -> Iterator[Numbered]:
    """The rows of a CSV or TSV file as texts by column name.

    Cells are quoted as in RFC 4180. A column without a name is called "column N". Empty lines at
    the end are ignored. Raises ``DataError`` for a repeated column, a row with another number of
    cells than the header, an empty line in between, and wrong quotes.
    """
    csv.field_size_limit(_LONGEST_CELL)
    lines = (line for _, line in read_raw_lines(file))
    rows = csv.reader(lines, delimiter=delimiter, strict=True)
    columns: list[str] | None = None
    first_blank = 0
    start = 1
    try:
        for row in rows:
            number = start
            start = rows.line_num + 1
            if not row:
                first_blank = first_blank or number
                continue
            if first_blank:
                raise DataError(f"{file.place}:{first_blank}: empty line; each must hold a record")
            if columns is None:
                columns = _name_columns(f"{file.place}:{number}", row)
                continue
            if len(row) != len(columns):
                raise DataError(
                    f"{file.place}:{number}: {len(row)} cells, {show(row)}; there must be "
                    f"{len(columns)}, as in the header"
                )
            yield number, dict(zip(columns, row, strict=True))
    except csv.Error as error:
        raise DataError(
            f"{file.place}:{start}: not CSV ({error}); cells must be separated by "
            f"{delimiter!r} and quoted as in RFC 4180"
        ) from error


def _name_columns(where: str, header: list[str]) -> list[str]:
    columns = []
    for number, name in enumerate(header, 1):
        columns.append(name.strip() or f"column {number}")
    check_columns(where, columns)
    return columns


def check_columns(where: str, columns: list[str]) -> None:
    """Raise ``DataError`` if two columns have the same name."""
    for name in columns:
        if columns.count(name) > 1:
            raise DataError(f"{where}: column {show(name)} appears twice; names must be unique")


def read_header(file: InputFile, delimiter: str) -> list[str]:
    """The cells of the first line, unquoted; an empty list for an empty file."""
    for _, line in read_raw_lines(file):
        return [cell.strip().strip('"') for cell in line.rstrip("\r\n").split(delimiter)]
    return []


class ParquetTable:
    """A Parquet file: its rows in batches, and the types of its columns."""

    def __init__(self, path: Path, place: str) -> None:
        self.path = path
        self.place = place
        with self._open() as opened:
            self._schema = opened.schema_arrow
        check_columns(place, list(self._schema.names))

    def schema(self) -> MetadataSchema:
        """The metadata types of all columns and nested fields."""
        return find_arrow_types(self._schema)

    def read(self, columns: list[str] | None = None) -> Iterator[Numbered]:
        """The rows of these top-level columns, or of all."""
        import pyarrow as pa

        chosen = columns
        if columns is not None:
            chosen = [name for name in columns if name in self._schema.names]
        number = 1
        try:
            with self._open() as opened:
                for batch in opened.iter_batches(_BATCH_ROWS, columns=chosen, use_threads=False):
                    for values in batch.to_pylist():
                        yield number, values
                        number += 1
        except (OSError, ValueError, pa.ArrowException) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(
                f"{self.place}:{number}: cannot be read to its end ({_first_line(error)}); it must "
                "be a complete Parquet file"
            ) from error

    def _open(self) -> Any:
        with extras.importing():
            import pyarrow as pa
            import pyarrow.parquet

        try:
            return pyarrow.parquet.ParquetFile(self.path, memory_map=False, pre_buffer=False)
        except (OSError, ValueError, pa.ArrowException) as error:
            raise DataError(
                f"{self.place}: not a Parquet file ({_first_line(error)}); it must be a complete "
                "one"
            ) from error


class ArrowTable:
    """A table in memory that has Arrow's stream protocol, such as one of pandas or polars."""

    def __init__(self, table: Any) -> None:
        with extras.importing():
            import pyarrow as pa

        self._reader: Any = pa.RecordBatchReader
        self._table = table
        self._schema = self._reader.from_stream(table).schema
        check_columns("input", list(self._schema.names))

    def schema(self) -> MetadataSchema:
        """The metadata types of all columns and nested fields."""
        return find_arrow_types(self._schema)

    def read(self) -> Iterator[Numbered]:
        """All rows."""
        number = 1
        for batch in self._reader.from_stream(self._table):
            for start in range(0, batch.num_rows, _BATCH_ROWS):
                for values in batch.slice(start, _BATCH_ROWS).to_pylist():
                    yield number, values
                    number += 1


def find_arrow_types(fields: Iterable[Any], prefix: str = "") -> MetadataSchema:
    """The metadata types of Arrow fields, under the names that ``metadata.flatten`` gives them."""
    import pyarrow as pa

    schema: MetadataSchema = {}
    for field in fields:
        name = f"{prefix}{field.name}"
        if pa.types.is_struct(field.type):
            nested = "" if name == "metadata" else f"{name}."
            schema.update(find_arrow_types(field.type, nested))
        else:
            schema[name] = _find_arrow_type(field.type)
    return schema


def _find_arrow_type(kind: Any) -> FieldType:
    from pyarrow import types

    if types.is_boolean(kind):
        return "boolean"
    if types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind):
        return "number"
    if types.is_date(kind) or types.is_timestamp(kind):
        return "date"
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return "keywords"
    return "keyword"


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
