"""The memory planner: what it chooses for which budget, and that what it chooses takes no more."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from models import random_pipeline

from wan_s2v.models.config import S2V_14B
from wan_s2v.models.transformer import WanS2VBlock
from wan_s2v.runtime.memory import OFFLOADS, MemoryPolicy, choose_policy, peak_bytes, stage_bytes, weight_bytes
from wan_s2v.runtime.quantization import quantize_float8
from wan_s2v.runtime.sizes import S2V_14B_SIZES, Work, loaded_sizes

GB = 10**9
SMALL = Work(480, 832, 16, ((20, True),), num_inference_steps=40, passes=2)
LARGE = replace(SMALL, height=704, width=1280)
BF16 = torch.bfloat16


@pytest.mark.parametrize("work", [SMALL, LARGE])
@pytest.mark.parametrize("budget", [None, 12 * GB, 16 * GB, 24 * GB, 32 * GB, 48 * GB, 80 * GB, 141 * GB])
def test_the_cheapest_policy_that_fits_is_chosen(work, budget):
    policy = choose_policy(S2V_14B_SIZES, work, BF16, budget)
    if budget is None:
        assert policy == MemoryPolicy()
        return
    fits = peak_bytes(S2V_14B_SIZES, work, BF16, policy) <= budget
    assert fits or policy == MemoryPolicy("block", 0, 8, 8)
    for offload in OFFLOADS[: OFFLOADS.index(policy.offload)]:
        assert peak_bytes(S2V_14B_SIZES, work, BF16, MemoryPolicy(offload, 0, 8)) > budget
    if policy.vae_strips > 1:
        assert peak_bytes(S2V_14B_SIZES, work, BF16, replace(policy, vae_strips=policy.vae_strips // 2)) > budget
    if policy.token_parts > 1:
        less = replace(policy, vae_strips=8, token_parts=policy.token_parts // 2)
        assert peak_bytes(S2V_14B_SIZES, work, BF16, less) > budget
    elif policy.offload == "block" and fits:
        more = replace(policy, resident_blocks=policy.resident_blocks + 1, vae_strips=8)
        assert policy.resident_blocks >= 37 or peak_bytes(S2V_14B_SIZES, work, BF16, more) > budget


def test_less_memory_never_means_giving_up_less():
    levels = [OFFLOADS.index(choose_policy(S2V_14B_SIZES, LARGE, BF16, gb * GB).offload) for gb in range(120, 10, -2)]
    assert levels == sorted(levels)
    assert set(levels) == {0, 1, 2, 3}


@pytest.mark.parametrize(("capacity", "parts"), [(16 * GB, 1), (12 * GB, 4)])
def test_720p_fits_small_cards(capacity, parts):
    """What a cap leaves beside what libraries take, see `device_budget`."""
    budget = capacity - (600 << 20)
    policy = choose_policy(S2V_14B_SIZES, LARGE, BF16, budget)
    assert peak_bytes(S2V_14B_SIZES, LARGE, BF16, policy) <= budget
    assert (policy.offload, policy.token_parts) == ("block", parts)
    assert ("tokens go through them in 4 parts" in policy.description) == (parts == 4)


def test_a_pose_video_and_8_bit_attention_take_more():
    plain = stage_bytes(S2V_14B_SIZES, LARGE, BF16, MemoryPolicy())["denoise"]
    pose = stage_bytes(S2V_14B_SIZES, replace(LARGE, has_pose=True), BF16, MemoryPolicy())["denoise"]
    assert pose - plain == 70_400 * 5120 * 4  # its tokens stay in float32 during a clip
    float8 = replace(S2V_14B_SIZES, computes_in_float8=True)
    assert stage_bytes(float8, LARGE, BF16, MemoryPolicy())["denoise"] > plain


def test_what_is_asked_for_is_the_least_that_is_given_up():
    for least in OFFLOADS:
        assert choose_policy(S2V_14B_SIZES, SMALL, BF16, None, least).offload == least


@pytest.mark.parametrize("stage", ["text", "encode", "denoise", "decode"])
def test_each_lower_policy_takes_less_in_its_stage_until_none_is_left(stage):
    policy, found = MemoryPolicy(), []
    while policy is not None:
        found.append(stage_bytes(S2V_14B_SIZES, LARGE, BF16, policy)[stage])
        assert policy.description
        policy = policy.lower(stage)
        assert len(found) < 20
    assert all(after <= before for before, after in itertools.pairwise(found))
    assert found[-1] < 0.5 * found[0]


def test_a_lower_policy_lets_blocks_go_before_it_gives_up():
    policy = MemoryPolicy("block", 10)
    assert policy.lower("denoise") == MemoryPolicy("block", 5)
    assert MemoryPolicy("block").lower("denoise") == MemoryPolicy("block", token_parts=2)
    assert MemoryPolicy("block", token_parts=8).lower("denoise") is None
    assert MemoryPolicy("block").lower("text") is None
    assert MemoryPolicy("block", 0, 8).lower("decode") is None


def test_a_block_is_as_large_as_counted():
    with torch.device("meta"):
        heads, size, inner = S2V_14B["num_attention_heads"], S2V_14B["attention_head_dim"], S2V_14B["ffn_dim"]
        block = WanS2VBlock(heads * size, heads, inner, 1e-6)
    count = sum(parameter.numel() for parameter in block.parameters())
    assert S2V_14B_SIZES.block_share == pytest.approx(count / S2V_14B_SIZES.parameters["transformer"], rel=1e-9)


def test_loaded_models_are_counted_as_they_are():
    pipeline = random_pipeline()
    quantize_float8(pipeline.transformer)
    pipeline.text_encoder.to(BF16)
    names = ("transformer", "vae", "text_encoder", "audio_encoder")
    models = {name: getattr(pipeline, name) for name in names}
    counted = weight_bytes(loaded_sizes(models), BF16)
    for name, model in models.items():
        assert counted[name] == sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers())), name
