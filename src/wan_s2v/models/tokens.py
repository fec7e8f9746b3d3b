"""Where each token of the sequence comes from, and its rotary position.

Sequence: noise tokens (frame, row, column), reference tokens, then motion tokens at three resolutions, newest first.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

REFERENCE_TIME = 30  # time position of the reference image, whatever the clip's length


@dataclass(frozen=True)
class Grid:
    """A block of tokens on three axes: first position, number of tokens, and span of positions they cover."""

    origin: tuple[int, int, int]
    count: tuple[int, int, int]
    span: tuple[int, int, int]


def axis_positions(origin: int, count: int, span: int) -> np.ndarray:
    """Integer positions of `count` tokens spread over `span`; a negative origin counts back in time.

    Source: Wan-Video/Wan2.2 `wan/modules/s2v/s2v_utils.py` (truncation towards zero included).
    """
    if origin >= 0:
        return np.linspace(origin, origin + span - 1, count).astype(np.int64)
    return -np.linspace(-origin, -origin - span + 1, count).astype(np.int64)


def grid_positions(grid: Grid) -> Tensor:
    """(tokens, 3) int64 positions of a grid in order time, row, column."""
    axes = zip(grid.origin, grid.count, grid.span, strict=True)
    positions = [torch.from_numpy(axis_positions(*axis)) for axis in axes]
    return torch.cartesian_prod(*positions).reshape(-1, 3)


def motion_grids(
    latent_height: int, latent_width: int, patch: tuple[int, int], buckets: tuple[int, ...]
) -> tuple[Grid, ...]:
    """Grids of the motion tokens, newest first: bucket i holds so many latent frames at patch x 2^i."""
    rows, columns = latent_height // patch[0], latent_width // patch[1]
    grids, end = [], 0
    for level, frames in enumerate(buckets):
        shrink = 2**level
        count = (
            frames // shrink,
            latent_height // (patch[0] * shrink),
            latent_width // (patch[1] * shrink),
        )
        end -= frames
        grids.append(Grid((end, 0, 0), count, (frames, rows, columns)))
    return tuple(grids)


@dataclass(frozen=True)
class TokenLayout:
    """Spans of noise, reference and motion tokens of one clip.

    Args:
        num_latent_frames: F, latent frames of the clip being made.
        rows, columns: token grid of one latent frame.
        motion: grids of the motion tokens that are present; empty where motion is dropped.
    """

    num_latent_frames: int
    rows: int
    columns: int
    motion: tuple[Grid, ...]

    @property
    def tokens_per_frame(self) -> int:
        return self.rows * self.columns

    @property
    def num_noise(self) -> int:
        return self.num_latent_frames * self.tokens_per_frame

    @property
    def num_tokens(self) -> int:
        return self.num_noise + self.tokens_per_frame + sum(int(np.prod(grid.count)) for grid in self.motion)

    def positions(self) -> Tensor:
        """(tokens, 3) int64 (time, row, column) of the whole sequence."""
        plane = (self.rows, self.columns)
        noise = Grid((0, 0, 0), (self.num_latent_frames, *plane), (self.num_latent_frames, *plane))
        reference = Grid((REFERENCE_TIME, 0, 0), (1, *plane), (1, *plane))
        return torch.cat([grid_positions(grid) for grid in (noise, reference, *self.motion)])
