"""Where the files of a model lie, whether they are whole, and their hashes."""

from __future__ import annotations

import importlib.resources
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from sparse_ir import extras
from sparse_ir.errors import ConfigError, DamagedError, ModelError, first_line
from sparse_ir.models.options import DEFAULT_MODEL, LEXICAL_MODEL
from sparse_ir.storage import files, reading

_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "sentencepiece.bpe.model",
    "spiece.model",
    "tokenizer.model",
)
# each of these holds the vocabulary of a tokenizer
_VOCABULARY_FILES = (
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "sentencepiece.bpe.model",
    "spiece.model",
    "tokenizer.model",
    "bpe.codes",
    "spm.model",
)
VOCABULARY_NAMES = "tokenizer.json, or vocab.txt, or spiece.model ..."
_SHARD_NAME = re.compile(r"(.+)-(\d+)-of-(\d+)\.(safetensors|bin)")
_REMEDY = "; fetch or copy it again"
_DESCRIPTION_FILES = ("*.json", "*.txt", "*.model")
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
DECODER_FILE = "sparse_ir.json"
ADAPTER_FILE = "adapter_config.json"


def weight_files(folder: Path, *, allow_pickle: bool = False) -> list[Path]:
    """Return the files that hold the weights, those of safetensors if there are any.

    With ``allow_pickle`` an older ``pytorch_model.bin`` is taken if there are none. Raises
    ``ModelError`` when there are no weights, when they are pickled without permission, or when a
    file was cut short.
    """
    paths = _first_match(folder, ("model*.safetensors", "adapter_model*.safetensors"))
    if paths:
        _check_shards(folder, paths)
        for path in paths:
            _check_whole(path)
        return paths
    paths = _first_match(folder, ("pytorch_model*.bin", "adapter_model*.bin"))
    if paths:
        _check_shards(folder, paths)
    else:
        raise ModelError(
            f"{folder} holds no weights; expected: model.safetensors (or pytorch_model.bin)"
        )
    if not allow_pickle:
        raise ModelError(
            f"{folder} holds its weights only as {paths[0].name}, a pickle; with "
            "allow_pickle=True it is read through torch's weights_only loader, or convert it to "
            "safetensors first"
        )
    return paths


def _first_match(folder: Path, patterns: tuple[str, ...]) -> list[Path]:
    """Return the files of the first pattern that has any."""
    for pattern in patterns:
        paths = sorted(folder.glob(pattern))
        if paths:
            return paths
    return []


def _check_shards(folder: Path, paths: Sequence[Path]) -> None:
    """Raise ``ModelError`` unless every shard of a divided weight file is there.

    The shards are those that the index file names and those that the file names count.
    """
    names = {path.name for path in paths}
    expected: set[str] = set()
    if f"model{paths[0].suffix}" in names:
        return  # the whole file is read, whatever lies beside it
    for path in paths:
        match = _SHARD_NAME.fullmatch(path.name)
        if match:
            stem, _, count, suffix = match.groups()
            for number in range(1, int(count) + 1):
                expected.add(f"{stem}-{number:0{len(count)}}-of-{count}.{suffix}")
    for path in folder.glob(f"*{paths[0].suffix}.index.json"):
        expected.update(map(str, _named_shards(path)))
    missing = sorted(expected - names)
    if missing:
        raise ModelError(
            f"{folder} lacks {len(missing)} of {len(expected)} weight files ({missing[0]}); fetch "
            "or copy the model again"
        )


def _named_shards(path: Path) -> Iterable[str]:
    """Return the files that the index of a divided weight file names."""
    weight_map = read_object(path, required=True).get("weight_map")
    if not isinstance(weight_map, dict):
        raise ModelError(f"{path}: weight_map must be an object")
    return weight_map.values()


def check_tokenizer_files(folder: Path) -> None:
    """Raise ``ModelError`` unless a folder holds a file with the vocabulary of a tokenizer."""
    present = [name for name in _VOCABULARY_FILES if (folder / name).is_file()]
    if not present:
        raise ModelError(
            f"{folder} has no tokenizer, without which a network reads no words; copy the "
            f"tokenizer files of the model ({VOCABULARY_NAMES}) into the folder"
        )
    if present == ["vocab.json"] and not (folder / "merges.txt").is_file():
        raise ModelError(
            f"{folder} has vocab.json, but not the merges.txt that belongs to it; copy it, or a "
            "tokenizer.json, into the folder"
        )


def read_config(folder: Path) -> dict[str, Any]:
    """Return the ``config.json`` of a network.

    Raises ``ModelError`` when it is missing or does not name the kind of network.
    """
    path = folder / "config.json"
    if not path.is_file() and (folder / ADAPTER_FILE).is_file():
        raise ModelError(
            f"{folder} is an adapter without its network; merge it into its base model "
            "(merge_and_unload of peft) and save the whole model"
        )
    config = read_object(path, required=True)
    if not config.get("model_type"):
        raise ModelError(f"{path} names no model_type, so this is not a transformers model")
    return config


def stated_vocabulary_size(folder: Path) -> int | None:
    """Return the number of output rows by ``config.json``, None where nothing is stated."""
    config = read_object(folder / "config.json", required=False)
    text_config = config.get("text_config")
    size = config.get("vocab_size")
    if size is None and isinstance(text_config, dict):
        size = text_config.get("vocab_size")
    return size if isinstance(size, int) else None


def _check_whole(path: Path) -> None:
    """Raise ``ModelError`` for a broken download, before anything is read.

    The head of a safetensors file says how long the file must be.
    """
    from safetensors import safe_open

    with reading.reading(path, "safetensors", ModelError, _REMEDY), safe_open(path, "numpy"):
        pass


def files_hash(folder: Path, *, allow_pickle: bool = False) -> str:
    """Return the SHA-256 over configuration, tokenizer and weights; equal for equal models."""
    names = ("config.json", "sentence_bert_config.json", ADAPTER_FILE, *_TOKENIZER_FILES)
    paths = [folder / name for name in names if (folder / name).is_file()]
    paths += weight_files(folder, allow_pickle=allow_pickle)
    return files.sha256_of_json({path.name: files.sha256_of_file(path) for path in paths})


def weights_hash(folder: Path, *, allow_pickle: bool = False) -> str:
    """Return the SHA-256 over the weights alone, by which an adapter knows its base model."""
    paths = weight_files(folder, allow_pickle=allow_pickle)
    return files.sha256_of_json({path.name: files.sha256_of_file(path) for path in paths})


def resolve_folder(
    model: str | Path, revision: str | None, allow_pickle: bool
) -> tuple[Path, str | None]:
    """Return the folder of a model and the commit of a hub model, which is downloaded once.

    Raises ``ModelError`` when there is no such model, ``ConfigError`` for a revision of a folder or
    for a model that is not a name.
    """
    if not isinstance(model, str | Path):
        raise ConfigError(f"model is {model!r}; it must be a folder or the name of a hub model")
    folder = Path(os.path.expanduser(model))  # noqa: PTH111 (the other one raises without a home)
    if not folder.is_dir():
        folder = _find_shipped(str(model)) or folder
    if folder.is_dir():
        if revision is not None:
            raise ConfigError(
                f"revision={revision!r} belongs to a hub model, and {model} is a local folder; "
                "drop it"
            )
        return folder.resolve(), None
    if str(model).startswith((".", "/", "~")):
        raise ModelError(f"{model} does not exist; it must be a folder that holds a model")
    if isinstance(model, Path) or not _HUB_NAME.fullmatch(model):
        raise ModelError(f"{model} is neither a folder nor a hub name of the form owner/name")
    return _download(model, revision, allow_pickle)


def shipped_model() -> Path:
    """Return the folder of the trained model inside this package."""
    return Path(str(importlib.resources.files("sparse_ir"))) / "resources" / "model"


def _find_shipped(name: str) -> Path | None:
    """Return the folder of a model that has a name of its own, None for another name."""
    if name == LEXICAL_MODEL:
        raise ModelError(
            "the lexical model is fitted to a collection and has no folder; it serves encode, "
            "build and demo only, so this must be a folder, a hub name, or default"
        )
    return shipped_model() if name == DEFAULT_MODEL else None


def _download(name: str, revision: str | None, allow_pickle: bool) -> tuple[Path, str]:
    import huggingface_hub
    from huggingface_hub import errors

    patterns = [*_DESCRIPTION_FILES, "*.safetensors"]
    if allow_pickle:
        patterns.append("*.bin")
    place = f"{name} at revision {revision!r}" if revision else name
    try:
        path = huggingface_hub.snapshot_download(
            name,
            revision=revision,
            allow_patterns=patterns,
            ignore_patterns=["onnx/*", "openvino/*"],
        )
    except errors.LocalEntryNotFoundError as error:
        raise ModelError(
            f"{place} is not in the local cache and the hub cannot be reached; connect once, or "
            "give the path of a folder that holds the model"
        ) from error
    except (errors.HfHubHTTPError, errors.HFValidationError) as error:
        raise ModelError(
            f"{place} cannot be fetched from the hub ({first_line(error)}); check name, revision "
            "and access"
        ) from error
    return Path(path), Path(path).name  # the cache names a snapshot's folder by its commit


def read_tensors(path: Path, allow_pickle: bool) -> Mapping[str, Any]:
    """Return the arrays of a weight file by name.

    Raises ``ModelError`` for a pickle that may not be read.
    """
    if path.suffix == ".safetensors":
        _check_whole(path)
        return reading.load_tensors(path, remedy=_REMEDY)
    if not allow_pickle:
        raise ModelError(
            f"{path} is a pickle; with allow_pickle=True it is read through torch's weights_only "
            "loader"
        )
    with extras.importing():
        import torch

    with reading.reading(path, "a pickle of tensors alone", ModelError, _REMEDY):
        tensors = torch.load(path, weights_only=True, map_location="cpu")
        return {key: value.float().numpy() for key, value in tensors.items()}


def read_json(path: Path) -> Any:
    """Return the content of a JSON file. Raises ``ModelError`` when it cannot be read."""
    try:
        return files.read_json(path)
    except DamagedError as error:
        raise ModelError(str(error)) from error


def read_object(path: Path, *, required: bool) -> dict[str, Any]:
    """Return the JSON object in a file, ``{}`` for a missing file that is not required.

    Raises ``ModelError`` when it cannot be read.
    """
    if not required and not path.is_file():
        return {}
    value = read_json(path)
    if not isinstance(value, dict):
        raise ModelError(f"{path}: the top level must be an object")
    return value


def first_module_path(folder: Path) -> PurePosixPath:
    """Return where the first module of a ``modules.json`` lies, relative to the folder."""
    path = folder / "modules.json"
    entries = read_json(path)
    if not isinstance(entries, list) or not entries or not isinstance(entries[0], dict):
        raise ModelError(f"{path} is not a list of modules")
    return check_module_path(folder, str(entries[0].get("path", "")))


def check_module_path(folder: Path, path: str) -> PurePosixPath:
    """Return the path of a module; raises ``ModelError`` when it leaves the model folder."""
    relative = PurePosixPath(path)
    if relative.is_absolute() or ".." in relative.parts:
        raise ModelError(f"{folder}: module path {path!r} leaves the model folder")
    return relative


def is_sparse_encoder(folder: Path) -> bool:
    """Return whether a folder has the layout of a SparseEncoder."""
    path = folder / "modules.json"
    if not path.is_file():
        return False
    modules = str(read_json(path))
    return "SpladePooling" in modules or "Router" in modules
