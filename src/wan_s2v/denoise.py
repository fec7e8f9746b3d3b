"""Guidance and the step loop of one clip."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from wan_s2v.errors import NumericsError
from wan_s2v.models.backbone import Backbone
from wan_s2v.models.transformer import Conditioning, WanS2VTransformer
from wan_s2v.runtime.step_cache import StepCache
from wan_s2v.schedulers import Scheduler


@dataclass(frozen=True)
class Guidance:
    """How far the prediction is pushed away from the one without prompt and sound.

    Args:
        scale: for prompt and sound together, as the official code has it; up to 1 means a single pass.
        audio_scale: for the sound alone; `scale` then acts on the prompt. Equal values give the joint result.
    """

    scale: float
    audio_scale: float | None = None

    @property
    def needs_neither(self) -> bool:
        return self.scale > 1

    @property
    def needs_text_only(self) -> bool:
        return self.audio_scale is not None

    @property
    def passes(self) -> int:
        return 1 + self.needs_neither + self.needs_text_only


class Predictor(Protocol):
    """A transformer with all that it needs beside the latents."""

    @property
    def transformer(self) -> Backbone: ...
    def predict(self, latents: Tensor, timestep: Tensor) -> Tensor:
        """Guided flow velocity of (B, C, F, h, w) latents at a timestep (1,), float32."""


@dataclass(frozen=True)
class Expert:
    """A transformer with its per-clip constants for every pass that guidance needs."""

    transformer: WanS2VTransformer
    guidance: Guidance
    full: Conditioning
    text_only: Conditioning | None
    neither: Conditioning | None

    def predict(self, latents: Tensor, timestep: Tensor) -> Tensor:
        """Guided flow velocity of (B, C, F, h, w) latents, float32."""
        guidance = self.guidance
        full = self.transformer(latents, timestep, self.full)
        neither = None if self.neither is None else self.transformer(latents, timestep, self.neither)
        if self.text_only is None or guidance.audio_scale is None:
            return full if neither is None else neither + guidance.scale * (full - neither)
        text = self.transformer(latents, timestep, self.text_only)
        guided = text if neither is None else neither + guidance.scale * (text - neither)
        return guided + guidance.audio_scale * (full - text)


def denoise(
    latents: Tensor,
    scheduler: Scheduler,
    choose_expert: Callable[[float], Predictor],
    step_cache: StepCache,
    on_step: Callable[[int, Tensor, Tensor], Tensor | None] | None = None,
    attempt: Callable[[Callable[[], Any]], Any] = lambda work: work(),
) -> Tensor:
    """Run all steps of one clip.

    Args:
        latents: (B, C, F, h, w) float32 noise.
        choose_expert: the expert for a timestep.
        step_cache: a new one, which may spare some of the predictions.
        on_step: called with step, timestep and latents after each step; may return replacement latents.
        attempt: does a part of a step that takes much memory, again if it must; nothing has changed in between.
    Raises: NumericsError at the first step whose prediction or latents are not finite.
    """
    count = len(scheduler.timesteps)
    for step, timestep in enumerate(scheduler.timesteps):
        choose = partial(choose_expert, float(timestep))
        predict = partial(_predict, choose, latents, timestep.reshape(1))
        sigma, transformer = float(scheduler.sigmas[step]), attempt(choose).transformer
        noise_pred = step_cache.predict(step, sigma, latents, transformer, partial(attempt, predict))
        _check_finite(noise_pred, "the transformer's prediction", step, count, timestep)
        latents = scheduler.step(noise_pred, timestep, latents, return_dict=False)[0]
        _check_finite(latents, "the latents", step, count, timestep)
        replacement = on_step(step, timestep, latents) if on_step else None
        latents = latents if replacement is None else replacement
    return latents


def _predict(choose: Callable[[], Predictor], latents: Tensor, timestep: Tensor) -> Tensor:
    return choose().predict(latents, timestep)


def _check_finite(x: Tensor, what: str, step: int, count: int, timestep: Any) -> None:
    """Raises: NumericsError that names the suspects."""
    if not torch.isfinite(x).all():
        bad = (~torch.isfinite(x)).float().mean().item()
        where = f"step {step + 1} of {count} (timestep {float(timestep):.0f})"
        raise NumericsError(
            f"{bad:.1%} of {what} became NaN or infinite at {where}. "
            "Try torch_dtype=bfloat16 (float16 can overflow), fewer LoRAs, or check the weights with wan-s2v doctor."
        )
