"""Float8 products: close to the full ones, and only where they belong."""

from __future__ import annotations

import copy

import pytest
import torch
from models import random_pipeline

from wan_s2v.models.transformer import Conditioning, WanS2VTransformer
from wan_s2v.ops.float8 import FLOAT8, linear_float8, plain_quantize_rows
from wan_s2v.runtime.quantization import Float8Linear, attend_in_float8, is_quantized, quantize_float8


@pytest.fixture(scope="module")
def transformer() -> WanS2VTransformer:
    return random_pipeline(attention_head_dim=64, num_layers=4).transformer


def _predict(model: WanS2VTransformer) -> torch.Tensor:
    draw = torch.Generator().manual_seed(3)
    latents, reference = (torch.randn(1, 16, f, 8, 12, generator=draw) for f in (4, 1))
    prompt, sound = torch.randn(9, 16, generator=draw), torch.randn(1, 3, 16, 16, generator=draw)
    motion = torch.randn(1, 16, 19, 8, 12, generator=draw)
    scene = model.prepare_scene(reference, 4, motion_latents=motion)
    conditioning = Conditioning(scene, model.prepare_text([prompt]), model.prepare_audio(sound, 73))
    return model(latents, torch.tensor([700]), conditioning)


@torch.no_grad()
def test_rows_keep_their_own_scale():
    x = torch.randn(4, 64, generator=torch.Generator().manual_seed(0)) * torch.tensor([[1e-4], [1.0], [1e4], [0.0]])
    found = plain_quantize_rows(x)
    assert found.values.dtype == FLOAT8
    assert found.values.float().abs().amax(1).tolist() == [448, 448, 448, 0]
    assert ((found.dequantize() - x).abs() <= x.abs() / 16 + found.scale / 512).all()


@torch.no_grad()
def test_the_product_is_that_of_the_rounded_factors():
    draw = torch.Generator().manual_seed(1)
    x, weight = torch.randn(2, 3, 32, generator=draw), torch.randn(8, 32, generator=draw)
    bias = torch.randn(8, generator=draw)
    rounded, rounded_weight = plain_quantize_rows(x), plain_quantize_rows(weight)
    made = linear_float8(rounded, rounded_weight, bias)
    exact = torch.nn.functional.linear(x, weight, bias)
    assert made.shape == (2, 3, 8)
    assert torch.equal(made, rounded.dequantize() @ rounded_weight.dequantize().t() + bias)
    assert (made - exact).norm() < 0.05 * exact.norm()


@torch.no_grad()
def test_a_quantized_transformer_predicts_nearly_the_same(transformer):
    quantized = copy.deepcopy(transformer)
    quantize_float8(quantized)
    exact, rounded = _predict(transformer), _predict(quantized)
    assert torch.nn.functional.cosine_similarity(exact.flatten(), rounded.flatten(), dim=0) > 0.999
    assert not torch.equal(exact, rounded)


@torch.no_grad()
def test_only_the_products_of_every_step_are_rounded(transformer):
    quantized = copy.deepcopy(transformer)
    assert not is_quantized(quantized)
    quantize_float8(quantized)
    assert is_quantized(quantized)
    names = {name for name, module in quantized.named_modules() if isinstance(module, Float8Linear)}
    per_block = ["attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0", "attn2.to_q", "attn2.to_out.0"]
    wanted = {f"blocks.{k}.{name}" for k in range(4) for name in [*per_block, "ffn.net.0.proj", "ffn.net.2"]}
    count = len(quantized.audio_injector.attentions)
    wanted |= {f"audio_injector.attentions.{k}.{name}" for k in range(count) for name in ("to_q", "to_out.0")}
    assert names == wanted
    quantize_float8(quantized)  # a second time changes nothing
    assert {n for n, m in quantized.named_modules() if isinstance(m, Float8Linear)} == wanted


@torch.no_grad()
def test_another_dtype_leaves_rounded_weights_alone(transformer):
    quantized = copy.deepcopy(transformer)
    quantize_float8(quantized)
    before = quantized.blocks[0].attn1.to_q
    values, scale = before.weight.clone().view(torch.uint8), before.weight_scale.clone()
    quantized.to(torch.bfloat16)
    layer = quantized.blocks[0].attn1.to_q
    assert torch.equal(layer.weight.view(torch.uint8), values)
    assert torch.equal(layer.weight_scale, scale)
    assert layer.bias.dtype == torch.bfloat16


@torch.no_grad()
def test_self_attention_in_float8_is_nearly_the_same(transformer):
    quantized = copy.deepcopy(transformer)
    attend_in_float8(quantized)
    exact, rounded = _predict(transformer), _predict(quantized)
    assert torch.nn.functional.cosine_similarity(exact.flatten(), rounded.flatten(), dim=0) > 0.999
    assert not torch.equal(exact, rounded)


@torch.no_grad()
def test_heads_of_an_odd_size_stay_as_they_are():
    odd = random_pipeline(attention_head_dim=20).transformer
    before = _predict(odd)
    attend_in_float8(odd)
    assert torch.equal(_predict(odd), before)
