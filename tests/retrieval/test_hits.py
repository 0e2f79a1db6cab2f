"""Hits with documents and snippets: what they show, when they read it, and what they cost."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from sparse_ir.commands import indexing
from sparse_ir.errors import ClosedError
from sparse_ir.retrieval import snippets
from sparse_ir.retrieval.searcher import Index
from sparse_ir.retrieval.snippets import PASSAGE_CHARACTERS, WordTerms, make_snippet, mark

FILLER = "Nothing of interest stands in this sentence. " * 20
DOCUMENTS = {
    "threads": (
        "Threads",
        f"{FILLER}Wait for several threads with a barrier, which releases all at once. {FILLER}",
    ),
    "csv": ("CSV files", "Read and write comma separated values, row by row."),
    "locks": ("Locks", "A lock lets one of several threads pass."),
    "title": ("Barrier", ""),
}
QUESTION = "wait for several threads"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sparse index, one without documents, and a BM25 index of the same documents."""
    folder = tmp_path_factory.mktemp("hits")
    lines = []
    for doc_id, (title, text) in DOCUMENTS.items():
        lines.append(json.dumps({"_id": doc_id, "title": title, "text": text}))
    corpus = folder / "corpus.jsonl"
    corpus.write_text("\n".join(lines) + "\n")
    indexing.build("lexical", corpus, folder / "sparse", engine="exact")
    vectors = folder / "sparse.vectors"
    indexing.index(vectors, folder / "lucene")
    indexing.index(vectors, folder / "bare", engine="exact", store=False)
    indexing.bm25(corpus, folder / "bm25")
    return folder


@pytest.mark.parametrize("name", ["sparse", "lucene", "bm25"])
def test_hits_are_a_sequence_with_documents_and_snippets(root, name):
    with Index(root / name) as index:
        hits = index.search(QUESTION, 3)
        assert len(hits) == len(hits.doc_ids) == len(list(hits)) >= 2
        assert isinstance(hits.scores, np.ndarray)
        assert [hit.doc_id for hit in hits] == hits.doc_ids
        assert [hit.score for hit in hits] == hits.scores.tolist()
        assert [hit.rank for hit in hits] == list(range(1, len(hits) + 1))
        assert hits[0] is hits[0]
        assert hits[-1].doc_id == hits.doc_ids[-1]
        rest = hits[1:]
        assert (rest.doc_ids, rest.scores.tolist()) == (hits.doc_ids[1:], hits.scores[1:].tolist())
        assert [hit.rank for hit in rest] == list(range(2, len(hits) + 1))
        first = hits[0]
        assert first.doc_id == "threads"
        assert (first.title, first.text) == DOCUMENTS["threads"]
        assert dict(first.metadata) == {}
        assert first.snippet.text.startswith("Wait for several threads with a barrier")
        assert "**several** **threads**" in first.snippet.marked()


@pytest.mark.parametrize("name", ["sparse", "lucene", "bm25"])
def test_a_snippet_says_where_it_stands_and_what_is_highlighted(root, name):
    with Index(root / name) as index:
        hit = index.search(QUESTION, 1)[0]
        snippet = hit.snippet
    assert hit.text[snippet.start : snippet.end] == snippet.text
    shown = [snippet.text[start:end] for start, end in snippet.highlights]
    expected = {"Wait", "several", "threads"}
    if name == "bm25":
        assert set(shown) == expected
    else:  # a model of four documents takes "for" for a rare word
        assert expected <= set(shown)
    assert [hit.title[start:end] for start, end in snippet.title_highlights] == ["Threads"]
    assert len(snippet.text) <= PASSAGE_CHARACTERS


def test_hits_go_through_json(root):
    with Index(root / "sparse") as index:
        hits = index.search(QUESTION, 2)
        read = json.loads(json.dumps(hits.to_list()))
        assert [hit["doc_id"] for hit in read] == hits.doc_ids
        assert list(read[0]) == ["rank", "doc_id", "score", "title", "text", "metadata", "snippet"]
        assert read[0]["snippet"]["text"] == hits[0].snippet.text
    assert repr(hits[:1]).startswith("Hits([Hit(rank=1, doc_id='threads', score=")


def test_an_index_without_documents_gives_ids_and_scores(root):
    with Index(root / "bare") as index:
        hit = index.search(QUESTION, 1)[0]
        assert (hit.title, hit.text, hit.metadata, hit.snippet) == (None, None, None, None)
        assert hit.to_dict() == {"rank": 1, "doc_id": "threads", "score": hit.score}
        assert index.find_document("threads") is None


def test_nothing_is_read_before_it_is_asked_for(root, monkeypatch):
    with Index(root / "sparse") as index:
        reads = []
        find = index.documents.find
        monkeypatch.setattr(
            index.documents, "find", lambda doc_id: reads.append(doc_id) or find(doc_id)
        )
        hits = index.search(QUESTION, 3)
        assert hits.doc_ids
        assert [hit.score for hit in hits]
        assert reads == []
        assert hits[1].title
        assert hits[1].text
        assert reads == [hits.doc_ids[1]]


def test_a_closed_index_still_gives_documents_but_no_snippets(root):
    with Index(root / "lucene") as index:
        hit = index.search(QUESTION, 1)[0]
        other = index.search(QUESTION, 1)[0]
        assert other.snippet
    assert hit.title == "Threads"
    with pytest.raises(ClosedError):
        _ = hit.snippet


def test_hits_can_be_pickled(root):
    with Index(root / "sparse") as index:
        hits = index.search(QUESTION, 2)
        copy = pickle.loads(pickle.dumps(hits))
        assert copy.to_list() == hits.to_list()


def find_letters(text: str) -> list[tuple[str, int, int]]:
    """A tokenizer of words in lower case; an s at the end is a piece of its own."""
    places = []
    start = 0
    for word in text.split(" "):
        end = start + len(word)
        cut = end - 1 if word.endswith("s") and len(word) > 2 else end
        places.append((text[start:cut].lower(), start, cut))
        if cut < end:
            places.append(("##s", cut, end))
        start = end + 1
    return [place for place in places if place[0]]


def snippet_of(text: str, query: str, contributions: dict[str, float], title: str = ""):
    return make_snippet(title, text, query, contributions, WordTerms(find_letters))


def test_the_passage_with_the_largest_sum_wins():
    text = f"red red red red {FILLER}red and blue here. {FILLER}green"
    snippet = snippet_of(text, "red blue green", {"red": 2.0, "blue": 1.0, "green": 2.5})
    assert snippet.marked().startswith("**red** and **blue** here.")
    snippet = snippet_of(text, "red blue green", {"red": 2.0, "blue": 1.0, "green": 3.5})
    assert snippet.marked().endswith("**green**")


def test_terms_in_one_text_only_are_expansions():
    text = "The automobile is red."
    contributions = {"red": 5.0, "car": 4.0, "automobile": 3.0, "vehicle": 2.0}
    snippet = snippet_of(text, "red car", contributions)
    assert snippet.marked("<", ">") == "The automobile is <red>."
    assert snippet.expansions == {"car": 4.0, "automobile": 3.0, "vehicle": 2.0}
    assert list(snippet.expansions) == ["car", "automobile", "vehicle"]


def test_a_common_ending_or_a_stop_word_is_not_highlighted():
    snippet = snippet_of(
        "dogs and cats the", "birds cats the", {"cat": 9.0, "##s": 5.0, "the": 0.1}
    )
    assert snippet.marked() == "dogs and **cats** the"


def test_matches_in_the_title_alone_show_the_beginning():
    snippet = snippet_of(FILLER, "barrier", {"barrier": 3.0}, title="A Barrier")
    assert (snippet.start, snippet.highlights, snippet.expansions) == (0, [], {})
    assert snippet.title_highlights == [(2, 9)]
    assert FILLER.startswith(snippet.text)


@pytest.mark.parametrize("text", ["", "   ", "日本語" * 200, "x" * 5000, "a\n\nb " * 300])
def test_any_text_has_a_short_passage(text):
    contributions = {"日": 1.0, "b": 1.0, "x" * 5000: 1.0}
    snippet = snippet_of(text, "日 b " + "x" * 5000, contributions)
    assert len(snippet.text) <= PASSAGE_CHARACTERS
    assert text[snippet.start : snippet.end] == snippet.text
    for start, end in snippet.highlights:
        assert 0 <= start < end <= len(snippet.text)


def test_signs_of_chinese_and_japanese_are_words():
    def find_signs(text: str) -> list[tuple[str, int, int]]:
        return [(sign, place, place + 1) for place, sign in enumerate(text) if sign != " "]

    snippet = make_snippet(
        "", "私は東京に住む", "東京", {"東": 2.0, "京": 2.0}, WordTerms(find_signs)
    )
    assert snippet.marked("[", "]") == "私は[東][京]に住む"


def test_words_are_forgotten_when_there_are_too_many(monkeypatch):
    monkeypatch.setattr("sparse_ir.retrieval.snippets._KEPT_WORDS", 10)
    word_terms = WordTerms(find_letters)
    for number in range(8):
        text = " ".join(f"w{number}x{place}" for place in range(5))
        snippet = make_snippet("", text, f"w{number}x2", {f"w{number}x2": 1.0}, word_terms)
        assert len(snippet.highlights) == 1


def test_words_of_ascii_are_those_of_the_pattern():
    text = "".join(map(chr, range(128))) + " don't a_b\tC3PO,x"
    assert snippets._words_of(text) == set(snippets._WORD.findall(text))


def test_marks_stand_around_each_span():
    assert mark("a bc d", [(0, 1), (2, 4)], "<", ">") == "<a> <bc> d"
