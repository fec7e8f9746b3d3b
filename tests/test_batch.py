"""Batches: every job is settled, a bad one stops nothing, and the report and the exit code say so."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import command_line
import numpy as np
import pytest
from command_line import FAST, IMAGE, VOICE
from conftest import MEDIA

from wan_s2v.commands import batch, progress
from wan_s2v.commands.batch import read_jobs
from wan_s2v.errors import NumericsError, UsageError
from wan_s2v.video import read_frames, read_video_info

model, wan_s2v = command_line.model, command_line.wan_s2v
SHORT = MEDIA / "talk_0s3.wav"


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder with a picture and two sounds."""
    for source, name in ((IMAGE, "face.jpg"), (VOICE, "one.wav"), (SHORT, "two.wav")):
        shutil.copy(source, tmp_path / name)
    return tmp_path


def write_jobs(folder: Path, *jobs: object) -> Path:
    path = folder / "jobs.jsonl"
    path.write_text("\n".join(job if isinstance(job, str) else json.dumps(job) for job in jobs) + "\n")
    return path


def report_of(path: Path) -> list[dict]:
    lines = (path.parent / f"{path.name}.report.jsonl").read_text().splitlines()
    return sorted((json.loads(line) for line in lines), key=lambda item: item["number"])


def test_good_jobs_are_made_with_one_loaded_model_and_bad_ones_reported(wan_s2v, model, folder, monkeypatch):
    loads = []
    load = batch.load_pipeline
    monkeypatch.setattr(batch, "load_pipeline", lambda *args: loads.append(args) or load(*args))
    jobs = write_jobs(
        folder,
        {"image": "face.jpg", "audio": "one.wav", "output": "a.mp4", "seed": 3, "prompt": "a person is talking"},
        {"image": "missing.jpg", "audio": "one.wav", "output": "b.mp4"},
        {"image": "face.jpg", "audio": "one.wav", "output": "c.mp4", "num_inference_step": 3},
        "{not json",
        {"image": "face.jpg", "audio": "two.wav", "output": "a.mp4"},
        {"image": "face.jpg", "audio": "two.wav"},
    )
    done = wan_s2v("batch", jobs, "-m", model, *FAST)
    assert done.code == 1
    assert done.out.splitlines() == [str(folder / "a.mp4"), str(folder / "two.mp4")]
    assert len(loads) == 1
    assert [(item["number"], item["status"]) for item in report_of(jobs)] == [
        (1, "done"), (2, "failed"), (3, "failed"), (4, "failed"), (5, "failed"), (6, "done"),
    ]  # fmt: skip
    assert report_of(jobs)[0]["seed"] == 3
    expected = ("does not exist", "Did you mean num_inference_steps", "not JSON", "that of job 1 already")
    assert all(text in line for text, line in zip(expected, done.errors, strict=True)), done.errors
    assert "2 done, 4 failed" in done.err
    assert read_video_info(folder / "two.mp4").num_frames == 4


def test_finished_videos_are_skipped_and_broken_ones_reported(wan_s2v, model, folder):
    jobs = write_jobs(folder, *({"image": "face.jpg", "audio": name} for name in ("one.wav", "two.wav")))
    assert wan_s2v("batch", jobs, "-m", model, *FAST).code == 0
    before = (folder / "one.mp4").stat().st_mtime_ns
    (folder / "two.mp4").write_bytes(b"half a video")
    again = wan_s2v("batch", jobs, "-m", model, *FAST)
    assert again.code == 1
    assert "not a finished video" in again.errors[0]
    assert [item["status"] for item in report_of(jobs)] == ["skipped", "failed"]
    assert (folder / "one.mp4").stat().st_mtime_ns == before
    assert wan_s2v("batch", jobs, "-m", model, *FAST, "--overwrite", "-q").code == 0
    assert read_video_info(folder / "two.mp4").num_frames == 4


def test_a_failure_while_making_does_not_stop_the_rest(wan_s2v, model, folder, monkeypatch):
    make = batch.make_video

    def fail_on_one(pipeline, wanted, reporter):
        if wanted.request.audio.stem == "one":
            raise NumericsError("latents became NaN")
        return make(pipeline, wanted, reporter)

    monkeypatch.setattr(batch, "make_video", fail_on_one)
    jobs = write_jobs(folder, *({"image": "face.jpg", "audio": name} for name in ("one.wav", "two.wav")))
    done = wan_s2v("batch", jobs, "-m", model, *FAST, "--json", "-q")
    assert done.code == 1
    assert [(job["status"], job.get("error")) for job in done.json["jobs"]] == [
        ("failed", "latents became NaN"), ("done", None),
    ]  # fmt: skip


def test_csv_with_typed_columns_and_an_output_folder(wan_s2v, model, folder):
    table = folder / "jobs.csv"
    table.write_text(
        "\ufeffimage, audio, output, seed, guidance_scale, start_from_reference, fps, prompt\n"
        'face.jpg, two.wav, x.mp4, 4, 1.0, yes, 25, "smiling, happy"\n'
        "face.jpg, two.wav, y.mp4, , , , , \n"
        "face.jpg, two.wav, z.mp4, four, , , , \n",
        encoding="utf-8",
    )
    done = wan_s2v("batch", table, "-m", model, *FAST, "--output-dir", folder / "out", "--report", folder / "r.jsonl")
    assert done.code == 1
    assert "seed='four' is not a whole number" in done.errors[0]
    assert done.out.splitlines() == [str(folder / "out" / "x.mp4"), str(folder / "out" / "y.mp4")]
    assert read_video_info(folder / "out" / "x.mp4").fps == 25
    options = read_jobs(table, None, {})[0].options
    assert options == {
        "seed": 4, "guidance_scale": 1.0, "start_from_reference": True, "fps": "25", "prompt": "smiling, happy",
    }  # fmt: skip
    assert len((folder / "r.jsonl").read_text().splitlines()) == 3


def test_folder_with_one_picture_and_many_sounds(wan_s2v, model, folder):
    done = wan_s2v("batch", folder, "-m", model, *FAST, "--output-dir", folder / "out", "-q")
    assert (done.code, done.err) == (0, "")
    assert [Path(line).name for line in done.out.splitlines()] == ["one.mp4", "two.mp4"]


def test_folder_pairs_by_name_and_names_what_is_alone(folder):
    (folder / "face.jpg").rename(folder / "one.jpg")
    shutil.copy(IMAGE, folder / "three.png")
    (folder / "one.mp4").write_bytes(b"made before")
    jobs = read_jobs(folder, None, {})
    assert [(Path(job.image).name, Path(job.audio).name) for job in jobs if not job.error] == [("one.jpg", "one.wav")]
    assert sorted(job.error.split()[0] for job in jobs if job.error) == ["three.png", "two.wav"]


def test_options_of_the_command_are_defaults_that_a_job_overrides(folder):
    jobs = write_jobs(folder, {"image": "face.jpg", "audio": "one.wav", "seed": 9})
    assert read_jobs(jobs, None, {"seed": 1, "fps": "16"})[0].options == {"seed": 9, "fps": "16"}


def test_dry_run_checks_every_job_and_writes_nothing(wan_s2v, model, folder):
    jobs = write_jobs(folder, {"image": "face.jpg", "audio": "one.wav"}, {"image": "face.jpg", "audio": "no.wav"})
    before = sorted(folder.iterdir())
    done = wan_s2v("batch", jobs, "-m", model, "--dry-run")
    assert (done.code, done.out) == (1, "")
    assert "1 checked, 1 failed" in done.err
    assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize(
    ("job", "message"),
    [
        ({"audio": "one.wav"}, "has no image"),
        ({"image": "face.jpg"}, "has no audio"),
        ({"image": "face.jpg", "audio": ["one.wav"]}, "has no audio"),
        ({"image": "face.jpg", "audio": "one.wav", "seed": "7"}, "has the type str"),
        ({"image": "face.jpg", "audio": "one.wav", "frames_per_clip": 8.5}, "has the type float"),
        ({"image": "face.jpg", "audio": "one.wav", "start_from_reference": "no"}, "has the type str"),
        ({"image": "face.jpg", "audio": "one.wav", "num_frames": True}, "has the type bool"),
        ({"image": "face.jpg", "audio": "one.wav", "prompt": 5}, "has the type int"),
        ({"image": "face.jpg", "audio": "one.wav", "use_fp16": True}, "holds for all jobs"),
        ({"image": "face.jpg", "audio": "one.wav", "promt": "x"}, "Did you mean prompt"),
        ({"image": "face.jpg", "audio": "one.wav", "generator": None}, "not an option of a job"),
    ],
)
def test_jobs_that_cannot_be_read_say_why(folder, job, message):
    jobs = write_jobs(folder, {"image": "face.jpg", "audio": "one.wav"}, job)
    assert message in read_jobs(jobs, None, {})[1].error


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("jobs.jsonl", "", "holds no job"),
        ("jobs.jsonl", "[1]\n3\n", "Write one object per line"),
        ("jobs.csv", "picture,sound\n1,2\n", "needs image and audio"),
        ("jobs.csv", "", "needs image and audio"),
        ("jobs.txt", "image,audio", "is not a job list"),
        ("jobs.csv", b"\xff\xfe\x00", "cannot be read as a job list"),
    ],
)
def test_lists_that_cannot_be_read(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UsageError, match=message):
        read_jobs(tmp_path / name, None, {})


def test_missing_list_and_empty_folder(wan_s2v, model, tmp_path):
    assert wan_s2v("batch", tmp_path / "no.jsonl", "-m", model).code == 2
    assert "holds no job" in wan_s2v("batch", tmp_path, "-m", model).errors[0]


def test_a_job_may_not_replace_its_own_input(wan_s2v, model, folder):
    shutil.copy(MEDIA / "pose_small.mp4", folder / "voice.mp4")
    jobs = write_jobs(folder, {"image": "face.jpg", "audio": "voice.mp4"})
    done = wan_s2v("batch", jobs, "-m", model, "--overwrite", "--dry-run")
    assert done.code == 1
    assert "is also the audio" in done.errors[0]


def test_report_that_cannot_be_written(wan_s2v, model, folder):
    jobs = write_jobs(folder, {"image": "face.jpg", "audio": "one.wav"})
    done = wan_s2v("batch", jobs, "-m", model, *FAST, "--report", folder / "face.jpg" / "r.jsonl", "-q")
    assert done.code == 1
    assert "cannot be written" in done.errors[0]


def test_a_model_that_cannot_be_opened_fails_the_run_at_once(wan_s2v, folder, tmp_path):
    jobs = write_jobs(folder, {"image": "face.jpg", "audio": "one.wav"})
    assert wan_s2v("batch", jobs, "-m", tmp_path / "no-model").code == 2


def test_stopping_ends_the_batch_and_the_next_one_goes_on(wan_s2v, model, tmp_path, monkeypatch):
    """Ctrl-C is for all jobs, not for the one that is being made."""
    shutil.copy(IMAGE, tmp_path / "p.jpg")
    jobs = [{"image": "p.jpg", "audio": str(VOICE), "output": f"{name}.mp4", "seed": 1} for name in "ab"]
    (tmp_path / "jobs.jsonl").write_text("".join(json.dumps(job) + "\n" for job in jobs))
    words = ("batch", tmp_path / "jobs.jsonl", "-m", model, *FAST, "-q")
    usual = progress.make_reporter

    class Signalling(progress._Silent):
        def step(self, *_state):
            monkeypatch.setattr(progress, "make_reporter", usual)
            os.kill(os.getpid(), signal.SIGINT)
            return {}

    monkeypatch.setattr(progress, "make_reporter", lambda *_args, **_more: Signalling())
    stopped = wan_s2v(*words)
    assert stopped.code == 130
    assert sorted(path.name for path in tmp_path.iterdir() if "mp4" in path.name) == ["a.mp4.partial"]
    assert wan_s2v(*words).code == 0
    assert sorted(path.name for path in tmp_path.glob("*.mp4")) == ["a.mp4", "b.mp4"]
    first, second = (list(read_frames(tmp_path / f"{name}.mp4")) for name in "ab")
    assert all(np.array_equal(one, other) for one, other in zip(first, second, strict=True))
