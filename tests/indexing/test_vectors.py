"""Vectors on disk: what is written comes back, and Anserini's JSON form goes out and in without
loss.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from scipy import sparse
from small_indexes import MatrixEncoder, TermQueries

from sparse_ir.data.records import Document
from sparse_ir.errors import ConfigError, DamagedError, DataError
from sparse_ir.indexing import encoding, json_vectors
from sparse_ir.indexing.quantization import Rule, quantize
from sparse_ir.indexing.vectors import Vectors, row_as_dict

VOCABULARY = [f"t{number}" for number in range(12)]


@pytest.fixture
def matrix() -> sparse.csr_matrix:
    """Ten documents over twelve tokens, weights 0 to 3; rows 4 and 9 are empty."""
    values = np.random.default_rng(3).random((10, 12)).astype(np.float32) * 3
    values[values < 1.8] = 0
    values[[4, 9]] = 0
    return sparse.csr_matrix(values)


@pytest.fixture
def documents() -> list[Document]:
    """Document d7 has the text "7": ``MatrixEncoder`` looks it up."""
    return [Document(f"d{number}", "", str(number)) for number in range(10)]


@pytest.fixture
def made(matrix, documents, tmp_path) -> Vectors:
    """The matrix, written in four shards."""
    encoder = MatrixEncoder(matrix, VOCABULARY, TermQueries(VOCABULARY))
    return encoding.write_vectors(tmp_path / "vectors", lambda: documents, encoder, shard_size=3)


def rows_of(opened: Vectors) -> dict[str, dict[str, float]]:
    """doc_id -> token -> weight."""
    found = {}
    for number in range(opened.num_shards):
        doc_ids, weights = opened.read_shard(number)
        for doc_id, row in zip(doc_ids, weights, strict=True):
            found[doc_id] = {
                opened.vocabulary[i]: float(w) for i, w in zip(row.indices, row.data, strict=True)
            }
    return found


def write_json_vectors(path: Path, lines: list[object]) -> Path:
    """A file of Anserini's form; a string stands as it is. Gives the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(
        (line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines
    ).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path.parent


def vector(doc_id: str, **weights: float) -> dict[str, object]:
    return {"id": doc_id, "contents": "", "vector": weights}


# --- our own form ---


def test_what_is_written_comes_back_bit_for_bit(made, matrix, documents):
    assert len(made) == 10
    assert made.num_shards == 4
    assert made.vocabulary == VOCABULARY
    shards = [made.read_shard(number) for number in range(4)]
    assert [doc_id for doc_ids, _ in shards for doc_id in doc_ids] == [
        document.doc_id for document in documents
    ]
    whole = sparse.vstack([weights for _, weights in shards]).tocsr()
    assert whole.dtype == np.float32
    assert (whole.data == matrix.data).all()
    assert (whole.indices == matrix.indices).all()
    assert (whole.indptr == matrix.indptr).all()


def test_the_manifest_counts(made, matrix):
    facts = made.manifest
    assert (facts["documents"], facts["empty_documents"], facts["without_weights"]) == (10, 0, 2)
    assert facts["weights"] == matrix.nnz
    assert [shard["documents"] for shard in facts["shards"]] == [3, 3, 3, 1]
    assert not facts["integer_weights"]


def test_empty_texts_never_reach_the_encoder(matrix, tmp_path):
    documents = [
        Document("a", "", ""),
        Document("b", "", "2"),
        Document("c", " ", "\n"),
        Document("d", "", ""),
    ]
    encoder = MatrixEncoder(matrix, VOCABULARY, TermQueries(VOCABULARY))  # int("") would raise
    opened = encoding.write_vectors(tmp_path / "v", lambda: documents, encoder, shard_size=3)
    found = rows_of(opened)
    assert [found[key] for key in "acd"] == [{}, {}, {}]
    assert list(found["b"].values()) == matrix[2].data.tolist()
    assert (opened.manifest["empty_documents"], opened.manifest["without_weights"]) == (3, 3)


def test_ids_of_any_script_come_back(tmp_path):
    encoder = MatrixEncoder(
        sparse.csr_matrix(np.ones((1, 2), np.float32)), ["a", "é\u2028"], TermQueries(["a", "b"])
    )
    doc_ids = ["日本", "ключ", "a/b\\c", '"', "🙂"]
    documents = [Document(doc_id, "", "0") for doc_id in doc_ids]
    opened = encoding.write_vectors(tmp_path / "v", lambda: documents, encoder)
    assert opened.read_shard(0)[0] == doc_ids
    assert opened.vocabulary == ["a", "é\u2028"]


@pytest.mark.parametrize("weight", [np.nan, np.inf, -1.0])
def test_weights_that_are_no_weights_are_not_stored(weight, documents, tmp_path):
    bad = sparse.csr_matrix(np.full((10, 12), weight, dtype=np.float32))
    encoder = MatrixEncoder(bad, VOCABULARY, TermQueries(VOCABULARY))
    encoder.fingerprint["sum"] = 0.0
    with pytest.raises(DataError, match="weights must be finite and at least 0"):
        encoding.write_vectors(tmp_path / "v", lambda: documents, encoder)
    assert not list((tmp_path / "v" / "shards").glob("[!.]*"))


@pytest.mark.parametrize("size", [0, -3])
def test_a_shard_holds_a_document_at_least(size, matrix, documents, tmp_path):
    encoder = MatrixEncoder(matrix, VOCABULARY, TermQueries(VOCABULARY))
    with pytest.raises(ConfigError, match=f"shard size is {size}; it must be at least 1"):
        encoding.write_vectors(tmp_path / "v", lambda: documents, encoder, shard_size=size)


def test_another_query_encoder_takes_the_place_of_the_own_one(matrix, documents, tmp_path):
    encoder = MatrixEncoder(matrix, VOCABULARY, TermQueries(VOCABULARY))
    other = TermQueries(VOCABULARY)
    other.fingerprint = {"kind": "other"}
    opened = encoding.write_vectors(tmp_path / "v", lambda: documents, encoder, query_encoder=other)
    assert opened.manifest["query"] == {"kind": "other"}


def test_folders_without_vectors_are_damaged_or_searched_for_json(tmp_path):
    with pytest.raises(DamagedError, match=r"holds no vectors$"):
        Vectors(tmp_path)
    with pytest.raises(
        DataError,
        match=r"holds no vectors; it must be a folder .* or hold files \*\.json, ",
    ):
        json_vectors.open_vectors(tmp_path, tmp_path / "scratch")


def test_a_missing_shard_says_what_to_do(made):
    (made.folder / "shards" / "000002.safetensors").unlink()
    assert made.read_shard(1)[0] == ["d3", "d4", "d5"]
    with pytest.raises(
        DamagedError,
        match=r"000002.safetensors is missing; run the same encode "
        r"command again",
    ):
        made.read_shard(2)


# --- Anserini's JSON form ---


def test_export_has_the_lines_that_anserini_reads(made, tmp_path):
    rule = Rule(10.0)
    assert json_vectors.export_json_vectors(made, tmp_path / "json", rule) == 10
    paths = sorted((tmp_path / "json").iterdir())
    assert [path.name for path in paths] == [f"vectors-00000{number}.jsonl" for number in range(4)]
    lines = [json.loads(line) for path in paths for line in path.read_text().splitlines()]
    weights = rows_of(made)
    for line in lines:
        assert list(line) == ["id", "contents", "vector"]
        assert all(isinstance(impact, int) and impact >= 1 for impact in line["vector"].values())
        by_hand = {token: round(weight * 10) for token, weight in weights[line["id"]].items()}
        assert line["vector"] == by_hand
    assert lines[4] == {"id": "d4", "contents": "", "vector": {}}


@pytest.mark.parametrize("folded", [False, True])
def test_export_then_import_gives_the_impacts_of_quantize(folded, made, matrix, tmp_path):
    query_weights = np.linspace(0, 2, 12).astype(np.float32) if folded else None
    rule = Rule(37.0, 255, folded)
    json_vectors.export_json_vectors(made, tmp_path / "json", rule, query_weights)
    opened = json_vectors.open_vectors(tmp_path / "json", tmp_path / "scratch")
    impacts = quantize(matrix, rule, query_weights).impacts
    wanted = {f"d{row}": row_as_dict(impacts, row, VOCABULARY) for row in range(10)}
    assert rows_of(opened) == wanted
    assert opened.manifest["integer_weights"]
    assert opened.manifest["without_weights"] == 2
    assert opened.query_encoder() is None


def test_whole_numbers_are_noticed_and_fractions_too(tmp_path):
    whole = write_json_vectors(
        tmp_path / "whole" / "a.jsonl", [vector("d1", a=3, b=2.0), vector("d2")]
    )
    mixed = write_json_vectors(
        tmp_path / "mixed" / "a.jsonl", [vector("d1", a=3, b=2.5), vector("d2", a=1)]
    )
    opened = json_vectors.open_vectors(whole, tmp_path / "s1")
    assert opened.manifest["integer_weights"]
    assert rows_of(opened) == {"d1": {"a": 3.0, "b": 2.0}, "d2": {}}
    opened = json_vectors.open_vectors(mixed, tmp_path / "s2")
    assert not opened.manifest["integer_weights"]
    assert rows_of(opened) == {"d1": {"a": 3.0, "b": 2.5}, "d2": {"a": 1.0}}


def test_a_weight_of_zero_is_not_kept(tmp_path):
    folder = write_json_vectors(
        tmp_path / "json" / "a.jsonl", [vector("d1", a=0, b=1), vector("d2", a=0.0)]
    )
    opened = json_vectors.open_vectors(folder, tmp_path / "scratch")
    assert rows_of(opened) == {"d1": {"b": 1.0}, "d2": {}}
    assert opened.manifest["without_weights"] == 1


def test_files_are_read_in_the_order_of_their_names_packed_or_not(tmp_path):
    folder = write_json_vectors(tmp_path / "json" / "b.jsonl.gz", [vector("d3", x=1, a=2)])
    write_json_vectors(folder / "a.json", [vector("d1", b=5), vector("d2", a=7)])
    write_json_vectors(folder / "c.jsonl", [vector("d4", b=1)])
    (folder / "README.txt").write_text("not vectors")
    opened = json_vectors.open_vectors(folder, tmp_path / "scratch")
    assert list(rows_of(opened)) == ["d1", "d2", "d3", "d4"]
    assert opened.vocabulary == ["b", "a", "x"]  # as they come
    assert rows_of(opened)["d3"] == {"a": 2.0, "x": 1.0}
    assert set(opened.manifest["encoder"]["files"]) == {"a.json", "b.jsonl.gz", "c.jsonl"}


def test_many_shards_share_one_growing_vocabulary(tmp_path):
    lines = [vector(f"d{number}", **{f"t{number}": number + 1, "common": 1}) for number in range(7)]
    folder = write_json_vectors(tmp_path / "json" / "a.jsonl", lines)
    opened = json_vectors.import_json_vectors(folder, tmp_path / "scratch", shard_size=2)
    assert opened.num_shards == 4
    assert [opened.read_shard(number)[1].shape for number in range(4)] == [
        (2, 8),
        (2, 8),
        (2, 8),
        (1, 8),
    ]
    assert rows_of(opened) == {
        f"d{number}": {f"t{number}": number + 1.0, "common": 1.0} for number in range(7)
    }


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"id": "d2", "vector": {"a": 1}', "not JSON"),
        ('["d2"]', "not a JSON object"),
        ('{"vector": {"a": 1}}', '"id" is None; it must be a string'),
        ('{"id": 2, "vector": {"a": 1}}', '"id" is 2; it must be a string'),
        ('{"id": "d2 ", "vector": {"a": 1}}', "must be without white space"),
        ('{"id": "d1", "vector": {"a": 1}}', "is 'd1' as in line 1; each id must be unique"),
        ('{"id": "d2"}', '"vector" is None; it must be an object of token: weight'),
        (
            '{"id": "d2", "vector": [1, 2]}',
            '"vector" is [1, 2]; it must be an object of token: weight',
        ),
        (
            '{"id": "d2", "vector": {"a": "1"}}',
            "the weight of 'a' is '1'; it must be a finite number of at least 0",
        ),
        (
            '{"id": "d2", "vector": {"a": -1}}',
            "the weight of 'a' is -1; it must be a finite number of at least 0",
        ),
        (
            '{"id": "d2", "vector": {"a": NaN}}',
            "the weight of 'a' is nan; it must be a finite number of at least 0",
        ),
        (
            '{"id": "d2", "vector": {"a": Infinity}}',
            "the weight of 'a' is inf; it must be a finite number of at least 0",
        ),
        (
            '{"id": "d2", "vector": {"a": 1e39}}',
            "the weight of 'a' is 1e+39; it must be a finite number of at least 0",
        ),
        (
            '{"id": "d2", "vector": {"a": true}}',
            "the weight of 'a' is True; it must be a finite number of at least 0",
        ),
        ('{"id": "d2", "vector": {"a": 1, "a": 2}}', "key 'a' twice in one object"),
    ],
)
def test_a_broken_line_is_named(line, message, tmp_path):
    folder = write_json_vectors(
        tmp_path / "json" / "a.jsonl", [vector("d1", a=1), line, vector("d3", a=1)]
    )
    with pytest.raises(DataError) as caught:
        json_vectors.open_vectors(folder, tmp_path / "scratch")
    assert str(caught.value).startswith(f"{folder / 'a.jsonl'}:2: ")
    assert message in str(caught.value)


def test_an_id_may_not_return_in_another_file(tmp_path):
    folder = write_json_vectors(tmp_path / "json" / "a.jsonl", [vector("d1", a=1)])
    write_json_vectors(folder / "b.jsonl", [vector("d0", a=1), vector("d1", a=1)])
    with pytest.raises(DataError, match=r"b\.jsonl:2: .*'d1' as in line 1; each id must be unique"):
        json_vectors.open_vectors(folder, tmp_path / "scratch")
