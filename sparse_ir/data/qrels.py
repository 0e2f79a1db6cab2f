"""Relevance judgements: BEIR's TSV, TREC's qrels, and those of the hub."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from sparse_ir.data.lines import read_lines, split_columns
from sparse_ir.data.records import Qrels, check_id, check_trec_id, show
from sparse_ir.data.sources import find_hub_name, only_one, read_hub
from sparse_ir.errors import DataError

_BEIR_HEADER = "query-id\tcorpus-id\tscore"
_INTEGER = re.compile(r"-?[0-9]{1,9}")
# Without declared types, the ids of many sets would be read as integers, and "007" as 7.
_HUB_TYPES = {"query-id": "string", "corpus-id": "string", "score": "int64"}


class Judgement(NamedTuple):
    """The relevance of one document to one query, and its place in the source."""

    where: str
    query_id: str
    doc_id: str
    relevance: int


def read_qrels(source: str | Path, split: str = "test", *, revision: str | None = None) -> Qrels:
    """The relevance judgements ``{query_id: {doc_id: relevance}}``, in the order of the file.

    ``source`` is a BEIR folder (with ``qrels/SPLIT.tsv[.gz]``), a file, or a data set of the hub as
    in ``read_documents``, whose judgements are in the data set of the same name plus ``-qrels``.
    The first line decides the format of a file: BEIR's header
    ``query-id<TAB>corpus-id<TAB>score``, or four columns as in TREC (``query_id 0 doc_id
    relevance``). A pair may appear twice if both lines agree.

    Raises:
        DataError: there is no such file or split, it holds no judgement, its header is wrong, a
            relevance is not an integer, or a pair has two different judgements.
    """
    hub_name = find_hub_name(source)
    if hub_name is None:
        path = find_qrels(source, split)
        place = str(path)
        judgements = _parse_file(path)
    else:
        hub_name = f"{hub_name.removesuffix('-qrels')}-qrels"
        place = f"hf:{hub_name}, split {split}"
        judgements = _read_from_hub(hub_name, split, revision)
    qrels: Qrels = {}
    for where, query_id, doc_id, relevance in judgements:
        known = qrels.setdefault(query_id, {}).setdefault(doc_id, relevance)
        if known != relevance:
            raise DataError(
                f"{where}: query {query_id!r} and document {doc_id!r} are judged twice, {known} "
                f"and {relevance}; each pair must have one relevance"
            )
    if not qrels:
        raise DataError(f"{place}: no judgement in it; there must be at least one")
    return qrels


def find_qrels(source: str | Path, split: str = "test") -> Path:
    """The qrels file that ``read_qrels`` opens.

    Raises ``DataError`` that lists the splits of the folder.
    """
    source = Path(source)
    if source.is_file():
        return source
    candidates = [source / "qrels" / f"{split}.tsv", source / "qrels" / f"{split}.tsv.gz"]
    splits = sorted({path.name.split(".")[0] for path in source.glob("qrels/*.tsv*")})
    known = ", ".join(splits) or "none"
    return only_one(candidates, f"qrels of split {split!r}, splits there: {known}")


def _parse_file(path: Path) -> Iterator[Judgement]:
    is_beir = False
    for number, line in read_lines(path):
        where = f"{path}:{number}"
        if number == 1:
            is_beir = _is_beir_header(where, line)
            if is_beir:
                continue
        if is_beir:
            yield _parse_beir_line(where, line)
        else:
            yield _parse_trec_line(where, line)


def _is_beir_header(where: str, line: str) -> bool:
    if line == _BEIR_HEADER:
        return True
    if len(split_columns(line)) == 4:
        return False
    raise DataError(
        f"{where}: first line of the qrels is {show(line)}; it must be the header "
        "query-id<TAB>corpus-id<TAB>score, or a judgement query_id 0 doc_id relevance"
    )


def _parse_beir_line(where: str, line: str) -> Judgement:
    columns = line.split("\t")
    if len(columns) != 3:
        raise DataError(
            f"{where}: {len(columns)} columns, {show(line)}; they must be "
            "query-id<TAB>corpus-id<TAB>score"
        )
    return _check(where, *columns)


def _parse_trec_line(where: str, line: str) -> Judgement:
    columns = split_columns(line)
    if len(columns) != 4:
        raise DataError(
            f"{where}: {len(columns)} columns, {show(line)}; they must be query_id 0 doc_id "
            "relevance"
        )
    query_id, _, doc_id, relevance = columns
    check_trec_id(f"{where}: query id", query_id)
    check_trec_id(f"{where}: doc id", doc_id)
    return _check(where, query_id, doc_id, relevance)


def _check(where: str, query_id: object, doc_id: object, relevance: object) -> Judgement:
    # int() would also take "1_0", " 1 " and digits of other scripts
    if not _INTEGER.fullmatch(str(relevance)):
        raise DataError(
            f"{where}: relevance is {show(relevance)}; it must be an integer of at most 9 digits"
        )
    return Judgement(
        where,
        check_id(f"{where}: query id", query_id),
        check_id(f"{where}: doc id", doc_id),
        int(str(relevance)),
    )


def _read_from_hub(name: str, split: str, revision: str | None) -> Iterator[Judgement]:
    for number, row in read_hub(name, None, split, revision, _HUB_TYPES):
        where = f"hf:{name}:{number}"
        yield _check(where, row["query-id"], row["corpus-id"], row["score"])
