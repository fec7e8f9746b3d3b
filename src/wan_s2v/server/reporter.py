"""The progress of a job, written into its row; the way by which cancelling reaches a running job."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any, Final

from wan_s2v.server.jobs import Job, Queue

_INTERVAL_S: Final = 0.25  # between two writes


class Cancelled(Exception):
    """Its owner does not want the video any more."""


class QueueReporter:
    """A `Reporter` of one job.

    Args:
        estimated_s: what the plan says that the video takes.
    """

    def __init__(self, queue: Queue, job: Job, estimated_s: float) -> None:
        self._queue, self._job, self._estimated_s = queue, job, estimated_s
        self._started, self._written = time.monotonic(), 0.0

    def __enter__(self) -> QueueReporter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def loading(self, component: str, done: int, total: int) -> None:
        self._check()

    def start(self, num_clips: int, num_inference_steps: int, decode_share: float) -> None:
        self._num_clips, self._num_steps, self._decode_share = num_clips, num_inference_steps, decode_share
        self._clip = self._step = 0
        self._check()
        self._write("preparing", at_once=True)

    def step(self, *state: Any) -> dict[str, Any]:
        self._step += 1
        self._check()
        self._write("decoding" if self._step >= self._num_steps else "denoising")
        return {}

    def clip_written(self) -> None:
        self._clip, self._step = self._clip + 1, 0
        self._check()
        self._write("writing" if self._clip >= self._num_clips else "denoising", at_once=True)

    def note(self, text: str) -> None:
        pass

    def _check(self) -> None:
        if self._queue.is_cancelled(self._job):
            raise Cancelled

    def _write(self, stage: str, *, at_once: bool = False) -> None:
        now = time.monotonic()
        if not at_once and now - self._written < _INTERVAL_S:
            return
        self._written = now
        steps = (1 - self._decode_share) * self._step / self._num_steps
        fraction = min((self._clip + steps) / self._num_clips, 1.0)
        spent = now - self._started
        progress = {
            "stage": stage,
            "clip": min(self._clip + 1, self._num_clips),
            "num_clips": self._num_clips,
            "step": self._step,
            "num_steps": self._num_steps,
            "fraction": round(fraction, 4),
            "seconds_left": round(self._total_s(spent, fraction) * (1 - fraction), 1),
        }
        self._queue.report(self._job, progress)

    def _total_s(self, spent: float, fraction: float) -> float:
        """What the whole video will have taken: from the clips that are done, or else mostly from the plan."""
        if self._clip:
            return spent / fraction
        return spent + (1 - fraction) * max(self._estimated_s, spent)
