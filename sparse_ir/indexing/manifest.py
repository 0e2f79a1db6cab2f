"""The manifest of an index folder, its files and checksums, and the doc_id of each document."""

from __future__ import annotations

import json
import mmap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict, cast, overload

import numpy as np

import sparse_ir
from sparse_ir.data.metadata import MetadataSchema
from sparse_ir.engines.base import BM25, SPARSE
from sparse_ir.engines.catalog import DEFAULT_ENGINE
from sparse_ir.errors import ConfigError, DamagedError
from sparse_ir.indexing import document_store
from sparse_ir.indexing.forward import FOLDER
from sparse_ir.storage import files, reading, sealed

FORMAT = 1
MANIFEST = "manifest.json"
TUNED = "tuned.json"  # written by the command ``tune``
HYBRID = "hybrid"  # the ranking by the sum of all fields

Kind = Literal["impact", "bm25"]


class FileFacts(TypedDict):
    """Size and SHA-256 of one file of an index."""

    bytes: int
    sha256: str


class IndexManifest(TypedDict):
    """What ``manifest.json`` records; unknown keys of newer versions are kept."""

    format: int
    kind: Kind
    counts: dict[str, int]
    versions: dict[str, str]  # of this package and of the engine
    files: dict[str, FileFacts]  # relative path -> facts
    sha256: str  # of everything else in the manifest
    engine: NotRequired[str]  # missing in older impact indexes, which are Lucene's
    encoder: NotRequired[dict[str, Any]]  # fingerprint of the document encoder
    query: NotRequired[dict[str, Any] | None]  # fingerprint of the query side
    vocabulary_sha256: NotRequired[str]
    rule: NotRequired[dict[str, Any]]
    pruning: NotRequired[dict[str, Any]]
    parameters: NotRequired[dict[str, float]]  # of a BM25 baseline
    fields: NotRequired[dict[str, Any]]  # field -> its counts; missing: the sparse field alone
    bm25: NotRequired[dict[str, Any]]  # settings of the field bm25
    metadata_schema: NotRequired[MetadataSchema]  # missing where the index keeps no documents


def write_lines(path: Path, records: Iterable[Any]) -> None:
    """Write each record as a line of JSON."""
    with files.atomic_writer(path) as stream:
        for record in records:
            stream.write(json.dumps(record) + "\n")


def write_doc_ids(folder: Path, doc_ids: Iterable[str]) -> None:
    """Write the doc_ids, a line each, and the offset of each line."""
    with files.atomic_writer(folder / "doc_ids.txt", "wb") as stream:
        for doc_id in doc_ids:
            stream.write(doc_id.encode() + b"\n")
    lines = np.fromfile(folder / "doc_ids.txt", dtype=np.uint8)
    bounds = np.concatenate([[0], np.flatnonzero(lines == ord("\n")) + 1]).astype(np.int64)
    with files.atomic_writer(folder / "doc_ids.npy", "wb") as stream:
        np.save(stream, bounds)


def write_manifest(
    folder: Path, kind: Kind, facts: Mapping[str, Any], versions: Mapping[str, str]
) -> IndexManifest:
    """Write the manifest of a finished folder, with the checksum of every file in it."""
    stored: dict[str, FileFacts] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != "write.lock":
            name = path.relative_to(folder).as_posix()
            checksum = files.sha256_of_file(path)
            stored[name] = {"bytes": path.stat().st_size, "sha256": checksum}
    record = {
        "format": FORMAT,
        "kind": kind,
        **facts,
        "versions": {"sparse_ir": sparse_ir.__version__, **versions},
        "files": stored,
    }
    signed = sealed.seal(record)
    files.write_json(folder / MANIFEST, signed)
    return cast(IndexManifest, signed)


def read_manifest(folder: Path) -> IndexManifest:
    """The manifest of an index; ``DamagedError`` when there is none, or one of another format."""
    if not folder.is_dir():
        raise DamagedError(f"{folder} is no index of this package: there is no such folder")
    if (folder / "plan.json").is_file():
        raise DamagedError(
            f"{folder} holds vectors, not an index; make one of them with sparse-ir index "
            f"--vectors {folder} --output INDEX"
        )
    if not (folder / MANIFEST).is_file():
        raise DamagedError(f"{folder} is no index of this package: it has no {MANIFEST}")
    manifest, text = files.read_json_and_text(folder / MANIFEST)
    if (
        not isinstance(manifest, dict)
        or manifest.get("format") != FORMAT
        or "files" not in manifest
    ):
        raise DamagedError(
            f"{folder / MANIFEST} is not an index manifest of format {FORMAT}; "
            "build the index again"
        )
    if text != files.format_json(manifest) or not sealed.is_intact(manifest):
        raise DamagedError(
            f"{folder / MANIFEST} is damaged: its checksum differs; build the index again"
        )
    return cast(IndexManifest, manifest)


def engine_of(manifest: IndexManifest) -> str:
    """The name of the engine, which is also the name of its folder in the index."""
    return manifest.get("engine", DEFAULT_ENGINE)


def version_of(folder: Path) -> tuple[int, int] | None:
    """A value that no other build of the index shares, even an equal one; None without manifest."""
    try:
        status = (folder / MANIFEST).stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


def check_files(folder: Path, manifest: IndexManifest, *, checksums: bool) -> None:
    """Raise ``DamagedError`` unless every file has its size, and its checksum where asked."""
    for name, facts in manifest["files"].items():
        path = folder / name
        if not path.is_file():
            raise DamagedError(f"{path} is missing; build the index again")
        if path.stat().st_size != facts["bytes"]:
            raise DamagedError(
                f"{path} has {path.stat().st_size} bytes instead of {facts['bytes']}; build the "
                "index again"
            )
        if checksums and files.sha256_of_file(path) != facts["sha256"]:
            raise DamagedError(
                f"{path} is damaged: its checksum differs from the manifest; build the index again"
            )
    place = folder / engine_of(manifest)
    unknown = {path.name for path in place.iterdir()}
    unknown -= {Path(name).name for name in manifest["files"]}
    unknown -= {"write.lock"}
    if unknown:
        raise DamagedError(
            f"{place} holds files that the manifest does not know: {sorted(unknown)[:3]}"
        )


class DocIds(Sequence[str]):
    """The doc_id of each document number, read from a memory map."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "doc_ids.txt"
        remedy = "; build the index again"
        bounds = reading.load_array(folder / "doc_ids.npy", mmap_mode="r", remedy=remedy)
        self._bounds = bounds.data
        with reading.reading(self._path, "text", remedy=remedy), self._path.open("rb") as stream:
            filled = self._bounds[-1] > 0  # an empty file cannot be mapped
            self._text = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) if filled else b""

    def __len__(self) -> int:
        return len(self._bounds) - 1

    @overload
    def __getitem__(self, number: int) -> str: ...

    @overload
    def __getitem__(self, number: slice) -> list[str]: ...

    def __getitem__(self, number: int | slice) -> str | list[str]:
        if isinstance(number, slice):
            return self.find(range(*number.indices(len(self))))
        return self.find([number])[0]

    def find(self, numbers: Sequence[int]) -> list[str]:
        """The doc_ids of several documents; raises ``DamagedError`` where they are no text."""
        text = self._text
        bounds = self._bounds
        try:
            return [text[bounds[number] : bounds[number + 1] - 1].decode() for number in numbers]
        except UnicodeDecodeError as error:
            raise DamagedError(
                f"{self._path} is damaged ({error}); build the index again"
            ) from error


def is_lucene_folder(folder: Path) -> bool:
    """True for a bare Lucene index without a manifest, such as ``pyserini.index.lucene`` writes."""
    return not (folder / MANIFEST).exists() and any(folder.glob("segments_*"))


def has_forward_index(manifest: IndexManifest) -> bool:
    """True for an index that keeps its impacts document by document."""
    return any(name.startswith(FOLDER + "/") for name in manifest["files"])


def has_documents(manifest: IndexManifest) -> bool:
    """True for an index that keeps the documents themselves."""
    return bool(document_bytes(manifest))


def document_bytes(manifest: IndexManifest) -> int:
    """Bytes of the kept documents on disk; 0 where none are kept."""
    sizes = []
    for name, facts in manifest["files"].items():
        if name.startswith(document_store.FOLDER + "/"):
            sizes.append(facts["bytes"])
    return sum(sizes)


def fields_of(manifest: IndexManifest) -> list[str]:
    """The fields of an impact index."""
    return list(manifest.get("fields", {SPARSE: None}))


def choose_ranking(folder: Path, manifest: IndexManifest, ranking: str | None) -> str:
    """The ranking of a search; by default the sum of all fields that the index has.

    Raises ``ConfigError`` for a ranking that needs a field which the index does not have.
    """
    available = [BM25]
    if manifest["kind"] == "impact":
        fields = fields_of(manifest)
        available = [*fields, HYBRID] if len(fields) > 1 else fields
    if ranking is None:
        return available[-1]
    if ranking not in available:
        raise ConfigError(
            f"the ranking is {ranking!r}; for {folder} it must be {' or '.join(available)}, since "
            "the index has no other field"
        )
    return ranking


def needs_query_encoder(folder: Path, ranking: str | None = None) -> bool:
    """True for an impact index that was built from vectors without a query side."""
    manifest = read_manifest(folder)
    if choose_ranking(folder, manifest, ranking) == BM25:
        return False
    return manifest["kind"] == "impact" and manifest["query"] is None
