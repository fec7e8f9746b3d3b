"""What is measured on a talking portrait, each measure as a function of arrays.

Frame k is the one at k / 16 s. Pixels are uint8 RGB; a mask is true where a frame is judged. Mouth shapes are as
`mouth_reader.SHAPES`. Functions give None where there is nothing to judge.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from wan_s2v.evaluation.mouth_reader import CLOSED, OPEN
from wan_s2v.evaluation.sync import FPS, SAMPLE_RATE

SHUT = 0.15  # opening under which lips count as together
SILENCE_S = 0.4  # shorter silences are part of speaking
FIRST_FRAMES = 4
COLOUR_QUANTILES = 32
NO_ERROR_DB = 100.0  # PSNR of equal pictures

_Floats = NDArray[np.floating]
_Mask = NDArray[np.bool_]
_Pixels = NDArray[np.uint8]

_RELEASE_FRAMES = 4  # on each side of a closure, where the mouth opens
_RISE = 0.2  # of the truth, from which a closure has to be seen to open
_SEEN_RISE = 0.4  # of that rise, that has to be seen
_SETTLE_FRAMES = 2  # at both ends of a heard silence, in which the mouth still closes or already opens
_QUIET_DB, _INAUDIBLE_DB = -40.0, -60.0
_BOX_MARGIN = 0.15
_COLOUR_SIZE = 64


def opening_correlation(opening: _Floats, truth: _Floats) -> float | None:
    """Pearson correlation of two curves (T,) at lag 0; None if one of them does not move."""
    if len(opening) < 2 or np.std(opening) < 1e-6 or np.std(truth) < 1e-6:
        return None
    return float(np.corrcoef(opening, truth)[0, 1])


def opening_lag(opening: _Floats, truth: _Floats, max_lag: int = 8) -> int | None:
    """Frames by which the picture leads: the lag at which opening[k] correlates best with truth[k + lag]."""
    count = min(len(opening), len(truth))
    found: list[tuple[float, int]] = []
    for lag in range(-max_lag, max_lag + 1):
        seen, told = opening[max(-lag, 0) : count - max(lag, 0)], truth[max(lag, 0) : count - max(-lag, 0)]
        correlation = opening_correlation(seen, told) if len(seen) >= FPS else None
        if correlation is not None:
            found.append((correlation, lag))
    return max(found, key=lambda pair: (pair[0], -abs(pair[1])))[1] if found else None


def closures(truth: _Floats) -> list[int]:
    """Frames at which the lips press together for m, b or p: the peak of each run of `closed` above 0.5 in (T, 6)."""
    return [first + int(np.argmax(truth[first:end, CLOSED])) for first, end in runs(truth[:, CLOSED] > 0.5)]


def closure_rate(shapes: _Floats, truth: _Floats) -> float | None:
    """Share of the closures of m, b and p that can be seen.

    A closure is seen if, within one frame of it, the lips are together: `open` under 0.15, or under 0.25 with `closed`
    above 0.5. Where the truth opens by 0.2 or more within 4 frames on either side, the mouth must there also open by
    40 % of that beyond its closure, so that a mouth that never moves sees none of these.

    Args:
        shapes, truth: (T, 6).
    """
    places = closures(truth)
    if not places:
        return None
    return sum(_is_seen(shapes, truth, place) for place in places) / len(places)


def _is_seen(shapes: _Floats, truth: _Floats, place: int) -> bool:
    near = shapes[max(place - 1, 0) : place + 2]
    least = float(near[:, OPEN].min())
    pressed = bool(((near[:, OPEN] < 0.25) & (near[:, CLOSED] > 0.5)).any())
    around = slice(max(place - _RELEASE_FRAMES, 0), place + _RELEASE_FRAMES + 1)
    rise = float(truth[around, OPEN].max() - truth[place, OPEN])
    opens = float(shapes[around, OPEN].max()) - least >= _SEEN_RISE * rise
    return (least < SHUT or pressed) and (rise < _RISE or opens)


def rest_frames(truth: _Floats) -> _Mask:
    """(T,) whether the truth (T, 6) is at rest, with all shapes under 0.02, for more than 0.4 s."""
    return _long_runs(truth.max(axis=1) < 0.02, 0)


def silent_frames(waveform: NDArray[np.float32], num_frames: int) -> _Mask:
    """(T,) whether a frame lies in a silence of more than 0.4 s, without two frames at its ends.

    Silent is a frame time (62.5 ms of 16 kHz sound) 40 dB under the 95th percentile of all, or under -60 dBFS.
    """
    size = SAMPLE_RATE // FPS
    level = np.full(num_frames, -np.inf)
    for frame in range(num_frames):
        part = waveform[max(frame * size - size // 2, 0) : frame * size + size // 2]
        power = float(np.mean(np.square(part, dtype=np.float64))) if len(part) else 0.0
        level[frame] = 10 * math.log10(power + 1e-12)
    loud = float(np.percentile(level, 95)) if num_frames else 0.0
    return _long_runs(level < max(loud + _QUIET_DB, _INAUDIBLE_DB), _SETTLE_FRAMES)


def _long_runs(mask: _Mask, settle: int) -> _Mask:
    kept = np.zeros_like(mask)
    for first, end in runs(mask):
        if end - first > SILENCE_S * FPS:
            kept[first + settle : end - settle] = True
    return kept


def runs(mask: _Mask) -> list[tuple[int, int]]:
    """First index and end of every run of true values."""
    change = np.flatnonzero(np.diff(np.concatenate([[0], mask.astype(np.int8), [0]])))
    return [(int(first), int(end)) for first, end in change.reshape(-1, 2)]


def closed_share(opening: _Floats, silent: _Mask) -> float | None:
    """Share of the silent frames in which the mouth's opening (T,) is under 0.15."""
    return float((opening[silent] < SHUT).mean()) if silent.any() else None


def outside_mask(boxes: Sequence[_Floats], height: int, width: int) -> _Mask:
    """(height, width) true outside the boxes (left, top, right, bottom in 0…1), grown by 15 % of their width."""
    mask = np.ones((height, width), bool)
    for left, top, right, bottom in boxes:
        margin = _BOX_MARGIN * (right - left) * width
        first_row, end_row = math.floor(top * height - margin), math.ceil(bottom * height + margin)
        first_column, end_column = math.floor(left * width - margin), math.ceil(right * width + margin)
        mask[max(first_row, 0) : max(end_row, 0), max(first_column, 0) : max(end_column, 0)] = False
    return mask


def luma(frame: _Pixels) -> NDArray[np.float32]:
    """(H, W) brightness, 0…255, of (H, W, 3)."""
    return cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY).astype(np.float32)


def psnr(frame: _Pixels, reference: _Pixels, mask: _Mask) -> float:
    """Peak signal-to-noise ratio of the masked pixels, over all three channels, in dB; 100 for equal ones."""
    error = float(np.square(frame[mask].astype(np.float64) - reference[mask]).mean()) if mask.any() else 0.0
    return min(NO_ERROR_DB, 10 * math.log10(255**2 / max(error, 1e-9)))


def ssim(frame: NDArray[np.float32], reference: NDArray[np.float32], mask: _Mask) -> float:
    """Mean structural similarity, -1…1, of two brightness pictures over the mask.

    Source: Wang et al., 2004, with their Gaussian window of 11 pixels (sigma 1.5) and constants.
    """

    def blur(picture: NDArray[np.float32]) -> NDArray[np.float32]:
        return cv2.GaussianBlur(picture, (11, 11), 1.5)

    mean_a, mean_b = blur(frame), blur(reference)
    variance_a, variance_b = blur(frame * frame) - mean_a**2, blur(reference * reference) - mean_b**2
    covariance = blur(frame * reference) - mean_a * mean_b
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    score = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    score /= (mean_a**2 + mean_b**2 + c1) * (variance_a + variance_b + c2)
    return float(score[mask].mean()) if mask.any() else 1.0


def sharpness(brightness: NDArray[np.float32]) -> float:
    """Variance of the Laplacian of a brightness picture, in squared levels of 255."""
    return float(cv2.Laplacian(brightness, cv2.CV_32F).var())


def first_frames_sharpness(values: _Floats) -> float | None:
    """Mean sharpness of the first 4 frames over the median of the rest; 1 means equally sharp."""
    if len(values) <= FIRST_FRAMES:
        return None
    rest = float(np.median(values[FIRST_FRAMES:]))
    return float(np.mean(values[:FIRST_FRAMES])) / rest if rest > 0 else None


def colour_quantiles(frame: _Pixels, mask: _Mask) -> NDArray[np.float64]:
    """How the colours of a low-passed picture are spread: (32, 3) quantiles of its CIE L*, a* and b* (D65).

    The picture is reduced to 64x64 by averaging; pixels with any part outside the mask are left out. NaN if all are.
    Quantiles do not say where a colour is, so a head that moves changes them little; a tint, more contrast or faded
    colours change them as much as the pixels. A camera that zooms or pans shows other things, which changes them too.
    """
    size = (_COLOUR_SIZE, _COLOUR_SIZE)
    reduced = cv2.resize(frame.astype(np.float32) / 255, size, interpolation=cv2.INTER_AREA)
    judged = cv2.resize(mask.astype(np.float32), size, interpolation=cv2.INTER_AREA) > 0.999
    if not judged.any():
        return np.full((COLOUR_QUANTILES, 3), np.nan)
    levels = (np.arange(COLOUR_QUANTILES) + 0.5) / COLOUR_QUANTILES
    return np.quantile(cv2.cvtColor(reduced, cv2.COLOR_RGB2Lab)[judged], levels, axis=0).astype(np.float64)


def colour_distance(quantiles: _Floats, reference: _Floats) -> float | None:
    """Mean ΔE of 1976 (Euclidean distance in L*a*b*) between colour quantiles (32, 3) of equal rank."""
    distance = float(np.sqrt(np.square(quantiles - reference).sum(axis=-1)).mean())
    return None if math.isnan(distance) else distance


def seam_ratio(changes: _Floats, clip_starts: Sequence[int]) -> float | None:
    """How much more a picture changes where a clip begins than nearby.

    Args:
        changes: (T - 1,) mean absolute difference of frame k + 1 from frame k.
        clip_starts: first frames of the clips; the first clip, which begins the video, has no seam.
    Returns: mean over the seams of the change there over the median of the 8 changes on each side; 1 means no seam.
    """
    ratios = []
    for start in clip_starts:
        if 0 < start <= len(changes):
            near = np.concatenate([changes[max(start - 9, 0) : start - 1], changes[start : start + 8]])
            if len(near):
                # A still picture has no typical change; a tenth of a level is not seen.
                ratios.append(float(changes[start - 1]) / max(float(np.median(near)), 0.1))
    return float(np.mean(ratios)) if ratios else None


def flicker(before: NDArray[np.float32], frame: NDArray[np.float32], after: NDArray[np.float32], mask: _Mask) -> float:
    """Mean absolute difference of the masked pixels from the mean of the frames before and after, in levels of 255.

    Steady motion over smooth surfaces cancels out; brightness that goes up and down from frame to frame stays.
    """
    return float(np.abs(frame - 0.5 * (before + after))[mask].mean()) if mask.any() else 0.0
