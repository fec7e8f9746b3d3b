"""Pose videos at the model's rate, decoded on demand."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Literal

import av
import torch
from torch import Tensor

from wan_s2v.errors import VideoError
from wan_s2v.image import Framing, frame_tensor
from wan_s2v.video import opened, rgb_pixels, stream_rate


class PoseVideo:
    """A video's frames at the model's rate, decoded on demand.

    Reading forward decodes every source frame once and holds two of them; reading backward starts the file again.

    Args:
        fps: of the model, 16.
        timing: "reference" takes every n-th frame, n = max(1, round(stream fps / fps)), as Wan-Video/Wan2.2
            `wan/speech2video.py`, which drifts where the rates do not divide. "aligned" takes the frame nearest in
            time, by the file's time stamps, so that it is never more than half a source frame off.
    Attributes:
        height, width: of the frames as displayed.
    Raises: UsageError for a path that cannot be opened; VideoError, here or while reading, for content that cannot be
        decoded.
    """

    def __init__(self, path: str | Path, fps: int, *, timing: Literal["aligned", "reference"]) -> None:
        self._path, self._fps, self._timing = Path(path), fps, timing
        self._num_frames: int | None = None
        self._frames = self._model_frames()
        self._index, self._frame = 0, next(self._frames, None)
        if self._frame is None:
            raise VideoError(f"{path} holds no frame that can be decoded. Pass another pose video.")
        self._stored_size = (self._frame.height, self._frame.width)
        self.height, self.width = rgb_pixels(self._frame).shape[:2]

    @property
    def num_frames(self) -> int:
        """Frames at the model's rate, from the time stamps of all packets; found at first use, without decoding."""
        if self._num_frames is None:
            with opened(self._path) as container:
                stream = container.streams.video[0]
                rate = stream_rate(stream, self._path)
                stamps = [p.pts for p in container.demux(stream) if p.size and not p.is_discard]
                if self._timing == "reference":
                    self._num_frames = -(-len(stamps) // self._step(rate))
                else:
                    known = [s for s in stamps if s is not None]
                    tick = stream.time_base or Fraction(0)
                    last = (max(known) - min(known)) * tick if known else (len(stamps) - 1) / rate
                    self._num_frames = -int(-(last + 1 / rate) * self._fps // 1)
        return self._num_frames

    def read(self, start: int, count: int, framing: Framing | None = None) -> Tensor:
        """Frames [start, start + count) at the model's rate.

        Args:
            start: may be negative: the first frame is repeated before the beginning.
            framing: geometry applied to each frame as it is read, so that a large video is never held at full size.
        Returns: (count, 3, H, W) float32 in [-1, 1]; frames past the end are -1 (black), also where `framing` pads.
        """
        size = (framing.height, framing.width) if framing else (self.height, self.width)
        result = torch.full((count, 3, *size), -1.0)
        for row, index in enumerate(range(start, start + count)):
            frame = self._frame_at(max(index, 0))
            if frame is None:
                break
            pixels = torch.from_numpy(rgb_pixels(frame, self._stored_size)).permute(2, 0, 1)[None].float() / 255 * 2 - 1
            result[row] = (frame_tensor(pixels, framing) if framing else pixels)[0]
        return result

    def close(self) -> None:
        """Release the file; a later read opens it again."""
        self._frames.close()
        self._frames, self._index, self._frame = self._model_frames(), -1, None

    def _frame_at(self, index: int) -> av.VideoFrame | None:
        if index < self._index:
            self.close()
        while self._index < index:
            self._frame = next(self._frames, None)
            self._index += 1
            if self._frame is None:
                self._index = max(self._index, index)
        return self._frame

    def _step(self, rate: Fraction) -> int:
        return max(1, round(rate / self._fps))

    def _model_frames(self) -> Generator[av.VideoFrame, None, None]:
        with opened(self._path) as container:
            stream = container.streams.video[0]
            rate = stream_rate(stream, self._path)
            if self._timing == "reference":
                yield from islice(container.decode(stream), 0, None, self._step(rate))
            else:
                yield from _nearest_frames(container.decode(stream), rate, self._fps)


def _nearest_frames(frames: Iterator[av.VideoFrame], rate: Fraction, fps: int) -> Iterator[av.VideoFrame]:
    """For k = 0, 1, ... while k / fps lies inside the video: the frame nearest in time, the earlier of two."""
    index, zero, shown = 0, None, None
    time, shown_time = Fraction(0), Fraction(0)
    for number, frame in enumerate(frames):
        stamp = number / rate if frame.pts is None or not frame.time_base else frame.pts * frame.time_base
        zero = stamp if zero is None else zero
        time = stamp - zero
        while shown is not None and Fraction(index, fps) <= (shown_time + time) / 2:
            yield shown
            index += 1
        shown, shown_time = frame, time
    while shown is not None and Fraction(index, fps) < shown_time + 1 / rate:
        yield shown
        index += 1
