"""The tensors of a LoRA file by their names: whose change each is, in any usual naming style, and whether it fits.

Source of the names: ModelTC/Wan2.2-Lightning `wan/utils/utils.py`, ModelTC/LightX2V `lightx2v/utils/lora_loader.py`
(`diff`, `diff_b` and `diff_m`: of weight, bias and modulation), kohya-ss/musubi-tuner
`src/musubi_tuner/networks/lora_wan.py`, huggingface/diffusers `src/diffusers/loaders/lora_conversion_utils.py`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any, Final, Literal, NamedTuple, TypeAlias

from wan_s2v.errors import CheckpointError
from wan_s2v.weights.checkpoint import build_on_meta
from wan_s2v.weights.names import plain_transformer_names, transformer_names

Shape: TypeAlias = tuple[int, ...]
Role = Literal["down", "up", "up_bias", "alpha", "diff"]

_PREFIXES: Final = (
    "base_model.model.",
    "model.diffusion_model.",
    "diffusion_model.",
    "transformer.",
    "pipe.dit.",
    "lora_unet_",
)
_KEY: Final = re.compile(
    r"(?P<path>.+)\.(?:(?P<side>lora_A|lora_B|lora_down|lora_up)(?:\.\w+)?\.(?P<leaf>weight|bias)"
    r"|(?P<kind>alpha|diff|diff_b|diff_m))"
)
_OTHER_METHODS: Final = {
    "dora_scale": "DoRA",
    "lora_magnitude_vector": "DoRA",
    "hada_": "LoHa",
    "lokr_": "LoKr",
    "oft_": "OFT",
}
_OF_I2V: Final = re.compile(r"img_emb|image_embedder|[kv]_img|add_[kv]_proj|norm_added_k")
_SIZES: Final = {1536: "the 1.3B models", 3072: "TI2V-5B", 5120: "the 14B models"}  # by width


class Slot(NamedTuple):
    """What a tensor of a LoRA is: its part in the change of one parameter."""

    parameter: str
    role: Role


class Layout(NamedTuple):
    """Every tensor of a LoRA accounted for: the key of each slot, and what is not of this kind of model."""

    keys: Mapping[Slot, str]
    left_out: tuple[str, ...]


def lay_out(name: str, found: Mapping[str, Shape], config: Mapping[str, Any]) -> Layout:
    """Raises: CheckpointError for any tensor that has no place in the model, and for any that lacks its partner."""
    _require_low_rank(name, found)
    hashable = tuple((key, _as_tuple(value)) for key, value in config.items() if not key.startswith("_"))
    shapes, names = _expected(hashable)
    keys: dict[Slot, str] = {}
    left_out, unknown = [], []
    skips_input = _has_other_input(found, shapes, names)
    for key in found:
        slot = _slot(key, shapes, names)
        if _OF_I2V.search(key) or (skips_input and slot and slot.parameter.startswith("patch_embedding.")):
            left_out.append(key)
        elif slot is None:
            unknown.append(key)
        elif slot in keys:
            raise CheckpointError(f"{name} holds both {keys[slot]} and {key}. Use a file with one of them.")
        else:
            keys[slot] = key
    if unknown:
        raise CheckpointError(
            f"{name} holds {len(unknown)} tensors that this model has no place for: {listed(unknown)}. It was "
            "made for another model, or with a method that is not supported. Nothing was changed."
        )
    if not keys:
        raise CheckpointError(
            f"{name} changes only layers that this model lacks: {listed(left_out)}. Use another LoRA."
        )
    _require_partners(keys, name)
    for slot, key in keys.items():
        _require_shape(slot, key, name, found, shapes, keys)
    return Layout(keys, tuple(left_out))


def _require_low_rank(name: str, found: Mapping[str, Shape]) -> None:
    """Raises: CheckpointError for other methods than LoRA, and for what is no adapter at all."""
    for mark, method in _OTHER_METHODS.items():
        first = next((key for key in found if mark in key), None)
        if first is not None:
            raise CheckpointError(
                f"{name} is a {method} ({first}), which is not supported. Use a plain LoRA; "
                "some trainers and ComfyUI can extract one from it."
            )
    if not any(_KEY.fullmatch(key) for key in found):
        some = ", ".join(list(found)[:2]) or "none"
        raise CheckpointError(
            f"{name} is not a LoRA (its tensors: {some}, …). Pass a file with pairs such as lora_A and lora_B."
        )


@lru_cache(maxsize=4)
def _expected(config: tuple[tuple[str, Any], ...]) -> tuple[Mapping[str, Shape], Mapping[str, str]]:
    """Shapes of the model's parameters, and our name of every module or bare parameter by each of its spellings."""
    model = build_on_meta("transformer", dict(config))
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    names = {}
    table = transformer_names if hears_sound(dict(config)) else plain_transformer_names
    for official, ours in table(dict(config)).items():
        for spelling in (official, ours):
            names[spelling] = names[spelling.replace(".", "_")] = ours
    return shapes, names


def hears_sound(config: Mapping[str, Any]) -> bool:
    """Whether a transformer of this config is S2V's."""
    return "audio_inject_layers" in config


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def layer_of(key: str) -> str:
    """The layer in a key of any style, without prefixes."""
    match = _KEY.fullmatch(key)
    path = match["path"] if match else key
    for prefix in _PREFIXES:
        path = path.removeprefix(prefix)
    return path


def _slot(key: str, shapes: Mapping[str, Shape], names: Mapping[str, str]) -> Slot | None:
    """None where the key is of no known style, or the model has no such layer."""
    match = _KEY.fullmatch(key)
    if match is None:
        return None
    side, kind = match["side"], match["kind"]
    module = names.get(f"{layer_of(key)}.modulation" if kind == "diff_m" else layer_of(key))
    if module in shapes:  # a bare parameter
        return Slot(module, "diff") if module and kind in ("diff", "diff_m") else None
    leaf = "bias" if kind == "diff_b" or match["leaf"] == "bias" else "weight"
    if f"{module}.{leaf}" not in shapes or kind == "diff_m":
        return None
    if side is None:
        return Slot(f"{module}.{leaf}", "alpha" if kind == "alpha" else "diff")
    if side in ("lora_A", "lora_down"):
        return Slot(f"{module}.weight", "down") if leaf == "weight" else None
    return Slot(f"{module}.{leaf}", "up" if leaf == "weight" else "up_bias")


def _has_other_input(found: Mapping[str, Shape], shapes: Mapping[str, Shape], names: Mapping[str, str]) -> bool:
    """Whether it was made for latents with other channels, as those of I2V: its input layer is not of use here."""
    for key, shape in found.items():
        slot = _slot(key, shapes, names)
        if slot and slot.parameter == "patch_embedding.weight" and slot.role in ("down", "diff") and len(shape) > 1:
            return shape[1] != shapes[slot.parameter][1]
    return False


def _require_partners(keys: Mapping[Slot, str], name: str) -> None:
    needs: dict[Role, tuple[Role, ...]] = {"down": ("up",), "up": ("down",), "alpha": ("down",), "up_bias": ("down",)}
    for slot, key in keys.items():
        weight = f"{slot.parameter.removesuffix('bias')}weight" if slot.role == "up_bias" else slot.parameter
        for role in needs.get(slot.role, ()):
            if Slot(weight, role) not in keys:
                raise CheckpointError(f"{name} is not complete: {key} has no partner ({role}). Fetch it again.")


def _require_shape(
    slot: Slot,
    key: str,
    name: str,
    found: Mapping[str, Shape],
    shapes: Mapping[str, Shape],
    keys: Mapping[Slot, str],
) -> None:
    """Raises: CheckpointError that names the shape found, the shape needed and the model that it may be of."""
    shape, target = found[key], shapes[slot.parameter]
    if slot.role == "alpha":
        fits, needed = math.prod(shape) == 1, "one number"
    elif slot.role == "down":
        fits, needed = len(shape) > 1 and shape[0] > 0 and shape[1:] == target[1:], f"(rank, {_sizes(target[1:])})"
    elif slot.role == "up":
        rank = (found[keys[Slot(slot.parameter, "down")]] or (0,))[0]
        fits = len(shape) > 1 and shape[0] == target[0] and math.prod(shape[1:]) == rank
        needed = f"({target[0]}, {rank})"
    else:
        fits, needed = shape == target, f"({_sizes(target)})"
    if not fits:
        of = [_SIZES[size] for size in shape if size in _SIZES and size not in target]
        hint = f"That is a size of {of[0]}" if of else "It was made for another model"
        raise CheckpointError(
            f"{name}: {key} has the shape ({_sizes(shape)}) where {slot.parameter} of shape ({_sizes(target)}) "
            f"needs {needed}. {hint}. Use a LoRA for this model; nothing was changed."
        )


def _sizes(shape: Shape) -> str:
    return ", ".join(map(str, shape))


def listed(keys: Iterable[str]) -> str:
    """All keys in few words: those that differ only in numbers are told together."""
    alike: dict[str, list[str]] = {}
    for key in keys:
        alike.setdefault(re.sub(r"(?<=[._])\d+(?=[._])", "*", key), []).append(key)
    return ", ".join(
        f"{pattern} ({len(members)}x)" if len(members) > 1 else members[0] for pattern, members in alike.items()
    )
