"""Decoding less gives the same pixels, and the CPU's fast kernels the same numbers."""

from __future__ import annotations

import copy

import pytest
import torch
from conftest import assert_close
from diffusers import AutoencoderKLWan

from wan_s2v.decoder import _stages
from wan_s2v.latents import decode_latents, encode_pixels, encode_pose
from wan_s2v.runtime.cpu import speed_up_on_cpu

KINDS = {
    "wan2.1": {"base_dim": 4, "z_dim": 16, "num_res_blocks": 2},
    "wan2.1 shallow": {"base_dim": 4, "z_dim": 16, "num_res_blocks": 1, "dim_mult": [1, 2, 2]},
    "wan2.2": {
        "base_dim": 4,
        "decoder_base_dim": 6,
        "z_dim": 16,
        "num_res_blocks": 2,
        "is_residual": True,
        "in_channels": 12,
        "out_channels": 12,
        "patch_size": 2,
        "scale_factor_spatial": 16,
    },
    "deep": {"base_dim": 4, "z_dim": 16, "num_res_blocks": 3, "temperal_downsample": [False, True, True]},
}


def _vae(kind: str) -> AutoencoderKLWan:
    torch.manual_seed(5)
    config = {"latents_mean": [0.1] * 16, "latents_std": [1.5] * 16} | KINDS[kind]
    if len(config.get("dim_mult", [1] * 4)) == 3:
        config["temperal_downsample"] = [True, True]
    return AutoencoderKLWan(**config).eval()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_latents", [22, 21, 2])
@torch.no_grad()
def test_late_started_levels_give_the_same_pixels_as_decoding_everything(kind, num_latents):
    vae = _vae(kind)
    latents = torch.randn(16, num_latents, 2, 3)
    std, mean = torch.tensor(1.5), torch.tensor(0.1)
    whole = vae.decode((latents / (1.0 / std) + mean)[None]).sample[0].clamp(-1, 1)
    for num_frames in (1, 3, 4, 4 * (num_latents - 1), 1 + 4 * (num_latents - 1)):
        assert_close(decode_latents(vae, latents, num_frames), whole[:, -num_frames:], 0, f"{num_frames} frames")


def test_levels_start_as_late_as_their_view_of_the_past_allows():
    lookbacks = [stage.lookback for stage in _stages(_vae("wan2.1").decoder)]
    assert lookbacks == [None, 28, 14, 7, 4, 1]


@torch.no_grad()
def test_a_level_started_later_would_change_the_pixels():
    """Guards the test above: the chosen starts are not simply generous."""
    vae = _vae("wan2.1")
    latents = torch.randn(16, 12, 2, 3)
    whole = decode_latents(vae, latents, 4)
    assert (decode_latents(vae, latents[:, 9:], 4) - whole).abs().max() > 1e-4


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_fast_cpu_kernels_equal_the_plain_modules(kind):
    plain, fast = _vae(kind), _vae(kind)
    speed_up_on_cpu(fast)
    video = torch.rand(3, 9, 32, 32) * 2 - 1
    latents = encode_pixels(plain, video)
    assert_close(encode_pixels(fast, video), latents, 1e-5, "encode")
    assert_close(decode_latents(fast, latents, 8), decode_latents(plain, latents, 8), 5e-5, "decode")
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), copy.deepcopy(fast).parameters(), strict=True))


@torch.no_grad()
def test_fast_cpu_kernels_serve_bfloat16_too():
    exact, fast, plain = _vae("wan2.2"), _vae("wan2.2").bfloat16(), _vae("wan2.2").bfloat16()
    speed_up_on_cpu(fast)
    latents = encode_pixels(exact, torch.rand(3, 9, 32, 32) * 2 - 1)
    wanted = decode_latents(exact, latents, 8)
    error, plain_error = ((decode_latents(vae, latents, 8) - wanted).square().mean() for vae in (fast, plain))
    assert 0 < error < 2 * plain_error


@torch.no_grad()
def test_pose_latents_cover_four_frames_each():
    vae = _vae("wan2.1")
    frames = torch.rand(3, 8, 16, 16) * 2 - 1
    latents = encode_pose(vae, frames)
    assert latents.shape == (16, 2, 2, 2)
    changed = frames.clone()
    changed[:, 4:] = 0
    assert torch.equal(encode_pose(vae, changed)[:, :1], latents[:, :1])
