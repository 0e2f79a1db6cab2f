"""Data sets: the registry's facts, local folders, downloads from a server of our own, and archives
that lie.
"""

from __future__ import annotations

import gzip
import hashlib
import http.server
import json
import os
import stat
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from shell import read_tree, write_collection

from sparse_ir.data import archives, datasets, readers
from sparse_ir.data import download as download_module
from sparse_ir.data.archives import extract_archive
from sparse_ir.data.datasets import (
    BEIR_13,
    BEIR_18,
    GROUPS,
    LICENSED,
    REGISTRY,
    Benchmark,
    Collection,
)
from sparse_ir.data.download import ATTEMPTS, Download
from sparse_ir.errors import ConfigError, DataError
from sparse_ir.storage import files

Members = dict[str, bytes]
MADE = {
    "made/corpus.jsonl": b'{"_id": "d1", "title": "t", "text": "x"}\n',
    "made/queries.jsonl": b'{"_id": "q1", "text": "x"}\n',
    "made/qrels/test.tsv": b"query-id\tcorpus-id\tscore\nq1\td1\t1\n",
}


class Server(http.server.ThreadingHTTPServer):
    """Answers from ``pages``: name -> (statuses to give before 200, body, promised length)."""

    pages: dict[str, tuple[list[int], bytes, int]]
    asked: list[str]


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        statuses, body, promised = self.server.pages.get(self.path, ([404] * 9, b"", 0))
        status = statuses.pop(0) if statuses else 200
        self.send_response(status)
        if promised >= 0:
            self.send_header("Content-Length", str(promised if status == 200 else 0))
        self.end_headers()
        if status == 200:
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing: the tests' output stays clean."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(download_module, "PAUSE_SECONDS", 0.0)
    monkeypatch.setenv("NO_PROXY", "*")
    with Server(("127.0.0.1", 0), Handler) as made:
        made.pages, made.asked = {}, []
        thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield made
        made.shutdown()
        thread.join()


def write_zip(path: Path, members: Members) -> bytes:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path.read_bytes()


def offer(
    server: Server,
    body: bytes,
    *,
    name: str = "made.zip",
    promised: int | None = None,
    statuses: list[int] | None = None,
    md5: str | None = "",
    megabytes: float = 1.0,
) -> Download:
    """Put a file on the server; by default the published md5 is that of the body."""
    server.pages[f"/{name}"] = statuses or [], body, len(body) if promised is None else promised
    address = f"http://127.0.0.1:{server.server_address[1]}/{name}"
    return Download(address, megabytes, hashlib.md5(body).hexdigest() if md5 == "" else md5)


def register(monkeypatch: pytest.MonkeyPatch, download: Download, **facts: object) -> None:
    made = Benchmark("made", "made", download, **facts)  # type: ignore[arg-type]
    monkeypatch.setitem(REGISTRY, "made", made)


def no_traces(folder: Path) -> bool:
    """True when nothing but locks lies below the folder."""
    return all(name.endswith(".lock") for name in read_tree(folder)) and not any(
        path.is_dir() for path in folder.iterdir()
    )


# --- registry ---


def test_the_registry_has_the_sets_of_beir_and_marco():
    assert len(BEIR_18) == 18
    assert len(GROUPS["cqadupstack"]) == 12
    assert len(REGISTRY) == 13 + 12 + 4 + 3
    assert {name for name, facts in REGISTRY.items() if facts.remove_identical} == {
        "arguana",
        "quora",
    }
    assert {name for name, facts in REGISTRY.items() if facts.licence} == set(LICENSED)
    assert {
        name: facts.relevance_level for name, facts in REGISTRY.items() if facts.relevance_level > 1
    } == {"trec-dl-2019": 2, "trec-dl-2020": 2}
    assert REGISTRY["msmarco"].split == "dev"


def test_every_set_has_an_address_with_checksum_or_a_licence_or_both_of_its_questions():
    for facts in REGISTRY.values():
        downloads = [part for part in (facts.archive, facts.queries, facts.qrels) if part]
        assert bool(downloads) != bool(facts.licence)
        assert (facts.queries is None) == (facts.qrels is None) == (facts.corpus_of is None)
        for part in downloads:
            assert part.url.startswith("https://")
            assert part.md5
            assert len(part.md5) == 32


def test_sizes_of_published_sets():
    sizes = {name: datasets.published_size(name) for name in (*REGISTRY, "cqadupstack")}
    assert all(sizes.values())
    assert datasets.published_size("mine") is None
    forums = [sizes[name] for name in GROUPS["cqadupstack"]]
    assert tuple(map(sum, zip(*forums, strict=True))) == sizes["cqadupstack"]
    has = datasets.has_published_size
    # fiqa without empty texts
    assert has("scifact", 5183, 300) and has("fiqa", 57_600, 648) and has("mine", 1, 1)
    assert not has("scifact", 5183, 299) and not has("scifact", 5100, 300)


def test_names_are_expanded_in_order_and_once(tmp_path):
    write_collection(tmp_path / "mine", 12)
    (tmp_path / "no-collection").mkdir()
    expand = datasets.expand_names
    forums = [name.removeprefix("cqadupstack-") for name in GROUPS["cqadupstack"]]
    assert expand("scifact, beir-13", tmp_path) == [
        "scifact",
        *(n for n in BEIR_13 if n != "scifact"),
    ]
    assert expand("local", tmp_path) == ["mine"]
    assert expand("mine mine:train", tmp_path) == ["mine", "mine:train"]
    assert expand("beir", tmp_path)[13:25] == [f"cqadupstack-{forum}" for forum in forums]
    assert len(expand("beir", tmp_path)) == 13 + 12 + 4


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            "scifakt",
            (
                r"data set 'scifakt' is unknown; it must be one of trec-covid, .*, or the name of a BEIR "
                r"folder .* in "
            ),
        ),
        ("no-collection", r"data set 'no-collection' is unknown"),
        (" , ", r"data sets ' , ': no data set is named, or "),
        ("local", r"data sets 'local': no data set is named, or "),
    ],
)
def test_names_that_mean_nothing_are_refused(tmp_path, names, message):
    (tmp_path / "no-collection").mkdir()
    with pytest.raises(ConfigError, match=message):
        datasets.expand_names(names, tmp_path)


# --- local folders ---


def test_a_local_folder_is_used_and_the_network_is_not_asked(tmp_path, monkeypatch, server):
    register(monkeypatch, offer(server, b"never read"))
    write_collection(tmp_path / "made", 12)
    found = datasets.fetch("made", tmp_path)
    assert found == Collection(
        "made",
        tmp_path / "made" / "corpus.jsonl",
        tmp_path / "made/queries.jsonl",
        tmp_path / "made" / "qrels" / "test.tsv",
    )
    assert server.asked == []


def test_known_rules_come_with_a_local_folder(tmp_path):
    for name in ("arguana", "cqadupstack/gis", "unknown"):
        write_collection(tmp_path / name, 12)
    assert datasets.find("arguana", tmp_path).remove_identical
    assert (
        datasets.find("cqadupstack-gis", tmp_path).corpus
        == tmp_path / "cqadupstack" / "gis" / "corpus.jsonl"
    )
    assert not datasets.find("unknown", tmp_path).remove_identical
    assert datasets.find("scifact", tmp_path) is None


def test_another_split_is_another_name(tmp_path):
    folder = write_collection(tmp_path / "mine", 12)
    (folder / "qrels" / "test.tsv").rename(folder / "qrels" / "dev.tsv")
    assert datasets.find("mine:dev", tmp_path)[0::4] == ("mine-dev", "dev")
    with pytest.raises(DataError, match=r"no qrels of split 'test', splits there: dev"):
        datasets.find("mine", tmp_path)


def test_a_folder_that_lacks_a_part_is_an_error_and_not_downloaded_over(
    tmp_path, monkeypatch, server
):
    register(monkeypatch, offer(server, b"never read"))
    (write_collection(tmp_path / "made", 12) / "queries.jsonl").unlink()
    with pytest.raises(DataError, match=r"no queries; looked for .*made/queries.jsonl and"):
        datasets.fetch("made", tmp_path)
    assert server.asked == []


def test_a_licensed_set_is_skipped_with_its_reason_unless_it_is_there(tmp_path):
    reason = datasets.reason_to_skip("bioasq", tmp_path)
    assert "need an account with BioASQ" in reason
    assert str(tmp_path / "bioasq") in reason
    with pytest.raises(
        ConfigError,
        match="data set 'bioasq' is not freely available: its documents need an account",
    ):
        datasets.fetch("bioasq", tmp_path)
    write_collection(tmp_path / "bioasq", 12)
    assert datasets.reason_to_skip("bioasq", tmp_path) is None
    assert datasets.fetch("bioasq", tmp_path).name == "bioasq"
    assert datasets.reason_to_skip("scifact", tmp_path) is None


def test_an_unknown_set_cannot_be_fetched(tmp_path):
    with pytest.raises(
        ConfigError,
        match=r"data set 'mine' is not in .*, and its address is not "
        r"known",
    ):
        datasets.fetch("mine", tmp_path)


# --- downloads ---


def test_a_good_archive_is_put_in_place_with_a_record_of_its_source(tmp_path, monkeypatch, server):
    body = write_zip(tmp_path / "made.zip", {**MADE, "__MACOSX/made/._corpus.jsonl": b"junk"})
    register(monkeypatch, offer(server, body))
    found = datasets.fetch("made", tmp_path / "data")
    assert [document.doc_id for document in readers.read_documents(found.corpus)] == ["d1"]
    assert readers.read_qrels(found.qrels) == {"q1": {"d1": 1}}
    (record,) = json.loads((tmp_path / "data" / "made" / "source.json").read_text())
    assert (record["bytes"], record["sha256"]) == (len(body), hashlib.sha256(body).hexdigest())
    assert record["md5"] == record["md5_published"] == hashlib.md5(body).hexdigest()
    kept = set(read_tree(tmp_path / "data"))
    assert kept == {*MADE, "made/source.json", ".made.lock"}
    assert datasets.fetch("made", tmp_path / "data") == found
    assert server.asked == ["/made.zip"]


def test_an_archive_of_unknown_checksum_is_taken_and_what_was_observed_is_recorded(
    tmp_path, monkeypatch, server
):
    body = write_zip(tmp_path / "made.zip", MADE)
    register(monkeypatch, offer(server, body, md5=None))
    datasets.fetch("made", tmp_path)
    (record,) = json.loads((tmp_path / "made" / "source.json").read_text())
    assert record["md5_published"] is None
    assert record["sha256"] == hashlib.sha256(body).hexdigest()


def test_queries_and_qrels_beside_a_shared_corpus_are_brought_into_beirs_layout(
    tmp_path, monkeypatch, server
):
    register(monkeypatch, offer(server, write_zip(tmp_path / "made.zip", MADE)))
    queries = offer(server, gzip.compress(b"19\tfirst \xc3\xa4\n20\tsecond\n"), name="asked.tsv.gz")
    qrels = offer(server, b"19 0 d1 3\n19 0 d7 0\n", name="2019qrels.txt")
    monkeypatch.setitem(
        REGISTRY,
        "deep",
        Benchmark(
            "deep", "deep", corpus_of="made", queries=queries, qrels=qrels, relevance_level=2
        ),
    )
    found = datasets.fetch("deep", tmp_path)
    assert (found.corpus, found.relevance_level) == (tmp_path / "made" / "corpus.jsonl", 2)
    assert list(readers.read_queries(found.queries)) == [("19", "first ä"), ("20", "second")]
    assert readers.read_qrels(found.qrels) == {"19": {"d1": 3, "d7": 0}}
    assert len(json.loads((tmp_path / "deep" / "source.json").read_text())) == 2


def test_a_busy_server_is_asked_again(tmp_path, monkeypatch, server):
    register(
        monkeypatch, offer(server, write_zip(tmp_path / "made.zip", MADE), statuses=[503, 429])
    )
    assert datasets.fetch("made", tmp_path).name == "made"
    assert len(server.asked) == 3


def test_a_missing_page_is_not(tmp_path, monkeypatch, server):
    register(monkeypatch, offer(server, b"", statuses=[404] * 9))
    with pytest.raises(
        DataError,
        match=r"made.zip cannot be downloaded \(404 .*\); try again "
        r"later, or put",
    ):
        datasets.fetch("made", tmp_path)
    assert len(server.asked) == 1
    assert no_traces(tmp_path)


def test_no_server_at_all(tmp_path, monkeypatch, server):
    register(monkeypatch, Download("http://127.0.0.1:9/made.zip", 1.0, None))
    with pytest.raises(DataError, match=r"made.zip cannot be downloaded \(.*refused"):
        datasets.fetch("made", tmp_path)


def test_a_connection_that_breaks_each_time_is_given_up(tmp_path, monkeypatch, server):
    body = write_zip(tmp_path / "made.zip", MADE)
    register(monkeypatch, offer(server, body[:-100], promised=len(body)))
    with pytest.raises(DataError, match=r"made.zip cannot be downloaded \(.*IncompleteRead"):
        datasets.fetch("made", tmp_path / "data")
    assert len(server.asked) == ATTEMPTS
    assert no_traces(tmp_path / "data")


@pytest.mark.parametrize("promised", [-1, None])
def test_a_truncated_archive_is_refused_whether_its_checksum_is_known_or_not(
    tmp_path, monkeypatch, server, promised
):
    body = write_zip(tmp_path / "made.zip", MADE)
    register(
        monkeypatch,
        offer(server, body[:-100], promised=promised, md5=hashlib.md5(body).hexdigest()),
    )
    with pytest.raises(
        DataError,
        match=r"made.zip: md5 is [0-9a-f]{32}, but must be [0-9a-f]{32}; "
        r"the file was changed",
    ):
        datasets.fetch("made", tmp_path / "data")
    register(monkeypatch, offer(server, body[:-100], promised=promised, md5=None))
    with pytest.raises(
        DataError,
        match=r"made.zip is not a complete zip file \(.*\); download it "
        r"again",
    ):
        datasets.fetch("made", tmp_path / "data")
    assert no_traces(tmp_path / "data")


@pytest.mark.parametrize("promised", [-1, None])
def test_a_download_larger_than_its_cap_is_stopped(tmp_path, monkeypatch, server, promised):
    register(monkeypatch, offer(server, os.urandom(4_000_000), promised=promised, megabytes=0.5))
    with pytest.raises(
        DataError,
        match=r"made.zip is larger than 0.5 MB, the most that is "
        r"read of it",
    ):
        datasets.fetch("made", tmp_path)
    assert no_traces(tmp_path)


class BreakingHandler(Handler):
    """Closes the first two connections halfway; gives the rest of the same file (``tag``) to who
    asks for it.
    """

    tags: tuple[str, ...]

    def do_GET(self) -> None:
        _, body, _ = self.server.pages[self.path]
        tag = self.tags[len(self.server.asked)]
        self.server.asked.append(self.headers.get("Range", ""))
        begun = 0
        if self.headers.get("If-Range") == tag:
            begun = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
        self.send_response(206 if begun else 200)
        self.send_header("Content-Length", str(len(body) - begun))
        self.send_header("ETag", tag)
        self.end_headers()
        end = len(body) if len(self.server.asked) == 3 else begun + (len(body) - begun) // 2
        self.wfile.write(body[begun:end])


MIB = 1 << 20  # what is written at a time; the rest of a broken connection is lost


@pytest.mark.parametrize(
    ("tags", "begun"),
    [
        (('"one"',) * 3, [None, 2 * MIB, 3 * MIB]),
        (('"one"', '"two"', '"two"'), [None, 2 * MIB, 2 * MIB]),  # another file: from its beginning
        (('W/"one"',) * 3, [None, None, None]),  # a weak tag does not promise the same bytes
    ],
)
def test_a_broken_download_goes_on_where_it_broke(tmp_path, monkeypatch, server, tags, begun):
    monkeypatch.setattr(
        server, "RequestHandlerClass", type("Tagged", (BreakingHandler,), {"tags": tags})
    )
    body = write_zip(tmp_path / "made.zip", {**MADE, "made/noise": os.urandom(4 * MIB + 1000)})
    register(monkeypatch, offer(server, body, megabytes=5.0))
    found = datasets.fetch("made", tmp_path / "data")
    assert (found.corpus.parent / "noise").stat().st_size == 4 * MIB + 1000
    assert server.asked == ["" if place is None else f"bytes={place}-" for place in begun]


def test_an_archive_without_the_folder_is_refused(tmp_path, monkeypatch, server):
    register(
        monkeypatch, offer(server, write_zip(tmp_path / "made.zip", {"other/corpus.jsonl": b""}))
    )
    with pytest.raises(
        DataError, match=r"made.zip: the archive has no folder made; nothing was put in place"
    ):
        datasets.fetch("made", tmp_path / "data")
    assert no_traces(tmp_path / "data")


def test_an_archive_without_the_forum_is_refused(tmp_path, monkeypatch, server):
    download = offer(server, write_zip(tmp_path / "made.zip", MADE))
    monkeypatch.setitem(REGISTRY, "made-gis", Benchmark("made-gis", "made/gis", download))
    with pytest.raises(DataError, match=r"made.zip: the archive has no folder made/gis"):
        datasets.fetch("made-gis", tmp_path / "data")
    assert no_traces(tmp_path / "data")
    (tmp_path / "data" / "made").mkdir()
    with pytest.raises(
        DataError,
        match=r"data/made exists, but it lacks made/gis; move it away "
        r"to have it downl",
    ):
        datasets.fetch("made-gis", tmp_path / "data")


@pytest.mark.parametrize(
    ("part", "reason"),
    [
        ("made/queries.jsonl", r"no queries; looked for made/queries.jsonl and"),
        ("made/corpus.jsonl", "no corpus; looked"),
        ("made/qrels/test.tsv", "no qrels of split 'test', splits there: none"),
    ],
)
def test_an_archive_that_lacks_a_part_is_not_put_in_place(
    tmp_path, monkeypatch, server, part, reason
):
    parts = {name: content for name, content in MADE.items() if name != part}
    register(monkeypatch, offer(server, write_zip(tmp_path / "made.zip", parts)))
    with pytest.raises(
        DataError,
        match=rf"/made.zip: the archive is incomplete "
        rf"\(.*{reason}.*nothing was put in place",
    ):
        datasets.fetch("made", tmp_path / "data")
    assert no_traces(tmp_path / "data")
    # mended at its source
    register(monkeypatch, offer(server, write_zip(tmp_path / "made.zip", MADE)))
    assert datasets.fetch("made", tmp_path / "data").name == "made"


def test_leftovers_of_a_killed_download_are_removed(tmp_path, monkeypatch, server):
    left = files.temporary_sibling(tmp_path / "made")
    (left / "unpacked").mkdir(parents=True)
    register(monkeypatch, offer(server, write_zip(tmp_path / "made.zip", MADE)))
    datasets.fetch("made", tmp_path)
    assert not left.exists()


# --- archives ---


def link_to(target: str) -> tuple[zipfile.ZipInfo, bytes]:
    member = zipfile.ZipInfo("made/link")
    member.create_system = 3
    member.external_attr = (stat.S_IFLNK | 0o777) << 16
    return member, target.encode()


@pytest.mark.parametrize(
    ("member", "message"),
    [
        ("../evil", r"member '../evil' leaves the folder; nothing was unpacked"),
        ("made/../../evil", r"member 'made/../../evil' leaves the folder"),
        ("/evil", r"member '/evil' has an absolute name or a backslash"),
        ("C:evil", r"member 'C:evil' has an absolute name"),
        ("made\\..\\evil", r"has an absolute name or a backslash"),
        ("made/corpus.jsonl", r"member 'made/corpus.jsonl' appears twice"),
        ("made//corpus.jsonl", r"member 'made//corpus.jsonl' appears twice"),
        ("made/corpus.jsonl/x", r"member 'made/corpus.jsonl' is a file and a folder at once"),
        (
            "made/" + "x" * 300,
            r"has a zero in its name, or more than 255 bytes between two slashes",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_dangerous_members_are_refused_before_anything_is_written(tmp_path, member, message):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("made/corpus.jsonl", b"x")
        archive.writestr(member, b"x")
    with pytest.raises(DataError, match=message):
        extract_archive(tmp_path / "a.zip", tmp_path / "made" / "out", 1000)
    assert set(read_tree(tmp_path)) == {"a.zip"}


def test_a_link_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(*link_to("/etc/passwd"))
    with pytest.raises(
        DataError,
        match=r"a.zip: member 'made/link' is a link or a device; "
        r"nothing was unpacked",
    ):
        extract_archive(tmp_path / "a.zip", tmp_path / "out", 1000)


def test_an_encrypted_member_is_refused(tmp_path):
    body = bytearray(write_zip(tmp_path / "a.zip", {"made/x": b"x"}))
    body[body.index(b"PK\x01\x02") + 8] |= 1  # the flag in the central directory
    (tmp_path / "a.zip").write_bytes(body)
    with pytest.raises(DataError, match="member 'made/x' is encrypted"):
        extract_archive(tmp_path / "a.zip", tmp_path / "out", 1000)


def test_a_zip_bomb_is_refused(tmp_path):
    body = write_zip(tmp_path / "a.zip", {"made/x": bytes(3_000_000)})
    assert len(body) < 5000
    with pytest.raises(
        DataError,
        match=r"a.zip would unpack to 3000000 bytes, but at most 2999999 are written; "
        r"nothing was unpacked",
    ):
        extract_archive(tmp_path / "a.zip", tmp_path / "out", 2_999_999)
    extract_archive(tmp_path / "a.zip", tmp_path / "out", 3_000_000)
    assert (tmp_path / "out" / "made" / "x").stat().st_size == 3_000_000


def test_a_bomb_that_lies_about_its_size_is_stopped_at_that_size(tmp_path):
    body = bytearray(write_zip(tmp_path / "a.zip", {"made/x": bytes(3_000_000)}))
    at = body.index(b"PK\x01\x02") + 24  # the size in the central directory
    body[at : at + 4] = (10).to_bytes(4, "little")
    (tmp_path / "a.zip").write_bytes(body)
    with pytest.raises(DataError, match="is not a complete zip file"):
        extract_archive(tmp_path / "a.zip", tmp_path / "out", 1000)
    assert (tmp_path / "out" / "made" / "x").stat().st_size <= 10


def test_too_many_members_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MOST_MEMBERS", 2)
    write_zip(tmp_path / "a.zip", MADE)
    with pytest.raises(DataError, match=r"a.zip has 3 members, but at most 2 are read"):
        extract_archive(tmp_path / "a.zip", tmp_path / "out", 1000)


def test_a_flipped_byte_is_noticed(tmp_path):
    body = bytearray(write_zip(tmp_path / "a.zip", {"made/x": os.urandom(500)}))
    body[200] ^= 1
    (tmp_path / "a.zip").write_bytes(body)
    with pytest.raises(
        DataError, match=r"a.zip is not a complete zip file \((Bad CRC-32|Error -3)"
    ):
        extract_archive(tmp_path / "a.zip", tmp_path / "out", 1000)
