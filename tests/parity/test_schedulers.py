"""Noise levels and trajectories of every solver against the official ones."""

from __future__ import annotations

import pytest
import torch
from conftest import assert_close, load_golden

from wan_s2v.schedulers import make_scheduler

TABLES, _ = load_golden("scheduler_tables")
TRAJECTORIES, _ = load_golden("scheduler_traj")


@pytest.mark.parametrize("name", sorted(key.removesuffix(".sigmas") for key in TABLES if key.endswith(".sigmas")))
def test_noise_levels_equal_the_official_table(name):
    solver, steps, shift = name.split(".", 2)
    scheduler = make_scheduler(solver, int(steps.removeprefix("steps")), float(shift.removeprefix("shift")), "cpu")
    assert torch.equal(scheduler.timesteps.long(), TABLES[f"{name}.timesteps"].long())
    assert torch.equal(scheduler.sigmas, TABLES[f"{name}.sigmas"])


def _velocity(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    a, c = TRAJECTORIES["toy.A"], TRAJECTORIES["toy.c"]
    t = t.float()
    return torch.einsum("ij,bjthw->bithw", a, torch.tanh(x)) * (0.3 + t / 1000) + c * (1 - (t / 1000) ** 2)


@pytest.mark.parametrize("name", sorted(key.removesuffix(".fp32") for key in TRAJECTORIES if key.endswith(".fp32")))
def test_trajectory_equals_the_official_one(name):
    solver, steps, shift = name.split(".", 2)
    scheduler = make_scheduler(solver, int(steps.removeprefix("steps")), float(shift.removeprefix("shift")), "cpu")
    x = TRAJECTORIES["toy.x0"]
    for expected, t in zip(TRAJECTORIES[f"{name}.fp32"], scheduler.timesteps, strict=True):
        x = scheduler.step(_velocity(x, t), t, x, return_dict=False)[0]
        assert_close(x, expected, 1e-5, name)


@pytest.mark.parametrize("solver", ["unipc", "dpm++", "euler"])
@pytest.mark.parametrize(("steps", "shift"), [(1, 3.0), (2, 5.0), (100, 12.0), (300, 5.0)])
def test_solver_survives_equal_integer_timesteps_and_few_steps(solver, steps, shift):
    scheduler = make_scheduler(solver, steps, shift, "cpu")
    x = TRAJECTORIES["toy.x0"]
    for t in scheduler.timesteps:
        x = scheduler.step(_velocity(x, t), t, x, return_dict=False)[0]
    assert torch.isfinite(x).all()
    assert len(scheduler.timesteps) == steps


def test_euler_converges_to_the_same_end_as_the_others():
    ends = {}
    for solver in ("unipc", "dpm++", "euler"):
        scheduler = make_scheduler(solver, 1000 if solver == "euler" else 100, 3.0, "cpu")
        x = TRAJECTORIES["toy.x0"]
        for t in scheduler.timesteps:
            x = scheduler.step(_velocity(x, t), t, x, return_dict=False)[0]
        ends[solver] = x
    assert (ends["euler"] - ends["unipc"]).abs().max() < 0.02
    assert (ends["dpm++"] - ends["unipc"]).abs().max() < 0.02
