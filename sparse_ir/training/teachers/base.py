"""Teachers: scores of (query, document) pairs by dense, sparse and cross-encoders and by BM25,
computed once.

What a network has computed goes into a cache with its provenance (``cache``): vectors of
bi-encoders, scores of cross-encoders. With everything in the cache, no network is loaded at all.
Combining teachers is the work of ``losses``.

Q queries, D documents, N texts, V vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import numpy as np
from tqdm import tqdm

from sparse_ir.training.teachers.cache import Prepared, Progress
from sparse_ir.training.teachers.pair_scorers import PairTeacher
from sparse_ir.training.training_source import TrainingSource


class Teacher(Protocol):
    """What the trainer asks of a teacher."""

    @property
    def name(self) -> str:
        """A short name, with which that of the cache file begins."""

    @property
    def fingerprint(self) -> dict[str, Any]:
        """JSON-able facts that decide the scores."""

    @property
    def in_batch(self) -> bool:
        """Whether all pairs of a batch are cheap; if not, only wanted pairs are scored."""

    def scores(
        self, queries: Sequence[str], documents: Sequence[str], wanted_QD: np.ndarray | None = None
    ) -> np.ndarray:
        """float32 ``[Q, D]``; NaN where a teacher that is not ``in_batch`` was not asked."""

    def prepare(
        self, queries: Sequence[str], documents: Sequence[str], progress: Progress | None = None
    ) -> Prepared:
        """Compute and keep what ``scores`` will need for these texts."""


def score_matrix(
    teachers: Sequence[Teacher],
    queries: Sequence[str],
    documents: Sequence[str],
    wanted_QD: np.ndarray | None = None,
) -> list[np.ndarray]:
    """One float32 ``[Q, D]`` for each teacher; NaN where a teacher that is not ``in_batch`` was not
    asked.
    """
    return [teacher.scores(queries, documents, wanted_QD) for teacher in teachers]


def prepare_teachers(
    teachers: Sequence[Teacher],
    sources: Sequence[TrainingSource],
    pairs: Callable[[], Iterable[tuple[str, str]]],
    progress: bool = False,
) -> dict[str, Any]:
    """Fill the caches for all texts of the sources; a JSON-able report of the work.

    A teacher that is not ``in_batch`` scores the (query, document) ``pairs`` that it will be asked
    for, and no other. The report has for each teacher its name and fingerprint, the distinct texts
    of each source summed (or the pairs, distinct among each 100,000), how many of them needed the
    network (``forward_passes``), how many did not (``cache_hits``), and seconds. ``progress`` shows
    a bar.
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
    if isinstance(teacher, PairTeacher):
        with _bar(f"{teacher.name}: batches", " pairs", progress) as bar:
            done = [teacher.prepare_pairs(pairs(), bar.update)]
    else:
        done = []
        for source in sources:
            with _bar(f"{teacher.name}: {source.name}", " texts", progress) as bar:
                done.append(teacher.prepare(source.queries, source.documents, bar.update))
    texts, passes = (sum(numbers) for numbers in zip((0, 0), *done, strict=True))
    return {
        "name": teacher.name,
        "fingerprint": teacher.fingerprint,
        "texts": texts,
        "forward_passes": passes,
        "cache_hits": texts - passes,
        "seconds": round(time.perf_counter() - start, 3),
    }


def _bar(what: str, unit: str, progress: bool) -> tqdm:
    return tqdm(desc=what, unit=unit, disable=None if progress else True, dynamic_ncols=True)
