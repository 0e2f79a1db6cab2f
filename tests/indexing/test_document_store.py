"""Documents kept beside vectors and indexes: they come back whole, resume, and damage is noticed."""

from __future__ import annotations

import json
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from scipy import sparse
from small_indexes import MatrixEncoder, static_queries

from sparse_ir.commands import indexing
from sparse_ir.data.records import Document
from sparse_ir.errors import ConfigError, DamagedError, DataError
from sparse_ir.indexing import document_store, encoding
from sparse_ir.indexing.builder import build_impact_index
from sparse_ir.indexing.document_store import DocumentStore, StoreWriter
from sparse_ir.indexing.quantization import Rule
from sparse_ir.indexing.vectors import Vectors
from sparse_ir.indexing.verification import verify_index

SIZE = 40


def make_documents(count: int = SIZE) -> list[Document]:
    """Document 7 has the text "7", for ``MatrixEncoder``; document 3 is empty."""
    documents = []
    for number in range(count):
        metadata = {"year": 1990 + number, "tags": ["a", "b"], "open": number % 2 == 0}
        documents.append(Document(f"d{number}", "", str(number), metadata))
    documents[3] = Document("d3", "", "")
    return documents


def make_encoder(count: int = SIZE) -> MatrixEncoder:
    matrix = sparse.csr_matrix(np.ones((count, 4), np.float32))
    queries = static_queries(np.ones(4))
    return MatrixEncoder(matrix, queries.vocabulary, queries)


@pytest.fixture
def vectors(tmp_path) -> Vectors:
    documents = make_documents()
    return encoding.write_vectors(
        tmp_path / "vectors", lambda: documents, make_encoder(), shard_size=16
    )


def build(vectors: Vectors, output: Path, **options: object) -> Path:
    build_impact_index(
        vectors, output, Rule(1.0), vectors.query_encoder(), engine="exact", **options
    )
    return output


def write_store(folder: Path, documents: list[Document]) -> DocumentStore:
    with StoreWriter(folder) as writer:
        for document in documents:
            writer.add(document)
    return DocumentStore(folder)


def mixed_documents() -> list[Document]:
    """Texts of all lengths and scripts, line breaks and tabs in every field."""
    generator = random.Random(5)
    words = ["Straße", "日本", "a\nb", "tab\there", "🙂", "\u2028", "plain", '"quoted"', "\\"]
    documents = []
    for number in range(700):
        length = generator.choice([0, 1, 5, 40, 900])
        text = " ".join(generator.choices(words, k=length))
        metadata = {"n": number, "list": words[:2], "share": 0.5, "flag": True}
        documents.append(Document(f"id/{number}é", words[number % 9], text, metadata))
    documents[10] = Document("long", "", "x" * 300_000)
    return documents


def test_documents_come_back_in_order_by_number_and_by_id(tmp_path):
    documents = mixed_documents()
    store = write_store(tmp_path / "documents", documents)
    assert len(store) == len(documents)
    assert list(store) == documents
    numbers = random.Random(1).sample(range(len(documents)), 50)
    assert [store.read(number) for number in numbers] == [documents[n] for n in numbers]
    for document in documents:
        assert store.find(document.doc_id) == document
    assert store.find("id/1") is None
    for number in (-1, len(documents)):
        with pytest.raises(DataError, match=rf"number is {number}; it must be 0 to 699"):
            store.read(number)


def test_an_empty_store_is_legal(tmp_path):
    store = write_store(tmp_path / "documents", [])
    assert (len(store), list(store), store.find("a")) == (0, [], None)


def test_ids_of_equal_hashes_are_told_apart(tmp_path, monkeypatch):
    monkeypatch.setattr(document_store, "_hash_id", lambda doc_id: len(doc_id))
    documents = make_documents()
    store = write_store(tmp_path / "documents", documents)
    assert [store.find(document.doc_id) for document in documents] == documents
    assert store.find("d99") is None


def test_texts_are_compressed(tmp_path):
    text = "learned sparse retrieval scores documents by impacts " * 40
    write_store(tmp_path / "documents", [Document(f"d{n}", "", text) for n in range(200)])
    written = sum(path.stat().st_size for path in (tmp_path / "documents").iterdir())
    assert written < 200 * len(text) / 10


def test_threads_read_at_once(tmp_path):
    documents = mixed_documents()
    store = write_store(tmp_path / "documents", documents)

    def read_all(start: int) -> bool:
        wanted = documents[start::4]
        return [store.find(document.doc_id) for document in wanted] == wanted

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(read_all, range(4))) == [True] * 4


def test_vectors_keep_the_documents_of_each_shard(vectors):
    documents = make_documents()
    assert vectors.has_documents
    kept = []
    for number in range(vectors.num_shards):
        part = vectors.read_documents(number)
        assert [document.doc_id for document in part] == vectors.read_shard(number)[0]
        kept += part
    assert kept == documents


def test_an_index_gets_the_documents_of_its_vectors(vectors, tmp_path):
    index = build(vectors, tmp_path / "index")
    store = DocumentStore(index / "documents")
    assert list(store) == make_documents()  # d3 has no posting and is kept all the same
    report = verify_index(index)
    folder_bytes = sum(path.stat().st_size for path in (index / "documents").iterdir())
    assert report["document_bytes"] == folder_bytes


def test_the_store_can_be_left_out_and_added_later(tmp_path):
    documents = make_documents()
    output = tmp_path / "vectors"
    without = encoding.write_vectors(
        output, lambda: documents, make_encoder(), shard_size=16, store=False
    )
    assert not without.has_documents
    assert not (output / "documents").exists()
    assert not (build(without, tmp_path / "a") / "documents").exists()
    assert verify_index(tmp_path / "a")["document_bytes"] == 0
    with pytest.raises(ConfigError, match="keeps no documents to store; run the encode command"):
        build(without, tmp_path / "b", store=True)
    with pytest.raises(DamagedError, match="keeps no documents; run the same encode command"):
        without.read_documents(0)

    encoder = make_encoder()
    encoder.encode = None  # nothing is encoded again
    added = encoding.write_vectors(output, lambda: documents, encoder, shard_size=16)
    assert added.read_documents(1) == documents[16:32]
    assert list(DocumentStore(build(added, tmp_path / "c") / "documents")) == documents
    assert not (build(added, tmp_path / "d", store=False) / "documents").exists()


def test_a_damaged_shard_of_documents_is_written_again(vectors):
    path = vectors.folder / "documents" / "000001.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(DamagedError, match=r"documents/000001.safetensors is damaged"):
        vectors.read_documents(1)
    documents = make_documents()
    encoding.write_vectors(vectors.folder, lambda: documents, make_encoder(), shard_size=16)
    assert path.read_bytes() == whole


def test_changed_metadata_is_a_changed_corpus(tmp_path):
    documents = make_documents()
    schema = {"year": "number", "tags": "keywords", "open": "boolean"}

    def encode() -> Vectors:
        return encoding.write_vectors(
            tmp_path / "v", lambda: documents, make_encoder(), metadata_schema=schema
        )

    assert encode().read_documents(0) == documents
    documents[5] = documents[5]._replace(metadata={"year": 2000})
    with pytest.raises(DataError, match="the corpus has changed since encoding began"):
        encode()


def test_metadata_of_no_document_leaves_the_digest_as_it_was():
    shard = encoding.Shard(0, [Document("a", "title", "text")])
    assert shard.digest() == "ec5f3967c179ef278d68fcbd7011387274c19b1712e6bddd6f472ef72268cfef"


@pytest.mark.parametrize(
    "name",
    ["blocks.bin", "block_offsets.npy", "first_documents.npy", "id_hashes.npy", "id_numbers.npy"],
)
def test_damage_is_noticed(name, vectors, tmp_path):
    index = build(vectors, tmp_path / "index")
    path = index / "documents" / name
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(DamagedError, match=f"{name} is damaged: its checksum differs"):
        verify_index(index)
    path.write_bytes(content[:-8])
    with pytest.raises(
        DamagedError, match=r"documents.*(do not fit each other|npy is not readable)"
    ):
        DocumentStore(index / "documents")
    path.unlink()
    with pytest.raises(DamagedError, match=f"{name} is missing; build the index again"):
        DocumentStore(index / "documents")


def test_a_damaged_block_is_noticed_when_it_is_read(tmp_path):
    store_folder = tmp_path / "documents"
    write_store(store_folder, mixed_documents())
    path = store_folder / "blocks.bin"
    content = bytearray(path.read_bytes())
    content[40] ^= 1
    path.write_bytes(content)
    with pytest.raises(DamagedError, match=r"blocks.bin is damaged at byte 0 \("):
        DocumentStore(store_folder).read(0)


def test_bm25_and_the_commands_keep_documents(tmp_path):
    lines = []
    for number, text in enumerate(["red fox", "blue bird", "red bird and fox", ""]):
        lines.append(json.dumps({"_id": f"d{number}", "title": f"title {number}", "text": text}))
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("\n".join(lines) + "\n")
    report = indexing.build("lexical", corpus, tmp_path / "sparse", engine="exact")
    bm25 = indexing.bm25(corpus, tmp_path / "bm25")
    for made, folder in ((report, tmp_path / "sparse"), (bm25, tmp_path / "bm25")):
        store = DocumentStore(folder / "documents")
        assert [document.doc_id for document in store] == ["d0", "d1", "d2", "d3"]
        assert store.find("d1") == Document("d1", "title 1", "blue bird")
        assert 0 <= made["document_megabytes"] <= made["megabytes"]
        assert verify_index(folder)["document_bytes"] > 0
    indexing.bm25(corpus, tmp_path / "bm25", store=False)
    indexing.build("lexical", corpus, tmp_path / "plain", engine="exact", store=False)
    for name in ("bm25", "plain", "plain.vectors"):
        assert not (tmp_path / name / "documents").exists()
