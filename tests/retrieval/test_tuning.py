"""Tuning: budgets as text, the grid, and what is chosen when the times are planted."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from shell import report_of, run_command, write_lines
from small_indexes import TermQueries, make_vectors, random_matrix, vocabulary_of_size

from sparse_ir.commands import searching
from sparse_ir.data.records import Document, Query
from sparse_ir.engines.lucene.impact_reader import ImpactReader
from sparse_ir.errors import BudgetMissed, ConfigError, DataError
from sparse_ir.indexing import bm25_builder, builder, manifest, verification
from sparse_ir.indexing.quantization import Rule
from sparse_ir.indexing.vectors import Vectors
from sparse_ir.retrieval import explanation, opening, timing, tuning
from sparse_ir.retrieval.options import EXACT, SearchOptions
from sparse_ir.retrieval.searcher import Index
from sparse_ir.retrieval.timing import Latency
from sparse_ir.retrieval.tuning import Limit, parse_budget
from sparse_ir.storage import files

TERMS, ROWS = 40, 150
VOCABULARY = vocabulary_of_size(TERMS)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index whose queries have ten terms, a BM25 index beside it, queries, and qrels that exact
    search meets.
    """
    root, queries = tmp_path_factory.mktemp("tuning"), TermQueries(VOCABULARY)
    vectors = make_vectors(
        root / "vectors", random_matrix(5, ROWS, TERMS, 0.3), queries, shard_size=64
    )
    builder.build_impact_index(vectors, root / "index", Rule(1.0), queries)
    documents = [Document(f"d{row}", "", f"t{row % 7}") for row in range(ROWS)]
    bm25_builder.build_bm25_index(lambda: documents, root / "bm25")
    texts = {
        f"q{first}": " ".join(f"t{first + step}:{12 - step}" for step in range(10))
        for first in range(1, 9)
    }
    asked = [{"_id": query_id, "text": text} for query_id, text in texts.items()]
    write_lines(root / "queries.jsonl", [*asked, {"_id": "empty", "text": ""}])
    with Index(root / "index", query_encoder=queries) as opened:
        best = {query_id: opened.search(text, 3).doc_ids for query_id, text in texts.items()}
    lines = [
        f"{query_id}\t{doc_id}\t1\n" for query_id, doc_ids in best.items() for doc_id in doc_ids
    ]
    (root / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(lines))
    return root


@pytest.fixture
def folder(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of all that, whose index is opened with its query encoder."""
    monkeypatch.setattr(
        opening,
        "open_index",
        lambda path, *_, **__: Index(path, query_encoder=TermQueries(VOCABULARY)),
    )
    return Path(shutil.copytree(made, tmp_path / "copy"))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, float]]:
    """A search takes a millisecond for each term that Lucene gets, and what ``clock[n]`` adds by
    name in run ``n``.
    """
    terms, added = [0], []

    def counting(original):
        def count(self, query, *arguments):
            terms[0] += sum(len(part.tokens) for part in query.values())
            return original(self, query, *arguments)

        return count

    def time_queries(systems, texts, *, rounds):
        seconds, more = {}, added.pop(0) if added else {}
        for name, search in systems.items():
            seconds[name] = np.zeros((rounds, len(texts)))
            for place, text in enumerate(texts):
                terms[0] = 0
                search(text)
                seconds[name][:, place] = 0.001 * terms[0] + more.get(name, 0)
        return seconds

    for name in ("search", "find_candidates"):
        monkeypatch.setattr(ImpactReader, name, counting(getattr(ImpactReader, name)))
    monkeypatch.setattr(timing, "time_queries", time_queries)
    return added


def tune(folder: Path, budget: str, **options):
    return searching.tune(
        folder / "index", str(folder / "queries.jsonl"), budget, rounds=1, **options
    )


# --- budgets ---


@pytest.mark.parametrize(("text", "expected"), [
    ("p95 <= 1.0 x bm25", [Limit("p95", 1.0, "bm25")]),
    ("p50<=.5*exact", [Limit("p50", 0.5, "exact")]),
    ("  p99 < 20 ms ", [Limit("p99", 20.0, "ms")]),
    ("p50 <= 1.1 x bm25 and p95 <= 1.5 × bm25, p99 <= 8ms",
     [Limit("p50", 1.1, "bm25"), Limit("p95", 1.5, "bm25"), Limit("p99", 8.0, "ms")]),
])  # fmt: skip
def test_budgets_that_are_understood(text, expected):
    assert parse_budget(text) == expected


@pytest.mark.parametrize("text", [
    "", "fast", "p95", "p95 <= bm25", "p95 <= 1.0", "p90 <= 1 ms", "p95 >= 1 ms", "p95 <= -1 ms", "p95 <= 0 ms",
    "p95 <= 1 x lucene", "p95 <= 1 ms or p50 <= 1 ms", "p95 <= 1 ms and", "p95 <= nan ms", "p95 <= 1e3 ms",
])  # fmt: skip
def test_budgets_that_are_not(text):
    with pytest.raises(
        ConfigError,
        match="must be p50, p95 or p99, then <=, then a number above 0",
    ):
        parse_budget(text)


def test_a_limit_is_a_share_of_what_it_allows():
    found, base = Latency(2.0, 6.0, 9.0, 99.0), {"bm25": Latency(1.0, 4.0, 5.0, 50.0)}
    assert Limit("p95", 1.5, "bm25").share_used(found, base) == 1.0
    assert Limit("p50", 1.0, "bm25").share_used(found, base) == 2.0
    assert Limit("p99", 18.0, "ms").share_used(found, {}) == 0.5


# --- grid and queries ---


@pytest.mark.parametrize("two_phases", [True, False])
def test_the_grid_begins_with_exact_search_and_names_each_setting_once(two_phases):
    grid = list(tuning.settings(two_phases=two_phases))
    assert grid[0] == EXACT
    assert len(set(map(str, grid))) == len(grid) <= 40
    assert all(options.leaves_out for options in grid[1:])
    assert two_phases == any(options.candidates for options in grid)


def test_queries_are_evenly_spaced_with_a_text_and_judged():
    asked = [Query(f"q{number}", "" if number == 3 else "text") for number in range(10)]
    assert [query.query_id for query in tuning.choose_queries(asked, None, 3)] == ["q0", "q5", "q9"]
    assert len(tuning.choose_queries(asked, None, 100)) == 9
    assert [query.query_id for query in tuning.choose_queries(asked, {"q3": {}, "q7": {}}, 3)] == [
        "q7"
    ]
    with pytest.raises(ConfigError, match="none of the 10 queries has a text and a judgement"):
        tuning.choose_queries(asked, {"other": {}}, 3)


class CountingQueries(TermQueries):
    """Counts how often it encodes."""

    encoded = 0

    def encode(self, text):
        self.encoded += 1
        return super().encode(text)


def test_a_search_of_an_encoded_query_does_not_encode_again(folder):
    queries = CountingQueries(VOCABULARY)
    with Index(folder / "index", query_encoder=queries) as opened:
        text = "t1:3 t2:1"
        from_text = tuning.timed_search(opened, 5)(text)
        encoded = {text: opened.encode(text)}
        count = queries.encoded
        assert tuning.timed_search(opened, 5, encoded=encoded)(text) == from_text
        assert queries.encoded == count


def test_explain_encodes_its_query_once(folder):
    queries = CountingQueries(VOCABULARY)
    with Index(folder / "index", query_encoder=queries) as opened:
        query = opened.encode("t1:3 t2:1 t5:2")
        ranked = explanation.rank_documents(opened, query, [], 3)
        for hit in ranked:
            explained = explanation.explain_hit(opened, query, hit, None, None, None)
            assert explained["sum_of_contributions"] == hit.score
        explanation.describe_query(query, None)
        explanation.lost_query_terms(query)
        assert queries.encoded == 1


# --- the choice ---


def test_exact_search_is_kept_where_it_holds_the_budget(folder):
    report = tune(folder, "p99 <= 60000 ms", qrels=str(folder / "qrels.tsv"))
    assert (report["setting"], report["measured"]["overlap"], report["measured"]["difference"]) == (
        "exact",
        1,
        0,
    )
    assert report["measured"]["nDCG@10"] > 0.9
    assert report["queries"] == 8, "the query without a text is left out"
    kept = files.read_json(folder / "index" / "tuned.json")
    assert (kept["options"], kept["budget"], kept["measured"]) == (
        {},
        "p99 <= 60000 ms",
        report["measured"],
    )
    assert "trials" not in kept


@pytest.mark.parametrize(("budget", "num_terms"), [
    ("p50 <= 0.71 x exact", 7), ("p95 <= 4.5 ms", 4), ("p99 <= 2 ms", 2),
])  # fmt: skip
def test_the_smallest_loss_that_holds_is_stored_and_then_used(folder, clock, budget, num_terms):
    report = tune(folder, budget, qrels=str(folder / "qrels.tsv"), hits=2)
    trials, measured = report["trials"], report["measured"]
    assert not trials["exact"]["holds"]
    assert {row["holds"] for row in trials.values() if row["overlap"] > measured["overlap"]} <= {
        False
    }
    assert measured["p50_ms"] <= num_terms
    assert measured["overlap"] == trials[report["setting"]]["overlap"]
    assert (measured["overlap"] < 1) == (num_terms < 7)
    assert measured["low"] <= measured["difference"] <= measured["high"] <= 0
    with Index(folder / "index", query_encoder=TermQueries(VOCABULARY), tuned=True) as opened:
        assert str(opened.options) == report["setting"]
    assert verification.verify_index(folder / "index")["ok"]


def test_what_does_not_hold_a_second_time_is_passed_over(folder, clock):
    first = tune(folder, "p50 <= 0.5 x exact", hits=2)
    clock.extend([{}, {first["setting"]: 1.0, "exact": 0.5}])
    second = tune(folder, "p50 <= 0.5 x exact", hits=2)
    assert second["trials"] == first["trials"], "each beside the baselines of its own measurement"
    assert second["setting"] != first["setting"]
    assert second["measured"]["overlap"] <= first["measured"]["overlap"]
    everything = dict.fromkeys(map(str, tuning.settings(two_phases=True)), 1.0)
    clock.extend([{}, *[everything | {"exact": 0.0}] * 40])
    with pytest.raises(BudgetMissed, match=r"no setting holds 'p50 <= 0.5 x exact' twice in a row"):
        tune(folder, "p50 <= 0.5 x exact", hits=2)


def test_a_budget_that_nothing_holds_is_reported_with_the_nearest_and_stores_nothing(folder):
    with pytest.raises(
        ConfigError,
        match=r"must be a BM25 index of the same corpus: it is of kind "
        r"impact",
    ):
        tune(folder, "p50 <= 2 x bm25", bm25=folder / "index")
    with pytest.raises(
        BudgetMissed,
        match=r"no setting holds 'p50 .* x bm25'; the nearest, "
        r".*nothing was",
    ) as caught:
        tune(folder, "p50 <= 0.0001 x bm25", bm25=folder / "bm25")
    assert caught.value.report["setting"] is None
    assert len(caught.value.report["trials"]) == len(list(tuning.settings(two_phases=True)))
    assert set(caught.value.report["baselines"]) == {"bm25", "exact"}
    assert not (folder / "index" / "tuned.json").exists()


def test_what_was_tuned_stays_when_another_budget_is_missed(folder):
    tune(folder, "p99 <= 60000 ms")
    before = (folder / "index" / "tuned.json").read_bytes()
    with pytest.raises(BudgetMissed):
        tune(folder, "p50 <= 0.0001 ms")
    assert (folder / "index" / "tuned.json").read_bytes() == before


def test_without_a_forward_index_one_phase_is_all_there_is(folder):
    builder.build_impact_index(
        Vectors(folder / "vectors"),
        folder / "index",
        Rule(1.0),
        TermQueries(VOCABULARY),
        forward_index=False,
    )
    report = tune(folder, "p99 <= 60000 ms")
    assert not any("candidates" in name for name in report["trials"])


def test_what_cannot_be_tuned_is_refused_before_anything_is_measured(folder):
    with pytest.raises(
        ConfigError,
        match=r"is relative to BM25; name a BM25 index of the same "
        r"corpus \(--bm25\)",
    ):
        tune(folder, "p95 <= 1.0 x bm25")
    with pytest.raises(ConfigError, match="hits is 0; it must be at least 1"):
        tune(folder, "p95 <= 1 ms", hits=0)
    with pytest.raises(DataError):
        tune(folder, "p95 <= 1 ms", qrels=str(folder / "nothing.tsv"))


def test_a_bm25_index_cannot_be_tuned(tmp_path):
    bm25_builder.build_bm25_index(lambda: [Document("d1", "", "red wine")], tmp_path / "i")
    write_lines(tmp_path / "queries.jsonl", [{"_id": "q1", "text": "red"}])
    with pytest.raises(
        ConfigError, match="has no options to tune; it must be an impact index of this package"
    ):
        searching.tune(tmp_path / "i", str(tmp_path / "queries.jsonl"), "p95 <= 1 ms")


def test_the_command_tunes_and_the_search_uses_it(tmp_path):
    write_lines(
        tmp_path / "c" / "corpus.jsonl",
        [
            {"_id": f"d{number}", "title": "", "text": f"word{number % 5} lock"}
            for number in range(30)
        ],
    )
    write_lines(
        tmp_path / "c" / "queries.jsonl",
        [{"_id": "q1", "text": "word1 lock"}, {"_id": "q2", "text": "word2"}],
    )
    report_of(
        "build",
        "--model",
        "lexical",
        "--input",
        tmp_path / "c",
        "--output",
        tmp_path / "i",
        "--forward",
    )
    arguments = (
        "tune",
        "--index",
        tmp_path / "i",
        "--queries",
        tmp_path / "c",
        "--rounds",
        "1",
        "--budget",
    )
    done = run_command(*arguments, "p95 <= 0.00001 ms")
    assert (done.returncode, done.stdout) == (2, "")
    assert "no setting holds 'p95 <= 0.00001 ms'; the nearest, " in done.stderr
    assert report_of(*arguments, "p95 <= 60000 ms")["setting"] == "exact"
    found = report_of(
        "search",
        "--index",
        tmp_path / "i",
        "--queries",
        tmp_path / "c",
        "--output",
        tmp_path / "run",
        "--tuned",
    )
    assert found["options"] == "exact"
    kept = json.loads((tmp_path / "i" / "tuned.json").read_text())
    assert kept["index_sha256"] == manifest.read_manifest(tmp_path / "i")["sha256"]
    assert SearchOptions.from_json(kept["options"]) == EXACT
