"""The cache of teachers: what is put comes back, whoever dies, and nothing of another teacher ever
does.
"""

from __future__ import annotations

import errno
import hashlib
import multiprocessing
import os
import re
import signal
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from sparse_ir.errors import DamagedError, IndexMismatch, LockedError
from sparse_ir.training.teachers.cache import KEY_BYTES, Cache, key_of, key_of_pair

FACTS = {
    "revision": "abc",
    "max_length": 32,
    "prompts": {"query": "q: ", "document": ""},
    "pooling": ["mean"],
}
WRITER = """
import sys
from pathlib import Path
from sparse_ir.training.teachers.cache import Cache
from sparse_ir.training.teachers.cache import key_of
cache = Cache(Path(sys.argv[1]), "teacher", "dense", {})
for batch in range(int(sys.argv[3]), int(sys.argv[4])):
    cache.put((key_of(f"{batch}-{n}"), f"{batch}-{n} of anyone".encode() * 50) for n in range(20))
    print(batch, flush=True)
"""


def open_cache(folder: Path | None, **changes) -> Cache:
    return Cache(folder, "owner/some teacher", "dense", {**FACTS, **changes}, {"torch": "1"})


def path_of_cache(folder: Path) -> Path:
    """Where ``open_cache`` looks, with nothing there."""
    cache = open_cache(folder)
    cache.close()
    cache.path.unlink()
    return cache.path


def start_writer(folder: Path, first: int, last: int) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(folder), "-", str(first), str(last)],
        stdout=subprocess.PIPE,
        text=True,
    )


def check_batches(cache: Cache, batches) -> None:
    for batch in batches:
        names = [f"{batch}-{n}" for n in range(20)]
        assert cache.get([key_of(name) for name in names]) == {
            key_of(name): f"{name} of anyone".encode() * 50 for name in names
        }


def test_a_key_is_the_hash_of_role_and_text():
    assert key_of("text") == hashlib.sha256(b"\0text").digest()[:16]
    assert key_of("text", "query") == hashlib.sha256(b"query\0text").digest()[:16]
    assert len({key_of(""), key_of("", "query"), key_of("", "document"), key_of("\ud800")}) == 4
    pair = key_of_pair(key_of("a"), key_of("b"))
    assert len(pair) == KEY_BYTES
    assert pair != key_of_pair(key_of("b"), key_of("a"))


@pytest.mark.parametrize("in_memory", [True, False])
def test_what_is_put_comes_back_and_the_first_value_stays(tmp_path, in_memory):
    cache = open_cache(None if in_memory else tmp_path)
    keys = [key_of(str(n)) for n in range(1700)]
    cache.put([(key, bytes([n % 256])) for n, key in enumerate(keys[:1200])])
    assert cache.get(keys) == {key: bytes([n % 256]) for n, key in enumerate(keys[:1200])}
    assert cache.missing([*keys[1190:], keys[1500]]) == keys[1200:]
    cache.put([(keys[3], b"later"), (keys[1200], b"")])
    assert cache.get([keys[3], keys[1200]]) == {keys[3]: b"\x03", keys[1200]: b""}
    assert len(cache) == 1201
    assert cache.get([]) == {}
    assert cache.missing([]) == []


def test_a_value_that_changed_on_the_disk_is_noticed(tmp_path):
    cache = open_cache(tmp_path)
    cache.put([(key_of("one"), b"12345678"), (key_of("two"), b"abcdefgh")])
    cache.close()
    with sqlite3.connect(cache.path) as connection:
        (stored,) = connection.execute(
            "SELECT value FROM entries WHERE key = ?", (key_of("one"),)
        ).fetchone()
        changed = bytes([stored[0] ^ 1]) + stored[1:]
        connection.execute("UPDATE entries SET value = ? WHERE key = ?", (changed, key_of("one")))
    connection.close()
    assert cache.get([key_of("two")]) == {key_of("two"): b"abcdefgh"}
    with pytest.raises(
        DamagedError, match="the checksum of a value differs; delete it, and it is made again"
    ):
        cache.get([key_of("one")])


def test_a_file_is_found_again_by_the_same_facts_only(tmp_path):
    cache = open_cache(tmp_path)
    cache.put([(key_of("a"), b"1")])
    cache.close()
    assert re.fullmatch(r"owner-some-teacher-[0-9a-f]{12}-dense\.sqlite", cache.path.name)
    again = Cache(tmp_path, "owner/some teacher", "dense", FACTS, {"torch": "2"})
    assert again.get([key_of("a")]) == {key_of("a"): b"1"}, (
        "versions of libraries are information only"
    )
    assert len(Cache(tmp_path, "owner/some teacher", "pairs", FACTS)) == 0, (
        "another kind is another file"
    )


CHANGES = pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"revision": "def"}, "revision is 'def', stored is 'abc'"),
        (
            {"prompts": {"query": "", "document": ""}},
            "teacher: prompts.query is '', stored is 'q: '; give",
        ),
        ({"pooling": ["cls"]}, r"pooling is \['cls'\], stored is \['mean'\]"),
        ({"dtype": "bfloat16"}, "dtype is 'bfloat16', stored is None"),
        (
            {"max_length": 64, "revision": None},
            "max_length is 64, stored is 32; revision is None, stored is 'abc'",
        ),
    ],
)


@CHANGES
def test_another_provenance_has_a_file_of_its_own(tmp_path, change, message):
    first, other = open_cache(tmp_path), open_cache(tmp_path, **change)
    first.put([(key_of("a"), b"1")])
    assert len(other) == 0
    other.put([(key_of("a"), b"2")])
    assert [cache.get([key_of("a")])[key_of("a")] for cache in (first, other)] == [b"1", b"2"]


@CHANGES
def test_a_file_under_the_name_of_another_is_refused_with_the_key_that_differs(
    tmp_path, change, message
):
    first, other = open_cache(tmp_path), open_cache(tmp_path, **change)
    for cache in (first, other):
        cache.close()
    first.path.replace(other.path)
    with pytest.raises(IndexMismatch, match=message):
        open_cache(tmp_path, **change)


def test_two_names_that_look_alike_as_file_names_do_not_share_values(tmp_path):
    assert Cache(tmp_path, "a/b", "dense", {}).path != Cache(tmp_path, "a-b", "dense", {}).path


def test_a_put_that_fails_stores_nothing(tmp_path):
    cache = open_cache(tmp_path)

    def broken():
        yield key_of("a"), b"1"
        raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        cache.put(broken())
    assert len(cache) == 0
    cache.put([(key_of("a"), b"2")])
    assert len(cache) == 1


def test_a_full_disk_names_the_file_and_loses_nothing(tmp_path):
    cache = open_cache(tmp_path)
    cache.put([(key_of("a"), b"1")])
    pages = cache._connection().execute("PRAGMA page_count").fetchone()[0]
    # SQLite's own way to be full
    cache._connection().execute(f"PRAGMA max_page_count = {pages + 2}")
    with pytest.raises(OSError, match=r"dense.sqlite") as caught:
        cache.put([(key_of("b"), bytes(100_000))])
    assert caught.value.errno == errno.ENOSPC
    assert cache.get([key_of("a"), key_of("b")]) == {key_of("a"): b"1"}


@pytest.mark.parametrize(
    "content", [b"this is no database at all" * 100, b"SQLite format 3\0" + bytes(200)]
)
def test_a_file_that_is_no_cache_is_refused(tmp_path, content):
    path_of_cache(tmp_path).write_bytes(content)
    with pytest.raises(DamagedError, match=r"not readable as a cache of scores .*; delete it"):
        open_cache(tmp_path)


def test_a_folder_in_the_place_of_the_file_is_an_error_of_the_system(tmp_path):
    path_of_cache(tmp_path).mkdir()
    with pytest.raises(OSError, match="cannot be read or written"):
        open_cache(tmp_path)


def test_a_writer_that_holds_the_file_for_too_long_is_named(tmp_path):
    cache = open_cache(tmp_path)
    cache._connection().execute("PRAGMA busy_timeout = 10")
    other = sqlite3.connect(cache.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(LockedError, match=r"dense.sqlite: another process is writing"):
        cache.put([(key_of("a"), b"1")])
    other.execute("ROLLBACK")
    other.close()
    cache.put([(key_of("a"), b"1")])
    assert len(cache) == 1


def test_a_killed_writer_loses_at_most_its_batch_in_work(tmp_path):
    with start_writer(tmp_path, 0, 100_000) as writer:
        assert writer.stdout is not None
        done = [int(writer.stdout.readline()) for _ in range(30)]
        writer.send_signal(signal.SIGKILL)
        done += [int(line) for line in writer.stdout.read().split()]
    cache = Cache(tmp_path, "teacher", "dense", {})
    check_batches(cache, done)
    assert len(cache) in (20 * len(done), 20 * len(done) + 20)
    assert cache._connection().execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_two_writers_and_a_reader_at_the_same_time(tmp_path):
    writers = [start_writer(tmp_path, 0, 60), start_writer(tmp_path, 30, 90)]
    reader = Cache(tmp_path, "teacher", "dense", {})
    while any(writer.poll() is None for writer in writers):
        assert len(reader) % 20 == 0, "batches are seen whole"
    for writer in writers:
        assert writer.communicate()[0].count("\n") == 60
        assert writer.returncode == 0
    check_batches(reader, range(90))
    assert len(reader) == 1800


def _put_in_child(cache: Cache, text: str) -> None:
    cache.put([(key_of(text), b"child")])


def test_a_forked_process_has_a_connection_of_its_own(tmp_path):
    cache = open_cache(tmp_path)
    cache.put([(key_of("parent"), b"parent")])
    child = multiprocessing.get_context("fork").Process(target=_put_in_child, args=(cache, "child"))
    child.start()
    child.join()
    assert child.exitcode == 0
    assert cache.get([key_of("parent"), key_of("child")]) == {
        key_of("parent"): b"parent",
        key_of("child"): b"child",
    }


def test_a_cache_in_memory_belongs_to_its_process():
    cache = open_cache(None)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            cache.get([key_of("a")])
            os.write(writing, b"no error")
        except LockedError as error:
            os.write(writing, str(error).encode())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert (
        os.read(reading, 1000)
        .decode()
        .startswith("a cache in memory belongs to the process that made it")
    )


def test_threads_share_a_cache(tmp_path):
    cache = open_cache(tmp_path)

    def work(number: int) -> None:
        for n in range(50):
            cache.put([(key_of(f"{number}-{n}"), b"v")])
            cache.get([key_of(f"{number}-{n}")])

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(cache) == 200
