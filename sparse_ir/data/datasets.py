"""The data sets of BEIR, MS MARCO and TREC Deep Learning: facts, files and downloads.

Each data set has one record (``Benchmark``) with everything that is known about it. A BEIR folder
below the data folder is used without any request to the network, whether it is in the registry or
not.
"""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import tempfile
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from sparse_ir.data import readers
from sparse_ir.data.archives import extract_archive
from sparse_ir.data.download import Download, download_file
from sparse_ir.data.qrels import find_qrels, read_qrels
from sparse_ir.errors import ConfigError, DataError
from sparse_ir.storage import files

_LARGEST_EXPANSION = 20  # JSON lines shrink to a third or a quarter; a zip bomb to a thousandth
_SOURCE = "source.json"
_BEIR_ADDRESS = "https://public.ukp.informatik.tu-darmstadt.de/thakur/BEIR/datasets"
_MARCO_ADDRESS = "https://msmarco.z22.web.core.windows.net/msmarcoranking"
_TREC_ADDRESS = "https://trec.nist.gov/data/deep"


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """Everything that is known about one published data set."""

    name: str
    folder: str  # below the data folder
    archive: Download | None = None  # a zip with the first part of ``folder`` at its top
    split: str = "test"
    corpus_of: str | None = None  # the set whose corpus (and archive) this one shares
    queries: Download | None = None  # with ``qrels``: fetched beside a shared corpus
    qrels: Download | None = None
    # True where the queries are documents of the corpus, so that each would find itself
    remove_identical: bool = False
    # the lowest grade of a relevant document, for the measures that need one (trec_eval -l)
    relevance_level: int = 1
    licence: str = ""  # why it cannot be downloaded
    documents: int = 0  # as BEIR and TREC state them; 0: not published
    judged_queries: int = 0
    mteb: str = ""  # name of the task in MTEB; "": MTEB does not have it


class Collection(NamedTuple):
    """A data set on the disk."""

    name: str
    corpus: Path
    queries: Path
    qrels: Path
    split: str = "test"
    remove_identical: bool = False
    relevance_level: int = 1


def _archive(name: str, megabytes: float, md5: str) -> Download:
    """A zip file of BEIR, with its published size and MD5."""
    return Download(f"{_BEIR_ADDRESS}/{name}.zip", round(1.1 * megabytes, 1), md5)


def _beir(
    name: str,
    mteb: str,
    documents: int,
    judged_queries: int,
    archive: Download | None,
    *,
    folder: str = "",
    split: str = "test",
    remove_identical: bool = False,
    licence: str = "",
) -> Benchmark:
    return Benchmark(
        name,
        folder or name,
        archive,
        split=split,
        remove_identical=remove_identical,
        licence=licence,
        documents=documents,
        judged_queries=judged_queries,
        mteb=mteb,
    )


def _forum(forum: str, mteb: str, documents: int, judged_queries: int) -> Benchmark:
    name = f"cqadupstack-{forum}"
    folder = f"cqadupstack/{forum}"
    return _beir(name, mteb, documents, judged_queries, _CQADUPSTACK, folder=folder)


def _deep_learning(year: int, judged_queries: int, queries_md5: str, qrels_md5: str) -> Benchmark:
    queries = f"{_MARCO_ADDRESS}/msmarco-test{year}-queries.tsv.gz"
    qrels = f"{_TREC_ADDRESS}/{year}qrels-pass.txt"
    return Benchmark(
        f"trec-dl-{year}",
        f"trec-dl-{year}",
        corpus_of="msmarco",
        relevance_level=2,
        queries=Download(queries, 1, queries_md5),
        qrels=Download(qrels, 2, qrels_md5),
        documents=8_841_823,
        judged_queries=judged_queries,
    )


_CQADUPSTACK = _archive("cqadupstack", 5344, "4e41456d7df8ee7760a7f866133bda78")
_FREE = (
    _beir(
        "trec-covid",
        "TRECCOVID",
        171_332,
        50,
        _archive("trec-covid", 74, "ce62140cb23feb9becf6270d0d1fe6d1"),
    ),
    _beir(
        "nfcorpus",
        "NFCorpus",
        3_633,
        323,
        _archive("nfcorpus", 2.5, "a89dba18a62ef92f7d323ec890a0d38d"),
    ),
    _beir(
        "nq",
        "NQ",
        2_681_468,
        3_452,
        _archive("nq", 499, "d4d3d2e48787a744b6f6e691ff534307"),
    ),
    _beir(
        "hotpotqa",
        "HotpotQA",
        5_233_329,
        7_405,
        _archive("hotpotqa", 655, "f412724f78b0d91183a0e86805e16114"),
    ),
    _beir(
        "fiqa",
        "FiQA2018",
        57_638,
        648,
        _archive("fiqa", 18, "17918ed23cd04fb15047f73e6c3bd9d9"),
    ),
    _beir(
        "arguana",
        "ArguAna",
        8_674,
        1_406,
        _archive("arguana", 3.8, "8ad3e3c2a5867cdced806d6503f29b99"),
        remove_identical=True,
    ),
    _beir(
        "webis-touche2020",
        "Touche2020",
        382_545,
        49,
        _archive("webis-touche2020", 228, "46f650ba5a527fc69e0a6521c5a23563"),
    ),
    _beir(
        "dbpedia-entity",
        "DBPedia",
        4_635_922,
        400,
        _archive("dbpedia-entity", 640, "c2a39eb420a3164af735795df012ac2c"),
    ),
    _beir(
        "scidocs",
        "SCIDOCS",
        25_657,
        1_000,
        _archive("scidocs", 143, "38121350fc3a4d2f48850f6aff52e4a9"),
    ),
    _beir(
        "fever",
        "FEVER",
        5_416_568,
        6_666,
        _archive("fever", 1237, "5a818580227bfb4b35bb6fa46d9b6c03"),
    ),
    _beir(
        "climate-fever",
        "ClimateFEVER",
        5_416_593,
        1_535,
        _archive("climate-fever", 1229, "8b66f0a9126c521bae2bde127b4dc99d"),
    ),
    _beir(
        "scifact",
        "SciFact",
        5_183,
        300,
        _archive("scifact", 2.9, "5f7d1de60b170fc8027bb7898e2efca1"),
    ),
    _beir(
        "quora",
        "QuoraRetrieval",
        522_931,
        10_000,
        _archive("quora", 16, "18fb154900ba42a600f84b839c173167"),
        remove_identical=True,
    ),
)
_FORUMS = (
    _forum("android", "CQADupstackAndroidRetrieval", 22_998, 699),
    _forum("english", "CQADupstackEnglishRetrieval", 40_221, 1_570),
    _forum("gaming", "CQADupstackGamingRetrieval", 45_301, 1_595),
    _forum("gis", "CQADupstackGisRetrieval", 37_637, 885),
    _forum("mathematica", "CQADupstackMathematicaRetrieval", 16_705, 804),
    _forum("physics", "CQADupstackPhysicsRetrieval", 38_316, 1_039),
    _forum("programmers", "CQADupstackProgrammersRetrieval", 32_176, 876),
    _forum("stats", "CQADupstackStatsRetrieval", 42_269, 652),
    _forum("tex", "CQADupstackTexRetrieval", 68_184, 2_906),
    _forum("unix", "CQADupstackUnixRetrieval", 47_382, 1_072),
    _forum("webmasters", "CQADupstackWebmastersRetrieval", 17_405, 506),
    _forum("wordpress", "CQADupstackWordpressRetrieval", 48_605, 541),
)
_LICENSED = (
    _beir(
        "bioasq",
        "",
        14_914_603,
        500,
        None,
        licence="its documents need an account with BioASQ (participants-area.bioasq.org)",
    ),
    _beir(
        "signal1m",
        "",
        2_866_316,
        97,
        None,
        licence="its tweets need a licence of Signal AI (research.signal-ai.com)",
    ),
    _beir(
        "trec-news",
        "",
        594_977,
        57,
        None,
        licence="its articles need a licence of the Washington Post collection "
        "(trec.nist.gov/data/wapost)",
    ),
    _beir(
        "robust04",
        "",
        528_155,
        249,
        None,
        licence="its articles need a licence of TREC disks 4 and 5 (trec.nist.gov/data/cd45)",
    ),
)
_MARCO = (
    _beir(
        "msmarco",
        "MSMARCO",
        8_841_823,
        6_980,
        _archive("msmarco", 1083, "444067daf65d982533ea17ebd59501e4"),
        split="dev",
    ),
    _deep_learning(
        2019, 43, "eda71eccbe4d251af83150abe065368c", "2f4be390198da108f6845c822e5ada14"
    ),
    _deep_learning(
        2020, 54, "00a406fb0d14ed3752d70d1e4eb98600", "0355ccee7509ac0463e8278186cdd8d1"
    ),
)
# The twelve forums as one data set: measured forum by forum, so it is never fetched itself.
_ALL_FORUMS = Benchmark(
    "cqadupstack",
    "cqadupstack",
    documents=457_199,
    judged_queries=13_145,
    mteb="CQADupstackRetrieval",
)
_SIZE_TOLERANCE = 0.001  # share of the documents: editions differ by empty and doubled ones

REGISTRY = {facts.name: facts for facts in (*_FREE, *_FORUMS, *_LICENSED, *_MARCO)}
BEIR_13 = tuple(facts.name for facts in _FREE)
LICENSED = tuple(facts.name for facts in _LICENSED)
BEIR_18 = (*BEIR_13, "cqadupstack", *LICENSED)
GROUPS = {
    "beir": BEIR_18,
    "beir-13": BEIR_13,
    "cqadupstack": tuple(facts.name for facts in _FORUMS),
    "marco": tuple(facts.name for facts in _MARCO),
}


def find_facts(name: str) -> Benchmark | None:
    """What is known about a published data set, ``cqadupstack`` included; None for another name."""
    if name == _ALL_FORUMS.name:
        return _ALL_FORUMS
    return REGISTRY.get(name)


def published_size(name: str) -> tuple[int, int] | None:
    """Documents and judged queries of the published set of this name; None if there is none."""
    facts = find_facts(name)
    if facts is None or not facts.documents:
        return None
    return facts.documents, facts.judged_queries


def expand_names(names: str, data_dir: Path) -> list[str]:
    """The data sets that ``names`` stands for, in order, each once.

    ``names`` are separated by commas or spaces: sets of the registry, its groups (``beir``,
    ``beir-13``, ``cqadupstack``, ``marco``), ``local`` for every BEIR folder directly below
    ``data_dir``, and any other folder there by its name, with ``NAME:SPLIT`` for a split other than
    ``test``.

    Raises:
        ConfigError: a name is none of these, or there is no name at all.
    """
    expanded: dict[str, None] = {}
    for name in re.split(r"[\s,]+", names):
        if name:
            expanded.update(dict.fromkeys(_expand(name, data_dir)))
    if not expanded:
        raise ConfigError(
            f"data sets {names!r}: no data set is named, or {data_dir} holds none of them"
        )
    return list(expanded)


def _expand(name: str, data_dir: Path) -> list[str]:
    if name == "local":
        return sorted(path.name for path in data_dir.glob("*") if _is_beir_folder(path))
    if name in GROUPS:
        members = []
        for member in GROUPS[name]:
            members.extend(_expand(member, data_dir))
        return members
    if name in REGISTRY or _is_beir_folder(data_dir / name.partition(":")[0]):
        return [name]
    known = ", ".join((*REGISTRY, *GROUPS, "local"))
    raise ConfigError(
        f"data set {name!r} is unknown; it must be one of {known}, or the name of a BEIR folder "
        f"(corpus.jsonl, queries.jsonl, qrels/) in {data_dir}"
    )


def _is_beir_folder(folder: Path) -> bool:
    return (folder / "corpus.jsonl").is_file() or (folder / "corpus.jsonl.gz").is_file()


def find(name: str, data_dir: Path) -> Collection | None:
    """The data set below ``data_dir``, or None if there is no folder for it.

    Raises ``DataError`` for a folder that lacks its corpus, queries or qrels.
    """
    stem, _, split = name.partition(":")
    facts = REGISTRY.get(stem, Benchmark(stem, stem))
    shared = facts
    if facts.corpus_of:
        shared = REGISTRY[facts.corpus_of]
    folder = data_dir / facts.folder
    corpus_folder = data_dir / shared.folder
    if not (folder.is_dir() and corpus_folder.is_dir()):
        return None
    full_name = stem
    if split and split != facts.split:
        full_name = f"{stem}-{split}"
    split = split or facts.split
    return Collection(
        full_name,
        readers.find_corpus(corpus_folder),
        readers.find_queries(folder),
        find_qrels(folder, split),
        split,
        facts.remove_identical,
        facts.relevance_level,
    )


def has_published_size(name: str, documents: int, queries: int) -> bool:
    """Whether a set has the size of the published one of its name; True where none is published.

    A sample, another split or a private set under a known name is a different data set, and
    published figures do not apply to it.
    """
    published = published_size(name)
    if published is None:
        return True
    known_documents, known_queries = published
    tolerance = _SIZE_TOLERANCE * known_documents
    return queries == known_queries and abs(documents - known_documents) <= tolerance


def reason_to_skip(name: str, data_dir: Path) -> str | None:
    """Why a data set cannot be had (it is licensed, and not below ``data_dir``), or None."""
    facts = REGISTRY.get(name)
    if facts is None or not facts.licence or find(name, data_dir) is not None:
        return None
    return (
        f"not freely available: {facts.licence}; with it, put the BEIR folder at "
        f"{data_dir / facts.folder}"
    )


def fetch(name: str, data_dir: Path, *, progress: bool = False) -> Collection:
    """The data set below ``data_dir``, downloaded if it is not there yet.

    A download is read up to its size cap, checked against the published MD5, unpacked aside and put
    in place as a whole. ``source.json`` in the folder records address, size, MD5 and SHA-256. A
    second process waits for the first.

    Raises:
        ConfigError: the set is not in the registry, or is licensed.
        DataError: it cannot be downloaded, or the file is truncated, changed, too large or not a
            safe archive.
    """
    local = find(name, data_dir)
    if local is not None:
        return local
    facts = REGISTRY.get(name)
    if facts is None:
        raise ConfigError(f"data set {name!r} is not in {data_dir}, and its address is not known")
    reason = reason_to_skip(name, data_dir)
    if reason:
        raise ConfigError(f"data set {name!r} is {reason}")
    if facts.corpus_of:
        fetch(facts.corpus_of, data_dir, progress=progress)
    top = data_dir / PurePosixPath(facts.folder).parts[0]
    _download(facts, top, progress)
    collection = find(name, data_dir)
    if collection is None:
        raise DataError(
            f"{top} exists, but it lacks {facts.folder}; move it away to have it downloaded"
        )
    return collection


def _download(facts: Benchmark, target: Path, progress: bool) -> None:
    with files.write_lock(target, timeout=-1):
        if target.exists():
            return
        files.remove_leftovers(target)
        if facts.archive is not None:
            _fetch_archive(facts.archive, target, progress)
        elif facts.queries is not None and facts.qrels is not None:
            _fetch_questions(facts.queries, facts.qrels, target, facts.split)


def _fetch_archive(download: Download, target: Path, progress: bool) -> None:
    scratch = files.temporary_sibling(target)
    archive = scratch / f"{target.name}.zip"
    unpacked = scratch / "unpacked"
    largest = int(download.megabytes * 1e6 * _LARGEST_EXPANSION)
    try:
        unpacked.mkdir(parents=True)
        observed = download_file(download, archive, progress)
        extract_archive(archive, unpacked, largest, name=download.url)
        _check_parts(download, unpacked)
        folder = unpacked / target.name
        files.write_json(folder / _SOURCE, [dataclasses.asdict(observed)])
        files.swap_folder(folder, target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _check_parts(download: Download, unpacked: Path) -> None:
    """Check that every set of an archive is complete before any of them is put in place.

    An existing folder is never downloaded again, so an incomplete one would stay.
    """
    for facts in REGISTRY.values():
        if facts.archive != download:
            continue
        try:
            collection = find(facts.name, unpacked)
        except DataError as error:
            reason = str(error).replace(f"{unpacked}/", "")
            raise DataError(
                f"{download.url}: the archive is incomplete ({reason}); nothing was put in place"
            ) from error
        if collection is None:
            raise DataError(
                f"{download.url}: the archive has no folder {facts.folder}; nothing was put in "
                "place"
            )


def _fetch_questions(queries: Download, qrels: Download, target: Path, split: str) -> None:
    """Fetch the queries and qrels of a shared corpus, and write them in BEIR's layout."""
    with files.building(target) as folder, tempfile.TemporaryDirectory() as place:
        queries_path = Path(place) / PurePosixPath(queries.url).name
        qrels_path = Path(place) / PurePosixPath(qrels.url).name
        observed = [
            download_file(queries, queries_path, False),
            download_file(qrels, qrels_path, False),
        ]
        with files.atomic_writer(folder / "queries.jsonl") as stream:
            for query in readers.read_queries(queries_path):
                record = {"_id": query.query_id, "text": query.text}
                stream.write(json.dumps(record, ensure_ascii=False) + "\n")
        with files.atomic_writer(folder / "qrels" / f"{split}.tsv") as stream:
            stream.write("query-id\tcorpus-id\tscore\n")
            for query_id, judged in read_qrels(qrels_path).items():
                for doc_id, grade in judged.items():
                    stream.write(f"{query_id}\t{doc_id}\t{grade}\n")
        files.write_json(folder / _SOURCE, [dataclasses.asdict(record) for record in observed])
