"""One shard of encoded documents: a safetensors file, and the facts about it beside it.

The facts are written last: without them the shard counts as missing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

import numpy as np
from scipy import sparse

from sparse_ir.errors import DamagedError
from sparse_ir.indexing.quantization import check_weights
from sparse_ir.storage import files


class ShardFacts(TypedDict):
    """What a shard holds."""

    documents: int
    weights: int
    without_weights: int  # documents
    bytes: int
    sha256: str


def shard_path(folder: Path, number: int) -> Path:
    """The data of shard ``number`` in a folder of vectors."""
    return folder / "shards" / f"{number:06d}.safetensors"


def facts_path(folder: Path, number: int) -> Path:
    """The facts about shard ``number``."""
    return shard_path(folder, number).with_suffix(".json")


def write_shard(
    folder: Path, number: int, doc_ids: Sequence[str], weights: sparse.csr_matrix
) -> None:
    """Write a shard; weights CSR ``(N, V)``, finite and at least 0."""
    from safetensors.numpy import save

    check_weights(weights.data)
    arrays = {
        "doc_ids": np.frombuffer("\n".join(doc_ids).encode(), dtype=np.uint8),
        "indptr": weights.indptr.astype(np.int64),
        "token_ids": weights.indices.astype(np.int32),
        "weights": weights.data.astype(np.float32),
    }
    content = save(arrays)
    with files.atomic_writer(shard_path(folder, number), "wb") as stream:
        stream.write(content)
    facts: ShardFacts = {
        "documents": len(doc_ids),
        "weights": int(weights.nnz),
        "without_weights": int((np.diff(weights.indptr) == 0).sum()),
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    files.write_json(facts_path(folder, number), facts)


def read_facts(folder: Path, number: int) -> ShardFacts:
    """The facts about a shard; raises ``DamagedError`` when they are missing."""
    facts: ShardFacts = files.read_json(facts_path(folder, number))
    return facts


def is_whole(folder: Path, number: int) -> bool:
    """True when the data of a shard are what its facts say."""
    path = shard_path(folder, number)
    try:
        facts = read_facts(folder, number)
        if path.stat().st_size != facts["bytes"]:
            return False
        return files.sha256_of_file(path) == facts["sha256"]
    except (DamagedError, FileNotFoundError, KeyError, TypeError):  # damaged facts count as missing
        return False


def remove_leftovers(folder: Path, number: int) -> None:
    """Delete what killed writers of a shard left; only for the holder of its lock."""
    files.remove_leftovers(shard_path(folder, number))
    files.remove_leftovers(facts_path(folder, number))


def read_shard(
    folder: Path, number: int, sha256: str, width: int
) -> tuple[list[str], sparse.csr_matrix]:
    """``doc_ids`` and weights CSR float32 ``(N, width)`` of a shard, its checksum verified."""
    from safetensors.numpy import load

    path = shard_path(folder, number)
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise DamagedError(f"{path} is missing; run the same encode command again") from error
    if hashlib.sha256(content).hexdigest() != sha256:
        raise DamagedError(
            f"{path} is damaged (its checksum differs from the manifest); run the same encode "
            "command again: it repeats only damaged shards"
        )
    arrays = load(content)
    doc_ids = arrays["doc_ids"].tobytes().decode().split("\n")
    parts = (arrays["weights"], arrays["token_ids"], arrays["indptr"])
    return doc_ids, sparse.csr_matrix(parts, shape=(len(doc_ids), width))
