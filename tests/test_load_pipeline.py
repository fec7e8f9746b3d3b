"""`load_pipeline`: every Wan2.2 model by one call, as diffusers' pipeline with the official defaults."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import write_official_s2v, write_official_wan
from conftest import MEDIA, assert_close
from diffusers import WanImageToVideoPipeline, WanPipeline
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from wan_s2v import WanS2VPipeline, load_pipeline
from wan_s2v.errors import ImageError, UsageError
from wan_s2v.experts import snr_at
from wan_s2v.first_frame import CroppedFrame, StretchedFrame, crop, cropped_size, stretched_size
from wan_s2v.video_plan import SPECS

PICTURE = MEDIA / "person_small.png"
FAST = {"num_inference_steps": 1, "num_frames": 5, "max_sequence_length": 16}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("official")
    return {task: write_official_wan(root / task, task) for task in ("t2v", "i2v", "ti2v")}


def load(folder: Path, **options: Any) -> Any:
    pipeline = load_pipeline(folder, **({"torch_dtype": torch.float32} | options))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


OFFICIAL = {
    "t2v": {
        "num_inference_steps": 40, "guidance_scale": 4.0, "guidance_scale_2": 3.0, "num_frames": 81,
        "height": 720, "width": 1280,
    },
    "i2v": {"num_inference_steps": 40, "guidance_scale": 3.5, "guidance_scale_2": 3.5, "num_frames": 81},
    "ti2v": {
        "num_inference_steps": 50, "guidance_scale": 5.0, "guidance_scale_2": None, "num_frames": 121,
        "height": 704, "width": 1280,
    },
}  # fmt: skip


@pytest.mark.parametrize(
    ("task", "base", "boundary", "shift", "fps"),
    [("t2v", WanPipeline, 0.875, 12.0, 16), ("i2v", WanImageToVideoPipeline, 0.9, 5.0, 16),
     ("ti2v", WanPipeline, None, 5.0, 24)],
)  # fmt: skip
def test_the_official_settings_are_the_defaults(folders, task, base, boundary, shift, fps):
    pipeline = load(folders[task])
    assert isinstance(pipeline, base)
    assert pipeline.config.boundary_ratio == boundary
    assert pipeline.config.expand_timesteps == (task == "ti2v")
    assert pipeline.scheduler.config.flow_shift == shift
    assert pipeline.spec.fps == fps
    plan = pipeline.plan(Image.open(PICTURE) if task == "i2v" else None, prompt="a man")
    seen = plan.summary()
    assert {name: seen[name] for name in OFFICIAL[task]} == OFFICIAL[task]
    assert (seen["flow_shift"], seen["scheduler"], seen["step_cache"]) == (shift, "unipc", 0)
    assert seen["negative_prompt"].startswith("色调艳丽，过曝，静态")
    assert seen["prompt"] == "a man"


def test_what_is_given_has_priority(folders):
    options = {"height": 64, "width": 32, "guidance_scale": 2.0, "negative_prompt": "rain", "num_frames": 9}
    seen = load(folders["t2v"]).plan(prompt="a man", **options).summary()
    assert {name: seen[name] for name in options} == options
    assert seen["guidance_scale_2"] == 2.0  # one guidance is that of both experts


def test_an_empty_negative_prompt_means_the_official_one(folders):
    pipeline = load(folders["t2v"])
    assert pipeline.plan(prompt="x", negative_prompt="").summary()["negative_prompt"] == SPECS["t2v"].negative_prompt
    assert pipeline.plan(prompt="x", negative_prompt_embeds=torch.zeros(1, 4, 8)).summary()["negative_prompt"] is None


@pytest.mark.parametrize("task", ["t2v", "i2v", "ti2v"])
def test_prompts_become_frames(folders, task):
    pipeline = load(folders[task])
    generator = torch.Generator().manual_seed(0)
    if task == "i2v":
        frames = pipeline(PICTURE, "a man", area=64 * 64, generator=generator, **FAST).frames
    else:
        frames = pipeline("a man", height=64, width=96, generator=generator, **FAST).frames
    assert frames.shape == ((1, 5, 48, 80, 3) if task == "i2v" else (1, 5, 64, 96, 3))
    assert np.isfinite(frames).all()


def test_ti2v_starts_from_a_picture_where_that_is_asked_for(folders):
    pipeline = load(folders["ti2v"], task="i2v")
    assert isinstance(pipeline, WanImageToVideoPipeline)
    assert isinstance(pipeline.video_processor, CroppedFrame)
    plan = pipeline.plan(Image.open(PICTURE), prompt="a man")
    assert (plan.height, plan.width) == (704, 1248)  # of 1280x704 pixels, in the shape of 213x120
    assert plan.num_frames == 121


@pytest.mark.parametrize("size", [{"height": 64}, {"height": 64, "width": 64, "area": 4096}])
def test_half_a_size_or_two_sizes_are_refused(folders, size):
    with pytest.raises(UsageError, match="give height and width, or area"):
        load(folders["i2v"])(PICTURE, "a man", **size)


def test_a_picture_that_is_none_is_named(folders):
    with pytest.raises(ImageError):
        load(folders["i2v"])(MEDIA / "talk_2s.wav", "a man")


def test_the_boundary_may_be_given_as_either(folders):
    assert load(folders["t2v"], boundary_ratio=0.5).config.boundary_ratio == 0.5
    assert load(folders["t2v"], boundary_snr=snr_at(0.8)).config.boundary_ratio == pytest.approx(0.8)
    with pytest.raises(UsageError, match="both given"):
        load(folders["t2v"], boundary_ratio=0.5, boundary_snr=1.0)


def test_weights_stored_in_float32_compute_in_bfloat16_unless_asked(folders):
    pipeline = load(folders["ti2v"], torch_dtype=None)
    assert pipeline.transformer.dtype == pipeline.text_encoder.dtype == torch.bfloat16
    assert pipeline.vae.dtype == torch.float32
    assert np.isfinite(pipeline("a man", height=64, width=64, **FAST).frames).all()


def test_a_precision_that_the_device_cannot_is_told(folders):
    pipeline = load(folders["t2v"], torch_dtype="fp16", device_map="cpu")
    assert pipeline.transformer.dtype == torch.float32
    assert "float16 is unusably slow on a CPU" in pipeline.notes[0]


def test_an_s2v_checkpoint_gives_the_speech_pipeline(tmp_path):
    folder = write_official_s2v(tmp_path)
    assert isinstance(load(folder), WanS2VPipeline)
    with pytest.raises(UsageError, match=r"task='t2v', but .* is a model for s2v"):
        load(folder, task="t2v")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "i2v"}, "task='i2v', but .* is a model for t2v"),
        ({"task": "v2v"}, "Choose s2v, t2v, i2v or ti2v"),
        ({"device_map": "tpu"}, "Choose auto, cuda or cpu"),
        ({"torch_dtype": "int3"}, "int3"),
    ],
)
def test_options_that_are_not_accepted_are_named(folders, options, message):
    with pytest.raises(UsageError, match=message):
        load(folders["t2v"], **options)


def test_what_is_saved_is_read_again_with_its_scheduler(folders, tmp_path):
    made = load(folders["t2v"])
    made.save_pretrained(tmp_path)
    again = load(tmp_path)
    options = {"height": 64, "width": 64, "output_type": "latent", **FAST, "num_inference_steps": 2}
    frames = [p("a man", generator=torch.Generator().manual_seed(3), **options).frames for p in (made, again)]
    # the same weights; mapped from another place in a file, matrix products round differently
    assert_close(frames[0], frames[1], 1e-4)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["scheduler"] == ["wan_s2v.schedulers", "WanUniPCScheduler"]  # where diffusers finds it
    assert again.scheduler.config.flow_shift == 12.0


@given(st.integers(16, 3000), st.integers(16, 3000), st.integers(128 * 128, 1280 * 720))
def test_frames_keep_to_the_grid_and_about_the_area(height, width, area):
    for rule, multiple in ((stretched_size, 16), (cropped_size, 32)):
        try:
            made = rule(height, width, area, multiple)
        except UsageError:
            assert max(height / width, width / height) * multiple**2 > area / 4
            continue
        assert all(side > 0 and side % multiple == 0 for side in made)
        assert made[0] * made[1] <= area


@pytest.mark.parametrize("size", [(32, 64), (64, 32), (96, 96)])
def test_a_crop_fills_any_frame(size):
    picture = Image.open(PICTURE)
    assert crop(picture, *size).shape == (3, *size)


def test_a_bright_picture_is_not_taken_for_a_dark_one():
    """diffusers guesses a tensor's range from its smallest value; a picture must not depend on that."""
    grey = Image.new("RGB", (40, 40), (200, 200, 200))
    for processor in (StretchedFrame(vae_scale_factor=8), CroppedFrame(vae_scale_factor=16)):
        pixels = processor.preprocess(grey, 32, 64)
        assert pixels.shape == (1, 3, 32, 64)
        assert torch.allclose(pixels, torch.tensor(200 / 127.5 - 1))
