"""The columns of the leaderboard. Each column is defined here, and nowhere else.

A new column is one entry in ``MEASURES``, ``COSTS`` or ``SOURCES``. Rows, board, Markdown, CSV,
LaTeX, MTEB files and the page all read these lists. A row that was stored before a column existed
stays readable and shows an empty cell.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import attrgetter
from typing import Literal, NamedTuple, cast

from sparse_ir.benchmark.rows import Row

Measure = Literal["nDCG@10", "R@100", "R@1000", "MRR@10"]
Form = Literal["number", "signed", "p", "count"]


class Part(NamedTuple):
    """One value that enters a mean, with the size of its corpus."""

    documents: int
    value: float | None


def mean_of_all(values: Sequence[float | None]) -> float | None:
    """The mean; None if there is no value or one is missing."""
    if not values or None in values:
        return None
    return sum(cast("Sequence[float]", values)) / len(values)


def _total(parts: Sequence[Part]) -> float | None:
    total = 0.0
    for part in parts:
        if part.value is None:
            return None
        total += part.value
    return total


def _joint_rate(parts: Sequence[Part]) -> float | None:
    """Documents per second over several corpora: all documents divided by all seconds."""
    documents = 0
    seconds = 0.0
    for part in parts:
        if not part.value:
            return None
        documents += part.documents
        seconds += part.documents / part.value
    return documents / seconds if seconds else None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Column:
    """A value of each cell: its name in the files, and how the tables show it."""

    name: str  # in rows, leaderboard.json and leaderboard.csv
    title: str = ""  # heading in Markdown; neighbours with the same one share a cell; "": not shown
    page_title: str = ""  # heading on the page, where it differs
    hint: str = ""  # explanation of the heading on the page
    latex: str = ""  # heading in the LaTeX table; "": not there
    form: Form = "number"
    digits: int = 4
    joiner: str = " / "  # between neighbours that share a cell
    descending: bool = True  # how the page sorts it first


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeasureColumn(Column):
    """A measure, which rows store as a mean and for each query."""

    measure: str  # for ir_measures; {level} becomes the relevance level where it is not 1
    mteb: str  # name in the files of MTEB
    in_every_row: bool = False  # False: rows that were stored earlier may lack it


@dataclasses.dataclass(frozen=True, kw_only=True)
class CostColumn(Column):
    """What a search costs, computed from a row and combined over several."""

    read: Callable[[Row], float | None]
    total: Callable[[Sequence[Part]], float | None] | None = None  # by default the mean

    def value(self, row: Row) -> float | None:
        """The cost of a row; for a merged row, combined over its parts."""
        parts = []
        for part in row.parts.values():
            parts.append(Part(part.result.dataset.documents, self.read(part)))
        return self.combine(parts)

    def combine(self, parts: Sequence[Part]) -> float | None:
        """The value of several corpora together."""
        if self.total is not None:
            return self.total(parts)
        return mean_of_all(list(map(attrgetter("value"), parts)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class SourceColumn(Column):
    """Where a figure comes from; shown in the files and below the tables of the page."""

    read: Callable[[Row], str | None]


def _latency_column(percentile: str, latex: str = "") -> CostColumn:
    def read(row: Row) -> float | None:
        latencies = row.timing.search_latency_ms or {}
        return latencies.get(percentile)

    return CostColumn(
        name=f"{percentile}_ms",
        title="p50 / p95 / p99 ms",
        page_title="ms p50 / p95 / p99",
        hint="one thread, text to hits; sorted by p50",
        latex=latex,
        digits=1,
        descending=False,
        read=read,
    )


MEASURES: tuple[MeasureColumn, ...] = (
    MeasureColumn(
        name="nDCG@10", title="nDCG@10", measure="nDCG@10", mteb="ndcg_at_10", in_every_row=True
    ),
    MeasureColumn(
        name="R@100",
        title="R@100",
        measure="R{level}@100",
        mteb="recall_at_100",
        in_every_row=True,
    ),
    MeasureColumn(
        name="R@1000",
        title="R@1000",
        measure="R{level}@1000",
        mteb="recall_at_1000",
        in_every_row=True,
    ),
    MeasureColumn(
        name="MRR@10", title="MRR@10", measure="RR{level}@10", mteb="mrr_at_10", in_every_row=True
    ),
)
# The board computes these from all systems of a data set; see ``comparison.Comparison``.
COMPARISON: tuple[Column, ...] = (
    Column(name="low", title="95 %", hint="bootstrap confidence interval", digits=3, joiner="–"),
    Column(name="high", title="95 %", digits=3, joiner="–"),
    Column(name="delta", title="Δ {baseline}", form="signed"),
    Column(name="delta_low"),
    Column(name="delta_high"),
    Column(name="p", form="p"),
    Column(
        name="p_adjusted",
        title="p",
        hint="paired randomization test, Holm-corrected",
        form="p",
        descending=False,
    ),
    Column(name="wins", title="wins / ties / losses", form="count"),
    Column(name="ties", title="wins / ties / losses", form="count"),
    Column(name="losses", title="wins / ties / losses", form="count"),
)
COSTS: tuple[CostColumn, ...] = (
    CostColumn(
        name="query_terms",
        title="terms q / d",
        page_title="query terms",
        hint="per query",
        latex="$|q|$",
        digits=1,
        descending=False,
        read=attrgetter("result.efficiency.mean_query_terms"),
    ),
    CostColumn(
        name="document_terms",
        title="terms q / d",
        page_title="doc. terms",
        hint="per document",
        latex="$|d|$",
        digits=1,
        descending=False,
        read=attrgetter("result.efficiency.mean_document_terms"),
    ),
    CostColumn(
        name="flops",
        title="FLOPS",
        hint="share of the documents that a query term matches, summed over the query",
        latex="FLOPS",
        digits=3,
        descending=False,
        read=attrgetter("result.efficiency.flops"),
    ),
    CostColumn(
        name="index_megabytes",
        title="MB",
        page_title="index MB",
        hint="all Lucene indexes together",
        latex="MB",
        digits=1,
        descending=False,
        read=lambda row: row.result.efficiency.index_bytes / 1e6,
        total=_total,
    ),
    CostColumn(
        name="documents_per_second",
        title="docs/s",
        hint="encoding",
        digits=0,
        read=attrgetter("timing.encode_documents_per_second"),
        total=_joint_rate,
    ),
    _latency_column("p50", latex="p50 ms"),
    _latency_column("p95"),
    _latency_column("p99"),
)
SOURCES: tuple[SourceColumn, ...] = (
    SourceColumn(name="model", read=attrgetter("result.system.model")),
    SourceColumn(name="revision", read=attrgetter("result.system.revision")),
    SourceColumn(name="hash", read=attrgetter("result.system.hash")),
    SourceColumn(name="run_sha256", read=attrgetter("result.run.sha256")),
    SourceColumn(name="commit", read=attrgetter("result.commit")),
    SourceColumn(name="date", read=attrgetter("latest_date")),
    SourceColumn(name="processor", read=attrgetter("processors")),
    SourceColumn(name="command", read=attrgetter("result.command")),
)


def measure_names() -> list[str]:
    """Names of the measure columns, in the order of the tables."""
    return list(map(attrgetter("name"), MEASURES))


def names_for_ir_measures(relevance_level: int = 1) -> dict[str, str]:
    """Column -> measure as ``ir_measures`` names it, under a relevance level.

    The level is that of ``trec_eval -l``: a document of a lower grade is not relevant to recall and
    to the reciprocal rank. nDCG uses the grade itself as the gain, whatever the level.
    """
    level = ""
    if relevance_level != 1:
        level = f"(rel={relevance_level})"
    return {column.name: column.measure.format(level=level) for column in MEASURES}


def summary_columns(measure: str) -> list[Column]:
    """The columns of a table of systems: the measure that orders it comes first."""
    others = list(MEASURES)
    first = others.pop(measure_names().index(measure))
    return [first, *COMPARISON, *others, *COSTS]


def group_by_title(shown: Iterable[Column], *, on_page: bool = False) -> list[list[Column]]:
    """Columns with a title, neighbours with the same title together: they share one cell."""
    groups: list[list[Column]] = []
    last_title = ""
    for column in shown:
        title = column.title
        if on_page and column.page_title:
            title = column.page_title
        if title and title == last_title:
            groups[-1].append(column)
        elif title:
            groups.append([column])
        last_title = title
    return groups


def describe_for_page(measure: str, baseline: str) -> Sequence[Mapping[str, object]]:
    """The columns of the page's table of systems, as its script reads them."""
    described = []
    for group in group_by_title(summary_columns(measure), on_page=True):
        first = group[0]
        title = first.page_title or first.title
        described.append(
            {
                "title": title.format(baseline=baseline),
                "hint": first.hint or None,
                "form": first.form,
                "digits": first.digits,
                "joiner": first.joiner,
                "descending": first.descending,
                "names": list(map(attrgetter("name"), group)),
            }
        )
    return described
