"""What a training is made of: devices, network, query weights, batches and optimizer."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparse_ir import extras
from sparse_ir.errors import ConfigError
from sparse_ir.models import loading, static_queries
from sparse_ir.models.idf import compute_idf
from sparse_ir.training.configuration.config import TrainConfig
from sparse_ir.training.encoders import trainable_decoder, trainable_encoder, warm_start
from sparse_ir.training.encoders.trainable_encoder import Start, TokenWeights, TrainableEncoder
from sparse_ir.training.loop import optimization
from sparse_ir.training.objectives.penalties import NONE, PENALTIES
from sparse_ir.training.sources.batches import Batches
from sparse_ir.training.sources.training_source import TrainingSource, is_blank

_PRECISIONS = {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}
_SAMPLE = 8  # documents of each source from which a new output layer learns what states look like


@dataclass(frozen=True)
class TrainingSetup:
    """The parts of one training, as every step uses them; V is the size of the vocabulary."""

    config: TrainConfig
    accelerator: Any  # accelerate.Accelerator
    start: Start
    student: TrainableEncoder
    wrapped: torch.nn.Module  # the student as accelerate prepared it, for steps of all processes
    query_side: TokenWeights | None  # None: queries are neural
    idf_V: Tensor | None  # where the warm start or a penalty needs it
    optimizer: Any  # accelerate.optimizer.AcceleratedOptimizer
    batches: Batches
    documents: Sequence[Sequence[str]]  # the texts of each source
    sample: list[str]  # some documents of each source
    has_new_head: bool  # the output layer began with token vectors

    @property
    def ranking_start(self) -> int:
        """The first step after the warm start."""
        return self.config.warm_start.steps


def open_training(config: TrainConfig, sources: Sequence[TrainingSource]) -> TrainingSetup:
    """Open network, query weights, batches and optimizer on the devices of this process.

    Raises ``ConfigError`` for settings that the devices or the network cannot take, ``ModelError``
    for a start that cannot be trained.
    """
    accelerator = _open_devices(config)
    torch.manual_seed(config.run.seed)  # a new output layer may be drawn at random
    sample = sample_documents(sources)
    start, student = trainable_decoder.open_trainable(config)
    has_new_head = _prepare_head(config, start, student, sample)
    batches = make_batches(config, sources)
    _check_terms(config, student.size)
    documents = [source.documents for source in sources]
    query_side, idf_V = _open_queries(config, start, student, documents)
    if config.run.gradient_checkpointing:
        loading.checkpoint_activations(student.model)
    student.to(accelerator.device)
    if query_side is not None:
        query_side.to(accelerator.device)
    optimizer = optimization.make_optimizer(config.optimizer, student, query_side)
    wrapped, optimizer = accelerator.prepare(student, optimizer)
    return TrainingSetup(
        config=config,
        accelerator=accelerator,
        start=start,
        student=student,
        wrapped=wrapped,
        query_side=query_side,
        idf_V=None if idf_V is None else idf_V.to(accelerator.device),
        optimizer=optimizer,
        batches=batches,
        documents=documents,
        sample=sample,
        has_new_head=has_new_head,
    )


def make_batches(config: TrainConfig, sources: Sequence[TrainingSource]) -> Batches:
    """The batches of a training."""
    settings = config.batch
    return Batches(
        sources,
        queries=settings.queries,
        negatives=settings.negatives,
        queries_per_positive=settings.queries_per_positive,
        neighbourhood=settings.neighbourhood,
        seed=config.run.seed,
    )


def sample_documents(sources: Sequence[TrainingSource]) -> list[str]:
    """The first documents of each source that are not blank."""
    sample: list[str] = []
    for source in sources:
        visible = itertools.filterfalse(is_blank, source.documents)
        sample.extend(itertools.islice(visible, _SAMPLE))
    return sample


def _open_devices(config: TrainConfig) -> Any:
    has_gpu = torch.cuda.is_available()
    if config.run.precision == "float16" and not has_gpu:
        raise ConfigError(
            "run.precision is 'float16', which needs a GPU; it must be 'float32' or 'bfloat16' here"
        )
    with extras.importing():
        import accelerate

    # Without a reset, the precision of an earlier training in this process would stay.
    accelerate.state.AcceleratorState._reset_state()
    accelerator = accelerate.Accelerator(
        mixed_precision=_PRECISIONS[config.run.precision], cpu=not has_gpu
    )
    # The others would wait for ever for the gradients of a process without a text.
    if accelerator.num_processes > config.batch.queries:
        raise ConfigError(
            f"batch.queries is {config.batch.queries} with {accelerator.num_processes} processes; "
            "it must be at least one for each process"
        )
    return accelerator


def _prepare_head(
    config: TrainConfig, start: Start, student: TrainableEncoder, sample: list[str]
) -> bool:
    """Fill a new output layer; returns whether it begins with token vectors."""
    wants_vectors = config.warm_start.head == "token_vectors"
    if start.grown:
        if wants_vectors:
            warm_start.give_token_vectors(student, start.grown, sample)
        warm_start.switch_off_special_tokens(student)
        return wants_vectors
    if wants_vectors:
        raise ConfigError(
            f"warm_start.head is 'token_vectors' and {config.model.start} has an output layer of "
            "its own; it must be 'tied', which keeps that layer"
        )
    return False


def _check_terms(config: TrainConfig, vocabulary_size: int) -> None:
    settings = {
        "[documents] target_terms": config.documents.target_terms,
        "blend.terms": config.blend.terms,
        "[queries] target_terms": config.queries.target_terms,
    }
    for name, terms in settings.items():
        if terms is not None and terms > vocabulary_size:
            raise ConfigError(
                f"{name} is {terms}; it must be at most {vocabulary_size}, the tokens of this "
                "vocabulary"
            )


def _open_queries(
    config: TrainConfig, start: Start, student: TrainableEncoder, documents: Sequence[Sequence[str]]
) -> tuple[TokenWeights | None, Tensor | None]:
    """The static query side, and the IDF of each token where something needs it."""

    def texts() -> Iterator[str]:
        return itertools.chain.from_iterable(documents)

    settings = config.model
    weights = trainable_encoder.choose_query_weights(start, settings, texts, student.rules)
    query_side = None
    if weights is not None:
        query_side = TokenWeights(student, weights, learned=settings.query == "learned")
    needs_idf = config.warm_start.steps > 0
    for penalty in {config.documents.penalty, config.queries.penalty} - {NONE}:
        needs_idf = needs_idf or "idf_V" in PENALTIES[penalty].token_facts
    idf: np.ndarray | None = None
    if settings.query in ("idf", "learned"):
        idf = weights
    elif needs_idf:
        if settings.idf is None:
            idf = compute_idf(texts(), student.rules)
        else:
            path = Path(settings.idf)
            idf = static_queries.from_idf_json(path, student.rules, "opensearch").weights
    if idf is None:
        return query_side, None
    return query_side, TokenWeights(student, idf, learned=False).weights_V.detach()
