"""BM25 beside the sparse field in one index: three rankings, each exact, in every engine."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from made_texts import made_documents, made_queries
from scipy import sparse
from small_indexes import pairs_of

import sparse_ir
from sparse_ir.data.records import Document
from sparse_ir.engines.base import BM25, SPARSE
from sparse_ir.engines.lucene import java
from sparse_ir.engines.lucene.analysis import TextAnalyzer
from sparse_ir.errors import ConfigError, DamagedError, IndexMismatch, ModelError
from sparse_ir.indexing import builder, encoding, verification
from sparse_ir.indexing.bm25_field import Bm25Settings, Bm25Weights, weigh_documents
from sparse_ir.indexing.manifest import read_manifest
from sparse_ir.indexing.quantization import Rule, quantize, quantize_query
from sparse_ir.indexing.statistics import Statistics
from sparse_ir.indexing.vectors import Vectors
from sparse_ir.models.catalog import find_bm25_share
from sparse_ir.models.lexical import LexicalEncoder
from sparse_ir.retrieval.encoded_query import HybridQuery
from sparse_ir.retrieval.options import SearchOptions
from sparse_ir.retrieval.searcher import Index

DOCUMENTS = made_documents(5, 330)
QUERIES = made_queries(6, 12)
RANKINGS = ("sparse", "bm25", "hybrid")


class Made(NamedTuple):
    """A collection: its vectors, and an index of both fields for each engine and kind of rule."""

    root: Path
    vectors: Vectors
    words: Bm25Weights
    rules: dict[str, Rule]

    def index(self, engine: str, rule: str) -> Path:
        return self.root / f"{engine}-{rule}"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    root = tmp_path_factory.mktemp("hybrid")
    write_corpus(root / "corpus", DOCUMENTS)
    encoder = LexicalEncoder.fit(lambda: (document.contents for document in DOCUMENTS))
    vectors = encoding.write_vectors(
        root / "vectors",
        lambda: DOCUMENTS,
        encoder,
        query_encoder=encoder.query_encoder(),
        shard_size=100,
    )
    shards = [vectors.read_shard(number)[0] for number in range(vectors.num_shards)]
    words = weigh_documents(DOCUMENTS, root / "words", Bm25Settings(share=0.5), shards)
    queries = vectors.query_encoder()
    rules = {}
    for name, fold in (("folded", True), ("plain", False)):
        rules[name] = builder.choose_rule(vectors, queries, fold=fold, bm25=words)
    made = Made(root, vectors, words, rules)
    for engine in ("lucene", "exact"):
        for name, rule in rules.items():
            place = made.index(engine, name)
            builder.build_impact_index(
                vectors, place, rule, queries, bm25=words, engine=engine, forward_index=True
            )
    return made


def write_corpus(folder: Path, documents: Sequence[Document]) -> None:
    folder.mkdir()
    with (folder / "corpus.jsonl").open("w") as stream:
        for document in documents:
            record = {"_id": document.doc_id, "title": document.title, "text": document.text}
            stream.write(json.dumps(record) + "\n")


def impacts_of(made: Made, rule: Rule) -> tuple[list[str], sparse.csr_matrix, sparse.csr_matrix]:
    """doc_ids, and the impacts of both fields, worked out without the builder."""
    doc_ids = []
    parts: dict[str, list[sparse.csr_matrix]] = {SPARSE: [], BM25: []}
    query_encoder = made.vectors.query_encoder()
    folded = builder.folded_weights(query_encoder, rule)
    for number in range(made.vectors.num_shards):
        names, weights = made.vectors.read_shard(number)
        doc_ids.extend(names)
        parts[SPARSE].append(quantize(weights, rule, folded).impacts)
        of_words = made.words.read_shard(number)[1]
        plain = Rule(rule.scale, rule.max_impact)
        parts[BM25].append(quantize(of_words, plain).impacts)
    return doc_ids, sparse.vstack(parts[SPARSE]).tocsr(), sparse.vstack(parts[BM25]).tocsr()


def brute_force(made: Made, rule: Rule, text: str, ranking: str, k: int) -> list[tuple[str, float]]:
    """The best documents by a full scan, with the tie rule."""
    doc_ids, sparse_impacts, word_impacts = impacts_of(made, rule)
    scores = np.zeros(len(doc_ids))
    if ranking != "bm25":
        encoder = made.vectors.query_encoder()
        assert encoder is not None
        token_ids, weights = encoder.encode(text)
        kept, boosts = quantize_query(token_ids, weights, rule)
        scores += sparse_impacts[:, kept] @ boosts
    if ranking != "sparse":
        places = {term: place for place, term in enumerate(made.words.vocabulary)}
        query = np.zeros(len(places))
        for term in TextAnalyzer().terms(text):
            if term in places:
                query[places[term]] += 1
        scores += word_impacts @ np.rint(query * (1.0 if rule.folded else rule.scale))
    hits = [(doc_ids[row], float(scores[row])) for row in np.flatnonzero(scores)]
    return sorted(hits, key=lambda hit: (hit[1], hit[0]), reverse=True)[:k]


@pytest.mark.parametrize("rule", ["folded", "plain"])
@pytest.mark.parametrize("engine", ["lucene", "exact"])
@pytest.mark.parametrize("ranking", RANKINGS)
def test_every_ranking_equals_brute_force(made: Made, engine: str, rule: str, ranking: str) -> None:
    with Index(made.index(engine, rule), ranking=ranking) as index:
        assert index.ranking == ranking
        for text in QUERIES:
            for k in (3, 40):
                expected = brute_force(made, made.rules[rule], text, ranking, k)
                assert pairs_of(index.search(text, k)) == expected


def test_the_scale_is_shared_and_fills_nine_bits(made: Made) -> None:
    rule = made.rules["folded"]
    assert rule.max_impact == 511
    _, sparse_impacts, word_impacts = impacts_of(made, rule)
    assert max(sparse_impacts.max(), word_impacts.max()) == 511


@pytest.mark.parametrize("engine", ["lucene", "exact"])
def test_contributions_of_both_kinds_add_up(made: Made, engine: str) -> None:
    with Index(made.index(engine, "plain")) as index:
        text = QUERIES[3]
        query = index.encode(text)
        assert isinstance(query, HybridQuery)
        assert {name for name in query.terms if name.startswith("bm25:")} == {
            f"bm25:{term}" for term in TextAnalyzer().terms(text)
        }
        hits = index.search(query, 5)
        for doc_id, score in pairs_of(hits):
            parts = index.matched_terms(query, doc_id)
            assert sum(parts.values()) == score == index.score(query, doc_id)
            assert any(name.startswith("bm25:") for name in parts)
            assert any(not name.startswith("bm25:") for name in parts)


def test_a_repeated_word_counts_twice(made: Made) -> None:
    word = QUERIES[0].split()[0]
    with Index(made.index("lucene", "folded"), ranking="bm25") as index:
        once = dict(pairs_of(index.search(word, 20)))
        doubled = index.encode(f"{word} {word}")
        hits = index.search(doubled, 20)
        twice = dict(pairs_of(hits))
        explain = index._ranker.explainer(doubled)
        for number, doc_id in enumerate(hits.doc_ids):
            parts = explain(index._ranker._reader.search(doubled.engine_query, 20).numbers[number])
            assert sum(parts.values()) == twice[doc_id]
    assert once
    assert twice == {doc_id: 2 * score for doc_id, score in once.items()}


def test_explain_shows_both_kinds(made: Made) -> None:
    place = made.index("lucene", "folded")
    report = sparse_ir.explain(
        place, QUERIES[1], input=made.root / "corpus", vectors=made.root / "vectors"
    )
    assert report["ranking"] == "hybrid"
    for document in report["documents"]:
        assert document["sum_of_contributions"] == document["score"]
        kinds = {term.startswith("bm25:") for term in document["terms"]}
        assert kinds == {True, False}
        for term, facts in document["terms"].items():
            if term.startswith("bm25:"):
                assert facts["in_query"] and facts["in_document"]
        assert document["score_before_rounding"] == pytest.approx(document["score"], abs=10)
    alone = sparse_ir.explain(place, QUERIES[1], ranking="bm25", input=made.root / "corpus")
    assert not any(term.startswith("bm25:") for term in alone["query_terms"])
    with pytest.raises(ConfigError, match="is ranked by BM25 alone"):
        sparse_ir.explain(place, QUERIES[1], ranking="bm25", vectors=made.root / "vectors")


@pytest.mark.parametrize("rule", ["folded", "plain"])
@pytest.mark.parametrize("ranking", RANKINGS)
def test_two_phases_give_exact_scores(made: Made, rule: str, ranking: str) -> None:
    options = SearchOptions(mass=0.6, candidates=10)
    with Index(made.index("lucene", rule), ranking=ranking) as index:
        for text in QUERIES[:6]:
            found = pairs_of(index.search(text, 5, options))
            assert len(found) == 5
            assert found == [(doc_id, index.score(text, doc_id)) for doc_id, _ in found]
            assert found == sorted(found, key=lambda hit: (hit[1], hit[0]), reverse=True)
            fewer = index.search(text, 5, SearchOptions(top_terms=1))
            assert len(fewer.doc_ids) <= 5
            assert index.count_postings(text) > 0


def test_verify_reads_both_fields(made: Made, tmp_path: Path) -> None:
    place = made.index("lucene", "folded")
    report = verification.verify_index(place)
    assert report["ok"]
    fields = read_manifest(place)["fields"]
    assert list(fields) == [SPARSE, BM25]
    assert report["postings"] == sum(counts["postings"] for counts in fields.values())
    record = Statistics.load(place)
    assert record.frequencies[BM25].sum() == fields[BM25]["postings"]
    assert record.texts is not None
    assert record.texts.tokens == made.words.counts.tokens
    broken = tmp_path / "broken"
    shutil.copytree(place, broken)
    record_path = broken / "statistics.json"
    record_path.write_text(record_path.read_text().replace('"tokens": ', '"tokens": 1'))
    with pytest.raises(DamagedError):
        verification.verify_index(broken)
    with pytest.raises(DamagedError):
        Statistics.load(broken)


def test_a_document_with_words_alone_is_indexed(tmp_path: Path) -> None:
    documents = [
        Document("a", "", "red fox"),
        Document("b", "", "grey wolf"),
        Document("c", "", ""),
    ]
    encoder = LexicalEncoder.fit(lambda: ["red fox"])
    vectors = encoding.write_vectors(
        tmp_path / "v", lambda: documents, encoder, query_encoder=encoder.query_encoder()
    )
    words = weigh_documents(documents, tmp_path / "w", Bm25Settings(), [["a", "b", "c"]])
    queries = vectors.query_encoder()
    rule = builder.choose_rule(vectors, queries, fold=False, bm25=words)
    manifest = builder.build_impact_index(vectors, tmp_path / "i", rule, queries, bm25=words)
    assert manifest["counts"]["indexed"] == 2
    assert manifest["counts"]["empty"] == 1
    with Index(tmp_path / "i") as index:
        assert index.search("wolf").doc_ids == ["b"]
        assert index.search("the").doc_ids == []
    with Index(tmp_path / "i", ranking="sparse") as index:
        assert index.search("fox").doc_ids == ["a"]


def test_the_commands_make_search_and_refuse(made: Made, tmp_path: Path) -> None:
    corpus = made.root / "corpus"
    (tmp_path / "queries.jsonl").write_text(
        "".join(
            json.dumps({"_id": f"q{number}", "text": text}) + "\n"
            for number, text in enumerate(QUERIES)
        )
    )
    both = tmp_path / "both"
    report = sparse_ir.index(made.root / "vectors", both, input=corpus, share=2.0, language="de")
    assert report["bm25"]["share"] == 2.0
    assert report["bm25"]["language"] == "de"
    assert list(report["fields"]) == ["sparse", "bm25"]
    for ranking in (None, *RANKINGS):
        found = sparse_ir.search(
            both, tmp_path / "queries.jsonl", tmp_path / "run.trec", ranking=ranking, hits=5
        )
        assert found["ranking"] == (ranking or "hybrid")
    alone = tmp_path / "alone"
    sparse_ir.index(made.root / "vectors", alone, fields="sparse")
    assert "fields" not in read_manifest(alone)
    assert json.loads((alone / "statistics.json").read_text())["format"] == 1
    with Index(alone) as index:
        assert index.ranking == "sparse"
    with pytest.raises(ConfigError, match=r"the ranking is 'hybrid'; for .* it must be sparse"):
        Index(alone, ranking="hybrid")
    words = tmp_path / "words"
    made_of_words = sparse_ir.build("default", str(corpus), words, fields="bm25")
    assert "vectors" not in made_of_words
    with Index(words) as index:
        assert index.ranking == "bm25"
        assert index.query_encoder is None
        assert index.search(QUERIES[0]).doc_ids
    with pytest.raises(ConfigError, match="field 'words' is unknown"):
        sparse_ir.index(made.root / "vectors", alone, fields="words")
    write_corpus(tmp_path / "other", DOCUMENTS[1:])
    with pytest.raises(IndexMismatch, match="document 1 of the texts is"):
        sparse_ir.index(made.root / "vectors", alone, input=tmp_path / "other")
    exact = sparse_ir.index(made.root / "vectors", tmp_path / "e", input=corpus, engine="exact")
    assert exact["note"].startswith("sparse field only: BM25 reads texts")


def test_pyserini_finds_the_sparse_ranking(made: Made) -> None:
    place = made.index("lucene", "folded")
    searcher_class = java.java_class("io.anserini.search.SimpleImpactSearcher")
    searcher = searcher_class(str(place / "lucene"))
    with Index(place, ranking="sparse") as index:
        for text in QUERIES[:4]:
            boosts = java.java_class("java.util.HashMap")()
            for token, impact in index.encode_query(text).items():
                boost = java.java_class("java.lang.Integer")(impact)
                boosts.put(token, boost)
            # Pyserini orders ties the other way round, and takes a millionth off for each place
            theirs = [round(hit.score) for hit in searcher.search(boosts, 10)]
            assert theirs == index.search(text, 10).scores.tolist()
    searcher.close()


def test_a_share_is_found_from_queries_or_judgements(made: Made, tmp_path: Path) -> None:
    place = made.index("lucene", "folded")
    queries = tmp_path / "queries.jsonl"
    lines = []
    for number, text in enumerate(QUERIES):
        lines.append(json.dumps({"_id": f"q{number}", "text": text}) + "\n")
    queries.write_text("".join(lines))
    plain = sparse_ir.tune(place, queries, share=True)
    assert plain["share_now"] == 0.5
    assert plain["found_by"] == "heights"
    heights = {}
    for ranking in ("sparse", "bm25"):
        with Index(place, ranking=ranking) as index:
            best = [index.search(text, 10).scores.mean() for text in QUERIES]
            heights[ranking] = np.mean(best)
    expected = heights["sparse"] / (heights["bm25"] / 0.5) * 0.4 / 0.6
    assert plain["share"] == pytest.approx(expected, abs=0.01)
    # each query is judged to want what BM25 alone finds first
    with Index(place, ranking="bm25") as index, (tmp_path / "qrels.tsv").open("w") as stream:
        stream.write("query-id\tcorpus-id\tscore\n")
        for number, text in enumerate(QUERIES):
            stream.write(f"q{number}\t{index.search(text, 1).doc_ids[0]}\t1\n")
    judged = sparse_ir.tune(place, queries, share=True, qrels=tmp_path / "qrels.tsv")
    assert judged["found_by"] == "judgements"
    values = judged["nDCG@10"]
    assert values[str(judged["share"])] >= max(values.values()) - 0.001
    assert values["3.0"] > values["0.25"]
    with pytest.raises(ConfigError, match="tune needs a budget"):
        sparse_ir.tune(place, queries)
    with pytest.raises(ConfigError, match="a share is found without a budget"):
        sparse_ir.tune(place, queries, "p50 <= 2 ms", share=True)


def test_a_model_states_its_share_in_its_card(tmp_path: Path) -> None:
    assert find_bm25_share("default") == find_bm25_share(str(tmp_path)) == 1.0
    card = tmp_path / "README.md"
    card.write_text("---\nlicense: mit\nbm25_share: 0.5\n---\n# A model\n")
    assert find_bm25_share(str(tmp_path)) == 0.5
    card.write_text("---\nbm25_share: half\n---\n")
    with pytest.raises(ModelError, match="bm25_share is 'half'; it must be a number above 0"):
        find_bm25_share(str(tmp_path))
