"""Corpora in every format: which fields make up a document, its id, and the types of metadata."""

from __future__ import annotations

import datetime
import decimal
import gzip
import io
import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

import sparse_ir
from sparse_ir.data import json_arrays, metadata
from sparse_ir.data.corpus import Corpus
from sparse_ir.data.records import Document
from sparse_ir.errors import ConfigError, DataError

PRODUCTS = [
    {"sku": 7, "name": "Kettle", "description": "boils water", "price": 19.5, "new": True},
    {"sku": 8, "name": "Lamp", "description": "gives light", "price": 5, "new": False},
]
PRODUCT_FIELDS = {"id_field": "sku", "title_field": "name", "text_field": "description"}
PRODUCT_DOCUMENTS = [
    Document("7", "Kettle", "boils water", {"price": 19.5, "new": True}),
    Document("8", "Lamp", "gives light", {"price": 5, "new": False}),
]
PRODUCT_TYPES = {"price": "number", "new": "boolean"}
CSV = "sku,name,description,price,new\n7,Kettle,boils water,19.5,true\n8,Lamp,gives light,5,false\n"


def write(path: Path, content: str | bytes) -> Path:
    """Write a file, compressed as the end of its name says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    raw = content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass")
    if path.suffix == ".gz":
        raw = gzip.compress(raw)
    elif path.suffix == ".zst":
        raw = zstandard.ZstdCompressor().compress(raw)
    path.write_bytes(raw)
    return path


def write_products(folder: Path, name: str) -> Path:
    if ".parquet" in name:
        pq.write_table(pa.Table.from_pylist(PRODUCTS), folder / name)
        return folder / name
    if ".json." in f"{name}.":
        return write(folder / name, json.dumps(PRODUCTS, indent=1))
    if ".jsonl" in name or ".ndjson" in name:
        return write(folder / name, "".join(json.dumps(record) + "\n" for record in PRODUCTS))
    if ".tsv" in name:
        return write(folder / name, CSV.replace(",", "\t"))
    return write(folder / name, CSV)


# --- formats ---


@pytest.mark.parametrize(
    "name",
    [
        *("p.jsonl", "p.ndjson", "p.json", "p.csv", "p.tsv", "p.parquet"),
        *("p.jsonl.zst", "p.json.gz", "p.csv.gz", "p.csv.zst", "p.tsv.zst"),
    ],
)
def test_every_format_gives_the_same_documents_again_and_again(tmp_path, name):
    corpus = Corpus(write_products(tmp_path, name), PRODUCT_FIELDS)
    assert corpus.metadata_schema() == PRODUCT_TYPES
    for _ in range(2):
        documents = list(corpus.read())
        assert documents == PRODUCT_DOCUMENTS
        assert [type(document.metadata["price"]) for document in documents] == [float, int] or (
            name == "p.parquet"  # has one type for a column
        )
    assert all(not document.metadata for document in corpus.read(with_metadata=False))


STANDARD_INPUTS = ["p.jsonl", "p.json", "p.csv", "p.tsv", "p.jsonl.gz", "p.json.zst", "p.parquet"]


@pytest.mark.parametrize("name", STANDARD_INPUTS)
def test_standard_input_is_read_again_and_again(tmp_path, monkeypatch, name):
    content = write_products(tmp_path, name).read_bytes()
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(content)))
    corpus = Corpus("-", PRODUCT_FIELDS)
    assert list(corpus.read()) == list(corpus.read()) == PRODUCT_DOCUMENTS


def test_standard_input_needs_the_name_of_a_format_that_it_does_not_show(monkeypatch):
    def give(text):
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(text.encode())))

    give("just text\n")
    with pytest.raises(DataError, match=r"standard input: unknown format; .*--input-format must"):
        Corpus("-", PRODUCT_FIELDS)
    give(CSV)
    corpus = Corpus("-", {**PRODUCT_FIELDS, "input_format": "csv"})
    assert list(corpus.read()) == PRODUCT_DOCUMENTS
    give('{"_id": "a", "text": "x"}\n{"_id": "b"}\n')
    with pytest.raises(DataError, match=r'standard input:2: "text" is missing'):
        list(Corpus("-").read())


def test_the_format_can_be_named_for_any_name(tmp_path):
    path = write(tmp_path / "export.txt", CSV)
    with pytest.raises(DataError, match=r"export\.txt: unknown format of corpus; .*--input-format"):
        Corpus(path)
    corpus = Corpus(path, {**PRODUCT_FIELDS, "input_format": "csv"})
    assert list(corpus.read()) == PRODUCT_DOCUMENTS
    path = write(tmp_path / "lines.json", '{"_id": "a", "text": "x"}\n{"_id": "b", "text": "y"}\n')
    assert [document.doc_id for document in Corpus(path).read()] == ["a", "b"]


def test_a_tsv_file_with_a_header_and_one_without(tmp_path):
    path = write(tmp_path / "h.tsv", "text\tid\tyear\nsalt\t1\t1999\n")
    assert list(Corpus(path).read()) == [Document("1", "", "salt", {"year": 1999})]
    path = write(tmp_path / "m.tsv", '1\t"salt\n2\ttext\n')
    assert list(Corpus(path).read()) == [Document("1", "", '"salt'), Document("2", "", "text")]


def test_quoted_cells_and_empty_names_of_columns(tmp_path):
    path = write(tmp_path / "c.csv", ',id,text\n0,a,"two\nlines, ""quoted"""\n1,b,x\n')
    documents = list(Corpus(path).read())
    assert documents == [
        Document("a", "", 'two\nlines, "quoted"', {"column 1": 0}),
        Document("b", "", "x", {"column 1": 1}),
    ]
    write(path, 'id,text\na,"\n"\n,"x"\n')
    with pytest.raises(DataError, match=r'c\.csv:4: "id" is empty'):
        list(Corpus(path).read())


def test_cells_may_be_separated_by_semicolons(tmp_path):
    path = write(tmp_path / "c.csv", 'id;text;price\n1;"a; b, c";2,5\n')
    assert list(Corpus(path).read()) == [Document("1", "", "a; b, c", {"price": "2,5"})]
    path = write(tmp_path / "d.csv", "text\na;b\n")
    assert [each.text for each in Corpus(path, {"make_ids": True}).read()] == ["a;b"]


BROKEN_TABLES = {
    "id,id\n": r"c\.csv:1: column 'id' appears twice",
    "id,text\na\n": r"c\.csv:2: 1 cells, \['a'\]; there must be 2, as in the header",
    'id,text\na,"x\ny"\nb,x,y\n': r"c\.csv:4: 3 cells",
    "id,text\n\na,x\n": r"c\.csv:2: empty line; each must hold a record",
    'id,text\na,"x\n': r"c\.csv:2: not CSV \(unexpected end of data\)",
    'id,text\na,x\nb,"x"y\n': r"c\.csv:3: not CSV \(.*\); cells must be separated by ','",
    "id,text\n,x\n": r'c\.csv:2: "id" is empty',
    "id,text\na,x\na,y\n": r"""c\.csv:3: "id" is 'a' as in line 2; each id must be unique""",
    "id,body\na,x\n": r'c\.csv:2: "text" is missing \(keys: id, body\).*--text-field must name',
    "sku,text\na,x\n": r'c\.csv:2: "_id" is missing \(keys: sku, text\).*--id-field must name',
}


@pytest.mark.parametrize("text", BROKEN_TABLES, ids=range(len(BROKEN_TABLES)))
def test_broken_tables_are_named_with_their_line(tmp_path, text):
    with pytest.raises(DataError, match=BROKEN_TABLES[text]):
        list(Corpus(write(tmp_path / "c.csv", text)).read())


def test_bytes_of_a_table_that_are_not_utf8_are_named(tmp_path):
    path = write(tmp_path / "c.csv", b"id,text\na,x\nb,\xff\n")
    with pytest.raises(DataError, match=r"c\.csv:3: not UTF-8 \(invalid start byte at byte 3"):
        list(Corpus(path).read())


BROKEN_ARRAYS = {
    "": r"c\.json:1: not a JSON array; the file must be one array of objects: ''",
    "3": r"c\.json:1: not a JSON array",
    "[": r"c\.json:1: not JSON \(.*\): ''",
    '[{"_id": "a"}\n, 3]': r"c\.json:2: not a JSON object; each element of the array must be one: '3",
    '[{"_id": "a"\n': r"c\.json:1: not JSON \(Expecting ',' delimiter\)",
    '[\n{"_id": "a", "_id": "b"}]': r"c\.json:2: not JSON \(key '_id' twice in one object\)",
    '[{"_id": "a"}\n\n{"_id": "b"}]': r"c\.json:3: the array does not go on or end here",
    '[{"_id": "a"}': r"c\.json:1: the array does not go on or end here",
    '[{"_id": "a"},\n]': r"c\.json:2: not a JSON object",
    '[]\n"x"': r"c\.json:2: text after the end of the array",
    '[{"_id": "a", "text": nul}]': r"c\.json:1: not JSON \(Expecting value\)",
    "[" + '{"a":' * 100_000: r"c\.json:1: not JSON",
}


@pytest.mark.parametrize("text", BROKEN_ARRAYS, ids=range(len(BROKEN_ARRAYS)))
def test_broken_arrays_are_named_with_their_line(tmp_path, text):
    path = write(tmp_path / "c.json", text)
    with pytest.raises(DataError, match=BROKEN_ARRAYS[text]):
        list(Corpus(path, {"make_ids": True, "text_field": "_id"}).read())


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 1 << 16])
def test_an_array_is_read_in_parts_of_any_size(tmp_path, monkeypatch, chunk):
    records = [
        {"_id": f"é{number}", "text": "x" * number + '"\\\u2028}]', "n": [1.5e3, None, True]}
        for number in range(12)
    ]
    text = json.dumps(records, indent=1, ensure_ascii=False) + "\n"
    path = write(tmp_path / "c.json", text)
    monkeypatch.setattr(json_arrays, "_CHUNK_BYTES", chunk)
    read = list(json_arrays.read_json_array(json_arrays.InputFile.at(path)))
    assert [record for _, record in read] == records
    lines = text.split("\n")
    starts = [number for number, line in enumerate(lines, 1) if line == " {"]
    assert [number for number, _ in read] == starts


@pytest.mark.parametrize("name", ["c.csv.zst", "c.json.zst", "c.jsonl.zst", "c.csv.gz"])
def test_a_cut_file_is_refused(tmp_path, name):
    path = write_products(tmp_path, name)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DataError, match=re.escape(name) + r":\d+: cannot be read to its end \("):
        list(Corpus(path, PRODUCT_FIELDS).read())
    path.write_text(CSV)
    with pytest.raises(DataError, match=re.escape(name) + r":\d+: cannot be read to its end \("):
        list(Corpus(path, PRODUCT_FIELDS).read())


def test_frames_of_zstd_follow_each_other(tmp_path):
    frames = [zstandard.ZstdCompressor().compress(line.encode()) for line in CSV.splitlines(True)]
    path = tmp_path / "c.csv.zst"
    path.write_bytes(b"".join(frames))
    assert list(Corpus(path, PRODUCT_FIELDS).read()) == PRODUCT_DOCUMENTS


def test_broken_parquet_files_are_named(tmp_path):
    path = write_products(tmp_path, "p.parquet")
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    with pytest.raises(DataError, match=r"p\.parquet: not a Parquet file \("):
        Corpus(path)
    path.write_bytes(b"PAR1" + b"x" * 60 + whole[64:])
    with pytest.raises(DataError, match=r"p\.parquet:1: cannot be read to its end \("):
        list(Corpus(path, PRODUCT_FIELDS).read())
    write(tmp_path / "p.parquet.gz", whole)
    with pytest.raises(DataError, match=r"a Parquet file must be without \.gz or \.zst"):
        Corpus(tmp_path / "p.parquet.gz")
    pq.write_table(pa.table({"id": ["a", "b"], "text": ["x", None]}), path)
    with pytest.raises(DataError, match=r'p\.parquet:2: "text" is None; it must be a string'):
        list(Corpus(path).read())


def test_columns_of_parquet_have_the_types_of_the_file(tmp_path):
    table = pa.table(
        {
            "id": pa.array([1, 2], pa.int64()),
            "text": ["x", "y"],
            "day": pa.array([datetime.date(2024, 2, 29), None]),
            "at": pa.array([datetime.datetime(2024, 1, 1, 12, 0, 5), None], pa.timestamp("us")),
            "price": pa.array([decimal.Decimal("1.50"), decimal.Decimal("2.25")]),
            "count": pa.array([1, None], pa.int8()),
            "score": pa.array([0.5, float("nan")]),
            "new": [True, None],
            "code": pa.array(["2024-01-01", "7"]).dictionary_encode(),
            "tags": [["a", "b"], []],
            "sizes": [[1, 2], None],
            "maker": [{"name": "X", "since": 1999}, {"name": "Y", "since": None}],
            "metadata": [{"shelf": 3}, None],
            "nothing": pa.nulls(2),
        }
    )
    pq.write_table(table, tmp_path / "t.parquet")
    corpus = Corpus(tmp_path / "t.parquet")
    assert corpus.metadata_schema() == {
        "day": "date",
        "at": "date",
        "price": "number",
        "count": "number",
        "score": "number",
        "new": "boolean",
        "code": "keyword",
        "tags": "keywords",
        "sizes": "keywords",
        "maker.name": "keyword",
        "maker.since": "number",
        "shelf": "number",
        "nothing": "keyword",
    }
    first, second = corpus.read()
    assert first.metadata == {
        "day": "2024-02-29",
        "at": "2024-01-01T12:00:05",
        "price": 1.5,
        "count": 1,
        "score": 0.5,
        "new": True,
        "code": "2024-01-01",
        "tags": ["a", "b"],
        "sizes": ["1", "2"],
        "maker.name": "X",
        "maker.since": 1999,
        "shelf": 3,
    }
    assert second.metadata == {"price": 2.25, "code": "7", "tags": [], "maker.name": "Y"}


def test_a_binary_column_is_refused_with_its_row(tmp_path):
    table = pa.table({"id": ["a"], "text": ["x"], "image": [b"\xff"]})
    pq.write_table(table, tmp_path / "t.parquet")
    with pytest.raises(DataError, match=r't\.parquet:1: "image" is b.*; it must be a string'):
        list(Corpus(tmp_path / "t.parquet").read())
    corpus = Corpus(tmp_path / "t.parquet", {"metadata_field": "id"})
    with pytest.raises(DataError, match="no record has the metadata field 'id'"):
        corpus.metadata_schema()


# --- folders ---

MARKDOWN = """---
title: Salt
published: 2024-05-01
tags: [food, sea]
---
# About salt

Salt *is* **good**, see [the sea](http://x.y)
and `code`.

- one
- two

| a | b |
| - | - |
| 1 | 2 |

```
print()
```
<div>inside</div>
"""
HTML = """<!doctype html><html><head><title> The
sea </title><style>p {}</style></head><body><h1>The sea</h1><p>is s<b>alt</b>y &amp; deep
<script>var x</script><p>and<br>wide<ul><li>a<li>b</ul><template>no</template></body></html>"""


def test_a_folder_of_text_files(tmp_path):
    write(tmp_path / "b.txt", "\ufeffplain text\n")
    write(tmp_path / "a/salt of the sea.md", MARKDOWN)
    write(tmp_path / "a/sea.HTML", HTML)
    write(tmp_path / "a/c.md", "intro\n\n## First heading\nbody\n\n# Second\n")
    write(tmp_path / "picture.png", b"\x89PNG")
    write(tmp_path / ".hidden.txt", "x")
    write(tmp_path / ".git/x.txt", "x")
    corpus = Corpus(tmp_path)
    assert corpus.metadata_schema() == {"published": "date", "tags": "keywords"}
    assert list(corpus.read()) == [
        Document("b.txt", "", "plain text"),
        Document("a/c.md", "First heading", "intro\nbody\nSecond"),
        Document(
            "a/salt of the sea.md",
            "Salt",
            "About salt\nSalt is good, see the sea and code.\none\ntwo\na\nb\n1\n2\nprint()\ninside",
            {"published": "2024-05-01", "tags": ["food", "sea"]},
        ),
        Document("a/sea.HTML", "The sea", "The sea\nis salty & deep\nand\nwide\na\nb"),
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.md", "---\na: [\n---\n", r"a\.md:3: front matter is not YAML \("),
        (
            "a.md",
            "---\na: &x [1]\nb: *x\n---\n",
            r"a\.md:2: front matter is not .*aliases \(\*name",
        ),
        ("a.md", "---\na: " + "[" * 100_000 + "\n---\n", r"a\.md:\d+: front matter is not YAML"),
        ("a.md", "---\njust text\n---\n", r"a\.md:2: front matter is a str; it must be fields"),
        ("a.txt", b"ok\n\xff", r"a\.txt:2: not UTF-8"),
        ("a.html", b"\xff", r"a\.html:1: not UTF-8"),
        ("a.png", b"x", r": no corpus; looked for .*corpus\.jsonl and .*files that end in \.txt, "),
    ],
)
def test_broken_folders_are_named(tmp_path, name, content, message):
    write(tmp_path / "f" / name, content)
    with pytest.raises(DataError, match=message):
        list(Corpus(tmp_path / "f").read())


def test_markdown_that_begins_with_a_rule_has_no_front_matter(tmp_path):
    write(tmp_path / "a.md", "---\n\ntext\n")
    assert list(Corpus(tmp_path).read()) == [Document("a.md", "", "text")]


# --- Python objects ---


@pytest.mark.parametrize(
    "make",
    [
        lambda: PRODUCTS,
        lambda: iter(PRODUCTS),
        lambda: pd.DataFrame(PRODUCTS),
        lambda: pl.DataFrame(PRODUCTS, strict=False),
        lambda: pa.Table.from_pylist(PRODUCTS),
    ],
    ids=["list", "iterator", "pandas", "polars", "arrow"],
)
def test_objects_and_tables_of_python(make):
    corpus = Corpus(make(), PRODUCT_FIELDS)
    assert list(corpus.read()) == list(corpus.read()) == PRODUCT_DOCUMENTS
    assert corpus.metadata_schema() == PRODUCT_TYPES


def test_documents_of_python_and_values_of_numpy():
    documents = [Document("a b", "t", "x", {"year": 1999}), Document("b", "", "", {})]
    assert list(Corpus(documents).read()) == list(Corpus(iter(documents)).read()) == documents
    records = [
        {"id": np.int64(3), "text": "x", "p": np.float32(0.5), "l": np.arange(2), "n": pd.NA},
        {"id": 4, "text": "x", "p": float("nan"), "t": pd.Timestamp("2024-01-01"), "n": None},
    ]
    first, second = Corpus(records).read()
    assert first == Document("3", "", "x", {"p": 0.5, "l": ["0", "1"]})
    assert second == Document("4", "", "x", {"t": "2024-01-01T00:00:00"})


@pytest.mark.parametrize("source", [["a"], [3], [("a", "t", "x")], iter(["a"])])
def test_items_that_are_no_documents_are_named(source):
    with pytest.raises(ConfigError, match=r"input must be a path, .*but item 1 is"):
        list(Corpus(source).read())
    with pytest.raises(ConfigError, match=r"input must be a path, .* not 5"):
        Corpus(5)


# --- fields and ids ---


def test_named_fields_may_be_nested_missing_numbers_or_lists():
    records = [
        {"id": 1, "doc": {"head": "A", "body": ["x", "y"]}, "year": 1999},
        {"id": 2, "doc": {"body": None}, "year": None, "note": "n"},
        {"id": 3},
    ]
    options = {"title_field": ("doc.head", "year"), "text_field": ["doc.body", "note"]}
    assert list(Corpus(records, options).read()) == [
        Document("1", "A 1999", "x\ny"),
        Document("2", "", "n"),
        Document("3", "", ""),
    ]
    with pytest.raises(DataError, match=r'input:1: "doc.body" is 1.5j; it must be a string'):
        list(Corpus([{"id": 1, "doc": {"body": 1.5j}}], {"text_field": "doc.body"}).read())


def test_a_named_field_that_no_record_has_is_an_error():
    records = [{"id": 1, "text": "x", "year": 3}]
    with pytest.raises(
        DataError, match=r"input: no record has the field 'txt'; .*: id, text, year"
    ):
        list(Corpus(records, {"text_field": ("text", "txt")}).read())
    with pytest.raises(DataError, match=r"no record has the metadata field 'yer'; .* are none"):
        list(Corpus(records, {"metadata_field": "yer"}).read())
    with pytest.raises(DataError, match=r"'yer', for which a type is given; the fields are year"):
        list(Corpus(records, {"metadata_type": "yer=number"}).read())


def test_missing_ids_are_made_from_the_content():
    records = [{"text": "x"}, {"text": "y", "_id": None}, {"_id": "own", "text": "x"}]
    with pytest.raises(DataError, match=r'input:1: "_id" is missing'):
        list(Corpus(records).read())
    ids = [document.doc_id for document in Corpus(records, {"make_ids": True}).read()]
    assert ids[2] == "own" and len(set(ids)) == 3
    assert all(re.fullmatch("[0-9a-f]{20}", made) for made in ids[:2])
    again = [document.doc_id for document in Corpus(records, {"make_ids": True}).read()]
    assert again == ids
    with pytest.raises(DataError, match=r'input:2: "_id" is .* as in line 1; each id must be'):
        list(Corpus([{"text": "x"}, {"text": "x"}], {"make_ids": True}).read())


# --- metadata ---


def types_of(*values):
    return Corpus([{"id": n, "text": "", "m": value} for n, value in enumerate(values)])


@pytest.mark.parametrize(
    ("values", "kind", "converted"),
    [
        ((1, 2.5), "number", [1, 2.5]),
        ((True, False), "boolean", [True, False]),
        (("2024-01-31", "2024-01-31T10:00:00Z"), "date", ["2024-01-31", "2024-01-31T10:00:00Z"]),
        (("2024-01-31", "soon"), "keyword", ["2024-01-31", "soon"]),
        (("2024-02-30",), "keyword", ["2024-02-30"]),
        (("1", "2"), "keyword", ["1", "2"]),
        (("a", 1, True, 2.5), "keyword", ["a", "1", "true", "2.5"]),
        ((["a"], ["b", 1, None]), "keywords", [["a"], ["b", "1"]]),
        (("a", ["b"]), "keywords", [["a"], ["b"]]),
        (([{"x": 1}], []), "keywords", [['{"x": 1}'], []]),
        ((2**63, 1), "keyword", [str(2**63), "1"]),
        ((datetime.date(2024, 1, 31), "2024-02-01"), "date", ["2024-01-31", "2024-02-01"]),
        ((decimal.Decimal("1.5"),), "number", [1.5]),
        ((datetime.time(1, 2),), "keyword", ["01:02:00"]),
    ],
)
def test_types_are_inferred_over_all_values(values, kind, converted):
    corpus = types_of(*values)
    assert corpus.metadata_schema() == {"m": kind}
    assert [document.metadata["m"] for document in corpus.read()] == converted


@pytest.mark.parametrize(
    ("cells", "kind", "converted"),
    [
        (["1", "-2.5", "1e3", ""], "number", [1, -2.5, 1000.0, None]),
        (["007", "8"], "keyword", ["007", "8"]),
        (["0", "0.5"], "number", [0, 0.5]),
        (["true", "False"], "boolean", [True, False]),
        (["true", "1"], "keyword", ["true", "1"]),
        (["2024-01-31", ""], "date", ["2024-01-31", None]),
        (["nan", "1"], "keyword", ["nan", "1"]),
        (["1_0", "١"], "keyword", ["1_0", "١"]),
    ],
)
def test_types_of_cells_are_inferred(tmp_path, cells, kind, converted):
    lines = [f"{number},x,{cell}\n" for number, cell in enumerate(cells)]
    corpus = Corpus(write(tmp_path / "c.csv", "id,text,m\n" + "".join(lines)))
    assert corpus.metadata_schema() == {"m": kind}
    assert [document.metadata.get("m") for document in corpus.read()] == converted


@pytest.mark.parametrize(
    ("kind", "value", "converted"),
    [
        ("number", "12.50", 12.5),
        ("number", "007", 7),
        ("keyword", 7, "7"),
        ("keywords", "a", ["a"]),
        ("boolean", "TRUE", True),
        ("date", "2024-01-31 10:00", "2024-01-31 10:00"),
    ],
)
def test_types_can_be_given(kind, value, converted):
    corpus = Corpus([{"id": 1, "text": "", "a=b": value}], {"metadata_type": f"a=b={kind}"})
    assert corpus.metadata_schema() == {"a=b": kind}
    assert next(corpus.read()).metadata == {"a=b": converted}


@pytest.mark.parametrize(
    ("kind", "value", "rule"),
    [
        ("number", "cheap", r"'cheap'; it must be a finite number \(its type is number\)"),
        ("number", True, "True; it must be a finite number"),
        ("number", float("inf"), "inf; it must be a finite number"),
        ("number", "1" * 5000, "it must be a finite number"),
        ("boolean", 1, "1; it must be true or false"),
        ("date", "31.1.2024", "'31.1.2024'; it must be a date such as"),
        ("keyword", "\ud800", "it must be a string"),
        ("keywords", [b"x"], "it must be a list of strings"),
    ],
)
def test_a_value_of_another_type_is_rejected_with_its_place(kind, value, rule):
    records = [
        {"id": 1, "text": ""},
        {"id": 2, "text": "", "m": value},
        {"id": 3, "text": "", "m": 1},
    ]
    with pytest.raises(DataError, match=rf'input:2: "m" is .*{rule}'):
        list(Corpus(records, {"metadata_type": f"m={kind}"}).read())


@pytest.mark.parametrize("text", ["price", "price=money", "=number"])
def test_types_that_are_unknown_are_named(text):
    with pytest.raises(ConfigError, match=r"metadata_type is .*; it must be FIELD=TYPE"):
        Corpus([], {"metadata_type": text})


def test_fields_of_the_object_metadata_have_no_prefix_and_chosen_fields_are_kept_alone():
    records = [
        {"id": 1, "text": "", "metadata": {"year": 1, "by": {"who": "X"}}, "n": {"a": {"b": 2}}}
    ]
    assert next(Corpus(records).read()).metadata == {"year": 1, "by.who": "X", "n.a.b": 2}
    assert next(Corpus(records, {"metadata_field": "by"}).read()).metadata == {"by.who": "X"}
    chosen = {"metadata_field": ("n.a.b", "year")}
    assert next(Corpus(records, chosen).read()).metadata == {"year": 1, "n.a.b": 2}
    twice = [{"id": 1, "text": "", "metadata": {"year": 1}, "year": 2}]
    with pytest.raises(DataError, match=r'input:1: "year" is there twice, nested and not'):
        list(Corpus(twice).read())


def test_too_many_fields_are_refused(monkeypatch):
    monkeypatch.setattr(metadata, "MOST_FIELDS", 3)
    records = [{"id": n, "text": "", f"f{n}": 1} for n in range(4)]
    with pytest.raises(DataError, match=r"input:4: field 'f3' is one more than 3 metadata fields"):
        list(Corpus(records).read())
    with pytest.raises(DataError, match=r"input:1: field '' must have a name"):
        list(Corpus([{"id": 1, "text": "", "": 1}]).read())


def test_a_corpus_that_changed_since_its_fields_were_listed_is_refused(tmp_path):
    path = write(tmp_path / "c.jsonl", '{"_id": "a", "text": "", "n": 1}\n')
    corpus = Corpus(path)
    corpus.metadata_schema()
    write(path, '{"_id": "a", "text": "", "n": 1}\n{"_id": "b", "text": "", "n": "x"}\n')
    with pytest.raises(DataError, match=r"c\.jsonl:2: \"n\" is 'x'; it must be a finite number"):
        list(corpus.read())
    write(path, '{"_id": "a", "text": "", "m": 1}\n')
    with pytest.raises(DataError, match=r'c\.jsonl:1: "m" was not there when the fields were'):
        list(corpus.read())


# --- memory ---

MEASURE_MEMORY = """
import re, sys
from pathlib import Path
from sparse_ir.data.corpus import Corpus
source = sys.argv[1]
number = sum(1 for _ in Corpus(source).read())
print(number, re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
"""


# pyarrow needs some 15 MB before it is warm
COUNTS = {
    "csv": (500, 10_000),
    "json": (500, 10_000),
    "parquet": (5_000, 15_000),
    "folder": (50, 2500),
}


@pytest.mark.parametrize("kind", COUNTS)
def test_memory_does_not_grow_with_the_corpus(tmp_path, kind):
    peaks = []
    text = "word " * 400
    for count in COUNTS[kind]:
        path = tmp_path / f"{count}.{kind}"
        ids = range(count)
        if kind == "csv":
            write(path, "id,text,n\n" + "".join(f"{number},{text},{number}\n" for number in ids))
        elif kind == "json":
            write(path, json.dumps([{"_id": n, "text": text, "n": n} for n in ids], indent=1))
        elif kind == "parquet":
            table = pa.table({"id": list(ids), "text": [text] * count})
            pq.write_table(table, path, row_group_size=500, use_dictionary=False)
        else:
            for number in ids:
                write(path / f"{number}.txt", text)
        command = [sys.executable, "-c", MEASURE_MEMORY, str(path)]
        folder = Path(sparse_ir.__file__).parents[1]
        printed = subprocess.check_output(command, text=True, cwd=folder).split()
        assert int(printed[0]) == count
        peaks.append(int(printed[1]))
    # the larger one has at least 5 MB of text more; the ids of the corpus are cached
    assert (peaks[1] - peaks[0]) * 1024 < 0.3 * len(text) * COUNTS[kind][1]
