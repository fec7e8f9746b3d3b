"""Decoding the end of a latent sequence exactly, without decoding what nobody sees.

Every decoded frame depends on a long past: a later clip is preceded by 19 latents of history whose frames are thrown
away. But each level of the decoder looks back over fewer latents than the one before it, so the expensive last levels
may start late and still give the same frames, bit for bit. With the Wan VAEs, levels 1 to 3 start 14, 7 and 4 latents
before the first kept one: a clip of 20 latents after 19 costs as much as 28 latents instead of 39.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from math import ceil
from typing import Any

import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d, WanResample
from torch import Tensor, nn

_CACHED_FRAMES = 2  # a causal convolution of kernel 3 keeps this many of its past inputs


@dataclass(frozen=True)
class _Stage:
    """A level of the decoder.

    Args:
        block: the level, or None for the input (`conv_in`, `mid_block`) and for the output (`norm_out`, `conv_out`).
        slot: its first place in the list of cached convolution inputs.
        lookback: latents before the first kept one at which it must start; None means at the first latent.
        time_slot: place of its temporal upsampler, where it has one.
    """

    block: nn.Module | None
    slot: int
    lookback: int | None
    time_slot: int | None
    time_channels: int


def decode_frames(vae: AutoencoderKLWan, z: Tensor, num_kept: int) -> Iterator[Tensor]:
    """Decode the last `num_kept` latents, one after the other.

    Args:
        z: (1, C, F, h, w) latents as the VAE wants them.
        num_kept: latents whose frames are wanted; those before only warm the causal decoder up.
    Returns: (1, C_out, 4, H', W') per latent (1 frame for the very first of the sequence), neither unpatchified nor
        clamped.
    """
    x = vae.post_quant_conv(z)
    stages = _stages(vae.decoder)
    cache: list[Any] = [None] * vae._cached_conv_counts["decoder"]
    first_kept = z.shape[2] - num_kept
    starts = [0 if s.lookback is None else max(0, first_kept - s.lookback) for s in stages]
    for index in range(z.shape[2]):
        frames: Tensor | None = x[:, :, index : index + 1]
        for stage, start in zip(stages, starts, strict=True):
            assert frames is not None
            if index < start:
                frames = None
                break
            if index == start > 0 and stage.time_slot is not None:
                # An empty slot would mean the first latent of all, which has one frame instead of four.
                past = (1, stage.time_channels, _CACHED_FRAMES, *frames.shape[-2:])
                cache[stage.time_slot] = frames.new_zeros(past)
            frames = _run(vae.decoder, stage, frames, cache, is_first=index == 0)
        if frames is not None and index >= first_kept:
            yield frames


def _run(decoder: Any, stage: _Stage, x: Tensor, cache: list[Any], is_first: bool) -> Tensor:
    if stage.block is not None:
        return stage.block(x, feat_cache=cache, feat_idx=[stage.slot], first_chunk=is_first)
    if stage.slot == 0:
        x = _cached_conv(decoder.conv_in, x, cache, 0)
        return decoder.mid_block(x, feat_cache=cache, feat_idx=[1])
    return _cached_conv(decoder.conv_out, decoder.nonlinearity(decoder.norm_out(x)), cache, stage.slot)


def _cached_conv(conv: nn.Module, x: Tensor, cache: list[Any], slot: int) -> Tensor:
    """Apply a causal convolution that sees, and then keeps, the last inputs."""
    past = cache[slot]
    seen = x if past is None else torch.cat((past, x), dim=2)
    cache[slot] = seen[:, :, -_CACHED_FRAMES:].clone()
    return conv(x, past)


def _stages(decoder: Any) -> list[_Stage]:
    """Levels in order; lookbacks follow from the causal convolutions between a level's input and the frames."""
    slot = 1 + len(_causal_convs(decoder.mid_block))
    blocks: list[tuple[nn.Module, int, list[str], Fraction]] = []
    rate = Fraction(1)  # frames per latent inside the level
    for block in decoder.up_blocks:
        names = _causal_convs(block)
        blocks.append((block, slot, names, rate))
        slot += len(names)
        rate *= 2 if any(name.endswith("time_conv") for name in names) else 1
    lookback = Fraction(_CACHED_FRAMES) / rate
    stages = [_Stage(None, slot, ceil(lookback), None, 0)]
    for block, first, names, level_rate in reversed(blocks):
        lookback += _CACHED_FRAMES * len(names) / level_rate
        time = [k for k, name in enumerate(names) if name.endswith("time_conv")]
        channels = [m.time_conv.in_channels for m in block.modules() if isinstance(m, WanResample) and time]
        time_slot = first + time[0] if time else None
        stages.append(_Stage(block, first, ceil(lookback), time_slot, channels[0] if channels else 0))
    return [_Stage(None, 0, None, None, 0), *reversed(stages)]


def _causal_convs(module: Any) -> list[str]:
    """Names of the convolutions that keep a past, in the order of their slots; shortcuts (kernel 1) keep none."""
    return [
        name
        for name, child in module.named_modules()
        if isinstance(child, WanCausalConv3d) and not name.endswith("conv_shortcut")
    ]
