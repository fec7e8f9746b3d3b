"""Which implementation of an operation runs: a kernel of ours on the GPU, plain PyTorch everywhere else.

The kernels have no backward pass, and `torch.compile` fuses the plain operations itself; so training and compiled code
run the plain ones.
"""

from __future__ import annotations

import functools
import importlib.util
from subprocess import SubprocessError

import torch
from torch import Tensor


def runs_kernels(x: Tensor) -> bool:
    """Whether an operation on x is one of our kernels."""
    if not x.is_cuda or torch.is_grad_enabled() or torch.compiler.is_compiling():
        return False
    return kernel_problem() is None


@functools.cache
def kernel_problem(device: str = "cuda") -> str | None:
    """Why our kernels cannot run on the GPU, found by running the smallest one; None if they can."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    try:
        from wan_s2v.ops.trial_kernel import try_kernel

        try_kernel(device)
    except (ImportError, OSError, RuntimeError, SubprocessError) as error:  # no C compiler, an old driver or GPU, …
        return str(error).partition("\n")[0] or type(error).__name__
    return None
