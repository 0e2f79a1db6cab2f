"""What lies in a model folder, told as plain data, and the layouts that this package writes.

Read: the SparseEncoder layout of sentence-transformers (symmetric, or a ``Router`` with its own query side; class
names of versions 5 and 6), a plain masked language model, as naver publishes, and a decoder or a peft adapter of one,
with ``sparse_ir.json`` beside it. Whatever is something else is refused with its reason. No weight is loaded here and
no code of a model folder is ever run. Next file to read: ``heads``.
"""

from __future__ import annotations

import contextlib
import copy
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal, get_args

import numpy as np

from sparse_ir import files
from sparse_ir.errors import ConfigError, DamagedError, ModelError

Pooling = Literal["max", "sum"]
Activation = Literal["relu", "log1p_relu"]
Mode = Literal["causal", "echo", "bidirectional"]
Layout = Literal["sparse-encoder", "router", "masked-lm", "causal-lm"]
ClassNames = Literal["6", "5"]

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
_CLASS_NAMES = {
    "6": {
        "Transformer": "sentence_transformers.base.modules.transformer.Transformer",
        "SpladePooling": "sentence_transformers.sparse_encoder.modules.splade_pooling.SpladePooling",
        "Static": "sentence_transformers.sparse_encoder.modules.sparse_static_embedding.SparseStaticEmbedding",
        "Router": "sentence_transformers.base.modules.router.Router",
    },
    "5": {
        "Transformer": "sentence_transformers.sparse_encoder.models.MLMTransformer",
        "SpladePooling": "sentence_transformers.sparse_encoder.models.SpladePooling",
        "Static": "sentence_transformers.sparse_encoder.models.SparseStaticEmbedding",
        "Router": "sentence_transformers.models.Router",
    },
}
_HARMLESS_MODEL_OPTIONS = {"dtype", "torch_dtype", "attn_implementation", "trust_remote_code"}
_TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.txt",
    "vocab.json", "merges.txt", "sentencepiece.bpe.model", "spiece.model", "tokenizer.model",
)
_SMALL_FILES = ("*.json", "*.txt", "*.model")
_ALL_LOGITS = {"text": {"logits_to_keep": 0}}
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
_DECODER_FILE = "sparse_ir.json"
_DECODER_FORMAT = 1
_ADAPTER_FILE = "adapter_config.json"
_TEXT = "{text}"


@dataclass(frozen=True)
class DecoderSettings:
    """How a decoder reads a text and what becomes of its logits; ``sparse_ir.json`` beside the weights.

    * ``mode``: ``"causal"``; ``"echo"``, the text twice, of which only the second copy is pooled, so that every token
      has seen the whole text; ``"bidirectional"``, the causal mask taken away.
    * ``document_template``, ``query_template``: what is read, with ``{text}`` once, under echo twice; None: ``{text}``,
      under echo ``Document: {text}\\nDocument again: {text}`` (``Query:`` for queries). A prompt goes before it.
    * ``pooled``: ``"text"`` leaves prompt, template and special tokens out of the pooling; ``"all"`` does not.
    * ``bos``: put around the text what the tokenizer puts there (BOS for Llama, Mistral, Gemma, OPT). Off by default:
      as an attention sink BOS has large logits for the same tokens in every text, and the maximum takes them; pooled,
      it makes all vectors alike (SciFact nDCG@10 .02 instead of .65 for LACONIC-1B).
    * ``pooling``, ``activation``: as for ``NeuralSide``. A logit ``x`` becomes ``x * logit_scale - logit_shift``
      before them; ``"hidden^-1/4"`` stands for hidden_size ** -0.25 (Lion-SP, arXiv 2502.15526).
    * ``centered``: of each token's logits their mean over the vocabulary is taken off first. A language model leaves
      that mean to chance (softmax does not see it), but the maximum over tokens, and one shift for all texts, compare
      it; and all logits sinking together is the shortest way to a dead ReLU.
    * ``temperature``: what training divides scores by. Vectors do not depend on it.
    * ``top_k``: at most so many terms per text. ``max_length``: tokens read, everything counted (both copies, too).
    * ``fold_tokens``: tokens that differ only in case and outer white space are one term, with the largest weight.

    Raises ``ConfigError`` for a value that is not allowed.
    """

    mode: Mode = "causal"
    document_template: str | None = None
    query_template: str | None = None
    document_prompt: str = ""
    query_prompt: str = ""
    pooled: Literal["text", "all"] = "text"
    bos: bool = False
    pooling: Pooling = "max"
    activation: Activation = "relu"
    logit_scale: float | Literal["hidden^-1/4"] = 1.0
    logit_shift: float = 0.0
    centered: bool = False
    temperature: float = 1.0
    top_k: int | None = None
    max_length: int = 512
    fold_tokens: bool = False

    def __post_init__(self) -> None:
        for name, allowed in _DECODER_CHOICES.items():
            _check_choice(name, getattr(self, name), allowed)
        for name, (allowed_text, is_allowed) in _DECODER_RULES.items():
            if not is_allowed(value := getattr(self, name)):
                raise ConfigError(f"{name} is {value!r}; allowed: {allowed_text}")
        copies = 2 if self.mode == "echo" else 1
        for name in ("document_template", "query_template"):
            if (template := getattr(self, name)) is not None and template.count(_TEXT) != copies:
                raise ConfigError(f"{name} is {template!r}; in mode {self.mode!r} it must hold {_TEXT} "
                                  f"{'twice' if copies == 2 else 'once'}")
        if self.mode == "echo" and self.pooled != "text":
            raise ConfigError("mode 'echo' pools the second copy of the text only; pooled must be 'text'")

    def template(self, task: str) -> str:
        """The template of ``"document"`` or ``"query"``."""
        stated = getattr(self, f"{task}_template")
        if stated is not None:
            return str(stated)
        name = task.capitalize()
        return f"{name}: {_TEXT}\n{name} again: {_TEXT}" if self.mode == "echo" else _TEXT


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


_DECODER_CHOICES: dict[str, tuple[str, ...]] = {
    "mode": get_args(Mode), "pooled": ("text", "all"), "pooling": get_args(Pooling), "activation": get_args(Activation)
}
_DECODER_RULES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "document_template": ("a text or None", lambda value: value is None or isinstance(value, str)),
    "query_template": ("a text or None", lambda value: value is None or isinstance(value, str)),
    "document_prompt": ("a text", lambda value: isinstance(value, str)),
    "query_prompt": ("a text", lambda value: isinstance(value, str)),
    "bos": ("true or false", lambda value: isinstance(value, bool)),
    "logit_scale": ("a number above 0, or 'hidden^-1/4'",
                    lambda value: value == "hidden^-1/4" or (_is_number(value) and value > 0)),
    "logit_shift": ("a number", _is_number),
    "centered": ("true or false", lambda value: isinstance(value, bool)),
    "temperature": ("a number above 0", lambda value: _is_number(value) and value > 0),
    "top_k": ("1 or more, or None", lambda value: value is None or _is_count(value)),
    "max_length": ("1 or more", _is_count),
    "fold_tokens": ("true or false", lambda value: isinstance(value, bool)),
}


@dataclass(frozen=True)
class NeuralSide:
    """A language model with SPLADE pooling; ``max_length`` is what the layout states, ``None`` if nothing.

    ``decoder`` is None for a masked language model. ``adapter`` is the folder of a peft adapter to the network in
    ``folder``.
    """

    folder: Path
    pooling: Pooling = "max"
    activation: Activation = "relu"
    max_length: int | None = None
    lowercase: bool = False
    decoder: DecoderSettings | None = None
    template: str = _TEXT
    adapter: Path | None = None

    @property
    def tokenizer_folder(self) -> Path:
        """An adapter may bring its own tokenizer."""
        own = self.adapter is not None and (self.adapter / "tokenizer_config.json").is_file()
        return self.adapter if own and self.adapter is not None else self.folder


@dataclass(frozen=True)
class StaticSide:
    """One weight per token: a tensor file (``weight``, ``[V]``) or an ``idf.json``; the tokenizer is in ``folder``."""

    folder: Path
    weights_path: Path


@dataclass(frozen=True)
class Checkpoint:
    """A model folder, understood. ``revision`` is the hub's commit, ``None`` for a folder of the user."""

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
    model: str | Path, *, revision: str | None = None, allow_pickle: bool = False,
    decoder: DecoderSettings | None = None,
) -> Checkpoint:
    """The description of a local folder or of a hub model (downloaded once, its commit recorded).

    ``decoder``: how a decoder is read, in the place of what its folder says; prompts and top_k that it leaves unsaid
    are those of a ``config_sentence_transformers.json`` beside a ``modules.json``.
    Raises ``ModelError`` when there is no such model, no network, or a layout that is no learned-sparse encoder.
    """
    folder, commit = _resolve(model, revision, allow_pickle)
    name = str(model) if commit is not None else folder.name
    return read_layout(folder, name=name, revision=commit, decoder=decoder, allow_pickle=allow_pickle)


def read_layout(
    folder: Path, *, name: str | None = None, revision: str | None = None, decoder: DecoderSettings | None = None,
    allow_pickle: bool = False,
) -> Checkpoint:
    """Describe a local model folder; raises ``ModelError`` with the reason when it cannot be used."""
    name = name or folder.name
    idf_path = folder / "idf.json" if (folder / "idf.json").is_file() else None
    settings_here = read_decoder_settings(folder) if decoder is None else _fill_in(folder, decoder)
    if settings_here is not None or (folder / _ADAPTER_FILE).is_file():
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
        raise ModelError(f"{folder}: the document side is a table of token weights; a masked language model is needed")
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
    """Settings that a user gives, with what the layout of sentence-transformers says where they say nothing."""
    if not (folder / "modules.json").is_file():
        return decoder
    reading = read_object(folder / _first_path(folder) / "sentence_bert_config.json", required=False)
    if is_sparse_encoder(folder) and reading.get("transformer_task") != "text-generation":
        raise ModelError(f"{folder} is no decoder but a sparse encoder as its modules.json says; drop decoder=... "
                         "(--decoder)")
    stated = read_object(folder / "config_sentence_transformers.json", required=False)
    prompts = stated.get("prompts") or {}
    return replace(
        decoder, document_prompt=decoder.document_prompt or prompts.get("document") or "",
        query_prompt=decoder.query_prompt or prompts.get("query") or "",
        top_k=decoder.top_k or stated.get("max_active_dims"),
    )


def _first_path(folder: Path) -> str:
    """Where the first module of a ``modules.json`` lies, relative to the folder."""
    listed = _read_json(folder / "modules.json")
    if not (isinstance(listed, list) and listed and isinstance(listed[0], dict)):
        raise ModelError(f"{folder / 'modules.json'} is no list of modules")
    return str(_relative(folder, str(listed[0].get("path", ""))))


def find_folder(
    model: str | Path, revision: str | None = None, *, allow_pickle: bool = False
) -> tuple[Path, str | None]:
    """Where the network of any model lies, dense ones included, and the hub's commit (None for a local folder).

    In the layout of sentence-transformers the network may have a folder of its own.
    """
    folder, commit = _resolve(model, revision, allow_pickle)
    if not is_sparse_encoder(folder) and (folder / "modules.json").is_file():
        folder = folder / _first_path(folder)
    return folder, commit


def is_sparse_encoder(folder: Path) -> bool:
    """Whether a folder has the layout of a SparseEncoder."""
    path = folder / "modules.json"
    return path.is_file() and any("SpladePooling" in str(module) or "Router" in str(module)
                                  for module in _read_json(path))


def weight_files(folder: Path, *, allow_pickle: bool = False) -> list[Path]:
    """The files that hold the weights: safetensors, or with ``allow_pickle`` an older ``pytorch_model.bin``.

    Raises ``ModelError`` when there are none, or only pickled ones and they are not allowed, or one was cut short.
    """
    found = sorted(folder.glob("model*.safetensors")) or sorted(folder.glob("adapter_model*.safetensors"))
    if found:
        for path in found:
            _check_whole(path)
        return found
    pickled = sorted(folder.glob("pytorch_model*.bin")) or sorted(folder.glob("adapter_model*.bin"))
    if not pickled:
        raise ModelError(f"{folder} holds no weights; expected: model.safetensors (or pytorch_model.bin)")
    if not allow_pickle:
        raise ModelError(
            f"{folder} holds its weights only as {pickled[0].name}, a pickle; with allow_pickle=True it is read "
            "through torch's weights_only loader, or convert it to safetensors first"
        )
    return pickled


def _check_whole(path: Path) -> None:
    """The head of a safetensors file says how long it must be: a broken download is known before anything is read."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy"):
            pass
    except SafetensorError as error:
        raise ModelError(f"{path} is damaged ({error}); fetch or copy it again") from error


def files_hash(folder: Path, *, allow_pickle: bool = False) -> str:
    """SHA-256 over configuration, tokenizer and weight files of one transformer folder: the same for equal models."""
    names = ("config.json", "sentence_bert_config.json", _ADAPTER_FILE, *_TOKENIZER_FILES)
    used = [folder / name for name in names if (folder / name).is_file()]
    used += weight_files(folder, allow_pickle=allow_pickle)
    return files.sha256_of_json({path.name: files.sha256_of_file(path) for path in used})


def side_hash(side: NeuralSide, *, allow_pickle: bool = False) -> str:
    """``files_hash`` of a side's network; with an adapter, one hash over both folders."""
    base = files_hash(side.folder, allow_pickle=allow_pickle)
    if side.adapter is None:
        return base
    return files.sha256_of_json([base, files_hash(side.adapter, allow_pickle=allow_pickle)])


def weights_hash(folder: Path, *, allow_pickle: bool = False) -> str:
    """SHA-256 over the weight files alone, by which an adapter knows its base model."""
    found = weight_files(folder, allow_pickle=allow_pickle)
    return files.sha256_of_json({path.name: files.sha256_of_file(path) for path in found})


def read_decoder_settings(folder: Path) -> DecoderSettings | None:
    """What ``sparse_ir.json`` says; None where there is none. Raises ``ModelError`` for another format or key."""
    path = folder / _DECODER_FILE
    return read_decoder_file(path) if path.is_file() else None


def read_decoder_file(path: Path) -> DecoderSettings:
    """The settings in a file like ``sparse_ir.json``, wherever it lies. Raises ``ModelError``."""
    record = read_object(path, required=True)
    if record.get("format") != _DECODER_FORMAT:
        raise ModelError(f"{path}: format is {record.get('format')!r}; this version reads {_DECODER_FORMAT}")
    known = [item.name for item in fields(DecoderSettings)]
    if unknown := sorted(set(record) - {"format", "base_sha256", *known}):
        raise ModelError(f"{path}: {', '.join(unknown)} is unknown; known: {', '.join(known)}")
    try:
        return DecoderSettings(**{name: record[name] for name in known if name in record})
    except ConfigError as error:
        raise ModelError(f"{path}: {error}") from error


def write_decoder_settings(folder: Path, settings: DecoderSettings, *, base_sha256: str | None = None) -> None:
    """Write ``sparse_ir.json``. ``base_sha256``: the ``weights_hash`` of the base model, for an adapter."""
    base = {} if base_sha256 is None else {"base_sha256": base_sha256}
    files.write_json(folder / _DECODER_FILE, {"format": _DECODER_FORMAT, **asdict(settings), **base})


def read_static_weights(side: StaticSide, *, allow_pickle: bool = False) -> np.ndarray:
    """The learned token weights of a ``SparseStaticEmbedding``: float32 ``[V]``; raises ``ModelError``."""
    path = side.weights_path
    try:
        tensors = _read_tensors(path, allow_pickle)
        weights = np.asarray(tensors["weight"], dtype=np.float32)
    except (OSError, KeyError, ValueError, RuntimeError) as error:
        raise ModelError(f'{path}: no tensor "weight" with one value per token can be read ({error})') from error
    if weights.ndim != 1:
        raise ModelError(f'{path}: tensor "weight" has the shape {weights.shape}; allowed: one dimension')
    return weights


def write_masked_lm(folder: Path, network: Any, tokenizer: Any, *, max_length: int | None = None) -> None:
    """Write the plain layout: network and tokenizer, nothing else. ``folder`` appears whole, or stays as it was."""
    with _new_folder(folder) as target:
        network.save_pretrained(target)
        _save_tokenizer(tokenizer, target, max_length)


def write_causal_lm(folder: Path, network: Any, tokenizer: Any, settings: DecoderSettings, dtype: Any = None) -> None:
    """Write a decoder, its tokenizer and ``sparse_ir.json``. ``folder`` appears whole, or stays as it was.

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
    """Write the SparseEncoder layout that sentence-transformers opens; ``folder`` appears whole, or stays as it was.

    ``network`` and ``tokenizer`` are those of transformers. With ``query_weights`` (float32 ``[V]``) it becomes a
    ``Router`` with a ``SparseStaticEmbedding`` for queries, and an ``idf.json`` beside it. ``class_names`` "6" is read
    by sentence-transformers 5.4 and later, "5" by all versions from 5.0. ``dtype``: a torch type in which the network's
    weights are stored; loading gives float32 again. float16 halves the files, float8_e4m3fn is float16 with a byte per
    number of the matrices that have a row per token.
    """
    if dtype is not None and dtype != network.dtype:
        network = _rounded(network, dtype)
    _check_choice("pooling", pooling, get_args(Pooling))
    _check_choice("activation", activation, get_args(Activation))
    _check_choice("class_names", class_names, get_args(ClassNames))
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
            _write_router(target, network, tokenizer, max_length, pooling_config, query_weights, class_names)
            modules = [("", names["Router"])]
        files.write_json(
            target / "modules.json",
            [{"idx": i, "name": str(i), "path": path, "type": name} for i, (path, name) in enumerate(modules)],
        )


def _rounded(network: Any, dtype: Any) -> Any:
    """A copy in ``dtype``; float8 (4 bits of exponent, 3 of mantissa) is for matrices with a row per token only."""
    import torch

    if dtype != torch.float8_e4m3fn:
        return copy.deepcopy(network).to(dtype)
    found = copy.deepcopy(network).to(torch.float16)
    rows = network.get_input_embeddings().weight.shape[0]
    for parameter in found.parameters():
        if parameter.ndim == 2 and parameter.shape[0] == rows:
            parameter.data = parameter.data.to(dtype)
    return found


def _resolve(model: str | Path, revision: str | None, allow_pickle: bool) -> tuple[Path, str | None]:
    folder = Path(model).expanduser()
    if folder.is_dir():
        if revision is not None:
            raise ConfigError(f"revision={revision!r} belongs to a hub model, and {model} is a local folder; drop it")
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
            name, revision=revision, allow_patterns=patterns, ignore_patterns=["onnx/*", "openvino/*"]
        )
    except errors.LocalEntryNotFoundError as error:
        raise ModelError(
            f"{name}{at} is not in the local cache and the hub cannot be reached; connect once, or give the path of "
            "a folder that holds the model"
        ) from error
    except (errors.HfHubHTTPError, errors.HFValidationError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelError(f"{name}{at} cannot be fetched from the hub ({reason}); check name, revision and access") \
            from error
    return Path(path), Path(path).name  # the cache names a snapshot's folder by its commit


def _read_masked_lm(folder: Path, name: str, revision: str | None, idf_path: Path | None) -> Checkpoint:
    config = read_object(folder / "config.json", required=True)
    if not config.get("model_type"):
        raise ModelError(f"{folder / 'config.json'} names no model_type, so this is no transformers model")
    side = NeuralSide(folder)
    query = side if idf_path is None else StaticSide(folder, idf_path)
    return Checkpoint(name, folder, revision, "masked-lm", document=side, query=query, idf_path=idf_path)


def _read_decoder(
    folder: Path, name: str, revision: str | None, settings: DecoderSettings | None, allow_pickle: bool,
    idf_path: Path | None,
) -> Checkpoint:
    """A decoder, or an adapter with its base model, which is looked for beside it, here, and on the hub."""
    if settings is None:
        raise ModelError(f"{folder} is an adapter, and nothing says how its decoder reads a text (causal, echo, "
                         f"bidirectional ...); give decoder=..., or put {_DECODER_FILE} beside {_ADAPTER_FILE}")
    place = folder / _first_path(folder) if (folder / "modules.json").is_file() else folder
    adapter = place if (place / _ADAPTER_FILE).is_file() else None
    base = place if adapter is None else _base_of(place, allow_pickle)
    config = read_object(base / "config.json", required=True)
    if not config.get("model_type"):
        raise ModelError(f"{base / 'config.json'} names no model_type, so this is no transformers model")
    document, query = (
        NeuralSide(base, settings.pooling, settings.activation, settings.max_length, decoder=settings,
                   template=settings.template(task), adapter=adapter) for task in ("document", "query"))
    prompts = {"document": settings.document_prompt, "query": settings.query_prompt}
    return Checkpoint(
        name, folder, revision, "causal-lm", document=document,
        query=query if idf_path is None else StaticSide(document.tokenizer_folder, idf_path),
        document_prompt=prompts["document"], query_prompt=prompts["query"], top_k=settings.top_k, idf_path=idf_path,
        prompts=prompts,
    )


def _base_of(folder: Path, allow_pickle: bool) -> Path:
    """The folder of the base model that an adapter names; raises ``ModelError`` when it is another than it should."""
    path = folder / _ADAPTER_FILE
    config = read_object(path, required=True)
    stated = config.get("base_model_name_or_path")
    if not isinstance(stated, str) or not stated:
        raise ModelError(f"{path} names no base_model_name_or_path, the model that the adapter belongs to")
    place = next((str(found) for found in (folder / stated, Path(stated)) if found.is_dir()), stated)
    revision = None if Path(place).is_dir() else config.get("revision")
    try:
        base, _ = _resolve(place, revision, allow_pickle)
    except ModelError as error:
        raise ModelError(f"{path}: the base model cannot be had ({error}); set base_model_name_or_path to its place") \
            from error
    wanted = read_object(folder / _DECODER_FILE, required=False).get("base_sha256")
    if wanted is not None and wanted != weights_hash(base, allow_pickle=allow_pickle):
        raise ModelError(f"{folder} was trained on other weights than those in {base}; give the base model of its "
                         f"training, or drop base_sha256 from {_DECODER_FILE} if that is what you want")
    return base


def _read_modules(folder: Path) -> list[tuple[str, str, Path]]:
    """(role, class name, folder) of each top-level module."""
    listed = _read_json(folder / "modules.json")
    if not isinstance(listed, list) or not all(isinstance(module, dict) for module in listed):
        raise ModelError(f"{folder / 'modules.json'} is no list of modules")
    return [_module(folder, str(module.get("type")), str(module.get("path", ""))) for module in listed]


def _module(folder: Path, type_name: str, path: str) -> tuple[str, str, Path]:
    class_name = type_name.rsplit(".", 1)[-1]
    if not type_name.startswith("sentence_transformers."):
        raise ModelError(f"{folder}: module class {type_name} is code of the model folder, which is never run")
    if class_name in _REFUSED:
        raise ModelError(f"{folder}: module class {class_name} makes this {_REFUSED[class_name]}; expected: a masked "
                         f"language model with SpladePooling, or a decoder with {_DECODER_FILE} or decoder=...")
    if class_name not in _ROLES:
        raise ModelError(f"{folder}: module class {class_name} is unknown; known: {', '.join(_ROLES)}")
    return _ROLES[class_name], class_name, folder / _relative(folder, path)


def _relative(folder: Path, path: str) -> PurePosixPath:
    relative = PurePosixPath(path)
    if relative.is_absolute() or ".." in relative.parts:
        raise ModelError(f"{folder}: module path {path!r} leaves the model folder")
    return relative


def _route(folder: Path, modules: list[tuple[str, str, Path]], task: str) -> list[tuple[str, str, Path]]:
    """The modules that a text of the task passes: those of its route, then those after the router."""
    root = modules[0][2]
    config = read_object(root / "router_config.json", required=False)
    config = config or read_object(root / "config.json", required=True)
    structure, types, parameters = config.get("structure"), config.get("types"), config.get("parameters") or {}
    if not isinstance(structure, dict) or not isinstance(types, dict):
        raise ModelError(f"{root}: the router's configuration lacks structure or types")
    if parameters.get("route_mappings"):
        raise ModelError(f"{root}: the router uses route_mappings; supported: routes named query and document")
    if task not in structure:
        raise ModelError(f"{root}: the router has no route {task!r} (routes: {', '.join(structure)})")
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
    raise ModelError(f"{folder}: the {task} side is {chain}; supported: a masked language model followed by "
                     "SpladePooling, or SparseStaticEmbedding alone")


def _neural_side(class_name: str, folder: Path, pooling_folder: Path, task: str) -> NeuralSide:
    config = read_object(folder / "sentence_bert_config.json", required=False)
    _check_transformer_config(class_name, folder, config)
    pooling = read_object(pooling_folder / "config.json", required=True)
    strategy, activation = pooling.get("pooling_strategy", "max"), pooling.get("activation_function", "relu")
    for key, value, allowed in (("pooling_strategy", strategy, get_args(Pooling)),
                                ("activation_function", activation, get_args(Activation))):
        if value not in allowed:
            raise ModelError(f"{pooling_folder / 'config.json'}: {key} is {value!r}; allowed: {', '.join(allowed)}")
    max_length = config.get(f"{task}_length") or config.get("max_seq_length")
    lowercase, decoder = bool(config.get("do_lower_case", False)), None
    if config.get("transformer_task") == "text-generation":  # that library pools whatever its tokenizer gives
        bos = config["processing_kwargs"]["text"].get("add_special_tokens", True)
        decoder = DecoderSettings(pooled="all", bos=bos, pooling=strategy, activation=activation)
    return NeuralSide(folder, strategy, activation, max_length, lowercase, decoder)


def _check_transformer_config(class_name: str, folder: Path, config: Mapping[str, Any]) -> None:
    """Refuse settings that would change the vectors and are not carried out here."""
    path = folder / "sentence_bert_config.json"
    task = config.get("transformer_task", "fill-mask" if class_name == "MLMTransformer" else "feature-extraction")
    decoder = task == "text-generation" and config.get("module_output_name") == "token_embeddings"
    if task != "fill-mask" and not decoder:
        raise ModelError(f"{path}: transformer_task is {task!r}, not 'fill-mask' (or 'text-generation' with the output "
                         "token_embeddings), so there are no token weights")
    text = {"method": "forward", "method_output_name": "logits"}
    if config.get("modality_config", {"text": text}).get("text") != text or "message" in config.get(
        "modality_config", {}
    ):
        raise ModelError(f"{path}: modality_config is not the plain reading of text; supported: forward > logits")
    if decoder:
        _check_reading_of_decoder(path, config.get("processing_kwargs") or {})
    for key in (*(() if decoder else ("processing_kwargs",)), "query_expansion", "processor_kwargs", "tokenizer_args",
                "config_kwargs", "config_args"):
        if {name: value for name, value in (config.get(key) or {}).items() if name != "trust_remote_code"}:
            raise ModelError(f"{path}: {key} is set ({config[key]}), which is not supported")
    for key in ("model_kwargs", "model_args"):
        if unknown := set(config.get(key) or {}) - _HARMLESS_MODEL_OPTIONS:
            raise ModelError(f"{path}: {key} sets {', '.join(sorted(unknown))}, which is not supported")


def _check_reading_of_decoder(path: Path, options: Mapping[str, Any]) -> None:
    text = options.get("text") or {}
    if not isinstance(text, dict) or text.get("logits_to_keep", 1) != 0:
        raise ModelError(f"{path}: without processing_kwargs {_ALL_LOGITS} the decoder pools the last token only, "
                         "which is not supported")
    strange = (set(options) - {"text"}) | (set(text) - {"logits_to_keep", "add_special_tokens"})
    if strange or not isinstance(text.get("add_special_tokens", True), bool):
        raise ModelError(f"{path}: processing_kwargs is {options}; supported for a decoder: logits_to_keep 0 and "
                         "add_special_tokens (true or false) of text")


def _static_side(root: Path, folder: Path) -> StaticSide:
    config = read_object(folder / "config.json", required=False)
    if (stated := config.get("path")) is not None:
        path = next((base / Path(stated).name for base in (folder, root) if (base / Path(stated).name).is_file()), None)
        if path is None:
            raise ModelError(f"{folder / 'config.json'}: the weights are in {stated!r}, which is not in the folder")
        return StaticSide(folder, path)
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).is_file():
            return StaticSide(folder, folder / name)
    raise ModelError(f"{folder} holds no token weights; expected: model.safetensors")


def _read_tensors(path: Path, allow_pickle: bool) -> Mapping[str, Any]:
    if path.suffix == ".safetensors":
        from safetensors.numpy import load_file

        _check_whole(path)
        return load_file(path)
    if not allow_pickle:
        raise ModelError(f"{path} is a pickle; with allow_pickle=True it is read through torch's weights_only loader")
    import torch

    tensors = torch.load(path, weights_only=True, map_location="cpu")
    return {key: value.float().numpy() for key, value in tensors.items()}


def _read_json(path: Path) -> Any:
    try:
        return files.read_json(path)
    except DamagedError as error:
        raise ModelError(str(error)) from error


def read_object(path: Path, *, required: bool) -> dict[str, Any]:
    """The JSON object in a file; ``{}`` without the file where it is not required. Raises ``ModelError``."""
    if not required and not path.is_file():
        return {}
    value = _read_json(path)
    if not isinstance(value, dict):
        raise ModelError(f"{path}: the top level is no object")
    return value


def _check_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigError(f"{name} {value!r} is unknown; allowed: {', '.join(allowed)}")


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
        # the version whose layout this is; the reader warns only when it is older than the number here
        "__version__": {
            "pytorch": str(torch.__version__), "sentence_transformers": "5.0.0",
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
    settings = files.read_json(folder / "config.json")  # however few bits are stored, readers compute in float32
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
    query, document = "query_0_SparseStaticEmbedding", "document_0_" + names["Transformer"].rsplit(".", 1)[-1]
    _write_transformer(target / document, network, tokenizer, max_length, class_names)
    files.write_json(target / "document_1_SpladePooling" / "config.json", pooling_config)
    files.write_json(target / query / "config.json", {"frozen": True})
    # sentence-transformers wants exactly one weight per token, also where the network's head is wider
    weights = np.ascontiguousarray(query_weights[: len(tokenizer.get_vocab())], dtype=np.float32)
    save_file({"weight": weights}, target / query / "model.safetensors")
    _save_tokenizer(tokenizer, target / query, max_length)
    tokens = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    files.write_json(target / "idf.json", {token: float(str(weights[token_id])) for token, token_id in tokens})
    files.write_json(
        target / "router_config.json",
        {
            "types": {query: names["Static"], document: names["Transformer"],
                      "document_1_SpladePooling": names["SpladePooling"]},
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
