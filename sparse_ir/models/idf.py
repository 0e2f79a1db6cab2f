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
    """Return the inverse document frequency of each token, float32 ``[V]``.

    ``ln(1 + (N - df + 0.5) / (df + 0.5))``, the formula of BM25 in Lucene, where ``N`` counts all
    texts and ``df`` those that hold the token.

    Args:
        texts: Read once, in constant memory.
        tokenizer: Its padding and truncation are ignored.
        unseen: The value of a token that no text holds, 1.0 as in published files. None gives the
            formula's own value ``ln(2N + 2)``, its largest.

    Raises ``DataError`` when there is no text.
    """
    plain = without_state(tokenizer)
    frequency = np.zeros(id_limit(plain), dtype=np.int64)
    count = 0
    for batch in _batches(texts):
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
    """Write ``{token: idf}`` in the order of the ids, the ``idf.json`` that all libraries read.

    Raises ``ConfigError`` when ``idf`` (float32 ``[V]``) has too few values.
    """
    size = id_limit(tokenizer)
    if len(idf) < size:
        raise ConfigError(f"there are {len(idf)} IDF values; there must be {size}")
    token_ids = tokenizer.get_vocab(with_added_tokens=True)
    table = {}
    for token in sorted(token_ids, key=token_ids.__getitem__):
        # str() of a float32 is its shortest exact form, which float() keeps
        table[token] = float(str(np.float32(idf[token_ids[token]])))
    files.write_json(path, table)


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    iterator = iter(texts)
    batch = list(itertools.islice(iterator, _TEXTS_PER_BATCH))
    while batch:
        yield batch
        batch = list(itertools.islice(iterator, _TEXTS_PER_BATCH))
