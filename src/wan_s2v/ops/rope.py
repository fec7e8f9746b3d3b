"""Rotary position embedding over three axes (time, row, column), real-valued, and the norm that goes before it.

The table is computed once per clip in float64 and stored in float32: float32 angles would be off by 1e-5 at positions
near 1,000, rounding the finished cosines and sines costs 6e-8.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from wan_s2v.ops.dispatch import runs_kernels
from wan_s2v.ops.norm import rms_norm

THETA = 10_000.0


class RotaryTable(NamedTuple):
    """Cosines and sines per token, shared by all heads: each (L, D/2) float32."""

    cos: Tensor
    sin: Tensor

    def of(self, tokens: slice) -> RotaryTable:
        """The rows of some tokens."""
        return RotaryTable(self.cos[tokens], self.sin[tokens])


def axis_widths(head_dim: int) -> tuple[int, int, int]:
    """Channels of a head that turn with time, row and column; 128 gives (44, 42, 42)."""
    spatial = 2 * (head_dim // 6)
    return head_dim - 2 * spatial, spatial, spatial


def rotary_table(positions: Tensor, head_dim: int) -> RotaryTable:
    """Angles of every token.

    Args:
        positions: (L, 3) integers (time, row, column); negative ones turn the other way.
        head_dim: even size of an attention head.
    Source: Wan-Video/Wan2.2 `wan/modules/model.py` (rope_params), as real numbers.
    """
    angles = []
    for axis, width in enumerate(axis_widths(head_dim)):
        exponents = torch.arange(0, width, 2, dtype=torch.float64, device=positions.device) / max(width, 1)
        angles.append(positions[:, axis, None].double() * THETA**-exponents)
    table = torch.cat(angles, dim=1)
    return RotaryTable(table.cos().float(), table.sin().float())


def norm_and_turn(x: Tensor, weight: Tensor, eps: float, num_heads: int, table: RotaryTable | None) -> Tensor:
    """RMS norm of queries or keys over their full width, then the turn of every head.

    Args:
        x: (B, L, C); it may be overwritten.
        table: None leaves the heads unturned.
    Returns: (B, L, N, D), dtype of x.
    """
    if runs_kernels(x):
        from wan_s2v.ops.rope_kernel import launch_norm_and_turn

        return launch_norm_and_turn(x, weight, eps, num_heads, table)
    return plain_norm_and_turn(x, weight, eps, num_heads, table)


def plain_norm_and_turn(x: Tensor, weight: Tensor, eps: float, num_heads: int, table: RotaryTable | None) -> Tensor:
    """`norm_and_turn` in plain PyTorch; float32 until the end."""
    heads = rms_norm(x, weight, eps).unflatten(-1, (num_heads, -1))
    return (heads if table is None else apply_rotary(heads, table)).to(x.dtype)


def apply_rotary(x: Tensor, table: RotaryTable) -> Tensor:
    """Turn channel pairs (2i, 2i+1) of x (B, L, N, D) by the table's angles; computed in float32, same dtype out.

    As products of complex numbers, which a CPU does in one pass.
    """
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)).contiguous())
    turned = pairs * torch.complex(table.cos, table.sin)[:, None]
    return torch.view_as_real(turned).flatten(-2).to(x.dtype)
