"""Stored files that are not what their names say: in every place, one error that names the file."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from small_indexes import make_vectors, random_matrix, static_queries

from sparse_ir.data import qrels, readers, runs
from sparse_ir.engines.lucene import java
from sparse_ir.errors import (
    EXIT_UNCHECKED,
    DamagedError,
    DataError,
    JavaError,
    ModelError,
    SparseIRError,
    UncheckedError,
)
from sparse_ir.indexing import builder, verification
from sparse_ir.indexing.quantization import Rule
from sparse_ir.indexing.vectors import Vectors
from sparse_ir.models.encoder import Encoder
from sparse_ir.retrieval.searcher import Index
from sparse_ir.storage import files, reading
from sparse_ir.training.configuration import config_parser

LFS_POINTER = reading.LFS_START + b"v1\noid sha256:" + b"0" * 64 + b"\nsize 1234\n"


class Stranger:
    """An object that no file of ours holds."""


def put_pointer(path: Path) -> None:
    path.write_bytes(LFS_POINTER)


def put_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps({"weight": Stranger()}, protocol=2))


def put_array_of_objects(path: Path) -> None:
    with path.open("wb") as stream:
        np.save(stream, np.array([Stranger()], dtype=object), allow_pickle=True)


def cut(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def put_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def put_noise(path: Path) -> None:
    path.write_bytes(bytes(range(256)) * 4)


FAULTS: dict[str, Callable[[Path], None]] = {
    "pointer": put_pointer,
    "pickle": put_pickle,
    "objects": put_array_of_objects,
    "cut": cut,
    "empty": empty,
    "folder": put_folder,
    "noise": put_noise,
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder of vectors and an index for each engine. Read only."""
    root = tmp_path_factory.mktemp("stored")
    queries = static_queries([0.0, 2.0, 1.0, 3.0, 1.0, 2.0])
    vectors = make_vectors(root / "vectors", random_matrix(1, 40, 6, 0.5), queries)
    for engine in ("lucene", "exact"):
        rule = Rule(1.0, folded=True)
        builder.build_impact_index(vectors, root / engine, rule, queries, engine=engine)
    return {name: root / name for name in ("vectors", "lucene", "exact")}


def read_vectors(folder: Path) -> None:
    vectors = Vectors(folder)
    vectors.query_encoder()
    for number in range(vectors.num_shards):
        vectors.read_shard(number)
        if vectors.has_documents:
            vectors.read_documents(number)


def files_of(folder: Path) -> list[Path]:
    """Every file with a content, relative to the folder."""
    names = []
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.stat().st_size and not path.name.endswith(".lock"):
            names.append(path.relative_to(folder))
    return names


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("kind", ["vectors", "exact"])
def test_every_file_of_a_stored_folder(
    folders: dict[str, Path], kind: str, fault: str, tmp_path: Path
) -> None:
    check = read_vectors if kind == "vectors" else verification.verify_index
    for number, name in enumerate(files_of(folders[kind])):
        folder = shutil.copytree(folders[kind], tmp_path / str(number))
        FAULTS[fault](folder / name)
        try:
            check(folder)
        except SparseIRError as error:
            assert str(folder) in str(error)
            assert "\n" not in str(error)
        else:
            assert name.parts[0] in {"plan.json", "shards"}  # not read once all is encoded


@pytest.mark.parametrize("fault", FAULTS)
def test_every_file_of_an_index_when_it_is_opened(
    folders: dict[str, Path], fault: str, tmp_path: Path
) -> None:
    """Opening compares sizes only, so noise in a data file may stay unnoticed until verify."""
    for number, name in enumerate(files_of(folders["exact"])):
        folder = shutil.copytree(folders["exact"], tmp_path / str(number))
        FAULTS[fault](folder / name)
        try:
            with Index(folder) as index:
                index.search("t1 t3", 5)
        except SparseIRError as error:
            assert str(folder) in str(error)


@pytest.mark.parametrize("fault", sorted(FAULTS.keys() - {"noise"}))
def test_every_file_of_a_lucene_index(folders: dict[str, Path], fault: str, tmp_path: Path) -> None:
    for number, name in enumerate(files_of(folders["lucene"] / "lucene")):
        folder = shutil.copytree(folders["lucene"], tmp_path / str(number))
        FAULTS[fault](folder / "lucene" / name)
        with pytest.raises(DamagedError, match=str(folder)):
            verification.verify_index(folder)


@pytest.mark.parametrize("fault", FAULTS)
def test_every_file_of_a_model(tiny_folder: Path, fault: str, tmp_path: Path) -> None:
    names = files_of(tiny_folder)
    if fault == "folder":
        names.remove(Path("tokenizer_config.json"))  # which is optional
    for number, name in enumerate(names):
        folder = shutil.copytree(tiny_folder, tmp_path / str(number))
        FAULTS[fault](folder / name)
        with pytest.raises(ModelError) as caught:
            Encoder.load(folder)
        assert str(folder) in str(caught.value)


@pytest.mark.parametrize("fault", sorted(FAULTS.keys() - {"folder"}))
def test_a_pickled_model(tiny_folder: Path, fault: str, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_folder, tmp_path / "m")
    path = folder / "pytorch_model.bin"
    (folder / "model.safetensors").rename(path)
    FAULTS[fault](path)
    with pytest.raises(ModelError, match=str(folder)):
        Encoder.load(folder, allow_pickle=True)


READERS: dict[str, Callable[[Path], object]] = {
    "corpus.jsonl": lambda path: list(readers.read_documents(path)),
    "queries.jsonl": lambda path: list(readers.read_queries(path)),
    "collection.tsv": lambda path: list(readers.read_documents(path)),
    "corpus.jsonl.gz": lambda path: list(readers.read_documents(path)),
    "corpus.parquet": lambda path: list(readers.read_documents(path)),
    "corpus.csv": lambda path: list(readers.read_documents(path)),
    "corpus.json": lambda path: list(readers.read_documents(path)),
    "corpus.jsonl.zst": lambda path: list(readers.read_documents(path)),
    "qrels.tsv": qrels.read_qrels,
    "run.trec": runs.read_run,
    "run.json": runs.read_run,
    "train.toml": config_parser.read_config,
}


@pytest.mark.parametrize("fault", sorted(FAULTS.keys() - {"cut", "empty"}))
@pytest.mark.parametrize("name", READERS)
def test_every_reader(name: str, fault: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text("x", encoding="utf-8")
    FAULTS[fault](path)
    with pytest.raises(SparseIRError) as caught:
        READERS[name](path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["corpus.jsonl", "run.trec", "qrels.tsv"])
def test_a_pointer_is_called_what_it_is(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(LFS_POINTER)
    with pytest.raises(DataError, match=f"{name} is a pointer of git-lfs, not the file itself"):
        READERS[name](path)


# --- what could not be read is not called damaged ---


def test_a_refusal_is_not_damage(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    plain_open = Path.open

    def refuse(path: Path, *arguments: object, **options: object) -> object:
        if path.name == "manifest.json":
            raise PermissionError(13, "Permission denied", str(path))
        return plain_open(path, *arguments, **options)  # type: ignore[arg-type,call-overload]

    monkeypatch.setattr(Path, "open", refuse)
    for call in (verification.verify_index, Index, files.read_json):
        target = folders["exact"]
        if call is files.read_json:
            target = target / "manifest.json"
        with pytest.raises(UncheckedError, match=r"manifest.json cannot be read \(Permission den"):
            call(target)


def verify_as_nobody(folder: Path, queue: multiprocessing.SimpleQueue[str]) -> None:
    """Verify in a process that has lost the rights of root."""
    os.setgid(65534)
    os.setuid(65534)
    try:
        verification.verify_index(folder)
    except SparseIRError as error:
        queue.put(f"{type(error).__name__} {error.exit_code} {error}")
    else:
        queue.put("verified")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize("closed", ["", "manifest.json", "exact", "exact/sparse.impacts.npy"])
def test_no_permission(folders: dict[str, Path], closed: str, tmp_path: Path) -> None:
    folder = shutil.copytree(folders["exact"], tmp_path / "index")
    for path in [*tmp_path.parents, tmp_path]:
        if path.name.startswith("pytest-") or path == tmp_path:
            path.chmod(0o755)
    (folder / closed).chmod(0o000)
    context = multiprocessing.get_context("fork")
    queue: multiprocessing.SimpleQueue[str] = context.SimpleQueue()
    child = context.Process(target=verify_as_nobody, args=(folder, queue))
    child.start()
    answer = queue.get()
    child.join()
    assert answer.startswith(f"UncheckedError {EXIT_UNCHECKED} "), answer
    assert "Permission denied" in answer


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("java.nio.file.AccessDeniedException", UncheckedError),
        ("java.nio.file.FileSystemException", UncheckedError),
        ("org.apache.lucene.index.IndexFormatTooNewException", UncheckedError),
        ("java.lang.OutOfMemoryError", JavaError),
        ("org.apache.lucene.index.CorruptIndexException", DamagedError),
        ("java.nio.file.NoSuchFileException", DamagedError),
        ("java.io.EOFException", DamagedError),
    ],
)
def test_only_some_errors_of_java_speak_of_damage(name: str, expected: type[Exception]) -> None:
    java.start()
    import jnius

    with (
        pytest.raises(expected),
        java.translated_errors("opening", DamagedError),
    ):
        raise jnius.JavaException("failed", name, "reason", None)
