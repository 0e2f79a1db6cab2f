"""The verbs as functions: the road from text to measures in each of its forms, and what they
refuse.
"""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from shell import read_tree, write_collection, write_lines

from sparse_ir.commands import evaluating, indexing, searching
from sparse_ir.data import readers
from sparse_ir.data.runs import read_run
from sparse_ir.errors import (
    ConfigError,
    DamagedError,
    DataError,
    IndexMismatch,
    ModelError,
    SparseIRWarning,
)
from sparse_ir.indexing import manifest
from sparse_ir.indexing.vectors import Vectors
from sparse_ir.retrieval.searcher import Index


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 documents, 6 of them empty, and 8 queries."""
    return write_collection(tmp_path_factory.mktemp("verbs") / "collection", 60)


@pytest.fixture(scope="module")
def root(collection: Path, tiny_folder: Path) -> Path:
    """Beside the collection: vectors and indexes of the lexical and of the
    neural model, and BM25.
    """
    root = collection.parent
    for name, model in (("lexical", "lexical"), ("neural", str(tiny_folder))):
        indexing.encode(model, str(collection), root / f"{name}.vectors", shard_size=16)
        scale = 100 if name == "neural" else None
        indexing.index(root / f"{name}.vectors", root / name, scale=scale, fields="sparse")
    indexing.bm25(str(collection), root / "bm25")
    return root


def search(folder: Path, collection: Path, run: Path, **options) -> bytes:
    """The bytes of the run."""
    searching.search(folder, str(collection), run, **options)
    return run.read_bytes()


# --- the road ---


@pytest.mark.parametrize("name", ["lexical", "neural"])
def test_build_is_encode_and_index_in_one(name, root, collection, tiny_folder, tmp_path):
    model = str(tiny_folder) if name == "neural" else name
    scale = 100 if name == "neural" else None
    report = indexing.build(
        model, str(collection), tmp_path / name, shard_size=16, scale=scale, fields="sparse"
    )
    assert report["vectors"] == str(tmp_path / f"{name}.vectors")
    assert read_tree(tmp_path / f"{name}.vectors") == read_tree(root / f"{name}.vectors")
    assert (
        manifest.read_manifest(tmp_path / name)["counts"]
        == manifest.read_manifest(root / name)["counts"]
    )
    runs = [search(folder / name, collection, tmp_path / "run") for folder in (root, tmp_path)]
    assert runs[0] == runs[1] != b""
    measured = evaluating.evaluate(
        tmp_path / "run", str(collection), measures="nDCG@10, R@100 RR@10"
    )
    assert list(measured)[:3] == ["nDCG@10", "R@100", "RR@10"]
    assert measured["queries"] == 8
    if name == "lexical":  # each query is cut out of its answer, which a random network cannot know
        assert measured["queries_without_hits"] == 0
        assert measured["nDCG@10"] > 0.8


def test_reports_add_up(root, collection, tmp_path):
    encoded = indexing.encode("lexical", str(collection), root / "lexical.vectors", shard_size=16)
    assert (encoded["documents"], encoded["empty_documents"], encoded["encoder"]) == (
        60,
        6,
        "lexical",
    )
    assert encoded["mean_terms"] == round(encoded["weights"] / 60, 1)
    verified = indexing.verify(root / "lexical")
    assert verified["ok"]
    assert (
        verified["documents"]
        == verified["indexed"] + verified["empty"] + verified["rounded_to_nothing"]
        == 60
    )
    assert verified["postings"] <= encoded["weights"]
    found = searching.search(root / "lexical", str(collection), tmp_path / "run", hits=5)
    run = read_run(tmp_path / "run")
    assert found["queries"] == 8
    assert found["hits"] == sum(len(hits) for hits in run.values()) <= 40
    assert found["queries_without_hits"] == 0
    assert max(len(hits) for hits in run.values()) == 5


def test_building_again_encodes_nothing_and_replaces_the_index(collection, tmp_path):
    first = indexing.build("lexical", str(collection), tmp_path / "index", shard_size=16)
    shards = {
        path: path.stat().st_mtime_ns for path in (tmp_path / "index.vectors" / "shards").iterdir()
    }
    run = search(tmp_path / "index", collection, tmp_path / "run")
    second = indexing.build("lexical", str(collection), tmp_path / "index", shard_size=16, bits=4)
    assert {
        path: path.stat().st_mtime_ns for path in (tmp_path / "index.vectors" / "shards").iterdir()
    } == shards
    assert (first["rule"]["max_impact"], second["rule"]["max_impact"]) == (511, 15)
    assert search(tmp_path / "index", collection, tmp_path / "run") != run


def test_a_corpus_that_grew_is_not_answered_from_the_old_vectors(collection, tiny_folder, tmp_path):
    shutil.copytree(collection, tmp_path / "c")
    indexing.build(str(tiny_folder), str(tmp_path / "c"), tmp_path / "index", shard_size=16)
    with (tmp_path / "c" / "corpus.jsonl").open("a") as stream:
        stream.write('{"_id": "new", "text": "a new document"}\n')
    with pytest.raises(DataError, match="the corpus has changed since encoding began"):
        indexing.build(str(tiny_folder), str(tmp_path / "c"), tmp_path / "index", shard_size=16)


def test_bm25_finds_the_documents_that_queries_were_cut_from(root, collection, tmp_path):
    search(root / "bm25", collection, tmp_path / "run")
    assert evaluating.evaluate(tmp_path / "run", str(collection))["nDCG@10"] > 0.8
    other = indexing.bm25(str(collection), tmp_path / "bm25", k1=0.0, b=1.0)
    assert (other["kind"], other["documents"], other["indexed"], other["empty"]) == (
        "bm25",
        60,
        54,
        6,
    )
    assert (
        search(tmp_path / "bm25", collection, tmp_path / "other") != (tmp_path / "run").read_bytes()
    )


@pytest.mark.parametrize("name", ["lexical", "neural", "bm25"])
def test_two_threads_write_the_same_as_one(name, root, collection, tmp_path):
    wanted = search(root / name, collection, tmp_path / "run")
    assert search(root / name, collection, tmp_path / "threads", threads=2) == wanted
    if name != "bm25":
        scale = 100 if name == "neural" else None
        indexing.index(
            root / f"{name}.vectors", tmp_path / "index", threads=2, scale=scale, fields="sparse"
        )
        assert search(tmp_path / "index", collection, tmp_path / "run") == wanted


def test_the_query_itself_is_removed_and_the_list_stays_full(root, collection, tmp_path):
    documents = [document for document in readers.read_documents(collection) if document.text][:10]
    queries = write_lines(
        tmp_path / "queries.jsonl",
        [{"_id": document.doc_id, "text": document.contents} for document in documents],
    )
    for name in ("lexical", "bm25"):
        plain, without, longer = (tmp_path / f"{name}-{number}" for number in range(3))
        searching.search(root / name, str(queries), plain, hits=5)
        searching.search(root / name, str(queries), without, hits=5, remove_query=True)
        searching.search(root / name, str(queries), longer, hits=6)
        found, cleaned, more = (read_run(path) for path in (plain, without, longer))
        assert any(hits[0][0] == query_id for query_id, hits in found.items())
        for query_id, hits in cleaned.items():
            assert hits == [hit for hit in more[query_id] if hit[0] != query_id][:5]


def test_the_query_itself_is_removed_at_measuring(tmp_path):
    (tmp_path / "run").write_text("d1 Q0 d1 1 9 x\nd1 Q0 d2 2 8 x\n")
    (tmp_path / "qrels").write_text("d1 0 d2 1\n")
    assert (
        evaluating.evaluate(tmp_path / "run", str(tmp_path / "qrels"), measures="RR@10")["RR@10"]
        == 0.5
    )
    assert (
        evaluating.evaluate(
            tmp_path / "run", str(tmp_path / "qrels"), measures="RR@10", remove_query=True
        )["RR@10"]
        == 1
    )


# --- the options of the encoder ---


def test_options_reach_the_encoder(collection, tiny_folder, tmp_path):
    report = indexing.encode(
        str(tiny_folder),
        str(collection),
        tmp_path / "v",
        top_k=3,
        max_length=10,
        min_weight=0.2,
        shard_size=32,
    )
    opened = Vectors(tmp_path / "v")
    facts = opened.manifest["encoder"]
    assert (facts["top_k"], facts["max_length"], facts["min_weight"]) == (3, 10, 0.2)
    assert report["mean_terms"] <= 3
    assert [len(opened.read_shard(number)[0]) for number in range(opened.num_shards)] == [32, 28]
    assert opened.read_shard(0)[1].data.min() >= 0.2


@pytest.mark.parametrize("side", ["neural", "ones", "idf"])
def test_every_query_side_leads_to_a_run(side, collection, tiny_folder, tmp_path):
    if side == "idf":
        assert (
            indexing.idf(str(tiny_folder), str(collection), tmp_path / "idf.json")["tokens"] > 100
        )
        options = {"idf": tmp_path / "idf.json"}
    else:
        options = {"query_side": side}
    report = indexing.build(str(tiny_folder), str(collection), tmp_path / "index", **options)
    assert report["rule"]["folded"] == (side != "neural")
    found = searching.search(tmp_path / "index", str(collection), tmp_path / "run")
    assert found["hits"] > 0
    opened = Index(tmp_path / "index")
    with opened:
        assert opened.query_encoder.fingerprint["kind"] == (
            "neural" if side == "neural" else "static"
        )
    if side == "idf":
        table = json.loads((tmp_path / "idf.json").read_text())
        token_ids, weights = opened.query_encoder.encode("the river")
        tokens = [opened.query_encoder.vocabulary[token_id] for token_id in token_ids]
        assert dict(zip(tokens, weights.tolist(), strict=True)) == pytest.approx(
            {key: table[key] for key in tokens}
        )


def test_the_collections_own_idf_enters_static_query_weights(collection, tiny_folder, tmp_path):
    indexing.idf(str(tiny_folder), str(collection), tmp_path / "idf.json")
    options = {"idf": tmp_path / "idf.json", "query_side": "static"}
    weights = []
    for share in (None, 0.5):
        indexing.build(
            str(tiny_folder),
            str(collection),
            tmp_path / f"index-{share}",
            collection_idf=share,
            **options,
        )
        with Index(tmp_path / f"index-{share}") as opened:
            weights.append(opened.query_encoder.weights)
    used = weights[0] > 0
    assert not np.allclose(weights[0], weights[1])
    assert (used == (weights[1] > 0)).all()
    assert indexing.verify(tmp_path / "index-0.5")
    with pytest.raises(ConfigError, match="collection_idf needs static query weights"):
        indexing.encode(
            str(tiny_folder),
            str(collection),
            tmp_path / "v",
            query_side="neural",
            collection_idf=0.5,
        )


def test_idf_is_that_of_the_formula(collection, tiny_folder, tiny_tokenizer, tmp_path):
    indexing.idf(str(tiny_folder), str(collection), tmp_path / "idf.json")
    table = json.loads((tmp_path / "idf.json").read_text())
    assert len(table) == tiny_tokenizer.get_vocab_size()
    sets = [
        set(tiny_tokenizer.encode(document.contents, add_special_tokens=False).tokens)
        for document in readers.read_documents(collection)
    ]
    for token in ("the", "##e", "v", "[MASK]"):
        df = sum(token in tokens for tokens in sets)
        assert table[token] == pytest.approx(
            np.log1p((60 - df + 0.5) / (df + 0.5)) if df else 1.0, rel=1e-6
        )


@pytest.mark.parametrize(
    "option", [{"top_k": 5}, {"query_side": "ones"}, {"max_length": 9}, {"revision": "main"}]
)
def test_the_lexical_model_takes_no_neural_options(option, collection, tmp_path):
    with pytest.raises(ConfigError, match=f"the lexical model does not take {next(iter(option))}"):
        indexing.encode("lexical", str(collection), tmp_path / "v", **option)


def test_two_query_sides_at_once_are_refused(collection, tiny_folder, tmp_path):
    (tmp_path / "idf.json").write_text('{"the": 1.0}')
    with pytest.raises(ConfigError, match=r"ones.* idf"):
        indexing.encode(
            str(tiny_folder),
            str(collection),
            tmp_path / "v",
            idf=tmp_path / "idf.json",
            query_side="ones",
        )
    with pytest.raises(DataError, match=r"no-idf\.json is missing"):
        indexing.encode(
            str(tiny_folder), str(collection), tmp_path / "v", idf=tmp_path / "no-idf.json"
        )
    with pytest.raises(ModelError, match="token weights"):
        indexing.encode(str(tiny_folder), str(collection), tmp_path / "v", query_side="static")


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"threads": 0}, "threads is 0; it must be at least 1"),
        ({"bits": 1}, "bits is 1; it must be 2 to 16"),
        ({"bits": 17}, "bits is 17"),
        ({"scale": 0.0}, "scale is 0.0; it must be a positive number"),
        ({"scale": float("nan")}, "scale is nan; it must be a positive number"),
        ({"prune_terms": 0}, "pruning keeps 0 terms; it must keep at least 1"),
        ({"prune_impact": 0}, "the smallest impact is 0; it must be 1 to"),
        ({"prune_mass": 0.0}, "the mass to keep is 0.0; it must be a share above 0 and up to 1"),
    ],
)
def test_build_refuses_what_no_index_can_have_before_it_encodes(
    options, match, root, collection, tmp_path
):
    with pytest.raises(ConfigError, match=match):
        indexing.build("lexical", str(collection), tmp_path / "index", **options)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ConfigError, match=match):
        indexing.index(root / "lexical.vectors", tmp_path / "index", **options)
    assert not (tmp_path / "index").exists()


def test_folding_needs_static_query_weights(root, tmp_path):
    with pytest.raises(ConfigError, match="only static query weights"):
        indexing.index(root / "neural.vectors", tmp_path / "index", fold=True)
    assert (
        indexing.index(root / "lexical.vectors", tmp_path / "index", fold=False)["rule"]["folded"]
        is False
    )


def test_pruning_and_the_forward_index_are_options_of_build_and_index(root, collection, tmp_path):
    options = {"prune_terms": 6, "prune_impact": 2, "prune_mass": 0.9, "forward": True}
    options["fields"] = "sparse"
    report = indexing.build(
        "lexical", str(collection), tmp_path / "built", shard_size=16, **options
    )
    assert report["pruning"] == {"terms": 6, "min_impact": 2, "mass": 0.9}
    indexed = indexing.index(root / "lexical.vectors", tmp_path / "indexed", **options)
    whole = manifest.read_manifest(root / "lexical")["counts"]
    for found in (report, indexed):
        assert found["postings"] + found["postings_pruned"] == whole["postings"]
        assert found["sum_impacts"] + found["sum_impacts_pruned"] == whole["sum_impacts"]
        assert found["postings"] <= 6 * found["indexed"]
    assert indexing.verify(tmp_path / "built")["postings"] == report["postings"]
    assert manifest.has_forward_index(manifest.read_manifest(tmp_path / "indexed"))
    assert manifest.has_forward_index(manifest.read_manifest(root / "neural")), (
        "its queries are boosted"
    )
    assert not manifest.has_forward_index(manifest.read_manifest(root / "lexical"))


def test_a_search_says_what_it_left_out(root, collection, tmp_path):
    exact = searching.search(root / "neural", str(collection), tmp_path / "exact", mass=None)
    few = searching.search(
        root / "neural", str(collection), tmp_path / "few", top_terms=1, mass=0.9
    )
    rescored = searching.search(
        root / "neural", str(collection), tmp_path / "two", top_terms=1, candidates=60.0
    )
    assert (exact["options"], few["options"]) == ("exact", "mass=0.9 top_terms=1")
    assert rescored["options"] == "top_terms=1 candidates=60"
    assert few["hits"] <= exact["hits"]
    assert (tmp_path / "few").read_bytes() != (tmp_path / "exact").read_bytes()
    assert (tmp_path / "two").read_bytes() == (tmp_path / "exact").read_bytes(), (
        "every document is a candidate"
    )
    with pytest.raises(ConfigError, match="has no tuned options; run sparse-ir tune first"):
        searching.search(root / "neural", str(collection), tmp_path / "tuned", tuned=True)
    with pytest.raises(ConfigError, match="tuned options cannot be combined with others"):
        searching.search(root / "neural", str(collection), tmp_path / "tuned", tuned=True, mass=0.5)
    with pytest.raises(ConfigError, match=r"mass is 2\.0; it must be a share above 0 and up to 1"):
        searching.search(root / "neural", str(collection), tmp_path / "wrong", mass=2.0)


@pytest.mark.parametrize(
    ("k1", "b"), [(-1, 0.4), (0.9, 1.1), (0.9, -0.1), (float("nan"), 0.4), (0.9, float("nan"))]
)
def test_bm25_refuses_parameters_without_a_meaning(k1, b, collection, tmp_path):
    with pytest.raises(ConfigError, match=r"(k1|b) is .*; it must be (at least 0|between 0 and 1)"):
        indexing.bm25(str(collection), tmp_path / "index", k1=k1, b=b)


# --- runs ---


def test_runs_are_measured_from_trec_and_json_alike(root, collection, tmp_path):
    search(root / "lexical", collection, tmp_path / "run.trec", tag="mine")
    run = read_run(tmp_path / "run.trec")
    assert (tmp_path / "run.trec").read_text().split()[5] == "mine"
    text = json.dumps({query_id: dict(hits) for query_id, hits in run.items()})
    (tmp_path / "run.json").write_text(text)
    (tmp_path / "run.json.gz").write_bytes(gzip.compress(text.encode()))
    wanted = evaluating.evaluate(tmp_path / "run.trec", str(collection), per_query=True)
    assert evaluating.evaluate(tmp_path / "run.json", str(collection), per_query=True) == wanted
    assert evaluating.evaluate(tmp_path / "run.json.gz", str(collection), per_query=True) == wanted
    values = wanted["per_query"]["nDCG@10"]
    assert wanted["nDCG@10"] == pytest.approx(sum(values.values()) / 8)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", r"run with .*: run: none of its 0 queries has both hits and judgements"),
        (
            "x Q0 d1 1 1.0 t\n",
            (
                r"run with .*: none of its 1 queries .* \(first query of the run: 'x', "
                r"of the qrels: 'q0'\)"
            ),
        ),
        ("q0 Q0 d1 1 NaN t\n", r"run:1: score is 'NaN'; it must be a finite number"),
    ],
)
def test_runs_that_say_nothing_are_named(text, match, collection, tmp_path):
    (tmp_path / "run").write_text(text)
    with pytest.raises(DataError, match=match):
        evaluating.evaluate(tmp_path / "run", str(collection))


def test_queries_without_hits_are_counted(root, collection, tmp_path):
    queries = [
        {"_id": "q0", "text": "river"},
        {"_id": "none", "text": ""},
        {"_id": "q1", "text": "日本"},
    ]
    source = write_lines(tmp_path / "queries.jsonl", queries)
    for name in ("lexical", "bm25"):
        with pytest.warns(SparseIRWarning, match="1 of 3 queries found nothing and are not in Lat"):
            report = searching.search(root / name, str(source), tmp_path / "run")
        assert report["queries_without_hits"] == 2
        measured = evaluating.evaluate(tmp_path / "run", str(collection))
        assert (
            measured["queries"],
            measured["queries_without_hits"],
            measured["queries_not_judged"],
        ) == (8, 7, 0)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"hits": 0}, ConfigError, "hits is 0; it must be at least 1"),
        ({"hits": -5}, ConfigError, "hits is -5; it must be at least 1"),
        ({"threads": 0}, ConfigError, "threads is 0"),
        ({"tag": "two words"}, ConfigError, "one word without white space"),
        ({"scale": 100.0}, ConfigError, "keeps its own rule"),
        ({"query_model": "lexical"}, ConfigError, "drop model='lexical'"),
    ],
)
def test_searches_without_a_meaning_are_refused(options, error, match, root, collection, tmp_path):
    with pytest.raises(error, match=match):
        searching.search(root / "lexical", str(collection), tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_the_model_may_have_moved(root, collection, tiny_folders, tmp_path):
    wanted = search(root / "neural", collection, tmp_path / "run")
    shutil.copytree(tiny_folders["bert"], tmp_path / "moved")
    assert (
        search(root / "neural", collection, tmp_path / "run", query_model=str(tmp_path / "moved"))
        == wanted
    )
    with pytest.raises(IndexMismatch, match="is not the query model that was recorded"):
        searching.search(
            root / "neural",
            str(collection),
            tmp_path / "run",
            query_model=str(tiny_folders["distilbert"]),
        )


# --- JSON vectors ---


def test_exported_vectors_indexed_again_give_the_same_run(root, collection, tiny_folder, tmp_path):
    report = indexing.export(root / "neural.vectors", tmp_path / "json", scale=100)
    assert (report["documents"], report["rule"]["scale"]) == (60, 100.0)
    indexed = indexing.index(tmp_path / "json", tmp_path / "index")
    assert (indexed["rule"]["scale"], indexed["documents"], indexed["empty"]) == (1.0, 60, 6)
    again = search(
        tmp_path / "index", collection, tmp_path / "again", query_model=str(tiny_folder), scale=100
    )
    assert again == search(root / "neural", collection, tmp_path / "run") != b""


def test_indexes_from_json_vectors_ask_for_what_they_cannot_know(
    root, collection, tiny_folder, tmp_path
):
    indexing.export(root / "neural.vectors", tmp_path / "json", scale=100)
    indexing.index(tmp_path / "json", tmp_path / "index")
    with pytest.raises(
        ConfigError, match="was built from vectors without a query side: name the query model"
    ):
        searching.search(tmp_path / "index", str(collection), tmp_path / "run")
    with pytest.raises(
        ConfigError, match="built from whole numbers: pass the scale that the weights"
    ):
        searching.search(
            tmp_path / "index", str(collection), tmp_path / "run", query_model=str(tiny_folder)
        )


def test_fractional_json_vectors_get_one_scale_for_both_sides(
    root, collection, tiny_folder, tmp_path
):
    made = Vectors(root / "neural.vectors")
    lines = []
    for number in range(made.num_shards):
        doc_ids, weights = made.read_shard(number)
        lines += [
            {
                "id": doc_id,
                "vector": {
                    made.vocabulary[i]: float(w) for i, w in zip(row.indices, row.data, strict=True)
                },
            }
            for doc_id, row in zip(doc_ids, weights, strict=True)
        ]
    write_lines(tmp_path / "json" / "vectors.jsonl", lines)
    report = indexing.index(tmp_path / "json", tmp_path / "index", scale=100)
    assert report["rule"]["scale"] == 100
    again = search(tmp_path / "index", collection, tmp_path / "again", query_model=str(tiny_folder))
    assert again == search(root / "neural", collection, tmp_path / "run")


def test_folded_export_has_the_impacts_of_the_index(root, tmp_path):
    report = indexing.export(root / "lexical.vectors", tmp_path / "json")
    assert report["rule"] == manifest.read_manifest(root / "lexical")["rule"]
    lines = []
    for path in sorted((tmp_path / "json").iterdir()):
        lines += [json.loads(line) for line in path.read_text().splitlines()]
    assert (
        sum(sum(line["vector"].values()) for line in lines)
        == indexing.verify(root / "lexical")["sum_impacts"]
    )


# --- things that are not there ---


def test_what_is_not_there_is_named(root, collection, tmp_path):
    missing = tmp_path / "missing"
    with pytest.raises(DataError, match=f"{missing}: no such corpus"):
        indexing.encode("lexical", str(missing), tmp_path / "v")
    with pytest.raises(DataError, match=f"{missing}: no such corpus"):
        indexing.bm25(str(missing), tmp_path / "i")
    with pytest.raises(DataError, match="holds no vectors"):
        indexing.index(missing, tmp_path / "i")
    with pytest.raises(DamagedError, match="holds no vectors"):
        indexing.export(missing, tmp_path / "i")
    with pytest.raises(ConfigError, match=f"{missing} does not exist; build an index first"):
        searching.search(missing, str(collection), tmp_path / "run")
    with pytest.raises(DataError, match=f"{missing}: no such queries"):
        searching.search(root / "bm25", str(missing), tmp_path / "run")
    with pytest.raises(DataError, match=f"{missing}: no such run"):
        evaluating.evaluate(missing, str(collection))
    with pytest.raises(DamagedError, match="is no index of this package"):
        indexing.verify(missing)


def test_folders_of_another_kind_are_named(root, collection, tmp_path):
    with pytest.raises(DamagedError, match="holds vectors, not an index; make one"):
        searching.search(root / "lexical.vectors", str(collection), tmp_path / "run")
    with pytest.raises(DamagedError, match="is no index of this package"):
        searching.search(collection, str(collection), tmp_path / "run")
    with pytest.raises(DamagedError, match="is an index; it must be a folder of vectors"):
        indexing.index(root / "bm25", tmp_path / "i")
    with pytest.raises(ConfigError, match="is not an index; choose another output"):
        indexing.index(root / "lexical.vectors", collection)
    with pytest.raises(IndexMismatch, match="is a BM25 index and takes no query encoder"):
        searching.search(root / "bm25", str(collection), tmp_path / "run", query_model="lexical")
