"""Writing model folders in the layouts of transformers and sentence-transformers."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from sparse_ir.errors import ConfigError
from sparse_ir.models.decoder_settings import (
    Activation,
    DecoderSettings,
    Pooling,
    check_choice,
    write_decoder_settings,
)
from sparse_ir.storage import files

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# the classes as sentence-transformers 5.4 and later name them
_SPARSE_MODULES = "sentence_transformers.sparse_encoder.modules"
_TRANSFORMER = "sentence_transformers.base.modules.transformer.Transformer"
_ROUTER = "sentence_transformers.base.modules.router.Router"
_POOLING = f"{_SPARSE_MODULES}.splade_pooling.SpladePooling"
_STATIC = f"{_SPARSE_MODULES}.sparse_static_embedding.SparseStaticEmbedding"
_QUERY_FOLDER = "query_0_SparseStaticEmbedding"
_DOCUMENT_FOLDER = "document_0_Transformer"
_DOCUMENT_POOLING_FOLDER = "document_1_SpladePooling"
_POOLING_FOLDER = "1_SpladePooling"


def write_masked_lm(
    folder: Path,
    model: PreTrainedModel,
    hf_tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int | None = None,
) -> None:
    """Write network and tokenizer and nothing else.

    ``folder`` appears whole or stays as it was.
    """
    with _new_folder(folder) as target:
        model.save_pretrained(target)
        _save_tokenizer(hf_tokenizer, target, max_length)


def write_causal_lm(
    folder: Path,
    model: PreTrainedModel,
    hf_tokenizer: PreTrainedTokenizerBase,
    settings: DecoderSettings,
    dtype: torch.dtype | None = None,
) -> None:
    """Write a decoder, its tokenizer and ``sparse_ir.json``.

    ``folder`` appears whole or stays as it was. ``dtype`` is the type of the stored weights.
    """
    if dtype is not None and dtype != model.dtype:
        model = _rounded(model, dtype)
    with _new_folder(folder) as target:
        model.save_pretrained(target)
        _save_tokenizer(hf_tokenizer, target, None)
        write_decoder_settings(target, settings)


def write_sparse_encoder(
    folder: Path,
    model: PreTrainedModel,
    hf_tokenizer: PreTrainedTokenizerBase,
    *,
    pooling: Pooling = "max",
    activation: Activation = "relu",
    max_length: int | None = None,
    prompts: Mapping[str, str] | None = None,
    top_k: int | None = None,
    query_weights: np.ndarray | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Write the SparseEncoder layout, which sentence-transformers 5.4 and later open.

    Args:
        folder: Appears whole or stays as it was.
        model: The network with its output layer.
        hf_tokenizer: The tokenizer of transformers.
        pooling: How token scores are pooled.
        activation: What makes weights of scores.
        max_length: Tokens read of a text.
        prompts: Texts before documents and queries, by task.
        top_k: The largest number of terms of a text.
        query_weights: Token weights of queries, float32 ``[V]``. With them the model becomes a
            ``Router`` with a ``SparseStaticEmbedding`` for queries and an ``idf.json`` beside it.
        dtype: The type of the stored weights; loading gives float32 again. float16 halves the
            files. float8_e4m3fn is float16 with one byte per number in the matrices that have a
            row per token.
    """
    check_choice("pooling", pooling, get_args(Pooling))
    check_choice("activation", activation, get_args(Activation))
    if dtype is not None and dtype != model.dtype:
        model = _rounded(model, dtype)
    pooling_config = {
        "pooling_strategy": pooling,
        "activation_function": activation,
        "embedding_dimension": model.get_output_embeddings().weight.shape[0],
    }
    with _new_folder(folder) as target:
        files.write_json(target / "config_sentence_transformers.json", _settings(prompts, top_k))
        if query_weights is None:
            _write_transformer(target, model, hf_tokenizer, max_length)
            files.write_json(target / _POOLING_FOLDER / "config.json", pooling_config)
            _write_modules(target, {"": _TRANSFORMER, _POOLING_FOLDER: _POOLING})
        else:
            _write_transformer(target / _DOCUMENT_FOLDER, model, hf_tokenizer, max_length)
            files.write_json(target / _DOCUMENT_POOLING_FOLDER / "config.json", pooling_config)
            _write_query_side(target, hf_tokenizer, max_length, query_weights)
            _write_router_config(target)
            _write_modules(target, {"": _ROUTER})


def _write_modules(target: Path, class_of_folder: Mapping[str, str]) -> None:
    entries = []
    for number, (path, class_name) in enumerate(class_of_folder.items()):
        entries.append({"idx": number, "name": str(number), "path": path, "type": class_name})
    files.write_json(target / "modules.json", entries)


def _rounded(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """Return a copy in ``dtype``; float8 is used only for matrices with a row per token."""
    import torch

    if dtype != torch.float8_e4m3fn:
        return copy.deepcopy(model).to(dtype)
    rounded = copy.deepcopy(model).to(torch.float16)
    rows = model.get_input_embeddings().weight.shape[0]
    for parameter in rounded.parameters():
        if parameter.ndim == 2 and parameter.shape[0] == rows:
            parameter.data = parameter.data.to(dtype)
    return rounded


@contextlib.contextmanager
def _new_folder(folder: Path) -> Iterator[Path]:
    """Give a folder that takes the place of ``folder`` when the block ends without an error.

    Raises ``ConfigError`` when ``folder`` holds something else than a model.
    """
    is_model = (folder / "config.json").is_file() or (folder / "modules.json").is_file()
    if folder.is_dir() and any(folder.iterdir()) and not is_model:
        raise ConfigError(f"{folder} is not empty and holds no model; it must be another folder")
    with files.write_lock(folder):
        files.remove_leftovers(folder)
        with files.building(folder) as target:
            yield target


def _settings(prompts: Mapping[str, str] | None, top_k: int | None) -> dict[str, Any]:
    import torch
    import transformers

    versions = {
        "pytorch": str(torch.__version__),
        # the version of this layout; a reader warns when it is older than the number here
        "sentence_transformers": "5.0.0",
        "transformers": transformers.__version__,
    }
    settings: dict[str, Any] = {"__version__": versions, "default_prompt_name": None}
    if top_k is not None:
        settings["max_active_dims"] = top_k
    settings["model_type"] = "SparseEncoder"
    settings["prompts"] = {"document": "", "query": ""} | dict(prompts or {})
    settings["similarity_fn_name"] = "dot"
    return settings


def _write_transformer(
    folder: Path,
    model: PreTrainedModel,
    hf_tokenizer: PreTrainedTokenizerBase,
    max_length: int | None,
) -> None:
    model.save_pretrained(folder)
    # readers compute in float32, however few bits are stored
    config = files.read_json(folder / "config.json")
    config["dtype"] = "float32"
    files.write_json(folder / "config.json", config)
    _save_tokenizer(hf_tokenizer, folder, max_length)
    reading = {
        "transformer_task": "fill-mask",
        "modality_config": {"text": {"method": "forward", "method_output_name": "logits"}},
        "module_output_name": "token_embeddings",
    }
    files.write_json(folder / "sentence_bert_config.json", reading)


def _write_query_side(
    target: Path,
    hf_tokenizer: PreTrainedTokenizerBase,
    max_length: int | None,
    query_weights: np.ndarray,
) -> None:
    """Write token weights as a tensor and as ``idf.json``."""
    from safetensors.numpy import save_file

    folder = target / _QUERY_FOLDER
    files.write_json(folder / "config.json", {"frozen": True})
    # sentence-transformers wants one weight per token, even where the output layer is wider
    vocabulary = hf_tokenizer.get_vocab()
    weights = np.ascontiguousarray(query_weights[: len(vocabulary)], dtype=np.float32)
    save_file({"weight": weights}, folder / "model.safetensors")
    _save_tokenizer(hf_tokenizer, folder, max_length)
    idf = {}
    for token, token_id in sorted(vocabulary.items(), key=_token_id_of):
        idf[token] = float(str(weights[token_id]))  # the shortest form of a float32
    files.write_json(target / "idf.json", idf)


def _token_id_of(entry: tuple[str, int]) -> int:
    return entry[1]


def _write_router_config(target: Path) -> None:
    config = {
        "types": {
            _QUERY_FOLDER: _STATIC,
            _DOCUMENT_FOLDER: _TRANSFORMER,
            _DOCUMENT_POOLING_FOLDER: _POOLING,
        },
        "structure": {
            "query": [_QUERY_FOLDER],
            "document": [_DOCUMENT_FOLDER, _DOCUMENT_POOLING_FOLDER],
        },
        "parameters": {"default_route": "document", "allow_empty_key": True},
    }
    files.write_json(target / "router_config.json", config)


def _save_tokenizer(
    hf_tokenizer: PreTrainedTokenizerBase, folder: Path, max_length: int | None
) -> None:
    """Save a tokenizer with ``max_length`` as its own limit, and leave the object as it was."""
    before = hf_tokenizer.model_max_length
    try:
        hf_tokenizer.model_max_length = max_length or before
        hf_tokenizer.save_pretrained(folder)
    finally:
        hf_tokenizer.model_max_length = before
