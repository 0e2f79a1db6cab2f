"""Losses: numbers worked by hand, numeric gradients, other people's losses on the same numbers,
every refusal.
"""

import inspect
import math

import pytest
import torch
from torch import Tensor

from sparse_ir.errors import ConfigError, DataError
from sparse_ir.training import losses, penalties
from sparse_ir.training.penalties import LAMBDA_ORIGINS

LN2, LN3 = math.log(2), math.log(3)
NAN, INF = math.nan, math.inf
WEIGHTS = torch.tensor([[1.0, 2.0, 0.0], [3.0, 0.0, 0.0]])


def numbers(*shape: int, seed: int = 0, requires_grad: bool = False) -> Tensor:
    made = torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return made.requires_grad_(requires_grad)


def tensor(rows: list) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def close(found: Tensor | float, wanted: Tensor | float, **tolerance: float) -> None:
    torch.testing.assert_close(
        torch.as_tensor(found, dtype=torch.float64),
        torch.as_tensor(wanted, dtype=torch.float64),
        **tolerance,
    )


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


def test_flops_by_hand():
    close(penalties.flops(WEIGHTS), 5.0)  # means 2, 1, 0
    close(penalties.flops(WEIGHTS, 0), 5.0)
    # the second text is exempt, N stays 2: means 1/2, 1, 0
    close(penalties.flops(WEIGHTS, 1), 1.25)
    close(penalties.flops(WEIGHTS, 2), 0.0)


def test_an_exempt_text_gets_no_gradient():
    weights = WEIGHTS.clone().requires_grad_()
    penalties.flops(weights, 1).backward()
    close(weights.grad, [[0.5, 1.0, 0.0], [0.0, 0.0, 0.0]])


def test_idf_flops_by_hand():
    idf = torch.tensor([2.0, 0.5, 1.0])
    close(penalties.idf_flops(WEIGHTS, idf), 1.0 + 4.0)
    close(penalties.idf_flops(WEIGHTS, idf, power=2), 0.25 + 16.0)
    close(penalties.idf_flops(WEIGHTS, idf, exempt_up_to=1), 0.0625 + 4.0)
    close(penalties.idf_flops(WEIGHTS, torch.ones(3)), penalties.flops(WEIGHTS))


def test_df_flops_by_hand():
    # log_(1/2) 2 = -1: with beta 1 the factor is x itself, with beta 2 and x = 1/4 it is 1 / (1 +
    # 3²)
    shares = torch.tensor([0.25, 0.5, 1.0])
    close(penalties.df_flops(WEIGHTS, shares, alpha=0.5, beta=1.0), 0.25 * 4 + 0.5 * 1)
    close(penalties.df_flops(WEIGHTS, shares, alpha=0.5, beta=2.0), 0.1 * 4 + 0.5 * 1)
    close(penalties.df_flops(WEIGHTS, shares, 0.5, 2.0, exempt_up_to=1), 0.1 * 0.25 + 0.5 * 1)


@pytest.mark.parametrize("beta", [0.5, 10.0, 1e3])
def test_df_flops_of_terms_everywhere_is_flops_and_of_terms_nowhere_is_zero(beta):
    close(penalties.df_flops(WEIGHTS, torch.ones(3), beta=beta), 5.0)
    close(penalties.df_flops(WEIGHTS, torch.zeros(3), beta=beta), 0.0)
    close(penalties.df_flops(WEIGHTS, torch.full((3,), 0.1), beta=beta), 2.5, rtol=1e-4, atol=0)


def test_l1_and_anti_zero_by_hand():
    close(penalties.l1(WEIGHTS), 3.0)
    close(penalties.l1(-WEIGHTS), 3.0)
    close(
        penalties.anti_zero(torch.tensor([[1.0, 1.0, 0.0]]), torch.tensor([[1.0, 3.0, 0.0]])),
        0.25 + 0.0625,
    )


def test_ramp_by_hand():
    assert [penalties.ramp(step, 4) for step in range(7)] == [
        0.0,
        0.0625,
        0.25,
        0.5625,
        1.0,
        1.0,
        1.0,
    ]
    assert penalties.ramp(0, 0) == 1.0


# --- numeric gradients ---

POSITIVE = torch.tensor([1, 0, 3])
ALLOWED = torch.tensor([[1, 1, 1, 0, 1], [1, 0, 1, 1, 1], [0, 1, 1, 1, 1]]).bool()
TEACHER = numbers(3, 5, seed=7).masked_fill(torch.eye(3, 5).bool().roll(2, 1), NAN)
IDF = numbers(6, seed=9) + 0.1

DIFFERENTIABLE = {
    "info_nce": (lambda x: losses.info_nce(x, POSITIVE, ALLOWED, 0.7), (3, 5)),
    "kl_divergence": (lambda x: losses.kl_divergence(x, TEACHER, ALLOWED, 0.7), (3, 5)),
    "margin_mse": (lambda x: losses.margin_mse(x, TEACHER, POSITIVE, ALLOWED), (3, 5)),
    "min_max": (lambda x: losses.min_max(x, ALLOWED).nan_to_num(), (3, 5)),
    "ensemble": (
        lambda x: losses.ensemble([x, x**2], [1, 3], 10, "minmax", ALLOWED).nan_to_num(),
        (3, 5),
    ),
    "flops": (penalties.flops, (4, 6)),
    "flops, masked": (lambda x: penalties.flops(x * (x > 0.3), 3), (4, 6)),
    "idf_flops": (lambda x: penalties.idf_flops(x, IDF), (4, 6)),
    "idf_flops, power 2": (lambda x: penalties.idf_flops(x, IDF, power=2), (4, 6)),
    "df_flops": (lambda x: penalties.df_flops(x, IDF / 2), (4, 6)),
    "l1": (penalties.l1, (4, 6)),
    "anti_zero": (lambda x: penalties.anti_zero(x[:2], x[2:]), (4, 6)),
}


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_gradient_is_the_numeric_one(name):
    function, shape = DIFFERENTIABLE[name]
    values = numbers(*shape, seed=3, requires_grad=True)
    assert function(values).dtype == torch.float64
    assert torch.autograd.gradcheck(function, (values,), eps=1e-7, atol=1e-5, rtol=1e-4)


def test_the_gradcheck_table_holds_every_loss():
    tensors = {
        n for n, f in inspect.getmembers(losses, inspect.isfunction) if not n.startswith("_")
    }
    assert tensors - {"ramp", "translate_lambda"} == {name.split(",")[0] for name in DIFFERENTIABLE}


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
    scores, teacher, allowed, weights = (
        numbers(3, 5),
        TEACHER.clone(),
        ALLOWED.clone(),
        numbers(4, 6),
    )
    before = [x.clone() for x in (scores, teacher, allowed, weights)]
    losses.margin_mse(scores, teacher, POSITIVE, allowed)
    losses.kl_divergence(scores, losses.ensemble([teacher, scores], allowed_QD=allowed), allowed)
    penalties.flops(weights, 3)
    for old, new in zip(before, (scores, teacher, allowed, weights), strict=True):
        assert torch.equal(old.nan_to_num(-1.0), new.nan_to_num(-1.0))


# --- form A = form B, and the third form ---


def queries_and_documents() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    queries = (numbers(4, 9, seed=11) > 0.6).double()
    documents = numbers(7, 9, seed=12) * (numbers(7, 9, seed=13) > 0.4) + 0.0
    return queries, documents, 4 * numbers(9, seed=14) + 0.02, 5 * numbers(4, 7, seed=15)


@pytest.mark.parametrize("exempt_up_to", [None, 5])
def test_idf_in_the_score_with_flops_equals_flops_divided_by_idf(exempt_up_to):
    queries, documents, idf, teacher = queries_and_documents()
    d = documents.clone().requires_grad_()
    form_a = losses.kl_divergence((queries * idf) @ d.T, teacher) + 0.3 * penalties.flops(
        d, exempt_up_to
    )
    form_a.backward()
    u = (idf * documents).requires_grad_()
    form_b = losses.kl_divergence(queries @ u.T, teacher) + 0.3 * penalties.idf_flops(
        u, idf, exempt_up_to=exempt_up_to
    )
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


def same_value_and_gradient(ours: Tensor, theirs: Tensor, inputs: list[Tensor]) -> None:
    close(ours, theirs, rtol=1e-12, atol=0)
    for mine, other in zip(
        torch.autograd.grad(ours, inputs), torch.autograd.grad(theirs, inputs), strict=True
    ):
        close(mine, other, rtol=1e-10, atol=1e-13)


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


@pytest.mark.parametrize("threshold", [None, 0, 3, 4, 9])
def test_flops_is_theirs_with_and_without_the_mask(peer, threshold):
    values = numbers(8, 9, seed=32)
    weights = (values * (values > 0.55)).requires_grad_()
    assert len(set((weights != 0).sum(1).tolist())) > 2
    theirs = peer.FlopsLoss(None, threshold).compute_loss_from_embeddings(weights)
    same_value_and_gradient(penalties.flops(weights, threshold), theirs, [weights])


# --- lambda of other code bases ---
# The conventions, written out: [groups, B, V] are the documents of B queries, slot by slot or
# process by process.


def summed_squares_of_means(batch_BV: Tensor) -> Tensor:
    return (batch_BV.sum(0) / len(batch_BV)).pow(2).sum()


def naver_term(slots: Tensor) -> Tensor:
    positives, negatives = slots
    return (summed_squares_of_means(positives) + summed_squares_of_means(negatives)) / 2


def opensearch_term(slots: Tensor) -> Tensor:
    return sum(summed_squares_of_means(slot) for slot in slots)


def averaged_term(processes: Tensor) -> Tensor:
    return sum(summed_squares_of_means(process) for process in processes) / len(processes)


def tevatron_term(processes: Tensor) -> Tensor:
    return sum(len(processes) * summed_squares_of_means(process) for process in processes) / len(
        processes
    )


CONVENTIONS = {
    "naver": (naver_term, {}, 2),
    "naver-hf": (averaged_term, {"world_size": 4}, 4),
    "opensearch": (opensearch_term, {"group_size": 3}, 3),
    "tevatron": (tevatron_term, {"world_size": 4}, 4),
    "sentence-transformers": (averaged_term, {"world_size": 4}, 4),
}


def test_every_origin_has_its_convention_tested():
    assert tuple(CONVENTIONS) == LAMBDA_ORIGINS


@pytest.mark.parametrize("origin", CONVENTIONS)
def test_translated_lambda_is_exact_for_groups_with_the_same_mean(origin):
    term, sizes, groups = CONVENTIONS[origin]
    batch = numbers(5, 8, seed=40)
    # Same documents in another order: same mean vector, and each slot or process has them all.
    documents = torch.stack([batch.roll(shift, 0) for shift in range(groups)]).requires_grad_()
    theirs = 0.006 * term(documents)
    ours = penalties.translate_lambda(0.006, origin, **sizes) * penalties.flops(
        documents.flatten(0, 1)
    )
    same_value_and_gradient(ours, theirs, [documents])


@pytest.mark.parametrize("origin", CONVENTIONS)
def test_translated_lambda_holds_in_expectation_up_to_the_variance_of_smaller_means(origin):
    # Uniform weights (mean 1/2, variance 1/12), V = 8: F over n texts is 8 (1/4 + 1 / 12n) in
    # expectation.
    term, sizes, groups = CONVENTIONS[origin]
    trials, batch = 400, 16
    documents = numbers(trials, groups, batch, 8, seed=41)
    theirs = torch.stack([term(trial) for trial in documents]).mean()
    pooled = torch.stack([penalties.flops(trial.flatten(0, 1)) for trial in documents]).mean()
    factor = penalties.translate_lambda(1.0, origin, **sizes)
    excess = (1 / 4 + 1 / (12 * batch)) / (1 / 4 + 1 / (12 * batch * groups))
    close(theirs / pooled, factor * excess, rtol=2e-3, atol=0)
    assert 1 < excess < 1.03


@pytest.mark.parametrize("origin", CONVENTIONS)
def test_unlike_groups_are_penalised_more_than_pooled_ones(origin):
    term, sizes, groups = CONVENTIONS[origin]
    documents = numbers(groups, 5, 8, seed=42) * torch.arange(1, groups + 1)[:, None, None]
    ours = penalties.translate_lambda(1.0, origin, **sizes) * penalties.flops(
        documents.flatten(0, 1)
    )
    assert term(documents) > 1.05 * ours


def test_one_process_and_one_document_per_query_need_no_translation():
    for origin in ("naver-hf", "opensearch", "tevatron", "sentence-transformers"):
        documents = numbers(1, 5, 8, seed=43)
        ours = penalties.translate_lambda(0.5, origin) * penalties.flops(documents[0])
        close(ours, 0.5 * CONVENTIONS[origin][0](documents), rtol=1e-14, atol=0)


@pytest.mark.parametrize(("world_size", "sees"), [(1, 1), (4, 4)])
def test_the_averaging_of_gradients_leaves_tevatrons_lambda_multiplied(world_size, sees):
    # Every process takes the gradient of its own loss with respect to shared parameters; DDP
    # averages the gradients.
    inputs = torch.stack([numbers(5, 8, seed=44).roll(shift, 0) for shift in range(world_size)])
    parameters = numbers(8, seed=45, requires_grad=True)
    gradients = [
        torch.autograd.grad(
            world_size * 0.01 * summed_squares_of_means(x * parameters), parameters
        )[0]
        for x in inputs
    ]
    ours = penalties.translate_lambda(0.01, "tevatron", world_size=world_size)
    assert ours == 0.01 * sees
    wanted = torch.autograd.grad(
        ours * penalties.flops((inputs * parameters).flatten(0, 1)), parameters
    )[0]
    close(sum(gradients) / world_size, wanted)


@pytest.mark.parametrize("counted", [1, 2])
def test_navers_loop_counts_the_first_regulariser_as_often_as_there_are_regularisers(counted):
    batch, queries = numbers(5, 8, seed=46), numbers(5, 8, seed=47)
    documents = torch.stack([batch, batch.flip(0)])
    regularisers = [lambda: 0.005 * naver_term(documents), lambda: 0.003 * queries.sum(1).mean()][
        :counted
    ]
    loss, so_far = torch.zeros(()).double(), []
    for regulariser in regularisers:
        so_far.append(regulariser())
        loss = loss + sum(so_far)
    ours = penalties.translate_lambda(0.005, "naver", times_counted=counted) * penalties.flops(
        documents.flatten(0, 1)
    )
    close(loss, ours + (0.003 * penalties.l1(queries) if counted == 2 else 0.0))


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
        DataError, match="query 1 of the batch: a score of the student is NaN or infinite"
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
    with pytest.raises(DataError, match=r"allowed_QD: torch.*torch.bool \(2, 2\) is needed"):
        rank(name, allowed=allowed)


@pytest.mark.parametrize("name", RANKING)
@pytest.mark.parametrize("shape", [(2,), (2, 2, 1), (0, 2), (2, 0)])
def test_scores_need_two_dimensions_with_something_in_them(name, shape):
    with pytest.raises(DataError, match=r"scores_QD: shape .* two dimensions of at least 1"):
        rank(name, torch.ones(shape))


@pytest.mark.parametrize("name", RANKING)
def test_scores_must_be_floating(name):
    with pytest.raises(DataError, match=r"scores_QD: torch.int64, a floating point type"):
        rank(name, torch.ones(2, 2).long())


@pytest.mark.parametrize("name", ["info_nce", "kl_divergence"])
@pytest.mark.parametrize("temperature", [0.0, -1.0, NAN, INF])
def test_temperature_must_be_above_zero(name, temperature):
    with pytest.raises(ConfigError, match=r"temperature: .* a finite number above 0"):
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
        with pytest.raises(DataError, match=r"positive_Q: .*torch.int64 \(2,\) is needed"):
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
    with pytest.raises(DataError, match=r"teacher_QD: torch.int64|scores_QD: torch.int64"):
        TEACHING[name](torch.ones(2, 2).long())
    if name in RANKING:
        with pytest.raises(DataError, match=r"teacher_QD: shape \(2, 3\), \(2, 2\) is needed"):
            TEACHING[name](torch.ones(2, 3))


def test_margin_mse_needs_the_positives_score_and_a_pair():
    with pytest.raises(
        DataError, match="query 1 of the batch: the teacher's score of the positive is NaN"
    ):
        losses.margin_mse(GOOD, torch.tensor([[1.0, 2.0], [NAN, 2.0]]), FIRST)
    with pytest.raises(DataError, match="no query of the batch has a scored negative"):
        losses.margin_mse(GOOD, torch.tensor([[1.0, NAN], [1.0, NAN]]), FIRST)


@pytest.mark.parametrize(
    ("teachers", "options", "message"),
    [
        ([], {}, "teachers: none"),
        ([GOOD], {"weights": [1, 2]}, "weights: 2 for 1 teachers"),
        ([GOOD], {"weights": [0]}, "not all 0"),
        ([GOOD, GOOD], {"weights": [2, -1]}, "finite numbers of 0 or more"),
        ([GOOD], {"weights": [NAN]}, "finite numbers of 0 or more"),
        ([GOOD], {"scale": 0}, "scale: 0, a finite number above 0"),
        (
            [GOOD],
            {"normalization": "zscore"},
            "normalization: 'zscore', allowed are 'minmax' and 'none'",
        ),
    ],
)
def test_ensemble_options(teachers, options, message):
    with pytest.raises(ConfigError, match=message):
        losses.ensemble(teachers, **options)


def test_ensemble_needs_teachers_of_one_shape():
    with pytest.raises(DataError, match=r"teachers: shapes \[\(2, 2\), \(2, 3\)\]"):
        losses.ensemble([GOOD, torch.ones(2, 3)])


PENALTIES = {
    "flops": penalties.flops,
    "idf_flops": lambda weights: penalties.idf_flops(weights, torch.ones(3)),
    "df_flops": lambda weights: penalties.df_flops(weights, torch.ones(3)),
    "l1": penalties.l1,
    "anti_zero": lambda weights: penalties.anti_zero(WEIGHTS, weights),
}


@pytest.mark.parametrize("name", PENALTIES)
def test_penalties_refuse_nonsense(name):
    with pytest.raises(DataError, match="weights_NV: shape"):
        PENALTIES[name](torch.ones(3))
    with pytest.raises(DataError, match=r"weights_NV: shape \(0, 3\)"):
        PENALTIES[name](torch.ones(0, 3))
    with pytest.raises(DataError, match="floating point"):
        PENALTIES[name](torch.ones(2, 3).long())


@pytest.mark.parametrize("name", PENALTIES)
def test_penalties_refuse_nan(name):
    with pytest.raises(DataError, match=f"{name}: nan, a weight is NaN or infinite"):
        PENALTIES[name](torch.tensor([[1.0, NAN, 0.0], [1.0, 1.0, 1.0]]))


@pytest.mark.parametrize("name", PENALTIES)
def test_penalties_refuse_infinity(name):
    with pytest.raises(DataError, match=f"{name}: inf, a weight is NaN or infinite"):
        PENALTIES[name](torch.tensor([[1.0, INF, 0.0]]))


def test_a_nan_does_not_hide_behind_the_mask():
    with pytest.raises(DataError, match="flops: nan"):
        penalties.flops(torch.tensor([[NAN, 0.0, 0.0], [1.0, 1.0, 1.0]]), exempt_up_to=2)


def test_anti_zero_refuses_a_model_that_has_collapsed():
    for queries, documents in ((torch.zeros(1, 3), WEIGHTS), (WEIGHTS, torch.zeros(1, 3))):
        with pytest.raises(DataError, match=r"anti_zero: all weights .* are 0"):
            penalties.anti_zero(queries, documents)


@pytest.mark.parametrize(
    "idf", [[1.0, 0.0, 1.0], [1.0, -1.0, 1.0], [1.0, NAN, 1.0], [1.0, INF, 1.0]]
)
def test_idf_must_be_above_zero(idf):
    with pytest.raises(DataError, match="idf_V: holds a value that is not a finite number above 0"):
        penalties.idf_flops(WEIGHTS, torch.tensor(idf))


@pytest.mark.parametrize("share", [-0.1, 1.1, NAN])
def test_document_frequencies_must_be_shares(share):
    with pytest.raises(DataError, match=r"document_frequency_V: holds a value outside 0\.\.1"):
        penalties.df_flops(WEIGHTS, torch.tensor([0.5, share, 0.5]))


def test_values_per_token_must_fit_the_vocabulary():
    with pytest.raises(
        DataError,
        match=r"idf_V: shape \(2,\), one value per token \(3,\) is "
        r"needed",
    ):
        penalties.idf_flops(WEIGHTS, torch.ones(2))
    with pytest.raises(DataError, match=r"document_frequency_V: shape \(4,\)"):
        penalties.df_flops(WEIGHTS, torch.ones(4))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: penalties.flops(WEIGHTS, -1), "exempt_up_to: -1"),
        (
            lambda: penalties.idf_flops(WEIGHTS, torch.ones(3), power=3),
            "power: 3, allowed are 1 and 2",
        ),
        (lambda: penalties.df_flops(WEIGHTS, torch.ones(3), alpha=1.0), "alpha: 1.0"),
        (lambda: penalties.df_flops(WEIGHTS, torch.ones(3), alpha=0.0), "alpha: 0.0"),
        (lambda: penalties.df_flops(WEIGHTS, torch.ones(3), beta=0.0), "beta: 0.0"),
        (lambda: penalties.ramp(-1, 5), "ramp: step -1 of 5"),
        (lambda: penalties.ramp(1, -5), "ramp: step 1 of -5"),
        (
            lambda: penalties.translate_lambda(1.0, "lsr"),
            "origin: 'lsr', allowed are naver, naver-hf, opensearch",
        ),
        (lambda: penalties.translate_lambda(-1.0, "naver"), "lambda: -1.0"),
        (lambda: penalties.translate_lambda(NAN, "naver"), "lambda: nan"),
        (
            lambda: penalties.translate_lambda(1.0, "opensearch", group_size=0),
            "group_size: 0, a whole number of 1 or more",
        ),
        (
            lambda: penalties.translate_lambda(1.0, "opensearch", group_size=1.5),
            "group_size: 1.5, a whole number of 1 or",
        ),
        (
            lambda: penalties.translate_lambda(1.0, "tevatron", world_size=0),
            "world_size: 0, a whole number of 1 or more",
        ),
        (
            lambda: penalties.translate_lambda(1.0, "naver", times_counted=0),
            "times_counted: 0, a whole number of 1 or more",
        ),
        (
            lambda: penalties.translate_lambda(1.0, "tevatron", times_counted=2),
            "times_counted: 2 with origin 'tevatron'",
        ),
    ],
)
def test_options_that_are_not_allowed(call, message):
    with pytest.raises(ConfigError, match=message):
        call()
