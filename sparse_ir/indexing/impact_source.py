"""Weights become impacts shard by shard, while an engine asks for them.

Every document is accounted for.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple, TypedDict

import numpy as np
from scipy import sparse

from sparse_ir.engines.base import SPARSE, ImpactBatch
from sparse_ir.indexing.forward import ForwardWriter
from sparse_ir.indexing.pruning import Pruning, prune
from sparse_ir.indexing.quantization import Rule, quantize
from sparse_ir.indexing.vectors import Vectors, row_as_dict

NUM_SAMPLES = 64

_NO_WEIGHTS = "no weights"
_ROUNDED = "all weights rounded to zero"
_PRUNED = "all impacts pruned"


class Sample(TypedDict):
    """The exact impacts of one document, as ``samples.jsonl`` keeps them."""

    id: str
    vector: dict[str, int]


class Unindexed(TypedDict):
    """A document without a posting, as ``unindexed.jsonl`` keeps it."""

    doc_id: str
    reason: str


class _Account(NamedTuple):
    """What became of the documents and weights of one shard."""

    doc_ids: list[str]  # of the documents with postings
    unindexed: list[Unindexed]
    samples: list[Sample]
    frequencies: np.ndarray  # int64 (V,): documents that hold each token
    counts: dict[str, int]


class ImpactSource:
    """The impacts of a folder of vectors under one rule; safe to use from several threads.

    ``query_weights`` float ``(V,)``: the static query weights that a folded rule multiplies in.
    ``forward_writer``: gets the same impacts, document by document.
    """

    def __init__(
        self,
        vectors: Vectors,
        rule: Rule,
        query_weights: np.ndarray | None,
        pruning: Pruning,
        forward_writer: ForwardWriter | None,
    ) -> None:
        self._vectors = vectors
        self._rule = rule
        self._query_weights = query_weights
        self._pruning = pruning
        self._forward_writer = forward_writer
        self._sample_step = max(1, len(vectors) // NUM_SAMPLES)
        self._accounts: dict[int, _Account] = {}

    def batches(self) -> list[Callable[[], ImpactBatch]]:
        """A function for each shard that quantizes it and keeps its account."""
        shards = range(self._vectors.num_shards)
        return [functools.partial(self._read_batch, number) for number in shards]

    def _read_batch(self, number: int) -> ImpactBatch:
        doc_ids, weights = self._vectors.read_shard(number)
        rounded, num_zeroed, num_clipped = quantize(weights, self._rule, self._query_weights)
        impacts, num_pruned, sum_pruned = prune(rounded, self._pruning)
        unindexed: list[Unindexed] = []
        for row in np.flatnonzero(np.diff(impacts.indptr) == 0):
            reason = _reason_of_loss(weights, rounded, int(row))
            unindexed.append({"doc_id": doc_ids[row], "reason": reason})
        filled = np.flatnonzero(np.diff(impacts.indptr))
        kept = impacts[filled]
        kept_ids = [doc_ids[row] for row in filled]
        if self._forward_writer is not None:
            self._forward_writer.add(number, kept)
        counts = {
            "postings": int(kept.nnz),
            "sum_impacts": int(kept.sum(dtype=np.int64)),
            "weights_rounded_to_zero": num_zeroed,
            "weights_clipped": num_clipped,
            "postings_pruned": num_pruned,
            "sum_impacts_pruned": sum_pruned,
        }
        frequencies = np.bincount(kept.indices, minlength=kept.shape[1])
        samples = self._take_samples(kept_ids, kept)
        self._accounts[number] = _Account(kept_ids, unindexed, samples, frequencies, counts)
        return ImpactBatch(kept_ids, {SPARSE: kept})

    def _take_samples(self, doc_ids: list[str], impacts: sparse.csr_matrix) -> list[Sample]:
        """The exact vectors of evenly spaced documents."""
        samples: list[Sample] = []
        for row in range(0, len(doc_ids), self._sample_step):
            vector = row_as_dict(impacts, row, self._vectors.vocabulary)
            samples.append({"id": doc_ids[row], "vector": vector})
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

    def frequencies(self) -> np.ndarray:
        """The number of documents that hold each token, int64 ``(V,)``."""
        total = np.zeros(len(self._vectors.vocabulary), dtype=np.int64)
        for account in self._in_order():
            total += account.frequencies
        return total

    def counts(self) -> dict[str, int]:
        """Documents = indexed + empty + rounded to nothing (+ pruned to nothing), and postings."""
        reasons = [document["reason"] for document in self.unindexed()]
        counts = {
            "documents": len(self._vectors),
            "indexed": sum(len(account.doc_ids) for account in self._in_order()),
            "empty": reasons.count(_NO_WEIGHTS),
            "rounded_to_nothing": reasons.count(_ROUNDED),
        }
        if self._pruning:
            counts["pruned_to_nothing"] = reasons.count(_PRUNED)
            counts["postings_pruned"] = self._sum("postings_pruned")
            counts["sum_impacts_pruned"] = self._sum("sum_impacts_pruned")
        for name in ("postings", "sum_impacts", "weights_rounded_to_zero", "weights_clipped"):
            counts[name] = self._sum(name)
        return counts

    def _sum(self, name: str) -> int:
        return sum(account.counts[name] for account in self._in_order())


def _reason_of_loss(weights: sparse.csr_matrix, rounded: sparse.csr_matrix, row: int) -> str:
    """The step at which a document lost its last posting."""
    if weights.indptr[row] == weights.indptr[row + 1]:
        return _NO_WEIGHTS
    if rounded.indptr[row] == rounded.indptr[row + 1]:
        return _ROUNDED
    return _PRUNED
