"""How texts become token ids, and which of their tokens are pooled.

L tokens of a text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from tokenizers import Encoding, Tokenizer

from sparse_ir.errors import ConfigError
from sparse_ir.models import tokenization
from sparse_ir.models.decoder_settings import TEXT_PLACEHOLDER, DecoderSettings
from sparse_ir.models.tokenization import Tokens


class TextReader(Protocol):
    """Turns texts into the tokens that a network reads."""

    def read(self, texts: Sequence[str], prompt: str) -> list[Tokens]:
        """Return the tokens of each text, with ``prompt`` before it, cut to the reader's limit."""


class PlainReader:
    """Reads a text as its tokenizer frames it; every token is pooled."""

    def __init__(self, tokenizer: Tokenizer, max_length: int | None) -> None:
        self._tokenizer = tokenization.cut_at(tokenizer, max_length)

    def read(self, texts: Sequence[str], prompt: str) -> list[Tokens]:
        """Return the tokens of each text, special tokens included."""
        encodings = self._tokenizer.encode_batch_fast([prompt + text for text in texts])
        return [Tokens(np.array(encoding.ids, dtype=np.int32)) for encoding in encodings]


class TemplateReader:
    """Reads a text inside a template and pools the tokens of the text.

    Prompt, template and text are tokenized as one string, because a tokenizer may join the words
    at their borders. Where the tokens exceed ``max_length``, every copy of the text keeps the same
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
        """``tokenizer`` must not truncate; ``limit_name`` names ``max_length`` in errors."""
        self._tokenizer = tokenizer
        self._settings = settings
        self._parts = template.split(TEXT_PLACEHOLDER)
        self._max_length = max_length
        self._limit_name = limit_name
        self._special = np.array(tokenization.special_token_ids(tokenizer), dtype=np.int64)

    def read(self, texts: Sequence[str], prompt: str) -> list[Tokens]:
        """Return the tokens of each text.

        Raises ``ConfigError`` when prompt and template leave no room for a text.
        """
        rendered = [prompt + text.join(self._parts) for text in texts]
        encodings = self._tokenizer.encode_batch(rendered, add_special_tokens=self._settings.bos)
        return [
            self._select(text, encoding, prompt)
            for text, encoding in zip(texts, encodings, strict=True)
        ]

    def _select(self, text: str, encoding: Encoding, prompt: str) -> Tokens:
        ids = np.array(encoding.ids, dtype=np.int32)
        offsets = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)
        copies = self._copies(text, offsets, prompt)
        kept = self._fit(copies)
        if self._settings.pooled == "text":
            pooled = copies[-1] & ~np.isin(ids, self._special)
        else:
            pooled = np.ones(len(ids), dtype=bool)
        return Tokens(ids[kept], np.flatnonzero(pooled[kept]))

    def _copies(self, text: str, offsets: np.ndarray, prompt: str) -> np.ndarray:
        """Return which tokens hold a character of each copy of the text, bool ``[copies, L]``."""
        start = len(prompt)
        copies = []
        for part in self._parts[:-1]:
            start += len(part)
            copies.append((offsets[:, 1] > start) & (offsets[:, 0] < start + len(text)))
            start += len(text)
        return np.array(copies)

    def _fit(self, copies: np.ndarray) -> np.ndarray:
        """Return which tokens stay, bool ``[L]``, when the end of each copy is cut off."""
        kept = np.ones(copies.shape[1], dtype=bool)
        if self._max_length is None or len(kept) <= self._max_length:
            return kept
        frame = int((~copies.any(0)).sum())
        room = (self._max_length - frame) // len(copies)
        if room < 1:
            raise ConfigError(
                f"{self._limit_name} is {self._max_length}, but prompt and template alone take "
                f"{frame} tokens, so nothing of a text would be read; it must be larger"
            )
        for copy in copies:
            kept[np.flatnonzero(copy)[room:]] = False
        return kept
