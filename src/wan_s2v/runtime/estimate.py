"""How much work and time a run takes, told before any weight is loaded; its memory is in memory.py.

Arithmetic on sizes, and one short measurement of the device. All of it is approximate: work within a few per cent, time
within a third on a quiet machine.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import torch

from wan_s2v.models.tokens import TokenLayout
from wan_s2v.runtime.memory import MemoryPolicy, peak_bytes, weight_bytes
from wan_s2v.runtime.sizes import FULL_VAE, TEXT_LEN, ModelSizes, Work, num_tokens

_DECODE_FLOPS_PER_PIXEL: Final = 24.5e12 / (1024 * 704)  # by that VAE, for one latent frame (four frames)
_ENCODE_SHARE: Final = 0.57  # encoding 19 latent frames took 1.29 s where decoding 39 took 4.39 s (H100, 832x480)
_SPEECH_STATES_PER_S: Final = 50

# Share of a large matrix product's rate that a forward of the 14B reaches with plain PyTorch: 446 and 489 TFLOP/s of
# 787 on an H100 at 832x480 and 1280x704.
_TRANSFORMER_EFFICIENCY: Final = 0.57
# Share of one convolution's rate at full resolution: 0.4 to 0.8 on two CPU cores for widths 4, 16 and 32; 0.5 of
# 240 TFLOP/s fits an H100.
_VAE_EFFICIENCY: Final = 0.5


@dataclass(frozen=True)
class ForwardFlops:
    """Floating-point operations of one forward: products of tokens with tokens, and of tokens with weights."""

    attention: float
    matmul: float

    @property
    def total(self) -> float:
        return self.attention + self.matmul


@dataclass(frozen=True)
class Rates:
    """FLOP/s that a device reaches in large matrix products and in the VAE's convolutions."""

    matmul: float
    convolution: float


@dataclass(frozen=True)
class Estimate:
    """What a run will take, about.

    Args:
        flops: of the whole run.
        seconds: without loading weights and writing the file.
        vae_seconds: the part of it that the VAE takes.
        peak_bytes: on the device that computes.
        weight_bytes: of all components, wherever they stay.
    """

    flops: float
    seconds: float
    vae_seconds: float
    peak_bytes: int
    weight_bytes: int


def forward_flops(config: Mapping[str, Any], layout: TokenLayout) -> ForwardFlops:
    """One pass of the transformer over one clip; keys and values of text and sound are made once and left out."""
    width, tokens = config["num_attention_heads"] * config["attention_head_dim"], num_tokens(config, layout)
    layers, injections = config["num_layers"], len(config.get("audio_inject_layers", ()))
    attention = layers * 4 * tokens * (tokens + config.get("text_len", TEXT_LEN)) * width
    attention += injections * 4 * layout.num_noise * (config.get("num_audio_tokens", 0) + 1) * width
    per_layer = 6 * width**2 + 2 * width * config["ffn_dim"]  # self-attention 4, cross-attention's queries and output 2
    matmul = 2 * tokens * layers * per_layer + 2 * layout.num_noise * injections * 2 * width**2
    return ForwardFlops(float(attention), float(matmul))


def estimate(sizes: ModelSizes, work: Work, dtype: torch.dtype, rates: Rates, policy: MemoryPolicy) -> Estimate:
    """Work, time and memory of a run.

    Args:
        dtype: of the transformers.
        rates: see `measure_rates`.
        policy: where weights wait; copying them is not counted.
    """
    steps = work.num_inference_steps * work.passes * work.num_videos
    denoise = sum(steps * forward_flops(sizes.config, work.layout(sizes.config, clip)).total for clip in work.clips)
    vae = _vae_flops(sizes, work)
    multiplied = sizes.parameters.get("text_encoder", 0) - sizes.text_table
    text = 2.0 * max(multiplied, 0) * sizes.text_len * work.num_prompts
    speech = 2.0 * sizes.parameters.get("audio_encoder", 0) * _SPEECH_STATES_PER_S * work.sound_s
    dense = denoise + text + speech
    vae_seconds = vae / (rates.convolution * _VAE_EFFICIENCY)
    seconds = dense / (rates.matmul * _TRANSFORMER_EFFICIENCY) + vae_seconds
    peak = peak_bytes(sizes, work, dtype, policy)
    return Estimate(dense + vae, seconds, vae_seconds, peak, sum(weight_bytes(sizes, dtype).values()))


def measure_rates(device: torch.device, dtype: torch.dtype, sizes: ModelSizes, *, seconds: float = 0.05) -> Rates:
    """What the device reaches now at the model's widths, each measured for about `seconds` after a warm-up."""
    large = device.type == "cuda"
    # Large enough to drown the start of a kernel, and on a busy CPU the wait for its threads (up to 20 ms each).
    flops = 1e11 if large else 2e9
    width, channels = min(sizes.width, 4096 if large else 1024), sizes.vae_channels
    tokens = max(128, min(round(flops / (8 * width**2)), 1 << 15))
    frame = max(32, min(round(math.sqrt(flops / (54 * channels**2))), 512))
    a = torch.ones(tokens, width, device=device, dtype=dtype)
    b = torch.ones(width, 4 * width, device=device, dtype=dtype)
    video = torch.ones(1, channels, 3, frame, frame, device=device, dtype=sizes.vae_dtype)
    kernel = torch.ones(channels, channels, 3, 3, 3, device=device, dtype=sizes.vae_dtype)
    convolve = partial(torch.conv3d, video, kernel, padding=(0, 1, 1))
    if not large and torch.backends.mkldnn.is_available():  # as the VAE runs there
        convolve = partial(torch.mkldnn_convolution, video, kernel, None, (0, 1, 1), (1, 1, 1), (1, 1, 1), 1)
    with torch.no_grad():
        matmul = 2 * a.numel() * 4 * width / _seconds_of(lambda: a @ b, device, seconds)
        convolution = 2 * 27 * channels**2 * frame**2 / _seconds_of(convolve, device, seconds)
    return Rates(matmul, convolution)


def _seconds_of(operation: Callable[[], object], device: torch.device, budget: float) -> float:
    """Time of one operation, the best of at least ten unless they take far longer than the budget."""
    best, spent = math.inf, 0.0
    operation()  # loads libraries and picks an algorithm
    for attempt in range(100):
        begin = time.perf_counter()
        operation()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        took = time.perf_counter() - begin
        best, spent = min(best, took), spent + took
        # On a busy machine few samples prove nothing.
        if spent > 4 * budget or (spent > budget and attempt >= 9):
            break
    return best


def _vae_flops(sizes: ModelSizes, work: Work) -> float:
    """Reference image; per clip a decode with its prefix; and after each but the last an encode of the history."""
    positions = work.height * work.width / sizes.vae_patch**2
    per_frame = _DECODE_FLOPS_PER_PIXEL * positions * sizes.parameters["vae"] / FULL_VAE
    history = sum(sizes.config.get("motion_buckets", ()))  # latent frames, encoded and decoded again beside every clip
    decoded = sum(frames + (history if has_motion else 1) for frames, has_motion in work.clips) * work.num_videos
    encoded = work.num_encoded + history * (len(work.clips) - 1 + work.clips[0][1])
    return per_frame * (decoded + _ENCODE_SHARE * encoded)
