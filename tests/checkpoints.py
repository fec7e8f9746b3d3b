"""Small checkpoints in the official file layout, written from the golden weights for every test that loads a model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from conftest import GOLDENS, load_golden
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

TEXT_VOCAB = 96
OFFICIAL_KEYS = tuple(json.loads((GOLDENS / "state_dict" / "s2v_14b_config.json").read_text()))


def write_official_s2v(
    folder: Path,
    *,
    weights: str = "s2v_pipe",
    shards: int = 2,
    dtype: torch.dtype = torch.float32,
    vae: str = "vae21_tiny",
    text: bool = True,
    boundary_ratio: float | None = None,
) -> Path:
    """A complete checkpoint folder with the names, files and config keys of Wan-AI/Wan2.2-S2V-14B.

    Args:
        folder: made if needed.
        weights: golden transformer; s2v_pipe fits the wav2vec2 and the VAE of the pipeline goldens.
        shards: safetensors files of the transformer; 1 writes no index.
        dtype: of the transformer.
        vae: golden VAE.
        text: whether to write a text encoder (random, as wide as the transformer wants) and a tokenizer.
        boundary_ratio: if given, two experts: the golden one for high noise, a perturbed one for low noise.
    """
    tensors, metadata = load_golden(f"{weights}.weights")
    config = json.loads(metadata["config"])
    stated = {"_class_name": "WanModel_S2V"} | {key: config[key] for key in OFFICIAL_KEYS if key in config}
    if boundary_ratio is None:
        write_transformer(folder, tensors, stated, shards=shards, dtype=dtype)
    else:
        high = stated | {"boundary_ratio": boundary_ratio}
        write_transformer(folder / "high_noise_model", tensors, high, shards=shards, dtype=dtype)
        low = {name: tensor * 1.5 for name, tensor in tensors.items()}
        write_transformer(folder / "low_noise_model", low, stated, shards=shards, dtype=dtype)
    vae_file = "Wan2.2_VAE.pth" if vae == "vae22_tiny" else "Wan2.1_VAE.pth"
    torch.save(load_golden(f"{vae}.weights")[0], folder / vae_file)
    if text:
        torch.save(random_text_encoder(config["text_dim"]), folder / "models_t5_umt5-xxl-enc-bf16.pth")
        write_tokenizer(folder / "google" / "umt5-xxl")
    shutil.copytree(GOLDENS / "wav2vec2_tiny", folder / "wav2vec2-large-xlsr-53-english")
    return folder


def write_official_wan(folder: Path, task: str, *, dtype: torch.dtype = torch.float32, shards: int = 2) -> Path:
    """A complete checkpoint folder laid out as Wan-AI/Wan2.2-T2V-A14B, I2V-A14B or TI2V-5B, from golden weights.

    Args:
        folder: made if needed.
        task: "t2v", "i2v" (the golden transformer for high noise, a perturbed one for low noise) or "ti2v".
        dtype: of the transformers; the published ones are float32.
    """
    tensors, metadata = load_golden(f"wan_{task}_tiny.weights")
    config = json.loads(metadata["config"])
    keys = ("model_type", "dim", "ffn_dim", "freq_dim", "in_dim", "out_dim", "num_heads", "num_layers", "eps")
    stated = {"_class_name": "WanModel", "text_len": 512} | {key: config[key] for key in keys}
    if task == "ti2v":
        write_transformer(folder, tensors, stated, shards=shards, dtype=dtype)
    else:
        write_transformer(folder / "high_noise_model", tensors, stated, shards=shards, dtype=dtype)
        low = perturbed(tensors)
        write_transformer(folder / "low_noise_model", low, stated, shards=shards, dtype=dtype)
    vae = "22" if task == "ti2v" else "21"
    torch.save(load_golden(f"vae{vae}_tiny.weights")[0], folder / f"Wan2.{vae[1]}_VAE.pth")
    torch.save(random_text_encoder(config["text_dim"]), folder / "models_t5_umt5-xxl-enc-bf16.pth")
    write_tokenizer(folder / "google" / "umt5-xxl")
    return folder


def perturbed(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights of another expert: half as large again, exactly representable in float32."""
    return {name: tensor * 1.5 for name, tensor in tensors.items()}


def write_transformer(
    folder: Path, tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any], *, shards: int, dtype: torch.dtype
) -> None:
    """config.json and `diffusion_pytorch_model*.safetensors`, split evenly by name."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(dict(config)))
    cast = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    if shards == 1:
        save_file(cast, folder / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
        return
    weight_map = {}
    for number in range(shards):
        file = f"diffusion_pytorch_model-{number + 1:05d}-of-{shards:05d}.safetensors"
        part = {name: cast[name] for name in list(cast)[number::shards]}
        save_file(part, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    total = sum(tensor.nbytes for tensor in cast.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))


def random_text_encoder(width: int, *, layers: int = 2, heads: int = 2, ffn: int = 24) -> dict[str, torch.Tensor]:
    """Seeded bf16 weights of a small umT5 encoder under their official names."""
    generator = torch.Generator().manual_seed(3101)

    def normal(*shape: int, std: float = 1.0) -> torch.Tensor:
        return (torch.randn(shape, generator=generator) * std).bfloat16()

    weights = {"token_embedding.weight": normal(TEXT_VOCAB, width), "norm.weight": 1 + normal(width, std=0.1)}
    for n in range(layers):
        weights[f"blocks.{n}.norm1.weight"] = 1 + normal(width, std=0.1)
        weights[f"blocks.{n}.norm2.weight"] = 1 + normal(width, std=0.1)
        for name in "qkvo":
            weights[f"blocks.{n}.attn.{name}.weight"] = normal(width, width, std=width**-0.5)
        weights[f"blocks.{n}.pos_embedding.embedding.weight"] = normal(32, heads)
        weights[f"blocks.{n}.ffn.gate.0.weight"] = normal(ffn, width, std=width**-0.5)
        weights[f"blocks.{n}.ffn.fc1.weight"] = normal(ffn, width, std=width**-0.5)
        weights[f"blocks.{n}.ffn.fc2.weight"] = normal(width, ffn, std=ffn**-0.5)
    return weights


def write_tokenizer(folder: Path) -> None:
    """A Unigram tokenizer as umT5's: <pad> 0, </s> 1 (appended to every text), <unk> 2, at most TEXT_VOCAB tokens."""
    words = ["▁a", "▁the", "▁person", "▁is", "▁singing", "▁talking", "▁man", "▁woman", "ing"]
    letters = list("▁abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,!?'-:;()")
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((w, -2.0) for w in words), *((c, -5.0) for c in letters)]
    assert len(pieces) <= TEXT_VOCAB
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in ("<pad>", "</s>", "<unk>")])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=512
    )
    fast.save_pretrained(folder)
