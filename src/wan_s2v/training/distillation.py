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

from wan_s2v.denoise import make_scheduler
from wan_s2v.models.transformer import WanS2VTransformer
from wan_s2v.training.examples import USUAL_WINDOW, Examples
from wan_s2v.training.loop import Budget, Loop
from wan_s2v.training.transformer import FLOW_SHIFT, WINDOWS, Batch, compile_blocks, draw_batch, squared_error

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
    generator = torch.Generator(student.device).manual_seed(seed)
    choice = torch.Generator().manual_seed(seed)
    steps = steps_within(noise_range, num_steps)
    loop = Loop(
        student,
        muon_lr=learning_rate,
        adamw_lr=learning_rate / 2,
        budget=budget,
        checkpoint=checkpoint,
        generators=(generator, choice),
        report=report,
        clip=1.0,
    )
    compile_blocks(student)
    for _ in loop:
        window = WINDOWS[int(torch.randint(len(WINDOWS), (), generator=choice))]
        clips = max(1, batch * USUAL_WINDOW // window)
        with_history = bool(torch.rand((), generator=choice) < 0.6)
        drawn = draw_batch(examples, clips, window, with_history, generator)
        first, last = steps[int(torch.randint(len(steps), (), generator=choice))]
        latents = drawn.latents.float()
        noise = torch.randn(latents.shape, generator=generator, device=latents.device)
        noisy = (1 - first) * latents + first * noise
        wanted = (noisy - _walk(teachers, drawn, examples.negative, noisy, (first, last), guidance_scale)) / (
            first - last
        )
        made = student(noisy, _timestep(first, latents), drawn.conditioning(student))
        loop.step(squared_error(made, wanted, drawn.weights).mean())
    loop.finish()
    return loop


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
    unguided = batch.without_prompt_and_sound(negative)
    for level, following in itertools.pairwise(levels):
        teacher = teachers(level)
        time = _timestep(level, noisy)
        velocity = teacher(noisy, time, batch.conditioning(teacher))
        if guidance_scale != 1:
            other = teacher(noisy, time, unguided.conditioning(teacher))
            velocity = other + guidance_scale * (velocity - other)
        noisy = noisy + (following - level) * velocity
    return noisy


def _timestep(sigma: float, like: Tensor) -> Tensor:
    """(1,) as the solver tells it: whole numbers."""
    return torch.tensor([float(int(1000 * sigma))], device=like.device)
