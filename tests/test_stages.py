"""Stages of the training, at toy size: from encoders in a folder to a pipeline that makes a clip."""

from __future__ import annotations

import json

import command_line
import numpy as np
import pytest
import torch
from test_training_transformer import SMALL
from transformers import ByT5Tokenizer, UMT5Config, UMT5EncoderModel, Wav2Vec2Config, Wav2Vec2Model

from wan_s2v import WanS2VPipeline
from wan_s2v.errors import CheckpointError
from wan_s2v.training import stages
from wan_s2v.training.loop import Budget
from wan_s2v.training.speech_encoder import SPEECH_CONFIG
from wan_s2v.training.stages import Run, run_stage
from wan_s2v.training.transformer import build_transformer
from wan_s2v.training.vae import VAE_CONFIG, build_vae

wan_s2v = command_line.wan_s2v
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Small encoders, untrained, as the first stages would leave them."""
    path = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    build_vae(VAE_CONFIG | {"base_dim": 8, "decoder_base_dim": 8}).save_pretrained(path / "vae")
    speech = Wav2Vec2Config(**SPEECH_CONFIG | {"intermediate_size": 32, "conv_dim": [16] * 7})
    Wav2Vec2Model(speech).save_pretrained(path / "audio_encoder")
    tokenizer = ByT5Tokenizer(extra_ids=0)
    tokenizer.save_pretrained(path / "tokenizer")
    text = UMT5Config(vocab_size=len(tokenizer), d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    UMT5EncoderModel(text).save_pretrained(path / "text_encoder")
    return path


def _run(folder, steps=2):
    return Run(folder, CPU, Budget(600, steps), seed=3, clips=4, hours=0.01, report=lambda _line: None)


def test_stages_lead_from_encoders_to_a_checkpoint_that_makes_a_clip(folder, monkeypatch):
    monkeypatch.setattr(stages, "SIZE", 32)
    monkeypatch.setattr(stages, "build_transformer", lambda: build_transformer(SMALL))
    monkeypatch.setattr("wan_s2v.training.transformer.WINDOWS", (6,))
    for stage in ("transformer", "high-noise", "low-noise", "distil-high", "distil-low", "pack"):
        record = run_stage(stage, _run(folder))
        assert json.loads((folder / f"{stage}.json").read_text()) == record
    record_of_high = json.loads((folder / "high-noise.json").read_text())
    assert record_of_high["noise_range"] == [0.7, 1.0]
    assert min(map(float, record_of_high["held_out"])) == 0.875
    assert len(list(folder.glob("examples-*"))) == 2, "made once, for all stages"
    assert record["bytes"] < 3_000_000
    pipeline = WanS2VPipeline.from_pretrained(folder / "tiny")
    pipeline.set_progress_bar_config(disable=True)
    picture, sound = np.full((64, 64, 3), 128, np.uint8), (np.zeros(16000, np.float32), 16000)
    result = pipeline(audio_path=sound, image_path=picture, height=64, width=64, seed=0, num_inference_steps=2)
    assert result.frames.shape == (24, 64, 64, 3)
    assert pipeline.config.boundary_ratio == pytest.approx(0.875)


def test_a_stage_says_which_one_must_come_before(tmp_path):
    with pytest.raises(CheckpointError, match="Run the stage 'transformer' first"):
        stages.load_transformer(tmp_path, "transformer_trunk", CPU)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["tiny", "--stage", "hair"], "Stages in their order: vae, speech"),
        (["s2v-14b", "--stage", "vae"], "Accepted: tiny"),
        (["tiny", "--stage", "vae", "--minutes", "0"], "minutes=0.0 is not accepted"),
    ],
)
def test_what_cannot_be_trained_is_said(wan_s2v, arguments, words):
    result = wan_s2v("train", *arguments)
    assert result.code == 2
    assert words in result.err
