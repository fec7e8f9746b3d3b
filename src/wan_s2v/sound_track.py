"""The user's own sound on its way into an mp4: decoded piece by piece, 48 kHz, exactly as long as the video."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import suppress
from fractions import Fraction
from itertools import chain
from pathlib import Path

import av
import numpy as np
from torch import Tensor

from wan_s2v.errors import AudioError, UsageError, reason_of
from wan_s2v.sound_span import WHOLE, SoundSpan

AudioSource = str | Path | tuple[np.ndarray, int]

AUDIO_RATE = 48_000
AUDIO_BIT_RATE = 192_000
AV_ERRORS = (av.error.FFmpegError, OSError)
AAC_FRAME = 1024  # samples


class SoundSource:
    """The user's sound as (channels, n) float32 blocks at 48 kHz, mono or stereo, decoded as it is asked for.

    Args:
        span: the stretch to take; silence follows its end.
    """

    def __init__(self, audio: AudioSource, span: SoundSpan = WHOLE) -> None:
        if isinstance(audio, (str, Path)):
            name, frames = str(audio), _file_frames(Path(audio))
        else:
            name, frames = "The given waveform", _array_frames(*audio)
        first = next(frames, None)
        if first is None:
            raise AudioError(f"{name} holds no sound that can be decoded. Pass a file with sound.")
        self._frames, self._first = frames, first
        self.num_channels = min(first.layout.nb_channels, 2)
        self._blocks = _stretch(self._resampled(), *span.samples(AUDIO_RATE))
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


def _stretch(
    blocks: Generator[np.ndarray, None, None], num_skipped: int, num_taken: int | None
) -> Generator[np.ndarray, None, None]:
    """Blocks (channels, n) without their start, and at most `num_taken` samples of them."""
    first = 0  # sample of the source that the next block begins with
    stop = None if num_taken is None else num_skipped + num_taken
    for block in blocks:
        low = max(num_skipped - first, 0)
        yield block[:, low : None if stop is None else max(stop - first, low)]
        first += block.shape[1]
        if stop is not None and first >= stop:
            return


def _arrays(resampler: av.AudioResampler | None, frame: av.AudioFrame | None) -> Iterator[np.ndarray]:
    for block in resampler.resample(frame) if resampler else ():
        yield block.to_ndarray()


def _file_frames(path: Path) -> Generator[av.AudioFrame, None, None]:
    """Decoded frames of the best audio stream; packets that cannot be decoded are left out, as audio.py does."""
    try:
        file = path.open("rb")
    except (OSError, ValueError) as error:
        raise UsageError(f"Sound {path} cannot be opened ({reason_of(error)}). Check the path.") from error
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
    except AV_ERRORS as error:
        raise AudioError(f"{path} cannot be read as sound ({reason_of(error)}). Pass wav, mp3, flac or m4a.") from error


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


class SoundTrack:
    """The audio stream of a container that is being written, fed in whole AAC frames."""

    def __init__(self, container: av.container.OutputContainer, source: SoundSource) -> None:
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
