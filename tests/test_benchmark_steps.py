"""The benchmark of extrapolated steps."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from models import random_pipeline

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

import steps


def test_the_distance_is_relative_and_averaged():
    exact = [torch.full((2, 3), 2.0), torch.ones(4)]
    assert steps.distance(exact, exact) == 0
    assert steps.distance([torch.full((2, 3), 3.0), torch.ones(4)], exact) == pytest.approx(0.25)


def test_every_way_is_measured_against_all_steps(monkeypatch):
    pipeline = random_pipeline()
    pipeline.set_progress_bar_config(disable=True)
    small = {"height": 64, "width": 64, "num_frames": 4, "fps": 16}
    original = pipeline.plan
    monkeypatch.setattr(pipeline, "plan", lambda *inputs, **options: original(*inputs, **small, **options))
    monkeypatch.setattr(steps, "THRESHOLDS", (0.0, 10.0))
    monkeypatch.setattr(steps, "FEWER", (0.5,))
    exact, same, least, fewer = steps.measure(pipeline, 1, 8, 1.0)
    assert (exact.computed, same.computed, least.computed, fewer.computed) == (8, 8, 5, 4)
    assert exact.error == same.error == 0
    assert least.error > 0
    assert fewer.error > 0
