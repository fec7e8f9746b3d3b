"""8-bit products: close to the full ones, and only where they belong."""

from __future__ import annotations

import copy

import pytest
import torch
from conftest import assert_close
from models import random_pipeline

from wan_s2v.models.transformer import Conditioning, WanS2VTransformer
from wan_s2v.ops.attention_eight_bit import attention_eight_bit
from wan_s2v.ops.eight_bit import FLOAT8, INT8, LARGEST, eight_bit_linear, plain_quantize_rows
from wan_s2v.runtime import quantization
from wan_s2v.runtime.packed import ScaledLinear
from wan_s2v.runtime.quantization import (
    EightBitLinear,
    attend_in_eight_bits,
    can_compute_in_eight_bits,
    compute_in_eight_bits,
    is_quantized,
    quantize,
)


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
@pytest.mark.parametrize("dtype", [INT8, FLOAT8])
def test_rows_keep_their_own_scale(dtype):
    x = torch.randn(4, 64, generator=torch.Generator().manual_seed(0)) * torch.tensor([[1e-4], [1.0], [1e4], [0.0]])
    found = plain_quantize_rows(x, dtype)
    largest = LARGEST[dtype]
    assert found.values.dtype == dtype
    assert found.values.float().abs().amax(1).tolist() == [largest, largest, largest, 0]
    step = found.scale * 0.5001 if dtype == INT8 else x.abs() / 16 + found.scale / 512
    assert ((found.dequantize() - x).abs() <= step).all()


@torch.no_grad()
@pytest.mark.parametrize(("dtype", "error"), [(INT8, 0.015), (FLOAT8, 0.05)])
def test_the_product_is_that_of_the_rounded_factors(dtype, error):
    draw = torch.Generator().manual_seed(1)
    x, weight = torch.randn(2, 3, 32, generator=draw), torch.randn(8, 32, generator=draw)
    bias = torch.randn(8, generator=draw)
    rounded, rounded_weight = plain_quantize_rows(x, dtype), plain_quantize_rows(weight, dtype)
    made = eight_bit_linear(rounded, rounded_weight, bias)
    exact = torch.nn.functional.linear(x, weight, bias)
    assert made.shape == (2, 3, 8)
    assert torch.equal(made, rounded.dequantize() @ rounded_weight.dequantize().t() + bias)
    assert (made - exact).norm() < error * exact.norm()


@torch.no_grad()
@pytest.mark.parametrize(("dtype", "cosine"), [(INT8, 0.9999), (FLOAT8, 0.999)])
def test_a_quantized_transformer_predicts_nearly_the_same(transformer, dtype, cosine):
    quantized = copy.deepcopy(transformer)
    quantize(quantized, dtype)
    exact, rounded = _predict(transformer), _predict(quantized)
    assert torch.nn.functional.cosine_similarity(exact.flatten(), rounded.flatten(), dim=0) > cosine
    assert not torch.equal(exact, rounded)


@pytest.mark.parametrize(("capability", "dtype", "attends"), [((8, 0), INT8, False), ((8, 9), INT8, True)])
def test_a_device_gets_all_that_it_can_compute(transformer, monkeypatch, capability, dtype, attends):
    monkeypatch.setattr(quantization, "_has", lambda device, needed: capability >= needed)
    quantized = copy.deepcopy(transformer)
    compute_in_eight_bits(quantized, torch.device("cpu"))
    assert {layer.input_dtype for layer in quantized.modules() if isinstance(layer, EightBitLinear)} == {dtype}
    assert (quantized.blocks[0].attn1.attend is attention_eight_bit) == attends


@pytest.mark.parametrize(
    ("capability", "triton", "can"), [((7, 5), True, False), ((8, 0), True, True), ((9, 0), False, False)]
)
def test_eight_bits_need_their_products_and_a_triton_with_tensor_descriptors(monkeypatch, capability, triton, can):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(quantization, "kernel_problem", lambda: None)
    monkeypatch.setattr(quantization, "find_spec", lambda name: object() if triton else None)
    assert can_compute_in_eight_bits(torch.device("cuda")) == can


@pytest.mark.parametrize(("capability", "dtype"), [((8, 0), INT8), ((9, 0), FLOAT8)])
def test_weights_stored_in_float8_stay_so_where_the_device_has_it(transformer, monkeypatch, capability, dtype):
    monkeypatch.setattr(quantization, "_has", lambda device, needed: capability >= needed)
    stored = copy.deepcopy(transformer)
    layer = stored.blocks[1].attn2.to_q
    held = ScaledLinear(*plain_quantize_rows(layer.weight, FLOAT8), layer.bias, torch.float32)
    stored.blocks[1].attn2.to_q = held
    compute_in_eight_bits(stored, torch.device("cpu"))
    made = stored.blocks[1].attn2.to_q
    assert {part.input_dtype for part in stored.modules() if isinstance(part, EightBitLinear)} == {dtype}
    assert dtype == INT8 or torch.equal(made.weight.view(torch.uint8), held.values.view(torch.uint8))
    assert_close(made.weight.float() * made.weight_scale, held.weight, 0.005 * held.weight.abs().max().item())


@torch.no_grad()
def test_only_the_products_of_every_step_are_rounded(transformer):
    quantized = copy.deepcopy(transformer)
    assert not is_quantized(quantized)
    quantize(quantized, FLOAT8)
    assert is_quantized(quantized)
    names = {name for name, module in quantized.named_modules() if isinstance(module, EightBitLinear)}
    per_block = ["attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0", "attn2.to_q", "attn2.to_out.0"]
    wanted = {f"blocks.{k}.{name}" for k in range(4) for name in [*per_block, "ffn.net.0.proj", "ffn.net.2"]}
    count = len(quantized.audio_injector.attentions)
    wanted |= {f"audio_injector.attentions.{k}.{name}" for k in range(count) for name in ("to_q", "to_out.0")}
    assert names == wanted
    quantize(quantized, FLOAT8)  # a second time changes nothing
    assert {n for n, m in quantized.named_modules() if isinstance(m, EightBitLinear)} == wanted


@torch.no_grad()
def test_another_dtype_leaves_rounded_weights_alone(transformer):
    quantized = copy.deepcopy(transformer)
    quantize(quantized, FLOAT8)
    before = quantized.blocks[0].attn1.to_q
    values, scale = before.weight.clone().view(torch.uint8), before.weight_scale.clone()
    quantized.to(torch.bfloat16)
    layer = quantized.blocks[0].attn1.to_q
    assert torch.equal(layer.weight.view(torch.uint8), values)
    assert torch.equal(layer.weight_scale, scale)
    assert layer.bias.dtype == torch.bfloat16


@torch.no_grad()
def test_self_attention_in_eight_bits_is_nearly_the_same(transformer):
    quantized = copy.deepcopy(transformer)
    attend_in_eight_bits(quantized)
    exact, rounded = _predict(transformer), _predict(quantized)
    assert torch.nn.functional.cosine_similarity(exact.flatten(), rounded.flatten(), dim=0) > 0.999
    assert not torch.equal(exact, rounded)


@torch.no_grad()
def test_heads_of_an_odd_size_stay_as_they_are():
    odd = random_pipeline(attention_head_dim=20).transformer
    before = _predict(odd)
    attend_in_eight_bits(odd)
    assert torch.equal(_predict(odd), before)
