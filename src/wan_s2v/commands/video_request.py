"""One video from text or a picture: checked and planned from headers alone, then made by diffusers' pipeline.

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
from wan_s2v.clips import FRAMES_PER_LATENT
from wan_s2v.commands.progress import Reporter, duration_text, size_text
from wan_s2v.commands.request import ModelChoice, chosen_device, model_sizes
from wan_s2v.denoise import check_finite
from wan_s2v.errors import UsageError
from wan_s2v.experts import snr_at, stage_at
from wan_s2v.family import SPECS, VideoSpec, load_pipeline, picture_size, settled, settled_dtype
from wan_s2v.first_frame import stretched_size
from wan_s2v.image import LoadedImage, load_image
from wan_s2v.marking import Marking
from wan_s2v.plan import GenerationOptions, marking_of
from wan_s2v.prompt_spans import read_spans
from wan_s2v.runtime.estimate import Estimate, estimate, measure_rates
from wan_s2v.runtime.memory import MemoryPolicy, device_budget, resident_bytes
from wan_s2v.runtime.sizes import Work
from wan_s2v.schedulers import make_scheduler, new_scheduler
from wan_s2v.video import check_output_path, write_video
from wan_s2v.weights.checkpoint import Checkpoint, find_checkpoint
from wan_s2v.weights.names import TASKS, Task

_SHARED = frozenset(
    {
        "prompt",
        "negative_prompt",
        "height",
        "width",
        "area",
        "num_frames",
        "num_inference_steps",
        "guidance_scale",
        "flow_shift",
        "scheduler",
        "seed",
        "mark",
        "content_producer",
        "sign_certificate",
        "sign_key",
        "enable_cpu_offload",
        "use_fp16",
    }
)


@dataclass(frozen=True)
class VideoRequest:
    """What somebody wants; of the options those that are not about sound."""

    choice: ModelChoice
    options: GenerationOptions
    guidance_scale_2: float | None
    image: Path | None
    output: Path
    overwrite: bool = False


@dataclass(frozen=True)
class VideoPreview:
    """What is going to happen, and what it will take.

    Args:
        task: of the model; "i2v" for TI2V-5B where a picture is given.
        keywords: of the pipeline's call, without the size, the picture and the prompt.
        high_noise_steps: done by the first expert; all of them with one transformer.
    """

    request: VideoRequest
    task: Task
    spec: VideoSpec
    picture: LoadedImage | None
    height: int
    width: int
    keywords: dict[str, Any]
    seed: int
    scheduler: str
    flow_shift: float
    boundary_ratio: float | None
    high_noise_steps: int
    device: torch.device
    dtype: torch.dtype
    estimate: Estimate
    free_bytes: int | None
    marking: Marking
    warnings: tuple[str, ...]

    def summary(self) -> dict[str, Any]:
        """The plan as plain numbers and strings."""
        request, needed = self.request, self.estimate
        return {
            "task": self.task,
            "prompt": request.options.prompt,
            "negative_prompt": self.keywords["negative_prompt"],
            "image": None if request.image is None else str(request.image),
            "output": str(request.output),
            "model": request.choice.model,
            "height": self.height,
            "width": self.width,
            "num_frames": self.keywords["num_frames"],
            "fps": self.spec.fps,
            "num_inference_steps": self.keywords["num_inference_steps"],
            "high_noise_steps": self.high_noise_steps,
            "boundary_ratio": self.boundary_ratio,
            "guidance_scale": self.keywords["guidance_scale"],
            "guidance_scale_2": self.keywords.get("guidance_scale_2"),
            "flow_shift": self.flow_shift,
            "scheduler": self.scheduler,
            "seed": self.seed,
            "device": str(self.device),
            "dtype": str(self.dtype).removeprefix("torch."),
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
    options, choice, spec = request.options, request.choice, SPECS[task]
    device = chosen_device(choice.device)
    checkpoint = find_checkpoint(
        choice.model, components=choice.components, boundary_ratio=choice.boundary_ratio, tasks=TASKS
    )
    if request.guidance_scale_2 is not None and checkpoint.boundary_ratio is None:
        raise UsageError("guidance_scale_2 is for a second expert, and this model has one transformer. Leave it out.")
    dtype, note = settled_dtype(checkpoint, "float16" if options.use_fp16 else choice.torch_dtype, device)
    picture = None if request.image is None else load_image(request.image)
    height, width = _frame_size(options, spec, checkpoint, picture)
    keywords = settled(spec, _given(request))
    seed = options.seed if options.seed is not None else secrets.randbelow(2**31)
    scheduler, flow_shift = options.scheduler or spec.scheduler, options.flow_shift or spec.flow_shift
    timesteps = make_scheduler(scheduler, keywords["num_inference_steps"], flow_shift, "cpu").timesteps.tolist()
    stages = [stage_at(t, checkpoint.boundary_ratio, keywords["guidance_scale"]) for t in timesteps]
    needed = _estimate(checkpoint, height, width, keywords, picture is not None, device, dtype)
    program = resident_bytes() if device.type == "cpu" else 0  # there already, beside what the model will take
    needed = replace(needed, peak_bytes=needed.peak_bytes + program)
    free = device_budget(device, program)
    notes = [*(picture.warnings if picture else ()), *([note] if note else []), *_memory_notes(needed, free, device)]
    return VideoPreview(
        request,
        "i2v" if picture else "t2v",
        spec,
        picture,
        height,
        width,
        keywords,
        seed,
        scheduler,
        flow_shift,
        checkpoint.boundary_ratio,
        sum(stage.expert == "transformer" for stage in stages),
        device,
        dtype,
        needed,
        free,
        marking_of(options, height, width),
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
    if options.num_frames is not None and options.num_frames % FRAMES_PER_LATENT != 1:
        low = (options.num_frames - 1) // FRAMES_PER_LATENT * FRAMES_PER_LATENT + 1
        raise UsageError(
            f"num_frames={options.num_frames} is not one more than a multiple of {FRAMES_PER_LATENT}. Nearest allowed:"
            f" {low}, {low + FRAMES_PER_LATENT}."
        )
    if request.image is not None and request.image.absolute() == request.output.absolute():
        raise UsageError(f"Output {request.output} is also the image. Choose another output.")


def _given(request: VideoRequest) -> dict[str, Any]:
    names = ("num_frames", "num_inference_steps", "guidance_scale", "negative_prompt")
    given = {name: getattr(request.options, name) for name in names}
    return given | {"guidance_scale_2": request.guidance_scale_2}


def _frame_size(
    options: GenerationOptions, spec: VideoSpec, checkpoint: Checkpoint, picture: LoadedImage | None
) -> tuple[int, int]:
    """(height, width): as given, or from the area in the shape of the picture or of the official size.

    Raises: UsageError for a size that the model cannot make.
    """
    multiple = _size_multiple(checkpoint)
    sides = {"height": options.height, "width": options.width}
    given = [name for name, side in sides.items() if side is not None]
    if len(given) == 1 or (given and options.area is not None):
        raise UsageError(f"{' and '.join(given)} with area={options.area}: give height and width, or area.")
    if options.height is not None and options.width is not None:
        for name, side in (("height", options.height), ("width", options.width)):
            if side < multiple or side % multiple:
                low = max(side // multiple, 1) * multiple
                raise UsageError(
                    f"{name}={side} is not a multiple of {multiple}. Nearest allowed: {low}, {low + multiple}."
                )
        return options.height, options.width
    area = options.area or spec.height * spec.width
    if picture is not None:
        return picture_size(checkpoint.task, picture.image, area, multiple)
    return stretched_size(spec.height, spec.width, area, multiple)


def _size_multiple(checkpoint: Checkpoint) -> int:
    """Pixels of which both sides of a frame are multiples."""
    transformer, vae = checkpoint.models["transformer"].config, checkpoint.models["vae"].config
    return int((vae.get("scale_factor_spatial") or 8) * transformer["patch_size"][1])


def _estimate(
    checkpoint: Checkpoint,
    height: int,
    width: int,
    keywords: dict[str, Any],
    from_picture: bool,
    device: torch.device,
    dtype: torch.dtype,
) -> Estimate:
    sizes = replace(model_sizes(checkpoint), blocks_run="plain")  # diffusers' own
    frames = (keywords["num_frames"] - 1) // FRAMES_PER_LATENT + 1
    guided = keywords["guidance_scale"] > 1
    whole_clip = checkpoint.task == "i2v"  # encodes the picture and the empty frames after it
    work = Work(
        height,
        width,
        _size_multiple(checkpoint),
        ((frames, False),),
        keywords["num_inference_steps"],
        passes=1 + guided,
        num_prompts=1 + guided,
        num_encoded=frames if whole_clip else int(from_picture),
    )
    return estimate(sizes, work, dtype, measure_rates(device, dtype, sizes), MemoryPolicy())


def _memory_notes(needed: Estimate, free: int | None, device: torch.device) -> list[str]:
    if free is None or needed.peak_bytes <= free:
        return []
    what = f"The run needs about {size_text(needed.peak_bytes)}; {device} has {size_text(free)} free."
    way = "Try a smaller --area." if device.type == "cpu" else "Parts of the model will come there as they work."
    return [f"{what} {way}"]


def make_text_video(wanted: VideoPreview, reporter: Reporter) -> dict[str, Any]:
    """Load the model, make the video and write it; on failure no file is left.

    Returns: the record of the run: versions, plan and seconds.
    """
    request, started = wanted.request, time.perf_counter()
    pipeline: Any = load_pipeline(
        request.choice.model,
        task="i2v" if wanted.picture else None,
        torch_dtype=wanted.dtype,
        device_map=_placing(wanted),
        components=request.choice.components,
        boundary_ratio=request.choice.boundary_ratio,
        progress=reporter.loading,
    )
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = new_scheduler(wanted.scheduler, wanted.flow_shift)
    loaded = time.perf_counter()
    count = wanted.keywords["num_inference_steps"]
    reporter.start(1, count, wanted.estimate.vae_seconds / wanted.estimate.seconds)

    def on_step(_pipeline: Any, step: int, timestep: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        check_finite(kwargs["latents"], "the latents", step, count, timestep)
        return reporter.step()

    inputs = {} if wanted.picture is None else {"image": wanted.picture.image}
    video = pipeline(
        **inputs,
        prompt=request.options.prompt,
        height=wanted.height,
        width=wanted.width,
        **wanted.keywords,
        generator=torch.Generator(wanted.device).manual_seed(wanted.seed),
        callback_on_step_end=on_step,
        output_type="pt",
    ).frames[0]
    frames = video.mul(255).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()  # truncated, as officially
    made = time.perf_counter()
    tags = {"comment": f"AI-generated video (wan_s2v {__version__}, seed {wanted.seed})"}
    write_video(request.output, frames, wanted.spec.fps, metadata=tags, marking=wanted.marking)
    reporter.clip_written()
    seconds = {"load": loaded - started, "make": made - loaded, "write": time.perf_counter() - made}
    return {
        "version": __version__,
        "torch": torch.__version__,
        **pipeline.source,
        **wanted.summary(),
        "seconds": {stage: round(spent, 3) for stage, spent in seconds.items()},
    }


def _placing(wanted: VideoPreview) -> str:
    if wanted.device.type == "cpu":
        return "cpu"
    too_much = wanted.free_bytes is not None and wanted.estimate.peak_bytes > wanted.free_bytes
    return "offload" if too_much or wanted.request.options.enable_cpu_offload else "cuda"


def video_rows(wanted: VideoPreview) -> list[tuple[str, str]]:
    """The plan as short lines for people: a heading and what it says."""
    keywords, needed, request = wanted.keywords, wanted.estimate, wanted.request
    count, num_frames = keywords["num_inference_steps"], keywords["num_frames"]
    scales = [keywords["guidance_scale"], keywords.get("guidance_scale_2")]
    guided = keywords["guidance_scale"] > 1
    guidance = " then ".join(f"{scale:g}" for scale in scales if scale is not None) if guided else "off"
    memory = size_text(needed.peak_bytes)
    memory += "" if wanted.free_bytes is None else f" of {size_text(wanted.free_bytes)} free"
    return [
        ("model", f"{request.choice.model} ({'picture' if wanted.picture else 'text'} to video)"),
        *([("inputs", request.image.name)] if request.image is not None else []),
        ("prompt", request.options.prompt or "none"),
        (
            "video",
            f"{wanted.width}x{wanted.height}, {num_frames} frames at {wanted.spec.fps} fps,"
            f" {num_frames / wanted.spec.fps:.2f} s",
        ),
        (
            "sampling",
            f"{count} steps x {1 + guided} pass{'es' if guided else ''}, {wanted.scheduler}, guidance {guidance}, shift"
            f" {wanted.flow_shift:g}, seed {wanted.seed}",
        ),
        *_expert_rows(wanted, count),
        ("machine", f"{wanted.device}, {str(wanted.dtype).removeprefix('torch.')}"),
        (
            "takes",
            f"about {duration_text(needed.seconds)} after loading {size_text(needed.weight_bytes)}; memory about"
            f" {memory}",
        ),
        ("output", str(request.output)),
    ]


def _expert_rows(wanted: VideoPreview, count: int) -> list[tuple[str, str]]:
    if wanted.boundary_ratio is None:
        return []
    high = wanted.high_noise_steps
    where = f"at noise level {wanted.boundary_ratio:g} (signal to noise {snr_at(wanted.boundary_ratio):.3g})"
    return [("experts", f"{high} steps for high noise, {count - high} for low noise, changing {where}")]
