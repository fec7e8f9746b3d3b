"""What a user sees on stderr while a video is made: a live line in a terminal, a few plain lines in a log, or nothing.

Decides nothing about the run; the pipeline's callbacks come in here.
"""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class Reporter(Protocol):
    """Receives the progress of loading and of one video after another."""

    def __enter__(self) -> Reporter: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
    def loading(self, component: str, done: int, total: int) -> None:
        """Bytes of a component that are loaded."""

    def start(self, num_clips: int, num_inference_steps: int, decode_share: float) -> None:
        """A video begins; `decode_share` of its time, about, is not spent in steps."""

    def step(self, *state: Any) -> dict[str, Any]:
        """A step is done; has the form of `callback_on_step_end`."""

    def clip_written(self) -> None:
        """The frames of a clip are with the encoder."""

    def note(self, text: str) -> None:
        """A line about something that happened."""


def make_reporter(console: Console, *, quiet: bool) -> Reporter:
    """The reporter that fits the place where stderr goes."""
    if quiet:
        return _Silent()
    return _Live(console) if console.is_terminal else _Lines(console)


def duration_text(seconds: float) -> str:
    """Seconds for people: 45 s, 12 min, 3 h 20 min."""
    if seconds < 90:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{max(seconds, 0.1):.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


def size_text(num_bytes: float) -> str:
    """Bytes for people: 12.3 GiB, 45 MiB."""
    return f"{num_bytes / 2**30:.1f} GiB" if num_bytes >= 2**30 else f"{num_bytes / 2**20:.0f} MiB"


class _Silent:
    def __enter__(self) -> _Silent:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def loading(self, component: str, done: int, total: int) -> None:
        pass

    def start(self, num_clips: int, num_inference_steps: int, decode_share: float) -> None:
        pass

    def step(self, *state: Any) -> dict[str, Any]:
        return {}

    def clip_written(self) -> None:
        pass

    def note(self, text: str) -> None:
        pass


class _Lines(_Silent):
    """One line per component and per clip."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def loading(self, component: str, done: int, total: int) -> None:
        if done == total:
            self._console.print(f"loaded {component} ({size_text(total)})")

    def start(self, num_clips: int, num_inference_steps: int, decode_share: float) -> None:
        self._clips, self._done, self._started = num_clips, 0, time.perf_counter()

    def note(self, text: str) -> None:
        self._console.print(text)

    def clip_written(self) -> None:
        self._done += 1
        spent = time.perf_counter() - self._started
        left = spent / self._done * (self._clips - self._done)  # clips differ by four frames at most
        more = f", about {duration_text(left)} left" if left else ""
        self._console.print(f"clip {self._done} of {self._clips} done after {duration_text(spent)}{more}")


class _Live(_Silent):
    """A bar for each component that loads, then one over the steps and decodes of all clips, in shares of time."""

    def __init__(self, console: Console) -> None:
        columns = (TextColumn("{task.description:<28}"), BarColumn(30), TextColumn("{task.fields[count]}"))
        times = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
        self._progress = Progress(*columns, *times, console=console, transient=True)
        self._task: TaskID | None = None
        self._component = ""

    def __enter__(self) -> _Live:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def loading(self, component: str, done: int, total: int) -> None:
        count = f"{size_text(done)} of {size_text(total)}"
        if self._task is None or component != self._component:
            self._component = component
            self._replace(f"loading {component}", total, count)
        assert self._task is not None
        self._progress.update(self._task, completed=done, count=count)

    def start(self, num_clips: int, num_inference_steps: int, decode_share: float) -> None:
        self._clips, self._steps, self._clip, self._step = num_clips, num_inference_steps, 0, 0
        self._per_step, self._per_decode = (1 - decode_share) / num_inference_steps, decode_share
        self._replace("encoding inputs", num_clips, "")

    def step(self, *state: Any) -> dict[str, Any]:
        self._step += 1
        what = "decoding" if self._step == self._steps else "denoising"
        self._show(f"clip {self._clip + 1} of {self._clips}, {what}", self._per_step)
        return {}

    def clip_written(self) -> None:
        self._clip, self._step = self._clip + 1, 0
        following = f"clip {self._clip + 1} of {self._clips}, denoising"
        self._show("writing the file" if self._clip == self._clips else following, self._per_decode)

    def note(self, text: str) -> None:
        self._progress.console.print(text)

    def _show(self, description: str, advance: float) -> None:
        assert self._task is not None
        count = f"step {self._step} of {self._steps}" if self._step else ""
        self._progress.update(self._task, advance=advance, description=description, count=count)

    def _replace(self, description: str, total: int, count: str) -> None:
        if self._task is not None:
            self._progress.remove_task(self._task)
        self._task = self._progress.add_task(description, total=total, count=count)
