"""The speech encoder's training: the inference's clock and normalisation, weights transformers can load, learning."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import assert_close
from transformers import Wav2Vec2FeatureExtractor, Wav2Vec2Model

from wan_s2v.audio import ENCODER_RECEPTIVE_FIELD, ENCODER_STRIDE
from wan_s2v.audio_features import FEATURE_RATE, HIDDEN_STATE_RATE, num_audio_features
from wan_s2v.errors import UsageError
from wan_s2v.training.corpus import Corpus
from wan_s2v.training.loop import Budget
from wan_s2v.training.speech_encoder import (
    RECEPTIVE_FIELD,
    SPEECH_CONFIG,
    STRIDE,
    SpeechPool,
    SpeechReader,
    best_lag,
    correlation,
    encode_states,
    evaluate_speech_encoder,
    normalise,
    train_speech_encoder,
)

SMALL = SPEECH_CONFIG | {"hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 64, "conv_dim": [16] * 7}
CPU = torch.device("cpu")


def bursts(count: int, seconds: float, seed: int) -> Corpus:
    """Noise that is loud where the mouth is open: 0.1 to 0.3 s open or shut in turn, the edges smoothed."""
    generator = np.random.default_rng(seed)
    steps = round(seconds * 100)
    opening = np.zeros((count, steps))
    for row in opening:
        edges = np.cumsum(generator.integers(10, 30, steps // 10))
        row[:] = np.searchsorted(edges, np.arange(steps), side="right") % 2
        row[:] = np.convolve(row, np.hanning(9) / np.hanning(9).sum(), "same")
    loudness = np.repeat(opening, 160, axis=1) * 0.3 + 0.01
    waveforms = np.clip(loudness * generator.standard_normal(loudness.shape), -1, 1)
    return Corpus(
        waveforms=np.round(waveforms * 32767).astype(np.int16),
        mouth=np.repeat(np.round(opening * 255).astype(np.uint8)[..., None], 6, axis=2),
        labels=(opening[:, 1::2] > 0.5).astype(np.uint8),
        energy=np.zeros((count, steps), np.uint8),
        languages=tuple("ab"[index % 2] for index in range(count)),
    )


@pytest.fixture(scope="module")
def trained() -> SpeechReader:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    reader = SpeechReader(SMALL)
    budget = Budget(600, 80)
    train_speech_encoder(
        reader, bursts(24, 2, 1), budget, batch=4, seconds=1, learning_rate=5e-3, report=lambda _line: None
    )
    return reader


@pytest.fixture(scope="module")
def encoder() -> Wav2Vec2Model:
    torch.manual_seed(0)
    return SpeechReader().encoder.eval()


def test_the_encoder_has_the_frame_grid_and_size_of_the_design(encoder):
    assert (STRIDE, RECEPTIVE_FIELD) == (ENCODER_STRIDE, ENCODER_RECEPTIVE_FIELD)
    assert encoder._get_feat_extract_output_lengths(RECEPTIVE_FIELD + 3 * STRIDE - 1) == 3
    assert 1.9e6 < sum(parameter.numel() for parameter in encoder.parameters()) < 2.2e6
    assert "masked_spec_embed" not in encoder.state_dict()


@torch.no_grad()
@pytest.mark.parametrize("samples", [400, 4001, 16_079])
def test_states_equal_those_of_the_models_own_forward(encoder, samples):
    waveforms = torch.randn(2, samples, generator=torch.Generator().manual_seed(0))
    expected = encoder(waveforms, output_hidden_states=True)
    found = encode_states(encoder, waveforms)
    assert len(found) == len(expected.hidden_states) == 5
    for state, other in zip(found, (*expected.hidden_states[:-1], expected.last_hidden_state), strict=True):
        assert_close(state, other, 2e-5, "state")  # float32, another order of sums


def test_sound_is_normalised_as_at_inference():
    waveform = (np.random.default_rng(0).standard_normal(5000) * 0.1 + 0.02).astype(np.float32)
    expected = Wav2Vec2FeatureExtractor(do_normalize=True)(waveform, sampling_rate=16_000).input_values[0]
    assert_close(normalise(torch.from_numpy(waveform)[None])[0], torch.as_tensor(expected), 1e-5)
    assert torch.equal(normalise(torch.zeros(1, 400)), torch.zeros(1, 400))


@pytest.mark.parametrize("samples", range(5 * 16_000, 60 * 16_000, 123_457))
def test_inference_shows_state_k_at_20_k_milliseconds(samples):
    states = (samples - RECEPTIVE_FIELD) // STRIDE + 1
    features = num_audio_features(states)
    position = np.arange(features) * (states - 1) / (features - 1)
    late = position / HIDDEN_STATE_RATE - np.arange(features) / FEATURE_RATE
    assert late[0] == 0
    assert 0 < late.max() < 0.048
    assert late.max() == late[-1]


def test_mouth_and_sound_of_a_crop_belong_together():
    corpus = bursts(4, 3, 0)
    time = np.arange(300)
    corpus.waveforms[:] = 0
    corpus.waveforms[:, 24_000] = 20_000  # a click at 1.5 s
    corpus.mouth[:] = np.clip(255 - 20 * np.abs(time - 150), 0, 255)[None, :, None]
    corpus.labels[:] = (np.arange(150) >= 75)[None]
    crops = SpeechPool.of(corpus, CPU).draw(64, 100, torch.Generator().manual_seed(0))
    assert crops.waveforms.shape == (64, 99 * STRIDE + RECEPTIVE_FIELD)
    assert crops.mouth.shape == (64, 100, 6)
    clean = slice(round(64 * 0.85), None)
    click = crops.waveforms[clean].argmax(1) / STRIDE
    assert_close(crops.mouth[clean, :, 0].argmax(1).float(), click, 0.6, "mouth")
    assert_close(crops.labels[clean].argmax(1).float(), click, 1.01, "labels")
    assert len(click.unique()) > 5


def test_joined_crops_keep_sound_and_targets_together():
    crops = SpeechPool.of(bursts(4, 2, 0), CPU).draw(7, 50, torch.Generator().manual_seed(0))
    joined = crops.joined(3)
    assert joined.waveforms.shape == (2, 150 * STRIDE)
    assert joined.mouth.shape == (2, 149, 6)
    assert (joined.waveforms.shape[1] - RECEPTIVE_FIELD) // STRIDE + 1 == joined.labels.shape[1] == 149
    assert torch.equal(joined.mouth[1, 50:100], crops.mouth[4])
    assert torch.equal(joined.labels[1, 100:], crops.labels[5, :-1])
    assert torch.equal(joined.waveforms[1, 50 * STRIDE : 100 * STRIDE], crops.waveforms[4, : 50 * STRIDE])


def test_crops_are_repeatable_and_need_long_enough_clips():
    pool = SpeechPool.of(bursts(3, 1.2, 0), CPU)
    first, again, other = (pool.draw(8, 45, torch.Generator().manual_seed(seed)).waveforms for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    with pytest.raises(UsageError, match="too short"):
        pool.draw(8, 60, torch.Generator())


def test_training_teaches_mouth_and_sounds_to_whole_clips(trained):
    figures = evaluate_speech_encoder(trained, bursts(8, 3, 2))
    assert list(figures) == ["a", "b"]
    for row in figures.values():
        assert row["clips"] == 4
        assert row["open"] > 0.8
        assert row["open by clip"] > 0.8
        assert row["phonemes"] > 0.8
        assert abs(row["lag_ms"]) < 10


def test_trained_weights_load_into_transformers_by_name(trained, tmp_path):
    again = Wav2Vec2Model(trained.encoder.config)
    again.load_state_dict(trained.encoder.state_dict())
    trained.encoder.save_pretrained(tmp_path)
    loaded, report = Wav2Vec2Model.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    waveforms = torch.randn(1, 4000, generator=torch.Generator().manual_seed(0))
    expected = encode_states(trained.encoder, waveforms)[-1]
    for model in (again, loaded):
        assert_close(model.eval()(waveforms).last_hidden_state.detach(), expected.detach(), 2e-5, "states")


def test_every_trained_parameter_moves():
    torch.manual_seed(0)
    reader = SpeechReader(SMALL)
    before = {name: parameter.detach().clone() for name, parameter in reader.named_parameters()}
    train_speech_encoder(reader, bursts(2, 1, 0), Budget(600, 3), batch=2, seconds=0.5, report=lambda _line: None)
    still = [name for name, parameter in reader.named_parameters() if torch.equal(parameter, before[name])]
    assert [name for name in still if not name.endswith("k_proj.bias")] == []  # a key's bias changes no attention


def test_correlation_and_lag_find_what_was_put_in():
    generator = torch.Generator().manual_seed(0)
    truth = torch.nn.functional.avg_pool1d(torch.rand(3, 1, 210, generator=generator), 8, 1)[:, 0]
    found = 0.5 * truth + 0.02 * torch.rand(truth.shape, generator=generator)
    assert_close(correlation(found, truth)[0], torch.tensor(np.corrcoef(found[0], truth[0])[0, 1]), 1e-4)
    assert correlation(torch.ones(4), torch.arange(4.0)).isnan()
    assert abs(best_lag(found, truth)) < 0.1
    assert abs(best_lag(found.roll(3, 1)[:, 3:], truth[:, 3:]) - 3) < 0.1
    assert abs(best_lag(found.roll(-2, 1)[:, :-2], truth[:, :-2]) + 2) < 0.1
