"""The loop that all stages of the training share: budget, learning rate, averages, several GPUs, checkpoints.

loop = Loop(model, muon_lr=1e-3, adamw_lr=3e-4, budget=Budget(seconds=600))
for progress in loop:
    loop.step(loss_of(model, ...))
loop.finish()
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from wan_s2v.errors import NumericsError
from wan_s2v.training.muon import Average, MuonWithAdamW

WARMUP_STEPS = 50
_CONSTANT_SHARE = 0.4  # of the training at the full learning rate; then it falls to zero
_REPORT_EVERY, _SYNC_EVERY = 100, 10
_CHECKPOINT_EVERY_S = 120.0


@dataclass(frozen=True)
class Budget:
    """When a training ends: after so many seconds, or steps, whichever comes first."""

    seconds: float
    max_steps: int | None = None


class Loop:
    """Steps of one training.

    Args:
        model: trained in place, in its own dtype; on several processes (torch.distributed) gradients are averaged.
        muon_lr, adamw_lr: peak learning rates.
        budget: the clock starts with the first step.
        checkpoint: safetensors file that holds the state every two minutes, from which an interrupted training goes on.
        generators: random generators whose state belongs to the training.
        average: decay of the moving average that `finish` leaves in the model.
        clip: largest norm of the gradient, if any.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        muon_lr: float,
        adamw_lr: float,
        budget: Budget,
        checkpoint: Path | None = None,
        generators: tuple[torch.Generator, ...] = (),
        report: Callable[[str], None] = print,
        average: float = 0.998,
        clip: float | None = None,
    ) -> None:
        self.steps, self.losses = 0, list[float]()
        self._model, self._budget, self._checkpoint, self._report = model, budget, checkpoint, report
        self._generators, self._clip = generators, clip
        self._optimizer = MuonWithAdamW(model, muon_lr, adamw_lr)
        self._average = Average(self._optimizer.masters, average)
        self._recent: list[Tensor] = []
        self._seconds_before = 0.0
        self._by_clock: float | None = None
        self._begin = self._saved = time.monotonic()
        if checkpoint is not None and checkpoint.is_file():
            self._resume(checkpoint)

    @property
    def seconds(self) -> float:
        """Training time so far, over all runs."""
        return self._seconds_before + time.monotonic() - self._begin

    def __iter__(self) -> Iterator[float]:
        """Share of the budget that is used, 0…1, before every step."""
        self._begin = time.monotonic()
        while (progress := self._progress()) < 1:
            self._optimizer.set_scale(learning_rate_scale(progress, self.steps))
            yield progress
            self._tell(progress)

    def step(self, loss: Tensor) -> None:
        """One update from a scalar loss."""
        loss.backward()
        average_gradients(self._model)
        if self._clip is not None:
            nn.utils.clip_grad_norm_(self._model.parameters(), self._clip)
        self._optimizer.step()
        self._average.update(self._optimizer.masters)
        self._recent.append(loss.detach())
        self.steps += 1

    def finish(self) -> None:
        """Leave the averaged weights in the model and remove the checkpoint."""
        if self._recent:
            self._note()
        self._optimizer.write(self._average.values)
        if self._checkpoint is not None and is_main():
            self._checkpoint.unlink(missing_ok=True)

    def _progress(self) -> float:
        """By the clock of the first process, looked at every few steps so that the GPU need not be waited for."""
        by_steps = 0.0 if self._budget.max_steps is None else self.steps / self._budget.max_steps
        if self._by_clock is None or not dist.is_initialized() or self.steps % _SYNC_EVERY == 0:
            self._by_clock = _of_first(self.seconds / self._budget.seconds)
        return min(1.0, max(self._by_clock, by_steps))

    def _tell(self, progress: float) -> None:
        if self.steps % _REPORT_EVERY == 0 and self._recent:
            self._note()
            rate = self.steps / max(self.seconds, 1e-9)
            self._report(f"{progress:.0%}, step {self.steps}, {rate:.1f}/s: loss {self.losses[-1]:.4f}")
        if self._checkpoint is not None and time.monotonic() - self._saved > _CHECKPOINT_EVERY_S:
            if is_main():
                self._save(self._checkpoint)
            self._saved = time.monotonic()

    def _note(self) -> None:
        loss = float(torch.stack(self._recent).mean())
        if loss != loss:
            raise NumericsError(f"The loss is not a number after step {self.steps}. Lower the learning rate.")
        self.losses.append(loss)
        self._recent = []

    def _save(self, path: Path) -> None:
        tensors = {f"optimizer.{name}": tensor for name, tensor in self._optimizer.state().items()}
        tensors |= {f"average.{index}": value for index, value in enumerate(self._average.values)}
        tensors |= {f"generator.{index}": item.get_state() for index, item in enumerate(self._generators)}
        progress = {"steps": self.steps, "seconds": self.seconds, "losses": self.losses}
        progress["average_updates"] = self._average.updates
        part = path.with_suffix(".part")
        flat = {name: tensor.cpu().contiguous().clone() for name, tensor in tensors.items()}
        save_file(flat, part, metadata={"progress": json.dumps(progress)})
        os.replace(part, path)

    def _resume(self, path: Path) -> None:
        device = next(self._model.parameters()).device
        with safe_open(path, "pt") as file:
            progress = json.loads((file.metadata() or {})["progress"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        self.steps, self.losses = progress["steps"], progress["losses"]
        self._seconds_before, self._average.updates = progress["seconds"], progress["average_updates"]
        prefix = "optimizer."
        state = {name.removeprefix(prefix): t.to(device) for name, t in tensors.items() if name.startswith(prefix)}
        self._optimizer.load_state(state)
        for index, value in enumerate(self._average.values):
            value.copy_(tensors[f"average.{index}"])
        if is_main():  # the others begin their own random numbers anew; the same ones everywhere would be worse
            for index, generator in enumerate(self._generators):
                generator.set_state(tensors[f"generator.{index}"])
        self._report(f"resumed at step {self.steps}, after {self._seconds_before:.0f} s")


def learning_rate_scale(progress: float, steps: int) -> float:
    """Linear warm-up, then constant, then linear to zero."""
    return min(1.0, (steps + 1) / WARMUP_STEPS) * min(1.0, (1 - progress) / (1 - _CONSTANT_SHARE))


def is_main() -> bool:
    """Whether this process is the one that writes files."""
    return not dist.is_initialized() or dist.get_rank() == 0


@torch.no_grad()
def average_gradients(model: nn.Module) -> None:
    """Replace every gradient by its mean over all processes."""
    if not dist.is_initialized():
        return
    trained = [p for p in model.parameters() if p.requires_grad]
    for parameter in trained:  # the same list on every process, whatever a batch has touched
        parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    flat = torch.cat([p.grad.flatten().float() for p in trained if p.grad is not None])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for parameter, part in zip(trained, flat.split([p.numel() for p in trained]), strict=True):
        assert parameter.grad is not None
        parameter.grad.copy_(part.view_as(parameter))


def _of_first(value: float) -> float:
    """The first process's value, on all processes."""
    if not dist.is_initialized():
        return value
    shared = torch.tensor([value], device="cuda" if dist.get_backend() == "nccl" else "cpu")
    dist.broadcast(shared, 0)
    return float(shared)
