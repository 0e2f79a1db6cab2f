"""The rule by hand, its error bound on random weights, and what it says about what it changed."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from sparse_ir.engines.base import LARGEST_IMPACT
from sparse_ir.errors import ConfigError, DataError
from sparse_ir.indexing.quantization import (
    Rule,
    check_weights,
    quantize,
    quantize_query,
    rule_from_range,
)


def matrix(rows: list[list[float]]) -> sparse.csr_matrix:
    return sparse.csr_matrix(np.array(rows, dtype=np.float32))


# --- by hand ---


def test_weights_times_scale_rounded():
    """x 10: 0.5 -> 5, 1.26 -> 12.6 -> 13, 0.04 -> 0.4 -> nothing, 30 -> 300 -> clipped at 255."""
    found = quantize(matrix([[0.5, 1.26, 0, 0.04], [0, 0, 30, 0]]), Rule(10, 255))
    assert found.impacts.toarray().tolist() == [[5, 13, 0, 0], [0, 0, 255, 0]]
    assert (found.num_zeroed, found.num_clipped) == (1, 1)
    assert found.impacts.nnz == 3
    assert found.impacts.dtype == np.int32


def test_halves_go_to_the_even_neighbour():
    weights = matrix([[0.5, 1.5, 2.5, 3.5, 4.5, 0.75]])
    assert quantize(weights, Rule(1)).impacts.toarray().tolist() == [[0, 2, 2, 4, 4, 1]]
    assert quantize(weights, Rule(2)).impacts.toarray().tolist() == [[1, 3, 5, 7, 9, 2]]


def test_folded_by_hand():
    """Weights 1, 2 with query weights .5, 3, scale 10: 5 and 60; the query
    counts every term once.
    """
    rule = Rule(10, folded=True)
    found = quantize(matrix([[1, 2]]), rule, np.array([0.5, 3], dtype=np.float32))
    assert found.impacts.toarray().tolist() == [[5, 60]]
    token_ids, impacts = quantize_query(
        np.array([0, 1], np.int32), np.array([0.5, 3], np.float32), rule
    )
    assert (token_ids.tolist(), impacts.tolist()) == ([0, 1], [1, 1])


def test_query_weights_of_a_plain_rule_are_rounded_like_documents():
    token_ids, impacts = quantize_query(
        np.array([4, 7, 9, 11], np.int32),
        np.array([0.25, 1.0, 0.04, 90], np.float32),
        Rule(10, 255),
    )
    assert token_ids.tolist() == [4, 7, 11], (
        "a weight that rounds to nothing is no term of the query"
    )
    assert impacts.tolist() == [2, 10, 255]
    assert (token_ids.dtype, impacts.dtype) == (np.int32, np.int32)


def test_a_term_without_query_weight_is_dropped_and_not_counted_as_lost():
    found = quantize(
        matrix([[5, 5, 0.001]]), Rule(1, folded=True), np.array([0, 1, 1], dtype=np.float32)
    )
    assert found.impacts.toarray().tolist() == [[0, 5, 0]]
    assert (found.num_zeroed, found.num_clipped) == (1, 0)


def test_range_by_hand():
    assert rule_from_range(2.55, 8) == Rule(255 / 2.55, 255)
    assert rule_from_range(3.0, 2, folded=True) == Rule(1.0, 3, True)
    assert rule_from_range(0.0, 8) == Rule(1.0, 255)


# --- properties ---


@pytest.mark.parametrize("seed", range(20))
def test_error_bound_and_account(seed):
    generator = np.random.default_rng(seed)
    rule = Rule(float(generator.uniform(0.1, 300)), int(generator.integers(1, LARGEST_IMPACT)))
    values = (generator.exponential(2, (40, 30)) * (generator.random((40, 30)) < 0.4)).astype(
        np.float32
    )
    found = quantize(sparse.csr_matrix(values), rule)
    exact, impacts = values.astype(np.float64) * rule.scale, found.impacts.toarray()
    clipped = np.rint(exact) > rule.max_impact
    assert (impacts[clipped] == rule.max_impact).all()
    assert np.abs(impacts - exact)[~clipped].max() <= 0.5
    assert np.abs(impacts / rule.scale - values)[~clipped].max() <= 0.5 / rule.scale * (1 + 1e-12)
    assert found.num_clipped == clipped.sum()
    assert found.num_zeroed == ((impacts == 0) & (values > 0)).sum()
    assert found.impacts.data.min(initial=1) >= 1
    assert found.impacts.has_sorted_indices


@pytest.mark.parametrize("bits", [2, 4, 8, 12, 16])
def test_a_range_clips_nothing_and_uses_all_bits(bits):
    values = np.random.default_rng(bits).exponential(1, (50, 20)).astype(np.float32)
    found = quantize(sparse.csr_matrix(values), rule_from_range(float(values.max()), bits))
    assert found.num_clipped == 0
    assert found.impacts.max() == 2**bits - 1


@pytest.mark.parametrize("seed", range(10))
def test_folding_keeps_every_score_within_the_bound(seed):
    """With S terms in common the folded score is within S * .5 of scale * (query . document)."""
    generator = np.random.default_rng(seed)
    documents = (generator.exponential(1, (30, 25)) * (generator.random((30, 25)) < 0.5)).astype(
        np.float32
    )
    weights = generator.uniform(0, 6, 25).astype(np.float32)
    present = generator.random(25) < 0.4
    rule = Rule(40.0, folded=True)
    impacts = quantize(sparse.csr_matrix(documents), rule, weights).impacts.toarray()
    token_ids, counts = quantize_query(
        np.flatnonzero(present).astype(np.int32), weights[present], rule
    )
    found = impacts[:, token_ids] @ counts
    exact = (
        rule.scale * documents[:, present].astype(np.float64) @ weights[present].astype(np.float64)
    )
    shared = ((documents > 0) & present).sum(axis=1)
    assert (np.abs(found - exact) <= 0.5 * shared + 1e-9).all()


def test_whole_numbers_stay_what_they_are():
    values = sparse.csr_matrix(
        np.random.default_rng(0).integers(0, 300, (20, 20)).astype(np.float32)
    )
    found = quantize(values, Rule(1.0))
    assert (found.impacts != values).nnz == 0
    assert (found.num_zeroed, found.num_clipped) == (0, 0)


def test_the_input_is_left_alone():
    weights = matrix([[0.001, 2], [0, 700]])
    before = weights.copy()
    found = quantize(weights, Rule(1, 255, folded=True), np.array([2, 3], np.float32))
    found.impacts.data[:] = 9
    for name in ("data", "indices", "indptr"):
        assert (getattr(weights, name) == getattr(before, name)).all()


@pytest.mark.parametrize("shape", [(0, 5), (3, 5), (3, 0)])
def test_nothing_stays_nothing(shape):
    found = quantize(sparse.csr_matrix(shape, dtype=np.float32), Rule())
    assert (found.impacts.shape, found.impacts.nnz, found.num_zeroed, found.num_clipped) == (
        shape,
        0,
        0,
        0,
    )
    token_ids, impacts = quantize_query(np.empty(0, np.int32), np.empty(0, np.float32), Rule())
    assert (len(token_ids), len(impacts)) == (0, 0)


# --- what is refused ---


@pytest.mark.parametrize(("weight", "message"), [
    (np.nan, "weight nan is not a finite number"), (np.inf, "weight inf is not a finite number"),
    (-np.inf, "weight -inf is not a finite number"), (-0.5, "weight -0.5 is negative"),
])  # fmt: skip
def test_bad_weights_are_refused(weight, message):
    with pytest.raises(DataError, match=message):
        check_weights(np.array([1, weight], dtype=np.float32))
    with pytest.raises(DataError, match=message):
        quantize(matrix([[1, weight]]), Rule())
    with pytest.raises(DataError, match=message):
        quantize_query(np.array([1], np.int32), np.array([weight], np.float32), Rule())


@pytest.mark.parametrize("scale", [0.0, -1.0, np.nan, np.inf])
def test_bad_scales_are_refused(scale):
    with pytest.raises(ConfigError, match=r"scale is .*; it must be a positive number"):
        Rule(scale)


@pytest.mark.parametrize("largest", [0, -1, 65536])
def test_bad_largest_impacts_are_refused(largest):
    with pytest.raises(
        ConfigError,
        match=rf"the largest impact is {largest}; it must lie "
        rf"in 1 to 65535",
    ):
        Rule(1.0, largest)


@pytest.mark.parametrize("bits", [1, 17])
def test_bad_bits_are_refused(bits):
    with pytest.raises(ConfigError, match=rf"bits is {bits}; it must be 2 to 16"):
        rule_from_range(1.0, bits)


def test_folding_needs_query_weights_and_only_folding_takes_them():
    with pytest.raises(ConfigError, match="a folded rule needs the query weights"):
        quantize(matrix([[1]]), Rule(folded=True))
    with pytest.raises(ConfigError, match="only a folded rule takes them"):
        quantize(matrix([[1]]), Rule(), np.array([1.0]))


# --- as stored ---


@pytest.mark.parametrize("rule", [Rule(), Rule(31.875, 255, True)])
def test_a_rule_comes_back_from_a_manifest(rule):
    assert Rule.from_json(rule.to_json()) == rule


def test_an_unknown_rounding_is_refused():
    with pytest.raises(
        ConfigError, match="rounding 'up' is unknown; this version knows 'half-even'"
    ):
        Rule.from_json({**Rule().to_json(), "rounding": "up"})
