"""What the benchmarks share: Pyserini's searchers as systems, throughput, and ratios."""

from __future__ import annotations

import importlib
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from small_indexes import TermQueries, make_vectors, pairs_of, random_matrix, vocabulary_of_size

from sparse_ir.data.records import Document
from sparse_ir.engines.lucene.terms import term_of_token
from sparse_ir.errors import ConfigError
from sparse_ir.indexing import bm25_builder, builder
from sparse_ir.indexing.quantization import Rule
from sparse_ir.retrieval.searcher import Index

SCRIPTS = Path(__file__).parents[2] / "scripts"
TEXTS = [f"q{number}" for number in range(50)]


@pytest.fixture
def peers(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(SCRIPTS)
    return importlib.import_module("peers")


def test_ratios_are_those_of_the_percentiles(peers):
    seconds = {"base": np.full((3, 10), 0.002), "slow": np.full((3, 10), 0.006)}
    assert peers.ratios(seconds, "base")["slow"] == pytest.approx((3.0, 3.0, 3.0, 3.0))


def test_throughput_counts_callers(peers):
    together: set[int] = set()

    def search(text: str) -> list[tuple[str, float]]:
        together.add(threading.get_ident())
        time.sleep(0.004)
        return []

    one = peers.measure_throughput({"s": search}, TEXTS, threads=1, rounds=2)["s"]
    assert one.shape == (2,) and len(together) <= 2
    four = peers.measure_throughput({"s": search}, TEXTS, threads=4, rounds=2)["s"]
    assert np.median(four) > 1.3 * np.median(one)


def test_a_failing_system_is_not_counted_as_fast(peers):
    def broken(text: str) -> list[tuple[str, float]]:
        raise ValueError("no such index")

    with pytest.raises(ValueError, match="no such index"):
        peers.measure_throughput({"broken": broken}, TEXTS, threads=2)


def test_no_threads_is_an_error(peers):
    with pytest.raises(ConfigError, match="threads is 0; it must be at least 1"):
        peers.measure_throughput({"s": lambda text: []}, TEXTS, threads=0)


def test_pyserinis_searchers_find_what_ours_find(tmp_path: Path, peers):
    vocabulary = vocabulary_of_size(30)
    matrix = random_matrix(3, 60, 30, density=0.3, largest=200)
    made = make_vectors(tmp_path / "v", matrix, TermQueries(vocabulary))
    builder.build_impact_index(made, tmp_path / "i", Rule(1.0), TermQueries(vocabulary))
    bm25_builder.build_bm25_index(
        lambda: [Document(f"d{n}", "", f"red fox number {n} " + "fox " * n) for n in range(9)],
        tmp_path / "b",
    )
    with Index(tmp_path / "i", query_encoder=TermQueries(vocabulary)) as ours:

        def encode(text):
            found = ours.encode_query(text)
            return {term_of_token(token): weight for token, weight in found.items()}

        theirs = peers.pyserini_impact(tmp_path / "i" / "lucene", 5, encode)
        for text in ("t1:3 t2:1", "t5:7 t6:2 t7:1"):
            assert [score for _, score in theirs(text)] == pytest.approx(
                ours.search(text, 5).scores.tolist(), abs=1e-4
            )
    with Index(tmp_path / "b") as ours:
        found = peers.pyserini_bm25(tmp_path / "b" / "lucene", 4)("fox 3")
        assert dict(found) == pytest.approx(dict(pairs_of(ours.search("fox 3", 4))), abs=1e-4)
