"""Small tensors in float64, and their comparison."""

from __future__ import annotations

import torch
from torch import Tensor


def numbers(*shape: int, seed: int = 0, requires_grad: bool = False) -> Tensor:
    """Random numbers in 0..1."""
    made = torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return made.requires_grad_(requires_grad)


def close(found: Tensor | float, wanted: Tensor | float, **tolerance: float) -> None:
    torch.testing.assert_close(
        torch.as_tensor(found, dtype=torch.float64),
        torch.as_tensor(wanted, dtype=torch.float64),
        **tolerance,
    )


def same_value_and_gradient(ours: Tensor, theirs: Tensor, inputs: list[Tensor]) -> None:
    close(ours, theirs, rtol=1e-12, atol=0)
    for mine, other in zip(
        torch.autograd.grad(ours, inputs), torch.autograd.grad(theirs, inputs), strict=True
    ):
        close(mine, other, rtol=1e-10, atol=1e-13)
