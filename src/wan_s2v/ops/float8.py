"""8-bit matrix products: values in float8 e4m3 with one float32 scale for each row, of both factors.

A row's largest magnitude becomes 448, the largest that the format holds. Scales go with the rows of the result, so the
product stays one product of 8-bit matrices.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from wan_s2v.ops.dispatch import runs_kernels

FLOAT8 = torch.float8_e4m3fn
LARGEST = torch.finfo(FLOAT8).max
_SMALLEST = 1e-12  # of a row's magnitude, so that rows of zeros have a scale


class Quantized(NamedTuple):
    """A matrix as values · scale.

    Args:
        values: (..., K) float8 e4m3.
        scale: (..., 1) float32.
    """

    values: Tensor
    scale: Tensor

    def dequantize(self) -> Tensor:
        """(..., K) float32."""
        return self.values.float() * self.scale


def quantize_rows(x: Tensor) -> Quantized:
    """x (..., K) with a scale for each row."""
    if runs_kernels(x):
        from wan_s2v.ops.float8_kernel import launch_quantize

        return launch_quantize(x, gelu=False)
    return plain_quantize_rows(x)


def gelu_rows(x: Tensor) -> Quantized:
    """GELU in its tanh form of x (..., K), with a scale for each row."""
    if runs_kernels(x):
        from wan_s2v.ops.float8_kernel import launch_quantize

        return launch_quantize(x, gelu=True)
    return plain_quantize_rows(F.gelu(x.float(), approximate="tanh"))


def plain_quantize_rows(x: Tensor) -> Quantized:
    """`quantize_rows` in plain PyTorch."""
    x = x.float()
    scale = x.abs().amax(dim=-1, keepdim=True).clamp(min=_SMALLEST) / LARGEST
    return Quantized((x / scale).clamp(-LARGEST, LARGEST).to(FLOAT8), scale)


def linear_float8(x: Quantized, weight: Quantized, bias: Tensor | None) -> Tensor:
    """x · weightᵀ + bias.

    Args:
        x: (..., K).
        weight: (N, K).
        bias: (N,), in the dtype of the result; the result is bfloat16 without it.
    Returns: (..., N).
    """
    dtype = torch.bfloat16 if bias is None else bias.dtype
    if not x.values.is_cuda:
        return F.linear(x.dequantize(), weight.dequantize(), None if bias is None else bias.float()).to(dtype)
    product = torch._scaled_mm(
        x.values.flatten(0, -2),
        weight.values.t(),
        scale_a=x.scale.flatten(0, -2),
        scale_b=weight.scale.t(),
        bias=bias,
        out_dtype=dtype,
        use_fast_accum=True,
    )
    return product.unflatten(0, x.values.shape[:-1])
