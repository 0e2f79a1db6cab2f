"""The leaderboard: measured rows as one table of effectiveness, significance and efficiency, in six formats.

``make_board`` turns rows into plain data, the ``format_*`` functions turn that into text, and the verb ``leaderboard``
writes it all. Published figures stand in a table of their own. It measures nothing.
Next file to read: ``doctor``.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from sparse_ir import benchmarks, files, rows, significance, verbs, webpage
from sparse_ir import published as published_figures
from sparse_ir.errors import ConfigError, DataError
from sparse_ir.rows import COLUMNS, Row

Measure = Literal["nDCG@10", "R@100", "R@1000", "MRR@10"]
Board = dict[str, Any]

LEVEL = 0.05  # adjusted p-values below it are marked
SAMPLES = 20_000  # of the randomization test
_GROUP = "cqadupstack"
_SAME_DATA = ("corpus_sha256", "queries_sha256", "qrels_sha256", "remove_identical", "relevance_level")
_LATENCIES = ("p50_ms", "p95_ms", "p99_ms")
_EFFICIENCY = ("query_terms", "document_terms", "flops", "index_megabytes", "documents_per_second", *_LATENCIES)
_COMPARISON = ("low", "high", "delta", "delta_low", "delta_high", "p", "p_adjusted", "wins", "ties", "losses")
_LATEX_COSTS = {"$|q|$": ("query_terms", 1), "$|d|$": ("document_terms", 1), "FLOPS": ("flops", 3),
                "MB": ("index_megabytes", 1), "p50 ms": ("p50_ms", 1)}
_PROVENANCE = ("model", "revision", "hash", "run_sha256", "commit", "date", "processor", "command")


def leaderboard(
    results: Path, output: Path, *, baseline: str = "bm25", measure: Measure = "nDCG@10",
    published: str = published_figures.DEFAULT, data_dir: Path = Path("data"), queries: int = 40, documents: int = 0,
    verify: bool = False,
) -> verbs.Report:
    """Make one table of all rows: Markdown, CSV, LaTeX, JSON, MTEB's files, and a web page that needs no network.

    Beside each measure stand its confidence interval, the difference to a baseline, how likely chance alone makes one
    as large (corrected for the number of systems), and what a search costs.

    Args:
        results: Folder of rows, as sparse-ir beir writes it.
        output: Folder for leaderboard.md, .csv, .tex, .json, .html, and mteb/.
        baseline: The system that all others are compared with.
        measure: The measure that orders and compares.
        published: Published figures beside ours: default, all, none, or names separated by semicolons.
        data_dir: Folder of the data sets, for the texts on the page; what is not there is shown by its id.
        queries: Queries on the page for each system and data set: those that differ most from the baseline.
        documents: Documents shown of each ranking on the page, with their text.
        verify: Check runs, data sets and all measures first (needs the data); not depth, times, costs or versions.
    """
    results, output, data_dir = Path(results), Path(output), Path(data_dir)
    if min(queries, documents) < 0:
        raise ConfigError(f"{queries} queries and {documents} documents are not allowed; ask for 0 or more")
    verified = rows.verify_rows(results, data_dir) if verify else []
    found = rows.read_rows(results)
    if not found:
        raise DataError(f"{results} holds no row (DATASET/SYSTEM/{rows.RESULT})")
    board = make_board(found, baseline=baseline, measure=measure, published=published)
    details = webpage.collect_queries(merge_forums(found), results, data_dir, baseline, measure, queries, documents)
    texts = {"leaderboard.md": format_markdown(board), "leaderboard.csv": format_csv(board),
             "leaderboard.tex": format_latex(board), "leaderboard.json": files.format_json(board),
             "leaderboard.html": webpage.format_page(board, details),
             **{name: files.format_json(content) for name, content in make_mteb_files(found).items()}}
    for name, text in texts.items():
        with files.atomic_writer(output / name) as stream:
            stream.write(text)
    return {"output": str(output), "files": len(texts), "mean_over": board["common"], "systems": _summary(board),
            "published": len(board["published"]), **({"verified_rows": len(verified)} if verify else {}),
            **({"not_shown": board["not_shown"]} if board["not_shown"] else {})}


# ------------------------------------------------------------------------------------------------ the board as data


def make_board(found: Sequence[Row], *, baseline: str = "bm25", measure: Measure = "nDCG@10",
               published: str = published_figures.DEFAULT) -> Board:
    """Everything that the tables and the page show, as JSON-able data; systems by their mean, the best first.

    ``mean`` is over the data sets that all systems have (``common``): each set counts alike, however many queries it
    has, also in the interval and in the test. A measure that looks deeper than a run goes is None. Raises
    ``ConfigError`` for a baseline without a row, ``DataError`` for two rows of one data set that were measured on
    different data, and for a run that is not as deep as ``measure`` looks.
    """
    grid: dict[str, dict[str, Row]] = {}
    for row in merge_forums(found):
        grid.setdefault(row.dataset, {})[row.system] = row
    systems = {system: row.result["system"] for of in grid.values() for system, row in of.items()}
    if baseline not in systems:
        raise ConfigError(f"the baseline {baseline!r} has no row, allowed: {', '.join(sorted(systems))}")
    datasets = {name: _describe_dataset(list(of.values())) for name, of in grid.items()}
    _check_depths(grid, measure)
    common = [name for name, of in grid.items() if len(of) == len(systems)]
    cells = {name: _make_cells(of, found, measure, baseline) for name, of in grid.items()}
    means = _make_means({name: grid[name] for name in common}, cells, measure, baseline)
    entries = [{"name": system, "kind": facts["kind"], "mean": means.get(system),
                "datasets": {name: of[system] for name, of in cells.items() if system in of}}
               for system, facts in sorted(systems.items())]
    entries.sort(key=lambda entry: -entry["mean"][measure] if entry["mean"] else 0.0)
    whole = [name for name, facts in datasets.items() if _is_whole(name, facts)]
    board = {"measure": measure, "baseline": baseline, "datasets": datasets, "common": common, "systems": entries,
             "published": _place_published(published, measure, whole, common),
             "not_shown": [f"{row.dataset}/{row.system}" for row in found if row.dataset not in grid
                           and row.system not in grid[_GROUP]]}
    return {**board, "notes": _describe(board)}


def merge_forums(found: Sequence[Row]) -> list[Row]:
    """The rows with CQADupStack's forums as one data set, as soon as one system has all twelve; until then singly."""
    merged = rows.merge_groups(found)
    return merged if any(row.dataset == _GROUP for row in merged) else list(found)


def _describe_dataset(of: Sequence[Row]) -> dict[str, Any]:
    first, *others = (row.result["dataset"] for row in of)
    for row, facts in zip(of[1:], others, strict=True):
        if changed := [key for key in _SAME_DATA if facts[key] != first[key]]:
            raise DataError(f"rows {row.dataset}/{of[0].system} and {row.dataset}/{row.system} were measured on "
                            f"different data ({', '.join(changed)}); make one of them again")
    return {key: first[key] for key in ("split", "documents", "queries", "judgements")}


def _check_depths(grid: Mapping[str, Mapping[str, Row]], measure: str) -> None:
    for row in (row for of in grid.values() for row in of.values()):
        if row.shown_measures[measure] is None:
            raise DataError(f"row {row.dataset}/{row.system} has {row.result['run']['hits_per_query']} hits per query, "
                            f"allowed: as many as {measure} looks at; make the row again, or order by another measure")


def _make_cells(of: Mapping[str, Row], found: Sequence[Row], measure: str, baseline: str) -> dict[str, dict[str, Any]]:
    compared = _compare([_strata(of, measure)], baseline)
    return {system: {**row.shown_measures, **compared[system],
                     "efficiency": _efficiency(row, timing := _timing(row, found)),
                     "provenance": _provenance(row, timing)} for system, row in of.items()}


def _timing(row: Row, found: Sequence[Row]) -> dict[str, Any]:
    """What a clock measured; of a row put together from others, the means over these."""
    parts = [other for other in found if other.system == row.system
             and other.dataset in {facts["name"] for facts in row.parts.values()}]
    latencies = [part.timing.get("search_latency_ms") or {} for part in parts]
    rates = [(part.result["dataset"]["documents"], part.timing.get("encode_documents_per_second")) for part in parts]
    return {"documents_per_second": _join_rates(rates),
            **{key: _mean([latency.get(key.removesuffix("_ms")) for latency in latencies]) for key in _LATENCIES},
            "processor": _only([part.timing.get("hardware", {}).get("processor") for part in parts]),
            "date": max((part.timing.get("date") or "" for part in parts), default="") or None}


def _efficiency(row: Row, timing: Mapping[str, Any]) -> dict[str, Any]:
    counted = row.result["efficiency"]
    found = {"query_terms": counted["mean_query_terms"], "document_terms": counted["mean_document_terms"],
             "flops": counted["flops"], "index_megabytes": counted["index_bytes"] / 1e6, **timing}
    return {key: found[key] for key in _EFFICIENCY}


def _provenance(row: Row, timing: Mapping[str, Any]) -> dict[str, Any]:
    found = {**row.result, **row.result["system"], "run_sha256": row.result["run"].get("sha256"), **timing}
    return {key: found.get(key) for key in _PROVENANCE}


def _make_means(grid: Mapping[str, Mapping[str, Row]], cells: Mapping[str, Mapping[str, dict[str, Any]]], measure: str,
                baseline: str) -> dict[str, dict[str, Any]]:
    """System -> its cell over all data sets of ``grid``, in which every system stands; nothing for no data set."""
    if not grid:
        return {}
    systems = next(iter(grid.values()))
    compared = _compare([_strata(of, measure) for of in grid.values()], baseline)
    means = {}
    for system in systems:
        parts = [cells[name][system] for name in grid]
        efficiency = {key: _mean([part["efficiency"][key] for part in parts]) for key in _EFFICIENCY}
        efficiency["index_megabytes"] = sum(part["efficiency"]["index_megabytes"] for part in parts)
        efficiency["documents_per_second"] = _join_rates([
            (of[system].result["dataset"]["documents"], cells[name][system]["efficiency"]["documents_per_second"])
            for name, of in grid.items()])
        means[system] = {**{column: _mean([part[column] for part in parts]) for column in COLUMNS}, **compared[system],
                         "efficiency": efficiency}
    return means


def _strata(of: Mapping[str, Row], measure: str) -> list[dict[str, dict[str, float]]]:
    """A data set as parts whose means count alike, each system -> query_id -> value: a forum each, or the whole set."""
    return [{system: {query_id: value for query_id, value in row.per_query[measure].items()
                      if query_id.startswith(prefix)} for system, row in of.items()}
            for prefix in next(iter(of.values())).parts]


def _compare(datasets: Sequence[Sequence[Mapping[str, Mapping[str, float]]]], baseline: str
             ) -> dict[str, dict[str, Any]]:
    """System -> interval of its mean over data sets, and its comparison with the baseline (None for that one itself).

    ``datasets`` as ``_strata`` gives them: each data set counts alike, and in it each part.
    """
    parts = [part for strata in datasets for part in strata]
    shares = [1 / (len(datasets) * len(strata)) for strata in datasets for _ in strata]
    pooled = {system: _pool([part[system] for part in parts], shares) for system in parts[0]}
    others = {system: values for system, values in pooled.items() if system != baseline and baseline in pooled}
    found = significance.compare(pooled[baseline], others, samples=SAMPLES) if others else {}
    compared = {}
    for system in pooled:
        low, high = _interval([list(part[system].values()) for part in parts], shares)
        compared[system] = {**dict.fromkeys(_COMPARISON), "low": low, "high": high}
        if system in found:
            result = found[system]
            delta_low, delta_high = _interval([[value - part[baseline][query_id] for query_id, value
                                                in part[system].items()] for part in parts], shares)
            compared[system] |= {"delta": result.difference, "delta_low": delta_low, "delta_high": delta_high,
                                 "p": result.p, "p_adjusted": result.p_adjusted, "wins": result.wins,
                                 "ties": result.ties, "losses": result.losses}
    return compared


def _pool(values: Sequence[Mapping[str, float]], shares: Sequence[float]) -> dict[str, float]:
    """All queries of several parts, weighted so that their plain mean is the sum of the parts' means times shares."""
    total = sum(map(len, values))
    return {f"{number}/{query_id}": value * (total * share / len(of))
            for number, (of, share) in enumerate(zip(values, shares, strict=True)) for query_id, value in of.items()}


def _interval(values: Sequence[Sequence[float]], shares: Sequence[float]) -> tuple[float, float]:
    """Bootstrap interval of the sum of several parts' means, each times its share.

    The parts are given, only their queries are drawn: so each value counts by its distance from the mean of its part,
    weighted as in ``_pool``, and the variance of the mean of all is that of drawing within each part.
    """
    total = sum(map(len, values))
    means = [math.fsum(of) / len(of) for of in values]
    middle = math.fsum(mean * share for mean, share in zip(means, shares, strict=True))
    return significance.bootstrap_interval([middle + (value - mean) * (total * share / len(of)) for of, mean, share
                                            in zip(values, means, shares, strict=True) for value in of])


def _is_whole(name: str, facts: Mapping[str, Any]) -> bool:
    return benchmarks.has_published_size(name, facts["documents"], facts["queries"])


def _place_published(names: str, measure: str, datasets: list[str], common: list[str]) -> list[dict[str, Any]]:
    """Published figures of this measure, on our data sets only; a mean only over exactly the sets of our own mean.

    ``datasets`` are those of ours that have the names and the sizes of published ones.
    """
    stated = ["beir-13"] if set(common) == set(benchmarks.BEIR_13) <= set(datasets) else []
    found = []
    for record in published_figures.select(names, [*datasets, *stated]):
        if record.measure == measure:
            values = dict(record.values)
            mean = values.pop("beir-13", None)
            if common and set(common) <= set(values):
                mean = _mean([values[name] for name in common])
            found.append({**record._asdict(), "values": values, "mean": mean})
    return found


def _mean(values: Sequence[float | None]) -> float | None:
    """The mean; None when one value is missing, or all are."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def _join_rates(rates: Sequence[tuple[int, float | None]]) -> float | None:
    """Documents per second over several corpora: all documents over all seconds."""
    if not rates or any(not rate for _, rate in rates):
        return None
    return sum(documents for documents, _ in rates) / sum(documents / rate for documents, rate in rates if rate)


def _only(values: Iterable[str | None]) -> str | None:
    """All different values, in one text."""
    return "; ".join(sorted({value for value in values if value})) or None


# ------------------------------------------------------------------------------------------------ Markdown


def format_markdown(board: Board) -> str:
    """The whole leaderboard as Markdown: summary, data sets, published figures, and how to read them."""
    parts = ["# Leaderboard", format_summary(board), "## Data sets", format_datasets(board), _markdown_published(board),
             "\n".join(f"* {note}" for note in board["notes"])]
    return "\n\n".join(part for part in parts if part) + "\n"


def format_summary(board: Board) -> str:
    """One Markdown table: a line for each system, its means over the data sets in common, and what a search costs.

    Empty when the systems have no data set in common.
    """
    measure, baseline = board["measure"], _escape_markdown(board["baseline"])
    others = [column for column in COLUMNS if column != measure]
    header = ["system", measure, "95 %", f"Δ {baseline}", "p", "wins / ties / losses", *others, "terms q / d", "FLOPS",
              "MB", "docs/s", "p50 / p95 / p99 ms"]
    lines = [[_escape_markdown(entry["name"]), *_summary_cells(entry["mean"], measure, others)]
             for entry in board["systems"] if entry["mean"]]
    return _markdown_table(header, lines) if lines else ""


def _summary_cells(mean: Mapping[str, Any], measure: str, others: Sequence[str]) -> list[str]:
    cost = mean["efficiency"]
    is_baseline = mean["delta"] is None
    return [_show(mean[measure], 4), f"{_show(mean['low'], 3)}–{_show(mean['high'], 3)}",
            "" if is_baseline else f"{mean['delta']:+.4f}", "" if is_baseline else _show_p(mean["p_adjusted"]),
            "" if is_baseline else f"{mean['wins']} / {mean['ties']} / {mean['losses']}",
            *(_show(mean[column], 4) for column in others),
            f"{_show(cost['query_terms'], 1)} / {_show(cost['document_terms'], 1)}", _show(cost["flops"], 3),
            _show(cost["index_megabytes"], 1), _show(cost["documents_per_second"], 0),
            " / ".join(_show(cost[key], 1) for key in _LATENCIES)]


def format_datasets(board: Board) -> str:
    """One Markdown table: a line for each system, its measure on each data set; ▲ and ▼: chance is unlikely."""
    names = list(board["datasets"])
    header = [board["measure"], *map(_escape_markdown, names)]
    lines = [[_escape_markdown(entry["name"]),
              *(_mark(entry["datasets"].get(name), board["measure"]) for name in names)] for entry in board["systems"]]
    return _markdown_table(header, lines)


def _mark(cell: Mapping[str, Any] | None, measure: str) -> str:
    """A figure, with a sign where it differs from the baseline's by more than chance makes likely."""
    return "–" if cell is None else _show(cell[measure], 4) + {1: " ▲", -1: " ▼", 0: ""}[_verdict(cell)]


def _verdict(cell: Mapping[str, Any]) -> int:
    """1 for better than the baseline, -1 for worse, 0 for not known to differ."""
    if cell["p_adjusted"] is None or cell["p_adjusted"] >= LEVEL or not cell["delta"]:
        return 0
    return 1 if cell["delta"] > 0 else -1


def _markdown_published(board: Board) -> str:
    if not board["published"]:
        return ""
    names = [name for name in board["datasets"] if any(name in record["values"] for record in board["published"])]
    header = [board["measure"], "kind", *map(_escape_markdown, names), "mean", "status", "source"]
    lines = [[record["system"], record["kind"], *(_show(record["values"].get(name), 4) for name in names),
              _show(record["mean"], 4), record["status"], "; ".join(filter(None, (record["source"], record["note"])))]
             for record in board["published"]]
    return "## Published elsewhere, not measured here\n\n" + _markdown_table(header, lines)


def _markdown_table(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rule = ["---", *("---:" for _ in header[1:])]
    return "\n".join("| " + " | ".join(line) + " |" for line in (header, rule, *lines))


def _escape_markdown(text: str) -> str:
    return re.sub(r"([\\`*_\[\]<>|])", r"\\\1", text)


def _describe(board: Board) -> list[str]:
    """How to read the figures, in sentences."""
    where = ", ".join(board["common"]) or "none: no data set has all systems"
    cells = [cell for entry in board["systems"] for cell in entry["datasets"].values()]
    machines = _only(cell["provenance"]["processor"] for cell in cells)
    notes = [
        f"Means are over the data sets that all systems have ({where}), each counting alike.",
        (f"95 %: bootstrap interval over queries. p: paired randomization test against {board['baseline']}, corrected "
        f"after Holm over the systems; ▲ and ▼ mark p < {LEVEL:g}."),
        ("Terms and FLOPS are means over queries and documents; MB is the size of the Lucene indexes; docs/s is the "
        f"speed of encoding; latency is from text to hits, on one thread (machine: {machines or 'not recorded'})."),
    ]
    if any(cell[column] is None for cell in cells for column in COLUMNS):
        notes.append("–: some runs have fewer hits per query than this measure looks at, and are not compared by it.")
    for name in (name for name, facts in board["datasets"].items() if not _is_whole(name, facts)):
        documents, queries = benchmarks.SIZES[name]
        notes.append(f"No published figures and no file of MTEB for {name}: it is not the published set of {documents} "
                     f"documents and {queries} queries.")
    if board["published"]:
        notes.append("Published figures are from other people's systems, data and settings: primary was read in the "
                     "source, secondary in a digest or quotation of it.")
    return notes


# ------------------------------------------------------------------------------------------------ CSV and LaTeX


def format_csv(board: Board) -> str:
    """One line for each system and data set, and for its mean; published figures with ``origin`` published."""
    columns = ["origin", "system", "kind", "dataset", *COLUMNS, *_COMPARISON, *_EFFICIENCY, *_PROVENANCE, "status",
               "source", "note"]
    stream = io.StringIO()
    writer = csv.DictWriter(stream, columns, lineterminator="\n")
    writer.writeheader()
    for entry in board["systems"]:
        for name, cell in {"mean": entry["mean"], **entry["datasets"]}.items():
            if cell is not None:
                line = {**cell, **cell["efficiency"], **cell.get("provenance", {})}
                writer.writerow({"origin": "measured", "system": entry["name"], "kind": entry["kind"], "dataset": name,
                                 **{key: value for key, value in line.items() if key in columns}})
    for record in board["published"]:
        for name, value in record["values"].items():
            known = {key: record[key] for key in ("system", "kind", "status", "source", "note")}
            writer.writerow({"origin": "published", "dataset": name, board["measure"]: value, **known})
    return stream.getvalue()


def format_latex(board: Board) -> str:
    """A LaTeX table for the package booktabs: figures times 100, the best of ours bold, arrows for p below 0.05."""
    names = [*board["datasets"], *(["mean"] if board["common"] else [])]
    best = {name: max(_show(cell[board["measure"]], 4) for cell in _column(board, name)) for name in names}
    header = [f"{_escape_latex(board['measure'])} $\\times$ 100", *map(_escape_latex, names), *_LATEX_COSTS]
    lines = ["% needs \\usepackage{booktabs}", f"\\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}", r"\toprule",
             _latex_line(header), r"\midrule"]
    for entry in board["systems"]:
        cells = [_latex_cell((entry["datasets"] | {"mean": entry["mean"]}).get(name), board["measure"], best[name])
                 for name in names]
        cost = (entry["mean"] or next(iter(entry["datasets"].values())))["efficiency"]
        costs = [_show(cost[key], digits).replace("–", "--") for key, digits in _LATEX_COSTS.values()]
        lines.append(_latex_line([_escape_latex(entry["name"]), *cells, *costs]))
    if board["published"]:
        title = r"\emph{published elsewhere, not measured here}"
        lines += [r"\midrule", f"\\multicolumn{{{len(header)}}}{{l}}{{{title}}} \\\\"]
    for record in board["published"]:
        cells = [_percent((record["values"] | {"mean": record["mean"]}).get(name)) for name in names]
        name = _escape_latex(f"{record['system']} ({record['status']})")
        lines.append(_latex_line([name, *cells, *["--"] * len(_LATEX_COSTS)]))
    sources = [f"% {record['system']}: {record['source']}{'; ' if record['note'] else ''}{record['note'] or ''}"
               for record in board["published"]]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", *sources]) + "\n"


def _latex_line(cells: Iterable[str]) -> str:
    return " & ".join(cells) + r" \\"


def _column(board: Board, name: str) -> Iterator[dict[str, Any]]:
    for entry in board["systems"]:
        cell = entry["mean"] if name == "mean" else entry["datasets"].get(name)
        if cell is not None:
            yield cell


def _latex_cell(cell: Mapping[str, Any] | None, measure: str, best: str) -> str:
    if cell is None:
        return "--"
    text = _percent(cell[measure])
    text = f"\\textbf{{{text}}}" if _show(cell[measure], 4) == best else text
    return text + {1: r"$^{\uparrow}$", -1: r"$^{\downarrow}$", 0: ""}[_verdict(cell)]


def _percent(value: float | None) -> str:
    return "--" if value is None else f"{100 * value:.1f}"


def _escape_latex(text: str) -> str:
    signs = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    return re.sub(r"[\\~^&%$#_{}]", lambda found: signs.get(found[0], "\\" + found[0]), text)


def _show(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _show_p(value: float) -> str:
    return "< 0.0001" if value < 0.0001 else f"{value:.4f}"


def _summary(board: Board) -> dict[str, dict[str, Any]]:
    """What the command prints for each system."""
    measure = board["measure"]
    return {entry["name"]: {measure: entry["mean"][measure],
                            **{key: entry["mean"][key] for key in ("delta", "p_adjusted", "wins", "losses")}}
            for entry in board["systems"] if entry["mean"]}


# ------------------------------------------------------------------------------------------------ MTEB

_TASKS = {
    "trec-covid": "TRECCOVID", "nfcorpus": "NFCorpus", "nq": "NQ", "hotpotqa": "HotpotQA", "fiqa": "FiQA2018",
    "arguana": "ArguAna", "webis-touche2020": "Touche2020", "dbpedia-entity": "DBPedia", "scidocs": "SCIDOCS",
    "fever": "FEVER", "climate-fever": "ClimateFEVER", "scifact": "SciFact", "quora": "QuoraRetrieval",
    "msmarco": "MSMARCO", "cqadupstack": "CQADupstackRetrieval",
    **{f"cqadupstack-{forum}": f"CQADupstack{forum.capitalize()}Retrieval" for forum in benchmarks.FORUMS},
}
_MTEB_NAMES = {"nDCG@10": "ndcg_at_10", "R@100": "recall_at_100", "R@1000": "recall_at_1000", "MRR@10": "mrr_at_10"}


def make_mteb_files(found: Sequence[Row]) -> dict[str, Any]:
    """``mteb/results/MODEL/REVISION/TASK.json`` and ``model_meta.json`` -> content, in MTEB's layout.

    Of data sets that MTEB does not have, or not in this size, nothing. A system that is not named after a hub model
    (``OWNER--MODEL``) belongs to the owner ``local``, as MTEB asks for one. Ours come from BEIR's archives, so
    ``dataset_revision`` is the SHA-256 of corpus, queries and qrels and not a revision of the hub.
    """
    made: dict[str, Any] = {}
    singly = {(row.dataset, row.system): row for row in (*found, *rows.merge_groups(found))}
    systems: dict[str, list[Row]] = {}
    for row in singly.values():
        if row.dataset in _TASKS and _is_whole(row.dataset, row.result["dataset"]):
            systems.setdefault(row.system, []).append(row)
    for system, of in systems.items():
        facts = of[0].result["system"]
        hashes = sorted({row.result["system"]["hash"] for row in of})
        revision = re.sub(r"^[.]+|[^A-Za-z0-9._+-]", "_", facts.get("revision") or files.sha256_of_json(hashes)[:16])
        name = system.replace("--", "/", 1) if "--" in system else f"local/{system}"
        folder = f"mteb/results/{name.replace('/', '__')}/{revision}"
        made[f"{folder}/model_meta.json"] = _mteb_model(name, revision)
        made |= {f"{folder}/{_TASKS[row.dataset]}.json": _mteb_result(row) for row in of}
    return made


def _mteb_result(row: Row) -> dict[str, Any]:
    facts = row.result["dataset"]
    scores = {_MTEB_NAMES[column]: value for column, value in row.shown_measures.items() if value is not None}
    return {
        "dataset_revision": files.sha256_of_json([facts[f"{part}_sha256"] for part in ("corpus", "queries", "qrels")]),
        "task_name": _TASKS[row.dataset], "mteb_version": None,
        "scores": {facts["split"]: [{**scores, "main_score": row.measures["nDCG@10"], "hf_subset": "default",
                                     "languages": ["eng-Latn"]}]},
        "evaluation_time": None, "kg_co2_emissions": None,
    }


def _mteb_model(name: str, revision: str) -> dict[str, Any]:
    unknown = ("loader", "release_date", "n_parameters", "memory_usage_mb", "max_tokens", "embed_dim", "license",
               "open_weights", "public_training_code", "public_training_data", "use_instructions", "training_datasets")
    return {"name": name, "revision": revision, "languages": ["eng-Latn"], **dict.fromkeys(unknown), "framework": [],
            "similarity_fn_name": "dot", "model_type": ["sparse"]}
