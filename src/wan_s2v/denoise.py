"""Sigmas, timesteps, guidance and the step loop of one clip.

The solvers are diffusers' own; only their noise levels are set here, because the official ones differ from diffusers'
defaults (up to 0.008 in sigma, 7e-3 in the result of a toy problem).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, TypeAlias

import numpy as np
import torch
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler
from torch import Tensor

from wan_s2v.errors import NumericsError, UsageError
from wan_s2v.models.transformer import Conditioning, WanS2VTransformer
from wan_s2v.runtime.step_cache import StepCache

NUM_TRAIN_TIMESTEPS: Final = 1000
SCHEDULERS: Final = ("unipc", "dpm++", "euler")
_UNIPC_FIRST_SIGMA: Final = float(np.float32(0.999))  # as a double, 0.999 changes 17 of 44 official tables

Scheduler: TypeAlias = UniPCMultistepScheduler | DPMSolverMultistepScheduler | FlowMatchEulerDiscreteScheduler


def make_scheduler(name: str, num_inference_steps: int, flow_shift: float, device: torch.device | str) -> Scheduler:
    """A solver with the official noise levels, at its first step.

    Args:
        name: "unipc", "dpm++" or "euler".
    Source: Wan-Video/Wan2.2 `wan/utils/fm_solvers_unipc.py`, `fm_solvers.py`; Euler on the levels of "dpm++".
    """
    first = _UNIPC_FIRST_SIGMA if name == "unipc" else 1.0
    base = np.linspace(first, 0, num_inference_steps + 1)[:-1]
    common = {"num_train_timesteps": NUM_TRAIN_TIMESTEPS}
    flow = {"solver_order": 2, "prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": flow_shift}
    scheduler: Scheduler
    if name == "unipc":
        scheduler = UniPCMultistepScheduler(**common, **flow)
        scheduler.set_timesteps(sigmas=base, device=device)
    elif name == "dpm++":
        scheduler = DPMSolverMultistepScheduler(**common, **flow)
        scheduler.set_timesteps(num_inference_steps, device=device)  # resets its history
        _set_noise_levels(scheduler, base, flow_shift, torch.int64)
    elif name == "euler":
        scheduler = FlowMatchEulerDiscreteScheduler(**common, shift=flow_shift)
        scheduler.set_timesteps(num_inference_steps, device=device)
        _set_noise_levels(scheduler, base, flow_shift, torch.float32)  # its step refuses integer timesteps
    else:
        raise UsageError(f"scheduler={name!r} is not known. Choose one of {', '.join(SCHEDULERS)}.")
    scheduler.set_begin_index(0)  # else equal integer timesteps confuse its look-up of the first step
    return scheduler


def _set_noise_levels(scheduler: Scheduler, base: np.ndarray, flow_shift: float, dtype: torch.dtype) -> None:
    """Shift `base` in double precision, then set sigmas (with a final 0) and truncated timesteps."""
    sigmas = flow_shift * base / (1 + (flow_shift - 1) * base)
    scheduler.sigmas = torch.from_numpy(np.append(sigmas, 0.0)).to(torch.float32)
    timesteps = torch.from_numpy((sigmas * NUM_TRAIN_TIMESTEPS).astype(np.int64))
    scheduler.timesteps = timesteps.to(scheduler.timesteps.device, dtype)


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


@dataclass(frozen=True)
class Expert:
    """A transformer with its per-clip constants for every pass that guidance needs."""

    transformer: WanS2VTransformer
    full: Conditioning
    text_only: Conditioning | None
    neither: Conditioning | None

    def predict(self, latents: Tensor, timestep: Tensor, guidance: Guidance) -> Tensor:
        """Guided flow velocity of (B, C, F, h, w) latents, float32."""
        full = self.transformer(latents, timestep, self.full)
        neither = None if self.neither is None else self.transformer(latents, timestep, self.neither)
        if self.text_only is None or guidance.audio_scale is None:
            return full if neither is None else neither + guidance.scale * (full - neither)
        text = self.transformer(latents, timestep, self.text_only)
        guided = text if neither is None else neither + guidance.scale * (text - neither)
        return guided + guidance.audio_scale * (full - text)


def is_high_noise(timestep: float, boundary_ratio: float) -> bool:
    """Whether a timestep in 0…1000 belongs to the high-noise expert."""
    return timestep >= boundary_ratio * NUM_TRAIN_TIMESTEPS


def denoise(
    latents: Tensor,
    scheduler: Scheduler,
    choose_expert: Callable[[float], Expert],
    guidance: Guidance,
    step_cache: StepCache,
    on_step: Callable[[int, Tensor, Tensor], Tensor | None] | None = None,
    attempt: Callable[[Callable[[], Any]], Any] = lambda work: work(),
) -> Tensor:
    """Run all steps of one clip.

    Args:
        latents: (1, C, F, h, w) float32 noise.
        choose_expert: the expert for a timestep.
        step_cache: a new one, which may spare some of the predictions.
        on_step: called with step, timestep and latents after each step; may return replacement latents.
        attempt: does a part of a step that takes much memory, again if it must; nothing has changed in between.
    Raises: NumericsError at the first step whose prediction or latents are not finite.
    """
    count = len(scheduler.timesteps)
    for step, timestep in enumerate(scheduler.timesteps):
        choose = partial(choose_expert, float(timestep))
        predict = partial(_predict, choose, latents, timestep.reshape(1), guidance)
        sigma, transformer = float(scheduler.sigmas[step]), attempt(choose).transformer
        noise_pred = step_cache.predict(step, sigma, latents, transformer, partial(attempt, predict))
        _check_finite(noise_pred, "the transformer's prediction", step, count, timestep)
        latents = scheduler.step(noise_pred, timestep, latents, return_dict=False)[0]
        _check_finite(latents, "the latents", step, count, timestep)
        replacement = on_step(step, timestep, latents) if on_step else None
        latents = latents if replacement is None else replacement
    return latents


def _predict(choose: Callable[[], Expert], latents: Tensor, timestep: Tensor, guidance: Guidance) -> Tensor:
    return choose().predict(latents, timestep, guidance)


def _check_finite(x: Tensor, what: str, step: int, count: int, timestep: Any) -> None:
    if not torch.isfinite(x).all():
        bad = (~torch.isfinite(x)).float().mean().item()
        where = f"step {step + 1} of {count} (timestep {float(timestep):.0f})"
        raise NumericsError(
            f"{bad:.1%} of {what} became NaN or infinite at {where}. "
            "Try torch_dtype=bfloat16 (float16 can overflow), fewer LoRAs, or check the weights with wan-s2v doctor."
        )
