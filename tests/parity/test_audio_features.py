"""Sound, hidden states, features and frame picks against numbers of the official code."""

from __future__ import annotations

import json
from functools import lru_cache

import numpy as np
import pytest
import torch
from conftest import GOLDENS, MEDIA, assert_close, load_golden
from transformers import Wav2Vec2Model

from wan_s2v.audio import Waveform, load_waveform
from wan_s2v.audio_features import AudioFeatures, feature_indices, num_audio_features, reference_num_clips

SOUNDS = {
    "talk": "talk_2s.wav",
    "exact": "talk_exact_multiple_16k.wav",
    "short": "talk_0s3.wav",
    "mp3": "sing_clip.mp3",
}
BUCKETS = [(16, 8, 0), (16, 8, 1), (16, 80, 0), (24, 12, 0), (25, 20, 0)]
STORED_LAYERS = [0, 12, 24]
# Another decoder build may round a sample differently; measured 1e-7 for the mp3, 0 for the others.
SAMPLE_ATOL = 1e-6
# Values reach 24 and pass 24 float32 layers. Measured here: 2e-6 for the wav files; 5e-5 for the mp3, whose decoder
# differs from the official one by 1e-7. Twice that leaves room for other matmul libraries.
FEATURE_ATOL = 1e-4


@lru_cache(maxsize=1)
def goldens() -> dict[str, torch.Tensor]:
    return load_golden("audio_features")[0]


@lru_cache(maxsize=1)
def bucket_table() -> dict:
    return json.loads((GOLDENS / "audio_bucket_table.json").read_text())


@lru_cache(maxsize=4)
def waveform_of(sound: str) -> Waveform:
    return load_waveform(MEDIA / SOUNDS[sound])


@lru_cache(maxsize=4)
def features_of(sound: str) -> AudioFeatures:
    encoder = Wav2Vec2Model.from_pretrained(GOLDENS / "wav2vec2_tiny", dtype=torch.float32)
    return AudioFeatures(encoder, waveform_of(sound).samples)


@pytest.mark.parametrize("sound", SOUNDS)
def test_waveform_is_what_the_official_loader_gives(sound):
    samples = torch.from_numpy(waveform_of(sound).samples)
    assert len(samples) == goldens()[f"{sound}.num_samples16k"].item()
    assert_close(samples[:4000], goldens()[f"{sound}.samples16k"], SAMPLE_ATOL, f"{sound} samples")
    mean_abs = samples.double().abs().mean()
    assert abs(mean_abs - goldens()[f"{sound}.samples16k_mean_abs"].item()) < SAMPLE_ATOL


@pytest.mark.parametrize("sound", SOUNDS)
def test_hidden_states_are_the_official_ones(sound):
    features = features_of(sound)
    layers, _, num_states, width = goldens()[f"{sound}.hidden_shape"].tolist()
    assert features.num_hidden_states == num_states
    states = features._hidden_states(np.arange(num_states))
    assert states.shape == (layers, num_states, width)
    assert_close(states[:1], goldens()[f"{sound}.hidden_first"], FEATURE_ATOL, "layer 0")
    assert_close(states[-1:], goldens()[f"{sound}.hidden_last"], FEATURE_ATOL, "last layer after its norm")


@pytest.mark.parametrize("sound", SOUNDS)
def test_features_at_30_hz_are_the_official_ones_in_all_layers(sound):
    expected = goldens()[f"{sound}.feat30"]
    assert features_of(sound).num_features == expected.shape[1]
    actual = features_of(sound).features(np.arange(expected.shape[1]))
    assert_close(actual.transpose(1, 2), expected, FEATURE_ATOL, "features")


@pytest.mark.parametrize("sound", SOUNDS)
@pytest.mark.parametrize(("fps", "frames_per_clip", "context"), BUCKETS)
def test_clips_get_the_official_features(sound, fps, frames_per_clip, context):
    key = f"{sound}.fps{fps}.bf{frames_per_clip}.m{context}"
    features = features_of(sound)
    num_clips = reference_num_clips(features.num_features, frames_per_clip, fps)
    assert num_clips == goldens()[f"{key}.clips"].item()
    span = num_clips * frames_per_clip
    clips = [
        features.features(
            feature_indices(
                features.num_features,
                frames_per_clip,
                fps,
                start_frame=clip * frames_per_clip,
                context=context,
                span_frames=span,
            )
        )
        for clip in range(num_clips)
    ]
    columns = torch.cat(clips, dim=2)
    frames, layers, width = goldens()[f"{key}.bucket_shape"].tolist()
    assert columns.shape == (layers, width, frames)
    expected = goldens()[f"{key}.bucket_l0_12_24"]
    assert_close(columns[STORED_LAYERS].permute(2, 0, 1), expected, FEATURE_ATOL, key)


def test_every_row_of_the_bucket_table():
    rows = bucket_table()["rows"]
    assert len(rows) == 246
    for row in rows:
        num_clips = reference_num_clips(row["audio_frames"], row["batch_frames"], row["fps"])
        span = num_clips * row["batch_frames"]
        indices = feature_indices(row["audio_frames"], span, row["fps"], context=row["m"])
        assert (num_clips, indices.tolist()) == (row["clips"], row["index"]), row


def test_every_row_of_the_bucket_table_asked_for_clip_by_clip():
    for row in bucket_table()["rows"]:
        per_clip, span = row["batch_frames"], row["clips"] * row["batch_frames"]
        parts = [
            feature_indices(
                row["audio_frames"], per_clip, row["fps"], start_frame=first, context=row["m"], span_frames=span
            )
            for first in range(0, span, per_clip)
        ]
        assert np.concatenate(parts).tolist() == row["index"], row


def test_number_of_features_for_every_listed_number_of_states():
    lengths = bucket_table()["interp_len"]
    assert lengths
    for states, expected in lengths.items():
        assert num_audio_features(int(states)) == expected, states
