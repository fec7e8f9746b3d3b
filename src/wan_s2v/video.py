"""Frames + sound -> mp4, and videos back into frames.

Everything streams: frames go into the encoder as they come, sound is decoded beside them, pose videos are read forward.
A result appears under its name only when it is complete and has been read back. Nothing here knows of the model.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain, islice
from pathlib import Path
from types import TracebackType
from typing import Literal

import av
import numpy as np
import torch
from av.video.reformatter import ColorRange, Colorspace
from torch import Tensor

from wan_s2v.errors import AudioError, OutputError, UsageError, VideoError
from wan_s2v.image import Framing, frame_tensor

AudioSource = str | Path | tuple[np.ndarray, int]

AUDIO_RATE = 48_000
AUDIO_BIT_RATE = 192_000
AAC_FRAME = 1024  # samples
# The tags that mp4 players and ffprobe show; FFmpeg drops any other without a word.
MP4_TAGS = ("title", "artist", "comment", "description", "synopsis", "copyright", "genre", "date", "album")
_BT709 = 1  # the number H.264 and mp4 store for these primaries, transfer and matrix
_LIMITED_RANGE = 1
_AV_ERRORS = (av.error.FFmpegError, OSError)


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


def _reason(error: BaseException) -> str:
    return getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__


@contextmanager
def _opened(path: Path) -> Iterator[av.container.InputContainer]:
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
        raise UsageError(f"Video {path} cannot be opened ({_reason(error)}). Check the path.") from error
    try:
        with file, av.open(file, metadata_errors="replace", options={"protocol_whitelist": "none"}) as container:
            if not container.streams.video:
                raise VideoError(f"{path} has no video stream. Pass a video (mp4, mov, mkv, webm).")
            container.streams.video[0].thread_type = "AUTO"
            yield container
    except _AV_ERRORS as error:
        raise VideoError(
            f"{path} cannot be decoded as video ({_reason(error)}). Pass another file or export it again as mp4."
        ) from error


def _stream_rate(stream: av.VideoStream, path: Path) -> Fraction:
    rate = stream.average_rate or stream.guessed_rate
    if not rate:
        raise VideoError(f"{path} states no frame rate. Export it again as mp4.")
    return Fraction(rate)


def _rgb(frame: av.VideoFrame, size: tuple[int, int] | None = None) -> np.ndarray:
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
    with _opened(Path(path)) as container:
        size = None
        for frame in container.decode(video=0):
            size = size or (frame.height, frame.width)
            yield _rgb(frame, size)


def read_video_info(path: str | Path) -> VideoInfo:
    """What the file holds; `num_frames` is counted by decoding.

    Raises: UsageError for a path that cannot be opened; VideoError for content that cannot be decoded.
    """
    path = Path(path)
    with _opened(path) as container:
        stream = container.streams.video[0]
        audio = container.streams.audio[0] if container.streams.audio else None
        fps, num_frames, first = _stream_rate(stream, path), 0, None
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
        self.height, self.width = _rgb(self._frame).shape[:2]

    @property
    def num_frames(self) -> int:
        """Frames at the model's rate, from the time stamps of all packets; found at first use, without decoding."""
        if self._num_frames is None:
            with _opened(self._path) as container:
                stream = container.streams.video[0]
                rate = _stream_rate(stream, self._path)
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
            pixels = torch.from_numpy(_rgb(frame, self._stored_size)).permute(2, 0, 1)[None].float() / 255 * 2 - 1
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
        with _opened(self._path) as container:
            stream = container.streams.video[0]
            rate = _stream_rate(stream, self._path)
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
        raise UsageError(f"Output {str(path)[:200]} is not usable ({_reason(error)}). Choose another path.") from error
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
            f"Folder {path.parent} cannot be written to ({_reason(error)}). Choose another output path."
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
        metadata: tags out of `MP4_TAGS`.
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
        metadata: dict[str, str] | None = None,
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
        self._num_frames = 0
        self._sound = None if audio is None else _SoundSource(audio)
        self._temporary = _create_temporary(self._path)
        try:
            # "file:" keeps a colon in the path from being read as a protocol.
            self._container = av.open(f"file:{self._temporary}", "w", format="mp4", options={"movflags": "+faststart"})
            self._container.metadata.update(metadata or {})
            self._video = self._add_video()
            self._audio = None if self._sound is None else _SoundTrack(self._container, self._sound)
        except (*_AV_ERRORS, ValueError) as error:  # ValueError: an FFmpeg without this encoder
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
            for pixels in frames:
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
        except _AV_ERRORS as error:
            raise self._failure(error) from error
        finally:
            if not done:
                self._abandon()

    def _failure(self, error: BaseException) -> OutputError:
        return OutputError(f"{self._path} cannot be written ({_reason(error)}). Free space or choose another path.")

    def _abandon(self) -> None:
        if self._sound:
            self._sound.close()
        with suppress(*_AV_ERRORS, ValueError):  # a trailer cannot be written to a broken file or a full disk
            self._container.close()
        self._temporary.unlink(missing_ok=True)


class _SoundSource:
    """The user's sound as (channels, n) float32 blocks at 48 kHz, mono or stereo, decoded as it is asked for."""

    def __init__(self, audio: AudioSource) -> None:
        if isinstance(audio, (str, Path)):
            name, frames = str(audio), _file_frames(Path(audio))
        else:
            name, frames = "The given waveform", _array_frames(*audio)
        first = next(frames, None)
        if first is None:
            raise AudioError(f"{name} holds no sound that can be decoded. Pass a file with sound.")
        self._frames, self._first = frames, first
        self.num_channels = min(first.layout.nb_channels, 2)
        self._blocks = self._resampled()
        self._pending = np.zeros((self.num_channels, 0), np.float32)

    def take(self, num_samples: int) -> np.ndarray:
        """The next samples, silence after the end."""
        while self._pending.shape[1] < num_samples:
            block = next(self._blocks, None)
            if block is None:
                block = np.zeros((self.num_channels, num_samples - self._pending.shape[1]), np.float32)
            self._pending = np.concatenate([self._pending, block], axis=1)
        taken, self._pending = self._pending[:, :num_samples], self._pending[:, num_samples:]
        return taken

    def close(self) -> None:
        """Release the file."""
        self._blocks.close()
        self._frames.close()

    def _resampled(self) -> Generator[np.ndarray, None, None]:
        setup, resampler = None, None
        for frame in chain([self._first], self._frames):
            # Rate or channels may change inside a file (chained ogg); a resampler keeps to what it saw first.
            if setup != (frame.format.name, frame.layout.name, frame.sample_rate):
                yield from _arrays(resampler, None)
                setup = (frame.format.name, frame.layout.name, frame.sample_rate)
                layout = "mono" if self.num_channels == 1 else "stereo"
                resampler = av.AudioResampler(format="fltp", layout=layout, rate=AUDIO_RATE)
            frame.pts = None  # blocks follow each other as in audio.py, which also leaves gaps in time stamps out
            yield from _arrays(resampler, frame)
        yield from _arrays(resampler, None)


def _arrays(resampler: av.AudioResampler | None, frame: av.AudioFrame | None) -> Iterator[np.ndarray]:
    for block in resampler.resample(frame) if resampler else ():
        yield block.to_ndarray()


def _file_frames(path: Path) -> Generator[av.AudioFrame, None, None]:
    """Decoded frames of the best audio stream; packets that cannot be decoded are left out, as audio.py does."""
    try:
        file = path.open("rb")
    except (OSError, ValueError) as error:
        raise UsageError(f"Sound {path} cannot be opened ({_reason(error)}). Check the path.") from error
    try:
        with file, av.open(file, metadata_errors="replace", options={"protocol_whitelist": "none"}) as container:
            stream = container.streams.best("audio")
            if stream is None:
                raise AudioError(f"{path} has no audio stream. Pass a file with sound, or a video with sound.")
            packets = container.demux(stream)
            while (packet := _next_packet(packets)) is not None:
                with suppress(av.error.FFmpegError):
                    for frame in packet.decode():
                        if isinstance(frame, av.AudioFrame) and frame.samples:
                            yield frame
    except _AV_ERRORS as error:
        raise AudioError(f"{path} cannot be read as sound ({_reason(error)}). Pass wav, mp3, flac or m4a.") from error


def _next_packet(packets: Iterator[av.Packet]) -> av.Packet | None:
    while True:
        with suppress(av.error.FFmpegError):
            return next(packets, None)


def _array_frames(samples: np.ndarray | Tensor, sample_rate: int) -> Generator[av.AudioFrame, None, None]:
    """The axes and number types that audio.py accepts; unsigned integers are offset binary."""
    array = samples.detach().cpu().numpy() if isinstance(samples, Tensor) else np.asarray(samples)
    if array.ndim not in (1, 2) or array.dtype.kind not in "iuf" or sample_rate <= 0:
        raise UsageError(
            f"A waveform {array.dtype}{array.shape} at {sample_rate} Hz is not accepted. Pass integers "
            "or floats, (n,), (n, channels) or (channels, n)."
        )
    channels = array[None] if array.ndim == 1 else array.T if array.shape[0] > array.shape[1] else array
    scale = np.float32(1.0 if array.dtype.kind == "f" else 2.0 ** (8 * array.dtype.itemsize - 1))
    offset = np.float32(array.dtype.kind == "u")
    layout = {1: "mono", 2: "stereo"}.get(len(channels))
    for start in range(0, channels.shape[1], AUDIO_RATE):
        block = np.ascontiguousarray(channels[:, start : start + AUDIO_RATE].astype(np.float32) / scale - offset)
        if not np.isfinite(block).all():
            raise AudioError("The given waveform holds NaN or infinite samples. Repair it first.")
        if layout is None:
            block = np.repeat(block.mean(axis=0, keepdims=True), 2, axis=0)
        frame = av.AudioFrame.from_ndarray(block, format="fltp", layout=layout or "stereo")
        frame.sample_rate = int(sample_rate)
        yield frame


class _SoundTrack:
    """The audio stream of a container that is being written, fed in whole AAC frames."""

    def __init__(self, container: av.container.OutputContainer, source: _SoundSource) -> None:
        self._container, self._source, self._position = container, source, 0
        self._layout = "mono" if source.num_channels == 1 else "stereo"
        self._stream = container.add_stream("aac", rate=AUDIO_RATE)
        context = self._stream.codec_context
        context.layout, context.format = self._layout, "fltp"
        context.bit_rate, context.time_base = AUDIO_BIT_RATE, Fraction(1, AUDIO_RATE)

    def write_until(self, num_samples: int) -> None:
        """Encode every whole AAC frame that ends at or before this sample."""
        while self._position + AAC_FRAME <= num_samples:
            self._encode(AAC_FRAME)

    def finish(self, num_samples: int) -> None:
        """Encode up to exactly this sample and flush the encoder."""
        self.write_until(num_samples)
        if self._position < num_samples:
            self._encode(num_samples - self._position)
        self._container.mux(self._stream.encode(None))
        self._source.close()

    def _encode(self, num_samples: int) -> None:
        samples = np.ascontiguousarray(self._source.take(num_samples))
        frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout=self._layout)
        frame.sample_rate, frame.pts, frame.time_base = AUDIO_RATE, self._position, Fraction(1, AUDIO_RATE)
        self._container.mux(self._stream.encode(frame))
        self._position += num_samples


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
) -> None:
    """Write (T, H, W, 3) uint8 frames and sound as one mp4; see `VideoWriter`."""
    if frames.ndim != 4:
        raise UsageError(f"Frames of shape {tuple(frames.shape)} are not accepted. Pass (T, H, W, 3).")
    with VideoWriter(
        path, height=frames.shape[1], width=frames.shape[2], fps=fps, audio=audio, metadata=metadata
    ) as writer:
        writer.write(frames)
