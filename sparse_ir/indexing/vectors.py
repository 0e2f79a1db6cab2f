"""A finished folder of encoded documents: its manifest, its vocabulary, and its shards.

VECTORS/plan.json         written first: what is being encoded (see ``encoding``)
VECTORS/shards/           one file for each run of documents (see ``shards``)
VECTORS/documents/        their ids, titles, texts and metadata (see ``document_store``), if kept
VECTORS/vocabulary.json   the token of each id
VECTORS/query/            the query side
VECTORS/manifest.json     written last: everything is there
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NotRequired, TypedDict, cast

from scipy import sparse

from sparse_ir.data.metadata import MetadataSchema
from sparse_ir.data.records import Document
from sparse_ir.errors import DamagedError
from sparse_ir.indexing import document_store, shards
from sparse_ir.indexing.document_store import Blocks
from sparse_ir.indexing.shards import ShardFacts
from sparse_ir.models.interfaces import QueryEncoder
from sparse_ir.models.query_side import load_query_encoder
from sparse_ir.storage import files, sealed

FORMAT = 1
PLAN = "plan.json"
MANIFEST = "manifest.json"
VOCABULARY = "vocabulary.json"
QUERY = "query"


class PlannedShard(TypedDict):
    """A run of neighbouring documents that is to be encoded."""

    documents: int
    input_sha256: NotRequired[str]  # of the texts; missing where they are not known
    metadata_sha256: NotRequired[str]  # missing where they were not read


class EncodingPlan(TypedDict):
    """What ``plan.json`` records."""

    encoder: dict[str, Any]  # fingerprint
    query: dict[str, Any] | None  # fingerprint of the query side
    shards: list[PlannedShard]
    empty_documents: int
    shard_size: NotRequired[int]
    integer_weights: NotRequired[bool]
    metadata_schema: NotRequired[MetadataSchema]  # missing where no metadata were read


class VectorsManifest(TypedDict):
    """What ``manifest.json`` of a folder of vectors records."""

    encoder: dict[str, Any]
    query: dict[str, Any] | None
    documents: int
    empty_documents: int
    without_weights: int  # documents
    weights: int
    integer_weights: bool
    vocabulary_sha256: str
    shards: list[ShardFacts]
    metadata_schema: NotRequired[MetadataSchema]  # missing where no metadata were read


class Vectors:
    """A finished folder of vectors. Raises ``DamagedError`` when it is unfinished or not whole."""

    def __init__(self, folder: Path) -> None:
        if not (folder / MANIFEST).exists():
            if (folder / PLAN).exists():
                raise DamagedError(
                    f"{folder} holds no finished vectors; run the same encode command again to "
                    "finish them"
                )
            raise DamagedError(f"{folder} holds no vectors")
        if not (folder / PLAN).exists() and (folder / "doc_ids.txt").exists():
            raise DamagedError(f"{folder} is an index; it must be a folder of vectors")
        self.folder = folder
        self.manifest = cast(VectorsManifest, read_record(folder / MANIFEST))
        path = folder / VOCABULARY
        if not path.exists() or files.sha256_of_file(path) != self.manifest["vocabulary_sha256"]:
            raise DamagedError(f"{path} is missing or damaged; run the same encode command again")
        self.vocabulary: list[str] = files.read_json(path)

    def __len__(self) -> int:
        return int(self.manifest["documents"])

    @property
    def num_shards(self) -> int:
        """Number of shards; their order is the order of the corpus."""
        return len(self.manifest["shards"])

    def read_shard(self, number: int) -> tuple[list[str], sparse.csr_matrix]:
        """``doc_ids`` and weights CSR float32 ``(N, V)`` of one shard, its checksum verified."""
        sha256 = self.manifest["shards"][number]["sha256"]
        return shards.read_shard(self.folder, number, sha256, len(self.vocabulary))

    @property
    def has_documents(self) -> bool:
        """True when the documents themselves are kept beside their vectors."""
        return all("stored_documents" in facts for facts in self.manifest["shards"])

    @property
    def document_bytes(self) -> int:
        """Bytes of the kept documents on disk; 0 where none are kept."""
        sizes = []
        for facts in self.manifest["shards"]:
            if "stored_documents" in facts:
                sizes.append(facts["stored_documents"]["bytes"])
        return sum(sizes)

    def read_blocks(self, number: int) -> Blocks:
        """The documents of one shard, still compressed, their checksum verified.

        Raises ``DamagedError`` where the documents are not kept.
        """
        facts = self.manifest["shards"][number]
        if "stored_documents" not in facts:
            raise DamagedError(
                f"{self.folder} keeps no documents; run the same encode command again, without "
                "--no-store, to add them"
            )
        return shards.read_blocks(self.folder, number, facts["stored_documents"]["sha256"])

    def read_documents(self, number: int) -> list[Document]:
        """The documents of one shard, in the order of ``read_shard``; errors as ``read_blocks``."""
        return list(document_store.unpack(self.read_blocks(number)))

    def query_encoder(self) -> QueryEncoder | None:
        """The query side that was stored with the vectors, if any."""
        if self.manifest["query"] is None:
            return None
        return load_query_encoder(self.folder / QUERY)


def read_record(path: Path) -> dict[str, Any]:
    """A sealed plan or manifest; raises ``DamagedError`` when it was changed."""
    record = files.read_json(path)
    if not isinstance(record, dict) or "shards" not in record or record.get("format") != FORMAT:
        raise DamagedError(f"{path} must belong to vectors of format {FORMAT}; name another folder")
    if not sealed.is_intact(record):
        raise DamagedError(
            f"{path} is damaged: its checksum differs; delete the folder and encode again"
        )
    return record


def finish_folder(folder: Path, plan: EncodingPlan) -> None:
    """Write the manifest of a folder whose shards are all there."""
    facts = [shards.read_facts(folder, number) for number in range(len(plan["shards"]))]
    record: dict[str, Any] = {
        "kind": "vectors",
        "encoder": plan["encoder"],
        "query": plan["query"],
        "documents": sum(fact["documents"] for fact in facts),
        "empty_documents": plan["empty_documents"],
        "without_weights": sum(fact["without_weights"] for fact in facts),
        "weights": sum(fact["weights"] for fact in facts),
        "integer_weights": plan.get("integer_weights", False),
        "vocabulary_sha256": files.sha256_of_file(folder / VOCABULARY),
        "shards": facts,
    }
    if "metadata_schema" in plan:
        record["metadata_schema"] = plan["metadata_schema"]
    manifest = seal_record(record)
    with files.write_lock(folder / PLAN, timeout=-1):
        if not holds(folder / MANIFEST, manifest):
            files.remove_leftovers(folder / MANIFEST)
            files.write_json(folder / MANIFEST, manifest)
    for lock in (folder / "shards").glob(".*.lock"):
        lock.unlink(missing_ok=True)


def seal_record(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Facts with the format and their own checksum, as a plan and a manifest keep them."""
    return sealed.seal({"format": FORMAT, **facts})


def holds(path: Path, value: Any) -> bool:
    """True when a JSON file holds this value."""
    try:
        return bool(files.read_json(path) == value)
    except DamagedError:
        return False


def visible_files(folder: Path) -> Iterator[Path]:
    """The files and folders in a folder, except hidden ones."""
    for path in folder.iterdir():
        if not path.name.startswith("."):
            yield path


def row_as_dict(impacts: sparse.csr_matrix, row: int, vocabulary: Sequence[str]) -> dict[str, int]:
    """One row of an impact matrix as ``{token: impact}``."""
    part = slice(impacts.indptr[row], impacts.indptr[row + 1])
    pairs = zip(impacts.indices[part].tolist(), impacts.data[part].tolist(), strict=True)
    return {vocabulary[token_id]: int(impact) for token_id, impact in pairs}
