"""Wan's causal VAE over the modules of diffusers' `AutoencoderKLWan`: same results, fewer copies, any number of frames.

diffusers runs one latent (four frames) at a time, and around every convolution copies the map to put the past in front
of it, to pad it, and to keep its end. Here maps have channels last, which is how tensor cores and oneDNN read them; the
norm writes straight behind the past frames; the convolution pads height and width itself; and what is doubled before a
convolution is never made. In 16 bits on GPUs of the Hopper kind convolutions are a kernel of ours, elsewhere cuDNN's or
oneDNN's.

Maps are (B, C, T, h, w). `first` says that a map begins with the very first frame, which is alone where later ones
come in fours: no level changes the number of its frames.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import (
    AvgDown3D,
    DupUp3D,
    WanAttentionBlock,
    WanCausalConv3d,
    WanMidBlock,
    WanResample,
    WanResidualBlock,
    WanResidualDownBlock,
    WanResidualUpBlock,
    WanRMS_norm,
    WanUpBlock,
    patchify,
)
from torch import Tensor, nn

from wan_s2v.clips import FRAMES_PER_LATENT
from wan_s2v.ops.channel_norm import add_residual, channel_norm
from wan_s2v.ops.convolution import convolve, make_padded, runs_own_convolution

PAST_FRAMES = 2  # that a causal convolution of kernel 3 sees before the first of its map
MEMORY_FORMAT = torch.channels_last_3d
_MAP_BYTES = 3 << 29  # of the widest map; about five such maps are alive at once
_MAX_LATENTS = 4  # more fill no machine better

Cache = dict[nn.Module, Tensor]
"""The last inputs of every causal convolution; empty before the first frame, and without what has seen no frame yet."""


class _Sum(NamedTuple):
    """A map, and the bias of its convolution where that is still to be added."""

    values: Tensor
    bias: Tensor | None = None


class Strip(NamedTuple):
    """Latents `start` to `stop` of an axis of (B, C, T, h, w), 3 or 4."""

    axis: int
    start: int
    stop: int


def split_in_strips(height: int, width: int, count: int) -> list[Strip]:
    """Latents of a frame in `count` nearly equal strips along its longer side; fewer where that has not so many."""
    axis, size = (3, height) if height > width else (4, width)
    edges = [round(size * index / min(count, size)) for index in range(min(count, size) + 1)]
    return [Strip(axis, start, stop) for start, stop in itertools.pairwise(edges)]


def encode_moments(
    vae: AutoencoderKLWan, video: Tensor, latents_per_call: int | None = None, num_strips: int = 1
) -> Tensor:
    """Means and log variances of a video's latents.

    Args:
        video: (B, 3, 1 + 4k, H, W) in the VAE's dtype.
        latents_per_call: how many go through the encoder at once; if None as many as suit the memory, but one in
            strips, which are there to save it.
        num_strips: in which a frame goes through the large levels, each with margins that make the result the same:
            72 pixels with the Wan VAEs.
    Returns: (B, 2C, 1 + k, h, w), means first.
    """
    encoder = vae.encoder
    x = video if vae.config.patch_size is None else patchify(video, vae.config.patch_size)
    stride = 2 ** sum(changes_size(block) for block in encoder.down_blocks)
    strips = split_in_strips(x.shape[-2] // stride, x.shape[-1] // stride, num_strips)
    per_call = latents_per_call or (1 if len(strips) > 1 else None)
    parts = [_encode_strip(encoder, x, strip, stride, per_call) for strip in strips]
    h = parts[0] if len(parts) == 1 else torch.cat(parts, dim=strips[0].axis)
    cache: Cache = {}
    moments = []
    for begin, end in itertools.pairwise((0, *range(1, h.shape[2], latents_per_call or _MAX_LATENTS), h.shape[2])):
        part = h[:, :, begin:end].contiguous(memory_format=MEMORY_FORMAT)
        part = run([encoder.mid_block], part, cache, not cache)
        moments.append(finish(encoder.norm_out, encoder.conv_out, part, cache))
    return vae.quant_conv(torch.cat(moments, dim=2))


def _encode_strip(encoder: Any, x: Tensor, strip: Strip, stride: int, latents_per_call: int | None) -> Tensor:
    """A strip of what the middle of the encoder sees, computed from its pixels and those around."""
    margin = -(-_encoder_margin(encoder) // stride)
    low, high = max(0, strip.start - margin), min(x.shape[strip.axis] // stride, strip.stop + margin)
    x = x.narrow(strip.axis, low * stride, (high - low) * stride)
    per_call = latents_per_call or fitting_latents(x.shape[-2], x.shape[-1], encoder.conv_in.out_channels, x.dtype)
    starts = range(1, x.shape[2], per_call * FRAMES_PER_LATENT)
    cache: Cache = {}
    maps = []
    for part in (x[:, :, :1], *(x[:, :, start : start + starts.step] for start in starts)):
        first = not cache
        h = cached_convolve(encoder.conv_in, part.contiguous(memory_format=MEMORY_FORMAT), cache)
        h = run(encoder.down_blocks, h, cache, first)
        kept = h.narrow(strip.axis, strip.start - low, strip.stop - strip.start)
        maps.append(h if kept.shape == h.shape else kept.clone())  # a view would keep the margins, too, until the end
    return torch.cat(maps, dim=2)


def _encoder_margin(encoder: Any) -> int:
    """Pixels around a strip on which its maps depend."""
    margin = 0
    for block in reversed(encoder.down_blocks):
        if changes_size(block):
            margin = 2 * margin + 1
        margin += count_convolutions(block, axis=1)
    return margin + 1


def changes_size(block: nn.Module) -> bool:
    """Whether a block ends with a change of height and width."""
    return any(isinstance(child, WanResample) for child in block.modules())


def count_convolutions(block: nn.Module, axis: int) -> int:
    """Causal convolutions that see beyond a position of the frames (axis 0) or of the rows and columns (axis 1).

    Shortcuts (kernel 1) do not; they also lie beside the others.
    """
    return sum(isinstance(child, WanCausalConv3d) and child.kernel_size[axis] > 1 for child in block.modules())


def fitting_latents(height: int, width: int, channels: int, dtype: torch.dtype) -> int:
    """Latents to process at once, where the widest map of four frames has `channels` at this size."""
    return max(1, min(_MAX_LATENTS, _MAP_BYTES // (channels * FRAMES_PER_LATENT * height * width * dtype.itemsize)))


def run(modules: Iterable[nn.Module], x: Tensor, cache: Cache, first: bool) -> Tensor:
    """Blocks of the encoder or decoder, one after the other."""
    for module in modules:
        x = _BLOCKS[type(module)](module, x, cache, first)
    return x


def finish(norm: WanRMS_norm, conv: nn.Conv3d, x: Tensor, cache: Cache) -> Tensor:
    """The output layer: norm, SiLU, causal convolution."""
    values, bias = _normed_convolve(norm, conv, _Sum(x), cache)
    return values if bias is None else values + bias.view(-1, 1, 1, 1)


def cached_convolve(conv: nn.Conv3d, x: Tensor, cache: Cache) -> Tensor:
    """A causal convolution over x and the frames before it."""
    seen, inner = _place_past(conv, x, cache)
    inner[:, :, PAST_FRAMES:] = x
    cache[conv] = inner[:, :, -PAST_FRAMES:].clone()
    return _apply(conv, seen, x, conv.bias)


def _place_past(conv: nn.Conv3d, x: Tensor, cache: Cache) -> tuple[Tensor, Tensor]:
    """Memory for what a causal convolution of x sees, with the past frames in it; and its part that is no border."""
    batch, channels, frames, height, width = x.shape
    if runs_own_convolution(x):
        seen = make_padded(x, PAST_FRAMES + frames, around=conv.kernel_size[1] > 1)
    else:
        size = (batch, channels, PAST_FRAMES + frames, height, width)
        seen = torch.empty(size, dtype=x.dtype, device=x.device, memory_format=MEMORY_FORMAT)
    inner = seen[:, :channels, :, :height, :width]
    past = cache.get(conv)
    inner[:, :, :PAST_FRAMES] = 0 if past is None else past
    return seen, inner


def _residual_block(block: Any, x: Tensor, cache: Cache, first: bool) -> Tensor:
    shortcut = block.conv_shortcut
    residual = x if isinstance(shortcut, nn.Identity) else _mix(shortcut, x)
    inner = _normed_convolve(block.norm1, block.conv1, _Sum(x), cache)
    return _normed_convolve(block.norm2, block.conv2, inner, cache, residual).values


def _normed_convolve(norm: WanRMS_norm, conv: nn.Conv3d, x: _Sum, cache: Cache, residual: Tensor | None = None) -> _Sum:
    """Norm, SiLU and causal convolution, and the sum with a residual; SiLU writes where the convolution reads."""
    seen, inner = _place_past(conv, x.values, cache)
    channel_norm(x.values, norm.gamma, bias=x.bias, silu=True, out=inner[:, :, PAST_FRAMES:])
    cache[conv] = inner[:, :, -PAST_FRAMES:].clone()
    if runs_own_convolution(seen):
        return _Sum(_apply(conv, seen, x.values, conv.bias, residual))
    made = _Sum(_apply(conv, seen, x.values, None), conv.bias) if _adds_bias_apart(seen) else None
    made = made or _Sum(_apply(conv, seen, x.values, conv.bias))
    return made if residual is None else _Sum(add_residual(made.values, residual, made.bias))


def _adds_bias_apart(x: Tensor) -> bool:
    """Whether a convolution of x adds its bias in another pass over the result: cuDNN does, oneDNN does not."""
    return x.is_cuda


def _apply(conv: nn.Conv3d, seen: Tensor, like: Tensor, bias: Tensor | None, residual: Tensor | None = None) -> Tensor:
    """A convolution over frames that have their past in front, to as many as `like` has, of its height and width."""
    _, height, width = conv.kernel_size
    if not runs_own_convolution(seen):
        return _convolve(seen, conv.weight, bias, (0, height // 2, width // 2), conv.stride)
    assert bias is not None
    size = (like.shape[0], conv.out_channels, *like.shape[2:])
    out = torch.empty(size, dtype=like.dtype, device=like.device, memory_format=MEMORY_FORMAT)
    origin = (height // 2, width // 2)
    return convolve(seen, conv.weight, bias, origin=origin, out=out, residual=residual)


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None, padding: Sequence[int], stride: Sequence[int]) -> Tensor:
    """A convolution over (N, C, h, w), or over (B, C, T, h, w)."""
    if x.device.type == "cpu" and x.dtype in (torch.float32, torch.bfloat16) and torch.backends.mkldnn.is_available():
        # PyTorch itself runs small 3D convolutions in a plain loop: 65 ms against 1.2 for 4 channels of 4 x 130 x 194.
        return torch.mkldnn_convolution(x, weight, bias, padding, stride, [1] * len(stride), 1)
    return torch.convolution(x, weight, bias, stride, padding, [1] * len(stride), False, [0] * len(stride), 1)


def _mix(conv: nn.Conv3d, x: Tensor) -> Tensor:
    """A convolution of one tap: a product of every position's channels."""
    return F.linear(x.permute(0, 2, 3, 4, 1), conv.weight.flatten(1), conv.bias).permute(0, 4, 1, 2, 3)


def _attention(block: Any, x: Tensor, cache: Cache, first: bool) -> Tensor:
    """Self-attention within each frame, one head."""
    batch, channels, frames, height, width = x.shape
    normed = channel_norm(x, block.norm.gamma).permute(0, 2, 3, 4, 1)
    tokens = normed.reshape(batch * frames, 1, height * width, channels)
    q, k, v = F.linear(tokens, block.to_qkv.weight.flatten(1), block.to_qkv.bias).chunk(3, dim=-1)
    mixed = F.linear(F.scaled_dot_product_attention(q, k, v), block.proj.weight.flatten(1), block.proj.bias)
    return add_residual(mixed.view(normed.shape).permute(0, 4, 1, 2, 3), x)


def _mid_block(block: Any, x: Tensor, cache: Cache, first: bool) -> Tensor:
    pairs = zip(block.attentions, block.resnets[1:], strict=True)
    return run([block.resnets[0], *itertools.chain(*pairs)], x, cache, first)


def _up_block(block: Any, x: Tensor, cache: Cache, first: bool) -> Tensor:
    return run([*block.resnets, *(block.upsamplers or ())], x, cache, first)


def _residual_up_block(block: Any, x: Tensor, cache: Cache, first: bool) -> Tensor:
    h = run(block.resnets, x, cache, first)
    if block.upsampler is None:
        return h
    return _add_repeated(block.avg_shortcut, run([block.upsampler], h, cache, first), x, first)


def _residual_down_block(block: Any, x: Tensor, cache: Cache, first: bool) -> Tensor:
    h = run(block.resnets, x, cache, first)
    if block.downsampler is not None:
        h = run([block.downsampler], h, cache, first)
    return add_residual(h, _average(block.avg_shortcut, x))


def _resample(module: Any, x: Tensor, cache: Cache, first: bool) -> Tensor:
    return (_upsample if module.mode.startswith("up") else _downsample)(module, x, cache, first)


def _upsample(module: Any, x: Tensor, cache: Cache, first: bool) -> Tensor:
    """Twice the height and width, and with a time convolution twice the frames, but for the first one."""
    conv = module.resample[1]
    if module.mode == "upsample3d" and not first:
        x = cached_convolve(module.time_conv, x, cache)
    # Channels beyond those of the next convolution are further frames.
    frames = x.permute(0, 2, 3, 4, 1).unflatten(-1, (-1, conv.in_channels)).permute(0, 1, 4, 2, 3, 5).flatten(0, 2)
    return _as_video(_enlarge(conv, frames.permute(0, 3, 1, 2)), x.shape[0])


def _enlarge(conv: nn.Conv2d, images: Tensor) -> Tensor:
    """The convolution of images (N, C, h, w) with all rows and columns doubled.

    Of 3 x 3 doubled pixels only 2 x 2 differ, and whether a row and a column of the result are even says which. So four
    convolutions of that size, with sums of the kernel's values, do it with 4/9 of the arithmetic.
    """
    count, _, height, width = images.shape
    shape = (count, conv.out_channels, 2 * height, 2 * width)
    out = torch.empty(shape, dtype=images.dtype, device=images.device, memory_format=torch.channels_last)
    seen = None
    if runs_own_convolution(images):
        frames = images.transpose(0, 1)[None]
        seen = make_padded(frames, count, around=True)
        seen[:, : frames.shape[1], :, :height, :width] = frames
    for row, column in itertools.product((0, 1), repeat=2):
        kernel = _fold(_fold(conv.weight.float(), 2, row), 3, column).to(images.dtype)
        target = out[:, :, row::2, column::2]
        if seen is not None:
            video = target.transpose(0, 1)[None]
            assert conv.bias is not None
            convolve(seen, kernel[:, :, None], conv.bias, origin=(1 - row, 1 - column), out=video)
        else:
            made = _convolve(images, kernel, conv.bias, (1, 1), (1, 1))
            target.copy_(made[:, :, row : row + height, column : column + width])
    return out


def _fold(kernel: Tensor, axis: int, parity: int) -> Tensor:
    """Of three values along an axis the two that doubled pixels leave, for even (0) or odd (1) results."""
    before, here, after = kernel.split(1, axis)
    return torch.cat((before + here, after) if parity else (before, here + after), axis)


def _downsample(module: Any, x: Tensor, cache: Cache, first: bool) -> Tensor:
    """Half the height and width, and with a time convolution half the frames, but for the first one."""
    conv, time_conv = module.resample[1], getattr(module, "time_conv", None)
    images = F.pad(x.transpose(1, 2).flatten(0, 1), (0, 1, 0, 1))
    x = _as_video(_convolve(images, conv.weight, conv.bias, (0, 0), conv.stride), x.shape[0])
    if time_conv is None:
        return x
    seen = x if first else torch.cat((cache[time_conv], x), dim=2)
    cache[time_conv] = x[:, :, -1:].clone()
    return x if first else _convolve(seen, time_conv.weight, time_conv.bias, (0, 0, 0), time_conv.stride)


def _as_video(images: Tensor, batch: int) -> Tensor:
    """(B·T, C, h, w) → (B, C, T, h, w)."""
    return images.unflatten(0, (batch, -1)).transpose(1, 2)


def _add_repeated(shortcut: DupUp3D, h: Tensor, x: Tensor, first: bool) -> Tensor:
    """h (overwritten) plus x, each value of x repeated over channels, frames, rows and columns.

    Source: diffusers' `DupUp3D`.
    """
    batch, _, frames, rows, columns = x.shape
    time, space, channels = shortcut.factor_t, shortcut.factor_s, shortcut.out_channels
    copies = x.permute(0, 2, 3, 4, 1).unflatten(-1, (channels, -1, 1)).expand(*[-1] * 6, shortcut.repeats)
    copies = copies.view(batch, frames, rows, columns, channels, time, space, space).permute(0, 1, 5, 2, 6, 3, 7, 4)
    if first:
        copies = copies[:, :, -1:]
    h.permute(0, 2, 3, 4, 1).view(copies.shape).add_(copies)
    return h


def _average(shortcut: AvgDown3D, x: Tensor) -> Tensor:
    """Means of x over neighbouring frames, rows, columns and channels. Source: diffusers' `AvgDown3D`."""
    time, space = shortcut.factor_t, shortcut.factor_s
    x = F.pad(x, (0, 0, 0, 0, -x.shape[2] % time, 0))
    x = x.unflatten(4, (-1, space)).unflatten(3, (-1, space)).unflatten(2, (-1, time))
    groups = x.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4).unflatten(4, (-1, shortcut.group_size))
    return groups.mean(dim=-1).permute(0, 4, 1, 2, 3)


_BLOCKS = {
    WanAttentionBlock: _attention,
    WanMidBlock: _mid_block,
    WanResample: _resample,
    WanResidualBlock: _residual_block,
    WanResidualDownBlock: _residual_down_block,
    WanResidualUpBlock: _residual_up_block,
    WanUpBlock: _up_block,
}
