"""What is behind a person: out of focus, so it is drawn small and enlarged."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from wan_s2v.training.identities import BACKGROUNDS, Identities
from wan_s2v.training.poses import Pose
from wan_s2v.training.shapes import (
    bump,
    fill,
    glow,
    length,
    multiply,
    paint,
    rgb,
    rounded_box,
    screen,
    screen_axes,
    smoothstep,
)  # fmt: skip

GRID = 96  # pixels of the shorter side; enlarging it is the depth of field
PARALLAX = 0.45  # how much of the camera's movement the background follows


def draw_background(height: int, width: int, who: Identities, pose: Pose) -> Tensor:
    """(N, 3, H, W) image of the place behind each person."""
    ratio = GRID / min(height, width)
    rows, cols = round(height * ratio), round(width * ratio)
    x, y = screen_axes(rows, cols, pose.zoom)
    zoom = 1 + PARALLAX * (pose.zoom - 1)
    x = (x / zoom + PARALLAX * pose.pan_x).expand(-1, rows, -1)
    y = (y / zoom + PARALLAX * pose.pan_y).expand(-1, -1, cols)
    image = torch.zeros_like(x)[:, None]
    for index, name in enumerate(BACKGROUNDS):
        image = image + (who.background == index)[:, None] * _PLACES[name](x, y, who)
    return F.interpolate(image, (height, width), mode="bicubic", align_corners=False).clamp(0, 1)


def _blend(y: Tensor, top: Tensor, bottom: Tensor) -> Tensor:
    return torch.lerp(top, bottom, y[:, None])


def _hash(x: Tensor) -> Tensor:
    """A value 0…1 that looks random, from whole numbers."""
    return torch.frac(torch.sin(x * 12.9898 + 4.1) * 43.7585).abs()


def _gradient(x: Tensor, y: Tensor, who: Identities) -> Tensor:
    image = _blend(smoothstep(-1.1, 1.1, y + 0.4 * x * who.place_x), who.back, who.back_2)
    ring = length(x - who.place_x * 0.6, y - who.place_y) - who.place_size
    return screen(image, 0.45 * glow(ring, 0.10), who.back_3)


def _bokeh(x: Tensor, y: Tensor, who: Identities) -> Tensor:
    image = _blend(smoothstep(-1.0, 1.2, y), who.back_2 * 0.45, who.back * 0.35)
    image = screen(image, 0.35 * bump(length(x - who.place_x, y), 0.9), who.back_3)
    # All discs at once, in a dimension after the portrait; where discs overlap their light adds up as on a screen.
    seed = who.place_phase[:, None] * 17 + torch.arange(14, dtype=x.dtype, device=x.device)[:, None, None]
    distance = length(x[:, None] - (_hash(seed) * 2.6 - 1.3), y[:, None] - (_hash(seed + 20) * 1.8 - 1.15))
    disc = distance - 0.07 - 0.13 * _hash(seed + 40)
    light = (0.16 + 0.3 * _hash(seed + 80)) * (glow(disc, 0.010) + 0.5 * bump(disc, 0.02))
    return screen(image, 1 - (1 - light.clamp(max=1)).prod(1), torch.lerp(who.back_3, who.back, 0.4))


def _window(x: Tensor, y: Tensor, who: Identities) -> Tensor:
    image = multiply(_blend(smoothstep(-1, 1, y), who.back, who.back * 0.82), smoothstep(0.1, 0.9, y) * 0.2, who.back_2)
    side = torch.sign(who.place_x)
    wx, wy = x * side - 0.66, y + 0.22
    pane = rounded_box(wx, wy, 0.42, 0.62, 0.03)
    sky = _blend(smoothstep(-0.9, 0.4, y), who.back_3, torch.lerp(who.back_3, who.back_2, 0.35))
    hills = glow(-(y - 0.10 - 0.08 * torch.sin(x * 5 + who.place_phase * 6)), 0.02)
    sky = paint(sky, 0.6 * hills, who.back_2 * 0.9)
    image = paint(image, glow(pane - 0.05, 0.012), torch.lerp(who.back_3, who.back, 0.25))
    image = paint(image, glow(pane, 0.01), sky)
    bars = torch.minimum(wx.abs(), (wy + 0.1).abs()) - 0.018
    image = paint(image, glow(pane, 0.01) * glow(bars, 0.008), torch.lerp(who.back_3, who.back, 0.3))
    curtain = glow((wx - 0.42).abs() - 0.17, 0.012) * (0.8 + 0.2 * torch.sin(x * 46))
    image = paint(image, 0.85 * curtain, who.back_2)
    plant = torch.minimum(length((x * side + 0.85) / 0.8, y - 0.10), length(x * side + 0.66, (y - 0.3) / 1.2)) - 0.20
    image = paint(image, 0.55 * glow(plant + 0.03 * torch.sin(x * 31) * torch.sin(y * 27), 0.02), who.back_2 * 0.6)
    return screen(image, 0.30 * bump(length(wx, wy), 1.0), who.back_3)


def _shelves(x: Tensor, y: Tensor, who: Identities) -> Tensor:
    row = torch.floor(y / 0.44 + who.place_phase)
    inside = torch.frac(y / 0.44 + who.place_phase + 8) * 0.44
    cell = x * 9.5 + 3.7 * row
    book, across = torch.floor(cell), torch.frac(cell + 200) - 0.5
    tall = 0.20 + 0.14 * _hash(book * 1.7 + row * 5.3)
    gap = smoothstep(0.80, 0.86, _hash(book * 0.37 + row * 2.9))
    mix = _hash(book * 3.1 + row * 7.7)[:, None]
    colour = torch.lerp(torch.lerp(who.back_2, who.back_3, mix), who.cloth, 0.5 * _hash(book * 5.9 + row)[:, None])
    wood = torch.lerp(who.back_2, rgb(0.36, 0.24, 0.17, x), 0.6)
    image = wood * (0.50 + 0.1 * smoothstep(0, 0.4, inside))[:, None]
    cover = glow(across.abs() - 0.43, 0.02) * glow(0.40 - tall - inside, 0.008) * (1 - gap)
    image = paint(image, cover, colour * (0.80 - 0.5 * across * across)[:, None])
    image = paint(image, glow(0.405 - inside, 0.005), wood * 1.05)
    return screen(image * 0.85, 0.35 * bump(length(x - who.place_x, y + 0.6), 0.8), who.back_3)


def _landscape(x: Tensor, y: Tensor, who: Identities) -> Tensor:
    blue = torch.lerp(who.back, rgb(0.62, 0.80, 0.93, x), 0.55)
    image = _blend(smoothstep(-1.1, 0.3, y), blue, torch.lerp(who.back_3, rgb(1, 0.96, 0.88, x), 0.5))
    image = screen(image, 0.6 * bump(length(x - who.place_x, y - who.place_y), 0.45), rgb(1, 0.93, 0.75, x))
    for k, (level, slope) in enumerate(((-0.08, 2.3), (0.14, 3.3), (0.40, 2.0))):
        phase = who.place_phase * 6.28 + 2.1 * k
        hill = level + 0.11 * torch.sin(x * slope + phase) + 0.04 * torch.sin(x * slope * 2.7 + 2 * phase)
        green = torch.lerp(rgb(0.36, 0.55, 0.42, x), who.back_2, 0.45 - 0.1 * k) * (1.08 - 0.16 * k)
        image = paint(image, glow(hill - y, 0.012), torch.lerp(green, who.back_3, 0.40 - 0.16 * k))
    return image


def _studio(x: Tensor, y: Tensor, who: Identities) -> Tensor:
    spot = bump(length(x - 0.25 * who.place_x, (y + 0.15) * 0.85), 0.95)
    image = torch.lerp(who.back_2 * 0.55, torch.lerp(who.back, who.back_3, 0.25), spot[:, None])
    cloud = torch.sin(x * 2.1 + who.place_phase * 6 + 1.5 * torch.sin(y * 1.7)) * torch.sin(y * 2.6 + x)
    return (image * (1 + 0.05 * cloud)[:, None]).clamp(0, 1)


def _sunset(x: Tensor, y: Tensor, who: Identities) -> Tensor:
    image = _blend(smoothstep(-1.0, 0.35, y), who.back_2 * 0.75, torch.lerp(who.back, rgb(1, 0.72, 0.5, x), 0.6))
    sun = length(x - 0.75 * who.place_x, y - 0.12) - 0.24
    image = screen(image, 0.85 * glow(sun, 0.012) + 0.5 * bump(sun.clamp(min=0), 0.4), rgb(1.0, 0.86, 0.6, x))
    for k, level in enumerate((0.10, 0.26)):
        block = torch.floor(x * (4.5 + k) + 9 * who.place_phase)
        roof = level - 0.30 * _hash(block * 1.3 + 5 * k)
        image = paint(image, glow(roof - y, 0.008), who.back_2 * (0.62 - 0.22 * k))
    haze = fill(-(y - 0.2), torch.full_like(who.place_x, 1.6))
    return screen(image, 0.18 * haze, rgb(1, 0.75, 0.55, x))


_PLACES = {
    "gradient": _gradient, "bokeh": _bokeh, "window": _window, "shelves": _shelves, "landscape": _landscape,
    "studio": _studio, "sunset": _sunset,
}  # fmt: skip
