"""Runs of the command line inside the test process, and the small checkpoint they use."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from checkpoints import write_official_s2v
from conftest import MEDIA

from wan_s2v.cli import main
from wan_s2v.commands import request
from wan_s2v.runtime.estimate import Rates

IMAGE = MEDIA / "beach_small.jpg"
VOICE = MEDIA / "talk_2s.wav"
POSE = MEDIA / "pose_small.mp4"
FAST = ("--height", "64", "--width", "64", "--num-inference-steps", "2", "--guidance-scale", "1", "--num-frames", "4")


@dataclass(frozen=True)
class Run:
    """What a command line left behind."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        return json.loads(self.out)

    @property
    def errors(self) -> list[str]:
        return [line for line in self.err.splitlines() if line.startswith("error:")]


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> Path:
    """A small checkpoint in the official layout."""
    return write_official_s2v(tmp_path_factory.mktemp("checkpoint") / "Wan2.2-S2V-14B")


@pytest.fixture
def wan_s2v(capfd, monkeypatch):
    """Runs a command line; the device is not measured, which would only take time."""
    monkeypatch.setattr(request, "measure_rates", lambda *model: Rates(1e11, 5e10))
    monkeypatch.setenv("COLUMNS", "100")

    def run(*words: object) -> Run:
        capfd.readouterr()
        code = main([str(word) for word in words])
        captured = capfd.readouterr()
        return Run(code, captured.out, captured.err)

    return run
