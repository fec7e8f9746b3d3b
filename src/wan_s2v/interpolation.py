"""The model's 16 frames a second -> any output rate, the duration kept.

The video is never retimed: output frame j shows time j / fps, which lies at model position j * model_fps / fps, and
where that is between two frames a new one is made by optical flow. The pairs of a clip are worked on side by side.
"""

from __future__ import annotations

import math
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction

import cv2
import numpy as np

from wan_s2v.errors import UsageError

# Cost of one in-between frame on two CPU cores, flow of the pair included (at 24 fps, one pair per in-between frame):
# 832x480 about 140 ms, 1280x720 about 350 ms; the next cheaper preset takes 100 and 195 ms and loses 1 to 2 dB on
# moving heads. More in-between frames share the flow: at 60 fps one costs 70 and 180 ms.
_PRESET = cv2.DISOPTICAL_FLOW_PRESET_MEDIUM
_FLOW_ITERATIONS = 3
_MOST_THREADS = 8  # each holds about 70 MiB at 1280x720
# Share of pixels that still differ by half the picture's contrast after motion compensation, above which two frames
# belong to different shots. Measured: unrelated pictures 0.26 to 0.67, moving scenes up to 0.22.
_CUT_SHARE = 0.35
_MIN_CONTRAST = 8.0  # grey levels; below it noise would look like a cut


class FrameInterpolator:
    """Model frames in, clip by clip, output frames out; any division into clips gives the same frames.

    Args:
        num_frames: outputs after which no more are given; None for no limit.
    """

    def __init__(self, model_fps: int, fps: int | Fraction, *, num_frames: int | None = None) -> None:
        if fps <= 0 or model_fps <= 0:
            raise UsageError(f"fps={fps} with model_fps={model_fps} is not accepted. Pass positive rates.")
        self._step = Fraction(model_fps) / Fraction(fps)
        self._limit = num_frames
        self._num_pushed = 0
        self._num_made = 0
        self._last: np.ndarray | None = None

    def push(self, frames: np.ndarray) -> np.ndarray:
        """Add model frames; returns every output frame that can be made now.

        Args:
            frames: (T, H, W, 3) uint8, or float32 in [-1, 1]; all calls of one size and type.
        Returns: (n, H, W, 3) of the same type. A frame that falls on a model frame is that frame, bit by bit.
        """
        if frames.ndim != 4 or frames.dtype not in (np.uint8, np.float32):
            raise UsageError(
                f"Frames {frames.dtype}{tuple(frames.shape)} are not accepted. Pass (T, H, W, 3) uint8 or float32."
            )
        pairs = []
        for frame in frames:
            pairs.append((frame if self._last is None else self._last, frame, self._positions()))
            self._last = frame
            self._num_pushed += 1
        # The caller may reuse its buffer between clips.
        self._last = None if self._last is None else self._last.copy()
        with ThreadPoolExecutor(min(os.cpu_count() or 1, _MOST_THREADS)) as pool:
            made = [frame for part in pool.map(_frames_at, pairs) for frame in part]
        return np.stack(made) if made else np.empty((0, *frames.shape[1:]), frames.dtype)

    def finish(self, num_frames: int | None = None) -> np.ndarray:
        """The rest, up to `num_frames` in total, holding the last model frame where it has no successor.

        Without a number here or in the constructor: all whose time lies before the end of the last model frame.
        """
        if self._last is None:
            raise UsageError("No frame was pushed, so there is none to hold. Push model frames before finishing.")
        total = num_frames if num_frames is not None else self._limit
        if total is None:
            total = math.ceil(self._num_pushed / self._step)
        rest = max(0, total - self._num_made)
        self._num_made += rest
        return np.repeat(self._last[None], rest, axis=0)

    def _positions(self) -> list[Fraction]:
        """Of the outputs in (previous model frame, this one], from 0 to 1."""
        found = []
        while self._limit is None or self._num_made < self._limit:
            position = self._num_made * self._step - (self._num_pushed - 1)
            if position > 1:
                break
            found.append(position)
            self._num_made += 1
        return found


def _frames_at(pair: tuple[np.ndarray, np.ndarray, list[Fraction]]) -> list[np.ndarray]:
    """Frames at positions between two model frames; position 1 is the second one itself."""
    first, second, positions = pair
    if all(position == 1 for position in positions):
        return [second] * len(positions)
    motion = _estimate_motion(first, second)
    return [second if at == 1 else _between(first, second, motion, float(at)) for at in positions]


@dataclass(frozen=True)
class _Motion:
    """Flow between two frames, (H, W, 2) float32 pixels (x, y) there and back, and whether the scene changes."""

    forward: np.ndarray
    backward: np.ndarray
    is_cut: bool


def _grey(frame: np.ndarray) -> np.ndarray:
    if frame.dtype != np.uint8:
        frame = ((frame.clip(-1, 1) + 1) * 127.5).astype(np.uint8)
    return cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)


def _grid(height: int, width: int) -> np.ndarray:
    x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    return np.stack([x, y], axis=-1)


def _sample(image: np.ndarray, points: np.ndarray, interpolation: int = cv2.INTER_LINEAR) -> np.ndarray:
    return cv2.remap(image, points, None, interpolation, borderMode=cv2.BORDER_REPLICATE)


def _estimate_motion(first: np.ndarray, second: np.ndarray) -> _Motion:
    grey_first, grey_second = _grey(first), _grey(second)
    method = cv2.DISOpticalFlow.create(_PRESET)
    forward = method.calc(grey_first, grey_second, None)
    backward = method.calc(grey_second, grey_first, None)
    arrived = _sample(grey_second, _grid(*grey_first.shape) + forward)
    difference = np.abs(_normalised(grey_first) - _normalised(arrived))
    return _Motion(forward, backward, bool((difference > 0.5).mean() > _CUT_SHARE))


def _normalised(grey: np.ndarray) -> np.ndarray:
    """Mean 0 and contrast 1, so that a fade is not taken for a cut."""
    return (grey.astype(np.float32) - grey.mean()) / max(float(grey.std()), _MIN_CONTRAST)


def _source_points(flow: np.ndarray, grid: np.ndarray, time: float) -> tuple[np.ndarray, np.ndarray]:
    """Where each pixel at `time` comes from in the frame that `flow` leaves, and how sure that is.

    The flow v that passes a pixel x satisfies v = flow(x - time * v). Where no v does, nothing of that frame arrives
    at x: it is uncovered only later, and the other frame has to fill it.

    Returns: (H, W, 2) pixels; (H, W) in (0, 1], 1/2 where the equation is off by one pixel.
    """
    passing = flow
    for _ in range(_FLOW_ITERATIONS):
        # Averaged, since at edges of moving things the plain iteration jumps to and fro (6 dB worse after odd counts).
        passing = (passing + _sample(flow, grid - time * passing)) / 2
    points = grid - time * passing
    miss = time * (passing - _sample(flow, points))
    return points, 1 / (1 + (miss * miss).sum(axis=-1)) + 1e-3


def _between(first: np.ndarray, second: np.ndarray, motion: _Motion, time: float) -> np.ndarray:
    """The frame at `time` in (0, 1): both frames moved there, mixed by nearness in time and by what arrives."""
    if motion.is_cut:
        return first if time < 0.5 else second
    grid = _grid(*first.shape[:2])
    from_first, trust_first = _source_points(motion.forward, grid, time)
    from_second, trust_second = _source_points(motion.backward, grid, 1 - time)
    share = (1 - time) * trust_first
    share = (share / (share + time * trust_second))[..., None]
    # Cubic, since linear sampling makes every other frame visibly softer.
    moved_first = _sample(first, from_first, cv2.INTER_CUBIC).astype(np.float32)
    moved_second = _sample(second, from_second, cv2.INTER_CUBIC).astype(np.float32)
    mixed = moved_second + share * (moved_first - moved_second)
    return np.rint(mixed).astype(np.uint8) if first.dtype == np.uint8 else mixed.clip(-1, 1)
