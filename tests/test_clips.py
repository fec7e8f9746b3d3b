"""Clip plans cover every frame once, whatever the duration and rate."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wan_s2v.audio_features import aligned_feature_indices, num_audio_features
from wan_s2v.clips import as_fps, frames_covered, model_frames_needed, plan_aligned, plan_reference
from wan_s2v.errors import UsageError

RATES = st.one_of(
    st.integers(1, 120).map(Fraction), st.sampled_from(["23.976", "29.97", "59.94", "12.5", "47.95"]).map(as_fps)
)
DURATIONS = st.builds(Fraction, st.integers(720, 48_000 * 4000), st.sampled_from([8000, 16_000, 44_100, 48_000]))


@settings(max_examples=1000, deadline=None)
@given(DURATIONS, RATES, st.integers(1, 20).map(lambda n: 4 * n), st.booleans())
def test_aligned_plan_covers_each_frame_once_and_matches_the_sound(duration, fps, frames_per_clip, from_reference):
    plan = plan_aligned(
        duration, fps=fps, model_fps=16, frames_per_clip=frames_per_clip, start_from_reference=from_reference
    )
    assert abs(plan.num_frames / fps - duration) <= max(Fraction(1, 2) / fps, 1 / fps - duration)
    shown = [clip.start + k for clip in plan.clips for k in range(clip.keep_start, clip.keep_stop)]
    assert shown == list(range(plan.model_frames))
    assert (plan.num_frames - 1) * 16 / fps <= plan.model_frames - 1 < (plan.num_frames - 1) * 16 / fps + 1
    lengths = [clip.num_frames for clip in plan.clips]
    assert all(length % 4 == 0 and 0 < length <= frames_per_clip for length in lengths)
    assert max(lengths) - min(lengths) <= 4
    skip = 0 if from_reference else 3
    assert len(plan.clips) == -(-(-(-(plan.model_frames + skip) // 4) * 4) // frames_per_clip)
    assert plan.generated_frames - skip - plan.model_frames < 4
    assert [clip.has_motion for clip in plan.clips] == [from_reference or r > 0 for r in range(plan.num_clips)]


@settings(max_examples=1000, deadline=None)
@given(DURATIONS, st.integers(1, 20).map(lambda n: 4 * n), st.booleans())
def test_each_shown_frame_hears_the_sound_of_its_own_time(duration, frames_per_clip, from_reference):
    plan = plan_aligned(
        duration, fps=Fraction(16), model_fps=16, frames_per_clip=frames_per_clip, start_from_reference=from_reference
    )
    num_features = num_audio_features(int(duration * 16_000) // 320 + 50)
    for clip in (plan.clips[0], plan.clips[-1]):
        heard = aligned_feature_indices(num_features, clip.start, clip.num_frames, plan.model_fps)
        for k in range(clip.keep_start, clip.keep_stop):
            assert abs(Fraction(int(heard[k]), 30) - Fraction(clip.start + k, 16)) <= Fraction(1, 60)


@given(st.integers(1, 10_000), RATES)
def test_frames_covered_inverts_model_frames_needed(num_frames, fps):
    needed = model_frames_needed(num_frames, fps, 16)
    assert frames_covered(needed, fps, 16) >= num_frames
    assert needed == 1 or frames_covered(needed - 1, fps, 16) < num_frames


@given(DURATIONS, RATES, st.integers(1, 4))
def test_num_clips_shortens_the_video_to_what_they_hold(duration, fps, num_clips):
    plan = plan_aligned(duration, fps=fps, model_fps=16, num_clips=num_clips)
    assert plan.num_clips <= num_clips
    assert plan.num_frames <= max(1, round(duration * fps))


def test_five_seconds_at_24_fps():
    plan = plan_aligned(Fraction(5), fps=Fraction(24), model_fps=16)
    assert (plan.num_frames, plan.model_frames, plan.duration) == (120, 81, 5)
    assert [clip.num_frames for clip in plan.clips] == [44, 40]
    assert plan.clips[0].start == -3


@pytest.mark.parametrize(("clips", "from_reference", "frames"), [(1, False, 77), (2, False, 157), (2, True, 160)])
def test_reference_plan_counts_frames_as_the_official_code(clips, from_reference, frames):
    plan = plan_reference(clips, fps=Fraction(16), model_fps=16, start_from_reference=from_reference)
    assert plan.num_frames == plan.model_frames == frames
    assert [clip.start for clip in plan.clips] == [80 * r for r in range(clips)]
    assert sum(clip.num_kept for clip in plan.clips) == frames


def test_reference_plan_is_capped_by_num_clips_and_num_frames():
    plan = plan_reference(5, fps=Fraction(16), model_fps=16, num_clips=2, num_frames=100)
    assert (plan.num_clips, plan.num_frames) == (2, 100)


@pytest.mark.parametrize("value", [81, 0, -4, 2, 84])
def test_clip_length_must_be_a_multiple_of_four_up_to_80(value):
    with pytest.raises(UsageError, match=r"frames_per_clip=.*(Nearest allowed|at most 80)"):
        plan_aligned(Fraction(1), fps=Fraction(24), model_fps=16, frames_per_clip=value)


@pytest.mark.parametrize("name", ["num_frames", "num_clips"])
def test_counts_must_be_positive(name):
    with pytest.raises(UsageError, match=f"{name}=0"):
        plan_aligned(Fraction(1), fps=Fraction(24), model_fps=16, **{name: 0})


def test_frame_rates_are_exact():
    assert as_fps(29.97) == Fraction(30_000, 1001)
    assert as_fps("23.976") == Fraction(24_000, 1001)
    assert as_fps(24.0) == 24
    assert as_fps("12.5") == Fraction(25, 2)
    for bad in (0, -1, 1000, "fast", float("nan"), float("inf")):
        with pytest.raises(UsageError, match="fps="):
            as_fps(bad)
