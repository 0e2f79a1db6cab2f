"""A column is defined in one place: a new one appears in every output, also beside older rows."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import re
from pathlib import Path

import pytest
from made_rows import make_run, write_dataset, write_results, write_row

from sparse_ir.benchmark import columns, formats, mteb, verification
from sparse_ir.benchmark.board import Board, make_board
from sparse_ir.benchmark.columns import CostColumn, MeasureColumn, Part, SourceColumn
from sparse_ir.benchmark.comparison import Standing
from sparse_ir.benchmark.results import RESULT, measure, read_row, read_rows
from sparse_ir.benchmark.rows import Row
from sparse_ir.commands import benchmarking
from sparse_ir.data import datasets
from sparse_ir.errors import DamagedError, DataError

KEPT = Path(__file__).parents[2] / "scripts" / "results" / "leaderboard.json"


def mean_latency(row: Row) -> float | None:
    latencies = row.timing.search_latency_ms or {}
    return latencies.get("mean")


NEW_MEASURE = MeasureColumn(name="P@5", title="P@5", measure="P{level}@5", mteb="precision_at_5")
NEW_COST = CostColumn(
    name="mean_ms", title="mean ms", hint="new here", latex="mean ms", digits=2, read=mean_latency
)
NEW_SOURCE = SourceColumn(name="split", read=lambda row: row.result.dataset.split)


@pytest.fixture
def old_and_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Rows of bm25 that were written before three columns existed, and later ones of a model."""
    results, data_dir = write_results(tmp_path, {"scifact": {"bm25": [1, 2, 3, 0]}})
    monkeypatch.setattr(columns, "MEASURES", (*columns.MEASURES, NEW_MEASURE))
    monkeypatch.setattr(columns, "COSTS", (*columns.COSTS, NEW_COST))
    monkeypatch.setattr(columns, "SOURCES", (*columns.SOURCES, NEW_SOURCE))
    monkeypatch.setattr(datasets, "published_size", {}.get)
    write_row(results, data_dir, "scifact", "model", [1, 1, 1, 1])
    return results, data_dir


def test_a_row_older_than_a_column_is_readable_and_shows_nothing_for_it(old_and_new):
    results, _ = old_and_new
    old, new = read_rows(results)
    assert "P@5" not in old.measures and old.shown_measure("P@5") is None
    assert new.shown_measure("P@5") == new.measures["P@5"] == pytest.approx(0.2)
    assert len(new.per_query["P@5"]) == 4


def test_a_new_column_is_in_every_output(old_and_new, tmp_path):
    results, data_dir = old_and_new
    benchmarking.leaderboard(results, tmp_path / "out", data_dir=data_dir, verify=True)
    written = {path.suffix: path.read_text() for path in (tmp_path / "out").glob("leaderboard.*")}

    lines = [line.strip("|").split("|") for line in written[".md"].splitlines() if "|" in line]
    table = [[cell.strip() for cell in line] for line in lines[:4]]
    header, _, model, bm25 = table
    assert (model[0], bm25[0]) == ("model", "bm25")
    assert (model[header.index("P@5")], bm25[header.index("P@5")]) == ("0.2000", "–")
    assert model[header.index("mean ms")] == bm25[header.index("mean ms")] == "2.00"

    found = {
        (line["system"], line["dataset"]): line
        for line in csv.DictReader(io.StringIO(written[".csv"]))
    }
    assert (found["model", "scifact"]["P@5"], found["bm25", "scifact"]["P@5"]) == ("0.2", "")
    assert found["bm25", "mean"]["mean_ms"] == "2.0"
    assert found["bm25", "scifact"]["split"] == "test"

    assert r"& mean ms \\" in written[".tex"]
    assert re.search(r"^model & .* & 2\.00 \\\\$", written[".tex"], re.MULTILINE)

    board = json.loads(written[".json"])
    cell = board["systems"][0]["datasets"]["scifact"]
    assert (cell["P@5"], cell["efficiency"]["mean_ms"]) == (pytest.approx(0.2), 2.0)
    assert cell["provenance"]["split"] == "test"
    assert board["systems"][1]["datasets"]["scifact"]["P@5"] is None
    assert any(note.startswith("–: some rows lack this measure") for note in board["notes"])

    (data,) = re.findall(r'id="data">(.*?)</script>', written[".html"])
    described = {tuple(column["names"]): column for column in json.loads(data)["columns"]}
    assert described["P@5",]["title"] == "P@5"
    assert described["mean_ms",]["hint"] == "new here"

    made = mteb.make_mteb_files(read_rows(results))
    scores = {
        name.split("/")[2]: content["scores"]["test"][0]
        for name, content in made.items()
        if name.endswith("SciFact.json")
    }
    assert scores["local__model"]["precision_at_5"] == pytest.approx(0.2)
    assert "precision_at_5" not in scores["local__bm25"]


def test_rows_of_both_ages_are_verified_by_what_they_hold(old_and_new):
    results, data_dir = old_and_new
    old, new = verification.verify_rows(results, data_dir)
    assert "P@5" not in old and new["P@5"] == pytest.approx(0.2)
    path = results / "scifact" / "model" / RESULT
    path.write_text(path.read_text().replace('"P@5": 0.2', '"P@5": 0.20000000000000004', 1))
    with pytest.raises(DamagedError, match=r"P@5 is 0\.20000000000000004, its run gives 0\.2$"):
        verification.verify_rows(results, data_dir)


def test_a_new_measure_cannot_order_rows_that_lack_it(old_and_new):
    results, _ = old_and_new
    with pytest.raises(DataError, match=r"row scifact/bm25 has no P@5; make the row again"):
        make_board(read_rows(results), measure="P@5")


def test_a_row_with_the_mean_of_a_column_needs_its_queries(old_and_new):
    folder = old_and_new[0] / "scifact" / "model"
    stored = json.loads((folder / RESULT).read_text())
    del stored["per_query"]["P@5"]
    (folder / RESULT).write_text(json.dumps(stored))
    with pytest.raises(DamagedError, match=r"result\.json lacks per_query\.P@5$"):
        read_row(folder)


def test_the_columns_of_the_first_rows_are_in_every_row(tmp_path):
    write_dataset(tmp_path / "data", "made", 1)
    write_row(tmp_path / "results", tmp_path / "data", "made", "bm25", [1])
    folder = tmp_path / "results" / "made" / "bm25"
    stored = json.loads((folder / RESULT).read_text())
    for part in ("measures", "per_query"):
        del stored[part]["R@1000"]
    (folder / RESULT).write_text(json.dumps(stored))
    with pytest.raises(DamagedError, match=r"result\.json lacks measures\.R@1000$"):
        read_row(folder)


def test_names_are_unique_and_measures_are_those_of_the_command():
    every = [*columns.MEASURES, *columns.COMPARISON, *columns.COSTS, *columns.SOURCES]
    names = [column.name for column in every]
    assert len(set(names)) == len(names)
    assert columns.measure_names() == list(columns.Measure.__args__)
    fields = [field.name for field in dataclasses.fields(Standing)]
    assert [column.name for column in columns.COMPARISON] == fields
    assert list(measure(make_run([1]), {"q0": {"d0": 1}}).means) == columns.measure_names()


def test_costs_of_several_data_sets_by_hand():
    rate = next(column for column in columns.COSTS if column.name == "documents_per_second")
    size = next(column for column in columns.COSTS if column.name == "index_megabytes")
    flops = next(column for column in columns.COSTS if column.name == "flops")
    parts = [Part(100, 10.0), Part(300, 60.0)]  # 10 s and 5 s
    assert rate.combine(parts) == pytest.approx(400 / 15)
    assert size.combine(parts) == 70.0
    assert flops.combine(parts) == 35.0
    for column in (rate, size, flops):
        assert column.combine([*parts, Part(1, None)]) is None


def test_a_kept_board_comes_back_as_it_was_written():
    stored = json.loads(KEPT.read_text(encoding="utf-8"))
    board = Board.model_validate(stored)
    assert board.model_dump() == stored
    assert list(board.model_dump()) == list(stored)
    assert formats.format_summary(board)
