"""Which implementation of an operation runs: a kernel of ours on the GPU, plain PyTorch everywhere else.

The kernels have no backward pass, and `torch.compile` fuses the plain operations itself; so training and compiled code
run the plain ones.
"""

from __future__ import annotations

import functools
import importlib.util

import torch
from torch import Tensor


def runs_kernels(x: Tensor) -> bool:
    """Whether an operation on x is one of our kernels."""
    return x.is_cuda and not torch.is_grad_enabled() and not torch.compiler.is_compiling() and has_triton()


@functools.cache
def has_triton() -> bool:
    """Whether Triton is installed; PyTorch for CUDA brings it on Linux, and the package triton-windows elsewhere."""
    return importlib.util.find_spec("triton") is not None
