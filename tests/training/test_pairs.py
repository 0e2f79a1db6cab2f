"""Training pairs: every format and refusal of the sources."""

import hashlib
import json

import numpy as np
import pytest
from made_pairs import INLINE, as_lists, mined, write_folder, write_lines

from sparse_ir.errors import ConfigError, DataError
from sparse_ir.storage import files
from sparse_ir.training.sources.pairs import read_source

# --- BEIR folders ---


def test_a_folder_gives_judged_queries_and_the_whole_corpus(tmp_path):
    source = read_source(write_folder(tmp_path / "tiny"), weight=2)
    assert (source.name, source.weight, source.scores) == ("tiny", 2.0, None)
    assert source.query_ids == ["q1", "q2"]
    assert source.queries == ["first", "second"]
    assert source.doc_ids == ["d1", "d2", "d3", "d4", "d5", "d6"]
    assert source.documents == ["one", "two", "three", "four", "one", ""]
    assert as_lists(source.positives) == [[0], [1, 2]]
    assert as_lists(source.negatives) == [[], []]
    assert {entry.dtype for entry in (*source.positives, *source.negatives)} == {np.dtype(np.int32)}


def test_title_and_text_are_one_text(tmp_path):
    root = write_folder(tmp_path / "tiny")
    write_lines(
        root / "corpus.jsonl",
        [{"_id": f"d{i}", "title": "T", "text": f"x{i}"} for i in range(1, 5)],
    )
    assert read_source(root).documents == ["T x1", "T x2", "T x3", "T x4"]


def test_mined_negatives_keep_their_order(tmp_path):
    root = write_folder(tmp_path / "tiny")
    path = write_lines(tmp_path / "mined.jsonl.gz", [mined("q1", ["d1"], ["d4", "d2"])])
    source = read_source(root, negatives=path, name="named")
    assert as_lists(source.negatives) == [[3, 1], []]
    assert source.fingerprint == {
        "name": "named",
        "path": "tiny",
        "split": "train",
        "limit": None,
        "queries": 2,
        "documents": 6,
        "positives": 3,
        "negatives": 2,
        "queries_without_negatives": 1,
        "missing_documents": 0,
        "queries_without_documents": 0,
        "texts_sha256": source.fingerprint["texts_sha256"],
        "files": {
            file.name: files.sha256_of_file(file)
            for file in (
                root / "corpus.jsonl",
                root / "queries.jsonl.gz",
                root / "qrels" / "train.tsv",
                path,
            )
        },
    }
    assert json.loads(json.dumps(source.fingerprint)) == source.fingerprint


def test_the_hash_is_that_of_the_texts(tmp_path):
    source = read_source(
        write_lines(tmp_path / "a.jsonl", [{"query": "é", "positive": ["b", "c"]}])
    )
    raw = b"".join(
        len(text.encode()).to_bytes(8, "little") + text.encode() for text in ("é", "b", "c")
    )
    assert source.fingerprint["texts_sha256"] == hashlib.sha256(raw).hexdigest()
    for other in ({"query": "é", "positive": ["bc"]}, {"query": "éb", "positive": "c"}):
        found = read_source(write_lines(tmp_path / "b.jsonl", [other]))
        assert found.fingerprint["texts_sha256"] != source.fingerprint["texts_sha256"]


def test_another_split_and_a_limit(tmp_path):
    root = write_folder(tmp_path / "tiny", split="dev")
    path = write_lines(
        tmp_path / "mined.jsonl", [mined("q1", ["d1"], ["d2"]), mined("q2", ["d2"], ["d1"])]
    )
    source = read_source(root, split="dev", limit=1, negatives=path)
    assert source.query_ids == ["q1"]
    assert as_lists(source.negatives) == [[1]]
    assert (source.fingerprint["split"], source.fingerprint["limit"]) == ("dev", 1)


def test_missing_documents_are_an_error_or_are_counted(tmp_path):
    judgements = [("q0", "dX", 1), ("q1", "d1", 1), ("q2", "dY", 1), ("q2", "d2", 1)]
    root = write_folder(tmp_path / "tiny", judgements=judgements)
    with pytest.raises(
        DataError,
        match=r"train.tsv:2: document 'dX' is judged but not in "
        r".*corpus.jsonl "
        r"\(2 such judgements\); it must be there, or allow_missing",
    ):
        read_source(root)
    source = read_source(root, allow_missing=True)
    assert source.query_ids == ["q1", "q2"]
    assert as_lists(source.positives) == [[0], [1]]
    assert source.fingerprint["missing_documents"] == 2
    assert source.fingerprint["queries_without_documents"] == 1
    path = write_lines(tmp_path / "mined.jsonl", [mined("q2", ["dY", "d2"], ["d3"])])
    assert as_lists(read_source(root, allow_missing=True, negatives=path).negatives) == [[], [2]]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"judgements": [("q1", "d1", 1), ("q2", "d2", 0)]},
            (
                r"train.tsv:3: query 'q2' has no positive: all its 1 documents have a "
                r"relevance "
                r"below 1; one must have 1 or more"
            ),
        ),
        (
            {"judgements": [("q1", "d1", 1), ("q9", "d2", 1)]},
            (
                r"train.tsv:3: query 'q9' is not in "
                r".*queries.jsonl.gz"
            ),
        ),
        (
            {"queries": {"q1": "first", "q2": " \t"}},
            (
                r"queries.jsonl.gz:2: text of query 'q2' is ' "
                r"\\t'; it must be a text"
            ),
        ),
        (
            {"queries": {"q1": "\ufeff", "q2": "x"}},
            (
                r"queries.jsonl.gz:1: text of query 'q1' is "
                r"'\\ufeff'; it must be a text"
            ),
        ),
        (
            {"documents": {"d1": "one", "d2": "two", "d3": "\u200b"}},
            (
                r"corpus.jsonl:3: document 'd3' "
                r"is empty, but it is the pos"
            ),
        ),
        (
            {"documents": {"d1": "one", "d2": "two", "d3": ""}},
            (
                r"corpus.jsonl:3: document 'd3' is "
                r"empty, but it is the positive"
            ),
        ),
    ],
)
def test_bad_folders_are_refused(tmp_path, changed, message):
    with pytest.raises(DataError, match=message):
        read_source(write_folder(tmp_path / "tiny", **changed))


def test_a_folder_without_any_judged_document_is_refused(tmp_path):
    root = write_folder(tmp_path / "tiny", judgements=[("q1", "dX", 1)])
    with pytest.raises(DataError, match=r"train.tsv: no judged document is in .*corpus.jsonl"):
        read_source(root, allow_missing=True)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (
            {"query_id": "q2", "positives": ["d2"]},
            (
                r'mined.jsonl:2: "negatives" is missing \(keys: '
                r"query_id, positives\)"
            ),
        ),
        ({"query_id": "q2", "negatives": ["d1"]}, r'mined.jsonl:2: "positives" is missing'),
        ({"positives": [], "negatives": []}, r'mined.jsonl:2: "query_id" is missing'),
        (mined(2, ["d2"], []), r'mined.jsonl:2: "query_id" is 2; it must be a string'),
        (mined("q7", ["d2"], ["d1"]), r"mined.jsonl:2: query 'q7' is not judged in .*split train"),
        (
            mined("q1", ["d1"], ["d2"]),
            (
                r"mined.jsonl:2: query 'q1' is the same as in line 1; each query "
                r"must occur once"
            ),
        ),
        (mined("q2", ["d2"], ["d9"]), r"mined.jsonl:2: document 'd9' is not in the corpus of"),
        (
            mined("q2", ["d2"], [["d1"]]),
            r"mined.jsonl:2: document \['d1'\] is not in the corpus of",
        ),
        (
            mined("q2", ["d2"], "d1"),
            (r"mined.jsonl:2: 'd1' must be a list of doc ids"),
        ),
        (
            mined("q2", ["d2"], ["d1", "d1"]),
            (r"mined.jsonl:2: 'd1' is listed twice; each document of a list must occur once"),
        ),
        (
            mined("q2", ["d2", "d4"], ["d1"]),
            r"mined.jsonl:2: 'd4' is not a positive of query 'q2' in",
        ),
        (
            mined("q2", ["d2"], ["d1", "d3"]),
            (
                r"mined.jsonl:2: query 'q2': negative 'd3' is one of its "
                r"positives; negatives must differ"
            ),
        ),
        (
            mined("q2", ["d2"], ["d6"]),
            (
                r"corpus.jsonl:6: document 'd6' is empty, but it is the positive or "
                r"negative of a query"
            ),
        ),
    ],
)
def test_bad_negatives_are_refused(tmp_path, record, message):
    path = write_lines(tmp_path / "mined.jsonl", [mined("q1", ["d1"], ["d3"]), record])
    with pytest.raises(DataError, match=message):
        read_source(write_folder(tmp_path / "tiny"), negatives=path)


def test_a_negative_with_the_text_of_the_positive_is_refused(tmp_path):
    path = write_lines(
        tmp_path / "mined.jsonl", [mined("q2", ["d2"], ["d1"]), mined("q1", ["d1"], ["d4", "d5"])]
    )
    with pytest.raises(
        DataError,
        match=r"mined.jsonl:2: query 'q1': negative 'd5' has the text "
        r"of its positive 'd1'",
    ):
        read_source(write_folder(tmp_path / "tiny"), negatives=path)


def test_paths_and_options_that_do_not_fit_are_refused(tmp_path):
    root = write_folder(tmp_path / "tiny")
    path = write_lines(tmp_path / "a.jsonl", [INLINE])
    with pytest.raises(
        DataError,
        match=r"nothing: there is no such source; it must be a BEIR folder, or a "
        r".jsonl",
    ):
        read_source(tmp_path / "nothing")
    with pytest.raises(DataError, match=r"none.jsonl: there is no such file of negatives"):
        read_source(root, negatives=tmp_path / "none.jsonl")
    with pytest.raises(ConfigError, match=r"a.jsonl: negatives is for a BEIR folder"):
        read_source(path, negatives=path)
    with pytest.raises(ConfigError, match=r"a.jsonl: allow_missing is for a BEIR folder"):
        read_source(path, allow_missing=True)
    for weight in (0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match=r"weight is .*; it must be a finite number above 0"):
            read_source(root, weight=weight)
    with pytest.raises(ConfigError, match="limit is 0; it must be None or at least 1"):
        read_source(root, limit=0)


# --- files with the texts in them ---


@pytest.mark.parametrize("name", ["pairs.jsonl", "pairs.jsonl.gz"])
def test_texts_in_the_file_become_documents_once(tmp_path, name):
    records = [
        INLINE,
        {"query_id": "x", "query": "water", "positives": ["sea", "lake"], "negative": "sea salt"},
    ]
    source = read_source(write_lines(tmp_path / name, records))
    assert (source.name, source.doc_ids, source.scores) == ("pairs", None, None)
    assert source.query_ids == ["1", "x"]
    assert source.queries == ["salt", "water"]
    assert source.documents == ["sea salt", "sea", "lake", "sugar", "sand"]
    assert as_lists(source.positives) == [[0], [1, 2]]
    assert as_lists(source.negatives) == [[3, 4], [0]]
    assert read_source(tmp_path / name, limit=1).queries == ["salt"]


@pytest.mark.parametrize(
    "scores",
    [
        {"label": [3, 1.5, -2]},
        {"positive_scores": 3, "negative_scores": [1.5, -2]},
        {"positive_scores": [3], "negative_scores": [1.5, -2]},
    ],
)
def test_scores_stand_as_positives_then_negatives(tmp_path, scores):
    source = read_source(write_lines(tmp_path / "a.jsonl", [INLINE | scores]))
    assert as_lists(source.scores) == [[3.0, 1.5, -2.0]]
    assert source.scores[0].dtype == np.float32


def test_tevatrons_records_are_read(tmp_path):
    record = {
        "query_id": "7",
        "query": "salt",
        "positive_passages": [{"docid": "1", "title": "Sea", "text": "salt"}],
        "negative_passages": [
            {"docid": "2", "title": "", "text": "sugar"},
            {"docid": "3", "text": "sand"},
        ],
    }
    source = read_source(write_lines(tmp_path / "a.jsonl", [record]))
    assert source.query_ids == ["7"]
    assert source.documents == ["Sea salt", "sugar", "sand"]
    assert (as_lists(source.positives), as_lists(source.negatives)) == ([[0]], [[1, 2]])


def without(*keys, **changed):
    return {key: value for key, value in INLINE.items() if key not in keys} | changed


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (without("query"), r'a.jsonl:2: "query" is missing \(keys: positive, negatives\)'),
        (
            without("positive"),
            (
                r'a.jsonl:2: "positive" is missing or empty \(keys: query, negatives\); '
                r"it must hold at least"
            ),
        ),
        (without(positive=[]), r'a.jsonl:2: "positive" is missing or empty'),
        (
            without(query=" "),
            r"""a.jsonl:2: "query" is ' '; it must be a text of at least one visible character""",
        ),
        (
            without(query="\u200b\x00 "),
            r"""a.jsonl:2: "query" is '\\u200b\\x00 '; it must be a text of at least one""",
        ),
        (
            without(positive="\u2060\u00a0"),
            r"""a.jsonl:2: "positive" is '\\u2060\\xa0'; it must be a text""",
        ),
        (without(query=None), r'a.jsonl:2: "query" is None; it must be a string'),
        (without(positive=""), r"""a.jsonl:2: "positive" is ''; it must be a text"""),
        (without(positive=["a", 3]), r'a.jsonl:2: "positive" is 3; it must be a string'),
        (without(negatives=["\n"]), r"""a.jsonl:2: "negatives" is '\\n'; it must be a text"""),
        (
            without(negatives=["a", "a"]),
            (r"a.jsonl:2: 'a' is listed twice; each document of a list must occur once"),
        ),
        (
            without(negative="a"),
            (r'a.jsonl:2: both "negative" and "negatives" are given; one must be'),
        ),
        (
            without(negatives=["a", "sea salt"]),
            (
                r"a.jsonl:2: query '2': negative 'sea salt' is one of "
                r"its positives"
            ),
        ),
        (
            without(negatve=["a"]),
            (
                r"a.jsonl:2: unknown key 'negatve'; it must be one of query, query_id, "
                r"positive, positives"
            ),
        ),
        (
            without(query_id="1"),
            r'a.jsonl:2: "query_id" is \'1\', the same as in line 1; each id must occur once',
        ),
        (
            without(query_id=" ab"),
            r'a.jsonl:2: "query_id" is \' ab\'; it must be without white space',
        ),
        (
            without(label=[1, 2, 3]),
            (r"a.jsonl:2: this line has scores, unlike line 1; all lines must have scores, or"),
        ),
        (
            without(label=[1, 2]),
            (
                r'a.jsonl:2: "label" holds 2 scores; it must hold one for each of the 3 positives '
                r"and negatives"
            ),
        ),
        (
            without(label=[1, 2, float("nan")]),
            (
                r'a.jsonl:2: "label" holds nan; it must hold finite numbers '
                r"within float32"
            ),
        ),
        (
            without(label=[1, 2, 1e39]),
            r'a.jsonl:2: "label" holds 1e\+39; it must hold finite numbers',
        ),
        (
            without(label=[1, 2, True]),
            r'a.jsonl:2: "label" holds True; it must hold finite numbers',
        ),
        (
            without(label=[1, 2, None]),
            r'a.jsonl:2: "label" holds None; it must hold finite numbers',
        ),
        (
            without(positive_scores=1),
            (
                r'a.jsonl:2: "negative_scores" holds 0 scores; it must hold one for each of the 2 '
                r"negatives"
            ),
        ),
        (
            without(label=[1, 2, 3], positive_scores=1),
            (
                r'a.jsonl:2: both "label" and "positive_scores" '
                r"are given"
            ),
        ),
        (
            {"query": "q", "positive_passages": "x"},
            (
                r'a.jsonl:2: "positive_passages" is \'x\'; '
                r"it must be a list of"
            ),
        ),
        (
            {"query": "q", "positive_passages": [{"title": "x"}]},
            (
                r'a.jsonl:2: "text" is missing '
                r"\(keys: title\)"
            ),
        ),
        ({"query": "q", "positive_passages": []}, r'a.jsonl:2: "positive" is missing or empty'),
        ([1], r"a.jsonl:2: not a JSON object but \[1\]"),
    ],
)
def test_bad_lines_are_refused(tmp_path, record, message):
    path = write_lines(tmp_path / "a.jsonl", [INLINE, record])
    with pytest.raises(DataError, match=message):
        read_source(path)


def test_scores_that_end_and_files_without_lines_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"a.jsonl:2: this line has no scores, unlike line 1"):
        read_source(write_lines(tmp_path / "a.jsonl", [INLINE | {"label": [1, 2, 3]}, INLINE]))
    with pytest.raises(DataError, match=r"b.jsonl: the file is empty; it must hold at least one"):
        read_source(write_lines(tmp_path / "b.jsonl", []))
