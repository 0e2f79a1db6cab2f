"""Writing model folders in the layouts of transformers and sentence-transformers."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from sparse_ir.models.decoder_settings import (
    Activation,
    DecoderSettings,
    Pooling,
    check_choice,
    write_decoder_settings,
)
from sparse_ir.storage import files

ClassNames = Literal["6", "5"]
_SPARSE_MODULES = "sentence_transformers.sparse_encoder.modules"
_CLASS_NAMES = {
    "6": {
        "Transformer": "sentence_transformers.base.modules.transformer.Transformer",
        "SpladePooling": f"{_SPARSE_MODULES}.splade_pooling.SpladePooling",
        "Static": f"{_SPARSE_MODULES}.sparse_static_embedding.SparseStaticEmbedding",
        "Router": "sentence_transformers.base.modules.router.Router",
    },
    "5": {
        "Transformer": "sentence_transformers.sparse_encoder.models.MLMTransformer",
        "SpladePooling": "sentence_transformers.sparse_encoder.models.SpladePooling",
        "Static": "sentence_transformers.sparse_encoder.models.SparseStaticEmbedding",
        "Router": "sentence_transformers.models.Router",
    },
}


def write_masked_lm(
    folder: Path, network: Any, tokenizer: Any, *, max_length: int | None = None
) -> None:
    """Write the plain layout: network and tokenizer, nothing else. ``folder`` appears whole, or
    stays as it was.
    """
    with _new_folder(folder) as target:
        network.save_pretrained(target)
        _save_tokenizer(tokenizer, target, max_length)


def write_causal_lm(
    folder: Path, network: Any, tokenizer: Any, settings: DecoderSettings, dtype: Any = None
) -> None:
    """Write a decoder, its tokenizer and ``sparse_ir.json``. ``folder`` appears whole, or stays as
    it was.

    ``dtype``: a torch type in which the weights are stored.
    """
    if dtype is not None and dtype != network.dtype:
        network = _rounded(network, dtype)
    with _new_folder(folder) as target:
        network.save_pretrained(target)
        _save_tokenizer(tokenizer, target, None)
        write_decoder_settings(target, settings)


def write_sparse_encoder(
    folder: Path,
    network: Any,
    tokenizer: Any,
    *,
    pooling: Pooling = "max",
    activation: Activation = "relu",
    max_length: int | None = None,
    prompts: Mapping[str, str] | None = None,
    top_k: int | None = None,
    query_weights: np.ndarray | None = None,
    class_names: ClassNames = "6",
    dtype: Any = None,
) -> None:
    """Write the SparseEncoder layout that sentence-transformers opens; ``folder`` appears whole, or
    stays as it was.

    ``network`` and ``tokenizer`` are those of transformers. With ``query_weights`` (float32
    ``[V]``) it becomes a ``Router`` with a ``SparseStaticEmbedding`` for queries, and an
    ``idf.json`` beside it. ``class_names`` "6" is read by sentence-transformers 5.4 and later, "5"
    by all versions from 5.0. ``dtype``: a torch type in which the network's weights are stored;
    loading gives float32 again. float16 halves the files, float8_e4m3fn is float16 with a byte per
    number of the matrices that have a row per token.
    """
    if dtype is not None and dtype != network.dtype:
        network = _rounded(network, dtype)
    check_choice("pooling", pooling, get_args(Pooling))
    check_choice("activation", activation, get_args(Activation))
    check_choice("class_names", class_names, get_args(ClassNames))
    pooling_config = {"pooling_strategy": pooling, "activation_function": activation}
    size_key = "embedding_dimension" if class_names == "6" else "word_embedding_dimension"
    pooling_config[size_key] = network.get_output_embeddings().weight.shape[0]
    names = _CLASS_NAMES[class_names]
    with _new_folder(folder) as target:
        files.write_json(target / "config_sentence_transformers.json", _settings(prompts, top_k))
        if query_weights is None:
            _write_transformer(target, network, tokenizer, max_length, class_names)
            files.write_json(target / "1_SpladePooling" / "config.json", pooling_config)
            modules = [("", names["Transformer"]), ("1_SpladePooling", names["SpladePooling"])]
        else:
            _write_router(
                target, network, tokenizer, max_length, pooling_config, query_weights, class_names
            )
            modules = [("", names["Router"])]
        files.write_json(
            target / "modules.json",
            [
                {"idx": i, "name": str(i), "path": path, "type": name}
                for i, (path, name) in enumerate(modules)
            ],
        )


def _rounded(network: Any, dtype: Any) -> Any:
    """A copy in ``dtype``; float8 (4 bits of exponent, 3 of mantissa) is for matrices with a row
    per token only.
    """
    import torch

    if dtype != torch.float8_e4m3fn:
        return copy.deepcopy(network).to(dtype)
    found = copy.deepcopy(network).to(torch.float16)
    rows = network.get_input_embeddings().weight.shape[0]
    for parameter in found.parameters():
        if parameter.ndim == 2 and parameter.shape[0] == rows:
            parameter.data = parameter.data.to(dtype)
    return found


@contextlib.contextmanager
def _new_folder(folder: Path) -> Iterator[Path]:
    """A folder beside ``folder`` that takes its place when the block ends without an exception."""
    with files.write_lock(folder):
        files.remove_leftovers(folder)
        with files.building(folder) as target:
            yield target


def _settings(prompts: Mapping[str, str] | None, top_k: int | None) -> dict[str, Any]:
    import torch
    import transformers

    settings: dict[str, Any] = {
        # the version whose layout this is; the reader warns only when it is older than the number
        # here
        "__version__": {
            "pytorch": str(torch.__version__),
            "sentence_transformers": "5.0.0",
            "transformers": transformers.__version__,
        },
        "default_prompt_name": None,
        **({} if top_k is None else {"max_active_dims": top_k}),
        "model_type": "SparseEncoder",
        "prompts": {"document": "", "query": "", **(prompts or {})},
        "similarity_fn_name": "dot",
    }
    return settings


def _write_transformer(
    folder: Path, network: Any, tokenizer: Any, max_length: int | None, class_names: ClassNames
) -> None:
    network.save_pretrained(folder)
    # however few bits are stored, readers compute in float32
    settings = files.read_json(folder / "config.json")
    files.write_json(folder / "config.json", {**settings, "dtype": "float32"})
    limit = _save_tokenizer(tokenizer, folder, max_length)
    config: dict[str, Any] = {"max_seq_length": limit, "do_lower_case": False}
    if class_names == "6":
        config = {
            "transformer_task": "fill-mask",
            "modality_config": {"text": {"method": "forward", "method_output_name": "logits"}},
            "module_output_name": "token_embeddings",
        }
    files.write_json(folder / "sentence_bert_config.json", config)


def _write_router(
    target: Path,
    network: Any,
    tokenizer: Any,
    max_length: int | None,
    pooling_config: Mapping[str, Any],
    query_weights: np.ndarray,
    class_names: ClassNames,
) -> None:
    from safetensors.numpy import save_file

    names = _CLASS_NAMES[class_names]
    query, document = (
        "query_0_SparseStaticEmbedding",
        "document_0_" + names["Transformer"].rsplit(".", 1)[-1],
    )
    _write_transformer(target / document, network, tokenizer, max_length, class_names)
    files.write_json(target / "document_1_SpladePooling" / "config.json", pooling_config)
    files.write_json(target / query / "config.json", {"frozen": True})
    # sentence-transformers wants exactly one weight per token, also where the network's head is
    # wider
    weights = np.ascontiguousarray(query_weights[: len(tokenizer.get_vocab())], dtype=np.float32)
    save_file({"weight": weights}, target / query / "model.safetensors")
    _save_tokenizer(tokenizer, target / query, max_length)
    tokens = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    files.write_json(
        target / "idf.json", {token: float(str(weights[token_id])) for token, token_id in tokens}
    )
    files.write_json(
        target / "router_config.json",
        {
            "types": {
                query: names["Static"],
                document: names["Transformer"],
                "document_1_SpladePooling": names["SpladePooling"],
            },
            "structure": {"query": [query], "document": [document, "document_1_SpladePooling"]},
            "parameters": {"default_route": "document", "allow_empty_key": True},
        },
    )


def _save_tokenizer(tokenizer: Any, folder: Path, max_length: int | None) -> int:
    """Save it with ``max_length`` as its own limit, and leave the caller's object as it was."""
    before = tokenizer.model_max_length
    try:
        tokenizer.model_max_length = max_length or before
        tokenizer.save_pretrained(folder)
        return tokenizer.model_max_length
    finally:
        tokenizer.model_max_length = before
