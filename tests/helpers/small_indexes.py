"""Small vectors and indexes made from matrices, with real tokenizers and real Lucene, and a runner
for subprocesses.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import brute_force
import numpy as np
from scipy import sparse
from tokenizers import Tokenizer, models, pre_tokenizers

from sparse_ir.data.records import Document
from sparse_ir.engines.base import SPARSE, EngineHits, EngineQuery, FieldTerms, ImpactBatch
from sparse_ir.engines.catalog import find_engine
from sparse_ir.indexing import encoding
from sparse_ir.indexing.vectors import Vectors
from sparse_ir.models.interfaces import QueryEncoder
from sparse_ir.models.static_queries import StaticQueryEncoder
from sparse_ir.retrieval.hits import Hits

UNKNOWN = "[UNK]"


class TermQueries:
    """A query encoder that reads the weights out of the query: ``"t1:2 t5:1.5"``; without a colon
    the weight is 1.
    """

    def __init__(self, vocabulary: Sequence[str]) -> None:
        self.vocabulary = list(vocabulary)
        self.fingerprint: dict[str, Any] = {"kind": "terms", "size": len(self.vocabulary)}

    def encode(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """Ids and weights of the terms that the vocabulary knows."""
        pairs = [(part.partition(":")[0], part.partition(":")[2] or "1") for part in text.split()]
        known = sorted(
            (self.vocabulary.index(token), float(weight))
            for token, weight in pairs
            if token in self.vocabulary
        )
        return (
            np.array([token_id for token_id, _ in known], dtype=np.int32),
            np.array([weight for _, weight in known], dtype=np.float32),
        )

    def save(self, folder: Path) -> None:
        """Not stored anywhere: an index that was built with it is opened with it."""
        folder.mkdir()


class MatrixEncoder:
    """A document encoder that looks its vectors up: the text ``"7"`` is row 7 of a matrix."""

    def __init__(
        self, matrix: sparse.csr_matrix, vocabulary: Sequence[str], queries: QueryEncoder
    ) -> None:
        self.vocabulary = list(vocabulary)
        self.fingerprint: dict[str, Any] = {
            "kind": "matrix",
            "sum": float(matrix.sum()),
            "shape": list(matrix.shape),
        }
        self._matrix, self._queries = sparse.csr_matrix(matrix, dtype=np.float32), queries

    def encode(
        self, texts: Sequence[str], progress: Callable[[int], None] | None = None
    ) -> sparse.csr_matrix:
        """The rows that the texts name."""
        if progress is not None:
            progress(len(texts))
        return self._matrix[[int(text) for text in texts]]

    def query_encoder(self) -> QueryEncoder:
        """The query side it was made with."""
        return self._queries


def vocabulary_of_size(size: int) -> list[str]:
    """``[UNK]``, ``t1``, ``t2`` ..."""
    return [UNKNOWN, *(f"t{number}" for number in range(1, size))]


def static_queries(weights: np.ndarray, name: str = "small") -> StaticQueryEncoder:
    """A static query side over ``vocabulary_of_size(len(weights))``, with a tokenizer that splits
    at spaces.
    """
    tokens = {token: token_id for token_id, token in enumerate(vocabulary_of_size(len(weights)))}
    tokenizer = Tokenizer(models.WordLevel(tokens, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return StaticQueryEncoder(
        tokenizer, np.asarray(weights, dtype=np.float32), "opensearch", name=name
    )


def random_matrix(
    seed: int, rows: int, columns: int, density: float = 0.1, largest: int = 4
) -> sparse.csr_matrix:
    """Whole numbers ``1..largest``, int32; few different values, so that scores tie."""
    generator = np.random.default_rng(seed)
    matrix = sparse.random(
        rows,
        columns,
        density,
        "csr",
        rng=generator,
        data_rvs=lambda size: generator.integers(1, largest + 1, size),
    )
    matrix.sort_indices()
    return sparse.csr_matrix(matrix, dtype=np.int32)


def shuffled_ids(seed: int, count: int) -> list[str]:
    """Distinct ids whose order as strings has nothing to do with the order of the documents."""
    return [f"d{number}" for number in np.random.default_rng(seed).permutation(count)]


def make_vectors(
    folder: Path,
    matrix: sparse.csr_matrix,
    queries: QueryEncoder,
    *,
    doc_ids: Sequence[str] = (),
    empty: Sequence[int] = (),
    shard_size: int = 8,
) -> Vectors:
    """A finished vectors folder with one document for each row; the rows in ``empty`` are documents
    without text.
    """
    doc_ids = list(doc_ids) or [f"d{row}" for row in range(matrix.shape[0])]
    documents = [
        Document(doc_id, "", "" if row in empty else str(row)) for row, doc_id in enumerate(doc_ids)
    ]
    encoder = MatrixEncoder(matrix, queries.vocabulary, queries)
    return encoding.write_vectors(folder, lambda: documents, encoder, shard_size=shard_size)


def write_matrix(
    folder: Path,
    matrix: sparse.csr_matrix,
    doc_ids: Sequence[str],
    vocabulary: Sequence[str],
    *,
    threads: int = 1,
    batch: int = 500,
    engine: str = "lucene",
) -> Path:
    """A bare index of an impact matrix, written in batches of ``batch`` rows."""

    def read(start: int) -> ImpactBatch:
        rows = slice(start, start + batch)
        return ImpactBatch(doc_ids[rows], {SPARSE: matrix[rows]})

    batches = [functools.partial(read, start) for start in range(0, matrix.shape[0], batch)]
    find_engine(engine).write(folder, batches, {SPARSE: vocabulary}, threads=threads)
    return folder


def query_of(tokens: Sequence[str], boosts: Sequence[int]) -> EngineQuery:
    """A query of one field in the form that engines take."""
    return {SPARSE: FieldTerms(list(tokens), list(boosts))}


def pairs_of(hits: EngineHits | Hits) -> list[tuple[str, float]]:
    """Hits as ``(doc_id, score)``."""
    return list(zip(hits.doc_ids, hits.scores.tolist(), strict=True))


def exact_pairs(
    query: sparse.csr_matrix, matrix: sparse.csr_matrix, doc_ids: Sequence[str], k: int
) -> list[tuple[str, float]]:
    """The truth for one query row."""
    return [
        (doc_id, float(score))
        for doc_id, score in brute_force.search_exact(query, matrix, doc_ids, k)[0]
    ]


def run_python(
    code: str,
    *arguments: object,
    environment: dict[str, str | None] | None = None,
    timeout: float = 120,
) -> subprocess.CompletedProcess[str]:
    """Run a program text in a fresh interpreter; a variable whose value is None is taken out of its
    environment.
    """
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        text=True,
        capture_output=True,
        timeout=timeout,
        env=changed_environment(environment),
        check=False,
    )


def changed_environment(changes: dict[str, str | None] | None) -> dict[str, str]:
    """This process's environment with changes, the folder of the tests on the Python path."""
    merged = {**os.environ, "PYTHONPATH": str(Path(__file__).parent), **(changes or {})}
    return {name: value for name, value in merged.items() if value is not None}
