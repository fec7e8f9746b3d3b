"""Frames, one after the other, into the few numbers a frame that the measures need.

No frame is kept longer than its successor needs it, so memory hardly grows with the length of a video.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wan_s2v.errors import UsageError
from wan_s2v.evaluation import measures
from wan_s2v.evaluation.mouth_reader import Reading, from_square, mouth_crops, square_frames
from wan_s2v.evaluation.readers import Readers
from wan_s2v.evaluation.sync import LOOK_SIZE, WINDOW, SyncScorer, sound_of_frames

_CHUNK = 16  # frames read at once
_SOUND_BLOCK = 256  # frames whose sound is encoded at once

_Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Track:
    """What T frames show.

    Args:
        shapes: (T, 6) as `mouth_reader.SHAPES`. looks: (T - 4, 96) of the sync scorer.
        psnr, ssim: (T,) to the reference, outside mouth and eyes. sharpness: (T,).
        changes: (T - 1,) mean absolute difference of frame k + 1 from frame k, in levels of 255.
        flicker: (T - 2,) of the frames that have two neighbours.
        colours: (clips, 32, 3) mean colour quantiles of each clip, outside mouth and eyes; NaN if nothing is outside.
    """

    shapes: NDArray[np.float32]
    looks: NDArray[np.float32]
    psnr: NDArray[np.float64]
    ssim: NDArray[np.float64]
    sharpness: NDArray[np.float64]
    changes: NDArray[np.float64]
    flicker: NDArray[np.float64]
    colours: NDArray[np.float64]


def observe(
    frames: Iterable[_Pixels], readers: Readers, *, reference: _Pixels | None = None, clip_starts: Sequence[int] = (0,)
) -> Track:
    """Look at every frame once.

    Args:
        frames: (H, W, 3) uint8, all of one size.
        reference: (H, W, 3) uint8; None takes the first frame.
        clip_starts: first frames of the clips for `colours`, rising from 0.
    Raises: UsageError if there is no frame, or the reference has another size.
    """
    observer = _Observer(readers, reference, clip_starts)
    iterator = iter(frames)
    while chunk := list(islice(iterator, _CHUNK)):
        observer.take(np.stack(chunk))
    return observer.track()


class _Observer:
    """Frames in chunks; keeps numbers of all of them, pictures of the last two."""

    def __init__(self, readers: Readers, reference: _Pixels | None, clip_starts: Sequence[int]) -> None:
        self._readers, self._reference, self._clip_starts = readers, reference, clip_starts
        self._device = next(readers.mouth.parameters()).device
        self._shapes: list[NDArray[np.float32]] = []
        self._looks: list[NDArray[np.float32]] = []
        self._crops: Tensor | None = None
        self._rows: list[tuple[float, float, float]] = []
        self._changes: list[float] = []
        self._flicker: list[float] = []
        self._recent: list[tuple[NDArray[np.float32], NDArray[np.bool_]]] = []
        self._colours: list[tuple[NDArray[np.float64], int]] = []  # sum over the frames of a clip, their number

    def take(self, frames: _Pixels) -> None:
        """The next (n, H, W, 3)."""
        boxes = self._read(frames)
        if not self._rows:
            self._prepare_reference(frames[0])
        for frame, (mouth, eyes) in zip(frames, boxes, strict=True):
            height, width = frame.shape[:2]
            self._judge(frame, measures.outside_mask([mouth, eyes], height, width))

    def _read(self, frames: _Pixels) -> Iterator[tuple[NDArray[np.float32], NDArray[np.float32]]]:
        """Mouth and eye boxes of each frame; keeps the shapes and encodes the looks."""
        square, reading = self._reading(frames)
        self._shapes.append(reading.shapes.cpu().numpy())
        crops = mouth_crops(square, reading.mouths, LOOK_SIZE)
        crops = crops if self._crops is None else torch.cat((self._crops, crops))
        if len(crops) >= WINDOW:
            with torch.inference_mode():
                self._looks.append(self._readers.sync.encode_looks(crops[None])[0].cpu().numpy())
        self._crops = crops[-(WINDOW - 1) :]
        height, width = frames.shape[1:3]
        mouths, eyes = (from_square(part, height, width).cpu().numpy() for part in (reading.mouths, reading.eyes))
        return zip(mouths, eyes, strict=True)

    def _reading(self, frames: _Pixels) -> tuple[Tensor, Reading]:
        """The frames' middle squares, and what they show with boxes in 0…1 of these."""
        pixels = torch.from_numpy(frames).to(self._device).permute(0, 3, 1, 2)
        square = square_frames(pixels.float() / 127.5 - 1)
        with torch.inference_mode():
            return square, self._readers.mouth(square)

    def _prepare_reference(self, first: _Pixels) -> None:
        reference = first if self._reference is None else self._reference
        if reference.shape != first.shape:
            raise UsageError(
                f"The reference has shape {reference.shape}, the frames {first.shape}. Resize it to the frames' size."
            )
        _, reading = self._reading(reference[None])
        height, width = reference.shape[:2]
        boxes = [from_square(part, height, width)[0].cpu().numpy() for part in (reading.mouths, reading.eyes)]
        self._reference, self._reference_luma = reference, measures.luma(reference)
        self._reference_mask = measures.outside_mask(boxes, height, width)

    def _judge(self, frame: _Pixels, outside: NDArray[np.bool_]) -> None:
        assert self._reference is not None
        brightness, both = measures.luma(frame), outside & self._reference_mask
        self._rows.append(
            (
                measures.psnr(frame, self._reference, both),
                measures.ssim(brightness, self._reference_luma, both),
                measures.sharpness(brightness),
            )
        )
        if len(self._rows) - 1 in self._clip_starts or not self._colours:
            self._colours.append((np.zeros(()), 0))
        total, count = self._colours[-1]
        self._colours[-1] = (total + measures.colour_quantiles(frame, outside), count + 1)
        if self._recent:
            self._changes.append(float(np.abs(brightness - self._recent[-1][0]).mean()))
        if len(self._recent) == 2:
            (before, _), (middle, mask) = self._recent
            self._flicker.append(measures.flicker(before, middle, brightness, mask))
        self._recent = [*self._recent[-1:], (brightness, outside)]

    def track(self) -> Track:
        if not self._rows:
            raise UsageError("There is no frame to evaluate. Pass at least one.")
        psnr, ssim, sharpness = np.array(self._rows).T
        colours = np.stack([total / count for total, count in self._colours])
        looks = np.concatenate(self._looks) if self._looks else np.zeros((0, 1), np.float32)
        changes, flicker = np.array(self._changes), np.array(self._flicker)
        return Track(np.concatenate(self._shapes), looks, psnr, ssim, sharpness, changes, flicker, colours)


def encode_sound(scorer: SyncScorer, waveform: NDArray[np.float32], num_frames: int) -> NDArray[np.float32]:
    """(T - 4, 96) of the sync scorer for 16 kHz sound, row k for the same frame as row k of `Track.looks`."""
    device = next(scorer.parameters()).device
    parts = []
    for first in range(0, num_frames - WINDOW + 1, _SOUND_BLOCK):
        count = min(_SOUND_BLOCK + WINDOW - 1, num_frames - first)
        sound = torch.from_numpy(sound_of_frames(waveform, first, count)).to(device)
        with torch.inference_mode():
            parts.append(scorer.encode_sounds(sound[None])[0].cpu().numpy())
    return np.concatenate(parts) if parts else np.zeros((0, 1), np.float32)
