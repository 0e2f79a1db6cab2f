"""The share of BM25 in a hybrid ranking: found from queries alone, or from judgements.

A hybrid score is ``sparse + share x bm25``. Two searches of each query, one by each field, are
enough to try any share: among the best documents of both, the sum decides.

Without judgements the two parts are brought to the same height: after division by the mean of each
ranking's ten best scores the model counts 0.6 and BM25 0.4. With judgements the share of the best
nDCG@10 is taken; of shares within a thousandth of it, the one nearest to 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from sparse_ir.data.records import Qrels, Query, rank_hits
from sparse_ir.errors import ConfigError
from sparse_ir.evaluation.measures import evaluate_run
from sparse_ir.retrieval.searcher import Index

MEASURE = "nDCG@10"
SHARES = (0.25, 0.35, 0.5, 0.7, 1.0, 1.4, 2.0, 3.0)
_MODEL_PART = 0.6
_BEST = 10  # scores of a query whose mean is its height
_DEPTH = 500  # hits of each ranking among which a sum is looked for
_TOLERANCE = 0.001

_Scores = Mapping[str, float]  # doc_id -> score


class FoundShare(NamedTuple):
    """A share of BM25, and how it was found."""

    share: float
    now: float  # the share that the index was built with
    by: str  # "heights" or "judgements"
    measured: dict[float, float]  # share -> nDCG@10, where there are judgements


def find_share(
    sparse_index: Index, word_index: Index, queries: Sequence[Query], qrels: Qrels | None
) -> FoundShare:
    """The share for an index with both fields, opened once by each.

    Raises ``ConfigError`` where no query has hits in both fields.
    """
    now = float(sparse_index.manifest["bm25"]["share"])
    pairs = {}
    for query in queries:
        model_scores = _search(sparse_index, query.text)
        # impacts of the field hold the share of the index: without it, they are plain BM25
        word_scores = {}
        for doc_id, score in _search(word_index, query.text).items():
            word_scores[doc_id] = score / now
        pairs[query.query_id] = (model_scores, word_scores)
    if qrels is None:
        return FoundShare(_share_of_heights(list(pairs.values())), now, "heights", {})
    measured = {share: _measure(pairs, qrels, share) for share in SHARES}
    best = max(measured.values())
    close = [share for share, value in measured.items() if value >= best - _TOLERANCE]
    chosen = min(close, key=lambda share: abs(math.log(share)))
    return FoundShare(chosen, now, "judgements", measured)


def _search(index: Index, text: str) -> dict[str, float]:
    hits = index.search(text, _DEPTH)
    return dict(zip(hits.doc_ids, hits.scores.tolist(), strict=True))


def _share_of_heights(pairs: Sequence[tuple[_Scores, _Scores]]) -> float:
    """The share at which BM25 has four tenths of the sum of both heights."""
    model_heights = []
    word_heights = []
    for model_scores, word_scores in pairs:
        if model_scores and word_scores:
            model_heights.append(_height(model_scores))
            word_heights.append(_height(word_scores))
    if not model_heights:
        raise ConfigError("no query has hits by both fields; name queries about this collection")
    ratio = float(np.mean(model_heights) / np.mean(word_heights))
    return round(ratio * (1 - _MODEL_PART) / _MODEL_PART, 2)


def _height(scores: _Scores) -> float:
    return float(np.mean(sorted(scores.values(), reverse=True)[:_BEST]))


def _measure(pairs: Mapping[str, tuple[_Scores, _Scores]], qrels: Qrels, share: float) -> float:
    """nDCG@10 of the sums under a share."""
    run = {}
    for query_id, (model_scores, word_scores) in pairs.items():
        sums = dict(model_scores)
        for doc_id, score in word_scores.items():
            sums[doc_id] = sums.get(doc_id, 0.0) + share * score
        run[query_id] = rank_hits(sums.items())[:_BEST]
    judged = {query_id: qrels[query_id] for query_id in run}
    return round(evaluate_run(run, judged, MEASURE).mean[MEASURE], 4)
