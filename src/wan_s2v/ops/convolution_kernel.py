"""Triton kernel of `convolve`: a matrix product whose rows are pixels and whose sums run over the kernel's taps.

With a zero behind every row and a row of zeros below every frame, a pixel's neighbours lie at fixed distances in
memory, and what is left of the first column is the zero behind the row above. So the chip's copy engine fetches the
pixels of a tap as one plain block, and fills in zeros before the first frame and behind the last.
"""
# mypy: disallow-untyped-defs=False

from __future__ import annotations

from typing import Final, NamedTuple

import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor


class _Tile(NamedTuple):
    """A program's share: pixels, and output channels in one or two parts, whose sizes must be powers of two."""

    pixels: int
    columns: int
    more_columns: int
    stages: int


_WIDE: Final = _Tile(128, 256, 128, 3)
_MIDDLE: Final = _Tile(256, 128, 64, 3)
_NARROW: Final = _Tile(256, 128, 0, 4)
_FEW_TILES: Final = 132  # processors of an H100
_SIZES: Final = (  # that differ from call to call and make no better code: one kernel for all of them compiles once
    *("frames", "height", "width", "padded_height", "padded_width", "up", "left"),
    *("kernel_frames", "kernel_rows", "kernel_columns", "parts", "added_columns"),
)


def launch_convolve(
    x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, out: Tensor, *origin: int
) -> None:
    """`convolve` of one video.

    Args:
        x: (T + KT - 1, H', W', C) contiguous; H' and W' are those of `out`, or one more and zero there.
        weight: (O, KT, KH, KW, C) contiguous.
        bias: (O,).
        residual: (T, H, W, O) contiguous, or None.
        out: (T, H, W, O), channels contiguous.
        origin: rows and columns from a pixel back to that of the first tap.
    """
    frames, height, width, columns = out.shape
    taps, channels = weight.shape[1:4], weight.shape[4]
    depth = next(size for size in (64, 32, 16) if channels % size == 0)
    positions = frames * x.shape[1] * x.shape[2]
    tile = _tile(columns, positions)
    rows, kernels = x.view(-1, channels), weight.view(columns, -1)
    grid = triton.cdiv(positions, tile.pixels), triton.cdiv(columns, tile.columns + tile.more_columns)
    _convolve[grid](
        TensorDescriptor.from_tensor(rows, [tile.pixels, depth]),
        TensorDescriptor.from_tensor(kernels, [tile.columns, depth]),
        TensorDescriptor.from_tensor(kernels, [tile.more_columns or 16, depth]),
        bias,
        out if residual is None else residual,
        out,
        frames,
        height,
        width,
        *x.shape[1:3],
        columns,
        *out.stride()[:3],
        *origin,
        *taps,
        channels // depth,
        0 if residual is None else columns,
        DEPTH=depth,
        PIXELS=tile.pixels,
        LEFT=tile.columns,
        RIGHT=tile.more_columns,
        num_warps=8,
        num_stages=tile.stages,
    )


def _tile(columns: int, positions: int) -> _Tile:
    """The one that computes the fewest columns in vain; of equals the widest that gives every processor work."""
    if columns <= 64:
        return _NARROW._replace(columns=max(16, triton.next_power_of_2(columns)))
    tiles = (_WIDE, _MIDDLE, _NARROW) if positions >= 4 * _FEW_TILES * _WIDE.pixels else (_MIDDLE, _NARROW)
    return min(tiles, key=lambda tile: -columns % (tile.columns + tile.more_columns))


@triton.jit(do_not_specialize=_SIZES)
def _convolve(
    x,
    weight,
    more_weight,
    bias_ptr,
    residual_ptr,
    out_ptr,
    frames,
    height,
    width,
    padded_height,
    padded_width,
    columns,
    out_frame,
    out_row,
    out_pixel,
    up,
    left,
    kernel_frames,
    kernel_rows,
    kernel_columns,
    parts,
    added_columns,
    DEPTH: tl.constexpr,
    PIXELS: tl.constexpr,
    LEFT: tl.constexpr,
    RIGHT: tl.constexpr,
):
    first = tl.program_id(0) * PIXELS
    first_column = tl.program_id(1) * (LEFT + RIGHT)
    sums = tl.zeros((PIXELS, LEFT), tl.float32)
    more_sums = tl.zeros((PIXELS, RIGHT if RIGHT else 16), tl.float32)
    part, column, row, frame = 0, 0, 0, 0
    for step in range(kernel_frames * kernel_rows * kernel_columns * parts):
        shift = (frame * padded_height + row - up) * padded_width + column - left
        pixels = x.load([first + shift, part * DEPTH])
        sums = tl.dot(pixels, weight.load([first_column, step * DEPTH]).T, sums)
        if RIGHT:
            more_sums = tl.dot(pixels, more_weight.load([first_column + LEFT, step * DEPTH]).T, more_sums)
        part, carry = _count(part, 1, parts)
        column, carry = _count(column, carry, kernel_columns)
        row, carry = _count(row, carry, kernel_rows)
        frame += carry
    position = first + tl.arange(0, PIXELS)
    x_at, y_at = position % padded_width, position // padded_width % padded_height
    frame_at = position // padded_width // padded_height
    inside = (x_at < width) & (y_at < height) & (frame_at < frames)
    place = frame_at.to(tl.int64) * out_frame + y_at.to(tl.int64) * out_row + x_at * out_pixel
    same = ((frame_at * height + y_at) * width + x_at).to(tl.int64) * columns
    _finish(sums, first_column, columns, bias_ptr, residual_ptr + same, out_ptr + place, inside, added_columns, LEFT)
    if RIGHT:
        _finish(
            more_sums, first_column + LEFT, columns, bias_ptr, residual_ptr + same, out_ptr + place, inside,
            added_columns, RIGHT,
        )  # fmt: skip


@triton.jit
def _count(digit, step, base):
    """A digit plus 0 or 1, and what it carries over; a division in each step of the loop would cost more."""
    raised = digit + step
    is_full = raised == base
    return tl.where(is_full, 0, raised), tl.where(is_full, 1, 0)


@triton.jit
def _finish(sums, first_column, columns, bias_ptr, residual_ptr, out_ptr, inside, added_columns, COUNT: tl.constexpr):
    """Adds what is to be added and writes some columns of the result."""
    column = first_column + tl.arange(0, COUNT)
    known = column < columns
    sums += tl.load(bias_ptr + column, mask=known, other=0.0).to(tl.float32)[None, :]
    mask = inside[:, None] & known[None, :]
    # Not an `if`: without these loads ptxas 12.8 has the products of the widest tile wait for each other.
    added = inside[:, None] & (column < added_columns)[None, :]
    sums += tl.load(residual_ptr[:, None] + column[None, :], mask=added, other=0.0).to(tl.float32)
    tl.store(out_ptr[:, None] + column[None, :], sums.to(out_ptr.dtype.element_ty), mask=mask)
