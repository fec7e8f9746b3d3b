"""Attention as the models call it; which kernel runs is decided here and nowhere else."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Full attention without mask, scaled by 1/sqrt(D).

    Args:
        q: (B, L, N, D).
        k, v: (B, M, N, D), same dtype.
    Returns: (B, L, N·D), same dtype.
    """
    heads = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
