"""The language-model losses by which a decoder adapts before ranking.

They are next tokens, masked tokens, and the same on saturated logits. Logits of a language model
were never meant to pass a ReLU: all of them may sink below zero, and nothing brings them back. So
the same cross-entropy is computed on ``log(1 + relu(logits))``, too (CSPLADE, arXiv 2504.10816).
``[T, V]`` is made in blocks and made again for the gradient, so that memory does not grow with
tokens times vocabulary.

T tokens that predict, t of them in a block, L tokens of a sequence, H hidden width, V vocabulary.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from sparse_ir.training.sources.training_source import merge_equal

Score = Callable[[Tensor], tuple[Tensor, Tensor]]
_LOGITS_PER_BLOCK = {"cpu": 2**22, "cuda": 2**26}
_DOCUMENTS_PER_BLOCK = 256
NOTHING = -100  # a position that predicts nothing


class Example(NamedTuple):
    """What a network reads, and the token that the state of each position must predict."""

    ids: np.ndarray  # int64 [L]
    targets: np.ndarray  # int64 [L], NOTHING where nothing is predicted

    @property
    def predicted(self) -> int:
        """The number of predicted tokens."""
        return int((self.targets != NOTHING).sum())


class Packed:
    """All documents as one endless stream of tokens, cut into sequences of one length.

    An epoch is a permutation of the distinct documents that are not empty. Each is there whole,
    with the end token behind it; attention crosses it, as in pre-training. Only texts, seed and
    number decide a sequence. ``starts`` has the places in the stream where the blocks of documents
    begin that were read so far; a resumed run that sets it need not tokenize all earlier documents.
    """

    def __init__(
        self,
        texts: Sequence[str],
        tokenize: Callable[[Sequence[str]], Sequence[np.ndarray]],
        length: int,
        end_id: int,
        seed: int,
    ) -> None:
        first_equal = merge_equal(texts)
        is_first = first_equal == np.arange(len(first_equal))
        is_filled = np.array([bool(text.strip()) for text in texts], dtype=bool)
        self._texts = texts
        self._kept = np.flatnonzero(is_first & is_filled)
        self._tokenize = tokenize
        self._length = length
        self._end_id = end_id
        self._seed = seed
        self.starts = [0]
        self._orders: dict[int, np.ndarray] = {}  # of the last two epochs
        self._blocks: dict[int, np.ndarray] = {}  # the last two

    def at(self, number: int) -> np.ndarray:
        """Return the tokens of a sequence, int64 ``[length]``, numbered from 0."""
        first = number * self._length
        last = first + self._length
        while self.starts[-1] < last:
            self.starts.append(self.starts[-1] + len(self._block(len(self.starts) - 1)))
        begin = bisect.bisect_right(self.starts, first) - 1
        end = bisect.bisect_left(self.starts, last)
        tokens = np.concatenate(list(map(self._block, range(begin, end))))
        return tokens[first - self.starts[begin] :][: self._length]

    def _block(self, number: int) -> np.ndarray:
        """Return the tokens of consecutive documents, each with the end token behind it."""
        if number not in self._blocks:
            places = range(number * _DOCUMENTS_PER_BLOCK, (number + 1) * _DOCUMENTS_PER_BLOCK)
            parts = []
            for ids in self._tokenize(list(map(self._document, places))):
                # some tokenizers put the end there themselves
                has_end = len(ids) and ids[-1] == self._end_id
                parts.append(ids if has_end else np.append(ids, self._end_id))
            _forget_before(self._blocks, number - 1)
            self._blocks[number] = np.concatenate(parts)
        return self._blocks[number]

    def _document(self, place: int) -> str:
        """Return the text at a place of the endless sequence of epochs."""
        epoch, offset = divmod(place, len(self._kept))
        if epoch not in self._orders:
            _forget_before(self._orders, epoch - 1)
            random = np.random.default_rng([self._seed, epoch])
            self._orders[epoch] = random.permutation(self._kept)
        row = int(self._orders[epoch][offset])
        return self._texts[row]


def _forget_before(arrays: dict[int, np.ndarray], kept: int) -> None:
    """Remove all arrays but the one with the number ``kept``."""
    for number in list(arrays):
        if number != kept:
            del arrays[number]


def next_tokens(texts: Sequence[np.ndarray]) -> list[Example]:
    """Return examples of causal language modelling: each state predicts the next token.

    Texts of one token are left out.
    """
    return [Example(ids, np.append(ids[1:], NOTHING)) for ids in texts if len(ids) > 1]


def masked_next_tokens(
    texts: Sequence[np.ndarray], mask_id: int, share: float, seed: int
) -> list[Example]:
    """Return examples of MNTP (LLM2Vec, arXiv 2404.05961).

    A masked token is predicted by the state of the position before it. ``share`` of all tokens but
    a text's first are masked, at least one in each text.
    """
    random = np.random.default_rng(seed)
    examples = []
    for ids in texts:
        if len(ids) < 2:
            continue
        masked = random.random(len(ids) - 1) < share
        one = random.integers(len(masked))
        if not masked.any():
            masked[one] = True
        targets = np.full(len(ids), NOTHING, dtype=np.int64)
        targets[:-1][masked] = ids[1:][masked]
        read = ids.copy()
        read[1:][masked] = mask_id
        examples.append(Example(read, targets))
    return examples


def cross_entropies(hidden_TH: Tensor, targets_T: Tensor, score: Score) -> Tensor:
    """Return two cross-entropies, ``[2]``, summed over tokens.

    The first is that of the logits, the second that of ``log(1 + relu(scores))``. ``score`` returns
    for states ``[t, H]`` the language model's logits and the scores that are pooled in encoding,
    both ``[t, V]``.
    """
    total_2 = torch.zeros(2, device=hidden_TH.device)
    with torch.no_grad():
        vocabulary = score(hidden_TH[:1])[0].shape[1]
    size = max(_LOGITS_PER_BLOCK[hidden_TH.device.type] // vocabulary, 1)

    def block_loss(states_tH: Tensor, wanted_t: Tensor) -> Tensor:
        logits_tV, scores_tV = score(states_tH)
        saturated_tV = torch.log1p(torch.relu(scores_tV.float()))
        cross_entropy = torch.nn.functional.cross_entropy
        plain = cross_entropy(logits_tV.float(), wanted_t, reduction="sum")
        saturated = cross_entropy(saturated_tV, wanted_t, reduction="sum")
        return torch.stack([plain, saturated])

    for start in range(0, max(len(targets_T), 1), size):
        part = slice(start, start + size)
        loss_2 = checkpoint(block_loss, hidden_TH[part], targets_T[part], use_reentrant=False)
        total_2 = total_2 + loss_2
    return total_2
