"""The face without its mouth: outline, skin, ears, nose, brows, eyes, glasses and beard."""

from __future__ import annotations

import torch
from torch import Tensor

from wan_s2v.training.identities import BEARDS, Identities
from wan_s2v.training.poses import Pose, View
from wan_s2v.training.shapes import (
    bump,
    ellipse,
    fill,
    glow,
    length,
    multiply,
    paint,
    rgb,
    ripple,
    round_cone,
    rounded_box,
    screen,
    segment,
    smooth_min,
    smoothstep,
    stroke,
)  # fmt: skip

SKULL_Y = -0.085
PITCH_EAR = -0.10  # ears lie behind the axis of a nod and move against the face
JAW_DROP = 0.060  # how far the chin sinks, head units


def face_outline(x: Tensor, y: Tensor, who: Identities, pose: Pose) -> Tensor:
    """Distance to the face at head coordinates; the chin follows the jaw and leads when the head turns."""
    x = x - torch.sin(pose.yaw) * (0.03 + 0.13 * (y + 0.1).clamp(-0.2, 0.6))
    drop = JAW_DROP * pose.jaw + 0.03 * torch.sin(pose.pitch)
    chin = who.chin - who.jaw + drop
    cone = round_cone(x, y - SKULL_Y, who.face_width, who.jaw, chin - SKULL_Y)
    cheek = length(x.abs() - who.face_width + who.cheeks + 0.030, y - 0.17 - 0.3 * drop) - who.cheeks
    return smooth_min(cone, cheek, 0.12)


def draw_ears(image: Tensor, view: View, who: Identities, pose: Pose) -> Tensor:
    """Ears lie behind the face, so the one turned away disappears."""
    turn = torch.sin(pose.yaw)
    side = torch.sign(view.head_x)
    x = (view.head_x + 0.10 * turn).abs() - who.face_width - 0.004
    y = view.head_y - 0.025 - PITCH_EAR * torch.sin(pose.pitch)
    ear = ellipse(x + 0.22 * y, y, who.ear * 0.50, who.ear)
    shade = 0.25 - 0.25 * side * who.light_side
    colour = torch.lerp(torch.lerp(who.skin, who.skin_shadow, shade[:, None]), rgb(0.85, 0.35, 0.3, x), 0.08)
    image = paint(image, fill(ear, view.px), colour)
    inner = ellipse(x + 0.004 + 0.22 * y, y + 0.006, who.ear * 0.30, who.ear * 0.62)
    image = multiply(image, glow(inner, 0.008) * 0.65, who.shade)
    stud = length(x + 0.012, y - who.ear * 0.98) - 0.016
    hoop = length(x + 0.004, y - who.ear - 0.052) - 0.050
    image = paint(image, (who.earring == 1) * fill(stud, view.px), who.metal)
    return paint(image, (who.earring == 2) * stroke(hoop, 0.0075, view.px), who.metal * 0.95)


def draw_skin(image: Tensor, view: View, who: Identities, outline: Tensor) -> Tensor:
    """Paint the head with soft light, the redder middle of the face and the rim of light."""
    inside = fill(outline, view.px)
    light = smoothstep(-0.55, 0.75, view.light * who.light_strength)
    skin = torch.lerp(who.skin_shadow, (who.skin * 1.03) * who.light, light[:, None])
    image = paint(image, inside, skin.clamp(0, 1))
    x, y, away = view.face_x, view.face_y, who.light_side
    shadow = who.shade
    terminator = bump(light - 0.35, 0.25) * inside
    image = multiply(image, 0.10 * terminator, rgb(1.0, 0.72, 0.66, x))
    cheek = bump(x.abs() - 0.225, 0.095) * bump(y - 0.165, 0.070)
    image = multiply(image, inside * cheek * who.blush, rgb(1.0, 0.60, 0.58, x))
    hollow = glow(length((x.abs() - 0.33) / 0.6, y - 0.26) - 0.09, 0.03)
    image = multiply(image, inside * (0.16 * hollow + 0.20 * bump(outline, 0.030)), shadow)
    brow_bone = bump(x.abs() - 0.16, 0.10) * bump(y + 0.055, 0.030)
    image = multiply(image, inside * 0.28 * brow_bone, shadow)
    forehead = bump(x - 0.10 * away, 0.17) * bump(y + 0.26, 0.10)
    cheekbone = bump(x.abs() - 0.23, 0.055) * bump(y - 0.105, 0.030) * (1 + 0.5 * torch.sign(x) * away)
    image = screen(image, inside * (0.10 * forehead + 0.06 * cheekbone), who.light)
    image = multiply(image, inside * _freckles(view) * (who.freckles.clamp(0, 1) * 0.35), rgb(0.72, 0.5, 0.4, x))
    rim = inside * bump(outline, 0.028) * smoothstep(0.10, 0.36, -view.head_x * away) * who.rim_light
    return screen(image, 0.75 * rim, torch.lerp(who.back_3, who.light, 0.35))


def _freckles(view: View) -> Tensor:
    x, y = view.face_x, view.face_y
    dots = torch.sin(x * 131 + 9 * torch.sin(y * 61)) * torch.sin(y * 117 + 7 * torch.sin(x * 47))
    seen = (1.5 - 100 * view.px).clamp(0, 1)  # too small for coarse pixels
    return smoothstep(0.55, 0.9, dots) * bump(x.abs() - 0.16, 0.11) * bump(y - 0.13, 0.06) * seen


def draw_nose(image: Tensor, view: View, who: Identities, pose: Pose) -> Tensor:
    """The nose stands out of the face, so it moves further when the head turns."""
    x = view.face_x - 0.075 * torch.sin(pose.yaw)
    y = view.face_y - who.nose_y - 0.055 * torch.sin(pose.pitch)
    px, away, width = view.px, who.light_side, who.nose_width
    shadow = who.shade * 0.96
    bridge = bump(x + 0.034 * away, 0.020) * smoothstep(-0.23, -0.09, y) * smoothstep(0.03, -0.03, y)
    under = bump(x, width * 0.95) * bump(y - 0.046, 0.017)
    side = glow(ellipse(x + 0.030 * away, y + 0.004, width * 0.75, 0.042), 0.010) * smoothstep(0.0, 0.05, -x * away)
    image = multiply(image, (0.38 * bridge + 0.55 * under + 0.30 * side) * who.nose_depth, shadow)
    wing = stroke(length((x.abs() - width * 0.66) * 1.05, y - 0.006) - 0.029, 0.0035, px)
    wing = wing * smoothstep(0.60, 1.0, x.abs() / width) * smoothstep(-0.022, 0.006, y)
    hole = x.abs() - width * 0.46
    nostril = glow(ellipse(hole, y - 0.027 + 0.15 * hole, 0.017, 0.0075), 0.0030)
    image = multiply(image, 0.50 * wing + 0.70 * nostril, who.skin_shadow * shadow * 0.72)
    tip = bump(x - 0.012 * away, 0.022) * bump(y + 0.008, 0.020)
    ridge = bump(x - 0.010 * away, 0.013) * smoothstep(-0.16, -0.06, y) * smoothstep(0.0, -0.05, y)
    image = multiply(image, 0.20 * bump(length(x, y), 0.05), rgb(1.0, 0.78, 0.74, x))
    return screen(image, 0.34 * tip + 0.20 * ridge, who.light)


def draw_folds(image: Tensor, view: View, who: Identities, pose: Pose) -> Tensor:
    """Lines from the nose to the mouth and under the eyes, deeper with age and with a smile."""
    x, y = view.face_x.abs(), view.face_y
    smile = pose.smile.clamp(min=0)
    fold = bump(x - 0.098 - 0.30 * (y - 0.20) - 0.02 * smile, 0.010) * bump(y - 0.245, 0.045)
    bag = bump(y - 0.074 + 0.9 * (x - who.eye_x) ** 2, 0.009) * bump(x - who.eye_x + 0.01, 0.06)
    strength = (0.10 + 0.30 * who.age**2 + 0.28 * smile) * fold + (0.08 + 0.22 * who.age**2) * bag
    return multiply(image, strength, who.shade)


class _Lids:
    """Curves of both eyes in coordinates folded about the nose; `x` grows outward from the eye's middle."""

    def __init__(self, view: View, who: Identities, pose: Pose) -> None:
        self.side = torch.sign(view.face_x)
        self.x = view.face_x.abs() - who.eye_x
        self.y = view.face_y + who.eye_tilt * self.x
        self.t = (self.x / who.eye_width).clamp(-1.15, 1.15)
        arc = (1 - self.t * self.t).clamp(min=0)
        smile = pose.smile.clamp(min=0)
        openness = (1 - pose.blink) * (1 - 0.28 * pose.squint - 0.10 * smile)
        # The upper lid is highest towards the nose, the lower one lowest towards the ear: an almond, not a lens.
        wide = -who.eye_height * arc * (1 - 0.16 * self.t)
        self.lower = who.eye_height * arc * (1 + 0.22 * self.t) * (0.46 - 0.16 * smile - 0.06 * pose.squint)
        self.upper = torch.lerp(self.lower * 0.92, wide + 0.006 * pose.gaze_y * arc, openness)
        self.crease = wide * (0.62 + 0.48 * openness) - 0.016 - 0.006 * (1 - self.t)
        self.upper_norm = torch.sqrt(1 + (2 * who.eye_height * openness / who.eye_width * self.t) ** 2)
        self.ends = self.x.abs() - who.eye_width
        between = torch.maximum((self.upper - self.y) / self.upper_norm, self.y - self.lower)
        self.opening = torch.maximum(between, self.ends)


def draw_eyes(image: Tensor, view: View, who: Identities, pose: Pose) -> Tensor:
    lids = _Lids(view, who, pose)
    image = _draw_eyelids(image, lids, view, who)
    image = _draw_eyeballs(image, lids, view, who, pose)
    return _draw_lashes(image, lids, view, who, pose)


def _draw_eyelids(image: Tensor, lids: _Lids, view: View, who: Identities) -> Tensor:
    shadow = who.shade
    socket = ellipse(lids.x + 0.006, lids.y + 0.016, who.eye_width * 1.25, who.eye_height * 1.5)
    image = multiply(image, 0.30 * glow(socket, 0.018), shadow)
    lid = torch.maximum(lids.crease - lids.y, lids.y - lids.upper)
    lid = glow(torch.maximum(lid, lids.ends), 0.006)
    image = multiply(image, 0.85 * lid, torch.lerp(who.lid, torch.ones_like(who.lid), 0.15))
    crease = stroke(lids.y - lids.crease, 0.0034, view.px) * smoothstep(1.08, 0.75, lids.t.abs())
    return multiply(image, 0.60 * crease, who.skin_shadow * shadow)


def _draw_eyeballs(image: Tensor, lids: _Lids, view: View, who: Identities, pose: Pose) -> Tensor:
    px, x, y = view.px, lids.x, lids.y
    opening = fill(lids.opening, px)
    white = rgb(0.965, 0.955, 0.945, x) * (1 - 0.22 * lids.t**2 - 0.16 * bump(y - lids.upper, 0.022))[:, None]
    image = paint(image, opening, torch.lerp(white, who.skin, 0.10 + 0.10 * (lids.t**2)[:, None]))
    iris_x = x - 0.030 * pose.gaze_x * lids.side
    iris_y = y - 0.018 * pose.gaze_y + 0.006
    radius, r = who.iris_radius, length(iris_x, iris_y)
    angle = ripple(torch.atan2(iris_y, iris_x), 19.0, px * 25) * smoothstep(0.3, 0.6, r / radius)
    glowing = 0.62 + 0.62 * smoothstep(-0.5, 1.0, iris_y / radius) * smoothstep(0.25, 0.9, r / radius) + 0.10 * angle
    iris = who.iris * (glowing * (1 - 0.72 * smoothstep(0.78, 1.0, r / radius)))[:, None]
    image = paint(image, opening * fill(r - radius, px), iris.clamp(0, 1))
    image = paint(image, opening * fill(r - radius * 0.46, px * 1.5), rgb(0.035, 0.03, 0.035, x))
    lid_shadow = glow(y - lids.upper - 0.014, 0.006)
    image = multiply(image, 0.48 * opening * lid_shadow, rgb(0.42, 0.34, 0.36, x))
    spark = length(iris_x - 0.016 * lids.side * who.light_side, iris_y + 0.016) - 0.0115
    small = length(iris_x + 0.015 * lids.side * who.light_side, iris_y - 0.018) - 0.0055
    image = paint(image, opening * fill(spark, px), rgb(1.0, 1.0, 1.0, x))
    image = paint(image, 0.55 * opening * fill(small, px), rgb(1.0, 1.0, 1.0, x))
    tear = opening * bump(length(lids.t + 0.97, (y - lids.lower) * 12), 0.16)
    return paint(image, 0.6 * tear, torch.lerp(who.skin, rgb(0.86, 0.42, 0.42, x), 0.5))


def _draw_lashes(image: Tensor, lids: _Lids, view: View, who: Identities, pose: Pose) -> Tensor:
    px, x, y = view.px, lids.x, lids.y
    dark = torch.lerp(rgb(0.10, 0.07, 0.07, x), who.hair * 0.35, 0.3)
    thick = (0.0050 + 0.0060 * who.lashes) * (0.45 + 0.55 * smoothstep(-1.0, 0.7, lids.t))
    line = (y - lids.upper + 0.6 * thick).abs() / lids.upper_norm - thick
    image = paint(image, 0.95 * fill(torch.maximum(line, lids.ends - 0.006), px), dark)
    tip_y = -0.006 - 0.020 * who.lashes * (1 - 1.6 * pose.blink)
    wing = segment(x, y, (who.eye_width * 0.93, 0.0), (who.eye_width * 1.12 + 0.012 * who.lashes, tip_y))
    image = paint(image, who.lashes * 0.9 * fill(wing - 0.0045, px), dark)
    below = stroke(y - lids.lower - 0.002, 0.0022, px) * smoothstep(-0.9, 0.5, lids.t) * fill(lids.ends, px)
    return paint(image, (0.30 + 0.35 * who.lashes) * below, torch.lerp(dark, who.skin_shadow, 0.35))


def draw_brows(image: Tensor, view: View, who: Identities, pose: Pose) -> Tensor:
    x = view.face_x.abs() - who.eye_x
    frown = pose.brow_frown
    along = ((x + 0.095) / 0.205).clamp(0, 1)  # 0 at the nose … 1 at the temple
    arch = who.brow_arch * (1 - ((along - 0.62) / 0.62) ** 2) + 0.012
    middle = -who.brow_y - arch - 0.034 * pose.brow_raise + 0.012 * frown.clamp(min=0) - who.brow_tilt * 0.35 * x
    middle = middle - frown * 0.30 * (x - 0.02).clamp(-0.12, 0.05) + 0.006 * pose.blink
    taper = (1 - 0.82 * smoothstep(0.42, 1.0, along)) * (0.72 + 0.28 * smoothstep(0.0, 0.15, along))
    ends = (x - 0.0075).abs() - 0.1025 + 0.02 * (1 - along)
    distance = torch.maximum((view.face_y - middle).abs() - who.brow_thickness * taper, ends)
    strands = 0.88 + 0.12 * ripple(x - (view.face_y - middle) * 0.8, 210.0, view.px)
    soft = fill(distance + 0.001, view.px + 0.0065)
    return paint(image, 0.90 * soft * strands, who.brow)


def draw_glasses(image: Tensor, view: View, who: Identities, pose: Pose) -> Tensor:
    x = view.face_x - 0.025 * torch.sin(pose.yaw)
    y = view.face_y - 0.012
    px, worn = view.px, who.glasses
    centre = who.eye_x + 0.006
    lens = rounded_box(x.abs() - centre, y - 0.06 * (x.abs() - centre), who.lens_width, who.lens_height,
                       torch.minimum(who.lens_corner, who.lens_height - 0.002))  # fmt: skip
    inside = worn * fill(lens, px)
    image = multiply(image, worn * bump(lens - 0.012, 0.014) * 0.22, who.shade)
    image = paint(image, inside * who.tinted, who.frame * 0.6)
    slant = x - 0.6 * y - torch.sign(x) * centre
    streak = bump(slant - 0.05, 0.022) + 0.6 * bump(slant + 0.015, 0.009)
    image = screen(image, inside * (0.03 + 0.16 * streak), who.light)
    bridge = stroke(length(x, y - 0.005) - 0.040, who.rim * 0.9, px) * smoothstep(-0.016, -0.028, y) * fill(-lens, px)
    temple = torch.maximum((y + 0.032).abs() - who.rim, centre + who.lens_width * 0.97 - x.abs())
    temple = fill(torch.maximum(temple, face_outline(view.head_x, view.head_y, who, pose)), px)
    rims = torch.maximum(torch.maximum(stroke(lens, who.rim, px), bridge), temple)
    image = paint(image, worn * rims, who.frame)
    glint = stroke(lens - 0.3 * who.rim, 0.002, px) * smoothstep(0.02, -0.06, y)
    return screen(image, 0.35 * worn * glint, who.light)


def draw_beard(image: Tensor, view: View, who: Identities, pose: Pose, outline: Tensor) -> Tensor:
    """Stubble, goatee or full beard; the moustache belongs to the mouth, which it follows."""
    x, y, px = view.face_x.abs(), view.face_y, view.px
    cheek = 0.275 - 0.33 * ((x - 0.13) / 0.23).clamp(0, 1.2) ** 2.2
    chin = length(x * 1.05, (y - who.mouth_y - 0.13 - 0.5 * JAW_DROP * pose.jaw) * 0.85) - 0.115
    area = {"stubble": torch.maximum(outline, cheek + 0.03 - y), "goatee": torch.maximum(outline - 0.01, chin),
            "full": torch.maximum(outline - who.beard_length * smoothstep(0.0, 0.30, y), cheek - y)}  # fmt: skip
    flecks = torch.sin(view.face_x * 71 + 3 * torch.sin(y * 37)) * torch.sin(y * 59 + 4 * torch.sin(x * 41))
    strands = 1 + 0.05 * flecks + 0.07 * ripple(view.face_x * (1.2 - 0.6 * y), 120.0, px)
    colour = who.hair * (strands * (0.62 + 0.35 * smoothstep(-0.2, 0.9, view.light)))[:, None]
    stubble = (who.beard == BEARDS.index("stubble")) * fill(area["stubble"], px + 0.06)
    image = multiply(image, 0.30 * stubble, torch.lerp(who.hair, who.skin_shadow, 0.45))
    for name, softness in (("goatee", 0.022), ("full", 0.016)):
        ragged = softness * (0.4 + 0.6 * (strands - 0.8).abs())
        cover = (who.beard == BEARDS.index(name)) * fill(area[name], px + ragged)
        image = paint(image, 0.96 * cover, colour.clamp(0, 1))
    return image
