"""Converting rounds nothing, or as little as its format; it works in both directions and never leaves half a result."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from checkpoints import write_official_s2v
from conftest import load_golden
from diffusers import AutoencoderKLWan
from formats import make_transformer, official, predict, write_components
from safetensors.torch import load_file, save_file
from transformers import UMT5EncoderModel, Wav2Vec2Model

from wan_s2v.cli import main
from wan_s2v.errors import CheckpointError, OutputError, UsageError
from wan_s2v.models.transformer import WanS2VTransformer
from wan_s2v.weights import Checkpoint, convert, find_checkpoint, load_components, load_model
from wan_s2v.weights.files import iterate_tensors, read_metadata

CPU = torch.device("cpu")
MODELS = ("transformer", "transformer_2", "vae", "text_encoder", "audio_encoder")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_official_s2v(tmp_path / "source", dtype=torch.bfloat16)


def stored(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint in its stored dtype, by model and our name."""
    tensors = {}
    for name, model in checkpoint.models.items():
        names = {(item.file, item.name): ours for ours, item in model.tensors.items()}
        for item, tensor in iterate_tensors(model.tensors.values()):
            tensors[f"{name}/{names[item.file, item.name]}"] = tensor
    return tensors


def assert_same_weights(left: Path, right: Path) -> None:
    first, second = stored(find_checkpoint(left)), stored(find_checkpoint(right))
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert tensor.dtype == second[name].dtype, name
        assert torch.equal(tensor, second[name]), name


def test_a_diffusers_folder_holds_the_same_weights(source: Path, tmp_path: Path) -> None:
    target = convert(source, tmp_path / "diffusers", layout="diffusers")
    assert find_checkpoint(target).layout == "diffusers"
    assert_same_weights(source, target)


@pytest.mark.parametrize("boundary_ratio", [None, 0.875])
def test_the_round_trip_is_identity(tmp_path: Path, boundary_ratio: float | None) -> None:
    source = write_official_s2v(tmp_path / "source", dtype=torch.bfloat16, boundary_ratio=boundary_ratio)
    there = convert(source, tmp_path / "diffusers", layout="diffusers")
    back = convert(there, tmp_path / "official", layout="official", max_shard_bytes=100_000)
    assert_same_weights(source, back)
    assert find_checkpoint(back).boundary_ratio == find_checkpoint(there).boundary_ratio == boundary_ratio
    for config in source.rglob("config.json"):
        written = json.loads((back / config.relative_to(source)).read_text())
        assert written.items() >= json.loads(config.read_text()).items()
    files = {p.relative_to(source) for p in source.rglob("*") if p.is_file() and "diffusion_pytorch" not in p.name}
    assert files <= {p.relative_to(back) for p in back.rglob("*") if p.is_file()}


def test_the_official_pth_files_are_plain_state_dicts_with_their_own_names(source: Path, tmp_path: Path) -> None:
    there = convert(source, tmp_path / "diffusers", layout="diffusers")
    back = convert(there, tmp_path / "official", layout="official")
    for name in ("Wan2.1_VAE.pth", "models_t5_umt5-xxl-enc-bf16.pth"):
        expected = torch.load(source / name, weights_only=True)
        written = torch.load(back / name, weights_only=True)
        assert written.keys() == expected.keys()
        assert all(torch.equal(written[key], expected[key]) for key in expected)
        assert (back / name).stat().st_size < 1.2 * (source / name).stat().st_size


def test_the_libraries_load_what_is_written(source: Path, tmp_path: Path) -> None:
    target = convert(source, tmp_path / "diffusers", layout="diffusers", max_shard_bytes=200_000)
    ours = load_components(find_checkpoint(target), torch_dtype=torch.float32)
    theirs: dict[str, Any] = {
        "transformer": WanS2VTransformer.from_pretrained(target / "transformer", torch_dtype=torch.float32),
        "vae": AutoencoderKLWan.from_pretrained(target / "vae", torch_dtype=torch.float32),
        "text_encoder": UMT5EncoderModel.from_pretrained(target / "text_encoder", dtype=torch.float32),
        "audio_encoder": Wav2Vec2Model.from_pretrained(target / "audio_encoder", dtype=torch.float32),
    }
    for name, module in theirs.items():
        expected = module.state_dict()
        for key, tensor in ours[name].state_dict().items():
            assert torch.equal(tensor, expected[key]), f"{name}: {key}"


def test_what_the_libraries_save_is_loaded(source: Path, tmp_path: Path) -> None:
    components = load_components(find_checkpoint(source), torch_dtype=torch.bfloat16)
    index: dict[str, Any] = {"_class_name": "WanS2VPipeline", "boundary_ratio": None, "transformer_2": [None, None]}
    for name, component in components.items():
        if hasattr(component, "save_pretrained"):
            component.save_pretrained(tmp_path / "saved" / name)
            index[name] = [type(component).__module__, type(component).__name__]
    (tmp_path / "saved" / "model_index.json").write_text(json.dumps(index))
    again = load_components(find_checkpoint(tmp_path / "saved"), torch_dtype=torch.bfloat16)
    assert {n for n, c in again.items() if c is not None} == {n for n, c in components.items() if c is not None}
    for name in MODELS:
        if components[name] is not None:
            expected = components[name].state_dict()
            assert all(torch.equal(tensor, expected[key]) for key, tensor in again[name].state_dict().items()), name
    assert again["tokenizer"]("the man").input_ids == components["tokenizer"]("the man").input_ids


def test_optional_components_may_be_absent_in_a_diffusers_folder(source: Path, tmp_path: Path) -> None:
    target = convert(source, tmp_path / "diffusers", layout="diffusers")
    index = json.loads((target / "model_index.json").read_text())
    for name in ("text_encoder", "tokenizer"):
        shutil.rmtree(target / name)
        index[name] = [None, None]
    with pytest.raises(CheckpointError, match=r"text_encoder/.*tokenizer/"):
        find_checkpoint(target)
    (target / "model_index.json").write_text(json.dumps(index))
    components = load_components(find_checkpoint(target), torch_dtype=torch.float32)
    assert components["text_encoder"] is None
    assert components["tokenizer"] is None


def test_what_a_model_says_of_its_sampling_survives_both_layouts(source: Path, tmp_path: Path) -> None:
    defaults = {"num_inference_steps": 4, "flow_shift": 5.0}
    (source / "configuration.json").write_text(json.dumps({"task": "speech", "sampling_defaults": defaults}))
    there = convert(source, tmp_path / "diffusers", layout="diffusers")
    back = convert(there, tmp_path / "official", layout="official")
    assert [find_checkpoint(p).sampling_defaults for p in (source, there, back)] == [defaults] * 3


def test_only_the_transformer_changes_its_dtype(source: Path, tmp_path: Path) -> None:
    target = convert(source, tmp_path / "fp16", layout="official", torch_dtype=torch.float16)
    before, after = stored(find_checkpoint(source)), stored(find_checkpoint(target))
    for name, tensor in after.items():
        expected = before[name].to(torch.float16) if name.startswith("transformer/") else before[name]
        assert tensor.dtype == expected.dtype, name
        assert torch.equal(tensor, expected), name


def test_shards_stay_under_the_limit_and_the_index_is_complete(source: Path, tmp_path: Path) -> None:
    limit = 100_000
    target = convert(source, tmp_path / "sharded", layout="official", max_shard_bytes=limit)
    index = json.loads((target / "diffusion_pytorch_model.safetensors.index.json").read_text())
    files = sorted(set(index["weight_map"].values()))
    assert len(files) > 1
    assert files[0] == f"diffusion_pytorch_model-00001-of-{len(files):05d}.safetensors"
    total = 0
    for file in files:
        tensors = load_file(target / file)
        size = sum(tensor.nbytes for tensor in tensors.values())
        assert size <= limit or len(tensors) == 1
        assert {index["weight_map"][name] for name in tensors} == {file}
        total += size
    assert index["metadata"]["total_size"] == total


def test_a_single_file_becomes_an_official_folder(source: Path, tmp_path: Path) -> None:
    tensors, metadata = load_golden("s2v_pipe.weights")
    file = tmp_path / "single.safetensors"
    prefixed = {f"model.diffusion_model.{n}": t.bfloat16() for n, t in tensors.items()}
    save_file(prefixed, file, metadata={"config": metadata["config"]})
    target = convert(find_checkpoint(file, components=source), tmp_path / "official", layout="official")
    assert_same_weights(source, target)


def test_progress_reaches_the_size_of_every_written_model(source: Path, tmp_path: Path) -> None:
    last: dict[str, tuple[int, int]] = {}

    def watch(name: str, done: int, total: int) -> None:
        last[name] = (done, total)

    convert(source, tmp_path / "out", layout="official", progress=watch)
    models = find_checkpoint(source).models
    copied = {"audio_encoder"}
    assert last == {n: (m.total_bytes, m.total_bytes) for n, m in models.items() if n not in copied}


def test_nothing_is_left_when_it_fails(source: Path, tmp_path: Path) -> None:
    def interrupt(name: str, done: int, total: int) -> None:
        if name == "vae":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(source, tmp_path / "out" / "target", layout="diffusers", progress=interrupt)
    assert list((tmp_path / "out").iterdir()) == []


def test_an_existing_target_is_not_touched(source: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="exists already"):
        convert(source, source, layout="diffusers")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UsageError, match="exists already"):
        convert(source, tmp_path / "file", layout="diffusers")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("options", [{"layout": "gguf"}, {"layout": "official", "torch_dtype": torch.int8}])
def test_other_values_are_misuse(source: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="is not accepted"):
        convert(source, tmp_path / "out", **options)


def test_no_space_is_said_before_writing(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 1000))
    with pytest.raises(OutputError, match="GiB free"):
        convert(source, tmp_path / "out" / "target", layout="official")
    assert list((tmp_path / "out").iterdir()) == []


def test_latent_statistics_that_the_official_layout_cannot_hold_are_refused(source: Path, tmp_path: Path) -> None:
    target = convert(source, tmp_path / "diffusers", layout="diffusers")
    path = target / "vae" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"latents_mean": [0.0] * 16}))
    with pytest.raises(UsageError, match="latents_mean cannot be stated in the official layout"):
        convert(target, tmp_path / "official", layout="official")
    assert not (tmp_path / "official").exists()


ALONE = frozenset({"vae", "text_encoder", "tokenizer", "audio_encoder", "audio_processor"})
LOSS = {  # of a value, relative to the largest of the numbers that share its scale: half a step of the format
    "fp8": 2**-4,
    "gguf-q8_0": 0.5 / 127,
}


class TestQuantization:
    @pytest.fixture(scope="class")
    def source(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        tensors, metadata = official(make_transformer())
        file = tmp_path_factory.mktemp("source") / "s2v.safetensors"
        save_file({name: value.bfloat16() for name, value in tensors.items()}, file, metadata=metadata)
        return file

    @pytest.mark.parametrize(("form", "suffix"), [("fp8", ".safetensors"), ("gguf-q8_0", ".gguf")])
    def test_every_value_comes_back_within_half_a_step(
        self, source: Path, tmp_path: Path, form: Any, suffix: str
    ) -> None:
        exact = load_file(source)
        target = convert(source, tmp_path / f"small{suffix}", quantization=form)
        found = find_checkpoint(target, skip=ALONE)
        assert found.models["transformer"].config == find_checkpoint(source, skip=ALONE).models["transformer"].config
        changed = 0
        for item, tensor in iterate_tensors(found.models["transformer"].tensors.values()):
            values = exact[item.name].float()
            if not item.is_packed:
                assert torch.equal(tensor.float(), values), item.name
                continue
            changed += 1
            groups = values if form == "fp8" else values.reshape(-1, 32)
            largest = values.abs() if form == "fp8" else groups.abs().amax(1, keepdim=True)
            smallest = values.abs().max() / 448 / 2**9 if form == "fp8" else largest / 1000  # float16 scales
            assert ((tensor.reshape(groups.shape) - groups).abs() <= largest * LOSS[form] + smallest).all(), item.name
        assert changed >= 2 * 10 + 4  # blocks and injector
        before = load_model(find_checkpoint(source, skip=ALONE).models["transformer"], torch.float32, CPU)
        after = load_model(found.models["transformer"], torch.float32, CPU)
        made, expected = predict(after).flatten(), predict(before).flatten()
        assert torch.nn.functional.cosine_similarity(made, expected, dim=0) > 0.999

    def test_float8_has_the_names_of_comfy_org(self, source: Path, tmp_path: Path) -> None:
        made = load_file(convert(source, tmp_path / "s2v_fp8_scaled.safetensors", quantization="fp8"))
        exact = load_file(source)
        scales = {name for name in made if name.endswith(".scale_weight")}
        assert made.keys() == exact.keys() | scales | {"scaled_fp8"}
        assert made["scaled_fp8"].shape == (2,)
        assert "blocks.1.ffn.2.scale_weight" in scales
        for name in scales:
            weight = name.replace("scale_weight", "weight")
            assert (made[name].shape, made[name].dtype) == ((), torch.float32)
            assert made[weight].dtype == torch.float8_e4m3fn
            assert made[weight].float().abs().max() == 448
        assert made["head.head.weight"].dtype == made["time_projection.1.weight"].dtype == torch.bfloat16

    def test_gguf_is_read_by_its_own_package(self, source: Path, tmp_path: Path) -> None:
        reader = gguf.GGUFReader(convert(source, tmp_path / "s2v-Q8_0.gguf", quantization="gguf-q8_0"))
        assert reader.get_field("general.architecture").contents() == "wan"
        exact = load_file(source)
        assert {tensor.name for tensor in reader.tensors} == exact.keys()
        kinds = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
        assert kinds["blocks.0.self_attn.q.weight"] == kinds["text_embedding.0.weight"] == "Q8_0"
        sensitive = ("time_embedding.0.weight", "head.head.weight", "blocks.0.modulation", "cond_encoder.weight")
        assert {kinds[name] for name in sensitive} == {"F32"}

    def test_a_second_time_float8_changes_nothing(self, source: Path, tmp_path: Path) -> None:
        once = load_file(convert(source, tmp_path / "once.safetensors", quantization="fp8"))
        twice = load_file(convert(tmp_path / "once.safetensors", tmp_path / "twice.safetensors", quantization="fp8"))
        assert once.keys() == twice.keys()
        assert all(torch.equal(once[name].float(), twice[name].float()) for name in once)

    def test_int8_is_a_folder_whose_small_models_keep_their_values(self, tmp_path: Path) -> None:
        source = write_official_s2v(tmp_path / "source", dtype=torch.bfloat16)
        target = convert(source, tmp_path / "int8", quantization="int8")
        before, after = find_checkpoint(source), find_checkpoint(target)
        assert after.layout == "diffusers"
        assert {name: model.storage for name, model in after.models.items()} == {
            "transformer": "I8",
            "text_encoder": "BF16",  # of this size, no matrix is large enough
            "vae": "F32",
            "audio_encoder": "F32",
        }
        exact, made = stored(before), stored(after)
        assert exact.keys() == made.keys()
        for name, tensor in exact.items():
            if name.startswith(("vae/", "audio_encoder/")):
                assert torch.equal(made[name], tensor), name
            else:
                assert (made[name].float() - tensor.float()).norm() <= 0.01 * tensor.float().norm(), name

    def test_single_files_become_a_folder_that_the_libraries_read(self, source: Path, tmp_path: Path) -> None:
        components = write_components(tmp_path / "comfyui")
        checkpoint = find_checkpoint(source, components=components)
        target = convert(checkpoint, tmp_path / "diffusers", layout="diffusers")
        exact, made = stored(checkpoint), stored(find_checkpoint(target))
        assert exact.keys() == made.keys()
        assert all(torch.equal(made[name], tensor) for name, tensor in exact.items())
        again = load_components(find_checkpoint(target), torch_dtype=torch.float32)
        assert len(again["tokenizer"]) > 30
        assert again["audio_processor"].do_normalize
        UMT5EncoderModel.from_pretrained(target / "text_encoder")
        Wav2Vec2Model.from_pretrained(target / "audio_encoder")

    def test_experts_do_not_fit_into_one_file(self, tmp_path: Path) -> None:
        source = write_official_s2v(tmp_path / "source", boundary_ratio=0.9)
        with pytest.raises(UsageError, match=r"has two transformers.*int8"):
            convert(source, tmp_path / "one.gguf", quantization="gguf-q8_0")

    def test_a_weight_that_is_not_finite_is_named_and_nothing_is_left(self, source: Path, tmp_path: Path) -> None:
        tensors = load_file(source)
        tensors["blocks.1.ffn.0.weight"][0, 0] = float("nan")
        save_file(tensors, tmp_path / "bad.safetensors", metadata=read_metadata(source))
        with pytest.raises(CheckpointError, match=r"blocks.1.ffn.0.weight holds NaN"):
            convert(tmp_path / "bad.safetensors", tmp_path / "out" / "fp8.safetensors", quantization="fp8")
        assert list((tmp_path / "out").iterdir()) == []

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({}, r"layout=None is not accepted with quantization=None. Use 'official' or 'diffusers'"),
            ({"quantization": "int4"}, r"quantization='int4' is not accepted. Use 'fp8', 'int8' or 'gguf-q8_0'"),
            ({"quantization": "fp8"}, r"Call it \*.safetensors"),
            ({"quantization": "fp8", "layout": "official"}, r"layout='official' is not accepted .* Use none"),
            ({"quantization": "int8", "layout": "official"}, r"Use none or 'diffusers'"),
            ({"quantization": "int8", "torch_dtype": torch.float16}, r"torch_dtype=torch.float16 is not accepted"),
        ],
    )
    def test_values_that_do_not_go_together_are_misuse(
        self, source: Path, tmp_path: Path, options: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(UsageError, match=message):
            convert(source, tmp_path / "target", **options)

    def test_the_command_line_takes_the_same_words(
        self, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        target = tmp_path / "s2v-Q8_0.gguf"
        assert main(["convert", str(source), str(target), "--quantization", "gguf-q8_0", "--quiet", "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == {"status": "done", "path": str(target)}
        assert find_checkpoint(target, skip=ALONE).models["transformer"].storage == "Q8_0"
        assert main(["convert", str(source), str(tmp_path / "none")]) == 2
