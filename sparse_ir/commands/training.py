"""The commands ``mine``, ``teach`` and ``train``."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from sparse_ir import extras
from sparse_ir.data import readers
from sparse_ir.engines.lucene.bm25 import Bm25
from sparse_ir.errors import ConfigError
from sparse_ir.indexing import manifest
from sparse_ir.indexing.bm25_builder import build_bm25_index
from sparse_ir.reports import Report
from sparse_ir.retrieval.searcher import Index
from sparse_ir.storage import files
from sparse_ir.training import pairs
from sparse_ir.training.mining import (
    FORMAT,
    QUERIES_PER_BLOCK,
    Find,
    Miner,
    Rules,
    append_records,
    check_same_corpus,
    dense_finder,
    finish_output,
    mine_block,
    resume_output,
)
from sparse_ir.training.pairs import Source
from sparse_ir.training.teachers.dense import DenseTeacher


def mine(
    input: str,
    output: Path,
    *,
    miner: Miner = "bm25",
    split: str = "train",
    model: str | None = None,
    index: Path | None = None,
    depth: int = 100,
    negatives: int = 30,
    skip: int = 0,
    consistency: int | None = None,
    margin: float | None = None,
    pooling: str | None = None,
    threads: int = 1,
    cache: Path | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Mine hard negatives for the training queries of a BEIR folder; run again after a kill, it
    goes on.

    Writes OUTPUT (JSONL: query_id, positives, negatives best first, their scores),
    OUTPUT.rejected.jsonl (query_id and reason) and OUTPUT.json (provenance and counts). Known
    positives, texts equal to one and empty documents are never negatives. An index of another
    corpus, and options that leave no query a negative, are errors; files that are there stay as
    they are.

    Args:
        input: BEIR folder with corpus, queries and qrels.
        output: File for the negatives, .jsonl; the configuration of a training run names it.
        miner: bm25, index (an index of this package), or dense (a bi-encoder, searched exactly).
        split: Which qrels.
        model: Model of the miner dense.
        index: Index of the miner index, of this same corpus; with bm25 such an index too, which is
            built otherwise.
        depth: Hits looked at for each query.
        negatives: At most so many negatives for each query.
        skip: Leave out so many of the best hits, which may be relevant and unjudged.
        consistency: Keep a query only if a positive is among its first so many hits.
        margin: Leave out hits that score above the best positive within the depth, less so large a
            share of its score.
        pooling: Pooling of the miner dense's model where its folder states none: cls, mean, max,
            lasttoken ...
        threads: Threads that search.
        cache: Folder with the vectors of the miner dense.
        progress: Show a progress bar.
    """
    output, rules = Path(output), Rules(negatives, skip, consistency, margin)
    rules.check(depth)
    _check_miner(miner, model, index, pooling)
    source = pairs.read_source(input, split=split, allow_missing=True)
    with (
        files.write_lock(output),
        _finder(miner, input, source, model, index, depth, threads, cache, pooling) as (
            find,
            facts,
        ),
    ):
        header = {
            "format": FORMAT,
            "input": source.fingerprint,
            "miner": facts,
            "depth": depth,
            **rules._asdict(),
        }
        partial = output.with_name(f".{output.name}.partial")
        done = resume_output(partial, header)
        with tqdm(
            total=len(source.queries),
            initial=done,
            desc="mining",
            unit=" queries",
            disable=None if progress else True,
        ) as bar:
            for start in range(done, len(source.queries), QUERIES_PER_BLOCK):
                block = range(start, min(start + QUERIES_PER_BLOCK, len(source.queries)))
                append_records(partial, mine_block(source, block, find, rules))
                bar.update(len(block))
        return finish_output(partial, output, header, input)


def _check_miner(miner: Miner, model: str | None, index: Path | None, pooling: str | None) -> None:
    if (miner == "dense") != (model is not None):
        raise ConfigError(
            f"miner {miner} and model {model}: the miner dense needs a model, and "
            "no other takes one"
        )
    if miner == "index" and index is None:
        raise ConfigError("the miner index needs an index")
    if pooling is not None and miner != "dense":
        raise ConfigError(f"pooling is for the miner dense, not {miner}")
    if miner == "dense" and index is not None:
        raise ConfigError("the miner dense takes no index")


@contextlib.contextmanager
def _finder(
    miner: Miner,
    input: str,
    source: Source,
    model: str | None,
    index: Path | None,
    depth: int,
    threads: int,
    cache: Path | None,
    pooling: str | None,
) -> Iterator[tuple[Find, dict[str, Any]]]:
    """The function that searches for a block of queries, and the miner's provenance."""
    if model is not None:
        teacher = DenseTeacher(model, cache=cache, pooling=pooling)  # type: ignore[arg-type]
        yield dense_finder(teacher, source, depth), teacher.fingerprint
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(index) if index is not None else Path(scratch) / "bm25"
        if index is None:
            build_bm25_index(lambda: readers.read_documents(input), folder, Bm25(0.9, 0.4))
        with Index(folder) as opened:
            check_same_corpus(folder, source, input)
            facts = {
                key: value
                for key, value in manifest.read_manifest(folder).items()
                if key in ("kind", "counts", "rule", "encoder", "bm25", "query_encoder")
            }
            yield lambda asked: opened.search_batch(asked, depth, threads=threads)[0], facts


def teach(config: Path, cache: Path, *, progress: bool = False) -> Report:
    """Score once what the teachers of a training configuration will be asked; a second run computes
    nothing.

    Nor does the training run, up to its last step. Cross-encoders and monoT5 score the pairs of its
    batches, which are all of a batch with in_batch = true; another seed, batch or number of steps
    has other pairs.

    Args:
        config: TOML file of a training run.
        cache: Folder for the scores and vectors.
        progress: Show progress bars.
    """
    with extras.importing():
        from sparse_ir.training import pipeline

    return pipeline.teach(Path(config), Path(cache), progress=progress)


def train(
    config: Path, output: Path, *, cache: Path | None = None, progress: bool = False
) -> Report:
    """Train a learned-sparse encoder; run again after a kill, it goes on where it stopped, bit for
    bit.

    What the cache of the teachers lacks is computed on the way; the report counts it as forward
    passes.

    Args:
        config: TOML file of the run; scripts/recipes has examples.
        output: Folder for checkpoints, log, best and final model.
        cache: Folder with the teachers' scores, shared between runs; default: OUTPUT/teacher-cache.
        progress: Show a progress bar.
    """
    with extras.importing():
        from sparse_ir.training import pipeline

    return pipeline.train(
        Path(config), Path(output), cache=Path(cache) if cache else None, progress=progress
    )
