"""Few-step distillation: a student's single step does what several guided steps of its teacher do.

The student keeps the teacher's noise levels but uses few of them: at level k it learns the average velocity with which
the teacher, guided, walks from level k to level k + 1. Afterwards it needs one pass per step and no guidance.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from wan_s2v.models.transformer import Conditioning, WanS2VTransformer
from wan_s2v.schedulers import make_scheduler
from wan_s2v.training.examples import Examples
from wan_s2v.training.loop import Budget, Loop
from wan_s2v.training.transformer import FLOW_SHIFT, Batch, squared_error, train_on_windows

SUBSTEPS = 3  # of the teacher within one step of the student


def step_sigmas(num_steps: int, shift: float = FLOW_SHIFT) -> list[float]:
    """Noise levels of the pipeline's Euler solver, from 1 down to 0."""
    return [float(sigma) for sigma in make_scheduler("euler", num_steps, shift, "cpu").sigmas]


def steps_within(noise_range: tuple[float, float], num_steps: int) -> list[tuple[float, float]]:
    """Steps (from, to) whose first level lies in the range; the upper end belongs to it, the lower end too."""
    sigmas = step_sigmas(num_steps)
    low, high = noise_range
    return [(a, b) for a, b in itertools.pairwise(sigmas) if low <= a <= high]


def distil(
    student: WanS2VTransformer,
    teachers: Callable[[float], WanS2VTransformer],
    examples: Examples,
    budget: Budget,
    *,
    noise_range: tuple[float, float],
    num_steps: int = 8,
    guidance_scale: float = 2.0,
    batch: int = 16,
    learning_rate: float = 3e-4,
    seed: int = 0,
    checkpoint: Path | None = None,
    report: Callable[[str], None] = print,
) -> Loop:
    """Train the student in place on the steps of its range.

    Args:
        teachers: the teacher for a sigma; not changed.
        num_steps: of a whole clip.
        guidance_scale: of the teacher's prompt and sound.
    """
    steps = steps_within(noise_range, num_steps)

    def loss_of(drawn: Batch, generator: torch.Generator, choice: torch.Generator) -> Tensor:
        first, last = steps[int(torch.randint(len(steps), (), generator=choice))]
        latents = drawn.latents.float()
        noise = torch.randn(latents.shape, generator=generator, device=latents.device)
        noisy = (1 - first) * latents + first * noise
        reached = _walk(teachers, drawn, examples.negative, noisy, (first, last), guidance_scale)
        made = student(noisy, _timestep(first, latents), drawn.conditioning(student))
        return squared_error(made, (noisy - reached) / (first - last), drawn.weights)

    return train_on_windows(
        student, examples, loss_of, budget, batch, learning_rate, seed=seed, checkpoint=checkpoint, report=report
    )


@torch.no_grad()
def _walk(
    teachers: Callable[[float], WanS2VTransformer],
    batch: Batch,
    negative: Tensor,
    noisy: Tensor,
    step: tuple[float, float],
    guidance_scale: float,
) -> Tensor:
    """Where the guided teacher gets from `noisy` in several Euler steps."""
    first, last = step
    levels = [first + (last - first) * k / SUBSTEPS for k in range(SUBSTEPS + 1)]
    sides = (batch,) if guidance_scale == 1 else (batch, batch.without_prompt_and_sound(negative))
    conditionings: dict[WanS2VTransformer, list[Conditioning]] = {}  # the same at all levels of a teacher
    for level, following in itertools.pairwise(levels):
        teacher = teachers(level)
        if teacher not in conditionings:
            conditionings[teacher] = [side.conditioning(teacher) for side in sides]
        velocity, *unguided = (teacher(noisy, _timestep(level, noisy), known) for known in conditionings[teacher])
        for other in unguided:
            velocity = other + guidance_scale * (velocity - other)
        noisy = noisy + (following - level) * velocity
    return noisy


def _timestep(sigma: float, like: Tensor) -> Tensor:
    """(1,) as the solver tells it: whole numbers."""
    return torch.tensor([float(int(1000 * sigma))], device=like.device)
