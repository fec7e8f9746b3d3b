"""Triton kernel of `norm_and_turn`: one program per token, in place."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from wan_s2v.ops.rope import RotaryTable


def launch_norm_and_turn(x: Tensor, weight: Tensor, eps: float, num_heads: int, table: RotaryTable | None) -> Tensor:
    """`norm_and_turn`; x (B, L, C) is overwritten."""
    batch, length, channels = x.shape
    assert x.is_contiguous()
    if table is not None:
        assert table.cos.is_contiguous()
        assert table.sin.is_contiguous()
    _norm_and_turn[(batch * length,)](
        x,
        weight,
        x if table is None else table.cos,
        x if table is None else table.sin,
        length,
        channels,
        channels // num_heads // 2,
        eps,
        TURNS=table is not None,
        BLOCK=triton.next_power_of_2(channels),
        num_warps=8 if channels > 2048 else 4,
    )
    return x.unflatten(-1, (num_heads, -1))


@triton.jit
def _norm_and_turn(
    x_ptr,
    weight_ptr,
    cos_ptr,
    sin_ptr,
    num_tokens,
    channels,
    half,
    eps,
    TURNS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < channels
    x = tl.load(x_ptr + row * channels + column, mask=inside, other=0.0).to(tl.float32)
    mean_square = tl.sum(x * x, axis=0) / channels
    x *= tl.rsqrt(mean_square + eps)
    x *= tl.load(weight_ptr + column, mask=inside, other=0.0).to(tl.float32)
    if TURNS:
        even, odd = tl.split(tl.reshape(x, (BLOCK // 2, 2)))
        pair = tl.arange(0, BLOCK // 2)
        known = pair < channels // 2
        angle = (row % num_tokens) * half + pair % half
        cos = tl.load(cos_ptr + angle, mask=known, other=0.0)
        sin = tl.load(sin_ptr + angle, mask=known, other=0.0)
        x = tl.reshape(tl.join(even * cos - odd * sin, even * sin + odd * cos), (BLOCK,))
    tl.store(x_ptr + row * channels + column, x.to(x_ptr.dtype.element_ty), mask=inside)
