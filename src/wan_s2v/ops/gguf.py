"""Weights in the block formats of GGUF files: small integers that share scales, expanded to floating point.

A row of a matrix is a sequence of blocks, each with its own scales. Layouts as in ggml-org/ggml `src/ggml-common.h`;
every value is computed in float32 in the order of its reference, so that the results are the same bits.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import torch
from torch import Tensor

from wan_s2v.ops.dispatch import runs_kernels


class BlockFormat(NamedTuple):
    """How many values a block holds, and how many bytes it takes."""

    size: int
    num_bytes: int


BLOCKS: Final = {
    "Q8_0": BlockFormat(32, 34),
    "Q6_K": BlockFormat(256, 210),
    "Q5_K": BlockFormat(256, 176),
    "Q4_K": BlockFormat(256, 144),
    "Q5_1": BlockFormat(32, 24),
    "Q5_0": BlockFormat(32, 22),
    "Q4_1": BlockFormat(32, 20),
    "Q4_0": BlockFormat(32, 18),
}


def dequantize(blocks: Tensor, kind: str, dtype: torch.dtype) -> Tensor:
    """The values of packed rows.

    Args:
        blocks: (..., bytes) uint8, whole blocks of `kind` in every row.
        kind: a key of BLOCKS.
        dtype: of the result, to which the float32 values are rounded once.
    Returns: (..., K).
    """
    if runs_kernels(blocks):
        from wan_s2v.ops.gguf_kernel import launch_dequantize

        return launch_dequantize(blocks, kind, dtype)
    return plain_dequantize(blocks, kind).to(dtype)


def plain_dequantize(blocks: Tensor, kind: str) -> Tensor:
    """`dequantize` to float32 in plain PyTorch."""
    rows = blocks.reshape(-1, BLOCKS[kind].num_bytes)
    return _EXPAND[kind](rows).reshape(*blocks.shape[:-1], -1)


def _q8_0(rows: Tensor) -> Tensor:
    """Scale, then 32 signed bytes."""
    scale, values = rows.split((2, 32), dim=1)
    return _signed(values) * _half(scale)


def _q4_k(rows: Tensor) -> Tensor:
    """Scale and offset of the block, those of its 8 groups in 6 bits, 256 values of 4 bits."""
    scale, offset, groups, low = rows.split((2, 2, 12, 128), dim=1)
    return _affine(_half(scale), _half(offset), groups, _nibbles(low, 32))


def _q5_k(rows: Tensor) -> Tensor:
    """As Q4_K, with a fifth bit of every value: bit g of byte l belongs to value l of group g."""
    scale, offset, groups, high, low = rows.split((2, 2, 12, 32, 128), dim=1)
    bit = torch.arange(8, dtype=torch.uint8, device=rows.device)[:, None]
    fifth = (high[:, None] >> bit) & 1
    return _affine(_half(scale), _half(offset), groups, _nibbles(low, 32) | fifth << 4)


def _q6_k(rows: Tensor) -> Tensor:
    """256 values of 4 + 2 bits, less 32; a signed byte as scale of every 16, and the scale of the block."""
    low, high, scales, scale = rows.split((128, 64, 16, 2), dim=1)
    shift = torch.arange(0, 8, 2, dtype=torch.uint8, device=rows.device)[:, None]
    top = (high.reshape(-1, 2, 1, 32) >> shift) & 3  # (rows, half, quarter, 32)
    bottom = _nibbles(low, 64).reshape(-1, 2, 4, 32)
    values = (bottom | top << 4).to(torch.int8) - 32
    groups = _half(scale) * _signed(scales)
    return (groups[:, :, None] * values.reshape(-1, 16, 16).float()).flatten(1)


def _q4_0(rows: Tensor) -> Tensor:
    """Scale, then 32 values of 4 bits, less 8."""
    scale, low = rows.split((2, 16), dim=1)
    return _half(scale) * (_nibbles(low, 16).flatten(1).float() - 8)


def _q4_1(rows: Tensor) -> Tensor:
    """Scale, offset, 32 values of 4 bits."""
    scale, offset, low = rows.split((2, 2, 16), dim=1)
    return _half(scale) * _nibbles(low, 16).flatten(1).float() + _half(offset)


def _q5_0(rows: Tensor) -> Tensor:
    """Scale, the fifth bits in order, 32 values of 4 more bits, less 16."""
    scale, high, low = rows.split((2, 4, 16), dim=1)
    return _half(scale) * (_five_bits(high, low).float() - 16)


def _q5_1(rows: Tensor) -> Tensor:
    """Scale, offset, the fifth bits in order, 32 values of 4 more bits."""
    scale, offset, high, low = rows.split((2, 2, 4, 16), dim=1)
    return _half(scale) * _five_bits(high, low).float() + _half(offset)


def _five_bits(high: Tensor, low: Tensor) -> Tensor:
    fifth = (high[:, :, None] >> torch.arange(8, dtype=torch.uint8, device=high.device)) & 1
    return _nibbles(low, 16).flatten(1) | fifth.flatten(1) << 4


def _affine(scale: Tensor, offset: Tensor, groups: Tensor, values: Tensor) -> Tensor:
    """values (rows, 8, 32) · scale of their group - offset of their group."""
    scales, offsets = _six_bits(groups)
    return ((scale * scales)[:, :, None] * values.float() - (offset * offsets)[:, :, None]).flatten(1)


def _six_bits(groups: Tensor) -> tuple[Tensor, Tensor]:
    """8 scales and 8 offsets, float32, from 12 bytes: the first four of each in the low six bits of bytes 0-3 and 4-7,
    the other four in a nibble of bytes 8-11 below the two top bits of those.
    """
    first, second, rest = groups.split(4, dim=1)
    scales = torch.cat((first & 63, (rest & 15) | (first >> 6) << 4), dim=1)
    offsets = torch.cat((second & 63, rest >> 4 | (second >> 6) << 4), dim=1)
    return scales.float(), offsets.float()


def _nibbles(packed: Tensor, run: int) -> Tensor:
    """(rows, n · run, run)-wise low and high halves of bytes: each run of bytes holds a run of values, then another."""
    runs = packed.reshape(packed.shape[0], -1, 1, run)
    return torch.cat((runs & 15, runs >> 4), dim=2).reshape(packed.shape[0], -1, run)


def _half(packed: Tensor) -> Tensor:
    """(rows, 2) bytes → (rows, 1) float32."""
    return packed.contiguous().view(torch.float16).float()


def _signed(packed: Tensor) -> Tensor:
    return packed.contiguous().view(torch.int8).float()


_EXPAND: Final = {
    "Q8_0": _q8_0,
    "Q6_K": _q6_k,
    "Q5_K": _q5_k,
    "Q4_K": _q4_k,
    "Q5_1": _q5_1,
    "Q5_0": _q5_0,
    "Q4_1": _q4_1,
    "Q4_0": _q4_0,
}
