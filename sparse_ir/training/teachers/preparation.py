"""Fill the caches of teachers before training: every text or pair that it will need."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from sparse_ir.console import progress_bar
from sparse_ir.training.sources.training_source import TrainingSource
from sparse_ir.training.teachers.base import Teacher
from sparse_ir.training.teachers.cache import Prepared
from sparse_ir.training.teachers.pairwise import PairTeacher


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
