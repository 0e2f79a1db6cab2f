"""Networks that teach: how their folders say they are to be run, and running them on texts or pairs
of texts.

A bi-encoder's folder is one of sentence-transformers (Transformer, Pooling, perhaps Normalize) or a
plain one of transformers; a cross-encoder's is a sequence classifier with one label, monoT5's a T5.
What would change a score and is not carried out here is refused. Networks are loaded when first
run. B texts of a batch, L tokens, H hidden width.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from sparse_ir.errors import ConfigError, ModelError
from sparse_ir.models import model_files, tokenization
from sparse_ir.storage import files
from sparse_ir.training.teachers.layouts import Dtype, check_option

if TYPE_CHECKING:
    from torch import Tensor
_POSITIONS_AFTER_PADDING = {
    "camembert",
    "data2vec-text",
    "longformer",
    "mpnet",
    "roberta",
    "xlm-roberta",
}
_T5_LENGTH = 512
_TOKENS_PER_BATCH = {"cpu": 4096, "cuda": 32768}


class Network:
    """A transformers model and its tokenizer, described at once and loaded when it is first run."""

    def __init__(
        self,
        *,
        folder: Path,
        classes: str,
        dtype: str,
        device: str,
        max_length: int | None,
        stated_length: int | None,
        lowercase: bool,
        tokens_per_batch: int | None,
        allow_pickle: bool,
    ) -> None:

        config = (
            files.read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
        )
        if not config.get("model_type"):
            raise ModelError(
                f"{folder} holds no config.json that names a model_type: no transformers model"
            )
        self._folder, self._classes, self._allow_pickle = folder, classes, allow_pickle
        self._dtype, self._device = check_option("dtype", dtype, get_args(Dtype)), device
        if tokens_per_batch is not None and tokens_per_batch < 1:
            raise ConfigError(f"tokens_per_batch is {tokens_per_batch}; allowed: 1 or more")
        self._tokens_per_batch = (
            tokens_per_batch or _TOKENS_PER_BATCH["cpu" if device == "cpu" else "cuda"]
        )
        self._owner = tokenization.load_owner(folder)
        limit = _max_length(
            config, stated_length or tokenization.stated_length(self._owner), max_length
        )
        self._tokenizer = tokenization.cut_at(tokenization.rules_of(self._owner, lowercase), limit)
        self.hidden_size = int(
            config.get("hidden_size") or config.get("dim") or config.get("d_model") or 0
        )
        self.provenance: dict[str, Any] = {
            "files_sha256": model_files.files_hash(folder, allow_pickle=allow_pickle),
            "tokenizer_sha256": tokenization.tokenizer_hash(self._tokenizer),
            "max_length": limit,
            "dtype": dtype,
        }

    def run(self, items: Sequence[Any]) -> Iterator[tuple[list[int], Tensor, np.ndarray]]:
        """Positions, the model's first output and lengths in tokens, a batch at a time, the longest
        first.

        ``items`` are texts or pairs of texts. An item without any token is given one padding token.
        """
        import torch

        padding = self._owner.pad_token_id or 0
        ids, types = self._encode(items, padding)
        lengths = np.array([len(row) for row in ids], dtype=np.int64)
        for positions in _batches(lengths, self._tokens_per_batch):
            batch = lengths[positions]
            inputs = {
                "input_ids": _pad([ids[p] for p in positions], padding),
                "attention_mask": (np.arange(batch.max()) < batch[:, None]).astype(np.int64),
            }
            if "token_type_ids" in self._owner.model_input_names:
                inputs["token_type_ids"] = _pad([types[p] for p in positions], 0)
            with torch.inference_mode():
                output = self._call(
                    {key: torch.from_numpy(value).to(self._device) for key, value in inputs.items()}
                )
            yield positions, output, batch

    def _encode(
        self, items: Sequence[Any], padding: int
    ) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Token ids and token types of each item."""
        found = self._tokenizer.encode_batch(list(items), add_special_tokens=True)
        return (
            [np.array(encoding.ids or [padding], dtype=np.int64) for encoding in found],
            [np.array(encoding.type_ids or [0], dtype=np.int64) for encoding in found],
        )

    def _call(self, inputs: dict[str, Tensor]) -> Tensor:
        return self.model(**inputs)[0]

    @functools.cached_property
    def model(self) -> Any:
        """The network, in evaluation mode on its device."""
        import torch
        import transformers

        from sparse_ir import errors

        found = model_files.weight_files(self._folder, allow_pickle=self._allow_pickle)
        try:
            model, report = getattr(transformers, self._classes).from_pretrained(
                self._folder,
                dtype=getattr(torch, self._dtype),
                trust_remote_code=False,
                output_loading_info=True,
                use_safetensors=found[0].suffix == ".safetensors",
            )
        except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
            raise ModelError(
                f"{self._folder} cannot be loaded by {self._classes} ({errors.first_line(error)})"
            ) from error
        # AutoModel adds a pooler whose output is not used here
        spare = "pooler." if self._classes == "AutoModel" else "\0"
        if missing := sorted(key for key in report["missing_keys"] if not key.startswith(spare)):
            raise ModelError(
                f"{self._folder} lacks weights ({', '.join(missing[:4])}); random "
                "ones would take their "
                "place"
            )
        return model.eval().requires_grad_(False).to(self._device)


class MonoT5(Network):
    """A T5 that answers "true" or "false" to ``Query: q Document: d Relevant:`` (Nogueira et al.
    2020, 2003.06713).

    Its first output is ``[B, 1]``: the logarithm of the probability of "true" against "false" as
    the first word. Where a pair is too long, its document is cut, never the question at its end.
    """

    def __init__(self, **options: Any) -> None:

        super().__init__(
            classes="AutoModelForSeq2SeqLM", stated_length=_T5_LENGTH, lowercase=False, **options
        )
        self._end = np.array(self._tokenizer.encode("Relevant:").ids, dtype=np.int64)
        limit = self.provenance["max_length"]
        if limit <= len(self._end):
            raise ConfigError(f"max_length is {limit}; allowed: more than {len(self._end)}")
        self._begin = tokenization.cut_at(self._tokenizer, limit - len(self._end))
        self._answers = [
            self._tokenizer.token_to_id(word) for word in ("\u2581true", "\u2581false")
        ]
        if None in self._answers:
            raise ModelError(
                f"{self._folder}: its vocabulary has no tokens for 'true' and "
                "'false', monoT5's answers"
            )

    def _encode(
        self, items: Sequence[Any], padding: int
    ) -> tuple[list[np.ndarray], list[np.ndarray]]:
        texts = [
            f"Query: {query.strip()} Document: {document.strip()}" for query, document in items
        ]
        found = self._begin.encode_batch(texts, add_special_tokens=False)
        ids = [
            np.concatenate([np.array(encoding.ids, dtype=np.int64), self._end])
            for encoding in found
        ]
        return ids, [np.zeros_like(row) for row in ids]

    def _call(self, inputs: dict[str, Tensor]) -> Tensor:
        start = inputs["input_ids"].new_full(
            (len(inputs["input_ids"]), 1), self.model.config.decoder_start_token_id
        )
        logits_BLV = self.model(**inputs, decoder_input_ids=start).logits
        return logits_BLV[:, 0, self._answers].float().log_softmax(dim=1)[:, :1]


def _batches(lengths: np.ndarray, tokens_per_batch: int) -> Iterator[list[int]]:
    """Positions of items of like length, longest first, at most ``tokens_per_batch`` padded tokens
    (or one item).
    """
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
    """``[B, H]`` from the hidden states of texts that are padded at their end; the modes of
    sentence-transformers.
    """
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
        raise ConfigError(
            f"device {asked!r} was asked for, and torch finds no CUDA device; use 'cpu'"
        )
    return asked or ("cuda" if torch.cuda.is_available() else "cpu")
