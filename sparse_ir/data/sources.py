"""Where a collection is: a BEIR folder, a file, or a data set of the hub."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sparse_ir import extras
from sparse_ir.errors import DataError

STANDARD_INPUT = "-"
_FORMATS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
}
_NAMES = ".jsonl, .json, .csv, .tsv (each also with .gz or .zst), or .parquet"


def find_hub_name(source: str | Path) -> str | None:
    """Name of the hub's data set that ``source`` stands for, or None if it is a path."""
    text = str(source)
    if text.startswith("hf:"):
        return text.removeprefix("hf:")
    if re.fullmatch(r"BeIR/[\w.-]+", text) and not Path(text).exists():
        return text
    return None


def find_corpus(source: str | Path) -> Path:
    """The corpus file that ``read_documents`` opens.

    Raises ``DataError`` that lists the names it looked for.
    """
    return find_records(Path(source), "corpus")


def find_queries(source: str | Path) -> Path:
    """The query file that ``read_queries`` opens.

    Raises ``DataError`` that lists the names it looked for.
    """
    return find_records(Path(source), "queries")


def find_records(source: Path, stem: str) -> Path:
    """The file of a corpus or of queries (``stem``): ``source`` itself, or one in its folder.

    Raises ``DataError`` if there is none, or one of a name that shows no format.
    """
    if source.is_dir():
        return only_one(_candidates(source, stem), stem)
    check_exists(source, stem)
    if find_format(source) is None:
        raise DataError(
            f"{source}: unknown format of {stem}; the name must end in {_NAMES}, or the option "
            "--input-format must name one"
        )
    return source


def has_records(folder: Path, stem: str) -> bool:
    """True for a BEIR folder: it has a file of this stem."""
    return any(path.is_file() for path in _candidates(folder, stem))


def _candidates(folder: Path, stem: str) -> list[Path]:
    return [folder / f"{stem}.jsonl", folder / f"{stem}.jsonl.gz"]


def check_exists(source: Path, stem: str) -> None:
    """Raise ``DataError`` that lists what a source may be, unless there is such a path."""
    if not source.exists():
        raise DataError(
            f"{source}: no such {stem}; looked for this file, for a folder of this name with "
            f"{stem}.jsonl or {stem}.jsonl.gz, and for a data set of the hub (hf:OWNER/NAME or "
            "BeIR/NAME)"
        )


def find_format(path: Path) -> str | None:
    """The format that the end of a name shows, apart from its compression."""
    name = path
    if path.suffix in (".gz", ".zst"):
        name = path.with_suffix("")
    return _FORMATS.get(name.suffix.lower())


def only_one(candidates: list[Path], what: str) -> Path:
    """The one candidate that exists; raises ``DataError`` if none or several do."""
    existing = [path for path in candidates if path.is_file()]
    if not existing:
        raise DataError(f"no {what}; looked for {' and '.join(map(str, candidates))}")
    if len(existing) > 1:
        raise DataError(
            f"{what} exists twice: {' and '.join(map(str, existing))}; name the file that is meant"
        )
    return existing[0]


def read_hub(
    name: str,
    config: str | None,
    split: str,
    revision: str | None,
    column_types: Mapping[str, str] | None = None,
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Numbered records (from 1) of one part of a data set of the hub, as a stream.

    ``column_types`` declares the columns; without it, the hub guesses. Raises ``DataError`` if the
    part cannot be loaded.
    """
    with extras.importing():
        import datasets

    features = None
    if column_types is not None:
        features = datasets.Features(
            {column: datasets.Value(kind) for column, kind in column_types.items()}
        )
    try:
        rows = datasets.load_dataset(
            name, config, split=split, revision=revision, streaming=True, features=features
        )
        yield from enumerate(rows, 1)
    except (OSError, ValueError) as error:
        part = f"part {config!r}"
        if config is None:
            part = f"split {split!r}"
        raise DataError(
            f"hf:{name}: {part} cannot be loaded from the hub ({error}); it must be a data set in "
            "BEIR's layout (parts corpus and queries; judgements in NAME-qrels)"
        ) from error
