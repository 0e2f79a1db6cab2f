"""The truth itself, checked against dense arithmetic in plain Python."""

from __future__ import annotations

import numpy as np
import pytest
from brute_force import search_exact
from scipy import sparse
from small_indexes import random_matrix, shuffled_ids

from sparse_ir.errors import DataError


def test_by_hand():
    """d1 = 2*3 = 6, d2 = 2*1 + 1*4 = 6, d10 = 1*4 = 4, d3 = 0: ties by id descending as strings,
    zeros are no hits.
    """
    impacts = sparse.csr_matrix(np.array([[3, 0], [1, 4], [0, 4], [0, 0]]))
    query = sparse.csr_matrix(np.array([[2, 1], [0, 0]]))
    doc_ids = ["d1", "d2", "d10", "d3"]
    assert search_exact(query, impacts, doc_ids, 10) == [[("d2", 6), ("d1", 6), ("d10", 4)], []]
    assert search_exact(query, impacts, doc_ids, 1) == [[("d2", 6)], []]


@pytest.mark.parametrize("seed", range(10))
def test_equals_plain_python(seed):
    impacts, queries = random_matrix(seed, 50, 20, 0.3), random_matrix(seed + 50, 6, 20, 0.3)
    doc_ids = shuffled_ids(seed, 50)
    documents, expected = impacts.toarray().tolist(), []
    for query in queries.toarray().tolist():
        scores = [
            (sum(q * d for q, d in zip(query, row, strict=True)), doc_id)
            for row, doc_id in zip(documents, doc_ids, strict=True)
        ]
        expected.append(
            [(doc_id, score) for score, doc_id in sorted(scores, reverse=True) if score][:9]
        )
    assert search_exact(queries, impacts, doc_ids, 9) == expected


def test_scores_do_not_overflow():
    large = sparse.csr_matrix(np.full((1, 3), 65535, dtype=np.int32))
    assert search_exact(large, large, ["d"], 1) == [[("d", 3 * 65535**2)]]


def test_no_documents_and_no_queries():
    assert search_exact(
        sparse.csr_matrix((2, 3), dtype=int), sparse.csr_matrix((0, 3), dtype=int), [], 5
    ) == [[], []]
    assert (
        search_exact(
            sparse.csr_matrix((0, 3), dtype=int), sparse.csr_matrix((1, 3), dtype=int), ["d"], 5
        )
        == []
    )


@pytest.mark.parametrize(("width", "ids"), [(4, 2), (3, 1)])
def test_shapes_that_do_not_fit_are_refused(width, ids):
    with pytest.raises(
        DataError,
        match=r"shapes do not fit: queries \(1, .\), impacts \(2, 3\), "
        r". doc_ids",
    ):
        search_exact(
            sparse.csr_matrix((1, width), dtype=int),
            sparse.csr_matrix((2, 3), dtype=int),
            ["d"] * ids,
            1,
        )
