"""The output layer and the pooling over tokens as one step, block by block.

``[B, L, V]`` never exists. A block of vocabulary and tokens stays in the processor's cache; the
maximum comes first, the activation after it. On CPUs with 8-bit dot products, a screen finds the
few terms that can be active at all before anything is computed.

B texts of a batch, L tokens of a text, T tokens of a product, H hidden width, V vocabulary, R some
rows of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sparse_ir.models.batching import SparseVector, pad, real_positions
from sparse_ir.models.decoder_settings import Activation, Pooling
from sparse_ir.models.logits import LogitTransform
from sparse_ir.models.screening import Screen

TOKEN_BLOCK = {"cpu": 256, "cuda": 4096}
_VOCABULARY_BLOCK = {"cpu": 2048, "cuda": 8192}
_MAX_SURVIVORS = 0.25


class OutputLayer(NamedTuple):
    """What turns hidden states into scores: a matrix, a bias, and what follows them.

    The bias holds the shift, with a minus sign; see ``LogitTransform.output_layer``.
    """

    weight_VH: Tensor
    bias_V: Tensor
    transform: LogitTransform = LogitTransform()
    shift: float | Tensor = 0.0

    def cap(self, scores: Tensor) -> Tensor:
        """Apply the network's cap to scores."""
        return self.transform.cap(scores, self.shift)


def activate(scores: Tensor, activation: Activation) -> Tensor:
    """Return ``log1p(relu(scores))``, or for "log1p_relu" its ``log1p`` again.

    SPLADE v2 (arXiv 2109.10086) and its double logarithm.
    """
    weights = torch.log1p(torch.relu(scores))
    return torch.log1p(weights) if activation == "log1p_relu" else weights


class Head:
    """A fixed output layer joined with the pooling over tokens, in blocks.

    Each product is ``[block of V, H] @ [H, T]``. In this order the maximum over tokens runs over
    neighbours in memory, and a block of 2048 x 256 float32 fits a core's second-level cache. It was
    measured to make the 8-bit product with its maximum 1.5 times faster.
    """

    def __init__(
        self,
        output: OutputLayer,
        *,
        pooling: Pooling = "max",
        activation: Activation = "relu",
        min_weight: float = 0.0,
        screened: bool = False,
    ) -> None:
        """``screened`` looks for the active terms by 8-bit products first.

        Sum pooling ignores it. So does a cap with a negative shift, because the cap lifts what is
        below zero and the shift could then make it active.
        """
        self.size = output.weight_VH.shape[0]
        self._weight_VH = output.weight_VH
        self._bias_V = output.bias_V.float()
        self._output = output
        self._sum = pooling == "sum"
        self._activation: Activation = activation
        kind = output.weight_VH.device.type
        self._block = _VOCABULARY_BLOCK[kind]
        self._tokens = TOKEN_BLOCK[kind]
        self._screen: Screen | None = None
        lifts = output.transform.network.cap is not None and output.shift < 0
        if screened and not self._sum and not lifts:
            threshold = _score_of(min_weight, activation)
            self._screen = Screen(self._weight_VH, self._bias_V, threshold)

    def pool(self, hidden_BLH: Tensor, lengths: np.ndarray) -> Tensor:
        """Return pooled scores, float32 ``[B, V]``.

        A maximum is taken before the activation, a sum after it.
        """
        if self._sum:
            return self._pool_sum(hidden_BLH, lengths)
        hidden_BLH = hide_padding(hidden_BLH, lengths)
        if self._screen is not None:
            return self._output.cap(self._pool_screened(hidden_BLH, self._screen))
        return self._output.cap(self._pool_max(hidden_BLH.to(self._weight_VH.dtype)))

    def activate_pooled(self, scores: Tensor) -> Tensor:
        """Return the weights of pooled scores; a sum was activated before it was pooled."""
        return scores if self._sum else activate(scores, self._activation)

    def _blocks(self) -> Iterator[slice]:
        for start in range(0, self.size, self._block):
            yield slice(start, min(start + self._block, self.size))

    def _chunks(self, hidden_BLH: Tensor) -> Iterator[Tensor]:
        """Yield the states of a few token positions at a time."""
        width = max(self._tokens // hidden_BLH.shape[0], 1)
        for start in range(0, hidden_BLH.shape[1], width):
            yield hidden_BLH[:, start : start + width]

    def _pool_max(self, hidden_BLH: Tensor) -> Tensor:
        """Add the bias once, after the maximum, because it does not depend on the token."""
        return (self._largest(self._weight_VH, hidden_BLH).t() + self._bias_V).contiguous()

    def _largest(self, rows_RH: Tensor, hidden_BLH: Tensor) -> Tensor:
        """Return ``max over tokens of row . hidden``, float32 ``[R, B]``."""
        texts = hidden_BLH.shape[0]
        largest_RB = torch.full((len(rows_RH), texts), -math.inf, device=hidden_BLH.device)
        for chunk_BLH in self._chunks(hidden_BLH):
            hidden_HT = chunk_BLH.reshape(-1, chunk_BLH.shape[2]).t()
            for start in range(0, len(rows_RH), self._block):
                block = slice(start, start + self._block)
                products_RT = rows_RH[block] @ hidden_HT
                maximum_RB = products_RT.view(len(products_RT), texts, -1).amax(2)
                torch.maximum(largest_RB[block], maximum_RB.float(), out=largest_RB[block])
        return largest_RB

    def _pool_sum(self, hidden_BLH: Tensor, lengths: np.ndarray) -> Tensor:
        texts = hidden_BLH.shape[0]
        real = real_positions(lengths, hidden_BLH.shape[1])
        real_BL = torch.from_numpy(real).to(hidden_BLH.device)
        pooled_VB = torch.zeros((self.size, texts), device=hidden_BLH.device)
        start = 0
        for chunk_BLH in self._chunks(hidden_BLH):
            chunk_BL = real_BL[:, start : start + chunk_BLH.shape[1]]
            start += chunk_BLH.shape[1]
            hidden_HT = chunk_BLH.reshape(-1, chunk_BLH.shape[2]).t().to(self._weight_VH.dtype)
            for block in self._blocks():
                scores_VT = (self._weight_VH[block] @ hidden_HT).float() + self._bias_V[block, None]
                weights_VT = activate(self._output.cap(scores_VT), self._activation)
                weights_VBL = weights_VT.view(len(weights_VT), texts, -1)
                pooled_VB[block] += (weights_VBL * chunk_BL).sum(2)
        return pooled_VB.t().contiguous()

    def _pool_screened(self, hidden_BLH: Tensor, screen: Screen) -> Tensor:
        hidden_BLH = hidden_BLH.float()
        survives_BV = screen.survivors(hidden_BLH, list(self._blocks()), self._tokens)
        counts = survives_BV.sum(1).tolist()
        if max(counts) > _MAX_SURVIVORS * self.size:
            return self._pool_max(hidden_BLH)
        scores_BV = torch.zeros(survives_BV.shape)
        for text, hidden_LH in enumerate(hidden_BLH):
            ids = torch.nonzero(survives_BV[text]).squeeze(1)
            largest_R1 = self._largest(self._weight_VH[ids], hidden_LH[None])
            scores_BV[text, ids] = largest_R1[:, 0] + self._bias_V[ids]
        return scores_BV


def pool_with_gradient(hidden_BLH: Tensor, output: OutputLayer, lengths: np.ndarray) -> Tensor:
    """Return ``max over tokens of hidden . weight + bias``, float32 ``[B, V]``, differentiable.

    The gradient of a maximum flows through one token of a text, and that of a ReLU behind it only
    through active terms. So the backward pass is two products with a sparse matrix that has one
    entry per active term. Products run in the type of autocast, else in that of ``hidden``; among
    equal scores one is chosen.
    """
    hidden_BLH = hide_padding(hidden_BLH, lengths)
    apply: Callable[[Tensor, Tensor], Tensor] = _MaxPool.apply
    largest_BV = apply(hidden_BLH, output.weight_VH)
    return output.cap(largest_BV + output.bias_V.float())


class _MaxPool(torch.autograd.Function):
    """Keeps hidden states and weight without copying them, and one position per text and term."""

    @staticmethod
    def forward(ctx: Any, hidden_BLH: Tensor, weight_VH: Tensor) -> Tensor:
        kind = hidden_BLH.device.type
        dtype = hidden_BLH.dtype
        if torch.is_autocast_enabled(kind):
            dtype = torch.get_autocast_dtype(kind)
        texts = hidden_BLH.shape[0]
        block = _VOCABULARY_BLOCK[kind]
        hidden_HT = hidden_BLH.reshape(-1, hidden_BLH.shape[2]).t().to(dtype)
        shape = (len(weight_VH), texts)
        scores_VB = torch.empty(shape, device=hidden_BLH.device)
        tokens_VB = torch.empty(shape, dtype=torch.int32, device=hidden_BLH.device)
        for start in range(0, len(weight_VH), block):
            rows = slice(start, start + block)
            products_RT = weight_VH[rows].to(dtype) @ hidden_HT
            scores_RB, tokens_RB = products_RT.view(len(products_RT), texts, -1).max(2)
            scores_VB[rows] = scores_RB
            tokens_VB[rows] = tokens_RB
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
        # under an adapter the output layer is frozen, and its gradient may take gigabytes
        if ctx.needs_input_grad[1]:
            hidden_TH = hidden_BLH.reshape(texts * length, -1).float()
            for_weight_VH = torch.sparse.mm(chosen_VT, hidden_TH).to(weight_VH.dtype)
        for_hidden_TH = torch.sparse.mm(chosen_VT.t(), weight_VH.float())
        return for_hidden_TH.view_as(hidden_BLH).to(hidden_BLH.dtype), for_weight_VH


def select_states(hidden_BLH: Tensor, pooled: Sequence[np.ndarray]) -> tuple[Tensor, np.ndarray]:
    """Move the states of the pooled positions to the left.

    Args:
        hidden_BLH: States of all positions.
        pooled: The positions of each text that count.

    Returns:
        States ``[B, P, H]`` for the largest number P of positions, and the number of each text,
        ``[B]``. The states behind that number are arbitrary.
    """
    index, lengths = pad(pooled, 0)
    index_BP = torch.from_numpy(index).to(hidden_BLH.device)
    index_BPH = index_BP[:, :, None].expand(-1, -1, hidden_BLH.shape[2])
    return hidden_BLH.gather(1, index_BPH), lengths


def fold(scores_BV: Tensor, column_of_token_V: Tensor, columns: int) -> Tensor:
    """Return the largest score of each column's tokens, ``[B, columns]``."""
    shape = (len(scores_BV), columns)
    folded = torch.full(shape, -torch.inf, device=scores_BV.device, dtype=scores_BV.dtype)
    index_BV = column_of_token_V.expand(len(scores_BV), -1)
    return folded.scatter_reduce_(1, index_BV, scores_BV, "amax")


def group_sizes(lengths: np.ndarray, token_block: int) -> Iterator[int]:
    """Yield how many texts share one product: as many as fit ``token_block``, at least one."""
    start = 0
    while start < len(lengths):
        size = max(token_block // int(lengths[start:].max()), 1)
        yield min(size, len(lengths) - start)
        start += size


def hide_padding(hidden_BLH: Tensor, lengths: np.ndarray) -> Tensor:
    """Overwrite padded positions by the text's first token.

    That changes no maximum and saves a mask over logits.
    """
    if (lengths == hidden_BLH.shape[1]).all():
        return hidden_BLH
    real = real_positions(lengths, hidden_BLH.shape[1])
    real_BL = torch.from_numpy(real).to(hidden_BLH.device)
    return torch.where(real_BL[:, :, None], hidden_BLH, hidden_BLH[:, :1])


def keep_heaviest(
    ids: np.ndarray, weights: np.ndarray, top_k: int | None, min_weight: float
) -> SparseVector:
    """Return what ``top_k`` and ``min_weight`` leave of one vector.

    Ids stay ascending, weights are above 0; among equal weights the smaller id stays.
    """
    kept = (weights > 0) & (weights >= min_weight)
    ids = ids[kept]
    weights = weights[kept]
    if top_k is not None and len(ids) > top_k:
        heaviest = np.sort(np.argsort(-weights, kind="stable")[:top_k])
        ids = ids[heaviest]
        weights = weights[heaviest]
    return ids, weights


def _score_of(weight: float, activation: Activation) -> float:
    """Return the largest score whose weight is below ``weight``, 0 for a weight of 0."""
    if weight <= 0:
        return 0.0
    score = math.expm1(weight)
    if activation == "log1p_relu":
        score = math.expm1(score)
    return float(np.nextafter(score, -math.inf))
