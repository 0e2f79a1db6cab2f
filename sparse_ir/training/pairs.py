"""Training pairs: sources of (query, positive, negatives), read and checked once, where they enter.

It draws no batch (module ``batches``), computes no score (``teachers``) and finds no negative
(``mining``).
"""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import itertools
import math
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sparse_ir.data import readers, records
from sparse_ir.data.lines import parse_jsonl
from sparse_ir.data.records import Qrels
from sparse_ir.errors import ConfigError, DataError
from sparse_ir.storage import files

_QUERY_KEYS = ("query", "query_id")
_POSITIVE_KEYS = ("positive", "positives")
_NEGATIVE_KEYS = ("negative", "negatives")
_SCORE_KEYS = ("positive_scores", "negative_scores", "label")
_PASSAGE_KEYS = ("positive_passages", "negative_passages")
_INLINE_KEYS = (*_QUERY_KEYS, *_POSITIVE_KEYS, *_NEGATIVE_KEYS, *_SCORE_KEYS)
_FLOAT32_MAX = 3.4028234663852886e38
_NO_DOCUMENTS = np.empty(0, dtype=np.int32)


@dataclass(frozen=True, eq=False)
class Source:
    """Queries with their positive and negative documents, as positions in ``documents``.

    Texts are plain lists: beside the text itself, a Python string costs about 57 bytes a document,
    which is little against passages of hundreds. ``positives[i]`` and ``negatives[i]`` (best first,
    maybe empty) are int32 and belong to ``queries[i]``; ``scores[i]`` is float32, the teacher's
    scores of the positives and then of the negatives.
    """

    name: str
    query_ids: Sequence[str] = field(repr=False)
    queries: Sequence[str] = field(repr=False)
    doc_ids: Sequence[str] | None = field(repr=False)  # None: the file held texts and no ids
    documents: Sequence[str] = field(repr=False)
    positives: Sequence[np.ndarray] = field(repr=False)
    negatives: Sequence[np.ndarray] = field(repr=False)
    scores: Sequence[np.ndarray] | None = field(default=None, repr=False)
    weight: float = 1.0
    fingerprint: dict[str, Any] = field(default_factory=dict, repr=False)


def read_source(
    path: str | Path,
    *,
    split: str = "train",
    negatives: str | Path | None = None,
    name: str | None = None,
    weight: float = 1.0,
    limit: int | None = None,
    allow_missing: bool = False,
) -> Source:
    """The training pairs of a BEIR folder, or of one JSONL file (``.jsonl``, ``.jsonl.gz``) with
    the texts in it.

    **Folder**: the queries judged in ``split``, in the order of the qrels; relevance >= 1 is
    positive; a document's text is title and text. ``negatives`` is the file that mining wrote, one
    ``{"query_id", "positives": [doc_id], "negatives": [doc_id, best first]}`` a line (its
    ``scores`` are the miner's, and are not read); a query that it lacks has no negatives and is
    counted in the fingerprint. With ``allow_missing`` judged documents that the corpus lacks are
    left out, as are queries that have no other positive; both are counted.

    **File**: one ``{"query": str, "positive": str | [str], "negative": str | [str]}`` a line,
    ``negative`` being optional; ``positives`` and ``negatives`` mean the same. Teacher scores stand
    in all lines or in none: either ``positive_scores`` and ``negative_scores`` (a number or a list,
    as the texts), or ``label``, one list for the positives and then the negatives. ``query_id`` is
    optional (else the number of the line). Tevatron's ``{"query_id", "query", "positive_passages":
    [{"title", "text"}], "negative_passages"}`` is read as well. Other keys are refused, for a
    misspelled one would lose its texts. Equal texts are one document.

    ``limit`` keeps the first queries only. The name is that of the path when not given; ``weight``
    is the share of batches that ``Batches`` gives this source, relative to the others.

    Raises:
        DataError: a broken line, an unknown id, a text of a query or of one of its documents that
            ``is_blank``, a query
            without positive, a document twice in one list, a negative that is a positive (same id
                or same text), or a
            score that is no finite number. The message names the file and, where there is one, the
                line.
        ConfigError: ``weight`` or ``limit`` out of range, or an option that is not for this kind of
            path.
    """
    path = Path(path)
    check_weight(weight)
    if limit is not None and limit < 1:
        raise ConfigError(f"limit is {limit!r}, allowed: None or at least 1")
    if path.is_dir():
        found = _read_folder(
            path, split, None if negatives is None else Path(negatives), limit, allow_missing
        )
    elif path.name.endswith((".jsonl", ".jsonl.gz")) and path.is_file():
        if negatives is not None or allow_missing:
            option = "negatives" if negatives is not None else "allow_missing"
            raise ConfigError(
                f"{path}: {option} is for a BEIR folder, this is a file that holds its own texts"
            )
        found = _read_inline(path, limit)
    else:
        raise DataError(
            f"{path}: no such source, allowed: a BEIR folder, or a .jsonl or "
            ".jsonl.gz file with texts"
        )
    name = name_of(path) if name is None else name
    return dataclasses.replace(
        found, name=name, weight=float(weight), fingerprint={"name": name} | found.fingerprint
    )


def name_of(path: str | Path) -> str:
    """The name of a source that is given none."""
    return Path(path).name.removesuffix(".gz").removesuffix(".jsonl")


def _read_folder(
    path: Path, split: str, mined: Path | None, limit: int | None, allow_missing: bool
) -> Source:
    corpus_path, query_path = readers.find_corpus(path), readers.find_queries(path)
    qrels_path = readers.find_qrels(path, split)
    judged = readers.read_qrels(path, split)
    qrels = dict(itertools.islice(judged.items(), limit))
    doc_ids, documents = _read_corpus(corpus_path)
    positions = {doc_id: position for position, doc_id in enumerate(doc_ids)}
    positives, missing = _find_positives(qrels_path, corpus_path, qrels, positions, allow_missing)
    query_ids = list(positives)
    negatives: dict[str, np.ndarray] = {}
    lines: dict[str, int] = {}
    if mined is not None:
        known = _Known(f"{path} (split {split})", set(judged), positions, positives, bool(missing))
        negatives, lines = _read_negatives(mined, known)
    source = Source(
        name=path.name,
        query_ids=query_ids,
        queries=_read_query_texts(query_path, query_ids, qrels_path),
        doc_ids=doc_ids,
        documents=documents,
        positives=list(positives.values()),
        negatives=[negatives.get(query_id, _NO_DOCUMENTS) for query_id in query_ids],
    )
    _check_texts(source, lambda document: f"{corpus_path}:{document + 1}")
    _check_apart(source, lambda query: f"{mined}:{lines[query_ids[query]]}")
    counts = {
        "missing_documents": missing,
        "queries_without_documents": len(qrels) - len(query_ids),
    }
    paths = [corpus_path, query_path, qrels_path, *([] if mined is None else [mined])]
    return _add_fingerprint(source, path, split, limit, paths, counts)


def _read_corpus(path: Path) -> tuple[list[str], list[str]]:
    doc_ids, texts = [], []
    for document in readers.read_documents(path):
        doc_ids.append(document.doc_id)
        texts.append(document.contents)
    return doc_ids, texts


def _read_query_texts(path: Path, query_ids: list[str], qrels_path: Path) -> list[str]:
    wanted, texts = set(query_ids), {}
    for number, query in enumerate(readers.read_queries(path), 1):
        if query.query_id in wanted:
            texts[query.query_id] = _check_text(
                f"{path}:{number}: text of query {query.query_id!r}", query.text
            )
    absent = [query_id for query_id in query_ids if query_id not in texts]
    if absent:
        raise DataError(
            f"{_find_line(qrels_path, absent[0])}: query {absent[0]!r} is not in "
            f"{path} ({len(absent)} of "
            f"{len(query_ids)} queries are not), allowed: queries that are there"
        )
    return [texts[query_id] for query_id in query_ids]


def _find_positives(
    qrels_path: Path,
    corpus_path: Path,
    qrels: Qrels,
    positions: dict[str, int],
    allow_missing: bool,
) -> tuple[dict[str, np.ndarray], int]:
    """query_id -> positions of its positives, for the queries that have one; and how many are not
    in the corpus.
    """
    positives, missing = {}, []
    for query_id, judged in qrels.items():
        relevant = [doc_id for doc_id, relevance in judged.items() if relevance >= 1]
        if not relevant:
            raise DataError(
                f"{_find_line(qrels_path, query_id)}: query {query_id!r} has no "
                "positive, for all its "
                f"{len(judged)} documents have a relevance below 1; allowed: one of 1 "
                "or more, or no line "
                "of this query"
            )
        there = [positions[doc_id] for doc_id in relevant if doc_id in positions]
        missing += [(query_id, doc_id) for doc_id in relevant if doc_id not in positions]
        if there:
            positives[query_id] = np.array(there, dtype=np.int32)
    if missing and not allow_missing:
        raise DataError(
            f"{_find_line(qrels_path, *missing[0])}: document {missing[0][1]!r} is "
            "judged but not in "
            f"{corpus_path} ({len(missing)} such judgements), allowed: documents that "
            "are there, or "
            "allow_missing to leave the others out"
        )
    if not positives:
        raise DataError(
            f"{qrels_path}: no judged document is in {corpus_path}, allowed: at least one"
        )
    return positives, len(missing)


class _Known(NamedTuple):
    """What a file of negatives may speak of."""

    place: str
    query_ids: set[str]
    positions: dict[str, int]
    positives: dict[str, np.ndarray]
    some_missing: bool


def _read_negatives(path: Path, known: _Known) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """query_id -> negatives, and query_id -> its line; queries beyond the limit are left out."""
    if not path.is_file():
        raise DataError(
            f"{path}: no such file of negatives, allowed: the JSONL file that mining wrote"
        )
    negatives: dict[str, np.ndarray] = {}
    lines: dict[str, int] = {}
    for number, record in parse_jsonl(path):
        where = f"{path}:{number}"
        query_id = records.check_id(f'{where}: "query_id"', _get(where, record, "query_id"))
        if query_id not in known.query_ids:
            raise DataError(
                f"{where}: query {query_id!r} is not judged in {known.place}, allowed: its queries"
            )
        if query_id in lines:
            raise DataError(
                f"{where}: query {query_id!r} as in line {lines[query_id]}, allowed: "
                "each query once"
            )
        lines[query_id] = number
        if query_id in known.positives:
            _check_mined_positives(where, _get(where, record, "positives"), query_id, known)
            negatives[query_id] = _find_documents(where, _get(where, record, "negatives"), known)
    return negatives, lines


def _check_mined_positives(where: str, doc_ids: object, query_id: str, known: _Known) -> None:
    if known.some_missing:  # the miner may have seen the judged documents that were left out here
        return
    found = _find_documents(where, doc_ids, known)
    other = set(found.tolist()) - set(known.positives[query_id].tolist())
    if other:
        doc_id = next(doc_id for doc_id in doc_ids if known.positions[doc_id] in other)  # type: ignore[attr-defined]
        raise DataError(
            f"{where}: {doc_id!r} is no positive of query {query_id!r} in "
            f"{known.place}, allowed: "
            "negatives that were mined for these judgements"
        )


def _find_documents(where: str, doc_ids: object, known: _Known) -> np.ndarray:
    if not isinstance(doc_ids, list):
        raise DataError(
            f"{where}: {records.show(doc_ids)} in the place of documents, allowed: a "
            "list of doc ids"
        )
    for doc_id in doc_ids:
        if not isinstance(doc_id, str) or doc_id not in known.positions:
            raise DataError(
                f"{where}: document {records.show(doc_id)} is not in the corpus of "
                f"{known.place}, allowed: "
                "ids that are there"
            )
    _check_once(where, doc_ids)
    return np.array([known.positions[doc_id] for doc_id in doc_ids], dtype=np.int32)


def _find_line(path: Path, *columns: str) -> str:
    """``file:line`` of the first line of the qrels that holds these columns."""
    with (
        gzip.open(path, "rt", encoding="utf-8")
        if path.suffix == ".gz"
        else path.open(encoding="utf-8") as stream
    ):
        for number, line in enumerate(stream, 1):
            if set(columns) <= set(line.split()):
                return f"{path}:{number}"
    return str(path)


class _Row(NamedTuple):
    number: int
    query_id: str
    query: str
    positives: list[str]
    negatives: list[str]
    scores: list[float] | None


def _read_inline(path: Path, limit: int | None) -> Source:
    rows = list(_read_rows(path, limit))
    if not rows:
        raise DataError(f"{path}: no line in it, allowed: at least one")
    positions: dict[str, int] = {}
    positives = [_intern(row.positives, positions) for row in rows]
    negatives = [_intern(row.negatives, positions) for row in rows]
    has_scores = rows[0].scores is not None
    source = Source(
        name=path.name,
        query_ids=[row.query_id for row in rows],
        queries=[row.query for row in rows],
        doc_ids=None,
        documents=list(positions),
        positives=positives,
        negatives=negatives,
        scores=[np.array(row.scores, dtype=np.float32) for row in rows] if has_scores else None,
    )
    _check_apart(source, lambda query: f"{path}:{rows[query].number}")
    return _add_fingerprint(source, path, None, limit, [path], {})


def _read_rows(path: Path, limit: int | None) -> Iterator[_Row]:
    seen: dict[str, int] = {}
    has_scores = None
    for number, record in itertools.islice(parse_jsonl(path), limit):
        where = f"{path}:{number}"
        row = _read_row(where, number, _unpack_passages(where, record))
        first = seen.setdefault(row.query_id, number)
        if first != number:
            raise DataError(
                f'{where}: "query_id" is {row.query_id!r} as in line {first}, allowed: each id once'
            )
        if has_scores is not None and has_scores != (row.scores is not None):
            raise DataError(
                f"{where}: {'no scores' if has_scores else 'scores'} here, other than "
                "in line 1, allowed: "
                "scores in all lines or in none"
            )
        has_scores = row.scores is not None
        yield row


def _unpack_passages(where: str, record: dict[str, Any]) -> dict[str, Any]:
    """Tevatron's record as one of ours; others stay as they are."""
    if not any(key in record for key in _PASSAGE_KEYS):
        return record
    unpacked = {
        key: value for key, value in record.items() if key not in (*_PASSAGE_KEYS, "answers")
    }
    for key, ours in zip(_PASSAGE_KEYS, ("positive", "negative"), strict=True):
        passages = record.get(key, [])
        if not isinstance(passages, list) or not all(
            isinstance(passage, dict) for passage in passages
        ):
            raise DataError(
                f'{where}: "{key}" is {records.show(passages)}, allowed: a list of '
                f'{{"title", "text"}}'
            )
        unpacked[ours] = [
            f"{passage.get('title') or ''} {_get(where, passage, 'text')}".strip()
            for passage in passages
        ]
    return unpacked


def _read_row(where: str, number: int, record: dict[str, Any]) -> _Row:
    unknown = [key for key in record if key not in _INLINE_KEYS]
    if unknown:
        raise DataError(
            f"{where}: unknown key {records.show(unknown[0])}, allowed: {', '.join(_INLINE_KEYS)}"
        )
    query = _check_text(f'{where}: "query"', _get(where, record, "query"))
    positives = _read_texts(where, record, _POSITIVE_KEYS)
    if not positives:
        raise DataError(
            f'{where}: "positive" is missing or empty (keys: {", ".join(record)}), '
            "allowed: at least one "
            "text"
        )
    negatives = _read_texts(where, record, _NEGATIVE_KEYS)
    scores = _read_scores(where, record, len(positives), len(negatives))
    query_id = records.check_id(f'{where}: "query_id"', record.get("query_id", str(number)))
    return _Row(number, query_id, query, positives, negatives, scores)


def _read_texts(where: str, record: dict[str, Any], keys: tuple[str, str]) -> list[str]:
    there = [key for key in keys if key in record]
    if len(there) > 1:
        raise DataError(
            f'{where}: both "{keys[0]}" and "{keys[1]}" are there, allowed: one of them'
        )
    if not there:
        return []
    texts = record[there[0]]
    texts = texts if isinstance(texts, list) else [texts]
    for text in texts:
        _check_text(f'{where}: "{there[0]}"', text)
    _check_once(where, texts)
    return texts


def _read_scores(
    where: str, record: dict[str, Any], positives: int, negatives: int
) -> list[float] | None:
    there = [key for key in _SCORE_KEYS if key in record]
    if not there:
        return None
    if "label" in there:
        if len(there) > 1:
            raise DataError(
                f'{where}: both "label" and "{there[0]}" are there, allowed: one of them'
            )
        return _check_scores(where, "label", record["label"], positives + negatives)
    return _check_scores(
        where, "positive_scores", record.get("positive_scores", []), positives
    ) + _check_scores(where, "negative_scores", record.get("negative_scores", []), negatives)


def _check_scores(where: str, key: str, scores: Any, count: int) -> list[float]:
    scores = scores if isinstance(scores, list) else [scores]
    if len(scores) != count:
        documents = "the positives, then the negatives" if key == "label" else "as many as texts"
        raise DataError(
            f'{where}: "{key}" holds {len(scores)} scores, allowed: {count} ({documents})'
        )
    for score in scores:
        number = isinstance(score, int | float) and not isinstance(score, bool)
        if not number or not abs(score) <= _FLOAT32_MAX:  # a NaN fails every comparison
            raise DataError(
                f'{where}: "{key}" holds {records.show(score)}, allowed: finite '
                "numbers within float32"
            )
    return scores


def _intern(texts: list[str], positions: dict[str, int]) -> np.ndarray:
    return np.array([positions.setdefault(text, len(positions)) for text in texts], dtype=np.int32)


def check_weight(weight: float) -> None:
    """Raises ``ConfigError`` unless it is a finite number > 0."""
    if not (math.isfinite(weight) and weight > 0):
        raise ConfigError(f"weight is {weight!r}, allowed: a finite number > 0")


def _get(where: str, record: dict[str, Any], key: str) -> Any:
    if key not in record:
        raise DataError(
            f'{where}: "{key}" is missing (keys: {", ".join(record) or "none"}), '
            "allowed: a record with it"
        )
    return record[key]


def is_blank(text: str) -> bool:
    """True for a text of spaces, control and format characters alone (U+200B, NUL), which gives no
    token.
    """
    return all(unicodedata.category(character)[0] in "CZ" for character in text)


def _check_text(what: str, text: object) -> str:
    if is_blank(readers.check_string(what, text)):
        raise DataError(
            f"{what} is {records.show(text)}, allowed: a text of at least one visible character"
        )
    return text  # type: ignore[return-value]


def _check_once(where: str, values: list[str]) -> None:
    if len(set(values)) != len(values):
        twice = next(value for value in values if values.count(value) > 1)
        raise DataError(
            f"{where}: {records.show(twice)} is there twice, allowed: each document of a list once"
        )


def _check_texts(source: Source, where: Callable[[int], str]) -> None:
    """Documents that no query uses may be empty, as in any corpus; those of a query may not."""
    used = np.unique(np.concatenate([*source.positives, *source.negatives]))
    for document in used.tolist():
        if is_blank(source.documents[document]):
            raise DataError(
                f"{where(document)}: document {_name(source, document)} is empty, and "
                "the positive or "
                "negative of a query, allowed: a text of at least one visible "
                "character"
            )


def _check_apart(source: Source, where: Callable[[int], str]) -> None:
    """Raise when a negative of a query is one of its positives, by position or by text."""
    same = merge_equal(source.documents)
    positive_keys = pair_keys(source.positives, same)
    negative_keys = pair_keys(source.negatives, same)
    clashes = np.flatnonzero(np.isin(negative_keys, positive_keys))
    if not len(clashes):
        return
    query = int(negative_keys[clashes[0]]) // len(same)
    positives = source.positives[query].tolist()
    negative = next(
        document
        for document in source.negatives[query].tolist()
        if same[document] in same[positives]
    )
    twin = next(document for document in positives if same[document] == same[negative])
    how = (
        "is one of its positives"
        if twin == negative
        else f"has the text of its positive {_name(source, twin)}"
    )
    raise DataError(
        f"{where(query)}: query {source.query_ids[query]!r}: negative "
        f"{_name(source, negative)} {how}, "
        "allowed: negatives that differ from all positives"
    )


def _name(source: Source, document: int) -> str:
    return records.show(
        source.documents[document] if source.doc_ids is None else source.doc_ids[document]
    )


def merge_equal(texts: Sequence[str]) -> np.ndarray:
    """For each text, the position of the first one equal to it: int32 ``(N,)``."""
    first: dict[str, int] = {}
    return np.fromiter(
        (first.setdefault(text, position) for position, text in enumerate(texts)),
        np.int32,
        len(texts),
    )


def pair_keys(lists: Sequence[np.ndarray], same: np.ndarray) -> np.ndarray:
    """query * N + document for each pair, equal texts as one document: int64, in the order of the
    queries.
    """
    queries = np.repeat(np.arange(len(lists), dtype=np.int64), [len(entry) for entry in lists])
    return queries * len(same) + same[np.concatenate([_NO_DOCUMENTS, *lists])]


def _add_fingerprint(
    source: Source,
    path: Path,
    split: str | None,
    limit: int | None,
    paths: list[Path],
    counts: dict[str, int],
) -> Source:
    fingerprint = {
        "path": path.name,
        "split": split,
        "limit": limit,
        "queries": len(source.queries),
        "documents": len(source.documents),
        "positives": sum(map(len, source.positives)),
        "negatives": sum(map(len, source.negatives)),
        "queries_without_negatives": sum(not len(entry) for entry in source.negatives),
        **counts,
        "texts_sha256": _hash_texts(itertools.chain(source.queries, source.documents)),
        "files": {file.name: files.sha256_of_file(file) for file in paths},
    }
    return dataclasses.replace(source, fingerprint=fingerprint)


def _hash_texts(texts: Iterable[str]) -> str:
    """SHA-256 of the texts, each with its length before it, so that no two lists of texts are
    written alike.
    """
    digest = hashlib.sha256()
    for text in texts:
        raw = text.encode()
        digest.update(len(raw).to_bytes(8, "little"))
        digest.update(raw)
    return digest.hexdigest()
