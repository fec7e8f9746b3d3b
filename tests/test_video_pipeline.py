"""Runs of the models without sound: as diffusers' own, and under every policy, preset and shortage alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import MEDIA, assert_close
from diffusers import WanImageToVideoPipeline, WanPipeline, WanTransformer3DModel
from diffusers.callbacks import PipelineCallback
from models import random_video_pipeline
from PIL import Image
from safetensors.torch import save_file

import wan_s2v.video_plan
from wan_s2v.errors import NumericsError, UsageError
from wan_s2v.models.video_transformer import WanVideoTransformer
from wan_s2v.runtime.memory import MemoryPolicy
from wan_s2v.runtime.offload import Placement
from wan_s2v.runtime.quantization import is_quantized
from wan_s2v.schedulers import new_scheduler

PICTURE = MEDIA / "person_small.png"
SMALL = {"height": 64, "width": 96, "num_frames": 9, "num_inference_steps": 4, "max_sequence_length": 16}
PROMPT = "a man"
POLICIES = [
    MemoryPolicy("text"),
    MemoryPolicy("model", vae_strips=2),
    MemoryPolicy("block", 0),
    MemoryPolicy("block", 3, 4),
    MemoryPolicy("block", 0, token_parts=4),
]


def _generate(pipeline: Any, policy: MemoryPolicy | None = None, **options: Any) -> torch.Tensor:
    """Frames (B, T, 3, H, W) or latents; with noise of its own at every call, and from the picture if it takes one."""
    if policy is not None:
        pipeline._plan_memory = lambda _plan: policy
    inputs = (PICTURE,) if isinstance(pipeline, WanImageToVideoPipeline) else ()
    common = SMALL | {"prompt": PROMPT, "generator": torch.Generator().manual_seed(7), "output_type": "pt"}
    return pipeline(*inputs, **(common | options)).frames


def _theirs(pipeline: Any, base: type) -> Any:
    """diffusers' own pipeline with its own transformers, of the same weights."""
    parts = dict(pipeline.components)
    for name in ("transformer", "transformer_2"):
        if parts.get(name) is not None:
            config = {key: value for key, value in parts[name].config.items() if not key.startswith("_")}
            parts[name] = WanTransformer3DModel(**config).eval()
            parts[name].load_state_dict(getattr(pipeline, name).state_dict())
    parts = {name: value for name, value in parts.items() if not name.startswith("image_")}
    made = base(
        **parts, boundary_ratio=pipeline.config.boundary_ratio, expand_timesteps=pipeline.config.expand_timesteps
    )
    made.video_processor = pipeline.video_processor
    made.set_progress_bar_config(disable=True)
    return made


@pytest.mark.parametrize(
    ("task", "from_picture", "options"),
    [
        ("t2v", False, {"guidance_scale": 3.0, "guidance_scale_2": 2.0}),
        ("t2v", False, {"guidance_scale": 1.0, "prompt": ["a man", "a cat"]}),
        ("t2v", False, {"guidance_scale": 3.0, "num_videos_per_prompt": 2}),
        ("i2v", True, {"guidance_scale": 3.0}),
        ("i2v", True, {"guidance_scale": 3.0, "last_image": Image.new("RGB", (96, 64), (10, 200, 90))}),
        ("ti2v", False, {"guidance_scale": 3.0}),
        ("ti2v", True, {"guidance_scale": 3.0, "num_videos_per_prompt": 2}),
    ],
)
def test_runs_equal_those_of_diffusers(task, from_picture, options):
    ours = random_video_pipeline(task, from_picture=from_picture)
    theirs = _theirs(ours, WanImageToVideoPipeline if from_picture else WanPipeline)
    options = {"negative_prompt": "rain"} | options
    picture = (Image.open(PICTURE).convert("RGB"),) if from_picture else ()
    common = SMALL | {"prompt": PROMPT, "output_type": "pt"} | options
    expected = theirs(*picture, **common, generator=torch.Generator().manual_seed(7)).frames
    assert_close(_generate(ours, **options), expected, 1e-3)


@pytest.mark.parametrize(
    ("task", "from_picture", "policy"),
    [
        *(("t2v", False, policy) for policy in POLICIES),
        *((task, True, policy) for task in ("i2v", "ti2v") for policy in POLICIES[1:3]),
    ],
)
def test_no_policy_changes_a_bit(task, from_picture, policy):
    pipeline = random_video_pipeline(task, from_picture=from_picture, num_layers=6)
    expected, found = _generate(pipeline), _generate(pipeline, policy)
    if policy.vae_strips == policy.token_parts == 1:
        assert torch.equal(found, expected)
    else:  # libraries sum in another order for other sizes
        assert_close(found, expected, 1e-3)


def test_each_expert_comes_once_and_its_text_is_prepared_once(monkeypatch):
    pipeline, brought, prepared = random_video_pipeline("t2v"), [], []
    bring, prepare = Placement._bring, WanVideoTransformer.prepare_text

    def noted_bring(placement: Placement, name: str, module: Any) -> Any:
        brought.append(name)
        return bring(placement, name, module)

    def noted_prepare(model: Any, embeds: Any) -> Any:
        prepared.append(model)
        return prepare(model, embeds)

    monkeypatch.setattr(Placement, "_bring", noted_bring)
    monkeypatch.setattr(WanVideoTransformer, "prepare_text", noted_prepare)
    _generate(pipeline, MemoryPolicy("model"), num_inference_steps=8)
    assert brought == ["text_encoder", "transformer", "transformer_2", "vae"]
    assert prepared == [pipeline.transformer] * 2 + [pipeline.transformer_2] * 2


class _ShortOfMemory:
    """Runs out of memory at the given calls."""

    def __init__(self, function: Any, *calls: int) -> None:
        self.function, self.calls, self.count = function, calls, 0

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        self.count += 1
        if self.count in self.calls:
            raise torch.OutOfMemoryError("CUDA out of memory (made up).")
        return self.function(*arguments, **keywords)


@pytest.mark.parametrize(
    ("place", "name", "stage", "calls", "preset"),
    [
        (WanVideoTransformer, "predict", "denoise", (1, 4), "exact"),
        (WanVideoTransformer, "predict", "denoise", (1, 4), "fast"),
        (WanVideoTransformer, "prepare_text", "denoise", (2,), "exact"),
        ("wan_s2v.video_pipeline", "decode_latents", "decode", (1,), "exact"),
        ("wan_s2v.vae", "finish", "encode", (1,), "exact"),
    ],
)
def test_what_runs_out_of_memory_is_done_again_with_less(monkeypatch, place, name, stage, calls, preset):
    pipeline = random_video_pipeline("i2v", num_layers=6)
    expected = _generate(pipeline, preset=preset)
    plans, settle = [], pipeline._settle
    monkeypatch.setattr(pipeline, "_settle", lambda plan: (plans.append(plan), settle(plan))[1])
    if isinstance(place, str):
        short = _ShortOfMemory(getattr(__import__(place, fromlist=["_"]), name), *calls)
        monkeypatch.setattr(f"{place}.{name}", short)
    else:
        short = _ShortOfMemory(getattr(place, name), *calls)
        monkeypatch.setattr(place, name, lambda *a, **k: short(*a, **k))
    found = _generate(pipeline, preset=preset)
    assert_close(found, expected, 1e-3)
    said = [line for line in pipeline.describe(plans[0])["warnings"] if f"memory ran out ({stage})" in line]
    assert len(said) == len(calls)


def test_fast_extrapolates_predictions_and_a_threshold_of_zero_computes_all(monkeypatch):
    pipeline = random_video_pipeline("ti2v")
    steps = {"num_inference_steps": 14}
    exact = _generate(pipeline, **steps)
    assert pipeline._num_predictions == 14
    fast = _generate(pipeline, preset="fast", **steps)
    assert 5 <= pipeline._num_predictions < 14
    assert not torch.equal(fast, exact)
    monkeypatch.setattr(wan_s2v.video_plan, "FAST_CHANGE", 0.0)
    assert torch.equal(_generate(pipeline, preset="fast", **steps), exact)


def test_fast_computes_in_eight_bits_where_the_device_can(monkeypatch):
    """The CPU does that only slowly, so it is told that it can."""
    monkeypatch.setattr("wan_s2v.runtime.apply.can_compute_in_eight_bits", lambda device: True)
    pipeline = random_video_pipeline("t2v", attention_head_dim=64)
    exact = _generate(pipeline)
    fast = _generate(pipeline, preset="fast")
    assert is_quantized(pipeline.transformer)
    assert is_quantized(pipeline.transformer_2)
    assert 0 < (fast - exact).abs().mean() < 0.05
    with pytest.raises(UsageError, match="Load the model again"):
        _generate(pipeline)


def test_presets_settle_what_is_not_stated():
    pipeline = random_video_pipeline("t2v")

    def sampling(**options: Any) -> tuple[Any, ...]:
        found = pipeline.plan(prompt="x", **options).sampling
        names = ("num_inference_steps", "flow_shift", "scheduler", "guidance_scale", "guidance_scale_2")
        return tuple(getattr(found, name) for name in names)

    assert sampling() == (40, 12.0, "unipc", 4.0, 3.0)
    assert sampling(preset="4step") == (4, 5.0, "euler", 1.0, 1.0)
    assert sampling(preset="4step", guidance_scale=2, flow_shift=3) == (4, 3, "euler", 2, 2)
    assert sampling(preset="draft") == (12, 12.0, "unipc", 4.0, 3.0)
    draft = pipeline.plan(prompt="x", preset="draft")
    assert draft.height * draft.width <= 832 * 480
    assert "few-step LoRA" in pipeline.plan(prompt="x", preset="4step").warnings[0]
    assert sampling(guidance_scale_2=1.5)[3:] == (4.0, 1.5)


def test_a_preset_has_a_scheduler_of_its_own_and_otherwise_the_pipelines_works():
    pipeline = random_video_pipeline("ti2v")
    pipeline.scheduler = new_scheduler("euler", 5.0)
    by_component = _generate(pipeline, guidance_scale=1)
    pipeline.scheduler = new_scheduler("unipc", 8.0)
    by_keyword = _generate(pipeline, guidance_scale=1, scheduler="euler", flow_shift=5.0)
    by_preset = _generate(pipeline, preset="4step")
    assert torch.equal(by_component, by_keyword)
    assert torch.equal(by_component, by_preset)
    assert not torch.equal(by_component, _generate(pipeline, guidance_scale=1))


def test_one_expert_may_go_without_guidance(monkeypatch):
    pipeline, passes = random_video_pipeline("t2v"), []
    predict = WanVideoTransformer.predict
    monkeypatch.setattr(
        WanVideoTransformer, "predict", lambda model, *a: (passes.append(model), predict(model, *a))[1]
    )  # fmt: skip
    _generate(pipeline, num_inference_steps=8, guidance_scale=1, guidance_scale_2=3.0)
    high = passes.count(pipeline.transformer)
    assert passes.count(pipeline.transformer_2) == 2 * (8 - high)
    assert 0 < high < 8


def test_callbacks_see_and_change_what_they_ask_for():
    pipeline, seen = random_video_pipeline("ti2v"), []

    def note(_pipeline: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        seen.append((step, float(timestep), sorted(tensors)))
        return {}

    plain = _generate(
        pipeline, callback_on_step_end=note, callback_on_step_end_tensor_inputs=["latents", "prompt_embeds"]
    )
    assert [step for step, _, _ in seen] == [0, 1, 2, 3]
    assert seen[0][2] == ["latents", "prompt_embeds"]
    assert pipeline.num_timesteps == 4

    def other(_pipeline: Any, step: int, _timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        return {"prompt_embeds": -tensors["prompt_embeds"]} if step == 1 else {}

    changed = _generate(pipeline, callback_on_step_end=other, callback_on_step_end_tensor_inputs=["prompt_embeds"])
    assert not torch.equal(changed, plain)
    with pytest.raises(UsageError, match=r"asks for \['noise'\]"):
        _generate(pipeline, callback_on_step_end=note, callback_on_step_end_tensor_inputs=["noise"])


def test_a_callback_can_end_the_steps():
    pipeline, steps = random_video_pipeline("ti2v"), []

    class End(PipelineCallback):
        tensor_inputs = ("latents",)

        def callback_fn(self, pipeline: Any, step_index: int, timestep: Any, callback_kwargs: Any) -> Any:
            steps.append(callback_kwargs["latents"])
            pipeline._interrupt = step_index == 1
            return callback_kwargs

    end = End(cutoff_step_ratio=1.0)
    latents = _generate(pipeline, callback_on_step_end=end, output_type="latent")
    assert len(steps) == 2
    assert torch.equal(latents, steps[1])


@pytest.mark.parametrize("output_type", ["np", "pt", "pil", "latent"])
def test_every_output_of_diffusers_is_there(output_type):
    made = _generate(random_video_pipeline("t2v"), output_type=output_type)
    shapes = {"np": (1, 9, 64, 96, 3), "pt": (1, 9, 3, 64, 96), "latent": (1, 16, 3, 8, 12)}
    if output_type == "pil":
        assert [frame.size for frame in made[0]] == [(96, 64)] * 9
    else:
        assert tuple(made.shape) == shapes[output_type]
        assert np.isfinite(np.asarray(made)).all()
    inputs = SMALL | {"output_type": "latent", "num_inference_steps": 1}
    assert isinstance(random_video_pipeline("t2v")(PROMPT, return_dict=False, **inputs), tuple)


def test_embeddings_and_noise_can_be_given():
    pipeline = random_video_pipeline("t2v")
    latents = torch.randn(1, 16, 3, 8, 12, generator=torch.Generator().manual_seed(7))
    expected = _generate(pipeline)
    assert torch.equal(_generate(pipeline, latents=latents, generator=None), expected)
    with torch.no_grad():
        prompt, negative = pipeline.encode_prompt(PROMPT, pipeline.spec.negative_prompt, max_sequence_length=16)
    pipeline.text_encoder = None
    given = {"prompt": None, "prompt_embeds": prompt, "negative_prompt_embeds": negative}
    assert_close(_generate(pipeline, **given), expected, 1e-5)
    with pytest.raises(UsageError, match="text encoder is not loaded"):
        _generate(pipeline)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"guidance": 3}, "'guidance' is not an option. Did you mean guidance_scale"),
        ({"preset": "quick"}, "preset='quick' is not accepted"),
        ({"guidance_scale_2": "much"}, "guidance_scale_2='much' is not a number"),
        ({"num_videos_per_prompt": 0}, "num_videos_per_prompt=0 is not a whole number above 0"),
        ({"prompt_embeds": torch.zeros(1, 4, 16)}, "both is given"),
        ({"prompt": None}, "neither of them is given"),
        ({"prompt": None, "prompt_embeds": torch.zeros(4, 16)}, r"prompt_embeds has the shape \(4, 16\)"),
        ({"num_frames": 8}, "num_frames=8 is not one more .*: 5, 9"),
        ({"height": 60}, "height=60 is not a multiple of 16.*: 48, 64"),
        ({"latents": torch.zeros(1, 16, 3, 8, 8)}, r"shape \(1, 16, 3, 8, 8\); this video needs \(1, 16, 3, 8, 12\)"),
        ({"generator": [torch.Generator()] * 2}, "2 generators for 1 videos"),
        ({"last_image": PICTURE}, "last_image is for I2V-A14B"),
        ({"output_type": "gif"}, "output_type='gif' is not accepted"),
    ],
)
def test_what_is_not_accepted_is_named(options, message):
    with pytest.raises(UsageError, match=message):
        _generate(random_video_pipeline("t2v"), **options)


def test_a_tensor_does_not_say_the_size_and_one_picture_starts_a_video():
    pipeline = random_video_pipeline("i2v")
    with pytest.raises(UsageError, match="Give height and width"):
        pipeline(torch.zeros(1, 3, 64, 96), PROMPT)
    with pytest.raises(UsageError, match="one picture; 2 are given"):
        pipeline(torch.zeros(2, 3, 64, 96), PROMPT, **SMALL)


def test_non_finite_values_stop_the_run_and_are_named():
    pipeline = random_video_pipeline("t2v")
    with torch.no_grad():
        pipeline.transformer_2.proj_out.weight[0, 0] = float("nan")
    with pytest.raises(NumericsError, match=r"prediction became NaN .* step \d of 8"):
        _generate(pipeline, num_inference_steps=8)
    pipeline = random_video_pipeline("t2v")
    with torch.no_grad():
        pipeline.vae.decoder.conv_out.bias[0] = float("nan")
    with pytest.raises(NumericsError, match="Decoding gave NaN"):
        _generate(pipeline)


def _lora_file(folder: Path, name: str) -> Path:
    draw = torch.Generator().manual_seed(5)
    tensors = {
        f"diffusion_model.blocks.{n}.self_attn.q.lora_{side}.weight": torch.randn(shape, generator=draw) * 0.3
        for n in range(2)
        for side, shape in (("down", (4, 24)), ("up", (24, 4)))
    }
    save_file(tensors, folder / name)
    return folder / name


def test_each_expert_has_loras_of_its_own(tmp_path):
    pipeline, file = random_video_pipeline("t2v"), _lora_file(tmp_path, "x.safetensors")
    plain = _generate(pipeline, num_inference_steps=8)
    pipeline.load_lora_weights(file, "x", load_into_transformer_2=True)
    low = _generate(pipeline, num_inference_steps=8)
    pipeline.load_lora_weights(file, "x")
    both = _generate(pipeline, num_inference_steps=8)
    assert not torch.equal(plain, low)
    assert not torch.equal(low, both)
    records = pipeline.describe(pipeline.plan(prompt="x", preset="4step"))["loras"]
    assert {record["transformer"] for record in records} == {"transformer", "transformer_2"}
    assert not pipeline.plan(prompt="x", preset="4step").warnings
    with pytest.raises(UsageError, match="unload_lora_weights"):
        pipeline.save_pretrained(tmp_path / "out")
    pipeline.unload_lora_weights()
    assert torch.equal(_generate(pipeline, num_inference_steps=8), plain)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; PyTorch sees none")
@pytest.mark.parametrize("preset", ["exact", "fast"])
@pytest.mark.parametrize("policy", [None, *POLICIES[:4]])
def test_on_a_gpu_no_policy_changes_a_bit(policy, preset):
    pipeline = random_video_pipeline("ti2v", from_picture=True, num_layers=6, attention_head_dim=64)
    pipeline.transformer.to(torch.bfloat16)
    options = {"preset": preset, "generator": None, "latents": torch.randn(1, 16, 3, 4, 6)}
    pipeline.to("cuda")
    expected = _generate(pipeline, **options).cpu()
    pipeline.to("cpu")
    pipeline.compute_on(torch.device("cuda", 0))
    found = _generate(pipeline, policy, **options).cpu()
    assert pipeline.transformer.device.type == ("cpu" if policy else "cuda")
    assert_close(found, expected, 0 if policy is None or policy.vae_strips == 1 else 2e-2)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; PyTorch sees none")
@pytest.mark.parametrize(("task", "from_picture"), [("t2v", False), ("i2v", True), ("ti2v", True)])
def test_on_a_gpu_float32_equals_the_cpu(task, from_picture):
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    pipeline = random_video_pipeline(task, from_picture=from_picture)
    stride = pipeline.vae_scale_factor_spatial
    options = {"generator": None, "latents": torch.randn(1, 16, 3, 64 // stride, 96 // stride)}
    expected = _generate(pipeline, **options)
    assert_close(_generate(pipeline.to("cuda"), **options).cpu(), expected, 5e-3)
