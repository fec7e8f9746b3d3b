"""Where components live while others work."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def on_device(device: torch.device, module: torch.nn.Module, *, offload: bool) -> Iterator[None]:
    """Have `module` on `device` inside the block; with `offload` it goes back to the CPU afterwards."""
    if next(module.parameters()).device != device:
        module.to(device)
    try:
        yield
    finally:
        if offload and device.type != "cpu":
            module.to("cpu")
            torch.cuda.empty_cache()
