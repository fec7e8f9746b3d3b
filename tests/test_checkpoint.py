"""Damaged, incomplete and mixed-up checkpoints, and those of other models: each is told apart before anything loads."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import random_text_encoder, write_official_s2v
from conftest import load_golden
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from wan_s2v.errors import CheckpointError
from wan_s2v.weights import find_checkpoint, load_components
from wan_s2v.weights.files import StoredTensor, read_headers
from wan_s2v.weights.names import require_task

SHARD = "diffusion_pytorch_model-00002-of-00002.safetensors"
INDEX = "diffusion_pytorch_model.safetensors.index.json"
SPEECH = "wav2vec2-large-xlsr-53-english"
T5 = "models_t5_umt5-xxl-enc-bf16.pth"


@pytest.fixture(scope="module")
def written_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_official_s2v(tmp_path_factory.mktemp("once") / "checkpoint")


@pytest.fixture
def folder(tmp_path: Path, written_once: Path) -> Path:
    """A complete official checkpoint that the test may spoil."""
    return Path(shutil.copytree(written_once, tmp_path / "checkpoint"))


def edit_config(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def edit_shard(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    """Rewrite the second shard after `change` has edited its tensors in place."""
    tensors = load_file(folder / SHARD)
    change(tensors)
    (folder / SHARD).unlink()
    save_file(tensors, folder / SHARD)


def headers_of(shapes: dict[str, tuple[int, ...]], dtype: str = "BF16") -> dict[str, StoredTensor]:
    return {name: StoredTensor(Path("x"), name, dtype, shape, 0) for name, shape in shapes.items()}


class TestIncomplete:
    def test_all_missing_parts_are_listed_at_once_with_the_command(self, folder: Path) -> None:
        for name in ("Wan2.1_VAE.pth", T5, SHARD, "config.json"):
            (folder / name).unlink()
        shutil.rmtree(folder / "google")
        (folder / SPEECH / "model.safetensors").unlink()
        with pytest.raises(CheckpointError) as caught:
            find_checkpoint(folder)
        for part in ("Wan2.1_VAE.pth", T5, SHARD, "config.json", "google/umt5-xxl", SPEECH):
            assert part in str(caught.value)
        assert f"wan-s2v download Wan-AI/Wan2.2-S2V-14B --target {folder}" in str(caught.value)

    def test_a_missing_shard_is_noticed_without_an_index(self, folder: Path) -> None:
        (folder / INDEX).unlink()
        (folder / SHARD).unlink()
        with pytest.raises(CheckpointError, match=SHARD):
            find_checkpoint(folder)

    def test_a_tokenizer_without_its_vocabulary_is_missing(self, folder: Path) -> None:
        (folder / "google" / "umt5-xxl" / "tokenizer.json").unlink()
        with pytest.raises(CheckpointError, match="missing: the tokenizer"):
            find_checkpoint(folder)

    def test_a_tokenizer_with_more_tokens_than_the_text_encoder_knows_is_refused(self, folder: Path) -> None:
        weights = torch.load(folder / T5, weights_only=True)
        weights["token_embedding.weight"] = weights["token_embedding.weight"][:50].clone()
        torch.save(weights, folder / T5)
        with pytest.raises(CheckpointError, match="85 tokens, the text encoder knows 50"):
            load_components(find_checkpoint(folder), torch_dtype=torch.float32)

    @pytest.mark.parametrize("content", ["{}", "{", "[]"])
    def test_a_broken_tokenizer_is_named(self, folder: Path, content: str) -> None:
        (folder / "google" / "umt5-xxl" / "tokenizer.json").write_text(content)
        with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
            load_components(find_checkpoint(folder), torch_dtype=torch.float32)

    def test_an_empty_folder_is_not_complete(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match="not complete"):
            find_checkpoint(tmp_path)

    def test_a_truncated_shard_is_named_with_its_sizes(self, folder: Path) -> None:
        data = (folder / SHARD).read_bytes()
        (folder / SHARD).write_bytes(data[:-100])
        with pytest.raises(CheckpointError, match=f"{SHARD} is incomplete: {len(data) - 100:,} bytes of {len(data):,}"):
            find_checkpoint(folder)

    @pytest.mark.parametrize("name", ["Wan2.1_VAE.pth", T5])
    @pytest.mark.parametrize("keep", [0.0, 0.5, 0.99])
    def test_a_truncated_pth_is_named(self, folder: Path, name: str, keep: float) -> None:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: int(len(data) * keep)])
        with pytest.raises(CheckpointError, match=f"{name} is (incomplete|empty)"):
            find_checkpoint(folder)

    def test_code_in_a_pickle_is_not_run(self, folder: Path) -> None:
        class Payload:
            def __reduce__(self) -> tuple[Any, ...]:
                return (Path.touch, (folder / "executed",))

        torch.save({"weight": Payload()}, folder / "Wan2.1_VAE.pth")
        with pytest.raises(CheckpointError, match="more than plain tensors"):
            find_checkpoint(folder)
        assert not (folder / "executed").exists()

    def test_the_old_torch_format_is_read(self, folder: Path) -> None:
        weights = torch.load(folder / "Wan2.1_VAE.pth", weights_only=True)
        torch.save(weights, folder / "Wan2.1_VAE.pth", _use_new_zipfile_serialization=False)
        vae = load_components(find_checkpoint(folder), torch_dtype=torch.float32)["vae"]
        assert torch.equal(vae.quant_conv.weight, weights["conv1.weight"])

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"GGUF\x03\x00\x00\x00", "GGUF"),
            (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
            (b"", "empty"),
            (b"<!doctype html><html></html>", "not a safetensors file"),
            (b"\x10\x00\x00\x00\x00\x00\x00\x00{broken json....", "header is broken"),
        ],
    )
    def test_files_that_are_no_weights_are_named(self, folder: Path, content: bytes, message: str) -> None:
        (folder / SHARD).write_bytes(content)
        with pytest.raises(CheckpointError, match=message):
            find_checkpoint(folder)

    @settings(max_examples=60, deadline=None)
    @given(cut=st.integers(min_value=0), flip=st.integers(min_value=0), value=st.integers(0, 255))
    def test_a_damaged_header_never_raises_anything_else(
        self, tmp_path_factory: pytest.TempPathFactory, cut: int, flip: int, value: int
    ) -> None:
        file = tmp_path_factory.getbasetemp() / "damaged.safetensors"
        save_file({"a": torch.zeros(3), "b": torch.zeros(2, 2)}, file)
        data = bytearray(file.read_bytes())
        data[flip % len(data)] = value
        file.write_bytes(bytes(data[: cut % (len(data) + 1)]))
        with suppress(CheckpointError):  # any other exception fails
            assert len(read_headers([file])) <= 2

    def test_broken_json_is_named(self, folder: Path) -> None:
        (folder / "config.json").write_text("{")
        with pytest.raises(CheckpointError, match=r"config.json is not readable as JSON"):
            find_checkpoint(folder)

    def test_missing_weights_are_counted(self, folder: Path) -> None:
        (folder / INDEX).unlink()
        edit_shard(folder, lambda tensors: [tensors.pop(n) for n in list(tensors) if n.startswith("blocks.1.ffn")])
        with pytest.raises(CheckpointError, match=r"lacks \d+ weights, first: blocks.1.ffn"):
            find_checkpoint(folder)

    def test_unknown_weights_are_counted(self, folder: Path) -> None:
        edit_shard(folder, lambda tensors: tensors.update({"motioner.proj.weight": torch.zeros(2)}))
        with pytest.raises(CheckpointError, match=r"1 weights that this model does not have, first: motioner.proj"):
            find_checkpoint(folder)

    def test_a_misshaped_weight_is_named_with_both_shapes(self, folder: Path) -> None:
        def change(tensors: dict[str, torch.Tensor]) -> None:
            name = next(name for name in tensors if name.endswith("self_attn.q.weight"))
            tensors[name] = torch.zeros(32, 31)

        edit_shard(folder, change)
        with pytest.raises(CheckpointError, match=r"self_attn.q.weight has shape \(32, 31\) instead of \(32, 32\)"):
            find_checkpoint(folder)


class TestContradictions:
    @pytest.mark.parametrize(
        ("key", "value"),
        [("dim", 64), ("num_layers", 4), ("ffn_dim", 99), ("in_dim", 36), ("enable_adain", False), ("audio_dim", 1024)],
    )
    def test_a_size_that_the_tensors_deny_is_an_error(self, folder: Path, key: str, value: object) -> None:
        edit_config(folder, **{key: value})
        with pytest.raises(CheckpointError, match=f"says {key}={value}, the tensors have"):
            find_checkpoint(folder)

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("enable_motioner", True),
            ("enable_tsm", True),
            ("zero_timestep", False),
            ("enable_framepack", False),
            ("adain_mode", "attn"),
            ("trainable_token_pos_emb", True),
            ("model_type", "t2v"),
        ],
    )
    def test_a_variant_that_is_not_supported_is_named(self, folder: Path, key: str, value: object) -> None:
        edit_config(folder, **{key: value})
        with pytest.raises(CheckpointError, match=f"{key}={value!r} is not supported"):
            find_checkpoint(folder)

    @pytest.mark.parametrize("heads", [3, 0, "2", None])
    def test_heads_must_divide_the_width(self, folder: Path, heads: object) -> None:
        edit_config(folder, num_heads=heads)
        with pytest.raises(CheckpointError, match="num_heads="):
            find_checkpoint(folder)

    @pytest.mark.parametrize("layers", [[0], [0, 3], [0, 1, 2]])
    def test_injected_blocks_must_fit_the_injectors(self, folder: Path, layers: list[int]) -> None:
        edit_config(folder, audio_inject_layers=layers)
        with pytest.raises(CheckpointError, match="2 audio injectors in 3 blocks"):
            find_checkpoint(folder)

    def test_unknown_config_keys_are_ignored(self, folder: Path) -> None:
        edit_config(folder, _diffusers_version="0.34.0", something_new=[1])
        assert find_checkpoint(folder).kind == "s2v"

    def test_a_text_encoder_of_another_width_is_refused(self, folder: Path) -> None:
        torch.save(random_text_encoder(24), folder / T5)
        with pytest.raises(CheckpointError, match="text encoder is 24 wide, the transformer takes 16"):
            find_checkpoint(folder)

    def test_a_vae_of_another_kind_is_refused(self, folder: Path) -> None:
        torch.save(load_golden("vae22_tiny.weights")[0], folder / "Wan2.1_VAE.pth")
        with pytest.raises(CheckpointError, match="VAE makes 48 latent channels, the transformer takes 16"):
            find_checkpoint(folder)

    def test_a_speech_encoder_of_another_size_is_refused(self, tmp_path: Path) -> None:
        folder = write_official_s2v(tmp_path, weights="s2v_model_A")
        with pytest.raises(CheckpointError, match="25 states of width 16, the transformer takes 25 of width 20"):
            find_checkpoint(folder)

    def test_a_text_encoder_in_place_of_the_vae_is_named(self, folder: Path) -> None:
        shutil.copy(folder / T5, folder / "Wan2.1_VAE.pth")
        with pytest.raises(CheckpointError, match="not a Wan VAE"):
            find_checkpoint(folder)


class TestOtherModels:
    @staticmethod
    def plain_wan(width: int, channels: int, **more: tuple[int, ...]) -> dict[str, StoredTensor]:
        shapes = {
            "patch_embedding.weight": (width, channels, 1, 2, 2),
            "head.head.weight": (64, width),
            "blocks.0.self_attn.q.weight": (width, width),
        }
        return headers_of(shapes | more)

    @pytest.mark.parametrize(
        ("width", "channels", "experts", "name"),
        [
            (5120, 16, True, "T2V-A14B (two experts, no audio)"),
            (5120, 36, True, "I2V-A14B (two experts, no audio)"),
            (5120, 16, False, "T2V-14B (no audio)"),
            (3072, 48, False, "TI2V-5B (no audio)"),
            (1536, 16, False, "a Wan T2V transformer of width 1536 (no audio)"),
        ],
    )
    def test_another_wan_model_is_named(self, width: int, channels: int, experts: bool, name: str) -> None:
        with pytest.raises(CheckpointError) as caught:
            require_task(self.plain_wan(width, channels), "folder", experts)
        assert f"folder is {name}; S2V needs Wan-AI/Wan2.2-S2V-14B. Get it with: wan-s2v download" in str(caught.value)

    @pytest.mark.parametrize(
        ("mark", "name"),
        [
            ("vace_blocks.0.x", "VACE"),
            ("img_emb.proj.0.weight", "Wan2.1 I2V"),
            ("face_adapter.x", "Animate"),
            ("blocks.0.audio_cross_attn.q.weight", "MultiTalk"),
        ],
    )
    def test_models_derived_from_wan_are_named(self, mark: str, name: str) -> None:
        with pytest.raises(CheckpointError, match=name):
            require_task(self.plain_wan(5120, 16, **{mark: (1,)}), "file", False)

    @pytest.mark.parametrize(
        ("shapes", "name"),
        [
            ({"input_blocks.0.0.weight": (320, 4, 3, 3), "time_embed.0.weight": (1280, 320)}, "not a Wan checkpoint"),
            ({"patchify_proj.weight": (2048, 128), "transformer_blocks.0.attn1.to_q.weight": (1,)}, "not a Wan check"),
            ({"a": (1,)}, "not a Wan checkpoint"),
            ({}, "not a Wan checkpoint"),
            ({"encoder.conv1.weight": (1,), "decoder.conv1.weight": (1,), "decoder.head.0.gamma": (1,)}, "a VAE"),
            ({"shared.weight": (1,), "encoder.block.0.layer.0.SelfAttention.q.weight": (1,)}, "a text encoder"),
            ({"blocks.0.self_attn.q.lora_A.weight": (8, 32)}, "LoRA"),
            ({"lora_unet_blocks_0_self_attn_q.lora_down.weight": (8, 32)}, "LoRA"),
        ],
    )
    def test_other_files_are_named(self, tmp_path: Path, shapes: dict[str, tuple[int, ...]], name: str) -> None:
        file = tmp_path / "model.safetensors"
        save_file({key: torch.zeros(shape) for key, shape in shapes.items()}, file)
        with pytest.raises(CheckpointError, match=name):
            find_checkpoint(file)

    def test_a_folder_with_two_plain_experts_is_named_before_anything_missing(self, tmp_path: Path) -> None:
        for name in ("high_noise_model", "low_noise_model"):
            (tmp_path / name).mkdir()
            tensors = {n: torch.zeros(s.shape) for n, s in self.plain_wan(32, 36).items()}
            save_file(tensors, tmp_path / name / "diffusion_pytorch_model.safetensors")
        with pytest.raises(CheckpointError, match=r"Wan I2V transformer of width 32 \(two experts, no audio\)"):
            find_checkpoint(tmp_path)

    def test_another_pipeline_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
        with pytest.raises(CheckpointError, match="StableDiffusionPipeline without a transformer"):
            find_checkpoint(tmp_path)

    def test_a_gguf_file_without_a_model_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "s2v-Q4.gguf").write_bytes(b"GGUF\x03\x00\x00\x00" + bytes(100))
        with pytest.raises(CheckpointError, match=r"s2v-Q4.gguf is not a Wan checkpoint \(its tensors: none"):
            find_checkpoint(tmp_path / "s2v-Q4.gguf")
