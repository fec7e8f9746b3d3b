"""The command line with the models without sound, end to end on small checkpoints in the official layout."""

from __future__ import annotations

import re
from pathlib import Path

import command_line
import pytest
import torch
from checkpoints import write_official_wan
from command_line import VOICE
from conftest import MEDIA
from safetensors.torch import save_file

from wan_s2v.commands import video_request
from wan_s2v.commands.official_flags import translate
from wan_s2v.errors import UsageError
from wan_s2v.runtime.estimate import Rates
from wan_s2v.video import read_frames, read_video_info
from wan_s2v.weights.lora import LoRAFile

wan_s2v, speech_model = command_line.wan_s2v, command_line.model
PICTURE = MEDIA / "person_small.png"
FAST = ("--num-inference-steps", "2", "--num-frames", "5", "--seed", "3")
SMALL = ("--height", "64", "--width", "96")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("official")
    return {task: write_official_wan(root / task, task) for task in ("t2v", "i2v", "ti2v")}


@pytest.fixture(autouse=True)
def _no_measuring(monkeypatch):
    monkeypatch.setattr(video_request, "measure_rates", lambda *model: Rates(1e11, 5e10))


@pytest.mark.parametrize(
    ("task", "words", "size", "fps"),
    [
        ("t2v", SMALL, (64, 96), 16),
        ("i2v", ("--image", PICTURE, "--area", "6144"), (48, 96), 16),
        ("ti2v", SMALL, (64, 96), 24),
        ("ti2v", ("--image", PICTURE, "--area", "12288"), (96, 128), 24),
    ],
)
def test_a_video_is_written_at_the_models_rate(wan_s2v, folders, tmp_path, task, words, size, fps):
    output = tmp_path / "out.mp4"
    done = wan_s2v("generate", "-m", folders[task], "--prompt", "a man talks", *words, *FAST, "-o", output)
    assert (done.code, done.out) == (0, f"{output}\n"), done.err
    info = read_video_info(output)
    assert (info.num_frames, info.height, info.width, info.fps, info.audio_codec) == (5, *size, fps, None)
    assert f"{size[1]}x{size[0]}, 5 frames at {fps} fps" in done.err
    assert [path.name for path in tmp_path.iterdir()] == ["out.mp4"]


def test_the_same_seed_gives_the_same_frames_and_another_one_others(wan_s2v, folders, tmp_path):
    made = []
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        output = tmp_path / f"{name}.mp4"
        words = ("--prompt", "a man", *SMALL, "--num-inference-steps", 1, "--num-frames", 1, "--seed", seed, "-q")
        assert wan_s2v("generate", "-m", folders["t2v"], *words, "-o", output).code == 0
        made.append(next(iter(read_frames(output))).tobytes())
    assert made[0] == made[1] != made[2]


def test_the_plan_shows_the_official_settings_and_the_experts(wan_s2v, folders, tmp_path):
    words = ("generate", "-m", folders["t2v"], "--prompt", "a man", "-o", tmp_path / "x.mp4", "--dry-run")
    plain = wan_s2v(*words)
    assert (plain.code, plain.out) == (0, "")
    text = " ".join(plain.err.split())
    assert "1280x720, 81 frames at 16 fps, 5.06 s" in text
    assert "40 steps x 2 passes, unipc, guidance 4 then 3, shift 12" in text
    assert "26 steps for high noise, 14 for low noise, changing at noise level 0.875 (signal to noise 0.0204)" in text
    plan = wan_s2v(*words, "--json").json["plan"]
    assert (plan["task"], plan["high_noise_steps"], plan["boundary_ratio"]) == ("t2v", 26, 0.875)
    assert plan["estimate"]["seconds"] > 0
    assert not list(tmp_path.iterdir())


def test_boundary_guidance_and_schedule_can_be_chosen(wan_s2v, folders, tmp_path):
    words = ("--boundary-snr", 1, "--guidance-scale", 2, "--guidance-scale-2", 1.5, "--flow-shift", 3)
    plan = wan_s2v(
        "generate", "-m", folders["i2v"], "-i", PICTURE, *words, "--scheduler", "euler", "-o", tmp_path / "x.mp4",
        "--dry-run", "--json",
    ).json["plan"]  # fmt: skip
    assert (plan["boundary_ratio"], plan["guidance_scale"], plan["guidance_scale_2"]) == (0.5, 2, 1.5)
    assert (plan["flow_shift"], plan["scheduler"]) == (3, "euler")


def test_a_precision_that_the_device_cannot_is_shown(wan_s2v, folders, tmp_path):
    words = ("--use-fp16", "--device", "cpu", "--dry-run", "--json")
    done = wan_s2v("generate", "-m", folders["t2v"], "--prompt", "x", "-o", tmp_path / "x.mp4", *words)
    assert done.json["plan"]["dtype"] == "float32"
    assert "float16 is unusably slow on a CPU" in done.json["plan"]["warnings"][0]


def test_too_little_memory_is_said_before(wan_s2v, folders, tmp_path, monkeypatch):
    monkeypatch.setattr(video_request, "device_budget", lambda *_: 1 << 20)
    words = ("--prompt", "x", "-o", tmp_path / "x.mp4", "--dry-run", "--device", "cpu")
    done = wan_s2v("generate", "-m", folders["t2v"], *words)
    assert re.search(r"warning +The run needs about .*; cpu has 1 MiB free", done.err)


def test_json_records_what_made_the_video(wan_s2v, folders, tmp_path):
    output = tmp_path / "out.mp4"
    done = wan_s2v(
        "generate", "-m", folders["ti2v"], "--prompt", "a man", *SMALL, *FAST, "-o", output, "--json", "--quiet"
    )
    assert (done.code, done.err) == (0, "")
    record = done.json["metadata"]
    assert (record["seed"], record["task"], record["prompt"]) == (3, "t2v", "a man")
    assert set(record["weights"]) == {"transformer", "vae", "text_encoder"}
    assert record["dtype"] == "bfloat16"
    assert record["seconds"]["make"] > 0


@pytest.mark.parametrize(
    ("task", "words", "message"),
    [
        ("t2v", (), "--prompt is empty"),
        ("t2v", ("--prompt", "x", "--image", PICTURE), "--image is not for this model"),
        ("i2v", ("--prompt", "x"), "Missing option '--image'"),
        ("i2v", ("--image", PICTURE, "--audio", VOICE), "--audio is not for this model, which is for i2v"),
        ("t2v", ("--prompt", "x", "--timing", "reference"), "--timing is for models that hear sound"),
        ("t2v", ("--prompt", "x", "--fps", "24"), "--fps is for models that hear sound"),
        ("t2v", ("--prompt", "x", "--num-frames", "80"), "num_frames=80 is not one more .*: 77, 81"),
        ("t2v", ("--prompt", "x", "--height", "64"), "give height and width, or area"),
        ("t2v", ("--prompt", "x", "--height", "64", "--width", "70"), "width=70 is not a multiple of 16.*: 64, 80"),
        ("ti2v", ("--prompt", "x", "--height", "48", "--width", "64"), "height=48 is not a multiple of 32.*: 32, 64"),
        ("ti2v", ("--prompt", "x", "--guidance-scale-2", "3"), "this model has one transformer"),
        ("t2v", ("--prompt", "x", "--task", "i2v"), "task='i2v', but .* is a model for t2v"),
        ("t2v", ("--prompt", "x", "--boundary-ratio", "0.5", "--boundary-snr", "1"), "both given"),
        ("i2v", ("--image", "nothing.png"), "nothing.png does not exist"),
        ("i2v", ("--image", PICTURE, "--area", "100"), "area=100 leaves no frame"),
        ("t2v", ("--prompt", "x", "--lora", "a.safetensors"), "there is no file a.safetensors"),
    ],
)
def test_misuse_is_named_before_anything_loads(wan_s2v, folders, tmp_path, monkeypatch, task, words, message):
    monkeypatch.setattr(video_request, "load_pipeline", None)
    done = wan_s2v("generate", "-m", folders[task], *words, "-o", tmp_path / "x.mp4")
    assert done.code == 2
    assert len(done.errors) == 1
    assert re.search(message, done.errors[0])
    assert not list(tmp_path.iterdir())


def test_a_task_that_speech_models_do_not_do_is_refused(wan_s2v, speech_model):
    done = wan_s2v("generate", "-m", speech_model, "--task", "t2v", "--prompt", "x")
    assert (done.code, done.errors[0].count("is a model for s2v")) == (2, 1)
    done = wan_s2v("generate", "-m", speech_model, "-i", PICTURE, "-a", VOICE, "--guidance-scale-2", 3, "--dry-run")
    assert (done.code, "--guidance-scale-2 is not for this model" in done.err) == (2, True)


def test_commands_pasted_from_the_official_readme_work(wan_s2v, folders, tmp_path):
    output = tmp_path / "out.mp4"
    common = ("--offload_model", "True", "--convert_model_dtype", "--base_seed", 3, "--save_file", output)
    done = wan_s2v(
        "generate", "--task", "t2v-A14B", "--size", "96*64", "--ckpt_dir", folders["t2v"], *common, "--frame_num", 5,
        "--sample_steps", 2, "--prompt", "Two cats box on a stage",
    )  # fmt: skip
    assert done.code == 0, done.err
    info = read_video_info(output)
    assert (info.num_frames, info.height, info.width) == (5, 64, 96)


@pytest.mark.parametrize(
    ("official", "ours"),
    [
        ("--task t2v-A14B --size 1280*720", "--task t2v --width 1280 --height 720"),
        ("--size=832*480 --task=t2v-A14B", "--width 832 --height 480 --task t2v"),
        ("--task i2v-A14B --size 832*480 --image a.png", "--task i2v --area 399360 --image a.png"),
        ("--task ti2v-5B --size 1280*704", "--task ti2v --width 1280 --height 704"),
        ("--task ti2v-5B --size 1280*704 --image a.png", "--task ti2v --area 901120 --image a.png"),
        ("--task ti2v-5B --frame_num 121", "--task ti2v --num-frames 121"),
        ("--task i2v", "--task i2v"),
    ],
)
def test_official_flags_follow_the_task(official, ours):
    assert translate(official.split()).args == tuple(ours.split())


def test_a_task_of_another_model_is_named():
    with pytest.raises(UsageError, match="--task animate-14B is another model"):
        translate(["--task", "animate-14B"])


def lora_file(folder: Path, name: str) -> Path:
    tensors = {}
    for side, shape in (("down", (4, 40)), ("up", (40, 4))):
        tensors[f"blocks.0.self_attn.q.lora_{side}.weight"] = torch.full(shape, 0.1)
    save_file(tensors, folder / name)
    return folder / name


def test_loras_go_on_the_expert_that_their_name_says(wan_s2v, folders, tmp_path):
    high, low = (lora_file(tmp_path, f"wan_{noise}_noise.safetensors") for noise in ("high", "low"))
    both = lora_file(tmp_path, "style.safetensors")
    words = ("--preset", "4step", "--lora", high, "--lora", f"{low}:0.5", "--lora", f"{both}:low:0.2")
    output = tmp_path / "out.mp4"
    done = wan_s2v(
        "generate", "-m", folders["t2v"], "--prompt", "a man", *SMALL, "--num-frames", 5, *words, "-o", output, "--json"
    )
    assert done.code == 0, done.err
    shown = " ".join(done.err.split())
    assert "wan_high_noise.safetensors x 1 (high noise), wan_low_noise.safetensors x 0.5 (low noise)" in shown
    assert "4 steps x 1 pass, euler, guidance off, shift 5" in shown
    assert "few-step LoRA" not in shown
    found = {(r["transformer"], Path(r["name"]).name, r["weight"]) for r in done.json["metadata"]["loras"]}
    assert found == {
        ("transformer", "wan_high_noise.safetensors", 1.0),
        ("transformer_2", "wan_low_noise.safetensors", 0.5),
        ("transformer_2", "style.safetensors", 0.2),
    }
    assert done.json["metadata"]["num_predictions"] == 4


@pytest.mark.parametrize(
    ("name", "expert"),
    [
        ("high_noise_model", "transformer"),
        ("t2v_lightx2v_4steps_lora_v1.1_low_noise", "transformer_2"),
        ("LowNoise-rank64", "transformer_2"),
        ("Wan2.2-Lightning_T2V-A14B-4steps-lora_HIGH_fp16", "transformer"),
        ("low_poly_style", None),
        ("highlow_noise_high_noise", None),
        ("style", None),
    ],
)
def test_names_that_say_the_expert(tmp_path, name, expert):
    file = tmp_path / f"{name}.safetensors"
    file.touch()
    assert LoRAFile.parse(file.name, tmp_path) == LoRAFile(file, 1.0, expert)
    assert LoRAFile.parse(f"{file.name}:high:0.5", tmp_path) == LoRAFile(file, 0.5, "transformer")
    assert LoRAFile.parse(f"{file.name}:low", tmp_path) == LoRAFile(file, 1.0, "transformer_2")


def test_one_lora_may_have_a_weight_for_each_expert_but_not_two_for_one(wan_s2v, folders, tmp_path):
    file = lora_file(tmp_path, "style.safetensors")
    words = ("generate", "-m", folders["t2v"], "--prompt", "x", "-o", tmp_path / "x.mp4", "--dry-run")
    assert wan_s2v(*words, "--lora", f"{file}:high:0.5", "--lora", f"{file}:low").code == 0
    twice = wan_s2v(*words, "--lora", f"{file}:high:0.5", "--lora", file)
    assert (twice.code, "is given twice" in twice.errors[0]) == (2, True)
    warned = wan_s2v(*words, "--preset", "4step")
    assert "few-step LoRA" in warned.err


def test_a_lora_of_another_model_is_refused_before_anything_loads(wan_s2v, folders, tmp_path, monkeypatch):
    monkeypatch.setattr(video_request, "load_pipeline", None)
    save_file({"blocks.0.self_attn.q.diff_b": torch.ones(5120)}, tmp_path / "x.safetensors")
    words = ("--prompt", "x", "--lora", tmp_path / "x.safetensors", "-o", tmp_path / "x.mp4")
    done = wan_s2v("generate", "-m", folders["ti2v"], *words)
    assert done.code == 1
    assert "(5120)" in done.errors[0]
    assert "the 14B models" in done.errors[0]


def test_the_fast_preset_says_how_many_predictions_were_computed(wan_s2v, folders, tmp_path, monkeypatch):
    monkeypatch.setattr("wan_s2v.video_plan.FAST_CHANGE", 1e9)
    words = ("--prompt", "a man", *SMALL, "--num-frames", 5, "--num-inference-steps", 14, "--preset", "fast", "-q")
    done = wan_s2v("generate", "-m", folders["ti2v"], *words, "-o", tmp_path / "x.mp4", "--json")
    assert done.code == 0, done.err
    assert done.json["plan"]["preset"] == "fast"
    assert done.json["metadata"]["num_predictions"] == 5


def test_a_plan_counts_memory_as_the_run_will(wan_s2v, folders, tmp_path, monkeypatch):
    """On a GPU with room for little the plan says what is given up, in the runtime's own words."""
    monkeypatch.setattr(video_request, "chosen_device", lambda _name: torch.device("cuda"))
    monkeypatch.setattr(video_request, "device_budget", lambda *_: 10 << 20)
    seen = []
    monkeypatch.setattr(
        video_request, "measure_rates", lambda device, dtype, sizes: (seen.append(sizes), Rates(1e11, 5e10))[1]
    )  # fmt: skip
    monkeypatch.setattr("wan_s2v.runtime.sizes.kernel_problem", lambda: None)
    words = ("--prompt", "x", "--height", 64, "--width", 96, "-o", tmp_path / "x.mp4", "--dry-run")
    done = wan_s2v("generate", "-m", folders["t2v"], *words)
    assert done.code == 0, done.err
    assert seen[0].blocks_run == "kernels"
    assert seen[0].vae_dtype == torch.float16
    assert re.search(r"memory +\w", done.err)
