"""What lies in a model folder, as plain data.

Read are the SparseEncoder layout of sentence-transformers (symmetric, or a ``Router`` with its own
query side; class names of versions 5 and 6), a plain masked language model as naver publishes it,
and a decoder or a peft adapter to one with ``sparse_ir.json`` beside it. Anything else is refused
with the reason. No weight is loaded here, and no code of a model folder is ever run.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np

from sparse_ir.errors import ModelError
from sparse_ir.models.decoder_settings import Activation, DecoderSettings, Pooling
from sparse_ir.models.families.base import (
    Checkpoint,
    Family,
    FolderRequest,
    Layout,
    NeuralSide,
    StaticSide,
)
from sparse_ir.models.families.table import DEFAULT_FAMILY, FAMILIES
from sparse_ir.models.model_files import (
    DECODER_FILE,
    check_module_path,
    files_hash,
    first_module_path,
    is_sparse_encoder,
    read_config,
    read_json,
    read_object,
    read_tensors,
    resolve_folder,
)
from sparse_ir.storage import files

__all__ = [
    "Checkpoint",
    "Layout",
    "NeuralSide",
    "StaticSide",
    "find_folder",
    "find_start",
    "open_checkpoint",
    "read_layout",
    "read_static_weights",
    "side_hash",
]

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
    "SparseAutoEncoder": "a CSR autoencoder over a dense vector, whose dimensions are not tokens",
    "Pooling": "a dense sentence embedding",
    "Dense": "a dense sentence embedding",
    "Normalize": "a dense sentence embedding",
    "WeightedLayerPooling": "a dense sentence embedding",
    "StaticEmbedding": "a dense sentence embedding",
}


class _Module(NamedTuple):
    """One entry of a ``modules.json``."""

    role: str
    class_name: str
    folder: Path


def open_checkpoint(
    model: str | Path,
    *,
    revision: str | None = None,
    allow_pickle: bool = False,
    decoder: DecoderSettings | None = None,
) -> Checkpoint:
    """Describe a local folder or a hub model, which is downloaded once.

    Args:
        model: A folder, or a name on the hub.
        revision: The commit, branch or tag of a hub model.
        allow_pickle: Whether an older ``pytorch_model.bin`` may be downloaded and read.
        decoder: How a decoder is read, instead of what its folder says. Prompts and ``top_k`` that
            it leaves out come from the ``config_sentence_transformers.json`` of the folder.

    Raises ``ModelError`` when there is no such model, or when it is not a learned-sparse encoder.
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
    """Describe a local model folder. Raises ``ModelError`` when it cannot be used."""
    request = FolderRequest(folder, name or folder.name, revision, decoder, allow_pickle)
    checkpoint = _read_by_family(request)
    if checkpoint is not None:
        return checkpoint
    if (folder / "modules.json").is_file():
        return _read_modules_layout(request)
    return _read_plain_layout(request)


def find_folder(
    model: str | Path, revision: str | None = None, *, allow_pickle: bool = False
) -> tuple[Path, str | None]:
    """Return the folder of any model's network, and the commit of a hub model.

    Dense models are found, too. In the layout of sentence-transformers the network may have a
    folder of its own.
    """
    folder, commit = resolve_folder(model, revision, allow_pickle)
    if not is_sparse_encoder(folder) and (folder / "modules.json").is_file():
        folder = folder / first_module_path(folder)
    return folder, commit


def find_start(
    folder: Path, decoder: DecoderSettings | None, *, allow_pickle: bool
) -> tuple[NeuralSide, NeuralSide | StaticSide | None]:
    """Return the document side and the query side from which training in a folder starts.

    A network that is not a sparse encoder yet has no query side.
    """
    request = FolderRequest(folder, folder.name, None, decoder, allow_pickle)
    checkpoint = _read_by_family(request)
    if checkpoint is None:
        if not is_sparse_encoder(folder):
            return NeuralSide(folder, DEFAULT_FAMILY), None
        checkpoint = _read_modules_layout(request)
    return checkpoint.document, checkpoint.query


def side_hash(side: NeuralSide, *, allow_pickle: bool = False) -> str:
    """Return ``files_hash`` of a side's network; with an adapter, one hash over both folders."""
    base = files_hash(side.folder, allow_pickle=allow_pickle)
    if side.adapter is None:
        return base
    return files.sha256_of_json([base, files_hash(side.adapter, allow_pickle=allow_pickle)])


def read_static_weights(side: StaticSide, *, allow_pickle: bool = False) -> np.ndarray:
    """Read the token weights of a ``SparseStaticEmbedding``, float32 ``[V]``.

    Raises ``ModelError`` when there is no such tensor.
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
            f'{path}: tensor "weight" has the shape {weights.shape}; it must have one dimension'
        )
    return weights


def _read_by_family(request: FolderRequest) -> Checkpoint | None:
    """Describe a folder that one of the families recognizes by files of its own."""
    for family in FAMILIES:
        checkpoint = family.read_folder(request)
        if checkpoint is not None:
            return checkpoint
    return None


def _read_plain_layout(request: FolderRequest) -> Checkpoint:
    """Describe a folder of transformers without further files."""
    folder = request.folder
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"{folder} is no model: it has neither config.json nor modules.json; fetch or copy the "
            "whole folder"
        )
    read_config(folder)
    side = NeuralSide(folder, DEFAULT_FAMILY)
    query: NeuralSide | StaticSide = side
    if request.idf_path is not None:
        query = StaticSide(folder, request.idf_path)
    return Checkpoint(
        request.name,
        folder,
        request.revision,
        "masked-lm",
        document=side,
        query=query,
        idf_path=request.idf_path,
    )


def _read_modules_layout(request: FolderRequest) -> Checkpoint:
    """Describe a folder of sentence-transformers."""
    folder = request.folder
    settings = read_object(folder / "config_sentence_transformers.json", required=False)
    modules = _read_modules(folder)
    routed = bool(modules) and modules[0].role == "router"
    document = _read_side(folder, modules, "document")
    if not isinstance(document, NeuralSide):
        raise ModelError(
            f"{folder}: the document side is a table of token weights; it must be a network"
        )
    prompts = {key: text or "" for key, text in (settings.get("prompts") or {}).items()}
    return Checkpoint(
        name=request.name,
        folder=folder,
        revision=request.revision,
        layout="router" if routed else "sparse-encoder",
        document=document,
        query=_read_side(folder, modules, "query"),
        document_prompt=prompts.get("document", ""),
        query_prompt=prompts.get("query", ""),
        top_k=settings.get("max_active_dims"),
        idf_path=request.idf_path,
        prompts=prompts,
    )


def _read_modules(folder: Path) -> list[_Module]:
    """Read the top-level modules of a folder."""
    entries = read_json(folder / "modules.json")
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ModelError(f"{folder / 'modules.json'} is not a list of modules")
    return [
        _check_module(folder, str(entry.get("type")), str(entry.get("path", "")))
        for entry in entries
    ]


def _check_module(folder: Path, type_name: str, path: str) -> _Module:
    class_name = type_name.rsplit(".", 1)[-1]
    if not type_name.startswith("sentence_transformers."):
        raise ModelError(
            f"{folder}: module class {type_name} is code of the model folder, which is never run"
        )
    if class_name in _REFUSED:
        raise ModelError(
            f"{folder}: module class {class_name} makes this {_REFUSED[class_name]}; it must be a "
            f"masked language model with SpladePooling, or a decoder with {DECODER_FILE} or "
            "decoder=..."
        )
    if class_name not in _ROLES:
        raise ModelError(
            f"{folder}: module class {class_name} is unknown; it must be {', '.join(_ROLES)}"
        )
    return _Module(_ROLES[class_name], class_name, folder / check_module_path(folder, path))


def _read_side(folder: Path, modules: Sequence[_Module], task: str) -> NeuralSide | StaticSide:
    """Describe the modules that a text of the task ("document" or "query") passes."""
    if modules and modules[0].role == "router":
        modules = [*_read_route(modules[0].folder, task), *modules[1:]]
    roles = [module.role for module in modules]
    if roles == ["transformer", "pooling"]:
        return _read_neural_side(modules[0], modules[1].folder, task)
    if roles == ["static"]:
        return _read_static_side(folder, modules[0].folder)
    chain = " > ".join(module.class_name for module in modules) or "nothing"
    raise ModelError(
        f"{folder}: the {task} side is {chain}; it must be a masked language model followed by "
        "SpladePooling, or SparseStaticEmbedding alone"
    )


def _read_route(folder: Path, task: str) -> list[_Module]:
    """Read the modules of a router's route."""
    path = folder / "router_config.json"
    if not path.is_file() and (folder / "config.json").is_file():
        path = folder / "config.json"  # of older versions
    config = read_object(path, required=True)
    structure = config.get("structure")
    types = config.get("types")
    if not isinstance(structure, dict) or not isinstance(types, dict):
        raise ModelError(f"{folder}: the router's configuration lacks structure or types")
    if (config.get("parameters") or {}).get("route_mappings"):
        raise ModelError(
            f"{folder}: the router uses route_mappings; its routes must be query and document"
        )
    if task not in structure:
        raise ModelError(
            f"{folder}: the router has no route {task!r} (routes: {', '.join(structure)})"
        )
    return [_check_module(folder, str(types[key]), key) for key in structure[task]]


def _read_neural_side(module: _Module, pooling_folder: Path, task: str) -> NeuralSide:
    folder = module.folder
    path = folder / "sentence_bert_config.json"
    config = read_object(path, required=False)
    family = _find_family(module.class_name, path, config)
    pooling_config = read_object(pooling_folder / "config.json", required=True)
    pooling = pooling_config.get("pooling_strategy", "max")
    activation = pooling_config.get("activation_function", "relu")
    _check_choice(pooling_folder, "pooling_strategy", pooling, get_args(Pooling))
    _check_choice(pooling_folder, "activation_function", activation, get_args(Activation))
    return NeuralSide(
        folder,
        family.from_transformer_config(path, config, pooling, activation),
        pooling,
        activation,
        config.get(f"{task}_length") or config.get("max_seq_length"),
        bool(config.get("do_lower_case", False)),
    )


def _find_family(class_name: str, path: Path, config: dict[str, Any]) -> type[Family]:
    """Return the family of a task of sentence-transformers."""
    default = "fill-mask" if class_name == "MLMTransformer" else "feature-extraction"
    task = config.get("transformer_task", default)
    families = {family.transformer_task: family for family in FAMILIES}
    if task not in families:
        raise ModelError(
            f"{path}: transformer_task is {task!r}, which gives no token weights; it must be "
            f"{' or '.join(sorted(families))}"
        )
    return families[task]


def _check_choice(folder: Path, key: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ModelError(
            f"{folder / 'config.json'}: {key} is {value!r}; it must be {' or '.join(choices)}"
        )


def _read_static_side(root: Path, folder: Path) -> StaticSide:
    config = read_object(folder / "config.json", required=False)
    stated = config.get("path")
    if stated is not None:
        for place in (folder, root):
            path = place / Path(stated).name
            if path.is_file():
                return StaticSide(folder, path)
        raise ModelError(
            f"{folder / 'config.json'}: the weights are in {stated!r}, which is not in the folder"
        )
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).is_file():
            return StaticSide(folder, folder / name)
    raise ModelError(f"{folder} holds no token weights; expected: model.safetensors")
