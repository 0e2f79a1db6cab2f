"""Write the tables of README.md and docs/results/ from the figures in scripts/results/.

    python scripts/make_results.py
    python scripts/make_results.py --check

A page marks the place of a table with ``<!-- table: NAME -->`` and ``<!-- end -->``; all between
the two is replaced. ``--check`` writes nothing and exits with 1 if a page is out of date.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ablate
import bench_approximations
import bench_input
import bench_search
import compare_decoders

from sparse_ir.benchmark import formats
from sparse_ir.benchmark.board import Board

ROOT = Path(__file__).resolve().parents[1]
FIGURES = ROOT / "scripts" / "results"
_PLACE = re.compile(r"(<!-- table: ([a-z0-9 ]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="only report pages out of date")
    arguments = parser.parse_args()
    outdated = []
    for page in (ROOT / "README.md", *sorted((ROOT / "docs" / "results").glob("*.md"))):
        before = page.read_text(encoding="utf-8")
        after = _PLACE.sub(fill_place, before)
        if before == after:
            continue
        outdated.append(str(page.relative_to(ROOT)))
        if not arguments.check:
            page.write_text(after, encoding="utf-8")
    if outdated and arguments.check:
        sys.exit(f"out of date: {', '.join(outdated)}; run python scripts/make_results.py")


def fill_place(place: re.Match[str]) -> str:
    """The marks of a place with its table between them."""
    file, make_table = TABLES[place[2]]
    figures = json.loads((FIGURES / file).read_text(encoding="utf-8"))
    return f"{place[1]}\n{make_table(figures).strip()}\n\n{place[3]}"


def format_overview(board: dict[str, Any]) -> str:
    """The README's table: a few columns of the leaderboard."""
    lines = [
        "| system | nDCG@10 | against BM25 | R@100 | index, MB | median latency, ms |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for system in board["systems"]:
        mean = system["mean"]
        difference = ""
        if mean["delta"] is not None:
            difference = f"{mean['delta']:+.3f} (p {mean['p_adjusted']:.4f})"
        costs = mean["efficiency"]
        lines.append(
            f"| {system['name']} | {mean['nDCG@10']:.3f} | {difference} | {mean['R@100']:.3f} | "
            f"{costs['index_megabytes']:.1f} | {costs['p50_ms']:.1f} |"
        )
    return "\n".join(lines)


def format_summary(figures: dict[str, Any]) -> str:
    """The means of all systems over the collections in common."""
    return formats.format_summary(Board.model_validate(figures))


def format_datasets(figures: dict[str, Any]) -> str:
    """All systems on each collection."""
    return formats.format_datasets(Board.model_validate(figures))


def format_approximations(result: dict[str, Any]) -> str:
    """The table alone; the facts above it are in the page's own words."""
    return bench_approximations.as_markdown(result).partition("\n\n")[2]


TABLES: dict[str, tuple[str, Callable[[dict[str, Any]], str]]] = {
    "readme": ("leaderboard.json", format_overview),
    "leaderboard summary": ("leaderboard.json", format_summary),
    "leaderboard datasets": ("leaderboard.json", format_datasets),
    "search latency": ("search.json", bench_search.format_latency),
    "search costs": ("search.json", bench_search.format_costs),
    "search growth": ("search.json", bench_search.format_growth),
    "approximations": ("approximations.json", format_approximations),
    "input": ("input.json", bench_input.as_markdown),
    "ablation": ("ablation.json", ablate.as_markdown),
    "ablation pairs": ("ablation.json", ablate.as_pairs),
    "ablation 240": ("ablation_240.json", ablate.as_markdown),
    "ablation 240 pairs": ("ablation_240.json", ablate.as_pairs),
    "decoders": ("decoders.json", compare_decoders.as_markdown),
}


if __name__ == "__main__":
    main()
