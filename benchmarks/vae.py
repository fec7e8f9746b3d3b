"""The Wan2.1 VAE at full size: what a later clip asks of it, our way and diffusers', in every precision.

Per clip the last 73 frames are encoded, and 20 latents decoded that follow 19 of history. diffusers decodes all 39.

    python benchmarks/vae.py                        # both sizes; tables and results/vae-<gpu>.json (about 6 minutes)
    python benchmarks/vae.py --sizes 1280x704 --profile
    python benchmarks/vae.py --vae Wan2.1_VAE.pth   # trained weights, which give the PSNR a meaning beyond comparison
    python benchmarks/vae.py --small                # the same code and a small VAE on a CPU; no speeds

Times are medians after a first call, which is stated by itself: it loads, compiles and picks algorithms. Errors are
against diffusers in float32 without TF32, on 17 frames of a drifting portrait.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import unpatchify
from PIL import Image
from s2v_meter import Meter, Record, circumstances, difference, spread
from s2v_model import FULL, SMALL, Scale, Size, random_model
from torch import Tensor, nn

from wan_s2v import vae as fast
from wan_s2v.decoder import decode_frames
from wan_s2v.ops.channel_norm import plain_add_residual, plain_channel_norm
from wan_s2v.ops.convolution import runs_own_convolution
from wan_s2v.weights import load_model
from wan_s2v.weights.checkpoint import read_vae

HERE = Path(__file__).parent
PORTRAIT = HERE.parent / "src" / "wan_s2v" / "assets" / "demo" / "portrait.png"
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32


@dataclass(frozen=True)
class Work:
    """Frames to encode; latents of history and of the clip to decode."""

    frames: int
    history: int
    kept: int


WORK = {FULL.name: Work(73, 19, 20), SMALL.name: Work(9, 3, 2)}
HEADER = f"{'size':>9} {'variant':26} {'dtype':9} encode s decode s    sum s  first s   GiB in both    latents PSNR dB"


@dataclass(frozen=True)
class Variant:
    """A way to run the VAE.

    Args:
        ours: or else diffusers' own.
        channels_last: whether diffusers' weights and inputs have channels last; ours always has.
        tuned: whether cuDNN tries its algorithms at every new shape.
        compiled: whether `torch.compile` takes the place of our Triton kernels.
        carried: whether the decoder goes on from the clip before, and needs no history.
        own_convolution: whether our kernel convolves where it can; cuDNN does otherwise.
    """

    name: str
    dtype: torch.dtype
    ours: bool = True
    channels_last: bool = False
    latents_per_call: int | None = None
    tuned: bool = False
    compiled: bool = False
    carried: bool = False
    own_convolution: bool = True


VARIANTS = (
    Variant("diffusers", FP32, ours=False),
    Variant("ours", FP16),
    Variant("ours", BF16),
    Variant("ours", FP32),
    Variant("ours, past carried", FP16, carried=True),
    Variant("ours, cuDNN", FP16, own_convolution=False),
    Variant("ours, cuDNN tuned", FP16, tuned=True, own_convolution=False),
    Variant("ours, 1 latent at once", FP16, latents_per_call=1),
    Variant("ours, 4 latents at once", FP16, latents_per_call=4),
    Variant("diffusers", BF16, ours=False),
    Variant("diffusers, channels last", BF16, ours=False, channels_last=True),
    Variant("diffusers, channels last", FP32, ours=False, channels_last=True),
    Variant("ours, compiled, no Triton", BF16, compiled=True, own_convolution=False),
)


def encode(vae: AutoencoderKLWan, variant: Variant, video: Tensor) -> Tensor:
    """(1, 3, T, H, W) → means and log variances."""
    if variant.ours:
        return fast.encode_moments(vae, video, variant.latents_per_call)
    return vae._encode(video.contiguous(memory_format=_layout(variant)))


def decode(vae: AutoencoderKLWan, variant: Variant, z: Tensor, num_kept: int) -> Tensor:
    """(1, C, F, h, w) → the frames of the last `num_kept` latents, not clamped where ours."""
    if variant.ours:
        parts = decode_frames(vae, z, num_kept, latents_per_call=variant.latents_per_call)
        return unpatchify(torch.cat(list(parts), dim=2), vae.config.patch_size or 1)
    return vae._decode(z.contiguous(memory_format=_layout(variant))).sample[:, :, -4 * num_kept :]


def _layout(variant: Variant) -> torch.memory_format:
    return torch.channels_last_3d if variant.channels_last else torch.contiguous_format


def prepare(vae: AutoencoderKLWan, variant: Variant) -> AutoencoderKLWan:
    """A copy in the variant's dtype and memory format."""
    vae = nn.Module.to(copy.deepcopy(vae), variant.dtype)  # diffusers' own `to` warns
    for module in vae.modules() if variant.channels_last else ():
        if isinstance(module, nn.Conv3d):
            module.to(memory_format=torch.channels_last_3d)
        elif isinstance(module, nn.Conv2d):
            module.to(memory_format=torch.channels_last)
    return vae


@contextmanager
def settings(variant: Variant) -> Iterator[None]:
    """cuDNN's, and which operations of ours run."""
    own = patch.object(fast, "runs_own_convolution", runs_own_convolution if variant.own_convolution else _never)
    with own, torch.backends.cudnn.flags(enabled=True, benchmark=variant.tuned, allow_tf32=True):
        if not variant.compiled:
            yield
            return
        norm, add = (torch.compile(operation, dynamic=True) for operation in (plain_channel_norm, plain_add_residual))

        def compiled_norm(x: Tensor, gamma: Tensor, *, out: Tensor | None = None, **options) -> Tensor:
            return norm(x, gamma, **options) if out is None else out.copy_(norm(x, gamma, **options))

        limit = torch._dynamo.config.patch(recompile_limit=64)  # one for every width and layout of a map
        with limit, patch.object(fast, "channel_norm", compiled_norm), patch.object(fast, "add_residual", add):
            yield


def _never(x: Tensor) -> bool:
    return False


@torch.no_grad()
def measure(vae: AutoencoderKLWan, variant: Variant, size: Size, work: Work, repeats: int, meter: Meter) -> Record:
    """Seconds and peak memory of both directions."""
    generator = torch.Generator(meter.device).manual_seed(1)
    draw = partial(torch.randn, generator=generator, device=meter.device, dtype=variant.dtype)
    video = draw(1, 3, work.frames, size.height, size.width).clamp_(-1, 1)
    scale = vae.config.scale_factor_spatial
    z = draw(1, vae.config.z_dim, work.history + work.kept, size.height // scale, size.width // scale)
    vae = prepare(vae, variant)
    operation = partial(decode, vae, variant, z, work.kept)
    if variant.carried:
        cache: fast.Cache = {}
        list(decode_frames(vae, z[:, :, :2], 2, cache=cache))
        operation = partial(_continue, vae, z[:, :, work.history :], cache)
    return {
        "encode": _time(partial(encode, vae, variant, video), repeats, meter),
        "decode": _time(operation, repeats, meter),
    }


def _continue(vae: AutoencoderKLWan, z: Tensor, cache: fast.Cache) -> Tensor:
    return torch.cat(list(decode_frames(vae, z, z.shape[2], cache=cache)), dim=2)


def _time(operation: Callable[[], object], repeats: int, meter: Meter) -> Record:
    """Seconds of the first call and of so many after it."""
    meter.release()
    seconds = []
    for attempt in range(1 + repeats):
        if attempt == 1:
            meter.forget_peak()
        started = time.perf_counter()
        operation()
        meter.wait()
        seconds.append(time.perf_counter() - started)
    return {"first_s": seconds[0]} | spread(seconds[1:]) | meter.peak()


class Truth:
    """A short video, with its latents and its decoded frames in float32."""

    @torch.no_grad()
    def __init__(self, vae: AutoencoderKLWan, size: Size, num_frames: int, device: torch.device) -> None:
        self.video = drifting_portrait(size, num_frames).to(device)
        exact = Variant("diffusers", FP32, ours=False)
        matmul = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = False
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            self.latents = encode(vae, exact, self.video).chunk(2, dim=1)[0]
            self.frames = decode(vae, exact, self.latents, self.latents.shape[2])
        torch.backends.cuda.matmul.allow_tf32 = matmul

    @torch.no_grad()
    def compare(self, vae: AutoencoderKLWan, variant: Variant) -> Record:
        """Relative error of the latents, and PSNR of frames decoded from the exact ones."""
        vae = prepare(vae, variant)
        latents = encode(vae, variant, self.video.to(variant.dtype)).chunk(2, dim=1)[0]
        frames = decode(vae, variant, self.latents.to(variant.dtype), self.latents.shape[2]).float().clamp(-1, 1)
        mse = (frames - self.frames).square().mean().item()
        psnr = 10 * math.log10(4 / mse) if mse else math.inf
        return {"latents": difference(latents, self.latents), "psnr_db": psnr if math.isfinite(psnr) else None}


def drifting_portrait(size: Size, num_frames: int) -> Tensor:
    """(1, 3, T, H, W) in [-1, 1], two pixels further right in every frame."""
    picture = np.asarray(Image.open(PORTRAIT).convert("RGB").resize(size))
    still = torch.from_numpy(picture.copy()).permute(2, 0, 1).float() / 127.5 - 1
    return torch.stack([still.roll(2 * k, dims=-1) for k in range(num_frames)], dim=1)[None]


@torch.no_grad()
def measure_convolutions(size: Size, channels: int, meter: Meter) -> list[Record]:
    """FLOP/s of the 3 x 3 x 3 convolutions of the decoder's levels, of four frames' worth each."""
    rows = []
    for level, (width, frames) in enumerate(((channels, 4), (2 * channels, 4), (4 * channels, 2), (4 * channels, 1))):
        shape = (1, width, frames + 2, size.height >> level, size.width >> level)
        flops = 2 * 27 * width**2 * frames * shape[3] * shape[4]
        for dtype in (FP32, BF16, FP16) if meter.device.type == "cuda" else (FP32, BF16):
            for last in (False, True):
                layout = torch.channels_last_3d if last else torch.contiguous_format
                x = torch.randn(shape, device=meter.device).to(dtype).contiguous(memory_format=layout)
                kernel = torch.randn(width, width, 3, 3, 3, device=meter.device).to(dtype)
                took = _time(partial(torch.conv3d, x, kernel, padding=(0, 1, 1)), 5, meter)["median_s"]
                described = {"shape": shape, "dtype": str(dtype).removeprefix("torch."), "channels_last": last}
                rows.append(described | {"seconds": took, "flops_per_s": flops / took})
    return rows


@torch.no_grad()
def print_profile(vae: AutoencoderKLWan, size: Size, work: Work, device: torch.device) -> None:
    """Where the time of our way goes, by kernel."""
    dtype = FP16 if device.type == "cuda" else BF16
    variant, scale = Variant("ours", dtype), vae.config.scale_factor_spatial
    vae = prepare(vae, variant)
    video = torch.randn(1, 3, work.frames, size.height, size.width, device=device, dtype=dtype)
    shape = (1, vae.config.z_dim, work.history + work.kept, size.height // scale, size.width // scale)
    z = torch.randn(shape, device=device, dtype=dtype)
    for name, operation in (
        ("encode", partial(encode, vae, variant, video)),
        ("decode", partial(decode, vae, variant, z, work.kept)),
    ):
        operation()
        with torch.profiler.profile() as profile:
            operation()
            Meter(device).wait()
        order = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
        print(f"\n{name}, {size}")
        print(profile.key_averages().table(sort_by=order, row_limit=15, max_name_column_width=90))


def print_row(row: Record) -> None:
    """One line of the table."""
    parts = row["encode"], row["decode"]
    seconds = " ".join(f"{spent:8.3f}" for spent in (parts[0]["median_s"], parts[1]["median_s"], row["total_s"]))
    memory = " ".join(f"{(part['allocated_bytes'] or 0) / 2**30:6.1f}" for part in parts)
    distance, psnr = row["latents"]["relative_l2"], row["psnr_db"]
    error = f"{distance:9.1e} {'equal' if distance == 0 else 'NaN' if psnr is None else format(psnr, '.1f'):>7}"
    name = f"{row['size']:>9} {row['variant']:26} {row['dtype']:9}"
    print(f"{name} {seconds} {sum(part['first_s'] for part in parts):8.1f} {memory} {error}", flush=True)


def measure_variants(vae: AutoencoderKLWan, scale: Scale, arguments: argparse.Namespace, meter: Meter) -> Record:
    """The rows of the table, as long as the time lasts."""
    work = WORK[scale.name]
    sizes, started = arguments.sizes or scale.sizes, time.perf_counter()
    truth = Truth(vae, sizes[0], 17, meter.device)
    rows, left_out = [], []
    print(HEADER)
    for size, variant in itertools.product(sizes, VARIANTS):
        if arguments.small and variant.dtype == FP16:  # which CPUs have no fast convolutions for
            variant = replace(variant, dtype=BF16)
        dtype = str(variant.dtype).removeprefix("torch.")
        if variant.compiled and not arguments.compile:
            continue
        if time.perf_counter() - started > arguments.seconds:
            left_out.append(f"{size} {variant.name} {dtype}")
            continue
        with settings(variant):
            record = measure(vae, variant, size, work, arguments.repeats, meter) | truth.compare(vae, variant)
        total = record["encode"]["median_s"] + record["decode"]["median_s"]
        rows.append({"size": str(size), "variant": variant.name, "dtype": dtype, "total_s": total} | record)
        print_row(rows[-1])
    if left_out:
        print("no time left for:", "; ".join(left_out), file=sys.stderr)
    return {"work": vars(work), "rows": rows, "left_out": left_out}


def run(arguments: argparse.Namespace) -> Record:
    """All that was asked for."""
    device, scale = (torch.device("cpu"), SMALL) if arguments.small else (torch.device("cuda"), FULL)
    meter = Meter(device)
    if arguments.vae:
        vae = load_model(read_vae(arguments.vae), FP32, device)
    else:
        vae = random_model("vae", scale.models["vae"], FP32, device)
    record = measure_variants(vae, scale, arguments, meter)
    size = (arguments.sizes or scale.sizes)[-1]
    convolutions = measure_convolutions(size, vae.decoder.conv_out.in_channels, meter)
    for row in convolutions:
        layout = "channels last" if row["channels_last"] else "channels first"
        print(f"convolution {row['shape']} {row['dtype']:8} {layout:14} {row['flops_per_s'] / 1e12:7.1f} TFLOP/s")
    if arguments.profile:
        print_profile(vae, size, WORK[scale.name], device)
    model = str(arguments.vae or f"VAE of {scale.name}, random weights")
    return circumstances(model, "of each row", device) | record | {"convolutions": convolutions}


def _size(text: str) -> Size:
    width, _, height = text.partition("x")
    return Size(int(width), int(height))


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="a small VAE on a CPU")
    parser.add_argument("--sizes", type=_size, nargs="+", help="as 832x480")
    parser.add_argument("--vae", type=Path, help="a VAE's file or folder; random weights of Wan2.1's otherwise")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=400, help="after which no further variant begins")
    parser.add_argument("--compile", action="store_true", help="also with torch.compile in place of Triton kernels")
    parser.add_argument("--profile", action="store_true", help="show where the time goes")
    parser.add_argument("--output", type=Path, help="results/vae-<gpu>.json otherwise")
    arguments = parser.parse_args(words)
    if not arguments.small and not torch.cuda.is_available():
        parser.error("needs a CUDA device, and PyTorch sees none. Add --small to run a small VAE on the CPU")
    result = run(arguments)
    if arguments.small and not arguments.output:
        return
    gpu = result["gpu"].split()[1].lower() if " " in result["gpu"] else result["gpu"]
    target = arguments.output or HERE / "results" / f"vae-{gpu}.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
