"""The pipeline's methods for memory: where its weights are brought to work, by diffusers' names among others, and how a
run goes on where memory ends.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import torch
from diffusers import DiffusionPipeline

from wan_s2v.errors import UsageError
from wan_s2v.models.backbone import Backbone
from wan_s2v.runtime.memory import OFFLOADS, MemoryPolicy, Offload, choose_policy, device_budget, peak_bytes
from wan_s2v.runtime.offload import Placement
from wan_s2v.runtime.sizes import Work, loaded_sizes

_Pipeline = TypeVar("_Pipeline", bound="MemoryPlanning")
_Result = TypeVar("_Result")
_MODELS = ("text_encoder", "audio_encoder", "vae", "transformer", "transformer_2")


class RunPlan(Protocol):
    """What is going to be made; `options` has enable_cpu_offload, use_fp16 and preset."""

    @property
    def options(self) -> Any: ...
    @property
    def work(self) -> Work: ...
    @property
    def warnings(self) -> tuple[str, ...]: ...
    def summary(self) -> dict[str, Any]:
        """The plan as plain numbers and strings."""


class MemoryPlanning(DiffusionPipeline):
    """What a pipeline gives up so that its runs fit the memory, before they begin and on their way."""

    transformer: Backbone

    def __init__(self) -> None:
        super().__init__()
        self._computing_device: torch.device | None = None  # where weights are brought to work; where they are if None
        self._least_offload: Offload = "none"
        self._last_plan: RunPlan | None = None  # of which the two following tell
        self._fallbacks: list[str] = []
        self._memory: dict[str, Any] = {}

    def compute_on(self, device: torch.device) -> None:
        """Bring weights to this device when they work, as much at a time as it has room for; `.to` takes it back."""
        self._computing_device = device

    def to(self: _Pipeline, *args: Any, **kwargs: Any) -> _Pipeline:
        """As in diffusers; the pipeline then computes where its weights are."""
        self._computing_device = None
        moved: _Pipeline = super().to(*args, **kwargs)
        return moved

    def enable_model_cpu_offload(self, gpu_id: int | None = None, device: torch.device | str = "cuda") -> None:
        """As in diffusers: one component at a time is on the GPU, or less where it has not the room."""
        self._offload("model", gpu_id, device)

    def enable_sequential_cpu_offload(self, gpu_id: int | None = None, device: torch.device | str = "cuda") -> None:
        """As in diffusers: the blocks of a component come to the GPU one after the other."""
        self._offload("block", gpu_id, device)

    def enable_group_offload(self, onload_device: torch.device | str = "cuda", **_options: Any) -> None:
        """As in diffusers; how many blocks come at a time, and how, follows from the memory that is free."""
        self._offload("block", None, onload_device)

    def _offload(self, least: Offload, gpu_id: int | None, device: torch.device | str) -> None:
        if not torch.cuda.is_available():
            raise UsageError("There is no GPU to bring parts of the model to: PyTorch sees no CUDA device.")
        chosen = torch.device(device)
        self._least_offload = least
        self.compute_on(torch.device("cuda", gpu_id if gpu_id is not None else chosen.index or 0))

    def _plan_memory(self, plan: RunPlan) -> MemoryPolicy:
        """What is given up so that the run fits the memory that is free now."""
        self._last_plan, self._fallbacks, self._memory = plan, [], {}
        device = self._device(plan)
        if device.type != "cuda":
            return MemoryPolicy()
        models = self._models()
        tensors = [tensor for model in models.values() for tensor in (*model.parameters(), *model.buffers())]
        held = sum(tensor.nbytes for tensor in tensors if tensor.device == device)
        least: Offload = "model" if plan.options.enable_cpu_offload else "none"
        least = max(least, self._least_offload, key=OFFLOADS.index)
        sizes, dtype = loaded_sizes(models, device), self.transformer.dtype
        policy = choose_policy(sizes, plan.work, dtype, device_budget(device, held), least)
        estimate = peak_bytes(sizes, plan.work, dtype, policy)
        self._memory = {"policy": policy.description, "estimate_gib": round(estimate / 2**30, 2)}
        torch.cuda.reset_peak_memory_stats(device)
        return policy

    def _note_peak(self, placement: Placement) -> None:
        if placement.device.type == "cuda":
            self._memory["policy"] = placement.policy.description
            self._memory["peak_gib"] = round(torch.cuda.max_memory_allocated(placement.device) / 2**30, 2)

    def _models(self) -> dict[str, torch.nn.Module]:
        """The components with weights, by name."""
        found = {name: getattr(self, name, None) for name in _MODELS}
        return {name: model for name, model in found.items() if model is not None}

    def _device(self, plan: RunPlan) -> torch.device:
        """Where the work is done."""
        if self._computing_device is not None:
            return self._computing_device
        if plan.options.enable_cpu_offload and torch.cuda.is_available():
            return torch.device("cuda", torch.cuda.current_device())
        return self.transformer.device

    def _attempt(
        self, placement: Placement, stage: str, work: Callable[[], _Result], forget: Callable[[], None] | None = None
    ) -> _Result:
        """The result of some work, done again with less memory where it ran out.

        Args:
            forget: frees what an attempt has left on the device.
        Raises: torch.OutOfMemoryError where nothing more can be given up.
        """
        while True:
            try:
                return work()
            except torch.OutOfMemoryError:
                lower = placement.policy.lower(stage)
                if lower is None:
                    raise
            # Only here, with the error gone, its frames no longer hold what they had on the device.
            if forget is not None:
                forget()
            placement.change(lower)
            self._fallbacks.append(f"GPU memory ran out ({stage}); went on with less of it: {lower.description}.")


def starting_device(device_map: str | None, num_bytes: int) -> torch.device:
    """Where weights of so many bytes go."""
    if device_map not in (None, "auto", "cuda", "cpu"):
        raise UsageError(f"device_map={device_map!r} is not accepted. Choose auto, cuda or cpu.")
    if device_map == "cuda" and not torch.cuda.is_available():
        raise UsageError('device_map="cuda", but PyTorch sees no CUDA device. Use "auto" or "cpu".')
    if device_map in (None, "cpu") or not torch.cuda.is_available():
        return torch.device("cpu")
    budget = device_budget(torch.device("cuda", torch.cuda.current_device()))
    fits = device_map == "cuda" or budget is None or num_bytes <= budget
    return torch.device("cuda" if fits else "cpu")
