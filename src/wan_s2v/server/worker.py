"""One process per device: the model is loaded once, then jobs are taken from the queue until there is word to stop.

Started by the supervisor, which writes the opened model into its standard input, then a byte whenever a job may wait.
The end of that input means that the server is gone: the process ends at once and the folder's lock with it.
"""

from __future__ import annotations

import argparse
import os
import pickle
import signal
import sys
import threading
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Final

from rich.console import Console

from wan_s2v.commands.make import make_video
from wan_s2v.commands.progress import make_reporter
from wan_s2v.commands.request import (
    OpenedModel,
    Preview,
    is_out_of_memory,
    load_pipeline,
    out_of_memory_message,
    preview,
)
from wan_s2v.errors import OtherRunError, OutputError, RunStoppedError, WanS2VError
from wan_s2v.pipeline import WanS2VPipeline
from wan_s2v.result import writable_frames
from wan_s2v.server.jobs import Job, Queue
from wan_s2v.server.reporter import Cancelled, QueueReporter
from wan_s2v.server.requests import request_of
from wan_s2v.server.storage import JobFiles, Storage
from wan_s2v.video import verify_video

_LOOK_S: Final = 1.0  # between looks at the queue when nobody says that there is something
_LIKELY_VICTIM: Final = "500"  # for Linux, when memory ends: rather this process than the server


class Worker:
    """Makes the jobs of a queue, one after the other.

    Args:
        slot: its number among the workers of the server.
        wake: set when a job may wait.
        stopping: set when the process is to end; a running job is then left after its step.
    """

    def __init__(
        self,
        slot: int,
        queue: Queue,
        storage: Storage,
        model: OpenedModel,
        wake: threading.Event,
        stopping: threading.Event,
    ) -> None:
        self._slot, self._queue, self._storage, self._model = slot, queue, storage, model
        self._wake, self._stopping = wake, stopping

    def run(self, pipeline: WanS2VPipeline) -> None:
        """Until `stopping`."""
        while not self._stopping.is_set():
            self._wake.clear()
            job = self._queue.claim(self._slot)
            if job is None:
                self._wake.wait(_LOOK_S)
            else:
                self.make(job, pipeline)

    def make(self, job: Job, pipeline: WanS2VPipeline) -> None:
        """Bring a claimed job to its end; what is not about the job itself passes through and ends the process."""
        files = self._storage.files(job.id)
        files.remove_temporaries()
        try:
            wanted = self._plan(job, files)
            if not (is_complete(wanted) and files.sidecar.exists()):
                estimated_s = wanted.estimate.seconds
                with QueueReporter(self._queue, job, estimated_s) as reporter:
                    make_video(pipeline, wanted, reporter)
            files.clear(files.video, files.sidecar)
            self._queue.settle(job, "done", num_bytes=files.num_bytes())
        except RunStoppedError:
            self._queue.settle(job, "queued")
        except Cancelled:
            self._end(job, files, None)
        except WanS2VError as error:
            self._end(job, files, files.public(str(error)))
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            self._end(job, files, out_of_memory_message())

    def _plan(self, job: Job, files: JobFiles) -> Preview:
        """The plan of a job, which goes on from what was kept of it, unless another version kept it."""
        request = request_of(job.params, files)
        try:
            return preview(request, self._model)
        except OtherRunError:
            return preview(replace(request, fresh=True), self._model)

    def _end(self, job: Job, files: JobFiles, error: str | None) -> None:
        files.clear()
        self._queue.settle(job, "cancelled" if error is None else "failed", error=error, num_bytes=files.num_bytes())


def is_complete(wanted: Preview) -> bool:
    """Whether the video was written before, by a process that ended before it could say so."""
    plan, output = wanted.plan, wanted.request.output
    if not output.exists():
        return False
    try:
        verify_video(
            output, writable_frames(plan), plan.clips.fps, plan.framing.height, plan.framing.width, has_audio=True
        )
    except OutputError:
        return False
    return True


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--slot", type=int, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    words = parser.parse_args()
    wake, stopping = threading.Event(), threading.Event()

    def stop(_number: int, _frame: object) -> None:
        stopping.set()
        wake.set()

    signal.signal(signal.SIGTERM, stop)
    with suppress(OSError):  # elsewhere than on Linux
        Path("/proc/self/oom_score_adj").write_text(_LIKELY_VICTIM)
    model = pickle.load(sys.stdin.buffer)  # from the server itself
    threading.Thread(target=_listen, args=(wake,), daemon=True).start()
    storage = Storage(words.folder)
    worker = Worker(words.slot, Queue(storage.queue), storage, model, wake, stopping)
    with make_reporter(Console(stderr=True, highlight=False), quiet=False) as reporter:
        pipeline = load_pipeline(model, reporter)
    print("ready", flush=True)
    worker.run(pipeline)


def _listen(wake: threading.Event) -> None:
    while os.read(sys.stdin.fileno(), 64):
        wake.set()
    os._exit(1)


if __name__ == "__main__":
    main()
