"""Evaluation: each measure on input whose answer is known, files from end to end, and the command."""

from __future__ import annotations

import json
from dataclasses import fields
from fractions import Fraction

import command_line
import numpy as np
import pytest
import torch
from conftest import MEDIA
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from wan_s2v.commands import evaluate as command
from wan_s2v.errors import CheckpointError, UsageError, VideoError
from wan_s2v.evaluation import Evaluation, evaluate_frames, evaluate_video, load_readers, measures, observe
from wan_s2v.evaluation.mouth_reader import CLOSED, OPEN, MouthReader, from_square, mouth_crops, square_frames
from wan_s2v.evaluation.readers import MOUTH_READER_FILE, Readers, write_readers
from wan_s2v.evaluation.report import judged_frames
from wan_s2v.evaluation.sync import SyncScorer, compare, log_mel, num_samples, sound_of_frames
from wan_s2v.evaluation.track import encode_sound
from wan_s2v.training.identities import sample_identities
from wan_s2v.training.portraits import mouth_box, render
from wan_s2v.training.poses import rest_motion
from wan_s2v.training.visemes import MOUTH_CHANNELS
from wan_s2v.video import write_video

wan_s2v = command_line.wan_s2v
RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def readers() -> Readers:
    """The real networks with random weights."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    return Readers(MouthReader().eval().requires_grad_(False), SyncScorer().eval().requires_grad_(False))


@pytest.fixture(scope="module")
def portrait() -> np.ndarray:
    people = sample_identities(1, torch.Generator().manual_seed(1))
    return (render(people, rest_motion(1), 64, 64)[0].permute(1, 2, 0) * 255).to(torch.uint8).numpy()


def noisy_sound(num_frames: int) -> np.ndarray:
    return (RNG.standard_normal(num_frames * 1000) * 0.1).astype(np.float32)


def curve(num_frames: int, seed: int = 0) -> np.ndarray:
    steps = np.random.default_rng(seed).random(num_frames // 2 + 2)
    return np.interp(np.arange(num_frames) / 2, np.arange(len(steps)), steps).astype(np.float32)


def unit_tracks(num_frames: int, seed: int) -> np.ndarray:
    rows = np.random.default_rng(seed).standard_normal((num_frames, 24)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


# Lip sync


@given(st.integers(-12, 12), st.integers(0, 5))
@settings(max_examples=25, deadline=None)
def test_offset_is_the_lead_of_the_picture(lead, seed):
    track = unit_tracks(90, seed)
    looks, sounds = (track[lead:], track[:-lead]) if lead > 0 else (track[:lead] if lead else track, track[-lead:])
    found = compare(looks, sounds)
    assert found.offset == lead
    assert found.confidence > 0.8
    assert len(found.distances) == 31


def test_foreign_sound_has_little_confidence_and_short_tracks_none():
    assert compare(unit_tracks(200, 1), unit_tracks(200, 2)).confidence < 0.1
    assert compare(unit_tracks(20, 1), unit_tracks(20, 1)) is None
    assert len(compare(unit_tracks(21, 1), unit_tracks(21, 1)).distances) == 11


def test_sound_of_a_frame_is_centred_on_its_instant():
    waveform = np.zeros(20_000, np.float32)
    waveform[8_000 : 8_000 + 20] = 1  # the instant of frame 8
    mel = log_mel(torch.from_numpy(sound_of_frames(waveform, 3, 12))[None])[0]
    assert mel.shape == (40, 96)
    loud = mel.mean(0) > mel.mean() + 0.1
    steps = loud.nonzero().flatten().float()
    assert abs(float(steps.mean()) - (5 + 0.5) * 8) <= 1  # frame 8 is the sixth


def test_sound_in_blocks_equals_sound_at_once(readers, monkeypatch):
    waveform = noisy_sound(40)
    whole = encode_sound(readers.sync, waveform, 40)
    monkeypatch.setattr("wan_s2v.evaluation.track._SOUND_BLOCK", 7)
    assert whole.shape == (36, 96)
    np.testing.assert_allclose(encode_sound(readers.sync, waveform, 40), whole, atol=1e-5)
    assert len(sound_of_frames(waveform, -2, 3)) == num_samples(3)


# The reader


def test_reader_takes_any_size_and_has_few_weights(readers):
    for height, width in ((256, 256), (96, 160), (300, 200)):
        reading = readers.mouth(torch.rand(2, 3, height, width) * 2 - 1)
        assert reading.shapes.shape == (2, len(MOUTH_CHANNELS))
        assert reading.mouths.shape == reading.eyes.shape == (2, 4)
        assert 0 <= reading.mouths.min() <= reading.mouths.max() <= 1
    assert sum(p.numel() for p in readers.mouth.parameters()) < 350_000
    assert sum(p.numel() for p in readers.sync.parameters()) < 600_000


def test_boxes_of_the_middle_square_belong_to_the_whole_frame():
    box = torch.tensor([[0.0, 0.25, 1.0, 0.75]])
    assert from_square(box, 100, 200).tolist() == [[0.25, 0.25, 0.75, 0.75]]
    assert from_square(box, 400, 200).tolist() == [[0.0, 0.375, 1.0, 0.625]]
    frames = torch.zeros(1, 3, 100, 200)
    frames[..., 50:150] = 1
    assert square_frames(frames).min() == 1


def test_crops_show_the_mouth_and_nothing_else():
    people, motion = sample_identities(1, torch.Generator().manual_seed(2)), rest_motion(1)
    frame = render(people, motion, 256, 256)
    box = mouth_box(people, motion)
    marked = torch.zeros_like(frame)
    left, top, right, bottom = (box[0] * 256).round().int().tolist()
    marked[..., top:bottom, left:right] = 1
    crop = mouth_crops(marked, box, (48, 64))
    assert crop.shape == (1, 3, 48, 64)
    assert crop[..., 0].max() == crop[..., -1].max() == 0
    assert abs(float(crop[0, 0].max(dim=0).values.mean()) - 1 / 1.5) < 0.05


def test_missing_or_foreign_weights_are_named(readers, tmp_path):
    with pytest.raises(CheckpointError, match=MOUTH_READER_FILE):
        load_readers(tmp_path)
    write_readers(readers, tmp_path)
    loaded = load_readers(tmp_path)
    frames = torch.rand(1, 3, 64, 64)
    torch.testing.assert_close(loaded.mouth(frames).shapes, readers.mouth(frames).shapes, atol=0.05, rtol=0)
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) < 2_000_000
    (tmp_path / MOUTH_READER_FILE).write_bytes((tmp_path / "sync.safetensors").read_bytes())
    with pytest.raises(CheckpointError, match="does not hold"):
        load_readers(tmp_path)
    (tmp_path / MOUTH_READER_FILE).write_bytes(b"no tensors")
    with pytest.raises(CheckpointError, match="does not hold"):
        load_readers(tmp_path)


# Mouths against the truth


@pytest.mark.parametrize("lead", [-4, 0, 3])
def test_opening_lag_is_the_lead_of_the_picture(lead):
    whole = curve(120)
    opening, truth = whole[10 + lead : 100 + lead] * 0.5, whole[10:100]
    assert measures.opening_lag(opening, truth) == lead
    correlation = measures.opening_correlation(opening, truth)
    assert correlation == pytest.approx(1) if lead == 0 else correlation < 0.7


def test_a_still_mouth_has_no_correlation():
    assert measures.opening_correlation(np.zeros(40), curve(40)) is None
    assert measures.opening_lag(np.zeros(40), curve(40)) is None


def closing_truth() -> np.ndarray:
    truth = np.zeros((40, 6), np.float32)
    truth[5:35, OPEN] = 0.6
    for place in (12, 20, 28):
        truth[place, OPEN], truth[place, CLOSED] = 0, 1
    return truth


def test_closures_count_where_the_mouth_really_closes():
    truth = closing_truth()
    assert measures.closures(truth) == [12, 20, 28]
    assert measures.closure_rate(truth, truth) == 1
    assert measures.closure_rate(np.roll(truth, 1, 0), truth) == 1
    assert measures.closure_rate(np.roll(truth, 3, 0), truth) == 0
    missed = truth.copy()
    missed[20, OPEN] = 0.5
    missed[20, CLOSED] = 0
    assert measures.closure_rate(missed, truth) == pytest.approx(2 / 3)
    assert measures.closure_rate(np.zeros_like(truth), truth) == 0  # a mouth that stays shut
    assert measures.closure_rate(truth, np.zeros_like(truth)) is None


def test_silence_is_known_from_the_truth_or_heard():
    truth = closing_truth()
    rest = measures.rest_frames(np.concatenate([truth, np.zeros((10, 6), np.float32)]))
    assert rest.nonzero()[0].tolist() == list(range(35, 50))  # the five frames at the start are too few
    waveform = noisy_sound(40)
    waveform[10_000:20_000] = 0
    assert measures.silent_frames(waveform, 40).nonzero()[0].tolist() == list(range(13, 18))
    assert measures.silent_frames(np.zeros(40_000, np.float32), 40).sum() == 36
    assert not measures.silent_frames(noisy_sound(40), 40).any()
    opening = np.linspace(0, 0.3, 50)
    assert measures.closed_share(opening, np.arange(50) >= 0) == pytest.approx((opening < 0.15).mean())
    assert measures.closed_share(opening, np.zeros(50, bool)) is None


# Pictures


def test_mask_leaves_out_grown_boxes():
    mask = measures.outside_mask([np.array([0.4, 0.5, 0.6, 0.6])], 100, 200)
    assert not mask[50:60, 80:120].any()
    assert not mask[44, 74]  # 15 % of 40 pixels further out
    assert mask[43, 80]
    assert mask[50, 73]
    assert mask.sum() == 100 * 200 - 52 * 22
    assert not measures.outside_mask([np.array([-1.0, -1.0, 2.0, 2.0])], 8, 8).any()


def test_identity_measures_see_only_the_mask(portrait):
    mask = np.ones(portrait.shape[:2], bool)
    assert measures.psnr(portrait, portrait, mask) == measures.NO_ERROR_DB
    assert measures.ssim(measures.luma(portrait), measures.luma(portrait), mask) == pytest.approx(1)
    changed = portrait.copy()
    changed[40:50, 20:40] ^= 255
    mask[40:50, 20:40] = False
    assert measures.psnr(changed, portrait, mask) == measures.NO_ERROR_DB
    brighter = np.clip(portrait.astype(int) // 2 + 10, 0, 255).astype(np.uint8)
    assert measures.psnr(brighter - 5, brighter, mask) == pytest.approx(20 * np.log10(255 / 5))
    assert measures.ssim(measures.luma(changed), measures.luma(portrait), ~mask) < 0.5


def test_colour_distance_sees_colour_and_not_movement(portrait):
    mask = np.ones((64, 64), bool)
    mask[:8] = False
    grey = measures.colour_quantiles(np.full((64, 64, 3), 119, np.uint8), mask)
    assert grey.shape == (32, 3)
    assert grey[8] == pytest.approx([50, 0, 0], abs=0.3)
    assert measures.colour_distance(grey + np.array([3.0, 4.0, 0.0]), grey) == pytest.approx(5)
    everywhere = np.ones((64, 64), bool)
    colours = measures.colour_quantiles(portrait, everywhere)
    moved = measures.colour_quantiles(np.roll(portrait, 9, axis=1), everywhere)
    assert measures.colour_distance(moved, colours) == pytest.approx(0, abs=1e-3)
    tinted = (portrait * np.array([0.9, 1.0, 1.0])).astype(np.uint8)
    assert measures.colour_distance(measures.colour_quantiles(tinted, everywhere), colours) > 2
    assert measures.colour_distance(measures.colour_quantiles(portrait, ~everywhere), colours) is None


def test_first_frames_seams_and_flicker(portrait):
    assert measures.first_frames_sharpness(np.array([2.0] * 4 + [4.0] * 9)) == 0.5
    assert measures.first_frames_sharpness(np.ones(4)) is None
    changes = np.ones(40)
    changes[19] = 5
    assert measures.seam_ratio(changes, [0, 20]) == 5
    assert measures.seam_ratio(changes, [0, 10]) == 1
    assert measures.seam_ratio(changes, [0]) is None
    flat, mask = np.full((8, 8), 100, np.float32), np.ones((8, 8), bool)
    assert measures.flicker(flat - 3, flat, flat + 3, mask) == 0
    assert measures.flicker(flat - 3, flat, flat - 3, mask) == 3
    blurred = np.asarray(Image.fromarray(portrait).resize((16, 16)).resize((64, 64)))
    assert measures.sharpness(measures.luma(blurred)) < measures.sharpness(measures.luma(portrait))


# Whole videos


def shaking(portrait: np.ndarray, num_frames: int) -> np.ndarray:
    return np.stack([np.roll(portrait, k % 2, axis=1) for k in range(num_frames)])


def test_evaluation_does_not_depend_on_chunks(readers, portrait, monkeypatch):
    frames = shaking(portrait, 23)
    once = observe(iter(frames), readers, clip_starts=(0, 9))
    monkeypatch.setattr("wan_s2v.evaluation.track._CHUNK", 3)
    again = observe(iter(frames), readers, clip_starts=(0, 9))
    assert once.looks.shape == (19, 96)
    assert once.colours.shape == (2, 32, 3)
    for field in fields(once):
        np.testing.assert_allclose(getattr(again, field.name), getattr(once, field.name), atol=1e-4)


def test_clips_of_other_colour_are_found(readers, portrait):
    darker = (portrait * 0.7).astype(np.uint8)
    frames = np.stack([portrait] * 30 + [darker] * 30)
    truth = np.zeros((60, 6), np.float32)
    truth[:, OPEN] = curve(60)
    found = evaluate_frames(
        frames, noisy_sound(60), reference=portrait, clip_starts=(0, 15, 30), truth=truth, readers=readers
    )
    assert len(found.colour_drift) == 2
    assert found.colour_drift[0] == 0
    assert found.colour_drift[1] > 5
    assert found.seam_ratio > 10
    assert found.num_frames == len(found.opening) == 60
    assert found.flicker < 1
    assert found.sync_offset_frames is not None
    assert found.notes == ("no mouth in silence: the sound has no silence of more than 0.4 s",)
    assert json.loads(json.dumps(found.to_json()))["num_frames"] == 60


@pytest.mark.parametrize("fps", [16, 24, 30, 8])
def test_frames_are_judged_at_sixteen_a_second(tmp_path, fps):
    frames = np.stack([np.full((32, 32, 3), 4 * k, np.uint8) for k in range(2 * fps)])
    write_video(tmp_path / "v.mp4", frames, fps)
    shown = [int(frame.mean() / 4 + 0.5) for frame in judged_frames(tmp_path / "v.mp4", Fraction(fps))]
    assert abs(len(shown) - 32) <= 1
    assert all(abs(index / fps - k / 16) <= 0.5 / fps + 1e-6 for k, index in enumerate(shown))


def test_video_with_sound_from_end_to_end(readers, portrait, tmp_path):
    path = tmp_path / "v.mp4"
    write_video(path, shaking(portrait, 72), 24, audio=(noisy_sound(48), 16_000))
    Image.fromarray(portrait).resize((128, 128)).save(tmp_path / "p.png")
    found = evaluate_video(path, reference=tmp_path / "p.png", readers=readers)
    assert found.num_frames == 48
    assert found.length_error_s < 0.06
    assert found.length_error_frames == pytest.approx(24 * found.length_error_s)
    assert found.sync_confidence is not None
    assert found.seam_ratio is None
    assert 15 < found.psnr_db < 60


def test_video_without_sound_is_measured_as_far_as_it_goes(readers):
    found = evaluate_video(MEDIA / "pose_small.mp4", readers=readers)
    assert found.sync_offset_frames is found.closed_in_silence is found.length_error_s is None
    assert found.psnr_db is not None
    assert "no audio" in found.notes[0]
    assert "first frame" in found.notes[-1] or "first frame" in found.notes[1]


def test_unusable_input_is_refused(readers, portrait, tmp_path):
    with pytest.raises(UsageError, match="no video"):
        evaluate_video(tmp_path / "none.mp4", readers=readers)
    (tmp_path / "text.mp4").write_text("text")
    with pytest.raises(VideoError):
        evaluate_video(tmp_path / "text.mp4", readers=readers)
    with pytest.raises(UsageError, match="rise"):
        evaluate_frames([portrait], None, clip_starts=(5, 3), readers=readers)
    with pytest.raises(UsageError, match="no frame"):
        evaluate_frames([], None, readers=readers)
    with pytest.raises(UsageError, match="Resize"):
        evaluate_frames([portrait], None, reference=portrait[:32], readers=readers)


def test_one_frame_is_enough(readers, portrait):
    found = evaluate_frames([portrait], noisy_sound(1), readers=readers)
    assert found.num_frames == 1
    assert found.flicker is found.sync_offset_frames is None
    assert json.dumps(found.to_json())


# The command


@pytest.fixture
def with_weights(readers, monkeypatch):
    monkeypatch.setattr(command, "load_readers", lambda: readers)


def test_command_prints_a_table(wan_s2v, with_weights, portrait, tmp_path):
    path = tmp_path / "v.mp4"
    write_video(path, shaking(portrait, 32), 16, audio=(noisy_sound(32), 16_000))
    run = wan_s2v("evaluate", path, MEDIA / "pose_small.mp4")
    assert run.code == 0
    for text in ("lip sync", "PSNR", "ΔE", "v.mp4", "pose_small.mp4: no lip sync"):
        assert text in run.out
    assert "1/2" in run.err
    assert wan_s2v("evaluate", path, "--quiet").err == ""


def test_command_speaks_json_and_measures_the_rest_after_a_failure(wan_s2v, with_weights, tmp_path):
    (tmp_path / "text.mp4").write_text("text")
    run = wan_s2v("evaluate", tmp_path / "text.mp4", MEDIA / "pose_small.mp4", "--json")
    assert run.code == 1
    assert len(run.errors) == 1
    assert run.json["status"] == "failed"
    assert [video["status"] for video in run.json["videos"]] == ["failed", "done"]
    assert {field.name for field in fields(Evaluation)} <= set(run.json["videos"][1])


def test_command_refuses_paths_that_do_not_exist(wan_s2v, with_weights, tmp_path):
    run = wan_s2v("evaluate", MEDIA / "pose_small.mp4", tmp_path / "none.mp4")
    assert run.code == 2
    assert "none.mp4" in run.errors[0]
    assert wan_s2v("evaluate").code == 2
    assert wan_s2v("evaluate", MEDIA / "pose_small.mp4", "--image", tmp_path / "none.png").code == 2
