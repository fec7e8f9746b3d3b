"""Tokens that go through attentions and feed-forwards part by part: the same result in less memory, as planned."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from allocations import Allocations
from conftest import assert_close
from models import random_transformer

from wan_s2v.models.layers import Attention, FeedForward, in_parts
from wan_s2v.models.transformer import Conditioning, WanS2VTransformer
from wan_s2v.ops import attention_eight_bit, eight_bit, norm, rope
from wan_s2v.ops.eight_bit import FLOAT8, INT8, quantize_rows
from wan_s2v.runtime import quantization
from wan_s2v.runtime.lora import Adapters
from wan_s2v.runtime.memory import MemoryPolicy, stage_bytes
from wan_s2v.runtime.offload import Placement
from wan_s2v.runtime.quantization import attend_in_eight_bits, quantize
from wan_s2v.runtime.sizes import ModelSizes, Work
from wan_s2v.weights.lora import LoRA, LowRank

CPU = torch.device("cpu")
BF16 = torch.bfloat16


def _with_lora(model: WanS2VTransformer) -> None:
    draw, pairs = torch.Generator().manual_seed(5), {}
    for layer in ("attn1.to_q", "attn1.to_out.0", "attn2.to_q", "ffn.net.0.proj", "ffn.net.2"):
        outputs, inputs = model.get_submodule(f"blocks.0.{layer}").weight.shape
        for index in range(len(model.blocks)):
            down, up = torch.randn(4, inputs, generator=draw) * 0.1, torch.randn(outputs, 4, generator=draw) * 0.1
            pairs[f"blocks.{index}.{layer}.weight"] = LowRank(down, up, 1.0)
    Adapters(model).add("one", LoRA("made", "none", pairs, {}, ()), 1.0)


def _in_eight_bits(model: WanS2VTransformer) -> None:
    quantize(model, FLOAT8)
    attend_in_eight_bits(model)


def _with_both(model: WanS2VTransformer) -> None:
    _in_eight_bits(model)
    _with_lora(model)


KINDS: dict[str, Callable[[WanS2VTransformer], None]] = {
    "plain": lambda model: None,
    "lora": _with_lora,
    "int8": partial(quantize, dtype=INT8),
    "float8": partial(quantize, dtype=FLOAT8),
    "float8, 8-bit attention": _in_eight_bits,
    "float8, 8-bit attention, lora": _with_both,
}


def _model(kind: str, dtype: torch.dtype, **config: Any) -> WanS2VTransformer:
    model = random_transformer(**({"attention_head_dim": 32, "ffn_dim": 173} | config)).to(dtype)
    with torch.no_grad():
        KINDS[kind](model)
    return model


def _split(model: WanS2VTransformer, parts: int) -> None:
    Placement({"transformer": model}, CPU, MemoryPolicy(token_parts=parts)).use("transformer")


def _conditioning(model: WanS2VTransformer, frames: int, height: int, width: int, batch: int = 1) -> Conditioning:
    draw = torch.Generator().manual_seed(3)
    reference = torch.randn(batch, 16, 1, height, width, generator=draw)
    motion = torch.randn(batch, 16, 19, height, width, generator=draw)
    sound = torch.randn(batch, 3, 16, 4 * frames, generator=draw)
    scene = model.prepare_scene(reference, frames, motion_latents=motion)
    prompts = [torch.randn(9, 16, generator=draw) for _ in range(batch)]
    return Conditioning(scene, model.prepare_text(prompts), model.prepare_audio(sound, 73))


def _predict(model: WanS2VTransformer, batch: int = 1) -> torch.Tensor:
    latents = torch.randn(batch, 16, 4, 8, 12, generator=torch.Generator().manual_seed(4))
    return model(latents, torch.tensor([700]), _conditioning(model, 4, 8, 12, batch))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, BF16])
@torch.no_grad()
def test_parts_give_what_the_whole_gives(kind, dtype):
    model = _model(kind, dtype)
    # Of values up to 4. Where a last digit differs, float8 may round to the other neighbour.
    atol = 2e-5 if dtype == torch.float32 and "8" not in kind else 0.04
    whole = _predict(model)
    for parts in (2, 7, 1000):
        _split(model, parts)
        assert_close(_predict(model), whole, atol, f"{parts} parts")


@torch.no_grad()
def test_parts_of_a_batch_are_those_of_its_samples():
    model = _model("plain", torch.float32)
    whole = _predict(model, batch=2)
    _split(model, 3)
    assert_close(_predict(model, batch=2), whole, 2e-5)


def test_parts_leave_alone_what_gradients_need():
    model, gradients = _model("plain", torch.float32), []
    for parts in (1, 3):
        _split(model, parts)
        model.zero_grad()
        _predict(model).square().mean().backward()
        gradients.append(model.blocks[0].attn1.to_k.weight.grad.clone())
    assert_close(gradients[1], gradients[0], 1e-5 * gradients[0].abs().max().item())


@torch.no_grad()
def test_every_token_is_worked_on_once_and_results_take_their_place():
    seen = []

    def work(part: Any, place: slice) -> torch.Tensor:
        seen.append(place)
        return (part.dequantize() if hasattr(part, "dequantize") else part) + 1

    x = torch.randn(2, 10, 4)
    expected = x + 1
    assert in_parts(work, x, 4) is x
    assert torch.equal(x, expected)
    assert [list(range(10))[place] for place in seen] == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9]]
    rounded = quantize_rows(x, FLOAT8)
    assert_close(in_parts(work, rounded, 4), rounded.dequantize() + 1, 1e-6)


def test_a_run_splits_tokens_and_leaves_the_model_whole():
    model = _model("plain", torch.float32)
    layers = [layer for layer in model.modules() if isinstance(layer, Attention | FeedForward)]
    with Placement({"transformer": model}, CPU, MemoryPolicy("block", token_parts=4)) as placement:
        placement.use("transformer")
        assert {layer.num_parts for layer in layers} == {4}
        placement.change(MemoryPolicy("block", token_parts=8))
        placement.use("transformer")
        assert {layer.num_parts for layer in layers} == {8}
    assert {layer.num_parts for layer in layers} == {1}


class _Kernel:
    """Stands for a Triton kernel that does nothing: memory does not depend on values."""

    def __getitem__(self, _grid: Any) -> Callable[..., None]:
        return lambda *_arguments, **_options: None


@pytest.fixture
def _as_on_a_gpu(monkeypatch):
    """The path of our kernels, with all that it allocates and nothing that it computes."""
    pytest.importorskip("triton", reason="Triton is not installed")
    from wan_s2v.ops import attention_eight_bit_kernel, eight_bit_kernel, norm_kernel, rope_kernel

    kernels = {
        norm_kernel: ("_add_and_norm",),
        rope_kernel: ("_norm_and_turn",),
        eight_bit_kernel: ("_quantize",),
        attention_eight_bit_kernel: ("_round_heads", "_transpose_values", "_attend"),
    }
    for module, names in kernels.items():
        for name in names:
            monkeypatch.setattr(module, name, _Kernel())
    for module in (norm, rope, eight_bit, attention_eight_bit, "wan_s2v.ops.linear"):
        name = module if isinstance(module, str) else module.__name__
        monkeypatch.setattr(f"{name}.runs_kernels", lambda _x: True)

    def product(x: Any, weight: Any, bias: torch.Tensor) -> torch.Tensor:
        return bias.new_empty(*x.values.shape[:-1], weight.values.shape[0])

    monkeypatch.setattr(quantization, "eight_bit_linear", product)


@pytest.mark.usefixtures("_as_on_a_gpu")
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_forward_takes_the_memory_that_is_planned(kind):
    config = {"attention_head_dim": 128, "ffn_dim": 691, "num_layers": 3}  # ffn_dim in the 14B's proportion
    model = random_transformer(**config).to(BF16)
    conditioning = _conditioning(model, 12, 24, 32)
    KINDS[kind](model)
    latents = torch.randn(1, 16, 12, 24, 32)
    sizes = ModelSizes(
        model.config, {"transformer": 0, "vae": 0}, 1, 0, blocks_run="eight-bit" if "8" in kind else "kernels"
    )
    work = Work(24 * 8, 32 * 8, 16, ((12, True),), 1, 1, num_prompts=0)
    prepared = conditioning.scene.context_tokens.nbytes
    for parts in (1, 2, 4, 8):
        _split(model, parts)
        with Allocations() as found:
            model(latents, torch.tensor([700]), conditioning)
        planned = stage_bytes(sizes, work, BF16, MemoryPolicy(token_parts=parts))["denoise"] - prepared
        assert found.peak <= 1.03 * planned, f"{parts} parts"
        if kind == "plain" and parts > 1:
            assert found.peak >= 0.95 * planned, f"{parts} parts"


@pytest.mark.parametrize("dtype", [torch.float32, BF16])
@torch.no_grad()
def test_plain_pytorch_takes_the_memory_that_is_planned(dtype):
    model = random_transformer(attention_head_dim=128, ffn_dim=691, num_layers=3).to(dtype)
    conditioning = _conditioning(model, 12, 24, 32)
    sizes = ModelSizes(model.config, {"transformer": 0, "vae": 0}, 1, 0, blocks_run="plain")
    work = Work(24 * 8, 32 * 8, 16, ((12, True),), 1, 1, num_prompts=0)
    planned = stage_bytes(sizes, work, dtype, MemoryPolicy())["denoise"] - conditioning.scene.context_tokens.nbytes
    latents = torch.randn(1, 16, 12, 24, 32)
    with Allocations() as found:
        model(latents, torch.tensor([700]), conditioning)
    assert 0.95 * planned <= found.peak <= 1.03 * planned
