"""GGUF files: the bits that ggml means by a block, in PyTorch and in the kernel, and transformers stored in them."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from formats import make_transformer, official, plain_copy, predict, random_blocks
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from wan_s2v.errors import CheckpointError
from wan_s2v.models.transformer import WanS2VTransformer
from wan_s2v.ops.eight_bit import FLOAT8
from wan_s2v.ops.gguf import BLOCKS, dequantize, plain_dequantize
from wan_s2v.runtime.packed import GGUFLinear
from wan_s2v.runtime.quantization import EightBitLinear, quantize
from wan_s2v.weights import find_checkpoint, load_model
from wan_s2v.weights.files import read_headers, read_metadata

CPU = torch.device("cpu")
ALONE = frozenset({"vae", "text_encoder", "tokenizer", "audio_encoder", "audio_processor"})
Type = gguf.GGMLQuantizationType


def exact(blocks: np.ndarray, kind: str) -> Tensor:
    return torch.from_numpy(gguf.quants.dequantize(blocks, Type[kind]))


@pytest.fixture(scope="module")
def model() -> WanS2VTransformer:
    return make_transformer(attention_head_dim=128, ffn_dim=256)


def write(
    file: Path, tensors: dict[str, tuple[np.ndarray, Type]], config: str | None, shapes: dict[str, tuple[int, ...]]
) -> Path:
    """As the converters of ComfyUI-GGUF do; `shapes` of those tensors that are stored in another one."""
    writer = gguf.GGUFWriter(file, "wan")
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_K_M)
    if config is not None:
        writer.add_string("wan_s2v.config", config)
    for name, shape in shapes.items():
        writer.add_array(f"comfy.gguf.orig_shape.{name}", shape)
    for name, (data, kind) in tensors.items():
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def mixed(model: WanS2VTransformer, kinds: list[str]) -> tuple[dict[str, tuple[np.ndarray, Type]], dict[str, Tensor]]:
    """A model whose matrices alternate between kinds, as quantization mixes do, and the values it stands for."""
    tensors, values = {}, {}
    for name, tensor in official(model)[0].items():
        is_matrix = tensor.ndim == 2 and name.startswith(("blocks.", "audio_injector.injector.", "text_embedding.2"))
        kind = kinds[len(tensors) % len(kinds)] if is_matrix else ["F32", "F16", "BF16"][len(tensors) % 3]
        if is_matrix:
            data = random_blocks(kind, *tensor.shape, seed=len(tensors))
        else:
            data = gguf.quants.quantize(tensor.numpy(), Type[kind])
        tensors[name] = data, Type[kind]
        values[name] = exact(data, kind).reshape(tensor.shape)
    return tensors, values


class TestBlocks:
    @pytest.mark.parametrize("kind", BLOCKS)
    def test_values_are_those_of_ggml_to_the_last_bit(self, kind: str) -> None:
        blocks = random_blocks(kind, 6, 1280)
        assert torch.equal(plain_dequantize(torch.from_numpy(blocks), kind), exact(blocks, kind))

    @pytest.mark.parametrize("kind", BLOCKS)
    def test_sizes_are_those_of_ggml(self, kind: str) -> None:
        assert gguf.GGML_QUANT_SIZES[Type[kind]] == tuple(BLOCKS[kind])

    @pytest.mark.parametrize("kind", BLOCKS)
    def test_more_axes_are_kept_and_the_dtype_is_the_one_asked_for(self, kind: str) -> None:
        blocks = torch.from_numpy(random_blocks(kind, 6, 512))
        made = dequantize(blocks.reshape(2, 3, -1), kind, torch.bfloat16)
        assert torch.equal(made, plain_dequantize(blocks, kind).bfloat16().reshape(2, 3, 512))

    @pytest.mark.skipif(sys.platform != "linux", reason="Triton is for Linux")
    @pytest.mark.parametrize("kind", BLOCKS)
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
    def test_the_kernel_gives_the_same_values(self, kind: str, dtype: torch.dtype) -> None:
        from wan_s2v.ops.gguf_kernel import launch_dequantize

        device = "cuda" if torch.cuda.is_available() else "cpu"  # the CPU interprets it
        blocks = random_blocks(kind, 5, 768)
        made = launch_dequantize(torch.from_numpy(blocks).to(device), kind, dtype).cpu()
        expected = exact(blocks, kind)
        # a GPU may fuse the multiplication and the subtraction of an offset
        assert (made.float() - expected).abs().max() <= torch.finfo(dtype).eps * expected.abs().max()


class TestTransformer:
    @pytest.mark.parametrize("kinds", [["Q8_0"], ["Q6_K", "Q5_K", "Q4_K"], ["Q5_1", "Q5_0", "Q4_1", "Q4_0"]])
    def test_it_predicts_what_the_expanded_weights_predict(
        self, model: WanS2VTransformer, tmp_path: Path, kinds: list[str]
    ) -> None:
        tensors, values = mixed(model, kinds)
        file = write(tmp_path / "s2v.gguf", tensors, official(model)[1]["config"], {})
        found = find_checkpoint(file, skip=ALONE).models["transformer"]
        assert found.total_bytes == sum(data.nbytes for data, _ in tensors.values())
        assert found.storage in kinds
        assert found.dtype == torch.bfloat16
        loaded = load_model(found, torch.float32, CPU)
        packed = [layer for layer in loaded.modules() if isinstance(layer, GGUFLinear)]
        assert {layer.kind for layer in packed} == set(kinds)
        assert all(layer.blocks.dtype == torch.uint8 for layer in packed)
        assert torch.equal(predict(loaded), predict(plain_copy(model, values)))

    def test_it_follows_to_another_dtype_and_into_float8(self, model: WanS2VTransformer, tmp_path: Path) -> None:
        tensors, values = mixed(model, ["Q5_K"])
        file = write(tmp_path / "s2v.gguf", tensors, official(model)[1]["config"], {})
        loaded = load_model(find_checkpoint(file, skip=ALONE).models["transformer"], torch.float32, CPU)
        loaded.to(torch.bfloat16)
        layer = loaded.blocks[0].attn2.to_q
        assert layer.input_dtype == torch.bfloat16
        assert torch.equal(layer.weight, values["blocks.0.cross_attn.q.weight"].bfloat16())
        quantize(loaded, FLOAT8)
        assert isinstance(loaded.blocks[0].attn2.to_q, EightBitLinear)
        assert isinstance(loaded.blocks[0].attn2.to_k, GGUFLinear)  # once per clip
        assert torch.isfinite(predict(loaded)).all()

    def test_a_tensor_stored_in_another_shape_comes_back(self, model: WanS2VTransformer, tmp_path: Path) -> None:
        tensors, values = mixed(model, ["Q8_0"])
        name = "casual_audio_encoder.encoder.conv1_local.conv.weight"
        shape = tuple(values[name].shape)
        data = gguf.quants.quantize(values[name].numpy().reshape(-1, 256), Type.Q8_0)
        tensors[name] = data, Type.Q8_0
        file = write(tmp_path / "s2v.gguf", tensors, official(model)[1]["config"], {name: shape})
        loaded = load_model(find_checkpoint(file, skip=ALONE).models["transformer"], torch.float32, CPU)
        assert torch.equal(loaded.audio_encoder.conv1_local.weight, exact(data, "Q8_0").reshape(shape))
        write(tmp_path / "wrong.gguf", tensors, official(model)[1]["config"], {name: (3, *shape)})
        with pytest.raises(CheckpointError, match=r"conv1_local.conv.weight has shape .*, said to be \(3, "):
            find_checkpoint(tmp_path / "wrong.gguf", skip=ALONE)

    def test_leading_axes_that_llama_cpp_leaves_out_come_back(self, model: WanS2VTransformer, tmp_path: Path) -> None:
        tensors, values = mixed(model, ["Q8_0"])
        for name, value in values.items():
            if value.ndim > 2 and value.shape[0] == 1:
                data, kind = tensors[name]
                first = next(axis for axis, size in enumerate(value.shape) if size > 1)
                tensors[name] = data.reshape(data.shape[first:]), kind
        file = write(tmp_path / "s2v.gguf", tensors, official(model)[1]["config"], {})
        assert len(gguf.GGUFReader(file).get_tensor(list(tensors).index("head.modulation")).shape) == 2
        loaded = load_model(find_checkpoint(file, skip=ALONE).models["transformer"], torch.float32, CPU)
        assert torch.equal(predict(loaded), predict(plain_copy(model, values)))

    def test_names_may_have_the_prefix_of_whole_checkpoints(self, model: WanS2VTransformer, tmp_path: Path) -> None:
        tensors, values = mixed(model, ["Q4_K"])
        prefixed = {f"model.diffusion_model.{name}": value for name, value in tensors.items()}
        file = write(tmp_path / "s2v.gguf", prefixed, official(model)[1]["config"], {})
        loaded = load_model(find_checkpoint(file, skip=ALONE).models["transformer"], torch.float32, CPU)
        assert torch.equal(loaded.proj_out.weight, values["head.head.weight"])


class TestFiles:
    @pytest.fixture(scope="class")
    def small(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        tensors = {
            "a.weight": (random_blocks("Q8_0", 2, 64), Type.Q8_0),
            "b": (np.ones((2, 3), dtype=np.float32), Type.F32),
        }
        return write(tmp_path_factory.mktemp("gguf") / "small.gguf", tensors, "{}", {"b": (3, 2)})

    def test_headers_tell_shapes_kinds_and_bytes(self, small: Path) -> None:
        headers = read_headers([small])
        assert {name: (item.dtype, item.shape, item.num_bytes) for name, item in headers.items()} == {
            "a.weight": ("Q8_0", (2, 64), 136),
            "b": ("F32", (3, 2), 24),
        }
        assert read_metadata(small)["general.architecture"] == "wan"

    def test_other_block_formats_are_named_with_those_that_are_read(
        self, model: WanS2VTransformer, tmp_path: Path
    ) -> None:
        tensors, _ = mixed(model, ["Q8_0"])
        name = "blocks.0.ffn.0.weight"
        tensors[name] = np.zeros((256, 84), dtype=np.uint8), Type.Q2_K
        file = write(tmp_path / "s2v.gguf", tensors, official(model)[1]["config"], {})
        with pytest.raises(CheckpointError, match=rf"\(Q2_K, first: {name}\).*Q8_0, Q6_K, Q5_K, Q4_K"):
            find_checkpoint(file, skip=ALONE)

    def test_a_truncated_file_is_named(self, small: Path, tmp_path: Path) -> None:
        (tmp_path / "cut.gguf").write_bytes(small.read_bytes()[:-30])
        with pytest.raises(CheckpointError, match=r"cut.gguf is not readable as GGUF .*incomplete, damaged"):
            read_headers([tmp_path / "cut.gguf"])

    @settings(max_examples=60, deadline=None)
    @given(cut=st.integers(min_value=0), flip=st.integers(min_value=0), value=st.integers(0, 255))
    def test_damage_never_raises_anything_else(
        self, small: Path, tmp_path_factory: pytest.TempPathFactory, cut: int, flip: int, value: int
    ) -> None:
        file = tmp_path_factory.getbasetemp() / "damaged.gguf"
        data = bytearray(small.read_bytes())
        tensors = data.rindex(b"a.weight") - 8  # the package may read forever if a length in the metadata is wrong
        data[tensors + flip % (len(data) - tensors)] = value
        file.write_bytes(bytes(data[: 8 + cut % (len(data) - 7)]))
        with suppress(CheckpointError):  # any other exception fails
            assert len(read_headers([file])) <= 2

    def test_without_the_package_the_error_says_what_to_install(
        self, small: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "gguf", None)
        with pytest.raises(CheckpointError, match=r"pip install 'wan-s2v\[gguf\]'"):
            read_headers([small])
