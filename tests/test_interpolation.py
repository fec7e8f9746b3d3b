"""Frame interpolation: counts, streaming, exactness, and pictures that beat blending."""

from __future__ import annotations

import math
from fractions import Fraction

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wan_s2v.clips import model_frames_needed
from wan_s2v.errors import UsageError
from wan_s2v.interpolation import FrameInterpolator

RATES = st.sampled_from([8, 12, 16, 24, 25, 30, 48, 50, 60, Fraction(24000, 1001), Fraction(30000, 1001)])


def _texture(height, width, seed=0):
    noise = np.random.default_rng(seed).normal(size=(height, width, 3)).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), 3)
    return ((smooth - smooth.min()) / (smooth.max() - smooth.min()) * 255).astype(np.uint8)


def _moved(image, dx, dy, angle=0.0, size=(128, 96)):
    matrix = cv2.getRotationMatrix2D((image.shape[1] / 2, image.shape[0] / 2), angle, 1)
    matrix[:, 2] += (dx - 20, dy - 20)
    return cv2.warpAffine(image, matrix, size, flags=cv2.INTER_CUBIC)


def _pan(time):
    return _moved(_texture(160, 180), 5 * time, 3 * time)


def _rotation(time):
    return _moved(_texture(160, 180), 0, 0, 4 * time)


def _moving_head(time):
    """A textured disc in front of another texture, so that background is covered and uncovered."""
    y, x = np.mgrid[:96, :128]
    inside = ((x - 50 - 6 * time) ** 2 + (y - 48) ** 2 < 30**2)[..., None]
    return np.where(inside, _moved(_texture(160, 180, 1), 6 * time, 0), _moved(_texture(160, 180), 0, 0))


def _psnr(actual, expected):
    return 10 * math.log10(255**2 / ((actual.astype(float) - expected) ** 2).mean())


def _numbered(count):
    """Frames whose top left pixel counts, small enough for many of them."""
    frames = np.zeros((count, 16, 16, 3), np.uint8)
    frames[:] = (np.arange(count) % 256)[:, None, None, None]
    return frames


@pytest.mark.parametrize("scene", [_pan, _rotation, _moving_head])
@pytest.mark.parametrize("third", [1, 2])
def test_in_between_frames_beat_blending_by_far(scene, third):
    time = third / 3
    first, second, truth = scene(0), scene(1), scene(time)
    made = FrameInterpolator(16, 48).push(np.stack([first, second]))[third]
    blended = np.rint(first * (1 - time) + second * time)
    assert _psnr(made, truth) > _psnr(blended, truth) + 6


def test_float_frames_give_the_same_picture_as_bytes():
    frames = np.stack([_pan(0), _pan(1)])
    as_bytes = FrameInterpolator(16, 32).push(frames)
    as_floats = FrameInterpolator(16, 32).push(frames.astype(np.float32) / 127.5 - 1)
    assert as_floats.dtype == np.float32
    assert np.abs(as_floats).max() <= 1
    assert np.abs((as_floats + 1) * 127.5 - as_bytes).max() <= 1.5


def test_a_still_picture_stays_bit_exact():
    still = np.repeat(_pan(0)[None], 3, axis=0)
    made = FrameInterpolator(16, 24).push(still)
    assert (made == still[0]).all()


def test_a_scene_cut_shows_one_scene_or_the_other():
    first, second = _texture(96, 128, 1), 255 - _texture(96, 128, 2)
    made = FrameInterpolator(16, 64).push(np.stack([first, second]))
    assert [np.array_equal(frame, first) for frame in made] == [True, True, False, False, False]
    assert np.array_equal(made[2], second)


def test_a_fade_is_not_a_cut():
    bright = _texture(96, 128)
    made = FrameInterpolator(16, 32).push(np.stack([bright, bright // 2]))[1]
    assert abs(made.mean() - bright.mean() * 0.75) < 3


@settings(max_examples=40, deadline=None)
@given(fps=RATES, count=st.integers(1, 12), cuts=st.lists(st.integers(0, 12), max_size=4), extra=st.integers(0, 6))
def test_any_division_into_clips_gives_the_same_frames(fps, count, cuts, extra):
    frames = np.stack([_moved(_texture(60, 60), 2 * i, i, size=(32, 24)) for i in range(count)])
    total = math.ceil(count * Fraction(fps) / 16) + extra
    whole = FrameInterpolator(16, fps)
    expected = np.concatenate([whole.push(frames), whole.finish(total)])
    streamed, parts = FrameInterpolator(16, fps), []
    for part in np.split(frames, sorted(min(cut, count) for cut in cuts)):
        parts.append(streamed.push(part))
    parts.append(streamed.finish(total))
    assert np.array_equal(np.concatenate(parts), expected)
    assert len(expected) == total


@settings(max_examples=60, deadline=None)
@given(fps=RATES, num_frames=st.integers(1, 60))
def test_needed_model_frames_suffice_and_one_less_does_not(fps, num_frames):
    needed = model_frames_needed(num_frames, fps, 16)
    assert len(FrameInterpolator(16, fps, num_frames=num_frames).push(_numbered(needed))) == num_frames
    if needed > 1:
        assert len(FrameInterpolator(16, fps).push(_numbered(needed - 1))) < num_frames


@settings(max_examples=30, deadline=None)
@given(fps=RATES)
def test_frames_that_fall_on_a_model_frame_are_that_frame(fps):
    frames = np.random.default_rng(0).integers(0, 256, (9, 24, 24, 3), dtype=np.uint8)
    made = FrameInterpolator(16, fps).push(frames)
    for index, frame in enumerate(made):
        position = index * Fraction(16) / fps
        if position.denominator == 1:
            assert np.array_equal(frame, frames[int(position)])


def test_equal_rates_pass_through_and_the_last_frame_is_held():
    frames = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)
    interpolator = FrameInterpolator(16, 16)
    made = np.concatenate([interpolator.push(frames[:2]), interpolator.push(frames[2:]), interpolator.finish(7)])
    assert np.array_equal(made[:5], frames)
    assert np.array_equal(made[5:], frames[[4, 4]])


def test_pushed_buffers_may_be_reused():
    buffer = np.stack([_pan(0), _pan(1)])
    interpolator = FrameInterpolator(16, 32)
    interpolator.push(buffer)
    expected = FrameInterpolator(16, 32).push(np.stack([_pan(1), _pan(2)]))[1]
    buffer[:] = 0
    assert np.array_equal(interpolator.push(_pan(2)[None])[0], expected)


def test_the_limit_holds_and_five_seconds_stay_five_seconds():
    interpolator = FrameInterpolator(16, 24, num_frames=120)
    made = len(interpolator.push(_numbered(80)))
    assert made + len(interpolator.finish()) == 120
    assert len(interpolator.push(_numbered(4))) == 0
    assert model_frames_needed(120, 24, 16) == 81


def test_wrong_use_is_named():
    with pytest.raises(UsageError, match="No frame was pushed"):
        FrameInterpolator(16, 24).finish(3)
    with pytest.raises(UsageError, match="positive rates"):
        FrameInterpolator(16, 0)
    with pytest.raises(UsageError, match="not accepted"):
        FrameInterpolator(16, 24).push(np.zeros((2, 16, 16, 3), np.float64))
