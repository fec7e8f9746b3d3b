"""Whether lips and sound belong together, and by how much they are shifted.

Two encoders place five frames of a mouth and the sound of the same 0.3125 s at nearby points. The idea and the two
figures, offset and confidence, are those of SyncNet (Chung and Zisserman, 2016); the networks are ours, trained on
rendered speech, so that the figures compare only with each other.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from wan_s2v.evaluation.mouth_reader import halve, keep

FPS = 16
SAMPLE_RATE = 16_000
LOOK_SIZE = (36, 48)  # height and width of a mouth crop
WINDOW = 5  # frames
MAX_LAG = 15  # frames
MIN_PAIRS, MIN_LAGS = 16, 5  # fewer windows, or lags on each side, say nothing
NUM_MELS = 40
_SAMPLES_PER_FRAME = SAMPLE_RATE // FPS
_STEPS_PER_FRAME = 8
_HOP = _SAMPLES_PER_FRAME // _STEPS_PER_FRAME  # 7.8 ms: a whole number a frame, so that windows start on a step
_FFT, _FFT_WINDOW = 512, 400
_DIMENSIONS = 96
# Frame k shows the time around k / 16, so its sound begins half a frame earlier; an analysis window reaches further.
SAMPLES_BEFORE = _SAMPLES_PER_FRAME // 2 + _FFT // 2


@dataclass(frozen=True)
class Sync:
    """Result of a comparison.

    Args:
        offset: frames at 16 fps by which the picture leads: 3 means that frame k shows the sound of frame k + 3, so
            the lips move too early; negative means that they lag.
        confidence: median over all lags less the least of the mean cosine distances; 0 where nothing fits better than
            anything else.
        distances: mean cosine distance (0…2) at each lag, from -max_lag to max_lag.
    """

    offset: int
    confidence: float
    distances: tuple[float, ...]


class SyncScorer(nn.Module):
    """Encoders of mouths and of sounds into one space."""

    def __init__(self) -> None:
        super().__init__()
        self.look_encoder = nn.Sequential(
            halve(3 * WINDOW, 40), halve(40, 64), keep(64, 64), halve(64, 96), halve(96, 96),
            nn.Flatten(), nn.Linear(96 * 3 * 3, _DIMENSIONS),
        )  # fmt: skip
        self.sound_encoder = nn.Sequential(
            halve(1, 24), halve(24, 48), keep(48, 48), halve(48, 64), halve(64, 96),
            nn.Flatten(), nn.Linear(96 * 3 * 3, _DIMENSIONS),
        )  # fmt: skip
        self.scale = nn.Parameter(torch.tensor(math.log(10.0)))

    def encode_looks(self, crops: Tensor) -> Tensor:
        """(B, T, 3, 36, 48) mouth crops in [-1, 1] → (B, T - 4, 96) of length 1, for frames 2 … T - 3."""
        windows = crops.unfold(1, WINDOW, 1).permute(0, 1, 5, 2, 3, 4).flatten(2, 3)  # (B, T - 4, 15, 36, 48)
        rows = windows.flatten(0, 1)
        rows = rows - rows.mean(dim=(1, 2, 3), keepdim=True)
        rows = rows / (rows.std(dim=(1, 2, 3), keepdim=True) + 0.02)
        return F.normalize(self.look_encoder(rows).float(), dim=1).unflatten(0, windows.shape[:2])

    def encode_sounds(self, sounds: Tensor) -> Tensor:
        """(B, samples) of T frames, as `sound_of_frames` gives them → (B, T - 4, 96) of length 1."""
        with torch.autocast(sounds.device.type, enabled=False):
            mel = log_mel(sounds.float())
        windows = mel.unfold(2, WINDOW * _STEPS_PER_FRAME, _STEPS_PER_FRAME).transpose(1, 2)  # (B, T - 4, 40, 40)
        rows = windows.flatten(0, 1)[:, None]
        return F.normalize(self.sound_encoder(rows).float(), dim=1).unflatten(0, windows.shape[:2])


def num_samples(num_frames: int) -> int:
    """Samples at 16 kHz that `sound_of_frames` takes."""
    return num_frames * _SAMPLES_PER_FRAME + _FFT


def sound_of_frames(waveform: NDArray[np.float32], first: int, num_frames: int) -> NDArray[np.float32]:
    """The samples around frames first … first + num_frames - 1; zero outside the waveform."""
    start = first * _SAMPLES_PER_FRAME - SAMPLES_BEFORE
    sound = np.zeros(num_samples(num_frames), np.float32)
    part = waveform[max(start, 0) : max(start + len(sound), 0)]
    sound[max(-start, 0) : max(-start, 0) + len(part)] = part
    return sound


def log_mel(sounds: Tensor) -> Tensor:
    """(B, samples) at 16 kHz → (B, 40, steps) logarithm of mel bands, about -1…1, eight steps a video frame."""
    window = torch.hann_window(_FFT_WINDOW, device=sounds.device)
    spectrum = torch.stft(sounds, _FFT, _HOP, _FFT_WINDOW, window, center=False, return_complex=True)
    power = spectrum.abs().square()[:, :, :-1]  # the last step belongs to the next frame
    bands = _mel_filters().to(sounds.device) @ power
    return (torch.log10(bands + 1e-5) + 1.5) / 2.5


@cache
def _mel_filters() -> Tensor:
    """(40, 257) triangles of equal width on the mel scale from 60 Hz to 7600 Hz, each summing to 1."""
    low, high = (2595 * math.log10(1 + hertz / 700) for hertz in (60, 7600))
    edges = 700 * (10 ** (torch.linspace(low, high, NUM_MELS + 2) / 2595) - 1)
    frequency = torch.linspace(0, SAMPLE_RATE / 2, _FFT // 2 + 1)
    rise = (frequency - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    fall = (edges[2:, None] - frequency) / (edges[2:] - edges[1:-1])[:, None]
    filters = torch.minimum(rise, fall).clamp(min=0)
    return filters / filters.sum(1, keepdim=True).clamp(min=1e-6)


def compare(looks: NDArray[np.float32], sounds: NDArray[np.float32], max_lag: int = MAX_LAG) -> Sync | None:
    """Offset and confidence of two tracks of unit vectors.

    Args:
        looks, sounds: (n, D), row k of both for the same video frame.
        max_lag: frames; fewer where the tracks are short.
    Returns: None if the tracks are too short to tell (less than 21 rows).
    """
    count = min(len(looks), len(sounds))
    reach = min(max_lag, count - MIN_PAIRS)
    if reach < MIN_LAGS:
        return None
    distances = []
    for lag in range(-reach, reach + 1):
        pictures, voices = looks[max(-lag, 0) : count - max(lag, 0)], sounds[max(lag, 0) : count - max(-lag, 0)]
        distances.append(float(1 - (pictures * voices).sum(axis=1).mean()))
    best = int(np.argmin(distances))
    return Sync(best - reach, float(np.median(distances) - distances[best]), tuple(distances))
