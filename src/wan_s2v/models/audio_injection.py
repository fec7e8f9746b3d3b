"""From speech features to cross-attention inside the blocks: the causal audio encoder and the injector.

Both run once per clip except the injector's queries. The encoder computes in float32: it is small, and the official
code does so too.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wan_s2v.models.layers import Attention, Hidden, KeysValues
from wan_s2v.ops.norm import Affine, Rows, layer_norm, modulation

ADAIN_EPS = 1e-5  # differs from every other norm of the model


class AudioEmbeds(NamedTuple):
    """Audio of one clip after the encoder, float32."""

    tokens: Tensor  # (B, F, tokens + 1, C); the last one is learned padding
    summary: Tensor | None  # (B, F, C), the frame's global audio vector; None without AdaIN


class CausalAudioEncoder(nn.Module):
    """Speech features at video rate → audio tokens per latent frame (4 video frames), looking only back in time.

    Source: Wan-Video/Wan2.2 `wan/modules/s2v/audio_utils.py`, `auxi_blocks.py`.
    """

    def __init__(self, num_layers: int, in_dim: int, dim: int, num_tokens: int, with_summary: bool) -> None:
        super().__init__()
        self.num_tokens = num_tokens
        self.layer_weights = nn.Parameter(torch.full((1, num_layers, 1, 1), 0.01))
        self.conv1_local = nn.Conv1d(in_dim, dim // 4 * num_tokens, 3)
        self.conv1_global = nn.Conv1d(in_dim, dim // 4, 3) if with_summary else None
        self.conv2 = nn.Conv1d(dim // 4, dim // 2, 3, stride=2)
        self.conv3 = nn.Conv1d(dim // 2, dim, 3, stride=2)
        self.final_linear = nn.Linear(dim, dim) if with_summary else None
        self.padding_tokens = nn.Parameter(torch.zeros(1, 1, 1, dim))

    def forward(self, audio_features: Tensor) -> AudioEmbeds:
        """audio_features: (B, layers, C_audio, T) → tokens (B, ceil(T/4), tokens + 1, C) and summary."""
        weights = F.silu(self.layer_weights.float())
        mix = (audio_features.float() * weights / weights.sum(dim=1, keepdim=True)).sum(dim=1)
        local = _causal_conv(mix, self.conv1_local).unflatten(1, (self.num_tokens, -1))
        batch = local.shape[0]
        tokens = self._downsample(local.flatten(0, 1)).unflatten(0, (batch, self.num_tokens)).transpose(1, 2)
        padding = self.padding_tokens.float().expand(batch, tokens.shape[1], 1, -1)
        tokens = torch.cat((tokens, padding), dim=2)
        if self.conv1_global is None or self.final_linear is None:
            return AudioEmbeds(tokens, None)
        summary = self._downsample(_causal_conv(mix, self.conv1_global))
        return AudioEmbeds(tokens, F.linear(summary, self.final_linear.weight.float(), self.final_linear.bias.float()))

    def _downsample(self, x: Tensor) -> Tensor:
        """(N, C/4, T) → (N, ceil(T/4), C)."""
        x = _norm_silu(x)
        for conv in (self.conv2, self.conv3):
            x = _norm_silu(_causal_conv(x, conv))
        return x.transpose(1, 2)


def _causal_conv(x: Tensor, conv: nn.Conv1d) -> Tensor:
    """Convolution over time that sees two copies of the first value before the start; float32."""
    assert conv.bias is not None
    padded = F.pad(x, (conv.kernel_size[0] - 1, 0), mode="replicate")
    return F.conv1d(padded, conv.weight.float(), conv.bias.float(), conv.stride)


def _norm_silu(x: Tensor) -> Tensor:
    return F.silu(layer_norm(x.transpose(1, 2), 1e-6)).transpose(1, 2)


class AudioModulation(NamedTuple):
    """AdaIN of one injector: each (B, F, C) float32."""

    shift: Tensor
    scale: Tensor


class AdaIN(nn.Module):
    """LayerNorm whose shift and scale follow the frame's audio."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, 2 * dim)

    def modulation(self, summary: Tensor) -> AudioModulation:
        """summary: (B, F, C) → shift and scale per frame."""
        values = self.linear(F.silu(summary).to(self.linear.weight.dtype)).float()
        return AudioModulation(*(part.contiguous() for part in values.chunk(2, dim=-1)))


class AudioInjector(nn.Module):
    """Cross-attention from the tokens of each latent frame to that frame's audio tokens, after some blocks."""

    def __init__(self, dim: int, num_heads: int, num_injections: int, use_adain: bool, eps: float) -> None:
        super().__init__()
        self.dim, self.eps = dim, eps
        self.attentions = nn.ModuleList(Attention(dim, num_heads, eps) for _ in range(num_injections))
        self.adain = nn.ModuleList(AdaIN(dim) for _ in range(num_injections)) if use_adain else None

    def keys_values(self, embeds: AudioEmbeds) -> tuple[KeysValues, ...]:
        """Keys and values of every injection: (B·F, tokens + 1, N, D) each."""
        tokens = embeds.tokens.flatten(0, 1)
        return tuple(attention.keys_values(tokens) for attention in self._attentions())

    def modulations(self, embeds: AudioEmbeds) -> tuple[AudioModulation, ...] | None:
        """AdaIN shift and scale of every injection; None without AdaIN."""
        if self.adain is None or embeds.summary is None:
            return None
        summary = embeds.summary
        return tuple(layer.modulation(summary) for layer in self.adain if isinstance(layer, AdaIN))

    def norm(self, modulation_of_audio: AudioModulation | None, num_noise: int, tokens_per_frame: int) -> Affine:
        """What makes the queries of an injection from the noise tokens of the stream."""
        if modulation_of_audio is None:
            plain = torch.zeros(1, 1, self.dim, device=self._attentions()[0].to_q.weight.device)
            return modulation(Rows(plain, num_noise), Rows(plain, num_noise), num_noise, self.eps)
        shift, scale = (Rows(values, tokens_per_frame) for values in modulation_of_audio)
        return modulation(shift, scale, num_noise, ADAIN_EPS)

    def forward(self, noise: Hidden, index: int, keys_values: KeysValues) -> Tensor:
        """What injection `index` adds to the normed noise tokens (B, F · tokens per frame, C)."""
        return self._attentions()[index](noise, keys_values)

    @property
    def dtype(self) -> torch.dtype:
        """In which the injections take their tokens."""
        return self._attentions()[0].input_dtype

    def _attentions(self) -> list[Attention]:
        return [layer for layer in self.attentions if isinstance(layer, Attention)]
