"""The state of one run, and the transformers of one clip with everything they are conditioned on."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from wan_s2v.audio_features import AudioFeatures, reference_num_clips
from wan_s2v.clips import Clip
from wan_s2v.denoise import Expert
from wan_s2v.experts import stage_at
from wan_s2v.image import Framing
from wan_s2v.latents import DecoderPast
from wan_s2v.models.backbone import TextContext
from wan_s2v.models.transformer import AudioContext, Conditioning, Scene, WanS2VTransformer
from wan_s2v.plan import GenerationPlan
from wan_s2v.pose_video import PoseVideo
from wan_s2v.runtime.offload import Placement


@dataclass
class Job:
    """What the clips of one run share, and the state that each hands to the next.

    Args:
        prompt_embeds: (L, C) of each prompt that clips take.
        negative_prompt_embeds: (L, C) where guidance needs them.
        reference_latents: (C, 1, h, w).
        history: (3, motion_frames, H, W) float32 pixels in [-1, 1], the last ones made; in main memory.
        motion_latents: (C, 19, h, w) of the history; None where the first clip starts without.
        decoder_past: where the VAE's decoder goes on after the clip before; None where it begins with the history.
        texts: the last context of each expert's prompt and negative prompt, and the prompt it is of.
    """

    plan: GenerationPlan
    placement: Placement
    prompt_embeds: dict[str, Tensor]
    negative_prompt_embeds: Tensor | None
    reference_latents: Tensor
    features: AudioFeatures
    history: Tensor
    motion_latents: Tensor | None = None
    pose: PoseVideo | None = None
    pose_framing: Framing | None = None
    decoder_past: DecoderPast | None = None
    texts: dict[tuple[str, bool], tuple[str, TextContext]] = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        """That computes."""
        return self.placement.device

    @property
    def audio_clips(self) -> int:
        """Clips that the sound asks for under official timing, which the number made may cap."""
        clip = self.plan.clips.clips[0]
        return reference_num_clips(self.features.num_features, clip.num_frames, self.plan.clips.model_fps)


class Experts:
    """The transformers of one clip with their constants, made when a step first asks for them."""

    def __init__(
        self,
        boundary_ratio: float | None,
        job: Job,
        clip: Clip,
        audio_features: Tensor,
        pose_latents: Tensor | None,
    ) -> None:
        self.boundary_ratio, self.job, self.clip = boundary_ratio, job, clip
        self.audio_features, self.pose_latents = audio_features, pose_latents
        self.name: str | None = None
        self.expert: Expert | None = None

    def choose(self, timestep: float) -> Expert:
        """The expert for a timestep; switching brings it to the device."""
        name = stage_at(timestep, self.boundary_ratio, self.job.plan.sampling.guidance.scale).expert
        if name != self.name or self.expert is None:
            self.forget()
            self.name, self.expert = name, self._prepare(name)
        return self.expert

    def forget(self) -> None:
        """Free what is prepared; the next step prepares it anew."""
        self.expert = None

    def _prepare(self, name: str) -> Expert:
        job, guidance = self.job, self.job.plan.sampling.guidance
        transformer: WanS2VTransformer = job.placement.use(name)
        scene = self._scene(transformer)
        text = job.plan.clip_prompts[self.clip.index]
        prompt = self._text(name, False, transformer, text, job.prompt_embeds[text])
        sound = transformer.prepare_audio(self.audio_features, job.plan.spec.motion_frames)
        full = Conditioning(scene, prompt, sound)
        text_only = neither = None
        if guidance.passes > 1:
            silence = self._silence(transformer)
            if guidance.needs_text_only:
                text_only = Conditioning(scene, prompt, silence)
            if guidance.needs_neither:
                assert job.negative_prompt_embeds is not None
                negative = self._text(name, True, transformer, "", job.negative_prompt_embeds)
                neither = Conditioning(scene, negative, silence)
        return Expert(name, transformer, guidance, full, text_only, neither)

    def _scene(self, transformer: WanS2VTransformer) -> Scene:
        motion = self.job.motion_latents if self.clip.has_motion else None
        return transformer.prepare_scene(
            self.job.reference_latents[None],
            self.clip.num_latent_frames,
            motion_latents=None if motion is None else motion[None],
            pose_latents=self.pose_latents,
        )

    def _silence(self, transformer: WanS2VTransformer) -> AudioContext:
        """Zero features, which is what the official code calls no sound; biases and norms still act on them."""
        return transformer.prepare_audio(torch.zeros_like(self.audio_features), self.job.plan.spec.motion_frames)

    def _text(
        self, name: str, is_negative: bool, transformer: WanS2VTransformer, text: str, embeds: Tensor
    ) -> TextContext:
        """Keys and values of a prompt, computed once as long as clips keep to it."""
        key, texts = (name, is_negative), self.job.texts
        if key not in texts or texts[key][0] != text:
            texts.pop(key, None)
            texts[key] = text, transformer.prepare_text([embeds])
        return texts[key][1]
