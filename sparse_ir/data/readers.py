"""Documents and queries as streams, checked where they enter.

A ``DataError`` names file, line and value, and says what it must be. Nothing is skipped, repaired
or replaced silently. Qrels (``qrels.py``) are readable from here as well. Metadata and fields of
other names are read by ``corpus.Corpus``.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from sparse_ir.data.corpus import Corpus, Fields, read_texts
from sparse_ir.data.qrels import find_qrels, read_qrels
from sparse_ir.data.record_sources import open_records
from sparse_ir.data.records import Document, Query, check_string
from sparse_ir.data.sources import find_corpus, find_hub_name, find_queries

__all__ = [
    "check_string",
    "find_corpus",
    "find_hub_name",
    "find_qrels",
    "find_queries",
    "read_documents",
    "read_qrels",
    "read_queries",
]


def read_documents(
    source: str | Path, *, revision: str | None = None, check_unique: bool = True
) -> Iterator[Document]:
    """The documents of a corpus without metadata, one at a time, in the order of the file.

    ``source`` is as in ``Corpus``. A missing or null title is the empty title, and a document
    without title and text is legal. Doc ids must be unique. A temporary database on disk checks
    this exactly and in bounded memory; ``check_unique=False`` skips the check for a corpus that has
    been read before.

    Raises:
        DataError: there is no such corpus (raised at once), or a record breaks the format (raised
            when it is reached).
    """
    corpus = Corpus(source, revision=revision)
    return corpus.read(with_metadata=False, check_unique=check_unique)


def read_queries(
    source: str | Path, *, revision: str | None = None, check_unique: bool = True
) -> Iterator[Query]:
    """The queries of a set, one at a time; sources, options and errors as in ``read_documents``.

    The file of a BEIR folder is ``queries.jsonl[.gz]``; it holds the queries of all splits. MS
    MARCO's is ``query_id<TAB>text``.
    """
    opened = open_records(source, "queries", revision=revision)
    records = read_texts(opened, Fields(), check_unique)
    return (Query(texts.record_id, texts.text) for _, texts in records)
