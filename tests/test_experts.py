"""The switch between two experts: at the official boundary, by noise level or by signal-to-noise ratio."""

from __future__ import annotations

import math

import pytest
from conftest import load_golden
from hypothesis import given
from hypothesis import strategies as st

from wan_s2v.errors import UsageError
from wan_s2v.experts import Stage, boundary_at_snr, snr_at, stage_at


def test_the_boundary_itself_belongs_to_the_high_noise_expert():
    assert stage_at(900, 0.9, 4.0, 3.0) == Stage("transformer", 4.0)
    assert stage_at(899, 0.9, 4.0, 3.0) == Stage("transformer_2", 3.0)
    assert stage_at(875, 0.875, 4.0, 3.0) == Stage("transformer", 4.0)
    assert stage_at(874, 0.875, 4.0, 3.0) == Stage("transformer_2", 3.0)


def test_one_transformer_does_every_step_and_one_guidance_serves_both_experts():
    assert {stage_at(t, None, 5.0) for t in (999, 500, 1)} == {Stage("transformer", 5.0)}
    assert stage_at(1, 0.9, 3.5) == Stage("transformer_2", 3.5)


@pytest.mark.parametrize(
    ("shift", "boundary", "high_noise_steps"),
    [(12.0, 0.875, 26), (5.0, 0.9, 15)],  # T2V-A14B and I2V-A14B, 40 steps
)
def test_steps_of_the_official_schedules_are_shared_out(shift, boundary, high_noise_steps):
    timesteps = load_golden("scheduler_tables")[0][f"unipc.steps40.shift{shift:g}.timesteps"].tolist()
    experts = [stage_at(t, boundary, 4.0, 3.0).expert for t in timesteps]
    assert experts == ["transformer"] * high_noise_steps + ["transformer_2"] * (40 - high_noise_steps)


def test_boundaries_as_signal_to_noise_ratios():
    assert snr_at(0.875) == pytest.approx(1 / 49)
    assert snr_at(0.9) == pytest.approx(1 / 81)
    assert boundary_at_snr(1) == 0.5


@given(st.floats(1e-3, 1 - 1e-3))
def test_ratio_and_level_are_inverse(level):
    assert boundary_at_snr(snr_at(level)) == pytest.approx(level)


@given(st.integers(0, 1000), st.floats(1e-3, 1 - 1e-3))
def test_more_signal_than_at_the_boundary_is_work_for_the_low_noise_expert(timestep, boundary):
    snr = snr_at(timestep / 1000) if timestep else math.inf
    if not math.isclose(timestep / 1000, boundary, rel_tol=1e-9):
        expert = stage_at(timestep, boundary_at_snr(snr_at(boundary)), 1.0).expert
        assert (expert == "transformer_2") == (snr > snr_at(boundary))


@pytest.mark.parametrize("snr", [0, -1.0, math.inf, math.nan, "1", True, None])
def test_a_ratio_that_is_none_is_refused(snr):
    with pytest.raises(UsageError, match="boundary_snr="):
        boundary_at_snr(snr)
