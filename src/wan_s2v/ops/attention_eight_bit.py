"""Attention with 8-bit products: queries and keys in int8, probabilities and values in float8 e4m3, sums in float32.

What keeps the error small: every query has a scale of its own, keys one for each 128 tokens, values one for each
channel; and keys are taken relative to their mean, which no softmax sees but which would use up the format's range.
Even steps suit queries and keys, steps that grow with the value suit probabilities. (SageAttention2 does the same.)
"""

from __future__ import annotations

import math
from typing import Final

import torch
from torch import Tensor

from wan_s2v.ops.dispatch import runs_kernels
from wan_s2v.ops.eight_bit import FLOAT8, INT8, LARGEST

KEY_BLOCK: Final = 128  # keys that share a scale
_MEAN_STRIDE: Final = 16  # every so manieth key tells the mean: any vector near it does
_SMALLEST: Final = 1e-12


def attention_eight_bit(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Full attention without mask, scaled by 1/sqrt(D), its products in 8 bits.

    Args:
        q: (B, L, N, D).
        k, v: (B, M, N, D), same dtype.
    Returns: (B, L, N·D), same dtype.
    """
    if runs_kernels(q):
        from wan_s2v.ops.attention_eight_bit_kernel import launch_attention_eight_bit

        return launch_attention_eight_bit(q, k, v, key_mean(k))
    return plain_attention_eight_bit(q, k, v)


def key_mean(k: Tensor) -> Tensor:
    """(B, 1, N, D) float32, about the mean of the keys (B, M, N, D)."""
    return k[:, ::_MEAN_STRIDE].float().mean(dim=1, keepdim=True)


def plain_attention_eight_bit(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """`attention_eight_bit` in plain PyTorch: the same roundings of q, k and v; probabilities stay float32."""
    centred = k.float() - key_mean(k)
    blocks = torch.cat([_rounded(block, (1, 3), INT8) for block in centred.split(KEY_BLOCK, dim=1)], dim=1)
    scores = torch.einsum("blnd,bmnd->bnlm", _rounded(q.float(), (3,), INT8), blocks) / math.sqrt(q.shape[-1])
    out = torch.einsum("bnlm,bmnd->blnd", scores.softmax(dim=-1), _rounded(v.float(), (1,), FLOAT8))
    return out.flatten(2).to(q.dtype)


def _rounded(x: Tensor, axes: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """x through 8 bits and back, with a scale common to `axes`."""
    largest = LARGEST[dtype]
    scale = x.abs().amax(dim=axes, keepdim=True).clamp(min=_SMALLEST) / largest
    scaled = (x / scale).clamp(-largest, largest)
    return ((scaled + 0.5).floor() if dtype == INT8 else scaled.to(dtype).float()) * scale
