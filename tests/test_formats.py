"""Single files of other programs: every value read is the one that the file stands for, and stays as small as it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import MEDIA
from formats import (
    expanded,
    make_transformer,
    official,
    plain_copy,
    predict,
    scaled_float8,
    speech_encoder,
    text_encoder,
    text_encoder_tensors,
    write_components,
)
from safetensors.torch import load_file, save_file
from sentencepiece import SentencePieceProcessor
from torch import Tensor
from transformers import T5Config, T5EncoderModel

from wan_s2v import WanS2VPipeline
from wan_s2v.commands.doctor import examine
from wan_s2v.commands.request import model_sizes
from wan_s2v.errors import CheckpointError, UsageError
from wan_s2v.models.transformer import WanS2VTransformer
from wan_s2v.ops.eight_bit import FLOAT8
from wan_s2v.runtime.memory import weight_bytes
from wan_s2v.runtime.packed import ScaledLinear
from wan_s2v.runtime.quantization import EightBitLinear, is_quantized, quantize
from wan_s2v.weights import Checkpoint, find_checkpoint, load_components, load_model
from wan_s2v.weights.checkpoint import read_text_encoder

CPU = torch.device("cpu")
ALONE = frozenset({"vae", "text_encoder", "tokenizer", "audio_encoder", "audio_processor"})
COMFY_MARKER = {"scaled_fp8": torch.zeros(2, dtype=FLOAT8)}
COMFY_NOTE = torch.tensor(list(b'{"format": "float8_e4m3fn"}'), dtype=torch.uint8)


@pytest.fixture(scope="module")
def model() -> WanS2VTransformer:
    return make_transformer()


@pytest.fixture(scope="module")
def components(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_components(tmp_path_factory.mktemp("models") / "comfyui")


def write(model: WanS2VTransformer, file: Path, tensors: dict[str, Tensor], prefix: str = "") -> Path:
    save_file({prefix + name: value for name, value in tensors.items()}, file, metadata=official(model)[1])
    return file


def load(file: Path, dtype: torch.dtype = torch.float32) -> WanS2VTransformer:
    loaded = load_model(find_checkpoint(file, skip=ALONE).models["transformer"], dtype, CPU)
    assert isinstance(loaded, WanS2VTransformer)
    return loaded


class TestScaledFloat8:
    @pytest.mark.parametrize(
        ("prefix", "suffix", "shape", "extra"),
        [
            ("", "scale_weight", (), COMFY_MARKER | {"blocks.0.ffn.0.scale_input": torch.ones(())}),  # Comfy-Org
            ("", "scale_weight", (1,), COMFY_MARKER),  # Kijai
            ("model.diffusion_model.", "scale_weight", (), COMFY_MARKER),
            (
                "model.diffusion_model.",
                "weight_scale",
                (),
                {"blocks.0.ffn.0.comfy_quant": COMFY_NOTE, "blocks.0.ffn.0.input_scale": torch.ones(())},
            ),
        ],
    )
    def test_every_published_spelling_gives_the_values_that_it_stands_for(
        self,
        model: WanS2VTransformer,
        tmp_path: Path,
        prefix: str,
        suffix: str,
        shape: tuple[int, ...],
        extra: dict[str, Tensor],
    ) -> None:
        tensors = scaled_float8(official(model)[0], suffix=suffix, shape=shape)
        loaded = load(write(model, tmp_path / "s2v.safetensors", tensors | extra, prefix))
        plain = plain_copy(model, expanded(tensors, suffix))
        assert torch.equal(predict(loaded), predict(plain))
        assert torch.nn.functional.cosine_similarity(predict(loaded).flatten(), predict(model).flatten(), dim=0) > 0.999

    def test_matrices_stay_as_they_are_stored_and_all_else_has_the_dtype_asked_for(
        self, model: WanS2VTransformer, tmp_path: Path
    ) -> None:
        tensors = scaled_float8(official(model)[0])
        loaded = load(write(model, tmp_path / "s2v.safetensors", tensors), torch.bfloat16)
        packed = {name: layer for name, layer in loaded.named_modules() if isinstance(layer, ScaledLinear)}
        blocks = [f"blocks.{n}.{part}" for n in range(2) for part in ("attn1.to_k", "attn2.to_v", "ffn.net.0.proj")]
        assert {*blocks, "audio_injector.attentions.0.to_out.0"} <= packed.keys()
        assert len(packed) == sum(value.dtype == FLOAT8 for value in tensors.values())
        stored = tensors["blocks.1.self_attn.q.weight"]
        assert torch.equal(packed["blocks.1.attn1.to_q"].values.view(torch.uint8), stored.view(torch.uint8))
        assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}
        assert packed["blocks.1.attn1.to_q"].weight.dtype == torch.bfloat16

    def test_moving_to_another_dtype_changes_no_stored_value(self, model: WanS2VTransformer, tmp_path: Path) -> None:
        loaded = load(write(model, tmp_path / "s2v.safetensors", scaled_float8(official(model)[0], rows=True)))
        layer = loaded.blocks[0].attn1.to_q
        exact, scale = layer.weight, layer.scale.clone()
        loaded.to(torch.bfloat16)
        assert layer.input_dtype == layer.weight.dtype == layer.bias.dtype == torch.bfloat16
        assert torch.equal(layer.weight, exact.bfloat16())
        assert torch.equal(loaded.float().blocks[0].attn1.to_q.weight, exact)
        assert torch.equal(layer.scale, scale)

    def test_computing_in_float8_rounds_no_weight_again(self, model: WanS2VTransformer, tmp_path: Path) -> None:
        tensors = scaled_float8(official(model)[0])
        loaded = load(write(model, tmp_path / "s2v.safetensors", tensors))
        held = predict(loaded)
        quantize(loaded, FLOAT8)
        assert is_quantized(loaded)
        layer = loaded.blocks[1].ffn.net[0].proj
        assert isinstance(layer, EightBitLinear)
        stored = tensors["blocks.1.ffn.0.weight"]
        assert torch.equal(layer.weight.view(torch.uint8), stored.view(torch.uint8))
        scale = tensors["blocks.1.ffn.0.scale_weight"]
        assert layer.weight_scale.shape == (stored.shape[0], 1)
        assert (layer.weight_scale == scale).all()
        rounded = predict(loaded)  # of the tokens only
        assert torch.nn.functional.cosine_similarity(rounded.flatten(), held.flatten(), dim=0) > 0.999

    @pytest.mark.parametrize("options", [{"rows": True}, {"dtype": torch.float8_e5m2}])
    def test_row_scales_and_e5m2_are_read(
        self, model: WanS2VTransformer, tmp_path: Path, options: dict[str, Any]
    ) -> None:
        tensors = scaled_float8(official(model)[0], **options)
        loaded = load(write(model, tmp_path / "s2v.safetensors", tensors))
        assert torch.equal(predict(loaded), predict(plain_copy(model, expanded(tensors))))
        quantize(loaded, FLOAT8)  # e5m2 cannot be taken as it is
        assert torch.isfinite(predict(loaded)).all()

    def test_float8_without_any_scale_is_the_value_itself(self, model: WanS2VTransformer, tmp_path: Path) -> None:
        tensors, _ = official(model)
        name = "blocks.0.self_attn.q.weight"
        tensors[name] = tensors[name].to(FLOAT8)
        loaded = load(write(model, tmp_path / "s2v.safetensors", tensors))
        assert torch.equal(loaded.blocks[0].attn1.to_q.weight, tensors[name].float())

    def test_convolutions_and_tables_in_float8_are_expanded(self, model: WanS2VTransformer, tmp_path: Path) -> None:
        tensors, _ = official(model)
        kernel = "casual_audio_encoder.encoder.conv2.conv"
        tensors[f"{kernel}.weight"] = (tensors[f"{kernel}.weight"] * 100).to(FLOAT8)
        tensors[f"{kernel}.scale_weight"] = torch.tensor(0.01)
        loaded = load(write(model, tmp_path / "s2v.safetensors", tensors))
        assert torch.equal(loaded.audio_encoder.conv2.weight, tensors[f"{kernel}.weight"].float() * 0.01)

    def test_sizes_and_dtype_are_known_before_loading(self, model: WanS2VTransformer, tmp_path: Path) -> None:
        tensors = scaled_float8(official(model)[0])
        found = find_checkpoint(write(model, tmp_path / "s2v.safetensors", tensors), skip=ALONE).models["transformer"]
        assert found.total_bytes == sum(value.nbytes for value in tensors.values())
        assert (found.dtype, found.storage) == (torch.bfloat16, "F8_E4M3")


class TestRefused:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (
                lambda t: t.update({"cond_encoder.weight": t["cond_encoder.weight"].to(FLOAT8)}),
                r"pose layer \(cond_encoder.weight\) is float8 without a scale.*issues/1137.*Fetch the file again",
            ),
            (lambda t: t.pop("blocks.1.ffn.0.scale_weight"), r"blocks.1.ffn.0.weight is float8 without a scale, which"),
            (
                lambda t: t.update({"blocks.0.ffn.0.scale_weight": torch.ones(64, 2, 1)}),
                r"scale_weight is F32 of shape \(64, 2, 1\); .*needs F32 or F16 or BF16 of shape \(\) or \(1,\)",
            ),
            (
                lambda t: t.update({"blocks.0.ffn.0.weight": torch.zeros(64, 32, dtype=torch.int8)}),
                r"quantized weights \(I8, first: blocks.0.ffn.0.weight\).*Q4_K",
            ),
            (
                lambda t: t.update({"blocks.0.ffn.0.weight_scale_2": torch.ones(())}),
                r"\(another scale, first: blocks.0",
            ),
        ],
    )
    def test_what_would_be_misread_is_explained(
        self, model: WanS2VTransformer, tmp_path: Path, change: Callable[[dict[str, Tensor]], Any], message: str
    ) -> None:
        tensors = scaled_float8(official(model)[0])
        change(tensors)
        with pytest.raises(CheckpointError, match=message):
            find_checkpoint(write(model, tmp_path / "s2v.safetensors", tensors | COMFY_MARKER), skip=ALONE)


class TestComponents:
    @pytest.fixture(scope="class")
    def file(self, model: WanS2VTransformer, tmp_path_factory: pytest.TempPathFactory) -> Path:
        return write(model, tmp_path_factory.mktemp("s2v") / "s2v.safetensors", scaled_float8(official(model)[0]))

    @pytest.fixture(scope="class")
    def checkpoint(self, file: Path, components: Path) -> Checkpoint:
        return find_checkpoint(file, components=components)

    @pytest.fixture(scope="class")
    def loaded(self, checkpoint: Checkpoint) -> dict[str, Any]:
        return load_components(checkpoint, torch_dtype=torch.float32)

    def test_the_folders_of_comfyui_are_searched(self, checkpoint: Checkpoint) -> None:
        assert {name: model.files[0].name for name, model in checkpoint.models.items()} == {
            "transformer": "s2v.safetensors",
            "vae": "wan_2.1_vae.safetensors",
            "text_encoder": "umt5_xxl_fp8_e4m3fn_scaled.safetensors",
            "audio_encoder": "wav2vec2_large_english_fp16.safetensors",
        }

    def test_a_list_of_files_is_the_same(self, file: Path, components: Path, checkpoint: Checkpoint) -> None:
        files = sorted(components.rglob("*.safetensors"))
        assert find_checkpoint(file, components=files).models == checkpoint.models
        with pytest.raises(CheckpointError, match=r"missing: the VAE"):
            find_checkpoint(file, components=files[:2])
        with pytest.raises(CheckpointError, match=r"s2v.safetensors is neither a Wan VAE nor"):
            find_checkpoint(file, components=[*files, file])
        with pytest.raises(UsageError, match="is not a folder"):
            find_checkpoint(file, components=[components / "nowhere.safetensors"])

    @torch.no_grad()
    def test_the_text_encoder_gives_what_the_expanded_weights_give(self, loaded: dict[str, Any]) -> None:
        expected = text_encoder()
        names = dict(expected.named_parameters())
        for name, value in expanded(text_encoder_tensors()).items():
            names[name].copy_(value)
        ids = torch.tensor([[5, 8, 13, 21, 1]])
        assert isinstance(loaded["text_encoder"].encoder.block[1].layer[1].DenseReluDense.wo, ScaledLinear)
        made = loaded["text_encoder"](ids).last_hidden_state
        assert (made - expected(ids).last_hidden_state).abs().max() < 1e-5  # sums in another order

    def test_the_tokenizer_inside_the_file_ends_cuts_and_pads(self, loaded: dict[str, Any]) -> None:
        model = bytes(text_encoder_tensors()["spiece_model"].numpy())
        expected = SentencePieceProcessor(model_proto=model).encode("the man talks")
        options = {"padding": "max_length", "truncation": True, "add_special_tokens": True}
        options |= {"return_attention_mask": True, "return_tensors": "pt"}
        padded = loaded["tokenizer"]("the man talks", max_length=40, **options)
        assert padded.input_ids.tolist() == [[*expected, 1] + [0] * (39 - len(expected))]
        assert int(padded.attention_mask.sum()) == len(expected) + 1
        assert loaded["tokenizer"]("the man talks", max_length=4, **options).input_ids.tolist() == [[*expected[:3], 1]]

    @torch.no_grad()
    def test_the_speech_encoder_needs_no_config(self, loaded: dict[str, Any]) -> None:
        waveform = torch.randn(1, 4000, generator=torch.Generator().manual_seed(1))
        expected = speech_encoder()(waveform, output_hidden_states=True).hidden_states
        made = loaded["audio_encoder"](waveform, output_hidden_states=True).hidden_states
        assert len(made) == len(expected) == 3
        assert all(torch.equal(a, b) for a, b in zip(made, expected, strict=True))
        assert loaded["audio_processor"].do_normalize

    def test_the_estimate_knows_what_stays_packed(self, checkpoint: Checkpoint, loaded: dict[str, Any]) -> None:
        told = weight_bytes(model_sizes(checkpoint), torch.float32)
        for name in ("transformer", "text_encoder"):
            tensors = [*loaded[name].parameters(), *loaded[name].buffers()]
            assert told[name] == sum(tensor.nbytes for tensor in tensors), name

    def test_doctor_reads_every_value_and_names_the_formats(self, file: Path, components: Path, tmp_path: Path) -> None:
        for path in (file, *components.rglob("*.safetensors")):
            (tmp_path / path.name).symlink_to(path)
        found = examine(str(tmp_path / file.name))
        assert found["models"][0]["storage"] == {
            "transformer": "F8_E4M3",
            "vae": "F16",
            "text_encoder": "F8_E4M3",
            "audio_encoder": "F16",
        }
        assert found["problems"] == []

    def test_a_t5_beside_the_umt5_is_left_alone(self, file: Path, components: Path, tmp_path: Path) -> None:
        t5 = T5EncoderModel(T5Config(vocab_size=64, d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2))
        state = {name: value for name, value in t5.state_dict().items() if "embed_tokens" not in name}
        save_file(state, tmp_path / "a_t5xxl.safetensors")
        text = components / "text_encoders" / "umt5_xxl_fp8_e4m3fn_scaled.safetensors"
        (tmp_path / text.name).symlink_to(text)
        found = find_checkpoint(file, components=[tmp_path, components]).models["text_encoder"]
        assert [path.name for path in found.files] == [text.name]

    def test_without_a_tokenizer_it_is_missing(self, file: Path, components: Path, tmp_path: Path) -> None:
        state = load_file(components / "text_encoders" / "umt5_xxl_fp8_e4m3fn_scaled.safetensors")
        del state["spiece_model"]
        save_file(state, tmp_path / "umt5_xxl_fp16.safetensors")
        assert read_text_encoder(tmp_path / "umt5_xxl_fp16.safetensors").storage == "F8_E4M3"
        with pytest.raises(CheckpointError, match=r"missing: the tokenizer \(google/umt5-xxl/\)"):
            find_checkpoint(file, components=[tmp_path, *components.glob("[va]*/*.safetensors")])

    def test_a_video_is_made_from_single_files(self, file: Path, components: Path) -> None:
        pipeline = WanS2VPipeline.from_pretrained(file, components=components, torch_dtype="float32")
        pipeline.set_progress_bar_config(disable=True)
        made = pipeline(
            next(iter(sorted(MEDIA.glob("*.wav")))),
            torch.zeros(64, 64, 3, dtype=torch.uint8).numpy(),
            prompt="a person talks",
            height=64,
            width=64,
            num_frames=5,
            num_clips=1,
            frames_per_clip=8,
            num_inference_steps=1,
            guidance_scale=1.0,
            seed=0,
        )
        assert made.frames.shape[1:] == (64, 64, 3)
