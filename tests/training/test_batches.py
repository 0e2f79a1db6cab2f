"""Batches of training pairs: pure, complete and proportional."""

import dataclasses
import json
import time
from collections import Counter

import numpy as np
import pytest
from made_pairs import make_line, make_source, positives_of, show, write_folder

from sparse_ir.errors import ConfigError
from sparse_ir.training.sources.batches import Batches
from sparse_ir.training.sources.pairs import read_source

# --- exact values ---


def test_a_batch_by_hand():
    """q0 has the positives a, b and the negative d; q1 has c and the negatives a, e; "a" is there
    twice.
    """
    source = make_source(
        [[0, 1], [2]], [[3], [5, 4]], documents=["a", "b", "c", "d", "e", "a"], queries=["q0", "q1"]
    )
    batch = Batches([source], queries=3, negatives=1).at(0)
    rows = dict(
        zip(
            zip(batch.queries, (batch.documents[i] for i in batch.positive_Q), strict=True),
            batch.allowed_QD,
            strict=True,
        )
    )
    assert set(rows) == {("q0", "a"), ("q0", "b"), ("q1", "c")}
    # one of the two cards of q0 takes d, its only negative; for the other none is left; q1 takes e,
    # for a is there
    assert set(batch.documents[:3]) == {"a", "b", "c"}
    assert set(batch.documents[3:]) == {"d", "e"}
    for (query, positive), allowed in rows.items():
        refused = {
            document for document, ok in zip(batch.documents, allowed, strict=True) if not ok
        }
        assert refused == ({"a", "b"} - {positive} if query == "q0" else set())
    assert (batch.source, batch.scores_QD) == ("made", None)
    assert batch.positive_Q.dtype == np.int64
    assert batch.allowed_QD.dtype == bool


def test_queries_of_one_text_share_their_positives():
    source = make_source([[0], [1], [2]], [[], [], [1, 3]], queries=["same", "other", "same"])
    batch = Batches([source], queries=3, negatives=2).at(0)
    where = {text: column for column, text in enumerate(batch.documents)}
    assert set(where) == {"document 0", "document 1", "document 2", "document 3"}
    for row, query in enumerate(batch.queries):
        refused = {i for i, ok in enumerate(batch.allowed_QD[row]) if not ok}
        both = {where["document 0"], where["document 2"]}
        assert refused == (both - {int(batch.positive_Q[row])} if query == "same" else set())


def test_a_known_positive_is_never_sampled_as_a_negative():
    """The query of the other id has the same text, and its positive is mined as a negative."""
    source = make_source([[0], [1]], [[1, 2], []], queries=["same", "same"])
    for seed in range(8):
        batch = Batches([source], queries=1, negatives=2, seed=seed).at(0)
        assert batch.documents in (["document 0", "document 2"], ["document 1"])


def test_scores_of_the_file_stand_in_their_cells():
    scores = [np.array([9, 1], dtype=np.float32), np.array([8, 2], dtype=np.float32)]
    batch = Batches(
        [make_source([[0], [1]], [[2], [0]], scores=scores)], queries=2, negatives=1
    ).at(0)
    cells = {
        (query, document): float(batch.scores_QD[row, column])
        for row, query in enumerate(batch.queries)
        for column, document in enumerate(batch.documents)
        if not np.isnan(batch.scores_QD[row, column])
    }
    assert cells == {
        ("query 0", "document 0"): 9,
        ("query 0", "document 2"): 1,
        ("query 1", "document 1"): 8,
        ("query 1", "document 0"): 2,
    }
    assert batch.scores_QD.shape == (2, 3)
    assert batch.scores_QD.dtype == np.float32


def test_several_queries_share_one_document_in_rotation():
    """Three queries on document 0 and one on document 1: two by two, 0 takes all three pairs in
    three epochs.
    """
    batches = Batches([make_source([[0], [0], [0], [1]])], queries=2, queries_per_positive=2)
    seen = []
    for epoch in range(3):
        batch = batches.at(epoch)
        assert sorted(batch.documents) == ["document 0", "document 1"]
        assert sorted(Counter(batch.positive_Q.tolist()).values()) == [1, 2]
        assert batch.allowed_QD.all()
        seen += [query for query in batch.queries if query != "query 3"]
    assert Counter(seen) == {"query 0": 2, "query 1": 2, "query 2": 2}


def test_negatives_are_as_many_as_asked_for_and_come_from_the_lists():
    batches = Batches([make_line(400, near=9)], queries=8, negatives=3)
    for step in range(50):
        batch = batches.at(step)
        assert len(batch.documents) == len(set(batch.documents)) == 32
        for place, document in enumerate(batch.documents[8:]):
            positive = int(batch.documents[place // 3].split()[1])
            assert (int(document.split()[1]) - positive) % 400 in range(1, 10)


def test_negatives_vary_from_epoch_to_epoch():
    batches = Batches([make_source([[0]], [[1, 2, 3, 4]])], queries=1, negatives=1)
    assert {batches.at(step).documents[1] for step in range(60)} == {
        f"document {i}" for i in range(1, 5)
    }


# --- order ---


SETTINGS = [
    {"queries": 8},
    {"queries": 7, "negatives": 2},
    {"queries": 5, "queries_per_positive": 2, "seed": 3},
    {"queries": 8, "negatives": 1, "neighbourhood": 4},
    {"queries": 16, "neighbourhood": 3, "queries_per_positive": 3},
]


@pytest.mark.parametrize("settings", SETTINGS)
def test_a_batch_depends_on_the_step_alone(settings):
    """Small decks (17 cards for batches of up to 16), whose epochs hang
    together, and larger ones.
    """

    def make():
        return Batches(
            [make_line(17, near=5, name="small"), make_line(60, near=5, name="large", weight=2)],
            **settings,
        )

    walking = make()
    walked = [show(walking.at(step)) for step in range(150)]
    jumping = make()
    for step in (149, 0, 77, 76, 78, 31, 149, 2, 3):
        assert show(jumping.at(step)) == walked[step]
        assert show(make().at(step)) == walked[step]


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("count", [16, 17, 31, 64, 101])
def test_every_card_comes_once_an_epoch(settings, count):
    batches = Batches([make_line(count, near=5)], **settings)
    steps = -(-6 * count // settings["queries"])
    dealt = [batches.at(step) for step in range(steps)]
    for batch in dealt:  # also in batches that hold the end of an epoch and the start of the next
        assert len(set(positives_of(batch))) == settings["queries"]
    stream = [document for batch in dealt for document in positives_of(batch)]
    epochs = [stream[start : start + count] for start in range(0, 5 * count, count)]
    for epoch in epochs:
        assert sorted(epoch) == sorted(f"document {i}" for i in range(count))
    assert len({tuple(epoch) for epoch in epochs}) == 5


def test_equal_texts_are_one_card():
    source = make_source([[0], [1], [2]], documents=["a", "b", "a"])
    batch = Batches([source], queries=2, queries_per_positive=2).at(0)
    assert sorted(batch.documents) == ["a", "b"]
    assert sorted(batch.queries) == ["query 0", "query 1", "query 2"]


def test_another_seed_or_name_is_another_order_and_other_sources_do_not_matter():
    first = [show(Batches([make_line(30)], queries=10, seed=seed).at(0))[1] for seed in (0, 1)]
    named = Batches([make_line(30, name="other")], queries=10).at(0).queries
    assert first[0] != first[1]
    assert named != first[0]
    alone = Batches([make_line(30)], queries=10)
    both = Batches([make_line(50, name="other"), make_line(30)], queries=10)
    taken = [batch for batch in map(both.at, range(40)) if batch.source == "made"]
    assert [show(batch) for batch in taken] == [show(alone.at(step)) for step in range(len(taken))]


def test_sources_are_drawn_in_proportion_to_their_weights():
    sources = [
        make_line(4, name=name, weight=weight) for name, weight in (("a", 1), ("b", 2), ("c", 5))
    ]
    batches = Batches(sources, queries=4)
    counts = Counter(batches.at(step).source for step in range(9000))  # beyond two blocks of draws
    for name, weight in (("a", 1), ("b", 2), ("c", 5)):
        share = weight / 8
        assert abs(counts[name] - 9000 * share) < 4 * (9000 * share * (1 - share)) ** 0.5


def test_neighbours_stand_together():
    """On a ring of 64 documents with the three next ones as negatives: few chance meetings without,
    blocks with.
    """

    def count_pairs(neighbourhood):
        batches = Batches([make_line(64, near=3)], queries=8, neighbourhood=neighbourhood)
        met = 0
        for step in range(8):
            numbers = {int(document.split()[1]) for document in batches.at(step).documents}
            met += sum((number + 1) % 64 in numbers for number in numbers)
        return met

    assert count_pairs(1) < 20
    assert count_pairs(4) > 32


def test_neighbours_come_nearest_first_and_within_a_batch():
    """Each query has its mirror document as nearest negative: pairs are never cut by the end of a
    batch.
    """
    count = 24
    source = make_source(
        [[i] for i in range(count)], [[i ^ 1, (i + 2) % count] for i in range(count)]
    )
    batches = Batches([source], queries=4, neighbourhood=2)
    for step in range(18):
        numbers = [int(document.split()[1]) for document in batches.at(step).documents]
        assert numbers[0] ^ 1 == numbers[1]
        assert numbers[2] ^ 1 == numbers[3]


def cpu_seconds(batches, steps):
    start = time.process_time()
    for step in steps:
        batches.at(step)
    return time.process_time() - start


def test_a_late_step_costs_about_as_much_as_an_early_one():
    count, near = 20_000, np.arange(1, 21)
    source = make_line(count)
    source = dataclasses.replace(
        source, negatives=[((i + near) % count).astype(np.int32) for i in range(count)]
    )
    early = Batches([source], queries=32, negatives=2, neighbourhood=4)
    late = Batches([source], queries=32, negatives=2, neighbourhood=4)
    # the first step builds the order of its epoch
    assert cpu_seconds(late, [1_000_000]) < 30 * cpu_seconds(early, [0])
    assert cpu_seconds(late, range(1_000_001, 1_000_041)) < 10 * cpu_seconds(early, range(1, 41))


# --- descriptions and refusals ---


def test_batches_describe_themselves():
    sources = [
        make_source([[0, 1], [1]], [[2], []], name="a", weight=1),
        make_line(6, name="b", weight=3),
    ]
    assert Batches(sources, queries=2).describe() == [
        {
            "name": "a",
            "queries": 2,
            "documents": 3,
            "positives": 3,
            "negatives": 1,
            "positive_documents": 2,
            "share": 0.25,
            "steps_per_epoch": 1.0,
            "epoch_steps": 4.0,
        },
        {
            "name": "b",
            "queries": 6,
            "documents": 6,
            "positives": 6,
            "negatives": 0,
            "positive_documents": 6,
            "share": 0.75,
            "steps_per_epoch": 3.0,
            "epoch_steps": 4.0,
        },
    ]


def test_the_fingerprint_holds_settings_and_sources(tmp_path):
    source = read_source(write_folder(tmp_path / "tiny"), weight=3)
    found = Batches([source], queries=2, seed=5).fingerprint
    assert found == {
        "order_version": 1,
        "queries": 2,
        "negatives": 0,
        "queries_per_positive": 1,
        "neighbourhood": 1,
        "seed": 5,
        "sources": [{**source.fingerprint, "weight": 3.0}],
    }
    assert json.loads(json.dumps(found)) == found


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"queries": 0}, "queries is 0; it must be a whole number of at least 1"),
        ({"negatives": -1}, "negatives is -1; it must be a whole number of at least 0"),
        (
            {"queries_per_positive": 0},
            "queries_per_positive is 0; it must be a whole number of at least 1",
        ),
        ({"neighbourhood": 0}, "neighbourhood is 0; it must be a whole number of at least 1"),
        ({"seed": -1}, "seed is -1; it must be a whole number of at least 0"),
        ({"queries": 2.0}, r"queries is 2\.0; it must be a whole number"),
        (
            {"queries": 5},
            (
                r"source 'made' has 4 different positive documents, fewer than the 5 of a "
                r"batch; use small"
            ),
        ),
        (
            {"queries": 2, "negatives": 1},
            (
                r"negatives is 1, but no source has mined negatives "
                r"\(made\); it must be 0, or a source"
            ),
        ),
        (
            {"queries": 2, "neighbourhood": 2},
            (
                r"neighbourhood is 2, but no source has mined negatives "
                r"\(made\); it must be 1, or a source"
            ),
        ),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        Batches([make_line(4)], **settings)


def test_sources_and_steps_that_cannot_be_are_refused():
    with pytest.raises(
        ConfigError, match="there is no source of training pairs; there must be at least one"
    ):
        Batches([])
    with pytest.raises(
        ConfigError, match="two sources are named 'made'; each name must be used once"
    ):
        Batches([make_line(4), make_line(5)], queries=2)
    with pytest.raises(ConfigError, match="weight is 0; it must be a finite number above 0"):
        Batches([make_line(4, weight=0)], queries=2)
    with pytest.raises(ConfigError, match="step is -1; it must be 0 or more"):
        Batches([make_line(4)], queries=2).at(-1)
