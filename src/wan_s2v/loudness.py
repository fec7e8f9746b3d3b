"""How loud a voice is, and one piece of advice where that will show in the video.

Loudness is that of ITU-R BS.1770-4 (EBU R128): the K-weighted power of 400 ms blocks, gated at -70 LUFS and 10 LU below
the mean of what is left. It is taken from the spectrum of each block, so that the two filters need no state.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np

from wan_s2v.audio import MODEL_SAMPLE_RATE, SILENCE_PEAK, Waveform, forget

_BLOCK: Final = MODEL_SAMPLE_RATE * 2 // 5
_HOP: Final = _BLOCK // 4
_BLOCKS_AT_ONCE: Final = 256
_ABSOLUTE_GATE, _RELATIVE_GATE = -70.0, -10.0  # LUFS, LU

QUIET: Final = -36.0  # LUFS; speech is delivered at -23 (broadcast) to -16 (streaming)
_FULL_SCALE: Final = 0.985  # a clipped wave is flat near it, also after resampling
_CLIPPED_SHARE: Final = 0.001  # of all samples; a voice normalised to full scale has a tenth of it
_SOUNDING_SHARE: Final = 0.1  # of all blocks; less is almost only silence
_SOUNDING: Final = -55.0  # LUFS of a block


@dataclass(frozen=True)
class Loudness:
    """What is measured of a sound.

    Args:
        integrated: LUFS; -inf where every block is below the gate.
        peak: of the samples, 1 is full scale.
        clipped_share: of the samples, those at full scale.
        sounding_share: of the blocks, those louder than a quiet room.
    """

    integrated: float
    peak: float
    clipped_share: float
    sounding_share: float


def measure_loudness(samples: np.ndarray) -> Loudness:
    """Measure (n,) float32 mono sound at 16 kHz; shorter than 400 ms counts as one block."""
    powers, peak, clipped = [], 0.0, 0
    for blocks in _blocks(samples):
        powers.append(_weighted_power(blocks))
        fresh = np.abs(blocks[:, :_HOP])
        peak, clipped = max(peak, float(np.abs(blocks).max())), clipped + int((fresh >= _FULL_SCALE).sum())
    forget(samples)
    power = np.concatenate(powers)
    levels = _level(power)
    return Loudness(
        _integrated(power, levels),
        peak,
        clipped / max(len(power) * _HOP, 1),
        float((levels > _SOUNDING).mean()),
    )


def loudness_warnings(waveform: Waveform) -> list[str]:
    """At most one sentence: the voice is almost only silence, clipped, or too quiet. Silence is reported on loading."""
    found = measure_loudness(waveform.samples)
    name = "The voice" if waveform.source is None else waveform.source.name
    if found.peak < SILENCE_PEAK:
        return []
    if found.sounding_share < _SOUNDING_SHARE:
        heard = f"{found.sounding_share * waveform.duration_s:.1f} s of {waveform.duration_s:.1f} s can be heard"
        return [f"{name} is almost only silence: {heard}. Choose the stretch with the voice (start_s, duration_s)."]
    if found.clipped_share > _CLIPPED_SHARE:
        share = f"{found.clipped_share:.1%} of its samples are at full scale"
        return [f"{name} is clipped ({share}), which distorts the voice. Record or export it at a lower level."]
    if found.integrated < QUIET:
        level = f"{found.integrated:.0f} LUFS; speech is usually at -23 to -16"
        return [f"{name} is quiet ({level}), and so will the video be. Raise it, as with ffmpeg -af loudnorm."]
    return []


def _blocks(samples: np.ndarray) -> Iterator[np.ndarray]:
    """(at most 256, 6400) overlapping blocks, together all of the sound but a last partial hop."""
    if len(samples) < _BLOCK:
        yield np.pad(samples, (0, _BLOCK - len(samples)))[None]
        return
    views = np.lib.stride_tricks.sliding_window_view(samples, _BLOCK)[::_HOP]
    for first in range(0, len(views), _BLOCKS_AT_ONCE):
        yield views[first : first + _BLOCKS_AT_ONCE]


def _weighted_power(blocks: np.ndarray) -> np.ndarray:
    """(n,) mean square of each block after K-weighting, by Parseval."""
    spectrum = np.abs(np.fft.rfft(blocks, axis=1)) ** 2 * _k_weighting()
    return (2 * spectrum.sum(axis=1) - spectrum[:, 0] - spectrum[:, -1]) / _BLOCK**2


def _k_weighting() -> np.ndarray:
    """(3201,) power response: a high shelf of 4 dB at 1.68 kHz, then a high pass at 38 Hz.

    The standard lists coefficients for 48 kHz; these are the analogue filters behind them.
    """
    f = np.fft.rfftfreq(_BLOCK, 1 / MODEL_SAMPLE_RATE)
    shelf, pass_ = 1j * f / 1681.9745, 1j * f / 38.1355
    high, q_shelf, q_pass = 10 ** (3.99984385 / 20), 0.70717524, 0.50032704
    boosted = (high * shelf**2 + math.sqrt(high) * shelf / q_shelf + 1) / (shelf**2 + shelf / q_shelf + 1)
    return np.abs(boosted * pass_**2 / (pass_**2 + pass_ / q_pass + 1)) ** 2


def _level(power: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return -0.691 + 10 * np.log10(power)


def _integrated(power: np.ndarray, levels: np.ndarray) -> float:
    audible = levels > _ABSOLUTE_GATE
    if not audible.any():
        return -math.inf
    gate = _level(power[audible].mean()) + _RELATIVE_GATE
    return float(_level(power[levels > max(gate, _ABSOLUTE_GATE)].mean()))
