"""Linear layers whose weight stays in memory as it was stored, in fewer bits than it computes in.

They stand in for `nn.Linear` wherever a checkpoint brings such weights; `weight` gives the expanded matrix anew each
time it is asked for, so that code which reads it need not know. Slower than a plain layer by one pass over the weight.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wan_s2v.ops.gguf import dequantize


class FixedDtype(nn.Module):
    """A module whose buffers follow the model to another device, but not into another dtype."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        kept, self._buffers = self._buffers, {}
        super()._apply(fn, recurse)
        self._buffers = {name: None if buffer is None else _moved(buffer, fn) for name, buffer in kept.items()}
        return self


def _moved(buffer: Tensor, fn: Callable[[Tensor], Tensor]) -> Tensor:
    probe = fn(buffer.new_empty(0))
    return fn(buffer) if probe.dtype == buffer.dtype else buffer.to(probe.device)


class PackedLinear(FixedDtype, ABC):
    """A linear layer with a packed weight, computing in `dtype`, which `.to` changes.

    Args:
        in_features, out_features: K and N.
        bias: (N,) or None.
    """

    def __init__(self, in_features: int, out_features: int, bias: nn.Parameter | None, dtype: torch.dtype) -> None:
        super().__init__()
        self.in_features, self.out_features, self.dtype = in_features, out_features, dtype
        self.bias = bias

    @property
    def input_dtype(self) -> torch.dtype:
        """In which it wants its tokens."""
        return self.dtype

    @property
    @abstractmethod
    def weight(self) -> Tensor:
        """(N, K) in the dtype that the layer computes in; made on the spot."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., K) → (..., N)."""
        return F.linear(x, self.weight, self.bias)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, dtype={self.dtype}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        super()._apply(fn, recurse)
        self.dtype = fn(torch.empty(0, dtype=self.dtype)).dtype
        return self


class ScaledLinear(PackedLinear):
    """A weight in float8, with one scale for all of it or for each row.

    Args:
        values: (N, K) float8.
        scale: (1, 1) or (N, 1) float32.
    """

    values: Tensor
    scale: Tensor

    def __init__(self, values: Tensor, scale: Tensor, bias: nn.Parameter | None, dtype: torch.dtype) -> None:
        super().__init__(values.shape[1], values.shape[0], bias, dtype)
        self.register_buffer("values", values)
        self.register_buffer("scale", scale)

    @property
    def weight(self) -> Tensor:
        return self.values.float().mul_(self.scale).to(self.dtype)


class GGUFLinear(PackedLinear):
    """A weight in blocks of a GGUF format.

    Args:
        blocks: (N, bytes) uint8.
        kind: see `ops.gguf.BLOCKS`.
    """

    blocks: Tensor

    def __init__(
        self, blocks: Tensor, kind: str, in_features: int, bias: nn.Parameter | None, dtype: torch.dtype
    ) -> None:
        super().__init__(in_features, blocks.shape[0], bias, dtype)
        self.kind = kind
        self.register_buffer("blocks", blocks)

    @property
    def weight(self) -> Tensor:
        return dequantize(self.blocks, self.kind, self.dtype)
