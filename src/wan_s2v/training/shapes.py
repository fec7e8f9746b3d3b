"""Signed distances, soft masks and paint: the few drawing operations that every part of a portrait is made of.

Planes are (N, h, w) float tensors, images (N, 3, h, w); a value per portrait is (N, 1, 1), a colour (N, 3, 1, 1).
Distances are negative inside a shape and in the unit of the coordinates; `px` is the size of a pixel in that unit, so
that the same call draws at any size. Everything is a new tensor and no branch looks at data, so callers compile.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

_EPSILON = 1e-6
Point = tuple[Tensor | float, Tensor | float]


def fill(distance: Tensor, px: Tensor) -> Tensor:
    """Coverage 0…1 of the pixels inside a shape, one pixel of transition at its border."""
    return (0.5 - distance / px).clamp(0, 1)


def stroke(distance: Tensor, half_width: Tensor | float, px: Tensor) -> Tensor:
    """Coverage of a line along distance 0; a line thinner than a pixel fades instead of growing."""
    return fill(distance - half_width, px) - fill(distance + half_width, px)


def glow(distance: Tensor, softness: float) -> Tensor:
    """Coverage with a wide, soft border of about four times `softness`."""
    return torch.sigmoid(distance * (-1 / softness))


def bump(x: Tensor, width: Tensor | float) -> Tensor:
    """1 at x = 0, falling to 0.37 at `width`."""
    x = x / width
    return torch.exp(-x * x)


def smoothstep(low: float, high: float, x: Tensor) -> Tensor:
    """0 below `low`, 1 above `high`, smooth between them; `low` may be the larger one."""
    t = ((x - low) / (high - low)).clamp(0, 1)
    return t * t * torch.rsub(t, 3.0, alpha=2.0)


def smooth_min(a: Tensor, b: Tensor, radius: float) -> Tensor:
    """Union of two shapes whose joint is rounded by `radius`."""
    h = (radius - (a - b).abs()).clamp(min=0) / radius
    return torch.minimum(a, b) - h * h * (radius / 4)


def length(x: Tensor, y: Tensor) -> Tensor:
    """Distance from the origin."""
    return torch.hypot(x, y)


def ellipse(x: Tensor, y: Tensor, radius_x: Tensor | float, radius_y: Tensor | float) -> Tensor:
    """Distance to an ellipse; exact on its border, approximate away from it."""
    px, py = x / radius_x, y / radius_y
    k = length(px, py)
    return k * (k - 1) / (length(px / radius_x, py / radius_y) + _EPSILON)


def rounded_box(
    x: Tensor, y: Tensor, half_width: Tensor | float, half_height: Tensor | float, radius: Tensor | float
) -> Tensor:
    """Distance to a box with corners of `radius`."""
    dx, dy = x.abs() - half_width + radius, y.abs() - half_height + radius
    return length(dx.clamp(min=0), dy.clamp(min=0)) + torch.maximum(dx, dy).clamp(max=0) - radius


def segment(x: Tensor, y: Tensor, start: Point, end: Point) -> Tensor:
    """Distance to a line from `start` to `end`."""
    dx, dy = end[0] - start[0], end[1] - start[1]
    t = (((x - start[0]) * dx + (y - start[1]) * dy) / (dx * dx + dy * dy + _EPSILON)).clamp(0, 1)
    return length(x - start[0] - t * dx, y - start[1] - t * dy)


def round_cone(x: Tensor, y: Tensor, radius: Tensor | float, end_radius: Tensor | float, height: Tensor) -> Tensor:
    """Distance to the hull of a circle of `radius` at the origin and one of `end_radius` at (0, height)."""
    x = x.abs()
    sine = (radius - end_radius) / height
    cosine = torch.sqrt((1 - sine * sine).clamp(min=_EPSILON))
    along = y * cosine - x * sine
    side = x * cosine + y * sine - radius
    far = length(x, y - height) - end_radius
    return torch.where(along < 0, length(x, y) - radius, torch.where(along > cosine * height, far, side))


def ripple(x: Tensor, frequency: Tensor | float, px: Tensor) -> Tensor:
    """sin(frequency x), fading out where a pixel is too large to show it."""
    return torch.sin(x * frequency) * (1.4 - 0.6 * frequency * px).clamp(0, 1)


def paint(image: Tensor, coverage: Tensor, colour: Tensor) -> Tensor:
    """Lay `colour` over the image."""
    return torch.lerp(image, colour, coverage[:, None])


def multiply(image: Tensor, amount: Tensor, colour: Tensor) -> Tensor:
    """Shade: multiply the image by `colour` where `amount` is 1."""
    return image * torch.lerp(torch.ones_like(colour), colour, amount[:, None])


def screen(image: Tensor, amount: Tensor, colour: Tensor) -> Tensor:
    """Light: add `colour` without leaving 0…1."""
    return torch.lerp(image, torch.ones_like(colour), amount[:, None] * colour)


def rgb(red: float, green: float, blue: float, like: Tensor) -> Tensor:
    """A constant colour (1, 3, 1, 1) with the dtype and device of `like`."""
    # Three fills instead of a copy from the host: a copy stops the stream and breaks graph capture.
    return torch.stack([torch.full((), c, dtype=like.dtype, device=like.device) for c in (red, green, blue)])[
        None, :, None, None
    ]


class Window(NamedTuple):
    """Rectangles of equal size, one a portrait, inside the frame; what is small is drawn only there.

    Args:
        x: (N, 1, w) and y: (N, h, 1) positions of the pixel centres in screen units.
        indices: (N, 1, h·w) positions in the flattened frame.
    """

    x: Tensor
    y: Tensor
    indices: Tensor


def screen_axes(height: int, width: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Pixel centres x (1, 1, W) and y (1, H, 1); the shorter side spans -1…1, the centre is 0, y points down."""
    unit = 2 / min(height, width)
    x = (torch.arange(width, dtype=like.dtype, device=like.device) + (0.5 - width / 2)) * unit
    y = (torch.arange(height, dtype=like.dtype, device=like.device) + (0.5 - height / 2)) * unit
    return x[None, None, :], y[None, :, None]


def place_window(x: Tensor, y: Tensor, half_width: float, half_height: float, size: tuple[int, int]) -> Window:
    """Windows around the screen positions x, y (N,), moved inward where they would leave the frame of `size`."""
    height, width = size
    axis_x, axis_y = screen_axes(height, width, x)
    rows, cols = (min(int(half * min(size)) + 2, full) for half, full in ((half_height, height), (half_width, width)))
    top = (y * (min(size) / 2) + height / 2 - rows / 2).floor().clamp(0, height - rows).long()
    left = (x * (min(size) / 2) + width / 2 - cols / 2).floor().clamp(0, width - cols).long()
    row = top[:, None] + torch.arange(rows, device=x.device)
    col = left[:, None] + torch.arange(cols, device=x.device)
    indices = (row[:, :, None] * width + col[:, None, :]).flatten(1)[:, None]
    return Window(axis_x[0, 0][col][:, None, :], axis_y[0, :, 0][row][:, :, None], indices)


def cut(image: Tensor, window: Window) -> Tensor:
    """Pixels (N, 3, h, w) of the image inside its windows."""
    size = (window.y.shape[1], window.x.shape[2])
    return image.flatten(2).gather(2, window.indices.expand(-1, 3, -1)).unflatten(2, size)


def put_back(image: Tensor, window: Window, pixels: Tensor) -> Tensor:
    """The image with its windows replaced by `pixels`."""
    index = window.indices.expand(-1, 3, -1)
    return image.flatten(2).scatter(2, index, pixels.flatten(2)).unflatten(2, image.shape[2:])
