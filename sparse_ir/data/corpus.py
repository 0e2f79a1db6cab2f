"""A corpus: a source, the fields that make up its documents, and the types of their metadata."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from sparse_ir.data.metadata import (
    FIELD_TYPES,
    FieldType,
    MetadataSchema,
    SchemaBuilder,
    convert,
    flatten,
)
from sparse_ir.data.options import InputOptions, Names
from sparse_ir.data.record_sources import ID_FIELDS, Record, RecordSource, open_records
from sparse_ir.data.records import (
    NO_METADATA,
    Document,
    Metadata,
    MetadataValue,
    check_id,
    check_string,
)
from sparse_ir.data.seen_ids import open_seen_ids, remember_id
from sparse_ir.errors import ConfigError, DataError

_HASH_CHARACTERS = 20
_ABSENT = object()


class Texts(NamedTuple):
    """The checked id, title and text of one record."""

    record_id: str
    title: str
    text: str


@dataclasses.dataclass(frozen=True)
class Fields:
    """Which fields of a record are its id, its title, its text and its metadata.

    ``None`` stands for the default. A title or text field that a caller names may be missing in a
    record; its values may be numbers and lists of strings.
    """

    record_id: str | None = None
    titles: tuple[str, ...] | None = None
    texts: tuple[str, ...] | None = None
    metadata: tuple[str, ...] | None = None
    types: Mapping[str, FieldType] = dataclasses.field(default_factory=dict)
    make_ids: bool = False

    @classmethod
    def from_options(cls, options: InputOptions) -> Fields:
        """The fields that these options name; raises ``ConfigError`` for an unknown type."""
        return cls(
            options.get("id_field"),
            _as_names(options.get("title_field")),
            _as_names(options.get("text_field")),
            _as_names(options.get("metadata_field")),
            _parse_types(_as_names(options.get("metadata_type")) or ()),
            options.get("make_ids", False),
        )

    def has_names(self) -> bool:
        """True if any field is named."""
        return any((self.record_id, self.titles, self.texts, self.metadata))


class Corpus:
    """Documents that can be read as often as needed, always in the same order.

    Args:
        source: A BEIR folder (with ``corpus.jsonl[.gz]``); a JSON Lines, JSON, CSV, TSV or Parquet
            file; MS MARCO's ``collection.tsv[.gz]``; a folder of text files; ``-`` for the standard
            input; a hub data set, ``hf:OWNER/NAME`` or ``BeIR/NAME``; or Python objects: dicts,
            documents, or a table of pandas, polars or Arrow.
        options: How the fields of a document are named, and the format.
        revision: Commit, tag or branch of a hub data set.

    Standard input and iterators are copied to a temporary file first.

    Raises:
        DataError: there is no such source, or its format is unknown.
        ConfigError: an option is wrong.
    """

    def __init__(
        self, source: object, options: InputOptions | None = None, *, revision: str | None = None
    ) -> None:
        given = options or {}
        self._fields = Fields.from_options(given)
        self._source = open_records(
            source,
            "corpus",
            revision=revision,
            input_format=given.get("input_format"),
            has_names=self._fields.has_names(),
        )
        self._schema: MetadataSchema | None = None
        self._text_fields: frozenset[str] | None = None

    def __iter__(self) -> Iterator[Document]:
        return self.read()

    @property
    def place(self) -> str:
        """The name of the source in messages."""
        return self._source.place

    def metadata_schema(self) -> MetadataSchema:
        """The type of each metadata field.

        Inferred by one pass over all records, unless the format or the options state all types.
        Raises ``DataError`` for a record that cannot be read and a named field that no record has.
        """
        if self._schema is None:
            self._schema = self._find_schema()
        return self._schema

    def read(self, *, with_metadata: bool = True, check_unique: bool = True) -> Iterator[Document]:
        """The documents, one at a time.

        Doc ids must be unique. A temporary database on disk checks this exactly and in bounded
        memory; ``check_unique=False`` skips the check for a corpus that has been read before.
        Raises ``DataError`` for a record that breaks the format, when it is reached.
        """
        schema = None
        if with_metadata:
            schema = self.metadata_schema()
        for record, texts in read_texts(self._source, self._fields, check_unique):
            values: Metadata = NO_METADATA
            if schema:
                values = self._convert(record, schema)
            yield Document(texts.record_id, texts.title, texts.text, values)

    def _convert(self, record: Record, schema: MetadataSchema) -> Metadata:
        values: dict[str, MetadataValue] = {}
        for name, value in self._flatten(record):
            kind = schema.get(name)
            where = f'{record.place}:{record.number}: "{name}"'
            if kind is None:
                raise DataError(
                    f"{where} was not there when the fields were listed; the corpus must not change"
                )
            if name in values:
                raise DataError(f"{where} is there twice, nested and not; it must be there once")
            values[name] = convert(where, value, kind)
        return values or NO_METADATA

    def _flatten(self, record: Record) -> Iterator[tuple[str, Any]]:
        """The metadata of a record; an empty cell of a format of texts is a missing value."""
        chosen = self._fields.metadata
        if self._text_fields is None:  # this is the first record
            self._text_fields = text_fields(self._fields, record.values)
        for name, value in flatten(record.values, self._text_fields):
            if chosen is not None and not _is_chosen(name, chosen):
                continue
            if self._source.reads_texts and not value:
                continue
            yield name, value

    def _find_schema(self) -> MetadataSchema:
        chosen = self._fields.metadata
        stated = self._source.schema
        if stated is None:
            schema = self._infer_schema()
        else:
            left_out = text_fields(self._fields, stated)
            schema = {}
            for name, kind in stated.items():
                if name not in left_out and (chosen is None or _is_chosen(name, chosen)):
                    schema[name] = kind
        known = ", ".join(schema) or "none"
        for name in chosen or ():
            if not any(_is_chosen(field, (name,)) for field in schema):
                raise DataError(
                    f"{self.place}: no record has the metadata field {name!r}; the fields are "
                    f"{known}"
                )
        for name in self._fields.types:
            if name not in schema:
                raise DataError(
                    f"{self.place}: no record has the metadata field {name!r}, for which a type is "
                    f"given; the fields are {known}"
                )
        return schema | dict(self._fields.types)

    def _infer_schema(self) -> MetadataSchema:
        builder = SchemaBuilder(reads_texts=self._source.reads_texts)
        read = self._source.survey or self._source.read
        for record in read():
            for name, value in self._flatten(record):
                builder.add(f"{record.place}:{record.number}", name, value)
        return builder.finish()


def open_corpus(source: object, options: InputOptions) -> Corpus:
    """The corpus of a source and these options; an open corpus is returned as it is.

    Raises as ``Corpus`` does.
    """
    if isinstance(source, Corpus):
        return source
    return Corpus(source, options)


def read_texts(
    source: RecordSource, fields: Fields, check_unique: bool
) -> Iterator[tuple[Record, Texts]]:
    """The records of a source with their checked ids, titles and texts.

    Raises ``DataError`` for a broken record, a repeated id, and at the end for a named field that
    no record has.
    """
    unseen = {name for name in (*(fields.titles or ()), *(fields.texts or ()))}
    id_field = fields.record_id
    record = None
    with contextlib.ExitStack() as stack:
        seen = None
        if check_unique:
            seen = stack.enter_context(open_seen_ids())
        for record in source.read():
            if id_field is None:
                id_field = _find_id_field(record.values)
            if unseen:
                unseen = {name for name in unseen if get_field(record.values, name) is _ABSENT}
            texts = _check_texts(record, fields, id_field)
            if seen is not None:
                remember_id(seen, record.place, record.number, texts.record_id, id_field)
            yield record, texts
    if unseen and record is not None:
        known = ", ".join(map(str, record.values))
        raise DataError(
            f"{source.place}: no record has the field {min(unseen)!r}; fields of the last record: "
            f"{known}"
        )


def _find_id_field(values: Mapping[str, Any]) -> str:
    for name in ID_FIELDS:
        if name in values:
            return name
    return ID_FIELDS[0]


def text_fields(fields: Fields, values: Mapping[str, Any]) -> frozenset[str]:
    """The fields that are not metadata: id, title and text."""
    record_id = fields.record_id or _find_id_field(values)
    titles = ("title",) if fields.titles is None else fields.titles
    texts = ("text",) if fields.texts is None else fields.texts
    return frozenset((record_id, *titles, *texts))


def get_field(values: Mapping[str, Any], name: str) -> Any:
    """The value of a field, nested ones by their dotted names; ``_ABSENT`` if there is none."""
    value = values.get(name, _ABSENT)
    if value is not _ABSENT or "." not in name:
        return value
    value = values
    for part in name.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return _ABSENT
        value = value[part]
    return value


def _check_texts(record: Record, fields: Fields, id_field: str) -> Texts:
    where = f"{record.place}:{record.number}"
    values = record.values
    record_id = get_field(values, id_field)
    is_missing = record_id is _ABSENT or record_id is None or record_id == ""
    if is_missing and not fields.make_ids:
        remedy = "--id-field must name another field, or --make-ids make it"
        _check_present(where, values, id_field, "a non-empty string", remedy)
    title = _read_title(where, values, fields)
    text = _read_text(where, values, fields)
    if is_missing and fields.make_ids:
        return Texts(make_id(values), title, text)
    if isinstance(record_id, int) and not isinstance(record_id, bool):
        record_id = str(record_id)
    return Texts(check_id(f'{where}: "{id_field}"', record_id), title, text)


def _read_title(where: str, values: Mapping[str, Any], fields: Fields) -> str:
    if fields.titles is not None:
        return _join(where, values, fields.titles, " ")
    title = values.get("title")
    if title is None:
        return ""
    return check_string(f'{where}: "title"', title)


def _read_text(where: str, values: Mapping[str, Any], fields: Fields) -> str:
    if fields.texts is not None:
        return _join(where, values, fields.texts, "\n")
    _check_present(where, values, "text", "a string", "--text-field must name another field")
    return check_string(f'{where}: "text"', values["text"])


def _check_present(
    where: str, values: Mapping[str, Any], field: str, rule: str, remedy: str
) -> None:
    if get_field(values, field) is _ABSENT:
        keys = ", ".join(map(str, values)) or "none"
        raise DataError(
            f'{where}: "{field}" is missing (keys: {keys}); it must be {rule}, or {remedy}'
        )


def _join(where: str, values: Mapping[str, Any], names: tuple[str, ...], separator: str) -> str:
    """The values of named fields in one string; missing and empty ones are left out."""
    parts = []
    for name in names:
        value = get_field(values, name)
        if value is _ABSENT or value is None or value != value:  # NaN
            continue
        if isinstance(value, int | float) and not isinstance(value, bool):
            value = str(value)
        if not isinstance(value, list):
            value = [value]
        for part in value:
            parts.append(check_string(f'{where}: "{name}"', part))
    return separator.join(part for part in parts if part)


def make_id(values: Mapping[str, Any]) -> str:
    """An id made of the content: the first characters of a SHA-256 in hexadecimal digits."""
    content = json.dumps(values, sort_keys=True, default=str)
    return hashlib.sha256(content.encode()).hexdigest()[:_HASH_CHARACTERS]


def _is_chosen(name: str, chosen: tuple[str, ...]) -> bool:
    return any(name == field or name.startswith(f"{field}.") for field in chosen)


def _as_names(names: Names | None) -> tuple[str, ...] | None:
    if names is None:
        return None
    if isinstance(names, str):
        return (names,)
    return tuple(names)


def _parse_types(texts: tuple[str, ...]) -> dict[str, FieldType]:
    types: dict[str, FieldType] = {}
    for text in texts:
        name, _, kind = text.rpartition("=")
        if not name or kind not in FIELD_TYPES:
            raise ConfigError(
                f"metadata_type is {text!r}; it must be FIELD=TYPE with one of the types "
                f"{', '.join(FIELD_TYPES)}"
            )
        types[name] = kind
    return types
