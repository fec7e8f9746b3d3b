"""How a person moves while speaking: mouth from the sound, everything else from chance, stress and direction.

What the sound does not decide (expression, head, camera) follows `Controls`, which the prompt describes, so that a
model trained on these clips has something to learn from its text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from wan_s2v.errors import UsageError
from wan_s2v.training.poses import MOTION_CHANNELS, MOTION_RANGES, NUM_MOUTH_CHANNELS, rest_motion

FPS = 16
Expression = Literal["neutral", "smiling", "sad", "surprised", "angry"]
Head = Literal["still", "lively", "nodding", "shaking", "looking left", "looking right", "tilting"]
Camera = Literal["still", "push in", "pull out", "pan left", "pan right"]

_BLINK = (0.55, 1.0, 0.85, 0.30)  # how far the lids are shut in the frames of one blink
_BLINK_PAUSE_S = (2.0, 6.0)
_SILENCE = 0.02  # energy below which nobody speaks
_PAUSE_FRAMES = 3  # silence on both sides that tells a pause from the closure of a plosive
_SETTLE_S = 0.6  # time in which an expression or a turn is taken up

_LIVELINESS = {"still": 0.25, "lively": 1.5}  # size of the wandering; 0.7 beside a gesture
_ZOOM = {"push in": 0.24, "pull out": -0.14}
_PAN = {"pan left": -0.15, "pan right": 0.15}

# Offsets of smile, squint, brow_raise, brow_frown.
_EXPRESSIONS: dict[str, tuple[float, float, float, float]] = {
    "neutral": (0.0, 0.0, 0.0, 0.0), "smiling": (0.85, 0.30, 0.15, -0.1), "sad": (-0.75, 0.15, 0.0, -0.85),
    "surprised": (0.0, -0.75, 0.85, -0.15), "angry": (-0.30, 0.40, -0.35, 0.95),
}  # fmt: skip


@dataclass(frozen=True)
class Controls:
    """What a director asks for; left and right are the viewer's."""

    expression: Expression = "neutral"
    head: Head = "lively"
    camera: Camera = "still"

    def __post_init__(self) -> None:
        for name, kind in (("expression", Expression), ("head", Head), ("camera", Camera)):
            if getattr(self, name) not in get_args(kind):
                accepted = ", ".join(get_args(kind))
                raise UsageError(f"{name}={getattr(self, name)!r} is not known; use one of {accepted}.")


def sample_controls(num_clips: int, generator: torch.Generator) -> list[Controls]:
    """Random directions; the plain ones are the most frequent."""
    options = [
        (get_args(Expression), (1.2, 1.3, 0.8, 0.8, 0.8)), (get_args(Head), (1.0, 2.2, 0.8, 0.8, 0.8, 0.8, 0.8)),
        (get_args(Camera), (2.4, 1.0, 1.0, 0.7, 0.7)),
    ]  # fmt: skip
    picks = [torch.multinomial(torch.tensor(w), num_clips, True, generator=generator).tolist() for _, w in options]
    names = [[values[i] for i in index] for (values, _), index in zip(options, picks, strict=True)]
    return [Controls(*row) for row in zip(*names, strict=True)]


def reference_motion(num_people: int) -> Tensor:
    """(N, channels) pose of the reference image: at rest and neutral, so that a model has to animate it."""
    return rest_motion(num_people)


def sample_motion(mouth: Tensor, energy: Tensor, controls: list[Controls], generator: torch.Generator) -> Tensor:
    """Motion of clips that start at the pose of the reference image.

    Args:
        mouth: (n, T, 6) open, width, round, closed, teeth, tongue at 16 fps.
        energy: (n, T) loudness of the speech, 0…1; in its pauses the mouth is shut, whatever `mouth` says.
        controls: one a clip.
        generator: decides blinks, gaze and the wandering of the head.
    Returns: (n, T, channels) float32 within `MOTION_RANGES`.
    Raises: UsageError if the shapes do not belong together.
    """
    _check(mouth, energy, controls)
    mouth, energy = mouth.float(), energy.float().clamp(0, 1)
    speaking = F.max_pool1d(energy[:, None], 2 * _PAUSE_FRAMES + 1, 1, _PAUSE_FRAMES)[:, 0] > _SILENCE
    mouth = mouth * speaking[..., None]
    stress = _smooth(energy, 3)
    motion = {name: mouth[..., i] for i, name in enumerate(MOTION_CHANNELS[:NUM_MOUTH_CHANNELS])}
    motion["jaw"] = _smooth(mouth[..., 0] * (1 - mouth[..., 3]) * (1 - 0.25 * mouth[..., 2]), 3)
    motion |= _expression(stress, controls, generator)
    motion |= _eyes(len(mouth), mouth.shape[1], generator)
    motion |= _head(stress, controls, generator)
    motion |= _camera(mouth.shape[1], controls, generator)
    return torch.stack([motion[name].clamp(*MOTION_RANGES[name]) for name in MOTION_CHANNELS], -1)


def _check(mouth: Tensor, energy: Tensor, controls: list[Controls]) -> None:
    fits = mouth.ndim == 3 and mouth.shape[2] == NUM_MOUTH_CHANNELS and energy.shape == mouth.shape[:2]
    if not fits or len(controls) != len(mouth) or 0 in mouth.shape:
        raise UsageError(
            f"mouth {tuple(mouth.shape)}, energy {tuple(energy.shape)} and {len(controls)} controls do not belong "
            f"together; pass (n, T, {NUM_MOUTH_CHANNELS}), (n, T) and n controls, with T at least 1."
        )


def _smooth(x: Tensor, radius: int) -> Tensor:
    """Average (n, T) over a Hann window of `radius` frames on each side."""
    window = torch.hann_window(2 * radius + 1, periodic=False)[1:-1] if radius > 1 else torch.ones(1)
    padded = F.pad(x[:, None], (len(window) // 2,) * 2, mode="replicate")
    return F.conv1d(padded, (window / window.sum())[None, None])[:, 0]


def _wander(rows: int, frames: int, period_s: float, generator: torch.Generator) -> Tensor:
    """(n, T) smooth random curves of about unit size that start near 0 and turn about every `period_s`."""
    step = period_s * FPS
    knots = torch.randn(rows, 1, int(frames / step) + 4, generator=generator)
    curve = F.interpolate(knots, scale_factor=step, mode="linear", align_corners=False)[:, 0, int(step) :][:, :frames]
    curve = _smooth(curve, max(int(step / 2), 2))
    return (curve - curve[:, :1]) * 0.9


def _onset(frames: int, seconds: float = _SETTLE_S) -> Tensor:
    """(T,) 0 at the first frame, 1 after `seconds`."""
    t = (torch.arange(frames) / (seconds * FPS)).clamp(0, 1)
    return t * t * (3 - 2 * t)


def _expression(stress: Tensor, controls: list[Controls], generator: torch.Generator) -> dict[str, Tensor]:
    rows, frames = stress.shape
    target = torch.tensor([_EXPRESSIONS[c.expression] for c in controls])[:, None]
    strength = 0.8 + 0.2 * torch.rand(rows, 1, 1, generator=generator)
    smile, squint, brow_raise, frown = (target * strength * _onset(frames)[None, :, None]).unbind(-1)
    lift = (stress - 0.35) * 0.7 * _onset(frames, 0.3)
    return {
        "smile": smile + 0.10 * _wander(rows, frames, 1.5, generator),
        "squint": squint + 0.10 * _wander(rows, frames, 1.2, generator),
        "brow_raise": brow_raise + lift + 0.15 * _wander(rows, frames, 0.9, generator),
        "brow_frown": frown + 0.08 * _wander(rows, frames, 1.2, generator),
    }


def _eyes(rows: int, frames: int, generator: torch.Generator) -> dict[str, Tensor]:
    return {
        "blink": torch.stack([_blinks(frames, generator) for _ in range(rows)]),
        "gaze_x": torch.stack([_saccades(frames, 0.35, generator) for _ in range(rows)]),
        "gaze_y": torch.stack([_saccades(frames, 0.22, generator) for _ in range(rows)]),
    }


def _seconds(low: float, high: float, generator: torch.Generator) -> int:
    """A random span in frames."""
    return round((low + (high - low) * float(torch.rand((), generator=generator))) * FPS)


def _blinks(frames: int, generator: torch.Generator) -> Tensor:
    curve = torch.zeros(frames + len(_BLINK))
    start = _seconds(0.4, _BLINK_PAUSE_S[1], generator)
    while start < frames:
        curve[start : start + len(_BLINK)] = torch.tensor(_BLINK)
        start += _seconds(*_BLINK_PAUSE_S, generator)
    return curve[:frames]


def _saccades(frames: int, size: float, generator: torch.Generator) -> Tensor:
    """Gaze that rests at one place and jumps to the next; most rests are at the camera."""
    curve = torch.zeros(frames)
    start = _seconds(0.3, 1.5, generator)
    while start < frames:
        away = float(torch.rand((), generator=generator)) < 0.55
        curve[start:] = float(torch.randn((), generator=generator)) * size * away
        start += _seconds(0.3, 1.6, generator)
    return curve


def _head(stress: Tensor, controls: list[Controls], generator: torch.Generator) -> dict[str, Tensor]:
    rows, frames = stress.shape
    amount = torch.tensor([_LIVELINESS.get(c.head, 0.7) for c in controls])[:, None]
    beat = (stress - stress[:, :1]) * amount
    names = ("yaw", "pitch", "roll", "sway_x", "sway_y")
    sizes, periods = (0.10, 0.05, 0.045, 0.020, 0.008), (1.1, 0.9, 1.2, 1.5, 1.0)
    head = {
        name: size * amount * _wander(rows, frames, period, generator)
        for name, size, period in zip(names, sizes, periods, strict=True)
    }
    head["pitch"] = head["pitch"] + 0.05 * beat
    head["sway_y"] = head["sway_y"] + 0.010 * beat
    gestures = [_gesture(c.head, frames, generator) for c in controls]
    for i, name in enumerate(("yaw", "pitch", "roll")):
        head[name] = head[name] + torch.stack([gesture[i] for gesture in gestures])
    return head


def _gesture(head: Head, frames: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Yaw, pitch and roll (T,) of the asked movement."""
    none, rise = torch.zeros(frames), _onset(frames)
    pace = 0.9 + 0.6 * float(torch.rand((), generator=generator))
    swing = torch.sin(2 * torch.pi * pace * torch.arange(frames) / FPS) * rise
    size = 0.85 + 0.3 * float(torch.rand((), generator=generator))
    sign = 1 if float(torch.rand((), generator=generator)) < 0.5 else -1
    return {
        "nodding": (none, 0.17 * size * swing, none), "shaking": (0.25 * size * swing, none, none),
        "looking left": (-0.30 * size * rise, none, none), "looking right": (0.30 * size * rise, none, none),
        "tilting": (none, none, sign * 0.19 * size * rise),
    }.get(head, (none, none, none))  # fmt: skip


def _camera(frames: int, controls: list[Controls], generator: torch.Generator) -> dict[str, Tensor]:
    """Even movement at a steady pace, so that a clip of any length shows it."""
    seconds = (torch.arange(frames) / FPS)[None]
    pace = 0.8 + 0.4 * torch.rand(len(controls), 1, generator=generator)
    zoom, pan = (torch.tensor([table.get(c.camera, 0.0) for c in controls])[:, None] for table in (_ZOOM, _PAN))
    travelled = torch.tanh(seconds * pace / 5.0)  # slows down before it would leave the range
    return {"zoom": 1 + zoom * travelled, "pan_x": pan * travelled, "pan_y": torch.zeros(len(controls), frames)}
