"""Held-out clips to look at: whole frames, and mouths from near, one strip a clip, joined into sheets."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
import torch
from embedded_clips import Made, readers
from numpy.typing import NDArray
from PIL import Image

from wan_s2v.evaluation.mouth_reader import OPEN, mouth_crops, square_frames

NUM_CLIPS: Final = 30
_MOMENTS: Final = 8
_MOUTH_FRAMES: Final = 12  # in a row, so that flicker shows
_FRAME_SIZE: Final = 128
_MOUTH_SIZE: Final = (90, 120)
_COLUMNS: Final = 2
_GAP: Final = 8
_QUALITY: Final = 92

_Pixels = NDArray[np.uint8]


def write_strips(made: Made, folder: Path) -> None:
    """The two strips of one clip: the reference and 8 moments; 12 mouths in a row, rendered above generated."""
    folder.mkdir(parents=True, exist_ok=True)
    index = made.sample.task.index
    moments = np.linspace(0, len(made.frames) - 1, _MOMENTS).astype(int)
    frames = [Image.fromarray(frame) for frame in (made.sample.reference, *made.frames[moments])]
    small = [np.asarray(frame.resize((_FRAME_SIZE, _FRAME_SIZE), Image.Resampling.LANCZOS)) for frame in frames]
    _save(np.concatenate(small, axis=1), _strip(folder, "frames", index))
    if made.sample.film is not None and made.sample.truth is not None:
        widest = int(np.argmax(made.sample.truth[: len(made.frames), OPEN]))
        first = max(0, min(widest - _MOUTH_FRAMES // 2, len(made.frames) - _MOUTH_FRAMES))
        rows = [_mouths(video[first : first + _MOUTH_FRAMES]) for video in (made.sample.film, made.frames)]
        _save(np.concatenate(rows), _strip(folder, "mouths", index))


def _mouths(frames: _Pixels) -> _Pixels:
    """(90, n · 120, 3): the mouths of n frames (n, H, W, 3)."""
    square = square_frames(torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 127.5 - 1)
    with torch.inference_mode():
        crops = mouth_crops(square, readers().mouth(square).mouths, _MOUTH_SIZE)
    pixels = ((crops + 1) * 127.5).round().clamp(0, 255).byte()
    return np.concatenate(list(pixels.permute(0, 2, 3, 1).numpy()), axis=1)


def _strip(folder: Path, what: str, index: int) -> Path:
    return folder / f"{what}-{index:03d}.jpg"


def _save(pixels: _Pixels, path: Path) -> None:
    Image.fromarray(pixels).save(path, quality=_QUALITY)


def join_strips(folder: Path, what: str, target: Path) -> int:
    """Write the sheet of all "frames" or "mouths" strips in the folder; returns how many there are."""
    strips = [Image.open(path) for path in sorted(folder.glob(f"{what}-*.jpg"))]
    if not strips:
        return 0
    rows = -(-len(strips) // _COLUMNS)
    width, height = (max(strip.size[axis] for strip in strips) + _GAP for axis in (0, 1))
    sheet = Image.new("RGB", (_COLUMNS * width - _GAP, rows * height - _GAP), "white")
    for number, strip in enumerate(strips):
        sheet.paste(strip, (number // rows * width, number % rows * height))
    target.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(target)
    return len(strips)
