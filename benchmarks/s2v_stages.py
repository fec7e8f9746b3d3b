"""Stages of `s2v.py` that run one part of the model: forward, VAE, error against float32, loading."""

from __future__ import annotations

import copy
import os
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from s2v_meter import Meter, Record, difference
from s2v_model import SPEC, Inputs, Scale, Size, build_pipeline, cut_down, random_inputs, random_model
from torch import Tensor

from wan_s2v import WanS2VPipeline
from wan_s2v.latents import decode_latents, encode_pixels
from wan_s2v.models.transformer import WanS2VTransformer
from wan_s2v.runtime.estimate import forward_flops
from wan_s2v.runtime.quantization import compute_in_eight_bits
from wan_s2v.runtime.sizes import Work

CLIPS = {"first clip": False, "later clip": True}  # whether it sees the frames before it


@torch.no_grad()
def measure_forward(transformer: WanS2VTransformer, inputs: Inputs, size: Size, repeats: int, meter: Meter) -> Record:
    """One pass of the transformer, over a first clip and over a later one, which has motion tokens."""
    work = Work(size.height, size.width, SPEC.size_multiple, (), num_inference_steps=1, passes=1)
    records = {}
    for name, has_motion in CLIPS.items():
        conditioning = inputs.conditioning(transformer, has_motion)
        record = meter.measure(partial(inputs.predict, transformer, conditioning), repeats)
        layout = work.layout(transformer.config, (inputs.latents.shape[2], has_motion))
        flops = forward_flops(transformer.config, layout).total
        rate = flops / record["median_s"]
        records[name] = record | {"tokens": layout.num_tokens, "flops": flops, "flops_per_s": rate}
    return records


@torch.no_grad()
def measure_eight_bit(
    transformer: WanS2VTransformer, sizes: Sequence[Size], num_frames: int, repeats: int, meter: Meter
) -> dict[Size, Record]:
    """The same passes with all 8-bit compute that the device has, and how far they are from those before.

    The transformer stays as it is afterwards.
    """
    given = {
        size: random_inputs(transformer.config, size, num_frames, transformer.dtype, meter.device) for size in sizes
    }
    before = {size: _predict(transformer, inputs).cpu() for size, inputs in given.items()}
    compute_in_eight_bits(transformer, meter.device)
    meter.release()
    records = {}
    for size, inputs in given.items():
        changed = difference(_predict(transformer, inputs).cpu(), before[size])
        records[size] = measure_forward(transformer, inputs, size, repeats, meter) | {"change": changed}
    return records


def measure_vae(pipeline: WanS2VPipeline, size: Size, num_frames: int, repeats: int, meter: Meter) -> Record:
    """Encoding of the reference and of the frames that a clip hands over, and decoding of what a clip keeps."""
    vae, device = pipeline.vae, meter.device
    inputs = random_inputs(pipeline.transformer.config, size, num_frames, torch.float32, device)
    first, later = (torch.cat((prefix[0], inputs.latents[0]), dim=1) for prefix in (inputs.reference, inputs.motion))
    operations = {
        "encode reference": partial(encode_pixels, vae, random_pixels(1, size, device)),
        "encode hand-over": partial(encode_pixels, vae, random_pixels(SPEC.motion_frames, size, device)),
        "decode first clip": partial(decode_latents, vae, first, num_frames),
        "decode later clip": partial(decode_latents, vae, later, num_frames),
    }
    return {name: meter.measure(operation, repeats) for name, operation in operations.items()}


def random_pixels(num_frames: int, size: Size, device: torch.device) -> Tensor:
    """(3, T, H, W) float32 in [-1, 1]."""
    generator = torch.Generator(device).manual_seed(2)
    shape = (3, num_frames, size.height, size.width)
    return torch.rand(shape, generator=generator, device=device) * 2 - 1


def measure_error(scale: Scale, size: Size, num_layers: int, dtype: torch.dtype, meter: Meter) -> Record:
    """Distance from float32 of our run and of plain PyTorch, both in `dtype`, on a model cut down to a few blocks.

    The float32 weights are those of the low precision. Kernels of ours run only where gradients are off; so plain
    PyTorch is the same model under autocast with gradients on, though no weight asks for one.
    """
    config = cut_down(scale.transformer, num_layers)
    ours = random_model("transformer", config, dtype, meter.device)
    exact = copy.deepcopy(ours).float()
    inputs = random_inputs(config, size, scale.frames_per_clip, dtype, meter.device)
    with torch.enable_grad(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        truth = _predict(exact, inputs)
        with torch.autocast(meter.device.type, dtype):
            plain = _predict(exact, inputs)
    with torch.no_grad():
        run = _predict(ours, inputs)
    records: Record = {"ours": difference(run, truth), "plain": difference(plain, truth)}
    ratio = records["ours"]["relative_l2"] / records["plain"]["relative_l2"]
    return records | {"layers": config["num_layers"], "ratio": ratio}


def _predict(transformer: WanS2VTransformer, inputs: Inputs) -> Tensor:
    return inputs.predict(transformer, inputs.conditioning(transformer, has_motion=True))


def measure_load(scale: Scale, dtype: torch.dtype, meter: Meter) -> Record:
    """`from_pretrained` of a checkpoint with a few of the blocks and no text encoder, written for the purpose."""
    models = {**scale.models, "transformer": cut_down(scale.transformer, scale.load_layers)}
    with tempfile.TemporaryDirectory() as folder:
        build_pipeline(models, dtype, meter.device, with_text=False).save_pretrained(folder)
        files = sorted(Path(folder).rglob("*.safetensors"))
        stored = sum(file.stat().st_size for file in files)
        _drop_from_memory(files)
        seconds = {name: _load_seconds(folder, dtype, meter) for name in ("from disk", "from memory")}
    rates = {name: {"seconds_s": took, "bytes_per_s": stored / took} for name, took in seconds.items()}
    return {"stored_bytes": stored, "layers": models["transformer"]["num_layers"]} | rates


def _load_seconds(folder: str, dtype: torch.dtype, meter: Meter) -> float:
    meter.release()
    started = time.perf_counter()
    WanS2VPipeline.from_pretrained(folder, torch_dtype=dtype, device_map=meter.device.type, load_text_encoder=False)
    meter.wait()
    return time.perf_counter() - started


def _drop_from_memory(files: Sequence[Path]) -> None:
    """Have the system forget its copies of the files, so that they are read from the disk (Linux)."""
    for file in files:
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
