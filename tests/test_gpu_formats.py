"""Packed weights on a GPU. Run with `python -m pytest tests/test_gpu_formats.py` on a machine that has one."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from formats import make_transformer, official, predict, random_blocks, scaled_float8
from safetensors.torch import save_file

from wan_s2v.models.transformer import WanS2VTransformer
from wan_s2v.ops.eight_bit import FLOAT8
from wan_s2v.ops.gguf import BLOCKS, dequantize, plain_dequantize
from wan_s2v.runtime.packed import GGUFLinear
from wan_s2v.runtime.quantization import quantize
from wan_s2v.weights import find_checkpoint, load_model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; PyTorch sees none"),
]
ALONE = frozenset({"vae", "text_encoder", "tokenizer", "audio_encoder", "audio_processor"})
WIDE = {"attention_head_dim": 128, "ffn_dim": 512}


def load(folder: Path, device: str, dtype: torch.dtype) -> WanS2VTransformer:
    """A model whose file holds its blocks in float8."""
    tensors, metadata = official(make_transformer(**WIDE))
    save_file(scaled_float8(tensors), folder / "s2v.safetensors", metadata=metadata)
    files = find_checkpoint(folder / "s2v.safetensors", skip=ALONE).models["transformer"]
    loaded = load_model(files, dtype, torch.device(device))
    assert isinstance(loaded, WanS2VTransformer)
    return loaded


@pytest.mark.parametrize("kind", BLOCKS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@torch.no_grad()
def test_the_kernel_expands_the_largest_matrix_to_the_same_values(kind, dtype):
    blocks = torch.from_numpy(random_blocks(kind, 64, 13824)).repeat(80, 1).to("cuda")
    made, expected = dequantize(blocks, kind, dtype), plain_dequantize(blocks, kind)
    assert made.shape == (5120, 13824)
    # half a step of the dtype, and float32 rounded in another order
    assert ((made.float() - expected).abs() <= torch.finfo(dtype).eps * expected.abs() + 1e-8).all()


@pytest.mark.parametrize("kind", BLOCKS)
@torch.no_grad()
def test_a_packed_layer_gives_on_the_gpu_what_it_gives_on_the_cpu(kind):
    layer = GGUFLinear(torch.from_numpy(random_blocks(kind, 48, 512)), kind, 512, None, torch.float32)
    x = torch.randn(7, 512, generator=torch.Generator().manual_seed(0))
    expected = layer(x)
    made = layer.to("cuda", torch.bfloat16)(x.cuda().bfloat16()).float().cpu()
    assert layer.blocks.dtype == torch.uint8
    assert torch.nn.functional.cosine_similarity(made.flatten(), expected.flatten(), dim=0) > 0.9999


def test_float8_as_stored_gives_on_the_gpu_what_it_gives_on_the_cpu(tmp_path):
    expected = predict(load(tmp_path, "cpu", torch.float32))
    held = predict(load(tmp_path, "cuda", torch.bfloat16)).cpu()
    assert torch.nn.functional.cosine_similarity(held.flatten(), expected.flatten(), dim=0) > 0.999


def test_float8_products_take_the_stored_weights(tmp_path):
    if torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("float8 products need compute capability 8.9")
    held = load(tmp_path, "cuda", torch.bfloat16)
    computed = copy.deepcopy(held)
    quantize(computed, FLOAT8)
    expected, made = predict(held).flatten(), predict(computed).flatten()
    assert torch.isfinite(made).all()
    assert torch.nn.functional.cosine_similarity(made, expected, dim=0) > 0.999
