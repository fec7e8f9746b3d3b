"""A worker in the test process: what it makes, and what it does when it is interrupted at any point."""

from __future__ import annotations

import base64
import json
import os
import pickle
import shutil
import signal
import threading

import numpy as np
import pytest
import server_setup
from conftest import MEDIA
from server_setup import IMAGE

from wan_s2v.commands.progress import make_reporter
from wan_s2v.commands.request import load_pipeline
from wan_s2v.server import worker as worker_module
from wan_s2v.server.jobs import Queue, new_id
from wan_s2v.server.limits import Limits
from wan_s2v.server.storage import Storage
from wan_s2v.server.worker import Worker
from wan_s2v.video import read_frames, read_video_info

facts = server_setup.facts
SMALL = {"height": 64, "width": 64, "num_inference_steps": 2, "guidance_scale": 1.0, "num_frames": 10, "seed": 3}
THREE_CLIPS = SMALL | {"frames_per_clip": 4}


@pytest.fixture(scope="module")
def opened(facts):
    return pickle.loads(base64.b64decode(facts["model"]))


@pytest.fixture(scope="module")
def pipeline(opened):
    return load_pipeline(opened, make_reporter(None, quiet=True))


class Bench:
    """A worker with its queue and files."""

    def __init__(self, folder, opened, pipeline) -> None:
        self.storage, self.stopping = Storage(folder), threading.Event()
        self.queue = Queue(self.storage.queue)
        self._opened, self._pipeline = opened, pipeline

    def add(self, params=THREE_CLIPS):
        job_id = new_id()
        files = self.storage.files(job_id)
        files.folder.mkdir()
        shutil.copy(IMAGE, files.image)
        shutil.copy(MEDIA / "talk_2s.wav", files.audio)
        content = {"params": params, "plan": {}, "warnings": [], "num_bytes": files.num_bytes()}
        return self.queue.add(job_id, "me", content, Limits())

    def make(self):
        """The next job, made by a worker that has just started; and the job as it is then."""
        worker = Worker(0, self.queue, self.storage, self._opened, threading.Event(), self.stopping)
        job = self.queue.claim(0)
        worker.make(job, self._pipeline)
        return self.queue.get(job.id, "me")


@pytest.fixture
def bench(tmp_path, opened, pipeline):
    made = Bench(tmp_path / "server", opened, pipeline)
    yield made
    made.queue.close()


def during(monkeypatch, bench, number, do):
    """Have something happen when progress is written for the `number`th time."""
    report, count = bench.queue.report, iter(range(1, 10**6))

    def counted(job, progress):
        report(job, progress)
        if next(count) == number:
            do()

    monkeypatch.setattr(bench.queue, "report", counted)


def test_a_job_is_made_with_its_record(bench):
    job = bench.add()
    made = bench.make()
    files = bench.storage.files(job.id)
    assert (made.status, made.error, made.progress) == ("done", None, None)
    assert made.num_bytes == files.num_bytes() > job.num_bytes
    assert read_video_info(files.video).num_frames == 10
    assert json.loads(files.sidecar.read_text())["seed"] == 3


def test_progress_tells_clip_step_and_time(bench, monkeypatch):
    seen = []
    monkeypatch.setattr("wan_s2v.server.reporter._INTERVAL_S", 0.0)
    report = bench.queue.report
    monkeypatch.setattr(bench.queue, "report", lambda job, progress: (seen.append(progress), report(job, progress)))
    bench.add()
    bench.make()
    assert [(p["stage"], p["clip"], p["step"]) for p in seen] == [
        ("preparing", 1, 0),
        *[("denoising", 1, 1), ("decoding", 1, 2), ("denoising", 2, 0)],
        *[("denoising", 2, 1), ("decoding", 2, 2), ("denoising", 3, 0)],
        *[("denoising", 3, 1), ("decoding", 3, 2), ("writing", 3, 0)],
    ]
    assert all((p["num_clips"], p["num_steps"]) == (3, 2) for p in seen)
    assert [p["fraction"] for p in seen] == sorted(p["fraction"] for p in seen)
    assert (seen[0]["fraction"], seen[-1]["fraction"], seen[-1]["seconds_left"]) == (0, 1, 0)


def test_cancelling_ends_a_job_after_its_step_and_leaves_its_inputs_alone(bench, monkeypatch):
    job = bench.add()
    during(monkeypatch, bench, 3, lambda: bench.queue.cancel(job.id, "me"))
    assert bench.make().status == "cancelled"
    assert sorted(path.name for path in bench.storage.files(job.id).folder.iterdir()) == ["audio", "image"]


def test_stopping_leaves_a_job_to_wait_and_it_gives_the_same_video_later(bench, monkeypatch):
    whole, stopped = bench.add(), bench.add()
    bench.make()
    monkeypatch.setattr("wan_s2v.server.reporter._INTERVAL_S", 0.0)  # so that the second clip is under way
    during(monkeypatch, bench, 5, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert bench.make().status == "queued"
    files = bench.storage.files(stopped.id)
    assert read_video_info(files.preview).num_frames > 0
    assert (files.folder / "video.mp4.partial").exists()
    assert bench.make().status == "done"
    clips = json.loads(files.sidecar.read_text())["clips"]
    assert [clip["from_earlier_run"] for clip in clips] == [True, False, False]
    assert not files.preview.exists()
    first, second = (list(read_frames(bench.storage.files(job.id).video)) for job in (whole, stopped))
    assert np.array_equal(first, second)


def test_a_video_that_was_written_before_the_row_said_so_is_not_made_again(bench, monkeypatch):
    job = bench.add()
    monkeypatch.setattr(bench.queue, "settle", lambda *_args, **_more: None)  # the process ends before this
    bench.make()
    monkeypatch.undo()
    video = bench.storage.files(job.id).video
    before = video.stat().st_mtime_ns
    bench.queue.recover()
    assert bench.make().status == "done"
    assert video.stat().st_mtime_ns == before


def test_a_video_without_its_record_is_made_again(bench, monkeypatch):
    """The process was killed between the two; the record comes last."""
    job = bench.add()
    files = bench.storage.files(job.id)
    monkeypatch.setattr(bench.queue, "settle", lambda *_args, **_more: None)
    bench.make()
    monkeypatch.undo()
    files.sidecar.unlink()
    (files.folder / "video.mp4.partial").mkdir()
    bench.queue.recover()
    assert bench.make().status == "done"
    assert {path.name for path in files.folder.iterdir()} == {"image", "audio", "video.mp4", "video.mp4.json"}


def test_a_damaged_video_is_made_again(bench):
    job = bench.add()
    bench.storage.files(job.id).video.write_bytes(b"not whole")
    (bench.storage.files(job.id).folder / ".temporary.mp4").write_bytes(b"of a process that was killed")
    assert bench.make().status == "done"
    assert list(bench.storage.files(job.id).folder.glob(".*")) == []
    assert read_video_info(bench.storage.files(job.id).video).num_frames == 10


def test_a_job_that_fails_says_why_in_one_line_without_paths(bench):
    job = bench.add()
    bench.storage.files(job.id).audio.write_bytes(b"damaged since")
    failed = bench.make()
    assert failed.status == "failed"
    assert failed.error.startswith("audio is damaged or not a sound file")
    assert str(bench.storage.folder) not in failed.error


def test_out_of_memory_fails_the_job_and_not_the_worker(bench, monkeypatch):
    def full(*_args):
        raise MemoryError

    bench.add()
    monkeypatch.setattr(worker_module, "make_video", full)
    assert "Memory ran out" in bench.make().error


def test_a_fault_of_ours_ends_the_worker(bench, monkeypatch):
    """Its state is unknown then; the supervisor starts another."""

    def broken(*_args):
        raise KeyError("surprise")

    bench.add()
    monkeypatch.setattr(worker_module, "make_video", broken)
    with pytest.raises(KeyError):
        bench.make()
