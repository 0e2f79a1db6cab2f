"""The recipes in ``scripts/recipes``: each is read, written back to the same, has the published
values, and trains.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_models
from made_pairs import mined, write_folder, write_lines

from sparse_ir.models.encoder import Encoder
from sparse_ir.training import pipeline
from sparse_ir.training.configuration.config import LossSettings, TrainConfig
from sparse_ir.training.configuration.config_parser import (
    config_to_json,
    format_config,
    parse_config,
    read_config,
)

FOLDER = Path(__file__).parents[2] / "scripts" / "recipes"
DECODERS = ("csplade", "csplade-adapt", "laconic", "lion-sp", "lion-sp-adapt", "mistral-splade")
NAMES = tuple(
    sorted(
        (
            *DECODERS,
            "ablation",
            "cpu-small",
            "default",
            "geng-finetune",
            "geng-pretrain",
            "siamese-splade",
        )
    )
)
DENSE = ("dense", "Alibaba-NLP/gte-large-en-v1.5")
SPARSE = ("sparse", "opensearch-project/opensearch-neural-sparse-encoding-v1")


def read(name: str) -> TrainConfig:
    return read_config(FOLDER / f"{name}.toml")


def teachers(config: TrainConfig) -> list[tuple[str, str | None]]:
    assert {teacher.weight for teacher in config.teacher} == {1.0}  # equal weights in all of them
    return [(teacher.kind, getattr(teacher, "model", None)) for teacher in config.teacher]


def test_every_recipe_is_listed_here():
    assert tuple(sorted(path.stem for path in FOLDER.glob("*.toml"))) == NAMES


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
    paths = [path for entry in config.data for path in (entry.path, entry.negatives)] + [
        dev.path for dev in config.dev
    ]
    assert all(path is not None and path.startswith("data/") for path in paths)
    names = [entry.name or Path(entry.path).name for entry in config.data]
    assert len(set(names)) == len(names)
    assert set(config.card.data_notes) <= set(names)


def test_every_variant_of_the_ablation_is_a_configuration_of_its_own(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER.parent))
    import ablate

    base = config_to_json(read("ablation"))
    made = ablate.make_variants(base, [60.0], [60.0, 150.0])
    variants = {name: parse_config(config) for name, config in made.items()}
    assert variants[ablate.BASE] == read("ablation")
    assert len({format_config(config) for config in variants.values()}) == len(variants) == 14
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
    assert (config.run.steps, config.optimizer.learning_rate, config.run.precision) == (
        150_000,
        5e-5,
        "float16",
    )
    assert config.documents.penalty == "flops"
    # OpenSearch's FLOPS is a sum over the slots of a group: a positive and seven negatives.
    assert config.documents.weight == pytest.approx(1e-7 * (1 + 7))


def test_geng_finetuning():
    config = read("geng-finetune")
    assert config.model.start == "runs/geng-pretrain/model" and config.model.query == "idf"
    assert (config.model.max_length, config.model.saved_max_length) == (256, 512)
    assert (config.batch.queries, config.batch.negatives, config.batch.in_batch) == (40, 10, False)
    assert teachers(config) == [
        DENSE,
        SPARSE,
        ("monot5", "castorini/monot5-3b-msmarco-10k"),
        ("cross-encoder", "cross-encoder/ms-marco-MiniLM-L-12-v2"),
    ]
    assert (config.ensemble.scale, config.ensemble.normalization) == (30.0, "minmax")
    assert config.loss == (LossSettings("kl", 1.0, 1.0),)
    assert (config.run.steps, config.optimizer.learning_rate, config.run.precision) == (
        50_000,
        2e-5,
        "float16",
    )
    assert config.documents.penalty == "flops"
    assert config.documents.weight == pytest.approx(0.02 * (1 + 10))


@pytest.mark.parametrize("name", ["geng-pretrain", "geng-finetune", "siamese-splade"])
def test_optimizer_of_the_published_configurations(name):
    optimizer = read(name).optimizer
    assert (optimizer.weight_decay, optimizer.schedule, optimizer.max_grad_norm) == (
        0.01,
        "linear",
        None,
    )


def test_siamese_splade():
    config = read("siamese-splade")
    assert config.model.start == "Luyu/co-condenser-marco" and config.model.query == "neural"
    assert (config.model.max_length, config.model.query_max_length) == (256, 256)
    assert (config.batch.queries, config.batch.negatives, config.batch.in_batch) == (128, 1, False)
    assert config.loss == (LossSettings("margin_mse"),)
    assert teachers(config) == [("cross-encoder", "cross-encoder/ms-marco-MiniLM-L-6-v2")]
    assert (config.ensemble.scale, config.ensemble.normalization) == (1.0, "none")
    assert (config.documents.penalty, config.queries.penalty) == ("flops", "flops")
    assert (config.documents.weight, config.queries.weight) == (0.4, 0.5)  # as naver's
    assert config.documents.ramp_steps == config.queries.ramp_steps == 50_000
    assert (config.run.steps, config.run.precision) == (150_000, "float16")
    assert (config.optimizer.learning_rate, config.optimizer.warmup_steps) == (2e-5, 6_000)


def test_cpu_small():
    config = read("cpu-small")
    assert (
        config.model.start == "sentence-transformers/all-MiniLM-L6-v2"
        and config.model.query == "idf"
    )
    assert (config.model.max_length, config.warm_start.steps, config.run.precision) == (
        192,
        100,
        "bfloat16",
    )
    batch = config.batch
    assert (batch.queries, batch.neighbourhood, batch.queries_per_positive, batch.in_batch) == (
        24,
        6,
        3,
        True,
    )
    assert config.loss == (LossSettings("kl", 1.0), LossSettings("info_nce", 0.3))
    assert teachers(config) == [("dense", "sentence-transformers/all-MiniLM-L6-v2"), ("bm25", None)]
    assert (config.ensemble.scale, config.ensemble.normalization) == (30.0, "minmax")
    assert (config.documents.penalty, config.documents.target_terms) == ("flops", 180.0)


# --- each recipe at toy size: other texts, networks and numbers, the same objective ---


@pytest.fixture(scope="module")
def toys(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny network in the place of each that the recipes name, and a data set."""
    root = tmp_path_factory.mktemp("toys")
    folders = {
        "sparse": tiny_folder,
        "dense": tiny_models.build_backbone(tiny_folder, root / "dense"),
        "cross-encoder": tiny_models.build_cross_encoder(tiny_folder, root / "cross"),
        "monot5": tiny_models.build_monot5(root / "t5"),
        "data": root / "pairs",
    }
    types = [
        {"path": path, "type": f"sentence_transformers.models.{path[2:] or 'Transformer'}"}
        for path in ("", "1_Pooling")
    ]
    (folders["dense"] / "modules.json").write_text(json.dumps(types))
    write_lines(folders["dense"] / "1_Pooling" / "config.json", [{"pooling_mode": "mean"}])
    texts = [
        *tiny_models.SENTENCES,
        *(text.replace(" the ", " a ") + " Often." for text in tiny_models.SENTENCES),
    ]
    documents = {f"d{number}": text for number, text in enumerate(texts)}
    questions = {f"q{number}": " ".join(text.split()[1:4]) for number, text in enumerate(texts)}
    for split in ("train", "dev"):
        write_folder(
            folders["data"],
            documents=documents,
            queries=questions,
            split=split,
            judgements=[(f"q{number}", f"d{number}", 1) for number in range(len(texts))],
        )
    write_lines(
        root / "negatives.jsonl",
        [
            mined(
                f"q{number}",
                [f"d{number}"],
                [f"d{(number + step) % len(texts)}" for step in range(1, 12)],
            )
            for number in range(len(texts))
        ],
    )
    return folders


def shrink(config: TrainConfig, toys: dict[str, Path], start: Path) -> dict[str, Any]:
    """The recipe with toys in the place of networks and data, and sizes to match; all else as it
    stands.
    """
    table = config_to_json(config)
    table["model"] |= {
        "start": str(start),
        "max_length": 24,
        "query_max_length": 12,
        "saved_max_length": 48,
    }
    negatives = str(toys["data"].parent / "negatives.jsonl")
    table["data"] = [
        entry | {"path": str(toys["data"]), "name": f"toy-{number}", "negatives": negatives}
        for number, entry in enumerate(table["data"][:2])
    ]
    table["batch"] |= {"queries": 6, "neighbourhood": min(table["batch"]["neighbourhood"], 2)}
    for teacher in table["teacher"]:
        teacher |= {"model": str(toys[teacher["kind"]])} if "model" in teacher else {}
    for side in ("documents", "queries"):
        table[side] |= {"ramp_steps": 2} if table[side]["penalty"] != "none" else {}
        table[side] |= {"target_terms": 40.0} if "target_terms" in table[side] else {}
    table["optimizer"]["warmup_steps"] = 1
    table["warm_start"] |= {"steps": min(table["warm_start"]["steps"], 2), "active_terms": 40}
    table["blend"] |= {"terms": 40} if "terms" in table["blend"] else {}
    for dev in table["dev"]:
        dev |= {"path": str(toys["data"]), "queries": 8, "documents": 20}
    table["run"] |= {"steps": 5, "save_every": 2, "log_every": 1} | (
        {"evaluate_every": 2} if table["dev"] else {}
    )
    if table["run"]["precision"] == "float16":  # for which no CPU will do
        table["run"]["precision"] = "float32"
    del table["card"]
    return table


def train_small(
    name: str, toys: dict[str, Path], start: Path, folder: Path
) -> list[dict[str, float]]:
    """Train and open the model; the lines of the log."""
    return train_table(name, shrink(read(name), toys, start), folder)


def train_table(name: str, table: dict[str, Any], folder: Path) -> list[dict[str, float]]:
    path = folder / f"{name}.toml"
    path.write_text(format_config(parse_config(table)), encoding="utf-8")
    report = pipeline.train(path, folder / name)
    assert Encoder.load(report["model"], device="cpu").encode(["a river"]).shape[0] == 1
    assert (Path(report["model"]) / "README.md").is_file()
    return [json.loads(line) for line in (folder / name / "log.jsonl").read_text().splitlines()]


def test_geng_trains_in_two_stages(toys, tmp_path):
    first = train_small("geng-pretrain", toys, toys["sparse"], tmp_path)
    second = train_small("geng-finetune", toys, tmp_path / "geng-pretrain" / "model", tmp_path)
    for lines in (first, second):
        assert [line["step"] for line in lines] == [1, 2, 3, 4, 5] and all(
            line["kl"] > 0 for line in lines
        )
    assert [line["documents_lambda"] for line in second] == pytest.approx(
        [0, 0.055, 0.22, 0.22, 0.22]
    )
    assert "dev" in second[-1]
    idf = [
        json.loads((tmp_path / name / "model" / "idf.json").read_text())
        for name in ("geng-pretrain", "geng-finetune")
    ]
    assert idf[0] == idf[1]  # that of the first stage is kept


@pytest.mark.parametrize(
    ("name", "start", "losses"),
    [
        ("cpu-small", "dense", {"kl", "info_nce"}),
        ("default", "dense", {"kl", "info_nce"}),
        ("ablation", "dense", {"kl", "info_nce"}),
        ("siamese-splade", "sparse", {"margin_mse"}),
    ],
)
def test_every_other_recipe_trains(name, start, losses, toys, tmp_path):
    lines = train_small(name, toys, toys[start], tmp_path)
    assert losses <= set(lines[-1]) and lines[-1]["documents_terms"] > 0
    assert ("bag_of_words_loss" in lines[0]) == (name == "cpu-small")
    assert ("queries_penalty" in lines[-1]) == (name == "siamese-splade")
    assert (tmp_path / name / "start.safetensors").is_file() == (name == "default")


# --- decoders ---


@pytest.mark.parametrize("name", DECODERS)
def test_a_decoder_recipe_marks_what_it_could_not_verify(name):
    assert "UNVERIFIED" in (FOLDER / f"{name}.toml").read_text(encoding="utf-8")
    # the only one that trains the whole network
    assert (read(name).lora is None) == (name == "csplade-adapt")
    assert read(name).run.precision == "bfloat16" and read(name).run.gradient_checkpointing


def test_mistral_splade():
    config = read("mistral-splade")
    assert config.model.start == "mistralai/Mistral-7B-v0.1" and config.decoder.mode == "echo"
    assert (config.lora.r, config.lora.alpha, config.lora.dropout) == (16, 8, 0.1)
    assert (
        config.loss == (LossSettings("info_nce"),)
        and config.teacher == ()
        and config.batch.negatives == 0
    )
    assert config.documents.penalty == config.queries.penalty == "flops" and not config.decoder.bos


def test_csplade():
    first, second = read("csplade-adapt"), read("csplade")
    assert (first.warm_start.objective, first.warm_start.relu_weight, first.warm_start.steps) == (
        "clm",
        1.0,
        10_000,
    )
    assert first.run.stop_after == first.warm_start.steps and first.batch.queries == 32
    assert first.warm_start.packed_length == 2048
    assert (
        second.model.start == "runs/csplade-adapt/model" and second.decoder.mode == "bidirectional"
    )
    assert (second.batch.queries, second.batch.negatives, second.batch.in_batch) == (32, 15, True)
    assert (second.lora.r, second.optimizer.learning_rate, second.optimizer.schedule) == (
        64,
        5e-5,
        "cosine",
    )
    assert second.documents.weight == second.queries.weight == 0.003
    assert (
        second.optimizer.warmup_steps == second.run.steps // 20 and second.run.steps == 3 * 15_717
    )


def test_lion_sp():
    first, second = read("lion-sp-adapt"), read("lion-sp")
    assert (first.warm_start.objective, first.warm_start.mask_share, first.warm_start.steps) == (
        "mntp",
        0.2,
        10_000,
    )
    assert first.lora.merge and (first.lora.r, first.model.max_length, first.batch.queries) == (
        16,
        512,
        32,
    )
    assert second.model.start == "runs/lion-sp-adapt/model"
    assert second.decoder.logit_scale == "hidden^-1/4" and second.decoder.mode == "bidirectional"
    assert (second.lora.r, second.lora.alpha, second.lora.dropout) == (16, 32, 0.1)
    assert (second.queries.weight, second.documents.weight, second.run.steps) == (0.05, 0.04, 4_200)
    assert second.documents.ramp_steps == second.queries.ramp_steps == second.run.steps // 3
    assert (second.model.query_max_length, second.model.max_length, second.batch.negatives) == (
        64,
        128,
        16,
    )


def test_laconic():
    config = read("laconic")
    assert config.decoder.mode == "bidirectional" and not config.decoder.bos
    assert (config.model.query_prompt, config.model.document_prompt) == ("query: ", "passage: ")
    assert (config.model.top_k, config.model.max_length, config.batch.negatives) == (512, 192, 15)
    assert (
        config.documents.weight == config.queries.weight == 1e-3
        and config.documents.ramp_steps == 100
    )
    assert config.lora.targets == "all-linear" and config.optimizer.learning_rate == 1e-4
    assert config.optimizer.warmup_steps == config.run.steps // 20


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import tiny_decoders

    return tiny_decoders.build("llama", tmp_path_factory.mktemp("recipes") / "llama")


@pytest.mark.parametrize("name", ["mistral-splade", "laconic"])
def test_a_decoder_recipe_trains(name, decoder, toys, tmp_path):
    lines = train_decoder(name, toys, decoder, tmp_path)
    assert lines[-1]["info_nce"] > 0 and lines[-1]["queries_penalty"] > 0
    assert (tmp_path / name / "model" / "adapter_config.json").is_file()


@pytest.mark.parametrize(("name", "objective"), [("csplade", "clm"), ("lion-sp", "mntp")])
def test_a_decoder_recipe_trains_in_two_stages(name, objective, decoder, toys, tmp_path):
    first = train_decoder(f"{name}-adapt", toys, decoder, tmp_path)
    assert [f"{objective}_loss" in line for line in first] == [True, True]
    second = train_decoder(name, toys, tmp_path / f"{name}-adapt" / "model", tmp_path)
    assert len(second) == 5 and second[-1]["documents_terms"] > 0


def train_decoder(
    name: str, toys: dict[str, Path], start: Path, folder: Path
) -> list[dict[str, float]]:
    table = shrink(read(name), toys, start)
    echo = read(name).decoder.mode == "echo"
    table["model"] |= (
        {"max_length": 80, "query_max_length": 100, "saved_max_length": 120} if echo else {}
    )
    table["warm_start"] |= {"packed_length": 40} if "packed_length" in table["warm_start"] else {}
    if table["run"].get("stop_after"):
        table["run"] |= {"steps": 3, "stop_after": 2}
    return train_table(name, table, folder)
