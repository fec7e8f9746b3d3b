"""One video that somebody wants: checked and planned from headers alone, then made by a loaded pipeline.

The commands for one video and for many share these steps. Nothing in here prints.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from wan_s2v.commands.progress import Reporter, duration_text, size_text
from wan_s2v.errors import UsageError
from wan_s2v.lora_loading import LoRALoading
from wan_s2v.pipeline import WanS2VPipeline, model_spec
from wan_s2v.plan import GenerationOptions, GenerationPlan, ModelSpec, plan_generation
from wan_s2v.result import open_writer, writable_frames
from wan_s2v.runtime.estimate import Estimate, Rates, estimate, measure_rates
from wan_s2v.runtime.lora import branch_bytes
from wan_s2v.runtime.memory import MemoryPolicy, Offload, choose_policy, device_budget, resident_bytes
from wan_s2v.runtime.precision import as_dtype, usable_dtype, vae_dtype
from wan_s2v.runtime.quantization import can_compute_in_eight_bits
from wan_s2v.runtime.sizes import ModelSizes, PackedSize, how_blocks_run
from wan_s2v.video import check_output_path
from wan_s2v.weights.checkpoint import Checkpoint, ModelFiles, find_checkpoint
from wan_s2v.weights.lora import LoRAFile, check_lora

_GIB = 2**30
_TEXT_TABLE = "shared.weight"
_EMBEDDED = "tiny"
_EMBEDDED_NOTE = "it animates drawn portraits like the bundled ones; for photographs use --model s2v-14b"


@dataclass(frozen=True)
class ModelChoice:
    """Which model runs, in which precision and where; as `WanS2VPipeline.from_pretrained` takes them."""

    model: str
    components: Path | None = None
    boundary_ratio: float | None = None
    torch_dtype: str | None = None
    device: str = "auto"


@dataclass(frozen=True)
class OpenedModel:
    """What the headers of a checkpoint tell; its weights are not loaded.

    Args:
        device: that computes.
        dtype: that the transformer computes in there.
        offload: whether it was asked that parts are brought there only to work.
        rates: measured on the device.
        notes: what is other than asked for.
        program_bytes: main memory that the program itself takes, measured before the model is loaded; 0 where a GPU
            computes, whose memory it does not take.
    """

    choice: ModelChoice
    spec: ModelSpec
    sizes: ModelSizes
    device: torch.device
    dtype: torch.dtype
    offload: bool
    rates: Rates
    notes: tuple[str, ...]
    program_bytes: int = 0

    @property
    def place(self) -> dict[str, str]:
        """Device and dtype by name."""
        return {"device": str(self.device), "dtype": str(self.dtype).removeprefix("torch.")}


@dataclass(frozen=True)
class Request:
    """The inputs, the output and the options of one video."""

    image: Path
    audio: Path
    output: Path
    options: GenerationOptions
    overwrite: bool = False
    loras: tuple[LoRAFile, ...] = ()


@dataclass(frozen=True)
class Preview:
    """What is going to happen, and what it will take."""

    request: Request
    plan: GenerationPlan
    model: OpenedModel
    policy: MemoryPolicy
    estimate: Estimate
    free_bytes: int | None
    warnings: tuple[str, ...]

    def summary(self) -> dict[str, Any]:
        """The plan with place, precision and estimates, as plain numbers and strings."""
        return {
            **self.plan.summary(),
            "image": str(self.request.image),
            "audio": str(self.request.audio),
            "output": str(self.request.output),
            "model": self.model.choice.model,
            "loras": [lora.record() for lora in self.request.loras],
            **self.model.place,
            "offload": self.policy.offload,
            "estimate": {
                "seconds": round(self.estimate.seconds, 1),
                "memory_gib": round(self.estimate.peak_bytes / _GIB, 4),
                "free_gib": None if self.free_bytes is None else round(self.free_bytes / _GIB, 2),
                "weights_gib": round(self.estimate.weight_bytes / _GIB, 4),
                "pflop": round(self.estimate.flops / 1e15, 4),
            },
            "warnings": list(self.warnings),
        }


def open_model(choice: ModelChoice, options: GenerationOptions) -> OpenedModel:
    """Read a checkpoint's headers and settle device and precision.

    Raises: UsageError and CheckpointError, as `find_checkpoint`; UsageError for a device that is not there.
    """
    device = chosen_device(choice.device)
    wanted = "float16" if options.use_fp16 else choice.torch_dtype
    wanted_dtype = None if wanted is None else as_dtype(wanted)
    checkpoint = find_checkpoint(choice.model, components=choice.components, boundary_ratio=choice.boundary_ratio)
    transformer, vae = checkpoint.models["transformer"], checkpoint.models["vae"]
    dtype, note = usable_dtype(wanted_dtype or transformer.dtype, device)
    spec = model_spec(transformer.config, vae.config, checkpoint.sampling_defaults)
    # there is nothing to bring anywhere where the CPU computes, even beside a GPU
    offload = options.enable_cpu_offload and device.type == "cuda"
    sizes = model_sizes(checkpoint)
    sizes = replace(sizes, vae_dtype=vae_dtype(sizes.vae_dtype, dtype, device))
    rates = measure_rates(device, dtype, sizes)
    program_bytes = resident_bytes() if device.type == "cpu" else 0
    return OpenedModel(choice, spec, sizes, device, dtype, offload, rates, (note,) if note else (), program_bytes)


def model_sizes(checkpoint: Checkpoint) -> ModelSizes:
    """A checkpoint as numbers."""
    models = checkpoint.models
    table = models["text_encoder"].tensors.get(_TEXT_TABLE) if "text_encoder" in models else None
    vae = models["vae"].config
    return ModelSizes(
        models["transformer"].config,
        {name: _num_parameters(model) for name, model in models.items()},
        vae_channels=vae.get("decoder_base_dim") or vae["base_dim"],
        text_table=math.prod(table.shape) if table else 0,
        vae_patch=vae.get("patch_size") or 1,
        vae_dtype=torch.bfloat16 if models["vae"].is_int8 else torch.float32,
        packed={name: _packed_size(model) for name, model in models.items()},
    )


def parse_loras(words: Sequence[str], folder: Path = Path()) -> tuple[LoRAFile, ...]:
    """LoRAs from FILE or FILE:WEIGHT, relative to a folder. Raises: UsageError, also for a file given twice."""
    loras = tuple(LoRAFile.parse(word, folder) for word in words)
    for one, other in itertools.combinations(loras, 2):
        if one.path == other.path and (one.expert == other.expert or None in (one.expert, other.expert)):
            raise UsageError(f"LoRA {one.path} is given twice. Give it once, with a weight: {one.path}:WEIGHT.")
    return loras


def check_loras(loras: Sequence[LoRAFile], config: Mapping[str, Any]) -> list[str]:
    """Notes on LoRAs for a transformer of this config. Raises: CheckpointError for one that does not fit."""
    return [note for lora in loras for note in check_lora(lora, config)]


def lora_bytes(loras: Sequence[LoRAFile], sizes: ModelSizes, dtype: torch.dtype) -> int:
    """Memory of the LoRAs on the transformer that has the most of them."""
    experts = [name for name in sizes.parameters if name.startswith("transformer")]
    active = [(lora, branch_bytes(lora, sizes.config, dtype)) for lora in loras if lora.weight]
    return max(sum(count for lora, count in active if lora.is_for(expert, experts)) for expert in experts)


def check_files(request: Request) -> None:
    """Raises: UsageError if the video would replace one of its own inputs."""
    inputs = {"image": request.image, "audio": request.audio, "pose video": request.options.pose_video_path}
    for name, path in inputs.items():
        if path is not None and Path(path).absolute() == request.output.absolute():
            raise UsageError(f"Output {request.output} is also the {name}. Choose another output.")


def preview(request: Request, model: OpenedModel) -> Preview:
    """Open the inputs, plan the run and estimate it; nothing is written.

    Raises: UsageError, MediaError subclasses, OutputError and, for a LoRA that does not fit, CheckpointError: for
        whatever would make the run fail later.
    """
    check_files(request)
    check_output_path(request.output, overwrite=request.overwrite)
    options = replace(request.options, enable_cpu_offload=model.offload)
    notes = check_loras(request.loras, model.sizes.config)
    active = any(lora.weight for lora in request.loras)
    plan = plan_generation(request.audio, request.image, options, model.spec, has_lora=active)
    on_gpu = model.device.type == "cuda"
    # what is there already is this model, loaded for a video before, and on the CPU the program itself
    free = device_budget(model.device, torch.cuda.memory_allocated(model.device) if on_gpu else resident_bytes())
    least: Offload = "model" if model.offload else "none"
    # in main memory there is nothing to be gained by moving
    is_eight_bit = options.preset == "fast" and can_compute_in_eight_bits(model.device)
    blocks_run = how_blocks_run(model.device, is_eight_bit=is_eight_bit)
    dtype = model.dtype
    sizes = replace(model.sizes, blocks_run=blocks_run, lora_bytes=lora_bytes(request.loras, model.sizes, dtype))
    policy = choose_policy(sizes, plan.work, dtype, free, least) if on_gpu else MemoryPolicy()
    needed = estimate(sizes, plan.work, dtype, model.rates, policy)
    needed = replace(needed, peak_bytes=needed.peak_bytes + model.program_bytes)
    warnings = (*plan.warnings, *notes, *model.notes, *_memory_warnings(needed, free, model))
    return Preview(request, plan, model, policy, needed, free, warnings)


def load_pipeline(model: OpenedModel, reporter: Reporter) -> WanS2VPipeline:
    """The pipeline with its weights: on the device, or in main memory where they are brought there part by part."""
    choice = model.choice
    pipeline = WanS2VPipeline.from_pretrained(
        choice.model,
        torch_dtype=model.dtype,
        device_map="cpu" if model.offload or model.device.type == "cpu" else "auto",
        components=choice.components,
        boundary_ratio=choice.boundary_ratio,
        progress=reporter.loading,
    )
    if model.device.type == "cuda":
        pipeline.compute_on(torch.device("cuda", torch.cuda.current_device()))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def make_video(pipeline: WanS2VPipeline, wanted: Preview, reporter: Reporter) -> dict[str, Any]:
    """Make and write one video, clip by clip; on failure no file is left.

    Returns: the record of the run: versions, plan, warnings and seconds per stage.
    """
    plan, output = wanted.plan, wanted.request.output
    started = time.perf_counter()
    use_loras(pipeline, wanted.request.loras)
    needed = wanted.estimate
    reporter.start(plan.clips.num_clips, plan.sampling.num_inference_steps, needed.vae_seconds / needed.seconds)
    remaining = writable_frames(plan)
    seconds: dict[str, float] = {}
    with open_writer(output, plan, pipeline.describe(plan)) as writer:
        for clip in pipeline.run(plan, callback_on_step_end=reporter.step):
            assert not isinstance(clip.frames, torch.Tensor)
            writer.write(clip.frames[:remaining])
            remaining -= min(remaining, len(clip.frames))
            for stage, spent in clip.seconds.items():
                seconds[stage] = seconds.get(stage, 0.0) + spent
            reporter.clip_written()
            if not remaining:
                break
    seconds["total"] = time.perf_counter() - started
    record = pipeline.describe(plan)
    record["warnings"] = list(dict.fromkeys([*wanted.warnings, *record["warnings"]]))
    return record | {"seconds": {stage: round(spent, 3) for stage, spent in seconds.items()}}


def use_loras(pipeline: LoRALoading, loras: Sequence[LoRAFile]) -> None:
    """Have exactly these on the experts that they are for; those read for a video before stay in main memory.

    Raises: CheckpointError for what a header does not show, such as NaN.
    """
    pipeline.set_adapters([])
    experts = [name for name in ("transformer", "transformer_2") if getattr(pipeline, name) is not None]
    for expert in experts:
        wanted = [lora for lora in loras if lora.is_for(expert, experts)]
        loaded = pipeline.adapters[expert].loras if expert in pipeline.adapters else {}
        for lora in wanted:
            if str(lora.path) not in loaded:
                second = expert == "transformer_2"
                pipeline.load_lora_weights(lora.path, str(lora.path), weight=0, load_into_transformer_2=second)
        if expert in pipeline.adapters:
            pipeline.adapters[expert].set_weights({str(lora.path): lora.weight for lora in wanted})


def plan_rows(wanted: Preview) -> list[tuple[str, str]]:
    """The plan as short lines for people: a heading and what it says."""
    plan, model = wanted.plan, wanted.model
    clips, sampling, request = plan.clips, plan.sampling, wanted.request
    lengths = [clip.num_frames for clip in clips.clips]
    frames = " + ".join(map(str, lengths)) if len(lengths) <= 6 else f"{min(lengths)} to {max(lengths)}"
    scale = f"guidance {sampling.guidance.scale:g}" if sampling.guidance.passes > 1 else "no guidance"
    if sampling.guidance.audio_scale is not None:
        scale += f", sound {sampling.guidance.audio_scale:g}"
    passes = sampling.guidance.passes
    needed, free = wanted.estimate, wanted.free_bytes
    memory = size_text(needed.peak_bytes) + ("" if free is None else f" of {size_text(free)} free")
    name = model.choice.model
    return [
        ("model", f"{name}, the embedded model: {_EMBEDDED_NOTE}" if name == _EMBEDDED else name),
        ("inputs", f"{request.image.name} + {request.audio.name} ({plan.waveform.duration_s:.2f} s of sound)"),
        *([("prompt", request.options.prompt)] if request.options.prompt else []),
        (
            "video",
            f"{plan.framing.width}x{plan.framing.height}, {clips.num_frames} frames at {float(clips.fps):g} fps, "
            f"{float(clips.duration):.2f} s",
        ),
        ("picture", plan.framing.description),
        ("clips", f"{clips.num_clips} of {frames} frames at {clips.model_fps} fps"),
        (
            "sampling",
            f"{sampling.num_inference_steps} steps x {passes} pass{'es' if passes > 1 else ''}, "
            f"{sampling.scheduler}, {scale}, shift {sampling.flow_shift:g}, seed {plan.seed}",
        ),
        *lora_rows(request.loras, [name for name in model.sizes.parameters if name.startswith("transformer")]),
        ("machine", "{device}, {dtype}".format(**model.place)),
        *([("memory", wanted.policy.description)] if model.device.type == "cuda" else []),
        (
            "takes",
            f"about {duration_text(needed.seconds)} after loading {size_text(needed.weight_bytes)}; "
            f"memory about {memory}",
        ),
        ("output", str(request.output)),
    ]


def lora_rows(loras: Sequence[LoRAFile], experts: Collection[str]) -> list[tuple[str, str]]:
    """LoRAs of a plan for people, and of two experts the ones that they are for."""
    where = {None: "", "transformer": " (high noise)", "transformer_2": " (low noise)"}
    shown = [f"{lora.path.name} x {lora.weight:g}{where[lora.expert] if len(experts) > 1 else ''}" for lora in loras]
    return [("lora", ", ".join(shown))] if shown else []


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory, of a GPU or of the machine, ran out; PyTorch has no type of its own for the latter."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)


def out_of_memory_message() -> str:
    """What to try when nothing more could be given up."""
    ways = "a smaller --area or --height and --width, or a smaller --frames-per-clip"
    return f"Memory ran out. Try {ways}, or close other programs."


def chosen_device(name: str) -> torch.device:
    """The device that computes. Raises: UsageError for one that is not there."""
    if name not in ("auto", "cuda", "cpu"):
        raise UsageError(f"device={name!r} is not accepted. Choose auto, cuda or cpu.")
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError('device="cuda", but PyTorch sees no CUDA device. Use auto or cpu, or see wan-s2v doctor.')
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def _num_parameters(model: ModelFiles) -> int:
    return sum(math.prod(stored.shape) for stored in model.tensors.values())


def _packed_size(model: ModelFiles) -> PackedSize:
    packed = [stored for name, stored in model.tensors.items() if model.stays_packed(name)]
    return PackedSize(sum(math.prod(item.shape) for item in packed), sum(item.num_bytes for item in packed))


def _memory_warnings(needed: Estimate, free: int | None, model: OpenedModel) -> list[str]:
    if free is None or needed.peak_bytes <= free:
        return []
    least = " at the least" if model.device.type == "cuda" else ""
    have = f"{model.device} has {size_text(free)} free"
    return [f"The run needs about {size_text(needed.peak_bytes)}{least}; {have}. Try a smaller --area."]
