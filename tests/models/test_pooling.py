"""Pooling with gradients: equal to autograd on the full logits, without ever holding them."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

from sparse_ir.models.pooling import OutputLayer
from sparse_ir.models.pooling import pool_with_gradient as pool_with_output

LENGTHS = np.array([7, 3, 1, 7, 5])


def pool_with_gradient(hidden, weight, bias, lengths):
    return pool_with_output(hidden, OutputLayer(weight, bias), lengths)


def make_inputs(dtype: torch.dtype, vocabulary: int = 5000) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((len(LENGTHS), int(LENGTHS.max()), 16), (vocabulary, 16), (vocabulary,))
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]


def pool_in_full(hidden, weight, bias):
    """All logits at once, padding hidden, then the maximum: what the blocks must equal."""
    real = torch.arange(hidden.shape[1]) < torch.from_numpy(LENGTHS)[:, None]
    return torch.where(real[:, :, None], hidden @ weight.t() + bias, -torch.inf).amax(1)


@pytest.mark.parametrize("logarithms", [1, 2])
def test_weights_and_gradients_equal_autograd_on_the_full_logits(logarithms):
    inputs = make_inputs(torch.float32)
    found = []
    for scores in (pool_with_gradient(*inputs, LENGTHS), pool_in_full(*inputs)):
        weights = torch.relu(scores)
        for _ in range(logarithms):
            weights = torch.log1p(weights)
        loss = (weights.mean(0) ** 2).sum() + weights[0] @ weights[1]
        found.append([weights, *torch.autograd.grad(loss, inputs)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_terms_that_are_not_active_send_no_gradient():
    hidden, weight, bias = make_inputs(torch.float32)
    torch.relu(pool_with_gradient(hidden, weight, bias - 1000.0, LENGTHS)).sum().backward()
    assert not weight.grad.any()
    assert not hidden.grad.any()


def test_padding_gets_no_gradient_and_changes_nothing():
    inputs = make_inputs(torch.float32)
    changed = inputs[0].detach().clone()
    for row, length in enumerate(LENGTHS):
        changed[row, length:] = 99.0
    changed.requires_grad_()
    scores = pool_with_gradient(changed, *inputs[1:], LENGTHS)
    torch.testing.assert_close(scores, pool_with_gradient(*inputs, LENGTHS))
    scores.sum().backward()
    assert all(not changed.grad[row, length:].any() for row, length in enumerate(LENGTHS))


def test_under_autocast_the_products_run_in_its_type():
    inputs = make_inputs(torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = pool_with_gradient(*inputs, LENGTHS)
    full = pool_with_gradient(*inputs, LENGTHS)
    assert low.dtype == torch.float32
    assert 0 < (low - full).abs().max() < 0.2  # of logits up to 16
    low.sum().backward()
    assert inputs[1].grad.dtype == torch.float32


@pytest.mark.slow
def test_memory_does_not_grow_with_length_times_vocabulary():
    """One step on 8 x 256 tokens over 60,000 terms: full logits would take 490 MB, and their
    gradient as much.
    """
    code = """
import resource, numpy as np, torch
from sparse_ir.models.pooling import OutputLayer, pool_with_gradient
torch.set_num_threads(1)
hidden = torch.randn(8, 256, 32, requires_grad=True)
weight = (torch.randn(60_000, 32) * 0.1).requires_grad_()
bias = torch.full((60_000,), -1.0, requires_grad=True)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
output = OutputLayer(weight, bias)
torch.relu(pool_with_gradient(hidden, output, np.full(8, 256))).sum().backward()
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert float(done.stdout) < 250
