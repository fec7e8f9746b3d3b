"""The pipeline's promises: timing, seeds, guidance, experts, saving, and clear stops."""

from __future__ import annotations

import copy
import wave
from fractions import Fraction

import numpy as np
import pytest
import torch
from conftest import MEDIA, assert_close
from models import random_pipeline, random_transformer
from PIL import Image
from torch import nn

import wan_s2v.pipeline
from wan_s2v import WanS2VPipeline
from wan_s2v.denoise import Guidance
from wan_s2v.errors import CheckpointError, NumericsError, UsageError
from wan_s2v.models.transformer import Conditioning
from wan_s2v.runtime.offload import Placement
from wan_s2v.runtime.precision import vae_dtype
from wan_s2v.video import read_video_info

VOICE = MEDIA / "talk_2s.wav"
PORTRAIT = MEDIA / "person_small.png"
SMALL = {"height": 64, "width": 80, "num_inference_steps": 2, "seed": 7}


@pytest.fixture(scope="module")
def pipeline() -> WanS2VPipeline:
    return random_pipeline()


def test_defaults_give_a_video_as_long_as_the_sound(pipeline, tmp_path):
    result = pipeline(VOICE, PORTRAIT, prompt="she smiles", **SMALL)
    assert result.frames.shape == (48, 64, 80, 3)
    assert result.frames.dtype == np.uint8
    assert (result.fps, result.sample_rate) == (24, 16_000)
    info = read_video_info(result.save(tmp_path / "out.mp4"))
    assert (info.num_frames, info.fps, info.height, info.width) == (48, 24, 64, 80)
    assert abs(info.duration_s - 2.0) < 1e-6
    assert abs(info.audio_duration_s - 2.0) < 0.025
    assert result.metadata["seed"] == 7
    assert result.metadata["num_clips"] == 1


def test_same_seed_same_frames_and_another_seed_others(pipeline):
    first = pipeline(VOICE, PORTRAIT, num_frames=8, **SMALL).frames
    assert np.array_equal(first, pipeline(VOICE, PORTRAIT, num_frames=8, **SMALL).frames)
    assert not np.array_equal(first, pipeline(VOICE, PORTRAIT, num_frames=8, **(SMALL | {"seed": 8})).frames)


def test_generator_in_place_of_a_seed(pipeline):
    options = {key: value for key, value in SMALL.items() if key != "seed"} | {"num_frames": 8}
    frames = [
        pipeline(VOICE, PORTRAIT, generator=torch.Generator().manual_seed(42), **options).frames for _ in range(2)
    ]
    assert np.array_equal(*frames)
    with pytest.raises(UsageError, match="seed and generator"):
        pipeline(VOICE, PORTRAIT, generator=torch.Generator(), seed=1)


@pytest.mark.parametrize("fps", [16, 24, 25, 29.97])
def test_stream_gives_the_frames_of_the_call_clip_by_clip(pipeline, fps):
    options = SMALL | {"frames_per_clip": 16, "fps": fps, "num_clips": 3}
    clips = list(pipeline.stream(VOICE, PORTRAIT, **options))
    assert [clip.clip.index for clip in clips] == [0, 1, 2]
    whole = pipeline(VOICE, PORTRAIT, **options)
    assert np.array_equal(np.concatenate([clip.frames for clip in clips]), whole.frames)
    assert len(whole.frames) == whole.plan.clips.num_frames


def test_decoded_inputs_equal_files(pipeline):
    voice = MEDIA / "talk_exact_multiple_16k.wav"
    with wave.open(str(voice)) as file:
        rate, channels = file.getframerate(), file.getnchannels()
        sound = np.frombuffer(file.readframes(file.getnframes()), np.int16).reshape(-1, channels)
    options = SMALL | {"num_frames": 4}
    from_files = pipeline(voice, PORTRAIT, **options).frames
    from_objects = pipeline((sound, rate), Image.open(PORTRAIT), **options).frames
    assert np.array_equal(from_files, from_objects)


def test_aligned_timing_shifts_the_sound_of_the_first_clip_by_its_warm_up(pipeline):
    aligned = pipeline.plan(VOICE, PORTRAIT, frames_per_clip=16, fps=16, **SMALL)
    reference = pipeline.plan(VOICE, PORTRAIT, frames_per_clip=16, timing="reference", **SMALL)
    first, second = aligned.clips.clips[:2]
    assert (first.start, first.keep_start) == (-3, 3)
    assert second.start == first.num_frames - 3
    assert [clip.start for clip in reference.clips.clips[:2]] == [0, 16]


@torch.no_grad()
def _on_the_cpu(pipeline):
    return Placement(pipeline._models(), torch.device("cpu"))


def test_each_kept_frame_hears_its_own_sound(pipeline):
    """Column k of every clip's conditioning is the sound at the time that its frame is shown."""
    plan = pipeline.plan(VOICE, PORTRAIT, frames_per_clip=12, fps=16, **SMALL)
    job = pipeline._prepare_job(plan, _on_the_cpu(pipeline), lambda _stage: torch.no_grad())
    at = job.features.features(np.minimum(np.round(np.arange(64) * 30 / 16), job.features.num_features - 1).astype(int))
    for clip in plan.clips.clips:
        columns = pipeline._audio_features(job, clip)[0]
        for k in range(clip.keep_start, clip.keep_stop):
            assert torch.equal(columns[..., k], at[..., clip.start + k])


def test_official_timing_makes_whole_clips(pipeline, tmp_path):
    result = pipeline(VOICE, PORTRAIT, timing="reference", frames_per_clip=16, **SMALL)
    assert result.fps == 16
    assert len(result.frames) == 2 * 16 - 3 or len(result.frames) % 16 == 13
    info = read_video_info(result.save(tmp_path / "out.mp4"))
    assert info.num_frames == min(len(result.frames), 32)


def test_start_from_reference_keeps_every_frame(pipeline):
    plan = pipeline.plan(VOICE, PORTRAIT, start_from_reference=True, fps=16, **SMALL)
    assert plan.clips.generated_frames == 32
    frames = pipeline(VOICE, PORTRAIT, start_from_reference=True, num_frames=8, **SMALL).frames
    assert len(frames) == 8


def test_pose_steers_the_video_and_a_short_one_is_reported(pipeline):
    options = SMALL | {"num_frames": 8}
    posed = pipeline(VOICE, PORTRAIT, pose_video_path=MEDIA / "pose_small.mp4", **options)
    assert not np.array_equal(posed.frames, pipeline(VOICE, PORTRAIT, **options).frames)
    assert posed.metadata["warnings"] == []
    long = pipeline.plan(MEDIA / "talk_5s_8k.wav", PORTRAIT, pose_video_path=MEDIA / "pose_small.mp4", **SMALL)
    assert any("pose" in warning for warning in long.warnings)


def test_guidance_of_the_sound_alone_equals_the_joint_one_where_the_scales_agree(pipeline):
    options = SMALL | {"num_frames": 4, "output_type": "latent", "prompt": "a cat"}
    joint = pipeline(VOICE, PORTRAIT, guidance_scale=3.0, **options).frames
    apart = pipeline(VOICE, PORTRAIT, guidance_scale=3.0, audio_guidance_scale=3.0, **options).frames
    stronger = pipeline(VOICE, PORTRAIT, guidance_scale=3.0, audio_guidance_scale=6.0, **options).frames
    assert (joint - apart).abs().max() < 1e-4
    assert (joint - stronger).abs().max() > 1e-3


@pytest.mark.parametrize(("guidance", "passes"), [(Guidance(1.0), 1), (Guidance(4.5), 2), (Guidance(4.5, 2.0), 3)])
def test_passes_per_step(guidance, passes):
    assert guidance.passes == passes


def test_prompt_embeddings_stand_in_for_the_text_encoder(pipeline):
    options = SMALL | {"num_frames": 4, "guidance_scale": 3.0}
    embeds = pipeline._prompt_embeds(None, "a cat", _on_the_cpu(pipeline))
    padded = torch.cat((embeds, torch.zeros(24 - len(embeds), 16)))[None]
    without = random_pipeline()
    without.text_encoder = without.tokenizer = None
    frames = [
        without(VOICE, PORTRAIT, prompt_embeds=given, negative_prompt_embeds=[embeds * 0], **options).frames
        for given in ([embeds], embeds, padded)
    ]
    assert np.array_equal(frames[0], frames[1])
    assert np.array_equal(frames[0], frames[2])
    with pytest.raises(UsageError, match="prompt_embeds"):
        without(VOICE, PORTRAIT, **options)
    with pytest.raises(UsageError, match="16"):
        without(VOICE, PORTRAIT, prompt_embeds=torch.zeros(3, 5), **options)


def test_experts_switch_at_the_boundary():
    both = random_pipeline(two_experts=True)
    options = SMALL | {"num_frames": 4, "num_inference_steps": 3, "output_type": "latent"}
    used: list[str] = []
    for name in ("transformer", "transformer_2"):
        getattr(both, name).register_forward_pre_hook(lambda *_args, name=name: used.append(name))
    both(VOICE, PORTRAIT, guidance_scale=1.0, **options)
    assert used == ["transformer", "transformer_2", "transformer_2"]  # timesteps 999, 856, 599 around 900


@pytest.mark.parametrize("two_experts", [False, True])
def test_saving_and_loading_is_the_identity(tmp_path, two_experts):
    made = random_pipeline(two_experts=two_experts)
    made.save_pretrained(tmp_path)
    loaded = WanS2VPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    for name, module in made.components.items():
        if isinstance(module, torch.nn.Module):
            state = getattr(loaded, name).state_dict()
            stored = {k: v for k, v in module.state_dict().items() if k != "masked_spec_embed"}  # for training only
            assert all(torch.equal(value, state[key]) for key, value in stored.items()), name
    assert loaded.config.boundary_ratio == made.config.boundary_ratio
    options = SMALL | {"num_frames": 4, "prompt": "hello"}
    first, again = (run(VOICE, PORTRAIT, output_type="latent", **options).frames for run in (made, loaded))
    # Weights that are mapped from a file begin elsewhere in memory, and sums of a CPU's products depend on that.
    assert_close(again, first, 1e-5, "latents")


def test_vae_of_the_sixteen_fold_kind_gives_other_size_steps():
    kind = {
        "z_dim": 48,
        "is_residual": True,
        "in_channels": 12,
        "out_channels": 12,
        "patch_size": 2,
        "scale_factor_spatial": 16,
        "latents_mean": [0.0] * 48,
        "latents_std": [1.0] * 48,
        "decoder_base_dim": 4,
    }
    pipeline = random_pipeline(vae=kind, in_channels=48, out_channels=48, pose_channels=48)
    assert (pipeline.spec.size_multiple, pipeline.spec.min_side) == (32, 128)
    options = SMALL | {"height": 128, "width": 160, "frames_per_clip": 8, "num_frames": 12}
    result = pipeline(VOICE, PORTRAIT, pose_video_path=MEDIA / "pose_small.mp4", **options)
    assert result.frames.shape == (12, 128, 160, 3)
    with pytest.raises(UsageError, match="multiple of 32"):
        pipeline(VOICE, PORTRAIT, height=144, width=160)


def test_non_finite_latents_stop_the_run_and_name_the_step():
    broken = random_pipeline()
    with torch.no_grad():
        broken.transformer.proj_out.weight[0, 0] = float("nan")
    with pytest.raises(NumericsError, match=r"prediction became NaN .* step 1 of 2"):
        broken(VOICE, PORTRAIT, num_frames=4, **SMALL)


def test_non_finite_latents_of_a_later_step_are_named(pipeline):
    def poison(_pipeline, step, _timestep, kwargs):
        return {"latents": kwargs["latents"] * float("inf")} if step == 0 else None

    with pytest.raises(NumericsError, match="step 2 of 2"):
        pipeline(VOICE, PORTRAIT, num_frames=4, callback_on_step_end=poison, **SMALL)


def test_a_vae_that_leaves_the_range_of_float16_goes_on_in_float32():
    made = random_pipeline()
    nn.Module.to(made.vae, torch.float16)
    with Placement(made._models(), torch.device("cpu")) as placement:
        found = made._run_vae(placement, "decode", lambda: torch.ones(2, dtype=placement.use("vae").dtype) * 1e5)
    assert (found.dtype, made.vae.dtype) == (torch.float32, torch.float32)
    assert torch.equal(found, torch.full((2,), 1e5))
    assert "float16 (decode)" in made._fallbacks[0]


def test_the_vae_computes_in_float16_only_on_gpus_and_only_beside_a_low_precision():
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    full, half, brain = torch.float32, torch.float16, torch.bfloat16
    assert vae_dtype(full, brain, gpu) == half
    assert vae_dtype(full, full, gpu) == full
    assert vae_dtype(brain, brain, gpu) == brain
    assert vae_dtype(half, brain, cpu) == vae_dtype(full, brain, cpu) == full


def test_parts_of_different_models_are_refused():
    made = random_pipeline()
    parts = dict(made.components) | {"transformer": random_transformer(audio_dim=24)}
    with pytest.raises(CheckpointError, match="audio_dim"):
        WanS2VPipeline(**parts)


def test_a_misspelt_option_names_the_nearest(pipeline):
    with pytest.raises(UsageError, match=r"'guidance'.*guidance_scale"):
        pipeline(VOICE, PORTRAIT, guidance=3)


def test_latents_come_back_without_decoding_the_last_clip(pipeline):
    result = pipeline(VOICE, PORTRAIT, output_type="latent", frames_per_clip=16, num_clips=2, **SMALL)
    assert result.frames.shape == (16, 8, 8, 10)
    with pytest.raises(UsageError, match="uint8"):
        result.save("never.mp4")


def test_float_frames_agree_with_bytes(pipeline):
    options = SMALL | {"num_frames": 6}
    floats = pipeline(VOICE, PORTRAIT, output_type="pt", **(options | {"fps": 16})).frames
    bytes_ = pipeline(VOICE, PORTRAIT, **(options | {"fps": 16})).frames
    assert floats.shape == (6, 3, 64, 80)
    assert floats.abs().max() <= 1
    back = ((floats.permute(0, 2, 3, 1) + 1) / 2 * 255).to(torch.uint8).numpy()
    assert np.array_equal(back, bytes_)


@pytest.mark.parametrize("dtype", [torch.bfloat16])
@torch.no_grad()
def test_low_precision_is_at_most_twice_as_far_from_float32_as_autocast(dtype):
    """The official code runs under autocast; ours may not lose more than twice what that loses."""
    exact = random_pipeline(attention_head_dim=32, num_layers=4).transformer
    for parameter in exact.parameters():
        parameter.copy_(parameter.to(dtype).float())
    torch.manual_seed(3)
    latents, reference = torch.randn(1, 16, 4, 8, 12), torch.randn(1, 16, 1, 8, 12)
    motion, prompt, sound = torch.randn(1, 16, 19, 8, 12), torch.randn(9, 16), torch.randn(1, 3, 16, 16)

    def predict(model):
        scene = model.prepare_scene(reference, 4, motion_latents=motion)
        conditioning = Conditioning(scene, model.prepare_text([prompt]), model.prepare_audio(sound, 73))
        return model(latents, torch.tensor([700]), conditioning)

    truth = predict(exact)
    with torch.autocast("cpu", dtype):
        plain = predict(exact)
    ours = predict(copy.deepcopy(exact).to(dtype))
    assert (ours - truth).norm() <= 2 * (plain - truth).norm()


def test_fps_is_exact(pipeline):
    plan = pipeline.plan(VOICE, PORTRAIT, fps="29.97", **SMALL)
    assert plan.clips.fps == Fraction(30_000, 1001)


def test_the_fast_preset_computes_fewer_steps_and_says_so(pipeline):
    options = SMALL | {"num_inference_steps": 12, "num_frames": 8, "fps": 16}
    exact = pipeline(VOICE, PORTRAIT, **options)
    fast = pipeline(VOICE, PORTRAIT, **options, preset="fast")
    assert exact.metadata["num_predictions"] == 12
    assert 5 <= fast.metadata["num_predictions"] < 12
    assert fast.metadata["step_cache"] > 0 == exact.metadata["step_cache"]
    difference = np.abs(fast.frames.astype(int) - exact.frames.astype(int)).mean()
    assert 0 < difference < 3


def test_the_fast_preset_decodes_without_a_seam(pipeline, monkeypatch):
    """Later clips bring only their own latents; the first one the reference's before them."""
    lengths = []
    original = wan_s2v.pipeline.decode_latents

    def decode(vae, latents, num_frames, past, num_strips):
        lengths.append((latents.shape[1], past is not None))
        return original(vae, latents, num_frames, past, num_strips)

    monkeypatch.setattr(wan_s2v.pipeline, "decode_latents", decode)
    made = pipeline(VOICE, PORTRAIT, **SMALL, num_frames=20, fps=16, frames_per_clip=12, preset="fast")
    assert made.frames.shape == (20, 64, 80, 3)
    assert lengths == [(4, True), (3, True)]
    lengths.clear()
    pipeline(VOICE, PORTRAIT, **SMALL, num_frames=20, fps=16, frames_per_clip=12)
    assert lengths == [(4, False), (22, False)]


def test_the_fast_preset_computes_in_eight_bits_where_the_device_can(monkeypatch):
    """The CPU does that only slowly, so it is told that it can."""
    monkeypatch.setattr("wan_s2v.runtime.apply.can_compute_in_eight_bits", lambda device: True)
    options = SMALL | {"num_frames": 4, "fps": 16}
    pipeline = random_pipeline()
    exact = pipeline(VOICE, PORTRAIT, **options)
    fast = pipeline(VOICE, PORTRAIT, **options, preset="fast")
    again = pipeline(VOICE, PORTRAIT, **options, preset="fast")
    assert (exact.metadata["eight_bit"], fast.metadata["eight_bit"]) == (False, True)
    assert np.array_equal(fast.frames, again.frames)
    assert 0 < np.abs(fast.frames.astype(int) - exact.frames.astype(int)).mean() < 3
    with pytest.raises(UsageError, match="Load the model again"):
        pipeline(VOICE, PORTRAIT, **options)


def test_eight_bits_are_left_to_devices_that_have_such_products(pipeline):
    made = pipeline(VOICE, PORTRAIT, **SMALL, num_frames=4, fps=16, preset="fast")
    assert not made.metadata["eight_bit"]
