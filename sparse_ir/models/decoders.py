"""What is particular to decoders: templates and echo, the causal mask, adapters, and vocabularies
to be folded.

``checkpoint.DecoderSettings`` says how a decoder is read; here it is carried out. A network comes
out that ``encoder`` treats like any other, its attention switched by transformers' own means and
proven to be so layer by layer.

B texts, L tokens, H hidden width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from tokenizers import Encoding, Tokenizer
from torch import Tensor

from sparse_ir.errors import ConfigError
from sparse_ir.models import tokenization
from sparse_ir.models.decoder_settings import DecoderSettings
from sparse_ir.models.tokenization import Tokens

_TEXT = "{text}"


class Reader:
    """Texts to token ids, by the template of one side, with the positions that are pooled.

    Prompt, template and text are tokenized as one string, so that words meet their neighbours as
    they did in training. Where ``max_length`` is exceeded, every copy of the text keeps the same
    number of its first tokens.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        settings: DecoderSettings,
        template: str,
        max_length: int | None,
        limit_name: str = "max_length",
    ) -> None:
        self._tokenizer = tokenizer
        self._settings = settings
        self._parts = template.split(_TEXT)
        self._max_length, self._limit_name = max_length, limit_name
        self._special = np.array(tokenization.special_token_ids(tokenizer), dtype=np.int64)

    def read(self, texts: Sequence[str], prompt: str) -> list[Tokens]:
        """One ``Tokens`` for each text. Raises ``ConfigError`` when prompt and template leave no
        room for a text.
        """
        rendered = [prompt + text.join(self._parts) for text in texts]
        found = self._tokenizer.encode_batch(rendered, add_special_tokens=self._settings.bos)
        return [
            self._place(text, encoding, prompt) for text, encoding in zip(texts, found, strict=True)
        ]

    def _place(self, text: str, encoding: Encoding, prompt: str) -> Tokens:
        ids = np.array(encoding.ids, dtype=np.int32)
        copies = self._copies(
            text, np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2), prompt
        )
        kept = self._fit(copies)
        pooled = copies[-1] if self._settings.pooled == "text" else np.ones(len(ids), dtype=bool)
        if self._settings.pooled == "text":
            pooled = pooled & ~np.isin(ids, self._special)
        return Tokens(ids[kept], np.flatnonzero(pooled[kept]))

    def _copies(self, text: str, offsets: np.ndarray, prompt: str) -> np.ndarray:
        """Boolean ``[copies, L]``: the tokens that hold a character of each copy of the text."""
        start, copies = len(prompt), []
        for part in self._parts[:-1]:
            start += len(part)
            copies.append((offsets[:, 1] > start) & (offsets[:, 0] < start + len(text)))
            start += len(text)
        return np.array(copies)

    def _fit(self, copies: np.ndarray) -> np.ndarray:
        """Boolean ``[L]``: the tokens that stay when as little as possible of each copy is cut off
        at its end.
        """
        kept = np.ones(copies.shape[1], dtype=bool)
        if self._max_length is None or len(kept) <= self._max_length:
            return kept
        frame = int((~copies.any(0)).sum())
        room = (self._max_length - frame) // len(copies)
        if room < 1:
            raise ConfigError(
                f"{self._limit_name} is {self._max_length}; prompt and template "
                f"alone take {frame} "
                "tokens, and nothing of a text would be read"
            )
        for copy in copies:
            kept[np.flatnonzero(copy)[room:]] = False
        return kept


def scale_of(settings: DecoderSettings, hidden_size: int) -> float:
    """The number that ``logit_scale`` stands for."""
    return (
        hidden_size**-0.25 if settings.logit_scale == "hidden^-1/4" else float(settings.logit_scale)
    )


def center(weight_VH: Tensor, bias_V: Tensor) -> tuple[Tensor, Tensor]:
    """An output layer whose logits are those of another less their mean over the vocabulary, token
    by token.
    """
    mean_H = weight_VH.mean(0, dtype=torch.float32)
    return (weight_VH.float() - mean_H).to(weight_VH.dtype), bias_V - bias_V.mean()


def fold_vocabulary(tokenizer: Tokenizer, size: int) -> tuple[list[str], np.ndarray]:
    """The folded terms and, int64 ``[V]``, the term of each token.

    Tokens whose text is the same without outer white space and case are one term (``Ġthe``,
    ``the``, ``The``), named by the token that is that text already, else by its first. Special
    tokens, white space and pieces of characters stay alone. Every name is a token of the
    vocabulary, so that names stay distinct.
    """
    tokens = tokenization.vocabulary_of(tokenizer, size)
    special = {
        *tokenization.special_token_ids(tokenizer),
        *range(max(tokenizer.get_vocab().values()) + 1, size),
    }
    groups: dict[tuple[bool, str], list[int]] = {}
    for token_id, token in enumerate(tokens):
        text = "" if token_id in special else _text_of(tokenizer, token).strip().casefold()
        groups.setdefault((True, text) if text else (False, token), []).append(token_id)
    terms_V = np.empty(size, dtype=np.int64)
    names = []
    for term, ((_, text), members) in enumerate(groups.items()):
        terms_V[members] = term
        names.append(
            text if any(tokens[member] == text for member in members) else tokens[members[0]]
        )
    return names, terms_V


def _text_of(tokenizer: Tokenizer, token: str) -> str:
    """What a token stands for; nothing for a piece of a character."""
    text = token if tokenizer.decoder is None else tokenizer.decoder.decode([token])
    return "" if "\ufffd" in text else text


def fold(scores_BV: Tensor, terms_V: Tensor, size: int) -> Tensor:
    """``[B, terms]``: of each term's tokens the largest score."""
    folded = torch.full(
        (len(scores_BV), size), -torch.inf, device=scores_BV.device, dtype=scores_BV.dtype
    )
    return folded.scatter_reduce_(1, terms_V.expand(len(scores_BV), -1), scores_BV, "amax")
