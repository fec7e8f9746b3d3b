"""Triton kernel that rounds rows to float8, after a GELU where one is asked for: one program per row."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from wan_s2v.ops.float8 import FLOAT8, LARGEST, Quantized


def launch_quantize(x: Tensor, *, gelu: bool) -> Quantized:
    """Rows of x (..., K), contiguous, as float8 with scales."""
    channels = x.shape[-1]
    assert x.is_contiguous()
    values = torch.empty(x.shape, dtype=FLOAT8, device=x.device)
    scale = torch.empty((*x.shape[:-1], 1), dtype=torch.float32, device=x.device)
    block = triton.next_power_of_2(channels)
    _quantize[(scale.numel(),)](
        x, values, scale, channels, LARGEST=LARGEST, GELU=gelu, BLOCK=block, num_warps=16 if block > 8192 else 8
    )
    return Quantized(values, scale)


@triton.jit
def _quantize(x_ptr, values_ptr, scale_ptr, channels, LARGEST: tl.constexpr, GELU: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < channels
    x = tl.load(x_ptr + row * channels + column, mask=inside, other=0.0).to(tl.float32)
    if GELU:
        inner = 0.7978845608028654 * (x + 0.044715 * x * x * x)  # sqrt(2 / pi)
        x = x * tl.sigmoid(2 * inner)  # (1 + tanh(inner)) / 2
    values, scale = round_row(x, LARGEST)
    tl.store(scale_ptr + row, scale)
    tl.store(values_ptr + row * channels + column, values, mask=inside)


@triton.jit
def round_row(x, LARGEST: tl.constexpr):
    """Float8 values of a row (BLOCK,) float32, and its scale."""
    scale = tl.maximum(tl.max(tl.abs(x), axis=0), 1e-12) / LARGEST
    scaled = tl.minimum(tl.maximum(x / scale, -LARGEST), LARGEST)
    return scaled.to(tl.float8e4nv), scale
