"""Mining of hard negatives: each rule by hand, the three miners, and a kill in the middle."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from sparse_ir.commands import indexing, training
from sparse_ir.errors import ConfigError, DataError, IndexMismatch
from sparse_ir.retrieval.searcher import Index
from sparse_ir.training import mining
from sparse_ir.training.mining import Rules, judge
from sparse_ir.training.sources import pairs
from sparse_ir.training.teachers import dense
from sparse_ir.training.teachers.dense import DenseTeacher

HITS = [("a", 9.0), ("p", 8.0), ("b", 7.0), ("empty", 6.0), ("c", 4.0), ("d", 1.0)]
DOCUMENTS = {
    "p1": "rivers flood the valley in spring",
    "p2": "bees carry pollen to flowers",
    "p3": "steel bridges expand",
    "n1": "a valley of bees",
    "n2": "flowers in the spring valley",
    "n3": "bridges over rivers",
    "twin": "steel bridges expand",
}
QUERIES = {"q1": "valley rivers", "q2": "bees and flowers", "q3": "steel bridges", "q4": "zyzzyva"}


def judged(**rules):
    return judge(
        HITS,
        {"p"},
        lambda doc_id: doc_id != "empty",
        Rules(**{"negatives": 10, "skip": 0, "consistency": None, "margin": None, **rules}),
    )


def ids_of(found):
    return [doc_id for doc_id, _ in found[0]]


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ({}, ["a", "b", "c", "d"]),
        ({"negatives": 2}, ["a", "b"]),
        ({"skip": 1}, ["b", "c", "d"]),
        ({"skip": 3, "negatives": 1}, ["c"]),
        ({"margin": 0.0}, ["b", "c", "d"]),  # at most the positive's 8
        ({"margin": 0.25}, ["c", "d"]),  # at most 6
        ({"consistency": 2}, ["a", "b", "c", "d"]),
    ],
)
def test_which_hits_become_negatives(rules, expected):
    assert ids_of(judged(**rules)) == expected


def test_a_margin_lies_below_the_positive_also_where_scores_are_negative():
    hits = [("a", -0.12), ("p", -0.2), ("b", -0.25), ("c", -0.4)]
    # at most -0.3
    assert ids_of(judge(hits, {"p"}, lambda _: True, Rules(5, 0, None, 0.5))) == ["c"]


def test_a_query_whose_positive_is_too_far_down_is_rejected():
    assert judged(consistency=1) == ([], "no positive among the first 1 hits")
    assert (
        judge([("a", 1.0)], {"p"}, lambda _: True, Rules(5, 0, 3, None))[1]
        == "no positive among the first 3 hits"
    )


def test_a_query_without_any_negative_is_rejected():
    assert judge([("p", 1.0)], {"p"}, lambda _: True, Rules(5, 0, None, None)) == (
        [],
        "no hit is left as a negative",
    )


def test_a_margin_without_a_positive_found_leaves_all_hits():
    assert ids_of(judge(HITS[2:3], {"p"}, lambda _: True, Rules(5, 0, None, 0.5))) == ["b"]


class Letters:
    """A dense teacher that counts letters."""

    fingerprint: ClassVar[dict[str, str]] = {"kind": "letters"}

    def __init__(self, model, cache, pooling):
        pass

    def scores(self, queries, documents, wanted_QD=None):
        def vectors(texts):
            return np.array(
                [[text.count(letter) for letter in "abcdefghij"] for text in texts],
                dtype=np.float32,
            )

        return vectors(queries) @ vectors(documents).T


@pytest.fixture(scope="module")
def collection(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mining") / "set"
    (folder / "qrels").mkdir(parents=True)
    for name, texts in (("corpus", DOCUMENTS), ("queries", QUERIES)):
        lines = [
            json.dumps({"_id": key, "title": "", "text": text}) + "\n"
            for key, text in texts.items()
        ]
        (folder / f"{name}.jsonl").write_text("".join(lines))
    rows = "q1\tp1\t1\nq2\tp2\t1\nq3\tp3\t1\nq4\tp1\t1\n"
    (folder / "qrels" / "train.tsv").write_text("query-id\tcorpus-id\tscore\n" + rows)
    return folder


def read(path):
    return {row["query_id"]: row for row in map(json.loads, path.read_text().splitlines())}


def test_bm25_mines_and_training_reads_it(collection, tmp_path):
    output = tmp_path / "negatives.jsonl"
    report = training.mine(str(collection), output)
    assert report["queries"] == 4
    assert report["kept"] + sum(report["rejected"].values()) == 4
    found = read(output)
    assert set(found["q1"]["negatives"]) == {"n1", "n2", "n3"}
    assert set(found["q2"]["negatives"]) == {"n1", "n2"}
    assert found["q3"]["negatives"] == ["n3"]  # the twin has the positive's text
    assert found["q1"]["scores"] == sorted(found["q1"]["scores"], reverse=True)
    assert read(tmp_path / "negatives.jsonl.rejected.jsonl") == {
        "q4": {"query_id": "q4", "reason": "no hit is left as a negative"}
    }
    assert json.loads((tmp_path / "negatives.jsonl.json").read_text())["kept"] == 3
    source = pairs.read_source(str(collection), negatives=output)
    assert [len(each) for each in source.negatives] == [3, 2, 1, 0]


def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(collection, tmp_path, monkeypatch):
    monkeypatch.setattr(mining, "QUERIES_PER_BLOCK", 1)
    training.mine(str(collection), tmp_path / "whole.jsonl")
    original, calls = mining.append_records, []

    def killed(partial, records):
        calls.append(partial)
        original(partial, records)
        if len(calls) == 2:
            with partial.open("a") as stream:
                stream.write('{"query_id": "q3", "posi')
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(mining, "append_records", killed)
        with pytest.raises(KeyboardInterrupt):
            training.mine(str(collection), tmp_path / "cut.jsonl")
    assert not (tmp_path / "cut.jsonl").exists()
    with pytest.raises(ConfigError, match="begun with other input or options"):
        training.mine(str(collection), tmp_path / "cut.jsonl", negatives=5)
    training.mine(str(collection), tmp_path / "cut.jsonl")
    assert (tmp_path / "cut.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir() if "partial" in path.name) == []


def test_an_index_mines_what_it_finds(collection, tmp_path):
    indexing.build("lexical", str(collection), tmp_path / "index")
    report = training.mine(
        str(collection),
        tmp_path / "negatives.jsonl",
        miner="index",
        index=tmp_path / "index",
        depth=6,
        negatives=2,
    )
    with Index(tmp_path / "index") as index:
        hits = index.search(QUERIES["q1"], 6).doc_ids
    assert (
        read(tmp_path / "negatives.jsonl")["q1"]["negatives"]
        == [doc_id for doc_id in hits if doc_id != "p1"][:2]
    )
    assert report["kept"] >= 3
    assert (
        json.loads((tmp_path / "negatives.jsonl.json").read_text())["miner"]["encoder"]["kind"]
        == "lexical"
    )


def without_a_document(folder: Path) -> Path:
    lines = (folder / "corpus.jsonl").read_text().splitlines(keepends=True)
    (folder / "corpus.jsonl").write_text("".join(lines[:-1]))
    return folder


def renamed(folder: Path) -> Path:
    (folder / "corpus.jsonl").write_text(
        (folder / "corpus.jsonl").read_text().replace('"n', '"other-n')
    )
    return folder


@pytest.mark.parametrize("miner", ["index", "bm25"])
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            renamed,
            (
                r"indexed: its document 'other-n1' is not in the corpus of .*set; give an index of "
                r"this corpus"
            ),
        ),
        (
            without_a_document,
            r"indexed is an index of 6 documents, but the corpus of .*set has 7; give",
        ),
    ],
)
def test_an_index_of_another_corpus_is_refused_and_what_was_mined_stays(
    collection, tmp_path, miner, changed, message
):
    other = changed(Path(shutil.copytree(collection, tmp_path / "other")))
    indexing.bm25(str(other), tmp_path / "indexed")
    output = tmp_path / "negatives.jsonl"
    training.mine(str(collection), output)
    before = {path: path.read_bytes() for path in tmp_path.glob("negatives*")}
    with pytest.raises(IndexMismatch, match=message):
        training.mine(str(collection), output, miner=miner, index=tmp_path / "indexed")
    assert {path: path.read_bytes() for path in tmp_path.glob("negatives*")} == before


def test_negatives_for_no_query_at_all_replace_nothing(collection, tmp_path):
    output = tmp_path / "negatives.jsonl"
    training.mine(str(collection), output)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(
        DataError,
        match=r"none of the 4 queries of .*set has a negative \(no hit is left as a negative: 4\), "
        r"so .*negatives.jsonl is not written; use another miner",
    ):
        training.mine(str(collection), output, skip=6)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before, (
        "and no partial file is in the way"
    )
    training.mine(str(collection), output, negatives=1)
    assert {len(row["negatives"]) for row in read(output).values()} == {1}


def test_a_run_that_ended_before_its_first_query_is_begun_anew(collection, tmp_path, monkeypatch):
    def killed(partial, records):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(mining, "append_records", killed)
        with pytest.raises(KeyboardInterrupt):
            training.mine(str(collection), tmp_path / "x.jsonl")
    assert (tmp_path / ".x.jsonl.partial").exists()
    assert training.mine(str(collection), tmp_path / "x.jsonl", negatives=1)["kept"] == 3


def test_a_document_without_a_visible_character_is_no_negative(collection, tmp_path, monkeypatch):
    monkeypatch.setattr(dense, "DenseTeacher", Letters)
    folder = Path(shutil.copytree(collection, tmp_path / "set"))
    with (folder / "corpus.jsonl").open("a") as stream:
        stream.write(json.dumps({"_id": "blank", "title": "", "text": "\u200b\u0000"}) + "\n")
    output = tmp_path / "negatives.jsonl"
    training.mine(str(folder), output, miner="dense", model="letters")
    assert all("blank" not in row["negatives"] for row in read(output).values())
    assert len(pairs.read_source(str(folder), negatives=output).negatives) == 4


def test_a_dense_miner_equals_brute_force(collection, tmp_path, monkeypatch):
    monkeypatch.setattr(dense, "DenseTeacher", Letters)
    training.mine(
        str(collection),
        tmp_path / "dense.jsonl",
        miner="dense",
        model="letters",
        depth=7,
        negatives=2,
    )
    scores = Letters(None, None, None).scores([QUERIES["q1"]], list(DOCUMENTS.values()))[0]
    order = sorted(
        zip(DOCUMENTS, scores, strict=True), key=lambda hit: (hit[1], hit[0]), reverse=True
    )
    assert (
        read(tmp_path / "dense.jsonl")["q1"]["negatives"]
        == [doc_id for doc_id, _ in order if doc_id != "p1"][:2]
    )


def test_a_dense_miner_pools_as_it_is_told(collection, tiny_folder, tmp_path):
    """A folder that states no pooling: each way is that of the teacher of the same name, and none
    is refused.
    """
    import torch
    import transformers

    folder, found = tmp_path / "model", {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = transformers.AutoConfig.from_pretrained(tiny_folder, initializer_range=0.5)
        transformers.AutoModel.from_config(config).save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(tiny_folder).save_pretrained(folder)
    for pooling in ("cls", "mean"):
        report = training.mine(
            str(collection),
            tmp_path / f"{pooling}.jsonl",
            miner="dense",
            model=str(folder),
            pooling=pooling,
            depth=7,
            negatives=4,
        )
        assert report["kept"] > 0
        scores = dict(
            zip(
                DOCUMENTS,
                DenseTeacher(folder, pooling=pooling).scores(
                    [QUERIES["q1"]], list(DOCUMENTS.values())
                )[0],
                strict=True,
            )
        )
        found[pooling] = read(tmp_path / f"{pooling}.jsonl")["q1"]["negatives"]
        best = [scores[doc_id] for doc_id in found[pooling]]
        assert best == pytest.approx(
            sorted((scores[doc_id] for doc_id in scores if doc_id != "p1"), reverse=True)[:4],
            abs=1e-5,
        )
    assert found["cls"] != found["mean"]
    with pytest.raises(
        ConfigError,
        match="a plain transformers model, which states no pooling; pooling must be one of cls, max",
    ):
        training.mine(str(collection), tmp_path / "x.jsonl", miner="dense", model=str(folder))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pooling": "mean"}, "pooling is only for the miner dense, not for bm25"),
        ({"negatives": 0}, "negatives is 0 but must be at least 1"),
        ({"depth": 5, "negatives": 5, "skip": 1}, "depth is 5 but must be at least skip"),
        ({"consistency": 0}, "consistency is 0 but must be 1 to"),
        ({"margin": 1.0}, r"margin is 1\.0 but must be"),
        ({"miner": "dense"}, "the miner dense needs a model"),
        ({"model": "x"}, "model is only for the miner dense, not for bm25"),
        ({"miner": "index"}, "needs an index"),
    ],
)
def test_options_that_do_not_fit_are_refused(collection, tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        training.mine(str(collection), tmp_path / "x.jsonl", **options)
