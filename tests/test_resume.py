"""Runs that end early and go on: the same frames as of a run that was never stopped."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import IMAGE, VOICE, model, wan_s2v  # noqa: F401
from PIL import Image

from wan_s2v import partial_run
from wan_s2v.commands import progress
from wan_s2v.partial_run import FinishedClip, PartialRun
from wan_s2v.video import read_frames, read_video_info

SIZE = ("--height", "64", "--width", "64", "--guidance-scale", "1", "--frames-per-clip", "8", "--num-frames", "24")
STEPS = ("--num-inference-steps", "3")
NUM_CLIPS = 3


def _words(model: Path, output: Path, *more: object) -> list[object]:  # noqa: F811
    return ["generate", "-m", model, "-i", IMAGE, "-a", VOICE, "-o", output, "-q", *SIZE, *more]


def _frames(path: Path) -> np.ndarray:
    return np.stack(list(read_frames(path)))


class _Signalling(progress._Silent):
    """Sends this process a signal at a step."""

    def __init__(self, clip: int, step: int, number: int) -> None:
        self.clip, self.at, self.number = 0, (clip, step), number

    def step(self, *state):
        if (self.clip, state[1]) == self.at:
            os.kill(os.getpid(), self.number)
        return {}

    def clip_written(self):
        self.clip += 1


@pytest.fixture
def stop_at(monkeypatch):
    """Has the next command get a signal at a step of a clip, and those after it none."""
    usual = progress.make_reporter

    def plan(clip: int, step: int, number: int = signal.SIGINT) -> None:
        def once(*_args, **_kwargs):
            monkeypatch.setattr(progress, "make_reporter", usual)
            return _Signalling(clip, step, number)

        monkeypatch.setattr(progress, "make_reporter", once)

    return plan


@pytest.fixture(scope="session")
def whole(model, tmp_path_factory) -> Path:  # noqa: F811
    """A video that nothing interrupted."""
    from wan_s2v.cli import main

    torch.set_num_threads(1)  # as in the tests: with another number sums are added in another order
    path = tmp_path_factory.mktemp("whole") / "whole.mp4"
    assert main([str(word) for word in _words(model, path, *STEPS, "--seed", 5, "--keep-clips")]) == 0
    return path


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(("clip", "step"), [(0, 0), (1, 1), (2, 2)])
def test_a_stopped_run_goes_on_to_the_same_video(wan_s2v, model, whole, tmp_path, stop_at, clip, step, number):  # noqa: F811
    words = _words(model, tmp_path / "out.mp4", *STEPS, "--seed", 5)
    stop_at(clip, step, number)
    stopped = wan_s2v(*words)
    assert stopped.code == 130
    assert "is kept. The same command goes on" in stopped.errors[0]
    where = f"clip {clip + 1}," if step == 2 else f"step {step + 1} of clip {clip + 1},"
    assert where in stopped.errors[0]
    assert not (tmp_path / "out.mp4").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out.mp4.partial"]
    assert wan_s2v(*words).code == 0
    assert np.array_equal(_frames(tmp_path / "out.mp4"), _frames(whole))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.mp4", "out.mp4.json"]
    clips = json.loads((tmp_path / "out.mp4.json").read_text())["clips"]
    assert [found["from_earlier_run"] for found in clips] == [index < clip + (step == 2) for index in range(NUM_CLIPS)]
    assert all(found["seconds"]["denoise"] > 0 for found in clips)


@pytest.mark.parametrize("more", [("--scheduler", "dpm++"), ("--scheduler", "euler"), ("--preset", "fast")])
def test_solvers_and_caches_go_on_in_the_middle_of_a_clip(wan_s2v, model, tmp_path, stop_at, more):  # noqa: F811
    more = ("--num-inference-steps", "9", "--seed", "1", *more)
    assert wan_s2v(*_words(model, tmp_path / "whole.mp4", *more)).code == 0
    words = _words(model, tmp_path / "out.mp4", *more)
    for clip, step in ((1, 6), (2, 3)):
        stop_at(clip - (clip == 2), step)  # a resumed run counts the clips that it is given, too
        stop_at(clip, step)
        assert wan_s2v(*words).code == 130
    assert wan_s2v(*words).code == 0
    assert np.array_equal(_frames(tmp_path / "out.mp4"), _frames(tmp_path / "whole.mp4"))


def test_a_run_without_a_seed_goes_on_with_the_one_it_drew(wan_s2v, model, tmp_path, stop_at):  # noqa: F811
    words = _words(model, tmp_path / "out.mp4", *STEPS)
    stop_at(1, 0)
    assert wan_s2v(*words).code == 130
    seed = PartialRun.beside(tmp_path / "out.mp4").read_run()["seed"]
    assert wan_s2v(*words).code == 0
    assert json.loads((tmp_path / "out.mp4.json").read_text())["seed"] == seed


def test_changed_parameters_are_refused_and_shown(wan_s2v, model, tmp_path, stop_at):  # noqa: F811
    words = _words(model, tmp_path / "out.mp4", *STEPS, "--seed", 5)
    stop_at(1, 0)
    assert wan_s2v(*words).code == 130
    kept = sorted((tmp_path / "out.mp4.partial").iterdir())
    refused = wan_s2v(*words, "--prompt", "she smiles")
    assert refused.code == 2
    assert "clip_prompts was ['', '', ''], is ['she smiles'" in refused.errors[0]
    assert "--fresh" in refused.errors[0]
    assert sorted((tmp_path / "out.mp4.partial").iterdir()) == kept
    picture = tmp_path / "other.png"
    Image.new("RGB", (64, 64), "red").save(picture)
    assert "image was " in wan_s2v(*words, "-i", picture).errors[0]
    assert wan_s2v(*words, "--prompt", "she smiles", "--fresh").code == 0
    assert json.loads((tmp_path / "out.mp4.json").read_text())["clips"][0]["from_earlier_run"] is False


def test_a_full_disk_loses_nothing_that_was_kept(wan_s2v, model, whole, tmp_path, monkeypatch):  # noqa: F811
    words = _words(model, tmp_path / "out.mp4", *STEPS, "--seed", 5)
    usual = partial_run.write_atomically

    def full(path, temporary, content):
        if path.name == "clip_00001.safetensors":
            temporary.write_bytes(content[:100])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        usual(path, temporary, content)

    with monkeypatch.context() as patch:
        patch.setattr(partial_run, "write_atomically", full)
        failed = wan_s2v(*words)
    assert failed.code == 1
    assert "No space left" in failed.errors[0]
    assert "the same command again" in failed.errors[0]
    names = sorted(path.name for path in (tmp_path / "out.mp4.partial").iterdir())
    assert names == ["clip_00000.safetensors", "run.json"]
    assert wan_s2v(*words).code == 0
    assert np.array_equal(_frames(tmp_path / "out.mp4"), _frames(whole))


def test_a_damaged_clip_is_made_again(wan_s2v, model, whole, tmp_path, stop_at):  # noqa: F811
    words = _words(model, tmp_path / "out.mp4", *STEPS, "--seed", 5)
    stop_at(2, 0)
    assert wan_s2v(*words).code == 130
    damaged = tmp_path / "out.mp4.partial" / "clip_00001.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:1000])
    assert wan_s2v(*words).code == 0
    assert np.array_equal(_frames(tmp_path / "out.mp4"), _frames(whole))


def test_memory_that_runs_out_keeps_the_steps(wan_s2v, model, whole, tmp_path, monkeypatch):  # noqa: F811
    from wan_s2v.models.transformer import WanS2VTransformer

    words, usual, calls = _words(model, tmp_path / "out.mp4", *STEPS, "--seed", 5), WanS2VTransformer.forward, []

    def short(self, *args):
        calls.append(1)
        if len(calls) == 5:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return usual(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(WanS2VTransformer, "forward", short)
        patch.setattr("wan_s2v.runtime.memory.MemoryPolicy.lower", lambda *_: None)
        failed = wan_s2v(*words)
    assert failed.code == 1
    assert len(failed.errors) == 1
    assert PartialRun.beside(tmp_path / "out.mp4").steps(1, torch.device("cpu"))["step"] == 1
    assert wan_s2v(*words).code == 0
    assert np.array_equal(_frames(tmp_path / "out.mp4"), _frames(whole))


@pytest.fixture
def kept(whole, tmp_path) -> Path:
    """A finished video whose clips were kept."""
    shutil.copytree(whole.parent, tmp_path, dirs_exist_ok=True)
    return tmp_path / whole.name


def test_one_clip_is_made_again_and_what_follows_from_it(wan_s2v, kept, whole):  # noqa: F811
    before = _frames(whole)
    done = wan_s2v("generate", "-o", kept, "--redo-clip", 2, "--seed", 77, "--prompt", "she laughs", "--json", "-q")
    assert done.code == 0, done.err
    record = done.json["metadata"]
    assert record["clip_seeds"] == [5, 77, 7]
    assert record["clip_prompts"] == ["", "she laughs", ""]
    first = record["clips"][0]["num_frames"]
    after = _frames(kept)
    assert after.shape == before.shape
    assert [clip["from_earlier_run"] for clip in record["clips"]] == [True, False, False]
    assert not np.array_equal(after[first:], before[first:])
    again = wan_s2v("generate", "-o", kept, "--redo-clip", 2, "--seed", 6, "--prompt", " ", "-q")
    assert again.code == 0, again.err


def test_redoing_a_clip_with_its_own_seed_gives_the_same_video(wan_s2v, kept, whole):  # noqa: F811
    assert wan_s2v("generate", "-o", kept, "--redo-clip", 2, "--seed", 6, "-q").code == 0
    assert np.array_equal(_frames(kept), _frames(whole))


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (("--redo-clip", 4), "clips 1 to 3"),
        (("--redo-clip", 1, "--height", 96), "leave out --height"),
        (("--redo-clip", 1, "-i", IMAGE), "leave out --image"),
    ],
)
def test_redo_refuses_what_would_be_another_run(wan_s2v, kept, more, says):  # noqa: F811
    refused = wan_s2v("generate", "-o", kept, *more)
    assert refused.code == 2
    assert says in refused.errors[0]


def test_redo_needs_kept_clips(wan_s2v, tmp_path):  # noqa: F811
    refused = wan_s2v("generate", "-o", tmp_path / "out.mp4", "--redo-clip", 1)
    assert refused.code == 2
    assert "--keep-clips" in refused.errors[0]


def test_a_span_of_clips_is_that_part_of_the_video(wan_s2v, model, whole, tmp_path):  # noqa: F811
    words = _words(model, tmp_path / "out.mp4", *STEPS, "--seed", 5)
    lengths = [clip["num_frames"] for clip in json.loads((whole.parent / "whole.mp4.json").read_text())["clips"]]
    assert wan_s2v(*words, "--clips", "2").code == 0
    assert len(list((tmp_path / "out.mp4.partial").glob("clip_*"))) == 2
    info = read_video_info(tmp_path / "out.mp4")
    assert info.num_frames == lengths[1]
    assert abs(info.audio_duration_s - info.duration_s) < 1 / 24
    difference = _frames(tmp_path / "out.mp4").astype(int) - _frames(whole)[lengths[0] : lengths[0] + lengths[1]]
    assert np.abs(difference).mean() < 2  # encoded apart
    refused = wan_s2v(*words, "--clips", "3-4", "--overwrite")
    assert refused.code == 2
    assert "3 clips" in refused.errors[0]
    assert wan_s2v(*words, "--overwrite").code == 0
    assert np.array_equal(_frames(tmp_path / "out.mp4"), _frames(whole))


def test_an_existing_video_is_not_replaced_by_a_kept_run(wan_s2v, model, kept):  # noqa: F811
    refused = wan_s2v(*_words(model, kept, *STEPS, "--seed", 5))
    assert refused.code == 2
    assert "exists already" in refused.errors[0]


def test_what_is_kept_comes_back_as_it_was(tmp_path):
    run = PartialRun(tmp_path / "kept")
    assert run.read_run() is None
    assert run.clip(0) is None
    clip = FinishedClip(torch.randn(1, 4, 2, 3, 3), None, 3, {"denoise": 1.5})
    run.keep_clip(4, clip)
    found = run.clip(4)
    assert torch.equal(found.latents, clip.latents)
    assert (found.motion_latents, found.num_predictions, found.seconds) == (None, 3, {"denoise": 1.5})
    state = {"step": 2, "list": [None, torch.ones(2)], "deep": {"x": torch.zeros(1, dtype=torch.int64)}, "none": None}
    run.keep_steps(5, state)
    again = run.steps(5, torch.device("cpu"))
    assert run.steps(4, torch.device("cpu")) is None
    assert again["step"] == 2
    assert again["none"] is None
    assert again["list"][0] is None
    assert torch.equal(again["list"][1], torch.ones(2))
    assert again["deep"]["x"].dtype == torch.int64
    run.forget_from(4)
    assert list(run.finished_clips()) == []
