"""The embedded model as it ships: it loads, is small enough to travel, and speaks."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch

from wan_s2v import WanS2VPipeline
from wan_s2v.evaluation.measures import opening_correlation
from wan_s2v.evaluation.readers import load_readers
from wan_s2v.ops.eight_bit import INT8
from wan_s2v.runtime.quantization import attend_in_eight_bits, quantize
from wan_s2v.training.corpus import sample_utterance
from wan_s2v.training.visemes import to_video_rate

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
@pytest.mark.parametrize(("language", "seed"), [("en", 3), ("es", 4)])
def test_the_mouth_follows_a_voice_it_never_heard(pipeline, language, seed):
    """The opening seen in 2 s against the one that the phonemes ask for."""
    speech = sample_utterance(np.random.default_rng(seed), "held-out", 2.0, language)
    options = {"num_frames": 32, "fps": 16, "seed": 1, "height": 256, "width": 256}
    result = pipeline((speech.waveform, 16_000), MEDIA / "portrait_1.png", **options)
    assert result.metadata["num_predictions"] == 8
    frames = torch.from_numpy(np.asarray(result.frames)).permute(0, 3, 1, 2).float() / 127.5 - 1
    opening = load_readers(ASSETS / "evaluation", "cpu").mouth(frames).shapes[:, 0].numpy()
    assert opening_correlation(opening, to_video_rate(speech.mouth, 16, 32)[:, 0]) > 0.75


@torch.no_grad()
def test_eight_bits_hardly_change_what_it_predicts(pipeline):
    """All 8-bit compute that a GPU would do; the goal is a cosine of 0.999."""
    calls, model = [], pipeline.transformer_2
    with model.register_forward_hook(lambda _model, given, made: calls.append((given, made))):
        pipeline(MEDIA / "voice_en.flac", MEDIA / "portrait_2.png", num_frames=8, fps=16, seed=1)
    rounded = copy.deepcopy(model)
    quantize(rounded, INT8)
    attend_in_eight_bits(rounded)
    for given, exact in calls:
        assert torch.cosine_similarity(rounded(*given).flatten(), exact.flatten(), dim=0) > 0.9993
    assert len(calls) == 5


def test_the_default_model_needs_no_download(pipeline):
    assert pipeline.source["model"] == "tiny"
    assert pipeline.transformer.dtype == torch.bfloat16
