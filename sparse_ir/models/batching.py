"""Batches of token ids and of queries, and sparse matrices of their vectors.

N texts, B texts of a batch, L tokens of the longest text in it, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from scipy import sparse

from sparse_ir.models.interfaces import BatchQueryEncoder, QueryEncoder

SparseVector = tuple[np.ndarray, np.ndarray]  # ascending token ids and their weights, [n] each


def pad(
    rows: Sequence[np.ndarray], fill: int, *, left: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Pad integer rows to one rectangle.

    Args:
        rows: One row of numbers per text.
        fill: The value of padded positions.
        left: Put the padding before each row instead of behind it.

    Returns:
        The rectangle, int64 ``[B, L]``, and the length of each row, int64 ``[B]``.
    """
    lengths = np.array([len(row) for row in rows], dtype=np.int64)
    width = int(lengths.max(initial=0))
    padded = np.full((len(rows), width), fill, dtype=np.int64)
    for target, row in zip(padded, rows, strict=True):
        start = width - len(row) if left else 0
        target[start : start + len(row)] = row
    return padded, lengths


def real_positions(lengths: np.ndarray, width: int) -> np.ndarray:
    """Return which positions of texts padded on the right hold a token, bool ``[B, width]``."""
    return np.arange(width) < lengths[:, None]


def by_length(
    lengths: np.ndarray, tokens_per_batch: int, *, shortest: float = 0.0
) -> Iterator[np.ndarray]:
    """Yield the positions of texts in batches of similar length, longest first.

    The longest batch comes first, so that memory peaks at the start.

    Args:
        lengths: Tokens of each text, ``[N]``.
        tokens_per_batch: The largest number of padded tokens in a batch. A longer text gets a batch
            of its own.
        shortest: A text shorter than this share of the longest text of its batch opens the next.
    """
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        longest = max(int(lengths[order[start]]), 1)
        end = min(start + max(tokens_per_batch // longest, 1), len(order))
        too_short = np.flatnonzero(lengths[order[start + 1 : end]] < shortest * longest)
        if len(too_short):
            end = start + 1 + int(too_short[0])
        yield order[start:end]
        start = end


def rows_to_csr(rows: Sequence[SparseVector], width: int) -> sparse.csr_matrix:
    """Stack sparse vectors to a CSR float32 matrix ``[N, width]``."""
    ends = np.cumsum([0, *(len(ids) for ids, _ in rows)])
    ids = np.concatenate([np.empty(0, dtype=np.int32), *(ids for ids, _ in rows)])
    weights = np.concatenate([np.empty(0, dtype=np.float32), *(weights for _, weights in rows)])
    content = (weights.astype(np.float32, copy=False), ids, ends)
    return sparse.csr_matrix(content, shape=(len(rows), width))


def encode_queries(query_encoder: QueryEncoder, texts: Sequence[str]) -> sparse.csr_matrix:
    """Return the vectors of queries, CSR float32 ``[N, V]``."""
    if isinstance(query_encoder, BatchQueryEncoder):
        return query_encoder.encode_batch(texts)
    rows = [query_encoder.encode(text) for text in texts]
    return rows_to_csr(rows, len(query_encoder.vocabulary))
