"""Both Wan VAEs, loaded from .pth files in the official layout, equal the official encoder and decoder."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import assert_close, load_golden
from diffusers import AutoencoderKLWan
from torch import Tensor

from wan_s2v.weights import load_model
from wan_s2v.weights.checkpoint import read_vae

FILES = {"vae21_tiny": "Wan2.1_VAE.pth", "vae22_tiny": "Wan2.2_VAE.pth"}


@pytest.fixture(scope="module", params=FILES)
def golden(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[AutoencoderKLWan, dict[str, Tensor]]:
    file: Path = tmp_path_factory.mktemp("vae") / FILES[request.param]
    torch.save(load_golden(f"{request.param}.weights")[0], file)
    vae = load_model(read_vae(file), torch.float32, torch.device("cpu"))
    assert isinstance(vae, AutoencoderKLWan)
    return vae, load_golden(request.param)[0]


def statistics(vae: AutoencoderKLWan) -> tuple[Tensor, Tensor]:
    mean = torch.tensor(vae.config.latents_mean).view(1, -1, 1, 1, 1)
    return mean, 1 / torch.tensor(vae.config.latents_std).view(1, -1, 1, 1, 1)


@pytest.mark.parametrize("frames", [1, 5, 17])
def test_encoding_equals_the_official_vae(golden: tuple[AutoencoderKLWan, dict[str, Tensor]], frames: int) -> None:
    vae, tensors = golden
    mean, inverse_std = statistics(vae)
    with torch.no_grad():
        posterior = vae.encode(tensors[f"f{frames}.video"][None]).latent_dist
    assert_close(((posterior.mean - mean) * inverse_std)[0], tensors[f"f{frames}.latent"], 1e-5, "latent")


@pytest.mark.parametrize("frames", [1, 5, 17])
def test_decoding_equals_the_official_vae(golden: tuple[AutoencoderKLWan, dict[str, Tensor]], frames: int) -> None:
    vae, tensors = golden
    mean, inverse_std = statistics(vae)
    with torch.no_grad():
        pixels = vae.decode(tensors[f"f{frames}.dec_in"][None] / inverse_std + mean).sample
    assert_close(pixels.clamp(-1, 1)[0], tensors[f"f{frames}.dec_out"], 5e-5, "pixels")
