"""The transformer of T2V-A14B, I2V-A14B and TI2V-5B: to diffusers its `WanTransformer3DModel`, inside S2V's block.

Config and tensor names are those of diffusers' class, whose pipelines can call it. Our own pipelines call `predict`,
which is given what does not change from step to step: `prepare_frame` and `prepare_text` make it once per video.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

import torch
from diffusers import WanTransformer3DModel
from diffusers.configuration_utils import register_to_config
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from torch import Tensor, nn

from wan_s2v.errors import UsageError
from wan_s2v.models.backbone import Backbone, ConditionEmbedder, TextContext, WanBlock
from wan_s2v.models.tokens import TokenLayout
from wan_s2v.ops.norm import Stream
from wan_s2v.ops.rope import RotaryTable, rotary_table

_USUAL: Final = (True, "rms_norm_across_heads", None, None, None)


@dataclass(frozen=True)
class Frame:
    """Tokens of a video, and their positions."""

    layout: TokenLayout
    rotary: RotaryTable


@dataclass(frozen=True)
class Times:
    """What the network is told of time.

    Args:
        timesteps: (B, S) in 0…1000, of stretches of tokens.
        length: tokens in a stretch; the last one has all that remain.
    """

    timesteps: Tensor
    length: int

    @classmethod
    def of(cls, timestep: Tensor) -> Times:
        """From one timestep per sample (B,), or one per token (B, L), equal neighbours being one stretch."""
        if timestep.ndim == 1:
            return cls(timestep[:, None], 1)
        changes = (timestep[:, 1:] != timestep[:, :-1]).any(dim=0).nonzero()[:, 0].add(1).tolist()
        length = math.gcd(*changes) or timestep.shape[1]
        return cls(timestep[:, : max(changes, default=0) + 1 : length], length)


class WanVideoTransformer(Backbone, WanTransformer3DModel):
    """Predicts the flow velocity of video latents from noise and a prompt; arguments as diffusers' class has them.

    Layers for pictures beside the prompt, which only Wan2.1 has, are not made.
    """

    _supports_gradient_checkpointing = False
    _no_split_modules = ["WanBlock"]  # noqa: RUF012 - diffusers reads a list
    _repeated_blocks = ["WanBlock"]  # noqa: RUF012
    _cp_plan = None  # diffusers' own splits blocks of another kind

    @register_to_config
    def __init__(
        self,
        patch_size: tuple[int, ...] = (1, 2, 2),
        num_attention_heads: int = 40,
        attention_head_dim: int = 128,
        in_channels: int = 16,
        out_channels: int = 16,
        text_dim: int = 4096,
        freq_dim: int = 256,
        ffn_dim: int = 13824,
        num_layers: int = 40,
        cross_attn_norm: bool = True,
        qk_norm: str | None = "rms_norm_across_heads",
        eps: float = 1e-6,
        image_dim: int | None = None,
        added_kv_proj_dim: int | None = None,
        rope_max_seq_len: int = 1024,
        pos_embed_seq_len: int | None = None,
    ) -> None:
        super(WanTransformer3DModel, self).__init__()  # whose own parts are not wanted
        found = (cross_attn_norm, qk_norm, image_dim, added_kv_proj_dim, pos_embed_seq_len)
        if found != _USUAL:
            raise UsageError(
                f"cross_attn_norm, qk_norm, image_dim, added_kv_proj_dim and pos_embed_seq_len are {found}; accepted is"
                f" {_USUAL}, as in every Wan2.2 model. Use diffusers' WanTransformer3DModel for others."
            )
        dim = num_attention_heads * attention_head_dim
        self.patch_size = (patch_size[0], patch_size[1], patch_size[2])
        self.patch_embedding = nn.Conv3d(in_channels, dim, self.patch_size, stride=self.patch_size)
        self.condition_embedder = ConditionEmbedder(dim, text_dim, freq_dim)
        self.blocks = nn.ModuleList(WanBlock(dim, num_attention_heads, ffn_dim, eps) for _ in range(num_layers))
        self.proj_out = nn.Linear(dim, out_channels * math.prod(self.patch_size))
        self.scale_shift_table = nn.Parameter(torch.randn(1, 2, dim) / dim**0.5)
        self.blocks_in_turn = None

    def prepare_frame(self, latents: Tensor) -> Frame:
        """Tokens and positions of latents (B, C, F, h, w) of this size, on their device."""
        counts = [size // patch for size, patch in zip(latents.shape[2:], self.patch_size, strict=True)]
        positions = torch.cartesian_prod(*(torch.arange(count, device=latents.device) for count in counts))
        table = rotary_table(positions, self.config.attention_head_dim)
        return Frame(TokenLayout(latents.shape[2], counts[1], counts[2], ()), table)

    def prepare_text(self, prompt_embeds: Tensor) -> TextContext:
        """Keys and values of prompts (B, M, text_dim); padding rows are attended to, as in the official model."""
        return self._text_context(prompt_embeds)

    def predict(self, latents: Tensor, times: Times, frame: Frame, text: TextContext) -> Tensor:
        """Flow velocity.

        Args:
            latents: (B, C, F, h, w), any float dtype; what a model sees beside the noise are further channels.
        Returns: (B, C_out, F, h, w) float32.
        """
        embedding, time_rows = self.condition_embedder.time(times.timesteps)
        stream = Stream(self._patches(self.patch_embedding, latents).contiguous())
        for block, keys_values in zip(self._blocks(), text.keys_values, strict=True):
            block(stream, time_rows, times.length, frame.rotary, keys_values)
        return self._head(stream, embedding, frame.layout, times.length)

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        encoder_hidden_states_image: Tensor | None = None,
        return_dict: bool = True,
        attention_kwargs: dict[str, Any] | None = None,
    ) -> Transformer2DModelOutput | tuple[Tensor]:
        """As in diffusers, but that the prediction is float32 whatever the latents are.

        Args:
            timestep: (B,), or one for each token (B, L).
        Raises: UsageError for arguments that belong to Wan2.1 or to PEFT.
        """
        if encoder_hidden_states_image is not None or attention_kwargs:
            raise UsageError(
                "encoder_hidden_states_image and attention_kwargs are for Wan2.1 and PEFT. Leave them out; LoRAs are"
                " weighted by set_adapters."
            )
        frame, text = self.prepare_frame(hidden_states), self.prepare_text(encoder_hidden_states)
        made = self.predict(hidden_states, Times.of(timestep), frame, text)
        return Transformer2DModelOutput(sample=made) if return_dict else (made,)
