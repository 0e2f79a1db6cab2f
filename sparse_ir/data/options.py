"""The options that say how a collection is read, kept apart so that a help text loads no reader."""

from __future__ import annotations

from typing import Literal, TypedDict

Names = str | tuple[str, ...]  # one name, or several
InputFormat = Literal["jsonl", "json", "csv", "tsv", "parquet"]


class InputOptions(TypedDict, total=False):
    """How the documents of a corpus are read.

    Args:
        input_format: Format of the input, if neither the end of its name nor its beginning shows
            it.
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
