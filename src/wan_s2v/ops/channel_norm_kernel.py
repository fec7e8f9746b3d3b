"""Triton kernels of `channel_norm` and `add_residual`: a program takes all channels of a few positions.

Maps with channels last and maps with channels first differ in their strides only.
"""
# mypy: disallow-untyped-defs=False

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from wan_s2v.ops.channel_norm import MIN_NORM

_TILE = 4096  # elements of a program: 32 for each thread of four warps
_MIN_RUN = 16  # positions that lie side by side in a map with channels first


def launch_channel_norm(x: Tensor, gamma: Tensor, bias: Tensor | None, silu: bool, out: Tensor) -> Tensor:
    """`channel_norm` into `out`, of any strides."""
    batch, channels, frames, height, width = x.shape
    source = x.flatten(2)
    tile = _tile(source)
    _channel_norm[(frames * height * triton.cdiv(width, tile["BLOCK_P"]), batch)](
        source,
        gamma.contiguous(),
        gamma if bias is None else bias,
        out,
        *source.stride(),
        *out.stride(),
        height,
        width,
        scale=channels**0.5,
        MIN_NORM=MIN_NORM,
        HAS_BIAS=bias is not None,
        SILU=silu,
        **tile,
    )
    return out


def launch_add_residual(x: Tensor, residual: Tensor, bias: Tensor | None) -> Tensor:
    """`add_residual`; x is overwritten."""
    target, source = x.view(*x.shape[:2], -1), residual.flatten(2)
    positions, tile = target.shape[2], _tile(target)
    _add_residual[(triton.cdiv(positions, tile["BLOCK_P"]), x.shape[0])](
        target,
        source,
        target if bias is None else bias,
        *target.stride(),
        *source.stride(),
        positions,
        HAS_BIAS=bias is not None,
        **tile,
    )
    return x


def _tile(x: Tensor) -> dict[str, int]:
    """What a program takes of (B, C, positions)."""
    channels = x.shape[1]
    block_c = triton.next_power_of_2(channels)
    block_p = max(1 if x.stride(1) == 1 else _MIN_RUN, _TILE // block_c)
    return {"C": channels, "BLOCK_P": block_p, "BLOCK_C": block_c}


@triton.jit(do_not_specialize=("height", "width"))
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
    out_frame,
    out_row,
    out_pixel,
    height,
    width,
    scale,
    MIN_NORM: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    SILU: tl.constexpr,
    C: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    batch = tl.program_id(1).to(tl.int64)
    runs = tl.cdiv(width, BLOCK_P)  # of a line, so that where it lies need not be found for every position
    line = (tl.program_id(0) // runs).to(tl.int64)
    pixel = tl.program_id(0) % runs * BLOCK_P + tl.arange(0, BLOCK_P)[:, None]
    channel = tl.arange(0, BLOCK_C)[None, :]
    inside = (pixel < width) & (channel < C)
    source = x_ptr + batch * x_batch + line * width * x_position
    x = tl.load(source + pixel * x_position + channel * x_channel, mask=inside, other=0.0)
    x = x.to(tl.float32)
    if HAS_BIAS:
        x += tl.load(bias_ptr + channel, mask=channel < C, other=0.0).to(tl.float32)
    length = tl.maximum(tl.sqrt(tl.sum(x * x, axis=1, keep_dims=True)), MIN_NORM)
    y = x * (scale / length) * tl.load(gamma_ptr + channel, mask=channel < C, other=0.0).to(tl.float32)
    if SILU:
        y *= tl.sigmoid(y)
    out = out_ptr + batch * out_batch + (line // height) * out_frame + (line % height) * out_row
    tl.store(out + pixel * out_pixel + channel * out_channel, y.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=("num_positions",))
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
    batch = tl.program_id(1).to(tl.int64)
    position = (
        tl.program_id(0).to(tl.int64) * BLOCK_P + tl.arange(0, BLOCK_P)[:, None]
    )  # there can be more than 2³¹ values
    channel = tl.arange(0, BLOCK_C)[None, :]
    inside = (position < num_positions) & (channel < C)
    place = x_ptr + batch * x_batch + position * x_position + channel * x_channel
    other = residual_ptr + batch * residual_batch + position * residual_position + channel * residual_channel
    total = tl.load(place, mask=inside, other=0.0).to(tl.float32)
    if HAS_BIAS:
        total += tl.load(bias_ptr + channel, mask=channel < C, other=0.0).to(tl.float32)
    total += tl.load(other, mask=inside, other=0.0).to(tl.float32)
    tl.store(place, total.to(x_ptr.dtype.element_ty), mask=inside)
