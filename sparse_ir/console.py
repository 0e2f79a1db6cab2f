"""What a person sees: reports as lines and tables, and progress bars."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table
    from rich.text import Text

_TEXT_WIDTH = 110  # of answers where the output is no terminal
_SHOWN_EXPANSIONS = 6
_WIDTH = 10_000  # of output that is not a terminal: no line is wrapped


def format_report(report: Mapping[str, Any]) -> str:
    """A report as text; styled and wrapped if standard output is a terminal."""
    from rich.console import Console

    console = Console(markup=False, emoji=False, highlight=False)
    if not console.is_terminal:
        console.width = _WIDTH
    with console.capture() as captured:
        for part in _parts(report):
            console.print(part)
    return "\n".join(line.rstrip() for line in captured.get().splitlines())


def progress_bar(total: int, shown: bool, **options: Any) -> Any:
    """A bar of tqdm on standard error; shown on a terminal only. ``options`` are tqdm's own."""
    from tqdm import tqdm

    if shown:
        options["disable"] = None  # tqdm then looks whether standard error is a terminal
    else:
        options["disable"] = True
    return tqdm(total=total, **options)


def _parts(report: Mapping[str, Any]) -> Iterator[RenderableType]:
    """Facts in aligned columns, tables, and nested reports, in the order of the report."""
    from rich.padding import Padding
    from rich.table import Table

    def new_facts() -> Table:
        facts = Table.grid("", "", padding=(0, 2, 0, 0))
        facts.columns[0].min_width = max(len(str(key)) for key in report)
        facts.columns[0].no_wrap = True
        return facts

    if not report:
        return
    facts = new_facts()
    for key, value in report.items():
        if not _is_nested(value):
            facts.add_row(str(key), _show(value))
            continue
        yield facts
        facts = new_facts()
        if isinstance(value, list):
            yield str(key)
            for item in value:
                parts = _parts(item) if isinstance(item, Mapping) else [str(item)]
                yield from (Padding(part, (0, 0, 0, 2), expand=False) for part in parts)
        elif _is_table(value):
            yield from ("", _make_table(str(key), value), "")
        else:
            yield str(key)
            yield from (Padding(part, (0, 0, 0, 2), expand=False) for part in _parts(value))
    yield facts


def _is_nested(value: Any) -> bool:
    """Whether a value takes more than one line."""
    if isinstance(value, Mapping):
        return any(isinstance(part, Mapping | list) for part in value.values())
    return isinstance(value, list) and bool(value)


def _is_table(rows: Mapping[str, Any]) -> bool:
    columns = [list(row) for row in rows.values() if isinstance(row, Mapping)]
    return len(columns) == len(rows) > 1 and all(row == columns[0] for row in columns)


def _make_table(title: str, rows: Mapping[str, Mapping[str, Any]]) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(title)
    for column in next(iter(rows.values())):
        table.add_column(str(column), justify="right")
    for name, row in rows.items():
        table.add_row(str(name), *map(_show, row.values()))
    return table


def _show(value: Any) -> str:
    """A value that fits on one line."""
    if value is None:
        return "-"
    if isinstance(value, list):
        return "none"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_show(part)}" for name, part in value.items())
    if isinstance(value, float):
        return _show_number(value)
    return str(value)


def _show_number(value: float) -> str:
    if value.is_integer() and abs(value) >= 1:
        return str(int(value))
    if 0 < abs(value) < 5e-5:
        return f"{value:.1g}"
    return f"{value:.4f}"


def format_answers(answers: Sequence[Mapping[str, Any]]) -> str:
    """The answers of ``search`` or ``demo``: rank, score, title and passage of each hit."""
    console = _make_console()
    with console.capture() as captured:
        for answer in answers:
            console.print(_answer_heading(answer["question"]))
            console.print(_answer_table(answer["hits"], console.is_terminal))
    return "\n".join(line.rstrip() for line in captured.get().splitlines())


def format_documents(documents: Sequence[Mapping[str, Any]]) -> str:
    """Documents with all their fields, the text last."""
    parts = []
    for document in documents:
        facts = {"doc_id": document["doc_id"], "title": document["title"]} | document["metadata"]
        parts.append(f"{format_report(facts)}\n\n{document['text']}")
    return "\n\n".join(parts)


def _make_console() -> Console:
    """A console that wraps lines, at a fixed width where the output is no terminal."""
    from rich.console import Console

    console = Console(markup=False, emoji=False, highlight=False)
    if not console.is_terminal:
        console.width = _TEXT_WIDTH
    return console


def _answer_heading(question: str) -> Text:
    from rich.text import Text

    return Text(question, style="bold")


def _answer_table(hits: Sequence[Mapping[str, Any]], styled: bool) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    if not hits:
        return "  no document matches\n"
    table = Table.grid(padding=(0, 2, 0, 0), expand=True)
    table.add_column(justify="right")
    table.add_column(justify="right")
    table.add_column(ratio=1)
    for hit in hits:
        lines = [_hit_title(hit, styled)]
        if "snippet" in hit:
            snippet = hit["snippet"]
            lines.append(_highlight(snippet["text"], snippet["highlights"], styled))
            shown = list(snippet["expansions"])[:_SHOWN_EXPANSIONS]
            if shown:
                lines.append(Text(f"by expansion: {', '.join(shown)}", style="dim"))
        body = Text("\n").join(line for line in lines if line)
        body.append("\n")
        table.add_row(str(hit["rank"]), _show_number(hit["score"]), body)
    return table


def _hit_title(hit: Mapping[str, Any], styled: bool) -> Text:
    from rich.text import Text

    if not hit.get("title"):
        return Text(hit["doc_id"], style="bold")
    spans = hit["snippet"]["title_highlights"]
    title = _highlight(hit["title"], spans, styled)
    title.stylize("bold")
    title.append(f"  {hit['doc_id']}", style="dim")
    return title


def _highlight(text: str, spans: Sequence[Sequence[int]], styled: bool) -> Text:
    """A text on one line with its highlights in colour, or between asterisks."""
    from rich.text import Text

    marked = Text()
    mark = "" if styled else "**"
    reached = 0
    for start, end in spans:
        marked.append(_on_one_line(text[reached:start]))
        marked.append(f"{mark}{text[start:end]}{mark}", style="bold yellow")
        reached = end
    marked.append(_on_one_line(text[reached:]))
    return marked


def _on_one_line(text: str) -> str:
    return re.sub(r"\s+", " ", text)
