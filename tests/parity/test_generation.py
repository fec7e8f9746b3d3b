"""Whole generations against the official ones, float32 on CPU: latents 1e-4, pixels 2e-3 (stored in float16)."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from checkpoints import write_official_s2v
from conftest import MEDIA, assert_close, load_golden

from wan_s2v import WanS2VPipeline
from wan_s2v.audio_features import feature_indices
from wan_s2v.latents import encode_pixels
from wan_s2v.runtime.offload import Placement

LATENTS_ATOL = 1e-4
PIXELS_ATOL = 2e-3
CASES = [
    "s2v_pipe_3clips",
    "s2v_pipe_1clip_pose_dpm",
    "s2v_pipe_2clips_pose_firstframe",
    "s2v_pipe_80frames_2clips",
    "s2v_pipe_noguide",
]


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory) -> WanS2VPipeline:
    folder = write_official_s2v(tmp_path_factory.mktemp("official"), weights="s2v_pipe", dtype=torch.float32)
    pipeline = WanS2VPipeline.from_pretrained(folder, torch_dtype=torch.float32, load_text_encoder=False)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _options(golden: dict[str, torch.Tensor], metadata: dict[str, str]) -> dict[str, Any]:
    args = json.loads(metadata["args"])
    return {
        "audio_path": MEDIA / args["audio_path"],
        "image_path": MEDIA / args["ref_image_path"],
        "pose_video_path": MEDIA / args["pose_video"] if args["pose_video"] else None,
        "area": args["max_area"],
        "flow_shift": args["shift"],
        "guidance_scale": args["guide_scale"],
        "scheduler": args["sample_solver"],
        "start_from_reference": args["init_first_frame"],
        "num_clips": args["num_repeat"],
        "frames_per_clip": args["infer_frames"],
        "num_inference_steps": args["sampling_steps"],
        "seed": int(metadata["seed"]),
        "prompt_embeds": golden["in.context"],
        "negative_prompt_embeds": golden["in.context_null"],
        "timing": "reference",
    }


@pytest.mark.parametrize("name", CASES)
def test_generation_equals_the_official_one(pipeline, name):
    golden, metadata = load_golden(name)
    before_step: dict[tuple[int, int], torch.Tensor] = {}
    clip_index = 0

    def record(_pipeline, step, _timestep, kwargs):
        before_step[clip_index, step + 1] = kwargs["latents"][0]

    options = _options(golden, metadata)
    latents = []
    for clip in pipeline.stream(**options, output_type="latent", callback_on_step_end=record):
        latents.append(clip.frames)
        clip_index += 1
    for r, made in enumerate(latents):
        for key in golden:
            if key.startswith(f"clip{r}.latents_before_step"):
                assert_close(before_step[r, int(key[-1])], golden[key], LATENTS_ATOL, key)
        assert_close(made, golden[f"clip{r}.latents"], LATENTS_ATOL, f"clip{r}.latents")

    result = pipeline(**options, output_type="pt")
    video = result.frames.transpose(0, 1)
    assert list(video.shape) == golden["video_shape"].tolist()
    assert result.fps == 16
    assert_close(video.mean(dim=(0, 2, 3)), golden["video_mean_per_frame"], PIXELS_ATOL, "mean per frame")
    assert_close(video.std(dim=(0, 2, 3)), golden["video_std_per_frame"], PIXELS_ATOL, "std per frame")
    if "video_every2px" in golden:
        assert_close(video[:, :, ::2, ::2], golden["video_every2px"].float(), PIXELS_ATOL, "pixels")
    else:
        ends = torch.cat((video[:, :2], video[:, -2:]), dim=1)
        assert_close(ends[:, :, ::2, ::2], golden["video_first_last_2_every2px"].float(), PIXELS_ATOL, "pixels")


@pytest.mark.parametrize("name", CASES)
def test_inputs_of_the_clips_equal_the_official_ones(pipeline, name):
    golden, metadata = load_golden(name)
    plan = pipeline.plan(**_options(golden, metadata))
    job = pipeline._prepare_job(
        plan, Placement(pipeline._models(), torch.device("cpu")), lambda _stage: torch.no_grad()
    )
    assert job.audio_clips == int(golden["audio_clips"])
    span = job.audio_clips * plan.clips.clips[0].num_frames
    features = job.features.features(feature_indices(job.features.num_features, span, 16))
    expected = golden["audio_emb_l0_12_24"][0]
    assert_close(features[[0, 12, 24]], expected, 1e-4, "audio features")
    assert_close(job.reference_latents, golden["ref_latents"], LATENTS_ATOL, "reference latents")
    assert_close(encode_pixels(pipeline.vae, job.history), golden["motion_latents_init"], LATENTS_ATOL, "history")
    for clip in plan.clips.clips:
        assert clip.has_motion == (not golden[f"clip{clip.index}.drop"])
        prefix = plan.spec.motion_latents if clip.has_motion else 1
        assert prefix == int(golden[f"clip{clip.index}.decode_prefix_len"])
        assert_close(pipeline._noise(job, clip)[0], golden[f"clip{clip.index}.noise"], 0, "noise")
        if job.pose is not None:
            made = pipeline._pose_latents(job, clip)[0]
            assert_close(made, golden[f"clip{clip.index}.cond_states"], LATENTS_ATOL, "pose latents")
