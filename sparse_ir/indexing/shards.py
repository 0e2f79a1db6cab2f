"""One shard of encoded documents: its weights, its documents, and the facts about both.

The facts are written last: without them the shard counts as missing. The documents themselves
(``document_store``) are optional, and can be added to a shard that was written without them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import NotRequired, TypedDict

import numpy as np
from scipy import sparse

from sparse_ir.data.records import Document
from sparse_ir.errors import DamagedError
from sparse_ir.indexing import document_store
from sparse_ir.indexing.document_store import Blocks
from sparse_ir.indexing.quantization import check_weights
from sparse_ir.storage import files, reading


class StoredFile(TypedDict):
    """Size and SHA-256 of a file."""

    bytes: int
    sha256: str


class ShardFacts(TypedDict):
    """What a shard holds."""

    documents: int
    weights: int
    without_weights: int  # documents
    bytes: int
    sha256: str
    stored_documents: NotRequired[StoredFile]  # missing where only vectors are kept


def shard_path(folder: Path, number: int) -> Path:
    """The data of shard ``number`` in a folder of vectors."""
    return folder / "shards" / f"{number:06d}.safetensors"


def facts_path(folder: Path, number: int) -> Path:
    """The facts about shard ``number``."""
    return shard_path(folder, number).with_suffix(".json")


def documents_path(folder: Path, number: int) -> Path:
    """The documents of shard ``number``."""
    return folder / document_store.FOLDER / f"{number:06d}.safetensors"


def write_shard(
    folder: Path,
    number: int,
    doc_ids: Sequence[str],
    weights: sparse.csr_matrix,
    documents: Sequence[Document] | None = None,
) -> None:
    """Write a shard; weights CSR ``(N, V)``, finite and at least 0.

    ``documents`` are kept beside the weights.
    """
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
    if documents is not None:
        facts["stored_documents"] = _write_documents(folder, number, documents)
    files.write_json(facts_path(folder, number), facts)


def add_documents(folder: Path, number: int, documents: Sequence[Document]) -> None:
    """Keep the documents of a whole shard that was written without them."""
    facts = read_facts(folder, number)
    facts["stored_documents"] = _write_documents(folder, number, documents)
    files.write_json(facts_path(folder, number), facts)


def _write_documents(folder: Path, number: int, documents: Sequence[Document]) -> StoredFile:
    content = document_store.save_blocks(document_store.pack(documents))
    with files.atomic_writer(documents_path(folder, number), "wb") as stream:
        stream.write(content)
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def read_facts(folder: Path, number: int) -> ShardFacts:
    """The facts about a shard; raises ``DamagedError`` when they are missing."""
    facts: ShardFacts = files.read_json(facts_path(folder, number))
    return facts


def is_whole(folder: Path, number: int) -> bool:
    """True when the weights of a shard are what its facts say."""
    try:
        return _is_stored(shard_path(folder, number), read_facts(folder, number))
    except (DamagedError, FileNotFoundError, KeyError, TypeError):  # damaged facts count as missing
        return False


def has_documents(folder: Path, number: int) -> bool:
    """True when the documents of a shard are kept, and are what its facts say."""
    try:
        facts = read_facts(folder, number)
        return _is_stored(documents_path(folder, number), facts["stored_documents"])
    except (DamagedError, FileNotFoundError, KeyError, TypeError):
        return False


def _is_stored(path: Path, facts: ShardFacts | StoredFile) -> bool:
    if path.stat().st_size != facts["bytes"]:
        return False
    return files.sha256_of_file(path) == facts["sha256"]


def remove_leftovers(folder: Path, number: int) -> None:
    """Delete what killed writers of a shard left; only for the holder of its lock."""
    files.remove_leftovers(shard_path(folder, number))
    files.remove_leftovers(facts_path(folder, number))
    files.remove_leftovers(documents_path(folder, number))


def read_shard(
    folder: Path, number: int, sha256: str, width: int
) -> tuple[list[str], sparse.csr_matrix]:
    """``doc_ids`` and weights CSR float32 ``(N, width)`` of a shard, its checksum verified."""
    from safetensors.numpy import load

    arrays = load(_read_checked(shard_path(folder, number), sha256))
    doc_ids = arrays["doc_ids"].tobytes().decode().split("\n")
    parts = (arrays["weights"], arrays["token_ids"], arrays["indptr"])
    return doc_ids, sparse.csr_matrix(parts, shape=(len(doc_ids), width))


def read_blocks(folder: Path, number: int, sha256: str) -> Blocks:
    """The documents of a shard, still compressed, their checksum verified."""
    return document_store.load_blocks(_read_checked(documents_path(folder, number), sha256))


def _read_checked(path: Path, sha256: str) -> bytes:
    with reading.reading(path, "a shard", remedy="; run the same encode command again"):
        content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != sha256:
        raise DamagedError(
            f"{path} is damaged (its checksum differs from the manifest); run the same encode "
            "command again: it repeats only damaged shards"
        )
    return content
