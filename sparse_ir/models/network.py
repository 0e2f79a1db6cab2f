"""The one forward pass: token ids in, pooled scores out, for encoding and for training.

B texts of a batch, L tokens of a text, P of them pooled, T tokens, H hidden width, V vocabulary.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from sparse_ir.errors import ConfigError, DataError
from sparse_ir.models import loading, tokenization
from sparse_ir.models.batching import pad, real_positions
from sparse_ir.models.families.base import NeuralSide
from sparse_ir.models.loading import Slot
from sparse_ir.models.logits import LogitTransform
from sparse_ir.models.pooling import OutputLayer, pool_with_gradient, select_states
from sparse_ir.models.reading import TextReader
from sparse_ir.models.tokenization import Tokens

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

_TEXTS_PER_BATCH = 1024
INACTIVE = -1e4  # the score of every term in a text of which nothing is pooled


@dataclass
class SparseNetwork:
    """A transformers model without its output layer, and that layer beside it.

    Attributes:
        model: The network, whose "logits" are now hidden states. Training may wrap it.
        config: The configuration for saving, as it was before anything was switched off.
        hf_tokenizer: The tokenizer of transformers.
        tokenizer: A private copy of its rules, without padding and truncation.
        slot: Where the output layer belongs.
        output_layer: The output layer.
        transform: What happens to the logits.
        shift: The shift that the settings state; training has its own.
        forward_options: Further arguments of each call of the model.
        capacity: Tokens that the position table holds, None for no limit.
    """

    model: PreTrainedModel
    config: PretrainedConfig
    hf_tokenizer: PreTrainedTokenizerBase
    tokenizer: Tokenizer
    slot: Slot
    output_layer: torch.nn.Linear
    transform: LogitTransform
    shift: float
    forward_options: Mapping[str, bool]
    capacity: int | None

    @property
    def pad_token_id(self) -> int:
        """The id that fills padded positions, which no attention sees."""
        return self.hf_tokenizer.pad_token_id or 0

    @property
    def device(self) -> torch.device:
        """The device of the network."""
        parameter: Tensor = next(self.model.parameters())
        return parameter.device

    def hidden_states(self, ids: Sequence[np.ndarray]) -> tuple[Tensor, np.ndarray]:
        """Run the network over token ids.

        Padding stands behind a text, where neither attention nor positions notice it, whatever side
        the tokenizer would pad. Token types are left to the model, whose default is that of a
        single text.

        Returns the states before the output layer, ``[B, L, H]``, and the length of each text.
        """
        padded, lengths = pad(ids, self.pad_token_id)
        mask = real_positions(lengths, padded.shape[1]).astype(np.int64)
        device = self.device
        output = self.model(
            input_ids=torch.from_numpy(padded).to(device),
            attention_mask=torch.from_numpy(mask).to(device),
            **self.forward_options,
        )
        return output.logits, lengths

    def pooled_states(self, tokens: Sequence[Tokens]) -> tuple[Tensor, np.ndarray]:
        """Run the network over texts and keep what is pooled.

        Returns the scaled states of the pooled tokens, ``[B, P, H]``, and the number of each text.
        """
        hidden_BLH, lengths = self.hidden_states([text.ids for text in tokens])
        if any(text.pooled is not None for text in tokens):
            positions = [text.pooled_positions for text in tokens]
            hidden_BLH, lengths = select_states(hidden_BLH, positions)
        scale = self.transform.state_scale
        return hidden_BLH if scale == 1.0 else hidden_BLH * scale, lengths

    def output(
        self,
        shift: float | Tensor,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> OutputLayer:
        """Return the output layer that makes scores of scaled states."""
        weight_VH = self.output_layer.weight.to(device=device, dtype=dtype)
        weight_VH, bias_V = self.transform.output_layer(weight_VH, self._bias(device), shift)
        return OutputLayer(weight_VH, bias_V, self.transform, shift)

    def pooled_scores(self, tokens: Sequence[Tokens], shift: float | Tensor) -> Tensor:
        """Return the largest scores of texts, float32 ``[B, V]``, differentiable.

        A text of which nothing is pooled gets ``INACTIVE`` everywhere.
        """
        hidden_BPH, lengths = self.pooled_states(tokens)
        if hidden_BPH.shape[1] == 0:
            shape = (len(tokens), self.output_layer.out_features)
            return hidden_BPH.new_full(shape, INACTIVE, dtype=torch.float32)
        scores_BV = pool_with_gradient(hidden_BPH, self.output(shift), lengths)
        if lengths.all():
            return scores_BV
        empty_B = torch.from_numpy(lengths == 0).to(scores_BV.device)
        return scores_BV.masked_fill(empty_B[:, None], INACTIVE)

    def token_scores(self, hidden_TH: Tensor, shift: float | Tensor) -> tuple[Tensor, Tensor]:
        """Return the language model's logits of states, and the scores, both ``[T, V]``."""
        weight_VH = self.output_layer.weight.to(hidden_TH.dtype)
        logits_TV = (hidden_TH @ weight_VH.t()).float() + self._bias(hidden_TH.device)
        return self.transform.token_scores(logits_TV, shift)

    @contextlib.contextmanager
    def whole(self) -> Iterator[PreTrainedModel]:
        """Give the model as it was loaded, its output layer in place, for saving."""
        passing = self.slot.put(self.output_layer)
        config = self.model.config
        self.model.config = self.config
        try:
            yield self.model
        finally:
            self.slot.put(passing)
            self.model.config = config

    def _bias(self, device: torch.device | str | None) -> Tensor:
        bias_V = self.output_layer.bias
        if bias_V is None:
            weight_VH = self.output_layer.weight
            return torch.zeros(len(weight_VH), device=device or weight_VH.device)
        return bias_V.to(device=device)


def open_network(
    side: NeuralSide, model: PreTrainedModel, hf_tokenizer: PreTrainedTokenizerBase
) -> SparseNetwork:
    """Open a loaded model: prepare its attention and logits, and take its output layer off.

    Raises ``ModelError`` when the network works in a way that is not supported.
    """
    rules = tokenization.rules_of(hf_tokenizer, side.lowercase)
    tokenizer = tokenization.cut_at(rules, None)
    config, transform, shift = side.family.open_logits(model, tokenizer, side)
    slot, output_layer = loading.detach_output_layer(model, tokenizer, side.folder)
    return SparseNetwork(
        model,
        config,
        hf_tokenizer,
        tokenizer,
        slot,
        output_layer,
        transform,
        shift,
        side.family.forward_options,
        loading.capacity_of(model),
    )


def read_texts(reader: TextReader, texts: Sequence[str], prompt: str) -> list[Tokens]:
    """Return the tokens of each text. Raises ``DataError`` for an item that is not a string."""
    for position, text in enumerate(texts):
        if not isinstance(text, str):
            raise DataError(
                f"text {position} is {type(text).__name__} {text!r:.60}; it must be a str"
            )
    tokens: list[Tokens] = []
    for start in range(0, len(texts), _TEXTS_PER_BATCH):
        tokens += reader.read(texts[start : start + _TEXTS_PER_BATCH], prompt)
    return tokens


def usable_max_length(
    side: NeuralSide, network: SparseNetwork, requested: int | None
) -> int | None:
    """Return the tokens read of a text: as requested, else the smallest limit that is known.

    Raises ``ConfigError`` when more are requested than the network can read.
    """
    capacity = network.capacity
    if requested is not None:
        if capacity is not None and requested > capacity:
            raise ConfigError(
                f"max_length is {requested}; for this model it must be at most {capacity}"
            )
        return requested
    stated = side.max_length or tokenization.stated_length(network.hf_tokenizer)
    limits = [limit for limit in (stated, capacity) if limit is not None]
    return min(limits, default=None)
