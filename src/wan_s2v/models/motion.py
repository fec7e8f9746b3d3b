"""Packing of the frames before a clip into few tokens: the older a frame, the coarser its patches."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from wan_s2v.models.tokens import Grid, motion_grids

_PROJECTIONS = ("proj", "proj_2x", "proj_4x")
KEEP_ALL = 2  # `add_last_motion` of official inference: the newest frames are never hidden


class MotionPacker(nn.Module):
    """Motion latents → tokens at patch x1 (the newest), x2 (those before) and x4 (the oldest).

    Args:
        buckets: latent frames at each patch size, newest first, one to three numbers; officially (1, 2, 16).

    Source: Wan-Video/Wan2.2 `wan/modules/s2v/motioner.py` (FramePack variant).
    """

    def __init__(
        self, in_channels: int, dim: int, patch_size: tuple[int, int, int], drop_mode: str, buckets: tuple[int, ...]
    ) -> None:
        super().__init__()
        self.patch = (patch_size[1], patch_size[2])
        self.drop_mode = drop_mode
        self.buckets = buckets
        for level, name in enumerate(_PROJECTIONS[: len(buckets)]):
            kernel = tuple(2**level * size for size in patch_size)
            self.add_module(name, nn.Conv3d(in_channels, dim, kernel, stride=kernel))

    def forward(self, motion_latents: Tensor, add_last_motion: int = KEEP_ALL) -> tuple[Tensor, tuple[Grid, ...]]:
        """Tokens of the last motion latents, 19 in the published model, and the grids they lie on.

        Args:
            motion_latents: (B, C, Fm, h, w); shorter histories are preceded by zeros.
            add_last_motion: 2 shows all frames; 1 hides the newest, 0 the three newest: as zeros in drop mode "padd",
                by leaving their tokens out in mode "drop".
        Returns: (B, tokens, dim) in the parameters' dtype, and their grids in the same order.
        """
        buffer = self._history(motion_latents)
        hidden = {2: 0, 1: 1, 0: 2}[min(add_last_motion, KEEP_ALL)]  # levels whose frames are hidden
        if self.drop_mode == "padd" and hidden:
            buffer[:, :, -sum(self.buckets[:hidden]) :] = 0
        newest_first = buffer.split(self.buckets[::-1], dim=2)[::-1]
        grids = motion_grids(motion_latents.shape[-2], motion_latents.shape[-1], self.patch, self.buckets)
        projections = [self.get_submodule(name) for name in _PROJECTIONS[: len(self.buckets)]]
        levels = list(zip(projections, newest_first, grids, strict=True))
        if self.drop_mode == "drop":
            levels = levels[hidden:]
        tokens = [proj(frames).flatten(2).transpose(1, 2) for proj, frames, _ in levels]
        return torch.cat(tokens, dim=1), tuple(grid for _, _, grid in levels)

    def _history(self, motion_latents: Tensor) -> Tensor:
        batch, channels, frames, height, width = motion_latents.shape
        length = sum(self.buckets)
        kept = min(frames, length)
        dtype = next(self.parameters()).dtype
        buffer = motion_latents.new_zeros((batch, channels, length, height, width), dtype=dtype)
        buffer[:, :, length - kept :] = motion_latents[:, :, frames - kept :]
        return buffer
