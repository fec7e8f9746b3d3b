"""Triton kernel of `add_and_norm`: one program per token reads the stream once and writes it once.

At 79,200 tokens of 5,120 channels the stream is 1.6 GB: sum, gate, norm, modulation and rounding as separate operations
move it five times.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from wan_s2v.ops.eight_bit import INT8, LARGEST, Quantized
from wan_s2v.ops.eight_bit_kernel import round_row
from wan_s2v.ops.norm import Affine, Rows, Update


def launch_add_and_norm(
    x: Tensor, update: Update, norm: Affine, dtype: torch.dtype
) -> tuple[Tensor, Tensor | Quantized]:
    """`add_and_norm`; x (B, L, C) is overwritten, and so is the update where the normed tokens fit in its place."""
    batch, length, channels = x.shape
    values, gate = update
    shape = (batch, norm.num_tokens, channels)
    if values.shape == shape and values.dtype == dtype and values.is_contiguous():
        out = values  # a program reads its row before it writes it
    else:
        out = torch.empty(shape, dtype=dtype, device=x.device)
    scale = torch.empty(batch, norm.num_tokens, 1, device=x.device) if dtype in LARGEST else None
    num_updated = values.shape[1]
    assert x.is_contiguous()
    assert values.stride(-1) == 1
    _add_and_norm[(max(num_updated, norm.num_tokens), batch)](
        x,
        values,
        out,
        scale,
        *_row_arguments(gate or norm.weight),
        *_row_arguments(norm.weight),
        *_row_arguments(norm.bias)[:2],
        length,
        num_updated,
        norm.num_tokens,
        values.stride(0),
        values.stride(1),
        norm.eps,
        channels,
        HAS_GATE=gate is not None,
        QUANTIZES=scale is not None,
        LARGEST=LARGEST.get(dtype, 0.0),
        WHOLE=dtype == INT8,
        BLOCK=triton.next_power_of_2(channels),
        num_warps=8 if channels > 2048 else 4,
    )
    return x, out if scale is None else Quantized(out, scale)


def _row_arguments(rows: Rows) -> tuple[Any, ...]:
    """Table, distance of its batches, number and length of stretches."""
    table = rows.table if rows.table.stride(-1) == 1 else rows.table.contiguous()
    assert table.dtype == torch.float32
    assert table.stride(1) == table.shape[2] or table.shape[1] == 1
    return table, table.stride(0) if table.shape[0] > 1 else 0, table.shape[1], rows.length


@triton.jit
def _add_and_norm(
    x_ptr,
    update_ptr,
    out_ptr,
    scale_ptr,
    gate_ptr,
    gate_batch,
    gate_count,
    gate_length,
    weight_ptr,
    weight_batch,
    norm_count,
    norm_length,
    bias_ptr,
    bias_batch,
    num_tokens,
    num_updated,
    num_normed,
    update_batch,
    update_token,
    eps,
    channels,
    HAS_GATE: tl.constexpr,
    QUANTIZES: tl.constexpr,
    LARGEST: tl.constexpr,
    WHOLE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    batch = tl.program_id(1).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < channels
    place = (batch * num_tokens + token) * channels + column
    x = tl.load(x_ptr + place, mask=inside, other=0.0)
    if token < num_updated:
        update = tl.load(update_ptr + batch * update_batch + token * update_token + column, mask=inside, other=0.0)
        update = update.to(tl.float32)
        if HAS_GATE:
            row = tl.minimum(token // gate_length, gate_count - 1)
            update *= tl.load(gate_ptr + batch * gate_batch + row * channels + column, mask=inside, other=0.0)
        x += update
        tl.store(x_ptr + place, x, mask=inside)
    if token < num_normed:
        mean = tl.sum(x, axis=0) / channels
        centred = tl.where(inside, x - mean, 0.0)
        variance = tl.sum(centred * centred, axis=0) / channels
        row = tl.minimum(token // norm_length, norm_count - 1)
        weight = tl.load(weight_ptr + batch * weight_batch + row * channels + column, mask=inside, other=0.0)
        bias = tl.load(bias_ptr + batch * bias_batch + row * channels + column, mask=inside, other=0.0)
        normed = centred * tl.rsqrt(variance + eps) * weight + bias
        target = batch * num_normed + token
        if QUANTIZES:
            values, scale = round_row(normed, LARGEST, WHOLE)
            tl.store(scale_ptr + target, scale)
            tl.store(out_ptr + target * channels + column, values, mask=inside)
        else:
            tl.store(out_ptr + target * channels + column, normed.to(out_ptr.dtype.element_ty), mask=inside)
