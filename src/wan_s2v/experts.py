"""Which of a model's two experts works at a noise level, and under which guidance.

`transformer` is trained for high noise and `transformer_2` for low noise; where one hands over to the other is a share
of the noise scale, or the ratio of signal to noise that belongs to it. Whatever runs two experts asks here.

Source: Wan-Video/Wan2.2 `wan/text2video.py`.
"""

from __future__ import annotations

import math
from typing import Final, Literal, NamedTuple

from wan_s2v.errors import UsageError

NUM_TRAIN_TIMESTEPS: Final = 1000
ExpertName = Literal["transformer", "transformer_2"]


class Stage(NamedTuple):
    """The expert of a step, and its guidance."""

    expert: ExpertName
    guidance_scale: float


def stage_at(
    timestep: float, boundary_ratio: float | None, guidance_scale: float, guidance_scale_2: float | None = None
) -> Stage:
    """Who predicts at a timestep, and how strictly the prompt is followed.

    Args:
        timestep: what the network is told, 0…1000.
        boundary_ratio: share of the noise scale from which on the high-noise expert works; None with one transformer.
        guidance_scale, guidance_scale_2: of the high-noise and the low-noise expert; the second is the first if None.
    """
    if boundary_ratio is None or timestep >= boundary_ratio * NUM_TRAIN_TIMESTEPS:
        return Stage("transformer", guidance_scale)
    return Stage("transformer_2", guidance_scale if guidance_scale_2 is None else guidance_scale_2)


def snr_at(noise_level: float) -> float:
    """Signal-to-noise ratio of latents (1 - s) · signal + s · noise, with s the noise level in 0…1 (without 0)."""
    return ((1 - noise_level) / noise_level) ** 2


def settled_boundary(boundary_ratio: float | None, boundary_snr: float | None) -> float | None:
    """The boundary given as either. Raises: UsageError for both, or a ratio that is none."""
    if boundary_snr is None:
        return boundary_ratio
    if boundary_ratio is not None:
        raise UsageError("boundary_ratio and boundary_snr are both given. Give one of them.")
    return boundary_at_snr(boundary_snr)


def boundary_at_snr(snr: float) -> float:
    """The boundary ratio at which latents have this signal-to-noise ratio; the inverse of `snr_at`.

    Raises: UsageError unless it is a number above 0.
    """
    if isinstance(snr, bool) or not isinstance(snr, int | float) or not 0 < snr < math.inf:
        raise UsageError(
            f"boundary_snr={snr!r} is not accepted. Give a ratio above 0, such as 0.0204 (boundary_ratio 0.875, that of"
            " T2V-A14B)."
        )
    return 1 / (1 + math.sqrt(snr))
