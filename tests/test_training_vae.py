"""The VAE's training: whole sequences equal chunks, crops hold what they say, and a few steps bring the loss down."""

from __future__ import annotations

import pytest
import torch
from conftest import assert_close

from wan_s2v.training.loop import Budget
from wan_s2v.training.muon import MuonWithAdamW, orthogonalise
from wan_s2v.training.pool import random_babble, render_pool
from wan_s2v.training.vae import (
    VAE_CONFIG,
    Stage,
    build_vae,
    decode_sequence,
    encode_sequence,
    evaluate_vae,
    measure_latents,
    train_vae,
)

SMALL = VAE_CONFIG | {"base_dim": 8, "decoder_base_dim": 8}
SEED, OTHER_SEED = 3, 4


@pytest.fixture(scope="module")
def pool():
    torch.set_num_threads(1)
    return render_pool(2, 9, 64, SEED, torch.device("cpu"))


@torch.no_grad()
def test_whole_sequences_equal_chunked_processing():
    torch.manual_seed(0)
    vae = build_vae(SMALL)
    video = torch.rand(2, 3, 13, 32, 32) * 2 - 1
    mean, _ = encode_sequence(vae, video)
    assert_close(mean, vae.encode(video).latent_dist.mode(), 1e-5, "encode")
    assert_close(decode_sequence(vae, mean).clamp(-1, 1), vae.decode(mean).sample, 1e-5, "decode")


def test_pool_draws_crops_with_more_weight_on_the_mouth(pool):
    assert pool.frames.shape == (2, 9, 3, 64, 64)
    video, weights = pool.draw(3, 5, 32, torch.Generator().manual_seed(0))
    assert video.shape == (3, 3, 5, 32, 32)
    assert weights.shape == (3, 1, 5, 32, 32)
    assert -1 <= video.min() < video.max() <= 1
    assert set(weights.unique().tolist()) <= {1.0, 3.0, 9.0, 11.0}
    assert weights.max() >= 9


def test_pools_of_different_seeds_show_different_people(pool):
    other = render_pool(2, 9, 64, OTHER_SEED, torch.device("cpu"))
    assert not torch.equal(other.frames, pool.frames)
    again = render_pool(2, 9, 64, SEED, torch.device("cpu"))
    assert torch.equal(again.frames, pool.frames)


def test_babble_stays_in_range_and_closes_the_mouth_sometimes():
    mouth, energy = random_babble(20, 81, torch.Generator().manual_seed(0))
    assert mouth.shape == (20, 81, 6)
    assert energy.shape == (20, 81)
    assert mouth[..., 1].min() >= -1
    assert mouth.max() <= 1
    assert (mouth[..., 3] > 0.9).any()
    assert (energy == 0).any()


def test_orthogonalised_updates_have_singular_values_near_one():
    matrices = torch.randn(3, 24, 40, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalise(matrices))
    assert values.min() > 0.5
    assert values.max() < 1.5
    tall = torch.linalg.svdvals(orthogonalise(matrices.transpose(1, 2)))
    assert tall.min() > 0.5


def test_optimizer_moves_every_parameter_and_clears_gradients():
    model = torch.nn.Sequential(torch.nn.Linear(32, 48), torch.nn.LayerNorm(48), torch.nn.Linear(48, 4))
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = MuonWithAdamW(model, 1e-2, 1e-2)
    model(torch.randn(8, 32)).square().sum().backward()
    optimizer.step()
    assert all(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert all(p.grad is None for p in model.parameters())


def test_training_lowers_the_error(pool):
    torch.manual_seed(0)
    vae = build_vae(SMALL)
    before, _ = evaluate_vae(vae, pool)
    stages = (Stage(0.5, 1, 32, 4), Stage(0.5, 5, 32, 2))
    train_vae(vae, pool, Budget(600.0, 60), stages=stages, report=lambda _line: None)
    after, made = evaluate_vae(vae, pool)
    assert after["whole"] > before["whole"] + 1
    assert made.shape == (9, 3, 64, 64)
    measure_latents(vae, pool)
    assert len(vae.config.latents_std) == 48
    assert min(vae.config.latents_std) > 0
