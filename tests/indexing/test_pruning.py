"""Static pruning against a plain loop over each document, and in an index: what is left, what is
counted.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy import sparse
from small_indexes import (
    TermQueries,
    exact_pairs,
    make_vectors,
    pairs_of,
    random_matrix,
    vocabulary_of_size,
)

from sparse_ir.errors import ConfigError
from sparse_ir.indexing import builder, verification
from sparse_ir.indexing.pruning import Pruning, prune
from sparse_ir.indexing.quantization import Rule
from sparse_ir.retrieval.searcher import Index

MATRIX = random_matrix(3, 60, 30, 0.3, largest=9)
EACH = [
    Pruning(terms=3),
    Pruning(min_impact=4),
    Pruning(mass=0.5),
    Pruning(terms=5, min_impact=2, mass=0.8),
    Pruning(mass=0.01),
    Pruning(terms=1000),
    Pruning(min_impact=10),
]


def prune_plainly(row: dict[int, int], pruning: Pruning) -> dict[int, int]:
    """One document, by sorting and adding up."""
    kept, before, total = {}, 0, sum(row.values())
    for rank, (term, impact) in enumerate(
        sorted(row.items(), key=lambda item: (-item[1], item[0]))
    ):
        few = pruning.terms is None or rank < pruning.terms
        if few and impact >= pruning.min_impact and before < pruning.mass * total:
            kept[term] = impact
        before += impact
    return kept


def rows_of(matrix: sparse.csr_matrix) -> list[dict[int, int]]:
    return [dict(zip(row.indices.tolist(), row.data.tolist(), strict=True)) for row in matrix]


@pytest.mark.parametrize("pruning", EACH, ids=str)
def test_pruning_is_what_a_plain_loop_gives(pruning):
    before = MATRIX.copy()
    kept, num_postings, total = prune(MATRIX, pruning)
    assert rows_of(kept) == [prune_plainly(row, pruning) for row in rows_of(MATRIX)]
    assert kept.nnz + num_postings == MATRIX.nnz
    assert kept.sum() + total == MATRIX.sum()
    assert (before != MATRIX).nnz == 0, "the input stays as it was"
    assert kept.has_sorted_indices


def test_without_a_condition_nothing_changes():
    assert not Pruning()
    assert prune(MATRIX, Pruning()) == (MATRIX, 0, 0)


def test_every_document_keeps_its_heaviest_term_unless_a_smallest_impact_forbids_it():
    filled = np.diff(MATRIX.indptr) > 0
    for pruning in (Pruning(terms=1), Pruning(mass=1e-9)):
        kept = prune(MATRIX, pruning).impacts
        assert (np.diff(kept.indptr) == filled).all()
        assert (kept.max(axis=1).toarray() == MATRIX.max(axis=1).toarray()).all()


def test_an_empty_matrix_stays_empty():
    assert prune(sparse.csr_matrix((4, 7), dtype=np.int32), Pruning(terms=2)).impacts.nnz == 0


@pytest.mark.parametrize(("wrong", "message"), [
    ({"terms": 0}, "pruning keeps 0 terms"), ({"min_impact": 0}, "smallest impact is 0"),
    ({"min_impact": 65536}, "smallest impact is 65536"), ({"mass": 0.0}, "mass to keep is 0.0"), ({"mass": 1.1}, "mass to keep is 1.1"),
    ({"mass": float("nan")}, "mass to keep is nan"),
])  # fmt: skip
def test_a_setting_that_makes_no_sense_is_refused(wrong, message):
    with pytest.raises(ConfigError, match=f"{message}; it must"):
        Pruning(**wrong)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_pruned_index_counts_what_it_dropped_and_scores_what_it_kept(tmp_path, threads):
    matrix = sparse.csr_matrix(
        np.array([[0, 9, 5, 1], [0, 2, 2, 1], [0, 0, 0, 0], [0, 0.2, 0, 0], [0, 4, 0, 3]])
    )
    queries = TermQueries(vocabulary_of_size(4))
    made = make_vectors(tmp_path / "v", matrix, queries, shard_size=2)
    manifest = builder.build_impact_index(
        made, tmp_path / "i", Rule(1.0), queries, pruning=Pruning(min_impact=3), threads=threads
    )
    assert manifest["pruning"] == {"terms": None, "min_impact": 3, "mass": 1.0}
    assert manifest["counts"] == {
        "documents": 5, "indexed": 2, "empty": 1, "rounded_to_nothing": 1, "pruned_to_nothing": 1, "postings": 4,
        "sum_impacts": 21, "postings_pruned": 4, "sum_impacts_pruned": 6, "weights_rounded_to_zero": 1,
        "weights_clipped": 0,
    }  # fmt: skip
    lines = [
        json.loads(line) for line in (tmp_path / "i" / "unindexed.jsonl").read_text().splitlines()
    ]
    assert {line["doc_id"]: line["reason"] for line in lines} == {
        "d1": "all impacts pruned",
        "d2": "no weights",
        "d3": "all weights rounded to zero",
    }
    report = verification.verify_index(tmp_path / "i")
    assert report["documents"] == sum(
        report[name] for name in ("indexed", "empty", "rounded_to_nothing", "pruned_to_nothing")
    )
    left = prune(
        sparse.csr_matrix(np.rint(matrix.toarray()), dtype=np.int32), Pruning(min_impact=3)
    ).impacts
    with Index(tmp_path / "i", query_encoder=queries) as index:
        row = sparse.csr_matrix([[0, 1, 2, 3]])
        assert pairs_of(index.search("t1:1 t2:2 t3:3", 5)) == exact_pairs(
            row, left, [f"d{i}" for i in range(5)], 5
        )


def test_an_index_without_pruning_says_nothing_of_it(tmp_path):
    queries = TermQueries(vocabulary_of_size(30))
    made = make_vectors(tmp_path / "v", MATRIX, queries)
    manifest = builder.build_impact_index(made, tmp_path / "i", Rule(1.0), queries)
    assert "pruning" not in manifest
    assert "pruned_to_nothing" not in manifest["counts"]
