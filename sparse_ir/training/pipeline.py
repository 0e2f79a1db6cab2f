"""A training put together from its configuration: sources, teachers, dev sets, trainer, model card.

The commands ``train`` and ``teach`` call the functions of the same names; the loop itself is in
``trainer``.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sparse_ir.environment import package_versions
from sparse_ir.training import model_card
from sparse_ir.training.configuration import config_parser
from sparse_ir.training.configuration.config import TrainConfig
from sparse_ir.training.loop import dev_sets
from sparse_ir.training.loop.trainer import Trainer
from sparse_ir.training.loop.training_setup import make_batches
from sparse_ir.training.sources import pairs
from sparse_ir.training.sources.training_source import TrainingSource
from sparse_ir.training.teachers.base import Teacher
from sparse_ir.training.teachers.preparation import prepare_teachers

_CACHE = "teacher-cache"
_RECORDED_PACKAGES = ("torch", "transformers", "accelerate", "sparse-ir-toolkit")


def train(
    config_path: Path, output: Path, *, cache: Path | None = None, progress: bool = False
) -> dict[str, Any]:
    """Train by a configuration file, or resume the training in the folder ``output``.

    The report has the number of forward passes of each teacher, which is 0 after ``teach``.
    """
    config = config_parser.read_config(config_path)
    sources = read_sources(config)
    teachers = open_teachers(config, sources, cache or output / _CACHE)
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
    trainer = Trainer(config, sources, output, teachers=teachers, dev=dev)
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
    passes = [
        {"name": teacher.name, "forward_passes": teacher.forward_passes}
        for teacher, _ in teachers
        if teacher is not None
    ]
    if passes:
        report["teachers"] = passes
    return report


def teach(config_path: Path, cache: Path, *, progress: bool = False) -> dict[str, Any]:
    """Compute and keep everything that a training will ask its teachers for; return a report.

    Teachers of texts prepare each text of the sources; teachers of pairs prepare each pair of the
    batches, up to the last step.
    """
    config = config_parser.read_config(config_path)
    sources = read_sources(config)
    teachers = []
    for teacher, _ in open_teachers(config, sources, cache):
        if teacher is not None:
            teachers.append(teacher)
    return prepare_teachers(teachers, sources, lambda: asked_pairs(config, sources), progress)


def asked_pairs(
    config: TrainConfig, sources: Sequence[TrainingSource]
) -> Iterator[tuple[str, str]]:
    """The (query, document) pairs that the ranking steps score, batch by batch as in training."""
    batches = make_batches(config, sources)
    for step in range(config.warm_start.steps, config.run.stop_after or config.run.steps):
        batch = batches.at(step)
        for query, document in np.argwhere(batch.candidates(config.batch.in_batch)).tolist():
            yield batch.queries[query], batch.documents[document]


def read_sources(config: TrainConfig) -> list[TrainingSource]:
    """All sources; the weight is by default the square root of the number of queries."""
    sources = []
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
        sources.append(dataclasses.replace(source, weight=weight))
    return sources


def open_teachers(
    config: TrainConfig, sources: Sequence[TrainingSource], cache: Path
) -> list[tuple[Teacher | None, float]]:
    """Each teacher with its weight; None stands for the scores in the training files."""
    return [(settings.open(sources, cache), settings.weight) for settings in config.teacher]
