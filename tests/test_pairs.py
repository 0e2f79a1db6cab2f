"""Training pairs: every format and refusal of the sources, and batches that are pure, complete and proportional."""

import dataclasses
import gzip
import hashlib
import json
import time
from collections import Counter

import numpy as np
import pytest

from sparse_ir import files
from sparse_ir.errors import ConfigError, DataError
from sparse_ir.pairs import Batches, Source, read_source

HEADER = "query-id\tcorpus-id\tscore\n"
INLINE = {"query": "salt", "positive": "sea salt", "negatives": ["sugar", "sand"]}


def write_lines(path, records):
    path.parent.mkdir(parents=True, exist_ok=True)
    raw = "".join(json.dumps(record) + "\n" for record in records).encode()
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)
    return path


def write_folder(root, *, documents=None, queries=None, judgements=None, split="train"):
    """A BEIR folder: q1 -> d1, q2 -> d2 and d3 (and d4 judged 0), over six documents of which d5 equals d1 in text."""
    documents = documents or {"d1": "one", "d2": "two", "d3": "three", "d4": "four", "d5": "one", "d6": ""}
    queries = queries or {"q0": "unused", "q1": "first", "q2": "second"}
    judgements = judgements or [("q1", "d1", 1), ("q2", "d2", 1), ("q2", "d3", 2), ("q2", "d4", 0)]
    write_lines(root / "corpus.jsonl", [{"_id": key, "text": text} for key, text in documents.items()])
    write_lines(root / "queries.jsonl.gz", [{"_id": key, "text": text} for key, text in queries.items()])
    qrels = root / "qrels" / f"{split}.tsv"
    qrels.parent.mkdir(exist_ok=True)
    qrels.write_text(HEADER + "".join(f"{query}\t{document}\t{value}\n" for query, document, value in judgements))
    return root


def mined(query_id, positives, negatives):
    return {"query_id": query_id, "positives": positives, "negatives": negatives}


def make_source(positives, negatives=None, *, name="made", documents=None, queries=None, scores=None, weight=1.0):
    """A source from lists of positions; document i is "document i" unless given."""
    lists = [np.array(entry, dtype=np.int32) for entry in positives]
    others = [np.array(entry, dtype=np.int32) for entry in negatives or [[] for _ in positives]]
    count = 1 + max(int(entry.max()) for entry in [*lists, *others] if len(entry))
    return Source(
        name=name, query_ids=[f"q{i}" for i in range(len(lists))],
        queries=queries or [f"query {i}" for i in range(len(lists))], doc_ids=None,
        documents=documents or [f"document {i}" for i in range(count)], positives=lists, negatives=others,
        scores=scores, weight=weight,
    )


def make_line(count, *, near=0, **options):
    """Query i has the positive i, and the ``near`` following documents as negatives."""
    negatives = [[(i + j) % count for j in range(1, near + 1)] for i in range(count)]
    return make_source([[i] for i in range(count)], negatives, **options)


def as_lists(arrays):
    return [entry.tolist() for entry in arrays]


def show(batch):
    """The batch as values that compare."""
    scores = None if batch.scores_QD is None else batch.scores_QD.tobytes()
    return (batch.source, batch.queries, batch.documents, batch.positive_Q.tolist(), batch.allowed_QD.tolist(), scores)


def positives_of(batch):
    return [batch.documents[column] for column in dict.fromkeys(batch.positive_Q.tolist())]


# ---------------------------------------------------------------------------------------------------------------------
# BEIR folders


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
    write_lines(root / "corpus.jsonl", [{"_id": f"d{i}", "title": "T", "text": f"x{i}"} for i in range(1, 5)])
    assert read_source(root).documents == ["T x1", "T x2", "T x3", "T x4"]


def test_mined_negatives_keep_their_order(tmp_path):
    root = write_folder(tmp_path / "tiny")
    path = write_lines(tmp_path / "mined.jsonl.gz", [mined("q1", ["d1"], ["d4", "d2"])])
    source = read_source(root, negatives=path, name="named")
    assert as_lists(source.negatives) == [[3, 1], []]
    assert source.fingerprint == {
        "name": "named", "path": "tiny", "split": "train", "limit": None, "queries": 2, "documents": 6, "positives": 3,
        "negatives": 2, "queries_without_negatives": 1, "missing_documents": 0, "queries_without_documents": 0,
        "texts_sha256": source.fingerprint["texts_sha256"],
        "files": {file.name: files.sha256_of_file(file) for file in
                  (root / "corpus.jsonl", root / "queries.jsonl.gz", root / "qrels" / "train.tsv", path)},
    }
    assert json.loads(json.dumps(source.fingerprint)) == source.fingerprint


def test_the_hash_is_that_of_the_texts(tmp_path):
    source = read_source(write_lines(tmp_path / "a.jsonl", [{"query": "é", "positive": ["b", "c"]}]))
    raw = b"".join(len(text.encode()).to_bytes(8, "little") + text.encode() for text in ("é", "b", "c"))
    assert source.fingerprint["texts_sha256"] == hashlib.sha256(raw).hexdigest()
    for other in ({"query": "é", "positive": ["bc"]}, {"query": "éb", "positive": "c"}):
        found = read_source(write_lines(tmp_path / "b.jsonl", [other]))
        assert found.fingerprint["texts_sha256"] != source.fingerprint["texts_sha256"]


def test_another_split_and_a_limit(tmp_path):
    root = write_folder(tmp_path / "tiny", split="dev")
    path = write_lines(tmp_path / "mined.jsonl", [mined("q1", ["d1"], ["d2"]), mined("q2", ["d2"], ["d1"])])
    source = read_source(root, split="dev", limit=1, negatives=path)
    assert source.query_ids == ["q1"]
    assert as_lists(source.negatives) == [[1]]
    assert (source.fingerprint["split"], source.fingerprint["limit"]) == ("dev", 1)


def test_missing_documents_are_an_error_or_are_counted(tmp_path):
    judgements = [("q0", "dX", 1), ("q1", "d1", 1), ("q2", "dY", 1), ("q2", "d2", 1)]
    root = write_folder(tmp_path / "tiny", judgements=judgements)
    with pytest.raises(DataError, match=r"train.tsv:2: document 'dX' is judged but not in .*corpus.jsonl "
                                        r"\(2 such judgements\), allowed: .*allow_missing"):
        read_source(root)
    source = read_source(root, allow_missing=True)
    assert source.query_ids == ["q1", "q2"]
    assert as_lists(source.positives) == [[0], [1]]
    assert source.fingerprint["missing_documents"] == 2
    assert source.fingerprint["queries_without_documents"] == 1
    path = write_lines(tmp_path / "mined.jsonl", [mined("q2", ["dY", "d2"], ["d3"])])
    assert as_lists(read_source(root, allow_missing=True, negatives=path).negatives) == [[], [2]]


@pytest.mark.parametrize(("changed", "message"), [
    ({"judgements": [("q1", "d1", 1), ("q2", "d2", 0)]}, r"train.tsv:3: query 'q2' has no positive, allowed: at least"),
    ({"judgements": [("q1", "d1", 1), ("q9", "d2", 1)]}, r"train.tsv:3: query 'q9' is not in .*queries.jsonl.gz"),
    ({"queries": {"q1": "first", "q2": " \t"}}, r"queries.jsonl.gz:2: text of query 'q2' is ' \\t', allowed: a text"),
    ({"documents": {"d1": "one", "d2": "two", "d3": ""}}, r"corpus.jsonl:3: document 'd3' is empty, and the positive"),
])
def test_bad_folders_are_refused(tmp_path, changed, message):
    with pytest.raises(DataError, match=message):
        read_source(write_folder(tmp_path / "tiny", **changed))


def test_a_folder_without_any_judged_document_is_refused(tmp_path):
    root = write_folder(tmp_path / "tiny", judgements=[("q1", "dX", 1)])
    with pytest.raises(DataError, match=r"train.tsv: no judged document is in .*corpus.jsonl"):
        read_source(root, allow_missing=True)


@pytest.mark.parametrize(("record", "message"), [
    ({"query_id": "q2", "positives": ["d2"]}, r'mined.jsonl:2: "negatives" is missing \(keys: query_id, positives\)'),
    ({"query_id": "q2", "negatives": ["d1"]}, r'mined.jsonl:2: "positives" is missing'),
    ({"positives": [], "negatives": []}, r'mined.jsonl:2: "query_id" is missing'),
    (mined(2, ["d2"], []), r'mined.jsonl:2: "query_id" is 2, allowed: a string'),
    (mined("q7", ["d2"], ["d1"]), r"mined.jsonl:2: query 'q7' is not judged in .*split train"),
    (mined("q1", ["d1"], ["d2"]), r"mined.jsonl:2: query 'q1' as in line 1, allowed: each query once"),
    (mined("q2", ["d2"], ["d9"]), r"mined.jsonl:2: document 'd9' is not in the corpus of"),
    (mined("q2", ["d2"], [["d1"]]), r"mined.jsonl:2: document \['d1'\] is not in the corpus of"),
    (mined("q2", ["d2"], "d1"), r"mined.jsonl:2: 'd1' in the place of documents, allowed: a list of doc ids"),
    (mined("q2", ["d2"], ["d1", "d1"]), r"mined.jsonl:2: 'd1' is there twice, allowed: each document of a list once"),
    (mined("q2", ["d2", "d4"], ["d1"]), r"mined.jsonl:2: 'd4' is no positive of query 'q2' in"),
    (mined("q2", ["d2"], ["d1", "d3"]), r"mined.jsonl:2: query 'q2': negative 'd3' is one of its positives, allowed"),
    (mined("q2", ["d2"], ["d6"]), r"corpus.jsonl:6: document 'd6' is empty, and the positive or negative of a query"),
])
def test_bad_negatives_are_refused(tmp_path, record, message):
    path = write_lines(tmp_path / "mined.jsonl", [mined("q1", ["d1"], ["d3"]), record])
    with pytest.raises(DataError, match=message):
        read_source(write_folder(tmp_path / "tiny"), negatives=path)


def test_a_negative_with_the_text_of_the_positive_is_refused(tmp_path):
    path = write_lines(tmp_path / "mined.jsonl", [mined("q2", ["d2"], ["d1"]), mined("q1", ["d1"], ["d4", "d5"])])
    with pytest.raises(DataError, match=r"mined.jsonl:2: query 'q1': negative 'd5' has the text of its positive 'd1'"):
        read_source(write_folder(tmp_path / "tiny"), negatives=path)


def test_paths_and_options_that_do_not_fit_are_refused(tmp_path):
    root = write_folder(tmp_path / "tiny")
    path = write_lines(tmp_path / "a.jsonl", [INLINE])
    with pytest.raises(DataError, match=r"nothing: no such source, allowed: a BEIR folder, or a .jsonl"):
        read_source(tmp_path / "nothing")
    with pytest.raises(DataError, match=r"none.jsonl: no such file of negatives"):
        read_source(root, negatives=tmp_path / "none.jsonl")
    with pytest.raises(ConfigError, match=r"a.jsonl: negatives is for a BEIR folder"):
        read_source(path, negatives=path)
    with pytest.raises(ConfigError, match=r"a.jsonl: allow_missing is for a BEIR folder"):
        read_source(path, allow_missing=True)
    for weight in (0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match=r"weight is .*, allowed: a finite number > 0"):
            read_source(root, weight=weight)
    with pytest.raises(ConfigError, match="limit is 0, allowed: None or at least 1"):
        read_source(root, limit=0)


# ---------------------------------------------------------------------------------------------------------------------
# Files with the texts in them


@pytest.mark.parametrize("name", ["pairs.jsonl", "pairs.jsonl.gz"])
def test_texts_in_the_file_become_documents_once(tmp_path, name):
    records = [INLINE, {"query_id": "x", "query": "water", "positives": ["sea", "lake"], "negative": "sea salt"}]
    source = read_source(write_lines(tmp_path / name, records))
    assert (source.name, source.doc_ids, source.scores) == ("pairs", None, None)
    assert source.query_ids == ["1", "x"]
    assert source.queries == ["salt", "water"]
    assert source.documents == ["sea salt", "sea", "lake", "sugar", "sand"]
    assert as_lists(source.positives) == [[0], [1, 2]]
    assert as_lists(source.negatives) == [[3, 4], [0]]
    assert read_source(tmp_path / name, limit=1).queries == ["salt"]


@pytest.mark.parametrize("scores", [
    {"label": [3, 1.5, -2]},
    {"positive_scores": 3, "negative_scores": [1.5, -2]},
    {"positive_scores": [3], "negative_scores": [1.5, -2]},
])
def test_scores_stand_as_positives_then_negatives(tmp_path, scores):
    source = read_source(write_lines(tmp_path / "a.jsonl", [INLINE | scores]))
    assert as_lists(source.scores) == [[3.0, 1.5, -2.0]]
    assert source.scores[0].dtype == np.float32


def test_tevatrons_records_are_read(tmp_path):
    record = {"query_id": "7", "query": "salt", "positive_passages": [{"docid": "1", "title": "Sea", "text": "salt"}],
              "negative_passages": [{"docid": "2", "title": "", "text": "sugar"}, {"docid": "3", "text": "sand"}]}
    source = read_source(write_lines(tmp_path / "a.jsonl", [record]))
    assert source.query_ids == ["7"]
    assert source.documents == ["Sea salt", "sugar", "sand"]
    assert (as_lists(source.positives), as_lists(source.negatives)) == ([[0]], [[1, 2]])


def without(*keys, **changed):
    return {key: value for key, value in INLINE.items() if key not in keys} | changed


@pytest.mark.parametrize(("record", "message"), [
    (without("query"), r'a.jsonl:2: "query" is missing \(keys: positive, negatives\)'),
    (without("positive"), r'a.jsonl:2: "positive" is missing or empty \(keys: query, negatives\), allowed: at least'),
    (without(positive=[]), r'a.jsonl:2: "positive" is missing or empty'),
    (without(query=" "), r"""a.jsonl:2: "query" is ' ', allowed: a text of at least one visible character"""),
    (without(query=None), r'a.jsonl:2: "query" is None, allowed: a string'),
    (without(positive=""), r"""a.jsonl:2: "positive" is '', allowed: a text"""),
    (without(positive=["a", 3]), r'a.jsonl:2: "positive" is 3, allowed: a string'),
    (without(negatives=["\n"]), r"""a.jsonl:2: "negatives" is '\\n', allowed: a text"""),
    (without(negatives=["a", "a"]), r"a.jsonl:2: 'a' is there twice, allowed: each document of a list once"),
    (without(negative="a"), r'a.jsonl:2: both "negative" and "negatives" are there, allowed: one of them'),
    (without(negatives=["a", "sea salt"]), r"a.jsonl:2: query '2': negative 'sea salt' is one of its positives"),
    (without(negatve=["a"]), r"a.jsonl:2: unknown key 'negatve', allowed: query, query_id, positive, positives"),
    (without(query_id="1"), r'a.jsonl:2: "query_id" is \'1\' as in line 1, allowed: each id once'),
    (without(query_id="a b"), r'a.jsonl:2: "query_id" is \'a b\', allowed: no white space'),
    (without(label=[1, 2, 3]), r"a.jsonl:2: scores here, other than in line 1, allowed: scores in all lines or"),
    (without(label=[1, 2]), r'a.jsonl:2: "label" holds 2 scores, allowed: 3 \(the positives, then the negatives\)'),
    (without(label=[1, 2, float("nan")]), r'a.jsonl:2: "label" holds nan, allowed: finite numbers within float32'),
    (without(label=[1, 2, 1e39]), r'a.jsonl:2: "label" holds 1e\+39, allowed: finite numbers'),
    (without(label=[1, 2, True]), r'a.jsonl:2: "label" holds True, allowed: finite numbers'),
    (without(label=[1, 2, None]), r'a.jsonl:2: "label" holds None, allowed: finite numbers'),
    (without(positive_scores=1), r'a.jsonl:2: "negative_scores" holds 0 scores, allowed: 2 \(as many as texts\)'),
    (without(label=[1, 2, 3], positive_scores=1), r'a.jsonl:2: both "label" and "positive_scores" are there'),
    ({"query": "q", "positive_passages": "x"}, r'a.jsonl:2: "positive_passages" is \'x\', allowed: a list of'),
    ({"query": "q", "positive_passages": [{"title": "x"}]}, r'a.jsonl:2: "text" is missing \(keys: title\)'),
    ({"query": "q", "positive_passages": []}, r'a.jsonl:2: "positive" is missing or empty'),
    ([1], r"a.jsonl:2: not a JSON object but \[1\]"),
])
def test_bad_lines_are_refused(tmp_path, record, message):
    path = write_lines(tmp_path / "a.jsonl", [INLINE, record])
    with pytest.raises(DataError, match=message):
        read_source(path)


def test_scores_that_end_and_files_without_lines_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"a.jsonl:2: no scores here, other than in line 1"):
        read_source(write_lines(tmp_path / "a.jsonl", [INLINE | {"label": [1, 2, 3]}, INLINE]))
    with pytest.raises(DataError, match=r"b.jsonl: no line in it, allowed: at least one"):
        read_source(write_lines(tmp_path / "b.jsonl", []))


# ---------------------------------------------------------------------------------------------------------------------
# Batches: exact values


def test_a_batch_by_hand():
    """q0 has the positives a, b and the negative d; q1 has c and the negatives a, e; "a" is there twice."""
    source = make_source([[0, 1], [2]], [[3], [5, 4]], documents=["a", "b", "c", "d", "e", "a"], queries=["q0", "q1"])
    batch = Batches([source], queries=3, negatives=1).at(0)
    rows = dict(zip(zip(batch.queries, (batch.documents[i] for i in batch.positive_Q), strict=True),
                    batch.allowed_QD, strict=True))
    assert set(rows) == {("q0", "a"), ("q0", "b"), ("q1", "c")}
    # one of the two cards of q0 takes d, its only negative; for the other none is left; q1 takes e, for a is there
    assert set(batch.documents[:3]) == {"a", "b", "c"}
    assert set(batch.documents[3:]) == {"d", "e"}
    for (query, positive), allowed in rows.items():
        refused = {document for document, ok in zip(batch.documents, allowed, strict=True) if not ok}
        assert refused == ({"a", "b"} - {positive} if query == "q0" else set())
    assert (batch.source, batch.scores_QD) == ("made", None)
    assert batch.positive_Q.dtype == np.int64
    assert batch.allowed_QD.dtype == bool


def test_queries_of_one_text_share_their_positives():
    source = make_source([[0], [1], [2]], [[], [], [1, 3]], queries=["same", "other", "same"])
    batch = Batches([source], queries=3, negatives=2).at(0)
    where = {text: column for column, text in enumerate(batch.documents)}
    assert set(where) == {"document 0", "document 1", "document 2", "document 3"}
    for row, query in enumerate(batch.queries):
        refused = {i for i, ok in enumerate(batch.allowed_QD[row]) if not ok}
        both = {where["document 0"], where["document 2"]}
        assert refused == (both - {int(batch.positive_Q[row])} if query == "same" else set())


def test_a_known_positive_is_never_sampled_as_a_negative():
    """The query of the other id has the same text, and its positive is mined as a negative."""
    source = make_source([[0], [1]], [[1, 2], []], queries=["same", "same"])
    for seed in range(8):
        batch = Batches([source], queries=1, negatives=2, seed=seed).at(0)
        assert batch.documents in (["document 0", "document 2"], ["document 1"])


def test_scores_of_the_file_stand_in_their_cells():
    scores = [np.array([9, 1], dtype=np.float32), np.array([8, 2], dtype=np.float32)]
    batch = Batches([make_source([[0], [1]], [[2], [0]], scores=scores)], queries=2, negatives=1).at(0)
    cells = {(query, document): float(batch.scores_QD[row, column]) for row, query in enumerate(batch.queries)
             for column, document in enumerate(batch.documents) if not np.isnan(batch.scores_QD[row, column])}
    assert cells == {("query 0", "document 0"): 9, ("query 0", "document 2"): 1,
                     ("query 1", "document 1"): 8, ("query 1", "document 0"): 2}
    assert batch.scores_QD.shape == (2, 3)
    assert batch.scores_QD.dtype == np.float32


def test_several_queries_share_one_document_in_rotation():
    """Three queries on document 0 and one on document 1: two by two, 0 takes all three pairs in three epochs."""
    batches = Batches([make_source([[0], [0], [0], [1]])], queries=2, queries_per_positive=2)
    seen = []
    for epoch in range(3):
        batch = batches.at(epoch)
        assert sorted(batch.documents) == ["document 0", "document 1"]
        assert sorted(Counter(batch.positive_Q.tolist()).values()) == [1, 2]
        assert batch.allowed_QD.all()
        seen += [query for query in batch.queries if query != "query 3"]
    assert Counter(seen) == {"query 0": 2, "query 1": 2, "query 2": 2}


def test_negatives_are_as_many_as_asked_for_and_come_from_the_lists():
    batches = Batches([make_line(400, near=9)], queries=8, negatives=3)
    for step in range(50):
        batch = batches.at(step)
        assert len(batch.documents) == len(set(batch.documents)) == 32
        for place, document in enumerate(batch.documents[8:]):
            positive = int(batch.documents[place // 3].split()[1])
            assert (int(document.split()[1]) - positive) % 400 in range(1, 10)


def test_negatives_vary_from_epoch_to_epoch():
    batches = Batches([make_source([[0]], [[1, 2, 3, 4]])], queries=1, negatives=1)
    assert {batches.at(step).documents[1] for step in range(60)} == {f"document {i}" for i in range(1, 5)}


# ---------------------------------------------------------------------------------------------------------------------
# Batches: order


SETTINGS = [
    {"queries": 8},
    {"queries": 7, "negatives": 2},
    {"queries": 5, "queries_per_positive": 2, "seed": 3},
    {"queries": 8, "negatives": 1, "neighbourhood": 4},
    {"queries": 16, "neighbourhood": 3, "queries_per_positive": 3},
]


@pytest.mark.parametrize("settings", SETTINGS)
def test_a_batch_depends_on_the_step_alone(settings):
    """Small decks (17 cards for batches of up to 16), whose epochs hang together, and larger ones."""
    def make():
        return Batches([make_line(17, near=5, name="small"), make_line(60, near=5, name="large", weight=2)], **settings)

    walking = make()
    walked = [show(walking.at(step)) for step in range(150)]
    jumping = make()
    for step in (149, 0, 77, 76, 78, 31, 149, 2, 3):
        assert show(jumping.at(step)) == walked[step]
        assert show(make().at(step)) == walked[step]


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("count", [16, 17, 31, 64, 101])
def test_every_card_comes_once_an_epoch(settings, count):
    batches = Batches([make_line(count, near=5)], **settings)
    steps = -(-6 * count // settings["queries"])
    dealt = [batches.at(step) for step in range(steps)]
    for batch in dealt:  # also in batches that hold the end of an epoch and the start of the next
        assert len(set(positives_of(batch))) == settings["queries"]
    stream = [document for batch in dealt for document in positives_of(batch)]
    epochs = [stream[start:start + count] for start in range(0, 5 * count, count)]
    for epoch in epochs:
        assert sorted(epoch) == sorted(f"document {i}" for i in range(count))
    assert len({tuple(epoch) for epoch in epochs}) == 5


def test_equal_texts_are_one_card():
    source = make_source([[0], [1], [2]], documents=["a", "b", "a"])
    batch = Batches([source], queries=2, queries_per_positive=2).at(0)
    assert sorted(batch.documents) == ["a", "b"]
    assert sorted(batch.queries) == ["query 0", "query 1", "query 2"]


def test_another_seed_or_name_is_another_order_and_other_sources_do_not_matter():
    first = [show(Batches([make_line(30)], queries=10, seed=seed).at(0))[1] for seed in (0, 1)]
    named = Batches([make_line(30, name="other")], queries=10).at(0).queries
    assert first[0] != first[1]
    assert named != first[0]
    alone = Batches([make_line(30)], queries=10)
    both = Batches([make_line(50, name="other"), make_line(30)], queries=10)
    taken = [batch for batch in map(both.at, range(40)) if batch.source == "made"]
    assert [show(batch) for batch in taken] == [show(alone.at(step)) for step in range(len(taken))]


def test_sources_are_drawn_in_proportion_to_their_weights():
    sources = [make_line(4, name=name, weight=weight) for name, weight in (("a", 1), ("b", 2), ("c", 5))]
    batches = Batches(sources, queries=4)
    counts = Counter(batches.at(step).source for step in range(9000))  # beyond two blocks of draws
    for name, weight in (("a", 1), ("b", 2), ("c", 5)):
        share = weight / 8
        assert abs(counts[name] - 9000 * share) < 4 * (9000 * share * (1 - share)) ** 0.5


def test_neighbours_stand_together():
    """On a ring of 64 documents with the three next ones as negatives: few chance meetings without, blocks with."""
    def count_pairs(neighbourhood):
        batches = Batches([make_line(64, near=3)], queries=8, neighbourhood=neighbourhood)
        met = 0
        for step in range(8):
            numbers = {int(document.split()[1]) for document in batches.at(step).documents}
            met += sum((number + 1) % 64 in numbers for number in numbers)
        return met

    assert count_pairs(1) < 20
    assert count_pairs(4) > 32


def test_neighbours_come_nearest_first_and_within_a_batch():
    """Each query has its mirror document as nearest negative: pairs are never cut by the end of a batch."""
    count = 24
    source = make_source([[i] for i in range(count)], [[i ^ 1, (i + 2) % count] for i in range(count)])
    batches = Batches([source], queries=4, neighbourhood=2)
    for step in range(18):
        numbers = [int(document.split()[1]) for document in batches.at(step).documents]
        assert numbers[0] ^ 1 == numbers[1]
        assert numbers[2] ^ 1 == numbers[3]


def test_a_late_step_is_cheap_and_orders_are_built_in_time():
    """Bounds far above what is measured (0.1 s and 1 ms), for busy machines."""
    count, near = 20_000, np.arange(1, 21)
    source = make_line(count)
    source = dataclasses.replace(source, negatives=[((i + near) % count).astype(np.int32) for i in range(count)])
    batches = Batches([source], queries=32, negatives=2, neighbourhood=4)
    start = time.perf_counter()
    batches.at(1_000_000)
    assert time.perf_counter() - start < 5
    start = time.perf_counter()
    for step in range(1_000_000, 1_000_020):
        batches.at(step)
    assert time.perf_counter() - start < 2


# ---------------------------------------------------------------------------------------------------------------------
# Batches: descriptions and refusals


def test_batches_describe_themselves():
    sources = [make_source([[0, 1], [1]], [[2], []], name="a", weight=1), make_line(6, name="b", weight=3)]
    assert Batches(sources, queries=2).describe() == [
        {"name": "a", "queries": 2, "documents": 3, "positives": 3, "negatives": 1, "positive_documents": 2,
         "share": 0.25, "steps_per_epoch": 1.0, "epoch_steps": 4.0},
        {"name": "b", "queries": 6, "documents": 6, "positives": 6, "negatives": 0, "positive_documents": 6,
         "share": 0.75, "steps_per_epoch": 3.0, "epoch_steps": 4.0},
    ]


def test_the_fingerprint_holds_settings_and_sources(tmp_path):
    source = read_source(write_folder(tmp_path / "tiny"), weight=3)
    found = Batches([source], queries=2, seed=5).fingerprint
    assert found == {"order_version": 1, "queries": 2, "negatives": 0, "queries_per_positive": 1, "neighbourhood": 1,
                     "seed": 5, "sources": [{**source.fingerprint, "weight": 3.0}]}
    assert json.loads(json.dumps(found)) == found


@pytest.mark.parametrize(("settings", "message"), [
    ({"queries": 0}, "queries is 0, allowed: a whole number, at least 1"),
    ({"negatives": -1}, "negatives is -1, allowed: a whole number, at least 0"),
    ({"queries_per_positive": 0}, "queries_per_positive is 0, allowed: a whole number, at least 1"),
    ({"neighbourhood": 0}, "neighbourhood is 0, allowed: a whole number, at least 1"),
    ({"seed": -1}, "seed is -1, allowed: a whole number, at least 0"),
    ({"queries": 2.0}, r"queries is 2\.0, allowed: a whole number"),
    ({"queries": 5}, r"source 'made' has 4 different positive documents, fewer than the 5 of a batch, allowed: small"),
    ({"queries": 2, "negatives": 1}, r"negatives is 1, but no source has mined negatives \(made\), allowed: 0, or a"),
    ({"queries": 2, "neighbourhood": 2}, r"neighbourhood is 2, but no source has mined negatives \(made\), allowed: 1"),
])
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        Batches([make_line(4)], **settings)


def test_sources_and_steps_that_cannot_be_are_refused():
    with pytest.raises(ConfigError, match="no source of training pairs, allowed: at least one"):
        Batches([])
    with pytest.raises(ConfigError, match="two sources are named 'made', allowed: each name once"):
        Batches([make_line(4), make_line(5)], queries=2)
    with pytest.raises(ConfigError, match="weight is 0, allowed: a finite number > 0"):
        Batches([make_line(4, weight=0)], queries=2)
    with pytest.raises(ConfigError, match="step is -1, allowed: at least 0"):
        Batches([make_line(4)], queries=2).at(-1)
