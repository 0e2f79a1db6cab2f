"""An explanation for human eyes: tables for a terminal, and one HTML page that holds all it needs.

Texts and terms come from anybody's corpus: in the terminal they are printed as they are, without
markup; in the page every one of them is escaped, and the page has no script.
"""

from __future__ import annotations

import importlib.resources
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

SHOWN_DIFFERENCES = 12  # terms of a comparison in the terminal
_TERMINAL_WIDTH = 110  # where the output is no terminal
_BAR = 24  # characters of the longest bar
_PLACE = "@BODY@"


def format_terminal(report: Mapping[str, Any]) -> str:
    """Tables of rich, one for each document and each comparison; with colours where the output is a
    terminal.
    """
    from rich.console import Console

    console = Console(markup=False, emoji=False, highlight=False)
    if not console.is_terminal:
        console = Console(markup=False, emoji=False, highlight=False, width=_TERMINAL_WIDTH)
    with console.capture() as captured:
        for part in _parts(report):
            console.print(part)
    return "\n".join(line.rstrip() for line in captured.get().splitlines())


def _parts(report: Mapping[str, Any]) -> Iterator[Any]:
    yield f"query: {report['query']}"
    yield "terms: " + (
        ", ".join(
            f"{term} {_weight(facts):g}{' +q' if facts['in_query'] is False else ''}"
            for term, facts in report["query_terms"].items()
        )
        or "none"
    )
    if report["lost_in_query"]:
        yield "rounded to 0 in the query: " + ", ".join(report["lost_in_query"])
    if not report["documents"]:
        yield "no document matches"
    for document in report["documents"]:
        yield from _title(headline(document))
        yield _document_table(document)
        if document["without"]:
            yield f"  without: {', '.join(document['without'])}"
        yield from _lost_lines(document)
    for comparison in report["comparisons"]:
        yield from _title(verdict(comparison))
        yield _comparison_table(comparison)
    if any(mark(facts) for of in report["documents"] for facts in of["terms"].values()):
        yield "\n+q, +d: an expansion, absent from the text of the query, or of the document"


def _title(text: str) -> Iterator[Any]:
    from rich.text import Text

    yield from ("", Text(text, style="bold"))


def _document_table(document: Mapping[str, Any]) -> Any:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for name in ("term", "", "query", "document", "contribution", "share"):
        table.add_column(name, justify="left" if name in ("term", "") else "right")
    table.add_column("")
    largest = max((facts["contribution"] for facts in document["terms"].values()), default=1.0)
    for term, facts in document["terms"].items():
        bar = "█" * max(1, round(_BAR * facts["contribution"] / largest))
        table.add_row(
            term,
            mark(facts),
            show(facts["query"]),
            show(facts["document"]),
            show(facts["contribution"]),
            f"{facts['share']:.1%}",
            bar,
        )
    table.add_row("sum", "", "", "", show(document["sum_of_contributions"]), "", "", style="bold")
    return table


def _lost_lines(document: Mapping[str, Any]) -> Iterator[str]:
    if "score_before_rounding" in document:
        yield f"  before rounding and pruning: {document['score_before_rounding']:.2f}"
        for term, facts in document["lost"].items():
            yield f"  lost: {term}, {facts['would_add']:+.2f} ({facts['reason']})"


def _comparison_table(comparison: Mapping[str, Any]) -> Any:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("term")
    for name in (comparison["above"], comparison["below"], "difference"):
        table.add_column(name, justify="right")
    shown = list(comparison["terms"].items())
    for term, facts in shown[:SHOWN_DIFFERENCES]:
        table.add_row(
            term, show(facts["above"]), show(facts["below"]), _signed(facts["difference"])
        )
    if rest := [facts["difference"] for _, facts in shown[SHOWN_DIFFERENCES:]]:
        table.add_row(f"{len(rest)} more", "", "", _signed(sum(rest)))
    table.add_row("sum", "", "", _signed(comparison["difference"]), style="bold")
    return table


def headline(document: Mapping[str, Any]) -> str:
    """Rank, id and score of a document."""
    rank = f"{document['rank']}. " if document["rank"] else ""
    return f"{rank}{document['doc_id']}, score {show(document['score'])}"


def verdict(comparison: Mapping[str, Any]) -> str:
    """Why one document is above another, in a sentence."""
    why = (
        f"by {show(comparison['difference'])}"
        if comparison["decided_by"] == "score"
        else "with the same score, by the tie rule: the higher doc_id first"
    )
    return f"{comparison['above']} is above {comparison['below']} {why}"


def mark(facts: Mapping[str, Any]) -> str:
    """Signs of an expansion: of the query, of the document."""
    return " ".join(
        sign for sign, key in (("+q", "in_query"), ("+d", "in_document")) if facts[key] is False
    )


def _weight(facts: Mapping[str, Any]) -> float:
    """What the query encoder gave a term; for BM25 how often the query has it."""
    return round(facts["weight"] if facts["encoder_weight"] is None else facts["encoder_weight"], 2)


def show(value: float) -> str:
    """A whole number as one, any other with four decimals."""
    return f"{value:.0f}" if float(value).is_integer() else f"{value:.4f}"


def _signed(value: float) -> str:
    return ("+" if value > 0 else "") + show(value)


def format_page(
    report: Mapping[str, Any],
    asked: Sequence[tuple[str, int, int]],
    texts: Mapping[str, str],
    places: Mapping[str, Sequence[tuple[str, int, int]] | None],
) -> str:
    """The page: query, documents with their texts shaded by what each term adds, tables, and
    comparisons.

    ``asked`` and ``places`` (by doc_id): terms that stand in the query and in the texts, with their
    characters.
    """
    template = (
        importlib.resources.files("sparse_ir")
        .joinpath("resources/explanation.html")
        .read_text(encoding="utf-8")
    )
    weights = {term: _weight(facts) for term, facts in report["query_terms"].items()}
    parts = [
        f'<p class="query">{_shaded(report["query"], asked, weights)}</p>',
        _query_chips(report),
        *(
            _document_section(
                document, texts.get(document["doc_id"]), places.get(document["doc_id"]) or []
            )
            for document in report["documents"]
        ),
        *(_comparison_section(comparison) for comparison in report["comparisons"]),
    ]
    if not report["documents"]:
        parts.append("<p>No document matches.</p>")
    return template.replace(_PLACE, "\n".join(parts), 1)


def _query_chips(report: Mapping[str, Any]) -> str:
    chips = [
        f"<li{_expansion(facts['in_query'])}>{escape(term)} <b>{_weight(facts):g}</b></li>"
        for term, facts in report["query_terms"].items()
    ]
    chips += [
        f'<li class="lost" title="rounds to 0">{escape(term)}</li>'
        for term in report["lost_in_query"]
    ]
    return f'<ul class="chips">{"".join(chips)}</ul>'


def _expansion(stands_in: bool | None) -> str:
    return ' class="expansion" title="does not stand in the text"' if stands_in is False else ""


def _document_section(
    document: Mapping[str, Any], text: str | None, places: Sequence[tuple[str, int, int]]
) -> str:
    parts = {term: facts["contribution"] for term, facts in document["terms"].items()}
    largest = max(parts.values(), default=1.0)
    lines = [
        _table_line(
            [
                _term_cell(term, mark(facts)),
                show(facts["query"]),
                show(facts["document"]),
                show(facts["contribution"]),
                f"{facts['share']:.1%}",
                f'<i class="bar" style="width:{100 * facts["contribution"] / largest:.1f}%"></i>',
            ]
        )
        for term, facts in document["terms"].items()
    ]
    lines.append(
        _table_line(["sum", "", "", show(document["sum_of_contributions"]), "", ""], "total")
    )
    header = ["term", "query", "document", "contribution", "share", ""]
    shown = f'<p class="text">{_shaded(text, places, parts)}</p>' if text is not None else ""
    without = (
        f'<p class="quiet">Without {escape(", ".join(document["without"]))}.</p>'
        if document["without"]
        else ""
    )
    return (
        f"<section><h2>{escape(headline(document))}</h2>{shown}{_table(header, lines)}{without}"
        f"{_lost_list(document)}</section>"
    )


def _lost_list(document: Mapping[str, Any]) -> str:
    if "score_before_rounding" not in document:
        return ""
    lines = [
        f"<li>{escape(term)}: {facts['would_add']:+.2f}, {escape(facts['reason'])}</li>"
        for term, facts in document["lost"].items()
    ]
    return (
        '<p class="quiet">Before rounding and pruning the score was '
        f"{document['score_before_rounding']:.2f}."
        f"{' Lost:' if lines else ' No term was lost.'}</p><ul "
        f'class="quiet">{"".join(lines)}</ul>'
    )


def _comparison_section(comparison: Mapping[str, Any]) -> str:
    terms = comparison["terms"]
    largest = max((abs(facts["difference"]) for facts in terms.values()), default=0.0) or 1.0
    lines = []
    for term, facts in terms.items():
        width = 50 * abs(facts["difference"]) / largest
        side, sign = ("left", "win") if facts["difference"] >= 0 else ("right", "loss")
        style = f"width:{width:.1f}%;{side}:50%"
        bar = f'<span class="both"><i class="{sign}" style="{style}"></i></span>'
        lines.append(
            _table_line(
                [
                    escape(term),
                    show(facts["above"]),
                    show(facts["below"]),
                    _signed(facts["difference"]),
                    bar,
                ]
            )
        )
    lines.append(_table_line(["sum", "", "", _signed(comparison["difference"]), ""], "total"))
    header = ["term", comparison["above"], comparison["below"], "difference", ""]
    return f"<section><h2>{escape(verdict(comparison))}</h2>{_table(header, lines)}</section>"


def _table(header: Sequence[str], lines: Sequence[str]) -> str:
    heads = "".join(f'<th scope="col">{escape(name)}</th>' for name in header)
    body = "".join(lines)
    table = f"<table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="scroll">{table}</div>'


def _table_line(cells: Sequence[str], kind: str = "") -> str:
    """A line of cells that are HTML already; the first is its head."""
    rest = "".join(f"<td>{cell}</td>" for cell in cells[1:])
    return f'<tr class="{kind}"><th scope="row">{cells[0]}</th>{rest}</tr>'


def _term_cell(term: str, signs: str) -> str:
    return escape(term) + (
        ' <small title="an expansion: not in the text of the query (q), or of '
        'the document (d)">'
        f"{signs}</small>"
        if signs
        else ""
    )


def _shaded(text: str, places: Sequence[tuple[str, int, int]], parts: Mapping[str, float]) -> str:
    """The text with each term that adds something marked, the darker the more."""
    largest, done, pieces = max(parts.values(), default=1.0), 0, []
    for term, start, end in places:
        if parts.get(term) and done <= start < end:
            strength = 0.12 + 0.6 * parts[term] / largest
            title = f"{escape(term)}: {show(parts[term])}"
            pieces += [
                escape(text[done:start]),
                (
                    f'<mark style="--strength:{strength:.2f}" '
                    f'title="{title}">{escape(text[start:end])}</mark>'
                ),
            ]
            done = end
    return "".join([*pieces, escape(text[done:])])
