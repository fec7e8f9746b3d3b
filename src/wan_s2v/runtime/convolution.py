"""3D convolutions on a CPU through oneDNN, also where PyTorch would not choose it.

PyTorch sends small float32 3D convolutions to a plain loop. On two cores, 3x3x3 over 4 x 130 x 194 took 65 ms with 4
channels and 200 ms with 32; oneDNN takes 1.2 and 14 ms, with results equal to 3e-6.
"""

from __future__ import annotations

from types import MethodType

import torch
from torch import Tensor, nn


def use_onednn(model: nn.Module) -> None:
    """Route every Conv3d of `model` through oneDNN when it runs in float32 on a CPU; other devices are unaffected."""
    if not torch.backends.mkldnn.is_available():
        return
    for module in model.modules():
        if isinstance(module, nn.Conv3d) and module.padding_mode == "zeros":
            module._conv_forward = MethodType(_conv_forward, module)  # type: ignore[method-assign]


def _conv_forward(conv: nn.Conv3d, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if x.device.type != "cpu" or x.dtype != torch.float32:
        return nn.Conv3d._conv_forward(conv, x, weight, bias)
    return torch.mkldnn_convolution(x, weight, bias, conv.padding, conv.stride, conv.dilation, conv.groups)
