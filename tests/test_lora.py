"""LoRAs: every style gives what merging by hand gives, what does not fit is refused, and nothing stays behind."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import command_line
import pytest
import torch
from command_line import FAST, IMAGE, VOICE
from conftest import MEDIA, assert_close
from models import random_pipeline, random_transformer
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from wan_s2v import WanS2VPipeline, WanS2VTransformer
from wan_s2v.commands import request
from wan_s2v.errors import CheckpointError, UsageError
from wan_s2v.models.config import S2V_14B
from wan_s2v.models.transformer import Conditioning
from wan_s2v.ops.eight_bit import FLOAT8, INT8, quantize_rows
from wan_s2v.runtime.lora import Adapters, LoRALinear
from wan_s2v.runtime.quantization import EightBitLinear, quantize
from wan_s2v.schedulers import make_scheduler
from wan_s2v.weights.lora import LoRAFile, read_lora
from wan_s2v.weights.lora_keys import Slot, lay_out, listed
from wan_s2v.weights.names import inverse, transformer_names

model, wan_s2v = command_line.model, command_line.wan_s2v
PORTRAIT = MEDIA / "person_small.png"
SMALL = {"height": 64, "width": 80, "num_frames": 4, "num_inference_steps": 1, "guidance_scale": 1, "seed": 7}
RANK, ALPHA = 4, 8.0
LAYERS = (  # one of every kind: called, with GELU, read for float32, convolution
    "blocks.0.attn1.to_q",
    "blocks.0.attn1.to_out.0",
    "blocks.0.attn2.to_k",
    "blocks.1.ffn.net.0.proj",
    "blocks.1.ffn.net.2",
    "audio_injector.attentions.0.to_v",
    "audio_injector.adain.0.linear",
    "condition_embedder.text_embedder.linear_1",
    "condition_embedder.time_embedder.linear_2",
    "condition_embedder.time_proj",
    "audio_encoder.final_linear",
    "proj_out",
    "patch_embedding",
)
DIFFERENCES = (
    "blocks.0.attn1.to_q.bias",
    "blocks.1.attn2.norm_k.weight",
    "blocks.1.norm2.bias",
    "blocks.0.scale_shift_table",
    "scale_shift_table",
    "proj_out.weight",
)


@pytest.fixture(scope="module")
def transformer() -> WanS2VTransformer:
    return random_transformer()


@torch.no_grad()
def predict(transformer: WanS2VTransformer) -> Tensor:
    """One step on the model's device; the result on the CPU."""
    device, draw = transformer.device, torch.Generator().manual_seed(3)
    latents, reference = (torch.randn(1, 16, f, 8, 12, generator=draw).to(device) for f in (4, 1))
    prompt, sound = torch.randn(9, 16, generator=draw), torch.randn(1, 3, 16, 16, generator=draw)
    motion = torch.randn(1, 16, 19, 8, 12, generator=draw).to(device)
    scene = transformer.prepare_scene(reference, 4, motion_latents=motion)
    text, audio = transformer.prepare_text([prompt.to(device)]), transformer.prepare_audio(sound.to(device), 73)
    return transformer(latents, torch.tensor([700], device=device), Conditioning(scene, text, audio)).cpu()


def random_pairs(transformer: WanS2VTransformer, layers: tuple[str, ...] = LAYERS, seed: int = 5) -> dict[str, Tensor]:
    """down and up of each layer, as `layer.down` and `layer.up`."""
    draw = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer in layers:
        outputs, *inputs = transformer.get_parameter(f"{layer}.weight").shape
        tensors[f"{layer}.down"] = torch.randn(RANK, *inputs, generator=draw) * 0.1
        tensors[f"{layer}.up"] = torch.randn(outputs, RANK, *[1] * (len(inputs) - 1), generator=draw) * 0.1
    return tensors


def random_differences(transformer: WanS2VTransformer) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(6)
    return {name: torch.randn(transformer.get_parameter(name).shape, generator=draw) * 0.1 for name in DIFFERENCES}


def merged(
    transformer: WanS2VTransformer,
    pairs: dict[str, Tensor],
    scale: float = 1.0,
    differences: dict[str, Tensor] | None = None,
) -> WanS2VTransformer:
    """A copy of the model with everything added to its weights."""
    made = copy.deepcopy(transformer)
    with torch.no_grad():
        for key in pairs:
            if key.endswith(".down"):
                layer = key.removesuffix(".down")
                weight = made.get_parameter(f"{layer}.weight")
                full = pairs[f"{layer}.up"].flatten(1) @ pairs[key].flatten(1)
                weight += (scale * full).reshape(weight.shape).to(weight.dtype)
        for name, value in (differences or {}).items():
            made.get_parameter(name).add_(value)
    return made


def with_lora(transformer: WanS2VTransformer, tensors: dict[str, Tensor], weight: float = 1.0) -> WanS2VTransformer:
    """A copy of the model with a LoRA on."""
    made = copy.deepcopy(transformer)
    Adapters(made).add("one", read_lora(tensors, made.config), weight)
    return made


def diffusers_style(layer: str, official: str, down: Tensor, up: Tensor) -> dict[str, Tensor]:
    return {f"transformer.{layer}.lora_A.weight": down, f"transformer.{layer}.lora_B.weight": up}


def peft_style(layer: str, official: str, down: Tensor, up: Tensor) -> dict[str, Tensor]:
    return {
        f"base_model.model.{official}.lora_A.weight": down,
        f"base_model.model.{official}.lora_B.weight": up,
    }


def diffsynth_style(layer: str, official: str, down: Tensor, up: Tensor) -> dict[str, Tensor]:
    return {f"{official}.lora_A.default.weight": down, f"{official}.lora_B.default.weight": up}


def comfy_style(layer: str, official: str, down: Tensor, up: Tensor) -> dict[str, Tensor]:
    name = f"diffusion_model.{official}"
    return {
        f"{name}.lora_down.weight": down,
        f"{name}.lora_up.weight": up,
        f"{name}.alpha": torch.tensor(ALPHA),
    }


def kohya_style(layer: str, official: str, down: Tensor, up: Tensor) -> dict[str, Tensor]:
    name = f"lora_unet_{official.replace('.', '_')}"
    return {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.alpha": torch.tensor([ALPHA])}


def lightx2v_style(layer: str, official: str, down: Tensor, up: Tensor) -> dict[str, Tensor]:
    return {f"{official}.lora_down.weight": down, f"{official}.lora_up.weight": up}


Style = Callable[[str, str, Tensor, Tensor], dict[str, Tensor]]
STYLES: dict[Style, float] = {  # and the scale that it means
    diffusers_style: 1.0,
    peft_style: 1.0,
    diffsynth_style: 1.0,
    comfy_style: ALPHA / RANK,
    kohya_style: ALPHA / RANK,
    lightx2v_style: 1.0,
}


def in_style(style: Style, transformer: WanS2VTransformer, pairs: dict[str, Tensor]) -> dict[str, Tensor]:
    official = inverse(transformer_names(transformer.config))
    layers = [key.removesuffix(".down") for key in pairs if key.endswith(".down")]
    tensors: dict[str, Tensor] = {}
    for layer in layers:
        tensors |= style(layer, official[layer], pairs[f"{layer}.down"], pairs[f"{layer}.up"])
    return tensors


def differences_in_style(transformer: WanS2VTransformer, differences: dict[str, Tensor]) -> dict[str, Tensor]:
    """As `diff`, `diff_b` and `diff_m` under official names."""
    official = inverse(transformer_names(transformer.config))
    tensors = {}
    for name, value in differences.items():
        if name in official:
            tensors[f"diffusion_model.{official[name].removesuffix('modulation')}diff_m"] = value
        else:
            layer, _, leaf = name.rpartition(".")
            kind = "diff" if leaf == "weight" else "diff_b"
            tensors[f"diffusion_model.{official[layer]}.{kind}"] = value
    return tensors


@pytest.mark.parametrize("style", STYLES, ids=lambda style: style.__name__)
def test_every_style_equals_merging_by_hand(transformer, style):
    pairs = random_pairs(transformer)
    expected = predict(merged(transformer, pairs, STYLES[style]))
    made = predict(with_lora(transformer, in_style(style, transformer, pairs)))
    assert (expected - predict(transformer)).abs().max() > 0.1
    assert_close(made, expected, 1e-5 * expected.abs().max().item(), style.__name__)


@pytest.mark.parametrize("layer", LAYERS)
def test_each_kind_of_layer_takes_part(transformer, layer):
    pairs = random_pairs(transformer, (layer,))
    expected = predict(merged(transformer, pairs))
    assert not torch.equal(expected, predict(transformer))
    made = predict(with_lora(transformer, in_style(diffusers_style, transformer, pairs)))
    assert_close(made, expected, 1e-5 * expected.abs().max().item(), layer)


def test_differences_are_added_to_weights_biases_norms_and_modulation(transformer):
    pairs, differences = random_pairs(transformer), random_differences(transformer)
    tensors = in_style(lightx2v_style, transformer, pairs) | differences_in_style(transformer, differences)
    expected = predict(merged(transformer, pairs, differences=differences))
    made = predict(with_lora(transformer, tensors))
    assert not torch.allclose(expected, predict(merged(transformer, pairs)), atol=1e-2)
    assert_close(made, expected, 1e-5 * expected.abs().max().item())
    halved = merged(transformer, pairs, 0.5, {name: 0.5 * value for name, value in differences.items()})
    assert_close(predict(with_lora(transformer, tensors, 0.5)), predict(halved), 1e-5)


@pytest.mark.parametrize(
    ("stated", "scale"),
    [
        ({}, 1.0),
        ({"lora_alpha": 2}, 0.5),
        ({"lora_alpha": 2, "alpha_pattern": {"to_q": 12}}, 3.0),
        ({"lora_alpha": 2, "alpha_pattern": {"blocks.1.attn1.to_q": 12}}, 0.5),
        ({"lora_alpha": 2, "use_rslora": True}, 1.0),
    ],
)
@pytest.mark.parametrize("place", ["metadata", "adapter_config.json"])
def test_alpha_may_be_stated_apart_from_the_tensors(transformer, tmp_path, stated, scale, place):
    layer = "blocks.0.attn1.to_q"
    tensors = in_style(diffusers_style, transformer, random_pairs(transformer, (layer,)))
    if place == "metadata":
        text = json.dumps({f"transformer.{key}": value for key, value in stated.items()})
        save_file(tensors, tmp_path / "pytorch_lora_weights.safetensors", {"lora_adapter_metadata": text})
    else:
        save_file(tensors, tmp_path / "adapter_model.safetensors")
        (tmp_path / "adapter_config.json").write_text(json.dumps(stated))
    assert read_lora(tmp_path, transformer.config).pairs[f"{layer}.weight"].scale == pytest.approx(scale)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not a JSON object"),
        ("[1]", "is not a JSON object"),
        ('{"transformer.lora_alpha": "much"}', "alpha of its config cannot be used"),
        ('{"transformer.use_dora": true}', "is a DoRA"),
    ],
)
def test_a_config_that_cannot_be_used_is_refused(transformer, tmp_path, text, message):
    file = tmp_path / "one.safetensors"
    tensors = in_style(diffusers_style, transformer, random_pairs(transformer, LAYERS[:1]))
    save_file(tensors, file, {"lora_adapter_metadata": text})
    with pytest.raises(CheckpointError, match=message):
        read_lora(file, transformer.config)


def test_the_bias_of_a_pair_has_the_scale_of_the_pair(transformer):
    layer = "blocks.0.attn1.to_q"
    bias = torch.linspace(-1, 1, 24)
    tensors = in_style(comfy_style, transformer, random_pairs(transformer, (layer,)))
    lora = read_lora(tensors | {"diffusion_model.blocks.0.self_attn.q.lora_up.bias": bias}, transformer.config)
    assert torch.equal(lora.differences[f"{layer}.bias"], bias * ALPHA / RANK)


def test_several_loras_add_up_and_can_be_weighted_anew(transformer):
    first, second = random_pairs(transformer), random_pairs(transformer, LAYERS[:4], seed=8)
    made = copy.deepcopy(transformer)
    adapters = Adapters(made)
    adapters.add("a", read_lora(in_style(comfy_style, made, first), made.config), 0.5)
    adapters.add("b", read_lora(in_style(diffusers_style, made, second), made.config), -1.0)
    both = merged(merged(transformer, first, 0.5 * ALPHA / RANK), second, -1.0)
    assert_close(predict(made), predict(both), 1e-5 * predict(both).abs().max().item())
    layer = made.get_submodule(LAYERS[0])
    assert isinstance(layer, LoRALinear)
    assert layer.down.shape[0] == 2 * RANK
    adapters.set_weights({"b": 2.0})
    assert_close(predict(made), predict(merged(transformer, second, 2.0)), 1e-5)


def test_unloading_and_weight_zero_leave_the_model_as_it_was_to_the_bit(transformer):
    made = copy.deepcopy(transformer).bfloat16()
    before, values = predict(made), {name: value.clone() for name, value in made.state_dict().items()}
    modules = dict(made.named_modules())
    tensors = in_style(lightx2v_style, made, random_pairs(made))
    tensors |= differences_in_style(made, random_differences(made))
    adapters = Adapters(made)
    adapters.add("a", read_lora(tensors, made.config), 1.0)
    assert not torch.equal(predict(made), before)
    adapters.set_weights({"a": 0.0})
    assert torch.equal(predict(made), before)
    adapters.set_weights({"a": 0.7})
    adapters.clear()
    assert torch.equal(predict(made), before)
    assert all(module is modules[name] for name, module in made.named_modules())
    after = made.state_dict()
    assert after.keys() == values.keys()
    assert all(torch.equal(after[name], value) for name, value in values.items())


def test_in_bfloat16_a_branch_is_no_worse_than_merged_weights(transformer):
    pairs = random_pairs(transformer)
    exact = predict(merged(transformer, pairs))
    plain = predict(merged(transformer, pairs).bfloat16())
    made = predict(with_lora(copy.deepcopy(transformer).bfloat16(), in_style(diffusers_style, transformer, pairs)))
    assert (made - exact).norm() < 2 * (plain - exact).norm()


@pytest.mark.parametrize("dtype", [INT8, FLOAT8])
def test_a_branch_beside_an_eight_bit_layer_sees_the_values_of_its_tokens(dtype):
    draw = torch.Generator().manual_seed(2)
    base = nn.Linear(32, 48).requires_grad_(False)
    down, up = torch.randn(RANK, 32, generator=draw), torch.randn(48, RANK, generator=draw)
    x = torch.randn(2, 5, 32, generator=draw)
    layer = EightBitLinear(base, dtype)
    wrapped = LoRALinear(layer, down, up)
    assert wrapped.input_dtype == layer.input_dtype
    rounded = quantize_rows(x, dtype)
    assert_close(wrapped(rounded), layer(rounded) + rounded.dequantize() @ down.t() @ up.t(), 1e-4)
    assert_close(wrapped(x), layer(x) + x @ down.t() @ up.t(), 1e-4)


def test_a_float8_model_takes_loras_and_gives_them_back():
    plain = random_transformer(attention_head_dim=64)
    pairs = random_pairs(plain)
    rounded = copy.deepcopy(plain)
    quantize(rounded, FLOAT8)
    before = predict(rounded)
    adapters = Adapters(rounded)
    adapters.add("a", read_lora(in_style(diffusers_style, rounded, pairs), rounded.config), 1.0)
    exact, bare = predict(merged(plain, pairs)), predict(plain)
    made = predict(rounded)
    assert isinstance(rounded.get_submodule(LAYERS[0]).base, EightBitLinear)
    assert (made - exact).norm() < 0.15 * (bare - exact).norm()
    adapters.clear()
    assert torch.equal(predict(rounded), before)


class OneScale(nn.Module):
    """A stand-in for layers that keep their weight in fewer bits and expand it when it is asked for."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.bias = layer.bias
        self.scale = layer.weight.detach().abs().max() / 127
        self.register_buffer("values", (layer.weight.detach() / self.scale).round().to(torch.int8))

    @property
    def input_dtype(self) -> torch.dtype:
        return torch.float32

    @property
    def weight(self) -> Tensor:
        return self.values.float() * self.scale

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight, self.bias)


def test_layers_of_other_kinds_take_pairs(transformer):
    pairs = random_pairs(transformer, LAYERS[:-1])
    packed, expanded = copy.deepcopy(transformer), copy.deepcopy(transformer)
    for layer in LAYERS[:-1]:
        parent, _, name = layer.rpartition(".")
        setattr(packed.get_submodule(parent), name, OneScale(transformer.get_submodule(layer)))
        expanded.get_submodule(layer).weight.data = packed.get_submodule(layer).weight
    expected = predict(merged(expanded, pairs))
    made = predict(with_lora(packed, in_style(diffusers_style, transformer, pairs)))
    assert_close(made, expected, 1e-5 * expected.abs().max().item())


def test_a_full_difference_cannot_be_added_to_a_float8_layer():
    rounded = random_transformer(attention_head_dim=64)
    quantize(rounded, FLOAT8)
    before = predict(rounded)
    tensors = in_style(diffusers_style, rounded, {
        f"blocks.0.attn1.to_k.{name}": torch.ones(shape) for name, shape in (("down", (1, 128)), ("up", (128, 1)))
    })  # fmt: skip
    tensors["blocks.0.self_attn.q.diff"] = torch.ones(128, 128)
    adapters = Adapters(rounded)
    with pytest.raises(CheckpointError, match=r"blocks\.0\.attn1\.to_q\.weight.*8 bits"):
        adapters.add("a", read_lora(tensors, rounded.config), 0.0)
    assert adapters.loras == {}
    assert torch.equal(predict(rounded), before)


Q = "diffusion_model.blocks.0.self_attn.q"
DOWN, UP = f"{Q}.lora_down.weight", f"{Q}.lora_up.weight"


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"blocks.0.self_attn.q.weight": (24, 24)}, "is not a LoRA .*blocks.0.self_attn.q.weight.*lora_A and lora_B"),
        ({}, "is not a LoRA .*none"),
        ({DOWN: (4, 24), UP: (24, 4), f"{Q}.dora_scale": (24,)}, "is a DoRA"),
        ({f"{Q}.lora_magnitude_vector.weight": (24,)}, "is a DoRA"),
        ({f"{Q}.hada_w1_a": (24, 4)}, "is a LoHa"),
        ({f"{Q}.lokr_w1": (4, 4)}, "is a LoKr"),
        ({DOWN: (4, 36), UP: (36, 4)}, r"q.lora_down.weight has the shape \(4, 36\).*\(24, 24\) needs \(rank, 24\)"),
        ({DOWN: (4, 24), UP: (24, 5)}, r"q.lora_up.weight has the shape \(24, 5\).*needs \(24, 4\)"),
        ({DOWN: (4, 1536), UP: (1536, 4)}, r"\(4, 1536\).*the 1.3B models"),
        ({DOWN: (4, 3072), UP: (3072, 4)}, r"\(4, 3072\).*TI2V-5B"),
        ({DOWN: (), UP: (24, 4)}, r"has the shape \(\)"),
        ({DOWN: (4, 24)}, "not complete: .*lora_down.weight has no partner"),
        ({UP: (24, 4)}, "not complete: .*lora_up.weight has no partner"),
        ({f"{Q}.alpha": ()}, "not complete: .*alpha has no partner"),
        ({DOWN: (4, 24), UP: (24, 4), f"{Q}.alpha": (2,)}, "needs one number"),
        ({f"{Q}.diff_b": (23,)}, r"diff_b has the shape \(23\).*needs \(24\)"),
        ({DOWN: (4, 24), UP: (24, 4), f"{Q}.lora_A.weight": (4, 24)}, "holds both"),
        (
            {f"blocks.{n}.{layer}.lora_down.weight": (4, 24) for n in range(3) for layer in ("self_attn.q", "warp")},
            r"4 tensors .*: blocks\.\*\.warp\.lora_down\.weight \(3x\), blocks\.2\.self_attn\.q\.lora_down\.weight\.",
        ),
        ({"blocks.0.cross_attn.k_img.diff_b": (24,)}, "only layers that this model lacks: blocks.0.cross_attn.k_img"),
        ({"unet.down_blocks.0.to_q.lora_A.weight": (4, 24)}, "1 tensors that this model has no place for"),
        ({f"{Q}.lora_mid.weight": (4, 4), DOWN: (4, 24), UP: (24, 4)}, "no place for: .*lora_mid"),
        ({"blocks.0.norm3.lora_A.weight": (4,), "blocks.0.norm3.lora_B.weight": (24, 4)}, r"norm3.*shape \(4\)"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_and_nothing_is_changed(transformer, shapes, message):
    tensors = {key: torch.ones(shape) for key, shape in shapes.items()}
    with pytest.raises(CheckpointError, match=message):
        read_lora(tensors, transformer.config)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(transformer, value):
    tensors = in_style(comfy_style, transformer, random_pairs(transformer))
    tensors[UP][3, 2] = value
    with pytest.raises(CheckpointError, match=r"q\.lora_up\.weight holds NaN or infinite"):
        read_lora(tensors, transformer.config)


def test_whole_numbers_are_refused(transformer):
    with pytest.raises(CheckpointError, match=r"q\.diff_b is stored as torch\.int8"):
        read_lora({f"{Q}.diff_b": torch.ones(24, dtype=torch.int8)}, transformer.config)


def test_a_lora_of_a_smaller_model_is_refused_by_its_width():
    tensors = {DOWN: torch.ones(4, 1536), UP: torch.ones(1536, 4)}
    with pytest.raises(CheckpointError, match=r"\(4, 1536\).*\(5120, 5120\).*1\.3B"):
        read_lora(tensors, S2V_14B)


def test_a_lora_of_an_image_to_video_model_is_taken_without_its_own_layers(transformer):
    pairs = random_pairs(transformer, LAYERS[:2])
    tensors = in_style(comfy_style, transformer, pairs)
    for n in range(2):
        tensors[f"diffusion_model.blocks.{n}.cross_attn.k_img.lora_down.weight"] = torch.ones(4, 24)
        tensors[f"diffusion_model.blocks.{n}.cross_attn.norm_k_img.diff"] = torch.ones(24)
    tensors["diffusion_model.img_emb.proj.0.diff_b"] = torch.ones(7)
    tensors["diffusion_model.patch_embedding.diff"] = torch.ones(24, 36, 1, 2, 2)
    tensors["diffusion_model.patch_embedding.diff_b"] = torch.ones(24)
    lora = read_lora(tensors, transformer.config)
    assert lora.pairs.keys() == {f"{layer}.weight" for layer in LAYERS[:2]}
    assert lora.differences == {}
    (note,) = lora.notes
    assert "made for another kind of model; 7 tensors" in note
    assert "diffusion_model.blocks.*.cross_attn.k_img.lora_down.weight (2x)" in note
    assert "patch_embedding.diff_b" in note


def test_the_names_of_a_distilled_image_to_video_lora_fit_the_14b():
    """Those of lightx2v's rank 64 for Wan2.1-I2V-14B, as kijai/ComfyUI-WanVideoWrapper#807 and #940 list them."""
    d, inner = 5120, 13824
    found: dict[str, tuple[int, ...]] = {}

    def add(layer: str, outputs: int, inputs: int) -> None:
        name = f"diffusion_model.{layer}"
        found.update({f"{name}.lora_down.weight": (64, inputs), f"{name}.lora_up.weight": (outputs, 64)})
        found[f"{name}.diff_b"] = (outputs,)

    for n in range(40):
        for layer in ("self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o", "cross_attn.q", "cross_attn.k_img"):
            add(f"blocks.{n}.{layer}", d, d)
        add(f"blocks.{n}.ffn.0", inner, d)
        add(f"blocks.{n}.ffn.2", d, inner)
        found |= {f"diffusion_model.blocks.{n}.{norm}.diff": (d,) for norm in ("norm3", "self_attn.norm_q")}
        found[f"diffusion_model.blocks.{n}.norm3.diff_b"] = (d,)
        found[f"diffusion_model.blocks.{n}.diff_m"] = (1, 6, d)
    add("time_projection.1", 6 * d, d)
    add("time_embedding.0", d, 256)
    add("text_embedding.0", d, 4096)
    add("head.head", 64, d)
    add("img_emb.proj.1", 1280, 1280)
    found |= {"diffusion_model.head.diff_m": (1, 2, d), "diffusion_model.patch_embedding.diff": (d, 36, 1, 2, 2)}
    layout = lay_out("distilled", found, S2V_14B)
    assert len(layout.keys) + len(layout.left_out) == len(found)
    assert len(layout.left_out) == 3 * 40 + 3 + 1
    assert Slot("blocks.39.scale_shift_table", "diff") in layout.keys
    assert Slot("condition_embedder.time_proj.weight", "down") in layout.keys


def test_notes_say_what_a_lora_was_made_for(transformer, tmp_path):
    blocks = in_style(comfy_style, transformer, random_pairs(transformer, LAYERS[:2]))
    assert "none of the layers for sound" in read_lora(blocks, transformer.config).notes[0]
    assert read_lora(in_style(comfy_style, transformer, random_pairs(transformer)), transformer.config).notes == ()
    save_file(blocks, tmp_path / "style.safetensors", {"modelspec.architecture": "Wan2.1-T2V-14B/lora"})
    (note,) = read_lora(tmp_path / "style.safetensors", transformer.config).notes
    assert "made for Wan2.1-T2V-14B/lora" in note


def test_keys_are_listed_once_for_all_their_numbers():
    keys = [f"blocks.{n}.q.lora_A.weight" for n in range(40)] + ["head.alpha"]
    assert listed(keys) == "blocks.*.q.lora_A.weight (40x), head.alpha"


@pytest.fixture
def lora_file(tmp_path) -> Path:
    made = random_pipeline().transformer
    path = tmp_path / "style.safetensors"
    save_file(in_style(comfy_style, made, random_pairs(made)), path)
    return path


def test_the_pipeline_loads_weighs_and_unloads_loras(lora_file):
    pipeline = random_pipeline()
    plain = pipeline(VOICE, PORTRAIT, output_type="latent", **SMALL)
    assert "loras" not in plain.metadata
    pipeline.load_lora_weights(lora_file, "style", weight=0.5)
    pipeline.load_lora_weights(load_file(lora_file))
    made = pipeline(VOICE, PORTRAIT, output_type="latent", **SMALL)
    records = [(item["name"], item["file"], item["weight"]) for item in made.metadata["loras"]]
    assert records == [("style", "style.safetensors", 0.5), ("default_1", "tensors", 1.0)]
    assert len({item["fingerprint"] for item in made.metadata["loras"]}) == 1
    assert not torch.equal(made.frames, plain.frames)
    pipeline.set_adapters("style", 1.5)
    assert torch.allclose(pipeline(VOICE, PORTRAIT, output_type="latent", **SMALL).frames, made.frames, atol=1e-4)
    pipeline.set_adapters([])
    assert torch.equal(pipeline(VOICE, PORTRAIT, output_type="latent", **SMALL).frames, plain.frames)
    pipeline.set_adapters(["style", "default_1"], [1, 1])
    pipeline.unload_lora_weights()
    assert torch.equal(pipeline(VOICE, PORTRAIT, output_type="latent", **SMALL).frames, plain.frames)


def test_the_fast_preset_rounds_the_layers_below_loras(lora_file, monkeypatch):
    monkeypatch.setattr("wan_s2v.runtime.apply.can_compute_in_eight_bits", lambda device: True)
    pipeline = random_pipeline()
    pipeline.load_lora_weights(lora_file, "style")
    pipeline(VOICE, PORTRAIT, **SMALL, preset="fast")
    layer = pipeline.transformer.get_submodule("blocks.0.attn1.to_q")
    assert isinstance(layer, LoRALinear)
    assert isinstance(layer.base, EightBitLinear)
    pipeline.unload_lora_weights()
    assert pipeline.transformer.get_submodule("blocks.0.attn1.to_q") is layer.base


def test_misuse_of_the_pipeline_is_told_and_changes_nothing(lora_file, tmp_path):
    pipeline = random_pipeline()
    before = predict(pipeline.transformer)
    with pytest.raises(UsageError, match="no transformer_2"):
        pipeline.load_lora_weights(lora_file, load_into_transformer_2=True)
    with pytest.raises(UsageError, match="There is no LoRA at"):
        pipeline.load_lora_weights(tmp_path / "absent.safetensors")
    with pytest.raises(UsageError, match="weight nan is not accepted"):
        pipeline.load_lora_weights(lora_file, weight=float("nan"))
    (tmp_path / "notes.safetensors").write_bytes(b"hello")
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        pipeline.load_lora_weights(tmp_path / "notes.safetensors")
    with pytest.raises(UsageError, match="does not hold one LoRA file"):
        pipeline.load_lora_weights(tmp_path)
    assert (pipeline.adapters, pipeline.has_lora) == ({}, False)
    pipeline.load_lora_weights(tmp_path, "style", weight_name="style.safetensors", weight=0)
    with pytest.raises(UsageError, match="named 'style' is loaded already"):
        pipeline.load_lora_weights(lora_file, "style")
    with pytest.raises(UsageError, match=r"\['other'\].*loaded LoRAs: style"):
        pipeline.set_adapters("other")
    with pytest.raises(UsageError, match="one weight for each"):
        pipeline.set_adapters(["style"], [1, 2])
    assert torch.equal(predict(pipeline.transformer), before)


def test_a_model_with_loras_is_not_saved(lora_file, tmp_path):
    pipeline = random_pipeline()
    pipeline.load_lora_weights(lora_file)
    for save in (lambda: pipeline.save_pretrained(tmp_path / "out"), pipeline.transformer.state_dict):
        with pytest.raises(UsageError, match="unload_lora_weights"):
            save()
    assert not (tmp_path / "out").exists()
    pipeline.unload_lora_weights()
    pipeline.save_pretrained(tmp_path / "out")
    again = WanS2VPipeline.from_pretrained(tmp_path / "out")
    expected = random_pipeline().transformer.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in again.transformer.state_dict().items())


def test_each_expert_has_its_own_loras(lora_file):
    pipeline = random_pipeline(two_experts=True)
    high, low = predict(pipeline.transformer), predict(pipeline.transformer_2)
    pipeline.load_lora_weights(lora_file, "fast", load_into_transformer_2=True)
    assert torch.equal(predict(pipeline.transformer), high)
    assert not torch.equal(predict(pipeline.transformer_2), low)
    pipeline.load_lora_weights(lora_file, "fast")
    pipeline.set_adapters("fast", 0)
    assert torch.equal(predict(pipeline.transformer_2), low)
    pipeline.set_adapters("fast")
    records = pipeline.describe(pipeline.plan(VOICE, PORTRAIT, **SMALL))["loras"]
    assert {item["transformer"] for item in records} == {"transformer", "transformer_2"}


def test_the_preset_for_few_steps_can_be_overridden_and_wants_a_lora(lora_file):
    pipeline = random_pipeline()
    free = {key: SMALL[key] for key in ("height", "width", "num_frames")}
    plan = pipeline.plan(VOICE, PORTRAIT, preset="4step", **free)
    sampling = plan.sampling
    assert (sampling.num_inference_steps, sampling.flow_shift, sampling.scheduler) == (4, 5.0, "euler")
    assert sampling.guidance.passes == 1
    assert any("few-step LoRA" in warning for warning in plan.warnings)
    own = pipeline.plan(VOICE, PORTRAIT, preset="4step", num_inference_steps=8, guidance_scale=2, flow_shift=3, **free)
    assert (own.sampling.num_inference_steps, own.sampling.flow_shift, own.sampling.guidance.scale) == (8, 3, 2)
    pipeline.load_lora_weights(lora_file)
    assert not any("few-step" in warning for warning in pipeline.plan(VOICE, PORTRAIT, preset="4step", **free).warnings)
    assert pipeline.plan(VOICE, PORTRAIT, **free).sampling.num_inference_steps == 40


def test_the_preset_for_few_steps_stops_at_the_levels_of_the_distillation():
    scheduler = make_scheduler("euler", 4, 5.0, "cpu")
    assert torch.allclose(scheduler.sigmas[:4], torch.tensor([1.0, 0.9375, 5 / 6, 0.625]))


@pytest.mark.parametrize(
    ("text", "expected"), [("{}", 1.0), ("{}:0.5", 0.5), ("{}:-1", -1.0), ("{}:1e-1", 0.1)]
)  # fmt: skip
def test_a_lora_on_the_command_line_is_a_file_and_perhaps_a_weight(lora_file, text, expected):
    assert LoRAFile.parse(text.format(lora_file), Path()) == LoRAFile(lora_file, expected)
    assert LoRAFile.parse(text.format(lora_file.name), lora_file.parent) == LoRAFile(lora_file, expected)


def small_lora(folder: Path, model: Path, name: str = "style.safetensors") -> Path:
    """A LoRA for the small checkpoint of the command line."""
    transformer = WanS2VPipeline.from_pretrained(model, load_text_encoder=False).transformer
    pairs = random_pairs(transformer, ("blocks.0.attn1.to_q", "blocks.0.ffn.net.0.proj", "patch_embedding"))
    save_file(in_style(kohya_style, transformer, pairs), folder / name)
    return folder / name


def test_generate_records_its_loras(wan_s2v, model, tmp_path):
    lora = small_lora(tmp_path, model)
    words = ("generate", "-i", IMAGE, "-a", VOICE, "-o", tmp_path / "out.mp4", "-m", model, *FAST, "--json")
    done = wan_s2v(*words, "--lora", f"{lora}:0.5")
    assert done.code == 0, done.err
    assert "style.safetensors x 0.5" in done.err
    assert done.json["plan"]["loras"] == [{"file": str(lora), "weight": 0.5}]
    (record,) = done.json["metadata"]["loras"]
    assert (record["file"], record["weight"], len(record["fingerprint"])) == ("style.safetensors", 0.5, 16)
    assert any("none of the layers for sound" in text for text in done.json["metadata"]["warnings"])


def test_a_dry_run_tells_of_the_preset_and_of_what_does_not_fit(wan_s2v, model, tmp_path, monkeypatch):
    lora = small_lora(tmp_path, model)
    monkeypatch.setattr(request.WanS2VPipeline, "from_pretrained", None)
    words = ("generate", "-i", IMAGE, "-a", VOICE, "-o", tmp_path / "o.mp4", "-m", model, "--dry-run")
    assert "few-step LoRA" in wan_s2v(*words, "--preset", "4step").err
    with_lora = wan_s2v(*words, "--preset", "4step", "--lora", lora)
    assert "few-step LoRA" not in with_lora.err
    assert "4 steps x 1 pass, euler, no guidance, shift 5" in with_lora.err
    save_file({DOWN: torch.ones(4, 3072), UP: torch.ones(3072, 4)}, tmp_path / "5b.safetensors")
    refused = wan_s2v(*words, "--lora", tmp_path / "5b.safetensors")
    assert refused.code == 1
    assert "TI2V-5B" in refused.errors[0]
    for given, error in ((f"{lora}:200", "weight 200.0"), (tmp_path / "no.safetensors", "no file")):
        misused = wan_s2v(*words, "--lora", given)
        assert (misused.code, len(misused.errors)) == (2, 1)
        assert error in misused.errors[0]
    assert "given twice" in wan_s2v(*words, "--lora", lora, "--lora", f"{lora}:2").errors[0]


def test_a_job_may_have_loras_of_its_own(wan_s2v, model, tmp_path, monkeypatch):
    used = []
    real = WanS2VPipeline.describe

    def describe(pipeline, plan):
        record = real(pipeline, plan)
        used.append([(item["file"], item["weight"]) for item in record.get("loras", [])])
        return record

    monkeypatch.setattr(WanS2VPipeline, "describe", describe)
    shutil.copy(IMAGE, tmp_path / "face.jpg")
    shutil.copy(MEDIA / "talk_0s3.wav", tmp_path / "one.wav")
    small_lora(tmp_path, model, "own.safetensors")
    common = small_lora(tmp_path, model, "common.safetensors")
    job = {"image": "face.jpg", "audio": "one.wav"}
    jobs = [
        job | {"output": "a.mp4"},
        job | {"output": "b.mp4", "lora": ["own.safetensors:0.5", "common.safetensors"]},
        job | {"output": "c.mp4", "lora": []},
        job | {"output": "d.mp4", "lora": "absent.safetensors"},
        job | {"output": "e.mp4", "lora": 3},
    ]
    (tmp_path / "jobs.jsonl").write_text("\n".join(map(json.dumps, jobs)))
    done = wan_s2v("batch", tmp_path / "jobs.jsonl", "-m", model, *FAST, "--lora", f"{common}:2", "-q")
    assert done.code == 1
    assert [line.split(":")[1].strip() for line in done.errors] == ["job 4", "job 5"]
    both = [("own.safetensors", 0.5), ("common.safetensors", 1.0)]
    assert used == [[("common.safetensors", 2.0)]] * 2 + [both] * 2 + [[]] * 2


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [None, INT8, FLOAT8], ids=["bfloat16", "int8", "float8"])
def test_branches_on_a_gpu_equal_merged_weights(dtype):
    """Beside cuBLAS layers with GELU in their epilogue, and beside 8-bit products of tokens rounded in the kernel."""
    plain = random_transformer(attention_head_dim=64, ffn_dim=256)
    pairs = random_pairs(plain)
    exact, without = predict(merged(plain, pairs)), predict(plain)
    made = copy.deepcopy(plain).to("cuda", torch.bfloat16)
    if dtype:
        quantize(made, dtype)
    before = predict(made)
    adapters = Adapters(made)
    adapters.add("a", read_lora(in_style(comfy_style, plain, pairs), made.config), RANK / ALPHA)
    found = predict(made)
    assert (found - exact).norm() < (0.15 if dtype else 0.05) * (without - exact).norm()
    adapters.clear()
    assert torch.equal(predict(made), before)
