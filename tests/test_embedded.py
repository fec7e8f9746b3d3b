"""The embedded model as it ships: it loads, is small enough to travel, and speaks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from wan_s2v import WanS2VPipeline
from wan_s2v.audio import load_waveform
from wan_s2v.evaluation.measures import opening_correlation
from wan_s2v.evaluation.readers import load_readers

ASSETS = Path(__file__).parent.parent / "src" / "wan_s2v" / "assets"
MEDIA, TINY = ASSETS / "demo", ASSETS / "tiny"
MAX_BYTES, MAX_FILE_BYTES = 36_000_000, 15_000_000


@pytest.fixture(scope="module")
def pipeline():
    return WanS2VPipeline.from_pretrained("tiny")


def test_it_is_small_enough_to_travel():
    sizes = [path.stat().st_size for path in TINY.rglob("*") if path.is_file()]
    assert sum(sizes) <= MAX_BYTES
    assert max(sizes) <= MAX_FILE_BYTES


def test_its_defaults_are_those_of_the_documents(pipeline):
    spec = pipeline.spec
    assert (spec.num_inference_steps, spec.guidance_scale, spec.flow_shift, spec.scheduler) == (8, 1.0, 3.0, "euler")
    assert (spec.frames_per_clip, spec.motion_frames, spec.max_area, spec.size_multiple) == (48, 9, 256 * 256, 16)


@torch.no_grad()
def test_mouths_follow_the_voice(pipeline):
    """The same portrait with two voices: each mouth opens as its own voice is loud, and neither as the other's."""
    clips = {}
    for name in ("voice_en.flac", "voice_es.flac"):
        voice = load_waveform(MEDIA / name, duration_s=2.5)
        sound = (voice.samples[:24_000], 16_000)  # 24 frames, a single clip
        options = {"num_frames": 24, "fps": 16, "seed": 1, "height": 256, "width": 256}
        result = pipeline(sound, MEDIA / "portrait_1.png", **options)
        assert result.metadata["num_predictions"] == 8
        frames = torch.from_numpy(np.asarray(result.frames)).permute(0, 3, 1, 2).float() / 127.5 - 1
        opening = load_readers(ASSETS / "evaluation", "cpu").mouth(frames).shapes[:, 0].numpy()
        loudness = np.sqrt(np.mean(sound[0].reshape(24, 1000) ** 2, axis=1))
        clips[name] = opening, np.convolve(loudness, np.ones(3) / 3, "same")
    openings, sounds = zip(*clips.values(), strict=True)
    own = [opening_correlation(openings[i], sounds[i]) for i in (0, 1)]
    foreign = [opening_correlation(openings[i], sounds[1 - i]) for i in (0, 1)]
    assert min(own) > max(foreign) + 0.1, (own, foreign)


def test_the_default_model_needs_no_download(pipeline):
    assert pipeline.source["model"] == "tiny"
    assert pipeline.transformer.dtype == torch.bfloat16
