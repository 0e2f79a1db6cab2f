"""The static query side that a checkpoint brings: a tensor of token weights, or ``idf.json``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sparse_ir.errors import ModelError
from sparse_ir.models import static_queries, tokenization
from sparse_ir.models.checkpoint import Checkpoint, StaticSide, read_static_weights
from sparse_ir.models.static_queries import Convention, StaticQueryEncoder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class StaticSideRequest:
    """A checkpoint whose static query side is wanted, and how to read it.

    Attributes:
        checkpoint: The checkpoint.
        hf_tokenizer: The tokenizer of its network.
        convention: How token weights are read.
        vocabulary_size: The width of document vectors.
        allow_unknown: Ignore strings in ``idf.json`` that are not tokens.
        allow_pickle: Read a tensor from a pickle.
    """

    checkpoint: Checkpoint
    hf_tokenizer: PreTrainedTokenizerBase
    convention: Convention
    vocabulary_size: int
    allow_unknown: bool
    allow_pickle: bool


def load_static_queries(
    request: StaticSideRequest, idf_path: Path | None = None
) -> StaticQueryEncoder:
    """Return the static query side of a checkpoint, or that of another ``idf.json``.

    The convention of sentence-transformers prefers the checkpoint's tensor, that of OpenSearch its
    ``idf.json``. Raises ``ModelError`` when the checkpoint has neither.
    """
    checkpoint = request.checkpoint
    if idf_path is not None:
        name = f"{checkpoint.name} {idf_path.name}"
        return _from_idf(request, idf_path, request.hf_tokenizer, name)
    side = checkpoint.query
    stored_idf = checkpoint.idf_path
    hf_tokenizer = request.hf_tokenizer
    has_tensor = False
    if isinstance(side, StaticSide):
        hf_tokenizer = tokenization.load_hf_tokenizer(side.folder)
        if side.weights_path.suffix == ".json":
            stored_idf = side.weights_path
        else:
            has_tensor = True
    prefers_tensor = request.convention == "sentence-transformers" or stored_idf is None
    if isinstance(side, StaticSide) and has_tensor and prefers_tensor:
        return _from_tensor(request, side, hf_tokenizer)
    if stored_idf is None:
        raise ModelError(
            f"{checkpoint.name} has no token weights for queries (SparseStaticEmbedding or "
            "idf.json); the kind must be 'neural' or 'ones'"
        )
    return _from_idf(request, stored_idf, hf_tokenizer, checkpoint.name)


def _from_idf(
    request: StaticSideRequest, path: Path, hf_tokenizer: PreTrainedTokenizerBase, name: str
) -> StaticQueryEncoder:
    return static_queries.from_idf_json(
        path,
        hf_tokenizer.backend_tokenizer,
        request.convention,
        max_length=tokenization.stated_length(hf_tokenizer),
        vocabulary_size=request.vocabulary_size,
        name=name,
        prompt=request.checkpoint.query_prompt,
        allow_unknown=request.allow_unknown,
    )


def _from_tensor(
    request: StaticSideRequest, side: StaticSide, hf_tokenizer: PreTrainedTokenizerBase
) -> StaticQueryEncoder:
    weights = read_static_weights(side, allow_pickle=request.allow_pickle)
    tokenization.check_tokenizer(hf_tokenizer.backend_tokenizer, len(weights), side.folder)
    missing = max(request.vocabulary_size - len(weights), 0)
    return StaticQueryEncoder(
        hf_tokenizer.backend_tokenizer,
        np.pad(weights, (0, missing)),
        request.convention,
        max_length=tokenization.stated_length(hf_tokenizer),
        name=request.checkpoint.name,
        prompt=request.checkpoint.query_prompt,
    )
