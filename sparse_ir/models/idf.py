"""Inverse document frequencies of a corpus, and ``idf.json``."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from sparse_ir.errors import ConfigError, DataError
from sparse_ir.models.tokenization import id_limit, without_state
from sparse_ir.storage import files

_TEXTS_PER_BATCH = 1024


def compute_idf(
    texts: Iterable[str], tokenizer: Tokenizer, *, unseen: float | None = 1.0
) -> np.ndarray:
    """Inverse document frequency per token id, float32 ``[V]``: ``ln(1 + (N - df + 0.5) / (df +
    0.5))``.

    The formula is that of BM25 in Lucene. ``N`` counts all texts, ``df`` those that hold the token
    at least once. A token that occurs nowhere gets ``unseen``: 1.0 as in the published files, or
    with ``None`` the formula's own ``ln(2N + 2)``, its largest value. Reads ``texts`` once, in
    constant memory. Raises ``DataError`` for no text.
    """
    plain = without_state(tokenizer)
    frequency = np.zeros(id_limit(plain), dtype=np.int64)
    count = 0
    for batch in _batches(texts, _TEXTS_PER_BATCH):
        count += len(batch)
        for encoding in plain.encode_batch_fast(batch, add_special_tokens=False):
            frequency[np.unique(np.asarray(encoding.ids, dtype=np.int64))] += 1
    if count == 0:
        raise DataError("an IDF needs at least one text, and there was none")
    idf = np.log1p((count - frequency + 0.5) / (frequency + 0.5))
    if unseen is not None:
        idf[frequency == 0] = unseen
    return idf.astype(np.float32)


def write_idf_json(path: Path, idf: np.ndarray, tokenizer: Tokenizer) -> None:
    """Write ``{token: idf}`` for every token, in the order of the ids: the ``idf.json`` that all
    libraries read.
    """
    if len(idf) < id_limit(tokenizer):
        raise ConfigError(f"{len(idf)} IDF values are too few for {id_limit(tokenizer)} token ids")
    tokens = sorted(tokenizer.get_vocab(with_added_tokens=True).items(), key=lambda item: item[1])
    # str() of a float32 is its shortest exact form; float() of that keeps the file short and the
    # value the same
    files.write_json(
        path, {token: float(str(np.float32(idf[token_id]))) for token, token_id in tokens}
    )


def _batches(texts: Iterable[str], size: int) -> Iterator[list[str]]:
    iterator = iter(texts)
    while batch := list(itertools.islice(iterator, size)):
        yield batch
