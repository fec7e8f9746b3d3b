"""Drawn portraits: valid pixels for any parameters, the same picture at any size, and mouths and eyes that show."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wan_s2v.errors import UsageError
from wan_s2v.training.identities import COVERS, HAIR_STYLES, Identities, sample_identities
from wan_s2v.training.portraits import draw_pose, eye_box, face_box, joints, mouth_box, render
from wan_s2v.training.poses import MOTION_CHANNELS, MOTION_RANGES, rest_motion

SIZE = 96
EXTREMES = st.lists(st.floats(-3, 3, width=32), min_size=len(MOTION_CHANNELS), max_size=len(MOTION_CHANNELS))


def people(count, seed=0):
    return sample_identities(count, torch.Generator().manual_seed(seed))


def plain_people(count):
    """People whose mouth and eyes nothing hides."""
    crowd = people(150, 5)
    rows = torch.nonzero((crowd.beard == 0) & (crowd.glasses == 0) & (crowd.hair_style < 3))[:count, 0]
    assert len(rows) == count
    return crowd[rows]


def motion(count=1, **channels):
    values = rest_motion(count)
    for name, value in channels.items():
        values[:, MOTION_CHANNELS.index(name)] = torch.as_tensor(value, dtype=torch.float32)
    return values


def inside(frame, box):
    """Pixels (3, h, w) of a (3, S, S) frame within a normalised box."""
    left, top, right, bottom = (box * frame.shape[-1]).round().int().tolist()
    return frame[:, top:bottom, left:right]


@settings(max_examples=25, deadline=None)
@given(EXTREMES, st.integers(0, 2**31), st.sampled_from([(16, 16), (33, 20), (24, 57)]))
def test_every_parameter_gives_valid_pixels(values, seed, size):
    frame = render(people(1, seed), torch.tensor([values]), *size)
    assert frame.shape == (1, 3, *size)
    assert frame.dtype == torch.float32
    assert torch.isfinite(frame).all()
    assert frame.min() >= 0
    assert frame.max() <= 1


def test_same_people_and_motion_give_the_same_frames():
    first, second = (render(people(3, 9), motion(3, open=0.5, yaw=0.1), SIZE, SIZE) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, render(people(3, 10), motion(3, open=0.5, yaw=0.1), SIZE, SIZE))


def test_people_differ_from_each_other():
    frames = render(people(8), motion(8), 48, 48).flatten(1)
    distance = torch.cdist(frames, frames) / frames.shape[1] ** 0.5 + torch.eye(8)
    assert distance.min() > 0.05


def test_a_batch_equals_its_members_drawn_alone():
    crowd, moved = people(4), motion(4, open=[0, 0.3, 0.6, 1], yaw=[-0.3, 0.3, 0, 0.1], zoom=[1, 1.2, 0.9, 1])
    together = render(crowd, moved, 64, 80)
    alone = torch.cat([render(crowd[i], moved[i : i + 1], 64, 80) for i in range(4)])
    assert (together - alone).abs().max() < 1e-5


@pytest.mark.parametrize("size", [(96, 96), (64, 96), (120, 72)])
def test_a_large_picture_reduced_is_the_small_picture(size):
    crowd, moved = people(12, 3), motion(12, open=0.6, teeth=0.6, yaw=0.15)
    small = render(crowd, moved, *size)
    large = torch.nn.functional.avg_pool2d(render(crowd, moved, 2 * size[0], 2 * size[1]), 2)
    error = (small - large).abs()
    assert error.mean() < 0.008
    assert error.flatten(1).quantile(0.99, dim=1).max() < 0.12


def test_wider_and_taller_frames_show_the_same_head():
    crowd, moved = people(4), motion(4, open=0.4)
    square = render(crowd, moved, 96, 96)
    wide, tall = render(crowd, moved, 96, 160), render(crowd, moved, 160, 96)
    middle = slice(24, 72)
    assert (square[:, :, middle, middle] - wide[:, :, middle, 56:104]).abs().mean() < 0.01
    assert (square[:, :, middle, middle] - tall[:, :, 56:104, middle]).abs().mean() < 0.01


def test_an_opening_mouth_shows_more_and_more_of_its_inside():
    who, levels = plain_people(5), torch.linspace(0, 1, 6)
    for i in range(5):
        moved = motion(6, open=levels, jaw=levels)
        frames = render(who[i].repeat(6), moved, 192, 192)
        box = mouth_box(who[i], moved[-1:])[0]
        mouth = torch.stack([inside(frame, box) for frame in frames])
        changed = (mouth - mouth[:1]).abs().amax(1) > 0.12
        areas = changed.flatten(1).sum(1)
        assert (areas.diff() > 0).all(), areas
        assert areas[-1] > 0.08 * changed[0].numel()


def test_only_an_open_mouth_is_dark_inside():
    who = plain_people(5)
    for open_, closed, dark in ((0.0, 0.0, False), (0.9, 1.0, False), (0.9, 0.0, True)):
        moved = motion(5, open=open_, closed=closed, jaw=open_ * (1 - closed), teeth=0.3)
        frames, boxes = render(who, moved, 192, 192), mouth_box(who, moved)
        for frame, box, skin in zip(frames, boxes, who.skin, strict=True):
            ratio = inside(frame, box).mean(0) / skin.mean()
            assert ((ratio < 0.28).float().mean() > 0.03) == dark


def test_teeth_whiten_the_mouth_and_rounding_narrows_it():
    who = plain_people(4)
    shut, teeth = (render(who, motion(4, open=0.5, teeth=t), 192, 192) for t in (0.0, 1.0))
    boxes = mouth_box(who, motion(4, open=0.5))
    for less, more, box in zip(shut, teeth, boxes, strict=True):
        assert inside(more, box).amin(0).quantile(0.97) > inside(less, box).amin(0).quantile(0.97)
    spread, rounded = (render(who, motion(4, open=0.4, **{name: 1}), 192, 192) for name in ("width", "round"))
    plain = render(who, motion(4), 192, 192)
    for i, box in enumerate(boxes):
        changes = [(inside(f[i], box) - inside(plain[i], box)).abs().amax(0) > 0.15 for f in (spread, rounded)]
        assert changes[0].any(0).sum() > changes[1].any(0).sum()


def test_a_bite_of_the_lip_is_not_a_press_of_the_lips():
    who = plain_people(1)
    lips = [render(who, m, 192, 192) for m in (motion(open=0.1, teeth=1, width=0.2), motion(closed=1))]
    box = mouth_box(who, motion(1))[0]
    bite, press = (inside(frame[0], box).amin(0).flatten() for frame in lips)
    assert (bite - press).max() > 0.2


def test_a_blink_hides_the_eyes():
    who = plain_people(6)
    moved = motion(6)
    awake, asleep = render(who, moved, 192, 192), render(who, motion(6, blink=1), 192, 192)
    for i, box in enumerate(eye_box(who, moved)):
        whites = [(inside(f[i], box).amin(0) > 0.98 * who.skin[i].amin()).float().mean() for f in (awake, asleep)]
        assert (inside(awake[i], box) - inside(asleep[i], box)).abs().mean() > 0.03
        assert inside(asleep[i], box).std() < inside(awake[i], box).std()
        assert whites[1] < whites[0] or who.skin[i].amin() > 0.7


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000), st.data())
def test_boxes_hold_what_they_name(seed, data):
    who = people(1, seed)
    names = ("yaw", "pitch", "roll", "sway_x", "sway_y", "pan_x", "pan_y", "zoom")
    held = {name: data.draw(st.floats(*MOTION_RANGES[name])) for name in names}
    rest, moved = motion(1, **held), motion(1, open=1, jaw=0, teeth=0.5, **held)
    difference = (render(who, rest, SIZE, SIZE) - render(who, moved, SIZE, SIZE))[0].abs().amax(0)
    left, top, right, bottom = (mouth_box(who, moved)[0] * SIZE).tolist()
    rows, cols = torch.nonzero(difference > 0.25, as_tuple=True)
    assert len(rows) > 0
    within = (rows >= top - 2) & (rows <= bottom + 2) & (cols >= left - 2) & (cols <= right + 2)
    assert within.float().mean() > 0.97
    face, eyes = face_box(who, rest)[0], eye_box(who, rest)[0]
    assert (face[:2] <= face[2:]).all()
    assert eyes[1] < mouth_box(who, rest)[0, 1]


def test_windows_around_eyes_and_mouth_cut_nothing_off():
    moved = motion(6, zoom=MOTION_RANGES["zoom"][1], open=1, jaw=1, yaw=[0.36, -0.36, 0, 0, 0.2, 0], roll=0.3)
    who = people(60, 2)[[i for i in range(60) if i % 10 == 0]]
    large = Identities({**who.values, "scale": torch.full((6,), 1.32), "glasses": torch.ones(6)})
    with pytest.MonkeyPatch.context() as patch:
        usual = render(large, moved, SIZE, SIZE)
        patch.setattr("wan_s2v.training.portraits.EYES_WINDOW", (9.0, 9.0))
        patch.setattr("wan_s2v.training.portraits.MOUTH_WINDOW", (9.0, 9.0))
        whole = render(large, moved, SIZE, SIZE)
    assert (usual - whole).abs().max() < 0.02


def test_pose_drawing_has_every_joint_where_the_head_shows_it():
    who, moved = people(3), motion(3, yaw=[0.3, -0.3, 0], roll=[0, 0.2, -0.2], zoom=0.9)
    frames = draw_pose(who, moved, SIZE, 128)
    assert frames.shape == (3, 3, SIZE, 128)
    points = joints(who, moved)
    for point in points.values():
        for frame, (x, y) in zip(frames, point, strict=True):
            col, row = int((x + 128 / SIZE) * SIZE / 2), int((y + 1) * SIZE / 2)
            if 0 <= row < SIZE and 0 <= col < 128:
                assert frame[:, row, col].amax() > 0.5
    assert (points["left eye"][:, 0] < points["right eye"][:, 0]).all()
    assert (points["nose"][:, 1] < points["neck"][:, 1]).all()
    assert points["nose"][0, 0] - points["neck"][0, 0] > points["nose"][1, 0] - points["neck"][1, 0]
    boxes = eye_box(who, moved) * 2 - 1
    for side in ("left eye", "right eye"):
        assert (points[side] >= boxes[:, :2]).all()
        assert (points[side] <= boxes[:, 2:]).all()


def test_identities_index_repeat_and_move():
    crowd = people(5)
    assert len(crowd) == 5
    assert len(crowd[2]) == 1
    assert torch.equal(crowd[[1, 3]].skin, crowd.skin[[1, 3]])
    assert torch.equal(crowd.repeat(3).scale, crowd.scale.repeat_interleave(3))
    assert crowd.to("cpu", torch.float64).skin.dtype == torch.float64
    with pytest.raises(AttributeError, match="no parameter 'skn'"):
        _ = crowd.skn


def test_a_crowd_is_varied():
    crowd = people(600)
    assert len(crowd.hair_style.unique()) == len(HAIR_STYLES)
    assert len(crowd.cover.unique()) == len(COVERS)
    assert crowd.background.unique().numel() == 7
    assert len(crowd.values) >= 60
    assert all(torch.isfinite(value).all() for value in crowd.values.values())


@pytest.mark.parametrize(
    ("count", "shape", "size"), [(2, (3, 22), (32, 32)), (2, (2, 21), (32, 32)), (2, (2, 22), (8, 32))]
)
def test_what_does_not_fit_is_refused(count, shape, size):
    with pytest.raises(UsageError):
        render(people(count), torch.zeros(shape), *size)
