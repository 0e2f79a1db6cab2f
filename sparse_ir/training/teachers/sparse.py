"""Sparse encoders as teachers."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic.dataclasses import dataclass
from scipy import sparse

from sparse_ir import extras
from sparse_ir.errors import ConfigError, ModelError
from sparse_ir.models.batching import encode_queries, rows_to_csr
from sparse_ir.training.fields import SECTION
from sparse_ir.training.teachers.base import NetworkSettings, package_versions, shorten
from sparse_ir.training.teachers.cache import (
    Cache,
    CachedValues,
    Computed,
    OnProgress,
    Prepared,
    key_of,
    prepare_both,
)
from sparse_ir.training.teachers.layouts import TextRole
from sparse_ir.training.training_source import TrainingSource

_TEXTS_PER_SPARSE_WINDOW = 256


@dataclass(frozen=True, config=SECTION, kw_only=True)
class SparseSettings(NetworkSettings):
    """A learned-sparse encoder with its own query side."""

    kind: Literal["sparse"] = "sparse"

    def open(self, sources: Sequence[TrainingSource], cache: Path) -> SparseTeacher:
        """The teacher with its cache in the folder ``cache``."""
        return SparseTeacher(
            self.model,
            cache=cache,
            revision=self.revision,
            precision=self.dtype,
            max_length=self.max_length,
            allow_pickle=self.allow_pickle,
        )


class SparseTeacher:
    """A learned-sparse encoder with its own query side; scores are dot products."""

    in_batch = True

    def __init__(
        self, model: Any, *, name: str | None = None, cache: Path | None = None, **options: Any
    ) -> None:
        """Load the encoder and open the cache; raises what ``Encoder.load`` raises.

        Args:
            model: Folder or hub name, or a document encoder object.
            name: Name in reports and of the cache file; by default that of the model.
            cache: Folder of the cache files; None keeps the vectors in memory.
            options: Those of ``Encoder.load``, for a folder or hub name.
        """
        if isinstance(model, str | Path):
            with extras.importing():
                from sparse_ir.models.encoder import Encoder

            model = Encoder.load(model, **options)
        elif options:
            raise ConfigError(
                f"{', '.join(options)}: options belong to a folder or hub name, not to an encoder "
                "object"
            )
        self._sides = {"document": model, "query": model.query_encoder()}
        self._width = max(len(side.vocabulary) for side in self._sides.values())
        self.name: str = name or str(model.fingerprint.get("name") or model.fingerprint["kind"])
        self.fingerprint: dict[str, Any] = {
            "kind": "sparse",
            "name": self.name,
            "document": model.fingerprint,
            "query": self._sides["query"].fingerprint,
        }
        self._cached = CachedValues(
            Cache(cache, self.name, "sparse", self.fingerprint, package_versions()), self._compute
        )

    @property
    def forward_passes(self) -> int:
        """Texts that were encoded since this teacher was made."""
        return self._cached.forward_passes

    @property
    def cache(self) -> Cache:
        """Where the vectors are kept."""
        return self._cached.cache

    def scores(
        self, queries: Sequence[str], documents: Sequence[str], wanted_QD: np.ndarray | None = None
    ) -> np.ndarray:
        """float32 ``[Q, D]``: dot products of all pairs; ``wanted_QD`` is ignored."""
        query_QV = self.vectors(queries, "query")
        document_DV = self.vectors(documents, "document")
        scores_QD: np.ndarray = (query_QV @ document_DV.T).toarray()
        return scores_QD

    def vectors(self, texts: Sequence[str], role: TextRole) -> sparse.csr_matrix:
        """CSR float32 ``[N, V]`` of the texts; what is not cached is computed."""
        keys = self.keys(texts, role)
        values = self._cached.fetch(keys, texts, role)
        return rows_to_csr([_unpack_row(values[key]) for key in keys], self._width)

    def keys(self, texts: Sequence[str], role: TextRole) -> list[bytes]:
        """The cache key of each text."""
        return [key_of(text, role) for text in texts]

    def prepare(
        self, queries: Sequence[str], documents: Sequence[str], progress: OnProgress | None = None
    ) -> Prepared:
        """Fill the cache; ``progress(n)`` is called when n more texts are done."""
        return prepare_both(self._cached, self.keys, queries, documents, progress)

    def _compute(self, texts: Sequence[str], role: str) -> Iterator[Computed]:
        for start in range(0, len(texts), _TEXTS_PER_SPARSE_WINDOW):
            part = texts[start : start + _TEXTS_PER_SPARSE_WINDOW]
            matrix = self._encode(part, "query" if role == "query" else "document")
            values = []
            bounds = itertools.pairwise(matrix.indptr)
            for text, (first, last) in zip(part, bounds, strict=True):
                weights = matrix.data[first:last]
                if not np.isfinite(weights).all():
                    raise ModelError(
                        f"{self.name} gives a weight that is not finite to {shorten(text)}"
                    )
                values.append(_pack_row(matrix.indices[first:last], weights))
            yield range(start, start + len(part)), values

    def _encode(self, texts: Sequence[str], role: TextRole) -> sparse.csr_matrix:
        side = self._sides[role]
        if role == "document":
            return side.encode(texts)
        return encode_queries(side, texts)


def _pack_row(token_ids: np.ndarray, weights: np.ndarray) -> bytes:
    return token_ids.astype("<i4").tobytes() + weights.astype("<f4").tobytes()


def _unpack_row(value: bytes) -> tuple[np.ndarray, np.ndarray]:
    half = len(value) // 2
    return np.frombuffer(value[:half], dtype="<i4"), np.frombuffer(value[half:], dtype="<f4")
