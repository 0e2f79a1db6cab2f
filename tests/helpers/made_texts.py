"""Texts of made words, rare and common as in a language, and questions of the same words."""

from __future__ import annotations

import numpy as np

from sparse_ir.data.records import Document

WORDS = 1200
_LONGEST = 160
_RARE = 15  # words below this number are in most documents


def made_word(number: int) -> str:
    """A word of letters only, which no stemmer of English shortens."""
    letters = "bdfgklmnprtvz"
    word = ""
    while number or not word:
        number, rest = divmod(number, len(letters))
        word += letters[rest] + "o"
    return f"{word}k"


def made_documents(seed: int, count: int) -> list[Document]:
    """Documents of 0 to 160 words; every 50th is empty, every 3rd has a title."""
    generator = np.random.default_rng(seed)
    documents = []
    for number in range(count):
        length = 0 if number % 50 == 49 else int(generator.integers(1, _LONGEST))
        text = _draw(generator, length)
        title = _draw(generator, 3) if number % 3 == 0 and length else ""
        documents.append(Document(f"d{(number * 7919) % count}", title, text))
    return documents


def made_queries(seed: int, count: int) -> list[str]:
    """Questions of 2 to 7 words that are not in most documents, some of them twice."""
    generator = np.random.default_rng(seed)
    texts = []
    for number in range(count):
        chosen = generator.integers(_RARE, _RARE + 200, size=2 + number % 6)
        text = " ".join(made_word(int(rank)) for rank in chosen)
        texts.append(f"{text} {text.split()[0]}" if number % 4 == 3 else text)
    return texts


def _draw(generator: np.random.Generator, length: int) -> str:
    ranks = generator.zipf(1.3, size=4 * length)
    kept = ranks[ranks <= WORDS][:length]
    return " ".join(made_word(int(rank)) for rank in kept)
