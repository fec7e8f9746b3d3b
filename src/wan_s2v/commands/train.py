"""`wan-s2v train`: one stage of the embedded model's training, on one GPU or, under torchrun, on several."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from wan_s2v.errors import UsageError
from wan_s2v.training.loop import Budget, is_main
from wan_s2v.training.stages import STAGES, Run, run_stage, start_processes

MODELS = ("tiny",)


def train(
    model: str,
    stage: str,
    folder: Path,
    *,
    minutes: float,
    max_steps: int | None,
    clips: int,
    hours: float,
    workers: int,
    seed: int,
    learning_rate: float | None,
    device: str,
) -> dict[str, Any]:
    """Run a stage and return its record.

    Raises: UsageError for a model, a stage or a number that is not accepted.
    """
    if model not in MODELS:
        raise UsageError(f"model={model!r} cannot be trained here. Accepted: {', '.join(MODELS)}.")
    if stage not in STAGES:
        raise UsageError(f"stage={stage!r} is not known. Stages in their order: {', '.join(STAGES)}.")
    for name, value in (("minutes", minutes), ("clips", clips), ("hours", hours), ("workers", workers)):
        if value <= 0:
            raise UsageError(f"{name}={value} is not accepted. Give a number above 0.")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    place = start_processes(device)
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    begin = time.monotonic()

    def report(line: str) -> None:
        if is_main():
            print(f"{time.monotonic() - begin:6.0f} s  {line}", file=sys.stderr, flush=True)

    budget = Budget(60 * minutes, max_steps)
    record = run_stage(stage, Run(folder, place, budget, seed, clips, hours, workers, learning_rate, report))
    if dist.is_initialized():
        dist.destroy_process_group()
    return record
