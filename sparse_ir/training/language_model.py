"""The language-model losses by which a decoder adapts before ranking: next tokens, masked tokens,
saturated logits.

A ReLU behind logits that were never meant to pass one dies: all of them sink below zero, and
nothing brings them back. So the same cross-entropy is asked of ``log(1 + relu(logits))`` (CSPLADE,
arXiv 2504.10816). ``[T, V]`` is made in blocks and made again for the gradient, so that memory does
not grow with tokens times vocabulary.

T tokens that predict, H hidden width, V vocabulary.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from sparse_ir.training.training_source import merge_equal

_LOGITS_PER_BLOCK = {"cpu": 2**22, "cuda": 2**26}
_DOCUMENTS_PER_BLOCK = 256
_NOTHING = -100  # a position that predicts nothing


class Example(NamedTuple):
    """What a network reads, and at each position the token that its state must predict (-100:
    none).
    """

    ids: np.ndarray  # int64 [L]
    targets: np.ndarray  # int64 [L]

    @property
    def predicted(self) -> int:
        """How many tokens are predicted."""
        return int((self.targets != _NOTHING).sum())


class Packed:
    """All documents as one endless stream of tokens, cut into sequences of one length:
    ``at(number)``, from 0.

    An epoch is a permutation of the different documents that are not empty; each stands there
    whole, the end token behind it (attention goes across it, as in pre-training). Only texts, seed
    and number decide a sequence. ``starts`` says where the blocks of documents read so far begin in
    the stream; whoever sets what an equal object had reached need not tokenize all that lies
    before.
    """

    def __init__(
        self,
        texts: Sequence[str],
        tokenize: Callable[[Sequence[str]], Sequence[np.ndarray]],
        length: int,
        end_id: int,
        seed: int,
    ) -> None:
        same = merge_equal(texts)
        self._texts = texts
        self._kept = np.flatnonzero(
            (same == np.arange(len(same))) & [bool(text.strip()) for text in texts]
        )
        self._tokenize, self._length, self._end_id, self._seed = tokenize, length, end_id, seed
        self.starts = [0]
        self._orders: dict[int, np.ndarray] = {}
        self._blocks: dict[int, np.ndarray] = {}  # the last two

    def at(self, number: int) -> np.ndarray:
        """int64 ``[length]``: the tokens of a sequence."""
        first, last = number * self._length, (number + 1) * self._length
        while self.starts[-1] < last:
            self.starts.append(self.starts[-1] + len(self._block(len(self.starts) - 1)))
        begin = bisect.bisect_right(self.starts, first) - 1
        end = bisect.bisect_left(self.starts, last)
        tokens = np.concatenate([self._block(block) for block in range(begin, end)])
        return tokens[first - self.starts[begin] :][: self._length]

    def _block(self, number: int) -> np.ndarray:
        """The tokens of some documents that follow one another."""
        if number not in self._blocks:
            places = range(number * _DOCUMENTS_PER_BLOCK, (number + 1) * _DOCUMENTS_PER_BLOCK)
            found = self._tokenize([self._document(place) for place in places])
            block = np.concatenate(
                [
                    ids if len(ids) and ids[-1] == self._end_id else np.append(ids, self._end_id)
                    # some tokenizers put the end there themselves
                    for ids in found
                ]
            )
            self._blocks = {
                key: value for key, value in self._blocks.items() if key == number - 1
            } | {number: block}
        return self._blocks[number]

    def _document(self, place: int) -> str:
        """The text at a place of the endless sequence of epochs."""
        epoch, offset = divmod(place, len(self._kept))
        if epoch not in self._orders:
            order = np.random.default_rng([self._seed, epoch]).permutation(self._kept)
            self._orders = {
                key: value for key, value in self._orders.items() if key == epoch - 1
            } | {epoch: order}
        return self._texts[self._orders[epoch][offset]]


def next_tokens(texts: Sequence[np.ndarray]) -> list[Example]:
    """Causal language modelling: each state predicts the token that follows. Texts of one token are
    left out.
    """
    return [Example(ids, np.append(ids[1:], _NOTHING)) for ids in texts if len(ids) > 1]


def masked_next_tokens(
    texts: Sequence[np.ndarray], mask_id: int, share: float, seed: int
) -> list[Example]:
    """MNTP (LLM2Vec, arXiv 2404.05961): a masked token is predicted by the state of the position
    before it.

    ``share`` of all tokens but a text's first are masked, at least one in each text.
    """
    dice, found = np.random.default_rng(seed), []
    for ids in texts:
        if len(ids) < 2:
            continue
        masked = dice.random(len(ids) - 1) < share
        masked[dice.integers(len(masked))] |= not masked.any()
        targets = np.full(len(ids), _NOTHING, dtype=np.int64)
        targets[:-1][masked] = ids[1:][masked]
        read = ids.copy()
        read[1:][masked] = mask_id
        found.append(Example(read, targets))
    return found


def cross_entropies(
    hidden_TH: Tensor, targets_T: Tensor, score: Callable[[Tensor], tuple[Tensor, Tensor]]
) -> Tensor:
    """``[2]``: summed over tokens, the cross-entropy of the logits, and that of ``log(1 +
    relu(scores))``.

    ``score`` gives for states ``[t, H]`` the language model's logits ``[t, V]`` and the scores that
    are pooled when it encodes.
    """
    total_2 = torch.zeros(2, device=hidden_TH.device)
    size = max(_LOGITS_PER_BLOCK[hidden_TH.device.type] // score_width(score, hidden_TH), 1)

    def block_loss(states_tH: Tensor, wanted_t: Tensor) -> Tensor:
        logits_tV, scores_tV = score(states_tH)
        saturated_tV = torch.log1p(torch.relu(scores_tV.float()))
        return torch.stack(
            [
                torch.nn.functional.cross_entropy(found_tV, wanted_t, reduction="sum")
                for found_tV in (logits_tV.float(), saturated_tV)
            ]
        )

    for states_tH, wanted_t in zip(hidden_TH.split(size), targets_T.split(size), strict=True):
        total_2 = total_2 + checkpoint(block_loss, states_tH, wanted_t, use_reentrant=False)
    return total_2


def score_width(score: Callable[[Tensor], tuple[Tensor, Tensor]], hidden_TH: Tensor) -> int:
    """V, asked of one state."""
    with torch.no_grad():
        return score(hidden_TH[:1])[0].shape[1]
