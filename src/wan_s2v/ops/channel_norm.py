"""What stands between the VAE's convolutions: RMS norm over channels with its SiLU, and the residual sum.

cuDNN leaves the bias of a convolution to a pass of its own over the whole map. Both operations here can add it, which
spares a residual block a third of what it moves between its convolutions. All is float32 inside and rounded once.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from wan_s2v.ops.dispatch import runs_kernels

MIN_NORM = 1e-12
_SLICE = 1 << 18  # values


def channel_norm(
    x: Tensor, gamma: Tensor, *, bias: Tensor | None = None, silu: bool = False, out: Tensor | None = None
) -> Tensor:
    """y = (x + bias) / max(|x + bias|, 1e-12) · sqrt(C) · gamma, |·| over channels; then y · sigmoid(y) with `silu`.

    Args:
        x: (B, C, T, h, w), in any memory format; fastest with channels last.
        gamma, bias: C values, in any shape.
        out: where to put the result, of the shape of x: some frames of a larger tensor, say. A new tensor if None.
    Returns: `out`, in its dtype; without one, in the dtype and memory format of x.
    """
    if runs_kernels(x):
        from wan_s2v.ops.channel_norm_kernel import launch_channel_norm

        return launch_channel_norm(x, gamma, bias, silu, torch.empty_like(x) if out is None else out)
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        normed = plain_channel_norm(x, gamma, bias=bias, silu=silu)
        return normed if out is None else out.copy_(normed)
    out = torch.empty_like(x) if out is None else out
    for part, target in zip(_slices(x), _slices(out), strict=True):
        target.copy_(plain_channel_norm(part, gamma, bias=bias, silu=silu))
    return out


def plain_channel_norm(x: Tensor, gamma: Tensor, *, bias: Tensor | None = None, silu: bool = False) -> Tensor:
    """`channel_norm` in plain PyTorch."""
    wide = x.float() if bias is None else x.float() + _per_channel(bias, x)
    length = torch.linalg.vector_norm(wide, dim=1, keepdim=True).clamp_min(MIN_NORM)
    normed = wide * (x.shape[1] ** 0.5 / length) * _per_channel(gamma, x)
    return (F.silu(normed) if silu else normed).to(x.dtype)


def add_residual(x: Tensor, residual: Tensor, bias: Tensor | None = None) -> Tensor:
    """x + bias + residual.

    Args:
        x: (B, C, T, h, w); it may be overwritten.
        residual: same shape and dtype.
        bias: C values.
    """
    if runs_kernels(x):
        from wan_s2v.ops.channel_norm_kernel import launch_add_residual

        return launch_add_residual(x, residual, bias)
    if bias is None and not torch.is_grad_enabled():
        return x.add_(residual)
    return plain_add_residual(x, residual, bias)


def plain_add_residual(x: Tensor, residual: Tensor, bias: Tensor | None = None) -> Tensor:
    """`add_residual` in plain PyTorch."""
    if bias is None:
        return x + residual
    return (x.float() + _per_channel(bias, x) + residual).to(x.dtype)


def _slices(x: Tensor) -> Iterator[Tensor]:
    """(B, C, rows, w) parts of every frame that stay in a core's cache; the whole map where there is no such cache.

    New memory for whole maps costs more than the arithmetic: 80 channels of 4 x 128 x 128 in bfloat16 took 12 to 25
    ms at once and 6 ms in slices of this size (one core of an EPYC 9004).
    """
    if x.device.type != "cpu":
        yield x
        return
    rows = max(1, _SLICE // (x.shape[0] * x.shape[1] * x.shape[4]))
    for frame in x.unbind(2):
        yield from frame.split(rows, dim=2)


def _per_channel(values: Tensor, like: Tensor) -> Tensor:
    """C values as float32, broadcastable to (B, C, …)."""
    return values.float().view(-1, *[1] * (like.ndim - 2))
