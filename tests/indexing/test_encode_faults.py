"""Encoding is killed, starved, damaged and run in parallel; what comes out must be what an
undisturbed run writes.
"""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from shell import (
    ENVIRONMENT,
    error_of,
    make_documents,
    read_tree,
    report_of,
    run_command,
    start_command,
    write_collection,
    write_lines,
)

from sparse_ir.commands import indexing
from sparse_ir.data import readers
from sparse_ir.errors import ConfigError, DamagedError, DataError
from sparse_ir.indexing import encoding
from sparse_ir.indexing.vectors import Vectors

SHARD_SIZE = 4
# A worker in a process of its own. It notes the texts it encodes; "slow" waits before each shard,
# "stuck" for ever.
WORKER = """
import functools, sys, time
from pathlib import Path
from sparse_ir.models.lexical import LexicalEncoder
from sparse_ir.data import readers
from sparse_ir.indexing import encoding

corpus, output, log, pace = sys.argv[1:]

class Noted(LexicalEncoder):
    def encode(self, texts, progress=None):
        with open(log, "a") as stream:
            stream.writelines(text + "\\n" for text in texts)
        time.sleep({"fast": 0, "slow": 0.05, "stuck": 600}[pace])
        return super().encode(texts, progress)

read = functools.partial(readers.read_documents, corpus)
encoder = Noted.fit(lambda: (document.contents for document in read()))
encoding.write_vectors(Path(output), read, encoder, shard_size=4, metadata_schema={})
"""
# Encodes into one folder after the other, in a child that is killed at the n-th flush to the disk:
# n = 1, 2, 3 ...
# until a child reaches the end. Two flushes belong to each file (its bytes, its folder), so each
# step is hit.
KILLED_AT_EVERY_FLUSH = """
import functools, os, signal, sys
from pathlib import Path
from sparse_ir.models.lexical import LexicalEncoder
from sparse_ir.data import readers
from sparse_ir.indexing import encoding
import safetensors.numpy

corpus, root = sys.argv[1:]
read = functools.partial(readers.read_documents, corpus)

def encode(output, last):
    flush, count = os.fsync, 0
    def counted(descriptor):
        nonlocal count
        count += 1
        if count == last:
            os.kill(os.getpid(), signal.SIGKILL)
        flush(descriptor)
    os.fsync = counted
    encoder = LexicalEncoder.fit(lambda: (document.contents for document in read()))
    encoding.write_vectors(output, read, encoder, shard_size=4, metadata_schema={})

def in_child(output, last=None):
    child = os.fork()
    if not child:
        encode(output, last)
        os._exit(0)
    return os.waitpid(child, 0)[1]

kills = 0
while in_child(Path(root) / f"at-{kills + 1}", kills + 1) == signal.SIGKILL:
    kills += 1
    assert in_child(Path(root) / f"at-{kills}") == 0
print(kills)
"""


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 documents, 12 of them empty; in shards of 4."""
    return write_collection(tmp_path_factory.mktemp("collection"), 120)


@pytest.fixture(scope="module")
def undisturbed(
    collection: Path, tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """Model -> a folder that was encoded without any trouble."""
    root = tmp_path_factory.mktemp("undisturbed")
    for model in (str(tiny_folder), "lexical"):
        indexing.encode(model, str(collection), root / Path(model).name, shard_size=SHARD_SIZE)
    return {"neural": root / tiny_folder.name, "lexical": root / "lexical"}


def encode_options(model: object, corpus: Path, output: Path) -> list[object]:
    return [
        "encode",
        "--model",
        model,
        "--input",
        corpus,
        "--output",
        output,
        "--shard-size",
        SHARD_SIZE,
    ]


def finished_shards(output: Path) -> dict[str, tuple[int, int]]:
    """The files of the shards that are whole: name -> inode and time of the last change."""
    facts = [
        path
        for path in (output / "shards").glob("*.json")
        if path.with_suffix(".safetensors").exists()
    ]
    files = [file for path in facts for file in (path, path.with_suffix(".safetensors"))]
    return {file.name: (file.stat().st_ino, file.stat().st_mtime_ns) for file in files}


def kill_after(arguments: list[object], output: Path, shards: int, delay: float) -> int:
    """Start the command, kill it when that many shards are there and a moment has passed; its exit
    status.
    """
    process = start_command(*arguments)
    deadline = time.monotonic() + 120
    while (
        process.poll() is None
        and len(finished_shards(output)) < 2 * shards
        and time.monotonic() < deadline
    ):
        time.sleep(0.001)
    time.sleep(delay)
    process.kill()
    process.communicate()
    return process.returncode


def run_script(script: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    )


def copy_tree(source: Path, target: Path) -> Path:
    for name, content in read_tree(source).items():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).write_bytes(content)
    return target


# --- killed ---


@pytest.mark.slow
@pytest.mark.parametrize(("model", "kills"), [("lexical", 4), ("neural", 2)])
def test_killed_at_random_moments_and_run_again_is_byte_identical(
    model, kills, collection, tiny_folder, undisturbed, tmp_path
):
    dice = random.Random(model)
    arguments = encode_options(
        tiny_folder if model == "neural" else model, collection, tmp_path / "out"
    )
    wanted = sorted(dice.sample(range(1, 28), kills))
    for shards in wanted:
        before = finished_shards(tmp_path / "out")
        assert (
            kill_after(arguments, tmp_path / "out", shards, dice.random() * 0.01) == -signal.SIGKILL
        )
        assert not (tmp_path / "out" / "manifest.json").exists()
        after = finished_shards(tmp_path / "out")
        assert len(after) >= 2 * shards
        assert before.items() <= after.items()  # what was there was not written again

    report = report_of(*arguments)
    assert (report["documents"], report["empty_documents"]) == (120, 12)
    assert report["without_weights"] >= 12
    assert after.items() <= finished_shards(tmp_path / "out").items()
    assert read_tree(tmp_path / "out") == read_tree(undisturbed[model])


@pytest.mark.slow
def test_killed_at_every_flush_to_the_disk_and_run_again_is_byte_identical(tmp_path):
    corpus = write_lines(tmp_path / "corpus.jsonl", make_documents(12))
    process = run_script(KILLED_AT_EVERY_FLUSH, corpus, tmp_path / "killed")
    printed, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    kills = int(printed)
    # plan, vocabulary, query side, three shards with facts and documents, manifest
    assert kills == 2 * (1 + 1 + 3 + 3 * 3 + 1)
    indexing.encode("lexical", str(corpus), tmp_path / "whole", shard_size=4)
    whole = read_tree(tmp_path / "whole")
    for number in range(1, kills + 1):
        assert read_tree(tmp_path / "killed" / f"at-{number}") == whole, number


def test_an_unfinished_folder_is_not_readable_and_says_what_to_do(collection, tmp_path):
    arguments = encode_options("lexical", collection, tmp_path / "out")
    assert kill_after(arguments, tmp_path / "out", 3, 0) == -signal.SIGKILL
    with pytest.raises(
        DamagedError, match="holds no finished vectors; run the same encode command again"
    ):
        Vectors(tmp_path / "out")
    assert "holds no finished vectors" in error_of(
        "index", "--vectors", tmp_path / "out", "--output", tmp_path / "i"
    )


# --- damaged ---


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("shards/000003.safetensors", cut),
        ("shards/000003.safetensors", flip),
        ("shards/000003.safetensors", Path.unlink),
        ("shards/000003.json", cut),
        ("shards/000003.json", Path.unlink),
        ("vocabulary.json", flip),
        ("vocabulary.json", Path.unlink),
    ],
)
def test_damage_is_found_at_reading_and_mended_by_encoding_again(
    name, damage, finished, collection, undisturbed, tmp_path
):
    folder = copy_tree(undisturbed["lexical"], tmp_path / "out")
    damage(folder / name)
    if finished and name.endswith((".safetensors", "vocabulary.json")):
        with pytest.raises(
            DamagedError, match=f"{Path(name).name} is (missing|damaged|missing or damaged)"
        ):
            Vectors(folder).read_shard(3)
    if not finished:
        (folder / "manifest.json").unlink()
    others = {
        key: value for key, value in finished_shards(folder).items() if not key.startswith("000003")
    }
    indexing.encode("lexical", str(collection), folder, shard_size=SHARD_SIZE)
    assert others.items() <= finished_shards(folder).items()
    assert read_tree(folder) == read_tree(undisturbed["lexical"])
    assert Vectors(folder).read_shard(3)[0] == ["d12", "d13", "d14", "d15"]


@pytest.mark.parametrize("name", ["plan.json", "manifest.json"])
@pytest.mark.parametrize(
    "value", ['{"format": 1', "[]", "{}", '{"format": 2, "shards": []}', "flipped"]
)
def test_damaged_records_are_one_clear_error(name, value, collection, undisturbed, tmp_path):
    folder = copy_tree(undisturbed["lexical"], tmp_path / "out")
    if value == "flipped":
        text = (folder / name).read_text()
        (folder / name).write_text(text.replace('"documents": 4', '"documents": 5', 1))
    else:
        (folder / name).write_text(value)
    if name == "plan.json":
        with pytest.raises(DamagedError, match=r"plan\.json"):
            indexing.encode("lexical", str(collection), folder, shard_size=SHARD_SIZE)
    else:
        with pytest.raises(DamagedError, match=r"manifest\.json"):
            Vectors(folder)
        indexing.encode("lexical", str(collection), folder, shard_size=SHARD_SIZE)
        assert read_tree(folder) == read_tree(undisturbed["lexical"])


def test_an_index_is_not_taken_for_vectors(undisturbed, tmp_path):
    indexing.index(undisturbed["lexical"], tmp_path / "index")
    message = error_of("export", "--vectors", tmp_path / "index", "--output", tmp_path / "json")
    assert message == f"{tmp_path / 'index'} is an index; it must be a folder of vectors"


# --- another corpus, model or option ---


def unfinished(folder: Path, *, keep: int = 2) -> Path:
    """Make a finished folder one that was killed after ``keep`` shards."""
    (folder / "manifest.json").unlink()
    for path in sorted((folder / "shards").iterdir())[2 * keep :]:
        path.unlink()
    return folder


def change_text(documents: list[dict[str, str]]) -> list[dict[str, str]]:
    return [*documents[:90], {**documents[90], "text": "another text"}, *documents[91:]]


def change_id(documents: list[dict[str, str]]) -> list[dict[str, str]]:
    return [*documents[:90], {**documents[90], "_id": "another"}, *documents[91:]]


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize(
    ("change", "match"),
    [
        (change_text, "starts with document d88"),
        (change_id, "starts with document d88"),
        (lambda documents: documents[:50], "starts with document d48"),
        # without the check this waits for ever
        (lambda documents: documents[:48], "ends after 12 of 30 shards"),
        (
            lambda documents: [*documents, {"_id": "more", "text": "one more"}],
            "starts with document more",
        ),
        (lambda documents: documents[4:], "starts with document d4"),
    ],
)
def test_a_corpus_that_changed_is_refused(
    change, match, finished, collection, undisturbed, tmp_path
):
    folder = copy_tree(undisturbed["lexical"], tmp_path / "out")
    if not finished:
        unfinished(folder, keep=25)
    encoder = vectors_encoder(undisturbed["lexical"], collection)
    corpus = write_lines(tmp_path / "corpus.jsonl", change(make_documents(120)))
    with pytest.raises(
        DataError,
        match=rf"the corpus has changed since encoding began "
        rf"\(.*{match}.*restore it",
    ):
        encoding.write_vectors(
            folder, lambda: readers.read_documents(corpus), encoder, shard_size=SHARD_SIZE
        )
    assert finished_shards(folder)


def vectors_encoder(folder: Path, collection: Path):
    """The lexical encoder of the unchanged corpus: the model is the same although the corpus is
    not.
    """
    from sparse_ir.models.lexical import LexicalEncoder

    encoder = LexicalEncoder.fit(
        lambda: (document.contents for document in readers.read_documents(collection))
    )
    assert Vectors(folder).manifest["encoder"] == encoder.fingerprint
    return encoder


def test_a_corpus_that_changed_is_refused_by_the_command(
    collection, undisturbed, tiny_folder, tmp_path
):
    folder = copy_tree(undisturbed["neural"], tmp_path / "out")
    corpus = write_lines(tmp_path / "corpus.jsonl", change_text(make_documents(120)))
    message = error_of(*encode_options(tiny_folder, corpus, folder))
    assert (
        "the corpus has changed since encoding began (in the shard that starts with document d88)"
        in message
    )
    # the lexical model is learned from the corpus, so there it is another model
    folder = copy_tree(undisturbed["lexical"], tmp_path / "lexical")
    assert "was begun with another corpus, to which its weights are fitted" in error_of(
        *encode_options("lexical", corpus, folder)
    )


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"top_k": 5}, r"begun with another encoder \(top_k: None then, 5 now\)"),
        (
            {"max_length": 9},
            (
                r"another encoder \(max_length: \d+ then, 9 now; max_length_asked: None "
                r"then, 9 now\)"
            ),
        ),
        ({"min_weight": 0.5}, r"another encoder \(min_weight: 0.0 then, 0.5 now\)"),
        ({"shard_size": 5}, r"another shard_size \(4 then, 5 now\)"),
        ({"query_side": "ones"}, r"another query \("),
        ({"model": "lexical"}, r"another encoder \("),
    ],
)
def test_another_model_or_option_for_the_same_output_is_named(
    options, match, finished, collection, undisturbed, tiny_folder, tmp_path
):
    folder = copy_tree(undisturbed["neural"], tmp_path / "out")
    if not finished:
        unfinished(folder)
    before = read_tree(folder)
    asked = {"model": str(tiny_folder), "shard_size": SHARD_SIZE, **options}
    with pytest.raises(ConfigError, match=match):
        indexing.encode(asked.pop("model"), str(collection), folder, **asked)
    assert read_tree(folder) == before


def test_a_folder_that_holds_something_else_is_refused(collection, tmp_path):
    (tmp_path / "photo.jpg").write_bytes(b"\xff\xd8")
    message = error_of(*encode_options("lexical", collection, tmp_path))
    assert (
        message
        == f"{tmp_path} is not empty and holds no vectors; choose another output or delete it"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["photo.jpg"]


# --- several processes ---


@pytest.mark.slow
def test_three_processes_at_once_encode_each_shard_once(collection, undisturbed, tmp_path):
    logs = [tmp_path / f"log-{number}" for number in range(3)]
    processes = [run_script(WORKER, collection, tmp_path / "out", log, "slow") for log in logs]
    for process in processes:
        assert process.communicate(timeout=120)[1] == ""
        assert process.returncode == 0
    taken = [log.read_text().splitlines() if log.exists() else [] for log in logs]
    texts = [
        document.contents for document in readers.read_documents(collection) if document.contents
    ]
    assert sorted(text for part in taken for text in part) == sorted(texts)  # each text once
    assert sum(bool(part) for part in taken) >= 2  # they did share the work
    assert read_tree(tmp_path / "out") == read_tree(undisturbed["lexical"])


def test_three_commands_at_once_succeed(collection, undisturbed, tmp_path):
    processes = [
        start_command(*encode_options("lexical", collection, tmp_path / "out")) for _ in range(3)
    ]
    for process in processes:
        assert process.communicate(timeout=120)[1] == b""
        assert process.returncode == 0
    assert read_tree(tmp_path / "out") == read_tree(undisturbed["lexical"])


@pytest.mark.slow
def test_a_worker_killed_with_a_shard_in_its_hands_is_replaced(collection, undisturbed, tmp_path):
    stuck = run_script(WORKER, collection, tmp_path / "out", tmp_path / "stuck", "stuck")
    while not (tmp_path / "stuck").exists():
        time.sleep(0.01)
        assert stuck.poll() is None
    helper = run_script(WORKER, collection, tmp_path / "out", tmp_path / "helper", "fast")
    deadline = time.monotonic() + 60
    while len(finished_shards(tmp_path / "out")) < 2 * 29 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(finished_shards(tmp_path / "out")) == 2 * 29  # all but the one that is held
    assert helper.poll() is None
    stuck.kill()
    stuck.communicate()
    assert helper.communicate(timeout=60)[1] == ""
    assert helper.returncode == 0
    assert read_tree(tmp_path / "out") == read_tree(undisturbed["lexical"])


# --- the corpus ---


@pytest.mark.parametrize(
    ("line", "match"),
    [
        ('{"_id": "d60", "text": "cut in the mid', "not JSON"),
        ('{"_id": "d60", "text": 7}', '"text" is 7; it must be a string'),
        ('{"_id": "d7", "text": "again"}', "\"_id\" is 'd7' as in line 8; each id must be unique"),
        ('{"text": "no id"}', '"_id" is missing'),
    ],
)
def test_a_malformed_line_is_named_before_anything_is_encoded(line, match, tiny_folder, tmp_path):
    corpus = tmp_path / "corpus.jsonl"
    lines = [json.dumps(document) for document in make_documents(120)]
    corpus.write_text("\n".join([*lines[:60], line, *lines[61:]]) + "\n")
    for model in ("lexical", str(tiny_folder)):
        with pytest.raises(DataError) as caught:
            indexing.encode(model, str(corpus), tmp_path / "out", shard_size=SHARD_SIZE)
        assert str(caught.value).startswith(f"{corpus}:61: ")
        assert match in str(caught.value)
        assert not list((tmp_path / "out").glob("[!.]*"))
    message = error_of(*encode_options("lexical", corpus, tmp_path / "out"))
    assert message.startswith(f"{corpus}:61: ")
    # the line is mended, and the same output can be used
    corpus.write_text("\n".join(lines) + "\n")
    assert (
        indexing.encode("lexical", str(corpus), tmp_path / "out", shard_size=SHARD_SIZE)[
            "documents"
        ]
        == 120
    )


def test_empty_documents_have_empty_vectors_and_are_counted(tiny_folder, tmp_path):
    texts = ["bees and nectar", "", "", "", "", "", "the river"]
    corpus = write_lines(
        tmp_path / "corpus.jsonl",
        [{"_id": f"d{number}", "text": text} for number, text in enumerate(texts)],
    )
    for model in ("lexical", str(tiny_folder)):
        output = tmp_path / Path(model).name
        # the second shard is empty through and through
        report = indexing.encode(model, str(corpus), output, shard_size=2)
        assert (report["documents"], report["empty_documents"]) == (7, 5)
        assert report["without_weights"] >= 5
        made = Vectors(output)
        lengths = [int(row.nnz) for number in range(4) for row in made.read_shard(number)[1]]
        assert lengths[1:6] == [0] * 5
        assert sum(lengths) == report["weights"] > 0


def test_a_corpus_without_documents_or_without_text_is_refused(tiny_folder, tmp_path):
    nothing = tmp_path / "nothing.jsonl"
    nothing.write_text("")
    with pytest.raises(DataError, match="the corpus holds no documents"):
        indexing.encode(str(tiny_folder), str(nothing), tmp_path / "out")
    with pytest.raises(DataError, match="no text"):
        indexing.encode("lexical", str(nothing), tmp_path / "out")
    blank = write_lines(
        tmp_path / "blank.jsonl", [{"_id": "d1", "text": ""}, {"_id": "d2", "text": " "}]
    )
    with pytest.raises(DataError, match="the corpus holds no text to learn word pieces from"):
        indexing.encode("lexical", str(blank), tmp_path / "out")
    report = indexing.encode(str(tiny_folder), str(blank), tmp_path / "out")
    assert (report["documents"], report["empty_documents"], report["weights"]) == (2, 2, 0)


# --- the disk ---


def test_a_full_disk_is_one_line_and_the_work_goes_on_afterwards(tiny_folder, tmp_path):
    long_last = [
        *make_documents(8),
        *(
            {
                "_id": f"long{n}",
                "text": " ".join(document["text"] for document in make_documents(40, seed=n)),
            }
            for n in range(4)
        ),
    ]
    corpus = write_lines(tmp_path / "corpus.jsonl", long_last)
    arguments = encode_options("lexical", corpus, tmp_path / "out")
    indexing.encode("lexical", str(corpus), tmp_path / "whole", shard_size=SHARD_SIZE)
    largest = sorted(
        path.stat().st_size for path in (tmp_path / "whole").rglob("*") if path.is_file()
    )[-2:]
    last_shard = (tmp_path / "whole" / "shards" / "000002.safetensors").stat().st_size
    assert last_shard < largest[0]  # the tokenizer is larger, so it is the first that does not fit

    def limit(size: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    message = error_of(*arguments, before=lambda: limit(largest[1] - 1))
    assert message == f"{tmp_path}/out/query/tokenizer.json: File too large"
    indexing.encode("lexical", str(corpus), tmp_path / "out", shard_size=SHARD_SIZE)
    assert read_tree(tmp_path / "out") == read_tree(tmp_path / "whole")

    unfinished(tmp_path / "out", keep=1)
    before = finished_shards(tmp_path / "out")
    message = error_of(*arguments, before=lambda: limit(last_shard - 1))
    assert message == f"{tmp_path}/out/shards/000002.safetensors: File too large"
    assert run_command(*arguments).returncode == 0
    assert before.items() <= finished_shards(tmp_path / "out").items()
    assert read_tree(tmp_path / "out") == read_tree(tmp_path / "whole")


def test_a_folder_without_permission_is_one_line(collection, tmp_path):
    folder = tmp_path / "readonly"
    folder.mkdir()
    folder.chmod(0o500)
    # the superuser may write anywhere: a file in the way has the same effect
    if os.access(folder, os.W_OK):
        folder.rmdir()
        folder.write_text("")
    message = error_of(*encode_options("lexical", collection, folder / "out"))
    assert message.startswith(str(folder))
    assert message.endswith(("Permission denied", "Not a directory", "File exists"))
