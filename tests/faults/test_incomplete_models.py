"""Model folders that lack files, and tokenizers that do not belong to their network."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_decoders
import tiny_models
import transformers
from tokenizers import Tokenizer, models

from sparse_ir.commands.doctor import doctor
from sparse_ir.errors import ModelError, SparseIRWarning
from sparse_ir.models.decoder_settings import DecoderSettings, write_decoder_settings
from sparse_ir.models.encoder import Encoder, load_tokenizer
from sparse_ir.training.configuration.config_parser import parse_config
from sparse_ir.training.encoders import trainable_encoder
from sparse_ir.training.teachers.cross_encoder import CrossEncoderTeacher
from sparse_ir.training.teachers.dense import DenseTeacher
from sparse_ir.training.teachers.monot5 import MonoT5Teacher
from sparse_ir.training.teachers.sparse import SparseTeacher

# files whose absence changes nothing, or whose content cannot be known without them
OPTIONAL = {
    "README.md",
    "config_sentence_transformers.json",
    "sentence_bert_config.json",
    "special_tokens_map.json",
    "tokenizer_config.json",
    "generation_config.json",
    "idf.json",
    "modules.json",
    "sparse_ir.json",
    "chat_template.jinja",
}
STATIC_CONFIG = Path("query_0_SparseStaticEmbedding") / "config.json"


def start_training(folder: Path) -> None:
    """Load the network of a folder for training."""
    config = {"model": {"start": str(folder)}, "data": [{"path": "x"}], "run": {"steps": 2}}
    trainable_encoder.start_network(parse_config(config))


def load_by_doctor(folder: Path) -> None:
    """Examine a model; what keeps it from being loaded is raised again."""
    report = doctor(folder)
    for finding in report["findings"]:
        if finding["name"] == "loading":
            assert report["healthy"] is False
            raise ModelError(finding["evidence"]["reason"])


LOADERS: dict[str, Callable[[Path], Any]] = {
    "encoder": Encoder.load,
    "idf": load_tokenizer,
    "doctor": load_by_doctor,
    "training": start_training,
    "sparse teacher": SparseTeacher,
    "dense teacher": lambda folder: DenseTeacher(folder, pooling="mean"),
}


@pytest.fixture(scope="module")
def layouts(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder of each layout that ``Encoder`` reads."""
    root = tmp_path_factory.mktemp("layouts")
    encoder = Encoder.load(tiny_folder)
    encoder.save(root / "sparse-encoder", layout="sparse-encoder")
    weights = np.ones(len(encoder.vocabulary), dtype=np.float32)
    encoder.save(root / "router", layout="router", query_weights=weights)
    decoder = tiny_decoders.build("llama", root / "causal-lm")
    write_decoder_settings(decoder, DecoderSettings())
    return {
        "masked-lm": tiny_folder,
        "sparse-encoder": root / "sparse-encoder",
        "router": root / "router",
        "causal-lm": decoder,
    }


def without_tokenizer(folder: Path, target: Path) -> Path:
    """A copy without the files of the tokenizer."""
    return shutil.copytree(
        folder, target, ignore=shutil.ignore_patterns("tokenizer*", "special_tokens_map.json")
    )


@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_a_model_without_its_tokenizer_is_refused(
    tiny_folders: dict[str, Path], family: str, tmp_path: Path
) -> None:
    folder = without_tokenizer(tiny_folders[family], tmp_path / family)
    with pytest.raises(ModelError, match=r"has no tokenizer, .* \(tokenizer.json, or vocab.txt"):
        Encoder.load(folder)


@pytest.mark.parametrize("loader", LOADERS)
def test_everything_that_loads_a_model_refuses_it(
    tiny_folder: Path, loader: str, tmp_path: Path
) -> None:
    folder = without_tokenizer(tiny_folder, tmp_path / "m")
    with pytest.raises(ModelError, match="has no tokenizer"):
        LOADERS[loader](folder)


def test_pair_teachers_refuse_it(tiny_folder: Path, tmp_path: Path) -> None:
    whole = tiny_models.build_cross_encoder(tiny_folder, tmp_path / "whole")
    folder = without_tokenizer(whole, tmp_path / "cross-encoder")
    with pytest.raises(ModelError, match="has no tokenizer"):
        CrossEncoderTeacher(folder)
    whole = tiny_models.build_monot5(tmp_path / "t5")
    folder = without_tokenizer(whole, tmp_path / "monot5")
    with pytest.raises(ModelError, match="has no tokenizer"):
        MonoT5Teacher(folder)


def test_a_merge_table_belongs_to_its_vocabulary(
    tiny_folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = without_tokenizer(tiny_folders["roberta"], tmp_path / "m")
    (folder / "vocab.json").write_text('{"a": 0}', encoding="utf-8")
    with pytest.raises(ModelError, match=r"has vocab.json, but not the merges.txt"):
        Encoder.load(folder)


def write_tokenizer(folder: Path, words: int) -> None:
    """Put a tokenizer with five special tokens and some words into a model folder."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = {token: number for number, token in enumerate(special)}
    for number in range(words):
        vocabulary[f"w{number}"] = len(vocabulary)
    rules = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=rules,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )
    tokenizer.save_pretrained(folder)


@pytest.mark.parametrize("loader", LOADERS)
def test_a_tokenizer_without_words_is_refused(
    tiny_folder: Path, loader: str, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_folder, tmp_path / "m")
    write_tokenizer(folder, 0)
    with pytest.raises(ModelError, match="the tokenizer knows no words, only 5 special tokens"):
        LOADERS[loader](folder)


@pytest.mark.parametrize("loader", LOADERS)
def test_a_tokenizer_of_another_model_is_refused(
    tiny_folder: Path, loader: str, tmp_path: Path
) -> None:
    """The network has 300 rows, and 265 + 4 = 269 tokens are less than nine in ten."""
    folder = shutil.copytree(tiny_folder, tmp_path / "m")
    write_tokenizer(folder, 264)
    with pytest.raises(ModelError, match="reach 269 of the 300 rows of the output layer"):
        LOADERS[loader](folder)


@pytest.mark.parametrize("loader", sorted(LOADERS.keys() - {"doctor"}))
def test_rows_without_a_token_are_counted_in_a_warning(
    tiny_folder: Path, loader: str, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_folder, tmp_path / "m")
    write_tokenizer(folder, 265)
    with pytest.warns(SparseIRWarning, match="no token reaches 30 of the 300 rows"):
        LOADERS[loader](folder)


def test_token_weights_of_another_width_are_refused(
    layouts: dict[str, Path], tmp_path: Path
) -> None:
    from safetensors.numpy import save_file

    folder = shutil.copytree(layouts["router"], tmp_path / "m")
    (path,) = folder.glob("query*/model.safetensors")
    save_file({"weight": np.ones(400, dtype=np.float32)}, path)
    with pytest.raises(ModelError, match="reach 300 of the 400 rows"):
        Encoder.load(folder).query_encoder()


@pytest.mark.parametrize("layout", ["masked-lm", "sparse-encoder", "router", "causal-lm"])
def test_a_folder_that_lacks_one_file_is_refused(
    layouts: dict[str, Path], layout: str, tmp_path: Path
) -> None:
    """Every file in turn, unless it is optional."""
    whole = layouts[layout]
    names = [path.relative_to(whole) for path in sorted(whole.rglob("*")) if path.is_file()]
    required = [name for name in names if name.name not in OPTIONAL and name != STATIC_CONFIG]
    assert len(required) >= 3
    for number, name in enumerate(required):
        folder = shutil.copytree(whole, tmp_path / str(number))
        (folder / name).unlink()
        with pytest.raises(ModelError) as caught:
            Encoder.load(folder).query_encoder()
        message = str(caught.value)
        assert str(folder) in message, message
        assert name.name.partition(".")[0] in message, message


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_every_shard_must_be_there(tiny_folder: Path, suffix: str, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_folder, tmp_path / "m")
    (folder / "model.safetensors").unlink()
    network = transformers.AutoModelForMaskedLM.from_pretrained(tiny_folder)
    network.save_pretrained(folder, max_shard_size="20KB")
    names = sorted(path.name for path in folder.glob("model-*.safetensors"))
    assert len(names) > 2
    if suffix == "bin":
        (folder / "model.safetensors.index.json").unlink()
        for name in names:
            renamed = f"pytorch_{name}".replace("safetensors", "bin")
            (folder / name).rename(folder / renamed)
    shards = sorted(folder.glob(f"*model-*.{suffix}"))
    shards[1].unlink()
    message = rf"lacks 1 of {len(shards)} weight files \({shards[1].name}\)"
    for allow_pickle in (False, True):
        with pytest.raises(ModelError, match=message):
            Encoder.load(folder, allow_pickle=allow_pickle)


def test_the_index_of_the_shards_names_those_that_are_missing(
    tiny_folder: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_folder, tmp_path / "m")
    (folder / "model.safetensors").rename(folder / "model-a.safetensors")
    index = {"weight_map": {"x": "model-a.safetensors", "y": "model-b.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    with pytest.raises(ModelError, match=r"lacks 1 of 2 weight files \(model-b.safetensors\)"):
        Encoder.load(folder)
