"""A training put together from its configuration: sources, teachers, dev sets, trainer, model card.

The commands ``train`` and ``teach`` call the functions of the same names; the loop itself is in
``trainer``.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sparse_ir.console import progress_bar
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
from sparse_ir.training.teachers.cache import Prepared
from sparse_ir.training.teachers.pairwise import PairTeacher

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
    dev = [dev_sets.read_dev_set(**dataclasses.asdict(each)) for each in config.dev]
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
        options = dataclasses.asdict(settings)
        weight = options.pop("weight")
        source = pairs.read_source(**options)
        weight = weight or math.sqrt(len(source.queries))
        sources.append(dataclasses.replace(source, weight=weight))
    return sources


def open_teachers(
    config: TrainConfig, sources: Sequence[TrainingSource], cache: Path
) -> list[tuple[Teacher | None, float]]:
    """Each teacher with its weight; None stands for the scores in the training files."""
    return [(settings.open(sources, cache), settings.weight) for settings in config.teacher]


def prepare_teachers(
    teachers: Sequence[Teacher],
    sources: Sequence[TrainingSource],
    pairs: Callable[[], Iterable[tuple[str, str]]],
    progress: bool = False,
) -> dict[str, Any]:
    """Fill the caches for all texts of the sources; return a JSON-able report.

    For each teacher the report has its name and fingerprint, ``texts`` (distinct texts, summed over
    the sources; or pairs, distinct among each 100,000), ``forward_passes`` (how many of them needed
    the network), ``cache_hits`` (how many did not) and ``seconds``.

    Args:
        teachers: The teachers.
        sources: Training data; each source is prepared on its own.
        pairs: Returns the (query, document) pairs that training will ask a teacher of pairs for.
        progress: Show a bar for each teacher and source.
    """
    return {
        "teachers": [_prepare_teacher(teacher, sources, pairs, progress) for teacher in teachers]
    }


def _prepare_teacher(
    teacher: Teacher,
    sources: Sequence[TrainingSource],
    pairs: Callable[[], Iterable[tuple[str, str]]],
    progress: bool,
) -> dict[str, Any]:
    start = time.perf_counter()
    total = Prepared(0, 0)
    if isinstance(teacher, PairTeacher):
        with progress_bar(None, progress, desc=f"{teacher.name}: batches", unit=" pairs") as bar:
            total = teacher.prepare_pairs(pairs(), bar.update)
    else:
        for source in sources:
            with progress_bar(
                None, progress, desc=f"{teacher.name}: {source.name}", unit=" texts"
            ) as bar:
                total = total.plus(teacher.prepare(source.queries, source.documents, bar.update))
    return {
        "name": teacher.name,
        "fingerprint": teacher.fingerprint,
        "texts": total.texts,
        "forward_passes": total.forward_passes,
        "cache_hits": total.texts - total.forward_passes,
        "seconds": round(time.perf_counter() - start, 3),
    }
