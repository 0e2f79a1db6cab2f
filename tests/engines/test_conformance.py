"""Every engine keeps the same contract: one suite over all of them, against brute force."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from scipy import sparse
from small_indexes import (
    TermQueries,
    exact_pairs,
    make_vectors,
    pairs_of,
    query_of,
    random_matrix,
    shuffled_ids,
    vocabulary_of_size,
    write_matrix,
)

from sparse_ir.engines.base import (
    SPARSE,
    Engine,
    EngineReader,
    EngineStatistics,
    FieldTerms,
    ImpactBatch,
)
from sparse_ir.engines.catalog import ENGINES, find_engine
from sparse_ir.engines.threads import run_threads
from sparse_ir.errors import ConfigError, DamagedError, DataError
from sparse_ir.indexing import builder, verification
from sparse_ir.indexing.pruning import Pruning
from sparse_ir.indexing.quantization import Rule
from sparse_ir.retrieval.options import SearchOptions
from sparse_ir.retrieval.searcher import Index

ROWS, TERMS = 700, 40
VOCABULARY = vocabulary_of_size(TERMS)
MATRIX = random_matrix(1, ROWS, TERMS, 0.2)
DOC_IDS = shuffled_ids(2, ROWS)
QUERIES = random_matrix(3, 10, TERMS, 0.15, 3)


@pytest.fixture(scope="module", params=ENGINES)
def engine(request: pytest.FixtureRequest) -> Engine:
    return find_engine(request.param)


@pytest.fixture(scope="module")
def folder(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp(engine.name) / "index"
    return write_matrix(place, MATRIX, DOC_IDS, VOCABULARY, batch=100, engine=engine.name)


@pytest.fixture(scope="module")
def reader(engine: Engine, folder: Path) -> Iterator[EngineReader]:
    opened = engine.open(folder)
    yield opened
    opened.close()


def tokens_of(query: sparse.csr_matrix) -> list[str]:
    return [VOCABULARY[column] for column in query.indices]


@pytest.mark.parametrize("k", [1, 2, 10, 99, ROWS, 5 * ROWS])
def test_a_search_equals_brute_force_with_ties_at_every_cut(reader: EngineReader, k: int) -> None:
    for query in QUERIES:
        hits = reader.search(query_of(tokens_of(query), query.data.tolist()), k)
        assert pairs_of(hits) == exact_pairs(query, MATRIX, DOC_IDS, k)


def test_boosts_of_one_give_the_same_as_brute_force(reader: EngineReader) -> None:
    for query in QUERIES:
        ones = sparse.csr_matrix(query.astype(bool).astype(np.int32))
        hits = reader.search(query_of(tokens_of(ones), [1] * ones.nnz), 25)
        assert pairs_of(hits) == exact_pairs(ones, MATRIX, DOC_IDS, 25)


def test_a_repeated_token_counts_each_time(reader: EngineReader) -> None:
    twice = reader.search(query_of(["t3", "t7", "t3"], [2, 1, 3]), 50)
    once = reader.search(query_of(["t3", "t7"], [5, 1]), 50)
    assert pairs_of(twice) == pairs_of(once)


def test_unknown_tokens_and_empty_queries_have_no_hits(reader: EngineReader) -> None:
    for query in ({}, query_of([], []), query_of(["nowhere"], [1])):
        assert reader.search(query, 5).doc_ids == []
        assert reader.score(DOC_IDS[0], query) == 0.0
        assert len(reader.find_candidates(query, 5)) == 0


def test_fewer_than_one_hit_is_refused(reader: EngineReader) -> None:
    with pytest.raises(DataError, match="the number of hits is 0; it must be at least 1"):
        reader.search(query_of(["t1"], [1]), 0)


def test_scores_and_contributions_add_up(reader: EngineReader) -> None:
    query = QUERIES[0]
    asked = query_of(tokens_of(query), query.data.tolist())
    truth = dict(exact_pairs(query, MATRIX, DOC_IDS, ROWS))
    for doc_id in DOC_IDS[:60]:
        assert reader.score(doc_id, asked) == truth.get(doc_id, 0.0)
        parts = reader.contributions(doc_id, asked)
        assert sum(parts.values()) == truth.get(doc_id, 0.0)
        assert {field for field, _ in parts} <= {SPARSE}
    assert reader.score("no such document", asked) == 0.0
    assert reader.contributions("no such document", asked) == {}


@pytest.mark.parametrize("boosted", [True, False])
def test_explanations_by_number_equal_contributions(reader: EngineReader, boosted: bool) -> None:
    query = QUERIES[0]
    tokens = [*tokens_of(query), tokens_of(query)[0], "nowhere"]
    boosts = [*query.data.tolist(), 3, 1]
    if not boosted:
        tokens = tokens_of(query)
        boosts = [1] * len(tokens)
    asked = query_of(tokens, boosts)
    explain = reader.explainer(asked)
    hits = reader.search(asked, 40)
    assert [DOC_IDS[number] for number in hits.numbers] == hits.doc_ids
    for number, doc_id, score in zip(hits.numbers, hits.doc_ids, hits.scores, strict=True):
        parts = explain(number)
        assert parts == reader.contributions(doc_id, asked)
        assert sum(parts.values()) == score
    one = query_of(tokens[:1], [2])
    (best,) = reader.search(one, 1).numbers
    assert reader.explainer(one)(best) == reader.contributions(DOC_IDS[best], one)
    assert reader.explainer({})(0) == {}


def test_candidates_hold_the_best_and_are_ranked_by_the_tie_rule(reader: EngineReader) -> None:
    query = QUERIES[1]
    numbers = reader.find_candidates(query_of(tokens_of(query), query.data.tolist()), 80)
    assert numbers.dtype == np.int64
    scores = (MATRIX[numbers] @ query.T).toarray().ravel().astype(np.float64)
    shuffled = np.random.default_rng(0).permutation(len(numbers))
    ranked = reader.rank(numbers[shuffled], scores[shuffled], 20)
    expected = sorted(
        ((DOC_IDS[number], score) for number, score in zip(numbers, scores, strict=True)),
        key=lambda hit: (hit[1], hit[0]),
        reverse=True,
    )
    assert pairs_of(ranked) == expected[:20]
    assert ranked.scores[0] == exact_pairs(query, MATRIX, DOC_IDS, 1)[0][1]


def test_statistics_frequencies_and_ids(reader: EngineReader) -> None:
    frequencies = np.diff(MATRIX.tocsc().indptr)
    counted = reader.document_frequencies(SPARSE, [*VOCABULARY, "nowhere"])
    assert counted.tolist() == [*frequencies.tolist(), 0]
    assert reader.statistics() == EngineStatistics(
        ROWS, int(np.count_nonzero(frequencies)), MATRIX.nnz, int(MATRIX.sum())
    )
    assert reader.num_documents == ROWS
    assert reader.stored_ids([0, 5, ROWS - 1]) == [DOC_IDS[0], DOC_IDS[5], DOC_IDS[-1]]
    assert reader.has_document(DOC_IDS[3])
    assert not reader.has_document("nowhere")


def test_ids_from_elsewhere_replace_the_stored_ones(engine: Engine, folder: Path) -> None:
    opened = engine.open(folder, lambda numbers: [f"n{number:05d}" for number in numbers])
    query = QUERIES[0]
    hits = opened.search(query_of(tokens_of(query), query.data.tolist()), 30)
    names = [f"n{number:05d}" for number in range(ROWS)]
    assert pairs_of(hits) == exact_pairs(query, MATRIX, names, 30)
    opened.close()


def test_two_fields_add_up(engine: Engine, tmp_path: Path) -> None:
    other = random_matrix(9, ROWS, 12, 0.3, 5)
    words = [f"w{number}" for number in range(12)]
    batches = [
        lambda start=start: ImpactBatch(
            DOC_IDS[start : start + 200],
            {SPARSE: MATRIX[start : start + 200], "words": other[start : start + 200]},
        )
        for start in range(0, ROWS, 200)
    ]
    place = tmp_path / "two"
    engine.write(place, batches, {SPARSE: VOCABULARY, "words": words}, threads=2)
    engine.check(place)
    both = sparse.csr_matrix(sparse.hstack([MATRIX, other]))
    opened = engine.open(place)
    for seed, boosts in ((4, 1), (5, 6)):
        query = random_matrix(seed, 1, TERMS + 12, 0.2, boosts)
        in_sparse = query[:, :TERMS]
        in_words = query[:, TERMS:]
        asked = {
            SPARSE: FieldTerms(tokens_of(in_sparse), in_sparse.data.tolist()),
            "words": FieldTerms([words[i] for i in in_words.indices], in_words.data.tolist()),
        }
        assert pairs_of(opened.search(asked, 40)) == exact_pairs(query, both, DOC_IDS, 40)
    assert opened.statistics().postings == both.nnz
    opened.close()


def test_odd_tokens_and_ids_survive(engine: Engine, tmp_path: Path) -> None:
    tokens = [
        "",
        " ",
        "a b",
        "\u3000",
        "\x00",
        "\x01",
        "\ud800",
        "\u241b20;",
        "##ing",
        "\U0001f600",
    ]
    doc_ids = ["d 1", "\u00e9", "x" * 500, "a\tb", "\U0001f600", "q", "r", "s", "t", "u"]
    matrix = sparse.csr_matrix(np.diag(np.arange(1, len(tokens) + 1)).astype(np.int32))
    write_matrix(tmp_path / "odd", matrix, doc_ids, tokens, engine=engine.name)
    opened = engine.open(tmp_path / "odd")
    for number, token in enumerate(tokens):
        hits = opened.search(query_of([token], [1]), 3)
        assert pairs_of(hits) == [(doc_ids[number], number + 1.0)]
    opened.close()


@pytest.mark.parametrize("impact", [0, -1, 65536])
def test_impacts_outside_the_range_are_refused(engine: Engine, tmp_path: Path, impact: int) -> None:
    matrix = sparse.csr_matrix(
        (np.array([3, impact], np.int32), np.array([0, 1]), np.array([0, 2])), shape=(1, 2)
    )
    with pytest.raises(DataError, match="they must lie in 1 to 65535"):
        write_matrix(tmp_path / "x", matrix, ["d"], ["a", "b"], engine=engine.name)


def test_scores_are_exact_below_the_declared_bound(engine: Engine, tmp_path: Path) -> None:
    largest = engine.capabilities.largest_impact
    bound = min(engine.capabilities.exact_below, 2**24)
    count = bound // (largest * largest + 1) or 1
    tokens = [f"t{number}" for number in range(max(count, 2))]
    matrix = sparse.csr_matrix(np.array([[255] * len(tokens), [254] * len(tokens)], dtype=np.int32))
    write_matrix(tmp_path / "big", matrix, ["a", "b"], tokens, engine=engine.name)
    opened = engine.open(tmp_path / "big")
    hits = opened.search(query_of(tokens, [30_001] * len(tokens)), 2)
    expected = [255 * 30_001 * len(tokens), 254 * 30_001 * len(tokens)]
    assert max(expected) < bound
    assert hits.scores.tolist() == expected
    opened.close()


def test_threads_search_alike(reader: EngineReader) -> None:
    query = QUERIES[2]
    asked = query_of(tokens_of(query), query.data.tolist())
    expected = pairs_of(reader.search(asked, 50))
    answers: list[bool] = []

    def search_often() -> None:
        for _ in range(20):
            answers.append(pairs_of(reader.search(asked, 50)) == expected)

    run_threads([search_often] * 4, reader.end_thread)
    assert answers == [True] * 80


def test_an_empty_index_answers(engine: Engine, tmp_path: Path) -> None:
    engine.write(tmp_path / "none", [], {SPARSE: ["t"]})
    engine.check(tmp_path / "none")
    opened = engine.open(tmp_path / "none")
    assert opened.search(query_of(["t"], [1]), 4).doc_ids == []
    assert opened.statistics() == EngineStatistics(0, 0, 0, 0)
    opened.close()


def test_a_damaged_file_is_found(engine: Engine, folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    engine.check(copy)
    largest = max(copy.iterdir(), key=lambda path: path.stat().st_size)
    content = largest.read_bytes()
    largest.write_bytes(content[: len(content) // 2])
    with pytest.raises(DamagedError):
        engine.check(copy)


def test_an_unknown_engine_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="engine 'solr' is unknown; it must be one of lucene"):
        find_engine("solr")


# --- whole indexes ---


@pytest.fixture(scope="module")
def indexes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One index for each engine, of the same vectors."""
    root = tmp_path_factory.mktemp("indexes")
    queries = TermQueries(VOCABULARY)
    vectors = make_vectors(root / "vectors", MATRIX, queries, doc_ids=DOC_IDS, shard_size=150)
    places = {}
    for name in ENGINES:
        places[name] = root / name
        builder.build_impact_index(vectors, places[name], Rule(1.0), queries, engine=name)
    return places


@pytest.mark.parametrize("options", ["", "mass=0.5", "mass=0.4 candidates=3", "top_terms=2"])
def test_indexes_of_all_engines_give_the_same_hits(indexes: dict[str, Path], options: str) -> None:
    settings = {}
    for part in options.split():
        name, value = part.split("=")
        settings[name] = int(value) if name == "top_terms" else float(value)
    chosen = SearchOptions(**settings)
    results = {}
    for name, place in indexes.items():
        with Index(place, query_encoder=TermQueries(VOCABULARY)) as index:
            hits = []
            for query in QUERIES:
                pairs = zip(tokens_of(query), query.data.tolist(), strict=True)
                text = " ".join(f"{token}:{boost}" for token, boost in pairs)
                if options != "mass=0.4 candidates=3":
                    hits.append(pairs_of(index.search(text, 15, chosen)))
                else:  # which of several candidates with equal scores is taken is not defined
                    hits.append(index.search(text, 1, chosen).scores.tolist())
            results[name] = hits
    for name in ENGINES:
        assert results[name] == results["exact"], name


@pytest.mark.parametrize("name", ENGINES)
def test_an_index_verifies_and_names_its_engine(indexes: dict[str, Path], name: str) -> None:
    assert verification.verify_index(indexes[name])["postings"] == MATRIX.nnz
    with Index(indexes[name], query_encoder=TermQueries(VOCABULARY)) as index:
        assert index.manifest["engine"] == name
        assert index.manifest["versions"][name] == find_engine(name).version()
        assert index.engine_folder == indexes[name] / name


def test_pruned_indexes_verify_with_the_exact_engine(tmp_path: Path) -> None:
    queries = TermQueries(VOCABULARY)
    vectors = make_vectors(tmp_path / "v", MATRIX, queries, doc_ids=DOC_IDS)
    builder.build_impact_index(
        vectors, tmp_path / "i", Rule(1.0), queries, engine="exact", pruning=Pruning(min_impact=3)
    )
    report = verification.verify_index(tmp_path / "i")
    assert report["postings"] == int((MATRIX.data >= 3).sum())
