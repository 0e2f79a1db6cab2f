"""An index survives: killed writers, two writers, a full disk, one flipped bit, and being replaced
under a reader.
"""

from __future__ import annotations

import itertools
import json
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_indexes import (
    changed_environment,
    make_vectors,
    pairs_of,
    random_matrix,
    run_python,
    static_queries,
)

from sparse_ir.errors import ConfigError, DamagedError, LockedError
from sparse_ir.indexing import builder, verification
from sparse_ir.indexing.manifest import read_manifest, write_manifest
from sparse_ir.indexing.quantization import Rule
from sparse_ir.indexing.vectors import Vectors
from sparse_ir.retrieval import searcher
from sparse_ir.retrieval.options import SearchOptions
from sparse_ir.retrieval.searcher import Index

TERMS = 30
QUERIES = static_queries(np.linspace(0.5, 2.0, TERMS))
RULE = Rule(scale=10.0, folded=True)
# every file of an index, written by one thread
FILES = [
    "manifest.json",
    "doc_ids.txt",
    "doc_ids.npy",
    "samples.jsonl",
    "unindexed.jsonl",
    "statistics.json",
    "statistics.sparse.npy",
    "documents/blocks.bin",
    "documents/block_offsets.npy",
    "documents/first_documents.npy",
    "documents/id_hashes.npy",
    "documents/id_numbers.npy",
    "query/query.json",
    "query/tokenizer.json",
    "query/weights.safetensors",
    "lucene/segments_1",
    "lucene/_0.fdm",
    "lucene/_0.fdt",
    "lucene/_0.fdx",
    "lucene/_0.fnm",
    "lucene/_0.si",
    "lucene/_0_Lucene90_0.dvd",
    "lucene/_0_Lucene90_0.dvm",
    "lucene/_0_Lucene99_0.doc",
    "lucene/_0_Lucene99_0.tim",
    "lucene/_0_Lucene99_0.tip",
    "lucene/_0_Lucene99_0.tmd",
]

BUILD = """
    import os, signal, sys
    from pathlib import Path
    from sparse_ir.engines.lucene import java
    from sparse_ir.indexing import builder, verification
    from sparse_ir.indexing.quantization import Rule
    from sparse_ir.indexing.vectors import Vectors

    def build(root, threads=1):
        made = Vectors(root / "new")
        return builder.build_impact_index(made, root / "index", Rule(10.0, folded=True), made.query_encoder(),
                                          threads=threads)
"""
KILLED_AT = (
    BUILD
    + """
    event, part, left = sys.argv[2], sys.argv[3], [int(sys.argv[4])]

    def watch(name, arguments):
        if name == event and part in str(arguments):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    java.start()
    sys.addaudithook(watch)
    build(Path(sys.argv[1]), int(sys.argv[5]))
"""
)
KILLED_ANY_TIME = (
    BUILD
    + """
    java.start()
    print("begun", flush=True)
    while True:
        build(Path(sys.argv[1]), 2)
"""
)
WAITS_INSIDE = (
    BUILD
    + """
    import time

    root = Path(sys.argv[1])
    made = Vectors(root / "new")
    read = made.read_shard

    def read_shard(number):
        print("writing", flush=True)
        sys.stdin.readline()
        return read(number)

    made.read_shard = read_shard if sys.argv[2] == "wait" else read
    builder.build_impact_index(made, root / "index", Rule(10.0, folded=True), made.query_encoder())
"""
)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good index built from ``old``, and vectors ``new`` of another collection. Copied by each
    test.
    """
    root = tmp_path_factory.mktemp("template")
    old = make_vectors(root / "old", random_matrix(1, 60, TERMS, 0.3), QUERIES, empty=[3, 40])
    make_vectors(root / "new", random_matrix(2, 80, TERMS, 0.3), QUERIES)
    builder.build_impact_index(old, root / "index", RULE, QUERIES)
    return root


@pytest.fixture
def root(template: Path, tmp_path: Path) -> Path:
    """A copy of the template to destroy."""
    shutil.copytree(template, tmp_path / "root", ignore=shutil.ignore_patterns("*.lock"))
    return tmp_path / "root"


def answers(index: Path) -> list[Any]:
    with Index(index) as opened:
        return [pairs_of(opened.search(f"t{term} t{term + 1}", 20)) for term in range(1, 20)]


def assert_whole(root: Path, documents: int) -> None:
    assert verification.verify_index(root / "index")["documents"] == documents
    assert all(answers(root / "index"))


def assert_next_build_cleans_up(root: Path) -> None:
    new = Vectors(root / "new")
    builder.build_impact_index(new, root / "index", RULE, new.query_encoder())
    assert_whole(root, 80)
    assert {path.name for path in root.iterdir()} == {"old", "new", "index", ".index.lock"}


# --- kill -9 ---


@pytest.mark.parametrize(("event", "part", "count", "threads", "documents"), [
    ("open", "000000.safetensors", 1, 1, 60),  # nothing is written
    ("open", "000007.safetensors", 1, 1, 60),  # in the middle of Lucene's writing
    ("open", "000007.safetensors", 1, 2, 60),  # the same with two half-filled parts
    ("shutil.rmtree", "part0", 1, 2, 60),  # the parts are merged
    ("open", "query.json", 1, 1, 60),
    ("os.rename", "doc_ids.npy", 1, 1, 60),
    ("open", "manifest.json.tmp", 1, 1, 60),
    ("os.rename", "manifest.json", 1, 1, 60),
    ("open", "samples.jsonl", 3, 1, 60),  # inside verification
    ("ctypes.dlsym", "renameat2", 1, 1, 60),  # the very last thing before the exchange
    ("shutil.rmtree", ".index.tmp-", 1, 1, 80),  # exchanged, the old one still beside it
    ("os.remove", "", 5, 1, 80),  # the old one half deleted
])  # fmt: skip
def test_kill_at_any_moment_leaves_a_whole_index(root, event, part, count, threads, documents):
    killed = run_python(KILLED_AT, root, event, part, count, threads)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert_whole(root, documents)
    assert_next_build_cleans_up(root)


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.03, 0.2, 0.5, 0.9, 1.3])
def test_kill_from_outside_leaves_a_whole_index(root, seconds):
    with start(KILLED_ANY_TIME, root) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        time.sleep(seconds)
        process.kill()
    assert verification.verify_index(root / "index")["documents"] in (60, 80)
    assert_next_build_cleans_up(root)


def test_killed_first_build_leaves_nothing_that_opens(root):
    shutil.rmtree(root / "index")
    killed = run_python(KILLED_AT, root, "open", "manifest.json.tmp", 1, 1)
    assert killed.returncode == -signal.SIGKILL
    assert not (root / "index").exists()
    with pytest.raises(DamagedError, match="is no index of this package"):
        Index(root / "index")
    assert_next_build_cleans_up(root)


# --- two writers ---


def start(program: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program), *map(str, arguments)],
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=changed_environment(None),
    )


def test_second_writer_is_refused_and_the_first_one_finishes(root):
    new = Vectors(root / "new")
    with start(WAITS_INSIDE, root, "wait") as first:
        assert first.stdout is not None
        assert first.stdin is not None
        assert first.stdout.readline() == "writing\n"
        assert_whole(root, 60)  # readers are not locked out
        with pytest.raises(
            LockedError,
            match=r"index: another process is writing here; wait .* "
            r"or choose another",
        ):
            builder.build_impact_index(new, root / "index", RULE, new.query_encoder())
        second = run_python(WAITS_INSIDE, root, "go")
        assert second.returncode == 1
        assert "LockedError" in second.stderr.splitlines()[-1]
        first.stdin.write("\n" * 20)
        first.stdin.close()
        assert first.wait(60) == 0
        assert first.stderr is not None
        assert first.stderr.read() == ""
    assert_whole(root, 80)
    assert_next_build_cleans_up(root)


# --- full disk ---

FULL_DISK = (
    BUILD
    + """
    import contextlib, json, resource

    @contextlib.contextmanager
    def limited_files(size):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

    @contextlib.contextmanager
    def full_disk(free):
        ballast = root / "ballast"
        with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as stream:
            while True:
                stream.write(bytes(4096))
        os.truncate(ballast, max(0, ballast.stat().st_size - free))
        try:
            yield
        finally:
            ballast.unlink()

    root = Path(sys.argv[1])
    if sys.argv[2] == "disk":
        import shutil
        shutil.copytree(sys.argv[3], root, dirs_exist_ok=True)
    java.start()
    shrink, sizes = (full_disk, range(0, 60_000, 8192)) if sys.argv[2] == "disk" else \\
        (limited_files, [1, 100, 300, 600, 1000, 1400, 2000, 3000, 6000])
    before = (root / "index" / "manifest.json").read_bytes()
    for size in sizes:
        for threads in (1, 2):
            try:
                with shrink(size):
                    build(root, threads)
                error = None
            except Exception as caught:
                error = [type(caught).__name__, str(caught)]
            after = verification.verify_index(root / "index")["documents"]
            print(json.dumps({"size": size, "error": error, "documents": after,
                              "beside": sorted(path.name for path in root.iterdir())}), flush=True)
            if error is None:
                sys.exit()
            assert (root / "index" / "manifest.json").read_bytes() == before
    build(root)
"""
)
MAY_MOUNT = (
    shutil.which("unshare") is not None
    and subprocess.run(
        ["unshare", "-rm", "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True, check=False
    ).returncode
    == 0
)


@pytest.mark.parametrize("kind", ["files", "disk"] if MAY_MOUNT else ["files"])
def test_full_disk_is_one_sentence_and_keeps_the_old_index(root, tmp_path, kind):
    """Files that may not grow (anywhere), and a real file system without space (where one may be
    mounted).
    """
    if kind == "files":
        done = run_python(FULL_DISK, root, kind)
    else:
        (tmp_path / "disk").mkdir()
        mount = 'mount -t tmpfs -o size=600k none "$3" && exec "$1" -c "$2" "$3" disk "$4"'
        done = subprocess.run(
            [
                "unshare",
                "-rm",
                "sh",
                "-c",
                mount,
                "sh",
                sys.executable,
                textwrap.dedent(FULL_DISK),
                tmp_path / "disk",
                root,
            ],
            text=True,
            capture_output=True,
            timeout=120,
            check=False,
            env=changed_environment(None),
        )
    assert done.stderr == ""
    assert done.returncode == 0
    results = [json.loads(line) for line in done.stdout.splitlines()]
    failures = [result for result in results if result["error"] is not None]
    assert len(failures) >= 6, results
    for failure in failures:
        name, message = failure["error"]
        assert failure["documents"] == 60
        assert failure["beside"] == [".index.lock", "index", "new", "old"]
        assert "\n" not in message
        assert ("File too large" if kind == "files" else "No space left on device") in message, (
            failure
        )
        assert name == "JavaError" or "index" in message, "an error of the system names the file"
    assert {failure["error"][0] for failure in failures} == {"JavaError", "OSError"}, (
        "both sides of the bridge failed"
    )


# --- damage ---


def test_list_of_files_is_complete(template):
    found = {
        path.relative_to(template / "index").as_posix()
        for path in (template / "index").rglob("*")
        # Lucene's lock file is empty and means nothing
        if path.is_file() and path.name != "write.lock"
    }
    assert found == set(FILES)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["flip", "cut", "grow", "remove"])
def test_every_damage_is_found(root, name, damage):
    path = root / "index" / name
    content = bytearray(path.read_bytes())
    if damage == "flip":
        draw = random.Random(name)
        for position in {
            0,
            len(content) // 2,
            len(content) - 1,
            *draw.choices(range(len(content)), k=3),
        }:
            changed = content.copy()
            changed[position] ^= 1 << draw.randrange(8)
            path.write_bytes(changed)
            with pytest.raises(DamagedError, match="index"):
                verification.verify_index(root / "index")
        return
    if damage == "remove":
        path.unlink()
    else:
        path.write_bytes(content[:-1] if damage == "cut" else content + b"\n")
    with pytest.raises(DamagedError, match="index"):
        verification.verify_index(root / "index")
    with pytest.raises(DamagedError, match="index"):
        Index(root / "index")  # sizes are looked at whenever an index is opened


def test_bits_all_over_the_manifest_count(root):
    path = root / "index" / "manifest.json"
    content = path.read_bytes()
    draw = random.Random(0)
    for position in range(0, len(content), 5):
        changed = bytearray(content)
        changed[position] ^= 1 << draw.randrange(8)
        path.write_bytes(changed)
        with pytest.raises(DamagedError):
            read_manifest(root / "index")
    path.write_bytes(content)
    assert read_manifest(root / "index")["kind"] == "impact"


def test_files_that_nobody_knows_are_found(root):
    (root / "index" / "lucene" / "_9.fdt").write_bytes(b"")
    with pytest.raises(
        DamagedError,
        match=r"holds files that the manifest does not know: "
        r"\['_9.fdt'\]",
    ):
        verification.verify_index(root / "index")


@pytest.mark.parametrize(("name", "message"), [
    ("doc_ids.txt", r"line 1 is x0, the engine has d0"),
    ("samples.jsonl", r"document d0 scores \d+\.0, its exact vector gives \d+"),
])  # fmt: skip
def test_contents_are_checked_not_only_checksums(root, name, message):
    """A manifest whose checksums were made from wrong files does not convince anybody."""
    path = root / "index" / name
    text = path.read_text(encoding="utf-8")
    if name == "doc_ids.txt":
        path.write_text("x0" + text[2:])
    else:
        sample = json.loads(text.splitlines()[0])
        sample["vector"] = {token: impact + 1 for token, impact in sample["vector"].items()}
        path.write_text(json.dumps(sample) + "\n")
    reseal(root / "index", lambda manifest: None)
    with pytest.raises(DamagedError, match=message):
        verification.verify_index(root / "index")


@pytest.mark.parametrize(
    ("count", "message"),
    [("indexed", "documents"), ("postings", "postings"), ("sum_impacts", "sum_impacts")],
)
def test_counts_are_checked_against_lucene(root, count, message):
    def change(manifest: dict[str, Any]) -> None:
        manifest["counts"][count] += 1

    reseal(root / "index", change)
    with pytest.raises(
        DamagedError,
        match=rf"the engine counts \d+ {message}, the manifest promises "
        rf"\d+",
    ):
        verification.verify_index(root / "index")


def reseal(index: Path, change: Any) -> None:
    manifest = read_manifest(index)
    facts = {
        key: manifest[key] for key in ("encoder", "query", "vocabulary_sha256", "rule", "counts")
    }
    change(facts)
    (index / "manifest.json").unlink()
    write_manifest(index, manifest["kind"], facts, {"lucene": manifest["versions"]["lucene"]})


# --- replaced while read ---


def test_open_index_answers_while_it_is_replaced(root):
    new = Vectors(root / "new")
    old_answers = answers(root / "index")
    with Index(root / "index") as opened:
        for _ in range(2):
            builder.build_impact_index(new, root / "index", RULE, new.query_encoder())
            assert [
                pairs_of(opened.search(f"t{term} t{term + 1}", 20)) for term in range(1, 20)
            ] == old_answers
    assert answers(root / "index") != old_answers


@pytest.mark.parametrize("again", ["new", "old"])
def test_an_index_exchanged_between_two_reads_of_one_file_is_opened_again(root, monkeypatch, again):
    """numpy reads the header of a map, and maps the file, by its name: between them there may be
    another file.
    """
    built, load = Vectors(root / again), np.load
    calls = []

    def exchange_first(path, *arguments, **named):
        if not calls:
            calls.append(path)
            builder.build_impact_index(built, root / "index", RULE, built.query_encoder())
            raise ValueError("mmap length is greater than file size")
        return load(path, *arguments, **named)

    monkeypatch.setattr(np, "load", exchange_first)
    assert len(answers(root / "index")) == 19
    assert calls
    monkeypatch.setattr(np, "load", load)
    with Index(root / "index") as opened:
        assert opened.manifest["counts"]["documents"] == len(built)


def test_no_part_of_the_old_version_is_left_when_the_new_one_has_none(root, monkeypatch):
    old, new = Vectors(root / "old"), Vectors(root / "new")
    builder.build_impact_index(old, root / "index", RULE, old.query_encoder(), forward_index=True)
    version_of, calls = searcher.version_of, []

    def exchange_before_the_second(folder):
        calls.append(folder)
        if len(calls) == 2:
            builder.build_impact_index(
                new, root / "index", RULE, new.query_encoder(), forward_index=False
            )
        return version_of(folder)

    monkeypatch.setattr(searcher, "version_of", exchange_before_the_second)
    with Index(root / "index") as opened:
        assert opened.manifest["counts"]["documents"] == 80
        assert opened.forward is None
        with pytest.raises(ConfigError, match="needs a forward index"):
            opened.search("t1 t2", 3, SearchOptions(mass=0.5, candidates=2))


@pytest.mark.parametrize(
    ("name", "change", "match"),
    [
        ("doc_ids.txt", b"\xff" * 4, r"doc_ids\.txt is damaged"),
        ("forward/offsets.npy", b"\x00" * 8, r"offsets\.npy: documents end before they begin"),
    ],
)
def test_bytes_that_make_no_sense_are_damage(root, name, change, match):
    built = Vectors(root / "old")
    builder.build_impact_index(
        built, root / "index", RULE, built.query_encoder(), forward_index=True
    )
    path = root / "index" / name
    content = path.read_bytes()
    middle = len(content) // 2 // 8 * 8
    path.write_bytes(content[:middle] + change + content[middle + len(change) :])
    with pytest.raises(DamagedError, match=match), Index(root / "index") as opened:
        opened.search("t1 t2 t3 t4 t5 t6 t7", 1000)


def test_readers_see_the_old_or_the_new_index_and_nothing_between(root):
    """Another process replaces the index again and again; every opening here finds a whole one."""
    expected = {60: answers(root / "index")}
    swapping = (
        BUILD
        + """
    other = Vectors(Path(sys.argv[1]) / "old")
    java.start()
    print("begun", flush=True)
    for _ in range(4):
        build(Path(sys.argv[1]))
        builder.build_impact_index(other, Path(sys.argv[1]) / "index", Rule(10.0, folded=True), other.query_encoder())
    """
    )
    seen = set()
    with start(swapping, root) as process:
        assert process.stdout is not None
        process.stdout.readline()
        for attempt in itertools.count():
            if process.poll() is not None and attempt > 20:
                break
            with Index(root / "index") as opened:
                found = [
                    pairs_of(opened.search(f"t{term} t{term + 1}", 20)) for term in range(1, 20)
                ]
                documents = opened.manifest["counts"]["documents"]
            seen.add(documents)
            assert found == expected.setdefault(documents, found)
        assert process.returncode == 0
    assert seen == {60, 80}
