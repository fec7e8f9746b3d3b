"""Checkpoints of the models without audio: recognised, checked, loaded, and told apart from what they are not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import write_official_wan
from conftest import load_golden
from diffusers import UniPCMultistepScheduler, WanPipeline

from wan_s2v.commands.doctor import examine
from wan_s2v.errors import CheckpointError
from wan_s2v.models.video_transformer import WanVideoTransformer
from wan_s2v.weights import find_checkpoint, load_components, load_model, places
from wan_s2v.weights.checkpoint import read_task
from wan_s2v.weights.names import TASKS, plain_transformer_names, rename

KINDS = ["t2v", "i2v", "ti2v"]
T5 = "models_t5_umt5-xxl-enc-bf16.pth"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("official")
    return {task: write_official_wan(folder / task, task) for task in KINDS}


def edit_config(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize(
    ("task", "ratio", "models"),
    [
        ("t2v", 0.875, {"transformer", "transformer_2", "vae", "text_encoder"}),
        ("i2v", 0.9, {"transformer", "transformer_2", "vae", "text_encoder"}),
        ("ti2v", None, {"transformer", "vae", "text_encoder"}),
    ],
)
def test_an_official_folder_is_recognised(
    written: dict[str, Path], task: str, ratio: float | None, models: set[str]
) -> None:
    found = find_checkpoint(written[task], tasks=TASKS)
    assert (found.task, found.kind, found.layout, found.boundary_ratio) == (task, task, "official", ratio)
    assert set(found.models) == models
    assert found.audio_processor is None
    assert find_checkpoint(written[task], tasks=TASKS, boundary_ratio=0.5).boundary_ratio == (ratio and 0.5)


@pytest.mark.parametrize("task", KINDS)
def test_every_value_arrives_under_its_diffusers_name(written: dict[str, Path], task: str) -> None:
    loaded = load_components(find_checkpoint(written[task], tasks=TASKS), torch_dtype=torch.float32)
    official, _ = load_golden(f"wan_{task}_tiny.weights")
    table = plain_transformer_names(loaded["transformer"].config)
    for name, factor in (("transformer", 1.0), ("transformer_2", 1.5)):
        if loaded[name] is None:
            assert task == "ti2v"
            continue
        assert type(loaded[name]) is WanVideoTransformer
        state = loaded[name].state_dict()
        assert len(state) == len(official)
        assert all(torch.equal(state[rename(key, table)], value * factor) for key, value in official.items())
    assert loaded["vae"].config.z_dim == (48 if task == "ti2v" else 16)
    assert loaded["audio_encoder"] is loaded["audio_processor"] is None


def test_in_half_precision_the_parts_that_diffusers_keeps_exact_stay_float32(written: dict[str, Path]) -> None:
    model = find_checkpoint(written["ti2v"], tasks=TASKS).models["transformer"]
    loaded = load_model(model, torch.bfloat16, torch.device("cpu"))
    kept = {name for name, value in loaded.named_parameters() if value.dtype == torch.float32}
    assert loaded.dtype == torch.bfloat16
    assert "scale_shift_table" in kept
    assert "condition_embedder.time_embedder.linear_1.weight" in kept
    assert "blocks.0.norm2.weight" in kept
    assert not any(".attn1." in name or "proj_out" in name for name in kept)


@pytest.mark.parametrize("task", KINDS)
def test_a_diffusers_folder_of_the_same_model_is_read_alike(
    written: dict[str, Path], task: str, tmp_path: Path
) -> None:
    loaded = load_components(find_checkpoint(written[task], tasks=TASKS), torch_dtype=torch.float32)
    parts = {name: value for name, value in loaded.items() if not name.startswith("audio")}
    WanPipeline(**parts, scheduler=UniPCMultistepScheduler()).save_pretrained(tmp_path)
    found = find_checkpoint(tmp_path, tasks=TASKS)
    assert (found.task, found.layout) == (task, "diffusers")
    again = load_components(found, torch_dtype=torch.float32)
    assert again["boundary_ratio"] == loaded["boundary_ratio"]
    for name in ("transformer", "transformer_2", "vae", "text_encoder"):
        if loaded[name] is None:
            assert again[name] is None
            continue
        state = again[name].state_dict()
        assert all(torch.equal(state[key], value) for key, value in loaded[name].state_dict().items())


def test_a_model_without_audio_is_named_where_speech_is_asked_for(written: dict[str, Path]) -> None:
    with pytest.raises(CheckpointError, match=r"Wan T2V transformer .*two experts.*S2V needs Wan-AI/Wan2.2-S2V-14B"):
        find_checkpoint(written["t2v"])


def test_all_missing_parts_are_listed_with_the_repository_to_fetch(written: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(written["ti2v"], tmp_path / "copy"))
    for name in ("Wan2.2_VAE.pth", T5):
        (folder / name).unlink()
    shutil.rmtree(folder / "google")
    with pytest.raises(CheckpointError) as caught:
        find_checkpoint(folder, tasks=TASKS)
    for part in ("Wan2.2_VAE.pth", T5, "google/umt5-xxl", f"wan-s2v download Wan-AI/Wan2.2-TI2V-5B --target {folder}"):
        assert part in str(caught.value)


@pytest.mark.parametrize("shard", [1, 2])
def test_a_missing_shard_is_named_with_the_right_repository(
    written: dict[str, Path], tmp_path: Path, shard: int
) -> None:
    folder = Path(shutil.copytree(written["t2v"], tmp_path / "copy"))
    name = f"diffusion_pytorch_model-0000{shard}-of-00002.safetensors"
    (folder / "high_noise_model" / name).unlink()
    assert read_task(folder) == "t2v"
    with pytest.raises(CheckpointError, match=rf"missing: high_noise_model/{name}.*download Wan-AI/Wan2.2-T2V-A14B"):
        find_checkpoint(folder, tasks=TASKS)


def test_models_have_short_names() -> None:
    assert places.ALIASES["t2v-a14b"] == places.ALIASES["wan2.2-t2v-a14b"] == "Wan-AI/Wan2.2-T2V-A14B"
    assert places.ALIASES["ti2v-5b"] == "Wan-AI/Wan2.2-TI2V-5B"


def test_a_missing_expert_is_named(written: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(written["i2v"], tmp_path / "copy"))
    shutil.rmtree(folder / "low_noise_model")
    with pytest.raises(CheckpointError, match=r"missing: low_noise_model/.*download Wan-AI/Wan2.2-I2V-A14B"):
        find_checkpoint(folder, tasks=TASKS)


def test_one_expert_alone_is_refused(written: dict[str, Path]) -> None:
    with pytest.raises(CheckpointError, match=r"one expert of two\. Pass the folder that holds high_noise_model/"):
        find_checkpoint(written["t2v"] / "low_noise_model", tasks=TASKS)


def test_experts_of_different_models_are_refused(written: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(written["t2v"], tmp_path / "copy"))
    shutil.rmtree(folder / "low_noise_model")
    shutil.copytree(written["i2v"] / "low_noise_model", folder / "low_noise_model")
    with pytest.raises(CheckpointError, match="The experts differ in in_channels: 16 and 36"):
        find_checkpoint(folder, tasks=TASKS)


def test_the_vae_of_the_other_generation_is_refused(written: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(written["ti2v"], tmp_path / "copy"))
    shutil.copy(written["t2v"] / "Wan2.1_VAE.pth", folder / "Wan2.2_VAE.pth")
    with pytest.raises(CheckpointError, match="VAE makes 16 latent channels, the transformer takes 48"):
        find_checkpoint(folder, tasks=TASKS)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("dim", 64, "says dim=64, the tensors have 28"),
        ("in_dim", 16, "says in_dim=16, the tensors have 48"),
        ("model_type", "t2v", "model_type='t2v' is not supported; accepted is 'ti2v'"),
        ("text_len", 226, "text_len=226 is not supported"),
        ("num_heads", 3, "num_heads=3 does not divide"),
    ],
)
def test_a_config_that_the_tensors_deny_is_an_error(
    written: dict[str, Path], tmp_path: Path, key: str, value: object, message: str
) -> None:
    folder = Path(shutil.copytree(written["ti2v"], tmp_path / "copy"))
    edit_config(folder / "config.json", **{key: value})
    with pytest.raises(CheckpointError, match=message):
        find_checkpoint(folder, tasks=TASKS)


@pytest.mark.parametrize("task", KINDS)
def test_doctor_reads_every_value_and_says_what_it_is(written: dict[str, Path], task: str) -> None:
    found = examine(str(written[task]))["models"][0]
    assert (found["kind"], found["layout"]) == (task, "official")
    parts = {"vae", "text_encoder", "transformer", *(() if task == "ti2v" else ("transformer_2",))}
    assert set(found["storage"]) == parts
    assert found["storage"]["transformer"] == "F32"
