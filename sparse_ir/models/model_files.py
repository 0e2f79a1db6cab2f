"""Where the files of a model lie, whether they are whole, and their hashes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sparse_ir import extras
from sparse_ir.errors import ConfigError, DamagedError, ModelError
from sparse_ir.storage import files

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
_SMALL_FILES = ("*.json", "*.txt", "*.model")
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
DECODER_FILE = "sparse_ir.json"
ADAPTER_FILE = "adapter_config.json"


def weight_files(folder: Path, *, allow_pickle: bool = False) -> list[Path]:
    """The files that hold the weights: safetensors, or with ``allow_pickle`` an older
    ``pytorch_model.bin``.

    Raises ``ModelError`` when there are none, or only pickled ones and they are not allowed, or one
    was cut short.
    """
    found = sorted(folder.glob("model*.safetensors")) or sorted(
        folder.glob("adapter_model*.safetensors")
    )
    if found:
        for path in found:
            _check_whole(path)
        return found
    pickled = sorted(folder.glob("pytorch_model*.bin")) or sorted(folder.glob("adapter_model*.bin"))
    if not pickled:
        raise ModelError(
            f"{folder} holds no weights; expected: model.safetensors (or pytorch_model.bin)"
        )
    if not allow_pickle:
        raise ModelError(
            f"{folder} holds its weights only as {pickled[0].name}, a pickle; with "
            "allow_pickle=True it is read "
            "through torch's weights_only loader, or convert it to safetensors first"
        )
    return pickled


def _check_whole(path: Path) -> None:
    """The head of a safetensors file says how long it must be: a broken download is known before
    anything is read.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy"):
            pass
    except SafetensorError as error:
        raise ModelError(f"{path} is damaged ({error}); fetch or copy it again") from error


def files_hash(folder: Path, *, allow_pickle: bool = False) -> str:
    """SHA-256 over configuration, tokenizer and weight files of one transformer folder: the same
    for equal models.
    """
    names = ("config.json", "sentence_bert_config.json", ADAPTER_FILE, *_TOKENIZER_FILES)
    used = [folder / name for name in names if (folder / name).is_file()]
    used += weight_files(folder, allow_pickle=allow_pickle)
    return files.sha256_of_json({path.name: files.sha256_of_file(path) for path in used})


def weights_hash(folder: Path, *, allow_pickle: bool = False) -> str:
    """SHA-256 over the weight files alone, by which an adapter knows its base model."""
    found = weight_files(folder, allow_pickle=allow_pickle)
    return files.sha256_of_json({path.name: files.sha256_of_file(path) for path in found})


def resolve_folder(
    model: str | Path, revision: str | None, allow_pickle: bool
) -> tuple[Path, str | None]:
    folder = Path(model).expanduser()
    if folder.is_dir():
        if revision is not None:
            raise ConfigError(
                f"revision={revision!r} belongs to a hub model, and {model} is a "
                "local folder; drop it"
            )
        return folder.resolve(), None
    if isinstance(model, Path) or not _HUB_NAME.fullmatch(model):
        raise ModelError(f"{model} is no folder, and no hub name of the form owner/name")
    return _download(model, revision, allow_pickle)


def _download(name: str, revision: str | None, allow_pickle: bool) -> tuple[Path, str]:
    import huggingface_hub
    from huggingface_hub import errors

    patterns = [*_SMALL_FILES, "*.safetensors", *(["*.bin"] if allow_pickle else [])]
    at = f" at revision {revision!r}" if revision else ""
    try:
        path = huggingface_hub.snapshot_download(
            name,
            revision=revision,
            allow_patterns=patterns,
            ignore_patterns=["onnx/*", "openvino/*"],
        )
    except errors.LocalEntryNotFoundError as error:
        raise ModelError(
            f"{name}{at} is not in the local cache and the hub cannot be reached; connect once, "
            "or give the path of "
            "a folder that holds the model"
        ) from error
    except (errors.HfHubHTTPError, errors.HFValidationError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelError(
            f"{name}{at} cannot be fetched from the hub ({reason}); check name, revision and access"
        ) from error
    return Path(path), Path(path).name  # the cache names a snapshot's folder by its commit


def read_tensors(path: Path, allow_pickle: bool) -> Mapping[str, Any]:
    if path.suffix == ".safetensors":
        from safetensors.numpy import load_file

        _check_whole(path)
        return load_file(path)
    if not allow_pickle:
        raise ModelError(
            f"{path} is a pickle; with allow_pickle=True it is read through torch's "
            "weights_only loader"
        )
    with extras.importing():
        import torch

    tensors = torch.load(path, weights_only=True, map_location="cpu")
    return {key: value.float().numpy() for key, value in tensors.items()}


def read_json(path: Path) -> Any:
    try:
        return files.read_json(path)
    except DamagedError as error:
        raise ModelError(str(error)) from error


def read_object(path: Path, *, required: bool) -> dict[str, Any]:
    """The JSON object in a file; ``{}`` without the file where it is not required. Raises
    ``ModelError``.
    """
    if not required and not path.is_file():
        return {}
    value = read_json(path)
    if not isinstance(value, dict):
        raise ModelError(f"{path}: the top level is no object")
    return value
