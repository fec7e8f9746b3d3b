"""A small S2V pipeline with random weights: the real classes and files, for demonstrations and measurements.

It paints coloured noise. What it shows is that everything around the weights works: loading, sound, clips, timing, mp4.
"""

from __future__ import annotations

import sys
from pathlib import Path

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


def build_random_pipeline(seed: int = 0) -> WanS2VPipeline:
    """Every component at small size, float32, seeded."""
    torch.manual_seed(seed)
    transformer = WanS2VTransformer(
        num_attention_heads=2,
        attention_head_dim=32,
        ffn_dim=192,
        num_layers=3,
        freq_dim=64,
        text_dim=32,
        text_len=64,
        audio_dim=32,
        num_audio_layers=5,
        audio_inject_layers=(0, 2),
    )
    vae = AutoencoderKLWan(base_dim=8, num_res_blocks=1)
    speech = Wav2Vec2Config(
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=64,
        conv_dim=(16,) * 7,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
        feat_extract_norm="layer",
        do_stable_layer_norm=True,
    )
    tokenizer = ByT5Tokenizer(extra_ids=0)
    text = UMT5Config(vocab_size=len(tokenizer), d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2)
    pipeline = WanS2VPipeline(
        transformer=transformer.eval(),
        vae=vae.eval(),
        audio_encoder=Wav2Vec2Model(speech).eval(),
        audio_processor=Wav2Vec2FeatureExtractor(do_normalize=True),
        text_encoder=UMT5EncoderModel(text).eval(),
        tokenizer=tokenizer,
        sampling_defaults={"num_inference_steps": 4, "max_area": 192 * 320},
    )
    return pipeline


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python examples/random_model.py FOLDER")
    build_random_pipeline().save_pretrained(Path(sys.argv[1]))
