"""Runs of the embedded model that end at random moments and go on until they are done.

Counts clips that were finished and had to be made again, and videos that differ from one that nothing interrupted.

    python benchmarks/crash.py                          # 200 runs each: SIGKILL, SIGTERM, full disk
    python benchmarks/crash.py --runs 20 --modes kill
    python benchmarks/crash.py --model FOLDER           # another model; small ones are quicker

Every attempt is a process of its own, forked from one that has loaded the model. SIGKILL comes at a random moment, for
every third attempt in the middle of a random write; a full disk is one of as many bytes as a random share of a run's.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import random
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from wan_s2v import partial_run
from wan_s2v.commands.make import make_video
from wan_s2v.commands.progress import make_reporter
from wan_s2v.commands.request import ModelChoice, OpenedModel, Request, load_pipeline, open_model, preview
from wan_s2v.errors import OutputError, RunStoppedError
from wan_s2v.pipeline import WanS2VPipeline
from wan_s2v.plan import GenerationOptions
from wan_s2v.video import read_frames

DEMO = Path(__file__).parent.parent / "src" / "wan_s2v" / "assets" / "demo"
MODES = ("kill", "term", "disk")
DONE, STOPPED, FULL = 0, 3, 4
MOST_ATTEMPTS = 60


@dataclass
class Tally:
    """What became of the runs of one mode."""

    runs: int = 0
    attempts: int = 0
    ended: Counter[str] = field(default_factory=Counter)
    clips_lost: int = 0
    different: int = 0
    unfinished: int = 0
    left_behind: int = 0


class Crashes:
    """Makes one small video over and over.

    Args:
        folder: for the videos.
    """

    def __init__(self, model: OpenedModel, pipeline: WanS2VPipeline, folder: Path, size: int, steps: int) -> None:
        self._model, self._pipeline = model, pipeline
        options = GenerationOptions(
            height=size, width=size, num_inference_steps=steps, frames_per_clip=8, num_frames=36, seed=1
        )
        self._request = Request(DEMO / "portrait_1.png", DEMO / "voice_recorded.wav", folder / "whole.mp4", options)
        self._folder = folder
        began = time.perf_counter()
        assert self._wait(self._start(self._request.output, lambda: None)) == DONE
        self.seconds = time.perf_counter() - began
        self._whole = _frames(self._request.output)
        self.num_clips = len(json.loads(Path(f"{self._request.output}.json").read_text())["clips"])

    def run(self, mode: str, tally: Tally, random_: random.Random) -> None:
        """One video, through as many attempts as it takes."""
        output = self._folder / f"{mode}_{tally.runs}.mp4"
        kept = partial_run.PartialRun.beside(output)
        tally.runs += 1
        for _attempt in range(MOST_ATTEMPTS):
            before = set(kept.finished_clips())
            ended = self._attempt(mode, output, random_)
            tally.attempts += 1
            tally.ended[ended] += 1
            if ended == "done":
                break
            tally.clips_lost += len(before - set(kept.finished_clips()))
        else:
            tally.unfinished += 1
            return
        clips = json.loads(Path(f"{output}.json").read_text())["clips"]
        tally.clips_lost += sum(not clips[index]["from_earlier_run"] for index in before)
        tally.different += not np.array_equal(_frames(output), self._whole)
        names = {output.name, f"{output.name}.json"}
        tally.left_behind += len([path for path in self._folder.glob(f"*{output.name}*") if path.name not in names])
        for path in self._folder.glob(f"*{output.name}*"):
            path.unlink() if path.is_file() else shutil.rmtree(path)

    def _attempt(self, mode: str, output: Path, random_: random.Random) -> str:
        after, in_write = random_.uniform(0, 1.2 * self.seconds), random_.random() < 1 / 3
        write = random_.randrange(2 * self.num_clips)
        if mode == "disk":
            process = self._start(output, lambda: _fail_write(write, full=True))
        elif mode == "kill" and in_write:
            process = self._start(output, lambda: _fail_write(write, full=False))
        else:
            process = self._start(output, lambda: None)
            time.sleep(after)
            os.kill(process, signal.SIGKILL if mode == "kill" else signal.SIGTERM)
        return {DONE: "done", STOPPED: "stopped", FULL: "disk full"}.get(self._wait(process), "killed")

    def _start(self, output: Path, prepare: Callable[[], None]) -> int:
        process = os.fork()
        if process:
            return process
        code = 1
        try:
            prepare()
            request = replace(self._request, output=output, overwrite=True)
            make_video(self._pipeline, preview(request, self._model), make_reporter(None, quiet=True))
            code = DONE
        except RunStoppedError:
            code = STOPPED
        except OutputError:
            code = FULL
        finally:
            os._exit(code)

    def _wait(self, process: int) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def _fail_write(number: int, *, full: bool) -> None:
    """Have this process's n-th write stop half-way: by SIGKILL, or because the disk is full."""
    usual, count = partial_run.write_atomically, iter(range(10**6))

    def write(path: Path, temporary: Path, content: bytes) -> None:
        if next(count) != number:
            usual(path, temporary, content)
            return
        temporary.write_bytes(content[: len(content) // 2])
        if not full:
            os.kill(os.getpid(), signal.SIGKILL)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    partial_run.write_atomically = write
    import wan_s2v.sidecar

    wan_s2v.sidecar.write_atomically = write


def _frames(path: Path) -> np.ndarray:
    return np.stack(list(read_frames(path)))


def measure(model: str, runs: int, modes: tuple[str, ...], size: int, steps: int, seed: int) -> dict[str, Tally]:
    """A tally for each mode."""
    torch.set_num_threads(1)  # forked processes cannot use the threads of the first one
    choice = ModelChoice(model, device="cpu")
    opened = open_model(choice, GenerationOptions())
    pipeline = load_pipeline(opened, make_reporter(None, quiet=True))
    random_ = random.Random(seed)
    tallies = {mode: Tally() for mode in modes}
    with tempfile.TemporaryDirectory() as folder:
        crashes = Crashes(opened, pipeline, Path(folder), size, steps)
        print(f"one video of {crashes.num_clips} clips takes {crashes.seconds:.1f} s uninterrupted", flush=True)
        for mode, tally in tallies.items():
            for _ in range(runs):
                crashes.run(mode, tally, random_)
            print(report(mode, tally), flush=True)
    return tallies


def report(mode: str, tally: Tally) -> str:
    """One line for people."""
    ended = ", ".join(f"{count} {how}" for how, count in sorted(tally.ended.items()))
    return (
        f"{mode}: {tally.runs} runs in {tally.attempts} attempts ({ended}); clips lost {tally.clips_lost}, different "
        f"{tally.different}, unfinished {tally.unfinished}, files left behind {tally.left_behind}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    words = parser.parse_args()
    measure(words.model, words.runs, tuple(words.modes), words.size, words.steps, words.seed)


if __name__ == "__main__":
    main()
