"""What other throats, microphones, rooms, people and music do to a voice, on whole batches, on any device.

Nothing here moves a sound in time: filters have zero phase or keep the direct sound first, so mouth curves and labels
of the clean clip stay true. `prosody` holds what does change time.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from wan_s2v.training.speech import SAMPLE_RATE

# Share of the rows of a batch that each effect touches.
_NOISE_SHARE, _MUSIC_SHARE, _ROOM_SHARE, _FILTER_SHARE, _BAND_SHARE, _CLIP_SHARE = 0.6, 0.25, 0.35, 0.6, 0.25, 0.1
_VOICE_SHARE, _DYNAMICS_SHARE = 0.5, 0.5
_QUIETEST_SPEECH = 0.01
_FRAME, _HOP = 512, 128  # samples of the spectra in which a voice is changed
_DYNAMICS_DB, _DYNAMICS_S = 7.0, 0.3


def augment(waveforms: Tensor, generator: torch.Generator) -> Tensor:
    """Each row as another recording of the same speech.

    The speaker, then rooms, noise and music, then the recording chain: filter, band limit, clipping, loudness.

    Args:
        waveforms: (B, S) float32 at 16 kHz in -1...1; S of at least 1600.
        generator: on the device of `waveforms`.
    Returns: (B, S) float32 in -1...1, same timing.
    """
    result = _on_some(waveforms, _VOICE_SHARE, change_voice, generator)
    result = _on_some(result, _DYNAMICS_SHARE, change_dynamics, generator)
    result = _on_some(result, _ROOM_SHARE, add_reverberation, generator)
    result = _on_some(result, _NOISE_SHARE, add_noise, generator)
    result = _on_some(result, _MUSIC_SHARE, add_music, generator)
    result = _on_some(result, _FILTER_SHARE, equalise, generator)
    result = _on_some(result, _BAND_SHARE, limit_band, generator)
    result = _on_some(result, _CLIP_SHARE, clip_peaks, generator)
    return change_loudness(result, generator)


def change_voice(waveforms: Tensor, generator: torch.Generator) -> Tensor:
    """Another throat: formants 0.82 to 1.22 times as high, sharper or blunter, and up to 60 % of breath in the voice.

    A synthesiser's voices are few and clean. The spectral envelope (the low part of the cepstrum) is moved along the
    frequency axis; the fine structure above it, and so the pitch, stays.
    """
    rows, samples = waveforms.shape
    window = torch.hann_window(_FRAME, device=waveforms.device)
    spectrum = torch.stft(waveforms, _FRAME, _HOP, window=window, return_complex=True)  # (B, bins, frames)
    level = spectrum.abs().clamp_min(1e-5).log()
    cepstrum = torch.fft.irfft(level, n=_FRAME, dim=1)
    quefrency = torch.arange(_FRAME, device=waveforms.device)
    near = torch.minimum(quefrency, _FRAME - quefrency) < _uniform(rows, 14, 40, generator)
    envelope = torch.fft.rfft(cepstrum * near[..., None], dim=1).real
    bins = torch.arange(level.shape[1], device=waveforms.device)
    source = (bins / _uniform(rows, 0.82, 1.22, generator)).clamp(max=level.shape[1] - 1)  # (B, bins)
    low = source.floor().long().clamp(max=level.shape[1] - 2)
    at_low, at_high = (torch.gather(envelope, 1, at[..., None].expand_as(level)) for at in (low, low + 1))
    moved = torch.lerp(at_low, at_high, (source - low)[..., None])
    breath = _uniform(rows, 0, 0.6, generator)[..., None]
    noise = torch.randn(waveforms.shape, generator=generator, device=waveforms.device)
    hiss = torch.stft(noise, _FRAME, _HOP, window=window, return_complex=True)
    hiss = hiss / hiss.abs().mean() * moved.exp()
    voiced = spectrum * (moved - envelope).exp()
    changed = torch.istft((1 - breath) * voiced + breath * hiss, _FRAME, _HOP, window=window, length=samples)
    return changed * (_loudness(waveforms) / _loudness(changed).clamp_min(1e-6))


def change_dynamics(waveforms: Tensor, generator: torch.Generator) -> Tensor:
    """Livelier speech: loudness wanders by up to 7 dB either way within about 0.3 s."""
    rows, samples = waveforms.shape
    knots = _uniform(rows, -_DYNAMICS_DB, _DYNAMICS_DB, generator, int(samples / (_DYNAMICS_S * SAMPLE_RATE)) + 2)
    gain = torch.nn.functional.interpolate(knots[:, None], size=samples, mode="linear", align_corners=True)[:, 0]
    return waveforms * 10 ** (gain / 20)


def _loudness(waveforms: Tensor) -> Tensor:
    return waveforms.square().mean(1, keepdim=True).sqrt()


def add_noise(waveforms: Tensor, generator: torch.Generator) -> Tensor:
    """White, pink or brown noise, mains hum, or the babble of other rows, 0 to 30 dB below the speech."""
    rows, samples = waveforms.shape
    kind = torch.randint(5, (rows, 1), generator=generator, device=waveforms.device)
    exponent = torch.clamp(kind.float(), max=2) * 0.5
    noise = coloured_noise(rows, samples, exponent, generator)
    noise = torch.where(kind == 3, _hum(rows, samples, generator), noise)
    noise = torch.where(kind == 4, _babble(waveforms, generator), noise)
    return mix(waveforms, noise, _uniform(rows, 0, 30, generator))


def add_music(waveforms: Tensor, generator: torch.Generator) -> Tensor:
    """A bed of composed music, 0 to 20 dB below the speech."""
    rows, samples = waveforms.shape
    return mix(waveforms, compose_music(rows, samples, generator), _uniform(rows, 0, 20, generator))


def mix(waveforms: Tensor, other: Tensor, snr_db: Tensor) -> Tensor:
    """waveforms plus `other` scaled to `snr_db` (B, 1) below them; silent rows count as very quiet speech."""
    speech = waveforms.square().mean(1, keepdim=True).sqrt().clamp_min(_QUIETEST_SPEECH)
    level = other.square().mean(1, keepdim=True).sqrt().clamp_min(1e-6)
    return waveforms + other * (speech / level * 10 ** (-snr_db / 20))


def coloured_noise(rows: int, samples: int, exponent: Tensor, generator: torch.Generator) -> Tensor:
    """Gaussian noise, amplitude falling as frequency ** -exponent; exponent (rows, 1): 0 white, 0.5 pink, 1 brown."""
    white = torch.randn(rows, samples, generator=generator, device=generator.device)
    frequency = torch.fft.rfftfreq(samples, 1 / SAMPLE_RATE, device=generator.device).clamp_min(20.0)
    return torch.fft.irfft(torch.fft.rfft(white) * frequency**-exponent, n=samples)


def compose_music(rows: int, samples: int, generator: torch.Generator) -> Tensor:
    """Four-chord loops of decaying harmonic tones with a bass note and drums on the beat, random in key and tempo."""
    device = generator.device
    times = torch.arange(samples, device=device) / SAMPLE_RATE
    beat_s = _uniform(rows, 0.35, 0.75, generator)
    beat = times / beat_s
    chord = torch.floor(beat / 4).long() % 4
    since_beat_s = (beat - torch.floor(beat)) * beat_s
    root = torch.randint(45, 60, (rows, 1), generator=generator, device=device)
    steps = torch.tensor([[0, 5, 7, 9], [0, 9, 5, 7], [0, 3, 8, 10]], device=device)
    loop = steps[torch.randint(3, (rows,), generator=generator, device=device)]
    chord_root = root + torch.gather(loop, 1, chord)
    third = 3 + torch.randint(2, (rows, 1), generator=generator, device=device)
    envelope = torch.exp(-since_beat_s * _uniform(rows, 1, 6, generator)) * torch.clamp(since_beat_s / 0.01, max=1)
    music = torch.zeros(rows, samples, device=device)
    for interval, strength in ((0, 0.5), (-12, 0.8), (12, 0.4), (7, 0.5)):
        music += strength * _tone(chord_root + interval, times)
    music = (music + 0.5 * _tone(chord_root + third, times)) * envelope
    white = torch.randn(rows, samples, generator=generator, device=device)
    snare = white * torch.exp(-since_beat_s * 40) * (torch.floor(beat).long() % 2 == 1)
    kick = torch.sin(2 * math.pi * 60 * since_beat_s) * torch.exp(-since_beat_s * 18)
    return music + _uniform(rows, 0, 1.5, generator) * (0.4 * snare + kick)


def _tone(note: Tensor, times: Tensor) -> Tensor:
    """A note of the MIDI scale with two overtones."""
    phase = 2 * math.pi * 440 * 2 ** ((note.float() - 69) / 12) * times
    return torch.sin(phase) + 0.4 * torch.sin(2 * phase) + 0.2 * torch.sin(3 * phase)


def _hum(rows: int, samples: int, generator: torch.Generator) -> Tensor:
    mains = 50 + 10 * torch.randint(2, (rows, 1), generator=generator, device=generator.device).float()
    phase = 2 * math.pi * mains * torch.arange(samples, device=generator.device) / SAMPLE_RATE
    return torch.sin(phase) + 0.5 * torch.sin(2 * phase) + 0.4 * torch.sin(3 * phase) + 0.2 * torch.sin(5 * phase)


def _babble(waveforms: Tensor, generator: torch.Generator) -> Tensor:
    """Four other rows, each moved in time; a batch of one babbles with itself."""
    rows, samples = waveforms.shape
    total = torch.zeros_like(waveforms)
    for step in range(1, 5):
        shift = int(torch.randint(samples, (1,), generator=generator, device=generator.device))
        total += waveforms.roll(1 + (step - 1) % max(rows - 1, 1), 0).roll(shift, 1)
    return total


def add_reverberation(waveforms: Tensor, generator: torch.Generator) -> Tensor:
    """A room: the direct sound first, six early reflections and a decaying tail, RT60 0.1 to 0.8 s."""
    rows, samples = waveforms.shape
    device = waveforms.device
    length = SAMPLE_RATE // 2
    times = torch.arange(length, device=device) / SAMPLE_RATE
    rt60_s = _uniform(rows, 0.1, 0.8, generator)
    tail = torch.randn(rows, length, generator=generator, device=device) * 10 ** (-3 * times / rt60_s)
    tail *= times > 0.005
    early = torch.randint(40, SAMPLE_RATE // 25, (rows, 6), generator=generator, device=device)
    tail.scatter_add_(1, early, 4 * torch.rand(rows, 6, generator=generator, device=device))
    wet_db = _uniform(rows, -18, 0, generator)
    tail *= 10 ** (wet_db / 20) / tail.square().sum(1, keepdim=True).sqrt()
    tail[:, 0] = 1
    size = 1 << (samples + length - 1).bit_length()
    spectrum = torch.fft.rfft(waveforms, n=size) * torch.fft.rfft(tail, n=size)
    return torch.fft.irfft(spectrum, n=size)[:, :samples]


def equalise(waveforms: Tensor, generator: torch.Generator) -> Tensor:
    """A random smooth frequency response of up to 9 dB either way, eight bands from 80 Hz to 8 kHz."""
    bands = _uniform(waveforms.shape[0], -9, 9, generator, 8)
    return _filter(waveforms, lambda octave: 10 ** (_interpolate(bands, (octave / 6.64).clamp(0, 1) * 7) / 20))


def limit_band(waveforms: Tensor, generator: torch.Generator) -> Tensor:
    """A telephone (300-3400 Hz) for half of the rows, else a codec that ends between 3.5 and 7 kHz."""
    rows = waveforms.shape[0]
    telephone = torch.rand(rows, 1, generator=generator, device=waveforms.device) < 0.5
    top = torch.where(telephone, 3400.0, _uniform(rows, 3500, 7000, generator))
    top_octave, low_octave = torch.log2(top / 80), torch.where(telephone, math.log2(300 / 80), -10.0)
    return _filter(
        waveforms, lambda octave: torch.sigmoid((top_octave - octave) * 40) * torch.sigmoid((octave - low_octave) * 12)
    )


def clip_peaks(waveforms: Tensor, generator: torch.Generator) -> Tensor:
    """Overdriven: peaks cut at a fifth to four fifths of the row's own maximum."""
    limit = waveforms.abs().amax(1, keepdim=True) * _uniform(waveforms.shape[0], 0.2, 0.8, generator)
    return torch.minimum(torch.maximum(waveforms, -limit), limit)


def change_loudness(waveforms: Tensor, generator: torch.Generator) -> Tensor:
    """Scale each row by -18 to 6 dB, never beyond -1...1."""
    louder = waveforms * 10 ** (_uniform(waveforms.shape[0], -18, 6, generator) / 20)
    return louder / louder.abs().amax(1, keepdim=True).clamp_min(1.0)


def _filter(waveforms: Tensor, response: Callable[[Tensor], Tensor]) -> Tensor:
    """Zero-phase filter; `response` maps octaves above 80 Hz (bins,) to gains (B, bins)."""
    samples = waveforms.shape[1]
    # Room for the filter's own length, which would otherwise wrap from the end to the start.
    size = samples + SAMPLE_RATE // 10
    frequency = torch.fft.rfftfreq(size, 1 / SAMPLE_RATE, device=waveforms.device).clamp_min(1.0)
    gains = response(torch.log2(frequency / 80))
    return torch.fft.irfft(torch.fft.rfft(waveforms, n=size) * gains, n=size)[:, :samples]


def _interpolate(values: Tensor, position: Tensor) -> Tensor:
    """(B, K) values at fractional positions (bins,) of 0...K-1."""
    low = position.floor().long().clamp(max=values.shape[1] - 2)
    part = position - low
    return values[:, low] * (1 - part) + values[:, low + 1] * part


def _uniform(rows: int, low: float, high: float, generator: torch.Generator, columns: int = 1) -> Tensor:
    return low + (high - low) * torch.rand(rows, columns, generator=generator, device=generator.device)


def _on_some(
    waveforms: Tensor, share: float, effect: Callable[[Tensor, torch.Generator], Tensor], generator: torch.Generator
) -> Tensor:
    chosen = torch.rand(waveforms.shape[0], generator=generator, device=waveforms.device) < share
    if not bool(chosen.any()):
        return waveforms
    result = waveforms.clone()
    result[chosen] = effect(waveforms[chosen], generator)
    return result
