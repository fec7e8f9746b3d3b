"""Progress as JSON lines, for programs: one object a line, `event` says which, `time` is in seconds since 1970.

{"event": "loaded", "component": …, "bytes": …}
{"event": "start", "num_clips": …, "num_inference_steps": …}
{"event": "step", "clip": from 1, "step": from 1}
{"event": "clip", "clip": from 1}
{"event": "note", "text": …}
{"event": "done", "path": …}
{"event": "failed", "error": …}
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from wan_s2v.commands.progress import Reporter
from wan_s2v.errors import OutputError, reason_of


class EventLog:
    """A reporter that also writes what another one is told.

    Args:
        path: a file, which is appended to, or a pipe.
    Raises: OutputError if it cannot be opened.
    """

    def __init__(self, reporter: Reporter, path: Path) -> None:
        self._reporter = reporter
        try:
            self._file = path.open("a", encoding="utf-8", buffering=1)
        except OSError as error:
            raise OutputError(
                f"Events cannot be written to {path} ({reason_of(error)}). Choose another file."
            ) from error
        self._clip = self._step = 0

    def __enter__(self) -> EventLog:
        self._reporter.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._reporter.__exit__(kind, error, trace)
        if error is not None:
            self._write("failed", error=str(error) or type(error).__name__)
        self._file.close()

    def loading(self, component: str, done: int, total: int) -> None:
        self._reporter.loading(component, done, total)
        if done == total:
            self._write("loaded", component=component, bytes=total)

    def start(self, num_clips: int, num_inference_steps: int, decode_share: float) -> None:
        self._reporter.start(num_clips, num_inference_steps, decode_share)
        self._clip = self._step = 0
        self._write("start", num_clips=num_clips, num_inference_steps=num_inference_steps)

    def step(self, *state: Any) -> dict[str, Any]:
        self._step = int(state[1]) + 1
        self._write("step", clip=self._clip + 1, step=self._step)
        return self._reporter.step(*state)

    def clip_written(self) -> None:
        self._clip += 1
        self._write("clip", clip=self._clip)
        self._reporter.clip_written()

    def note(self, text: str) -> None:
        self._write("note", text=text)
        self._reporter.note(text)

    def done(self, path: Path) -> None:
        """The video is written."""
        self._write("done", path=str(path))

    def _write(self, event: str, **values: Any) -> None:
        self._file.write(json.dumps({"event": event, "time": round(time.time(), 3), **values}) + "\n")
