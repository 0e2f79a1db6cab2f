"""The model inside this package: small, inference-free, as sentence-transformers reads it, and
better than words.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from shell import run_command

from sparse_ir.commands import indexing
from sparse_ir.indexing import manifest
from sparse_ir.models import catalog, checkpoint
from sparse_ir.models.encoder import Encoder
from sparse_ir.models.static_queries import StaticQueryEncoder
from sparse_ir.retrieval.searcher import Index
from sparse_ir.storage import files
from sparse_ir.training.configuration import config_parser

DOCUMENTS = {
    "heart": "Myocardial infarction is treated by opening the blocked coronary artery within "
    "hours.",
    "wing": "The lift of an airfoil at supersonic speed is proportional to its angle of attack.",
    "bread": "Knead the dough, let it rise overnight, and bake the loaf in a hot oven.",
    "court": "The judge dismissed the lawsuit because the contract had never been signed.",
    "frog": "Amphibians breathe through their moist skin and lay their eggs in ponds.",
}
QUESTIONS = {  # in other words than those of the documents
    "heart": "emergency therapy for cardiac patients",
    "wing": "how aircraft keep flying",
    "bread": "recipe with flour and yeast",
    "court": "litigation before a tribunal",
    "frog": "animals that live near lakes",
}


@pytest.fixture(scope="module")
def model() -> Encoder:
    return Encoder.load(catalog.shipped_model(), device="cpu")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("default") / "corpus"
    folder.mkdir()
    lines = [
        json.dumps({"_id": doc_id, "title": "", "text": text}) for doc_id, text in DOCUMENTS.items()
    ]
    (folder / "corpus.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def test_it_is_small_and_whole():
    folder = catalog.shipped_model()
    assert files.folder_size(folder) <= 50e6
    assert checkpoint.read_layout(folder).layout == "router"
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "--config default.toml" in card and "nDCG@10" in card and "origin and licence" in card


def test_its_queries_need_no_network(model):
    asked = model.query_encoder()
    assert isinstance(asked, StaticQueryEncoder)
    token_ids, weights = asked.encode("the myocardial infarction")
    by_token = {
        asked.vocabulary[token_id]: weight
        for token_id, weight in zip(token_ids, weights, strict=True)
    }
    assert by_token["the"] < 1 < by_token["##rdial"]


def test_documents_get_words_that_they_do_not_hold(model):
    vectors = model.encode(list(DOCUMENTS.values())).toarray()
    asked = np.zeros((len(QUESTIONS), vectors.shape[1]), dtype=np.float32)
    for row, question in zip(asked, QUESTIONS.values(), strict=True):
        token_ids, weights = model.query_encoder().encode(question)
        row[token_ids] = weights
    assert (asked @ vectors.T).argmax(1).tolist() == list(range(len(DOCUMENTS)))
    own = set(DOCUMENTS["frog"].lower().replace(".", "").split())
    heaviest = [model.vocabulary[token_id] for token_id in np.argsort(-vectors[-1])[:20]]
    assert set(heaviest) & own and set(heaviest) - own


def test_sentence_transformers_reads_the_same_vectors(model):
    from sentence_transformers import SparseEncoder

    other = SparseEncoder(str(catalog.shipped_model()), device="cpu")
    texts = list(DOCUMENTS.values())
    theirs = (
        other.encode_document(texts, convert_to_sparse_tensor=False, show_progress_bar=False)
        .float()
        .numpy()
    )
    assert model.encode(texts).toarray() == pytest.approx(theirs, abs=2e-3)
    asked = (
        other.encode_query(["animals that live in water"], convert_to_sparse_tensor=False)
        .float()
        .numpy()[0]
    )
    token_ids, weights = model.query_encoder().encode("animals that live in water")
    assert asked[token_ids] == pytest.approx(weights, rel=1e-5)
    assert np.count_nonzero(asked) == len(token_ids)


@pytest.mark.slow
def test_default_builds_and_answers_offline_and_knows_the_collection(corpus, tmp_path):
    done = run_command(
        "build", "--model", "default", "--input", corpus, "--output", tmp_path / "index", "--json"
    )
    assert done.returncode == 0, done.stderr
    with Index(tmp_path / "index") as index:
        assert {doc_id: index.search(text, 1).doc_ids[0] for doc_id, text in QUESTIONS.items()} == {
            doc_id: doc_id for doc_id in DOCUMENTS
        }
    manifests = {}
    for name, options in (
        ("path", ["--model", catalog.shipped_model()]),
        ("without", ["--model", "default", "--collection-idf", "0"]),
    ):
        done = run_command(
            "build", *options, "--input", corpus, "--output", tmp_path / name, "--json"
        )
        assert done.returncode == 0, done.stderr
        manifests[name] = manifest.read_manifest(tmp_path / name)["query"]
    # its place is as good as its name
    assert manifests["path"] == manifest.read_manifest(tmp_path / "index")["query"]
    assert manifests["path"]["origin"]["collection_idf"] == 0.5
    assert "collection_idf" not in manifests["without"].get("origin", {})


def test_searching_loads_no_torch(corpus, tmp_path):
    indexing.build("default", str(corpus), tmp_path / "index")
    code = (
        "import sys, sparse_ir\n"
        f"with sparse_ir.Index({str(tmp_path / 'index')!r}) as index:\n"
        "    assert index.search('cooking recipe', 1).doc_ids == ['bread']\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_card_has_every_setting_of_this_release() -> None:
    """Settings that were added later stand there with the defaults by which the model was made."""
    text = (catalog.shipped_model() / "README.md").read_text(encoding="utf-8")
    block = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)[-1]
    config = config_parser.parse_config(tomllib.loads(block))
    assert config_parser.format_config(config) == block
    made = config_parser.read_config(
        Path(__file__).parents[2] / "scripts" / "recipes" / "default.toml"
    )
    for section in (
        "batch",
        "loss",
        "ensemble",
        "documents",
        "optimizer",
        "warm_start",
        "blend",
        "run",
    ):
        assert getattr(config, section) == getattr(made, section)
