"""The leaderboard as Markdown, CSV and LaTeX."""

from __future__ import annotations

import csv
import functools
import importlib.resources
import io
import re
from collections.abc import Iterable, Sequence

import jinja2

from sparse_ir.benchmark import columns
from sparse_ir.benchmark.board import LEVEL, Board, Cell, Entry, PublishedEntry
from sparse_ir.benchmark.columns import Column

_MISSING = "–"
_SMALLEST_P = 0.0001
_MARKS = {1: " ▲", -1: " ▼", 0: ""}
_LATEX_MARKS = {1: r"$^{\uparrow}$", -1: r"$^{\downarrow}$", 0: ""}
_LATEX_SIGNS = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}


def format_markdown(board: Board) -> str:
    """The whole leaderboard as Markdown: systems, data sets, published figures, and notes."""
    parts = [
        "# Leaderboard",
        format_summary(board),
        "## Data sets",
        format_datasets(board),
        _format_published(board),
        "\n".join(f"* {note}" for note in board.notes),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def format_summary(board: Board) -> str:
    """One Markdown table with a line for each system: its means and what a search costs.

    Empty if no data set has all systems.
    """
    groups = columns.group_by_title(columns.summary_columns(board.measure))
    baseline = _escape_markdown(board.baseline)
    header = ["system"]
    for group in groups:
        header.append(group[0].title.format(baseline=baseline))
    lines = []
    for entry in board.systems:
        if entry.mean is not None:
            cells = [_format_group(entry.mean, group) for group in groups]
            lines.append([_escape_markdown(entry.name), *cells])
    if not lines:
        return ""
    return _markdown_table(header, lines)


def _format_group(cell: Cell, group: Sequence[Column]) -> str:
    """The values of columns that share a cell."""
    first = group[0]
    values = [cell.value(column.name) for column in group]
    if first.form != "number" and None in values:
        return ""  # the baseline is not compared with itself
    shown = [_format_value(value, first) for value in values]
    return first.joiner.join(shown)


def _format_value(value: float | None, column: Column) -> str:
    if value is None:
        return _MISSING
    if column.form == "signed":
        return f"{value:+.{column.digits}f}"
    if column.form == "count":
        return str(int(value))
    if column.form == "p" and value < _SMALLEST_P:
        return f"< {_SMALLEST_P}"
    return f"{value:.{column.digits}f}"


def format_datasets(board: Board) -> str:
    """One Markdown table with a line for each system: its measure on each data set.

    ▲ and ▼ mark values that differ significantly from those of the baseline.
    """
    header = [board.measure]
    header.extend(_escape_markdown(name) for name in board.datasets)
    lines = []
    for entry in board.systems:
        line = [_escape_markdown(entry.name)]
        for name in board.datasets:
            line.append(_format_marked(entry.datasets.get(name), board.measure))
        lines.append(line)
    return _markdown_table(header, lines)


def _format_marked(cell: Cell | None, measure: str) -> str:
    if cell is None:
        return _MISSING
    return _format_number(cell.value(measure), 4) + _MARKS[cell.standing.verdict(LEVEL)]


def _format_published(board: Board) -> str:
    if not board.published:
        return ""
    names = []
    for name in board.datasets:
        if any(name in record.values for record in board.published):
            names.append(name)
    escaped = [_escape_markdown(name) for name in names]
    header = [board.measure, "kind", *escaped, "mean", "status", "source"]
    lines = []
    for record in board.published:
        line = [record.system, record.kind]
        line.extend(_format_number(record.values.get(name), 4) for name in names)
        line.extend([_format_number(record.mean, 4), record.status, _format_source(record)])
        lines.append(line)
    return f"## Published elsewhere, not measured here\n\n{_markdown_table(header, lines)}"


def _format_source(record: PublishedEntry) -> str:
    if record.note:
        return f"{record.source}; {record.note}"
    return record.source


def _format_number(value: float | None, digits: int) -> str:
    if value is None:
        return _MISSING
    return f"{value:.{digits}f}"


def _markdown_table(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rule = ["---"] + ["---:"] * (len(header) - 1)
    return "\n".join(f"| {' | '.join(line)} |" for line in (header, rule, *lines))


def _escape_markdown(text: str) -> str:
    return re.sub(r"([\\`*_\[\]<>|])", r"\\\1", text)


def format_csv(board: Board) -> str:
    """One line for each system and data set, and for its mean, with unrounded values.

    Published figures have the ``origin`` "published".
    """
    shown = [*columns.MEASURES, *columns.COMPARISON, *columns.COSTS]
    numbers = [column.name for column in shown]
    sources = [column.name for column in columns.SOURCES]
    header = ["origin", "system", "kind", "dataset", *numbers, *sources]
    header.extend(["status", "source", "note"])
    stream = io.StringIO()
    writer = csv.DictWriter(stream, header, lineterminator="\n")
    writer.writeheader()
    for entry in board.systems:
        for name, cell in entry.cells().items():
            line: dict[str, object] = {
                "origin": "measured",
                "system": entry.name,
                "kind": entry.kind,
                "dataset": name,
            }
            line |= {number: cell.value(number) for number in numbers}
            provenance = cell.provenance or {}
            line |= {source: provenance.get(source) for source in sources}
            writer.writerow(line)
    for record in board.published:
        for name, value in record.values.items():
            writer.writerow(
                {
                    "origin": "published",
                    "system": record.system,
                    "kind": record.kind,
                    "dataset": name,
                    board.measure: value,
                    "status": record.status,
                    "source": record.source,
                    "note": record.note,
                }
            )
    return stream.getvalue()


def format_latex(board: Board) -> str:
    """A LaTeX table for the package booktabs: values times 100, costs, and arrows for p < 0.05.

    The best of our systems in a column is bold.
    """
    names = list(board.datasets)
    if board.common:
        names.append("mean")
    costs = [column for column in columns.summary_columns(board.measure) if column.latex]
    best = {name: _best_value(board, name) for name in names}
    systems = []
    for entry in board.systems:
        cells = entry.cells()
        line = [_escape_latex(entry.name)]
        line.extend(_latex_measure(cells.get(name), board.measure, best[name]) for name in names)
        line.extend(_latex_costs(entry, costs))
        systems.append(line)
    published = [_latex_published(record, names, len(costs)) for record in board.published]
    return _latex_template().render(
        measure=board.measure,
        names=names,
        costs=costs,
        systems=systems,
        published=published,
        sources=[f"{record.system}: {_format_source(record)}" for record in board.published],
    )


@functools.cache
def _latex_template() -> jinja2.Template:
    """The table's template; its signs for Jinja are those that LaTeX does not use."""
    environment = jinja2.Environment(
        block_start_string="<%",
        block_end_string="%>",
        variable_start_string="<<",
        variable_end_string=">>",
        comment_start_string="<#",
        comment_end_string="#>",
        trim_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
        autoescape=False,  # names are escaped for LaTeX by a filter
    )
    environment.filters["latex"] = _escape_latex
    path = importlib.resources.files("sparse_ir") / "resources" / "leaderboard.tex"
    return environment.from_string(path.read_text(encoding="utf-8"))


def _best_value(board: Board, name: str) -> str:
    values = []
    for entry in board.systems:
        cell = entry.cells().get(name)
        if cell is not None:
            values.append(_format_number(cell.value(board.measure), 4))
    return max(values)


def _latex_measure(cell: Cell | None, measure: str, best: str) -> str:
    if cell is None:
        return "--"
    value = cell.value(measure)
    text = _format_percent(value)
    if _format_number(value, 4) == best:
        text = f"\\textbf{{{text}}}"
    return text + _LATEX_MARKS[cell.standing.verdict(LEVEL)]


def _latex_costs(entry: Entry, costs: Sequence[Column]) -> list[str]:
    """The costs in the mean over the data sets, or on the first one if there is no mean."""
    cell = next(iter(entry.cells().values()))
    return [_format_value(cell.value(column.name), column).replace("–", "--") for column in costs]


def _latex_published(record: PublishedEntry, names: Sequence[str], costs: int) -> list[str]:
    line = [_escape_latex(f"{record.system} ({record.status})")]
    for name in names:
        if name == "mean":
            line.append(_format_percent(record.mean))
        else:
            line.append(_format_percent(record.values.get(name)))
    return line + ["--"] * costs


def _format_percent(value: float | None) -> str:
    if value is None:
        return "--"
    return f"{100 * value:.1f}"


def _escape_latex(text: str) -> str:
    return re.sub(r"[\\~^&%$#_{}]", _latex_sign, text)


def _latex_sign(match: re.Match[str]) -> str:
    sign = match[0]
    return _LATEX_SIGNS.get(sign, f"\\{sign}")
