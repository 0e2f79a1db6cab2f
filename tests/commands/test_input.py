"""Commands on corpora that are not in BEIR's form: named fields, metadata, pipes and objects."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pandas as pd
import pytest
import shell

import sparse_ir
from sparse_ir.data.records import Document
from sparse_ir.errors import ConfigError, DataError
from sparse_ir.indexing.document_store import DocumentStore
from sparse_ir.indexing.vectors import Vectors
from sparse_ir.storage import files

CSV = """sku,name,description,price,added
7,Kettle,boils water quickly,19.5,2024-01-31
8 b,Lamp,gives warm light,5,2024-02-01
9,Pump,moves water,7,
"""
NAMES = {"id_field": "sku", "title_field": "name", "text_field": "description"}
FLAGS = ["--id-field", "sku", "--title-field", "name", "--text-field", "description"]
SCHEMA = {"price": "number", "added": "date"}
DOCUMENTS = [
    Document("7", "Kettle", "boils water quickly", {"price": 19.5, "added": "2024-01-31"}),
    Document("8 b", "Lamp", "gives warm light", {"price": 5, "added": "2024-02-01"}),
    Document("9", "Pump", "moves water", {"price": 7}),
]


def manifest_of(folder: Path) -> dict:
    return files.read_json(folder / "manifest.json")


@pytest.fixture
def table(tmp_path: Path) -> Path:
    (tmp_path / "products.csv").write_text(CSV)
    (tmp_path / "queries.tsv").write_text("q1\twater\nq2\twarm light\n")
    return tmp_path / "products.csv"


def build(source: object, folder: Path, **options: object) -> Path:
    sparse_ir.build("lexical", source, folder, engine="exact", **options)
    return folder


def test_build_keeps_documents_and_the_types_of_their_metadata(tmp_path, table):
    index = build(table, tmp_path / "index", **NAMES)
    assert manifest_of(index)["metadata_schema"] == SCHEMA
    assert manifest_of(tmp_path / "index.vectors")["metadata_schema"] == SCHEMA
    assert list(DocumentStore(index / "documents")) == DOCUMENTS
    # nothing is encoded again, and nothing has changed
    assert build(table, index, **NAMES) == index


def test_ids_with_blanks_reach_a_run_with_percent_codes(tmp_path, table):
    index = build(table, tmp_path / "index", **NAMES)
    queries, run = tmp_path / "queries.tsv", tmp_path / "run.trec"
    with pytest.raises(DataError, match=r"query 'q2': doc id is '8 b'; .*--encode-ids"):
        sparse_ir.search(index, queries, run)
    assert not run.exists()
    sparse_ir.search(index, queries, run, encode_ids=True)
    assert "q2 Q0 8%20b 1 " in run.read_text()


def test_the_shell_takes_repeated_names_and_standard_input(tmp_path, table):
    command = [shell.COMMAND, "build", "--model", "lexical", "--engine", "exact", "--input", "-"]
    command += ["--output", tmp_path / "index", "--json", *FLAGS, "--text-field", "added"]
    command += ["--input-format", "csv", "--metadata-type", "price=keyword"]
    done = subprocess.run(command, input=CSV, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["documents"] == 3
    first = next(iter(DocumentStore(tmp_path / "index" / "documents")))
    assert first == Document("7", "Kettle", "boils water quickly\n2024-01-31", {"price": "19.5"})


def test_a_mistake_in_the_shell_is_one_line(tmp_path, table):
    done = shell.run_command(
        "build", "--model", "lexical", "--input", table, "--output", tmp_path / "index"
    )
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert 'products.csv:2: "_id" is missing (keys: sku, name, description, price, added)' in line
    assert line.endswith("--id-field must name another field, or --make-ids make it")


@pytest.mark.parametrize("kind", ["dicts", "generator", "documents", "pandas"])
def test_python_objects_are_indexed_as_a_file_is(tmp_path, kind):
    records = [
        {"sku": each.doc_id, "name": each.title, "description": each.text} | dict(each.metadata)
        for each in DOCUMENTS
    ]
    sources = {
        "dicts": records,
        "generator": (record for record in records),
        "documents": DOCUMENTS,
        "pandas": pd.DataFrame(records),
    }
    options = {} if kind == "documents" else NAMES
    if kind == "pandas":  # whose columns have one type, and texts need not be dates
        options = options | {"metadata_type": ("added=date",)}
    index = build(sources[kind], tmp_path / "index", **options)
    assert list(DocumentStore(index / "documents")) == DOCUMENTS
    assert manifest_of(index)["metadata_schema"] == SCHEMA


def test_bm25_and_idf_take_the_same_options(tmp_path, table):
    report = sparse_ir.bm25(table, tmp_path / "bm25", **NAMES)
    assert report["documents"] == 3
    assert manifest_of(tmp_path / "bm25")["metadata_schema"] == SCHEMA
    assert list(DocumentStore(tmp_path / "bm25" / "documents")) == DOCUMENTS
    sparse_ir.bm25(table, tmp_path / "bm25", store=False, **NAMES)
    assert "metadata_schema" not in manifest_of(tmp_path / "bm25")


def test_vectors_without_documents_get_them_later_with_their_metadata(tmp_path, table):
    sparse_ir.encode("lexical", table, tmp_path / "v", store=False, **NAMES)
    assert "metadata_schema" not in manifest_of(tmp_path / "v")
    sparse_ir.encode("lexical", table, tmp_path / "v", **NAMES)
    assert manifest_of(tmp_path / "v")["metadata_schema"] == SCHEMA
    assert Vectors(tmp_path / "v").read_documents(0) == DOCUMENTS


def test_a_change_of_the_metadata_alone_is_noticed(tmp_path, table):
    sparse_ir.encode("lexical", table, tmp_path / "v", **NAMES)
    with pytest.raises(ConfigError, match=r"begun with another metadata_schema \(price: number th"):
        sparse_ir.encode("lexical", table, tmp_path / "v", metadata_type="price=keyword", **NAMES)
    table.write_text(CSV.replace("19.5", "19.6"))
    with pytest.raises(DataError, match=r"the corpus has changed since encoding began"):
        sparse_ir.encode("lexical", table, tmp_path / "v", **NAMES)
    # without the documents, only texts count
    assert (
        sparse_ir.encode("lexical", table, tmp_path / "v", store=False, **NAMES)["documents"] == 3
    )
