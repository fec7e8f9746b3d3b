"""Mouth shapes over time from timed sounds: what the lips, jaw and tongue tip do while a sentence is spoken.

Each letter of `ipa` has a target shape and a dominance, how much it insists on it against its neighbours (after Cohen
and Massaro's dominance functions, here as normalised smoothing). Lip closures and labiodental contacts are laid over
the result afterwards, because viewers notice a missing closure first. At rest every channel is 0: lips together.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from wan_s2v.training.ipa import Segment, segments
from wan_s2v.training.speech import SILENCE, Phoneme

MOUTH_CHANNELS = ("open", "width", "round", "closed", "teeth", "tongue")
OPEN, WIDTH, ROUND, CLOSED, TEETH, TONGUE = range(6)

_Array = NDArray[np.float64]

# letter: (open, width, round, teeth, tongue), dominance of the jaw, dominance of the lip shape. `closed` comes from
# closures only. Values 0...1 by phonetic description; tuned by eye on plots of one sentence per language.
Shape = tuple[tuple[float, float, float, float, float], float, float]


def _shapes(table: dict[str, Shape]) -> dict[str, Shape]:
    return {letter: shape for letters, shape in table.items() for letter in letters.split()}


SHAPES: dict[str, Shape] = _shapes(
    {
        SILENCE: ((0.0, 0.0, 0.0, 0.0, 0.0), 0.7, 0.5),
        "a ɑ": ((0.95, 0.25, 0.0, 0.30, 0.10), 1.0, 1.0),
        "æ": ((0.88, 0.50, 0.0, 0.40, 0.10), 1.0, 1.0),
        "ɐ ʌ": ((0.76, 0.22, 0.0, 0.30, 0.10), 1.0, 0.9),
        "ɒ": ((0.78, 0.0, 0.40, 0.10, 0.0), 1.0, 1.0),
        "ɔ": ((0.64, 0.0, 0.62, 0.05, 0.0), 1.0, 1.1),
        "o": ((0.52, 0.0, 0.78, 0.0, 0.0), 1.0, 1.2),
        "ɤ": ((0.45, 0.15, 0.0, 0.20, 0.0), 1.0, 0.8),
        "ʊ": ((0.32, 0.0, 0.80, 0.0, 0.0), 1.0, 1.2),
        "u ʉ": ((0.24, 0.0, 1.0, 0.0, 0.0), 1.0, 1.3),
        "y ʏ": ((0.24, 0.10, 0.92, 0.10, 0.10), 1.0, 1.3),
        "ø": ((0.42, 0.05, 0.80, 0.10, 0.10), 1.0, 1.2),
        "œ": ((0.55, 0.05, 0.60, 0.15, 0.10), 1.0, 1.1),
        "e": ((0.48, 0.70, 0.0, 0.50, 0.20), 1.0, 1.0),
        "ɛ": ((0.62, 0.58, 0.0, 0.45, 0.15), 1.0, 1.0),
        "i": ((0.26, 1.0, 0.0, 0.65, 0.25), 1.0, 1.1),
        "ɪ": ((0.34, 0.78, 0.0, 0.55, 0.20), 1.0, 1.0),
        "ɨ": ((0.26, 0.60, 0.05, 0.70, 0.20), 1.0, 0.9),
        "ɯ": ((0.26, 0.20, 0.40, 0.20, 0.05), 1.0, 0.9),
        "ə": ((0.42, 0.25, 0.05, 0.25, 0.10), 0.8, 0.5),
        "ɚ": ((0.40, 0.10, 0.35, 0.25, 0.20), 0.9, 0.8),
        "ɜ": ((0.52, 0.20, 0.20, 0.25, 0.10), 1.0, 0.8),
        "p b m": ((0.05, 0.10, 0.10, 0.0, 0.0), 0.8, 0.25),
        "β ɸ": ((0.04, 0.10, 0.25, 0.0, 0.0), 2.0, 0.5),
        "f v": ((0.10, 0.20, 0.0, 1.0, 0.0), 0.9, 0.5),
        "θ ð": ((0.24, 0.30, 0.0, 0.70, 1.0), 0.8, 0.5),
        "s z": ((0.15, 0.50, 0.0, 1.0, 0.15), 0.9, 0.6),
        "ʃ ʒ ʂ ʐ": ((0.20, 0.05, 0.60, 0.95, 0.10), 0.9, 1.0),
        "ɕ ʑ": ((0.18, 0.40, 0.25, 0.95, 0.15), 0.9, 0.8),
        "t d n": ((0.22, 0.30, 0.0, 0.60, 0.65), 0.7, 0.25),
        "l ɾ": ((0.30, 0.25, 0.0, 0.45, 0.85), 0.5, 0.25),
        "r": ((0.30, 0.20, 0.05, 0.45, 0.80), 0.6, 0.3),
        "ɹ": ((0.26, 0.05, 0.50, 0.35, 0.25), 0.6, 0.8),
        "ɲ ʎ": ((0.26, 0.50, 0.0, 0.55, 0.50), 0.7, 0.4),
        "j ʝ": ((0.26, 0.80, 0.0, 0.55, 0.20), 0.6, 0.7),
        "ɥ": ((0.20, 0.05, 0.95, 0.05, 0.10), 0.7, 1.2),
        "w": ((0.14, 0.0, 1.0, 0.0, 0.0), 0.8, 1.4),
        "k ɡ ŋ ɴ x ɣ": ((0.34, 0.20, 0.0, 0.30, 0.0), 0.4, 0.12),
        "ç": ((0.26, 0.70, 0.0, 0.60, 0.20), 0.5, 0.5),
        "ʁ": ((0.38, 0.15, 0.05, 0.25, 0.0), 0.4, 0.12),
        "h ʔ": ((0.40, 0.20, 0.0, 0.20, 0.0), 0.08, 0.05),
    }
)

_GRID_HZ = 200
_CLOSURE_S = 0.05
_CLOSURE_RAMP_S = 0.045
_CONTACT_RAMP_S = 0.04
_UNSTRESSED_OPEN = 0.9
_VOWELS_FROM_OPEN = 0.4
# Rest is reached this long after the last sound, and left this long before the next.
_CLOSING_S, _OPENING_S = 0.11, 0.08
_SHORTEST_REST_S = 0.20
# Width of the smoothing toward the future and the past. Rounding starts about 100 ms before its vowel.
_JAW_S, _LIPS_AHEAD_S, _LIPS_BEHIND_S, _TONGUE_S = 0.028, 0.070, 0.035, 0.020


def mouth_curve(
    phonemes: Sequence[Phoneme], num_steps: int, rate_hz: int = 100, *, strict: bool = False
) -> NDArray[np.float32]:
    """Mouth shape at times k / rate_hz.

    Args:
        phonemes: sounds in order, as `speech.Utterance` has them; time not covered is silence.
    Returns: (num_steps, 6) float32 in 0...1, channels as MOUTH_CHANNELS: jaw opening; lip spread; lip rounding and
        protrusion; lip press of m, b, p; upper teeth visible; tongue tip visible. Silence of 200 ms or more is
        exactly 0 from 120 ms after its start until 100 ms before its end.
    Raises: UsageError in `strict` mode if a sound has no class.
    """
    found = segments(phonemes, strict=strict)
    steps = round(num_steps / rate_hz * _GRID_HZ) + 1
    times = np.arange(steps) / _GRID_HZ
    curve = _blend(found, times) * _speaking(found, times)[:, None]
    _press_lips(curve, found, times)
    _bite_lip(curve, found, times)
    wanted = np.arange(num_steps) / rate_hz
    sampled = np.stack([np.interp(wanted, times, curve[:, channel]) for channel in range(6)], axis=1)
    return np.clip(sampled, 0, 1).astype(np.float32)


def to_video_rate(
    curve: NDArray[np.float32], fps: float, num_frames: int, start_frame: int = 0, *, rate_hz: int = 100
) -> NDArray[np.float32]:
    """Mouth shapes of video frames start_frame, start_frame + 1, ...; frame k shows the time k / fps.

    Each frame is the mean over the frame time around its instant. A lip closure is shorter than a frame, so the frame
    nearest to the closure's middle takes the curve's least `open` and greatest `closed` instead of the mean.

    Args:
        curve: (T, 6) at rate_hz, as `mouth_curve` gives it; rest before and after it.
    Returns: (num_frames, 6) float32.
    """
    frames = start_frame + np.arange(num_frames)
    edges = (start_frame + np.arange(num_frames + 1, dtype=np.float64) - 0.5) / fps * rate_hz
    padded = np.pad(curve.astype(np.float64), ((1, 1), (0, 0)))
    integral = np.concatenate([np.zeros((1, 6)), np.cumsum((padded[1:] + padded[:-1]) / 2, axis=0)])
    video = np.diff(_integral_at(integral, padded, edges + 1), axis=0) * fps / rate_hz
    for first, end in _runs(curve[:, CLOSED] > 0.9):
        nearest = round((first + end - 1) / 2 / rate_hz * fps)
        if frames.size and frames[0] <= nearest <= frames[-1]:
            video[nearest - start_frame, OPEN] = min(video[nearest - start_frame, OPEN], curve[first:end, OPEN].min())
            video[nearest - start_frame, CLOSED] = curve[first:end, CLOSED].max()
    return np.clip(video, 0, 1).astype(np.float32)


def _integral_at(integral: _Array, padded: _Array, at: _Array) -> _Array:
    """Integral of the piecewise linear curve from its start to each position, in steps; constant outside."""
    at = np.clip(at, 0, len(padded) - 1)
    index = np.minimum(at.astype(int), len(padded) - 2)
    part = (at - index)[:, None]
    return integral[index] + part * padded[index] + part**2 / 2 * (padded[index + 1] - padded[index])


def _runs(mask: NDArray[np.bool_]) -> list[tuple[int, int]]:
    change = np.flatnonzero(np.diff(np.concatenate([[0], mask.astype(np.int8), [0]])))
    return [(int(first), int(end)) for first, end in change.reshape(-1, 2)]


def _blend(found: list[Segment], times: _Array) -> _Array:
    """Dominance-weighted mean of the targets around each time; `closed` stays 0."""
    rows = [SHAPES[segment.letter] for segment in found] + [SHAPES[SILENCE]]
    index = np.searchsorted([segment.start_s for segment in found], times, side="right") - 1
    past_end = times >= found[-1].end_s if found else np.ones(len(times), bool)
    index = np.where(past_end | (index < 0), len(found), index)
    targets = np.array([row[0] for row in rows])
    weak = [i for i, s in enumerate(found) if not s.stressed and targets[i, 0] >= _VOWELS_FROM_OPEN]
    targets[weak, 0] *= _UNSTRESSED_OPEN
    jaw = np.array([row[1] for row in rows])[index]
    lips = np.array([row[2] for row in rows])[index]
    targets = targets[index]
    curve = np.zeros((len(times), 6))
    lip_kernel, tongue_kernel = _kernel(_LIPS_AHEAD_S, _LIPS_BEHIND_S), _kernel(_TONGUE_S, _TONGUE_S)
    curve[:, OPEN] = _weighted(targets[:, 0], jaw, _kernel(_JAW_S, _JAW_S))
    curve[:, WIDTH] = _weighted(targets[:, 1], lips, lip_kernel)
    curve[:, ROUND] = _weighted(targets[:, 2], lips, lip_kernel)
    curve[:, TEETH] = _weighted(targets[:, 3], jaw, tongue_kernel)
    curve[:, TONGUE] = _weighted(targets[:, 4], jaw, tongue_kernel)
    return curve


def _kernel(ahead_s: float, behind_s: float) -> _Array:
    """Gaussian halves: how far a sound reaches before itself and after itself."""
    reach = int(3 * max(ahead_s, behind_s) * _GRID_HZ) + 1
    offset = np.arange(-reach, reach + 1) / _GRID_HZ
    return np.exp(-0.5 * (offset / np.where(offset < 0, ahead_s, behind_s)) ** 2)


def _weighted(values: _Array, weights: _Array, kernel: _Array) -> _Array:
    reach = len(kernel) // 2
    weights = np.pad(weights, reach, mode="edge")
    values = np.pad(values, reach, mode="edge")
    return np.convolve(values * weights, kernel, "valid") / np.convolve(weights, kernel, "valid")


def _lay_spans(times: _Array, spans: list[tuple[float, float]], ramp_s: float) -> _Array:
    """1 inside each span, raised-cosine ramps to 0 outside; between close spans the ramps shrink to meet at 0."""
    level = np.zeros(len(times))
    for index, (start_s, end_s) in enumerate(spans):
        before = start_s - spans[index - 1][1] if index else np.inf
        after = spans[index + 1][0] - end_s if index + 1 < len(spans) else np.inf
        rise, fall = (max(min(ramp_s, gap / 2), 1 / _GRID_HZ) for gap in (before, after))
        low, high = np.searchsorted(times, (start_s - rise, end_s + fall))
        near = times[low:high]
        outside = np.maximum(np.maximum((start_s - near) / rise, (near - end_s) / fall), 0)
        level[low:high] = np.maximum(level[low:high], 0.5 + 0.5 * np.cos(np.pi * np.minimum(outside, 1)))
    return level


def _press_lips(curve: _Array, found: list[Segment], times: _Array) -> None:
    """Close the lips for m, b and p from their start to their release, at least 50 ms."""
    spans = []
    for segment in found:
        if segment.letter in ("p", "b", "m"):
            release = segment.end_s if segment.release_s is None else segment.release_s
            # A closure that is too short starts earlier: its end is heard, its beginning is not.
            spans.append((min(segment.start_s, release - _CLOSURE_S), release))
    level = _lay_spans(times, spans, _CLOSURE_RAMP_S)
    curve[:, OPEN] *= 1 - level
    curve[:, TEETH] *= 1 - level
    curve[:, TONGUE] *= 1 - level
    curve[:, CLOSED] = level


def _bite_lip(curve: _Array, found: list[Segment], times: _Array) -> None:
    """Lower lip on the teeth for f and v: nearly shut, teeth shown."""
    spans = [(segment.start_s, segment.end_s) for segment in found if segment.letter in ("f", "v")]
    level = _lay_spans(times, spans, _CONTACT_RAMP_S) * (1 - curve[:, CLOSED])
    curve[:, OPEN] += level * (np.minimum(curve[:, OPEN], 0.1) - curve[:, OPEN])
    curve[:, TEETH] = np.maximum(curve[:, TEETH], level)


def _speaking(found: list[Segment], times: _Array) -> _Array:
    """1 while sounds follow each other, 0 in rest, smooth between; pauses too short to rest in count as speech."""
    spoken: list[tuple[float, float]] = []
    for segment in found:
        if segment.letter == SILENCE or segment.end_s <= segment.start_s:
            continue
        if spoken and segment.start_s - spoken[-1][1] < _SHORTEST_REST_S:
            spoken[-1] = (spoken[-1][0], segment.end_s)
        else:
            spoken.append((segment.start_s, segment.end_s))
    level = np.zeros(len(times))
    for start_s, end_s in spoken:
        opening = 0.5 - 0.5 * np.cos(np.pi * np.clip((times - start_s) / _OPENING_S + 1, 0, 1))
        closing = 0.5 + 0.5 * np.cos(np.pi * np.clip((times - end_s) / _CLOSING_S, 0, 1))
        level = np.maximum(level, opening * closing)
    return level
