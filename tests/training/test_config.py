"""The training configuration: every refusal names file and key; what is written back reads to the
same object.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import math
import tomllib
import typing
from pathlib import Path

import pytest

from sparse_ir.errors import ConfigError
from sparse_ir.training.configuration.config import (
    VERSION,
    BatchSettings,
    BlendSettings,
    CardSettings,
    DataSettings,
    DecoderSection,
    DevSettings,
    EnsembleSettings,
    LoraSettings,
    LossSettings,
    ModelSettings,
    OptimizerSettings,
    PenaltySettings,
    RunSettings,
    TrainConfig,
    WarmStartSettings,
)
from sparse_ir.training.configuration.config_parser import (
    config_to_json,
    format_config,
    parse_config,
    read_config,
)
from sparse_ir.training.teachers.bm25 import Bm25Settings
from sparse_ir.training.teachers.cross_encoder import CrossEncoderSettings
from sparse_ir.training.teachers.dense import DenseSettings
from sparse_ir.training.teachers.kinds import TEACHERS, FileSettings
from sparse_ir.training.teachers.monot5 import MonoT5Settings
from sparse_ir.training.teachers.sparse import SparseSettings

SMALLEST = '[model]\nstart = "org/base"\n[[data]]\npath = "data/x"\n[run]\nsteps = 1000\n'
NETWORK: dict[str, typing.Any] = {
    "model": "org/network",
    "revision": "def",
    "weight": 0.5,
    "dtype": "bfloat16",
    "max_length": 128,
    "allow_pickle": True,
}
# between these, every field of every section differs from its default
EVERYTHING = TrainConfig(
    model=ModelSettings(
        "org/base",
        "abc",
        "learned",
        "idf.json",
        "log1p_relu",
        200,
        32,
        512,
        "passage: ",
        "",
        0.05,
        256,
        "float8",
        True,
    ),
    data=(
        DataSettings("data/a", "a", "all", "a.jsonl", 2.5, 100, True),
        DataSettings('data/ü "b".jsonl'),
    ),
    run=RunSettings(5_000, 3, "bfloat16", True, 50, 5, 25, 7, False, 4_000),
    loss=(
        LossSettings("kl", 0.7, 2.0),
        LossSettings("info_nce", 0.3, 0.5),
        LossSettings("margin_mse", 0.05),
    ),
    teacher=(
        DenseSettings(
            **NETWORK, pooling="cls", similarity="dot", query_prompt="q: ", document_prompt="d: "
        ),
        SparseSettings(**NETWORK),
        CrossEncoderSettings(**NETWORK),
        MonoT5Settings(**NETWORK),
        Bm25Settings(weight=2.0, k1=1.2, b=0.75),
        FileSettings(weight=3.0),
    ),
    dev=(DevSettings("data/dev", "dev", "test", "RR@10", 50, 500),),
    batch=BatchSettings(24, 7, 3, 6, False, 8),
    ensemble=EnsembleSettings(10.0, "none"),
    documents=PenaltySettings("idf_flops", None, 180.0, 300, 2, anti_zero=0.01),
    optimizer=OptimizerSettings(3e-5, 0.02, 60, "cosine", 1.5, 1e-3),
    warm_start=WarmStartSettings(100, 4e-4, 350, "token_vectors"),
    card=CardSettings("A name", "apache-2.0", {"a": "from there\nby them", 'ü "b"': "unknown"}),
)
BLENDED = dataclasses.replace(
    EVERYTHING, dev=(), run=RunSettings(5_000), blend=BlendSettings(0.4, 160)
)
DECODER = TrainConfig(
    model=ModelSettings("org/decoder", query="neural", query_prompt="query: "),
    data=(DataSettings("data/a"),),
    run=RunSettings(200),
    decoder=DecoderSection(
        "bidirectional", "read {text}", "find {text}", "all", True, "hidden^-1/4", 0.5, True, 400
    ),
    lora=LoraSettings(64, 16, 0.1, "q_proj,v_proj", "bfloat16", True),
    warm_start=WarmStartSettings(
        100,
        1e-4,
        objective="mntp",
        relu_weight=0.5,
        mask_share=0.3,
        mask_token="_",
        packed_length=2048,
    ),
    documents=PenaltySettings("df_flops", 0.5, alpha=0.2, beta=7.0),
    queries=PenaltySettings("idf_flops", None, 40.0, 10, 2, anti_zero=0.02),
)
CONFIGS = (EVERYTHING, BLENDED, DECODER)


@pytest.fixture
def written(tmp_path: Path) -> typing.Callable[[str], Path]:
    def write(text: str) -> Path:
        path = tmp_path / "run.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def replaced(section: str, line: str) -> str:
    """The smallest file with a line more in a section, which is made where it lacks."""
    header = f"[[{section}]]" if section in ("data", "loss", "teacher", "dev") else f"[{section}]"
    line, _, rest = line.partition("\n[model]\n")  # a line of [model] too
    text = SMALLEST.replace("[model]\n", f"[model]\n{rest}\n")
    if header in text:
        return text.replace(f"{header}\n", f"{header}\n{line}\n")
    return f"{text}{header}\n{line}\n"


# --- what is read ---


def test_the_smallest_file_has_the_defaults(written):
    config = read_config(written(SMALLEST))
    assert config == TrainConfig(
        ModelSettings("org/base"), (DataSettings("data/x"),), RunSettings(1000)
    )
    assert (config.version, config.loss, config.documents.penalty) == (
        1,
        (LossSettings("info_nce"),),
        "none",
    )


def test_everything_differs_from_its_default():
    """Else the round trip would not see a key that is lost."""
    entries = [
        entry
        for config in CONFIGS
        for section in vars(config).values()
        for entry in (section if isinstance(section, tuple) else (section,))
        if dataclasses.is_dataclass(entry)
    ]
    fields, changed = set(), set()
    for entry in [*CONFIGS, *entries]:
        for field in dataclasses.fields(entry):
            fields.add((type(entry).__name__, field.name))
            if getattr(entry, field.name) != field.default:
                changed.add((type(entry).__name__, field.name))
    assert {type(teacher) for teacher in EVERYTHING.teacher} == set(TEACHERS.values())
    fixed = {(settings.__name__, "kind") for settings in TEACHERS.values()}
    assert fields - changed == fixed | {("TrainConfig", "version")}


@pytest.mark.parametrize("config", CONFIGS)
def test_round_trip_of_every_section(written, config):
    assert read_config(written(format_config(config))) == config


def test_round_trip_of_the_smallest_file(written):
    config = read_config(written(SMALLEST))
    assert read_config(written(format_config(config))) == config


def test_defaults_are_written_out_and_what_is_unset_is_not():
    table = tomllib.loads(format_config(parse_config(tomllib.loads(SMALLEST))))
    assert table["optimizer"] == {
        "learning_rate": 2e-5,
        "weight_decay": 0.01,
        "warmup_steps": 0,
        "schedule": "linear",
    }
    assert table["version"] == 1 and table["run"]["save_every"] == 500
    assert "revision" not in table["model"]


def test_config_to_json_is_plain_data():
    table = config_to_json(EVERYTHING)
    assert table["data"][1] == {
        "path": 'data/ü "b".jsonl',
        "split": "train",
        "allow_missing": False,
    }
    assert table["card"]["data_notes"] == {"a": "from there\nby them", 'ü "b"': "unknown"}


def test_a_whole_number_will_do_where_a_fraction_is_asked(written):
    found = read_config(written(replaced("optimizer", "weight_decay = 0"))).optimizer.weight_decay
    assert found == 0.0 and isinstance(found, float)


# --- refusals ---


def refuse(path: Path, message: str) -> None:
    """The message stands in the error, and the file before it."""
    with pytest.raises(ConfigError) as caught:
        read_config(path)
    assert str(caught.value).startswith(str(path))
    assert message in str(caught.value)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
    ("section", "line", "message"),
    [
        ("model", "max_lenght = 5", "unknown key model.max_lenght; did you mean max_length?"),
        ("run", "zzzzz = 5", "unknown key run.zzzzz; known keys: steps, seed, precision"),
        ("data", 'negative = "x"', "unknown key data.0.negative; did you mean negatives?"),
        ("optimiser", "learning_rate = 1.0", "unknown key optimiser; did you mean optimizer?"),
    ],
)
def test_unknown_keys(written, section, line, message):
    refuse(written(replaced(section, line)), message)


@pytest.mark.parametrize(
    ("section", "line", "message"),
    [
        ("model", "max_length = 1.5", "model.max_length is 1.5 but must be a valid integer"),
        ("model", "max_length = true", "model.max_length is True but must be a valid integer"),
        ("model", 'top_k = "5"', "model.top_k is '5' but must be a valid integer"),
        ("model", "idf = 5", "model.idf is 5 but must be a valid string"),
        (
            "model",
            'query = "dense"',
            "model.query is 'dense' but must be 'idf', 'ones', 'learned' or 'neural'",
        ),
        ("run", "seed = false", "run.seed is False but must be a valid integer"),
        ("run", "tensorboard = 1", "run.tensorboard is 1 but must be a valid boolean"),
        (
            "optimizer",
            "weight_decay = true",
            "optimizer.weight_decay is True but must be a valid number",
        ),
        (
            "optimizer",
            'learning_rate = "1e-5"',
            "optimizer.learning_rate is '1e-5' but must be a valid number",
        ),
        (
            "optimizer",
            "learning_rate = nan",
            "optimizer.learning_rate is nan but must be a finite number",
        ),
        (
            "optimizer",
            "max_grad_norm = nan",
            "optimizer.max_grad_norm is nan but must be a finite number",
        ),
        ("card", "data_notes = 3", "card.data_notes is 3 but must be a table"),
        (
            "card",
            "data_notes = {toy = 3}",
            "card.data_notes.toy is 3 but must be a valid string",
        ),
        (
            "loss",
            'name = "nce"',
            "loss.0.name is 'nce' but must be 'kl', 'info_nce' or 'margin_mse'",
        ),
        (
            "teacher",
            'kind = "colbert"',
            "teacher.0.kind is 'colbert' but must be one of 'dense', 'sparse', 'cross-encoder', 'monot5', 'bm25', 'file'",
        ),
        (
            "teacher",
            'kind = "dense"\nmodel = "x"\npooling = "median"',
            "teacher.0.pooling is 'median' but must be 'cls', 'max', 'mean'",
        ),
    ],
)
def test_wrong_types(written, section, line, message):
    refuse(written(replaced(section, line)), message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model = 5\n", "model is 5 but must be a table"),
        (
            '[model]\nstart = "x"\n[data]\npath = "y"\n',
            "data is {'path': 'y'} but must be a list of tables, each under [[data]]",
        ),
        ('data = ["y"]\n[model]\nstart = "x"\n', "data.0 is 'y' but must be a table"),
    ],
)
def test_wrong_sections(written, text, message):
    refuse(written(text), message)


@pytest.mark.parametrize(
    ("section", "line", "message"),
    [
        ("model", "max_length = 3", "model.max_length is 3 but must be greater than or equal to 4"),
        (
            "model",
            "query_max_length = 3",
            "model.query_max_length is 3 but must be greater than or equal to 4",
        ),
        ("model", "top_k = 0", "model.top_k is 0 but must be greater than or equal to 1"),
        ("run", "stop_after = 2000", "[run] stop_after is 2000 but must be 1 to run.steps (1000)"),
        ("model", "dropout = 1.0", "model.dropout is 1.0 but must be less than 1"),
        ("model", "dropout = -0.1", "model.dropout is -0.1"),
        (
            "model",
            'query = "ones"\nidf = "x.json"',
            "[model] idf is 'x.json', but query is 'ones', which does not use it; it is for idf, learned",
        ),
        (
            "warm_start",
            "steps = -1",
            "warm_start.steps is -1 but must be greater than or equal to 0",
        ),
        (
            "warm_start",
            "learning_rate = 0",
            "warm_start.learning_rate is 0 but must be greater than 0",
        ),
        ("blend", "start = 1.0", "blend.start is 1.0 but must be less than 1"),
        (
            "blend",
            'terms = 9\n[[dev]]\npath = "x"',
            "[blend] mixes the network of the last step, but [[dev]] may choose another step; drop one of them",
        ),
        ("blend", "terms = 0", "blend.terms is 0 but must be greater than or equal to 1"),
        (
            "warm_start",
            "active_terms = 0",
            "warm_start.active_terms is 0 but must be greater than or equal to 1",
        ),
        (
            "warm_start",
            "steps = 1000",
            "warm_start.steps is 1000 but must be less than run.steps (1000), so that steps remain for ranking",
        ),
        ("data", "weight = 0", "data.0.weight is 0 but must be greater than 0"),
        ("data", "limit = 0", "data.0.limit is 0 but must be greater than or equal to 1"),
        ("batch", "queries = 0", "batch.queries is 0 but must be greater than or equal to 1"),
        ("batch", "negatives = -1", "batch.negatives is -1 but must be greater than or equal to 0"),
        ("batch", "queries_per_positive = 0", "batch.queries_per_positive is 0"),
        ("batch", "neighbourhood = 0", "batch.neighbourhood is 0"),
        ("batch", "micro_batch = 0", "batch.micro_batch is 0"),
        (
            "batch",
            "queries = 1",
            "[batch] a query has no candidate except its positive; raise queries or negatives, or set in_batch",
        ),
        (
            "batch",
            "in_batch = false",
            "[batch] a query has no candidate except its positive; raise queries or negatives, or set in_batch",
        ),
        ("loss", 'name = "info_nce"\nweight = 0', "loss.0.weight is 0 but must be greater than 0"),
        (
            "loss",
            'name = "info_nce"\ntemperature = inf',
            "loss.0.temperature is inf but must be a finite number",
        ),
        (
            "teacher",
            'kind = "dense"',
            "teacher.0.model is missing",
        ),
        (
            "teacher",
            'kind = "monot5"',
            "teacher.0.model is missing",
        ),
        (
            "teacher",
            'kind = "bm25"\nmodel = "x"',
            "teacher.0.model is 'x', but a teacher of kind 'bm25' does not use it; it is for dense, sparse, cross-encoder, monot5",
        ),
        (
            "teacher",
            'kind = "file"\nweight = -1',
            "teacher.0.weight is -1 but must be greater than 0",
        ),
        (
            "teacher",
            'kind = "bm25"\nk1 = -1',
            "teacher.0.k1 is -1 but must be greater than or equal to 0",
        ),
        (
            "teacher",
            'kind = "bm25"\nb = 1.5',
            "teacher.0.b is 1.5 but must be less than or equal to 1",
        ),
        (
            "teacher",
            'kind = "bm25"\npooling = "cls"',
            "teacher.0.pooling is 'cls', but a teacher of kind 'bm25' does not use it; it is for dense",
        ),
        ("ensemble", "scale = 0", "ensemble.scale is 0 but must be greater than 0"),
        (
            "documents",
            "",
            "[documents] a penalty needs either weight (lambda) or target_terms, not both",
        ),
        (
            "documents",
            "weight = 0.1\ntarget_terms = 100",
            "a penalty needs either weight (lambda) or target_terms",
        ),
        (
            "documents",
            "weight = -0.1",
            "documents.weight is -0.1 but must be greater than or equal to 0",
        ),
        ("documents", "weight = inf", "documents.weight is inf but must be a finite number"),
        (
            "documents",
            "weight = 0.1\nanti_zero = -1",
            "documents.anti_zero is -1 but must be greater than or equal to 0",
        ),
        (
            "documents",
            "weight = 0.1\nalpha = 1.0",
            "documents.alpha is 1.0 but must be less than 1",
        ),
        (
            "documents",
            "weight = 0.1\nbeta = 0.0",
            "documents.beta is 0.0 but must be greater than 0",
        ),
        ("documents", "target_terms = 0", "documents.target_terms is 0 but must be greater than 0"),
        (
            "documents",
            "weight = 0.1\nramp_steps = -1",
            "documents.ramp_steps is -1 but must be greater than or equal to 0",
        ),
        (
            "documents",
            "weight = 0.1\npower = 3",
            "documents.power is 3 but must be less than or equal to 2",
        ),
        (
            "queries",
            "weight = 0.1",
            "[queries] penalises query vectors, but they are fixed with model.query 'idf'; drop the section",
        ),
        (
            "optimizer",
            "learning_rate = 0",
            "optimizer.learning_rate is 0 but must be greater than 0",
        ),
        (
            "optimizer",
            "weight_decay = inf",
            "optimizer.weight_decay is inf but must be a finite number",
        ),
        ("run", "seed = 4294967296", "run.seed is 4294967296 but must be less than 4294967296"),
        ("run", "seed = -1", "run.seed is -1 but must be greater than or equal to 0"),
        (
            "optimizer",
            "warmup_steps = -1",
            "optimizer.warmup_steps is -1 but must be greater than or equal to 0",
        ),
        (
            "optimizer",
            "max_grad_norm = 0",
            "optimizer.max_grad_norm is 0 but must be greater than 0",
        ),
        (
            "dev",
            'path = "a/x"\n[[dev]]\npath = "b/x"',
            "two [[dev]] sets would both be called 'x' in the log; give one a name",
        ),
        (
            "dev",
            'path = "x"\nqueries = 0',
            "dev.0.queries is 0 but must be greater than or equal to 1",
        ),
        (
            "dev",
            'path = "x"\ndocuments = 0',
            "dev.0.documents is 0 but must be greater than or equal to 1",
        ),
        ("run", "save_every = 0", "run.save_every is 0 but must be greater than or equal to 1"),
        ("run", "evaluate_every = 0", "run.evaluate_every is 0"),
        ("run", "keep = 0", "run.keep is 0"),
        ("run", "log_every = 0", "run.log_every is 0"),
        (
            "loss",
            'name = "kl"',
            "the losses are kl and the teachers none; kl and margin_mse need [[teacher]] sections, other losses must have none",
        ),
        (
            "teacher",
            'kind = "bm25"',
            "the losses are info_nce and the teachers bm25; kl and margin_mse need [[teacher]] sections, other losses must have none",
        ),
    ],
)
def test_values_out_of_range(written, section, line, message):
    refuse(written(replaced(section, line)), message)


@pytest.mark.parametrize(
    ("section", "line", "message"),
    [
        (
            "documents",
            'penalty = "none"\nweight = 0.1',
            "[documents] weight is 0.1, but penalty is 'none', which does not use it; it is for flops, idf_flops, df_flops, l1",
        ),
        (
            "documents",
            'penalty = "none"\ntarget_terms = 50',
            "[documents] target_terms is 50.0, but penalty is 'none', which does not use it; it is for flops, idf_flops, df_flops, l1",
        ),
        (
            "documents",
            'penalty = "none"\nramp_steps = 5',
            "[documents] ramp_steps is 5, but penalty is 'none', which does not use it; it is for flops, idf_flops, df_flops, l1",
        ),
        (
            "documents",
            "weight = 0.1\npower = 2",
            "[documents] power is 2, but penalty is 'flops', which does not use it; it is for idf_flops",
        ),
        (
            "documents",
            "weight = 0.1\nalpha = 0.2",
            "[documents] alpha is 0.2, but penalty is 'flops', which does not use it; it is for df_flops",
        ),
        (
            "documents",
            "weight = 0.1\nbeta = 6",
            "[documents] beta is 6.0, but penalty is 'flops', which does not use it; it is for df_flops",
        ),
        (
            "documents",
            "target_terms = 90\n[model]\ntop_k = 80",
            "documents.target_terms is 90 but must be at most model.top_k (80); the saved model would drop the other terms of a document",
        ),
        (
            "blend",
            "terms = 90\n[model]\ntop_k = 80",
            "blend.terms is 90 but must be at most model.top_k (80); the saved model would drop the other terms of a document",
        ),
        (
            "documents",
            "weight = 0.1\nramp_steps = 1001",
            "documents.ramp_steps is 1001 but must be at most the 1000 steps of ranking",
        ),
        (
            "queries",
            "weight = 0.1\nramp_steps = 1001\n[model]\nquery = 'neural'",
            "queries.ramp_steps is 1001 but must be at most the 1000 steps of ranking",
        ),
        (
            "queries",
            'penalty = "none"\nanti_zero = 0.1',
            "[queries] penalises query vectors, but they are fixed with model.query 'idf'; drop the section",
        ),
        (
            "optimizer",
            "warmup_steps = 901\n[warm_start]\nsteps = 100",
            "optimizer.warmup_steps is 901 but must be at most the 900 steps of ranking",
        ),
        (
            "optimizer",
            "query_learning_rate = 1e-3",
            "optimizer.query_learning_rate is 0.001, but model.query is 'idf'; it is for 'learned' token weights",
        ),
        (
            "model",
            'query_prompt = "query: "',
            "[model] query_prompt is 'query: ', but query is 'idf', which does not use it; it is for neural",
        ),
        (
            "model",
            "saved_max_length = 3",
            "model.saved_max_length is 3 but must be greater than or equal to 4",
        ),
        (
            "batch",
            "neighbourhood = 33",
            "[batch] neighbourhood is 33 but must be at most batch.queries (32)",
        ),
        (
            "loss",
            'name = "margin_mse"\ntemperature = 2',
            "[loss.0] temperature is 2.0, but name is 'margin_mse', which does not use it; it is for kl, info_nce",
        ),
        (
            "ensemble",
            "scale = 10",
            "[ensemble] combines scores of teachers, but there is no [[teacher]]; drop it",
        ),
        (
            "teacher",
            'kind = "bm25"\nrevision = "a"',
            "teacher.0.revision is 'a', but a teacher of kind 'bm25' does not use it; it is for dense, sparse, cross-encoder, monot5",
        ),
        (
            "teacher",
            'kind = "file"\ndtype = "bfloat16"',
            "teacher.0.dtype is 'bfloat16', but a teacher of kind 'file' does not use it; it is for dense, sparse, cross-encoder, monot5",
        ),
        (
            "teacher",
            'kind = "bm25"\nmax_length = 9',
            "teacher.0.max_length is 9, but a teacher of kind 'bm25' does not use it; it is for dense, sparse, cross-encoder, monot5",
        ),
        (
            "teacher",
            'kind = "file"\nallow_pickle = true',
            "teacher.0.allow_pickle is True, but a teacher of kind 'file' does not use it; it is for dense, sparse, cross-encoder, monot5",
        ),
        (
            "teacher",
            'kind = "dense"\nmodel = "x"\nk1 = 1',
            "teacher.0.k1 is 1, but a teacher of kind 'dense' does not use it; it is for bm25",
        ),
        (
            "teacher",
            'kind = "file"\nb = 0.5',
            "teacher.0.b is 0.5, but a teacher of kind 'file' does not use it; it is for bm25",
        ),
        (
            "warm_start",
            "relu_weight = 0.5",
            "[warm_start] relu_weight is 0.5, but objective is 'bag_of_words', which does not use it; it is for clm, mntp",
        ),
        (
            "warm_start",
            'mask_token = "_"\nobjective = "clm"',
            "[warm_start] mask_token is '_', but objective is 'clm', which does not use it; it is for mntp",
        ),
        (
            "loss",
            'name = "kl"\n[[teacher]]\nkind = "file"',
            "batch.negatives is 0 but must be at least 1: a teacher of kind 'file' scores only a query's own documents, and kl learns nothing from a single one",
        ),
        (
            "run",
            "evaluate_every = 50",
            "run.evaluate_every is 50, but there is no [[dev]] to evaluate on; drop it or add one",
        ),
        (
            "card",
            'data_notes = {x = "a", y = "b"}',
            "card.data_notes has 'y' but must name sources (x)",
        ),
        (
            "dev",
            'path = "x"\nmeasure = "nDGC@10"',
            "dev.0.measure: measure 'nDGC@10' is unknown (measure not found: nDGC); it must be one such as nDCG@10, R@100, RR@10, AP, P@5",
        ),
        (
            "dev",
            'path = "x"\nmeasure = "MRR@10"',
            "dev.0.measure is 'MRR@10' but must be one measure, spelled 'RR@10'",
        ),
        (
            "dev",
            'path = "x"\nmeasure = "RR@10 AP"',
            "dev.0.measure is 'RR@10 AP' but must be one measure, spelled 'RR@10'",
        ),
    ],
)
def test_settings_that_contradict_one_another(written, section, line, message):
    refuse(written(replaced(section, line)), message)


@pytest.mark.parametrize(
    ("section", "line", "message"),
    [
        (
            "run",
            f"save_every = {10**30}",
            "run.save_every is 1000000000000000000000000000000 but must be less than or equal to 1000000000",
        ),
        (
            "run",
            f"save_every = {10**18}",
            "run.save_every is 1000000000000000000 but must be less than or equal to 1000000000",
        ),
        (
            "ensemble",
            f"scale = {10**400}",
            "ensemble.scale is 100000000000000000000000000000000000000000000000000000000000 but must be a valid number",
        ),
        ("ensemble", f"scale = {'9' * 5000}", "is not TOML (Exceeds the limit"),
        (
            "data",
            f"limit = -{10**30}",
            "data.0.limit is -1000000000000000000000000000000 but must be greater than or equal to 1",
        ),
        (
            "lora",
            f"alpha = {10**18}",
            "lora.alpha is 1000000000000000000 but must be less than or equal to 1000000000",
        ),
        (
            "documents",
            "weight = 0.1\npower = true",
            "documents.power is True but must be a valid integer",
        ),
        ("card", f"name = {'[' * 5000}", "is not TOML ("),
    ],
)
def test_absurd_numbers(written, section, line, message):
    refuse(written(replaced(section, line)), message)


@pytest.mark.parametrize(
    "text",
    [
        SMALLEST + '[card]\ndata_notes = {x = "from there"}\n',  # by the last part of its path
        SMALLEST.replace("data/x", "data/y.jsonl.gz") + '[card]\ndata_notes = {y = "from there"}\n',
        SMALLEST.replace('"data/x"', '"data/x"\nname = "z"') + '[card]\ndata_notes = {z = "from '
        'there"}\n',
        # the last step always is
        SMALLEST + 'evaluate_every = 5000\n[[dev]]\npath = "x"\nmeasure = "AP(rel=2)@10"\n',
        SMALLEST
        + "[optimizer]\nwarmup_steps = 1000\n[documents]\nweight = 0.1\nramp_steps = 1000\n",
        SMALLEST + '[documents]\npenalty = "none"\nanti_zero = 0.1\n',
    ],
)
def test_settings_at_the_edge_are_read(written, text):
    assert read_config(written(format_config(read_config(written(text))))) == read_config(
        written(text)
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "model is missing"),
        (
            '[model]\nstart = " "\n',
            "[model] start is empty but must be a folder or the name of a hub model",
        ),
        ("[model]\n", "model.start is missing"),
        ('[model]\nstart = "x"\n[run]\nsteps = 5\n', "data is missing"),
        ('[model]\nstart = "x"\n[[data]]\npath = "y"\n', "run is missing"),
        ('[model]\nstart = "x"\n[[data]]\npath = "y"\n[run]\nseed = 5\n', "run.steps is missing"),
        (SMALLEST + "[[data]]\n", "data.1.path is missing"),
        (SMALLEST + "[[teacher]]\nweight = 1.0\n", "teacher.0.kind is missing"),
        (
            "data = []\n" + SMALLEST.replace('[[data]]\npath = "data/x"\n', ""),
            "needs at least one [[data]]",
        ),
        ("loss = []\n" + SMALLEST, "needs at least one [[data]] and one [[loss]]"),
    ],
)
def test_missing_keys(written, text, message):
    refuse(written(text), message)


def test_another_version(written):
    refuse(written("version = 2\n" + SMALLEST), "version is 2; this release reads version 1")


def test_not_toml(written, tmp_path):
    refuse(written("steps: 5\n"), "is not TOML (")
    path = tmp_path / "latin.toml"
    path.write_bytes(SMALLEST.replace("base", "bäse").encode("latin-1"))
    refuse(path, "is not TOML (")


def test_no_file(tmp_path):
    refuse(tmp_path / "nothing.toml", "cannot be read (No such file or directory)")
    refuse(tmp_path, "cannot be read (Is a directory)")


def test_nan_is_refused_in_every_number():
    for place, hint in keys_of(EVERYTHING):
        if hint is float or float in typing.get_args(hint):
            with pytest.raises(ConfigError, match=rf"{place[-1]} is nan"):
                parse_config(changed(EVERYTHING, place, math.nan))


@pytest.mark.parametrize("config", [EVERYTHING, DECODER])
@pytest.mark.parametrize(
    "value",
    [
        True,
        10**400,
        -(10**400),
        2**63,
        10**30,
        -1,
        0,
        1.5,
        math.inf,
        "",
        "x" * 500,
        [],
        {},
        [{}],
        datetime.date(1979, 5, 27),
    ],
    ids=lambda value: str(value)[:20],
)
def test_no_value_of_any_key_ends_in_another_error(config, value):
    for place, _ in keys_of(config):
        with contextlib.suppress(ConfigError):
            parse_config(changed(config, place, value))


def keys_of(config: TrainConfig) -> list[tuple[list[str | int], typing.Any]]:
    """The path to each key in the table, one of each list, and its type."""
    found = []
    for field in dataclasses.fields(TrainConfig):
        entry = getattr(config, field.name)
        path = [field.name, 0] if isinstance(entry, tuple) and entry else [field.name]
        entry = entry[0] if len(path) > 1 else entry
        hints = typing.get_type_hints(type(entry)) if dataclasses.is_dataclass(entry) else {}
        found += [(path, None), *(([*path, name], hint) for name, hint in hints.items())]
    return found


def changed(config: TrainConfig, path: list[str | int], value: object) -> dict[str, typing.Any]:
    table = config_to_json(config)
    place: typing.Any = table
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return table


def test_the_module_reads_its_own_version():
    smallest = TrainConfig(ModelSettings("m"), EVERYTHING.data, RunSettings(10))
    assert smallest.version == VERSION == 1
