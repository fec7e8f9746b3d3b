"""Where somebody speaks, by silero-vad, and a waveform that is silent everywhere else.

For the model alone: music or noise between two sentences must not move the lips. What is heard is another matter.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from typing import Any, Final

import numpy as np
import torch

from wan_s2v.audio import MODEL_SAMPLE_RATE, Waveform, collect, forget
from wan_s2v.errors import UsageError

_CHUNK: Final = 512  # samples that the network looks at
_MIN_SILENCE_MS: Final = 250  # shorter pauses belong to the speech
_PAD_MS: Final = 100  # before and after, where lips and breath already or still move
_FADE: Final = MODEL_SAMPLE_RATE // 50  # 20 ms, within the pad


def keep_voice(waveform: Waveform) -> Waveform:
    """The waveform with silence where nobody speaks, by fades of 20 ms; a warning where nobody does at all.

    Raises: UsageError if silero-vad is not installed.
    """
    spans = voice_spans(waveform.samples)
    samples, _ = collect(_masked(waveform.samples, spans), 0, None)
    if spans:
        return replace(waveform, samples=samples)
    note = 'silence="clean" found no voice in the sound: nothing drives the lips. Leave it out for song or effects.'
    return replace(waveform, samples=samples, warnings=(*waveform.warnings, note))


def voice_spans(samples: np.ndarray) -> list[tuple[int, int]]:
    """First and one-past-last sample of every stretch of speech in (n,) float32 sound at 16 kHz, in order.

    Raises: UsageError if silero-vad is not installed.
    """
    threads = torch.get_num_threads()
    try:
        detector = _detector()
        torch.set_num_threads(1)  # as its authors do: the network is so small that threads only wait for each other
        changes = list(_changes(samples, detector))
    finally:
        torch.set_num_threads(threads)
        forget(samples)
    stops = [*changes[1::2], len(samples)]
    return [(start, min(stop, len(samples))) for start, stop in zip(changes[::2], stops, strict=False)]


def _changes(samples: np.ndarray, detector: Any) -> Iterator[int]:
    """Where speech begins and ends, in turn; the last end is left out where speech goes on to the end of the sound."""
    for first in range(0, len(samples), _CHUNK):
        chunk = np.zeros(_CHUNK, np.float32)
        part = samples[first : first + _CHUNK]
        chunk[: len(part)] = part
        yield from (detector(torch.from_numpy(chunk)) or {}).values()


def _detector() -> Any:
    try:
        from silero_vad import VADIterator, load_silero_vad
    except ImportError:
        raise UsageError(
            'silence="clean" needs silero-vad, which is not installed. Run: pip install wan-s2v[sound], or use "keep".'
        ) from None
    return VADIterator(
        load_silero_vad(),
        sampling_rate=MODEL_SAMPLE_RATE,
        min_silence_duration_ms=_MIN_SILENCE_MS,
        speech_pad_ms=_PAD_MS,
    )


def _masked(samples: np.ndarray, spans: list[tuple[int, int]]) -> Iterator[tuple[np.ndarray, Fraction]]:
    """The samples, a second at a time, times a gain that is 1 in the spans and falls to 0 within a fade's length."""
    ends = np.array([edge for span in spans for edge in span], np.float64)
    ramp = np.tile([0.0, 1.0, 1.0, 0.0], len(spans))
    at = np.repeat(ends, 2) + np.tile([0, _FADE, -_FADE, 0], len(spans)) if spans else ends
    for first in range(0, len(samples), MODEL_SAMPLE_RATE):
        part = samples[first : first + MODEL_SAMPLE_RATE]
        position = np.arange(first, first + len(part))
        gain = np.interp(position, at, ramp, left=0, right=0) if spans else np.zeros(len(part))
        yield part * gain.astype(np.float32), Fraction(len(part), MODEL_SAMPLE_RATE)
