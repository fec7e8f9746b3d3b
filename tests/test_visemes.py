"""Mouth curves: what a viewer would notice if it were wrong."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wan_s2v.training.ipa import PHONEMES
from wan_s2v.training.speech import SILENCE, Phoneme
from wan_s2v.training.visemes import (
    CLOSED,
    OPEN,
    ROUND,
    SHAPES,
    TEETH,
    TONGUE,
    WIDTH,
    mouth_curve,
    to_video_rate,
)


def speak(*sounds: tuple[str, float], start_s: float = 0.0) -> list[Phoneme]:
    """Sounds of the given lengths in a row."""
    phonemes, time = [], start_s
    for ipa, length_s in sounds:
        phonemes.append(Phoneme(ipa, time, time + length_s, stressed=True))
        time += length_s
    return phonemes


def middle(ipa: str, channel: int) -> float:
    """Value of a channel in the middle of a long sound on its own."""
    return float(mouth_curve(speak((SILENCE, 0.3), (ipa, 0.3), (SILENCE, 0.3)), 90)[45, channel])


def test_every_class_has_a_shape() -> None:
    assert set(SHAPES) == set(PHONEMES)
    assert all(0 <= value <= 1 for shape, _, _ in SHAPES.values() for value in shape)


def test_vowels_look_like_themselves() -> None:
    assert middle("a", OPEN) > 0.7
    assert middle("i", WIDTH) > 0.85
    assert middle("i", OPEN) < 0.4
    assert middle("u", ROUND) > 0.85
    assert middle("u", WIDTH) < 0.1
    assert middle("y", ROUND) > 0.8
    assert middle("a", OPEN) > middle("ɛ", OPEN) > middle("e", OPEN) > middle("i", OPEN)
    assert middle("ɑ̃", OPEN) == middle("ɑ", OPEN) == middle("ɑː", OPEN)


def test_consonants_look_like_themselves() -> None:
    assert middle("f", TEETH) == pytest.approx(1)
    assert middle("f", OPEN) <= 0.1 + 1e-6
    assert middle("θ", TONGUE) > 0.9
    assert middle("s", TEETH) > 0.9
    assert middle("ʃ", ROUND) > 0.5
    assert middle("w", ROUND) > 0.9


@pytest.mark.parametrize("ipa", ["m", "b", "p", "ph"])
@pytest.mark.parametrize("length_s", [0.015, 0.03, 0.07, 0.2])
def test_lips_close_fully_for_40_ms_and_open_on_time(ipa: str, length_s: float) -> None:
    curve = mouth_curve(speak(("a", 0.3), (ipa, length_s), ("a", 0.3)), 80)
    closed = np.flatnonzero(curve[:, CLOSED] > 0.999)
    assert len(closed) >= 5
    assert (curve[closed, OPEN] == 0).all()
    assert closed[-1] == pytest.approx((0.3 + length_s) * 100, abs=1)
    assert curve[20, OPEN] > 0.8
    assert curve[closed[-1] + 8, OPEN] > 0.5


def test_lips_open_at_the_release_of_a_plosive() -> None:
    phonemes = [Phoneme("a", 0, 0.3), Phoneme("p", 0.3, 0.42, release_s=0.36), Phoneme("a", 0.42, 0.7)]
    curve = mouth_curve(phonemes, 70)
    assert curve[31:36, CLOSED].min() == 1
    assert curve[41, CLOSED] == 0


def test_short_vowel_between_closures_still_opens() -> None:
    curve = mouth_curve(speak(("m", 0.08), ("a", 0.05), ("m", 0.08), ("a", 0.3)), 60)
    assert curve[8:14, OPEN].max() > 0.4


def test_rounding_comes_before_its_vowel() -> None:
    curve = mouth_curve(speak(("i", 0.3), ("t", 0.06), ("u", 0.3)), 66)
    half = int(np.argmax(curve[:, ROUND] > 0.5))
    assert 26 <= half <= 36
    assert curve[26, ROUND] > 0.1


def test_diphthongs_glide_and_long_vowels_hold() -> None:
    glide = mouth_curve(speak((SILENCE, 0.3), ("aɪ", 0.3), (SILENCE, 0.3)), 90)
    assert glide[37, OPEN] > 0.7
    assert glide[55, OPEN] < 0.5
    assert glide[55, WIDTH] > glide[37, WIDTH] + 0.25
    hold = mouth_curve(speak(("aː", 2.0)), 200)
    assert np.ptp(hold[20:180, OPEN]) < 1e-3


def test_silence_is_closed_within_120_ms_and_stays_so() -> None:
    curve = mouth_curve(speak((SILENCE, 0.5), ("a", 0.2), (SILENCE, 0.6), ("o", 0.2), (SILENCE, 0.5)), 250)
    assert not curve[:40].any()
    assert not curve[82:120].any()
    assert not curve[162:].any()
    assert curve[60, OPEN] > 0.7
    assert not mouth_curve([], 20).any()


def test_a_short_pause_does_not_shut_the_mouth() -> None:
    curve = mouth_curve(speak(("a", 0.2), (SILENCE, 0.06), ("a", 0.2)), 46)
    assert curve[10:36, OPEN].min() > 0.2


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(PHONEMES), st.floats(0.005, 0.4)), max_size=25),
    st.floats(0, 0.5),
    st.integers(0, 300),
)
def test_curves_stay_in_range(sounds: list[tuple[str, float]], start_s: float, num_steps: int) -> None:
    curve = mouth_curve(speak(*sounds, start_s=start_s), num_steps, strict=True)
    assert curve.shape == (num_steps, 6)
    assert curve.dtype == np.float32
    assert np.isfinite(curve).all()
    assert curve[curve[:, CLOSED] > 0.999, OPEN].max(initial=0) < 1e-3
    assert curve.min(initial=0) >= 0
    assert curve.max(initial=0) <= 1


@pytest.mark.parametrize("fps", [16, 24, 25, 29.97])
def test_video_frame_shows_its_own_time(fps: float) -> None:
    times = np.arange(400) / 100
    curve = np.zeros((400, 6), np.float32)
    curve[:, OPEN] = 0.5 + 0.4 * np.sin(2 * np.pi * times)
    frames = int(3.5 * fps)
    video = to_video_rate(curve, fps, frames, start_frame=3)
    wanted = 0.5 + 0.4 * np.sin(2 * np.pi * (np.arange(frames) + 3) / fps)
    assert np.abs(video[:, OPEN] - wanted).max() < 0.012
    assert np.array_equal(video, to_video_rate(curve, fps, frames + 3)[3:])


def test_closure_shorter_than_a_frame_is_seen_once() -> None:
    for shift in np.linspace(0, 0.0625, 9):
        phonemes = speak(("a", 0.4 + shift), ("m", 0.05), ("a", 0.4))
        video = to_video_rate(mouth_curve(phonemes, 100), 16, 14)
        assert (video[:, OPEN] == 0).sum() == 1
        assert video[:, CLOSED].max() == 1


def test_video_past_the_curve_is_at_rest() -> None:
    video = to_video_rate(np.ones((10, 6), np.float32), 25, 10, start_frame=5)
    assert video.shape == (10, 6)
    assert not video.any()
    assert to_video_rate(np.zeros((0, 6), np.float32), 25, 4).shape == (4, 6)
