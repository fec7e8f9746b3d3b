"""GGUF files, through the package `gguf` of llama.cpp, which is optional and loaded when such a file is met.

Tensors keep their official names, as city96/ComfyUI-GGUF writes them; where it had to store another shape, the true one
is in the metadata.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from wan_s2v.errors import CheckpointError
from wan_s2v.weights.tensors import StoredTensor

CONFIG_KEY: Final = "wan_s2v.config"  # official config.json, for sizes that the tensors do not show
_SHAPE_KEY = "comfy.gguf.orig_shape."
_ARCHITECTURE = "wan"
# llama.cpp's own writer leaves out leading axes of size 1, which these parameters have.
_AXES = {"modulation": 3, "casual_audio_encoder.weights": 4, "padding_tokens": 4}


def read_header(file: Path) -> list[StoredTensor]:
    """What a GGUF file holds.

    Raises: CheckpointError if it is damaged, or the package is not installed.
    """
    reader = _open(file)
    return [
        StoredTensor(file, tensor.name, tensor.tensor_type.name, _shape(reader, tensor, file), int(tensor.data_offset))
        for tensor in reader.tensors
    ]


def read_metadata(file: Path) -> dict[str, str]:
    """Its text metadata."""
    contents = {name: field.contents() for name, field in _open(file).fields.items()}
    return {name: value for name, value in contents.items() if isinstance(value, str)}


def open_tensors(file: Path) -> dict[str, Tensor]:
    """Plain tensors in their shape, packed ones as (…, bytes) uint8, all mapped from the file."""
    reader = _open(file)
    return {tensor.name: _values(tensor, _shape(reader, tensor, file)) for tensor in reader.tensors}


def write_gguf(
    file: Path, kinds: Mapping[str, tuple[str, tuple[int, ...]]], tensors: Iterator[Tensor], config: str
) -> None:
    """Write a transformer, holding one tensor at a time.

    Args:
        kinds: by official name, Q8_0 or F32 and the shape.
        tensors: their values in the same order, of any floating-point dtype.
        config: see CONFIG_KEY.
    """
    package = _package()
    types, quants = package.GGMLQuantizationType, package.quants
    writer = package.GGUFWriter(file, _ARCHITECTURE)
    writer.add_quantization_version(package.GGML_QUANT_VERSION)
    writer.add_file_type(package.LlamaFileType.MOSTLY_Q8_0)
    writer.add_string(CONFIG_KEY, config)
    for name, (kind, shape) in kinds.items():
        size, num_bytes = package.GGML_QUANT_SIZES[types[kind]]
        count = torch.Size(shape).numel()
        writer.add_tensor_info(name, shape, torch.empty(0).numpy().dtype, count // size * num_bytes, types[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for (kind, _), tensor in zip(kinds.values(), tensors, strict=True):
        writer.write_tensor_data(quants.quantize(tensor.float().numpy(), types[kind]))
    writer.close()


def _package() -> Any:
    try:
        import gguf
    except ImportError as error:
        raise CheckpointError(
            "GGUF files need the package gguf. Install it with: pip install 'wan-s2v[gguf]'"
        ) from error
    return gguf


def _open(file: Path) -> Any:
    reader = _package().GGUFReader
    try:
        return reader(file, "c")  # copy on write: PyTorch warns of memory that it must not write to
    except (ValueError, IndexError, KeyError, UnicodeDecodeError, OverflowError) as error:
        raise CheckpointError(
            f"{file} is not readable as GGUF ({' '.join(str(error).split())}): incomplete, damaged, or of a newer kind."
            " Fetch it again."
        ) from error


def _shape(reader: Any, tensor: Any, file: Path) -> tuple[int, ...]:
    stored = tuple(int(size) for size in reversed(tensor.shape))
    field = reader.get_field(_SHAPE_KEY + tensor.name)
    if field is None:
        axes = next((axes for end, axes in _AXES.items() if tensor.name.endswith(end)), 0)
        return (1,) * (axes - len(stored)) + stored
    stated = tuple(int(size) for size in field.contents())
    if torch.Size(stated).numel() != torch.Size(stored).numel():
        raise CheckpointError(f"{file}: {tensor.name} has shape {stored}, said to be {stated}. Fetch the file again.")
    return stated


def _values(tensor: Any, shape: tuple[int, ...]) -> Tensor:
    values = torch.from_numpy(tensor.data)
    if tensor.tensor_type.name == "BF16":
        values = values.view(torch.bfloat16)
    return values.reshape(shape) if values.is_floating_point() else values
