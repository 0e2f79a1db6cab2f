"""Decoders that look in both directions, proven by a probe."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from sparse_ir import errors
from sparse_ir.errors import ModelError
from sparse_ir.models.decoder_settings import DecoderSettings

_LEAST_CHANGE = 1e-6  # of a state's norm; experts sum in another order when their load changes
_ABOVE_NOISE = 3


def set_attention(
    model: Any, tokenizer: Tokenizer, settings: DecoderSettings, folder: Path
) -> None:
    """Give the network the attention of its mode, and prove on a few tokens that it has it; else
    ``ModelError``.
    """
    if settings.mode == "bidirectional":
        make_bidirectional(model, tokenizer, folder)
        return
    ids = _probe(model, tokenizer)
    ids[1, 1:] = ids[1, 1:].flip(0)
    ids[1, 1] = ids[0, 0]
    with torch.inference_mode(), _tokens_apart(model):
        first_BV = (
            model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
            .logits[:, 0]
            .float()
        )
    if (first_BV[0] - first_BV[1]).norm() > _LEAST_CHANGE * first_BV[0].norm():
        raise ModelError(
            f"{folder}: {type(model).__name__} is not causal (its first token sees "
            "later ones), and mode "
            f"is {settings.mode!r}"
        )


def make_bidirectional(model: Any, tokenizer: Tokenizer, folder: Path) -> None:
    """Take the causal mask away in every layer, and prove on a few tokens that it is gone.

    ``config.is_causal`` is transformers' own switch for its masks and kernels. Families that build
    their masks otherwise, and layers that are no attention (state spaces, convolutions), stay
    causal, as do all in versions of transformers before the switch: for them this raises
    ``ModelError``.
    """
    model.config.get_text_config().is_causal = False
    for number, (seen, leaked) in enumerate(_look(model, tokenizer, folder)):
        if seen <= max(_LEAST_CHANGE, _ABOVE_NOISE * leaked):
            raise ModelError(
                f"{folder}: {type(model).__name__} cannot be made bidirectional (its layer "
                f"{number} still hides later "
                "tokens, or lets padding in); use mode 'echo' or 'causal'"
            )


def _look(model: Any, tokenizer: Tokenizer, folder: Path) -> list[tuple[float, float]]:
    """For each layer, how much of the first token's state depends on the second token, and how much
    on padding.
    """
    ids = _probe(model, tokenizer)
    mask = torch.ones_like(ids)
    padded = mask.clone()
    padded[1, 4:] = 0
    with torch.inference_mode(), _tokens_apart(model):
        try:
            whole, cut = _changes(model, ids, mask, 1), _changes(model, ids, padded, 1)
            padding = _changes(model, ids, padded, 5)
        except (AttributeError, RuntimeError, TypeError, ValueError) as error:
            raise ModelError(
                f"{folder}: {type(model).__name__} cannot be made bidirectional "
                f"({errors.first_line(error)}); use mode 'echo' or 'causal'"
            ) from error
    return [
        (float(torch.minimum(one, two).min()), float(three[1]))
        for one, two, three in zip(whole, cut, padding, strict=True)
    ]


@contextlib.contextmanager
def _tokens_apart(model: Any) -> Iterator[None]:
    """8-bit layers without their outliers, which are those of all tokens together: each would
    depend on the others.
    """
    states: list[Any] = [getattr(module, "state", None) for module in model.modules()]
    states = [state for state in states if hasattr(state, "threshold")]
    kept = [state.threshold for state in states]
    try:
        for state in states:
            state.threshold = 0.0
        yield
    finally:
        for state, threshold in zip(states, kept, strict=True):
            state.threshold = threshold


def _probe(model: Any, tokenizer: Tokenizer) -> Tensor:
    """Two equal rows of six token ids."""
    ids = tokenizer.encode("one two three four five six", add_special_tokens=False).ids
    return torch.tensor([(ids * 6)[:6]] * 2, device=model.device)


def _changes(model: Any, ids: Tensor, mask: Tensor, position: int) -> list[Tensor]:
    """For each layer ``[B]``: the part of the first token's state that changes with what another
    position holds.
    """
    layers = _layers(model)
    calls: list[Any] = []
    hooks = [
        layer.register_forward_hook(lambda *call: calls.append(call), with_kwargs=True)
        for layer in layers
    ]
    try:
        model(input_ids=ids, attention_mask=mask, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    found = []
    for layer, inputs, named, output in calls:
        hidden_BLH = inputs[0] if inputs else named["hidden_states"]
        changed_BLH = hidden_BLH.clone()
        changed_BLH[:, position] = changed_BLH[:, position].roll(1, dims=-1)
        again = (
            layer(changed_BLH, *inputs[1:], **named)
            if inputs
            else layer(**{**named, "hidden_states": changed_BLH})
        )
        before_BH, after_BH = _state(output)[:, 0].float(), _state(again)[:, 0].float()
        found.append((before_BH - after_BH).norm(dim=-1) / before_BH.norm(dim=-1))
    return found


def _layers(model: Any) -> Any:
    """The stack of layers: the one list of modules that is as long as the network is deep."""
    depth = model.config.get_text_config().num_hidden_layers
    found = [
        module
        for module in model.modules()
        if isinstance(module, torch.nn.ModuleList) and len(module) == depth
    ]
    if not found:
        raise AttributeError("its layers cannot be told apart")
    return found[0]


def _state(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output
