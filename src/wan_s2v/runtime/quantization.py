"""8-bit compute: the matrix products of the blocks in int8 or float8, and their self-attention.

Embeddings, the output layer, convolutions of pose, motion and sound, and all modulation keep their dtype; so do keys
and values of prompt and sound, which are computed once per clip.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from importlib.util import find_spec

import torch
from torch import Tensor, nn

from wan_s2v.models.backbone import Backbone
from wan_s2v.ops.attention_eight_bit import attention_eight_bit
from wan_s2v.ops.dispatch import kernel_problem
from wan_s2v.ops.eight_bit import FLOAT8, INT8, Quantized, eight_bit_linear, quantize_rows
from wan_s2v.runtime.packed import FixedDtype, PackedLinear, ScaledLinear

_EVERY_STEP = ("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0", "attn2.to_q", "attn2.to_out.0")
_FEED_FORWARD = ("ffn.net.0.proj", "ffn.net.2")
_INJECTION = ("to_q", "to_out.0")
_SMALLEST_HEAD = 32  # summed axis of an 8-bit product
_HAS_INT8, _HAS_FLOAT8 = (8, 0), (8, 9)  # compute capabilities of NVIDIA's Ampere, and of Ada


class EightBitLinear(FixedDtype):
    """A linear layer whose weight is stored, and whose input is rounded, in 8 bits with a scale for each row.

    Args:
        dtype: INT8 or FLOAT8.
    """

    weight: Tensor
    weight_scale: Tensor

    def __init__(self, layer: nn.Linear | PackedLinear, dtype: torch.dtype) -> None:
        super().__init__()
        values, scale = _quantized(layer, dtype)
        self.register_buffer("weight", values)
        self.register_buffer("weight_scale", scale)
        self.bias = layer.bias

    @property
    def input_dtype(self) -> torch.dtype:
        """In which it wants its tokens."""
        return self.weight.dtype

    def forward(self, x: Tensor | Quantized) -> Tensor:
        """x (..., K), rounded here unless it already is → (..., N) in the dtype of the bias."""
        rounded = x if isinstance(x, Quantized) else quantize_rows(x, self.weight.dtype)
        return eight_bit_linear(rounded, Quantized(self.weight, self.weight_scale), self.bias)


def _quantized(layer: nn.Linear | PackedLinear, dtype: torch.dtype) -> Quantized:
    """A layer's weight in 8 bits; one that is stored so is taken as it is, since each rounding loses something."""
    if _is_stored_in(layer, dtype):
        assert isinstance(layer, ScaledLinear)
        return Quantized(layer.values, layer.scale.expand(layer.out_features, 1).contiguous())
    return quantize_rows(layer.weight.detach(), dtype)


def _is_stored_in(layer: nn.Module, dtype: torch.dtype) -> bool:
    return isinstance(layer, ScaledLinear) and layer.values.dtype == dtype


def can_compute_in_eight_bits(device: torch.device) -> bool:
    """Whether a device has int8 matrix products and our kernels: NVIDIA from compute capability 8.0 (Ampere) on."""
    return _has(device, _HAS_INT8)


def _has(device: torch.device, capability: tuple[int, int]) -> bool:
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < capability:
        return False
    return kernel_problem() is None and find_spec("triton.tools.tensor_descriptor") is not None  # from Triton 3.4 on


@torch.no_grad()
def compute_in_eight_bits(transformer: Backbone, device: torch.device) -> None:
    """All 8-bit compute that a device has: products, and from Ada on attention.

    A transformer that a checkpoint brought in float8 computes in float8, where the device can; any other in int8,
    which keeps more of weights and tokens.
    """
    float8 = _has(device, _HAS_FLOAT8)
    is_stored = any(_is_stored_in(layer, FLOAT8) for _, _, layer in _layers(transformer))
    quantize(transformer, FLOAT8 if float8 and is_stored else INT8, device)
    if float8:
        attend_in_eight_bits(transformer)


@torch.no_grad()
def quantize(transformer: Backbone, dtype: torch.dtype, device: torch.device | None = None) -> None:
    """Have the linear layers that work in every step compute in 8 bits; each is replaced before the next is made.

    Args:
        dtype: INT8 or FLOAT8. Weights that a checkpoint brought in it are taken as they are, others rounded here.
        device: where weights are rounded, one after the other; where they are if None.
    """
    for parent, name, layer in list(_layers(transformer)):
        home = next(itertools.chain(layer.parameters(), layer.buffers())).device
        rounded = EightBitLinear(layer.to(device or home), dtype)
        setattr(parent, name, rounded.to(home))


def attend_in_eight_bits(transformer: Backbone) -> None:
    """Have every self-attention done in 8 bits, where the head size is one that the kernel takes."""
    size = transformer.config.attention_head_dim
    if size >= _SMALLEST_HEAD and size & (size - 1) == 0:
        for block in transformer.blocks:
            block.get_submodule("attn1").attend = attention_eight_bit  # type: ignore[assignment]


def is_quantized(transformer: Backbone) -> bool:
    """Whether `quantize` has been here."""
    return any(isinstance(module, EightBitLinear) for module in transformer.modules())


def _layers(transformer: Backbone) -> Iterator[tuple[nn.Module, str, nn.Linear | PackedLinear]]:
    """(parent, name in it, layer)."""
    blocks = [(block, (*_EVERY_STEP, *_FEED_FORWARD)) for block in transformer.blocks]
    injector = getattr(transformer, "audio_injector", None)  # of S2V
    injections = [] if injector is None else [(layer, _INJECTION) for layer in injector.attentions]
    for module, names in [*blocks, *injections]:
        for path in names:
            parent, _, name = path.rpartition(".")
            layer = module.get_submodule(path)
            if isinstance(layer, nn.Linear | PackedLinear):
                yield module.get_submodule(parent), name, layer
