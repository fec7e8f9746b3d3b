"""Weights on their way to the device and back. The device is the CPU here, where nothing else differs from a GPU than
that copies wait for each other; what only a GPU shows is in test_gpu.py.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import MEDIA
from models import random_pipeline

from wan_s2v.models.transformer import WanS2VTransformer
from wan_s2v.ops.eight_bit import FLOAT8
from wan_s2v.runtime import offload
from wan_s2v.runtime.memory import SLOTS, MemoryPolicy
from wan_s2v.runtime.offload import BlockStream, Placement
from wan_s2v.runtime.quantization import quantize

CPU = torch.device("cpu")
OPTIONS = {"height": 64, "width": 80, "num_inference_steps": 3, "seed": 7, "num_frames": 40, "frames_per_clip": 16}
VOICE, PORTRAIT = MEDIA / "talk_2s.wav", MEDIA / "person_small.png"
POLICIES = [
    MemoryPolicy("text"),
    MemoryPolicy("model", vae_strips=2),
    MemoryPolicy("block", 0),
    MemoryPolicy("block", 3, 4),
    MemoryPolicy("block", 0, token_parts=4),
]


def _generate(pipeline, policy=None, **options):
    if policy is not None:
        pipeline._plan_memory = lambda _plan: policy
    return pipeline(VOICE, PORTRAIT, **(OPTIONS | options))


def _assert_alike(found, expected):
    """Alike but for strips of the VAE and parts of the tokens: libraries sum in another order for other sizes."""
    assert np.abs(found.astype(int) - expected).max() <= 4
    assert np.abs(found.astype(int) - expected).mean() < 0.02


def _addresses(pipeline):
    return [tensor.data_ptr() for model in pipeline._models().values() for tensor in model.parameters()]


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("two_experts", [False, True])
def test_no_policy_changes_a_bit(policy, two_experts):
    pipeline = random_pipeline(two_experts=two_experts, num_layers=7)
    expected = _generate(pipeline).frames
    found = _generate(pipeline, policy).frames
    if policy.vae_strips == policy.token_parts == 1:
        assert np.array_equal(found, expected)
    else:
        _assert_alike(found, expected)


def test_every_weight_is_back_home_afterwards():
    pipeline = random_pipeline(num_layers=7)
    before = _addresses(pipeline)
    _generate(pipeline, MemoryPolicy("model"))
    assert _addresses(pipeline) == before
    _generate(pipeline, MemoryPolicy("block", 2))
    values = {name: value.clone() for name, value in pipeline.transformer.state_dict().items()}
    assert pipeline.transformer.blocks_in_turn is None
    for name, value in random_pipeline(num_layers=7).transformer.state_dict().items():
        assert torch.equal(values[name], value)
    assert all(not block._forward_pre_hooks for block in pipeline.text_encoder.encoder.block)


@pytest.mark.parametrize("enough_memory", [True, False])
def test_only_the_block_that_works_is_on_the_device(monkeypatch, enough_memory):
    if not enough_memory:  # then nothing is gathered, and copies come from where the weights are
        monkeypatch.setattr(offload, "free_bytes", lambda _device: 0)
    model = random_pipeline(num_layers=7).transformer
    quantize(model, FLOAT8)  # buffers move as parameters do
    blocks = list(model.blocks)
    expected = [block.ffn.net[0].proj.weight.clone() for block in blocks]
    stream = BlockStream(blocks[1:6], CPU)
    stream.open()
    homes = [block.ffn.net[0].proj.weight.data_ptr() for block in blocks]
    assert bool(stream._host) == enough_memory
    slots = [range(s.memory.data_ptr(), s.memory.data_ptr() + s.memory.nbytes) for s in stream._slots]
    assert len(slots) == SLOTS
    for _pass in range(3):
        for index, block in enumerate(stream.in_turn(blocks)):
            assert torch.equal(block.ffn.net[0].proj.weight, expected[index])
            there = [any(b.ffn.net[0].proj.weight.data_ptr() in slot for slot in slots) for b in blocks]
            assert there == [i == index and 1 <= i < 6 for i in range(7)]
    assert [block.ffn.net[0].proj.weight.data_ptr() for block in blocks] == homes
    stream.close()


def test_each_block_is_copied_once_a_pass_and_one_ahead(monkeypatch):
    model = random_pipeline(num_layers=5).transformer
    stream, copied, worked = BlockStream(list(model.blocks), CPU), [], []
    copy = stream._copy
    monkeypatch.setattr(stream, "_copy", lambda position, slot: (copied.append(position), copy(position, slot))[1])
    stream.open()
    for _pass in range(2):
        for index, _block in enumerate(stream.in_turn(model.blocks)):
            worked.append(index)
            assert copied[len(worked)] == (index + 1) % 5
    assert copied == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0]


def test_streamed_blocks_are_evenly_spread():
    for count in range(1, 41):
        chosen = offload._spread(list(range(40)), count)
        assert len(chosen) == count
        gaps = np.diff([-1, *chosen])
        assert gaps.max() - gaps.min() <= 1


def test_parts_that_do_not_share_the_device_leave_for_each_other():
    pipeline = random_pipeline()
    with Placement(pipeline._models(), CPU, MemoryPolicy("text")) as placement:
        placement.use("text_encoder")
        assert set(placement._present) == {"text_encoder"}
        placement.use("vae")
        placement.use("transformer")
        assert set(placement._present) == {"vae", "transformer"}
        placement.change(MemoryPolicy("model"))
        assert not placement._present
        placement.use("transformer")
        placement.use("vae")
        assert set(placement._present) == {"vae"}
    assert not placement._present


class _ShortOfMemory:
    """Runs out of memory at the given calls."""

    def __init__(self, function, *calls):
        self.function, self.calls, self.count = function, calls, 0

    def __call__(self, *arguments, **keywords):
        self.count += 1
        if self.count in self.calls:
            raise torch.OutOfMemoryError("CUDA out of memory (made up).")
        return self.function(*arguments, **keywords)


@pytest.mark.parametrize("calls", [(1,), (4,), (2, 3, 9)])
@pytest.mark.parametrize("preset", ["exact", "fast"])
def test_a_forward_that_runs_out_of_memory_is_done_again_with_less(monkeypatch, calls, preset):
    pipeline = random_pipeline(num_layers=7)
    expected = _generate(pipeline, preset=preset)
    short = _ShortOfMemory(WanS2VTransformer.forward, *calls)
    monkeypatch.setattr(WanS2VTransformer, "forward", lambda *a, **k: short(*a, **k))
    result = _generate(pipeline, preset=preset)
    assert np.array_equal(result.frames, expected.frames)
    said = [line for line in result.metadata["warnings"] if "memory ran out (denoise)" in line]
    assert len(said) == len(calls)
    assert not [line for line in expected.metadata["warnings"] if "memory ran out" in line]


@pytest.mark.parametrize(("name", "stage"), [("decode_latents", "decode"), ("encode_prompt", "text")])
def test_any_stage_that_runs_out_of_memory_is_done_again(monkeypatch, name, stage):
    pipeline = random_pipeline(num_layers=7)
    expected = _generate(pipeline)
    short = _ShortOfMemory(getattr(__import__("wan_s2v.pipeline", fromlist=["_"]), name), 1, 2)
    monkeypatch.setattr(f"wan_s2v.pipeline.{name}", short)
    result = _generate(pipeline)
    _assert_alike(result.frames, expected.frames)
    assert len([line for line in result.metadata["warnings"] if f"memory ran out ({stage})" in line]) == 2


def test_encoding_that_runs_out_of_memory_is_done_again(monkeypatch):
    pipeline = random_pipeline(num_layers=7)
    expected = _generate(pipeline)
    short = _ShortOfMemory(WanS2VTransformer.prepare_scene, 2)
    monkeypatch.setattr(WanS2VTransformer, "prepare_scene", lambda *a, **k: short(*a, **k))
    assert np.array_equal(_generate(pipeline).frames, expected.frames)


def test_what_one_run_gave_up_is_not_told_of_another(monkeypatch):
    pipeline = random_pipeline(num_layers=7)
    short = _ShortOfMemory(WanS2VTransformer.forward, 1)
    with monkeypatch.context() as patch:
        patch.setattr(WanS2VTransformer, "forward", lambda *a, **k: short(*a, **k))
        assert any("memory ran out" in line for line in _generate(pipeline).metadata["warnings"])
    another = pipeline.plan(VOICE, PORTRAIT, **OPTIONS)
    assert not any("memory ran out" in line for line in pipeline.describe(another)["warnings"])


def test_memory_that_never_suffices_ends_the_run(monkeypatch):
    def fail(*_arguments, **_keywords):
        raise torch.OutOfMemoryError("CUDA out of memory (made up).")

    monkeypatch.setattr(WanS2VTransformer, "forward", fail)
    pipeline = random_pipeline(num_layers=7)
    with pytest.raises(torch.OutOfMemoryError):
        _generate(pipeline)
    assert pipeline.transformer.blocks_in_turn is None
