"""8-bit compute: the matrix products and the self-attention of the blocks in float8.

Embeddings, the output layer, convolutions of pose, motion and sound, and all modulation keep their dtype; so do keys
and values of prompt and sound, which are computed once per clip.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from wan_s2v.models.transformer import WanS2VTransformer
from wan_s2v.ops.attention_float8 import attention_float8
from wan_s2v.ops.dispatch import kernel_problem
from wan_s2v.ops.float8 import FLOAT8, Quantized, linear_float8, quantize_rows
from wan_s2v.runtime.packed import FixedDtype, PackedLinear, ScaledLinear

_EVERY_STEP = ("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0", "attn2.to_q", "attn2.to_out.0")
_FEED_FORWARD = ("ffn.net.0.proj", "ffn.net.2")
_INJECTION = ("to_q", "to_out.0")
_SMALLEST_HEAD = 32  # summed axis of an 8-bit product


class Float8Linear(FixedDtype):
    """A linear layer whose weight is stored, and whose input is rounded, in float8 with a scale for each row."""

    input_dtype = FLOAT8
    weight: Tensor
    weight_scale: Tensor

    def __init__(self, layer: nn.Linear | PackedLinear) -> None:
        super().__init__()
        values, scale = _quantized(layer)
        self.register_buffer("weight", values)
        self.register_buffer("weight_scale", scale)
        self.bias = layer.bias

    def forward(self, x: Tensor | Quantized) -> Tensor:
        """x (..., K), rounded here unless it already is → (..., N) in the dtype of the bias."""
        rounded = x if isinstance(x, Quantized) else quantize_rows(x)
        return linear_float8(rounded, Quantized(self.weight, self.weight_scale), self.bias)


def _quantized(layer: nn.Linear | PackedLinear) -> Quantized:
    """A layer's weight in float8; one that is stored so is taken as it is, since each rounding loses something."""
    if isinstance(layer, ScaledLinear) and layer.values.dtype == FLOAT8:
        return Quantized(layer.values, layer.scale.expand(layer.out_features, 1).contiguous())
    return quantize_rows(layer.weight.detach())


def can_compute_float8(device: torch.device) -> bool:
    """Whether a device has 8-bit matrix products: NVIDIA from compute capability 8.9 on (Ada, Hopper and later)."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 9):
        return False
    return kernel_problem() is None


@torch.no_grad()
def quantize_float8(transformer: WanS2VTransformer, device: torch.device | None = None) -> None:
    """Have the linear layers that work in every step compute in float8; each is replaced before the next is made.

    Args:
        device: where weights are rounded, one after the other; where they are if None.

    Weights that a checkpoint brought in float8 are taken as they are; all others are rounded here. Needs a GPU of
    compute capability 8.9 (Ada, Hopper and later); elsewhere such weights stay in `ScaledLinear`.
    """
    for parent, name, layer in list(_layers(transformer)):
        home = next(itertools.chain(layer.parameters(), layer.buffers())).device
        rounded = Float8Linear(layer.to(device or home))
        setattr(parent, name, rounded.to(home))


def attend_in_float8(transformer: WanS2VTransformer) -> None:
    """Have every self-attention done in float8, where the head size is one that the kernel takes."""
    size = transformer.config.attention_head_dim
    if size >= _SMALLEST_HEAD and size & (size - 1) == 0:
        for block in transformer.blocks:
            block.get_submodule("attn1").attend = attention_float8  # type: ignore[assignment]


def is_quantized(transformer: WanS2VTransformer) -> bool:
    """Whether `quantize_float8` has been here."""
    return any(isinstance(module, Float8Linear) for module in transformer.modules())


def _layers(transformer: WanS2VTransformer) -> Iterator[tuple[nn.Module, str, nn.Linear | PackedLinear]]:
    """(parent, name in it, layer)."""
    blocks = [(block, (*_EVERY_STEP, *_FEED_FORWARD)) for block in transformer.blocks]
    for module, names in [*blocks, *((layer, _INJECTION) for layer in transformer.audio_injector.attentions)]:
        for path in names:
            parent, _, name = path.rpartition(".")
            layer = module.get_submodule(path)
            if isinstance(layer, nn.Linear | PackedLinear):
                yield module.get_submodule(parent), name, layer
