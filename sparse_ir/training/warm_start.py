"""The first steps of an encoder that starts without a trained output layer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from sparse_ir.errors import DataError
from sparse_ir.models import tokenization
from sparse_ir.training.trainable_encoder import (
    LARGEST_LOGIT,
    LIFT,
    OFF,
    SPREAD,
    TOKENS_AT_ONCE,
    Student,
)


def switch_off_special_tokens(student: Student) -> None:
    """Give a new output layer a bias that keeps special tokens out of documents: no query can
    contain them.
    """
    special = tokenization.special_token_ids(student.rules)
    with torch.no_grad():
        student.output_layer.bias[special] = OFF


@torch.no_grad()
def give_token_vectors(student: Student, grown: Sequence[str], texts: Sequence[str]) -> None:
    """Give a new output layer rows that know what their tokens mean: the backbone's own vector of
    each token as a text.

    For backbones that were trained to embed texts by the mean of their last states. A row is the
    mean state of the token read alone, less the mean over all tokens, at length 1; logits are then
    ``10 x cosine`` between it and a state of the document, less the mean state of ``texts``. So
    expansion works before the first step: a state is near to the tokens that mean the same. The
    layer is tied to the word embeddings no more.
    """
    student.eval()
    _open_transform(student, grown, texts)
    mean_H, length = _center_of(student, texts)
    before, after = _frame(student.rules)
    vectors = []
    for first in range(0, student.size, TOKENS_AT_ONCE):
        token_ids = range(first, min(first + TOKENS_AT_ONCE, student.size))
        ids = torch.tensor(
            [[*before, token_id, *after] for token_id in token_ids], device=mean_H.device
        )
        vectors.append(student.model(input_ids=ids).logits.float().mean(1))
    rows_VH = torch.cat(vectors)
    rows_VH = torch.nn.functional.normalize(rows_VH - rows_VH.mean(0), dim=1) * (
        LARGEST_LOGIT / length
    )
    student.output_layer.weight = torch.nn.Parameter(rows_VH)
    student.output_layer.bias = torch.nn.Parameter(-(rows_VH @ mean_H))
    student.model.config.tie_word_embeddings = False


def _open_transform(student: Student, grown: Sequence[str], texts: Sequence[str]) -> None:
    """Let a new square layer before the output layer pass what it gets.

    Behind it stands a GELU, which is linear only well above zero: so states are scaled and lifted
    there, and the LayerNorm that follows takes the lift away again.
    """
    ids = student.tokenize_documents(texts[:1])[0]
    states = student.model.base_model(
        input_ids=torch.from_numpy(ids)[None].to(student.output_layer.weight.device)
    )[0]
    for name in grown:
        layer = student.model.get_submodule(name.rpartition(".")[0])
        if isinstance(layer, torch.nn.Linear) and layer.in_features == layer.out_features:
            layer.weight.copy_(torch.eye(layer.in_features) * (SPREAD / float(states.std())))
            layer.bias.fill_(LIFT)


def _frame(rules: Tokenizer) -> tuple[list[int], list[int]]:
    """The special tokens before and after a text."""
    found = rules.encode("a")
    own = [position for position, special in enumerate(found.special_tokens_mask) if not special]
    return found.ids[: own[0]], found.ids[own[-1] + 1 :]


def _center_of(student: Student, texts: Sequence[str]) -> tuple[Tensor, float]:
    """Mean state of the tokens of texts ``[H]``, and the mean distance from it."""
    device = student.output_layer.weight.device
    states = torch.cat(
        [
            student.model(input_ids=torch.from_numpy(ids)[None].to(device)).logits[0].float()
            for ids in student.tokenize_documents(texts)
        ]
    )
    mean_H = states.mean(0)
    return mean_H, float((states - mean_H).norm(dim=1).mean())


def bag_of_words_loss(
    pooled_NV: Tensor, ids: Sequence[np.ndarray], token_weights_V: Tensor
) -> Tensor:
    """``- sum_t p_t log softmax(largest logits)_t``, mean over texts: DupMAE's objective (arXiv
    2305.02564).

    ``p`` is the text's bag of words, each token times its weight (IDF, so that stop words do not
    rule), sum 1. Tokens of weight 0, the special ones, leave the softmax: nothing is learned about
    them.
    """
    wanted_NV = torch.zeros_like(pooled_NV)
    for row, tokens in enumerate(ids):
        found = torch.from_numpy(np.asarray(tokens, dtype=np.int64)).to(pooled_NV.device)
        wanted_NV[row].index_add_(0, found, torch.ones(len(found), device=pooled_NV.device))
    wanted_NV = wanted_NV * token_weights_V
    totals_N = wanted_NV.sum(1)
    if not bool((totals_N > 0).any()):
        raise DataError("no document of the batch has a token that carries weight")
    log_probabilities_NV = torch.log_softmax(
        pooled_NV.masked_fill(token_weights_V == 0, -1e4), dim=1
    )
    losses_N = -(wanted_NV * log_probabilities_NV).sum(1) / totals_N.clamp_min(1e-9)
    return losses_N[totals_N > 0].mean()
