"""The benchmark of the VAE runs everything on a small one, and what it writes can be read."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

import vae as benchmark


def test_the_small_benchmark_measures_every_variant(tmp_path, capsys):
    words = ["--small", "--sizes", "32x32", "--repeats", "1", "--profile", "--output", str(tmp_path / "vae.json")]
    benchmark.main(words)
    result = json.loads((tmp_path / "vae.json").read_text())
    rows = {(row["variant"], row["dtype"]): row for row in result["rows"]}
    assert {name for name, _ in rows} == {v.name for v in benchmark.VARIANTS if not v.compiled}
    assert rows["diffusers", "float32"]["latents"]["relative_l2"] == 0
    assert rows["ours", "float32"]["latents"]["relative_l2"] < 1e-5
    assert rows["ours", "float32"]["psnr_db"] > 90 > rows["ours", "bfloat16"]["psnr_db"] > 30
    assert all(row["encode"]["median_s"] > 0 and row["decode"]["median_s"] > 0 for row in result["rows"])
    assert len(result["convolutions"]) == 16
    assert result["left_out"] == []
    assert "decode, 32x32" in capsys.readouterr().out


def test_what_the_time_does_not_allow_is_named(tmp_path, capsys):
    words = ["--small", "--sizes", "32x32", "--seconds", "-1", "--output", str(tmp_path / "vae.json")]
    benchmark.main(words)
    assert "32x32 ours bfloat16" in capsys.readouterr().err
    assert json.loads((tmp_path / "vae.json").read_text())["rows"] == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_it_says_what_to_do(capsys):
    with pytest.raises(SystemExit):
        benchmark.main([])
    assert "Add --small" in capsys.readouterr().err
