"""Documents, queries, qrels and runs: the records, and the only readers and writers of their files.

Everything is read as a stream, so memory does not grow with the corpus, and everything is checked where it enters:
``DataError`` says ``file:line: what, value, what is allowed``. Nothing is skipped, repaired or replaced in silence.
Formats: BEIR folders and JSONL, MS MARCO TSV, TREC qrels and runs, and data sets of the hub in BEIR's layout.
It does not measure anything. Next file to read: ``measures``.
"""

from __future__ import annotations

import array
import contextlib
import gzip
import json
import re
import sqlite3
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from sparse_ir import files
from sparse_ir.errors import ConfigError, DataError


class Document(NamedTuple):
    """One document; title and text may both be empty."""

    doc_id: str
    title: str
    text: str

    @property
    def contents(self) -> str:
        """Title and text in one string: what encoders read."""
        return f"{self.title} {self.text}".strip()


class Query(NamedTuple):
    """One query; the text may be empty (it finds nothing)."""

    query_id: str
    text: str


Qrels = dict[str, dict[str, int]]  # query_id -> doc_id -> relevance (> 0: relevant)
Run = dict[str, list[tuple[str, float]]]  # query_id -> (doc_id, score), best first

_QRELS_HEADER = "query-id\tcorpus-id\tscore"
_FORBIDDEN_IN_ID = re.compile(r"[\s\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_LONE_SURROGATE = re.compile(r"[\ud800-\udfff]")
_INTEGER = re.compile(r"-?[0-9]{1,9}")
_FLOAT32_MAX = 3.4028234663852886e38
_SEEN_IDS_CACHE_KIB = 4096
_VECTOR_SUFFIXES = (".json", ".jsonl", ".json.gz", ".jsonl.gz")  # those that Anserini reads


def check_text(text: str, name: str = "the text") -> None:
    """Raise ``DataError`` for what neither a tokenizer nor Java can take: no text at all, or half of a character."""
    if not isinstance(text, str):
        raise DataError(f"{text!r:.60} is a {type(text).__name__}; allowed: a text")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{name} holds a lone surrogate ({text[error.start]!r} at character {error.start}); allowed: "
                        "Unicode text") from error


def read_documents(source: str | Path, *, revision: str | None = None, check_unique: bool = True) -> Iterator[Document]:
    """The documents of a corpus, one at a time, in the order of the file.

    ``source`` is a BEIR folder (with ``corpus.jsonl`` or ``corpus.jsonl.gz``), such a file, an MS MARCO
    ``collection.tsv[.gz]`` (``doc_id<TAB>text``), or a data set of the hub: ``hf:OWNER/NAME``, or ``BeIR/NAME``
    where no such path exists; ``revision`` (a commit, tag or branch) is for the hub alone. A missing or null title
    is the empty title, and a document without title and text is legal.

    Doc ids must be unique. This is checked exactly and in bounded memory, with a temporary database on disk; with
    ``check_unique=False`` it is left out, for a corpus that has been read before.

    Raises:
        DataError: there is no such corpus (raised at once), or a record breaks the format (raised when it is reached).
    """
    return (Document(*fields) for fields in _read_records(source, "corpus", revision, check_unique))


def read_queries(source: str | Path, *, revision: str | None = None, check_unique: bool = True) -> Iterator[Query]:
    """The queries of a set, one at a time; sources, options and errors as in ``read_documents``.

    The file of a BEIR folder is ``queries.jsonl[.gz]``; it holds the queries of all splits. MS MARCO's is
    ``query_id<TAB>text``.
    """
    return (Query(fields[0], fields[2]) for fields in _read_records(source, "queries", revision, check_unique))


def read_qrels(source: str | Path, split: str = "test", *, revision: str | None = None) -> Qrels:
    """The relevance judgements ``{query_id: {doc_id: relevance}}``, in the order of the file.

    ``source`` is a BEIR folder (with ``qrels/SPLIT.tsv[.gz]``), a file, or a data set of the hub as in
    ``read_documents``, whose judgements stand in the data set of the same name plus ``-qrels``. A file is told by its
    first line: BEIR's header ``query-id<TAB>corpus-id<TAB>score``, or four columns as in TREC (``query_id 0 doc_id
    relevance``). A pair may stand there twice when both lines agree.

    Raises:
        DataError: no such file or split, no judgement in it, a wrong header, a relevance that is no integer, or a pair
            judged twice differently.
    """
    hub_name = find_hub_name(source)
    if hub_name is None:
        path = find_qrels(source, split)
        place, judgements = str(path), _parse_qrels(path)
    else:
        hub_name = hub_name if hub_name.endswith("-qrels") else f"{hub_name}-qrels"
        place, judgements = f"hf:{hub_name}, split {split}", _read_hub_qrels(hub_name, split, revision)
    qrels: Qrels = {}
    for where, query_id, doc_id, relevance in judgements:
        known = qrels.setdefault(query_id, {}).setdefault(doc_id, relevance)
        if known != relevance:
            raise DataError(f"{where}: query {query_id!r} and document {doc_id!r} are judged twice, "
                            f"{known} and {relevance}; one relevance per pair is allowed")
    if not qrels:
        raise DataError(f"{place}: no judgement in it; at least one is needed")
    return qrels


def read_run(path: str | Path, *, as_written: bool = False) -> Run:
    """A run ``{query_id: [(doc_id, score), …]}``, each list in the order of ``rank_hits``, or that of the file.

    Reads TREC files (``query_id Q0 doc_id rank score tag``, plain or ``.gz``) and, when the name ends in ``.json``
    or ``.json.gz``, one object ``{query_id: {doc_id: score}}``. As in trec_eval the order comes from the scores
    alone: ranks and the order of lines are ignored. A query without hits cannot stand in a TREC file.

    Raises:
        DataError: no such file, a line without six columns, a score that is no finite number, or a document that one
            query finds twice.
    """
    path = Path(path)
    if not path.is_file():
        what = "not a regular file" if path.exists() else "no such run"
        raise DataError(f"{path}: {what}, allowed: a TREC file (plain or .gz), or a JSON file (.json or .json.gz)")
    parse = _parse_json_run if path.name.endswith((".json", ".json.gz")) else _parse_trec_run
    order = list if as_written else rank_hits
    return {query_id: order(scores.items()) for query_id, scores in parse(path).items()}


def write_run(path: str | Path, run: Run, tag: str = "sparse_ir") -> None:
    """Write a run as a TREC file: ``query_id Q0 doc_id rank score tag``, single spaces, ranks from 1.

    The file appears whole or not at all. Scores are not rounded: whole numbers have six decimals, others as many
    digits as bring the same float32 (and float64) back. Queries without hits leave no line, for the format knows
    none: ``read_run`` does not give them back, and measures over all judged queries count them as 0.

    Raises:
        DataError: a score that is NaN or beyond float32, an id with white space, a document twice for one query, or
            hits that are not in the order of ``rank_hits``.
        ConfigError: a tag with white space, or a name that promises another format (``.gz``, ``.json``).
    """
    path = Path(path)
    check_run_target(path, tag)
    with files.atomic_writer(path) as stream:
        for query_id, hits in run.items():
            _check_hits(query_id, hits)
            for rank, (doc_id, score) in enumerate(hits, 1):
                stream.write(f"{query_id} Q0 {doc_id} {rank} {_format_score(score)} {tag}\n")


def check_run_target(path: Path, tag: str) -> None:
    """Raise ``ConfigError`` when a run cannot be written under this name: to be asked before a long search."""
    if path.is_dir():
        raise ConfigError(f"{path} is a folder, allowed: the name of a file")
    if path.suffix in {".gz", ".json"}:
        raise ConfigError(f"{path}: runs are plain TREC text, allowed: a name without {path.suffix} at the end")
    if not tag or _FORBIDDEN_IN_ID.search(tag):
        raise ConfigError(f"tag of the run, {tag!r}, allowed: one word without white space")


def rank_hits(hits: Iterable[tuple[str, float]]) -> list[tuple[str, float]]:
    """The hits, best first, in trec_eval's order: by score as float32, then by doc_id, both descending."""
    hits = list(hits)
    keys = zip(array.array("f", [score for _, score in hits]), hits, strict=True)
    return [hit for _, hit in sorted(keys, key=lambda key: (key[0], key[1][0]), reverse=True)]


def check_id(what: str, value: object) -> str:
    """The id itself, when runs and qrels can hold it: a non-empty ``str`` without white space or control characters.

    Raises ``DataError`` that begins with ``what`` (a place and a field) otherwise.
    """
    if not isinstance(value, str):
        raise DataError(f'{what} is {show(value)}, allowed: a string, such as "42" in quotes')
    if not value:
        raise DataError(f"{what} is empty, allowed: a string of at least one character")
    if _FORBIDDEN_IN_ID.search(value):
        raise DataError(f"{what} is {show(value)}, allowed: no white space, control character or lone surrogate "
                        "(runs and qrels are columns between spaces)")
    return value


def find_hub_name(source: str | Path) -> str | None:
    """Name of the hub's data set that ``source`` stands for, or None when it is a path."""
    text = str(source)
    if text.startswith("hf:"):
        return text.removeprefix("hf:")
    return text if re.fullmatch(r"BeIR/[\w.-]+", text) and not Path(text).exists() else None


def find_corpus(source: str | Path) -> Path:
    """Path of the corpus file that ``read_documents`` opens; raises ``DataError`` with all names it looked for."""
    return _find_file(Path(source), "corpus")


def find_queries(source: str | Path) -> Path:
    """Path of the query file that ``read_queries`` opens; raises ``DataError`` with all names it looked for."""
    return _find_file(Path(source), "queries")


def find_qrels(source: str | Path, split: str = "test") -> Path:
    """Path of the qrels file that ``read_qrels`` opens; raises ``DataError`` with the splits that are there."""
    source = Path(source)
    if source.is_file():
        return source
    candidates = [source / "qrels" / f"{split}.tsv", source / "qrels" / f"{split}.tsv.gz"]
    splits = sorted({path.name.split(".")[0] for path in source.glob("qrels/*.tsv*")})
    return _only_one(candidates, f"qrels of split {split!r}, splits there: {', '.join(splits) or 'none'}")


# ---------------------------------------------------------------------------------------------------------------------
# Finding files


def _find_file(source: Path, stem: str) -> Path:
    if source.is_dir():
        return _only_one([source / f"{stem}.jsonl", source / f"{stem}.jsonl.gz"], stem)
    if not source.exists():
        raise DataError(f"{source}: no such {stem}; looked for this file, for a folder of this name with {stem}.jsonl "
                        f"or {stem}.jsonl.gz, and for a data set of the hub (hf:OWNER/NAME or BeIR/NAME)")
    if not source.name.endswith((".jsonl", ".jsonl.gz", ".tsv", ".tsv.gz")):
        raise DataError(f"{source}: unknown format of {stem}, allowed: .jsonl, .tsv, or these with .gz")
    return source


def _only_one(candidates: list[Path], what: str) -> Path:
    found = [path for path in candidates if path.is_file()]
    if not found:
        raise DataError(f"no {what}; looked for {' and '.join(map(str, candidates))}")
    if len(found) > 1:
        raise DataError(f"{what} is there twice: {' and '.join(map(str, found))}; name the file that is meant")
    return found[0]


def find_json_vectors(folder: Path) -> list[Path]:
    """The files of an Anserini ``JsonVectorCollection``, sorted; raises ``DataError`` when there are none."""
    paths = sorted(path for path in folder.glob("*") if path.name.endswith(_VECTOR_SUFFIXES))
    if not paths:
        raise DataError(f"{folder} holds no vectors: neither {', '.join('*' + end for end in _VECTOR_SUFFIXES)} nor "
                        "a folder that the encode command wrote")
    return paths


def read_json_vectors(folder: Path) -> Iterator[tuple[str, dict[str, float]]]:
    """doc_id and ``{token: weight}`` of each line ``{"id", "vector"}``, file by file in the order of their names.

    Raises ``DataError`` for a broken line, a missing or repeated id, a token that stands twice in a vector, and a
    weight that is no finite number >= 0.
    """
    with _open_seen_ids() as seen:
        for path in find_json_vectors(folder):
            for number, record in parse_jsonl(path):
                place = f"{path}:{number}"
                doc_id = check_id(f'{place}: "id"', record.get("id"))
                _remember_id(seen, str(path), number, doc_id)
                yield doc_id, _check_vector(place, record.get("vector"))


def _check_vector(place: str, vector: object) -> dict[str, float]:
    if not isinstance(vector, dict):
        raise DataError(f'{place}: "vector" is {show(vector)}, allowed: an object of token: weight')
    for token, weight in vector.items():
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight <= _FLOAT32_MAX:
            raise DataError(f"{place}: weight of {show(token)} is {show(weight)}, allowed: a finite number >= 0")
    return vector


# ---------------------------------------------------------------------------------------------------------------------
# Documents and queries: every source becomes (place, record), every record (id, title, text)


def _read_records(
    source: str | Path, kind: str, revision: str | None, check_unique: bool
) -> Iterator[tuple[str, str, str]]:
    hub_name = find_hub_name(source)
    if hub_name is not None:
        place = f"hf:{hub_name}/{kind}"
        return _check_records(place, _read_hub(hub_name, kind, kind, revision), check_unique)
    if revision is not None:
        raise ConfigError(f"{source}: revision {revision!r} is for data sets of the hub, this is a path")
    path = _find_file(Path(source), kind)
    parse = _parse_tsv if path.name.endswith((".tsv", ".tsv.gz")) else parse_jsonl
    return _check_records(str(path), parse(path), check_unique)


def _check_records(
    place: str, records: Iterable[tuple[int, dict[str, Any]]], check_unique: bool
) -> Iterator[tuple[str, str, str]]:
    with _open_seen_ids() if check_unique else contextlib.nullcontext() as seen:
        for number, record in records:
            fields = _check_record(f"{place}:{number}", record)
            if seen is not None:
                _remember_id(seen, place, number, fields[0])
            yield fields


def _check_record(where: str, record: dict[str, Any]) -> tuple[str, str, str]:
    if "_id" not in record:
        raise DataError(f'{where}: "_id" is missing (keys: {", ".join(record) or "none"}), allowed: a non-empty string')
    if "text" not in record:
        raise DataError(f'{where}: "text" is missing (keys: {", ".join(record)}), allowed: a string')
    title = record.get("title")
    title = "" if title is None else title
    return (
        check_id(f'{where}: "_id"', record["_id"]),
        _check_text(f'{where}: "title"', title),
        _check_text(f'{where}: "text"', record["text"]),
    )


def _check_text(what: str, value: object) -> str:
    if not isinstance(value, str):
        raise DataError(f"{what} is {show(value)}, allowed: a string")
    if not value.isascii() and _LONE_SURROGATE.search(value):
        raise DataError(f"{what} is {show(value)}, allowed: text without lone surrogates, which no UTF-8 can hold")
    return value


@contextlib.contextmanager
def _open_seen_ids() -> Iterator[sqlite3.Connection]:
    # The name "" is SQLite's private temporary database: it spills to the disk when the cache is full, and is deleted
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


def _remember_id(seen: sqlite3.Connection, place: str, number: int, record_id: str) -> None:
    try:
        seen.execute("INSERT INTO seen VALUES (?, ?)", (record_id, number))
    except sqlite3.IntegrityError:
        (first,) = seen.execute("SELECT line FROM seen WHERE id = ?", (record_id,)).fetchone()
        raise DataError(f'{place}:{number}: "_id" is {show(record_id)} as in line {first}, '
                        "allowed: each id once") from None
    except sqlite3.OperationalError as error:
        raise DataError(f"{place}:{number}: ids cannot be checked for repetition in the temporary folder ({error}), "
                        "allowed: room there, or another one named by TMPDIR") from error


# ---------------------------------------------------------------------------------------------------------------------
# Formats


def parse_jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in _read_lines(path):
        try:
            record = json.loads(line, object_pairs_hook=_make_object)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}:{number}: not JSON ({error}): {show(line)}, allowed: one object") from error
        if not isinstance(record, dict):
            raise DataError(f"{path}:{number}: not a JSON object but {show(record)}, allowed: an object per line")
        yield number, record


def _parse_tsv(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in _read_lines(path):
        columns = line.split("\t")
        if len(columns) != 2:
            raise DataError(f"{path}:{number}: {len(columns)} columns, {show(line)}, allowed: id<TAB>text")
        yield number, {"_id": columns[0], "text": columns[1]}


def _parse_qrels(path: Path) -> Iterator[tuple[str, str, str, int]]:
    is_beir = False
    for number, line in _read_lines(path):
        where = f"{path}:{number}"
        if number == 1:
            is_beir = _is_beir_qrels(where, line)
            if is_beir:
                continue
        columns = line.split("\t") if is_beir else line.split()
        if len(columns) != (3 if is_beir else 4):
            allowed = _QRELS_HEADER.replace("\t", "<TAB>") if is_beir else "query_id 0 doc_id relevance"
            raise DataError(f"{where}: {len(columns)} columns, {show(line)}, allowed: {allowed}")
        yield where, *_check_judgement(where, columns[0], columns[-2], columns[-1])


def _is_beir_qrels(where: str, line: str) -> bool:
    if line == _QRELS_HEADER:
        return True
    if len(line.split()) == 4:
        return False
    raise DataError(f"{where}: first line of the qrels is {show(line)}, allowed: the header "
                    "query-id<TAB>corpus-id<TAB>score, or a judgement query_id 0 doc_id relevance")


def _check_judgement(where: str, query_id: object, doc_id: object, relevance: object) -> tuple[str, str, int]:
    if not _INTEGER.fullmatch(str(relevance)):
        raise DataError(f"{where}: relevance is {show(relevance)}, allowed: an integer of at most 9 digits")
    return check_id(f"{where}: query id", query_id), check_id(f"{where}: doc id", doc_id), int(str(relevance))


def _parse_trec_run(path: Path) -> dict[str, dict[str, float]]:
    run: dict[str, dict[str, float]] = {}
    for number, line in _read_lines(path):
        columns = line.split()
        if len(columns) != 6:
            raise DataError(f"{path}:{number}: {len(columns)} columns, {show(line)}, "
                            "allowed: query_id Q0 doc_id rank score tag")
        query_id, _, doc_id, _, score, _ = columns
        where = f"{path}:{number}"
        hits = run.setdefault(check_id(f"{where}: query id", query_id), {})
        if check_id(f"{where}: doc id", doc_id) in hits:
            raise DataError(f"{where}: query {query_id!r} finds document {doc_id!r} twice, allowed: once")
        hits[doc_id] = _parse_score(where, score)
    return run


def _parse_json_run(path: Path) -> dict[str, dict[str, float]]:
    text = "\n".join(line for _, line in _read_lines(path))
    try:
        run = json.loads(text, object_pairs_hook=_make_object)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not a JSON run ({error}), allowed: {{query_id: {{doc_id: score}}}}") from error
    if not isinstance(run, dict):
        raise DataError(f"{path}: not a JSON object but {show(run)}, allowed: {{query_id: {{doc_id: score}}}}")
    return {query_id: _check_json_hits(path, query_id, hits) for query_id, hits in run.items()}


def _check_json_hits(path: Path, query_id: str, hits: object) -> dict[str, float]:
    where = f"{path}: query {show(query_id)}"
    check_id(f"{path}: query id", query_id)
    if not isinstance(hits, dict):
        raise DataError(f"{where}: the hits are {show(hits)}, allowed: an object {{doc_id: score}}")
    return {check_id(f"{where}: doc id", doc_id): _check_score(where, score) for doc_id, score in hits.items()}


def _make_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # Python keeps the last of two equal keys without a word; here that would lose an id, a text or a score.
    made = dict(pairs)
    if len(made) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"key {show(twice)} twice in one object")
    return made


# ---------------------------------------------------------------------------------------------------------------------
# Scores of a run


def _parse_score(where: str, text: str) -> float:
    try:
        score = float(text)
    except ValueError:
        raise DataError(f"{where}: score is {show(text)}, allowed: a finite number") from None
    return _check_score(where, score)


def _check_score(where: str, score: object) -> float:
    number = isinstance(score, int | float) and not isinstance(score, bool)
    # Scores are float32 to trec_eval; a NaN fails every comparison.
    if not number or not -_FLOAT32_MAX <= score <= _FLOAT32_MAX:  # type: ignore[operator]
        raise DataError(f"{where}: score is {show(score)}, allowed: a finite number within float32")
    return float(score)  # type: ignore[arg-type]


def _check_hits(query_id: str, hits: list[tuple[str, float]]) -> None:
    check_id("run: query id", query_id)
    where = f"run, query {query_id!r}"
    seen: set[str] = set()
    for doc_id, score in hits:
        check_id(f"{where}: doc id", doc_id)
        _check_score(where, float(score))
        if doc_id in seen:
            raise DataError(f"{where}: document {doc_id!r} is there twice, allowed: once")
        seen.add(doc_id)
    for rank, (is_there, belongs) in enumerate(zip(hits, rank_hits(hits), strict=True), 1):
        if is_there != belongs:
            raise DataError(f"{where}: rank {rank} is {is_there}, allowed: {belongs} (hits in the order of rank_hits: "
                            "by score as float32, then by doc_id, both descending)")


def _format_score(score: float) -> str:
    score = float(score)
    return f"{score:.6f}" if score.is_integer() else repr(score)


# ---------------------------------------------------------------------------------------------------------------------
# Lines and the hub


def _read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines (from 1) without their ends; empty lines may stand at the end of the file alone."""
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
        raise DataError(f"{path}:{number + 1}: cannot be read on ({error}), allowed: "
                        "a whole plain file, or a whole gzip file that ends in .gz") from error


def _decode_line(where: str, raw: bytes, *, first: bool) -> str:
    if first and raw.startswith(b"\xef\xbb\xbf"):
        raise DataError(f"{where}: the file starts with a byte order mark, allowed: UTF-8 without one")
    try:
        return raw.decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: not UTF-8 ({error.reason} at byte {error.start + 1} of the line, "
                        f"{raw[error.start:error.start + 8]!r}), allowed: UTF-8") from error


def _read_hub(
    name: str, config: str | None, split: str, revision: str | None, columns: dict[str, str] | None = None
) -> Iterator[tuple[int, dict[str, Any]]]:
    import datasets

    features = columns and datasets.Features({key: datasets.Value(kind) for key, kind in columns.items()})
    try:
        rows = datasets.load_dataset(name, config, split=split, revision=revision, streaming=True, features=features)
        yield from enumerate(rows, 1)
    except (OSError, ValueError) as error:
        part = f"split {split!r}" if config is None else f"part {config!r}"
        raise DataError(f"hf:{name}: {part} cannot be loaded from the hub ({error}), allowed: a data set in BEIR's "
                        "layout (parts corpus and queries; judgements in NAME-qrels)") from error


def _read_hub_qrels(name: str, split: str, revision: str | None) -> Iterator[tuple[str, str, str, int]]:
    # Without declared types the ids of many sets would be read as integers, and "007" as 7.
    columns = {"query-id": "string", "corpus-id": "string", "score": "int64"}
    for number, row in _read_hub(name, None, split, revision, columns):
        where = f"hf:{name}:{number}"
        yield where, *_check_judgement(where, row["query-id"], row["corpus-id"], row["score"])


# ---------------------------------------------------------------------------------------------------------------------
# Words of the messages


def show(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
