"""Encoding a corpus into a folder of vectors that survives a kill at any moment.

``plan.json`` is written first and says what is being encoded; ``shards/`` fills up, each file whole
or absent; ``manifest.json`` is written last. Any number of processes, on one machine or on several
that share the folder, may run the same call at once: each takes shards that no other is working on.
The result is the same byte for byte, whichever process made which shard and however often one was
killed.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
from scipy import sparse

from sparse_ir.console import ProgressBar, progress_bar
from sparse_ir.data.metadata import MetadataSchema
from sparse_ir.data.records import Document
from sparse_ir.errors import ConfigError, DataError, LockedError
from sparse_ir.indexing import shards
from sparse_ir.indexing.vectors import (
    PLAN,
    QUERY,
    VOCABULARY,
    EncodingPlan,
    PlannedShard,
    Vectors,
    finish_folder,
    holds,
    read_record,
    seal_record,
    visible_files,
)
from sparse_ir.models.interfaces import DocumentEncoder, QueryEncoder
from sparse_ir.storage import files

_LOG = logging.getLogger(__name__)

ReadCorpus = Callable[[], Iterable[Document]]  # opens the corpus from its start


class Shard(NamedTuple):
    """A run of neighbouring documents of the corpus."""

    number: int
    documents: list[Document]

    def digest(self) -> str:
        """SHA-256 over ids and texts, so that a change of the corpus between runs is noticed."""
        digest = hashlib.sha256()
        for document in self.documents:
            digest.update(json.dumps([document.doc_id, document.contents]).encode())
        return digest.hexdigest()

    def metadata_digest(self) -> str:
        """SHA-256 over the metadata, which encoders do not read."""
        digest = hashlib.sha256()
        for document in self.documents:
            digest.update(json.dumps(dict(document.metadata)).encode())
        return digest.hexdigest()


class _Job(NamedTuple):
    """What is written, and where."""

    output: Path
    plan: EncodingPlan
    encoder: DocumentEncoder
    store: bool  # keep the documents themselves
    has_metadata: bool  # the documents come with their metadata

    def is_done(self, number: int) -> bool:
        """True when a shard has all that it should have."""
        is_whole = shards.is_whole(self.output, number)
        return is_whole and (not self.store or shards.has_documents(self.output, number))


def write_vectors(
    output: Path,
    read: ReadCorpus,
    encoder: DocumentEncoder,
    *,
    query_encoder: QueryEncoder | None = None,
    shard_size: int = 1024,
    store: bool = True,
    metadata_schema: MetadataSchema | None = None,
    progress: bool = False,
) -> Vectors:
    """Encode a corpus into ``output``; after a kill, do only what is missing or damaged.

    ``query_encoder`` replaces the encoder's own query side. An empty document gets an empty vector
    without a call of the model. ``store`` keeps the documents themselves beside their vectors, and
    adds them to vectors that were encoded without them. ``metadata_schema`` has the types of their
    metadata; None says that ``read`` gives none. Raises ``ConfigError`` when ``output`` was begun
    with another encoder, shard size or schema, and ``DataError`` when the corpus is not the one of
    the plan.
    """
    query_side = query_encoder or encoder.query_encoder()
    plan = _make_plan(output, read, encoder, query_side, shard_size, metadata_schema, progress)
    has_metadata = metadata_schema is not None
    _fill_shards(_Job(output, plan, encoder, store, has_metadata), read, progress)
    if metadata_schema is not None:
        plan.setdefault("metadata_schema", metadata_schema)  # plans of older versions have none
    finish_folder(output, plan)
    return Vectors(output)


def _make_plan(
    output: Path,
    read: ReadCorpus,
    encoder: DocumentEncoder,
    query_encoder: QueryEncoder,
    shard_size: int,
    metadata_schema: MetadataSchema | None,
    progress: bool,
) -> EncodingPlan:
    """The plan in ``output``, or a new one.

    For a new plan a first pass checks and counts every document before any is encoded.
    """
    if shard_size < 1:
        raise ConfigError(f"shard size is {shard_size}; it must be at least 1")
    files.check_folder(output)
    if output.exists() and not (output / PLAN).exists() and any(visible_files(output)):
        raise ConfigError(
            f"{output} is not empty and holds no vectors; choose another output or delete it"
        )
    identity: dict[str, Any] = {
        "encoder": encoder.fingerprint,
        "query": query_encoder.fingerprint,
        "shard_size": shard_size,
    }
    if metadata_schema is not None:
        identity["metadata_schema"] = metadata_schema
    with files.write_lock(output / PLAN, timeout=-1):
        if not (output / PLAN).exists():
            files.remove_leftovers(output / PLAN)
            planned, empty = _survey(read, shard_size, metadata_schema is not None, progress)
            facts = identity | {"shards": planned, "empty_documents": empty}
            files.write_json(output / PLAN, seal_record(facts))
        record = read_record(output / PLAN)
        for key, value in identity.items():
            if files.sha256_of_json(record.get(key, value)) != files.sha256_of_json(value):
                _check_fitted(output, record[key], value)
                raise ConfigError(
                    f"{output} was begun with another {key} ({_difference(record[key], value)}); "
                    "choose another output, or delete it to start again"
                )
        _store_sides(output, list(encoder.vocabulary), query_encoder)
    return cast(EncodingPlan, record)


def _check_fitted(output: Path, old: Any, new: Any) -> None:
    """Raise ``DataError`` when two fingerprints differ only because the corpus has changed.

    The lexical model and the collection's share of the IDF are fitted to the corpus.
    """
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return
    changed = {key for key in old.keys() | new.keys() if old.get(key) != new.get(key)}
    is_lexical = old.get("kind") == new.get("kind") == "lexical"
    has_collection_idf = "collection_idf" in new.get("origin", {})
    if is_lexical or (has_collection_idf and changed == {"weights_sha256"}):
        raise DataError(
            f"{output} was begun with another corpus, to which its weights are fitted; restore "
            f"the corpus, or delete {output} to encode the corpus as it is now"
        )


def _store_sides(output: Path, vocabulary: list[str], query_encoder: QueryEncoder) -> None:
    """Write vocabulary and query side, unless they are there: a kill may have prevented it."""
    if not holds(output / VOCABULARY, vocabulary):
        files.remove_leftovers(output / VOCABULARY)
        files.write_json(output / VOCABULARY, vocabulary)
    if not (output / QUERY / "query.json").exists():  # the last file that ``save`` writes
        shutil.rmtree(output / QUERY, ignore_errors=True)
        query_encoder.save(output / QUERY)


def _survey(
    read: ReadCorpus, shard_size: int, has_metadata: bool, progress: bool
) -> tuple[list[PlannedShard], int]:
    """The shards of a corpus, and how many of its documents are empty."""
    planned: list[PlannedShard] = []
    empty = 0
    with progress_bar(None, progress, desc="checking", unit=" documents") as bar:
        for shard in _split(read(), shard_size):
            facts: PlannedShard = {
                "documents": len(shard.documents),
                "input_sha256": shard.digest(),
            }
            if has_metadata:
                facts["metadata_sha256"] = shard.metadata_digest()
            planned.append(facts)
            empty += sum(not document.contents for document in shard.documents)
            bar.update(len(shard.documents))
    if not planned:
        raise DataError("the corpus holds no documents")
    return planned, empty


def _split(documents: Iterable[Document], shard_size: int) -> Iterator[Shard]:
    iterator = iter(documents)
    for number in itertools.count():
        part = list(itertools.islice(iterator, shard_size))
        if not part:
            return
        yield Shard(number, part)


def _fill_shards(job: _Job, read: ReadCorpus, progress: bool) -> None:
    """Pass over the corpus until every shard is there.

    A second pass is for shards whose process was killed. Where all shards are there already, one
    pass still checks that the corpus is the one that was encoded.
    """
    counts = [shard["documents"] for shard in job.plan["shards"]]
    done = {number for number in range(len(counts)) if job.is_done(number)}
    finished = sum(counts[number] for number in done)
    _LOG.debug("%s: %d of %d documents are there", job.output, finished, sum(counts))
    with progress_bar(
        sum(counts), progress, desc="encoding", unit=" documents", initial=finished
    ) as bar:
        while True:
            before = len(done)
            _pass_over(job, read(), done, bar)
            if len(done) == len(counts):
                return
            if len(done) == before:
                time.sleep(0.5)  # other processes are working on all that is missing


def _pass_over(job: _Job, documents: Iterable[Document], done: set[int], bar: ProgressBar) -> None:
    """Check the corpus against the plan, and encode the missing shards that nobody else holds."""
    seen = 0
    planned = len(job.plan["shards"])
    for shard in _split(documents, job.plan["shard_size"]):
        _check_input(job, shard)
        seen += 1
        if shard.number not in done and _take(job, shard, bar):
            done.add(shard.number)
    if seen < planned:
        raise DataError(
            f"the corpus has changed since encoding began (it ends after {seen} of "
            f"{planned} shards); restore it, or delete {job.output} to encode it as it is now"
        )


def _check_input(job: _Job, shard: Shard) -> None:
    """Raise ``DataError`` unless a shard of the corpus is the planned one."""
    planned = job.plan["shards"]
    if shard.number < len(planned):
        known = planned[shard.number]
        is_same = shard.digest() == known.get("input_sha256")
        if job.has_metadata and "metadata_sha256" in known:
            is_same = is_same and shard.metadata_digest() == known["metadata_sha256"]
        if is_same:
            return
    first = shard.documents[0].doc_id
    raise DataError(
        "the corpus has changed since encoding began (in the shard that starts with document "
        f"{first}); restore it, or delete {job.output} to encode it as it is now"
    )


def _take(job: _Job, shard: Shard, bar: ProgressBar) -> bool:
    """Write what a shard lacks, unless another process holds it; True when all is there."""
    output = job.output
    try:
        with files.write_lock(shards.shard_path(output, shard.number)):
            if job.is_done(shard.number):
                bar.update(len(shard.documents))
                return True
            shards.remove_leftovers(output, shard.number)
            if shards.is_whole(output, shard.number):
                shards.add_documents(output, shard.number, shard.documents)
                bar.update(len(shard.documents))
                return True
            doc_ids = [document.doc_id for document in shard.documents]
            texts = [document.contents for document in shard.documents]
            weights = _encode(job.encoder, texts, bar.update)
            stored = shard.documents if job.store else None
            shards.write_shard(output, shard.number, doc_ids, weights, stored)
            return True
    except LockedError:
        return False


def _encode(
    encoder: DocumentEncoder, texts: list[str], update: Callable[[int], Any]
) -> sparse.csr_matrix:
    """Vectors of the texts, with empty rows for empty texts."""
    full = [position for position, text in enumerate(texts) if text]
    weights = encoder.encode([texts[position] for position in full], update)
    update(len(texts) - len(full))
    lengths = np.zeros(len(texts), dtype=np.int64)
    lengths[full] = np.diff(weights.indptr)
    indptr = np.concatenate([[0], np.cumsum(lengths)])
    shape = (len(texts), len(encoder.vocabulary))
    return sparse.csr_matrix((weights.data, weights.indices, indptr), shape=shape)


def _difference(old: Any, new: Any) -> str:
    """The first three differences of two values, for an error message."""
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return f"{old} then, {new} now"
    changes = []
    for key in sorted({*old, *new}):
        if old.get(key) != new.get(key):
            changes.append(f"{key}: {old.get(key)} then, {new.get(key)} now")
    return "; ".join(changes[:3])
