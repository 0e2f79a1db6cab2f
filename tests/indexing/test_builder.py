"""Index folders: counts that add up, the right query side or none, Pyserini on both sides, runs,
many threads.
"""

from __future__ import annotations

import gc
import json
import math
import random
import sys
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytrec_eval
from scipy import sparse
from small_indexes import (
    TermQueries,
    exact_pairs,
    make_vectors,
    pairs_of,
    random_matrix,
    run_python,
    shuffled_ids,
    static_queries,
    vocabulary_of_size,
)

from sparse_ir.data import runs
from sparse_ir.data.records import Document, Query
from sparse_ir.engines.lucene import java
from sparse_ir.engines.lucene.bm25 import Bm25
from sparse_ir.engines.lucene.java import detach_thread
from sparse_ir.engines.threads import run_threads
from sparse_ir.errors import ClosedError, ConfigError, DamagedError, DataError, IndexMismatch
from sparse_ir.indexing import bm25_builder, builder, json_vectors, verification
from sparse_ir.indexing.impact_source import NUM_SAMPLES
from sparse_ir.indexing.manifest import DocIds, is_lucene_folder, needs_query_encoder, read_manifest
from sparse_ir.indexing.quantization import Rule, quantize
from sparse_ir.indexing.vectors import Vectors
from sparse_ir.retrieval.searcher import Index

TERMS, ROWS = 40, 300
VOCABULARY = vocabulary_of_size(TERMS)
MATRIX = random_matrix(11, ROWS, TERMS, 0.15)
DOC_IDS = shuffled_ids(12, ROWS)
TEXTS = [
    ("b1", "The red fox", "jumps over the lazy dogs"), ("b2", "", "red red red wine"), ("b3", "Foxes", ""),
    ("b4", "", "   "), ("b5", "wine", "a fox drank the red wine and then the fox slept"), ("b6", "", "nothing here"),
]  # fmt: skip


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Whole numbers, queries with weights of their own: the engine's scores
    are plain dot products.
    """
    root = tmp_path_factory.mktemp("plain")
    made = make_vectors(
        root / "vectors", MATRIX, TermQueries(VOCABULARY), doc_ids=DOC_IDS, shard_size=64
    )
    builder.build_impact_index(made, root / "index", Rule(1.0), TermQueries(VOCABULARY))
    return root


@pytest.fixture(scope="module")
def folded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Static query weights folded into the impacts."""
    root = tmp_path_factory.mktemp("folded")
    queries = static_queries(np.linspace(0.2, 3.0, TERMS))
    made = make_vectors(root / "vectors", MATRIX, queries, doc_ids=DOC_IDS, shard_size=64)
    builder.build_impact_index(
        made, root / "index", builder.choose_rule(made, queries), queries, threads=2
    )
    return root


@pytest.fixture(scope="module")
def bm25(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """BM25 over six texts, one of them empty."""
    root = tmp_path_factory.mktemp("bm25")
    bm25_builder.build_bm25_index(lambda: [Document(*text) for text in TEXTS], root / "index")
    return root


def open_plain(root: Path, **options: Any) -> Index:
    return Index(root / "index", query_encoder=TermQueries(VOCABULARY), **options)


def random_queries(seed: int, count: int, weighted: bool = True) -> list[str]:
    draw = random.Random(seed)
    return [
        " ".join(
            f"t{term}:{draw.randint(1, 4)}" if weighted else f"t{term}"
            for term in draw.sample(range(1, TERMS), draw.randint(1, 6))
        )
        for _ in range(count)
    ]


def as_row(text: str) -> sparse.csr_matrix:
    token_ids, weights = TermQueries(VOCABULARY).encode(text)
    return sparse.csr_matrix(
        (weights.astype(np.int64), token_ids, [0, len(token_ids)]), shape=(1, TERMS)
    )


# --- search ---


@pytest.mark.parametrize("k", [1, 3, 20, 1000])
def test_search_equals_brute_force(plain, k):
    with open_plain(plain) as index:
        for text in random_queries(1, 20):
            assert pairs_of(index.search(text, k)) == exact_pairs(as_row(text), MATRIX, DOC_IDS, k)


def test_folded_search_equals_brute_force_on_the_folded_impacts(folded):
    with Index(folded / "index") as index:
        weights = np.linspace(0.2, 3.0, TERMS).astype(np.float32)
        weights[0] = 0  # the unknown token
        impacts = quantize(sparse.csr_matrix(MATRIX, dtype=np.float32), index.rule, weights).impacts
        for text in random_queries(2, 20, weighted=False):
            assert pairs_of(index.search(text, 15)) == exact_pairs(
                as_row(text), impacts, DOC_IDS, 15
            )
            assert set(index.encode_query(text).values()) == {1}, "a folded query needs no boosts"


@pytest.mark.parametrize("text", ["", "   ", "unknown words"])
def test_a_query_without_known_terms_has_no_hits(plain, folded, text):
    with open_plain(plain) as first, Index(folded / "index") as second:
        for index in (first, second):
            assert index.search(text).doc_ids == []
            assert index.encode_query(text) == {}


def test_matched_terms_add_up_to_the_score(plain):
    with open_plain(plain) as index:
        hits = index.search("t1:2 t2 t3:3 t4", 5)
        for doc_id, score in pairs_of(hits):
            parts = index.matched_terms("t1:2 t2 t3:3 t4", doc_id)
            assert sum(parts.values()) == score == index.score("t1:2 t2 t3:3 t4", doc_id)
            assert list(parts.values()) == sorted(parts.values(), reverse=True)
            row = MATRIX[DOC_IDS.index(doc_id)].toarray()[0]
            boosts = {1: 2, 2: 1, 3: 3, 4: 1}
            assert parts == {
                f"t{term}": boost * row[term] for term, boost in boosts.items() if row[term]
            }


@pytest.mark.parametrize("title", [0.0, 1.0])
def test_matched_terms_of_bm25_add_up_to_the_score(tmp_path, title):
    draw = random.Random(4)
    words = [f"word{number}" for number in range(30)]
    texts = [
        Document(
            f"d{number}", " ".join(draw.choices(words, k=3)), " ".join(draw.choices(words, k=40))
        )
        for number in range(200)
    ]
    bm25_builder.build_bm25_index(lambda: texts, tmp_path / "index", Bm25(title=title))
    with Index(tmp_path / "index") as index:
        for query in ("word1 word2 word2 word3", "word7", " ".join(words)):
            for doc_id, score in pairs_of(index.search(query, 40)):
                parts = index.matched_terms(query, doc_id)
                assert np.float32(math.fsum(parts.values())) == score == index.score(query, doc_id)
                assert any(term.startswith("title:") for term in parts) <= bool(title)
        assert index.query_terms("word2 the word2 word3") == {"word2": 2, "word3": 1}
        assert index.matched_terms("word1", "none") == {}
        assert (index.score("word1", "none"), index.score("", "d1")) == (0.0, 0.0)
        assert (index.has_document("d7"), index.has_document("none")) == (True, False)


def test_batches_do_not_depend_on_the_number_of_threads(plain):
    queries = [
        Query(f"q{number}", text) for number, text in enumerate(["", *random_queries(3, 30)])
    ]
    with open_plain(plain) as index:
        expected = {query.query_id: pairs_of(index.search(query.text, 10)) for query in queries}
        for threads in (1, 3, 50):
            counted: list[int] = []
            run, seconds = index.search_batch(queries, 10, threads=threads, progress=counted.append)
            assert (run, list(run)) == (expected, [query.query_id for query in queries])
            assert (seconds.shape, seconds.dtype, seconds.min() > 0, sum(counted)) == (
                (31,),
                np.float64,
                True,
                31,
            )
        assert run["q0"] == []
        with pytest.raises(ConfigError, match="threads is 0"):
            index.search_batch(queries, 10, threads=0)


def test_the_query_itself_can_be_removed_without_losing_a_hit(plain):
    text = "t1 t2 t3"
    with open_plain(plain) as index:
        everything = pairs_of(index.search(text, 6))
        own = everything[2][0]
        run, _ = index.search_batch([Query(own, text), Query("other", text)], 5, remove_query=True)
    assert run[own] == [pair for pair in everything if pair[0] != own]
    assert run["other"] == everything[:5]


# --- counts ---


@pytest.mark.parametrize("threads", [1, 3])
def test_counts_add_up_and_lost_documents_are_named(tmp_path, threads):
    """d1 has no weights, d2 only one that rounds to nothing, d4 no text, d3 one lost and one
    clipped.
    """
    matrix = sparse.csr_matrix(
        np.array([[0, 5, 0], [0, 0, 0], [0, 0.004, 0], [0, 0.001, 999], [0, 1, 1], [0, 1, 1]])
    )
    made = make_vectors(
        tmp_path / "v", matrix, TermQueries(VOCABULARY[:3]), empty=[4], shard_size=2
    )
    manifest = builder.build_impact_index(
        made, tmp_path / "i", Rule(100, 255), TermQueries(VOCABULARY[:3]), threads=threads
    )
    assert manifest["counts"] == {
        "documents": 6, "indexed": 3, "empty": 2, "rounded_to_nothing": 1, "postings": 4,
        "sum_impacts": 255 + 255 + 100 + 100, "weights_rounded_to_zero": 2, "weights_clipped": 2,
    }  # fmt: skip
    lines = [
        json.loads(line) for line in (tmp_path / "i" / "unindexed.jsonl").read_text().splitlines()
    ]
    assert [(line["doc_id"], line["reason"]) for line in lines] == [
        ("d1", "no weights"),
        ("d2", "all weights rounded to zero"),
        ("d4", "no weights"),
    ]
    report = verification.verify_index(tmp_path / "i")
    assert report["ok"]
    assert (
        report["documents"]
        == report["indexed"] + report["empty"] + report["rounded_to_nothing"]
        == 6
    )
    assert report["sampled_documents"] == 3
    with Index(tmp_path / "i", query_encoder=TermQueries(VOCABULARY[:3])) as index:
        assert index.search("t1 t2", 10).doc_ids == ["d3", "d0", "d5"]


def test_a_collection_without_a_single_weight_gives_an_empty_index(tmp_path):
    queries = static_queries(np.ones(3))
    made = make_vectors(tmp_path / "v", sparse.csr_matrix((5, 3)), queries, shard_size=2)
    manifest = builder.build_impact_index(
        made, tmp_path / "i", builder.choose_rule(made, queries), queries, threads=2
    )
    assert (
        manifest["counts"]["documents"],
        manifest["counts"]["indexed"],
        manifest["counts"]["empty"],
    ) == (5, 0, 5)
    assert verification.verify_index(tmp_path / "i")["terms"] == 0
    with Index(tmp_path / "i") as index:
        assert index.search("t1", 10).doc_ids == []


def test_verification_of_a_good_index_counts_what_is_there(plain):
    report = verification.verify_index(plain / "index")
    filled = int((np.diff(MATRIX.indptr) > 0).sum())
    assert report["documents"] == ROWS
    assert (report["indexed"], report["postings"], report["sum_impacts"]) == (
        filled,
        MATRIX.nnz,
        int(MATRIX.sum()),
    )
    assert report["terms"] == len(set(MATRIX.indices.tolist()))
    assert report["sampled_documents"] >= NUM_SAMPLES
    assert report["bytes"] == sum(
        path.stat().st_size
        for path in (plain / "index").rglob("*")
        if path.is_file() and path.name != "manifest.json"
    )


def test_a_second_build_of_the_same_vectors_tells_the_same(plain, tmp_path):
    """Equal but for Lucene's own files, whose segments carry random ids by design."""
    made = Vectors(plain / "vectors")
    first = read_manifest(plain / "index")
    second = builder.build_impact_index(made, tmp_path / "i", Rule(1.0), TermQueries(VOCABULARY))
    for name in ("counts", "rule", "encoder", "query", "vocabulary_sha256"):
        assert first[name] == second[name]
    for name in ("doc_ids.txt", "doc_ids.npy", "samples.jsonl", "unindexed.jsonl"):
        assert first["files"][name] == second["files"][name]


@pytest.mark.parametrize("number", [0, 1, 7, -1])
def test_doc_ids_by_number(plain, number):
    kept = [
        doc_id for doc_id, filled in zip(DOC_IDS, np.diff(MATRIX.indptr) > 0, strict=True) if filled
    ]
    doc_ids, number = DocIds(plain / "index"), range(len(kept))[number]
    assert doc_ids[number] == kept[number]
    assert doc_ids.find([number, 0, number]) == [kept[number], kept[0], kept[number]]
    assert doc_ids.find([]) == []
    with pytest.raises(IndexError):
        doc_ids[len(kept)]


def test_doc_ids_of_any_script(tmp_path):
    doc_ids = ["\u00e9", "\U0001f600", "a" * 300, "\u4e2d\u6587", "0", "-1"]
    made = make_vectors(
        tmp_path / "v", random_matrix(1, 6, 3, 1.0, 1), TermQueries(VOCABULARY[:3]), doc_ids=doc_ids
    )
    builder.build_impact_index(made, tmp_path / "i", Rule(1.0), TermQueries(VOCABULARY[:3]))
    with Index(tmp_path / "i", query_encoder=TermQueries(VOCABULARY[:3])) as index:
        assert index.search("t1", 10).doc_ids == sorted(doc_ids, reverse=True)


# --- the rule ---


def test_rule_of_whole_numbers_keeps_them(plain):
    assert builder.choose_rule(vectors_of_json(plain), None) == Rule(1.0)


def vectors_of_json(root: Path) -> Vectors:
    """The plain vectors, exported and read back as somebody else's JSON vectors."""
    if not (root / "back").exists():
        json_vectors.export_json_vectors(Vectors(root / "vectors"), root / "json", Rule(1.0))
        json_vectors.import_json_vectors(root / "json", root / "back")
    return Vectors(root / "back")


def test_rules_by_hand(plain, folded):
    """Largest weight 4; folded, the largest product of a weight and a query weight."""
    neural, static = Vectors(plain / "vectors"), Vectors(folded / "vectors")
    queries = static.query_encoder()
    weights = np.linspace(0.2, 3.0, TERMS).astype(np.float32)
    weights[0] = 0
    largest = float((MATRIX.toarray() * weights).max())
    assert builder.choose_rule(neural, TermQueries(VOCABULARY)) == Rule(255 / 4, 255)
    assert builder.choose_rule(neural, TermQueries(VOCABULARY), bits=4) == Rule(15 / 4, 15)
    assert builder.choose_rule(neural, TermQueries(VOCABULARY), scale=50) == Rule(50, 65535)
    assert builder.choose_rule(neural, TermQueries(VOCABULARY), scale=50, bits=8) == Rule(50, 255)
    assert builder.choose_rule(static, queries, fold=False) == Rule(255 / 4, 255)
    rule = builder.choose_rule(static, queries)
    assert (rule.scale, rule.max_impact, rule.folded) == (
        pytest.approx(255 / largest, rel=1e-6),
        255,
        True,
    )


def test_rules_that_make_no_sense_are_refused(plain):
    made = Vectors(plain / "vectors")
    with pytest.raises(ConfigError, match=r"only static query weights .* can be folded"):
        builder.choose_rule(made, TermQueries(VOCABULARY), fold=True)
    for scale in (None, 10.0):
        with pytest.raises(ConfigError, match="bits is 17; it must be 2 to 16"):
            builder.choose_rule(made, None, bits=17, scale=scale)


# --- what does not fit ---


def test_another_query_side_is_refused(folded):
    weights = np.linspace(0.2, 3.0, TERMS)
    with pytest.raises(IndexMismatch, match=r"another query side: weights_sha256 differ"):
        Index(folded / "index", query_encoder=static_queries(weights * 2))
    with pytest.raises(IndexMismatch, match=r"another query side: name differ"):
        Index(folded / "index", query_encoder=static_queries(weights, "other name"))
    Index(folded / "index", query_encoder=static_queries(weights)).close()


def test_another_tokenizer_is_refused(folded):
    """Same vocabulary, same weights, but queries would be cut otherwise."""
    from tokenizers import normalizers

    from sparse_ir.models.static_queries import StaticQueryEncoder
    from sparse_ir.models.tokenization import read_tokenizer

    tokenizer = read_tokenizer(folded / "index" / "query" / "tokenizer.json")
    tokenizer.normalizer = normalizers.Lowercase()
    other = StaticQueryEncoder(
        tokenizer, np.linspace(0.2, 3.0, TERMS).astype(np.float32), "opensearch", name="small"
    )
    with pytest.raises(IndexMismatch, match=r"another query side: tokenizer_sha256 differ"):
        Index(folded / "index", query_encoder=other)


def test_another_vocabulary_is_refused(plain, folded, tmp_path):
    with pytest.raises(IndexMismatch, match="another vocabulary than this query encoder's"):
        Index(folded / "index", query_encoder=static_queries(np.ones(TERMS + 1)))
    with pytest.raises(
        IndexMismatch,
        match=r"another vocabulary \(41 tokens\) than the documents "
        r"\(40 tokens\)",
    ):
        builder.build_impact_index(
            Vectors(plain / "vectors"),
            tmp_path / "i",
            Rule(1.0),
            TermQueries(vocabulary_of_size(TERMS + 1)),
        )
    shuffled = TermQueries([VOCABULARY[0], *VOCABULARY[:0:-1]])
    with pytest.raises(IndexMismatch, match="another vocabulary"):
        builder.build_impact_index(Vectors(plain / "vectors"), tmp_path / "i", Rule(1.0), shuffled)
    assert list(tmp_path.iterdir()) == []


def test_another_rule_is_refused(plain):
    with pytest.raises(
        IndexMismatch,
        match=r"was built by Rule\(scale=1.0, .*, not by "
        r"Rule\(scale=2.0",
    ):
        open_plain(plain, rule=Rule(2.0))
    open_plain(plain, rule=Rule(1.0)).close()


def test_vectors_without_a_query_side_need_one_to_be_opened(plain, tmp_path):
    builder.build_impact_index(vectors_of_json(plain), tmp_path / "i", Rule(1.0), None)
    assert needs_query_encoder(tmp_path / "i")
    assert not needs_query_encoder(plain / "index")
    with pytest.raises(
        ConfigError, match="was built from vectors without a query side: name the query model"
    ):
        Index(tmp_path / "i")
    with Index(tmp_path / "i", query_encoder=TermQueries(VOCABULARY)) as index:
        for text in random_queries(4, 10):
            assert pairs_of(index.search(text, 10)) == exact_pairs(
                as_row(text), MATRIX, DOC_IDS, 10
            )


def test_bm25_takes_no_query_side(bm25):
    with pytest.raises(IndexMismatch, match="is a BM25 index and takes no query encoder"):
        Index(bm25 / "index", query_encoder=TermQueries(VOCABULARY))
    with pytest.raises(IndexMismatch, match="is a BM25 index and takes no query encoder"):
        Index(bm25 / "index", query_model="some/model")


def test_folders_that_are_no_index(tmp_path, plain):
    for folder in (tmp_path, tmp_path / "missing", plain / "vectors"):
        with pytest.raises(
            DamagedError,
            match=r"is no index of this package|holds vectors, not an index",
        ):
            Index(folder)


@pytest.mark.parametrize("content", ["file", "folder"])
def test_something_else_in_the_place_of_the_output_stays(plain, tmp_path, content):
    output = tmp_path / "thesis"
    if content == "file":
        output.write_text("years of work")
    else:
        output.mkdir()
        (output / "chapter1.txt").write_text("years of work")
    made = Vectors(plain / "vectors")
    with pytest.raises(
        ConfigError, match="thesis exists and is not an index; choose another output"
    ):
        builder.build_impact_index(made, output, Rule(1.0), None)
    with pytest.raises(ConfigError, match="thesis exists and is not an index"):
        bm25_builder.build_bm25_index(lambda: [Document("a", "", "b")], output)
    assert (output if content == "file" else output / "chapter1.txt").read_text() == "years of work"
    assert list(tmp_path.iterdir()) == [output]


def test_an_empty_folder_and_a_link_are_good_places(plain, tmp_path):
    made = Vectors(plain / "vectors")
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    for _ in range(2):
        builder.build_impact_index(made, tmp_path / "link", Rule(1.0), None)
        assert (tmp_path / "link").is_symlink()
        assert verification.verify_index(tmp_path / "real")["ok"]
        assert {path.name for path in tmp_path.iterdir()} == {"real", "link", ".real.lock"}


def test_a_text_that_reads_badly_leaves_no_index(tmp_path):
    def read() -> Any:
        yield Document("a", "", "good")
        raise ValueError("the corpus ends here")

    with pytest.raises(ValueError, match="the corpus ends here"):
        bm25_builder.build_bm25_index(read, tmp_path / "i")
    assert [path.name for path in tmp_path.iterdir()] == [".i.lock"]


# --- runs ---


def test_the_order_survives_a_run_file_and_is_that_of_trec_eval(plain, tmp_path):
    """For each hit trec_eval is asked for the rank of that document: it must be our rank, ties
    included.
    """
    queries = [Query(f"q{number}", text) for number, text in enumerate(random_queries(5, 6))]
    with open_plain(plain) as index:
        run, _ = index.search_batch(queries, 60)
    runs.write_run(tmp_path / "run.trec", run)
    assert runs.read_run(tmp_path / "run.trec") == run
    tied = 0
    for query_id, hits in run.items():
        scores = dict(hits)
        tied += len(scores) - len(set(scores.values()))
        for rank, (doc_id, _) in enumerate(hits, 1):
            evaluator = pytrec_eval.RelevanceEvaluator({query_id: {doc_id: 1}}, {"recip_rank"})
            measured = evaluator.evaluate({query_id: scores})
            assert measured[query_id]["recip_rank"] == pytest.approx(1 / rank, rel=1e-12)
    assert tied > 100, "the example must hold ties"


def test_constructed_ties(tmp_path):
    """One value everywhere: documents come in descending order of their ids, "d9" before "d10", as
    in trec_eval.
    """
    doc_ids = ["d10", "d9", "D9", "d", "\u00e9", "z", "10", "9"]
    matrix = sparse.csr_matrix(np.ones((8, 2), dtype=np.float32))
    made = make_vectors(tmp_path / "v", matrix, TermQueries(VOCABULARY[:2]), doc_ids=doc_ids)
    builder.build_impact_index(made, tmp_path / "i", Rule(1.0), TermQueries(VOCABULARY[:2]))
    with Index(tmp_path / "i", query_encoder=TermQueries(VOCABULARY[:2])) as index:
        assert index.search("t1", 8).doc_ids == ["\u00e9", "z", "d9", "d10", "d", "D9", "9", "10"]
        for k in range(1, 8):
            assert index.search("t1", k).doc_ids == index.search("t1", 8).doc_ids[:k]


# --- Pyserini ---


@pytest.fixture(scope="module")
def pyserini() -> Any:
    """Pyserini's searchers on our virtual machine."""
    return java.import_pyserini()


class PyseriniQueries:
    """The query encoder that Pyserini is given: any object with ``encode(text) -> {token: whole
    number}``.
    """

    def encode(self, text: str) -> dict[str, int]:
        token_ids, weights = TermQueries(VOCABULARY).encode(text)
        return {VOCABULARY[i]: int(weight) for i, weight in zip(token_ids, weights, strict=True)}


@pytest.mark.parametrize("k", [5, 50, 1000])
def test_pyserini_opens_our_impact_index(plain, pyserini, k):
    """Same scores, hit by hit. Among equal scores Pyserini orders by id ascending, this package
    descending: so which of the documents that tie with the last hit are shown differs, and nothing
    else. Pyserini then takes a millionth off for each place among equal scores (so that trec_eval
    keeps its order), hence the rounding."""
    theirs = pyserini.LuceneImpactSearcher(str(plain / "index" / "lucene"), PyseriniQueries())
    with open_plain(plain) as index:
        for text in random_queries(6, 15):
            ours, found = index.search(text, k), theirs.search(text, k)
            assert [round(hit.score, 3) for hit in found] == ours.scores.tolist()
            everything = exact_pairs(as_row(text), MATRIX, DOC_IDS, ROWS)
            by_their_order = sorted(everything, key=lambda pair: (-pair[1], pair[0]))[:k]
            assert [(hit.docid, round(hit.score, 3)) for hit in found] == by_their_order


def test_pyserini_opens_our_bm25_index(bm25, pyserini):
    """Pyserini shows scores rounded to four decimals."""
    theirs = pyserini.LuceneSearcher(str(bm25 / "index" / "lucene"))
    with Index(bm25 / "index") as index:
        for text in ("red fox", "wine", "foxes jumping", "the dogs", "the", "slept nothing red"):
            ours = index.search(text, 10)
            found = {hit.docid: hit.score for hit in theirs.search(text, 10)}
            assert dict(pairs_of(ours)) == pytest.approx(found, abs=6e-5)
        assert index.search("red fox").doc_ids[0] in ("b1", "b5")
        assert index.manifest["counts"] == {"documents": 6, "indexed": 5, "empty": 1}
    assert verification.verify_index(bm25 / "index")["ok"]


def test_our_reader_opens_an_index_that_pyserini_built(plain, tmp_path):
    """Pyserini's own indexer, run as ``python -m pyserini.index.lucene``, from our exported
    vectors.
    """
    vectors_of_json(plain)
    indexer = """
        import runpy, sys
        from sparse_ir.engines.lucene import java
        java.start()
        sys.argv[0] = "pyserini.index.lucene"
        runpy.run_module("pyserini.index.lucene", run_name="__main__")
"""
    for threads in (1, 2):
        output = tmp_path / str(threads)
        done = run_python(
            indexer,
            "--collection",
            "JsonVectorCollection",
            "--input",
            plain / "json",
            "--index",
            output,
            "--generator",
            "DefaultLuceneDocumentGenerator",
            "--threads",
            threads,
            "--impact",
            "--pretokenized",
        )
        assert done.returncode == 0, done.stderr[-500:]
        assert is_lucene_folder(output)
        with Index(output, query_encoder=TermQueries(VOCABULARY), rule=Rule(1.0)) as index:
            for text in random_queries(7, 15):
                for k in (3, 40, ROWS):
                    assert pairs_of(index.search(text, k)) == exact_pairs(
                        as_row(text), MATRIX, DOC_IDS, k
                    )
        for options in ({}, {"query_encoder": TermQueries(VOCABULARY)}, {"rule": Rule(1.0)}):
            with pytest.raises(
                ConfigError, match="is a bare Lucene index: name the query model and the scale"
            ):
                Index(output, **options)


# --- many threads ---


def test_many_threads_on_three_indexes_answer_like_one(plain, folded, bm25):
    """4,800 searches over three open indexes by 16 threads that change places as often as Python
    lets them.
    """
    opened = [open_plain(plain), Index(folded / "index"), Index(bm25 / "index")]
    words = ["red fox", "wine", "dogs", "nothing", "the"]
    texts = [random_queries(8, 25), random_queries(9, 25, weighted=False), words]
    expected = [
        [pairs_of(index.search(text, 8)) for text in part]
        for index, part in zip(opened, texts, strict=True)
    ]
    wrong: list[tuple[int, str]] = []

    def work(seed: int) -> None:
        draw = random.Random(seed)
        for _ in range(300):
            which = seed % 3
            number = draw.randrange(len(texts[which]))
            if pairs_of(opened[which].search(texts[which][number], 8)) != expected[which][number]:
                wrong.append((which, texts[which][number]))

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        run_threads([lambda seed=seed: work(seed) for seed in range(16)], detach_thread)
    finally:
        sys.setswitchinterval(interval)
    assert wrong == []
    for index in opened:
        index.close()


def test_building_and_searching_at_once_do_not_mix(plain, tmp_path):
    """Writers and readers share Java classes too: two builds and three
    searchers at the same time.
    """
    made = Vectors(plain / "vectors")
    wrong: list[str] = []
    with open_plain(plain) as index:
        texts = random_queries(10, 30)
        expected = {text: pairs_of(index.search(text, 8)) for text in texts}

        def search(seed: int) -> None:
            for text in random.Random(seed).choices(texts, k=150):
                if pairs_of(index.search(text, 8)) != expected[text]:
                    wrong.append(text)

        def build(name: str) -> None:
            builder.build_impact_index(made, tmp_path / name, Rule(1.0), None, threads=2)

        tasks = [lambda name=name: build(name) for name in "ab"] + [
            lambda seed=seed: search(seed) for seed in range(3)
        ]
        run_threads(tasks, detach_thread)
    assert wrong == []
    for name in "ab":
        assert verification.verify_index(tmp_path / name)["sum_impacts"] == int(MATRIX.sum())


@pytest.mark.parametrize("kind", ["impact", "bm25"])
def test_what_is_no_question_is_refused_in_one_sentence(folded, tmp_path, kind):
    folder = folded / "index"
    if kind == "bm25":
        folder = tmp_path / "bm25"
        bm25_builder.build_bm25_index(lambda: [Document("d1", "", "t1")], folder)
    with Index(folder) as opened:
        for k in (0, -1, None, "10", 10.0, float("nan")):
            for text in ("", "t1"):
                with pytest.raises(DataError, match="it must be a whole number, at least 1"):
                    opened.search(text, k)
        assert len(opened.search("t1", np.int64(1)).doc_ids) == 1
        with pytest.raises(DataError, match=r"lone surrogate .* at character 3"):
            opened.search("t1 \ud800")
        with pytest.raises(DataError, match="None is a NoneType; it must be a text"):
            opened.search(None)
    with pytest.raises(ClosedError, match="closed"):
        opened.search("t1")


def test_a_closed_index_leaves_nothing_behind(folded):
    """No cycle keeps it: a searcher that opens version after version would wait for the collector
    with each.
    """
    opened = Index(folded / "index")
    assert len(opened.search("t1 t2", 5).doc_ids)
    kept = [weakref.ref(opened), weakref.ref(opened._ranker)]
    gc.disable()
    try:
        opened.close()
        del opened
        assert [reference() for reference in kept] == [None, None]
    finally:
        gc.enable()
