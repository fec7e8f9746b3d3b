"""A portrait and a voice → video, clip by clip; the whole run is `WanS2VPipeline.run`.

`__call__` and `stream` differ only in whether clips are collected or handed out as they are finished; command line,
server and nodes consume the same stream.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from torch import Tensor
from transformers import UMT5EncoderModel, Wav2Vec2FeatureExtractor, Wav2Vec2Model

from wan_s2v.audio import MODEL_SAMPLE_RATE
from wan_s2v.audio_features import AudioFeatures, aligned_feature_indices, feature_indices
from wan_s2v.clips import Clip
from wan_s2v.clock import Clock
from wan_s2v.components import check_components, model_spec
from wan_s2v.denoise import Denoising, denoise
from wan_s2v.errors import CheckpointError, NumericsError, UsageError
from wan_s2v.image import Framing, apply_framing, plan_framing, reference_framing
from wan_s2v.interpolation import FrameInterpolator
from wan_s2v.job import Experts, Job
from wan_s2v.latents import decode_latents, encode_pose, past_on
from wan_s2v.memory_planning import starting_device
from wan_s2v.model_runtime import ModelRuntime
from wan_s2v.models.transformer import WanS2VTransformer
from wan_s2v.partial_run import FinishedClip, PartialRun
from wan_s2v.plan import (
    AudioSource,
    GenerationOptions,
    GenerationPlan,
    ImageSource,
    negative_prompt_of,
    plan_generation,
)
from wan_s2v.pose_video import PoseVideo
from wan_s2v.prompt import encode_prompt
from wan_s2v.result import OutputType, S2VClip, S2VOutput, as_output, as_tensor, joined
from wan_s2v.runtime.offload import Placement
from wan_s2v.runtime.precision import as_dtype, usable_dtype
from wan_s2v.runtime.step_cache import StepCache
from wan_s2v.schedulers import make_scheduler
from wan_s2v.weights import load_components
from wan_s2v.weights.checkpoint import find_checkpoint, fingerprint

_REFERENCE_HISTORY = 6  # frames of history that show the reference image where the video starts from it


class WanS2VPipeline(ModelRuntime):
    """Speech to video with Wan2.2-S2V.

    Components: `transformer` (with `transformer_2`: the high-noise expert, `transformer_2` being the low-noise one),
    `vae`, `audio_encoder` and `audio_processor` (wav2vec2), `text_encoder` and `tokenizer` (may be None where prompt
    embeddings are given). Solvers are chosen by name, and made anew for each clip.

    Args:
        boundary_ratio: share of the noise scale from which on the high-noise expert works.
        sampling_defaults: fields of `ModelSpec` in which this model differs from S2V-14B.
    """

    model_cpu_offload_seq = "text_encoder->transformer->transformer_2->vae"
    _optional_components = ["text_encoder", "tokenizer", "transformer_2"]  # noqa: RUF012 - diffusers reads a list

    def __init__(
        self,
        transformer: WanS2VTransformer,
        vae: AutoencoderKLWan,
        audio_encoder: Wav2Vec2Model,
        audio_processor: Wav2Vec2FeatureExtractor,
        text_encoder: UMT5EncoderModel | None = None,
        tokenizer: Any = None,
        transformer_2: WanS2VTransformer | None = None,
        boundary_ratio: float | None = None,
        sampling_defaults: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        spec = model_spec(transformer.config, vae.config, sampling_defaults)
        check_components(transformer, vae, audio_encoder, text_encoder)
        if (transformer_2 is None) != (boundary_ratio is None):
            raise CheckpointError("Two experts need a boundary_ratio, one transformer has none. Give both or neither.")
        self.register_modules(
            transformer=transformer,
            vae=vae,
            audio_encoder=audio_encoder,
            audio_processor=audio_processor,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            transformer_2=transformer_2,
        )
        self.register_to_config(boundary_ratio=boundary_ratio, sampling_defaults=sampling_defaults)
        self.spec = spec

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        torch_dtype: torch.dtype | str | None = None,
        device_map: str | None = None,
        components: str | Path | Sequence[str | Path] | None = None,
        boundary_ratio: float | None = None,
        load_text_encoder: bool = True,
        progress: Callable[[str, int, int], None] | None = None,
    ) -> WanS2VPipeline:
        """Load a model from a hub id, an official folder, a diffusers folder, a single file, or "tiny".

        Args:
            torch_dtype: of the transformer; as stored if None. The speech encoder runs in float32, and so does the VAE,
                but on GPUs in float16 (see `runtime.precision.vae_dtype`); the text encoder in bfloat16: it overflows
                in float16. If float32 is asked for, everything runs in it.
            device_map: "auto" (the GPU computes if there is one; weights stay in main memory where it has no room for
                them), "cuda" (weights on the GPU), "cpu", or None (the CPU; move with `.to`).
            components: folder with the other parts, or their files, where the model is a single transformer file.
            boundary_ratio: for two-expert checkpoints whose files do not state it.
            load_text_encoder: False saves 11 GB where prompt embeddings are given.
            progress: called with component, bytes done and bytes in all while loading.
        Raises: CheckpointError before anything large is allocated.
        """
        skip = frozenset() if load_text_encoder else frozenset({"text_encoder", "tokenizer"})
        wanted = None if torch_dtype is None else as_dtype(torch_dtype)
        checkpoint = find_checkpoint(
            pretrained_model_name_or_path, components=components, skip=skip, boundary_ratio=boundary_ratio
        )
        device = starting_device(device_map, checkpoint.total_bytes)
        # Weights on the CPU beside a GPU are there to be brought over, not to compute where they are.
        computes_on = torch.device("cuda") if torch.cuda.is_available() and device_map != "cpu" else device
        dtype, dtype_note = usable_dtype(wanted or checkpoint.models["transformer"].dtype, computes_on)
        loaded = load_components(checkpoint, torch_dtype=dtype, device=device, skip=skip, progress=progress)
        pipeline = cls(**loaded, sampling_defaults=checkpoint.sampling_defaults)
        pipeline.notes = (dtype_note,) if dtype_note else ()
        if device_map == "auto" and torch.cuda.is_available():
            pipeline.compute_on(torch.device("cuda", torch.cuda.current_device()))
        pipeline.source = {"model": str(pretrained_model_name_or_path), "weights": fingerprint(checkpoint)}
        return pipeline

    def __call__(
        self,
        audio_path: AudioSource | None,
        image_path: ImageSource,
        *,
        output_type: OutputType = "uint8",
        callback_on_step_end: Callable[..., dict[str, Any] | None] | None = None,
        **options: Any,
    ) -> S2VOutput:
        """Make the whole video and keep it in memory; use `stream` for long ones.

        Args:
            audio_path: file with sound, or (waveform, sample rate); None with the option `text`.
            image_path: file, PIL image or (H, W, 3) array.
            output_type: "uint8", "pt" (float32 in [-1, 1]) or "latent".
            callback_on_step_end: as in diffusers: called with (pipeline, step, timestep, {"latents": …}); beside them
                lie `denoised`, the latents as the step takes them to be in the end, and `reference_latents`.
            options: see `GenerationOptions`.
        """
        plan = self.plan(audio_path, image_path, **options)
        started = time.perf_counter()
        clips = list(self.run(plan, output_type=output_type, callback_on_step_end=callback_on_step_end))
        seconds: dict[str, float] = {}
        for clip in clips:
            for stage, spent in clip.seconds.items():
                seconds[stage] = seconds.get(stage, 0.0) + spent
        metadata = self.describe(plan)
        metadata["seconds"] = {stage: round(spent, 3) for stage, spent in seconds.items()}
        metadata["seconds"]["total"] = round(time.perf_counter() - started, 3)
        metadata["num_predictions"] = sum(clip.num_predictions for clip in clips)
        frames = joined([clip.frames for clip in clips], axis=1 if output_type == "latent" else 0)
        sound = plan.waveform.padded_or_cut(float(plan.clips.duration)).samples
        return S2VOutput(frames, float(plan.clips.fps), sound, MODEL_SAMPLE_RATE, metadata, plan)

    def stream(
        self,
        audio_path: AudioSource | None,
        image_path: ImageSource,
        *,
        output_type: OutputType = "uint8",
        callback_on_step_end: Callable[..., dict[str, Any] | None] | None = None,
        **options: Any,
    ) -> Iterator[S2VClip]:
        """Make the video clip by clip, with memory that does not grow with its length; arguments as `__call__`."""
        plan = self.plan(audio_path, image_path, **options)
        return self.run(plan, output_type=output_type, callback_on_step_end=callback_on_step_end)

    def plan(self, audio_path: AudioSource | None, image_path: ImageSource, **options: Any) -> GenerationPlan:
        """Open the inputs and check every option; nothing is computed yet."""
        settled = GenerationOptions.from_keywords(options)
        return plan_generation(audio_path, image_path, settled, self.spec, has_lora=self.has_lora)

    def run(
        self,
        plan: GenerationPlan,
        *,
        output_type: OutputType = "uint8",
        callback_on_step_end: Callable[..., dict[str, Any] | None] | None = None,
        partial_run: PartialRun | None = None,
    ) -> Iterator[S2VClip]:
        """Make every clip of a plan.

        Args:
            partial_run: keeps what is finished, and gives what an earlier run of the same plan has kept.
        Raises: RunStoppedError where `partial_run` was told to stop.
        """
        if output_type not in ("uint8", "pt", "latent"):
            raise UsageError(f"output_type={output_type!r} is not accepted. Choose uint8, pt or latent.")
        self._settle(plan)
        with Placement(self._models(), self._device(plan), self._plan_memory(plan)) as placement:
            yield from self._make_clips(plan, placement, output_type, callback_on_step_end, partial_run)
            self._note_peak(placement)

    def _make_clips(
        self,
        plan: GenerationPlan,
        placement: Placement,
        output_type: OutputType,
        callback_on_step_end: Callable[..., dict[str, Any] | None] | None,
        partial_run: PartialRun | None,
    ) -> Iterator[S2VClip]:
        clock = Clock()
        job = self._prepare_job(plan, placement, clock)
        interpolator = FrameInterpolator(plan.clips.model_fps, plan.clips.fps, num_frames=plan.clips.num_frames)
        pixels: Tensor | None = None
        for clip in plan.clips.clips:
            kept = None if partial_run is None else partial_run.clip(clip.index)
            if pixels is not None:  # of the clip before, which its receiver already has
                self._hand_over(job, pixels, clock, kept)
                pixels = None  # a gigabyte at 1280x704, which the steps need not find taken
            if kept is None:
                kept = self._denoise_clip(job, clip, clock, callback_on_step_end, partial_run)
            latents, num_predictions = kept.latents.to(placement.device), kept.num_predictions
            is_last = clip is plan.clips.clips[-1]
            if output_type != "latent" or not is_last:
                pixels = self._decode_clip(job, clip, latents, clock)
            if output_type == "latent" or pixels is None:
                yield S2VClip(clip, latents[0].cpu(), clock.take(), num_predictions)
                continue
            with clock("interpolate"):
                frames = interpolator.push(as_output(pixels, output_type))
                if is_last:
                    frames = np.concatenate((frames, interpolator.finish()))
            finished = as_tensor(frames) if output_type == "pt" else frames
            yield S2VClip(clip, finished, clock.take(), num_predictions)

    def _prepare_job(self, plan: GenerationPlan, placement: Placement, clock: Clock) -> Job:
        """Encode what all clips share: prompt, picture, sound, pose."""
        device, options = placement.device, plan.options
        needs_negative = plan.sampling.guidance.needs_neither
        with clock("text"):
            prompts = {
                text: self._prompt_embeds(options.prompt_embeds, text, placement)
                for text in dict.fromkeys(plan.clip_prompts)
            }
            negative = None
            if needs_negative:
                negative = self._prompt_embeds(options.negative_prompt_embeds, negative_prompt_of(options), placement)
        reference = apply_framing(plan.image.image, plan.framing)
        with clock("encode"):
            reference_latents = self._encode(placement, reference[:, None].to(device))
        with clock("audio"):
            features = AudioFeatures(
                placement.use("audio_encoder"),
                plan.driving.samples,
                num_samples=plan.num_driving_samples,
                do_normalize=self.audio_processor.do_normalize,
            )
        history = torch.zeros(3, self.spec.motion_frames, plan.framing.height, plan.framing.width)
        if options.start_from_reference:
            history[:, -_REFERENCE_HISTORY:] = reference[:, None]
        job = Job(plan, placement, prompts, negative, reference_latents, features, history)
        if options.preset == "fast":
            job.decoder_past = {}
        if options.pose_video_path is not None:
            job.pose = PoseVideo(options.pose_video_path, plan.clips.model_fps, timing=plan.clips.timing)
            job.pose_framing = _pose_framing(job.pose, plan.framing)
        if options.start_from_reference:
            with clock("encode"):
                job.motion_latents = self._encode(placement, history)
        return job

    def _denoise_clip(
        self,
        job: Job,
        clip: Clip,
        clock: Clock,
        callback: Callable[..., dict[str, Any] | None] | None,
        partial_run: PartialRun | None,
    ) -> FinishedClip:
        plan = job.plan
        with clock("audio"):
            audio_features = self._audio_features(job, clip)
        pose_latents = None
        if job.pose is not None:
            with clock("encode"):
                pose_latents = self._pose_latents(job, clip)
        experts = Experts(self.config.boundary_ratio, job, clip, audio_features, pose_latents)
        denoising = self._start(job, clip, partial_run)
        count, reference = denoising.num_steps, job.reference_latents

        def on_step(step: int, timestep: Tensor) -> None:
            bar.update()
            if callback is not None:
                seen = {"latents": denoising.latents, "denoised": denoising.denoised, "reference_latents": reference}
                changed = callback(self, step, timestep, seen) or {}
                denoising.latents = changed.get("latents", denoising.latents)
            if partial_run is not None and denoising.step < count:
                partial_run.after_step(clip.index, denoising.step, denoising.state)

        def attempt(work: Callable[[], Any]) -> Any:
            return self._attempt(job.placement, "denoise", work, experts.forget)

        with clock("denoise"), torch.no_grad(), self.progress_bar(total=count) as bar:
            bar.set_description(f"clip {clip.index + 1}/{plan.clips.num_clips}")
            bar.update(denoising.step)
            try:
                denoise(denoising, experts.choose, on_step, attempt)
            except torch.OutOfMemoryError:
                if partial_run is not None and denoising.step:
                    partial_run.keep_steps(clip.index, denoising.state())
                raise
        motion = job.motion_latents if clip.has_motion else None
        made = FinishedClip(denoising.latents, motion, denoising.step_cache.num_computed, dict(clock.seconds))
        if partial_run is not None:
            partial_run.keep_clip(clip.index, made)
        return made

    def _start(self, job: Job, clip: Clip, partial_run: PartialRun | None) -> Denoising:
        """A clip before its first step, or after the last one that was kept."""
        sampling = job.plan.sampling
        scheduler = make_scheduler(sampling.scheduler, sampling.num_inference_steps, sampling.flow_shift, job.device)
        step_cache = StepCache(sampling.step_cache, len(scheduler.timesteps))
        denoising = Denoising(self._noise(job, clip), scheduler, step_cache)
        state = None if partial_run is None else partial_run.steps(clip.index, job.device)
        if state is not None:
            denoising.restore(state)
        return denoising

    def _decode_clip(self, job: Job, clip: Clip, latents: Tensor, clock: Clock) -> Tensor:
        """(3, kept frames, H, W) float32 pixels."""

        def decode() -> Tensor:
            sequence, placement = latents[0], job.placement
            past = job.decoder_past = None if job.decoder_past is None else past_on(job.decoder_past, job.device)
            if not past:
                prefix = job.motion_latents if clip.has_motion else job.reference_latents
                assert prefix is not None
                sequence = torch.cat((prefix, sequence), dim=1)
            return decode_latents(placement.use("vae"), sequence, clip.num_frames, past, placement.policy.vae_strips)

        def forget() -> None:
            """What an attempt has left of the past is of no use to another one."""
            job.decoder_past = None if job.decoder_past is None else {}

        with clock("decode"):
            pixels = self._run_vae(job.placement, "decode", decode, forget)
            if job.decoder_past and job.placement.policy.offload in ("model", "block"):
                job.decoder_past = past_on(job.decoder_past, "cpu")  # gigabytes that the next clip needs for its steps
        if not torch.isfinite(pixels).all():
            raise NumericsError(
                f"Decoding clip {clip.index + 1} gave NaN or infinite pixels from finite latents. "
                "Keep the VAE in float32, or check its file with wan-s2v doctor."
            )
        return pixels[:, clip.keep_start : clip.keep_stop]

    def _hand_over(self, job: Job, pixels: Tensor, clock: Clock, kept: FinishedClip | None) -> None:
        """Show the next clip the last frames, as float pixels: nothing is lost on the way.

        Args:
            kept: the next clip, if it was made before.
        """
        count = self.spec.motion_frames
        with clock("encode"):
            if pixels.shape[1] < count:
                pixels = torch.cat((job.history.to(pixels.device), pixels), dim=1)
            recent = pixels[:, -count:]
            if kept is None or kept.motion_latents is None:
                job.motion_latents = self._encode(job.placement, recent)
            else:
                job.motion_latents = kept.motion_latents.to(job.device)
            job.history = recent.cpu()

    def _audio_features(self, job: Job, clip: Clip) -> Tensor:
        """(1, layers, C, frames) float32."""
        features, plan = job.features, job.plan.clips
        job.placement.use("audio_encoder")
        if plan.timing == "aligned":
            indices = aligned_feature_indices(features.num_features, clip.start, clip.num_frames, plan.model_fps)
        else:
            indices = feature_indices(
                features.num_features,
                clip.num_frames,
                plan.model_fps,
                start_frame=clip.start,
                span_frames=max(job.audio_clips * clip.num_frames, clip.start + clip.num_frames),
            )
        return features.features(indices)[None].to(job.device)

    def _pose_latents(self, job: Job, clip: Clip) -> Tensor:
        """(1, C, F, h, w) float32: the pose at the times that the clip's frames show."""
        assert job.pose is not None
        assert job.pose_framing is not None
        frames = job.pose.read(clip.start, clip.num_frames, job.pose_framing)
        return self._encode(job.placement, frames.transpose(0, 1).to(job.device), encode_pose)[None]

    def _noise(self, job: Job, clip: Clip) -> Tensor:
        """(1, C, F, h, w) float32, rounded to the transformer's dtype, in which the official code draws it."""
        channels, _, height, width = job.reference_latents.shape
        shape = (channels, clip.num_latent_frames, height, width)
        generator = job.plan.options.generator
        if generator is None:
            generator = torch.Generator(job.device).manual_seed(job.plan.clip_seeds[clip.index])
        noise = torch.randn(shape, generator=generator, device=generator.device, dtype=torch.float32)
        return noise.to(job.device, self.transformer.dtype).float()[None]

    def _prompt_embeds(self, given: Tensor | list[Tensor] | None, text: str, placement: Placement) -> Tensor:
        """(L, C) embeddings, given or encoded."""
        text_dim, text_len = self.transformer.config.text_dim, self.transformer.config.text_len
        if given is not None:
            return _single_prompt(given, text_dim).to(placement.device)
        if self.text_encoder is None or self.tokenizer is None:
            raise UsageError(
                "The text encoder is not loaded. Pass prompt_embeds (and negative_prompt_embeds, unless guidance_scale "
                "is 1), or load the model with its text encoder."
            )
        return self._attempt(
            placement, "text", lambda: encode_prompt(text, self.tokenizer, placement.use("text_encoder"), text_len)
        )


def _pose_framing(pose: PoseVideo, framing: Framing) -> Framing:
    """The pose video's way into the frame, by the same rule as the picture's."""
    size = (pose.height, pose.width)
    if framing.fit == "reference":
        return reference_framing(*size, framing.height, framing.width)
    limits: dict[str, Any] = {"multiple": 1, "min_side": 1, "fit": framing.fit}
    return plan_framing(*size, height=framing.height, width=framing.width, **limits)


def _single_prompt(given: Tensor | list[Tensor], width: int) -> Tensor:
    embeds = given[0] if isinstance(given, list) else given
    embeds = embeds[0] if embeds.ndim == 3 else embeds
    if embeds.ndim != 2 or embeds.shape[1] != width or (isinstance(given, list) and len(given) != 1):
        raise UsageError(
            f"Prompt embeddings have shape {tuple(embeds.shape)}. "
            f"Accepted: one prompt as (L, {width}) or (1, L, {width})."
        )
    return embeds
