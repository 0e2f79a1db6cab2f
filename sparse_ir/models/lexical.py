"""The honest lexical encoder: word pieces, saturated term frequency times IDF, no neural network.

It is BM25 in the form of a learned-sparse model, over word pieces of its own corpus instead of
stemmed words: a baseline that needs no training, and knows any language that its corpus is written
in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from scipy import sparse
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from sparse_ir.errors import DataError
from sparse_ir.models import tokenization
from sparse_ir.models.idf import compute_idf
from sparse_ir.models.static_queries import StaticQueryEncoder
from sparse_ir.storage.files import sha256_of_json

UNKNOWN = "[UNK]"
VOCABULARY_SIZE = 30_000


class LexicalEncoder:
    """Document weights of BM25 (Robertson & Zaragoza 2009) without the IDF, which is the query's
    weight.

    ``w = tf (k1 + 1) / (tf + k1 (1 - b + b L / avg L))`` with ``L`` in word pieces; the query
    weighs every piece that occurs in it by ``ln(1 + (N - df + .5) / (df + .5))``.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        idf: np.ndarray,
        average_length: float,
        k1: float = 0.9,
        b: float = 0.4,
    ) -> None:
        self._tokenizer, self._average_length, self._k1, self._b = (
            tokenizer,
            max(average_length, 1.0),
            k1,
            b,
        )
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
        """Learn word pieces, IDF and the average length from the texts; ``read()`` starts them
        anew.
        """
        tokenizer = _train_word_pieces(read)
        lengths = [0, 0]

        def counted() -> Iterator[str]:
            for text in read():
                lengths[0] += 1
                lengths[1] += len(tokenizer.encode(text, add_special_tokens=False).ids)
                yield text

        idf = compute_idf(counted(), tokenizer, unseen=None)
        return cls(tokenizer, idf, lengths[1] / lengths[0], k1, b)

    def encode(
        self, texts: Sequence[str], progress: Callable[[int], None] | None = None
    ) -> sparse.csr_matrix:
        """Weights CSR float32 ``(N, V)``, sorted; an empty text gives an empty row, the unknown
        piece is left out.
        """
        indptr, indices, values = [0], [], []
        for encoding in self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False):
            ids, counts = np.unique(np.array(encoding.ids, dtype=np.int32), return_counts=True)
            weights = self._saturate(counts, len(encoding.ids))
            kept = ids != self._unknown
            indices.append(ids[kept])
            values.append(weights[kept])
            indptr.append(indptr[-1] + int(kept.sum()))
        if progress is not None:
            progress(len(texts))
        joined = (
            np.concatenate(values or [np.empty(0)]).astype(np.float32),
            np.concatenate(indices or [np.empty(0)]).astype(np.int32),
            np.array(indptr),
        )
        return sparse.csr_matrix(joined, shape=(len(texts), len(self.vocabulary)))

    def query_encoder(self) -> StaticQueryEncoder:
        """The query side: IDF per word piece, binary presence."""
        return self._query_encoder

    def _saturate(self, counts: np.ndarray, length: int) -> np.ndarray:
        norm = self._k1 * (1 - self._b + self._b * length / self._average_length)
        return counts * (self._k1 + 1) / (counts + norm)


def _train_word_pieces(read: Callable[[], Iterable[str]]) -> Tokenizer:
    """A WordPiece tokenizer of these texts, lower-cased and without accents; the same texts give
    the same pieces.

    The trainer numbers the single letters in the random order of a hash table and breaks ties by
    these numbers. Hence two trainings: the first finds the letters, the second gets them in a fixed
    order.
    """
    letters = sorted(_train(read(), 0, [UNKNOWN]).get_vocab())
    if letters == [UNKNOWN]:
        raise DataError("the corpus holds no text to learn word pieces from")
    letters.remove(UNKNOWN)
    trained = _train(read(), VOCABULARY_SIZE, [UNKNOWN, *letters])
    return _empty_tokenizer(trained.get_vocab())  # without the letters' mark as special tokens


def _train(texts: Iterable[str], size: int, first_tokens: list[str]) -> Tokenizer:
    tokenizer = _empty_tokenizer({})
    tokenizer.train_from_iterator(
        texts,
        trainers.WordPieceTrainer(
            vocab_size=size, min_frequency=2, special_tokens=first_tokens, show_progress=False
        ),
    )
    return tokenizer


def _empty_tokenizer(vocabulary: dict[str, int]) -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer
