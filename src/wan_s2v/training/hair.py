"""Hair behind and in front of the face, and what covers it."""

from __future__ import annotations

import torch
from torch import Tensor

from wan_s2v.training.identities import COVERS, Identities
from wan_s2v.training.poses import Pose, View
from wan_s2v.training.shapes import (
    bump, ellipse, fill, glow, length, multiply, paint, ripple, rounded_box, screen, segment, smooth_min, smoothstep,
    stroke,
)  # fmt: skip


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
        fine = ripple(s + 0.03 * torch.sin(y * 5 + who.strand_phase), 61.0, view.px * 1.2)
        broad = torch.sin(s * 23 + who.strand_phase + 0.8 * torch.sin(y * 3))
        curls = torch.sin(x * 47 + 3 * torch.sin(y * 31)) * torch.sin(y * 43 + 3 * torch.sin(x * 29))
        curly = smoothstep(0.006, 0.014, who.hair_curl)
        self.strands = torch.lerp(0.55 * fine + 0.6 * broad, 1.3 * curls + 0.3 * broad, curly)
        self.jag = who.hair_jag * (0.7 * broad + 0.6 * fine + 0.8 * torch.sin(s * 37))
        self.cap, self.long = self._outline(x, y, wave, who)
        self.front = self._front(view, who)

    def _outline(self, x: Tensor, y: Tensor, wave: Tensor, who: Identities) -> tuple[Tensor, Tensor]:
        angle = torch.atan2(y + 0.08, x)
        lumps = who.hair_curl * (torch.sin(angle * who.hair_curl_scale) + 0.5 * torch.sin(angle * 0.6 * who.hair_curl_scale + 2))
        skull = ellipse(x, y + 0.045, who.face_width + who.hair_side, 0.455 + who.hair_top) - lumps
        middle, half = 0.5 * (who.hair_length - 0.12), 0.5 * (who.hair_length + 0.12)
        flare = 0.25 * who.hair_width * smoothstep(0.1, 0.8, y)
        bunches = who.hair_curl * torch.sin(y * 19 + 2 * torch.sign(x))
        long = rounded_box(x.abs() - flare - wave * torch.sign(x) - bunches, y - middle + self.jag,
                           who.face_width + who.hair_width, half.clamp(min=0.02), torch.minimum(half, 0.06 + 0.0 * half + 0.16))  # fmt: skip
        long = torch.where(who.hair_length > 0.12, long, torch.ones_like(long))
        return smooth_min(skull, long, 0.06), long

    def _front(self, view: View, who: Identities) -> Tensor:
        x, y = view.face_x, view.face_y
        left, right = (who.hair_part - x).clamp(min=0), (x - who.hair_part).clamp(min=0)
        side = (x / who.face_width).abs()
        line = who.hair_hairline + who.hair_arch * side**3 + who.hair_sweep_left * left * (0.5 + 1.1 * left)
        line = line + who.hair_sweep_right * right * (0.5 + 1.1 * right) + self.jag
        opening = who.hair_opening + 0.10 * smoothstep(0.25, 0.75, y) - 0.03 * smoothstep(-0.25, 0.1, y) + 0.5 * self.jag
        locks = torch.maximum(opening - view.face_x.abs(), y - who.hair_lock_end + self.jag)
        return torch.maximum(self.cap, smooth_min(y - line, locks, 0.05))


def draw_hair_behind(image: Tensor, view: View, hair: Hair, who: Identities, pose: Pose) -> Tensor:
    """Long hair, buns and a ponytail, in the shade of the head."""
    x, y, px = view.head_x + 0.05 * torch.sin(pose.yaw), view.head_y, view.px
    bun_x = torch.where(who.hair_bun_x > 0, x.abs(), x) - who.hair_bun_x
    bun = length(bun_x * 0.94, y - who.hair_bun_y) - who.hair_bun_radius - 0.4 * hair.jag
    worn = (who.hair_bun_radius > 0).to(x.dtype)
    swirl = 0.5 + 0.5 * ripple(length(bun_x + 0.05, y - who.hair_bun_y + 0.03), 70.0, px)
    tone = (0.74 + 0.30 * smoothstep(0.10, -0.12, y - who.hair_bun_y) + who.strand_contrast * (swirl - 0.5))[:, None]
    bun_colour = (who.hair * tone).clamp(0, 1)
    tail_x = (x - who.tail_side * (0.40 + 0.16 * torch.sin((y + 0.35).clamp(0, 1.4) * 2.6))) * 1.0
    tail = torch.maximum(tail_x.abs() - 0.135 * smoothstep(-0.42, -0.05, y) * smoothstep(0.95, 0.35, y) - 0.3 * hair.jag, (y - 0.25).abs() - 0.70)
    density = who.hair_density * (who.cover == 0)
    behind = fill(torch.minimum(hair.cap + 0.01, torch.where(who.hair_length > 0.12, hair.long, torch.ones_like(x))), px)
    colour = who.hair * (0.60 + 0.10 * smoothstep(-0.2, 0.8, view.light) + 0.9 * who.strand_contrast * hair.strands)[:, None]
    image = paint(image, who.hair_density * behind * (who.cover != 2), colour.clamp(0, 1))
    tail_tone = 0.72 + who.strand_contrast * ripple(tail_x + 0.02 * torch.sin(y * 9), 60.0, px) + 0.14 * bump(tail_x - 0.03, 0.04)
    image = paint(image, who.hair_tail * density * fill(tail, px + 0.004), (who.hair * tail_tone[:, None]).clamp(0, 1))
    image = paint(image, worn * density * fill(bun, px), bun_colour)
    return screen(image, worn * density * fill(bun, px) * bump(length(bun_x - 0.04 * torch.sign(who.light_x), y - who.hair_bun_y + 0.06), 0.06) * who.shine, who.hair)


def draw_hair(image: Tensor, view: View, hair: Hair, who: Identities, outline: Tensor) -> Tensor:
    """Hair in front of the face and over the shoulders, with the shadow that it casts."""
    px, y = view.px, view.head_y
    density = who.hair_density * (who.cover != 2)
    cover = fill(hair.front, px + 0.003) * density
    shade = glow(hair.front - 0.028, 0.014) * fill(outline, px) * density
    image = multiply(image, 0.42 * shade, who.skin_shadow / (who.skin + 0.02))
    light = smoothstep(-0.35, 0.95, view.light)
    tone = 0.66 + 0.36 * light + who.strand_contrast * hair.strands
    tone = tone - 0.16 * bump(hair.front, 0.022) * (hair.cap < -0.03) - 0.18 * smoothstep(0.25, 0.9, y)
    image = paint(image, cover, (who.hair * tone[:, None]).clamp(0, 1))
    band = bump(y + 0.36 + 0.5 * view.head_x**2 + 0.012 * hair.strands, 0.055) * (0.65 + 0.35 * hair.strands)
    side = smoothstep(-0.35, 0.35, view.head_x * torch.sign(who.light_x))
    image = screen(image, cover * band.clamp(0, 1) * (0.35 + 0.65 * side) * who.shine, torch.lerp(who.hair, who.light.expand_as(who.hair), 0.45))
    rim = cover * bump(hair.cap, 0.022) * smoothstep(0.05, 0.36, -view.head_x * torch.sign(who.light_x)) * who.rim_light
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
    image = multiply(image, worn * glow(band - 0.03, 0.014) * fill(outline, px) * 0.4, who.skin_shadow / (who.skin + 0.02))
    knit = ripple(x / (1.35 - 0.6 * (y + 0.3).abs()).clamp(min=0.5), 75.0, px)
    image = paint(image, worn * fill(dome, px), (who.cover_colour * (light + 0.06 * knit)[:, None]).clamp(0, 1))
    tone = light + 0.05 + 0.07 * ripple(x, 82.0, px) - 0.18 * (band_y / 0.07) ** 4
    return paint(image, worn * fill(band, px), (who.cover_colour * tone[:, None]).clamp(0, 1))


def _draw_headscarf(image: Tensor, view: View, who: Identities, outline: Tensor) -> Tensor:
    x, y, px = view.head_x, view.head_y, view.px
    worn = (who.cover == COVERS.index("headscarf")).to(x.dtype)
    head = ellipse(x, y + 0.02, who.face_width + 0.085, 0.57)
    drape = rounded_box(x, view.body_y - 0.80, 0.36 + 0.30 * smoothstep(0.45, 0.95, view.body_y), 0.34, 0.16)
    opening = ellipse(view.face_x, view.face_y - 0.055, who.face_width * 0.93, who.chin - 0.045)
    cloth = torch.maximum(smooth_min(head, drape, 0.16), -opening)
    image = multiply(image, worn * glow(cloth - 0.02, 0.012) * 0.45, who.skin_shadow / (who.skin + 0.02))
    folds = torch.sin(22 * length(x - 0.25, y - 0.1) + 3 * x) * smoothstep(0.25, 0.6, length(x, y))
    tone = 0.74 + 0.30 * smoothstep(-0.3, 0.95, view.light) + 0.07 * folds - 0.22 * bump(cloth, 0.03)
    image = paint(image, worn * fill(cloth, px), (who.cover_colour * tone[:, None]).clamp(0, 1))
    fold = worn * stroke(ellipse(view.face_x, view.face_y - 0.055, who.face_width * 0.93 + 0.05, who.chin + 0.01), 0.004, px)
    return multiply(image, 0.35 * fold * fill(cloth, px), who.cover_colour * 0.5)
