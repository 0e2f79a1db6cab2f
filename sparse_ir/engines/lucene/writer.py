"""Writing Lucene indexes.

pyjnius keeps the receiver of ``object.method`` in a place shared by all objects of the class until
the call is made. So in this folder every argument of a Java method is computed in a line before the
call, and the receiver is a variable: a call among the arguments would let another object, or
another thread, take the receiver's place; a temporary receiver, as in ``a.b().c()``, is freed as
soon as another thread takes its place, and Java then finds a null pointer.
"""

from __future__ import annotations

import contextlib
import functools
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

from sparse_ir.engines.base import LARGEST_IMPACT, ImpactBatch
from sparse_ir.engines.lucene import java
from sparse_ir.engines.lucene.directory import (
    impact_analyzer,
    impact_similarity,
    open_directory,
)
from sparse_ir.engines.lucene.terms import DELIMITER, ID_FIELD, lucene_field, term_of_token
from sparse_ir.engines.threads import run_threads
from sparse_ir.errors import DataError

_BUFFER_MEGABYTES = 256.0

Report = Callable[[int], None]


def write_impacts(
    folder: Path,
    batches: Sequence[Callable[[], ImpactBatch]],
    vocabularies: Mapping[str, Sequence[str]],
    *,
    threads: int = 1,
    progress: Report | None = None,
) -> None:
    """Write a new Lucene index in ``folder`` with one segment per thread.

    Each thread fills an index of its own with a run of neighbouring batches; the parts are then put
    together in order and unchanged. So document numbers, scores and ties do not depend on the
    number of threads.
    """
    term_texts: dict[str, np.ndarray] = {}
    for field, vocabulary in vocabularies.items():
        texts = [term_of_token(token) + DELIMITER for token in vocabulary]
        term_texts[field] = np.array(texts, dtype=object)
    groups = np.array_split(np.arange(len(batches)), max(1, min(threads, len(batches))))
    if len(groups) <= 1:
        _write_part(folder, batches, term_texts, progress)
        return
    parts = [folder.with_name(f"{folder.name}.part{number}") for number in range(len(groups))]
    tasks = []
    for part, group in zip(parts, groups, strict=True):
        chosen = [batches[number] for number in group]
        tasks.append(functools.partial(_write_part, part, chosen, term_texts, progress))
    run_threads(tasks, java.detach_thread)
    with open_writer(folder, impact_analyzer(), impact_similarity(), merge=False) as writer:
        writer.add_indexes(parts)
    for part in parts:
        shutil.rmtree(part)


def _write_part(
    folder: Path,
    batches: Sequence[Callable[[], ImpactBatch]],
    term_texts: Mapping[str, np.ndarray],
    progress: Report | None,
) -> None:
    """Write the documents of some batches into an index of their own."""
    fields = list(term_texts)
    with open_writer(folder, impact_analyzer(), impact_similarity()) as writer:
        document = ReusableDocument([lucene_field(field) for field in fields], norms=False)
        for read_batch in batches:
            batch = read_batch()
            texts = [_postings_texts(batch.fields[field], term_texts[field]) for field in fields]
            for doc_id, *postings in zip(batch.doc_ids, *texts, strict=True):
                writer.add(document.filled(doc_id, postings))
            if progress is not None:
                progress(len(batch.doc_ids))


def _postings_texts(impacts: sparse.csr_matrix, term_texts: np.ndarray) -> Iterator[str]:
    """``term DELIMITER impact`` pairs of each row, which Lucene's own token filter reads."""
    smallest = int(impacts.data.min(initial=1))
    largest = int(impacts.data.max(initial=1))
    if smallest < 1 or largest > LARGEST_IMPACT:
        raise DataError(
            f"impacts range from {smallest} to {largest}; they must lie in 1 to {LARGEST_IMPACT}"
        )
    pairs = term_texts[impacts.indices] + _number_texts()[impacts.data]
    bounds = impacts.indptr
    for row in range(impacts.shape[0]):
        yield "".join(pairs[bounds[row] : bounds[row + 1]].tolist())


@functools.lru_cache(maxsize=1)
def _number_texts() -> np.ndarray:
    """The text of every impact; looking it up is five times as fast as making it."""
    return np.array([f"{number} " for number in range(LARGEST_IMPACT + 1)], dtype=object)


class ReusableDocument:
    """One Lucene document that is filled again and again, which saves calls to Java."""

    def __init__(self, text_fields: Sequence[str], *, norms: bool) -> None:
        """``text_fields``: the Lucene fields; ``norms``: whether Lucene keeps their lengths."""
        text = java.cast("java.lang.CharSequence", java.java_class("java.lang.String")("x"))
        stored = java.java_class("org.apache.lucene.document.Field$Store").YES
        sort_key = java.java_class("org.apache.lucene.util.BytesRef")(text)
        field_type = _make_field_type(norms)
        self._id = java.java_class("org.apache.lucene.document.StringField")(ID_FIELD, "x", stored)
        self._sort_id = java.java_class("org.apache.lucene.document.BinaryDocValuesField")(
            ID_FIELD, sort_key
        )
        self._texts = []
        for name in text_fields:
            field = java.java_class("org.apache.lucene.document.Field")(name, text, field_type)
            self._texts.append(field)
        self._document = java.java_class("org.apache.lucene.document.Document")()
        for field in (self._id, self._sort_id, *self._texts):
            self._document.add(field)

    def filled(self, doc_id: str, texts: Sequence[str]) -> Any:
        """The Java document with this id and these texts."""
        sort_key = doc_id.encode()
        self._id.setStringValue(doc_id)
        self._sort_id.setBytesValue(sort_key)
        for field, text in zip(self._texts, texts, strict=True):
            field.setStringValue(text)
        return self._document


def _make_field_type(norms: bool) -> Any:
    frequencies = java.java_class("org.apache.lucene.index.IndexOptions").DOCS_AND_FREQS
    omit_norms = not norms
    field_type = java.java_class("org.apache.lucene.document.FieldType")()
    field_type.setIndexOptions(frequencies)
    field_type.setTokenized(True)
    field_type.setOmitNorms(omit_norms)
    field_type.freeze()
    return java.cast("org.apache.lucene.index.IndexableFieldType", field_type)


class LuceneWriter:
    """An ``IndexWriter`` that keeps documents in the order in which they were added."""

    def __init__(self, folder: Path, analyzer: Any, similarity: Any) -> None:
        self._directory = open_directory(folder)
        create = java.java_class("org.apache.lucene.index.IndexWriterConfig$OpenMode").CREATE
        # the default policy merges segments that are not neighbours and so reorders documents
        policy = java.java_class("org.apache.lucene.index.LogByteSizeMergePolicy")()
        # the default merges in threads of its own, which print a stack trace when the disk is full
        scheduler = java.java_class("org.apache.lucene.index.SerialMergeScheduler")()
        config = java.java_class("org.apache.lucene.index.IndexWriterConfig")(analyzer)
        config.setOpenMode(create)
        config.setRAMBufferSizeMB(_BUFFER_MEGABYTES)
        config.setUseCompoundFile(False)
        config.setSimilarity(similarity)
        config.setMergePolicy(policy)
        config.setMergeScheduler(scheduler)
        self._writer = java.java_class("org.apache.lucene.index.IndexWriter")(
            self._directory, config
        )

    def add(self, document: Any) -> None:
        """Add a Java document."""
        self._writer.addDocument(document)

    def add_indexes(self, folders: Sequence[Path]) -> None:
        """Append whole indexes, unchanged and in this order."""
        directories = [open_directory(folder) for folder in folders]
        self._writer.addIndexes(*directories)
        for directory in directories:
            directory.close()

    def finish(self, *, merge: bool) -> None:
        """Commit; with ``merge``, into one segment."""
        if merge:
            self._writer.forceMerge(1)
        self._writer.commit()
        self._writer.close()

    def release(self) -> None:
        """Give up what was not finished, and let go of the lock and the files."""
        if self._writer.isOpen():
            self._writer.rollback()
        self._directory.close()


@contextlib.contextmanager
def open_writer(
    folder: Path, analyzer: Any, similarity: Any, *, merge: bool = True
) -> Iterator[LuceneWriter]:
    """A writer that is finished at the end of the block; errors of Java become one sentence."""
    with java.translated_errors("writing the Lucene index failed"):
        writer = LuceneWriter(folder, analyzer, similarity)
        try:
            yield writer
            writer.finish(merge=merge)
        finally:
            writer.release()
