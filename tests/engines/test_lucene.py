"""Lucene against brute force, score by score and document by document; any token; any number of
terms; many threads.
"""

from __future__ import annotations

import functools
import json
import math
import random
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from scipy import sparse
from small_indexes import (
    exact_pairs,
    pairs_of,
    query_of,
    random_matrix,
    run_python,
    shuffled_ids,
    write_matrix,
)

from sparse_ir.engines.base import SPARSE, EngineStatistics, ImpactBatch
from sparse_ir.engines.lucene import checking, java, opened, writer
from sparse_ir.engines.lucene.bm25 import Bm25, Bm25Reader, write_texts
from sparse_ir.engines.lucene.impact_reader import ImpactReader
from sparse_ir.engines.lucene.terms import MAX_TERM_BYTES, term_of_token, token_of_term
from sparse_ir.engines.threads import run_threads
from sparse_ir.errors import ClosedError, DamagedError, DataError, JavaError

ROWS, TERMS = 3000, 60
VOCABULARY = [f"t{number}" for number in range(TERMS)]
ODD_TOKENS = [
    "", " ", "  ", "a b", "\u3000", "a\u3000b", "\xa0", "x\xa0", "\t", "\n", "\r\n", "\x00", "\x01", "a\x01b", "\x1c",
    "\x1d", "\x1e", "\x1f", "a\x1fb", "\x7f", "\x85", "\u2028", "\u2029", "\u200b", "\ufeff", "\u180e", "\u0120the",
    "\u0120", "\u2581", "\u2581the", "##ing", "[CLS]", "a" * 300, "z" * 20_000, "\u00e9" * 9_000, "\U0001f600",
    "\U0001d11e\U0001f1e6", "\ud800", "a\udfffb", "\udc00\ud800", "\u241b", "\u241b;", "\u241b20;", "a\u241b1;b", ";",
    "1", "t\u00011", "\u4e2d\u6587", "e\u0301",
    "\u00c5", "A", "a", "\u202e", "|", "^2", "\\", '"', "AND", "*", "\uffff", "\U0010ffff",
]  # fmt: skip


@pytest.fixture(scope="module")
def small(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[sparse.csr_matrix, list[str], dict[int, Path]]:
    """A matrix full of ties, and its index written by one thread and by two."""
    matrix, doc_ids = random_matrix(1, ROWS, TERMS, 0.2), shuffled_ids(2, ROWS)
    root = tmp_path_factory.mktemp("lucene")
    folders = {
        threads: write_matrix(root / str(threads), matrix, doc_ids, VOCABULARY, threads=threads)
        for threads in (1, 2)
    }
    return matrix, doc_ids, folders


def look_up(doc_ids: Sequence[str]) -> Callable[[Sequence[int]], list[str]]:
    """Doc_ids by number, as a reader asks for them."""
    return lambda numbers: [doc_ids[number] for number in numbers]


# --- equal to the truth ---


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("stored", [True, False])
def test_search_equals_brute_force_with_ties_at_every_cut(small, threads, stored):
    matrix, doc_ids, folders = small
    queries = random_matrix(3, 12, TERMS, 0.1, 3)
    with ImpactReader(folders[threads], None if stored else look_up(doc_ids)) as reader:
        for query in queries:
            terms = [VOCABULARY[i] for i in query.indices]
            for k in (1, 2, 10, 100, 999, 1000, 2999, 3000, 10_000):
                assert pairs_of(
                    reader.search(query_of(terms, query.data.tolist()), k)
                ) == exact_pairs(query, matrix, doc_ids, k)


@pytest.mark.parametrize(("many_terms", "many_hits"), [(0, 100), (1000, 100_000)])
@pytest.mark.parametrize("heaviest", [1, 3])
def test_passing_documents_over_or_scoring_all_gives_the_same_hits(
    small, monkeypatch, many_terms, many_hits, heaviest
):
    matrix, doc_ids, folders = small
    monkeypatch.setattr(opened, "_MANY_TERMS", many_terms)
    monkeypatch.setattr(opened, "_MANY_HITS", many_hits)
    searched = []
    with ImpactReader(folders[2], look_up(doc_ids)) as reader:
        monkeypatch.setattr(
            reader,
            "_make_collector",
            lambda k, make=reader._make_collector: searched.append(k) or make(k),
        )
        for query in random_matrix(5, 6, TERMS, 0.5, heaviest):
            terms, boosts = [VOCABULARY[i] for i in query.indices], query.data.tolist()
            for k in (3, 400):
                assert pairs_of(reader.search(query_of(terms, boosts), k)) == exact_pairs(
                    query, matrix, doc_ids, k
                )
    assert bool(searched) == (many_terms == 0)


@pytest.mark.parametrize("boosts", [[1, 1, 1], [2, 1, 3], [60_000, 1, 1]])
def test_terms_named_twice_count_twice_with_and_without_boosts(small, boosts):
    matrix, doc_ids, folders = small
    query = np.zeros((1, TERMS), dtype=np.int32)
    for column, boost in zip((3, 7, 3), boosts, strict=True):
        query[0, column] += boost
    with ImpactReader(folders[1]) as reader:
        assert pairs_of(reader.search(query_of(["t3", "t7", "t3"], boosts), 50)) == exact_pairs(
            sparse.csr_matrix(query), matrix, doc_ids, 50
        )
        with pytest.raises(ValueError, match="zip"):
            reader.search(query_of(["t3", "t7"], [1]), 5)


def test_one_value_everywhere_ties_all_documents(tmp_path):
    doc_ids = shuffled_ids(4, 2500)
    matrix = sparse.csr_matrix(np.full((2500, 1), 7, dtype=np.int32))
    with ImpactReader(write_matrix(tmp_path / "l", matrix, doc_ids, ["t"])) as reader:
        for k in (1, 7, 1500):
            assert pairs_of(reader.search(query_of(["t"], [3]), k)) == [
                (doc_id, 21.0) for doc_id in sorted(doc_ids, reverse=True)[:k]
            ]


@pytest.mark.parametrize("seed", range(6))
def test_any_shape_equals_brute_force(tmp_path, seed):
    draw = random.Random(seed)
    rows, terms = draw.choice([1, 2, 37, 400]), draw.choice([1, 3, 90])
    matrix = random_matrix(
        seed, rows, terms, draw.uniform(0.05, 0.9), draw.choice([1, 2, 255, 65535])
    )
    doc_ids, vocabulary = shuffled_ids(seed, rows), [f"w{number}" for number in range(terms)]
    folder = write_matrix(
        tmp_path / "l",
        matrix,
        doc_ids,
        vocabulary,
        threads=1 + seed % 3,
        batch=draw.choice([1, 50]),
    )
    checking.check_index(folder)
    with ImpactReader(folder) as reader:
        assert reader.stored_ids(range(rows)) == doc_ids, (
            "document numbers follow the input, whatever the threads"
        )
        for query in random_matrix(seed + 100, 5, terms, 0.4, 9):
            k = draw.choice([1, 5, rows])
            found = reader.search(
                query_of([vocabulary[i] for i in query.indices], query.data.tolist()), k
            )
            expected = exact_pairs(query, matrix, doc_ids, k)
            assert found.doc_ids == [doc_id for doc_id, _ in expected]
            assert found.scores.dtype == np.float32
            assert found.scores.tolist() == [float(np.float32(score)) for _, score in expected]


def test_statistics_and_score_are_those_of_the_matrix(small):
    matrix, doc_ids, folders = small
    query = random_matrix(8, 1, TERMS, 0.3, 5)
    truth = dict(exact_pairs(query, matrix, doc_ids, ROWS))
    with ImpactReader(folders[2]) as reader:
        counted = EngineStatistics(ROWS, TERMS, matrix.nnz, int(matrix.sum()))
        assert reader.statistics() == counted
        terms = [VOCABULARY[i] for i in query.indices]
        for doc_id in doc_ids[:50]:
            assert reader.score(doc_id, query_of(terms, query.data.tolist())) == truth.get(
                doc_id, 0.0
            )
        assert reader.score("no such document", query_of(terms, query.data.tolist())) == 0.0


def test_an_empty_index_answers(tmp_path):
    writer.write_impacts(tmp_path / "l", [], {SPARSE: ["t"]}, threads=2)
    with ImpactReader(tmp_path / "l") as reader:
        assert reader.statistics() == EngineStatistics(0, 0, 0, 0)
        assert reader.search(query_of(["t"], [1]), 10).doc_ids == []


def test_more_threads_than_batches_and_none_at_all(tmp_path):
    matrix = random_matrix(5, 10, 4, 0.9)
    doc_ids = shuffled_ids(5, 10)
    for threads in (0, 7):
        folder = write_matrix(
            tmp_path / str(threads), matrix, doc_ids, list("abcd"), threads=threads, batch=5
        )
        assert sorted(path.name for path in tmp_path.iterdir() if "part" in path.name) == []
        with ImpactReader(folder) as reader:
            assert reader.stored_ids(range(10)) == doc_ids


def test_progress_counts_every_document(tmp_path):
    counts: list[int] = []
    matrix = random_matrix(5, 10, 4, 0.9)
    batches = [
        lambda start=start: ImpactBatch(list("abcde"), {SPARSE: matrix[start : start + 5]})
        for start in (0, 5)
    ]
    writer.write_impacts(tmp_path / "l", batches, {SPARSE: list("abcd")}, progress=counts.append)
    assert counts == [5, 5]


# --- tokens ---


def test_every_odd_token_is_searchable_and_distinct(tmp_path):
    assert len(set(ODD_TOKENS)) == len(ODD_TOKENS)
    size = len(ODD_TOKENS)
    matrix = sparse.csr_matrix(np.diag(np.arange(1, size + 1)).astype(np.int32))
    doc_ids = [f"d{number}" for number in range(size)]
    with ImpactReader(write_matrix(tmp_path / "l", matrix, doc_ids, ODD_TOKENS)) as reader:
        assert reader.statistics().terms == size
        for number, token in enumerate(ODD_TOKENS):
            hits = reader.search(query_of([token], [1]), 10)
            assert pairs_of(hits) == [(f"d{number}", number + 1.0)], repr(token[:20])


@pytest.mark.parametrize("token", ODD_TOKENS, ids=lambda token: ascii(token[:8]))
def test_a_token_comes_back_from_its_term(token):
    assert token_of_term(term_of_token(token)) == token


def test_every_character_below_0x3100_stays_a_term_of_its_own(tmp_path):
    """One token per character, and once more inside a word: nothing is split, joined, folded or
    lost.
    """
    tokens = [form.format(chr(code)) for code in range(0x3100) for form in ("{0}", "x{0}y")]
    impacts = sparse.csr_matrix(
        (np.full(len(tokens), 2, np.int32), np.arange(len(tokens)), [0, len(tokens)])
    )
    with ImpactReader(write_matrix(tmp_path / "l", impacts, ["all"], tokens)) as reader:
        assert reader.statistics() == EngineStatistics(1, len(tokens), len(tokens), 2 * len(tokens))


def test_no_two_random_tokens_share_a_term():
    draw = random.Random(0)
    alphabet = [*"ab1;20", " ", "\u241b", "\x01", "\u3000", "\ud800", "\U0001f600"]
    tokens = {"".join(draw.choices(alphabet, k=draw.randrange(8))) for _ in range(20_000)}
    assert len({term_of_token(token) for token in tokens}) == len(tokens)
    assert all(token_of_term(term_of_token(token)) == token for token in tokens)


@pytest.mark.parametrize(
    "token", ["word", "\u0120word", "\u2581wort", "##s", "[MASK]", "\U0001f600"]
)
def test_a_usual_token_is_its_own_term(token):
    assert term_of_token(token) == token


def test_white_space_is_escaped_by_its_code():
    assert term_of_token("a b") == "a\u241b20;b"
    assert term_of_token("") == "\u241b;"


def test_the_longest_token_of_lucene_is_searchable(tmp_path):
    token = "x" * MAX_TERM_BYTES
    matrix = sparse.csr_matrix(np.array([[65535]], dtype=np.int32))
    with ImpactReader(write_matrix(tmp_path / "l", matrix, ["d"], [token])) as reader:
        assert pairs_of(reader.search(query_of([token], [2]), 1)) == [("d", 131070.0)]


@pytest.mark.parametrize("token", ["x" * 32_767, "\u00e9" * 16_384, " " * 8_000])
def test_a_longer_token_is_refused_and_leaves_no_index(tmp_path, token):
    matrix = sparse.csr_matrix(np.array([[1, 1]], dtype=np.int32))
    with pytest.raises(DataError, match=r"token '.*'\.\.\. has \d+ bytes; allowed are 32766"):
        write_matrix(tmp_path / "l", matrix, ["d"], ["t", token])
    assert list(tmp_path.iterdir()) == []


# --- queries of any size ---


@pytest.mark.parametrize("size", [1025, 3000])
def test_more_terms_than_lucene_allows_by_itself(tmp_path, size):
    matrix, doc_ids = random_matrix(9, 40, 3000, 0.3, 9), shuffled_ids(9, 40)
    vocabulary = [f"w{number}" for number in range(3000)]
    query = sparse.csr_matrix(
        np.r_[np.arange(1, size + 1) % 5 + 1, np.zeros(3000 - size)].astype(np.int32)
    )
    with ImpactReader(write_matrix(tmp_path / "l", matrix, doc_ids, vocabulary)) as reader:
        found = reader.search(
            query_of([vocabulary[i] for i in query.indices], query.data.tolist()), 40
        )
        assert pairs_of(found) == exact_pairs(query, matrix, doc_ids, 40)


def test_queries_without_an_answer(small):
    with ImpactReader(small[2][1]) as reader:
        for hits in (
            reader.search(query_of([], []), 10),
            reader.search(query_of(["unknown"], [1]), 10),
        ):
            assert (hits.doc_ids, len(hits.scores), hits.scores.dtype) == ([], 0, np.float32)


@pytest.mark.parametrize("k", [0, -3])
def test_fewer_than_one_hit_is_refused(small, k):
    with (
        ImpactReader(small[2][1]) as reader,
        pytest.raises(DataError, match=f"the number of hits is {k}; it must be at least 1"),
    ):
        reader.search(query_of(["t1"], [1]), k)


# --- BM25 ---


def test_bm25_scores_by_hand(tmp_path):
    """``idf x tf / (tf + k1 (1 - b + b L / avg L))`` with ``idf = ln(1 + (N - df + .5) / (df +
    .5))``, as in Lucene.
    """
    texts = [("a", "red red green"), ("b", "red"), ("c", "blue blue blue blue")]
    write_texts(tmp_path / "l", texts, Bm25())
    with Bm25Reader(tmp_path / "l") as reader:
        hits = reader.search("red", 10)

    def weigh(tf: int, length: int) -> float:
        return math.log(1 + 1.5 / 2.5) * tf / (tf + 0.9 * (1 - 0.4 + 0.4 * length / (8 / 3)))

    assert dict(pairs_of(hits)) == pytest.approx({"a": weigh(2, 3), "b": weigh(1, 1)}, rel=1e-6)


def test_bm25_parameters_count(tmp_path):
    write_texts(tmp_path / "l", [("a", "red red green"), ("b", "red")], Bm25(0.0, 0.0))
    with Bm25Reader(tmp_path / "l", Bm25(0.0, 0.0)) as reader:
        assert pairs_of(reader.search("red", 10)) == [
            ("b", pytest.approx(math.log(1.2))),
            ("a", pytest.approx(math.log(1.2))),
        ]


@pytest.mark.parametrize("title", [0.0, 2.0])
def test_bm25_explanations_by_number_equal_contributions(tmp_path, title):
    texts = [("a", "red red green"), ("b", "red fox"), ("c", "blue")]
    parameters = Bm25(title=title)
    if title:
        texts = [(doc_id, text, "red : title") for doc_id, text in texts]
    write_texts(tmp_path / "l", texts, parameters)
    with Bm25Reader(tmp_path / "l", parameters) as reader:
        hits = reader.search("red red fox", 10)
        explain = reader.explainer("red red fox")
        for number, doc_id, score in zip(hits.numbers, hits.doc_ids, hits.scores, strict=True):
            parts = explain(number)
            assert parts == pytest.approx(reader.contributions(doc_id, {"red": 2, "fox": 1}))
            assert sum(parts.values()) == pytest.approx(score, rel=1e-6)


@pytest.mark.parametrize("text", ["", "   ", "the of and", "\u2603"])
def test_bm25_query_without_terms_has_no_hits(tmp_path, text):
    write_texts(tmp_path / "l", [("a", "red")], Bm25())
    with Bm25Reader(tmp_path / "l") as reader:
        assert reader.search(text, 3).doc_ids == []


# --- what goes wrong ---


def test_a_folder_without_an_index_is_not_opened(tmp_path):
    with pytest.raises(
        DamagedError,
        match=r"cannot be opened as a Lucene index: "
        r"IndexNotFoundException: no segments",
    ):
        ImpactReader(tmp_path)


def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("here")
    matrix = random_matrix(1, 20, 3, 0.9)
    for threads in (1, 2):
        with pytest.raises(
            JavaError,
            match=r"writing the Lucene index failed: \w+Exception: "
            r".*file",
        ):
            write_matrix(
                tmp_path / "file" / "l",
                matrix,
                shuffled_ids(1, 20),
                list("abc"),
                threads=threads,
                batch=5,
            )


@pytest.mark.parametrize("impact", [0, -1, 65536])
def test_impacts_that_lucene_would_mangle_are_refused(tmp_path, impact):
    matrix = sparse.csr_matrix(
        (np.array([3, impact], np.int32), np.array([0, 1]), np.array([0, 2])), shape=(1, 2)
    )
    with pytest.raises(
        DataError,
        match=r"impacts range from -?\d+ to \d+; they must lie in 1 to 65535",
    ):
        write_matrix(tmp_path / "l", matrix, ["d"], ["a", "b"])


def test_an_error_of_the_source_stops_all_threads_and_frees_the_folder(tmp_path):
    def broken() -> ImpactBatch:
        raise DataError("the source is broken")

    good = random_matrix(1, 4, 3, 0.9)
    batches = [lambda: ImpactBatch(["a", "b", "c", "d"], {SPARSE: good}), broken]
    for threads in (1, 2):
        with pytest.raises(DataError, match="the source is broken"):
            writer.write_impacts(tmp_path / "l", batches, {SPARSE: list("abc")}, threads=threads)
    # no lock of the failed writer is left
    writer.write_impacts(tmp_path / "l", batches[:1], {SPARSE: list("abc")})
    with ImpactReader(tmp_path / "l") as reader:
        assert reader.num_documents == 4


def test_check_index_names_a_damaged_file(small, tmp_path):
    folder = write_matrix(
        tmp_path / "l",
        random_matrix(1, 300, 30, 0.4),
        shuffled_ids(1, 300),
        [f"t{i}" for i in range(30)],
    )
    checking.check_index(folder)
    victim = next(folder.glob("*.doc"))
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content)
    with pytest.raises(DamagedError, match=r"is damaged: .*checksum"):
        checking.check_index(folder)


def test_run_threads_raises_what_a_thread_raised():
    done = []

    def fail() -> None:
        raise DataError("in a thread")

    with pytest.raises(DataError, match="in a thread"):
        run_threads([fail, lambda: done.append(1)], java.detach_thread)
    assert done == [1]


def test_lucene_version_is_that_of_the_jar():
    assert int(checking.lucene_version().split(".")[0]) >= 9


# --- many threads ---


def test_two_readers_under_sixteen_threads_answer_like_one_thread(tmp_path):
    """pyjnius keeps the receiver of a call in a place shared by all objects of a class: readers
    must not mix.
    """
    readers, work, expected = [], [], []
    for seed in (1, 2):
        matrix, doc_ids = (
            random_matrix(seed, 400, TERMS, 0.3),
            [f"{seed}-{n}" for n in shuffled_ids(seed, 400)],
        )
        folder = write_matrix(tmp_path / str(seed), matrix, doc_ids, VOCABULARY)
        readers.append(ImpactReader(folder, look_up(doc_ids) if seed == 1 else None))
        queries = random_matrix(seed + 50, 40, TERMS, 0.1, 3)
        work.append(
            [([VOCABULARY[i] for i in query.indices], query.data.tolist()) for query in queries]
        )
        expected.append([exact_pairs(query, matrix, doc_ids, 10) for query in queries])
    wrong: list[tuple[int, int]] = []
    begin = threading.Barrier(16)

    def search(which: int, seed: int) -> None:
        draw = random.Random(seed)
        begin.wait()
        for _ in range(250):
            number = draw.randrange(40)
            hits = readers[which].search(query_of(*work[which][number]), 10)
            if pairs_of(hits) != expected[which][number]:
                wrong.append((which, number))

    run_threads(
        [lambda seed=seed: search(seed % 2, seed) for seed in range(16)], java.detach_thread
    )
    assert wrong == []
    for reader in readers:
        reader.close()


def test_counting_terms_of_several_segments_in_several_threads(tmp_path):
    readers = []
    for terms in (700, 1100):
        matrix, vocabulary = (
            sparse.csr_matrix(np.ones((4, terms), dtype=np.int32)),
            [f"w{i}" for i in range(terms)],
        )
        folder = write_matrix(
            tmp_path / str(terms), matrix, list("abcd"), vocabulary, threads=2, batch=2
        )
        readers.append((ImpactReader(folder), terms))
    found: list[tuple[int, int]] = []

    def count(number: int) -> None:
        reader, terms = readers[number % 2]
        found.append((reader.statistics().terms, terms))

    run_threads([functools.partial(count, number) for number in range(6)], java.detach_thread)
    assert [pair for pair in found if pair[0] != pair[1]] == []
    assert len(found) == 6


def test_the_first_searches_of_a_process_may_come_from_many_threads(tmp_path):
    """Classes of Java are looked up on first use: here by eight threads at once, in a fresh
    process.
    """
    matrix, doc_ids = random_matrix(6, 50, TERMS, 0.5), shuffled_ids(6, 50)
    folder = write_matrix(tmp_path / "l", matrix, doc_ids, VOCABULARY)
    queries = sparse.eye(8, TERMS, format="csr")
    expected = [
        [list(pair) for pair in exact_pairs(query, matrix, doc_ids, 5)] for query in queries
    ]
    program = """
        import json, sys, threading
        from pathlib import Path
        from sparse_ir.engines.lucene.impact_reader import ImpactReader
        from sparse_ir.engines.lucene import java
        from sparse_ir.engines.threads import run_threads
        from small_indexes import query_of
        results, begin = [None] * 8, threading.Barrier(8)
        def work(number):
            begin.wait()
            with ImpactReader(Path(sys.argv[1])) as reader:
                hits = reader.search(query_of([f"t{number}"], [1]), 5)
            results[number] = list(zip(hits.doc_ids, hits.scores.tolist()))
        run_threads([lambda number=number: work(number) for number in range(8)], java.detach_thread)
        print(json.dumps(results))
"""
    done = run_python(program, folder)
    assert done.stderr == ""
    assert json.loads(done.stdout) == expected


def test_a_closed_reader_says_so(small):
    reader = ImpactReader(small[2][1])
    reader.close()
    with pytest.raises(ClosedError, match="the search failed: AlreadyClosedException"):
        reader.search(query_of(["t1"], [1]), 3)


def test_java_detaches_threads_again():
    names = []

    def note_name():
        # kept: see the module's word on receivers
        thread = java.java_class("java.lang.Thread").currentThread()
        names.append(thread.getName())

    run_threads([note_name] * 3, java.detach_thread)
    traces = java.java_class("java.lang.Thread").getAllStackTraces()
    living = traces.keySet()
    threads = living.toArray()
    assert len(names) == 3
    assert not [
        thread.getName()
        for thread in threads
        if thread.getName() in names and thread.getName() != "main"
    ]
