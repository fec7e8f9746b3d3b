"""What a weight file says of a tensor, and what it holds of it, in any of the formats that are read."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

import torch
from torch import Tensor

from wan_s2v.ops.gguf import BLOCKS, plain_dequantize

_BYTES: Final = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
FLOAT8: Final = {"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2}  # as safetensors names them
INT8_ROWS: Final = "int8-rows"  # metadata "storage": I8 tensors with one scale per row in `<name>.scale`


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a weight file, by the name it has there; `offset` orders reads along the file.

    Args:
        dtype: as safetensors spells it, e.g. BF16 or F8_E4M3, or the block format of a GGUF file, e.g. Q4_K.
        shape: of the values, however they are packed.
        scale: of a tensor stored in 8 bits, its values being stored value * scale: a single one, or one for each row
            (of the first dimension).
    """

    file: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    scale: StoredTensor | None = None

    @property
    def num_bytes(self) -> int:
        """Bytes in the file, a scale included."""
        scale = self.scale.num_bytes if self.scale else 0
        if self.dtype in BLOCKS:
            return math.prod(self.shape) // BLOCKS[self.dtype].size * BLOCKS[self.dtype].num_bytes + scale
        return math.prod(self.shape) * _BYTES.get(self.dtype, 1) + scale

    @property
    def is_packed(self) -> bool:
        """Whether it takes fewer bits than any dtype that a model computes in."""
        return self.dtype in FLOAT8 or self.dtype in BLOCKS or self.dtype == "I8"


class StoredValues(NamedTuple):
    """A tensor as its file has it: plain values, 8-bit values with their scale, or (…, bytes) of GGUF blocks."""

    values: Tensor
    scale: Tensor | None

    def expand(self, stored: StoredTensor) -> Tensor:
        """The values: in their dtype where they are plain, otherwise in float32, which holds every one of them."""
        if stored.dtype in BLOCKS:
            return plain_dequantize(self.values, stored.dtype).reshape(stored.shape)
        if self.scale is not None:
            scale = self.scale.float().reshape(-1, *(1,) * (len(stored.shape) - 1))
            return self.values.float().mul_(scale).reshape(stored.shape)
        return self.values.float() if stored.dtype in FLOAT8 else self.values
