"""Packing of the frames before a clip into few tokens: the older a frame, the coarser its patches."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from wan_s2v.models.tokens import MOTION_BUCKETS, Grid, motion_grids

KEEP_ALL = 2  # `add_last_motion` of official inference: the newest frames are never hidden


class MotionPacker(nn.Module):
    """Motion latents → tokens at patch x1 (newest latent frame), x2 (two before it) and x4 (sixteen before those).

    Source: Wan-Video/Wan2.2 `wan/modules/s2v/motioner.py` (FramePack variant).
    """

    def __init__(self, in_channels: int, dim: int, patch_size: tuple[int, int, int], drop_mode: str) -> None:
        super().__init__()
        self.patch = (patch_size[1], patch_size[2])
        self.drop_mode = drop_mode
        kernels = [tuple(2**level * size for size in patch_size) for level in range(len(MOTION_BUCKETS))]
        self.proj = nn.Conv3d(in_channels, dim, kernels[0], stride=kernels[0])
        self.proj_2x = nn.Conv3d(in_channels, dim, kernels[1], stride=kernels[1])
        self.proj_4x = nn.Conv3d(in_channels, dim, kernels[2], stride=kernels[2])

    def forward(self, motion_latents: Tensor, add_last_motion: int = KEEP_ALL) -> tuple[Tensor, tuple[Grid, ...]]:
        """Tokens of the last 19 motion latents and the grids they lie on.

        Args:
            motion_latents: (B, C, Fm, h, w); shorter histories are preceded by zeros.
            add_last_motion: 2 shows all frames; 1 hides the newest, 0 the three newest: as zeros in drop mode "padd",
                by leaving their tokens out in mode "drop".
        Returns: (B, tokens, dim) in the parameters' dtype, and their grids in the same order.
        """
        buffer = self._history(motion_latents)
        hidden = {2: 0, 1: 1, 0: 2}[min(add_last_motion, KEEP_ALL)]  # levels whose frames are hidden
        if self.drop_mode == "padd" and hidden:
            buffer[:, :, -sum(MOTION_BUCKETS[:hidden]) :] = 0
        oldest, middle, newest = buffer.split(MOTION_BUCKETS[::-1], dim=2)
        grids = motion_grids(motion_latents.shape[-2], motion_latents.shape[-1], self.patch)
        levels = list(zip((self.proj, self.proj_2x, self.proj_4x), (newest, middle, oldest), grids, strict=True))
        if self.drop_mode == "drop":
            levels = levels[hidden:]
        tokens = [proj(frames).flatten(2).transpose(1, 2) for proj, frames, _ in levels]
        return torch.cat(tokens, dim=1), tuple(grid for _, _, grid in levels)

    def _history(self, motion_latents: Tensor) -> Tensor:
        batch, channels, frames, height, width = motion_latents.shape
        length = sum(MOTION_BUCKETS)
        kept = min(frames, length)
        buffer = motion_latents.new_zeros((batch, channels, length, height, width), dtype=self.proj.weight.dtype)
        buffer[:, :, length - kept :] = motion_latents[:, :, frames - kept :]
        return buffer
