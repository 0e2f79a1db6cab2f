"""Building the BM25 baseline of a corpus."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from sparse_ir.console import progress_bar
from sparse_ir.data.metadata import MetadataSchema
from sparse_ir.data.records import Document
from sparse_ir.engines.lucene.bm25 import Bm25, write_texts
from sparse_ir.engines.lucene.checking import lucene_version
from sparse_ir.errors import DataError
from sparse_ir.indexing import document_store
from sparse_ir.indexing.building import building
from sparse_ir.indexing.document_store import StoreWriter
from sparse_ir.indexing.impact_source import Unindexed
from sparse_ir.indexing.manifest import (
    IndexManifest,
    write_doc_ids,
    write_lines,
    write_manifest,
)


def build_bm25_index(
    read: Callable[[], Iterable[Document]],
    output: Path,
    parameters: Bm25 | None = None,
    *,
    store: bool = True,
    metadata_schema: MetadataSchema | None = None,
    progress: bool = False,
) -> IndexManifest:
    """Build, verify and swap in a BM25 index; returns its manifest.

    Title and text are one field (Anserini's "flat"). With a weight for titles in the parameters
    they are two ("multifield"); then, as in Anserini, a document without text is not indexed,
    whatever its title. ``store`` also keeps the documents themselves; ``metadata_schema`` has the
    types of their metadata.
    """
    parameters = parameters or Bm25()
    doc_ids: list[str] = []
    unindexed: list[Unindexed] = []

    def texts(writer: StoreWriter | None) -> Iterator[tuple[str, ...]]:
        for document in read():
            if writer is not None:
                writer.add(document)
            parts: tuple[str, ...] = (document.contents,)
            if parameters.title:
                parts = (document.text, document.title)
            if parts[0].strip():
                doc_ids.append(document.doc_id)
                yield document.doc_id, *parts
            else:
                unindexed.append({"doc_id": document.doc_id, "reason": "empty text"})

    with building(output) as folder:
        with contextlib.ExitStack() as stack:
            bar = stack.enter_context(
                progress_bar(None, progress, desc="indexing", unit=" documents")
            )
            writer = None
            if store:
                writer = stack.enter_context(StoreWriter(folder / document_store.FOLDER))
            write_texts(folder / "lucene", texts(writer), parameters, bar.update)
        if not doc_ids and not unindexed:
            raise DataError("the corpus holds no documents")
        write_lines(folder / "unindexed.jsonl", unindexed)
        write_doc_ids(folder, doc_ids)
        counts = {
            "documents": len(doc_ids) + len(unindexed),
            "indexed": len(doc_ids),
            "empty": len(unindexed),
        }
        facts: dict[str, Any] = {"parameters": parameters._asdict(), "counts": counts}
        if store and metadata_schema is not None:
            facts["metadata_schema"] = metadata_schema
        return write_manifest(folder, "bm25", facts, {"lucene": lucene_version()})
