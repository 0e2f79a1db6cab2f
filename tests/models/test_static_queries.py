import json
import math
import random
import subprocess
import sys
import time

import numpy as np
import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from sparse_ir.errors import ConfigError, DamagedError, DataError
from sparse_ir.models import query_side, static_queries, tokenization
from sparse_ir.models.idf import compute_idf, write_idf_json
from sparse_ir.models.static_queries import StaticQueryEncoder

VOCABULARY = {
    "[PAD]": 0,
    "[UNK]": 1,
    "[CLS]": 2,
    "[SEP]": 3,
    "ny": 4,
    "weather": 5,
    "now": 6,
    "?": 7,
    "in": 8,
}
IDF = {"ny": 5.5, "weather": 4.5, "?": -1.0, "[UNK]": 0.25, "[CLS]": 1.0}


@pytest.fixture
def words() -> Tokenizer:
    """Whole words, BERT's special tokens; "the" is unknown to it."""
    tokenizer = Tokenizer(models.WordLevel(dict(VOCABULARY), unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return tokenizer


@pytest.fixture
def idf_path(tmp_path):
    path = tmp_path / "idf.json"
    path.write_text(json.dumps(IDF))
    return path


def as_dict(encoder, text):
    ids, weights = encoder.encode(text)
    assert ids.dtype == np.int32 and weights.dtype == np.float32
    assert (np.diff(ids) > 0).all() and (weights > 0).all()
    return {encoder.vocabulary[i]: float(w) for i, w in zip(ids, weights, strict=True)}


def test_opensearch_convention_by_hand(words, idf_path):
    encoder = static_queries.from_idf_json(idf_path, words, "opensearch")
    # "now" and "in" have no IDF: 1.0; "the" is unknown, a special token: 0; "?" is negative: ReLU;
    # ny twice counts once
    assert as_dict(encoder, "the weather in NY ny now ?") == {
        "ny": 5.5,
        "weather": 4.5,
        "now": 1.0,
        "in": 1.0,
    }


def test_sentence_transformers_convention_by_hand(words, tmp_path):
    path = tmp_path / "idf.json"
    path.write_text(json.dumps({**IDF, "?": 0.5}))
    encoder = static_queries.from_idf_json(path, words, "sentence-transformers")
    # no IDF: 0.0, so the token is gone; the unknown token keeps its weight
    assert as_dict(encoder, "the weather in ny now ?") == {
        "[UNK]": 0.25,
        "ny": 5.5,
        "weather": 4.5,
        "?": 0.5,
    }


def test_weights_meet_the_collections_own_idf(words, idf_path):
    encoder = static_queries.from_idf_json(idf_path, words, "opensearch")
    idf = compute_idf(["ny weather", "ny now", "ny ?"], words, unseen=None)
    half = encoder.adapted(idf, 0.5)
    expected = {
        "ny": (5.5 * np.log1p(0.5 / 3.5)) ** 0.5,
        "weather": (4.5 * np.log1p(2.5 / 1.5)) ** 0.5,
        # "in" stands nowhere; the unknown and "?" stay without weight
        "in": np.log(8.0) ** 0.5,
    }
    assert as_dict(half, "the weather in NY ?") == pytest.approx(expected)
    assert as_dict(encoder.adapted(idf, 0.0), "ny weather") == pytest.approx(
        as_dict(encoder, "ny weather")
    )
    assert half.fingerprint["weights_sha256"] != encoder.fingerprint["weights_sha256"]
    assert half.fingerprint["origin"]["collection_idf"] == 0.5
    assert as_dict(encoder, "ny") == {"ny": 5.5}
    with pytest.raises(ConfigError, match=r"share of the IDF is 1\.5; it must be 0 to 1"):
        encoder.adapted(idf, 1.5)
    with pytest.raises(ConfigError, match="there are 2 IDF values; there must be"):
        encoder.adapted(idf[:2], 0.5)


def test_a_special_token_written_in_the_query_follows_the_convention(words, idf_path, tmp_path):
    path = tmp_path / "st.json"
    path.write_text(json.dumps({"[CLS]": 1.0, "ny": 2.0}))
    assert as_dict(
        static_queries.from_idf_json(path, words, "sentence-transformers"), "[CLS] ny"
    ) == {"[CLS]": 1.0, "ny": 2.0}
    assert as_dict(static_queries.from_idf_json(idf_path, words, "opensearch"), "[CLS] ny") == {
        "ny": 5.5
    }


def test_negative_weight_is_refused_without_relu(words, idf_path):
    with pytest.raises(
        ConfigError,
        match=r"1 weights are negative \(token id 7: "
        r"-1.0\).*opensearch",
    ):
        static_queries.from_idf_json(idf_path, words, "sentence-transformers")


@pytest.mark.parametrize(
    ("convention", "expected"), [("sentence-transformers", 4), ("opensearch", 2)]
)
def test_max_length_counts_the_frame_only_for_opensearch(words, convention, expected):
    encoder = static_queries.ones(words, convention, max_length=4)
    assert len(encoder.encode("ny weather now ? in")[0]) == expected


def test_ones_and_the_empty_query(words):
    encoder = static_queries.ones(words)
    assert as_dict(encoder, "ny ny the ?") == {"ny": 1.0, "?": 1.0}
    ids, weights = encoder.encode("")
    assert len(ids) == len(weights) == 0 and ids.dtype == np.int32 and weights.dtype == np.float32
    assert as_dict(static_queries.ones(words, "sentence-transformers"), "the ny") == {
        "[UNK]": 1.0,
        "ny": 1.0,
    }


def test_prompt_is_put_before_the_query(words):
    assert as_dict(static_queries.ones(words, prompt="weather "), "ny") == {
        "weather": 1.0,
        "ny": 1.0,
    }


def test_unknown_key_is_refused_or_counted_and_never_falls_on_the_unknown_token(words, tmp_path):
    path = tmp_path / "idf.json"
    path.write_text(json.dumps({"ny": 2.0, "zebra": 9.0, "yak": 8.0}))
    with pytest.raises(
        DataError,
        match=r"2 of 3 keys are not tokens of this tokenizer \(first: "
        r"\['zebra', 'yak'\]\)",
    ):
        static_queries.from_idf_json(path, words, "sentence-transformers")
    encoder = static_queries.from_idf_json(path, words, "sentence-transformers", allow_unknown=True)
    assert as_dict(encoder, "ny zebra") == {"ny": 2.0}
    assert encoder.fingerprint["origin"]["unknown_tokens"] == 2
    assert encoder.fingerprint["origin"]["known_tokens"] == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1]", "the top level must be a non-empty object"),
        ("{}", "the top level must be a non-empty object"),
        ("{", "is not readable as JSON"),
        ('{"ny": "high"}', r"the weight of 'ny' is 'high'; it must be a finite number"),
        ('{"ny": NaN}', "the weight of 'ny' is nan"),
        ('{"ny": true}', "the weight of 'ny' is True"),
    ],
)
def test_broken_weight_file(words, tmp_path, content, message):
    path = tmp_path / "idf.json"
    path.write_text(content)
    with pytest.raises(DataError, match=message):
        static_queries.from_idf_json(path, words, "opensearch")


def test_missing_weight_file(words, tmp_path):
    with pytest.raises(DataError, match=r"none\.json is missing"):
        static_queries.from_idf_json(tmp_path / "none.json", words, "opensearch")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda t: static_queries.ones(t, "lucene"),
            "convention is 'lucene'; it must be sentence-transformers or opensearch",
        ),
        (lambda t: static_queries.ones(t, max_length=0), "max_length is 0; it must be at least 1"),
        (
            lambda t: StaticQueryEncoder(t, np.ones(3), "opensearch"),
            (
                r"shape \(3,\); there must be .* each "
                r"of 9"
            ),
        ),
        (
            lambda t: StaticQueryEncoder(t, np.full(9, np.inf), "opensearch"),
            "weight of token id 0 is inf; it must be finite",
        ),
    ],
)
def test_options_that_do_not_fit(words, call, message):
    with pytest.raises(ConfigError, match=message):
        call(words)


def test_truncation_and_padding_of_the_tokenizer_do_not_leak_in(words):
    plain = static_queries.ones(words)
    words.enable_truncation(3)
    words.enable_padding(length=12)
    stateful = static_queries.ones(words)
    text = "ny weather now ? in"
    assert as_dict(stateful, text) == as_dict(plain, text)
    assert stateful.fingerprint["tokenizer_sha256"] == plain.fingerprint["tokenizer_sha256"]
    # the caller's object stays as it was
    assert words.truncation is not None and words.padding is not None


def test_tokenizer_hash_sees_rules(words):
    before = tokenization.tokenizer_hash(words)
    words.normalizer = normalizers.Sequence([])
    assert tokenization.tokenizer_hash(words) != before


def test_a_wider_vocabulary_has_distinct_reserved_names(words):
    words.add_tokens(["[unused-10]"])  # takes id 9, and the name that id 10 would get
    encoder = static_queries.ones(words, vocabulary_size=12)
    assert encoder.vocabulary[9:] == ["[unused-10]", "[[unused-10]]", "[unused-11]"]
    assert len(set(encoder.vocabulary)) == 12 and len(encoder.weights) == 12


def test_special_token_ids(words, tiny_folders):
    assert tokenization.special_token_ids(words) == [0, 1, 2, 3]
    for family, folder in tiny_folders.items():
        assert tokenization.special_token_ids(
            tokenization.read_tokenizer(folder / "tokenizer.json")
        ) == [0, 1, 2, 3, 4], family


def test_unknown_token_of_a_unigram_model_counts_as_special():
    tokenizer = Tokenizer(models.Unigram([("a", -1.0), ("<unk>", -9.0), ("b", -2.0)], unk_id=1))
    assert tokenization.special_token_ids(tokenizer) == [1]


def test_idf_by_hand(words):
    idf = compute_idf(iter(["ny weather ny", "ny now", "the"]), words, unseen=None)
    # N = 3; df(ny) = 2, df(weather) = df(now) = df([UNK]) = 1, all others 0
    assert idf.dtype == np.float32 and idf.shape == (9,)
    assert idf[4] == pytest.approx(math.log(1 + (3 - 2 + 0.5) / (2 + 0.5)), rel=1e-6)
    assert idf[[5, 6, 1]] == pytest.approx([math.log(1 + 2.5 / 1.5)] * 3, rel=1e-6)
    assert idf[8] == pytest.approx(math.log(2 * 3 + 2), rel=1e-6)
    assert compute_idf(["ny"], words)[[7, 8]].tolist() == [1.0, 1.0]


def test_idf_equals_a_loop_on_real_text(tiny_tokenizer, tiny_texts):
    texts = tiny_texts * 150  # more than one batch
    idf = compute_idf(texts, tiny_tokenizer, unseen=None)
    sets = [set(tiny_tokenizer.encode(text, add_special_tokens=False).ids) for text in texts]
    for token_id in range(len(idf)):
        df = sum(token_id in found for found in sets)
        assert idf[token_id] == pytest.approx(
            math.log(1 + (len(texts) - df + 0.5) / (df + 0.5)), rel=1e-6
        )


def test_idf_of_nothing(words):
    with pytest.raises(DataError, match="at least one text"):
        compute_idf([], words)


def test_idf_json_round_trip(words, tmp_path):
    idf = compute_idf(["ny weather", "ny the"], words)
    write_idf_json(tmp_path / "idf.json", idf, words)
    assert list(json.loads((tmp_path / "idf.json").read_text())) == list(VOCABULARY)
    encoder = static_queries.from_idf_json(tmp_path / "idf.json", words, "sentence-transformers")
    assert np.array_equal(encoder.weights, idf)
    with pytest.raises(ConfigError, match="there are 4 IDF values; there must be 9"):
        write_idf_json(tmp_path / "idf.json", idf[:4], words)


def test_save_and_load_give_the_same_vectors(words, idf_path, tmp_path):
    encoder = static_queries.from_idf_json(
        idf_path, words, "opensearch", max_length=6, name="n", prompt="now "
    )
    encoder.save(tmp_path / "query")
    again = query_side.load_query_encoder(tmp_path / "query")
    text = "the weather in NY ny now ?"
    assert as_dict(again, text) == as_dict(encoder, text)
    assert again.fingerprint == encoder.fingerprint and again.vocabulary == encoder.vocabulary
    assert sorted(path.name for path in (tmp_path / "query").iterdir()) == [
        "query.json",
        "tokenizer.json",
        "weights.safetensors",
    ]


def test_changed_weights_are_noticed(words, idf_path, tmp_path):
    static_queries.from_idf_json(idf_path, words, "opensearch").save(tmp_path)
    StaticQueryEncoder(words, np.ones(9), "opensearch").save(tmp_path / "other")
    (tmp_path / "weights.safetensors").write_bytes(
        (tmp_path / "other" / "weights.safetensors").read_bytes()
    )
    with pytest.raises(DamagedError, match=r"weights_sha256 is .* but query.json promises"):
        query_side.load_query_encoder(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("query.json", "{}", "format is not 1"),
        (
            "query.json",
            '{"format": 1, "kind": "oracle"}',
            "kind is 'oracle'; it must be neural or static",
        ),
        ("tokenizer.json", "{}", "cannot be read"),
        ("weights.safetensors", "", "weights.safetensors is not readable as safetensors"),
    ],
)
def test_broken_folder(words, tmp_path, name, content, message):
    static_queries.ones(words).save(tmp_path)
    (tmp_path / name).write_text(content)
    with pytest.raises(DamagedError, match=message):
        query_side.load_query_encoder(tmp_path)


def test_a_model_for_a_static_query_side_is_refused(words, tmp_path):
    static_queries.ones(words).save(tmp_path)
    with pytest.raises(ConfigError, match="without a neural model"):
        query_side.load_query_encoder(tmp_path, model="some/model")


def test_missing_tokenizer(tmp_path):
    with pytest.raises(DataError, match=r"tokenizer\.json is missing"):
        tokenization.read_tokenizer(tmp_path / "tokenizer.json")


def test_no_torch_at_query_time(words, tmp_path):
    static_queries.ones(words).save(tmp_path)
    code = (
        "import sys; from pathlib import Path; from sparse_ir.models import query_side;"
        f"encoder = query_side.load_query_encoder(Path({str(tmp_path)!r}));"
        "assert len(encoder.encode('ny weather')[0]) == 2;"
        "print([name for name in ('torch', 'transformers', 'scipy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def shortest_time(action, question):
    times = []
    for _ in range(300):
        start = time.perf_counter()
        action(question)
        times.append(time.perf_counter() - start)
    return min(times)


def test_a_question_takes_little_longer_than_its_tokenizer(tiny_tokenizer):
    encoder = static_queries.ones(tiny_tokenizer, max_length=64)
    question = "what is the capital city of france , and why ?"
    encoding = shortest_time(encoder.encode, question)
    assert encoding < 10 * shortest_time(tiny_tokenizer.encode, question)


def odd_texts(seed: int, count: int) -> list[str]:
    """Words, punctuation, special tokens and signs that a tokenizer's rules turn on, put together
    by chance.
    """
    parts = [
        "What",
        "is",
        "a",
        "the",
        "unaffable",
        "NY",
        "1984",
        "e.g.",
        "don't",
        "(so)",
        "--",
        " ",
        "  ",
        "\t",
        "\n",
        "?",
        "[MASK]",
        "[mask]",
        "[CLS]",
        "##ing",
        "É",
        "e\u0301",
        "Σ",
        "東京",
        "\u200b",
        "x" * 120,
        "a" * 9,
        "@",
        "_",
        "^",
    ]
    generator = random.Random(seed)
    return [
        generator.choice(["", " "]).join(generator.choices(parts[: 14 if turn % 2 else None], k=9))
        for turn in range(count)
    ]


@pytest.mark.parametrize("change", ["none", "cased", "added word", "short words", "limit"])
def test_words_that_are_looked_up_are_those_of_the_tokenizer(change, change_tokenizer):
    tokenizer, limit = change_tokenizer(change), 6 if change == "limit" else None
    encoder = static_queries.ones(tokenizer, "sentence-transformers", max_length=limit)
    assert (encoder._words is None) == (change in ("cased", "added word"))
    for text in odd_texts(0, 2000):
        expected = tokenizer.encode(text, add_special_tokens=False).ids[:limit]
        assert encoder.encode(text)[0].tolist() == sorted(set(expected)), text


@pytest.fixture
def change_tokenizer():
    """Makes a tokenizer as BERT's, and with one rule changed."""
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "what",
        "is",
        "a",
        "the",
        "una",
        "##ffa",
        "##ble",
        "ny",
        "1984",
        ".",
        "?",
        "don",
        "'",
        "t",
        "(",
        ")",
        "-",
        "so",
        "e",
        "Σ",
        "##a",
        "aaaaaaaaa",
        "@",
        "What",
    ]

    def make(change: str) -> Tokenizer:
        longest = 5 if change == "short words" else 100
        tokenizer = Tokenizer(
            models.WordPiece(
                {word: place for place, word in enumerate(words)},
                unk_token="[UNK]",
                max_input_chars_per_word=longest,
            )
        )
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=change != "cased")
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.add_special_tokens(words[:5])
        if change == "added word":
            tokenizer.add_tokens(["e.g."])
        return tokenizer

    return make


@pytest.mark.parametrize("family", ["bert", "roberta", "xlm-roberta"])
def test_parity_with_sentence_transformers(family, tiny_folders, tiny_texts, tmp_path):
    import torch
    import transformers
    from sentence_transformers.sparse_encoder.modules import SparseStaticEmbedding

    owner = transformers.AutoTokenizer.from_pretrained(tiny_folders[family])
    idf = compute_idf(tiny_texts, owner.backend_tokenizer)
    write_idf_json(tmp_path / "idf.json", idf, owner.backend_tokenizer)
    oracle = SparseStaticEmbedding.from_json(str(tmp_path / "idf.json"), tokenizer=owner)
    encoder = static_queries.from_idf_json(
        tmp_path / "idf.json",
        owner.backend_tokenizer,
        "sentence-transformers",
        max_length=owner.model_max_length,
    )
    for text in tiny_texts:
        with torch.inference_mode():
            expected = (
                oracle(oracle.preprocess([text or " "]))["sentence_embedding"][0].numpy()
                if text
                else 0.0
            )
        found = np.zeros(len(encoder.vocabulary), dtype=np.float32)
        ids, weights = encoder.encode(text)
        found[ids] = weights
        assert np.abs(found - expected).max() <= 1e-6
