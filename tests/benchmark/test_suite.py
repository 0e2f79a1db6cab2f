"""The suite on small sets: what a row holds, killed suites whose rows are the same, and data that
do not fit.
"""

from __future__ import annotations

import gzip
import json
import math
import shutil
import subprocess
import sys
import textwrap
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from shell import ENVIRONMENT, read_tree, write_collection, write_lines
from small_indexes import changed_environment

from sparse_ir.benchmark import results, suite, systems, verification
from sparse_ir.benchmark.columns import measure_names
from sparse_ir.benchmark.results import RESULT, RUN, TIMING
from sparse_ir.benchmark.systems import System, read_system
from sparse_ir.commands import benchmarking, evaluating, indexing, searching
from sparse_ir.data import readers, runs
from sparse_ir.data.datasets import BEIR_13, GROUPS, LICENSED, REGISTRY, Benchmark
from sparse_ir.data.records import Document, Run
from sparse_ir.engines.lucene import bm25
from sparse_ir.engines.lucene.bm25 import Bm25
from sparse_ir.errors import ConfigError, DataError, LockedError
from sparse_ir.indexing import bm25_builder, shards
from sparse_ir.indexing.manifest import read_manifest
from sparse_ir.indexing.vectors import Vectors
from sparse_ir.retrieval.searcher import Index
from sparse_ir.storage import files

FORUMS = [name.removeprefix("cqadupstack-") for name in GROUPS["cqadupstack"]]
SETS = {"alpha": 30, "beta": 24, "gamma": 17}
KILLED = """
    import os, signal, sys
    from pathlib import Path
    from sparse_ir.commands import benchmarking
    from sparse_ir.engines.lucene import java

    left = [int(sys.argv[3])]

    def watch(name, arguments):
        if name == "os.rename":  # every file and folder that appears, appears by one
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    java.start()
    sys.addaudithook(watch)
    report = benchmarking.beir("lexical", Path(sys.argv[1]), datasets="alpha,beta,gamma", data_dir=Path(sys.argv[2]),
                       baselines="bm25")
    print(report["rows_made"])
"""


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three small collections. Read only."""
    root = tmp_path_factory.mktemp("data")
    for seed, (name, count) in enumerate(SETS.items()):
        write_collection(root / name, count, seed=seed)
    return root


@pytest.fixture(scope="module")
def whole(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The rows of a suite that nobody interrupted. Read only."""
    output = tmp_path_factory.mktemp("whole") / "rows"
    report = run_suite("lexical", output, datasets="alpha,beta,gamma", data_dir=data_dir)
    assert (report["rows_made"], report["rows_found"]) == (6, 0)
    return output


def run_suite(model: str, output: Path, **options: Any) -> dict[str, Any]:
    """The verb, with one baseline unless something else is said."""
    return benchmarking.beir(model, output, **{"baselines": "bm25", **options})


def lasting_files(output: Path) -> dict[str, bytes]:
    """Everything below a folder of rows that must be the same whenever it is made."""
    return {
        name: content
        for name, content in read_tree(output).items()
        if not name.endswith((TIMING, ".lock"))
    }


def read_result(output: Path, dataset: str, system: str) -> dict[str, Any]:
    return json.loads((output / dataset / system / RESULT).read_text())


def rewrite_qrels(folder: Path, change: Any) -> None:
    """Pass each judgement of a collection through a function."""
    path = folder / "qrels" / "test.tsv"
    header, *lines = path.read_text().splitlines()
    path.write_text(
        "\n".join([header, *("\t".join(change(*line.split("\t"))) for line in lines)]) + "\n"
    )


# --- what a row holds ---


def test_every_set_has_a_row_of_every_system_and_nothing_else_is_left(whole):
    assert set(lasting_files(whole)) == {
        f"{name}/{system}/{file}"
        for name in SETS
        for system in ("bm25", "lexical")
        for file in (RESULT, RUN)
    }


def test_rows_are_verified_against_their_data(whole, data_dir):
    assert len(verification.verify_rows(whole, data_dir)) == 6


def test_a_row_says_what_the_single_commands_say(whole, data_dir, tmp_path):
    indexing.bm25(str(data_dir / "alpha"), tmp_path / "bm25")
    searching.search(tmp_path / "bm25", str(data_dir / "alpha"), tmp_path / "run.trec", tag="bm25")
    measured = evaluating.evaluate(
        tmp_path / "run.trec", str(data_dir / "alpha"), measures="nDCG@10 R@100 R@1000 MRR@10"
    )
    result = read_result(whole, "alpha", "bm25")
    assert result["measures"] == {
        name: measured[name.replace("MRR", "RR")] for name in measure_names()
    }
    assert result["run"]["sha256"] == results.sha256_of_content(tmp_path / "run.trec")


def test_the_facts_of_a_row(whole, data_dir):
    result = read_result(whole, "beta", "lexical")
    corpus = data_dir / "beta" / "corpus.jsonl"
    assert result["dataset"] == {
        "name": "beta",
        "split": "test",
        "source": "beta",
        "documents": 24,
        "queries": 8,
        "judgements": 8,
        "absent_documents": 0,
        "absent_queries": 0,
        "remove_identical": False,
        "relevance_level": 1,
        "corpus_sha256": results.sha256_of_content(corpus),
        "queries_sha256": results.sha256_of_content(data_dir / "beta" / "queries.jsonl"),
        "qrels_sha256": results.sha256_of_content(data_dir / "beta" / "qrels" / "test.tsv"),
    }
    system = result["system"]
    assert [system[key] for key in ("name", "kind", "model", "revision")] == [
        "lexical",
        "lexical",
        "lexical",
        None,
    ]
    assert system["encoder"]["kind"] == "lexical"
    assert system["rule"]["folded"]
    assert len(system["hash"]) == 64
    assert result["command"] == "sparse-ir beir --model lexical --baselines none --datasets beta"
    assert {"sparse_ir", "lucene", "pyserini", "tokenizers"} <= set(result["versions"])
    assert "torch" not in result["versions"]
    assert read_result(whole, "beta", "bm25")["system"]["parameters"]["k1"] == 0.9


def test_what_a_clock_measured_stands_apart(whole):
    timing = json.loads((whole / "alpha" / "lexical" / TIMING).read_text())
    assert timing["encode_documents_per_second"] > 0
    latency = timing["search_latency_ms"]
    assert 0 < latency["p50"] <= latency["p95"] <= latency["p99"]
    assert timing["query_encode_ms"]["p50"] > 0
    assert timing["hardware"]["cores"] >= 1
    assert timing["date"].endswith("Z")
    assert results.read_row(whole / "alpha" / "bm25").timing.encode_documents_per_second is None


def test_efficiency_by_another_road(whole, data_dir):
    documents = [
        set(terms)
        for terms in bm25.analyze(d.contents for d in readers.read_documents(data_dir / "alpha"))
    ]
    queries = [
        set(terms)
        for terms in bm25.analyze(q.text for q in readers.read_queries(data_dir / "alpha"))
    ]
    share_d, share_q = (
        Counter(term for terms in texts for term in terms) for texts in (documents, queries)
    )
    flops = sum(share_q[term] / len(queries) * share_d[term] / len(documents) for term in share_q)
    found = read_result(whole, "alpha", "bm25")["efficiency"]
    assert found["flops"] == pytest.approx(flops)
    assert found["mean_query_terms"] == sum(map(len, queries)) / len(queries)
    assert found["mean_document_terms"] == sum(map(len, documents)) / len(documents)
    assert found["index_bytes"] > 1000


def test_multifield_scores_are_those_of_its_two_fields_added(data_dir, tmp_path):
    documents = list(readers.read_documents(data_dir / "alpha"))
    corpora = {
        "text": [d._replace(title="") for d in documents],
        "both": documents,
        "title": [Document(d.doc_id, "", d.title) for d in documents],
    }
    scores: dict[str, Run] = {}
    for name, corpus in corpora.items():
        parameters = Bm25(title=2.0 if name == "both" else 0.0)
        bm25_builder.build_bm25_index(lambda corpus=corpus: corpus, tmp_path / name, parameters)
        with Index(tmp_path / name) as index:
            scores[name] = index.search_batch(list(readers.read_queries(data_dir / "alpha")))[0]
    assert any(scores["title"].values())
    for query_id, hits in scores["both"].items():
        text, title = (dict(scores[name][query_id]) for name in ("text", "title"))
        assert dict(hits) == pytest.approx(
            {doc_id: text.get(doc_id, 0) + 2 * title.get(doc_id, 0) for doc_id in {*text, *title}},
            rel=1e-6,
        )


def test_as_in_anserini_a_document_without_text_has_no_place_in_a_multifield_index(tmp_path):
    corpus = [Document("d1", "title", ""), Document("d2", "", "text")]
    manifest = bm25_builder.build_bm25_index(lambda: corpus, tmp_path / "index", Bm25(title=1.0))
    assert manifest["counts"] == {"documents": 2, "indexed": 1, "empty": 1}
    assert (
        bm25_builder.build_bm25_index(lambda: corpus, tmp_path / "flat")["counts"]["indexed"] == 2
    )


def test_both_fields_count_in_the_efficiency_of_multifield(data_dir, tmp_path):
    run_suite(
        "bm25-multifield", tmp_path / "rows", datasets="alpha", data_dir=data_dir, baselines="none"
    )
    documents = list(readers.read_documents(data_dir / "alpha"))
    fields = [
        set(terms)
        for part in ("title", "text")
        for terms in bm25.analyze(getattr(d, part) for d in documents)
    ]
    queries = [
        set(terms)
        for terms in bm25.analyze(q.text for q in readers.read_queries(data_dir / "alpha"))
    ]
    found = read_result(tmp_path / "rows", "alpha", "bm25-multifield")["efficiency"]
    assert found["mean_document_terms"] == sum(map(len, fields)) / len(documents)
    assert found["flops"] == pytest.approx(
        sum(term in field for query in queries for term in query for field in fields)
        / len(queries)
        / len(documents)
    )


def test_a_neural_model_by_its_own_name_and_options(tiny_folder, data_dir, tmp_path):
    report = run_suite(
        f"tiny={tiny_folder}",
        tmp_path / "rows",
        datasets="gamma",
        data_dir=data_dir,
        baselines="none",
        hits=5,
        bits=4,
        max_length=16,
        top_k=20,
        keep=True,
    )
    assert list(report["rows"]) == ["gamma / tiny"]
    result = read_result(tmp_path / "rows", "gamma", "tiny")
    assert result["system"]["encoder"]["max_length"] == 16
    assert result["system"]["options"] == {"scale": None, "bits": 4, "fold": None}
    assert result["efficiency"]["mean_document_terms"] <= 20
    assert (
        max(
            Counter(
                line.split()[0] for line in run_lines(tmp_path / "rows" / "gamma" / "tiny")
            ).values()
        )
        == 5
    )
    assert result["command"] == (
        f"sparse-ir beir --model tiny={tiny_folder} --baselines none "
        "--datasets gamma "
        "--hits 5 --bits 4 --max-length 16 --top-k 20"
    )
    (work,) = (tmp_path / "rows" / ".work" / "gamma" / "tiny").iterdir()
    assert Vectors(work / "vectors").manifest["documents"] == SETS["gamma"]
    assert read_manifest(work / "index")["rule"] == result["system"]["rule"]
    again = run_suite(
        f"tiny={tiny_folder}",
        tmp_path / "rows",
        datasets="gamma",
        data_dir=data_dir,
        baselines="none",
        hits=5,
        bits=4,
        max_length=16,
        top_k=20,
    )
    assert (again["rows_made"], again["rows_found"]) == (0, 1)
    assert not work.exists()
    with pytest.raises(
        ConfigError,
        match=r"gamma/tiny is a row of something else \(fingerprint: "
        r"[0-9a-f]{64} then, ",
    ):
        run_suite(
            f"tiny={tiny_folder}",
            tmp_path / "rows",
            datasets="gamma",
            data_dir=data_dir,
            baselines="none",
            hits=5,
            bits=4,
            max_length=12,
            top_k=20,
        )


def test_bm25_stands_beside_a_neural_model_in_one_row(tiny_folder, data_dir, tmp_path):
    report = run_suite(
        f"tiny={tiny_folder}+bm25",
        tmp_path / "rows",
        datasets="gamma",
        data_dir=data_dir,
        baselines="none",
        hits=5,
        max_length=16,
        keep=True,
    )
    assert list(report["rows"]) == ["gamma / tiny"]
    result = read_result(tmp_path / "rows", "gamma", "tiny")
    assert result["system"]["kind"] == "hybrid"
    assert result["system"]["bm25"]["share"] == 1.0
    assert f"--model tiny={tiny_folder}+bm25 " in result["command"]
    (work,) = (tmp_path / "rows" / ".work" / "gamma" / "tiny").iterdir()
    assert list(read_manifest(work / "index")["fields"]) == ["sparse", "bm25"]
    with pytest.raises(ConfigError, match="BM25 can stand beside a neural model, not beside"):
        read_system("lexical+bm25")
    assert read_system("default+bm25").name == "default+bm25"
    assert read_system("default+bm25").specification == "default+bm25"


def run_lines(folder: Path) -> list[str]:
    return gzip.decompress((folder / RUN).read_bytes()).decode().splitlines()


def test_a_document_does_not_find_itself_where_queries_are_documents(data_dir, tmp_path):
    folder = tmp_path / "data" / "arguana"
    shutil.copytree(data_dir / "alpha", folder)
    documents = [d for d in readers.read_documents(folder) if d.text][:6]
    write_lines(
        folder / "queries.jsonl", [{"_id": d.doc_id, "text": d.contents} for d in documents]
    )
    pairs = zip(documents, documents[1:] + documents[:1], strict=True)
    (folder / "qrels" / "test.tsv").write_text(
        "query-id\tcorpus-id\tscore\n"
        + "".join(f"{one.doc_id}\t{other.doc_id}\t1\n" for one, other in pairs)
    )
    report = run_suite(
        "bm25", tmp_path / "rows", datasets="arguana", data_dir=tmp_path / "data", hits=10
    )
    # a measure that looks deeper than the run goes is none
    shown = report["rows"]["arguana / bm25"]
    assert {name for name, value in shown.items() if value is None} == {"R@100", "R@1000"}
    run = runs.read_run(tmp_path / "rows" / "arguana" / "bm25" / RUN)
    assert len(run) == 6
    assert all(doc_id != query_id for query_id, hits in run.items() for doc_id, _ in hits)
    assert read_result(tmp_path / "rows", "arguana", "bm25")["dataset"]["remove_identical"]


def test_sets_over_one_corpus_share_its_index_and_grades_count_as_their_level_says(
    data_dir, tmp_path, monkeypatch
):
    shutil.copytree(data_dir / "alpha", tmp_path / "data" / "alpha")
    deep = tmp_path / "data" / "deep"
    shutil.copytree(data_dir / "alpha", deep)
    (deep / "corpus.jsonl").unlink()
    rewrite_qrels(
        deep, lambda query_id, doc_id, _: (query_id, doc_id, "1" if query_id == "q0" else "2")
    )
    monkeypatch.setitem(
        REGISTRY, "deep", Benchmark("deep", "deep", corpus_of="alpha", relevance_level=2)
    )
    monkeypatch.setitem(REGISTRY, "alpha", Benchmark("alpha", "alpha"))
    built, build = [], bm25_builder.build_bm25_index

    def count(read: Any, output: Path, *rest: Any, **more: Any) -> Any:
        built.append(output)
        return build(read, output, *rest, **more)

    monkeypatch.setattr(suite, "build_bm25_index", count)
    report = run_suite("bm25", tmp_path / "rows", datasets="alpha,deep", data_dir=tmp_path / "data")
    assert (report["rows_made"], len(built)) == (2, 1)
    result = read_result(tmp_path / "rows", "deep", "bm25")
    assert result["measured_as"]["R@100"] == "R(rel=2)@100"
    assert result["per_query"]["R@100"]["q0"] == 0.0
    assert result["per_query"]["R@100"]["q1"] == 1.0
    assert result["per_query"]["nDCG@10"]["q0"] > 0.0


# --- killed and resumed ---


def run_killed(output: Path, data_dir: Path, rename: int) -> subprocess.CompletedProcess[str]:
    """The suite in a process that is killed at its ``rename``-th renaming, or ends."""
    command = [
        sys.executable,
        "-c",
        textwrap.dedent(KILLED),
        str(output),
        str(data_dir),
        str(rename),
    ]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=changed_environment(dict(ENVIRONMENT)),
    )


# into the first vectors and then its index; into a run's writing and then, four rows later, into
# another set's vectors
@pytest.mark.slow
@pytest.mark.parametrize(("first", "second"), [(6, 8), (20, 33)])
def test_a_suite_that_is_killed_twice_gives_the_same_bytes(
    whole, data_dir, tmp_path, first, second
):
    for rename in (first, second):
        done = run_killed(tmp_path / "rows", data_dir, rename)
        assert done.returncode == -9, done.stderr
        assert lasting_files(tmp_path / "rows") != lasting_files(whole)
    done = run_killed(tmp_path / "rows", data_dir, 10**6)
    assert done.returncode == 0, done.stderr
    assert 0 < int(done.stdout) <= 6
    assert lasting_files(tmp_path / "rows") == lasting_files(whole)


def test_an_encoder_that_fails_halfway_is_taken_up_again(
    tiny_folder, data_dir, tmp_path, monkeypatch
):
    arguments = {"datasets": "alpha", "data_dir": data_dir, "baselines": "none", "shard_size": 8}
    run_suite(str(tiny_folder), tmp_path / "whole", **arguments)
    write, written = shards.write_shard, []

    def fail_at_the_third(output: Path, number: int, *rest: Any) -> None:
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(number)
        write(output, number, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(shards, "write_shard", fail_at_the_third)
        with pytest.raises(KeyboardInterrupt):
            run_suite(str(tiny_folder), tmp_path / "broken", **arguments)
    (begun,) = (tmp_path / "broken" / ".work" / "alpha" / tiny_folder.name).iterdir()
    assert len(list((begun / "vectors" / "shards").glob("*.json"))) == 2
    run_suite(str(tiny_folder), tmp_path / "broken", **arguments)
    assert lasting_files(tmp_path / "broken") == lasting_files(tmp_path / "whole")


def test_finished_rows_are_not_made_again(whole, data_dir, tmp_path):
    output = shutil.copytree(whole, tmp_path / "rows")
    before = {
        path: path.stat().st_mtime_ns for path in output.rglob("*.*") if path.suffix != ".lock"
    }
    report = run_suite("lexical", output, datasets="alpha,beta,gamma", data_dir=data_dir)
    assert (report["rows_made"], report["rows_found"]) == (0, 6)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert report["rows"]["alpha / bm25"]["nDCG@10"] == round(
        read_result(whole, "alpha", "bm25")["measures"]["nDCG@10"], 4
    )


def test_two_suites_do_not_write_into_one_folder(data_dir, tmp_path):
    with (
        files.write_lock(tmp_path / "rows" / "suite"),
        pytest.raises(LockedError, match="another process is writing"),
    ):
        run_suite("bm25", tmp_path / "rows", datasets="alpha", data_dir=data_dir)


# --- what has changed ---


@pytest.mark.parametrize(
    ("part", "line"),
    [
        ("corpus.jsonl", '{"_id": "new", "title": "", "text": "new"}\n'),
        ("queries.jsonl", '{"_id": "new", "text": "new"}\n'),
        ("qrels/test.tsv", "q0\td1\t1\n"),
    ],
)
def test_a_changed_data_set_is_refused(whole, data_dir, tmp_path, part, line):
    output = shutil.copytree(whole, tmp_path / "rows")
    folder = shutil.copytree(data_dir / "alpha", tmp_path / "data" / "alpha")
    with (folder / part).open("a") as stream:
        stream.write(line)
    name = part.split("/")[0].removesuffix(".jsonl")
    message = (
        rf"rows/alpha/bm25 is a row of something else \({name}_sha256: [0-9a-f]{{64}} "
        rf"then, [0-9a-f]{{64}} now\)"
        "; delete it to have it made again, give the system another name with NAME=MODEL, "
        "or choose another"
    )
    with pytest.raises(ConfigError, match=message):
        run_suite("bm25", output, datasets="alpha", data_dir=tmp_path / "data")
    assert lasting_files(output) == lasting_files(whole)


def test_changed_options_are_refused(whole, data_dir, tmp_path):
    output = shutil.copytree(whole, tmp_path / "rows")
    with pytest.raises(
        ConfigError,
        match=r"alpha/bm25 is a row of something else \(hits: 1000 "
        r"then, 10 now\)",
    ):
        run_suite("bm25", output, datasets="alpha", data_dir=data_dir, hits=10)
    with pytest.raises(
        ConfigError,
        match=r"alpha/lexical is a row of something else \(options: "
        r".* 'bits': 4",
    ):
        run_suite("lexical", output, datasets="alpha", data_dir=data_dir, bits=4)


# --- data that do not fit ---


def test_judged_documents_and_queries_that_are_absent_are_counted(data_dir, tmp_path):
    folder = shutil.copytree(data_dir / "alpha", tmp_path / "data" / "alpha")
    with (folder / "qrels" / "test.tsv").open("a") as stream:
        stream.write("q0\tgone1\t1\nq0\tgone2\t0\nq99\td0\t1\n")
    run_suite("bm25", tmp_path / "rows", datasets="alpha", data_dir=tmp_path / "data")
    result = read_result(tmp_path / "rows", "alpha", "bm25")
    facts = result["dataset"]
    assert (facts["absent_documents"], facts["absent_queries"], facts["queries"]) == (2, 1, 9)
    assert result["per_query"]["nDCG@10"]["q99"] == 0.0
    assert len(result["per_query"]["R@100"]) == 9
    assert result["per_query"]["R@100"]["q0"] == 0.5
    assert verification.verify_rows(tmp_path / "rows", tmp_path / "data")[0]["ok"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda query_id, doc_id, grade: (query_id, f"x{doc_id}", grade),
            (
                r"test.tsv: none of its 8 documents is in .*corpus.jsonl \(first: 'xd\d+'\); "
                r"these must be the qrels of this data set"
            ),
        ),
        (
            lambda query_id, doc_id, grade: (f"x{query_id}", doc_id, grade),
            (
                r"test.tsv: none of its 8 queries is in .*queries.jsonl \(first: 'xq0'\); these "
                r"must be the qrels of this data set"
            ),
        ),
    ],
)
def test_qrels_of_another_data_set_are_refused_before_any_work(data_dir, tmp_path, change, message):
    rewrite_qrels(shutil.copytree(data_dir / "alpha", tmp_path / "data" / "alpha"), change)
    with pytest.raises(DataError, match=message):
        run_suite("lexical", tmp_path / "rows", datasets="alpha", data_dir=tmp_path / "data")
    assert not (tmp_path / "rows" / ".work").exists()


def test_a_run_without_any_hit_is_an_error_that_names_the_row(data_dir, tmp_path):
    folder = shutil.copytree(data_dir / "alpha", tmp_path / "data" / "alpha")
    write_lines(
        folder / "queries.jsonl", [{"_id": f"q{number}", "text": "zzzz"} for number in range(8)]
    )
    with pytest.raises(
        DataError,
        match=r"alpha / bm25: run: none of its 8 queries has both hits "
        r"and judgements",
    ):
        run_suite("bm25", tmp_path / "rows", datasets="alpha", data_dir=tmp_path / "data")
    assert lasting_files(tmp_path / "rows").keys() <= {
        name for name in read_tree(tmp_path / "rows") if name.startswith(".work/")
    }


def test_licensed_sets_are_skipped_with_a_note(whole, data_dir, tmp_path):
    output = shutil.copytree(whole, tmp_path / "rows")
    report = run_suite("bm25", output, datasets="bioasq,alpha", data_dir=data_dir)
    assert list(report["rows"]) == ["alpha / bm25"]
    assert "need an account with BioASQ" in report["skipped"]["bioasq"]


def test_options_that_cannot_be_are_refused_before_any_work(data_dir, tmp_path):
    for options, message in (
        ({"hits": 0}, "hits is 0; it must be at least 1"),
        ({"bits": 1}, "bits is 1; it must be 2 to 16"),
        ({"scale": -1.0}, "scale is -1.0; it must be a positive number"),
        ({"datasets": "no"}, "data set 'no' is unknown"),
    ):
        with pytest.raises(ConfigError, match=message):
            run_suite(
                "bm25", tmp_path / "rows", **{"datasets": "alpha", "data_dir": data_dir, **options}
            )
    assert not (tmp_path / "rows").exists()


# --- systems and averages ---


def test_query_weights_know_the_corpus_that_they_ask(tiny_folder, data_dir, tmp_path):
    """Each set has its own IDF in them, as if it were built alone, and the
    network is loaded once.
    """
    indexing.idf(str(tiny_folder), str(data_dir / "alpha"), tmp_path / "idf.json")
    options = {"query_side": "static", "idf": tmp_path / "idf.json", "collection_idf": 0.5}
    run_suite(
        f"tiny={tiny_folder}",
        tmp_path / "rows",
        datasets="alpha,beta",
        data_dir=data_dir,
        baselines="none",
        **options,
    )
    for name in ("alpha", "beta"):
        indexing.build(str(tiny_folder), str(data_dir / name), tmp_path / name, **options)
        assert (
            read_result(tmp_path / "rows", name, "tiny")["system"]["query"]
            == read_manifest(tmp_path / name)["query"]
        )
    assert (
        read_result(tmp_path / "rows", "alpha", "tiny")["system"]["query"]
        != read_result(tmp_path / "rows", "beta", "tiny")["system"]["query"]
    )


def test_systems_and_their_names(tiny_folder):
    assert systems.read_systems("naver/splade-v3, lexical", "bm25") == [
        System("naver--splade-v3", "impact", "naver/splade-v3"),
        System("lexical", "lexical", "lexical"),
        System("bm25", "bm25", "bm25"),
    ]
    assert systems.read_systems("default", "none") == [System("default", "impact", "default")]
    assert systems.read_systems(f"mine={tiny_folder}", "none") == [
        System("mine", "impact", str(tiny_folder))
    ]
    assert systems.read_systems(str(tiny_folder), "none")[0].name == tiny_folder.name
    assert systems.read_systems("bm25", "bm25") == [System("bm25", "bm25", "bm25")]
    assert systems.read_systems("default", "none")[0].name == "default"


@pytest.mark.parametrize(
    ("model", "baselines", "message"),
    [
        (
            "a/b,a--b",
            "none",
            r"two systems would be called 'a--b'; name one of them with NAME=MODEL",
        ),
        (
            "a/b",
            "bm26",
            r"baseline 'bm26' is unknown; it must be one of bm25, .*lexical, or none alone",
        ),
        (" , ", "none", r"no system is named; name a model, or baselines"),
    ],
)
def test_systems_that_cannot_be_told_apart_or_found(model, baselines, message):
    with pytest.raises(ConfigError, match=message):
        systems.read_systems(model, baselines)


@pytest.mark.parametrize("name", ["my set", "mean"])
def test_names_that_no_row_can_have_are_refused_before_any_work(data_dir, tmp_path, name):
    for folder in ("alpha", name):
        shutil.copytree(data_dir / "gamma", tmp_path / "data" / folder)
    with pytest.raises(
        ConfigError,
        match=rf"data set '{name}': .*; rename the folder of "
        rf"the data set",
    ):
        run_suite("bm25", tmp_path / "rows", datasets="local", data_dir=tmp_path / "data")
    assert not (tmp_path / "rows").exists()


def test_the_report_puts_the_forums_together_and_averages_the_thirteen(data_dir, tmp_path):
    for name in BEIR_13:
        shutil.copytree(data_dir / "gamma", tmp_path / "data" / name)
    for forum in FORUMS:
        shutil.copytree(data_dir / "gamma", tmp_path / "data" / "cqadupstack" / forum)
    one = run_suite("bm25", tmp_path / "rows", datasets="scifact", data_dir=tmp_path / "data")
    assert "average of BEIR's 13" not in one
    result = json.loads((tmp_path / "rows" / "scifact" / "bm25" / RESULT).read_text())
    original = tmp_path / "rows" / "scifact" / "bm25"
    for name in {*BEIR_13, *GROUPS["cqadupstack"]} - {"scifact"}:  # the same set under each name
        folder = shutil.copytree(original, tmp_path / "rows" / name / "bm25")
        identical = name in ("arguana", "quora")
        changed = {
            **result,
            "dataset": {**result["dataset"], "name": name, "source": name},
            "identity": {**result["identity"], "remove_identical": identical},
        }
        (folder / RESULT).write_text(json.dumps(changed))
    report = run_suite("bm25", tmp_path / "rows", datasets="beir", data_dir=tmp_path / "data")
    assert (report["rows_made"], report["rows_found"]) == (0, 25)
    assert set(report["skipped"]) == set(LICENSED)
    assert len(report["rows"]) == 14
    scifact = report["rows"]["scifact / bm25"]
    assert report["rows"]["cqadupstack / bm25"] == pytest.approx(scifact, abs=1e-4)
    assert report["average of BEIR's 13"]["bm25"] == pytest.approx(scifact, abs=1e-4)
    assert all(math.isfinite(value) for value in scifact.values())
    assert read_tree(tmp_path / "rows" / ".work") == {}
