"""Errors name the true cause, and name it before any work is done."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
from safetensors.numpy import load_file, save_file
from shell import write_collection, write_lines

import sparse_ir
from sparse_ir.data import readers
from sparse_ir.errors import DamagedError, DataError, ModelError
from sparse_ir.indexing.vectors import Vectors
from sparse_ir.models.encoder import Encoder, load_tokenizer
from sparse_ir.training.configuration.config_parser import parse_config
from sparse_ir.training.encoders import trainable_encoder
from sparse_ir.training.teachers.cross_encoder import CrossEncoderTeacher
from sparse_ir.training.teachers.dense import DenseTeacher


def start_training(model: Path | str) -> None:
    config = {"model": {"start": str(model)}, "data": [{"path": "x"}], "run": {"steps": 2}}
    trainable_encoder.start_network(parse_config(config))


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BEIR folder. Read only."""
    return write_collection(tmp_path_factory.mktemp("causes") / "corpus", 20)


def change_tensor(folder: Path, value: float) -> str:
    """Put a value into the first weight of a square matrix; the name of the tensor."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    name = next(
        name for name, tensor in sorted(tensors.items()) if tensor.ndim == 2 and "query" in name
    )
    tensors[name][0, 0] = value
    save_file(tensors, path, metadata={"format": "pt"})
    return name


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("load", [Encoder.load, start_training], ids=["encoder", "training"])
def test_weights_that_are_not_finite(
    tiny_folder: Path, load: Callable[[Path], Any], value: float, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_folder, tmp_path / "m")
    name = change_tensor(folder, value)
    with pytest.raises(ModelError, match=f"1 of 1024 weights of the tensor {name} are NaN or inf"):
        load(folder)


def test_weights_of_teachers_that_are_not_finite(tiny_folder: Path, tmp_path: Path) -> None:
    folder = tiny_models.build_backbone(tiny_folder, tmp_path / "dense")
    change_tensor(folder, np.nan)
    with pytest.raises(ModelError, match="1 of 1024 weights of the tensor"):
        DenseTeacher(folder, pooling="mean").vectors(["a text"], "query")
    folder = tiny_models.build_cross_encoder(tiny_folder, tmp_path / "pairs")
    change_tensor(folder, np.nan)
    with pytest.raises(ModelError, match="1 of 1024 weights of the tensor"):
        CrossEncoderTeacher(folder).scores(["a"], ["b"])


def test_an_adapter_to_a_masked_model(tiny_folder: Path, tmp_path: Path) -> None:
    config = {
        "peft_type": "LORA",
        "base_model_name_or_path": str(tiny_folder),
        "auto_mapping": {"base_model_class": "BertForMaskedLM"},
    }
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    shutil.copy(tiny_folder / "tokenizer.json", folder)
    message = r"is an adapter to a masked language model \(BertForMaskedLM\), .* merge it into"
    with pytest.raises(ModelError, match=message):
        Encoder.load(folder)
    with pytest.raises(ModelError, match=message):
        start_training(folder)
    with pytest.raises(ModelError, match="is an adapter without its network; merge it into"):
        DenseTeacher(folder, pooling="mean")


def test_heads_that_are_not_splade(tiny_folders: dict[str, Path], tmp_path: Path) -> None:
    folder = tiny_models.build_backbone(tiny_folders["xlm-roberta"], tmp_path / "bge")
    torch.save({"weight": torch.zeros(1, 32)}, folder / "sparse_linear.pt")
    with pytest.raises(ModelError, match=r"is BGE-M3, whose sparse head \(sparse_linear.pt\)"):
        Encoder.load(folder)
    folder = tiny_models.build_backbone(tiny_folders["bert"], tmp_path / "unicoil")
    path = folder / "model.safetensors"
    tensors = load_file(path) | {"tok_proj.weight": np.zeros((1, 32), dtype=np.float32)}
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"is uniCOIL, whose head \(tok_proj\)"):
        Encoder.load(folder)
    folder = tiny_models.build_backbone(tiny_folders["bert"], tmp_path / "backbone")
    with pytest.raises(ModelError, match="this is a backbone without its output layer"):
        Encoder.load(folder)


@pytest.mark.parametrize("name", ["./nosuch", "../nosuch", "/nosuch", "~/nosuch", "./a/b"])
@pytest.mark.parametrize("load", [Encoder.load, load_tokenizer, start_training, DenseTeacher])
def test_a_path_is_not_taken_for_a_name_on_the_hub(load: Callable[[str], Any], name: str) -> None:
    with pytest.raises(ModelError, match=f"{name} does not exist; it must be a folder"):
        load(name)


def test_default_and_lexical_are_names_everywhere() -> None:
    for load in (Encoder.load, load_tokenizer, start_training):
        load("default")
    for load in (Encoder.load, load_tokenizer, start_training, DenseTeacher):
        with pytest.raises(ModelError, match="the lexical model is fitted to a collection"):
            load("lexical")


@pytest.mark.parametrize("model", ["lexical", "default"])
def test_an_id_that_is_too_long(model: str, tmp_path: Path) -> None:
    records = [{"_id": "a", "text": "x"}, {"_id": "ä" * 20_000, "text": "y"}]
    path = write_lines(tmp_path / "corpus.jsonl", records)
    message = r"corpus.jsonl:2: \"_id\" has 40000 bytes; it must have at most 32766"
    with pytest.raises(DataError, match=message):
        sparse_ir.build(model, path, tmp_path / "index")
    assert not list(tmp_path.glob("index.vectors/shards/*"))
    records[1]["_id"] = "ä" * 16_383
    write_lines(path, records)
    assert len(list(readers.read_documents(path))) == 2


@pytest.mark.parametrize("model", ["lexical", "default"])
def test_a_changed_corpus_is_called_so(model: str, collection: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(collection, tmp_path / "c")
    sparse_ir.encode(model, folder, tmp_path / "v")
    with (folder / "corpus.jsonl").open("a") as stream:
        stream.write(json.dumps({"_id": "new", "text": "words that are new"}) + "\n")
    with pytest.raises(DataError, match="v was begun with another corpus, to which its weights"):
        sparse_ir.encode(model, folder, tmp_path / "v")


def test_vectors_and_indexes_are_told_apart(collection: Path, tmp_path: Path) -> None:
    sparse_ir.build("lexical", collection, tmp_path / "i", vectors=tmp_path / "v", engine="exact")
    for call in (sparse_ir.verify, sparse_ir.Index):
        with pytest.raises(
            DamagedError, match=r"v holds vectors, not an index; .* sparse-ir index"
        ):
            call(tmp_path / "v")
    with pytest.raises(DamagedError, match="i is an index; it must be a folder of vectors"):
        Vectors(tmp_path / "i")
    with pytest.raises(DamagedError, match="i is an index; it must be a folder of vectors"):
        sparse_ir.index(tmp_path / "i", tmp_path / "j")
