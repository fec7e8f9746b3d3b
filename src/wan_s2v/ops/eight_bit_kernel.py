"""Triton kernels of 8-bit products: one rounds rows, after a GELU where one is asked for, one multiplies int8."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from wan_s2v.ops.eight_bit import INT8, LARGEST, Quantized

_ROWS, _COLUMNS, _DEPTH = 128, 128, 128  # of a program's share of a product
_WIDE_COLUMNS = 256  # where the chip has the shared memory for it
_GROUP = 8  # shares below each other that are computed together, since they read the same weights


def launch_quantize(x: Tensor, dtype: torch.dtype, *, gelu: bool) -> Quantized:
    """Rows of x (..., K), contiguous, in 8 bits with scales."""
    channels = x.shape[-1]
    assert x.is_contiguous()
    values = torch.empty(x.shape, dtype=dtype, device=x.device)
    scale = torch.empty((*x.shape[:-1], 1), dtype=torch.float32, device=x.device)
    block = triton.next_power_of_2(channels)
    _quantize[(scale.numel(),)](
        x,
        values,
        scale,
        channels,
        LARGEST=LARGEST[dtype],
        WHOLE=dtype == INT8,
        GELU=gelu,
        BLOCK=block,
        num_warps=16 if block > 8192 else 8,
    )
    return Quantized(values, scale)


def launch_linear_int8(x: Quantized, weight: Quantized, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """x (M, K) · weight (N, K)ᵀ + bias (N,) → (M, N) in dtype; K is a multiple of 16."""
    from triton.tools.tensor_descriptor import TensorDescriptor  # Triton 3.4; other kernels run on older ones

    (rows, depth), columns = x.values.shape, weight.values.shape[0]
    wide = x.values.is_cuda and torch.cuda.get_device_capability(x.values.device)[0] >= 9
    block = _WIDE_COLUMNS if wide else _COLUMNS
    out = torch.empty(rows, columns, dtype=dtype, device=x.values.device)
    _linear[(triton.cdiv(rows, _ROWS) * triton.cdiv(columns, block),)](
        TensorDescriptor.from_tensor(x.values, [_ROWS, _DEPTH]),
        TensorDescriptor.from_tensor(weight.values, [block, _DEPTH]),
        x.scale,
        weight.scale,
        bias,
        out,
        rows,
        columns,
        depth,
        HAS_BIAS=bias is not None,
        ROWS=_ROWS,
        COLUMNS=block,
        DEPTH=_DEPTH,
        GROUP=_GROUP,
        num_warps=8,
        num_stages=4 if wide else 3,
    )
    return out


@triton.jit
def _quantize(
    x_ptr,
    values_ptr,
    scale_ptr,
    channels,
    LARGEST: tl.constexpr,
    WHOLE: tl.constexpr,
    GELU: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < channels
    x = tl.load(x_ptr + row * channels + column, mask=inside, other=0.0).to(tl.float32)
    if GELU:
        inner = 0.7978845608028654 * (x + 0.044715 * x * x * x)  # sqrt(2 / pi)
        x = x * tl.sigmoid(2 * inner)  # (1 + tanh(inner)) / 2
    values, scale = round_row(x, LARGEST, WHOLE)
    tl.store(scale_ptr + row, scale)
    tl.store(values_ptr + row * channels + column, values, mask=inside)


@triton.jit
def round_row(x, LARGEST: tl.constexpr, WHOLE: tl.constexpr):
    """8-bit values of a row (BLOCK,) float32, whole numbers or float8, and its scale."""
    scale = tl.maximum(tl.max(tl.abs(x), axis=0), 1e-12) / LARGEST
    scaled = tl.minimum(tl.maximum(x / scale, -LARGEST), LARGEST)
    if WHOLE:
        return tl.floor(scaled + 0.5).to(tl.int8), scale
    else:
        return scaled.to(tl.float8e4nv), scale


@triton.jit
def _linear(
    x_rows,
    weight_rows,
    x_scale_ptr,
    weight_scale_ptr,
    bias_ptr,
    out_ptr,
    rows,
    columns,
    depth,
    HAS_BIAS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    GROUP: tl.constexpr,
):
    program = tl.program_id(0)
    tall, wide = tl.cdiv(rows, ROWS), tl.cdiv(columns, COLUMNS)
    top = program // (GROUP * wide) * GROUP
    height = tl.minimum(tall - top, GROUP)
    within = program % (GROUP * wide)
    first_row, first_column = (top + within % height) * ROWS, within // height * COLUMNS
    sums = tl.zeros((ROWS, COLUMNS), tl.int32)
    for start in range(0, depth, DEPTH):
        x, weight = x_rows.load([first_row, start]), weight_rows.load([first_column, start])
        sums = tl.dot(x, weight.T, sums, out_dtype=tl.int32)  # which Triton 3.6 does not take from the sums
    row, column = first_row + tl.arange(0, ROWS), first_column + tl.arange(0, COLUMNS)
    x_scale = tl.load(x_scale_ptr + row, mask=row < rows, other=0.0)
    weight_scale = tl.load(weight_scale_ptr + column, mask=column < columns, other=0.0)
    product = sums.to(tl.float32) * x_scale[:, None] * weight_scale[None, :]
    if HAS_BIAS:
        product += tl.load(bias_ptr + column, mask=column < columns, other=0.0).to(tl.float32)[None, :]
    place = out_ptr + row.to(tl.int64)[:, None] * columns + column[None, :]
    tl.store(place, product.to(out_ptr.dtype.element_ty), mask=(row < rows)[:, None] & (column < columns)[None, :])
