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
from sparse_ir.training.config import (
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
    TeacherSettings,
    TrainConfig,
    WarmStartSettings,
)
from sparse_ir.training.config_parser import (
    config_to_json,
    format_config,
    parse_config,
    read_config,
)

SMALLEST = '[model]\nstart = "org/base"\n[[data]]\npath = "data/x"\n[run]\nsteps = 1000\n'
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
        TeacherSettings(
            "dense",
            "org/dense",
            "def",
            0.5,
            "bfloat16",
            128,
            pooling="cls",
            similarity="dot",
            query_prompt="q: ",
            document_prompt="d: ",
        ),
        TeacherSettings("monot5", "org/t5", allow_pickle=True),
        TeacherSettings("bm25", k1=1.2, b=0.75),
        TeacherSettings("file"),
    ),
    dev=(DevSettings("data/dev", "dev", "test", "RR@10", 50, 500),),
    batch=BatchSettings(24, 7, 3, 6, False, 8),
    ensemble=EnsembleSettings(10.0, "none"),
    documents=PenaltySettings("idf_flops", None, 180.0, 300, 90, 2, anti_zero=0.01),
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
    queries=PenaltySettings("idf_flops", None, 40.0, 10, 5, 2, anti_zero=0.02),
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
    assert fields - changed == {("TrainConfig", "version")}  # there is one


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
        ("run", "zzzzz = 5", "unknown key run.zzzzz; allowed: steps, seed, precision"),
        ("data", 'negative = "x"', "unknown key data.0.negative; did you mean negatives?"),
        ("optimiser", "learning_rate = 1.0", "unknown key optimiser; did you mean optimizer?"),
    ],
)
def test_unknown_keys(written, section, line, message):
    refuse(written(replaced(section, line)), message)


@pytest.mark.parametrize(
    ("section", "line", "message"),
    [
        ("model", "max_length = 1.5", "model.max_length is 1.5; allowed: a value of type int"),
        ("model", "max_length = true", "model.max_length is True; allowed: a value of type int"),
        ("model", 'top_k = "5"', "model.top_k is '5'; allowed: a value of type int"),
        ("model", "idf = 5", "model.idf is 5; allowed: a value of type str"),
        (
            "model",
            'query = "dense"',
            "model.query is 'dense'; allowed: one of 'idf', 'ones', 'learned', 'neural'",
        ),
        ("run", "seed = false", "run.seed is False; allowed: a value of type int"),
        ("run", "tensorboard = 1", "run.tensorboard is 1; allowed: a value of type bool"),
        (
            "optimizer",
            "weight_decay = true",
            "optimizer.weight_decay is True; allowed: a value of type float",
        ),
        (
            "optimizer",
            'learning_rate = "1e-5"',
            "optimizer.learning_rate is '1e-5'; allowed: a value of type float",
        ),
        (
            "optimizer",
            "learning_rate = nan",
            "optimizer.learning_rate is nan; allowed: a value of type float",
        ),
        (
            "optimizer",
            "max_grad_norm = nan",
            "optimizer.max_grad_norm is nan; allowed: a value of type float",
        ),
        ("card", "data_notes = 3", "card.data_notes is 3; allowed: a table"),
        (
            "card",
            "data_notes = {toy = 3}",
            "card.data_notes.toy is 3; allowed: a value of type str",
        ),
        (
            "loss",
            'name = "nce"',
            "loss.0.name is 'nce'; allowed: one of 'kl', 'info_nce', 'margin_mse'",
        ),
    ],
)
def test_wrong_types(written, section, line, message):
    refuse(written(replaced(section, line)), message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model = 5\n", "model is 5; allowed: a table"),
        (
            '[model]\nstart = "x"\n[data]\npath = "y"\n',
            "data is {'path': 'y'}; allowed: a list of tables, each under",
        ),
        ('data = ["y"]\n', "data.0 is 'y'; allowed: a table"),
    ],
)
def test_wrong_sections(written, text, message):
    refuse(written(text), message)


@pytest.mark.parametrize(
    ("section", "line", "message"),
    [
        ("model", "max_length = 3", "[model] model.max_length is 3; allowed: 4 or more"),
        ("model", "query_max_length = 3", "model.query_max_length is 3; allowed: 4 or more"),
        ("model", "top_k = 0", "model.top_k is 0; allowed: 1 or more"),
        ("run", "stop_after = 2000", "run.stop_after is 2000; allowed: 1 to run.steps (1000)"),
        ("model", "dropout = 1.0", "model.dropout is 1.0; allowed: 0 or more and less than 1"),
        ("model", "dropout = -0.1", "model.dropout is -0.1"),
        ("model", 'query = "ones"\nidf = "x.json"', "model.idf is given and model.query is 'ones'"),
        ("warm_start", "steps = -1", "warm_start.steps is -1; allowed: 0 or more"),
        (
            "warm_start",
            "learning_rate = 0",
            "warm_start.learning_rate is 0.0; allowed: more than 0",
        ),
        ("blend", "start = 1.0", "blend.start is 1.0; allowed: 0 or more and less than 1"),
        (
            "blend",
            'terms = 9\n[[dev]]\npath = "x"',
            "[blend] is made of the last step, and [[dev]] would choose another",
        ),
        ("blend", "terms = 0", "blend.terms is 0; allowed: 1 or more"),
        ("warm_start", "active_terms = 0", "warm_start.active_terms is 0; allowed: 1 or more"),
        ("warm_start", "steps = 1000", "warm_start.steps is 1000 of 1000 steps in all"),
        ("data", "weight = 0", "[data.0] data.weight is 0.0; allowed: more than 0"),
        ("data", "limit = 0", "data.limit is 0; allowed: 1 or more"),
        ("batch", "queries = 0", "batch.queries is 0; allowed: 1 or more"),
        ("batch", "negatives = -1", "batch.negatives is -1; allowed: 0 or more"),
        ("batch", "queries_per_positive = 0", "batch.queries_per_positive is 0"),
        ("batch", "neighbourhood = 0", "batch.neighbourhood is 0"),
        ("batch", "micro_batch = 0", "batch.micro_batch is 0"),
        ("batch", "queries = 1", "a query has no candidate but its positive"),
        ("batch", "in_batch = false", "a query has no candidate but its positive"),
        ("loss", 'name = "info_nce"\nweight = 0', "loss.weight is 0.0; allowed: more than 0"),
        (
            "loss",
            'name = "info_nce"\ntemperature = inf',
            "loss.temperature is inf; allowed: more than 0",
        ),
        ("teacher", 'kind = "dense"', "teacher of kind 'dense': model is None"),
        ("teacher", 'kind = "monot5"', "sparse, cross-encoder and monot5 teachers need one"),
        ("teacher", 'kind = "bm25"\nmodel = "x"', "teacher of kind 'bm25': model is 'x'"),
        ("teacher", 'kind = "file"\nweight = -1', "teacher.weight is -1.0; allowed: more than 0"),
        ("teacher", 'kind = "bm25"\nk1 = -1', "teacher.k1 is -1.0; allowed: 0 or more"),
        ("teacher", 'kind = "bm25"\nb = 1.5', "teacher.b is 1.5; allowed: 0 to 1"),
        (
            "teacher",
            'kind = "bm25"\npooling = "cls"',
            "teacher.pooling is 'cls' and kind 'bm25', which has no use for it; it is for dense",
        ),
        ("ensemble", "scale = 0", "ensemble.scale is 0.0; allowed: more than 0"),
        (
            "documents",
            "",
            "[documents] a penalty needs either weight (lambda) or target_terms, and not both",
        ),
        (
            "documents",
            "weight = 0.1\ntarget_terms = 100",
            "a penalty needs either weight (lambda) or target_terms",
        ),
        ("documents", "weight = -0.1", "penalty weight is -0.1; allowed: 0 or more"),
        ("documents", "weight = inf", "penalty weight is inf; allowed: 0 or more"),
        (
            "documents",
            "weight = 0.1\nanti_zero = -1",
            "penalty anti_zero is -1.0; allowed: 0 or more",
        ),
        ("documents", "weight = 0.1\nexempt_up_to = 0", "exempt_up_to is 0; allowed: 1 or more"),
        (
            "documents",
            'penalty = "l1"\nweight = 0.1\nexempt_up_to = 9',
            (
                "exempt_up_to is 9 and penalty 'l1', which has no use for it; it is for flops, "
                "idf_flops, "
                "df_flops"
            ),
        ),
        (
            "documents",
            "weight = 0.1\nalpha = 1.0",
            "alpha is 1.0; allowed: more than 0 and less than 1",
        ),
        ("documents", "weight = 0.1\nbeta = 0.0", "beta is 0.0; allowed: more than 0"),
        ("documents", "target_terms = 0", "target_terms is 0.0; allowed: more than 0"),
        ("documents", "weight = 0.1\nramp_steps = -1", "ramp_steps is -1; allowed: 0 or more"),
        ("documents", "weight = 0.1\npower = 3", "documents.power is 3; allowed: one of 1, 2"),
        (
            "queries",
            "weight = 0.1",
            "[queries] penalises query vectors, and model.query = 'idf' has fixed ones",
        ),
        ("optimizer", "learning_rate = 0", "optimizer.learning_rate is 0.0; allowed: more than 0"),
        ("optimizer", "weight_decay = inf", "optimizer.weight_decay is inf; allowed: 0 or more"),
        ("run", "seed = 4294967296", "run.seed is 4294967296; allowed: 0 to 4294967295"),
        ("run", "seed = -1", "run.seed is -1; allowed: 0 to"),
        ("optimizer", "warmup_steps = -1", "optimizer.warmup_steps is -1; allowed: 0 or more"),
        ("optimizer", "max_grad_norm = 0", "optimizer.max_grad_norm is 0.0; allowed: more than 0"),
        (
            "dev",
            'path = "a/x"\n[[dev]]\npath = "b/x"',
            "two [[dev]] sets would be called 'x' in the log; give one a name",
        ),
        ("dev", 'path = "x"\nqueries = 0', "[dev.0] dev.queries is 0; allowed: 1 or more"),
        ("dev", 'path = "x"\ndocuments = 0', "dev.documents is 0; allowed: 1 or more"),
        ("run", "save_every = 0", "run.save_every is 0; allowed: 1 or more"),
        ("run", "evaluate_every = 0", "run.evaluate_every is 0"),
        ("run", "keep = 0", "run.keep is 0"),
        ("run", "log_every = 0", "run.log_every is 0"),
        ("loss", 'name = "kl"', "losses ['kl'] and 0 teachers do not fit"),
        ("teacher", 'kind = "bm25"', "losses without a teacher and 1 teachers do not fit"),
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
            "[documents] weight is 0.1 and penalty 'none', which has no use f",
        ),
        (
            "documents",
            'penalty = "none"\ntarget_terms = 50',
            "target_terms is 50.0 and penalty 'none', which has no use",
        ),
        (
            "documents",
            'penalty = "none"\nramp_steps = 5',
            "ramp_steps is 5 and penalty 'none', which has no use for it",
        ),
        (
            "documents",
            'penalty = "none"\nexempt_up_to = 5',
            "exempt_up_to is 5 and penalty 'none', which has no use for i",
        ),
        (
            "documents",
            "weight = 0.1\npower = 2",
            "power is 2 and penalty 'flops', which has no use for it; it is for idf_",
        ),
        (
            "documents",
            "weight = 0.1\nalpha = 0.2",
            "alpha is 0.2 and penalty 'flops', which has no use for it; it is for ",
        ),
        (
            "documents",
            "weight = 0.1\nbeta = 6",
            "beta is 6.0 and penalty 'flops', which has no use for it; it is for df_f",
        ),
        (
            "documents",
            "target_terms = 90\nexempt_up_to = 90",
            "exempt_up_to is 90; allowed: less than target_terms (90)",
        ),
        (
            "documents",
            "target_terms = 90\n[model]\ntop_k = 80",
            "documents.target_terms is 90 and model.top_k is 80",
        ),
        ("blend", "terms = 90\n[model]\ntop_k = 80", "blend.terms is 90 and model.top_k is 80"),
        (
            "documents",
            "weight = 0.1\nramp_steps = 1001",
            "documents.ramp_steps is 1001; allowed: up to the 1000 steps of",
        ),
        (
            "queries",
            "weight = 0.1\nramp_steps = 1001\n[model]\nquery = 'neural'",
            "queries.ramp_steps is 1001; allowed",
        ),
        (
            "queries",
            'penalty = "none"\nanti_zero = 0.1',
            "[queries] penalises query vectors, and model.query = 'idf' has",
        ),
        (
            "optimizer",
            "warmup_steps = 901\n[warm_start]\nsteps = 100",
            "optimizer.warmup_steps is 901; allowed: up to the",
        ),
        (
            "optimizer",
            "query_learning_rate = 1e-3",
            "optimizer.query_learning_rate is 0.001 and model.query is 'idf'",
        ),
        (
            "model",
            'query_prompt = "query: "',
            "model.query_prompt is 'query: ' and model.query is 'idf', which has no use",
        ),
        ("model", "saved_max_length = 3", "model.saved_max_length is 3; allowed: 4 or more"),
        (
            "batch",
            "neighbourhood = 33",
            "batch.neighbourhood is 33; allowed: up to batch.queries (32)",
        ),
        (
            "loss",
            'name = "margin_mse"\ntemperature = 2',
            "loss.temperature is 2.0 and name 'margin_mse', which has no use",
        ),
        (
            "ensemble",
            "scale = 10",
            "[ensemble] is of the scores of teachers, and there is no [[teacher]]; drop the sectio",
        ),
        (
            "teacher",
            'kind = "bm25"\nrevision = "a"',
            "teacher.revision is 'a' and kind 'bm25', which has no use for it",
        ),
        (
            "teacher",
            'kind = "file"\ndtype = "bfloat16"',
            "teacher.dtype is 'bfloat16' and kind 'file', which has no use f",
        ),
        (
            "teacher",
            'kind = "bm25"\nmax_length = 9',
            "teacher.max_length is 9 and kind 'bm25', which has no use for it",
        ),
        (
            "teacher",
            'kind = "file"\nallow_pickle = true',
            "teacher.allow_pickle is True and kind 'file', which has no use",
        ),
        (
            "teacher",
            'kind = "dense"\nmodel = "x"\nk1 = 1',
            "teacher.k1 is 1.0 and kind 'dense', which has no use for it; ",
        ),
        (
            "teacher",
            'kind = "file"\nb = 0.5',
            "teacher.b is 0.5 and kind 'file', which has no use for it; it is for bm25",
        ),
        (
            "warm_start",
            "relu_weight = 0.5",
            "warm_start.relu_weight is 0.5 and objective 'bag_of_words', which has no use",
        ),
        (
            "warm_start",
            'mask_token = "_"\nobjective = "clm"',
            "warm_start.mask_token is '_' and objective 'clm', which ha",
        ),
        (
            "loss",
            'name = "kl"\n[[teacher]]\nkind = "file"',
            "a teacher of kind 'file' knows a query's own documents only",
        ),
        (
            "run",
            "evaluate_every = 50",
            "run.evaluate_every is 50, and there is no [[dev]] to evaluate on; drop it, or add",
        ),
        (
            "card",
            'data_notes = {x = "a", y = "b"}',
            "card.data_notes has 'y'; allowed: names of sources (x)",
        ),
        (
            "dev",
            'path = "x"\nmeasure = "nDGC@10"',
            "[dev.0] dev.measure: measure 'nDGC@10' is unknown",
        ),
        (
            "dev",
            'path = "x"\nmeasure = "MRR@10"',
            "dev.measure is 'MRR@10'; allowed: one measure, spelled 'RR@10'",
        ),
        (
            "dev",
            'path = "x"\nmeasure = "RR@10 AP"',
            "dev.measure is 'RR@10 AP'; allowed: one measure, spelled 'RR@10'",
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
            "run.save_every is a whole number of 100 bits; allowed: of 63 bits at most",
        ),
        (
            "run",
            f"save_every = {10**18}",
            "run.save_every is 1000000000000000000; allowed: 1000000000 at most",
        ),
        (
            "ensemble",
            f"scale = {10**400}",
            "ensemble.scale is a whole number of 1329 bits; allowed: of 63 bits at most",
        ),
        ("ensemble", f"scale = {'9' * 5000}", "is not TOML (Exceeds the limit"),
        ("data", f"limit = -{10**30}", "data.0.limit is a whole number of 100 bits"),
        (
            "lora",
            f"alpha = {10**18}",
            "lora.alpha is 1000000000000000000; allowed: 1000000000 at most",
        ),
        (
            "documents",
            "weight = 0.1\npower = true",
            "documents.power is True; allowed: one of 1, 2",
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
            "model.start is empty; allowed: a folder or the name of a hub model",
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
    assert TrainConfig(EVERYTHING.model, EVERYTHING.data, EVERYTHING.run).version == VERSION == 1
