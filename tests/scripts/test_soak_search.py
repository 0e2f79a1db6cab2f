"""The soak test of a searcher in a small form: seconds instead of minutes, and a fault that it must
find.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_indexes import make_vectors, random_matrix, static_queries

from sparse_ir.engines.base import EngineHits
from sparse_ir.engines.lucene.impact_reader import ImpactReader
from sparse_ir.indexing import builder
from sparse_ir.retrieval.searcher import Index

TERMS = 40
TEXTS = [f"t{1 + number % 39} t{1 + number * 7 % 39} t3" for number in range(30)]


@pytest.fixture
def soak_search(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "scripts")
    return importlib.import_module("soak_search")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    queries = static_queries(np.ones(TERMS))
    made = make_vectors(tmp_path / "v", random_matrix(5, 300, TERMS, 0.2), queries, shard_size=64)
    builder.build_impact_index(made, tmp_path / "i", builder.choose_rule(made, queries), queries)
    return tmp_path / "i"


@pytest.mark.slow
def test_sixteen_callers_while_versions_are_exchanged(soak_search, place):
    found = soak_search.soak(place, TEXTS, callers=16, seconds=6.0, k=20, replace=True)
    assert found["wrong"] == 0
    assert found["versions"] >= 1
    assert found["fewest_searches_of_a_caller"] > 0
    # the same process compiles code; minutes of the script show the rest
    assert found["growth_mb"] < 300
    with Index(place) as index:
        assert len(index.search(TEXTS[0], 20).doc_ids) == 20


def test_an_answer_that_differs_is_counted(soak_search, place, monkeypatch):
    """Every 50th search loses its best hit."""
    search, calls = ImpactReader.search, [0]

    def lossy(reader: ImpactReader, *arguments: Any) -> EngineHits:
        calls[0] += 1
        hits = search(reader, *arguments)
        return (
            hits
            if calls[0] % 50
            else EngineHits(hits.doc_ids[1:], hits.scores[1:], hits.numbers[1:])
        )

    monkeypatch.setattr(ImpactReader, "search", lossy)
    assert soak_search.soak(place, TEXTS, callers=2, seconds=1.5, k=20, replace=False)["wrong"] > 0


def test_an_error_of_a_caller_is_raised(soak_search, place, monkeypatch):
    def broken(*_: Any) -> None:
        raise OSError("the disk is gone")

    monkeypatch.setattr(soak_search, "swap_in_a_copy", broken)
    with pytest.raises(OSError, match="the disk is gone"):
        soak_search.soak(place, TEXTS, callers=2, seconds=1.0, k=20, replace=True)
