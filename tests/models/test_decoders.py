"""Decoders as encoders: against plain PyTorch on the full logits, family by family and mode by
mode.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import asdict, replace

import numpy as np
import pytest
import tiny_decoders
import tiny_models
import torch
import transformers
from tiny_decoders import FAMILIES, TEXTS, center
from tokenizers import Tokenizer

from sparse_ir.data.records import Document
from sparse_ir.engines.lucene import java
from sparse_ir.engines.lucene.impact_reader import ImpactReader
from sparse_ir.engines.lucene.terms import CONTENTS_FIELD, token_of_term
from sparse_ir.errors import ConfigError, IndexMismatch, ModelError
from sparse_ir.indexing import builder, encoding, manifest
from sparse_ir.indexing.quantization import Rule
from sparse_ir.models import (
    adapters,
    decoder_settings,
    model_files,
    query_side,
    tokenization,
)
from sparse_ir.models.decoder_settings import DecoderSettings
from sparse_ir.models.encoder import Encoder
from sparse_ir.models.logits import LogitTransform, OutputScaling
from sparse_ir.models.pooling import Head, OutputLayer
from sparse_ir.retrieval.searcher import Index

MODES = ("causal", "echo", "bidirectional")
SHIFT = 3.0  # keeps random vectors sparse
SCALE = 20.0  # of impacts: scores stay whole in float32
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Family -> folder of a random decoder without settings. Read only."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("decoders")
    return {family: tiny_decoders.build(family, root / family) for family in FAMILIES}


@pytest.fixture
def llama(folders, tmp_path):
    """A copy of the random Llama with settings beside it."""
    folder = shutil.copytree(folders["llama"], tmp_path / "llama")
    decoder_settings.write_decoder_settings(folder, DecoderSettings(logit_shift=SHIFT))
    return folder


def settings(mode="causal", **changes):
    return DecoderSettings(**{"mode": mode, "logit_shift": SHIFT, **changes})


def load_plain(folder):
    """Network and tokenizer as transformers has them, untouched by this package."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return model, transformers.AutoTokenizer.from_pretrained(folder)


def see_all(model, ids, real=None):
    """Logits ``[B, L, V]`` under a mask that hides nothing but padding, handed over as a finished
    4D mask.
    """
    real = torch.ones_like(ids) if real is None else real
    length, window = ids.shape[1], getattr(model.config, "sliding_window", None)
    mask = torch.zeros(len(ids), 1, length, length).masked_fill(real[:, None, None] == 0, -1e9)
    if window:  # a sliding layer sees so far to both sides
        places = torch.arange(length)
        sliding = mask.masked_fill((places[:, None] - places).abs() > window, -1e9)
        mixed = {"full_attention": mask, "sliding_attention": sliding}
        mask = mixed if model.config.model_type == "gemma2" else sliding
    return model(
        input_ids=ids, attention_mask=mask, position_ids=(real.cumsum(1) - 1).clamp_min(0)
    ).logits


def by_loop(folder, texts, chosen, name="Document"):
    """The whole ``[1, L, V]`` of one text at a time, the second copy found by the length of what
    precedes it.
    """
    model, tokenizer = load_plain(folder)
    scale = (
        model.config.hidden_size**-0.25
        if chosen.logit_scale == "hidden^-1/4"
        else chosen.logit_scale
    )
    rows = []
    with torch.inference_mode():
        for text in texts:
            read, start = text, 0
            if chosen.mode == "echo":
                read = f"{name}: {text}\n{name} again: {text}"
                start = len(
                    tokenizer(f"{name}: {text}\n{name} again:", add_special_tokens=False).input_ids
                )
            ids = tokenizer(read, add_special_tokens=False, return_tensors="pt").input_ids
            start += chosen.mode == "echo" and is_space(tokenizer, ids[0, start])
            logits = (
                see_all(model, ids)
                if chosen.mode == "bidirectional"
                else model(input_ids=ids).logits
            )
            logits = center(model, logits) if chosen.centered else logits
            weights = activate(logits[0, start:] * scale - chosen.logit_shift, chosen.activation)
            rows.append(weights.sum(0) if chosen.pooling == "sum" else weights.amax(0))
    return torch.stack(rows).numpy()


def is_space(tokenizer, token_id):
    """Whether a token is the template's space alone, and not the first token of the text with a
    space before it.
    """
    return tokenizer.convert_ids_to_tokens(int(token_id)) in ("Ġ", "▁")


def activate(logits, activation="relu"):
    weights = torch.log1p(torch.relu(logits))
    return torch.log1p(weights) if activation == "log1p_relu" else weights


def encode(folder, texts=TEXTS, decoder=None, **options):
    return Encoder.load(folder, decoder=decoder, **options).encode(texts).toarray()


# --- parity ---


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_and_mode_equals_plain_pytorch(family, mode, folders):
    chosen = settings(mode, logit_shift=2.0 if family == "granite" else SHIFT)
    found = Encoder.load(folders[family], decoder=chosen).encode(TEXTS)
    assert 3 < found.nnz / len(TEXTS) < 0.8 * found.shape[1]
    assert found.dtype == np.float32 and found.indices.dtype == np.int32 and (found.data > 0).all()
    np.testing.assert_allclose(found.toarray(), by_loop(folders[family], TEXTS, chosen), **CLOSE)


@pytest.mark.parametrize("mode", ["causal", "echo"])
def test_a_family_that_names_a_scale_of_logits_and_has_none(mode, tmp_path):
    folder = tiny_decoders.build("mpt", tmp_path / "mpt")
    assert load_plain(folder)[0].config.logit_scale is None
    np.testing.assert_allclose(
        encode(folder, decoder=settings(mode)), by_loop(folder, TEXTS, settings(mode)), **CLOSE
    )
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "logit_scale": "inv_sqrt_d_model"}))
    with pytest.raises(
        ModelError, match="logit_scale is 'inv_sqrt_d_model', which is not supported"
    ):
        encode(folder, decoder=settings(mode))


@pytest.mark.parametrize("family", ["llama", "gemma2", "granite", "opt", "phi"])
@pytest.mark.parametrize(
    "changes",
    [
        {"centered": True},
        {"centered": True, "logit_scale": 0.5, "logit_shift": 0.25, "pooling": "sum"},
        {"logit_scale": "hidden^-1/4", "logit_shift": 0.5},
        {"logit_scale": 2.5},
        {"activation": "log1p_relu"},
        {"pooling": "sum"},
        {"logit_shift": -0.5},
        {"pooling": "sum", "logit_scale": 0.5, "logit_shift": 0.25},
    ],
    ids=str,
)
def test_scale_shift_activation_and_sum(family, changes, folders):
    chosen = settings(**changes)
    expected = by_loop(folders[family], TEXTS, chosen)
    assert expected.any()
    np.testing.assert_allclose(
        encode(folders[family], decoder=chosen), expected, rtol=1e-4, atol=3e-4
    )


def test_what_all_logits_have_in_common_is_left_to_chance_and_centered_away(folders, tmp_path):
    """The same row added to all rows of the output layer gives the same language model, and another
    encoder.
    """
    model, tokenizer = load_plain(folders["phi"])
    ids, before = torch.arange(4, 24)[None], encode(folders["phi"], decoder=settings(centered=True))
    plain = encode(folders["phi"], decoder=settings())
    with torch.inference_mode():
        expected = model(input_ids=ids).logits.softmax(-1)
        model.lm_head.weight += torch.linspace(-1, 1, model.config.hidden_size)
        torch.testing.assert_close(model(input_ids=ids).logits.softmax(-1), expected)
    model.save_pretrained(tmp_path / "same")
    tokenizer.save_pretrained(tmp_path / "same")
    np.testing.assert_allclose(
        encode(tmp_path / "same", decoder=settings(centered=True)), before, **CLOSE
    )
    assert np.abs(encode(tmp_path / "same", decoder=settings()) - plain).max() > 0.5


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("mode", ["causal", "bidirectional"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_padded_on_either_side_by_transformers_gives_the_same_vectors(
    family, mode, side, folders
):
    model, tokenizer = load_plain(folders[family])
    tokenizer.padding_side = side
    batch = tokenizer(list(TEXTS), add_special_tokens=False, padding=True, return_tensors="pt")
    ids, real = batch.input_ids, batch.attention_mask
    with torch.inference_mode():
        if mode == "bidirectional":
            logits = see_all(model, ids, real)
        else:
            positions = (real.cumsum(1) - 1).clamp_min(0)
            logits = model(input_ids=ids, attention_mask=real, position_ids=positions).logits
    expected = activate(logits.masked_fill(real[:, :, None] == 0, -1e9) - SHIFT).amax(1)
    np.testing.assert_allclose(encode(folders[family], decoder=settings(mode)), expected, **CLOSE)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("family", FAMILIES)
def test_batch_size_and_padding_side_do_not_change_vectors(family, mode, folders, tmp_path):
    chosen = settings(mode, logit_shift=1.0)
    whole = encode(folders[family], TEXTS[:8], decoder=chosen, tokens_per_batch=10**6)
    single = Encoder.load(folders[family], decoder=chosen, tokens_per_batch=1)
    np.testing.assert_allclose(single.encode(TEXTS[:8]).toarray(), whole, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(
        np.vstack([single.encode([text]).toarray() for text in TEXTS[:8]]),
        whole,
        rtol=1e-5,
        atol=1e-5,
    )
    folder = shutil.copytree(folders[family], tmp_path / family)
    path = folder / "tokenizer_config.json"
    path.write_text(path.read_text().replace('"padding_side": "left"', '"padding_side": "right"'))
    assert '"padding_side": "right"' in path.read_text()
    assert np.array_equal(encode(folder, TEXTS[:8], decoder=chosen, tokens_per_batch=10**6), whole)


def test_small_blocks_do_not_change_vectors(folders, monkeypatch):
    whole = encode(folders["llama"], decoder=settings("echo"))
    monkeypatch.setitem(sys.modules["sparse_ir.models.pooling"]._VOCABULARY_BLOCK, "cpu", 37)
    monkeypatch.setitem(sys.modules["sparse_ir.models.pooling"].TOKEN_BLOCK, "cpu", 5)
    np.testing.assert_allclose(
        encode(folders["llama"], decoder=settings("echo")), whole, rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("family", ["llama", "gemma2", "opt", "phi"])
def test_screening_and_bfloat16(family, folders, monkeypatch):
    monkeypatch.setattr("sparse_ir.models.pooling._MAX_SURVIVORS", 1.0)  # no way round the screen
    for shift in (-0.5, SHIFT):  # a cap and a negative shift rule the screen out
        chosen = settings(logit_shift=shift)
        exact = encode(folders[family], decoder=chosen)
        screened = encode(folders[family], decoder=chosen, precision="float32-int8")
        np.testing.assert_allclose(screened, exact, rtol=1e-5, atol=1e-5)
    for precision in ("bfloat16", "int8"):
        rounded = encode(folders[family], decoder=chosen, precision=precision)
        cosine = (
            (rounded * exact).sum(1)
            / np.linalg.norm(rounded, axis=1)
            / np.linalg.norm(exact, axis=1)
        )
        assert cosine.min() > 0.97 and not np.array_equal(rounded, exact)


def test_a_cap_by_hand():
    """Weight 2 and state 3 make 6, of which a cap of 4 leaves 4 tanh(1.5); the shift of 1 is taken
    off after it.
    """
    transform = LogitTransform(network=OutputScaling(cap=4.0))
    output = OutputLayer(torch.tensor([[2.0]]), torch.tensor([-1.0]), transform, shift=1.0)
    score = Head(output).pool(torch.tensor([[[3.0]]]), np.array([1]))
    assert score.item() == pytest.approx(4 * np.tanh(1.5) - 1, rel=1e-6)


# --- what a token sees ---


def first_states(folder, mode, one, other):
    """The pooled states of the first two tokens of two texts."""
    encoder = Encoder.load(folder, decoder=settings(mode))
    with torch.inference_mode():
        return encoder.network.pooled_states(encoder.tokenize([one, other]))[0][:, :2]


@pytest.mark.parametrize("family", FAMILIES)
def test_first_words_know_the_last_under_echo_and_without_a_mask_but_not_causally(family, folders):
    pair = ("the river floods the valley", "the river floods the market")
    one, other = first_states(folders[family], "causal", *pair)
    torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)
    for mode in ("echo", "bidirectional"):
        one, other = first_states(folders[family], mode, *pair)
        assert ((one - other).norm(dim=1) > 1e-3 * one.norm(dim=1)).all()


def test_the_first_copy_of_an_echo_is_not_pooled(folders):
    """A template of one's own, pooled by hand: the states after the second mark, prompt and special
    tokens left out.
    """
    chosen = settings(
        "echo", document_template="<s>A {text} B {text} C", document_prompt="read: ", bos=True
    )
    model, tokenizer = load_plain(folders["llama"])
    text = "the river floods the valley"
    before = tokenizer(f"read: <s>A {text} B").input_ids
    ids = tokenizer(f"read: <s>A {text} B {text} C").input_ids
    count = len(tokenizer(f" {text}", add_special_tokens=False).input_ids)
    assert ids[: len(before)] == before and ids[0] == tokenizer.bos_token_id
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([ids])).logits[0, len(before) : len(before) + count]
    found = encode(folders["llama"], [text], decoder=chosen)
    np.testing.assert_allclose(found[0], activate(logits - SHIFT).amax(0), **CLOSE)


@pytest.mark.parametrize("family", ["gpt_neo", "lfm2"])
def test_what_cannot_be_bidirectional_is_refused_and_works_causally(family, tmp_path):
    folder = tiny_decoders.build(family, tmp_path / family)
    with pytest.raises(
        ModelError,
        match=r"cannot be made bidirectional .*mode must be 'echo' or "
        r"'causal'",
    ):
        Encoder.load(folder, decoder=settings("bidirectional"))
    chosen = settings("causal", logit_shift=0.0)
    np.testing.assert_allclose(
        encode(folder, decoder=chosen), by_loop(folder, TEXTS, chosen), **CLOSE
    )


def test_a_network_that_is_not_causal_is_no_causal_decoder(tiny_folder):
    with pytest.raises(ModelError, match="BertLMHeadModel is not causal"):
        Encoder.load(tiny_folder, decoder=settings())


# --- what is pooled ---


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("mode", MODES)
def test_pooled_tokens_are_those_of_the_text_alone(family, mode, folders):
    encoder = Encoder.load(folders[family], decoder=settings(mode, bos=True))
    encoder = encoder.with_prompt("query: ")
    plain = transformers.AutoTokenizer.from_pretrained(folders[family])
    for text, tokens in zip(TEXTS, encoder.tokenize(TEXTS), strict=True):
        pooled = tokens.ids[tokens.pooled].tolist()
        bare = plain(f": {text}", add_special_tokens=False).input_ids
        start = len(plain(":", add_special_tokens=False).input_ids)
        assert pooled == bare[start + is_space(plain, bare[start]) :]
        assert len(pooled) < len(tokens.ids)


def test_bos_and_prompt_by_hand(folders):
    model, tokenizer = load_plain(folders["llama"])
    ids = torch.tensor([tokenizer("query: bees").input_ids])
    assert ids[0, 0] == tokenizer.bos_token_id
    with torch.inference_mode():
        framed, bare = model(input_ids=ids).logits[0], model(input_ids=ids[:, 1:]).logits[0]
    count = len(tokenizer(" bees", add_special_tokens=False).input_ids)
    for chosen, expected in (
        (settings(document_prompt="query: ", bos=True, pooled="all"), framed),
        (settings(document_prompt="query: ", bos=True), framed[-count:]),
        (settings(document_prompt="query: ", pooled="all"), bare),
        (settings(document_prompt="query: "), bare[-count:]),
    ):
        found = encode(folders["llama"], ["bees"], decoder=chosen)
        np.testing.assert_allclose(found[0], activate(expected - SHIFT).amax(0), **CLOSE)


def test_special_tokens_written_in_a_text_are_not_pooled(folders):
    encoder = Encoder.load(folders["llama"], decoder=settings())
    tokens = encoder.tokenize(["bees </s> carry"])[0]
    assert 2 in tokens.ids and 2 not in tokens.ids[tokens.pooled]


def test_an_empty_text_is_empty_and_counts_as_done(folders):
    done = []
    prompted = Encoder.load(folders["llama"], decoder=settings(document_prompt="query: "))
    found = prompted.encode(["", "bees"], done.append)
    assert found[0].nnz == 0 and found[1].nnz > 0 and sum(done) == 2
    assert (
        Encoder.load(folders["llama"], decoder=settings(bos=True, pooled="all")).encode([""]).nnz
        > 0
    )
    assert Encoder.load(folders["llama"], decoder=settings()).encode([]).shape == (0, 420)


def test_lengths(folders):
    long = "the valley " + " ".join(tiny_models.SENTENCES)
    encoder = Encoder.load(folders["llama"], decoder=settings(max_length=20))
    plain = transformers.AutoTokenizer.from_pretrained(folders["llama"])
    whole = plain(long, add_special_tokens=False).input_ids
    assert encoder.tokenize([long])[0].ids.tolist() == whole[:20]
    echo = Encoder.load(folders["llama"], decoder=settings("echo"), max_length=60)
    tokens = echo.tokenize([long])[0]
    spaced = plain(f" {long}", add_special_tokens=False).input_ids
    frame = len(plain("Document:", add_special_tokens=False).input_ids) + len(
        plain("\nDocument again:", add_special_tokens=False).input_ids
    )
    kept = (60 - frame) // 2
    assert (
        tokens.ids[tokens.pooled].tolist() == spaced[:kept] and len(tokens.ids) == frame + 2 * kept
    )
    assert tokens.pooled.tolist() == list(range(len(tokens.ids) - kept, len(tokens.ids)))
    assert echo.fingerprint["max_length"] == 60
    assert (
        Encoder.load(folders["llama"], decoder=settings()).fingerprint["max_length"]
        == tiny_decoders.POSITIONS
    )
    with pytest.raises(
        ConfigError, match="max_length is 257; for this model it must be at most 256"
    ):
        Encoder.load(folders["llama"], decoder=settings(), max_length=257)
    for length in (8, frame + 1):  # one token for two copies is none
        with pytest.raises(
            ConfigError,
            match=rf"^max_length is {length}, but .* alone take {frame} "
            rf"tokens",
        ):
            Encoder.load(folders["llama"], decoder=settings("echo"), max_length=length)
    assert (
        len(
            Encoder.load(folders["llama"], decoder=settings("echo"), max_length=frame + 2)
            .tokenize([long])[0]
            .pooled
        )
        == 1
    )


# --- settings and saving ---


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("family", FAMILIES)
def test_save_and_load_again(family, mode, folders, tmp_path):
    chosen = settings(
        mode,
        logit_scale="hidden^-1/4",
        logit_shift=0.25,
        document_prompt="p: ",
        query_prompt="q: ",
        top_k=50,
        max_length=100,
        temperature=10.0,
    )
    encoder = Encoder.load(folders[family], decoder=chosen)
    before = encoder.encode(TEXTS)
    encoder.save(str(tmp_path / "saved"))
    again = Encoder.load(tmp_path / "saved")
    assert decoder_settings.read_decoder_settings(tmp_path / "saved") == chosen
    assert (again.encode(TEXTS) != before).nnz == 0 and before.getnnz(1).max() == 50
    assert (encoder.encode(TEXTS) != before).nnz == 0  # saving leaves the encoder usable
    assert again.checkpoint.layout == "causal-lm" and again.vocabulary == encoder.vocabulary
    mine, theirs = load_plain(tmp_path / "saved")[0], load_plain(folders[family])[0]
    assert not hasattr(mine.config, "is_causal")
    ids = torch.arange(4, 24)[None]
    with torch.inference_mode():
        torch.testing.assert_close(
            mine(input_ids=ids).logits, theirs(input_ids=ids).logits, rtol=0, atol=0
        )


def test_what_stands_in_the_file_and_what_is_refused(llama):
    path = llama / "sparse_ir.json"
    record = json.loads(path.read_text())
    assert record == {"format": 1, **asdict(settings())}
    for change, message in (
        ({"format": 2}, "format is 2; it must be 1"),
        ({"mod": "echo"}, "mod is unknown; known: mode, document_template"),
        ({"mode": "prefix"}, "mode is 'prefix'; it must be one of causal, echo, bidirectional"),
        ({"bos": 1}, "bos is 1; it must be true or false"),
    ):
        path.write_text(json.dumps({**record, **change}))
        with pytest.raises(ModelError, match=rf"sparse_ir\.json: {message}"):
            Encoder.load(llama)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mode": "prefix"}, "mode is 'prefix'; it must be one of"),
        ({"pooled": "last"}, "pooled is 'last'; it must be one of text, all"),
        ({"pooling": "mean"}, "pooling is 'mean'; it must be one of max, sum"),
        ({"logit_scale": 0.0}, "logit_scale is 0.0; it must be a number above 0, or 'hidden"),
        ({"logit_scale": "hidden"}, "logit_scale is 'hidden'; it must be"),
        ({"logit_shift": float("nan")}, "logit_shift is nan; it must be a number"),
        ({"temperature": 0}, "temperature is 0; it must be a number above 0"),
        ({"top_k": 0}, "top_k is 0; it must be 1 or more, or None"),
        ({"max_length": None}, "max_length is None; it must be 1 or more"),
        ({"fold_tokens": "yes"}, "fold_tokens is 'yes'; it must be true or false"),
        ({"centered": 1}, "centered is 1; it must be true or false"),
        ({"document_prompt": None}, "document_prompt is None; it must be a text"),
        (
            {"document_template": "read:"},
            (
                r"document_template is 'read:'; in mode 'causal' it must "
                r"hold {text} once"
            ),
        ),
        (
            {"mode": "echo", "query_template": "{text}"},
            (
                r"query_template is '{text}'; in mode 'echo' "
                r".* twice"
            ),
        ),
        ({"mode": "echo", "pooled": "all"}, "mode 'echo' pools the second copy of the text only"),
    ],
)
def test_settings_are_checked(changes, message):
    with pytest.raises(ConfigError, match=message):
        DecoderSettings(**changes)


def test_a_decoder_without_settings_is_refused_with_the_remedy(folders, tmp_path):
    with pytest.raises(
        ModelError,
        match=r"a decoder needs sparse_ir\.json beside it, or "
        r"decoder=\.\.\.",
    ):
        Encoder.load(folders["llama"])
    bare = tmp_path / "bare"
    transformers.AutoModel.from_pretrained(folders["llama"]).save_pretrained(bare)
    transformers.AutoTokenizer.from_pretrained(folders["llama"]).save_pretrained(bare)
    with pytest.raises(
        ModelError,
        match=r"lacks weights that a decoder needs \(lm_head.weight\): "
        r"this is a backbone",
    ):
        Encoder.load(bare, decoder=settings())


@pytest.mark.parametrize("bare", [False, True], ids=["with output layer", "without"])
def test_a_network_with_a_hole_is_not_taken_for_a_backbone(bare, folders, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(folders["llama"], tmp_path / "m")
    tensors = load_file(folder / "model.safetensors")
    lost = "model.layers.1.self_attn.q_proj.weight"
    kept = {
        name: tensor
        for name, tensor in tensors.items()
        if name not in (lost, "lm_head.weight" if bare else "")
    }
    assert len(kept) == len(tensors) - 1 - bare
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        ModelError,
        match=rf"needs \({lost}\): the network itself is incomplete, "
        rf"and random weights",
    ):
        Encoder.load(folder, decoder=settings())


def test_other_layouts_and_token_weights_are_refused(folders, tiny_folder, tmp_path):
    encoder = Encoder.load(folders["llama"], decoder=settings())
    for options in (
        {"layout": "sparse-encoder"},
        {"query_weights": np.ones(420, dtype=np.float32)},
    ):
        with pytest.raises(ConfigError, match="a decoder must be saved in the layout 'causal-lm'"):
            encoder.save(tmp_path / "m", **options)
    with pytest.raises(
        ConfigError, match="cannot be saved in the layout 'causal-lm'; it must be sparse-encoder"
    ):
        Encoder.load(tiny_folder).save(tmp_path / "m", layout="causal-lm")
    with pytest.raises(ConfigError, match="precision 'bfloat16' has rounded the network"):
        Encoder.load(folders["llama"], decoder=settings(), precision="bfloat16").save(
            tmp_path / "m"
        )


def test_8_and_4_bits_need_their_package_and_a_decoder(folders, tiny_folder, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for precision in ("8bit", "4bit"):
        with pytest.raises(
            ConfigError,
            match=f"weights in {precision[0]} bits: this needs the package bitsandbytes",
        ):
            Encoder.load(folders["llama"], decoder=settings(), precision=precision)
        with pytest.raises(ConfigError, match=f"precision '{precision}' is for decoders"):
            Encoder.load(tiny_folder, precision=precision)


# --- queries ---


def test_queries_have_their_own_template_and_prompt_and_share_the_network(folders, tmp_path):
    chosen = settings("echo", query_prompt="find: ", document_prompt="read: ")
    encoder = Encoder.load(folders["llama"], decoder=chosen, top_k=20)
    side = encoder.query_encoder()
    assert side.encoder.network.model is encoder.network.model
    assert side.fingerprint["template"] == "Query: {text}\nQuery again: {text}"
    expected = encode(
        folders["llama"],
        ["bees"],
        decoder=settings(
            "echo", document_template=side.fingerprint["template"], document_prompt="find: "
        ),
        top_k=20,
    )
    ids, weights = side.encode("bees")
    assert np.array_equal(np.flatnonzero(expected[0]), ids) and np.array_equal(
        expected[0, ids], weights
    )
    side.save(tmp_path / "query")
    again = query_side.load_query_encoder(tmp_path / "query", model=folders["llama"])
    assert again.fingerprint == side.fingerprint
    assert np.array_equal(again.encode("bees")[1], weights)
    with pytest.raises(IndexMismatch, match="files_sha256"):
        query_side.load_query_encoder(tmp_path / "query", model=folders["qwen3"])


def test_static_query_sides(folders, tmp_path):
    encoder = Encoder.load(folders["llama"], decoder=settings())
    (tmp_path / "idf.json").write_text('{"Ġthe": 0.5, "Ġof": 2.0}')
    for side in (encoder.query_encoder("ones"), encoder.query_encoder(idf=tmp_path / "idf.json")):
        assert side.vocabulary == encoder.vocabulary
        assert encoder.vocabulary[side.encode(" the")[0][0]] == "Ġthe"
    folding = Encoder.load(folders["llama"], decoder=settings(fold_tokens=True))
    with pytest.raises(ConfigError, match="a query side of kind 'ones' does not fold tokens"):
        folding.query_encoder("ones")


def test_the_fingerprint_tells_settings_and_files(folders):
    prints = [
        Encoder.load(folders["llama"], decoder=chosen).fingerprint
        for chosen in (
            settings(),
            settings("echo"),
            settings(bos=True),
            settings(logit_scale=0.5),
            settings(centered=True),
        )
    ]
    assert len({json.dumps(found, sort_keys=True) for found in prints}) == 5
    assert prints[1]["decoder"]["mode"] == "echo"


# --- adapters ---


def make_adapter(base, folder, chosen=None, seed=0, **options):
    """A LoRA adapter with random weights, in peft's layout with our settings beside it; the adapted
    network.
    """
    import peft

    model, tokenizer = load_plain(base)
    config = peft.LoraConfig(
        **{
            "r": 4,
            "lora_alpha": 16,
            "target_modules": "all-linear",
            "task_type": "CAUSAL_LM",
            **options,
        }
    )
    with adapters.quiet_peft():
        adapted = peft.get_peft_model(model, config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(parameter, std=0.2)
    adapters.save_adapter(
        adapted,
        folder,
        base=str(base),
        hf_tokenizer=tokenizer,
        settings=chosen or settings(),
        base_sha256=model_files.weights_hash(base),
    )
    return adapted.eval()


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3"])
def test_an_adapter_is_merged_into_its_base(family, folders, tmp_path):
    adapted = make_adapter(folders[family], tmp_path / "adapter", fan_in_fan_out=family == "gpt2")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folders[family])
    encoder = Encoder.load(tmp_path / "adapter")
    found = encoder.encode(TEXTS).toarray()
    with torch.inference_mode():
        for row, text in zip(found, TEXTS, strict=True):
            ids = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
            np.testing.assert_allclose(
                row, activate(adapted(input_ids=ids).logits[0] - SHIFT).amax(0), **CLOSE
            )
    assert np.abs(found - encode(folders[family], decoder=settings())).max() > 0.1
    encoder.save(tmp_path / "merged")
    assert not (tmp_path / "merged" / "adapter_config.json").exists()
    np.testing.assert_allclose(encode(tmp_path / "merged"), found, rtol=1e-6, atol=1e-6)
    other = make_adapter(
        folders[family], tmp_path / "other", seed=1, fan_in_fan_out=family == "gpt2"
    )
    assert (
        other
        and Encoder.load(tmp_path / "other").fingerprint["files_sha256"]
        != encoder.fingerprint["files_sha256"]
    )


def test_an_adapter_beside_its_base_and_in_a_published_layout(folders, tmp_path):
    """Only peft's own two files, the base named by a path relative to the adapter; the settings are
    given.
    """
    make_adapter(folders["llama"], tmp_path / "full")
    base = shutil.copytree(folders["llama"], tmp_path / "hub" / "base")
    published = tmp_path / "hub" / "adapter"
    published.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(tmp_path / "full" / name, published)
    change_json(published / "adapter_config.json", base_model_name_or_path="../base")
    found = encode(published, decoder=settings("bidirectional"))
    np.testing.assert_array_equal(
        found, encode(tmp_path / "full", decoder=settings("bidirectional"))
    )
    with pytest.raises(
        ModelError,
        match=r"is an adapter, and nothing says how its decoder reads "
        r"a text",
    ):
        Encoder.load(published)
    shutil.rmtree(base)
    with pytest.raises(
        ModelError,
        match=r"adapter_config\.json: the base model cannot be found "
        r".*base_model_name_or_path must be its place",
    ):
        Encoder.load(published, decoder=settings())


def change_json(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_adapters_that_do_not_fit_are_refused(folders, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "adapter"
    make_adapter(folders["llama"], folder, target_modules=["q_proj", "v_proj"])
    other = tiny_decoders.build("llama", tmp_path / "other", seed=5)
    change_json(folder / "adapter_config.json", base_model_name_or_path=str(other))
    with pytest.raises(
        ModelError,
        match=r"was trained on other weights than those in .*other; "
        r"give the base model",
    ):
        Encoder.load(folder)
    for base, message in (
        (
            tiny_decoders.build("llama", tmp_path / "wide", hidden_size=48),
            r"not fit its base model .*size mismatch",
        ),
        (
            tiny_decoders.build("llama", tmp_path / "deep", num_hidden_layers=3),
            "not fit its base model: 0 tensors",
        ),
        (folders["gpt2"], "does not fit its base model"),
    ):
        change_json(folder / "adapter_config.json", base_model_name_or_path=str(base))
        change_json(folder / "sparse_ir.json", base_sha256=model_files.weights_hash(base))
        with pytest.raises(ModelError, match=message):
            Encoder.load(folder)
    change_json(folder / "adapter_config.json", base_model_name_or_path=str(folders["llama"]))
    (folder / "sparse_ir.json").write_text(json.dumps({"format": 1}))
    tensors = load_file(folder / "adapter_model.safetensors")
    save_file(
        {**tensors, "base_model.model.extra.lora_A.weight": torch.zeros(4, 4)},
        folder / "adapter_model.safetensors",
    )
    with pytest.raises(ModelError, match="1 tensors have no place in it, 0 are missing"):
        Encoder.load(folder)
    change_json(folder / "adapter_config.json", base_model_name_or_path=None)
    with pytest.raises(ModelError, match="names no base_model_name_or_path"):
        Encoder.load(folder)


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")
def test_adapters_that_cannot_be_merged_are_refused(folders, tmp_path):
    import peft

    make_adapter(folders["qwen3"], tmp_path / "tied", target_modules=["q_proj", "lm_head"])
    with pytest.raises(
        ModelError, match="adapts an output layer that is tied to the word embeddings"
    ):
        Encoder.load(tmp_path / "tied")
    with adapters.quiet_peft():
        model = peft.get_peft_model(
            load_plain(folders["llama"])[0],
            peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
        )
    adapters.save_adapter(
        model,
        tmp_path / "prompt",
        base=str(folders["llama"]),
        settings=settings(),
        hf_tokenizer=transformers.AutoTokenizer.from_pretrained(folders["llama"]),
    )
    with pytest.raises(ModelError, match="is an adapter of type PROMPT_TUNING; it must be LORA"):
        Encoder.load(tmp_path / "prompt")


def test_an_adapter_without_peft_is_refused(folders, tmp_path, monkeypatch):
    make_adapter(folders["llama"], tmp_path / "adapter")
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ModelError, match="an adapter: this needs the package peft"):
        Encoder.load(tmp_path / "adapter")


# --- other libraries ---


@pytest.mark.parametrize(
    ("family", "reading"),
    [
        ("llama", {}),
        ("gpt2", {}),
        ("gemma2", {}),
        ("llama", {"add_special_tokens": False}),
        ("gemma2", {"add_special_tokens": True}),
    ],
)
def test_a_causal_decoder_saved_by_sentence_transformers(family, reading, folders, tmp_path):
    """There every token is pooled that the tokenizer gives, BOS and prompt included.

    One text at a time: that library pads on the left without telling the network, which moves
    GPT-2's positions.
    """
    from sentence_transformers import SparseEncoder
    from sentence_transformers.sparse_encoder.modules import SpladePooling, Transformer

    transformer = Transformer(
        str(folders[family]),
        transformer_task="text-generation",
        module_output_name="token_embeddings",
        modality_config={"text": {"method": "forward", "method_output_name": "logits"}},
        max_seq_length=40,
        processing_kwargs={"text": {"logits_to_keep": 0, **reading}},
    )
    SparseEncoder(
        modules=[transformer, SpladePooling()],
        prompts={"query": "find: ", "document": "read: "},
        device="cpu",
    ).save_pretrained(str(tmp_path / "m"))
    oracle = SparseEncoder(str(tmp_path / "m"), device="cpu")
    encoder = Encoder.load(tmp_path / "m", max_length=40)
    np.testing.assert_allclose(
        encoder.encode(TEXTS).toarray(),
        oracle.encode_document(list(TEXTS), batch_size=1, convert_to_sparse_tensor=False).numpy(),
        **CLOSE,
    )
    np.testing.assert_allclose(
        encoder.query_encoder().encode_batch(TEXTS).toarray(),
        oracle.encode_query(list(TEXTS), batch_size=1, convert_to_sparse_tensor=False).numpy(),
        **CLOSE,
    )
    assert encoder.checkpoint.document.family.settings.bos == reading.get(
        "add_special_tokens", True
    )
    for options, message in (
        ({}, r"without processing_kwargs .*logits_to_keep.* pools the last token only"),
        (
            {"text": {"logits_to_keep": 0, "padding": "max_length"}},
            "processing_kwargs is .*padding.*; for a decoder it must hold",
        ),
        (
            {"text": {"logits_to_keep": 0}, "common": {"device": "cpu"}},
            (
                r"processing_kwargs is "
                r".*common.*; for a decoder it must hold"
            ),
        ),
    ):
        change_json(tmp_path / "m" / "sentence_bert_config.json", processing_kwargs=options)
        with pytest.raises(ModelError, match=message):
            Encoder.load(tmp_path / "m")
    encoder.save(tmp_path / "ours")
    np.testing.assert_allclose(
        encode(tmp_path / "ours"), encoder.encode(TEXTS).toarray(), rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("path", ["", "0_Transformer"])
def test_settings_for_a_folder_of_a_dense_decoder(path, folders, tmp_path):
    """Its prompts and active dimensions hold where the settings say nothing of them, and are
    recorded.
    """
    place = tmp_path / "dense" / path
    shutil.copytree(folders["llama"], place)
    (tmp_path / "dense" / "modules.json").write_text(
        json.dumps(
            [
                {"path": path, "type": "sentence_transformers.models.Transformer"},
                {"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
            ]
        )
    )
    stated = {"prompts": {"query": "find: ", "document": "read: "}, "max_active_dims": 7}
    (tmp_path / "dense" / "config_sentence_transformers.json").write_text(json.dumps(stated))
    with pytest.raises(
        ModelError, match="Pooling makes this a dense sentence embedding; it must be"
    ):
        Encoder.load(tmp_path / "dense")
    encoder = Encoder.load(tmp_path / "dense", decoder=settings())
    expected = encode(folders["llama"], decoder=settings(document_prompt="read: "), top_k=7)
    np.testing.assert_array_equal(encoder.encode(TEXTS).toarray(), expected)
    assert (
        encoder.query_encoder().fingerprint["prompt"] == "find: "
        and encoder.fingerprint["top_k"] == 7
    )
    other = Encoder.load(tmp_path / "dense", decoder=settings(document_prompt="own: ", top_k=3))
    assert other.fingerprint["prompt"] == "own: " and other.fingerprint["top_k"] == 3
    encoder.query_encoder().save(tmp_path / "query")
    assert (
        query_side.load_query_encoder(tmp_path / "query").fingerprint
        == encoder.query_encoder().fingerprint
    )


def test_settings_for_an_adapter_that_makes_a_dense_embedding(folders, tmp_path):
    make_adapter(folders["llama"], tmp_path / "adapter")
    expected = encode(tmp_path / "adapter")
    (tmp_path / "adapter" / "sparse_ir.json").unlink()
    (tmp_path / "adapter" / "modules.json").write_text(
        json.dumps(
            [
                {"path": "", "type": "sentence_transformers.models.Transformer"},
                {"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
            ]
        )
    )
    np.testing.assert_array_equal(encode(tmp_path / "adapter", decoder=settings()), expected)


def test_settings_of_a_decoder_are_not_for_a_sparse_encoder(tiny_folder, tmp_path):
    Encoder.load(tiny_folder).save(tmp_path / "sparse")
    for mode in MODES:  # else a masked network would be read as a bidirectional decoder
        with pytest.raises(
            ModelError,
            match=r"is a sparse encoder by its modules.json, not a decoder; drop "
            r"deco.*=\.\.\. \(--decoder\)",
        ):
            Encoder.load(tmp_path / "sparse", decoder=settings(mode))


# --- folding ---


def test_folding_takes_the_largest_weight_of_the_variants(folders):
    plain = Encoder.load(folders["llama"], decoder=settings())
    folded = Encoder.load(folders["llama"], decoder=settings(fold_tokens=True))
    assert len(folded.vocabulary) == len(set(folded.vocabulary)) < len(plain.vocabulary)
    assert set(folded.vocabulary) <= set(plain.vocabulary)
    before, after = plain.encode(TEXTS).toarray(), folded.encode(TEXTS)
    assert after.has_sorted_indices and after.shape == (len(TEXTS), len(folded.vocabulary))
    place = {token: number for number, token in enumerate(plain.vocabulary)}
    variants = {
        "the": ["the", "Ġthe", "The", "ĠThe"],
        "s": ["s", "S", "Ġs", "ĠS"],
        "Ġ": ["Ġ"],
        "Ċ": ["Ċ"],
        "Ã": ["Ã"],
    }
    for term, tokens in variants.items():
        columns = [place[token] for token in tokens if token in place]
        name = term if term in place else tokens[1]
        found = after.toarray()[:, folded.vocabulary.index(name)]
        np.testing.assert_array_equal(found, before[:, columns].max(1))
    assert after.toarray().max(1).tolist() == before.max(1).tolist()


@pytest.mark.parametrize("kind", tiny_decoders.TOKENIZERS)
def test_folding_of_every_kind_of_tokenizer(kind):
    owner = tiny_decoders.TOKENIZERS[kind]()
    size = len(owner) + 5
    names, terms = tokenization.fold_vocabulary(owner.backend_tokenizer, size)
    tokens = tokenization.vocabulary_of(owner.backend_tokenizer, size)
    assert (
        len(names) == len(set(names))
        and set(names) <= set(tokens)
        and sorted(set(terms)) == list(range(len(names)))
    )
    together = {token: names[term] for token, term in zip(tokens, terms, strict=True)}
    mark = "Ġ" if kind.startswith("byte-level") else "▁"
    assert together[f"{mark}t"] == together["t"] == together["T"] == "t"
    assert together[f"{mark}the"] == together.get("the", f"{mark}the")
    for alone in ("<s>", mark, f"[unused-{size - 1}]"):
        assert together[alone] == alone
    if mark == "▁":
        assert together["<0xC3>"] == "<0xC3>" and together["<0x0A>"] == "<0x0A>"
    else:
        assert together["Ċ"] == "Ċ" and together["Ã"] == "Ã" and together["ã"] == "ã"


def test_folded_models_go_round(folders, tmp_path):
    encoder = Encoder.load(folders["llama"], decoder=settings(fold_tokens=True))
    encoder.save(tmp_path / "m")
    again = Encoder.load(tmp_path / "m")
    assert again.vocabulary == encoder.vocabulary
    assert (again.encode(TEXTS) != encoder.encode(TEXTS)).nnz == 0
    side = again.query_encoder()
    assert side.vocabulary == encoder.vocabulary and np.array_equal(
        side.encode("bees")[0], again.encode(["bees"]).indices
    )


# --- to Lucene and back ---


def read_terms(folder):
    """Every term of the index with its total impact, walked in Lucene itself."""
    with ImpactReader(folder) as reader:
        terms = java.java_class("org.apache.lucene.index.MultiTerms").getTerms(
            reader._reader, CONTENTS_FIELD
        )
        walker, found = terms.iterator(), {}
        while (term := walker.next()) is not None:
            found[token_of_term(term.utf8ToString())] = int(walker.totalTermFreq())
    return found


@pytest.mark.filterwarnings("ignore:.* no token reaches 3 of the")
@pytest.mark.parametrize("folded", [False, True], ids=["plain", "folded"])
@pytest.mark.parametrize("kind", tiny_decoders.TOKENIZERS)
def test_every_token_reaches_lucene_and_comes_back(kind, folded, tmp_path):
    """A shift of -1000 makes all tokens active: bytes, white space, special tokens and unused ids
    included.
    """
    folder = tiny_decoders.build("llama", tmp_path / "m", tokenizer=kind, extra_outputs=3)
    encoder = Encoder.load(folder, decoder=settings(logit_shift=-1000.0, fold_tokens=folded))
    documents = [Document(f"d{number}", "", text) for number, text in enumerate(TEXTS)]
    expected = encoder.encode([document.contents for document in documents])
    assert expected.nnz == expected.shape[0] * expected.shape[1]
    side = Encoder.load(folder, decoder=settings(fold_tokens=folded)).query_encoder()
    stored = encoding.write_vectors(tmp_path / "v", lambda: documents, encoder, query_encoder=side)
    builder.build_impact_index(stored, tmp_path / "i", Rule(SCALE), side)
    impacts = np.rint(expected.toarray().astype(np.float64) * SCALE)
    totals = dict(zip(encoder.vocabulary, impacts.sum(0).astype(int).tolist(), strict=True))
    assert (
        read_terms(next(path for path in tmp_path.glob("i/**") if manifest.is_lucene_folder(path)))
        == totals
    )
    with Index(tmp_path / "i") as index:
        query = index.encode_query(TEXTS[-1])
        hits = {hit.doc_id: hit.score for hit in index.search(TEXTS[-1], k=len(TEXTS))}
    ids, weights = side.encode(TEXTS[-1])
    rounded = {
        side.vocabulary[i]: int(np.rint(w * SCALE))
        for i, w in zip(ids, weights.astype(float), strict=True)
    }
    assert query == {token: impact for token, impact in rounded.items() if impact}
    scores = impacts[:, ids] @ np.rint(weights.astype(np.float64) * SCALE)
    assert hits == {f"d{number}": score for number, score in enumerate(scores)}


# --- memory ---


@pytest.mark.slow
@pytest.mark.parametrize("sentences", [1, 16])
def test_peak_memory_does_not_grow_with_length_times_vocabulary(sentences, tmp_path):
    """At 128,000 terms the logits of one batch of 2048 tokens would take 1000 MiB, those of one
    long text 240.
    """
    folder = tiny_decoders.build(
        "llama", tmp_path / "m", unused_tokens=128_000, max_position_embeddings=1024
    )
    growth, _ = tiny_decoders.measure_growth(
        f"""
from sparse_ir.models.decoder_settings import DecoderSettings
from sparse_ir.models.encoder import Encoder
encoder = Encoder.load({str(folder)!r}, decoder=DecoderSettings(mode="echo", logit_shift=40.0), tokens_per_batch=2048)
encoder.encode(["warm up"])""",
        f"encoder.encode([' '.join(SENTENCES[:{sentences}])] * 16)",
    )
    assert growth < 100


def test_importing_the_module_loads_no_transformers():
    code = "import sys; import sparse_ir.models.families.table; print('transformers' in sys.modules, 'peft' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_the_callers_settings_and_tokenizer_stay_as_they_were(folders):
    chosen = settings("echo")
    before, rules = (
        replace(chosen),
        Tokenizer.from_file(str(folders["llama"] / "tokenizer.json")).to_str(),
    )
    Encoder.load(folders["llama"], decoder=chosen, max_length=50).encode(TEXTS)
    assert chosen == before
    assert Tokenizer.from_file(str(folders["llama"] / "tokenizer.json")).to_str() == rules
