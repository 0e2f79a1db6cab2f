"""The leaderboard as Markdown, CSV, LaTeX and the files of MTEB."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from sparse_ir.benchmark import averages
from sparse_ir.benchmark.board import (
    COMPARISON,
    EFFICIENCY,
    LATENCIES,
    LEVEL,
    PROVENANCE,
    Board,
    is_whole,
)
from sparse_ir.benchmark.results import COLUMNS, Row
from sparse_ir.data.datasets import FORUMS
from sparse_ir.storage import files

_LATEX_COSTS = {
    "$|q|$": ("query_terms", 1),
    "$|d|$": ("document_terms", 1),
    "FLOPS": ("flops", 3),
    "MB": ("index_megabytes", 1),
    "p50 ms": ("p50_ms", 1),
}


def format_markdown(board: Board) -> str:
    """The whole leaderboard as Markdown: summary, data sets, published figures, and how to read
    them.
    """
    parts = [
        "# Leaderboard",
        format_summary(board),
        "## Data sets",
        format_datasets(board),
        _markdown_published(board),
        "\n".join(f"* {note}" for note in board["notes"]),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def format_summary(board: Board) -> str:
    """One Markdown table: a line for each system, its means over the data sets in common, and what
    a search costs.

    Empty when the systems have no data set in common.
    """
    measure, baseline = board["measure"], _escape_markdown(board["baseline"])
    others = [column for column in COLUMNS if column != measure]
    header = [
        "system",
        measure,
        "95 %",
        f"Δ {baseline}",
        "p",
        "wins / ties / losses",
        *others,
        "terms q / d",
        "FLOPS",
        "MB",
        "docs/s",
        "p50 / p95 / p99 ms",
    ]
    lines = [
        [_escape_markdown(entry["name"]), *_summary_cells(entry["mean"], measure, others)]
        for entry in board["systems"]
        if entry["mean"]
    ]
    return _markdown_table(header, lines) if lines else ""


def _summary_cells(mean: Mapping[str, Any], measure: str, others: Sequence[str]) -> list[str]:
    cost = mean["efficiency"]
    is_baseline = mean["delta"] is None
    return [
        _show(mean[measure], 4),
        f"{_show(mean['low'], 3)}–{_show(mean['high'], 3)}",
        "" if is_baseline else f"{mean['delta']:+.4f}",
        "" if is_baseline else _show_p(mean["p_adjusted"]),
        "" if is_baseline else f"{mean['wins']} / {mean['ties']} / {mean['losses']}",
        *(_show(mean[column], 4) for column in others),
        f"{_show(cost['query_terms'], 1)} / {_show(cost['document_terms'], 1)}",
        _show(cost["flops"], 3),
        _show(cost["index_megabytes"], 1),
        _show(cost["documents_per_second"], 0),
        " / ".join(_show(cost[key], 1) for key in LATENCIES),
    ]


def format_datasets(board: Board) -> str:
    """One Markdown table: a line for each system, its measure on each data set; ▲ and ▼: chance is
    unlikely.
    """
    names = list(board["datasets"])
    header = [board["measure"], *map(_escape_markdown, names)]
    lines = [
        [
            _escape_markdown(entry["name"]),
            *(_mark(entry["datasets"].get(name), board["measure"]) for name in names),
        ]
        for entry in board["systems"]
    ]
    return _markdown_table(header, lines)


def _mark(cell: Mapping[str, Any] | None, measure: str) -> str:
    """A figure, with a sign where it differs from the baseline's by more
    than chance makes likely.
    """
    return (
        "–"
        if cell is None
        else _show(cell[measure], 4) + {1: " ▲", -1: " ▼", 0: ""}[_verdict(cell)]
    )


def _verdict(cell: Mapping[str, Any]) -> int:
    """1 for better than the baseline, -1 for worse, 0 for not known to differ."""
    if cell["p_adjusted"] is None or cell["p_adjusted"] >= LEVEL or not cell["delta"]:
        return 0
    return 1 if cell["delta"] > 0 else -1


def _markdown_published(board: Board) -> str:
    if not board["published"]:
        return ""
    names = [
        name
        for name in board["datasets"]
        if any(name in record["values"] for record in board["published"])
    ]
    header = [board["measure"], "kind", *map(_escape_markdown, names), "mean", "status", "source"]
    lines = [
        [
            record["system"],
            record["kind"],
            *(_show(record["values"].get(name), 4) for name in names),
            _show(record["mean"], 4),
            record["status"],
            "; ".join(filter(None, (record["source"], record["note"]))),
        ]
        for record in board["published"]
    ]
    return "## Published elsewhere, not measured here\n\n" + _markdown_table(header, lines)


def _markdown_table(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rule = ["---", *("---:" for _ in header[1:])]
    return "\n".join("| " + " | ".join(line) + " |" for line in (header, rule, *lines))


def _escape_markdown(text: str) -> str:
    return re.sub(r"([\\`*_\[\]<>|])", r"\\\1", text)


def format_csv(board: Board) -> str:
    """One line for each system and data set, and for its mean; published figures with ``origin``
    published.
    """
    columns = [
        "origin",
        "system",
        "kind",
        "dataset",
        *COLUMNS,
        *COMPARISON,
        *EFFICIENCY,
        *PROVENANCE,
        "status",
        "source",
        "note",
    ]
    stream = io.StringIO()
    writer = csv.DictWriter(stream, columns, lineterminator="\n")
    writer.writeheader()
    for entry in board["systems"]:
        for name, cell in {"mean": entry["mean"], **entry["datasets"]}.items():
            if cell is not None:
                line = {**cell, **cell["efficiency"], **cell.get("provenance", {})}
                writer.writerow(
                    {
                        "origin": "measured",
                        "system": entry["name"],
                        "kind": entry["kind"],
                        "dataset": name,
                        **{key: value for key, value in line.items() if key in columns},
                    }
                )
    for record in board["published"]:
        for name, value in record["values"].items():
            known = {key: record[key] for key in ("system", "kind", "status", "source", "note")}
            writer.writerow(
                {"origin": "published", "dataset": name, board["measure"]: value, **known}
            )
    return stream.getvalue()


def format_latex(board: Board) -> str:
    """A LaTeX table for the package booktabs: figures times 100, the best of ours bold, arrows for
    p below 0.05.
    """
    names = [*board["datasets"], *(["mean"] if board["common"] else [])]
    best = {
        name: max(_show(cell[board["measure"]], 4) for cell in _column(board, name))
        for name in names
    }
    header = [
        f"{_escape_latex(board['measure'])} $\\times$ 100",
        *map(_escape_latex, names),
        *_LATEX_COSTS,
    ]
    lines = [
        "% needs \\usepackage{booktabs}",
        f"\\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}",
        r"\toprule",
        _latex_line(header),
        r"\midrule",
    ]
    for entry in board["systems"]:
        cells = [
            _latex_cell(
                (entry["datasets"] | {"mean": entry["mean"]}).get(name),
                board["measure"],
                best[name],
            )
            for name in names
        ]
        cost = (entry["mean"] or next(iter(entry["datasets"].values())))["efficiency"]
        costs = [
            _show(cost[key], digits).replace("–", "--") for key, digits in _LATEX_COSTS.values()
        ]
        lines.append(_latex_line([_escape_latex(entry["name"]), *cells, *costs]))
    if board["published"]:
        title = r"\emph{published elsewhere, not measured here}"
        lines += [r"\midrule", f"\\multicolumn{{{len(header)}}}{{l}}{{{title}}} \\\\"]
    for record in board["published"]:
        cells = [
            _percent((record["values"] | {"mean": record["mean"]}).get(name)) for name in names
        ]
        name = _escape_latex(f"{record['system']} ({record['status']})")
        lines.append(_latex_line([name, *cells, *["--"] * len(_LATEX_COSTS)]))
    sources = [
        f"% {record['system']}: "
        f"{record['source']}{'; ' if record['note'] else ''}{record['note'] or ''}"
        for record in board["published"]
    ]
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


_TASKS = {
    "trec-covid": "TRECCOVID",
    "nfcorpus": "NFCorpus",
    "nq": "NQ",
    "hotpotqa": "HotpotQA",
    "fiqa": "FiQA2018",
    "arguana": "ArguAna",
    "webis-touche2020": "Touche2020",
    "dbpedia-entity": "DBPedia",
    "scidocs": "SCIDOCS",
    "fever": "FEVER",
    "climate-fever": "ClimateFEVER",
    "scifact": "SciFact",
    "quora": "QuoraRetrieval",
    "msmarco": "MSMARCO",
    "cqadupstack": "CQADupstackRetrieval",
    **{f"cqadupstack-{forum}": f"CQADupstack{forum.capitalize()}Retrieval" for forum in FORUMS},
}
_MTEB_NAMES = {
    "nDCG@10": "ndcg_at_10",
    "R@100": "recall_at_100",
    "R@1000": "recall_at_1000",
    "MRR@10": "mrr_at_10",
}


def make_mteb_files(found: Sequence[Row]) -> dict[str, Any]:
    """``mteb/results/MODEL/REVISION/TASK.json`` and ``model_meta.json`` -> content, in MTEB's
    layout.

    Of data sets that MTEB does not have, or not in this size, nothing. A system that is not named
    after a hub model (``OWNER--MODEL``) belongs to the owner ``local``, as MTEB asks for one. Ours
    come from BEIR's archives, so ``dataset_revision`` is the SHA-256 of corpus, queries and qrels
    and not a revision of the hub.
    """
    made: dict[str, Any] = {}
    singly = {(row.dataset, row.system): row for row in (*found, *averages.merge_groups(found))}
    systems: dict[str, list[Row]] = {}
    for row in singly.values():
        if row.dataset in _TASKS and is_whole(row.dataset, row.result["dataset"]):
            systems.setdefault(row.system, []).append(row)
    for system, of in systems.items():
        facts = of[0].result["system"]
        hashes = sorted({row.result["system"]["hash"] for row in of})
        revision = re.sub(
            r"^[.]+|[^A-Za-z0-9._+-]",
            "_",
            facts.get("revision") or files.sha256_of_json(hashes)[:16],
        )
        name = system.replace("--", "/", 1) if "--" in system else f"local/{system}"
        folder = f"mteb/results/{name.replace('/', '__')}/{revision}"
        made[f"{folder}/model_meta.json"] = _mteb_model(name, revision)
        made |= {f"{folder}/{_TASKS[row.dataset]}.json": _mteb_result(row) for row in of}
    return made


def _mteb_result(row: Row) -> dict[str, Any]:
    facts = row.result["dataset"]
    scores = {
        _MTEB_NAMES[column]: value
        for column, value in row.shown_measures.items()
        if value is not None
    }
    return {
        "dataset_revision": files.sha256_of_json(
            [facts[f"{part}_sha256"] for part in ("corpus", "queries", "qrels")]
        ),
        "task_name": _TASKS[row.dataset],
        "mteb_version": None,
        "scores": {
            facts["split"]: [
                {
                    **scores,
                    "main_score": row.measures["nDCG@10"],
                    "hf_subset": "default",
                    "languages": ["eng-Latn"],
                }
            ]
        },
        "evaluation_time": None,
        "kg_co2_emissions": None,
    }


def _mteb_model(name: str, revision: str) -> dict[str, Any]:
    unknown = (
        "loader",
        "release_date",
        "n_parameters",
        "memory_usage_mb",
        "max_tokens",
        "embed_dim",
        "license",
        "open_weights",
        "public_training_code",
        "public_training_data",
        "use_instructions",
        "training_datasets",
    )
    return {
        "name": name,
        "revision": revision,
        "languages": ["eng-Latn"],
        **dict.fromkeys(unknown),
        "framework": [],
        "similarity_fn_name": "dot",
        "model_type": ["sparse"],
    }
