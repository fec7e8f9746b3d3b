"""Hair behind and in front of the face, and what covers it."""

from __future__ import annotations

import torch
from torch import Tensor

from wan_s2v.training.clothes import torso
from wan_s2v.training.identities import COVERS, Identities
from wan_s2v.training.poses import Pose, View
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

_SHORT = 0.12  # hair that ends above this height does not hang behind the neck


class Hair:
    """Shapes of the hair at every pixel of a view.

    Args (attributes):
        cap: distance to the hair around the skull and, for long hair, down to its ends.
        front: distance to the part of it that lies in front of the face. strands: texture around 0.
    """

    def __init__(self, view: View, who: Identities, pose: Pose) -> None:
        turn = torch.sin(pose.yaw)
        x, y = view.head_x - 0.02 * turn, view.head_y
        # Hair hangs from a point above the head; `s` numbers the strands and stays constant along each.
        wave = who.hair_wave * torch.sin(y * 13 + who.strand_phase) * smoothstep(-0.2, 0.3, y)
        s = (x + wave - 0.5 * who.hair_part) / (y + 1.25).clamp(min=0.35)
        fine = ripple(s + 0.02 * torch.sin(y * 5 + who.strand_phase), 113.0, view.px)
        broad = torch.sin(s * 23 + who.strand_phase + 0.8 * torch.sin(y * 3))
        curls = torch.sin(x * 47 + 3 * torch.sin(y * 31)) * torch.sin(y * 43 + 3 * torch.sin(x * 29))
        curly = smoothstep(0.006, 0.014, who.hair_curl)
        middle = torch.sin(s * 47 + 2.2 * torch.sin(s * 11 + who.strand_phase) + 0.7 * torch.sin(y * 4))
        self.strands = torch.lerp(0.45 * fine + 0.35 * broad + 0.45 * middle, 1.3 * curls + 0.3 * broad, curly)
        tufts = 1 - 2 * torch.sin(s * 12 + who.strand_phase + 1.2 * torch.sin(s * 8)).abs()
        self.jag = who.hair_jag * (tufts + 0.5 * fine)
        self.cap = self._outline(x, y, wave, who)
        self.front = self._front(view, who)

    def _outline(self, x: Tensor, y: Tensor, wave: Tensor, who: Identities) -> Tensor:
        angle = torch.atan2(y + 0.08, x)
        lumps = torch.sin(angle * who.hair_curl_scale) + 0.5 * torch.sin(angle * 0.6 * who.hair_curl_scale + 2)
        skull = _dome(x, y + 0.045, who.face_width + who.hair_side, 0.43 + who.hair_top) - who.hair_curl * lumps
        middle, half = 0.5 * (who.hair_length - 0.12), 0.5 * (who.hair_length + 0.12)
        flare = 0.25 * who.hair_width * smoothstep(0.1, 0.8, y)
        bunches = who.hair_curl * torch.sin(y * 19 + 2 * torch.sign(x))
        across = x.abs() - flare - wave * torch.sign(x) - bunches
        width = who.face_width + who.hair_width
        long = rounded_box(across, y - middle + self.jag, width, half, half.clamp(max=0.22))
        return smooth_min(skull, torch.where(who.hair_length > _SHORT, long, torch.ones_like(long)), 0.06)

    def _front(self, view: View, who: Identities) -> Tensor:
        x, y = view.face_x, view.face_y
        left, right = (who.hair_part - x).clamp(min=0), (x - who.hair_part).clamp(min=0)
        side = (x / who.face_width).abs()
        line = who.hair_hairline + who.hair_arch * side**4 + who.hair_sweep_left * left * (0.5 + 1.1 * left)
        line = line + who.hair_sweep_right * right * (0.5 + 1.1 * right) + self.jag
        # Long hair follows the oval of the face down to the jaw and parts again over the shoulders.
        oval = (who.hair_length > _SHORT) * bump(y - 0.06, 0.22) * 0.08 - 0.16 * smoothstep(0.22, 0.50, y)
        opening = who.face_width * (who.hair_opening + oval) + 0.12 * smoothstep(0.55, 0.90, y) + 0.5 * self.jag
        # Locks and sideburns end in a point.
        opening = opening + 0.5 * (y - who.hair_lock_end + 0.11).clamp(min=0) * (who.hair_lock_end < 0.3)
        locks = torch.maximum(opening - view.face_x.abs(), y - who.hair_lock_end + self.jag)
        return torch.maximum(self.cap, smooth_min(y - line, locks, 0.05))


def _shade(who: Identities, tone: Tensor) -> Tensor:
    """Colour of hair at a brightness around 0.9, where 0.4 is deep shade."""
    return torch.lerp(who.hair_shadow, who.hair, ((tone - 0.40) / 0.55)[:, None]).clamp(0, 1)


def _dome(x: Tensor, y: Tensor, radius_x: Tensor, radius_y: Tensor) -> Tensor:
    """Distance to an ellipse with fuller shoulders, which sits on a skull better than an egg."""
    u, v = (x / radius_x) ** 2, (y / radius_y) ** 2
    k = torch.sqrt(u + v - 0.36 * (u * v).clamp(max=0.5) + 1e-6)
    return k * (k - 1) / length(x / radius_x**2, y / radius_y**2)


def draw_hair_behind(image: Tensor, view: View, hair: Hair, who: Identities, pose: Pose) -> Tensor:
    """Long hair, a ponytail and buns, in the shade of the head."""
    x, y, px = view.head_x + 0.05 * torch.sin(pose.yaw), view.head_y, view.px
    density = who.hair_density * (who.cover != COVERS.index("headscarf"))
    nape = torch.where(who.hair_length > _SHORT, torch.full_like(y, -1.0), y - 0.05)
    tone = 0.58 + 0.20 * smoothstep(0.40, -0.15, y) + 0.10 * smoothstep(-0.2, 0.8, view.light)
    tone = tone + 0.9 * who.strand_contrast * hair.strands
    image = paint(image, density * fill(torch.maximum(hair.cap + 0.01, nape), px + 0.01), _shade(who, tone))
    image = _draw_tail(image, x, y, px, hair, who)
    return _draw_buns(image, x, y, px, hair, who)


def _draw_tail(image: Tensor, x: Tensor, y: Tensor, px: Tensor, hair: Hair, who: Identities) -> Tensor:
    bow = 0.25 + 0.22 * smoothstep(-0.38, 0.08, y) - 0.07 * smoothstep(0.2, 0.85, y)
    across = x - who.tail_side * bow
    half_width = 0.115 * smoothstep(-0.62, -0.12, y) * smoothstep(0.92, 0.30, y)
    tail = torch.maximum(across.abs() - half_width - 0.3 * hair.jag, (y - 0.29).abs() - 0.61)
    lines = ripple(across + 0.02 * torch.sin(y * 9), 60.0, px)
    tone = 0.72 + who.strand_contrast * lines + 0.14 * bump(across - 0.03, 0.04)
    return paint(image, who.hair_tail * fill(tail, px + 0.004), _shade(who, tone))


def _draw_buns(image: Tensor, x: Tensor, y: Tensor, px: Tensor, hair: Hair, who: Identities) -> Tensor:
    """One bun in the middle, or one on each side."""
    x = torch.where(who.hair_bun_x > 0, x.abs(), x) - who.hair_bun_x
    y = y - who.hair_bun_y
    bun = length(x * 0.94, y) - who.hair_bun_radius - 0.4 * hair.jag
    cover = (who.hair_bun_radius > 0) * fill(bun, px)
    coil = 0.5 * ripple(length(x + 0.05, y + 0.03), 70.0, px)
    image = paint(image, cover, _shade(who, 0.74 + 0.30 * smoothstep(0.10, -0.12, y) + who.strand_contrast * coil))
    gleam = bump(length(x - 0.04 * who.light_side, y + 0.06), 0.06)
    return screen(image, cover * gleam * who.shine, who.hair)


def draw_hair(image: Tensor, view: View, hair: Hair, who: Identities, outline: Tensor) -> Tensor:
    """Hair in front of the face and over the shoulders, with the shadow that it casts."""
    px, y = view.px, view.head_y
    density = who.hair_density * (who.cover != COVERS.index("headscarf"))
    cover = fill(hair.front + 0.002, px + 0.007) * density
    shade = glow(hair.front - 0.028, 0.014) * fill(outline, px) * density
    image = multiply(image, 0.42 * shade, who.shade)
    light = smoothstep(-0.35, 0.95, view.light)
    tone = 0.58 + 0.50 * light + who.strand_contrast * hair.strands
    tone = tone - 0.16 * bump(hair.front, 0.022) * (hair.cap < -0.03) - 0.18 * smoothstep(0.25, 0.9, y)
    image = paint(image, cover, _shade(who, tone))
    band = bump(y + 0.36 + 0.5 * view.head_x**2 + 0.012 * hair.strands, 0.055) * (0.65 + 0.35 * hair.strands)
    side = smoothstep(-0.35, 0.35, view.head_x * who.light_side)
    gleam = cover * band.clamp(0, 1) * (0.35 + 0.65 * side) * who.shine
    image = screen(image, gleam, torch.lerp(who.hair, who.light, 0.45))
    rim = cover * bump(hair.cap, 0.022) * smoothstep(0.05, 0.36, -view.head_x * who.light_side) * who.rim_light
    return screen(image, 0.6 * rim, torch.lerp(who.back_3, who.hair, 0.25))


def draw_cover(image: Tensor, view: View, who: Identities, outline: Tensor) -> Tensor:
    """A knitted beanie, or a headscarf that leaves only the face free."""
    image = _draw_beanie(image, view, who, outline)
    return _draw_headscarf(image, view, who, outline)


def _draw_beanie(image: Tensor, view: View, who: Identities, outline: Tensor) -> Tensor:
    x, y, px = view.head_x, view.head_y, view.px
    worn = (who.cover == COVERS.index("beanie")).to(x.dtype)
    dome = torch.maximum(ellipse(x, y + 0.20, who.face_width + 0.055, 0.43), y + 0.20 - 0.10 * x * x)
    band_y = y + 0.235 - 0.28 * x * x
    band = rounded_box(x, band_y, who.face_width + 0.068, 0.072, 0.05)
    light = 0.70 + 0.36 * smoothstep(-0.3, 0.95, view.light)
    image = multiply(image, worn * glow(band - 0.03, 0.014) * fill(outline, px) * 0.4, who.shade)
    knit = ripple(x / (1.35 - 0.6 * (y + 0.3).abs()).clamp(min=0.5), 75.0, px)
    image = paint(image, worn * fill(dome, px), (who.cover_colour * (light + 0.06 * knit)[:, None]).clamp(0, 1))
    tone = light + 0.05 + 0.07 * ripple(x, 82.0, px) - 0.18 * (band_y / 0.07) ** 4
    return paint(image, worn * fill(band, px), (who.cover_colour * tone[:, None]).clamp(0, 1))


def _draw_headscarf(image: Tensor, view: View, who: Identities, outline: Tensor) -> Tensor:
    x, y, px = view.head_x, view.head_y, view.px
    worn = (who.cover == COVERS.index("headscarf")).to(x.dtype)
    head = ellipse(x, y + 0.02, who.face_width + 0.085, 0.57)
    drape = rounded_box(x, view.body_y - 0.80, 0.36 + 0.30 * smoothstep(0.45, 0.95, view.body_y), 0.34, 0.16)
    opening = ellipse(view.face_x, view.face_y - 0.055, who.face_width * 0.95, who.chin - 0.035)
    opening = torch.maximum(opening, outline + 0.022)
    cloth = torch.maximum(smooth_min(head, drape, 0.16), -opening)
    person = torch.minimum(outline, torso(view.body_x, view.body_y, who))
    image = multiply(image, worn * glow(cloth - 0.02, 0.012) * fill(person, px) * 0.45, who.shade)
    folds = torch.sin(22 * length(x - 0.25, y - 0.1) + 3 * x) * smoothstep(0.25, 0.6, length(x, y))
    tone = 0.74 + 0.30 * smoothstep(-0.3, 0.95, view.light) + 0.07 * folds - 0.22 * bump(cloth, 0.03)
    image = paint(image, worn * fill(cloth, px), (who.cover_colour * tone[:, None]).clamp(0, 1))
    seam = ellipse(view.face_x, view.face_y - 0.055, who.face_width * 0.93 + 0.05, who.chin + 0.01)
    fold = worn * stroke(seam, 0.004, px)
    return multiply(image, 0.35 * fold * fill(cloth, px), who.cover_colour * 0.5)
