"""All measures of one video."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from wan_s2v.audio import load_waveform
from wan_s2v.clips import MAX_FRAMES_PER_CLIP
from wan_s2v.errors import AudioError, UsageError
from wan_s2v.evaluation import measures
from wan_s2v.evaluation.mouth_reader import OPEN
from wan_s2v.evaluation.readers import Readers, load_readers
from wan_s2v.evaluation.sync import FPS, Sync, compare
from wan_s2v.evaluation.track import Track, encode_sound, observe
from wan_s2v.image import apply_framing, fit_framing, load_image
from wan_s2v.video import read_frames, read_video_info, to_uint8

_Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Evaluation:
    """What was measured on one video, at 16 frames a second. None: not measured; `notes` say why.

    Args:
        num_frames: that were judged.
        sync_offset_frames: by which the picture leads the sound; negative, it lags. sync_confidence: see `sync.Sync`.
        opening: of the mouth in each frame, 0…1.
        opening_correlation, opening_lag_frames, closure_rate: against the known mouth shapes, where there are any.
        closed_in_silence: share of the frames in silences of more than 0.4 s with a shut mouth.
        psnr_db, ssim: mean over the frames, to the reference outside mouth and eyes.
        colour_drift: mean ΔE (CIE 1976) between the colour quantiles of each later clip and the first one, outside
            mouth and eyes.
        first_frames_sharpness: of the first 4 frames, relative to the rest.
        seam_ratio: change where clips begin, relative to that nearby.
        flicker: mean difference from the mean of the neighbouring frames, outside mouth and eyes, in levels of 255.
        length_error_s, length_error_frames: between picture and sound; frames are the video's own.
    """

    num_frames: int
    opening: tuple[float, ...]
    sync_offset_frames: int | None = None
    sync_confidence: float | None = None
    opening_correlation: float | None = None
    opening_lag_frames: int | None = None
    closure_rate: float | None = None
    closed_in_silence: float | None = None
    psnr_db: float | None = None
    ssim: float | None = None
    colour_drift: tuple[float | None, ...] = ()
    first_frames_sharpness: float | None = None
    seam_ratio: float | None = None
    flicker: float | None = None
    length_error_s: float | None = None
    length_error_frames: float | None = None
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain values with as many digits as they deserve."""
        return {name: _rounded(value) for name, value in asdict(self).items()}


def _rounded(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_rounded(item) for item in value]
    return round(value, 4) if isinstance(value, float) else value


def evaluate_video(
    path: str | Path,
    *,
    reference: str | Path | Image.Image | _Pixels | None = None,
    clip_starts: Sequence[int] | None = None,
    truth: NDArray[np.float32] | None = None,
    readers: Readers | None = None,
) -> Evaluation:
    """Measure a video file.

    Frames are judged at the times k / 16 s, the nearest one each; of a video with another rate those between are left
    out. Mouth measures hold for illustrated portraits like those of the embedded model.

    Args:
        reference: the portrait it was made from, cut to the video's shape as `generate` does; else the first frame.
        clip_starts: first frames of its clips, at 16 fps. Without them seams are not measured, and colours are compared
            between stretches of 5 s.
        truth: (T, 6) known mouth shapes at 16 fps.
        readers: to load them once for many videos.
    Raises: UsageError, VideoError or ImageError for a file that cannot be opened or read; CheckpointError without the
        readers' weights.
    """
    path = Path(path)
    readers = readers or load_readers()
    info = read_video_info(path)
    picture = None if reference is None else _fitted(reference, info.height, info.width)
    notes = []
    waveform: NDArray[np.float32] | None = None
    try:
        waveform = load_waveform(path).samples
    except AudioError as error:
        notes.append(f"no lip sync, silence and length: {error}")
    if info.fps < FPS:
        notes.append(f"the video has {float(info.fps):g} frames a second, so some are judged more than once")
    found = evaluate_frames(
        judged_frames(path, info.fps),
        waveform,
        reference=picture,
        clip_starts=clip_starts,
        truth=truth,
        readers=readers,
    )
    if info.audio_duration_s is not None and waveform is not None:
        error_s = abs(float(info.num_frames / info.fps) - info.audio_duration_s)
        found = replace(found, length_error_s=error_s, length_error_frames=error_s * float(info.fps))
    return replace(found, notes=(*notes, *found.notes))


def judged_frames(path: Path, fps: Fraction) -> Iterator[_Pixels]:
    """The frames nearest to the times k / 16 s, of two equally near ones the earlier."""
    count = 0
    for index, frame in enumerate(read_frames(path)):
        while math.ceil(count * fps / FPS - Fraction(1, 2)) == index:
            yield frame
            count += 1


def _fitted(reference: str | Path | Image.Image | _Pixels, height: int, width: int) -> _Pixels:
    image = load_image(reference).image
    return to_uint8(apply_framing(image, fit_framing(image.height, image.width, height, width, "crop"))[None])[0]


def evaluate_frames(
    frames: Iterable[_Pixels],
    waveform: NDArray[np.float32] | None,
    *,
    reference: _Pixels | None = None,
    clip_starts: Sequence[int] | None = None,
    truth: NDArray[np.float32] | None = None,
    readers: Readers | None = None,
) -> Evaluation:
    """Measure frames (H, W, 3) uint8 at 16 fps with their sound (n,) at 16 kHz; arguments as for `evaluate_video`.

    Args:
        reference: (H, W, 3) uint8 of the frames' size.
    """
    readers = readers or load_readers()
    _check_starts(clip_starts)
    starts = range(0, 1 << 40, MAX_FRAMES_PER_CLIP) if clip_starts is None else clip_starts
    track = observe(frames, readers, reference=reference, clip_starts=starts)
    notes = []
    if reference is None:
        notes.append("no reference picture: PSNR and SSIM are measured against the first frame")
    if clip_starts is None and len(track.shapes) > MAX_FRAMES_PER_CLIP:
        notes.append("no clip starts: no seams, and colours are compared between stretches of 5 s")
    opening = track.shapes[:, OPEN]
    silent = _silence(waveform, truth, len(opening))
    sync = _sync(readers, track, waveform)
    if waveform is not None and sync is None:
        notes.append(f"no lip sync: {len(opening) / FPS:.2f} s are too short")
    if waveform is not None and not silent.any():
        notes.append("no mouth in silence: the sound has no silence of more than 0.4 s")
    return replace(
        _against_truth(track, truth),
        sync_offset_frames=None if sync is None else sync.offset,
        sync_confidence=None if sync is None else sync.confidence,
        closed_in_silence=measures.closed_share(opening, silent),
        psnr_db=float(track.psnr.mean()),
        ssim=float(track.ssim.mean()),
        colour_drift=tuple(measures.colour_distance(clip, track.colours[0]) for clip in track.colours[1:]),
        first_frames_sharpness=measures.first_frames_sharpness(track.sharpness),
        seam_ratio=None if clip_starts is None else measures.seam_ratio(track.changes, clip_starts),
        flicker=float(track.flicker.mean()) if len(track.flicker) else None,
        notes=tuple(notes),
    )


def _check_starts(clip_starts: Sequence[int] | None) -> None:
    starts = list(clip_starts or ())
    if any(start < 0 for start in starts) or starts != sorted(set(starts)):
        raise UsageError(f"clip_starts={starts} is not accepted. Pass first frames at 16 fps that rise from 0.")


def _sync(readers: Readers, track: Track, waveform: NDArray[np.float32] | None) -> Sync | None:
    if waveform is None:
        return None
    return compare(track.looks, encode_sound(readers.sync, waveform, len(track.shapes)))


def _silence(
    waveform: NDArray[np.float32] | None, truth: NDArray[np.float32] | None, num_frames: int
) -> NDArray[np.bool_]:
    """(T,) by the known mouth shapes, else by the sound."""
    silent = np.zeros(num_frames, bool)
    if truth is not None:
        known = measures.rest_frames(truth[:num_frames])
        silent[: len(known)] = known
    elif waveform is not None:
        silent = measures.silent_frames(waveform, num_frames)
    return silent


def _against_truth(track: Track, truth: NDArray[np.float32] | None) -> Evaluation:
    num_frames = len(track.shapes)
    opening = tuple(track.shapes[:, OPEN].tolist())
    if truth is None:
        return Evaluation(num_frames, opening)
    count = min(num_frames, len(truth))
    shapes, known = track.shapes[:count], truth[:count]
    return Evaluation(
        num_frames,
        opening,
        opening_correlation=measures.opening_correlation(shapes[:, OPEN], known[:, OPEN]),
        opening_lag_frames=measures.opening_lag(shapes[:, OPEN], known[:, OPEN]),
        closure_rate=measures.closure_rate(shapes, known),
    )
