"""Readers under made-up files: documents, or a ``DataError`` that names the file and a place."""

from __future__ import annotations

import gzip
import io
import json
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sparse_ir.data.corpus import Corpus
from sparse_ir.data.readers import read_queries
from sparse_ir.data.records import Document
from sparse_ir.errors import DataError

RECORDS = [
    {"_id": "d1", "title": "Salt", "text": "of the\nearth", "n": 1, "tags": ["a", "b"]},
    {"_id": "dé", "title": "", "text": 'a "quoted", text', "n": 2.5, "day": "2024-01-31"},
]
MARKDOWN = "---\ntitle: T\nday: 2024-01-31\n---\n# H\n\n*a* `b` <i>c</i>\n\n> d\n"
HTML = "<!doctype html><title>T</title><body><p>a<b>b</b><script>x</script><ul><li>c</ul>"


def as_parquet() -> bytes:
    stream = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(RECORDS), stream)
    return stream.getvalue()


LINES = "".join(json.dumps(record) + "\n" for record in RECORDS).encode()
TABLE = b'_id,title,text,n\nd1,Salt,"of the\nearth",1\nd2,,"a ""b""",2.5\n'
FILES = {
    "c.jsonl": LINES,
    "c.json": json.dumps(RECORDS, indent=1).encode(),
    "c.csv": TABLE,
    "c.tsv": TABLE.replace(b",", b"\t"),
    "c.parquet": as_parquet(),
    "c.jsonl.gz": gzip.compress(LINES, mtime=0),
    "c.csv.zst": zstandard.ZstdCompressor().compress(TABLE),
    "f/c.md": MARKDOWN.encode(),
    "f/c.html": HTML.encode(),
    "f/c.txt": b"text",
}
ODD = [b"", b"\xff", b"\x00", b'"', b"\n", b"\n\n", b",", b"{", b"[", b"]", b"\\u", b"\xef\xbb\xbf"]
ODD += [b"null", b"NaN", b"1e999", b'{"_id": 1}', b"---\n", b"&x ", b"*x", b"<!--", b"\xf0\x9f"]
FUZZ = settings(
    max_examples=80,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


@st.composite
def changed(draw: st.DrawFn, content: bytes) -> bytes:
    """The content with some pieces cut out, repeated or replaced."""
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(content)))
        end = min(len(content), start + draw(st.integers(0, 30)))
        piece = draw(st.sampled_from(ODD) | st.binary(max_size=6) | st.just(content[start:end] * 2))
        content = content[:start] + piece + content[end:]
    return content


def read_or_refuse(path: Path, source: Path) -> None:
    """Read documents twice alike, or get an error that names the file."""
    for options in ({}, {"make_ids": True, "text_field": "text", "title_field": ("title", "n")}):
        try:
            corpus = Corpus(source, options)
            documents = list(corpus.read())
        except DataError as error:
            place = re.escape(str(path if "has the field" not in str(error) else source))
            assert re.match(rf"{place}(:\d+)?: ", str(error)), error
            assert len(str(error)) < 1500 + 3 * len(str(path))
        else:
            assert all(isinstance(document, Document) for document in documents)
            assert list(corpus.read()) == documents
            json.dumps([document[:3] for document in documents], ensure_ascii=False).encode()
            json.dumps([dict(document.metadata) for document in documents]).encode()


@pytest.mark.parametrize("name", FILES)
def test_changed_files_are_read_or_refused(folder, name):
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    source = path.parent if "/" in name else path

    @FUZZ
    @given(changed(FILES[name]) | st.binary(max_size=40))
    def try_content(content: bytes) -> None:
        path.write_bytes(content)
        read_or_refuse(path, source)

    try_content()


TEXTS = st.text(st.characters(codec="utf-8"), max_size=12)
IDS = TEXTS.filter(lambda text: text and re.search(r"[\x00-\x1f\x7f-\x9f]|^\s|\s$", text) is None)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)


@settings(FUZZ, max_examples=40)
@given(
    st.lists(
        st.fixed_dictionaries({"_id": IDS, "title": TEXTS, "text": TEXTS, "m": VALUES}),
        unique_by=lambda record: record["_id"],
        max_size=4,
    )
)
def test_whatever_is_written_as_json_is_read_alike(records):
    expected = [tuple(record[name] for name in ("_id", "title", "text")) for record in records]
    lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "c.jsonl").write_text(lines, encoding="utf-8")
        (Path(name) / "c.json").write_text(json.dumps(records), encoding="utf-8")
        corpora = [Corpus(Path(name) / file) for file in ("c.jsonl", "c.json")] + [Corpus(records)]
        for corpus in corpora:
            documents = list(corpus.read(with_metadata=False))
            assert [document[:3] for document in documents] == expected
        read = []
        for corpus in corpora:
            try:
                read.append((corpus.metadata_schema(), list(corpus.read())))
            except DataError as error:  # a field without a name, or one twice
                assert re.search(r"must have a name|is there twice", str(error))
                read.append(None)
        assert read[0] == read[1] == read[2]


@FUZZ
@given(st.lists(st.tuples(IDS, TEXTS, TEXTS), unique_by=lambda row: row[0], max_size=4))
def test_whatever_is_written_as_csv_is_read_alike(rows):
    import csv

    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "c.csv"
        with path.open("w", encoding="utf-8", newline="") as stream:
            csv.writer(stream).writerows([("id", "text", "m"), *rows])
        corpus = Corpus(path)
        documents = list(corpus.read(with_metadata=False))
        assert [(each.doc_id, each.text) for each in documents] == [row[:2] for row in rows]
        assert [query.text for query in read_queries(path)] == [row[1] for row in rows]
        shown = [str(each.metadata.get("m", "")).lower() for each in corpus.read()]
        if corpus.metadata_schema().get("m", "keyword") == "keyword":
            assert shown == [row[2].lower() for row in rows]
