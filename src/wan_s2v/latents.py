"""Pixels ↔ latents.

diffusers' `AutoencoderKLWan` stores latent means and deviations but does not apply them; here they are applied in the
order of the official code, which costs no rounding. Pixels are in [-1, 1], (3, T, H, W); latents are (C, F, h, w) in
float32.
"""

from __future__ import annotations

import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import unpatchify
from torch import Tensor

from wan_s2v.clips import FRAMES_PER_LATENT
from wan_s2v.decoder import decode_frames
from wan_s2v.vae import Cache, Strip, encode_moments, split_in_strips

DecoderPast = dict[Strip, Cache]
"""Where the decoder goes on, for each strip of a frame; empty before the first call."""


def latent_statistics(vae: AutoencoderKLWan, like: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and 1/deviation per latent channel, (C, 1, 1, 1)."""
    mean = torch.tensor(vae.config.latents_mean, dtype=torch.float32, device=like.device)
    std = torch.tensor(vae.config.latents_std, dtype=torch.float32, device=like.device)
    return mean.view(-1, 1, 1, 1), (1.0 / std).view(-1, 1, 1, 1)


def past_on(past: DecoderPast, device: torch.device | str) -> DecoderPast:
    """The same past on another device."""
    return {strip: {conv: frames.to(device) for conv, frames in cache.items()} for strip, cache in past.items()}


@torch.no_grad()
def encode_pixels(vae: AutoencoderKLWan, pixels: Tensor, num_strips: int = 1) -> Tensor:
    """Latents of 4k+1 frames: the posterior's mean, normalised.

    Args:
        pixels: (3, 1 + 4k, H, W) in [-1, 1].
        num_strips: in which each frame is encoded; more need less memory and a little more time.
    Returns: (C, 1 + k, h, w) float32.
    """
    assert pixels.shape[1] % FRAMES_PER_LATENT == 1, pixels.shape
    moments = encode_moments(vae, pixels[None].to(vae.device, vae.dtype), num_strips=num_strips)
    latents = moments[0].chunk(2)[0].float()
    mean, inverse_std = latent_statistics(vae, latents)
    return (latents - mean) * inverse_std


@torch.no_grad()
def decode_latents(
    vae: AutoencoderKLWan, latents: Tensor, num_frames: int, past: DecoderPast | None = None, num_strips: int = 1
) -> Tensor:
    """Pixels of the last `num_frames` frames; those before only warm the causal decoder up.

    Args:
        latents: (C, F, h, w), prefix included.
        num_frames: at most 4 · F, or 4 · F - 3 at the beginning of a sequence.
        past: carries the decoder's past from one call to the next, which then needs no prefix; see `decode_frames`.
        num_strips: in which each frame is decoded; more need less memory and a little more time.
    Returns: (3, num_frames, H, W) float32 in [-1, 1].
    """
    mean, inverse_std = latent_statistics(vae, latents)
    z = (latents.float() / inverse_std + mean)[None].to(vae.device, vae.dtype)
    assert num_frames <= FRAMES_PER_LATENT * z.shape[2] - (0 if past else FRAMES_PER_LATENT - 1), (num_frames, z.shape)
    num_kept = min(z.shape[2], -(-num_frames // FRAMES_PER_LATENT))
    strips = split_in_strips(z.shape[3], z.shape[4], num_strips)
    parts = []
    for strip in strips:
        cache = None if past is None else past.setdefault(strip, {})
        pixels = torch.cat(list(decode_frames(vae, z, num_kept, strip=strip, cache=cache)), dim=2)[:, :, -num_frames:]
        if vae.config.patch_size is not None:
            pixels = unpatchify(pixels, patch_size=vae.config.patch_size)
        parts.append(pixels[0].float().clamp(-1, 1))
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=strips[0].axis - 1)


def encode_pose(vae: AutoencoderKLWan, frames: Tensor, num_strips: int = 1) -> Tensor:
    """Pose latents of one clip: (3, T, H, W), T a multiple of 4 → (C, T/4, h, w).

    A copy of the first frame goes in front and its latent is dropped, so that latent f covers frames 4f … 4f+3.
    """
    return encode_pixels(vae, torch.cat((frames[:, :1], frames), dim=1), num_strips)[:, 1:]
