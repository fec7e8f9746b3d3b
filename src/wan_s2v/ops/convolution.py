"""Convolutions of the VAE as our kernel runs them: over maps that carry the zeros around their frames with them.

One column of zeros behind every row serves as the right neighbour of its last pixel and as the left one of the next
row's first; a row of zeros below every frame does the same above and below. So the kernel needs no masks.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from wan_s2v.ops.dispatch import runs_kernels

_CHANNELS = 16  # of which the kernel wants a multiple: 32 bytes
_HOPPER = 9


def runs_own_convolution(x: Tensor) -> bool:
    """Whether `convolve` is the way for maps like x: in 16 bits on Hopper, for which the kernel was made.

    There cuDNN reaches 230 to 540 TFLOP/s unless it tries its algorithms out, which takes seconds for every new size,
    wants gigabytes, and may end differently in each process; the kernel reaches 440 to 760.
    """
    return runs_kernels(x) and x.dtype in (torch.float16, torch.bfloat16) and _is_hopper(x.device.index)


@functools.cache
def _is_hopper(device: int) -> bool:
    try:
        import triton.tools.tensor_descriptor  # noqa: F401  Triton 3.4; other kernels run on older ones
    except ImportError:
        return False
    return torch.cuda.get_device_capability(device)[0] == _HOPPER


def make_padded(like: Tensor, frames: int, *, around: bool) -> Tensor:
    """Memory for maps of `like`'s size to be convolved: what is to be written is `[:, :C, :, :H, :W]` of it.

    Args:
        like: (B, C, T, H, W), for its sizes, dtype and device.
        frames: of the new map.
        around: whether the convolution sees pixels beside its own.
    Returns: (B, C', frames, H', W') with channels last, zero beyond the sizes of `like`.
    """
    batch, channels, _, height, width = like.shape
    size = (batch, -(-channels // _CHANNELS) * _CHANNELS, frames, height + around, width + around)
    padded = torch.empty(size, dtype=like.dtype, device=like.device, memory_format=torch.channels_last_3d)
    if size[1] != channels:
        padded.zero_()
    elif around:
        padded[..., height, :] = 0
        padded[..., width] = 0
    return padded


def convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    origin: tuple[int, int],
    out: Tensor,
    residual: Tensor | None = None,
) -> Tensor:
    """Convolution of stride 1 whose result has the height and width of its input, plus bias and residual.

    Args:
        x: (B, C', T + KT - 1, H', W') from `make_padded`.
        weight: (O, C, KT, KH, KW).
        bias: (O,).
        origin: rows and columns from a pixel back to that of the first tap: 1 for a kernel of 3.
        out: (B, O, T, H, W) with channels last, or every so manieth row and column of such a map; written.
        residual: (B, O, T, H, W) with channels last.
    Returns: out.
    """
    if not runs_kernels(x):
        return out.copy_(plain_convolve(x, weight, bias, origin=origin, size=out.shape[-2:], residual=residual))
    from wan_s2v.ops.convolution_kernel import launch_convolve

    taps = F.pad(weight.permute(0, 2, 3, 4, 1), (0, x.shape[1] - weight.shape[1])).contiguous()
    for index in range(x.shape[0]):
        added = None if residual is None else residual[index].permute(1, 2, 3, 0).contiguous()
        target = out[index].permute(1, 2, 3, 0)
        launch_convolve(x[index].permute(1, 2, 3, 0), taps, bias, added, target, *origin)
    return out


def plain_convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    origin: tuple[int, int],
    size: tuple[int, int] | torch.Size,
    residual: Tensor | None = None,
) -> Tensor:
    """`convolve` in plain PyTorch, in float32; `size` is H, W."""
    (up, left), (rows, columns) = origin, weight.shape[-2:]
    inner = x[:, : weight.shape[1], :, : size[0], : size[1]].float()
    y = F.conv3d(F.pad(inner, (left, columns - 1 - left, up, rows - 1 - up)), weight.float(), bias.float())
    return (y if residual is None else y + residual.float()).to(x.dtype)
