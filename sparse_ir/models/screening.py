"""Which terms of a text can be active at all, from a product of 8-bit integers.

B texts, L tokens of a text, T tokens of a product, H hidden width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_LARGEST = 127
_FLOAT32_ROUNDING = 2.0**-23


class Screen:
    """Finds the terms that may exceed a threshold. It never misses one.

    Rows ``w`` and hidden states ``x`` are rounded to ``w' = s_w q_w`` and ``x' = s_x q_x`` (``q``
    in -127..127, ``s`` per row and per text). ``w.x - w'.x' = (w - w').x + w'.(x - x')``, so by
    Cauchy and Schwarz the error is at most ``|w - w'| |x| + |w'| |x - x'|``, with all four norms
    known exactly; ``H 2^-23 |w| |x|`` is added for the rounding of float32 sums. A term survives
    where approximation + bias + bound exceeds the threshold.
    """

    def __init__(self, weight_VH: Tensor, bias_V: Tensor, threshold: float) -> None:
        self._scale_V = _scale(weight_VH.abs().amax(1))
        self._rounded_VH = (weight_VH / self._scale_V[:, None]).round_().to(torch.int8)
        restored_VH = self._rounded_VH.float() * self._scale_V[:, None]
        rounding = weight_VH.shape[1] * _FLOAT32_ROUNDING
        self._error_V = (weight_VH - restored_VH).norm(dim=1) + rounding * weight_VH.norm(dim=1)
        self._norm_V = restored_VH.norm(dim=1)
        self._floor_V = threshold - bias_V

    def survivors(self, hidden_BLH: Tensor, blocks: Sequence[slice], token_block: int) -> Tensor:
        """Return which terms survive, bool ``[B, V]``, for float32 states."""
        texts = hidden_BLH.shape[0]
        scale_B = _scale(hidden_BLH.abs().amax((1, 2)))
        rounded_BLH = (hidden_BLH / scale_B[:, None, None]).round_()
        error_B = (hidden_BLH - rounded_BLH * scale_B[:, None, None]).norm(dim=2).amax(1)
        norm_B = hidden_BLH.norm(dim=2).amax(1)
        width = max(token_block // texts, 1)
        chunks = []
        for start in range(0, rounded_BLH.shape[1], width):
            chunk_BLH = rounded_BLH[:, start : start + width]
            chunks.append(chunk_BLH.reshape(-1, chunk_BLH.shape[2]).to(torch.int8).t())
        survives_VB = torch.empty((len(self._scale_V), texts), dtype=torch.bool)
        for block in blocks:
            largest_VB = self._product(block, chunks[0], texts)
            for chunk in chunks[1:]:
                torch.maximum(largest_VB, self._product(block, chunk, texts), out=largest_VB)
            upper_VB = (
                largest_VB * (self._scale_V[block, None] * scale_B)
                + self._error_V[block, None] * norm_B
                + self._norm_V[block, None] * error_B
            )
            torch.gt(upper_VB, self._floor_V[block, None], out=survives_VB[block])
        return survives_VB.t()

    def _product(self, block: slice, rounded_HT: Tensor, texts: int) -> Tensor:
        """Return the largest product of each text, int32 ``[block, B]``."""
        product_VT = torch._int_mm(self._rounded_VH[block], rounded_HT)
        return product_VT.view(len(product_VT), texts, -1).amax(2)


def _scale(largest: Tensor) -> Tensor:
    """Return the step of an 8-bit grid that reaches ``largest``."""
    return largest.clamp_min(torch.finfo(torch.float32).tiny) / _LARGEST
