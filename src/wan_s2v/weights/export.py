"""A transformer as one quantized file that other programs read as well: float8 as Comfy-Org's, or Q8_0 blocks in GGUF.

Names are the official ones. One tensor is held at a time, so that no machine is too small for the largest model.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final, Literal, NamedTuple

import torch
from torch import Tensor

from wan_s2v.errors import CheckpointError
from wan_s2v.ops.gguf import BLOCKS
from wan_s2v.weights.checkpoint import ModelFiles
from wan_s2v.weights.configs import official_transformer_config
from wan_s2v.weights.files import iterate_tensors
from wan_s2v.weights.gguf import write_gguf
from wan_s2v.weights.names import inverse, rename, transformer_names
from wan_s2v.weights.tensors import StoredTensor

Progress = Callable[[str, int, int], None]  # component, bytes done, bytes in all
Format = Literal["fp8", "gguf-q8_0"]
SUFFIXES: Final[dict[str, str]] = {"fp8": ".safetensors", "gguf-q8_0": ".gguf"}

_FLOAT8 = torch.float8_e4m3fn
_LARGEST = torch.finfo(_FLOAT8).max
_SMALLEST = 1e-12  # of a matrix's magnitude, so that one of zeros has a scale
_BLOCK_MATRICES = ("blocks.", "audio_injector.injector.")  # 94 % of S2V-14B
_SENSITIVE = ("time_embedding.", "head.", "trainable_cond_mask.")  # as in ComfyUI-GGUF, small and seen by every token
# Two zeros: read by ComfyUI as float8 for storage, computed in full precision; an empty marker would let it round
# activations with one scale per tensor, which Wan does not bear well.
_MARKER = "scaled_fp8"


class _Entry(NamedTuple):
    """A tensor of a safetensors file to be written: its dtype as spelled there, and its shape."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        return StoredTensor(Path(), "", self.dtype, self.shape, 0).num_bytes


def exported_bytes(model: ModelFiles, form: Format) -> int:
    """Size of the file that `write_single_file` makes, without its header."""
    if form == "fp8":
        return sum(entry.num_bytes for entry in _float8_entries(model).values())
    kinds = _gguf_kinds(model).values()
    return sum(StoredTensor(Path(), "", kind, shape, 0).num_bytes for kind, shape in kinds)


def write_single_file(model: ModelFiles, file: Path, form: Format, progress: Progress | None) -> None:
    """Write a transformer.

    Raises: CheckpointError if a weight is NaN or infinite, or its config cannot be stated in the official way.
    """
    config = json.dumps(official_transformer_config(model.config))
    tensors = _tensors(model, progress)
    if form == "gguf-q8_0":
        write_gguf(file, _gguf_kinds(model), (tensor for _, tensor in tensors), config)
    else:
        metadata = {"format": "pt", "config": config}
        _write_safetensors(file, _float8_entries(model), _float8_tensors(tensors), metadata)


def _ordered(model: ModelFiles) -> list[tuple[str, StoredTensor]]:
    """Official names and tensors, in the order in which they are read."""
    names = inverse(transformer_names(model.config))
    tensors = sorted(model.tensors.items(), key=lambda item: (str(item[1].file), item[1].offset))
    return [(rename(name, names) or name, stored) for name, stored in tensors]


def _tensors(model: ModelFiles, progress: Progress | None) -> Iterator[tuple[str, Tensor]]:
    """Official names and values, in the same order."""
    done = 0
    stored = iterate_tensors(model.tensors.values())
    for (name, _), (item, tensor) in zip(_ordered(model), stored, strict=True):
        if not torch.isfinite(tensor).all():
            raise CheckpointError(f"{item.file}: {item.name} holds NaN or infinity. Fetch the file again.")
        yield name, tensor
        done += item.num_bytes
        if progress:
            progress(model.name, done, model.total_bytes)


def _is_float8(name: str, shape: tuple[int, ...]) -> bool:
    return len(shape) == 2 and name.startswith(_BLOCK_MATRICES)


def _float8_entries(model: ModelFiles) -> dict[str, _Entry]:
    entries = {}
    for name, stored in _ordered(model):
        if _is_float8(name, stored.shape):
            entries[name] = _Entry("F8_E4M3", stored.shape)
            entries[_scale_name(name)] = _Entry("F32", ())
        else:
            # what was packed has been expanded to float32, which is more than it is worth
            entries[name] = _Entry("BF16" if stored.is_packed else stored.dtype, stored.shape)
    return entries | {_MARKER: _Entry("F8_E4M3", (2,))}


def _scale_name(weight: str) -> str:
    return weight.removesuffix("weight") + "scale_weight"


def _float8_tensors(tensors: Iterable[tuple[str, Tensor]]) -> Iterator[Tensor]:
    """In the order of `_float8_entries`; those that are not float8 in a dtype to be converted."""
    for name, tensor in tensors:
        if not _is_float8(name, tuple(tensor.shape)):
            yield tensor
            continue
        values = tensor.float()
        scale = values.abs().max().clamp(min=_SMALLEST) / _LARGEST
        yield (values / scale).clamp(-_LARGEST, _LARGEST).to(_FLOAT8)
        yield scale
    yield torch.zeros(2, dtype=_FLOAT8)


def _gguf_kinds(model: ModelFiles) -> dict[str, tuple[str, tuple[int, ...]]]:
    size = BLOCKS["Q8_0"].size
    kinds = {}
    for name, stored in _ordered(model):
        is_matrix = len(stored.shape) == 2 and stored.shape[1] % size == 0
        kinds[name] = ("Q8_0" if is_matrix and not name.startswith(_SENSITIVE) else "F32", stored.shape)
    return kinds


def _write_safetensors(
    file: Path, entries: Mapping[str, _Entry], tensors: Iterable[Tensor], metadata: Mapping[str, str]
) -> None:
    """The library's own writer wants all tensors at once."""
    dtypes = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F8_E4M3": _FLOAT8}
    header: dict[str, object] = {"__metadata__": metadata}
    end = 0
    for name, entry in entries.items():
        header[name] = {"dtype": entry.dtype, "shape": entry.shape, "data_offsets": [end, end + entry.num_bytes]}
        end += entry.num_bytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as opened:
        opened.write(struct.pack("<Q", len(text)) + text)
        for entry, tensor in zip(entries.values(), tensors, strict=True):
            assert math.prod(entry.shape) == tensor.numel()
            value = tensor.to(dtypes[entry.dtype]).contiguous().reshape(-1).view(torch.uint8)
            opened.write(value.numpy().data)
