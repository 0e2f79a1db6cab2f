"""Rows on the disk: measured, written, and read back with every check that needs no data set.

    RESULTS/DATASET/SYSTEM/result.json    what every computation repeats: measures, hashes, versions
    RESULTS/DATASET/SYSTEM/timing.json    everything that a clock measured, with machine and date
    RESULTS/DATASET/SYSTEM/run.trec.gz    the run itself, from which the measures are computed

The folder appears as a whole: if it exists, the row is finished.
"""

from __future__ import annotations

import gzip
import hashlib
import math
import re
import shutil
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from pydantic import ValidationError

from sparse_ir.benchmark import columns
from sparse_ir.benchmark.rows import FORMAT, Record, Result, Row, Timing
from sparse_ir.data import runs
from sparse_ir.data.records import Qrels, Run
from sparse_ir.errors import ConfigError, DamagedError, DataError
from sparse_ir.evaluation.measures import evaluate_run
from sparse_ir.storage import files

RESULT = "result.json"
TIMING = "timing.json"
RUN = "run.trec.gz"
MEAN = "mean"  # beside the names of data sets, in tables
_CHUNK_BYTES = 1 << 20
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
_SHOWN_CHARACTERS = 60
_RULES = {  # pydantic's kind of error -> the rule that was broken
    "bool_type": "it must be true or false",
    "dict_type": "it must be a JSON object",
    "extra_forbidden": "no such field is known",
    "finite_number": "it must be a finite number",
    "float_type": "it must be a number",
    "greater_than_equal": "it must be 0 or more",
    "int_type": "it must be a whole number",
    "model_type": "it must be a JSON object",
    "string_type": "it must be a string",
}

AnyRecord = TypeVar("AnyRecord", bound=Record)


class Measured(NamedTuple):
    """The measures of a run."""

    means: dict[str, float]  # column -> mean over all judged queries
    per_query: dict[str, dict[str, float]]  # column -> query_id -> value


def measure(run: Run, qrels: Qrels, relevance_level: int = 1) -> Measured:
    """All measure columns of a run; errors as in ``measures.evaluate_run``.

    Also raises ``DataError`` for a run that answers queries which the qrels do not know.
    """
    unknown = [query_id for query_id in run if query_id not in qrels]
    if unknown:
        raise DataError(
            f"run: {len(unknown)} of its {len(run)} queries are unknown to the qrels (first: "
            f"{unknown[0]!r}); it must answer judged queries only"
        )
    names = columns.names_for_ir_measures(relevance_level)
    evaluation = evaluate_run(run, qrels, list(names.values()))
    measured = Measured({}, {})
    for column, name in names.items():
        measured.means[column] = evaluation.mean[name]
        measured.per_query[column] = evaluation.per_query[name]
    return measured


def sha256_of_content(path: Path) -> str:
    """SHA-256 of a file's bytes, unpacked for ``.gz``: the same for both forms of a data set."""
    opener: Any = open
    if path.suffix == ".gz":
        opener = gzip.open
    with opener(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def row_folder(results: Path, dataset: str, system: str) -> Path:
    """``RESULTS/DATASET/SYSTEM``; raises ``ConfigError`` for a name that no row can have.

    Names must be plain folder names. A data set cannot be called ``mean``, because the tables use
    that name for the mean over all of them.
    """
    if dataset == MEAN:
        raise ConfigError(
            f"data set {dataset!r}: the tables use this name for the mean over the data sets; "
            "rename the folder of the data set"
        )
    for what, name, remedy in (
        ("data set", dataset, "rename the folder of the data set"),
        ("system", system, "give the system a name with NAME=MODEL"),
    ):
        if not _NAME.fullmatch(name):
            raise ConfigError(
                f"{what} {name!r}: the name must be letters, digits and . _ + -, because its row "
                f"is a folder; {remedy}"
            )
    return results / dataset / system


def write_row(results: Path, row: Row, run: Run) -> Path:
    """Write the three files of a row into its folder, which replaces an older one as a whole.

    Adds the counts of the run, and the SHA-256 of its TREC text before packing. Queries without
    hits leave no line in the run. Raises ``DataError`` as ``runs.write_run`` does.
    """
    target = row_folder(results, row.dataset, row.system)
    files.remove_leftovers(target)
    with files.building(target) as folder:
        counts = {
            "sha256": _write_run(folder, run, row.system),
            "queries": len(run),
            "queries_without_hits": list(run.values()).count([]),
            "hits": sum(map(len, run.values())),
        }
        facts = row.result.run.model_copy(update=counts)
        result = row.result.model_copy(update={"run": facts})
        files.write_json(folder / TIMING, row.timing.model_dump(exclude_unset=True))
        dumped = result.model_dump(exclude_unset=True)
        files.write_json(folder / RESULT, {"format": FORMAT} | dumped)
    return target


def _write_run(folder: Path, run: Run, tag: str) -> str:
    """Write ``run.trec.gz``, the same bytes for the same run; returns the SHA-256 of its text."""
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

    ``verification.verify_row`` checks in addition that the run gives these values.

    Raises:
        DamagedError: a file is missing or of another format, a field is missing or impossible, the
            row belongs to another folder, or its means are not those of its queries.
        ConfigError: its names are refused by ``row_folder``.
    """
    path = folder / RESULT
    stored = files.read_json(path)
    if not isinstance(stored, dict) or stored.get("format") != FORMAT:
        raise DamagedError(f"{path} is not a row of format {FORMAT}")
    result = _parse(Result, path, stored)
    if result.run.sha256 is None:
        raise DamagedError(f"{path} lacks run.sha256")
    timing = Timing()
    if (folder / TIMING).is_file():
        timing = _parse(Timing, folder / TIMING, files.read_json(folder / TIMING))
    row = Row(result, timing)
    row_folder(folder, row.dataset, row.system)  # refuses names that no row can have
    place = "/".join(folder.absolute().parts[-2:])
    if place != f"{row.dataset}/{row.system}":
        raise DamagedError(
            f"{path} is the row {row.dataset}/{row.system}, but must be {place} like its folder; "
            "make the row again under that name, or put the folder back"
        )
    _check_columns(path, row)
    return row


def _parse(kind: type[AnyRecord], path: Path, stored: object) -> AnyRecord:
    try:
        return kind.model_validate(stored)
    except ValidationError as error:
        problems = error.errors(include_url=False)
    missing = [_field_name(problem["loc"]) for problem in problems if problem["type"] == "missing"]
    if missing:
        raise DamagedError(f"{path} lacks {', '.join(missing)}")
    problem = problems[0]
    value = f"{problem['input']!r:.{_SHOWN_CHARACTERS}}"
    rule = _RULES.get(problem["type"], problem["msg"])
    raise DamagedError(f"{path}: {_field_name(problem['loc'])} is {value}; {rule}")


def _field_name(location: tuple[int | str, ...]) -> str:
    return ".".join(map(str, location)) or "the content"


def _check_columns(path: Path, row: Row) -> None:
    """Check that the stored columns are complete, and that each mean is that of its queries.

    A row that was stored before a column existed may lack it.
    """
    stored = set(row.measures)
    expected = [each.name for each in columns.MEASURES if each.in_every_row or each.name in stored]
    for part, names in (("measures", stored), ("per_query", row.per_query.keys())):
        missing = [f"{part}.{name}" for name in expected if name not in names]
        if missing:
            raise DamagedError(f"{path} lacks {', '.join(missing)}")
    queries = row.result.dataset.queries
    for column in expected:
        values = row.per_query[column].values()
        if len(values) != queries:
            raise DamagedError(
                f"{path}: {column} has {len(values)} queries, its data set {queries}"
            )
        mean = math.fsum(values) / max(len(values), 1)
        if not math.isclose(mean, row.measures[column], rel_tol=1e-9, abs_tol=1e-9):
            raise DamagedError(
                f"{path}: {column} is {row.measures[column]}, the mean of its queries {mean}; make "
                "the row again"
            )


def row_folders(results: Path) -> list[Path]:
    """The folders of all finished rows, sorted; hidden folders are not looked at.

    Raises ``DamagedError`` for a folder that has a run, but no result.
    """
    folders = []
    for folder in sorted(results.glob("[!.]*/[!.]*")):
        if (folder / RESULT).is_file():
            folders.append(folder)
        elif (folder / RUN).exists():
            raise DamagedError(
                f"{folder / RESULT} is missing, but its {RUN} is there; make the row again"
            )
    return folders


def read_rows(results: Path) -> list[Row]:
    """All finished rows below a folder, by data set and system; errors as in ``read_row``."""
    return list(map(read_row, row_folders(results)))
