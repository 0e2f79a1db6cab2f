"""Outputs destroy nothing: pipes, devices and links stay what they are, inputs are refused."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from shell import write_collection

import sparse_ir
from sparse_ir.errors import ConfigError, SparseIRError
from sparse_ir.models.checkpoint_writer import write_masked_lm
from sparse_ir.storage import files


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BEIR folder. Read only."""
    return write_collection(tmp_path_factory.mktemp("outputs") / "corpus", 30)


@pytest.fixture(scope="module")
def index(collection: Path) -> Path:
    """An index of it. Read only."""
    folder = collection.parent / "index"
    sparse_ir.build("lexical", collection, folder, engine="exact")
    return folder


def run_lines(index: Path, collection: Path, place: Path) -> bytes:
    """The run that a search writes into a plain file."""
    sparse_ir.search(index, collection, place)
    return place.read_bytes()


def test_a_pipe_is_written_to(index: Path, collection: Path, tmp_path: Path) -> None:
    expected = run_lines(index, collection, tmp_path / "plain")
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    received: list[bytes] = []
    reader = threading.Thread(target=lambda: received.append(pipe.read_bytes()))
    reader.start()
    sparse_ir.search(index, collection, pipe)
    reader.join(60)
    assert received == [expected]
    assert pipe.is_fifo()


@pytest.mark.parametrize("device", ["/dev/null", "/dev/full"])
def test_a_device_stays_a_device(
    index: Path, collection: Path, tmp_path: Path, device: str
) -> None:
    before = Path(device).stat()
    link = tmp_path / "device"
    link.symlink_to(device)
    if device == "/dev/full":
        with pytest.raises(OSError, match="No space left"):
            sparse_ir.search(index, collection, link)
    else:
        sparse_ir.search(index, collection, link)
        sparse_ir.search(index, collection, device)
    assert Path(device).stat().st_rdev == before.st_rdev
    assert link.is_symlink()


@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"])
@pytest.mark.parametrize("redirected", [False, True])
def test_standard_output(tmp_path: Path, name: str, redirected: bool) -> None:
    """What was printed before and after stays, in a pipe and in a file."""
    code = (
        "import sys; from pathlib import Path; from sparse_ir.storage import files\n"
        "print('before', flush=True)\n"
        f"with files.atomic_writer(Path({name!r})) as stream: stream.write('text\\n')\n"
        "print('after')"
    )
    place = tmp_path / "printed"
    with place.open("wb") as stream:
        target = stream if redirected else subprocess.PIPE
        done = subprocess.run([sys.executable, "-c", code], stdout=target, check=True)
    printed = place.read_bytes() if redirected else done.stdout
    assert printed == b"before\ntext\nafter\n"


def test_links_are_followed(index: Path, collection: Path, tmp_path: Path) -> None:
    expected = run_lines(index, collection, tmp_path / "plain")
    (tmp_path / "elsewhere").mkdir()
    target = tmp_path / "elsewhere" / "run"
    for text in ("old", None):  # the target is there, or will be made
        if text is not None:
            target.write_text(text)
        else:
            target.unlink()
        link = tmp_path / f"link-{text}"
        link.symlink_to(target)
        sparse_ir.search(index, collection, link)
        assert link.is_symlink()
        assert target.read_bytes() == expected
    assert sorted(path.name for path in (tmp_path / "elsewhere").iterdir()) == ["run"]


def test_folders_behind_links_are_replaced_there(collection: Path, tmp_path: Path) -> None:
    (tmp_path / "disk" / "real").mkdir(parents=True)
    link = tmp_path / "index"
    link.symlink_to(tmp_path / "disk" / "real")
    vectors = tmp_path / "vectors"
    for _ in range(2):
        sparse_ir.build("lexical", collection, link, vectors=vectors, engine="exact")
        assert link.is_symlink()
        assert sparse_ir.verify(tmp_path / "disk" / "real")["ok"]
    exported = tmp_path / "exported"
    exported.symlink_to(tmp_path / "disk" / "json")
    for _ in range(2):
        sparse_ir.export(vectors, exported)
        assert exported.is_symlink()
    names = {path.name for path in (tmp_path / "disk").iterdir() if path.name[0] != "."}
    assert names == {"real", "json"}


def copy_of(collection: Path, place: Path) -> Path:
    return shutil.copytree(collection, place)


@pytest.mark.parametrize(
    "name", ["queries.jsonl", "corpus.jsonl", "qrels/test.tsv", "", "link-to-queries"]
)
def test_an_input_is_no_output(index: Path, collection: Path, tmp_path: Path, name: str) -> None:
    folder = copy_of(collection, tmp_path / "c")
    output = folder / name
    if name == "link-to-queries":
        output.symlink_to(folder / "queries.jsonl")
    before = (folder / "queries.jsonl").read_bytes()
    with pytest.raises(ConfigError, match=r"which queries reads|is a folder"):
        sparse_ir.search(index, folder, output)
    with pytest.raises(ConfigError, match="which input reads"):
        sparse_ir.idf("default", folder, output)
    assert (folder / "queries.jsonl").read_bytes() == before
    assert (folder / "corpus.jsonl").read_bytes() == (collection / "corpus.jsonl").read_bytes()


def test_a_run_beside_the_queries_can_be_written_again(
    index: Path, collection: Path, tmp_path: Path
) -> None:
    folder = copy_of(collection, tmp_path / "c")
    for _ in range(2):
        sparse_ir.search(index, folder, folder / "run.trec")


@pytest.mark.parametrize("kind", ["file", "folder", "corpus"])
def test_folders_of_others_are_not_replaced(collection: Path, tmp_path: Path, kind: str) -> None:
    place = tmp_path / "place"
    if kind == "corpus":
        copy_of(collection, place)
    elif kind == "folder":
        place.mkdir()
        (place / "letter.txt").write_text("mine")
    else:
        place.write_text("mine")
    vectors = tmp_path / "vectors"
    sparse_ir.encode("lexical", collection, vectors)
    calls = {
        "build": lambda: sparse_ir.build("lexical", collection, place, vectors=tmp_path / "v"),
        "index": lambda: sparse_ir.index(vectors, place),
        "bm25": lambda: sparse_ir.bm25(collection, place),
        "encode": lambda: sparse_ir.encode("lexical", collection, place),
        "export": lambda: sparse_ir.export(vectors, place),
        "demo": lambda: sparse_ir.demo(place, model="lexical"),
        "model": lambda: write_masked_lm(place, None, None),  # type: ignore[arg-type]
    }
    before = sorted(path.name for path in tmp_path.rglob("*") if "lock" not in path.name)
    for name, call in calls.items():
        with pytest.raises(SparseIRError) as caught:
            call()
        assert str(place) in str(caught.value), name
    assert before == sorted(p.name for p in tmp_path.rglob("*") if "lock" not in p.name)


def test_a_folder_in_place_of_a_file(index: Path, collection: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is a folder; it must be the name of a file"):
        files.write_json(tmp_path, {})
    with pytest.raises(ConfigError, match="is a folder; it must be the name of a file"):
        sparse_ir.search(index, collection, tmp_path)


def test_the_demo_marks_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sparse_ir.commands import demo

    class Stopped(Exception):
        pass

    def stop(*_: object) -> None:
        raise Stopped

    monkeypatch.setattr(demo, "_write_collection", stop)
    for place in (tmp_path / "new", tmp_path / "new", tmp_path / "empty"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(Stopped):
            demo.demo(place)
        assert (place / "demo.json").is_file()
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "BM25.trec").touch()  # the demo of 0.1.0 left no mark
    with pytest.raises(Stopped):
        demo.demo(tmp_path / "old")


@pytest.mark.parametrize("name", ["doc_ids.txt", "exact/new.npy", "run.trec"])
def test_nothing_is_written_inside_an_index(
    index: Path, collection: Path, tmp_path: Path, name: str
) -> None:
    with pytest.raises(ConfigError, match=r"lies inside .*index, an index or vectors; it must be"):
        sparse_ir.search(index, collection, index / name)
    (tmp_path / "link").symlink_to(index)
    with pytest.raises(ConfigError, match=r"page is .*, which lies inside"):
        sparse_ir.explain(index, "a question", page=tmp_path / "link" / name)
    with pytest.raises(ConfigError, match="which lies inside"):
        sparse_ir.encode("lexical", collection, index.with_name("index.vectors") / name)
    assert sparse_ir.verify(index)["ok"]


def test_a_manifest_of_something_else_keeps_no_output_away(
    index: Path, collection: Path, tmp_path: Path
) -> None:
    (tmp_path / "manifest.json").write_text('{"name": "a page"}')
    sparse_ir.search(index, collection, tmp_path / "run.trec")
    assert (tmp_path / "run.trec").stat().st_size
