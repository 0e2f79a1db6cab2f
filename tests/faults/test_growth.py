"""Odd text takes time in proportion to its length: in readers, tokenizers and analysers.

Two sizes are compared in CPU time, with wide bounds: a quadratic step makes four times the text
take sixteen times as long.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny_decoders
import tiny_models

from sparse_ir.data import qrels, readers, runs
from sparse_ir.errors import SparseIRError
from sparse_ir.models import catalog, tokenization
from sparse_ir.models.encoder import load_tokenizer
from sparse_ir.models.lexical import LexicalEncoder
from sparse_ir.models.reading import PlainReader
from sparse_ir.models.static_queries import ones

SMALL = 20_000
LARGE = 4 * SMALL
LARGEST_RATIO = 10
CLOCK_NOISE = 0.1  # seconds: below it, a ratio says nothing

ODD_TEXTS: dict[str, Callable[[int], str]] = {
    "one letter": lambda size: "x" * size,
    "one digit": lambda size: "7" * size,
    "blanks": lambda size: " " * size,
    "line feeds": lambda size: "\n" * size,
    "full stops": lambda size: "." * size,
    "combining characters": lambda size: "a" + "\u0301" * size,
    "unordered marks": lambda size: "\u0315\u0300\u05ae\u0062" * (size // 4),
    "right to left": lambda size: "שלום" * (size // 4),
    "emoji": lambda size: "😀" * size,
    "joined emoji": lambda size: "👩\u200d👩\u200d👧" * (size // 5),
    "Hangul": lambda size: "한" * size,
    "Chinese": lambda size: "中文" * (size // 2),
    "letters by chance": lambda size: "".join(
        np.random.default_rng(0).choice(list("abcdefghijABCDEF012345"), size)
    ),
}


def seconds(task: Callable[[str], object], text: str) -> float:
    """The least CPU time of two calls."""
    taken = []
    for _ in range(2):
        begun = time.process_time()
        task(text)
        taken.append(time.process_time() - begun)
    return min(taken)


def check_growth(task: Callable[[str], object]) -> None:
    """Four times the text takes at most ten times as long, for every odd text."""
    task("a first call, which may load something")
    for name, make in ODD_TEXTS.items():
        small = seconds(task, make(SMALL))
        large = seconds(task, make(LARGE))
        assert large < CLOCK_NOISE or large < LARGEST_RATIO * small, (name, small, large)


def test_the_lexical_model() -> None:
    sentences = list(tiny_models.SENTENCES)
    check_growth(lambda text: LexicalEncoder.fit(lambda: iter([*sentences, text])))
    encoder = LexicalEncoder.fit(lambda: iter(sentences))
    check_growth(lambda text: encoder.encode([text]))
    check_growth(encoder.query_encoder().find_terms)


def test_a_long_word_changes_no_word_piece() -> None:
    """WordPiece reads a word of more than 100 letters as unknown, so it teaches nothing."""
    sentences = list(tiny_models.SENTENCES)
    plain = LexicalEncoder.fit(lambda: iter(sentences))
    with_word = LexicalEncoder.fit(lambda: iter([*sentences, "x" * 101]))
    assert with_word.vocabulary == plain.vocabulary
    with_short_word = LexicalEncoder.fit(lambda: iter([*sentences, "ß" * 100]))
    assert set(with_short_word.vocabulary) > set(plain.vocabulary)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["roberta", "xlm-roberta"])
def test_tokenizers_of_masked_models(family: str, tiny_folders: dict[str, Path]) -> None:
    reader = PlainReader(load_tokenizer(tiny_folders[family]), 48)
    check_growth(lambda text: reader.read([text], ""))


@pytest.mark.slow
def test_the_tokenizer_of_the_default_model() -> None:
    tokenizer = load_tokenizer(catalog.shipped_model())
    check_growth(lambda text: PlainReader(tokenizer, 512).read([text], ""))
    queries = ones(tokenizer)
    check_growth(queries.encode)


@pytest.mark.slow
@pytest.mark.parametrize("kind", tiny_decoders.TOKENIZERS)
def test_tokenizers_of_decoders(kind: str) -> None:
    rules = tiny_decoders.TOKENIZERS[kind]().backend_tokenizer
    tokenizer = tokenization.without_state(rules)
    check_growth(lambda text: tokenizer.encode(text))


def test_the_analyzer_of_lucene() -> None:
    from sparse_ir.engines.lucene import bm25

    check_growth(lambda text: list(bm25.analyze([text])))


READERS: dict[str, Callable[[Path], object]] = {
    "corpus.jsonl": lambda path: list(readers.read_documents(path)),
    "collection.tsv": lambda path: list(readers.read_documents(path)),
    "corpus.json": lambda path: list(readers.read_documents(path)),
    "corpus.csv": lambda path: list(readers.read_documents(path)),
    "qrels.tsv": qrels.read_qrels,
    "run.trec": runs.read_run,
    "run.json": runs.read_run,
}


@pytest.mark.parametrize("name", READERS)
def test_readers(name: str, tmp_path: Path) -> None:
    path = tmp_path / name

    def read(text: str) -> None:
        content = text
        if name == "corpus.jsonl":
            content = json.dumps({"_id": "a", "text": text}) + "\n"
        elif name == "corpus.json":
            content = json.dumps([{"_id": "a", "text": text}])
        elif name == "collection.tsv":
            content = f"a\t{text}\n"
        path.write_text(content, encoding="utf-8")
        try:
            READERS[name](path)
        except SparseIRError as error:
            assert len(str(error)) < 1000

    check_growth(read)


def test_json_with_a_key_twice(tmp_path: Path) -> None:
    path = tmp_path / "corpus.jsonl"

    def read(text: str) -> None:
        keys = [f'"k{number}": 0' for number in range(len(text) // 4)]
        path.write_text("{" + ", ".join([*keys, '"z": 1, "z": 2']) + "}\n", encoding="utf-8")
        with pytest.raises(SparseIRError, match="key 'z' twice in one object"):
            list(readers.read_documents(path))

    small = seconds(read, "x" * SMALL)
    large = seconds(read, "x" * LARGE)
    assert large < CLOCK_NOISE or large < LARGEST_RATIO * small
