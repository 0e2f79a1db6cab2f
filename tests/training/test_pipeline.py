"""A run put together from its configuration: what its teachers are asked is prepared, to the last
pair.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_models
from made_pairs import write_lines

from sparse_ir.training import pipeline
from sparse_ir.training.configuration import config_parser


@pytest.fixture(scope="module")
def scorer(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.build_cross_encoder(tiny_folder, tmp_path_factory.mktemp("runs") / "scorer")


@pytest.fixture(scope="module")
def pairs_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three questions for each of ten documents, and each question's two negatives."""
    texts = tiny_models.SENTENCES[:10]
    return write_lines(
        tmp_path_factory.mktemp("runs") / "pairs.jsonl",
        [
            {
                "query": " ".join(text.split()[start : start + 3]) + f" {number}",
                "positive": text,
                "negatives": [texts[(number + start + step) % len(texts)] for step in (1, 4)],
            }
            for number, text in enumerate(texts)
            for start in range(3)
        ],
    )


def write_config(
    path: Path, start: Path, scorer: Path, pairs_file: Path, batch: dict, steps: dict
) -> Path:
    config = config_parser.parse_config(
        {
            "model": {"start": str(start), "max_length": 24, "query_max_length": 12},
            "data": [{"path": str(pairs_file)}],
            "loss": [{"name": "kl"}],
            "teacher": [{"kind": "cross-encoder", "model": str(scorer)}, {"kind": "bm25"}],
            "batch": {"queries": 4, **batch},
            "warm_start": {"steps": 2, "learning_rate": 1e-4},
            "run": {"steps": 6, "tensorboard": False, **steps},
        }
    )
    path.write_text(config_parser.format_config(config), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "batch",
    [
        {},
        {"queries_per_positive": 3},
        {"in_batch": False, "negatives": 3, "queries_per_positive": 2},
        {"negatives": 1, "neighbourhood": 2},
    ],
)
def test_training_makes_no_forward_pass_of_a_prepared_teacher(
    batch, tiny_folder, scorer, pairs_file, tmp_path
):
    path = write_config(tmp_path / "run.toml", tiny_folder, scorer, pairs_file, batch, {})
    report = pipeline.teach(path, tmp_path / "cache")
    assert [row["forward_passes"] > 0 for row in report["teachers"]] == [True, False]
    assert pipeline.teach(path, tmp_path / "cache")["teachers"][0]["forward_passes"] == 0
    trained = pipeline.train(path, tmp_path / "run", cache=tmp_path / "cache")
    assert trained["teachers"] == [
        {"name": "scorer", "forward_passes": 0},
        {"name": "bm25", "forward_passes": 0},
    ]


def test_training_counts_what_was_not_prepared(tiny_folder, scorer, pairs_file, tmp_path):
    """The pairs up to ``stop_after`` are there; the others are scored on the way."""
    short = write_config(
        tmp_path / "short.toml", tiny_folder, scorer, pairs_file, {}, {"stop_after": 3}
    )
    assert pipeline.teach(short, tmp_path / "cache")["teachers"][0]["forward_passes"] == 4 * 4
    whole = write_config(tmp_path / "whole.toml", tiny_folder, scorer, pairs_file, {}, {})
    config = config_parser.read_config(whole)
    asked = set(pipeline.asked_pairs(config, pipeline.read_sources(config)))
    trained = pipeline.train(whole, tmp_path / "run", cache=tmp_path / "cache")
    assert trained["teachers"][0]["forward_passes"] == len(asked) - 4 * 4 > 0


def test_a_run_without_teachers_reports_none(tiny_folder, pairs_file, tmp_path):
    config = config_parser.parse_config(
        {
            "model": {"start": str(tiny_folder), "max_length": 24},
            "data": [{"path": str(pairs_file)}],
            "batch": {"queries": 4},
            "run": {"steps": 1, "tensorboard": False},
        }
    )
    path = tmp_path / "run.toml"
    path.write_text(config_parser.format_config(config), encoding="utf-8")
    assert "teachers" not in pipeline.train(path, tmp_path / "run")
