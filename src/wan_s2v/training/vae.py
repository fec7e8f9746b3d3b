"""Training of the embedded model's VAE: an `AutoencoderKLWan` of the 16x16x4 kind with 48 latent channels.

Three stages, each starting from the one before: short clips of many people, then half seconds, then whole clips of 81
frames. The last one is needed: a causal VAE that never saw more than 17 frames drifts in colour after about 20.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanResample, WanResidualBlock, patchify, unpatchify
from torch import Tensor

from wan_s2v.training.loop import Budget, Loop
from wan_s2v.training.pool import Pool

VAE_CONFIG: dict[str, Any] = {
    "base_dim": 32,
    "decoder_base_dim": 40,
    "z_dim": 48,
    "dim_mult": [1, 2, 4, 4],
    "num_res_blocks": 1,
    "temperal_downsample": [False, True, True],
    "is_residual": True,
    "in_channels": 12,
    "out_channels": 12,
    "patch_size": 2,
    "scale_factor_spatial": 16,
    "scale_factor_temporal": 4,
    "latents_mean": [0.0] * 48,
    "latents_std": [1.0] * 48,
}
LATENT_NOISE = 0.1  # added in training, so that the decoder forgives small errors of the transformer
SIZE_PENALTY = 2e-4
GRADIENT_WEIGHT, MOTION_WEIGHT = 0.5, 0.25


@dataclass(frozen=True)
class Stage:
    """One part of the training.

    Args:
        share: of the whole time.
        num_frames, size, batch: of a step's crops.
        compile: worth it where a shape stays for minutes; costs about a minute.
    """

    share: float
    num_frames: int
    size: int
    batch: int
    compile: bool = False


STAGES = (Stage(0.28, 5, 128, 48), Stage(0.22, 17, 192, 10), Stage(0.50, 81, 256, 4, compile=True))


def build_vae(config: dict[str, Any] = VAE_CONFIG) -> AutoencoderKLWan:
    """A new VAE whose residual blocks start small and which can process whole sequences at once."""
    vae = AutoencoderKLWan(**config)
    for block in vae.modules():
        if isinstance(block, WanResidualBlock):
            with torch.no_grad():
                block.conv2.weight.mul_(0.1)
    process_whole_sequences(vae)
    return vae


def process_whole_sequences(vae: AutoencoderKLWan) -> None:
    """Let encoder and decoder run without a cache over all frames at once, equal to their chunked operation."""
    for module in vae.modules():
        if isinstance(module, WanResample):
            module.forward = MethodType(_resample, module)


def _resample(module: WanResample, x: Tensor, feat_cache: Any = None, feat_idx: Any = None) -> Tensor:
    if feat_cache is not None:
        return WanResample.forward(module, x, feat_cache, feat_idx)
    if module.mode == "upsample3d" and x.shape[2] > 1:
        rest = module.time_conv(x[:, :, 1:]).unflatten(1, (2, -1))  # (B, 2, C, T - 1, h, w)
        rest = rest.permute(0, 2, 3, 1, 4, 5).flatten(2, 3)
        x = torch.cat((x[:, :, :1], rest), dim=2)
    frames = x.shape[2]
    x = module.resample(x.transpose(1, 2).flatten(0, 1)).unflatten(0, (-1, frames)).transpose(1, 2)
    if module.mode == "downsample3d" and frames > 1:
        x = torch.cat((x[:, :, :1], module.time_conv(x)), dim=2)
    return x


def encode_sequence(vae: AutoencoderKLWan, video: Tensor) -> tuple[Tensor, Tensor]:
    """(B, 3, 4k+1, H, W) → mean and log variance, (B, C, k+1, h, w) each."""
    mean, logvar = vae.quant_conv(vae.encoder(patchify(video, vae.config.patch_size))).chunk(2, dim=1)
    return mean, logvar


def decode_sequence(vae: AutoencoderKLWan, latents: Tensor) -> Tensor:
    """(B, C, k+1, h, w) → (B, 3, 4k+1, H, W), not clamped."""
    return unpatchify(vae.decoder(vae.post_quant_conv(latents), first_chunk=True), vae.config.patch_size)


def reconstruction_loss(made: Tensor, video: Tensor, weights: Tensor) -> Tensor:
    """Weighted absolute error of pixels, of their differences in space, and of those in time."""
    error = (made - video).abs()
    loss = (error * weights).mean()
    for axis in (-1, -2):
        difference = (made.diff(dim=axis) - video.diff(dim=axis)).abs()
        loss = loss + GRADIENT_WEIGHT * (difference * weights.narrow(axis, 1, difference.shape[axis])).mean()
    if video.shape[2] > 1:
        motion = (made.diff(dim=2) - video.diff(dim=2)).abs()
        loss = loss + MOTION_WEIGHT * (motion * weights[:, :, 1:]).mean()
    return loss


def train_vae(
    vae: AutoencoderKLWan,
    pool: Pool,
    budget: Budget,
    *,
    stages: tuple[Stage, ...] = STAGES,
    learning_rate: float = 3e-3,
    seed: int = 0,
    checkpoint: Path | None = None,
    report: Callable[[str], None] = print,
) -> Loop:
    """Train in place; afterwards the model holds the average of its weights."""
    generator = torch.Generator().manual_seed(seed)
    loop = Loop(
        vae,
        muon_lr=learning_rate,
        adamw_lr=learning_rate / 3,
        budget=budget,
        checkpoint=checkpoint,
        generators=(generator,),
        report=report,
    )
    ends = list(itertools.accumulate(stage.share for stage in stages))
    compiled = torch.compile(_losses)
    for progress in loop:
        stage = next(stage for stage, end in zip(stages, [*ends[:-1], math.inf], strict=True) if progress < end)
        losses = compiled if stage.compile else _losses
        video, weights = pool.draw(stage.batch, stage.num_frames, stage.size, generator)
        with torch.autocast(video.device.type, torch.bfloat16):
            loss = losses(vae, video, weights)
        loop.step(loss)
    loop.finish()
    return loop


def _losses(vae: AutoencoderKLWan, video: Tensor, weights: Tensor) -> Tensor:
    mean, logvar = encode_sequence(vae, video)
    latents = mean + LATENT_NOISE * torch.randn_like(mean)
    made = decode_sequence(vae, latents)
    penalty = SIZE_PENALTY * mean.square().mean() + 1e-4 * (logvar - math.log(LATENT_NOISE**2)).square().mean()
    return reconstruction_loss(made.float(), video, weights) + penalty


@torch.no_grad()
def measure_latents(vae: AutoencoderKLWan, pool: Pool, num_clips: int = 64) -> None:
    """Set the latents' mean and deviation per channel in the VAE's config, from clips of a pool."""
    latents = []
    for clip in range(min(num_clips, len(pool.frames))):
        video = pool.frames[clip, :41].transpose(0, 1)[None].float() / 127.5 - 1
        latents.append(encode_sequence(vae, video)[0][0].flatten(1))
    joined = torch.cat(latents, dim=1)
    vae.register_to_config(latents_mean=joined.mean(1).tolist(), latents_std=joined.std(1).tolist())


@torch.no_grad()
def evaluate_vae(vae: AutoencoderKLWan, pool: Pool) -> tuple[dict[str, float], Tensor]:
    """PSNR of clips encoded and decoded frame by frame as users do it, in dB: whole, mouth, and by quarters of a clip.

    Returns: the figures and the reconstruction of the first clip, (T, 3, S, S) in [-1, 1].
    """
    errors, mouth_errors, shown = [], [], None
    size = pool.frames.shape[-1]
    for clip in range(len(pool.frames)):
        video = pool.frames[clip].transpose(0, 1)[None].float() / 127.5 - 1
        made = vae.decode(vae.encode(video).latent_dist.mode()).sample.clamp(-1, 1)
        error = (made - video)[0].square().mean(dim=0)  # (T, S, S)
        errors.append(error.mean(dim=(1, 2)))
        for frame, (left, top, right, bottom) in zip(error, (pool.mouths[clip] * size).int().tolist(), strict=True):
            mouth_errors.append(frame[top : bottom + 1, left : right + 1].mean())
        shown = made[0].transpose(0, 1) if shown is None else shown
    by_frame = torch.stack(errors)
    figures = {
        "whole": _psnr(by_frame.mean(1)),
        "mouth": _psnr(torch.stack(mouth_errors).view(len(errors), -1).mean(1)),
    }
    for quarter, part in enumerate(by_frame.chunk(4, dim=1)):
        figures[f"quarter {quarter + 1}"] = _psnr(part.mean(1))
    assert shown is not None
    return figures, shown


def _psnr(squared_errors: Tensor) -> float:
    """Mean PSNR of pixels in [-1, 1]."""
    return float((10 * torch.log10(4 / squared_errors.clamp(min=1e-10))).mean())
