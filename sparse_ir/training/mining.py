"""Hard negatives: documents that a search finds for a training query and that nobody judged.

The search is BM25, any index of this package, or a dense teacher. Each block of queries is written
as soon as it is done, so that a killed command goes on where it stopped and ends with the same
bytes.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from sparse_ir.data.records import Query, Run, rank_hits
from sparse_ir.errors import ConfigError, DataError, IndexMismatch
from sparse_ir.indexing import manifest
from sparse_ir.indexing.manifest import DocIds
from sparse_ir.storage import files
from sparse_ir.training.sources.training_source import TrainingSource, is_blank, pick, positions_of
from sparse_ir.training.teachers.dense import DenseTeacher

Miner = Literal["bm25", "index", "dense"]
ScoredIds = list[tuple[str, float]]  # (doc_id, score), best first
Find = Callable[[Sequence[Query]], Run]
NEGATIVES_FORMAT = 1
QUERIES_PER_BLOCK = 1000
_DOCUMENTS_PER_BLOCK = 8192


class Rules(NamedTuple):
    """Which hits of a query become negatives; ``commands.training.mine`` explains the options."""

    negatives: int
    skip: int
    consistency: int | None
    margin: float | None

    def check(self, depth: int) -> None:
        """Raise ``ConfigError`` if a rule makes no sense for this many hits."""
        if self.negatives < 1:
            raise ConfigError(f"negatives is {self.negatives} but must be at least 1")
        if self.skip < 0:
            raise ConfigError(f"skip is {self.skip} but must be at least 0")
        if depth < self.negatives + self.skip:
            raise ConfigError(
                f"depth is {depth} but must be at least skip + negatives "
                f"({self.skip + self.negatives})"
            )
        if self.consistency is not None and not 1 <= self.consistency <= depth:
            raise ConfigError(
                f"consistency is {self.consistency} but must be 1 to the depth of {depth}"
            )
        if self.margin is not None and not 0 <= self.margin < 1:
            raise ConfigError(f"margin is {self.margin} but must be at least 0 and less than 1")


def judge(
    hits: ScoredIds, positives: set[str], is_usable: Callable[[str], bool], rules: Rules
) -> tuple[ScoredIds, str | None]:
    """The negatives among a query's hits, best first, and why the query is rejected, else None."""
    places = [place for place, (doc_id, _) in enumerate(hits) if doc_id in positives]
    if rules.consistency is not None and (not places or places[0] >= rules.consistency):
        return [], f"no positive among the first {rules.consistency} hits"
    ceiling = float("inf")
    if rules.margin is not None and places:
        best = hits[places[0]][1]
        ceiling = best - rules.margin * abs(best)  # below ``best`` even if scores are negative
    negatives = []
    for doc_id, score in hits[rules.skip :]:
        if doc_id not in positives and score <= ceiling and is_usable(doc_id):
            negatives.append((doc_id, score))
    if not negatives:
        return [], "no hit is left as a negative"
    return negatives[: rules.negatives], None


def check_same_corpus(folder: Path, source: TrainingSource, input: str) -> None:
    """Raise ``IndexMismatch`` for an index of other documents than those of ``source``."""
    known = set(source.doc_ids or ())
    for doc_id in DocIds(folder):
        if doc_id not in known:
            raise IndexMismatch(
                f"{folder}: its document {doc_id!r} is not in the corpus of {input}; give an index "
                "of this corpus"
            )
    count = manifest.read_manifest(folder)["counts"]["documents"]
    if count != len(known):
        raise IndexMismatch(
            f"{folder} is an index of {count} documents, but the corpus of {input} has "
            f"{len(known)}; give an index of this corpus"
        )


def dense_finder(teacher: DenseTeacher, source: TrainingSource, depth: int) -> Find:
    """Exact search of ``depth`` hits over all documents of the source, in blocks."""
    doc_ids = list(source.doc_ids or ())

    def find(queries: Sequence[Query]) -> Run:
        texts = [query.text for query in queries]
        run: Run = {query.query_id: [] for query in queries}
        for start in range(0, len(doc_ids), _DOCUMENTS_PER_BLOCK):
            block = slice(start, start + _DOCUMENTS_PER_BLOCK)
            scores_QD = teacher.scores(texts, source.documents[block])
            for query, scores_D in zip(queries, scores_QD, strict=True):
                hits = run[query.query_id]
                count = min(depth, len(scores_D))
                for column in np.argpartition(-scores_D, count - 1)[:count].tolist():
                    hits.append((doc_ids[start + column], float(scores_D[column])))
                run[query.query_id] = rank_hits(hits)[:depth]
        return run

    return find


def mine_block(
    source: TrainingSource, block: range, find: Find, rules: Rules
) -> Iterator[dict[str, Any]]:
    """One record for each query of the block: its negatives, or the reason of its rejection.

    Args:
        source: A BEIR folder's training pairs.
        block: Positions of queries in the source.
        find: Searches with the queries.
        rules: Which hits become negatives.
    """
    doc_ids = source.doc_ids
    assert doc_ids is not None  # a BEIR folder has them
    position = positions_of(doc_ids)
    run = find([Query(source.query_ids[row], source.queries[row]) for row in block])
    for row in block:
        documents = source.positives[row].tolist()
        positives = pick(doc_ids, documents)
        texts = set(pick(source.documents, documents))

        def is_usable(doc_id: str, texts: set[str] = texts) -> bool:
            text = source.documents[position[doc_id]]
            return not is_blank(text) and text not in texts

        query_id = source.query_ids[row]
        negatives, reason = judge(run.get(query_id, []), set(positives), is_usable, rules)
        if reason is not None:
            yield {"query_id": query_id, "reason": reason}
            continue
        yield {
            "query_id": query_id,
            "positives": positives,
            "negatives": [doc_id for doc_id, _ in negatives],
            "scores": [round(score, 6) for _, score in negatives],
        }


def append_records(partial: Path, records: Iterable[dict[str, Any]]) -> None:
    """Append records to the partial file and wait until they are on disk.

    Raises ``OSError``, naming the file, if the disk is full.
    """
    lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
    try:
        with partial.open("a", encoding="utf-8") as stream:
            stream.writelines(lines)
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as error:  # the error of a full disk names no file
        raise OSError(error.errno, error.strerror, str(partial)) from error


def resume_output(partial: Path, header: dict[str, Any]) -> int:
    """Open the partial file, or begin it, and return the number of queries that are done.

    A line that a kill cut in half is removed. Raises ``ConfigError`` if the file was begun with
    another header.
    """
    header = json.loads(json.dumps(header))
    raw = partial.read_bytes() if partial.exists() else b""
    whole = raw[: raw.rfind(b"\n") + 1]
    lines = whole.splitlines()
    if len(lines) < 2:
        with files.atomic_writer(partial) as stream:
            stream.write(json.dumps(header) + "\n")
        return 0
    if json.loads(lines[0]) != header:
        raise ConfigError(
            f"{partial} was begun with other input or options; delete it to begin anew, or give "
            "the old ones to go on"
        )
    if len(whole) < len(raw):
        os.truncate(partial, len(whole))
    return len(lines) - 1


def finish_output(
    partial: Path, output: Path, header: dict[str, Any], input: str
) -> dict[str, Any]:
    """Write negatives, rejected queries and provenance, the negatives last; return the counts.

    Raises ``DataError`` if no query has a negative; existing files then stay as they are.
    """
    reasons = Counter(reason for _, reason in _read_records(partial))
    total = reasons.total()
    kept = reasons.pop(None, 0)
    if kept == 0:
        partial.unlink()
        causes = ", ".join(f"{reason}: {count}" for reason, count in reasons.items())
        raise DataError(
            f"none of the {total} queries of {input} has a negative ({causes}), so {output} is not "
            "written; use another miner or other options"
        )
    counts = {"queries": total, "kept": kept, "rejected": dict(reasons)}
    rejected = output.with_name(output.name + ".rejected.jsonl")
    with files.atomic_writer(output) as kept_lines, files.atomic_writer(rejected) as other_lines:
        for line, reason in _read_records(partial):
            stream = kept_lines if reason is None else other_lines
            stream.write(line)
        files.write_json(output.with_name(output.name + ".json"), header | counts)
    partial.unlink()
    return {"negatives": str(output)} | counts


def _read_records(partial: Path) -> Iterator[tuple[str, str | None]]:
    """Each line, and the reason why its query is rejected, else None."""
    with partial.open(encoding="utf-8") as stream:
        next(stream)  # the header
        for line in stream:
            yield line, json.loads(line).get("reason")
