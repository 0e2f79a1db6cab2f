"""The options that load an encoder, kept apart so that a help text needs no numeric library."""

from __future__ import annotations

import os
from typing import Literal, TypedDict

DEFAULT_MODEL = "default"
LEXICAL_MODEL = "lexical"
QuerySide = Literal["auto", "neural", "static", "ones"]


class EncodeOptions(TypedDict, total=False):
    """How documents and queries are encoded.

    Args:
        revision: Commit of a hub model. It is recorded in the output.
        precision: Arithmetic of the encoder. "float32-int8" gives the vectors of float32 in less
            time, "auto" picks the fastest mode of this machine, and "8bit" and "4bit" need
            bitsandbytes. The default is float32.
        device: Device of the encoder: cpu, cuda, ... The default is the accelerator if there is
            one.
        max_length: Maximum number of tokens read per document. The default is the model's own
            limit.
        top_k: Keep at most this many terms per document, heaviest first.
        min_weight: Drop document weights below this value.
        query_side: How queries are weighted: "auto" is the model's own way, "neural" runs the
            network, "static" reads token weights or idf.json, "ones" gives every token weight 1.
        idf: An idf.json file whose values become the static query weights.
        convention: How idf.json is interpreted.
        allow_unknown: Ignore strings in idf.json that are not tokens of the model instead of
            failing.
        collection_idf: Share (0 to 1) of the collection's own IDF in the static query weights. The
            default is 0, or 0.5 for the model "default".
        allow_pickle: Read an older pytorch_model.bin (weights only) if the model has no safetensors
            file.
        decoder: A sparse_ir.json file that says how to read a decoder model. It takes precedence
            over the file in the model's folder.
        shard_size: Documents per shard, 1024 by default. A killed process loses only the shards it
            was working on.
    """

    revision: str | None
    precision: Literal["float32", "bfloat16", "int8", "float32-int8", "8bit", "4bit", "auto"]
    device: str | None
    max_length: int | None
    top_k: int | None
    min_weight: float
    query_side: QuerySide
    idf: str | os.PathLike[str] | None
    convention: Literal["sentence-transformers", "opensearch"]
    allow_unknown: bool
    collection_idf: float | None
    allow_pickle: bool
    decoder: str | os.PathLike[str] | None
    shard_size: int
