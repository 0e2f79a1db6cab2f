"""Decoders in 8 and 4 bits, for real: bitsandbytes runs both on the CPU (the extra ``bits``, part
of ``test``).
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys

import numpy as np
import pytest
import tiny_decoders
import torch
import transformers
from safetensors.torch import load_file
from small_runs import make_decoder_config as make_config
from small_runs import make_trainer, open_decoder
from tiny_decoders import TEXTS

from sparse_ir.errors import ConfigError
from sparse_ir.models.decoder_settings import DecoderSettings
from sparse_ir.models.encoder import Encoder
from sparse_ir.training.loop import saved_state

pytest.importorskip("bitsandbytes", reason="the extra 'bits' is not installed")
WIDE = {  # on some processors 4 bits want widths in steps of 32
    "llama": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_key_value_heads": 4,
        "head_dim": 16,
    },
    "gpt2": {"n_embd": 64},
}
# the quantiles of a normal distribution that are the 16 values of NF4 (QLoRA, arXiv 2305.14314,
# appendix E)
NF4 = torch.tensor(
    [
        -1.0,
        -0.6961928009986877,
        -0.5250730514526367,
        -0.39491748809814453,
        -0.28444138169288635,
        -0.18477343022823334,
        -0.09105003625154495,
        0.0,
        0.07958029955625534,
        0.16093020141124725,
        0.24611230194568634,
        0.33791524171829224,
        0.44070982933044434,
        0.5626170039176941,
        0.7229568362236023,
        1.0,
    ]
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("quantized")
    return {
        family: tiny_decoders.build(family, root / family, **options)
        for family, options in WIDE.items()
    }


def settings(mode="causal"):
    return DecoderSettings(mode=mode, logit_shift=1.0)


def least_cosine(one, other):
    return (
        (one * other).sum(1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)
    ).min()


def linear_layers(model):
    return {
        type(module).__name__ for module in model.modules() if "Linear" in type(module).__name__
    }


def round_by_hand(folder, target):
    """The decoder with every matrix of its layers rounded to NF4 in blocks of 64, as a plain
    float32 checkpoint.
    """
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for name, weight in model.named_parameters():
        if ".layers." in name and weight.ndim == 2:
            # in which type it is loaded
            blocks = weight.detach().to(torch.bfloat16).float().reshape(-1, 64)
            scale = blocks.abs().amax(1, keepdim=True)
            codes = ((blocks / scale)[..., None] - NF4).abs().argmin(-1)
            weight.data = (NF4[codes] * scale).reshape(weight.shape)
    model.save_pretrained(target)
    transformers.AutoTokenizer.from_pretrained(folder).save_pretrained(target)
    return target


# --- encoding ---


@pytest.mark.parametrize("mode", ["causal", "bidirectional"])
@pytest.mark.parametrize(
    ("family", "precision", "layers", "least"),
    [
        ("llama", "8bit", "Linear8bitLt", 0.99),
        ("gpt2", "8bit", "Linear8bitLt", 0.99),
        ("llama", "4bit", "Linear4bit", 0.85),
        ("gpt2", "4bit", "Linear4bit", 0.95),
    ],
)
def test_vectors_are_near_to_those_of_float32(
    family, precision, layers, least, mode, folders, caplog
):
    exact = Encoder.load(folders[family], decoder=settings(mode)).encode(TEXTS).toarray()
    encoder = Encoder.load(
        folders[family], decoder=settings(mode), precision=precision, device="cpu"
    )
    assert layers in linear_layers(encoder.network.model)
    with caplog.at_level(logging.WARNING):
        found = encoder.encode(TEXTS).toarray()
    assert not caplog.records  # nothing that is said anew for every product
    assert least < least_cosine(found, exact) < 1 - 1e-5
    single = np.vstack([encoder.encode([text]).toarray() for text in TEXTS])
    assert least_cosine(single, found) > 0.999


def test_4_bits_are_those_of_the_paper(folders, tmp_path):
    rounded = round_by_hand(folders["llama"], tmp_path / "rounded")
    expected = Encoder.load(rounded, decoder=settings()).encode(TEXTS).toarray()
    found = (
        Encoder.load(folders["llama"], decoder=settings(), precision="4bit", device="cpu")
        .encode(TEXTS)
        .toarray()
    )
    assert least_cosine(found, expected) > 0.999


def test_rounded_weights_are_not_saved(folders, tmp_path):
    for precision in ("8bit", "4bit"):
        encoder = Encoder.load(
            folders["llama"], decoder=settings(), precision=precision, device="cpu"
        )
        with pytest.raises(
            ConfigError,
            match=f"precision '{precision}' has rounded the network; to be saved it must be loaded with",
        ):
            encoder.save(tmp_path / "m")


@pytest.mark.parametrize("seed", range(3))
def test_the_proof_of_attention_is_not_fooled_by_rounding(seed, tmp_path):
    """The outliers of 8 bits are those of all tokens, so that even a causal token would notice the
    others.
    """
    folder = tiny_decoders.build(
        "llama", tmp_path / "m", seed=seed, num_hidden_layers=6, **WIDE["llama"]
    )
    for precision in ("8bit", "4bit"):
        for mode in ("causal", "bidirectional"):
            Encoder.load(folder, decoder=settings(mode), precision=precision, device="cpu")


# --- adapters ---


@pytest.mark.parametrize("base", ["8bit", "4bit"])
def test_gradients_of_adapters_are_those_on_rounded_weights(base, folders, tmp_path):
    """Also after encoding, when bitsandbytes would have packed the weights for some processors,
    without a gradient.
    """
    rounded = (
        round_by_hand(folders["llama"], tmp_path / "rounded")
        if base == "4bit"
        else folders["llama"]
    )
    gradients = []
    for start, kind in ((folders["llama"], base), (rounded, "bfloat16")):
        _, student = open_decoder(start, lora={"r": 4, "base": kind})
        dice = torch.Generator().manual_seed(0)
        for _, tensor in sorted(student.tensors().items()):
            if tensor.ndim == 2:
                tensor.copy_(0.1 * torch.randn(tensor.shape, generator=dice))
        student.vectors(TEXTS[:2])
        student.train()
        hidden_BLH, _ = student.network.hidden_states(student.bare_ids(TEXTS[:4]))
        (hidden_BLH.float() * torch.randn(hidden_BLH.shape, generator=dice)).sum().backward()
        gradients.append(
            {
                name: parameter.grad
                for name, parameter in student.named_parameters()
                if parameter.grad is not None
            }
        )
    mine, theirs = gradients
    assert mine.keys() == theirs.keys() and len(mine) == 2 * 7 * 2
    cosines = [
        torch.nn.functional.cosine_similarity(mine[name].flatten(), theirs[name].flatten(), dim=0)
        for name in mine
    ]
    # what 8 bits do to the weights is left out here
    assert min(cosines) > {"8bit": 0.9, "4bit": 0.98}[base]


@pytest.mark.parametrize("base", ["8bit", "4bit"])
def test_adapters_train_on_a_rounded_base_and_resume_bit_for_bit(
    base, folders, pairs_file, tmp_path
):
    """The base stays as it is; the saved adapter names it, and on the same bits encodes as the
    network that trained.
    """
    config = make_config(
        folders["llama"],
        pairs_file,
        "bidirectional",
        lora={"r": 4, "base": base},
        optimizer={"learning_rate": 1e-2},
        run={"steps": 4, "save_every": 1},
        warm_start={"steps": 1, "objective": "clm"},
    )
    trainer = make_trainer(config, tmp_path / "whole")
    plain = {
        name: parameter.clone()
        for name, parameter in trainer.student.named_parameters()
        if "lora_" not in name
    }
    before = {name: tensor.clone() for name, tensor in trainer.student.tensors().items()}
    trainer.run()
    trained = trainer.student.tensors()
    assert {tensor.dtype for tensor in trained.values()} == {torch.float32}
    assert all("lora_" in name or name == "shift" for name in trained)
    assert any(
        (before[name] - tensor).abs().max() > 1e-3
        for name, tensor in trained.items()
        if "lora_B" in name
    )
    assert all(
        torch.equal(parameter, plain[name])
        for name, parameter in trainer.student.named_parameters()
        if name in plain
    )
    model = tmp_path / "whole" / "model"
    assert json.loads((model / "adapter_config.json").read_text())[
        "base_model_name_or_path"
    ] == str(folders["llama"])
    found = Encoder.load(model, precision=base, device="cpu").encode(TEXTS).toarray()
    assert least_cosine(found, trainer.student.vectors(TEXTS).toarray()) > 0.995
    untrained = (
        Encoder.load(
            folders["llama"],
            decoder=config.decoder.settings(config.model),
            precision=base,
            device="cpu",
        )
        .encode(TEXTS)
        .toarray()
    )
    assert least_cosine(found, untrained) < 0.99
    cut = make_trainer(
        make_config(
            folders["llama"],
            pairs_file,
            "bidirectional",
            lora={"r": 4, "base": base},
            optimizer={"learning_rate": 1e-2},
            warm_start={"steps": 1, "objective": "clm"},
            run={"steps": 4, "save_every": 1, "stop_after": 2},
        ),
        tmp_path / "cut",
    )
    cut.run()
    make_trainer(config, tmp_path / "cut").run()
    one, other = (
        load_file(saved_state.list_checkpoints(tmp_path / run)[-1] / "model.safetensors")
        for run in ("whole", "cut")
    )
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_nothing_is_said_on_the_way(folders, pairs_file, tmp_path):
    """In a fresh process: what importing bitsandbytes and every 8-bit product would say stays
    unsaid.
    """
    make_trainer(
        make_config(folders["llama"], pairs_file, lora={"r": 2}, run={"steps": 1}), tmp_path
    ).run()
    code = (
        "import sys; from sparse_ir.models.encoder import Encoder\n"
        "print(Encoder.load(sys.argv[1], precision='8bit', device='cpu').encode(['bees carry "
        "pollen']).nnz)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "model"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "HF_HUB_DISABLE_PROGRESS_BARS": "1"},
    )
    assert int(done.stdout) > 0 and done.stderr == ""
