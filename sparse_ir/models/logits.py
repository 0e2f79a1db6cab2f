"""What happens to logits between the output layer and the pooling: scale, cap, shift, centering.

T tokens, H hidden width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class OutputScaling(NamedTuple):
    """What a network does to its logits after the output layer: ``cap * tanh(scale * x / cap)``.

    Without a cap it is ``scale * x``.
    """

    scale: float = 1.0
    cap: float | None = None

    def apply(self, logits: Tensor) -> Tensor:
        """Return the language model's logits, of the shape of ``logits``."""
        scaled = logits * self.scale
        return scaled if self.cap is None else torch.tanh(scaled / self.cap) * self.cap


_NO_SCALING = OutputScaling()


@dataclass(frozen=True)
class LogitTransform:
    """How logits of the output layer become the scores that are pooled.

    ``score = scale * network(logit - mean) - shift``, where ``network`` is the network's own
    ``OutputScaling`` and ``mean`` is taken over the vocabulary when ``centered``. The shift is
    passed to each method because training moves it.
    """

    scale: float = 1.0
    network: OutputScaling = _NO_SCALING
    centered: bool = False

    @property
    def state_scale(self) -> float:
        """The factor of the hidden states; every linear factor of the logits is moved there."""
        return self.scale * self.network.scale

    def output_layer(
        self, weight_VH: Tensor, bias_V: Tensor, shift: float | Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return weight and bias whose product with scaled states gives scores before the cap."""
        if self.centered:
            mean_H = weight_VH.mean(0, dtype=torch.float32)
            weight_VH = (weight_VH.float() - mean_H).to(weight_VH.dtype)
            bias_V = bias_V.float() - bias_V.float().mean()
        return weight_VH, bias_V.float() * self.state_scale - shift

    def cap(self, scores: Tensor, shift: float | Tensor) -> Tensor:
        """Cap scores of ``output_layer``.

        The cap grows with its argument, so it may follow a maximum over tokens.
        """
        if self.network.cap is None:
            return scores
        limit = self.network.cap * self.scale
        return torch.tanh((scores + shift) / limit) * limit - shift

    def token_scores(self, logits_TV: Tensor, shift: float | Tensor) -> tuple[Tensor, Tensor]:
        """Return the language model's logits and the scores, both ``[T, V]``, of raw logits."""
        language_TV = self.network.apply(logits_TV)
        if not self.centered:
            return language_TV, language_TV * self.scale - shift
        centered_TV = logits_TV - logits_TV.mean(1, keepdim=True)
        return language_TV, self.network.apply(centered_TV) * self.scale - shift
