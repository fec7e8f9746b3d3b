"""The transformer's training: examples hold what the pipeline will show it, steps bring the loss down."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import assert_close
from transformers import ByT5Tokenizer, UMT5Config, UMT5EncoderModel, Wav2Vec2Config, Wav2Vec2Model

from wan_s2v.audio_features import AudioFeatures, aligned_feature_indices
from wan_s2v.training.corpus import generate_corpus
from wan_s2v.training.distillation import distil, step_sigmas, steps_within
from wan_s2v.training.examples import (
    CLIP_LATENTS,
    LONGEST_WINDOW,
    MOTION_LATENTS,
    USUAL_WINDOW,
    Encoders,
    Examples,
    make_examples,
    mouth_and_energy,
)
from wan_s2v.training.loop import Budget
from wan_s2v.training.speech_encoder import SPEECH_CONFIG
from wan_s2v.training.transformer import (
    TRANSFORMER_CONFIG,
    boundary_ratio,
    build_transformer,
    draw_batch,
    flow_loss,
    measure_loss,
    sample_sigmas,
    shifted,
    train_transformer,
    unshifted,
)
from wan_s2v.training.vae import VAE_CONFIG, build_vae

COUNT, SIZE = 4, 32
SMALL = TRANSFORMER_CONFIG | {
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "ffn_dim": 32,
    "num_layers": 2,
    "audio_inject_layers": (0,),
    "text_dim": 16,
    "patch_size": (1, 1, 1),
}


@pytest.fixture(scope="module")
def corpus():
    return generate_corpus(COUNT * 8 / 60, "train", seed=5)


@pytest.fixture(scope="module")
def encoders():
    torch.manual_seed(0)
    vae = build_vae(VAE_CONFIG | {"base_dim": 8, "decoder_base_dim": 8}).eval()
    speech = Wav2Vec2Config(**SPEECH_CONFIG | {"intermediate_size": 32, "conv_dim": [16] * 7})
    tokenizer = ByT5Tokenizer(extra_ids=0)
    text = UMT5Config(vocab_size=len(tokenizer), d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    return Encoders(vae, Wav2Vec2Model(speech).eval(), tokenizer, UMT5EncoderModel(text).eval(), 64)


@pytest.fixture(scope="module")
def examples(corpus, encoders) -> Examples:
    return make_examples(corpus, encoders, size=SIZE, seed=1)


def _generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_examples_hold_every_clip_with_all_that_conditions_it(examples):
    cells = SIZE // 16
    assert len(examples) == COUNT
    assert examples.latents.shape == (COUNT, 48, CLIP_LATENTS, cells, cells)
    assert examples.motion.shape[2:] == (48, MOTION_LATENTS, cells, cells)
    assert examples.audio.shape == (COUNT, 5, 192, 4 * CLIP_LATENTS)
    assert examples.prompts.shape == (COUNT, 4, 64, 16)
    assert examples.weights.min() >= 1
    assert examples.weights.max() > 3
    assert examples.starts[:, 0].max() + LONGEST_WINDOW <= CLIP_LATENTS
    assert examples.starts.max() + USUAL_WINDOW <= CLIP_LATENTS
    assert examples.starts.min() >= MOTION_LATENTS - 1
    for name, tensor in examples.tensors().items():
        assert torch.isfinite(tensor.float()).all(), name


def test_frames_before_the_sound_are_silent_and_the_rest_follows_it(corpus):
    mouth, energy = mouth_and_energy(corpus)
    assert mouth.shape == (COUNT, 1 + 4 * CLIP_LATENTS, 6)
    assert (energy[:, :4] == 0).all()
    frame = 60
    assert_close(energy[:, 4 + frame], torch.from_numpy(corpus.energy[:, frame * 100 // 16] / 255).float(), 1e-6, "60")


def test_clean_speech_features_are_those_of_the_pipeline(corpus, encoders, monkeypatch):
    monkeypatch.setattr("wan_s2v.training.examples._AUGMENTED_SHARE", 0.0)
    from wan_s2v.training.examples import _audio_features

    waveform = corpus.waveforms[0].astype(np.float32) / 32767
    made = _audio_features(encoders.speech, torch.from_numpy(waveform)[None], _generator())
    features = AudioFeatures(encoders.speech, waveform, num_samples=len(waveform), do_normalize=True)
    indices = aligned_feature_indices(features.num_features, -3, 4 * CLIP_LATENTS, 16)
    assert_close(made[0].float(), features.features(indices), 0.02, "bfloat16")


@pytest.mark.parametrize(("window", "with_history"), [(20, False), (20, True), (12, True), (6, True)])
def test_batches_are_windows_of_one_clip_in_all_their_parts(examples, window, with_history):
    marked = examples.tensors() | {
        "latents": torch.arange(CLIP_LATENTS).view(1, 1, -1, 1, 1).expand_as(examples.latents),
        "audio": torch.arange(4 * CLIP_LATENTS).view(1, 1, 1, -1).expand_as(examples.audio),
        "weights": torch.arange(CLIP_LATENTS).view(1, -1, 1, 1).expand_as(examples.weights),
    }
    batch = draw_batch(Examples(**marked), 32, window, with_history, _generator(), drop=False)
    first = batch.latents[:, 0, 0, 0, 0]
    assert torch.equal(batch.latents[:, 0, :, 0, 0], first[:, None] + torch.arange(window))
    assert torch.equal(batch.audio[:, 0, 0], 4 * first[:, None] + torch.arange(4 * window))
    assert torch.equal(batch.weights[:, 0, :, 0, 0], batch.latents[:, 0, :, 0, 0])
    assert (batch.motion is not None) == with_history
    assert (first == 0).all() or with_history


def test_prompts_and_sound_are_left_out_together_or_alone(examples):
    batch = draw_batch(examples, 512, 6, False, _generator())
    silent = (batch.audio == 0).all(dim=(1, 2, 3))
    negative = (batch.prompts == examples.negative).all(dim=(1, 2))
    empty = (batch.prompts == examples.empty).all(dim=(1, 2))
    assert 0.02 < (silent & negative).float().mean() < 0.2
    assert (silent & ~negative).any()
    assert not (negative & ~silent).any()
    assert empty.any()


def test_noise_levels_fill_their_range():
    low, high = boundary_ratio(), 1.0
    sigmas = sample_sigmas(64, (low, high), _generator())
    assert low <= sigmas.min() < sigmas.max() <= high
    assert sigmas.max() - sigmas.min() > 0.9 * (high - low)
    for sigma in (0.0, 0.3, 0.875, 1.0):
        assert math.isclose(float(shifted(torch.tensor(unshifted(sigma)))), sigma, abs_tol=1e-6)


def test_the_boundary_is_where_the_signal_has_its_ratio_to_the_noise():
    assert math.isclose(boundary_ratio(1 / 49), 0.875)
    assert math.isclose(boundary_ratio(1.0), 0.5)


def test_steps_of_both_experts_make_up_the_whole_way():
    high, low = steps_within((boundary_ratio(), 1.0), 8), steps_within((0.0, boundary_ratio()), 8)
    levels = step_sigmas(8)
    assert high + low == list(itertools.pairwise(levels))
    assert len(high) == 3


def test_training_lowers_the_loss_and_measuring_is_repeatable(examples):
    model = build_transformer(SMALL)
    before = measure_loss(lambda _sigma: model, examples, (0.3, 0.9), batches=2, batch=4)
    train_transformer(model, examples, Budget(600, 40), batch=2, learning_rate=5e-3, report=lambda _line: None)
    after = measure_loss(lambda _sigma: model, examples, (0.3, 0.9), batches=2, batch=4)
    assert after[0] < before[0]
    assert after[1] < before[1]
    assert after == measure_loss(lambda _sigma: model, examples, (0.3, 0.9), batches=2, batch=4)


def test_a_student_learns_the_guided_teachers_long_step(examples, monkeypatch):
    monkeypatch.setattr("wan_s2v.training.transformer.WINDOWS", (6,))
    teacher, student = build_transformer(SMALL, seed=1), build_transformer(SMALL, seed=2)
    for parameter in teacher.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    budget = Budget(600, 130)
    loop = distil(
        student,
        lambda _sigma: teacher,
        examples,
        budget,
        noise_range=(0.875, 1.0),
        batch=1,
        learning_rate=1e-2,
        report=lambda _line: None,
    )
    assert loop.losses[-1] < loop.losses[0]


def test_every_weight_gets_a_gradient(examples):
    model = build_transformer(SMALL)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    batch = draw_batch(examples, 4, 6, True, _generator())
    batch = replace(batch, pose=torch.randn_like(batch.latents))
    flow_loss(model, batch, sample_sigmas(4, (0.0, 1.0), _generator()), _generator()).mean().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []
