"""Writes are whole or not there: files, folders, locks, and what is left behind by a kill."""

from __future__ import annotations

import errno
import hashlib
import os
import resource
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest
from small_indexes import run_python

from sparse_ir.errors import DamagedError, LockedError
from sparse_ir.storage import files

# --- one file ---


def test_text_is_utf8_with_unix_line_ends(tmp_path):
    with files.atomic_writer(tmp_path / "new" / "a.txt") as stream:
        stream.write("\u00e9\n\U0001f600\n")
    assert (tmp_path / "new" / "a.txt").read_bytes() == "\u00e9\n\U0001f600\n".encode()


def test_bytes(tmp_path):
    with files.atomic_writer(tmp_path / "a", "wb") as stream:
        stream.write(b"\x00\r\n")
    assert (tmp_path / "a").read_bytes() == b"\x00\r\n"


def test_readers_see_the_old_file_until_the_end(tmp_path):
    path = tmp_path / "a"
    path.write_text("old")
    with files.atomic_writer(path) as stream:
        stream.write("new" * 100_000)
        stream.flush()
        assert path.read_text() == "old"
    assert path.read_text() == "new" * 100_000


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt()])
def test_an_exception_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "a"
    path.write_text("old")
    with pytest.raises(type(error)), files.atomic_writer(path) as stream:
        stream.write("new")
        raise error
    assert [(found.name, found.read_text()) for found in tmp_path.iterdir()] == [("a", "old")]


def test_a_full_disk_names_the_file_and_keeps_the_old_one(tmp_path):
    path = tmp_path / "a"
    path.write_text("old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with (
            pytest.raises(OSError, match="File too large") as caught,
            files.atomic_writer(path) as stream,
        ):
            stream.write("new" * 1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (caught.value.errno, caught.value.filename) == (errno.EFBIG, str(path))
    assert [(found.name, found.read_text()) for found in tmp_path.iterdir()] == [("a", "old")]


def test_what_safetensors_says_of_the_disk_is_an_error_of_the_system(tmp_path):
    import numpy as np
    from safetensors.numpy import save_file

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with (
            pytest.raises(OSError, match="File too large") as caught,
            files.building(tmp_path / "a") as folder,
        ):
            save_file({"zeros": np.zeros(1000)}, folder / "x.safetensors")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (caught.value.errno, caught.value.filename) == (errno.EFBIG, str(tmp_path / "a"))
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="os error 28"), files.naming_disk_errors(tmp_path):
        raise ValueError("(os error 28)")  # of somebody else


def test_a_killed_writer_leaves_the_old_file_and_a_leftover_that_is_found(tmp_path):
    path = tmp_path / "a"
    path.write_text("old")
    killed = run_python(
        """
        import os, signal, sys
        from pathlib import Path
        from sparse_ir.storage import files
        with files.atomic_writer(Path(sys.argv[1])) as stream:
            stream.write("new" * 100_000)
            os.kill(os.getpid(), signal.SIGKILL)
""",
        path,
    )
    assert killed.returncode == -signal.SIGKILL
    assert path.read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 2
    files.remove_leftovers(path)
    assert list(tmp_path.iterdir()) == [path]


def test_all_leftovers_of_a_folder_are_removed_and_nothing_else(tmp_path):
    for name in ("a", "b"):
        files.temporary_sibling(tmp_path / name).mkdir()
    files.temporary_sibling(tmp_path / "c").write_text("half")
    (tmp_path / "d").mkdir()
    (tmp_path / ".e").write_text("hidden")
    files.remove_leftovers_in(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".e", "d"]


def test_leftovers_of_others_stay(tmp_path):
    mine, folder = files.temporary_sibling(tmp_path / "a"), files.temporary_sibling(tmp_path / "a")
    other = files.temporary_sibling(tmp_path / "ab")
    for path in (mine, other, tmp_path / "a", tmp_path / ".a.txt"):
        path.write_text("")
    (folder / "deep").mkdir(parents=True)
    assert len({mine, folder}) == 2
    files.remove_leftovers(tmp_path / "a")
    assert {path.name for path in tmp_path.iterdir()} == {other.name, "a", ".a.txt"}


# --- JSON and checksums ---


def test_json_round_trip(tmp_path):
    value = {"\u00e9": [1, 2.5, None, True], "text": "\u3000\n"}
    files.write_json(tmp_path / "a.json", value)
    assert files.read_json(tmp_path / "a.json") == value
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == files.format_json(value)
    assert "\u00e9" in files.format_json(value), "for human eyes"


@pytest.mark.parametrize(("content", "message"), [
    (None, "a.json is missing"), (b"{", r"a.json is not readable as JSON \("),
    (b"\xff\xfe", r"a.json is not readable as JSON \("),
])  # fmt: skip
def test_broken_json_is_damage(tmp_path, content, message):
    if content is not None:
        (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(DamagedError, match=message):
        files.read_json(tmp_path / "a.json")


def test_value_that_cannot_be_written_leaves_the_old_file(tmp_path):
    files.write_json(tmp_path / "a.json", 1)
    with pytest.raises(TypeError):
        files.write_json(tmp_path / "a.json", {"a": object()})
    assert files.read_json(tmp_path / "a.json") == 1
    assert len(list(tmp_path.iterdir())) == 1


def test_checksums_are_sha256(tmp_path):
    (tmp_path / "a").write_bytes(b"abc" * 100_000)
    assert files.sha256_of_file(tmp_path / "a") == hashlib.sha256(b"abc" * 100_000).hexdigest()
    assert (
        files.sha256_of_json({"b": 1, "a": [1.5, "\u00e9"]})
        == hashlib.sha256(b'{"a":[1.5,"\\u00e9"],"b":1}').hexdigest()
    )
    assert files.sha256_of_json({"b": 1, "a": 2}) == files.sha256_of_json({"a": 2, "b": 1})
    assert files.sha256_of_json({"a": 1}) != files.sha256_of_json({"a": "1"})


def test_folder_size_counts_all_files(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b").write_bytes(b"12345")
    (tmp_path / "c").write_bytes(b"123")
    assert files.folder_size(tmp_path) == 8


# --- folders ---


def make_folder(path: Path, text: str) -> Path:
    (path / "deep").mkdir(parents=True)
    (path / "deep" / "file").write_text(text)
    return path


def test_swap_in_a_first_folder(tmp_path):
    files.swap_folder(make_folder(tmp_path / "new", "1"), tmp_path / "target")
    assert (tmp_path / "target" / "deep" / "file").read_text() == "1"
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


def test_swap_replaces_and_deletes_the_old_folder(tmp_path):
    make_folder(tmp_path / "target", "1")
    with (tmp_path / "target" / "deep" / "file").open() as still_open:
        files.swap_folder(make_folder(tmp_path / "new", "2"), tmp_path / "target")
        assert still_open.read() == "1", "who has it open can go on reading"
    assert (tmp_path / "target" / "deep" / "file").read_text() == "2"
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


def test_target_exists_at_every_moment_of_a_swap(tmp_path):
    """A thread reads all the time while the folder is replaced 200 times: it is never missing,
    never empty.
    """
    make_folder(tmp_path / "target", "0")
    wrong, stop = [], threading.Event()

    def read() -> None:
        while not stop.is_set():
            if not (tmp_path / "target").is_dir():
                wrong.append("missing")

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(200):
        files.swap_folder(make_folder(tmp_path / "new", str(number)), tmp_path / "target")
    stop.set()
    reader.join()
    assert wrong == []


# --- locks ---

HOLD = """
    import sys
    from pathlib import Path
    from sparse_ir.storage import files
    with files.write_lock(Path(sys.argv[1])):
        print("held", flush=True)
        sys.stdin.readline()
"""


def test_the_lock_keeps_others_out_and_dies_with_its_owner(tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(HOLD), str(tmp_path / "a")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "held\n"
        with (
            pytest.raises(
                LockedError,
                match=r"a: another process is writing here; wait for it "
                r"to end, or choose ",
            ),
            files.write_lock(tmp_path / "a"),
        ):
            pytest.fail("entered a held lock")
        with files.write_lock(tmp_path / "b"):
            pass
        os.kill(owner.pid, signal.SIGKILL)
        owner.wait()
        with files.write_lock(tmp_path / "a", timeout=10):
            pass


def test_the_lock_is_free_again_after_an_exception(tmp_path):
    with pytest.raises(ValueError, match="inside"), files.write_lock(tmp_path / "new" / "a"):
        raise ValueError("inside")
    with (
        files.write_lock(tmp_path / "new" / "a"),
        pytest.raises(LockedError),
        files.write_lock(tmp_path / "new" / "a"),
    ):
        pytest.fail("entered a held lock")
