"""The processes behind the routes: a probe first, one planner, one worker per device; what ends is started again.

All of them end with the server, however that ends: their standard input closes.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import pickle
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from wan_s2v import errors
from wan_s2v.server.jobs import Queue
from wan_s2v.server.limits import Limits
from wan_s2v.server.problems import Problem

_GRACE_S: Final = 60.0  # for a worker's running step, at the end of the server
_STEADY_S: Final = 60.0  # a process that ran so long starts again at once
_SHORTEST_PAUSE_S, _LONGEST_PAUSE_S = 0.25, 30.0
_LINE_BYTES: Final = 1 << 26  # longest answer of the planner


@dataclass(frozen=True)
class Program:
    """What the processes are started with.

    Args:
        facts: what `probe` found.
        folder: of the server.
        lock: file descriptor that workers inherit.
        workers: how many; 0 for one per device.
    """

    facts: Mapping[str, Any]
    folder: Path
    lock: int
    workers: int
    limits: Limits


class Worker:
    """A worker process that is started again whenever it ends."""

    def __init__(self, slot: int, program: Program, model: bytes, queue: Queue) -> None:
        self.slot, self._program, self._model, self._queue = slot, program, model, queue
        self._process: asyncio.subprocess.Process | None = None
        self._stopping = False
        self.is_ready, self.restarts = False, 0

    async def run(self) -> None:
        """Until `stop`."""
        pause = _SHORTEST_PAUSE_S
        while not self._stopping:
            started = time.monotonic()
            try:
                how = await self._live()
            except OSError as error:  # no memory or no process to be had
                how = errors.reason_of(error)
            self.is_ready = False
            if self._stopping:
                return
            self._queue.worker_died(self.slot, how)
            print(f"worker {self.slot} ended ({how}); it starts again", file=sys.stderr, flush=True)
            self.restarts += 1
            pause = _SHORTEST_PAUSE_S if time.monotonic() - started > _STEADY_S else min(2 * pause, _LONGEST_PAUSE_S)
            await asyncio.sleep(pause)

    async def _live(self) -> str:
        """One life of the process. Returns: how it ended."""
        words = ("wan_s2v.server.worker", "--slot", str(self.slot), "--folder", str(self._program.folder))
        process = await _start(*words, environment=self._environment(), keep=(self._program.lock,))
        assert process.stdin is not None
        assert process.stdout is not None
        self._process = process
        with suppress(ConnectionError):
            process.stdin.write(self._model)
            await process.stdin.drain()
        self.is_ready = await process.stdout.readline() == b"ready\n"
        code = await process.wait()
        return f"signal {-code}" if code < 0 else f"exit code {code}"

    def _environment(self) -> dict[str, str]:
        if self._program.facts["device"] == "cpu":
            return {}
        device, seen = self.slot % self._program.facts["num_devices"], os.environ.get("CUDA_VISIBLE_DEVICES")
        return {"CUDA_VISIBLE_DEVICES": seen.split(",")[device] if seen else str(device)}

    def wake(self) -> None:
        if self.is_ready and self._process is not None and self._process.stdin is not None:
            self._process.stdin.write(b"\n")

    async def stop(self) -> None:
        """Let it leave its job after the running step."""
        self._stopping = True
        process = self._process
        if process is None or process.returncode is not None:
            return
        process.terminate()
        try:
            await asyncio.wait_for(process.wait(), _GRACE_S)
        except asyncio.TimeoutError:
            process.kill()
            await process.wait()


class Planner:
    """The planner process; one task at a time."""

    def __init__(self, settings: bytes, limits: Limits) -> None:
        self._settings, self._patience = settings, limits.check_s + 15
        self._process: asyncio.subprocess.Process | None = None
        self._free = asyncio.Lock()

    async def plan(self, folder: Path, params: Mapping[str, Any]) -> dict[str, Any]:
        """What `wan_s2v.server.planner.Planner.answer` gives. Raises: Problem that it found."""
        task = json.dumps({"folder": str(folder), "params": params}).encode() + b"\n"
        async with self._free:
            answer = await self._ask(task)
        if "error" in answer:
            raise Problem(answer["error"]["type"], answer["error"]["message"])
        return answer

    async def _ask(self, task: bytes) -> dict[str, Any]:
        try:
            process = await self._running()
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(task)
            await process.stdin.drain()
            line = await asyncio.wait_for(process.stdout.readline(), self._patience)
            return json.loads(line)
        except (ConnectionError, ValueError, asyncio.TimeoutError) as error:
            await self.stop()
            raise Problem(
                "unavailable", "The part that reads files has ended; it starts again. Send it again."
            ) from error
        except asyncio.CancelledError:  # its answer must not meet the next question
            await self.stop()
            raise

    async def warm_up(self) -> None:
        """Start the process before the first task."""
        async with self._free:
            await self._running()

    async def _running(self) -> asyncio.subprocess.Process:
        if self._process is None or self._process.returncode is not None:
            self._process = process = await _start("wan_s2v.server.planner", environment={})
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(self._settings)
            await process.stdin.drain()
            if await process.stdout.readline() != b"ready\n":
                raise ConnectionError("the planner did not start")
        return self._process

    async def stop(self) -> None:
        process, self._process = self._process, None
        if process is not None and process.returncode is None:
            process.kill()
            await process.wait()


class Supervisor:
    """All processes of a server."""

    def __init__(self, program: Program, queue: Queue) -> None:
        model, machine = (base64.b64decode(program.facts[name]) for name in ("model", "machine"))
        self.planner = Planner(model + machine + pickle.dumps(program.limits), program.limits)
        count = program.workers or program.facts["num_devices"]
        self.workers = [Worker(slot, program, model, queue) for slot in range(count)]
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """In a running event loop."""
        self._tasks = [asyncio.create_task(worker.run()) for worker in self.workers]
        self._tasks.append(asyncio.create_task(self.planner.warm_up()))

    def wake(self) -> None:
        """There is a new job."""
        for worker in self.workers:
            worker.wake()

    async def stop(self) -> None:
        await asyncio.gather(*(worker.stop() for worker in self.workers))
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.planner.stop()


async def probe(choice: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """What `wan_s2v.server.probe` finds.

    Args:
        choice, options: fields of `ModelChoice`, and of `GenerationOptions` for the whole run.
    Raises: the error that it found with the model or the device.
    """
    settings = json.dumps({"choice": choice, "options": options}, default=str)
    process = await _start("wan_s2v.server.probe", settings, environment={})
    output, _ = await process.communicate()
    if process.returncode:
        raise errors.CheckpointError("The model cannot be opened; the lines above say why. See wan-s2v doctor.")
    found = json.loads(output)
    if "error" in found:
        raise getattr(errors, found["error"])(found["message"])
    return found


async def _start(*words: str, environment: Mapping[str, str], keep: tuple[int, ...] = ()) -> asyncio.subprocess.Process:
    """A Python module as a process that signals to the terminal do not reach."""
    pipe = asyncio.subprocess.PIPE
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        *words,
        stdin=pipe,
        stdout=pipe,
        pass_fds=keep,
        start_new_session=True,
        env=os.environ | dict(environment),
        limit=_LINE_BYTES,
    )
