"""Why a document has its score: what each term adds, what was lost on the way, why A is above B.

The figures are the engine's own: for impacts query impact times document impact, for a BM25 index
Lucene's score of each term alone. They add up to the score that a search gives: whole numbers
exactly, those of a BM25 index as a sum in float32. ``explanation_view`` shows them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import sparse

from sparse_ir.data import readers, records
from sparse_ir.engines.lucene.analysis import TextAnalyzer
from sparse_ir.engines.lucene.terms import TITLE_FIELD
from sparse_ir.errors import DataError, IndexMismatch
from sparse_ir.indexing import builder
from sparse_ir.indexing.pruning import Pruning, prune
from sparse_ir.indexing.quantization import Rule, quantize
from sparse_ir.indexing.vectors import Vectors
from sparse_ir.retrieval.encoded_query import (
    EncodedQuery,
    HybridQuery,
    ImpactQuery,
    TextQuery,
    name_word,
)
from sparse_ir.retrieval.options import EXACT
from sparse_ir.retrieval.searcher import Index

RANKED = 1000  # hits among which the rank of a named document is looked for
Place = tuple[str, int, int]  # a term, its first character in a text, and the one after it
QUERY_ROUNDED = "query weight rounds to 0"
ROUNDED = "document weight rounds to 0"
PRUNED = "pruned"
CLIPPED = "clipped at the largest impact"


class RankedDocument(NamedTuple):
    """A document to explain."""

    doc_id: str
    score: float
    rank: int | None  # None: not among the first RANKED


def rank_documents(
    index: Index, query: EncodedQuery, wanted: Sequence[str], hits: int
) -> list[RankedDocument]:
    """The wanted documents, or the first ``hits`` where none is named; best first."""
    best = index.search(query, RANKED if wanted else hits, EXACT)
    ranks = {doc_id: rank for rank, doc_id in enumerate(best.doc_ids, 1)}
    if not wanted:
        pairs = zip(best.doc_ids, best.scores.tolist(), strict=True)
        return [RankedDocument(doc_id, score, ranks[doc_id]) for doc_id, score in pairs]
    scores = {}
    for doc_id in wanted:
        if not index.has_document(doc_id):
            raise DataError(
                f"document {doc_id!r} is not in {index.folder}; documents without weights are "
                "listed in its unindexed.jsonl"
            )
        scores[doc_id] = index.score(query, doc_id)
    ordered = records.rank_hits(scores.items())
    return [RankedDocument(doc_id, score, ranks.get(doc_id)) for doc_id, score in ordered]


def read_texts(source: str, wanted: Iterable[str]) -> dict[str, str]:
    """The texts of documents; raises ``DataError`` for one that the corpus does not have."""
    missing = set(wanted)
    texts = {}
    for document in readers.read_documents(source, check_unique=False):
        if document.doc_id in missing:
            texts[document.doc_id] = document.contents
            missing.discard(document.doc_id)
        if not missing:
            return texts
    raise DataError(f"{source} has no document {min(missing)!r}; it must be the indexed corpus")


def find_terms(index: Index, text: str) -> list[Place] | None:
    """The terms in a text and their places; None for a query side that cannot say.

    The words of a hybrid ranking are named as its terms are.
    """
    words: list[Place] = []
    if index.analyzer is not None:
        words = list(_find_analysed(index.analyzer, text))
    if index.query_encoder is None:
        return words
    find = getattr(index.query_encoder, "find_terms", None)
    if find is None:
        return None
    named = [(name_word(word), start, end) for word, start, end in words]
    return sorted([*find(text), *named], key=itemgetter(1, 2))


def _find_analysed(analyzer: TextAnalyzer, text: str) -> Iterator[Place]:
    """BM25's terms, as Lucene cuts the text.

    White space always ends a word; other signs (``3.5``, ``don't``) may not. So a chunk between
    white space is analysed whole and by its words of letters and digits: where both give the same
    terms, a term has the place of its word, otherwise that of the chunk.
    """
    chunks = list(re.finditer(r"\S+", text))
    words = [list(re.finditer(r"[^\W_]+", chunk[0])) for chunk in chunks]
    for chunk, in_chunk in zip(chunks, words, strict=True):
        terms = analyzer.terms(chunk[0])
        by_word: list[Place] = []
        for word in in_chunk:
            for term in analyzer.terms(word[0]):
                start = chunk.start()
                by_word.append((term, start + word.start(), start + word.end()))
        if [term for term, _, _ in by_word] == terms:
            yield from by_word
        else:
            for term in terms:
                yield term, chunk.start(), chunk.end()


def name_terms(places: Iterable[Place] | None) -> set[str] | None:
    """The terms of some places, without the places."""
    return None if places is None else {term for term, _, _ in places}


def describe_query(query: EncodedQuery, in_text: set[str] | None) -> dict[str, dict[str, Any]]:
    """Term -> its weight in the engine, the encoder's, and whether the text of the query has it."""
    given = query.encoder_weights
    ranked = sorted(query.terms.items(), key=lambda item: -given.get(item[0], item[1]))
    described = {}
    for term, weight in ranked:
        described[term] = {
            "weight": weight,
            "encoder_weight": given.get(term),
            "in_query": None if in_text is None else term in in_text,
        }
    return described


def explain_hit(
    index: Index,
    query: EncodedQuery,
    hit: RankedDocument,
    in_query: set[str] | None,
    in_document: set[str] | None,
    trace: Mapping[str, _Trace] | None,
) -> dict[str, Any]:
    """One document: its score, and each term's part of it.

    ``in_query`` and ``in_document``: the terms in both texts, None where they are not known.
    """
    weights = query.terms
    is_bm25 = index.query_encoder is None
    words = set()
    if isinstance(query, HybridQuery):
        words = {name_word(word) for word in query.words.tokens}
    parts = index.matched_terms(query, hit.doc_id)
    terms = {}
    matched = set()
    for term, part in parts.items():
        is_title = isinstance(query, TextQuery)
        plain = term.removeprefix(f"{TITLE_FIELD}:") if is_title else term
        matched.add(plain)
        is_word = is_bm25 or term in words
        terms[term] = {
            "query": weights[plain],
            "document": part / weights[plain],
            "contribution": part,
            "share": part / hit.score,
            "in_query": None if in_query is None else is_word or term in in_query,
            "in_document": None if in_document is None else is_word or term in in_document,
        }
    explained = {
        "doc_id": hit.doc_id,
        "rank": hit.rank,
        "score": hit.score,
        "sum_of_contributions": float(np.float32(sum(parts.values()))),
        "terms": terms,
        "without": [term for term in weights if term not in matched],
    }
    if trace is not None:
        explained |= _describe_trace(index, hit, parts, words, trace)
    return explained


def compare_hits(above: Mapping[str, Any], below: Mapping[str, Any]) -> dict[str, Any]:
    """Why one document is above another: the differences of their terms, the largest first."""
    differences = []
    for term in dict.fromkeys([*above["terms"], *below["terms"]]):
        upper = above["terms"].get(term, {}).get("contribution", 0.0)
        lower = below["terms"].get(term, {}).get("contribution", 0.0)
        facts = {"above": upper, "below": lower, "difference": upper - lower}
        differences.append((term, facts))
    differences.sort(key=lambda item: -abs(item[1]["difference"]))
    return {
        "above": above["doc_id"],
        "below": below["doc_id"],
        "difference": above["score"] - below["score"],
        "decided_by": "doc_id" if above["score"] == below["score"] else "score",
        "terms": dict(differences),
    }


class _Trace(NamedTuple):
    """A term that query and document vectors share."""

    exact: float  # its contribution in the engine's units, before anything was rounded
    kept: int  # what is left of it
    reason: str | None  # why it is 0 or less than it would be


def lost_query_terms(query: EncodedQuery) -> dict[str, float]:
    """Terms of the query whose weights round to zero, with these weights."""
    lost = {}
    for term, weight in query.encoder_weights.items():
        if term not in query.terms:
            lost[term] = weight
    return lost


def trace_losses(
    index: Index, folder: Path, query: EncodedQuery, ranked: Sequence[RankedDocument]
) -> dict[str, dict[str, _Trace]]:
    """doc_id -> term -> what became of it, from the vectors to the index."""
    opened = Vectors(folder)
    encoder = index.query_encoder
    assert encoder is not None
    recorded = index.manifest.get("encoder", opened.manifest["encoder"])
    if recorded != opened.manifest["encoder"]:
        raise IndexMismatch(f"{index.folder} was not built from {folder}: their encoders differ")
    builder.check_vocabulary(opened.vocabulary, encoder, str(folder))
    traced = query.sparse if isinstance(query, HybridQuery) else query
    wanted = {hit.doc_id for hit in ranked}
    traces: dict[str, dict[str, _Trace]] = {}
    for number in range(opened.num_shards):
        doc_ids, weights = opened.read_shard(number)
        for row, doc_id in enumerate(doc_ids):
            if doc_id in wanted:
                traces[doc_id] = _trace_row(index, traced, weights[row])
    missing = wanted - set(traces)
    if missing:
        raise IndexMismatch(
            f"{folder} has no document {min(missing)!r}; name the vectors of this index"
        )
    return traces


def _trace_row(index: Index, query: EncodedQuery, row: sparse.csr_matrix) -> dict[str, _Trace]:
    """Quantize and prune one document as the index was built, and follow each query term."""
    assert isinstance(query, ImpactQuery)
    assert index.rule is not None
    rule = index.rule
    rounded = quantize(row, rule, builder.folded_weights(index.query_encoder, rule)).impacts
    pruned = prune(rounded, Pruning(**index.manifest.get("pruning", {}))).impacts
    boosts = dict(zip(query.token_ids.tolist(), query.impacts.tolist(), strict=True))
    exact = _as_dict(row)
    before = _as_dict(rounded)
    after = _as_dict(pruned)
    unit = rule.scale if rule.folded else rule.scale**2
    traces = {}
    encoded = zip(query.encoded_ids.tolist(), query.encoded_weights.tolist(), strict=True)
    for token_id, weight in encoded:
        if token_id not in exact:
            continue
        value = weight * exact[token_id] * unit
        boost = boosts.get(token_id, 0)
        kept = after.get(token_id, 0)
        reason = _reason(rule, boost, before.get(token_id, 0), kept, value)
        traces[query.vocabulary[token_id]] = _Trace(value, boost * int(kept), reason)
    return traces


def _as_dict(row: sparse.csr_matrix) -> dict[int, float]:
    return dict(zip(row.indices.tolist(), row.data.tolist(), strict=True))


def _reason(rule: Rule, boost: int, before: float, after: float, exact: float) -> str | None:
    """Why a contribution is 0 or less than it would be without rounding; None if it is not."""
    if not boost:
        return QUERY_ROUNDED
    if not before:
        return ROUNDED
    if not after:
        return PRUNED
    if before == rule.max_impact and exact > boost * before + boost / 2:
        return CLIPPED
    return None


def _describe_trace(
    index: Index,
    hit: RankedDocument,
    parts: Mapping[str, float],
    words: set[str],
    trace: Mapping[str, _Trace],
) -> dict[str, Any]:
    """What rounding and pruning removed; ``words`` are no part of the vectors and count whole."""
    kept = {term: float(step.kept) for term, step in trace.items() if step.kept}
    sparse_parts = {term: part for term, part in parts.items() if term not in words}
    if kept != sparse_parts:
        raise IndexMismatch(
            f"{index.folder}: document {hit.doc_id!r} has other impacts than these vectors give; "
            "name the vectors of this index"
        )
    lost = {}
    for term, step in sorted(trace.items(), key=lambda item: item[1].kept - item[1].exact):
        if step.reason:
            lost[term] = {"would_add": step.exact - step.kept, "reason": step.reason}
    exact = sum(step.exact for step in trace.values())
    exact += sum(part for term, part in parts.items() if term in words)
    return {"score_before_rounding": exact, "lost": lost}
