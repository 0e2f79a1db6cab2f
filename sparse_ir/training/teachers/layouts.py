"""How the folder of a dense encoder, cross-encoder or monoT5 states that it must be run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal, get_args

from sparse_ir.errors import ConfigError, ModelError
from sparse_ir.models.model_files import read_json, read_object

TextRole = Literal["query", "document"]
DensePooling = Literal["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"]
Similarity = Literal["cosine", "dot"]
# flags of older folders, in the order in which several poolings are concatenated
_POOLING_FLAGS: dict[str, DensePooling] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_PROMPT_NAMES: dict[TextRole, tuple[str, ...]] = {
    "query": ("query",),
    "document": ("document", "passage", "corpus"),
}
# settings of a Transformer module that change its outputs and are not supported
_UNSUPPORTED = (
    "processing_kwargs",
    "query_expansion",
    "processor_kwargs",
    "tokenizer_args",
    "config_kwargs",
    "config_args",
)


@dataclass(frozen=True)
class DenseLayout:
    """What the folder of a bi-encoder states."""

    transformer: Path  # folder of the network
    poolings: tuple[DensePooling, ...]
    normalize: bool = False
    similarity: str = "cosine"
    max_length: int | None = None
    lowercase: bool = False
    include_prompt: bool = True
    prompts: Mapping[str, str] | None = None

    def prompt(self, role: TextRole) -> str:
        """The text before a query or document: the first stated prompt that is not empty.

        As in sentence-transformers, ``default_prompt_name`` is ignored because the role is known.
        Unlike there, an empty ``document`` prompt, which every saved folder has, does not hide a
        stated ``passage`` or ``corpus`` prompt.
        """
        for name in _PROMPT_NAMES[role]:
            if self.prompts and self.prompts.get(name):
                return self.prompts[name]
        return ""


def read_dense_layout(folder: Path, pooling: str | None = None) -> DenseLayout:
    """What a bi-encoder's folder states.

    Args:
        folder: A folder of sentence-transformers, or a plain one of transformers.
        pooling: How to pool the states of a plain folder, which states no pooling.

    Raises:
        ModelError: The folder states something that is not supported.
        ConfigError: ``pooling`` is missing, unknown, or contradicts the folder.
    """
    if not (folder / "modules.json").is_file():
        if pooling is None:
            raise ConfigError(
                f"{folder} is a plain transformers model, which states no pooling; pooling must be "
                f"one of {', '.join(get_args(DensePooling))}"
            )
        check_option("pooling", pooling, get_args(DensePooling))
        return DenseLayout(folder, (pooling,))  # type: ignore[arg-type]
    if pooling is not None:
        raise ConfigError(f"{folder} states its own pooling; drop pooling={pooling!r}")
    modules = _read_modules(folder)
    chain = [name for name, _ in modules]
    if chain not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise ModelError(
            f"{folder} has the modules {' > '.join(chain) or 'none'}; a dense teacher must be "
            "Transformer > Pooling, with or without Normalize"
        )
    transformer = modules[0][1]
    stated = _read_transformer_settings(transformer)
    pooled = read_object(modules[1][1] / "config.json", required=False)
    settings = read_object(folder / "config_sentence_transformers.json", required=False)
    return DenseLayout(
        transformer,
        _read_poolings(modules[1][1] / "config.json", pooled),
        normalize=len(modules) == 3,
        similarity=settings.get("similarity_fn_name") or "cosine",
        max_length=stated.get("max_seq_length"),
        lowercase=bool(stated.get("do_lower_case")),
        include_prompt=bool(pooled.get("include_prompt", True)),
        prompts=settings.get("prompts"),
    )


def check_cross_encoder(folder: Path) -> int | None:
    """Refuse a folder that is not a pair scorer with one label; return the length it states."""
    config = read_object(folder / "config.json", required=False)
    labels = config.get("num_labels", 2)
    if "id2label" in config:
        labels = len(config["id2label"])
    architecture = _architecture(config)
    if not architecture.endswith("ForSequenceClassification") or labels != 1:
        hint = ""
        if architecture.startswith("T5"):
            hint = "; a T5 that answers true or false is a teacher of kind monot5"
        raise ModelError(
            f"{folder} is {architecture} with {labels} labels; a cross-encoder teacher must be "
            f"...ForSequenceClassification with 1 label{hint}"
        )
    if (folder / "modules.json").is_file():
        names = [name for name, _ in _read_modules(folder)]
        if names != ["Transformer"]:
            raise ModelError(
                f"{folder / 'modules.json'} has the modules {' > '.join(names)} but must have one "
                "Transformer"
            )
    settings = read_object(folder / "config_sentence_transformers.json", required=False)
    if any((settings.get("prompts") or {}).values()):
        raise ModelError(f"{folder} puts prompts before its pairs, which is not supported")
    length: int | None = _read_transformer_settings(folder).get("max_seq_length")
    return length


def check_monot5(folder: Path) -> None:
    """Refuse a folder that does not hold a T5."""
    config = read_object(folder / "config.json", required=False)
    architecture = _architecture(config)
    if config.get("model_type") != "t5" or architecture != "T5ForConditionalGeneration":
        raise ModelError(
            f"{folder} is {architecture}; a monot5 teacher must be T5ForConditionalGeneration"
        )


def check_option(name: str, value: str, known: Sequence[str]) -> None:
    """Raise ``ConfigError`` if ``value`` is not one of the known ones."""
    if value not in known:
        raise ConfigError(f"{name} is {value!r} but must be one of {', '.join(known)}")


def _architecture(config: Mapping[str, Any]) -> str:
    architectures = config.get("architectures") or ["a model without a stated architecture"]
    return str(architectures[0])


def _read_modules(folder: Path) -> list[tuple[str, Path]]:
    """Class name and folder of each module; code of the model folder is refused."""
    listed = read_json(folder / "modules.json")
    if not isinstance(listed, list) or not all(isinstance(module, dict) for module in listed):
        raise ModelError(f"{folder / 'modules.json'} must hold a list of modules")
    modules = []
    for module in listed:
        kind = str(module.get("type"))
        path = PurePosixPath(str(module.get("path", "")))
        if not kind.startswith("sentence_transformers."):
            raise ModelError(
                f"{folder}: module class {kind} is code of the model folder, which is never run"
            )
        if path.is_absolute() or ".." in path.parts:
            raise ModelError(f"{folder}: module path {str(path)!r} leaves the model folder")
        modules.append((kind.rsplit(".", 1)[-1], folder / path))
    return modules


def _read_transformer_settings(folder: Path) -> dict[str, Any]:
    """The settings of the Transformer module; unsupported ones are refused."""
    path = folder / "sentence_bert_config.json"
    settings = read_object(path, required=False)
    task = settings.get("transformer_task", "feature-extraction")
    if task not in ("feature-extraction", "sequence-classification"):
        raise ModelError(f"{path}: transformer_task is {task!r} but must be 'feature-extraction'")
    for key in _UNSUPPORTED:
        if settings.get(key):
            raise ModelError(f"{path}: {key} is set ({settings[key]}), which is not supported")
    return settings


def _read_poolings(path: Path, config: Mapping[str, Any]) -> tuple[DensePooling, ...]:
    stated: Any = config.get("pooling_mode")
    if stated is None:
        stated = [mode for flag, mode in _POOLING_FLAGS.items() if config.get(flag)] or ["mean"]
    if isinstance(stated, str):
        stated = [stated]
    for mode in stated:
        if mode not in get_args(DensePooling):
            raise ModelError(
                f"{path}: pooling_mode is {mode!r} but must be one of "
                f"{', '.join(get_args(DensePooling))}"
            )
    return tuple(stated)
