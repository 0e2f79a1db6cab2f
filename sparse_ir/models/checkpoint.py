"""What lies in a model folder, told as plain data, and the layouts that this package writes.

Read: the SparseEncoder layout of sentence-transformers (symmetric, or a ``Router`` with its own
query side; class names of versions 5 and 6), a plain masked language model, as naver publishes, and
a decoder or a peft adapter of one, with ``sparse_ir.json`` beside it. Whatever is something else is
refused with its reason. No weight is loaded here and no code of a model folder is ever run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal, get_args

import numpy as np

from sparse_ir.errors import ModelError
from sparse_ir.models.decoder_settings import (
    TEXT_PLACEHOLDER,
    Activation,
    DecoderSettings,
    Pooling,
    read_decoder_settings,
)
from sparse_ir.models.model_files import (
    ADAPTER_FILE,
    DECODER_FILE,
    files_hash,
    read_json,
    read_object,
    read_tensors,
    resolve_folder,
    weights_hash,
)
from sparse_ir.storage import files

Layout = Literal["sparse-encoder", "router", "masked-lm", "causal-lm"]
_ROLES = {
    "Transformer": "transformer",
    "MLMTransformer": "transformer",
    "SpladePooling": "pooling",
    "SparseStaticEmbedding": "static",
    "IDF": "static",
    "Router": "router",
    "Asym": "router",
}
_REFUSED = {
    "SparseAutoEncoder": "a CSR autoencoder over a dense vector, whose dimensions are no tokens",
    "Pooling": "a dense sentence embedding",
    "Dense": "a dense sentence embedding",
    "Normalize": "a dense sentence embedding",
    "WeightedLayerPooling": "a dense sentence embedding",
    "StaticEmbedding": "a dense sentence embedding",
}
_HARMLESS_MODEL_OPTIONS = {"dtype", "torch_dtype", "attn_implementation", "trust_remote_code"}
_ALL_LOGITS = {"text": {"logits_to_keep": 0}}


@dataclass(frozen=True)
class NeuralSide:
    """A language model with SPLADE pooling; ``max_length`` is what the layout states, ``None`` if
    nothing.

    ``decoder`` is None for a masked language model. ``adapter`` is the folder of a peft adapter to
    the network in ``folder``.
    """

    folder: Path
    pooling: Pooling = "max"
    activation: Activation = "relu"
    max_length: int | None = None
    lowercase: bool = False
    decoder: DecoderSettings | None = None
    template: str = TEXT_PLACEHOLDER
    adapter: Path | None = None

    @property
    def tokenizer_folder(self) -> Path:
        """An adapter may bring its own tokenizer."""
        own = self.adapter is not None and (self.adapter / "tokenizer_config.json").is_file()
        return self.adapter if own and self.adapter is not None else self.folder


@dataclass(frozen=True)
class StaticSide:
    """One weight per token: a tensor file (``weight``, ``[V]``) or an ``idf.json``; the tokenizer
    is in ``folder``.
    """

    folder: Path
    weights_path: Path


@dataclass(frozen=True)
class Checkpoint:
    """A model folder, understood. ``revision`` is the hub's commit, ``None`` for a folder of the
    user.
    """

    name: str
    folder: Path
    revision: str | None
    layout: Layout
    document: NeuralSide
    query: NeuralSide | StaticSide
    document_prompt: str = ""
    query_prompt: str = ""
    top_k: int | None = None
    idf_path: Path | None = None
    prompts: Mapping[str, str] = field(default_factory=dict)


def open_checkpoint(
    model: str | Path,
    *,
    revision: str | None = None,
    allow_pickle: bool = False,
    decoder: DecoderSettings | None = None,
) -> Checkpoint:
    """The description of a local folder or of a hub model (downloaded once, its commit recorded).

    ``decoder``: how a decoder is read, in the place of what its folder says; prompts and top_k that
    it leaves unsaid are those of a ``config_sentence_transformers.json`` beside a ``modules.json``.
    Raises ``ModelError`` when there is no such model, no network, or a layout that is no
    learned-sparse encoder.
    """
    folder, commit = resolve_folder(model, revision, allow_pickle)
    name = str(model) if commit is not None else folder.name
    return read_layout(
        folder, name=name, revision=commit, decoder=decoder, allow_pickle=allow_pickle
    )


def read_layout(
    folder: Path,
    *,
    name: str | None = None,
    revision: str | None = None,
    decoder: DecoderSettings | None = None,
    allow_pickle: bool = False,
) -> Checkpoint:
    """Describe a local model folder; raises ``ModelError`` with the reason
    when it cannot be used.
    """
    name = name or folder.name
    idf_path = folder / "idf.json" if (folder / "idf.json").is_file() else None
    settings_here = read_decoder_settings(folder) if decoder is None else _fill_in(folder, decoder)
    if settings_here is not None or (folder / ADAPTER_FILE).is_file():
        return _read_decoder(folder, name, revision, settings_here, allow_pickle, idf_path)
    if not (folder / "modules.json").is_file():
        return _read_masked_lm(folder, name, revision, idf_path)
    settings = read_object(folder / "config_sentence_transformers.json", required=False)
    modules = _read_modules(folder)
    routed = bool(modules) and modules[0][0] == "router"
    document_modules = _route(folder, modules, "document") if routed else modules
    query_modules = _route(folder, modules, "query") if routed else modules
    document = _side(folder, document_modules, "document", idf_path)
    if not isinstance(document, NeuralSide):
        raise ModelError(
            f"{folder}: the document side is a table of token weights; a masked "
            "language model is needed"
        )
    prompts = {key: text or "" for key, text in (settings.get("prompts") or {}).items()}
    return Checkpoint(
        name=name,
        folder=folder,
        revision=revision,
        layout="router" if routed else "sparse-encoder",
        document=document,
        query=_side(folder, query_modules, "query", idf_path),
        document_prompt=prompts.get("document", ""),
        query_prompt=prompts.get("query", ""),
        top_k=settings.get("max_active_dims"),
        idf_path=idf_path,
        prompts=prompts,
    )


def _fill_in(folder: Path, decoder: DecoderSettings) -> DecoderSettings:
    """Settings that a user gives, with what the layout of sentence-transformers says where they say
    nothing.
    """
    if not (folder / "modules.json").is_file():
        return decoder
    reading = read_object(
        folder / _first_path(folder) / "sentence_bert_config.json", required=False
    )
    if is_sparse_encoder(folder) and reading.get("transformer_task") != "text-generation":
        raise ModelError(
            f"{folder} is no decoder but a sparse encoder as its modules.json says; "
            "drop decoder=... "
            "(--decoder)"
        )
    stated = read_object(folder / "config_sentence_transformers.json", required=False)
    prompts = stated.get("prompts") or {}
    return replace(
        decoder,
        document_prompt=decoder.document_prompt or prompts.get("document") or "",
        query_prompt=decoder.query_prompt or prompts.get("query") or "",
        top_k=decoder.top_k or stated.get("max_active_dims"),
    )


def _first_path(folder: Path) -> str:
    """Where the first module of a ``modules.json`` lies, relative to the folder."""
    listed = read_json(folder / "modules.json")
    if not (isinstance(listed, list) and listed and isinstance(listed[0], dict)):
        raise ModelError(f"{folder / 'modules.json'} is no list of modules")
    return str(_relative(folder, str(listed[0].get("path", ""))))


def find_folder(
    model: str | Path, revision: str | None = None, *, allow_pickle: bool = False
) -> tuple[Path, str | None]:
    """Where the network of any model lies, dense ones included, and the hub's commit (None for a
    local folder).

    In the layout of sentence-transformers the network may have a folder of its own.
    """
    folder, commit = resolve_folder(model, revision, allow_pickle)
    if not is_sparse_encoder(folder) and (folder / "modules.json").is_file():
        folder = folder / _first_path(folder)
    return folder, commit


def is_sparse_encoder(folder: Path) -> bool:
    """Whether a folder has the layout of a SparseEncoder."""
    path = folder / "modules.json"
    return path.is_file() and any(
        "SpladePooling" in str(module) or "Router" in str(module) for module in read_json(path)
    )


def side_hash(side: NeuralSide, *, allow_pickle: bool = False) -> str:
    """``files_hash`` of a side's network; with an adapter, one hash over both folders."""
    base = files_hash(side.folder, allow_pickle=allow_pickle)
    if side.adapter is None:
        return base
    return files.sha256_of_json([base, files_hash(side.adapter, allow_pickle=allow_pickle)])


def read_static_weights(side: StaticSide, *, allow_pickle: bool = False) -> np.ndarray:
    """The learned token weights of a ``SparseStaticEmbedding``: float32 ``[V]``; raises
    ``ModelError``.
    """
    path = side.weights_path
    try:
        tensors = read_tensors(path, allow_pickle)
        weights = np.asarray(tensors["weight"], dtype=np.float32)
    except (OSError, KeyError, ValueError, RuntimeError) as error:
        raise ModelError(
            f'{path}: no tensor "weight" with one value per token can be read ({error})'
        ) from error
    if weights.ndim != 1:
        raise ModelError(
            f'{path}: tensor "weight" has the shape {weights.shape}; allowed: one dimension'
        )
    return weights


def _read_masked_lm(
    folder: Path, name: str, revision: str | None, idf_path: Path | None
) -> Checkpoint:
    config = read_object(folder / "config.json", required=True)
    if not config.get("model_type"):
        raise ModelError(
            f"{folder / 'config.json'} names no model_type, so this is no transformers model"
        )
    side = NeuralSide(folder)
    query = side if idf_path is None else StaticSide(folder, idf_path)
    return Checkpoint(
        name, folder, revision, "masked-lm", document=side, query=query, idf_path=idf_path
    )


def _read_decoder(
    folder: Path,
    name: str,
    revision: str | None,
    settings: DecoderSettings | None,
    allow_pickle: bool,
    idf_path: Path | None,
) -> Checkpoint:
    """A decoder, or an adapter with its base model, which is looked for beside it, here, and on the
    hub.
    """
    if settings is None:
        raise ModelError(
            f"{folder} is an adapter, and nothing says how its decoder reads a text "
            "(causal, echo, "
            f"bidirectional ...); give decoder=..., or put {DECODER_FILE} beside "
            f"{ADAPTER_FILE}"
        )
    place = folder / _first_path(folder) if (folder / "modules.json").is_file() else folder
    adapter = place if (place / ADAPTER_FILE).is_file() else None
    base = place if adapter is None else _base_of(place, allow_pickle)
    config = read_object(base / "config.json", required=True)
    if not config.get("model_type"):
        raise ModelError(
            f"{base / 'config.json'} names no model_type, so this is no transformers model"
        )
    document, query = (
        NeuralSide(
            base,
            settings.pooling,
            settings.activation,
            settings.max_length,
            decoder=settings,
            template=settings.template(task),
            adapter=adapter,
        )
        for task in ("document", "query")
    )
    prompts = {"document": settings.document_prompt, "query": settings.query_prompt}
    return Checkpoint(
        name,
        folder,
        revision,
        "causal-lm",
        document=document,
        query=query if idf_path is None else StaticSide(document.tokenizer_folder, idf_path),
        document_prompt=prompts["document"],
        query_prompt=prompts["query"],
        top_k=settings.top_k,
        idf_path=idf_path,
        prompts=prompts,
    )


def _base_of(folder: Path, allow_pickle: bool) -> Path:
    """The folder of the base model that an adapter names; raises ``ModelError`` when it is another
    than it should.
    """
    path = folder / ADAPTER_FILE
    config = read_object(path, required=True)
    stated = config.get("base_model_name_or_path")
    if not isinstance(stated, str) or not stated:
        raise ModelError(
            f"{path} names no base_model_name_or_path, the model that the adapter belongs to"
        )
    place = next(
        (str(found) for found in (folder / stated, Path(stated)) if found.is_dir()), stated
    )
    revision = None if Path(place).is_dir() else config.get("revision")
    try:
        base, _ = resolve_folder(place, revision, allow_pickle)
    except ModelError as error:
        raise ModelError(
            f"{path}: the base model cannot be had ({error}); set "
            "base_model_name_or_path to its place"
        ) from error
    wanted = read_object(folder / DECODER_FILE, required=False).get("base_sha256")
    if wanted is not None and wanted != weights_hash(base, allow_pickle=allow_pickle):
        raise ModelError(
            f"{folder} was trained on other weights than those in {base}; give the "
            "base model of its "
            f"training, or drop base_sha256 from {DECODER_FILE} if that is what you "
            "want"
        )
    return base


def _read_modules(folder: Path) -> list[tuple[str, str, Path]]:
    """(role, class name, folder) of each top-level module."""
    listed = read_json(folder / "modules.json")
    if not isinstance(listed, list) or not all(isinstance(module, dict) for module in listed):
        raise ModelError(f"{folder / 'modules.json'} is no list of modules")
    return [
        _module(folder, str(module.get("type")), str(module.get("path", ""))) for module in listed
    ]


def _module(folder: Path, type_name: str, path: str) -> tuple[str, str, Path]:
    class_name = type_name.rsplit(".", 1)[-1]
    if not type_name.startswith("sentence_transformers."):
        raise ModelError(
            f"{folder}: module class {type_name} is code of the model folder, which is never run"
        )
    if class_name in _REFUSED:
        raise ModelError(
            f"{folder}: module class {class_name} makes this {_REFUSED[class_name]}; "
            "expected: a masked "
            f"language model with SpladePooling, or a decoder with {DECODER_FILE} or "
            "decoder=..."
        )
    if class_name not in _ROLES:
        raise ModelError(
            f"{folder}: module class {class_name} is unknown; known: {', '.join(_ROLES)}"
        )
    return _ROLES[class_name], class_name, folder / _relative(folder, path)


def _relative(folder: Path, path: str) -> PurePosixPath:
    relative = PurePosixPath(path)
    if relative.is_absolute() or ".." in relative.parts:
        raise ModelError(f"{folder}: module path {path!r} leaves the model folder")
    return relative


def _route(
    folder: Path, modules: list[tuple[str, str, Path]], task: str
) -> list[tuple[str, str, Path]]:
    """The modules that a text of the task passes: those of its route, then
    those after the router.
    """
    root = modules[0][2]
    config = read_object(root / "router_config.json", required=False)
    config = config or read_object(root / "config.json", required=True)
    structure, types, parameters = (
        config.get("structure"),
        config.get("types"),
        config.get("parameters") or {},
    )
    if not isinstance(structure, dict) or not isinstance(types, dict):
        raise ModelError(f"{root}: the router's configuration lacks structure or types")
    if parameters.get("route_mappings"):
        raise ModelError(
            f"{root}: the router uses route_mappings; supported: routes named query and document"
        )
    if task not in structure:
        raise ModelError(
            f"{root}: the router has no route {task!r} (routes: {', '.join(structure)})"
        )
    routed = [_module(root, str(types[key]), key) for key in structure[task]]
    return routed + modules[1:]


def _side(
    folder: Path, modules: list[tuple[str, str, Path]], task: str, idf_path: Path | None
) -> NeuralSide | StaticSide:
    roles = [role for role, _, _ in modules]
    if roles == ["transformer", "pooling"]:
        return _neural_side(modules[0][1], modules[0][2], modules[1][2], task)
    if roles == ["static"]:
        return _static_side(folder, modules[0][2])
    chain = " > ".join(class_name for _, class_name, _ in modules) or "nothing"
    raise ModelError(
        f"{folder}: the {task} side is {chain}; supported: a masked language model "
        "followed by "
        "SpladePooling, or SparseStaticEmbedding alone"
    )


def _neural_side(class_name: str, folder: Path, pooling_folder: Path, task: str) -> NeuralSide:
    config = read_object(folder / "sentence_bert_config.json", required=False)
    _check_transformer_config(class_name, folder, config)
    pooling = read_object(pooling_folder / "config.json", required=True)
    strategy, activation = (
        pooling.get("pooling_strategy", "max"),
        pooling.get("activation_function", "relu"),
    )
    for key, value, allowed in (
        ("pooling_strategy", strategy, get_args(Pooling)),
        ("activation_function", activation, get_args(Activation)),
    ):
        if value not in allowed:
            raise ModelError(
                f"{pooling_folder / 'config.json'}: {key} is {value!r}; allowed: "
                f"{', '.join(allowed)}"
            )
    max_length = config.get(f"{task}_length") or config.get("max_seq_length")
    lowercase, decoder = bool(config.get("do_lower_case", False)), None
    # that library pools whatever its tokenizer gives
    if config.get("transformer_task") == "text-generation":
        bos = config["processing_kwargs"]["text"].get("add_special_tokens", True)
        decoder = DecoderSettings(pooled="all", bos=bos, pooling=strategy, activation=activation)
    return NeuralSide(folder, strategy, activation, max_length, lowercase, decoder)


def _check_transformer_config(class_name: str, folder: Path, config: Mapping[str, Any]) -> None:
    """Refuse settings that would change the vectors and are not carried out here."""
    path = folder / "sentence_bert_config.json"
    task = config.get(
        "transformer_task", "fill-mask" if class_name == "MLMTransformer" else "feature-extraction"
    )
    decoder = task == "text-generation" and config.get("module_output_name") == "token_embeddings"
    if task != "fill-mask" and not decoder:
        raise ModelError(
            f"{path}: transformer_task is {task!r}, not 'fill-mask' (or "
            "'text-generation' with the output "
            "token_embeddings), so there are no token weights"
        )
    text = {"method": "forward", "method_output_name": "logits"}
    if config.get("modality_config", {"text": text}).get("text") != text or "message" in config.get(
        "modality_config", {}
    ):
        raise ModelError(
            f"{path}: modality_config is not the plain reading of text; supported: forward > logits"
        )
    if decoder:
        _check_reading_of_decoder(path, config.get("processing_kwargs") or {})
    for key in (
        *(() if decoder else ("processing_kwargs",)),
        "query_expansion",
        "processor_kwargs",
        "tokenizer_args",
        "config_kwargs",
        "config_args",
    ):
        if {
            name: value
            for name, value in (config.get(key) or {}).items()
            if name != "trust_remote_code"
        }:
            raise ModelError(f"{path}: {key} is set ({config[key]}), which is not supported")
    for key in ("model_kwargs", "model_args"):
        if unknown := set(config.get(key) or {}) - _HARMLESS_MODEL_OPTIONS:
            raise ModelError(
                f"{path}: {key} sets {', '.join(sorted(unknown))}, which is not supported"
            )


def _check_reading_of_decoder(path: Path, options: Mapping[str, Any]) -> None:
    text = options.get("text") or {}
    if not isinstance(text, dict) or text.get("logits_to_keep", 1) != 0:
        raise ModelError(
            f"{path}: without processing_kwargs {_ALL_LOGITS} the decoder pools the "
            "last token only, "
            "which is not supported"
        )
    strange = (set(options) - {"text"}) | (set(text) - {"logits_to_keep", "add_special_tokens"})
    if strange or not isinstance(text.get("add_special_tokens", True), bool):
        raise ModelError(
            f"{path}: processing_kwargs is {options}; supported for a decoder: "
            "logits_to_keep 0 and "
            "add_special_tokens (true or false) of text"
        )


def _static_side(root: Path, folder: Path) -> StaticSide:
    config = read_object(folder / "config.json", required=False)
    if (stated := config.get("path")) is not None:
        path = next(
            (
                base / Path(stated).name
                for base in (folder, root)
                if (base / Path(stated).name).is_file()
            ),
            None,
        )
        if path is None:
            raise ModelError(
                f"{folder / 'config.json'}: the weights are in {stated!r}, which is "
                "not in the folder"
            )
        return StaticSide(folder, path)
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).is_file():
            return StaticSide(folder, folder / name)
    raise ModelError(f"{folder} holds no token weights; expected: model.safetensors")
