"""The data sets of BEIR, MS MARCO and TREC Deep Learning: what they are called, where they lie, how
they are fetched.

A set that lies below the data folder in BEIR's layout is used as it is, and nothing is asked of the
network; so is any other BEIR folder there, whether this module knows it or not. It does not search.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from sparse_ir.data import readers
from sparse_ir.data.download import Download, download_file, extract_archive
from sparse_ir.errors import ConfigError, DataError
from sparse_ir.storage import files

_LARGEST_EXPANSION = 20  # JSON lines shrink to a third or a quarter; a zip bomb to a thousandth
_SOURCE = "source.json"
_BEIR_ADDRESS = "https://public.ukp.informatik.tu-darmstadt.de/thakur/BEIR/datasets"
_MARCO_ADDRESS = "https://msmarco.z22.web.core.windows.net/msmarcoranking"
_TREC_ADDRESS = "https://trec.nist.gov/data/deep"


class Benchmark(NamedTuple):
    """One data set, as plain facts."""

    name: str
    folder: str  # below the data folder
    archive: Download | None = None  # a zip with the first part of ``folder`` at its top
    split: str = "test"
    corpus_of: str | None = None  # the set whose corpus (and archive) this one shares
    queries: Download | None = None  # with ``qrels``: stand beside a shared corpus
    qrels: Download | None = None
    # the queries are documents of the corpus, and each would find itself
    remove_identical: bool = False
    # from which relevance on a document is relevant, where a measure asks (trec_eval -l)
    relevance_level: int = 1
    licence: str = ""  # why it cannot be downloaded


class Collection(NamedTuple):
    """A data set on the disk."""

    name: str
    corpus: Path
    queries: Path
    qrels: Path
    split: str = "test"
    remove_identical: bool = False
    relevance_level: int = 1


FORUMS = (
    "android",
    "english",
    "gaming",
    "gis",
    "mathematica",
    "physics",
    "programmers",
    "stats",
    "tex",
    "unix",
    "webmasters",
    "wordpress",
)
BEIR_13 = (
    "trec-covid",
    "nfcorpus",
    "nq",
    "hotpotqa",
    "fiqa",
    "arguana",
    "webis-touche2020",
    "dbpedia-entity",
    "scidocs",
    "fever",
    "climate-fever",
    "scifact",
    "quora",
)
LICENSED = ("bioasq", "signal1m", "trec-news", "robust04")
BEIR_18 = (*BEIR_13, "cqadupstack", *LICENSED)
# published size in megabytes and md5 of each archive, from BEIR's own list
_ARCHIVES = {
    "trec-covid": (74, "ce62140cb23feb9becf6270d0d1fe6d1"),
    "nfcorpus": (2.5, "a89dba18a62ef92f7d323ec890a0d38d"),
    "nq": (499, "d4d3d2e48787a744b6f6e691ff534307"),
    "hotpotqa": (655, "f412724f78b0d91183a0e86805e16114"),
    "fiqa": (18, "17918ed23cd04fb15047f73e6c3bd9d9"),
    "arguana": (3.8, "8ad3e3c2a5867cdced806d6503f29b99"),
    "webis-touche2020": (228, "46f650ba5a527fc69e0a6521c5a23563"),
    "dbpedia-entity": (640, "c2a39eb420a3164af735795df012ac2c"),
    "scidocs": (143, "38121350fc3a4d2f48850f6aff52e4a9"),
    "fever": (1237, "5a818580227bfb4b35bb6fa46d9b6c03"),
    "climate-fever": (1229, "8b66f0a9126c521bae2bde127b4dc99d"),
    "scifact": (2.9, "5f7d1de60b170fc8027bb7898e2efca1"),
    "quora": (16, "18fb154900ba42a600f84b839c173167"),
    "cqadupstack": (5344, "4e41456d7df8ee7760a7f866133bda78"),
    "msmarco": (1083, "444067daf65d982533ea17ebd59501e4"),
}
_LICENCES = {
    "bioasq": "its documents need an account with BioASQ (participants-area.bioasq.org)",
    "signal1m": "its tweets need a licence of Signal AI (research.signal-ai.com)",
    "trec-news": "its articles need a licence of the Washington Post collection "
    "(trec.nist.gov/data/wapost)",
    "robust04": "its articles need a licence of TREC disks 4 and 5 (trec.nist.gov/data/cd45)",
}
# documents and judged queries of each set, as BEIR and TREC state them
SIZES = {
    "trec-covid": (171_332, 50),
    "nfcorpus": (3_633, 323),
    "nq": (2_681_468, 3_452),
    "hotpotqa": (5_233_329, 7_405),
    "fiqa": (57_638, 648),
    "arguana": (8_674, 1_406),
    "webis-touche2020": (382_545, 49),
    "dbpedia-entity": (4_635_922, 400),
    "scidocs": (25_657, 1_000),
    "fever": (5_416_568, 6_666),
    "climate-fever": (5_416_593, 1_535),
    "scifact": (5_183, 300),
    "quora": (522_931, 10_000),
    "cqadupstack": (457_199, 13_145),
    "bioasq": (14_914_603, 500),
    "signal1m": (2_866_316, 97),
    "trec-news": (594_977, 57),
    "robust04": (528_155, 249),
    "msmarco": (8_841_823, 6_980),
    "trec-dl-2019": (8_841_823, 43),
    "trec-dl-2020": (8_841_823, 54),
    "cqadupstack-android": (22_998, 699),
    "cqadupstack-english": (40_221, 1_570),
    "cqadupstack-gaming": (45_301, 1_595),
    "cqadupstack-gis": (37_637, 885),
    "cqadupstack-mathematica": (16_705, 804),
    "cqadupstack-physics": (38_316, 1_039),
    "cqadupstack-programmers": (32_176, 876),
    "cqadupstack-stats": (42_269, 652),
    "cqadupstack-tex": (68_184, 2_906),
    "cqadupstack-unix": (47_382, 1_072),
    "cqadupstack-webmasters": (17_405, 506),
    "cqadupstack-wordpress": (48_605, 541),
}
_SIZE_TOLERANCE = 0.001  # of the documents: editions differ by empty and doubled ones
# md5 of the queries and of the qrels of each year
_DEEP_LEARNING = {
    2019: ("eda71eccbe4d251af83150abe065368c", "2f4be390198da108f6845c822e5ada14"),
    2020: ("00a406fb0d14ed3752d70d1e4eb98600", "0355ccee7509ac0463e8278186cdd8d1"),
}


def _archive(name: str) -> Download:
    megabytes, md5 = _ARCHIVES[name]
    return Download(f"{_BEIR_ADDRESS}/{name}.zip", round(1.1 * megabytes, 1), md5)


def _deep_learning(year: int) -> Benchmark:
    queries, qrels = _DEEP_LEARNING[year]
    return Benchmark(
        f"trec-dl-{year}",
        f"trec-dl-{year}",
        corpus_of="msmarco",
        relevance_level=2,
        queries=Download(f"{_MARCO_ADDRESS}/msmarco-test{year}-queries.tsv.gz", 1, queries),
        qrels=Download(f"{_TREC_ADDRESS}/{year}qrels-pass.txt", 2, qrels),
    )


def _registry() -> dict[str, Benchmark]:
    identical = {"arguana", "quora"}
    known = [
        *(
            Benchmark(name, name, _archive(name), remove_identical=name in identical)
            for name in BEIR_13
        ),
        *(
            Benchmark(f"cqadupstack-{forum}", f"cqadupstack/{forum}", _archive("cqadupstack"))
            for forum in FORUMS
        ),
        *(Benchmark(name, name, licence=_LICENCES[name]) for name in LICENSED),
        Benchmark("msmarco", "msmarco", _archive("msmarco"), split="dev"),
        *map(_deep_learning, _DEEP_LEARNING),
    ]
    return {benchmark.name: benchmark for benchmark in known}


REGISTRY = _registry()
GROUPS = {
    "beir": BEIR_18,
    "beir-13": BEIR_13,
    "cqadupstack": tuple(f"cqadupstack-{forum}" for forum in FORUMS),
    "marco": ("msmarco", "trec-dl-2019", "trec-dl-2020"),
}


def expand_names(names: str, data_dir: Path) -> list[str]:
    """The data sets that ``names`` stands for, in order, each once.

    ``names`` are separated by commas: sets of the registry, its groups (``beir``, ``beir-13``,
    ``cqadupstack``, ``marco``), ``local`` for every BEIR folder directly below ``data_dir``, and
    any other folder there by its name, with ``NAME:SPLIT`` for another split than ``test``. Raises
    ``ConfigError`` for a name that is none of these.
    """
    found: dict[str, None] = {}
    for name in filter(None, re.split(r"[\s,]+", names)):
        found |= dict.fromkeys(_expand(name, data_dir))
    if not found:
        raise ConfigError(f"data sets {names!r}: none is named, or none lies in {data_dir}")
    return list(found)


def _expand(name: str, data_dir: Path) -> Iterator[str]:
    if name == "local":
        yield from sorted(path.name for path in data_dir.glob("*") if _is_beir_folder(path))
    elif name in GROUPS:
        for member in GROUPS[name]:
            yield from _expand(member, data_dir)
    elif name in REGISTRY or _is_beir_folder(data_dir / name.partition(":")[0]):
        yield name
    else:
        raise ConfigError(
            f"data set {name!r} is unknown, allowed: "
            f"{', '.join((*REGISTRY, *GROUPS, 'local'))}, or the "
            "name of a BEIR folder (corpus.jsonl, queries.jsonl, qrels/) in "
            f"{data_dir}"
        )


def _is_beir_folder(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("corpus.jsonl", "corpus.jsonl.gz"))


def find(name: str, data_dir: Path) -> Collection | None:
    """The data set below ``data_dir``; None where it does not lie there.

    Raises ``DataError`` for a folder that stands in its place and lacks a part.
    """
    stem, _, split = name.partition(":")
    facts = REGISTRY.get(stem, Benchmark(stem, stem))
    shared = REGISTRY[facts.corpus_of] if facts.corpus_of else facts
    folder, corpus_folder = data_dir / facts.folder, data_dir / shared.folder
    if not (folder.is_dir() and corpus_folder.is_dir()):
        return None
    split = split or facts.split
    return Collection(
        stem if split == facts.split else f"{stem}-{split}",
        readers.find_corpus(corpus_folder),
        readers.find_queries(folder),
        readers.find_qrels(folder, split),
        split,
        facts.remove_identical,
        facts.relevance_level,
    )


def has_published_size(name: str, documents: int, queries: int) -> bool:
    """Whether a set of this name has as many documents and judged queries as the published one;
    True for others.

    A sample, another split or a set of one's own under a known name is another set: figures of
    others are not of it.
    """
    if name not in SIZES:
        return True
    known_documents, known_queries = SIZES[name]
    return (
        queries == known_queries
        and abs(documents - known_documents) <= _SIZE_TOLERANCE * known_documents
    )


def reason_to_skip(name: str, data_dir: Path) -> str | None:
    """Why a data set cannot be had: it is licensed, and does not lie below
    ``data_dir``; else None.
    """
    facts = REGISTRY.get(name)
    if facts is None or not facts.licence or find(name, data_dir) is not None:
        return None
    return (
        f"not freely available: {facts.licence}; with it, put the BEIR folder at "
        f"{data_dir / facts.folder}"
    )


def fetch(name: str, data_dir: Path, *, progress: bool = False) -> Collection:
    """The data set below ``data_dir``, downloaded when it does not lie there yet.

    A download is read up to its size cap, checked against the published md5, unpacked aside and put
    in place whole; ``source.json`` in the folder records address, size, md5 and sha256. A second
    process waits for the first.

    Raises:
        ConfigError: the set is not in the registry, or is licensed.
        DataError: it cannot be downloaded, or what came is truncated, changed, too large or no safe
            archive.
    """
    found = find(name, data_dir)
    if found is not None:
        return found
    facts = REGISTRY.get(name)
    if facts is None:
        raise ConfigError(f"data set {name!r} is not in {data_dir}, and its address is not known")
    if reason := reason_to_skip(name, data_dir):
        raise ConfigError(f"data set {name!r} is {reason}")
    if facts.corpus_of:
        fetch(facts.corpus_of, data_dir, progress=progress)
    _provide(facts, data_dir, progress)
    collection = find(name, data_dir)
    if collection is None:
        raise DataError(
            f"{data_dir / PurePosixPath(facts.folder).parts[0]} is there, but without "
            f"{facts.folder}; move "
            "it away to have it downloaded"
        )
    return collection


def _provide(facts: Benchmark, data_dir: Path, progress: bool) -> None:
    target = data_dir / PurePosixPath(facts.folder).parts[0]
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
    try:
        (scratch / "unpacked").mkdir(parents=True)
        record = download_file(download, scratch / target.with_suffix(".zip").name, progress)
        extract_archive(
            scratch / target.with_suffix(".zip").name,
            scratch / "unpacked",
            int(download.megabytes * 1e6 * _LARGEST_EXPANSION),
            name=download.url,
        )
        _check_parts(download, scratch / "unpacked")
        folder = scratch / "unpacked" / target.name
        files.write_json(folder / _SOURCE, [record])
        files.swap_folder(folder, target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _check_parts(download: Download, unpacked: Path) -> None:
    """Every set of an archive is whole, before any is put in place: a folder that is there is not
    downloaded again.
    """
    for facts in [facts for facts in REGISTRY.values() if facts.archive == download]:
        try:
            found = find(facts.name, unpacked)
        except DataError as error:
            reason = str(error).replace(f"{unpacked}/", "")
            raise DataError(
                f"{download.url}: what came is not whole ({reason}); nothing was put in place"
            ) from error
        if found is None:
            raise DataError(
                f"{download.url}: no folder {facts.folder} in it; nothing was put in place"
            )


def _fetch_questions(queries: Download, qrels: Download, target: Path, split: str) -> None:
    """Queries and judgements of a shared corpus, brought into BEIR's layout."""
    with files.building(target) as folder, tempfile.TemporaryDirectory() as place:
        paths = {
            download: Path(place) / PurePosixPath(download.url).name
            for download in (queries, qrels)
        }
        records = [download_file(download, path, False) for download, path in paths.items()]
        with files.atomic_writer(folder / "queries.jsonl") as stream:
            for query in readers.read_queries(paths[queries]):
                stream.write(
                    json.dumps({"_id": query.query_id, "text": query.text}, ensure_ascii=False)
                    + "\n"
                )
        with files.atomic_writer(folder / "qrels" / f"{split}.tsv") as stream:
            stream.write("query-id\tcorpus-id\tscore\n")
            for query_id, judged in readers.read_qrels(paths[qrels]).items():
                stream.writelines(
                    f"{query_id}\t{doc_id}\t{grade}\n" for doc_id, grade in judged.items()
                )
        files.write_json(folder / _SOURCE, records)
