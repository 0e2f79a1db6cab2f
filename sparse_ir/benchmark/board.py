"""The leaderboard as data: effectiveness, significance and cost of every system.

``make_board`` turns rows into a ``Board``, and ``formats`` and ``page`` turn the board into text.
Published figures have a table of their own. Nothing is measured here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from sparse_ir.benchmark import averages, columns, comparison, published_figures
from sparse_ir.benchmark.columns import Measure, Part, mean_of_all
from sparse_ir.benchmark.comparison import Standing
from sparse_ir.benchmark.published_figures import DEFAULT, Published
from sparse_ir.benchmark.rows import HASHES, Row
from sparse_ir.data import datasets
from sparse_ir.data.datasets import BEIR_13
from sparse_ir.errors import ConfigError, DataError

LEVEL = 0.05  # adjusted p-values below it are marked
_BEIR_AVERAGE = "beir-13"
_SAME_DATA = (*HASHES, "remove_identical", "relevance_level")

Grid = Mapping[str, Mapping[str, Row]]  # data set -> system -> row


@dataclasses.dataclass(frozen=True)
class Cell:
    """What is known about one system on one data set, or in the mean over several."""

    measures: dict[str, float | None]
    standing: Standing
    efficiency: dict[str, float | None]
    provenance: dict[str, str | None] | None = None  # None for a mean

    def value(self, name: str) -> float | None:
        """The number of a column; None if it is unknown."""
        if name in self.measures:
            return self.measures[name]
        if name in self.efficiency:
            return self.efficiency[name]
        number: float | None = getattr(self.standing, name, None)
        return number

    def to_json(self) -> dict[str, Any]:
        """The cell as ``leaderboard.json`` holds it."""
        stored: dict[str, Any] = dict(self.measures)
        stored |= dataclasses.asdict(self.standing)
        stored["efficiency"] = self.efficiency
        if self.provenance is not None:
            stored["provenance"] = self.provenance
        return stored


@dataclasses.dataclass(frozen=True)
class Entry:
    """A system: its mean over the data sets that all systems have, and its cells."""

    name: str
    kind: str
    mean: Cell | None  # None if no data set has all systems
    datasets: dict[str, Cell]

    def cells(self) -> dict[str, Cell]:
        """The mean (if there is one) and all data sets, by their names in the tables."""
        cells = {}
        if self.mean is not None:
            cells["mean"] = self.mean
        return cells | self.datasets


@dataclasses.dataclass(frozen=True)
class DatasetSize:
    """What the page says about a data set."""

    split: str
    documents: int
    queries: int
    judgements: int


@dataclasses.dataclass(frozen=True)
class PublishedEntry:
    """Published figures of one system on our data sets, and their mean over exactly our sets."""

    system: str
    kind: str
    measure: str
    values: dict[str, float]
    source: str
    status: str
    note: str
    mean: float | None


@dataclasses.dataclass(frozen=True)
class Board:
    """Everything that the tables and the page show; systems by their mean, the best first."""

    measure: str
    baseline: str
    datasets: dict[str, DatasetSize]
    common: list[str]  # the data sets that all systems have: those of the mean
    systems: list[Entry]
    published: list[PublishedEntry]
    not_shown: list[str]
    notes: list[str] = dataclasses.field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """The board as ``leaderboard.json`` holds it."""
        entries = []
        for entry in self.systems:
            cells = {name: cell.to_json() for name, cell in entry.datasets.items()}
            mean = entry.mean
            entries.append(
                {
                    "name": entry.name,
                    "kind": entry.kind,
                    "mean": mean and mean.to_json(),
                    "datasets": cells,
                }
            )
        stored = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        stored["datasets"] = {
            name: dataclasses.asdict(size) for name, size in self.datasets.items()
        }
        stored["systems"] = entries
        stored["published"] = [dataclasses.asdict(record) for record in self.published]
        return stored


def read_board(stored: Mapping[str, Any]) -> Board:
    """The board in the JSON of a ``leaderboard.json``; columns that it lacks are empty."""
    systems = []
    for entry in stored["systems"]:
        cells = {name: _read_cell(cell) for name, cell in entry["datasets"].items()}
        mean = None
        if entry["mean"] is not None:
            mean = _read_cell(entry["mean"])
        systems.append(Entry(entry["name"], entry["kind"], mean, cells))
    return Board(
        measure=stored["measure"],
        baseline=stored["baseline"],
        datasets={name: DatasetSize(**size) for name, size in stored["datasets"].items()},
        common=stored["common"],
        systems=systems,
        published=[PublishedEntry(**record) for record in stored["published"]],
        not_shown=stored["not_shown"],
        notes=stored["notes"],
    )


def _read_cell(stored: Mapping[str, Any]) -> Cell:
    standing = {field.name: stored[field.name] for field in dataclasses.fields(Standing)}
    return Cell(
        measures={name: stored.get(name) for name in columns.measure_names()},
        standing=Standing(**standing),
        efficiency={column.name: stored["efficiency"].get(column.name) for column in columns.COSTS},
        provenance=stored.get("provenance"),
    )


def make_board(
    rows: Sequence[Row],
    *,
    baseline: str = "bm25",
    measure: Measure = "nDCG@10",
    published: str = DEFAULT,
) -> Board:
    """The board of all rows, ordered and compared by ``measure``.

    Means are over the data sets that all systems have (``common``). Each data set counts alike,
    however many queries it has, also in the interval and in the test. A measure that looks deeper
    than a run goes is None.

    Raises:
        ConfigError: the baseline has no row.
        DataError: two rows of one data set were measured on different data, or a row lacks the
            measure or has a run that is too short for it.
    """
    grid: dict[str, dict[str, Row]] = {}
    for row in merge_forums(rows):
        grid.setdefault(row.dataset, {})[row.system] = row
    kinds = {}
    for by_system in grid.values():
        for system, row in by_system.items():
            kinds[system] = row.result.system.kind
    if baseline not in kinds:
        raise ConfigError(
            f"the baseline {baseline!r} has no row; it must be one of {', '.join(sorted(kinds))}"
        )
    sizes = {name: _describe_dataset(list(by_system.values())) for name, by_system in grid.items()}
    _check_depths(grid, measure)
    common = [name for name, by_system in grid.items() if len(by_system) == len(kinds)]
    cells = {name: _make_cells(grid[name], measure, baseline) for name in grid}
    means = _make_means({name: grid[name] for name in common}, cells, measure, baseline)
    whole = [name for name, size in sizes.items() if is_whole(name, size)]
    board = Board(
        measure=measure,
        baseline=baseline,
        datasets=sizes,
        common=common,
        systems=_make_entries(kinds, cells, means, measure),
        published=_place_published(published, measure, whole, common),
        not_shown=_find_unmerged(rows, grid),
    )
    return dataclasses.replace(board, notes=_describe(board))


def merge_forums(rows: Sequence[Row]) -> list[Row]:
    """The rows, with CQADupStack's forums as one data set if a system has all twelve of them."""
    merged = averages.merge_groups(rows)
    if any(row.dataset == averages.MERGED for row in merged):
        return merged
    return list(rows)


def _find_unmerged(rows: Sequence[Row], grid: Grid) -> list[str]:
    """Rows of forums whose system lacks others, once the forums are one data set."""
    unmerged = []
    for row in rows:
        if row.dataset not in grid and row.system not in grid[averages.MERGED]:
            unmerged.append(f"{row.dataset}/{row.system}")
    return unmerged


def _describe_dataset(rows: Sequence[Row]) -> DatasetSize:
    """The size of a data set; raises ``DataError`` if its rows were measured on different data."""
    first = rows[0]
    facts = first.result.dataset
    for row in rows[1:]:
        changed = []
        for field in _SAME_DATA:
            if getattr(row.result.dataset, field) != getattr(facts, field):
                changed.append(field)
        if changed:
            raise DataError(
                f"rows {row.dataset}/{first.system} and {row.dataset}/{row.system} were measured "
                f"on different data ({', '.join(changed)}); make one of them again"
            )
    return DatasetSize(facts.split, facts.documents, facts.queries, facts.judgements)


def _check_depths(grid: Grid, measure: str) -> None:
    for by_system in grid.values():
        for row in by_system.values():
            if row.shown_measure(measure) is not None:
                continue
            place = f"row {row.dataset}/{row.system}"
            if measure not in row.measures:
                raise DataError(
                    f"{place} has no {measure}; make the row again, or order by another measure"
                )
            raise DataError(
                f"{place} has {row.result.run.hits_per_query} hits per query; there must be as "
                f"many as {measure} looks at; make the row again, or order by another measure"
            )


def _make_cells(by_system: Mapping[str, Row], measure: str, baseline: str) -> dict[str, Cell]:
    strata = comparison.split_into_strata(by_system, measure)
    standings = comparison.compare_systems([strata], baseline)
    cells = {}
    for system, row in by_system.items():
        cells[system] = Cell(
            measures={name: row.shown_measure(name) for name in columns.measure_names()},
            standing=standings[system],
            efficiency={column.name: column.value(row) for column in columns.COSTS},
            provenance={column.name: column.read(row) for column in columns.SOURCES},
        )
    return cells


def _make_means(
    grid: Grid, cells: Mapping[str, Mapping[str, Cell]], measure: str, baseline: str
) -> dict[str, Cell]:
    """System -> its mean over the data sets of ``grid``, all of which have every system."""
    if not grid:
        return {}
    strata = [comparison.split_into_strata(by_system, measure) for by_system in grid.values()]
    standings = comparison.compare_systems(strata, baseline)
    means = {}
    for system, standing in standings.items():
        own = {name: cells[name][system] for name in grid}
        measures = {}
        for name in columns.measure_names():
            measures[name] = mean_of_all([cell.measures[name] for cell in own.values()])
        efficiency = {}
        for column in columns.COSTS:
            parts = []
            for name, cell in own.items():
                documents = grid[name][system].result.dataset.documents
                parts.append(Part(documents, cell.efficiency[column.name]))
            efficiency[column.name] = column.combine(parts)
        means[system] = Cell(measures, standing, efficiency)
    return means


def _make_entries(
    kinds: Mapping[str, str],
    cells: Mapping[str, Mapping[str, Cell]],
    means: Mapping[str, Cell],
    measure: str,
) -> list[Entry]:
    """The systems by their mean, the best first; equal ones and those without a mean by name."""
    entries = []
    for system in sorted(kinds):
        own = {name: by_system[system] for name, by_system in cells.items() if system in by_system}
        entries.append(Entry(system, kinds[system], means.get(system), own))

    def negative_mean(entry: Entry) -> float:
        if entry.mean is None:
            return 0.0
        return -(entry.mean.value(measure) or 0.0)

    return sorted(entries, key=negative_mean)


def is_whole(name: str, size: DatasetSize) -> bool:
    """Whether a data set of ours has the size of the published one, or none is published."""
    return datasets.has_published_size(name, size.documents, size.queries)


def _place_published(
    names: str, measure: str, ours: list[str], common: list[str]
) -> list[PublishedEntry]:
    """Published figures of this measure for our data sets.

    ``ours`` are the sets with the names and the sizes of published ones. A published mean appears
    only if it is over exactly the sets of our own mean.
    """
    wanted = list(ours)
    if set(common) == set(BEIR_13) <= set(ours):
        wanted.append(_BEIR_AVERAGE)
    entries = []
    for record in published_figures.select(names, wanted):
        if record.measure == measure:
            entries.append(_place_record(record, common))
    return entries


def _place_record(record: Published, common: list[str]) -> PublishedEntry:
    values = dict(record.values)
    mean = values.pop(_BEIR_AVERAGE, None)
    if common and set(common) <= set(values):
        mean = mean_of_all([values[name] for name in common])
    return PublishedEntry(
        system=record.system,
        kind=record.kind,
        measure=record.measure,
        values=values,
        source=record.source,
        status=record.status,
        note=record.note,
        mean=mean,
    )


def _describe(board: Board) -> list[str]:
    """How to read the figures, in sentences."""
    where = ", ".join(board.common) or "none: no data set has all systems"
    cells = [cell for entry in board.systems for cell in entry.datasets.values()]
    machines = columns.join_texts((cell.provenance or {}).get("processor") for cell in cells)
    notes = [
        f"Means are over the data sets that all systems have ({where}), each counting alike.",
        (
            "95 %: bootstrap interval over queries. p: paired randomization test against "
            f"{board.baseline}, Holm-corrected for the number of systems; ▲ and ▼ mark p < "
            f"{LEVEL:g}."
        ),
        (
            "Terms and FLOPS are means over queries and documents; MB is the size of the Lucene "
            "indexes; docs/s is the speed of encoding; latency is from text to hits, on one thread "
            f"(machine: {machines or 'not recorded'})."
        ),
    ]
    if any(value is None for cell in cells for value in cell.measures.values()):
        notes.append(
            "–: some rows lack this measure, or have fewer hits per query than it looks at, and "
            "are not compared by it."
        )
    for name, size in board.datasets.items():
        published = datasets.published_size(name)
        if published is not None and not is_whole(name, size):
            documents, queries = published
            notes.append(
                f"No published figures and no MTEB file for {name}: it is not the published set of "
                f"{documents} documents and {queries} queries."
            )
    if board.published:
        notes.append(
            "Published figures are from other people's systems, data and settings: primary was "
            "read in the source, secondary in a digest or quotation of it."
        )
    return notes
