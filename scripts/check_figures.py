"""Check that our figures equal published ones to the last digit.

    python scripts/check_figures.py --checks data/checks --data data/test

``CHECKS/NAME-runs`` holds runs ``X_results.json[.gz]`` with what BEIR's evaluator printed for each,
``eval_result_X.txt``. ``CHECKS/anserini-beir-expected.tsv`` has lines of data set, system, measure
and figure. ``DATA/NAME`` are BEIR folders. The script prints a table of all figures and exits with
1 if any differs.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from sparse_ir.benchmark import results
from sparse_ir.benchmark.systems import NO_BASELINES
from sparse_ir.commands import benchmarking, evaluating

NAMES = {"NDCG": "nDCG", "MAP": "AP", "Recall": "R", "P": "P"}  # BEIR's -> ours
SYSTEMS = {"flat": "bm25", "multifield": "bm25-multifield"}  # Anserini's -> ours


class Figure(NamedTuple):
    """A published figure and ours."""

    what: str
    measure: str
    printed: str
    ours: float

    @property
    def ours_printed(self) -> str:
        """Our figure with as many decimals as theirs."""
        return f"{self.ours:.{len(self.printed.partition('.')[2])}f}"


def check_runs(checks: Path, data_dir: Path) -> Iterator[Figure]:
    """Compare each run with the scores that BEIR's evaluator printed (five decimals)."""
    for printed in sorted(checks.glob("*-runs/eval_result_*.txt")):
        name, dataset = (
            printed.stem.removeprefix("eval_result_"),
            printed.parent.name.removesuffix("-runs"),
        )
        (run,) = printed.parent.glob(f"{name}_results.json*")
        text = printed.read_text(encoding="utf-8")
        scores = {
            key: value
            for part in json.loads(text[text.index("[") :])
            for key, value in part.items()
        }
        measures = {
            key: f"{NAMES[key.partition('@')[0]]}@{key.partition('@')[2]}" for key in scores
        }
        found = evaluating.evaluate(
            run, str(data_dir / dataset), measures=" ".join(measures.values())
        )
        for key, measure in measures.items():
            yield Figure(f"{dataset}, {name} run", measure, f"{scores[key]:.5f}", found[measure])


def check_bm25(checks: Path, data_dir: Path, output: Path) -> Iterator[Figure]:
    """Compare BM25 flat and multifield with Anserini's figures on every data set found."""
    lines = (checks / "anserini-beir-expected.tsv").read_text(encoding="utf-8").splitlines()
    expected = [line.split("\t")[:4] for line in lines if line.split("\t")[1] in SYSTEMS]
    there = list(dict.fromkeys(line[0] for line in expected if (data_dir / line[0]).is_dir()))
    benchmarking.beir(
        "bm25,bm25-multifield",
        output,
        datasets=",".join(there),
        data_dir=data_dir,
        baselines=NO_BASELINES,
        progress=sys.stderr.isatty(),
    )
    for dataset, system, measure, figure in expected:
        if dataset in there:
            found = results.read_row(results.row_folder(output, dataset, SYSTEMS[system])).measures
            yield Figure(f"{dataset}, BM25 {system}", measure, figure, found[measure])


def main() -> int:
    """Print the table; returns the number of figures that differ."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checks", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        figures = [
            *check_runs(arguments.checks, arguments.data),
            *check_bm25(arguments.checks, arguments.data, Path(scratch) / "rows"),
        ]
    print("| what | measure | printed | ours | |\n| --- | --- | ---: | ---: | --- |")
    for figure in figures:
        verdict = "same" if figure.ours_printed == figure.printed else "DIFFERENT"
        print(
            f"| {figure.what} | {figure.measure} | {figure.printed} | {figure.ours_printed} | "
            f"{verdict} |"
        )
    return int(any(figure.ours_printed != figure.printed for figure in figures))


if __name__ == "__main__":
    sys.exit(main())
