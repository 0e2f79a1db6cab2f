"""Sparse encoders as teachers."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic.dataclasses import dataclass
from scipy import sparse

from sparse_ir import extras
from sparse_ir.errors import ConfigError, ModelError
from sparse_ir.models.batching import encode_queries, rows_to_csr
from sparse_ir.training.fields import SECTION
from sparse_ir.training.teachers.base import Computed, NetworkSettings, TextTeacher, shorten
from sparse_ir.training.teachers.layouts import TextRole

_TEXTS_PER_SPARSE_WINDOW = 256


class SparseTeacher(TextTeacher):
    """A learned-sparse encoder with its own query side; scores are dot products."""

    def __init__(self, model: Any, *, cache: Path | None = None, **options: Any) -> None:
        """Load the encoder and open the cache; raises what ``Encoder.load`` raises.

        Args:
            model: Folder or hub name, or a document encoder object.
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
        self.name = str(model.fingerprint.get("name") or model.fingerprint["kind"])
        self.fingerprint = {
            "kind": "sparse",
            "name": self.name,
            "document": model.fingerprint,
            "query": self._sides["query"].fingerprint,
        }
        self._open_cache(cache, "sparse", self.fingerprint)

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
        rows = []
        for value in self._fetch(self.keys(texts, role), texts, role):
            half = len(value) // 2  # token ids, then their weights
            ids = np.frombuffer(value[:half], dtype="<i4")
            rows.append((ids, np.frombuffer(value[half:], dtype="<f4")))
        return rows_to_csr(rows, self._width)

    def _compute(self, texts: Sequence[str], role: str) -> Iterator[Computed]:
        for start in range(0, len(texts), _TEXTS_PER_SPARSE_WINDOW):
            part = texts[start : start + _TEXTS_PER_SPARSE_WINDOW]
            if role == "query":
                matrix = encode_queries(self._sides["query"], part)
            else:
                matrix = self._sides["document"].encode(part)
            values = []
            bounds = itertools.pairwise(matrix.indptr)
            for text, (first, last) in zip(part, bounds, strict=True):
                weights = matrix.data[first:last].astype("<f4")
                if not np.isfinite(weights).all():
                    raise ModelError(
                        f"{self.name} gives a weight that is not finite to {shorten(text)}"
                    )
                ids = matrix.indices[first:last].astype("<i4")
                values.append(ids.tobytes() + weights.tobytes())
            yield range(start, start + len(part)), values


@dataclass(frozen=True, config=SECTION, kw_only=True)
class SparseSettings(NetworkSettings):
    """A learned-sparse encoder with its own query side."""

    teacher: ClassVar = SparseTeacher
    kind: Literal["sparse"] = "sparse"

    def options(self) -> dict[str, Any]:
        """The options of ``Encoder.load``."""
        options = super().options()
        options["precision"] = options.pop("dtype")
        return options
