"""What can be seen of a video while it is made: a film that grows by every clip, and a small picture of every step.

The film is encoded apart from the result, fast and without looking ahead, so that a clip is in it as soon as it is
made; its fragments play although the file has no end yet.
"""

from __future__ import annotations

import os
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Final

import av
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from wan_s2v.errors import OutputError, reason_of
from wan_s2v.sound_span import SoundSpan
from wan_s2v.sound_track import AUDIO_RATE, AV_ERRORS, AudioSource, SoundSource, SoundTrack

# The muxer holds a fragment of 50 ms back, and with the header waits for the sound, whose first samples lie before 0.
_FRAGMENTED: Final = {
    "movflags": "empty_moov+default_base_moof+delay_moov",
    "frag_duration": "50000",
    "flush_packets": "1",
}
_FAST: Final = {"preset": "veryfast", "tune": "zerolatency", "crf": "23"}
_RIDGE: Final = 1e-3
_PICTURE_SIDE: Final = 256  # pixels, about, of the longer side


class GrowingVideo:
    """Frames and sound in a file that plays at any time: fragmented mp4.

    Args:
        path: written anew.
        audio, span: as `VideoWriter` takes them.
    Raises: OutputError, here or later, if it cannot be written.
    """

    def __init__(
        self, path: Path, *, height: int, width: int, fps: Fraction, audio: AudioSource, span: SoundSpan
    ) -> None:
        self._path, self._fps, self._num_frames = path, fps, 0
        self._sound = SoundSource(audio, span)
        try:
            self._container = av.open(f"file:{path}", "w", format="mp4", options=_FRAGMENTED)
            self._video = self._container.add_stream("libx264", rate=fps, options=_FAST)
            self._video.width, self._video.height, self._video.pix_fmt = width, height, "yuv420p"
            self._video.codec_context.time_base = 1 / fps
            self._audio = SoundTrack(self._container, self._sound)
        except AV_ERRORS as error:
            raise self._failure(error) from error

    def __enter__(self) -> GrowingVideo:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._container.mux(self._video.encode(None))
                self._audio.finish(self._num_samples)
            self._container.close()
        except AV_ERRORS as failure:
            if kind is None:
                raise self._failure(failure) from failure
        finally:
            self._sound.close()

    def write(self, frames: np.ndarray) -> None:
        """Append (T, H, W, 3) uint8 frames; all but the last two or three play from now on."""
        try:
            for pixels in frames:
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
                frame.pts, frame.time_base = self._num_frames, 1 / self._fps
                self._container.mux(self._video.encode(frame))
                self._num_frames += 1
                self._audio.write_until(self._num_samples)
        except AV_ERRORS as error:
            raise self._failure(error) from error

    @property
    def _num_samples(self) -> int:
        return round(self._num_frames * AUDIO_RATE / self._fps)

    def _failure(self, error: BaseException) -> OutputError:
        return OutputError(f"Preview {self._path} cannot be written ({reason_of(error)}). Free space or leave it out.")


class StepPicture:
    """A small picture of what the steps of a clip have come to, over and over in one file.

    How latents look is learned from the reference: its pixels as a linear map of its latents, by least squares.

    Args:
        path: of a .png, which is replaced in one step.
        reference: (3, H, W) in [-1, 1].
    """

    def __init__(self, path: Path, reference: Tensor) -> None:
        self._path, self._reference = path, reference
        self._colours: Tensor | None = None

    def show(self, denoised: Tensor, reference_latents: Tensor) -> None:
        """Write the middle of a clip.

        Args:
            denoised: (1, C, F, h, w).
            reference_latents: (C, 1, h, w).
        Raises: OutputError if it cannot be written.
        """
        if self._colours is None:
            self._colours = fitted_colours(reference_latents[:, 0].float().cpu(), self._reference)
        latents = denoised[0, :, denoised.shape[2] // 2].float().cpu()
        pixels = (self._colours @ _with_ones(latents)).unflatten(1, latents.shape[1:]).clamp(-1, 1)
        scale = max(1, round(_PICTURE_SIDE / max(pixels.shape[1:])))
        levels = ((pixels + 1) * 127.5).to(torch.uint8).permute(1, 2, 0).numpy()
        picture = Image.fromarray(levels).resize(
            (levels.shape[1] * scale, levels.shape[0] * scale), Image.Resampling.BICUBIC
        )
        temporary = self._path.with_name(f".{self._path.name}")
        try:
            picture.save(temporary, format="PNG")
            os.replace(temporary, self._path)
        except OSError as error:
            raise OutputError(f"Preview {self._path} cannot be written ({reason_of(error)}). Free space.") from error


def fitted_colours(latents: Tensor, pixels: Tensor) -> Tensor:
    """(3, C + 1): red, green and blue as linear maps of latents and one, from a picture known as both.

    Args:
        latents: (C, h, w) float32.
        pixels: (3, H, W).
    """
    wanted = F.interpolate(pixels[None].float(), latents.shape[1:], mode="area")[0].flatten(1)
    known = _with_ones(latents)
    gram = known @ known.T + _RIDGE * known.shape[1] * torch.eye(len(known))
    return torch.linalg.solve(gram, known @ wanted.T).T


def _with_ones(latents: Tensor) -> Tensor:
    """(C + 1, h·w)."""
    flat = latents.flatten(1)
    return torch.cat((flat, torch.ones(1, flat.shape[1])))
