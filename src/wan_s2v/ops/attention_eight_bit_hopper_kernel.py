"""The loop of `attention_eight_bit` for Hopper, in Gluon, Triton's language of warps, barriers and copies.

The portable kernel has three programs on a processor, each of which fetches all keys and values: 6.5 TB/s at 830
TFLOP/s, which is what the second-level cache gives. Here they are one program: one warp fetches for three groups of
four warps, which wait for nobody but it. Each has 64 queries; while one multiplies, others weigh.
"""
# mypy: disallow-untyped-defs=False, disable-error-code="attr-defined"

from __future__ import annotations

import functools
from typing import Final

import torch
import triton
from torch import Tensor
from triton.errors import TritonError
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma, warpgroup_mma, warpgroup_mma_wait
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from wan_s2v.ops.attention_eight_bit import KEY_BLOCK

_DIM: Final = 128
_QUERIES: Final = 64  # of a group of warps
_GROUPS: Final = 3
_STAGES: Final = 4  # blocks of keys and values that are there or on their way
_OFFSET = gl.constexpr(12582912.0)  # see the portable kernel
_OFFSET_BITS = gl.constexpr(0x4B400000)
_PEAK_BITS = gl.constexpr(8)
_REGISTERS = gl.constexpr(160)  # of a thread that computes: those of a processor, but for the fetching warp's
_FETCH_REGISTERS = gl.constexpr(24)
_fetch_block = getattr(tma, "async_load", None) or tma.async_copy_global_to_shared  # Triton 3.9 renamed it


def launch_attend_on_hopper(
    q: Tensor, k: Tensor, v: Tensor, q_scale: Tensor, k_scale: Tensor, v_scale: Tensor, out: Tensor
) -> None:
    """Attention of what the portable module's roundings gave.

    Args:
        q, k: (B, N, L, 128), (B, N, M, 128) int8.
        v: (B, N, 128, M padded to whole blocks) float8, in the portable kernel's order of tokens.
        q_scale, k_scale, v_scale: (B, N, L), (B, N, blocks), (B, N, 128) float32.
        out: (B, L, N, 128) contiguous.
    """
    batch, heads, num_queries, dim = q.shape
    layout = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=8, rank=2)
    _attend[(triton.cdiv(num_queries, _GROUPS * _QUERIES), batch * heads)](
        TensorDescriptor.from_tensor(q.view(-1, dim), [_QUERIES, dim], layout),
        TensorDescriptor.from_tensor(k.view(-1, dim), [KEY_BLOCK, dim], layout),
        TensorDescriptor.from_tensor(v.view(batch * heads * dim, -1), [dim, KEY_BLOCK], layout),
        q_scale,
        k_scale,
        v_scale,
        out,
        num_queries,
        k.shape[2],
        heads,
        QUERIES=_QUERIES,
        KEYS=KEY_BLOCK,
        DIM=dim,
        STAGES=_STAGES,
        num_warps=4,
    )


@functools.cache
def runs_on_hopper(device: int, dim: int) -> bool:
    """Whether the kernel runs there, found by running it: Gluon still changes from one Triton to the next."""
    if torch.cuda.get_device_capability(device)[0] != 9 or dim != _DIM:
        return False
    place = torch.device("cuda", device)
    q = torch.zeros(1, 1, _QUERIES, dim, dtype=torch.int8, device=place)
    k = torch.zeros(1, 1, KEY_BLOCK, dim, dtype=torch.int8, device=place)
    v = torch.ones(1, 1, dim, KEY_BLOCK, device=place).to(torch.float8_e4m3fn)
    q_scale, k_scale, v_scale = (torch.ones(1, 1, count, device=place) for count in (_QUERIES, 1, dim))
    out = torch.zeros(1, _QUERIES, 1, dim, device=place, dtype=torch.bfloat16)
    try:
        launch_attend_on_hopper(q, k, v, q_scale, k_scale, v_scale, out)
        return bool((out == 1).all())
    except (TritonError, AttributeError, TypeError):  # another Gluon; the portable kernel does the same work
        return False


@gluon.jit
def _attend(
    queries, keys, values, q_scale_ptr, k_scale_ptr, v_scale_ptr, out_ptr, num_queries, num_keys, heads,
    QUERIES: gl.constexpr, KEYS: gl.constexpr, DIM: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    pair = gl.program_id(1)
    first_query = gl.program_id(0) * (3 * QUERIES)
    blocks = (num_keys + KEYS - 1) // KEYS
    barrier: gl.constexpr = mbarrier.MBarrierLayout()
    q = gl.allocate_shared_memory(queries.dtype, [3, QUERIES, DIM], queries.layout)
    k = gl.allocate_shared_memory(keys.dtype, [STAGES, KEYS, DIM], keys.layout)
    v = gl.allocate_shared_memory(values.dtype, [STAGES, DIM, KEYS], values.layout)
    q_there = gl.allocate_shared_memory(gl.int64, [3, 1], barrier)
    k_there = gl.allocate_shared_memory(gl.int64, [STAGES, 1], barrier)
    k_done = gl.allocate_shared_memory(gl.int64, [STAGES, 1], barrier)
    v_there = gl.allocate_shared_memory(gl.int64, [STAGES, 1], barrier)
    v_done = gl.allocate_shared_memory(gl.int64, [STAGES, 1], barrier)
    for group in gl.static_range(3):
        mbarrier.init(q_there.index(group), count=1)
    for slot in gl.static_range(STAGES):
        mbarrier.init(k_there.index(slot), count=1)
        mbarrier.init(v_there.index(slot), count=1)
        mbarrier.init(k_done.index(slot), count=3)
        mbarrier.init(v_done.index(slot), count=3)
    memory = (q, k, v, q_there, k_there, k_done, v_there, v_done)
    rest = (
        q_scale_ptr, k_scale_ptr + pair * blocks, v_scale_ptr, out_ptr, num_queries, num_keys, heads, pair, first_query
    )  # fmt: skip
    zero = first_query * 0  # a number that differs between the groups must not be a constant of their code
    origins = (pair * num_queries + first_query, pair * num_keys, pair * DIM, blocks)
    gl.warp_specialize(
        [
            (_compute, (zero,) + memory + rest),  # noqa: RUF005  Gluon knows no unpacking
            (_compute, (zero + 1,) + memory + rest),  # noqa: RUF005
            (_compute, (zero + 2,) + memory + rest),  # noqa: RUF005
            (_fetch, (queries, keys, values) + memory + origins),  # noqa: RUF005
        ],
        [4, 4, 1],
        [_REGISTERS, _REGISTERS, _FETCH_REGISTERS],
    )


@gluon.jit
def _fetch(queries, keys, values, q, k, v, q_there, k_there, k_done, v_there, v_done, query, key, channel, blocks):
    """One warp: the queries of all groups, then blocks of keys and values into slots that all groups are done with."""
    STAGES: gl.constexpr = k.shape[0]
    for group in gl.static_range(3):
        mbarrier.expect(q_there.index(group), queries.block_type.nbytes)
        _fetch_block(queries, [query + group * q.shape[1], 0], q_there.index(group), q.index(group))
    for block in range(blocks):
        slot, turn = block % STAGES, (block // STAGES & 1) ^ 1
        mbarrier.wait(k_done.index(slot), turn)
        mbarrier.expect(k_there.index(slot), keys.block_type.nbytes)
        _fetch_block(keys, [key + block * k.shape[1], 0], k_there.index(slot), k.index(slot))
        mbarrier.wait(v_done.index(slot), turn)
        mbarrier.expect(v_there.index(slot), values.block_type.nbytes)
        _fetch_block(values, [channel, block * k.shape[1]], v_there.index(slot), v.index(slot))


@gluon.jit
def _compute(
    group, q, k, v, q_there, k_there, k_done, v_there, v_done, q_scale_ptr, k_scale_ptr, v_scale_ptr, out_ptr,
    num_queries, num_keys, heads, pair, first_query,
):  # fmt: skip
    """Four warps: 64 queries against all keys."""
    QUERIES: gl.constexpr = q.shape[1]
    KEYS: gl.constexpr = k.shape[1]
    DIM: gl.constexpr = k.shape[2]
    scores_layout: gl.constexpr = gl.NVMMADistributedLayout(
        version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, KEYS, 32]
    )
    sums_layout: gl.constexpr = gl.NVMMADistributedLayout(
        version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, DIM, 32]
    )
    rows: gl.constexpr = gl.SliceLayout(1, scores_layout)
    query = first_query + group * QUERIES + gl.arange(0, QUERIES, layout=rows)
    known = query < num_queries
    q_scale = gl.load(q_scale_ptr + pair.to(gl.int64) * num_queries + query, mask=known, other=1.0)
    top = gl.full([QUERIES], float("-inf"), gl.float32, layout=rows)
    total = gl.zeros([QUERIES], gl.float32, layout=rows)
    sums = gl.zeros([QUERIES, DIM], gl.float32, layout=sums_layout)
    mbarrier.wait(q_there.index(group), 0)
    whole = num_keys // KEYS
    for block in range(whole):
        scale = q_scale * gl.load(k_scale_ptr + block)
        top, total, sums = _step(
            block, num_keys, q.index(group), k, v, k_there, k_done, v_there, v_done, scale, top, total, sums, False
        )
    if whole * KEYS < num_keys:
        scale = q_scale * gl.load(k_scale_ptr + whole)
        top, total, sums = _step(
            whole, num_keys, q.index(group), k, v, k_there, k_done, v_there, v_done, scale, top, total, sums, True
        )
    channel = gl.arange(0, DIM, layout=gl.SliceLayout(0, sums_layout))
    v_scale = gl.load(v_scale_ptr + pair.to(gl.int64) * DIM + channel)
    result = sums * v_scale[None, :] / total[:, None]
    batch, head = pair // heads, pair % heads
    target = (batch.to(gl.int64) * num_queries + query[:, None]) * heads + head
    gl.store(out_ptr + target * DIM + channel[None, :], result.to(out_ptr.dtype.element_ty), mask=known[:, None])


@gluon.jit
def _step(
    block, num_keys, q, k, v, k_there, k_done, v_there, v_done, scale, top, total, sums, IS_PARTIAL: gl.constexpr
):
    """One block of keys; see `_score` and `_weigh` of the portable kernel."""
    QUERIES: gl.constexpr = q.shape[0]
    KEYS: gl.constexpr = k.shape[1]
    STAGES: gl.constexpr = k.shape[0]
    scores_layout: gl.constexpr = gl.NVMMADistributedLayout(
        version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, KEYS, 32]
    )
    factor: gl.constexpr = gl.DotOperandLayout(operand_index=0, parent=sums.type.layout, k_width=4)
    slot, turn = block % STAGES, block // STAGES & 1
    mbarrier.wait(k_there.index(slot), turn)
    begin = gl.full([QUERIES, KEYS], _OFFSET_BITS, gl.int32, layout=scores_layout)
    made = warpgroup_mma(q, k.index(slot).permute((1, 0)), begin, is_async=True)
    scores = warpgroup_mma_wait(0, [made]).to(gl.float32, bitcast=True)
    mbarrier.arrive(k_done.index(slot), count=1)
    if IS_PARTIAL:
        key = block * KEYS + gl.arange(0, KEYS, layout=gl.SliceLayout(0, scores_layout))
        scores = gl.where((key < num_keys)[None, :], scores, float("-inf"))
    higher = gl.maximum(top, (gl.max(scores, axis=1) - _OFFSET) * scale)
    weights = gl.exp2(scores * scale[:, None] - (higher - _PEAK_BITS + _OFFSET * scale)[:, None])
    shrink = gl.exp2(top - higher)
    total = total * shrink + gl.sum(weights, axis=1)
    ordered = weights.to(gl.float8e4nv).reshape([QUERIES, KEYS // 16, 2, 4, 2]).permute([0, 1, 3, 2, 4])
    weights = gl.convert_layout(ordered.reshape([QUERIES, KEYS]), factor)
    mbarrier.wait(v_there.index(slot), turn)
    made = warpgroup_mma(weights, v.index(slot).permute((1, 0)), sums * shrink[:, None], is_async=True)
    sums = warpgroup_mma_wait(0, [made])
    mbarrier.arrive(v_done.index(slot), count=1)
    return higher, total, sums
