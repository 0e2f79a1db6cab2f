"""The verb ``explain``: what each term adds to a score, what was lost on the way, and why A is
above B.

The figures are the engine's own: for an impact index query weight x impact, for BM25 Lucene's score
of each term alone. They add up to the score that the search gives: whole numbers exactly, BM25's as
a sum in float32. How they are shown is the business of ``explanation_view``.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import sparse

from sparse_ir.data import readers, records
from sparse_ir.engines.lucene.parts import analyze
from sparse_ir.engines.lucene.terms import TITLE_FIELD
from sparse_ir.errors import DataError, IndexMismatch
from sparse_ir.indexing import builder
from sparse_ir.indexing.pruning import Pruning, prune
from sparse_ir.indexing.quantization import Rule, quantize, quantize_query
from sparse_ir.indexing.vectors import Vectors
from sparse_ir.retrieval.options import EXACT
from sparse_ir.retrieval.searcher import Index

RANKED = 1000  # hits among which the rank of a named document is looked for
Place = tuple[str, int, int]  # a term, its first character in a text, and the one after it
QUERY_ROUNDED, ROUNDED, PRUNED = "query weight rounds to 0", "document weight rounds to 0", "pruned"
CLIPPED = "clipped at the largest impact"


class _Hit(NamedTuple):
    doc_id: str
    score: float
    rank: int | None  # None: not among the first RANKED


def rank_documents(index: Index, query: str, wanted: Sequence[str], hits: int) -> list[_Hit]:
    """The documents to explain, best first."""
    found = index.search(query, RANKED if wanted else hits, EXACT)
    ranks = {doc_id: rank for rank, doc_id in enumerate(found.doc_ids, 1)}
    if not wanted:
        return [
            _Hit(doc_id, score, ranks[doc_id])
            for doc_id, score in zip(found.doc_ids, found.scores.tolist(), strict=True)
        ]
    for doc_id in wanted:
        if not index.reader.has_document(doc_id):
            raise DataError(
                f"document {doc_id!r} is not in {index.folder}, allowed: an id of the "
                "index (documents "
                "without weights are named in its unindexed.jsonl)"
            )
    scores = {doc_id: index.score(query, doc_id) for doc_id in wanted}
    return [
        _Hit(doc_id, score, ranks.get(doc_id))
        for doc_id, score in records.rank_hits(scores.items())
    ]


def read_texts(source: str, wanted: Iterable[str]) -> dict[str, str]:
    """The texts of documents; raises ``DataError`` for one that the corpus does not have."""
    left, texts = set(wanted), {}
    for document in readers.read_documents(source, check_unique=False):
        if document.doc_id in left:
            texts[document.doc_id] = document.contents
            left.discard(document.doc_id)
        if not left:
            return texts
    raise DataError(
        f"{source}: document {min(left)!r} is not in it, allowed: the corpus of the index"
    )


def find_terms(index: Index, text: str) -> list[Place] | None:
    """The terms that stand in a text, and where; None for a query side that cannot say."""
    if index.query_encoder is None:
        return list(_find_analysed(text))
    find = getattr(index.query_encoder, "find_terms", None)
    return find(text) if find is not None else None


def _find_analysed(text: str) -> Iterator[Place]:
    """BM25's terms, as Lucene cuts the text: white space always ends a word, other signs (``3.5``,
    ``don't``) may not.

    The place of a term is that of its letters and digits where these alone give the same terms,
    else all up to the next white space.
    """
    chunks = list(re.finditer(r"\S+", text))
    words = [list(re.finditer(r"[^\W_]+", chunk[0])) for chunk in chunks]
    found = iter(
        list(analyze([*(chunk[0] for chunk in chunks), *(word[0] for of in words for word in of)]))
    )
    whole = list(itertools.islice(found, len(chunks)))
    for chunk, of, terms in zip(chunks, words, whole, strict=True):
        singly = [
            (term, chunk.start() + word.start(), chunk.start() + word.end())
            for word, parts in zip(of, itertools.islice(found, len(of)), strict=True)
            for term in parts
        ]
        same = [term for term, _, _ in singly] == terms
        yield from singly if same else ((term, *chunk.span()) for term in terms)


def name_terms(places: Iterable[Place] | None) -> set[str] | None:
    return None if places is None else {term for term, _, _ in places}


def describe_query(index: Index, query: str, asked: set[str] | None) -> dict[str, dict[str, Any]]:
    """Term -> its weight in the engine, that of the query encoder, and whether it stands in the
    query.
    """
    given = dict(_encode(index, query))
    ranked = sorted(index.query_terms(query).items(), key=lambda item: -given.get(item[0], item[1]))
    return {
        term: {
            "weight": weight,
            "encoder_weight": given.get(term),
            "in_query": None if asked is None else term in asked,
        }
        for term, weight in ranked
    }


def _encode(index: Index, query: str) -> list[tuple[str, float]]:
    """The query as its encoder gives it, before any rounding; nothing for BM25."""
    if index.query_encoder is None or not query.strip():
        return []
    names = index.query_encoder.vocabulary
    token_ids, weights = index.query_encoder.encode(query)
    return [
        (names[token_id], weight)
        for token_id, weight in zip(token_ids, weights.tolist(), strict=True)
    ]


def explain_hit(
    index: Index,
    query: str,
    hit: _Hit,
    asked: set[str] | None,
    read: set[str] | None,
    trace: Mapping[str, _Trace] | None,
) -> dict[str, Any]:
    """One document: its score, and each term's part of it."""
    weights, is_bm25 = index.query_terms(query), index.query_encoder is None
    parts = index.matched_terms(query, hit.doc_id)
    terms = {}
    for term, part in parts.items():
        plain = term.removeprefix(f"{TITLE_FIELD}:") if is_bm25 else term
        terms[term] = {
            "query": weights[plain],
            "document": part / weights[plain],
            "contribution": part,
            "share": part / hit.score,
            "in_query": None if asked is None else is_bm25 or term in asked,
            "in_document": None if read is None else is_bm25 or term in read,
        }
    matched = {term.removeprefix(f"{TITLE_FIELD}:") if is_bm25 else term for term in parts}
    found = {
        "doc_id": hit.doc_id,
        "rank": hit.rank,
        "score": hit.score,
        "sum_of_contributions": float(np.float32(sum(parts.values()))),
        "terms": terms,
        "without": [term for term in weights if term not in matched],
    }
    return found if trace is None else {**found, **_describe_trace(index, hit, parts, trace)}


def compare_hits(above: Mapping[str, Any], below: Mapping[str, Any]) -> dict[str, Any]:
    """Why one document is above another: the differences of their terms, the largest first."""
    sides = [
        {term: facts["contribution"] for term, facts in of["terms"].items()}
        for of in (above, below)
    ]
    terms = {
        term: {"above": sides[0].get(term, 0.0), "below": sides[1].get(term, 0.0)}
        for side in sides
        for term in side
    }
    for of in terms.values():
        of["difference"] = of["above"] - of["below"]
    ranked = sorted(terms.items(), key=lambda item: -abs(item[1]["difference"]))
    return {
        "above": above["doc_id"],
        "below": below["doc_id"],
        "difference": above["score"] - below["score"],
        "decided_by": "doc_id" if above["score"] == below["score"] else "score",
        "terms": dict(ranked),
    }


class _Trace(NamedTuple):
    """A term that query and document vectors share."""

    exact: float  # its contribution in the engine's units, before anything was rounded
    kept: int  # what is left of it
    reason: str | None  # why it is 0 or less than it would be


def lost_query_terms(index: Index, query: str) -> dict[str, float]:
    """Terms of the query whose weights round to zero, with these weights."""
    kept = index.query_terms(query)
    return {term: weight for term, weight in _encode(index, query) if term not in kept}


def trace_losses(
    index: Index, folder: Path, query: str, ranked: Sequence[_Hit]
) -> dict[str, dict[str, _Trace]]:
    """doc_id -> term -> what became of it, from the vectors to the index."""
    opened, encoder = Vectors(folder), index.query_encoder
    assert encoder is not None
    recorded = index.manifest.get("encoder", opened.manifest["encoder"])
    if recorded != opened.manifest["encoder"]:
        raise IndexMismatch(f"{index.folder} was not built from {folder}: their encoders differ")
    builder.check_vocabulary(opened.vocabulary, encoder, str(folder))
    left = {hit.doc_id for hit in ranked}
    traces: dict[str, dict[str, _Trace]] = {}
    for number in range(opened.num_shards):
        doc_ids, weights = opened.read_shard(number)
        for row, doc_id in enumerate(doc_ids):
            if doc_id in left:
                traces[doc_id] = _trace_row(index, query, weights[row])
    if missing := left - set(traces):
        raise IndexMismatch(
            f"{folder} has no document {min(missing)!r}; name the vectors of this index"
        )
    return traces


def _trace_row(index: Index, query: str, row: sparse.csr_matrix) -> dict[str, _Trace]:
    """Quantize and prune one document as the index was built, and see where
    each query term ends.
    """
    encoder, rule = index.query_encoder, index.rule
    if encoder is None or not query.strip():
        return {}
    token_ids, query_weights = encoder.encode(query)
    rounded = quantize(row, rule, builder.folded_weights(encoder, rule)).impacts
    pruned = prune(rounded, Pruning(**index.manifest.get("pruning", {}))).impacts
    boosts = dict(
        zip(
            *(part.tolist() for part in quantize_query(token_ids, query_weights, rule)), strict=True
        )
    )
    exact, before, after = (_as_dict(matrix) for matrix in (row, rounded, pruned))
    found = {}
    for token_id, weight in zip(token_ids.tolist(), query_weights.tolist(), strict=True):
        if token_id in exact:
            unit = rule.scale if rule.folded else rule.scale**2
            value, boost = weight * exact[token_id] * unit, boosts.get(token_id, 0)
            reason = _reason(rule, boost, before.get(token_id, 0), after.get(token_id, 0), value)
            found[encoder.vocabulary[token_id]] = _Trace(
                value, boost * int(after.get(token_id, 0)), reason
            )
    return found


def _as_dict(row: sparse.csr_matrix) -> dict[int, float]:
    return dict(zip(row.indices.tolist(), row.data.tolist(), strict=True))


def _reason(rule: Rule, boost: int, before: float, after: float, exact: float) -> str | None:
    if not boost:
        return QUERY_ROUNDED
    if not before:
        return ROUNDED
    if not after:
        return PRUNED
    return CLIPPED if before == rule.max_impact and exact > boost * before + boost / 2 else None


def _describe_trace(
    index: Index, hit: _Hit, parts: Mapping[str, float], trace: Mapping[str, _Trace]
) -> dict[str, Any]:
    kept = {term: float(of.kept) for term, of in trace.items() if of.kept}
    if kept != dict(parts):
        raise IndexMismatch(
            f"{index.folder}: document {hit.doc_id!r} has other impacts than "
            "these vectors give; name "
            "the vectors of this index"
        )
    ranked = sorted(trace.items(), key=lambda item: item[1].kept - item[1].exact)
    lost = {
        term: {"would_add": of.exact - of.kept, "reason": of.reason}
        for term, of in ranked
        if of.reason
    }
    return {"score_before_rounding": sum(of.exact for of in trace.values()), "lost": lost}
