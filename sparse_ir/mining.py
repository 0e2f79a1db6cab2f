"""Hard negatives: for each training query, what a search engine finds and nobody has judged relevant.

The finder is BM25, any index of this package, or a dense teacher searched exactly. A record is written for each query
as soon as its block is done, so a killed run goes on where it stopped and ends with the same bytes.
Next file to read: ``recipe``.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from tqdm import tqdm

from sparse_ir import data, files, indexes, lucene, pairs, searcher
from sparse_ir.errors import ConfigError, DataError, IndexMismatch
from sparse_ir.teachers import DenseTeacher

Miner = Literal["bm25", "index", "dense"]
Hits = list[tuple[str, float]]
Find = Callable[[Sequence[data.Query]], data.Run]

FORMAT = 1
_BLOCK = 1000


class Rules(NamedTuple):
    """What becomes of a query's hits; see ``mine``."""

    negatives: int
    skip: int
    consistency: int | None
    margin: float | None

    def check(self, depth: int) -> None:
        """Raises ``ConfigError``."""
        if self.negatives < 1 or self.skip < 0 or depth < self.negatives + self.skip:
            raise ConfigError(f"depth {depth}, skip {self.skip}, negatives {self.negatives}: allowed are at least 1 "
                              "negative, no negative skip, and a depth of at least skip + negatives")
        if self.consistency is not None and not 1 <= self.consistency <= depth:
            raise ConfigError(f"consistency is {self.consistency}; allowed: 1 to the depth of {depth}")
        if self.margin is not None and not 0 <= self.margin < 1:
            raise ConfigError(f"margin is {self.margin}; allowed: 0 or more and less than 1")


def mine(
    input: str, output: Path, *, miner: Miner = "bm25", split: str = "train", model: str | None = None,
    index: Path | None = None, depth: int = 100, negatives: int = 30, skip: int = 0, consistency: int | None = None,
    margin: float | None = None, pooling: str | None = None, threads: int = 1, cache: Path | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Mine hard negatives for the training queries of a BEIR folder; run again after a kill, it goes on.

    Writes OUTPUT (JSONL: query_id, positives, negatives best first, their scores), OUTPUT.rejected.jsonl (query_id and
    reason) and OUTPUT.json (provenance and counts). Known positives, texts equal to one and empty documents are never
    negatives. An index of another corpus, and options that leave no query a negative, are errors; files that are there
    stay as they are.

    Args:
        input: BEIR folder with corpus, queries and qrels.
        output: File for the negatives, .jsonl; the configuration of a training run names it.
        miner: bm25, index (an index of this package), or dense (a bi-encoder, searched exactly).
        split: Which qrels.
        model: Model of the miner dense.
        index: Index of the miner index, of this same corpus; with bm25 such an index too, which is built otherwise.
        depth: Hits looked at for each query.
        negatives: At most so many negatives for each query.
        skip: Leave out so many of the best hits, which may be relevant and unjudged.
        consistency: Keep a query only if a positive is among its first so many hits.
        margin: Leave out hits that score above the best positive within the depth, less so large a share of its score.
        pooling: Pooling of the miner dense's model where its folder states none: cls, mean, max, lasttoken ...
        threads: Threads that search.
        cache: Folder with the vectors of the miner dense.
        progress: Show a progress bar.
    """
    output, rules = Path(output), Rules(negatives, skip, consistency, margin)
    rules.check(depth)
    _check_miner(miner, model, index, pooling)
    source = pairs.read_source(input, split=split, allow_missing=True)
    with files.write_lock(output), _finder(
            miner, input, source, model, index, depth, threads, cache, pooling) as (find, facts):
        header = {"format": FORMAT, "input": source.fingerprint, "miner": facts, "depth": depth, **rules._asdict()}
        partial = output.with_name(f".{output.name}.partial")
        done = _resume(partial, header)
        with tqdm(total=len(source.queries), initial=done, desc="mining", unit=" queries",
                  disable=None if progress else True) as bar:
            for start in range(done, len(source.queries), _BLOCK):
                block = range(start, min(start + _BLOCK, len(source.queries)))
                _append(partial, _mine_block(source, block, find, rules))
                bar.update(len(block))
        return _finish(partial, output, header, input)


def judge(hits: Hits, positives: set[str], usable: Callable[[str], bool], rules: Rules) -> tuple[Hits, str | None]:
    """The negatives among a query's hits, best first, and why the query is rejected (None: it is not)."""
    places = [place for place, (doc_id, _) in enumerate(hits) if doc_id in positives]
    if rules.consistency is not None and (not places or places[0] >= rules.consistency):
        return [], f"no positive among the first {rules.consistency} hits"
    ceiling = float("inf")
    if rules.margin is not None and places:
        best = hits[places[0]][1]
        ceiling = best - rules.margin * abs(best)  # below the positive, also where scores are negative
    found = [(doc_id, score) for doc_id, score in hits[rules.skip :]
             if doc_id not in positives and score <= ceiling and usable(doc_id)][: rules.negatives]
    return found, None if found else "no hit is left as a negative"


def _check_miner(miner: Miner, model: str | None, index: Path | None, pooling: str | None) -> None:
    if (miner == "dense") != (model is not None):
        raise ConfigError(f"miner {miner} and model {model}: the miner dense needs a model, and no other takes one")
    if miner == "index" and index is None:
        raise ConfigError("the miner index needs an index")
    if pooling is not None and miner != "dense":
        raise ConfigError(f"pooling is for the miner dense, not {miner}")
    if miner == "dense" and index is not None:
        raise ConfigError("the miner dense takes no index")


@contextlib.contextmanager
def _finder(
    miner: Miner, input: str, source: pairs.Source, model: str | None, index: Path | None, depth: int, threads: int,
    cache: Path | None, pooling: str | None,
) -> Iterator[tuple[Find, dict[str, Any]]]:
    """The function that searches for a block of queries, and the miner's provenance."""
    if model is not None:
        teacher = DenseTeacher(model, cache=cache, pooling=pooling)  # type: ignore[arg-type]
        yield _dense_finder(teacher, source, depth), teacher.fingerprint
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(index) if index is not None else Path(scratch) / "bm25"
        if index is None:
            indexes.build_bm25_index(lambda: data.read_documents(input), folder, lucene.Bm25(0.9, 0.4))
        with searcher.Index(folder) as opened:
            _check_corpus(folder, source, input)
            facts = {key: value for key, value in indexes.read_manifest(folder).items()
                     if key in ("kind", "counts", "rule", "encoder", "bm25", "query_encoder")}
            yield lambda asked: opened.search_batch(asked, depth, threads=threads)[0], facts


def _check_corpus(folder: Path, source: pairs.Source, input: str) -> None:
    """Raise ``IndexMismatch`` for an index of other documents: their hits would mean nothing here."""
    known = set(source.doc_ids or ())
    strange = next((doc_id for doc_id in indexes.DocIds(folder) if doc_id not in known), None)
    if strange is not None:
        raise IndexMismatch(f"{folder}: its document {strange!r} is not in the corpus of {input}; give an index of "
                            "this corpus")
    count = indexes.read_manifest(folder)["counts"]["documents"]
    if count != len(known):
        raise IndexMismatch(f"{folder} is an index of {count} documents, and the corpus of {input} has {len(known)}; "
                            "give an index of this corpus")


def _dense_finder(teacher: DenseTeacher, source: pairs.Source, depth: int) -> Find:
    """Exact search over all documents of the source, 8192 at a time."""
    ids = list(source.doc_ids or ())

    def find(asked: Sequence[data.Query]) -> data.Run:
        texts = [query.text for query in asked]
        kept: list[Hits] = [[] for _ in asked]
        for start in range(0, len(ids), 8192):
            scores_QD = teacher.scores(texts, source.documents[start : start + 8192])
            count = min(depth, scores_QD.shape[1])
            best = np.argpartition(-scores_QD, count - 1, axis=1)[:, :count]
            for row, columns in enumerate(best):
                kept[row] += [(ids[start + column], float(scores_QD[row, column])) for column in columns.tolist()]
                kept[row] = data.rank_hits(kept[row])[:depth]
        return {query.query_id: hits for query, hits in zip(asked, kept, strict=True)}

    return find


def _mine_block(source: pairs.Source, block: range, find: Find, rules: Rules) -> Iterator[dict[str, Any]]:
    ids = source.doc_ids
    assert ids is not None  # a BEIR folder has them
    position = {doc_id: number for number, doc_id in enumerate(ids)}
    run = find([data.Query(source.query_ids[row], source.queries[row]) for row in block])
    for row in block:
        positives = [ids[document] for document in source.positives[row].tolist()]
        texts = {source.documents[document] for document in source.positives[row].tolist()}

        def usable(doc_id: str, texts: set[str] = texts) -> bool:
            text = source.documents[position[doc_id]]
            return not pairs.is_blank(text) and text not in texts

        found, reason = judge(run.get(source.query_ids[row], []), set(positives), usable, rules)
        record = {"query_id": source.query_ids[row]}
        if reason is not None:
            yield {**record, "reason": reason}
        else:
            yield {**record, "positives": positives, "negatives": [doc_id for doc_id, _ in found],
                   "scores": [round(score, 6) for _, score in found]}


def _append(partial: Path, records: Iterator[dict[str, Any]]) -> None:
    text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    try:
        with partial.open("a", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as error:  # a full disk does not say where
        raise OSError(error.errno, error.strerror, str(partial)) from error


def _resume(partial: Path, header: dict[str, Any]) -> int:
    """How many queries are done; a line that a kill cut in half is taken back. Begins the file where none is done."""
    header = json.loads(json.dumps(header))
    raw = partial.read_bytes() if partial.exists() else b""
    whole = raw[: raw.rfind(b"\n") + 1]
    lines = whole.splitlines()
    if len(lines) < 2:
        with files.atomic_writer(partial) as stream:
            stream.write(json.dumps(header) + "\n")
        return 0
    if json.loads(lines[0]) != header:
        raise ConfigError(f"{partial} was begun with other input or options; delete it to begin anew, or give the old "
                          "ones to go on")
    if len(whole) < len(raw):
        os.truncate(partial, len(whole))
    return len(lines) - 1


def _finish(partial: Path, output: Path, header: dict[str, Any], input: str) -> dict[str, Any]:
    """The three files, the negatives last: where they are, the others are too.

    Raises ``DataError`` where no query has a negative, and leaves what is there.
    """
    rejected = output.with_name(output.name + ".rejected.jsonl")
    found = Counter(reason for _, reason in _read_records(partial))
    reasons = {reason: count for reason, count in found.items() if reason is not None}
    if not found[None]:
        partial.unlink()
        causes = ", ".join(f"{reason}: {count}" for reason, count in reasons.items())
        raise DataError(f"none of the {found.total()} queries of {input} has a negative ({causes}), and {output} is "
                        "not written; allowed: another miner, or options that leave some")
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
