"""Opens what clients send, where nothing that it holds can do harm, and plans the video.

One warm process answers one line with one line. Each task runs in a child of its own with bounds on memory and time:
a decoder that crashes, hangs or wants too much takes only that child with it. No device is touched here.
"""

from __future__ import annotations

import json
import os
import pickle
import resource
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from wan_s2v.commands.request import Machine, OpenedModel, preview
from wan_s2v.errors import AudioTooShortError, MediaError, WanS2VError
from wan_s2v.server.checks import check_inputs, check_lengths, check_plan
from wan_s2v.server.limits import Limits
from wan_s2v.server.problems import Problem
from wan_s2v.server.requests import public_plan, request_of
from wan_s2v.server.speech import write_speech
from wan_s2v.server.storage import JobFiles

_PIECE: Final = 1 << 16


class Planner:
    """Answers tasks.

    Args:
        model, machine: as found by the probe.
    """

    def __init__(self, model: OpenedModel, machine: Machine, limits: Limits) -> None:
        self._model, self._machine, self._limits = model, machine, limits

    def answer(self, task: dict[str, Any]) -> dict[str, Any]:
        """The plan of a task, or the problem with it, from a child with bounds.

        Args:
            task: "folder" with the inputs under their fixed names, and "params".
        Returns: "params" with what is settled now, so that a job that is taken up again is the same one, "plan" and
            "warnings"; or "error".
        """
        found = run_bounded(lambda: self._planned(task), self._limits.check_s, self._limits.check_bytes)
        if found is not None:
            return found
        message = f"The files cannot be read within {self._limits.check_s:g} s and the memory that is allowed for it."
        return Problem("unsupported_media", f"{message} Save them again as png and wav, smaller or shorter.").content

    def _planned(self, task: dict[str, Any]) -> dict[str, Any]:
        files = JobFiles(Path(task["folder"]))
        params = task["params"]
        if not {"area", "height", "width"} & params.keys() and self._model.spec.max_area > self._limits.frame_pixels:
            params["area"] = self._limits.frame_pixels
        try:
            if "text" in params:
                write_speech(params["text"], params.get("voice"), files.audio)
            request = request_of(params, files)
            check_lengths(request.options, self._limits)
            check_inputs(files, request.options, self._limits)
            wanted = preview(request, self._model, self._machine)
            check_plan(wanted.plan, self._limits)
        except Problem as problem:
            return problem.content
        except WanS2VError as error:
            return Problem(_kind(error), files.public(str(error))).content
        plan = json.loads(files.public(json.dumps(public_plan(wanted))))
        return {"params": params | {"seed": wanted.plan.seed}, "plan": plan, "warnings": plan.pop("warnings")}


def _kind(error: WanS2VError) -> str:
    is_media = isinstance(error, MediaError) and not isinstance(error, AudioTooShortError)
    return "unsupported_media" if is_media else "invalid"


def run_bounded(work: Callable[[], dict[str, Any]], seconds: float, num_bytes: int) -> dict[str, Any] | None:
    """What `work` gives in a child process; None if it crashed or went beyond its bounds.

    Args:
        num_bytes: of memory beside what this process has now.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        _work_in_child(work, writing, seconds, num_bytes)
    os.close(writing)
    try:
        answer = _read(reading, time.monotonic() + seconds)
    finally:
        os.close(reading)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    return json.loads(answer) if answer else None


def _work_in_child(work: Callable[[], dict[str, Any]], writing: int, seconds: float, num_bytes: int) -> None:
    try:
        if sys.platform == "linux":
            most = _virtual_bytes() + num_bytes
            resource.setrlimit(resource.RLIMIT_AS, (most, most))
        resource.setrlimit(resource.RLIMIT_CPU, (int(seconds) + 1, int(seconds) + 1))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        answer = json.dumps(work()).encode()
        with os.fdopen(writing, "wb") as pipe:
            pipe.write(answer)
    except MemoryError:  # the answer is missing, which says it
        pass
    except Exception:  # nobody above: a fault of ours is shown, and the answer is missing
        traceback.print_exc()
    finally:
        os._exit(0)


def _read(pipe: int, deadline: float) -> bytes:
    """All that comes until the end; nothing if that is too late."""
    pieces: list[bytes] = []
    while select.select([pipe], [], [], max(deadline - time.monotonic(), 0))[0]:
        piece = os.read(pipe, _PIECE)
        if not piece:
            return b"".join(pieces)
        pieces.append(piece)
    return b""


def _virtual_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def main() -> None:
    """Settings from standard input, then a task a line; answers go to standard output."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever a library prints is no answer
    model, machine, limits = (pickle.load(sys.stdin.buffer) for _ in range(3))  # from the server itself
    planner = Planner(model, machine, limits)
    answers.write("ready\n")
    answers.flush()
    for line in sys.stdin.buffer:
        answers.write(json.dumps(planner.answer(json.loads(line))) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
