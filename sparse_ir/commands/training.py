"""The commands ``mine``, ``teach`` and ``train``.

Numeric libraries are imported inside the functions, so that a help text appears at once.
"""

from __future__ import annotations

import contextlib
import functools
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sparse_ir import extras
from sparse_ir.commands.arguments import Source, StrPath, command
from sparse_ir.console import progress_bar
from sparse_ir.errors import ConfigError
from sparse_ir.reports import Report

if TYPE_CHECKING:
    from sparse_ir.data.records import Query, Run
    from sparse_ir.training.mining import Find
    from sparse_ir.training.sources.training_source import TrainingSource

# facts of an index that a file of negatives records
_RECORDED = ("kind", "counts", "rule", "encoder", "bm25", "query_encoder")


@dataclass(frozen=True)
class _Miner:
    """The options of ``mine`` that choose how hits are found."""

    name: str
    model: Source | None
    index: StrPath | None
    pooling: str | None
    cache: StrPath | None
    depth: int
    threads: int

    def check(self) -> None:
        """Raises ``ConfigError`` for options that do not belong together."""
        if self.name != "dense":
            if self.model is not None:
                raise ConfigError(f"model is only for the miner dense, not for {self.name}")
            if self.pooling is not None:
                raise ConfigError(f"pooling is only for the miner dense, not for {self.name}")
            if self.name == "index" and self.index is None:
                raise ConfigError("the miner index needs an index")
        elif self.model is None:
            raise ConfigError("the miner dense needs a model")
        elif self.index is not None:
            raise ConfigError("the miner dense takes no index")


@command
def mine(
    input: Source,
    output: StrPath,
    *,
    miner: Literal["bm25", "index", "dense"] = "bm25",
    split: str = "train",
    model: Source | None = None,
    index: StrPath | None = None,
    depth: int = 100,
    negatives: int = 30,
    skip: int = 0,
    consistency: int | None = None,
    margin: float | None = None,
    pooling: str | None = None,
    threads: int = 1,
    cache: StrPath | None = None,
    progress: bool = False,
) -> Report:
    """Mine hard negatives for the training queries of a BEIR folder.

    A killed command can be repeated: it continues where it stopped. It writes OUTPUT (JSONL:
    query_id, positives, negatives with the best first, and their scores), OUTPUT.rejected.jsonl
    (query_id and reason) and OUTPUT.json (provenance and counts).

    Known positives, documents with the text of a positive, and empty documents are never negatives.
    An index of another corpus, or options that leave no query a negative, are errors and leave
    existing files unchanged.

    Args:
        input: BEIR folder with corpus, queries and qrels.
        output: File for the negatives, .jsonl. A training configuration names it.
        miner: What finds the hits: a BM25 index, an index of this package, or a dense bi-encoder
            with exact search.
        split: Split of the qrels.
        model: Model of the miner "dense".
        index: Index of this corpus for the miner "index". For "bm25", an existing BM25 index; by
            default, one is built.
        depth: Number of hits considered per query.
        negatives: Maximum number of negatives per query.
        skip: Skip this many of the best hits, which may be relevant but unjudged.
        consistency: Keep a query only if a positive is among its first hits, this many.
        margin: Relative margin below the best positive within the depth: hits that score above (1 -
            MARGIN) times its score are dropped.
        pooling: Pooling of the model of the miner "dense" if its folder states none: cls, mean,
            max, lasttoken ...
        threads: Number of threads that search.
        cache: Folder for the vectors of the miner "dense".
        progress: Show a progress bar.
    """

    from sparse_ir.storage import files
    from sparse_ir.training import mining
    from sparse_ir.training.sources import pairs

    output = Path(output)
    rules = mining.Rules(negatives, skip, consistency, margin)
    rules.check(depth)
    chosen = _Miner(miner, model, index, pooling, cache, depth, threads)
    chosen.check()
    source = pairs.read_source(str(input), split=split, allow_missing=True)
    total = len(source.queries)
    with files.write_lock(output), _open_miner(chosen, str(input), source) as (find, facts):
        header = {
            "format": mining.NEGATIVES_FORMAT,
            "input": source.fingerprint,
            "miner": facts,
            "depth": depth,
        } | rules._asdict()
        partial = output.with_name(f".{output.name}.partial")
        done = mining.resume_output(partial, header)
        with progress_bar(total, progress, initial=done, desc="mining", unit=" queries") as bar:
            for start in range(done, total, mining.QUERIES_PER_BLOCK):
                block = range(start, min(start + mining.QUERIES_PER_BLOCK, total))
                records = mining.mine_block(source, block, find, rules)
                mining.append_records(partial, records)
                bar.update(len(block))
        return mining.finish_output(partial, output, header, str(input))


@contextlib.contextmanager
def _open_miner(
    miner: _Miner, input: str, source: TrainingSource
) -> Iterator[tuple[Find, dict[str, Any]]]:
    """The function that searches with a block of queries, and the provenance of the miner."""
    from sparse_ir.training import mining

    if miner.model is not None:
        from sparse_ir.training.teachers.dense import DenseTeacher

        cache = None if miner.cache is None else Path(miner.cache)
        teacher = DenseTeacher(str(miner.model), cache=cache, pooling=miner.pooling)  # type: ignore[arg-type]
        yield mining.dense_finder(teacher, source, miner.depth), teacher.fingerprint
        return
    from sparse_ir.indexing.manifest import read_manifest
    from sparse_ir.retrieval.searcher import Index

    with tempfile.TemporaryDirectory() as scratch:
        if miner.index is None:
            folder = _build_bm25(input, Path(scratch) / "bm25")
        else:
            folder = Path(miner.index)
        with Index(folder) as opened:
            mining.check_same_corpus(folder, source, input)
            manifest = read_manifest(folder)
            facts = {key: value for key, value in manifest.items() if key in _RECORDED}

            def find(queries: Sequence[Query]) -> Run:
                return opened.search_batch(queries, miner.depth, threads=miner.threads)[0]

            yield find, facts


def _build_bm25(input: str, folder: Path) -> Path:
    from sparse_ir.data import readers
    from sparse_ir.engines.lucene.bm25 import Bm25
    from sparse_ir.indexing.bm25_builder import build_bm25_index

    read = functools.partial(readers.read_documents, input)
    build_bm25_index(read, folder, Bm25(0.9, 0.4))
    return folder


@command
def teach(config: StrPath, cache: StrPath, *, progress: bool = False) -> Report:
    """Precompute the teacher scores that a training needs.

    With the same configuration, neither a second teach nor train then runs a teacher.
    Cross-encoders and monoT5 score the pairs of the training batches (all pairs of a batch with
    in_batch = true); another seed, batch size or number of steps leads to other pairs.

    Args:
        config: TOML file of the training.
        cache: Folder for scores and vectors.
        progress: Show progress bars.
    """
    extras.require("tomli_w")  # before torch, whose absence would name a smaller extra
    from sparse_ir.training import pipeline

    return pipeline.teach(Path(config), Path(cache), progress=progress)


@command
def train(
    config: StrPath, output: StrPath, *, cache: StrPath | None = None, progress: bool = False
) -> Report:
    """Train a learned-sparse encoder.

    A killed command can be repeated: it continues where it stopped, with bit-identical results.
    Teacher scores missing from the cache are computed during training and reported as forward
    passes.

    Args:
        config: TOML file of the training; scripts/recipes has examples.
        output: Folder for training checkpoints, log, best model and final model.
        cache: Folder with teacher scores, which several trainings may share. The default is
            OUTPUT/teacher-cache.
        progress: Show a progress bar.
    """
    extras.require("tomli_w")  # before torch, whose absence would name a smaller extra
    from sparse_ir.training import pipeline

    folder = None if cache is None else Path(cache)
    return pipeline.train(Path(config), Path(output), cache=folder, progress=progress)
