"""Penalties: numbers worked by hand, numeric gradients, refusals, and one table for all who read it."""

from __future__ import annotations

import inspect
import json
import math

import pytest
import torch
from made_tensors import close, numbers, same_value_and_gradient
from small_runs import Killed, kill_at, make_config, make_trainer
from torch import Tensor

from sparse_ir.errors import ConfigError, DataError
from sparse_ir.training import model_card
from sparse_ir.training.objectives import losses, penalties
from sparse_ir.training.objectives.penalties import PENALTIES as TABLE
from sparse_ir.training.objectives.penalties import Penalty, PenaltySettings

NAN, INF = math.nan, math.inf
WEIGHTS = torch.tensor([[1.0, 2.0, 0.0], [3.0, 0.0, 0.0]])
IDF = numbers(6, seed=9) + 0.1


def test_flops_by_hand():
    close(penalties.flops(WEIGHTS), 5.0)  # means 2, 1, 0


def test_idf_flops_by_hand():
    idf = torch.tensor([2.0, 0.5, 1.0])
    close(penalties.idf_flops(WEIGHTS, idf), 1.0 + 4.0)
    close(penalties.idf_flops(WEIGHTS, idf, power=2), 0.25 + 16.0)
    close(penalties.idf_flops(WEIGHTS, torch.ones(3)), penalties.flops(WEIGHTS))


def test_df_flops_by_hand():
    # log_(1/2) 2 = -1: with beta 1 the factor is x itself, with beta 2 and x = 1/4 it is 1 / (1 +
    # 3²)
    shares = torch.tensor([0.25, 0.5, 1.0])
    close(penalties.df_flops(WEIGHTS, shares, alpha=0.5, beta=1.0), 0.25 * 4 + 0.5 * 1)
    close(penalties.df_flops(WEIGHTS, shares, alpha=0.5, beta=2.0), 0.1 * 4 + 0.5 * 1)


@pytest.mark.parametrize("beta", [0.5, 10.0, 1e3])
def test_df_flops_of_terms_everywhere_is_flops_and_of_terms_nowhere_is_zero(beta):
    close(penalties.df_flops(WEIGHTS, torch.ones(3), beta=beta), 5.0)
    close(penalties.df_flops(WEIGHTS, torch.zeros(3), beta=beta), 0.0)
    close(penalties.df_flops(WEIGHTS, torch.full((3,), 0.1), beta=beta), 2.5, rtol=1e-4, atol=0)


def test_l1_and_anti_zero_by_hand():
    close(penalties.l1(WEIGHTS), 3.0)
    close(penalties.l1(-WEIGHTS), 3.0)
    close(penalties.anti_zero(torch.tensor([[1.0, 1.0, 0.0]])), 0.25)
    close(penalties.anti_zero(torch.tensor([[1.0, 3.0, 0.0], [4.0, 0.0, 0.0]])), 1 / 64)


def test_flops_is_theirs():
    """On the same numbers as sentence-transformers."""
    from sentence_transformers.sparse_encoder import losses as peer

    values = numbers(8, 9, seed=32)
    weights = (values * (values > 0.55)).requires_grad_()
    theirs = peer.FlopsLoss(None).compute_loss_from_embeddings(weights)
    same_value_and_gradient(penalties.flops(weights), theirs, [weights])


PENALTIES = {
    "flops": penalties.flops,
    "idf_flops": lambda weights: penalties.idf_flops(weights, torch.ones(3)),
    "df_flops": lambda weights: penalties.df_flops(weights, torch.ones(3)),
    "l1": penalties.l1,
    "anti_zero": penalties.anti_zero,
}


@pytest.mark.parametrize("name", PENALTIES)
def test_penalties_refuse_nonsense(name):
    with pytest.raises(DataError, match="weights_NV has the shape"):
        PENALTIES[name](torch.ones(3))
    with pytest.raises(DataError, match=r"weights_NV has the shape \(0, 3\)"):
        PENALTIES[name](torch.ones(0, 3))
    with pytest.raises(DataError, match="floating point"):
        PENALTIES[name](torch.ones(2, 3).long())


@pytest.mark.parametrize("name", PENALTIES)
def test_penalties_refuse_nan(name):
    with pytest.raises(DataError, match=f"{name} is nan: a weight is NaN or infinite"):
        PENALTIES[name](torch.tensor([[1.0, NAN, 0.0], [1.0, 1.0, 1.0]]))


@pytest.mark.parametrize("name", PENALTIES)
def test_penalties_refuse_infinity(name):
    with pytest.raises(DataError, match=f"{name} is inf: a weight is NaN or infinite"):
        PENALTIES[name](torch.tensor([[1.0, INF, 0.0]]))


@pytest.mark.parametrize(
    "idf", [[1.0, 0.0, 1.0], [1.0, -1.0, 1.0], [1.0, NAN, 1.0], [1.0, INF, 1.0]]
)
def test_idf_must_be_above_zero(idf):
    with pytest.raises(DataError, match="idf_V holds a value that is not a finite number above 0"):
        penalties.idf_flops(WEIGHTS, torch.tensor(idf))


@pytest.mark.parametrize("share", [-0.1, 1.1, NAN])
def test_document_frequencies_must_be_shares(share):
    with pytest.raises(DataError, match=r"document_frequency_V holds a value outside 0\.\.1"):
        penalties.df_flops(WEIGHTS, torch.tensor([0.5, share, 0.5]))


def test_values_per_token_must_fit_the_vocabulary():
    with pytest.raises(
        DataError,
        match=r"idf_V has the shape \(2,\); it must be one value per token, \(3,\)",
    ):
        penalties.idf_flops(WEIGHTS, torch.ones(2))
    with pytest.raises(DataError, match=r"document_frequency_V has the shape \(4,\)"):
        penalties.df_flops(WEIGHTS, torch.ones(4))


def queries_and_documents() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    queries = (numbers(4, 9, seed=11) > 0.6).double()
    documents = numbers(7, 9, seed=12) * (numbers(7, 9, seed=13) > 0.4) + 0.0
    return queries, documents, 4 * numbers(9, seed=14) + 0.02, 5 * numbers(4, 7, seed=15)


def test_idf_in_the_score_with_flops_equals_flops_divided_by_idf():
    queries, documents, idf, teacher = queries_and_documents()
    d = documents.clone().requires_grad_()
    form_a = losses.kl_divergence((queries * idf) @ d.T, teacher) + 0.3 * penalties.flops(d)
    form_a.backward()
    u = (idf * documents).requires_grad_()
    form_b = losses.kl_divergence(queries @ u.T, teacher) + 0.3 * penalties.idf_flops(u, idf)
    form_b.backward()
    close(form_a, form_b, rtol=1e-13, atol=0)
    close(d.grad, idf * u.grad, rtol=1e-11, atol=1e-15)
    assert d.grad.abs().min(dim=1).values.max() > 0


def test_power_2_is_another_objective():
    _, documents, idf, _ = queries_and_documents()
    d = documents.clone().requires_grad_()
    plain, third = penalties.flops(d), penalties.idf_flops(idf * d, idf, power=2)
    # an IDF in the score and another one in the penalty
    close(third, penalties.idf_flops(documents, idf))
    of_plain, of_third = (torch.autograd.grad(loss, d)[0][0] for loss in (plain, third))
    cosine = torch.nn.functional.cosine_similarity(of_plain, of_third, dim=0)
    assert cosine < 0.9  # no lambda makes the one into the other
    close(of_third / of_plain, 1 / idf**2)  # its push on a rare term is weaker by idf²


def test_a_side_that_is_silent_has_a_finite_anti_zero_loss_without_gradient():
    weights = torch.zeros(2, 3, requires_grad=True)
    value = penalties.anti_zero(weights)
    assert float(value.detach()) == pytest.approx(1e12)
    value.backward()
    assert not weights.grad.any()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: penalties.idf_flops(WEIGHTS, torch.ones(3), power=3),
            "power is 3; it must be 1 or 2",
        ),
        (lambda: penalties.df_flops(WEIGHTS, torch.ones(3), alpha=1.0), "alpha is 1.0"),
        (lambda: penalties.df_flops(WEIGHTS, torch.ones(3), alpha=0.0), "alpha is 0.0"),
        (lambda: penalties.df_flops(WEIGHTS, torch.ones(3), beta=0.0), "beta is 0.0; it must be"),
    ],
)
def test_options_that_are_not_allowed(call, message):
    with pytest.raises(ConfigError, match=message):
        call()


# --- numeric gradients ---

DIFFERENTIABLE = {
    "flops": penalties.flops,
    "idf_flops": lambda x: penalties.idf_flops(x, IDF),
    "idf_flops, power 2": lambda x: penalties.idf_flops(x, IDF, power=2),
    "df_flops": lambda x: penalties.df_flops(x, IDF / 2),
    "l1": penalties.l1,
    "anti_zero": penalties.anti_zero,
}


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_gradient_is_the_numeric_one(name):
    values = numbers(4, 6, seed=3, requires_grad=True)
    function = DIFFERENTIABLE[name]
    assert function(values).dtype == torch.float64
    assert torch.autograd.gradcheck(function, (values,), eps=1e-7, atol=1e-5, rtol=1e-4)


def test_every_penalty_is_checked_by_numeric_gradients():
    assert {*TABLE, "anti_zero"} == {name.split(",")[0] for name in DIFFERENTIABLE}


@pytest.mark.parametrize("name", DIFFERENTIABLE)
@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(name, half):
    values = numbers(4, 6, seed=3).to(half).requires_grad_()
    function = DIFFERENTIABLE[name]
    found = function(values)
    assert found.dtype == torch.float32
    assert torch.equal(found, function(values.detach().float()))
    found.backward()
    assert values.grad.dtype == half and values.grad.isfinite().all()


# --- the table ---


@pytest.mark.parametrize("name", TABLE)
def test_an_entry_names_all_that_its_formula_takes(name):
    entry = TABLE[name]
    _, *taken = inspect.signature(entry.formula).parameters
    assert sorted(taken) == sorted([*entry.token_facts, *entry.settings])


def test_an_unknown_penalty_is_refused_when_the_configuration_is_read(tiny_folder, pairs_file):
    with pytest.raises(
        ConfigError,
        match=r"documents\.penalty is 'lasso' but must be 'none', 'flops', .* or 'l1'",
    ):
        make_config(tiny_folder, pairs_file, documents={"penalty": "lasso", "weight": 1.0})


def cubes(weights_NV: Tensor, idf_V: Tensor, alpha: float) -> Tensor:
    return (weights_NV.mean(0) / idf_V).pow(3).sum() * alpha


@pytest.fixture
def cubes_in_the_table(monkeypatch):
    """A penalty that only the table knows; it has a setting and needs the IDF."""
    entry = Penalty(
        cubes,
        "Cubes: the sum over all tokens of the cubed mean weight divided by the IDF",
        settings=("alpha",),
        token_facts=("idf_V",),
        details="factor {alpha:.10g}",
    )
    monkeypatch.setitem(TABLE, "cubes", entry)


def test_a_penalty_in_the_table_is_trained_resumed_and_described(
    cubes_in_the_table, tiny_folder, pairs_file, tmp_path, monkeypatch
):
    """An entry of the table is all that a new penalty needs."""
    config = make_config(
        tiny_folder,
        pairs_file,
        model={"query": "ones"},
        documents={"penalty": "cubes", "weight": 0.5, "ramp_steps": 2, "alpha": 0.25},
    )
    whole = make_trainer(config, tmp_path / "whole")
    report = whole.run()
    with monkeypatch.context() as patch:
        kill_at(patch, 5)
        with pytest.raises(Killed):
            make_trainer(config, tmp_path / "cut").run()
    cut = make_trainer(config, tmp_path / "cut")
    cut.run()
    for name, tensor in whole.student.tensors().items():
        assert torch.equal(tensor, cut.student.tensors()[name]), name
    logs = [(tmp_path / run / "log.jsonl").read_text() for run in ("whole", "cut")]
    assert logs[0] == logs[1]

    first = json.loads(logs[0].splitlines()[0])
    fresh = make_trainer(config, tmp_path / "fresh")
    documents = fresh.batches.at(0).documents
    weights_NV = fresh.student(fresh.student.tokenize_documents(documents)).detach()
    idf_V = fresh.setup.idf_V.masked_fill(fresh.setup.idf_V == 0, 1.0)
    expected = float(cubes(weights_NV, idf_V, 0.25))
    assert first["documents_penalty"] == pytest.approx(expected, rel=1e-5)

    model_card.write_card(
        tmp_path / "whole" / "model", config, sources=whole.batches.describe(), report=report
    )
    card = (tmp_path / "whole" / "model" / "README.md").read_text()
    assert (
        "Penalty on documents: Cubes: the sum over all tokens of the cubed mean weight divided by "
        "the IDF; lambda 0.5; quadratic ramp over 2 steps; factor 0.25." in card
    )


def test_a_setting_of_the_table_is_refused_where_nothing_reads_it(
    cubes_in_the_table, tiny_folder, pairs_file
):
    with pytest.raises(
        ConfigError, match=r"beta is 6\.0, but penalty is 'cubes'.* is for df_flops"
    ):
        make_config(
            tiny_folder, pairs_file, documents={"penalty": "cubes", "weight": 1.0, "beta": 6.0}
        )


def test_a_penalty_in_the_words_of_the_model_card():
    settings = PenaltySettings("df_flops", target_terms=50.0, ramp_steps=1000)
    assert penalties.describe(settings) == (
        "DF-FLOPS: FLOPS in which a token counts the more, the more documents it is active in; "
        "lambda controlled towards 50 active terms; to be reached within 1,000 steps; alpha 0.1, "
        "beta 5"
    )
    assert penalties.describe(PenaltySettings("none")) == "none"
    assert penalties.describe(PenaltySettings("none", anti_zero=0.5)) == (
        "none; plus 0.5 times the anti-zero loss"
    )
