"""Muon for matrices and convolutions, AdamW for everything else, behind one `step`.

Muon makes every update orthogonal, so that all directions of a weight move equally.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, nn

_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # coefficients that converge fastest near zero (Jordan et al., 2024)
_MATRIX_SCALE = 0.2  # makes an update as large as AdamW's, so that one learning rate scale serves both


class MuonWithAdamW:
    """Optimiser of a whole model.

    Args:
        model: every parameter that needs a gradient is taken; matrices and convolutions of at least 16 rows and
            columns by Muon.
        muon_lr, adamw_lr: peak learning rates, scaled together by `set_scale`.
    """

    def __init__(self, model: nn.Module, muon_lr: float, adamw_lr: float, momentum: float = 0.95) -> None:
        self._groups: dict[tuple[int, int], list[nn.Parameter]] = defaultdict(list)
        rest = []
        for parameter in model.parameters():
            rows, columns = _matrix_shape(parameter)
            if parameter.ndim >= 2 and min(rows, columns) >= 16:
                self._groups[rows, columns].append(parameter)
            elif parameter.requires_grad:
                rest.append(parameter)
        self._momentum = momentum
        self._buffers = {shape: torch.zeros(len(p), *shape, device=p[0].device) for shape, p in self._groups.items()}
        self._muon_lr = muon_lr
        self._adamw = torch.optim.AdamW(rest, lr=adamw_lr, betas=(0.9, 0.98), weight_decay=0.0)
        self._adamw_lr = adamw_lr
        self._scale = 1.0

    def set_scale(self, scale: float) -> None:
        """Set both learning rates to `scale` times their peaks."""
        self._scale = scale
        for group in self._adamw.param_groups:
            group["lr"] = self._adamw_lr * scale

    @torch.no_grad()
    def step(self) -> None:
        """Update all parameters from their gradients and clear these."""
        for shape, parameters in self._groups.items():
            gradients = torch.stack([_gradient(p).view(shape) for p in parameters]).float()
            buffer = self._buffers[shape]
            buffer.lerp_(gradients, 1 - self._momentum)
            updates = orthogonalise(gradients.lerp(buffer, self._momentum))
            step = self._muon_lr * self._scale * _MATRIX_SCALE * max(shape) ** 0.5
            for parameter, update in zip(parameters, updates, strict=True):
                parameter.add_(update.view_as(parameter).to(parameter.dtype), alpha=-step)
                parameter.grad = None
        self._adamw.step()
        self._adamw.zero_grad(set_to_none=True)


@torch.no_grad()
def orthogonalise(matrices: Tensor, iterations: int = 5) -> Tensor:
    """Nearest (semi-)orthogonal matrices of a batch (n, rows, columns), by Newton–Schulz iterations in bfloat16."""
    a, b, c = _NEWTON_SCHULZ
    transposed = matrices.shape[1] > matrices.shape[2]
    x = matrices.transpose(1, 2) if transposed else matrices
    x = (x / (x.flatten(1).norm(dim=1)[:, None, None] + 1e-7)).bfloat16()
    for _ in range(iterations):
        gram = x @ x.transpose(1, 2)
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.transpose(1, 2) if transposed else x).float()


def _matrix_shape(parameter: Tensor) -> tuple[int, int]:
    rows = parameter.shape[0] if parameter.ndim else 1
    return rows, max(1, parameter.numel() // max(rows, 1))


def _gradient(parameter: nn.Parameter) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.contiguous()


class Average:
    """Exponential moving average of a model's parameters; young averages forget faster."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._decay, self._updates = decay, 0
        self.values = [p.detach().clone() for p in model.parameters()]

    @torch.no_grad()
    def update(self, parameters: Iterable[nn.Parameter]) -> None:
        self._updates += 1
        decay = min(self._decay, self._updates / (self._updates + 9))
        torch._foreach_lerp_(self.values, [p.detach() for p in parameters], 1 - decay)

    @torch.no_grad()
    def copy_to(self, model: nn.Module) -> None:
        for parameter, value in zip(model.parameters(), self.values, strict=True):
            parameter.copy_(value)
