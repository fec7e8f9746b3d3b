"""Small models in the single-file formats that other programs publish, with their names and layouts."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from conftest import load_golden
from models import random_transformer
from safetensors.torch import save_file
from sentencepiece import SentencePieceTrainer
from torch import Tensor
from transformers import UMT5Config, UMT5EncoderModel, Wav2Vec2Config, Wav2Vec2Model

from wan_s2v.models.transformer import Conditioning, WanS2VTransformer
from wan_s2v.ops.gguf import BLOCKS
from wan_s2v.weights.configs import official_transformer_config
from wan_s2v.weights.names import inverse, rename, transformer_names

WORDS = ("the man is singing a song about the sea", "a person talks to the camera", "hello world, how are you?")
HALVES = {"Q6_K": (208,)} | dict.fromkeys(
    ("Q5_K", "Q4_K", "Q5_1", "Q4_1"), (0, 2)
)  # where a block has its float16 numbers
AUDIO_WIDTH = 64  # one head of a published wav2vec2
TEXT_WIDTH = 32


def make_transformer(seed: int = 0, **config: Any) -> WanS2VTransformer:
    """A random model that fits the components of `write_components`; every value is exact in bfloat16."""
    sizes = {"attention_head_dim": 16, "ffn_dim": 64, "freq_dim": 32, "text_dim": TEXT_WIDTH, "audio_dim": AUDIO_WIDTH}
    model = random_transformer(seed, **(sizes | config))
    return model.bfloat16().float()


def official(model: WanS2VTransformer) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Its tensors by official name, and metadata that state its config."""
    names = inverse(transformer_names(model.config))
    tensors = {rename(name, names) or name: value.detach().clone() for name, value in model.state_dict().items()}
    return tensors, {"format": "pt", "config": json.dumps(official_transformer_config(model.config))}


def is_scaled(name: str, tensor: Tensor) -> bool:
    """Whether a tensor is one of those that are published in float8: the linear layers of blocks and injectors."""
    return tensor.ndim == 2 and name.startswith(("blocks.", "audio_injector.injector.", "encoder.block."))


def scaled_float8(
    tensors: Mapping[str, Tensor],
    *,
    suffix: str = "scale_weight",
    rows: bool = False,
    shape: tuple[int, ...] = (),
    dtype: torch.dtype = torch.float8_e4m3fn,
) -> dict[str, Tensor]:
    """The same with matrices in float8, each with its scale under `suffix`; all else in bfloat16."""
    made = {}
    largest = torch.finfo(dtype).max
    for name, tensor in tensors.items():
        if not is_scaled(name, tensor) or "relative_attention_bias" in name:
            made[name] = tensor.bfloat16()
            continue
        scale = tensor.abs().amax(1, keepdim=True) / largest if rows else (tensor.abs().max() / largest).reshape(shape)
        made[name] = (tensor / scale.reshape(-1, 1)).to(dtype)
        made[name.removesuffix("weight") + suffix] = scale
    return made


def expanded(tensors: Mapping[str, Tensor], suffix: str = "scale_weight") -> dict[str, Tensor]:
    """What such tensors stand for, in float32."""
    made = {}
    for name, tensor in tensors.items():
        scale = tensors.get(name.removesuffix("weight") + suffix)
        if scale is not None and name.endswith(".weight"):
            made[name] = tensor.float() * scale.reshape(-1, 1)
        elif tensor.is_floating_point() and not name.endswith((suffix, "scale_input", "scaled_fp8")):
            made[name] = tensor.float()
    return made


def plain_copy(model: WanS2VTransformer, tensors: Mapping[str, Tensor]) -> WanS2VTransformer:
    """The model with values given by official name."""
    names = transformer_names(model.config)
    copy = WanS2VTransformer(**model.config)
    copy.load_state_dict({rename(name, names) or name: value for name, value in tensors.items()})
    return copy.eval()


def random_blocks(kind: str, rows: int, columns: int, seed: int = 0) -> np.ndarray:
    """(rows, bytes) with every bit random but those of the scales, which make values near 0.05."""
    draw = np.random.default_rng(seed)
    size, num_bytes = BLOCKS[kind]
    blocks = draw.integers(0, 256, (rows, columns // size, num_bytes), dtype=np.uint8)
    largest = {"Q8_0": 127, "Q6_K": 32 * 127, "Q5_K": 31 * 63, "Q4_K": 15 * 63}.get(kind, 31)
    for place in HALVES.get(kind, (0,)):
        half = (draw.uniform(-0.1, 0.1, (rows, columns // size, 1)) / largest).astype(np.float16)
        blocks[:, :, place : place + 2] = half.view(np.uint8)
    return blocks.reshape(rows, -1)


@torch.no_grad()
def predict(model: WanS2VTransformer) -> Tensor:
    """One step on fixed inputs, through every layer, on the model's device."""
    draw, config, device = torch.Generator().manual_seed(3), model.config, model.device

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw).to(device)

    latents, reference, motion, pose = (normal(1, 16, frames, 8, 12) for frames in (2, 1, 19, 2))
    prompt = normal(9, config.text_dim).to(model.dtype)
    sound = normal(1, config.num_audio_layers, config.audio_dim, 8)
    scene = model.prepare_scene(reference, 2, motion_latents=motion, pose_latents=pose)
    conditioning = Conditioning(scene, model.prepare_text([prompt]), model.prepare_audio(sound, 73))
    return model(latents, torch.tensor([700], device=device), conditioning)


def sentencepiece_model() -> bytes:
    """A small one with the special tokens of umT5's: <pad> 0, </s> 1, <unk> 2."""
    out = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(WORDS * 20),
        model_writer=out,
        vocab_size=60,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    return out.getvalue()


def text_encoder() -> UMT5EncoderModel:
    torch.manual_seed(5)
    config = UMT5Config(vocab_size=64, d_model=TEXT_WIDTH, d_kv=16, d_ff=64, num_layers=2, num_heads=2)
    return UMT5EncoderModel(config).bfloat16().float().eval()


def speech_encoder() -> Wav2Vec2Model:
    torch.manual_seed(6)
    config = Wav2Vec2Config(
        hidden_size=AUDIO_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=AUDIO_WIDTH // 64,
        intermediate_size=96,
        conv_dim=(8,) * 7,
        conv_bias=True,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
        feat_extract_norm="layer",
        do_stable_layer_norm=True,
    )
    return Wav2Vec2Model(config).half().float().eval()


def text_encoder_tensors() -> dict[str, Tensor]:
    """As in umt5_xxl_fp8_e4m3fn_scaled.safetensors: names of transformers, scales, the tokenizer, a marker."""
    state = {name: value for name, value in text_encoder().state_dict().items() if "embed_tokens" not in name}
    tokenizer = torch.frombuffer(bytearray(sentencepiece_model()), dtype=torch.uint8)
    marker = torch.zeros(0, dtype=torch.float8_e4m3fn)
    inputs = {
        name.replace("scale_weight", "scale_input"): torch.ones(())
        for name in scaled_float8(state)
        if "scale_w" in name
    }
    return scaled_float8(state) | inputs | {"spiece_model": tokenizer, "scaled_fp8": marker}


def write_components(folder: Path) -> Path:
    """VAE, text encoder and speech encoder as Comfy-Org's single files, under their names, in ComfyUI's folders."""
    for name in ("vae", "text_encoders", "audio_encoders"):
        (folder / name).mkdir(parents=True)
    vae = {name: value.half() for name, value in load_golden("vae21_tiny.weights")[0].items()}
    save_file(vae, folder / "vae" / "wan_2.1_vae.safetensors")
    save_file(text_encoder_tensors(), folder / "text_encoders" / "umt5_xxl_fp8_e4m3fn_scaled.safetensors")
    speech = {f"wav2vec2.{name}": value.half() for name, value in speech_encoder().state_dict().items()}
    speech["lm_head.weight"] = torch.zeros(3, AUDIO_WIDTH).half()
    save_file(speech, folder / "audio_encoders" / "wav2vec2_large_english_fp16.safetensors")
    return folder
