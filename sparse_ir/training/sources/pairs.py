"""Training pairs: sources of (query, positives, negatives), read and checked where they enter.

``batches`` draws from them, ``teachers`` score them, and ``mining`` finds their negatives.
"""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sparse_ir.data import readers, records
from sparse_ir.data.lines import parse_jsonl, read_lines
from sparse_ir.data.records import Qrels
from sparse_ir.errors import ConfigError, DataError
from sparse_ir.training.sources.inline_pairs import get_field, read_inline_pairs
from sparse_ir.training.sources.training_source import (
    NO_DOCUMENTS,
    TrainingSource,
    check_apart,
    check_once,
    check_visible,
    check_weight,
    is_blank,
    positions_of,
    show_document,
    with_fingerprint,
)


def read_source(
    path: str | Path,
    *,
    split: str = "train",
    negatives: str | Path | None = None,
    name: str | None = None,
    weight: float = 1.0,
    limit: int | None = None,
    allow_missing: bool = False,
) -> TrainingSource:
    """The training pairs of a BEIR folder, or of a JSONL file (``.jsonl[.gz]``) with texts in it.

    **Folder**: the queries judged in ``split``, in the order of the qrels. A relevance of 1 or more
    is positive; the text of a document is its title and text. ``negatives`` is the file that mining
    wrote: one ``{"query_id", "positives": [doc_id], "negatives": [doc_id, best first]}`` a line.
    Its ``scores`` are the miner's and are ignored; queries that it lacks have no negatives and are
    counted in the fingerprint. ``allow_missing`` leaves out judged documents that the corpus lacks,
    and queries without another positive; the fingerprint counts both.

    **File**: one ``{"query": str, "positive": str | [str], "negative": str | [str]}`` a line, of
    which ``negative`` is optional; ``positives`` and ``negatives`` mean the same. Either all lines
    have teacher scores or none: ``positive_scores`` and ``negative_scores`` (a number or a list, as
    the texts), or ``label``, one list for the positives and then the negatives. ``query_id`` is
    optional (else the number of the line). Tevatron's ``{"query_id", "query", "positive_passages":
    [{"title", "text"}], "negative_passages"}`` is read as well. Other keys are refused, because a
    misspelled key would lose its texts. Equal texts are one document.

    ``limit`` keeps only the first queries. ``name`` defaults to ``name_of(path)``; ``weight`` is
    the share of batches that ``Batches`` gives this source, relative to the others.

    Raises:
        DataError: a broken line; an unknown id; a blank text of a query or of one of its documents;
            a query without positive; a document twice in one list; a negative that is a positive
            (same id or same text); or a score that is not finite. The message names the file and,
            where there is one, the line.
        ConfigError: ``weight`` or ``limit`` is out of range, or an option does not fit the path.
    """
    path = Path(path)
    check_weight(weight)
    if limit is not None and limit < 1:
        raise ConfigError(f"limit is {limit!r}; it must be None or at least 1")
    if path.is_dir():
        mined = None if negatives is None else Path(negatives)
        source = _read_folder(path, split, mined, limit, allow_missing)
    elif path.name.endswith((".jsonl", ".jsonl.gz")) and path.is_file():
        for option, is_given in (
            ("negatives", negatives is not None),
            ("allow_missing", allow_missing),
        ):
            if is_given:
                raise ConfigError(
                    f"{path}: {option} is for a BEIR folder, but this file holds its own texts"
                )
        source = read_inline_pairs(path, limit)
    else:
        raise DataError(
            f"{path}: there is no such source; it must be a BEIR folder, or a .jsonl or .jsonl.gz "
            "file with texts"
        )
    if name is None:
        name = name_of(path)
    fingerprint = {"name": name} | source.fingerprint
    return dataclasses.replace(source, name=name, weight=float(weight), fingerprint=fingerprint)


def name_of(path: str | Path) -> str:
    """The name of a source that was not given one."""
    return Path(path).name.removesuffix(".gz").removesuffix(".jsonl")


def _read_folder(
    path: Path, split: str, mined: Path | None, limit: int | None, allow_missing: bool
) -> TrainingSource:
    corpus_path = readers.find_corpus(path)
    query_path = readers.find_queries(path)
    qrels_path = readers.find_qrels(path, split)
    judged = readers.read_qrels(path, split)
    qrels = dict(itertools.islice(judged.items(), limit))
    doc_ids: list[str] = []
    documents: list[str] = []
    for document in readers.read_documents(corpus_path):
        doc_ids.append(document.doc_id)
        documents.append(document.contents)
    positions = positions_of(doc_ids)
    positives, missing = _find_positives(qrels_path, corpus_path, qrels, positions, allow_missing)
    query_ids = list(positives)
    negatives: dict[str, np.ndarray] = {}
    lines: dict[str, int] = {}
    files_read = [corpus_path, query_path, qrels_path]
    if mined is not None:
        known = _Known(f"{path} (split {split})", set(judged), positions, positives, missing > 0)
        negatives, lines = _read_negatives(mined, known)
        files_read.append(mined)
    source = TrainingSource(
        name=path.name,
        query_ids=query_ids,
        queries=_read_query_texts(query_path, query_ids, qrels_path),
        doc_ids=doc_ids,
        documents=documents,
        positives=list(positives.values()),
        negatives=[negatives.get(query_id, NO_DOCUMENTS) for query_id in query_ids],
    )
    _check_documents(source, corpus_path)
    check_apart(source, lambda query: f"{mined}:{lines[query_ids[query]]}")
    counts = {
        "missing_documents": missing,
        "queries_without_documents": len(qrels) - len(query_ids),
    }
    return with_fingerprint(
        source, path=path, split=split, limit=limit, files_read=files_read, counts=counts
    )


def _read_query_texts(path: Path, query_ids: list[str], qrels_path: Path) -> list[str]:
    wanted = set(query_ids)
    texts: dict[str, str] = {}
    for number, query in enumerate(readers.read_queries(path), 1):
        if query.query_id in wanted:
            check_visible(f"{path}:{number}: text of query {query.query_id!r}", query.text)
            texts[query.query_id] = query.text
    absent = [query_id for query_id in query_ids if query_id not in texts]
    if absent:
        raise DataError(
            f"{_find_line(qrels_path, absent[0])}: query {absent[0]!r} is not in {path} "
            f"({len(absent)} of {len(query_ids)} queries are not); all judged queries must be"
        )
    return list(map(texts.__getitem__, query_ids))


def _find_positives(
    qrels_path: Path,
    corpus_path: Path,
    qrels: Qrels,
    positions: dict[str, int],
    allow_missing: bool,
) -> tuple[dict[str, np.ndarray], int]:
    """The positions of each query's positives, and how many positives the corpus lacks.

    Queries without a positive in the corpus are left out.
    """
    positives: dict[str, np.ndarray] = {}
    missing: list[tuple[str, str]] = []
    for query_id, judged in qrels.items():
        relevant = [doc_id for doc_id, relevance in judged.items() if relevance >= 1]
        if not relevant:
            raise DataError(
                f"{_find_line(qrels_path, query_id)}: query {query_id!r} has no positive: all its "
                f"{len(judged)} documents have a relevance below 1; one must have 1 or more, or "
                "the query no line"
            )
        present = [positions[doc_id] for doc_id in relevant if doc_id in positions]
        missing += [(query_id, doc_id) for doc_id in relevant if doc_id not in positions]
        if present:
            positives[query_id] = np.array(present, dtype=np.int32)
    if missing and not allow_missing:
        query_id, doc_id = missing[0]
        raise DataError(
            f"{_find_line(qrels_path, query_id, doc_id)}: document {doc_id!r} is judged but not in "
            f"{corpus_path} ({len(missing)} such judgements); it must be there, or allow_missing "
            "be set to leave such documents out"
        )
    if not positives:
        raise DataError(
            f"{qrels_path}: no judged document is in {corpus_path}; at least one must be"
        )
    return positives, len(missing)


def _find_line(path: Path, *columns: str) -> str:
    """``file:line`` of the first line of the qrels with these columns."""
    for number, line in read_lines(path):
        if set(columns) <= set(line.split()):
            return f"{path}:{number}"
    return str(path)


def _check_documents(source: TrainingSource, corpus_path: Path) -> None:
    """Raise ``DataError`` for a blank document of a query; other documents may be empty."""
    used = np.unique(np.concatenate([*source.positives, *source.negatives]))
    for document in used.tolist():
        if is_blank(source.documents[document]):
            raise DataError(
                f"{corpus_path}:{document + 1}: document {show_document(source, document)} is "
                "empty, but it is the positive or negative of a query; it must have at least one "
                "visible character"
            )


class _Known(NamedTuple):
    """What a file of negatives may refer to."""

    place: str
    query_ids: set[str]
    positions: dict[str, int]
    positives: dict[str, np.ndarray]
    some_missing: bool  # some positives were left out


def _read_negatives(path: Path, known: _Known) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """query_id -> negatives, and query_id -> its line; queries beyond the limit are left out."""
    if not path.is_file():
        raise DataError(
            f"{path}: there is no such file of negatives; it must be the JSONL file that mining "
            "wrote"
        )
    negatives: dict[str, np.ndarray] = {}
    lines: dict[str, int] = {}
    for number, record in parse_jsonl(path):
        where = f"{path}:{number}"
        query_id = records.check_id(f'{where}: "query_id"', get_field(where, record, "query_id"))
        if query_id not in known.query_ids:
            raise DataError(
                f"{where}: query {query_id!r} is not judged in {known.place}; it must be one of "
                "its queries"
            )
        if query_id in lines:
            raise DataError(
                f"{where}: query {query_id!r} is the same as in line {lines[query_id]}; each query "
                "must occur once"
            )
        lines[query_id] = number
        if query_id in known.positives:
            positives = get_field(where, record, "positives")
            _check_mined_positives(where, positives, query_id, known)
            listed = _check_doc_ids(where, get_field(where, record, "negatives"), known)
            positions = list(map(known.positions.__getitem__, listed))
            negatives[query_id] = np.array(positions, dtype=np.int32)
    return negatives, lines


def _check_mined_positives(where: str, value: object, query_id: str, known: _Known) -> None:
    """Raise ``DataError`` when negatives were mined for other judgements."""
    if known.some_missing:  # the miner may have seen the judged documents that were left out
        return
    positives = set(known.positives[query_id].tolist())
    for doc_id in _check_doc_ids(where, value, known):
        if known.positions[doc_id] not in positives:
            raise DataError(
                f"{where}: {doc_id!r} is not a positive of query {query_id!r} in {known.place}; "
                "negatives must be mined for these judgements"
            )


def _check_doc_ids(where: str, value: object, known: _Known) -> list[str]:
    if not isinstance(value, list):
        raise DataError(f"{where}: {records.show(value)} must be a list of doc ids")
    for doc_id in value:
        if not isinstance(doc_id, str) or doc_id not in known.positions:
            raise DataError(
                f"{where}: document {records.show(doc_id)} is not in the corpus of {known.place}; "
                "it must be one of its ids"
            )
    check_once(where, value)
    return value
