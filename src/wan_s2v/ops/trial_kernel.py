"""The smallest kernel: whether Triton can build and run anything here."""

from __future__ import annotations

import torch
import triton
import triton.language as tl


def try_kernel(device: str) -> None:
    """Raises: whatever Triton raises where it has no compiler, no driver, or a GPU that it does not know."""
    written = torch.zeros(1, device=device)
    _write_one[(1,)](written)
    if written.item() != 1:
        raise RuntimeError("a kernel ran without effect")


@triton.jit
def _write_one(out_ptr):
    tl.store(out_ptr, 1.0)
