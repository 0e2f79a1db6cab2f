"""Runs in TREC's form and as JSON: reading, checking, writing."""

from __future__ import annotations

import json
from pathlib import Path

from sparse_ir.data.lines import make_object, read_lines
from sparse_ir.data.records import FORBIDDEN_IN_ID, Run, check_id, check_score, rank_hits, show
from sparse_ir.errors import ConfigError, DataError
from sparse_ir.storage import files


def read_run(path: str | Path, *, as_written: bool = False) -> Run:
    """A run ``{query_id: [(doc_id, score), …]}``, each list in the order of ``rank_hits``, or that
    of the file.

    Reads TREC files (``query_id Q0 doc_id rank score tag``, plain or ``.gz``) and, when the name
    ends in ``.json`` or ``.json.gz``, one object ``{query_id: {doc_id: score}}``. As in trec_eval
    the order comes from the scores alone: ranks and the order of lines are ignored. A query without
    hits cannot stand in a TREC file.

    Raises:
        DataError: no such file, a line without six columns, a score that is no finite number, or a
            document that one
            query finds twice.
    """
    path = Path(path)
    if not path.is_file():
        what = "not a regular file" if path.exists() else "no such run"
        raise DataError(
            f"{path}: {what}, allowed: a TREC file (plain or .gz), or a JSON file "
            "(.json or .json.gz)"
        )
    parse = _parse_json_run if path.name.endswith((".json", ".json.gz")) else _parse_trec_run
    order = list if as_written else rank_hits
    return {query_id: order(scores.items()) for query_id, scores in parse(path).items()}


def write_run(path: str | Path, run: Run, tag: str = "sparse_ir") -> None:
    """Write a run as a TREC file: ``query_id Q0 doc_id rank score tag``, single spaces, ranks from
    1.

    The file appears whole or not at all. Scores are not rounded: whole numbers have six decimals,
    others as many digits as bring the same float32 (and float64) back. Queries without hits leave
    no line, for the format knows none: ``read_run`` does not give them back, and measures over all
    judged queries count them as 0.

    Raises:
        DataError: a score that is NaN or beyond float32, an id with white space, a document twice
            for one query, or
            hits that are not in the order of ``rank_hits``.
        ConfigError: a tag with white space, or a name that promises another format (``.gz``,
            ``.json``).
    """
    path = Path(path)
    check_run_target(path, tag)
    with files.atomic_writer(path) as stream:
        for query_id, hits in run.items():
            _check_hits(query_id, hits)
            for rank, (doc_id, score) in enumerate(hits, 1):
                stream.write(f"{query_id} Q0 {doc_id} {rank} {_format_score(score)} {tag}\n")


def check_run_target(path: Path, tag: str) -> None:
    """Raise ``ConfigError`` when a run cannot be written under this name: to be asked before a long
    search.
    """
    if path.is_dir():
        raise ConfigError(f"{path} is a folder, allowed: the name of a file")
    if path.suffix in {".gz", ".json"}:
        raise ConfigError(
            f"{path}: runs are plain TREC text, allowed: a name without {path.suffix} at the end"
        )
    if not tag or FORBIDDEN_IN_ID.search(tag):
        raise ConfigError(f"tag of the run, {tag!r}, allowed: one word without white space")


def _parse_trec_run(path: Path) -> dict[str, dict[str, float]]:
    run: dict[str, dict[str, float]] = {}
    for number, line in read_lines(path):
        columns = line.split()
        if len(columns) != 6:
            raise DataError(
                f"{path}:{number}: {len(columns)} columns, {show(line)}, "
                "allowed: query_id Q0 doc_id rank score tag"
            )
        query_id, _, doc_id, _, score, _ = columns
        where = f"{path}:{number}"
        hits = run.setdefault(check_id(f"{where}: query id", query_id), {})
        if check_id(f"{where}: doc id", doc_id) in hits:
            raise DataError(
                f"{where}: query {query_id!r} finds document {doc_id!r} twice, allowed: once"
            )
        hits[doc_id] = _parse_score(where, score)
    return run


def _parse_json_run(path: Path) -> dict[str, dict[str, float]]:
    text = "\n".join(line for _, line in read_lines(path))
    try:
        run = json.loads(text, object_pairs_hook=make_object)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{path}: not a JSON run ({error}), allowed: {{query_id: {{doc_id: score}}}}"
        ) from error
    if not isinstance(run, dict):
        raise DataError(
            f"{path}: not a JSON object but {show(run)}, allowed: {{query_id: {{doc_id: score}}}}"
        )
    return {query_id: _check_json_hits(path, query_id, hits) for query_id, hits in run.items()}


def _check_json_hits(path: Path, query_id: str, hits: object) -> dict[str, float]:
    where = f"{path}: query {show(query_id)}"
    check_id(f"{path}: query id", query_id)
    if not isinstance(hits, dict):
        raise DataError(f"{where}: the hits are {show(hits)}, allowed: an object {{doc_id: score}}")
    return {
        check_id(f"{where}: doc id", doc_id): check_score(where, score)
        for doc_id, score in hits.items()
    }


def _parse_score(where: str, text: str) -> float:
    try:
        score = float(text)
    except ValueError:
        raise DataError(f"{where}: score is {show(text)}, allowed: a finite number") from None
    return check_score(where, score)


def _check_hits(query_id: str, hits: list[tuple[str, float]]) -> None:
    check_id("run: query id", query_id)
    where = f"run, query {query_id!r}"
    seen: set[str] = set()
    for doc_id, score in hits:
        check_id(f"{where}: doc id", doc_id)
        check_score(where, float(score))
        if doc_id in seen:
            raise DataError(f"{where}: document {doc_id!r} is there twice, allowed: once")
        seen.add(doc_id)
    for rank, (is_there, belongs) in enumerate(zip(hits, rank_hits(hits), strict=True), 1):
        if is_there != belongs:
            raise DataError(
                f"{where}: rank {rank} is {is_there}, allowed: {belongs} (hits in the "
                "order of rank_hits: "
                "by score as float32, then by doc_id, both descending)"
            )


def _format_score(score: float) -> str:
    score = float(score)
    return f"{score:.6f}" if score.is_integer() else repr(score)
