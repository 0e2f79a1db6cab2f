"""The order of documents: a permutation, always the same, that brings like to like and changes no
hit.
"""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse
from small_indexes import (
    exact_pairs,
    make_vectors,
    pairs_of,
    random_matrix,
    shuffled_ids,
    static_queries,
)

from sparse_ir.commands import indexing
from sparse_ir.errors import DamagedError
from sparse_ir.indexing import builder, ordering, verification
from sparse_ir.indexing.manifest import read_manifest
from sparse_ir.indexing.ordering import Reordered
from sparse_ir.indexing.vectors import Vectors
from sparse_ir.retrieval.searcher import Index

TERMS, ROWS = 60, 700


def topical_matrix(topics: int, rows: int, terms: int) -> tuple[sparse.csr_matrix, np.ndarray]:
    """Shuffled rows of some topics, each with terms of its own beside terms of all; and the topic
    of each row.
    """
    generator = np.random.default_rng(0)
    labels = generator.permutation(np.arange(rows) % topics)
    own = (np.arange(terms) % (topics + 1)) == labels[:, None]
    present = generator.random((rows, terms)) < np.where(own, 0.5, 0.02)
    present[:, 0] = True  # a term of all documents says nothing
    return sparse.csr_matrix(present.astype(np.float32)), labels


def mean_log_gap(rows: sparse.csr_matrix, order: np.ndarray) -> float:
    """Mean ``log2`` of the distance between neighbours in a posting list: what graph bisection
    makes small.
    """
    postings = rows[order].tocsc()
    postings.sort_indices()
    columns = np.repeat(np.arange(rows.shape[1]), np.diff(postings.indptr))
    gaps = np.diff(postings.indices.astype(np.int64))[columns[1:] == columns[:-1]]
    return float(np.log2(gaps).mean())


@pytest.mark.parametrize("rows", [0, 1, 2, 64, 65, 129, 700])
def test_it_is_a_permutation_and_always_the_same(rows):
    matrix = (
        random_matrix(1, rows, TERMS, 0.1)
        if rows
        else sparse.csr_matrix((0, TERMS), dtype=np.int32)
    )
    settled: list[int] = []
    order = ordering.bisection_order(matrix, settled.append)
    assert sorted(order) == list(range(rows)) and sum(settled) == rows
    assert order.tolist() == ordering.bisection_order(matrix).tolist()


def test_only_which_terms_a_row_has_counts():
    matrix = random_matrix(2, 300, TERMS, 0.1)
    other = matrix.copy()
    other.data[:] = 7
    assert ordering.bisection_order(matrix).tolist() == ordering.bisection_order(other).tolist()


def test_rows_without_terms_and_a_matrix_without_any():
    assert sorted(ordering.bisection_order(sparse.csr_matrix((200, 5), dtype=np.float32))) == list(
        range(200)
    )


def test_topics_come_together():
    matrix, labels = topical_matrix(4, 2048, 120)
    order = ordering.bisection_order(matrix)
    same = np.mean(labels[order][1:] == labels[order][:-1])
    assert np.mean(labels[1:] == labels[:-1]) < 0.3
    assert same > 0.95
    assert mean_log_gap(matrix, order) < mean_log_gap(matrix, np.arange(2048)) - 0.5


@pytest.mark.parametrize("threads", [1, 2])
def test_reordered_indexes_have_the_same_hits_at_every_cut(tmp_path, threads):
    matrix, doc_ids = random_matrix(3, ROWS, TERMS, 0.1), shuffled_ids(4, ROWS)
    queries = static_queries(np.ones(TERMS))
    made = make_vectors(
        tmp_path / "v", matrix, queries, doc_ids=doc_ids, empty=[5, 100], shard_size=90
    )
    rule = builder.choose_rule(made, queries, scale=1.0)
    manifest = builder.build_impact_index(
        made, tmp_path / "i", rule, queries, threads=threads, order="bisection", forward_index=True
    )
    plain = builder.build_impact_index(made, tmp_path / "p", rule, queries)
    assert manifest["order"] == "bisection" and "order" not in plain
    assert manifest["counts"] == plain["counts"] and manifest["counts"]["empty"] >= 2
    truth = matrix.tolil()
    truth[[5, 100]] = 0
    with Index(tmp_path / "i") as index, Index(tmp_path / "p") as other:
        assert index.reader.stored_ids(range(50)) != other.reader.stored_ids(range(50))
        for text in ("t1", "t2 t3", "t4 t5 t6 t7 t8"):
            query = sparse.csr_matrix(
                np.isin(np.arange(TERMS), [int(term[1:]) for term in text.split()])[None] * 1
            )
            for k in (1, 10, 50, ROWS):
                hits = pairs_of(index.search(text, k))
                assert hits == exact_pairs(query, truth.tocsr(), doc_ids, k)
                assert hits == pairs_of(other.search(text, k))
    assert verification.verify_index(tmp_path / "i")["ok"]


def test_reordered_vectors_hold_the_same_rows(tmp_path):
    matrix, doc_ids = random_matrix(6, ROWS, TERMS, 0.1), shuffled_ids(7, ROWS)
    made = make_vectors(tmp_path / "v", matrix, static_queries(np.ones(TERMS)), doc_ids=doc_ids)
    found = Reordered(made)
    rows = {
        doc_id: row.toarray().ravel().tolist()
        for number in range(found.num_shards)
        for doc_id, row in zip(*found.read_shard(number), strict=True)
    }
    assert len(found) == ROWS and list(rows) != doc_ids
    assert rows == {
        doc_id: row.toarray().ravel().tolist() for doc_id, row in zip(doc_ids, matrix, strict=True)
    }


def test_damaged_vectors_are_noticed_and_no_index_appears(tmp_path):
    queries = static_queries(np.ones(TERMS))
    made = make_vectors(tmp_path / "v", random_matrix(8, 50, TERMS, 0.2), queries)
    rule = builder.choose_rule(made, queries)
    shard = next((tmp_path / "v" / "shards").glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    with pytest.raises(DamagedError, match="is damaged"):
        builder.build_impact_index(
            Vectors(tmp_path / "v"), tmp_path / "i", rule, queries, order="bisection"
        )
    assert not (tmp_path / "i").exists()


def test_the_verb_takes_the_order(tmp_path):
    make_vectors(tmp_path / "v", random_matrix(9, 200, TERMS, 0.2), static_queries(np.ones(TERMS)))
    indexing.index(tmp_path / "v", tmp_path / "i", order="bisection")
    assert read_manifest(tmp_path / "i")["order"] == "bisection"
