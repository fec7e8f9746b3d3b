"""The S2V transformer: one step is `noise_pred = transformer(latents, timestep, conditioning)`.

Everything that does not change from step to step is computed once per clip by `prepare_scene`, `prepare_text` and
`prepare_audio` and handed in as `Conditioning`. The residual stream, norms and modulation are float32; linear layers
and attention run in the dtype of the weights.

Source: Wan-Video/Wan2.2 `wan/modules/s2v/model_s2v.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from wan_s2v.models.audio_injection import AudioInjector, AudioModulation, CausalAudioEncoder
from wan_s2v.models.backbone import Backbone, ConditionEmbedder, TextContext, WanBlock
from wan_s2v.models.layers import KeysValues
from wan_s2v.models.motion import KEEP_ALL, MotionPacker
from wan_s2v.models.tokens import Grid, TokenLayout
from wan_s2v.ops.norm import Stream, Update
from wan_s2v.ops.rope import RotaryTable, rotary_table


@dataclass(frozen=True)
class Scene:
    """What the picture brings to a clip: reference, motion and pose tokens, and all positions."""

    layout: TokenLayout
    rotary: RotaryTable
    context_tokens: Tensor  # (B, reference + motion tokens, C) float32
    pose_tokens: Tensor  # (B or 1, noise tokens or 1, C) float32, with the type vector of noise tokens
    context_modulation: Tensor  # (1, 6, 1, C) float32, of timestep 0


@dataclass(frozen=True)
class AudioContext:
    """Keys, values and AdaIN of a clip's audio for every injection."""

    keys_values: tuple[KeysValues, ...]
    modulations: tuple[AudioModulation, ...] | None


@dataclass(frozen=True)
class Conditioning:
    """All per-clip constants of one pass (with prompt and sound, or without)."""

    scene: Scene
    text: TextContext
    audio: AudioContext


class WanS2VTransformer(Backbone, ModelMixin, ConfigMixin):
    """Predicts the flow velocity of video latents from noise, a reference, speech, a prompt and a pose.

    Args:
        patch_size: (time, rows, columns) of a latent patch.
        in_channels, out_channels, pose_channels: channels of noisy, predicted and pose latents.
        text_dim, text_len: width and padded length of prompt embeddings.
        audio_dim, num_audio_layers: width and number of the speech encoder's hidden states.
        num_audio_tokens: audio tokens per latent frame, before the learned padding token.
        audio_inject_layers: blocks after which audio is injected, ascending.
        use_adain: whether the audio also modulates the injection's queries.
        motion_drop_mode: how hidden motion frames are left out in training, "padd" or "drop".
        motion_buckets: latent frames of history at patch x1, x2 and x4, newest first; shorter for a shorter memory.
    """

    _supports_gradient_checkpointing = False
    _no_split_modules = ["WanBlock"]  # noqa: RUF012 - diffusers reads a list

    @register_to_config
    def __init__(
        self,
        patch_size: tuple[int, int, int] = (1, 2, 2),
        in_channels: int = 16,
        out_channels: int = 16,
        pose_channels: int = 16,
        num_attention_heads: int = 40,
        attention_head_dim: int = 128,
        ffn_dim: int = 13824,
        num_layers: int = 40,
        freq_dim: int = 256,
        text_dim: int = 4096,
        text_len: int = 512,
        eps: float = 1e-6,
        audio_dim: int = 1024,
        num_audio_layers: int = 25,
        num_audio_tokens: int = 4,
        audio_inject_layers: tuple[int, ...] = (0, 4, 8, 12, 16, 20, 24, 27, 30, 33, 36, 39),
        use_adain: bool = True,
        motion_drop_mode: str = "padd",
        motion_buckets: tuple[int, ...] = (1, 2, 16),
    ) -> None:
        super().__init__()
        dim = num_attention_heads * attention_head_dim
        self.patch_size = (patch_size[0], patch_size[1], patch_size[2])
        self.audio_inject_layers = tuple(audio_inject_layers)
        self.patch_embedding = nn.Conv3d(in_channels, dim, self.patch_size, stride=self.patch_size)
        self.pose_embedding = nn.Conv3d(pose_channels, dim, self.patch_size, stride=self.patch_size)
        self.token_type_embedding = nn.Embedding(3, dim)  # noise, reference, motion
        self.motion_packer = MotionPacker(in_channels, dim, self.patch_size, motion_drop_mode, tuple(motion_buckets))
        self.condition_embedder = ConditionEmbedder(dim, text_dim, freq_dim)
        self.audio_encoder = CausalAudioEncoder(num_audio_layers, audio_dim, dim, num_audio_tokens, use_adain)
        self.audio_injector = AudioInjector(dim, num_attention_heads, len(audio_inject_layers), use_adain, eps)
        self.blocks = nn.ModuleList(WanBlock(dim, num_attention_heads, ffn_dim, eps) for _ in range(num_layers))
        self.scale_shift_table = nn.Parameter(torch.randn(1, 2, dim) / dim**0.5)
        self.proj_out = nn.Linear(dim, out_channels * self.patch_size[0] * self.patch_size[1] * self.patch_size[2])
        self.blocks_in_turn = None

    def prepare_scene(
        self,
        reference_latents: Tensor,
        num_latent_frames: int,
        *,
        motion_latents: Tensor | None = None,
        pose_latents: Tensor | None = None,
        add_last_motion: int = KEEP_ALL,
    ) -> Scene:
        """Tokens and positions that stay the same over the steps of a clip.

        Args:
            reference_latents: (B, C, 1, h, w).
            num_latent_frames: F of the clip.
            motion_latents: (B, C, Fm, h, w), or None where the first clip starts without motion tokens.
            pose_latents: (B, C_pose, F, h, w), or None for no pose (as zeros: only the bias acts).
            add_last_motion: see `MotionPacker.forward`.
        """
        types = self.token_type_embedding.weight.float()
        context = [self._patches(self.patch_embedding, reference_latents) + types[1]]
        grids: tuple[Grid, ...] = ()
        if motion_latents is not None:
            motion, grids = self.motion_packer(motion_latents, add_last_motion)
            context.append(motion.float() + types[2])
        height, width = reference_latents.shape[-2:]
        layout = TokenLayout(num_latent_frames, height // self.patch_size[1], width // self.patch_size[2], grids)
        table = rotary_table(layout.positions().to(reference_latents.device), self.config.attention_head_dim)
        if pose_latents is None:
            assert self.pose_embedding.bias is not None
            pose = self.pose_embedding.bias.float()[None, None]
        else:
            pose = self._patches(self.pose_embedding, pose_latents)
        _, rows = self.condition_embedder.time(torch.zeros(1, 1, device=reference_latents.device))
        return Scene(layout, table, torch.cat(context, dim=1), pose + types[0], rows)

    def prepare_text(self, prompt_embeds: Sequence[Tensor]) -> TextContext:
        """Keys and values of the prompt.

        Args:
            prompt_embeds: one (L, text_dim) tensor per sample, L at most text_len; padding rows are attended to, as in
                the official model.
        """
        dtype = self.condition_embedder.text_embedder.linear_1.weight.dtype
        padded = torch.zeros(len(prompt_embeds), self.config.text_len, self.config.text_dim, dtype=dtype)
        padded = padded.to(self.patch_embedding.weight.device)
        for row, embeds in zip(padded, prompt_embeds, strict=True):
            row[: embeds.shape[0]] = embeds[: self.config.text_len]
        return self._text_context(padded)

    def prepare_audio(self, audio_features: Tensor, motion_frames: int) -> AudioContext:
        """Keys, values and AdaIN of a clip's speech features.

        Args:
            audio_features: (B, layers, C_audio, frames of the clip).
            motion_frames: video frames of history; the first column stands in for their sound, as in the official
                model, which never shows it the real one.
        """
        history = audio_features[..., :1].expand(*audio_features.shape[:-1], motion_frames)
        embeds = self.audio_encoder(torch.cat((history, audio_features), dim=-1))
        skip = (motion_frames + 3) // 4
        summary = None if embeds.summary is None else embeds.summary[:, skip:]
        embeds = embeds._replace(tokens=embeds.tokens[:, skip:], summary=summary)
        return AudioContext(self.audio_injector.keys_values(embeds), self.audio_injector.modulations(embeds))

    def forward(self, latents: Tensor, timestep: Tensor, conditioning: Conditioning) -> Tensor:
        """Flow velocity of the noisy latents.

        Args:
            latents: (B, C, F, h, w), any float dtype.
            timestep: (B,) or (1,) in 0…1000.
        Returns: (B, C_out, F, h, w) float32.
        """
        scene = conditioning.scene
        noise = self._patches(self.patch_embedding, latents).add_(scene.pose_tokens)
        x = torch.cat((noise, scene.context_tokens.expand(latents.shape[0], -1, -1)), dim=1)
        del noise
        embedding, noise_rows = self.condition_embedder.time(timestep[:, None])
        context_rows = scene.context_modulation.expand_as(noise_rows)
        time_rows = torch.cat((noise_rows, context_rows), dim=2)
        stream = Stream(x)
        del x
        for index, block in enumerate(self._blocks()):
            text = conditioning.text.keys_values[index]
            block(stream, time_rows, scene.layout.num_noise, scene.rotary, text)
            if index in self.audio_inject_layers:
                self._inject_audio(stream, self.audio_inject_layers.index(index), conditioning)
        return self._head(stream, embedding, scene.layout, scene.layout.num_noise)

    def _inject_audio(self, stream: Stream, injection: int, conditioning: Conditioning) -> None:
        """Leave the audio's update of the noise tokens pending."""
        layout, audio = conditioning.scene.layout, conditioning.audio
        affine = None if audio.modulations is None else audio.modulations[injection]
        norm = self.audio_injector.norm(affine, layout.num_noise, layout.tokens_per_frame)
        hidden = stream.norm(norm, self.audio_injector.dtype)
        stream.pending = Update(self.audio_injector(hidden, injection, audio.keys_values[injection]))
