"""Tensors on disk: what a weight file holds, read without loading it, and the tensors one at a time.

Knows file formats only; what the tensors mean is decided elsewhere. Nothing is ever unpickled beyond plain tensors.
"""

from __future__ import annotations

import json
import pickle
import re
import struct
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from wan_s2v.errors import CheckpointError
from wan_s2v.weights import gguf
from wan_s2v.weights.scaled import attach_scales
from wan_s2v.weights.tensors import INT8_ROWS, StoredTensor, StoredValues

_DTYPE_NAMES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
_MAX_HEADER = 100_000_000  # the limit of the safetensors library
_SHARD = re.compile(r"-(\d{5})-of-(\d{5})\.safetensors$")


@dataclass(frozen=True)
class WeightSet:
    """The files of one model in a folder: those that are there and those that should be."""

    files: tuple[Path, ...]
    missing: tuple[Path, ...]


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises: CheckpointError if it is not readable as one.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path} is not readable as JSON ({error}). Fetch the file again.") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not an object. Fetch the file again.")
    return content


def find_weight_set(folder: Path, stem: str) -> WeightSet:
    """Weight files `stem*.safetensors` of a model folder, as its index says or as their names count themselves."""
    index = folder / f"{stem}.safetensors.index.json"
    single = folder / f"{stem}.safetensors"
    if index.is_file():
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise CheckpointError(f"{index} has no weight_map. Fetch the file again.")
        wanted = [folder / name for name in sorted(set(weight_map.values()))]
    elif single.is_file():
        wanted = [single]
    else:
        found = sorted(folder.glob(f"{stem}-*-of-*.safetensors"))
        match = _SHARD.search(found[0].name) if found else None
        count = int(match[2]) if match else 0
        wanted = [folder / f"{stem}-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)] or [single]
    present = [path for path in wanted if path.is_file()]
    return WeightSet(tuple(present), tuple(path for path in wanted if path not in present))


def read_headers(files: Iterable[Path]) -> dict[str, StoredTensor]:
    """What safetensors, GGUF or .pth/.bin files hold, by stored name, without reading a tensor; scales are in theirs.

    Raises: CheckpointError if a file is damaged, incomplete, of another format, a name occurs twice, or the scale of an
        8-bit tensor is missing or does not fit.
    """
    headers: dict[str, StoredTensor] = {}
    for file in files:
        try:
            tensors = _read_header(file)
        except OSError as error:
            raise CheckpointError(f"{file} cannot be read ({error.strerror}). Check its permissions.") from error
        for stored in tensors:
            if stored.name in headers:
                raise CheckpointError(f"{stored.name} is both in {headers[stored.name].file.name} and {file.name}.")
            headers[stored.name] = stored
    return headers


def read_metadata(file: Path) -> dict[str, str]:
    """The text metadata of a safetensors or GGUF file; {} of a .pth file, which has none."""
    if _is_gguf(file):
        return gguf.read_metadata(file)
    return {} if _is_pickle(file) else _safetensors_header(file)[1]


def iterate_tensors(stored: Iterable[StoredTensor]) -> Iterator[tuple[StoredTensor, Tensor]]:
    """Tensors on the CPU, file by file; plain ones in their stored dtype, mapped from the file, not copied into memory.

    Those stored in fewer bits come expanded, as new float32 tensors.
    """
    for item, values in iterate_stored(stored):
        yield item, values.expand(item)


def iterate_stored(stored: Iterable[StoredTensor]) -> Iterator[tuple[StoredTensor, StoredValues]]:
    """Tensors on the CPU as they are stored, file by file; each is mapped from the file, not copied into memory."""
    ordered = sorted(stored, key=lambda item: (str(item.file), item.offset))
    for file, group in groupby(ordered, key=lambda item: item.file):
        if _is_gguf(file):
            blocks = gguf.open_tensors(file)
            yield from ((item, StoredValues(blocks[item.name], None)) for item in group)
        elif _is_pickle(file):
            tensors = _load_pickle(file)
            yield from ((item, StoredValues(tensors[item.name], None)) for item in group)
        else:
            with safe_open(file, "pt") as opened:
                yield from ((item, _read_values(opened, item)) for item in group)


def _read_values(opened: Any, stored: StoredTensor) -> StoredValues:
    scale = None if stored.scale is None else opened.get_tensor(stored.scale.name)
    return StoredValues(opened.get_tensor(stored.name), scale)


def _is_gguf(file: Path) -> bool:
    with file.open("rb") as opened:
        return opened.read(4) == b"GGUF"


def _is_pickle(file: Path) -> bool:
    return file.suffix in {".pth", ".pt", ".bin", ".ckpt"}


def _read_header(file: Path) -> list[StoredTensor]:
    _reject_other_formats(file)
    if _is_gguf(file):
        return gguf.read_header(file)
    if _is_pickle(file):
        return [
            StoredTensor(file, name, _DTYPE_NAMES.get(tensor.dtype, str(tensor.dtype)), tuple(tensor.shape), index)
            for index, (name, tensor) in enumerate(_load_pickle(file).items())
        ]
    tensors, metadata = _safetensors_header(file)
    return attach_scales(tensors, int8=metadata.get("storage") == INT8_ROWS)


def _reject_other_formats(file: Path) -> None:
    with file.open("rb") as opened:
        start = opened.read(64)
    if start.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{file} is a Git LFS pointer, not the weights. Run `git lfs pull` in its folder.")
    if not start:
        raise CheckpointError(f"{file} is empty. Fetch it again.")


def _safetensors_header(file: Path) -> tuple[list[StoredTensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file; checks that all its data are there."""
    size = file.stat().st_size
    with file.open("rb") as opened:
        prefix = opened.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else _MAX_HEADER + 1
        raw = opened.read(length) if length <= _MAX_HEADER else b""
    if not raw.startswith(b"{"):
        raise CheckpointError(f"{file} is not a safetensors file. Fetch it again, or pass a .safetensors file.")
    try:
        header = json.loads(raw)
        metadata = dict(header.pop("__metadata__", {}))
        end = max((int(entry["data_offsets"][1]) for entry in header.values()), default=0)
        tensors = [
            StoredTensor(file, name, str(entry["dtype"]), tuple(entry["shape"]), int(entry["data_offsets"][0]))
            for name, entry in header.items()
        ]
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise CheckpointError(f"{file} is incomplete or damaged: its header is broken. Fetch it again.") from error
    expected = 8 + length + end
    if size < expected:
        raise CheckpointError(
            f"{file} is incomplete: {size:,} bytes of {expected:,}. Fetch it again; downloads resume."
        )
    return tensors, metadata


def _load_pickle(file: Path) -> Mapping[str, Tensor]:
    """A plain state dict, mapped from the file where its format allows."""
    with file.open("rb") as opened:
        zipped = opened.read(4) == b"PK\x03\x04"
    if zipped and not zipfile.is_zipfile(file):
        raise CheckpointError(f"{file} is incomplete: the end of the archive is missing. Fetch it again.")
    try:
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{file} holds more than plain tensors, or is damaged; such files are not opened. Fetch the official file."
        ) from error
    except (RuntimeError, EOFError, ValueError) as error:
        raise CheckpointError(f"{file} is damaged ({str(error).splitlines()[0]}). Fetch it again.") from error
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise CheckpointError(f"{file} is not a plain state dict of tensors. Fetch the official file.")
    return content
