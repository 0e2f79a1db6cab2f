"""Source files become data sets in BEIR's layout, and a data set that differs is refused."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from sparse_ir.data import readers
from sparse_ir.errors import DataError

SPEC = importlib.util.spec_from_file_location(
    "prepare_data", Path(__file__).parents[2] / "scripts" / "prepare_data.py"
)
prepare_data = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(prepare_data)
CRANFIELD = """\
.I 1
.T
wings in a
slipstream .
.A
brenckman,m.
.B
j. ae. scs. 25, 1958, 324.
.W
wings in a
slipstream .
  a study of wings .
.I 2
.T
.A
.B
.W
"""
CISI = """\
.I 1
.T
18 Editions
.A
Comaromi, J.P.
.A
Another, A.
.W
   The present study is a
history.
.X
1\t5\t1
"""


def write_sources(folder: Path, contents: dict[str, str]) -> Path:
    folder.mkdir(exist_ok=True)
    for name, text in contents.items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def test_cranfield(tmp_path):
    folder = write_sources(
        tmp_path / "source",
        {
            "cran.all.1400": CRANFIELD,
            "cran.qry": ".I 001\n.W\nwhat laws must\nbe obeyed .\n.I 004\n.W\nwhich wings .\n",
            "cranqrel": "1 1 2\n1 2 -1\n2 1 4\n",
        },
    )
    documents, queries, qrels = prepare_data.read_cranfield(folder)
    assert documents == [
        {"_id": "1", "title": "wings in a slipstream .", "text": "a study of wings ."},
        {"_id": "2", "title": "", "text": ""},
    ]
    assert queries == [
        {"_id": "1", "text": "what laws must be obeyed ."},
        {"_id": "2", "text": "which wings ."},
    ]
    assert qrels == {"test": [("1", "1", 3), ("1", "2", 4), ("2", "1", 1)]}


def test_cisi(tmp_path):
    query = ".I 1\n.W\nWhat problems?\n.I 2\n.T\nTitle\n.A\nName\n.W\nHow can data?\n.B\n(JASIS)\n"
    folder = write_sources(
        tmp_path / "source",
        {"CISI.ALL": CISI, "CISI.QRY": query, "CISI.REL": "  1  28\t0\t0.000000\n\n"},
    )
    documents, queries, qrels = prepare_data.read_cisi(folder)
    assert documents == [
        {"_id": "1", "title": "18 Editions", "text": "The present study is a history."}
    ]
    assert [query["text"] for query in queries] == ["What problems?", "How can data?"]
    assert qrels == {"test": [("1", "28", 1)]}


def test_vaswani(tmp_path):
    folder = write_sources(
        tmp_path / "source",
        {
            "doc-text": "1\ncompact memories have\nflexible capacities\n   /\n2\nan analogue\n   /\n",
            "query-text": "1\nMEASUREMENT OF LIQUIDS\n/\n",
            "rlv-ass": "1\n 2   1\n 1239\n   /\n",
        },
    )
    documents, queries, qrels = prepare_data.read_vaswani(folder)
    assert documents[0] == {
        "_id": "1",
        "title": "",
        "text": "compact memories have flexible capacities",
    }
    assert queries == [{"_id": "1", "text": "MEASUREMENT OF LIQUIDS"}]
    assert qrels == {"test": [("1", "2", 1), ("1", "1", 1), ("1", "1239", 1)]}


@pytest.mark.parametrize(
    ("file", "read", "query_id", "split"),
    [
        ("dev-v1.1.json", prepare_data.read_squad_dev, "q7", "test"),
        ("train-v1.1.json", prepare_data.read_squad, "Oil_crisis_0_q0", "train"),
    ],
)
def test_squad(tmp_path, file, read, query_id, split):
    paragraph = {"context": "It began.", "qas": [{"id": "q7", "question": "When did it? "}]}
    article = {"title": "Oil_crisis", "paragraphs": [paragraph]}
    folder = write_sources(tmp_path / "source", {file: json.dumps({"data": [article]})})
    assert read(folder) == (
        [{"_id": "Oil_crisis_0", "title": "Oil crisis", "text": "It began."}],
        [{"_id": query_id, "text": "When did it?"}],
        {split: [(query_id, "Oil_crisis_0", 1)]},
    )


def cosqa_sources() -> dict[str, str]:
    record = {"idx": "cosqa-1", "doc": "sort a list", "code": "def a(): ...", "retrieval_idx": 0}
    other = record | {"idx": "cosqa-2"}
    return {
        "code_idx_map.txt": json.dumps({"def a(): ...": 0}),
        "cosqa-retrieval-dev-500.json": json.dumps([other]),
        "cosqa-retrieval-test-500.json": json.dumps([record]),
    }


def test_another_data_set_is_written_but_refused(tmp_path, capsys):
    folder = write_sources(tmp_path / "source", cosqa_sources())
    with pytest.raises(SystemExit, match=r"cosqa: .*sha256 of the documents is [0-9a-f]{64}, but"):
        prepare_data.main(["cosqa", "--from", str(folder), "--output", str(tmp_path)])
    written = tmp_path / "test" / "cosqa"
    assert [document.contents for document in readers.read_documents(written)] == ["def a(): ..."]
    assert readers.read_qrels(written, "dev") == {"cosqa-2": {"0": 1}}


def test_the_expected_data_set_is_accepted(tmp_path, monkeypatch):
    folder = write_sources(tmp_path / "source", cosqa_sources())
    target = tmp_path / "made"
    prepare_data.write(prepare_data.read_cosqa(folder), target)
    documents, queries, qrels = prepare_data.hash_content(target, "test")
    source = prepare_data.SOURCES["cosqa"]._replace(
        documents_sha256=documents, queries_sha256=queries, qrels_sha256=qrels
    )
    monkeypatch.setitem(prepare_data.SOURCES, "cosqa", source)
    found = prepare_data.prepare("cosqa", tmp_path, tmp_path, folder)
    assert found == tmp_path / "test" / "cosqa"
    lines = (found / "queries.jsonl").read_text().splitlines()
    (found / "queries.jsonl").write_text("\n".join(reversed(lines)).replace("sort a", "sort  a"))
    prepare_data.check(found, source)  # neither order nor white space matters
    (found / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\ncosqa-1\t0\t2\n")
    with pytest.raises(DataError, match="sha256 of the judgements"):
        prepare_data.check(found, source)
