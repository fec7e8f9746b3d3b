"""Processes that are killed, stopped and out of disk lose nothing: a short run of the benchmark."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import model  # noqa: F401

BENCHMARK = Path(__file__).parent.parent / "benchmarks" / "crash.py"


@pytest.mark.skipif(sys.platform != "linux", reason="processes are forked")
def test_runs_that_crash_go_on_without_loss(model):  # noqa: F811
    words = [sys.executable, str(BENCHMARK), "--model", str(model), "--runs", "2", "--steps", "2", "--seed", "28"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    reports = [line for line in done.stdout.splitlines() if ": 2 runs" in line]
    assert [line.split(":")[0] for line in reports] == ["kill", "term", "disk"]
    for line in reports:
        assert line.endswith("clips lost 0, different 0, unfinished 0, files left behind 0")
    assert "killed" in reports[0]
