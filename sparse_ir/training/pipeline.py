"""A training run put together from its configuration: sources, teachers, dev sets, the trainer, and
the model card.

``train`` and ``teach`` are what the command line calls; the loop itself is in ``training``.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sparse_ir.environment import package_versions
from sparse_ir.errors import ConfigError
from sparse_ir.training import config_parser, dev_sets, model_card, pairs
from sparse_ir.training.config import TeacherSettings, TrainConfig
from sparse_ir.training.teachers import base
from sparse_ir.training.teachers.bm25 import Bm25Teacher
from sparse_ir.training.teachers.dense import DenseTeacher
from sparse_ir.training.teachers.pair_scorers import CrossEncoderTeacher, MonoT5Teacher
from sparse_ir.training.teachers.sparse import SparseTeacher
from sparse_ir.training.trainer import Trainer
from sparse_ir.training.training_setup import make_batches
from sparse_ir.training.training_source import TrainingSource

_CACHE = "teacher-cache"
_RECORDED_PACKAGES = ("torch", "transformers", "accelerate", "sparse-ir-toolkit")


def train(
    config_path: Path, output: Path, *, cache: Path | None = None, progress: bool = False
) -> dict[str, Any]:
    """Train by a configuration file in the folder ``output``, or go on with what was begun there.

    The report says how many forward passes each teacher made on the way: none where ``teach`` went
    before.
    """
    config = config_parser.read_config(config_path)
    sources = read_sources(config)
    judges = open_teachers(config, sources, cache or output / _CACHE)
    dev = [
        dev_sets.read_dev_set(
            each.path,
            name=each.name,
            split=each.split,
            measure=each.measure,
            max_queries=each.queries,
            max_documents=each.documents,
        )
        for each in config.dev
    ]
    trainer = Trainer(config, sources, output, teachers=judges, dev=dev)
    report = trainer.run(progress=progress)
    if trainer.is_main_process:
        model_card.write_card(
            Path(report["model"]),
            config,
            sources=trainer.batches.describe(),
            report=report,
            command=f"sparse-ir train --config {config_path.name} --output {output.name}",
            versions=package_versions(_RECORDED_PACKAGES),
        )
    made = [
        {"name": judge.name, "forward_passes": judge.forward_passes}
        for judge, _ in judges
        if judge is not None
    ]
    return {**report, "teachers": made} if made else report


def teach(config_path: Path, cache: Path, *, progress: bool = False) -> dict[str, Any]:
    """Compute and keep all that the teachers of a configuration are asked for in its run.

    Of bi-encoders that is each text; of cross-encoders and monoT5 each pair of its batches, up to
    its last step.
    """
    config = config_parser.read_config(config_path)
    sources = read_sources(config)
    judges = [judge for judge, _ in open_teachers(config, sources, cache) if judge is not None]
    return base.prepare_teachers(judges, sources, lambda: asked_pairs(config, sources), progress)


def asked_pairs(
    config: TrainConfig, sources: Sequence[TrainingSource]
) -> Iterator[tuple[str, str]]:
    """The (query, document) pairs whose scores the ranking steps of a run need, batch by batch as
    ``training`` does.
    """
    batches = make_batches(config, sources)
    for step in range(config.warm_start.steps, config.run.stop_after or config.run.steps):
        batch = batches.at(step)
        for query, document in np.argwhere(batch.candidates(config.batch.in_batch)).tolist():
            yield batch.queries[query], batch.documents[document]


def read_sources(config: TrainConfig) -> list[TrainingSource]:
    """All sources of a configuration; without a stated weight a source weighs the square root of
    its queries.
    """
    found = []
    for settings in config.data:
        source = pairs.read_source(
            settings.path,
            split=settings.split,
            name=settings.name,
            limit=settings.limit,
            negatives=Path(settings.negatives) if settings.negatives else None,
            allow_missing=settings.allow_missing,
        )
        weight = settings.weight or math.sqrt(len(source.queries))
        found.append(dataclasses.replace(source, weight=weight))
    return found


def open_teachers(
    config: TrainConfig, sources: Sequence[TrainingSource], cache: Path
) -> list[tuple[Any, float]]:
    """Each teacher with its weight; None stands for the scores in the training files."""
    return [
        (_open_teacher(settings, sources, cache), settings.weight) for settings in config.teacher
    ]


def _open_teacher(settings: TeacherSettings, sources: Sequence[TrainingSource], cache: Path) -> Any:
    if settings.kind == "file":
        if without := [source.name for source in sources if source.scores is None]:
            raise ConfigError(
                f"teacher of kind 'file': the source {without[0]!r} has no scores "
                "of a teacher in it; "
                "allowed: .jsonl sources with scores in each line, or another kind "
                "of teacher"
            )
        return None
    if settings.kind == "bm25":
        texts = [text for source in sources for text in source.documents]
        return Bm25Teacher(texts, settings.k1, settings.b, cache=cache)
    assert settings.model is not None  # checked when the configuration was read
    if settings.kind == "sparse":
        return SparseTeacher(
            settings.model,
            cache=cache,
            revision=settings.revision,
            precision=settings.dtype,
            max_length=settings.max_length,
            allow_pickle=settings.allow_pickle,
        )
    shared: dict[str, Any] = {
        "revision": settings.revision,
        "cache": cache,
        "dtype": settings.dtype,
        "max_length": settings.max_length,
        "allow_pickle": settings.allow_pickle,
    }
    if settings.kind == "dense":
        return DenseTeacher(
            settings.model,
            **shared,
            pooling=settings.pooling,  # type: ignore[arg-type]
            similarity=settings.similarity,  # type: ignore[arg-type]
            query_prompt=settings.query_prompt,
            document_prompt=settings.document_prompt,
        )
    kind = {"cross-encoder": CrossEncoderTeacher, "monot5": MonoT5Teacher}[settings.kind]
    return kind(settings.model, **shared)
