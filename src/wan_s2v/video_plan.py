"""What a video from text or a picture will be, decided and checked before any weight is loaded.

The counterpart of plan.py for the models without sound. `VideoOptions` has diffusers' keywords and ours; `plan_video`
settles size, length and sampling.

Source of the models' settings: Wan-Video/Wan2.2 `wan/configs/`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Final

import torch
from PIL import Image
from torch import Tensor

from wan_s2v.clips import FRAMES_PER_LATENT
from wan_s2v.errors import UsageError
from wan_s2v.experts import Stage, stage_at
from wan_s2v.first_frame import cropped_size, stretched_size
from wan_s2v.plan import (
    DRAFT_AREA,
    DRAFT_STEPS,
    FAST_CHANGE,
    FOUR_STEP,
    GenerationOptions,
    check_names,
    preset_warnings,
)
from wan_s2v.prompt import VIDEO_NEGATIVE_PROMPT
from wan_s2v.runtime.sizes import Work
from wan_s2v.weights.names import Task


@dataclass(frozen=True)
class VideoSpec:
    """How a model is officially sampled.

    Args:
        guidance_scale: of the only transformer, or of the high-noise expert.
        guidance_scale_2: of the low-noise expert; None without one.
        height, width: of a video from text; their product is the most pixels of one from a picture.
    """

    num_inference_steps: int
    flow_shift: float
    guidance_scale: float
    guidance_scale_2: float | None
    fps: int
    num_frames: int
    height: int
    width: int
    scheduler: str = "unipc"
    negative_prompt: str = VIDEO_NEGATIVE_PROMPT


SPECS: Final[dict[Task, VideoSpec]] = {
    "t2v": VideoSpec(40, 12.0, 4.0, 3.0, fps=16, num_frames=81, height=720, width=1280),
    "i2v": VideoSpec(40, 5.0, 3.5, 3.5, fps=16, num_frames=81, height=720, width=1280),
    "ti2v": VideoSpec(50, 5.0, 5.0, None, fps=24, num_frames=121, height=704, width=1280),
}
_AS_FOR_SPEECH: Final = (  # options that S2V has, too, and checks
    "num_frames", "height", "width", "area", "num_inference_steps", "guidance_scale", "flow_shift", "scheduler",
    "preset", "enable_cpu_offload", "use_fp16",
)  # fmt: skip


@dataclass(frozen=True)
class VideoOptions:
    """Everything a user may choose beside the picture; None means the model's own value.

    Args:
        prompt: text, or several texts for a batch of videos.
        negative_prompt: the official one if None or empty.
        prompt_embeds, negative_prompt_embeds: (B, L, C), padded, in place of text.
        num_videos_per_prompt, generator, latents, max_sequence_length, last_image: as in diffusers.
        area: about the most pixels per frame, in place of height and width.
        guidance_scale: of both experts, unless guidance_scale_2 says that of the one for low noise; 1 is without.
        flow_shift, scheduler: of this video; those of the pipeline's scheduler if None.
        preset, enable_cpu_offload, use_fp16: see `GenerationOptions`; "fast" decodes as "exact" does.
    Raises: UsageError for the first value that is not accepted.
    """

    prompt: str | list[str] | None = None
    negative_prompt: str | list[str] | None = None
    prompt_embeds: Tensor | None = None
    negative_prompt_embeds: Tensor | None = None
    num_videos_per_prompt: int = 1
    generator: torch.Generator | Sequence[torch.Generator] | None = None
    latents: Tensor | None = None
    max_sequence_length: int = 512
    last_image: Any = None
    num_frames: int | None = None
    height: int | None = None
    width: int | None = None
    area: int | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    guidance_scale_2: float | None = None
    flow_shift: float | None = None
    scheduler: str | None = None
    preset: str = "exact"
    enable_cpu_offload: bool = False
    use_fp16: bool = False

    def __post_init__(self) -> None:
        shared: dict[str, Any] = {name: getattr(self, name) for name in _AS_FOR_SPEECH}
        GenerationOptions(**shared)
        scale = self.guidance_scale_2
        if scale is not None and not (isinstance(scale, int | float) and 0 <= scale <= 100):
            raise UsageError(f"guidance_scale_2={scale!r} is not a number in 0…100. Give one; 1 switches it off.")
        for name in ("num_videos_per_prompt", "max_sequence_length"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise UsageError(f"{name}={getattr(self, name)!r} is not a whole number above 0. Give one.")
        if (self.prompt is None) == (self.prompt_embeds is None):
            given = "both" if self.prompt is not None else "neither of them"
            raise UsageError(f"Of prompt and prompt_embeds {given} is given. Give one of them.")
        for name in ("prompt_embeds", "negative_prompt_embeds"):
            embeds = getattr(self, name)
            if embeds is not None and embeds.ndim != 3:
                raise UsageError(f"{name} has the shape {tuple(embeds.shape)}. Give (videos, tokens, channels).")
        if self.num_frames is not None and self.num_frames % FRAMES_PER_LATENT != 1:
            low = (self.num_frames - 1) // FRAMES_PER_LATENT * FRAMES_PER_LATENT + 1
            raise UsageError(
                f"num_frames={self.num_frames} is not one more than a multiple of {FRAMES_PER_LATENT}. Nearest allowed:"
                f" {low}, {low + FRAMES_PER_LATENT}."
            )

    @classmethod
    def from_keywords(cls, keywords: dict[str, Any]) -> VideoOptions:
        """Options from keyword arguments; a misspelt name is an error that names the nearest one."""
        check_names(keywords, [field.name for field in fields(cls)])
        return cls(**keywords)

    @property
    def num_videos(self) -> int:
        """That are made at once."""
        if self.prompt_embeds is not None:
            return self.num_videos_per_prompt * self.prompt_embeds.shape[0]
        return self.num_videos_per_prompt * (len(self.prompt) if isinstance(self.prompt, list) else 1)

    @property
    def chooses_scheduler(self) -> bool:
        """Whether noise levels are stated here; otherwise the pipeline's scheduler has them."""
        return self.preset == "4step" or self.scheduler is not None or self.flow_shift is not None


@dataclass(frozen=True)
class VideoModel:
    """What a plan must know about a model; read from configuration files, before weights.

    Args:
        task: of the checkpoint: "t2v", "i2v" or "ti2v".
        size_multiple: sides of a frame are multiples of it (VAE stride · patch size).
        boundary_ratio: share of the noise scale where the experts change; None with one transformer.
    """

    task: Task
    spec: VideoSpec
    size_multiple: int
    boundary_ratio: float | None


@dataclass(frozen=True)
class VideoSampling:
    """How a video is denoised.

    Args:
        guidance_scale_2: of the second expert; None without one.
        step_cache: threshold of `StepCache`; 0 computes every step.
    """

    num_inference_steps: int
    guidance_scale: float
    guidance_scale_2: float | None
    flow_shift: float
    scheduler: str
    step_cache: float

    @property
    def is_guided(self) -> bool:
        """Whether a step of any expert takes two passes."""
        return max(self.guidance_scale, self.guidance_scale_2 or 0) > 1


@dataclass(frozen=True)
class VideoPlan:
    """A run, ready to be made by a loaded model.

    Args:
        from_picture: whether the video starts from one.
    """

    options: VideoOptions
    model: VideoModel
    height: int
    width: int
    num_frames: int
    sampling: VideoSampling
    from_picture: bool
    warnings: tuple[str, ...]

    @property
    def num_latent_frames(self) -> int:
        return (self.num_frames - 1) // FRAMES_PER_LATENT + 1

    @property
    def work(self) -> Work:
        """The plan as numbers."""
        frames, passes = self.num_latent_frames, 1 + self.sampling.is_guided
        whole_clip = self.model.task == "i2v"  # encodes the picture and the empty frames after it
        return Work(
            self.height,
            self.width,
            self.model.size_multiple,
            ((frames, False),),
            self.sampling.num_inference_steps,
            passes,
            num_prompts=passes * self.options.num_videos,
            num_encoded=frames if whole_clip else int(self.from_picture),
            num_videos=self.options.num_videos,
        )

    def stage_at(self, timestep: float) -> Stage:
        """Who predicts at a timestep, and how strictly the prompt is followed."""
        sampling = self.sampling
        return stage_at(timestep, self.model.boundary_ratio, sampling.guidance_scale, sampling.guidance_scale_2)

    def summary(self) -> dict[str, Any]:
        """The plan as plain numbers and strings."""
        sampling, options = self.sampling, self.options
        return {
            "task": "i2v" if self.from_picture else "t2v",
            "prompt": options.prompt,
            "negative_prompt": negative_prompt_of(options, self.model.spec),
            "height": self.height,
            "width": self.width,
            "num_frames": self.num_frames,
            "fps": self.model.spec.fps,
            "num_inference_steps": sampling.num_inference_steps,
            "boundary_ratio": self.model.boundary_ratio,
            "guidance_scale": sampling.guidance_scale,
            "guidance_scale_2": sampling.guidance_scale_2,
            "flow_shift": sampling.flow_shift,
            "scheduler": sampling.scheduler,
            "step_cache": sampling.step_cache,
            "preset": options.preset,
            "warnings": list(self.warnings),
        }


def plan_video(
    model: VideoModel, options: VideoOptions, picture: Image.Image | Tensor | None = None, *, has_lora: bool = False
) -> VideoPlan:
    """Settle everything that follows from options and picture.

    Args:
        picture: that the video starts from.
        has_lora: whether a LoRA is on the model.
    Raises: UsageError for a size that the model cannot make, and for what it has no use for.
    """
    if options.guidance_scale_2 is not None and model.boundary_ratio is None:
        raise UsageError("guidance_scale_2 is for a second expert, and this model has one transformer. Leave it out.")
    if options.last_image is not None and (model.task != "i2v" or picture is None):
        raise UsageError("last_image is for I2V-A14B, which starts from a picture and may end with one. Leave it out.")
    height, width = _frame_size(model, options, picture)
    sampling = _plan_sampling(model, options)
    warnings = preset_warnings(options.preset, model.spec.num_inference_steps, has_lora)
    num_frames = options.num_frames or model.spec.num_frames
    return VideoPlan(options, model, height, width, num_frames, sampling, picture is not None, tuple(warnings))


def negative_prompt_of(options: VideoOptions, spec: VideoSpec) -> str | list[str] | None:
    """The negative prompt in force; an empty one means the official default, as officially."""
    return None if options.negative_prompt_embeds is not None else options.negative_prompt or spec.negative_prompt


def _plan_sampling(model: VideoModel, options: VideoOptions) -> VideoSampling:
    """What the options state, else the preset, else the model; one guidance given is that of both experts."""
    spec = model.spec
    preset: dict[str, Any] = {}
    if options.preset == "draft":
        preset = {"num_inference_steps": min(spec.num_inference_steps, DRAFT_STEPS)}
    elif options.preset == "4step":
        preset = FOUR_STEP

    def settled(name: str) -> Any:
        stated = getattr(options, name)
        return preset.get(name, getattr(spec, name)) if stated is None else stated

    first = settled("guidance_scale")
    is_own = options.guidance_scale is None and "guidance_scale" not in preset
    second = (
        options.guidance_scale_2 if options.guidance_scale_2 is not None else (first, spec.guidance_scale_2)[is_own]
    )
    return VideoSampling(
        settled("num_inference_steps"),
        first,
        None if model.boundary_ratio is None else second,
        settled("flow_shift"),
        settled("scheduler"),
        FAST_CHANGE if options.preset == "fast" else 0.0,
    )


def _frame_size(model: VideoModel, options: VideoOptions, picture: Image.Image | Tensor | None) -> tuple[int, int]:
    """(height, width): as given, or from the area in the shape of the picture or of the official size.

    Raises: UsageError for a size that the model cannot make, that is half given, or given twice.
    """
    sides = {"height": options.height, "width": options.width}
    given = [name for name, side in sides.items() if side is not None]
    if len(given) == 1 or (given and options.area is not None):
        raise UsageError(f"{' and '.join(given)} with area={options.area}: give height and width, or area.")
    if options.height is not None and options.width is not None:
        for name, side in (("height", options.height), ("width", options.width)):
            _require_multiple(name, side, model.size_multiple)
        return options.height, options.width
    if isinstance(picture, Tensor):
        raise UsageError("The picture is a tensor, which says nothing of the frame. Give height and width.")
    spec = model.spec
    usual = spec.height * spec.width
    area = options.area or (min(usual, DRAFT_AREA) if options.preset == "draft" else usual)
    if picture is None:
        return stretched_size(spec.height, spec.width, area, model.size_multiple)
    rule = cropped_size if model.task == "ti2v" else stretched_size
    return rule(picture.height, picture.width, area, model.size_multiple)


def _require_multiple(name: str, side: int, multiple: int) -> None:
    if side < multiple or side % multiple:
        low = max(side // multiple, 1) * multiple
        raise UsageError(f"{name}={side} is not a multiple of {multiple}. Nearest allowed: {low}, {low + multiple}.")
