"""The commands ``beir`` and ``leaderboard``."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any, Unpack

from sparse_ir.benchmark import page, verification
from sparse_ir.benchmark.board import Board, make_board, merge_forums
from sparse_ir.benchmark.columns import Measure
from sparse_ir.benchmark.formats import format_csv, format_latex, format_markdown
from sparse_ir.benchmark.measuring import ImpactOptions, Plan
from sparse_ir.benchmark.mteb import make_mteb_files
from sparse_ir.benchmark.page import Selection
from sparse_ir.benchmark.published_figures import DEFAULT
from sparse_ir.benchmark.results import RESULT, read_rows, row_folder
from sparse_ir.benchmark.suite import Suite, describe_suite, group_by_corpus
from sparse_ir.benchmark.systems import read_systems
from sparse_ir.data.datasets import expand_names, fetch, reason_to_skip
from sparse_ir.errors import ConfigError, DataError
from sparse_ir.indexing import builder
from sparse_ir.models.catalog import EncodeOptions
from sparse_ir.reports import Report
from sparse_ir.storage import files


def beir(
    model: str,
    output: Path,
    *,
    datasets: str = "beir",
    data_dir: Path = Path("data"),
    baselines: str = "bm25,bm25-multifield",
    hits: int = 1000,
    scale: float | None = None,
    bits: int | None = None,
    fold: bool | None = None,
    keep: bool = False,
    progress: bool = False,
    **options: Unpack[EncodeOptions],
) -> Report:
    """Measure models on BEIR, MS MARCO, TREC DL or your own sets; run again after a kill, it does
    what is missing.

    A row that was made from other data, another model or other options is refused, not replaced.

    Args:
        model: Models, separated by commas: hub names, folders, "lexical", "default"; NAME=MODEL
            names the row.
        output: Folder for the rows, OUTPUT/DATASET/SYSTEM, and for the work in progress.
        datasets: Names and groups (beir, beir-13, cqadupstack, marco, local), or folders in the
            data folder.
        data_dir: Folder of the data sets in BEIR's layout; what is not there is downloaded.
        baselines: Reference systems made beside the models: bm25, bm25-multifield, lexical; or
            none.
        hits: Documents per query.
        scale: impact = round(weight x scale); default: spread the collection's weights over the
            bits.
        bits: Bits per impact, 2 to 16; default 8 (with a scale: 16).
        fold: Multiply static query weights into the impacts; default: wherever the query side is
            static.
        keep: Keep vectors and indexes in OUTPUT/.work; default: deleted when their rows are made.
        progress: Show progress bars.
    """
    output, data_dir = Path(output), Path(data_dir)
    if hits < 1:
        raise ConfigError(f"{hits} hits are not allowed; ask for at least 1")
    builder.check_index_options(scale, bits, 1)
    plan = Plan(output, hits, ImpactOptions(scale, bits, fold), options, keep, progress)
    systems = read_systems(model, baselines)
    names = expand_names(datasets, data_dir)
    skipped = {name: reason for name in names if (reason := reason_to_skip(name, data_dir))}
    wanted = [name for name in names if name not in skipped]
    for name, system in itertools.product(wanted, systems):
        # refuses names that no row can have
        row_folder(output, name.replace(":", "-"), system.name)
    with files.write_lock(output / "suite"):
        fetched = ((name, fetch(name, data_dir, progress=progress)) for name in wanted)
        suite = Suite(plan)
        made = 0
        for sets in group_by_corpus(fetched):
            for system in systems:
                made += suite.measure_corpus(system, sets)
    return describe_suite(plan, systems, wanted, made, skipped)


def leaderboard(
    results: Path,
    output: Path,
    *,
    baseline: str = "bm25",
    measure: Measure = "nDCG@10",
    published: str = DEFAULT,
    data_dir: Path = Path("data"),
    queries: int = 40,
    documents: int = 0,
    verify: bool = False,
) -> Report:
    """Make one table of all rows: Markdown, CSV, LaTeX, JSON, MTEB's files, and a web page that
    needs no network.

    Beside each measure stand its confidence interval, the difference to a baseline, how likely
    chance alone makes one as large (corrected for the number of systems), and what a search costs.

    Args:
        results: Folder of rows, as sparse-ir beir writes it.
        output: Folder for leaderboard.md, .csv, .tex, .json, .html, and mteb/.
        baseline: The system that all others are compared with.
        measure: The measure that orders and compares.
        published: Published figures beside ours: default, all, none, or names separated by
            semicolons.
        data_dir: Folder of the data sets, for the texts on the page; what is not there is shown by
            its id.
        queries: Queries on the page for each system and data set: those that differ most from the
            baseline.
        documents: Documents shown of each ranking on the page, with their text.
        verify: Check runs, data sets and all measures first (needs the data); not depth, times,
            costs or versions.
    """
    results, output, data_dir = Path(results), Path(output), Path(data_dir)
    if min(queries, documents) < 0:
        raise ConfigError(
            f"{queries} queries and {documents} documents are not allowed; ask for 0 or more"
        )
    verified = verification.verify_rows(results, data_dir) if verify else []
    found = read_rows(results)
    if not found:
        raise DataError(f"{results} holds no row (DATASET/SYSTEM/{RESULT})")
    board = make_board(found, baseline=baseline, measure=measure, published=published)
    selection = Selection(results, data_dir, baseline, measure, queries, documents)
    details = page.collect_queries(merge_forums(found), selection)
    texts = {
        "leaderboard.md": format_markdown(board),
        "leaderboard.csv": format_csv(board),
        "leaderboard.tex": format_latex(board),
        "leaderboard.json": files.format_json(board.to_json()),
        "leaderboard.html": page.format_page(board, details),
        **{name: files.format_json(content) for name, content in make_mteb_files(found).items()},
    }
    for name, text in texts.items():
        with files.atomic_writer(output / name) as stream:
            stream.write(text)
    return {
        "output": str(output),
        "files": len(texts),
        "mean_over": board.common,
        "systems": _summary(board),
        "published": len(board.published),
        **({"verified_rows": len(verified)} if verify else {}),
        **({"not_shown": board.not_shown} if board.not_shown else {}),
    }


def _summary(board: Board) -> dict[str, dict[str, Any]]:
    """What the command prints for each system."""
    summary = {}
    for entry in board.systems:
        if entry.mean is not None:
            standing = entry.mean.standing
            summary[entry.name] = {
                board.measure: entry.mean.value(board.measure),
                "delta": standing.delta,
                "p_adjusted": standing.p_adjusted,
                "wins": standing.wins,
                "losses": standing.losses,
            }
    return summary
