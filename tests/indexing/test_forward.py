"""The forward index: exact scores of candidates against a matrix product, narrow types, damage,
other vocabularies.
"""

from __future__ import annotations

import threading

import numpy as np
import pytest
from scipy import sparse
from small_indexes import (
    TermQueries,
    make_vectors,
    pairs_of,
    random_matrix,
    static_queries,
    vocabulary_of_size,
)

from sparse_ir.engines.base import SPARSE
from sparse_ir.errors import DamagedError
from sparse_ir.indexing import builder, verification
from sparse_ir.indexing.forward import ForwardIndex, ForwardWriter
from sparse_ir.indexing.manifest import DocIds, has_forward_index
from sparse_ir.indexing.quantization import Rule
from sparse_ir.retrieval.searcher import Index
from sparse_ir.storage import files

ROWS, TERMS = 90, 50


def filled_matrix(seed: int, largest: int = 9) -> sparse.csr_matrix:
    """No row is empty: an index holds no document without a posting."""
    matrix = random_matrix(seed, ROWS, TERMS, 0.2, largest).tolil()
    matrix[:, 1] = 1 + np.arange(ROWS).reshape(-1, 1) % largest
    return sparse.csr_matrix(matrix, dtype=np.int32)


MATRIX = filled_matrix(5)
VOCABULARY = vocabulary_of_size(TERMS)


def write(folder, matrix, order=(0, 1, 2), vocabulary=VOCABULARY):
    writer = ForwardWriter(folder)
    for number in order:
        writer.add(number, matrix[number * 30 : (number + 1) * 30])
    writer.finish({SPARSE: vocabulary})
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write(tmp_path_factory.mktemp("forward") / "forward", MATRIX, order=(2, 0, 1))


def test_scores_are_those_of_a_matrix_product_in_the_order_asked_for(folder):
    opened, generator = ForwardIndex(folder), np.random.default_rng(1)
    for _ in range(20):
        token_ids = generator.choice(TERMS, 7, replace=False)
        boosts = generator.integers(1, 65536, 7)
        numbers = generator.choice(ROWS, generator.integers(1, ROWS), replace=False)
        query = np.zeros(TERMS, np.int64)
        query[token_ids] = boosts
        found = opened.scores(numbers, token_ids, boosts)
        assert found.dtype == np.int64
        assert found.tolist() == (MATRIX.astype(np.int64) @ query)[numbers].tolist()


def test_no_candidates_and_no_terms_are_no_special_case(folder):
    opened, none = ForwardIndex(folder), np.empty(0, np.int64)
    assert opened.scores(none, np.array([1]), np.array([1])).tolist() == []
    assert opened.scores(np.array([3, 1]), none, none).tolist() == [0, 0]


def test_vectors_and_counts_are_those_of_the_matrix(folder):
    opened = ForwardIndex(folder)
    assert opened.statistics() == {
        "documents": ROWS,
        "postings": MATRIX.nnz,
        "sum_impacts": MATRIX.sum(),
    }
    for number in (0, 31, ROWS - 1):
        token_ids, impacts = opened.vector(number)
        assert token_ids.tolist() == MATRIX[number].indices.tolist()
        assert impacts.tolist() == MATRIX[number].data.tolist()


@pytest.mark.parametrize(("largest", "offset", "types"), [
    (255, 0, ("uint8", "uint8")), (256, 300, ("uint16", "uint16")), (65535, 70_000, ("uint32", "uint16")),
])  # fmt: skip
def test_files_are_as_narrow_as_the_numbers_allow(tmp_path, largest, offset, types):
    matrix = filled_matrix(6).astype(np.int64)
    matrix.data[-1] = largest
    wide = sparse.csr_matrix(
        (matrix.data, matrix.indices + offset, matrix.indptr), shape=(ROWS, TERMS + offset)
    )
    write(tmp_path / "f", wide, vocabulary=vocabulary_of_size(TERMS + offset))
    stored = [
        np.load(tmp_path / "f" / f"{name}.npy", mmap_mode="r") for name in ("token_ids", "impacts")
    ]
    assert tuple(str(array.dtype) for array in stored) == types
    assert stored[1].max() == largest
    row = int(np.flatnonzero(wide.max(axis=1).toarray().ravel() == largest)[0])
    column = int(wide[row].indices[wide[row].data.argmax()])
    assert ForwardIndex(tmp_path / "f").scores(
        np.array([row]), np.array([column]), np.array([3])
    ).tolist() == [3 * largest]
    assert sorted(path.name for path in (tmp_path / "f").iterdir()) == [
        "impacts.npy",
        "offsets.npy",
        "token_ids.npy",
        "vocabulary.json",
    ], "the parts are gone"


def test_threads_do_not_disturb_each_other(folder):
    opened, wrong = ForwardIndex(folder), []
    numbers = np.arange(ROWS)

    def ask(term: int) -> None:
        expected = (MATRIX[:, [term]].toarray().ravel().astype(np.int64) * 7).tolist()
        for _ in range(200):
            if opened.scores(numbers, np.array([term]), np.array([7])).tolist() != expected:
                wrong.append(term)

    threads = [threading.Thread(target=ask, args=(term,)) for term in (1, 2, 3, 4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_queries_of_another_vocabulary_are_translated(folder):
    theirs = ["t4", "stranger", "t1", "t2"]
    opened = ForwardIndex(folder, theirs)
    expected = MATRIX[:, 4] * 2 + MATRIX[:, 1] * 3
    found = opened.scores(np.arange(ROWS), np.array([0, 1, 2]), np.array([2, 100, 3]))
    assert found.tolist() == expected.toarray().ravel().tolist()


@pytest.mark.parametrize("name", ["offsets.npy", "token_ids.npy", "impacts.npy", "vocabulary.json"])
def test_a_file_that_is_cut_or_missing_is_reported(folder, tmp_path, name):
    write(tmp_path / "f", MATRIX)
    path = tmp_path / "f" / name
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DamagedError, match=r"forward|f/|f holds|is not readable"):
        ForwardIndex(tmp_path / "f")
    path.unlink()
    with pytest.raises(DamagedError):
        ForwardIndex(tmp_path / "f")


# --- inside of an index ---


@pytest.mark.parametrize("threads", [1, 3])
def test_an_index_with_boosted_queries_keeps_one_by_default(tmp_path, threads):
    queries = TermQueries(VOCABULARY)
    made = make_vectors(tmp_path / "v", random_matrix(8, ROWS, TERMS, 0.02), queries, shard_size=7)
    manifest = builder.build_impact_index(made, tmp_path / "i", Rule(1.0), queries, threads=threads)
    assert {"forward/offsets.npy", "forward/token_ids.npy", "forward/impacts.npy"} <= manifest[
        "files"
    ].keys()
    assert manifest["counts"]["empty"] > 0, (
        "rows of the forward index are Lucene's numbers, without the empty ones"
    )
    with Index(tmp_path / "i", query_encoder=queries) as index:
        hits = index.search("t1:2 t2 t5:3", ROWS)
        numbers = [[*DocIds(tmp_path / "i")].index(doc_id) for doc_id in hits.doc_ids]
        assert (
            index.forward.scores(
                np.array(numbers), np.array([1, 2, 5]), np.array([2, 1, 3])
            ).tolist()
            == hits.scores.tolist()
        )


def test_a_folded_index_keeps_one_only_when_asked(tmp_path):
    queries = static_queries(np.ones(TERMS))
    made = make_vectors(tmp_path / "v", MATRIX, queries)
    rule = builder.choose_rule(made, queries)
    for asked, expected in ((None, False), (True, True), (False, False)):
        manifest = builder.build_impact_index(
            made, tmp_path / "i", rule, queries, forward_index=asked
        )
        assert has_forward_index(manifest) is expected
        with Index(tmp_path / "i") as index:
            assert (index.forward is not None) is expected
            assert pairs_of(index.search("t1 t2", 3))


def test_verify_finds_a_forward_index_that_is_not_lucenes(tmp_path):
    """Two impacts of a document change places, and all checksums are made to fit: only the scores
    tell.
    """
    queries = TermQueries(VOCABULARY)
    builder.build_impact_index(
        make_vectors(tmp_path / "v", MATRIX, queries), tmp_path / "i", Rule(1.0), queries
    )
    assert verification.verify_index(tmp_path / "i")["ok"]
    path = tmp_path / "i" / "forward" / "token_ids.npy"
    token_ids = np.load(path)
    token_ids[0] = next(term for term in range(2, TERMS) if term not in MATRIX[0].indices)
    np.save(path, token_ids)
    manifest = files.read_json(tmp_path / "i" / "manifest.json")
    manifest["files"]["forward/token_ids.npy"]["sha256"] = files.sha256_of_file(path)
    del manifest["sha256"]
    files.write_json(
        tmp_path / "i" / "manifest.json", {**manifest, "sha256": files.sha256_of_json(manifest)}
    )
    with pytest.raises(DamagedError, match="forward: document d0 has"):
        verification.verify_index(tmp_path / "i")


def test_rows_follow_the_document_numbers_of_the_index(tmp_path):
    queries = TermQueries(VOCABULARY)
    made = make_vectors(tmp_path / "v", MATRIX, queries, shard_size=16)
    builder.build_impact_index(made, tmp_path / "i", Rule(1.0), queries)
    opened = ForwardIndex(tmp_path / "i" / "forward")
    scores = opened.scores(np.arange(ROWS), np.array([1, 2]), np.array([3, 5]))
    expected = (MATRIX[:, [1]] * 3 + MATRIX[:, [2]] * 5).toarray().ravel()
    assert list(DocIds(tmp_path / "i")) == [f"d{row}" for row in range(ROWS)]
    assert scores.tolist() == expected.tolist()
