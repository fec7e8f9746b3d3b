"""Layers that blocks and audio injectors share."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wan_s2v.ops.attention import attention
from wan_s2v.ops.eight_bit import LARGEST, Quantized, gelu_rows
from wan_s2v.ops.linear import linear_gelu
from wan_s2v.ops.rope import RotaryTable, norm_and_turn


class KeysValues(NamedTuple):
    """Keys and values of an attention, ready for use: each (B, M, N, D)."""

    k: Tensor
    v: Tensor


Hidden: TypeAlias = Tensor | Quantized  # tokens on their way into a linear layer, which may want them rounded


def input_dtype(layer: nn.Module) -> torch.dtype:
    """In which a linear layer wants its tokens: that of its weight, unless it says otherwise."""
    return getattr(layer, "input_dtype", None) or layer.get_parameter("weight").dtype


def in_parts(work: Callable[[Hidden, slice], Tensor], x: Hidden, num_parts: int) -> Tensor:
    """What `work` makes of (tokens, their place in x), for a part of the tokens at a time.

    A part needs memory of its own only while its turn lasts. Results take the place of the tokens that they are made
    of, where they are of their kind.

    Args:
        x: (B, L, C); it may be overwritten.
        num_parts: nearly equal ones.
    Returns: (B, L, channels that `work` makes).
    """
    if num_parts == 1:
        return work(x, slice(None))
    values, out = _values(x), None
    step = -(-values.shape[1] // num_parts)
    for start in range(0, values.shape[1], step):
        place = slice(start, start + step)
        tokens = Quantized(x.values[:, place], x.scale[:, place]) if isinstance(x, Quantized) else x[:, place]
        made = work(tokens, place)
        if out is None:
            shape = (*values.shape[:-1], made.shape[-1])
            fits = made.dtype == values.dtype and shape == values.shape and not torch.is_grad_enabled()
            out = values if fits else made.new_empty(shape)
        out[:, place] = made
        del made  # before the next one is made
    assert out is not None
    return out


def _values(x: Hidden) -> Tensor:
    return x.values if isinstance(x, Quantized) else x


class RMSNorm(nn.Module):
    """RMS norm over the full width, before the split into heads, which are then turned where a table is given."""

    def __init__(self, dim: int, num_heads: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.num_heads, self.eps = num_heads, eps

    def forward(self, x: Tensor, rotary: RotaryTable | None = None) -> Tensor:
        """(B, L, C), which may be overwritten → heads (B, L, N, D)."""
        return norm_and_turn(x, self.weight, self.eps, self.num_heads, rotary)


class Attention(nn.Module):
    """Multi-head attention with RMS-normalised queries and keys; parameter names as in diffusers' Wan.

    `attend` is the operation at its heart, (q, k, v) → (B, L, C): another may be put there from outside. So may
    `num_parts`, in which the tokens that attend take their turns; keys and values of all are there meanwhile.
    """

    attend: Callable[[Tensor, Tensor, Tensor], Tensor]

    def __init__(self, dim: int, num_heads: int, eps: float) -> None:
        super().__init__()
        self.num_heads, self.attend, self.num_parts = num_heads, attention, 1
        self.to_q = nn.Linear(dim, dim)
        self.to_k = nn.Linear(dim, dim)
        self.to_v = nn.Linear(dim, dim)
        self.to_out = nn.ModuleList([nn.Linear(dim, dim)])
        self.norm_q = RMSNorm(dim, num_heads, eps)
        self.norm_k = RMSNorm(dim, num_heads, eps)

    @property
    def input_dtype(self) -> torch.dtype:
        """In which it wants the tokens that it attends from."""
        return input_dtype(self.to_q)

    def keys_values(self, context: Hidden, rotary: RotaryTable | None = None) -> KeysValues:
        """Keys and values of (B, M, C) tokens; computed once where the context does not change with the step."""
        context = context.to(input_dtype(self.to_k)) if isinstance(context, Tensor) else context
        values = self.to_v(context).unflatten(-1, (self.num_heads, -1))
        return KeysValues(self.norm_k(self.to_k(context), rotary), values)

    def forward(self, x: Hidden, keys_values: KeysValues | None = None, rotary: RotaryTable | None = None) -> Tensor:
        """Attend from x (B, L, C) to given keys and values, or to x itself; `rotary` turns q and own k.

        Where there are more keys than batches, the tokens are shared out among them in order: frame f attends to the
        sound of frame f. x may be overwritten.
        """
        k, v = self.keys_values(x, rotary) if keys_values is None else keys_values

        def attend(part: Hidden, tokens: slice) -> Tensor:
            q = self.norm_q(self.to_q(part), None if rotary is None else rotary.of(tokens))
            batch, length = q.shape[:2]
            attended = self.attend(q.reshape(k.shape[0], -1, *q.shape[2:]), k, v)
            del q
            return self.to_out[0](attended.reshape(batch, length, -1))

        return in_parts(attend, x, self.num_parts if k.shape[0] == _values(x).shape[0] else 1)


class GELULinear(nn.Module):
    """A linear layer and GELU in its tanh form."""

    def __init__(self, in_dim: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Linear(in_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return linear_gelu(x, self.proj.weight, self.proj.bias)


class FeedForward(nn.Module):
    """Linear layer, GELU, linear layer; parameter names as in diffusers' Wan.

    `num_parts`, in which the tokens take their turns, may be set from outside.
    """

    def __init__(self, dim: int, inner_dim: int) -> None:
        super().__init__()
        self.num_parts = 1
        self.net = nn.ModuleList([GELULinear(dim, inner_dim), nn.Identity(), nn.Linear(inner_dim, dim)])

    @property
    def input_dtype(self) -> torch.dtype:
        """In which it wants its tokens."""
        return input_dtype(self.net[0].get_submodule("proj"))

    def forward(self, x: Hidden) -> Tensor:
        """(B, L, C), which may be overwritten → (B, L, C)."""
        return in_parts(lambda part, _tokens: self._apply_to(part), x, self.num_parts)

    def _apply_to(self, x: Hidden) -> Tensor:
        first, last = self.net[0], self.net[2]
        if (wanted := input_dtype(last)) in LARGEST:
            return last(gelu_rows(first.get_submodule("proj")(x), wanted))
        return last(first(x))


class MLP(nn.Module):
    """Two linear layers under a name of their own: linear_1, activation, linear_2."""

    def __init__(self, in_dim: int, dim: int, activation: str) -> None:
        super().__init__()
        self.activation = activation
        self.linear_1 = nn.Linear(in_dim, dim)
        self.linear_2 = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.linear_1(x)
        hidden = F.silu(hidden) if self.activation == "silu" else F.gelu(hidden, approximate="tanh")
        return self.linear_2(hidden)


def sinusoidal_embedding(timestep: Tensor, dim: int) -> Tensor:
    """(B,) timesteps → (B, dim) float32: cosines, then sines, of t · 10000^(-i / (dim/2)), in float64 inside."""
    half = dim // 2
    frequencies = 10_000.0 ** (-torch.arange(half, dtype=torch.float64, device=timestep.device) / half)
    angles = timestep.double()[:, None] * frequencies
    return torch.cat((angles.cos(), angles.sin()), dim=1).float()


def linear_float32(x: Tensor, layer: nn.Linear) -> Tensor:
    """Apply a linear layer in float32 whatever the dtype of its weights."""
    return F.linear(x.float(), layer.weight.float(), layer.bias.float())
