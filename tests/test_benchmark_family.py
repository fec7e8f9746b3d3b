"""The benchmark of the models without sound, at tiny size."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

import family


def test_every_stage_is_measured_beside_diffusers(tmp_path, capsys):
    file = tmp_path / "family.json"
    family.main(["--small", "--repeats", "1", "--steps", "2", "--results", str(file)])
    measured = json.loads(file.read_text())["measured"]
    assert json.loads(capsys.readouterr().out) == measured
    for where in ("t2v-a14b 96x64", "ti2v-5b 96x64"):
        forward, whole = measured["forward"][where], measured["whole"][where]
        assert forward["difference"]["relative_l2"] < 1e-4
        assert forward["speedup"] == forward["diffusers"]["median_s"] / forward["ours"]["median_s"]
        for made in (whole["ours"], whole["diffusers"]):
            full_s = made["total_s"] + (made["full_steps"] - 2) * made["step"]["median_s"]
            assert made["full_total_s"] == pytest.approx(full_s)
            assert 0 < made["decode_s"] < made["total_s"]
        assert measured["eight-bit"][where]["change"]["relative_l2"] >= 0


@pytest.mark.parametrize("words", [["--small", "--steps", "1"], ["--models", "s2v"], []])
def test_what_cannot_be_measured_is_refused(words):
    if not words and family.torch.cuda.is_available():
        pytest.skip("a GPU would measure")
    with pytest.raises(SystemExit):
        family.parse_arguments(words)
