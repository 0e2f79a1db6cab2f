"""The lexical encoder: BM25 by hand, BM25 by an independent program, and the same pieces on every
run.
"""

from __future__ import annotations

import math
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from shell import ENVIRONMENT, make_documents
from tokenizers import Tokenizer

from sparse_ir.errors import DataError
from sparse_ir.models.lexical import LexicalEncoder
from sparse_ir.models.query_side import load_query_encoder

THREE = ["river river river", "river bank", "bank bank loan loan"]  # lengths 3, 2, 4: 3 on average
PRINT_FIT = """
import hashlib, random
from sparse_ir.models.lexical import LexicalEncoder
from sparse_ir.storage import files

dice = random.Random(1)
letters = [chr(code) for code in range(0x3b1, 0x3c9)] + [chr(code) for code in range(0xac00, 0xac00 + 1500)]
words = ["".join(dice.choices(letters, k=dice.randint(2, 5))) for _ in range(3000)]
texts = [" ".join(dice.choices(words, k=12)) for _ in range(400)]
encoder = LexicalEncoder.fit(lambda: texts)
weights = encoder.encode(texts)
print(files.sha256_of_json(encoder.fingerprint), files.sha256_of_json(encoder.vocabulary),
      hashlib.sha256(weights.data.tobytes() + weights.indices.tobytes()).hexdigest(), len(encoder.vocabulary))
"""


@pytest.fixture(scope="module")
def three() -> LexicalEncoder:
    """Fitted to three documents of whole words."""
    return LexicalEncoder.fit(lambda: THREE)


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return [f"{document['title']} {document['text']}".strip() for document in make_documents(200)]


@pytest.fixture(scope="module")
def fitted(texts: list[str]) -> LexicalEncoder:
    return LexicalEncoder.fit(lambda: texts)


def weights_of(encoder: LexicalEncoder, text: str) -> dict[str, float]:
    row = encoder.encode([text])
    return {encoder.vocabulary[i]: float(w) for i, w in zip(row.indices, row.data, strict=True)}


def query_weights_of(encoder: LexicalEncoder, text: str) -> dict[str, float]:
    token_ids, weights = encoder.query_encoder().encode(text)
    return {encoder.vocabulary[i]: float(w) for i, w in zip(token_ids, weights, strict=True)}


def test_term_frequencies_saturate_as_worked_by_hand(three):
    # k1 = 0.9, b = 0.4: tf * 1.9 / (tf + 0.9 * (0.6 + 0.4 * length / 3))
    assert weights_of(three, THREE[0]) == pytest.approx({"river": 3 * 1.9 / (3 + 0.9)})
    assert weights_of(three, THREE[1]) == pytest.approx({"river": 1.9 / 1.78, "bank": 1.9 / 1.78})
    assert weights_of(three, THREE[2]) == pytest.approx(
        {"bank": 2 * 1.9 / 3.02, "loan": 2 * 1.9 / 3.02}
    )
    assert weights_of(three, "river " * 10_000)["river"] < 1.9


def test_idf_is_as_worked_by_hand(three):
    # N = 3: river and bank occur in two documents, loan in one
    assert query_weights_of(three, "river") == pytest.approx({"river": math.log(1 + 1.5 / 2.5)})
    assert query_weights_of(three, "loan bank") == pytest.approx(
        {"bank": math.log(1.6), "loan": math.log(1 + 2.5 / 1.5)}
    )


def test_a_query_counts_presence_once(three):
    assert query_weights_of(three, "loan loan LOAN lóan") == query_weights_of(three, "loan")
    assert query_weights_of(three, "") == {}
    assert query_weights_of(three, "日") == {}  # the unknown piece weighs nothing


def test_documents_and_parameters_of_another_bm25(texts):
    plain = LexicalEncoder.fit(lambda: THREE, k1=1.2, b=0.0)
    assert weights_of(plain, THREE[0]) == pytest.approx({"river": 3 * 2.2 / (3 + 1.2)})
    assert plain.fingerprint["k1"] == 1.2
    assert plain.fingerprint != LexicalEncoder.fit(lambda: THREE).fingerprint


def test_the_ranking_is_that_of_bm25_computed_independently(fitted, texts, tmp_path):
    fitted.query_encoder().save(tmp_path)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    pieces = [tokenizer.encode(text).ids for text in texts]
    counts = np.zeros((len(texts), len(fitted.vocabulary)))
    for row, ids in enumerate(pieces):
        np.add.at(counts, (row, ids), 1)
    lengths = counts.sum(axis=1)
    frequency = (counts > 0).sum(axis=0)
    idf = np.log(1 + (len(texts) - frequency + 0.5) / (frequency + 0.5))
    norm = 0.9 * (1 - 0.4 + 0.4 * lengths / lengths.mean())
    bm25 = idf * counts * 1.9 / (counts + norm[:, None])

    weights = fitted.encode(texts)
    for text in ["river floods valley", "bees carry pollen", "old island", texts[3], texts[5]]:
        expected = bm25[:, sorted(set(tokenizer.encode(text).ids))].sum(axis=1)
        token_ids, boosts = fitted.query_encoder().encode(text)
        scores = weights[:, token_ids] @ boosts
        assert expected.max() > 0
        np.testing.assert_allclose(scores, expected, rtol=2e-5)
        assert (
            np.argsort(-scores, kind="stable")[:10]
            == np.argsort(-expected.round(5), kind="stable")[:10]
        ).all()


def test_vectors_have_the_promised_form(fitted, texts):
    weights = fitted.encode(texts)
    assert weights.shape == (200, len(fitted.vocabulary))
    assert (weights.dtype, weights.indices.dtype) == (np.float32, np.int32)
    assert weights.has_sorted_indices
    assert (weights.data > 0).all()
    assert (np.diff(weights.indptr) == 0).sum() == texts.count("") == 20
    done: list[int] = []
    assert fitted.encode([], done.append).shape == (0, len(fitted.vocabulary))
    fitted.encode(texts[:5], done.append)
    assert done == [0, 5]


def test_a_text_has_the_same_vector_alone_and_in_company(fitted, texts):
    together = fitted.encode(texts)
    for position in random.Random(0).sample(range(200), 10):
        alone = fitted.encode([texts[position]])
        assert (alone.data == together[position].data).all()
        assert (alone.indices == together[position].indices).all()


def test_unknown_pieces_are_in_no_vector_but_count_in_the_length(three):
    assert weights_of(three, "日 日") == {}
    # as long as "river bank"
    assert weights_of(three, "river 日") == pytest.approx({"river": 1.9 / 1.78})


def test_the_query_side_survives_a_folder(fitted, tmp_path):
    fitted.query_encoder().save(tmp_path)
    loaded = load_query_encoder(tmp_path)
    assert loaded.fingerprint == fitted.query_encoder().fingerprint
    for text in ("bees carry pollen", "", "[UNK] ##s"):
        for one, other in zip(
            loaded.encode(text), fitted.query_encoder().encode(text), strict=True
        ):
            assert (one == other).all()


def test_tokens_written_in_a_text_are_text(fitted):
    tokens = weights_of(fitted, "[UNK] ##s")
    assert "[UNK]" not in tokens
    assert "##s" not in tokens


def test_two_processes_learn_the_same_pieces():
    printed = {
        subprocess.run(
            [sys.executable, "-c", PRINT_FIT],
            env={**ENVIRONMENT, "PYTHONHASHSEED": seed},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for seed in ("0", "1", "2")
    }
    assert len(printed) == 1
    # every letter at the start and inside of a word
    assert int(printed.pop().split()[-1]) > 2 * 1500


def test_a_corpus_without_text_is_refused(tmp_path: Path):
    for texts in ([], ["", " "]):
        with pytest.raises(DataError, match="the corpus holds no text to learn word pieces from"):
            LexicalEncoder.fit(lambda texts=texts: texts)
