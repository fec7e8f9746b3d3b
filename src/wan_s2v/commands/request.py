"""One video that somebody wants: checked and planned from headers alone, then made by a loaded pipeline.

The commands for one video and for many share these steps. Nothing in here prints.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import torch

from wan_s2v.commands.progress import Reporter, duration_text, size_text
from wan_s2v.commands.resume import as_kept, check_clip_span, check_same_run, run_identity
from wan_s2v.components import model_spec
from wan_s2v.errors import UsageError
from wan_s2v.partial_run import PartialRun
from wan_s2v.pipeline import WanS2VPipeline
from wan_s2v.plan import GenerationOptions, GenerationPlan, ModelSpec, plan_generation
from wan_s2v.runtime.estimate import Estimate, Rates, estimate, measure_rates
from wan_s2v.runtime.heap import keep_freed_memory
from wan_s2v.runtime.lora import branch_bytes
from wan_s2v.runtime.memory import MemoryPolicy, Offload, choose_policy, device_budget, resident_bytes
from wan_s2v.runtime.precision import as_dtype, usable_dtype, vae_dtype
from wan_s2v.runtime.quantization import can_compute_in_eight_bits
from wan_s2v.runtime.sizes import BlocksRun, ModelSizes, PackedSize, how_blocks_run
from wan_s2v.video import check_output_path
from wan_s2v.weights.checkpoint import Checkpoint, ModelFiles, find_checkpoint, fingerprint
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
        weights: ids of the components' weights.
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
    weights: dict[str, str]
    program_bytes: int = 0

    @property
    def place(self) -> dict[str, str]:
        """Device and dtype by name."""
        return {"device": str(self.device), "dtype": str(self.dtype).removeprefix("torch.")}


@dataclass(frozen=True)
class Machine:
    """What a device offers to one video; found once and handed on where the process that plans must not touch it.

    Args:
        free_bytes: that the run may use, None if unknown.
        blocks_run: how the transformer's blocks are computed, and how with preset="fast".
    """

    free_bytes: int | None
    blocks_run: BlocksRun
    fast_blocks_run: BlocksRun


@dataclass(frozen=True)
class Request:
    """The inputs, the output and the options of one video; no sound where the options have a text.

    Args:
        fresh: whether what an earlier run has kept is thrown away.
        keep_clips: whether finished clips stay beside the video, so that one of them can be made again.
        clip_span: first and last clip of those that the video shall show, from 0; None for all.
        preview_path: a film that grows by every clip, with a picture of every step beside it.
    """

    image: Path
    audio: Path | None
    output: Path
    options: GenerationOptions
    overwrite: bool = False
    loras: tuple[LoRAFile, ...] = ()
    fresh: bool = False
    keep_clips: bool = False
    clip_span: tuple[int, int] | None = None
    preview_path: Path | None = None

    @property
    def inputs(self) -> dict[str, Path]:
        """The files that the video is made of, by what they are."""
        options = self.options
        named = {
            "image": self.image,
            "audio": self.audio,
            "vocals": options.vocals_path,
            "pose video": options.pose_video_path,
        }
        return {name: Path(path) for name, path in named.items() if isinstance(path, str | Path)}


@dataclass(frozen=True)
class Preview:
    """What is going to happen, and what it will take.

    Args:
        partial_run: where finished clips are kept, and may be from an earlier run.
        num_kept: clips that are finished already.
    """

    request: Request
    plan: GenerationPlan
    model: OpenedModel
    policy: MemoryPolicy
    estimate: Estimate
    free_bytes: int | None
    warnings: tuple[str, ...]
    partial_run: PartialRun
    num_kept: int = 0

    def summary(self) -> dict[str, Any]:
        """The plan with place, precision and estimates, as plain numbers and strings."""
        return {
            **self.plan.summary(),
            "image": str(self.request.image),
            "audio": None if self.request.audio is None else str(self.request.audio),
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
    notes = (note,) if note else ()
    return OpenedModel(
        choice, spec, sizes, device, dtype, offload, rates, notes, fingerprint(checkpoint), program_bytes
    )


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
    for name, path in request.inputs.items():
        if path.absolute() == request.output.absolute():
            raise UsageError(f"Output {request.output} is also the {name}. Choose another output.")


def find_machine(model: OpenedModel) -> Machine:
    """What the model's device offers now, to a process that may use it."""
    on_gpu = model.device.type == "cuda"
    # what is there already is this model, loaded for a video before, and on the CPU the program itself
    free = device_budget(model.device, torch.cuda.memory_allocated(model.device) if on_gpu else resident_bytes())
    fast = how_blocks_run(model.device, is_eight_bit=can_compute_in_eight_bits(model.device))
    return Machine(free, how_blocks_run(model.device, is_eight_bit=False), fast)


def preview(request: Request, model: OpenedModel, machine: Machine | None = None) -> Preview:
    """Open the inputs, plan the run and estimate it; nothing is written.

    Args:
        machine: found before; None looks now.
    Raises: UsageError, MediaError subclasses, OutputError and, for a LoRA that does not fit, CheckpointError: for
        whatever would make the run fail later.
    """
    check_files(request)
    partial_run = PartialRun.beside(request.output)
    kept = None if request.fresh else partial_run.read_run()
    check_output_path(request.output, overwrite=request.overwrite or (kept is not None and not kept["finished"]))
    options = replace(request.options, enable_cpu_offload=model.offload)
    if kept is not None and options.seed is None:  # a random one was drawn when it began
        options = replace(options, seed=kept["seed"])
    notes = check_loras(request.loras, model.sizes.config)
    active = any(lora.weight for lora in request.loras)
    plan = plan_generation(request.audio, request.image, options, model.spec, has_lora=active)
    num_kept = 0
    if kept is not None:
        check_same_run(kept, run_identity(request, plan, model), partial_run)
        plan = as_kept(plan, kept)
        num_kept = len(list(partial_run.finished_clips()))
    check_clip_span(request, plan)
    machine = find_machine(model) if machine is None else machine
    free = machine.free_bytes
    least: Offload = "model" if model.offload else "none"
    blocks_run = machine.fast_blocks_run if options.preset == "fast" else machine.blocks_run
    dtype = model.dtype
    sizes = replace(model.sizes, blocks_run=blocks_run, lora_bytes=lora_bytes(request.loras, model.sizes, dtype))
    # in main memory there is nothing to be gained by moving
    is_gpu = model.device.type == "cuda"
    policy = choose_policy(sizes, plan.work, dtype, free, least) if is_gpu else MemoryPolicy()
    needed = estimate(sizes, plan.work, dtype, model.rates, policy)
    needed = replace(needed, peak_bytes=needed.peak_bytes + model.program_bytes)
    warnings = (*plan.warnings, *notes, *model.notes, *_memory_warnings(needed, free, model))
    return Preview(request, plan, model, policy, needed, free, warnings, partial_run, num_kept)


def load_pipeline(model: OpenedModel, reporter: Reporter) -> WanS2VPipeline:
    """The pipeline with its weights: on the device, or in main memory where they are brought there part by part."""
    choice = model.choice
    if model.device.type == "cpu":
        keep_freed_memory()
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
        ("inputs", f"{request.image.name} + {_sound_text(request, plan)}"),
        *_prompt_rows(plan),
        (
            "video",
            f"{plan.framing.width}x{plan.framing.height}, {clips.num_frames} frames at {float(clips.fps):g} fps, "
            f"{float(clips.duration):.2f} s",
        ),
        ("picture", plan.framing.description),
        ("clips", f"{clips.num_clips} of {frames} frames at {clips.model_fps} fps{_span_text(request)}"),
        *([("goes on", f"{wanted.num_kept} of {clips.num_clips} clips are finished")] if wanted.num_kept else []),
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


def _span_text(request: Request) -> str:
    if request.clip_span is None:
        return ""
    first, last = request.clip_span
    return f"; shown: {first + 1}" + (f" to {last + 1}" if last > first else "")


def _sound_text(request: Request, plan: GenerationPlan) -> str:
    """The sound or who speaks the text, the stretch of it, and what drives the lips."""
    name = "" if request.audio is None else request.audio.name
    if plan.speech is not None:
        name = f"a text spoken by {plan.speech.engine}, voice {plan.speech.voice}"
    start = f" from {float(plan.span.start_s):g} s on" if plan.span.start_s else ""
    vocals = request.options.vocals_path
    lips = f", lips by {Path(vocals).name}" if isinstance(vocals, str | Path) else ""
    lips += ", silent where nobody speaks" if request.options.silence == "clean" else ""
    return f"{name} ({plan.waveform.duration_s:.2f} s of sound{start}{lips})"


def _prompt_rows(plan: GenerationPlan) -> list[tuple[str, str]]:
    """The prompt, or the prompt of each run of clips."""
    rows, first = [], 1
    for prompt, run in groupby(plan.clip_prompts):
        last = first + len(list(run)) - 1
        whole = last - first + 1 == plan.clips.num_clips
        where = "" if whole else f" clip {first}" if first == last else f" clips {first}-{last}"
        rows.append((f"prompt{where}", prompt))
        first = last + 1
    return [row for row in rows if row[1]]


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
