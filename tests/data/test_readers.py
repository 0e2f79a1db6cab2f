"""Readers and writers: every format, every refusal with its message, round trips, and memory that
does not grow.
"""

import gzip
import json
import math
import pickle
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import sparse_ir
from sparse_ir.data.readers import (
    find_corpus,
    find_hub_name,
    find_qrels,
    find_queries,
    read_documents,
    read_qrels,
    read_queries,
)
from sparse_ir.data.records import Document, Query, rank_hits
from sparse_ir.data.runs import read_run, write_run
from sparse_ir.errors import ConfigError, DataError

CORPUS = '{"_id": "d1", "title": "Salt", "text": "of the earth", "metadata": {"year": 1}}\n{"_id": "d2", "text": ""}\n'
DOCUMENTS = [Document("d1", "Salt", "of the earth"), Document("d2", "", "")]
HEADER = "query-id\tcorpus-id\tscore\n"


def write(path, text):
    """Write text or bytes, compressed when the name ends in .gz; gives the path back."""
    path.parent.mkdir(parents=True, exist_ok=True)
    raw = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)
    return path


def run_python(code, *arguments):
    """What a fresh Python process prints."""
    command = [sys.executable, "-c", code, *arguments]
    folder = Path(sparse_ir.__file__).parents[1]
    return subprocess.run(command, check=True, capture_output=True, text=True, cwd=folder).stdout


# --- documents and queries ---


@pytest.mark.parametrize(
    ("title", "text", "contents"),
    [("A", "b", "A b"), ("", "b", "b"), ("A", "", "A"), ("", "", ""), (" A ", "\tb\n", "A  \tb")],
)
def test_contents_are_title_and_text_stripped_outside(title, text, contents):
    assert Document("d", title, text).contents == contents


def test_a_document_without_metadata_has_an_empty_mapping_that_nobody_can_change():
    document = Document("d", "t", "x")
    assert document.metadata == {} and dict(document.metadata) == {} and not document.metadata
    assert repr(document.metadata) == "{}"
    assert document == Document("d", "t", "x", {}) != Document("d", "t", "x", {"year": 1})
    assert pickle.loads(pickle.dumps(document)) == document
    assert len({document, Document("d", "t", "x")}) == 1
    with pytest.raises(TypeError):
        document.metadata["year"] = 1
    with pytest.raises(KeyError):
        document.metadata["year"]


@pytest.mark.parametrize("name", ["corpus.jsonl", "corpus.jsonl.gz"])
def test_a_beir_folder_and_its_file_are_the_same_corpus(tmp_path, name):
    path = write(tmp_path / name, CORPUS)
    assert (
        list(read_documents(tmp_path))
        == list(read_documents(path))
        == list(read_documents(str(path)))
        == DOCUMENTS
    )
    assert find_corpus(tmp_path) == find_corpus(path) == path


@pytest.mark.parametrize("name", ["queries.jsonl", "queries.jsonl.gz"])
def test_queries_of_a_beir_folder(tmp_path, name):
    path = write(
        tmp_path / name,
        '{"_id": "q1", "text": "what is salt", "metadata": {}}\n{"_id": "q2", "text": ""}\n',
    )
    assert (
        list(read_queries(tmp_path))
        == list(read_queries(path))
        == [Query("q1", "what is salt"), Query("q2", "")]
    )
    assert find_queries(tmp_path) == path


@pytest.mark.parametrize("name", ["collection.tsv", "collection.tsv.gz"])
def test_tsv_of_ms_marco(tmp_path, name):
    path = write(tmp_path / name, "0\tfirst passage\n7\t\n")
    assert list(read_documents(path)) == [Document("0", "", "first passage"), Document("7", "", "")]
    assert list(read_queries(path)) == [Query("0", "first passage"), Query("7", "")]


@pytest.mark.parametrize("end", ["\n", "", "\r\n", "\n\n\n"])
def test_line_ends_and_empty_lines_at_the_end_do_not_matter(tmp_path, end):
    lines = CORPUS.splitlines()
    path = write(
        tmp_path / "corpus.jsonl", lines[0] + ("\r\n" if "\r" in end else "\n") + lines[1] + end
    )
    assert list(read_documents(path)) == DOCUMENTS


def test_only_line_feeds_end_a_line(tmp_path):
    text = "a\u2028b\u0085c\x0bd"
    path = write(
        tmp_path / "corpus.jsonl", json.dumps({"_id": "d", "text": text}, ensure_ascii=False)
    )
    assert next(read_documents(path)).text == text
    path = write(tmp_path / "c.tsv", f"d\t{text}\n")
    assert next(read_documents(path)).text == text


def test_a_null_title_is_the_empty_title(tmp_path):
    path = write(tmp_path / "corpus.jsonl", '{"_id": "d", "title": null, "text": "x"}')
    assert list(read_documents(path)) == [Document("d", "", "x")]


def test_an_empty_file_has_no_documents(tmp_path):
    assert list(read_documents(write(tmp_path / "corpus.jsonl", ""))) == []


def test_records_before_a_broken_one_are_given_out(tmp_path):
    documents = read_documents(write(tmp_path / "corpus.jsonl", CORPUS + "{"))
    assert [next(documents), next(documents)] == DOCUMENTS
    with pytest.raises(DataError, match=r"corpus\.jsonl:3: not JSON"):
        next(documents)


BROKEN_RECORDS = {
    '{"_id": "a", "text": ': r":2: not JSON \(.*\): '\{\"_id\".*; it must be one object",
    '{"_id": "a", "_id": "b", "text": ""}': r":2: not JSON \(key '_id' twice in one object\)",
    "[" * 200_000: r":2: not JSON \(.*\): '\[\[\[.*\.\.\.; it must be one object",
    "[1, 2]": r":2: not a JSON object but \[1, 2\]; each line must be one",
    "null": r":2: not a JSON object but None",
    "   ": r":2: not JSON",
    '{"text": "x"}': r':2: "_id" is missing \(keys: text\); it must be a non-empty string',
    "{}": r':2: "_id" is missing \(keys: none\)',
    '{"_id": "", "text": "x"}': r':2: "_id" is empty; it must be',
    '{"_id": null, "text": "x"}': r':2: "_id" is None; it must be a string',
    '{"_id": 4.2, "text": "x"}': r':2: "_id" is 4.2; it must be a string, such as "42" in quotes',
    '{"_id": true, "text": "x"}': r':2: "_id" is True; it must be a string, such as "42" in quotes',
    '{"_id": " a", "text": "x"}': r""":2: "_id" is ' a'; it must be without white space at its""",
    '{"_id": "a\\u00a0", "text": "x"}': r':2: "_id" is .*; it must be without white space at its',
    '{"_id": "a\\tb", "text": "x"}': r':2: "_id" is .*; it must be without .*control characters',
    '{"_id": "a\\u0000", "text": "x"}': r":2: \"_id\" is 'a\\x00'; it must be without .*control",
    '{"_id": "a\\u0085", "text": "x"}': r":2: \"_id\" is .*control character",
    '{"_id": "\\ud800", "text": "x"}': r":2: \"_id\" is '\\ud800'; it must be .*lone surrogate",
    '{"_id": "a"}': r':2: "text" is missing \(keys: _id\); it must be a string',
    '{"_id": "a", "text": null}': r':2: "text" is None; it must be a string',
    '{"_id": "a", "text": ["x"]}': r""":2: "text" is \['x'\]; it must be a string""",
    '{"_id": "a", "text": "\\udfff"}': r':2: "text" is .*; it must be text without lone surrogates',
    '{"_id": "a", "title": 3, "text": "x"}': r':2: "title" is 3; it must be a string',
    '{"_id": "d1", "text": "x"}': r""":2: "_id" is 'd1' as in line 1; each id must be unique""",
    "": r":2: empty line; each must hold a record",
}


@pytest.mark.parametrize("read", [read_documents, read_queries])
@pytest.mark.parametrize("line", BROKEN_RECORDS, ids=range(len(BROKEN_RECORDS)))
@pytest.mark.parametrize("name", ["c.jsonl", "c.jsonl.gz"])
def test_broken_records_are_named_with_their_line(tmp_path, read, line, name):
    path = write(
        tmp_path / name, '{"_id": "d1", "text": "x"}\n' + line + '\n{"_id": "d3", "text": "x"}\n'
    )
    with pytest.raises(DataError, match=r"c\.jsonl(\.gz)?" + BROKEN_RECORDS[line]):
        list(read(path))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("no tab", r"c\.tsv:2: 1 columns, 'no tab'; they must be id<TAB>text"),
        ("3\ttitle\ttext", r"c\.tsv:2: 3 columns"),
        ("\ttext", r'c\.tsv:2: "_id" is empty'),
        (" 3\ttext", r'c\.tsv:2: "_id" is \' 3\'; it must be without white space'),
        ("1\ttext", r"c\.tsv:2: \"_id\" is '1' as in line 1"),
        ("", r"c\.tsv:2: empty line"),
    ],
)
def test_broken_lines_of_a_tsv_are_named(tmp_path, line, message):
    path = write(tmp_path / "c.tsv", f"1\tone\n{line}\n9\tnine\n")
    with pytest.raises(DataError, match=message):
        list(read_documents(path))


def test_bytes_that_are_not_utf8_are_named(tmp_path):
    path = write(
        tmp_path / "corpus.jsonl", b'{"_id": "a", "text": ""}\n{"_id": "b", "text": "\xff"}\n'
    )
    with pytest.raises(
        DataError,
        match=r"corpus\.jsonl:2: not UTF-8 \(invalid start byte at byte "
        r"23 of the line, b'",
    ):
        list(read_documents(path))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("c.tsv", "1\ttext\n"),
        ("c.jsonl", '{"_id": 1, "text": "text"}\n\n\n'),
        ("c.json", ' [{"_id": 1, "text": "text"}]\n\n'),
        ("c.csv", "id,text\n1,text\n\n\n"),
    ],
)
def test_a_byte_order_mark_and_blank_lines_at_the_end_are_ignored(tmp_path, name, content):
    path = write(tmp_path / name, b"\xef\xbb\xbf" + content.encode())
    assert list(read_documents(path)) == [Document("1", "", "text")]


def test_ids_may_have_blanks_inside(tmp_path):
    path = write(tmp_path / "c.tsv", "a b\tx\na\u00a0b\ty\n")
    assert [document.doc_id for document in read_documents(path)] == ["a b", "a\u00a0b"]
    qrels = write(tmp_path / "q.tsv", HEADER + "q 1\ta b\t1\n")
    assert read_qrels(qrels) == {"q 1": {"a b": 1}}
    run = write(tmp_path / "r.json", '{"q 1": {"a b": 2}}')
    assert read_run(run) == {"q 1": [("a b", 2.0)]}


def test_ids_with_blanks_are_written_to_trec_files_with_percent_codes_only(tmp_path):
    run = {"q 1": [("50%", 2.0), ("a b\u00a0c", 1.0)]}
    with pytest.raises(DataError, match=r"run: query id is 'q 1'; .* or be .*--encode-ids"):
        write_run(tmp_path / "r", run)
    with pytest.raises(DataError, match=r"run, query 'q': doc id is 'a b.*--encode-ids"):
        write_run(tmp_path / "r", {"q": run["q 1"]})
    assert not list(tmp_path.iterdir())
    write_run(tmp_path / "r", run, encode_ids=True)
    assert read_run(tmp_path / "r") == {"q%201": [("50%25", 2.0), ("a%20b%C2%A0c", 1.0)]}


def test_a_truncated_gzip_file_is_refused(tmp_path):
    rng = random.Random(0)
    lines = [json.dumps({"_id": str(number), "text": str(rng.random())}) for number in range(2000)]
    path = write(tmp_path / "corpus.jsonl.gz", "\n".join(lines))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(
        DataError,
        match=r"corpus\.jsonl\.gz:\d{3,4}: cannot be read to its end "
        r"\(Compressed file ended",
    ):
        list(read_documents(path))
    path.write_bytes(whole[:5000] + bytes(100) + whole[5100:])
    with pytest.raises(
        DataError,
        match=r"corpus\.jsonl\.gz:\d+: (cannot be read to its end|not JSON|not "
        r"UTF-8)",
    ):
        list(read_documents(path))


def test_a_plain_file_named_gz_is_refused(tmp_path):
    path = tmp_path / "corpus.jsonl.gz"
    path.write_text(CORPUS)
    with pytest.raises(
        DataError,
        match=r"corpus\.jsonl\.gz:1: cannot be read to its end \(Not a gzipped "
        r"file.*ends in \.gz",
    ):
        list(read_documents(path))


def test_two_corpora_in_one_folder_are_refused(tmp_path):
    write(tmp_path / "corpus.jsonl", CORPUS)
    write(tmp_path / "corpus.jsonl.gz", CORPUS)
    with pytest.raises(
        DataError,
        match=r"corpus exists twice: .*corpus\.jsonl and "
        r".*corpus\.jsonl\.gz; name",
    ):
        read_documents(tmp_path)


@pytest.mark.parametrize(("read", "stem"), [(read_documents, "corpus"), (read_queries, "queries")])
def test_a_missing_file_is_refused_at_once_with_what_was_looked_for(tmp_path, read, stem):
    with pytest.raises(
        DataError,
        match=rf"absent: no such {stem}; looked for this file, "
        rf".*{stem}\.jsonl\.gz, .*hf:",
    ):
        read(tmp_path / "absent")
    with pytest.raises(
        DataError,
        match=rf"no {stem}; looked for .*{stem}\.jsonl and "
        rf".*{stem}\.jsonl\.gz",
    ):
        read(tmp_path)
    with pytest.raises(
        DataError, match=r"x\.xml: unknown format of .*must end in \.jsonl, .*\.tsv"
    ):
        read(write(tmp_path / "x.xml", ""))
    with pytest.raises(ConfigError, match=r"revision 'v1' is for data sets of the hub"):
        read(write(tmp_path / f"{stem}.jsonl", ""), revision="v1")


def test_duplicates_are_found_exactly_among_many_and_only_when_asked(tmp_path):
    ids = [f"id-{number}" for number in range(5000)]
    random.Random(0).shuffle(ids)
    lines = [
        json.dumps({"_id": record_id, "text": ""})
        for record_id in [*ids, ids[1234], "ID-1", "id-1x"]
    ]
    path = write(tmp_path / "corpus.jsonl", "\n".join(lines))
    with pytest.raises(
        DataError,
        match=rf"jsonl:5001: \"_id\" is '{ids[1234]}' as in line 1235; each id",
    ):
        list(read_documents(path))
    assert len(list(read_documents(path, check_unique=False))) == 5003
    with pytest.raises(DataError, match=r"jsonl:5001: .* as in line 1235"):
        list(read_queries(path))


def test_ids_that_only_look_alike_are_different(tmp_path):
    ids = ["a", "A", "é", "e\u0301", "1", "01", "1.0"]
    path = write(tmp_path / "c.tsv", "".join(f"{record_id}\tx\n" for record_id in ids))
    assert [document.doc_id for document in read_documents(path)] == ids


MEASURE_MEMORY = """
import re, sys
from pathlib import Path
import sparse_ir
from sparse_ir.data.readers import read_documents
number = sum(1 for _ in read_documents(sys.argv[1]))
# Not getrusage: its maximum is inherited from the process that started this one.
print(number, re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
"""


def test_memory_does_not_grow_with_the_corpus(tmp_path):
    peaks = {}
    for number in (1_000, 60_000):
        path = tmp_path / f"{number}.jsonl"
        with path.open("w") as stream:
            stream.writelines(
                f'{{"_id": "{i}-{"x" * 250}", "text": "{"word " * 20}"}}\n' for i in range(number)
            )
        count, peaks[number] = map(int, run_python(MEASURE_MEMORY, str(path)).split())
        assert count == number
    grown_bytes = (peaks[60_000] - peaks[1_000]) * 1024
    # the ids alone have 15 MB; the cache of known ids may fill its 4 MiB
    assert grown_bytes < 10_000_000


# --- the hub ---


@pytest.fixture
def hub_folder(tmp_path):
    """A local folder in the layout of BEIR's data sets on the hub; ids with leading zeros, as some
    sets have them.
    """
    corpus = '{"_id": "007", "title": "t", "text": "x"}\n{"_id": "8", "title": "", "text": "y"}\n'
    write(tmp_path / "tiny/corpus.jsonl.gz", corpus)
    write(tmp_path / "tiny/queries.jsonl", '{"_id": "01", "text": "what"}\n')
    parts = "".join(
        f"- config_name: {part}\n  data_files:\n  - split: {part}\n    path: {name}\n"
        for part, name in [("corpus", "corpus.jsonl.gz"), ("queries", "queries.jsonl")]
    )
    write(tmp_path / "tiny/README.md", f"---\nconfigs:\n{parts}---\n")
    write(tmp_path / "tiny-qrels/test.tsv", HEADER + "01\t007\t2\n01\t8\t0\n")
    write(tmp_path / "tiny-qrels/train.tsv", HEADER + "01\t8\t1\n")
    return f"hf:{tmp_path}/tiny"


def test_a_data_set_of_the_hub(hub_folder):
    assert list(read_documents(hub_folder)) == [Document("007", "t", "x"), Document("8", "", "y")]
    assert list(read_queries(hub_folder)) == [Query("01", "what")]
    assert read_qrels(hub_folder) == read_qrels(f"{hub_folder}-qrels") == {"01": {"007": 2, "8": 0}}
    assert read_qrels(hub_folder, "train") == {"01": {"8": 1}}


def test_broken_data_sets_of_the_hub_are_named(hub_folder, tmp_path):
    with pytest.raises(
        DataError,
        match=r"nowhere: part 'corpus' cannot be loaded from the hub "
        r"\(.*BEIR's layout",
    ):
        list(read_documents(f"hf:{tmp_path}/nowhere"))
    with pytest.raises(DataError, match=r"tiny-qrels: split 'dev' cannot be loaded .*Bad split"):
        read_qrels(hub_folder, "dev")
    write(tmp_path / "tiny/queries.jsonl", '{"_id": 1.5, "text": "what"}\n')
    with pytest.raises(DataError, match=r'hf:.*tiny/queries:1: "_id" is 1.5; it must be a string'):
        list(read_queries(hub_folder))


def test_names_of_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_hub_name("hf:owner/name") == "owner/name"
    assert find_hub_name("BeIR/scifact") == "BeIR/scifact"
    assert find_hub_name("owner/name") is None
    assert find_hub_name(tmp_path) is None
    write(tmp_path / "BeIR/scifact/corpus.jsonl", CORPUS)
    assert find_hub_name("BeIR/scifact") is None
    assert list(read_documents("BeIR/scifact")) == DOCUMENTS


# --- qrels ---


@pytest.mark.parametrize("name", ["test.tsv", "test.tsv.gz"])
def test_qrels_of_a_beir_folder(tmp_path, name):
    path = write(tmp_path / "qrels" / name, HEADER + "q2\td1\t1\nq1\td1\t2\nq2\td3\t0\n")
    expected = {"q2": {"d1": 1, "d3": 0}, "q1": {"d1": 2}}
    assert read_qrels(tmp_path) == read_qrels(path) == expected
    assert list(read_qrels(path)) == ["q2", "q1"]
    assert find_qrels(tmp_path) == path


@pytest.mark.parametrize(
    "text",
    ["q1 0 d1 1\nq1 0 d2 -2\n", "q1\tQ0\td1\t1\nq1\tQ0\td2\t-2", "q1  0   d1 1 \n q1 0 d2 -2\n"],
)
def test_qrels_of_trec(tmp_path, text):
    assert read_qrels(write(tmp_path / "qrels.txt", text)) == {"q1": {"d1": 1, "d2": -2}}


def test_a_pair_judged_twice_alike_is_one_judgement(tmp_path):
    assert read_qrels(write(tmp_path / "q.tsv", HEADER + "q\td\t1\nq\td\t1\n")) == {"q": {"d": 1}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "query_id\tdoc_id\tscore\nq\td\t1\n",
            (
                r"q\.tsv:1: first line of the qrels is .*; it must be "
                r"the header query-id"
            ),
        ),
        ("q\td\t1\n", r"q\.tsv:1: first line of the qrels is 'q\\td\\t1'; it must be"),
        (
            HEADER + "q\td\n",
            r"q\.tsv:2: 2 columns, .*; they must be query-id<TAB>corpus-id<TAB>score",
        ),
        (HEADER + "q d 1\n", r"q\.tsv:2: 1 columns"),
        ("q 0 d 1\nq 0 d\n", r"q\.tsv:2: 3 columns, .*; they must be query_id 0 doc_id relevance"),
        (HEADER + "q\td\t1.0\n", r"q\.tsv:2: relevance is '1.0'; it must be an integer"),
        (HEADER + "q\td\t\n", r"q\.tsv:2: relevance is ''"),
        (
            HEADER + "q\td\t12345678901\n",
            (
                r"q\.tsv:2: relevance is '12345678901'; it must be .* at "
                r"most 9 digits"
            ),
        ),
        ("q 0 d high\n", r"q\.tsv:1: relevance is 'high'"),
        # what Python's int() takes, and the formats do not
        ("q 0 d 1_0\n", r"q\.tsv:1: relevance is '1_0'; it must be an integer"),
        ("q 0 d +1\n", r"q\.tsv:1: relevance is '\+1'"),
        ("q 0 d \u0661\n", r"q\.tsv:1: relevance is '\u0661'"),
        ("q 0 d\u00a01 1\n", r"q\.tsv:1: doc id is 'd\\xa01'; it must be without white space"),
        (HEADER + "q\td\t 1 \n", r"q\.tsv:2: relevance is ' 1 '"),
        (HEADER + "q\td\t1_0\n", r"q\.tsv:2: relevance is '1_0'"),
        (HEADER + "q\td\t\u0661\n", r"q\.tsv:2: relevance is '\u0661'"),
        (
            HEADER + "q\td\t1\nq\td\t2\n",
            (
                r"q\.tsv:3: query 'q' and document 'd' are judged twice, "
                r"1 and 2"
            ),
        ),
        (HEADER + "q \td\t1\n", r"q\.tsv:2: query id is 'q '; it must be without white space"),
        (HEADER + "q\t\t1\n", r"q\.tsv:2: doc id is empty"),
        (HEADER, r"q\.tsv: no judgement in it; there must be at least one"),
        ("", r"q\.tsv: no judgement in it"),
        (HEADER + "\nq\td\t1\n", r"q\.tsv:2: empty line"),
    ],
)
def test_broken_qrels_are_named(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        read_qrels(write(tmp_path / "q.tsv", text))


def test_a_missing_split_is_refused_with_the_splits_that_are_there(tmp_path):
    write(tmp_path / "qrels/train.tsv", HEADER)
    write(tmp_path / "qrels/dev.tsv.gz", HEADER)
    with pytest.raises(
        DataError,
        match=r"no qrels of split 'test', splits there: dev, train; "
        r"looked for .*test\.tsv",
    ):
        read_qrels(tmp_path)
    with pytest.raises(DataError, match=r"splits there: none"):
        read_qrels(tmp_path / "absent")


# --- runs ---


def test_a_run_is_written_as_trec_has_it(tmp_path):
    run = {"q1": [("d2", 140000), ("d1", 0.5)], "q0": [], "q2": [("é", -1.0)]}
    write_run(tmp_path / "new/run.txt", run, tag="mine")
    expected = "q1 Q0 d2 1 140000.000000 mine\nq1 Q0 d1 2 0.5 mine\nq2 Q0 é 1 -1.000000 mine\n"
    assert (tmp_path / "new/run.txt").read_bytes().decode() == expected
    assert read_run(tmp_path / "new/run.txt") == {
        "q1": [("d2", 140000.0), ("d1", 0.5)],
        "q2": [("é", -1.0)],
    }


def test_an_empty_run_is_an_empty_file(tmp_path):
    write_run(tmp_path / "run.txt", {})
    assert read_run(tmp_path / "run.txt") == {}


@pytest.mark.parametrize("seed", range(20))
def test_runs_come_back_unaltered(tmp_path, seed):
    rng = np.random.default_rng(seed)
    scores = np.concatenate(
        [
            rng.standard_normal(50).astype(np.float32)
            * np.float32(10.0) ** rng.integers(-30, 30, 50),
            rng.integers(0, 5, 50),
            rng.integers(2**24, 2**31, 20),
            rng.standard_normal(50),
        ]
    )
    hits = rank_hits((f"d{number}", float(score)) for number, score in enumerate(scores))
    write_run(tmp_path / "run.txt", {"q": hits})
    assert read_run(tmp_path / "run.txt") == {"q": hits}


def test_scores_may_be_numpy_numbers(tmp_path):
    write_run(
        tmp_path / "run.txt",
        {"q": [("b", np.float32(0.1)), ("a", np.float32(0.1)), ("c", np.int32(-3))]},
    )
    hits = read_run(tmp_path / "run.txt")["q"]
    assert [doc_id for doc_id, _ in hits] == ["b", "a", "c"]
    assert np.float32(hits[0][1]) == np.float32(0.1)


def test_hits_are_ranked_by_float32_score_then_doc_id_both_descending():
    hits = [
        ("a", 1.0),
        ("b", 2.0),
        ("c", 2.0),
        ("x", 16777216.0),
        ("w", 16777217.0),
        ("é", 1.0),
        ("B", 1.0),
    ]
    assert [doc_id for doc_id, _ in rank_hits(hits)] == ["x", "w", "c", "b", "é", "a", "B"]
    assert rank_hits([]) == []
    assert rank_hits(iter(hits)) == rank_hits(rank_hits(hits))


def test_ranks_and_order_of_lines_are_ignored_when_reading(tmp_path):
    path = write(
        tmp_path / "run.txt", "q Q0 a 1 1.0 t\np Q0 a 1 7 t\nq\tQ0\tb\t0\t1e0\tt\nq Q0 c 9 3 t\n"
    )
    assert read_run(path) == {"q": [("c", 3.0), ("b", 1.0), ("a", 1.0)], "p": [("a", 7.0)]}
    assert read_run(write(tmp_path / "run.gz", path.read_bytes())) == read_run(path)
    assert read_run(path, as_written=True) == {
        "q": [("a", 1.0), ("b", 1.0), ("c", 3.0)],
        "p": [("a", 7.0)],
    }


@pytest.mark.parametrize("name", ["run.json", "run.json.gz"])
def test_runs_in_json(tmp_path, name):
    run = {"q1": {"a": 1, "b": 2.5, "c": 2.5}, "q2": {}}
    path = write(tmp_path / name, json.dumps(run, indent=1))
    assert read_run(path) == {"q1": [("c", 2.5), ("b", 2.5), ("a", 1.0)], "q2": []}


@pytest.mark.parametrize(
    ("text", "score"),
    [("1", 1.0), ("-2.50", -2.5), ("+.5", 0.5), ("3.", 3.0), ("1e-3", 0.001), ("2E+1", 20.0)],
)
def test_all_forms_of_a_decimal_number_are_scores(tmp_path, text, score):
    run = read_run(write(tmp_path / "r.txt", f"q Q0 d 1 {text} t\n"))
    assert run == {"q": [("d", score)]}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "q Q0 d 2 1.0",
            r"r\.txt:2: 5 columns, .*; they must be query_id Q0 doc_id rank score tag",
        ),
        ("q Q0 d 2 1.0 my tag", r"r\.txt:2: 7 columns"),
        ("q Q0 d 2 high t", r"r\.txt:2: score is 'high'; it must be a finite number"),
        ("q Q0 d 2 nan t", r"r\.txt:2: score is 'nan'; it must be a finite number"),
        # what Python's float() takes, and trec_eval does not
        ("q Q0 d 2 1_0 t", r"r\.txt:2: score is '1_0'; it must be a finite number"),
        ("q Q0 d 2 \u0661 t", r"r\.txt:2: score is '\u0661'"),
        ("q Q0 d 2 infinity t", r"r\.txt:2: score is 'infinity'"),
        ("q Q0 d 2 0x1p3 t", r"r\.txt:2: score is '0x1p3'"),
        ("q\u00a0Q0 d 2 1.0 t", r"r\.txt:2: 5 columns"),
        ("q Q0 d 2 -inf t", r"r\.txt:2: score is '-inf'"),
        ("q Q0 d 2 1e39 t", r"r\.txt:2: score is 1e\+39"),
        ("q Q0 a 2 0.5 t", r"r\.txt:2: query 'q' finds document 'a' twice"),
        (
            "q Q0 d\x7f 2 0.5 t",
            r"r\.txt:2: doc id is 'd\\x7f'; it must be without white space, control",
        ),
        ("\nq Q0 d 2 0.5 t", r"r\.txt:2: empty line"),
    ],
)
def test_broken_lines_of_a_run_are_named(tmp_path, line, message):
    with pytest.raises(DataError, match=message):
        read_run(write(tmp_path / "r.txt", f"q Q0 a 1 1.0 t\n{line}\n"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            '{"q": {"a": 1',
            r"r\.json: not a JSON run \(.*; it must be \{query_id: \{doc_id: score\}\}",
        ),
        ("[]", r"r\.json: not a JSON object but \[\]"),
        (
            '{"q": [["a", 1]]}',
            (
                r"r\.json: query 'q': the hits are \[\['a', 1\]\]; they must be an "
                r"object"
            ),
        ),
        ('{"q": {"a": "1"}}', r"r\.json: query 'q': score is '1'; it must be a finite number"),
        ('{"q": {"a": true}}', r"r\.json: query 'q': score is True"),
        ('{"q": {"a": NaN}}', r"r\.json: query 'q': score is nan"),
        ('{"q": {"a": 1, "a": 2}}', r"r\.json: not a JSON run \(key 'a' twice in one object\)"),
        (
            '{"q": {"a ": 1}}',
            r"r\.json: query 'q': doc id is 'a '; it must be without white space",
        ),
        ('{"": {"a": 1}}', r"r\.json: query id is empty"),
    ],
)
def test_broken_runs_in_json_are_named(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        read_run(write(tmp_path / "r.json", text))


def test_a_missing_run_is_refused(tmp_path):
    with pytest.raises(
        DataError,
        match=r"absent\.txt: no such run; it must be a TREC file \(plain "
        r"or \.gz\)",
    ):
        read_run(tmp_path / "absent.txt")


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (
            {"q": [("a", math.nan)]},
            (
                r"run, query 'q': score is nan; it must be a finite number "
                r"within float32"
            ),
        ),
        ({"q": [("a", math.inf)]}, r"run, query 'q': score is inf"),
        ({"q": [("a", 1e39)]}, r"run, query 'q': score is 1e\+39"),
        ({"q": [("a b", 1.0)]}, r"run, query 'q': doc id is 'a b'; it must be without white space"),
        ({"q": [("", 1.0)]}, r"run, query 'q': doc id is empty"),
        ({"q\t": [("a", 1.0)]}, r"run: query id is 'q\\t'; it must be without white space"),
        ({"q": [(7, 1.0)]}, r"run, query 'q': doc id is 7; it must be a string"),
        (
            {"q": [("a", 2.0), ("b", 1.0), ("a", 1.0)]},
            (
                r"run, query 'q': document 'a' appears "
                r"twice"
            ),
        ),
        (
            {"q": [("a", 1.0), ("b", 2.0)]},
            (
                r"run, query 'q': rank 1 is \('a', 1\.0\); it must be "
                r"\('b', 2\.0\)"
            ),
        ),
        (
            {"q": [("c", 3.0), ("a", 1.0), ("b", 1.0)]},
            (
                r"rank 2 is \('a', 1\.0\); it must be \('b', "
                r"1\.0\), as rank_hits"
            ),
        ),
    ],
)
def test_runs_that_cannot_be_trusted_are_not_written(tmp_path, run, message):
    path = write(tmp_path / "run.txt", "old")
    with pytest.raises(DataError, match=message):
        write_run(path, {"fine": [("a", 1.0)]} | run)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_names_that_promise_another_format_and_broken_tags_are_refused(tmp_path):
    for name in ("run.txt.gz", "run.json"):
        with pytest.raises(
            ConfigError,
            match=r"runs are plain TREC text; the name must not end in "
            r"\.(gz|json)",
        ):
            write_run(tmp_path / name, {})
    for tag in ("", "my tag"):
        with pytest.raises(ConfigError, match=r"tag of the run is '.*'; it must be one word"):
            write_run(tmp_path / "run.txt", {}, tag=tag)
    assert list(tmp_path.iterdir()) == []


def test_importing_loads_nothing_heavy():
    code = "import sys, sparse_ir.data.readers, sparse_ir.evaluation.measures; print({'torch', 'datasets', 'jnius'} & set(sys.modules))"
    assert run_python(code).strip() == "set()"


def test_a_run_that_is_no_regular_file_is_named_as_such(tmp_path):
    for path, what in ((tmp_path, "not a regular file"), (tmp_path / "none", "no such run")):
        with pytest.raises(DataError, match=f"{path}: {what}; it must be a TREC file"):
            read_run(path)
