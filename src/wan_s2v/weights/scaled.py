"""Which tensors of a safetensors file are scales of others, by each of the conventions in use.

Ours: int8 values `<name>` and `<name>.scale`. ComfyUI and Kijai: float8 values `<layer>.weight` and
`<layer>.scale_weight` (until late 2025) or `<layer>.weight_scale` (since then), beside scales for the activations and
notes for other programs, which are left out: we round activations row by row, or not at all.

Source: Comfy-Org/ComfyUI `QUANTIZATION.md`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from wan_s2v.errors import CheckpointError
from wan_s2v.weights.tensors import FLOAT8, StoredTensor

_WEIGHT_SCALES: Final = (".scale_weight", ".weight_scale")
_NOTES: Final = (".scale_input", ".input_scale", ".comfy_quant")
_MARKER: Final = "scaled_fp8"
_INT8_SCALES: Final = ("F32", "F16")
_FLOAT8_SCALES: Final = ("F32", "F16", "BF16")
_POSE_LAYER: Final = "cond_encoder.weight"
_POSE_ISSUE: Final = "https://github.com/kijai/ComfyUI-WanVideoWrapper/issues/1137"


def attach_scales(tensors: list[StoredTensor], *, int8: bool) -> list[StoredTensor]:
    """The tensors of one file with scales put into the tensors that they belong to.

    Args:
        int8: whether I8 tensors have scales as we write them.
    Raises: CheckpointError if a scale is missing or does not fit.
    """
    by_name = {stored.name: stored for stored in tensors}
    found = _int8_scales(by_name) if int8 else {}
    float8 = {name for name, stored in by_name.items() if stored.dtype in FLOAT8 and not name.endswith(_MARKER)}
    if float8:
        found |= _float8_scales(by_name, float8)
        _require_scales(by_name, float8, found)
    taken = set(found.values())
    return [
        replace(stored, scale=by_name[found[name]]) if name in found else stored
        for name, stored in by_name.items()
        if name not in taken and not (float8 and name.endswith((*_NOTES, _MARKER)))
    ]


def _int8_scales(by_name: Mapping[str, StoredTensor]) -> dict[str, str]:
    """Names of the scales of all int8 tensors, by theirs."""
    found = {name: f"{name}.scale" for name, stored in by_name.items() if stored.dtype == "I8"}
    for name, scale in found.items():
        stored = by_name[name]
        if scale not in by_name:
            raise CheckpointError(
                f"{stored.file}: {name} is stored as int8, but its scale {scale} is not in the file. Fetch or write the"
                " file again."
            )
        _require_fit(stored, by_name[scale], _INT8_SCALES, [stored.shape[:1]])
    return found


def _float8_scales(by_name: Mapping[str, StoredTensor], float8: set[str]) -> dict[str, str]:
    """Names of the scales of float8 tensors, by theirs; without those that have none."""
    found = {}
    for name in sorted(float8):
        layer = name.removesuffix(".weight")
        scale = next((layer + suffix for suffix in _WEIGHT_SCALES if layer + suffix in by_name), None)
        if scale is not None and name != layer:
            rows = by_name[name].shape[:1]
            _require_fit(by_name[name], by_name[scale], _FLOAT8_SCALES, [(), (1,), (1, 1), rows, (*rows, 1)])
            found[name] = scale
    return found


def _require_fit(
    stored: StoredTensor, scale: StoredTensor, dtypes: tuple[str, ...], shapes: list[tuple[int, ...]]
) -> None:
    if scale.dtype not in dtypes or not stored.shape or scale.shape not in shapes:
        accepted = " or ".join(str(shape) for shape in shapes)
        raise CheckpointError(
            f"{stored.file}: {scale.name} is {scale.dtype} of shape {scale.shape}; {stored.name}, {stored.dtype} of"
            f" shape {stored.shape}, needs {' or '.join(dtypes)} of shape {accepted}. Fetch or write the file again."
        )


def _require_scales(by_name: Mapping[str, StoredTensor], float8: set[str], found: Mapping[str, str]) -> None:
    """Raises: CheckpointError where a float8 tensor lacks a scale that others of its kind have."""
    kinds = {_kind(name) for name in found}
    for name in sorted(float8 - found.keys()):
        file = by_name[name].file
        if found and name.endswith(_POSE_LAYER):
            raise CheckpointError(
                f"{file}: the pose layer ({name}) is float8 without a scale. Early uploads of Kijai's file were made"
                f" that way by mistake ({_POSE_ISSUE}). Fetch the file again: the later one keeps it in 16 bits."
            )
        if _kind(name) in kinds:
            raise CheckpointError(
                f"{file}: {name} is float8 without a scale, which others of its kind have. Fetch the file again."
            )


def _kind(name: str) -> str:
    """What a tensor is, whatever its block."""
    return re.sub(r"\.\d+\.", ".N.", name)
