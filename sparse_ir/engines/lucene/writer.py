"""Writing Lucene indexes: impacts as term frequencies, or texts for BM25."""

from __future__ import annotations

import contextlib
import functools
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

from sparse_ir.engines.base import LARGEST_IMPACT, Batch, Bm25, Texts
from sparse_ir.engines.lucene import java
from sparse_ir.engines.lucene.parts import (
    Kind,
    make_analyzer,
    make_similarity,
    open_directory,
    run_threads,
)
from sparse_ir.engines.lucene.terms import DELIMITER, FIELD, ID_FIELD, TITLE_FIELD, term_of_token
from sparse_ir.errors import DataError

_BUFFER_MEGABYTES = 256.0


def write_impacts(
    folder: Path,
    batches: Sequence[Callable[[], Batch]],
    vocabulary: Sequence[str],
    *,
    threads: int = 1,
    progress: Callable[[int], None] | None = None,
) -> None:
    """A new Lucene index in ``folder`` with one segment per thread; document numbers follow the
    order of the batches.

    Each thread fills an index of its own with a run of neighbouring batches; the parts are then put
    together in order, as they are: numbers, scores and ties do not depend on the number of threads.
    """
    vocabulary_text = np.array(
        [term_of_token(token) + DELIMITER for token in vocabulary], dtype=object
    )
    groups = [
        group for group in np.array_split(np.arange(len(batches)), max(threads, 1)) if len(group)
    ]
    report = progress or (lambda count: None)

    def fill(part: Path, group: np.ndarray) -> None:
        with _writing(part, "impact") as writer:
            for number in group:
                doc_ids, impacts = batches[number]()
                for doc_id, text in zip(
                    doc_ids, _postings_texts(impacts, vocabulary_text), strict=True
                ):
                    writer.add(doc_id, text)
                report(len(doc_ids))

    if len(groups) <= 1:
        fill(folder, groups[0] if groups else np.arange(0))
        return
    parts = [folder.with_name(f"{folder.name}.part{number}") for number in range(len(groups))]
    run_threads(
        [functools.partial(fill, part, group) for part, group in zip(parts, groups, strict=True)]
    )
    with _writing(folder, "impact", merge=False) as writer:
        writer.add_indexes(parts)
    for part in parts:
        shutil.rmtree(part)


def write_texts(
    folder: Path, texts: Texts, parameters: Bm25, progress: Callable[[int], None] | None = None
) -> None:
    """A new Lucene index in ``folder`` for BM25: Anserini's English analysis of each field, lengths
    in the norms.
    """
    with _writing(folder, "bm25", parameters) as writer:
        for doc_id, *parts in texts:
            writer.add(doc_id, *parts)
            if progress is not None:
                progress(1)


def _postings_texts(impacts: sparse.csr_matrix, vocabulary_text: np.ndarray) -> Iterator[str]:
    """One line of ``token DELIMITER impact`` pairs for each row; Lucene's own token filter reads
    the numbers.
    """
    smallest, largest = int(impacts.data.min(initial=1)), int(impacts.data.max(initial=1))
    if smallest < 1 or largest > LARGEST_IMPACT:
        raise DataError(
            f"impacts from {smallest} to {largest} are not allowed; they must lie in "
            f"1..{LARGEST_IMPACT}"
        )
    pairs = vocabulary_text[impacts.indices] + _number_texts()[impacts.data]
    bounds = impacts.indptr
    for row in range(impacts.shape[0]):
        yield "".join(pairs[bounds[row] : bounds[row + 1]].tolist())


@functools.lru_cache(maxsize=1)
def _number_texts() -> np.ndarray:
    """The text of every impact; looking it up is five times as fast as making it."""
    return np.array([f"{number} " for number in range(LARGEST_IMPACT + 1)], dtype=object)


class _Writer:
    """One IndexWriter and one document that is filled again and again: few calls from Python to
    Java.
    """

    def __init__(self, folder: Path, kind: Kind, parameters: Bm25 | None = None) -> None:
        self._directory = open_directory(folder)
        analyzer, similarity = make_analyzer(kind), make_similarity(kind, parameters or Bm25())
        create = java.java_class("org.apache.lucene.index.IndexWriterConfig$OpenMode").CREATE
        # the default policy merges segments that are not neighbours, and document numbers would
        # leave our order
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
        names = [FIELD, TITLE_FIELD] if parameters is not None and parameters.title else [FIELD]
        self._document, self._id, self._sort_id, *self._texts = _reusable_document(kind, names)

    def add(self, doc_id: str, *texts: str) -> None:
        sort_key = doc_id.encode()
        self._id.setStringValue(doc_id)
        self._sort_id.setBytesValue(sort_key)
        for field, text in zip(self._texts, texts, strict=True):
            field.setStringValue(text)
        self._writer.addDocument(self._document)

    def add_indexes(self, folders: Sequence[Path]) -> None:
        directories = [open_directory(folder) for folder in folders]
        self._writer.addIndexes(*directories)
        for directory in directories:
            directory.close()

    def finish(self, *, merge: bool) -> None:
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
def _writing(
    folder: Path, kind: Kind, parameters: Bm25 | None = None, *, merge: bool = True
) -> Iterator[_Writer]:
    """A writer that is finished at the end of the block; Java's failures (a full disk, say) become
    one sentence.
    """
    with java.translated_errors("writing the Lucene index failed"):
        writer = _Writer(folder, kind, parameters)
        try:
            yield writer
            writer.finish(merge=merge)
        finally:
            writer.release()


def _reusable_document(kind: Kind, names: Sequence[str]) -> tuple[Any, ...]:
    text = java.cast("java.lang.CharSequence", java.java_class("java.lang.String")("x"))
    field_type = java.java_class("org.apache.lucene.document.FieldType")()
    frequencies, omit_norms = (
        java.java_class("org.apache.lucene.index.IndexOptions").DOCS_AND_FREQS,
        kind == "impact",
    )
    field_type.setIndexOptions(frequencies)
    field_type.setTokenized(True)
    field_type.setOmitNorms(omit_norms)
    field_type.freeze()
    stored = java.java_class("org.apache.lucene.document.Field$Store").YES
    fields = (
        java.java_class("org.apache.lucene.document.StringField")(ID_FIELD, "x", stored),
        java.java_class("org.apache.lucene.document.BinaryDocValuesField")(
            ID_FIELD, java.java_class("org.apache.lucene.util.BytesRef")(text)
        ),
        *(
            java.java_class("org.apache.lucene.document.Field")(
                name, text, java.cast("org.apache.lucene.index.IndexableFieldType", field_type)
            )
            for name in names
        ),
    )
    document = java.java_class("org.apache.lucene.document.Document")()
    for field in fields:
        document.add(field)
    return document, *fields
