"""Losses: numbers worked by hand, numeric gradients, other people's losses on the same numbers,
every refusal.
"""

from __future__ import annotations

import inspect
import math

import pytest
import torch
from made_tensors import close, numbers, same_value_and_gradient
from small_runs import Constant, make_config, make_trainer
from torch import Tensor

from sparse_ir.errors import ConfigError, DataError
from sparse_ir.training import model_card
from sparse_ir.training.objectives import losses
from sparse_ir.training.objectives.losses import LOSSES, RankingLoss

LN2, LN3 = math.log(2), math.log(3)
NAN, INF = math.nan, math.inf


def tensor(rows: list) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


# --- worked by hand ---


def test_info_nce_by_hand():
    # softmax of (0, ln 3) is (1/4, 3/4), of (ln 2, 0) is (2/3, 1/3): (ln 4/3 + ln 3/2) / 2 = ln 2 /
    # 2
    scores = tensor([[0.0, LN3], [LN2, 0.0]])
    close(losses.info_nce(scores, torch.tensor([1, 0])), LN2 / 2)
    close(losses.info_nce(2 * scores, torch.tensor([1, 0]), temperature=2.0), LN2 / 2)


def test_info_nce_keeps_a_document_that_is_not_allowed_out_of_value_and_gradient():
    scores = tensor([[0.0, LN3, 50.0]]).requires_grad_()
    loss = losses.info_nce(scores, torch.tensor([1]), torch.tensor([[True, True, False]]))
    close(loss, math.log(4 / 3))
    loss.backward()
    close(scores.grad, [[0.25, -0.25, 0.0]])


def test_kl_divergence_by_hand():
    # p = (1/4, 3/4), q = (1/2, 1/2): 1/4 ln 1/2 + 3/4 ln 3/2; the second query agrees with its
    # teacher and adds 0
    student, teacher = tensor([[5.0, 5.0], [1.0, 2.0]]), tensor([[0.0, LN3], [11.0, 12.0]])
    wanted = (math.log(1 / 2) / 4 + 3 * math.log(3 / 2) / 4) / 2
    close(losses.kl_divergence(student, teacher), wanted)
    close(losses.kl_divergence(4 * student, 4 * teacher, temperature=4.0), wanted)


def test_kl_divergence_drops_an_unscored_pair_from_both_softmaxes():
    student = tensor([[5.0, 9.0, 5.0]]).requires_grad_()
    loss = losses.kl_divergence(student, tensor([[0.0, NAN, LN3]]))
    close(loss, math.log(1 / 2) / 4 + 3 * math.log(3 / 2) / 4)
    loss.backward()
    close(student.grad, [[0.25, 0.0, -0.25]])
    same = losses.kl_divergence(
        student, tensor([[0.0, 7.0, LN3]]), torch.tensor([[True, False, True]])
    )
    close(same, loss)


def test_kl_divergence_does_not_read_the_teacher_of_a_pair_that_is_not_allowed():
    student, allowed = tensor([[5.0, 9.0, 5.0]]), torch.tensor([[True, False, True]])
    found = [
        losses.kl_divergence(student, tensor([[0.0, x, LN3]]), allowed).item()
        for x in (3.0, NAN, INF)
    ]
    assert found[0] == found[1] == found[2]


def test_one_candidate_alone_has_nothing_to_learn():
    close(losses.kl_divergence(tensor([[3.0, 4.0]]), tensor([[8.0, NAN]])), 0.0)
    close(losses.info_nce(tensor([[3.0]]), torch.tensor([0])), 0.0)


def test_margin_mse_by_hand():
    # margins of the student 2, 3 and of the teacher 1, 3: squared errors 1, 0
    student, teacher = tensor([[3.0, 1.0, 0.0]]), tensor([[10.0, 9.0, 7.0]])
    close(losses.margin_mse(student, teacher, torch.tensor([0])), 0.5)
    # positive in column 1: student -2, 1; teacher -1, 2: 1, 1
    close(losses.margin_mse(student, teacher, torch.tensor([1])), 1.0)


def test_margin_mse_weighs_pairs_not_queries():
    student = tensor([[3.0, 1.0, 0.0], [3.0, 1.0, 0.0]])
    teacher = tensor([[10.0, 9.0, 7.0], [10.0, NAN, 5.0]])  # squared errors 1, 0 and then 4
    close(losses.margin_mse(student, teacher, torch.tensor([0, 0])), 5 / 3)
    allowed = torch.tensor([[True, False, True], [True, True, True]])
    close(losses.margin_mse(student, teacher, torch.tensor([0, 0]), allowed), 4 / 2)


def test_margin_mse_of_a_query_without_a_scored_negative_adds_no_pair():
    student, teacher = tensor([[3.0, 1.0], [3.0, 1.0]]), tensor([[10.0, 9.0], [10.0, NAN]])
    close(losses.margin_mse(student, teacher, torch.tensor([0, 0])), 1.0)


def test_min_max_by_hand():
    close(
        losses.min_max(tensor([[2.0, 4.0, 3.0], [7.0, 7.0, 7.0]])),
        [[0.0, 1.0, 0.5], [0.0, 0.0, 0.0]],
    )


def test_min_max_looks_only_at_pairs_that_are_allowed_and_scored():
    found = losses.min_max(
        tensor([[2.0, 4.0, 99.0, NAN, 3.0]]), torch.tensor([[True, True, False, True, True]])
    )
    close(found, [[0.0, 1.0, NAN, NAN, 0.5]], equal_nan=True, rtol=0, atol=0)


def test_min_max_has_no_epsilon_and_reaches_one_for_the_narrowest_range():
    row = torch.tensor([[1.0, 1.0 + 2**-23, 1.0]])
    assert losses.min_max(row).tolist() == [[0.0, 1.0, 0.0]]


def test_ensemble_by_hand():
    dense, bm25 = tensor([[2.0, 4.0, 3.0]]), tensor([[10.0, 0.0, 5.0]])
    close(losses.ensemble([dense, bm25], scale=10.0), [[5.0, 5.0, 5.0]])
    close(losses.ensemble([dense, bm25], [3.0, 1.0], 10.0), [[2.5, 7.5, 5.0]])
    close(losses.ensemble([dense, bm25], [0.75, 0.25], 10.0), [[2.5, 7.5, 5.0]])
    close(losses.ensemble([dense, bm25], [3.0, 1.0], 10.0, "none"), [[40.0, 30.0, 35.0]])


@pytest.mark.parametrize("normalization", ["minmax", "none"])
def test_ensemble_marks_what_a_teacher_has_not_scored(normalization):
    dense, bm25 = tensor([[2.0, 4.0, 3.0, 8.0]]), tensor([[10.0, NAN, 5.0, 1.0]])
    allowed = torch.tensor([[True, True, True, False]])
    found = losses.ensemble([dense, bm25], normalization=normalization, allowed_QD=allowed)
    assert found.isnan().tolist() == [[False, True, False, True]]
    alone = losses.ensemble([dense, bm25], [1.0, 0.0], 3.0, normalization, allowed)
    one = losses.ensemble([dense], None, 3.0, normalization, allowed)
    close(alone, one, equal_nan=True)
    assert not alone[0, :3].isnan().any()


# --- numeric gradients ---

POSITIVE = torch.tensor([1, 0, 3])
ALLOWED = torch.tensor([[1, 1, 1, 0, 1], [1, 0, 1, 1, 1], [0, 1, 1, 1, 1]]).bool()
TEACHER = numbers(3, 5, seed=7).masked_fill(torch.eye(3, 5).bool().roll(2, 1), NAN)

DIFFERENTIABLE = {
    "info_nce": (lambda x: losses.info_nce(x, POSITIVE, ALLOWED, 0.7), (3, 5)),
    "kl_divergence": (lambda x: losses.kl_divergence(x, TEACHER, ALLOWED, 0.7), (3, 5)),
    "margin_mse": (lambda x: losses.margin_mse(x, TEACHER, POSITIVE, ALLOWED), (3, 5)),
    "min_max": (lambda x: losses.min_max(x, ALLOWED).nan_to_num(), (3, 5)),
    "ensemble": (
        lambda x: losses.ensemble([x, x**2], [1, 3], 10, "minmax", ALLOWED).nan_to_num(),
        (3, 5),
    ),
}


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_gradient_is_the_numeric_one(name):
    function, shape = DIFFERENTIABLE[name]
    values = numbers(*shape, seed=3, requires_grad=True)
    assert function(values).dtype == torch.float64
    assert torch.autograd.gradcheck(function, (values,), eps=1e-7, atol=1e-5, rtol=1e-4)


def test_every_loss_is_checked_by_numeric_gradients():
    formulas = {entry.formula.__name__ for entry in LOSSES.values()}
    assert {*formulas, "min_max", "ensemble"} == set(DIFFERENTIABLE)


@pytest.mark.parametrize("name", DIFFERENTIABLE)
@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(name, half):
    function, shape = DIFFERENTIABLE[name]
    values = numbers(*shape, seed=3).to(half).requires_grad_()
    found = function(values)
    assert found.dtype == torch.float32
    if name != "ensemble":  # its x**2 is rounded before the loss sees it
        assert torch.equal(found, function(values.detach().float()))
    found.sum().backward()
    assert values.grad.dtype == half and values.grad.isfinite().all()


def test_huge_scores_stay_finite_in_float32():
    scores = torch.tensor([[3e4, -3e4, 0.0], [0.0, 3e4, -3e4]], requires_grad=True)
    teacher = torch.tensor([[-1e4, 1e4, NAN], [1e4, -1e4, 0.0]])
    far = losses.info_nce(scores, torch.tensor([1, 0])) + losses.kl_divergence(scores, teacher)
    close(far, (6e4 + 3e4) / 2 + (6e4 + 3e4) / 2, rtol=1e-6, atol=0)
    far.backward()
    assert scores.grad.isfinite().all()


def test_no_gradient_flows_into_the_teacher():
    scores, teacher = numbers(3, 5, requires_grad=True), numbers(3, 5, seed=1, requires_grad=True)
    (
        losses.kl_divergence(scores, teacher) + losses.margin_mse(scores, teacher, POSITIVE)
    ).backward()
    assert scores.grad.abs().sum() > 0
    assert teacher.grad is None


def test_arguments_are_not_changed():
    scores, teacher, allowed = numbers(3, 5), TEACHER.clone(), ALLOWED.clone()
    before = [x.clone() for x in (scores, teacher, allowed)]
    losses.margin_mse(scores, teacher, POSITIVE, allowed)
    losses.kl_divergence(scores, losses.ensemble([teacher, scores], allowed_QD=allowed), allowed)
    for old, new in zip(before, (scores, teacher, allowed), strict=True):
        assert torch.equal(old.nan_to_num(-1.0), new.nan_to_num(-1.0))


# --- sentence-transformers, same numbers ---


@pytest.fixture(scope="module")
def peer():
    from sentence_transformers.sparse_encoder import losses as peer_losses

    return peer_losses


def columns(queries: int = 4, negatives: int = 2) -> list[Tensor]:
    return [
        2 * numbers(queries, 9, seed=20 + column, requires_grad=False)
        for column in range(2 + negatives)
    ]


def pairwise(embeddings: list[Tensor]) -> Tensor:
    return torch.stack([(embeddings[0] * documents).sum(1) for documents in embeddings[1:]], dim=1)


@pytest.mark.parametrize("scale", [1.0, 4.0])
@pytest.mark.parametrize("negatives", [0, 2])
def test_info_nce_is_their_multiple_negatives_ranking_loss(peer, scale, negatives):
    embeddings = [e.requires_grad_() for e in columns(negatives=negatives)]
    theirs = peer.SparseMultipleNegativesRankingLoss(
        None, scale=scale
    ).compute_loss_from_embeddings(embeddings, None)
    scores = embeddings[0] @ torch.cat(embeddings[1:]).T
    same_value_and_gradient(
        losses.info_nce(scores, torch.arange(4), temperature=1 / scale), theirs, embeddings
    )


@pytest.mark.parametrize("negatives", [1, 3])
def test_margin_mse_is_their_margin_mse(peer, negatives):
    embeddings = [e.requires_grad_() for e in columns(negatives=negatives)]
    teacher = 10 * numbers(4, 1 + negatives, seed=30)
    theirs = peer.SparseMarginMSELoss(None).compute_loss_from_embeddings(embeddings, teacher)
    ours = losses.margin_mse(pairwise(embeddings), teacher, torch.zeros(4, dtype=torch.int64))
    same_value_and_gradient(ours, theirs, embeddings)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_kl_divergence_is_theirs_without_the_squared_temperature(peer, temperature):
    embeddings = [e.requires_grad_() for e in columns()]
    teacher = 10 * numbers(4, 3, seed=31)
    loss = peer.SparseDistillKLDivLoss(None, temperature=temperature)
    theirs = loss.compute_loss_from_embeddings(embeddings, teacher)
    ours = (
        losses.kl_divergence(pairwise(embeddings), teacher, temperature=temperature)
        * temperature**2
    )
    same_value_and_gradient(ours, theirs, embeddings)


# --- refusals ---

GOOD = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
FIRST = torch.tensor([0, 0])


def rank(
    name: str, scores: Tensor = GOOD, allowed: Tensor | None = None, **options: float
) -> Tensor:
    function = getattr(losses, name)
    if name == "info_nce":
        return function(scores, FIRST, allowed, **options)
    if name == "kl_divergence":
        return function(scores, torch.ones(2, 2), allowed, **options)
    return function(scores, torch.ones(2, 2), FIRST, allowed)


RANKING = ("info_nce", "kl_divergence", "margin_mse")


@pytest.mark.parametrize("name", RANKING)
@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_student_scores_must_be_finite(name, bad):
    with pytest.raises(
        DataError, match="query 1 of the batch: a score of the model is NaN or infinite"
    ):
        rank(name, torch.tensor([[1.0, 2.0], [3.0, bad]]))


@pytest.mark.parametrize("name", RANKING)
def test_a_query_needs_an_allowed_document(name):
    with pytest.raises(DataError, match="query 1 of the batch: no document is allowed"):
        rank(name, allowed=torch.tensor([[True, True], [False, False]]))


@pytest.mark.parametrize("name", RANKING)
@pytest.mark.parametrize(
    "allowed", [torch.ones(2, 2), torch.ones(2, 3).bool(), torch.ones(2).bool()]
)
def test_allowed_must_be_bool_and_of_the_shape_of_the_scores(name, allowed):
    with pytest.raises(DataError, match=r"allowed_QD is torch.*must be torch.bool \(2, 2\)"):
        rank(name, allowed=allowed)


@pytest.mark.parametrize("name", RANKING)
@pytest.mark.parametrize("shape", [(2,), (2, 2, 1), (0, 2), (2, 0)])
def test_scores_need_two_dimensions_with_something_in_them(name, shape):
    with pytest.raises(
        DataError, match=r"scores_QD has the shape .* must have two dimensions of at least 1"
    ):
        rank(name, torch.ones(shape))


@pytest.mark.parametrize("name", RANKING)
def test_scores_must_be_floating(name):
    with pytest.raises(
        DataError, match=r"scores_QD is torch.int64; it must have a floating point type"
    ):
        rank(name, torch.ones(2, 2).long())


@pytest.mark.parametrize("name", ["info_nce", "kl_divergence"])
@pytest.mark.parametrize("temperature", [0.0, -1.0, NAN, INF])
def test_temperature_must_be_above_zero(name, temperature):
    with pytest.raises(ConfigError, match=r"temperature is .* must be a finite number above 0"):
        rank(name, temperature=temperature)


@pytest.mark.parametrize(
    "function",
    [
        lambda positive, allowed=None: losses.info_nce(GOOD, positive, allowed),
        lambda positive, allowed=None: losses.margin_mse(GOOD, GOOD, positive, allowed),
    ],
)
def test_positives_must_be_candidates(function):
    with pytest.raises(DataError, match="query 1 of the batch: its positive is not allowed"):
        function(torch.tensor([0, 1]), torch.tensor([[True, True], [True, False]]))
    for outside in (2, -1):
        with pytest.raises(
            DataError, match="query 1 of the batch: its positive is not one of the 2 documents"
        ):
            function(torch.tensor([0, outside]))
    for wrong in (torch.tensor([0.0, 1.0]), torch.tensor([0]), torch.tensor([[0, 1]])):
        with pytest.raises(DataError, match=r"positive_Q is .*must be torch.int64 \(2,\)"):
            function(wrong)


TEACHING = {
    "kl_divergence": lambda teacher, allowed=None: losses.kl_divergence(GOOD, teacher, allowed),
    "margin_mse": lambda teacher, allowed=None: losses.margin_mse(GOOD, teacher, FIRST, allowed),
    "min_max": losses.min_max,
    "ensemble": lambda teacher, allowed=None: losses.ensemble([teacher], allowed_QD=allowed),
    "ensemble, none": lambda t, allowed=None: losses.ensemble(
        [t], normalization="none", allowed_QD=allowed
    ),
}


@pytest.mark.parametrize("name", TEACHING)
def test_a_query_needs_a_scored_candidate(name):
    with pytest.raises(
        DataError,
        match=r"query 0 of the batch: the teacher scored none of its "
        r"candidates",
    ):
        TEACHING[name](torch.tensor([[NAN, NAN], [1.0, 2.0]]))
    with pytest.raises(
        DataError,
        match=r"query 1 of the batch: the teacher scored none of its "
        r"candidates",
    ):
        TEACHING[name](
            torch.tensor([[1.0, 2.0], [NAN, 2.0]]), torch.tensor([[True, True], [True, False]])
        )


@pytest.mark.parametrize("name", TEACHING)
@pytest.mark.parametrize("bad", [INF, -INF])
def test_teacher_scores_must_not_be_infinite(name, bad):
    with pytest.raises(
        DataError, match="query 1 of the batch: a teacher's score of an allowed pair is infinite"
    ):
        TEACHING[name](torch.tensor([[1.0, 2.0], [3.0, bad]]))


@pytest.mark.parametrize("name", TEACHING)
def test_teacher_shapes_and_types(name):
    with pytest.raises(DataError, match="shape"):
        TEACHING[name](torch.ones(3))
    with pytest.raises(DataError, match=r"teacher_QD is torch.int64|scores_QD is torch.int64"):
        TEACHING[name](torch.ones(2, 2).long())
    if name in RANKING:
        with pytest.raises(
            DataError, match=r"teacher_QD has the shape \(2, 3\); it must be \(2, 2\)"
        ):
            TEACHING[name](torch.ones(2, 3))


def test_margin_mse_needs_the_positives_score_and_a_pair():
    with pytest.raises(
        DataError, match="query 1 of the batch: the teacher's score of the positive is NaN"
    ):
        losses.margin_mse(GOOD, torch.tensor([[1.0, 2.0], [NAN, 2.0]]), FIRST)
    with pytest.raises(
        DataError, match="no query of the batch has a negative with a teacher score"
    ):
        losses.margin_mse(GOOD, torch.tensor([[1.0, NAN], [1.0, NAN]]), FIRST)


@pytest.mark.parametrize(
    ("teachers", "options", "message"),
    [
        ([], {}, "teachers is empty"),
        ([GOOD], {"weights": [1, 2]}, "weights has 2 numbers for 1 teachers"),
        ([GOOD], {"weights": [0]}, "not all 0"),
        ([GOOD, GOOD], {"weights": [2, -1]}, "finite numbers of 0 or more"),
        ([GOOD], {"weights": [NAN]}, "finite numbers of 0 or more"),
        ([GOOD], {"scale": 0}, "scale is 0; it must be a finite number above 0"),
        (
            [GOOD],
            {"normalization": "zscore"},
            "normalization is 'zscore'; it must be 'minmax' or 'none'",
        ),
    ],
)
def test_ensemble_options(teachers, options, message):
    with pytest.raises(ConfigError, match=message):
        losses.ensemble(teachers, **options)


def test_ensemble_needs_teachers_of_one_shape():
    with pytest.raises(DataError, match=r"teachers have the shapes \[\(2, 2\), \(2, 3\)\]"):
        losses.ensemble([GOOD, torch.ones(2, 3)])


# --- the table ---


@pytest.mark.parametrize("name", LOSSES)
def test_an_entry_names_all_that_its_formula_takes(name):
    entry = LOSSES[name]
    _, *taken = inspect.signature(entry.formula).parameters
    assert sorted(taken) == sorted([*entry.batch_facts, *entry.settings])


def squares(scores_QD: Tensor, teacher_QD: Tensor, temperature: float) -> Tensor:
    return (scores_QD / temperature - teacher_QD.nan_to_num()).square().mean()


def test_a_loss_in_the_table_is_trained_and_described(
    tiny_folder, pairs_file, tmp_path, monkeypatch
):
    """An entry of the table is all that a new loss needs."""
    entry = RankingLoss(
        squares,
        "Squares, the squared difference of scores",
        batch_facts=("teacher_QD",),
        settings=("temperature",),
    )
    monkeypatch.setitem(LOSSES, "squares", entry)
    loss = [{"name": "squares", "temperature": 2.0}]
    with pytest.raises(ConfigError, match="kl and margin_mse and squares need"):
        make_config(tiny_folder, pairs_file, loss=loss)
    config = make_config(
        tiny_folder, pairs_file, loss=loss, teacher=[{"kind": "bm25"}], run={"steps": 2}
    )
    trainer = make_trainer(config, tmp_path, teachers=[(Constant(), 1.0)])
    report = trainer.run()
    assert '"squares": ' in (tmp_path / "log.jsonl").read_text()
    model_card.write_card(
        tmp_path / "model", config, sources=trainer.batches.describe(), report=report
    )
    card = (tmp_path / "model" / "README.md").read_text()
    sentence = "Loss: Squares, the squared difference of scores; weight 1, temperature 2."
    assert sentence in card
