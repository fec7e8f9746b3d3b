"""Neck, shoulders and what is worn on them."""

from __future__ import annotations

import torch
from torch import Tensor

from wan_s2v.training.identities import CLOTHES, PATTERNS, Identities
from wan_s2v.training.poses import View
from wan_s2v.training.shapes import (
    bump,
    ellipse,
    fill,
    glow,
    length,
    multiply,
    paint,
    ripple,
    rounded_box,
    screen,
    smooth_min,
    smoothstep,
    stroke,
)  # fmt: skip

SHOULDER_Y = 0.78


def draw_body(image: Tensor, view: View, who: Identities, face: Tensor) -> Tensor:
    """Paint neck and clothes; `face` is the distance to the face's outline moved down, which shades the neck."""
    x, y = view.body_x, view.body_y
    body = torso(x, y, who)
    image = _draw_skin(image, view, who, body, face)
    opening = _opening(x, y, who)
    garment = torch.maximum(body - 0.012, -opening)
    image = _draw_garment(image, view, who, garment, opening)
    image = _draw_collar(image, view, who)
    image = _draw_jacket(image, view, who, body)
    image = _draw_turtleneck(image, view, who)
    return _light_body(image, view, who, torch.minimum(body, garment))


def torso(x: Tensor, y: Tensor, who: Identities) -> Tensor:
    """Distance to the shoulders, which reach down without end."""
    box = rounded_box(x, y - SHOULDER_Y - 4, who.shoulders, 4.0, 0.22)
    slope = ellipse(x, y - 0.92, 0.52, 0.30)
    return smooth_min(box, slope, 0.22)


def _neck(x: Tensor, y: Tensor, who: Identities) -> Tensor:
    flare = 0.16 * smoothstep(0.46, 0.80, y)
    return torch.maximum((x.abs() - who.neck - flare) * 0.9, torch.maximum(0.05 - y, y - 0.95))


def _draw_skin(image: Tensor, view: View, who: Identities, body: Tensor, face: Tensor) -> Tensor:
    x, y = view.body_x, view.body_y
    skin = fill(smooth_min(body, _neck(x, y, who), 0.05), view.px)
    side = 0.55 - 0.40 * smoothstep(-0.3, 0.3, x * who.light_side)
    image = paint(image, skin, torch.lerp(who.skin, who.skin_shadow, side[:, None]))
    image = multiply(image, skin * glow(face - 0.02, 0.024) * 0.85, 0.92 * who.shade)
    tendon = bump(x.abs() - 0.11 + 0.14 * (y - 0.55), 0.018) * smoothstep(0.45, 0.60, y) * smoothstep(0.74, 0.66, y)
    bones = bump(y - 0.735 - 0.10 * (x.abs() - 0.2), 0.014) * smoothstep(0.05, 0.10, x.abs())
    bones = bones * smoothstep(0.42, 0.25, x.abs())
    return multiply(image, skin * (0.16 * tendon + 0.22 * bones), who.shade)


def _kind(who: Identities, *names: str) -> Tensor:
    """1 for those who wear one of the named clothes."""
    kinds = [(who.clothes == CLOTHES.index(name)).to(who.scale.dtype) for name in names]
    return torch.stack(kinds).sum(0)


def _opening(x: Tensor, y: Tensor, who: Identities) -> Tensor:
    """Distance to the neck hole: a bow for t-shirts, wide for blouses, a wedge for the others."""
    depth = 0.06 * who.neckline
    wide = _kind(who, "blouse")
    bow = ellipse(x, y - 0.56, who.neck + 0.05 + 0.14 * wide, 0.17 + depth + 0.07 * wide)
    bow = torch.minimum(bow, torch.maximum(x.abs() - who.neck - 0.04, y - 0.58))
    low = 0.93 + 2 * depth - 0.12 * _kind(who, "shirt", "jacket")
    wedge = (x.abs() * 1.5 + y - low) * 0.55
    wedge = torch.maximum(wedge, x.abs() - who.neck - 0.045)
    opening = torch.lerp(bow, wedge, _kind(who, "v-neck", "shirt", "jacket"))
    return opening + _kind(who, "turtleneck")


def _draw_garment(image: Tensor, view: View, who: Identities, garment: Tensor, opening: Tensor) -> Tensor:
    x, y = view.body_x, view.body_y
    colour = torch.lerp(who.cloth, who.cloth_2, _kind(who, "jacket")[:, None])
    image = multiply(image, 0.40 * glow(garment - 0.012, 0.012) * fill(opening, view.px), who.skin_shadow)
    cover = fill(garment, view.px)
    image = paint(image, cover, colour)
    image = paint(image, cover * _pattern(view, who) * (1 - _kind(who, "jacket")), who.cloth_2)
    hem = _kind(who, "t-shirt", "v-neck", "blouse")
    image = multiply(image, cover * hem * stroke(opening - 0.040, 0.0035, view.px) * 0.5, colour * 0.4)
    image = screen(image, cover * hem * fill(opening - 0.036, view.px) * 0.10, who.light)
    folds = torch.sin(x * 7 + 3 * torch.sin(y * 3 + who.strand_phase)) * torch.sin(y * 5 - 4 * x.abs())
    folds = folds * smoothstep(0.7, 1.0, y)
    return multiply(image, cover * (0.16 + 0.14 * folds), colour * 0.55)


def _pattern(view: View, who: Identities) -> Tensor:
    """Strength of the second colour at every pixel of the cloth."""
    x, y, size = view.body_x, view.body_y + 0.12 * view.body_x**2, 0.11 * who.pattern_scale
    px = view.px
    across = (torch.frac(x / size + 50) - 0.5) * size
    down = (torch.frac(y / size + 50) - 0.5) * size
    bands = {"stripes": fill(down.abs() - 0.24 * size, px), "pinstripes": stroke(across, 0.004, px),
             "dots": fill(length(across, down) - 0.22 * size, px),
             "checks": 0.5 * (fill(across.abs() - 0.2 * size, px) + fill(down.abs() - 0.2 * size, px))}  # fmt: skip
    total = torch.zeros_like(x)
    for name, band in bands.items():
        total = total + (who.pattern == PATTERNS.index(name)) * band
    return total * who.pattern_strength


def _draw_collar(image: Tensor, view: View, who: Identities) -> Tensor:
    """Shirt collar with buttons, under the jacket too, and a tie."""
    x, y, px = view.body_x.abs(), view.body_y, view.px
    worn = _kind(who, "shirt", "jacket")
    cloth = torch.lerp(who.cloth, who.cloth_2, _kind(who, "jacket")[:, None])
    tie_width = 0.030 + 0.055 * smoothstep(0.86, 1.25, y)
    knot = torch.maximum(x - 0.050 + 0.25 * (y - 0.80), (y - 0.835).abs() - 0.05)
    tie = torch.minimum(torch.maximum(x - tie_width, 0.86 - y), knot)
    tie_on = who.tie * _kind(who, "jacket")
    tie_area = tie_on * fill(tie, px)
    image = paint(image, tie_area, who.back_2 * 0.75)
    image = multiply(image, tie_area * ripple(view.body_x + y, 60.0, px).clamp(0, 1) * 0.25, who.cloth)
    placket = worn * (1 - tie_on) * smoothstep(0.84, 0.88, y)
    image = multiply(image, placket * stroke(x - 0.035, 0.003, px) * 0.4, cloth * 0.4)
    button = length(x, torch.frac((y + 0.02) / 0.15) * 0.15 - 0.075) - 0.014
    image = paint(image, placket * fill(button, px), torch.lerp(cloth * 0.6, who.skin, 0.25))
    flap = _quadrilateral(x, y, ((who.neck + 0.005, 0.52), (0.012, 0.80), (0.15, 0.885), (who.neck + 0.10, 0.64)))
    image = multiply(image, worn * glow(flap - 0.012, 0.010) * 0.35, cloth * 0.4)
    image = paint(image, worn * fill(flap, px), cloth * 1.04)
    return multiply(image, worn * stroke(flap + 0.012, 0.002, px) * 0.25, cloth * 0.5)


def _quadrilateral(x: Tensor, y: Tensor, corners: tuple[tuple[Tensor | float, float], ...]) -> Tensor:
    """Distance to a convex shape whose corners run counter-clockwise on the screen."""
    distance = torch.full_like(x, -1.0)
    for (ax, ay), (bx, by) in zip(corners, (*corners[1:], corners[0]), strict=True):
        dx, dy = bx - ax, by - ay
        distance = torch.maximum(distance, ((y - ay) * dx - (x - ax) * dy) * (dx * dx + dy * dy) ** -0.5)
    return distance


def _draw_jacket(image: Tensor, view: View, who: Identities, body: Tensor) -> Tensor:
    x, y, px, worn = view.body_x.abs(), view.body_y, view.px, _kind(who, "jacket")
    front = torch.minimum((1.18 - y) * 0.36, who.neck + 0.055) - x
    jacket = torch.maximum(body - 0.028, front)
    image = multiply(image, worn * glow(jacket - 0.02, 0.016) * fill(body, px) * 0.45, who.cloth * 0.4)
    image = paint(image, worn * fill(jacket, px), who.cloth)
    image = paint(image, worn * fill(jacket, px) * _pattern(view, who) * 0.35, who.cloth_2)
    notch = torch.maximum((y - 0.92 + 0.25 * x).abs() - 0.012, 0.21 - x)
    lapel = torch.maximum(torch.maximum(jacket, -front - 0.125 - 0.08 * (y - 0.8)), -notch)
    image = multiply(image, worn * glow(lapel - 0.008, 0.008) * fill(jacket, px) * 0.35, who.cloth * 0.4)
    return paint(image, worn * fill(lapel, px), (who.cloth * 1.12 + 0.02).clamp(0, 1))


def _draw_turtleneck(image: Tensor, view: View, who: Identities) -> Tensor:
    x, y, px, worn = view.body_x, view.body_y, view.px, _kind(who, "turtleneck")
    roll = rounded_box(x, y - 0.62 - 0.35 * x * x, who.neck + 0.030 + 0.10 * smoothstep(0.58, 0.80, y), 0.115, 0.06)
    image = multiply(image, worn * glow(roll - 0.015, 0.02) * fill(torso(x, y, who), px) * 0.35, who.cloth * 0.45)
    knit = 1 + 0.05 * ripple(x * (1.2 - 0.3 * y), 85.0, px) - 0.30 * (x / 0.3) ** 2
    image = paint(image, worn * fill(roll, px), who.cloth * knit[:, None])
    return multiply(image, worn * fill(roll, px) * bump(y - 0.725 - 0.35 * x * x, 0.03) * 0.35, who.cloth * 0.6)


def _light_body(image: Tensor, view: View, who: Identities, body: Tensor) -> Tensor:
    """Shade one side and the lower part, and draw the rim of light on the other side."""
    x, y, lit = view.body_x, view.body_y, who.light_side
    inside = fill(body, view.px)
    dark = 0.32 * smoothstep(0.1, 0.9, -x * lit) + 0.14 * smoothstep(0.9, 1.5, y)
    image = multiply(image, inside * dark, who.cloth * 0.4)
    rim = inside * bump(body, 0.030) * smoothstep(0.15, 0.6, -x * lit) * who.rim_light
    glint = 0.7 * rim + 0.06 * inside * smoothstep(0.0, 0.7, x * lit)
    return screen(image, glint, torch.lerp(who.back_3, who.light, 0.3))
