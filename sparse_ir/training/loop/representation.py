"""The vectors of a step's texts, and the way of their gradients back into the network.

Each process encodes its share of the texts and receives the rows of all others, so that a loss sees
the whole batch. Vectors are leaves of the graph: a loss leaves a gradient on them, and
``send_back`` carries it on into the network. With micro-batches no graph is kept; each micro-batch
is encoded again when its gradient is known (GradCache, arXiv 2101.06983), with the same random
numbers. One process, several processes, and micro-batches therefore give the same loss.

N texts, D documents, Q queries, V vocabulary.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sparse_ir.training.loop.training_setup import TrainingSetup
from sparse_ir.training.sources.batches import TrainingBatch
from sparse_ir.training.sources.training_source import pick


class Represented(NamedTuple):
    """The vectors of a batch, on every process."""

    documents_DV: Tensor
    queries_QV: Tensor
    send_back: Callable[[], None]  # carries the gradient on the vectors into the network


def represent_batch(setup: TrainingSetup, step: int, batch: TrainingBatch) -> Represented:
    """Encode the documents and queries of a batch; neural queries pass the network with them."""
    ids = setup.student.tokenize_documents(batch.documents)
    query_ids = setup.student.tokenize_queries(batch.queries)
    if setup.query_side is not None:
        documents_DV, send_back = represent(setup, step, ids)
        return Represented(documents_DV, setup.query_side(query_ids), send_back)
    both_NV, send_back = represent(setup, step, [*ids, *query_ids])
    return Represented(both_NV[: len(ids)], both_NV[len(ids) :], send_back)


def represent(
    setup: TrainingSetup, step: int, ids: Sequence[Any], *, scores: bool = False
) -> tuple[Tensor, Callable[[], None]]:
    """``[N, V]`` float32 for texts given as token ids, and the function that sends gradients back.

    With ``scores``, the rows are the largest logits before the activation instead of weights.
    """
    share = _Share(setup, step, ids, scores)
    leaf = share.encode().requires_grad_(True)
    return gather(setup, leaf, share.counts), lambda: share.send_back(leaf.grad)


class _Share:
    """The texts of a step that this process encodes, in micro-batches."""

    def __init__(self, setup: TrainingSetup, step: int, ids: Sequence[Any], scores: bool) -> None:
        self._setup = setup
        self._step = step
        self._ids = ids
        self._scores = scores
        rank = setup.accelerator.process_index
        rows = np.array_split(np.arange(len(ids)), setup.accelerator.num_processes)
        self.counts = list(map(len, rows))  # texts of each process
        self._chunks = split_chunks(rows[rank], setup.config.batch.micro_batch)
        # The first share is the largest: all processes decide alike.
        micro_batch = setup.config.batch.micro_batch
        self._keeps_graph = micro_batch is None or self.counts[0] <= micro_batch
        self._parts: list[Tensor] = []

    def encode(self) -> Tensor:
        """The rows of this process, cut off from the graph."""
        if not self._chunks:
            setup = self._setup
            return torch.zeros((0, setup.student.size), device=setup.accelerator.device)
        with contextlib.nullcontext() if self._keeps_graph else torch.no_grad():
            self._parts = list(map(self._encode_chunk, range(len(self._chunks))))
        return torch.cat(self._parts).detach()

    def send_back(self, gradient: Tensor | None) -> None:
        """Carry the gradient on this process's rows into the network."""
        if gradient is None or not self._chunks:
            return
        accelerator = self._setup.accelerator
        start = 0
        for number, chunk in enumerate(self._chunks):
            with syncing(self._setup, is_last=number == len(self._chunks) - 1):
                part = self._parts[number] if self._keeps_graph else self._encode_chunk(number)
                # DistributedDataParallel averages over processes, but the gradient of the loss is
                # the sum of their shares.
                wanted = gradient[start : start + len(chunk)] * accelerator.num_processes
                accelerator.backward((part * wanted).sum())
            start += len(chunk)

    def _encode_chunk(self, number: int) -> Tensor:
        setup = self._setup
        rank = setup.accelerator.process_index
        torch.manual_seed(seed_of(setup.config.run.seed, self._step, rank, number))
        chunk = pick(self._ids, self._chunks[number])
        rows_NV: Tensor = setup.wrapped(chunk, scores=self._scores)
        return rows_NV.float()


def split_chunks(rows: Sequence[Any] | np.ndarray, micro_batch: int | None) -> list[Any]:
    """The rows in micro-batches; in one piece without a ``micro_batch``."""
    size = micro_batch or max(len(rows), 1)
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def syncing(setup: TrainingSetup, *, is_last: bool) -> contextlib.AbstractContextManager[Any]:
    """A backward pass inside it sums gradients over processes for the last micro-batch only."""
    if is_last:
        return contextlib.nullcontext()
    context: contextlib.AbstractContextManager[Any] = setup.accelerator.no_sync(setup.wrapped)
    return context


def gather(setup: TrainingSetup, leaf: Tensor, counts: Sequence[int]) -> Tensor:
    """The rows of all processes in order; only this process's own rows carry gradients."""
    if len(counts) == 1:
        return leaf
    accelerator = setup.accelerator
    padded = torch.zeros((max(counts), leaf.shape[1]), device=leaf.device)
    padded[: len(leaf)] = leaf.detach()
    gathered = accelerator.gather(padded).view(len(counts), max(counts), -1)
    parts = [gathered[number, :count] for number, count in enumerate(counts)]
    parts[accelerator.process_index] = leaf
    return torch.cat(parts)


def seed_of(*numbers: int) -> int:
    """A seed of 63 bits from several numbers."""
    state = np.random.SeedSequence(numbers).generate_state(1, np.uint64)
    return int(state[0] >> np.uint64(1))
