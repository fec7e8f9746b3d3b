"""How a person is held in one frame: the channels of motion, and where points of the head fall on the screen."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from wan_s2v.training.identities import Identities
from wan_s2v.training.shapes import screen_axes

HEAD_RADIUS_X, HEAD_RADIUS_Y = 0.47, 0.60  # ellipsoid on which the features lie
YAW_REACH, PITCH_REACH = 0.42, 0.40  # how far a turn of one radian (sine) carries the middle of the face
NECK_BASE = 0.62  # pivot of the roll


class Pose(NamedTuple):
    """One value a channel; as planes (N, 1, 1) inside the renderer. Ranges are in `MOTION_RANGES`.

    Args:
        open: 0 lips at rest … 1 wide open. width: -1 narrow, 0 rest, 1 spread (ee). round: 1 rounded (oo).
        closed: 1 lips pressed together (m, b, p); it overrides `open`. teeth: visible teeth; 1 with a nearly shut
            mouth sets the lower lip under the upper teeth (f, v). tongue: 1 tip at the upper teeth (l, th, n).
        jaw: 1 dropped; moves the chin. smile: -1 sad corners … 1 smile.
        blink: 1 shut. squint: -1 wide … 1 narrow. gaze_x, gaze_y: -1…1, right and down on the screen.
        yaw, pitch, roll: radians; positive turns the face right, down, clockwise on the screen.
        sway_x, sway_y: shift of the head in head units. brow_raise: -1…1. brow_frown: -1 worried … 1 angry.
        zoom: scale of the camera about the middle of the frame. pan_x, pan_y: where the camera looks, screen units.
    """

    open: Tensor
    width: Tensor
    round: Tensor
    closed: Tensor
    teeth: Tensor
    tongue: Tensor
    jaw: Tensor
    smile: Tensor
    blink: Tensor
    squint: Tensor
    gaze_x: Tensor
    gaze_y: Tensor
    yaw: Tensor
    pitch: Tensor
    roll: Tensor
    sway_x: Tensor
    sway_y: Tensor
    brow_raise: Tensor
    brow_frown: Tensor
    zoom: Tensor
    pan_x: Tensor
    pan_y: Tensor


MOTION_CHANNELS: tuple[str, ...] = Pose._fields
NUM_MOUTH_CHANNELS = 6  # the first channels, as the speech synthesis gives them
MOTION_RANGES: dict[str, tuple[float, float]] = {
    "open": (0, 1), "width": (-1, 1), "round": (0, 1), "closed": (0, 1), "teeth": (0, 1), "tongue": (0, 1),
    "jaw": (0, 1), "smile": (-1, 1), "blink": (0, 1), "squint": (-1, 1), "gaze_x": (-1, 1), "gaze_y": (-1, 1),
    "yaw": (-0.36, 0.36), "pitch": (-0.25, 0.25), "roll": (-0.25, 0.25),
    "sway_x": (-0.12, 0.12), "sway_y": (-0.08, 0.08),
    "brow_raise": (-1, 1), "brow_frown": (-1, 1), "zoom": (0.85, 1.25), "pan_x": (-0.15, 0.15), "pan_y": (-0.15, 0.15),
}  # fmt: skip


def rest_motion(num_frames: int) -> Tensor:
    """(N, channels) float32: mouth shut, eyes to the camera, nothing moved."""
    motion = torch.zeros(num_frames, len(MOTION_CHANNELS))
    motion[:, MOTION_CHANNELS.index("zoom")] = 1
    return motion


def unpack_motion(motion: Tensor) -> Pose:
    """Channels as planes (N, 1, 1), clamped to their ranges."""
    limits = [MOTION_RANGES[name] for name in MOTION_CHANNELS]
    columns = (c.clamp(*limit) for c, limit in zip(motion.unbind(-1), limits, strict=True))
    return Pose(*(c[:, None, None] for c in columns))


class View(NamedTuple):
    """Coordinates of the pixels of one layer, planes (N, h, w) in head units.

    Args:
        px: (N, 1, 1) size of a pixel.
        body_x, body_y: fixed to the shoulders. head_x, head_y: fixed to the head's outline.
        face_x, face_y: on the surface of the head, so that features turn with it. depth: 0 rim … 1 towards the camera.
        light: 0 turned away from the light … 1 facing it.
    """

    px: Tensor
    body_x: Tensor
    body_y: Tensor
    head_x: Tensor
    head_y: Tensor
    face_x: Tensor
    face_y: Tensor
    depth: Tensor
    light: Tensor


def look(screen_x: Tensor, screen_y: Tensor, px: float, who: Identities, pose: Pose) -> View:
    """Coordinates at the screen positions (…, 1, w) and (…, h, 1); `px` is the pixel size in screen units."""
    scale = pose.zoom * who.scale
    body_x = (screen_x / pose.zoom + pose.pan_x - who.centre_x) / who.scale - 0.35 * pose.sway_x
    body_y = (screen_y / pose.zoom + pose.pan_y - who.centre_y) / who.scale
    x, y = body_x - 0.65 * pose.sway_x, body_y - pose.sway_y - NECK_BASE
    cos, sin = torch.cos(pose.roll), torch.sin(pose.roll)
    head_x, head_y = x * cos + y * sin, y * cos - x * sin + NECK_BASE
    depth = _depth(head_x, head_y)
    face_x = head_x * torch.cos(pose.yaw) - YAW_REACH * torch.sin(pose.yaw) * depth
    face_y = head_y - PITCH_REACH * torch.sin(pose.pitch) * depth
    light = head_x * (who.light_x / HEAD_RADIUS_X) + head_y * (who.light_y / HEAD_RADIUS_Y) + 0.75 * depth
    body_x, body_y = body_x.expand_as(head_x), body_y.expand_as(head_x)
    return View(px / scale, body_x, body_y, head_x, head_y, face_x, face_y, depth, light)


def _depth(x: Tensor, y: Tensor) -> Tensor:
    return torch.sqrt((1 - (x / HEAD_RADIUS_X) ** 2 - (y / HEAD_RADIUS_Y) ** 2).clamp(min=0.04))


def face_to_screen(face_x: Tensor, face_y: Tensor, who: Identities, pose: Pose) -> tuple[Tensor, Tensor]:
    """Screen position of points on the face, the inverse of `look` (a fixed point, exact to about 0.003)."""
    x, y = face_x, face_y
    for _ in range(4):
        depth = _depth(x, y)
        x = (face_x + YAW_REACH * torch.sin(pose.yaw) * depth) / torch.cos(pose.yaw)
        y = face_y + PITCH_REACH * torch.sin(pose.pitch) * depth
    return head_to_screen(x, y, who, pose)


def head_to_screen(x: Tensor, y: Tensor, who: Identities, pose: Pose) -> tuple[Tensor, Tensor]:
    """Screen position of points of the head's outline."""
    cos, sin, y = torch.cos(pose.roll), torch.sin(pose.roll), y - NECK_BASE
    body_x = x * cos - y * sin + 0.65 * pose.sway_x
    body_y = x * sin + y * cos + NECK_BASE + pose.sway_y
    return body_to_screen(body_x, body_y, who, pose)


def body_to_screen(x: Tensor, y: Tensor, who: Identities, pose: Pose) -> tuple[Tensor, Tensor]:
    """Screen position of points of the body."""
    screen_x = ((x + 0.35 * pose.sway_x) * who.scale + who.centre_x - pose.pan_x) * pose.zoom
    screen_y = (y * who.scale + who.centre_y - pose.pan_y) * pose.zoom
    return screen_x, screen_y


def lower_half(view: View) -> View:
    """The view below the middle row."""
    return View(*(plane[:, view.body_y.shape[1] // 2 :] if plane.shape[1] > 1 else plane for plane in view))


def look_at_frame(height: int, width: int, who: Identities, pose: Pose) -> View:
    """Coordinates of every pixel of the frame."""
    x, y = screen_axes(height, width, pose.zoom)
    return look(x, y, 2 / min(height, width), who, pose)
