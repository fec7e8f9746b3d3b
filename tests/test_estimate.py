"""Estimates agree with what was measured on the published model, and move the right way."""

from __future__ import annotations

import mmap
from dataclasses import replace

import command_line
import pytest
import torch
from command_line import IMAGE, VOICE
from diffusers import WanTransformer3DModel
from torch.utils.flop_counter import FlopCounterMode

from wan_s2v.commands.request import ModelChoice, Request, open_model, preview
from wan_s2v.models.config import S2V_14B
from wan_s2v.models.transformer import WanS2VTransformer
from wan_s2v.plan import GenerationOptions
from wan_s2v.runtime.estimate import Rates, estimate, forward_flops, measure_rates
from wan_s2v.runtime.memory import MemoryPolicy, free_bytes, peak_bytes, resident_bytes, weight_bytes
from wan_s2v.runtime.sizes import S2V_14B_SIZES, Work

model = command_line.model
LATER_CLIP = (20, True)
H100 = Rates(787e12, 250e12)
SMALL = Work(480, 832, 16, (LATER_CLIP,), num_inference_steps=40, passes=2)
LARGE = replace(SMALL, height=704, width=1280)


@pytest.mark.parametrize(
    ("work", "attention", "matmul", "total"),
    [(SMALL, 1.01e15, 0.87e15, 1.88e15), (LARGE, 5.14e15, 2.0e15, 7.1e15)],
)
def test_forward_of_the_14b_costs_what_was_counted(work, attention, matmul, total):
    flops = forward_flops(S2V_14B, work.layout(S2V_14B, LATER_CLIP))
    assert flops.attention == pytest.approx(attention, rel=0.03)
    assert flops.matmul == pytest.approx(matmul, rel=0.03)
    assert flops.total == pytest.approx(total, rel=0.03)


@pytest.mark.parametrize(
    ("config", "frames", "sides"),
    [({"num_layers": 2}, 21, (30, 52)), ({"num_layers": 2, "num_attention_heads": 24, "ffn_dim": 14336}, 31, (22, 40))],
)
def test_forward_of_a_model_without_sound_costs_what_pytorch_counts(config, frames, sides):
    """T2V-A14B at 832x480 and TI2V-5B at 1280x704 with fewer layers, on the meta device."""
    rows, columns = sides
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counted:
        model = WanTransformer3DModel(**config)
        latents = torch.empty(1, 16, frames, 2 * rows, 2 * columns)
        model(latents, torch.empty(1), torch.empty(1, 512, 4096))
    work = Work(16 * rows, 16 * columns, 16, ((frames, False),), num_inference_steps=1, passes=1)
    expected = forward_flops(model.config, work.layout(model.config, work.clips[0])).total
    assert expected == pytest.approx(counted.get_total_flops(), rel=0.03)


@pytest.mark.parametrize(("work", "seconds", "peak_gb"), [(SMALL, 337, 43.4), (LARGE, 1162, 56.5)])
def test_time_and_memory_are_near_those_measured_on_an_h100(work, seconds, peak_gb):
    alone = replace(S2V_14B_SIZES, parameters={name: S2V_14B_SIZES.parameters[name] for name in ("transformer", "vae")})
    assert estimate(alone, work, torch.bfloat16, H100, MemoryPolicy()).seconds == pytest.approx(seconds, rel=0.15)
    peak = peak_bytes(alone, work, torch.bfloat16, MemoryPolicy("model"))
    assert 0.7 * peak_gb * 1e9 < peak < peak_gb * 1e9  # of the official code, which holds more at once


def test_parameters_of_the_published_model():
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in WanS2VTransformer(**S2V_14B).parameters())
    assert S2V_14B_SIZES.parameters["transformer"] == count


def test_first_clip_without_motion_is_cheaper_and_offload_needs_less():
    first, later = (forward_flops(S2V_14B, SMALL.layout(S2V_14B, (20, motion))) for motion in (False, True))
    assert first.total < later.total
    policies = MemoryPolicy(), MemoryPolicy("model")
    resident, offloaded = (peak_bytes(S2V_14B_SIZES, SMALL, torch.bfloat16, policy) for policy in policies)
    assert offloaded < resident
    assert offloaded > weight_bytes(S2V_14B_SIZES, torch.bfloat16)["transformer"]


@pytest.mark.parametrize("change", [{"num_inference_steps": 41}, {"passes": 3}, {"clips": (LATER_CLIP,) * 2}])
def test_more_work_takes_longer(change):
    def seconds(work):
        return estimate(S2V_14B_SIZES, work, torch.bfloat16, H100, MemoryPolicy()).seconds

    assert seconds(replace(SMALL, **change)) > seconds(SMALL)


def test_text_encoder_is_never_counted_in_float16():
    assert weight_bytes(S2V_14B_SIZES, torch.float16)["text_encoder"] == 2 * S2V_14B_SIZES.parameters["text_encoder"]
    assert weight_bytes(S2V_14B_SIZES, torch.float32)["text_encoder"] == 4 * S2V_14B_SIZES.parameters["text_encoder"]


def test_the_device_is_measured():
    sizes = replace(S2V_14B_SIZES, vae_dtype=torch.float32)
    rates = measure_rates(torch.device("cpu"), torch.float32, sizes, seconds=0.001)
    assert 1e8 < rates.matmul < 1e15
    assert 1e8 < rates.convolution < 1e15
    free = free_bytes(torch.device("cpu"))
    assert free is None or free > 0


def test_what_a_process_has_is_measured():
    before = resident_bytes()
    if before == 0:
        pytest.skip("this system does not tell")
    with mmap.mmap(-1, 100 << 20) as kept:  # new pages, whatever the heap has kept
        for _ in range(100):
            kept.write(bytes(1 << 20))
        assert resident_bytes() - before == pytest.approx(len(kept), rel=0.1)


def test_plan_for_a_cpu_counts_the_program_itself(model, tmp_path):
    request = Request(IMAGE, VOICE, tmp_path / "out.mp4", GenerationOptions(height=64, width=64, num_frames=4))
    opened = open_model(ModelChoice(str(model), device="cpu"), request.options)
    planned, alone = (preview(request, found) for found in (opened, replace(opened, program_bytes=0)))
    assert resident_bytes() == 0 or opened.program_bytes > 100 << 20, "PyTorch alone takes more"
    assert planned.estimate.peak_bytes - alone.estimate.peak_bytes == opened.program_bytes
    assert resident_bytes() == 0 or planned.free_bytes > free_bytes(torch.device("cpu"))
