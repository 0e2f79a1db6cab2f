"""The leaderboard as data: effectiveness, significance and cost of every system.

``make_board`` turns rows into a ``Board``, and ``formats`` and ``page`` turn the board into text.
Published figures have a table of their own. Nothing is measured here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from operator import attrgetter
from typing import Any

from pydantic import BaseModel, ConfigDict, model_serializer, model_validator

from sparse_ir.benchmark import averages, columns, comparison, published_figures
from sparse_ir.benchmark.averages import Grid
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

Cells = dict[str, dict[str, "Cell"]]  # data set -> system -> cell


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True)


class Cell(_Record):
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

    @model_serializer
    def flatten(self) -> dict[str, Any]:
        """The cell in ``leaderboard.json``: measures and standing side by side."""
        stored: dict[str, Any] = self.measures | dataclasses.asdict(self.standing)
        stored["efficiency"] = self.efficiency
        if self.provenance is not None:
            stored["provenance"] = self.provenance
        return stored

    @model_validator(mode="before")
    @classmethod
    def unflatten(cls, stored: dict[str, Any]) -> dict[str, Any]:
        """What ``flatten`` made; measures that it lacks are empty."""
        if "standing" in stored:
            return stored
        standing = {}
        for field in dataclasses.fields(Standing):
            standing[field.name] = stored[field.name]
        measures = dict.fromkeys(columns.measure_names())
        for name in measures:
            measures[name] = stored.get(name)
        return stored | {"measures": measures, "standing": standing}


class Entry(_Record):
    """A system: its mean over the data sets that all systems have, and its cells."""

    name: str
    kind: str
    mean: Cell | None  # None if no data set has all systems
    datasets: dict[str, Cell]

    def cells(self) -> dict[str, Cell]:
        """The mean (if there is one) and all data sets, by their names in the tables."""
        if self.mean is None:
            return self.datasets
        return {"mean": self.mean} | self.datasets


class DatasetSize(_Record):
    """What the page says about a data set."""

    split: str
    documents: int
    queries: int
    judgements: int

    def is_whole(self, name: str) -> bool:
        """Whether it has the size of the published set of this name, or none is published."""
        return datasets.has_published_size(name, self.documents, self.queries)


class Board(_Record):
    """Everything that the tables and the page show; systems by their mean, the best first.

    ``model_dump`` gives the content of ``leaderboard.json``, and ``model_validate`` reads it.
    """

    measure: str
    baseline: str
    datasets: dict[str, DatasetSize]
    common: list[str]  # the data sets that all systems have: those of the mean
    systems: list[Entry]
    published: list[Published]  # on our data sets; their means are over exactly our sets
    not_shown: list[str]
    notes: list[str] = []


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
    grid = averages.by_dataset(merge_forums(rows))
    kinds: dict[str, str] = {}
    for by_system in grid.values():
        for system, row in by_system.items():
            kinds[system] = row.result.system.kind
    if baseline not in kinds:
        raise ConfigError(
            f"the baseline {baseline!r} has no row; it must be one of {', '.join(sorted(kinds))}"
        )
    sizes = {}
    cells: Cells = {}
    common: Grid = {}
    whole = []
    for name, by_system in grid.items():
        sizes[name] = _describe_dataset(list(by_system.values()), measure)
        cells[name] = _make_cells(by_system, measure, baseline)
        if len(by_system) == len(kinds):
            common[name] = by_system
        if sizes[name].is_whole(name):
            whole.append(name)
    means = _make_means(common, cells, measure, baseline) if common else {}
    entries = []
    for system in sorted(kinds):
        own = {name: by_system[system] for name, by_system in cells.items() if system in by_system}
        entries.append(Entry(name=system, kind=kinds[system], mean=means.get(system), datasets=own))
    unmerged = []  # forums of a system that lacks others
    for row in rows:
        if row.dataset not in grid and row.system not in grid[averages.MERGED]:
            unmerged.append(f"{row.dataset}/{row.system}")
    board = Board(
        measure=measure,
        baseline=baseline,
        datasets=sizes,
        common=list(common),
        systems=_order(entries, measure),
        published=_place_published(published, measure, whole, list(common)),
        not_shown=unmerged,
    )
    return board.model_copy(update={"notes": _describe(board)})


def _order(entries: Sequence[Entry], measure: str) -> list[Entry]:
    """The best mean first; systems without a mean keep the order of their names at the end."""
    means = {}
    for entry in entries:
        means[entry.name] = (entry.mean and entry.mean.value(measure)) or 0.0
    return sorted(entries, key=lambda entry: -means[entry.name])


def merge_forums(rows: Sequence[Row]) -> list[Row]:
    """The rows, with CQADupStack's forums as one data set if a system has all twelve of them."""
    merged = averages.merge_groups(rows)
    if averages.MERGED in map(attrgetter("dataset"), merged):
        return merged
    return list(rows)


def _describe_dataset(rows: Sequence[Row], measure: str) -> DatasetSize:
    """The size of a data set, whose rows must be of the same data and deep enough."""
    first = rows[0]
    facts = first.result.dataset
    for row in rows:
        place = f"row {row.dataset}/{row.system}"
        changed = []
        for field in _SAME_DATA:
            if getattr(row.result.dataset, field) != getattr(facts, field):
                changed.append(field)
        if changed:
            raise DataError(
                f"rows {row.dataset}/{first.system} and {row.dataset}/{row.system} were measured "
                f"on different data ({', '.join(changed)}); make one of them again"
            )
        remedy = "make the row again, or order by another measure"
        if measure not in row.measures:
            raise DataError(f"{place} has no {measure}; {remedy}")
        if row.shown_measure(measure) is None:
            raise DataError(
                f"{place} has {row.result.run.hits_per_query} hits per query; there must be as "
                f"many as {measure} looks at; {remedy}"
            )
    return DatasetSize(
        split=facts.split,
        documents=facts.documents,
        queries=facts.queries,
        judgements=facts.judgements,
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


def _make_means(grid: Grid, cells: Cells, measure: str, baseline: str) -> dict[str, Cell]:
    """System -> its mean over the data sets of ``grid``, all of which have every system."""
    strata = [comparison.split_into_strata(by_system, measure) for by_system in grid.values()]
    means = {}
    for system, standing in comparison.compare_systems(strata, baseline).items():
        measures = {}
        for name in columns.measure_names():
            measures[name] = mean_of_all([cells[place][system].measures[name] for place in grid])
        efficiency = {}
        for column in columns.COSTS:
            parts = []
            for name, by_system in grid.items():
                documents = by_system[system].result.dataset.documents
                parts.append(Part(documents, cells[name][system].efficiency[column.name]))
            efficiency[column.name] = column.combine(parts)
        means[system] = Cell(measures=measures, standing=standing, efficiency=efficiency)
    return means


def _place_published(
    names: str, measure: str, ours: Sequence[str], common: Sequence[str]
) -> list[Published]:
    """Published figures of this measure for our data sets.

    ``ours`` are the sets with the names and the sizes of published ones. A published mean appears
    only if it is over exactly the sets of our own mean.
    """
    wanted = list(ours)
    if set(common) == set(BEIR_13) <= set(ours):
        wanted.append(_BEIR_AVERAGE)
    placed = []
    for record in published_figures.select(names, wanted):
        values = dict(record.values)
        mean = values.pop(_BEIR_AVERAGE, None)
        if common and set(common) <= set(values):
            mean = mean_of_all([values[name] for name in common])
        if record.measure == measure:
            placed.append(dataclasses.replace(record, values=values, mean=mean))
    return placed


def _describe(board: Board) -> list[str]:
    """How to read the figures, in sentences."""
    where = ", ".join(board.common) or "none: no data set has all systems"
    machines: set[str] = set()
    lacks_values = False
    for entry in board.systems:
        for cell in entry.datasets.values():
            machines.add((cell.provenance or {}).get("processor") or "")
            lacks_values = lacks_values or None in cell.measures.values()
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
            f"(machine: {'; '.join(sorted(machines - {''})) or 'not recorded'})."
        ),
    ]
    if lacks_values:
        notes.append(
            "–: some rows lack this measure, or have fewer hits per query than it looks at, and "
            "are not compared by it."
        )
    for name, size in board.datasets.items():
        published = datasets.published_size(name)
        if published is not None and not size.is_whole(name):
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
