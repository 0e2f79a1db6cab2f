"""A row of the leaderboard as data: what one system reached on one data set, and everything to check it by.

    RESULTS/DATASET/SYSTEM/result.json    all that is the same whenever it is computed again: measures, hashes, versions
    RESULTS/DATASET/SYSTEM/timing.json    all that a clock measured, with the machine and the date
    RESULTS/DATASET/SYSTEM/run.trec.gz    the run itself, from which the measures can be computed again

The folder appears whole: where it is, the row is finished. Next file to read: ``beir``.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib.metadata
import math
import os
import platform
import re
import shutil
import subprocess
import sys
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import sparse_ir
from sparse_ir import benchmarks, data, files, measures
from sparse_ir.benchmarks import Collection
from sparse_ir.errors import ConfigError, DamagedError, DataError

FORMAT = 1
RESULT, TIMING, RUN = "result.json", "timing.json", "run.trec.gz"
COLUMNS = ("nDCG@10", "R@100", "R@1000", "MRR@10")
MEAN = "mean"  # beside the names of data sets, in tables
_NUMBER = (int, float)
_MAYBE = type(None)
_PARTS: dict[str, dict[str, type | tuple[type, ...]]] = {  # part of a row -> what is read of it, and as what
    "dataset": {**dict.fromkeys(("name", "source", "split", "corpus_sha256", "queries_sha256", "qrels_sha256"), str),
                **dict.fromkeys(("documents", "queries", "judgements", "absent_documents", "absent_queries",
                                 "relevance_level"), int), "remove_identical": bool},
    "system": {**dict.fromkeys(("name", "kind", "hash"), str), **dict.fromkeys(("model", "revision"), (str, _MAYBE))},
    "measures": dict.fromkeys(COLUMNS, _NUMBER),
    "per_query": dict.fromkeys(COLUMNS, dict),
    "efficiency": dict.fromkeys(("mean_query_terms", "mean_document_terms", "flops", "index_bytes"), _NUMBER),
    "run": {"sha256": str, "hits_per_query": int},
    "versions": {}, "identity": {},
}
_TIMES: dict[str, type | tuple[type, ...]] = {
    "encode_documents_per_second": (*_NUMBER, _MAYBE), "search_latency_ms": (dict, _MAYBE), "hardware": dict,
    "date": (str, _MAYBE)}
_RULES = ("name", "split", "remove_identical", "relevance_level")  # of a data set
_CHUNK_BYTES = 1 << 20
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")


class Row(NamedTuple):
    """One system on one data set."""

    result: dict[str, Any]  # result.json
    timing: dict[str, Any]  # timing.json; empty for a row that was put together from others

    @property
    def dataset(self) -> str:
        """Name of the data set."""
        return str(self.result["dataset"]["name"])

    @property
    def system(self) -> str:
        """Name of the system."""
        return str(self.result["system"]["name"])

    @property
    def parts(self) -> dict[str, dict[str, Any]]:
        """What begins the query ids of a part -> the facts of its data set; of a plain row nothing -> its own."""
        facts = self.result["dataset"]
        return {f"{forum}/": of for forum, of in facts.get("parts", {}).items()} or {"": facts}

    @property
    def measures(self) -> dict[str, float]:
        """Means over all judged queries, by the names in ``COLUMNS``."""
        return self.result["measures"]

    @property
    def shown_measures(self) -> dict[str, float | None]:
        """The measures; None for one that looks deeper than the run goes, which is another measure in truth."""
        hits, documents = self.result["run"]["hits_per_query"], self.result["dataset"]["documents"]
        return {column: None if hits < min(int(column.partition("@")[2]), documents) else value
                for column, value in self.measures.items()}

    @property
    def per_query(self) -> dict[str, dict[str, float]]:
        """Column -> query_id -> value, for all judged queries."""
        return self.result["per_query"]


# ------------------------------------------------------------------------------------------------ measuring


def name_measures(relevance_level: int = 1) -> dict[str, str]:
    """Column -> measure as ``ir_measures`` names it, under a relevance level.

    The level is that of ``trec_eval -l``: a document of a lower grade is not relevant to recall and to the reciprocal
    rank. nDCG takes the grade itself as gain, under any level.
    """
    level = "" if relevance_level == 1 else f"(rel={relevance_level})"
    return {"nDCG@10": "nDCG@10", "R@100": f"R{level}@100", "R@1000": f"R{level}@1000", "MRR@10": f"RR{level}@10"}


def measure(run: data.Run, qrels: data.Qrels, relevance_level: int = 1) -> tuple[dict[str, Any], dict[str, Any]]:
    """Means by column, and values per query by column; errors as in ``measures.evaluate_run``.

    Raises ``DataError`` besides for a run that answers queries which the qrels do not know.
    """
    if unknown := [query_id for query_id in run if query_id not in qrels]:
        raise DataError(f"run: {len(unknown)} of its {len(run)} queries are unknown to the qrels (first: "
                        f"{unknown[0]!r}), allowed: judged queries")
    names = name_measures(relevance_level)
    found = measures.evaluate_run(run, qrels, list(names.values()))
    return ({column: found.mean[name] for column, name in names.items()},
            {column: found.per_query[name] for column, name in names.items()})


def describe_latency(seconds: Sequence[float] | np.ndarray) -> dict[str, float] | None:
    """Mean, p50, p95 and p99 in milliseconds; None for no query."""
    if not len(seconds):
        return None
    values = 1000 * np.asarray(seconds, dtype=np.float64)
    return {"mean": round(float(values.mean()), 4),
            **{f"p{part}": round(float(np.percentile(values, part)), 4) for part in (50, 95, 99)}}


def sha256_of_content(path: Path) -> str:
    """SHA-256 of a file's bytes, of the unpacked ones for a ``.gz``: the same for both forms of a data set."""
    with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as stream:
        digest = hashlib.sha256()
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


# ------------------------------------------------------------------------------------------------ where and with what


def describe_machine() -> dict[str, Any]:
    """Processor, cores, memory, accelerator (when torch is loaded and has one), system and Python."""
    torch = sys.modules.get("torch")
    cuda = torch is not None and torch.cuda.is_available()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {"processor": _processor(), "cores": os.cpu_count(), "memory_gb": round(memory / 1e9, 1),
            "accelerator": torch.cuda.get_device_name() if torch is not None and cuda else None,
            "platform": platform.platform(), "python": platform.python_version()}


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found.group(1) if found else platform.processor() or platform.machine()


def find_versions(names: Iterable[str]) -> dict[str, str]:
    """Installed versions of packages, by the names of their distributions; those that are missing are left out."""
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {"sparse_ir": sparse_ir.__version__, **found}


def find_commit() -> str | None:
    """The commit of this package's own checkout, with ``-dirty`` for changed files; None for an installed package."""
    checkout = Path(sparse_ir.__file__).resolve().parent.parent
    git = shutil.which("git")
    if git is None or not (checkout / ".git").exists():
        return None
    command = [git, "-C", str(checkout), "describe", "--always", "--dirty", "--abbrev=40", "--exclude", "*"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return done.stdout.strip() or None if done.returncode == 0 else None


# ------------------------------------------------------------------------------------------------ files


def row_folder(results: Path, dataset: str, system: str) -> Path:
    """``RESULTS/DATASET/SYSTEM``; raises ``ConfigError`` for a name that is no plain name of a folder.

    A data set called ``mean`` is refused too: so the tables call the mean over all of them.
    """
    for what, name, remedy in (("data set", dataset, "rename the folder of the data set"),
                               ("system", system, "give the system a name with NAME=MODEL")):
        if not _NAME.fullmatch(name):
            raise ConfigError(f"{what} {name!r}, allowed: letters, digits and . _ + - (its row is a folder); {remedy}")
    if dataset == MEAN:
        raise ConfigError(f"data set {dataset!r}, allowed: any other name, as this one is that of the mean over the "
                          "data sets in all tables; rename the folder of the data set")
    return results / dataset / system


def write_row(results: Path, row: Row, run: data.Run) -> Path:
    """Write the three files of a row; the folder, which appears whole, in the place of an older row.

    Adds to the row its format, and the run's counts and SHA-256 (of the TREC text, before it is packed). Queries
    without hits leave no line in the run. Raises ``DataError`` as ``data.write_run`` does.
    """
    target = row_folder(results, row.dataset, row.system)
    files.remove_leftovers(target)
    with files.building(target) as folder:
        facts = {"sha256": _write_run(folder, run, row.system), "queries": len(run),
                 "queries_without_hits": sum(not hits for hits in run.values()), "hits": sum(map(len, run.values()))}
        files.write_json(folder / TIMING, row.timing)
        files.write_json(folder / RESULT, {"format": FORMAT, **row.result, "run": {**row.result["run"], **facts}})
    return target


def _write_run(folder: Path, run: data.Run, tag: str) -> str:
    """Write ``run.trec.gz``, the same bytes for the same run; the SHA-256 of the text in it."""
    plain = folder / "run.trec"
    data.write_run(plain, run, tag)
    with plain.open("rb") as source, (folder / RUN).open("wb") as stream, \
            gzip.GzipFile(filename="", mode="wb", compresslevel=6, fileobj=stream, mtime=0) as packed:
        shutil.copyfileobj(source, packed, _CHUNK_BYTES)
    sha256 = files.sha256_of_file(plain)
    plain.unlink()
    return sha256


def read_row(folder: Path) -> Row:
    """The row in a folder.

    Raises ``DamagedError`` where it is missing, of another format, lacks a part, is named otherwise than its folder,
    or has means that are not those of its queries; ``ConfigError`` as ``row_folder`` does. Whether the run gives these
    values, ``verify_row`` knows.
    """
    path = folder / RESULT
    result = files.read_json(path)
    if not isinstance(result, dict) or result.get("format") != FORMAT:
        raise DamagedError(f"{path} is not a row of format {FORMAT}")
    _check_parts(path, result)
    timing = files.read_json(folder / TIMING) if (folder / TIMING).is_file() else {}
    _check_timing(folder / TIMING, timing)
    row = Row(result, timing)
    row_folder(folder, row.dataset, row.system)  # refuses names that no row can have
    found = "/".join(folder.absolute().parts[-2:])
    if found != f"{row.dataset}/{row.system}":
        raise DamagedError(f"{path} is the row {row.dataset}/{row.system}, allowed: {found}, as its folder says; make "
                           "the row again under that name, or put the folder back")
    _check_means(path, row)
    return row


def _check_parts(path: Path, result: Mapping[str, Any]) -> None:
    if missing := sorted(_PARTS.keys() - result.keys()):
        raise DamagedError(f"{path} lacks {', '.join(missing)}")
    for part, fields in _PARTS.items():
        if not isinstance(result[part], dict):
            raise DamagedError(f"{path}: {part} is {result[part]!r:.60}, allowed: a JSON object")
        if missing := [f"{part}.{field}" for field in fields if field not in result[part]]:
            raise DamagedError(f"{path} lacks {', '.join(missing)}")
        for field, kind in fields.items():
            _check_value(f"{path}: {part}.{field}", result[part][field], kind)
    for field in ("commit", "command"):
        _check_value(f"{path}: {field}", result.get(field), (str, _MAYBE))
    if "parts" in result["dataset"]:
        raise DamagedError(f"{path}: dataset.parts is what only a row has that was put together in memory")


def _check_value(where: str, value: Any, kind: type | tuple[type, ...]) -> None:
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        raise DamagedError(f"{where} is {value!r:.60}, which is of another type")
    if isinstance(value, _NUMBER) and not (math.isfinite(value) and value >= 0):
        raise DamagedError(f"{where} is {value}, allowed: finite numbers from 0 on")


def _check_timing(path: Path, timing: Any) -> None:
    if not isinstance(timing, dict):
        raise DamagedError(f"{path} is no JSON object")
    for field in _TIMES.keys() & timing.keys():
        _check_value(f"{path}: {field}", timing[field], _TIMES[field])
    for field, value in (timing.get("search_latency_ms") or {}).items():
        _check_value(f"{path}: search_latency_ms.{field}", value, _NUMBER)
    _check_value(f"{path}: hardware.processor", timing.get("hardware", {}).get("processor"), (str, _MAYBE))


def _check_means(path: Path, row: Row) -> None:
    """Cheap enough for every reading: the stored means are those of the stored queries, which are counted."""
    for column in COLUMNS:
        values = list(row.per_query[column].values())
        if len(values) != row.result["dataset"]["queries"]:
            raise DamagedError(f"{path}: {column} has {len(values)} queries, its data set "
                               f"{row.result['dataset']['queries']}")
        if not all(isinstance(value, _NUMBER) and math.isfinite(value) for value in values):
            raise DamagedError(f"{path}: {column} has a value that is no finite number")
        mean = math.fsum(values) / max(len(values), 1)
        if not math.isclose(mean, row.measures[column], rel_tol=1e-9, abs_tol=1e-9):
            raise DamagedError(f"{path}: {column} is {row.measures[column]}, the mean of its queries {mean}; make the "
                               "row again")


def _row_folders(results: Path) -> list[Path]:
    found = sorted({path.parent for name in (RESULT, RUN) for path in results.glob(f"[!.]*/[!.]*/{name}")})
    if lost := next((folder for folder in found if not (folder / RESULT).is_file()), None):
        raise DamagedError(f"{lost / RESULT} is missing, and its {RUN} is there; make the row again")
    return found


def read_rows(results: Path) -> list[Row]:
    """All finished rows below a folder, by data set and system; a row in the making is not there yet.

    Raises as ``read_row`` does, and ``DamagedError`` for a folder that has a run only.
    """
    return [read_row(folder) for folder in _row_folders(results)]


# ------------------------------------------------------------------------------------------------ verifying


def verify_row(folder: Path, collection: Collection, known: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Measure the stored run again; a report. All measures must come out as they are stored, to the last digit.

    It vouches for run, data set, measures and means. That the named system made the run, how deep it was asked to go,
    how fast, at what cost and with which versions, no stored file can prove; whoever doubts it runs the row's command
    again.

    ``known`` is what ``describe`` says of the collection, for callers with several rows of it. Raises ``DamagedError``
    for a row, a run or a measure that differs, ``DataError`` for a data set that is not that of the row.
    """
    row = read_row(folder)
    _check_dataset(folder / RESULT, row, collection, known or describe(collection))
    run = _read_stored_run(folder, row)
    means, values = measure(run, data.read_qrels(collection.qrels), row.result["dataset"]["relevance_level"])
    for column, mean in means.items():
        if mean != row.measures[column]:
            raise DamagedError(f"{folder / RESULT}: {column} is {row.measures[column]}, its run gives {mean}")
        if set(values[column]) != set(row.per_query[column]):
            raise DamagedError(f"{folder / RESULT}: {column} has values for other queries than its qrels")
        if values[column] != row.per_query[column]:
            query_id = next(key for key in values[column] if row.per_query[column][key] != values[column][key])
            raise DamagedError(f"{folder / RESULT}: {column} of query {query_id} is "
                               f"{row.per_query[column][query_id]}, its run gives {values[column][query_id]}")
    return {"dataset": row.dataset, "system": row.system, "ok": True, "queries": len(values[COLUMNS[0]]), **means}


def verify_rows(results: Path, data_dir: Path) -> list[dict[str, Any]]:
    """Verify every row below ``results`` against the data sets below ``data_dir``; one report for each.

    Raises ``DataError`` when there is no row, or a row's data set does not lie there, and errors as ``verify_row``.
    """
    folders = _row_folders(results)
    if not folders:
        raise DataError(f"{results} holds no row (DATASET/SYSTEM/{RESULT})")
    known: dict[Collection, dict[str, Any]] = {}
    reports = []
    for folder in folders:
        collection = _find(read_row(folder), data_dir)
        if collection not in known:
            known[collection] = describe(collection)
        reports.append(verify_row(folder, collection, known[collection]))
    return reports


def _find(row: Row, data_dir: Path) -> Collection:
    """The data set that a row names as its source."""
    source = row.result["dataset"]["source"]
    found = benchmarks.find(source, data_dir)
    if found is None:
        raise DataError(f"row {row.dataset}/{row.system}: its data set {source!r} is not in {data_dir}")
    return found


def _check_dataset(path: Path, row: Row, collection: Collection, known: Mapping[str, Any]) -> None:
    """The row's data set is this one: by its files, its rules and its counts, wherever the row states them."""
    facts = row.result["dataset"]
    for field, value in known.items():
        part = field.removesuffix("_sha256")
        if facts[field] != value and part != field:
            raise DataError(f"{getattr(collection, part)}: sha256 is {value}, allowed: {facts[field]}, the {part} that "
                            f"{path} was measured with")
        if facts[field] != value:
            raise DamagedError(f"row {row.dataset}/{row.system}: {field} is {facts[field]!r}, its data set "
                               f"{facts['source']!r} has {value!r}")
    stated = {**facts, "hits": row.result["run"]["hits_per_query"], "kind": row.result["system"]["kind"]}
    for field, value in row.result["identity"].items():
        if field in stated and value != stated[field]:
            raise DamagedError(f"{path}: identity.{field} is {value!r}, elsewhere in it {stated[field]!r}")


def describe(collection: Collection) -> dict[str, Any]:
    """What a row says of its data set, read anew: SHA-256 of its three files, its rules, and ``survey``."""
    hashes = {f"{part}_sha256": sha256_of_content(getattr(collection, part)) for part in ("corpus", "queries", "qrels")}
    return {**hashes, **{field: getattr(collection, field) for field in _RULES}, **survey(collection)}


def survey(collection: Collection) -> dict[str, int]:
    """Counts of a data set: documents, judged queries, judgements, and what the qrels name that is not there.

    Raises ``DataError`` when no judged query, or no judged document, is there at all: the parts do not belong together.
    """
    qrels = data.read_qrels(collection.qrels)
    judged = {doc_id for judgements in qrels.values() for doc_id in judgements}
    absent, documents = set(judged), 0
    for document in data.read_documents(collection.corpus, check_unique=False):
        documents += 1
        absent.discard(document.doc_id)
    asked = {query.query_id for query in data.read_queries(collection.queries)}
    missing = [query_id for query_id in qrels if query_id not in asked]
    for what, gone, of, place in (("documents", absent, judged, collection.corpus),
                                  ("queries", missing, qrels, collection.queries)):
        if len(gone) == len(of):
            raise DataError(f"{collection.qrels}: none of its {len(of)} {what} is in {place} (first: {min(gone)!r}), "
                            "allowed: qrels of this data set")
    return {"documents": documents, "queries": len(qrels), "judgements": sum(map(len, qrels.values())),
            "absent_documents": len(absent), "absent_queries": len(missing)}


def _read_stored_run(folder: Path, row: Row) -> data.Run:
    path = folder / RUN
    if not path.is_file():
        raise DamagedError(f"{path} is missing; make the row again")
    try:
        found = sha256_of_content(path)
    except (OSError, EOFError, zlib.error) as error:
        raise DamagedError(f"{path} is damaged ({error}); make the row again") from error
    if found != row.result["run"]["sha256"]:
        raise DamagedError(f"{path}: sha256 of the run is {found}, {RESULT} says {row.result['run']['sha256']}")
    run = data.read_run(path)
    deepest = max(map(len, run.values()), default=0)
    if deepest > row.result["run"]["hits_per_query"]:
        raise DamagedError(f"{path} has {deepest} hits for a query, {RESULT} says "
                           f"{row.result['run']['hits_per_query']} at most")
    if (hits := sum(map(len, run.values()))) != row.result["run"].get("hits", hits):
        raise DamagedError(f"{path} has {hits} hits, {RESULT} says {row.result['run']['hits']}")
    return run


# ------------------------------------------------------------------------------------------------ means over data sets


def merge_groups(rows: Sequence[Row]) -> list[Row]:
    """The rows with the twelve forums of CQADupStack put together into one row of each system that has all twelve.

    Its measures are the means of the forums' means (as BEIR counts them, every forum alike), and its queries are
    ``FORUM/QUERY_ID``. A system with fewer forums gets no row for them.
    """
    names = benchmarks.GROUPS["cqadupstack"]
    forums: dict[str, dict[str, Row]] = {}
    others = []
    for row in rows:
        if row.dataset in names:
            forums.setdefault(row.system, {})[row.dataset] = row
        else:
            others.append(row)
    whole = [[found[name] for name in names] for found in forums.values() if len(found) == len(names)]
    merged = [*others, *map(_merge_forums, whole)]
    return sorted(merged, key=lambda row: (row.dataset, row.system))


def _merge_forums(forums: Sequence[Row]) -> Row:
    first = forums[0].result
    counted = {key: sum(row.result["dataset"][key] for row in forums)
               for key in ("documents", "queries", "judgements", "absent_documents", "absent_queries")}
    hashes = {key: files.sha256_of_json([row.result["dataset"][key] for row in forums])
              for key in ("corpus_sha256", "queries_sha256", "qrels_sha256")}
    per_query = {column: {f"{_forum(row)}/{query_id}": value for row in forums
                          for query_id, value in row.per_query[column].items()} for column in COLUMNS}
    efficiency = {key: _mean([row.result["efficiency"][key] for row in forums]) for key in first["efficiency"]}
    efficiency["index_bytes"] = sum(row.result["efficiency"]["index_bytes"] for row in forums)
    return Row({
        "format": FORMAT,
        "dataset": {**first["dataset"], **counted, **hashes, "name": "cqadupstack", "source": "cqadupstack",
                    "parts": {_forum(row): row.result["dataset"] for row in forums}},
        "system": first["system"],
        "measures": {column: _mean([row.measures[column] for row in forums]) for column in COLUMNS},
        "per_query": per_query,
        "efficiency": efficiency,
        "run": {"hits_per_query": min(row.result["run"]["hits_per_query"] for row in forums)},
        "versions": first["versions"], "commit": first.get("commit"), "command": first.get("command"),
    }, {})


def _forum(row: Row) -> str:
    return row.dataset.removeprefix("cqadupstack-")


def average(rows: Sequence[Row], names: Sequence[str] = benchmarks.BEIR_13) -> dict[str, dict[str, float | None]]:
    """System -> column -> mean over the data sets ``names``; only systems that have a row for every one of them.

    None where one of the runs is too short for the measure.
    """
    found: dict[str, dict[str, Mapping[str, float | None]]] = {}
    for row in merge_groups(rows):
        found.setdefault(row.system, {})[row.dataset] = row.shown_measures
    return {system: {column: _mean_of_all([of[name][column] for name in names]) for column in COLUMNS}
            for system, of in found.items() if set(names) <= set(of)}


def _mean_of_all(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return _mean(known) if len(known) == len(values) else None


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
