"""The command line: its flags are the pipeline's options, its streams and exit codes keep their promises."""

from __future__ import annotations

import inspect
import io
import json
import re
import subprocess
import sys
import typing
from dataclasses import fields
from pathlib import Path

import command_line
import pytest
import torch
from command_line import FAST, IMAGE, POSE, VOICE
from conftest import MEDIA
from rich.console import Console

from wan_s2v.cli import main
from wan_s2v.commands import request
from wan_s2v.commands.flags import PANELS, generation_options
from wan_s2v.commands.official_flags import translate
from wan_s2v.commands.progress import duration_text, make_reporter, size_text
from wan_s2v.errors import UsageError
from wan_s2v.plan import GenerationOptions
from wan_s2v.video import read_video_info

model, wan_s2v = command_line.model, command_line.wan_s2v
HEAVY = ("torch", "numpy", "av", "cv2", "diffusers", "transformers", "PIL")
NOT_FLAGS = {"prompt_embeds", "negative_prompt_embeds", "generator"}


@pytest.mark.parametrize(
    "code", ["import wan_s2v", "from wan_s2v.cli import main; assert main(['generate', '--help']) == 0"]
)
def test_help_and_import_load_nothing_heavy(code):
    script = f"{code}\nimport sys\nprint('LOADED', [name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "LOADED []"


def test_the_plan_of_a_voice_needs_nothing_of_models_without_sound(tmp_path):
    """Importing their part of diffusers complains of packages that nobody needs here."""
    words = ["generate", "--image", str(IMAGE), "--audio", str(VOICE), "-o", str(tmp_path / "a.mp4"), "--dry-run"]
    script = (
        f"from wan_s2v.cli import main\nassert main({words!r}) == 0\nimport sys\nprint('wan_s2v.family' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"
    assert "torchvision" not in done.stderr


def test_every_option_is_a_flag_with_the_same_default():
    flags = inspect.signature(generation_options, eval_str=True).parameters
    options = {field.name: field.default for field in fields(GenerationOptions) if field.name not in NOT_FLAGS}
    assert {name: flag.default for name, flag in flags.items()} == options
    hints = typing.get_type_hints(GenerationOptions)
    for name, flag in flags.items():
        kind = typing.get_args(flag.annotation)[0]
        if hints[name] in (bool, int | None, float | None):
            assert kind == hints[name], name


@pytest.mark.parametrize("command", ["generate", "batch"])
def test_help_explains_every_flag(wan_s2v, command):
    text = wan_s2v(command, "--help").out
    for name in inspect.signature(generation_options).parameters:
        assert f"--{name.replace('_', '-')} " in text, name
    for panel in PANELS:
        assert f"─ {panel} ─" in text


def test_generate_writes_the_video_and_prints_its_path_alone(wan_s2v, model, tmp_path):
    output = tmp_path / "out.mp4"
    done = wan_s2v("generate", "--image", IMAGE, "--audio", VOICE, "-o", output, "--model", model, *FAST, "--seed", 5)
    assert (done.code, done.out) == (0, f"{output}\n")
    info = read_video_info(output)
    assert (info.num_frames, info.height, info.width, info.fps, info.audio_codec) == (4, 64, 64, 24, "aac")
    assert "64x64, 4 frames at 24 fps" in done.err
    assert "seed 5" in done.err
    assert "clip 1 of 1 done" in done.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.mp4", "out.mp4.json"]


def test_json_and_quiet(wan_s2v, model, tmp_path):
    output = tmp_path / "out.mp4"
    words = ("generate", "-i", IMAGE, "-a", VOICE, "-o", output, "-m", model, *FAST, "--fps", "16", "--json", "--quiet")
    done = wan_s2v(*words)
    assert (done.code, done.err) == (0, "")
    result = done.json
    assert (result["status"], result["path"]) == ("done", str(output))
    assert result["metadata"]["seed"] == result["plan"]["seed"]
    assert result["metadata"]["seconds"]["total"] > 0
    assert result["plan"]["estimate"]["memory_gib"] > 0


def test_several_clips_reach_the_file_one_after_the_other(wan_s2v, model, tmp_path):
    output = tmp_path / "out.mp4"
    size = ("--height", "64", "--width", "64", "--num-inference-steps", "1", "--guidance-scale", "1")
    clips = ("--num-frames", "10", "--frames-per-clip", "4")
    done = wan_s2v("generate", "-i", IMAGE, "-a", VOICE, "-o", output, "-m", model, *size, *clips, "--pose-video", POSE)
    assert done.code == 0
    assert read_video_info(output).num_frames == 10
    assert re.findall(r"clip (\d) of (\d) done", done.err) == [("1", "3"), ("2", "3"), ("3", "3")]


def test_reference_timing_stops_with_the_sound(wan_s2v, model, tmp_path):
    output = tmp_path / "out.mp4"
    words = ("--timing", "reference", "--height", "64", "--width", "64", "--num-inference-steps", "1")
    done = wan_s2v(
        "generate", "-i", IMAGE, "-a", MEDIA / "talk_0s3.wav", "-o", output, "-m", model, *words, "--guidance-scale", 1,
        "--frames-per-clip", 4,
    )  # fmt: skip
    assert done.code == 0
    assert read_video_info(output).num_frames == 4
    assert read_video_info(output).fps == 16


def test_dry_run_prints_the_plan_and_loads_no_weights(wan_s2v, model, tmp_path, monkeypatch):
    monkeypatch.setattr(request.WanS2VPipeline, "from_pretrained", None)
    words = ("generate", "-i", IMAGE, "-a", VOICE, "-o", tmp_path / "out.mp4", "-m", model, "--dry-run")
    plain = wan_s2v(*words)
    assert (plain.code, plain.out) == (0, "")
    for heading in ("inputs", "video", "picture", "clips", "sampling", "machine", "takes", "output"):
        assert re.search(rf"^{heading} ", plain.err, re.MULTILINE), heading
    assert all(len(line) <= 100 for line in plain.err.splitlines())
    planned = wan_s2v(*words, "--json").json
    assert planned["status"] == "planned"
    assert planned["plan"]["num_clips"] == 1
    assert not list(tmp_path.iterdir())


def test_default_output_is_named_after_the_inputs(wan_s2v, model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ("generate", "-i", IMAGE, "-a", VOICE, "-m", model, *FAST, "-q")
    assert wan_s2v(*words).out == "beach_small_talk_2s.mp4\n"
    refused = wan_s2v(*words)
    assert refused.code == 2
    assert "exists already" in refused.errors[0]
    assert wan_s2v(*words, "--overwrite").code == 0


def test_underscores_and_hyphens_are_the_same(wan_s2v, model, tmp_path):
    words = ("generate", "-i", IMAGE, "-a", VOICE, "-o", tmp_path / "out.mp4", "-m", model, "--dry_run", "--json")
    plan = wan_s2v(*words, "--guidance_scale=3", "--num_inference_steps", "7", "--frames-per_clip", "40").json["plan"]
    assert (plan["guidance_scale"], plan["num_inference_steps"]) == (3, 7)


README_COMMAND = (
    "--task", "s2v-14B", "--size", "1024*704", "--offload_model", "True", "--convert_model_dtype",
    "--prompt", "Summer beach vacation style, a white cat wearing sunglasses.",
)  # fmt: skip


def test_a_command_pasted_from_the_official_readme_works(wan_s2v, model, tmp_path):
    done = wan_s2v(
        "generate", *README_COMMAND, "--ckpt_dir", f"{model}/", "--image", IMAGE, "--audio", VOICE, "--num_clip", "1",
        "--pose_video", POSE, "--start_from_ref", "--infer_frames", "40", "--sample_steps", "20", "--sample_shift", "5",
        "--sample_guide_scale", "3.5", "--sample_solver", "dpm++", "--base_seed", "7", "--t5_cpu", "--frame_num", "81",
        "--n_prompt", "blurry", "--save_file", tmp_path / "out.mp4", "--dry-run", "--json",
    )  # fmt: skip
    assert done.code == 0, done.err
    plan = done.json["plan"]
    assert plan["height"] * plan["width"] <= 1024 * 704
    assert plan["options"]["area"] == 1024 * 704
    assert plan["num_clips"] == 1
    assert plan["options"]["frames_per_clip"] == 40
    sampling = ("num_inference_steps", "flow_shift", "guidance_scale", "scheduler", "seed")
    assert [plan[name] for name in sampling] == [20, 5, 3.5, "dpm++", 7]
    assert plan["options"]["start_from_reference"] is True
    assert plan["options"]["negative_prompt"] == "blurry"
    assert plan["options"]["pose_video_path"] == str(POSE)
    assert [line.split()[1] for line in done.err.splitlines() if line.startswith("note:")] == [
        "--convert_model_dtype", "--t5_cpu", "--frame_num",
    ]  # fmt: skip


def test_the_readmes_torchrun_flags(wan_s2v, model, tmp_path):
    words = ("generate", *README_COMMAND, "--ckpt_dir", model, "--image", IMAGE, "--audio", VOICE, "--dit_fsdp",
             "--t5_fsdp", "-o", tmp_path / "out.mp4", "--dry-run")  # fmt: skip
    assert wan_s2v(*words, "--ulysses_size", 1).code == 0
    refused = wan_s2v(*words, "--ulysses_size", 8)
    assert refused.code == 2
    assert "several GPUs are not supported yet" in refused.errors[0]


@pytest.mark.parametrize(
    ("official", "ours"),
    [
        ("--size 832x480", "--area 399360"),
        ("--size=480*832", "--area 399360"),
        ("--base_seed -1", ""),
        ("--base_seed 3", "--seed 3"),
        ("--offload_model False", ""),
        ("--offload-model true", "--enable-cpu-offload"),
        ("--ckpt_dir=x --sample_steps=5", "--model x --num-inference-steps 5"),
        ("--negative_prompt a_b --seed=1", "--negative-prompt a_b --seed=1"),
        ("--task s2v-14B", ""),
        ("-o a_b.mp4 --", "-o a_b.mp4 --"),
    ],
)
def test_official_flags_become_ours(official, ours):
    assert translate(official.split()).args == tuple(ours.split())


def test_text_that_only_looks_like_a_flag_stays():
    assert translate(["--prompt", "-- under_score --task", "--", "--task"]).args[1:] == (
        "-- under_score --task", "--", "--task",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("official", "message"),
    [
        ("--task animate-14B", "another model"),
        ("--size 720p", "is not a size"),
        ("--enable_tts", "Here it is --text"),
        ("--tts_text hello", "Here it is --text"),
        ("--use_prompt_extend", "Here it is --extend-prompt"),
        ("--prompt_extend_method dashscope", "Here it is --extend-prompt"),
        ("--offload_model maybe", "True or False"),
        ("--ulysses_size 2", "several GPUs"),
        ("--ckpt_dir", "needs a value"),
    ],
)
def test_official_flags_that_cannot_be_honoured(official, message):
    with pytest.raises(UsageError, match=message):
        translate(official.split())


def test_interrupt_leaves_only_what_is_finished(wan_s2v, model, tmp_path, monkeypatch):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(request.WanS2VPipeline, "_decode_clip", interrupt)
    done = wan_s2v("generate", "-i", IMAGE, "-a", VOICE, "-o", tmp_path / "out.mp4", "-m", model, *FAST, "-q")
    assert (done.code, done.out, done.err.strip()) == (130, "", "error: interrupted")
    kept = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file())
    assert kept == ["out.mp4.partial/clip_00000.safetensors", "out.mp4.partial/run.json"]


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory. Tried"), MemoryError(), RuntimeError("DefaultCPUAllocator: can't")],
)
def test_out_of_memory_is_one_line_of_advice(wan_s2v, model, tmp_path, monkeypatch, error):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(request.WanS2VPipeline, "_denoise_clip", fail)
    done = wan_s2v("generate", "-i", IMAGE, "-a", VOICE, "-o", tmp_path / "out.mp4", "-m", model, *FAST, "-q")
    assert done.code == 1
    assert done.err.startswith("error: Memory ran out. Try a smaller --area")
    assert done.err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_bug_is_not_hidden(wan_s2v, model, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("a bug")

    monkeypatch.setattr(request.WanS2VPipeline, "_denoise_clip", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        wan_s2v("generate", "-i", IMAGE, "-a", VOICE, "-o", tmp_path / "out.mp4", "-m", model, *FAST, "-q")
    assert not list(tmp_path.iterdir())


def test_debug_shows_the_traceback_and_json_reports_errors(wan_s2v, model, tmp_path):
    done = wan_s2v("generate", "-i", tmp_path / "no.png", "-a", VOICE, "-m", model, "--json", "--debug", "-q")
    assert done.code == 2
    assert "Traceback" in done.err
    assert done.json["status"] == "failed"
    assert done.json["exit_code"] == 2
    assert done.json["error"] == done.errors[0].removeprefix("error: ")


def test_version_and_bare_command(wan_s2v):
    assert re.fullmatch(r"\d+\.\d+\.\d+\n", wan_s2v("--version").out)
    bare = wan_s2v()
    assert bare.code == 0
    assert "generate" in bare.out


def test_doctor_reports_the_machine(wan_s2v):
    done = wan_s2v("doctor", "--json")
    assert done.code == 0, done.err
    found = done.json
    assert found["packages"]["torch"] == torch.__version__
    assert found["encoders"] == {"H.264": True, "AAC": True}
    cards = [(fit["device"], fit["size"]) for fit in found["fits_s2v_14b_bf16"] if "card" in fit["device"]]
    assert len(cards) == 12
    assert cards[:2] == [("12 GB card", "480p"), ("12 GB card", "720p")]
    text = wan_s2v("doctor").out
    assert "libx264" not in text
    assert "transformers" in text


def test_doctor_checks_a_model(wan_s2v, model, tmp_path):
    good = wan_s2v("doctor", model, "--json")
    assert good.code == 0
    assert good.json["models"][0]["tensors"] > 100
    shown = " ".join(wan_s2v("doctor", model).out.split())
    assert f"{model.name} s2v, official layout" in shown
    assert "read and finite" in shown
    bad = wan_s2v("doctor", tmp_path, "--json")
    assert bad.code == 1
    assert "not complete" in bad.errors[0]


def test_doctor_finds_nan_in_weights(wan_s2v, model, tmp_path):
    for path in model.iterdir():
        (tmp_path / path.name).symlink_to(path)
    vae = torch.load(model / "Wan2.1_VAE.pth", weights_only=True)
    vae["conv2.weight"][0] = float("nan")
    (tmp_path / "Wan2.1_VAE.pth").unlink()
    torch.save(vae, tmp_path / "Wan2.1_VAE.pth")
    found = wan_s2v("doctor", tmp_path)
    assert found.code == 1
    assert "conv2.weight holds NaN" in found.errors[0]


def test_convert_and_then_generate(wan_s2v, model, tmp_path):
    target = tmp_path / "converted"
    done = wan_s2v("convert", model, target, "--layout", "diffusers", "--torch-dtype", "bf16", "--quiet")
    assert (done.code, done.out) == (0, f"{target}\n")
    words = ("generate", "-i", IMAGE, "-a", VOICE, "-o", tmp_path / "out.mp4", "-m", target, "--dry-run", "--json")
    assert wan_s2v(*words).json["plan"]["dtype"] == "bfloat16"


def test_download_prints_the_folder(wan_s2v, monkeypatch):
    asked = []
    monkeypatch.setattr("wan_s2v.weights.download", lambda name, target: asked.append((name, target)) or Path("/here"))
    done = wan_s2v("download", "s2v-14b", "--target", "x")
    assert (done.code, done.out, asked) == (0, "/here\n", [("s2v-14b", Path("x"))])


def test_live_progress_follows_loading_steps_and_clips():
    console = Console(record=True, force_terminal=True, width=100, file=io.StringIO())
    with make_reporter(console, quiet=False) as reporter:
        bar = reporter._progress
        reporter.loading("transformer", 2**30, 3 * 2**30)
        bar.refresh()
        reporter.start(2, 4, 0.2)
        shares = []
        for tell in (reporter.step,) * 4 + (reporter.clip_written,) + (reporter.step,) * 4 + (reporter.clip_written,):
            tell()
            bar.refresh()
            shares.append(round(bar.tasks[0].percentage))
    assert shares == [10, 20, 30, 40, 50, 60, 70, 80, 90, 100]
    text = console.export_text()
    for expected in ("loading transformer", "1.0 GiB of 3.0 GiB", "clip 1 of 2, denoising", "step 1 of 4",
                     "clip 1 of 2, decoding", "clip 2 of 2, denoising", "writing the file"):  # fmt: skip
        assert expected in text


def test_times_and_sizes_for_people():
    assert [duration_text(s) for s in (0.01, 4.24, 45, 89, 725, 12_000)] == [
        "0.1 s", "4.2 s", "45 s", "89 s", "12 min", "3 h 20 min",
    ]  # fmt: skip
    assert [size_text(n) for n in (5 << 20, 3 << 29)] == ["5 MiB", "1.5 GiB"]


def test_the_console_script_is_main():
    assert json.dumps(main(["--version"])) == "0"
