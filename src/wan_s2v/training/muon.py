"""Muon for matrices and convolutions, AdamW for everything else, behind one `step`.

Muon makes every update orthogonal, so that all directions of a weight move equally.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, nn

_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # coefficients that converge fastest near zero (Jordan et al., 2024)
_MATRIX_SCALE = 0.2  # makes an update as large as AdamW's, so that one learning rate scale serves both


class MuonWithAdamW:
    """Optimiser of a whole model. Weights are kept in float32 beside the model, in few large tensors.

    Matrices of one shape lie in one stack and everything else in one vector, so that a step is a few hundred kernels
    for any number of layers, not thousands.

    Args:
        model: every parameter that needs a gradient is taken; matrices and convolutions of at least 16 rows and
            columns by Muon.
        muon_lr, adamw_lr: peak learning rates, scaled together by `set_scale`.
    """

    def __init__(self, model: nn.Module, muon_lr: float, adamw_lr: float, momentum: float = 0.95) -> None:
        groups: dict[tuple[int, int], list[nn.Parameter]] = defaultdict(list)
        self._rest: list[nn.Parameter] = []
        for parameter in model.parameters():
            if parameter.requires_grad:
                rows, columns = _matrix_shape(parameter)
                is_matrix = parameter.ndim >= 2 and min(rows, columns) >= 16
                (groups[rows, columns] if is_matrix else self._rest).append(parameter)
        self._groups = list(groups.values())
        self._stacks = [torch.stack([_as_matrix(p.detach()).float() for p in members]) for members in self._groups]
        self._buffers = [torch.zeros_like(stack) for stack in self._stacks]
        device = next(model.parameters()).device
        rest = [p.detach().float().flatten() for p in self._rest]
        self._vector = torch.cat(rest) if rest else torch.zeros(0, device=device)
        self._momentum, self._muon_lr, self._adamw_lr = momentum, muon_lr, adamw_lr
        self._adamw = torch.optim.AdamW([self._vector], lr=adamw_lr, betas=(0.9, 0.98), weight_decay=0.0)
        self._scale = 1.0

    @property
    def masters(self) -> list[Tensor]:
        """The float32 weights: a stack for each shape of matrix, then the vector of all others."""
        return [*self._stacks, self._vector]

    def set_scale(self, scale: float) -> None:
        """Set both learning rates to `scale` times their peaks."""
        self._scale = scale
        for group in self._adamw.param_groups:
            group["lr"] = self._adamw_lr * scale

    @torch.no_grad()
    def step(self) -> None:
        """Update all parameters from their gradients and clear these."""
        for members, stack, buffer in zip(self._groups, self._stacks, self._buffers, strict=True):
            gradients = torch.stack([_as_matrix(_gradient(p)) for p in members]).float()
            buffer.lerp_(gradients, 1 - self._momentum)
            updates = orthogonalise(gradients.lerp_(buffer, self._momentum))
            shape = stack.shape[1:]
            stack.add_(updates, alpha=-self._muon_lr * self._scale * _MATRIX_SCALE * max(shape) ** 0.5)
        if self._rest:
            self._vector.grad = torch.cat([_gradient(p).flatten() for p in self._rest]).float()
            self._adamw.step()
            self._vector.grad = None
        self.write(self.masters)
        for parameter in (*itertools.chain(*self._groups), *self._rest):
            parameter.grad = None

    @torch.no_grad()
    def write(self, masters: list[Tensor]) -> None:
        """Set the model's parameters from tensors like `masters`."""
        targets: list[Tensor] = []
        sources: list[Tensor] = []
        for members, stack in zip(self._groups, masters, strict=False):
            targets += [_as_matrix(parameter) for parameter in members]
            sources += stack.unbind()
        targets += [parameter.view(-1) for parameter in self._rest]
        sources += masters[-1].split([parameter.numel() for parameter in self._rest])
        torch._foreach_copy_(targets, sources)

    def state(self) -> dict[str, Tensor]:
        """Everything that a resumed training needs, as tensors by name."""
        tensors = {f"master.{index}": master.detach() for index, master in enumerate(self.masters)}
        tensors |= {f"muon.{index}": buffer for index, buffer in enumerate(self._buffers)}
        for name, value in self._adamw.state_dict()["state"].get(0, {}).items():
            tensors[f"adamw.{name}"] = torch.as_tensor(value)
        return tensors

    @torch.no_grad()
    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Restore what `state` gave."""
        for index, master in enumerate(self.masters):
            master.copy_(tensors[f"master.{index}"])
        for index, buffer in enumerate(self._buffers):
            buffer.copy_(tensors[f"muon.{index}"])
        prefix = "adamw."
        state = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        self._adamw.load_state_dict(self._adamw.state_dict() | {"state": {0: state} if state else {}})
        self.write(self.masters)


@torch.no_grad()
def orthogonalise(matrices: Tensor, iterations: int = 5) -> Tensor:
    """Nearest (semi-)orthogonal matrices of a batch (n, rows, columns), by Newton–Schulz iterations in bfloat16."""
    a, b, c = _NEWTON_SCHULZ
    transposed = matrices.shape[1] > matrices.shape[2]
    x = matrices.transpose(1, 2) if transposed else matrices
    x = (x / (x.flatten(1).norm(dim=1)[:, None, None] + 1e-7)).bfloat16()
    for _ in range(iterations):
        gram = torch.bmm(x, x.transpose(1, 2))
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.transpose(1, 2) if transposed else x).float()


def _matrix_shape(parameter: Tensor) -> tuple[int, int]:
    rows = parameter.shape[0] if parameter.ndim else 1
    return rows, max(1, parameter.numel() // max(rows, 1))


def _as_matrix(tensor: Tensor) -> Tensor:
    return tensor.view(_matrix_shape(tensor))


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
