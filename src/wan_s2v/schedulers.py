"""diffusers' solvers at the official noise levels.

Only the levels are set here, because the official ones differ from diffusers' defaults (up to 0.008 in sigma, 7e-3 in
the result of a toy problem). They follow from the number of steps and the shift whenever `set_timesteps` is called, so
that diffusers' own pipelines use them too.

Source: Wan-Video/Wan2.2 `wan/utils/fm_solvers_unipc.py`, `fm_solvers.py`; Euler on the levels of "dpm++".
"""

from __future__ import annotations

from typing import Any, Final, TypeAlias

import numpy as np
import torch
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler

from wan_s2v.errors import UsageError
from wan_s2v.experts import NUM_TRAIN_TIMESTEPS

SCHEDULERS: Final = ("unipc", "dpm++", "euler")
_UNIPC_FIRST_SIGMA: Final = float(np.float32(0.999))  # as a double, 0.999 changes 17 of 44 official tables
_Device = torch.device | str | None


class WanUniPCScheduler(UniPCMultistepScheduler):
    """UniPC of order 2; from 0.999 down to 0."""

    def set_timesteps(self, num_inference_steps: int, device: _Device = None) -> None:
        super().set_timesteps(sigmas=_unshifted(_UNIPC_FIRST_SIGMA, num_inference_steps), device=device)
        self.set_begin_index(0)  # else equal integer timesteps confuse its look-up of the first step


class WanDPMScheduler(DPMSolverMultistepScheduler):
    """DPM++ (2M); from 1 down to 0."""

    def set_timesteps(self, num_inference_steps: int, device: _Device = None) -> None:
        super().set_timesteps(num_inference_steps, device=device)  # resets its history
        _set_noise_levels(self, num_inference_steps, self.config.flow_shift, torch.int64)


class WanEulerScheduler(FlowMatchEulerDiscreteScheduler):
    """The plain Euler step; from 1 down to 0."""

    def set_timesteps(self, num_inference_steps: int, device: _Device = None) -> None:
        super().set_timesteps(num_inference_steps, device=device)
        _set_noise_levels(self, num_inference_steps, self.config.shift, torch.float32)  # its step refuses integers


Scheduler: TypeAlias = WanUniPCScheduler | WanDPMScheduler | WanEulerScheduler


def new_scheduler(name: str, flow_shift: float) -> Scheduler:
    """A solver by name: "unipc", "dpm++" or "euler"; its `set_timesteps` sets the official noise levels."""
    flow = {"solver_order": 2, "prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": flow_shift}
    if name == "unipc":
        return WanUniPCScheduler(num_train_timesteps=NUM_TRAIN_TIMESTEPS, **flow)
    if name == "dpm++":
        return WanDPMScheduler(num_train_timesteps=NUM_TRAIN_TIMESTEPS, **flow)
    if name == "euler":
        return WanEulerScheduler(num_train_timesteps=NUM_TRAIN_TIMESTEPS, shift=flow_shift)
    raise UsageError(f"scheduler={name!r} is not known. Choose one of {', '.join(SCHEDULERS)}.")


def make_scheduler(name: str, num_inference_steps: int, flow_shift: float, device: torch.device | str) -> Scheduler:
    """A solver with the official noise levels, at its first step; names as for `new_scheduler`."""
    scheduler = new_scheduler(name, flow_shift)
    scheduler.set_timesteps(num_inference_steps, device=device)
    return scheduler


def _unshifted(first: float, num_inference_steps: int) -> np.ndarray:
    return np.linspace(first, 0, num_inference_steps + 1)[:-1]


def _set_noise_levels(scheduler: Any, num_inference_steps: int, flow_shift: float, dtype: torch.dtype) -> None:
    """Shift levels from 1 in double precision, then set sigmas (with a final 0) and truncated timesteps."""
    base = _unshifted(1.0, num_inference_steps)
    sigmas = flow_shift * base / (1 + (flow_shift - 1) * base)
    scheduler.sigmas = torch.from_numpy(np.append(sigmas, 0.0)).to(torch.float32)
    timesteps = torch.from_numpy((sigmas * NUM_TRAIN_TIMESTEPS).astype(np.int64))
    scheduler.timesteps = timesteps.to(scheduler.timesteps.device, dtype)
    scheduler.set_begin_index(0)
