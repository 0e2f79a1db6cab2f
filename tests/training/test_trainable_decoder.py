"""Decoders in training: the student against the encoder, adapters, language-model losses, exact
resume, the road.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import small_runs
import tiny_decoders
import torch
import transformers
from safetensors.torch import load_file
from small_runs import Constant, Killed, kill_at, make_trainer
from small_runs import make_decoder_config as make_config
from small_runs import open_decoder as open_student
from tiny_decoders import TEXTS, center

from sparse_ir.data.records import Query
from sparse_ir.errors import ConfigError, ModelError
from sparse_ir.models import decoder_settings, model_files
from sparse_ir.models.encoder import Encoder
from sparse_ir.training import model_card, pipeline
from sparse_ir.training.configuration import config_parser
from sparse_ir.training.configuration.config import WarmStartSettings
from sparse_ir.training.encoders import language_model
from sparse_ir.training.encoders.language_model import _LOGITS_PER_BLOCK, Packed
from sparse_ir.training.loop import dev_sets, saved_state
from sparse_ir.training.loop.dev_sets import DevSet
from sparse_ir.training.loop.trainer import Trainer

MODES = ("causal", "echo", "bidirectional")
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Family -> folder of a random decoder. Read only."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("decoders")
    return {
        family: tiny_decoders.build(family, root / family)
        for family in ("llama", "qwen3", "gemma2", "gpt2", "phi", "granite")
    }


def log_of(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


# --- vectors ---


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "phi", "granite"])
def test_what_trains_is_what_encodes(family, mode, folders):
    config, student = open_student(
        folders[family],
        mode,
        model={"query_prompt": "q: ", "document_prompt": "d: ", "query_max_length": 80},
        decoder={"logit_scale": "hidden^-1/4", "logit_shift": 0.5},
    )
    texts = [*TEXTS, ""]
    encoder = Encoder.load(
        folders[family], decoder=config.decoder.settings(config.model, max_length=80)
    )
    found = student.vectors(texts)
    np.testing.assert_allclose(found.toarray(), encoder.encode(texts).toarray(), **CLOSE)
    np.testing.assert_allclose(
        student.vectors(texts[:3], neural_queries=True).toarray(),
        encoder.query_encoder().encode_batch(texts[:3]).toarray(),
        **CLOSE,
    )
    assert found[-1].nnz == 0 and found[0].nnz > 0


def test_the_gradient_is_that_of_the_full_logits(folders):
    _, student = open_student(folders["llama"], "echo")
    _, other = open_student(folders["llama"], "echo")
    tokens = student.tokenize_documents(TEXTS[:4])
    student(tokens).square().sum().backward()
    rows = []
    for text in tokens:
        ids = torch.from_numpy(text.ids.astype(np.int64))[None]
        logits = other.model(input_ids=ids).logits[0, text.pooled] @ other.output_layer.weight.t()
        rows.append(torch.log1p(torch.relu(logits - 2.0)).amax(0))
    torch.stack(rows).square().sum().backward()
    mine, theirs = dict(student.named_parameters()), dict(other.named_parameters())
    assert mine.keys() == theirs.keys()
    for name, parameter in mine.items():
        torch.testing.assert_close(
            parameter.grad, theirs[name].grad, rtol=1e-3, atol=1e-4, msg=name
        )


def test_a_shift_instead_of_a_bias(folders):
    _, student = open_student(folders["llama"], decoder={"logit_shift": 0.0})
    assert student.output_layer.bias is None
    student.set_terms(TEXTS[:6], 30)
    assert student.vectors(TEXTS[:6]).getnnz() == pytest.approx(6 * 30, abs=6)
    before = float(student.shift)
    student.lift(0.5)
    assert float(student.shift) == pytest.approx(before - 0.5)


@pytest.mark.parametrize("family", ["llama", "gemma2", "phi"])
def test_centered_logits_train_as_they_encode_and_leave_the_language_model_alone(family, folders):
    config, student = open_student(folders[family], decoder={"centered": True, "logit_shift": 1.0})
    encoder = Encoder.load(
        folders[family], decoder=config.decoder.settings(config.model, max_length=80)
    )
    np.testing.assert_allclose(
        student.vectors(TEXTS).toarray(), encoder.encode(TEXTS).toarray(), **CLOSE
    )
    examples = student.make_examples(
        student.bare_ids(TEXTS[:4]), WarmStartSettings(objective="clm"), 0
    )
    expected = plain_losses(
        folders[family], examples, lambda model, logits: center(model, logits) - 1.0
    )
    torch.testing.assert_close(student(examples), expected, rtol=1e-4, atol=1e-3)


def test_no_gradient_moves_all_logits_of_a_centered_decoder_together(folders):
    _, student = open_student(folders["phi"], decoder={"centered": True, "logit_shift": 0.0})
    student(student.tokenize_documents(TEXTS[:4])).square().sum().backward()
    gradient_VH = student.output_layer.weight.grad
    assert gradient_VH.abs().max() > 0.1
    torch.testing.assert_close(
        gradient_VH.mean(0), torch.zeros(gradient_VH.shape[1]), rtol=0, atol=1e-5
    )


# --- the road ---


@pytest.mark.parametrize("mode", MODES)
def test_train_save_and_encode(mode, folders, pairs_file, tmp_path):
    objective = "mntp" if mode == "bidirectional" else "clm"
    config = make_config(
        folders["llama"],
        pairs_file,
        mode,
        model={"query_prompt": "find: "},
        warm_start={"steps": 2, "objective": objective, "learning_rate": 1e-3},
        decoder={"initial_terms": 60},
        run={"steps": 5},
        documents={"penalty": "flops", "weight": None, "target_terms": 30.0},
    )
    path = tmp_path / "config.toml"
    path.write_text(config_parser.format_config(config))
    assert config_parser.read_config(path) == config
    report = pipeline.train(path, tmp_path / "run")
    encoder = Encoder.load(report["model"])
    trainer = Trainer(config, pipeline.read_sources(config), tmp_path / "run")
    trainer.checkpoints.resume()
    np.testing.assert_allclose(
        encoder.encode(TEXTS).toarray(), trainer.student.vectors(TEXTS).toarray(), **CLOSE
    )
    settings = decoder_settings.read_decoder_settings(tmp_path / "run" / "model")
    assert (settings.mode, settings.query_prompt, settings.max_length) == (mode, "find: ", 80)
    assert settings.logit_shift == float(trainer.student.shift) != 2.0
    card = (tmp_path / "run" / "model" / "README.md").read_text()
    assert (
        f"a decoder read in mode {mode}" in card
        and "SparseEncoder(" not in card
        and f"({objective})" in card
    )
    lines = log_of(tmp_path / "run")
    assert [f"{objective}_loss" in line for line in lines] == [True, True, False, False, False]


def test_distillation_and_gradient_checkpointing(folders, pairs_file, tmp_path):
    def weights(folder, **changes):
        config = make_config(
            folders["llama"],
            pairs_file,
            loss=[{"name": "kl", "temperature": 10.0}],
            teacher=[{"kind": "bm25"}],
            run={"steps": 2, **changes},
        )
        trainer = make_trainer(config, folder, teachers=[(Constant(), 1.0)])
        trainer.run()
        return trainer.student.state_dict()

    plain, saving = weights(tmp_path / "a"), weights(tmp_path / "b", gradient_checkpointing=True)
    for name, tensor in plain.items():
        torch.testing.assert_close(saving[name], tensor, rtol=1e-5, atol=1e-6)
    assert decoder_settings.read_decoder_settings(tmp_path / "a" / "model").temperature == 10.0


def test_distillation_alone_teaches_a_decoder(folders, pairs_file, tmp_path):
    """No contrastive loss: BM25's order of the batch is learned through adapters, under echo, and
    saved.
    """
    config = make_config(
        folders["qwen3"],
        pairs_file,
        "echo",
        loss=[{"name": "kl"}],
        teacher=[{"kind": "bm25"}],
        lora={"r": 8},
        optimizer={"learning_rate": 1e-2},
        decoder={"initial_terms": 40},
        model={"max_length": 100, "saved_max_length": 100, "query_max_length": 80},
        run={"steps": 40},
        batch={"queries": 8},
    )
    path = tmp_path / "config.toml"
    path.write_text(config_parser.format_config(config))
    report = pipeline.train(path, tmp_path / "run")
    lines = log_of(tmp_path / "run")
    assert "info_nce" not in lines[0]
    first, last = (np.mean([line["kl"] for line in part]) for part in (lines[:8], lines[-8:]))
    assert last < 0.7 * first
    assert Encoder.load(report["model"]).encode(TEXTS).nnz > 0


@pytest.mark.filterwarnings("error::FutureWarning", "error::UserWarning")
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_other_libraries_have_nothing_to_warn_of(family, folders, pairs_file, tmp_path):
    """From adapters under gradient checkpointing (GPT-2's layers are
    transposed) to their loading.
    """
    config = make_config(
        folders[family], pairs_file, lora={"r": 2}, run={"steps": 1, "gradient_checkpointing": True}
    )
    make_trainer(config, tmp_path).run()
    assert json.loads((tmp_path / "model" / "adapter_config.json").read_text())[
        "fan_in_fan_out"
    ] == (family == "gpt2")
    assert Encoder.load(tmp_path / "model").encode(TEXTS).nnz > 0


@pytest.mark.parametrize("stage", ["adaptation", "ranking"])
def test_micro_batches_give_the_same_weights(stage, folders, pairs_file, tmp_path):
    sections = {"run": {"steps": 3, "stop_after": 2}, "lora": {"r": 4}}
    if stage == "adaptation":
        sections["warm_start"] = {"steps": 2, "objective": "clm"}
    trained = []
    for size in (None, 2):
        sections["batch"] = {"queries": 4, **({"micro_batch": size} if size else {})}
        config = make_config(folders["llama"], pairs_file, **sections)
        trainer = make_trainer(config, tmp_path / str(size))
        trainer.run()
        trained.append(trainer.student.tensors())
    for name, tensor in trained[0].items():
        torch.testing.assert_close(trained[1][name], tensor, rtol=1e-3, atol=2e-5, msg=name)


@pytest.mark.parametrize(
    ("step", "lora", "packed"),
    [
        (1, None, {}),
        (3, None, {}),
        (1, {"r": 4, "dropout": 0.1}, {}),
        (3, {"r": 4, "dropout": 0.1}, {}),
        (1, {"r": 4}, {"packed_length": 32}),
    ],
)
def test_interrupted_equals_uninterrupted_bit_for_bit(
    step, lora, packed, folders, pairs_file, tmp_path, monkeypatch
):
    config = make_config(
        folders["llama"],
        pairs_file,
        "bidirectional",
        run={"steps": 5, "save_every": 1},
        warm_start={"steps": 2, "objective": "clm", "learning_rate": 1e-3, **packed},
        documents={"penalty": "flops", "weight": None, "target_terms": 30.0},
        **({"lora": lora} if lora else {}),
    )
    make_trainer(config, tmp_path / "whole").run()
    with monkeypatch.context() as patch:
        kill_at(patch, step)
        with pytest.raises(Killed):
            make_trainer(config, tmp_path / "cut").run()
    make_trainer(config, tmp_path / "cut").run()
    for name in ("model.safetensors", "state.safetensors"):
        one, other = (
            load_file(tmp_path / run / "checkpoint-0000005" / name) for run in ("whole", "cut")
        )
        assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
    assert log_of(tmp_path / "whole") == log_of(tmp_path / "cut")


def launch_two(path, output):
    subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc_per_node=2",
            "-m",
            "sparse_ir",
            "train",
            "--config",
            path,
            "--output",
            output,
        ],
        check=True,
        capture_output=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )


@pytest.mark.slow
def test_a_process_without_a_token_to_predict_keeps_no_other_waiting(folders, tmp_path):
    """Texts of one token are no examples, so that there may be fewer of them than processes, or
    none.
    """
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text(
        "".join(
            json.dumps({"query": f"what is {text}", "positive": text}) + "\n"
            for text in ("a", "b", "c", TEXTS[0])
        )
    )
    config = make_config(
        folders["gpt2"],
        pairs,
        "causal",
        batch={"queries": 2},
        warm_start={"steps": 4, "objective": "clm"},
        run={"steps": 5, "save_every": 5},
    )
    (tmp_path / "config.toml").write_text(config_parser.format_config(config))
    launch_two(tmp_path / "config.toml", tmp_path / "run")
    losses = [line.get("clm_loss") for line in log_of(tmp_path / "run")]
    # no example is no loss, and not one of 0
    assert None in losses[:4] and any(loss for loss in losses[:4] if loss)


@pytest.mark.slow
def test_two_processes_give_the_weights_of_one(folders, pairs_file, tmp_path):
    """Adaptation by masked tokens of packed sequences, then ranking, with adapters."""
    config = make_config(
        folders["llama"],
        pairs_file,
        "bidirectional",
        lora={"r": 4},
        batch={"queries": 5},
        warm_start={"steps": 2, "objective": "mntp", "mask_token": "</s>", "packed_length": 48},
        run={"steps": 4, "save_every": 4},
    )
    path = tmp_path / "config.toml"
    path.write_text(config_parser.format_config(config))
    pipeline.train(path, tmp_path / "one")
    launch_two(path, tmp_path / "two")
    one, two = (
        load_file(tmp_path / name / "checkpoint-0000004" / "model.safetensors")
        for name in ("one", "two")
    )
    assert one.keys() == two.keys()
    # Adam's first steps divide a gradient by itself; see the test of masked networks
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=0, atol=0.05 * 1e-3 * 4, msg=name)
    for first, second in zip(log_of(tmp_path / "one"), log_of(tmp_path / "two"), strict=True):
        assert first == pytest.approx(second, rel=1e-3, abs=1e-6)


# --- adapters ---


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2"])
def test_an_adapter_is_saved_with_its_base_named_and_can_be_merged(
    family, folders, pairs_file, tmp_path
):
    vectors = {}
    for merge in (False, True):
        config = make_config(
            folders[family],
            pairs_file,
            "bidirectional",
            lora={"r": 4, "alpha": 8, "merge": merge},
            optimizer={"learning_rate": 1e-2},
        )
        trainer = make_trainer(config, tmp_path / str(merge))
        trainer.run()
        model = tmp_path / str(merge) / "model"
        assert (model / "adapter_config.json").is_file() != merge and (
            model / "model.safetensors"
        ).is_file() == merge
        vectors[merge] = Encoder.load(model).encode(TEXTS).toarray()
        np.testing.assert_allclose(
            vectors[merge], trainer.student.vectors(TEXTS).toarray(), rtol=1e-4, atol=1e-4
        )
        kept = load_file(
            saved_state.list_checkpoints(tmp_path / str(merge))[-1] / "model.safetensors"
        )
        assert all("lora_" in name or name == "shift" for name in kept) and len(kept) > 1
    np.testing.assert_allclose(vectors[True], vectors[False], rtol=1e-4, atol=1e-4)
    untrained = (
        Encoder.load(folders[family], decoder=config.decoder.settings(config.model))
        .encode(TEXTS)
        .toarray()
    )
    assert np.abs(untrained - vectors[False]).max() > 1e-2
    settings = json.loads((tmp_path / "False" / "model" / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == str(folders[family]) and settings["r"] == 4
    record = json.loads((tmp_path / "False" / "model" / "sparse_ir.json").read_text())
    assert record["base_sha256"] == model_files.weights_hash(folders[family])


@pytest.mark.parametrize("targets", ["nonsense_proj", "lm_head, q_proj"])
def test_targets_that_cannot_carry_adapters_are_refused(folders, targets):
    with pytest.raises(
        ConfigError, match=f"lora.targets is '{targets}', which this network cannot take"
    ):
        open_student(folders["llama"], lora={"r": 2, "targets": targets})


def test_adapters_are_on_all_linear_layers_and_the_output_layer_stays_frozen(folders):
    _, student = open_student(folders["llama"], lora={"r": 2})
    names = {
        name.split(".lora_A")[0].rsplit(".", 1)[-1]
        for name in student.tensors()
        if "lora_A" in name
    }
    assert names == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    student(student.tokenize_documents(TEXTS[:3])).sum().backward()
    assert student.output_layer.weight.grad is None
    assert all(
        (parameter.grad is not None) == parameter.requires_grad
        for parameter in student.parameters()
    )
    _, student = open_student(folders["llama"], lora={"r": 2, "targets": "q_proj, v_proj"})
    assert len(student.tensors()) == 2 * 2 * 2 + 1


def test_a_base_in_bfloat16_trains_adapters_in_float32(folders, pairs_file, tmp_path):
    config = make_config(folders["llama"], pairs_file, lora={"r": 2, "base": "bfloat16"})
    trainer = make_trainer(config, tmp_path)
    trainer.run()
    assert trainer.student.output_layer.weight.dtype == torch.bfloat16
    assert {tensor.dtype for tensor in trainer.student.tensors().values()} == {torch.float32}
    assert Encoder.load(tmp_path / "model", precision="bfloat16").encode(TEXTS).nnz > 0


# --- adaptation ---


def plain_losses(folder, examples, score=lambda model, logits: logits):
    """By transformers' own logits: the two sums of cross-entropies, the second of what ``score``
    makes of them.
    """
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    plain = saturated = 0.0
    for example in examples:
        logits = model(input_ids=torch.from_numpy(example.ids)[None]).logits[0]
        wanted = torch.from_numpy(example.targets)
        plain += torch.nn.functional.cross_entropy(
            logits, wanted, reduction="sum", ignore_index=-100
        )
        saturated += torch.nn.functional.cross_entropy(
            torch.log1p(torch.relu(score(model, logits))),
            wanted,
            reduction="sum",
            ignore_index=-100,
        )
    return torch.stack([plain, saturated])


@pytest.mark.parametrize("family", ["llama", "gemma2", "granite", "phi"])
def test_language_model_losses(family, folders, monkeypatch):
    _, student = open_student(folders[family], decoder={"logit_shift": 0.0})
    examples = student.make_examples(student.bare_ids(TEXTS), WarmStartSettings(objective="clm"), 0)
    expected = plain_losses(folders[family], examples)
    found = student(examples)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)
    monkeypatch.setitem(_LOGITS_PER_BLOCK, "cpu", 5 * student.size)
    torch.testing.assert_close(student(examples), expected, rtol=1e-4, atol=1e-3)


def test_the_gradient_through_blocks_is_that_of_the_whole(folders, monkeypatch):
    gradients = []
    for size in (2**24, 3 * 420):
        monkeypatch.setitem(_LOGITS_PER_BLOCK, "cpu", size)
        _, student = open_student(folders["llama"])
        examples = student.make_examples(
            student.bare_ids(TEXTS[:4]), WarmStartSettings(objective="clm"), 0
        )
        student(examples).sum().backward()
        gradients.append({name: parameter.grad for name, parameter in student.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-4)


def test_next_tokens_and_masked_tokens_by_hand():
    (example,) = language_model.next_tokens([np.array([5, 6, 7]), np.array([5])])
    assert (
        example.ids.tolist() == [5, 6, 7]
        and example.targets.tolist() == [6, 7, -100]
        and example.predicted == 2
    )
    ids = np.arange(100, 1100)
    (example,) = language_model.masked_next_tokens([ids], 3, 0.2, seed=1)
    masked = np.flatnonzero(example.ids == 3)
    assert 150 < len(masked) == example.predicted < 250 and masked[0] > 0
    assert example.targets[masked - 1].tolist() == ids[masked].tolist()
    assert (example.targets >= 0).sum() == len(masked) and ids[5] == 105  # the caller's array stays
    (short,) = language_model.masked_next_tokens([np.array([8, 9])], 3, 0.01, seed=0)
    assert short.ids.tolist() == [8, 3] and short.targets.tolist() == [9, -100]


def test_packed_documents_stand_in_the_stream_whole_and_once_an_epoch():
    """Words of numbers; -1 ends a document, and two of the texts say so themselves."""
    rng = np.random.default_rng(0)
    texts = [
        " ".join(map(str, [number, *rng.integers(1000, 2000, rng.integers(0, 9))]))
        for number in range(1, 400)
    ]
    texts = [*texts[:200], "  ", texts[3], *texts[200:], "400 7 -1", "401 -1"]
    distinct = sorted({tuple(map(int, text.removesuffix(" -1").split())) for text in texts} - {()})
    blocks = []

    def tokenize(block):
        blocks.append(len(block))
        return [np.array(text.split(), dtype=np.int64) for text in block]

    def pack(seed=0, length=7):
        return Packed(texts, tokenize, length, -1, seed)

    size = sum(len(words) + 1 for words in distinct)
    count = 2 * size // 7 + 1
    packed = pack()
    sequences = [packed.at(number) for number in range(count)]
    assert (
        {len(sequence) for sequence in sequences} == {7}
        and max(blocks) == 256
        and len(blocks) <= count // 50
    )
    stream = np.concatenate(sequences)
    epochs = [split_at(stream[start : start + size], -1) for start in (0, size)]
    assert all(sorted(epoch) == distinct for epoch in epochs) and epochs[0] != epochs[1]
    for number in (count - 1, 5, 170):  # a run that is resumed knows nothing but the number
        assert np.array_equal(pack().at(number), sequences[number])
        assert np.array_equal(packed.at(number), sequences[number])
    resumed = pack()
    resumed.starts = packed.starts
    blocks.clear()
    assert (
        np.array_equal(resumed.at(count - 1), sequences[-1])
        and len(blocks) <= 2 < len(packed.starts) - 2
    )
    assert np.array_equal(pack(length=2 * size).at(0), stream[: 2 * size])
    assert not np.array_equal(pack(seed=1).at(0), sequences[0])


def split_at(stream, end_id):
    parts = np.split(stream, np.flatnonzero(stream == end_id) + 1)
    assert len(parts[-1]) == 0  # the epoch ends with the end of a document
    return [tuple(part[:-1].tolist()) for part in parts[:-1]]


@pytest.mark.parametrize("objective", ["clm", "mntp"])
def test_a_decoder_adapts_by_packed_documents(objective, folders, pairs_file, tmp_path):
    config = make_config(
        folders["qwen3"],
        pairs_file,
        "bidirectional",
        batch={"queries": 3},
        run={"steps": 3},
        warm_start={"steps": 2, "objective": objective, "packed_length": 20},
    )
    trainer = make_trainer(config, tmp_path)
    seen = []
    original = trainer.student.make_examples
    trainer.student.make_examples = lambda ids, *rest: (seen.extend(ids), original(ids, *rest))[1]
    trainer.run()
    assert [len(sequence) for sequence in seen] == 6 * [20]
    rules = transformers.AutoTokenizer.from_pretrained(folders["qwen3"])
    read = rules.decode(np.concatenate(seen)).split("</s>")
    documents = {text for source in pipeline.read_sources(config) for text in source.documents}
    assert (
        len(read) > 4
        and set(read[:-1]) <= documents
        and any(text.startswith(read[-1]) for text in documents)
    )
    assert f"{objective}_loss" in log_of(tmp_path)[0]


@pytest.mark.parametrize(
    ("kind", "token"),
    [
        ("byte-level", "_"),
        ("byte-fallback BPE", "<0x5F>"),
        ("byte-fallback Unigram", "<0x5F>"),
    ],
)
def test_the_mask_of_a_tokenizer_that_names_none(kind, token, tmp_path):
    folder = tiny_decoders.build("llama", tmp_path / "m", tokenizer=kind)
    _, student = open_student(folder, "bidirectional")
    assert student.rules.id_to_token(student._mask_id(None)) == token
    assert student.rules.id_to_token(student._mask_id("▁" if token != "_" else "Ġ")) in "▁Ġ"
    student.hf_tokenizer.add_special_tokens({"mask_token": "</s>"})
    assert student._mask_id(None) == 2


def test_a_vocabulary_without_any_mask_is_refused_at_once(tmp_path):
    folder = tiny_decoders.build("llama", tmp_path / "m", tokenizer="byte-level")
    path = folder / "tokenizer.json"
    rules = json.loads(path.read_text())
    rules["model"]["vocab"] = {
        token if token != "_" else "unlike": number
        for token, number in rules["model"]["vocab"].items()
    }
    path.write_text(json.dumps(rules))
    warm_start = {"steps": 1, "objective": "mntp"}
    with pytest.raises(
        ConfigError,
        match=r"warm_start.mask_token is not set, and the tokenizer has "
        r"neither a mask token nor '_'; it must be a rare token",
    ):
        open_student(folder, "bidirectional", warm_start=warm_start)
    open_student(folder, "bidirectional", warm_start={**warm_start, "mask_token": "unlike"})


def test_the_loss_on_saturated_logits_keeps_a_relu_alive(folders, pairs_file, tmp_path):
    """With and without it, from the same start: with it the ReLU lets through what predicts the
    next token.
    """
    last = {}
    for weight in (0.0, 1.0):
        config = make_config(
            folders["qwen3"],
            pairs_file,
            decoder={"logit_shift": 3.0},
            run={"steps": 41, "stop_after": 40},
            warm_start={
                "steps": 40,
                "objective": "clm",
                "learning_rate": 3e-3,
                "relu_weight": weight,
            },
        )
        make_trainer(config, tmp_path / str(weight)).run()
        lines = log_of(tmp_path / str(weight))
        assert lines[-1]["clm_loss"] < lines[0]["clm_loss"]
        last[weight] = lines[-1]["clm_relu_loss"]
    assert last[1.0] < last[0.0] - 0.01


def rank_what_is_dying(start, pairs_file, folder, *, adaptation, relu_weight=1.0):
    """40 steps of ranking where the ReLU begins above the largest logit of half of the documents,
    with or without adaptation before them: the share of documents that have a term left, and
    nDCG@10 of their questions."""
    documents, asked = read_pairs(pairs_file)
    _, student = open_student(start, decoder={"logit_shift": 0.0})
    with torch.no_grad():
        largest = student(student.tokenize_documents(documents), scores=True).amax(1)
    config = make_config(
        start,
        pairs_file,
        decoder={"logit_shift": float(largest.median())},
        batch={"queries": 8},
        optimizer={"learning_rate": 3e-3},
        run={"steps": adaptation + 40},
        warm_start={
            "steps": adaptation,
            "objective": "clm",
            "learning_rate": 3e-3,
            "relu_weight": relu_weight,
        },
    )
    trainer = make_trainer(config, folder)
    trainer.run()
    ids = [f"d{number}" for number in range(len(documents))]
    dev = DevSet(
        "pairs",
        ids,
        documents,
        [Query(f"q{row}", text) for row, text in enumerate(asked)],
        {f"q{row}": {doc_id: 1} for row, doc_id in enumerate(ids)},
        "nDCG@10",
    )
    alive = (trainer.student.vectors(documents).getnnz(1) > 0).mean()
    return float(alive), dev_sets.evaluate(trainer.student, None, dev)


def read_pairs(path):
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [line["positive"] for line in lines], [line["query"] for line in lines]


@pytest.mark.slow
def test_adaptation_brings_a_dying_relu_back_and_ranking_alone_does_not(
    folders, pairs_file, tmp_path
):
    alive, quality = rank_what_is_dying(
        folders["llama"], pairs_file, tmp_path / "none", adaptation=0
    )
    assert alive < 0.3 and quality < 0.2
    _, half_quality = rank_what_is_dying(
        folders["llama"], pairs_file, tmp_path / "plain", adaptation=100, relu_weight=0.0
    )
    alive, quality = rank_what_is_dying(
        folders["llama"], pairs_file, tmp_path / "relu", adaptation=100
    )
    assert alive == 1.0 and quality > 0.8
    # the loss on the saturated logits is worth more than a language model
    assert quality > half_quality + 0.1


def test_a_dead_model_is_worth_nothing_and_no_error_of_the_data(folders):
    _, student = open_student(folders["llama"], decoder={"logit_shift": 1000.0})
    dev = DevSet("dead", ["d0"], [TEXTS[0]], [Query("q0", TEXTS[0])], {"q0": {"d0": 1}}, "nDCG@10")
    assert dev_sets.evaluate(student, None, dev) == 0.0


def test_a_bidirectional_decoder_that_adapts_by_clm_is_causal_until_it_ranks(
    folders, pairs_file, tmp_path
):
    config = make_config(
        folders["llama"], pairs_file, "bidirectional", warm_start={"steps": 2, "objective": "clm"}
    )
    trainer = make_trainer(config, tmp_path)
    seen = []
    network = trainer.student.network
    original = network.hidden_states

    def note(ids):
        seen.append(first_state_sees_more(original))
        return original(ids)

    network.hidden_states = note
    trainer.run()
    assert seen[:2] == [False, False] and all(seen[2:]) and len(seen) > 3


def first_state_sees_more(states):
    """Whether the first token's state depends on the second."""
    with torch.no_grad():
        found = [states([np.array([10, other])])[0][0, 0] for other in (20, 30)]
    return not torch.allclose(*found, atol=1e-5)


@pytest.mark.slow
def test_memory_of_a_step_does_not_grow_with_tokens_times_vocabulary(tmp_path):
    folder = tiny_decoders.build(
        "llama", tmp_path / "m", unused_tokens=64_000, max_position_embeddings=1024
    )
    used, tokens = tiny_decoders.measure_growth(
        f"""
from sparse_ir.training.encoders import trainable_decoder
from sparse_ir.training.configuration.config import WarmStartSettings
from sparse_ir.training.configuration.config_parser import parse_config
config = parse_config({{"model": {{"start": {str(folder)!r}, "query": "neural", "max_length": 512}},
    "data": [{{"path": "x"}}], "run": {{"steps": 2}}, "decoder": {{"mode": "causal", "logit_shift": 40.0}},
    "lora": {{"r": 4}}}})
student = trainable_decoder.open_trainable(config)[1]
texts = [" ".join(SENTENCES[:8])] * 4
student(student.tokenize_documents(texts[:1])).sum().backward()
print(sum(len(text.ids) for text in student.tokenize_documents(texts)))""",
        """
student(student.tokenize_documents(texts)).sum().backward()
examples = student.make_examples(student.bare_ids(texts), WarmStartSettings(objective="clm"), 0)
student(examples).sum().backward()""",
        # freed blocks go back to the system, so that the peak is of living tensors
        MALLOC_MMAP_THRESHOLD_="1000000",
    )
    logits = int(tokens) * 64_000 * 4 / 2**20
    assert used < 0.6 * logits and logits > 240


# --- errors ---


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"model": {"query": "idf"}}, "model.query is 'idf' but must be 'neural' for a decoder"),
        (
            {"warm_start": {"steps": 1, "objective": "mntp"}},
            "objective is 'mntp' but must be 'clm' with decoder.mode 'causal'",
        ),
        ({"warm_start": {"mask_share": 1.0}}, "mask_share is 1.0 but must be less than 1"),
        (
            {"model": {"saved_dtype": "float8"}},
            "'float8' and warm_start.head 'token_vectors' are for masked language models",
        ),
        (
            {"decoder": {"logit_scale": "hidden"}},
            "decoder.logit_scale is 'hidden' but must be a number above 0",
        ),
        ({"decoder": {"document_template": "no place"}}, "document_template is 'no place'"),
        (
            {"decoder": {"initial_terms": 0}},
            "initial_terms is 0 but must be greater than or equal to 1",
        ),
        (
            {"warm_start": {"objective": "clm", "packed_length": 3}},
            "warm_start.packed_length is 3 but must be greater than or equal to 4",
        ),
        (
            {"warm_start": {"packed_length": 8}},
            "packed_length is 8, but objective is 'bag_of_words', which does not use it",
        ),
        ({"lora": {"r": 0}}, "lora.r is 0 but must be greater than or equal to 1"),
        (
            {"lora": {"targets": ""}},
            "targets is '' but must be 'all-linear' or names of layers",
        ),
        ({"lora": {"targets": "q_proj,"}}, "targets is 'q_proj,' but must be 'all-linear'"),
        ({"lora": {"dropout": 1.0}}, "lora.dropout is 1.0"),
        ({"lora": {"base": "4bit", "merge": True}}, "base '4bit' cannot be merged"),
        ({"lora": {}, "blend": {"start": 0.5}}, "trains adapters; drop one"),
    ],
)
def test_configurations_that_do_not_fit_are_refused(sections, message):
    with pytest.raises(ConfigError, match=message):
        make_config("start", "pairs", **sections)


def test_sections_for_decoders_need_a_decoder():
    for section in ({"lora": {}}, {"warm_start": {"objective": "clm"}}):
        with pytest.raises(ConfigError, match=r"are for decoders; add a \[decoder\] section"):
            small_runs.make_config("start", "pairs", **section)


def test_starts_that_cannot_be_trained_are_refused(folders, pairs_file, tmp_path, tiny_folder):
    with pytest.raises(ModelError, match="is not causal"):
        open_student(tiny_folder)
    with pytest.raises(
        ConfigError, match="max_length is 500; for this network it must be at most 256"
    ):
        open_student(folders["llama"], model={"max_length": 500})
    for token in ("", "[MASK]"):
        with pytest.raises(
            ConfigError,
            match=f"mask_token {re.escape(repr(token))} is not a token of this vocabulary",
        ):
            open_student(
                folders["llama"],
                "bidirectional",
                warm_start={"steps": 1, "objective": "mntp", "mask_token": token},
            )
    for name, limit, prompts in (
        ("query_max_length", 12, {}),
        ("max_length", 12, {}),
        ("saved_max_length", 12, {}),
        ("query_max_length", 20, {"query_prompt": "a prompt of some words: "}),
    ):
        with pytest.raises(
            ConfigError,
            match=rf"^model.{name} is {limit}, but prompt and template "
            rf"alone take \d+ tokens",
        ):
            open_student(folders["llama"], "echo", model={name: limit, **prompts})
    _, student = open_student(folders["llama"])
    with pytest.raises(
        ConfigError,
        match=r"warm_start.packed_length is 257; for this network it "
        r"must be at most 256",
    ):
        student.pack(TEXTS, 257, 0)
    student.hf_tokenizer.eos_token = None
    with pytest.raises(
        ConfigError,
        match=r"packed_length joins documents by the end token, and "
        r".*llama has none",
    ):
        student.pack(TEXTS, 64, 0)
    make_trainer(
        make_config(folders["llama"], pairs_file, lora={"r": 2}, run={"steps": 1}), tmp_path
    ).run()
    with pytest.raises(
        ConfigError, match="an adapter to it could not name its base; merge it first"
    ):
        open_student(tmp_path / "model", lora={"r": 2})
    _, student = open_student(tmp_path / "model")  # without [lora] the merged network trains
    assert student.vectors(TEXTS).nnz > 0


def test_the_card_of_an_adapter(folders, pairs_file, tmp_path):
    config = make_config(folders["llama"], pairs_file, lora={"r": 2})
    text = model_card.format_card(config, sources=[], report={"steps": 4})
    assert "a decoder read in mode causal with LoRA adapters of rank 2 on all-linear" in text
    config = make_config(
        folders["llama"],
        pairs_file,
        warm_start={"steps": 2, "objective": "clm", "packed_length": 1024},
    )
    text = model_card.format_card(config, sources=[], report={"steps": 4})
    assert (
        "2 of these steps of next-token prediction (clm) on documents joined to sequences of "
        "1,024 tokens" in text
    )
