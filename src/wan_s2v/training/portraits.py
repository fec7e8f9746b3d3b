"""Illustrated head-and-shoulders portraits as tensors: who (identities) and how (motion) in, frames out.

The embedded model learns from these pictures, so they are drawn by formulas at any size, on any device, in batches.
Nothing here decides how a person moves or what is said.
"""

from __future__ import annotations

import torch
from torch import Tensor

from wan_s2v.errors import UsageError
from wan_s2v.training.clothes import draw_body
from wan_s2v.training.faces import (
    draw_beard,
    draw_brows,
    draw_ears,
    draw_eyes,
    draw_folds,
    draw_glasses,
    draw_nose,
    draw_skin,
    face_outline,
)  # fmt: skip
from wan_s2v.training.hair import Hair, draw_cover, draw_hair, draw_hair_behind
from wan_s2v.training.identities import Identities
from wan_s2v.training.mouths import draw_mouth, mouth_centre
from wan_s2v.training.poses import (
    MOTION_CHANNELS,
    Pose,
    View,
    body_to_screen,
    face_to_screen,
    head_to_screen,
    look,
    look_at_frame,
    lower_half,
    unpack_motion,
)  # fmt: skip
from wan_s2v.training.scenery import draw_background
from wan_s2v.training.shapes import Window, cut, fill, paint, place_window, put_back, rgb, screen_axes, segment

# Half sizes, in screen units, of the windows that hold the eyes with glasses, and nose with mouth, at the largest zoom.
EYES_WINDOW = (0.74, 0.50)
MOUTH_WINDOW = (0.42, 0.60)


def render(identities: Identities, motion: Tensor, height: int, width: int) -> Tensor:
    """Draw one frame a row.

    Args:
        identities: N people, on the device and in the dtype of `motion`; use float32, a coarser type has too few
            digits to tell neighbouring pixels apart.
        motion: (N, channels) as named by `MOTION_CHANNELS`; values outside `MOTION_RANGES` are clamped.
        height, width: of the picture; the shorter side shows two units, the longer one more background or body.
    Returns: (N, 3, height, width) in 0…1. At 256x256 a frame takes about 16 MiB while it is drawn.
    Raises: UsageError if the number of people, channels or the size does not fit.
    """
    _check(identities, motion, height, width)
    who, pose = identities.per_pixel(), unpack_motion(motion)
    image = draw_background(height, width, who, pose)
    view = look_at_frame(height, width, who, pose)
    outline = face_outline(view.head_x, view.head_y, who, pose)
    hair = Hair(view, who, pose)
    image = draw_hair_behind(image, view, hair, who, pose)
    image = _draw_lower_half(image, lower_half(view), who, pose)
    image = draw_ears(image, view, who, pose)
    image = draw_skin(image, view, who, outline)
    image = draw_beard(image, view, who, pose, outline)
    image = _draw_mouth_window(image, who, pose)
    image = _draw_eyes_window(image, who, pose)
    image = draw_hair(image, view, hair, who, outline)
    image = draw_cover(image, view, who, outline)
    return _finish(image)


def _draw_lower_half(image: Tensor, view: View, who: Identities, pose: Pose) -> Tensor:
    """The body, of which nothing is seen above the middle row: there it is behind the face."""
    rows = view.body_y.shape[1]
    body = draw_body(image[:, :, -rows:], view, who, face_outline(view.head_x, view.head_y - 0.06, who, pose))
    return torch.cat([image[:, :, :-rows], body], 2)


def _check(identities: Identities, motion: Tensor, height: int, width: int) -> None:
    if motion.ndim != 2 or motion.shape[1] != len(MOTION_CHANNELS) or len(motion) != len(identities):
        raise UsageError(
            f"motion has shape {tuple(motion.shape)} for {len(identities)} identities; it must be "
            f"({len(identities)}, {len(MOTION_CHANNELS)}). Repeat the identities once a frame: identities.repeat(T)."
        )
    if min(height, width) < 16:
        raise UsageError(f"A portrait of {height}x{width} pixels is too small to draw; use at least 16x16.")


def _window(
    image: Tensor, face_y: Tensor, half: tuple[float, float], who: Identities, pose: Pose
) -> tuple[Window, Tensor]:
    x, y = face_to_screen(torch.zeros_like(face_y), face_y, who, pose)
    window = place_window(x.flatten(), y.flatten(), *half, (image.shape[2], image.shape[3]))
    return window, cut(image, window)


def _draw_mouth_window(image: Tensor, who: Identities, pose: Pose) -> Tensor:
    window, pixels = _window(image, 0.5 * (who.mouth_y + who.nose_y) + 0.04, MOUTH_WINDOW, who, pose)
    view = look(window.x, window.y, 2 / min(image.shape[2:]), who, pose)
    pixels = draw_nose(pixels, view, who, pose)
    pixels = draw_folds(pixels, view, who, pose)
    return put_back(image, window, draw_mouth(pixels, view, who, pose))


def _draw_eyes_window(image: Tensor, who: Identities, pose: Pose) -> Tensor:
    window, pixels = _window(image, torch.full_like(who.eye_x, -0.04), EYES_WINDOW, who, pose)
    view = look(window.x, window.y, 2 / min(image.shape[2:]), who, pose)
    # The far eye of a turned head ends where the face does.
    inside = fill(face_outline(view.head_x, view.head_y, who, pose), view.px)
    features = draw_brows(draw_eyes(pixels, view, who, pose), view, who, pose)
    pixels = paint(pixels, inside, features)
    return put_back(image, window, draw_glasses(pixels, view, who, pose))


def _finish(image: Tensor) -> Tensor:
    """Darken the corners and deepen the contrast a little."""
    x, y = screen_axes(image.shape[2], image.shape[3], image)
    image = image * (1 - 0.09 * (x * x + y * y).clamp(max=2))[:, None]
    return (image + 0.10 * image * (1 - image) * (2 * image - 1)).clamp(0, 1)


def mouth_box(identities: Identities, motion: Tensor) -> Tensor:
    """(N, 4) left, top, right, bottom of the mouth, open or shut, of a square frame, 0…1 from its top left corner."""
    who, pose = identities.per_pixel(), unpack_motion(motion)
    half = 1.18 * who.mouth_width
    top = mouth_centre(who, pose) - 0.085
    return _box(who, pose, half, top, top + 0.10 + 0.20 * torch.maximum(pose.open, pose.jaw) + 0.03)


def eye_box(identities: Identities, motion: Tensor) -> Tensor:
    """(N, 4) box of both eyes without the brows, as in `mouth_box`."""
    who, pose = identities.per_pixel(), unpack_motion(motion)
    half_height = 1.5 * who.eye_height
    return _box(who, pose, who.eye_x + 1.15 * who.eye_width, -half_height, half_height)


def face_box(identities: Identities, motion: Tensor) -> Tensor:
    """(N, 4) box from hairline to chin and from ear to ear, as in `mouth_box`."""
    who, pose = identities.per_pixel(), unpack_motion(motion)
    return _box(who, pose, who.face_width, torch.full_like(who.chin, -0.40), who.chin + 0.06 * pose.jaw)


def _box(who: Identities, pose: Pose, half_width: Tensor, top: Tensor, bottom: Tensor) -> Tensor:
    corners = [face_to_screen(sx * half_width, y, who, pose) for sx in (-1, 1) for y in (top, bottom)]
    x, y = (torch.cat([c[i].flatten(1) for c in corners], 1) for i in (0, 1))
    return torch.stack([x.amin(1), y.amin(1), x.amax(1), y.amax(1)], 1).clamp(-1, 1) * 0.5 + 0.5


# Colours of the drawn skeleton; a pose video need not look the same, but every joint must keep its colour.
_JOINT_COLOURS = {"nose": (1.0, 0.0, 0.33), "left eye": (0.67, 0.0, 1.0), "right eye": (1.0, 0.0, 1.0),
                  "left ear": (0.33, 0.0, 1.0), "right ear": (1.0, 0.0, 0.67), "neck": (1.0, 0.33, 0.0),
                  "left shoulder": (0.33, 1.0, 0.0), "right shoulder": (1.0, 0.67, 0.0)}  # fmt: skip
_BONES = (("neck", "nose"), ("nose", "left eye"), ("nose", "right eye"), ("left eye", "left ear"),
          ("right eye", "right ear"), ("neck", "left shoulder"), ("neck", "right shoulder"))  # fmt: skip


def joints(identities: Identities, motion: Tensor) -> dict[str, Tensor]:
    """Screen positions (N, 2), x and y, of the drawn joints; the shorter side spans -1…1. Left is the viewer's."""
    who, pose = identities.per_pixel(), unpack_motion(motion)
    zero = torch.zeros_like(who.scale)
    lead = 0.075 * torch.sin(pose.yaw)
    points = {"nose": face_to_screen(lead, who.nose_y, who, pose), "neck": body_to_screen(zero, zero + 0.66, who, pose)}
    for side, sign in (("left", -1), ("right", 1)):
        points[f"{side} eye"] = face_to_screen(sign * who.eye_x, zero, who, pose)
        ear = sign * who.face_width - 0.10 * torch.sin(pose.yaw)
        points[f"{side} ear"] = head_to_screen(ear, zero + 0.03, who, pose)
        points[f"{side} shoulder"] = body_to_screen(sign * (who.shoulders - 0.10), zero + 0.84, who, pose)
    return {name: torch.stack([c.flatten() for c in point], 1) for name, point in points.items()}


def draw_pose(identities: Identities, motion: Tensor, height: int, width: int) -> Tensor:
    """(N, 3, height, width) skeleton of head and shoulders: coloured bones and joints on black."""
    _check(identities, motion, height, width)
    points = {n: (p[:, 0, None, None], p[:, 1, None, None]) for n, p in joints(identities, motion).items()}
    x, y = screen_axes(height, width, motion)
    px = torch.full_like(motion[:, :1, None], 2 / min(height, width))
    image = torch.zeros(len(motion), 3, height, width, dtype=motion.dtype, device=motion.device)
    for start, end in _BONES:
        line = segment(x, y, points[start], points[end]) - 0.014
        image = paint(image, fill(line, px), 0.6 * rgb(*_JOINT_COLOURS[end], image))
    for name, (joint_x, joint_y) in points.items():
        dot = torch.sqrt((x - joint_x) ** 2 + (y - joint_y) ** 2) - 0.024
        image = paint(image, fill(dot, px), rgb(*_JOINT_COLOURS[name], image))
    return image
