"""The mouth: lips, teeth, tongue and moustache for every mouth shape."""

from __future__ import annotations

import torch
from torch import Tensor

from wan_s2v.training.identities import BEARDS, Identities
from wan_s2v.training.poses import Pose, View
from wan_s2v.training.shapes import (
    bump,
    ellipse,
    fill,
    length,
    multiply,
    paint,
    rgb,
    ripple,
    screen,
    smoothstep,
    stroke,
)  # fmt: skip

OPEN_HEIGHT = 0.185  # between the lips at open = 1, head units
UPPER_SHARE = 0.20  # part of the opening by which the upper lip rises; the jaw gives the rest


class Lips:
    """Curves of the mouth over its width, and the pixels relative to them.

    `t` runs from -1 at one corner to 1 at the other; heights grow downward from the line between the corners.
    """

    def __init__(self, view: View, who: Identities, pose: Pose) -> None:
        self.who, self.pose = who, pose
        pressed = pose.closed
        self.share = UPPER_SHARE + 0.24 * pose.round
        self.height = OPEN_HEIGHT * pose.open * (1 - pressed) * (1 - 0.30 * pose.round)
        self.height = self.height * (1 - 0.15 * pose.width.clamp(min=0))
        self.bite = _bite(pose)
        spread = 1 + 0.17 * pose.width - 0.44 * pose.round + 0.13 * pose.smile.clamp(min=0) - 0.08 * pose.open
        self.half_width = who.mouth_width * spread
        self.x = view.face_x
        self.t = (self.x / self.half_width).clamp(-1, 1)
        curve = who.mouth_curve + 0.045 * pose.smile * (1 - 0.5 * pose.round)
        # Corners rise and the middle sinks a little, so that a smile does not lift the whole mouth.
        self.y = view.face_y - mouth_centre(who, pose) + curve * (self.t * self.t - 0.35)
        upper, inner_top, inner_bottom, lower = self._curves(self.t)
        step = 0.02
        ahead, behind = self._curves(self.t + step), self._curves(self.t - step)
        slopes = [(a - b) / (2 * step * self.half_width) for a, b in zip(ahead, behind, strict=True)]
        norm = [torch.sqrt(1 + slope**2) for slope in slopes]
        ends = self.x.abs() - self.half_width
        self.upper, self.inner_top, self.inner_bottom, self.lower = upper, inner_top, inner_bottom, lower
        self.outside = torch.maximum(torch.maximum((upper - self.y) / norm[0], (self.y - lower) / norm[3]), ends)
        between = torch.maximum((inner_top - self.y) / norm[1], (self.y - inner_bottom) / norm[2])
        self.inside = torch.maximum(between, ends)

    def _curves(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Outer and inner edge of the upper lip, inner and outer edge of the lower lip."""
        who, pose = self.who, self.pose
        arc = (1 - t * t).clamp(min=0)
        round_arc = torch.sqrt(arc + 1e-4)
        gap = torch.lerp(arc, round_arc, 0.30 + 0.55 * pose.round)
        inner_top = -self.share * self.height * gap
        inner_bottom = torch.lerp((1 - self.share) * self.height, torch.full_like(self.height, 0.011), self.bite) * gap
        thin = 1 - 0.50 * pose.closed
        stretch = 1 - 0.16 * pose.width.clamp(min=0) - 0.10 * pose.smile.clamp(min=0)
        bow = 1 + who.cupid * (bump(t.abs() - 0.26, 0.20) - 1.25 * bump(t, 0.15)) * (1 - 0.6 * pose.round)
        full = torch.lerp(arc, round_arc, 0.25 + 0.4 * pose.round)
        top = who.upper_lip * thin * stretch * (1 + 0.25 * pose.round - 0.12 * pose.open)
        bottom = who.lower_lip * thin * stretch * (1 + 0.18 * pose.round - 0.15 * pose.open) * (1 - 0.45 * self.bite)
        return inner_top - top * full * bow, inner_top, inner_bottom, inner_bottom + bottom * full


def _bite(pose: Pose) -> Tensor:
    """How far the lower lip lies under the upper teeth: f and v, told from s by spread and from sh by rounding."""
    teeth = smoothstep(0.75, 0.95, pose.teeth) * smoothstep(0.02, 0.07, pose.open) * smoothstep(0.26, 0.13, pose.open)
    return teeth * smoothstep(0.45, 0.28, pose.width) * smoothstep(0.40, 0.15, pose.round) * (1 - pose.closed)


def mouth_centre(who: Identities, pose: Pose) -> Tensor:
    """Height of the line between the corners of the mouth, on the face."""
    return who.mouth_y + 0.012 * pose.jaw - 0.006 * pose.closed


def draw_mouth(image: Tensor, view: View, who: Identities, pose: Pose) -> Tensor:
    lips = Lips(view, who, pose)
    image = _draw_surroundings(image, lips, who, pose)
    image = _draw_lips(image, lips, view, who, pose)
    image = _draw_inside(image, lips, view, who, pose)
    return _draw_moustache(image, lips, view, who)


def _draw_surroundings(image: Tensor, lips: Lips, who: Identities, pose: Pose) -> Tensor:
    """Shadow under the lower lip, the groove above the upper one, the corners, the dimples of a smile."""
    shadow = who.shade
    bare = 1 - 0.8 * (who.beard >= BEARDS.index("goatee")).to(shadow.dtype)
    below = bump(lips.x, lips.half_width * 0.62) * bump(lips.y - lips.lower - 0.020, 0.016)
    groove = bump(lips.x, 0.014) * bump(lips.y - lips.upper + 0.030, 0.022)
    corner = bump(length(lips.x.abs() - lips.half_width - 0.004, lips.y * 0.9), 0.017)
    crease = bump(lips.x.abs() - lips.half_width - 0.032, 0.010) * bump(lips.y, 0.04) * pose.smile.clamp(min=0)
    pout = bump(lips.outside - 0.008, 0.010) * (0.30 * pose.round + 0.10)
    amount = 0.52 * below + 0.18 * groove + 0.42 * corner + 0.35 * crease + pout
    return multiply(image, amount.clamp(0, 1) * bare, shadow)


def _draw_lips(image: Tensor, lips: Lips, view: View, who: Identities, pose: Pose) -> Tensor:
    area = fill(lips.outside, view.px)
    middle = 0.5 * (lips.inner_top + lips.inner_bottom)
    upper = smoothstep(0.006, -0.006, lips.y - middle)
    below = (lips.y - lips.inner_bottom) / (who.lower_lip + 1e-3)
    tone = 1.04 - 0.20 * upper - 0.16 * smoothstep(0.55, 1.1, below) - 0.10 * lips.t**2
    tone = tone * (0.84 + 0.22 * smoothstep(-0.1, 0.9, view.light)) * (1 + 0.03 * ripple(lips.x, 150.0, view.px))
    image = paint(image, 0.96 * area, (who.lips * tone[:, None]).clamp(0, 1))
    shine = bump(lips.x - 0.02 * who.light_side, lips.half_width * 0.38) * bump(below - 0.42, 0.24) * area
    edge = bump(lips.y - lips.upper + 0.002, 0.006) * bump(lips.x, lips.half_width * 0.5) * 0.3
    image = screen(image, shine * who.gloss * 0.55 + edge * 0.35, who.light)
    # The line between closed lips gives way to the dark of the mouth as they part.
    seam = stroke(lips.y - middle, 0.0042, view.px) * fill(lips.x.abs() - lips.half_width * 0.99, view.px)
    soft = bump(lips.y - middle, 0.010) * area
    shut = 1 - smoothstep(0.0, 0.012, lips.height)
    image = multiply(image, 0.35 * soft * shut, who.lips * 0.5)
    return paint(image, 0.82 * seam * shut, who.lips * rgb(0.40, 0.30, 0.32, lips.x))


def _draw_inside(image: Tensor, lips: Lips, view: View, who: Identities, pose: Pose) -> Tensor:
    px, x, y, height = view.px, lips.x, lips.y, lips.height
    area = fill(lips.inside, px) * smoothstep(0.0, 0.010, height)
    deep = bump((y - lips.inner_top - 0.45 * height) / (0.35 * height + 0.01), 1.0)
    inside = rgb(0.33, 0.085, 0.095, x) * (1 - 0.62 * deep)[:, None]
    inside = torch.lerp(inside, who.lips * 0.35, 0.25)
    tongue_y = torch.lerp((1 - lips.share) * height + 0.022, 0.018 + 0.05 * height, pose.tongue)
    tongue = ellipse(x, y - tongue_y, lips.half_width * (0.62 - 0.10 * pose.tongue), 0.050 + 0.10 * height)
    pink = rgb(0.80, 0.37, 0.39, x) * (0.92 + 0.20 * bump(y - tongue_y + 0.03, 0.02) - 0.16 * bump(x, 0.010))[:, None]
    seen = (0.25 + 0.75 * smoothstep(0.03, 0.09, height)).maximum(pose.tongue)
    inside = paint(inside, seen * fill(tongue, px * 2 + 0.006), pink)
    inside = _draw_teeth(inside, lips, view, pose)
    rim = bump(lips.inside, 0.008)
    return paint(image, area, multiply(inside, 0.45 * rim, rgb(0.45, 0.25, 0.27, x)).clamp(0, 1))


def _draw_teeth(inside: Tensor, lips: Lips, view: View, pose: Pose) -> Tensor:
    px, x, y, height = view.px, lips.x, lips.y, lips.height
    white = rgb(0.965, 0.945, 0.915, x)
    shade = (1 - 0.42 * lips.t**2 - 0.20 * bump(y - lips.inner_top, 0.012))[:, None]
    size = (0.014 + 0.028 * pose.teeth) * (1 - 0.95 * pose.round)
    arc = 1 - 0.55 * lips.t**2
    edge = lips.inner_top * 0.9 + size * arc
    upper = torch.maximum(y - edge, x.abs() - lips.half_width * 0.84)
    lower_top = lips.inner_bottom - (0.002 + 0.020 * pose.teeth) * arc * (1 - pose.round)
    lower = torch.maximum(lower_top - y, x.abs() - lips.half_width * 0.64)
    lower_seen = smoothstep(0.2, 0.7, pose.teeth) * smoothstep(0.10, 0.04, height)
    lower_seen = lower_seen * (1 - lips.bite) * (1 - 0.7 * pose.tongue)
    inside = paint(inside, lower_seen * fill(lower, px), white * 0.86 * shade)
    inside = multiply(inside, 0.35 * fill(upper - 0.006, px + 0.008), rgb(0.3, 0.15, 0.15, x))
    inside = paint(inside, fill(upper, px), white * shade)
    tooth = torch.frac(x.abs() / 0.034 + 0.5) - 0.5
    line = stroke(tooth.abs() * 0.034 - 0.017, 0.0011, px)
    return multiply(inside, 0.22 * line * fill(upper, px), rgb(0.55, 0.42, 0.40, x))


def _draw_moustache(image: Tensor, lips: Lips, view: View, who: Identities) -> Tensor:
    worn = (who.beard >= BEARDS.index("moustache")).to(lips.x.dtype)
    reach = who.mouth_width * 1.08
    t = (lips.x.abs() / reach).clamp(max=1)
    top = lips.upper.clamp(max=0) * (1 - t) - 0.040 * torch.sqrt(1 - t * t + 1e-4) + 0.012 * t + 0.004 * bump(t, 0.08)
    bottom = (lips.upper + 0.006) * (1 - t * t) + 0.030 * t * t
    distance = torch.maximum(torch.maximum(top - lips.y, lips.y - bottom), lips.x.abs() - reach)
    strands = 1 + 0.18 * ripple(lips.x + 0.5 * lips.y * torch.sign(lips.x), 130.0, view.px)
    colour = who.hair * (0.80 * strands)[:, None]
    return paint(image, worn * 0.95 * fill(distance, view.px + 0.012), colour.clamp(0, 1))
