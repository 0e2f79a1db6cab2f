"""A lexical encoder: word pieces, saturated term frequency times IDF, no neural network.

It is BM25 in the form of a learned-sparse model, over word pieces of its own corpus instead of
stemmed words: a baseline that needs no training and works for the language of any corpus.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from scipy import sparse
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from sparse_ir.errors import DataError
from sparse_ir.models import tokenization
from sparse_ir.models.batching import rows_to_csr
from sparse_ir.models.idf import compute_idf
from sparse_ir.models.static_queries import StaticQueryEncoder
from sparse_ir.storage.files import sha256_of_json

UNKNOWN = "[UNK]"
VOCABULARY_SIZE = 30_000


class LexicalEncoder:
    """Document weights of BM25 (Robertson & Zaragoza 2009) without the IDF.

    ``w = tf (k1 + 1) / (tf + k1 (1 - b + b L / avg L))`` with ``L`` in word pieces. The IDF is the
    weight of the query: ``ln(1 + (N - df + .5) / (df + .5))`` for each piece that occurs in it.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        idf: np.ndarray,
        average_length: float,
        k1: float = 0.9,
        b: float = 0.4,
    ) -> None:
        self._tokenizer = tokenizer
        self._average_length = max(average_length, 1.0)
        self._k1 = k1
        self._b = b
        self._query_encoder = StaticQueryEncoder(tokenizer, idf, "opensearch", name="lexical")
        self._unknown = tokenizer.token_to_id(UNKNOWN)
        self.vocabulary: list[str] = self._query_encoder.vocabulary
        self.fingerprint: dict[str, Any] = {
            "kind": "lexical",
            "k1": k1,
            "b": b,
            "average_length": self._average_length,
            "tokenizer_sha256": tokenization.tokenizer_hash(tokenizer),
            "query_sha256": sha256_of_json(self._query_encoder.fingerprint),
        }

    @classmethod
    def fit(
        cls, read: Callable[[], Iterable[str]], *, k1: float = 0.9, b: float = 0.4
    ) -> LexicalEncoder:
        """Learn word pieces, IDF and the average length from texts; ``read()`` starts them anew.

        Raises ``DataError`` when there is no text.
        """
        tokenizer = _train_word_pieces(read)
        texts = 0
        pieces = 0

        def counted() -> Iterator[str]:
            nonlocal texts, pieces
            for text in read():
                texts += 1
                pieces += len(tokenizer.encode(text, add_special_tokens=False).ids)
                yield text

        idf = compute_idf(counted(), tokenizer, unseen=None)
        return cls(tokenizer, idf, pieces / texts, k1, b)

    def encode(
        self, texts: Sequence[str], progress: Callable[[int], None] | None = None
    ) -> sparse.csr_matrix:
        """Return the vectors of texts, CSR float32 ``[N, V]``, sorted.

        An empty text gives an empty row; the unknown piece is left out.
        """
        rows = []
        for encoding in self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False):
            ids, counts = np.unique(np.array(encoding.ids, dtype=np.int32), return_counts=True)
            weights = self._saturate(counts, len(encoding.ids))
            known = ids != self._unknown
            rows.append((ids[known], weights[known]))
        if progress is not None:
            progress(len(texts))
        return rows_to_csr(rows, len(self.vocabulary))

    def query_encoder(self) -> StaticQueryEncoder:
        """Return the query side: IDF per word piece, binary presence."""
        return self._query_encoder

    def _saturate(self, counts: np.ndarray, length: int) -> np.ndarray:
        norm = self._k1 * (1 - self._b + self._b * length / self._average_length)
        weights: np.ndarray = counts * (self._k1 + 1) / (counts + norm)
        return weights


def _train_word_pieces(read: Callable[[], Iterable[str]]) -> Tokenizer:
    """Train a WordPiece tokenizer, lower-cased and without accents; equal texts give equal pieces.

    The trainer numbers single letters in the random order of a hash table and breaks ties by these
    numbers. So it runs twice: the first run finds the letters, the second gets them in a fixed
    order.
    """
    letters = sorted(_train(read(), 0, [UNKNOWN]).get_vocab())
    if letters == [UNKNOWN]:
        raise DataError("the corpus holds no text to learn word pieces from")
    letters.remove(UNKNOWN)
    trained = _train(read(), VOCABULARY_SIZE, [UNKNOWN, *letters])
    return _empty_tokenizer(trained.get_vocab())  # without marking the letters as special tokens


def _train(texts: Iterable[str], size: int, first_tokens: list[str]) -> Tokenizer:
    tokenizer = _empty_tokenizer({})
    # WordPiece reads a longer word as unknown, and the trainer takes quadratic time on it
    longest = tokenizer.model.max_input_chars_per_word
    without_long_words = pre_tokenizers.Split(Regex(rf"[\s\S]{{{longest + 1},}}"), "removed")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.BertPreTokenizer(), without_long_words]
    )
    trainer = trainers.WordPieceTrainer(
        vocab_size=size, min_frequency=2, special_tokens=first_tokens, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _empty_tokenizer(vocabulary: dict[str, int]) -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer
