"""Documents beside vectors and indexes: id, title, text and metadata, compressed and mapped.

VECTORS/documents/000000.safetensors   the documents of one shard, so that they resume with it
INDEX/documents/blocks.bin             blocks of neighbouring documents, one Zstandard frame each
INDEX/documents/block_offsets.npy      int64 (B + 1,): where each block begins
INDEX/documents/first_documents.npy    int64 (B + 1,): number of the first document of each block
INDEX/documents/id_hashes.npy          uint64 (N,): hashes of the doc_ids, ascending
INDEX/documents/id_numbers.npy         uint32 (N,): document number of each hash

A block holds one JSON array per line: doc_id, title, text, metadata. Blocks are copied from vectors
to an index as bytes, so an index is built without compressing anything again. Document numbers
follow the order of the corpus; documents without a posting are included.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
import zstandard

from sparse_ir.data.records import Document
from sparse_ir.errors import DamagedError, DataError
from sparse_ir.storage import files, reading

FOLDER = "documents"
# On SciFact (1.5 kB a document) blocks of 16 kB save 5 % of the space and double the time to read
# one document; higher levels save 3 % and take twice the time to write.
_BLOCK_BYTES = 8192  # of text, before compression
_LEVEL = 3
_BLOCKS = "blocks.bin"
_BLOCK_OFFSETS = "block_offsets.npy"
_FIRST_DOCUMENTS = "first_documents.npy"
_ID_HASHES = "id_hashes.npy"
_ID_NUMBERS = "id_numbers.npy"
_REMEDY = "; build the index again"


class Blocks(NamedTuple):
    """Compressed documents: B blocks with N documents."""

    content: bytes  # all blocks, one after the other
    lengths: np.ndarray  # int64 (B,): bytes of each block
    counts: np.ndarray  # int64 (B,): documents in each block
    id_hashes: np.ndarray  # uint64 (N,): in the order of the documents


def pack(documents: Iterable[Document]) -> Blocks:
    """Compress documents into blocks; equal documents give equal bytes."""
    compressor = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True)
    frames: list[bytes] = []
    counts: list[int] = []
    hashes: list[int] = []
    lines: list[bytes] = []
    size = 0
    for document in documents:
        line = json.dumps(document, ensure_ascii=False, separators=(",", ":"), default=dict)
        lines.append(line.encode())
        hashes.append(_hash_id(document.doc_id))
        size += len(lines[-1])
        if size >= _BLOCK_BYTES:
            frames.append(compressor.compress(b"\n".join(lines)))
            counts.append(len(lines))
            lines = []
            size = 0
    if lines:
        frames.append(compressor.compress(b"\n".join(lines)))
        counts.append(len(lines))
    lengths = [len(frame) for frame in frames]
    return Blocks(
        b"".join(frames),
        np.array(lengths, dtype=np.int64),
        np.array(counts, dtype=np.int64),
        np.array(hashes, dtype=np.uint64),
    )


def unpack(blocks: Blocks) -> Iterator[Document]:
    """The documents of some blocks, in order."""
    ends = np.cumsum(blocks.lengths).tolist()
    for start, end in itertools.pairwise([0, *ends]):
        for line in _decompress(blocks.content[start:end]):
            yield _parse(line)


def save_blocks(blocks: Blocks) -> bytes:
    """The file of one shard's documents."""
    from safetensors.numpy import save

    arrays = {
        "blocks": np.frombuffer(blocks.content, dtype=np.uint8),
        "lengths": blocks.lengths,
        "counts": blocks.counts,
        "id_hashes": blocks.id_hashes,
    }
    return bytes(save(arrays))


def load_blocks(content: bytes) -> Blocks:
    """The blocks in a file that ``save_blocks`` wrote."""
    from safetensors.numpy import load

    arrays = load(content)
    return Blocks(
        arrays["blocks"].tobytes(), arrays["lengths"], arrays["counts"], arrays["id_hashes"]
    )


class StoreWriter:
    """Writes the store of an index; a context manager, finished when its block ends.

    Documents come one by one or as blocks from vectors; their order is the order of the store.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stack = contextlib.ExitStack()
        self._stream = self._stack.enter_context(files.atomic_writer(folder / _BLOCKS, "wb"))
        self._lengths = [np.zeros(1, np.int64)]
        self._counts = [np.zeros(1, np.int64)]
        self._hashes = [np.empty(0, np.uint64)]
        self._waiting: list[Document] = []
        self._waiting_characters = 0

    def add(self, document: Document) -> None:
        """Add one document."""
        self._waiting.append(document)
        self._waiting_characters += len(document.text)
        if self._waiting_characters >= 64 * _BLOCK_BYTES:
            self._pack_waiting()

    def add_blocks(self, blocks: Blocks) -> None:
        """Add blocks as they are."""
        self._pack_waiting()
        self._append(blocks)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *details: object) -> None:
        if details[0] is None:
            self._pack_waiting()
            self._write_tables()
        self._stack.__exit__(*details)  # type: ignore[arg-type]

    def _pack_waiting(self) -> None:
        if self._waiting:
            self._append(pack(self._waiting))
        self._waiting = []
        self._waiting_characters = 0

    def _append(self, blocks: Blocks) -> None:
        self._stream.write(blocks.content)
        self._lengths.append(blocks.lengths)
        self._counts.append(blocks.counts)
        self._hashes.append(blocks.id_hashes)

    def _write_tables(self) -> None:
        hashes = np.concatenate(self._hashes)
        order = np.argsort(hashes, kind="stable")
        tables: dict[str, np.ndarray] = {
            _BLOCK_OFFSETS: np.cumsum(np.concatenate(self._lengths)),
            _FIRST_DOCUMENTS: np.cumsum(np.concatenate(self._counts)),
            _ID_HASHES: hashes[order],
            _ID_NUMBERS: order.astype(np.uint32),
        }
        for name, table in tables.items():
            with files.atomic_writer(self._folder / name, "wb") as stream:
                np.save(stream, table)


class DocumentStore:
    """The documents of an index, read through memory maps; safe to use from several threads.

    ``folder`` is the folder ``documents`` of an index. It has a length and is iterated over in the
    order of the corpus. Raises ``DamagedError`` when the files do not fit each other.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._offsets = reading.load_array(folder / _BLOCK_OFFSETS, remedy=_REMEDY)
        self._firsts = reading.load_array(folder / _FIRST_DOCUMENTS, remedy=_REMEDY)
        self._hashes = np.asarray(
            reading.load_array(folder / _ID_HASHES, mmap_mode="r", remedy=_REMEDY)
        )
        self._numbers = np.asarray(
            reading.load_array(folder / _ID_NUMBERS, mmap_mode="r", remedy=_REMEDY)
        )
        with reading.reading(folder / _BLOCKS, "blocks of documents", remedy=_REMEDY):
            self._content = _map_bytes(folder / _BLOCKS)
        is_whole = len(self._offsets) == len(self._firsts) >= 1
        is_whole = is_whole and self._offsets[-1] == len(self._content)
        is_whole = is_whole and self._firsts[-1] == len(self._hashes) == len(self._numbers)
        if not is_whole:
            raise DamagedError(
                f"{folder}: the tables of the documents do not fit each other; build the index "
                "again"
            )

    def __len__(self) -> int:
        return len(self._hashes)

    def __iter__(self) -> Iterator[Document]:
        for block in range(len(self._offsets) - 1):
            for line in self._lines(block):
                yield _parse(line)

    def read(self, number: int) -> Document:
        """The document of a number; raises ``DataError`` for a number outside the store."""
        if not 0 <= number < len(self):
            raise DataError(f"document number is {number}; it must be 0 to {len(self) - 1}")
        block = int(np.searchsorted(self._firsts, number, side="right")) - 1
        return _parse(self._lines(block)[number - int(self._firsts[block])])

    def find(self, doc_id: str) -> Document | None:
        """The document of an id; None if the store has no such document."""
        wanted = np.uint64(_hash_id(doc_id))
        place = int(np.searchsorted(self._hashes, wanted))
        while place < len(self._hashes) and self._hashes[place] == wanted:
            document = self.read(int(self._numbers[place]))
            if document.doc_id == doc_id:
                return document
            place += 1  # another document whose id has the same hash
        return None

    def _lines(self, block: int) -> list[bytes]:
        start = int(self._offsets[block])
        end = int(self._offsets[block + 1])
        try:
            return _decompress(self._content[start:end].tobytes())
        except zstandard.ZstdError as error:
            raise DamagedError(
                f"{self._folder / _BLOCKS} is damaged at byte {start} ({error}); build the index "
                "again"
            ) from error


class _Decompressor(threading.local):
    """A thread's own decompressor: one object must not be used by two threads at once."""

    def __init__(self) -> None:
        self.decompress = zstandard.ZstdDecompressor().decompress


_DECOMPRESSOR = _Decompressor()


def _decompress(block: bytes) -> list[bytes]:
    return _DECOMPRESSOR.decompress(block).split(b"\n")


def _parse(line: bytes) -> Document:
    return Document(*json.loads(line))


def _hash_id(doc_id: str) -> int:
    digest = hashlib.blake2b(doc_id.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def _map_bytes(path: Path) -> np.ndarray:
    """The bytes of a file, uint8, mapped; an empty file cannot be mapped."""
    if not path.stat().st_size:
        return np.empty(0, np.uint8)
    return np.asarray(np.memmap(path, dtype=np.uint8, mode="r"))
