"""What an encoder of documents and an encoder of queries must offer.

N texts, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

if TYPE_CHECKING:
    from scipy import sparse  # a query needs none


class QueryEncoder(Protocol):
    """The query side of a model, neural or not."""

    @property
    def vocabulary(self) -> Sequence[str]:
        """Token strings; position = token id."""

    @property
    def fingerprint(self) -> dict[str, Any]:
        """The facts that decide the vectors, as JSON."""

    def encode(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """Return ascending int32 token ids and their float32 weights > 0."""

    def save(self, folder: Path) -> None:
        """Write what ``load_query_encoder`` needs."""


@runtime_checkable
class BatchQueryEncoder(QueryEncoder, Protocol):
    """A query side that encodes many queries faster together than one by one."""

    def encode_batch(self, texts: Sequence[str]) -> sparse.csr_matrix:
        """Return the vectors of queries, CSR float32 ``[N, V]``."""


class DocumentEncoder(Protocol):
    """The document side of a model."""

    @property
    def vocabulary(self) -> Sequence[str]:
        """Token strings; position = token id."""

    @property
    def fingerprint(self) -> dict[str, Any]:
        """The facts that decide the vectors, as JSON."""

    def encode(
        self, texts: Sequence[str], progress: Callable[[int], None] | None = None
    ) -> sparse.csr_matrix:
        """Return the vectors of texts, CSR float32 ``[N, V]``."""

    def query_encoder(self) -> QueryEncoder:
        """Return the query side that belongs to this document side."""
