"""Decoding latents with no more work than the wanted frames need.

Every decoded frame depends on a long past: a later clip is preceded by 19 latents of history whose frames are thrown
away. But each level of the decoder looks back over fewer latents than the one before it, so the expensive last levels
may start late and still give the same frames. With the Wan VAEs, levels 1 to 3 start 14, 7 and 4 latents before the
first kept one: a clip of 20 latents after 19 costs as much as 28 latents instead of 39.

Where the past need not be the re-encoded frames, the decoder can also go on from where it stood after the clip before:
20 latents of work, and no seam.

The same holds across a frame: a level sees few rows and columns beyond those that are wanted. So a frame can be decoded
in strips, each with its margins, in a part of the memory and with the pixels of one decode: beyond the attention of the
first level, which sees whole frames and is cheap, margins are 13 latents before level 1 and 7 pixels before the last.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from math import ceil
from typing import Any

from diffusers import AutoencoderKLWan
from torch import Tensor

from wan_s2v.vae import (
    MEMORY_FORMAT,
    PAST_FRAMES,
    Cache,
    Strip,
    cached_convolve,
    changes_size,
    count_convolutions,
    finish,
    fitting_latents,
    run,
)


@dataclass(frozen=True)
class _Stage:
    """A level of the decoder; the input layer belongs to the first one, the output layer is one of its own.

    Args:
        run: (map, cache, first) → map.
        rate: frames per latent of its input.
        lookback: latents before the first kept one at which it must start; None means at the first latent.
        scale: pixels per latent of its input, in height and width.
        margin: pixels beyond the wanted ones that it must see on both sides; None means all.
    """

    run: Callable[[Tensor, Cache, bool], Tensor]
    rate: int
    lookback: int | None
    scale: int
    margin: int | None


def decode_frames(
    vae: AutoencoderKLWan,
    z: Tensor,
    num_kept: int,
    *,
    strip: Strip | None = None,
    cache: Cache | None = None,
    latents_per_call: int | None = None,
) -> Iterator[Tensor]:
    """Decode the last `num_kept` latents, some at a time.

    Args:
        z: (1, C, F, h, w) latents as the VAE wants them.
        num_kept: latents whose frames are wanted; those before only warm the causal decoder up.
        strip: whose pixels are wanted; all if None. Each strip has a cache of its own.
        cache: what an earlier call left in it is the past of `z`, and this call leaves the past of what follows. At
            1280x704 the Wan2.1 VAE needs 4.3 GB for it in bfloat16.
        latents_per_call: how many go through a level at once; if None as many as suit the memory, but one in strips,
            which are there to save it.
    Returns: (1, C_out, T, H', W') of some latents each, 4 frames per latent (1 for the very first of the sequence),
        neither unpatchified nor clamped.
    """
    cache = {} if cache is None else cache
    strip = strip or Strip(4, 0, z.shape[4])
    first_kept, stages = z.shape[2] - num_kept, _stages(vae.decoder)
    starts = [0 if stage.lookback is None else max(0, first_kept - stage.lookback) for stage in stages]
    is_whole = strip.stop - strip.start == z.shape[strip.axis]
    per_call = latents_per_call or (_fitting_latents(vae, z) if is_whole else 1)
    begin = 0
    while begin < z.shape[2]:
        end = min(z.shape[2], begin + (per_call if cache else 1))
        x = vae.post_quant_conv(z[:, :, begin:end]).contiguous(memory_format=MEMORY_FORMAT)
        frames = _decode_part(stages, starts, strip, x, begin, cache)
        if end > first_kept:
            yield frames[:, :, -(end - max(begin, first_kept)) * stages[-1].rate :]
        begin = end


def _decode_part(stages: list[_Stage], starts: list[int], strip: Strip, x: Tensor, begin: int, cache: Cache) -> Tensor:
    """Latents from `begin` on, through the levels that have started; each starts with its own first latent."""
    first, end, origin, size = not cache, begin + x.shape[2], 0, x.shape[strip.axis]
    for stage, following, start in zip(stages, [*stages[1:], None], starts, strict=True):
        if start >= end:
            return x
        low, high = _seen(strip, stage.margin, stage.scale, size)
        x = x[:, :, max(0, start - begin) * stage.rate :].narrow(strip.axis, low - origin, high - low)
        x = stage.run(x.contiguous(memory_format=MEMORY_FORMAT), cache, first)
        begin, origin = max(begin, start), low * (following or stage).scale // stage.scale
    low, high = _seen(strip, 0, stages[-1].scale, size)
    return x.narrow(strip.axis, low - origin, high - low)


def _seen(strip: Strip, margin: int | None, scale: int, size: int) -> tuple[int, int]:
    """First and last pixel that a level must see, of an axis of so many latents."""
    if margin is None:
        return 0, size * scale
    return max(0, strip.start * scale - margin), min(size * scale, strip.stop * scale + margin)


def _fitting_latents(vae: AutoencoderKLWan, z: Tensor) -> int:
    """Latents that suit the memory: the widest maps are those of the last level."""
    scale = 2 ** (len(vae.decoder.up_blocks) - 1)
    return fitting_latents(z.shape[-2] * scale, z.shape[-1] * scale, vae.decoder.conv_out.in_channels, z.dtype)


def _stages(decoder: Any) -> list[_Stage]:
    """Levels in order; how far each looks back and around follows from the convolutions between it and the frames."""
    blocks = decoder.up_blocks
    rates, scales = [1], [1]
    for block in blocks:
        is_doubled = any(name.endswith("time_conv") for name, _ in block.named_modules())
        rates.append(rates[-1] * (2 if is_doubled else 1))
        scales.append(scales[-1] * (2 if changes_size(block) else 1))
    lookback, margin = Fraction(PAST_FRAMES, rates[-1]), 1
    stages = [_Stage(partial(_output, decoder), rates[-1], ceil(lookback), scales[-1], margin)]
    for block, rate, scale in reversed(list(zip(blocks, rates[:-1], scales[:-1], strict=True))):
        lookback += Fraction(PAST_FRAMES * count_convolutions(block, axis=0), rate)
        if changes_size(block):
            margin = ceil((margin + 1) / 2)  # by a convolution of doubled pixels
        margin += count_convolutions(block, axis=1)
        stages.append(_Stage(partial(run, [block]), rate, ceil(lookback), scale, margin))
    return [_Stage(partial(_input, decoder), 1, None, 1, None), *reversed(stages)]


def _input(decoder: Any, x: Tensor, cache: Cache, first: bool) -> Tensor:
    return run([decoder.mid_block], cached_convolve(decoder.conv_in, x, cache), cache, first)


def _output(decoder: Any, x: Tensor, cache: Cache, first: bool) -> Tensor:
    return finish(decoder.norm_out, decoder.conv_out, x, cache)
