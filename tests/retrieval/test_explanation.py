"""The verb ``explain``: parts that add up to the engine's score, expansions, what was lost, and its
page.
"""

from __future__ import annotations

import html
import json
import math
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import PDF, needs_chromium, run_chromium
from made_rows import HOSTILE
from scipy import sparse
from shell import error_of, report_of, run_command, write_collection, write_lines
from small_indexes import make_vectors, random_matrix, shuffled_ids, static_queries

from sparse_ir.commands import indexing
from sparse_ir.commands.searching import explain
from sparse_ir.data import readers
from sparse_ir.data.records import Document
from sparse_ir.engines.base import SPARSE, ImpactBatch
from sparse_ir.engines.lucene import bm25, writer
from sparse_ir.engines.lucene.bm25 import Bm25
from sparse_ir.errors import ConfigError, DataError, IndexMismatch
from sparse_ir.indexing import bm25_builder, builder
from sparse_ir.indexing.manifest import DocIds
from sparse_ir.indexing.pruning import Pruning
from sparse_ir.indexing.quantization import Rule, quantize
from sparse_ir.indexing.vectors import Vectors
from sparse_ir.models import tokenization
from sparse_ir.models.static_queries import ones
from sparse_ir.retrieval import explanation, explanation_view
from sparse_ir.retrieval.explanation import CLIPPED, PRUNED, QUERY_ROUNDED, ROUNDED
from sparse_ir.retrieval.searcher import Index

TERMS, ROWS = 40, 120
WEIGHTS = np.linspace(0.02, 3.0, TERMS).astype(np.float32)
MATRIX = sparse.csr_matrix(random_matrix(5, ROWS, TERMS, 0.2).multiply(0.31), dtype=np.float32)
DOC_IDS = shuffled_ids(6, ROWS)
QUERY = "t1 t3 t8 t20 t39 t21"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Vectors, and indexes of them: folded, plain, and pruned with a small largest impact. Read
    only.
    """
    root = tmp_path_factory.mktemp("explain")
    asked = static_queries(WEIGHTS)
    made = make_vectors(root / "vectors", MATRIX, asked, doc_ids=DOC_IDS, shard_size=50)
    builder.build_impact_index(made, root / "folded", builder.choose_rule(made, asked), asked)
    builder.build_impact_index(made, root / "plain", Rule(10.0), asked)
    builder.build_impact_index(
        made, root / "pruned", Rule(8.0, max_impact=8), asked, pruning=Pruning(min_impact=4)
    )
    return root


def parts_of(document: dict[str, Any]) -> dict[str, float]:
    return {term: facts["contribution"] for term, facts in document["terms"].items()}


# --- sums ---


@pytest.mark.parametrize("name", ["folded", "plain", "pruned"])
def test_contributions_add_up_to_the_engines_score_for_every_document(root, name):
    with Index(root / name) as index:
        indexed = list(DocIds(root / name))
        hits = index.search(QUERY, ROWS)
        boosts, rule = index.query_terms(QUERY), index.rule
    report = explain(root / name, QUERY, doc=tuple(indexed))
    assert len(report["documents"]) == len(indexed) > 100
    scores = dict(zip(hits.doc_ids, hits.scores.tolist(), strict=True))
    assert {of["doc_id"]: of["score"] for of in report["documents"] if of["score"]} == scores
    assert [of["doc_id"] for of in report["documents"]][: len(scores)] == hits.doc_ids
    impacts = quantize(
        MATRIX, rule, WEIGHTS * (np.arange(TERMS) > 0) if rule.folded else None
    ).impacts.toarray()
    for of in report["documents"]:
        assert sum(parts_of(of).values()) == of["sum_of_contributions"] == of["score"]
        row = impacts[DOC_IDS.index(of["doc_id"])]
        row = np.where(row < 4, 0, row) if name == "pruned" else row
        assert parts_of(of) == {
            term: boost * row[int(term[1:])] for term, boost in boosts.items() if row[int(term[1:])]
        }
        assert sorted([*parts_of(of), *of["without"]]) == sorted(boosts)


@pytest.mark.parametrize("title", [0.0, 1.0])
def test_parts_of_bm25_add_up_too(tmp_path, title):
    draw = random.Random(9)
    words = [f"word{number}" for number in range(25)]
    texts = [
        Document(
            f"d{number}", " ".join(draw.choices(words, k=3)), " ".join(draw.choices(words, k=30))
        )
        for number in range(80)
    ]
    bm25_builder.build_bm25_index(lambda: texts, tmp_path / "index", Bm25(title=title))
    report = explain(tmp_path / "index", "word1 word2 words word2 nothing", hits=60)
    assert report["kind"] == "bm25"
    assert {term: facts["weight"] for term, facts in report["query_terms"].items()} == {
        "word2": 2,
        "word1": 1,
        "word": 1,
        "noth": 1,
    }
    for of in report["documents"]:
        assert (
            np.float32(math.fsum(parts_of(of).values()))
            == of["score"]
            == of["sum_of_contributions"]
        )
        assert all(
            facts["contribution"] == facts["document"] * facts["query"]
            for facts in of["terms"].values()
        )
        assert {"word", "noth"} <= set(of["without"])
    assert any("title:word1" in of["terms"] for of in report["documents"]) == bool(title)
    assert [of["rank"] for of in report["documents"]] == list(range(1, 61))


def test_terms_of_bm25_are_cut_as_lucene_cuts_them(tmp_path):
    """Signs inside of a number or a word do not end it, so no term of the query is taken for an
    expansion.
    """
    text = "A 4,997 mm node.js beam, don't (lock/mutex)"
    bm25_builder.build_bm25_index(lambda: [Document("d", "", text)], tmp_path / "index")
    report = explain(tmp_path / "index", text)
    assert {
        term: facts["in_query"] for term, facts in report["query_terms"].items()
    } == dict.fromkeys(next(bm25.analyze([text])), True)
    assert "4,997" in report["query_terms"]
    with Index(tmp_path / "index") as index:
        found = explanation.find_terms(index, text)
    places = {term: text[start:end] for term, start, end in found}
    assert (places["4,997"], places["beam"], places["lock"], places["mutex"]) == (
        "4,997",
        "beam",
        "lock",
        "mutex",
    )


def test_shares_and_weights(root):
    (of,) = explain(root / "plain", QUERY, hits=1)["documents"]
    assert sum(facts["share"] for facts in of["terms"].values()) == pytest.approx(1)
    for facts in of["terms"].values():
        assert facts["query"] * facts["document"] == facts["contribution"]
    terms = explain(root / "folded", QUERY, hits=1)["query_terms"]
    assert {facts["weight"] for facts in terms.values()} == {1}
    assert terms["t39"]["encoder_weight"] == pytest.approx(3.0)
    assert next(iter(terms)) == "t39"


# --- why A is above B ---


def test_differences_add_up(root):
    report = explain(root / "plain", QUERY, hits=12)
    assert len(report["comparisons"]) == 11
    scores = {of["doc_id"]: of["score"] for of in report["documents"]}
    for of in report["comparisons"]:
        assert of["difference"] == scores[of["above"]] - scores[of["below"]]
        assert sum(facts["difference"] for facts in of["terms"].values()) == of["difference"]
        sizes = [abs(facts["difference"]) for facts in of["terms"].values()]
        assert sizes == sorted(sizes, reverse=True)
        assert of["decided_by"] == ("score" if of["difference"] else "doc_id")
        assert of["difference"] > 0 or of["above"] > of["below"]


def test_a_tie_is_decided_by_the_id(tmp_path):
    documents = [
        Document(doc_id, "", text)
        for doc_id, text in (("a", "one two"), ("b", "one two"), ("c", "no"))
    ]
    bm25_builder.build_bm25_index(lambda: documents, tmp_path / "index")
    (of,) = explain(tmp_path / "index", "one", doc=("a", "b"))["comparisons"]
    assert (of["above"], of["below"], of["difference"], of["decided_by"]) == (
        "b",
        "a",
        0.0,
        "doc_id",
    )
    assert (
        explanation_view.verdict(of)
        == "b is above a with the same score, by the tie rule: the higher doc_id first"
    )


# --- expansions ---


def test_expansions_of_a_neural_model_are_told_from_terms_of_the_texts(tiny_folder, tmp_path):
    collection = write_collection(tmp_path / "set", 12)
    indexing.build(str(tiny_folder), str(collection), tmp_path / "index")
    text = "the red fox"
    report = explain(tmp_path / "index", text, input=str(collection), hits=2)
    tokenizer = tokenization.read_tokenizer(tiny_folder / "tokenizer.json")
    asked = set(tokenizer.encode(text, add_special_tokens=False).tokens)
    contents = {
        document.doc_id: document.contents for document in readers.read_documents(collection)
    }
    signs = set()
    for of in report["documents"]:
        read = set(tokenizer.encode(contents[of["doc_id"]], add_special_tokens=False).tokens)
        for term, facts in of["terms"].items():
            assert (facts["in_query"], facts["in_document"]) == (term in asked, term in read)
            signs.add(explanation_view.mark(facts))
    assert "+q +d" in signs
    assert {
        facts["in_document"]
        for of in explain(tmp_path / "index", text, hits=2)["documents"]
        for facts in of["terms"].values()
    } == {None}


def test_an_index_without_a_query_side_asks_for_its_model(tiny_folder, tmp_path):
    collection = write_collection(tmp_path / "set", 12)
    made = indexing.encode(str(tiny_folder), str(collection), tmp_path / "vectors")
    opened = Vectors(Path(made["vectors"]))
    doc_ids, weights = opened.read_shard(0)
    impacts = quantize(weights, Rule(20.0)).impacts
    kept = [row for row in range(len(doc_ids)) if impacts[row].nnz]
    batch = ImpactBatch([doc_ids[row] for row in kept], {SPARSE: impacts[kept]})
    writer.write_impacts(tmp_path / "bare", [lambda: batch], {SPARSE: opened.vocabulary})
    with pytest.raises(
        ConfigError, match="bare is a bare Lucene index: name the query model and the scale"
    ):
        explain(tmp_path / "bare", "the red fox")
    report = explain(
        tmp_path / "bare",
        "the red fox",
        query_model=str(tiny_folder),
        scale=20.0,
        vectors=opened.folder,
    )
    assert len(report["documents"]) == 3
    for of in report["documents"]:
        assert sum(parts_of(of).values()) == of["score"] > 0
        assert of["score_before_rounding"] == pytest.approx(of["score"], rel=0.2)


def test_terms_in_a_text_have_their_places(tiny_tokenizer, tmp_path):
    encoder = ones(tiny_tokenizer)
    text = "The fox, the foxes"
    found = encoder.find_terms(text)
    assert [term.removeprefix("##") for term, _, _ in found] == [
        text[start:end].lower() for _, start, end in found
    ]
    assert "".join(text[start:end] for _, start, end in found) == text.replace(" ", "")
    documents = [Document("d", "Foxes", "jumped over_the lazy dogs")]
    bm25_builder.build_bm25_index(lambda: documents, tmp_path / "index")
    with Index(tmp_path / "index") as index:
        assert explanation.find_terms(index, "Foxes jumped the-dogs") == [
            ("fox", 0, 5),
            ("jump", 6, 12),
            ("dog", 17, 21),
        ]


# --- what was lost ---


def test_what_rounding_and_pruning_took(root):
    report = explain(root / "pruned", QUERY, doc=tuple(DOC_IDS[:60]), vectors=root / "vectors")
    asked = {term: float(WEIGHTS[int(term[1:])]) for term in QUERY.split()}
    assert report["lost_in_query"] == {}
    reasons = set()
    for of in report["documents"]:
        row = MATRIX[DOC_IDS.index(of["doc_id"])].toarray()[0]
        shared = {
            term: (weight, float(row[int(term[1:])]))
            for term, weight in asked.items()
            if row[int(term[1:])]
        }
        exact = {term: weight * value * 64 for term, (weight, value) in shared.items()}
        assert of["score_before_rounding"] == pytest.approx(sum(exact.values()))
        for term, (weight, value) in shared.items():
            impact, boost = min(round(value * 8), 8), min(round(weight * 8), 8)
            kept = boost * impact if impact >= 4 else 0
            assert of["terms"].get(term, {"contribution": 0})["contribution"] == kept
            if not kept:
                assert of["lost"][term]["would_add"] == pytest.approx(exact[term])
                reasons.add(of["lost"][term]["reason"])
        for term, facts in of["lost"].items():
            if facts["reason"] == CLIPPED:
                reasons.add(facts["reason"])
                assert exact[term] > parts_of(of)[term]
    assert {PRUNED} <= reasons <= {PRUNED, CLIPPED}


def test_weights_that_round_to_nothing_on_either_side(tmp_path):
    asked = static_queries(np.array([1.0, 0.04, 2.0, 2.0]))
    made = make_vectors(
        tmp_path / "vectors", sparse.csr_matrix([[0, 1.0, 0.04, 1.0]], dtype=np.float32), asked
    )
    builder.build_impact_index(made, tmp_path / "index", Rule(10.0), asked)
    report = explain(tmp_path / "index", "t1 t2 t3", vectors=tmp_path / "vectors")
    assert report["lost_in_query"] == {"t1": pytest.approx(0.04)}
    (of,) = report["documents"]
    assert parts_of(of) == {"t3": 200.0}
    assert of["lost"] == {
        "t1": {"would_add": pytest.approx(4.0), "reason": QUERY_ROUNDED},
        "t2": {"would_add": pytest.approx(8.0), "reason": ROUNDED},
    }
    assert of["score_before_rounding"] == pytest.approx(212.0)


def test_vectors_of_another_index_are_refused(root, tmp_path):
    other = make_vectors(
        tmp_path / "other", sparse.csr_matrix(MATRIX * 2), static_queries(WEIGHTS), doc_ids=DOC_IDS
    )
    with pytest.raises(
        IndexMismatch,
        match=r"plain was not built from .*other: their encoders "
        r"differ",
    ):
        explain(root / "plain", QUERY, vectors=other.folder)
    rolled = make_vectors(
        tmp_path / "rolled", MATRIX, static_queries(WEIGHTS), doc_ids=[*DOC_IDS[1:], DOC_IDS[0]]
    )
    with pytest.raises(IndexMismatch, match="has other impacts than these vectors give"):
        explain(root / "plain", QUERY, vectors=rolled.folder)
    short = make_vectors(tmp_path / "short", MATRIX, static_queries(WEIGHTS))
    with (
        Index(root / "plain") as index,
        pytest.raises(IndexMismatch, match=r"short has no document 'none'"),
    ):
        hit = explanation.RankedDocument("none", 1.0, 1)
        explanation.trace_losses(index, short.folder, index.encode(QUERY), [hit])


# --- what is refused ---


def test_what_cannot_be_explained(root, tmp_path):
    with pytest.raises(
        DataError,
        match=r"document 'none' is not in .*plain; documents without weights",
    ):
        explain(root / "plain", QUERY, doc=("none",))
    with pytest.raises(ConfigError, match="hits is 0; it must be at least 1"):
        explain(root / "plain", QUERY, hits=0)
    write_lines(tmp_path / "corpus.jsonl", [{"_id": "x", "text": "x"}])
    with pytest.raises(
        DataError,
        match=r"corpus.jsonl has no document 'd\d+'; it must be the indexed corpus",
    ):
        explain(root / "plain", QUERY, hits=1, input=str(tmp_path / "corpus.jsonl"))
    bm25_builder.build_bm25_index(lambda: [Document("d", "", "text")], tmp_path / "bm25")
    with pytest.raises(ConfigError, match="bm25 is ranked by BM25 alone, which no vectors explain"):
        explain(tmp_path / "bm25", "text", vectors=root / "vectors")
    assert error_of("explain", "--index", tmp_path / "none", "--query", "x").endswith(
        "build an index first"
    )


@pytest.mark.parametrize("text", ["", "   ", "unknown words"])
def test_a_query_without_hits(root, text):
    report = explain(root / "plain", text, page=None)
    assert (report["documents"], report["comparisons"], report["query_terms"]) == ([], [], {})
    assert "no document matches" in explanation_view.format_terminal(report)
    assert "No document matches" in explanation_view.format_page(report, [], {}, {})


# --- how it is shown ---


def test_the_command_in_the_terminal_and_as_json(root):
    arguments = (
        "explain",
        "--index",
        root / "plain",
        "--query",
        QUERY,
        "--doc",
        DOC_IDS[3],
        "--doc",
        DOC_IDS[4],
        "--vectors",
        root / "vectors",
    )
    report = report_of(*arguments)
    assert report == json.loads(
        json.dumps(
            explain(root / "plain", QUERY, doc=(DOC_IDS[3], DOC_IDS[4]), vectors=root / "vectors")
        )
    )
    printed = run_command(*arguments).stdout
    assert max(map(len, printed.splitlines())) <= 110
    for of in report["documents"]:
        assert explanation_view.headline(of) in printed
        for term, facts in of["terms"].items():
            assert re.search(
                rf"^{term} +{facts['query']:.0f} +{facts['document']:.0f} "
                rf"+{facts['contribution']:.0f} ",
                printed,
                re.MULTILINE,
            )
        assert f"before rounding and pruning: {of['score_before_rounding']:.2f}" in printed
    assert explanation_view.verdict(report["comparisons"][0]) in printed
    assert "\x1b" not in printed


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[dict[str, Any], str]]:
    """The page of a collection whose ids and texts are hostile."""
    folder = tmp_path_factory.mktemp("hostile")
    documents = [
        {"_id": f"<i>{number}</i>", "title": "", "text": f"answer {text}"}
        for number, text in enumerate(HOSTILE)
    ]
    write_lines(folder / "corpus.jsonl", documents)
    indexing.bm25(str(folder / "corpus.jsonl"), folder / "index")
    report = explain(
        folder / "index",
        f"answer script {HOSTILE[0]}",
        hits=4,
        input=str(folder / "corpus.jsonl"),
        page=folder / "page.html",
    )
    yield report, (folder / "page.html").read_text(encoding="utf-8")


def test_the_page_holds_texts_as_texts(hostile):
    report, page = hostile
    assert len(report["documents"]) == 4
    assert not re.search(r"<script|<img|<i>|https?://|url\(|@import", page)
    shown = html.unescape(re.sub(r"</?mark[^>]*>", "", page))
    for text in HOSTILE:
        assert text in shown
    for of in report["documents"]:
        assert html.escape(explanation_view.headline(of)) in page
    assert "default-src 'none'" in page
    assert re.search(r'<mark style="--strength:0\.\d\d" title="answer: [\d.]+">answer</mark>', page)


@needs_chromium
def test_the_page_in_a_browser(hostile, tmp_path):
    page = hostile[1]
    path = tmp_path / "page.html"
    path.write_text(page, encoding="utf-8")
    dumped = run_chromium(path, "--dump-dom")
    assert "<title>Explanation</title>" in dumped
    assert dumped.count("<section>") == 4 + 3
    assert len(re.findall(r"<mark ", dumped)) == len(re.findall(r"<mark ", page)) >= 4
    assert not re.search(r"<script|<img", dumped)
    run_chromium(path, f"--print-to-pdf={tmp_path / PDF}")
    assert (tmp_path / PDF).read_bytes().startswith(b"%PDF-")
