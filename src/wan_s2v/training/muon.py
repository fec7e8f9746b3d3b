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
    """Optimiser of a whole model. Weights in low precision are kept in float32 beside the model.

    Args:
        model: every parameter that needs a gradient is taken; matrices and convolutions of at least 16 rows and
            columns by Muon.
        muon_lr, adamw_lr: peak learning rates, scaled together by `set_scale`.
    """

    def __init__(self, model: nn.Module, muon_lr: float, adamw_lr: float, momentum: float = 0.95) -> None:
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._masters = [p if p.dtype == torch.float32 else p.detach().float() for p in self._parameters]
        self._groups: dict[tuple[int, int], list[int]] = defaultdict(list)
        rest = []
        for index, parameter in enumerate(self._parameters):
            rows, columns = _matrix_shape(parameter)
            if parameter.ndim >= 2 and min(rows, columns) >= 16:
                self._groups[rows, columns].append(index)
            else:
                rest.append(index)
        self._momentum = momentum
        self._buffers = {
            shape: torch.zeros(len(members), *shape, device=self._masters[members[0]].device)
            for shape, members in self._groups.items()
        }
        self._muon_lr = muon_lr
        self._rest = rest
        masters = [self._masters[index] for index in rest]
        self._adamw = torch.optim.AdamW(masters, lr=adamw_lr, betas=(0.9, 0.98), weight_decay=0.0)
        self._adamw_lr = adamw_lr
        self._scale = 1.0

    @property
    def masters(self) -> list[Tensor]:
        """The float32 weights, in the order of the model's trained parameters."""
        return self._masters

    def set_scale(self, scale: float) -> None:
        """Set both learning rates to `scale` times their peaks."""
        self._scale = scale
        for group in self._adamw.param_groups:
            group["lr"] = self._adamw_lr * scale

    @torch.no_grad()
    def step(self) -> None:
        """Update all parameters from their gradients and clear these."""
        for shape, members in self._groups.items():
            gradients = torch.stack([_gradient(self._parameters[i]).view(shape) for i in members]).float()
            buffer = self._buffers[shape]
            buffer.lerp_(gradients, 1 - self._momentum)
            updates = orthogonalise(gradients.lerp(buffer, self._momentum))
            step = self._muon_lr * self._scale * _MATRIX_SCALE * max(shape) ** 0.5
            for index, update in zip(members, updates, strict=True):
                self._masters[index].add_(update.view_as(self._masters[index]), alpha=-step)
        for index in self._rest:
            self._masters[index].grad = _gradient(self._parameters[index]).float()
        self._adamw.step()
        for parameter, master in zip(self._parameters, self._masters, strict=True):
            parameter.grad = master.grad = None
            if parameter is not master:
                parameter.copy_(master)

    def state(self) -> dict[str, Tensor]:
        """Everything that a resumed training needs, as tensors by name."""
        tensors = {f"master.{index}": master.detach() for index, master in enumerate(self._masters)}
        tensors |= {f"muon.{index}": buffer for index, buffer in enumerate(self._buffers.values())}
        for index, state in self._adamw.state_dict()["state"].items():
            tensors |= {f"adamw.{index}.{name}": torch.as_tensor(value) for name, value in state.items()}
        return tensors

    @torch.no_grad()
    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Restore what `state` gave."""
        for index, (parameter, master) in enumerate(zip(self._parameters, self._masters, strict=True)):
            master.copy_(tensors[f"master.{index}"])
            parameter.copy_(master)
        for index, buffer in enumerate(self._buffers.values()):
            buffer.copy_(tensors[f"muon.{index}"])
        state: dict[int, dict[str, Tensor]] = defaultdict(dict)
        for name, tensor in tensors.items():
            if name.startswith("adamw."):
                _, position, key = name.split(".")
                state[int(position)][key] = tensor
        self._adamw.load_state_dict(self._adamw.state_dict() | {"state": dict(state)})


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
    """Exponential moving average of parameters in float32; young averages forget faster."""

    def __init__(self, values: Iterable[Tensor], decay: float) -> None:
        self._decay, self.updates = decay, 0
        self.values = [value.detach().float().clone() for value in values]

    @torch.no_grad()
    def update(self, values: Iterable[Tensor]) -> None:
        self.updates += 1
        decay = min(self._decay, self.updates / (self.updates + 9))
        torch._foreach_lerp_(self.values, [value.detach() for value in values], 1 - decay)

    @torch.no_grad()
    def copy_to(self, parameters: Iterable[Tensor]) -> None:
        for parameter, value in zip(parameters, self.values, strict=True):
            parameter.copy_(value)
