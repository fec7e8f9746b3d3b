"""Linear layers with what follows them in the same kernel."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from wan_s2v.ops.dispatch import runs_kernels


def linear_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """GELU in its tanh form of x (..., K) · weight (N, K)ᵀ + bias (N,).

    cuBLASLt applies it before the product is rounded and leaves memory: a pass over (..., N) less.
    """
    if runs_kernels(x) and x.dtype == weight.dtype:
        product = torch._addmm_activation(bias, x.flatten(0, -2), weight.t(), use_gelu=True)
        return product.unflatten(0, x.shape[:-1])
    return F.gelu(F.linear(x, weight, bias), approximate="tanh")
