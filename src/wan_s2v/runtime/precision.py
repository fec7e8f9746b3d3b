"""Which floating-point type a device can really compute in."""

from __future__ import annotations

import torch

from wan_s2v.errors import UsageError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_SHORT_NAMES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16", "half": "float16"}


def as_dtype(value: str | torch.dtype) -> torch.dtype:
    """A dtype from its name ("bfloat16", "bf16", …) or itself. Raises: UsageError for another name."""
    if isinstance(value, torch.dtype) and value in DTYPES.values():
        return value
    name = _SHORT_NAMES.get(str(value), str(value)).removeprefix("torch.")
    if name not in DTYPES:
        raise UsageError(f"torch_dtype={value} is not accepted. Choose bfloat16, float16 or float32.")
    return DTYPES[name]


def usable_dtype(dtype: torch.dtype, device: torch.device) -> tuple[torch.dtype, str | None]:
    """The dtype to compute in, and a note for the user where it is not the one asked for.

    PyTorch has no fast float16 kernels on CPUs: a 2048³ product ran at 0.35 GFLOP/s against 154 in float32 (two cores).
    """
    if dtype == torch.float16 and device.type == "cpu":
        return torch.float32, "float16 is unusably slow on a CPU; computing in float32, which holds the same values."
    return dtype, None


def vae_dtype(loaded: torch.dtype, transformer: torch.dtype, device: torch.device) -> torch.dtype:
    """In which a VAE computes that was loaded in some dtype: on GPUs in float16 where that is float32.

    The official VAE is in float32, whose convolutions PyTorch runs in TF32: with factors of 10 bits behind the first,
    which is what float16 has, too. So float16 is about as precise at twice the speed, as long as its range suffices.

    Args:
        transformer: its dtype; float32 there asks for float32 everywhere.
    """
    if device.type == "cpu" and loaded == torch.float16:  # it was on a GPU before
        return torch.float32
    if device.type == "cuda" and loaded == torch.float32 and transformer != torch.float32:
        return torch.float16
    return loaded
