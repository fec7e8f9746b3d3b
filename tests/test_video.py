"""mp4 files written and read back: frames, sound, alignment, failures; pose videos by time."""

from __future__ import annotations

import errno
import os
import subprocess
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from conftest import MEDIA

from wan_s2v import video as video_module
from wan_s2v.errors import AudioError, OutputError, UsageError, VideoError
from wan_s2v.image import plan_framing
from wan_s2v.pose_video import PoseVideo
from wan_s2v.video import (
    VideoWriter,
    check_output_path,
    read_frames,
    read_video_info,
    to_uint8,
    verify_video,
    write_video,
)

POSE = MEDIA / "pose_small.mp4"


def _levels(count, height=64, width=64, step=2):
    """Plain grey frames whose level tells their number."""
    return np.broadcast_to((np.arange(count, dtype=np.uint8) * step)[:, None, None, None], (count, height, width, 3))


def _audio(path):
    with av.open(str(path)) as container:
        return np.concatenate([frame.to_ndarray() for frame in container.decode(audio=0)], axis=1)


def _streams(path):
    with av.open(str(path)) as container:
        return [float(s.duration * s.time_base) for s in container.streams], dict(container.metadata)


@pytest.mark.parametrize(
    ("fps", "height", "width", "count", "sound"),
    [
        (16, 96, 128, 77, "talk_5s_8k.wav"),
        (24, 90, 122, 120, "sing_clip.mp3"),
        (25, 64, 64, 3, "talk_0s3.wav"),
        (30, 66, 120, 45, None),
        (50, 64, 64, 50, "talk_2s.wav"),
        (60, 64, 64, 61, "talk_2s.wav"),
        (Fraction(24000, 1001), 64, 64, 48, "talk_2s.wav"),
        (24, 64, 64, 1, "talk_2s.wav"),
        (16, 64, 64, 1, None),
    ],
)
def test_written_videos_hold_exactly_what_was_asked_for(tmp_path, fps, height, width, count, sound):
    path = tmp_path / "result.mp4"
    frames = _levels(count, height, width)
    write_video(path, frames, fps, audio=sound and MEDIA / sound, metadata={"comment": "AI-generated"})
    info = read_video_info(path)
    assert (info.num_frames, info.height, info.width, info.fps) == (count, height, width, Fraction(fps))
    assert abs(info.duration_s - count / fps) < 0.001
    assert (info.video_codec, info.pixel_format) == ("h264", "yuv420p")
    if sound:
        assert abs(info.audio_duration_s - count / fps) < 1024 / 48_000
        assert (info.audio_codec, info.sample_rate) == ("aac", 48_000)
    else:
        assert info.audio_duration_s is None
    assert np.abs(np.stack(list(read_frames(path))).astype(int) - frames).max() <= 2
    assert _streams(path)[1]["comment"] == "AI-generated"
    assert os.listdir(tmp_path) == ["result.mp4"]


def test_a_hundred_and_twenty_frames_at_24_last_five_seconds_in_both_streams(tmp_path):
    write_video(tmp_path / "a.mp4", _levels(120, step=1), 24, audio=MEDIA / "talk_2s.wav")
    assert _streams(tmp_path / "a.mp4")[0] == [5.0, 5.0]


def test_colours_survive_and_are_tagged_bt709(tmp_path):
    colours = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [20, 120, 220], [230, 180, 150]], np.uint8)
    frames = np.broadcast_to(colours[:, None, None], (5, 64, 64, 3))
    write_video(tmp_path / "a.mp4", frames, 16)
    assert np.abs(np.stack(list(read_frames(tmp_path / "a.mp4"))).astype(int) - frames).max() <= 4
    with av.open(str(tmp_path / "a.mp4")) as container:
        context = container.streams.video[0].codec_context
        assert (context.colorspace, context.color_primaries, context.color_trc, context.color_range) == (1, 1, 1, 1)


def _lag_samples(written, source):
    size = 1 << 18
    spectrum = np.fft.rfft(written[:100_000], size) * np.conj(np.fft.rfft(source[:100_000], size))
    peak = int(np.argmax(np.fft.irfft(spectrum, size)))
    return peak - size if peak > size // 2 else peak


@pytest.mark.parametrize("chunk", [1, 7, 48])
def test_sound_starts_with_the_first_frame(tmp_path, chunk):
    noise = np.random.default_rng(0).standard_normal((2, 2 * 48_000)) * 0.3
    # AAC replaces white noise by noise of its own; below 2 kHz it keeps the waveform.
    noise = np.stack([np.convolve(channel, np.hanning(48) / 8, mode="same") for channel in noise]).astype(np.float32)
    with VideoWriter(tmp_path / "a.mp4", height=64, width=64, fps=24, audio=(noise, 48_000)) as writer:
        for start in range(0, 48, chunk):
            writer.write(_levels(48)[start : start + chunk])
    written = _audio(tmp_path / "a.mp4")
    for channel in (0, 1):
        assert abs(_lag_samples(written[channel], noise[channel])) <= 48  # 1 ms
    assert np.corrcoef(written[0, :96_000], noise[0])[0, 1] > 0.95
    assert abs(np.corrcoef(written[0, :96_000], noise[1])[0, 1]) < 0.1, "left and right stay apart"


@pytest.mark.parametrize("rate", [8_000, 44_100, 96_000])
def test_resampled_sound_is_aligned_too(tmp_path, rate):
    time = np.arange(2 * rate) / rate
    chirp = (0.5 * np.sin(2 * np.pi * (200 * time + 400 * time**2))).astype(np.float32)
    write_video(tmp_path / "a.mp4", _levels(48), 24, audio=(chirp, rate))
    time = np.arange(96_000) / 48_000
    assert abs(_lag_samples(_audio(tmp_path / "a.mp4")[0], np.sin(2 * np.pi * (200 * time + 400 * time**2)))) <= 48


@pytest.mark.parametrize("kind", ["int16", "uint8", "float64", "tensor", "list", "rows"])
def test_arrays_of_every_kind_sound_alike(tmp_path, kind):
    tone = 0.5 * np.sin(np.arange(48_000) / 30)
    samples = {
        "int16": (tone * 32767).astype(np.int16),
        "uint8": (tone * 127 + 128).astype(np.uint8),
        "float64": tone,
        "tensor": torch.tensor(tone),
        "list": tone.astype(np.float32),
        "rows": np.stack([tone, tone], axis=1),
    }[kind]
    source = [samples, 48_000] if kind == "list" else (samples, 48_000)
    write_video(tmp_path / "a.mp4", _levels(16), 16, audio=source)
    assert np.abs(_audio(tmp_path / "a.mp4")[0, 2000:46_000] - tone[2000:46_000]).max() < 0.03


def test_sound_is_cut_or_padded_with_silence_to_the_video(tmp_path):
    tone = np.full(48_000, 0.5, np.float32) * np.sign(np.sin(np.arange(48_000) / 20)).astype(np.float32)
    write_video(tmp_path / "long.mp4", _levels(48), 24, audio=(tone, 48_000))
    padded = _audio(tmp_path / "long.mp4")[0]
    assert np.abs(padded[10_000:40_000]).mean() > 0.3
    assert np.abs(padded[50_000:96_000]).max() < 0.01
    write_video(tmp_path / "short.mp4", _levels(12), 24, audio=(tone, 48_000))
    assert _streams(tmp_path / "short.mp4")[0] == [0.5, 0.5]


def test_mono_stays_mono_and_surround_becomes_stereo(tmp_path):
    wav = tmp_path / "surround.wav"
    with av.open(str(wav), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=44_100, layout="5.1")
        samples = np.full((1, 6 * 44_100), 3000, np.int16)
        frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="5.1")
        frame.sample_rate = 44_100
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    for source, channels in (
        (wav, 2),
        (MEDIA / "talk_5s_8k.wav", 1),
        (MEDIA / "sing_clip.mp3", 2),
        ((np.zeros((5, 4000), np.float32), 8000), 2),
        ((np.zeros((4000, 2), np.int16), 8000), 2),
    ):
        write_video(tmp_path / "a.mp4", _levels(8), 16, audio=source)
        assert _audio(tmp_path / "a.mp4").shape[0] == channels
    write_video(tmp_path / "a.mp4", _levels(8), 16, audio=wav)
    assert np.abs(_audio(tmp_path / "a.mp4")[:, 5000:20_000]).min() > 0.05


def test_a_video_can_lend_its_sound(tmp_path):
    write_video(tmp_path / "a.mp4", _levels(32), 16, audio=MEDIA / "talk_2s.wav")
    write_video(tmp_path / "b.mp4", _levels(32), 16, audio=tmp_path / "a.mp4")
    first, second = _audio(tmp_path / "a.mp4")[0], _audio(tmp_path / "b.mp4")[0]
    assert abs(_lag_samples(second, first)) <= 48
    assert np.corrcoef(first[:90_000], second[:90_000])[0, 1] > 0.98


def test_damaged_sound_in_the_middle_is_left_out(tmp_path):
    content = bytearray((MEDIA / "sing_clip.mp3").read_bytes())
    content[20_000:20_400] = os.urandom(400)
    (tmp_path / "damaged.mp3").write_bytes(content)
    write_video(tmp_path / "a.mp4", _levels(48), 16, audio=tmp_path / "damaged.mp3")
    assert _streams(tmp_path / "a.mp4")[0] == [3.0, 3.0]


@pytest.mark.parametrize(
    ("source", "error"),
    [
        ("missing.wav", UsageError),
        (MEDIA, UsageError),
        (POSE, AudioError),
        (MEDIA / "person_small.png", AudioError),
        (MEDIA / "README.md", AudioError),
        ((np.zeros(0, np.float32), 16_000), AudioError),
        ((np.full(4000, np.nan, np.float32), 16_000), AudioError),
        ((np.zeros((2, 2, 2)), 16_000), UsageError),
        ((np.zeros(4000, np.float32), 0), UsageError),
    ],
)
def test_sound_that_cannot_be_used_leaves_nothing_behind(tmp_path, source, error):
    with pytest.raises(error):
        write_video(tmp_path / "a.mp4", _levels(4), 16, audio=source)
    assert os.listdir(tmp_path) == []


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    target = tmp_path / "a.mp4"
    target.write_bytes(b"old")
    with pytest.raises(ZeroDivisionError):
        _write_and_fail(target)
    with pytest.raises(OutputError, match="No frame"), VideoWriter(target, height=64, width=64, fps=16):
        pass
    with pytest.raises(UsageError, match="do not fit"):
        write_video(target, _levels(4).astype(np.float32), 16)
    monkeypatch.setattr(video_module, "verify_video", _refuse)
    with pytest.raises(OutputError, match="not what was asked"):
        write_video(target, _levels(4), 16, audio=MEDIA / "talk_2s.wav")
    assert os.listdir(tmp_path) == ["a.mp4"]
    assert target.read_bytes() == b"old"


def _write_and_fail(path):
    with VideoWriter(path, height=64, width=64, fps=16) as writer:
        writer.write(_levels(4))
        1 / 0  # noqa: B018


def _refuse(*_):
    raise OutputError("not what was asked for")


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(video_module.os, "replace", full)
    with pytest.raises(OutputError, match="No space left") as caught:
        write_video(tmp_path / "a.mp4", _levels(4), 16)
    assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == []


def test_a_really_full_disk_is_reported_too(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small tmpfs needs root")
    try:
        noise = np.random.default_rng(0).integers(0, 256, (80, 128, 128, 3), dtype=np.uint8)
        with pytest.raises(OutputError, match=r"disk/a\.mp4") as caught:
            write_video(disk / "a.mp4", noise, 16, audio=MEDIA / "talk_2s.wav")
        assert "No space left" in str(caught.value)
        assert os.listdir(disk) == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_read_only_folder_is_found_before_the_work(tmp_path, monkeypatch):
    disk = tmp_path / "disk"
    disk.mkdir()
    monkeypatch.setattr(video_module.os, "access", lambda *_: False)
    with pytest.raises(OutputError, match="cannot be written to"):
        check_output_path(disk / "a.mp4")
    monkeypatch.undo()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("mounting a read-only tmpfs needs root")
    try:
        with pytest.raises(OutputError, match=r"Read-only|Permission"):
            check_output_path(disk / "a.mp4")
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_output_paths_are_checked_without_leaving_anything(tmp_path):
    (tmp_path / "old.mp4").write_bytes(b"old")
    (tmp_path / "folder.mp4").mkdir()
    check_output_path(tmp_path / "new.MP4")
    check_output_path(tmp_path / "old.mp4")
    for path in (
        tmp_path / "a.avi",
        tmp_path / "a",
        tmp_path / "folder.mp4",
        tmp_path / "no" / "a.mp4",
        tmp_path / "old.mp4" / "a.mp4",
        tmp_path / ("x" * 300 + ".mp4"),
        tmp_path / "a\0.mp4",
    ):
        with pytest.raises(UsageError):
            check_output_path(path)
    with pytest.raises(UsageError, match="exists already"):
        check_output_path(tmp_path / "old.mp4", overwrite=False)
    assert sorted(os.listdir(tmp_path)) == ["folder.mp4", "old.mp4"]


def test_odd_names_and_permissions_are_ordinary(tmp_path):
    folder = tmp_path / "a:b %d ü"
    folder.mkdir()
    write_video(folder / "it's 100 %.mp4", _levels(4), 16)
    assert read_video_info(folder / "it's 100 %.mp4").num_frames == 4
    (folder / "plain").touch()
    assert (folder / "it's 100 %.mp4").stat().st_mode == (folder / "plain").stat().st_mode


def test_a_relative_path_without_a_folder_works(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_video("a.mp4", _levels(2), 16)
    assert os.listdir(tmp_path) == ["a.mp4"]


@pytest.mark.parametrize(
    "options",
    [
        {"height": 63, "width": 64, "fps": 16},
        {"height": 64, "width": 64, "fps": 0},
        {"height": 64, "width": 64, "fps": 16, "metadata": {"x-label": "1"}},
    ],
)
def test_wrong_options_are_usage_errors(tmp_path, options):
    with pytest.raises(UsageError):
        VideoWriter(tmp_path / "a.mp4", **options)
    assert os.listdir(tmp_path) == []


def test_verification_names_what_differs(tmp_path):
    path = tmp_path / "a.mp4"
    write_video(path, _levels(8), 16, audio=MEDIA / "talk_2s.wav")
    verify_video(path, 8, 16, 64, 64, True)
    for wrong, name in (
        ((9, 16, 64, 64, True), "frames 8"),
        ((8, 24, 64, 64, True), "fps 16"),
        ((8, 16, 32, 64, True), "height 64"),
        ((8, 16, 64, 64, False), "sound True"),
    ):
        with pytest.raises(OutputError, match=name):
            verify_video(path, *wrong)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(OutputError, match="read back"):
        verify_video(path, 8, 16, 64, 64, True)


def test_unreadable_videos_are_video_errors(tmp_path):
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "cut.mp4").write_bytes(POSE.read_bytes()[:3000])
    for source in (tmp_path / "empty.mp4", tmp_path / "cut.mp4", MEDIA / "talk_2s.wav", MEDIA / "README.md"):
        with pytest.raises(VideoError):
            read_video_info(source)
        with pytest.raises(VideoError):
            PoseVideo(source, 16, timing="aligned")
    for source in (tmp_path, tmp_path / "none.mp4", tmp_path / "a\0.mp4"):
        with pytest.raises(UsageError):
            list(read_frames(source))


def test_pixels_become_bytes_by_truncation():
    values = torch.tensor([-2.0, -1.0, -0.5, 0.0, 0.9999, 1.0, 3.0])
    frames = values.expand(3, 2, 1, 7)
    assert to_uint8(frames)[1, 0, :, 2].tolist() == [0, 0, 63, 127, 254, 255, 255]
    assert to_uint8(frames).shape == to_uint8(frames.transpose(0, 1)).shape == (2, 1, 7, 3)
    colours = torch.tensor([-1.0, 0.0, 1.0])[:, None, None, None].expand(3, 5, 2, 4)
    assert to_uint8(colours)[4, 1, 3].tolist() == [0, 127, 255]
    assert to_uint8(colours.bfloat16()).dtype == np.uint8
    with pytest.raises(UsageError):
        to_uint8(torch.zeros(2, 4, 8, 8))


def _numbers(frames, step):
    return ((frames[:, 0, 5, 5] + 1) * 127.5 / step).round().int().tolist()


@pytest.fixture(scope="module")
def film_25(tmp_path_factory):
    path = tmp_path_factory.mktemp("pose") / "film.mp4"
    write_video(path, _levels(50, step=5), 25)
    return path


@pytest.mark.parametrize("fps", [8, 12, 16, 24, 25, 30, 50])
def test_aligned_poses_are_never_more_than_half_a_frame_off(tmp_path, fps):
    write_video(tmp_path / "a.mp4", _levels(fps, step=5), fps)
    pose = PoseVideo(tmp_path / "a.mp4", 16, timing="aligned")
    shown = _numbers(pose.read(0, 16), 5)
    assert pose.num_frames == 16
    assert max(abs(number / fps - k / 16) for k, number in enumerate(shown)) <= 0.5 / fps + 1e-9


def test_variable_frame_rate_follows_the_time_stamps(tmp_path):
    stamps_ms = [0, 40, 80, 500, 540, 1000, 1200]
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "5"})
        stream.width = stream.height = 64
        stream.codec_context.time_base = Fraction(1, 1000)
        for pixels, stamp in zip(_levels(7, step=30), stamps_ms, strict=True):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24").reformat(format="yuv420p")
            frame.pts, frame.time_base = stamp + 200, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    shown = _numbers(PoseVideo(tmp_path / "a.mkv", 16, timing="aligned").read(0, 20), 30)
    nearest = [min(range(7), key=lambda n: abs(stamps_ms[n] - k * 62.5)) for k in range(20)]
    assert shown[:19] == nearest[:19]


def test_reference_timing_takes_every_nth_frame(film_25):
    pose = PoseVideo(film_25, 16, timing="reference")
    assert _numbers(pose.read(0, 5), 5) == [0, 2, 4, 6, 8]  # 25 / 16 rounds to 2, which plays 1.28 times too fast
    assert pose.num_frames == 25


def test_poses_can_be_read_in_any_order(film_25):
    whole = PoseVideo(film_25, 16, timing="aligned").read(0, 36)
    assert (whole[32:] == -1).all()
    pose = PoseVideo(film_25, 16, timing="aligned")
    for start, count in ((20, 5), (0, 3), (3, 4), (30, 6), (40, 2), (8, 1), (8, 1)):
        expected = whole[start : start + count] if start < 36 else torch.full_like(whole[:count], -1)
        assert torch.equal(pose.read(start, count), expected)
    assert torch.equal(pose.read(-2, 4), whole[[0, 0, 0, 1]])
    pose.close()
    assert torch.equal(pose.read(5, 2), whole[5:7])


def test_framed_poses_have_grey_bars_and_black_missing_frames(film_25):
    pose = PoseVideo(film_25, 16, timing="aligned")
    framing = plan_framing(pose.height, pose.width, height=64, width=128, fit="pad")
    frames = pose.read(30, 4, framing)
    assert frames.shape == (4, 3, 64, 128)
    assert (frames[:2, :, :, :32] == 0).all()
    assert (frames[2:] == -1).all()


def test_a_sideways_phone_video_is_turned_upright(tmp_path):
    frames = np.zeros((4, 64, 96, 3), np.uint8)
    frames[:, :, :48] = 255  # stored: left half white
    write_video(tmp_path / "a.mp4", frames, 16)
    content = bytearray((tmp_path / "a.mp4").read_bytes())
    matrix = content.index(b"tkhd") + 4 + 40
    clockwise = [0, 0x10000, 0, -0x10000, 0, 0, 64 * 0x10000, 0, 0x40000000]
    content[matrix : matrix + 36] = b"".join(value.to_bytes(4, "big", signed=True) for value in clockwise)
    (tmp_path / "a.mp4").write_bytes(content)
    upright = next(read_frames(tmp_path / "a.mp4"))
    assert upright.shape == (96, 64, 3)
    assert upright[:40].min() > 200, "the left becomes the top when turned clockwise"
    info = read_video_info(tmp_path / "a.mp4")
    assert (info.height, info.width) == (96, 64)
    pose = PoseVideo(tmp_path / "a.mp4", 16, timing="aligned")
    assert pose.read(0, 1).shape == (1, 3, pose.height, pose.width) == (1, 3, 96, 64)
