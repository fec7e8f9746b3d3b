"""Triton kernels of `channel_norm` and `add_residual`: a program takes all channels of a few positions.

Maps with channels last and maps with channels first differ in two strides only.
"""
# mypy: disallow-untyped-defs=False

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from wan_s2v.ops.channel_norm import MIN_NORM

_TILE = 4096  # elements of a program: 32 for each thread of four warps
_MIN_RUN = 16  # positions that lie side by side in a map with channels first


def launch_channel_norm(x: Tensor, gamma: Tensor, bias: Tensor | None, silu: bool, out: Tensor) -> Tensor:
    """`channel_norm` into `out`, whose height, width and frames must lie as in a dense map (frames may be left out)."""
    source, target = x.flatten(2), out.view(*out.shape[:2], -1)
    grid, shared = _plan(source)
    _channel_norm[grid](
        source,
        gamma.contiguous(),
        gamma if bias is None else bias,
        target,
        *source.stride(),
        *target.stride(),
        scale=x.shape[1] ** 0.5,
        MIN_NORM=MIN_NORM,
        HAS_BIAS=bias is not None,
        SILU=silu,
        **shared,
    )
    return out


def launch_add_residual(x: Tensor, residual: Tensor, bias: Tensor | None) -> Tensor:
    """`add_residual`; x is overwritten."""
    target, source = x.view(*x.shape[:2], -1), residual.flatten(2)
    grid, shared = _plan(target)
    _add_residual[grid](
        target,
        source,
        target if bias is None else bias,
        *target.stride(),
        *source.stride(),
        HAS_BIAS=bias is not None,
        **shared,
    )
    return x


def _plan(x: Tensor) -> tuple[tuple[int, int], dict[str, Any]]:
    """The grid for (B, C, positions), and what both kernels are told."""
    batch, channels, positions = x.shape
    block_c = triton.next_power_of_2(channels)
    block_p = max(1 if x.stride(1) == 1 else _MIN_RUN, _TILE // block_c)
    shared = {"num_positions": positions, "C": channels, "BLOCK_P": block_p, "BLOCK_C": block_c}
    return (triton.cdiv(positions, block_p), batch), shared


@triton.jit
def _place(num_positions, C: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr):
    """Batch, position (P, 1) and channel (1, C) of this program, in 64 bits: a map can have more than 2³¹ values."""
    position = tl.program_id(0).to(tl.int64) * BLOCK_P + tl.arange(0, BLOCK_P)[:, None]
    channel = tl.arange(0, BLOCK_C)[None, :]
    inside = (position < num_positions) & (channel < C)
    return tl.program_id(1).to(tl.int64), position, channel, inside


@triton.jit
def _channel_norm(
    x_ptr,
    gamma_ptr,
    bias_ptr,
    out_ptr,
    x_batch,
    x_channel,
    x_position,
    out_batch,
    out_channel,
    out_position,
    num_positions,
    scale,
    MIN_NORM: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    SILU: tl.constexpr,
    C: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    batch, position, channel, inside = _place(num_positions, C, BLOCK_P, BLOCK_C)
    x = tl.load(x_ptr + batch * x_batch + position * x_position + channel * x_channel, mask=inside, other=0.0)
    x = x.to(tl.float32)
    if HAS_BIAS:
        x += tl.load(bias_ptr + channel, mask=channel < C, other=0.0).to(tl.float32)
    length = tl.maximum(tl.sqrt(tl.sum(x * x, axis=1, keep_dims=True)), MIN_NORM)
    y = x * (scale / length) * tl.load(gamma_ptr + channel, mask=channel < C, other=0.0).to(tl.float32)
    if SILU:
        y *= tl.sigmoid(y)
    out = out_ptr + batch * out_batch + position * out_position + channel * out_channel
    tl.store(out, y.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _add_residual(
    x_ptr,
    residual_ptr,
    bias_ptr,
    x_batch,
    x_channel,
    x_position,
    residual_batch,
    residual_channel,
    residual_position,
    num_positions,
    HAS_BIAS: tl.constexpr,
    C: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    batch, position, channel, inside = _place(num_positions, C, BLOCK_P, BLOCK_C)
    place = x_ptr + batch * x_batch + position * x_position + channel * x_channel
    other = residual_ptr + batch * residual_batch + position * residual_position + channel * residual_channel
    total = tl.load(place, mask=inside, other=0.0).to(tl.float32)
    if HAS_BIAS:
        total += tl.load(bias_ptr + channel, mask=channel < C, other=0.0).to(tl.float32)
    total += tl.load(other, mask=inside, other=0.0).to(tl.float32)
    tl.store(place, total.to(x_ptr.dtype.element_ty), mask=inside)
