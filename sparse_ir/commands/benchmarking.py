"""The commands ``beir`` and ``leaderboard``.

Numeric libraries are imported inside the functions, so that a help text appears at once.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Unpack

from sparse_ir.benchmark.published_figures import DEFAULT
from sparse_ir.commands.arguments import Source, StrPath, command
from sparse_ir.errors import ConfigError, DataError
from sparse_ir.models.options import EncodeOptions
from sparse_ir.reports import LeaderboardReport, Report

if TYPE_CHECKING:
    from sparse_ir.benchmark.board import Board


@command
def beir(
    model: Source,
    output: StrPath,
    *,
    datasets: str = "beir",
    data_dir: StrPath = Path("data"),
    baselines: str = "bm25,bm25-multifield",
    hits: int = 1000,
    scale: float | None = None,
    bits: int | None = None,
    fold: bool | None = None,
    keep: bool = False,
    progress: bool = False,
    **options: Unpack[EncodeOptions],
) -> Report:
    """Benchmark models on BEIR, MS MARCO, TREC DL or your own data sets.

    A killed command can be repeated: it makes only the missing rows. A row made from other data,
    another model or other options is an error; it is never replaced.

    Args:
        model: Models separated by commas: hub names, folders, "lexical" or "default". NAME=MODEL
            names the row; MODEL+bm25 has BM25 beside the model, in one index.
        output: Folder for the rows, OUTPUT/DATASET/SYSTEM, and for work in progress.
        datasets: Names and groups (beir, beir-13, cqadupstack, marco, local), or folders inside the
            data folder.
        data_dir: Folder of data sets in BEIR's layout. Missing data sets are downloaded.
        baselines: Reference systems to add: bm25, bm25-multifield, lexical; or none.
        hits: Number of documents per query.
        scale: Factor from weights to impacts: impact = round(weight x scale). By default, the
            collection's weights are spread over the bits.
        bits: Bits per impact, 2 to 16. The default is 8, or 16 if a scale is given.
        fold: Multiply static query weights into the impacts. By default, this is done whenever the
            query side is static.
        keep: Keep vectors and indexes in OUTPUT/.work. By default, they are deleted once their rows
            are made.
        progress: Show progress bars.
    """

    from sparse_ir.benchmark.measuring import ImpactOptions, Plan
    from sparse_ir.benchmark.results import row_folder
    from sparse_ir.benchmark.suite import Suite, describe_suite, group_by_corpus
    from sparse_ir.benchmark.systems import read_systems
    from sparse_ir.data.datasets import expand_names, fetch, reason_to_skip
    from sparse_ir.indexing.builder import check_index_options
    from sparse_ir.storage import files

    output = Path(output)
    data_dir = Path(data_dir)
    if hits < 1:
        raise ConfigError(f"hits is {hits}; it must be at least 1")
    check_index_options(scale, bits, 1)
    plan = Plan(output, hits, ImpactOptions(scale, bits, fold), options, keep, progress)
    systems = read_systems(str(model), baselines)
    chosen = []
    skipped = {}
    for name in expand_names(datasets, data_dir):
        reason = reason_to_skip(name, data_dir)
        if reason:
            skipped[name] = reason
        else:
            chosen.append(name)
    for name, system in itertools.product(chosen, systems):
        # raises for a name that cannot be a folder, before hours of work
        row_folder(output, name.replace(":", "-"), system.name)
    suite = Suite(plan)
    made = 0
    with files.write_lock(output / "suite"):
        fetched = ((name, fetch(name, data_dir, progress=progress)) for name in chosen)
        for sets in group_by_corpus(fetched):
            for system in systems:
                made += suite.measure_corpus(system, sets)
    return describe_suite(plan, systems, chosen, made, skipped)


@command
def leaderboard(
    results: StrPath,
    output: StrPath,
    *,
    baseline: str = "bm25",
    measure: Literal["nDCG@10", "R@100", "R@1000", "MRR@10"] = "nDCG@10",
    published: str = DEFAULT,
    data_dir: StrPath = Path("data"),
    queries: int = 40,
    documents: int = 0,
    verify: bool = False,
) -> LeaderboardReport:
    """Make a leaderboard of all rows: Markdown, CSV, LaTeX, JSON, MTEB files and a web page.

    Each measure comes with its confidence interval, its difference from a baseline, the p-value of
    that difference (corrected for the number of systems), and the cost of a search. The page is
    self-contained.

    Args:
        results: Folder of rows written by beir.
        output: Folder for leaderboard.md, .csv, .tex, .json, .html, and mteb/.
        baseline: System that all others are compared with.
        measure: Measure that orders and compares the systems.
        published: Published figures to show next to the rows: default, all, none, or names
            separated by semicolons.
        data_dir: Folder of data sets, for the texts on the page. Missing texts are replaced by
            their ids.
        queries: Number of queries shown on the page per system and data set, those that differ most
            from the baseline.
        documents: Number of documents shown per ranking, with their texts.
        verify: First verify runs, data sets and all measures (needs the data). Depth, times, costs
            and versions are not verified.
    """

    from sparse_ir.benchmark import formats, page, verification
    from sparse_ir.benchmark.board import make_board, merge_forums
    from sparse_ir.benchmark.mteb import make_mteb_files
    from sparse_ir.benchmark.results import RESULT, read_rows
    from sparse_ir.storage import files

    results = Path(results)
    output = Path(output)
    data_dir = Path(data_dir)
    for name, value in (("queries", queries), ("documents", documents)):
        if value < 0:
            raise ConfigError(f"{name} is {value}; it must be at least 0")
    verified = []
    if verify:
        verified = verification.verify_rows(results, data_dir)
    rows = read_rows(results)
    if not rows:
        raise DataError(f"{results} holds no row (DATASET/SYSTEM/{RESULT})")
    board = make_board(rows, baseline=baseline, measure=measure, published=published)
    selection = page.Selection(results, data_dir, baseline, measure, queries, documents)
    details = page.collect_queries(merge_forums(rows), selection)
    texts = {
        "leaderboard.md": formats.format_markdown(board),
        "leaderboard.csv": formats.format_csv(board),
        "leaderboard.tex": formats.format_latex(board),
        "leaderboard.json": files.format_json(board.model_dump()),
        "leaderboard.html": page.format_page(board, details),
    }
    for name, content in make_mteb_files(rows).items():
        texts[name] = files.format_json(content)
    for name, text in texts.items():
        with files.atomic_writer(output / name) as stream:
            stream.write(text)
    report: LeaderboardReport = {
        "output": str(output),
        "files": len(texts),
        "mean_over": board.common,
        "systems": _summarize(board),
        "published": len(board.published),
    }
    if verify:
        report["verified_rows"] = len(verified)
    if board.not_shown:
        report["not_shown"] = board.not_shown
    return report


def _summarize(board: Board) -> dict[str, dict[str, Any]]:
    """What the command prints for each system."""
    summaries = {}
    for entry in board.systems:
        if entry.mean is not None:
            standing = entry.mean.standing
            summaries[entry.name] = {
                board.measure: entry.mean.value(board.measure),
                "delta": standing.delta,
                "p_adjusted": standing.p_adjusted,
                "wins": standing.wins,
                "losses": standing.losses,
            }
    return summaries
