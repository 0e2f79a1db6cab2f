"""The output layer and the pooling over tokens as one step, block by block: ``[B, L, V]`` never
exists.

A block of vocabulary and tokens stays in the processor's cache; the maximum is taken first, the
activation after. On CPUs with 8-bit dot products, a screen finds the few terms that can be active
at all before anything is computed.

B texts of a batch, L tokens of a text, T tokens of a product, H hidden width, V vocabulary, R some
rows of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparse_ir.models.checkpoint import NeuralSide

Row = tuple[np.ndarray, np.ndarray]  # token ids and weights of one vector
TOKEN_BLOCK = {"cpu": 256, "cuda": 4096}
_VOCABULARY_BLOCK = {"cpu": 2048, "cuda": 8192}
_MAX_SURVIVORS = 0.25


class Head:
    """The output layer ``logits = hidden @ weight.T + bias`` joined with the pooling over tokens,
    in blocks.

    Each product is ``[block of V, H] @ [H, T]``: in this order the maximum over tokens runs over
    neighbours in memory, and a block of 2048 x 256 float32 fits a core's second cache. Measured,
    the order makes the 8-bit product with its maximum 1.5 times faster and leaves the others as
    they are.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor,
        side: NeuralSide,
        min_weight: float,
        *,
        screened: bool,
        cap: float | None = None,
        shift: float = 0.0,
    ) -> None:
        """``cap``: logits ``x - shift`` become ``cap * tanh(x / cap) - shift``, as some decoders
        have it.
        """
        self.size = weight.shape[0]
        self._weight_VH = weight
        self._bias_V = bias.float()
        self._sum = side.pooling == "sum"
        self._times = 2 if side.activation == "log1p_relu" else 1
        self._cap, self._shift = cap, shift
        self._block = _VOCABULARY_BLOCK[weight.device.type]
        self._tokens = TOKEN_BLOCK[weight.device.type]
        threshold = (
            float(np.nextafter(_logit_of(min_weight, self._times), -math.inf))
            if min_weight > 0
            else 0.0
        )
        # a cap lowers what is above zero and lifts what is below, where a negative shift could make
        # it active
        screened = screened and not self._sum and (cap is None or shift >= 0)
        self._screen = _Screen(weight, self._bias_V, threshold) if screened else None

    def pool(self, hidden_BLH: Tensor, lengths: np.ndarray) -> Tensor:
        """Pooled scores ``[B, V]`` float32: for the maximum before the activation, for the sum
        after it.
        """
        if self._sum:
            return self._pool_sum(hidden_BLH, lengths)
        hidden_BLH = _hide_padding(hidden_BLH, lengths)
        if self._screen is not None:
            return self._soften(self._pool_screened(hidden_BLH))
        return self._soften(self._pool_max(hidden_BLH.to(self._weight_VH.dtype)))

    def activate_pooled(self, scores: Tensor) -> Tensor:
        """Weights of pooled scores; a sum was activated before it was pooled."""
        return scores if self._sum else self._activate(scores)

    def _soften(self, scores: Tensor) -> Tensor:
        """The cap grows with its argument, so that it may come after the maximum."""
        if self._cap is None:
            return scores
        return torch.tanh((scores + self._shift) / self._cap) * self._cap - self._shift

    def _activate(self, scores: Tensor) -> Tensor:
        scores = torch.relu(scores)
        for _ in range(self._times):
            scores = torch.log1p(scores)
        return scores

    def _blocks(self) -> Iterator[slice]:
        for start in range(0, self.size, self._block):
            yield slice(start, min(start + self._block, self.size))

    def _pool_max(self, hidden_BLH: Tensor) -> Tensor:
        """The bias does not depend on the token, so it is added once, after the maximum."""
        return (self._largest(self._weight_VH, hidden_BLH).t() + self._bias_V).contiguous()

    def _largest(self, rows_RH: Tensor, hidden_BLH: Tensor) -> Tensor:
        """``max over tokens of row . hidden``: ``[R, B]`` float32."""
        texts = hidden_BLH.shape[0]
        largest_RB = torch.full((len(rows_RH), texts), -math.inf, device=hidden_BLH.device)
        for chunk_BLH in hidden_BLH.split(max(self._tokens // texts, 1), dim=1):
            hidden_HT = chunk_BLH.reshape(-1, chunk_BLH.shape[2]).t()
            for start in range(0, len(rows_RH), self._block):
                block = slice(start, start + self._block)
                products_RT = rows_RH[block] @ hidden_HT
                found_RB = products_RT.view(len(products_RT), texts, -1).amax(2)
                torch.maximum(largest_RB[block], found_RB.float(), out=largest_RB[block])
        return largest_RB

    def _pool_sum(self, hidden_BLH: Tensor, lengths: np.ndarray) -> Tensor:
        texts = hidden_BLH.shape[0]
        mask_BL = torch.from_numpy(np.arange(hidden_BLH.shape[1]) < lengths[:, None]).to(
            hidden_BLH.device
        )
        pooled_VB = torch.zeros((self.size, texts), device=hidden_BLH.device)
        width = max(self._tokens // texts, 1)
        for chunk_BLH, real_BL in zip(
            hidden_BLH.split(width, dim=1), mask_BL.split(width, dim=1), strict=True
        ):
            hidden_HT = chunk_BLH.reshape(-1, chunk_BLH.shape[2]).t().to(self._weight_VH.dtype)
            for block in self._blocks():
                logits_VT = (self._weight_VH[block] @ hidden_HT).float() + self._bias_V[block, None]
                weights_VBL = self._activate(self._soften(logits_VT)).view(
                    len(logits_VT), texts, -1
                )
                pooled_VB[block] += (weights_VBL * real_BL).sum(2)
        return pooled_VB.t().contiguous()

    def _pool_screened(self, hidden_BLH: Tensor) -> Tensor:
        assert self._screen is not None
        hidden_BLH = hidden_BLH.float()
        survives_BV = self._screen.survivors(hidden_BLH, list(self._blocks()), self._tokens)
        counts = survives_BV.sum(1).tolist()
        if max(counts) > _MAX_SURVIVORS * self.size:
            return self._pool_max(hidden_BLH)
        scores_BV = torch.zeros(survives_BV.shape)
        for text, hidden_LH in enumerate(hidden_BLH):
            ids = torch.nonzero(survives_BV[text]).squeeze(1)
            scores_BV[text, ids] = (
                self._largest(self._weight_VH[ids], hidden_LH[None])[:, 0] + self._bias_V[ids]
            )
        return scores_BV


class _Screen:
    """Which terms of a text can be active at all, from a product of 8-bit integers. It never misses
    one.

    Rows ``w`` and hidden states ``x`` are rounded to ``w' = s_w q_w`` and ``x' = s_x q_x`` (``q``
    in -127..127, ``s`` per row and per text). ``w.x - w'.x' = (w - w').x + w'.(x - x')``, so by
    Cauchy and Schwarz the error is at most ``|w - w'| |x| + |w'| |x - x'|``, with all four norms
    known exactly; ``H 2^-23 |w| |x|`` is added for the rounding of float32 sums. A term survives
    where approximation + bias + bound exceeds the threshold.
    """

    def __init__(self, weight_VH: Tensor, bias_V: Tensor, threshold: float) -> None:
        scale_V = weight_VH.abs().amax(1).clamp_min(torch.finfo(torch.float32).tiny) / 127
        self._rounded_VH = (weight_VH / scale_V[:, None]).round_().to(torch.int8)
        self._scale_V = scale_V
        restored_VH = self._rounded_VH.float() * scale_V[:, None]
        self._error_V = (weight_VH - restored_VH).norm(dim=1) + weight_VH.shape[
            1
        ] * 2.0**-23 * weight_VH.norm(dim=1)
        self._norm_V = restored_VH.norm(dim=1)
        self._floor_V = threshold - bias_V

    def survivors(self, hidden_BLH: Tensor, blocks: Sequence[slice], token_block: int) -> Tensor:
        """Boolean ``[B, V]``."""
        texts = hidden_BLH.shape[0]
        scale_B = hidden_BLH.abs().amax((1, 2)).clamp_min(torch.finfo(torch.float32).tiny) / 127
        rounded_BLH = (hidden_BLH / scale_B[:, None, None]).round_()
        error_B = (hidden_BLH - rounded_BLH * scale_B[:, None, None]).norm(dim=2).amax(1)
        norm_B = hidden_BLH.norm(dim=2).amax(1)
        chunks = [
            chunk.reshape(-1, chunk.shape[2]).to(torch.int8).t()
            for chunk in rounded_BLH.split(max(token_block // texts, 1), dim=1)
        ]
        found_VB = torch.empty((len(self._scale_V), texts), dtype=torch.bool)
        for block in blocks:
            largest_VB = self._product(block, chunks[0], texts)
            for chunk in chunks[1:]:
                torch.maximum(largest_VB, self._product(block, chunk, texts), out=largest_VB)
            upper_VB = (
                largest_VB * (self._scale_V[block, None] * scale_B)
                + self._error_V[block, None] * norm_B
                + self._norm_V[block, None] * error_B
            )
            torch.gt(upper_VB, self._floor_V[block, None], out=found_VB[block])
        return found_VB.t()

    def _product(self, block: slice, rounded_HT: Tensor, texts: int) -> Tensor:
        product_VT = torch._int_mm(self._rounded_VH[block], rounded_HT)
        return product_VT.view(len(product_VT), texts, -1).amax(2)


def pool_with_gradient(
    hidden_BLH: Tensor, weight_VH: Tensor, bias_V: Tensor, lengths: np.ndarray
) -> Tensor:
    """``max over tokens of hidden . weight + bias``: ``[B, V]`` float32, differentiable, without
    ``[B, L, V]``.

    The gradient of a maximum flows through one token of a text, and that of a ReLU behind it only
    through terms that are active, so the backward pass is two products with a sparse matrix of as
    many entries as there are active terms. Products run in the type that autocast asks for (else in
    that of ``hidden``); among equal logits one is chosen.
    """
    return _MaxPool.apply(_hide_padding(hidden_BLH, lengths), weight_VH) + bias_V.float()


class _MaxPool(torch.autograd.Function):
    """Keeps hidden states, the weight (not copies of them) and one token position per text and
    term.
    """

    @staticmethod
    def forward(ctx: Any, hidden_BLH: Tensor, weight_VH: Tensor) -> Tensor:
        kind = hidden_BLH.device.type
        dtype = (
            torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden_BLH.dtype
        )
        texts, block = hidden_BLH.shape[0], _VOCABULARY_BLOCK[kind]
        hidden_HT = hidden_BLH.reshape(-1, hidden_BLH.shape[2]).t().to(dtype)
        scores_VB = torch.empty((len(weight_VH), texts), device=hidden_BLH.device)
        tokens_VB = torch.empty(
            (len(weight_VH), texts), dtype=torch.int32, device=hidden_BLH.device
        )
        for start in range(0, len(weight_VH), block):
            rows = slice(start, start + block)
            products_RT = weight_VH[rows].to(dtype) @ hidden_HT
            scores_RB, tokens_RB = products_RT.view(len(products_RT), texts, -1).max(2)
            scores_VB[rows], tokens_VB[rows] = scores_RB, tokens_RB
        ctx.save_for_backward(hidden_BLH, weight_VH, tokens_VB)
        return scores_VB.t()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None]:
        hidden_BLH, weight_VH, tokens_VB = ctx.saved_tensors
        gradient_VB = gradients[0].t()
        texts, length, _ = hidden_BLH.shape
        terms, rows = torch.nonzero(gradient_VB, as_tuple=True)
        positions = rows * length + tokens_VB[terms, rows].long()
        values = gradient_VB[terms, rows].float()
        shape = (len(weight_VH), texts * length)
        chosen_VT = torch.sparse_coo_tensor(
            torch.stack([terms, positions]), values, shape, check_invariants=False
        )
        for_weight_VH = None
        # under an adapter the output layer is frozen, and may be gigabytes
        if ctx.needs_input_grad[1]:
            hidden_TH = hidden_BLH.reshape(texts * length, -1).float()
            for_weight_VH = torch.sparse.mm(chosen_VT, hidden_TH).to(weight_VH.dtype)
        for_hidden_TH = torch.sparse.mm(chosen_VT.t(), weight_VH.float())
        return for_hidden_TH.view_as(hidden_BLH).to(hidden_BLH.dtype), for_weight_VH


def group_sizes(lengths: np.ndarray, token_block: int) -> Iterator[int]:
    """How many texts share one product: as many as fit ``token_block`` tokens, at least one."""
    start = 0
    while start < len(lengths):
        size = max(token_block // int(lengths[start:].max()), 1)
        yield min(size, len(lengths) - start)
        start += size


def _hide_padding(hidden_BLH: Tensor, lengths: np.ndarray) -> Tensor:
    """Padded positions repeat the text's first token, which changes no maximum and saves a mask
    over logits.
    """
    if (lengths == hidden_BLH.shape[1]).all():
        return hidden_BLH
    real = torch.from_numpy(np.arange(hidden_BLH.shape[1]) < lengths[:, None]).to(hidden_BLH.device)
    return torch.where(real[:, :, None], hidden_BLH, hidden_BLH[:, :1])


def _logit_of(weight: float, times: int) -> float:
    for _ in range(times):
        weight = math.expm1(weight)
    return weight


def keep_heaviest(
    ids: np.ndarray, weights: np.ndarray, top_k: int | None, min_weight: float
) -> Row:
    """What ``top_k`` and ``min_weight`` leave of one vector: ascending ids, and weights > 0."""
    kept = (weights > 0) & (weights >= min_weight)
    ids, weights = ids[kept], weights[kept]
    if top_k is not None and len(ids) > top_k:
        best = np.sort(np.argsort(-weights, kind="stable")[:top_k])
        ids, weights = ids[best], weights[best]
    return ids, weights
