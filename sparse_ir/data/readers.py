"""Documents, queries, qrels and runs: the records, and the only readers and writers of their files.

Everything is read as a stream, so memory does not grow with the corpus, and everything is checked
where it enters: ``DataError`` says ``file:line: what, value, what is allowed``. Nothing is skipped,
repaired or replaced in silence. Formats: BEIR folders and JSONL, MS MARCO TSV, TREC qrels and runs,
and data sets of the hub in BEIR's layout. It does not measure anything.
"""

from __future__ import annotations

import contextlib
import re
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from sparse_ir import extras
from sparse_ir.data.lines import parse_jsonl, read_lines
from sparse_ir.data.records import LONE_SURROGATE, Document, Qrels, Query, check_id, show
from sparse_ir.errors import ConfigError, DataError

_QRELS_HEADER = "query-id\tcorpus-id\tscore"
_INTEGER = re.compile(r"-?[0-9]{1,9}")
_SEEN_IDS_CACHE_KIB = 4096


def read_documents(
    source: str | Path, *, revision: str | None = None, check_unique: bool = True
) -> Iterator[Document]:
    """The documents of a corpus, one at a time, in the order of the file.

    ``source`` is a BEIR folder (with ``corpus.jsonl`` or ``corpus.jsonl.gz``), such a file, an MS
    MARCO ``collection.tsv[.gz]`` (``doc_id<TAB>text``), or a data set of the hub:
    ``hf:OWNER/NAME``, or ``BeIR/NAME`` where no such path exists; ``revision`` (a commit, tag or
    branch) is for the hub alone. A missing or null title is the empty title, and a document without
    title and text is legal.

    Doc ids must be unique. This is checked exactly and in bounded memory, with a temporary database
    on disk; with ``check_unique=False`` it is left out, for a corpus that has been read before.

    Raises:
        DataError: there is no such corpus (raised at once), or a record breaks the format (raised
            when it is reached).
    """
    return (Document(*fields) for fields in _read_records(source, "corpus", revision, check_unique))


def read_queries(
    source: str | Path, *, revision: str | None = None, check_unique: bool = True
) -> Iterator[Query]:
    """The queries of a set, one at a time; sources, options and errors as in ``read_documents``.

    The file of a BEIR folder is ``queries.jsonl[.gz]``; it holds the queries of all splits. MS
    MARCO's is ``query_id<TAB>text``.
    """
    return (
        Query(fields[0], fields[2])
        for fields in _read_records(source, "queries", revision, check_unique)
    )


def read_qrels(source: str | Path, split: str = "test", *, revision: str | None = None) -> Qrels:
    """The relevance judgements ``{query_id: {doc_id: relevance}}``, in the order of the file.

    ``source`` is a BEIR folder (with ``qrels/SPLIT.tsv[.gz]``), a file, or a data set of the hub as
    in ``read_documents``, whose judgements stand in the data set of the same name plus ``-qrels``.
    A file is told by its first line: BEIR's header ``query-id<TAB>corpus-id<TAB>score``, or four
    columns as in TREC (``query_id 0 doc_id relevance``). A pair may stand there twice when both
    lines agree.

    Raises:
        DataError: no such file or split, no judgement in it, a wrong header, a relevance that is no
            integer, or a pair
            judged twice differently.
    """
    hub_name = find_hub_name(source)
    if hub_name is None:
        path = find_qrels(source, split)
        place, judgements = str(path), _parse_qrels(path)
    else:
        hub_name = hub_name if hub_name.endswith("-qrels") else f"{hub_name}-qrels"
        place, judgements = (
            f"hf:{hub_name}, split {split}",
            _read_hub_qrels(hub_name, split, revision),
        )
    qrels: Qrels = {}
    for where, query_id, doc_id, relevance in judgements:
        known = qrels.setdefault(query_id, {}).setdefault(doc_id, relevance)
        if known != relevance:
            raise DataError(
                f"{where}: query {query_id!r} and document {doc_id!r} are judged "
                "twice, "
                f"{known} and {relevance}; one relevance per pair is allowed"
            )
    if not qrels:
        raise DataError(f"{place}: no judgement in it; at least one is needed")
    return qrels


def find_hub_name(source: str | Path) -> str | None:
    """Name of the hub's data set that ``source`` stands for, or None when it is a path."""
    text = str(source)
    if text.startswith("hf:"):
        return text.removeprefix("hf:")
    return text if re.fullmatch(r"BeIR/[\w.-]+", text) and not Path(text).exists() else None


def find_corpus(source: str | Path) -> Path:
    """Path of the corpus file that ``read_documents`` opens; raises ``DataError`` with all names it
    looked for.
    """
    return _find_file(Path(source), "corpus")


def find_queries(source: str | Path) -> Path:
    """Path of the query file that ``read_queries`` opens; raises ``DataError`` with all names it
    looked for.
    """
    return _find_file(Path(source), "queries")


def find_qrels(source: str | Path, split: str = "test") -> Path:
    """Path of the qrels file that ``read_qrels`` opens; raises ``DataError`` with the splits that
    are there.
    """
    source = Path(source)
    if source.is_file():
        return source
    candidates = [source / "qrels" / f"{split}.tsv", source / "qrels" / f"{split}.tsv.gz"]
    splits = sorted({path.name.split(".")[0] for path in source.glob("qrels/*.tsv*")})
    return _only_one(
        candidates, f"qrels of split {split!r}, splits there: {', '.join(splits) or 'none'}"
    )


def _find_file(source: Path, stem: str) -> Path:
    if source.is_dir():
        return _only_one([source / f"{stem}.jsonl", source / f"{stem}.jsonl.gz"], stem)
    if not source.exists():
        raise DataError(
            f"{source}: no such {stem}; looked for this file, for a folder of this "
            f"name with {stem}.jsonl "
            f"or {stem}.jsonl.gz, and for a data set of the hub (hf:OWNER/NAME or "
            "BeIR/NAME)"
        )
    if not source.name.endswith((".jsonl", ".jsonl.gz", ".tsv", ".tsv.gz")):
        raise DataError(
            f"{source}: unknown format of {stem}, allowed: .jsonl, .tsv, or these with .gz"
        )
    return source


def _only_one(candidates: list[Path], what: str) -> Path:
    found = [path for path in candidates if path.is_file()]
    if not found:
        raise DataError(f"no {what}; looked for {' and '.join(map(str, candidates))}")
    if len(found) > 1:
        raise DataError(
            f"{what} is there twice: {' and '.join(map(str, found))}; name the file that is meant"
        )
    return found[0]


def _read_records(
    source: str | Path, kind: str, revision: str | None, check_unique: bool
) -> Iterator[tuple[str, str, str]]:
    hub_name = find_hub_name(source)
    if hub_name is not None:
        place = f"hf:{hub_name}/{kind}"
        return _check_records(place, _read_hub(hub_name, kind, kind, revision), check_unique)
    if revision is not None:
        raise ConfigError(
            f"{source}: revision {revision!r} is for data sets of the hub, this is a path"
        )
    path = _find_file(Path(source), kind)
    parse = _parse_tsv if path.name.endswith((".tsv", ".tsv.gz")) else parse_jsonl
    return _check_records(str(path), parse(path), check_unique)


def _check_records(
    place: str, records: Iterable[tuple[int, dict[str, Any]]], check_unique: bool
) -> Iterator[tuple[str, str, str]]:
    with open_seen_ids() if check_unique else contextlib.nullcontext() as seen:
        for number, record in records:
            fields = _check_record(f"{place}:{number}", record)
            if seen is not None:
                remember_id(seen, place, number, fields[0])
            yield fields


def _check_record(where: str, record: dict[str, Any]) -> tuple[str, str, str]:
    if "_id" not in record:
        raise DataError(
            f'{where}: "_id" is missing (keys: {", ".join(record) or "none"}), '
            "allowed: a non-empty string"
        )
    if "text" not in record:
        raise DataError(
            f'{where}: "text" is missing (keys: {", ".join(record)}), allowed: a string'
        )
    title = record.get("title")
    title = "" if title is None else title
    return (
        check_id(f'{where}: "_id"', record["_id"]),
        check_string(f'{where}: "title"', title),
        check_string(f'{where}: "text"', record["text"]),
    )


def check_string(what: str, value: object) -> str:
    if not isinstance(value, str):
        raise DataError(f"{what} is {show(value)}, allowed: a string")
    if not value.isascii() and LONE_SURROGATE.search(value):
        raise DataError(
            f"{what} is {show(value)}, allowed: text without lone surrogates, which "
            "no UTF-8 can hold"
        )
    return value


@contextlib.contextmanager
def open_seen_ids() -> Iterator[sqlite3.Connection]:
    # The name "" is SQLite's private temporary database: it spills to the disk when the cache is
    # full, and is deleted
    # by the system however this process ends.
    connection = sqlite3.connect("", isolation_level=None, check_same_thread=False)
    try:
        connection.execute("PRAGMA journal_mode = OFF")
        connection.execute(f"PRAGMA cache_size = -{_SEEN_IDS_CACHE_KIB}")
        connection.execute("CREATE TABLE seen (id TEXT PRIMARY KEY, line INTEGER) WITHOUT ROWID")
        connection.execute("BEGIN")
        yield connection
    finally:
        connection.close()


def remember_id(seen: sqlite3.Connection, place: str, number: int, record_id: str) -> None:
    try:
        seen.execute("INSERT INTO seen VALUES (?, ?)", (record_id, number))
    except sqlite3.IntegrityError:
        (first,) = seen.execute("SELECT line FROM seen WHERE id = ?", (record_id,)).fetchone()
        raise DataError(
            f'{place}:{number}: "_id" is {show(record_id)} as in line {first}, '
            "allowed: each id once"
        ) from None
    except sqlite3.OperationalError as error:
        raise DataError(
            f"{place}:{number}: ids cannot be checked for repetition in the temporary "
            f"folder ({error}), "
            "allowed: room there, or another one named by TMPDIR"
        ) from error


def _parse_tsv(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in read_lines(path):
        columns = line.split("\t")
        if len(columns) != 2:
            raise DataError(
                f"{path}:{number}: {len(columns)} columns, {show(line)}, allowed: id<TAB>text"
            )
        yield number, {"_id": columns[0], "text": columns[1]}


def _parse_qrels(path: Path) -> Iterator[tuple[str, str, str, int]]:
    is_beir = False
    for number, line in read_lines(path):
        where = f"{path}:{number}"
        if number == 1:
            is_beir = _is_beir_qrels(where, line)
            if is_beir:
                continue
        columns = line.split("\t") if is_beir else line.split()
        if len(columns) != (3 if is_beir else 4):
            allowed = (
                _QRELS_HEADER.replace("\t", "<TAB>") if is_beir else "query_id 0 doc_id relevance"
            )
            raise DataError(f"{where}: {len(columns)} columns, {show(line)}, allowed: {allowed}")
        yield where, *_check_judgement(where, columns[0], columns[-2], columns[-1])


def _is_beir_qrels(where: str, line: str) -> bool:
    if line == _QRELS_HEADER:
        return True
    if len(line.split()) == 4:
        return False
    raise DataError(
        f"{where}: first line of the qrels is {show(line)}, allowed: the header "
        "query-id<TAB>corpus-id<TAB>score, or a judgement query_id 0 doc_id relevance"
    )


def _check_judgement(
    where: str, query_id: object, doc_id: object, relevance: object
) -> tuple[str, str, int]:
    if not _INTEGER.fullmatch(str(relevance)):
        raise DataError(
            f"{where}: relevance is {show(relevance)}, allowed: an integer of at most 9 digits"
        )
    return (
        check_id(f"{where}: query id", query_id),
        check_id(f"{where}: doc id", doc_id),
        int(str(relevance)),
    )


def _read_hub(
    name: str,
    config: str | None,
    split: str,
    revision: str | None,
    columns: dict[str, str] | None = None,
) -> Iterator[tuple[int, dict[str, Any]]]:
    with extras.importing():
        import datasets

    features = columns and datasets.Features(
        {key: datasets.Value(kind) for key, kind in columns.items()}
    )
    try:
        rows = datasets.load_dataset(
            name, config, split=split, revision=revision, streaming=True, features=features
        )
        yield from enumerate(rows, 1)
    except (OSError, ValueError) as error:
        part = f"split {split!r}" if config is None else f"part {config!r}"
        raise DataError(
            f"hf:{name}: {part} cannot be loaded from the hub ({error}), allowed: a "
            "data set in BEIR's "
            "layout (parts corpus and queries; judgements in NAME-qrels)"
        ) from error


def _read_hub_qrels(
    name: str, split: str, revision: str | None
) -> Iterator[tuple[str, str, str, int]]:
    # Without declared types the ids of many sets would be read as integers, and "007" as 7.
    columns = {"query-id": "string", "corpus-id": "string", "score": "int64"}
    for number, row in _read_hub(name, None, split, revision, columns):
        where = f"hf:{name}:{number}"
        yield where, *_check_judgement(where, row["query-id"], row["corpus-id"], row["score"])
