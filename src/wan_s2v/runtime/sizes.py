"""A model and a run as numbers: what time and memory are estimated from. Nothing depends on files or a loaded model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NamedTuple

import torch
from torch import nn

from wan_s2v.models.config import S2V_14B
from wan_s2v.models.tokens import TokenLayout, motion_grids
from wan_s2v.ops.dispatch import kernel_problem
from wan_s2v.runtime.quantization import is_quantized

BlocksRun = Literal["kernels", "eight-bit", "plain"]

TEXT_LEN: Final = 512  # of the models whose config does not state it
FULL_VAE: Final = 126_892_531  # parameters of the Wan2.1 VAE


class PackedSize(NamedTuple):
    """Parameters that stay in memory in fewer bits than they compute in, and the bytes they take."""

    parameters: int
    num_bytes: int


@dataclass(frozen=True)
class ModelSizes:
    """A model as numbers.

    Args:
        config: keywords of the transformer's class.
        parameters: by component: transformer, transformer_2, vae, text_encoder, audio_encoder.
        vae_channels: width of the VAE's decoder at full resolution.
        text_table: parameters of the text encoder that are looked up, not multiplied.
        text_layers: blocks of the text encoder.
        vae_patch: side of the pixel squares that the VAE takes as channels.
        vae_dtype: in which it computes; see `precision.vae_dtype`.
        packed: by component, what stays packed of its parameters.
        blocks_run: how the transformer's blocks do: with our kernels, with them in 8 bits, or in plain PyTorch.
        block_bytes: by transformer, of all its blocks, where they are counted; elsewhere they are derived.
        lora_bytes: of LoRAs that are to be put on each transformer, nearly all of them in its blocks.
    """

    config: Mapping[str, Any]
    parameters: Mapping[str, int]
    vae_channels: int
    text_table: int
    text_layers: int = 24
    vae_patch: int = 1
    vae_dtype: torch.dtype = torch.float32
    packed: Mapping[str, PackedSize] = field(default_factory=dict)
    blocks_run: BlocksRun = "kernels"
    block_bytes: Mapping[str, int] = field(default_factory=dict)
    lora_bytes: int = 0

    @property
    def width(self) -> int:
        """C, channels of a token."""
        return int(self.config["num_attention_heads"] * self.config["attention_head_dim"])

    @property
    def text_len(self) -> int:
        """Tokens of a prompt, its padding included."""
        return int(self.config.get("text_len", TEXT_LEN))

    @property
    def num_layers(self) -> int:
        """Blocks of a transformer."""
        return int(self.config["num_layers"])

    @property
    def block_share(self) -> float:
        """Of the transformer's parameters, those of one block."""
        width, inner = self.width, int(self.config["ffn_dim"])
        count = 8 * width * (width + 1) + 4 * width + (2 * width + 1) * inner + width + 8 * width
        return min(count / self.parameters["transformer"], 1 / self.num_layers)


S2V_14B_SIZES: Final = ModelSizes(
    S2V_14B,
    {
        "transformer": 16_295_755_609,
        "vae": FULL_VAE,
        "text_encoder": 5_680_910_336,
        "audio_encoder": 315_438_720,
    },
    vae_channels=96,
    vae_dtype=torch.float16,
    text_table=256_384 * 4096,
)


@dataclass(frozen=True)
class Work:
    """A run as numbers.

    Args:
        size_multiple: pixels of a token's side.
        clips: latent frames of each clip, and whether it sees motion.
        passes: forwards per step.
        num_prompts: prompts to encode.
        sound_s: seconds of sound that the speech encoder hears.
        has_pose: whether a pose video leads.
        carries_past: whether the VAE's decoder goes on from clip to clip, its past kept meanwhile.
        num_encoded: latent frames of pictures that the VAE encodes at the start.
        num_videos: that go through the transformer together.
    """

    height: int
    width: int
    size_multiple: int
    clips: tuple[tuple[int, bool], ...]
    num_inference_steps: int
    passes: int
    num_prompts: int = 2
    sound_s: float = 0.0
    has_pose: bool = False
    carries_past: bool = False
    num_encoded: int = 1
    num_videos: int = 1

    def layout(self, config: Mapping[str, Any], clip: tuple[int, bool]) -> TokenLayout:
        """Tokens of one clip."""
        rows, columns = self.height // self.size_multiple, self.width // self.size_multiple
        patch = (config["patch_size"][1], config["patch_size"][2])
        buckets = tuple(config.get("motion_buckets", ()))
        motion = motion_grids(rows * patch[0], columns * patch[1], patch, buckets) if clip[1] else ()
        return TokenLayout(clip[0], rows, columns, motion)


def num_tokens(config: Mapping[str, Any], layout: TokenLayout) -> int:
    """That one forward takes; models without sound have no reference and no motion beside the noise."""
    return layout.num_tokens if "audio_inject_layers" in config else layout.num_noise


def how_blocks_run(device: torch.device, *, is_eight_bit: bool) -> BlocksRun:
    """By what the blocks' memory is counted on a device."""
    if device.type != "cuda" or kernel_problem() is not None:
        return "plain"
    return "eight-bit" if is_eight_bit else "kernels"


def loaded_sizes(models: Mapping[str, Any], device: torch.device) -> ModelSizes:
    """Loaded components by name as numbers; their bytes are counted, in whatever form they are.

    Args:
        device: that computes.
    """
    tensors = {name: [*model.parameters(), *model.buffers()] for name, model in models.items()}
    counts = {name: sum(tensor.numel() for tensor in found) for name, found in tensors.items()}
    packed = {name: PackedSize(counts[name], _num_bytes(model)) for name, model in models.items()}
    vae, text = models["vae"], models.get("text_encoder")
    return ModelSizes(
        models["transformer"].config,
        counts,
        vae_channels=vae.config.decoder_base_dim or vae.config.base_dim,
        text_table=0 if text is None else text.get_input_embeddings().weight.numel(),
        text_layers=1 if text is None else text.config.num_layers,
        vae_patch=vae.config.patch_size or 1,
        vae_dtype=vae.dtype,
        packed=packed,
        blocks_run=how_blocks_run(device, is_eight_bit=is_quantized(models["transformer"])),
        block_bytes={name: _num_bytes(models[name].blocks) for name in models if name.startswith("transformer")},
    )


def _num_bytes(module: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))
