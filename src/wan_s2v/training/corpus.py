"""Training clips of speech: fixed length, with mouth curve, sound classes and energy; one at a time or by the hour.

A clip is decided by its seed alone, so the same seed gives the same corpus on any number of processes. Noise, rooms and
music are not here: `augment` adds them to batches during training, where each epoch can have others.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from wan_s2v.errors import UsageError
from wan_s2v.training.ipa import frame_labels
from wan_s2v.training.prosody import change_speed, sing
from wan_s2v.training.speech import (
    HELD_OUT_LANGUAGES,
    HELD_OUT_VOICES,
    SAMPLE_RATE,
    Synthesizer,
    Utterance,
)
from wan_s2v.training.texts import LANGUAGES, Split, random_text
from wan_s2v.training.visemes import mouth_curve, to_video_rate

CURVE_HZ, LABEL_HZ = 100, 50

_LANGUAGE_WEIGHTS = {"en": 4.0, "cmn": 2.0, "ja": 2.0, "de": 1.5, "es": 1.5, "fr": 1.5, "pt": 1.0, "it": 2.0}
_SUNG_SHARE, _SPEED_SHARE, _SILENT_SHARE = 0.10, 0.40, 0.02
_QUIETEST_DB = -50.0
_CLIPS_PER_TASK = 32
_SPLIT_KEYS = {"train": 0, "held-out": 1}


@dataclass(frozen=True)
class SpeechClip:
    """One clip of `seconds`.

    waveform: (seconds * 16000,) float32 in -1...1. mouth: (seconds * 100, 6) float32 in 0...1, channels as
    `visemes.MOUTH_CHANNELS`. labels: (seconds * 50,) int64 into `ipa.PHONEMES`. energy: (seconds * 100,) float32, 0 is
    50 dB below the clip's loudest moment, 1 is that moment.
    """

    waveform: NDArray[np.float32]
    mouth: NDArray[np.float32]
    labels: NDArray[np.int64]
    energy: NDArray[np.float32]
    language: str
    voice: str
    text: str


@dataclass(frozen=True)
class Corpus:
    """Clips stacked: waveforms (N, S) int16; mouth (N, T, 6), energy (N, T) uint8 of 255; labels (N, T / 2) uint8."""

    waveforms: NDArray[np.int16]
    mouth: NDArray[np.uint8]
    labels: NDArray[np.uint8]
    energy: NDArray[np.uint8]
    languages: tuple[str, ...]


@cache
def _synthesizer() -> Synthesizer:
    return Synthesizer()


def sample_utterance(
    generator: Generator, split: Split = "train", seconds: float = 8.0, language: str | None = None
) -> SpeechClip:
    """A random clip: language, speaker, prosody and text of the split, perhaps sung, sped up or with silence around it.

    In "held-out" the sentences, the speakers and Italian are ones that "train" never has.

    Args:
        seconds: clip length, a multiple of 0.02. language: one of `texts.LANGUAGES`; random if None.
    Raises: UsageError if a value is not accepted or espeak-ng is not installed.
    """
    _check(split, seconds, language)
    chosen = language or _random_language(generator, split)
    variants = [v for v in _synthesizer().voices(chosen) if (v.variant in HELD_OUT_VOICES) == (split == "held-out")]
    voice = variants[int(generator.integers(len(variants)))]
    text = random_text(chosen, generator, 1.15 * seconds, split)
    if generator.random() < _SUNG_SHARE:
        utterance = sing(_synthesizer(), text, voice, generator)
    else:
        rate, pitch, pitch_range = (int(generator.integers(*limits)) for limits in ((115, 216), (12, 88), (15, 85)))
        utterance = _synthesizer().synthesize(text, voice, rate=rate, pitch=pitch, pitch_range=pitch_range)
    if generator.random() < _SPEED_SHARE:
        utterance = change_speed(utterance, generator.uniform(0.8, 1.25))
    utterance = _place(utterance, generator, seconds)
    return _clip(utterance, seconds, chosen, voice.name, text)


def generate_corpus(
    minutes: float, split: Split = "train", seed: int = 0, workers: int = 1, seconds: float = 8.0
) -> Corpus:
    """At least `minutes` of clips; clip i depends on seed, split and i only.

    With several workers, processes are spawned: call it under `if __name__ == "__main__"` in a script.

    Raises: UsageError as `sample_utterance`, or if minutes or workers is not positive.
    """
    _check(split, seconds, None)
    if minutes <= 0 or workers < 1:
        raise UsageError(f"minutes={minutes}, workers={workers} is not accepted. Both must be above 0.")
    count = int(np.ceil(minutes * 60 / seconds))
    tasks = [
        (seed, split, seconds, first, min(first + _CLIPS_PER_TASK, count)) for first in range(0, count, _CLIPS_PER_TASK)
    ]
    parts = list(_run(tasks, workers))
    return Corpus(
        waveforms=np.concatenate([part.waveforms for part in parts]),
        mouth=np.concatenate([part.mouth for part in parts]),
        labels=np.concatenate([part.labels for part in parts]),
        energy=np.concatenate([part.energy for part in parts]),
        languages=tuple(language for part in parts for language in part.languages),
    )


_Task = tuple[int, Split, float, int, int]


def _run(tasks: list[_Task], workers: int) -> Iterator[Corpus]:
    if workers == 1:
        yield from map(_stack, tasks)
        return
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(_stack, tasks)


def _stack(task: _Task) -> Corpus:
    seed, split, seconds, first, end = task
    clips = [
        sample_utterance(np.random.default_rng((seed, _SPLIT_KEYS[split], index)), split, seconds)
        for index in range(first, end)
    ]
    return Corpus(
        waveforms=np.stack([np.round(clip.waveform * 32767).astype(np.int16) for clip in clips]),
        mouth=np.stack([np.round(clip.mouth * 255).astype(np.uint8) for clip in clips]),
        labels=np.stack([clip.labels.astype(np.uint8) for clip in clips]),
        energy=np.stack([np.round(clip.energy * 255).astype(np.uint8) for clip in clips]),
        languages=tuple(clip.language for clip in clips),
    )


def curves_at_video_rate(
    corpus: Corpus, fps: int, num_frames: int, first_frame: int = 0
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mouth shapes (N, T, 6) and energy (N, T), 0...1, of video frames first_frame, ...; silence beyond the clips."""
    steps = np.round((first_frame + np.arange(num_frames)) * CURVE_HZ / fps).astype(int)
    last = corpus.energy.shape[1] - 1
    energy = np.where((steps >= 0) & (steps <= last), corpus.energy[:, np.clip(steps, 0, last)], 0)
    curves = [to_video_rate(curve / np.float32(255), fps, num_frames, first_frame) for curve in corpus.mouth]
    return np.stack(curves), energy.astype(np.float32) / np.float32(255)


def _check(split: str, seconds: float, language: str | None) -> None:
    if split not in _SPLIT_KEYS:
        raise UsageError(f"split={split!r} is not accepted. Splits: {', '.join(_SPLIT_KEYS)}.")
    if seconds <= 0 or abs(seconds * LABEL_HZ - round(seconds * LABEL_HZ)) > 1e-6:
        raise UsageError(f"seconds={seconds} is not accepted. Give a positive multiple of {1 / LABEL_HZ}.")
    if language is not None and language not in LANGUAGES:
        raise UsageError(f"language={language!r} is not accepted. Languages: {', '.join(LANGUAGES)}.")
    if split == "train" and language in HELD_OUT_LANGUAGES:
        raise UsageError(f"language={language!r} is held out from training. Use split='held-out'.")


def _random_language(generator: Generator, split: Split) -> str:
    languages = [language for language in LANGUAGES if split == "held-out" or language not in HELD_OUT_LANGUAGES]
    weights = np.array([_LANGUAGE_WEIGHTS[language] for language in languages])
    return languages[int(generator.choice(len(languages), p=weights / weights.sum()))]


def _place(utterance: Utterance, generator: Generator, seconds: float) -> Utterance:
    """Put the utterance into a clip of `seconds` at a random loudness, after some silence or with its start cut off."""
    length = round(seconds * SAMPLE_RATE)
    latest = max(0.0, utterance.duration_s - seconds)
    # Half of the clips open with silence, the rest start anywhere that still fills the clip.
    offset_s = generator.uniform(0, 0.7) if generator.random() < 0.5 else -generator.uniform(0, latest)
    if generator.random() < _SILENT_SHARE:
        offset_s = seconds
    shift = round(offset_s * SAMPLE_RATE)
    source = utterance.waveform[max(0, -shift) :][: max(0, length - max(0, shift))]
    waveform = np.zeros(length, np.float32)
    waveform[max(0, shift) : max(0, shift) + len(source)] = source
    waveform *= generator.uniform(0.15, 0.95) / max(float(np.abs(waveform).max()), 0.02)
    shift_s = shift / SAMPLE_RATE
    return Utterance(waveform, tuple(phoneme.retimed(lambda t: t + shift_s) for phoneme in utterance.phonemes))


def _clip(utterance: Utterance, seconds: float, language: str, voice: str, text: str) -> SpeechClip:
    steps = round(seconds * CURVE_HZ)
    return SpeechClip(
        waveform=utterance.waveform,
        mouth=mouth_curve(utterance.phonemes, steps),
        labels=frame_labels(utterance.phonemes, round(seconds * LABEL_HZ)),
        energy=energy_curve(utterance.waveform, steps),
        language=language,
        voice=voice,
        text=text,
    )


def energy_curve(waveform: NDArray[np.float32], num_steps: int) -> NDArray[np.float32]:
    """Loudness at k / 100 s in a 25 ms window, (num_steps,) float32: 0 at -50 dB or less, 1 at the loudest moment."""
    hop = SAMPLE_RATE // CURVE_HZ
    window = np.hanning(SAMPLE_RATE // 40)
    padded = np.pad(waveform.astype(np.float64) ** 2, (0, max(0, num_steps * hop - len(waveform))))
    power = np.convolve(padded, window / window.sum(), "same")[::hop][:num_steps]
    decibels = 10 * np.log10(power / max(float(power.max(initial=0)), 1e-8) + 1e-12)
    return np.clip(1 - decibels / _QUIETEST_DB, 0, 1).astype(np.float32)
