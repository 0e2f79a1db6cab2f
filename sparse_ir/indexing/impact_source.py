"""Weights become impacts shard by shard, while an engine asks for them.

Every document is accounted for.
"""

from __future__ import annotations

import functools
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple, NotRequired, Protocol, TypedDict

import numpy as np
from scipy import sparse

from sparse_ir.engines.base import BM25, SPARSE, ImpactBatch
from sparse_ir.indexing.forward import ForwardWriter
from sparse_ir.indexing.pruning import Pruning, prune
from sparse_ir.indexing.quantization import Rule, quantize
from sparse_ir.indexing.vectors import row_as_dict

NUM_SAMPLES = 64

_NO_WEIGHTS = "no weights"
_ROUNDED = "all weights rounded to zero"
_PRUNED = "all impacts pruned"
_REASONS = (_NO_WEIGHTS, _ROUNDED, _PRUNED)  # in the order of the steps


class Sample(TypedDict):
    """The exact impacts of one document, as ``samples.jsonl`` keeps them."""

    id: str
    vector: dict[str, int]  # of the sparse field
    bm25: NotRequired[dict[str, int]]


class Unindexed(TypedDict):
    """A document without a posting, as ``unindexed.jsonl`` keeps it."""

    doc_id: str
    reason: str


class WeightSource(Protocol):
    """The weights of a collection in one field, by shards."""

    vocabulary: list[str]

    def __len__(self) -> int:
        """Number of documents."""

    @property
    def num_shards(self) -> int:
        """Number of shards; they divide the documents alike in all fields."""

    def read_shard(self, number: int) -> tuple[list[str], sparse.csr_matrix]:
        """``doc_ids`` and weights CSR ``(N, V)`` of one shard."""


class FieldSource(NamedTuple):
    """Where the impacts of a field come from.

    ``query_weights`` float ``(V,)``: the static query weights that a folded rule multiplies in.
    """

    weights: WeightSource
    rule: Rule
    query_weights: np.ndarray | None = None
    pruning: Pruning = Pruning()


class _FieldShard(NamedTuple):
    """The impacts of one shard in one field, before lost documents are left out."""

    weights: sparse.csr_matrix  # float (N, V)
    rounded: sparse.csr_matrix  # int32 (N, V)
    impacts: sparse.csr_matrix  # int32 (N, V), pruned
    counts: dict[str, int]


class _Account(NamedTuple):
    """What became of the documents of one shard."""

    doc_ids: list[str]  # of the documents with postings
    unindexed: list[Unindexed]
    samples: list[Sample]


class ImpactSource:
    """The impacts of all fields of a collection; safe to use from several threads.

    ``forward_writer``: gets the same impacts, document by document, the columns of the fields side
    by side.
    """

    def __init__(
        self, fields: Mapping[str, FieldSource], forward_writer: ForwardWriter | None
    ) -> None:
        self._fields = fields
        self._first = next(iter(fields.values())).weights
        self._forward_writer = forward_writer
        self._sample_step = max(1, len(self._first) // NUM_SAMPLES)
        self._accounts: dict[int, _Account] = {}
        self._lock = threading.Lock()
        self._counts: dict[str, Counter[str]] = {field: Counter() for field in fields}
        self._frequencies: dict[str, np.ndarray] = {}
        for field, source in fields.items():
            self._frequencies[field] = np.zeros(len(source.weights.vocabulary), dtype=np.int64)

    def batches(self) -> list[Callable[[], ImpactBatch]]:
        """A function for each shard that quantizes it and keeps its account."""
        shards = range(self._first.num_shards)
        return [functools.partial(self._read_batch, number) for number in shards]

    def vocabularies(self) -> dict[str, Sequence[str]]:
        """The columns of each field."""
        return {field: source.weights.vocabulary for field, source in self._fields.items()}

    def _read_batch(self, number: int) -> ImpactBatch:
        doc_ids: list[str] = []
        shards: dict[str, _FieldShard] = {}
        for field, source in self._fields.items():
            doc_ids, weights = source.weights.read_shard(number)
            shards[field] = _make_impacts(source, weights)
        postings = np.zeros(len(doc_ids), dtype=np.int64)
        for shard in shards.values():
            postings += np.diff(shard.impacts.indptr)
        unindexed: list[Unindexed] = []
        for row in np.flatnonzero(postings == 0):
            reasons = [_reason_of_loss(shard, int(row)) for shard in shards.values()]
            reason = max(reasons, key=_REASONS.index)
            unindexed.append({"doc_id": doc_ids[row], "reason": reason})
        filled = np.flatnonzero(postings)
        kept_ids = [doc_ids[row] for row in filled]
        kept = {field: shard.impacts[filled] for field, shard in shards.items()}
        if self._forward_writer is not None:
            self._forward_writer.add(number, sparse.hstack(list(kept.values()), format="csr"))
        samples = self._take_samples(kept_ids, kept)
        self._accounts[number] = _Account(kept_ids, unindexed, samples)
        self._add_up(shards)
        return ImpactBatch(kept_ids, kept)

    def _add_up(self, shards: Mapping[str, _FieldShard]) -> None:
        for field, shard in shards.items():
            size = shard.impacts.shape[1]
            frequencies = np.bincount(shard.impacts.indices, minlength=size)
            with self._lock:
                self._counts[field].update(shard.counts)
                self._frequencies[field] += frequencies

    def _take_samples(
        self, doc_ids: list[str], impacts: Mapping[str, sparse.csr_matrix]
    ) -> list[Sample]:
        """The exact vectors of evenly spaced documents."""
        samples: list[Sample] = []
        for row in range(0, len(doc_ids), self._sample_step):
            vectors = {}
            for field, matrix in impacts.items():
                vocabulary = self._fields[field].weights.vocabulary
                vectors[field] = row_as_dict(matrix, row, vocabulary)
            sample: Sample = {"id": doc_ids[row], "vector": vectors.get(SPARSE, {})}
            if BM25 in vectors:
                sample["bm25"] = vectors[BM25]
            samples.append(sample)
        return samples

    def _in_order(self) -> Iterator[_Account]:
        for number in sorted(self._accounts):
            yield self._accounts[number]

    def doc_ids(self) -> Iterator[str]:
        """The doc_ids of all documents with postings, by document number."""
        for account in self._in_order():
            yield from account.doc_ids

    def samples(self) -> Iterator[Sample]:
        """The samples of all shards."""
        for account in self._in_order():
            yield from account.samples

    def unindexed(self) -> Iterator[Unindexed]:
        """All documents without a posting, with the reason."""
        for account in self._in_order():
            yield from account.unindexed

    def frequencies(self, field: str) -> np.ndarray:
        """The number of documents that hold each token of a field, int64 ``(V,)``."""
        return self._frequencies[field]

    def counts(self) -> dict[str, int]:
        """Documents = indexed + empty + rounded to nothing (+ pruned to nothing), and postings.

        Postings, impacts and weights are summed over the fields.
        """
        reasons = [document["reason"] for document in self.unindexed()]
        counts = {
            "documents": len(self._first),
            "indexed": sum(len(account.doc_ids) for account in self._in_order()),
            "empty": reasons.count(_NO_WEIGHTS),
            "rounded_to_nothing": reasons.count(_ROUNDED),
        }
        if any(source.pruning for source in self._fields.values()):
            counts["pruned_to_nothing"] = reasons.count(_PRUNED)
            counts["postings_pruned"] = self._sum("postings_pruned")
            counts["sum_impacts_pruned"] = self._sum("sum_impacts_pruned")
        for name in ("postings", "sum_impacts", "weights_rounded_to_zero", "weights_clipped"):
            counts[name] = self._sum(name)
        return counts

    def field_counts(self, field: str) -> dict[str, int]:
        """Postings, sum of impacts, and weights rounded to zero and clipped, of one field."""
        names = ("postings", "sum_impacts", "weights_rounded_to_zero", "weights_clipped")
        return {name: self._counts[field][name] for name in names}

    def _sum(self, name: str) -> int:
        return sum(counts[name] for counts in self._counts.values())


def _make_impacts(source: FieldSource, weights: sparse.csr_matrix) -> _FieldShard:
    rounded, num_zeroed, num_clipped = quantize(weights, source.rule, source.query_weights)
    impacts, num_pruned, sum_pruned = prune(rounded, source.pruning)
    counts = {
        "postings": int(impacts.nnz),
        "sum_impacts": int(impacts.sum(dtype=np.int64)),
        "weights_rounded_to_zero": num_zeroed,
        "weights_clipped": num_clipped,
        "postings_pruned": num_pruned,
        "sum_impacts_pruned": sum_pruned,
    }
    return _FieldShard(weights, rounded, impacts, counts)


def _reason_of_loss(shard: _FieldShard, row: int) -> str:
    """The step at which a document lost its last posting of a field."""
    if shard.weights.indptr[row] == shard.weights.indptr[row + 1]:
        return _NO_WEIGHTS
    if shard.rounded.indptr[row] == shard.rounded.indptr[row + 1]:
        return _ROUNDED
    return _PRUNED
