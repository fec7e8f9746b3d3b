"""Training of the networks that judge results: made data are what they say, and a few steps teach something."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import assert_close

from wan_s2v.evaluation.mouth_reader import CROP_SIZE, OPEN, SHAPES, TEETH, MouthReader, mouth_crops
from wan_s2v.evaluation.readers import Readers
from wan_s2v.evaluation.sync import FPS, SAMPLE_RATE, SyncScorer, num_samples, sound_of_frames
from wan_s2v.training import readers as training
from wan_s2v.training.corpus import Corpus
from wan_s2v.training.damage import damage
from wan_s2v.training.identities import sample_identities
from wan_s2v.training.loop import Budget
from wan_s2v.training.mouth_clips import (
    Clips,
    Mouths,
    render_clips,
    render_faces,
    render_mouths,
    render_patches,
    speech_curves,
    visible_shapes,
)
from wan_s2v.training.pool import random_babble
from wan_s2v.training.portraits import mouth_box, render
from wan_s2v.training.poses import MOTION_CHANNELS, rest_motion
from wan_s2v.training.readers import (
    contrastive_loss,
    evaluate_mouth_reader,
    evaluate_sync_scorer,
    train_mouth_reader,
    train_sync_scorer,
)
from wan_s2v.training.visemes import MOUTH_CHANNELS

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch):
    for name, size in (("FACES_BATCH", 8), ("MOUTHS_BATCH", 12), ("CLIPS_BATCH", 3), ("SPAN", 8)):
        monkeypatch.setattr(training, name, size)


def babble(clips: int, frames: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    return random_babble(clips, frames, torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def mouths() -> Mouths:
    torch.set_num_threads(1)
    return render_mouths(*babble(3, 16), 1, CPU)


def test_shapes_have_the_names_of_the_motion():
    assert SHAPES == MOUTH_CHANNELS == MOTION_CHANNELS[:6]


def test_patches_are_what_a_whole_frame_shows_there():
    people, motion = sample_identities(6, torch.Generator().manual_seed(5)), rest_motion(6)
    motion[:, OPEN] = torch.linspace(0, 1, 6)
    patches, boxes = render_patches(people, motion)
    whole = mouth_crops(render(people, motion, 256, 256), mouth_box(people, motion), CROP_SIZE)
    cut = mouth_crops(patches, boxes, CROP_SIZE)
    # The mouth itself; beside it a whole frame has its background, and deeper contrast.
    middle = (slice(None), slice(None), slice(8, 24), slice(16, 48))
    assert (whole[middle] - cut[middle]).abs().mean() < 0.02


def test_pressed_lips_hide_what_is_behind_them():
    mouth = torch.tensor([[1.0, 0.2, 0.0, 1.0, 0.8, 0.5], [0.5, 0.2, 0.0, 0.0, 0.8, 0.5]])
    seen = visible_shapes(mouth)
    assert seen[0].tolist() == pytest.approx([0, 0.2, 0, 1, 0, 0])
    assert torch.equal(seen[1], mouth[1])


def test_made_clips_have_the_stated_shapes(mouths):
    assert mouths.patches.shape == (3, 16, 3, 88, 112)
    assert mouths.boxes.min() > 0
    assert mouths.boxes.max() < 1
    assert mouths.shapes.shape == (3, 16, 6)
    assert len(mouths[:2].patches) == len(mouths[:2].speaking) == 2
    faces = render_faces(*babble(2, 8), 1, CPU, per_person=3)
    assert faces.images.shape == (6, 3, 128, 128)
    assert faces.boxes.shape == (6, 8)


def test_mirrored_and_moved_faces_keep_their_boxes(monkeypatch):
    monkeypatch.setattr(training, "damage", lambda images, generator: images)
    faces = render_faces(*babble(2, 8), 1, CPU, per_person=3)
    marked = torch.zeros_like(faces.images)
    for image, box in zip(marked, (faces.boxes[:, :4] * 128).round().int().tolist(), strict=True):
        image[:, box[1] : box[3], box[0] : box[2]] = 255
    images, boxes = training._draw_faces(training.Faces(marked, faces.boxes), torch.Generator().manual_seed(0))
    for image, (left, top, right, bottom) in zip(images, (boxes[:, :4] * 96).tolist(), strict=True):
        rows, columns = (image[0] > 0).nonzero().unbind(1)
        found = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert torch.tensor(found).tolist() == pytest.approx([left, top, right, bottom], abs=1.6)


def test_spans_have_the_sound_of_their_frames(mouths, monkeypatch):
    monkeypatch.setattr(training, "augment", lambda sounds, generator: sounds)
    waves = torch.arange(SAMPLE_RATE).repeat(3, 1).to(torch.int16)
    padding = num_samples(1)
    padded = torch.nn.functional.pad(waves, (padding, padding))
    crops, sounds, speaking = training._draw_spans(mouths, padded, padding, torch.Generator().manual_seed(0))
    assert crops.shape == (3, 12, 3, 36, 48)
    assert speaking.shape == (3, 8)
    whole = waves[0].numpy() / np.float32(32767)
    allowed = [sound_of_frames(whole, start, 12) for start in range(5)]
    assert all(any(np.allclose(sound, other, atol=1e-6) for other in allowed) for sound in sounds.numpy())


def test_damage_keeps_the_picture_and_treats_a_clip_alike():
    images = torch.nn.functional.interpolate(torch.rand(4, 3, 4, 4) * 2 - 1, (32, 40), mode="bilinear")
    made = damage(images, torch.Generator().manual_seed(1))
    assert made.shape == images.shape
    assert -1 <= made.min() < made.max() <= 1
    both = torch.stack((made.flatten(), images.flatten()))
    assert torch.corrcoef(both)[0, 1] > 0.8
    still = images[:1].expand(4, -1, -1, -1)
    alike = damage(still, torch.Generator().manual_seed(2), frames_per_clip=4).mean(dim=(2, 3))
    apart = damage(still, torch.Generator().manual_seed(2)).mean(dim=(2, 3))
    assert alike.std(0).max() < 0.02 < apart.std(0).max()


def test_partners_lower_the_contrastive_loss():
    rows = torch.nn.functional.normalize(torch.randn(16, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    speaking, scale = torch.ones(16, dtype=torch.bool), torch.tensor(2.0)
    assert contrastive_loss(rows, rows, speaking, scale) < contrastive_loss(rows, rows.roll(1, 0), speaking, scale)
    assert contrastive_loss(rows, rows, ~speaking, scale) == 0


def test_speech_curves_are_at_video_rate():
    corpus = Corpus(
        waveforms=np.zeros((1, 2 * SAMPLE_RATE), np.int16),
        mouth=np.full((1, 200, 6), 51, np.uint8),
        labels=np.zeros((1, 100), np.uint8),
        energy=np.full((1, 200), 255, np.uint8),
        languages=("en",),
    )
    mouth, energy = speech_curves(corpus)
    assert mouth.shape == (1, 2 * FPS, 6)
    assert_close(mouth[0, 1:-1, TEETH], torch.full((30,), 0.2), 1e-6)
    assert energy.shape == (1, 32)
    assert energy.min() == 1


def test_training_teaches_the_reader(mouths):
    torch.manual_seed(0)
    reader, faces = MouthReader(), render_faces(*babble(3, 8), 1, CPU)
    clips = render_clips(*babble(2, 3), 1, CPU)
    before = evaluate_mouth_reader(reader, clips)
    loop = train_mouth_reader(reader, faces, mouths, Budget(600, 25), report=lambda _line: None)
    after = evaluate_mouth_reader(reader, clips, damage_seed=3)
    assert loop.steps == 25
    assert after["mouth box error"] < 0.7 * before["mouth box error"]
    assert set(SHAPES) < set(after)


def test_training_teaches_the_scorer(mouths):
    torch.manual_seed(0)
    scorer = SyncScorer()
    waves = torch.randn(3, SAMPLE_RATE, generator=torch.Generator().manual_seed(0)) * 3000
    waves = (waves * (torch.arange(SAMPLE_RATE) // 1000 % 3)).to(torch.int16)  # something to tell the times apart
    loud = Mouths(mouths.patches, mouths.boxes, mouths.shapes, torch.ones_like(mouths.speaking))

    @torch.no_grad()
    def loss() -> float:
        padding = num_samples(1)
        padded = torch.nn.functional.pad(waves, (padding, padding))
        crops, sounds, speaking = training._draw_spans(loud, padded, padding, torch.Generator().manual_seed(0))
        looks, voices = scorer.encode_looks(crops).flatten(0, 1), scorer.encode_sounds(sounds).flatten(0, 1)
        return float(contrastive_loss(looks, voices, speaking.flatten(), scorer.scale))

    before = loss()
    train_sync_scorer(scorer, loud, waves, Budget(600, 15), learning_rate=1e-2, report=lambda _line: None)
    assert loss() < before - 0.1


def test_scorer_is_evaluated_with_own_shifted_and_foreign_sound():
    torch.manual_seed(0)
    frames = torch.randint(256, (2, 32, 3, 256, 256), dtype=torch.uint8)
    clips = Clips(frames, torch.zeros(2, 32, 6), torch.zeros(2, 32, 8))
    waves = torch.zeros(2, 2 * SAMPLE_RATE, dtype=torch.int16)
    figures = evaluate_sync_scorer(Readers(MouthReader(), SyncScorer()), clips, waves)
    assert len(figures) == 12
    assert figures["aligned: confidence"] == pytest.approx(0, abs=0.02)  # silence fits nowhere better
