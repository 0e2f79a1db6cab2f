"""Timing: what is counted, in which order the systems take turns, and Pyserini's searchers as
systems.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from small_indexes import TermQueries, make_vectors, pairs_of, random_matrix, vocabulary_of_size

from sparse_ir.data.records import Document
from sparse_ir.engines.lucene.terms import term_of_token
from sparse_ir.errors import ConfigError
from sparse_ir.indexing import builder
from sparse_ir.indexing.quantization import Rule
from sparse_ir.retrieval import timing
from sparse_ir.retrieval.searcher import Index
from sparse_ir.retrieval.timing import Search

TEXTS = [f"q{number}" for number in range(50)]


def sleeper(milliseconds: float) -> Search:
    def search(text: str) -> list[tuple[str, float]]:
        time.sleep(milliseconds / 1000)
        return [(text, 1.0)]

    return search


def test_each_system_answers_each_text_in_each_round_in_rotating_blocks():
    asked: list[tuple[str, str]] = []
    systems = {name: lambda text, name=name: asked.append((name, text)) or [] for name in "abc"}
    found = timing.time_queries(systems, TEXTS, rounds=2, warm_up=1)
    assert {name: seconds.shape for name, seconds in found.items()} == dict.fromkeys("abc", (2, 50))
    assert all((seconds > 0).all() for seconds in found.values())
    for name in "abc":
        assert [text for who, text in asked if who == name] == TEXTS * 3
    firsts = [name for name, text in asked if text == "q0"][::3]
    # in each of the three rounds another system comes first
    assert sorted(firsts) == ["a", "b", "c"]


def test_percentiles_and_ratios_are_those_of_the_sleep():
    found = timing.time_queries({"fast": sleeper(2), "slow": sleeper(20)}, TEXTS[:20], rounds=3)
    fast, slow = timing.summarize(found["fast"]), timing.ratios(found, "fast")["slow"]
    assert 2 <= fast.p50 <= fast.p95 <= fast.p99 <= fast.worst * 1.0001
    assert 2 < slow.p50 < 50


def test_summary_is_over_queries_of_each_querys_median():
    """One slow round is no slow query; a query that is slow each time is."""
    seconds = np.full((5, 100), 0.001)
    seconds[0] = 1.0  # the machine was busy
    seconds[:, 7] = 0.5
    assert timing.summarize(seconds).p50 == pytest.approx(1.0)
    assert timing.summarize(seconds).p99 > 1.0
    assert timing.summarize(seconds).worst == pytest.approx(1000.0)


def test_throughput_counts_callers():
    together: set[int] = set()

    def search(text: str) -> list[tuple[str, float]]:
        together.add(threading.get_ident())
        time.sleep(0.004)
        return []

    one = timing.measure_throughput({"s": search}, TEXTS, threads=1, rounds=2)["s"]
    assert one.shape == (2,) and len(together) <= 2
    four = timing.measure_throughput({"s": search}, TEXTS, threads=4, rounds=2)["s"]
    assert np.median(four) > 1.3 * np.median(one)


def test_a_failing_system_is_not_counted_as_fast():
    def broken(text: str) -> list[tuple[str, float]]:
        raise ValueError("no such index")

    with pytest.raises(ValueError, match="no such index"):
        timing.measure_throughput({"broken": broken}, TEXTS, threads=2)


@pytest.mark.parametrize(
    ("systems", "texts", "rounds"),
    [({}, TEXTS, 1), ({"s": sleeper(0)}, [], 1), ({"s": sleeper(0)}, TEXTS, 0)],
)
def test_nothing_to_time_is_an_error(systems, texts, rounds):
    with pytest.raises(ConfigError, match="nothing to time"):
        timing.time_queries(systems, texts, rounds=rounds)
    with pytest.raises(ConfigError, match="nothing to time"):
        timing.measure_throughput(systems, texts, rounds=rounds)


def test_no_threads_is_an_error():
    with pytest.raises(ConfigError, match="0 threads are not allowed"):
        timing.measure_throughput({"s": sleeper(0)}, TEXTS, threads=0)


def test_timing_starts_no_java():
    code = (
        "import sys; from sparse_ir.retrieval import timing; "
        "timing.measure_throughput({'s': lambda text: []}, ['q'], threads=2); print('jnius' "
        "in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_pyserinis_searchers_find_what_ours_find(tmp_path: Path):
    vocabulary = vocabulary_of_size(30)
    matrix = random_matrix(3, 60, 30, density=0.3, largest=200)
    made = make_vectors(tmp_path / "v", matrix, TermQueries(vocabulary))
    builder.build_impact_index(made, tmp_path / "i", Rule(1.0), TermQueries(vocabulary))
    builder.build_bm25_index(
        lambda: [Document(f"d{n}", "", f"red fox number {n} " + "fox " * n) for n in range(9)],
        tmp_path / "b",
    )
    with Index(tmp_path / "i", query_encoder=TermQueries(vocabulary)) as ours:

        def encode(text):
            found = ours.encode_query(text)
            return {term_of_token(token): weight for token, weight in found.items()}

        theirs = timing.pyserini_impact(tmp_path / "i" / "lucene", 5, encode)
        for text in ("t1:3 t2:1", "t5:7 t6:2 t7:1"):
            assert [score for _, score in theirs(text)] == pytest.approx(
                ours.search(text, 5).scores.tolist(), abs=1e-4
            )
    with Index(tmp_path / "b") as ours:
        found = timing.pyserini_bm25(tmp_path / "b" / "lucene", 4)("fox 3")
        assert dict(found) == pytest.approx(dict(pairs_of(ours.search("fox 3", 4))), abs=1e-4)
