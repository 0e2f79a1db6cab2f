"""Documents and queries: BEIR folders and JSONL, MS MARCO's TSV, and data sets of the hub.

Everything is read as a stream, so memory does not grow with the corpus, and checked where it
enters: a ``DataError`` names file, line and value, and says what it must be. Nothing is skipped,
repaired or replaced silently. Qrels (``qrels.py``) are readable from here as well.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from sparse_ir.data.lines import parse_jsonl, read_lines
from sparse_ir.data.qrels import find_qrels, read_qrels
from sparse_ir.data.records import Document, Query, check_id, check_string, show
from sparse_ir.data.seen_ids import open_seen_ids, remember_id
from sparse_ir.data.sources import (
    find_corpus,
    find_hub_name,
    find_queries,
    find_records,
    read_hub,
)
from sparse_ir.errors import ConfigError, DataError

__all__ = [
    "check_string",
    "find_corpus",
    "find_hub_name",
    "find_qrels",
    "find_queries",
    "read_documents",
    "read_qrels",
    "read_queries",
]


class _Fields(NamedTuple):
    """The checked fields of one record."""

    record_id: str
    title: str
    text: str


def read_documents(
    source: str | Path, *, revision: str | None = None, check_unique: bool = True
) -> Iterator[Document]:
    """The documents of a corpus, one at a time, in the order of the file.

    ``source`` is a BEIR folder (with ``corpus.jsonl`` or ``corpus.jsonl.gz``), such a file, an MS
    MARCO ``collection.tsv[.gz]`` (``doc_id<TAB>text``), or a data set of the hub:
    ``hf:OWNER/NAME``, or ``BeIR/NAME`` where no such path exists. ``revision`` (a commit, tag or
    branch) is for the hub only. A missing or null title is the empty title, and a document without
    title and text is legal.

    Doc ids must be unique. A temporary database on disk checks this exactly and in bounded memory;
    ``check_unique=False`` skips the check for a corpus that has been read before.

    Raises:
        DataError: there is no such corpus (raised at once), or a record breaks the format (raised
            when it is reached).
    """
    records = _read_records(source, "corpus", revision, check_unique)
    return (Document(*fields) for fields in records)


def read_queries(
    source: str | Path, *, revision: str | None = None, check_unique: bool = True
) -> Iterator[Query]:
    """The queries of a set, one at a time; sources, options and errors as in ``read_documents``.

    The file of a BEIR folder is ``queries.jsonl[.gz]``; it holds the queries of all splits. MS
    MARCO's is ``query_id<TAB>text``.
    """
    records = _read_records(source, "queries", revision, check_unique)
    return (Query(fields.record_id, fields.text) for fields in records)


def _read_records(
    source: str | Path, kind: str, revision: str | None, check_unique: bool
) -> Iterator[_Fields]:
    hub_name = find_hub_name(source)
    if hub_name is not None:
        place = f"hf:{hub_name}/{kind}"
        return _check_records(place, read_hub(hub_name, kind, kind, revision), check_unique)
    if revision is not None:
        raise ConfigError(
            f"{source}: revision {revision!r} is for data sets of the hub, but this is a path"
        )
    path = find_records(Path(source), kind)
    parse = parse_jsonl
    if path.name.endswith((".tsv", ".tsv.gz")):
        parse = _parse_tsv
    return _check_records(str(path), parse(path), check_unique)


def _parse_tsv(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in read_lines(path):
        columns = line.split("\t")
        if len(columns) != 2:
            raise DataError(
                f"{path}:{number}: {len(columns)} columns, {show(line)}; they must be id<TAB>text"
            )
        yield number, {"_id": columns[0], "text": columns[1]}


def _check_records(
    place: str, records: Iterable[tuple[int, dict[str, Any]]], check_unique: bool
) -> Iterator[_Fields]:
    with contextlib.ExitStack() as stack:
        seen = None
        if check_unique:
            seen = stack.enter_context(open_seen_ids())
        for number, record in records:
            fields = _check_record(f"{place}:{number}", record)
            if seen is not None:
                remember_id(seen, place, number, fields.record_id)
            yield fields


def _check_record(where: str, record: dict[str, Any]) -> _Fields:
    for field, rule in (("_id", "a non-empty string"), ("text", "a string")):
        if field not in record:
            keys = ", ".join(record) or "none"
            raise DataError(f'{where}: "{field}" is missing (keys: {keys}); it must be {rule}')
    title = record.get("title")
    if title is None:
        title = ""
    return _Fields(
        check_id(f'{where}: "_id"', record["_id"]),
        check_string(f'{where}: "title"', title),
        check_string(f'{where}: "text"', record["text"]),
    )
