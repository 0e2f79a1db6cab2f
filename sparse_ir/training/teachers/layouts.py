"""How the folder of a dense encoder, cross-encoder or monoT5 says it is to be read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal, get_args

from sparse_ir import environment
from sparse_ir.errors import ConfigError, ModelError
from sparse_ir.models import model_files
from sparse_ir.storage import files

_SHOWN = 80  # characters of a text in a message


def role_of(name: str) -> Role:
    return "query" if name == "query" else "document"


def package_versions() -> dict[str, str]:
    """Information for the cache file: libraries do not decide a score beyond rounding."""
    return environment.package_versions(("torch", "transformers", "tokenizers", "numpy"))


def shorten(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else text[:_SHOWN] + "...")


Role = Literal["query", "document"]
Dtype = Literal["float32", "bfloat16"]
Pooling = Literal["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"]
Similarity = Literal["cosine", "dot"]
_LEGACY_POOLING = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}  # in the order in which several are put side by side
_PROMPT_NAMES: dict[Role, tuple[str, ...]] = {
    "query": ("query",),
    "document": ("document", "passage", "corpus"),
}


@dataclass(frozen=True)
class DenseLayout:
    """A bi-encoder's folder, told as plain data."""

    root: Path
    transformer: Path
    poolings: tuple[str, ...]
    normalize: bool = False
    similarity: str = "cosine"
    max_length: int | None = None
    lowercase: bool = False
    include_prompt: bool = True
    prompts: Mapping[str, str] | None = None

    def prompt(self, role: Role) -> str:
        """What is put before a text of this role: the first prompt that is not empty.

        As in sentence-transformers, ``default_prompt_name`` has no say where the role is known.
        Unlike there, a stated ``passage`` or ``corpus`` is not hidden by the empty ``document``
        that every saved folder has.
        """
        prompts = self.prompts or {}
        return next((prompts[name] for name in _PROMPT_NAMES[role] if prompts.get(name)), "")


def resolve(model: str | Path, revision: str | None, allow_pickle: bool) -> tuple[Path, str | None]:
    """The folder of a local or hub model, and the hub's commit (None for a local folder)."""
    return model_files.resolve_folder(model, revision, allow_pickle)


def read_dense_layout(folder: Path, pooling: str | None = None) -> DenseLayout:
    """How a bi-encoder's folder wants to be run; ``pooling`` for a plain transformers folder, which
    states none.

    Raises ``ModelError`` for what is not supported, ``ConfigError`` for a pooling that lacks or is
    one too many.
    """
    if not (folder / "modules.json").is_file():
        if pooling is None:
            raise ConfigError(
                f"{folder} is a plain transformers model, which states no pooling; "
                "give one of: "
                f"{', '.join(get_args(Pooling))}"
            )
        return DenseLayout(folder, folder, (check_option("pooling", pooling, get_args(Pooling)),))
    if pooling is not None:
        raise ConfigError(f"{folder} states its own pooling; drop pooling={pooling!r}")
    modules = _read_modules(folder)
    chain = [name for name, _ in modules]
    if chain not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise ModelError(
            f"{folder} is {' > '.join(chain) or 'nothing'}; supported as a dense "
            "teacher: Transformer > "
            "Pooling, with or without Normalize"
        )
    transformer = modules[0][1]
    stated = _transformer_settings(transformer)
    pooled = _read_object(modules[1][1] / "config.json")
    settings = _read_object(folder / "config_sentence_transformers.json")
    return DenseLayout(
        folder,
        transformer,
        _pooling_modes(modules[1][1], pooled),
        normalize=len(modules) == 3,
        similarity=settings.get("similarity_fn_name") or "cosine",
        max_length=stated.get("max_seq_length"),
        lowercase=bool(stated.get("do_lower_case")),
        include_prompt=bool(pooled.get("include_prompt", True)),
        prompts=settings.get("prompts"),
    )


def _read_modules(folder: Path) -> list[tuple[str, Path]]:
    """Class name and folder of each module; code of the folder is refused."""
    listed = files.read_json(folder / "modules.json")
    if not isinstance(listed, list) or not all(isinstance(module, dict) for module in listed):
        raise ModelError(f"{folder / 'modules.json'} is no list of modules")
    found = []
    for module in listed:
        kind, path = str(module.get("type")), PurePosixPath(str(module.get("path", "")))
        if not kind.startswith("sentence_transformers."):
            raise ModelError(
                f"{folder}: module class {kind} is code of the model folder, which is never run"
            )
        if path.is_absolute() or ".." in path.parts:
            raise ModelError(f"{folder}: module path {str(path)!r} leaves the model folder")
        found.append((kind.rsplit(".", 1)[-1], folder / path))
    return found


def _transformer_settings(folder: Path) -> dict[str, Any]:
    """The settings of the Transformer module; those that would change vectors and are not carried
    out are refused.
    """
    path = folder / "sentence_bert_config.json"
    settings = _read_object(path)
    allowed = {"feature-extraction", "sequence-classification"}
    if settings.get("transformer_task", "feature-extraction") not in allowed:
        raise ModelError(
            f"{path}: transformer_task is {settings['transformer_task']!r}; "
            "supported: feature-extraction"
        )
    for key in (
        "processing_kwargs",
        "query_expansion",
        "processor_kwargs",
        "tokenizer_args",
        "config_kwargs",
        "config_args",
    ):
        if settings.get(key):
            raise ModelError(f"{path}: {key} is set ({settings[key]}), which is not supported")
    return settings


def _pooling_modes(folder: Path, config: Mapping[str, Any]) -> tuple[str, ...]:
    stated = config.get("pooling_mode")
    if stated is None:
        stated = [mode for key, mode in _LEGACY_POOLING.items() if config.get(key)] or ["mean"]
    modes = (stated,) if isinstance(stated, str) else tuple(stated)
    for mode in modes:
        if mode not in get_args(Pooling):
            raise ModelError(
                f"{folder / 'config.json'}: pooling_mode {mode!r} is unknown; known: "
                f"{', '.join(get_args(Pooling))}"
            )
    return modes


def check_prompts(layout: DenseLayout, prompts: Mapping[Role, str]) -> None:
    """Raise ``ModelError`` for prompts that the pooling would have to leave out."""
    if not layout.include_prompt and any(prompts.values()):
        raise ModelError(
            f"{layout.root}: its pooling leaves the prompt out (include_prompt), "
            "which is not supported "
            f"together with the prompts {dict(prompts)}"
        )


def check_cross_encoder(folder: Path) -> None:
    """Refuse what is no pair scorer with one label."""
    config = _read_object(folder / "config.json")
    labels = len(config["id2label"]) if "id2label" in config else config.get("num_labels", 2)
    architecture = (config.get("architectures") or ["nothing"])[0]
    if not architecture.endswith("ForSequenceClassification") or labels != 1:
        hint = (
            "; a T5 that answers true or false is of the kind monot5"
            if architecture.startswith("T5")
            else ""
        )
        raise ModelError(
            f"{folder} is {architecture} with {labels} labels; a cross-encoder "
            "teacher needs "
            f"...ForSequenceClassification with 1 label{hint}"
        )
    if (folder / "modules.json").is_file() and [name for name, _ in _read_modules(folder)] != [
        "Transformer"
    ]:
        raise ModelError(
            f"{folder / 'modules.json'} has modules after the Transformer, which is not supported"
        )
    settings = _read_object(folder / "config_sentence_transformers.json")
    if any((settings.get("prompts") or {}).values()):
        raise ModelError(f"{folder} puts prompts before its pairs, which is not supported")


def check_monot5(folder: Path) -> None:
    """Refuse what is no T5."""
    config = _read_object(folder / "config.json")
    architecture = (config.get("architectures") or ["nothing"])[0]
    if config.get("model_type") != "t5" or architecture != "T5ForConditionalGeneration":
        raise ModelError(
            f"{folder} is {architecture}; a monot5 teacher needs T5ForConditionalGeneration"
        )


def stated_length(folder: Path) -> int | None:
    """The length that a sentence-transformers folder states, special tokens included."""
    return _transformer_settings(folder).get("max_seq_length")


def _read_object(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    value = files.read_json(path)
    if not isinstance(value, dict):
        raise ModelError(f"{path}: the top level is no object")
    return value


def check_option(name: str, value: str, allowed: Sequence[str]) -> str:
    """``value`` again; raises ``ConfigError`` when it is not among ``allowed``."""
    if value not in allowed:
        raise ConfigError(f"{name} {value!r} is unknown; allowed: {', '.join(allowed)}")
    return value
