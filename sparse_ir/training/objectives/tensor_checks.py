"""Checks of the arguments that losses and penalties take."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from sparse_ir.errors import ConfigError, DataError


def floating(name: str, tensor: Tensor) -> Tensor:
    """The same ``[rows, columns]`` tensor in float32, or in float64 where it has that type.

    Raises ``DataError`` unless it has two dimensions of at least 1 and a floating point type.
    """
    if tensor.ndim != 2 or 0 in tensor.shape:
        raise DataError(
            f"{name} has the shape {tuple(tensor.shape)}; it must have two dimensions of at least 1"
        )
    if not tensor.is_floating_point():
        raise DataError(f"{name} is {tensor.dtype}; it must have a floating point type")
    if tensor.dtype == torch.float64:
        return tensor
    return tensor.float()


def select_arguments(names: Iterable[str], values: Mapping[Any, Any]) -> dict[str, Any]:
    """The values that a formula of a table takes, by their names."""
    return {name: values[name] for name in names}


def above_zero(name: str, value: float) -> None:
    """Raise ``ConfigError`` unless ``value`` is a finite number above 0."""
    if not 0 < value < math.inf:
        raise ConfigError(f"{name} is {value!r}; it must be a finite number above 0")
