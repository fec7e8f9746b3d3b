"""Attention as the models call it; which kernel runs is decided here and nowhere else.

No library is the fastest on every GPU: on an H100 at 34,000 tokens cuDNN reaches 592 TFLOP/s where PyTorch's own
choice, FlashAttention-2, reaches 371. So the first long attention of each kind is done by all that are present, and
timed.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import partial
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from wan_s2v.ops.dispatch import runs_kernels

_LONG: Final = 1 << 24  # pairs of a query and a key from which on the choice matters
_MARGIN: Final = 0.97  # a later backend must be this much faster, so that noise does not decide
_TIMED_RUNS: Final = 3

_Backend = Callable[[Tensor, Tensor, Tensor], Tensor]
_chosen: dict[tuple[str, torch.dtype, int], str] = {}


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Full attention without mask, scaled by 1/sqrt(D).

    Args:
        q: (B, L, N, D).
        k, v: (B, M, N, D), same dtype.
    Returns: (B, L, N·D), same dtype.
    """
    if not runs_kernels(q) or q.dtype == torch.float32 or q.shape[1] * k.shape[1] < _LONG:
        return _by_torch(q, k, v).flatten(2)
    kind = (str(q.device), q.dtype, q.shape[-1])
    if kind not in _chosen:
        _chosen[kind] = fastest(_present(), q, k, v, _seconds_on_gpu)
    return _BACKENDS[_chosen[kind]](q, k, v).flatten(2)


def chosen_backends() -> dict[str, str]:
    """What long attentions have run on so far, by device, dtype and size of a head."""
    return {f"{device}, {str(dtype).removeprefix('torch.')}, {d}": name for (device, dtype, d), name in _chosen.items()}


def choose_backends(names: dict[str, str]) -> None:
    """Have long attentions run on what `chosen_backends` told of another process, if it is here."""
    present = _present()
    for kind, name in names.items():
        device, dtype, d = kind.split(", ")
        if name in present:
            _chosen[device, getattr(torch, dtype), int(d)] = name


def fastest(
    candidates: dict[str, _Backend],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    seconds_of: Callable[[Callable[[], Tensor]], float],
) -> str:
    """Name of the fastest candidate on these tensors; one that cannot do them is left out, earlier ones win ties."""
    best, best_seconds = "torch", float("inf")
    for name, backend in candidates.items():
        try:
            seconds = seconds_of(partial(backend, q, k, v))
        except RuntimeError:  # this GPU, dtype or size is not one of its own
            continue
        if seconds < _MARGIN * best_seconds:
            best, best_seconds = name, seconds
    return best


def _seconds_on_gpu(operation: Callable[[], Tensor]) -> float:
    """The best of a few runs after a first one."""
    operation()
    times = []
    for _ in range(_TIMED_RUNS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        operation()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1000)
    return min(times)


def _by_torch(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)


def _by_cudnn(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        return _by_torch(q, k, v)


def _by_flash3(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    from flash_attn_interface import flash_attn_func  # of Dao-AILab/flash-attention, folder hopper

    out = flash_attn_func(q, k, v)
    return out[0] if isinstance(out, tuple) else out


def _present() -> dict[str, _Backend]:
    has_flash3 = importlib.util.find_spec("flash_attn_interface") is not None
    return {name: backend for name, backend in _BACKENDS.items() if name != "flash3" or has_flash3}


_BACKENDS: Final[dict[str, _Backend]] = {"cudnn": _by_cudnn, "flash3": _by_flash3, "torch": _by_torch}
