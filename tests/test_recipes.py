"""The recipes in ``scripts/recipes``: each is read, written back to the same, and has the published values."""

from __future__ import annotations

from pathlib import Path

import pytest

from sparse_ir.losses import translate_lambda
from sparse_ir.recipe import LossSettings, TrainConfig, config_to_json, format_config, parse_config, read_config

FOLDER = Path(__file__).parent.parent / "scripts" / "recipes"
NAMES = ("ablation", "cpu-small", "default", "geng-finetune", "geng-pretrain", "siamese-splade")
DENSE = ("dense", "Alibaba-NLP/gte-large-en-v1.5")
SPARSE = ("sparse", "opensearch-project/opensearch-neural-sparse-encoding-v1")


def read(name: str) -> TrainConfig:
    return read_config(FOLDER / f"{name}.toml")


def teachers(config: TrainConfig) -> list[tuple[str, str | None]]:
    assert {teacher.weight for teacher in config.teacher} == {1.0}  # equal weights in all of them
    return [(teacher.kind, teacher.model) for teacher in config.teacher]


def test_every_recipe_is_listed_here():
    assert tuple(sorted(path.stem for path in FOLDER.glob("*"))) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_comes_back_as_it_was(name, tmp_path):
    config = read(name)
    path = tmp_path / "again.toml"
    path.write_text(format_config(config), encoding="utf-8")
    assert read_config(path) == config


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_names_its_command_its_version_and_only_relative_folders(name):
    text, config = (FOLDER / f"{name}.toml").read_text(encoding="utf-8"), read(name)
    assert f"--config scripts/recipes/{name}.toml" in text
    assert "\nversion = 1\n" in text
    paths = [path for entry in config.data for path in (entry.path, entry.negatives)] + [dev.path for dev in config.dev]
    assert all(path is not None and path.startswith("data/") for path in paths)
    names = [entry.name or Path(entry.path).name for entry in config.data]
    assert len(set(names)) == len(names)
    assert set(config.card.data_notes) <= set(names)


def test_every_variant_of_the_ablation_is_a_configuration_of_its_own(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER.parent))
    import ablate

    base = config_to_json(read("ablation"))
    variants = {name: parse_config(config) for name, config in ablate.make_variants(base, [60.0, 100.0]).items()}
    assert variants[ablate.BASE] == read("ablation")
    assert len({format_config(config) for config in variants.values()}) == len(variants) == 11
    assert {config.run for config in variants.values()} == {read("ablation").run}


def test_geng_pretraining():
    config = read("geng-pretrain")
    assert config.model.start == "Luyu/co-condenser-marco" and config.model.query == "idf"
    assert (config.model.max_length, config.model.saved_max_length) == (128, 512)
    assert len(config.data) == 13
    assert (config.batch.queries, config.batch.negatives, config.batch.in_batch) == (48, 7, False)
    assert teachers(config) == [DENSE, SPARSE]
    assert (config.ensemble.scale, config.ensemble.normalization) == (10.0, "minmax")
    assert config.loss == (LossSettings("kl", 1.0, 1.0),)
    assert (config.run.steps, config.optimizer.learning_rate, config.run.precision) == (150_000, 5e-5, "float16")
    assert config.documents.penalty == "flops"
    assert config.documents.weight == pytest.approx(translate_lambda(1e-7, "opensearch", group_size=1 + 7))


def test_geng_finetuning():
    config = read("geng-finetune")
    assert config.model.start == "runs/geng-pretrain/model" and config.model.query == "idf"
    assert (config.model.max_length, config.model.saved_max_length) == (256, 512)
    assert (config.batch.queries, config.batch.negatives, config.batch.in_batch) == (40, 10, False)
    assert teachers(config) == [DENSE, SPARSE, ("cross-encoder", "cross-encoder/ms-marco-MiniLM-L-12-v2")]
    assert "castorini/monot5-3b-msmarco-10k" in (FOLDER / "geng-finetune.toml").read_text(encoding="utf-8")
    assert (config.ensemble.scale, config.ensemble.normalization) == (30.0, "minmax")
    assert config.loss == (LossSettings("kl", 1.0, 1.0),)
    assert (config.run.steps, config.optimizer.learning_rate, config.run.precision) == (50_000, 2e-5, "float16")
    assert config.documents.penalty == "flops"
    assert config.documents.weight == pytest.approx(translate_lambda(0.02, "opensearch", group_size=1 + 10))


@pytest.mark.parametrize("name", ["geng-pretrain", "geng-finetune", "siamese-splade"])
def test_optimizer_of_the_published_configurations(name):
    optimizer = read(name).optimizer
    assert (optimizer.weight_decay, optimizer.schedule, optimizer.max_grad_norm) == (0.01, "linear", None)


def test_siamese_splade():
    config = read("siamese-splade")
    assert config.model.start == "Luyu/co-condenser-marco" and config.model.query == "neural"
    assert (config.model.max_length, config.model.query_max_length) == (256, 256)
    assert (config.batch.queries, config.batch.negatives, config.batch.in_batch) == (128, 1, False)
    assert config.loss == (LossSettings("margin_mse"),)
    assert teachers(config) == [("cross-encoder", "cross-encoder/ms-marco-MiniLM-L-6-v2")]
    assert (config.ensemble.scale, config.ensemble.normalization) == (1.0, "none")
    assert (config.documents.penalty, config.queries.penalty) == ("flops", "flops")
    assert config.documents.weight == translate_lambda(0.4, "naver", group_size=2)
    assert config.queries.weight == translate_lambda(0.5, "naver")
    assert config.documents.ramp_steps == config.queries.ramp_steps == 50_000
    assert (config.run.steps, config.run.precision) == (150_000, "float16")
    assert (config.optimizer.learning_rate, config.optimizer.warmup_steps) == (2e-5, 6_000)


def test_cpu_small():
    config = read("cpu-small")
    assert config.model.start == "sentence-transformers/all-MiniLM-L6-v2" and config.model.query == "idf"
    assert (config.model.max_length, config.warm_start.steps, config.run.precision) == (192, 100, "bfloat16")
    batch = config.batch
    assert (batch.queries, batch.neighbourhood, batch.queries_per_positive, batch.in_batch) == (24, 6, 3, True)
    assert config.loss == (LossSettings("kl", 1.0), LossSettings("info_nce", 0.3))
    assert teachers(config) == [("dense", "sentence-transformers/all-MiniLM-L6-v2"), ("bm25", None)]
    assert (config.ensemble.scale, config.ensemble.normalization) == (30.0, "minmax")
    assert (config.documents.penalty, config.documents.target_terms) == ("flops", 180.0)
