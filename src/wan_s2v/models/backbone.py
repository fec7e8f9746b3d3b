"""What the transformers of all Wan2.2 models have in common: embeddings of text and time, the block, the head.

The residual stream, norms and modulation are float32; linear layers and attention run in the dtype of the weights.
Tokens whose timestep is the same are a stretch, and time is a table with one row for each stretch.

Source: Wan-Video/Wan2.2 `wan/modules/model.py`; parameter names as in diffusers' Wan.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from wan_s2v.models.layers import (
    MLP,
    Attention,
    FeedForward,
    KeysValues,
    linear_float32,
    sinusoidal_embedding,
)
from wan_s2v.models.tokens import TokenLayout
from wan_s2v.ops.norm import Affine, Rows, Stream, Update, modulation
from wan_s2v.ops.rope import RotaryTable


@dataclass(frozen=True)
class TextContext:
    """Keys and values of the prompt for every block."""

    keys_values: tuple[KeysValues, ...]


class ConditionEmbedder(nn.Module):
    """Embeddings of text and time."""

    def __init__(self, dim: int, text_dim: int, freq_dim: int) -> None:
        super().__init__()
        self.freq_dim = freq_dim
        self.text_embedder = MLP(text_dim, dim, "gelu")
        self.time_embedder = MLP(freq_dim, dim, "silu")
        self.time_proj = nn.Linear(dim, 6 * dim)

    def time(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """(B, S) timesteps of stretches → (B, S, C) for the head and (B, 6, S, C) for the blocks, float32."""
        waves = sinusoidal_embedding(timesteps.flatten(), self.freq_dim).unflatten(0, timesteps.shape)
        hidden = linear_float32(waves, self.time_embedder.linear_1)
        embedding = linear_float32(nn.functional.silu(hidden), self.time_embedder.linear_2)
        rows = linear_float32(nn.functional.silu(embedding), self.time_proj)
        return embedding, rows.unflatten(-1, (6, -1)).transpose(1, 2).contiguous()  # kernels read rows of stretches


class WanBlock(nn.Module):
    """Self-attention, cross-attention to the prompt and feed-forward, modulated by time."""

    def __init__(self, dim: int, num_heads: int, ffn_dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.attn1 = Attention(dim, num_heads, eps)
        self.norm2 = nn.LayerNorm(dim, eps)
        self.attn2 = Attention(dim, num_heads, eps)
        self.ffn = FeedForward(dim, ffn_dim)
        self.scale_shift_table = nn.Parameter(torch.randn(1, 6, dim) / dim**0.5)

    def forward(
        self,
        stream: Stream,
        time_rows: Tensor,
        length: int,
        rotary: RotaryTable,
        text: KeysValues,
    ) -> None:
        """One block on the residual stream; the update of its feed-forward is left pending.

        Args:
            time_rows: (B, 6, S, C), time embeddings of the stretches.
            length: tokens in a stretch; the last one has all that remain.
        """
        num_tokens = stream.x.shape[1]
        rows = (self.scale_shift_table.float()[:, :, None] + time_rows).unbind(1)
        shift1, scale1, gate1, shift2, scale2, gate2 = (Rows(table, length) for table in rows)
        norm1 = modulation(shift1, scale1, num_tokens, self.eps)
        stream.pending = Update(self.attn1(stream.norm(norm1, self.attn1.input_dtype), rotary=rotary), gate1)
        norm2 = self._affine(num_tokens)
        stream.pending = Update(self.attn2(stream.norm(norm2, self.attn2.input_dtype), text))
        norm3 = modulation(shift2, scale2, num_tokens, self.eps)
        stream.pending = Update(self.ffn(stream.norm(norm3, self.ffn.input_dtype)), gate2)

    def _affine(self, num_tokens: int) -> Affine:
        weight, bias = (Rows(value.float()[None, None], num_tokens) for value in (self.norm2.weight, self.norm2.bias))
        return Affine(weight, bias, num_tokens, self.eps)


class Backbone(nn.Module):
    """What the runtime knows of a transformer, and what every one does; those below make the parts.

    `blocks_in_turn` gives the blocks one by one where they are not all at hand: it may be set from outside.
    """

    config: Any
    device: torch.device
    dtype: torch.dtype
    patch_size: tuple[int, int, int]
    patch_embedding: nn.Conv3d
    condition_embedder: ConditionEmbedder
    blocks: nn.ModuleList
    scale_shift_table: nn.Parameter
    proj_out: nn.Linear
    blocks_in_turn: Callable[[Iterable[nn.Module]], Iterator[nn.Module]] | None

    def _text_context(self, prompt_embeds: Tensor) -> TextContext:
        """Keys and values of prompts (B, M, text_dim), padding rows included."""
        embedder = self.condition_embedder.text_embedder
        tokens = embedder(prompt_embeds.to(embedder.linear_1.weight.dtype))
        return TextContext(tuple(block.attn2.keys_values(tokens) for block in self._blocks()))

    def _head(self, stream: Stream, embedding: Tensor, layout: TokenLayout, length: int) -> Tensor:
        """(B, C_out, F, h, w) float32 of the noise tokens; `embedding` (B, S, C) is that of stretches of `length`."""
        table = self.scale_shift_table.float()[:, :, None] + embedding[:, None]
        shift, scale = (Rows(rows, length) for rows in table.unbind(1))
        norm = modulation(shift, scale, layout.num_noise, self.config.eps)
        normed = stream.norm(norm, torch.float32)
        assert isinstance(normed, Tensor)
        tokens = linear_float32(normed, self.proj_out)
        pt, ph, pw = self.patch_size
        grid = tokens.unflatten(1, (layout.num_latent_frames // pt, layout.rows, layout.columns))
        patches = grid.unflatten(-1, (pt, ph, pw, -1))  # (B, f, i, j, p, q, r, C)
        out = patches.permute(0, 7, 1, 4, 2, 5, 3, 6)
        return out.flatten(6, 7).flatten(4, 5).flatten(2, 3)

    def _patches(self, conv: nn.Conv3d, latents: Tensor) -> Tensor:
        """(B, C, F, h, w) → (B, tokens, dim) float32."""
        return conv(latents.to(conv.weight.dtype)).flatten(2).transpose(1, 2).float()

    def _blocks(self) -> Iterator[WanBlock]:
        """Each block is only sure to be at hand until the next one is asked for."""
        for block in self.blocks if self.blocks_in_turn is None else self.blocks_in_turn(self.blocks):
            assert isinstance(block, WanBlock)
            yield block
