"""How an encoder computes: precision, device and limits."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch

from sparse_ir.errors import ConfigError
from sparse_ir.models.decoder_settings import DecoderSettings
from sparse_ir.models.static_queries import CONVENTIONS, Convention

Precision = Literal["float32", "float32-int8", "bfloat16", "int8", "8bit", "4bit"]
TRUNK_DTYPE = {
    "float32": torch.float32,
    "float32-int8": torch.float32,
    "bfloat16": torch.bfloat16,
    "int8": torch.bfloat16,
    "8bit": torch.bfloat16,
    "4bit": torch.bfloat16,
}
BITS = {"8bit": 8, "4bit": 4}
SCREENED = {"float32-int8", "int8"}
_TOKENS_PER_BATCH = {"cpu": 2048, "cuda": 32768}


@dataclass(frozen=True)
class EncoderOptions:
    """How an encoder computes; see ``Encoder.load``. Raises ``ConfigError`` for a bad value."""

    precision: Precision
    device: str
    max_length: int | None
    top_k: int | None
    min_weight: float
    tokens_per_batch: int
    convention: Convention
    allow_pickle: bool
    decoder: DecoderSettings | None = None

    def __post_init__(self) -> None:
        if self.precision not in get_args(Precision):
            choices = ", ".join(get_args(Precision))
            raise ConfigError(f"precision is {self.precision!r}; it must be auto, {choices}")
        if self.convention not in CONVENTIONS:
            choices = " or ".join(CONVENTIONS)
            raise ConfigError(f"convention is {self.convention!r}; it must be {choices}")
        self._check_device()
        for name in ("max_length", "top_k", "tokens_per_batch"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} is {value}; it must be at least 1")
        if not (math.isfinite(self.min_weight) and self.min_weight >= 0):
            raise ConfigError(f"min_weight is {self.min_weight}; it must be at least 0")

    def _check_device(self) -> None:
        if self.precision in SCREENED and device_kind(self.device) != "cpu":
            raise ConfigError(
                f"precision {self.precision!r} works on the CPU only; on {self.device} it must be "
                "'float32' or 'bfloat16'"
            )
        if self.device.startswith("cuda") and not torch.cuda.is_available():
            raise ConfigError(f"device is {self.device!r}, but torch finds no CUDA; use 'cpu'")

    @property
    def trunk_dtype(self) -> torch.dtype:
        """The floating-point type in which the network computes."""
        return TRUNK_DTYPE[self.precision]

    @property
    def head_dtype(self) -> torch.dtype:
        """The floating-point type of the product with the output layer."""
        if self.precision == "bfloat16" or self.precision in BITS:
            return torch.bfloat16
        return torch.float32


def make_options(
    precision: Precision | Literal["auto"],
    device: str | None,
    *,
    max_length: int | None,
    top_k: int | None,
    min_weight: float,
    tokens_per_batch: int | None,
    convention: Convention,
    allow_pickle: bool,
    decoder: DecoderSettings | None,
) -> EncoderOptions:
    """Fill in the defaults of device, precision and batch size."""
    if device is None:
        accelerated = torch.cuda.is_available() and precision not in SCREENED
        device = "cuda" if accelerated else "cpu"
    if precision == "auto":
        precision = fastest_precision(device)
    return EncoderOptions(
        precision,
        device,
        max_length,
        top_k,
        min_weight,
        tokens_per_batch or _TOKENS_PER_BATCH[device_kind(device)],
        convention,
        allow_pickle,
        decoder,
    )


def fastest_precision(device: str = "cpu") -> Precision:
    """Return the fastest precision on a device for networks of the usual sizes.

    Accelerators get bfloat16. Processors that multiply bfloat16 faster than float32 get int8: those
    with matrix units (AMX), and AMD's with AVX-512 instructions for bfloat16. Intel's AVX-512
    instructions for it compute no more products a cycle. Other processors with instructions
    for 8-bit products (VNNI) get float32-int8. All others get float32, because without them 8-bit
    products take longer than floats. The answer depends on the kind of processor alone, so that a
    run can be resumed.
    """
    if device_kind(device) != "cpu":
        return "bfloat16"
    capabilities: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    is_amd = "AMD" in str(capabilities.get("cpu_name"))
    if capabilities.get("amx_bf16") or (capabilities.get("avx512_bf16") and is_amd):
        return "int8"
    if capabilities.get("avx512_vnni") or capabilities.get("avx_vnni"):
        return "float32-int8"
    return "float32"


def device_kind(device: str) -> str:
    """Return "cpu", or "cuda" for every accelerator."""
    return "cpu" if device == "cpu" else "cuda"
