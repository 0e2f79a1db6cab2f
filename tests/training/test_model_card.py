"""The model card: its front matter, every number of it, what it keeps to
itself, and empty cases.
"""

from __future__ import annotations

import dataclasses
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from sparse_ir.errors import DataError, ModelError
from sparse_ir.storage import files
from sparse_ir.training.configuration.config import (
    BatchSettings,
    BlendSettings,
    CardSettings,
    DataSettings,
    DevSettings,
    EnsembleSettings,
    LossSettings,
    ModelSettings,
    OptimizerSettings,
    PenaltySettings,
    RunSettings,
    TrainConfig,
    WarmStartSettings,
)
from sparse_ir.training.configuration.config_parser import parse_config
from sparse_ir.training.model_card import format_card, write_card
from sparse_ir.training.teachers.bm25 import Bm25Settings
from sparse_ir.training.teachers.cross_encoder import CrossEncoderSettings
from sparse_ir.training.teachers.dense import DenseSettings
from sparse_ir.training.teachers.kinds import FileSettings

CONFIG = TrainConfig(
    model=ModelSettings(
        "some-org/mini",
        revision="abc123",
        query="idf",
        idf="/home/secret/lists/idf.json",
        max_length=192,
        query_max_length=48,
        saved_max_length=512,
        document_prompt="passage: ",
        top_k=300,
    ),
    data=(
        DataSettings("/home/secret/data/squad", negatives="/home/secret/mined/squad.jsonl"),
        DataSettings("../secret/web", name="web"),
    ),
    run=RunSettings(steps=12_345, seed=7, precision="bfloat16"),
    loss=(
        LossSettings("kl", weight=0.9, temperature=1.5),
        LossSettings("info_nce", weight=0.3),
        LossSettings("margin_mse", weight=0.05),
    ),
    teacher=(
        DenseSettings(model="/home/secret/models/dense-teacher", weight=2.0, max_length=256),
        CrossEncoderSettings(model="org/reranker", revision="f00d", dtype="bfloat16"),
        Bm25Settings(k1=0.82, b=0.68),
        FileSettings(weight=0.25),
    ),
    dev=(DevSettings("/home/secret/dev/questions", measure="RR@10"),),
    batch=BatchSettings(queries=24, negatives=2, queries_per_positive=3, neighbourhood=6),
    ensemble=EnsembleSettings(scale=30.0),
    documents=PenaltySettings(
        "idf_flops", target_terms=180.0, ramp_steps=1_500, power=2, anti_zero=0.125
    ),
    optimizer=OptimizerSettings(
        learning_rate=5e-5,
        weight_decay=0.02,
        warmup_steps=110,
        schedule="cosine",
        max_grad_norm=2.5,
    ),
    warm_start=WarmStartSettings(steps=130, learning_rate=4e-4, active_terms=350),
    card=CardSettings(
        "My model", license="apache-2.0", data_notes={"squad": "Wikipedia, CC BY-SA 4.0"}
    ),
)
SOURCES: list[dict[str, Any]] = [
    {
        "name": "squad",
        "queries": 87_599,
        "documents": 18_896,
        "share": 0.8125,
        "steps_per_epoch": 777.5,
    },
    {"name": "web", "queries": 512, "documents": 4_096, "share": 0.1875},
]
REPORT = {
    "model": "/home/secret/runs/one/model",
    "steps": 12_300,
    "best_step": 9_500,
    "best_dev": 0.43219,
    "documents_terms": 176.46,
    "queries_terms": 7.25,
    "dev": {"questions": 0.51234},
}
COMMAND = "sparse-ir train --config=/home/secret/recipes/one.toml --output ~/runs/one --model org/reranker && echo done"
VERSIONS = {"sparse-ir": "0.1.0", "torch": "2.13.0+cpu"}
MINIMAL = TrainConfig(
    model=ModelSettings("org/base", query="neural"),
    data=(DataSettings("data/x"),),
    run=RunSettings(steps=10),
    documents=PenaltySettings("flops", weight=0.06, ramp_steps=4),
    queries=PenaltySettings("l1", weight=5e-4),
)


def full_card() -> str:
    return format_card(
        CONFIG,
        sources=SOURCES,
        report=REPORT,
        command=COMMAND,
        versions=VERSIONS,
    )


def front_matter(card: str) -> dict[str, Any]:
    return yaml.safe_load(card.split("---\n")[1])


def section(card: str, title: str) -> str:
    return (
        re.search(rf"^## {title}\n\n(.*?)(?=\n\n## |\Z)", card, re.MULTILINE | re.DOTALL)
        .group(1)
        .rstrip("\n")
    )


def rows(table: str) -> list[list[str]]:
    lines = [line for line in table.splitlines() if line.startswith("|")]
    return [
        [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        for line in lines
        if "| ---" not in line
    ]


def configuration(card: str) -> TrainConfig:
    return parse_config(
        tomllib.loads(re.search(r"`{3,}toml\n(.*?)\n`{3,}", card, re.DOTALL).group(1))
    )


def with_card(source: str = "x", **changes: Any) -> TrainConfig:
    data = (DataSettings("data/x", name=source),)
    return dataclasses.replace(MINIMAL, data=data, card=CardSettings(**changes))


def minimal_card(config: TrainConfig = MINIMAL, **changes: Any) -> str:
    return format_card(config, **({"sources": [], "report": {}} | changes))


# --- front matter ---


def test_front_matter_of_an_inference_free_model():
    assert front_matter(full_card()) == {
        "license": "apache-2.0",
        "library_name": "sentence-transformers",
        "pipeline_tag": "feature-extraction",
        "base_model": "some-org/mini",
        "tags": ["sparse-encoder", "sparse", "splade", "asymmetric", "inference-free"],
    }


def test_front_matter_of_a_siamese_model_without_license():
    assert front_matter(minimal_card()) == {
        "library_name": "sentence-transformers",
        "pipeline_tag": "feature-extraction",
        "base_model": "org/base",
        "tags": ["sparse-encoder", "sparse", "splade"],
    }


@pytest.mark.parametrize("query", ["ones", "learned", "idf"])
def test_every_static_query_side_is_tagged(query):
    config = dataclasses.replace(
        MINIMAL, model=ModelSettings("org/base", query=query), queries=PenaltySettings("none")
    )
    assert front_matter(minimal_card(config))["tags"][-2:] == ["asymmetric", "inference-free"]


@pytest.mark.parametrize("text", ["other: # yes", "a\n---\nb: [", "'\"", "no", "日本 \u2028 é"])
def test_a_license_is_text_whatever_stands_in_it(text):
    card = minimal_card(with_card(license=text))
    assert (
        yaml.safe_load(re.match(r"---\n(.*?)\n---\n\n# ", card, re.DOTALL).group(1))["license"]
        == text
    )


def test_a_starting_folder_is_no_base_model_of_the_hub(tmp_path, monkeypatch):
    (tmp_path / "runs" / "one").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for start in ("runs/one", str(tmp_path / "runs" / "one"), "runs"):
        card = minimal_card(
            dataclasses.replace(MINIMAL, model=ModelSettings(start, query="neural"))
        )
        assert "base_model" not in front_matter(card)
        assert f"Training started from `{Path(start).name}`." in card


def test_the_hub_reads_the_card():
    card = ModelCard(full_card())
    assert card.data.base_model == "some-org/mini" and card.data.license == "apache-2.0"


# --- numbers ---


def test_sections_stand_in_this_order():
    wanted = [
        "Use",
        "Training data",
        "Training",
        "Sparsity",
        "Development sets",
        "Versions",
        "Command",
        "Configuration",
    ]
    for card in (full_card(), minimal_card()):
        assert re.findall("^## (.*)$", card, re.MULTILINE) == wanted


def test_what_the_model_is():
    intro = full_card().split("\n# ")[1].split("\n## ")[0]
    for text in (
        "My model\n",
        "log(1 + relu(x)) of its top logit",
        "each weighted by its IDF",
        "512 tokens",
        "`some-org/mini`, revision `abc123`",
        "192 tokens of a document, 48 of a query",
        "keeps the heaviest 300 terms of a document at most",
        "before every document: `passage:`",
        "License: apache-2.0.",
    ):
        assert text in intro


def test_the_double_logarithm_is_named():
    model = dataclasses.replace(MINIMAL.model, activation="log1p_relu")
    assert "log(1 + log(1 + relu(x)))" in minimal_card(dataclasses.replace(MINIMAL, model=model))


def test_training_data():
    assert rows(section(full_card(), "Training data")) == [
        ["source", "queries", "documents", "share of batches", "origin and licence"],
        ["squad", "87,599", "18,896", "81.2 %", "Wikipedia, CC BY-SA 4.0"],
        ["web", "512", "4,096", "18.8 %", "not stated"],
    ]


def test_a_note_on_a_source_without_a_row_is_not_lost():
    card = minimal_card(
        with_card("elsewhere", data_notes={"elsewhere": "teacher's data, unknown"}),
        sources=SOURCES,
    )
    assert section(card, "Training data").endswith("- elsewhere: teacher's data, unknown")


def test_training_in_plain_words():
    lines = section(full_card(), "Training").splitlines()
    assert lines == [
        "- Steps: 12,300 of 12,345; seed 7; bfloat16.",
        (
            "- Batch: 24 positive documents, up to 3 queries for each, 2 mined negatives for each "
            "query, 6 positives "
            "drawn together as neighbours; candidates of a query are all documents of the batch."
        ),
        (
            "- Warm start: 130 of these steps with a bag-of-words objective (DupMAE), learning "
            "rate "
            "0.0004; ranking began "
            "with 350 active terms per document."
        ),
        (
            "- Loss: KL divergence from the teachers' distribution over the candidates of a query "
            "to "
            "the model's; weight "
            "0.9, temperature 1.5."
        ),
        (
            "- Loss: InfoNCE, the cross-entropy of the positive among the candidates of a query; "
            "weight 0.3, "
            "temperature 1."
        ),
        (
            "- Loss: MarginMSE, the squared difference between the teachers' margins (positive "
            "minus "
            "other candidate) and "
            "the model's; weight 0.05."
        ),
        "- Teacher: the dense model `dense-teacher` in float32, 256 tokens; weight 2.",
        "- Teacher: the cross-encoder model `org/reranker` in bfloat16, revision `f00d`; weight 1.",
        "- Teacher: BM25 with k1 0.82 and b 0.68; weight 1.",
        "- Teacher: the scores in the training file; weight 0.25.",
        (
            "- Target: the weighted mean of the teachers' scores, scaled to 0..1 for each query "
            "(min-max), times 30."
        ),
        (
            "- Penalty on documents: IDF-aware FLOPS: the sum over all tokens of the squared mean "
            "weight divided by the "
            "token's IDF; lambda controlled towards 180 active terms; to be reached within 1,500 "
            "steps; power 2 of the "
            "IDF; plus 0.125 times the anti-zero loss."
        ),
        (
            "- Optimizer: AdamW with learning rate 5e-05, 110 warm-up steps, cosine decay to 0, "
            "weight decay 0.02, "
            "gradients clipped to a norm of 2.5."
        ),
    ]


def test_training_of_a_siamese_model_without_teachers():
    lines = section(minimal_card(), "Training").splitlines()
    assert lines[0] == "- Steps: 10 of 10; seed 0; float32."
    assert not [
        line for line in lines if line.startswith(("- Teacher", "- Target", "- Warm start"))
    ]
    assert "lambda 0.06; quadratic ramp over 4 steps." in lines[-3]
    assert lines[-2] == "- Penalty on queries: L1: the mean sum of a text's weights; lambda 0.0005."
    assert lines[-1].endswith("linear decay to 0, weight decay 0.01, no gradient clipping.")


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"documents": PenaltySettings("none")}, "Penalty on documents: none."),
        (
            {"documents": PenaltySettings("df_flops", weight=0.0, alpha=0.2, beta=7.0)},
            "lambda 0; alpha 0.2, beta 7.",
        ),
        (
            {"batch": BatchSettings(negatives=7, in_batch=False)},
            "are its own positive and negatives.",
        ),
        (
            {
                "loss": (LossSettings("margin_mse"),),
                "teacher": (FileSettings(),),
                "ensemble": EnsembleSettings(1.0, "none"),
            },
            "Target: the weighted mean of the teachers' scores, not scaled, times 1.",
        ),
        ({"optimizer": OptimizerSettings(schedule="constant")}, "a constant rate"),
        (
            {"blend": BlendSettings(0.5, 170)},
            "with a share of 0.5 (WiSE-FT).\n- Output biases were then shifted to 170 ",
        ),
        (
            {
                "model": ModelSettings("m", query="learned"),
                "queries": PenaltySettings("none"),
                "optimizer": OptimizerSettings(query_learning_rate=1e-3),
            },
            "query weights with 0.001",
        ),
    ],
)
def test_other_choices_have_their_words(changes, wanted):
    assert wanted in section(minimal_card(dataclasses.replace(MINIMAL, **changes)), "Training")


def test_sparsity_and_dev():
    assert (
        section(full_card(), "Sparsity")
        == "- Active terms of documents: 176.5 on average (target: 180)."
    )
    blended = minimal_card(
        dataclasses.replace(CONFIG, dev=(), blend=BlendSettings(terms=170)), report=REPORT
    )
    assert "176.5 on average over a sample of the training documents, after the blend." in section(
        blended, "Sparsity"
    )
    report = {**REPORT, "missed_targets": ["documents: 300 active terms, 180 were asked for"]}
    missed = minimal_card(CONFIG, report=report)
    assert section(missed, "Sparsity").endswith(
        "\n- Target missed: documents: 300 active terms, 180 were asked for."
    )
    siamese = minimal_card(report={"documents_terms": 150.0, "queries_terms": 24.04})
    assert section(siamese, "Sparsity").splitlines() == [
        "- Active terms of documents: 150.0 on average.",
        "- Active terms of queries: 24.0 on average.",
    ]
    assert section(full_card(), "Development sets").splitlines() == [
        (
            "- Best mean over questions (RR@10): 0.4322, after step 9,500. This is the model that "
            "was "
            "saved."
        ),
        "- questions: 0.5123",
    ]


def test_numbers_of_numpy_are_numbers():
    numpy = pytest.importorskip("numpy")
    row = {**SOURCES[0], "share": numpy.float32(0.5), "queries": numpy.int64(1_200)}
    found = rows(section(minimal_card(sources=[row]), "Training data"))[1]
    assert found[1:4] == ["1,200", "18,896", "50.0 %"]


def test_versions():
    assert section(full_card(), "Versions").splitlines() == [
        "- sparse-ir: 0.1.0",
        "- torch: 2.13.0+cpu",
    ]


def test_empty_cases_say_so():
    card = minimal_card()
    assert (
        section(card, "Training data")
        == section(card, "Versions")
        == section(card, "Command")
        == "Not stated."
    )
    assert section(card, "Sparsity").splitlines() == [
        "- Active terms of documents: not stated.",
        "- Active terms of queries: not stated.",
    ]
    assert section(card, "Development sets").startswith("Nothing was measured during training")
    assert "License: not stated." in card


# --- use, paths, escaping ---


def test_the_python_examples_are_python():
    blocks = re.findall(r"```python\n(.*?)\n```", full_card(), re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        compile(block, "card", "exec")
    assert "encode_query" in blocks[1] and "encode_document" in blocks[1]


def test_the_configuration_is_complete_but_for_folders():
    found = configuration(full_card())
    assert (found.model.idf, found.data[0].path, found.data[0].negatives) == (
        "idf.json",
        "squad",
        "squad.jsonl",
    )
    assert (found.data[1].path, found.dev[0].path) == ("web", "questions")
    models = [getattr(teacher, "model", None) for teacher in found.teacher]
    assert models == ["dense-teacher", "org/reranker", None, None]
    restored = dataclasses.replace(
        found, model=CONFIG.model, data=CONFIG.data, teacher=CONFIG.teacher, dev=CONFIG.dev
    )
    assert restored == CONFIG
    assert found.model == dataclasses.replace(CONFIG.model, idf="idf.json")


def test_no_folder_of_this_machine_is_told():
    card = full_card()
    assert "secret" not in card and "/home" not in card and "~" not in card and "../" not in card


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        (
            COMMAND,
            "sparse-ir train --config=one.toml --output one --model org/reranker && echo done",
        ),
        ("sparse-ir train --config ./one.toml", "sparse-ir train --config one.toml"),
        (
            "'/my home/bin/sparse-ir' train --config 'C:\\Users\\me\\a b.toml'",
            "sparse-ir train --config 'a b.toml'",
        ),
        ("sparse-ir train --config recipes/one.toml", "sparse-ir train --config one.toml"),
        # an open quote
        ("OUT=/mnt/x/ sparse-ir 'open /home/me/quote", "OUT=x sparse-ir ''\"'\"'open' quote"),
    ],
)
def test_command_with_short_paths(command, shown):
    assert section(minimal_card(command=command), "Command") == f"```bash\n{shown}\n```"


def test_names_of_collections_are_any_text_but_no_paths():
    named = [
        {**SOURCES[0], "name": name} for name in ("/home/me/squad", "title / body", "C:\\me\\web")
    ]
    found = rows(section(minimal_card(sources=named), "Training data"))
    assert [row[0] for row in found[1:]] == ["squad", "title / body", "web"]


def test_markdown_of_users_stays_text():
    nasty = "a|b\n# *c* <script> [x](y) `d` _e_ f_g & $h$ \\"
    card = minimal_card(
        with_card(nasty, name=nasty, data_notes={nasty: nasty}),
        sources=[{**SOURCES[0], "name": nasty}],
        versions={nasty: nasty},
    )
    plain = r"a\|b \# \*c\* \<script\> \[x\](y) \`d\` \_e\_ f_g \& \$h\$ " + "\\\\"
    assert f"\n# {plain}\n" in card
    assert rows(section(card, "Training data"))[1] == [plain, "87,599", "18,896", "81.2 %", plain]
    assert section(card, "Versions") == f"- {plain}: {plain}"


def test_backticks_of_users_do_not_end_a_code_block():
    prompt = "```\n# not a heading `` "
    config = dataclasses.replace(
        MINIMAL, model=dataclasses.replace(MINIMAL.model, document_prompt=prompt)
    )
    card = minimal_card(config, command="echo '````'")
    assert configuration(card).model.document_prompt == prompt
    assert "Prompt before every document: ```` ```" in card
    assert section(card, "Command") == "`````bash\necho '````'\n`````"


# --- files, refusals ---


def saved_model(folder: Path) -> Path:
    files.write_json(
        folder / "modules.json",
        [{"idx": 0, "path": "", "type": "sentence_transformers.models.Router"}],
    )
    return folder


def test_the_file_is_written_whole_and_twice_the_same(tmp_path):
    folder = saved_model(tmp_path / "model")
    written = []
    for _ in range(2):
        write_card(
            folder,
            CONFIG,
            sources=SOURCES,
            report=REPORT,
            command=COMMAND,
            versions=VERSIONS,
        )
        written.append((folder / "README.md").read_bytes())
    assert written[0] == written[1] == full_card().encode()
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "modules.json"]


def test_a_refused_card_leaves_the_old_one(tmp_path):
    folder = saved_model(tmp_path / "model")
    write_card(folder, MINIMAL, sources=[], report={})
    before = (folder / "README.md").read_bytes()
    message = r"report\.documents_terms is nan but must be a finite number"
    with pytest.raises(DataError, match=message):
        write_card(folder, MINIMAL, sources=[], report={"documents_terms": float("nan")})
    assert (folder / "README.md").read_bytes() == before


def test_a_folder_without_a_model_gets_no_card(tmp_path):
    with pytest.raises(ModelError, match="holds no saved SparseEncoder"):
        write_card(tmp_path / "nothing", MINIMAL, sources=[], report={})
    assert not (tmp_path / "nothing").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sources": [{"queries": 1}]}, r"sources\[0\]\.name is missing"),
        (
            {"sources": [SOURCES[0], {"name": "x", "queries": 1, "documents": 2}]},
            r"sources\[1\]\.share is missing",
        ),
        (
            {"sources": [{**SOURCES[0], "queries": "many"}]},
            (
                r"sources\[0\]\.queries is 'many' "
                r"but must be a finite number"
            ),
        ),
        ({"report": {"best_dev": 0.5}}, r"report\.best_step is missing"),
        ({"report": {"documents_terms": float("inf")}}, r"report\.documents_terms is inf"),
        (
            {"report": {"best_dev": 0.5, "best_step": 1, "dev": {"a": True}}},
            r"report\.dev\.a is True",
        ),
    ],
)
def test_refusals(changes, message):
    with pytest.raises(DataError, match=message):
        minimal_card(**changes)
