"""Sound file → 16 kHz mono waveform.

A run may last an hour: files are decoded and resampled block by block, and a long waveform lies in a temporary file.
"""

from __future__ import annotations

import math
import mmap
import operator
import tempfile
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

from wan_s2v.errors import AudioError, AudioTooShortError, UsageError

MODEL_SAMPLE_RATE = 16_000
ENCODER_STRIDE = 320  # samples from one hidden state to the next (20 ms): product of wav2vec2's convolution strides
ENCODER_RECEPTIVE_FIELD = 400  # samples (25 ms) that one hidden state's convolutions see
MIN_SAMPLES = ENCODER_RECEPTIVE_FIELD + ENCODER_STRIDE  # 45 ms: one hidden state alone gives no feature at 30 Hz

SILENCE_PEAK = 10 ** (-60 / 20)  # -60 dBFS
MAX_CHANNELS = 64  # of an array; more means that its axes are something else
MAX_BYTES_IN_MEMORY = 120 * MODEL_SAMPLE_RATE * 4  # of 16 kHz sound; what is longer lies in a temporary file
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


def load_waveform(
    source: str | Path | tuple[np.ndarray, int], *, start_s: float | Fraction = 0, duration_s: float | None = None
) -> Waveform:
    """The sound of a file, or of an array with its sample rate, as 16 kHz mono.

    The full-rate signal is never in memory as a whole. Of several audio streams the one a player would choose is read.

    Args:
        source: any container with sound that PyAV reads; or (samples, sample_rate) with samples (n,), (n, channels)
            or (channels, n), integers at full scale or floats in -1…1.
        start_s: leave out so many seconds; what is kept equals that part of the whole sound, sample by sample.
        duration_s: stop after so many seconds of sound, but not before the encoder's minimum of 45 ms.
    Raises: UsageError for a path, array, rate or start that is not accepted; AudioTooShortError under 45 ms; AudioError
        for content that cannot be decoded or is not finite.
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
    num_skipped = round(start_s * MODEL_SAMPLE_RATE)
    max_samples = None if duration_s is None else max(round(duration_s * MODEL_SAMPLE_RATE), MIN_SAMPLES)
    with closing(blocks):
        first = next(blocks, None)
        parts = _resample(chain([first], blocks), name) if first else iter(())
        samples, read_s = collect(parts, num_skipped, max_samples)
    if num_skipped and read_s * MODEL_SAMPLE_RATE < num_skipped + MIN_SAMPLES:
        raise UsageError(f"{name} lasts {read_s:.3f} s, so nothing follows start_s={float(start_s):g}. Start earlier.")
    if first is None or len(samples) < MIN_SAMPLES:
        raise AudioTooShortError(
            f"{name} lasts {read_s:.3f} s, but the speech encoder needs at least "
            f"{MIN_SAMPLES / MODEL_SAMPLE_RATE:.3f} s. Pass a longer recording."
        )
    kept_s = read_s - num_skipped / MODEL_SAMPLE_RATE
    peak = max(max(piece.max(), -piece.min()) for piece in pieces(samples))
    forget(samples)
    if peak < SILENCE_PEAK:
        warnings.append(f"{name} is silent (its mono mix peaks below -60 dBFS): nothing drives the lips.")
    return Waveform(samples, kept_s, path, first.sample_rate, first.num_channels, tuple(warnings))


def collect(
    parts: Iterator[tuple[np.ndarray, Fraction]], num_skipped: int, max_samples: int | None
) -> tuple[np.ndarray, float]:
    """Parts without their start as one (n,) float32 array, at most `max_samples` long; and the seconds of source read.

    A long sound lies in a nameless temporary file, so that its memory does not grow with its length.
    """
    read_s = Fraction(0)
    num_samples, to_skip = 0, num_skipped
    with tempfile.SpooledTemporaryFile(MAX_BYTES_IN_MEMORY) as spool:
        for part, seconds in parts:
            read_s += seconds
            rest = part[to_skip:]
            to_skip -= len(part) - len(rest)
            wanted = rest if max_samples is None else rest[: max_samples - num_samples]
            spool.write(wanted.astype(np.float32, copy=False).tobytes())
            num_samples += len(wanted)
            if num_samples == max_samples:
                read_s = min(read_s, Fraction(num_skipped + num_samples, MODEL_SAMPLE_RATE))
                break
        if num_samples * 4 <= MAX_BYTES_IN_MEMORY:
            spool.seek(0)
            return np.frombuffer(bytearray(spool.read()), np.float32), float(read_s)
        spool.rollover()
        spool.flush()
        return np.memmap(spool._file, np.float32, mode="r"), float(read_s)


def forget(samples: np.ndarray) -> None:
    """Let go of the pages of a sound that lies in a file; they are read again when they are needed."""
    pages = getattr(samples, "_mmap", None)
    if pages is not None and hasattr(pages, "madvise"):
        pages.madvise(mmap.MADV_DONTNEED)


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


def pieces(samples: np.ndarray) -> Iterator[np.ndarray]:
    return (samples[k : k + ARRAY_BLOCK] for k in range(0, len(samples), ARRAY_BLOCK))


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


def _decode_packets(container: av.container.InputContainer, stream: av.AudioStream) -> Iterator[av.AudioFrame | None]:
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
