"""Augmentation changes how speech sounds and never when it sounds."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from wan_s2v.training.augment import (
    add_music,
    add_noise,
    add_reverberation,
    augment,
    change_dynamics,
    change_loudness,
    change_voice,
    clip_peaks,
    coloured_noise,
    compose_music,
    equalise,
    limit_band,
    mix,
)

EFFECTS = [
    change_voice,
    change_dynamics,
    add_noise,
    add_music,
    add_reverberation,
    equalise,
    limit_band,
    clip_peaks,
    change_loudness,
    augment,
]


def bursts(rows: int = 8, samples: int = 32_000) -> Tensor:
    """Speech-like: noise of the voice's band, on and off in an irregular rhythm."""
    generator = torch.Generator().manual_seed(7)
    noise = coloured_noise(rows, samples, torch.full((rows, 1), 0.5), generator)
    gate = (torch.rand(rows, samples // 1600, generator=generator) > 0.5).float().repeat_interleave(1600, 1)
    loud = noise * gate
    return 0.5 * loud / loud.abs().amax(1, keepdim=True)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def envelope(waveforms: Tensor) -> Tensor:
    levels = torch.nn.functional.avg_pool1d(waveforms[:, None].square(), 160, 160).flatten(1)
    return levels - levels.mean(1, keepdim=True)


@pytest.mark.parametrize("effect", EFFECTS, ids=lambda effect: effect.__name__)
def test_sound_stays_where_it_is(effect: Callable[[Tensor, torch.Generator], Tensor]) -> None:
    clean = bursts()
    changed = effect(clean, seeded())
    assert changed.shape == clean.shape
    assert changed.dtype == torch.float32
    assert torch.isfinite(changed).all()
    assert not torch.equal(changed, clean)
    before, after = envelope(clean), envelope(changed)
    score = [float((before[:, 10:-10] * after[:, 10 + lag : after.shape[1] - 10 + lag]).mean()) for lag in range(-8, 9)]
    assert score.index(max(score)) == 8


@pytest.mark.parametrize("effect", EFFECTS, ids=lambda effect: effect.__name__)
def test_same_seed_gives_the_same_sound(effect: Callable[[Tensor, torch.Generator], Tensor]) -> None:
    clean = bursts(3)
    kept = clean.clone()
    assert torch.equal(effect(clean, seeded(1)), effect(clean, seeded(1)))
    assert not torch.equal(effect(clean, seeded(1)), effect(clean, seeded(2)))
    assert torch.equal(clean, kept)


@pytest.mark.parametrize("waveforms", [torch.zeros(4, 16_000), torch.ones(1, 1600), bursts(1, 8000)])
def test_silence_single_rows_and_short_clips_pass(waveforms: Tensor) -> None:
    for seed in range(10):
        changed = augment(waveforms, seeded(seed))
        assert torch.isfinite(changed).all()
        assert changed.abs().max() <= 1


def test_mix_has_the_asked_ratio() -> None:
    speech = bursts()
    noise = torch.randn(speech.shape, generator=seeded())
    added = mix(speech, noise, torch.full((8, 1), 12.0)) - speech
    ratio = 10 * torch.log10(speech.square().mean(1) / added.square().mean(1))
    assert torch.allclose(ratio, torch.full((8,), 12.0), atol=0.05)


def test_noise_falls_with_frequency_as_asked() -> None:
    noise = coloured_noise(2, 64_000, torch.tensor([[0.0], [1.0]]), seeded())
    power = torch.fft.rfft(noise).abs().square()
    low, high = power[:, 800:1600].mean(1), power[:, 16_000:24_000].mean(1)
    assert low[0] / high[0] == pytest.approx(1, abs=0.2)
    assert low[1] / high[1] > 100


def test_music_is_tonal_and_differs_between_rows() -> None:
    music = compose_music(3, 32_000, seeded())
    spectrum = torch.fft.rfft(music).abs()
    assert (spectrum.amax(1) / spectrum.median(1).values > 20).all()
    assert not torch.allclose(music[0], music[1])


def test_band_limit_takes_away_the_top() -> None:
    noise = torch.randn(16, 32_000, generator=seeded(3))
    power = torch.fft.rfft(limit_band(noise, seeded())).abs().square().mean(0)
    assert power[14_800:].mean() < 0.01 * power[1200:6000].mean()


def test_clipping_flattens_peaks() -> None:
    clean = bursts()
    clipped = clip_peaks(clean, seeded())
    assert (clipped.abs().amax(1) < 0.85 * clean.abs().amax(1)).all()
    assert (clipped.abs() == clipped.abs().amax(1, keepdim=True)).sum(1).min() > 1


def test_reverberation_rings_after_the_sound() -> None:
    click = torch.zeros(6, 16_000)
    click[:, 4000] = 1
    room = add_reverberation(click, seeded())
    assert room[:, :4000].abs().max() < 1e-5
    assert torch.allclose(room[:, 4000], torch.ones(6), atol=1e-4)
    assert (room[:, 4200:6000].abs().amax(1) > 1e-4).all()


def test_another_voice_keeps_its_pitch_and_moves_its_formants() -> None:
    pulses = torch.zeros(16, 16_000)
    pulses[:, ::128] = 1.0  # 125 Hz
    times = torch.arange(400) / 16_000
    ring = torch.exp(-300 * times) * torch.sin(2 * torch.pi * 700 * times)  # one formant at 700 Hz
    voice = torch.nn.functional.conv1d(pulses[:, None], ring.flip(0)[None, None], padding=399)[:, 0, :16_000]
    changed = change_voice(0.5 * voice / voice.abs().max(), seeded())
    spectra = torch.fft.rfft(changed).abs()
    assert (spectra[:, 100:2000:125].sum(1) * 3 < spectra[:, 125:2000:125].sum(1)).float().mean() > 0.7
    peaks = 125 * spectra[:, ::125][:, :16].argmax(1)
    assert peaks.min() < 700 < peaks.max()
