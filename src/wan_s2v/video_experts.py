"""The transformers of one video with everything they are conditioned on, made when a step first asks for them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from wan_s2v.models.backbone import TextContext
from wan_s2v.models.video_transformer import Frame, Times, WanVideoTransformer
from wan_s2v.runtime.offload import Placement
from wan_s2v.video_plan import VideoPlan


@dataclass(frozen=True)
class Prompts:
    """Embeddings (B, L, C), padded; the negative ones where a step is guided."""

    prompt: Tensor
    negative: Tensor | None


@dataclass(frozen=True)
class Start:
    """The picture that a video starts from, as its model sees it.

    Args:
        beside: (1, C, F, h, w) further channels of the latents: those of a mask and of the picture, for I2V.
        first: (1, C, 1, h, w) in place of the first latent frame, which is at timestep 0, for TI2V.
    """

    beside: Tensor | None = None
    first: Tensor | None = None

    def held(self, latents: Tensor) -> Tensor:
        """Latents (B, C, F, h, w) with the picture in its place."""
        if self.first is None:
            return latents
        return torch.cat((self.first.expand(latents.shape[0], -1, -1, -1, -1), latents[:, :, 1:]), dim=2)

    def seen(self, latents: Tensor) -> Tensor:
        """What the transformer is given of latents (B, C, F, h, w)."""
        if self.beside is None:
            return latents
        return torch.cat((latents, self.beside.expand(latents.shape[0], -1, -1, -1, -1)), dim=1)

    def times(self, timestep: Tensor, tokens_per_frame: int) -> Times:
        """Of a timestep (1,)."""
        if self.first is None:
            return Times.of(timestep)
        return Times(torch.stack((torch.zeros_like(timestep), timestep), dim=1), tokens_per_frame)


@dataclass(frozen=True)
class VideoExpert:
    """A transformer with all that does not change while it works.

    Args:
        name: of its component.
        negative: of the negative prompt; None without guidance.
    """

    name: str
    transformer: WanVideoTransformer
    guidance_scale: float
    frame: Frame
    start: Start
    prompt: TextContext
    negative: TextContext | None

    def predict(self, latents: Tensor, timestep: Tensor) -> Tensor:
        """Guided flow velocity of (B, C, F, h, w) latents at a timestep (1,), float32."""
        seen, times = self.start.seen(latents), self.start.times(timestep, self.frame.layout.tokens_per_frame)
        full = self.transformer.predict(seen, times, self.frame, self.prompt)
        if self.negative is None:
            return full
        neither = self.transformer.predict(seen, times, self.frame, self.negative)
        return neither + self.guidance_scale * (full - neither)


class VideoExperts:
    """Chooses the expert of each step; the switch brings it to the device, once per video."""

    def __init__(self, plan: VideoPlan, placement: Placement, prompts: Prompts, start: Start, latents: Tensor) -> None:
        self._plan, self._placement, self._prompts, self._start = plan, placement, prompts, start
        self._latents = latents  # whose size and device count
        self._texts: dict[str, TextContext] = {}
        self._name: str | None = None
        self._expert: VideoExpert | None = None

    def choose(self, timestep: float) -> VideoExpert:
        """The expert for a timestep, prepared."""
        stage = self._plan.stage_at(timestep)
        if stage.expert != self._name:
            self._name, self._expert, self._texts = stage.expert, None, {}
        if self._expert is None:
            self._expert = self._prepare(stage.expert, stage.guidance_scale)
        return self._expert

    def forget(self) -> None:
        """Have the next step bring its expert anew; keys and values of prompts stay."""
        self._expert = None

    def change_prompts(self, prompts: Prompts) -> None:
        """Follow these from the next step on."""
        self._prompts, self._texts, self._expert = prompts, {}, None

    def _prepare(self, name: str, guidance_scale: float) -> VideoExpert:
        transformer: WanVideoTransformer = self._placement.use(name)
        negative = None
        if guidance_scale > 1:
            assert self._prompts.negative is not None
            negative = self._text("negative", transformer, self._prompts.negative)
        prompt = self._text("prompt", transformer, self._prompts.prompt)
        frame = transformer.prepare_frame(self._latents)
        return VideoExpert(name, transformer, guidance_scale, frame, self._start, prompt, negative)

    def _text(self, which: str, transformer: WanVideoTransformer, embeds: Tensor) -> TextContext:
        """Keys and values of a prompt, computed once per expert."""
        if which not in self._texts:
            self._texts[which] = transformer.prepare_text(embeds)
        return self._texts[which]
