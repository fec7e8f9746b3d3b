"""T2V-A14B and TI2V-5B at full size on a GPU, with random weights, beside diffusers' own classes in the same run.

diffusers' transformers have the very weights of ours, in bfloat16 but for what diffusers keeps in float32. Its VAE is
in float32, as its documentation advises; ours in float16. Prompts are given as embeddings: no text encoder is loaded or
timed. Figures are medians of `--repeats` after one call that does not count; the whole run is made once more, with few
steps, and extrapolated to the model's number by the measured time of a step. Each figure goes to
`results/family-<gpu>.json` as soon as it is there.

- forward: one pass of a transformer, seconds and peak memory, and how far ours is from diffusers'
- whole: a video, from embeddings and noise to frames
- eight-bit: the forward with 8-bit products and attention; last, since the transformers stay so

Both experts of T2V-A14B take 57 GB; what of diffusers' runs does not fit beside them is recorded as out of memory.

    python benchmarks/family.py                                 # every model, size and stage
    python benchmarks/family.py --models ti2v-5b --stages forward
    python benchmarks/family.py --small                         # tiny models on the CPU, to try the command
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
import torch
from diffusers import WanPipeline, WanTransformer3DModel
from s2v import Results
from s2v_meter import Meter, Record, circumstances, difference, spread
from s2v_model import Size, random_model
from torch import Tensor

from wan_s2v.clips import FRAMES_PER_LATENT
from wan_s2v.family import WanTextToVideo
from wan_s2v.models.video_transformer import Times, WanVideoTransformer
from wan_s2v.runtime.estimate import forward_flops
from wan_s2v.runtime.precision import vae_dtype
from wan_s2v.runtime.quantization import compute_in_eight_bits
from wan_s2v.runtime.sizes import Work
from wan_s2v.schedulers import new_scheduler
from wan_s2v.video_plan import SPECS
from wan_s2v.weights.names import Task

HERE = Path(__file__).parent
STAGES = ("forward", "whole", "eight-bit")
_TIMESTEP: Final = 700
_STARTED = time.perf_counter()


@dataclass(frozen=True)
class Model:
    """A model of the family as keywords of its classes, and the frames that are measured."""

    task: Task
    transformer: Mapping[str, Any]
    vae: Mapping[str, Any]
    num_experts: int
    sizes: tuple[Size, ...]
    num_frames: int
    text_len: int = 512

    @property
    def boundary_ratio(self) -> float | None:
        return 0.875 if self.num_experts == 2 else None


_VAE_22: Final = {
    "base_dim": 160, "decoder_base_dim": 256, "z_dim": 48, "dim_mult": [1, 2, 4, 4], "num_res_blocks": 2,
    "temperal_downsample": [False, True, True], "is_residual": True, "in_channels": 12, "out_channels": 12,
    "patch_size": 2, "scale_factor_spatial": 16, "latents_mean": [0.0] * 48, "latents_std": [1.0] * 48,
}  # fmt: skip
_TINY: Final = {
    "num_attention_heads": 2, "attention_head_dim": 12, "ffn_dim": 32, "num_layers": 2, "freq_dim": 16, "text_dim": 16
}  # fmt: skip
FULL: Final = {
    "t2v-a14b": Model("t2v", {}, {}, 2, (Size(832, 480), Size(1280, 720)), 81),  # the classes' defaults
    "ti2v-5b": Model(
        "ti2v",
        {"num_attention_heads": 24, "in_channels": 48, "out_channels": 48, "ffn_dim": 14336, "num_layers": 30},
        _VAE_22,
        1,
        (Size(1280, 704),),
        121,
    ),
}
SMALL: Final = {
    "t2v-a14b": Model(
        "t2v", _TINY, {"base_dim": 4, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1}, 2, (Size(96, 64),), 5, 10
    ),
    "ti2v-5b": Model(
        "ti2v",
        _TINY | {"in_channels": 48, "out_channels": 48},
        _VAE_22 | {"base_dim": 4, "decoder_base_dim": 4, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1},
        1,
        (Size(96, 64),),
        5,
        10,
    ),
}


@torch.no_grad()
def random_transformer(config: Mapping[str, Any], dtype: torch.dtype, device: torch.device) -> WanVideoTransformer:
    """In `dtype`, but in float32 what diffusers keeps so."""
    model = random_model("transformer", config, dtype, device)
    for name, parameter in model.named_parameters():
        if set(model._keep_in_fp32_modules) & set(name.split(".")):
            parameter.data = parameter.data.float()
    return model


def theirs_of(ours: WanVideoTransformer) -> WanTransformer3DModel:
    """diffusers' own transformer over the same tensors."""
    config = {key: value for key, value in ours.config.items() if not key.startswith("_")}
    with torch.device("meta"):
        model = WanTransformer3DModel(**config)
    model.load_state_dict(ours.state_dict(), assign=True)
    rope = type(model.rope)(config["attention_head_dim"], config["patch_size"], config["rope_max_seq_len"])
    model.rope = rope.to(ours.device)
    return model.requires_grad_(False).eval()


def build(model: Model, dtype: torch.dtype, device: torch.device) -> Any:
    """Our pipeline on the device, without a text encoder."""
    spec, float32 = SPECS[model.task], torch.float32
    experts = [random_transformer(model.transformer, dtype, device) for _ in range(model.num_experts)]
    vae = random_model("vae", model.vae, vae_dtype(float32, dtype, device), device)
    pipeline = WanTextToVideo(
        tokenizer=None,
        text_encoder=None,
        vae=vae,
        scheduler=new_scheduler(spec.scheduler, spec.flow_shift),
        transformer=experts[0],
        transformer_2=experts[1] if model.num_experts == 2 else None,
        boundary_ratio=model.boundary_ratio,
        expand_timesteps=model.task == "ti2v",
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def build_theirs(ours: Any) -> WanPipeline:
    """diffusers' own pipeline over the same weights; its VAE in float32."""
    second = None if ours.transformer_2 is None else theirs_of(ours.transformer_2)
    pipeline = WanPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=copy.deepcopy(ours.vae).float(),
        scheduler=copy.deepcopy(ours.scheduler),
        transformer=theirs_of(ours.transformer),
        transformer_2=second,
        boundary_ratio=ours.config.boundary_ratio,
        expand_timesteps=ours.config.expand_timesteps,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@dataclass(frozen=True)
class Inputs:
    """Random tensors of one video: latents (1, C, F, h, w) float32, embeddings (1, L, C) in the weights' dtype."""

    latents: Tensor
    prompt: Tensor
    negative: Tensor
    timestep: Tensor
    work: Work


def random_inputs(pipeline: Any, model: Model, size: Size) -> Inputs:
    transformer, stride = pipeline.transformer, pipeline.vae_scale_factor_spatial
    device, config = transformer.device, transformer.config
    generator = torch.Generator(device).manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device)

    frames = (model.num_frames - 1) // FRAMES_PER_LATENT + 1
    latents = normal(1, config.in_channels, frames, size.height // stride, size.width // stride)
    prompt, negative = (normal(1, model.text_len, config.text_dim).to(transformer.dtype) for _ in range(2))
    timestep = torch.tensor([_TIMESTEP], device=device)
    if model.task == "ti2v":  # as diffusers' pipeline gives it
        timestep = timestep.expand(1, latents[0, 0, :, ::2, ::2].numel())
    work = Work(size.height, size.width, stride * config.patch_size[1], ((frames, False),), 1, 1)
    return Inputs(latents, prompt, negative, timestep, work)


@torch.no_grad()
def measure_forward(transformer: WanVideoTransformer, inputs: Inputs, repeats: int, meter: Meter) -> Record:
    """Ours as its pipeline runs it: text is prepared before."""
    text, frame = transformer.prepare_text(inputs.prompt), transformer.prepare_frame(inputs.latents)
    predict = partial(transformer.predict, inputs.latents, Times.of(inputs.timestep), frame, text)
    record = meter.measure(predict, repeats)
    flops = forward_flops(transformer.config, frame.layout).total
    return record | {"tokens": frame.layout.num_noise, "flops": flops, "flops_per_s": flops / record["median_s"]}


@torch.no_grad()
def compare_forward(pipeline: Any, inputs: Inputs, repeats: int, meter: Meter) -> Record:
    """Ours and diffusers', and how far the predictions are from each other."""
    ours, theirs = pipeline.transformer, theirs_of(pipeline.transformer)
    call = partial(theirs, inputs.latents.to(ours.dtype), inputs.timestep, inputs.prompt, return_dict=False)
    record = {"ours": measure_forward(ours, inputs, repeats, meter)}
    made = ours(inputs.latents, inputs.timestep, inputs.prompt, return_dict=False)[0].cpu()
    record["diffusers"] = or_shortage(lambda: meter.measure(call, repeats))
    if "median_s" in record["diffusers"]:
        record["difference"] = difference(made, call()[0].cpu())
        record["speedup"] = record["diffusers"]["median_s"] / record["ours"]["median_s"]
    return record


def measure_whole(pipeline: Any, model: Model, size: Size, inputs: Inputs, steps: int, meter: Meter) -> Record:
    """A video of `steps` steps, after one of a single step that does not count, and the time of a whole one."""
    step_ends: list[float] = []

    def on_step(*_: object) -> dict[str, Any]:
        meter.wait()
        step_ends.append(time.perf_counter())
        return {}

    def run(steps: int) -> None:
        pipeline(
            prompt=None,
            negative_prompt=None,
            prompt_embeds=inputs.prompt,
            negative_prompt_embeds=inputs.negative,
            latents=inputs.latents.clone(),
            height=size.height,
            width=size.width,
            num_frames=model.num_frames,
            num_inference_steps=steps,
            guidance_scale=SPECS[model.task].guidance_scale,
            output_type="pt",
            callback_on_step_end=on_step,
        )

    run(1)
    step_ends.clear()
    meter.release()
    meter.forget_peak()
    started = time.perf_counter()
    run(steps)
    meter.wait()
    total_s = time.perf_counter() - started
    step = spread(np.diff(step_ends).tolist())
    full_steps = SPECS[model.task].num_inference_steps
    return {
        "steps": steps,
        "step": step,
        "decode_s": started + total_s - step_ends[-1],
        "total_s": total_s,
        "full_steps": full_steps,
        "full_total_s": total_s + (full_steps - steps) * step["median_s"],
        **meter.peak(),
    }


def compare_whole(pipeline: Any, whole: Callable[[Any], Record], meter: Meter) -> Record:
    """Ours, then diffusers' over the same weights."""
    record = {"ours": whole(pipeline)}
    meter.release()
    record["diffusers"] = or_shortage(lambda: whole(build_theirs(pipeline)))
    meter.release()
    return record


def or_shortage(work: Callable[[], Record]) -> Record:
    """What work gives, or that memory ran out."""
    try:
        return work()
    except torch.OutOfMemoryError:
        return {"out_of_memory": True}


def measure_model(name: str, model: Model, arguments: argparse.Namespace, meter: Meter, results: Results) -> None:
    """All that was asked for of one model; its weights are gone afterwards."""
    dtype = torch.float32 if arguments.small else torch.bfloat16
    pipeline = build(model, dtype, meter.device)
    given = {size: random_inputs(pipeline, model, size) for size in model.sizes}
    for size, inputs in given.items():
        where = f"{name} {size}"
        if "forward" in arguments.stages:
            results.add("forward", where, compare_forward(pipeline, inputs, arguments.repeats, meter))
        if "whole" in arguments.stages:
            whole = partial(measure_whole, model=model, size=size, inputs=inputs, steps=arguments.steps, meter=meter)
            results.add("whole", where, compare_whole(pipeline, whole, meter))
    if "eight-bit" in arguments.stages:
        before = {size: _prediction(pipeline.transformer, inputs) for size, inputs in given.items()}
        compute_in_eight_bits(pipeline.transformer, meter.device)
        meter.release()
        for size, inputs in given.items():
            record = measure_forward(pipeline.transformer, inputs, arguments.repeats, meter)
            change = difference(_prediction(pipeline.transformer, inputs), before[size])
            results.add("eight-bit", f"{name} {size}", record | {"change": change})
    del pipeline, given
    meter.release()


@torch.no_grad()
def _prediction(transformer: WanVideoTransformer, inputs: Inputs) -> Tensor:
    return transformer(inputs.latents, inputs.timestep, inputs.prompt, return_dict=False)[0].cpu()


def results_path(gpu: str) -> Path:
    """ "NVIDIA H100 80GB HBM3" → results/family-h100-80gb-hbm3.json"""
    return HERE / "results" / f"family-{'-'.join(gpu.lower().removeprefix('nvidia').split())}.json"


def parse_arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Raises: SystemExit (2) for what is not accepted."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=tuple(FULL), default=tuple(FULL))
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3, help="of the stage whole")
    parser.add_argument("--small", action="store_true", help="tiny models on the CPU; no results unless named")
    parser.add_argument("--results", type=Path, help="results/family-<gpu>.json beside this file if left out")
    arguments = parser.parse_args(words)
    if arguments.repeats < 1 or arguments.steps < 2:
        parser.error("--repeats must be at least 1 and --steps at least 2: the first step does not count.")
    if not arguments.small and not torch.cuda.is_available():
        parser.error("Full-size models need a CUDA device, and PyTorch sees none. Add --small to try the command.")
    return arguments


def main(words: Sequence[str] | None = None) -> None:
    arguments = parse_arguments(words)
    device = torch.device("cpu") if arguments.small else torch.device("cuda", torch.cuda.current_device())
    models = SMALL if arguments.small else FULL
    found = circumstances("tiny" if arguments.small else "family", "bfloat16", device)
    path = arguments.results if arguments.results or arguments.small else results_path(found["gpu"])
    results, meter = Results(path, found), Meter(device)
    for name in arguments.models:
        measure_model(name, models[name], arguments, meter, results)
    print(json.dumps(results.values["measured"], indent=1))


if __name__ == "__main__":
    main()
