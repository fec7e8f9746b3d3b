"""LoRAs on a built transformer, without a second copy of it: two small matrices beside each layer that they change.

All that are on at once share these matrices. Layers may have been replaced before, by 8-bit ones for example: they stay
what they are inside. Differences, and pairs for convolutions and embeddings, are added to the parameters themselves;
the originals are kept in main memory. Taking LoRAs off puts the very same layers and values back.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wan_s2v.errors import CheckpointError, UsageError
from wan_s2v.models.backbone import Backbone
from wan_s2v.models.layers import GELULinear, Hidden, input_dtype
from wan_s2v.ops.eight_bit import Quantized
from wan_s2v.weights.lora import LoRA, LoRAFile, LowRank, check_weight, lora_shapes

_CALLED: Final = ("blocks.", "audio_injector.", "condition_embedder.text_embedder.")  # linear layers the model calls
_READ: Final = ("condition_embedder.time_", "proj_out", "audio_encoder.final_linear")  # those of `linear_float32`


class _Branched(nn.Module):
    """A linear layer of any kind and a low-rank change of it; bias and input are those of the layer.

    Args:
        base: the layer.
        down: (R, K), R the ranks of all LoRAs together.
        up: (N, R), with scales and weights in it.
    """

    down: Tensor
    up: Tensor

    def __init__(self, base: nn.Module, down: Tensor, up: Tensor) -> None:
        super().__init__()
        self.base = base
        self.register_buffer("down", down, persistent=False)
        self.register_buffer("up", up, persistent=False)

    @property
    def input_dtype(self) -> torch.dtype:
        return input_dtype(self.base)

    @property
    def bias(self) -> Any:
        return self.base.bias


class LoRALinear(_Branched):
    """A layer that the model calls, with a branch beside it: base(x) + up · (down · x)."""

    @property
    def weight(self) -> Any:
        """Of the base alone; only its dtype and device are of use."""
        return self.base.weight

    def forward(self, x: Hidden) -> Tensor:
        """(..., K) → (..., N) in the dtype of the base. Rounded tokens are taken as the values they stand for."""
        product = self.base(x)
        hidden = self._down(x).to(product.dtype)
        up = self.up.to(product.dtype)
        product.view(-1, product.shape[-1]).addmm_(hidden.flatten(0, -2), up.t())
        return product

    def _down(self, x: Hidden) -> Tensor:
        """(..., R); a row's scale goes with the few values of its product, not with its many own."""
        if isinstance(x, Quantized):
            return F.linear(x.values.to(self.down.dtype), self.down).float() * x.scale
        return F.linear(x.to(self.down.dtype), self.down)


class LoRAWeight(_Branched):
    """A layer whose weight the model reads, to compute in float32."""

    @property
    def weight(self) -> Tensor:
        """(N, K) float32, made anew each time."""
        weight: Any = self.base.weight  # a parameter, or made anew by a layer that keeps fewer bits
        return torch.addmm(weight.float(), self.up.float(), self.down.float())


class LoRAGELULinear(nn.Module):
    """`GELULinear` around a layer with a branch, which must be added before the GELU and not after."""

    def __init__(self, proj: nn.Module) -> None:
        super().__init__()
        self.proj = proj

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.proj(x), approximate="tanh")


class Adapters:
    """The LoRAs of one transformer by name, and what those that are on have changed in it."""

    def __init__(self, transformer: Backbone) -> None:
        self.transformer = transformer
        self.loras: dict[str, LoRA] = {}
        self.weights: dict[str, float] = {}
        self._layers: list[tuple[nn.Module, str, nn.Module]] = []  # parent, name in it, what was there
        self._values: dict[str, Tensor] = {}  # parameters as they were, in main memory
        self._hook: Any = None

    @property
    def active(self) -> dict[str, float]:
        """Weights of the LoRAs that are on; one of weight 0 changes nothing."""
        return {name: weight for name, weight in self.weights.items() if weight}

    @property
    def notes(self) -> list[str]:
        """What the user should know about the LoRAs that are on."""
        return [note for name in self.active for note in self.loras[name].notes]

    def records(self, expert: str) -> list[dict[str, Any]]:
        """The LoRAs that are on, as plain strings and numbers."""
        return [
            {
                "name": name,
                "file": self.loras[name].source,
                "fingerprint": self.loras[name].fingerprint,
                "weight": weight,
                "transformer": expert,
            }
            for name, weight in self.active.items()
        ]

    def add(self, name: str, lora: LoRA, weight: float) -> None:
        """Put one more on the model. Raises: UsageError where the name is taken; CheckpointError as `set_weights`."""
        if name in self.loras:
            raise UsageError(f"A LoRA named {name!r} is loaded already. Give another adapter_name, or unload it first.")
        self.loras[name] = lora
        try:
            self.set_weights({**self.weights, name: weight})
        except BaseException:
            del self.loras[name]
            raise

    def set_weights(self, weights: Mapping[str, float]) -> None:
        """Have exactly these LoRAs on the model; others stay loaded, but off.

        Raises: CheckpointError where a layer's weight cannot be added to; then nothing is changed.
        """
        weights = {name: check_weight(weight) for name, weight in weights.items()}
        active = [(self.loras[name], weight) for name, weight in weights.items() if weight]
        before = [(self.loras[name], weight) for name, weight in self.active.items()]
        self._take_off()
        try:
            self._require_addable()
            self._put_on(active)
        except BaseException:
            self._take_off()
            self._put_on(before)
            raise
        self.weights = weights

    def clear(self) -> None:
        """Forget all LoRAs; the model is what it was before, to the bit."""
        self._take_off()
        self.loras, self.weights = {}, {}

    def _require_addable(self) -> None:
        """Look at those that are off too: one that loads must not fail when it is put on. The model must be bare."""
        for lora in self.loras.values():
            merged = [name for name in lora.pairs if not name.startswith((*_CALLED, *_READ))]
            for name in (*merged, *lora.differences):
                _parameter(self.transformer, name)

    @torch.no_grad()
    def _put_on(self, loras: list[tuple[LoRA, float]]) -> None:
        branches: dict[str, list[tuple[LowRank, float]]] = {}
        changes: dict[str, list[tuple[LowRank | Tensor, float]]] = {}
        for lora, weight in loras:
            for name, pair in lora.pairs.items():
                if name.startswith((*_CALLED, *_READ)):
                    branches.setdefault(name.removesuffix(".weight"), []).append((pair, weight))
                else:
                    changes.setdefault(name, []).append((pair, weight))
            for name, difference in lora.differences.items():
                changes.setdefault(name, []).append((difference, weight))
        if loras:
            self._hook = self.transformer.register_state_dict_pre_hook(_refuse_state_dict)
        for name, change in changes.items():
            self._change(name, change)
        for path, pairs in branches.items():
            self._branch(path, pairs)

    def _change(self, name: str, change: list[tuple[LowRank | Tensor, float]]) -> None:
        """Add to a parameter, in float32."""
        parameter = _parameter(self.transformer, name)
        total = parameter.data.float()
        for part, weight in change:
            full = part.product() if isinstance(part, LowRank) else part.float()
            total = total + weight * full.to(parameter.device)
        self._values[name] = parameter.data.cpu()
        parameter.data = total.to(parameter.dtype)

    def _branch(self, path: str, pairs: list[tuple[LowRank, float]]) -> None:
        """Replace a layer by one with a branch."""
        like = self.transformer.patch_embedding.weight
        down = torch.cat([pair.down.float() for pair, _ in pairs]).to(like.device, like.dtype)
        ups = [weight * pair.scale * pair.up.float().flatten(1) for pair, weight in pairs]
        up = torch.cat(ups, dim=1).to(like.device, like.dtype)
        parent_path, _, name = path.rpartition(".")
        parent = self.transformer.get_submodule(parent_path)
        layer = parent.get_submodule(name)
        wrapped: nn.Module = LoRAWeight(layer, down, up) if path.startswith(_READ) else LoRALinear(layer, down, up)
        if isinstance(parent, GELULinear):
            wrapped = LoRAGELULinear(wrapped)
            parent_path, _, name = parent_path.rpartition(".")
            parent = self.transformer.get_submodule(parent_path)
        self._layers.append((parent, name, parent.get_submodule(name)))
        setattr(parent, name, wrapped)

    def _take_off(self) -> None:
        while self._layers:
            parent, name, layer = self._layers.pop()
            setattr(parent, name, layer)
        while self._values:
            name, value = self._values.popitem()
            parameter = self.transformer.get_parameter(name)
            parameter.data = value.to(parameter.device, parameter.dtype)
        if self._hook is not None:
            self._hook.remove()
            self._hook = None


def branch_bytes(file: LoRAFile, config: Mapping[str, Any], dtype: torch.dtype) -> int:
    """Memory that a LoRA takes on a transformer, told from its header: that of the matrices beside layers.

    What is added to parameters takes none. Raises: UsageError and CheckpointError, as `check_lora`.
    """
    shapes = lora_shapes(file, config)
    beside = [slot for slot in shapes if slot.role in ("down", "up") and slot.parameter.startswith((*_CALLED, *_READ))]
    return dtype.itemsize * sum(math.prod(shapes[slot]) for slot in beside)


def _parameter(transformer: Backbone, name: str) -> nn.Parameter:
    """Raises: CheckpointError where a quantized layer holds other numbers in place of this parameter."""
    path, _, leaf = name.rpartition(".")
    parameter = transformer.get_submodule(path)._parameters.get(leaf)
    if parameter is None or not parameter.is_floating_point() or parameter.element_size() < 2:
        raise CheckpointError(
            f"The LoRA adds to {name}, which this model holds in 8 bits or fewer. Use the model in bfloat16 or "
            "float16, or a LoRA without full differences; nothing was changed."
        )
    return parameter


def _refuse_state_dict(module: nn.Module, prefix: str, keep_vars: bool) -> None:
    raise UsageError(
        "The transformer has LoRAs on it; its weights are not those of the model. Call unload_lora_weights() before "
        "saving it, and load_lora_weights() again afterwards."
    )
