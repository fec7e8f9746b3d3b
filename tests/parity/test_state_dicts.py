"""Every tensor of the published checkpoints has its place in our models, by name and shape, at full size."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import GOLDENS
from diffusers import AutoencoderKLWan, WanTransformer3DModel

from wan_s2v.models.config import S2V_14B
from wan_s2v.weights.checkpoint import build_on_meta
from wan_s2v.weights.configs import (
    official_transformer_config,
    plain_transformer_config,
    text_encoder_config,
    transformer_config,
    vae_config,
)
from wan_s2v.weights.files import StoredTensor
from wan_s2v.weights.names import (
    inverse,
    plain_transformer_names,
    rename,
    text_encoder_names,
    transformer_names,
    vae_names,
)

DTYPES = {"bfloat16": "BF16", "float32": "F32"}
S2V_CONFIG = json.loads((GOLDENS / "state_dict" / "s2v_14b_config.json").read_text())


def published(name: str) -> dict[str, StoredTensor]:
    listed = json.loads((GOLDENS / "state_dict" / f"{name}.json").read_text())
    return {k: StoredTensor(Path(name), k, DTYPES[dtype], tuple(shape), 0) for k, (dtype, shape) in listed.items()}


def s2v_config(headers: Mapping[str, StoredTensor]) -> dict[str, Any]:
    return transformer_config(headers, S2V_CONFIG, "config.json")


def t2v_config(headers: Mapping[str, StoredTensor]) -> dict[str, Any]:
    return plain_transformer_config("t2v", headers, {"model_type": "t2v", "dim": 5120, "num_heads": 40}, "config.json")


def i2v_config(headers: Mapping[str, StoredTensor]) -> dict[str, Any]:
    return plain_transformer_config("i2v", headers, {"model_type": "i2v", "in_dim": 36}, "config.json")


def ti2v_config(headers: Mapping[str, StoredTensor]) -> dict[str, Any]:
    return plain_transformer_config("ti2v", headers, {}, "a file without a config")


CASES = [
    ("s2v_14b_transformer", "transformer", s2v_config, transformer_names, 1260),
    ("t2v_a14b_transformer", "transformer", t2v_config, plain_transformer_names, 1095),
    ("i2v_a14b_transformer", "transformer_2", i2v_config, plain_transformer_names, 1095),
    ("ti2v_5b_transformer", "transformer", ti2v_config, plain_transformer_names, 825),
    ("wan21_vae", "vae", vae_config, vae_names, 194),
    ("wan22_vae", "vae", vae_config, vae_names, 196),
    ("umt5_xxl_encoder", "text_encoder", text_encoder_config, text_encoder_names, 242),
]


@pytest.mark.parametrize(("name", "component", "read_config", "names_of", "count"), CASES, ids=[c[0] for c in CASES])
def test_every_published_tensor_has_its_place(
    name: str, component: str, read_config: Callable[..., Any], names_of: Callable[..., Any], count: int
) -> None:
    headers = published(name)
    config = read_config(headers)
    table = names_of(config)
    expected = {k: tuple(v.shape) for k, v in build_on_meta(component, config).state_dict().items()}
    expected.pop("encoder.embed_tokens.weight", None)  # tied to shared.weight
    ours = {rename(official, table): stored.shape for official, stored in headers.items()}
    assert len(headers) == count
    assert ours == expected
    assert {rename(key, inverse(table)) for key in expected} == set(headers)


def test_the_config_of_the_14b_release_is_read_from_its_tensors() -> None:
    assert s2v_config(published("s2v_14b_transformer")) == S2V_14B


@pytest.mark.parametrize(
    ("name", "read_config", "expected"),
    [
        ("t2v_a14b_transformer", t2v_config, {"in_channels": 16, "out_channels": 16}),
        ("i2v_a14b_transformer", i2v_config, {"in_channels": 36, "out_channels": 16}),
        (
            "ti2v_5b_transformer",
            ti2v_config,
            {"in_channels": 48, "out_channels": 48, "num_attention_heads": 24, "ffn_dim": 14336, "num_layers": 30},
        ),
    ],
)
def test_configs_of_the_other_releases_differ_from_diffusers_defaults_as_published(
    name: str, read_config: Callable[..., Any], expected: dict[str, Any]
) -> None:
    with torch.device("meta"):
        defaults = dict(WanTransformer3DModel(num_layers=1).config) | {"num_layers": 40}
    read = read_config(published(name))
    assert read == {key: defaults[key] for key in read} | expected


def test_the_official_config_survives_the_way_to_ours_and_back() -> None:
    assert official_transformer_config(S2V_14B) == S2V_CONFIG


def test_a_single_file_without_any_config_is_recognised_as_the_14b_release() -> None:
    assert transformer_config(published("s2v_14b_transformer"), {}, "file") == S2V_14B


def test_the_wan21_vae_read_from_tensors_is_the_default_of_diffusers() -> None:
    defaults = dict(AutoencoderKLWan().config)
    read = vae_config(published("wan21_vae"))
    assert {key: defaults[key] for key in read} == read


def test_the_wan22_vae_is_read_from_its_tensors() -> None:
    read = vae_config(published("wan22_vae"))
    expected = {
        "base_dim": 160,
        "decoder_base_dim": 256,
        "z_dim": 48,
        "dim_mult": [1, 2, 4, 4],
        "num_res_blocks": 2,
        "temperal_downsample": [False, True, True],
        "is_residual": True,
        "in_channels": 12,
        "out_channels": 12,
        "patch_size": 2,
        "scale_factor_temporal": 4,
        "scale_factor_spatial": 16,
    }
    assert {key: read[key] for key in expected} == expected
    assert len(read["latents_mean"]) == len(read["latents_std"]) == 48


def test_umt5_xxl_is_read_from_its_tensors() -> None:
    read = text_encoder_config(published("umt5_xxl_encoder"))
    expected = {"vocab_size": 256384, "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64}
    assert {key: read[key] for key in expected} == expected
