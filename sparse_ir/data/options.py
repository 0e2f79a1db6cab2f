"""The options that say how a collection is read, kept apart so that a help text loads no reader."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, Protocol, TypedDict, runtime_checkable

Names = str | tuple[str, ...]  # one name, or several
InputFormat = Literal["jsonl", "json", "csv", "tsv", "parquet"]


@runtime_checkable
class ArrowStream(Protocol):
    """A table of pandas, polars, Arrow, or any other library that speaks Arrow's protocol."""

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        """A capsule with the stream of the table's batches."""


# a file, a folder, a name on the Hugging Face hub; from Python also dicts, documents and tables
CorpusSource = str | Path | Iterable[Any] | ArrowStream


class InputOptions(TypedDict, total=False):
    """How the documents of a corpus are read.

    Args:
        input_format: Format of the input, if neither the end of its name nor, for the standard
            input, its beginning shows it.
        id_field: Field with the id of a document. The default is _id, id or doc_id.
        title_field: Field with the title; several are joined. The default is title.
        text_field: Field with the text; several are joined. The default is text.
        metadata_field: Field that is kept as metadata; may be repeated. By default, all other
            fields are kept.
        metadata_type: Type of a metadata field, such as price=number: keyword, number, date,
            boolean or keywords; may be repeated. By default, types are inferred from all values.
        make_ids: Make missing ids from a hash of the document.
    """

    input_format: InputFormat | None
    id_field: str | None
    title_field: Names | None
    text_field: Names | None
    metadata_field: Names | None
    metadata_type: Names | None
    make_ids: bool
