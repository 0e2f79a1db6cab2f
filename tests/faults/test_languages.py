"""A query in a language that the model cannot read finds nothing, and is told so once."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
from shell import write_collection, write_lines

import sparse_ir
from sparse_ir.errors import SparseIRWarning
from sparse_ir.models.catalog import shipped_model

QUERIES = {
    "english": "river valley spring",
    "nothing": "zyzzyva",
    "chinese": "\u5982\u4f55\u7b49\u5f85\u591a\u4e2a\u7ebf\u7a0b",
    "russian": "\u0440\u0435\u043a\u0430",
    "empty": "",
}


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lexical index of English texts. Read only."""
    root = tmp_path_factory.mktemp("languages")
    sparse_ir.build("lexical", write_collection(root / "c", 20), root / "index", engine="exact")
    return root / "index"


def test_search_says_it_once(index: Path, tmp_path: Path) -> None:
    records = [{"_id": name, "text": text} for name, text in QUERIES.items()]
    queries = write_lines(tmp_path / "queries.jsonl", records)
    message = r"^2 of 5 queries found nothing and are not in Latin script \(first: chinese\)"
    with pytest.warns(SparseIRWarning, match=message) as caught:
        sparse_ir.search(index, queries=queries, output=tmp_path / "run")
    assert len(caught) == 1
    with pytest.warns(SparseIRWarning, match=r"^1 of 1 queries found nothing"):
        sparse_ir.search(index, question=(QUERIES["chinese"],))


def test_other_queries_without_hits_are_no_matter_of_language(index: Path, tmp_path: Path) -> None:
    records = [{"_id": name, "text": QUERIES[name]} for name in ("english", "nothing", "empty")]
    queries = write_lines(tmp_path / "queries.jsonl", records)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sparse_ir.search(index, queries=queries, output=tmp_path / "run")


def test_the_card_names_the_language() -> None:
    card = (shipped_model() / "README.md").read_text(encoding="utf-8")
    assert "\nlanguage: en\n" in card
    assert "It reads English" in card
