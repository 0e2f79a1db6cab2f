"""The training loop on tiny models: exact resume, equal losses however a batch is split, control,
guards, saving.
"""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import types
from pathlib import Path

import made_pairs
import numpy as np
import pytest
import tiny_models
import torch
from safetensors.torch import load_file, save_file
from small_runs import WORDS, Constant, Killed, kill_at, make_config, make_trainer
from tqdm import tqdm

from sparse_ir.errors import ConfigError, DamagedError, DataError, ModelError, TrainingError
from sparse_ir.models import idf, loading, tokenization
from sparse_ir.models.batching import by_length
from sparse_ir.models.encoder import Encoder
from sparse_ir.models.tokenization import Tokens
from sparse_ir.storage import files
from sparse_ir.training import pipeline
from sparse_ir.training.configuration import config_parser
from sparse_ir.training.encoders import trainable_encoder, warm_start
from sparse_ir.training.encoders.trainable_encoder import TrainableEncoder
from sparse_ir.training.loop import dev_sets, saved_state
from sparse_ir.training.loop.optimization import learning_rate
from sparse_ir.training.loop.trainer import Trainer
from sparse_ir.training.objectives import penalties


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """The number of threads decides how sums are rounded; runs in processes of their own have one
    too.
    """
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    return tiny_models.build("bert", tmp_path_factory.mktemp("training") / "bert")


@pytest.fixture(scope="session")
def dense_model(tmp_path_factory, model):
    """The same network with so high an output bias that a document has some hundred terms."""
    import transformers

    folder = tmp_path_factory.mktemp("training") / "dense"
    network = transformers.AutoModelForMaskedLM.from_pretrained(model)
    with torch.no_grad():
        network.get_output_embeddings().bias += 3.0
    network.save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(model).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def backbone(tmp_path_factory, model):
    """A network without an output layer, with the same tokenizer."""
    import transformers

    folder = tmp_path_factory.mktemp("training") / "backbone"
    transformers.AutoModelForMaskedLM.from_pretrained(model).base_model.save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(model).save_pretrained(folder)
    return folder


def trained(config, folder, **options):
    trainer = make_trainer(config, folder, **options)
    trainer.run()
    return {name: tensor.detach().clone() for name, tensor in trainer.student.state_dict().items()}


def assert_close(one, other, tolerance):
    """Equal weights but for the keys' biases: softmax does not see them, and AdamW enlarges what
    rounding leaves.
    """
    assert one.keys() == other.keys()
    for name in [name for name in one if not name.endswith("key.bias")]:
        assert (one[name] - other[name]).abs().max() <= tolerance, name


# --- resuming ---


@pytest.mark.parametrize("step", [1, 5])
def test_interrupted_equals_uninterrupted_bit_for_bit(
    model, pairs_file, tmp_path, monkeypatch, step
):
    config = make_config(
        model,
        pairs_file,
        model={"dropout": 0.1, "query": "learned"},
        documents={"penalty": "flops", "target_terms": 30.0, "weight": None},
        batch={"queries": 8, "micro_batch": 3},
    )
    trained(config, tmp_path / "whole")
    with monkeypatch.context() as patch:
        kill_at(patch, step)
        with pytest.raises(Killed):
            make_trainer(config, tmp_path / "cut").run()
    trained(config, tmp_path / "cut")
    last = "checkpoint-0000008"
    for name in ("model.safetensors", "state.safetensors"):
        one, other = (
            load_file(tmp_path / "whole" / last / name),
            load_file(tmp_path / "cut" / last / name),
        )
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)
    assert (tmp_path / "whole" / "log.jsonl").read_text() == (
        tmp_path / "cut" / "log.jsonl"
    ).read_text()


def test_a_finished_run_does_nothing_more(model, pairs_file, tmp_path):
    config = make_config(model, pairs_file)
    trained(config, tmp_path)
    before = (tmp_path / "log.jsonl").read_text()
    trained(config, tmp_path)
    assert (tmp_path / "log.jsonl").read_text() == before


def test_only_the_last_checkpoints_are_kept(model, pairs_file, tmp_path):
    trained(make_config(model, pairs_file), tmp_path)
    assert [path.name for path in saved_state.list_checkpoints(tmp_path)] == [
        "checkpoint-0000006",
        "checkpoint-0000008",
    ]


def test_a_checkpoint_of_another_configuration_is_refused(model, pairs_file, tmp_path):
    trained(make_config(model, pairs_file), tmp_path)
    other = make_config(model, pairs_file, optimizer={"learning_rate": 2e-3})
    with pytest.raises(
        TrainingError,
        match=r"optimizer\.learning_rate was 0\.001 and is now "
        r"0\.002",
    ):
        trained(other, tmp_path)


def test_how_often_is_saved_may_change_between_two_starts(model, pairs_file, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        kill_at(patch, 5)
        with pytest.raises(Killed):
            make_trainer(make_config(model, pairs_file), tmp_path).run()
    trained(make_config(model, pairs_file, run={"save_every": 8}), tmp_path)
    assert saved_state.list_checkpoints(tmp_path)[-1].name == "checkpoint-0000008"


def test_a_damaged_checkpoint_is_refused(model, pairs_file, tmp_path):
    config = make_config(model, pairs_file)
    trained(config, tmp_path)
    path = tmp_path / "checkpoint-0000008" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    with pytest.raises(DamagedError, match=r"damaged; delete .*checkpoint-0000008 to go on"):
        trained(config, tmp_path)


def test_a_full_disk_in_the_middle_of_a_save_leaves_the_checkpoint_before(
    model, pairs_file, tmp_path, monkeypatch
):
    config, before = make_config(model, pairs_file), resource.getrlimit(resource.RLIMIT_FSIZE)
    original = Trainer.take_step

    def fill(self, number):
        if number == 3:  # the network fits, the optimizer's moments, twice as large, do not
            size = (tmp_path / "cut" / "checkpoint-0000002" / "model.safetensors").stat().st_size
            resource.setrlimit(resource.RLIMIT_FSIZE, (size * 3 // 2, before[1]))
        return original(self, number)

    try:
        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "take_step", fill)
            with pytest.raises(OSError, match="File too large") as caught:
                make_trainer(config, tmp_path / "cut").run()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.filename == str(tmp_path / "cut" / "checkpoint-0000004")
    assert [path.name for path in (tmp_path / "cut").glob("*checkpoint*")] == ["checkpoint-0000002"]
    assert_close(trained(config, tmp_path / "cut"), trained(config, tmp_path / "whole"), 0.0)


@pytest.mark.slow
def test_kill_9_in_the_middle_of_a_save_costs_nothing_and_leaves_nothing(
    model, pairs_file, tmp_path
):
    config = make_config(
        model, pairs_file, data=[{"path": str(pairs_file), "name": "toy", "weight": 1.0}]
    )
    (tmp_path / "config.toml").write_text(config_parser.format_config(config))
    code = (
        "import os, pathlib, signal, sys\nimport safetensors.torch\nfrom sparse_ir.training "
        "import pipeline\n"
        "save, calls = safetensors.torch.save_file, []\n"
        "def kill(tensors, path, *rest, **options):\n"
        "    calls.append(path)\n"
        "    if len(calls) == 4:\n"
        "        pathlib.Path(path).write_bytes(b'half')\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    save(tensors, path, *rest, **options)\n"
        "safetensors.torch.save_file = kill\n"
        "pipeline.train(*map(pathlib.Path, sys.argv[1:]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "config.toml", tmp_path / "cut"],
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    left = {path.name.split("-")[0] for path in (tmp_path / "cut").glob("*checkpoint*")}
    # the one before, and the half of one under another name
    assert left == {"checkpoint", ".checkpoint"}
    assert_close(trained(config, tmp_path / "cut"), trained(config, tmp_path / "whole"), 0.0)
    assert not list((tmp_path / "cut").glob(".checkpoint*"))


# --- equal losses ---


def test_models_saved_in_fewer_bits_are_smaller_and_nearly_the_same(model, pairs_file, tmp_path):
    from sentence_transformers import SparseEncoder

    sizes, vectors = {}, {}
    for dtype in ("float32", "float16", "float8"):
        trained(make_config(model, pairs_file, model={"saved_dtype": dtype}), tmp_path / dtype)
        (path,) = (tmp_path / dtype / "model").glob("document*/model.safetensors")
        sizes[dtype] = path.stat().st_size
        vectors[dtype] = Encoder.load(tmp_path / dtype / "model", device="cpu").encode(
            tiny_models.SENTENCES
        )
        peer = SparseEncoder(str(tmp_path / dtype / "model"), device="cpu")
        found = peer.encode_document(tiny_models.SENTENCES, convert_to_sparse_tensor=False).numpy()
        assert vectors[dtype].toarray() == pytest.approx(found, abs=1e-4)
    assert sizes["float16"] == pytest.approx(sizes["float32"] / 2, rel=0.1)
    assert sizes["float8"] < sizes["float16"]
    norm = vectors["float32"].power(2).sum()
    assert abs(vectors["float16"] - vectors["float32"]).power(2).sum() < 1e-5 * norm
    assert 0 < abs(vectors["float8"] - vectors["float32"]).power(2).sum() < 0.05 * norm


def test_a_run_in_two_halves_equals_the_whole(model, pairs_file, tmp_path):
    whole = trained(make_config(model, pairs_file), tmp_path / "whole")
    half = make_config(model, pairs_file, run={"stop_after": 5})
    report = make_trainer(half, tmp_path / "halves").run()
    assert report["steps"] == 5 and (tmp_path / "halves" / "model" / "modules.json").is_file()
    halves = trained(make_config(model, pairs_file), tmp_path / "halves")
    assert all(torch.equal(whole[name], halves[name]) for name in whole)


def test_other_idf_values_under_the_same_name_are_another_run(model, pairs_file, tmp_path):
    tokenizer = tokenization.read_tokenizer(Path(model) / "tokenizer.json")
    values = np.linspace(1, 9, max(tokenizer.get_vocab().values()) + 1, dtype=np.float32)
    idf.write_idf_json(tmp_path / "idf.json", values, tokenizer)
    config = make_config(
        model,
        pairs_file,
        model={"query": "idf", "idf": str(tmp_path / "idf.json")},
        run={"steps": 3, "stop_after": 2, "save_every": 1},
    )
    trained(config, tmp_path / "run")
    idf.write_idf_json(tmp_path / "idf.json", values * 2, tokenizer)
    with pytest.raises(TrainingError, match=r"belongs to another training: idf_sha256 was "):
        trained(config, tmp_path / "run")


@pytest.mark.parametrize("query", ["idf", "neural"])
def test_micro_batches_give_the_same_weights(model, pairs_file, tmp_path, query):
    sections = {
        "model": {"query": query},
        "batch": {"queries": 8, "negatives": 1},
        "run": {"steps": 3},
    }
    whole = trained(make_config(model, pairs_file, **sections), tmp_path / "whole")
    sections["batch"]["micro_batch"] = 3
    assert_close(
        trained(make_config(model, pairs_file, **sections), tmp_path / "parts"), whole, 2e-5
    )


def launch(config, path, output, processes=2):
    """Train in several processes; the report."""
    path.write_text(config_parser.format_config(config))
    many = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc_per_node={processes}",
    ]
    done = subprocess.run(
        [*many, "-m", "sparse_ir", "train", "--config", path, "--output", output, "--json"],
        capture_output=True,
        timeout=300,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)  # one report, not two


@pytest.mark.slow
@pytest.mark.parametrize(("query", "stops"), [("learned", [3]), ("neural", [2, 3])])
def test_two_processes_give_the_weights_of_one(model, pairs_file, tmp_path, query, stops):
    """Also when they were stopped on their way."""
    settings = {"model": {"query": query}, "batch": {"queries": 7, "negatives": 1}}
    config = make_config(model, pairs_file, **settings, run={"steps": 3, "save_every": 3})
    whole = trained(config, tmp_path / "one")
    for stop in stops:
        part = make_config(
            model, pairs_file, **settings, run={"steps": 3, "save_every": 3, "stop_after": stop}
        )
        assert launch(part, tmp_path / "config.toml", tmp_path / "two")["steps"] == stop
    state = files.read_json(tmp_path / "two" / "checkpoint-0000003" / "state.json")
    assert state["world"] == 2
    found = load_file(tmp_path / "two" / "checkpoint-0000003" / "model.safetensors")
    # Adam's first steps divide a gradient by itself, so the rounding of a sum over processes shows
    # where it is small:
    # a few parts in a hundred of one step of learning rate, where a wrong gradient makes a whole
    # one
    assert_close(
        found,
        {name: whole[name] for name in found},
        0.05 * config.optimizer.learning_rate * config.run.steps,
    )


@pytest.mark.slow
def test_three_processes_of_unequal_shares_go_on_bit_for_bit(model, pairs_file, tmp_path):
    """One of them has more micro-batches than the others, and sums over three depend on their
    order.
    """
    settings = {"batch": {"queries": 4, "micro_batch": 1}, "model": {"dropout": 0.1}}
    steps = {"steps": 5, "save_every": 5}
    launch(
        make_config(model, pairs_file, **settings, run=steps),
        tmp_path / "c.toml",
        tmp_path / "whole",
        3,
    )
    for stop in (2, 5):
        part = make_config(model, pairs_file, **settings, run={**steps, "stop_after": stop})
        launch(part, tmp_path / "c.toml", tmp_path / "parts", 3)
    one, other = (
        load_file(tmp_path / name / "checkpoint-0000005" / "model.safetensors")
        for name in ("whole", "parts")
    )
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_checkpoints_are_read_to_the_processor_of_any_process(model, pairs_file, tmp_path):
    """One of several processes on the CPU has the device cpu:0, which safetensors refuses."""
    run = make_trainer(make_config(model, pairs_file), tmp_path)
    run.student.write_weights(tmp_path / "weights.safetensors")
    run.student.read_weights(tmp_path / "weights.safetensors", torch.device("cpu", 0))
    assert trainable_encoder.safetensors_device(torch.device("cuda", 1)) == "cuda:1"


def test_gradient_checkpointing_changes_nothing(model, pairs_file, tmp_path):
    plain = trained(make_config(model, pairs_file, run={"steps": 2}), tmp_path / "plain")
    saving = trained(
        make_config(model, pairs_file, run={"steps": 2, "gradient_checkpointing": True}),
        tmp_path / "less",
    )
    assert_close(saving, plain, 1e-6)


def test_gradient_checkpointing_by_the_name_that_is_there():
    """transformers 5 renamed its switch, and warns of the old name; older versions have the old one
    only.
    """
    calls = []
    new = {"activation_checkpointing_enable": lambda options: calls.append(("new", options))}
    old = {"gradient_checkpointing_enable": lambda options: calls.append(("old", options))}
    for names in (new | old, old):
        loading.checkpoint_activations(types.SimpleNamespace(**names))
    assert calls == [("new", {"use_reentrant": False}), ("old", {"use_reentrant": False})]


# --- losses of a step ---


@pytest.mark.parametrize("losses", [["kl"], ["margin_mse"], ["kl", "info_nce", "margin_mse"]])
def test_every_loss_trains(model, pairs_file, tmp_path, losses):
    config = make_config(
        model,
        pairs_file,
        loss=[{"name": name} for name in losses],
        teacher=[{"kind": "bm25"}],
        run={"steps": 3},
    )
    trainer = make_trainer(config, tmp_path, teachers=[(Constant(), 1.0)])
    trainer.run()
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert all(set(losses) <= set(line) for line in lines)


def test_the_parts_of_the_loss_add_up(model, pairs_file, tmp_path):
    config = make_config(
        model,
        pairs_file,
        loss=[{"name": "info_nce", "weight": 0.3}, {"name": "kl"}],
        teacher=[{"kind": "bm25"}],
        run={"steps": 6},
    )
    make_trainer(config, tmp_path, teachers=[(Constant(), 1.0)]).run()
    for line in map(json.loads, (tmp_path / "log.jsonl").read_text().splitlines()):
        total = (
            0.3 * line["info_nce"]
            + line["kl"]
            + line["documents_lambda"] * line["documents_penalty"]
        )
        assert line["loss"] == pytest.approx(total, rel=1e-5)


def test_a_loss_may_stand_there_twice(model, pairs_file, tmp_path):
    config = make_config(
        model,
        pairs_file,
        loss=[{"name": "info_nce"}, {"name": "info_nce", "temperature": 4.0}],
        run={"steps": 2},
    )
    make_trainer(config, tmp_path).run()
    for line in map(json.loads, (tmp_path / "log.jsonl").read_text().splitlines()):
        penalty = line["documents_lambda"] * line["documents_penalty"]
        assert line["info_nce"] != line["info_nce_1"]
        assert line["loss"] == pytest.approx(
            line["info_nce"] + line["info_nce_1"] + penalty, rel=1e-5
        )


def test_a_target_beyond_the_vocabulary_and_a_prompt_without_room_are_refused(
    model, pairs_file, tmp_path
):
    with pytest.raises(
        ConfigError,
        match=r"\[documents\] target_terms is 1000000000.0; it must be at "
        r"most",
    ):
        make_trainer(
            make_config(model, pairs_file, documents={"weight": None, "target_terms": 1e9}),
            tmp_path,
        )
    with pytest.raises(ConfigError, match=r"blend.terms is 1000000000; it must be at most"):
        make_trainer(make_config(model, pairs_file, blend={"terms": 10**9}), tmp_path)
    with pytest.raises(
        ConfigError, match=r"model\.document_prompt alone takes [0-9]+ of 24 tokens"
    ):
        make_trainer(
            make_config(model, pairs_file, model={"document_prompt": "some words " * 20}), tmp_path
        )


def test_the_configuration_in_the_folder_is_that_of_the_last_call(model, pairs_file, tmp_path):
    trained(make_config(model, pairs_file, run={"stop_after": 4}), tmp_path)
    assert config_parser.read_config(tmp_path / "config.toml").run.stop_after == 4
    trained(make_config(model, pairs_file), tmp_path)
    assert config_parser.read_config(tmp_path / "config.toml").run.stop_after is None


def test_scores_of_the_file_need_a_file_with_scores(model, tmp_path):
    folder = made_pairs.write_folder(tmp_path / "set")
    config = make_config(
        model, folder, loss=[{"name": "kl"}], teacher=[{"kind": "file"}], batch={"negatives": 1}
    )
    with pytest.raises(ConfigError, match="the source 'toy' has no scores; it must"):
        pipeline.open_teachers(config, pipeline.read_sources(config), tmp_path / "cache")


def test_a_plain_folder_is_a_dense_teacher_when_its_pooling_is_given(
    backbone, model, pairs_file, tmp_path
):
    def opened(**options):
        config = make_config(
            model,
            pairs_file,
            loss=[{"name": "kl"}],
            teacher=[{"kind": "dense", "model": str(backbone), **options}],
        )
        return pipeline.open_teachers(config, pipeline.read_sources(config), tmp_path)[0][0]

    with pytest.raises(ConfigError, match="states no pooling; pooling must be one of"):
        opened()
    teacher = opened(pooling="mean", similarity="dot", query_prompt="q: ")
    assert teacher.fingerprint["pooling"] == ["mean"] and teacher.fingerprint["similarity"] == "dot"
    assert teacher.fingerprint["prompts"] == {"query": "q: ", "document": ""}


def test_scores_of_the_file_are_a_teacher(model, pairs_file, tmp_path):
    config = make_config(
        model,
        pairs_file,
        loss=[{"name": "margin_mse"}],
        teacher=[{"kind": "file"}],
        ensemble={"normalization": "none", "scale": 1.0},
        run={"steps": 2},
        batch={"queries": 4, "negatives": 1, "in_batch": False},
    )
    trained_facts = make_trainer(config, tmp_path, teachers=[(None, 1.0)])
    trained_facts.run()
    assert json.loads((tmp_path / "log.jsonl").read_text().splitlines()[0])["margin_mse"] > 0


def test_a_teacher_that_gives_no_number_is_refused(model, pairs_file, tmp_path):
    class Broken(Constant):
        def scores(self, queries, documents, wanted_QD):
            return super().scores(queries, documents, wanted_QD) * np.nan

    config = make_config(model, pairs_file, loss=[{"name": "kl"}], teacher=[{"kind": "bm25"}])
    with pytest.raises(DataError):
        make_trainer(config, tmp_path, teachers=[(Broken(), 1.0)]).run()


@pytest.mark.parametrize("penalty", ["flops", "idf_flops", "df_flops", "l1"])
def test_every_penalty_makes_documents_sparser(model, pairs_file, tmp_path, penalty):
    def last_terms(weight):
        folder = tmp_path / f"{penalty}-{weight}"
        trained(
            make_config(
                model,
                pairs_file,
                documents={"penalty": penalty, "weight": weight, "ramp_steps": 0},
                run={"steps": 30, "save_every": 30},
            ),
            folder,
        )
        return json.loads((folder / "log.jsonl").read_text().splitlines()[-1])["documents_terms"]

    assert last_terms(3.0) < 0.8 * last_terms(0.0)


# --- autopilot and guards ---


@pytest.mark.slow
@pytest.mark.parametrize("shape", [{"queries": 4}, {"queries": 16}, {"queries": 6, "negatives": 1}])
def test_the_autopilot_comes_near_its_target(dense_model, pairs_file, tmp_path, shape):
    config = make_config(
        dense_model,
        pairs_file,
        batch=shape,
        run={"steps": 600, "save_every": 600, "seed": 5},
        optimizer={"learning_rate": 3e-4},
        documents={"penalty": "flops", "weight": None, "target_terms": 25.0, "ramp_steps": 100},
    )
    trained(config, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert lines[0]["documents_terms"] > 60
    reached = np.mean([line["documents_terms"] for line in lines[-150:]])
    assert reached == pytest.approx(25.0, rel=0.10)


@pytest.mark.slow
@pytest.mark.parametrize(
    "shape", [{"queries": 8}, {"queries": 16}, {"queries": 12, "queries_per_positive": 4}]
)
@pytest.mark.parametrize("rate", [3e-4, 1e-3])
def test_the_autopilot_comes_near_its_target_in_a_short_run(
    dense_model, pairs_file, tmp_path, shape, rate
):
    """Also with a learning rate at which no lambda is strong enough."""
    config = make_config(
        dense_model,
        pairs_file,
        batch=shape,
        run={"steps": 220, "save_every": 220, "seed": 5},
        optimizer={"learning_rate": rate},
        documents={"penalty": "flops", "weight": None, "target_terms": 25.0, "ramp_steps": 80},
    )
    report = make_trainer(config, tmp_path).run()
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert lines[0]["documents_terms"] > 100
    assert np.mean([line["documents_terms"] for line in lines[-60:]]) == pytest.approx(
        25.0, rel=0.10
    )
    assert (
        report["documents_terms"] == pytest.approx(25.0, rel=0.10)
        and "missed_targets" not in report
    )


@pytest.mark.parametrize("query", ["idf", "neural"])
def test_the_terms_of_a_target_are_those_of_the_saved_model_and_not_those_under_dropout(
    dense_model, pairs_file, tmp_path, query
):
    config = make_config(
        dense_model,
        pairs_file,
        run={"steps": 220, "save_every": 220, "seed": 5},
        model={"dropout": 0.3, "query": query},
        documents={"penalty": "flops", "weight": None, "target_terms": 25.0, "ramp_steps": 80},
    )
    trainer = make_trainer(config, tmp_path)
    report = trainer.run()
    texts = trainer.batches.at(219).documents + trainer.batches.at(218).documents
    trainer.student.train()
    with torch.no_grad():
        under_dropout = (
            (trainer.student(trainer.student.tokenize_documents(texts)) > 0).sum(1).float().mean()
        )
    assert abs(under_dropout / 25.0 - 1) > 0.25  # control by this count would be far off
    saved = Encoder.load(tmp_path / "model", device="cpu", max_length=24).encode(texts)
    assert saved.nnz / saved.shape[0] == pytest.approx(25.0, rel=0.15)
    assert report["documents_terms"] == pytest.approx(saved.nnz / saved.shape[0], rel=0.15)
    assert "missed_targets" not in report


def test_a_target_that_was_missed_is_told(dense_model, pairs_file, tmp_path, capsys):
    config = make_config(
        dense_model, pairs_file, documents={"weight": None, "target_terms": 25.0, "ramp_steps": 80}
    )
    report = make_trainer(config, tmp_path).run()
    [line] = report["missed_targets"]
    assert re.match(
        r"documents: 1\d\d\.\d active terms on average, 25 were asked for; give the "
        r"training more steps",
        line,
    )
    assert f"warning: {line}" in capsys.readouterr().err


def test_a_network_that_blows_up_is_explained(model, pairs_file, tmp_path):
    """Not as bad data, which a score that is no number would be in a loss."""
    config = make_config(model, pairs_file, optimizer={"learning_rate": 1e38}, run={"steps": 20})
    with pytest.raises(
        TrainingError,
        match=r"step \d+: the score is (nan|inf|-inf); lower "
        r"optimizer.learning_rate",
    ):
        make_trainer(config, tmp_path).run()


def test_the_document_frequencies_of_df_flops_are_a_mean_from_the_first_step(
    model, pairs_file, tmp_path
):
    config = make_config(
        model,
        pairs_file,
        documents={"penalty": "df_flops", "weight": 1.0, "ramp_steps": 0},
        run={"steps": 1},
    )
    trainer = make_trainer(config, tmp_path)
    batch = trainer.batches.at(0)
    weights_NV = trainer.student(trainer.student.tokenize_documents(batch.documents)).detach()
    share_V = (weights_NV > 0).float().mean(0)
    trainer.run()
    [line] = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    expected = float(penalties.df_flops(weights_NV, share_V, alpha=0.1, beta=5.0))
    assert line["documents_penalty"] == pytest.approx(expected, rel=1e-3)


def test_a_penalty_that_kills_all_terms_stops_the_run_with_a_reason(model, pairs_file, tmp_path):
    config = make_config(
        model, pairs_file, documents={"weight": 1e4, "ramp_steps": 0}, run={"steps": 200}
    )
    with pytest.raises(TrainingError, match="lower the penalty"):
        trained(config, tmp_path)


# --- warm start ---


def test_a_start_that_is_a_pickle_needs_permission(model, pairs_file, tmp_path):
    folder = Path(shutil.copytree(model, tmp_path / "old"))
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="a pickle; with allow_pickle=True it is read"):
        trainable_encoder.start_network(make_config(folder, pairs_file))
    allowed = trainable_encoder.start_network(
        make_config(folder, pairs_file, model={"allow_pickle": True})
    )
    expected = trainable_encoder.start_network(make_config(model, pairs_file))
    for stored, first in (
        (expected.network.model, allowed.network.model),
        (expected.network.output_layer, allowed.network.output_layer),
    ):
        for name, tensor in first.state_dict().items():
            assert torch.equal(tensor, stored.state_dict()[name])
    assert not allowed.grown


def test_a_backbone_without_an_output_layer_gets_a_tied_one(backbone, model, pairs_file):
    with pytest.raises(ModelError, match="lacks weights"):
        Encoder.load(backbone)
    start = trainable_encoder.start_network(make_config(backbone, pairs_file))
    assert start.grown
    network = start.network
    assert network.output_layer.weight is network.model.get_input_embeddings().weight
    assert not trainable_encoder.start_network(make_config(model, pairs_file)).grown


def test_the_warm_start_learns_the_words_of_the_documents(backbone, pairs_file, tmp_path):
    config = make_config(
        backbone,
        pairs_file,
        warm_start={"steps": 60, "learning_rate": 3e-3, "active_terms": 20},
        run={"steps": 61, "save_every": 61},
    )
    trained(config, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert lines[59]["bag_of_words_loss"] < 0.8 * lines[0]["bag_of_words_loss"]
    assert lines[60]["documents_terms"] == pytest.approx(20, abs=1)
    encoder = Encoder.load(tmp_path / "model")
    vector = encoder.encode([tiny_models.SENTENCES[0]])
    assert not {"[CLS]", "[SEP]"} & {encoder.vocabulary[token_id] for token_id in vector.indices}


def test_token_vectors_are_the_backbones_own(backbone):
    """A logit is 10 x cosine between the states that the new transform lets pass, told by a plain
    computation.
    """
    import transformers

    config = make_config(backbone, "nothing", model={"max_length": 24, "dropout": 0.0})
    start = trainable_encoder.start_network(config)
    made = TrainableEncoder(start, config)
    warm_start.give_token_vectors(made, start.grown, tiny_models.SENTENCES)
    plain, owner = (
        transformers.AutoModel.from_pretrained(backbone).eval(),
        transformers.AutoTokenizer.from_pretrained(backbone),
    )

    def states(text):
        with torch.no_grad():
            found = plain(**owner(text, return_tensors="pt", truncation=True, max_length=24))[0][0]
        return (found - found.mean(1, keepdim=True)) / found.std(1, keepdim=True, unbiased=False)

    words = [
        token
        for token in made.hf_tokenizer.get_vocab()
        if token.isalpha() and len(owner.tokenize(token)) == 1
    ][:40]
    rows = torch.stack([states(word).mean(0) for word in words])
    ids = owner.convert_tokens_to_ids(words)
    own = made.output_layer.weight[ids].detach()
    between = torch.nn.functional.cosine_similarity(own[:, None], own[None], dim=2)
    expected = rows - made_mean(made, states)
    expected = torch.nn.functional.cosine_similarity(expected[:, None], expected[None], dim=2)
    assert float((between - expected).abs().max()) < 0.15  # GELU is not quite linear there
    with torch.no_grad():
        logits = made(made.tokenize_documents(tiny_models.SENTENCES), scores=True)
    assert 1.0 < float(logits.max()) < 20.0


def made_mean(made, states):
    """The mean vector of all tokens, each read alone."""
    tokens = [
        token
        for token, _ in sorted(made.hf_tokenizer.get_vocab().items(), key=lambda item: item[1])
    ]
    with_one = [token for token in tokens if made.hf_tokenizer.tokenize(token) == [token]]
    return torch.stack([states(token).mean(0) for token in with_one]).mean(0)


def test_a_head_of_token_vectors_is_trained_saved_and_resumed(
    backbone, pairs_file, tmp_path, monkeypatch
):
    config = make_config(
        backbone,
        pairs_file,
        warm_start={"head": "token_vectors", "active_terms": 20},
        run={"steps": 6, "save_every": 3},
    )
    whole = trained(config, tmp_path / "whole")
    first = json.loads((tmp_path / "whole" / "log.jsonl").read_text().splitlines()[0])
    assert first["documents_terms"] == pytest.approx(20, abs=1)
    with monkeypatch.context() as patch:
        kill_at(patch, 4)
        with pytest.raises(Killed):
            make_trainer(config, tmp_path / "cut").run()
    cut = trained(config, tmp_path / "cut")
    assert all(torch.equal(whole[name], cut[name]) for name in whole)
    trainer = make_trainer(config, tmp_path / "whole")
    trainer.run()
    encoder = Encoder.load(tmp_path / "whole" / "model", device="cpu")
    found = encoder.encode(tiny_models.SENTENCES).toarray()
    assert found == pytest.approx(
        trainer.student.vectors(tiny_models.SENTENCES).toarray(), abs=1e-4
    )
    assert not {"[CLS]", "[SEP]"} & {
        encoder.vocabulary[token_id] for token_id in found.nonzero()[1]
    }


def test_a_blend_is_the_mean_of_start_and_end_with_the_number_of_terms_asked_for(
    backbone, pairs_file, tmp_path
):
    warm = {"head": "token_vectors", "active_terms": 20}
    config = make_config(
        backbone, pairs_file, warm_start=warm, blend={"start": 0.25, "terms": 12}, run={"steps": 6}
    )
    plain = make_config(backbone, pairs_file, warm_start=warm, run={"steps": 6})
    end = trained(plain, tmp_path / "plain")  # a blend changes nothing before the end
    trainer = make_trainer(config, tmp_path / "blend")
    trainer.run()
    start = load_file(tmp_path / "blend" / "start.safetensors")
    found = trainer.student.state_dict()
    for name in set(end) & set(found) - {"output_layer.bias"}:
        assert torch.allclose(found[name], 0.75 * end[name] + 0.25 * start[name], atol=1e-6), name
    shift = found["output_layer.bias"] - (
        0.75 * end["output_layer.bias"] + 0.25 * start["output_layer.bias"]
    )
    assert shift.max() - shift.min() < 1e-4 < shift.abs().max()
    vectors = Encoder.load(tmp_path / "blend" / "model", device="cpu").encode(trainer.setup.sample)
    assert vectors.nnz / vectors.shape[0] == pytest.approx(12, abs=0.5)


@pytest.mark.parametrize("blend", [{"start": 0.5}, {"terms": 9}, {"start": 0.5, "terms": 9}])
def test_the_terms_of_a_blend_are_measured_on_what_is_saved(model, pairs_file, tmp_path, blend):
    trainer = make_trainer(make_config(model, pairs_file, blend=blend), tmp_path)
    report = trainer.run()
    vectors = Encoder.load(tmp_path / "model", device="cpu").encode(trainer.setup.sample)
    assert report["documents_terms"] == vectors.nnz / vectors.shape[0] > 0


def test_a_blend_needs_the_network_with_which_ranking_began(model, pairs_file, tmp_path):
    """That is said before the first step, not after the last."""
    trained(make_config(model, pairs_file, run={"stop_after": 4}), tmp_path)
    with pytest.raises(
        TrainingError,
        match=r"start\.safetensors was never written, "
        r".*blend\.start was set from the",
    ):
        make_trainer(make_config(model, pairs_file, blend={"start": 0.5}), tmp_path).run()
    assert [path.name for path in saved_state.list_checkpoints(tmp_path)][
        -1
    ] == "checkpoint-0000004"


@pytest.mark.parametrize("harm", ["cut", "lost"])
def test_a_damaged_start_of_a_blend_is_refused(model, pairs_file, tmp_path, harm):
    config = make_config(model, pairs_file, blend={"start": 0.5}, run={"stop_after": 4})
    trained(config, tmp_path)
    start = tmp_path / "start.safetensors"
    start.write_bytes(start.read_bytes()[:-40]) if harm == "cut" else start.unlink()
    with pytest.raises(
        DamagedError,
        match=r"start\.safetensors is missing or damaged, "
        r".*blend\.start needs it",
    ):
        make_trainer(make_config(model, pairs_file, blend={"start": 0.5}), tmp_path).run()


def test_the_bag_of_words_loss_by_hand():
    pooled = torch.tensor([[1.0, 2.0, 0.0, 5.0]], requires_grad=True)
    weights = torch.tensor([1.0, 2.0, 1.0, 0.0])  # the last token is special: out of the softmax
    loss = warm_start.bag_of_words_loss(pooled, [Tokens(np.array([0, 1, 1, 3]))], weights)
    log_sum = np.log(np.exp(1.0) + np.exp(2.0) + 1.0)
    assert float(loss.detach()) == pytest.approx(
        -(1 / 5 * (1 - log_sum) + 4 / 5 * (2 - log_sum)), rel=1e-6
    )


# --- dev, saving, options ---


@pytest.fixture(scope="session")
def dev_folder(tmp_path_factory, pairs_file):
    folder = tmp_path_factory.mktemp("training") / "dev"
    rows = [json.loads(line) for line in pairs_file.read_text().splitlines()]
    for name, key in (("corpus", "positive"), ("queries", "query")):
        with files.atomic_writer(folder / f"{name}.jsonl") as stream:
            stream.writelines(
                json.dumps({"_id": str(i), "text": row[key]}) + "\n" for i, row in enumerate(rows)
            )
    with files.atomic_writer(folder / "qrels" / "dev.tsv") as stream:
        stream.write("query-id\tcorpus-id\tscore\n")
        stream.writelines(f"{i}\t{i}\t1\n" for i in range(0, len(rows), 2))
    return folder


def test_the_best_step_by_the_dev_set_becomes_the_model(model, pairs_file, dev_folder, tmp_path):
    config = make_config(
        model, pairs_file, run={"evaluate_every": 2}, dev=[{"path": str(dev_folder)}]
    )
    dev = dev_sets.read_dev_set(str(dev_folder), documents=30)
    assert (len(dev.documents), len(dev.queries)) == (30, 20)
    report = make_trainer(config, tmp_path, dev=[dev]).run()
    measured = {
        line["step"]: line["dev"]
        for line in map(json.loads, (tmp_path / "log.jsonl").read_text().splitlines())
        if "dev" in line
    }
    assert sorted(measured) == [2, 4, 6, 8]
    assert report["best_dev"] == max(measured.values()) == measured[report["best_step"]]
    best = load_file(tmp_path / f"checkpoint-{report['best_step']:07d}" / "model.safetensors")
    saved = load_file(next((tmp_path / "model").glob("document*/model.safetensors")))
    assert all(
        torch.equal(best[f"model.{name}"], tensor)
        for name, tensor in saved.items()
        if f"model.{name}" in best
    )
    assert len(set(saved) & {name.removeprefix("model.") for name in best}) > 30


def fixed_measures(monkeypatch, *values):
    """The dev measure takes these values, one after the other."""
    left = list(values)
    monkeypatch.setattr(dev_sets, "evaluate", lambda *_: left.pop(0))


def test_the_best_step_has_a_checkpoint_that_stays(
    model, pairs_file, dev_folder, tmp_path, monkeypatch
):
    """However often is saved: what is best is never newer than the newest checkpoint, nor deleted
    before the end.
    """
    fixed_measures(monkeypatch, 0.2, 0.4, 0.3, 0.1)
    config = make_config(
        model,
        pairs_file,
        run={"evaluate_every": 2, "save_every": 3, "keep": 1},
        dev=[{"path": str(dev_folder)}],
    )
    report = make_trainer(config, tmp_path, dev=[dev_sets.read_dev_set(str(dev_folder))]).run()
    assert (report["best_step"], report["best_dev"]) == (4, 0.4)
    assert [path.name for path in saved_state.list_checkpoints(tmp_path)] == [
        "checkpoint-0000004",
        "checkpoint-0000008",
    ]


def test_a_lost_best_step_is_told_before_the_next_one(
    model, pairs_file, dev_folder, tmp_path, monkeypatch
):
    fixed_measures(monkeypatch, 0.4, 0.3, 0.2)
    dev = [dev_sets.read_dev_set(str(dev_folder))]
    config = make_config(
        model,
        pairs_file,
        run={"evaluate_every": 2, "keep": 1, "stop_after": 6},
        dev=[{"path": str(dev_folder)}],
    )
    make_trainer(config, tmp_path, dev=dev).run()
    shutil.rmtree(tmp_path / "checkpoint-0000002")
    with pytest.raises(
        DamagedError, match="checkpoint-0000002 is missing, the best step so far by the dev sets"
    ):
        config = make_config(
            model, pairs_file, run={"evaluate_every": 2, "keep": 1}, dev=[{"path": str(dev_folder)}]
        )
        make_trainer(config, tmp_path, dev=dev).run()


def test_as_long_as_nothing_is_found_the_last_step_is_the_best(
    model, pairs_file, dev_folder, tmp_path, monkeypatch
):
    fixed_measures(monkeypatch, 0.0, 0.0, 0.0, 0.0)
    config = make_config(
        model, pairs_file, run={"evaluate_every": 2}, dev=[{"path": str(dev_folder)}]
    )
    report = make_trainer(config, tmp_path, dev=[dev_sets.read_dev_set(str(dev_folder))]).run()
    assert (report["best_step"], report["best_dev"]) == (8, 0.0)


def test_dev_sets_added_to_a_finished_run_measure_its_last_step(
    model, pairs_file, dev_folder, tmp_path
):
    config = make_config(model, pairs_file)
    make_trainer(config, tmp_path).run()
    dev = dev_sets.read_dev_set(str(dev_folder))
    settings = make_config(model, pairs_file, dev=[{"path": str(dev_folder)}])
    first, again = (make_trainer(settings, tmp_path, dev=[dev]).run() for _ in range(2))
    assert first["best_step"] == 8 and first["best_dev"] > 0
    assert again == first


def test_the_number_format_of_a_finished_run_may_change(model, pairs_file, dev_folder, tmp_path):
    dev = dev_sets.read_dev_set(str(dev_folder))
    for dtype, size in (("float32", torch.float32), ("float16", torch.float16)):
        config = make_config(
            model,
            pairs_file,
            model={"saved_dtype": dtype},
            run={"evaluate_every": 2},
            dev=[{"path": str(dev_folder)}],
        )
        make_trainer(config, tmp_path, dev=[dev]).run()
        saved = load_file(next((tmp_path / "model").glob("document*/model.safetensors")))
        assert {tensor.dtype for tensor in saved.values() if tensor.is_floating_point()} == {size}


def test_what_a_run_with_a_dev_set_shows_and_reports(
    model, pairs_file, dev_folder, tmp_path, monkeypatch
):
    """Dev measures are logged whenever they are taken; the terms reported are those of the step
    that is saved.
    """
    shown = []
    monkeypatch.setattr(tqdm, "set_postfix_str", lambda self, text: shown.append(text))
    config = make_config(
        model,
        pairs_file,
        run={"evaluate_every": 2, "log_every": 8},
        dev=[{"path": str(dev_folder)}],
    )
    dev = dev_sets.read_dev_set(str(dev_folder))
    report = make_trainer(config, tmp_path, dev=[dev]).run()
    lines = {
        line["step"]: line
        for line in map(json.loads, (tmp_path / "log.jsonl").read_text().splitlines())
    }
    assert sorted(lines) == [2, 4, 6, 8]
    best = lines[report["best_step"]]
    assert report["best_dev"] == best["dev"]
    last = lines[8]
    assert shown[-1] == (
        f"loss {last['loss']:.4g}, terms {last['queries_terms']:.0f} / "
        f"{last['documents_terms']:.0f}, "
        f"nDCG@10 {last['dev']:.4f} (best {report['best_dev']:.4f})"
    )


@pytest.mark.parametrize("others", [[], [{"path": "elsewhere", "measure": "R@10"}]])
def test_a_best_step_is_forgotten_with_its_dev_sets(
    model, pairs_file, dev_folder, tmp_path, others
):
    def run(dev, **settings):
        often = {"evaluate_every": 2} if dev else {}
        config = make_config(model, pairs_file, run={**often, **settings}, dev=dev)
        sets = [dev_sets.read_dev_set(str(dev_folder), measure=each["measure"]) for each in dev]
        return make_trainer(config, tmp_path, dev=sets).run()

    first = run([{"path": str(dev_folder), "measure": "nDCG@10"}], stop_after=4)
    assert first["best_step"] in (2, 4)
    last = run(others)
    assert last["best_step"] in ((6, 8) if others else (None,))
    kept = {path.name for path in saved_state.list_checkpoints(tmp_path)}
    assert kept == {"checkpoint-0000006", "checkpoint-0000008"}


def test_a_best_step_is_forgotten_when_the_dev_set_says_something_else(
    model, pairs_file, dev_folder, tmp_path
):
    config = make_config(model, pairs_file, dev=[{"path": str(dev_folder)}])
    dev = dev_sets.read_dev_set(str(dev_folder))
    first = make_trainer(config, tmp_path, dev=[dev]).run()
    other = dev._replace(
        queries=[
            query._replace(text=dev.documents[row * 2]) for row, query in enumerate(dev.queries)
        ]
    )
    assert make_trainer(config, tmp_path, dev=[other]).run()["best_dev"] > first["best_dev"]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"top_k": 3},
        {"query_max_length": 4},
        {"query": "learned"},
        {"query": "neural", "query_max_length": 4},
    ],
)
def test_the_dev_measure_is_that_of_the_saved_model(
    model, pairs_file, dev_folder, tmp_path, settings
):
    from sparse_ir.evaluation import measures

    dev = dev_sets.read_dev_set(str(dev_folder))
    rows = [
        query._replace(text=f"{query.text} {dev.documents[row]}")
        for row, query in enumerate(dev.queries)
    ]
    # some queries are longer than training reads
    dev = dev._replace(queries=rows[:3] + dev.queries[3:])
    config = make_config(model, pairs_file, model=settings, optimizer={"learning_rate": 3e-3})
    trainer = make_trainer(config, tmp_path, dev=[dev])
    # the next steps take some learned weights below zero
    if trainer.query_side is not None and settings:
        with torch.no_grad():
            trainer.query_side.weights_V.mul_(1e-3 if "query" in settings else 1.0)
    report = trainer.run()
    encoder = Encoder.load(tmp_path / "model")
    documents, side = encoder.encode(dev.documents), encoder.query_encoder()
    run = {}
    for query in dev.queries:
        ids, weights = side.encode(query.text)
        scores = np.asarray(documents[:, ids] @ weights)
        run[query.query_id] = [
            (dev.doc_ids[i], float(scores[i])) for i in np.argsort(-scores)[:100] if scores[i] > 0
        ]
    measured = measures.evaluate_run(run, dev.qrels, "nDCG@10").mean["nDCG@10"]
    assert measured == pytest.approx(report["best_dev"], abs=1e-6)


@pytest.mark.parametrize("query", ["idf", "learned", "neural"])
def test_the_saved_model_opens_in_sentence_transformers(model, pairs_file, tmp_path, query):
    from sentence_transformers import SparseEncoder

    config = make_config(
        model, pairs_file, model={"query": query, "activation": "log1p_relu"}, run={"steps": 3}
    )
    trainer = make_trainer(config, tmp_path)
    trainer.run()
    texts = list(tiny_models.SENTENCES[:4])
    peer = SparseEncoder(str(tmp_path / "model"), device="cpu")
    ours = trainer.student.vectors(texts).toarray()
    np.testing.assert_allclose(peer.encode_document(texts).to_dense().numpy(), ours, atol=1e-5)
    np.testing.assert_allclose(
        Encoder.load(tmp_path / "model").encode(texts).toarray(), ours, atol=1e-5
    )
    side = Encoder.load(tmp_path / "model").query_encoder()
    expected = peer.encode_query(texts).to_dense().numpy()
    for text, row in zip(texts, expected, strict=True):
        ids, weights = side.encode(text)
        np.testing.assert_allclose(weights, row[ids], atol=1e-5)
        assert np.count_nonzero(row > 1e-6) == len(ids)


def test_half_precision_halves_the_file_and_keeps_the_vectors(model, pairs_file, tmp_path):
    trainer = make_trainer(make_config(model, pairs_file, run={"steps": 2}), tmp_path)
    trainer.run()
    trainer.student.save(tmp_path / "half", trainer.query_side.numpy(), dtype=torch.float16)
    size = {
        name: sum(
            path.stat().st_size for path in (tmp_path / name).rglob("document*/model.safetensors")
        )
        for name in ("half", "model")
    }
    assert size["half"] < 0.6 * size["model"]
    texts = list(tiny_models.SENTENCES)
    one, other = (
        Encoder.load(tmp_path / name).encode(texts).toarray() for name in ("half", "model")
    )
    np.testing.assert_allclose(one, other, atol=0.02)


def test_the_learning_rate_is_a_function_of_the_step(model, pairs_file):
    config = make_config(
        model,
        pairs_file,
        optimizer={"learning_rate": 1.0, "warmup_steps": 2},
        warm_start={"steps": 10, "learning_rate": 0.5},
        run={"steps": 20},
    )
    rates = [learning_rate(config, step) for step in (0, 5, 10, 11, 12, 16, 19)]
    assert rates == pytest.approx([0.5, 0.5, 0.5, 1.0, 1.0, 0.5, 0.125])


def test_the_configuration_is_written_complete_beside_the_checkpoints(model, pairs_file, tmp_path):
    config = make_config(model, pairs_file, run={"steps": 2})
    trained(config, tmp_path)
    assert config_parser.read_config(tmp_path / "config.toml") == config


def test_what_is_learned_of_queries_never_falls_below_zero_and_is_clipped_like_all_else(
    model, pairs_file, tmp_path
):
    config = make_config(
        model,
        pairs_file,
        model={"query": "learned"},
        optimizer={"query_learning_rate": 0.5, "max_grad_norm": 1e-9},
    )
    trainer = make_trainer(config, tmp_path)
    with torch.no_grad():
        trainer.query_side.weights_V.mul_(0.1)
    trainer.run()
    weights = trainer.query_side.weights_V.detach()
    assert weights.min() == 0.0 < weights.max()
    # the last parameter is that of the queries
    number = len(trainer.setup.optimizer.state_dict()["state"]) - 1
    assert 0 < trainer.setup.optimizer.state_dict()["state"][number]["exp_avg"].norm() < 1e-9


def test_equal_weights_make_equal_files(model, pairs_file, tmp_path):
    """safetensors' own ``save_model`` notes shared tensors in an order that changes from process to
    process.
    """
    from safetensors import safe_open

    trainer = make_trainer(make_config(model, pairs_file), tmp_path)
    trainer.student.write_weights(tmp_path / "one.safetensors")
    with safe_open(tmp_path / "one.safetensors", "pt") as file:
        assert not file.metadata()
        names = set(file.keys())
    pointers = {trainer.student.state_dict()[name].data_ptr() for name in names}
    assert len(pointers) == len(names) < len(trainer.student.state_dict())


def test_weights_of_another_network_are_not_read(model, pairs_file, tmp_path):
    one = make_trainer(make_config(model, pairs_file), tmp_path)
    tensors = dict(list(one.student.tensors().items())[1:])
    save_file(tensors, tmp_path / "other.safetensors")
    with pytest.raises(
        DamagedError,
        match=r"other\.safetensors holds the weights of another "
        r"network",
    ):
        one.student.read_weights(tmp_path / "other.safetensors", torch.device("cpu"))


def test_other_query_weights_in_the_starting_model_are_another_run(model, pairs_file, tmp_path):
    trained(make_config(model, pairs_file), tmp_path / "first")
    start = tmp_path / "first" / "model"
    config = make_config(start, pairs_file)
    trained(config, tmp_path / "second")
    path = next(start.glob("query*/model.safetensors"))
    save_file({"weight": load_file(path)["weight"] * 2}, path)
    with pytest.raises(
        TrainingError,
        match=r"belongs to another training: start\.query_weights_sha256 "
        r"was",
    ):
        make_trainer(config, tmp_path / "second").run()


def test_an_older_checkpoint_that_is_damaged_does_not_keep_newer_ones_from_being_saved(
    model, pairs_file, tmp_path
):
    trained(make_config(model, pairs_file, run={"stop_after": 4, "keep": 3}), tmp_path)
    (tmp_path / "checkpoint-0000002" / "state.json").write_text("{")
    trained(make_config(model, pairs_file, run={"keep": 3}), tmp_path)
    assert [path.name[-1] for path in saved_state.list_checkpoints(tmp_path)] == ["4", "6", "8"]


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ("[]", "does not hold the state of a training; delete"),
        ("{}", "does not hold the state of a training; delete"),
        ('{"format": 1}', "has the format 1; this release resumes format 2"),
        ('{"format": 2, "progress": {}}', "has changed since it was written; delete"),
    ],
)
def test_a_state_that_is_none_is_refused(model, pairs_file, tmp_path, state, message):
    config = make_config(model, pairs_file)
    trained(config, tmp_path)
    (tmp_path / "checkpoint-0000008" / "state.json").write_text(state)
    with pytest.raises((DamagedError, TrainingError), match=message):
        make_trainer(config, tmp_path).run()


def test_a_process_without_a_text_is_refused(model, pairs_file, tmp_path, monkeypatch):
    """The others would wait for its gradients for ever."""
    import accelerate

    monkeypatch.setattr(accelerate.Accelerator, "num_processes", 9)
    with pytest.raises(
        ConfigError,
        match=r"batch\.queries is 8 with 9 processes; it must be at "
        r"least one for each",
    ):
        make_trainer(make_config(model, pairs_file), tmp_path)


def test_token_vectors_are_for_backbones_without_an_output_layer(model, pairs_file, tmp_path):
    with pytest.raises(
        ConfigError,
        match=r"head is 'token_vectors' and .* has an output layer of "
        r"its own",
    ):
        make_trainer(make_config(model, pairs_file, warm_start={"head": "token_vectors"}), tmp_path)


def test_float16_needs_a_gpu(model, pairs_file, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"run\.precision is 'float16', which needs a GPU"):
        make_trainer(make_config(model, pairs_file, run={"precision": "float16"}), tmp_path)


def test_lengths_beyond_the_network_are_refused(model, pairs_file, tmp_path):
    with pytest.raises(
        ConfigError,
        match=r"model\.max_length is 999; for this network it must be at most 64",
    ):
        make_trainer(make_config(model, pairs_file, model={"max_length": 999}), tmp_path)
    with pytest.raises(
        ConfigError,
        match=r"model\.saved_max_length is 999; for this network it must be at most 64",
    ):
        make_trainer(make_config(model, pairs_file, model={"saved_max_length": 999}), tmp_path)


def test_a_dev_set_that_cannot_hold_its_judged_documents_is_refused(dev_folder):
    with pytest.raises(ConfigError, match="must be at least the 20 judged documents"):
        dev_sets.read_dev_set(str(dev_folder), documents=5)


def test_texts_pass_together_with_texts_of_like_length():
    lengths = [48, 9, 40, 24, 23, 11, 1, 48, 0, 700, 700]
    order = np.argsort([-length for length in lengths], kind="stable")
    groups = list(by_length(np.array(lengths), 2048, shortest=0.5))
    assert [[lengths[row] for row in group] for group in groups] == [
        [700, 700],
        [48, 48, 40, 24],
        [23],
        [11, 9],
        [1],
        [0],
    ]
    assert np.concatenate(groups).tolist() == order.tolist()
    many = list(by_length(np.full(100, 100), 2048, shortest=0.5))
    assert [len(group) for group in many] == [20] * 5  # 2048 tokens


def test_a_target_is_of_positives_and_negatives_alike(dense_model, tmp_path):
    """Though their texts be unlike each other, and dropout between them."""
    rng = np.random.default_rng(2)
    path = tmp_path / "pairs.jsonl"
    with path.open("w") as stream:
        for _ in range(40):
            short, long = (" ".join(rng.choice(WORDS, count)) for count in (3, 14))
            stream.write(
                json.dumps(
                    {
                        "query": short.split()[0] + " " + short.split()[1],
                        "positive": short,
                        "negative": [long, long[::-1]],
                    }
                )
                + "\n"
            )
    config = make_config(
        dense_model,
        path,
        batch={"queries": 8, "negatives": 2},
        model={"dropout": 0.1},
        run={"steps": 220, "save_every": 220, "seed": 5},
        documents={"penalty": "flops", "weight": None, "target_terms": 25.0, "ramp_steps": 80},
    )
    report = make_trainer(config, tmp_path / "run").run()
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert np.mean([line["documents_terms"] for line in lines[-60:]]) == pytest.approx(
        25.0, rel=0.10
    )
    assert report["documents_terms"] == pytest.approx(25.0, rel=0.10)


def test_a_step_is_best_only_when_it_is_as_sparse_as_asked_for(
    dense_model, pairs_file, dev_folder, tmp_path, monkeypatch
):
    fixed_measures(monkeypatch, *np.linspace(0.9, 0.1, 11).tolist())
    config = make_config(
        dense_model,
        pairs_file,
        run={"steps": 220, "save_every": 220, "evaluate_every": 20},
        dev=[{"path": str(dev_folder)}],
        documents={"penalty": "flops", "weight": None, "target_terms": 25.0, "ramp_steps": 80},
    )
    report = make_trainer(config, tmp_path, dev=[dev_sets.read_dev_set(str(dev_folder))]).run()
    assert 80 < report["best_step"] < 220
    assert report["documents_terms"] < 32


def test_a_stop_on_the_way_changes_neither_the_best_step_nor_the_log(
    model, pairs_file, dev_folder, tmp_path, monkeypatch
):
    dev = [dev_sets.read_dev_set(str(dev_folder))]
    found = {}
    for name, stops in (("whole", [8]), ("parts", [5, 8])):
        fixed_measures(monkeypatch, 0.1, 0.2)
        for stop in stops:
            config = make_config(
                model,
                pairs_file,
                dev=[{"path": str(dev_folder)}],
                run={"evaluate_every": 4, "log_every": 2, "stop_after": stop},
            )
            report = make_trainer(config, tmp_path / name, dev=dev).run()
        found[name] = ({**report, "model": None}, (tmp_path / name / "log.jsonl").read_text())
    assert found["whole"] == found["parts"] and found["whole"][0]["best_step"] == 8


def test_dropout_is_set_also_where_it_is_a_plain_number():
    class Layer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.attention_dropout, self.inner = 0.3, torch.nn.Dropout(0.2)
            self.config = types.SimpleNamespace()

    layer = Layer()
    assert trainable_encoder.has_dropout(layer)
    trainable_encoder.set_dropout(layer, 0.0)
    assert (layer.attention_dropout, layer.inner.p) == (
        0.0,
        0.0,
    ) and not trainable_encoder.has_dropout(layer)
    trainable_encoder.set_dropout(layer, 0.5)
    assert (layer.attention_dropout, layer.inner.p) == (0.5, 0.5) and trainable_encoder.has_dropout(
        layer
    )
