"""The first steps of an encoder that starts without a trained output layer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from sparse_ir.errors import DataError
from sparse_ir.models import tokenization
from sparse_ir.models.tokenization import Tokens
from sparse_ir.training.encoders.trainable_encoder import OFF, TrainableEncoder

_TOKENS_AT_ONCE = 512
_LARGEST_LOGIT = 10.0  # of a new output layer: the logit of a state that is its token's own vector
_SPREAD = 0.5  # standard deviation of what enters the GELU of a new transform
_LIFT = 4.0  # its mean
_OUTSIDE = -1e4  # the score of a token that leaves the softmax


def switch_off_special_tokens(encoder: TrainableEncoder) -> None:
    """Give a new output layer a bias that keeps special tokens out of documents.

    No query can contain them.
    """
    special = tokenization.special_token_ids(encoder.rules)
    with torch.no_grad():
        encoder.output_layer.bias[special] = OFF


@torch.no_grad()
def give_token_vectors(
    encoder: TrainableEncoder, grown: Sequence[str], texts: Sequence[str]
) -> None:
    """Give a new output layer rows that know what their tokens mean.

    This is for backbones that were trained to embed texts by the mean of their last states. A row
    is the mean state of its token read alone, less the mean over all tokens, at length 1. Logits
    are then ``10 x cosine`` between the row and a state of the document, less the mean state of
    ``texts``. So expansion works before the first step: a state is near to the tokens that mean the
    same. Afterwards the layer is not tied to the word embeddings any more.
    """
    encoder.eval()
    _open_transform(encoder, grown, texts)
    states = []
    for tokens in encoder.tokenize_documents(texts):
        hidden_BLH, _ = encoder.network.hidden_states([tokens.ids])
        states.append(hidden_BLH[0].float())
    states_TH = torch.cat(states)
    mean_H = states_TH.mean(0)
    length = float((states_TH - mean_H).norm(dim=1).mean())
    # the special tokens before and after a text
    encoding = encoder.rules.encode("a")
    text = np.flatnonzero(np.array(encoding.special_tokens_mask) == 0)
    before = encoding.ids[: text[0]]
    after = encoding.ids[text[-1] + 1 :]
    vectors = []
    for first in range(0, encoder.size, _TOKENS_AT_ONCE):
        token_ids = range(first, min(first + _TOKENS_AT_ONCE, encoder.size))
        rows = [[*before, token_id, *after] for token_id in token_ids]
        ids = torch.tensor(rows, device=mean_H.device)
        vectors.append(encoder.model(input_ids=ids).logits.float().mean(1))
    vectors_VH = torch.cat(vectors)
    directions_VH = torch.nn.functional.normalize(vectors_VH - vectors_VH.mean(0), dim=1)
    rows_VH = directions_VH * (_LARGEST_LOGIT / length)
    encoder.output_layer.weight = torch.nn.Parameter(rows_VH)
    encoder.output_layer.bias = torch.nn.Parameter(-(rows_VH @ mean_H))
    encoder.model.config.tie_word_embeddings = False


def _open_transform(encoder: TrainableEncoder, grown: Sequence[str], texts: Sequence[str]) -> None:
    """Let a new square layer before the output layer pass what it gets.

    Behind it stands a GELU, which is linear only well above zero. So states are scaled and lifted
    there, and the LayerNorm that follows removes the lift again.
    """
    ids = torch.from_numpy(encoder.tokenize_documents(texts[:1])[0].ids.astype(np.int64))
    device = encoder.output_layer.weight.device
    states = encoder.model.base_model(input_ids=ids[None].to(device))[0]
    for name in grown:
        layer = encoder.model.get_submodule(name.rpartition(".")[0])
        if isinstance(layer, torch.nn.Linear) and layer.in_features == layer.out_features:
            layer.weight.copy_(torch.eye(layer.in_features) * (_SPREAD / float(states.std())))
            layer.bias.fill_(_LIFT)


def bag_of_words_loss(
    pooled_NV: Tensor, texts: Sequence[Tokens], token_weights_V: Tensor
) -> Tensor:
    """Return ``- sum_t p_t log softmax(scores)_t``, the mean over texts.

    This is DupMAE's objective (arXiv 2305.02564) on the largest logit of each term. ``p`` is the
    text's bag of words, each token times its weight (IDF, so that stop words do not dominate), with
    sum 1. Tokens of weight 0, the special ones, leave the softmax: nothing is learned about them.
    Raises ``DataError`` when no token of the batch carries weight.
    """
    bags_NV = torch.zeros_like(pooled_NV)
    for row, tokens in enumerate(texts):
        ids = torch.from_numpy(tokens.ids.astype(np.int64)).to(pooled_NV.device)
        bags_NV[row].index_add_(0, ids, torch.ones(len(ids), device=pooled_NV.device))
    bags_NV = bags_NV * token_weights_V
    totals_N = bags_NV.sum(1)
    if not bool((totals_N > 0).any()):
        raise DataError("no document of the batch has a token that carries weight")
    masked_NV = pooled_NV.masked_fill(token_weights_V == 0, _OUTSIDE)
    log_probabilities_NV = torch.log_softmax(masked_NV, dim=1)
    losses_N = -(bags_NV * log_probabilities_NV).sum(1) / totals_N.clamp_min(1e-9)
    return losses_N[totals_N > 0].mean()
