"""Hard negatives: for each training query, what a search engine finds and nobody has judged
relevant.

The finder is BM25, any index of this package, or a dense teacher searched exactly. A record is
written for each query as soon as its block is done, so a killed run goes on where it stopped and
ends with the same bytes.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from sparse_ir.data.records import Query, Run, rank_hits
from sparse_ir.errors import ConfigError, DataError, IndexMismatch
from sparse_ir.indexing import manifest
from sparse_ir.indexing.manifest import DocIds
from sparse_ir.storage import files
from sparse_ir.training.teachers.dense import DenseTeacher
from sparse_ir.training.training_source import TrainingSource, is_blank

Miner = Literal["bm25", "index", "dense"]
Hits = list[tuple[str, float]]
Find = Callable[[Sequence[Query]], Run]
FORMAT = 1
QUERIES_PER_BLOCK = 1000


class Rules(NamedTuple):
    """What becomes of a query's hits; see ``mine``."""

    negatives: int
    skip: int
    consistency: int | None
    margin: float | None

    def check(self, depth: int) -> None:
        """Raises ``ConfigError``."""
        if self.negatives < 1 or self.skip < 0 or depth < self.negatives + self.skip:
            raise ConfigError(
                f"depth {depth}, skip {self.skip}, negatives {self.negatives}: "
                "allowed are at least 1 "
                "negative, no negative skip, and a depth of at least skip + "
                "negatives"
            )
        if self.consistency is not None and not 1 <= self.consistency <= depth:
            raise ConfigError(
                f"consistency is {self.consistency}; allowed: 1 to the depth of {depth}"
            )
        if self.margin is not None and not 0 <= self.margin < 1:
            raise ConfigError(f"margin is {self.margin}; allowed: 0 or more and less than 1")


def judge(
    hits: Hits, positives: set[str], usable: Callable[[str], bool], rules: Rules
) -> tuple[Hits, str | None]:
    """The negatives among a query's hits, best first, and why the query is rejected (None: it is
    not).
    """
    places = [place for place, (doc_id, _) in enumerate(hits) if doc_id in positives]
    if rules.consistency is not None and (not places or places[0] >= rules.consistency):
        return [], f"no positive among the first {rules.consistency} hits"
    ceiling = float("inf")
    if rules.margin is not None and places:
        best = hits[places[0]][1]
        # below the positive, also where scores are negative
        ceiling = best - rules.margin * abs(best)
    found = [
        (doc_id, score)
        for doc_id, score in hits[rules.skip :]
        if doc_id not in positives and score <= ceiling and usable(doc_id)
    ][: rules.negatives]
    return found, None if found else "no hit is left as a negative"


def check_same_corpus(folder: Path, source: TrainingSource, input: str) -> None:
    """Raise ``IndexMismatch`` for an index of other documents: their hits
    would mean nothing here.
    """
    known = set(source.doc_ids or ())
    strange = next((doc_id for doc_id in DocIds(folder) if doc_id not in known), None)
    if strange is not None:
        raise IndexMismatch(
            f"{folder}: its document {strange!r} is not in the corpus of {input}; "
            "give an index of "
            "this corpus"
        )
    count = manifest.read_manifest(folder)["counts"]["documents"]
    if count != len(known):
        raise IndexMismatch(
            f"{folder} is an index of {count} documents, and the corpus of "
            f"{input} has {len(known)}; "
            "give an index of this corpus"
        )


def dense_finder(teacher: DenseTeacher, source: TrainingSource, depth: int) -> Find:
    """Exact search over all documents of the source, 8192 at a time."""
    ids = list(source.doc_ids or ())

    def find(asked: Sequence[Query]) -> Run:
        texts = [query.text for query in asked]
        kept: list[Hits] = [[] for _ in asked]
        for start in range(0, len(ids), 8192):
            scores_QD = teacher.scores(texts, source.documents[start : start + 8192])
            count = min(depth, scores_QD.shape[1])
            best = np.argpartition(-scores_QD, count - 1, axis=1)[:, :count]
            for row, columns in enumerate(best):
                kept[row] += [
                    (ids[start + column], float(scores_QD[row, column]))
                    for column in columns.tolist()
                ]
                kept[row] = rank_hits(kept[row])[:depth]
        return {query.query_id: hits for query, hits in zip(asked, kept, strict=True)}

    return find


def mine_block(
    source: TrainingSource, block: range, find: Find, rules: Rules
) -> Iterator[dict[str, Any]]:
    ids = source.doc_ids
    assert ids is not None  # a BEIR folder has them
    position = {doc_id: number for number, doc_id in enumerate(ids)}
    run = find([Query(source.query_ids[row], source.queries[row]) for row in block])
    for row in block:
        positives = [ids[document] for document in source.positives[row].tolist()]
        texts = {source.documents[document] for document in source.positives[row].tolist()}

        def usable(doc_id: str, texts: set[str] = texts) -> bool:
            text = source.documents[position[doc_id]]
            return not is_blank(text) and text not in texts

        found, reason = judge(run.get(source.query_ids[row], []), set(positives), usable, rules)
        record = {"query_id": source.query_ids[row]}
        if reason is not None:
            yield {**record, "reason": reason}
        else:
            yield {
                **record,
                "positives": positives,
                "negatives": [doc_id for doc_id, _ in found],
                "scores": [round(score, 6) for _, score in found],
            }


def append_records(partial: Path, records: Iterator[dict[str, Any]]) -> None:
    text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    try:
        with partial.open("a", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as error:  # a full disk does not say where
        raise OSError(error.errno, error.strerror, str(partial)) from error


def resume_output(partial: Path, header: dict[str, Any]) -> int:
    """How many queries are done; a line that a kill cut in half is taken back. Begins the file
    where none is done.
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
            f"{partial} was begun with other input or options; delete it to begin "
            "anew, or give the old "
            "ones to go on"
        )
    if len(whole) < len(raw):
        os.truncate(partial, len(whole))
    return len(lines) - 1


def finish_output(
    partial: Path, output: Path, header: dict[str, Any], input: str
) -> dict[str, Any]:
    """The three files, the negatives last: where they are, the others are too.

    Raises ``DataError`` where no query has a negative, and leaves what is there.
    """
    rejected = output.with_name(output.name + ".rejected.jsonl")
    found = Counter(reason for _, reason in _read_records(partial))
    reasons = {reason: count for reason, count in found.items() if reason is not None}
    if not found[None]:
        partial.unlink()
        causes = ", ".join(f"{reason}: {count}" for reason, count in reasons.items())
        raise DataError(
            f"none of the {found.total()} queries of {input} has a negative "
            f"({causes}), and {output} is "
            "not written; allowed: another miner, or options that leave some"
        )
    counts = {"queries": found.total(), "kept": found[None], "rejected": reasons}
    with files.atomic_writer(output) as kept, files.atomic_writer(rejected) as others:
        for line, reason in _read_records(partial):
            (kept if reason is None else others).write(line)
        files.write_json(output.with_name(output.name + ".json"), {**header, **counts})
    partial.unlink()
    return {"negatives": str(output), **counts}


def _read_records(partial: Path) -> Iterator[tuple[str, str | None]]:
    """Each line, and why its query is rejected (None: it is not)."""
    with partial.open(encoding="utf-8") as stream:
        next(stream)
        for line in stream:
            yield line, json.loads(line).get("reason")
