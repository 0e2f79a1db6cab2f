"""An explanation for people: tables for a terminal, and one HTML page that holds all it needs.

Texts and terms come from any corpus: the terminal prints them without markup; the page escapes
every one of them (Jinja2's autoescape) and has no script.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import jinja2
    from rich.table import Table
    from rich.text import Text

SHOWN_DIFFERENCES = 12  # terms of a comparison in the terminal
_TERMINAL_WIDTH = 110  # where the output is no terminal
_BAR = 24  # characters of the longest bar

Place = tuple[str, int, int]  # a term, its first character in a text, and the one after it


def format_terminal(report: Mapping[str, Any]) -> str:
    """A table for each document and each comparison; with colours on a terminal."""
    from rich.console import Console

    console = Console(markup=False, emoji=False, highlight=False)
    if not console.is_terminal:
        console = Console(markup=False, emoji=False, highlight=False, width=_TERMINAL_WIDTH)
    with console.capture() as captured:
        for part in _terminal_parts(report):
            console.print(part)
    return "\n".join(line.rstrip() for line in captured.get().splitlines())


def _terminal_parts(report: Mapping[str, Any]) -> Iterator[str | Text | Table]:
    yield f"query: {report['query']}"
    yield f"terms: {_list_query_terms(report)}"
    if report["lost_in_query"]:
        yield "rounded to 0 in the query: " + ", ".join(report["lost_in_query"])
    if not report["documents"]:
        yield "no document matches"
    has_expansion = False
    for document in report["documents"]:
        yield ""
        yield _bold(headline(document))
        yield _document_table(document)
        if document["without"]:
            yield f"  without: {', '.join(document['without'])}"
        if "score_before_rounding" in document:
            yield f"  before rounding and pruning: {document['score_before_rounding']:.2f}"
            for line in _lost_lines(document):
                yield f"  lost: {line}"
        has_expansion = has_expansion or any(map(mark, document["terms"].values()))
    for comparison in report["comparisons"]:
        yield ""
        yield _bold(verdict(comparison))
        yield _comparison_table(comparison)
    if has_expansion:
        yield "\n+q, +d: an expansion, absent from the text of the query or of the document"


def _list_query_terms(report: Mapping[str, Any]) -> str:
    terms = []
    for term, facts in report["query_terms"].items():
        sign = " +q" if facts["in_query"] is False else ""
        terms.append(f"{term} {_weight(facts):g}{sign}")
    return ", ".join(terms) or "none"


def _bold(text: str) -> Text:
    from rich.text import Text

    return Text(text, style="bold")


def _document_table(document: Mapping[str, Any]) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("term")
    table.add_column("")
    for name in ("query", "document", "contribution", "share"):
        table.add_column(name, justify="right")
    table.add_column("")
    largest = _largest_contribution(document)
    for term, facts in document["terms"].items():
        bar = "█" * max(1, round(_BAR * facts["contribution"] / largest))
        numbers = [show(facts[name]) for name in ("query", "document", "contribution")]
        table.add_row(term, mark(facts), *numbers, f"{facts['share']:.1%}", bar)
    table.add_row("sum", "", "", "", show(document["sum_of_contributions"]), "", "", style="bold")
    return table


def _largest_contribution(document: Mapping[str, Any]) -> float:
    contributions = [facts["contribution"] for facts in document["terms"].values()]
    return max(contributions, default=1.0)


def _lost_lines(document: Mapping[str, Any]) -> list[str]:
    """What rounding and pruning took away, a line for each term."""
    lines = []
    for term, facts in document["lost"].items():
        lines.append(f"{term}, {facts['would_add']:+.2f} ({facts['reason']})")
    return lines


def _comparison_table(comparison: Mapping[str, Any]) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("term")
    for name in (comparison["above"], comparison["below"], "difference"):
        table.add_column(name, justify="right")
    terms = list(comparison["terms"].items())
    for term, facts in terms[:SHOWN_DIFFERENCES]:
        difference = _signed(facts["difference"])
        table.add_row(term, show(facts["above"]), show(facts["below"]), difference)
    rest = [facts["difference"] for _, facts in terms[SHOWN_DIFFERENCES:]]
    if rest:
        table.add_row(f"{len(rest)} more", "", "", _signed(sum(rest)))
    table.add_row("sum", "", "", _signed(comparison["difference"]), style="bold")
    return table


def headline(document: Mapping[str, Any]) -> str:
    """Rank, id and score of a document."""
    rank = f"{document['rank']}. " if document["rank"] else ""
    return f"{rank}{document['doc_id']}, score {show(document['score'])}"


def verdict(comparison: Mapping[str, Any]) -> str:
    """Why one document is above another, in a sentence."""
    reason = "with the same score, by the tie rule: the higher doc_id first"
    if comparison["decided_by"] == "score":
        reason = f"by {show(comparison['difference'])}"
    return f"{comparison['above']} is above {comparison['below']} {reason}"


def mark(facts: Mapping[str, Any]) -> str:
    """Signs of an expansion: of the query, of the document."""
    signs = []
    if facts["in_query"] is False:
        signs.append("+q")
    if facts["in_document"] is False:
        signs.append("+d")
    return " ".join(signs)


def _weight(facts: Mapping[str, Any]) -> float:
    """The weight that the query encoder gave a term; for BM25 how often the query has it."""
    weight = facts["encoder_weight"]
    if weight is None:
        weight = facts["weight"]
    return round(float(weight), 2)


def show(value: float) -> str:
    """A whole number without decimals, any other with four."""
    return f"{value:.0f}" if float(value).is_integer() else f"{value:.4f}"


def _signed(value: float) -> str:
    return ("+" if value > 0 else "") + show(value)


def format_page(
    report: Mapping[str, Any],
    query_places: Sequence[Place],
    texts: Mapping[str, str],
    places: Mapping[str, Sequence[Place] | None],
) -> str:
    """The page: the query, documents with their texts shaded by what each term adds, comparisons.

    ``query_places`` and ``places`` (by doc_id): the terms in the query and in the texts, with their
    characters.
    """
    weights = {}
    query_terms = []
    for term, facts in report["query_terms"].items():
        weights[term] = _weight(facts)
        weight = f"{weights[term]:g}"
        query_terms.append({"name": term, "weight": weight, "in_query": facts["in_query"]})
    documents = []
    for document in report["documents"]:
        doc_id = document["doc_id"]
        documents.append(_page_document(document, texts.get(doc_id), places.get(doc_id) or []))
    return _template().render(
        query_pieces=_shade(report["query"], query_places, weights),
        query_terms=query_terms,
        lost_in_query=list(report["lost_in_query"]),
        documents=documents,
        comparisons=[_page_comparison(comparison) for comparison in report["comparisons"]],
    )


@functools.cache
def _template() -> jinja2.Template:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("sparse_ir", "resources"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    return environment.get_template("explanation.html")


def _page_document(
    document: Mapping[str, Any], text: str | None, places: Sequence[Place]
) -> dict[str, Any]:
    contributions = {}
    lines = []
    largest = _largest_contribution(document)
    for term, facts in document["terms"].items():
        contributions[term] = facts["contribution"]
        lines.append(
            {
                "term": term,
                "mark": mark(facts),
                "query": show(facts["query"]),
                "document": show(facts["document"]),
                "contribution": show(facts["contribution"]),
                "share": f"{facts['share']:.1%}",
                "width": f"{100 * facts['contribution'] / largest:.1f}",
            }
        )
    is_traced = "score_before_rounding" in document
    return {
        "headline": headline(document),
        "pieces": None if text is None else _shade(text, places, contributions),
        "lines": lines,
        "sum": show(document["sum_of_contributions"]),
        "without": ", ".join(document["without"]),
        "before_rounding": f"{document['score_before_rounding']:.2f}" if is_traced else "",
        "lost": _lost_lines(document) if is_traced else [],
    }


def _page_comparison(comparison: Mapping[str, Any]) -> dict[str, Any]:
    differences = [abs(facts["difference"]) for facts in comparison["terms"].values()]
    largest = max(differences, default=0.0) or 1.0
    lines = []
    for term, facts in comparison["terms"].items():
        is_gain = facts["difference"] >= 0
        lines.append(
            {
                "term": term,
                "above": show(facts["above"]),
                "below": show(facts["below"]),
                "difference": _signed(facts["difference"]),
                "sign": "win" if is_gain else "loss",
                "side": "left" if is_gain else "right",
                "width": f"{50 * abs(facts['difference']) / largest:.1f}",
            }
        )
    return {
        "verdict": verdict(comparison),
        "above": comparison["above"],
        "below": comparison["below"],
        "lines": lines,
        "difference": _signed(comparison["difference"]),
    }


class _Piece(NamedTuple):
    """A part of a text; one with a title is marked."""

    text: str
    title: str = ""
    strength: str = ""


def _shade(text: str, places: Sequence[Place], parts: Mapping[str, float]) -> list[_Piece]:
    """The text with each term that adds something marked, the darker the more it adds."""
    largest = max(parts.values(), default=1.0)
    pieces = []
    done = 0
    for term, start, end in places:
        if parts.get(term) and done <= start < end:
            strength = 0.12 + 0.6 * parts[term] / largest
            pieces.append(_Piece(text[done:start]))
            title = f"{term}: {show(parts[term])}"
            pieces.append(_Piece(text[start:end], title, f"{strength:.2f}"))
            done = end
    pieces.append(_Piece(text[done:]))
    return pieces
