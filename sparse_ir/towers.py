"""Networks that teach: how their folders say they are to be run, and running them on texts or pairs of texts.

A bi-encoder's folder is one of sentence-transformers (Transformer, Pooling, perhaps Normalize) or a plain one of
transformers; a cross-encoder's is a sequence classifier with one label, monoT5's a T5. What would change a score and is
not carried out here is refused. Networks are loaded when first run. B texts of a batch, L tokens, H hidden width.
Next file to read: ``bm25``.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from sparse_ir import checkpoint as layouts
from sparse_ir import files, queries
from sparse_ir.errors import ConfigError, ModelError

if TYPE_CHECKING:
    from torch import Tensor

Role = Literal["query", "document"]
Dtype = Literal["float32", "bfloat16"]
Pooling = Literal["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"]
Similarity = Literal["cosine", "dot"]

_LEGACY_POOLING = {
    "pooling_mode_cls_token": "cls", "pooling_mode_max_tokens": "max", "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens", "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}  # in the order in which several are put side by side
_PROMPT_NAMES: dict[Role, tuple[str, ...]] = {"query": ("query",), "document": ("document", "passage", "corpus")}
_POSITIONS_AFTER_PADDING = {"camembert", "data2vec-text", "longformer", "mpnet", "roberta", "xlm-roberta"}
_T5_LENGTH = 512
_TOKENS_PER_BATCH = {"cpu": 4096, "cuda": 32768}


class Network:
    """A transformers model and its tokenizer, described at once and loaded when it is first run."""

    def __init__(
        self, *, folder: Path, classes: str, dtype: str, device: str, max_length: int | None,
        stated_length: int | None, lowercase: bool, tokens_per_batch: int | None, allow_pickle: bool,
    ) -> None:
        from sparse_ir import networks

        config = files.read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
        if not config.get("model_type"):
            raise ModelError(f"{folder} holds no config.json that names a model_type: no transformers model")
        self._folder, self._classes, self._allow_pickle = folder, classes, allow_pickle
        self._dtype, self._device = check_option("dtype", dtype, get_args(Dtype)), device
        if tokens_per_batch is not None and tokens_per_batch < 1:
            raise ConfigError(f"tokens_per_batch is {tokens_per_batch}; allowed: 1 or more")
        self._tokens_per_batch = tokens_per_batch or _TOKENS_PER_BATCH["cpu" if device == "cpu" else "cuda"]
        self._owner = networks.load_owner(folder)
        limit = _max_length(config, stated_length or networks.stated_length(self._owner), max_length)
        self._tokenizer = networks.cut_at(networks.rules_of(self._owner, lowercase), limit)
        self.hidden_size = int(config.get("hidden_size") or config.get("dim") or config.get("d_model") or 0)
        self.provenance: dict[str, Any] = {
            "files_sha256": layouts.files_hash(folder, allow_pickle=allow_pickle),
            "tokenizer_sha256": queries.tokenizer_hash(self._tokenizer), "max_length": limit, "dtype": dtype,
        }

    def run(self, items: Sequence[Any]) -> Iterator[tuple[list[int], Tensor, np.ndarray]]:
        """Positions, the model's first output and lengths in tokens, a batch at a time, the longest first.

        ``items`` are texts or pairs of texts. An item without any token is given one padding token.
        """
        import torch

        padding = self._owner.pad_token_id or 0
        ids, types = self._encode(items, padding)
        lengths = np.array([len(row) for row in ids], dtype=np.int64)
        for positions in _batches(lengths, self._tokens_per_batch):
            batch = lengths[positions]
            inputs = {"input_ids": _pad([ids[p] for p in positions], padding),
                      "attention_mask": (np.arange(batch.max()) < batch[:, None]).astype(np.int64)}
            if "token_type_ids" in self._owner.model_input_names:
                inputs["token_type_ids"] = _pad([types[p] for p in positions], 0)
            with torch.inference_mode():
                output = self._call({key: torch.from_numpy(value).to(self._device) for key, value in inputs.items()})
            yield positions, output, batch

    def _encode(self, items: Sequence[Any], padding: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Token ids and token types of each item."""
        found = self._tokenizer.encode_batch(list(items), add_special_tokens=True)
        return ([np.array(encoding.ids or [padding], dtype=np.int64) for encoding in found],
                [np.array(encoding.type_ids or [0], dtype=np.int64) for encoding in found])

    def _call(self, inputs: dict[str, Tensor]) -> Tensor:
        return self.model(**inputs)[0]

    @functools.cached_property
    def model(self) -> Any:
        """The network, in evaluation mode on its device."""
        import torch
        import transformers

        from sparse_ir import networks

        found = layouts.weight_files(self._folder, allow_pickle=self._allow_pickle)
        try:
            model, report = getattr(transformers, self._classes).from_pretrained(
                self._folder, dtype=getattr(torch, self._dtype), trust_remote_code=False, output_loading_info=True,
                use_safetensors=found[0].suffix == ".safetensors",
            )
        except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
            raise ModelError(f"{self._folder} cannot be loaded by {self._classes} ({networks.first_line(error)})") \
                from error
        # AutoModel adds a pooler whose output is not used here
        spare = "pooler." if self._classes == "AutoModel" else "\0"
        if missing := sorted(key for key in report["missing_keys"] if not key.startswith(spare)):
            raise ModelError(f"{self._folder} lacks weights ({', '.join(missing[:4])}); random ones would take their "
                             "place")
        return model.eval().requires_grad_(False).to(self._device)


class MonoT5(Network):
    """A T5 that answers "true" or "false" to ``Query: q Document: d Relevant:`` (Nogueira et al. 2020, 2003.06713).

    Its first output is ``[B, 1]``: the logarithm of the probability of "true" against "false" as the first word. Where
    a pair is too long, its document is cut, never the question at its end.
    """

    def __init__(self, **options: Any) -> None:
        from sparse_ir import networks

        super().__init__(classes="AutoModelForSeq2SeqLM", stated_length=_T5_LENGTH, lowercase=False, **options)
        self._end = np.array(self._tokenizer.encode("Relevant:").ids, dtype=np.int64)
        limit = self.provenance["max_length"]
        if limit <= len(self._end):
            raise ConfigError(f"max_length is {limit}; allowed: more than {len(self._end)}")
        self._begin = networks.cut_at(self._tokenizer, limit - len(self._end))
        self._answers = [self._tokenizer.token_to_id(word) for word in ("\u2581true", "\u2581false")]
        if None in self._answers:
            raise ModelError(f"{self._folder}: its vocabulary has no tokens for 'true' and 'false', monoT5's answers")

    def _encode(self, items: Sequence[Any], padding: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
        texts = [f"Query: {query.strip()} Document: {document.strip()}" for query, document in items]
        found = self._begin.encode_batch(texts, add_special_tokens=False)
        ids = [np.concatenate([np.array(encoding.ids, dtype=np.int64), self._end]) for encoding in found]
        return ids, [np.zeros_like(row) for row in ids]

    def _call(self, inputs: dict[str, Tensor]) -> Tensor:
        start = inputs["input_ids"].new_full((len(inputs["input_ids"]), 1), self.model.config.decoder_start_token_id)
        logits_BLV = self.model(**inputs, decoder_input_ids=start).logits
        return logits_BLV[:, 0, self._answers].float().log_softmax(dim=1)[:, :1]


def _batches(lengths: np.ndarray, tokens_per_batch: int) -> Iterator[list[int]]:
    """Positions of items of like length, longest first, at most ``tokens_per_batch`` padded tokens (or one item)."""
    batch: list[int] = []
    for position in np.argsort(-lengths, kind="stable").tolist():
        if batch and lengths[batch[0]] * (len(batch) + 1) > tokens_per_batch:
            yield batch
            batch = []
        batch.append(position)
    if batch:
        yield batch


def _pad(rows: Sequence[np.ndarray], value: int) -> np.ndarray:
    padded = np.full((len(rows), max(map(len, rows))), value, dtype=np.int64)
    for target, row in zip(padded, rows, strict=True):
        target[: len(row)] = row
    return padded


def pool(hidden_BLH: Tensor, lengths: np.ndarray, mode: str) -> Tensor:
    """``[B, H]`` from the hidden states of texts that are padded at their end; the modes of sentence-transformers."""
    import torch

    lengths_B1 = torch.from_numpy(lengths).to(hidden_BLH.device)[:, None]
    if mode == "cls":
        return hidden_BLH[:, 0]
    if mode == "lasttoken":
        return hidden_BLH[torch.arange(len(lengths)), lengths_B1[:, 0] - 1]
    places_L = torch.arange(1, hidden_BLH.shape[1] + 1, device=hidden_BLH.device)
    mask_BL1 = (places_L <= lengths_B1)[:, :, None]
    if mode == "max":
        return hidden_BLH.masked_fill(~mask_BL1, -math.inf).amax(dim=1)
    weights_BL1 = mask_BL1 * (places_L[:, None] if mode == "weightedmean" else 1.0)
    total_BH = (hidden_BLH * weights_BL1).sum(dim=1)
    divisor_B1 = weights_BL1.sum(dim=1)
    return total_BH / (divisor_B1.sqrt() if mode == "mean_sqrt_len_tokens" else divisor_B1)


def _max_length(config: Mapping[str, Any], stated: int | None, asked: int | None) -> int | None:
    """Tokens of a text: what was asked for, else what is stated, within the position table."""
    capacity = config.get("max_position_embeddings")
    if capacity and config["model_type"] in _POSITIONS_AFTER_PADDING:
        capacity -= config.get("pad_token_id", 1) + 1
    if asked is None:
        limits = [limit for limit in (stated, capacity) if limit and limit > 0]
        return min(limits) if limits else None
    if asked < 1 or (capacity and 0 < capacity < asked):
        raise ConfigError(f"max_length is {asked}; allowed: 1 to {capacity or 'any number'}")
    return asked


def choose_device(asked: str | None) -> str:
    """The device asked for, or the accelerator when there is one, or the CPU."""
    import torch

    if asked is not None and asked.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f"device {asked!r} was asked for, and torch finds no CUDA device; use 'cpu'")
    return asked or ("cuda" if torch.cuda.is_available() else "cpu")


# ------------------------------------------------------------------------------------------------ layouts


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

        As in sentence-transformers, ``default_prompt_name`` has no say where the role is known. Unlike there, a stated
        ``passage`` or ``corpus`` is not hidden by the empty ``document`` that every saved folder has.
        """
        prompts = self.prompts or {}
        return next((prompts[name] for name in _PROMPT_NAMES[role] if prompts.get(name)), "")


def resolve(model: str | Path, revision: str | None, allow_pickle: bool) -> tuple[Path, str | None]:
    """The folder of a local or hub model, and the hub's commit (None for a local folder)."""
    return layouts._resolve(model, revision, allow_pickle)


def read_dense_layout(folder: Path, pooling: str | None = None) -> DenseLayout:
    """How a bi-encoder's folder wants to be run; ``pooling`` for a plain transformers folder, which states none.

    Raises ``ModelError`` for what is not supported, ``ConfigError`` for a pooling that lacks or is one too many.
    """
    if not (folder / "modules.json").is_file():
        if pooling is None:
            raise ConfigError(f"{folder} is a plain transformers model, which states no pooling; give one of: "
                              f"{', '.join(get_args(Pooling))}")
        return DenseLayout(folder, folder, (check_option("pooling", pooling, get_args(Pooling)),))
    if pooling is not None:
        raise ConfigError(f"{folder} states its own pooling; drop pooling={pooling!r}")
    modules = _read_modules(folder)
    chain = [name for name, _ in modules]
    if chain not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise ModelError(f"{folder} is {' > '.join(chain) or 'nothing'}; supported as a dense teacher: Transformer > "
                         "Pooling, with or without Normalize")
    transformer = modules[0][1]
    stated = _transformer_settings(transformer)
    pooled = _read_object(modules[1][1] / "config.json")
    settings = _read_object(folder / "config_sentence_transformers.json")
    return DenseLayout(
        folder, transformer, _pooling_modes(modules[1][1], pooled), normalize=len(modules) == 3,
        similarity=settings.get("similarity_fn_name") or "cosine", max_length=stated.get("max_seq_length"),
        lowercase=bool(stated.get("do_lower_case")), include_prompt=bool(pooled.get("include_prompt", True)),
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
            raise ModelError(f"{folder}: module class {kind} is code of the model folder, which is never run")
        if path.is_absolute() or ".." in path.parts:
            raise ModelError(f"{folder}: module path {str(path)!r} leaves the model folder")
        found.append((kind.rsplit(".", 1)[-1], folder / path))
    return found


def _transformer_settings(folder: Path) -> dict[str, Any]:
    """The settings of the Transformer module; those that would change vectors and are not carried out are refused."""
    path = folder / "sentence_bert_config.json"
    settings = _read_object(path)
    allowed = {"feature-extraction", "sequence-classification"}
    if settings.get("transformer_task", "feature-extraction") not in allowed:
        raise ModelError(f"{path}: transformer_task is {settings['transformer_task']!r}; supported: feature-extraction")
    for key in ("processing_kwargs", "query_expansion", "processor_kwargs", "tokenizer_args", "config_kwargs",
                "config_args"):
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
            raise ModelError(f"{folder / 'config.json'}: pooling_mode {mode!r} is unknown; known: "
                             f"{', '.join(get_args(Pooling))}")
    return modes


def check_prompts(layout: DenseLayout, prompts: Mapping[Role, str]) -> None:
    """Raise ``ModelError`` for prompts that the pooling would have to leave out."""
    if not layout.include_prompt and any(prompts.values()):
        raise ModelError(f"{layout.root}: its pooling leaves the prompt out (include_prompt), which is not supported "
                         f"together with the prompts {dict(prompts)}")


def check_cross_encoder(folder: Path) -> None:
    """Refuse what is no pair scorer with one label."""
    config = _read_object(folder / "config.json")
    labels = len(config["id2label"]) if "id2label" in config else config.get("num_labels", 2)
    architecture = (config.get("architectures") or ["nothing"])[0]
    if not architecture.endswith("ForSequenceClassification") or labels != 1:
        hint = "; a T5 that answers true or false is of the kind monot5" if architecture.startswith("T5") else ""
        raise ModelError(f"{folder} is {architecture} with {labels} labels; a cross-encoder teacher needs "
                         f"...ForSequenceClassification with 1 label{hint}")
    if (folder / "modules.json").is_file() and [name for name, _ in _read_modules(folder)] != ["Transformer"]:
        raise ModelError(f"{folder / 'modules.json'} has modules after the Transformer, which is not supported")
    settings = _read_object(folder / "config_sentence_transformers.json")
    if any((settings.get("prompts") or {}).values()):
        raise ModelError(f"{folder} puts prompts before its pairs, which is not supported")


def check_monot5(folder: Path) -> None:
    """Refuse what is no T5."""
    config = _read_object(folder / "config.json")
    architecture = (config.get("architectures") or ["nothing"])[0]
    if config.get("model_type") != "t5" or architecture != "T5ForConditionalGeneration":
        raise ModelError(f"{folder} is {architecture}; a monot5 teacher needs T5ForConditionalGeneration")


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
