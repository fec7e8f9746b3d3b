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
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
