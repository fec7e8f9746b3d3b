"""Sound file → 16 kHz waveform → wav2vec2 hidden states → audio features, one column per video frame.

A run may last an hour, so nothing here holds more than the 16 kHz mono signal and one window of hidden states: files
are decoded and resampled block by block, and features are computed when a clip asks for them. How a video is divided
into clips, and what the transformer does with the features, is not known here.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import chain, groupby
from numbers import Real
from pathlib import Path
from typing import BinaryIO, NamedTuple

import av
import numpy as np
import soxr
import torch
from torch import Tensor
from transformers import Wav2Vec2Model

from wan_s2v.errors import AudioError, AudioTooShortError, CheckpointError, UsageError

MODEL_SAMPLE_RATE = 16_000
ENCODER_STRIDE = 320  # samples from one hidden state to the next (20 ms): product of wav2vec2's convolution strides
ENCODER_RECEPTIVE_FIELD = 400  # samples (25 ms) that one hidden state's convolutions see
HIDDEN_STATE_RATE = MODEL_SAMPLE_RATE // ENCODER_STRIDE  # 50 Hz
FEATURE_RATE = 30  # Hz: the official code resamples the hidden states to this rate before it picks one per frame
MIN_SAMPLES = ENCODER_RECEPTIVE_FIELD + ENCODER_STRIDE  # 45 ms: one hidden state alone gives no feature at 30 Hz

WINDOW_S = 60.0  # sound up to this length is encoded whole, as the official code does; longer sound in such windows
CONTEXT_S = 10.0  # sound on either side of a window's kept part that only its attention sees

SILENCE_PEAK = 10 ** (-60 / 20)  # -60 dBFS
MAX_CHANNELS = 64  # of an array; more means that its axes are something else
SAMPLE_RATES = range(1_000, 1_000_001)  # Hz
ARRAY_BLOCK = 1 << 18  # samples of an in-memory sound that are converted to float32 at a time
ACCEPTED = "Pass a file with speech (wav, mp3, flac, m4a, or a video with sound)."
# Containers without an index: the length FFmpeg gives is file size over bit rate, so it says nothing about damage.
GUESSED_LENGTH = {"aac", "ac3", "eac3", "amr", "dts", "mpeg", "mpegts"}
NOT_FILMS = {"image2", "gif", "tty"}  # demuxers that present pictures and plain text as a video stream


@dataclass(frozen=True, eq=False)
class Waveform:
    """Mono sound at 16 kHz that drives the model.

    Attributes:
        samples: (n,) float32, nominally -1…1.
        duration_s: of the source, from its own rate and sample count; of the part that was read if that was limited.
        source: the file, None for a sound given as an array.
        source_sample_rate: Hz.
        source_channels: before they were averaged.
        warnings: sentences for the user: silence, damage.
    """

    samples: np.ndarray
    duration_s: float
    source: Path | None
    source_sample_rate: int
    source_channels: int
    warnings: tuple[str, ...] = ()

    def padded_or_cut(self, duration_s: float) -> Waveform:
        """The same sound with exactly round(duration_s * 16000) samples: silence is appended, or the end cut."""
        num_samples = round(duration_s * MODEL_SAMPLE_RATE)
        samples = np.zeros(num_samples, np.float32)
        kept = self.samples[:num_samples]
        samples[: len(kept)] = kept
        return replace(self, samples=samples, duration_s=duration_s)


class _Block(NamedTuple):
    """A stretch of decoded sound: samples (n,) float32, channels already averaged."""

    samples: np.ndarray
    sample_rate: int
    num_channels: int


def load_waveform(source: str | Path | tuple[np.ndarray, int], *, duration_s: float | None = None) -> Waveform:
    """The sound of a file, or of an array with its sample rate, as 16 kHz mono.

    The full-rate signal is never in memory as a whole. Of several audio streams the one a player would choose is read.

    Args:
        source: any container with sound that PyAV reads; or (samples, sample_rate) with samples (n,), (n, channels)
            or (channels, n), integers at full scale or floats in -1…1.
        duration_s: stop after so many seconds of sound, but not before the encoder's minimum of 45 ms. What is kept
            equals the start of the whole sound.
    Raises: UsageError for a path, array or rate that is not accepted; AudioTooShortError under 45 ms; AudioError for
        content that cannot be decoded or is not finite.
    Source: the steps of `librosa.load(sr=16000)` 0.11, which the official code calls: mean over the channels, then
        soxr HQ, then exactly ceil(n * 16000 / rate) samples.
    """
    if duration_s is not None and not 0 < duration_s < math.inf:
        raise UsageError(f"duration_s={duration_s} is not a length of sound. Pass a positive number of seconds.")
    warnings: list[str] = []
    if isinstance(source, (str, Path)):
        path, name = Path(source), Path(source).name
        blocks = _decode_file(path, warnings)
    else:
        path, name = None, "The given waveform"
        blocks = _split_array(*_check_array(source))
    max_samples = None if duration_s is None else max(round(duration_s * MODEL_SAMPLE_RATE), MIN_SAMPLES)
    with closing(blocks):
        first = next(blocks, None)
        samples, read_s = _collect(_resample(chain([first], blocks), name) if first else iter(()), max_samples)
    if first is None or len(samples) < MIN_SAMPLES:
        raise AudioTooShortError(
            f"{name} lasts {read_s:.3f} s, but the speech encoder needs at least "
            f"{MIN_SAMPLES / MODEL_SAMPLE_RATE:.3f} s. Pass a longer recording."
        )
    if max(samples.max(), -samples.min()) < SILENCE_PEAK:
        warnings.append(f"{name} is silent (its mono mix peaks below -60 dBFS): nothing drives the lips.")
    return Waveform(samples, read_s, path, first.sample_rate, first.num_channels, tuple(warnings))


def _collect(parts: Iterator[tuple[np.ndarray, Fraction]], max_samples: int | None) -> tuple[np.ndarray, float]:
    """Parts as one (n,) float32 array, at most `max_samples` long, and the seconds of source that it covers."""
    pcm = bytearray()  # float32 that grows in place: an hour is 230 MB, and a list of parts would need it twice
    read_s = Fraction(0)
    for part, seconds in parts:
        pcm += part.tobytes()
        read_s += seconds
        if max_samples is not None and len(pcm) >= 4 * max_samples:
            del pcm[4 * max_samples :]
            read_s = min(read_s, Fraction(max_samples, MODEL_SAMPLE_RATE))
            break
    return np.frombuffer(pcm, np.float32), float(read_s)


def _resample(blocks: Iterator[_Block], name: str) -> Iterator[tuple[np.ndarray, Fraction]]:
    """Parts (n,) float32 at 16 kHz, each with the seconds of source that went in for it."""
    # The rate may change inside a file: chained ogg, or AAC that turns on spectral band replication.
    for sample_rate, run in groupby(blocks, key=operator.attrgetter("sample_rate")):
        resampler = soxr.ResampleStream(sample_rate, MODEL_SAMPLE_RATE, 1, dtype="float32", quality="HQ")
        num_read, num_written = 0, 0
        for block in run:
            num_read += len(block.samples)
            if not np.isfinite(block.samples).all():
                where = f"in the stretch before {num_read / sample_rate:.2f} s"
                raise AudioError(f"{name} holds NaN or infinite samples {where}. Pass finite samples.")
            # At 16 kHz already, the official code does not filter.
            same_rate = sample_rate == MODEL_SAMPLE_RATE
            part = block.samples if same_rate else resampler.resample_chunk(block.samples)
            num_written += len(part)
            yield part, Fraction(len(block.samples), sample_rate)
        tail = resampler.resample_chunk(np.empty(0, np.float32), last=True)
        # soxr may return one sample less than the duration asks for.
        rest = np.zeros(-(-num_read * MODEL_SAMPLE_RATE // sample_rate) - num_written, np.float32)
        rest[: len(tail)] = tail[: len(rest)]
        yield rest, Fraction(0)


def _to_mono(samples: np.ndarray) -> np.ndarray:
    """(channels, n) of any integer or float type → (n,) float32 mean; unsigned integers are zero in mid-range."""
    dtype = samples.dtype
    with np.errstate(over="ignore"):  # float64 beyond float32 becomes infinite, which is reported later
        floats = samples.astype(np.float32)
    if dtype.kind in "iu":
        full_scale = np.float32(2.0 ** (8 * dtype.itemsize - 1))
        floats = (floats - full_scale if dtype.kind == "u" else floats) / full_scale
    return floats.mean(axis=0, dtype=np.float32)


def _check_array(source: tuple[np.ndarray, int]) -> tuple[np.ndarray, int]:
    """Samples as (channels, n), and the sample rate; UsageError for anything else."""
    if not isinstance(source, (tuple, list)) or len(source) != 2:
        raise UsageError(f"A sound cannot be a {type(source).__name__}. Pass a path or (samples, sample_rate).")
    samples, sample_rate = source
    if np.ndim(samples) == 0 and np.ndim(sample_rate) > 0:
        raise UsageError("The waveform was given as (sample_rate, samples). Pass (samples, sample_rate).")
    if isinstance(sample_rate, bool) or not isinstance(sample_rate, Real) or sample_rate not in SAMPLE_RATES:
        raise UsageError(f"sample_rate={sample_rate!r} is not accepted. Pass a whole number of Hz, 1000 to 1000000.")
    array = samples.detach().cpu().numpy() if isinstance(samples, torch.Tensor) else np.asarray(samples)
    if array.dtype.kind not in "iuf":
        raise UsageError(f"A waveform of dtype {array.dtype} is not accepted. Pass integers, or floats in -1…1.")
    channels_first = array[None] if array.ndim == 1 else array
    if array.ndim == 2 and array.shape[0] > array.shape[1]:
        channels_first = array.T
    if array.ndim not in (1, 2) or len(channels_first) > MAX_CHANNELS or (array.size and 0 in array.shape):
        raise UsageError(
            f"A waveform of shape {array.shape} is not accepted. Pass (n,), (n, channels) or (channels, n) "
            f"with at most {MAX_CHANNELS} channels."
        )
    return channels_first, int(sample_rate)


def _split_array(channels_first: np.ndarray, sample_rate: int) -> Generator[_Block, None, None]:
    for start in range(0, channels_first.shape[1], ARRAY_BLOCK):
        part = channels_first[:, start : start + ARRAY_BLOCK]
        yield _Block(_to_mono(part), sample_rate, len(channels_first))


def _decode_file(path: Path, warnings: list[str]) -> Generator[_Block, None, None]:
    """The sound of a file in decoded blocks; damage that leaves something to hear is added to `warnings`."""
    with _open_file(path) as file, _open_container(path, file) as container:
        stream = _choose_stream(path, container)
        read_s, num_damaged = 0.0, 0
        for frame in _decode_packets(container, stream):
            if frame is None:
                num_damaged += 1
                continue
            block = _read_frame(path, frame)
            read_s += len(block.samples) / block.sample_rate
            yield block
        if read_s == 0 and num_damaged:
            raise AudioError(f"{path.name} holds no sound that can be decoded; it is damaged. Export it again.")
        if num_damaged:
            warnings.append(f"{path.name} is damaged: unreadable packets left out: {num_damaged}.")
        announced_s = _announced_duration(container, stream)
        # Half a second covers what containers round, pad and count for their other streams.
        if announced_s is not None and read_s < announced_s - max(0.5, 0.02 * announced_s):
            warnings.append(f"{path.name} announces {announced_s:.2f} s of sound but holds {read_s:.2f} s.")
        elif _is_cut_wav(file):
            warnings.append(f"{path.name} is cut off: it is shorter than its header says; {read_s:.2f} s were read.")


def _open_file(path: Path) -> BinaryIO:
    try:
        file = path.open("rb")
    except FileNotFoundError:
        raise UsageError(f"There is no sound file at {path}. Check the path.") from None
    except IsADirectoryError:
        raise UsageError(f"{path} is a folder, not a sound file. {ACCEPTED}") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the name
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"{path} cannot be opened: {reason}. {ACCEPTED}") from None
    if path.is_file() and path.stat().st_size == 0:
        file.close()
        raise AudioError(f"{path.name} is empty (0 bytes). {ACCEPTED}")
    return file


def _open_container(path: Path, file: BinaryIO) -> av.container.InputContainer:
    # An open file and no protocols: a playlist from a stranger can then name no other file or address, and a colon
    # in a file name is not read as a protocol.
    try:
        return av.open(file, "r", metadata_errors="replace", options={"protocol_whitelist": "none"})
    except av.FFmpegError as error:
        raise AudioError(f"{path.name} is damaged or not a sound file ({error.strerror}). {ACCEPTED}") from error


def _choose_stream(path: Path, container: av.container.InputContainer) -> av.AudioStream:
    stream = container.streams.best("audio")
    if isinstance(stream, av.AudioStream):
        return stream
    demuxer = container.format.name
    if container.streams.audio:
        raise AudioError(f"{path.name} holds no sound that can be decoded. Export it again. {ACCEPTED}")
    if container.streams.video and demuxer not in NOT_FILMS and not demuxer.endswith("_pipe"):
        raise AudioError(f"{path.name} has a video stream but no audio. {ACCEPTED}")
    raise AudioError(f"{path.name} is not a sound file ({demuxer}). {ACCEPTED}")


def _decode_packets(
    container: av.container.InputContainer, stream: av.AudioStream
) -> Iterator[av.AudioFrame | None]:
    """The frames of a stream in order, None for each packet that cannot be decoded."""
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
            frames = [] if packet is None else packet.decode()
        except av.FFmpegError:
            yield None
            continue
        if packet is None:
            return
        yield from (frame for frame in frames if frame.samples)


def _read_frame(path: Path, frame: av.AudioFrame) -> _Block:
    if frame.format.name in ("s64", "s64p"):  # the one sample format that PyAV has no array for
        raise AudioError(f"{path.name} has 64-bit integer samples. Save it as 16, 24 or 32 bits, or as float.")
    if frame.sample_rate not in SAMPLE_RATES:
        raise AudioError(f"{path.name} has {frame.sample_rate} samples a second; 1000 to 1000000 are read. {ACCEPTED}")
    num_channels = frame.layout.nb_channels
    samples = frame.to_ndarray()
    if not frame.format.is_planar:  # (1, n * channels), interleaved
        samples = samples.reshape(-1, num_channels).T
    return _Block(_to_mono(samples), frame.sample_rate, num_channels)


def _announced_duration(container: av.container.InputContainer, stream: av.AudioStream) -> float | None:
    """Seconds of sound the header promises; None where it promises nothing that is more than a guess."""
    # An MP3 with a LAME header states its length and starts after the encoder's delay; any other length is a guess.
    guessed_mp3 = container.format.name == "mp3" and not stream.start_time
    if guessed_mp3 or container.format.name in GUESSED_LENGTH:
        return None
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    if container.duration is not None and not container.streams.video:
        return container.duration / av.time_base
    return None


def _is_cut_wav(file: BinaryIO) -> bool:
    """Whether a RIFF file ends before its header says; FFmpeg corrects the length without a word."""
    if not file.seekable():
        return False
    size = file.seek(0, 2)
    file.seek(0)
    header = file.read(8)
    announced = int.from_bytes(header[4:], "little")
    # Recorders that cannot seek back write 0 or a huge number for "unknown".
    return header[:4] == b"RIFF" and size + 1 < announced + 8 < 0x7FFF_0000


class AudioFeatures:
    """The audio features of one sound at 30 Hz, computed where they are asked for.

    Sound up to `window_s` is encoded whole: exactly the official result. Longer sound is encoded in windows of at most
    `window_s`, whose first and last `context_s` are discarded (not at the ends of the sound). Windows start on the
    encoder's 20 ms grid and the sound is normalised as a whole, so with layer-normalised convolutions (as in the S2V
    checkpoint) every frame enters the attention with the same values; only the attention's view is limited, to at
    least `context_s` on both sides.

    Only one window of hidden states is kept: 5 MB a second for the S2V encoder (25 states of width 1024), 307 MB for
    60 s. Encoding 60 s adds 1.3 GiB to that encoder's weights at its peak (measured on a CPU, float32).

    Source: Wan-Video/Wan2.2 `wan/modules/s2v/audio_encoder.py`.
    """

    def __init__(
        self,
        encoder: Wav2Vec2Model,
        waveform: np.ndarray,
        *,
        num_samples: int | None = None,
        do_normalize: bool = True,
        window_s: float = WINDOW_S,
        context_s: float = CONTEXT_S,
    ) -> None:
        """Prepare, encoding nothing yet.

        Args:
            encoder: on any device; results are those of the official code if its weights are float32.
            waveform: (n,) float32 at 16 kHz; not copied.
            num_samples: cut the sound to this length, or go on with silence up to it.
            do_normalize: the field of this name of the encoder's `Wav2Vec2FeatureExtractor`.
            window_s: longest stretch encoded at once, in seconds.
            context_s: part of a window on either side that is discarded, in seconds.
        Raises: AudioTooShortError below 720 samples; CheckpointError for an encoder with another frame grid.
        """
        _check_frame_grid(encoder)
        self._num_samples = len(waveform) if num_samples is None else num_samples
        self._waveform = waveform[: self._num_samples]
        if self._num_samples < MIN_SAMPLES:
            raise AudioTooShortError(
                f"The sound has {self._num_samples} samples at 16 kHz, but the speech encoder needs at least "
                f"{MIN_SAMPLES} ({MIN_SAMPLES / MODEL_SAMPLE_RATE:.3f} s). Pass a longer recording."
            )
        self.num_hidden_states = (self._num_samples - ENCODER_RECEPTIVE_FIELD) // ENCODER_STRIDE + 1
        self.num_features = num_audio_features(self.num_hidden_states)
        self._encoder = encoder.eval()
        self._offset, self._scale = np.float32(0), np.float32(1)
        if do_normalize:
            self._offset, self._scale = _normalisation(self._waveform, self._num_samples)
        window, self._context = (round(seconds * HIDDEN_STATE_RATE) for seconds in (window_s, context_s))
        fits = self.num_hidden_states <= window
        self._kept = self.num_hidden_states if fits else window - 2 * self._context  # states a window yields
        if self._kept < 1:
            raise UsageError(f"window_s={window_s} leaves nothing between two contexts of {context_s} s. Use more.")
        self._cached: tuple[int, Tensor] | None = None

    def features(self, indices: np.ndarray) -> Tensor:
        """Features at 30 Hz positions: linear interpolation of the 50 Hz hidden states with aligned corners.

        Args:
            indices: (frames,) or (frames, k) integers in -1…num_features-1; -1 gives a zero vector. Any order.
        Returns: (layers, k * C, frames) float32 on the CPU; the k vectors of a frame are concatenated. Layer 0 is
            the input of the encoder's first layer, the last one its normalised output.
        """
        flat = indices.reshape(-1)
        if flat.size and not -1 <= flat.min() <= flat.max() < self.num_features:
            raise IndexError(f"feature indices {flat.min()}…{flat.max()} are outside -1…{self.num_features - 1}")
        config = self._encoder.config
        columns = torch.zeros(config.num_hidden_layers + 1, flat.size, config.hidden_size)
        sounding = flat >= 0
        if sounding.any():
            columns[:, torch.from_numpy(sounding)] = self._interpolate(flat[sounding])
        width = config.hidden_size * math.prod(indices.shape[1:])
        return columns.reshape(len(columns), len(indices), width).transpose(1, 2).contiguous()

    def _interpolate(self, indices: np.ndarray) -> Tensor:
        """(layers, len(indices), C). The positions in float32, as torch computes them: an hour in, it shows."""
        last = self.num_hidden_states - 1
        scale = np.float32(last) / np.float32(max(self.num_features - 1, 1))
        position = scale * indices.astype(np.float32)
        lower = np.minimum(position.astype(np.int64), last)
        upper = np.minimum(lower + 1, last)
        weight = torch.from_numpy(position - lower.astype(np.float32)).clamp(0, 1)[:, None]
        needed, where = np.unique(np.concatenate([lower, upper]), return_inverse=True)
        states = self._hidden_states(needed)
        at_lower, at_upper = torch.from_numpy(where).chunk(2)
        return (1 - weight) * states[:, at_lower] + weight * states[:, at_upper]

    def _hidden_states(self, positions: np.ndarray) -> Tensor:
        """(layers, len(positions), C) hidden states at rising positions, window by window."""
        parts = []
        for window, run in groupby(positions.tolist(), key=lambda position: position // self._kept):
            if self._cached is None or self._cached[0] != window:
                self._cached = None  # first, so that two windows are never held
                self._cached = window, self._encode_window(window * self._kept)
            parts.append(self._cached[1][:, [position - window * self._kept for position in run]])
        return torch.cat(parts, dim=1)

    def _encode_window(self, first: int) -> Tensor:
        """(layers, frames, C) float32 on the CPU: the hidden states that the window at state `first` yields."""
        stop = min(first + self._kept, self.num_hidden_states)
        start = max(first - self._context, 0)
        end = stop + self._context
        is_last = end >= self.num_hidden_states
        sound_end = self._num_samples if is_last else (end - 1) * ENCODER_STRIDE + ENCODER_RECEPTIVE_FIELD
        sound = np.zeros(sound_end - start * ENCODER_STRIDE, np.float32)
        heard = self._waveform[start * ENCODER_STRIDE : sound_end]
        sound[: len(heard)] = heard
        sound = (sound - self._offset) / self._scale
        encoder = self._encoder
        input_values = torch.from_numpy(sound)[None].to(encoder.device, encoder.dtype)
        with torch.no_grad(), torch.autocast(encoder.device.type, enabled=False):
            output = encoder(input_values, output_hidden_states=True)
        # transformers 5 leaves the last of `hidden_states` without the encoder's final norm; 4 applied it.
        states = (*output.hidden_states[:-1], output.last_hidden_state)
        return torch.stack([state[0, first - start : stop - start].float().cpu() for state in states])


def _normalisation(waveform: np.ndarray, num_samples: int) -> tuple[np.float32, np.float32]:
    """Mean and deviation of a sound that goes on with silence up to `num_samples`.

    Sound within one window and without silence: in float32 as Wav2Vec2FeatureExtractor computes them. Longer sound: piece
    by piece in float64, since numpy's variance needs the whole sound twice more.
    """
    if len(waveform) == num_samples <= WINDOW_S * MODEL_SAMPLE_RATE:
        return waveform.mean(), np.sqrt(waveform.var() + 1e-7)
    pieces = [waveform[k : k + ARRAY_BLOCK] for k in range(0, len(waveform), ARRAY_BLOCK)]
    mean = sum(piece.sum(dtype=np.float64) for piece in pieces) / num_samples
    squares = sum(np.square(piece - mean, dtype=np.float64).sum() for piece in pieces)
    variance = (squares + (num_samples - len(waveform)) * mean**2) / num_samples
    return np.float32(mean), np.float32(np.sqrt(variance + 1e-7))


def _check_frame_grid(encoder: Wav2Vec2Model) -> None:
    stride, receptive_field = 1, 1
    for kernel, step in zip(encoder.config.conv_kernel, encoder.config.conv_stride, strict=True):
        receptive_field += (kernel - 1) * stride
        stride *= step
    if (stride, receptive_field) != (ENCODER_STRIDE, ENCODER_RECEPTIVE_FIELD):
        raise CheckpointError(
            f"The speech encoder has one state per {stride} samples (each sees {receptive_field}); S2V needs one per "
            f"{ENCODER_STRIDE} (seeing {ENCODER_RECEPTIVE_FIELD}). Use the wav2vec2 folder of the S2V checkpoint."
        )


def num_audio_features(num_hidden_states: int) -> int:
    """Features at 30 Hz for so many hidden states at 50 Hz.

    In the official order of double operations: 205 states give 122, where exact arithmetic would give 123.
    """
    return int(num_hidden_states / HIDDEN_STATE_RATE * FEATURE_RATE)


def reference_num_clips(num_features: int, frames_per_clip: int, fps: int) -> int:
    """Clips that the official code makes of a sound: an exact multiple of a clip yields one more, without sound."""
    return int(num_features / (frames_per_clip * (FEATURE_RATE / fps))) + 1


def feature_indices(
    num_features: int,
    num_frames: int,
    fps: int,
    *,
    start_frame: int = 0,
    context: int = 0,
    span_frames: int | None = None,
) -> np.ndarray:
    """The 30 Hz feature that the official code shows at each video frame; -1 (a zero vector) after the sound.

    Args:
        num_features: of the sound, see `num_audio_features`.
        num_frames: frames to give, from `start_frame`.
        fps: of the model's video.
        start_frame: first frame to give, from 0.
        context: m; with m > 0 each frame gets 2m+1 neighbouring features, clamped to the sound.
        span_frames: frames of all clips together, start_frame + num_frames if None; it enters the rounding of times.
    Returns: (num_frames,) int64, with context (num_frames, 2 * context + 1).
    Source: Wan-Video/Wan2.2 `wan/modules/s2v/audio_encoder.py`, `get_audio_embed_bucket_fps`.
    """
    span = start_frame + num_frames if span_frames is None else span_frames
    times = np.linspace(0, span / fps, span, endpoint=False)[start_frame : start_frame + num_frames]
    pool = math.ceil(span / fps * FEATURE_RATE)
    indices = np.clip(np.round(times * FEATURE_RATE).astype(np.int64), 0, pool - 1)
    sounding = indices < num_features
    if context == 0:
        return np.where(sounding, indices, -1)
    neighbours = np.arange(-context, context + 1) * (FEATURE_RATE // fps)
    around = np.clip(indices[:, None] + neighbours, 0, num_features - 1)
    return np.where(sounding[:, None], around, -1)


def aligned_feature_indices(num_features: int, first_frame: int, num_frames: int, fps: int) -> np.ndarray:
    """The 30 Hz feature nearest to the time k / fps of each frame k = first_frame…, clamped to the sound.

    Frames before the sound (k < 0) get its first feature and frames after it the last, never the zero vector: the
    caller has padded the waveform with silence. Integer arithmetic; ties go to the even index, so that at 16 fps
    frames inside the sound get what `feature_indices` gives.

    Returns: (num_frames,) int64.
    """
    numerator = np.arange(first_frame, first_frame + num_frames, dtype=np.int64) * FEATURE_RATE
    whole, rest = np.divmod(numerator, fps)
    rounds_up = (2 * rest > fps) | ((2 * rest == fps) & (whole % 2 == 1))
    return np.clip(whole + rounds_up, 0, num_features - 1)
