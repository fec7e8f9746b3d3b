"""Small pipelines with random weights, built from the real classes, for tests that need no particular numbers."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderKLWan
from transformers import (
    ByT5Tokenizer,
    UMT5Config,
    UMT5EncoderModel,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2Model,
)

from wan_s2v import WanS2VPipeline, WanS2VTransformer
from wan_s2v.family import WanPictureToVideo, WanTextToVideo
from wan_s2v.first_frame import CroppedFrame, StretchedFrame
from wan_s2v.models.video_transformer import WanVideoTransformer
from wan_s2v.schedulers import new_scheduler
from wan_s2v.video_plan import SPECS
from wan_s2v.weights.names import Task


def random_transformer(seed: int = 0, **config: Any) -> WanS2VTransformer:
    torch.manual_seed(seed)
    sizes: dict[str, Any] = {
        "num_attention_heads": 2,
        "attention_head_dim": 12,
        "ffn_dim": 32,
        "num_layers": 2,
        "freq_dim": 16,
        "text_dim": 16,
        "text_len": 24,
        "audio_dim": 16,
        "num_audio_layers": 3,
        "audio_inject_layers": (0,),
    }
    model = WanS2VTransformer(**(sizes | config)).eval()
    for parameter in model.parameters():  # no path may start silent
        torch.nn.init.normal_(parameter, std=0.1)
    return model


def random_pipeline(
    seed: int = 0, *, two_experts: bool = False, vae: dict[str, Any] | None = None, **config: Any
) -> WanS2VPipeline:
    torch.manual_seed(seed)
    vae_sizes = {"base_dim": 4, "z_dim": 16, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1} | (vae or {})
    autoencoder = AutoencoderKLWan(**vae_sizes)
    speech = Wav2Vec2Config(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        conv_dim=(8,) * 7,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
        feat_extract_norm="layer",
        do_stable_layer_norm=True,
    )
    tokenizer = ByT5Tokenizer(extra_ids=0)
    text = UMT5Config(vocab_size=len(tokenizer), d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    pipeline = WanS2VPipeline(
        transformer=random_transformer(seed, **config),
        transformer_2=random_transformer(seed + 1, **config) if two_experts else None,
        boundary_ratio=0.9 if two_experts else None,
        vae=autoencoder.eval(),
        audio_encoder=Wav2Vec2Model(speech).eval(),
        audio_processor=Wav2Vec2FeatureExtractor(do_normalize=True),
        text_encoder=UMT5EncoderModel(text).eval(),
        tokenizer=tokenizer,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def random_video_transformer(seed: int = 0, **config: Any) -> WanVideoTransformer:
    torch.manual_seed(seed)
    sizes: dict[str, Any] = {
        "num_attention_heads": 2,
        "attention_head_dim": 12,
        "ffn_dim": 32,
        "num_layers": 2,
        "freq_dim": 16,
        "text_dim": 16,
    }
    model = WanVideoTransformer(**(sizes | config)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model


def random_video_pipeline(task: Task = "t2v", *, from_picture: bool = False, **config: Any) -> Any:
    """T2V or I2V with two experts, or TI2V with the VAE of its kind and one transformer."""
    torch.manual_seed(0)
    two_experts = task != "ti2v"
    residual = {"is_residual": True, "in_channels": 12, "out_channels": 12, "patch_size": 2, "scale_factor_spatial": 16}
    kind = {"dim_mult": [1, 1, 1, 1]} if two_experts else residual
    sizes = {"in_channels": 36 if task == "i2v" else 16} | config
    tokenizer = ByT5Tokenizer(extra_ids=0)
    text = UMT5Config(vocab_size=len(tokenizer), d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    spec = SPECS[task]
    takes_picture = from_picture or task == "i2v"
    pipeline = (WanPictureToVideo if takes_picture else WanTextToVideo)(
        tokenizer=tokenizer,
        text_encoder=UMT5EncoderModel(text).eval(),
        vae=AutoencoderKLWan(**{"base_dim": 4, "z_dim": 16, "num_res_blocks": 1} | kind).eval(),
        scheduler=new_scheduler(spec.scheduler, spec.flow_shift),
        transformer=random_video_transformer(0, **sizes),
        transformer_2=random_video_transformer(1, **sizes) if two_experts else None,
        boundary_ratio=0.9 if two_experts else None,
        expand_timesteps=task == "ti2v",
    )
    if takes_picture:
        frame = CroppedFrame if task == "ti2v" else StretchedFrame
        pipeline.video_processor = frame(vae_scale_factor=pipeline.vae_scale_factor_spatial)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
