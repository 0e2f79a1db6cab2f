"""The answer to a query: hits with their documents, which are read when they are looked at.

``Hits.doc_ids`` and ``Hits.scores`` are plain, for those who need speed. Documents, metadata and
snippets cost nothing until a hit is asked for them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, overload

from sparse_ir.data.records import Document, Metadata
from sparse_ir.engines.base import EngineHits
from sparse_ir.retrieval.encoded_query import EncodedQuery
from sparse_ir.retrieval.snippets import Snippet


class HitSource(Protocol):
    """Where hits read their details: an open index."""

    def find_document(self, doc_id: str) -> Document | None:
        """The document of an id; None where the index keeps no documents."""

    def snippet_maker(self, query: EncodedQuery) -> Callable[[int, Document], Snippet]:
        """A function from document number and document to the passage that says why it matched."""


class _Answer:
    """What the hits of one search share."""

    def __init__(self, query: EncodedQuery, source: HitSource) -> None:
        self._query = query
        self._source = source
        self.find_document = source.find_document

    @functools.cached_property
    def make_snippet(self) -> Callable[[int, Document], Snippet]:
        """Prepared once, and only if a snippet is asked for."""
        return self._source.snippet_maker(self._query)


class Hit:
    """One document of an answer.

    ``title``, ``text``, ``metadata`` and ``snippet`` are None where the index keeps no documents
    (``--no-store``, JSON vectors, indexes of older versions). A snippet needs the open index.
    """

    def __init__(
        self,
        doc_id: str,
        score: float,
        rank: int,
        number: int,
        answer: _Answer,
    ) -> None:
        self.doc_id = doc_id
        self.score = score
        self.rank = rank  # 1 is the best
        self._number = number
        self._answer = answer

    @functools.cached_property
    def document(self) -> Document | None:
        """The document itself."""
        return self._answer.find_document(self.doc_id)

    @property
    def title(self) -> str | None:
        """The title of the document."""
        return None if self.document is None else self.document.title

    @property
    def text(self) -> str | None:
        """The text of the document, without its title."""
        return None if self.document is None else self.document.text

    @property
    def metadata(self) -> Metadata | None:
        """The other fields of the document."""
        return None if self.document is None else self.document.metadata

    @functools.cached_property
    def snippet(self) -> Snippet | None:
        """The passage that says why the document was found."""
        if self.document is None:
            return None
        return self._answer.make_snippet(self._number, self.document)

    def to_dict(self) -> dict[str, Any]:
        """The hit for ``json.dumps``; without a document, it is rank, doc_id and score."""
        facts: dict[str, Any] = {"rank": self.rank, "doc_id": self.doc_id, "score": self.score}
        if self.document is not None and self.snippet is not None:
            facts["title"] = self.document.title
            facts["text"] = self.document.text
            facts["metadata"] = dict(self.document.metadata)
            facts["snippet"] = self.snippet.to_dict()
        return facts

    def __repr__(self) -> str:
        return f"Hit(rank={self.rank}, doc_id={self.doc_id!r}, score={self.score:g})"


class Hits(Sequence[Hit]):
    """The hits of a query, best first: a sequence of ``Hit``; a slice of it is ``Hits`` again.

    ``doc_ids``: the ids, ``list[str]``. ``scores``: float32 or float64 ``(k,)``.
    """

    def __init__(self, found: EngineHits, query: EncodedQuery, source: HitSource) -> None:
        self.doc_ids = found.doc_ids
        self.scores = found.scores
        self._numbers = found.numbers
        self._query = query
        self._source = source
        self._hits: list[Hit] | None = None

    def __len__(self) -> int:
        return len(self.doc_ids)

    @overload
    def __getitem__(self, position: int) -> Hit: ...

    @overload
    def __getitem__(self, position: slice) -> Hits: ...

    def __getitem__(self, position: int | slice) -> Hit | Hits:
        if not isinstance(position, slice):
            return self._all()[position]
        part = EngineHits(self.doc_ids[position], self.scores[position], self._numbers[position])
        hits = Hits(part, self._query, self._source)
        hits._hits = self._all()[position]
        return hits

    def __iter__(self) -> Iterator[Hit]:
        return iter(self._all())

    def to_list(self) -> list[dict[str, Any]]:
        """All hits with documents and snippets, ready for ``json.dumps``."""
        return [hit.to_dict() for hit in self]

    def __repr__(self) -> str:
        return f"Hits({self._all()!r})"

    def _all(self) -> list[Hit]:
        if self._hits is None:
            answer = _Answer(self._query, self._source)
            columns = zip(self.doc_ids, self.scores.tolist(), self._numbers, strict=True)
            self._hits = []
            for rank, (doc_id, score, number) in enumerate(columns, start=1):
                self._hits.append(Hit(doc_id, score, rank, number, answer))
        return self._hits
