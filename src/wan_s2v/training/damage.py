"""What a VAE, a resize and a video codec do to pictures, on whole batches, on any device.

Networks that judge results must read such pictures as well as clean ones.
"""

from __future__ import annotations

import math
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

_BLOCK = 8
# Share of the clips that each effect touches.
_COARSE_SHARE, _BLOCK_SHARE, _BLUR_SHARE = 0.5, 0.5, 0.6


def damage(images: Tensor, generator: torch.Generator, frames_per_clip: int = 1) -> Tensor:
    """Another copy of the pictures: colours shifted, blurred, enlarged from fewer pixels, in blocks, noisy.

    Args:
        images: (N, 3, H, W) in [-1, 1]; both sides multiples of 8.
        generator: on the device of `images`.
        frames_per_clip: successive rows that belong to one clip and are treated alike; noise differs in each.
    Returns: (N, 3, H, W) in [-1, 1].
    """
    clips = _Clips(len(images) // frames_per_clip, frames_per_clip, generator)
    images = _shift_colours(images, clips)
    images = torch.lerp(images, _blur(images), clips.uniform(0, 1) * clips.chance(_BLUR_SHARE))
    images = torch.lerp(images, _enlarge(images), clips.uniform(0.5, 1) * clips.chance(_COARSE_SHARE))
    images = torch.lerp(images, _quantise(images, clips), clips.chance(_BLOCK_SHARE))
    noise = torch.randn(images.shape, generator=generator, device=images.device)
    return (images + noise * clips.uniform(0, 0.25) ** 2).clamp(-1, 1)


class _Clips:
    """Random values (N, 1, 1, 1) that are equal in all frames of a clip."""

    def __init__(self, count: int, frames: int, generator: torch.Generator) -> None:
        self.count, self.frames, self.generator = count, frames, generator

    def uniform(self, low: float, high: float, channels: int = 1) -> Tensor:
        shape = (self.count, channels, 1, 1)
        value = torch.rand(shape, generator=self.generator, device=self.generator.device)
        return (low + (high - low) * value).repeat_interleave(self.frames, 0)

    def chance(self, probability: float) -> Tensor:
        return (self.uniform(0, 1) < probability).float()


def _shift_colours(images: Tensor, clips: _Clips) -> Tensor:
    grey = images.mean(1, keepdim=True)
    images = torch.lerp(grey, images, clips.uniform(0.6, 1.3))
    return images * clips.uniform(0.75, 1.2) * clips.uniform(0.93, 1.07, 3) + clips.uniform(-0.12, 0.12)


def _blur(images: Tensor, sigma: float = 1.3) -> Tensor:
    offset = torch.arange(-3, 4, device=images.device, dtype=images.dtype)
    kernel = torch.exp(-(offset**2) / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).expand(3, 1, 1, 7)
    padded = F.pad(images, (3, 3, 3, 3), mode="replicate")
    return F.conv2d(F.conv2d(padded, kernel, groups=3), kernel.transpose(2, 3), groups=3)


def _enlarge(images: Tensor) -> Tensor:
    """As seen through half of the rows and columns."""
    small = F.avg_pool2d(images, 2)
    return F.interpolate(small, images.shape[2:], mode="bilinear", align_corners=False)


def _quantise(images: Tensor, clips: _Clips) -> Tensor:
    """Round the cosine transform of blocks of 8x8 pixels, high frequencies more coarsely, as codecs do."""
    transform = _cosines().to(images)
    height, width = images.shape[2:]
    blocks = images.view(*images.shape[:2], height // _BLOCK, _BLOCK, width // _BLOCK, _BLOCK).transpose(3, 4)
    index = torch.arange(_BLOCK, device=images.device)
    step = (0.25 + 0.35 * (index[:, None] + index)) * (clips.uniform(0.1, 0.65) ** 2)[..., None, None]
    rounded = torch.round(transform @ blocks @ transform.T / step) * step
    return (transform.T @ rounded @ transform).transpose(3, 4).reshape(images.shape)


@cache
def _cosines() -> Tensor:
    """(8, 8) orthonormal DCT-II."""
    row, column = torch.arange(_BLOCK)[:, None], torch.arange(_BLOCK)
    matrix = torch.cos(math.pi * (column + 0.5) * row / _BLOCK) * math.sqrt(2 / _BLOCK)
    matrix[0] /= math.sqrt(2)
    return matrix
