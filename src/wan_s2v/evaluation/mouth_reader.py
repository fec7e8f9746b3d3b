"""What a drawn mouth does, read from the pixels of single frames.

A small network finds mouth and eyes on a reduced frame, another reads the shape of the mouth from a crop around it.
They know the illustrated portraits of `wan_s2v.training.portraits`, which they are trained on; on photographs they
guess. Every frame is read by itself: nothing is smoothed over time, so that flicker and lag stay visible.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SHAPES = ("open", "width", "round", "closed", "teeth", "tongue")  # order of `training.poses.MOTION_CHANNELS`
OPEN, WIDTH, ROUND, CLOSED, TEETH, TONGUE = range(6)
FRAME_SIZE = 256  # pixels; the crops have this density
LOCATE_SIZE = 96
CROP_SIZE = (48, 64)
# The read region hangs at the top of the mouth's box, which stays where it is while the jaw drops. In box widths:
_REGION_WIDTH, _REGION_CENTRE = 1.5, 0.5
_SHAPE_RANGES = ((0.0, 1.0), (-1.0, 1.0), (0.0, 1.0), (0.0, 1.0), (0.0, 1.0), (0.0, 1.0))


class Reading(NamedTuple):
    """What N frames show.

    Args:
        shapes: (N, 6) as `SHAPES`; `open` is the visible opening, which pressed lips make 0. Width is in -1…1, the
            others in 0…1.
        mouths, eyes: (N, 4) boxes left, top, right, bottom in 0…1 of the frame.
    """

    shapes: Tensor
    mouths: Tensor
    eyes: Tensor


class MouthReader(nn.Module):
    """Frames of illustrated portraits → mouth shapes and boxes of mouth and eyes."""

    def __init__(self) -> None:
        super().__init__()
        self.locator = nn.Sequential(
            halve(3, 16), halve(16, 32), halve(32, 48), halve(48, 64),
            nn.Conv2d(64, 24, 1), nn.Flatten(), nn.Linear(24 * 6 * 6, 48), nn.SiLU(), nn.Linear(48, 8),
        )  # fmt: skip
        self.reader = nn.Sequential(
            halve(3, 24), halve(24, 48), halve(48, 88), keep(88, 88),
            nn.Conv2d(88, 28, 1), nn.Flatten(), nn.Linear(28 * 6 * 8, 64), nn.SiLU(), nn.Linear(64, 6),
        )  # fmt: skip

    def forward(self, frames: Tensor) -> Reading:
        """Read (N, 3, H, W) frames in [-1, 1]; of an oblong frame the middle square is looked at."""
        square = square_frames(frames)
        boxes = self.locate(square).float().clamp(0, 1)
        shapes = self.read(mouth_crops(square, boxes[:, :4], CROP_SIZE)).float()
        low, high = torch.tensor(_SHAPE_RANGES, device=shapes.device).T
        height, width = frames.shape[2:]
        mouths, eyes = (from_square(part, height, width) for part in boxes.split(4, dim=1))
        return Reading(torch.clamp(shapes, low, high), mouths, eyes)

    def locate(self, square: Tensor) -> Tensor:
        """(N, 8) boxes of mouth and eyes, 0…1, from square frames of any size."""
        reduced = square
        if square.shape[2] != LOCATE_SIZE:
            reduced = F.interpolate(square, (LOCATE_SIZE, LOCATE_SIZE), mode="bilinear", antialias=True)
        return self.locator(reduced) + 0.5

    def read(self, crops: Tensor) -> Tensor:
        """(N, 6) shapes, not clamped, from crops (N, 3, 48, 64)."""
        return self.reader(crops)


def halve(channels: int, out_channels: int) -> nn.Sequential:
    """A convolution that halves height and width."""
    return nn.Sequential(nn.Conv2d(channels, out_channels, 3, 2, 1), nn.GroupNorm(8, out_channels), nn.SiLU())


def keep(channels: int, out_channels: int) -> nn.Sequential:
    """A convolution that keeps height and width."""
    return nn.Sequential(nn.Conv2d(channels, out_channels, 3, 1, 1), nn.GroupNorm(8, out_channels), nn.SiLU())


def square_frames(frames: Tensor) -> Tensor:
    """The middle square of (N, 3, H, W), resized to 256x256."""
    height, width = frames.shape[2:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = frames[:, :, top : top + side, left : left + side]
    if side == FRAME_SIZE:
        return square
    return F.interpolate(square, (FRAME_SIZE, FRAME_SIZE), mode="bilinear", antialias=True)


def from_square(boxes: Tensor, height: int, width: int) -> Tensor:
    """Boxes (N, 4) in 0…1 of the middle square, as 0…1 of the whole frame."""
    side = min(height, width)
    scale = boxes.new_tensor([side / width, side / height]).repeat(2)
    offset = boxes.new_tensor([(width - side) // 2 / width, (height - side) // 2 / height]).repeat(2)
    return boxes * scale + offset


def mouth_crops(images: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Pixels around mouths.

    Args:
        images: (N, 3, H, W).
        boxes: (N, 4) of the mouths in 0…1 of the images.
        size: height and width of a crop, 3:4.
    Returns: (N, 3, *size): half again as wide as the box, from its top to below a dropped chin.
    """
    height, width = images.shape[2:]
    centre_x, centre_y, region_width = mouth_region(boxes * boxes.new_tensor([width, height, width, height]))
    theta = boxes.new_zeros(len(boxes), 2, 3)
    theta[:, 0, 0], theta[:, 1, 1] = region_width / width, region_width * 0.75 / height
    theta[:, 0, 2], theta[:, 1, 2] = 2 * centre_x / width - 1, 2 * centre_y / height - 1
    grid = F.affine_grid(theta, [len(images), 3, *size], align_corners=False)
    return F.grid_sample(images, grid.to(images.dtype), padding_mode="border", align_corners=False)


def mouth_region(boxes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Middle x and y and width (N,) of the region that is read, in the pixels of the boxes (N, 4); it is 3:4."""
    left, top, right, _ = boxes.unbind(1)
    width = (right - left).clamp(min=1)
    return (left + right) / 2, top + _REGION_CENTRE * width, _REGION_WIDTH * width
