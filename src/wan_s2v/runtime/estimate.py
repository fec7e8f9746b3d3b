"""How much work, time and memory a run takes, told before any weight is loaded.

Arithmetic on sizes, and one short measurement of the device. All of it is approximate: work within a few per cent, the
memory of a forward within five, time within a third on a quiet machine. Nothing depends on files or a loaded model.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, NamedTuple

import torch

from wan_s2v.models.config import S2V_14B
from wan_s2v.models.tokens import TokenLayout, motion_grids

_FULL_VAE: Final = 126_892_531  # parameters of the Wan2.1 VAE
_DECODE_FLOPS_PER_PIXEL: Final = 24.5e12 / (1024 * 704)  # by that VAE, for one latent frame (four frames)
_ENCODE_SHARE: Final = 0.57  # encoding 19 latent frames took 1.29 s where decoding 39 took 4.39 s (H100, 832x480)
_SPEECH_STATES_PER_S: Final = 50

# Share of a large matrix product's rate that a forward of the 14B reaches with plain PyTorch: 446 and 489 TFLOP/s of
# 787 on an H100 at 832x480 and 1280x704.
_TRANSFORMER_EFFICIENCY: Final = 0.57
# Share of one convolution's rate at full resolution: 0.4 to 0.8 on two CPU cores for widths 4, 16 and 32; 0.5 of
# 240 TFLOP/s fits an H100.
_VAE_EFFICIENCY: Final = 0.5

# Peak of a forward beyond the weights, in bytes per token and channel: 10.4 GB at 35.1 k tokens and 23.5 GB at 79.2 k
# in bf16 on an H100. The residual stream is float32, the rest as wide as the weights.
_STREAM_BYTES: Final = 30
_WORKING_COPIES: Final = 14
_DECODE_COPIES: Final = 8  # float32 maps of full resolution that a causal convolution holds, its cache included


class PackedSize(NamedTuple):
    """Parameters that stay in memory in fewer bits than they compute in, and the bytes they take."""

    parameters: int
    num_bytes: int


@dataclass(frozen=True)
class ModelSizes:
    """A model as numbers.

    Args:
        config: keywords of the transformer's class.
        parameters: by component: transformer, transformer_2, vae, text_encoder, audio_encoder.
        vae_channels: width of the VAE's decoder at full resolution.
        text_table: parameters of the text encoder that are looked up, not multiplied.
        vae_patch: side of the pixel squares that the VAE takes as channels.
        vae_dtype: in which it computes.
        packed: by component, what stays packed of its parameters.
    """

    config: Mapping[str, Any]
    parameters: Mapping[str, int]
    vae_channels: int
    text_table: int
    vae_patch: int = 1
    vae_dtype: torch.dtype = torch.float32
    packed: Mapping[str, PackedSize] = field(default_factory=dict)

    @property
    def width(self) -> int:
        """C, channels of a token."""
        return int(self.config["num_attention_heads"] * self.config["attention_head_dim"])


S2V_14B_SIZES: Final = ModelSizes(
    S2V_14B,
    {
        "transformer": 16_295_755_609,
        "vae": _FULL_VAE,
        "text_encoder": 5_680_910_336,
        "audio_encoder": 315_438_720,
    },
    vae_channels=96,
    text_table=256_384 * 4096,
)


@dataclass(frozen=True)
class Work:
    """A run as numbers.

    Args:
        size_multiple: pixels of a token's side.
        clips: latent frames of each clip, and whether it sees motion.
        passes: forwards per step.
        num_prompts: prompts to encode.
        sound_s: seconds of sound that the speech encoder hears.
    """

    height: int
    width: int
    size_multiple: int
    clips: tuple[tuple[int, bool], ...]
    num_inference_steps: int
    passes: int
    num_prompts: int = 2
    sound_s: float = 0.0

    def layout(self, config: Mapping[str, Any], clip: tuple[int, bool]) -> TokenLayout:
        """Tokens of one clip."""
        rows, columns = self.height // self.size_multiple, self.width // self.size_multiple
        patch = (config["patch_size"][1], config["patch_size"][2])
        buckets = tuple(config["motion_buckets"])
        motion = motion_grids(rows * patch[0], columns * patch[1], patch, buckets) if clip[1] else ()
        return TokenLayout(clip[0], rows, columns, motion)


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
    width, tokens = config["num_attention_heads"] * config["attention_head_dim"], layout.num_tokens
    layers, injections = config["num_layers"], len(config["audio_inject_layers"])
    attention = layers * 4 * tokens * (tokens + config["text_len"]) * width
    attention += injections * 4 * layout.num_noise * (config["num_audio_tokens"] + 1) * width
    per_layer = 6 * width**2 + 2 * width * config["ffn_dim"]  # self-attention 4, cross-attention's queries and output 2
    matmul = 2 * tokens * layers * per_layer + 2 * layout.num_noise * injections * 2 * width**2
    return ForwardFlops(float(attention), float(matmul))


def estimate(sizes: ModelSizes, work: Work, dtype: torch.dtype, rates: Rates, *, offload: bool) -> Estimate:
    """Work, time and memory of a run.

    Args:
        dtype: of the transformers.
        rates: see `measure_rates`.
        offload: whether only the part that works is on the device.
    """
    steps = work.num_inference_steps * work.passes
    denoise = sum(steps * forward_flops(sizes.config, work.layout(sizes.config, clip)).total for clip in work.clips)
    vae = _vae_flops(sizes, work)
    multiplied = sizes.parameters.get("text_encoder", 0) - sizes.text_table
    text = 2.0 * max(multiplied, 0) * sizes.config["text_len"] * work.num_prompts
    speech = 2.0 * sizes.parameters.get("audio_encoder", 0) * _SPEECH_STATES_PER_S * work.sound_s
    dense = denoise + text + speech
    vae_seconds = vae / (rates.convolution * _VAE_EFFICIENCY)
    seconds = dense / (rates.matmul * _TRANSFORMER_EFFICIENCY) + vae_seconds
    peak = peak_bytes(sizes, work, dtype, offload=offload)
    return Estimate(dense + vae, seconds, vae_seconds, peak, sum(weight_bytes(sizes, dtype).values()))


def weight_bytes(sizes: ModelSizes, dtype: torch.dtype) -> dict[str, int]:
    """Bytes of each component as it is loaded: the speech encoder in float32, the text encoder never in float16, and
    what stays packed as it is stored.
    """
    text = 4 if dtype == torch.float32 else 2
    widths = {"transformer": dtype.itemsize, "transformer_2": dtype.itemsize, "text_encoder": text}
    widths["vae"] = sizes.vae_dtype.itemsize
    packed = {name: sizes.packed.get(name, PackedSize(0, 0)) for name in sizes.parameters}
    return {
        name: (count - packed[name].parameters) * widths.get(name, 4) + packed[name].num_bytes
        for name, count in sizes.parameters.items()
    }


def peak_bytes(sizes: ModelSizes, work: Work, dtype: torch.dtype, *, offload: bool) -> int:
    """Most bytes in use at once on the device: weights that are there, and the larger of a forward and a decode."""
    weights = weight_bytes(sizes, dtype)
    tokens = max(work.layout(sizes.config, clip).num_tokens for clip in work.clips)
    forward = tokens * sizes.width * (_STREAM_BYTES + _WORKING_COPIES * dtype.itemsize)
    forward += work.passes * 2 * sizes.config["num_layers"] * sizes.config["text_len"] * sizes.width * dtype.itemsize
    decode = _decode_bytes(sizes, work)
    if not offload:
        return sum(weights.values()) + max(forward, decode)
    stages = {"transformer": forward, "transformer_2": forward, "vae": decode}
    return max(count + stages.get(name, 0) for name, count in weights.items())


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


def free_bytes(device: torch.device) -> int | None:
    """Memory that can still be allocated; None where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            fields = dict(line.split(":", 1) for line in file)
        return int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None


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
    per_frame = _DECODE_FLOPS_PER_PIXEL * positions * sizes.parameters["vae"] / _FULL_VAE
    history = sum(sizes.config["motion_buckets"])  # latent frames, encoded and decoded again beside every clip
    decoded = sum(frames + (history if has_motion else 1) for frames, has_motion in work.clips)
    encoded = 1 + history * (len(work.clips) - 1 + work.clips[0][1])
    return per_frame * (decoded + _ENCODE_SHARE * encoded)


def _decode_bytes(sizes: ModelSizes, work: Work) -> int:
    """The widest maps of one latent frame (four frames), and the finished frames of the longest clip."""
    pixels = work.height * work.width
    maps = _DECODE_COPIES * 4 * sizes.vae_dtype.itemsize * sizes.vae_channels * pixels / sizes.vae_patch**2
    return int(maps) + max(4 * frames for frames, _ in work.clips) * 3 * 4 * pixels * 2
