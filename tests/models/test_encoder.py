import shutil
import subprocess
import sys

import numpy as np
import pytest
import tiny_models
import torch
import transformers
from safetensors.torch import load_file, save_file

from sparse_ir.errors import ConfigError, DataError, IndexMismatch, ModelError, SparseIRWarning
from sparse_ir.models import query_side
from sparse_ir.models.encoder import Encoder
from sparse_ir.models.encoder_options import fastest_precision
from sparse_ir.models.pooling import Head, OutputLayer
from sparse_ir.models.screening import Screen
from sparse_ir.models.static_queries import CONVENTIONS

ORACLE_TOLERANCE = 1e-4


def load_oracle(folder):
    from sentence_transformers import SparseEncoder

    return SparseEncoder(str(folder), device="cpu")


def by_oracle(folder, texts, task="document"):
    model = load_oracle(folder)
    encode = model.encode_query if task == "query" else model.encode_document
    return encode(list(texts), convert_to_sparse_tensor=False).numpy()


def by_loop(folder, texts, times=1):
    """SPLADE-max with the whole [1, L, V] of one text at a time, straight from transformers."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForMaskedLM.from_pretrained(folder).eval()
    rows = []
    with torch.inference_mode():
        for text in texts:
            weights = (
                model(**tokenizer(text, truncation=True, return_tensors="pt"))
                .logits[0]
                .amax(0)
                .relu()
            )
            for _ in range(times):
                weights = weights.log1p()
            rows.append(weights.numpy())
    return np.stack(rows)


def save_by_oracle(folder, plain, *, query_weights=None, class_names=None, **options):
    """Let sentence-transformers save the plain model; ``class_names`` "5" puts the names of version
    5 in its files.
    """
    from sentence_transformers import SparseEncoder
    from sentence_transformers.sparse_encoder.modules import (
        Router,
        SparseStaticEmbedding,
        SpladePooling,
        Transformer,
    )

    prompts, top_k = options.pop("prompts", None), options.pop("top_k", None)
    neural = [Transformer(str(plain), transformer_task="fill-mask"), SpladePooling(**options)]
    modules = neural
    if query_weights is not None:
        static = SparseStaticEmbedding(
            neural[0].tokenizer, torch.from_numpy(query_weights), frozen=True
        )
        modules = [Router.for_query_document(query_modules=[static], document_modules=neural)]
    SparseEncoder(
        modules=modules, prompts=prompts, max_active_dims=top_k, device="cpu"
    ).save_pretrained(str(folder))
    if class_names == "5":
        for path in (folder / "modules.json", folder / "router_config.json"):
            if path.exists():
                path.write_text(
                    path.read_text()
                    .replace("base.modules.router.Router", "models.Router")
                    .replace(
                        "base.modules.transformer.Transformer",
                        "sparse_encoder.models.MLMTransformer",
                    )
                    .replace("sparse_encoder.modules.splade_pooling.", "sparse_encoder.models.")
                    .replace(
                        "sparse_encoder.modules.sparse_static_embedding.", "sparse_encoder.models."
                    )
                )
    return folder


def query_matrix(encoder, texts):
    found = np.zeros((len(texts), len(encoder.vocabulary)), dtype=np.float32)
    for row, text in zip(found, texts, strict=True):
        ids, weights = encoder.encode(text)
        row[ids] = weights
    return found


def check_csr(matrix):
    assert matrix.dtype == np.float32 and matrix.indices.dtype == np.int32
    assert matrix.has_sorted_indices and (matrix.data > 0).all()


@pytest.fixture(scope="module")
def token_weights(tiny_tokenizer):
    """A float32 weight per token of the random BERT, some of them zero."""
    weights = np.random.default_rng(0).random(tiny_tokenizer.get_vocab_size(), dtype=np.float32) * 5
    weights[::7] = 0.0
    return weights


@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_every_family_equals_the_loop_and_sentence_transformers(family, tiny_folders, tiny_texts):
    found = Encoder.load(tiny_folders[family]).encode(tiny_texts)
    check_csr(found)
    assert 3 < found.nnz / len(tiny_texts) < 100
    assert np.abs(found.toarray() - by_loop(tiny_folders[family], tiny_texts)).max() <= 1e-5
    assert (
        np.abs(found.toarray() - by_oracle(tiny_folders[family], tiny_texts)).max()
        <= ORACLE_TOLERANCE
    )


CASES = {
    "symmetric": {},
    "double logarithm": {"activation_function": "log1p_relu"},
    "sum": {"pooling_strategy": "sum"},
    "sum of double logarithms": {"pooling_strategy": "sum", "activation_function": "log1p_relu"},
    "prompts": {"prompts": {"query": "what is ", "document": "bees: "}},
    "top k": {"top_k": 5},
    "version 5 names": {"class_names": "5"},
}


@pytest.mark.parametrize("case", CASES)
def test_models_saved_by_sentence_transformers(case, tiny_folder, tiny_texts, tmp_path):
    folder = save_by_oracle(tmp_path / "model", tiny_folder, **CASES[case])
    encoder = Encoder.load(folder)
    assert encoder.checkpoint.layout == "sparse-encoder"
    assert (
        np.abs(encoder.encode(tiny_texts).toarray() - by_oracle(folder, tiny_texts)).max()
        <= ORACLE_TOLERANCE
    )
    found = query_matrix(encoder.query_encoder(), tiny_texts)
    assert np.abs(found - by_oracle(folder, tiny_texts, "query")).max() <= ORACLE_TOLERANCE


@pytest.mark.parametrize("class_names", ["6", "5"])
def test_routers_saved_by_sentence_transformers(
    class_names, tiny_folder, tiny_texts, token_weights, tmp_path
):
    folder = save_by_oracle(
        tmp_path / "model",
        tiny_folder,
        query_weights=token_weights,
        class_names=class_names,
        activation_function="log1p_relu",
        prompts={"query": "bees "},
    )
    encoder = Encoder.load(folder)
    assert encoder.checkpoint.layout == "router"
    assert (
        np.abs(encoder.encode(tiny_texts).toarray() - by_oracle(folder, tiny_texts)).max()
        <= ORACLE_TOLERANCE
    )
    side = encoder.query_encoder()
    assert side.fingerprint["kind"] == "static" and side.vocabulary == encoder.vocabulary
    assert (
        np.abs(query_matrix(side, tiny_texts) - by_oracle(folder, tiny_texts, "query")).max()
        <= ORACLE_TOLERANCE
    )


@pytest.mark.parametrize("case", CASES)
def test_models_saved_here_open_in_sentence_transformers(case, tiny_folder, tiny_texts, tmp_path):
    options = {**CASES[case], "class_names": None}
    Encoder.load(save_by_oracle(tmp_path / "theirs", tiny_folder, **options)).save(
        tmp_path / "ours"
    )
    ours = Encoder.load(tmp_path / "ours")
    for task, found in (
        ("document", ours.encode(tiny_texts).toarray()),
        ("query", query_matrix(ours.query_encoder(), tiny_texts)),
    ):
        assert (
            np.abs(found - by_oracle(tmp_path / "ours", tiny_texts, task)).max() <= ORACLE_TOLERANCE
        )
        assert (
            np.abs(found - by_oracle(tmp_path / "theirs", tiny_texts, task)).max()
            <= ORACLE_TOLERANCE
        )


def test_routers_saved_here_open_in_sentence_transformers(
    tiny_folder, tiny_texts, token_weights, tmp_path
):
    Encoder.load(tiny_folder).save(tmp_path / "ours", query_weights=token_weights)
    ours = Encoder.load(tmp_path / "ours")
    assert (
        np.abs(ours.encode(tiny_texts).toarray() - by_oracle(tmp_path / "ours", tiny_texts)).max()
        <= ORACLE_TOLERANCE
    )
    found = query_matrix(ours.query_encoder(), tiny_texts)
    assert (
        found.any()
        and np.abs(found - by_oracle(tmp_path / "ours", tiny_texts, "query")).max()
        <= ORACLE_TOLERANCE
    )
    again = tmp_path / "again"
    ours.save(again)  # a router stays a router
    assert np.abs(query_matrix(Encoder.load(again).query_encoder(), tiny_texts) - found).max() == 0


def test_plain_layout_round_trip(tiny_folder, tiny_texts, tmp_path):
    encoder = Encoder.load(tiny_folder)
    before = encoder.encode(tiny_texts)
    encoder.save(tmp_path / "plain", layout="masked-lm")
    assert not (tmp_path / "plain" / "modules.json").exists()
    assert (Encoder.load(tmp_path / "plain").encode(tiny_texts) != before).nnz == 0
    assert (encoder.encode(tiny_texts) != before).nnz == 0  # saving leaves the encoder usable


def test_save_refuses_what_it_cannot_write(tiny_folder, tmp_path):
    with pytest.raises(ConfigError, match="precision 'bfloat16' has rounded the network"):
        Encoder.load(tiny_folder, precision="bfloat16").save(tmp_path / "m")
    encoder = Encoder.load(tiny_folder)
    with pytest.raises(ConfigError, match="layout 'router' needs query_weights"):
        encoder.save(tmp_path / "m", layout="router")
    with pytest.raises(
        ConfigError, match="layout 'onnx' is unknown; it must be sparse-encoder, router, masked-lm"
    ):
        encoder.save(tmp_path / "m", layout="onnx")


@pytest.mark.parametrize(
    ("pooling", "precision"), [("max", "float32"), ("max", "float32-int8"), ("sum", "float32")]
)
def test_batches_padding_and_blocks_do_not_change_vectors(
    pooling, precision, tiny_folder, tiny_texts, tmp_path, monkeypatch
):
    folder = save_by_oracle(tmp_path / "m", tiny_folder, pooling_strategy=pooling)
    whole = (
        Encoder.load(folder, precision=precision, tokens_per_batch=10**6)
        .encode(tiny_texts)
        .toarray()
    )
    single = Encoder.load(folder, precision=precision, tokens_per_batch=1)
    close = {"rtol": 1e-5, "atol": 1e-5}
    np.testing.assert_allclose(single.encode(tiny_texts).toarray(), whole, **close)
    np.testing.assert_allclose(
        np.vstack([single.encode([text]).toarray() for text in tiny_texts]), whole, **close
    )
    monkeypatch.setitem(sys.modules["sparse_ir.models.pooling"]._VOCABULARY_BLOCK, "cpu", 37)
    monkeypatch.setitem(sys.modules["sparse_ir.models.pooling"].TOKEN_BLOCK, "cpu", 5)
    blocked = Encoder.load(folder, precision=precision).encode(tiny_texts).toarray()
    np.testing.assert_allclose(blocked, whole, **close)


def test_order_of_texts_and_repetition(tiny_folder, tiny_texts):
    encoder = Encoder.load(tiny_folder)
    found = encoder.encode(tiny_texts)
    assert (encoder.encode(tiny_texts) != found).nnz == 0
    assert abs(encoder.encode(tiny_texts[::-1]) - found[::-1]).max() <= 1e-5


def test_top_k_and_min_weight(tiny_folder, tiny_texts):
    whole = Encoder.load(tiny_folder).encode(tiny_texts)
    best = Encoder.load(tiny_folder, top_k=4).encode(tiny_texts)
    heavy = Encoder.load(tiny_folder, min_weight=0.5).encode(tiny_texts)
    for row in range(len(tiny_texts)):
        order = sorted(
            range(whole[row].nnz), key=lambda i: (-whole[row].data[i], whole[row].indices[i])
        )[:4]
        assert best[row].indices.tolist() == sorted(whole[row].indices[order].tolist())
        kept = whole[row].data >= 0.5
        assert heavy[row].indices.tolist() == whole[row].indices[kept].tolist()
    check_csr(best)
    screened = Encoder.load(tiny_folder, min_weight=0.5, precision="float32-int8").encode(
        tiny_texts
    )
    assert screened.indices.tolist() == heavy.indices.tolist()


@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_screening_gives_the_vectors_of_the_whole_product(
    family, tiny_folders, tiny_texts, monkeypatch
):
    monkeypatch.setattr("sparse_ir.models.pooling._MAX_SURVIVORS", 1.0)  # no way round the screen
    for precision, whole in (("float32-int8", "float32"), ("int8", None)):
        found = Encoder.load(tiny_folders[family], precision=precision).encode(tiny_texts)
        if whole is None:  # the network in bfloat16, its product in float32
            expected_encoder = Encoder.load(tiny_folders[family], precision="int8")
            expected_encoder._head._screen = None
        else:
            expected_encoder = Encoder.load(tiny_folders[family], precision=whole)
        difference = np.abs(found.toarray() - expected_encoder.encode(tiny_texts).toarray())
        assert difference.max() <= 1e-5
        check_csr(found)


@pytest.mark.parametrize("seed", range(20))
def test_the_screen_never_misses_and_is_selective(seed):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(500, 48, generator=generator) * torch.rand(500, 1, generator=generator) * 3
    hidden = torch.randn(3, 9, 48, generator=generator)
    hidden[..., seed] *= 10  # one outlying dimension, as after a LayerNorm
    logits = (hidden @ weight.t()).amax(1)
    bias = -logits.mean(0) - torch.linspace(-1, 30, 500)
    survivors = Screen(weight, bias, 0.0).survivors(hidden, [slice(0, 300), slice(300, 500)], 9)
    active = logits + bias > 0
    assert not (active & ~survivors).any()
    assert active.sum() < survivors.sum() < 0.5 * survivors.numel()


def test_zero_rows_and_zero_states_pass_the_screen_unharmed():
    screen = Screen(torch.zeros(4, 8), torch.tensor([1.0, -1.0, 0.5, -0.5]), 0.0)
    assert screen.survivors(torch.zeros(1, 2, 8), [slice(0, 4)], 2).tolist() == [
        [True, False, True, False]
    ]


def test_a_head_that_is_active_everywhere_falls_back_to_the_whole_product(
    tiny_folder, tiny_texts, tmp_path
):
    folder = shutil.copytree(tiny_folder, tmp_path / "dense")
    model = transformers.AutoModelForMaskedLM.from_pretrained(folder)
    model.get_output_embeddings().bias.data += 8.0
    model.save_pretrained(folder)
    found = Encoder.load(folder, precision="float32-int8").encode(tiny_texts)
    assert found.nnz > 0.5 * found.shape[0] * found.shape[1]
    assert abs(found - Encoder.load(folder).encode(tiny_texts)).max() <= 1e-5


@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_bfloat16_is_close(family, tiny_folders, tiny_texts):
    exact = Encoder.load(tiny_folders[family]).encode(tiny_texts)
    for precision in ("bfloat16", "int8"):
        found = Encoder.load(tiny_folders[family], precision=precision).encode(tiny_texts)
        check_csr(found)
        assert 0 < abs(found - exact).max() < 0.2
        cosine = (
            found.multiply(exact).sum(1)
            / np.sqrt(found.power(2).sum(1))
            / np.sqrt(exact.power(2).sum(1))
        )
        assert cosine.min() > 0.99


def test_opensearch_convention_leaves_special_tokens_out(
    tiny_folder, tiny_texts, tiny_tokenizer, tmp_path
):
    folder = shutil.copytree(tiny_folder, tmp_path / "m")
    model = transformers.AutoModelForMaskedLM.from_pretrained(folder)
    model.get_output_embeddings().bias.data[2:4] += 9.0  # [CLS] and [SEP] become active
    model.save_pretrained(folder)
    kept = Encoder.load(folder).encode(tiny_texts).toarray()
    dropped = Encoder.load(folder, convention="opensearch").encode(tiny_texts).toarray()
    assert (kept[:, 2:4] > 0).all() and not dropped[:, :5].any()
    assert np.array_equal(kept[:, 5:], dropped[:, 5:])


def test_idf_json_beside_a_plain_model_by_both_conventions(tiny_folder, tiny_texts, tmp_path):
    folder = shutil.copytree(tiny_folder, tmp_path / "m")
    (folder / "idf.json").write_text('{"the": 0.5, "[UNK]": 2.0, "of": 3.0}')
    text = "the flower of bees Ω"
    vectors = {}
    for convention in CONVENTIONS:
        side = Encoder.load(folder, convention=convention).query_encoder()
        ids, weights = side.encode(text)
        vectors[convention] = {
            side.vocabulary[i]: float(w) for i, w in zip(ids, weights, strict=True)
        }
    assert vectors["sentence-transformers"] == {"the": 0.5, "[UNK]": 2.0, "of": 3.0}
    assert "[UNK]" not in vectors["opensearch"]
    assert {"the": 0.5, "of": 3.0}.items() < vectors["opensearch"].items()
    assert set(vectors["opensearch"].values()) == {0.5, 1.0, 3.0}


def test_router_weights_and_idf_json_by_the_opensearch_convention(
    tiny_folder, token_weights, tmp_path
):
    Encoder.load(tiny_folder).save(tmp_path / "m", query_weights=token_weights)
    side = Encoder.load(tmp_path / "m", convention="opensearch").query_encoder()
    assert side.weights[:5].tolist() == [0.0] * 5
    assert np.array_equal(side.weights[5:], token_weights[5:])
    (tmp_path / "m" / "idf.json").unlink()
    again = Encoder.load(tmp_path / "m", convention="opensearch").query_encoder()
    assert np.array_equal(again.weights, side.weights)


def test_query_sides_by_kind(tiny_folder):
    encoder = Encoder.load(tiny_folder)
    assert encoder.query_encoder().fingerprint["kind"] == "neural"
    ids, weights = encoder.query_encoder("ones").encode("the of the")
    assert sorted(encoder.vocabulary[i] for i in ids) == ["of", "the"] and weights.tolist() == [
        1.0,
        1.0,
    ]
    with pytest.raises(ModelError, match="has no token weights for queries"):
        encoder.query_encoder("static")
    with pytest.raises(
        ConfigError, match="query side 'oracle' is unknown; it must be neural, static, ones"
    ):
        encoder.query_encoder("oracle")


def test_neural_query_side_is_a_pointer_that_checks_its_model(
    tiny_folder, tiny_folders, tiny_texts, tmp_path
):
    model = shutil.copytree(tiny_folder, tmp_path / "model")
    side = Encoder.load(model, top_k=7, max_length=20).query_encoder()
    side.save(tmp_path / "query")
    assert [path.name for path in (tmp_path / "query").iterdir()] == ["query.json"]
    again = query_side.load_query_encoder(tmp_path / "query")
    assert again.fingerprint == side.fingerprint
    assert np.array_equal(query_matrix(again, tiny_texts), query_matrix(side, tiny_texts))
    assert (
        np.abs(again.encode_batch(tiny_texts).toarray() - query_matrix(side, tiny_texts)).max()
        <= 1e-5
    )
    moved = model.rename(tmp_path / "moved")
    with pytest.raises(
        ModelError, match="model does not exist; it must be a folder that holds a model"
    ):
        query_side.load_query_encoder(tmp_path / "query")
    assert (
        query_side.load_query_encoder(tmp_path / "query", model=moved).fingerprint["side"]
        == "query"
    )
    with pytest.raises(
        IndexMismatch,
        match=r"is not the query model that was recorded: "
        r"files_sha256 is",
    ):
        query_side.load_query_encoder(tmp_path / "query", model=tiny_folders["distilbert"])


def test_bare_backbone_is_refused_by_name(tiny_folder, tmp_path):
    backbone = transformers.AutoModel.from_pretrained(tiny_folder)
    backbone.save_pretrained(tmp_path / "bare")
    transformers.AutoTokenizer.from_pretrained(tiny_folder).save_pretrained(tmp_path / "bare")
    with pytest.raises(
        ModelError,
        match=r"lacks weights .*cls\.predictions.*backbone without its "
        r"output layer",
    ):
        Encoder.load(tmp_path / "bare")


def test_a_family_that_uses_its_output_layer_otherwise_is_refused(tiny_folder, tmp_path):
    transformers.AutoTokenizer.from_pretrained(tiny_folder).save_pretrained(tmp_path)
    config = transformers.MobileBertConfig(
        vocab_size=300,
        hidden_size=32,
        embedding_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        intra_bottleneck_size=16,
        max_position_embeddings=64,
    )
    transformers.MobileBertForMaskedLM(config).save_pretrained(tmp_path)
    with pytest.raises(
        ModelError,
        match="MobileBertForMaskedLM uses its output layer in a way that is not supported",
    ):
        Encoder.load(tmp_path)


def test_pickled_weights_need_the_flag(tiny_folder, tiny_texts, tmp_path):
    folder = shutil.copytree(tiny_folder, tmp_path / "old")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="a pickle; with allow_pickle=True"):
        Encoder.load(folder)
    found = Encoder.load(folder, allow_pickle=True).encode(tiny_texts)
    assert (found != Encoder.load(tiny_folder).encode(tiny_texts)).nnz == 0


def test_old_tokenizer_files_of_a_bert(tiny_folder, tiny_texts, tiny_tokenizer, tmp_path):
    folder = shutil.copytree(tiny_folder, tmp_path / "old")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    vocabulary = sorted(tiny_tokenizer.get_vocab().items(), key=lambda item: item[1])
    (folder / "vocab.txt").write_text(
        "".join(f"{token}\n" for token, _ in vocabulary), encoding="utf-8"
    )
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": true, "model_max_length": 48}')
    found = Encoder.load(folder).encode(tiny_texts)
    assert np.abs(found.toarray() - by_oracle(folder, tiny_texts)).max() <= ORACLE_TOLERANCE


def test_lower_case_of_the_layout(tiny_folders, tmp_path):
    folder = save_by_oracle(tmp_path / "m", tiny_folders["roberta"], class_names="5")
    (folder / "sentence_bert_config.json").write_text(
        '{"max_seq_length": 30, "do_lower_case": true}'
    )
    texts = ["The RIVER floods", "the river floods"]
    found = Encoder.load(folder).encode(texts)
    assert abs(found[0] - found[1]).max() <= 1e-5
    assert np.abs(found.toarray() - by_oracle(folder, texts)).max() <= ORACLE_TOLERANCE


def test_length_limits(tiny_folders, tiny_texts, tmp_path):
    long_text = max(tiny_texts, key=len)
    assert Encoder.load(tiny_folders["bert"]).fingerprint["max_length"] == tiny_models.MAX_LENGTH
    folder = shutil.copytree(tiny_folders["roberta"], tmp_path / "m")
    config = (
        (folder / "tokenizer_config.json")
        .read_text()
        .replace('"model_max_length": 48', '"model_max_length": 999')
    )
    (folder / "tokenizer_config.json").write_text(config)
    encoder = Encoder.load(folder)
    # 66 positions, of which two stand before the first token
    assert encoder.fingerprint["max_length"] == 64
    assert encoder.encode([long_text * 3]).nnz > 0
    with pytest.raises(ConfigError, match="max_length is 65; for this model it must be at most 64"):
        Encoder.load(folder, max_length=65)
    cut = Encoder.load(tiny_folders["bert"], max_length=5)
    assert (
        cut.encode(["the river floods every spring"]) != cut.encode(["the river floods"])
    ).nnz == 0


def test_head_wider_than_the_tokenizer(tmp_path, tiny_texts):
    folder = tiny_models.build("bert", tmp_path / "wide", extra_outputs=20)
    with pytest.warns(SparseIRWarning, match="no token reaches 20 of the 320 rows of the output"):
        encoder = Encoder.load(folder)
    assert len(encoder.vocabulary) == len(set(encoder.vocabulary)) == 320
    assert encoder.vocabulary[-1] == "[unused-319]"
    assert encoder.encode(tiny_texts).shape == (len(tiny_texts), 320)
    assert encoder.query_encoder("ones").vocabulary == encoder.vocabulary


def test_tokenizer_wider_than_the_head(tiny_folder, tiny_folders, tmp_path):
    folder = shutil.copytree(tiny_folder, tmp_path / "m")
    shutil.copy(tiny_folders["roberta"] / "tokenizer.json", folder / "tokenizer.json")
    with pytest.raises(
        ModelError,
        match=r"tokenizer has more tokens .* \(300\); they do not "
        r"belong together",
    ):
        Encoder.load(folder)


def test_nothing_and_wrong_input(tiny_folder):
    encoder = Encoder.load(tiny_folder)
    empty = encoder.encode([])
    assert empty.shape == (0, len(encoder.vocabulary)) and empty.dtype == np.float32
    with pytest.raises(DataError, match="text 1 is NoneType None; it must be a str"):
        encoder.encode(["a", None])


@pytest.mark.parametrize(
    ("capabilities", "chosen"),
    [
        ({"amx_bf16": True, "avx512_bf16": True, "cpu_name": "Intel Xeon"}, "int8"),
        ({"avx512_bf16": True, "avx512_vnni": True, "cpu_name": "Intel Xeon"}, "float32-int8"),
        ({"avx_vnni": True, "cpu_name": "Intel Core"}, "float32-int8"),
        ({"avx512_bf16": True, "cpu_name": "AMD EPYC"}, "int8"),
        ({"avx512_bf16": False, "avx512_vnni": True, "cpu_name": "AMD EPYC"}, "float32-int8"),
        ({"avx512_vnni": False, "avx2": True, "cpu_name": "AMD EPYC"}, "float32"),
        (None, "float32"),  # an older torch
    ],
)
def test_auto_is_the_fastest_precision_of_the_processor(
    tiny_folder, tiny_texts, monkeypatch, capabilities, chosen
):
    if capabilities is None:
        monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    else:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    auto, named = (
        Encoder.load(tiny_folder, precision=name, device="cpu") for name in ("auto", chosen)
    )
    assert auto.fingerprint == named.fingerprint
    assert auto.fingerprint["precision"] == chosen
    assert (auto.encode(tiny_texts) != named.encode(tiny_texts)).nnz == 0
    assert fastest_precision("cuda") == "bfloat16"


def test_progress_counts_every_text_once(tiny_folder, tiny_texts):
    done = []
    Encoder.load(tiny_folder, tokens_per_batch=60).encode(tiny_texts, done.append)
    assert sum(done) == len(tiny_texts) and len(done) > 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"precision": "fp16"},
            "precision is 'fp16'; it must be auto, float32, float32-int8, bfloat16, int8",
        ),
        ({"convention": "lucene"}, "convention is 'lucene'; it must be"),
        ({"top_k": 0}, "top_k is 0; it must be at least 1"),
        ({"max_length": -1}, "max_length is -1; it must be at least 1"),
        ({"min_weight": -0.1}, r"min_weight is -0\.1; it must be at least 0"),
        ({"min_weight": float("nan")}, "min_weight is nan"),
        (
            {"precision": "int8", "device": "cuda"},
            "precision 'int8' works on the CPU only; on cuda it must be 'float32' or 'bfloat16'",
        ),
    ],
)
def test_options_are_checked(tiny_folder, options, message):
    with pytest.raises(ConfigError, match=message):
        Encoder.load(tiny_folder, **options)


def test_unknown_model_type(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "novelty"}')
    save_file({}, tmp_path / "model.safetensors")
    with pytest.raises(
        ModelError, match="has no tokenizer, without which a network reads no words"
    ):
        Encoder.load(tmp_path)


def test_unknown_model_type_with_a_tokenizer(tiny_folder, tmp_path):
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    (folder / "config.json").write_text('{"model_type": "novelty"}')
    with pytest.raises(
        ModelError, match=r"the tokenizer cannot be loaded|cannot be loaded as a masked"
    ):
        Encoder.load(folder)


def test_fingerprint_says_what_made_the_vectors(tiny_folder, tmp_path):
    moved = shutil.copytree(tiny_folder, tmp_path / "bert")
    first, second = Encoder.load(tiny_folder).fingerprint, Encoder.load(moved).fingerprint
    assert first == second
    assert first["name"] == "bert" and first["revision"] is None
    assert Encoder.load(tiny_folder, precision="bfloat16").fingerprint != first


def test_no_global_state_is_changed_and_the_model_does_not_train(tiny_folder, tiny_texts):
    before = (
        torch.get_num_threads(),
        torch.get_default_dtype(),
        torch.is_grad_enabled(),
        torch.get_rng_state().sum(),
    )
    encoder = Encoder.load(tiny_folder)
    encoder.encode(tiny_texts)
    assert not encoder.network.model.training
    after = (
        torch.get_num_threads(),
        torch.get_default_dtype(),
        torch.is_grad_enabled(),
        torch.get_rng_state().sum(),
    )
    assert after == before


def test_texts_are_not_modified(tiny_folder, tiny_texts):
    before = list(tiny_texts)
    Encoder.load(tiny_folder).encode(tiny_texts)
    assert tiny_texts == before


def test_sum_pooling_by_hand():
    weight, bias = torch.tensor([[1.0], [-1.0]]), torch.tensor([0.0, 0.5])
    head = Head(OutputLayer(weight, bias), pooling="sum")
    hidden = torch.tensor([[[1.0], [3.0], [100.0]]])  # the third position is padding
    # token 0: ln(1+1) + ln(1+3); token 1: -1+.5 and -3+.5 are below zero
    assert head.pool(hidden, np.array([2]))[0].tolist() == pytest.approx(
        [np.log(2) + np.log(4), 0.0], rel=1e-6
    )


MEMORY = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import tiny_models, torch, transformers
from sparse_ir.models.encoder import Encoder

def mib(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field + ":"))

encoder = Encoder.load({folder!r}, precision={precision!r}, tokens_per_batch=4096)
encoder.encode(["warm up"])
before = mib("VmRSS")
Path("/proc/self/clear_refs").write_text("5")
encoder.encode([" ".join(tiny_models.SENTENCES)] * 128)
print(mib("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "float32-int8"])
def test_peak_memory_does_not_grow_with_texts_tokens_and_vocabulary(precision, tmp_path):
    folder = tiny_models.build("bert", tmp_path / "wide", unused_tokens=60_000)
    code = MEMORY.format(
        tests=str(tiny_models.__file__).rsplit("/", 1)[0], folder=str(folder), precision=precision
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    # one batch of 4096 tokens would have 4096 x 60300 logits: 942 MiB in float32
    assert float(done.stdout) < 150
