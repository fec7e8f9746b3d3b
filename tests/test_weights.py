"""Finding and loading checkpoints in every layout: each value lands where it belongs, in the dtype it needs."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import random_text_encoder, write_official_s2v
from conftest import GOLDENS, load_golden
from safetensors.torch import load_file, save_file
from transformers import Wav2Vec2Model

from wan_s2v.errors import CheckpointError, UsageError
from wan_s2v.weights import find_checkpoint, fingerprint, load_components, load_model, places
from wan_s2v.weights.checkpoint import build_on_meta, read_audio_encoder, read_text_encoder
from wan_s2v.weights.names import inverse, rename, text_encoder_names, transformer_names

SHARD = "diffusion_pytorch_model-00002-of-00002.safetensors"
INDEX = "diffusion_pytorch_model.safetensors.index.json"
SPEECH = "wav2vec2-large-xlsr-53-english"
T5 = "models_t5_umt5-xxl-enc-bf16.pth"
ONLY_TRANSFORMER = frozenset({"vae", "text_encoder", "tokenizer", "audio_encoder", "audio_processor"})


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


class TestComplete:
    def test_every_model_of_an_official_folder_is_loaded(self, folder: Path) -> None:
        checkpoint = find_checkpoint(folder)
        assert (checkpoint.layout, checkpoint.kind) == ("official", "s2v")
        assert checkpoint.boundary_ratio is checkpoint.sampling_defaults is None
        components = load_components(checkpoint, torch_dtype=torch.float32)
        classes = {name: type(value).__name__ for name, value in components.items()}
        assert classes["transformer"] == "WanS2VTransformer"
        assert classes["vae"] == "AutoencoderKLWan"
        assert classes["text_encoder"] == "UMT5EncoderModel"
        assert classes["audio_encoder"] == "Wav2Vec2Model"
        assert classes["audio_processor"] == "Wav2Vec2FeatureExtractor"
        assert components["transformer_2"] is None
        assert components["boundary_ratio"] is None
        assert components["text_encoder"].config._attn_implementation == "eager"
        assert not any(c.training for c in components.values() if isinstance(c, torch.nn.Module))

    def test_every_transformer_value_is_the_stored_one(self, folder: Path) -> None:
        transformer = load_components(find_checkpoint(folder), torch_dtype=torch.float32)["transformer"]
        golden, _ = load_golden("s2v_pipe.weights")
        loaded = transformer.state_dict()
        names = transformer_names(transformer.config)
        assert len(loaded) == len(golden) == 141
        assert all(torch.equal(loaded[rename(name, names)], value) for name, value in golden.items())

    def test_the_speech_encoder_equals_that_of_transformers(self, folder: Path) -> None:
        loaded = load_components(find_checkpoint(folder), torch_dtype=torch.bfloat16)["audio_encoder"]
        expected = Wav2Vec2Model.from_pretrained(GOLDENS / "wav2vec2_tiny", dtype=torch.float32).eval()
        waveform = torch.randn(1, 4000, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            assert torch.equal(loaded(waveform).last_hidden_state, expected(waveform).last_hidden_state)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    def test_every_model_has_the_dtype_its_numerics_need(self, folder: Path, dtype: torch.dtype) -> None:
        components = load_components(find_checkpoint(folder), torch_dtype=dtype)
        dtypes = {n: {p.dtype for p in c.parameters()} for n, c in components.items() if isinstance(c, torch.nn.Module)}
        assert dtypes == {
            "transformer": {dtype},
            "vae": {torch.float32},
            "text_encoder": {torch.float32 if dtype == torch.float32 else torch.bfloat16},
            "audio_encoder": {torch.float32},
        }

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    def test_the_stored_dtype_is_known_before_loading(self, tmp_path: Path, dtype: torch.dtype) -> None:
        models = find_checkpoint(write_official_s2v(tmp_path, dtype=dtype)).models
        assert models["transformer"].dtype == dtype
        assert models["vae"].dtype == torch.float32
        assert models["text_encoder"].dtype == torch.bfloat16

    def test_another_dtype_is_refused(self, folder: Path) -> None:
        with pytest.raises(UsageError, match=r"torch_dtype=torch.int8"):
            load_components(find_checkpoint(folder), torch_dtype=torch.int8)

    def test_the_tokenizer_appends_the_end_token_and_pads(self, folder: Path) -> None:
        tokenizer = load_components(find_checkpoint(folder), torch_dtype=torch.float32)["tokenizer"]
        ids = tokenizer("a person is singing", padding="max_length", max_length=8).input_ids
        assert ids[-4:] == [1, 0, 0, 0]
        assert len(ids) == 8
        assert 2 not in ids

    def test_the_index_may_be_missing_when_all_shards_are_there(self, folder: Path) -> None:
        (folder / INDEX).unlink()
        assert len(find_checkpoint(folder).models["transformer"].tensors) == 141

    def test_progress_ends_at_the_size_of_each_model(self, folder: Path) -> None:
        checkpoint = find_checkpoint(folder)
        calls: dict[str, list[tuple[int, int]]] = {}
        load_components(
            checkpoint, torch_dtype=torch.float32, progress=lambda n, d, t: calls.setdefault(n, []).append((d, t))
        )
        for name, model in checkpoint.models.items():
            done = [d for d, _ in calls[name]]
            assert done == sorted(done)
            assert calls[name][-1] == (model.total_bytes, model.total_bytes)
        assert checkpoint.total_bytes == sum(m.total_bytes for m in checkpoint.models.values())

    def test_skipped_components_may_be_absent(self, tmp_path: Path) -> None:
        folder = write_official_s2v(tmp_path, text=False)
        skip = frozenset({"text_encoder", "tokenizer"})
        components = load_components(find_checkpoint(folder, skip=skip), torch_dtype=torch.float32)
        assert components["text_encoder"] is None
        assert components["tokenizer"] is None
        assert components["vae"] is not None

    def test_the_only_wav2vec2_folder_is_used_whatever_its_name(self, folder: Path) -> None:
        (folder / SPEECH).rename(folder / "speech")
        assert find_checkpoint(folder).audio_processor == folder / "speech"

    def test_speech_weights_from_older_libraries_are_read(self, tmp_path: Path) -> None:
        shutil.copytree(GOLDENS / "wav2vec2_tiny", tmp_path / "speech")
        tensors = load_file(tmp_path / "speech" / "model.safetensors")
        (tmp_path / "speech" / "model.safetensors").unlink()
        old = {n.replace("parametrizations.weight.original0", "weight_g"): t for n, t in tensors.items()}
        old = {n.replace("parametrizations.weight.original1", "weight_v"): t for n, t in old.items()}
        assert old.keys() != tensors.keys()
        torch.save(old, tmp_path / "speech" / "pytorch_model.bin")
        loaded = load_model(read_audio_encoder(tmp_path / "speech"), torch.float32, torch.device("cpu")).state_dict()
        assert all(torch.equal(loaded[n], tensors[f"wav2vec2.{n}"]) for n in loaded)

    def test_fingerprints_depend_on_the_weights_and_not_on_the_place(self, folder: Path, tmp_path: Path) -> None:
        first = fingerprint(find_checkpoint(folder))
        copy = Path(shutil.copytree(folder, tmp_path / "copy"))
        assert fingerprint(find_checkpoint(copy)) == first
        edit_shard(copy, lambda tensors: [tensor.add_(1) for tensor in tensors.values()])
        changed = fingerprint(find_checkpoint(copy))
        assert changed["transformer"] != first["transformer"]
        assert {**changed, "transformer": ""} == {**first, "transformer": ""}


class TestSingleFile:
    @pytest.fixture
    def file(self, folder: Path) -> Path:
        """A transformer file as Comfy-Org's, beside the other models."""
        tensors, metadata = load_golden("s2v_pipe.weights")
        prefixed = {f"model.diffusion_model.{name}": tensor.bfloat16() for name, tensor in tensors.items()}
        for path in folder.glob("diffusion_pytorch_model*"):
            path.unlink()
        (folder / "config.json").unlink()
        file = folder / "wan2.2_s2v_bf16.safetensors"
        save_file(prefixed, file, metadata={"config": metadata["config"]})
        return file

    def test_it_loads_with_the_models_beside_it(self, file: Path) -> None:
        checkpoint = find_checkpoint(file)
        assert checkpoint.layout == "single_file"
        components = load_components(checkpoint, torch_dtype=torch.float32)
        golden, _ = load_golden("s2v_pipe.weights")
        assert torch.equal(components["transformer"].proj_out.weight, golden["head.head.weight"])
        assert components["vae"] is not None

    def test_it_loads_with_models_from_another_folder(self, file: Path, tmp_path: Path) -> None:
        alone = tmp_path / "alone" / file.name
        alone.parent.mkdir()
        file.rename(alone)
        assert find_checkpoint(alone, components=file.parent).models.keys() >= {"transformer", "vae", "text_encoder"}
        with pytest.raises(CheckpointError) as caught:
            find_checkpoint(alone)
        for part in ("VAE", "text encoder", "tokenizer", "speech encoder"):
            assert part in str(caught.value)

    def test_components_must_be_a_folder(self, file: Path) -> None:
        with pytest.raises(UsageError, match="components="):
            find_checkpoint(file, components=file.parent / "nowhere")

    def test_the_vae_is_found_by_its_content(self, file: Path) -> None:
        weights = torch.load(file.parent / "Wan2.1_VAE.pth", weights_only=True)
        (file.parent / "Wan2.1_VAE.pth").unlink()
        (file.parent / "notes.safetensors").write_bytes(b"not weights")
        save_file({n: t.bfloat16() for n, t in weights.items()}, file.parent / "wan_2.1_vae.safetensors")
        vae = load_components(find_checkpoint(file), torch_dtype=torch.bfloat16)["vae"]
        assert vae.dtype == torch.float32

    def test_a_text_encoder_with_the_names_of_transformers_is_read(self, tmp_path: Path) -> None:
        official = random_text_encoder(16)
        names = text_encoder_names({"num_layers": 2})
        tensors = {rename(name, names) or name: tensor for name, tensor in official.items()}
        tensors["spiece_model"] = torch.zeros(10, dtype=torch.uint8)
        save_file(tensors, tmp_path / "umt5_xxl_fp16.safetensors")
        torch.save(official, tmp_path / T5)
        loaded, expected = (
            load_model(read_text_encoder(tmp_path / name), torch.bfloat16, torch.device("cpu")).state_dict()
            for name in ("umt5_xxl_fp16.safetensors", T5)
        )
        assert loaded.keys() == expected.keys()
        assert all(torch.equal(loaded[name], expected[name]) for name in expected)

    def test_without_metadata_the_heads_of_an_odd_width_stay_open(self, file: Path) -> None:
        tensors = load_file(file)
        file.unlink()
        save_file(tensors, file)
        with pytest.raises(CheckpointError, match="num_heads=None does not divide the width 32"):
            find_checkpoint(file)


class TestExperts:
    def test_the_high_noise_model_comes_first(self, tmp_path: Path) -> None:
        folder = write_official_s2v(tmp_path, boundary_ratio=0.9)
        components = load_components(find_checkpoint(folder), torch_dtype=torch.float32)
        golden, _ = load_golden("s2v_pipe.weights")
        assert components["boundary_ratio"] == 0.9
        assert torch.equal(components["transformer"].proj_out.weight, golden["head.head.weight"])
        assert torch.equal(components["transformer_2"].proj_out.weight, golden["head.head.weight"] * 1.5)

    def test_the_boundary_can_be_given(self, tmp_path: Path) -> None:
        folder = write_official_s2v(tmp_path, boundary_ratio=0.9)
        assert find_checkpoint(folder, boundary_ratio=0.8).boundary_ratio == 0.8

    @pytest.mark.parametrize("stated", [None, 0, 1, 875, "0.9"])
    def test_a_boundary_outside_0_to_1_is_an_error(self, tmp_path: Path, stated: object) -> None:
        folder = write_official_s2v(tmp_path, boundary_ratio=0.9)
        edit_config(folder / "high_noise_model", boundary_ratio=stated)
        with pytest.raises(CheckpointError, match="two experts but boundary_ratio is"):
            find_checkpoint(folder)

    def test_a_missing_expert_is_listed(self, tmp_path: Path) -> None:
        folder = write_official_s2v(tmp_path, boundary_ratio=0.9)
        shutil.rmtree(folder / "low_noise_model")
        with pytest.raises(CheckpointError, match=r"low_noise_model/diffusion_pytorch_model.safetensors"):
            find_checkpoint(folder)


class TestPlaces:
    @pytest.mark.parametrize("model", ["./nowhere", "nowhere/model.safetensors", "/a/b/c", "s2v", "a b/c"])
    def test_a_path_that_does_not_exist_is_misuse(self, model: str) -> None:
        with pytest.raises(UsageError, match="does not exist"):
            find_checkpoint(model)

    @pytest.mark.parametrize("model", ["Wan-AI/Wan2.2-S2V-14B", "s2v-14b", "S2V-14B"])
    def test_a_hub_id_that_was_never_fetched_names_the_command(
        self, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
        with pytest.raises(CheckpointError, match=r"wan-s2v download Wan-AI/Wan2.2-S2V-14B"):
            find_checkpoint(model)

    def test_a_folder_named_like_the_repository_is_found(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write_official_s2v(tmp_path / "Wan2.2-S2V-14B")
        monkeypatch.chdir(tmp_path)
        assert find_checkpoint("Wan-AI/Wan2.2-S2V-14B").root == Path("Wan2.2-S2V-14B")

    def test_the_cache_of_the_hub_is_searched_offline(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def cached(repository: str, *, local_files_only: bool, allow_patterns: list[str]) -> str:
            assert repository == "Wan-AI/Wan2.2-S2V-14B"
            assert local_files_only
            return str(folder)

        monkeypatch.setattr("huggingface_hub.snapshot_download", cached)
        assert find_checkpoint("s2v-14b").root == folder

    def test_a_build_without_the_embedded_model_says_so(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(places, "_TINY", tmp_path)
        with pytest.raises(CheckpointError, match="no embedded model"):
            find_checkpoint("tiny")


MEMORY_PROBE = """
import sys, torch
from pathlib import Path
from wan_s2v.weights import find_checkpoint, load_model

def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))

model = find_checkpoint(sys.argv[1], skip=frozenset(sys.argv[2].split(","))).models["transformer"]
for dtype in torch.bfloat16, torch.float16:
    start = peak = anonymous()
    def watch(name, done, total):
        global peak
        peak = max(peak, anonymous())
    loaded = load_model(model, dtype, torch.device("cpu"), watch)
    print((peak - start) / model.total_bytes)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the memory of the process from /proc")
class TestMemory:
    @pytest.fixture(scope="class")
    def large(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        """A transformer of some 200 MB in bf16."""
        folder = tmp_path_factory.mktemp("large")
        config = {"num_heads": 8, "num_layers": 4, "audio_inject_layers": [0, 2], "text_len": 16, "model_type": "s2v"}
        sizes = {"num_attention_heads": 8, "attention_head_dim": 128, "ffn_dim": 4096, "num_layers": 4}
        sizes |= {"audio_inject_layers": (0, 2), "text_dim": 1024}
        shapes = build_on_meta("transformer", sizes).state_dict()
        official = inverse(transformer_names(sizes))
        tensors = {rename(n, official) or n: torch.zeros(t.shape, dtype=torch.bfloat16) for n, t in shapes.items()}
        assert 180e6 < sum(2 * math.prod(t.shape) for t in tensors.values()) < 260e6
        save_file(tensors, folder / "diffusion_pytorch_model.safetensors")
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    def test_loading_never_holds_a_second_copy(self, large: Path) -> None:
        command = [sys.executable, "-c", MEMORY_PROBE, str(large), ",".join(ONLY_TRANSFORMER)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        mapped, converted = (float(line) for line in done.stdout.split())
        assert mapped < 0.1  # the stored dtype stays on disk until it is used
        assert converted < 1.15
