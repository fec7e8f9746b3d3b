"""Weights as int8 with one scale per row, at half the size of bf16: for storage only, loading expands them.

A file of this kind says storage=int8-rows in its metadata. A tensor `name` of dtype I8 has a companion `name.scale` of
shape (rows,), rows being its first dimension; its values are int8 * scale[row]. Reading is in files.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import torch
from safetensors.torch import save_file
from torch import Tensor

from wan_s2v.errors import CheckpointError
from wan_s2v.weights.files import INT8_ROWS
from wan_s2v.weights.shards import plan_shards, shard_file, write_index

MAX_FILE_BYTES: Final = 15_000_000
_MIN_ELEMENTS = 4096  # below, the bytes saved are not worth any error
_LEVELS = 127  # -127…127: symmetric, so that a weight and its negative stay so
# Rows with a few large values lose less by clipping them; on a trained VAE the best of these takes 0.5 % off the error.
_CLIP_RATIOS = tuple(1 - step / 40 for step in range(17))  # 1 … 0.6
_SMALLEST: Final = torch.finfo(torch.float32).tiny  # stands for the largest value of a row of zeros
_HEADER_BYTES = 200  # of a tensor in a file's header, besides its name; a generous bound


def quantize_rows(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """The int8 values and the scales (rows,), float32, that leave the smallest squared error in every row."""
    rows = tensor.detach().float().flatten(1)
    largest = rows.abs().amax(dim=1).clamp(min=_SMALLEST)
    unit = rows / largest[:, None]  # in -1…1: squares neither overflow nor vanish
    least = torch.full_like(largest, math.inf)
    step = torch.ones_like(largest)
    for ratio in _CLIP_RATIOS:
        error = (_round(unit / (ratio / _LEVELS)) * (ratio / _LEVELS) - unit).square().sum(dim=1)
        step = torch.where(error < least, ratio / _LEVELS, step)
        least = torch.minimum(error, least)
    return _round(unit / step[:, None]).to(torch.int8).reshape(tensor.shape), step * largest


def write_int8(state: Mapping[str, Tensor], file: Path, *, max_file_bytes: int = MAX_FILE_BYTES) -> dict[str, float]:
    """Write a state dict as one safetensors file, or as numbered files with an index if one would be too large.

    Matrices and convolution kernels of some size become int8; all other tensors keep their values, in bfloat16 if that
    holds all of them exactly. What an earlier call wrote under the same name is replaced.

    Args:
        state: tensors on any device, of any floating-point dtype.
        file: e.g. folder/model.safetensors; its folder must exist.
        max_file_bytes: size that no file exceeds, unless one tensor alone does.
    Returns: of every int8 tensor, the root mean square of its error relative to that of its values.
    Raises: CheckpointError if a weight is NaN or infinite.
    """
    tensors, errors = _quantize(state)
    sizes = {name: sum(_file_bytes(key, tensors[key]) for key in _stored_names(name, errors)) for name in state}
    shards = list(plan_shards(sizes, max_file_bytes))
    _remove_old(file)
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        part = {key: tensors[key] for name in names for key in _stored_names(name, errors)}
        target = shard_file(file.stem, number, len(shards))
        save_file(part, file.parent / target, metadata={"format": "pt", "storage": INT8_ROWS})
        weight_map |= dict.fromkeys(part, target)
    if len(shards) > 1:
        write_index(file.parent, file.stem, weight_map, sum(tensor.nbytes for tensor in tensors.values()))
    return errors


def _round(levels: Tensor) -> Tensor:
    return levels.round().clamp(-_LEVELS, _LEVELS)


def _quantize(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, float]]:
    """The tensors to write, by name, and the relative error of those that became int8."""
    tensors: dict[str, Tensor] = {}
    errors: dict[str, float] = {}
    small = [tensor for tensor in state.values() if not _is_worth_it(tensor)]
    small_dtype = torch.bfloat16 if all(_fits_bfloat16(tensor) for tensor in small) else None
    for name, tensor in state.items():
        if not torch.isfinite(tensor).all():
            raise CheckpointError(f"{name} holds NaN or infinity, which int8 cannot store. Train the model again.")
        if not _is_worth_it(tensor):
            tensors[name] = tensor.detach().to("cpu", small_dtype or tensor.dtype).contiguous().clone()
            continue
        values, scale = quantize_rows(tensor)
        errors[name] = _relative_error(tensor, values, scale)
        tensors[name], tensors[f"{name}.scale"] = values.cpu().contiguous(), scale.cpu()
    return tensors, errors


def _fits_bfloat16(tensor: Tensor) -> bool:
    return tensor.dtype == torch.float32 and torch.equal(tensor.bfloat16().float(), tensor)


def _is_worth_it(tensor: Tensor) -> bool:
    """Tables with a single row, such as (1, 6, dim), hold values of different meaning under what would be one scale."""
    is_matrix = tensor.ndim >= 2 and tensor.shape[0] > 1 and tensor.is_floating_point()
    return is_matrix and tensor.numel() >= _MIN_ELEMENTS


def _relative_error(tensor: Tensor, values: Tensor, scale: Tensor) -> float:
    rows = tensor.detach().float().flatten(1)
    difference = values.flatten(1) * scale[:, None] - rows
    return float(difference.norm() / rows.norm().clamp(min=torch.finfo(torch.float32).tiny))


def _stored_names(name: str, quantized: Mapping[str, float]) -> list[str]:
    return [name, f"{name}.scale"] if name in quantized else [name]


def _file_bytes(name: str, tensor: Tensor) -> int:
    return tensor.nbytes + len(name) + _HEADER_BYTES


def _remove_old(file: Path) -> None:
    """An index left from a larger model would be read instead of the new file."""
    numbered = file.parent.glob(f"{file.stem}-?????-of-?????.safetensors")
    for old in (file, file.with_name(f"{file.stem}.safetensors.index.json"), *numbered):
        old.unlink(missing_ok=True)
