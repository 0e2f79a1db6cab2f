"""The field ``bm25``: Lucene's own weights, from any language, for exactly the encoded documents."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from made_texts import made_documents, made_queries

from sparse_ir.data.records import Document
from sparse_ir.engines.lucene import java
from sparse_ir.engines.lucene.analysis import (
    ANALYZERS,
    LANGUAGES,
    AnalyzerSettings,
    TextAnalyzer,
)
from sparse_ir.engines.lucene.bm25 import Bm25, Bm25Reader, analyze, write_texts
from sparse_ir.errors import ConfigError, DataError, IndexMismatch, JavaError
from sparse_ir.indexing.bm25_field import (
    Bm25Settings,
    Bm25Weights,
    coded_lengths,
    weigh_documents,
)
from sparse_ir.indexing.quantization import Rule, quantize

DOCUMENTS = made_documents(1, 1100)
QUERIES = made_queries(2, 60)


def scores_of(weights: Bm25Weights, text: str, rule: Rule | None = None) -> dict[str, float]:
    """doc_id -> the sum of the weights, or of the impacts, of a query's words."""
    places = {term: place for place, term in enumerate(weights.vocabulary)}
    query = np.zeros(len(weights.vocabulary))
    for term in TextAnalyzer(weights.settings.analyzer_settings).terms(text):
        if term in places:
            query[places[term]] += 1
    scores = {}
    for number in range(weights.num_shards):
        doc_ids, matrix = weights.read_shard(number)
        if rule is not None:
            matrix = quantize(matrix, rule).impacts
        for doc_id, score in zip(doc_ids, (matrix @ query).tolist(), strict=True):
            if score:
                scores[doc_id] = score
    return scores


def best(scores: dict[str, float], k: int) -> list[str]:
    ranked = sorted(scores.items(), key=lambda hit: (hit[1], hit[0]), reverse=True)
    return [doc_id for doc_id, _ in ranked[:k]]


def test_lengths_are_coded_as_in_lucenes_byte() -> None:
    small_float = java.java_class("org.apache.lucene.util.SmallFloat")
    lengths = [*range(300), 1000, 4095, 4096, 65_535, 10**6, 2**30]
    expected = []
    for length in lengths:
        byte = small_float.intToByte4(length)
        expected.append(small_float.byte4ToInt(byte))
    assert coded_lengths(np.array(lengths)).tolist() == expected


@pytest.mark.parametrize("parameters", [(0.9, 0.4), (1.2, 0.75), (0.0, 0.0), (2.0, 1.0)])
def test_the_weights_add_up_to_lucenes_scores(
    parameters: tuple[float, float], tmp_path: Path
) -> None:
    k1, b = parameters
    texts = ((document.doc_id, document.contents) for document in DOCUMENTS if document.contents)
    write_texts(tmp_path / "lucene", texts, Bm25(k1, b))
    weights = weigh_documents(DOCUMENTS, tmp_path / "words", Bm25Settings(k1, b))
    with Bm25Reader(tmp_path / "lucene", Bm25(k1, b)) as reader:
        for text in QUERIES[:20]:
            hits = reader.search(text, len(DOCUMENTS))
            ours = scores_of(weights, text)
            assert set(hits.doc_ids) == set(ours)
            theirs = [ours[doc_id] for doc_id in hits.doc_ids]
            assert hits.scores.tolist() == pytest.approx(theirs, rel=1e-5)


def test_impacts_of_nine_bits_keep_lucenes_ranking(tmp_path: Path) -> None:
    texts = ((document.doc_id, document.contents) for document in DOCUMENTS if document.contents)
    write_texts(tmp_path / "lucene", texts, Bm25())
    weights = weigh_documents(DOCUMENTS, tmp_path / "words", Bm25Settings())
    rule = Rule(511 / weights.largest_weight(), 511)
    kept = []
    with Bm25Reader(tmp_path / "lucene") as reader:
        for text in QUERIES:
            theirs = set(reader.search(text, 10).doc_ids)
            ours = set(best(scores_of(weights, text, rule), 10))
            kept.append(len(ours & theirs) / len(theirs))
    assert np.mean(kept) >= 0.985


def test_the_share_multiplies_every_weight(tmp_path: Path) -> None:
    whole = weigh_documents(DOCUMENTS, tmp_path / "a", Bm25Settings())
    half = weigh_documents(DOCUMENTS, tmp_path / "b", Bm25Settings(share=0.5))
    assert np.allclose(2 * half.read_shard(1)[1].data, whole.read_shard(1)[1].data)
    assert half.largest_weight() == pytest.approx(whole.largest_weight() / 2)
    assert whole.num_shards == 2
    assert len(whole) == len(DOCUMENTS)


def test_no_text_gives_no_weight(tmp_path: Path) -> None:
    empty = [Document("a", "", ""), Document("b", "the", "of and")]
    weights = weigh_documents(empty, tmp_path, Bm25Settings())
    doc_ids, matrix = weights.read_shard(0)
    assert doc_ids == ["a", "b"]
    assert matrix.nnz == 0
    assert weights.counts.documents == weights.counts.tokens == 0
    assert weights.largest_weight() == 0.0
    assert weigh_documents([], tmp_path / "none", Bm25Settings()).num_shards == 0


def test_every_language_of_lucene_can_be_chosen() -> None:
    for language in LANGUAGES:
        analyzer = TextAnalyzer(AnalyzerSettings(language=language))
        try:
            assert "3" in analyzer.terms("Berlin 3"), language
        except JavaError as error:  # a small Java runtime has no word breaks for Thai
            assert language == "th" and "Thai" in str(error)
    german = TextAnalyzer(AnalyzerSettings(language="de"))
    assert german.terms("Die Häuser der Städte") == ["haus", "stadt"]
    assert TextAnalyzer(AnalyzerSettings(language="ja")).terms("日本語の文章") == ["日本語", "文章"]


def test_two_analyzers_know_no_language() -> None:
    assert ANALYZERS == ("language", "standard", "whitespace")
    text = "The Running-Dogs"
    assert TextAnalyzer(AnalyzerSettings("standard")).terms(text) == ["the", "running", "dogs"]
    assert TextAnalyzer(AnalyzerSettings("whitespace")).terms(text) == ["The", "Running-Dogs"]
    assert TextAnalyzer().terms(text) == next(analyze([text])) == ["run", "dog"]
    assert TextAnalyzer().terms('a "quoted" \n back\\slash \U0001f600') == next(
        analyze(['a "quoted" \n back\\slash \U0001f600'])
    )
    with pytest.raises(DataError, match="lone surrogate"):
        TextAnalyzer().terms("a \ud800 b")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"k1": -1.0}, "k1 is -1.0; it must be at least 0"),
        ({"b": 1.5}, "b is 1.5; it must be between 0 and 1"),
        ({"share": 0.0}, "the share of BM25 is 0.0; it must be above 0"),
        ({"analyzer": "porter"}, "analyzer is 'porter'; it must be one of language, standard"),
        ({"language": "xx"}, "language is 'xx'; it must be one of ar, bg"),
    ],
)
def test_a_setting_out_of_range_is_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Bm25Settings(**settings)  # type: ignore[arg-type]


def test_settings_survive_the_manifest() -> None:
    settings = Bm25Settings(1.2, 0.75, "standard", "de", 0.5)
    assert Bm25Settings.from_json(settings.to_json()) == settings


@pytest.mark.parametrize(
    ("shards", "message"),
    [
        ([["a", "b"], ["d"]], "document 3 of the texts is 'c', that of the vectors is 'd'"),
        ([["a", "b"], ["c", "d"]], "the texts end after 3 documents, but the vectors go on with"),
        ([["a", "b"]], "the vectors end after 2 documents, but the texts go on with 'c'"),
    ],
)
def test_the_texts_must_be_those_of_the_vectors(
    shards: list[list[str]], message: str, tmp_path: Path
) -> None:
    documents = [Document(name, "", name) for name in "abc"]
    with pytest.raises(IndexMismatch, match=message):
        weigh_documents(documents, tmp_path, Bm25Settings(), shards)


def test_shards_follow_the_vectors(tmp_path: Path) -> None:
    documents = [Document(name, "", f"{name}{name} word") for name in "abc"]
    weights = weigh_documents(documents, tmp_path, Bm25Settings(), [["a"], ["b", "c"]])
    assert [weights.read_shard(number)[0] for number in range(2)] == [["a"], ["b", "c"]]
    assert weights.vocabulary == ["aa", "word", "bb", "cc"]
    assert weights.counts.frequencies.tolist() == [1, 3, 1, 1]
