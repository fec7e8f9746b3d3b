"""Int8 storage: what is written comes back within the error that writing states, and what does not fit is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import MEDIA
from hypothesis import given, settings
from hypothesis import strategies as st
from models import random_pipeline
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import Wav2Vec2Config, Wav2Vec2Model

from wan_s2v import WanS2VPipeline
from wan_s2v.errors import CheckpointError, UsageError
from wan_s2v.training.pack import write_small_checkpoint
from wan_s2v.training.vae import VAE_CONFIG
from wan_s2v.weights import convert, find_checkpoint, fingerprint, load_components, load_model
from wan_s2v.weights.checkpoint import read_audio_encoder
from wan_s2v.weights.files import iterate_tensors, read_headers, read_metadata
from wan_s2v.weights.int8 import quantize_rows, write_int8

MODELS = ("transformer", "transformer_2", "vae", "audio_encoder", "text_encoder")
INT8 = {"format": "pt", "storage": "int8-rows"}
TRANSFORMER = "transformer/diffusion_pytorch_model.safetensors"
KERNEL = "motion_packer.proj_2x.weight"  # (24, 48, 2, 4, 4)
LEAST_ERROR = 0.001  # no row of random numbers fits 255 levels better


def nothing(_line: str) -> None:
    """Receives reports that a test does not look at."""


@pytest.fixture(scope="module")
def made() -> WanS2VPipeline:
    """Two experts, a short memory and a VAE of the 16x16x4 kind."""
    channels = dict.fromkeys(("in_channels", "out_channels", "pose_channels"), 48)
    vae = VAE_CONFIG | {"base_dim": 8, "decoder_base_dim": 8, "latents_mean": [0.1] * 48}
    pipeline = random_pipeline(two_experts=True, vae=vae, motion_buckets=(1, 2), **channels)
    pipeline.register_to_config(sampling_defaults={"num_inference_steps": 4, "flow_shift": 3.0})
    return pipeline


@pytest.fixture(scope="module")
def written_once(made: WanS2VPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("once") / "small"
    write_small_checkpoint(made, folder, report=nothing)
    return folder


def edit(file: Path, change: Callable[[dict[str, torch.Tensor]], Any], metadata: dict[str, str] = INT8) -> None:
    """Rewrite a weight file after `change` has edited its tensors in place."""
    tensors = load_file(file)
    change(tensors)
    file.unlink()
    save_file(tensors, file, metadata=metadata)


@pytest.fixture
def folder(made: WanS2VPipeline, tmp_path: Path) -> Path:
    """A small checkpoint that the test may spoil."""
    write_small_checkpoint(made, tmp_path / "small", report=nothing)
    return tmp_path / "small"


def stored_kinds(folder: Path) -> dict[str, set[str]]:
    """The dtypes of every model's tensors as they lie in its files."""
    return {
        name: {stored.dtype for stored in model.tensors.values()}
        for name, model in find_checkpoint(folder).models.items()
    }


class TestRows:
    @settings(max_examples=60, deadline=None)
    @given(
        size=st.tuples(st.integers(1, 6), st.integers(1, 200)),
        exponent=st.integers(-25, 25),
        seed=st.integers(0, 1000),
    )
    def test_every_row_is_at_least_as_close_as_by_its_largest_value(
        self, size: tuple[int, int], exponent: int, seed: int
    ) -> None:
        torch.manual_seed(seed)
        tensor = torch.randn(size).pow(3) * 10.0**exponent
        values, scale = quantize_rows(tensor)
        plain = tensor.abs().amax(dim=1, keepdim=True) / 127
        by_largest = ((tensor / plain).round() * plain - tensor).double().norm(dim=1)
        error = (values * scale[:, None] - tensor).double().norm(dim=1)
        assert values.dtype == torch.int8
        assert values.abs().max() <= 127
        assert scale.shape == size[:1]
        assert (error <= by_largest * (1 + 1e-4) + tensor.double().norm(dim=1) * 1e-6).all()

    def test_zeros_stay_zeros_and_single_values_keep_theirs(self) -> None:
        tensor = torch.tensor([[0.0], [3.5], [-0.25]]).repeat(1, 4)
        values, scale = quantize_rows(tensor)
        torch.testing.assert_close(values * scale[:, None], tensor, rtol=1e-6, atol=0)

    def test_clipping_helps_where_one_value_stands_out(self) -> None:
        row = torch.randn(1, 100_000, generator=torch.Generator().manual_seed(0))
        row[0, 0] = 8.0
        scale = quantize_rows(row)[1]
        assert scale < 8.0 / 127 * 0.9

    def test_rows_of_convolutions_are_their_output_channels(self) -> None:
        kernel = torch.randn(8, 4, 3, 3, 3) * torch.logspace(-3, 3, 8).reshape(8, 1, 1, 1, 1)
        values, scale = quantize_rows(kernel)
        error = (values * scale.reshape(8, 1, 1, 1, 1) - kernel).flatten(1).norm(dim=1)
        assert (error < 0.02 * kernel.flatten(1).norm(dim=1)).all()


class TestWriting:
    def test_large_matrices_become_int8_and_the_rest_is_kept(self, tmp_path: Path) -> None:
        state = {
            "matrix": torch.randn(64, 64),
            "half": torch.randn(8, 8, 8, 8, 8).bfloat16(),
            "small": torch.randn(63, 65),
            "long": torch.randn(5000),
            "table": torch.randn(1, 6, 1000),
        }
        errors = write_int8(state, tmp_path / "model.safetensors")
        written = load_file(tmp_path / "model.safetensors")
        assert written.keys() == state.keys() | {"matrix.scale", "half.scale"}
        assert errors.keys() == {"matrix", "half"}
        for name in ("small", "long", "table"):
            assert torch.equal(written[name], state[name])
        for name, error in errors.items():
            values, scale = written[name], written[f"{name}.scale"]
            assert (values.dtype, scale.dtype) == (torch.int8, torch.float32)
            restored = values * scale.reshape(-1, *[1] * (values.ndim - 1))
            difference = (restored - state[name].float()).norm() / state[name].float().norm()
            assert error == pytest.approx(float(difference), rel=1e-4)
            assert 0.001 < error < 0.02
        assert read_metadata(tmp_path / "model.safetensors") == INT8

    @pytest.mark.parametrize(("other", "expected"), [(1.5, torch.bfloat16), (0.1, torch.float32)])
    def test_small_tensors_are_halved_where_no_value_changes(
        self, tmp_path: Path, other: float, expected: torch.dtype
    ) -> None:
        state = {"matrix": torch.randn(64, 64), "bias": torch.randn(50).bfloat16().float(), "b": torch.tensor([other])}
        write_int8(state, tmp_path / "model.safetensors")
        written = load_file(tmp_path / "model.safetensors")
        assert {written[name].dtype for name in ("bias", "b")} == {expected}
        assert all(torch.equal(written[name].float(), state[name]) for name in ("bias", "b"))

    @pytest.mark.parametrize("bad", [float("nan"), float("inf")])
    def test_what_int8_cannot_store_is_refused(self, tmp_path: Path, bad: float) -> None:
        state = {"a.weight": torch.ones(64, 64)}
        state["a.weight"][3, 3] = bad
        with pytest.raises(CheckpointError, match=r"a\.weight holds NaN or infinity"):
            write_int8(state, tmp_path / "model.safetensors")

    def test_files_stay_under_the_limit_and_older_ones_go(self, tmp_path: Path) -> None:
        state = {f"layers.{n}.weight": torch.randn(80, 80) for n in range(9)} | {"bias": torch.randn(80)}
        limit = 20_000
        write_int8(state, tmp_path / "model.safetensors", max_file_bytes=limit)
        files = sorted(path.name for path in tmp_path.glob("*.safetensors"))
        assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
        assert len(files) > 3
        assert all((tmp_path / name).stat().st_size <= limit for name in files)
        index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
        headers = read_headers(tmp_path / name for name in files)
        assert headers.keys() == state.keys()
        assert index["weight_map"].keys() == state.keys() | {f"layers.{n}.weight.scale" for n in range(9)}
        assert index["metadata"]["total_size"] == sum(stored.num_bytes for stored in headers.values())
        write_int8(state, tmp_path / "model.safetensors")
        assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]

    def test_a_folder_with_something_in_it_is_misuse(self, made: WanS2VPipeline, tmp_path: Path) -> None:
        (tmp_path / "notes.txt").write_text("mine")
        with pytest.raises(UsageError, match="not an empty folder"):
            write_small_checkpoint(made, tmp_path, report=nothing)
        assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]

    def test_sizes_and_errors_are_reported(self, made: WanS2VPipeline, tmp_path: Path) -> None:
        lines: list[str] = []
        total = write_small_checkpoint(made, tmp_path, report=lines.append)
        assert total == sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
        assert [line.split(":")[0] for line in lines] == [*MODELS, "total"]
        assert lines[-1] == f"total: {total / 1e6:.2f} MB"


class TestRoundTrip:
    def test_every_weight_comes_back_within_the_stated_error(self, made: WanS2VPipeline, written_once: Path) -> None:
        loaded = WanS2VPipeline.from_pretrained(written_once, torch_dtype=torch.float32)
        quantized = 0
        for name, model in find_checkpoint(written_once).models.items():
            expected, state = getattr(made, name).state_dict(), getattr(loaded, name).state_dict()
            for key, stored in model.tensors.items():
                if stored.scale is None:
                    assert torch.equal(state[key], expected[key]), f"{name}: {key}"
                    continue
                error = (state[key] - expected[key]).norm() / expected[key].norm()
                assert LEAST_ERROR < error < 0.02, f"{name}: {key}"
                quantized += 1
        assert quantized > 15
        kinds = stored_kinds(written_once)
        assert all("I8" in kinds[name] for name in ("transformer", "transformer_2", "vae", "text_encoder"))

    def test_configs_and_settings_come_back(self, made: WanS2VPipeline, written_once: Path, tmp_path: Path) -> None:
        made.save_pretrained(tmp_path)
        index = (tmp_path / "model_index.json").read_text()
        assert (written_once / "model_index.json").read_text() == index
        loaded = WanS2VPipeline.from_pretrained(written_once)
        assert loaded.config.boundary_ratio == 0.9
        assert loaded.config.sampling_defaults == {"num_inference_steps": 4, "flow_shift": 3.0}
        assert loaded.spec.num_inference_steps == 4
        assert loaded.transformer.motion_packer.buckets == (1, 2)
        assert loaded.vae.config.latents_mean == [0.1] * 48
        assert loaded.tokenizer("hello").input_ids == made.tokenizer("hello").input_ids

    def test_bfloat16_is_the_dtype_that_such_a_checkpoint_computes_in(self, written_once: Path) -> None:
        assert find_checkpoint(written_once).models["vae"].dtype == torch.bfloat16
        loaded = WanS2VPipeline.from_pretrained(written_once)
        assert loaded.transformer.dtype == loaded.transformer_2.dtype == torch.bfloat16
        assert loaded.text_encoder.dtype == torch.bfloat16
        assert loaded.vae.dtype == torch.bfloat16
        assert loaded.audio_encoder.dtype == torch.float32

    def test_a_video_is_made_and_close_to_that_of_the_exact_weights(
        self, made: WanS2VPipeline, written_once: Path
    ) -> None:
        loaded = WanS2VPipeline.from_pretrained(written_once, torch_dtype=torch.float32)
        loaded.set_progress_bar_config(disable=True)
        options = {"height": 128, "width": 128, "num_frames": 8, "seed": 3, "prompt": "a person is singing"}
        exact, stored = (
            pipeline(MEDIA / "talk_2s.wav", MEDIA / "person_small.png", num_inference_steps=4, **options).frames
            for pipeline in (made, loaded)
        )
        assert stored.shape == (8, 128, 128, 3)
        difference = np.abs(stored.astype(int) - exact.astype(int)).mean()
        assert 0 < difference < 0.1 * exact.std()

    def test_shards_hold_the_same_values(self, made: WanS2VPipeline, written_once: Path, tmp_path: Path) -> None:
        write_small_checkpoint(made, tmp_path, max_file_bytes=60_000, report=nothing)
        assert len(list((tmp_path / "transformer").glob("*.safetensors"))) > 1
        left, right = (
            load_components(find_checkpoint(place), torch_dtype=torch.float32) for place in (written_once, tmp_path)
        )
        for name in MODELS:
            expected = right[name].state_dict()
            assert all(torch.equal(value, expected[key]) for key, value in left[name].state_dict().items()), name

    def test_a_weight_normed_speech_encoder_comes_back(self, tmp_path: Path) -> None:
        config = Wav2Vec2Config(
            hidden_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=64,
            conv_dim=(32,) * 7,
            num_conv_pos_embeddings=32,
            num_conv_pos_embedding_groups=8,
            feat_extract_norm="layer",
            do_stable_layer_norm=True,
        )
        torch.manual_seed(0)
        speech = Wav2Vec2Model(config).eval()
        config.save_pretrained(tmp_path)
        errors = write_int8(speech.state_dict(), tmp_path / "model.safetensors")
        assert "encoder.pos_conv_embed.conv.parametrizations.weight.original1" in errors
        loaded = load_model(read_audio_encoder(tmp_path), torch.float32, torch.device("cpu"))
        waveform = torch.randn(1, 8000, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            expected, actual = (model(waveform).last_hidden_state for model in (speech, loaded))
        assert 0 < (actual - expected).norm() / expected.norm() < 0.05

    def test_float16_scales_are_read(self, folder: Path) -> None:
        def halve(tensors: dict[str, torch.Tensor]) -> None:
            tensors[f"{KERNEL}.scale"] = tensors[f"{KERNEL}.scale"].half()

        edit(folder / TRANSFORMER, halve)
        stored = load_file(folder / TRANSFORMER)
        expected = stored[KERNEL] * stored[f"{KERNEL}.scale"].float().reshape(-1, 1, 1, 1, 1)
        loaded = load_components(find_checkpoint(folder), torch_dtype=torch.float32)["transformer"]
        assert torch.equal(loaded.state_dict()[KERNEL], expected)

    def test_bytes_are_those_of_the_files_and_progress_reaches_them(self, written_once: Path) -> None:
        checkpoint = find_checkpoint(written_once)
        last: dict[str, tuple[int, int]] = {}
        load_components(
            checkpoint,
            torch_dtype=torch.bfloat16,
            progress=lambda name, done, total: last.update({name: (done, total)}),
        )
        for name, model in checkpoint.models.items():
            assert last[name] == (model.total_bytes, model.total_bytes)
        with safe_open(written_once / TRANSFORMER, "pt") as opened:
            stored = sum(opened.get_tensor(key).nbytes for key in opened.keys())  # noqa: SIM118 - not a dict
        assert checkpoint.models["transformer"].total_bytes == stored

    def test_fingerprints_tell_checkpoints_apart(self, folder: Path) -> None:
        first = fingerprint(find_checkpoint(folder))
        edit(folder / TRANSFORMER, lambda tensors: [t.neg_() for t in tensors.values() if t.dtype == torch.int8])
        changed = fingerprint(find_checkpoint(folder))
        assert {name for name in first if first[name] != changed[name]} == {"transformer"}


class TestErrors:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda t: t.pop(f"{KERNEL}.scale"), rf"{KERNEL} is stored as int8, but its scale {KERNEL}.scale is not"),
            (lambda t: t.update({f"{KERNEL}.scale": torch.ones(23)}), r"scale is F32 of shape \(23,\).*\(24,\)"),
            (lambda t: t.update({f"{KERNEL}.scale": torch.ones(24, 1)}), r"scale is F32 of shape \(24, 1\).*\(24,\)"),
            (lambda t: t.update({f"{KERNEL}.scale": torch.ones(24).bfloat16()}), r"needs F32 or F16 of shape \(24,\)"),
            (lambda t: t.update({KERNEL: t[KERNEL][:, :40].clone()}), r"has shape \(24, 40, 2, 4, 4\) instead of"),
            (lambda t: t.update({"proj_out.bias.scale": torch.ones(192)}), "1 weights that this model does not have"),
            (lambda t: t.update({"proj_out.bias": torch.zeros(192, dtype=torch.uint8)}), r"quantized weights \(U8"),
        ],
    )
    def test_what_does_not_fit_is_named(
        self, folder: Path, change: Callable[[dict[str, torch.Tensor]], Any], message: str
    ) -> None:
        edit(folder / TRANSFORMER, change)
        with pytest.raises(CheckpointError, match=message):
            find_checkpoint(folder)

    @pytest.mark.parametrize("metadata", [{"format": "pt"}, {"format": "pt", "storage": "int4-groups"}])
    def test_int8_of_another_kind_is_refused(self, folder: Path, metadata: dict[str, str]) -> None:
        edit(folder / TRANSFORMER, lambda tensors: None, metadata)
        with pytest.raises(CheckpointError, match=r"quantized weights \(I8, first: .*storage=int8-rows"):
            find_checkpoint(folder)

    def test_a_missing_shard_is_named(self, made: WanS2VPipeline, tmp_path: Path) -> None:
        write_small_checkpoint(made, tmp_path, max_file_bytes=60_000, report=nothing)
        next((tmp_path / "transformer").glob("*-00002-of-*")).unlink()
        with pytest.raises(CheckpointError, match="missing: transformer/diffusion_pytorch_model-00002"):
            find_checkpoint(tmp_path)

    @pytest.mark.parametrize("buckets", [[], [0], [1, 1], [1, 2, 16, 64], "12", [1.5]])
    def test_a_motion_memory_that_cannot_be_packed_is_named(self, folder: Path, buckets: Any) -> None:
        path = folder / "transformer" / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"motion_buckets": buckets}))
        with pytest.raises(CheckpointError, match="motion_buckets="):
            find_checkpoint(folder)

    def test_a_motion_memory_of_another_length_than_the_weights_is_named(self, folder: Path) -> None:
        path = folder / "transformer" / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"motion_buckets": [1, 2, 16]}))
        with pytest.raises(CheckpointError, match=r"lacks 2 weights, first: motion_packer\.proj_4x"):
            find_checkpoint(folder)


class TestConverting:
    @staticmethod
    def values(folder: Path) -> dict[str, torch.Tensor]:
        """Every value that loading would see, by model and name."""
        found = {}
        for name, model in find_checkpoint(folder).models.items():
            names = {(item.file, item.name): ours for ours, item in model.tensors.items()}
            for item, tensor in iterate_tensors(model.tensors.values()):
                found[f"{name}/{names[item.file, item.name]}"] = tensor
        return found

    def test_both_layouts_hold_the_expanded_values(self, tmp_path: Path) -> None:
        pipeline = random_pipeline(two_experts=True)
        write_small_checkpoint(pipeline, tmp_path / "small", max_file_bytes=100_000, report=nothing)
        assert "I8" in stored_kinds(tmp_path / "small")["transformer"]
        expected = self.values(tmp_path / "small")
        for layout in ("diffusers", "official"):
            target = convert(tmp_path / "small", tmp_path / layout, layout=layout, max_shard_bytes=400_000)
            assert set().union(*stored_kinds(target).values()) == {"F32"}
            written = self.values(target)
            assert written.keys() == expected.keys()
            assert all(torch.equal(value, expected[key]) for key, value in written.items()), layout
            sizes = [path.stat().st_size for path in target.rglob("diffusion_pytorch_model-*.safetensors")]
            assert len(sizes) >= 4
            assert max(sizes) < 420_000

    def test_the_transformers_get_the_dtype_asked_for(self, folder: Path, tmp_path: Path) -> None:
        target = convert(folder, tmp_path / "half", layout="diffusers", torch_dtype=torch.float16)
        kinds = stored_kinds(target)
        assert kinds["transformer"] == kinds["transformer_2"] == {"F16"}
        assert kinds["vae"] == kinds["text_encoder"] == {"F32"}

    def test_transformers_reads_the_expanded_speech_encoder(self, tmp_path: Path) -> None:
        pipeline = random_pipeline()
        write_small_checkpoint(pipeline, tmp_path / "small", report=nothing)
        file = tmp_path / "small" / "audio_encoder" / "model.safetensors"
        name = "encoder.layers.0.attention.q_proj.weight"  # too small for int8 by itself
        values, scale = quantize_rows(load_file(file)[name])
        edit(file, lambda tensors: tensors.update({name: values, f"{name}.scale": scale}))
        target = convert(tmp_path / "small", tmp_path / "official", layout="official")
        speech = Wav2Vec2Model.from_pretrained(target / "wav2vec2-large-xlsr-53-english")
        assert torch.equal(speech.state_dict()[name], values * scale[:, None])
