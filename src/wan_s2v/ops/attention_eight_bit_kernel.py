"""Triton kernels of `attention_eight_bit`: one rounds queries or keys, one values, one attends.

Hopper's 8-bit products want both factors contiguous along the summed axis: head size for q · kᵀ, tokens for p · v. So
values are stored transposed. Keys and values come by the chip's copy engine (tensor descriptors).

At a head size of 128 the exponentials take as long as the products, so the loop has little else in it: one scale for
all keys of a step, applied to the rows' maxima and within the exponent; no mask but in the last step; a sum of weights
that carries the same factor as the weights in float8, so that it drops out; integers that are read as floating-point
numbers instead of being converted; and keys in an order that spares the weights a way through other threads.
"""

from __future__ import annotations

import math
from typing import Any, Final

import torch
import triton
import triton.language as tl
from torch import Tensor

from wan_s2v.ops.attention_eight_bit import KEY_BLOCK
from wan_s2v.ops.eight_bit import FLOAT8, INT8, LARGEST

_QUERIES: Final = 64  # queries of a program
_REGISTERS: Final = 168  # for each thread, so that three programs share a processor
_OFFSET = tl.constexpr(12582912.0)  # 1.5 · 2²³: whole numbers up to 2²² added to its bits are added to its value
_OFFSET_BITS = tl.constexpr(0x4B400000)
_PEAK_BITS: Final = 8  # the largest weight of a row is 2 to the power of so many before it becomes float8


def launch_attention_eight_bit(q: Tensor, k: Tensor, v: Tensor, mean: Tensor) -> Tensor:
    """`attention_eight_bit`; D is a power of two of at least 16.

    Args:
        mean: (B, 1, N, D) float32, taken from the keys.
    """
    from triton.tools.tensor_descriptor import TensorDescriptor  # Triton 3.4; other kernels run on older ones

    batch, num_queries, heads, dim = q.shape
    num_keys = k.shape[1]
    factor = math.log2(math.e) / math.sqrt(dim)
    q8, q_scale = _round(q, None, factor, per_row=True)
    k8, k_scale = _round(k, mean, 1.0, per_row=False)
    v8, v_scale = _round_values(v)
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    if q.is_cuda and _runs_on_hopper(q.device.index, dim):
        from wan_s2v.ops.attention_eight_bit_hopper_kernel import launch_attend_on_hopper

        launch_attend_on_hopper(q8, k8, v8, q_scale, k_scale, v_scale, out)
        return out.flatten(2)
    keys = TensorDescriptor.from_tensor(k8.view(-1, dim), [KEY_BLOCK, dim])
    values = TensorDescriptor.from_tensor(v8.view(batch * heads * dim, -1), [dim, KEY_BLOCK])
    _attend[(triton.cdiv(num_queries, _QUERIES), batch * heads)](
        q8, keys, values, q_scale, k_scale, v_scale, out, num_queries, num_keys, k_scale.shape[2], heads,
        DIM=dim, QUERIES=_QUERIES, KEYS=KEY_BLOCK, PEAK_BITS=_PEAK_BITS, num_warps=4, num_stages=2,
        maxnreg=_REGISTERS,
    )  # fmt: skip
    return out.flatten(2)


def _runs_on_hopper(device: int, dim: int) -> bool:
    try:
        from wan_s2v.ops.attention_eight_bit_hopper_kernel import runs_on_hopper
    except (ImportError, AttributeError):  # no Gluon in this Triton, or another one
        return False
    return runs_on_hopper(device, dim)


def _round(x: Tensor, mean: Tensor | None, factor: float, *, per_row: bool) -> tuple[Tensor, Tensor]:
    """x (B, L, N, D) - mean → (B, N, L, D) int8; and scales times `factor`, (B, N, L) or one for each block."""
    batch, length, heads, dim = x.shape
    blocks = triton.cdiv(length, KEY_BLOCK)
    values = torch.empty(batch, heads, length, dim, dtype=INT8, device=x.device)
    scale = torch.empty(batch, heads, length if per_row else blocks, device=x.device)
    _round_heads[(blocks, batch * heads)](
        x, x if mean is None else mean, values, scale, *_strides(x), length, heads, factor,
        LARGEST=LARGEST[INT8], HAS_MEAN=mean is not None, PER_ROW=per_row, DIM=dim, BLOCK=KEY_BLOCK, num_warps=4,
    )  # fmt: skip
    return values, scale


def _round_values(v: Tensor) -> tuple[Tensor, Tensor]:
    """v (B, M, N, D) → (B, N, D, M padded to whole blocks) float8 with zeros behind, and scales (B, N, D)."""
    batch, length, heads, dim = v.shape
    scale = torch.linalg.vector_norm(v, math.inf, dim=1, dtype=torch.float32).clamp(min=1e-12) / LARGEST[FLOAT8]
    blocks = triton.cdiv(length, KEY_BLOCK)
    values = torch.empty(batch, heads, dim, blocks * KEY_BLOCK, dtype=FLOAT8, device=v.device)
    _transpose_values[(blocks, batch * heads)](
        v, values, scale, *_strides(v), length, blocks * KEY_BLOCK, heads, DIM=dim, BLOCK=KEY_BLOCK, num_warps=4
    )
    return values, scale


def _strides(x: Tensor) -> tuple[Any, ...]:
    """Distances of batches, tokens and heads."""
    assert x.stride(3) == 1
    return x.stride()[:3]


@triton.jit
def _round_heads(
    x_ptr, mean_ptr, values_ptr, scale_ptr, x_batch, x_token, x_head, length, heads, factor,
    LARGEST: tl.constexpr, HAS_MEAN: tl.constexpr, PER_ROW: tl.constexpr, DIM: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    block = tl.program_id(0).to(tl.int64)
    pair = tl.program_id(1).to(tl.int64)
    batch, head = pair // heads, pair % heads
    token = block * BLOCK + tl.arange(0, BLOCK)
    channel = tl.arange(0, DIM)
    inside = (token < length)[:, None]
    source = x_ptr + batch * x_batch + head * x_head + token[:, None] * x_token + channel[None, :]
    x = tl.load(source, mask=inside, other=0.0).to(tl.float32)
    if HAS_MEAN:
        mean = tl.load(mean_ptr + pair * DIM + channel)
        x = tl.where(inside, x - mean[None, :], 0.0)
    largest = tl.maximum(tl.max(tl.abs(x), axis=1), 1e-12)
    if not PER_ROW:
        largest = tl.zeros_like(largest) + tl.max(largest, axis=0)
    scale = largest / LARGEST
    rounded = tl.floor(tl.minimum(tl.maximum(x / scale[:, None], -LARGEST), LARGEST) + 0.5).to(tl.int8)
    target = values_ptr + (pair * length + token[:, None]) * DIM + channel[None, :]
    tl.store(target, rounded, mask=inside)
    if PER_ROW:
        tl.store(scale_ptr + pair * length + token, scale * factor, mask=token < length)
    else:
        tl.store(scale_ptr + pair * tl.num_programs(0) + block, tl.max(scale, axis=0) * factor)


@triton.jit
def _transpose_values(
    v_ptr, values_ptr, scale_ptr, v_batch, v_token, v_head, length, padded, heads,
    DIM: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Of 16 tokens 2t + b and 8 + 2t + b, t < 4, b < 2, lie at 4t + b and 4t + 2 + b.

    So a thread finds the weights that it made from a product's results where the next product wants its factors.
    """
    pair = tl.program_id(1).to(tl.int64)
    batch, head = pair // heads, pair % heads
    token = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    channel = tl.arange(0, DIM)
    source = v_ptr + batch * v_batch + head * v_head + token[:, None] * v_token + channel[None, :]
    v = tl.load(source, mask=(token < length)[:, None], other=0.0).to(tl.float32)
    scale = tl.load(scale_ptr + pair * DIM + channel)
    rounded = tl.trans((v / scale[None, :]).to(tl.float8e4nv))
    place = token // 16 * 16 + token // 2 % 4 * 4 + token // 8 % 2 * 2 + token % 2
    tl.store(values_ptr + (pair * DIM + channel[:, None]) * padded + place[None, :], rounded)


@triton.jit
def _attend(
    q_ptr, keys, values, q_scale_ptr, k_scale_ptr, v_scale_ptr, out_ptr, num_queries, num_keys, num_blocks, heads,
    DIM: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, PEAK_BITS: tl.constexpr,
):  # fmt: skip
    pair = tl.program_id(1).to(tl.int64)
    query = tl.program_id(0).to(tl.int64) * QUERIES + tl.arange(0, QUERIES)
    channel = tl.arange(0, DIM)
    known = query < num_queries
    q = tl.load(q_ptr + (pair * num_queries + query[:, None]) * DIM + channel[None, :], mask=known[:, None], other=0)
    q_scale = tl.load(q_scale_ptr + pair * num_queries + query, mask=known, other=1.0)
    k_scale_ptr += pair * num_blocks
    top = tl.full((QUERIES,), float("-inf"), tl.float32)
    total = tl.zeros((QUERIES,), tl.float32)
    sums = tl.zeros((QUERIES, DIM), tl.float32)
    row = (pair * num_keys).to(tl.int32)  # of the first key; the copy engine takes no larger numbers
    first_channel = (pair * DIM).to(tl.int32)
    whole = num_keys // KEYS * KEYS
    for first in range(0, whole, KEYS):
        scores = _score(q, keys.load([row + first, 0]), QUERIES, KEYS)
        scale = q_scale * tl.load(k_scale_ptr + first // KEYS)
        top, weights, total, sums = _weigh(scores, scale, top, total, sums, PEAK_BITS, QUERIES, KEYS)
        sums = tl.dot(weights, values.load([first_channel, first]).T, sums)
    if whole < num_keys:
        scores = _score(q, keys.load([row + whole, 0]), QUERIES, KEYS)
        scores = tl.where((tl.arange(0, KEYS) + whole < num_keys)[None, :], scores, float("-inf"))
        scale = q_scale * tl.load(k_scale_ptr + whole // KEYS)
        top, weights, total, sums = _weigh(scores, scale, top, total, sums, PEAK_BITS, QUERIES, KEYS)
        sums = tl.dot(weights, values.load([first_channel, whole]).T, sums)
    v_scale = tl.load(v_scale_ptr + pair * DIM + channel)
    result = sums * v_scale[None, :] / total[:, None]
    batch, head = pair // heads, pair % heads
    target = out_ptr + ((batch * num_queries + query[:, None]) * heads + head) * DIM + channel[None, :]
    tl.store(target, result.to(out_ptr.dtype.element_ty), mask=known[:, None])


@triton.jit
def _score(q, k, QUERIES: tl.constexpr, KEYS: tl.constexpr):
    """Products of queries and keys as float32, each plus _OFFSET: sums that begin at its bits need no conversion."""
    begin = tl.full((QUERIES, KEYS), _OFFSET_BITS, tl.int32)
    return tl.dot(q, k.T, begin, out_dtype=tl.int32).to(tl.float32, bitcast=True)


@triton.jit
def _weigh(scores, scale, top, total, sums, PEAK_BITS: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr):
    """One step of the softmax: the new maxima, these keys' weights, and both sums taken down to the new maxima.

    The weights' keys are in the order of `_transpose_values`.
    """
    higher = tl.maximum(top, (tl.max(scores, axis=1) - _OFFSET) * scale)
    weights = tl.exp2(scores * scale[:, None] - (higher - PEAK_BITS + _OFFSET * scale)[:, None])
    shrink = tl.exp2(top - higher)
    ordered = weights.to(tl.float8e4nv).reshape(QUERIES, KEYS // 16, 2, 4, 2).permute(0, 1, 3, 2, 4)
    return higher, ordered.reshape(QUERIES, KEYS), total * shrink + tl.sum(weights, axis=1), sums * shrink[:, None]
