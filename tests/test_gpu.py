"""What only a GPU can show. Run with `python -m pytest tests/test_gpu.py` on a machine that has one."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from conftest import MEDIA, assert_close, load_golden
from models import random_pipeline

from wan_s2v import WanS2VPipeline
from wan_s2v.models.transformer import Conditioning, WanS2VTransformer
from wan_s2v.runtime.memory import MemoryPolicy
from wan_s2v.runtime.offload import Placement

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; PyTorch sees none"),
]
OPTIONS = {"height": 64, "width": 80, "num_inference_steps": 2, "seed": 7, "num_frames": 20, "frames_per_clip": 16}
VOICE, PORTRAIT = MEDIA / "talk_2s.wav", MEDIA / "person_small.png"


@pytest.fixture(autouse=True)
def _no_tf32():
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False


def _predict(model: WanS2VTransformer, device: str) -> torch.Tensor:
    draw = torch.Generator().manual_seed(3)
    latents, reference = (torch.randn(1, 16, f, 8, 12, generator=draw).to(device) for f in (4, 1))
    motion = torch.randn(1, 16, 19, 8, 12, generator=draw).to(device)
    prompt, sound = torch.randn(9, 16, generator=draw), torch.randn(1, 3, 16, 16, generator=draw)
    scene = model.prepare_scene(reference, 4, motion_latents=motion)
    audio = model.prepare_audio(sound.to(device), 73)
    conditioning = Conditioning(scene, model.prepare_text([prompt.to(device)]), audio)
    return model(latents, torch.tensor([700], device=device), conditioning)


@torch.no_grad()
def test_float32_equals_the_cpu():
    model = random_pipeline().transformer
    expected = _predict(model, "cpu")
    assert_close(_predict(model.to("cuda"), "cuda").cpu(), expected, 1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_low_precision_is_at_most_twice_as_far_from_float32_as_autocast(dtype):
    exact = random_pipeline(attention_head_dim=64, num_layers=6).transformer.to("cuda")
    for parameter in exact.parameters():
        parameter.copy_(parameter.to(dtype).float())
    truth = _predict(exact, "cuda")
    with torch.autocast("cuda", dtype):
        plain = _predict(exact, "cuda")
    ours = _predict(copy.deepcopy(exact).to(dtype), "cuda")
    assert (ours - truth).norm() <= 2 * (plain - truth).norm()


def test_generation_in_float32_equals_the_cpu():
    pipeline = random_pipeline()
    options = OPTIONS | {"output_type": "pt", "generator": None}
    noise = {"generator": torch.Generator().manual_seed(1), "seed": None}
    on_cpu = pipeline(VOICE, PORTRAIT, **(options | noise)).frames
    pipeline.to("cuda")
    noise = {"generator": torch.Generator().manual_seed(1), "seed": None}
    on_gpu = pipeline(VOICE, PORTRAIT, **(options | noise)).frames
    assert_close(on_gpu, on_cpu, 5e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("two_experts", [False, True])
def test_offload_changes_no_bit(tmp_path, dtype, two_experts):
    random_pipeline(two_experts=two_experts).save_pretrained(tmp_path)
    resident = WanS2VPipeline.from_pretrained(tmp_path, torch_dtype=dtype, device_map="auto")
    assert resident.transformer.device.type == "cuda"
    frames = resident(VOICE, PORTRAIT, **OPTIONS).frames
    again = resident(VOICE, PORTRAIT, **OPTIONS).frames
    assert np.array_equal(frames, again)
    offloaded = WanS2VPipeline.from_pretrained(tmp_path, torch_dtype=dtype)
    assert np.array_equal(offloaded(VOICE, PORTRAIT, enable_cpu_offload=True, **OPTIONS).frames, frames)
    assert offloaded.transformer.device.type == "cpu"


@pytest.mark.parametrize("preset", ["exact", "fast"])
@pytest.mark.parametrize("policy", [MemoryPolicy("text"), MemoryPolicy("model"), MemoryPolicy("block", 2)])
def test_no_memory_policy_changes_a_bit(tmp_path, policy, preset):
    random_pipeline(num_layers=7, attention_head_dim=64).save_pretrained(tmp_path)
    pipeline = WanS2VPipeline.from_pretrained(tmp_path, torch_dtype=torch.bfloat16, device_map="cuda")
    frames = pipeline(VOICE, PORTRAIT, preset=preset, **OPTIONS).frames
    arriving = WanS2VPipeline.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    arriving.compute_on(torch.device("cuda", 0))
    arriving._plan_memory = lambda _plan: policy
    for _run in range(2):
        assert np.array_equal(arriving(VOICE, PORTRAIT, preset=preset, **OPTIONS).frames, frames)
    assert arriving.transformer.device.type == "cpu"


@torch.no_grad()
def test_tokens_in_parts_give_what_they_give_at_once():
    model = random_pipeline().transformer.to("cuda")
    whole = _predict(model, "cuda")
    placement = Placement({"transformer": model}, torch.device("cuda"), MemoryPolicy(token_parts=3))
    assert_close(_predict(placement.use("transformer"), "cuda"), whole, 1e-4)


@pytest.mark.parametrize("name", ["enable_model_cpu_offload", "enable_sequential_cpu_offload", "enable_group_offload"])
def test_names_of_diffusers_bring_parts_as_they_work(name):
    pipeline = random_pipeline(num_layers=7)
    getattr(pipeline, name)()
    result = pipeline(VOICE, PORTRAIT, **OPTIONS)
    assert result.metadata["device"].startswith("cuda")
    assert result.metadata["memory"]["peak_gib"] > 0
    assert pipeline.transformer.device.type == "cpu"


def test_use_fp16_computes_in_float16():
    pipeline = random_pipeline().to("cuda")
    frames = pipeline(VOICE, PORTRAIT, use_fp16=True, **OPTIONS).frames
    assert pipeline.transformer.dtype == torch.float16
    assert frames.std() > 0


@torch.no_grad()
def test_golden_noise_prediction(tmp_path):
    from parity.test_transformer import _condition, load_transformer

    golden, metadata = load_golden("s2v_model_A.later_clip_pose")
    golden = {key: value.cuda() for key, value in golden.items()}
    model = load_transformer("s2v_model_A", tmp_path).cuda()
    out = model(golden["in.x"], golden["in.t"], _condition(model, golden, metadata))
    assert_close(out.cpu(), golden["out"].cpu(), 1e-4)
