"""A transformer network with its output layer: token ids in, pooled scores out."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from sparse_ir.errors import ConfigError, DataError
from sparse_ir.models import adapters, decoders, loading, tokenization
from sparse_ir.models.checkpoint import NeuralSide
from sparse_ir.models.decoder_settings import DecoderSettings
from sparse_ir.models.decoders import Reader
from sparse_ir.models.loading import Bend
from sparse_ir.models.pooling import Head
from sparse_ir.models.static_queries import Convention
from sparse_ir.models.tokenization import Tokens

Precision = Literal["float32", "float32-int8", "bfloat16", "int8", "8bit", "4bit"]
TRUNK_DTYPE = {
    "float32": torch.float32,
    "float32-int8": torch.float32,
    "bfloat16": torch.bfloat16,
    "int8": torch.bfloat16,
    "8bit": torch.bfloat16,
    "4bit": torch.bfloat16,
}
_BITS = {"8bit": 8, "4bit": 4}
SCREENED = {"float32-int8", "int8"}
_TEXTS_PER_BATCH = 1024


@dataclass(frozen=True)
class Options:
    """How an encoder computes; see ``Encoder.load``."""

    precision: Precision
    device: str
    max_length: int | None
    top_k: int | None
    min_weight: float
    tokens_per_batch: int
    convention: Convention
    allow_pickle: bool
    decoder: DecoderSettings | None = None


@dataclass(frozen=True)
class Network:
    """A transformers model without its output layer, its tokenizer, and
    that layer as a ``Head``.
    """

    model: Any
    config: Any  # as it was before attention and logits were switched, for saving
    owner: Any  # the tokenizer object of transformers, kept for saving
    # a private copy of its rules, without padding, cut for masked language models
    tokenizer: Tokenizer
    reader: Reader | None  # of a decoder
    head: Head
    scale: float  # of the logits
    slot: tuple[Any, str]  # where the output layer belongs in ``model``
    output_layer: Any
    max_length: int | None
    capacity: int | None
    device: str

    def tokenize(self, texts: Sequence[str], prompt: str) -> list[Tokens]:
        """Tokens of each text, special tokens included, cut to ``max_length``."""
        for position, text in enumerate(texts):
            if not isinstance(text, str):
                raise DataError(
                    f"text {position} is {type(text).__name__} {text!r:.60}; allowed: str"
                )
        found: list[Tokens] = []
        for start in range(0, len(texts), _TEXTS_PER_BATCH):
            block = texts[start : start + _TEXTS_PER_BATCH]
            if self.reader is not None:
                found += self.reader.read(block, prompt)
                continue
            for encoding in self.tokenizer.encode_batch_fast([prompt + text for text in block]):
                found.append(Tokens(np.array(encoding.ids, dtype=np.int32)))
        return found

    def forward(self, tokens: Sequence[Tokens]) -> tuple[Tensor, np.ndarray]:
        """Last hidden states ``[B, L, H]`` of the pooled tokens, before the output layer; their
        number in each text.

        Padding stands behind a text, where neither causal nor masked attention nor positions notice
        it, whatever side the tokenizer would pad. Token types are left to the model, whose default
        is that of a single text.
        """
        lengths = np.array([len(text.ids) for text in tokens])
        padded = np.full(
            (len(tokens), int(lengths.max())), self.owner.pad_token_id or 0, dtype=np.int64
        )
        for row, text in zip(padded, tokens, strict=True):
            row[: len(text.ids)] = text.ids
        mask = np.arange(padded.shape[1]) < lengths[:, None]
        output = self.model(
            input_ids=torch.from_numpy(padded).to(self.device),
            attention_mask=torch.from_numpy(mask.astype(np.int64)).to(self.device),
            **({} if self.reader is None else {"use_cache": False}),
        )
        if self.reader is None:
            return output.logits, lengths
        return loading.select_states(output.logits, [text.pooled for text in tokens], self.scale)

    def with_side(self, side: NeuralSide, max_length: int | None) -> Network:
        """The same network for another side's template and limit; nothing is copied but the
        tokenizer.
        """
        return replace(self, **reading_fields(self.tokenizer, side, max_length))

    @contextlib.contextmanager
    def whole(self) -> Iterator[Any]:
        """The model as it was loaded, its output layer in place, for saving."""
        parent, name = self.slot
        passed, config = getattr(parent, name), self.model.config
        setattr(parent, name, self.output_layer)
        self.model.config = self.config
        try:
            yield self.model
        finally:
            setattr(parent, name, passed)
            self.model.config = config


def fastest_precision(device: str = "cpu") -> Precision:
    """The fastest precision on a device, for networks of the usual sizes.

    Accelerators: bfloat16. Processors that multiply bfloat16 faster than float32, which are those
    with units for its matrices (AMX) and AMD's with AVX-512 instructions for it (Intel's do no more
    products a cycle by these): int8. All others: float32-int8. It depends on the kind of the
    processor alone, so that a run can be resumed.
    """
    if device_kind(device) != "cpu":
        return "bfloat16"
    known: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    fast = known.get("amx_bf16") or (
        known.get("avx512_bf16") and "AMD" in str(known.get("cpu_name"))
    )
    return "int8" if fast else "float32-int8"


def device_kind(device: str) -> str:
    return "cpu" if device == "cpu" else "cuda"


def load_model(side: NeuralSide, options: Options) -> Any:
    """Decoders are loaded in their final type: they are large, and their rotary tables must stay in
    float32.
    """
    bits = _BITS.get(options.precision)
    if side.decoder is None:
        if bits is not None:
            raise ConfigError(
                f"precision {options.precision!r} is for decoders; use 'int8' or 'bfloat16'"
            )
        return loading.load_masked_lm(side.folder, options.allow_pickle)
    if bits is not None:
        return adapters.load_decoder(
            side,
            options.allow_pickle,
            dtype=torch.bfloat16,
            **adapters.quantization(bits, options.device),
        )
    model = adapters.load_decoder(side, options.allow_pickle, dtype=TRUNK_DTYPE[options.precision])
    return model.to(device=options.device)


def reading_fields(rules: Tokenizer, side: NeuralSide, limit: int | None) -> dict[str, Any]:
    """How a network reads texts: the fields of ``Network`` that differ between two sides of one
    network.
    """
    if side.decoder is None:
        return {"tokenizer": tokenization.cut_at(rules, limit), "reader": None, "max_length": limit}
    reader = Reader(rules, side.decoder, side.template, limit)
    return {"tokenizer": rules, "reader": reader, "max_length": limit}


def make_head(
    layer: Any, side: NeuralSide, options: Options, bend: Bend, config: Any
) -> tuple[Head, float]:
    """The output layer as a ``Head``, and the scale of its logits, which
    goes to the hidden states.
    """
    dtype = torch.bfloat16 if options.precision in ("bfloat16", *_BITS) else torch.float32
    weight = layer.weight.detach().to(device=options.device, dtype=dtype)
    bias = torch.zeros(len(weight)) if layer.bias is None else layer.bias.detach()
    scale, shift = 1.0, 0.0
    if side.decoder is not None:
        if side.decoder.centered:
            weight, bias = decoders.center(weight, bias.float())
        scale = decoders.scale_of(side.decoder, config.get_text_config().hidden_size)
        shift = side.decoder.logit_shift
        bias = bias.float() * (scale * bend.scale) - shift
    head = Head(
        weight,
        bias.to(options.device),
        side,
        options.min_weight,
        screened=options.precision in SCREENED,
        cap=None if bend.cap is None else bend.cap * scale,
        shift=shift,
    )
    return head, scale * bend.scale


def usable_max_length(
    side: NeuralSide, owner: Any, capacity: int | None, asked: int | None
) -> int | None:
    if asked is not None:
        if capacity is not None and asked > capacity:
            raise ConfigError(f"max_length is {asked}; this model reads at most {capacity} tokens")
        return asked
    limits = [
        limit
        for limit in (side.max_length or tokenization.stated_length(owner), capacity)
        if limit is not None
    ]
    return min(limits) if limits else None
