"""8-bit matrix products: values in int8 or float8 e4m3 with one float32 scale for each row, of both factors.

A row's largest magnitude becomes the largest that the format holds, 127 or 448. Scales go with the rows of the result,
so the product stays one product of 8-bit matrices. Steps of int8 are even, those of float8 grow with the value: of rows
without outliers int8 keeps more, float8 is what published 8-bit weights are stored in.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from wan_s2v.ops.dispatch import runs_kernels

INT8: Final = torch.int8
FLOAT8: Final = torch.float8_e4m3fn
LARGEST: Final = {INT8: 127.0, FLOAT8: torch.finfo(FLOAT8).max}
_SMALLEST: Final = 1e-12  # of a row's magnitude, so that rows of zeros have a scale


class Quantized(NamedTuple):
    """A matrix as values · scale.

    Args:
        values: (..., K) int8 or float8 e4m3.
        scale: (..., 1) float32.
    """

    values: Tensor
    scale: Tensor

    def dequantize(self) -> Tensor:
        """(..., K) float32."""
        return self.values.float() * self.scale


def quantize_rows(x: Tensor, dtype: torch.dtype) -> Quantized:
    """x (..., K) in INT8 or FLOAT8, with a scale for each row."""
    if runs_kernels(x):
        from wan_s2v.ops.eight_bit_kernel import launch_quantize

        return launch_quantize(x, dtype, gelu=False)
    return plain_quantize_rows(x, dtype)


def gelu_rows(x: Tensor, dtype: torch.dtype) -> Quantized:
    """GELU in its tanh form of x (..., K), in INT8 or FLOAT8, with a scale for each row."""
    if runs_kernels(x):
        from wan_s2v.ops.eight_bit_kernel import launch_quantize

        return launch_quantize(x, dtype, gelu=True)
    return plain_quantize_rows(F.gelu(x.float(), approximate="tanh"), dtype)


def plain_quantize_rows(x: Tensor, dtype: torch.dtype) -> Quantized:
    """`quantize_rows` in plain PyTorch."""
    x, largest = x.float(), LARGEST[dtype]
    scale = x.abs().amax(dim=-1, keepdim=True).clamp(min=_SMALLEST) / largest
    scaled = (x / scale).clamp(-largest, largest)
    return Quantized(((scaled + 0.5).floor() if dtype == INT8 else scaled).to(dtype), scale)


def eight_bit_linear(x: Quantized, weight: Quantized, bias: Tensor | None) -> Tensor:
    """x · weightᵀ + bias.

    Args:
        x: (..., K).
        weight: (N, K), its values in the dtype of x's.
        bias: (N,), in the dtype of the result; the result is bfloat16 without it.
    Returns: (..., N).
    """
    dtype = torch.bfloat16 if bias is None else bias.dtype
    if not x.values.is_cuda:
        return F.linear(x.dequantize(), weight.dequantize(), None if bias is None else bias.float()).to(dtype)
    rows = Quantized(x.values.flatten(0, -2), x.scale.flatten(0, -2))
    if x.values.dtype == INT8:
        from wan_s2v.ops.eight_bit_kernel import launch_linear_int8

        product = launch_linear_int8(rows, weight, bias, dtype)
    else:
        product = torch._scaled_mm(
            rows.values,
            weight.values.t(),
            scale_a=rows.scale,
            scale_b=weight.scale.t(),
            bias=bias,
            out_dtype=dtype,
            use_fast_accum=True,
        )
    return product.unflatten(0, x.values.shape[:-1])
