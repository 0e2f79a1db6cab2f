"""Search options: which terms are left, equality with exact search where nothing is, two phases,
options kept.
"""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from scipy import sparse
from small_indexes import (
    TermQueries,
    exact_pairs,
    make_vectors,
    pairs_of,
    random_matrix,
    shuffled_ids,
    static_queries,
    vocabulary_of_size,
    write_matrix,
)

from sparse_ir.data.records import Document, Query
from sparse_ir.errors import ConfigError, DamagedError, IndexMismatch
from sparse_ir.indexing import bm25_builder, builder, manifest, verification
from sparse_ir.indexing.quantization import Rule
from sparse_ir.retrieval.options import EXACT, SearchOptions, choose_terms, read_tuned, write_tuned
from sparse_ir.retrieval.searcher import Index
from sparse_ir.storage import files

TERMS, ROWS = 60, 400
VOCABULARY = vocabulary_of_size(TERMS)
MATRIX = random_matrix(21, ROWS, TERMS, 0.2)  # impacts of 1 to 4: scores tie everywhere
MATRIX.data[MATRIX.indices == 0] = 0  # no document holds the unknown token
MATRIX.eliminate_zeros()
DOC_IDS = shuffled_ids(22, ROWS)
WEIGHTS = np.array([3, 9, 1, 9, 2], dtype=np.float32)
FREQUENCIES = np.array([10, 40, 5, 30, 80])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("approximation")
    made = make_vectors(
        root / "vectors", MATRIX, TermQueries(VOCABULARY), doc_ids=DOC_IDS, shard_size=64
    )
    builder.build_impact_index(made, root / "index", Rule(1.0), TermQueries(VOCABULARY))
    return root / "index"


def open_index(folder: Path, **options) -> Index:
    return Index(folder, query_encoder=TermQueries(VOCABULARY), **options)


def random_weights(seed: int, count: int) -> list[dict[int, int]]:
    """Queries of up to 40 terms, as expansions are."""
    generator = np.random.default_rng(seed)
    sizes = generator.integers(1, 41, count).tolist()
    return [
        dict(
            zip(
                generator.choice(np.arange(1, TERMS), size, replace=False).tolist(),
                generator.integers(1, 30, size).tolist(),
                strict=True,
            )
        )
        for size in sizes
    ]


def as_text(weights: dict[int, int]) -> str:
    return " ".join(f"t{term}:{weight}" for term, weight in weights.items())


def as_row(weights: dict[int, int]) -> sparse.csr_matrix:
    row = sparse.lil_matrix((1, TERMS), dtype=np.int64)
    for term, weight in weights.items():
        row[0, term] = weight
    return row.tocsr()


QUERIES = random_weights(1, 12)


# --- the choice of terms ---


@pytest.mark.parametrize(("options", "expected"), [
    ({}, [0, 1, 2, 3, 4]),
    ({"top_terms": 1}, [3]),  # of the two weights of 9 the rarer term
    ({"top_terms": 3}, [0, 1, 3]),
    ({"min_ratio": 0.3}, [0, 1, 3]),
    ({"min_ratio": 1.0}, [1, 3]),
    ({"mass": 0.5}, [1, 3]),  # 9 of 24 is too little, 18 enough
    ({"mass": 0.375}, [3]),  # 9 of 24 is exactly that
    ({"postings": 0.75}, [1, 3]),
    ({"postings": 0.01}, [3]),
    ({"postings": 0.85, "top_terms": 1}, [3]),
])  # fmt: skip
def test_terms_that_are_left(options, expected):
    assert choose_terms(SearchOptions(**options), WEIGHTS, FREQUENCIES, 100).tolist() == expected


def test_a_query_with_terms_keeps_at_least_one_and_an_empty_one_none():
    settings = {
        "min_ratio": [0, 1.0],
        "mass": [1.0, 1e-9],
        "top_terms": [None, 1],
        "postings": [None, 1e-9],
    }
    for values in itertools.product(*settings.values()):
        options = SearchOptions(**dict(zip(settings, values, strict=True)))
        assert 1 <= len(choose_terms(options, WEIGHTS, FREQUENCIES, 100)) <= 5
        assert not len(choose_terms(options, WEIGHTS[:0], FREQUENCIES[:0], 100))


def test_terms_that_no_document_holds_are_none_of_the_query():
    weights, frequencies = np.array([9, 1, 8, 2], dtype=np.float32), np.array([0, 5, 0, 90])
    for options, expected in (
        ({"top_terms": 1}, [3]),
        ({"mass": 0.66}, [3]),
        ({"mass": 0.67}, [1, 3]),
        ({"min_ratio": 0.5}, [1, 3]),
    ):
        assert (
            choose_terms(SearchOptions(**options), weights, frequencies, 100).tolist() == expected
        ), options
    assert not len(choose_terms(SearchOptions(mass=0.5), weights, np.zeros(4, int), 100))


@pytest.mark.parametrize(("wrong", "message"), [
    ({"mass": 0.0}, "mass is 0.0"), ({"mass": 1.5}, "mass is 1.5"), ({"mass": -1.0}, "mass is -1.0"),
    ({"min_ratio": 2.0}, "min_ratio is 2.0"), ({"min_ratio": float("nan")}, "min_ratio is nan"),
    ({"mass": "a"}, "mass is 'a'"), ({"mass": None}, "mass is None"), ({"top_terms": 1.5}, r"top_terms is 1\.5"),
    ({"mass": True}, "mass is True"),
    ({"top_terms": 0}, "top_terms is 0"), ({"postings": 0.0}, "postings is 0.0"), ({"candidates": 0.5}, "candidates is 0.5"),
    ({"candidates": float("inf")}, "candidates is inf"), ({"candidates": float("nan")}, "candidates is nan"),
])  # fmt: skip
def test_settings_that_make_no_sense_are_refused(wrong, message):
    with pytest.raises(ConfigError, match=f"{message}; it must be "):
        SearchOptions(**wrong)


def test_settings_survive_json_and_read_well():
    options = SearchOptions(min_ratio=0.5, mass=0.7, top_terms=8, candidates=5)
    assert SearchOptions.from_json(json.loads(json.dumps(options.to_json()))) == options
    assert str(options) == "min_ratio=0.5 mass=0.7 top_terms=8 candidates=5"
    assert (str(EXACT), EXACT.to_json(), EXACT.leaves_out) == ("exact", {}, False)
    assert not SearchOptions(candidates=5).leaves_out
    with pytest.raises(ConfigError, match="search options depth, speed are unknown"):
        SearchOptions.from_json({"speed": 11, "depth": 1, "mass": 0.5})


def test_a_removed_option_of_an_older_version_is_left_out_with_a_warning():
    with pytest.warns(UserWarning, match="search option stop_share was removed and is ignored"):
        options = SearchOptions.from_json({"stop_share": 0.3, "mass": 0.5})
    assert options == SearchOptions(mass=0.5)


# --- exact search ---


@pytest.mark.parametrize("options", [
    SearchOptions(candidates=1), SearchOptions(top_terms=40), SearchOptions(top_terms=40, candidates=3),
    SearchOptions(top_terms=2, candidates=ROWS), SearchOptions(mass=0.1, min_ratio=0.1, candidates=1e9),
], ids=str)  # fmt: skip
@pytest.mark.parametrize("k", [1, 10, 150])
def test_with_all_terms_or_all_candidates_a_search_is_exact(folder, options, k):
    with open_index(folder) as index:
        for weights in QUERIES:
            assert pairs_of(index.search(as_text(weights), k, options)) == exact_pairs(
                as_row(weights), MATRIX, DOC_IDS, k
            )


@pytest.mark.parametrize("k", [1, 7, 60])
def test_rescored_candidates_are_ranked_as_exact_search_ranks_them(folder, k):
    """As many candidates as there are documents, but for one: the rescoring is at work, and nothing
    may change.
    """
    options = SearchOptions(top_terms=25, candidates=(ROWS - 1) / k)
    with open_index(folder) as index:
        for weights in (query for query in QUERIES if len(query) > 26):
            assert pairs_of(index.search(as_text(weights), k, options)) == exact_pairs(
                as_row(weights), MATRIX, DOC_IDS, k
            )


# --- what is left out ---


def test_without_candidates_the_terms_that_are_left_are_the_whole_query(folder):
    options = SearchOptions(top_terms=3)
    frequencies = np.diff(MATRIX.tocsc().indptr)
    with open_index(folder) as index:
        for weights in QUERIES:
            left = sorted(weights, key=lambda term: (-weights[term], frequencies[term]))[:3]
            expected = exact_pairs(
                as_row({term: weights[term] for term in left}), MATRIX, DOC_IDS, 20
            )
            assert pairs_of(index.search(as_text(weights), 20, options)) == expected


def test_two_phases_rank_the_candidates_by_all_terms(folder):
    """The first phase as brute force has it, ties by document number; then the exact scores of
    those documents.
    """
    options, k = SearchOptions(top_terms=3, candidates=4), 6
    frequencies = np.diff(MATRIX.tocsc().indptr)
    with open_index(folder) as index:
        for weights in QUERIES:
            left = sorted(weights, key=lambda term: (-weights[term], frequencies[term]))[:3]
            first = (as_row({term: weights[term] for term in left}) @ MATRIX.T).toarray()[0]
            exact = (as_row(weights) @ MATRIX.T).toarray()[0]
            candidates = [
                number for number in np.lexsort((np.arange(ROWS), -first)) if first[number] > 0
            ][:24]
            expected = sorted(
                ((exact[number], DOC_IDS[number]) for number in candidates), reverse=True
            )[:k]
            assert pairs_of(index.search(as_text(weights), k, options)) == [
                (doc_id, score) for score, doc_id in expected
            ]


def test_a_folded_index_knows_the_weights_that_were_folded_in(tmp_path):
    queries = static_queries(np.linspace(3.0, 0.5, TERMS))
    made = make_vectors(tmp_path / "v", MATRIX, queries, doc_ids=DOC_IDS)
    builder.build_impact_index(made, tmp_path / "i", builder.choose_rule(made, queries), queries)
    with Index(tmp_path / "i") as index:
        heaviest = pairs_of(index.search("t7", 10))
        assert pairs_of(index.search("t50 t7 t31", 10, SearchOptions(top_terms=1))) == heaviest


def test_batches_take_options_and_threads_change_nothing(folder):
    queries = [Query(f"q{number}", as_text(weights)) for number, weights in enumerate(QUERIES)]
    options = SearchOptions(mass=0.4, candidates=2)
    with open_index(folder) as index:
        expected = {
            query.query_id: pairs_of(index.search(query.text, 5, options)) for query in queries
        }
        exact = index.search_batch(queries, 5)[0]
        for threads in (1, 4):
            assert index.search_batch(queries, 5, options=options, threads=threads)[0] == expected
    assert expected != exact, "this is an approximation"


@pytest.mark.parametrize("text", ["", "  ", "unknown words"])
def test_empty_queries_have_no_hits_with_options(folder, text):
    with open_index(folder) as index:
        assert index.search(text, 5, SearchOptions(mass=0.5, candidates=2)).doc_ids == []


def test_all_terms_that_documents_hold_are_all_terms(folder):
    """An unknown term beside them changes nothing: candidates that tie with the last one are not
    cut off.
    """
    weights = {1: 1, 2: 1}
    with open_index(folder) as index:
        found = index.search(
            "[UNK]:9 " + as_text(weights), 10, SearchOptions(top_terms=2, candidates=1)
        )
        assert pairs_of(found) == exact_pairs(as_row(weights), MATRIX, DOC_IDS, 10)


# --- errors ---


def test_candidates_need_a_forward_index(tmp_path):
    made = make_vectors(tmp_path / "v", MATRIX, TermQueries(VOCABULARY))
    builder.build_impact_index(
        made, tmp_path / "i", Rule(1.0), TermQueries(VOCABULARY), forward_index=False
    )
    with open_index(tmp_path / "i") as index:
        assert index.search("t1 t2 t3", 5, SearchOptions(top_terms=2)).doc_ids
        with pytest.raises(
            ConfigError,
            match="needs a forward index; build the index with --forward",
        ):
            index.search("t1 t2 t3", 5, SearchOptions(top_terms=2, candidates=3))


def test_an_index_of_pyserini_takes_options_but_no_candidates(tmp_path):
    write_matrix(tmp_path / "bare", MATRIX, DOC_IDS, VOCABULARY)
    with open_index(tmp_path / "bare", rule=Rule(1.0)) as index:
        assert pairs_of(index.search("t1:3 t2:2", 5, SearchOptions(top_terms=1))) == pairs_of(
            index.search("t1:3", 5)
        )
        with pytest.raises(ConfigError, match="needs a forward index"):
            index.search("t1", 5, SearchOptions(candidates=3))
    with pytest.raises(ConfigError, match="bare Lucene index and keeps no tuned options"):
        open_index(tmp_path / "bare", rule=Rule(1.0), tuned=True)


def test_a_bm25_index_takes_none(tmp_path):
    bm25_builder.build_bm25_index(lambda: [Document("d1", "", "red wine")], tmp_path / "i")
    with (
        Index(tmp_path / "i") as index,
        pytest.raises(ConfigError, match="a BM25 index takes no search"),
    ):
        index.search("red", 5, SearchOptions(top_terms=1))


# --- options that are kept ---


@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "index"))


def test_tuned_options_are_used_only_where_they_are_asked_for(copied):
    options, text = SearchOptions(top_terms=2), as_text(QUERIES[2])
    write_tuned(
        copied / "tuned.json",
        manifest.read_manifest(copied)["sha256"],
        options,
        {"budget": "p95 <= 1 ms"},
    )
    assert verification.verify_index(copied)["ok"], "it is no part of the index's own checksums"
    with open_index(copied) as plain, open_index(copied, tuned=True) as tuned:
        assert (plain.options, tuned.options) == (EXACT, options)
        assert pairs_of(tuned.search(text, 9)) == pairs_of(plain.search(text, 9, options))
        assert pairs_of(tuned.search(text, 9, EXACT)) == pairs_of(plain.search(text, 9))
        assert pairs_of(tuned.search(text, 9)) != pairs_of(plain.search(text, 9))


def test_tuned_options_of_another_version_are_refused(copied):
    write_tuned(copied / "tuned.json", "0" * 64, SearchOptions(top_terms=2), {})
    with pytest.raises(
        IndexMismatch, match="measured on another version of this index; run sparse-ir tune again"
    ):
        open_index(copied, tuned=True)
    with pytest.raises(IndexMismatch, match="another version"):
        verification.verify_index(copied)
    open_index(copied).close()


def test_tuned_options_that_are_missing_or_damaged_are_refused(copied):
    with pytest.raises(ConfigError, match="has no tuned options; run sparse-ir tune first"):
        open_index(copied, tuned=True)
    path = copied / "tuned.json"
    write_tuned(path, "abc", SearchOptions(top_terms=2), {})
    path.write_text(path.read_text().replace('"top_terms": 2', '"top_terms": 3'))
    with pytest.raises(DamagedError, match="damaged or of another version"):
        read_tuned(path, "abc")
    files.write_json(path, ["nothing"])
    with pytest.raises(DamagedError, match="damaged or of another version"):
        read_tuned(path, "abc")


def test_a_new_index_in_the_same_place_forgets_what_was_tuned(copied):
    write_tuned(
        copied / "tuned.json",
        manifest.read_manifest(copied)["sha256"],
        SearchOptions(top_terms=2),
        {},
    )
    made = make_vectors(copied.parent / "v", MATRIX, TermQueries(VOCABULARY), shard_size=50)
    builder.build_impact_index(made, copied, Rule(1.0), TermQueries(VOCABULARY))
    with pytest.raises(ConfigError, match="has no tuned options"):
        open_index(copied, tuned=True)
