"""Teachers against sentence-transformers and Lucene; what is in the cache costs no forward pass."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiny_models
import torch
import transformers
from safetensors.torch import load_file, save_file

from sparse_ir.engines.lucene import bm25, java
from sparse_ir.engines.lucene.bm25 import Bm25
from sparse_ir.errors import ConfigError, DamagedError, DataError, ModelError
from sparse_ir.models.encoder import Encoder
from sparse_ir.models.lexical import LexicalEncoder
from sparse_ir.training.pipeline import prepare_teachers
from sparse_ir.training.teachers import bm25 as bm25_teacher
from sparse_ir.training.teachers import pairwise
from sparse_ir.training.teachers.bm25 import Bm25Teacher
from sparse_ir.training.teachers.cross_encoder import CrossEncoderTeacher
from sparse_ir.training.teachers.dense import DenseTeacher
from sparse_ir.training.teachers.monot5 import MonoT5Teacher
from sparse_ir.training.teachers.sparse import SparseTeacher

QUERIES = ["which river floods?", "bees and flowers", "", "  a bridge in summer  "]
TEXTS = list(tiny_models.TEXTS)
POOLINGS = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
HALF = {"rtol": 0, "atol": 2e-3}  # float16 has 11 bits


@pytest.fixture(scope="module")
def backbone(tiny_folder: Path, tmp_path_factory) -> Path:
    """The random BERT without its output layer."""
    folder = tmp_path_factory.mktemp("backbone")
    transformers.AutoModel.from_pretrained(tiny_folder).save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(tiny_folder).save_pretrained(folder)
    return folder


def build_dense(
    source: Path,
    target: Path,
    pooling="mean",
    *,
    normalize=False,
    similarity="cosine",
    prompts=None,
    **pooling_options,
) -> Path:
    """A dense model written by sentence-transformers itself."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules.transformer import Transformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling

    modules = [Transformer(str(source)), Pooling(tiny_models.WIDTH, pooling, **pooling_options)]
    model = SentenceTransformer(
        modules=[*modules, *([Normalize()] if normalize else [])],
        device="cpu",
        similarity_fn_name=similarity,
        prompts=prompts,
    )
    model.save(str(target))
    return target


@pytest.fixture(scope="module")
def dense_folder(backbone: Path, tmp_path_factory) -> Path:
    return build_dense(backbone, tmp_path_factory.mktemp("dense") / "model", normalize=True)


@pytest.fixture(scope="module")
def cross_folder(tiny_folder: Path, tmp_path_factory) -> Path:
    return tiny_models.build_cross_encoder(tiny_folder, tmp_path_factory.mktemp("cross") / "scorer")


def edit_json(path: Path, **changes) -> None:
    value = json.loads(path.read_text())
    value.update(changes)
    path.write_text(json.dumps(value))


def poison(folder: Path, word: str, value: float = math.nan) -> None:
    """Make the embeddings of a word's pieces bad."""
    tokens = load_file(folder / "model.safetensors")
    name = next(name for name in tokens if name.endswith("word_embeddings.weight"))
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokens[name][tokenizer(word, add_special_tokens=False)["input_ids"]] = value
    save_file(tokens, folder / "model.safetensors", metadata={"format": "pt"})


def is_loaded(teacher) -> bool:
    return "model" in vars(teacher)


def count_rows(teacher) -> list[int]:
    """Rows of every real forward pass from now on, seen by torch itself."""
    seen: list[int] = []
    if isinstance(teacher, MonoT5Teacher):
        teacher.model.register_forward_pre_hook(
            lambda module, args, kwargs: seen.append(len(kwargs["input_ids"])), with_kwargs=True
        )
    else:  # sentence-transformers calls the network's forward without its hooks
        teacher.model[0].register_forward_pre_hook(
            lambda module, args: seen.append(len(args[0]["input_ids"]))
        )
    return seen


# --- dense ---


@pytest.mark.parametrize("pooling", [*POOLINGS, ("mean", "max")])
@pytest.mark.parametrize("normalize", [True, False])
def test_dense_vectors_are_those_of_sentence_transformers(backbone, tmp_path, pooling, normalize):
    from sentence_transformers import SentenceTransformer

    folder = build_dense(backbone, tmp_path / "m", pooling, normalize=normalize)
    expected = SentenceTransformer(str(folder), device="cpu").encode(TEXTS)
    teacher = DenseTeacher(folder, device="cpu", batch_size=4)
    assert teacher.dimension == expected.shape[1]
    found = teacher.vectors(TEXTS, "document")
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("family", ["distilbert", "roberta", "modernbert"])
@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_dense_scores_are_those_of_sentence_transformers(
    tiny_folders, tmp_path, family, similarity
):
    from sentence_transformers import SentenceTransformer

    folder = build_dense(
        tiny_folders[family],
        tmp_path / "m",
        similarity=similarity,
        normalize=similarity == "dot",
        prompts={"query": "query: ", "document": "passage: "},
    )
    model = SentenceTransformer(str(folder), device="cpu")
    expected = model.similarity(model.encode_query(QUERIES), model.encode_document(TEXTS)).numpy()
    teacher = DenseTeacher(folder, device="cpu")
    found = teacher.scores(QUERIES, TEXTS)
    assert teacher.in_batch
    assert teacher.fingerprint["prompts"] == {"query": "query: ", "document": "passage: "}
    assert teacher.fingerprint["similarity"] == similarity
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, **HALF)


@pytest.mark.parametrize(
    "stated",
    [
        {"prompts": {"query": "query: ", "document": "passage: ", "corpus": "none: "}},
        {"prompts": {"web": "search: "}, "default_prompt_name": "web"},
        {"prompts": {"query": "ask: ", "web": "search: "}, "default_prompt_name": "web"},
        {"prompts": {}},
    ],
)
def test_prompts_are_chosen_as_sentence_transformers_does(dense_folder, tmp_path, stated):
    from sentence_transformers import SentenceTransformer

    folder = Path(shutil.copytree(dense_folder, tmp_path / "m"))
    edit_json(folder / "config_sentence_transformers.json", **stated)
    model, teacher = (
        SentenceTransformer(str(folder), device="cpu"),
        DenseTeacher(folder, device="cpu"),
    )
    np.testing.assert_allclose(teacher.vectors(TEXTS, "query"), model.encode_query(TEXTS), **HALF)
    np.testing.assert_allclose(
        teacher.vectors(TEXTS, "document"), model.encode_document(TEXTS), **HALF
    )


def test_a_passage_prompt_counts_beside_an_empty_document_prompt(dense_folder, tmp_path):
    folder = Path(shutil.copytree(dense_folder, tmp_path / "m"))
    edit_json(
        folder / "config_sentence_transformers.json",
        prompts={"query": "", "document": "", "passage": "p: "},
    )
    assert DenseTeacher(folder).fingerprint["prompts"] == {"query": "", "document": "p: "}


def test_old_folders_that_state_pooling_by_flags_are_read(dense_folder, tmp_path):
    from sentence_transformers import SentenceTransformer

    folder = Path(shutil.copytree(dense_folder, tmp_path / "m"))
    (folder / "1_Pooling" / "config.json").write_text(
        json.dumps(
            {
                "word_embedding_dimension": 32,
                "pooling_mode_cls_token": True,
                "pooling_mode_mean_tokens": False,
            }
        )
    )
    (folder / "sentence_bert_config.json").write_text(
        json.dumps({"max_seq_length": 7, "do_lower_case": True})
    )
    expected = SentenceTransformer(str(folder), device="cpu").encode(TEXTS)
    teacher = DenseTeacher(folder, device="cpu")
    assert teacher.fingerprint["max_length"] == 7
    assert teacher.fingerprint["pooling"] == ["cls"]
    np.testing.assert_allclose(teacher.vectors(TEXTS, "query"), expected, **HALF)


def test_a_plain_folder_needs_a_pooling_and_gives_the_same(backbone, dense_folder):
    plain = DenseTeacher(backbone, pooling="mean", device="cpu")
    assert not plain.fingerprint["normalize"]
    np.testing.assert_allclose(
        plain.scores(QUERIES, TEXTS), DenseTeacher(dense_folder).scores(QUERIES, TEXTS), **HALF
    )
    dotted = DenseTeacher(backbone, pooling="mean", similarity="dot", device="cpu")
    vectors = dotted.vectors(QUERIES, "query"), dotted.vectors(TEXTS, "document")
    np.testing.assert_array_equal(dotted.scores(QUERIES, TEXTS), vectors[0] @ vectors[1].T)
    with pytest.raises(
        ConfigError,
        match="is a plain transformers model, which states no pooling; pooling must be one of cls",
    ):
        DenseTeacher(backbone)


def test_bfloat16_is_another_teacher_that_scores_alike(dense_folder, tmp_path):
    exact = DenseTeacher(dense_folder, device="cpu", cache=tmp_path)
    rounded = DenseTeacher(dense_folder, device="cpu", dtype="bfloat16", cache=tmp_path)
    found = [teacher.scores(QUERIES, TEXTS) for teacher in (exact, rounded)]
    np.testing.assert_allclose(found[1], found[0], atol=0.05)
    assert (found[1] != found[0]).any()


@pytest.mark.parametrize(
    "options", [{"max_length": 8}, {"query_prompt": "q: "}, {"dtype": "bfloat16"}]
)
def test_two_teachers_of_one_model_share_a_folder_and_no_vector(dense_folder, tmp_path, options):
    first, other = (
        DenseTeacher(dense_folder, cache=tmp_path),
        DenseTeacher(dense_folder, cache=tmp_path, **options),
    )
    scores = [teacher.scores(QUERIES, TEXTS) for teacher in (first, other)]
    assert first.forward_passes > 0 and other.forward_passes > 0
    again = (
        DenseTeacher(dense_folder, cache=tmp_path),
        DenseTeacher(dense_folder, cache=tmp_path, **options),
    )
    for teacher, expected in zip(again, scores, strict=True):
        np.testing.assert_array_equal(teacher.scores(QUERIES, TEXTS), expected)
    assert [teacher.forward_passes for teacher in again] == [0, 0]


def test_two_folders_of_one_name_with_other_weights_share_a_folder_of_caches(
    dense_folder, tmp_path
):
    folder = Path(shutil.copytree(dense_folder, tmp_path / "other" / dense_folder.name))
    poison(folder, "river", 0.5)
    teachers_of_one_name = [
        DenseTeacher(path, cache=tmp_path / "c") for path in (dense_folder, folder)
    ]
    assert len({teacher.name for teacher in teachers_of_one_name}) == 1
    first, other = (teacher.vectors(["a river"], "document") for teacher in teachers_of_one_name)
    assert (first != other).any()


def test_a_second_run_makes_no_forward_pass_and_loads_no_network(dense_folder, tmp_path):
    first = DenseTeacher(dense_folder, cache=tmp_path)
    seen = count_rows(first)
    scores = first.scores(QUERIES, TEXTS)
    assert sum(seen) == first.forward_passes == len({*QUERIES, *TEXTS})
    np.testing.assert_array_equal(first.scores(QUERIES, TEXTS), scores)
    assert sum(seen) == first.forward_passes
    second = DenseTeacher(dense_folder, cache=tmp_path)
    np.testing.assert_array_equal(second.scores(QUERIES, TEXTS), scores)
    assert second.forward_passes == 0
    assert not is_loaded(second)


def test_a_changed_document_costs_one_row(dense_folder, tmp_path):
    teacher = DenseTeacher(dense_folder, cache=tmp_path)
    before = teacher.scores(QUERIES, TEXTS)
    seen = count_rows(teacher)
    changed = [*TEXTS[:3], TEXTS[3] + " Or was it?", *TEXTS[4:]]
    after = teacher.scores(QUERIES, changed)
    assert seen == [1]
    same = np.arange(len(TEXTS)) != 3
    np.testing.assert_array_equal(after[:, same], before[:, same])
    assert (after[:, 3] != before[:, 3]).any()


def test_prompts_that_differ_keep_the_roles_apart(dense_folder):
    alike = DenseTeacher(dense_folder)
    alike.scores(["bees"], ["bees"])
    assert alike.forward_passes == 1
    apart = DenseTeacher(dense_folder, query_prompt="what about ")
    apart.scores(["bees"], ["bees"])
    assert apart.forward_passes == 2
    np.testing.assert_array_equal(
        apart.vectors(["bees"], "query"), alike.vectors(["what about bees"], "query")
    )


def test_prepare_reports_texts_and_progress(dense_folder):
    teacher = DenseTeacher(dense_folder)
    steps: list[int] = []
    assert teacher.prepare(QUERIES, [*TEXTS, *TEXTS], steps.append) == (
        4 + len(TEXTS),
        3 + len(TEXTS),
    )
    assert sum(steps) == 4 + len(TEXTS), (
        "the empty query was there as an empty document or the other way round"
    )
    assert teacher.prepare(QUERIES, TEXTS) == (4 + len(TEXTS), 0)
    assert teacher.prepare([], []) == (0, 0)
    assert teacher.scores([], TEXTS).shape == (0, len(TEXTS))


def test_a_cached_vector_of_another_width_is_damage(dense_folder, tmp_path):
    teacher = DenseTeacher(dense_folder, cache=tmp_path)
    teacher.cache.put([(teacher.keys(["bees"], "query")[0], b"xx")])
    with pytest.raises(DamagedError, match="a vector does not have 32 dimensions; delete the file"):
        teacher.vectors(["bees"], "query")


def test_a_vector_that_is_no_number_is_an_error_that_names_the_text(backbone, tmp_path):
    folder = build_dense(backbone, tmp_path / "m")
    poison(folder, "river", 3e38)  # finite, but its square is not
    teacher = DenseTeacher(folder)
    with pytest.raises(
        ModelError,
        match="m: the vector of 'the river' holds nan but must hold finite numbers up to 65504",
    ):
        teacher.scores(["the river"], [])
    assert len(teacher.cache) == 0


def test_a_vector_too_large_for_float16_is_an_error(backbone, tmp_path):
    folder = build_dense(backbone, tmp_path / "m")
    tensors = load_file(folder / "model.safetensors")
    tensors["encoder.layer.1.output.LayerNorm.weight"] *= 1e6
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        ModelError,
        match=r"the vector of 'bees' holds -?\d{5,}.* but must hold finite numbers up to 65504",
    ):
        DenseTeacher(folder).scores(["bees"], [])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pooling": "mean"}, "states its own pooling; drop pooling='mean'"),
        ({"similarity": "euclidean"}, "similarity is 'euclidean' but must be one of cosine, dot"),
        ({"dtype": "float16"}, "dtype is 'float16' but must be one of float32, bfloat16"),
        ({"max_length": 65}, "max_length is 65 but must be 1 to 64"),
        ({"max_length": 0}, "max_length is 0 but must be 1 to 64"),
        ({"batch_size": 0}, "batch_size is 0 but must be at least 1"),
        ({"revision": "main"}, "revision='main' belongs to a hub model"),
    ],
)
def test_options_that_cannot_be(dense_folder, options, message):
    with pytest.raises(ConfigError, match=message):
        DenseTeacher(dense_folder, **options)


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        (
            "1_Pooling/config.json",
            {"pooling_mode": "median"},
            "pooling_mode is 'median' but must be one of cls, max",
        ),
        (
            "sentence_bert_config.json",
            {"transformer_task": "fill-mask"},
            "transformer_task is 'fill-mask' but must be 'feature-extraction'",
        ),
        (
            "sentence_bert_config.json",
            {"query_expansion": {"n": 3}},
            "query_expansion is set .*, which is not supported",
        ),
        (
            "config_sentence_transformers.json",
            {"similarity_fn_name": "manhattan"},
            "similarity is 'manhattan' but must be",
        ),
        (
            "config.json",
            {"model_type": ""},
            "config.json names no model_type",
        ),
    ],
)
def test_a_folder_with_settings_that_are_not_carried_out_is_refused(
    dense_folder, tmp_path, file, changes, message
):
    folder = Path(shutil.copytree(dense_folder, tmp_path / "m"))
    edit_json(folder / file, **changes)
    with pytest.raises((ModelError, ConfigError), match=message):
        DenseTeacher(folder)


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        (
            [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Dense", "Dense")],
            "has the modules Transformer > Pooling > Dense; a dense teacher must be Transformer > Pooling",
        ),
        ([("", "SpladePooling")], "has the modules SpladePooling; a dense teacher must be"),
        ([], "has the modules none; a dense teacher must be"),
        ([("../elsewhere", "Transformer")], "module path '../elsewhere' leaves the model folder"),
    ],
)
def test_other_chains_of_modules_are_refused(dense_folder, tmp_path, modules, message):
    folder = Path(shutil.copytree(dense_folder, tmp_path / "m"))
    listed = [
        {"path": path, "type": f"sentence_transformers.models.{name}"} for path, name in modules
    ]
    (folder / "modules.json").write_text(json.dumps(listed))
    with pytest.raises(ModelError, match=message):
        DenseTeacher(folder)


def test_code_of_a_folder_is_never_run(dense_folder, tmp_path):
    folder = Path(shutil.copytree(dense_folder, tmp_path / "m"))
    (folder / "modules.json").write_text(
        json.dumps([{"path": "", "type": "custom_code.Transformer"}])
    )
    with pytest.raises(
        ModelError,
        match=r"custom_code.Transformer is code of the model folder, "
        r"which is never run",
    ):
        DenseTeacher(folder)
    (folder / "modules.json").write_text('{"a": 1}')
    with pytest.raises(ModelError, match="must hold a list of modules"):
        DenseTeacher(folder)
    with pytest.raises(
        ModelError, match="nowhere does not exist; it must be a folder that holds a model"
    ):
        DenseTeacher(tmp_path / "nowhere")


def test_a_pooling_that_leaves_the_prompt_out_pools_the_text_only(backbone, tmp_path):
    from sentence_transformers import SentenceTransformer

    folder = build_dense(backbone, tmp_path / "m", include_prompt=False)
    expected = SentenceTransformer(str(folder), device="cpu").encode(TEXTS, prompt="query: ")
    teacher = DenseTeacher(folder, query_prompt="query: ")
    np.testing.assert_allclose(teacher.vectors(TEXTS, "query"), expected, **HALF)
    whole = DenseTeacher(build_dense(backbone, tmp_path / "w"), query_prompt="query: ")
    assert (teacher.vectors(TEXTS, "query") != whole.vectors(TEXTS, "query")).any()
    assert teacher.fingerprint["include_prompt"] is False
    assert "include_prompt" not in DenseTeacher(folder).fingerprint


def test_weights_that_lack_are_never_random(dense_folder, tmp_path):
    folder = Path(shutil.copytree(dense_folder, tmp_path / "m"))
    tokens = load_file(folder / "model.safetensors")
    del tokens["encoder.layer.1.output.dense.weight"]
    save_file(tokens, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        ModelError,
        match=r"lacks weights .encoder.layer.1.output.dense.weight., which would be random",
    ):
        DenseTeacher(folder).scores(["a"], ["b"])
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="holds no weights"):
        DenseTeacher(folder)


# --- sparse ---


def test_sparse_scores_are_dot_products_and_cost_nothing_twice(tiny_folder, tmp_path):
    encoder = Encoder.load(tiny_folder)
    queries = encoder.query_encoder()
    expected = (queries.encode_batch(QUERIES) @ encoder.encode(TEXTS).T).toarray()
    first = SparseTeacher(tiny_folder, cache=tmp_path, device="cpu")
    np.testing.assert_allclose(first.scores(QUERIES, TEXTS), expected, rtol=1e-4)
    assert first.forward_passes == len(QUERIES) + len(TEXTS)
    second = SparseTeacher(encoder, cache=tmp_path)
    np.testing.assert_array_equal(second.scores(QUERIES, TEXTS), first.scores(QUERIES, TEXTS))
    assert second.forward_passes == 0
    second.scores(QUERIES, [*TEXTS[1:], "a new document"])
    assert second.forward_passes == 1
    assert (
        SparseTeacher(tiny_folder, cache=tmp_path, device="cpu", top_k=3).cache.path
        != first.cache.path
    )


def test_a_query_side_without_a_network_is_a_teacher_too():
    encoder = LexicalEncoder.fit(lambda: list(tiny_models.SENTENCES))
    teacher = SparseTeacher(encoder)
    assert teacher.name == "lexical"
    found = teacher.scores(["river floods", "unknownword"], list(tiny_models.SENTENCES))
    row = encoder.query_encoder().encode("river floods")
    expected = encoder.encode(tiny_models.SENTENCES).toarray()[:, row[0]] @ row[1]
    np.testing.assert_allclose(found[0], expected, rtol=1e-5)
    assert teacher.prepare(["river floods"], []) == (1, 0)
    with pytest.raises(ConfigError, match="top_k: options belong to a folder or hub name"):
        SparseTeacher(encoder, top_k=3)


# --- cross-encoders ---


def test_pair_scores_are_those_of_sentence_transformers(cross_folder):
    from sentence_transformers import CrossEncoder

    texts = [text for text in TEXTS if text]
    pairs = [(query, document) for query in QUERIES for document in texts]
    expected = CrossEncoder(str(cross_folder), device="cpu").predict(
        pairs, activation_fn=torch.nn.Identity()
    )
    found = CrossEncoderTeacher(cross_folder, batch_size=5).scores(QUERIES, texts)
    np.testing.assert_allclose(found.ravel(), expected, rtol=1e-4, atol=1e-5)


def test_a_folder_that_sentence_transformers_wrote_is_read(cross_folder, tmp_path):
    from sentence_transformers import CrossEncoder

    CrossEncoder(str(cross_folder), device="cpu").save_pretrained(str(tmp_path / "m"))
    np.testing.assert_array_equal(
        CrossEncoderTeacher(tmp_path / "m").scores(QUERIES, TEXTS[:3]),
        CrossEncoderTeacher(cross_folder).scores(QUERIES, TEXTS[:3]),
    )


def test_only_wanted_pairs_are_scored_and_each_once(cross_folder, tmp_path):
    teacher = CrossEncoderTeacher(cross_folder, cache=tmp_path)
    assert not teacher.in_batch
    wanted = np.zeros((len(QUERIES), len(TEXTS)), dtype=bool)
    wanted[0, 1] = wanted[2, 7] = wanted[3, 0] = True  # (2, 7): both texts are empty
    seen = count_rows(teacher)
    found = teacher.scores(QUERIES, TEXTS, wanted)
    np.testing.assert_array_equal(np.isfinite(found), wanted)
    assert sum(seen) == 3
    wanted[1, 1] = True
    again = CrossEncoderTeacher(cross_folder, cache=tmp_path)
    more = again.scores(QUERIES, TEXTS, wanted)
    assert again.forward_passes == 1
    np.testing.assert_array_equal(more[np.isfinite(found)], found[np.isfinite(found)])
    assert again.prepare(QUERIES[:2], TEXTS[:3]) == (6, 4)
    assert np.isnan(again.scores(QUERIES, TEXTS, np.zeros_like(wanted))).all()


def test_a_pair_that_is_no_number_is_named(cross_folder, tmp_path):
    folder = Path(shutil.copytree(cross_folder, tmp_path / "m"))
    poison(folder, "river", 3e38)  # finite, but its square is not
    with pytest.raises(
        ModelError, match="m gives the score nan to the query 'bees' with the document 'a river'"
    ):
        CrossEncoderTeacher(folder).scores(["bees"], ["a river"])


def test_wanted_pairs_have_the_shape_of_the_batch(cross_folder):
    teacher = CrossEncoderTeacher(cross_folder)
    with pytest.raises(
        DataError,
        match=r"wanted_QD is bool of the shape \(1, 1\) but must be bool of \(1, 2\)",
    ):
        teacher.scores(["a"], ["b", "c"], np.ones((1, 1), dtype=bool))
    with pytest.raises(DataError, match="wanted_QD is float64"):
        teacher.scores(["a"], ["b"], np.ones((1, 1)))


def test_what_is_no_pair_scorer_with_one_label_is_refused(tiny_folder, cross_folder, tmp_path):
    with pytest.raises(
        ModelError, match="is BertForMaskedLM with 2 labels; a cross-encoder teacher must be"
    ):
        CrossEncoderTeacher(tiny_folder)
    folder = Path(shutil.copytree(cross_folder, tmp_path / "m"))
    edit_json(folder / "config.json", id2label={"0": "a", "1": "b", "2": "c"})
    with pytest.raises(ModelError, match="is BertForSequenceClassification with 3 labels"):
        CrossEncoderTeacher(folder)
    edit_json(folder / "config.json", id2label={"0": "a"})
    (folder / "config_sentence_transformers.json").write_text('{"prompts": {"web": "search: "}}')
    with pytest.raises(ModelError, match="puts prompts before its pairs"):
        CrossEncoderTeacher(folder)
    (folder / "modules.json").write_text(
        '[{"path": "", "type": '
        '"sentence_transformers.x.Transformer"}, '
        '{"path": "1", "type": "sentence_transformers.x.Dense"}]'
    )
    with pytest.raises(
        ModelError, match="has the modules Transformer > Dense but must have one Transformer"
    ):
        CrossEncoderTeacher(folder)


@pytest.fixture(scope="module")
def t5_folder(tmp_path_factory) -> Path:
    return tiny_models.build_monot5(tmp_path_factory.mktemp("t5") / "monot5")


def answer_of(folder: Path, prompt: str) -> float:
    """The logarithm of the probability of "true" against "false", told by transformers alone."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.T5ForConditionalGeneration.from_pretrained(folder).eval()
    with torch.no_grad():
        logits = model(
            **tokenizer(prompt, return_tensors="pt"), decoder_input_ids=torch.tensor([[0]])
        ).logits[0, 0]
    return float(
        logits[tokenizer.convert_tokens_to_ids(["\u2581true", "\u2581false"])].log_softmax(0)[0]
    )


def test_monot5_answers_as_transformers_does(t5_folder, tmp_path):
    texts = [text for text in TEXTS[:6] if text]
    teacher = MonoT5Teacher(t5_folder, batch_size=5, cache=tmp_path)
    found = teacher.scores(QUERIES[:2], texts)
    expected = [
        [answer_of(t5_folder, f"Query: {query} Document: {text} Relevant:") for text in texts]
        for query in QUERIES[:2]
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert found.std() > 0.01 and (found < 0).all()
    assert not teacher.in_batch and teacher.forward_passes == found.size
    again = MonoT5Teacher(t5_folder, cache=tmp_path)
    np.testing.assert_array_equal(again.scores(QUERIES[:2], texts), found)
    assert again.forward_passes == 0 and not is_loaded(again)


def test_monot5_cuts_the_document_and_keeps_its_question(t5_folder):
    long = " ".join(tiny_models.SENTENCES)
    teacher = MonoT5Teacher(t5_folder, max_length=40)
    (ids,) = teacher.token_ids([(QUERIES[0], long)])
    owner = transformers.AutoTokenizer.from_pretrained(t5_folder)
    begin, end = (
        owner(f"Query: {QUERIES[0]} Document: {long}")["input_ids"],
        owner("Relevant:")["input_ids"],
    )
    assert ids == begin[: 40 - len(end)] + end
    with pytest.raises(ConfigError, match="max_length is 2 but must be more than"):
        MonoT5Teacher(t5_folder, max_length=2)


def test_what_is_no_monot5_is_refused(t5_folder, cross_folder, tiny_folder, tmp_path):
    with pytest.raises(
        ModelError,
        match="is BertForSequenceClassification; a monot5 teacher must be T5ForConditional",
    ):
        MonoT5Teacher(cross_folder)
    with pytest.raises(
        ModelError,
        match=r"T5ForConditionalGeneration with 2 labels; .* is a teacher of kind monot5",
    ):
        CrossEncoderTeacher(t5_folder)
    folder = Path(shutil.copytree(t5_folder, tmp_path / "m"))
    transformers.AutoTokenizer.from_pretrained(tiny_folder).save_pretrained(folder)
    with pytest.raises(ModelError, match="its vocabulary lacks tokens for 'true' and 'false'"):
        MonoT5Teacher(folder)


def test_pairs_are_prepared_many_at_a_time(cross_folder, monkeypatch):
    monkeypatch.setattr(pairwise, "_PAIRS_AT_ONCE", 4)
    teacher, steps = CrossEncoderTeacher(cross_folder), []
    assert teacher.prepare_pairs(
        ((query, text) for query in QUERIES[:2] for text in TEXTS[:5]), steps.append
    ) == (10, 10)
    assert sum(steps) == 10
    assert teacher.prepare(QUERIES[:2], TEXTS[:5]) == (10, 0)


# --- BM25 ---


def varied_documents() -> list[str]:
    """Texts of 0 to 2,000 words, so that every rounding of lengths is met; some twice, some without
    a term.
    """
    draw = np.random.default_rng(5)
    words = np.array(" ".join(tiny_models.SENTENCES).split())
    weights = 1.0 / np.arange(1, len(words) + 1)
    sizes = [0, 1, 2, 24, 39, 40, 41, 63, 200, 1000, 2000, *draw.integers(1, 150, 120).tolist()]
    documents = [" ".join(draw.choice(words, size, p=weights / weights.sum())) for size in sizes]
    return [*documents, documents[20], "the of and", "Ünïcode 日本 flowers", "x" * 600]


def test_the_analysis_is_that_of_the_index():
    assert list(bm25.analyze(["The bees' running flowers, and BEES run!", "", "the"])) == [
        ["bee", "run", "flower", "bee", "run"],
        [],
        [],
    ]
    with pytest.raises(DataError, match=r"text 1 holds a lone surrogate .* at character 2"):
        list(bm25.analyze(["fine", "ab\ud800"]))


@pytest.mark.parametrize(("k1", "b"), [(0.9, 0.4), (1.2, 0.75), (0.0, 0.0), (2.0, 1.0)])
def test_bm25_is_lucenes_own_score(tmp_path, k1, b):
    documents = varied_documents()
    bm25.write_texts(
        tmp_path / "i", ((f"d{n:04}", text) for n, text in enumerate(documents)), Bm25(k1, b)
    )
    asked = [*tiny_models.SENTENCES, "bees bees bees river", "the", "nowhere found"]
    found = Bm25Teacher(documents, k1, b).scores(asked, documents)
    assert found.dtype == np.float32
    with bm25.Bm25Reader(tmp_path / "i", Bm25(k1, b)) as reader:
        for query, row in zip(asked, found, strict=True):
            hits = reader.search(query, len(documents))
            expected = np.zeros(len(documents))
            expected[[int(doc_id[1:]) for doc_id in hits.doc_ids]] = hits.scores
            np.testing.assert_allclose(row, expected, rtol=1e-5, atol=1e-6)


def test_bm25_worked_out_by_hand():
    teacher = Bm25Teacher(["cat dog", "cat cat bird fish", "of the"])
    average, length, idf = 3.0, 4.0, math.log(1 + (2 - 1 + 0.5) / (1 + 0.5))
    common = math.log(1 + (2 - 2 + 0.5) / (2 + 0.5))
    norm = 0.9 * (0.6 + 0.4 * length / average)
    expected = idf / (1 + norm) + 2 * common * 2 / (2 + norm)
    found = teacher.scores(["cats bird cat"], ["cat cat bird fish", "of the", "dog dog"])
    np.testing.assert_allclose(found, [[expected, 0, 0]], rtol=1e-6)


def test_a_text_outside_the_collection_is_scored_by_its_statistics():
    documents = varied_documents()
    teacher = Bm25Teacher(documents)
    inside = teacher.scores(["river bees"], [documents[30]])
    np.testing.assert_allclose(
        teacher.scores(["river bees"], [documents[30] + " "]), inside, rtol=1e-6
    )
    assert teacher.forward_passes == 0
    unseen = teacher.scores(["zebra"], ["a zebra"])[0, 0]
    filled = sum(bool(terms) for terms in bm25.analyze(documents))
    average = sum(map(len, bm25.analyze(documents))) / filled
    norm = 0.9 * (0.6 + 0.4 / average)
    assert unseen == pytest.approx(math.log(1 + (filled + 0.5) / 0.5) / (1 + norm), rel=1e-6)
    assert teacher.scores(["zebra"], ["", documents[0]]).tolist() == [[0, 0]]


def test_an_analysed_collection_is_read_again(tmp_path, monkeypatch):
    documents, analysed = varied_documents(), []

    def count(texts):
        analysed.append(len(texts))
        return bm25.analyze(texts)

    monkeypatch.setattr(bm25_teacher, "analyze", count)
    first = Bm25Teacher(documents, cache=tmp_path)
    assert analysed == [len(documents)]
    expected = first.scores(["bees in the river"], documents)
    (path,) = tmp_path.glob("bm25-*.npz")
    analysed.clear()
    second = Bm25Teacher(documents, cache=tmp_path)
    assert analysed == []
    np.testing.assert_array_equal(second.scores(["bees in the river"], documents), expected)
    Bm25Teacher(documents, 1.2, 0.75, cache=tmp_path)
    assert len(list(tmp_path.glob("bm25-*.npz"))) == 1, (
        "the analysis does not depend on the parameters"
    )
    Bm25Teacher(documents[1:], cache=tmp_path)
    assert len(list(tmp_path.glob("bm25-*.npz"))) == 2
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(DamagedError, match="is not readable as an analysed collection"):
        Bm25Teacher(documents, cache=tmp_path)


def test_bm25_refuses_what_it_cannot_score():
    for k1, b in ((-1, 0.4), (math.nan, 0.4), (0.9, 1.1)):
        with pytest.raises(ConfigError, match="but k1 must be 0 or more and b 0 to 1"):
            Bm25Teacher(["a cat"], k1, b)
    for documents in ([], ["", "the"]):
        with pytest.raises(DataError, match=f"none of the {len(documents)} documents of the BM25"):
            Bm25Teacher(documents)


@pytest.mark.parametrize(
    ("length", "kept"),
    [
        (0, 0),
        (23, 23),
        (24, 24),
        (39, 39),
        (40, 40),
        (41, 40),
        (42, 42),
        (56, 56),
        (59, 56),
        (60, 60),
        (1000, 984),
        (2**31 - 1, 2013265944),
    ],
)
def test_lengths_lose_what_one_byte_cannot_hold(length, kept):
    from sparse_ir.training.teachers.bm25 import _length_in_one_byte

    assert _length_in_one_byte(np.array([length])).tolist() == [kept]
    small_float = java.java_class("org.apache.lucene.util.SmallFloat")
    code = small_float.intToByte4(length)
    assert small_float.byte4ToInt(code) == kept


# --- many ---


def test_teachers_are_prepared_for_texts_and_for_pairs(dense_folder, cross_folder, tmp_path):
    documents = varied_documents()[:12]
    sources = [
        SimpleNamespace(name="small", queries=QUERIES, documents=documents),
        SimpleNamespace(name="bare", queries=QUERIES[:1], documents=documents),
    ]
    pairs = [(QUERIES[0], documents[1]), (QUERIES[1], documents[2]), (QUERIES[0], documents[1])]

    def make():
        return [
            DenseTeacher(dense_folder, cache=tmp_path),
            Bm25Teacher(documents),
            CrossEncoderTeacher(cross_folder, cache=tmp_path),
        ]

    report = prepare_teachers(make(), sources, lambda: iter(pairs))
    assert json.loads(json.dumps(report)) == report
    rows = [
        (row["name"], row["texts"], row["forward_passes"], row["cache_hits"])
        for row in report["teachers"]
    ]
    both = len(QUERIES) + len(documents)
    assert rows == [
        ("model", both + 1 + len(documents), both - 1, 1 + 1 + len(documents)),
        ("bm25", both + 1 + len(documents), 0, both + 1 + len(documents)),
        ("scorer", 2, 2, 0),
    ]
    again = make()
    report = prepare_teachers(again, sources, lambda: pairs, progress=True)
    assert [row["forward_passes"] for row in report["teachers"]][::2] == [0, 0]
    wanted = np.zeros((2, 3), dtype=bool)
    wanted[0, 1] = wanted[1, 2] = True
    found = [teacher.scores(QUERIES[:2], documents[:3], wanted) for teacher in again]
    assert [np.isfinite(matrix).sum() for matrix in found] == [6, 6, 2]
    assert [matrix.shape for matrix in found] == [(2, 3)] * 3
    assert [teacher.forward_passes for teacher in again][::2] == [0, 0]
