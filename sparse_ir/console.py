"""Reports for human eyes: one fact a line, rows with the same columns as a table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def format_report(report: Mapping[str, Any]) -> str:
    return "\n".join(_lines(report))


def _lines(report: Mapping[str, Any], indent: str = "") -> Iterator[str]:
    """A report for human eyes: a fact a line, rows with the same columns as a table, small leaves
    side by side.
    """
    width = max((len(str(key)) for key in report), default=0)
    for key, value in report.items():
        if isinstance(value, list):
            yield f"{indent}{key}" if value else f"{indent}{key:<{width}}  none"
            for item in value:
                yield from (
                    _lines(item, indent + "  ")
                    if isinstance(item, Mapping)
                    else [f"{indent}  {item}"]
                )
        elif not isinstance(value, Mapping):
            yield f"{indent}{key:<{width}}  {_show(value)}"
        elif not any(isinstance(part, Mapping | list) for part in value.values()):
            yield f"{indent}{key:<{width}}  " + ", ".join(
                f"{name} {_show(part)}" for name, part in value.items()
            )
        elif _is_table(value):
            yield from ("", *(indent + line for line in _table(key, value)), "")
        else:
            yield f"{indent}{key}"
            yield from _lines(value, indent + "  ")


def _is_table(rows: Mapping[str, Any]) -> bool:
    columns = [list(row) for row in rows.values() if isinstance(row, Mapping)]
    return len(columns) == len(rows) > 1 and all(column == columns[0] for column in columns)


def _table(title: str, rows: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    header = [title, *next(iter(rows.values()))]
    body = [[name, *map(_show, row.values())] for name, row in rows.items()]
    widths = [max(len(line[column]) for line in (header, *body)) for column in range(len(header))]
    for line in (header, *body):
        first, *rest = line
        cells = [cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True)]
        yield "  ".join([first.ljust(widths[0]), *cells])


def _show(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        whole = value.is_integer() and abs(value) >= 1
        return (
            str(int(value))
            if whole
            else f"{value:.1g}"
            if 0 < abs(value) < 5e-5
            else f"{value:.4f}"
        )
    return str(value)
