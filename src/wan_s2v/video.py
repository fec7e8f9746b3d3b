"""Frames + sound -> mp4, and videos back into frames.

Everything streams: frames go into the encoder as they come, sound is decoded beside them, pose videos are read forward.
A result appears under its name only when it is complete and has been read back. Nothing here knows of the model.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType

import av
import numpy as np
import torch
from av.video.reformatter import ColorRange, Colorspace
from torch import Tensor

from wan_s2v.errors import OutputError, UsageError, VideoError, reason_of
from wan_s2v.marking import Marking
from wan_s2v.sound_span import WHOLE, SoundSpan
from wan_s2v.sound_track import AUDIO_RATE, AV_ERRORS, AudioSource, SoundSource, SoundTrack

# The tags that mp4 players and ffprobe show; FFmpeg drops any other without a word.
MP4_TAGS = ("title", "artist", "comment", "description", "synopsis", "copyright", "genre", "date", "album")
_BT709 = 1  # the number H.264 and mp4 store for these primaries, transfer and matrix
_LIMITED_RANGE = 1


@dataclass(frozen=True)
class VideoInfo:
    """What a video file holds, found by decoding all of it; height and width as displayed."""

    height: int
    width: int
    num_frames: int
    fps: Fraction
    duration_s: float
    audio_duration_s: float | None
    sample_rate: int | None
    video_codec: str
    audio_codec: str | None
    pixel_format: str


@contextmanager
def opened(path: Path) -> Iterator[av.container.InputContainer]:
    """The container, whose errors while open become VideoError.

    It is given an open file and no protocols, so that a playlist cannot name other files or addresses.
    """
    try:
        file = path.open("rb")
    except FileNotFoundError:
        raise UsageError(f"There is no video at {path}. Check the path.") from None
    except IsADirectoryError:
        raise UsageError(f"{path} is a folder, not a video. Pass a file (mp4, mov, mkv, webm).") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the name
        raise UsageError(f"Video {path} cannot be opened ({reason_of(error)}). Check the path.") from error
    try:
        with file, av.open(file, metadata_errors="replace", options={"protocol_whitelist": "none"}) as container:
            if not container.streams.video:
                raise VideoError(f"{path} has no video stream. Pass a video (mp4, mov, mkv, webm).")
            container.streams.video[0].thread_type = "AUTO"
            yield container
    except AV_ERRORS as error:
        raise VideoError(
            f"{path} cannot be decoded as video ({reason_of(error)}). Pass another file or export it again as mp4."
        ) from error


def stream_rate(stream: av.VideoStream, path: Path) -> Fraction:
    rate = stream.average_rate or stream.guessed_rate
    if not rate:
        raise VideoError(f"{path} states no frame rate. Export it again as mp4.")
    return Fraction(rate)


def rgb_pixels(frame: av.VideoFrame, size: tuple[int, int] | None = None) -> np.ndarray:
    """(H, W, 3) uint8, upright; `size` (height, width) as stored holds frames of a changing stream to one size."""
    height, width = size or (frame.height, frame.width)
    pixels = frame.reformat(width=width, height=height, format="rgb24").to_ndarray()
    # Phones store pictures lying on their side; PyAV 13 does not tell.
    turns = round(getattr(frame, "rotation", 0) / 90)
    return np.ascontiguousarray(np.rot90(pixels, turns)) if turns else pixels


def read_frames(path: str | Path) -> Iterator[np.ndarray]:
    """Every frame, upright, as (H, W, 3) uint8 RGB.

    Raises: UsageError for a path that cannot be opened; VideoError for content that cannot be decoded.
    """
    with opened(Path(path)) as container:
        size = None
        for frame in container.decode(video=0):
            size = size or (frame.height, frame.width)
            yield rgb_pixels(frame, size)


def read_video_info(path: str | Path) -> VideoInfo:
    """What the file holds; `num_frames` is counted by decoding.

    Raises: UsageError for a path that cannot be opened; VideoError for content that cannot be decoded.
    """
    path = Path(path)
    with opened(path) as container:
        stream = container.streams.video[0]
        audio = container.streams.audio[0] if container.streams.audio else None
        fps, num_frames, first = stream_rate(stream, path), 0, None
        for frame in container.decode(stream):
            first = first or frame
            num_frames += 1
        if first is None:
            raise VideoError(f"{path} holds no frame that can be decoded. Pass another file.")
        height, width = first.height, first.width
        if round(getattr(first, "rotation", 0) / 90) % 2:
            height, width = width, height
        return VideoInfo(
            height,
            width,
            num_frames,
            fps,
            _stream_duration(stream, container) or float(num_frames / fps),
            _stream_duration(audio, container) if audio else None,
            audio.codec_context.sample_rate if audio else None,
            stream.codec_context.name,
            audio.codec_context.name if audio else None,
            first.format.name,
        )


def _stream_duration(stream: av.VideoStream | av.AudioStream, container: av.container.InputContainer) -> float | None:
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    return container.duration / av.time_base if container.duration else None


def to_uint8(frames: Tensor) -> np.ndarray:
    """Frames (3, T, H, W) or (T, 3, H, W) in [-1, 1] -> (T, H, W, 3) uint8, truncated as in the official code.

    A tensor (3, 3, H, W) is taken as (3, T, H, W).
    """
    if frames.ndim != 4 or 3 not in frames.shape[:2]:
        raise UsageError(f"Frames of shape {tuple(frames.shape)} are not accepted. Pass (3, T, H, W) or (T, 3, H, W).")
    levels = frames.detach().float().clamp(-1, 1).add_(1).div_(2).mul_(255).to(torch.uint8)
    return levels.permute((1, 2, 3, 0) if frames.shape[0] == 3 else (0, 2, 3, 1)).contiguous().cpu().numpy()


def check_output_path(path: str | Path, *, overwrite: bool = True) -> None:
    """Find out, before any work, that a result can be written to `path`; nothing stays behind.

    Raises: UsageError for another extension than .mp4, a missing folder, a folder in the file's place, or an existing
        file with overwrite=False; OutputError if the folder cannot be written to.
    """
    path = Path(path)
    if path.suffix.lower() != ".mp4":
        raise UsageError(f'Output "{path}" does not end in .mp4, the one format that is written. Rename it.')
    try:
        with suppress(FileNotFoundError, NotADirectoryError):
            path.lstat()
    except (OSError, ValueError) as error:  # too long a name, a loop of links, a NUL character
        raise UsageError(
            f"Output {str(path)[:200]} is not usable ({reason_of(error)}). Choose another path."
        ) from error
    if path.is_dir():
        raise UsageError(f"Output {path} is a folder. Add a file name, such as {path / 'result.mp4'}.")
    if not path.parent.is_dir():
        raise UsageError(f"Folder {path.parent} does not exist. Create it, or choose another output path.")
    if not overwrite and path.exists():
        raise UsageError(f"Output {path} exists already. Choose another name, or allow overwriting.")
    _create_temporary(path).unlink()


def _create_temporary(path: Path) -> Path:
    """A new empty file beside `path`: only inside one folder is replacing the old file a single step."""
    temporary = path.absolute().parent / f".{secrets.token_hex(6)}.mp4"
    try:
        if not os.access(temporary.parent, os.W_OK | os.X_OK):
            raise PermissionError(13, "Permission denied")
        temporary.open("xb").close()
    except OSError as error:
        raise OutputError(
            f"Folder {path.parent} cannot be written to ({reason_of(error)}). Choose another output path."
        ) from error
    return temporary


class VideoWriter:
    """Frames and sound -> one mp4: H.264 at crf 10 (the official quality) and AAC 192 kb/s at 48 kHz.

    Used as a context manager, or closed by hand. The file takes its name in `close`, after it has been read back; when
    anything fails nothing is left behind and a file of that name from before stays as it was.

    Args:
        audio: a file with sound, of which the first audio stream is decoded piece by piece, or an array (n,),
            (n, channels) or (channels, n) with its sample rate; None for a silent film. It starts with the first frame
            and is cut, or padded with silence, to the length of the video. More than two channels become stereo.
        span: the stretch of the sound to take.
        metadata: tags out of `MP4_TAGS`.
        marking: labels of the file, its signature, and the mark on its frames.
    Raises: UsageError for a path, size, rate or tag that is not accepted; AudioError if the sound cannot be read;
        OutputError, here or later, if the result cannot be written.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        height: int,
        width: int,
        fps: int | Fraction,
        audio: AudioSource | None = None,
        span: SoundSpan = WHOLE,
        metadata: dict[str, str] | None = None,
        marking: Marking | None = None,
    ) -> None:
        unknown = [tag for tag in metadata or {} if tag not in MP4_TAGS]
        if height % 2 or width % 2 or min(height, width) < 16:
            raise UsageError(f"A frame of {width}x{height} cannot be written. Both sides must be even and at least 16.")
        if fps <= 0:
            raise UsageError(f"fps={fps} is not accepted. Pass a positive rate, such as 24.")
        if unknown:
            raise UsageError(f"mp4 does not keep the tag {unknown[0]}. Accepted: {', '.join(MP4_TAGS)}.")
        check_output_path(path)
        self._path, self._height, self._width, self._fps = Path(path), height, width, Fraction(fps)
        self._num_frames, self._marking = 0, marking
        self._mark = None if marking is None else marking.mark_for(height, width)
        self._sound = None if audio is None else SoundSource(audio, span)
        self._temporary = _create_temporary(self._path)
        try:
            # The second flag keeps tags that mp4 does not know, such as AIGC.
            flags = {"movflags": "+faststart" if marking is None else "+faststart+use_metadata_tags"}
            # "file:" keeps a colon in the path from being read as a protocol.
            self._container = av.open(f"file:{self._temporary}", "w", format="mp4", options=flags)
            self._container.metadata.update((metadata or {}) | ({} if marking is None else marking.tags))
            self._video = self._add_video()
            self._audio = None if self._sound is None else SoundTrack(self._container, self._sound)
        except (*AV_ERRORS, ValueError) as error:  # ValueError: an FFmpeg without this encoder
            self._temporary.unlink(missing_ok=True)
            raise self._failure(error) from error

    def _add_video(self) -> av.VideoStream:
        stream = self._container.add_stream("libx264", rate=self._fps, options={"crf": "10", "preset": "medium"})
        stream.width, stream.height, stream.pix_fmt = self._width, self._height, "yuv420p"
        context = stream.codec_context
        context.time_base = 1 / self._fps
        context.color_primaries = context.color_trc = context.colorspace = _BT709
        context.color_range = _LIMITED_RANGE
        return stream

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self._abandon()

    def write(self, frames: np.ndarray) -> None:
        """Append (T, H, W, 3) uint8 RGB frames; on failure the whole file is given up."""
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[1:] != (self._height, self._width, 3):
            raise UsageError(
                f"Frames {frames.dtype}{tuple(frames.shape)} do not fit this video. Pass uint8 "
                f"(T, {self._height}, {self._width}, 3)."
            )
        with self._giving_up_on_failure():
            for plain in frames:
                pixels = plain if self._mark is None else self._mark.drawn_on(plain)
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24").reformat(
                    format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG
                )
                frame.pts, frame.time_base = self._num_frames, 1 / self._fps
                self._container.mux(self._video.encode(frame))
                self._num_frames += 1
                if self._audio:  # beside the picture: a muxer holds back one stream until the other has caught up
                    self._audio.write_until(self._num_samples)

    @property
    def _num_samples(self) -> int:
        return round(self._num_frames * AUDIO_RATE / self._fps)

    def close(self) -> None:
        """Finish the file, read it back and give it its name; a second call does nothing."""
        if not self._temporary.exists():
            return
        with self._giving_up_on_failure():
            if not self._num_frames:
                raise OutputError(f"No frame was written to {self._path}. Write at least one before closing.")
            self._container.mux(self._video.encode(None))
            if self._audio:
                self._audio.finish(self._num_samples)
            self._container.close()
            if self._marking is not None:
                self._marking.finish(self._temporary)
            verify_video(
                self._temporary, self._num_frames, self._fps, self._height, self._width, self._audio is not None
            )
            os.replace(self._temporary, self._path)

    @contextmanager
    def _giving_up_on_failure(self) -> Iterator[None]:
        done = False
        try:
            yield
            done = True
        except AV_ERRORS as error:
            raise self._failure(error) from error
        finally:
            if not done:
                self._abandon()

    def _failure(self, error: BaseException) -> OutputError:
        return OutputError(f"{self._path} cannot be written ({reason_of(error)}). Free space or choose another path.")

    def _abandon(self) -> None:
        if self._sound:
            self._sound.close()
        with suppress(*AV_ERRORS, ValueError):  # a trailer cannot be written to a broken file or a full disk
            self._container.close()
        self._temporary.unlink(missing_ok=True)


def verify_video(
    path: str | Path, num_frames: int, fps: int | Fraction, height: int, width: int, has_audio: bool
) -> None:
    """Open a finished file again and compare it with what was asked for.

    Raises: OutputError that names the first difference, or says that the file cannot be read.
    """
    try:
        info = read_video_info(path)
    except (VideoError, UsageError) as error:
        raise OutputError(f"The written video cannot be read back ({error}) Write it again.") from error
    frame_s = float(1 / Fraction(fps))
    found = {
        "frames": info.num_frames,
        "height": info.height,
        "width": info.width,
        "fps": info.fps,
        "sound": info.audio_duration_s is not None,
    }
    asked = {"frames": num_frames, "height": height, "width": width, "fps": Fraction(fps), "sound": has_audio}
    for name, value in found.items():
        # Rates that mp4's clock cannot state exactly come back as the nearest fraction.
        same = abs(info.fps - Fraction(fps)) <= Fraction(fps) / 1000 if name == "fps" else value == asked[name]
        if not same:
            raise OutputError(f"The written video has {name} {value} instead of {asked[name]}. Write it again.")
    if info.audio_duration_s is not None and abs(info.audio_duration_s - info.duration_s) >= frame_s:
        raise OutputError(
            f"The written video lasts {info.duration_s:.3f} s, its sound {info.audio_duration_s:.3f} s. Write it again."
        )


def write_video(
    path: str | Path,
    frames: np.ndarray,
    fps: int | Fraction,
    *,
    audio: AudioSource | None = None,
    metadata: dict[str, str] | None = None,
    marking: Marking | None = None,
) -> None:
    """Write (T, H, W, 3) uint8 frames and sound as one mp4; see `VideoWriter`."""
    if frames.ndim != 4:
        raise UsageError(f"Frames of shape {tuple(frames.shape)} are not accepted. Pass (T, H, W, 3).")
    with VideoWriter(
        path,
        height=frames.shape[1],
        width=frames.shape[2],
        fps=fps,
        audio=audio,
        metadata=metadata,
        marking=marking,
    ) as writer:
        writer.write(frames)
