"""An open index: a question goes in, ranked documents come out.

It puts the parts of a folder together (query side, rule, Lucene, doc_ids, forward index) so that no
part of another version gets among them, and answers texts: exactly, or with what ``SearchOptions``
leave out. Hits are ordered by score, then doc_id, both descending.
"""

from __future__ import annotations

import collections
import functools
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sparse_ir.data import records
from sparse_ir.data.records import Query, Run
from sparse_ir.engines.base import Bm25, Hits
from sparse_ir.engines.lucene import terms as terms_module
from sparse_ir.engines.lucene.parts import analyze, run_threads
from sparse_ir.engines.lucene.reader import Reader
from sparse_ir.engines.lucene.terms import FIELD, token_of_term
from sparse_ir.errors import ConfigError, DamagedError, DataError, IndexMismatch
from sparse_ir.indexing.forward import FOLDER, ForwardIndex
from sparse_ir.indexing.manifest import (
    TUNED,
    DocIds,
    check_files,
    has_forward_index,
    is_lucene_folder,
    read_manifest,
    version_of,
)
from sparse_ir.indexing.quantization import Rule, quantize_query
from sparse_ir.models.interfaces import QueryEncoder
from sparse_ir.models.query_side import load_query_encoder
from sparse_ir.models.static_queries import StaticQueryEncoder
from sparse_ir.retrieval.options import EXACT, SearchOptions, choose_terms, read_tuned
from sparse_ir.storage import files


class _Query(NamedTuple):
    """The terms of a query that score under the rule of the index."""

    token_ids: np.ndarray  # int32 (T,), ascending
    weights: np.ndarray  # float32 (T,), as the query encoder gave them
    impacts: np.ndarray  # int32 (T,), all >= 1
    terms: list[str]  # of Lucene


class Index:
    """An open index that answers texts; safe to use from several threads; a context manager.

    ``query_encoder`` (or, for a neural one, ``query_model``: where its checkpoint lies now)
    replaces the stored query side and must be the same one: ``IndexMismatch`` otherwise. A folder
    that Pyserini built (no manifest) opens too, given a ``query_encoder`` and the ``rule`` by which
    its impacts were made. ``tuned``: searches that name no options use those that ``tune`` has
    stored with this version of the index; otherwise they are exact. Raises ``DamagedError`` when
    files are missing or have another size than the manifest says.
    """

    manifest: dict[str, Any]
    rule: Rule
    query_encoder: QueryEncoder | None
    reader: Reader

    forward: ForwardIndex | None = None  # where the index keeps one
    options: SearchOptions = EXACT  # of searches that name none

    def __init__(
        self,
        folder: Path | str,
        *,
        query_encoder: QueryEncoder | None = None,
        query_model: str | None = None,
        rule: Rule | None = None,
        tuned: bool = False,
    ) -> None:
        self.folder = Path(folder)
        self._tuned = tuned
        self._frequencies: dict[str, int] = {}
        if is_lucene_folder(self.folder):
            self._open_foreign(query_encoder, rule)
        else:
            self._open_own(query_encoder, query_model, rule)

    def _open_foreign(self, query_encoder: QueryEncoder | None, rule: Rule | None) -> None:
        if query_encoder is None or rule is None:
            raise ConfigError(
                f"{self.folder} is a bare Lucene index: name the query model and "
                "the scale of its "
                "impacts"
            )
        if self._tuned:
            raise ConfigError(f"{self.folder} is a bare Lucene index and keeps no tuned options")
        self.manifest = {"kind": "impact"}
        self.rule = rule
        self.query_encoder = query_encoder
        self.reader = Reader(self.folder, "impact")

    def _open_own(
        self, query_encoder: QueryEncoder | None, query_model: str | None, rule: Rule | None
    ) -> None:
        """Open all parts of one version: when a new index is swapped in meanwhile, begin again with
        that one.
        """
        while True:
            version = version_of(self.folder)
            self.manifest = read_manifest(self.folder)
            self.forward = None
            try:
                self._open_parts(query_encoder, query_model, rule)
            # of any kind: files may be exchanged between two reads of numpy or of Lucene
            except Exception:
                if version_of(self.folder) == version:
                    raise
                continue
            if version_of(self.folder) == version:
                return
            self.reader.close()

    def _open_parts(
        self, query_encoder: QueryEncoder | None, query_model: str | None, rule: Rule | None
    ) -> None:
        check_files(self.folder, self.manifest, checksums=False)
        kind, parameters = self.manifest["kind"], Bm25(**self.manifest.get("parameters", {}))
        self.query_encoder = None
        if kind == "impact":
            self.rule = Rule.from_json(self.manifest["rule"])
            if rule is not None and rule != self.rule:
                raise IndexMismatch(f"{self.folder} was built by {self.rule}, not by {rule}")
            self.query_encoder = self._choose_query_encoder(query_encoder, query_model)
        elif query_encoder is not None or query_model is not None:
            raise IndexMismatch(f"{self.folder} is a BM25 index and takes no query encoder")
        if self._tuned and kind == "bm25":
            raise ConfigError(f"{self.folder} is a BM25 index and keeps no tuned options")
        if self._tuned:
            self.options = read_tuned(self.folder / TUNED, self.manifest["sha256"])
        if self.query_encoder is not None and has_forward_index(self.manifest):
            other = self.query_encoder.vocabulary if self.manifest["query"] is None else None
            self.forward = ForwardIndex(self.folder / FOLDER, other)
        doc_ids = DocIds(self.folder)
        self.reader = Reader(self.folder / "lucene", kind, doc_ids.find, parameters)
        if self.reader.num_documents != len(doc_ids):
            self.reader.close()
            raise DamagedError(
                f"{self.folder}: Lucene has {self.reader.num_documents} documents, "
                "the manifest "
                f"promises {len(doc_ids)}"
            )

    def _choose_query_encoder(self, given: QueryEncoder | None, model: str | None) -> QueryEncoder:
        recorded = self.manifest["query"]
        if given is None and recorded is None:
            raise ConfigError(
                f"{self.folder} was built from vectors without a query side: name the query model"
            )
        encoder = load_query_encoder(self.folder / "query", model=model) if given is None else given
        if (
            files.sha256_of_json(list(encoder.vocabulary)) != self.manifest["vocabulary_sha256"]
            and recorded
        ):
            raise IndexMismatch(
                f"{self.folder} was built with another vocabulary than this query encoder's"
            )
        if recorded is not None and given is not None and given.fingerprint != recorded:
            changed = [
                key
                for key in sorted({*recorded, *given.fingerprint})
                if recorded.get(key) != given.fingerprint.get(key)
            ]
            raise IndexMismatch(
                f"{self.folder} was built with another query side: {', '.join(changed)} differ"
            )
        return encoder

    def encode_query(self, text: str) -> dict[str, int]:
        """The query as the engine sees it: ``{token: impact}`` under the rule of the index; for
        BM25 an empty dict.
        """
        query = self._read_query(text)
        tokens = self.query_encoder.vocabulary if self.query_encoder is not None else []
        return {tokens[i]: int(v) for i, v in zip(query.token_ids, query.impacts, strict=True)}

    def search(self, text: str, k: int = 10, options: SearchOptions | None = None) -> Hits:
        """The ``k`` best documents: score descending, then doc_id descending. An empty query has no
        hits.

        ``options``: what may be left out, by default nothing (or what was tuned, where the index
        was opened so). Hits are then ranked by the scores of the terms that are left, or, with
        candidates, by their exact scores. Fewer than ``k`` come back where the terms that are left
        match fewer documents. Raises ``DataError`` for a lone surrogate and for ``k`` below 1,
        ``ConfigError`` for options on a BM25 index and for candidates where there is no forward
        index, ``ClosedError`` after ``close``.
        """
        options = self.options if options is None else options
        if not isinstance(k, (int, np.integer)) or k < 1:
            raise DataError(f"{k!r} hits are not allowed; ask for a whole number, at least 1")
        k = int(k)
        if self.query_encoder is None:
            if options != EXACT:
                raise ConfigError(
                    f"{self.folder} is a BM25 index and takes no search options ({options})"
                )
            return self.reader.search_text(text, k)
        if options.candidates and self.forward is None:
            raise ConfigError(
                f"{self.folder} has no forward index to rescore candidates from; "
                "build it with --forward"
            )
        query = self._read_query(text)
        if not options.leaves_out or options.candidates * k >= self.reader.num_documents:
            return self.reader.search_terms(query.terms, query.impacts.tolist(), k)
        return self._search_in_part(query, k, options)

    def _search_in_part(self, query: _Query, k: int, options: SearchOptions) -> Hits:
        """Search with some of the terms; then, where there are candidates, rank those by their
        exact scores.

        Lucene's scores, too, are sums as float32.
        """
        frequencies = self._document_frequencies(query.terms)
        chosen = choose_terms(options, query.weights, frequencies, self.reader.num_documents)
        terms, impacts = (
            [query.terms[position] for position in chosen],
            query.impacts[chosen].tolist(),
        )
        if (
            self.forward is None
            or not options.candidates
            or len(chosen) == np.count_nonzero(frequencies)
        ):
            return self.reader.search_terms(terms, impacts, k)
        numbers = self.reader.find_candidates(terms, impacts, math.ceil(options.candidates * k))
        scores = self.forward.scores(numbers, query.token_ids, query.impacts).astype(np.float32)
        return self.reader.rank(numbers, scores, k)

    def _read_query(self, text: str) -> _Query:
        records.check_text(text)
        # an empty text would give a network's special tokens
        if self.query_encoder is None or not text.strip():
            return _Query(np.empty(0, np.int32), np.empty(0, np.float32), np.empty(0, np.int32), [])
        kept, weights = self.query_encoder.encode(text)
        # its weights are above 0
        if self.rule.folded and isinstance(self.query_encoder, StaticQueryEncoder):
            impacts = np.ones(len(kept), np.int32)
        else:
            token_ids = kept
            kept, impacts = quantize_query(token_ids, weights, self.rule)
            weights = weights[np.searchsorted(token_ids, kept)]
        vocabulary, term_of_token = self.query_encoder.vocabulary, terms_module.term_of_token
        return _Query(
            kept,
            weights,
            impacts,
            [term_of_token(vocabulary[token_id]) for token_id in kept.tolist()],
        )

    def _document_frequencies(self, terms: Sequence[str]) -> np.ndarray:
        """Documents that hold each term; Lucene is asked once for each term, and not for each
        query.
        """
        if unknown := [term for term in terms if term not in self._frequencies]:
            self._frequencies.update(self.reader.document_frequencies(unknown))
        return np.array([self._frequencies[term] for term in terms], dtype=np.int64)

    def query_terms(self, text: str) -> dict[str, int]:
        """The query as the engine sees it: token -> impact; for BM25 analysed term -> how often the
        query has it.
        """
        if self.query_encoder is None:
            return dict(collections.Counter(next(analyze([text]))))
        return self.encode_query(text)

    def score(self, text: str, doc_id: str) -> float:
        """The engine's exact score of one document; 0.0 when it matches
        nothing, or is not there.
        """
        if self.query_encoder is None:
            return self.reader.score_text(doc_id, text)
        query = self._read_query(text)
        return (
            self.reader.score(doc_id, query.terms, query.impacts.tolist()) if query.terms else 0.0
        )

    def matched_terms(self, text: str, doc_id: str) -> dict[str, float]:
        """What each query term adds to the score of one document, the largest first; its sum is
        that score.

        Terms of a BM25 index with a field for titles are named ``title:TERM`` there.
        """
        is_impact = self.query_encoder is not None
        boosts = {
            terms_module.term_of_token(token) if is_impact else token: boost
            for token, boost in self.query_terms(text).items()
        }
        parts = self.reader.score_terms(doc_id, boosts)
        ranked = sorted(parts.items(), key=lambda item: -item[1])
        if is_impact:
            return {token_of_term(term): part for (_, term), part in ranked}
        return {
            term if field == FIELD else f"{field}:{term}": part for (field, term), part in ranked
        }

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
        results: list[list[tuple[str, float]]] = [[] for _ in queries]
        seconds = np.zeros(len(queries))

        def work(start: int) -> None:
            for position in range(start, len(queries), threads):
                query, begun = queries[position], time.perf_counter()
                hits = self.search(query.text, k + remove_query, options)
                pairs = list(zip(hits.doc_ids, hits.scores.tolist(), strict=True))
                if remove_query:
                    pairs = [pair for pair in pairs if pair[0] != query.query_id]
                results[position] = pairs[:k]
                seconds[position] = time.perf_counter() - begun
                if progress is not None:
                    progress(1)

        if threads < 1:
            raise ConfigError(f"{threads} threads are not allowed; use at least 1")
        if threads > 1:
            run_threads([functools.partial(work, start) for start in range(threads)])
        else:
            work(0)
        return {query.query_id: hits for query, hits in zip(queries, results, strict=True)}, seconds

    def close(self) -> None:
        """Free the Lucene files."""
        self.reader.close()

    def __enter__(self) -> Index:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
