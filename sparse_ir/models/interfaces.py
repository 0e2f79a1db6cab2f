"""What an encoder of documents and an encoder of queries must offer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    from scipy import sparse  # a query needs none


class QueryEncoder(Protocol):
    """What the rest of the package asks of a query side, neural or not."""

    @property
    def vocabulary(self) -> Sequence[str]:
        """Token strings; position = token_id."""

    @property
    def fingerprint(self) -> dict[str, Any]:
        """JSON-able facts that decide the vectors."""

    def encode(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """Ascending int32 token ids, and their float32 weights > 0."""

    def save(self, folder: Path) -> None:
        """Write what ``load_query_encoder`` needs."""


class DocumentEncoder(Protocol):
    """What this module asks of an encoder."""

    @property
    def vocabulary(self) -> Sequence[str]:
        """Token strings; position = token_id."""

    @property
    def fingerprint(self) -> dict[str, Any]:
        """JSON-able facts that decide the vectors."""

    def encode(
        self, texts: Sequence[str], progress: Callable[[int], None] | None = None
    ) -> sparse.csr_matrix:
        """Weights of the texts: CSR float32 ``(N, V)``."""

    def query_encoder(self) -> QueryEncoder:
        """The query side that belongs to the document side."""
