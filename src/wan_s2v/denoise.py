"""Guidance and the step loop of one clip."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Protocol

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
    def name(self) -> str: ...
    @property
    def transformer(self) -> Backbone: ...
    def predict(self, latents: Tensor, timestep: Tensor) -> Tensor:
        """Guided flow velocity of (B, C, F, h, w) latents at a timestep (1,), float32."""


@dataclass(frozen=True)
class Expert:
    """A transformer with its per-clip constants for every pass that guidance needs; `name` is its component's."""

    name: str
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


@dataclass
class Denoising:
    """One clip on its way from noise to latents; whole after every step, so that it can be kept and gone on with.

    Args:
        latents: (B, C, F, h, w) float32: noise at first.
        step: the next one to do.
        denoised: as the last step takes the latents to be in the end.
    """

    latents: Tensor
    scheduler: Scheduler
    step_cache: StepCache
    step: int = 0
    denoised: Tensor | None = None

    @property
    def num_steps(self) -> int:
        return len(self.scheduler.timesteps)

    def state(self) -> dict[str, Any]:
        """Everything that the steps so far have left, as plain values, lists and tensors."""
        solver = {name: value for name in _SOLVER_STATE if (value := getattr(self.scheduler, name, None)) is not None}
        return {"latents": self.latents, "step": self.step, "solver": solver, "step_cache": self.step_cache.state()}

    def restore(self, state: dict[str, Any]) -> None:
        """Stand where another one stood whose `state` this is; the number of steps and the solver are the same."""
        self.latents, self.step = state["latents"], state["step"]
        for name, value in state["solver"].items():
            setattr(self.scheduler, name, value)
        self.step_cache.restore(state["step_cache"])


# What diffusers' multi-step solvers keep from one step to the next.
_SOLVER_STATE: Final = (
    "_step_index",
    "model_outputs",
    "timestep_list",
    "lower_order_nums",
    "this_order",
    "last_sample",
)


def denoise(
    clip: Denoising,
    choose_expert: Callable[[float], Predictor],
    on_step: Callable[[int, Tensor], None] | None = None,
    attempt: Callable[[Callable[[], Any]], Any] = lambda work: work(),
) -> Tensor:
    """Run the steps of one clip that are still to be done.

    Args:
        choose_expert: the expert for a timestep.
        on_step: called with step and timestep after each step; may put other latents into `clip`.
        attempt: does a part of a step that takes much memory, again if it must; nothing has changed in between.
    Returns: (B, C, F, h, w) float32.
    Raises: NumericsError at the first step whose prediction or latents are not finite.
    """
    scheduler, count = clip.scheduler, clip.num_steps
    for step in range(clip.step, count):
        timestep, latents = scheduler.timesteps[step], clip.latents
        choose = partial(choose_expert, float(timestep))
        predict = partial(_predict, choose, latents, timestep.reshape(1))
        sigma, expert = float(scheduler.sigmas[step]), attempt(choose).name
        noise_pred = clip.step_cache.predict(step, sigma, latents, expert, partial(attempt, predict))
        _check_finite(noise_pred, "the transformer's prediction", step, count, timestep)
        latents = scheduler.step(noise_pred, timestep, latents, return_dict=False)[0]
        _check_finite(latents, "the latents", step, count, timestep)
        clip.denoised = clip.latents - sigma * noise_pred
        clip.latents, clip.step = latents, step + 1
        if on_step is not None:
            on_step(step, timestep)
    return clip.latents


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
