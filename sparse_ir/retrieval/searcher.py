"""An open index: a question goes in, ranked documents come out.

It opens the parts of one version of an index folder (query side, rule, engine, doc_ids, forward
index, statistics), never parts of two. Hits are ordered by score, then doc_id, both descending.
"""

from __future__ import annotations

import functools
import os
import re
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from sparse_ir.data.records import Document, Query, Run
from sparse_ir.engines.base import BM25, SPARSE, EngineStatistics
from sparse_ir.engines.catalog import DEFAULT_ENGINE, find_engine
from sparse_ir.engines.lucene.analysis import TextAnalyzer
from sparse_ir.engines.lucene.bm25 import Bm25, Bm25Reader
from sparse_ir.engines.threads import run_threads
from sparse_ir.errors import ClosedError, ConfigError, DamagedError, DataError, IndexMismatch
from sparse_ir.indexing import document_store, statistics
from sparse_ir.indexing.bm25_field import Bm25Settings
from sparse_ir.indexing.document_store import DocumentStore
from sparse_ir.indexing.forward import FOLDER, ForwardIndex
from sparse_ir.indexing.manifest import (
    TUNED,
    DocIds,
    IndexManifest,
    check_files,
    choose_ranking,
    engine_of,
    has_documents,
    has_forward_index,
    is_lucene_folder,
    read_manifest,
    version_of,
)
from sparse_ir.indexing.quantization import Rule
from sparse_ir.indexing.statistics import Statistics
from sparse_ir.models.interfaces import QueryEncoder
from sparse_ir.models.query_side import load_query_encoder
from sparse_ir.retrieval.encoded_query import EncodedQuery, name_word
from sparse_ir.retrieval.hits import Hits
from sparse_ir.retrieval.options import EXACT, SearchOptions, read_tuned
from sparse_ir.retrieval.rankers import Bm25Ranker, ImpactRanker, Ranker, SparseField, WordField
from sparse_ir.retrieval.snippets import Place, Snippet, WordTerms, make_snippet
from sparse_ir.storage import files, reading


class Index:
    """An open index that answers texts; safe to use from several threads; a context manager.

    ``query_encoder`` (or, for a neural one, ``query_model``: the folder of its checkpoint) replaces
    the stored query side and must be the same one: ``IndexMismatch`` otherwise. ``rule`` must be
    the rule of the index. A folder that Pyserini built has no manifest; it opens with a
    ``query_encoder`` and the ``rule`` that made its impacts. ``query_rule`` quantizes the query
    weights where the impacts were made by a rule that the index does not know. ``tuned``: searches
    without options use those that ``tune`` stored with this version; otherwise they are exact.
    ``ranking``: "sparse" (the model alone), "bm25" or "hybrid" (the sum of both); by default hybrid
    where the index has both fields, else the field that it has.

    Raises ``DamagedError`` when files are missing or have another size than the manifest says,
    ``UncheckedError`` when the system refuses to read them.
    """

    manifest: IndexManifest
    ranking: str  # sparse, bm25 or hybrid
    query_encoder: QueryEncoder | None = None  # None for BM25
    rule: Rule | None = None  # None for BM25
    forward: ForwardIndex | None = None  # where the index keeps one
    analyzer: TextAnalyzer | None = None  # of the words that BM25 ranks by
    documents: DocumentStore | None = None  # where the index keeps them
    options: SearchOptions = EXACT  # of searches that name none
    engine_folder: Path  # where the engine's files are

    def __init__(
        self,
        folder: Path | str,
        *,
        query_encoder: QueryEncoder | None = None,
        query_model: str | None = None,
        rule: Rule | None = None,
        query_rule: Rule | None = None,
        tuned: bool = False,
        ranking: str | None = None,
    ) -> None:
        if not isinstance(folder, str | os.PathLike):
            raise ConfigError(f"folder must be a string or a path, not {folder!r}")
        self.folder = Path(folder)
        self._tuned = tuned
        self._arguments: dict[str, Any] = {
            "query_encoder": query_encoder,
            "query_model": query_model,
            "rule": rule,
            "query_rule": query_rule,
            "tuned": tuned,
            "ranking": ranking,
        }
        self._wanted_ranking = ranking
        with reading.checking(self.folder):
            if is_lucene_folder(self.folder):
                self._ranker: Ranker = self._open_foreign(query_encoder, rule)
            else:
                self._ranker = self._open_one_version(query_encoder, query_model, rule, query_rule)

    def __reduce__(self) -> tuple[Any, ...]:
        """A pickled index opens its folder again when it is first used."""
        return UnopenedIndex, (self.folder.absolute(), self._arguments)

    def _open_foreign(self, query_encoder: QueryEncoder | None, rule: Rule | None) -> Ranker:
        """Open a Lucene index that Pyserini built."""
        if query_encoder is None or rule is None:
            raise ConfigError(
                f"{self.folder} is a bare Lucene index: name the query model and the scale of its "
                "impacts"
            )
        if self._tuned:
            raise ConfigError(f"{self.folder} is a bare Lucene index and keeps no tuned options")
        self.manifest = cast(IndexManifest, {"kind": "impact"})
        self.ranking = choose_ranking(self.folder, self.manifest, self._wanted_ranking)
        self.rule = rule
        self.query_encoder = query_encoder
        self.engine_folder = self.folder
        reader = find_engine("lucene").open(self.folder)
        field = SparseField(reader, query_encoder, rule, None)
        return ImpactRanker(reader, field, None, None)

    def _open_one_version(
        self,
        query_encoder: QueryEncoder | None,
        query_model: str | None,
        rule: Rule | None,
        query_rule: Rule | None,
    ) -> Ranker:
        """Open all parts of one version; when a new one is swapped in meanwhile, begin again."""
        while True:
            version = version_of(self.folder)
            self.manifest = read_manifest(self.folder)
            self.ranking = choose_ranking(self.folder, self.manifest, self._wanted_ranking)
            self.forward = None
            self.documents = None
            try:
                check_files(self.folder, self.manifest, checksums=False)
                if has_documents(self.manifest):
                    self.documents = DocumentStore(self.folder / document_store.FOLDER)
                self.engine_folder = self.folder / engine_of(self.manifest)
                if self.manifest["kind"] == "impact":
                    query_side = None
                    if self.ranking != BM25:
                        query_side = self._choose_query_encoder(query_encoder, query_model)
                    ranker = self._open_impacts(query_side, rule, query_rule)
                else:
                    ranker = self._open_bm25(query_encoder, query_model)
            except Exception:  # numpy or Lucene may have met files of two versions
                if version_of(self.folder) == version:
                    raise
                continue
            if version_of(self.folder) == version:
                return ranker
            ranker.close()

    def _open_bm25(self, query_encoder: QueryEncoder | None, query_model: str | None) -> Ranker:
        if query_encoder is not None or query_model is not None:
            raise IndexMismatch(f"{self.folder} is a BM25 index and takes no query encoder")
        if self._tuned:
            raise ConfigError(f"{self.folder} is a BM25 index and keeps no tuned options")
        self.engine_folder = self.folder / DEFAULT_ENGINE
        doc_ids = DocIds(self.folder)
        parameters = Bm25(**self.manifest.get("parameters", {}))
        reader = Bm25Reader(self.engine_folder, parameters, doc_ids.find)
        self._check_number(reader.num_documents, doc_ids, reader.close)
        self.analyzer = TextAnalyzer()
        return Bm25Ranker(reader)

    def _open_impacts(
        self, query_encoder: QueryEncoder | None, rule: Rule | None, query_rule: Rule | None
    ) -> Ranker:
        """``query_encoder`` is None where BM25 alone ranks."""
        own_rule = Rule.from_json(self.manifest["rule"])
        if rule is not None and rule != own_rule:
            raise IndexMismatch(f"{self.folder} was built by {own_rule}, not by {rule}")
        self.rule = query_rule or own_rule
        self.query_encoder = query_encoder
        if self._tuned:
            path = self.folder / TUNED
            self.options = read_tuned(path, self.manifest["sha256"], self.ranking)
        has_own_side = self.manifest["query"] is not None
        if has_forward_index(self.manifest):
            other = None
            if query_encoder is not None and not has_own_side:
                other = query_encoder.vocabulary
            self.forward = ForwardIndex(self.folder / FOLDER, other)
        record = None
        if has_own_side and (self.folder / statistics.FILE).exists():
            record = Statistics.load(self.folder)
        doc_ids = DocIds(self.folder)
        engine = find_engine(engine_of(self.manifest))
        reader = engine.open(self.engine_folder, doc_ids.find)
        self._check_number(reader.num_documents, doc_ids, reader.close)
        sparse_field = None
        if query_encoder is not None:
            sparse_field = SparseField(reader, query_encoder, self.rule, record)
        word_field = None
        if self.ranking != SPARSE:
            settings = Bm25Settings.from_json(self.manifest["bm25"])
            self.analyzer = TextAnalyzer(settings.analyzer_settings)
            word_field = WordField(self.folder, settings, self.analyzer, self.rule)
        return ImpactRanker(reader, sparse_field, word_field, self.forward)

    def _check_number(self, number: int, doc_ids: DocIds, close: Callable[[], None]) -> None:
        """The engine and the list of doc_ids hold the same number of documents."""
        if number == len(doc_ids):
            return
        close()
        raise DamagedError(
            f"{self.folder}: the engine has {number} documents, the manifest promises "
            f"{len(doc_ids)}"
        )

    def _choose_query_encoder(self, given: QueryEncoder | None, model: str | None) -> QueryEncoder:
        """The stored query side, or the given one if it is the same."""
        recorded = self.manifest["query"]
        if given is None and recorded is None:
            raise ConfigError(
                f"{self.folder} was built from vectors without a query side: name the query model"
            )
        encoder = load_query_encoder(self.folder / "query", model=model) if given is None else given
        vocabulary_sha256 = files.sha256_of_json(list(encoder.vocabulary))
        if recorded and vocabulary_sha256 != self.manifest["vocabulary_sha256"]:
            raise IndexMismatch(
                f"{self.folder} was built with another vocabulary than this query encoder's"
            )
        if recorded is not None and given is not None and given.fingerprint != recorded:
            changed = []
            for key in sorted({*recorded, *given.fingerprint}):
                if recorded.get(key) != given.fingerprint.get(key):
                    changed.append(key)
            raise IndexMismatch(
                f"{self.folder} was built with another query side: {', '.join(changed)} differ"
            )
        return encoder

    def encode(self, text: str) -> EncodedQuery:
        """The query of a text, for ``search``, ``score`` and ``matched_terms``."""
        return self._ranker.encode(text)

    def _as_encoded(self, query: str | EncodedQuery) -> EncodedQuery:
        if isinstance(query, EncodedQuery):
            return query
        return self.encode(query)

    def encode_query(self, text: str) -> dict[str, int]:
        """``{token: impact}`` of a text under the rule of the index; empty if BM25 ranks alone."""
        if self.query_encoder is None:
            return {}
        return self.encode(text).terms

    def query_terms(self, text: str) -> dict[str, int]:
        """``{token: impact}`` of a text; for BM25, how often it has each analysed term."""
        return self.encode(text).terms

    def search(
        self, query: str | EncodedQuery, k: int = 10, options: SearchOptions | None = None
    ) -> Hits:
        """The ``k`` best documents: score descending, then doc_id descending.

        An empty query has no hits. ``options`` says what may be left out: by default nothing, or
        what was tuned if the index was opened so. Hits are then ranked by the remaining terms or,
        with candidates, by their exact scores; fewer than ``k`` come back when the remaining terms
        match fewer documents. Documents and snippets are read when a hit is asked for them. Raises
        ``DataError`` for a lone surrogate and for ``k`` below 1, ``ConfigError`` for options that
        this index cannot serve, ``ClosedError`` after ``close``.
        """
        if not isinstance(k, int | np.integer) or k < 1:
            raise DataError(f"the number of hits is {k!r}; it must be a whole number, at least 1")
        query = self._as_encoded(query)
        chosen = self.options if options is None else options
        try:
            found = self._ranker.search(query, int(k), chosen)
        except ConfigError as error:
            raise ConfigError(f"{self.folder}: {error}") from error
        return Hits(found, query, self)

    def find_document(self, doc_id: str) -> Document | None:
        """The document of an id; None if the index has none of this id, or keeps no documents."""
        return None if self.documents is None else self.documents.find(doc_id)

    def snippet_maker(self, query: EncodedQuery) -> Callable[[int, Document], Snippet]:
        """A function from the engine's number of a hit and its document to its snippet.

        It raises ``ClosedError`` after ``close``.
        """
        explain = self._ranker.explainer(query)

        def make(number: int, document: Document) -> Snippet:
            parts = explain(number)
            contributions = dict(sorted(parts.items(), key=lambda item: -item[1]))
            return make_snippet(
                document.title, document.text, query.text, contributions, self._word_terms
            )

        return make

    @functools.cached_property
    def _word_terms(self) -> WordTerms:
        """The terms in words, named as ``matched_terms`` names them."""
        return WordTerms(self._find_terms)

    def _find_terms(self, text: str) -> list[Place]:
        """The terms in a text of words between blanks; no tokens if the query side cannot say."""
        places: list[Place] = []
        find_tokens = getattr(self.query_encoder, "find_terms", None)
        if find_tokens is not None:
            places.extend(find_tokens(text))
        if self.analyzer is not None:
            is_hybrid = self.query_encoder is not None
            for word in re.finditer(r"\S+", text):
                for term in self.analyzer.terms(word[0]):
                    name = name_word(term) if is_hybrid else term
                    places.append((name, word.start(), word.end()))
        return places

    def score(self, query: str | EncodedQuery, doc_id: str) -> float:
        """The engine's exact score of one document; 0.0 when nothing matches or it is missing."""
        query = self._as_encoded(query)
        return self._ranker.score(query, doc_id)

    def matched_terms(self, query: str | EncodedQuery, doc_id: str) -> dict[str, float]:
        """What each query term adds to the score of one document, the largest first.

        The sum is the score. Words of a hybrid ranking are named ``bm25:WORD``; terms of a BM25
        index with a field for titles are named ``title:TERM`` there.
        """
        query = self._as_encoded(query)
        parts = self._ranker.contributions(query, doc_id)
        return dict(sorted(parts.items(), key=lambda item: -item[1]))

    def search_batch(
        self,
        queries: Sequence[Query],
        k: int = 1000,
        *,
        threads: int = 1,
        remove_query: bool = False,
        options: SearchOptions | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> tuple[Run, np.ndarray]:
        """A run over all queries, and each query's seconds from text to hits, float64 ``(Q,)``.

        ``remove_query`` drops the hit whose doc_id is the query's id (ArguAna, Quora). Queries
        without hits have an empty list. The result does not depend on the number of threads.
        """
        if threads < 1:
            raise ConfigError(f"threads is {threads}; it must be at least 1")
        results: list[list[tuple[str, float]]] = [[] for _ in queries]
        seconds = np.zeros(len(queries))

        def answer_every(start: int) -> None:
            for position in range(start, len(queries), threads):
                query = queries[position]
                begun = time.perf_counter()
                hits = self.search(query.text, k + remove_query, options)
                pairs = list(zip(hits.doc_ids, hits.scores.tolist(), strict=True))
                if remove_query:
                    pairs = [pair for pair in pairs if pair[0] != query.query_id]
                results[position] = pairs[:k]
                seconds[position] = time.perf_counter() - begun
                if progress is not None:
                    progress(1)

        if threads == 1:
            answer_every(0)
        else:
            tasks = [functools.partial(answer_every, start) for start in range(threads)]
            run_threads(tasks, self._ranker.end_thread)
        run = {query.query_id: hits for query, hits in zip(queries, results, strict=True)}
        return run, seconds

    def count_postings(self, query: str | EncodedQuery) -> int:
        """The number of postings that the terms of a query meet."""
        query = self._as_encoded(query)
        return self._ranker.count_postings(query)

    def has_document(self, doc_id: str) -> bool:
        """True when the index holds a document of this id."""
        return self._ranker.has_document(doc_id)

    def statistics(self) -> EngineStatistics:
        """Documents, terms, postings and the sum of impacts, as the engine counts them."""
        return self._ranker.statistics()

    def close(self) -> None:
        """Release the files of the engine."""
        self._ranker.close()

    def __enter__(self) -> Index:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class UnopenedIndex(Index):
    """An unpickled index, which becomes a plain ``Index`` when it is first used.

    A pool unpickles the arguments of a task outside the task, where an error, such as that of Java
    after a fork, would end or hang the worker. Here it is raised by the first use.
    """

    _opening = threading.Lock()
    _known = frozenset({"__class__", "__dict__", "__reduce__", "__reduce_ex__", "close", "folder"})

    def __init__(self, folder: Path, arguments: dict[str, Any]) -> None:
        vars(self).update(folder=folder, _arguments=arguments)

    def __reduce__(self) -> tuple[Any, ...]:
        state = vars(self)
        return UnopenedIndex, (state["folder"], state["_arguments"])

    def __getattribute__(self, name: str) -> Any:
        if name not in UnopenedIndex._known:
            with UnopenedIndex._opening:
                if type(self) is UnopenedIndex:
                    UnopenedIndex._open(self)
        return object.__getattribute__(self, name)

    def _open(self) -> None:
        state = vars(self)
        if "_is_closed" in state:
            raise ClosedError(f"{state['folder']}: the index is closed")
        opened = Index(state["folder"], **state["_arguments"])
        state.update(vars(opened))
        self.__class__ = Index  # type: ignore[assignment]

    def close(self) -> None:
        """Refuse to open from now on."""
        vars(self)["_is_closed"] = True
