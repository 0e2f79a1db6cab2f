"""What a person sees: reports as lines and tables, progress, and the log."""

from __future__ import annotations

import contextlib
import datetime
import json
import logging
import os
import re
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, Self

from sparse_ir.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table
    from rich.text import Text

SECONDS_BETWEEN_LINES = 5.0  # of progress in a log; the variable SPARSE_IR_LOG_SECONDS changes it
_PROGRESS_LOG = logging.getLogger("sparse_ir.progress")
logging.getLogger("sparse_ir").addHandler(logging.NullHandler())  # silent unless configured

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


class ProgressBar(Protocol):
    """What long work reports to; a context manager."""

    def update(self, count: int = 1) -> Any:
        """Report that this number of items was finished."""

    def __enter__(self) -> Any: ...

    def __exit__(self, *details: object) -> Any: ...


def progress_bar(
    total: int | None, shown: bool, *, desc: str, unit: str, initial: int = 0
) -> ProgressBar:
    """Progress on standard error: a bar on a terminal, else a logged line every few seconds.

    ``total``: None where it is not known. ``unit`` names the items, such as " documents".
    """
    if shown and sys.stderr.isatty():
        from tqdm import tqdm

        bar: ProgressBar = tqdm(
            total=total, desc=desc, unit=unit, initial=initial, dynamic_ncols=True
        )
        return bar
    return _LoggedProgress(total, desc, unit.strip(), initial, shown)


class _LoggedProgress:
    """Logs a line every few seconds, and a last one; short work logs nothing."""

    def __init__(self, total: int | None, task: str, unit: str, initial: int, shown: bool) -> None:
        self._total = total
        self._task = task
        self._unit = unit
        self._initial = initial
        self._shown = shown
        self._interval = _seconds_between_lines()
        self._done = initial
        self._started = time.monotonic()
        self._logged = self._started
        self._lock = threading.Lock()

    def update(self, count: int = 1) -> None:
        """Count finished items; log if the last line is some seconds old."""
        with self._lock:
            self._done += count
            now = time.monotonic()
            if self._shown and now - self._logged >= self._interval:
                self._log(now)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *details: object) -> None:
        if self._logged > self._started and details[0] is None:
            self._log(time.monotonic())

    def _log(self, now: float) -> None:
        self._logged = now
        seconds = max(now - self._started, 1e-9)
        rate = (self._done - self._initial) / seconds
        facts = {
            "task": self._task,
            "unit": self._unit,
            "done": self._done,
            "total": self._total,
            "seconds": round(seconds, 1),
            "per_second": round(rate, 2),
            "seconds_left": None,
        }
        if self._total is not None and rate:
            facts["seconds_left"] = round(max(self._total - self._done, 0) / rate)
        _PROGRESS_LOG.info(_describe_progress(facts), extra={"facts": facts})


def _seconds_between_lines() -> float:
    text = os.environ.get("SPARSE_IR_LOG_SECONDS")
    if text is None:
        return SECONDS_BETWEEN_LINES
    if not text.isdecimal():
        raise ConfigError(f"SPARSE_IR_LOG_SECONDS is {text!r}; it must be a whole number")
    return float(text)


def _describe_progress(facts: Mapping[str, Any]) -> str:
    """Such as ``encoding: 3,072 of 73,000 documents (4 %), 12.5 per second, 93 min left``."""
    done = f"{facts['done']:,}"
    if facts["total"]:
        share = 100 * facts["done"] // facts["total"]
        done = f"{done} of {facts['total']:,} {facts['unit']} ({share} %)"
    else:
        done = f"{done} {facts['unit']}"
    text = f"{facts['task']}: {done}, {facts['per_second']:,.4g} per second"
    left = facts["seconds_left"]
    if left is not None and left < 120:
        text += f", {left} s left"
    elif left is not None:
        text += f", {round(left / 60)} min left"
    return text


class _JsonFormatter(logging.Formatter):
    """One JSON object per line; the facts of a progress line are fields of their own."""

    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
        fields = {
            "time": moment.isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        fields |= getattr(record, "facts", {})
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return json.dumps(fields)


@contextlib.contextmanager
def logging_to_stderr(*, verbose: bool, quiet: bool, as_json: bool) -> Iterator[None]:
    """Print what this package logs on standard error, as the shell's commands do.

    Progress is logged at the level INFO, single steps at DEBUG (``verbose``).
    """
    logger = logging.getLogger("sparse_ir")
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    if as_json:
        handler.setFormatter(_JsonFormatter())
    previous = logger.level
    level = logging.INFO
    if verbose:
        level = logging.DEBUG
    elif quiet:
        level = logging.WARNING
    logger.addHandler(handler)
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(previous)


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


def format_demo(report: Mapping[str, Any]) -> str:
    """The figures of the demo, its answers, and the command to ask a question of one's own."""
    figures = {key: value for key, value in report.items() if key not in ("answers", "ask")}
    answers = format_answers(report["answers"])
    return (
        f"{format_report(figures)}\n\n{answers}\n\nAsk a question of your own:\n  {report['ask']}"
    )


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
