import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from sparse_ir.errors import ConfigError, ModelError
from sparse_ir.models import checkpoint, checkpoint_writer, model_files
from sparse_ir.models.checkpoint import NeuralSide, StaticSide
from sparse_ir.models.decoder_settings import DecoderSettings
from sparse_ir.models.encoder import Encoder
from sparse_ir.models.families.masked_lm import MaskedLanguageModel

NEW = "sentence_transformers.sparse_encoder.modules."
TRANSFORMER = "sentence_transformers.base.modules.transformer.Transformer"
MASKED = MaskedLanguageModel()
OLD = "sentence_transformers.sparse_encoder.models."


def write(folder, files):
    for name, value in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(value if isinstance(value, str) else json.dumps(value))
    return folder


def symmetric(transformer, pooling, **changes):
    files = {
        "modules.json": [
            {"idx": 0, "name": "0", "path": "", "type": transformer},
            {"idx": 1, "name": "1", "path": "1_SpladePooling", "type": pooling},
        ],
        "config_sentence_transformers.json": {
            "model_type": "SparseEncoder",
            "prompts": {"document": None, "query": "q: "},
            "default_prompt_name": None,
        },
        "sentence_bert_config.json": {"max_seq_length": 256, "do_lower_case": True},
        "1_SpladePooling/config.json": {
            "pooling_strategy": "sum",
            "activation_function": "log1p_relu",
            "word_embedding_dimension": 30522,
        },
        "config.json": {"model_type": "bert"},
    }
    return {**files, **changes}


def router(**changes):
    files = {
        "modules.json": [
            {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Router"}
        ],
        "config_sentence_transformers.json": {"model_type": "SparseEncoder", "prompts": {}},
        "router_config.json": {
            "types": {
                "query_0_SparseStaticEmbedding": OLD + "SparseStaticEmbedding",
                "": OLD + "MLMTransformer",
                "document_1_SpladePooling": OLD + "SpladePooling",
            },
            "structure": {
                "query": ["query_0_SparseStaticEmbedding"],
                "document": ["", "document_1_SpladePooling"],
            },
            "parameters": {"default_route": "document", "allow_empty_key": True},
        },
        "query_0_SparseStaticEmbedding/config.json": {"frozen": True},
        "query_0_SparseStaticEmbedding/model.safetensors": "",
        "document_1_SpladePooling/config.json": {
            "pooling_strategy": "max",
            "activation_function": "log1p_relu",
        },
        "sentence_bert_config.json": {"max_seq_length": 512, "do_lower_case": False},
        "config.json": {"model_type": "bert"},
        "idf.json": {"a": 1.0},
    }
    return {**files, **changes}


@pytest.mark.parametrize(
    ("transformer", "pooling"),
    [
        (OLD + "MLMTransformer", OLD + "SpladePooling"),
        (OLD + "MLMTransformer.MLMTransformer", OLD + "SpladePooling.SpladePooling"),
        (NEW + "mlm_transformer.MLMTransformer", NEW + "splade_pooling.SpladePooling"),
    ],
)
def test_symmetric_layout_under_old_and_new_class_names(tmp_path, transformer, pooling):
    found = checkpoint.read_layout(write(tmp_path, symmetric(transformer, pooling)))
    side = NeuralSide(tmp_path, MASKED, "sum", "log1p_relu", 256, True)
    assert found.layout == "sparse-encoder" and found.document == found.query == side
    assert (found.document_prompt, found.query_prompt) == ("", "q: ")
    assert found.revision is None and found.top_k is None and found.idf_path is None


def test_version_6_names_and_lengths_per_task(tmp_path):
    files = symmetric(TRANSFORMER, NEW + "splade_pooling.SpladePooling")
    files["sentence_bert_config.json"] = {
        "transformer_task": "fill-mask",
        "query_length": 32,
        "document_length": 180,
        "module_output_name": "token_embeddings",
        "modality_config": {"text": {"method": "forward", "method_output_name": "logits"}},
    }
    files["config_sentence_transformers.json"]["max_active_dims"] = 128
    found = checkpoint.read_layout(write(tmp_path, files))
    assert found.document.max_length == 180 and found.query.max_length == 32
    assert found.top_k == 128 and not found.document.lowercase


def test_router_as_published_with_the_transformer_at_the_root(tmp_path):
    found = checkpoint.read_layout(write(tmp_path, router()))
    query = tmp_path / "query_0_SparseStaticEmbedding"
    assert found.layout == "router"
    assert found.document == NeuralSide(tmp_path, MASKED, "max", "log1p_relu", 512, False)
    assert found.query == StaticSide(query, query / "model.safetensors")
    assert found.idf_path == tmp_path / "idf.json"


def test_old_names_asym_idf_and_the_old_place_of_the_router_config(tmp_path):
    files = router()
    files["modules.json"][0].update(type="sentence_transformers.models.Asym", path="0_Asym")
    config = files.pop("router_config.json")
    config["types"] = {
        "query_0_IDF": OLD + "IDF",
        "document_0_MLMTransformer": OLD + "MLMTransformer",
        "document_1_SpladePooling": OLD + "SpladePooling",
    }
    config["structure"] = {
        "query": ["query_0_IDF"],
        "document": ["document_0_MLMTransformer", "document_1_SpladePooling"],
    }
    files.update(
        {
            "0_Asym/config.json": config,
            "0_Asym/query_0_IDF/config.json": {"path": "idf.json"},
            "0_Asym/document_1_SpladePooling/config.json": {"pooling_strategy": "max"},
        }
    )
    found = checkpoint.read_layout(write(tmp_path, files))
    assert found.query == StaticSide(tmp_path / "0_Asym" / "query_0_IDF", tmp_path / "idf.json")
    assert found.document == NeuralSide(tmp_path / "0_Asym" / "document_0_MLMTransformer", MASKED)


def test_plain_masked_lm_with_and_without_idf(tmp_path):
    write(tmp_path, {"config.json": {"model_type": "distilbert"}})
    found = checkpoint.read_layout(tmp_path)
    assert found.layout == "masked-lm" and found.document == found.query == NeuralSide(
        tmp_path, MASKED
    )
    write(tmp_path, {"idf.json": {"a": 1.0}})
    assert checkpoint.read_layout(tmp_path).query == StaticSide(tmp_path, tmp_path / "idf.json")


def modules(*types):
    return [
        {"idx": i, "name": str(i), "path": "" if i == 0 else f"{i}_x", "type": t}
        for i, t in enumerate(types)
    ]


MLM, POOLING = OLD + "MLMTransformer", OLD + "SpladePooling"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"modules.json": modules(MLM, OLD + "Pooling")},
            (
                r"Pooling makes this a dense sentence embedding; it must be .* or a decoder with "
                r"sparse_ir\.json or decoder="
            ),
        ),
        (
            {"modules.json": modules(MLM, OLD + "SparseAutoEncoder")},
            "SparseAutoEncoder makes this a CSR autoencoder",
        ),
        (
            {"modules.json": modules("modeling_x.Mine", POOLING)},
            "modeling_x.Mine is code of the model folder",
        ),
        (
            {"modules.json": modules(MLM, OLD + "Novelty")},
            "module class Novelty is unknown; it must be Transformer, ",
        ),
        ({"modules.json": modules(MLM)}, "the document side is MLMTransformer; it must be"),
        ({"modules.json": []}, "the document side is nothing; it must be"),
        ({"modules.json": {"a": 1}}, "is not a list of modules"),
        (
            {"modules.json": [{"type": POOLING, "path": "../x"}]},
            (
                r"module path '\.\./x' leaves the "
                r"model folder"
            ),
        ),
        (
            {"modules.json": modules(TRANSFORMER, POOLING)},
            "transformer_task is 'feature-extraction', which gives no token weights; it must be fill-mask",
        ),
        (
            {"1_SpladePooling/config.json": {"pooling_strategy": "mean"}},
            "pooling_strategy is 'mean'; it must be max or sum",
        ),
        (
            {"1_SpladePooling/config.json": {"activation_function": "elu"}},
            "activation_function is 'elu'; it must be relu",
        ),
        (
            {
                "sentence_bert_config.json": {
                    "processing_kwargs": {"text": {"padding": "max_length"}}
                }
            },
            "processing_kwargs is set",
        ),
        (
            {"sentence_bert_config.json": {"model_args": {"num_labels": 2}}},
            "model_args sets num_labels",
        ),
        (
            {"sentence_bert_config.json": {"modality_config": {"text": {"method": "generate"}}}},
            "modality_config is not",
        ),
        ({"modules.json": "{"}, "modules.json is not readable as JSON"),
    ],
)
def test_what_is_refused_and_why(tmp_path, changes, message):
    with pytest.raises(ModelError, match=message):
        checkpoint.read_layout(write(tmp_path, symmetric(MLM, POOLING, **changes)))


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        ([], "is not a list of modules"),
        ({"a": 1}, "is not a list of modules"),
        (["x"], "is not a list of modules"),
        ([{"path": "../x"}], r"module path '\.\./x' leaves the model folder"),
    ],
)
def test_a_broken_list_of_modules_is_refused_whoever_reads_it(tmp_path, modules, message):
    folder = write(tmp_path, symmetric(MLM, POOLING, **{"modules.json": modules}))
    for read in (
        lambda: checkpoint.read_layout(folder, decoder=DecoderSettings()),
        lambda: checkpoint.find_folder(folder),
    ):
        with pytest.raises(ModelError, match=message):
            read()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"parameters": {"route_mappings": {"('query', 'text')": "query"}}}, "uses route_mappings"),
        (
            {"structure": {"query": ["query_0_SparseStaticEmbedding"]}},
            (
                r"no route 'document' \(routes: "
                r"query\)"
            ),
        ),
        (
            {"structure": {"query": [""], "document": ["query_0_SparseStaticEmbedding"]}},
            "the document side is a table of token weights",
        ),
        ({"types": None}, "lacks structure or types"),
    ],
)
def test_refused_routers(tmp_path, change, message):
    files = router()
    files["router_config.json"].update(change)
    with pytest.raises(ModelError, match=message):
        checkpoint.read_layout(write(tmp_path, files))


def test_static_side_without_weights(tmp_path):
    files = router(**{"query_0_SparseStaticEmbedding/config.json": {"path": "absent.json"}})
    with pytest.raises(
        ModelError,
        match=r"the weights are in 'absent.json', which is not in the "
        r"folder",
    ):
        checkpoint.read_layout(write(tmp_path / "a", files))
    files = router()
    del files["query_0_SparseStaticEmbedding/model.safetensors"]
    with pytest.raises(ModelError, match="holds no token weights; expected"):
        checkpoint.read_layout(write(tmp_path / "b", files))


def test_no_model_at_all(tmp_path):
    with pytest.raises(
        ModelError, match=r"is no model: it has neither config\.json nor modules\.json"
    ):
        checkpoint.open_checkpoint(tmp_path)
    with pytest.raises(ModelError, match="names no model_type"):
        checkpoint.open_checkpoint(write(tmp_path, {"config.json": {}}))
    with pytest.raises(
        ModelError, match="absent does not exist; it must be a folder that holds a model"
    ):
        checkpoint.open_checkpoint(tmp_path / "absent")
    with pytest.raises(
        ModelError, match="absent/model/deep does not exist; it must be a folder that holds a model"
    ):
        checkpoint.open_checkpoint("./absent/model/deep")
    with pytest.raises(ConfigError, match="model is 5; it must be a folder or the name of a hub"):
        Encoder.load(5)


def test_revision_is_for_the_hub(tiny_folder):
    with pytest.raises(ConfigError, match="revision='main' belongs to a hub model"):
        checkpoint.open_checkpoint(tiny_folder, revision="main")


def in_offline_process(code, cache):
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(cache)}
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False
    )


def test_hub_model_from_the_cache_records_its_commit_and_an_absent_one_says_so(
    tiny_folder, tmp_path
):
    commit = "0123456789abcdef0123456789abcdef01234567"
    shutil.copytree(tiny_folder, tmp_path / "models--owner--tiny" / "snapshots" / commit)
    write(tmp_path / "models--owner--tiny", {"refs/main": commit})
    done = in_offline_process(
        "from sparse_ir.models import checkpoint\n"
        "found = checkpoint.open_checkpoint('owner/tiny')\n"
        "print(found.name, found.revision, found.layout)\n"
        "checkpoint.open_checkpoint('owner/absent', revision='v1')\n",
        tmp_path,
    )
    assert done.stdout.split() == ["owner/tiny", commit, "masked-lm"]
    assert (
        "ModelError: owner/absent at revision 'v1' is not in the local cache and the hub cannot "
        "be reached" in done.stderr
    )


def test_weight_files_prefer_safetensors_and_refuse_pickles(tmp_path):
    with pytest.raises(ModelError, match="holds no weights; expected"):
        model_files.weight_files(tmp_path)
    write(tmp_path, {"pytorch_model.bin": ""})
    with pytest.raises(
        ModelError,
        match=r"only as pytorch_model.bin, a pickle; with "
        r"allow_pickle=True",
    ):
        model_files.weight_files(tmp_path)
    assert [path.name for path in model_files.weight_files(tmp_path, allow_pickle=True)] == [
        "pytorch_model.bin"
    ]
    from safetensors.numpy import save_file

    save_file({}, tmp_path / "model.safetensors")
    assert [path.name for path in model_files.weight_files(tmp_path, allow_pickle=True)] == [
        "model.safetensors"
    ]
    (tmp_path / "model.safetensors").write_bytes(b"half")
    with pytest.raises(
        ModelError,
        match=r"model.safetensors is not readable as safetensors \(.*\); fetch or copy it "
        r"again",
    ):
        model_files.weight_files(tmp_path)


def test_files_hash_is_of_the_model_and_not_of_its_place_or_card(tiny_folder, tmp_path):
    copy = shutil.copytree(tiny_folder, tmp_path / "copy")
    write(copy, {"README.md": "a card"})
    assert model_files.files_hash(copy) == model_files.files_hash(tiny_folder)
    weights = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    assert model_files.files_hash(copy) != model_files.files_hash(tiny_folder)


def test_static_weights_from_safetensors_and_pickle(tmp_path):
    import torch
    from safetensors.numpy import save_file

    weights = np.array([0.5, 0.0, 2.0], dtype=np.float32)
    save_file({"weight": weights}, tmp_path / "model.safetensors")
    torch.save({"weight": torch.from_numpy(weights)}, tmp_path / "pytorch_model.bin")
    pickled = StaticSide(tmp_path, tmp_path / "pytorch_model.bin")
    assert np.array_equal(
        checkpoint.read_static_weights(StaticSide(tmp_path, tmp_path / "model.safetensors")),
        weights,
    )
    with pytest.raises(ModelError, match="is a pickle; with allow_pickle=True"):
        checkpoint.read_static_weights(pickled)
    assert np.array_equal(checkpoint.read_static_weights(pickled, allow_pickle=True), weights)
    save_file({"weights": weights}, tmp_path / "other.safetensors")
    with pytest.raises(ModelError, match='no tensor "weight"'):
        checkpoint.read_static_weights(StaticSide(tmp_path, tmp_path / "other.safetensors"))
    save_file({"weight": weights[None]}, tmp_path / "square.safetensors")
    with pytest.raises(ModelError, match=r"has the shape \(1, 3\); it must have one dimension"):
        checkpoint.read_static_weights(StaticSide(tmp_path, tmp_path / "square.safetensors"))


def test_writers_refuse_unknown_choices(tmp_path):
    for name, allowed in (
        ("pooling", "one of max, sum"),
        ("activation", "one of relu, log1p_relu"),
    ):
        with pytest.raises(ConfigError, match=f"{name} is 'x'; it must be {allowed}"):
            checkpoint_writer.write_sparse_encoder(tmp_path / "m", None, None, **{name: "x"})
    assert not (tmp_path / "m").exists()


def test_a_failed_write_leaves_the_old_folder(tmp_path):
    class Broken:
        model_max_length = 8

        def save_pretrained(self, folder):
            raise OSError("disk full")

    write(tmp_path / "m", {"config.json": "old"})
    with pytest.raises(OSError, match="disk full"):
        checkpoint_writer.write_masked_lm(tmp_path / "m", Broken(), Broken())
    assert (tmp_path / "m" / "config.json").read_text() == "old"


def test_import_is_light():
    code = (
        "import sys, sparse_ir.models.checkpoint;"
        "print([name for name in ('torch', 'transformers', 'huggingface_hub') if name in "
        "sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
