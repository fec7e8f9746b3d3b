"""Speech made faster, slower or sung, with the times of its sounds kept true.

Singing: every word is spoken on one note of a melody (espeak-ng's inline pitch command, intonation off), then the
vowels are drawn out by overlap-add at pitch-synchronous positions and given vibrato. No vocoder, no other library.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import soxr
from numpy.random import Generator
from numpy.typing import NDArray

from wan_s2v.errors import UsageError
from wan_s2v.training.ipa import VOWELS, split_ipa
from wan_s2v.training.speech import SAMPLE_RATE, Synthesizer, Utterance, Voice

SLOWEST, FASTEST = 0.5, 2.0

# espeak-ng's pitch 0...100 spans two octaves around 50.
_PITCH_STEPS_PER_OCTAVE = 50
_SCALES = ((0, 2, 4, 5, 7, 9, 11), (0, 2, 3, 5, 7, 8, 10), (0, 2, 4, 7, 9))
_WINDOW = 512
_HOP = _WINDOW // 2
# Half a period of the lowest voice, 65 Hz, either way.
_SEARCH = 124


def change_speed(utterance: Utterance, factor: float) -> Utterance:
    """Play `factor` times as fast by resampling: pitch and formants move too, as with another speaker.

    Raises: UsageError if the factor is not within SLOWEST...FASTEST.
    """
    if not SLOWEST <= factor <= FASTEST:
        raise UsageError(f"Speed factor {factor} is not accepted. Give a number from {SLOWEST} to {FASTEST}.")
    waveform = soxr.resample(utterance.waveform, SAMPLE_RATE * factor, SAMPLE_RATE).astype(np.float32)
    return Utterance(waveform, tuple(phoneme.retimed(lambda t: t / factor) for phoneme in utterance.phonemes))


def sing(synthesizer: Synthesizer, text: str, voice: Voice, generator: Generator) -> Utterance:
    """Sing plain text on a random melody: one note a word (two characters in Chinese), vowels held, vibrato."""
    rate = int(generator.integers(90, 150))
    spoken = synthesizer.synthesize(_melody(text, voice.language, generator), voice, rate=rate, pitch_range=0)
    return _vibrate(_hold_vowels(spoken, generator), generator)


def _melody(text: str, language: str, generator: Generator) -> str:
    scale = _SCALES[int(generator.integers(len(_SCALES)))]
    degree, lowest = int(generator.integers(len(scale))), int(generator.integers(5, 45))
    tokens = re.findall(r"<[^>]*>|..?", text) if language == "cmn" else re.findall(r"<[^>]*>|[^\s<]+", text)
    notes = []
    for token in tokens:
        if token.startswith("<"):
            notes.append(token)
            continue
        degree = int(np.clip(degree + generator.integers(-2, 3), 0, len(scale) - 1))
        pitch = min(99, lowest + round(scale[degree] * _PITCH_STEPS_PER_OCTAVE / 12))
        notes.append(f"\x01{pitch}P{token}")
    return ("" if language == "cmn" else " ").join(notes)


def _hold_vowels(utterance: Utterance, generator: Generator) -> Utterance:
    """Draw vowels out to the beats of a random tempo."""
    beat_s = generator.uniform(0.25, 0.5)
    knots = [(0.0, 0.0)]
    for phoneme in utterance.phonemes:
        length_s = phoneme.end_s - phoneme.start_s
        held = length_s
        if length_s > 0.06 and split_ipa(phoneme.ipa)[0][0] in VOWELS:
            beats = generator.choice([1, 2, 3], p=[0.6, 0.3, 0.1])
            held = max(length_s, min(beats * beat_s, 5 * length_s))
            # Onset and end keep their pace; only the middle is held, as singers do.
            edge_s = length_s / 3
            knots.append((phoneme.start_s + edge_s, knots[-1][1] + edge_s))
            knots.append((phoneme.end_s - edge_s, knots[-1][1] + held - 2 * edge_s))
            held = edge_s
        knots.append((phoneme.end_s, knots[-1][1] + held))
    return stretch(utterance, TimeMap(np.array([k[0] for k in knots]), np.array([k[1] for k in knots])))


@dataclass(frozen=True)
class TimeMap:
    """Piecewise linear, increasing map from old to new times in seconds."""

    old_s: NDArray[np.float64]
    new_s: NDArray[np.float64]

    def forward(self, time_s: float) -> float:
        return float(np.interp(time_s, self.old_s, self.new_s))

    def backward(self, times_s: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.interp(times_s, self.new_s, self.old_s)


def stretch(utterance: Utterance, time_map: TimeMap) -> Utterance:
    """Change durations but not pitch (waveform-similarity overlap-add, 32 ms windows).

    Where the map has slope 1 the sound is copied unchanged. Times of the sounds follow the map.
    """
    waveform = np.pad(utterance.waveform, (_WINDOW + _SEARCH, 2 * _WINDOW + _SEARCH))
    length = round(time_map.forward(utterance.duration_s) * SAMPLE_RATE)
    centres = np.arange(0, length + _HOP, _HOP)
    wanted = np.round(time_map.backward(centres / SAMPLE_RATE) * SAMPLE_RATE).astype(int) + _SEARCH + _HOP
    window = np.hanning(_WINDOW + 1)[:-1].astype(np.float32)
    output = np.zeros(len(centres) * _HOP + _WINDOW, np.float32)
    position = int(wanted[0])
    for index, target in enumerate(wanted):
        natural = position + _HOP if index else int(target)
        if abs(natural - target) > 1:
            natural = _most_similar(waveform, natural, int(target))
        elif index:
            natural = min(max(natural, int(target) - _SEARCH), int(target) + _SEARCH)
        position = natural
        output[index * _HOP : index * _HOP + _WINDOW] += window * waveform[position : position + _WINDOW]
    phonemes = tuple(phoneme.retimed(time_map.forward) for phoneme in utterance.phonemes)
    return Utterance(output[_HOP : _HOP + length], phonemes)


def _most_similar(waveform: NDArray[np.float32], natural: int, target: int) -> int:
    """Start within the search range of `target` whose window best continues the one at `natural`."""
    natural = min(natural, len(waveform) - _WINDOW)
    area = waveform[target - _SEARCH : target + _SEARCH + _WINDOW]
    template = waveform[natural : natural + _WINDOW]
    similarity = np.correlate(area, template, "valid")
    power = np.convolve(area**2, np.ones(_WINDOW, np.float32), "valid") * np.sum(template**2)
    # Equal matches lie a period apart; without a price on distance the sound runs ahead of its times.
    price = 0.3 * (np.arange(-_SEARCH, _SEARCH + 1) / _SEARCH) ** 2
    return target - _SEARCH + int(np.argmax(similarity / np.sqrt(power + 1e-8) - price))


def _vibrate(utterance: Utterance, generator: Generator) -> Utterance:
    """Vibrato of at most half a semitone; it moves no sound by more than 1 ms, so times stay."""
    depth, speed = generator.uniform(0, 0.028), generator.uniform(4.5, 6.5)
    steps = np.arange(len(utterance.waveform))
    shift = depth * SAMPLE_RATE / (2 * np.pi * speed) * np.sin(2 * np.pi * speed * steps / SAMPLE_RATE)
    return Utterance(np.interp(steps + shift, steps, utterance.waveform).astype(np.float32), utterance.phonemes)
