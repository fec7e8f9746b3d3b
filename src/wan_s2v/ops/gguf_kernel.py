"""Triton kernel that expands the blocks of GGUF weights: each lane finds the bits of one value and writes it once."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from wan_s2v.ops.gguf import BLOCKS

_VALUES = 1024  # of one program
_MOST_BYTES = 2**31  # offsets are 32 bits wide


def launch_dequantize(blocks: Tensor, kind: str, dtype: torch.dtype) -> Tensor:
    """Rows of blocks (..., bytes) uint8, contiguous → (..., K) in dtype."""
    size, num_bytes = BLOCKS[kind]
    assert blocks.is_contiguous()
    out = torch.empty(*blocks.shape[:-1], blocks.shape[-1] // num_bytes * size, dtype=dtype, device=blocks.device)
    assert out.numel() < _MOST_BYTES
    _dequantize[(triton.cdiv(out.numel(), _VALUES),)](
        blocks,
        blocks.view(torch.float16),
        out,
        out.numel(),
        KIND=kind,
        SMALL=size == 32,
        FIVE=kind.startswith("Q5"),
        OFFSET=kind.endswith("_1"),
        VALUES=_VALUES,
        num_warps=4,
    )
    return out


@triton.jit
def _dequantize(
    bytes_ptr,
    halves_ptr,
    out_ptr,
    count,
    KIND: tl.constexpr,
    SMALL: tl.constexpr,
    FIVE: tl.constexpr,
    OFFSET: tl.constexpr,
    VALUES: tl.constexpr,
):
    """The scales are read through a pointer of their own type: every block has an even number of bytes."""
    index = tl.program_id(0) * VALUES + tl.arange(0, VALUES)
    inside = index < count
    if KIND == "Q8_0":
        base = index // 32 * 34
        scale = tl.load(halves_ptr + base // 2, mask=inside, other=0.0).to(tl.float32)
        value = _signed(bytes_ptr + base + 2 + index % 32, inside) * scale
    elif KIND == "Q6_K":
        value = _q6_k(bytes_ptr, halves_ptr, index, inside)
    elif SMALL:
        value = _q45(bytes_ptr, halves_ptr, index, inside, FIVE, OFFSET)
    else:
        value = _q45_k(bytes_ptr, halves_ptr, index, inside, FIVE)
    tl.store(out_ptr + index, value.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _q45_k(bytes_ptr, halves_ptr, index, inside, FIVE: tl.constexpr):
    """Block: scale, offset, 12 bytes of group scales and offsets, 32 bytes of fifth bits if FIVE, 128 of nibbles."""
    base = index // 256 * (176 if FIVE else 144)
    within = index % 256
    group = within // 32
    nibbles = base + (48 if FIVE else 16)
    packed = _byte(bytes_ptr + nibbles + within // 64 * 32 + within % 32, inside)
    value = (packed >> group % 2 * 4) & 15
    if FIVE:
        value |= ((_byte(bytes_ptr + base + 16 + within % 32, inside) >> group) & 1) << 4
    groups = bytes_ptr + base + 4
    first = _byte(groups + group % 4, inside)  # of the scales, and for groups 4-7 their two top bits
    second = _byte(groups + 4 + group % 4, inside)
    rest = _byte(groups + 8 + group % 4, inside)
    scale = tl.where(group < 4, first & 63, (rest & 15) | ((first >> 6) << 4)).to(tl.float32)
    offset = tl.where(group < 4, second & 63, (rest >> 4) | ((second >> 6) << 4)).to(tl.float32)
    scale *= tl.load(halves_ptr + base // 2, mask=inside, other=0.0).to(tl.float32)
    offset *= tl.load(halves_ptr + base // 2 + 1, mask=inside, other=0.0).to(tl.float32)
    return scale * value.to(tl.float32) - offset


@triton.jit
def _q45(bytes_ptr, halves_ptr, index, inside, FIVE: tl.constexpr, OFFSET: tl.constexpr):
    """Block: scale, offset if OFFSET, 4 bytes of fifth bits if FIVE, 16 of nibbles."""
    base = index // 32 * (18 + (2 if OFFSET else 0) + (4 if FIVE else 0))
    within = index % 32
    bits = bytes_ptr + base + (4 if OFFSET else 2)
    value = (_byte(bits + (4 if FIVE else 0) + within % 16, inside) >> within // 16 * 4) & 15
    if FIVE:
        value |= ((_byte(bits + within // 8, inside) >> within % 8) & 1) << 4
    scale = tl.load(halves_ptr + base // 2, mask=inside, other=0.0).to(tl.float32)
    if OFFSET:
        value = scale * value + tl.load(halves_ptr + base // 2 + 1, mask=inside, other=0.0).to(tl.float32)
    else:
        value = scale * (value - (16 if FIVE else 8))
    return value


@triton.jit
def _q6_k(bytes_ptr, halves_ptr, index, inside):
    """Block: 128 bytes of nibbles, 64 of two top bits, 16 group scales, scale."""
    base = index // 256 * 210
    within = index % 256
    half = within // 128
    quarter = within % 128 // 32
    low = _byte(bytes_ptr + base + half * 64 + quarter % 2 * 32 + within % 32, inside)
    top = _byte(bytes_ptr + base + 128 + half * 32 + within % 32, inside)
    value = ((low >> quarter // 2 * 4) & 15) | (((top >> quarter * 2) & 3) << 4)
    scale = _signed(bytes_ptr + base + 192 + within // 16, inside)
    scale *= tl.load(halves_ptr + base // 2 + 104, mask=inside, other=0.0).to(tl.float32)
    return scale * (value - 32).to(tl.float32)


@triton.jit
def _byte(pointer, inside):
    return tl.load(pointer, mask=inside, other=0).to(tl.int32)


@triton.jit
def _signed(pointer, inside):
    return tl.load(pointer, mask=inside, other=0).to(tl.int8, bitcast=True).to(tl.float32)
