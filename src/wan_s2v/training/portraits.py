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
    draw_beard, draw_brows, draw_ears, draw_eyes, draw_folds, draw_glasses, draw_nose, draw_skin, face_outline,
)  # fmt: skip
from wan_s2v.training.hair import Hair, draw_cover, draw_hair, draw_hair_behind
from wan_s2v.training.identities import Identities
from wan_s2v.training.mouths import draw_mouth, mouth_centre
from wan_s2v.training.poses import (
    MOTION_CHANNELS, Pose, body_to_screen, face_to_screen, head_to_screen, look, look_at_frame, unpack_motion,
)  # fmt: skip
from wan_s2v.training.scenery import draw_background
from wan_s2v.training.shapes import Window, cut, fill, paint, place_window, put_back, rgb, screen_axes, segment

# Half sizes, in screen units, of the windows that hold the eyes with glasses, and nose with mouth, at the largest zoom.
EYES_WINDOW = (0.80, 0.44)
MOUTH_WINDOW = (0.46, 0.58)


def render(identities: Identities, motion: Tensor, height: int, width: int) -> Tensor:
    """Draw one frame a row.

    Args:
        identities: N people, on the device and in the dtype of `motion`.
        motion: (N, channels) as named by `MOTION_CHANNELS`; values outside `MOTION_RANGES` are clamped.
        height, width: of the picture; the shorter side shows two units, the longer one more background or body.
    Returns: (N, 3, height, width) in 0…1.
    Raises: UsageError if the number of people, channels or the size does not fit.
    """
    _check(identities, motion, height, width)
    who, pose = identities.per_pixel(), unpack_motion(motion)
    image = draw_background(height, width, who, pose)
    view = look_at_frame(height, width, who, pose)
    outline = face_outline(view.head_x, view.head_y, who, pose)
    hair = Hair(view, who, pose)
    image = draw_hair_behind(image, view, hair, who, pose)
    image = draw_body(image, view, who, face_outline(view.head_x, view.head_y - 0.06, who, pose))
    image = draw_ears(image, view, who, pose)
    image = draw_skin(image, view, who, outline)
    image = _draw_mouth_window(image, who, pose)
    image = _draw_eyes_window(image, who, pose)
    image = draw_hair(image, view, hair, who, outline)
    image = draw_cover(image, view, who, outline)
    return _finish(image)


def _check(identities: Identities, motion: Tensor, height: int, width: int) -> None:
    if motion.ndim != 2 or motion.shape[1] != len(MOTION_CHANNELS) or len(motion) != len(identities):
        raise UsageError(
            f"motion has shape {tuple(motion.shape)} for {len(identities)} identities; it must be "
            f"({len(identities)}, {len(MOTION_CHANNELS)}). Repeat the identities once a frame: identities.repeat(T)."
        )
    if min(height, width) < 16:
        raise UsageError(f"A portrait of {height}x{width} pixels is too small to draw; use at least 16x16.")


def _window(image: Tensor, face_y: Tensor, half: tuple[float, float], who: Identities, pose: Pose) -> tuple[Window, Tensor]:
    x, y = face_to_screen(torch.zeros_like(face_y), face_y, who, pose)
    window = place_window(x.flatten(), y.flatten(), *half, (image.shape[2], image.shape[3]))
    return window, cut(image, window)


def _draw_mouth_window(image: Tensor, who: Identities, pose: Pose) -> Tensor:
    window, pixels = _window(image, 0.5 * (who.mouth_y + who.nose_y) + 0.04, MOUTH_WINDOW, who, pose)
    view = look(window.x, window.y, 2 / min(image.shape[2:]), who, pose)
    pixels = draw_nose(pixels, view, who, pose)
    pixels = draw_folds(pixels, view, who, pose)
    outline = face_outline(view.head_x, view.head_y, who, pose)
    pixels = draw_beard(pixels, view, who, pose, outline)
    return put_back(image, window, draw_mouth(pixels, view, who, pose))


def _draw_eyes_window(image: Tensor, who: Identities, pose: Pose) -> Tensor:
    window, pixels = _window(image, torch.full_like(who.eye_x, -0.04), EYES_WINDOW, who, pose)
    view = look(window.x, window.y, 2 / min(image.shape[2:]), who, pose)
    pixels = draw_eyes(pixels, view, who, pose)
    pixels = draw_brows(pixels, view, who, pose)
    return put_back(image, window, draw_glasses(pixels, view, who, pose))


def _finish(image: Tensor) -> Tensor:
    """Darken the corners and deepen the contrast a little."""
    x, y = screen_axes(image.shape[2], image.shape[3], image)
    image = image * (1 - 0.09 * (x * x + y * y).clamp(max=2))[:, None]
    return (image + 0.10 * image * (1 - image) * (2 * image - 1)).clamp(0, 1)
