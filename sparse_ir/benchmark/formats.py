"""The leaderboard as Markdown, CSV and LaTeX."""

from __future__ import annotations

import csv
import dataclasses
import functools
import importlib.resources
import io
import re
from collections.abc import Sequence

import jinja2

from sparse_ir.benchmark import columns
from sparse_ir.benchmark.board import LEVEL, Board
from sparse_ir.benchmark.columns import Column

_MISSING = "–"
_SMALLEST_P = 0.0001
_MARKS = {1: " ▲", -1: " ▼", 0: ""}
_LATEX_MARKS = {1: r"$^{\uparrow}$", -1: r"$^{\downarrow}$", 0: ""}
_LATEX_SIGNS = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}


def format_markdown(board: Board) -> str:
    """The whole leaderboard as Markdown: systems, data sets, published figures, and notes."""
    parts = ["# Leaderboard"]
    summary = format_summary(board)
    if summary:
        parts.append(summary)
    parts += ["## Data sets", format_datasets(board)]
    if board.published:
        parts += ["## Published elsewhere, not measured here", _format_published(board)]
    parts.append("\n".join(map("* {}".format, board.notes)))
    return "\n\n".join(parts) + "\n"


def format_summary(board: Board) -> str:
    """One Markdown table with a line for each system: its means and what a search costs.

    Empty if no data set has all systems.
    """
    groups = columns.group_by_title(columns.summary_columns(board.measure))
    baseline = _escape_markdown(board.baseline)
    lines = [["system", *(group[0].title.format(baseline=baseline) for group in groups)]]
    for entry in board.systems:
        if entry.mean is None:
            continue
        line = [_escape_markdown(entry.name)]
        for group in groups:
            first = group[0]
            values = [entry.mean.value(column.name) for column in group]
            if first.form != "number" and None in values:
                line.append("")  # the baseline is not compared with itself
            else:
                line.append(first.joiner.join(_format_value(value, first) for value in values))
        lines.append(line)
    return _markdown_table(lines) if len(lines) > 1 else ""


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
    lines = [[board.measure, *map(_escape_markdown, board.datasets)]]
    for entry in board.systems:
        line = [_escape_markdown(entry.name)]
        for name in board.datasets:
            cell = entry.datasets.get(name)
            if cell is None:
                line.append(_MISSING)
            else:
                value = _format_number(cell.value(board.measure))
                line.append(value + _MARKS[cell.standing.verdict(LEVEL)])
        lines.append(line)
    return _markdown_table(lines)


def _format_published(board: Board) -> str:
    names = []
    for name in board.datasets:
        if any(name in record.values for record in board.published):
            names.append(name)
    header = [board.measure, "kind", *map(_escape_markdown, names), "mean", "status", "source"]
    lines = [header]
    for record in board.published:
        line = [record.system, record.kind]
        line += [_format_number(record.values.get(name)) for name in names]
        line += [_format_number(record.mean), record.status, record.stated_in]
        lines.append(line)
    return _markdown_table(lines)


def _format_number(value: float | None) -> str:
    return _MISSING if value is None else f"{value:.4f}"


def _markdown_table(lines: Sequence[Sequence[str]]) -> str:
    """The lines as a table; the first one is its header."""
    header, *others = lines
    rule = ["---"] + ["---:"] * (len(header) - 1)
    return "\n".join(f"| {' | '.join(line)} |" for line in (header, rule, *others))


def _escape_markdown(text: str) -> str:
    return re.sub(r"([\\`*_\[\]<>|])", r"\\\1", text)


def format_csv(board: Board) -> str:
    """One line for each system and data set, and for its mean, with unrounded values.

    Published figures have the ``origin`` "published".
    """
    header = ["origin", "system", "kind", "dataset"]
    for column in (*columns.MEASURES, *columns.COMPARISON, *columns.COSTS, *columns.SOURCES):
        header.append(column.name)
    header += ["status", "source", "note"]
    stream = io.StringIO()
    writer = csv.DictWriter(stream, header, lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    for entry in board.systems:
        facts: dict[str, object] = {"system": entry.name, "kind": entry.kind}
        for name, cell in entry.cells().items():
            values = cell.measures | dataclasses.asdict(cell.standing) | cell.efficiency
            own = facts | values | (cell.provenance or {})
            writer.writerow(own | {"origin": "measured", "dataset": name})
    for record in board.published:
        facts = dataclasses.asdict(record) | {"origin": "published"}
        for name, value in record.values.items():
            writer.writerow(facts | {"dataset": name, board.measure: value})
    return stream.getvalue()


def format_latex(board: Board) -> str:
    """A LaTeX table for the package booktabs: values times 100, costs, and arrows for p < 0.05.

    The best of our systems in a column is bold.
    """
    names = list(board.datasets)
    if board.common:
        names.append("mean")
    best = dict.fromkeys(names, "")
    for entry in board.systems:
        for name, cell in entry.cells().items():
            best[name] = max(best[name], _format_number(cell.value(board.measure)))
    return _latex_template().render(
        board=board,
        names=names,
        costs=[column for column in columns.summary_columns(board.measure) if column.latex],
        best=best,
        marks=_LATEX_MARKS,
        level=LEVEL,
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
    environment.filters["number"] = _format_number
    environment.filters["cost"] = _format_value
    path = importlib.resources.files("sparse_ir") / "resources" / "leaderboard.tex"
    return environment.from_string(path.read_text(encoding="utf-8"))


def _escape_latex(text: str) -> str:
    escaped = ""
    for sign in text:
        if sign in "\\~^&%$#_{}":
            sign = _LATEX_SIGNS.get(sign, f"\\{sign}")
        escaped += sign
    return escaped
