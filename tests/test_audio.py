"""Loading sound of every kind, encoding it in windows, and choosing features for frames."""

from __future__ import annotations

import math
import tracemalloc
import wave
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import soxr
import torch
from conftest import GOLDENS, MEDIA
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Wav2Vec2Config, Wav2Vec2Model

from wan_s2v.audio import MIN_SAMPLES, load_waveform
from wan_s2v.audio_features import AudioFeatures, aligned_feature_indices, feature_indices, num_audio_features
from wan_s2v.errors import AudioError, AudioTooShortError, CheckpointError, UsageError

LAYOUTS = {1: "mono", 2: "stereo", 6: "5.1"}


def make_sound(rate: int, duration_s: float, channels: int = 1) -> np.ndarray:
    """(channels, n) float32 noise below 4 kHz with a rhythm, so that a shift in time shows in the correlation."""
    rng, n, width = np.random.default_rng(rate + channels), int(rate * duration_s), max(rate // 4000, 1)
    noise = rng.standard_normal((channels, n + width - 1))
    smooth = np.stack([np.convolve(row, np.ones(width) / width, "valid") for row in noise])
    rhythm = 0.15 + 0.1 * np.sin(2 * np.pi * 3 * np.arange(n) / rate)
    return (smooth * rhythm).clip(-0.99, 0.99).astype(np.float32)


def write_media(
    path: Path,
    sounds: list[np.ndarray],
    rate: int = 44_100,
    codec: str = "pcm_s16le",
    sample_format: str = "s16",
    container: str | None = None,
    video: bool = False,
    options: dict[str, str] | None = None,
    metadata: dict[str, str] | None = None,
) -> Path:
    """Write each sound as one audio stream, and a second of grey video where asked."""
    with av.open(str(path), "w", format=container, options=options or {}) as output:
        output.metadata.update(metadata or {})
        if video:
            picture = output.add_stream("mpeg4", rate=25)
            picture.width = picture.height = 32
            picture.pix_fmt = "yuv420p"
        streams = [output.add_stream(codec, rate=rate, layout=LAYOUTS[len(sound)]) for sound in sounds]
        for stream in streams:
            stream.format = sample_format
            stream.codec_context.options = {"strict": "experimental"}
        if video:
            for _ in range(25):
                frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 128, np.uint8), "rgb24")
                output.mux(picture.encode(frame))
            output.mux(picture.encode(None))
        for stream, sound in zip(streams, sounds, strict=True):
            encode_sound(output, stream, sound, rate, sample_format)
    return path


def encode_sound(output, stream, sound: np.ndarray, rate: int, sample_format: str) -> None:
    resampler = av.AudioResampler(format=sample_format, layout=LAYOUTS[len(sound)], rate=rate)
    size = stream.codec_context.frame_size or 1024
    for start in range(0, sound.shape[1], size):
        part = np.ascontiguousarray(sound[:, start : start + size])
        planar = "fltp" if part.dtype == np.float32 else "dblp"
        frame = av.AudioFrame.from_ndarray(part, format=planar, layout=LAYOUTS[len(sound)])
        frame.sample_rate, frame.pts, frame.time_base = rate, start, Fraction(1, rate)
        for converted in resampler.resample(frame):
            output.mux(stream.encode(converted))
    output.mux(stream.encode(None))


def expected_16k(sound: np.ndarray, rate: int) -> np.ndarray:
    """The definition, in one shot."""
    mono = sound.mean(axis=0)
    num_samples = math.ceil(len(mono) * 16_000 / rate)
    resampled = mono if rate == 16_000 else soxr.resample(mono, rate, 16_000, quality="HQ")
    return np.pad(resampled, (0, max(num_samples - len(resampled), 0)))[:num_samples]


def lag_of(actual: np.ndarray, expected: np.ndarray) -> int:
    """Samples at 16 kHz by which `actual` comes late."""
    n = min(len(actual), len(expected))
    spectrum = np.fft.rfft(actual[:n], 2 * n) * np.conj(np.fft.rfft(expected[:n], 2 * n))
    peak = int(np.fft.irfft(spectrum).argmax())
    return peak if peak < n else peak - 2 * n


LOSSLESS = [
    ("8k.wav", 8_000, 1, "pcm_s16le", "s16", 2**-15),
    ("u8.wav", 11_025, 1, "pcm_u8", "u8", 2**-7),
    ("16k.wav", 16_000, 2, "pcm_s16le", "s16", 2**-15),
    ("24bit.wav", 44_100, 2, "pcm_s24le", "s32", 2**-22),
    ("32bit.wav", 48_000, 1, "pcm_s32le", "s32", 1e-6),
    ("192k.wav", 192_000, 2, "pcm_f32le", "flt", 1e-6),
    ("double51.wav", 48_000, 6, "pcm_f64le", "dbl", 1e-6),
    ("planar.flac", 96_000, 2, "flac", "s32", 2**-22),
    ("sound.aiff", 22_050, 1, "pcm_s16be", "s16", 2**-15),
    ("sound.mov", 44_100, 2, "pcm_s16le", "s16", 2**-15),
]


@pytest.mark.parametrize(("name", "rate", "channels", "codec", "sample_format", "atol"), LOSSLESS)
def test_lossless_files_equal_the_definition(tmp_path, name, rate, channels, codec, sample_format, atol):
    sound = make_sound(rate, 1.0137, channels)
    waveform = load_waveform(write_media(tmp_path / name, [sound], rate, codec, sample_format))
    expected = expected_16k(sound, rate)
    assert waveform.samples.shape == expected.shape
    assert waveform.samples.dtype == np.float32
    # The resampler's filter may add up a few rounding errors of the file's integers.
    assert np.abs(waveform.samples - expected).max() < 2 * atol
    assert waveform.duration_s == sound.shape[1] / rate
    assert (waveform.source_sample_rate, waveform.source_channels) == (rate, channels)
    assert waveform.warnings == ()


LOSSY = [
    ("sound.mp3", 44_100, 2, "libmp3lame", "fltp"),
    ("speech.mp3", 16_000, 1, "libmp3lame", "fltp"),
    ("sound.m4a", 44_100, 2, "aac", "fltp"),
    ("sound.mka", 48_000, 1, "aac", "fltp"),
    ("opus.ogg", 48_000, 2, "libopus", "flt"),
    ("vorbis.ogg", 44_100, 2, "vorbis", "fltp"),
    ("recorder.webm", 48_000, 1, "libopus", "flt"),
]


@pytest.mark.parametrize(("name", "rate", "channels", "codec", "sample_format"), LOSSY)
def test_lossy_files_start_on_time_and_keep_their_length(tmp_path, name, rate, channels, codec, sample_format):
    sound = make_sound(rate, 2.0137, channels)
    waveform = load_waveform(write_media(tmp_path / name, [sound], rate, codec, sample_format))
    expected = expected_16k(sound, rate)
    assert abs(lag_of(waveform.samples, expected)) <= 1
    one_aac_frame_s = 1024 / rate
    assert 0 <= waveform.duration_s - sound.shape[1] / rate <= one_aac_frame_s
    n = len(expected)
    assert np.corrcoef(waveform.samples[:n], expected)[0, 1] > 0.9
    assert waveform.warnings == ()


def test_film_with_sound_gives_its_sound(tmp_path):
    sound = make_sound(48_000, 1.0, 2)
    waveform = load_waveform(write_media(tmp_path / "film.mp4", [sound], 48_000, "aac", "fltp", video=True))
    assert abs(lag_of(waveform.samples, expected_16k(sound, 48_000))) <= 1
    assert waveform.warnings == ()


def test_of_two_sound_streams_one_is_read_whole(tmp_path):
    sounds = [make_sound(48_000, 1.0), make_sound(48_000, 1.0)[:, ::-1]]
    waveform = load_waveform(write_media(tmp_path / "two.mka", sounds, 48_000, "flac", "s16"))
    assert np.abs(waveform.samples - expected_16k(sounds[0], 48_000)).max() < 2**-14


def test_wrong_extension_and_unusual_names_are_no_obstacle(tmp_path):
    made = write_media(tmp_path / "a.wav", [make_sound(16_000, 0.5)], 16_000, metadata={"title": "Été"})
    expected = load_waveform(made).samples
    for name in ("voice 12:30.mp3", "ffconcat", "100%d.mp3", "noextension", "Überlänge.ogg"):
        made = made.rename(tmp_path / name)
        assert np.array_equal(load_waveform(str(made)).samples, expected)


def test_title_that_is_not_unicode_is_no_obstacle(tmp_path):
    path = write_media(tmp_path / "a.wav", [make_sound(16_000, 0.5)], 16_000, metadata={"title": "ABCDEFGH"})
    content = path.read_bytes()
    assert b"ABCDEFGH" in content
    path.write_bytes(content.replace(b"ABCDEFGH", b"\xc9t\xe9 \xff\xfe\xc3 "))
    assert len(load_waveform(path).samples) == 8_000


@pytest.mark.parametrize("size", [b"\xff\xff\xff\xff", b"\x00\x00\x00\x00"])
def test_wav_of_unknown_length_from_a_pipe_is_read_to_its_end(tmp_path, size):
    path = write_media(tmp_path / "a.wav", [make_sound(16_000, 0.5)], 16_000)
    content = bytearray(path.read_bytes())
    at = content.index(b"data") + 4
    content[4:8] = content[at : at + 4] = size
    path.write_bytes(content)
    waveform = load_waveform(path)
    assert len(waveform.samples) == 8_000
    assert waveform.warnings == ()


def test_rate_may_change_inside_a_file(tmp_path):
    sounds = [make_sound(48_000, 1.0), make_sound(24_000, 0.5)]
    parts = [
        write_media(tmp_path / f"{rate}.ogg", [sound], rate, "flac", "s16").read_bytes()
        for sound, rate in zip(sounds, (48_000, 24_000), strict=True)
    ]
    chained = tmp_path / "chained.ogg"
    chained.write_bytes(b"".join(parts))
    waveform = load_waveform(chained)
    expected = np.concatenate([expected_16k(sounds[0], 48_000), expected_16k(sounds[1], 24_000)])
    assert waveform.duration_s == 1.5
    assert np.abs(waveform.samples - expected).max() < 2**-13


@given(
    rate=st.sampled_from([8_000, 11_025, 16_000, 22_050, 32_000, 44_100, 48_000, 96_000, 192_000, 47_999]),
    num_samples=st.integers(10_000, 600_000),
)
@settings(max_examples=25, deadline=None)
def test_resampling_in_blocks_equals_one_shot(rate, num_samples):
    sound = np.random.default_rng(num_samples).uniform(-1, 1, (1, num_samples)).astype(np.float32)
    samples = load_waveform((sound, rate)).samples
    expected = expected_16k(sound, rate)
    assert samples.shape == expected.shape
    assert np.abs(samples - expected).max() <= 1e-6


def test_memory_does_not_grow_with_the_source(tmp_path):
    """60 s at 192 kHz stereo are 92 MB as float32; the 16 kHz result has 3.8 MB."""
    second = make_sound(192_000, 1.0, 2)
    path = write_media(tmp_path / "long.flac", [np.tile(second, 60)], 192_000, "flac", "s16")
    tracemalloc.start()
    waveform = load_waveform(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(waveform.samples) == 60 * 16_000
    assert peak < 12e6


@pytest.mark.parametrize("name", ["talk_2s.wav", "sing_clip.mp3"])
def test_duration_limit_keeps_the_start_unchanged(name):
    whole, start = load_waveform(MEDIA / name), load_waveform(MEDIA / name, duration_s=0.7)
    assert start.samples.tolist() == whole.samples[:11_200].tolist()
    assert start.duration_s == 0.7


def test_duration_limit_beyond_the_end_and_below_the_minimum():
    assert load_waveform(MEDIA / "talk_2s.wav", duration_s=100).duration_s == 2.0
    assert len(load_waveform(MEDIA / "talk_2s.wav", duration_s=0.01).samples) == MIN_SAMPLES


def test_duration_limit_stops_decoding(monkeypatch):
    blocks = []
    original = np.isfinite
    monkeypatch.setattr(np, "isfinite", lambda block: blocks.append(len(block)) or original(block))
    load_waveform((np.zeros(16_000 * 3_600, np.int16), 16_000), duration_s=5)
    assert sum(blocks) < 16_000 * 30


@pytest.mark.parametrize("duration_s", [0, -1, math.nan, math.inf])
def test_duration_limit_must_be_positive(duration_s):
    with pytest.raises(UsageError, match="duration_s="):
        load_waveform(MEDIA / "talk_2s.wav", duration_s=duration_s)


@pytest.mark.parametrize("duration_s", [0.3, 2.0, 2.00003, 3.7])
def test_padding_and_cutting_are_exact(duration_s):
    waveform = load_waveform(MEDIA / "talk_2s.wav")
    fitted = waveform.padded_or_cut(duration_s)
    n = round(duration_s * 16_000)
    assert fitted.samples.shape == (n,)
    assert fitted.samples[:32_000].tolist() == waveform.samples[:n].tolist()
    assert not fitted.samples[32_000:].any()
    assert fitted.duration_s == duration_s


ARRAYS = {
    "int16": lambda mono: (mono * 2**15).astype(np.int16),
    "int32": lambda mono: (mono * 2**31).astype(np.int32),
    "uint8": lambda mono: (mono * 128 + 128).astype(np.uint8),
    "float16": lambda mono: mono.astype(np.float16),
    "float64": lambda mono: mono.astype(np.float64),
    "(n, 2)": lambda mono: np.stack([mono, mono], axis=1),
    "(2, n)": lambda mono: np.stack([mono, mono]),
    "(1, n)": lambda mono: mono[None],
    "list": lambda mono: mono.tolist(),
    "tensor": lambda mono: torch.from_numpy(mono)[None].requires_grad_(),
    "strided": lambda mono: np.repeat(mono, 2)[::2],
}


@pytest.mark.parametrize("kind", ARRAYS)
def test_arrays_of_all_kinds_are_the_same_sound(kind):
    mono = make_sound(24_000, 0.5)[0]
    waveform = load_waveform((ARRAYS[kind](mono), 24_000))
    atol = {"uint8": 2**-6, "int16": 2**-14, "float16": 2**-11}.get(kind, 1e-6)
    assert np.abs(waveform.samples - expected_16k(mono[None], 24_000)).max() < atol
    assert waveform.source is None
    assert waveform.duration_s == 0.5


def test_channels_are_averaged():
    left = make_sound(16_000, 0.5)[0]
    assert np.array_equal(load_waveform((np.stack([left, 0 * left]), 16_000)).samples, left / 2)


SOUND = np.zeros(16_000, np.float32)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ((SOUND, 0), "sample_rate=0"),
        ((SOUND, -16_000), "sample_rate=-16000"),
        ((SOUND, 22_050.5), "sample_rate=22050.5"),
        ((SOUND, math.nan), "sample_rate=nan"),
        ((SOUND, "16000"), "sample_rate='16000'"),
        ((SOUND, True), "sample_rate=True"),
        ((16_000, SOUND), r"\(sample_rate, samples\)"),
        ((SOUND.reshape(100, 160), 16_000), r"shape \(100, 160\)"),
        ((SOUND.reshape(1, 1, -1), 16_000), r"shape \(1, 1, 16000\)"),
        ((np.float32(1), 16_000), r"shape \(\)"),
        ((SOUND.astype(complex), 16_000), "complex128"),
        ((SOUND > 0, 16_000), "bool"),
        ((["a", "b"], 16_000), "dtype"),
        (SOUND, "ndarray"),
        (None, "NoneType"),
    ],
)
def test_arrays_that_are_not_a_sound_are_misuse(source, message):
    with pytest.raises(UsageError, match=message):
        load_waveform(source)


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e300])
def test_samples_that_are_not_finite_are_refused(bad, tmp_path):
    sound = make_sound(16_000, 1.0)[0].astype(np.float64)
    sound[9_000] = bad
    with pytest.raises(AudioError, match="NaN or infinite"):
        load_waveform((sound, 16_000))
    path = write_media(tmp_path / "nan.wav", [sound[None]], 16_000, "pcm_f64le", "dbl")
    with pytest.raises(AudioError, match=r"nan\.wav holds NaN"):
        load_waveform(path)


@pytest.mark.parametrize("num_samples", [0, 1, 399, 400, 719])
def test_shorter_than_the_encoder_needs(num_samples, tmp_path):
    with pytest.raises(AudioTooShortError, match=r"at least 0\.045 s"):
        load_waveform((np.ones(num_samples, np.float32), 16_000))
    path = tmp_path / "short.wav"
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        file.writeframes(bytes(2 * num_samples))
    with pytest.raises(AudioTooShortError, match=r"short\.wav lasts"):
        load_waveform(path)


def test_the_shortest_sound_has_one_feature(encoder):
    waveform = load_waveform((make_sound(16_000, 0.045)[0], 16_000))
    assert len(waveform.samples) == MIN_SAMPLES
    assert AudioFeatures(encoder, waveform.samples).features(np.array([0])).shape == (25, 16, 1)


def test_paths_that_cannot_be_opened_are_misuse(tmp_path):
    with pytest.raises(UsageError, match=r"no sound file at .*missing\.wav"):
        load_waveform(tmp_path / "missing.wav")
    with pytest.raises(UsageError, match="is a folder"):
        load_waveform(tmp_path)
    for name in ("a" * 300, "nul\0.wav", str(MEDIA / "talk_2s.wav" / "x.wav")):
        with pytest.raises(UsageError, match="cannot be opened"):
            load_waveform(name)


NOT_SOUND = {
    "empty.wav": (b"", "empty"),
    "header.wav": ((MEDIA / "talk_2s.wav").read_bytes()[:30], "is damaged or not a sound file"),
    "text.wav": (b"hello world\n" * 100, "is damaged or not a sound file"),
    "text.mp3": (b"hello world\n" * 100, "text.mp3"),
    "notes.txt": (b"hello world\n" * 100, "is not a sound file"),
    "subtitles.srt": (b"1\n00:00:01,000 --> 00:00:02,000\nhi\n", "is not a sound file"),
    "picture.wav": ((MEDIA / "beach_small.jpg").read_bytes(), "is not a sound file"),
    "picture.png": ((MEDIA / "person_small.png").read_bytes(), "is not a sound file"),
    "noise.mp3": (np.random.default_rng(0).bytes(50_000), "noise.mp3 (holds no sound|is damaged)"),
    "zeros.bin": (bytes(50_000), "zeros.bin"),
}


@pytest.mark.parametrize("name", NOT_SOUND)
def test_files_that_are_not_sound_say_so_in_one_line(name, tmp_path):
    content, message = NOT_SOUND[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(AudioError, match=message) as caught:
        load_waveform(tmp_path / name)
    assert "\n" not in str(caught.value)
    assert name in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("list.m3u8", "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:2,\n{path}\n#EXT-X-ENDLIST\n"),
        ("list.ffconcat", "ffconcat version 1.0\nfile {path.name}\n"),
    ],
)
def test_playlist_cannot_reach_another_file(tmp_path, name, content):
    private = tmp_path / "private.mp3"
    private.write_bytes((MEDIA / "sing_clip.mp3").read_bytes())
    (tmp_path / name).write_text(content.format(path=private))
    with av.open(str(tmp_path / name)) as opened:  # which a plain open would follow
        assert opened.streams.audio
    with pytest.raises(AudioError, match="is damaged or not a sound file"):
        load_waveform(tmp_path / name)


def test_film_without_sound_says_so(tmp_path):
    path = write_media(tmp_path / "talk.mov", [], video=True)
    with pytest.raises(AudioError, match=r"talk\.mov has a video stream but no audio\. Pass"):
        load_waveform(path)


def test_64_bit_integers_are_refused_by_name(tmp_path):
    path = write_media(tmp_path / "odd.wav", [make_sound(16_000, 0.5)], 16_000, "pcm_s64le", "s64")
    with pytest.raises(AudioError, match="64-bit"):
        load_waveform(path)


@pytest.mark.parametrize("level", [0.0, 9e-4])
def test_silence_is_reported(level):
    waveform = load_waveform((level * np.sin(np.arange(16_000)), 16_000))
    assert len(waveform.warnings) == 1
    assert "silent" in waveform.warnings[0]
    assert load_waveform((2e-3 * np.sin(np.arange(16_000)), 16_000)).warnings == ()


@pytest.mark.parametrize(
    ("name", "codec", "sample_format", "options"),
    [
        ("a.wav", "pcm_s16le", "s16", {}),
        ("a.flac", "flac", "s16", {}),
        ("a.mp3", "libmp3lame", "fltp", {}),
        ("a.m4a", "aac", "fltp", {"movflags": "faststart"}),
        ("a.mka", "aac", "fltp", {}),
    ],
)
def test_cut_off_file_is_read_as_far_as_it_goes_and_reported(tmp_path, name, codec, sample_format, options):
    sound = make_sound(44_100, 4.0)
    path = write_media(tmp_path / name, [sound], 44_100, codec, sample_format, options=options)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 3 // 5])
    waveform = load_waveform(path)
    assert 1.0 < waveform.duration_s < 3.0
    assert abs(lag_of(waveform.samples, expected_16k(sound, 44_100))) <= 1
    assert any(name in warning for warning in waveform.warnings)
    assert load_waveform(path, duration_s=0.5).warnings == ()


def test_damage_in_the_middle_is_skipped_and_reported(tmp_path):
    path = write_media(tmp_path / "a.mp3", [make_sound(44_100, 3.0)], 44_100, "libmp3lame", "fltp")
    content = bytearray(path.read_bytes())
    content[20_000:21_500] = np.random.default_rng(0).bytes(1_500)
    path.write_bytes(content)
    waveform = load_waveform(path)
    assert waveform.duration_s > 2.0
    assert any("damaged" in warning for warning in waveform.warnings)


def tiny_encoder() -> Wav2Vec2Model:
    config = Wav2Vec2Config.from_pretrained(GOLDENS / "wav2vec2_tiny")
    torch.manual_seed(0)
    return Wav2Vec2Model(config)


@pytest.fixture(scope="module")
def song() -> np.ndarray:
    return np.tile(load_waveform(MEDIA / "sing_clip.mp3").samples, 3)


@pytest.fixture(scope="module")
def encoder() -> Wav2Vec2Model:
    return tiny_encoder()


@pytest.mark.parametrize("num_samples", [720, 1_039, 1_040, 5_000, 40_000])
def test_features_equal_torch_interpolation_of_the_whole(encoder, song, num_samples):
    features = AudioFeatures(encoder, song[:num_samples])
    states = features._hidden_states(np.arange(features.num_hidden_states)).transpose(1, 2)
    expected = torch.nn.functional.interpolate(states, size=features.num_features, mode="linear", align_corners=True)
    actual = features.features(np.arange(features.num_features))
    assert (actual - expected).abs().max() <= 1e-6 * expected.abs().max()


@given(num_states=st.integers(2, 400_000), position=st.floats(0, 1))
@settings(max_examples=60, deadline=None)
def test_interpolation_positions_equal_torch_even_an_hour_in(num_states, position):
    features = AudioFeatures.__new__(AudioFeatures)
    features.num_hidden_states, features.num_features = num_states, num_audio_features(num_states)
    features._hidden_states = lambda needed: torch.from_numpy(needed.astype(np.float32) % 97)[None, :, None]
    index = np.unique([0, int(position * (features.num_features - 1)), features.num_features - 1])
    ramp = (torch.arange(num_states, dtype=torch.float32) % 97)[None, None]
    whole = torch.nn.functional.interpolate(ramp, size=features.num_features, mode="linear", align_corners=True)
    assert torch.allclose(features._interpolate(index)[0, :, 0], whole[0, 0, index], atol=2e-5, rtol=0)


def test_indices_may_come_in_any_order_and_minus_one_is_zero(encoder, song):
    features = AudioFeatures(encoder, song, window_s=3, context_s=1)
    everything = features.features(np.arange(features.num_features))
    picked = np.array([150, 3, -1, 3, features.num_features - 1, 0])
    actual = features.features(picked)
    assert torch.equal(actual[:, :, 2], torch.zeros(25, 16))
    sounding = [0, 1, 3, 4, 5]
    assert torch.allclose(actual[:, :, sounding], everything[:, :, picked[sounding]], atol=1e-5)
    assert features.features(np.array([-1, -1])).abs().max() == 0
    assert features.features(np.zeros(0, np.int64)).shape == (25, 16, 0)


def test_context_vectors_are_concatenated_along_the_channels(encoder, song):
    features = AudioFeatures(encoder, song[:16_000])
    indices = np.array([[0, 1, 2], [4, 5, 6], [-1, -1, -1]])
    actual = features.features(indices)
    assert actual.shape == (25, 48, 3)
    expected = torch.cat([features.features(indices[:, k]) for k in range(3)], dim=1)
    assert torch.equal(actual, expected)
    assert features.features(indices[:0]).shape == (25, 48, 0)


@pytest.mark.parametrize("indices", [[-2], [0, 10_000]])
def test_indices_outside_the_sound_are_an_error(encoder, song, indices):
    with pytest.raises(IndexError, match="outside"):
        AudioFeatures(encoder, song).features(np.array(indices))


@pytest.mark.parametrize(("window_s", "context_s"), [(3.0, 1.0), (2.0, 0.5), (4.02, 0.96)])
def test_windows_equal_the_whole_without_attention(song, window_s, context_s):
    encoder = tiny_encoder()
    for layer in encoder.encoder.layers:
        layer.attention.out_proj.weight.data.zero_()
    whole = AudioFeatures(encoder, song)
    windowed = AudioFeatures(encoder, song, window_s=window_s, context_s=context_s)
    assert windowed._kept < windowed.num_hidden_states / 2
    indices = np.arange(whole.num_features)
    # Convolutions over another length may be summed in another order.
    assert (windowed.features(indices) - whole.features(indices)).abs().max() < 2e-5


def test_windows_come_close_to_the_whole_with_attention(encoder, song):
    """Random weights attend everywhere, far more than trained ones: this bounds the error from above."""
    whole = AudioFeatures(encoder, song)
    windowed = AudioFeatures(encoder, song, window_s=6, context_s=2)
    indices = np.arange(whole.num_features)
    expected, actual = whole.features(indices), windowed.features(indices)
    assert (actual[0] - expected[0]).abs().max() < 2e-5  # layer 0 has seen no attention
    assert (actual - expected).abs().mean() < 0.1 * expected.std()


def test_sound_up_to_a_window_is_encoded_whole(encoder, song):
    indices = np.arange(50)
    expected = AudioFeatures(encoder, song[:48_000]).features(indices)
    assert torch.equal(AudioFeatures(encoder, song[:48_000], window_s=3, context_s=1).features(indices), expected)


def test_windows_are_bounded_and_encoded_once_in_order(encoder, song):
    lengths = []
    hook = encoder.register_forward_pre_hook(lambda _, inputs: lengths.append(inputs[0].shape[1]))
    features = AudioFeatures(encoder, song, window_s=3, context_s=1)
    for start in range(0, features.num_features, 20):
        features.features(np.arange(start, min(start + 20, features.num_features)))
    hook.remove()
    assert max(lengths) <= 3 * 16_000 + 80
    assert len(lengths) == math.ceil(features.num_hidden_states / 50)  # 1 s = 50 states of each window are kept


def test_the_whole_sound_is_normalised_not_the_window(encoder, song):
    loud_end = song.copy()
    loud_end[len(song) // 2 :] *= 3
    layer_0 = [
        AudioFeatures(encoder, loud_end, window_s=window_s, context_s=1).features(np.arange(300))[0]
        for window_s in (60, 3)
    ]
    assert torch.allclose(*layer_0, atol=2e-5)


def test_normalisation_follows_the_extractor_setting(encoder, song):
    normalised, raw = (AudioFeatures(encoder, song[:16_000], do_normalize=flag) for flag in (True, False))
    scaled = AudioFeatures(encoder, 3 * song[:16_000])
    index = np.arange(10)
    assert torch.allclose(normalised.features(index), scaled.features(index), atol=1e-3)
    assert not torch.allclose(normalised.features(index), raw.features(index), atol=1e-2)


def test_encoder_in_training_mode_low_precision_and_autocast(song):
    encoder = tiny_encoder()
    index = np.arange(20)
    expected = AudioFeatures(encoder, song[:16_000]).features(index)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(AudioFeatures(encoder.train(), song[:16_000]).features(index), expected)
    actual = AudioFeatures(encoder.to(torch.bfloat16), song[:16_000]).features(index)
    assert actual.dtype == torch.float32
    assert not actual.requires_grad
    assert (actual - expected).abs().mean() < 0.1 * expected.std()


def test_what_cannot_be_encoded_is_refused(encoder, song):
    with pytest.raises(AudioTooShortError, match="719 samples"):
        AudioFeatures(encoder, song[:719])
    with pytest.raises(UsageError, match="window_s=3"):
        AudioFeatures(encoder, song, window_s=3, context_s=1.5)
    other = Wav2Vec2Config.from_pretrained(GOLDENS / "wav2vec2_tiny", conv_stride=[5, 2, 2, 2, 2, 2, 1])
    with pytest.raises(CheckpointError, match="one state per 160 samples"):
        AudioFeatures(Wav2Vec2Model(other), song)


@given(num_samples=st.integers(720, 10_000_000))
@settings(deadline=None)
def test_number_of_hidden_states_is_the_encoders(encoder, num_samples):
    features = AudioFeatures(encoder, np.broadcast_to(np.float32(0), num_samples), do_normalize=False)
    assert features.num_hidden_states == encoder._get_feat_extract_output_lengths(num_samples)


@given(
    num_features=st.integers(1, 5_000),
    fps=st.sampled_from([8, 12, 15, 16, 24, 25, 30]),
    first=st.integers(-50, 5_000),
    num_frames=st.integers(0, 100),
)
def test_aligned_indices_are_the_nearest_features(num_features, fps, first, num_frames):
    indices = aligned_feature_indices(num_features, first, num_frames, fps)
    exact = [round(Fraction(30 * k, fps)) for k in range(first, first + num_frames)]
    assert indices.tolist() == [min(max(index, 0), num_features - 1) for index in exact]


def test_aligned_indices_before_and_after_the_sound():
    assert aligned_feature_indices(10, -3, 12, 16).tolist() == [0, 0, 0, 0, 2, 4, 6, 8, 9, 9, 9, 9]


@pytest.mark.parametrize("fps", [8, 16])
def test_aligned_and_official_indices_agree_inside_the_sound(fps):
    """Where the time of a frame is exact in binary; at 24 fps the official 17.5 is 17.499…"""
    official = feature_indices(3_000, 50 * fps, fps)
    assert official.tolist() == aligned_feature_indices(3_000, 0, 50 * fps, fps).tolist()


def test_frames_after_the_sound_are_silent_in_the_official_pick():
    assert feature_indices(5, 8, 16).tolist() == [0, 2, 4, -1, -1, -1, -1, -1]
    assert feature_indices(5, 3, 16, start_frame=2, span_frames=8).tolist() == [4, -1, -1]


def test_silence_that_goes_on_equals_silence_in_the_waveform(encoder):
    samples = load_waveform(MEDIA / "talk_exact_multiple_16k.wav").samples
    padded = np.concatenate([samples, np.zeros(5_000, np.float32)])
    virtual = AudioFeatures(encoder, samples, num_samples=len(padded))
    real = AudioFeatures(encoder, padded)
    indices = np.arange(real.num_features)
    assert virtual.num_features == real.num_features
    assert torch.allclose(virtual.features(indices), real.features(indices), atol=1e-4)
    cut = AudioFeatures(encoder, samples, num_samples=10_000)
    shorter = AudioFeatures(encoder, samples[:10_000])
    indices = np.arange(shorter.num_features)
    assert torch.allclose(cut.features(indices), shorter.features(indices), atol=1e-4)
