"""Hard negatives: what BM25, an index of ours or a dense teacher ranks high for a query and no judgement calls relevant.

    OUTPUT                   {"query_id", "positives", "negatives": [doc_id, best first], "scores"} of each kept query
    OUTPUT.rejected.jsonl    {"query_id", "reason"} of each other query
    OUTPUT.json              what made them: inputs, miner, options, counts, checksums
    .OUTPUT.partial          blocks of queries that are done, while the work lasts; a killed run goes on from there

It trains nothing and knows no text of a batch: ``pairs.read_source(negatives=OUTPUT)`` reads the result.
Next file to read: ``pairs``.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import json
import math
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple, get_args

import numpy as np
from tqdm import tqdm

import sparse_ir
from sparse_ir import data, files, indexes, lucene, pairs
from sparse_ir.errors import ConfigError, DataError
from sparse_ir.score_cache import key_of

Miner = Literal["bm25", "index", "dense"]
Hits = list[tuple[str, float]]  # (doc_id, score), best first

_FORMAT = 1
_QUERIES_PER_BLOCK = 1000  # what a killed run loses at most
_TEXTS_PER_CALL = 4096
_DOCUMENTS_PER_PRODUCT = 8192
_EMPTY = -1  # the text number of empty documents


def mine(
    input: str, output: Path, *, miner: Miner = "bm25", split: str = "train", model: str | None = None,
    index: Path | None = None, depth: int = 100, negatives: int = 30, consistency: int | None = None,
    margin: float | None = None, skip: int = 0, threads: int = 1, cache: Path | None = None, progress: bool = False,
) -> dict[str, Any]:
    """Find hard negatives for the judged queries of a BEIR folder; a killed run goes on where it stopped.

    A negative differs in its text from every known positive of the query (also those of queries with the same text),
    from the query itself, and from the negatives before it; it is not empty. A query is rejected, with the reason in
    a file beside the output, when no positive is in the corpus, when the consistency filter says so, or when no
    negative is left. The same inputs and options give the same bytes, however often the run was interrupted; with
    other ones an unfinished run is refused. Raises ConfigError, DataError, LockedError, and what the miner raises.

    Args:
        input: BEIR folder with corpus, queries and qrels.
        output: JSONL file for the negatives, one line for each kept query; its name ends in .jsonl.
        miner: bm25, index (an index of this package), or dense (a bi-encoder and exact search).
        split: Which qrels of the folder.
        model: Bi-encoder of the dense miner; for the index miner: where the query model lies now.
        index: Index to search; the bm25 miner builds a temporary one when it is not given.
        depth: Hits looked at for each query.
        negatives: At most so many negatives for each query.
        consistency: Keep a query only if one of its positives is among so many first hits; default: keep all.
        margin: Leave out negatives scored above positive x (1 - margin); without a positive in the hits, all of them.
        skip: First hits, known positives among them, that give no negatives.
        threads: Threads that search an index.
        cache: Folder that keeps the vectors of the dense miner; default: memory.
        progress: Show a progress bar.
    """
    started = time.perf_counter()
    output = Path(output)
    options = _Options(depth, negatives, consistency, margin, skip)
    options.check()
    _check_choice(miner, model, index, cache, threads)
    inputs = _find_inputs(input, split, output)
    setup = _Setup(inputs, options, miner, model, None if index is None else Path(index),
                   None if cache is None else Path(cache), threads, progress)
    with files.write_lock(output):
        files.remove_leftovers(output)
        files.remove_leftovers(_provenance_path(output))
        files.remove_leftovers(_rejected_path(output))
        report = _mine(setup, output)
    return {"output": str(output), **report, "seconds": round(time.perf_counter() - started, 2)}


# ------------------------------------------------------------------------------------------------ what is asked for


class _Options(NamedTuple):
    """What decides which hits become negatives."""

    depth: int
    negatives: int
    consistency: int | None
    margin: float | None
    skip: int

    def check(self) -> None:
        if self.depth < 1 or self.negatives < 1 or self.skip < 0:
            raise ConfigError(f"depth {self.depth}, negatives {self.negatives}, skip {self.skip}: depth and negatives "
                              "must be at least 1, and skip at least 0")
        if self.skip + self.negatives > self.depth:
            raise ConfigError(f"{self.negatives} negatives after {self.skip} skipped hits cannot come from a depth of "
                              f"{self.depth}; ask for a depth of at least {self.skip + self.negatives}")
        if self.consistency is not None and not 1 <= self.consistency <= self.depth:
            raise ConfigError(f"consistency {self.consistency} is not allowed; choose 1 to the depth, {self.depth}")
        if self.margin is not None and not (math.isfinite(self.margin) and 0 <= self.margin < 1):
            raise ConfigError(f"margin {self.margin} is not allowed; choose 0 or more, below 1")


class _Inputs(NamedTuple):
    folder: Path
    split: str
    corpus: Path
    queries: Path
    qrels: Path

    def hashes(self) -> dict[str, str]:
        paths = (self.corpus, self.queries, self.qrels)
        return {path.relative_to(self.folder).as_posix(): files.sha256_of_file(path) for path in paths}


class _Setup(NamedTuple):
    inputs: _Inputs
    options: _Options
    miner: Miner
    model: str | None
    index: Path | None
    cache: Path | None
    threads: int
    progress: bool

    def bar(self, description: str, total: int | None, unit: str) -> Any:
        return tqdm(desc=description, total=total, unit=f" {unit}", disable=None if self.progress else True,
                    dynamic_ncols=True)


def _check_choice(miner: str, model: str | None, index: Path | None, cache: Path | None, threads: int) -> None:
    if miner not in get_args(Miner):
        raise ConfigError(f"there is no miner {miner!r}; choose {', '.join(get_args(Miner))}")
    if threads < 1:
        raise ConfigError(f"{threads} threads are not allowed; use at least 1")
    needed = {"index": ("index", index), "dense": ("model", model)}.get(miner)
    if needed is not None and needed[1] is None:
        raise ConfigError(f"the {miner} miner needs the option {needed[0]}")
    useless = {"bm25": {"model": model, "cache": cache}, "index": {"cache": cache}, "dense": {"index": index}}[miner]
    for name, value in useless.items():
        if value is not None:
            raise ConfigError(f"{name} {str(value)!r} is not for the {miner} miner; leave it out")


def _find_inputs(source: str, split: str, output: Path) -> _Inputs:
    folder = Path(source)
    if not folder.is_dir():
        raise DataError(f"{source}: no such folder, allowed: a BEIR folder with corpus, queries and qrels")
    if output.is_dir() or output.suffix != ".jsonl":
        raise ConfigError(f"{output} cannot be written to, allowed: the name of a file that ends in .jsonl")
    inputs = _Inputs(folder, split, data.find_corpus(folder), data.find_queries(folder), data.find_qrels(folder, split))
    if output.resolve() in {path.resolve() for path in inputs[2:]}:
        raise ConfigError(f"{output} is one of the inputs; choose another output")
    return inputs


def _provenance_path(output: Path) -> Path:
    return output.with_name(f"{output.name}.json")


def _rejected_path(output: Path) -> Path:
    return output.with_name(f"{output.name}.rejected.jsonl")


def _partial_path(output: Path) -> Path:
    return output.with_name(f".{output.name}.partial")


# ------------------------------------------------------------------------------------------------ the work


def _mine(setup: _Setup, output: Path) -> dict[str, Any]:
    miner = _MINERS[setup.miner](setup)
    facts = {
        "format": _FORMAT, "inputs": setup.inputs.hashes(), "split": setup.inputs.split, "miner": miner.fingerprint,
        "options": setup.options._asdict(), "queries_per_block": _QUERIES_PER_BLOCK,
    }
    finished = _find_finished(output, facts)
    if finished is not None:
        return finished
    collection = _read_collection(setup.inputs.corpus)
    tasks = _read_tasks(setup.inputs, collection)
    blocks = [tasks[start : start + _QUERIES_PER_BLOCK] for start in range(0, len(tasks), _QUERIES_PER_BLOCK)]
    with _open_partial(_partial_path(output), facts) as (partial, done), setup.bar("mining", len(tasks), "queries") \
            as bar:
        bar.update(sum(map(len, blocks[:done])))
        if done < len(blocks):
            with miner.open(collection, output) as search:
                for number in range(done, len(blocks)):
                    _append(partial, _mine_block(number, blocks[number], search, collection, setup.options))
                    bar.update(len(blocks[number]))
    report = _finish(output, facts, len(tasks), setup.options)
    _partial_path(output).unlink()
    return report


def _mine_block(
    number: int, tasks: Sequence[_Task], search: _Search, collection: _Collection, options: _Options
) -> dict[str, Any]:
    asked = [task for task in tasks if task.positives]
    found = dict(zip((task.query_id for task in asked), search([task.query for task in asked]), strict=True))
    records = [_select(task, found.get(task.query_id, []), collection, options) for task in tasks]
    return {"block": number, "records": records}


def _select(task: _Task, hits: Hits, collection: _Collection, options: _Options) -> dict[str, Any]:
    """The line of a kept query, or its id and the reason why it is not kept."""
    numbers = [collection.text_number(doc_id) for doc_id, _ in hits]
    ranks = [rank for rank, number in enumerate(numbers, 1) if number in task.positive_texts]
    reason = _find_reason(task, ranks, hits, options)
    if reason is None:
        limit = _find_limit([hits[rank - 1][1] for rank in ranks], options.margin)
        chosen = _choose(list(zip(hits, numbers, strict=True))[options.skip :], task.excluded_texts, limit)
        best = list(itertools.islice(chosen, options.negatives))
        if best:
            return {"query_id": task.query_id, "positives": task.positives, "negatives": [hit[0] for hit in best],
                    "scores": [hit[1] for hit in best]}
        reason = "no negative left"
    return {"query_id": task.query_id, "reason": reason}


def _find_reason(task: _Task, ranks: list[int], hits: Hits, options: _Options) -> str | None:
    if not task.positives:
        return "no positive in the corpus"
    if not hits:
        return "no hits"
    if options.consistency is not None and (not ranks or ranks[0] > options.consistency):
        return f"no positive in the first {options.consistency} hits"
    if options.margin is not None and not ranks:
        return f"no positive in the first {options.depth} hits, no negative below its margin"
    return None


def _find_limit(scores: Sequence[float], margin: float | None) -> float:
    """Negatives score at most this. A positive that was not found scores below all hits, which are then too near."""
    if margin is None:
        return math.inf
    # The absolute value: a cosine below 0 must be lowered by the margin as well, not raised.
    return scores[0] - margin * abs(scores[0])


def _choose(hits: Iterable[tuple[tuple[str, float], int]], excluded: frozenset[int], limit: float) -> Iterator[Any]:
    seen = set(excluded)
    for hit, number in hits:
        if number not in seen and hit[1] <= limit:
            yield hit
        seen.add(number)


# ------------------------------------------------------------------------------------------------ documents and queries


class _Collection(NamedTuple):
    """Doc ids, each with the number of its text: equal texts have the same one."""

    path: Path
    numbers: dict[str, int]  # doc_id -> number of the text
    by_key: dict[bytes, int]  # key of a text -> its number

    def text_number(self, doc_id: str) -> int:
        number = self.numbers.get(doc_id)
        if number is None:
            raise DataError(f"{self.path}: the miner finds document {doc_id!r}, which is not there, allowed: an index "
                            "that was built from this corpus")
        return number


class _Task(NamedTuple):
    query: data.Query
    positives: list[str]
    positive_texts: frozenset[int]
    excluded_texts: frozenset[int]

    @property
    def query_id(self) -> str:
        return self.query.query_id


def _read_collection(corpus: Path) -> _Collection:
    numbers: dict[str, int] = {}
    by_key: dict[bytes, int] = {}
    for document in data.read_documents(corpus):
        text = document.contents
        numbers[document.doc_id] = by_key.setdefault(key_of(text), len(by_key)) if text else _EMPTY
    return _Collection(corpus, numbers, by_key)


def _read_tasks(inputs: _Inputs, collection: _Collection) -> list[_Task]:
    qrels = data.read_qrels(inputs.folder, inputs.split)
    texts = pairs._read_query_texts(inputs.queries, list(qrels), inputs.qrels)
    relevant = [_find_positives(judged, collection) for judged in qrels.values()]
    if not any(relevant):
        raise DataError(f"{inputs.qrels}: no query has a positive in {inputs.corpus}, allowed: at least one document "
                        "that is there, is not empty, and has a relevance >= 1")
    known: dict[str, set[int]] = {}
    for text, doc_ids in zip(texts, relevant, strict=True):
        known.setdefault(text, {_EMPTY, collection.by_key.get(key_of(text.strip()), _EMPTY)}).update(
            collection.numbers[doc_id] for doc_id in doc_ids)
    return [
        _Task(data.Query(query_id, text), doc_ids, frozenset(collection.numbers[doc_id] for doc_id in doc_ids),
              frozenset(known[text]))
        for query_id, text, doc_ids in zip(qrels, texts, relevant, strict=True)
    ]


def _find_positives(judged: Mapping[str, int], collection: _Collection) -> list[str]:
    return [doc_id for doc_id, relevance in judged.items()
            if relevance >= 1 and collection.numbers.get(doc_id, _EMPTY) != _EMPTY]


# ------------------------------------------------------------------------------------------------ miners


_Search = Callable[[Sequence[data.Query]], list[Hits]]


class _IndexMiner:
    """Searches an index that stands there, BM25 or impact."""

    def __init__(self, setup: _Setup) -> None:
        self._setup = setup
        self._folder = Path(str(setup.index))  # it was given: _check_choice has seen to that
        manifest = indexes.read_manifest(self._folder)
        if setup.miner == "bm25" and manifest["kind"] != "bm25":
            raise ConfigError(f"{self._folder} is no BM25 index but one of kind {manifest['kind']}; use the index miner")
        self.fingerprint = {"kind": manifest["kind"], "index_sha256": manifest["sha256"]}

    @contextlib.contextmanager
    def open(self, collection: _Collection, output: Path) -> Iterator[_Search]:
        with indexes.Index(self._folder, query_model=self._setup.model) as opened:
            yield functools.partial(_search_index, opened, self._setup)


class _Bm25Miner:
    """Searches a BM25 index that is built beside the output and deleted afterwards."""

    def __init__(self, setup: _Setup) -> None:
        self._setup = setup
        # No checksum of the index: Lucene gives each build other bytes, and the same scores.
        self.fingerprint = {"kind": "bm25", "parameters": lucene.Bm25()._asdict(), "lucene": lucene.lucene_version()}

    @contextlib.contextmanager
    def open(self, collection: _Collection, output: Path) -> Iterator[_Search]:
        scratch = files.temporary_sibling(output)  # in case of a kill, the next run deletes it
        read = functools.partial(data.read_documents, self._setup.inputs.corpus, check_unique=False)
        try:
            indexes.build_bm25_index(read, scratch / "index", progress=self._setup.progress)
            with indexes.Index(scratch / "index") as opened:
                yield functools.partial(_search_index, opened, self._setup)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def _search_index(index: indexes.Index, setup: _Setup, queries: Sequence[data.Query]) -> list[Hits]:
    run, _ = index.search_batch(queries, setup.options.depth, threads=setup.threads)
    return [run[query.query_id] for query in queries]


class _DenseMiner:
    """Exact search among the vectors of a bi-encoder; empty documents have none."""

    def __init__(self, setup: _Setup) -> None:
        from sparse_ir.teachers import DenseTeacher

        self._setup = setup
        self._teacher = DenseTeacher(str(setup.model), cache=setup.cache)
        self.fingerprint = self._teacher.fingerprint

    @contextlib.contextmanager
    def open(self, collection: _Collection, output: Path) -> Iterator[_Search]:
        # Rows in the descending order of doc_ids: among equal scores the lower row comes first.
        doc_ids = sorted((doc_id for doc_id, number in collection.numbers.items() if number != _EMPTY), reverse=True)
        rows = {doc_id: row for row, doc_id in enumerate(doc_ids)}
        vectors = np.empty((len(rows), self._teacher.dimension), dtype=np.float16)  # as the teacher keeps them
        documents = (document for document in data.read_documents(collection.path, check_unique=False)
                     if document.doc_id in rows)
        with self._setup.bar("vectors", len(rows), "documents") as bar:
            while chunk := list(itertools.islice(documents, _TEXTS_PER_CALL)):
                found = self._teacher.vectors([document.contents for document in chunk], "document")
                vectors[[rows[document.doc_id] for document in chunk]] = found
                bar.update(len(chunk))
        yield functools.partial(self._search, doc_ids, vectors)

    def _search(self, doc_ids: list[str], vectors: np.ndarray, queries: Sequence[data.Query]) -> list[Hits]:
        asked = self._prepare(self._teacher.vectors([query.text for query in queries], "query"))
        best = [(np.empty(0, dtype=np.int64), np.empty(0, dtype=np.float32)) for _ in queries]
        for start in range(0, len(vectors), _DOCUMENTS_PER_PRODUCT):
            part = self._prepare(vectors[start : start + _DOCUMENTS_PER_PRODUCT].astype(np.float32))
            numbers = np.arange(start, start + len(part))
            for position, scores in enumerate(asked @ part.T):
                best[position] = _merge_best(best[position], (numbers, scores), self._setup.options.depth)
        return [[(doc_ids[row], score) for row, score in zip(rows.tolist(), scores.tolist(), strict=True)]
                for rows, scores in best]

    def _prepare(self, vectors: np.ndarray) -> np.ndarray:
        if self.fingerprint["similarity"] != "cosine":
            return vectors
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def _merge_best(
    first: tuple[np.ndarray, np.ndarray], second: tuple[np.ndarray, np.ndarray], k: int
) -> tuple[np.ndarray, np.ndarray]:
    """The ``k`` best of two lists of (rows, scores): score descending, then row ascending; ``first`` has lower rows."""
    rows, scores = np.concatenate([first[0], second[0]]), np.concatenate([first[1], second[1]])
    if len(scores) > k:
        # All that equal the k-th score stay until the stable sort, so that a tie is never cut at random.
        near = np.flatnonzero(scores >= np.partition(scores, -k)[-k])
        rows, scores = rows[near], scores[near]
    order = np.argsort(-scores, kind="stable")[:k]
    return rows[order], scores[order]


def _choose_bm25(setup: _Setup) -> _Bm25Miner | _IndexMiner:
    return _Bm25Miner(setup) if setup.index is None else _IndexMiner(setup)


_MINERS: dict[str, Callable[[_Setup], Any]] = {"bm25": _choose_bm25, "index": _IndexMiner, "dense": _DenseMiner}


# ------------------------------------------------------------------------------------------------ files


def _to_line(record: Any) -> str:
    return json.dumps(record, ensure_ascii=False) + "\n"


def _append(stream: IO[bytes], record: Any) -> None:
    stream.write(_to_line(record).encode())
    stream.flush()
    os.fsync(stream.fileno())


@contextlib.contextmanager
def _open_partial(path: Path, facts: dict[str, Any]) -> Iterator[tuple[IO[bytes], int]]:
    """The file of finished blocks, ready for the next one, and how many it holds; a torn end is cut off."""
    whole, done = _count_blocks(path, facts)
    with path.open("r+b" if whole else "wb") as stream:
        if whole:
            stream.truncate(whole)
            stream.seek(whole)
        else:
            _append(stream, {"provenance": facts})
        yield stream, done


def _count_blocks(path: Path, facts: dict[str, Any]) -> tuple[int, int]:
    """Bytes and number of the whole blocks; 0 bytes when there is not even a whole header."""
    whole, blocks = 0, -1
    if path.is_file():
        with path.open("rb") as stream:
            for line in stream:
                record = _parse_whole(line)
                if blocks < 0:
                    if record is None:
                        return 0, 0
                    _check_same(path, record.get("provenance"), facts)
                elif record is None or record.get("block") != blocks:
                    break
                whole, blocks = whole + len(line), blocks + 1
    return whole, max(blocks, 0)


def _parse_whole(line: bytes) -> dict[str, Any] | None:
    """The record of a line that was written to its end; a killed writer leaves another one, only as the last."""
    if not line.endswith(b"\n"):
        return None
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


def _check_same(path: Path, found: Any, facts: dict[str, Any]) -> None:
    expected = json.loads(json.dumps(facts))
    if found == expected:
        return
    found = found if isinstance(found, dict) else {}
    differing = [f"{key} ({_show_difference(found.get(key), expected.get(key))})"
                 for key in sorted({*found, *expected}) if found.get(key) != expected.get(key)]
    raise ConfigError(f"{path} holds the unfinished work of another run: {'; '.join(differing)}; repeat that run to "
                      "finish it, or delete this file to begin again")


def _show_difference(found: Any, expected: Any) -> str:
    if isinstance(found, dict) and isinstance(expected, dict):
        keys = [key for key in sorted({*found, *expected}) if found.get(key) != expected.get(key)]
        return ", ".join(f"{key} was {data._show(found.get(key))}, is {data._show(expected.get(key))}" for key in keys)
    return f"was {data._show(found)}, is {data._show(expected)}"


def _finish(output: Path, facts: dict[str, Any], queries: int, options: _Options) -> dict[str, Any]:
    """Write the three files from the partial one, the output last; what ``mine`` reports of them."""
    counts: Counter[str] = Counter(queries=queries, kept=0, rejected=0, negatives=0, queries_with_fewer_negatives=0)
    reasons: Counter[str] = Counter()
    digests = {name: hashlib.sha256() for name in ("output", "rejected")}
    with files.atomic_writer(output, "wb") as kept, files.atomic_writer(_rejected_path(output), "wb") as rejected:
        for record in _read_records(_partial_path(output)):
            target, stream = ("rejected", rejected) if "reason" in record else ("output", kept)
            line = _to_line(record).encode()
            stream.write(line)
            digests[target].update(line)
            counts["rejected" if "reason" in record else "kept"] += 1
            counts["negatives"] += len(record.get("negatives", ()))
            counts["queries_with_fewer_negatives"] += 0 < len(record.get("negatives", ())) < options.negatives
            reasons.update([record["reason"]] if "reason" in record else [])
        provenance = {
            **facts, "counts": dict(counts), "reasons": dict(sorted(reasons.items())),
            "files": {name: digest.hexdigest() for name, digest in digests.items()},
            "versions": {"sparse_ir": sparse_ir.__version__},
        }
        files.write_json(_provenance_path(output), provenance)
    return {**counts, "reasons": provenance["reasons"]}


def _read_records(partial: Path) -> Iterator[dict[str, Any]]:
    with partial.open("rb") as stream:
        for line in itertools.islice(stream, 1, None):
            yield from json.loads(line)["records"]


def _find_finished(output: Path, facts: dict[str, Any]) -> dict[str, Any] | None:
    """The report of a run with the same facts whose files are all there, unchanged; else None."""
    paths = {"output": output, "rejected": _rejected_path(output)}
    if not all(path.is_file() for path in (_provenance_path(output), *paths.values())):
        return None
    stored = files.read_json(_provenance_path(output))
    same = isinstance(stored, dict) and all(stored.get(key) == value for key, value in
                                            json.loads(json.dumps(facts)).items())
    if not same or stored.get("files") != {name: files.sha256_of_file(path) for name, path in paths.items()}:
        return None
    _partial_path(output).unlink(missing_ok=True)
    return {**stored["counts"], "reasons": stored["reasons"]}
