"""Norms and the two-part modulation of the S2V blocks.

Noise tokens are modulated by the current timestep, reference and motion tokens by timestep 0. Statistics and
modulation are float32 whatever the weights are; the caller names the dtype of the result.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class TwoPart(NamedTuple):
    """One modulation value for noise tokens and one for context tokens: each broadcastable to (B, 1, C), float32."""

    noise: Tensor
    context: Tensor


def layer_norm(x: Tensor, eps: float, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
    """LayerNorm over the last axis, computed and returned in float32."""
    weight = None if weight is None else weight.float()
    bias = None if bias is None else bias.float()
    return F.layer_norm(x.float(), x.shape[-1:], weight, bias, eps)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x²) + eps) · weight over the last axis; float32 inside, dtype of x out."""
    return F.rms_norm(x.float(), x.shape[-1:], weight.float(), eps).to(x.dtype)


def modulated_norm(x: Tensor, shift: TwoPart, scale: TwoPart, num_noise: int, eps: float, dtype: torch.dtype) -> Tensor:
    """LayerNorm(x) · (1 + scale) + shift, with the context's values from token `num_noise` on.

    Args:
        x: (B, L, C) float32.
    Returns: (B, L, C) in `dtype`.
    """
    normed = layer_norm(x, eps)
    out = torch.empty(x.shape, dtype=dtype, device=x.device)
    out[:, :num_noise] = torch.addcmul(shift.noise, normed[:, :num_noise], 1 + scale.noise)
    out[:, num_noise:] = torch.addcmul(shift.context, normed[:, num_noise:], 1 + scale.context)
    return out


def gated_residual(x: Tensor, update: Tensor, gate: TwoPart, num_noise: int) -> Tensor:
    """x + update · gate, with the context's gate from token `num_noise` on; (B, L, C) float32."""
    noise = torch.addcmul(x[:, :num_noise], update[:, :num_noise].float(), gate.noise)
    context = torch.addcmul(x[:, num_noise:], update[:, num_noise:].float(), gate.context)
    return torch.cat((noise, context), dim=1)
