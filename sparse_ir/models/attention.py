"""Decoders that attend in one or both directions, proven by a probe.

B rows of the probe, L tokens, H hidden width, V vocabulary.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from tokenizers import Tokenizer
from torch import Tensor

from sparse_ir import errors
from sparse_ir.errors import ModelError
from sparse_ir.models.decoder_settings import DecoderSettings

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_PROBE = "one two three four five six"
_PROBE_LENGTH = 6
_LEAST_CHANGE = 1e-6  # of a state's norm; experts sum in another order when their load changes
_ABOVE_NOISE = 3


class _LayerCall(NamedTuple):
    """One call of a layer."""

    layer: torch.nn.Module
    inputs: tuple[Any, ...]
    named: dict[str, Any]
    output: Any


class _Influence(NamedTuple):
    """How much of the first token's state in a layer depends on other positions."""

    later: float  # on the second token
    padding: float


def set_attention(
    model: PreTrainedModel, tokenizer: Tokenizer, settings: DecoderSettings, folder: Path
) -> None:
    """Give a network the attention of its mode, and prove it on a few tokens.

    Raises ``ModelError`` when the network cannot have that attention.
    """
    if settings.mode == "bidirectional":
        make_bidirectional(model, tokenizer, folder)
        return
    ids = _probe_ids(model, tokenizer)
    ids[1, 1:] = ids[1, 1:].flip(0)
    ids[1, 1] = ids[0, 0]
    with torch.inference_mode(), _without_outliers(model):
        output = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
        first_BV = output.logits[:, 0].float()
    if (first_BV[0] - first_BV[1]).norm() > _LEAST_CHANGE * first_BV[0].norm():
        raise ModelError(
            f"{folder}: {type(model).__name__} is not causal (its first token sees later ones), "
            f"and mode is {settings.mode!r}"
        )


def make_bidirectional(model: PreTrainedModel, tokenizer: Tokenizer, folder: Path) -> None:
    """Remove the causal mask in every layer, and prove on a few tokens that it is gone.

    ``config.is_causal`` is transformers' own switch for its masks and kernels. Families that build
    their masks in another way stay causal, and so do layers without attention (state spaces,
    convolutions) and versions of transformers from before the switch. For all of them this raises
    ``ModelError``.
    """
    model.config.get_text_config().is_causal = False
    for number, influence in enumerate(_measure_influence(model, tokenizer, folder)):
        if influence.later <= max(_LEAST_CHANGE, _ABOVE_NOISE * influence.padding):
            raise ModelError(
                f"{folder}: {type(model).__name__} cannot be made bidirectional (its layer "
                f"{number} still hides later tokens, or lets padding in); mode must be 'echo' or "
                "'causal'"
            )


def _measure_influence(
    model: PreTrainedModel, tokenizer: Tokenizer, folder: Path
) -> list[_Influence]:
    """Return the influence of later tokens and of padding in each layer."""
    ids = _probe_ids(model, tokenizer)
    mask = torch.ones_like(ids)
    padded = mask.clone()
    padded[1, 4:] = 0
    with torch.inference_mode(), _without_outliers(model):
        try:
            whole = _changes(model, ids, mask, 1)
            cut = _changes(model, ids, padded, 1)
            behind = _changes(model, ids, padded, 5)
        except (AttributeError, RuntimeError, TypeError, ValueError) as error:
            raise ModelError(
                f"{folder}: {type(model).__name__} cannot be made bidirectional "
                f"({errors.first_line(error)}); mode must be 'echo' or 'causal'"
            ) from error
    return [
        _Influence(float(torch.minimum(whole_B, cut_B).min()), float(behind_B[1]))
        for whole_B, cut_B, behind_B in zip(whole, cut, behind, strict=True)
    ]


@contextlib.contextmanager
def _without_outliers(model: PreTrainedModel) -> Iterator[None]:
    """Switch off the outliers of 8-bit layers.

    Outliers are found over all tokens together, so each token would depend on the others.
    """
    states: list[Any] = []
    for module in model.modules():
        state = getattr(module, "state", None)
        if hasattr(state, "threshold"):
            states.append(state)
    thresholds = [state.threshold for state in states]
    try:
        for state in states:
            state.threshold = 0.0
        yield
    finally:
        for state, threshold in zip(states, thresholds, strict=True):
            state.threshold = threshold


def _probe_ids(model: PreTrainedModel, tokenizer: Tokenizer) -> Tensor:
    """Return two equal rows of token ids, ``[2, 6]``."""
    ids = tokenizer.encode(_PROBE, add_special_tokens=False).ids
    return torch.tensor([(ids * _PROBE_LENGTH)[:_PROBE_LENGTH]] * 2, device=model.device)


def _changes(model: PreTrainedModel, ids: Tensor, mask: Tensor, position: int) -> list[Tensor]:
    """Return how much of the first token's state changes with another position.

    The result has, for each layer, the relative change of both rows, ``[B]``.
    """
    changes = []
    for call in _record_calls(model, ids, mask):
        hidden_BLH = call.inputs[0] if call.inputs else call.named["hidden_states"]
        changed_BLH = hidden_BLH.clone()
        changed_BLH[:, position] = changed_BLH[:, position].roll(1, dims=-1)
        if call.inputs:
            output = call.layer(changed_BLH, *call.inputs[1:], **call.named)
        else:
            output = call.layer(**(call.named | {"hidden_states": changed_BLH}))
        before_BH = _state(call.output)[:, 0].float()
        after_BH = _state(output)[:, 0].float()
        changes.append((before_BH - after_BH).norm(dim=-1) / before_BH.norm(dim=-1))
    return changes


def _record_calls(model: PreTrainedModel, ids: Tensor, mask: Tensor) -> list[_LayerCall]:
    """Run the network and return the calls of its layers."""
    calls: list[_LayerCall] = []

    def record(layer: torch.nn.Module, inputs: Any, named: dict[str, Any], output: Any) -> None:
        calls.append(_LayerCall(layer, inputs, named, output))

    hooks = [layer.register_forward_hook(record, with_kwargs=True) for layer in _find_layers(model)]
    try:
        model(input_ids=ids, attention_mask=mask, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return calls


def _find_layers(model: PreTrainedModel) -> torch.nn.ModuleList:
    """Return the first list of modules that is as long as the network is deep."""
    depth = model.config.get_text_config().num_hidden_layers
    for module in model.modules():
        if isinstance(module, torch.nn.ModuleList) and len(module) == depth:
            return module
    raise AttributeError("its layers cannot be told apart")


def _state(output: Any) -> Tensor:
    state: Tensor = output[0] if isinstance(output, tuple) else output
    return state
