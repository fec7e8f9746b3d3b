"""Text or a picture → video, in stages: prompts, noise, picture, steps, frames; the whole run is `VideoPipeline.run`.

The parts and the keywords are diffusers' own; the steps are those of denoise.py, so that all of the runtime applies.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import torch
from diffusers.pipelines.wan.pipeline_output import WanPipelineOutput
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image
from torch import Tensor

from wan_s2v.clips import FRAMES_PER_LATENT
from wan_s2v.denoise import Denoising, denoise
from wan_s2v.errors import NumericsError, UsageError
from wan_s2v.latents import decode_latents
from wan_s2v.memory_planning import RunPlan
from wan_s2v.model_runtime import ModelRuntime
from wan_s2v.models.video_transformer import WanVideoTransformer
from wan_s2v.runtime.offload import Placement
from wan_s2v.runtime.step_cache import StepCache
from wan_s2v.schedulers import new_scheduler
from wan_s2v.video_experts import Prompts, Start, VideoExperts
from wan_s2v.video_plan import SPECS, VideoModel, VideoOptions, VideoPlan, VideoSpec, negative_prompt_of, plan_video
from wan_s2v.weights.names import Task

Callback = Callable[..., dict[str, Any] | None]
Picture = Image.Image | Tensor
OutputType = Literal["np", "pt", "pil", "latent"]
_CALLBACK_INPUTS = ("latents", "prompt_embeds", "negative_prompt_embeds")


class _Interrupted(Exception):
    """A callback asked for the end of the steps, as diffusers lets it."""

    def __init__(self, latents: Tensor) -> None:
        super().__init__()
        self.latents = latents


class VideoPipeline(ModelRuntime):
    """How the pipelines of family.py run; beside it they inherit one of diffusers', whose parts and keywords they have.

    `usual_task` is what the model does unless its config says that timesteps are per token, as TI2V's are.
    """

    usual_task: Task
    transformer: WanVideoTransformer
    transformer_2: WanVideoTransformer | None
    _num_predictions = 0  # of the last run

    @property
    def spec(self) -> VideoSpec:
        """The official settings of the model."""
        return SPECS[self._task]

    @property
    def _task(self) -> Task:
        return "ti2v" if self.config.expand_timesteps else self.usual_task

    def plan(self, picture: Picture | None = None, **options: Any) -> VideoPlan:
        """Check every option; nothing is computed yet. See `VideoOptions`."""
        multiple = self.vae_scale_factor_spatial * self.transformer.config.patch_size[1]
        model = VideoModel(self._task, self.spec, multiple, self.config.boundary_ratio)
        return plan_video(model, VideoOptions.from_keywords(options), picture, has_lora=self.has_lora)

    def describe(self, plan: RunPlan) -> dict[str, Any]:
        """As S2V's; also how many steps were computed, the others having been extrapolated."""
        has_run = self._last_plan is plan
        return super().describe(plan) | ({"num_predictions": self._num_predictions} if has_run else {})

    def make(
        self,
        picture: Picture | None,
        *,
        output_type: OutputType = "np",
        return_dict: bool = True,
        callback_on_step_end: Callback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        **options: Any,
    ) -> WanPipelineOutput | tuple[Any]:
        """A video, as diffusers' pipelines give it.

        Args:
            output_type: "np", "pt", "pil" or "latent".
            callback_on_step_end: called with (pipeline, step, timestep, the tensors named by the next argument).
            options: see `VideoOptions`.
        """
        plan = self.plan(picture, **options)
        names = getattr(callback_on_step_end, "tensor_inputs", callback_on_step_end_tensor_inputs)
        made = self.run(plan, picture, output_type, callback_on_step_end, names)
        return WanPipelineOutput(frames=made) if return_dict else (made,)

    @torch.no_grad()
    def run(
        self,
        plan: VideoPlan,
        picture: Picture | None,
        output_type: OutputType,
        callback: Callback | None = None,
        callback_inputs: Sequence[str] = ("latents",),
    ) -> Any:
        """All stages of a planned video. Raises: UsageError for an output or a callback's inputs that are not known."""
        if output_type not in get_args(OutputType):
            raise UsageError(f"output_type={output_type!r} is not accepted. Choose {', '.join(get_args(OutputType))}.")
        if not set(_CALLBACK_INPUTS).issuperset(callback_inputs):
            raise UsageError(f"A callback asks for {list(callback_inputs)}. Choose of {', '.join(_CALLBACK_INPUTS)}.")
        self._settle(plan)
        with Placement(self._models(), self._device(plan), self._plan_memory(plan)) as placement:
            prompts = self._encode_prompts(plan, placement)
            noise = self._noise(plan, placement.device)
            start = Start() if picture is None else self._encode_picture(plan, picture, placement)
            experts = VideoExperts(plan, placement, prompts, start, noise)
            report = _Report(self, callback, callback_inputs, prompts, experts)
            latents, self._num_predictions = self._denoise(plan, placement, start, noise, experts, report)
            video = latents if output_type == "latent" else self._decode(placement, latents, plan.num_frames)
            self._note_peak(placement)
        return video if output_type == "latent" else self.video_processor.postprocess_video(video, output_type)

    def _encode_prompts(self, plan: VideoPlan, placement: Placement) -> Prompts:
        """By diffusers' own method, which also takes embeddings that are given."""
        options, guided = plan.options, plan.sampling.is_guided
        given, given_negative = options.prompt_embeds, options.negative_prompt_embeds
        needs_encoder = given is None or (guided and given_negative is None)
        copies = options.num_videos_per_prompt
        if needs_encoder and self.text_encoder is None:
            raise UsageError("The text encoder is not loaded. Pass prompt_embeds and negative_prompt_embeds.")

        def encode() -> Prompts:
            if needs_encoder:
                placement.use("text_encoder")
            prompt, negative = self.encode_prompt(
                options.prompt,
                negative_prompt_of(options, plan.model.spec),
                guided,
                copies if given is None else 1,
                None if given is None else given.repeat_interleave(copies, dim=0),
                None if given_negative is None else given_negative.repeat_interleave(copies, dim=0),
                options.max_sequence_length,
                placement.device,
            )
            device = placement.device
            return Prompts(prompt.to(device), negative.to(device) if guided else None)

        return self._attempt(placement, "text", encode)

    def _noise(self, plan: VideoPlan, device: torch.device) -> Tensor:
        """(B, C, F, h, w) float32, given or drawn."""
        options, stride = plan.options, self.vae_scale_factor_spatial
        plane = (plan.height // stride, plan.width // stride)
        shape = (options.num_videos, self.vae.config.z_dim, plan.num_latent_frames, *plane)
        if options.latents is not None:
            if options.latents.shape != shape:
                raise UsageError(f"latents have the shape {tuple(options.latents.shape)}; this video needs {shape}.")
            return options.latents.to(device, torch.float32)
        generator = options.generator
        if isinstance(generator, Sequence) and len(generator) != options.num_videos:
            raise UsageError(f"There are {len(generator)} generators for {options.num_videos} videos. Give as many.")
        return randn_tensor(shape, generator=generator, device=device, dtype=torch.float32)

    def _encode_picture(self, plan: VideoPlan, picture: Picture, placement: Placement) -> Start:
        """The picture alone for TI2V; for I2V with empty frames after it, and a mask that tells them apart."""
        first = self._pixels(picture, plan, placement.device)
        if plan.model.task == "ti2v":
            return Start(first=self._encode(placement, first)[None])
        video = first.new_zeros(3, plan.num_frames, plan.height, plan.width, dtype=self.vae.dtype)
        video[:, :1] = first
        if plan.options.last_image is not None:
            video[:, -1:] = self._pixels(plan.options.last_image, plan, placement.device)
        latents = self._encode(placement, video)
        mask = torch.zeros_like(latents[:FRAMES_PER_LATENT])  # of the frames in each latent, those that are given
        mask[:, 0] = 1
        if plan.options.last_image is not None:
            mask[-1, -1] = 1
        return Start(beside=torch.cat((mask, latents))[None])

    def _pixels(self, picture: Any, plan: VideoPlan, device: torch.device) -> Tensor:
        """(3, 1, H, W) float32 in about [-1, 1]."""
        pixels = self.video_processor.preprocess(picture, plan.height, plan.width)
        if pixels.shape[0] != 1:
            raise UsageError(f"A video starts from one picture; {pixels.shape[0]} are given.")
        return pixels.to(device, torch.float32).transpose(0, 1)

    def _denoise(
        self,
        plan: VideoPlan,
        placement: Placement,
        start: Start,
        latents: Tensor,
        experts: VideoExperts,
        report: _Report,
    ) -> tuple[Tensor, int]:
        """(B, C, F, h, w) float32 latents, and the steps that were computed for them."""
        sampling, scheduler = plan.sampling, self.scheduler
        if plan.options.chooses_scheduler:
            scheduler = new_scheduler(sampling.scheduler, sampling.flow_shift)
        scheduler.set_timesteps(sampling.num_inference_steps, device=placement.device)
        scheduler.set_begin_index(0)
        count = len(scheduler.timesteps)
        self._num_timesteps, self._interrupt, self._guidance_scale = count, False, sampling.guidance_scale

        denoising = Denoising(start.held(latents), scheduler, StepCache(sampling.step_cache, count))

        def on_step(step: int, timestep: Tensor) -> None:
            bar.update()
            denoising.latents = start.held(report(step, timestep, start.held(denoising.latents)))

        def attempt(work: Callable[[], Any]) -> Any:
            return self._attempt(placement, "denoise", work, experts.forget)

        with self.progress_bar(total=count) as bar:
            try:
                latents = denoise(denoising, experts.choose, on_step, attempt)
            except _Interrupted as end:
                latents = start.held(end.latents)
        return latents, denoising.step_cache.num_computed

    def _decode(self, placement: Placement, latents: Tensor, num_frames: int) -> Tensor:
        """(B, 3, T, H, W) float32 in [-1, 1]."""
        videos = []
        for sample in latents:

            def decode(sample: Tensor = sample) -> Tensor:
                strips = placement.policy.vae_strips
                return decode_latents(placement.use("vae"), sample, num_frames, num_strips=strips)

            videos.append(self._run_vae(placement, "decode", decode))
        made = torch.stack(videos)
        if not torch.isfinite(made).all():
            raise NumericsError(
                "Decoding gave NaN or infinite pixels from finite latents. Keep the VAE in float32, or check its file"
                " with wan-s2v doctor."
            )
        return made


class _Report:
    """Tells a callback of each step, and does what it answers."""

    def __init__(
        self,
        pipeline: VideoPipeline,
        callback: Callback | None,
        names: Sequence[str],
        prompts: Prompts,
        experts: VideoExperts,
    ) -> None:
        self._pipeline, self._callback, self._names = pipeline, callback, names
        self._prompts, self._experts = prompts, experts

    def __call__(self, step: int, timestep: Tensor, latents: Tensor) -> Tensor:
        """The latents to go on with. Raises: _Interrupted where the pipeline's `interrupt` was set."""
        if self._callback is None:
            return latents
        prompts = self._prompts
        tensors = {
            "latents": latents, "prompt_embeds": prompts.prompt, "negative_prompt_embeds": prompts.negative
        }  # fmt: skip
        answer = self._callback(self._pipeline, step, timestep, {name: tensors[name] for name in self._names}) or {}
        changed = Prompts(
            answer.get("prompt_embeds", prompts.prompt), answer.get("negative_prompt_embeds", prompts.negative)
        )
        if changed.prompt is not prompts.prompt or changed.negative is not prompts.negative:
            self._prompts = changed
            self._experts.change_prompts(changed)
        latents = answer.get("latents", latents)
        if self._pipeline.interrupt:
            raise _Interrupted(latents)
        return latents
