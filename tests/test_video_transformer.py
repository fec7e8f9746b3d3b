"""The transformer without sound: diffusers' class in all but its inside, and all of the runtime applies to it."""

from __future__ import annotations

import copy

import pytest
import torch
from allocations import Allocations
from conftest import assert_close
from diffusers import WanTransformer3DModel
from models import random_video_transformer
from safetensors.torch import save_file

from wan_s2v.errors import CheckpointError, UsageError
from wan_s2v.models.video_transformer import Times, WanVideoTransformer
from wan_s2v.ops.attention_eight_bit import attention_eight_bit
from wan_s2v.ops.eight_bit import FLOAT8, INT8
from wan_s2v.runtime.lora import Adapters, branch_bytes
from wan_s2v.runtime.memory import MemoryPolicy, choose_policy, stage_bytes
from wan_s2v.runtime.offload import BlockStream, Placement
from wan_s2v.runtime.quantization import EightBitLinear, attend_in_eight_bits, quantize
from wan_s2v.runtime.sizes import FULL_VAE, ModelSizes, Work
from wan_s2v.weights.lora import LoRAFile, read_lora
from wan_s2v.weights.names import inverse, plain_transformer_names

CPU = torch.device("cpu")
TOKENS_PER_FRAME, FRAMES = 24, 3
NUM_TOKENS = TOKENS_PER_FRAME * FRAMES


def _inputs(batch: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(3)
    latents = torch.randn(batch, 16, FRAMES, 8, 12, generator=draw)
    return latents, torch.randn(batch, 10, 16, generator=draw)


@torch.no_grad()
def _predict(model: WanTransformer3DModel, timestep: torch.Tensor | None = None, batch: int = 1) -> torch.Tensor:
    latents, prompt = _inputs(batch)
    timestep = torch.full((batch,), 700) if timestep is None else timestep
    return model(latents, timestep, prompt, return_dict=False)[0]


@pytest.fixture(scope="module")
def plain() -> WanTransformer3DModel:
    """diffusers' own, with the weights of ours."""
    model = random_video_transformer()
    config = {key: value for key, value in model.config.items() if not key.startswith("_")}
    found = WanTransformer3DModel(**config).eval()
    found.load_state_dict(model.state_dict())
    return found


def test_config_and_tensors_are_those_of_diffusers(plain):
    ours = random_video_transformer()
    assert isinstance(ours, WanTransformer3DModel)
    for key in _keys(plain):
        assert ours.config[key] == plain.config[key]
    found, expected = ours.state_dict(), plain.state_dict()
    assert {name: value.shape for name, value in found.items()} == {n: v.shape for n, v in expected.items()}


def _keys(model: WanTransformer3DModel) -> list[str]:
    return [key for key in model.config if not key.startswith("_")]


@pytest.mark.parametrize(
    ("timestep", "num_stretches"),
    [
        (torch.tensor([700, 300]), 1),
        (torch.full((2, NUM_TOKENS), 640.0), 1),
        (torch.cat((torch.zeros(2, TOKENS_PER_FRAME), torch.full((2, 2 * TOKENS_PER_FRAME), 640.0)), dim=1), 2),
        (torch.tensor([[1.0, 2, 3], [4, 5, 6]]).repeat_interleave(TOKENS_PER_FRAME, dim=1), 3),
        (torch.tensor([[1.0] * 5 + [2] * (NUM_TOKENS - 5)] * 2), 2),
        (torch.tensor([[1.0] * 6 + [2] * 9 + [3] * (NUM_TOKENS - 15)] * 2), 6),
        (torch.randint(0, 1000, (2, NUM_TOKENS), generator=torch.Generator().manual_seed(1)), NUM_TOKENS),
    ],
    ids=["one each", "one for all", "picture first", "per frame", "two", "uneven", "any"],
)
def test_any_timesteps_give_what_diffusers_gives_from_a_row_for_each_stretch(plain, timestep, num_stretches):
    assert Times.of(timestep).timesteps.shape == (2, num_stretches)
    made = _predict(random_video_transformer(), timestep, batch=2)
    assert_close(made, _predict(plain, timestep, batch=2), 1e-5)


def test_a_stretch_takes_a_row_and_not_one_for_each_token():
    model = random_video_transformer(num_layers=1)
    timestep = torch.full((1, NUM_TOKENS), 640.0)
    timestep[:, :TOKENS_PER_FRAME] = 0
    seen: list[int] = []
    model.blocks[0].register_forward_pre_hook(lambda _module, args: seen.append(args[1].shape[2]))
    _predict(model, timestep)
    assert seen == [2]


def test_layers_that_wan22_lacks_are_refused():
    with pytest.raises(UsageError, match=r"image_dim.*\(True, 'rms_norm_across_heads', 1280, None, None\)"):
        random_video_transformer(image_dim=1280)
    latents, prompt = _inputs()
    with pytest.raises(UsageError, match=r"are for Wan2\.1 and PEFT"):
        random_video_transformer()(latents, torch.tensor([1]), prompt, prompt)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_at_most_twice_as_far_from_float32_as_diffusers(plain, dtype):
    truth = _predict(plain)
    rounded = copy.deepcopy(plain).to(dtype)
    latents, prompt = _inputs()
    with torch.no_grad():
        theirs = rounded(latents.to(dtype), torch.tensor([700]), prompt.to(dtype), return_dict=False)[0]
    ours = random_video_transformer()
    ours.load_state_dict(plain.state_dict())
    assert (_predict(ours.to(dtype)) - truth).norm() <= 2 * (theirs.float() - truth).norm()


@pytest.mark.parametrize("timestep", [torch.tensor([700, 300]), torch.tensor([[0.0] * 24 + [640] * 48] * 2)])
def test_our_kernels_give_the_same_in_the_interpreter(monkeypatch, timestep):
    pytest.importorskip("triton", reason="Triton is not installed")
    if torch.cuda.is_available():
        pytest.skip("kernels are compiled for the GPU here")
    model = random_video_transformer()
    expected = _predict(model, timestep, batch=2)
    for module in ("norm", "rope", "linear"):
        monkeypatch.setattr(f"wan_s2v.ops.{module}.runs_kernels", lambda _x: True)
    assert_close(_predict(model, timestep, batch=2), expected, 1e-4)  # a kernel alone: 5e-6


@torch.no_grad()
def test_text_is_prepared_once_and_changes_nothing():
    model = random_video_transformer()
    latents, prompt = _inputs()
    text, frame, times = model.prepare_text(prompt), model.prepare_frame(latents), Times.of(torch.tensor([700]))
    made = [model.predict(latents, times, frame, text) for _step in range(2)]
    assert torch.equal(made[0], made[1])
    assert torch.equal(made[0], _predict(model))


@torch.no_grad()
def test_blocks_that_arrive_in_turn_change_no_bit():
    model = random_video_transformer(num_layers=7)
    expected = _predict(model)
    with Placement({"transformer": model}, CPU, MemoryPolicy("block", 2)) as placement:
        found = _predict(placement.use("transformer"))
        assert isinstance(placement._streams["transformer"], BlockStream)
    assert torch.equal(found, expected)
    assert model.blocks_in_turn is None


@pytest.mark.parametrize("parts", [2, 7, 1000])
def test_tokens_in_parts_give_what_they_give_at_once(parts):
    model = random_video_transformer()
    expected = _predict(model)
    with Placement({"transformer": model}, CPU, MemoryPolicy(token_parts=parts)) as placement:
        assert_close(_predict(placement.use("transformer")), expected, 2e-5)


@torch.no_grad()
@pytest.mark.parametrize(("dtype", "cosine"), [(INT8, 0.9999), (FLOAT8, 0.999)])
def test_eight_bits_predict_nearly_the_same(dtype, cosine):
    exact = random_video_transformer(attention_head_dim=64, num_layers=3)
    rounded = copy.deepcopy(exact)
    quantize(rounded, dtype)
    attend_in_eight_bits(rounded)
    names = {name for name, module in rounded.named_modules() if isinstance(module, EightBitLinear)}
    assert len(names) == 8 * 3
    assert all(name.startswith("blocks.") for name in names)
    assert all(block.attn1.attend is attention_eight_bit for block in rounded.blocks)
    found, expected = _predict(rounded), _predict(exact)
    assert not torch.equal(found, expected)
    assert torch.nn.functional.cosine_similarity(found.flatten(), expected.flatten(), dim=0) > cosine


LAYERS = ("blocks.0.attn1.to_q", "blocks.1.attn2.to_k", "blocks.1.ffn.net.0.proj", "condition_embedder.time_proj",
          "condition_embedder.text_embedder.linear_1", "proj_out", "patch_embedding")  # fmt: skip


def _lora(model: WanVideoTransformer, rank: int = 4) -> dict[str, torch.Tensor]:
    """By official names, as ComfyUI has them."""
    draw, official = torch.Generator().manual_seed(5), inverse(plain_transformer_names(model.config))
    tensors = {}
    for layer in LAYERS:
        outputs, *inputs = model.get_submodule(layer).weight.shape
        name = f"diffusion_model.{official[layer]}"
        tensors[f"{name}.lora_down.weight"] = torch.randn(rank, *inputs, generator=draw) * 0.1
        tensors[f"{name}.lora_up.weight"] = torch.randn(outputs, rank, *[1] * (len(inputs) - 1), generator=draw) * 0.1
    return tensors


@torch.no_grad()
def test_a_lora_equals_merged_weights_and_leaves_no_trace():
    model = random_video_transformer()
    tensors, merged = _lora(model), copy.deepcopy(model)
    official = inverse(plain_transformer_names(model.config))
    for layer in LAYERS:
        down, up = (tensors[f"diffusion_model.{official[layer]}.lora_{side}.weight"] for side in ("down", "up"))
        weight = merged.get_submodule(layer).weight
        weight += (up.flatten(1) @ down.flatten(1)).view_as(weight)
    before, expected = _predict(model), _predict(merged)
    adapters = Adapters(model)
    adapters.add("one", read_lora(tensors, model.config), 1.0)
    assert (expected - before).abs().max() > 0.1
    assert_close(_predict(model), expected, 1e-5 * expected.abs().max().item())
    adapters.clear()
    assert torch.equal(_predict(model), before)


def test_loras_of_other_models_are_refused():
    model = random_video_transformer()
    with pytest.raises(CheckpointError, match=r"\(4, 48\).*needs \(rank, 24\)"):
        read_lora(_lora(random_video_transformer(attention_head_dim=24)), model.config)
    sound = {"audio_injector.injector.0.q.lora_down.weight": torch.ones(4, 24)}
    sound["audio_injector.injector.0.q.lora_up.weight"] = torch.ones(24, 4)
    with pytest.raises(CheckpointError, match="2 tensors that this model has no place for: audio_injector"):
        read_lora(sound, model.config)
    text = read_lora(_lora(model), random_video_transformer(in_channels=36).config)  # made for T2V, put on I2V
    assert "patch_embedding.weight" not in text.pairs
    assert "made for another kind of model; 2 tensors" in text.notes[0]
    assert read_lora(_lora(model), model.config).notes == ()


def test_memory_of_a_lora_is_told_from_its_header(tmp_path):
    model = random_video_transformer()
    save_file(_lora(model), tmp_path / "x.safetensors")
    told = branch_bytes(LoRAFile(tmp_path / "x.safetensors"), model.config, torch.float32)
    before = sum(buffer.nbytes for buffer in model.buffers())
    Adapters(model).add("x", read_lora(tmp_path / "x.safetensors", model.config), 1.0)
    assert told == sum(buffer.nbytes for buffer in model.buffers()) - before > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_a_forward_takes_the_memory_that_is_planned(dtype):
    model = random_video_transformer(attention_head_dim=128, ffn_dim=691, num_layers=2).to(dtype)
    latents = torch.randn(2, 16, 12, 24, 32)
    prompt = torch.randn(2, 10, 16)
    text, frame, times = model.prepare_text(prompt), model.prepare_frame(latents), Times.of(torch.tensor([700]))
    sizes = ModelSizes(model.config, {"transformer": 0, "vae": 0}, 1, 0, blocks_run="plain")
    work = Work(24 * 8, 32 * 8, 16, ((12, False),), 1, 1, num_prompts=0, num_videos=2)
    planned = stage_bytes(sizes, work, dtype, MemoryPolicy())["denoise"]
    with Allocations() as found:
        model.predict(latents, times, frame, text)
    assert 0.9 * planned <= found.peak <= 1.03 * planned


def test_both_experts_stand_under_one_policy():
    """T2V-A14B at its official size, on cards from 16 to 141 GB."""
    config = random_video_transformer(num_layers=1).config | {
        "num_attention_heads": 40, "attention_head_dim": 128, "ffn_dim": 13824, "num_layers": 40, "text_dim": 4096
    }  # fmt: skip
    counts = {"transformer": 14_288_491_584, "transformer_2": 14_288_491_584, "vae": FULL_VAE}
    sizes = ModelSizes(config, counts | {"text_encoder": 5_680_910_336}, 96, 256_384 * 4096, vae_dtype=torch.float16)
    work = Work(720, 1280, 16, ((21, False),), 40, 2)
    chosen = [choose_policy(sizes, work, torch.bfloat16, gigabytes * 10**9) for gigabytes in (16, 24, 48, 141)]
    assert [policy.offload for policy in chosen] == ["block", "block", "model", "none"]
    assert 0 < chosen[0].resident_blocks < chosen[1].resident_blocks
    one, both = (stage_bytes(sizes, work, torch.bfloat16, chosen[k])["denoise"] for k in (2, 3))
    assert both - one > 2 * counts["transformer"]  # the other expert, in 16 bits
