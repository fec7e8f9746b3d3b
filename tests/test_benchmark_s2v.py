"""The benchmark of S2V-14B: the tiny model through the whole command, the weights it draws, and what its tables say."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

import s2v
import s2v_meter
import s2v_run
import s2v_table
from s2v_model import FULL, SMALL, Size, cut_down, random_inputs, random_model

from wan_s2v.runtime.sizes import S2V_14B_SIZES
from wan_s2v.weights.checkpoint import build_on_meta

CPU = torch.device("cpu")
DOCUMENT = Path(__file__).parent.parent / "docs" / "performance.md"
SIZES = ["64x64", "96x64"]
GPU = {"gpu": "NVIDIA H100 80GB HBM3", "power_limit_w": 700.0, "driver": "580.1", "cuda": "13.0", "cudnn": 91900}
AT = GPU | {"model": "S2V-14B", "dtype": "bfloat16", "torch": "2.11", "triton": None}
AT |= {"commit": "0123456789abcdef", "sources": "fedcba"}


def timed(median=2.0, **values):
    spread = {"median_s": median, "min_s": median - 0.5, "max_s": median + 0.5, "repeats": 3}
    return spread | {"allocated_bytes": 40 * 10**9, "reserved_bytes": 42 * 10**9} | values


def forward(median):
    return timed(median, tokens=35_074, flops=1.9e15, flops_per_s=1.9e15 / median)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Results of every stage at two sizes, and the folder with file and document."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("s2v")
    words = ["--small", "--repeats", "2", "--stages", ",".join(s2v.STAGES), "--error-layers", "2"]
    s2v.main([*words, "--results", str(folder / "r.json"), "--docs", "--document", str(folder / "p.md")])
    return json.loads((folder / "r.json").read_text()), folder


def test_every_stage_has_its_figures(run):
    measured = run[0]["measured"]
    assert {stage: list(records) for stage, records in measured.items()} == {
        "error": SIZES[:1],
        "load": ["1 of 3 blocks"],
        **dict.fromkeys(("forward", "vae", "whole", "eight-bit"), SIZES),
    }
    for size in SIZES:
        clips = measured["forward"][size]
        assert clips["first clip"]["tokens"] < clips["later clip"]["tokens"]
        assert all(clip["min_s"] <= clip["median_s"] <= clip["max_s"] for clip in clips.values())
        assert all(clip["repeats"] == 2 and clip["flops_per_s"] > 0 for clip in clips.values())
        assert len(measured["vae"][size]) == 4
        assert 0.99 < measured["eight-bit"][size]["change"]["cosine"] < 1
    assert measured["forward"]["96x64"]["later clip"]["flops"] > measured["forward"]["64x64"]["later clip"]["flops"]
    assert 0 < measured["error"]["64x64"]["ratio"] < 2
    assert measured["error"]["64x64"]["layers"] == 2
    assert measured["load"]["1 of 3 blocks"]["stored_bytes"] > 100_000


def test_the_run_tells_clips_and_stages_apart_and_extrapolates(run):
    for record in run[0]["measured"]["whole"].values():
        first, second = record["clips"]
        assert {"text", "audio", "encode", "denoise", "decode", "interpolate"} == set(first["stages_s"])
        assert "text" not in second["stages_s"]
        # the picture alone, and then 73 frames of history
        assert first["stages_s"]["encode"] < second["stages_s"]["encode"]
        assert (record["steps"], record["full_steps"], record["passes_per_step"]) == (3, 40, 2)
        assert record["frames"] == 19  # what 5 + 8 frames at 16 fps last at 24
        assert first["step"]["repeats"] == 2
        more = 37 * sum(clip["step"]["median_s"] for clip in record["clips"])
        assert record["full_total_s"] == pytest.approx(record["total_s"] + more)
        assert record["write_s"] > 0
        assert record["total_s"] > record["write_s"] + sum(first["stages_s"].values())


def test_circumstances_are_recorded_and_the_document_is_written(run):
    results, folder = run
    found = results["circumstances"]
    assert (found["model"], found["dtype"], found["torch"]) == ("tiny", "bfloat16", torch.__version__)
    assert found["gpu"].endswith("CPU")
    assert len(found["sources"]) == 12
    text = (folder / "p.md").read_text()
    assert text.index("<!-- measured: s2v -->") < text.index("| forward, later clip |")
    assert "3 steps a clip" in text
    assert "extrapolated" in text


def test_tables_can_be_written_again_without_measuring(run, capsys):
    folder = run[1]
    before = (folder / "p.md").read_text()
    words = ["--tabulate", "--docs", "--results", str(folder / "r.json"), "--document", str(folder / "p.md")]
    s2v.main(words)
    assert (folder / "p.md").read_text() == before
    assert "| forward, first clip |" in capsys.readouterr().out


def test_the_documentation_has_the_section_that_is_filled(tmp_path):
    copy = tmp_path / "performance.md"
    copy.write_text(DOCUMENT.read_text())
    s2v_table.write_document(copy, [{"circumstances": AT, "measured": {"forward": {"832x480": {}}}}])
    text = copy.read_text()
    assert text.count("measured: s2v -->") == 2
    assert text.index("## Measured") < text.index("### NVIDIA H100") < text.index("## What an H100 allows")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--caps", "24", "--stages", "forward"], "--caps needs a GPU, the stage whole"),
        (["--small", "--caps", "24"], "--caps needs a GPU, the stage whole"),
        (["--small", "--stages", "forward,denoise"], "'denoise' is not a stage. Choose from forward, vae"),
        (["--small", "--sizes", "832"], "Write width and height"),
        (["--small", "--sizes", "840x480"], "multiples of 16"),
        (["--small", "--steps", "1"], "--steps must be at least 2"),
        (["--small", "--repeats", "0"], "at least 1"),
        (["--small", "--dtype", "float32"], "compares with float32"),
        (["--small", "--docs"], "says nothing about speed"),
        (["--small", "--official", "."], "not a checkout of Wan-Video/Wan2.2"),
        (["--tabulate", "--results", "nowhere.json"], "no results to show"),
    ],
)
def test_what_cannot_be_measured_is_said_before_anything_is_built(words, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        s2v.main(words)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_without_a_gpu_it_says_what_to_do(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as stopped:
        s2v.main([])
    assert stopped.value.code == 2
    assert "needs a CUDA device, and PyTorch sees none. Add --small" in capsys.readouterr().err


def test_figures_of_other_circumstances_are_replaced(tmp_path, capsys):
    path = tmp_path / "r.json"
    s2v.Results(path, {"commit": "a"}).add("forward", "64x64", {"x": 1})
    same = s2v.Results(path, {"commit": "a"})
    same.add("vae", "64x64", {"y": 2})
    assert same.values["measured"] == {"forward": {"64x64": {"x": 1}}, "vae": {"64x64": {"y": 2}}}
    assert "replaced" not in capsys.readouterr().err
    s2v.Results(path, {"commit": "b"}).add("vae", "64x64", {"y": 3})
    assert json.loads(path.read_text())["measured"] == {"vae": {"64x64": {"y": 3}}}
    assert "replaced" in capsys.readouterr().err


def test_results_are_named_after_the_gpu():
    assert s2v.results_path("NVIDIA H100 80GB HBM3").name == "s2v-h100-80gb-hbm3.json"


def test_full_size_is_that_of_the_published_model():
    for name, config in FULL.models.items():
        count = sum(parameter.numel() for parameter in build_on_meta(name, config).parameters())
        masking = 1024 if name == "audio_encoder" else 0  # a vector of the file that only training reads
        assert count + masking == S2V_14B_SIZES.parameters[name], name


@torch.no_grad()
def test_random_weights_keep_activations_finite_and_of_order_one_through_40_blocks():
    config = {**FULL.transformer, "num_attention_heads": 1, "ffn_dim": 256, "text_dim": 64, "audio_dim": 32}
    transformer = random_model("transformer", config, torch.bfloat16, CPU)
    inputs = random_inputs(config, Size(64, 64), 8, torch.bfloat16, CPU)
    assert inputs.motion.shape == (1, 16, 19, 8, 8)
    for has_motion in (False, True):
        noise_pred = inputs.predict(transformer, inputs.conditioning(transformer, has_motion))
        assert noise_pred.shape == inputs.latents.shape
        assert 0.2 < noise_pred.std() < 5


def test_random_weights_are_seeded_and_norms_are_ones():
    first, again = (random_model("vae", SMALL.models["vae"], torch.float32, CPU).state_dict() for _ in range(2))
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    assert all((value == 1).all() for name, value in first.items() if name.endswith("gamma"))
    assert first["encoder.conv_in.weight"].std() == pytest.approx((3 * 27) ** -0.5, rel=0.2)


def test_cut_down_models_keep_their_width_and_the_injections_of_their_blocks():
    config = cut_down(FULL.transformer, 8)
    assert (config["num_layers"], config["audio_inject_layers"]) == (8, (0, 4))
    assert config["num_attention_heads"] == 40
    assert cut_down(SMALL.transformer, 50)["num_layers"] == 3


class Peaks:
    """A meter that has seen these peaks of memory, one after the other."""

    def __init__(self, *allocated):
        self.allocated = iter(allocated)
        self.calls = []

    def forget_peak(self):
        self.calls.append("forget")

    def wait(self):
        self.calls.append("wait")

    def peak(self):
        return {"allocated_bytes": next(self.allocated), "reserved_bytes": None}


def test_the_clock_waits_for_the_device_and_keeps_the_largest_peak_of_a_stage():
    meter = Peaks(5, 9, 7)
    clock = s2v_run._StageClock(meter)
    for stage in ("encode", "decode", "encode"):
        with clock(stage):
            meter.calls.append(stage)
    assert meter.calls[:3] == ["forget", "encode", "wait"]
    assert [clock.peaks[stage]["allocated_bytes"] for stage in ("encode", "decode")] == [7, 9]
    assert set(clock.take()) == {"encode", "decode"}


def test_a_stand_in_for_pyav_writes_no_video(monkeypatch):
    assert s2v_run.can_write_video()

    monkeypatch.setattr(s2v_run.av, "codecs_available", type("codecs_available", (), {}))
    assert not s2v_run.can_write_video()
    assert s2v_run._write_seconds(None, None, None) is None


def test_power_and_driver_are_those_that_nvidia_smi_tells(monkeypatch):
    class Properties:
        uuid = "12ab"

    asked = []
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Properties())
    monkeypatch.setattr(s2v_meter, "_output", lambda *command: asked.append(command) or "700.00, 580.159.04")
    assert s2v_meter._power_and_driver(CPU) == (700.0, "580.159.04")
    assert "--id=GPU-12ab" in asked[0]
    monkeypatch.setattr(s2v_meter, "_output", lambda *command: "")
    assert s2v_meter._power_and_driver(CPU) == (None, None)


def test_eight_bits_stand_below_ours_with_their_ratio_and_change():
    change = {"cosine": 0.9991234, "relative_l2": 0.0425}
    measured = {
        "forward": {"832x480": {"later clip": forward(3.0)}},
        "eight-bit": {"832x480": {"later clip": forward(1.8), "change": change}},
    }
    text = s2v_table.describe({"circumstances": AT, "measured": measured})
    assert "| 8 bits: forward, later clip | 1.8 s (1.3–2.3), 0.60 × bfloat16 |" in text.splitlines()
    assert "at 832x480 has a cosine of 0.999123 with the exact one, at a relative L2 distance of 4.250e-02" in text


def test_the_official_code_stands_below_ours_with_its_ratio():
    distances = {"noise_pred": {"relative_l2": 0.0123}, "motion_latents": {"relative_l2": 1e-4}}
    measured = {
        "forward": {"832x480": {"later clip": forward(3.0)}},
        "official": {"832x480": {"later clip": timed(4.5), "decode later clip": timed(4.0)} | distances},
    }
    text = s2v_table.describe({"circumstances": AT, "measured": measured})
    lines = text.splitlines()
    ours = lines.index("| forward, later clip | 3 s (2.5–3.5) |")
    assert lines[ours + 1 : ours + 4] == [
        "| – tokens, rate | 35,074, 633.3 TFLOP/s |",
        "| – memory | 40.0 / 42.0 GB |",
        "| official: forward, later clip | 4.5 s (4–5), 1.50 × ours |",
    ]
    assert "| official: decode what a later clip keeps | 4 s (3.5–4.5) |" in lines
    assert "0.012 (prediction)" in text
    assert "NVIDIA H100 80GB HBM3 (700 W); driver 580.1, PyTorch 2.11, CUDA 13.0, cuDNN 91900; " in text
    assert "; commit 0123456789ab, sources fedcba." in text


def test_tables_say_what_was_missed_and_what_was_not_measured():
    pair = {"relative_l2": 3e-3, "cosine": 0.99999}
    error = {"ours": pair, "plain": pair, "ratio": 2.5, "layers": 4}
    stages = dict.fromkeys(s2v_table._STAGES, 1.0)
    clips = [{"stages_s": stages, "step": timed(26.0)}, {"stages_s": stages, "step": timed(27.0)}]
    run = {"steps": 40, "full_steps": 40, "frames": 235, "passes_per_step": 2, "clips": clips, "write_s": None}
    run |= {"total_s": 2200.0, "full_total_s": 2200.0, "peaks": dict.fromkeys(stages, timed())}
    run["attention"] = {"cuda:0, bfloat16, 128": "cudnn"}
    results = {"circumstances": AT, "measured": {"error": {"832x480": error}, "whole": {"1280x704": run}}}
    text = s2v_table.describe(results)
    assert "2.50 times that of plain PyTorch; at most 2 are allowed (missed)." in text
    assert "40 steps a clip: 2,200 s measured." in text
    assert "extrapolated" not in text
    assert "Attention ran on cudnn." in text
    assert "Memory" not in text
    run["memory"] = {"policy": "one part at a time", "estimate_gib": 38.0, "peak_gib": 3.0}
    text = s2v_table.describe(results)
    assert "Memory: one part at a time; estimated 40.8 GB, +2.0 %." in text
    assert "PyAV with libx264 was not installed" in text
    assert "| all |  | 2,200 s | 40.0 / 42.0 GB |" in text
    assert "| the clip with 40 steps | 6 s | 6 s |  |" in text
    run |= {"steps": 10, "total_s": 600.0}
    assert "| the clip with 40 steps | 786 s | 816 s |  |" in s2v_table.describe(results)


@pytest.mark.skipif("WAN22_FOLDER" not in os.environ, reason="set WAN22_FOLDER to a checkout of Wan-Video/Wan2.2")
def test_the_official_code_computes_the_same(tmp_path):
    pytest.importorskip("einops", reason="the official code needs einops")
    words = ["--small", "--dtype", "float32", "--stages", "forward,vae", "--repeats", "1", "--sizes", "96x64"]
    s2v.main([*words, "--official", os.environ["WAN22_FOLDER"], "--results", str(tmp_path / "r.json")])
    record = json.loads((tmp_path / "r.json").read_text())["measured"]["official"]["96x64"]
    assert record["noise_pred"]["relative_l2"] < 1e-5
    assert record["motion_latents"]["relative_l2"] < 1e-5
    assert record["first clip"]["median_s"] > 0
