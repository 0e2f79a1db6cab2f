"""Is an index folder whole? Checksums, counts, Lucene's own check, and sampled scores."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from sparse_ir.engines.lucene import parts
from sparse_ir.engines.lucene.reader import Reader
from sparse_ir.engines.lucene.terms import term_of_token
from sparse_ir.errors import DamagedError, IndexMismatch
from sparse_ir.indexing.forward import FOLDER, ForwardIndex
from sparse_ir.indexing.manifest import TUNED, DocIds, check_files, has_forward_index, read_manifest
from sparse_ir.storage import files, sealed

NUM_SAMPLES = 64
# of each sampled document, evenly spaced; the sum over all impacts is checked besides
SAMPLED_TERMS = 40


def verify_index(folder: Path) -> dict[str, Any]:
    """Check everything that can be checked; a report. Raises ``DamagedError`` at the first thing
    that is wrong.

    Checksums of all files; Lucene's CheckIndex; documents, postings and the sum of all impacts as
    Lucene counts them against the manifest; the engine's score of sampled documents against their
    exact vectors.
    """
    started = time.perf_counter()
    manifest = read_manifest(folder)
    check_files(folder, manifest, checksums=True)
    parts.check_index(folder / "lucene")
    counts = manifest["counts"]
    with Reader(folder / "lucene", manifest["kind"]) as reader:
        found = reader.statistics()
        expected = {"documents": counts["indexed"]}
        if manifest["kind"] == "impact":
            expected |= {"postings": counts["postings"], "sum_impacts": counts["sum_impacts"]}
        for name, value in expected.items():
            if found[name] != value:
                raise DamagedError(
                    f"{folder}: Lucene counts {found[name]} {name}, the manifest promises {value}"
                )
        num_samples = _check_samples(folder, reader) if manifest["kind"] == "impact" else 0
        _check_doc_ids(folder, reader)
        if has_forward_index(manifest):
            _check_forward(folder, reader, expected)
    if (folder / TUNED).exists():
        _check_tuned(folder / TUNED, manifest["sha256"])
    return {
        "index": str(folder),
        "ok": True,
        "kind": manifest["kind"],
        **counts,
        "terms": found["terms"],
        "files": len(manifest["files"]),
        "bytes": sum(file["bytes"] for file in manifest["files"].values()),
        "sampled_documents": num_samples,
        "seconds": round(time.perf_counter() - started, 2),
    }


def _check_tuned(path: Path, index_sha256: str) -> None:
    """The stored search options are what ``tune`` wrote for this version of the index."""
    record = files.read_json(path)
    if not isinstance(record, dict) or not sealed.is_intact(record):
        raise DamagedError(f"{path} is damaged; run sparse-ir tune again")
    if record["index_sha256"] != index_sha256:
        raise IndexMismatch(
            f"{path} was measured on another version of this index; run sparse-ir tune again"
        )


def _check_samples(folder: Path, reader: Reader) -> int:
    """Score sampled documents with terms of their own, boosted 1, 2, 3, 1, 2 ...: the exact sum
    must come back.
    """
    lines = (folder / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    for line in lines:
        sample = json.loads(line)
        chosen = list(sample["vector"].items())[:: 1 + len(sample["vector"]) // SAMPLED_TERMS]
        terms = [term_of_token(token) for token, _ in chosen]
        boosts = [1 + position % 3 for position in range(len(terms))]
        expected = sum(boost * impact for boost, (_, impact) in zip(boosts, chosen, strict=True))
        score = reader.score(sample["id"], terms, boosts)
        if score != np.float32(expected):
            raise DamagedError(
                f"{folder}: document {sample['id']} scores {score}, its exact "
                f"vector gives {expected}"
            )
    return len(lines)


def _check_forward(folder: Path, reader: Reader, expected: dict[str, int]) -> None:
    """The same counts as in Lucene, and the same scores of evenly spaced documents."""
    opened, doc_ids = ForwardIndex(folder / FOLDER), DocIds(folder)
    if opened.statistics() != expected:
        raise DamagedError(
            f"{folder / FOLDER} holds {opened.statistics()}, the manifest promises {expected}"
        )
    for number in _spaced(len(doc_ids)):
        token_ids, impacts = opened.vector(number)
        chosen = slice(None, None, 1 + len(token_ids) // SAMPLED_TERMS)
        terms = [term_of_token(opened.vocabulary[token_id]) for token_id in token_ids[chosen]]
        if (score := reader.score(doc_ids[number], terms, [1] * len(terms))) != np.float32(
            impacts[chosen].sum()
        ):
            raise DamagedError(
                f"{folder / FOLDER}: document {doc_ids[number]} has "
                f"{impacts[chosen].sum()}, "
                f"Lucene gives {score}"
            )


def _spaced(count: int) -> list[int]:
    """At most ``NUM_SAMPLES`` numbers below ``count``, the first and the last among them."""
    return np.unique(np.linspace(0, count - 1, min(count, NUM_SAMPLES)).astype(int)).tolist()


def _check_doc_ids(folder: Path, reader: Reader) -> None:
    doc_ids = DocIds(folder)
    if len(doc_ids) != reader.num_documents:
        raise DamagedError(
            f"{folder / 'doc_ids.txt'} has {len(doc_ids)} lines for "
            f"{reader.num_documents} documents"
        )
    numbers = _spaced(len(doc_ids))
    for number, found, stored in zip(
        numbers, doc_ids.find(numbers), reader.stored_ids(numbers), strict=True
    ):
        if found != stored:
            raise DamagedError(
                f"{folder / 'doc_ids.txt'}: line {number + 1} is {found}, Lucene has {stored}"
            )
