"""Runs in TREC's form and as JSON: reading, checking, writing."""

from __future__ import annotations

import json
import re
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

from sparse_ir.data.lines import make_object, read_lines, split_columns
from sparse_ir.data.records import (
    FORBIDDEN_IN_ID,
    Run,
    check_id,
    check_score,
    check_trec_id,
    rank_hits,
    show,
)
from sparse_ir.errors import ConfigError, DataError
from sparse_ir.storage import files

_ENCODED = re.compile(r"[\s%]")
_JSON_FORM = "{query_id: {doc_id: score}}"
_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")


def read_run(path: str | Path, *, as_written: bool = False) -> Run:
    """A run ``{query_id: [(doc_id, score), …]}``, ranked as ``rank_hits`` does.

    Reads TREC files (``query_id Q0 doc_id rank score tag``, plain or ``.gz``) and, if the name ends
    in ``.json`` or ``.json.gz``, one object ``{query_id: {doc_id: score}}``. As in trec_eval, only
    the scores decide the order; ranks and the order of lines are ignored, unless ``as_written``
    asks for the order of the file. A TREC file cannot hold a query without hits.

    Raises:
        DataError: there is no such file, a line does not have six columns, a score is not a finite
            number, or a query finds a document twice.
    """
    path = Path(path)
    if not path.is_file():
        what = "no such run"
        if path.exists():
            what = "not a regular file"
        raise DataError(
            f"{path}: {what}; it must be a TREC file (plain or .gz), or a JSON file (.json or "
            ".json.gz)"
        )
    if path.name.endswith((".json", ".json.gz")):
        scores_of_queries = _parse_json_run(path)
    else:
        scores_of_queries = _parse_trec_run(path)
    run = {}
    for query_id, scores in scores_of_queries.items():
        hits = list(scores.items())
        if not as_written:
            hits = rank_hits(hits)
        run[query_id] = hits
    return run


def write_run(
    path: str | Path, run: Run, tag: str = "sparse_ir", *, encode_ids: bool = False
) -> None:
    """Write a run as a TREC file: ``query_id Q0 doc_id rank score tag``, ranks from 1.

    The file appears whole or not at all. Scores are not rounded: whole numbers have six decimals,
    others as many digits as restore the same float32 (and float64). Queries without hits leave no
    line, because the format has no place for them: ``read_run`` does not return them, and measures
    over all judged queries count them as 0.

    ``encode_ids`` writes white space and "%" in ids as percent codes (RFC 3986): "a b" as "a%20b".

    Raises:
        DataError: a score is NaN or beyond float32, an id has white space and ``encode_ids`` is
            False, a query finds a document twice, or its hits are not in the order of
            ``rank_hits``.
        ConfigError: the tag has white space, or the name promises another format (``.gz``,
            ``.json``).
    """
    path = Path(path)
    check_run_target(path, tag)
    with files.atomic_writer(path) as stream:
        for line in trec_lines(run, tag, encode_ids=encode_ids):
            stream.write(line + "\n")


def trec_lines(run: Run, tag: str = "sparse_ir", *, encode_ids: bool = False) -> Iterator[str]:
    """The lines of ``write_run``; raises ``DataError`` as it does."""
    for query_id, hits in run.items():
        _check_hits(query_id, hits)
        shown_query = _column("run: query id", query_id, encode_ids)
        for rank, (doc_id, score) in enumerate(hits, 1):
            shown = _column(f"run, query {query_id!r}: doc id", doc_id, encode_ids)
            yield f"{shown_query} Q0 {shown} {rank} {_format_score(score)} {tag}"


def _column(what: str, record_id: str, encode: bool) -> str:
    """The id as a column of a TREC file."""
    if encode:
        return _ENCODED.sub(lambda match: urllib.parse.quote(match[0]), record_id)
    if FORBIDDEN_IN_ID.search(record_id):
        raise DataError(
            f"{what} is {show(record_id)}; it must be without white space, or be written with "
            "percent codes (--encode-ids)"
        )
    return record_id


def check_run_target(path: Path, tag: str) -> None:
    """Raise ``ConfigError`` if no run can be written under this name; for use before a search."""
    if path.is_dir():
        raise ConfigError(f"{path} is a folder; it must be the name of a file")
    if path.suffix in {".gz", ".json"}:
        raise ConfigError(
            f"{path}: runs are plain TREC text; the name must not end in {path.suffix}"
        )
    if not tag or FORBIDDEN_IN_ID.search(tag):
        raise ConfigError(f"tag of the run is {tag!r}; it must be one word without white space")


def _parse_trec_run(path: Path) -> dict[str, dict[str, float]]:
    run: dict[str, dict[str, float]] = {}
    for number, line in read_lines(path):
        where = f"{path}:{number}"
        columns = split_columns(line)
        if len(columns) != 6:
            raise DataError(
                f"{where}: {len(columns)} columns, {show(line)}; they must be query_id Q0 doc_id "
                "rank score tag"
            )
        query_id, _, doc_id, _, score, _ = columns
        hits = run.setdefault(check_trec_id(f"{where}: query id", query_id), {})
        if check_trec_id(f"{where}: doc id", doc_id) in hits:
            raise DataError(
                f"{where}: query {query_id!r} finds document {doc_id!r} twice; it must be there "
                "once"
            )
        hits[doc_id] = _parse_score(where, score)
    return run


def _parse_score(where: str, text: str) -> float:
    # float() would also take "1_0", "nan", "infinity" and digits of other scripts
    if not _NUMBER.fullmatch(text):
        raise DataError(f"{where}: score is {show(text)}; it must be a finite number")
    return check_score(where, float(text))


def _parse_json_run(path: Path) -> dict[str, dict[str, float]]:
    text = "\n".join(line for _, line in read_lines(path))
    try:
        run = json.loads(text, object_pairs_hook=make_object)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not a JSON run ({error}); it must be {_JSON_FORM}") from error
    if not isinstance(run, dict):
        raise DataError(f"{path}: not a JSON object but {show(run)}; it must be {_JSON_FORM}")
    return {query_id: _check_json_hits(path, query_id, hits) for query_id, hits in run.items()}


def _check_json_hits(path: Path, query_id: str, hits: object) -> dict[str, float]:
    where = f"{path}: query {show(query_id)}"
    check_id(f"{path}: query id", query_id)
    if not isinstance(hits, dict):
        raise DataError(
            f"{where}: the hits are {show(hits)}; they must be an object {{doc_id: score}}"
        )
    scores = {}
    for doc_id, score in hits.items():
        check_id(f"{where}: doc id", doc_id)
        scores[doc_id] = check_score(where, score)
    return scores


def _check_hits(query_id: str, hits: list[tuple[str, float]]) -> None:
    check_id("run: query id", query_id)
    where = f"run, query {query_id!r}"
    seen: set[str] = set()
    for doc_id, score in hits:
        check_id(f"{where}: doc id", doc_id)
        check_score(where, float(score))
        if doc_id in seen:
            raise DataError(f"{where}: document {doc_id!r} appears twice; it must appear once")
        seen.add(doc_id)
    for rank, (hit, expected) in enumerate(zip(hits, rank_hits(hits), strict=True), 1):
        if hit != expected:
            raise DataError(
                f"{where}: rank {rank} is {hit}; it must be {expected}, as rank_hits orders hits "
                "(by score as float32, then by doc_id, both descending)"
            )


def _format_score(score: float) -> str:
    score = float(score)
    if score.is_integer():
        return f"{score:.6f}"
    return repr(score)
