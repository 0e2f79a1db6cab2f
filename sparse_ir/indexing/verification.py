"""Is an index folder whole? Checksums, counts, the engine's own check, and sampled scores."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Protocol

import numpy as np

from sparse_ir.engines.base import BM25, SPARSE, EngineReader, EngineStatistics, FieldTerms
from sparse_ir.engines.catalog import find_engine
from sparse_ir.engines.lucene.bm25 import Bm25, Bm25Reader
from sparse_ir.errors import DamagedError, IndexMismatch
from sparse_ir.indexing import document_store, statistics
from sparse_ir.indexing.document_store import DocumentStore
from sparse_ir.indexing.forward import FOLDER, ForwardIndex
from sparse_ir.indexing.manifest import (
    TUNED,
    DocIds,
    IndexManifest,
    check_files,
    document_bytes,
    engine_of,
    has_documents,
    has_forward_index,
    read_manifest,
)
from sparse_ir.indexing.statistics import Statistics
from sparse_ir.storage import files, reading, sealed

SAMPLED_DOCUMENTS = 64
SAMPLED_TERMS = 40  # of each sampled document, evenly spaced


class _Reader(Protocol):
    """What impact and BM25 readers share."""

    num_documents: int

    def statistics(self) -> EngineStatistics: ...

    def stored_ids(self, numbers: list[int]) -> list[str]: ...


def verify_index(folder: Path) -> dict[str, object]:
    """Check everything that can be checked; a report with the counts and what was checked.

    Checksums of all files; the engine's own check; documents, postings and the sum of all impacts
    as the engine counts them against the manifest; the engine's scores of sampled documents against
    their exact vectors; where documents are kept, their number and sampled ones.

    Raises ``DamagedError`` at the first difference, and ``UncheckedError`` when something could not
    be checked.
    """
    with reading.checking(folder):
        return _verify_index(folder)


def _verify_index(folder: Path) -> dict[str, object]:
    started = time.perf_counter()
    manifest = read_manifest(folder)
    check_files(folder, manifest, checksums=True)
    if manifest["kind"] == "impact":
        counted, num_samples = _verify_impacts(folder, manifest)
    else:
        counted, num_samples = _verify_bm25(folder, manifest)
    if has_documents(manifest):
        _check_documents(folder, manifest["counts"]["documents"])
    if (folder / TUNED).exists():
        _check_tuned(folder / TUNED, manifest["sha256"])
    report: dict[str, object] = {"index": str(folder), "ok": True, "kind": manifest["kind"]}
    report |= manifest["counts"]
    report |= {
        "terms": counted.terms,
        "files": len(manifest["files"]),
        "bytes": sum(file["bytes"] for file in manifest["files"].values()),
        "document_bytes": document_bytes(manifest),
        "sampled_documents": num_samples,
        "seconds": round(time.perf_counter() - started, 2),
    }
    return report


def _verify_impacts(folder: Path, manifest: IndexManifest) -> tuple[EngineStatistics, int]:
    """Check an impact index with its engine; the engine's counts, and how many samples it had."""
    engine = find_engine(engine_of(manifest))
    counts = manifest["counts"]
    engine.check(folder / engine.name)
    reader = engine.open(folder / engine.name)
    try:
        counted = reader.statistics()
        for name in ("postings", "sum_impacts"):
            _check_count(folder, name, getattr(counted, name), counts[name])
        _check_ids(folder, reader, counted, counts["indexed"])
        num_samples = _check_samples(folder, reader)
        if has_forward_index(manifest):
            _check_forward(folder, reader, counted)
        if (folder / statistics.FILE).exists():
            _check_statistics(folder, counted)
    finally:
        reader.close()
    return counted, num_samples


def _verify_bm25(folder: Path, manifest: IndexManifest) -> tuple[EngineStatistics, int]:
    engine = find_engine("lucene")
    engine.check(folder / "lucene")
    parameters = Bm25(**manifest.get("parameters", {}))
    with Bm25Reader(folder / "lucene", parameters) as reader:
        counted = reader.statistics()
        _check_ids(folder, reader, counted, manifest["counts"]["indexed"])
    return counted, 0


def _check_count(folder: Path, name: str, counted: int, promised: int) -> None:
    if counted != promised:
        raise DamagedError(
            f"{folder}: the engine counts {counted} {name}, the manifest promises {promised}"
        )


def _check_tuned(path: Path, index_sha256: str) -> None:
    """The stored search options are what ``tune`` wrote for this version of the index."""
    record = files.read_json(path)
    if not isinstance(record, dict) or not sealed.is_intact(record):
        raise DamagedError(f"{path} is damaged; run sparse-ir tune again")
    if record["index_sha256"] != index_sha256:
        raise IndexMismatch(
            f"{path} was measured on another version of this index; run sparse-ir tune again"
        )


def _check_samples(folder: Path, reader: EngineReader) -> int:
    """Score sampled documents with tokens of their own, boosted 1, 2, 3, 1, 2 ..."""
    path = folder / "samples.jsonl"
    with reading.reading(path, "JSON", remedy="; build the index again"):
        lines = path.read_text(encoding="utf-8").splitlines()
    for line in lines:
        sample = json.loads(line)
        query = {}
        expected = 0
        for field, name in ((SPARSE, "vector"), (BM25, "bm25")):
            vector = sample.get(name, {})
            step = 1 + len(vector) // SAMPLED_TERMS
            chosen = list(vector.items())[::step]
            if not chosen:
                continue
            boosts = [1 + position % 3 for position in range(len(chosen))]
            query[field] = FieldTerms([token for token, _ in chosen], boosts)
            for boost, (_, impact) in zip(boosts, chosen, strict=True):
                expected += boost * impact
        score = reader.score(sample["id"], query)
        if score != np.float32(expected):
            raise DamagedError(
                f"{folder}: document {sample['id']} scores {score}, its exact vector gives "
                f"{expected}"
            )
    return len(lines)


def _check_forward(folder: Path, reader: EngineReader, counted: EngineStatistics) -> None:
    """The forward index has the engine's counts, and its scores of evenly spaced documents."""
    opened = ForwardIndex(folder / FOLDER)
    doc_ids = DocIds(folder)
    for name, value in opened.statistics().items():
        if value != getattr(counted, name):
            raise DamagedError(
                f"{folder / FOLDER} holds {value} {name}, the engine {getattr(counted, name)}"
            )
    for number in _spaced(len(doc_ids)):
        token_ids, impacts = opened.vector(number)
        chosen = slice(None, None, 1 + len(token_ids) // SAMPLED_TERMS)
        tokens: dict[str, list[str]] = {}
        for token_id in token_ids[chosen].tolist():
            field = opened.field_of(token_id)
            tokens.setdefault(field, []).append(opened.vocabulary[token_id])
        query = {}
        for field, of_field in tokens.items():
            query[field] = FieldTerms(of_field, [1] * len(of_field))
        expected = impacts[chosen].sum()
        doc_id = doc_ids[number]
        score = reader.score(doc_id, query)
        if score != np.float32(expected):
            raise DamagedError(
                f"{folder / FOLDER}: document {doc_id} has {expected}, the engine gives {score}"
            )


def _check_statistics(folder: Path, counted: EngineStatistics) -> None:
    """The statistics record adds up to the engine's documents, tokens and postings."""
    record = Statistics.load(folder)
    place = folder / statistics.FILE
    _check_count(place, "documents", counted.documents, record.documents)
    terms = 0
    postings = 0
    for frequencies in record.frequencies.values():
        terms += int(np.count_nonzero(frequencies))
        postings += int(frequencies.sum())
    _check_count(place, "terms", counted.terms, terms)
    _check_count(place, "postings", counted.postings, postings)


def _check_documents(folder: Path, promised: int) -> None:
    """Every document is kept, and sampled documents of the engine are found by their ids."""
    store = DocumentStore(folder / document_store.FOLDER)
    if len(store) != promised:
        raise DamagedError(
            f"{folder / document_store.FOLDER} holds {len(store)} documents, the manifest promises "
            f"{promised}"
        )
    doc_ids = DocIds(folder)
    for doc_id in doc_ids.find(_spaced(len(doc_ids))):
        if store.find(doc_id) is None:
            raise DamagedError(f"{folder / document_store.FOLDER} has no document {doc_id!r}")


def _spaced(count: int) -> list[int]:
    """At most ``SAMPLED_DOCUMENTS`` numbers below ``count``, with the first and the last."""
    spaced = np.linspace(0, count - 1, min(count, SAMPLED_DOCUMENTS))
    return [int(number) for number in np.unique(spaced.astype(int))]


def _check_ids(folder: Path, reader: _Reader, counted: EngineStatistics, promised: int) -> None:
    """The list of doc_ids has the engine's documents in the engine's order."""
    _check_count(folder, "documents", counted.documents, promised)
    doc_ids = DocIds(folder)
    if len(doc_ids) != reader.num_documents:
        raise DamagedError(
            f"{folder / 'doc_ids.txt'} has {len(doc_ids)} lines for "
            f"{reader.num_documents} documents"
        )
    numbers = _spaced(len(doc_ids))
    listed = doc_ids.find(numbers)
    stored = reader.stored_ids(numbers)
    for number, doc_id, stored_id in zip(numbers, listed, stored, strict=True):
        if doc_id != stored_id:
            raise DamagedError(
                f"{folder / 'doc_ids.txt'}: line {number + 1} is {doc_id}, the engine has "
                f"{stored_id}"
            )
