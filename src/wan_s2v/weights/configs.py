"""Configs of the models, read from the tensors: the published files state only some of the sizes.

Every function takes tensors by their official names and gives the keywords of the class that will hold them. What a
config file says is believed only where the tensors cannot contradict it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from itertools import groupby
from typing import Any, Final

from wan_s2v.errors import CheckpointError
from wan_s2v.models.config import S2V_14B
from wan_s2v.weights.names import Task
from wan_s2v.weights.tensors import StoredTensor

Headers = Mapping[str, StoredTensor]

_OFFICIAL_KEYS: Final = {
    "in_dim": "in_channels",
    "out_dim": "out_channels",
    "cond_dim": "pose_channels",
    "num_heads": "num_attention_heads",
    "ffn_dim": "ffn_dim",
    "num_layers": "num_layers",
    "freq_dim": "freq_dim",
    "text_dim": "text_dim",
    "text_len": "text_len",
    "eps": "eps",
    "audio_dim": "audio_dim",
    "num_audio_token": "num_audio_tokens",
    "audio_inject_layers": "audio_inject_layers",
    "enable_adain": "use_adain",
    "framepack_drop_mode": "motion_drop_mode",
    "patch_size": "patch_size",
}
_UNSTATED = {"patch_size", "text_dim"}  # keys that the official config.json never carries
_FIXED: Final = {  # variants of the official code that no published checkpoint uses
    "model_type": "s2v",
    "adain_mode": "attn_norm",
    "enable_framepack": True,
    "enable_motioner": False,
    "enable_tsm": False,
    "trainable_token_pos_emb": False,
    "zero_timestep": True,
}
_FIXED_PLAIN: Final = {"text_len": 512, "qk_norm": True, "cross_attn_norm": True, "window_size": [-1, -1]}
_OFFICIAL_EXTRAS: Final = {
    "_class_name": "WanModel_S2V",
    "add_last_motion": True,
    "motion_token_num": 1024,
    "zero_init": True,
}
_HEAD_DIM = 128  # of every published Wan model; tensors do not show it

_SPEECH_STRIDES = (5, 2, 2, 2, 2, 2, 2)
_SPEECH_HEAD_DIM = 64

_MEAN_21 = (
    -0.7571,
    -0.7089,
    -0.9113,
    0.1075,
    -0.1745,
    0.9653,
    -0.1517,
    1.5508,
    0.4134,
    -0.0715,
    0.5517,
    -0.3632,
    -0.1922,
    -0.9497,
    0.2503,
    -0.2921,
)
_STD_21 = (
    2.8184,
    1.4541,
    2.3275,
    2.6558,
    1.2196,
    1.7708,
    2.6052,
    2.0743,
    3.2687,
    2.1526,
    2.8652,
    1.5579,
    1.6382,
    1.1253,
    2.8251,
    1.916,
)
_MEAN_22 = (
    -0.2289,
    -0.0052,
    -0.1323,
    -0.2339,
    -0.2799,
    0.0174,
    0.1838,
    0.1557,
    -0.1382,
    0.0542,
    0.2813,
    0.0891,
    0.157,
    -0.0098,
    0.0375,
    -0.1825,
    -0.2246,
    -0.1207,
    -0.0698,
    0.5109,
    0.2665,
    -0.2108,
    -0.2158,
    0.2502,
    -0.2055,
    -0.0322,
    0.1109,
    0.1567,
    -0.0729,
    0.0899,
    -0.2799,
    -0.123,
    -0.0313,
    -0.1649,
    0.0117,
    0.0723,
    -0.2839,
    -0.2083,
    -0.052,
    0.3748,
    0.0152,
    0.1957,
    0.1433,
    -0.2944,
    0.3573,
    -0.0548,
    -0.1681,
    -0.0667,
)
_STD_22 = (
    0.4765,
    1.0364,
    0.4514,
    1.1677,
    0.5313,
    0.499,
    0.4818,
    0.5013,
    0.8158,
    1.0344,
    0.5894,
    1.0901,
    0.6885,
    0.6165,
    0.8454,
    0.4978,
    0.5759,
    0.3523,
    0.7135,
    0.6804,
    0.5833,
    1.4146,
    0.8986,
    0.5659,
    0.7069,
    0.5338,
    0.4889,
    0.4917,
    0.4069,
    0.4999,
    0.6866,
    0.4093,
    0.5709,
    0.6065,
    0.6415,
    0.4944,
    0.5726,
    1.2042,
    0.5458,
    1.6887,
    0.3971,
    1.06,
    0.3943,
    0.5537,
    0.5444,
    0.4089,
    0.7468,
    0.7744,
)
_LATENT_STATISTICS: Final = {16: (_MEAN_21, _STD_21), 48: (_MEAN_22, _STD_22)}  # by latent channels


def transformer_config(headers: Headers, stated: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Config of `WanS2VTransformer` from official tensors and what an official config.json (or {}) states.

    Raises: CheckpointError if the file contradicts the tensors, names an unsupported variant, or leaves open what the
        tensors cannot tell.
    """
    _require_fixed(_FIXED, stated, where)
    sizes = _plain_sizes(headers) | _speech_sizes(headers)
    return {
        **sizes,
        **_settled(sizes, headers, stated, where),
        "text_len": int(stated.get("text_len", S2V_14B["text_len"])),
        "audio_inject_layers": _inject_layers(headers, stated, sizes["num_layers"], where),
        "motion_drop_mode": str(stated.get("framepack_drop_mode", S2V_14B["motion_drop_mode"])),
        "motion_buckets": S2V_14B["motion_buckets"],
    }


def plain_transformer_config(task: Task, headers: Headers, stated: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Config of diffusers' `WanTransformer3DModel` from official tensors and what a config.json (or {}) states.

    Raises: CheckpointError as `transformer_config`.
    """
    _require_fixed(_FIXED_PLAIN | {"model_type": task}, stated, where)
    sizes = _plain_sizes(headers)
    return sizes | _settled(sizes, headers, stated, where)


def _require_fixed(fixed: Mapping[str, Any], stated: Mapping[str, Any], where: str) -> None:
    for key, accepted in fixed.items():
        if stated.get(key, accepted) != accepted:
            raise CheckpointError(f"{where}: {key}={stated[key]!r} is not supported; accepted is {accepted!r}.")


def _settled(sizes: Mapping[str, Any], headers: Headers, stated: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Heads and epsilon, which tensors do not show, after comparing the sizes that they do show with the stated."""
    width = shape_of(headers, "patch_embedding.weight")[0]
    seen = {official: sizes[ours] for official, ours in _OFFICIAL_KEYS.items() if ours in sizes} | {"dim": width}
    for key, value in seen.items():
        said = stated.get(key, value)
        if (tuple(said) if isinstance(said, list) else said) != value:
            raise CheckpointError(
                f"{where} says {key}={said!r}, the tensors have {value!r}. The file belongs to another checkpoint;"
                " fetch it again."
            )
    heads = _num_heads(stated, width, where)
    eps = float(stated.get("eps", S2V_14B["eps"]))
    return {"num_attention_heads": heads, "attention_head_dim": width // heads, "eps": eps}


def official_transformer_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The official config.json of a transformer with this (our) config.

    Raises: CheckpointError for what the official code cannot express.
    """
    if tuple(config["motion_buckets"]) != S2V_14B["motion_buckets"]:
        raise CheckpointError(
            f"This transformer remembers {sum(config['motion_buckets'])} latent frames; the official layout has no"
            " setting for that. Keep it in the diffusers layout."
        )
    heads = config["num_attention_heads"]
    stated = {official: config[ours] for official, ours in _OFFICIAL_KEYS.items() if official not in _UNSTATED}
    stated["audio_inject_layers"] = list(stated["audio_inject_layers"])
    stated["dim"] = heads * config["attention_head_dim"]
    return dict(sorted((_OFFICIAL_EXTRAS | _FIXED | stated).items()))


def _plain_sizes(headers: Headers) -> dict[str, Any]:
    _, in_channels, *patch = shape_of(headers, "patch_embedding.weight")
    return {
        "patch_size": tuple(patch),
        "in_channels": in_channels,
        "out_channels": shape_of(headers, "head.head.weight")[0] // math.prod(patch),
        "ffn_dim": shape_of(headers, "blocks.0.ffn.0.weight")[0],
        "num_layers": count(headers, "blocks"),
        "freq_dim": shape_of(headers, "time_embedding.0.weight")[1],
        "text_dim": shape_of(headers, "text_embedding.0.weight")[1],
    }


def _speech_sizes(headers: Headers) -> dict[str, Any]:
    local = shape_of(headers, "casual_audio_encoder.encoder.conv1_local.conv.weight")
    return {
        "pose_channels": shape_of(headers, "cond_encoder.weight")[1],
        "audio_dim": local[1],
        "num_audio_layers": shape_of(headers, "casual_audio_encoder.weights")[1],
        "num_audio_tokens": local[0] // shape_of(headers, "casual_audio_encoder.encoder.conv2.conv.weight")[1],
        "use_adain": count(headers, "audio_injector.injector_adain_layers") > 0,
    }


def _num_heads(stated: Mapping[str, Any], width: int, where: str) -> int:
    heads = stated.get("num_heads", width // _HEAD_DIM if width % _HEAD_DIM == 0 else None)
    if not isinstance(heads, int) or heads < 1 or width % heads:
        raise CheckpointError(f"{where}: num_heads={heads!r} does not divide the width {width}. Correct the config.")
    return heads


def _inject_layers(headers: Headers, stated: Mapping[str, Any], num_layers: int, where: str) -> tuple[int, ...]:
    """Blocks with audio injection, ascending; injector k belongs to the k-th. The tensors show only how many."""
    standard = S2V_14B["audio_inject_layers"] if num_layers == S2V_14B["num_layers"] else ()
    layers = tuple(sorted(set(stated.get("audio_inject_layers", standard))))
    injectors = count(headers, "audio_injector.injector")
    if len(layers) != injectors or not all(isinstance(n, int) and 0 <= n < num_layers for n in layers):
        raise CheckpointError(
            f"{where}: audio_inject_layers={list(layers)} does not fit {injectors} audio injectors in {num_layers}"
            " blocks. State the blocks in the config."
        )
    return layers


def vae_config(headers: Headers) -> dict[str, Any]:
    """Config of diffusers' `AutoencoderKLWan` from the official tensors of a Wan2.1 or Wan2.2 VAE."""
    base, in_channels = shape_of(headers, "encoder.conv1.weight")[:2]
    residual = any(name.startswith("encoder.downsamples.0.downsamples.") for name in headers)
    levels = _encoder_levels(headers, residual)
    multipliers = [level[0] // base for level in levels]
    temporal = [level[2] for level in levels[:-1]]
    decoder_base = shape_of(headers, "decoder.conv1.weight")[0] // multipliers[-1]
    z_dim = shape_of(headers, "conv2.weight")[0]
    mean, std = _LATENT_STATISTICS.get(z_dim, ((0.0,) * z_dim, (1.0,) * z_dim))
    patch = math.isqrt(in_channels // 3)
    return {
        "base_dim": base,
        "decoder_base_dim": None if decoder_base == base else decoder_base,
        "z_dim": z_dim,
        "dim_mult": multipliers,
        "num_res_blocks": levels[0][1],
        "attn_scales": [],
        "temperal_downsample": temporal,
        "latents_mean": list(mean),
        "latents_std": list(std),
        "is_residual": residual,
        "in_channels": in_channels,
        "out_channels": shape_of(headers, "decoder.head.2.weight")[0],
        "patch_size": patch if patch > 1 else None,
        "scale_factor_temporal": 2 ** sum(temporal),
        "scale_factor_spatial": 2 ** (len(levels) - 1) * patch,
    }


def _encoder_levels(headers: Headers, residual: bool) -> list[tuple[int, int, bool]]:
    """(width, residual blocks, whether time is halved after it) of every encoder level; a resample ends a level."""
    paths = [f"encoder.downsamples.{k}" for k in _children(headers, "encoder.downsamples")]
    if residual:
        paths = [f"{path}.downsamples.{j}" for path in paths for j in _children(headers, f"{path}.downsamples")]
    levels: list[tuple[int, int, bool]] = []
    width = blocks = 0
    for path in paths:
        if f"{path}.resample.1.weight" in headers:
            levels.append((width, blocks, f"{path}.time_conv.weight" in headers))
            blocks = 0
        else:
            width, blocks = shape_of(headers, f"{path}.residual.6.weight")[0], blocks + 1
    return [*levels, (width, blocks, False)]


def text_encoder_config(headers: Headers) -> dict[str, Any]:
    """Config of transformers' `UMT5Config` from the official tensors of a umT5 encoder."""
    vocab_size, width = shape_of(headers, "token_embedding.weight")
    buckets, heads = shape_of(headers, "blocks.0.pos_embedding.embedding.weight")
    return {
        "vocab_size": vocab_size,
        "d_model": width,
        "d_kv": shape_of(headers, "blocks.0.attn.q.weight")[0] // heads,
        "d_ff": shape_of(headers, "blocks.0.ffn.fc1.weight")[0],
        "num_layers": count(headers, "blocks"),
        "num_heads": heads,
        "relative_attention_num_buckets": buckets,
        "relative_attention_max_distance": 128,
        "layer_norm_epsilon": 1e-6,
        "feed_forward_proj": "gated-gelu",
    }


def speech_encoder_config(headers: Headers) -> dict[str, Any]:
    """Config of transformers' `Wav2Vec2Config` from tensors by their names there, for a file that comes without one.

    Strides, head size and the order of norms are those of every published wav2vec2.
    """
    convolutions = [f"feature_extractor.conv_layers.{n}" for n in _children(headers, "feature_extractor.conv_layers")]
    shapes = [shape_of(headers, f"{path}.conv.weight") for path in convolutions]
    width = shape_of(headers, "feature_projection.projection.weight")[0]
    position = shape_of(headers, "encoder.pos_conv_embed.conv.parametrizations.weight.original1")
    if len(shapes) != len(_SPEECH_STRIDES) or width % _SPEECH_HEAD_DIM:
        raise CheckpointError(
            f"{next(iter(headers.values())).file} is a wav2vec2 of an unusual size ({len(shapes)} convolutions, width"
            f" {width}), which only a config tells in full. Pass its folder with config.json."
        )
    layered = f"{convolutions[1]}.layer_norm.weight" in headers  # the large models that hear any language
    return {
        "hidden_size": width,
        "num_hidden_layers": count(headers, "encoder.layers"),
        "num_attention_heads": width // _SPEECH_HEAD_DIM,
        "intermediate_size": shape_of(headers, "encoder.layers.0.feed_forward.intermediate_dense.weight")[0],
        "conv_dim": [shape[0] for shape in shapes],
        "conv_kernel": [shape[2] for shape in shapes],
        "conv_stride": list(_SPEECH_STRIDES),
        "conv_bias": f"{convolutions[0]}.conv.bias" in headers,
        "feat_extract_norm": "layer" if layered else "group",
        "do_stable_layer_norm": layered,
        "num_conv_pos_embeddings": position[2],
        "num_conv_pos_embedding_groups": position[0] // position[1],
    }


def shape_of(headers: Headers, name: str) -> tuple[int, ...]:
    """Shape of a tensor that the config depends on.

    Raises: CheckpointError if it is missing.
    """
    if name not in headers:
        file = next(iter(headers.values())).file if headers else "The file"
        raise CheckpointError(f"{file} lacks the weight {name}. The checkpoint is incomplete or of another model.")
    return headers[name].shape


def count(headers: Iterable[str], path: str) -> int:
    """How many numbered children a module has."""
    return len(_children(headers, path))


def _children(headers: Iterable[str], path: str) -> list[int]:
    pattern = re.compile(re.escape(path) + r"\.(\d+)\.")
    numbers = sorted(int(match[1]) for name in headers if (match := pattern.match(name)))
    return [number for number, _ in groupby(numbers)]
