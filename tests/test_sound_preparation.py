"""The chosen stretch of a sound, the voice that drives the lips, silence that is silence, and advice on loudness."""

from __future__ import annotations

import sys
from fractions import Fraction
from pathlib import Path

import av
import command_line
import numpy as np
import pytest
import torch
from command_line import FAST, IMAGE, VOICE
from conftest import MEDIA
from models import random_pipeline

from wan_s2v import WanS2VPipeline
from wan_s2v.audio import SILENCE_PEAK, load_waveform
from wan_s2v.errors import UsageError
from wan_s2v.loudness import loudness_warnings, measure_loudness
from wan_s2v.sound_preparation import prepare_sound
from wan_s2v.sound_span import WHOLE, SoundSpan, as_seconds, span_of
from wan_s2v.sound_track import SoundSource
from wan_s2v.voice_activity import keep_voice, voice_spans

model, wan_s2v = command_line.model, command_line.wan_s2v
PORTRAIT = MEDIA / "person_small.png"
DEMO = Path(command_line.__file__).parent.parent / "src/wan_s2v/assets/demo"
SMALL = {"height": 64, "width": 64, "num_inference_steps": 1, "guidance_scale": 1.0, "seed": 7}


@pytest.fixture(scope="module")
def pipeline() -> WanS2VPipeline:
    return random_pipeline()


@pytest.mark.parametrize(
    ("given", "seconds"),
    [(2, 2), (2.5, Fraction(5, 2)), ("83.5", Fraction(167, 2)), ("1:23.5", Fraction(167, 2)), ("1:02:03", 3723)],
)
def test_times_are_seconds_or_clock_times(given, seconds):
    assert as_seconds("start_s", given) == seconds


@pytest.mark.parametrize("given", ["-1", "1:75", "soon", "", "1:2:3:4", float("nan"), -0.5, True, 1e9])
def test_what_is_no_time_is_refused_with_its_value(given):
    with pytest.raises(UsageError, match=r"start_s=.*is not a time"):
        as_seconds("start_s", given)


def test_a_stretch_too_short_to_hear_is_refused():
    with pytest.raises(UsageError, match=r"duration_s=0.01 .* at least 0.045 s"):
        span_of(0, 0.01)


@pytest.mark.parametrize("source", ["talk_5s_8k.wav", "sing_clip.mp3"])
def test_the_model_hears_exactly_that_part_of_the_whole(source):
    whole = load_waveform(MEDIA / source).samples
    part = load_waveform(MEDIA / source, start_s=1.25, duration_s=1.5)
    np.testing.assert_array_equal(part.samples, whole[20_000:44_000])
    assert part.duration_s == 1.5
    to_the_end = load_waveform(MEDIA / source, start_s=3)
    np.testing.assert_array_equal(to_the_end.samples, whole[48_000:])
    assert to_the_end.duration_s == pytest.approx(load_waveform(MEDIA / source).duration_s - 3)


def test_the_sound_track_takes_the_same_part_and_is_silent_after_it():
    sound = np.random.default_rng(1).standard_normal((48_000, 2)).astype(np.float32) * 0.1
    whole = SoundSource((sound, 48_000)).take(48_000)
    part = SoundSource((sound, 48_000), SoundSpan(Fraction(1, 4), Fraction(1, 2))).take(48_000)
    np.testing.assert_array_equal(part[:, :24_000], whole[:, 12_000:36_000])
    assert not part[:, 24_000:].any()


def _lag(sound: np.ndarray, expected: np.ndarray) -> int:
    """Samples by which `sound` comes after what is expected, by the peak of the cross-correlation."""
    size = 2 * max(len(sound), len(expected))
    product = np.fft.rfft(sound, size) * np.fft.rfft(expected, size).conj()
    peak = int(np.argmax(np.fft.irfft(product, size)))
    return peak if peak < size // 2 else peak - size


@pytest.mark.parametrize("vocals", [None, DEMO / "voice_es.flac"])
def test_the_file_holds_exactly_the_chosen_stretch(pipeline, tmp_path, vocals):
    source = DEMO / "voice_en.flac"
    path = pipeline(source, PORTRAIT, start_s=1.3, duration_s="0:01.5", vocals_path=vocals, **SMALL).save(
        tmp_path / "out.mp4"
    )
    with av.open(str(path)) as container:
        heard = np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])
    cut = SoundSource(source).take(round(2.8 * 48_000))[0, round(1.3 * 48_000) :]
    assert abs(_lag(heard, cut)) <= 48  # 1 ms
    assert abs(len(heard) - len(cut)) < 1024  # the last AAC frame
    assert np.corrcoef(heard[: len(cut)], cut)[0, 1] > 0.99


def test_the_vocals_drive_the_lips_and_the_sound_is_heard(pipeline):
    options = SMALL | {"num_frames": 8, "output_type": "latent"}
    voice, mix = VOICE, MEDIA / "sing_clip.mp3"
    sung = pipeline(mix, PORTRAIT, vocals_path=voice, **options)
    spoken = pipeline(voice, PORTRAIT, **options)
    assert torch.equal(sung.frames, spoken.frames)
    assert not torch.equal(sung.frames, pipeline(mix, PORTRAIT, **options).frames)
    np.testing.assert_array_equal(sung.audio, load_waveform(mix).samples[: len(sung.audio)])


def test_vocals_of_another_length_are_reported_and_padded_or_cut(pipeline):
    short = pipeline.plan(MEDIA / "sing_clip.mp3", PORTRAIT, vocals_path=VOICE, **SMALL)
    assert float(short.clips.duration) == pytest.approx(3.75, abs=0.03)
    assert any("The vocals last 2.00 s, the sound 3.76 s: nothing drives" in text for text in short.warnings)
    long = pipeline.plan(VOICE, PORTRAIT, vocals_path=MEDIA / "sing_clip.mp3", **SMALL)
    assert float(long.clips.duration) == 2
    assert any("the rest is left out" in text for text in long.warnings)


def test_a_stretch_past_the_end_is_refused_or_reported(pipeline):
    with pytest.raises(UsageError, match=r"talk_2s.wav lasts 2.000 s, so nothing follows start_s=2"):
        pipeline.plan(VOICE, PORTRAIT, start_s=2, **SMALL)
    plan = pipeline.plan(VOICE, PORTRAIT, start_s=1.5, duration_s=3, **SMALL)
    assert plan.warnings[0] == "duration_s=3 is more than there is: 0.50 s of sound from 1.5 s on."
    assert plan.clips.duration == Fraction(1, 2)


def test_flags_of_the_command_line(wan_s2v, model, tmp_path):
    words = ("generate", "-i", IMAGE, "-a", MEDIA / "sing_clip.mp3", "-o", tmp_path / "a.mp4", "--model", model, *FAST)
    stretch = ("--start", "0:01", "--duration", "1.5", "--vocals", VOICE, "--dry-run")
    done = wan_s2v(*words, *stretch)
    assert done.code == 0
    assert "1.50 s of sound from 1 s on" in " ".join(done.err.split())
    assert "lips by talk_2s.wav" in " ".join(done.err.split())
    assert "error: start_s='x' is not a time" in wan_s2v(*words, "--start", "x").err
    over = wan_s2v(*words, "--vocals", tmp_path / "a.mp4")
    assert "is also the vocals" in over.err


# Loudness


def _tone(level: float, seconds: float = 3, frequency: float = 997) -> np.ndarray:
    return (level * np.sin(2 * np.pi * frequency * np.arange(round(seconds * 16_000)) / 16_000)).astype(np.float32)


def test_loudness_of_the_standards_own_tone():
    """BS.1770: a sine of 997 Hz at full scale in one channel has -3.01 LUFS."""
    assert measure_loudness(_tone(1.0)).integrated == pytest.approx(-3.01, abs=0.05)
    assert measure_loudness(_tone(0.1)).integrated == pytest.approx(-23.01, abs=0.05)


@pytest.mark.parametrize(
    ("source", "ffmpeg"),  # what the filter ebur128 of FFmpeg 8 says
    [("talk_2s.wav", -20.98), ("talk_5s_8k.wav", -21.86), ("sing_clip.mp3", -14.25)],
)
def test_loudness_is_that_of_ffmpeg(source, ffmpeg):
    assert measure_loudness(load_waveform(MEDIA / source).samples).integrated == pytest.approx(ffmpeg, abs=0.15)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda voice: voice, None),
        (lambda voice: voice * 0.02, "is quiet"),
        (lambda voice: np.clip(voice * 8, -1, 1), "is clipped"),
        (lambda voice: np.concatenate([voice[8000:16_000], np.zeros(30 * 16_000, np.float32)]), "almost only silence"),
    ],
)
def test_one_piece_of_advice_where_it_shows(change, words):
    voice = load_waveform(VOICE).samples
    found = loudness_warnings(load_waveform((change(voice), 16_000)))
    assert len(found) == (0 if words is None else 1)
    assert words is None or words in found[0]


def test_silence_is_reported_once():
    sound = prepare_sound((np.full(32_000, SILENCE_PEAK / 2, np.float32), 16_000), span=WHOLE)
    assert len(sound.warnings) == 1
    assert "is silent" in sound.warnings[0]


# Voice activity


def _sentences_in_music() -> tuple[np.ndarray, slice]:
    """Two sentences with 1.5 s of loud chords between them, and where the chords are alone."""
    voice = load_waveform(DEMO / "voice_en.flac").samples
    length = 24_000
    sound = np.concatenate([voice[:19_000], np.zeros(length, np.float32), voice[22_000:76_000]])
    chords = sum(_tone(0.06, length / 16_000, f) for f in (220, 277, 330, 440))
    sound[19_000 : 19_000 + length] += chords
    return sound, slice(19_000, 19_000 + length)


def test_between_sentences_the_model_hears_nothing():
    pytest.importorskip("silero_vad", reason="needs the extra sound")
    sound, pause = _sentences_in_music()
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    cleaned = keep_voice(load_waveform((sound, 16_000))).samples
    assert torch.get_num_threads() == 2  # importing silero-vad sets it to 1
    torch.set_num_threads(threads)
    inner = slice(pause.start + 4800, pause.stop - 4800)  # without the pads
    assert np.abs(sound[inner]).max() > 0.1
    assert not cleaned[inner].any()
    kept = np.abs(cleaned).astype(bool)
    assert kept[3000:17_000].mean() > 0.95
    np.testing.assert_array_equal(cleaned[8000:12_000], sound[8000:12_000])
    assert np.abs(np.diff(cleaned)).max() <= np.abs(np.diff(sound)).max() * 1.01  # no clicks


def test_sound_without_a_voice_is_said_to_have_none(pipeline):
    pytest.importorskip("silero_vad", reason="needs the extra sound")
    assert voice_spans(_tone(0.2)) == []
    plan = pipeline.plan((_tone(0.2), 16_000), PORTRAIT, silence="clean", **SMALL)
    assert any("found no voice" in text for text in plan.warnings)
    assert not plan.driving.samples.any()
    assert plan.waveform.samples.any()


def test_the_default_leaves_the_sound_alone_and_clean_is_heard_unchanged(pipeline):
    pytest.importorskip("silero_vad", reason="needs the extra sound")
    sound, pause = _sentences_in_music()
    kept = pipeline.plan((sound, 16_000), PORTRAIT, **SMALL)
    assert kept.driving is kept.waveform
    cleaned = pipeline.plan((sound, 16_000), PORTRAIT, silence="clean", **SMALL)
    np.testing.assert_array_equal(cleaned.waveform.samples, sound)
    assert not cleaned.driving.samples[pause.start + 4800 : pause.stop - 4800].any()


def test_clean_without_its_package_says_what_to_install(monkeypatch, pipeline):
    monkeypatch.setitem(sys.modules, "silero_vad", None)
    with pytest.raises(UsageError, match=r"pip install wan-s2v\[sound\]"):
        pipeline.plan(VOICE, PORTRAIT, silence="clean", **SMALL)
