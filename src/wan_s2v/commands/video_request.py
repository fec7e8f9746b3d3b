"""One video from text or a picture: checked and planned from headers alone, then made by a loaded pipeline.

The counterpart of request.py for the models without sound. Nothing in here prints.
"""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from wan_s2v import __version__
from wan_s2v.commands.make import use_loras
from wan_s2v.commands.progress import Reporter, duration_text, size_text
from wan_s2v.commands.request import (
    ModelChoice,
    check_loras,
    chosen_device,
    lora_bytes,
    lora_rows,
    model_sizes,
)
from wan_s2v.errors import UsageError
from wan_s2v.experts import snr_at
from wan_s2v.family import load_pipeline, settled_dtype
from wan_s2v.image import LoadedImage, load_image
from wan_s2v.marking import Marking
from wan_s2v.plan import GenerationOptions, marking_of
from wan_s2v.prompt_spans import read_spans
from wan_s2v.runtime.estimate import Estimate, estimate, measure_rates
from wan_s2v.runtime.memory import MemoryPolicy, Offload, choose_policy, device_budget, resident_bytes
from wan_s2v.runtime.precision import vae_dtype
from wan_s2v.runtime.quantization import can_compute_in_eight_bits
from wan_s2v.runtime.sizes import ModelSizes, how_blocks_run
from wan_s2v.schedulers import make_scheduler
from wan_s2v.video import check_output_path, write_video
from wan_s2v.video_plan import SPECS, VideoModel, VideoOptions, VideoPlan, plan_video
from wan_s2v.weights.checkpoint import Checkpoint, find_checkpoint
from wan_s2v.weights.lora import LoRAFile
from wan_s2v.weights.names import TASKS, Task

_MARKING = frozenset({"mark", "content_producer", "sign_certificate", "sign_key"})
_OF_THE_MODEL = frozenset(field.name for field in fields(VideoOptions))
_SHARED = _OF_THE_MODEL | _MARKING | {"seed"}  # beside them is what is about sound


@dataclass(frozen=True)
class VideoRequest:
    """What somebody wants; of the options those that are not about sound."""

    choice: ModelChoice
    options: GenerationOptions
    guidance_scale_2: float | None
    image: Path | None
    output: Path
    overwrite: bool = False
    loras: tuple[LoRAFile, ...] = ()


@dataclass(frozen=True)
class VideoPreview:
    """What is going to happen, and what it will take.

    Args:
        high_noise_steps: done by the first expert; all of them with one transformer.
    """

    request: VideoRequest
    plan: VideoPlan
    picture: LoadedImage | None
    seed: int
    high_noise_steps: int
    device: torch.device
    dtype: torch.dtype
    policy: MemoryPolicy
    estimate: Estimate
    free_bytes: int | None
    marking: Marking
    warnings: tuple[str, ...]

    def summary(self) -> dict[str, Any]:
        """The plan as plain numbers and strings."""
        request, needed = self.request, self.estimate
        return {
            **self.plan.summary(),
            "image": None if request.image is None else str(request.image),
            "output": str(request.output),
            "model": request.choice.model,
            "high_noise_steps": self.high_noise_steps,
            "loras": [lora.record() for lora in request.loras],
            "seed": self.seed,
            "device": str(self.device),
            "dtype": str(self.dtype).removeprefix("torch."),
            "offload": self.policy.offload,
            "estimate": {
                "seconds": round(needed.seconds, 1),
                "memory_gib": round(needed.peak_bytes / 2**30, 4),
                "free_gib": None if self.free_bytes is None else round(self.free_bytes / 2**30, 2),
                "weights_gib": round(needed.weight_bytes / 2**30, 4),
                "pflop": round(needed.flops / 1e15, 4),
            },
            "warnings": list(self.warnings),
        }


def preview_video(request: VideoRequest, task: Task) -> VideoPreview:
    """Open the picture, plan the run and estimate it; nothing is written and no weight is loaded.

    Args:
        task: of the checkpoint.
    Raises: UsageError, ImageError, CheckpointError and OutputError, for whatever would make the run fail later.
    """
    _require_fitting(request, task)
    check_output_path(request.output, overwrite=request.overwrite)
    options, choice = request.options, request.choice
    device = chosen_device(choice.device)
    checkpoint = find_checkpoint(
        choice.model, components=choice.components, boundary_ratio=choice.boundary_ratio, tasks=TASKS
    )
    dtype, note = settled_dtype(checkpoint, "float16" if options.use_fp16 else choice.torch_dtype, device)
    picture = None if request.image is None else load_image(request.image)
    plan = plan_video(
        _video_model(checkpoint),
        _video_options(request),
        picture.image if picture else None,
        has_lora=any(lora.weight for lora in request.loras),
    )
    notes = [*plan.warnings, *check_loras(request.loras, checkpoint.models["transformer"].config)]
    policy, needed, free = _memory(request, plan, checkpoint, device, dtype)
    notes += [*(picture.warnings if picture else ()), *([note] if note else []), *_memory_notes(needed, free, device)]
    return VideoPreview(
        request,
        plan,
        picture,
        options.seed if options.seed is not None else secrets.randbelow(2**31),
        _high_noise_steps(plan),
        device,
        dtype,
        policy,
        needed,
        free,
        marking_of(options, plan.height, plan.width),
        tuple(notes),
    )


def _require_fitting(request: VideoRequest, task: Task) -> None:
    """Raises: UsageError for inputs and options that this model has no use for, or lacks."""
    options = request.options
    for field in fields(GenerationOptions):
        if field.name not in _SHARED and getattr(options, field.name) != field.default:
            flag = f"--{field.name.replace('_', '-')}"
            raise UsageError(f"{flag} is for models that hear sound; this one is for {task}. Leave it out.")
    if len(read_spans(options.prompt)) > 1:
        raise UsageError(
            "A prompt with time spans is for models that hear sound, whose videos have clips. Give one text."
        )
    if task == "i2v" and request.image is None:
        raise UsageError("Missing option '--image': this model makes a picture move. Pass the picture to start from.")
    if task == "t2v" and request.image is not None:
        raise UsageError("--image is not for this model, which makes videos from text alone. Leave it out, or use i2v.")
    if request.image is None and not options.prompt.strip():
        raise UsageError("--prompt is empty, and nothing else says what to show. Describe the video in words.")
    if request.image is not None and request.image.absolute() == request.output.absolute():
        raise UsageError(f"Output {request.output} is also the image. Choose another output.")


def _video_options(request: VideoRequest) -> VideoOptions:
    options = request.options
    shared = {field.name for field in fields(GenerationOptions)} & _OF_THE_MODEL
    given = {name: getattr(options, name) for name in shared}
    return VideoOptions(**given, guidance_scale_2=request.guidance_scale_2)


def _video_model(checkpoint: Checkpoint) -> VideoModel:
    transformer, vae = checkpoint.models["transformer"].config, checkpoint.models["vae"].config
    multiple = int((vae.get("scale_factor_spatial") or 8) * transformer["patch_size"][1])
    return VideoModel(checkpoint.task, SPECS[checkpoint.task], multiple, checkpoint.boundary_ratio)


def _high_noise_steps(plan: VideoPlan) -> int:
    sampling = plan.sampling
    scheduler = make_scheduler(sampling.scheduler, sampling.num_inference_steps, sampling.flow_shift, "cpu")
    return sum(plan.stage_at(timestep).expert == "transformer" for timestep in scheduler.timesteps.tolist())


def _memory(
    request: VideoRequest, plan: VideoPlan, checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype
) -> tuple[MemoryPolicy, Estimate, int | None]:
    """What is given up so that the run fits, what it takes, and what is free."""
    on_gpu, options = device.type == "cuda", request.options
    program = 0 if on_gpu else resident_bytes()  # there already, beside what the model will take
    free = device_budget(device, program)
    sizes = _sizes(request, checkpoint, device, dtype)
    least: Offload = "model" if options.enable_cpu_offload else "none"
    policy = choose_policy(sizes, plan.work, dtype, free, least) if on_gpu else MemoryPolicy()
    needed = estimate(sizes, plan.work, dtype, measure_rates(device, dtype, sizes), policy)
    return policy, replace(needed, peak_bytes=needed.peak_bytes + program), free


def _sizes(request: VideoRequest, checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> ModelSizes:
    sizes = model_sizes(checkpoint)
    is_eight_bit = request.options.preset == "fast" and can_compute_in_eight_bits(device)
    return replace(
        sizes,
        vae_dtype=vae_dtype(sizes.vae_dtype, dtype, device),
        blocks_run=how_blocks_run(device, is_eight_bit=is_eight_bit),
        lora_bytes=lora_bytes(request.loras, sizes, dtype),
    )


def _memory_notes(needed: Estimate, free: int | None, device: torch.device) -> list[str]:
    if free is None or needed.peak_bytes <= free:
        return []
    least = " at the least" if device.type == "cuda" else ""
    what = f"The run needs about {size_text(needed.peak_bytes)}{least}; {device} has {size_text(free)} free."
    return [f"{what} Try a smaller --area."]


def make_text_video(wanted: VideoPreview, reporter: Reporter) -> dict[str, Any]:
    """Load the model, make the video and write it; on failure no file is left.

    Returns: the record of the run: versions, plan, warnings and seconds.
    """
    request, plan, started = wanted.request, wanted.plan, time.perf_counter()
    pipeline = _load(wanted, reporter)
    loaded = time.perf_counter()
    decode_share = wanted.estimate.vae_seconds / wanted.estimate.seconds
    reporter.start(1, plan.sampling.num_inference_steps, decode_share)
    generator = torch.Generator(wanted.device).manual_seed(wanted.seed)
    plan = replace(plan, options=replace(plan.options, generator=generator))
    picture = None if wanted.picture is None else wanted.picture.image
    video = pipeline.run(plan, picture, "pt", reporter.step)[0]
    frames = video.mul(255).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()  # truncated, as officially
    made = time.perf_counter()
    tags = {"comment": f"AI-generated video (wan_s2v {__version__}, seed {wanted.seed})"}
    write_video(request.output, frames, plan.model.spec.fps, metadata=tags, marking=wanted.marking)
    reporter.clip_written()
    seconds = {"load": loaded - started, "make": made - loaded, "write": time.perf_counter() - made}
    record = pipeline.describe(plan)
    warnings = list(dict.fromkeys([*wanted.warnings, *record["warnings"]]))
    seconds = {stage: round(spent, 3) for stage, spent in seconds.items()}
    return wanted.summary() | record | {"warnings": warnings, "seconds": seconds}


def _load(wanted: VideoPreview, reporter: Reporter) -> Any:
    """The pipeline with its LoRAs, which computes on the device of the plan."""
    choice, on_gpu = wanted.request.choice, wanted.device.type == "cuda"
    pipeline: Any = load_pipeline(
        choice.model,
        task="i2v" if wanted.picture else None,
        torch_dtype=wanted.dtype,
        device_map="auto" if on_gpu and not wanted.plan.options.enable_cpu_offload else "cpu",
        components=choice.components,
        boundary_ratio=choice.boundary_ratio,
        progress=reporter.loading,
    )
    if on_gpu:
        pipeline.compute_on(torch.device("cuda", torch.cuda.current_device()))
    pipeline.set_progress_bar_config(disable=True)
    use_loras(pipeline, wanted.request.loras)
    return pipeline


def video_rows(wanted: VideoPreview) -> list[tuple[str, str]]:
    """The plan as short lines for people: a heading and what it says."""
    plan, needed, request = wanted.plan, wanted.estimate, wanted.request
    sampling, fps = plan.sampling, plan.model.spec.fps
    scales = [scale for scale in (sampling.guidance_scale, sampling.guidance_scale_2) if scale is not None]
    guided = sampling.is_guided
    guidance = " then ".join(f"{scale:g}" for scale in scales) if guided else "off"
    memory = size_text(needed.peak_bytes)
    experts = ("transformer",) if plan.model.boundary_ratio is None else ("transformer", "transformer_2")
    memory += "" if wanted.free_bytes is None else f" of {size_text(wanted.free_bytes)} free"
    return [
        ("model", f"{request.choice.model} ({'picture' if wanted.picture else 'text'} to video)"),
        *([("inputs", request.image.name)] if request.image is not None else []),
        ("prompt", request.options.prompt or "none"),
        (
            "video",
            f"{plan.width}x{plan.height}, {plan.num_frames} frames at {fps} fps, {plan.num_frames / fps:.2f} s",
        ),
        (
            "sampling",
            f"{sampling.num_inference_steps} steps x {1 + guided} pass{'es' if guided else ''}, {sampling.scheduler},"
            f" guidance {guidance}, shift {sampling.flow_shift:g}, seed {wanted.seed}",
        ),
        *_expert_rows(wanted),
        *lora_rows(request.loras, experts),
        ("machine", f"{wanted.device}, {str(wanted.dtype).removeprefix('torch.')}"),
        *([("memory", wanted.policy.description)] if wanted.device.type == "cuda" else []),
        (
            "takes",
            f"about {duration_text(needed.seconds)} after loading {size_text(needed.weight_bytes)}; memory about"
            f" {memory}",
        ),
        ("output", str(request.output)),
    ]


def _expert_rows(wanted: VideoPreview) -> list[tuple[str, str]]:
    boundary, high = wanted.plan.model.boundary_ratio, wanted.high_noise_steps
    if boundary is None:
        return []
    low = wanted.plan.sampling.num_inference_steps - high
    where = f"at noise level {boundary:g} (signal to noise {snr_at(boundary):.3g})"
    return [("experts", f"{high} steps for high noise, {low} for low noise, changing {where}")]
