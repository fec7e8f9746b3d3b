"""Norms of the residual stream, with what stands around them: the update that comes before and the modulation after.

An S2V block passes over the whole stream for every gate, sum, norm and modulation. Here an update is left pending until
the next norm, which adds it, normalises and modulates in one pass. Values that differ between stretches of tokens
(noise tokens follow the timestep, reference and motion tokens timestep 0, audio each latent frame) are tables with one
row for each stretch. Everything is float32 inside; the caller names the dtype of the result.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from wan_s2v.ops.dispatch import runs_kernels
from wan_s2v.ops.eight_bit import LARGEST, Quantized, plain_quantize_rows


class Rows(NamedTuple):
    """Values of C channels for stretches of tokens.

    Args:
        table: (B or 1, S, C) float32, one row for each stretch.
        length: tokens in a stretch; the last one has all that remain.
    """

    table: Tensor
    length: int


class Update(NamedTuple):
    """What is still to be added to the residual stream.

    Args:
        values: (B, U, C) for the first U tokens; U may be 0.
        gate: factors of the values; 1 if None.
    """

    values: Tensor
    gate: Rows | None = None


class Stream:
    """The residual stream with its pending update, which is let go as soon as it is added.

    Args:
        x: (B, L, C) float32; it may be overwritten.
    """

    def __init__(self, x: Tensor) -> None:
        self.x = x
        self.pending: Update | None = None

    def norm(self, norm: Affine, dtype: torch.dtype) -> Tensor | Quantized:
        """Add what is pending, and normalise: (B, norm.num_tokens, C) in `dtype`."""
        update = self.pending or Update(self.x[:, :0])
        self.pending = None
        self.x, normed = add_and_norm(self.x, update, norm, dtype)
        return normed


class Affine(NamedTuple):
    """LayerNorm with what follows it: norm(x) · weight + bias.

    Args:
        weight, bias: of the same stretches.
        num_tokens: how many of the first tokens are normalised.
    """

    weight: Rows
    bias: Rows
    num_tokens: int
    eps: float


def modulation(shift: Rows, scale: Rows, num_tokens: int, eps: float) -> Affine:
    """norm(x) · (1 + scale) + shift of the first tokens."""
    return Affine(Rows(1 + scale.table, scale.length), shift, num_tokens, eps)


def add_and_norm(x: Tensor, update: Update, norm: Affine, dtype: torch.dtype) -> tuple[Tensor, Tensor | Quantized]:
    """Add a pending update to the stream, and normalise it.

    Args:
        x: (B, L, C) float32; it may be overwritten.
        update: may be overwritten, too.
        dtype: of the normed tokens; 8 bits give them scales.
    Returns: the stream (B, L, C) float32, and (B, norm.num_tokens, C) in `dtype`.
    """
    if runs_kernels(x):
        from wan_s2v.ops.norm_kernel import launch_add_and_norm

        return launch_add_and_norm(x, update, norm, dtype)
    return plain_add_and_norm(x, update, norm, dtype)


def plain_add_and_norm(
    x: Tensor, update: Update, norm: Affine, dtype: torch.dtype
) -> tuple[Tensor, Tensor | Quantized]:
    """`add_and_norm` in plain PyTorch."""
    x = add_update(x, update)
    normed = layer_norm(x[:, : norm.num_tokens], norm.eps)
    rounded = torch.float32 if dtype in LARGEST else dtype

    def modulate(part: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return torch.addcmul(bias, part, weight).to(rounded)

    normed = _by_stretch(modulate, (normed,), (norm.weight, norm.bias))
    return x, plain_quantize_rows(normed, dtype) if dtype in LARGEST else normed


def add_update(x: Tensor, update: Update) -> Tensor:
    """The stream (B, L, C) float32 with an update."""
    count = update.values.shape[1]
    if count == 0:
        return x
    old, values = x[:, :count], update.values.float()
    new = old + values if update.gate is None else _by_stretch(torch.addcmul, (old, values), (update.gate,))
    return new if count == x.shape[1] else torch.cat((new, x[:, count:]), dim=1)


def _by_stretch(operation: Callable[..., Tensor], tokens: tuple[Tensor, ...], rows: tuple[Rows, ...]) -> Tensor:
    """operation(*tokens, *rows), every row against its stretch of the tokens (B, L, C)."""
    tables, length = [r.table for r in rows], rows[0].length
    count = tables[0].shape[1]
    if count == 1:
        return operation(*tokens, *tables)
    full = length * (count - 1)
    if tokens[0].shape[1] == full + length:
        parts = (part.unflatten(1, (count, length)) for part in tokens)
        return operation(*parts, *(table[:, :, None] for table in tables)).flatten(1, 2)
    first = _by_stretch(operation, tuple(t[:, :full] for t in tokens), tuple(Rows(t[:, :-1], length) for t in tables))
    last = operation(*(part[:, full:] for part in tokens), *(table[:, -1:] for table in tables))
    return torch.cat((first, last), dim=1)


def layer_norm(x: Tensor, eps: float, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
    """LayerNorm over the last axis, computed and returned in float32."""
    weight = None if weight is None else weight.float()
    bias = None if bias is None else bias.float()
    return F.layer_norm(x.float(), x.shape[-1:], weight, bias, eps)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x²) + eps) · weight over the last axis, computed and returned in float32.

    PyTorch's own takes a pass over memory for every sign in this formula on a CPU.
    """
    x = x.float()
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x * (norm.square() / x.shape[-1] + eps).rsqrt() * weight.float()
