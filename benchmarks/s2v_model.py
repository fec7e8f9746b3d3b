"""What `s2v.py` measures: S2V-14B at full size with random weights, and a tiny model of the same classes.

Speed and memory do not depend on the values of weights, as long as every activation stays finite: matrices are scaled
so that they keep the variance of what they multiply. Weights are drawn where they are used; 22 billion of them take a
second on a GPU and would take many minutes on a CPU.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn
from transformers import ByT5Tokenizer, Wav2Vec2FeatureExtractor

from wan_s2v import WanS2VPipeline
from wan_s2v.models.config import S2V_14B
from wan_s2v.models.transformer import Conditioning, WanS2VTransformer
from wan_s2v.plan import ModelSpec
from wan_s2v.runtime.precision import vae_dtype
from wan_s2v.weights.checkpoint import build_on_meta

SPEC: Final = ModelSpec()  # of both models: stride 8, patch 2, 73 frames of history
_TIMESTEP: Final = 700

Config = Mapping[str, Any]


class Size(NamedTuple):
    """Pixels of a frame, written as 832x480."""

    width: int
    height: int

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"


@dataclass(frozen=True)
class Scale:
    """A model, and how much of it is run.

    Args:
        models: keywords of each component by its name.
        sizes: frames that are measured unless others are asked for.
        frames_per_clip: at the model's rate.
        load_layers: blocks of the checkpoint that is written and loaded.
    """

    name: str
    models: Mapping[str, Config]
    sizes: tuple[Size, ...]
    frames_per_clip: int
    load_layers: int

    @property
    def transformer(self) -> Config:
        return self.models["transformer"]


_SPEECH: Final = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "mask_time_prob": 0.0}

FULL: Final = Scale(
    "S2V-14B",
    {
        "transformer": S2V_14B,
        "vae": {},  # the class's defaults are those of the Wan2.1 VAE
        "text_encoder": {
            "vocab_size": 256_384,
            "d_model": 4096,
            "d_kv": 64,
            "d_ff": 10_240,
            "num_layers": 24,
            "num_heads": 64,
            "feed_forward_proj": "gated-gelu",
        },
        "audio_encoder": _SPEECH
        | {
            "hidden_size": 1024,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "intermediate_size": 4096,
            "conv_bias": True,
        },
    },
    (Size(832, 480), Size(1280, 704)),
    frames_per_clip=80,
    load_layers=8,
)

SMALL: Final = Scale(
    "tiny",
    {
        "transformer": S2V_14B
        | {
            "num_attention_heads": 2,
            "attention_head_dim": 12,
            "ffn_dim": 32,
            "num_layers": 3,
            "freq_dim": 16,
            "text_dim": 16,
            "text_len": 24,
            "audio_dim": 16,
            "audio_inject_layers": (0, 2),
        },
        "vae": {"base_dim": 4, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1},
        "text_encoder": {"vocab_size": 259, "d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2},
        "audio_encoder": _SPEECH
        | {
            "hidden_size": 16,
            "num_hidden_layers": 24,  # as many as there are, for the official code, which fixes them
            "num_attention_heads": 2,
            "intermediate_size": 16,
            "conv_dim": (8,) * 7,
            "num_conv_pos_embeddings": 16,
            "num_conv_pos_embedding_groups": 4,
        },
    },
    (Size(64, 64), Size(96, 64)),
    frames_per_clip=8,
    load_layers=1,
)


def cut_down(transformer: Config, num_layers: int) -> Config:
    """The same transformer at full width with only its first blocks."""
    injections = tuple(layer for layer in transformer["audio_inject_layers"] if layer < num_layers)
    num_layers = min(num_layers, transformer["num_layers"])
    return {**transformer, "num_layers": num_layers, "audio_inject_layers": injections}


@torch.no_grad()
def random_model(name: str, config: Config, dtype: torch.dtype, device: torch.device) -> Any:
    """A component of the pipeline with seeded random weights, drawn on the device that computes."""
    model = nn.Module.to(build_on_meta(name, config), dtype).to_empty(device=device)  # diffusers' own `to` warns
    assert not list(model.buffers()), f"{name} has buffers, which would be left without values"
    if name == "text_encoder":
        model.get_submodule("encoder.embed_tokens").weight = model.get_submodule("shared").weight
    generator = torch.Generator(device).manual_seed(0)
    for path, parameter in model.named_parameters():
        _fill(parameter, path.rpartition(".")[2], generator)
    return model.requires_grad_(False).eval()


def _fill(parameter: nn.Parameter, leaf: str, generator: torch.Generator) -> None:
    is_norm = leaf == "gamma" or (leaf == "weight" and parameter.ndim == 1)
    if is_norm or leaf == "layer_weights":  # the latter are divided by their sum, which must not vanish
        parameter.fill_(1)
        return
    fan_in = parameter[0].numel() if parameter.ndim > 1 else parameter.numel()
    parameter.normal_(std=fan_in**-0.5, generator=generator)


def build_pipeline(
    models: Mapping[str, Config], dtype: torch.dtype, device: torch.device, *, with_text: bool = True
) -> WanS2VPipeline:
    """All components on the device, each in the dtype that it computes in.

    Args:
        dtype: of the transformer.
        with_text: whether to make the text encoder, and a tokenizer of bytes, which needs no file.
    """
    full = torch.float32
    dtypes = {"transformer": dtype, "vae": vae_dtype(full, dtype, device), "audio_encoder": full}
    if with_text:
        dtypes["text_encoder"] = full if dtype == full else torch.bfloat16
    parts = {name: random_model(name, models[name], wanted, device) for name, wanted in dtypes.items()}
    tokenizer = ByT5Tokenizer(extra_ids=0) if with_text else None
    pipeline = WanS2VPipeline(**parts, tokenizer=tokenizer, audio_processor=Wav2Vec2FeatureExtractor(do_normalize=True))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@dataclass(frozen=True)
class Inputs:
    """Random tensors in place of what the encoders give to the transformer.

    Args:
        latents: (1, C, F, h, w) float32, as are the other latents.
        reference: (1, C, 1, h, w).
        motion: (1, C, 19, h, w).
        prompt: (text_len, text_dim) in the dtype of the weights.
        audio: (1, layers, C_audio, T) float32.
        timestep: (1,) int64.
    """

    latents: Tensor
    reference: Tensor
    motion: Tensor
    prompt: Tensor
    audio: Tensor
    timestep: Tensor

    def conditioning(self, transformer: WanS2VTransformer, has_motion: bool) -> Conditioning:
        """What stays the same over the steps of a clip, with or without the frames before it."""
        scene = transformer.prepare_scene(
            self.reference, self.latents.shape[2], motion_latents=self.motion if has_motion else None
        )
        audio = transformer.prepare_audio(self.audio, SPEC.motion_frames)
        return Conditioning(scene, transformer.prepare_text([self.prompt]), audio)

    def predict(self, transformer: WanS2VTransformer, conditioning: Conditioning) -> Tensor:
        """(1, C, F, h, w) float32."""
        return transformer(self.latents, self.timestep, conditioning)


def random_inputs(config: Config, size: Size, num_frames: int, dtype: torch.dtype, device: torch.device) -> Inputs:
    """Seeded inputs of one clip of `num_frames`."""
    generator = torch.Generator(device).manual_seed(1)
    rows, columns = (side // SPEC.size_multiple for side in (size.height, size.width))
    plane = (rows * config["patch_size"][1], columns * config["patch_size"][2])

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device)

    def latents(num_latent_frames: int) -> Tensor:
        return normal(1, config["in_channels"], num_latent_frames, *plane)

    return Inputs(
        latents(num_frames // 4),
        latents(1),
        latents(SPEC.motion_latents),
        normal(config["text_len"], config["text_dim"]).to(dtype),
        normal(1, config["num_audio_layers"], config["audio_dim"], num_frames),
        torch.tensor([_TIMESTEP], device=device),
    )
