"""The manifest of an index folder, its files and checksums, and the doc_id
of each document number.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import sparse_ir
from sparse_ir.engines.lucene import parts
from sparse_ir.errors import DamagedError
from sparse_ir.indexing.forward import FOLDER
from sparse_ir.storage import files, sealed

FORMAT = 1
MANIFEST = "manifest.json"
TUNED = "tuned.json"  # see ``tuning``


def write_lines(path: Path, records: Iterable[Any]) -> None:
    with files.atomic_writer(path) as stream:
        for record in records:
            stream.write(json.dumps(record) + "\n")


def write_doc_ids(folder: Path, blobs: Sequence[bytes]) -> None:
    with files.atomic_writer(folder / "doc_ids.txt", "wb") as stream:
        for blob in blobs:
            stream.write(blob + b"\n")
    lines = np.fromfile(folder / "doc_ids.txt", dtype=np.uint8)
    bounds = np.concatenate([[0], np.flatnonzero(lines == ord("\n")) + 1]).astype(np.int64)
    with files.atomic_writer(folder / "doc_ids.npy", "wb") as stream:
        np.save(stream, bounds)


def write_manifest(folder: Path, kind: str, facts: dict[str, Any]) -> dict[str, Any]:
    stored = sorted(
        path for path in folder.rglob("*") if path.is_file() and path.name != "write.lock"
    )
    manifest = {
        "format": FORMAT,
        "kind": kind,
        **facts,
        "versions": {"sparse_ir": sparse_ir.__version__, "lucene": parts.lucene_version()},
        "files": {
            path.relative_to(folder).as_posix(): {
                "bytes": path.stat().st_size,
                "sha256": files.sha256_of_file(path),
            }
            for path in stored
        },
    }
    signed = sealed.seal(manifest)
    files.write_json(folder / MANIFEST, signed)
    return signed


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of an index; raises ``DamagedError`` when ``folder`` holds none or one of
    another format.
    """
    if not folder.is_dir():
        raise DamagedError(f"{folder} is no index of this package: there is no such folder")
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
    return manifest


def version_of(folder: Path) -> tuple[int, int] | None:
    """What tells this build of the index from each other one, an equal one included; ``None``
    without a manifest.
    """
    try:
        found = (folder / MANIFEST).stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def check_files(folder: Path, manifest: dict[str, Any], *, checksums: bool) -> None:
    for name, facts in manifest["files"].items():
        path = folder / name
        if not path.is_file():
            raise DamagedError(f"{path} is missing; build the index again")
        if path.stat().st_size != facts["bytes"]:
            raise DamagedError(
                f"{path} has {path.stat().st_size} bytes instead of "
                f"{facts['bytes']}; "
                "build the index again"
            )
        if checksums and files.sha256_of_file(path) != facts["sha256"]:
            raise DamagedError(
                f"{path} is damaged: its checksum differs from the manifest; build the index again"
            )
    unknown = {path.name for path in (folder / "lucene").iterdir()} - {
        Path(name).name for name in manifest["files"]
    }
    if unknown - {"write.lock"}:
        raise DamagedError(
            f"{folder / 'lucene'} holds files that the manifest does not know: "
            f"{sorted(unknown)[:3]}"
        )


class DocIds(Sequence[str]):
    """The doc_id of each document number, read from a memory map."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "doc_ids.txt"
        self._bounds = memoryview(np.load(folder / "doc_ids.npy", mmap_mode="r"))
        with self._path.open("rb") as stream:
            filled = self._bounds[-1] > 0  # an empty file cannot be mapped
            self._text = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) if filled else b""

    def __len__(self) -> int:
        return len(self._bounds) - 1

    def __getitem__(self, number: Any) -> Any:
        return self.find([number])[0]

    def find(self, numbers: Sequence[int]) -> list[str]:
        """The doc_ids of several documents; raises ``DamagedError`` where the file was changed to
        no text.
        """
        text, bounds = self._text, self._bounds
        try:
            return [text[bounds[number] : bounds[number + 1] - 1].decode() for number in numbers]
        except UnicodeDecodeError as error:
            raise DamagedError(
                f"{self._path} is damaged ({error}); build the index again"
            ) from error


def is_lucene_folder(folder: Path) -> bool:
    """True for a bare Lucene index without a manifest, such as ``pyserini.index.lucene`` writes."""
    return not (folder / MANIFEST).exists() and any(folder.glob("segments_*"))


def has_forward_index(manifest: dict[str, Any]) -> bool:
    """True for an index that keeps its impacts document by document."""
    return any(name.startswith(FOLDER + "/") for name in manifest["files"])


def needs_query_encoder(folder: Path) -> bool:
    """True for an impact index that was built from vectors without a query side."""
    manifest = read_manifest(folder)
    return manifest["kind"] == "impact" and manifest["query"] is None
