"""Published tensor names and ours, and what model a set of tensor names belongs to.

The one place that knows the official vocabulary. Every table maps the path of a module (or of a bare parameter) in the
official code to its path in our classes or those of diffusers and transformers; shapes never change.

Source: Wan-Video/Wan2.2 `wan/modules/` (s2v, vae2_1.py, vae2_2.py, t5.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final, Literal

from wan_s2v.errors import CheckpointError
from wan_s2v.ops.gguf import BLOCKS
from wan_s2v.weights.tensors import FLOAT8, INT8_ROWS, StoredTensor

Task = Literal["s2v", "t2v", "i2v", "ti2v"]
S2V_REPOSITORY: Final = "Wan-AI/Wan2.2-S2V-14B"
REPOSITORIES: Final[dict[Task, str]] = {
    "s2v": S2V_REPOSITORY,
    "t2v": "Wan-AI/Wan2.2-T2V-A14B",
    "i2v": "Wan-AI/Wan2.2-I2V-A14B",
    "ti2v": "Wan-AI/Wan2.2-TI2V-5B",
}
TASKS: Final = frozenset(REPOSITORIES)
TWO_EXPERTS: Final = frozenset({"t2v", "i2v"})  # always, in this generation of Wan
_CHANNELS: Final[dict[int, Task]] = {16: "t2v", 36: "i2v", 48: "ti2v"}  # that a transformer without audio takes
_PREFIXES = ("model.diffusion_model.", "diffusion_model.")  # of Comfy-Org and Kijai single files
_ATTENTION = {"q": "to_q", "k": "to_k", "v": "to_v", "o": "to_out.0", "norm_q": "norm_q", "norm_k": "norm_k"}
_PLAIN_TRANSFORMER = {
    "patch_embedding": "patch_embedding",
    "text_embedding.0": "condition_embedder.text_embedder.linear_1",
    "text_embedding.2": "condition_embedder.text_embedder.linear_2",
    "time_embedding.0": "condition_embedder.time_embedder.linear_1",
    "time_embedding.2": "condition_embedder.time_embedder.linear_2",
    "time_projection.1": "condition_embedder.time_proj",
    "head.modulation": "scale_shift_table",
    "head.head": "proj_out",
}
_SPEECH = {
    "cond_encoder": "pose_embedding",
    "trainable_cond_mask": "token_type_embedding",
    "casual_audio_encoder.weights": "audio_encoder.layer_weights",
    "casual_audio_encoder.encoder.padding_tokens": "audio_encoder.padding_tokens",
    "casual_audio_encoder.encoder.conv1_local.conv": "audio_encoder.conv1_local",
    "casual_audio_encoder.encoder.conv1_global.conv": "audio_encoder.conv1_global",
    "casual_audio_encoder.encoder.conv2.conv": "audio_encoder.conv2",
    "casual_audio_encoder.encoder.conv3.conv": "audio_encoder.conv3",
    "casual_audio_encoder.encoder.final_linear": "audio_encoder.final_linear",
    "frame_packer.proj": "motion_packer.proj",
    "frame_packer.proj_2x": "motion_packer.proj_2x",
    "frame_packer.proj_4x": "motion_packer.proj_4x",
}
_BLOCK = {
    "modulation": "scale_shift_table",
    "norm3": "norm2",
    "ffn.0": "ffn.net.0.proj",
    "ffn.2": "ffn.net.2",
    **{f"self_attn.{official}": f"attn1.{ours}" for official, ours in _ATTENTION.items()},
    **{f"cross_attn.{official}": f"attn2.{ours}" for official, ours in _ATTENTION.items()},
}
_SCALES = (".scale_weight", ".weight_scale", ".weight_scale_2", ".pre_quant_scale")  # that no weight has taken
_VAE_RESIDUAL = {
    "residual.0": "norm1",
    "residual.2": "conv1",
    "residual.3": "norm2",
    "residual.6": "conv2",
    "shortcut": "conv_shortcut",
}
_VAE_RESAMPLE = {"resample.1": "resample.1", "time_conv": "time_conv"}
_VAE_ATTENTION = {"norm": "norm", "to_qkv": "to_qkv", "proj": "proj"}
_T5_BLOCK = {
    "norm1": "layer.0.layer_norm",
    "attn.q": "layer.0.SelfAttention.q",
    "attn.k": "layer.0.SelfAttention.k",
    "attn.v": "layer.0.SelfAttention.v",
    "attn.o": "layer.0.SelfAttention.o",
    "pos_embedding.embedding": "layer.0.SelfAttention.relative_attention_bias",
    "norm2": "layer.1.layer_norm",
    "ffn.gate.0": "layer.1.DenseReluDense.wi_0",
    "ffn.fc1": "layer.1.DenseReluDense.wi_1",
    "ffn.fc2": "layer.1.DenseReluDense.wo",
}


def plain_transformer_names(config: Mapping[str, Any]) -> dict[str, str]:
    """Official → diffusers `WanTransformer3DModel`, for the models without audio."""
    names = dict(_PLAIN_TRANSFORMER)
    for n in range(config["num_layers"]):
        names |= _nested(f"blocks.{n}", f"blocks.{n}", _BLOCK)
    return names


def transformer_names(config: Mapping[str, Any]) -> dict[str, str]:
    """Official → ours, for the S2V transformer with this (our) config."""
    names = plain_transformer_names(config) | _SPEECH
    for k in range(len(config["audio_inject_layers"])):
        names |= _nested(f"audio_injector.injector.{k}", f"audio_injector.attentions.{k}", _ATTENTION)
        names[f"audio_injector.injector_adain_layers.{k}.linear"] = f"audio_injector.adain.{k}.linear"
    return names


def vae_names(config: Mapping[str, Any]) -> dict[str, str]:
    """Official → diffusers `AutoencoderKLWan`, for both kinds of Wan VAE."""
    names = {"conv1": "quant_conv", "conv2": "post_quant_conv"}
    for side in ("encoder", "decoder"):
        names |= {f"{side}.conv1": f"{side}.conv_in", f"{side}.head.0": f"{side}.norm_out"}
        names[f"{side}.head.2"] = f"{side}.conv_out"
        names |= _nested(f"{side}.middle.0", f"{side}.mid_block.resnets.0", _VAE_RESIDUAL)
        names |= _nested(f"{side}.middle.1", f"{side}.mid_block.attentions.0", _VAE_ATTENTION)
        names |= _nested(f"{side}.middle.2", f"{side}.mid_block.resnets.1", _VAE_RESIDUAL)
    return names | _vae_levels(config)


def _vae_levels(config: Mapping[str, Any]) -> dict[str, str]:
    residual, levels, depth = config["is_residual"], len(config["dim_mult"]), config["num_res_blocks"]
    names: dict[str, str] = {}
    for level in range(levels):
        for j in range(depth + (level < levels - 1)):
            flat = level * (depth + 1) + j
            table = _VAE_RESIDUAL if j < depth else _VAE_RESAMPLE
            part = f"resnets.{j}" if j < depth else "downsampler"
            ours = f"encoder.down_blocks.{level}.{part}" if residual else f"encoder.down_blocks.{flat}"
            official = f"{level}.downsamples.{j}" if residual else str(flat)
            names |= _nested(f"encoder.downsamples.{official}", ours, table)
        for j in range(depth + 1 + (level < levels - 1)):
            table = _VAE_RESIDUAL if j <= depth else _VAE_RESAMPLE
            part = f"resnets.{j}" if j <= depth else ("upsampler" if residual else "upsamplers.0")
            official = f"{level}.upsamples.{j}" if residual else str(level * (depth + 2) + j)
            names |= _nested(f"decoder.upsamples.{official}", f"decoder.up_blocks.{level}.{part}", table)
    return names


def text_encoder_names(config: Mapping[str, Any]) -> dict[str, str]:
    """Official → transformers `UMT5EncoderModel`."""
    names = {"token_embedding": "shared", "norm": "encoder.final_layer_norm"}
    for n in range(config["num_layers"]):
        names |= _nested(f"blocks.{n}", f"encoder.block.{n}", _T5_BLOCK)
    return names


def _nested(official: str, ours: str, table: Mapping[str, str]) -> dict[str, str]:
    return {f"{official}.{a}": f"{ours}.{b}" for a, b in table.items()}


def rename(name: str, table: Mapping[str, str]) -> str | None:
    """The other name of a tensor, or None where the table does not know its module."""
    if name in table:
        return table[name]
    module, _, leaf = name.rpartition(".")
    return f"{table[module]}.{leaf}" if module in table else None


def inverse(table: Mapping[str, str]) -> dict[str, str]:
    return {ours: official for official, ours in table.items()}


def speech_encoder_name(name: str) -> str:
    """Our name of a wav2vec2 tensor: without the CTC model's prefix, with today's name of the weight norm."""
    name = name.removeprefix("wav2vec2.")
    name = name.replace("conv.weight_g", "conv.parametrizations.weight.original0")
    return name.replace("conv.weight_v", "conv.parametrizations.weight.original1")


def strip_prefix(headers: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """The same tensors without the prefix that single files put before every name of the transformer."""
    for prefix in _PREFIXES:
        inside = {name.removeprefix(prefix): item for name, item in headers.items() if name.startswith(prefix)}
        if inside:
            return inside
    return dict(headers)


def is_s2v(names: Iterable[str]) -> bool:
    names = set(names)
    official = {"patch_embedding.weight", "casual_audio_encoder.weights"}
    return official <= names or {"patch_embedding.weight", "audio_encoder.layer_weights"} <= names


def is_vae(names: Iterable[str]) -> bool:
    return {"encoder.conv1.weight", "decoder.conv1.weight", "decoder.head.0.gamma"} <= set(names)


def is_text_encoder(names: Iterable[str]) -> bool:
    names = set(names)
    official = {"token_embedding.weight", "blocks.0.pos_embedding.embedding.weight"}
    theirs = {"shared.weight", "encoder.block.0.layer.0.SelfAttention.q.weight"}
    if "encoder.block.1.layer.0.SelfAttention.q.weight" in names:  # T5, no umT5, has this only in its first block
        theirs.add("encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight")
    return official <= names or theirs <= names


def is_speech_encoder(names: Iterable[str]) -> bool:
    names = {speech_encoder_name(name) for name in names}
    return {"feature_projection.projection.weight", "encoder.layers.0.attention.k_proj.weight"} <= names


def task_of(headers: Mapping[str, StoredTensor]) -> Task | None:
    """What a transformer does, by its tensors' names and input channels; None for what is no Wan2.2 transformer."""
    if is_s2v(headers):
        return "s2v"
    patch = headers.get("patch_embedding.weight")
    is_plain = any(head in headers for head in ("head.head.weight", "condition_embedder.time_proj.weight"))
    if patch is None or not is_plain or any(mark in name for mark in _DERIVED for name in headers):
        return None
    return _CHANNELS.get(patch.shape[1]) if len(patch.shape) == 5 else None


def require_task(
    headers: Mapping[str, StoredTensor], where: str, two_experts: bool, tasks: frozenset[Task] = frozenset({"s2v"})
) -> Task:
    """What a transformer does; passes only for one of these tasks, in a format that is read.

    Raises: CheckpointError that names what was given instead.
    """
    if any("lora_" in name or ".lora" in name or "lokr_" in name or "hada_" in name for name in headers):
        raise CheckpointError(f"{where} is a LoRA, not a model. Load a model first, then call load_lora_weights.")
    task = task_of(headers)
    if task in tasks and (two_experts or task not in TWO_EXPERTS):
        require_known_format(headers, where)
        return task
    what = "S2V (driven by speech)" if task == "s2v" else _other_model(headers, two_experts)
    repository = REPOSITORIES[task] if task in tasks else S2V_REPOSITORY
    if task in tasks:
        needed = "that is one expert of two. Pass the folder that holds high_noise_model/ and low_noise_model/"
    elif tasks == {"s2v"}:
        needed = f"S2V needs {S2V_REPOSITORY}"
    else:
        needed = f"accepted are {', '.join(REPOSITORIES[name] for name in REPOSITORIES if name in tasks)}"
    raise CheckpointError(f"{where} is {what}; {needed}. Get it with: wan-s2v download {repository}")


def require_known_format(headers: Mapping[str, StoredTensor], where: str) -> None:
    """Raises: CheckpointError if any tensor is quantized in a way that is not read."""
    known = {"F32", "F16", "BF16", *FLOAT8, *BLOCKS}
    other = {name: item.dtype for name, item in headers.items() if item.dtype not in known and item.scale is None}
    other |= {name: "another scale" for name in headers if name.endswith(_SCALES)}
    for first, kind in other.items():
        raise CheckpointError(
            f"{where} holds quantized weights ({kind}, first: {first}), which are not supported. Of 8-bit safetensors,"
            f" those are read whose float8 weights have a scale per tensor or row, or whose metadata say"
            f" storage={INT8_ROWS}; of GGUF files, {', '.join(BLOCKS)}. Fetch one of those, or the bf16 or fp16 file."
        )


def _other_model(headers: Mapping[str, StoredTensor], two_experts: bool) -> str:
    if is_vae(headers) or "encoder.conv_in.weight" in headers:
        return "a VAE, not a transformer"
    if is_text_encoder(headers):
        return "a text encoder, not a transformer"
    wan = {"patch_embedding.weight", "head.head.weight"} <= headers.keys()
    wan_diffusers = {"patch_embedding.weight", "condition_embedder.time_proj.weight"} <= headers.keys()
    if not (wan or wan_diffusers):
        return f"not a Wan checkpoint (its tensors: {', '.join(list(headers)[:2]) or 'none'}, …)"
    for mark, label in _DERIVED.items():
        if any(mark in name for name in headers):
            return label
    patch = headers["patch_embedding.weight"].shape
    width, channels = (*patch, 0, 0)[:2]
    experts = "two experts, no audio" if two_experts else "no audio"
    sizes = {16: "T2V", 36: "I2V", 48: "TI2V"}
    if (width, channels) == (3072, 48):
        return "TI2V-5B (no audio)"
    if width == 5120 and channels in (16, 36):
        return f"{sizes[channels]}-{'A14B' if two_experts else '14B'} ({experts})"
    return f"a Wan {sizes.get(channels, 'video')} transformer of width {width} ({experts})"


_DERIVED = {
    "vace_blocks": "VACE (no speech input)",
    "face_adapter": "Animate-14B (driven by a video, not by speech)",
    "audio_cross_attn": "another speech model built on Wan (MultiTalk, InfiniteTalk or HuMo)",
    "img_emb": "Wan2.1 I2V (no audio)",
}
