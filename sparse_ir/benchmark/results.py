"""A row of the leaderboard as data: what one system reached on one data set, and everything to
check it by.

    RESULTS/DATASET/SYSTEM/result.json    what every computation repeats: measures, hashes, versions
    RESULTS/DATASET/SYSTEM/timing.json    all that a clock measured, with the machine and the date
    RESULTS/DATASET/SYSTEM/run.trec.gz    the run itself, from which the measures are computed

The folder appears whole: where it is, the row is finished.
"""

from __future__ import annotations

import gzip
import hashlib
import math
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from sparse_ir.data import runs
from sparse_ir.data.records import Qrels, Run
from sparse_ir.errors import ConfigError, DamagedError, DataError
from sparse_ir.evaluation.measures import evaluate_run
from sparse_ir.storage import files

FORMAT = 1
RESULT, TIMING, RUN = "result.json", "timing.json", "run.trec.gz"
COLUMNS = ("nDCG@10", "R@100", "R@1000", "MRR@10")
MEAN = "mean"  # beside the names of data sets, in tables
_NUMBER = (int, float)
_MAYBE = type(None)
# part of a row -> what is read of it, and as what
_PARTS: dict[str, dict[str, type | tuple[type, ...]]] = {
    "dataset": {
        **dict.fromkeys(
            ("name", "source", "split", "corpus_sha256", "queries_sha256", "qrels_sha256"), str
        ),
        **dict.fromkeys(
            (
                "documents",
                "queries",
                "judgements",
                "absent_documents",
                "absent_queries",
                "relevance_level",
            ),
            int,
        ),
        "remove_identical": bool,
    },
    "system": {
        **dict.fromkeys(("name", "kind", "hash"), str),
        **dict.fromkeys(("model", "revision"), (str, _MAYBE)),
    },
    "measures": dict.fromkeys(COLUMNS, _NUMBER),
    "per_query": dict.fromkeys(COLUMNS, dict),
    "efficiency": dict.fromkeys(
        ("mean_query_terms", "mean_document_terms", "flops", "index_bytes"), _NUMBER
    ),
    "run": {"sha256": str, "hits_per_query": int},
    "versions": {},
    "identity": {},
}
_TIMES: dict[str, type | tuple[type, ...]] = {
    "encode_documents_per_second": (*_NUMBER, _MAYBE),
    "search_latency_ms": (dict, _MAYBE),
    "hardware": dict,
    "date": (str, _MAYBE),
}
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
        """What begins the query ids of a part -> the facts of its data set; of a plain row nothing
        -> its own.
        """
        facts = self.result["dataset"]
        return {f"{forum}/": of for forum, of in facts.get("parts", {}).items()} or {"": facts}

    @property
    def measures(self) -> dict[str, float]:
        """Means over all judged queries, by the names in ``COLUMNS``."""
        return self.result["measures"]

    @property
    def shown_measures(self) -> dict[str, float | None]:
        """The measures; None for one that looks deeper than the run goes, which is another measure
        in truth.
        """
        hits, documents = self.result["run"]["hits_per_query"], self.result["dataset"]["documents"]
        return {
            column: None if hits < min(int(column.partition("@")[2]), documents) else value
            for column, value in self.measures.items()
        }

    @property
    def per_query(self) -> dict[str, dict[str, float]]:
        """Column -> query_id -> value, for all judged queries."""
        return self.result["per_query"]


def name_measures(relevance_level: int = 1) -> dict[str, str]:
    """Column -> measure as ``ir_measures`` names it, under a relevance level.

    The level is that of ``trec_eval -l``: a document of a lower grade is not relevant to recall and
    to the reciprocal rank. nDCG takes the grade itself as gain, under any level.
    """
    level = "" if relevance_level == 1 else f"(rel={relevance_level})"
    return {
        "nDCG@10": "nDCG@10",
        "R@100": f"R{level}@100",
        "R@1000": f"R{level}@1000",
        "MRR@10": f"RR{level}@10",
    }


def measure(
    run: Run, qrels: Qrels, relevance_level: int = 1
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Means by column, and values per query by column; errors as in ``measures.evaluate_run``.

    Raises ``DataError`` besides for a run that answers queries which the qrels do not know.
    """
    if unknown := [query_id for query_id in run if query_id not in qrels]:
        raise DataError(
            f"run: {len(unknown)} of its {len(run)} queries are unknown to the qrels "
            "(first: "
            f"{unknown[0]!r}), allowed: judged queries"
        )
    names = name_measures(relevance_level)
    found = evaluate_run(run, qrels, list(names.values()))
    return (
        {column: found.mean[name] for column, name in names.items()},
        {column: found.per_query[name] for column, name in names.items()},
    )


def sha256_of_content(path: Path) -> str:
    """SHA-256 of a file's bytes, of the unpacked ones for a ``.gz``: the same for both forms of a
    data set.
    """
    with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as stream:
        digest = hashlib.sha256()
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def row_folder(results: Path, dataset: str, system: str) -> Path:
    """``RESULTS/DATASET/SYSTEM``; raises ``ConfigError`` for a name that is no plain name of a
    folder.

    A data set called ``mean`` is refused too: so the tables call the mean over all of them.
    """
    for what, name, remedy in (
        ("data set", dataset, "rename the folder of the data set"),
        ("system", system, "give the system a name with NAME=MODEL"),
    ):
        if not _NAME.fullmatch(name):
            raise ConfigError(
                f"{what} {name!r}, allowed: letters, digits and . _ + - (its row is "
                f"a folder); {remedy}"
            )
    if dataset == MEAN:
        raise ConfigError(
            f"data set {dataset!r}, allowed: any other name, as this one is that of "
            "the mean over the "
            "data sets in all tables; rename the folder of the data set"
        )
    return results / dataset / system


def write_row(results: Path, row: Row, run: Run) -> Path:
    """Write the three files of a row; the folder, which appears whole, in the place of an older
    row.

    Adds to the row its format, and the run's counts and SHA-256 (of the TREC text, before it is
    packed). Queries without hits leave no line in the run. Raises ``DataError`` as
    ``data.write_run`` does.
    """
    target = row_folder(results, row.dataset, row.system)
    files.remove_leftovers(target)
    with files.building(target) as folder:
        facts = {
            "sha256": _write_run(folder, run, row.system),
            "queries": len(run),
            "queries_without_hits": sum(not hits for hits in run.values()),
            "hits": sum(map(len, run.values())),
        }
        files.write_json(folder / TIMING, row.timing)
        files.write_json(
            folder / RESULT, {"format": FORMAT, **row.result, "run": {**row.result["run"], **facts}}
        )
    return target


def _write_run(folder: Path, run: Run, tag: str) -> str:
    """Write ``run.trec.gz``, the same bytes for the same run; the SHA-256 of the text in it."""
    plain = folder / "run.trec"
    runs.write_run(plain, run, tag)
    with (
        plain.open("rb") as source,
        (folder / RUN).open("wb") as stream,
        gzip.GzipFile(filename="", mode="wb", compresslevel=6, fileobj=stream, mtime=0) as packed,
    ):
        shutil.copyfileobj(source, packed, _CHUNK_BYTES)
    sha256 = files.sha256_of_file(plain)
    plain.unlink()
    return sha256


def read_row(folder: Path) -> Row:
    """The row in a folder.

    Raises ``DamagedError`` where it is missing, of another format, lacks a part, is named otherwise
    than its folder, or has means that are not those of its queries; ``ConfigError`` as
    ``row_folder`` does. Whether the run gives these values, ``verify_row`` knows.
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
        raise DamagedError(
            f"{path} is the row {row.dataset}/{row.system}, allowed: {found}, as "
            "its folder says; make "
            "the row again under that name, or put the folder back"
        )
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
        raise DamagedError(
            f"{path}: dataset.parts is what only a row has that was put together in memory"
        )


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
    _check_value(
        f"{path}: hardware.processor", timing.get("hardware", {}).get("processor"), (str, _MAYBE)
    )


def _check_means(path: Path, row: Row) -> None:
    """Cheap enough for every reading: the stored means are those of the stored queries, which are
    counted.
    """
    for column in COLUMNS:
        values = list(row.per_query[column].values())
        if len(values) != row.result["dataset"]["queries"]:
            raise DamagedError(
                f"{path}: {column} has {len(values)} queries, its data set "
                f"{row.result['dataset']['queries']}"
            )
        if not all(isinstance(value, _NUMBER) and math.isfinite(value) for value in values):
            raise DamagedError(f"{path}: {column} has a value that is no finite number")
        mean = math.fsum(values) / max(len(values), 1)
        if not math.isclose(mean, row.measures[column], rel_tol=1e-9, abs_tol=1e-9):
            raise DamagedError(
                f"{path}: {column} is {row.measures[column]}, the mean of its "
                f"queries {mean}; make the "
                "row again"
            )


def row_folders(results: Path) -> list[Path]:
    found = sorted(
        {path.parent for name in (RESULT, RUN) for path in results.glob(f"[!.]*/[!.]*/{name}")}
    )
    if lost := next((folder for folder in found if not (folder / RESULT).is_file()), None):
        raise DamagedError(
            f"{lost / RESULT} is missing, and its {RUN} is there; make the row again"
        )
    return found


def read_rows(results: Path) -> list[Row]:
    """All finished rows below a folder, by data set and system; a row in the making is not there
    yet.

    Raises as ``read_row`` does, and ``DamagedError`` for a folder that has a run only.
    """
    return [read_row(folder) for folder in row_folders(results)]
