"""Which fields an index gets, and where the texts of its field ``bm25`` come from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from sparse_ir.console import progress_bar
from sparse_ir.data.records import Document
from sparse_ir.engines.base import BM25, SPARSE
from sparse_ir.engines.catalog import DEFAULT_ENGINE
from sparse_ir.errors import ConfigError
from sparse_ir.indexing.bm25_field import Bm25Settings, Bm25Weights, weigh_documents
from sparse_ir.indexing.vectors import Vectors

FIELDS = (SPARSE, BM25)
ReadDocuments = Callable[[], Iterable[Document]]


class Texts(NamedTuple):
    """The texts of a collection that was encoded."""

    vectors: Vectors
    read_corpus: ReadDocuments | None = None  # takes precedence over what the vectors keep

    @property
    def are_known(self) -> bool:
        """True where there are texts to read."""
        return self.read_corpus is not None or self.vectors.has_documents

    def read(self) -> Iterable[Document]:
        """The documents in the order of the corpus."""
        if self.read_corpus is not None:
            return self.read_corpus()
        return self._read_kept()

    def _read_kept(self) -> Iterator[Document]:
        for number in range(self.vectors.num_shards):
            yield from self.vectors.read_documents(number)


def read_fields(text: str | None) -> list[str] | None:
    """The fields of a list such as ``sparse,bm25``; None stands for the default.

    Raises ``ConfigError`` for an unknown field and for an empty list.
    """
    if text is None:
        return None
    names = [name.strip() for name in text.split(",")]
    unknown = [name for name in names if name not in FIELDS]
    if unknown:
        raise ConfigError(
            f"field {unknown[0]!r} is unknown; the fields must be sparse, bm25 or sparse,bm25"
        )
    return [field for field in FIELDS if field in names]


def reason_against_words(texts: Texts, wanted: Sequence[str] | None, engine: str) -> str | None:
    """Why an index has no field ``bm25``; None where it gets one.

    Raises ``ConfigError`` where the field was asked for and cannot be made.
    """
    vectors = texts.vectors
    if wanted is not None and BM25 not in wanted:
        return "the sparse field alone was asked for"
    if wanted is not None:
        if not texts.are_known:
            raise ConfigError(
                f"{vectors.folder} holds no texts for the field bm25; name the corpus that was "
                "encoded (--input)"
            )
        return None
    if not texts.are_known:
        return "sparse field only: the vectors hold no texts; name the corpus with --input"
    if engine != DEFAULT_ENGINE:
        return f"sparse field only: BM25 reads texts and queries with Lucene, not with {engine}"
    if vectors.manifest["integer_weights"]:
        return "sparse field only: the scale of whole-number weights is not known"
    return None


def weigh_texts(
    texts: Texts, settings: Bm25Settings, scratch: Path, *, progress: bool = False
) -> Bm25Weights:
    """Analyse the texts of a collection and weigh their words; the counts stay in ``scratch``.

    Raises ``IndexMismatch`` when the corpus is not the one that was encoded.
    """
    with progress_bar(len(texts.vectors), progress, desc="analysing", unit=" documents") as bar:
        documents = texts.read()
        shards = _read_ids(texts.vectors)
        return weigh_documents(documents, scratch, settings, shards, bar.update)


def _read_ids(vectors: Vectors) -> Iterator[list[str]]:
    """The doc_ids of each shard."""
    for number in range(vectors.num_shards):
        yield vectors.read_shard(number)[0]
