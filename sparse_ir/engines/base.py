"""What an engine is asked for and what it answers, whichever engine it is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import sparse

# Lucene's scores are float32: sums of impact products are exact up to 2**24
LARGEST_IMPACT = 2**16 - 1


class Hits(NamedTuple):
    """The result of one search as plain arrays, best first."""

    doc_ids: list[str]
    scores: np.ndarray  # float32 (k,)


class Bm25(NamedTuple):
    """Parameters of BM25; the defaults are Anserini's."""

    k1: float = 0.9
    b: float = 0.4
    # weight of the title as a field of its own (Anserini's "multifield"); 0: title and text in one
    title: float = 0.0


Batch = tuple[Sequence[str], sparse.csr_matrix]  # doc_ids (N,) and impacts int32 (N, V)
Texts = Iterable[tuple[str, ...]]  # doc_id and text; with a field for titles, the title too
