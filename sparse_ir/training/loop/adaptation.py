"""The steps before ranking: a bag-of-words objective, or a decoder's language-model losses."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparse_ir.errors import TrainingError
from sparse_ir.training.encoders import warm_start
from sparse_ir.training.encoders.language_model import Packed
from sparse_ir.training.encoders.trainable_decoder import TrainableDecoder
from sparse_ir.training.loop.representation import represent, seed_of, split_chunks, syncing
from sparse_ir.training.loop.training_setup import TrainingSetup
from sparse_ir.training.sources.batches import TrainingBatch
from sparse_ir.training.sources.training_source import pick


class Adaptation:
    """The warm start of a training; ``packed`` holds its only state."""

    def __init__(self, setup: TrainingSetup) -> None:
        self._setup = setup
        self.packed: Packed | None = None  # the documents of all sources, where they are joined
        settings = setup.config.warm_start
        if settings.packed_length is not None and settings.steps:
            assert isinstance(setup.student, TrainableDecoder)
            texts = list(itertools.chain.from_iterable(setup.documents))
            self.packed = setup.student.pack(texts, settings.packed_length, setup.config.run.seed)

    def take_step(self, step: int, batch: TrainingBatch) -> dict[str, float]:
        """Leave the gradients of a step on the weights; returns what is worth logging.

        Raises ``TrainingError`` for a loss that is not finite.
        """
        if self._setup.config.warm_start.objective == "bag_of_words":
            return self._bag_of_words(step, batch)
        return self._language_model(step, batch)

    def _bag_of_words(self, step: int, batch: TrainingBatch) -> dict[str, float]:
        setup = self._setup
        assert setup.idf_V is not None
        ids = setup.student.tokenize_documents(batch.documents)
        pooled_NV, send_back = represent(setup, step, ids, scores=True)
        loss = warm_start.bag_of_words_loss(pooled_NV, ids, setup.idf_V)
        torch.autograd.backward(loss)
        send_back()
        value = float(loss.detach())
        _check_finite(step, "bag-of-words", value)
        return {"bag_of_words_loss": value}

    def _language_model(self, step: int, batch: TrainingBatch) -> dict[str, float]:
        """The language-model loss of documents, and the same loss on their saturated logits.

        Each loss is a sum over predicted tokens: a process or micro-batch adds its part without
        knowing the others.
        """
        setup = self._setup
        settings = setup.config.warm_start
        accelerator = setup.accelerator
        assert isinstance(setup.student, TrainableDecoder)
        seed = seed_of(setup.config.run.seed, step)
        if self.packed is None:
            length = setup.config.model.max_length
            sequences = [ids[:length] for ids in setup.student.bare_ids(batch.documents)]
        else:
            count = setup.config.batch.queries
            sequences = list(map(self.packed.at, range(step * count, (step + 1) * count)))
        examples = setup.student.make_examples(sequences, settings, seed)
        total = sum(example.predicted for example in examples)
        rows = np.array_split(np.arange(len(examples)), accelerator.num_processes)
        own = pick(examples, rows[accelerator.process_index])
        # A process without examples must still join the sum of gradients: it adds zero.
        share = 1.0 if own else 0.0
        sums_2 = self._add_gradients(step, own or examples[:1], share, total)
        if total == 0:  # texts of one token predict nothing
            return {}
        plain, saturated = (accelerator.reduce(sums_2, "sum") / max(total, 1)).tolist()
        _check_finite(step, "language-model", plain, saturated)
        return {f"{settings.objective}_loss": plain, f"{settings.objective}_relu_loss": saturated}

    def _add_gradients(self, step: int, examples: list[Any], share: float, total: int) -> Tensor:
        """Gradients of ``share`` times the loss per predicted token; returns both sums, ``[2]``."""
        setup = self._setup
        accelerator = setup.accelerator
        relu_weight = setup.config.warm_start.relu_weight
        chunks = split_chunks(examples, setup.config.batch.micro_batch)
        sums_2 = torch.zeros(2, device=accelerator.device)
        for number, chunk in enumerate(chunks):
            rank = accelerator.process_index
            torch.manual_seed(seed_of(setup.config.run.seed, step, rank, number))
            with syncing(setup, is_last=number == len(chunks) - 1):
                parts_2 = setup.wrapped(chunk)
                loss = (parts_2[0] + relu_weight * parts_2[1]) / max(total, 1)
                accelerator.backward(share * loss * accelerator.num_processes)
            sums_2 += share * parts_2.detach()
        return sums_2


def _check_finite(step: int, name: str, *values: float) -> None:
    if not math.isfinite(sum(values)):
        raise TrainingError(
            f"step {step}: the {name} loss is {values[0]}; lower warm_start.learning_rate"
        )
