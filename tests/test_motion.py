"""Sampled motion follows the sound and the controls, and prompts say what the controls ask."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wan_s2v.errors import UsageError
from wan_s2v.training.identities import sample_identities
from wan_s2v.training.motion import (
    FPS,
    Camera,
    Controls,
    Expression,
    Head,
    reference_motion,
    sample_controls,
    sample_motion,
)  # fmt: skip
from wan_s2v.training.poses import MOTION_CHANNELS, MOTION_RANGES, rest_motion
from wan_s2v.training.prompts import colour_name, describe, identity_facts

FRAMES = 96


def channel(motion, name):
    return motion[..., MOTION_CHANNELS.index(name)]


def speech(clips=1, frames=FRAMES):
    """Mouth and energy that open and close about four times a second, after a short silence."""
    beat = (torch.sin(torch.arange(frames) * 1.6) * 0.5 + 0.5) * (torch.arange(frames) >= 4)
    mouth = torch.zeros(clips, frames, 6)
    mouth[..., 0] = beat
    return mouth, beat.expand(clips, -1).clone()


def moved(controls, seed=0, frames=FRAMES):
    mouth, energy = speech(len(controls), frames)
    return sample_motion(mouth, energy, controls, torch.Generator().manual_seed(seed))


@settings(max_examples=20, deadline=None)
@given(
    st.integers(1, 90), st.integers(0, 2**31), st.sampled_from(get_args(Expression)), st.sampled_from(get_args(Head)),
    st.sampled_from(get_args(Camera)),
)  # fmt: skip
def test_motion_stays_in_range_and_starts_at_rest(frames, seed, expression, head, camera):
    motion = moved([Controls(expression, head, camera)], seed, frames)
    assert motion.shape == (1, frames, len(MOTION_CHANNELS))
    assert torch.isfinite(motion).all()
    for name, (low, high) in MOTION_RANGES.items():
        assert channel(motion, name).min() >= low
        assert channel(motion, name).max() <= high
    expected = rest_motion(1)
    head_channels = [i for i, name in enumerate(MOTION_CHANNELS) if name not in ("jaw", "brow_raise")]
    assert (motion[:, 0] - expected)[:, head_channels].abs().max() < 0.05
    assert torch.equal(reference_motion(2), rest_motion(2))


def test_the_mouth_is_the_sounds_and_shut_in_silence():
    mouth, energy = speech()
    mouth[:, 40:60, 0] = 0.8
    energy[:, 40:60] = 0
    motion = sample_motion(mouth, energy, [Controls()], torch.Generator().manual_seed(0))
    assert channel(motion, "open")[:, 43:57].abs().max() == 0
    assert torch.equal(channel(motion, "open")[:, 4:40], mouth[:, 4:40, 0])
    energy[:, 70] = 0  # the closure of a plosive
    motion = sample_motion(mouth, energy, [Controls()], torch.Generator().manual_seed(0))
    assert torch.equal(channel(motion, "open")[:, 65:75], mouth[:, 65:75, 0])
    jaw, open_ = channel(motion, "jaw")[0, 4:40], mouth[0, 4:40, 0]
    assert torch.corrcoef(torch.stack([jaw, open_]))[0, 1] > 0.8


def test_the_same_seed_gives_the_same_motion():
    assert torch.equal(moved([Controls()] * 2, 3), moved([Controls()] * 2, 3))
    assert not torch.equal(moved([Controls()] * 2, 3), moved([Controls()] * 2, 4))


def test_blinks_are_short_and_some_seconds_apart():
    blink = channel(moved([Controls()] * 8, 1, 30 * FPS), "blink")
    for curve in blink:
        starts = torch.nonzero((curve[1:] > 0) & (curve[:-1] == 0))[:, 0]
        gaps = starts.diff() / FPS
        assert 4 <= len(starts) <= 15
        assert gaps.min() >= 1.9
        assert gaps.max() <= 6.1
        assert (curve > 0).sum() <= 4 * (len(starts) + 1)


def test_the_head_follows_the_stress():
    mouth, energy = torch.zeros(40, FRAMES, 6), torch.zeros(40, FRAMES)
    energy[:, 30:50] = 1
    motion = sample_motion(mouth, energy, [Controls()] * 40, torch.Generator().manual_seed(0))
    for name in ("pitch", "brow_raise"):
        mean = channel(motion, name).mean(0)
        assert mean[34:46].mean() > mean[10:24].mean() + 0.02


def test_expressions_heads_and_cameras_are_seen():
    late = slice(40, None)

    def mean(name, **control):
        return channel(moved([Controls(**control)] * 16), name)[:, late].mean()

    assert mean("smile", expression="smiling") > 0.5
    assert mean("smile", expression="sad") < -0.4
    assert mean("brow_frown", expression="angry") > 0.6
    assert mean("brow_raise", expression="surprised") > 0.5
    assert abs(mean("smile")) < 0.1
    assert mean("yaw", head="looking right") > 0.2 > -0.2 > mean("yaw", head="looking left")
    assert mean("zoom", camera="push in") > 1.1
    assert mean("zoom", camera="pull out") < 0.95
    assert mean("pan_x", camera="pan right") > 0.05 > -0.05 > mean("pan_x", camera="pan left")
    assert mean("zoom") == 1
    still, lively, nodding, shaking = (
        moved([Controls(head=head)] * 16) for head in ("still", "lively", "nodding", "shaking")
    )
    assert channel(still, "yaw").std() < 0.5 * channel(lively, "yaw").std()
    assert channel(nodding, "pitch").std() > 2 * channel(still, "pitch").std()
    assert channel(shaking, "yaw").std() > 2 * channel(still, "yaw").std()
    tilt = channel(moved([Controls(head="tilting")] * 16), "roll")[:, late].mean(1).abs()
    assert tilt.min() > 0.08


def test_gaze_jumps_and_rests():
    gaze = channel(moved([Controls()] * 6, 2, 20 * FPS), "gaze_x")
    steps = gaze.diff(dim=1).abs()
    assert (steps == 0).float().mean() > 0.8
    assert steps.max() > 0.1


@pytest.mark.parametrize("shape", [(1, 8, 5), (2, 8, 6), (1, 0, 6), (8, 6)])
def test_shapes_that_do_not_belong_together_are_refused(shape):
    with pytest.raises(UsageError):
        sample_motion(torch.zeros(shape), torch.zeros(1, 8), [Controls()], torch.Generator())


def test_unknown_controls_are_refused():
    with pytest.raises(UsageError, match="smiling"):
        Controls(expression="happy")


def test_sampled_controls_cover_everything():
    controls = sample_controls(400, torch.Generator().manual_seed(0))
    assert {c.expression for c in controls} == set(get_args(Expression))
    assert {c.head for c in controls} == set(get_args(Head))
    assert {c.camera for c in controls} == set(get_args(Camera))


EXPECTED = {
    "en": {"smiling": "smil", "sad": "sad", "surprised": "surpris", "angry": "angr", "nodding": "nod",
           "shaking": "shak", "looking left": "left", "looking right": "right", "tilting": "tilt",
           "push in": "push in|pushes in", "pull out": "pull out|pulls out", "pan left": "left", "pan right": "right"},
    "zh": {"smiling": "微笑", "sad": "悲伤", "surprised": "惊讶", "angry": "愤怒", "nodding": "点头", "shaking": "摇头",
           "looking left": "左边", "looking right": "右边", "tilting": "头", "push in": "推", "pull out": "拉远",
           "pan left": "左", "pan right": "右"},
}  # fmt: skip


@pytest.mark.parametrize("language", ["en", "zh"])
def test_prompts_say_what_the_controls_ask(language):
    generator = torch.Generator().manual_seed(1)
    crowd = sample_identities(300, generator)
    for row, controls in enumerate(sample_controls(300, generator)):
        text = describe(controls, identity_facts(crowd, row), language, generator)
        for asked in (controls.expression, controls.head, controls.camera):
            words = EXPECTED[language].get(asked, "").split("|")
            assert any(word in text.lower() for word in words), (asked, text)
        for other in set(EXPECTED[language]) & {"smiling", "sad", "surprised", "angry"} - {controls.expression}:
            assert EXPECTED[language][other] not in text.lower()


@pytest.mark.parametrize("language", ["en", "zh"])
def test_prompts_vary_and_tell_the_truth_about_the_person(language):
    generator = torch.Generator().manual_seed(2)
    crowd = sample_identities(200, generator)
    seen = set()
    for row in range(200):
        facts = identity_facts(crowd, row)
        text = describe(Controls(), facts, language, generator)
        seen.add(text)
        assert ("woman" in text or "lady" in text or "女" in text) == facts.woman
        if "glasses" in text or "眼镜" in text:
            assert facts.glasses
        if "beard" in text or "络腮胡" in text:
            assert facts.beard == "full"
    assert len(seen) > 120


def test_an_unknown_language_is_refused():
    facts = identity_facts(sample_identities(1, torch.Generator().manual_seed(0)))
    with pytest.raises(UsageError, match="'en' or 'zh'"):
        describe(Controls(), facts, "de", torch.Generator())


@pytest.mark.parametrize(
    ("colour", "name"),
    [((1, 1, 1), "white"), ((0.1, 0.1, 0.1), "black"), ((0.8, 0.1, 0.1), "red"), ((0.1, 0.2, 0.7), "blue"),
     ((0.4, 0.25, 0.1), "brown"), ((0.2, 0.5, 0.2), "green"), ((0.5, 0.5, 0.5), "grey"), ((0.9, 0.8, 0.2), "yellow")],
)  # fmt: skip
def test_colours_have_everyday_names(colour, name):
    assert colour_name(torch.tensor(colour, dtype=torch.float32)) == name
