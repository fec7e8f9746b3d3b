"""What the pipelines of all Wan2.2 models share: the precision of a run, its VAE, and the record of what it took."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import AutoencoderKLWan
from torch import Tensor

from wan_s2v import __version__
from wan_s2v.latents import encode_pixels
from wan_s2v.lora_loading import LoRALoading
from wan_s2v.memory_planning import MemoryPlanning, RunPlan
from wan_s2v.ops.attention import chosen_backends
from wan_s2v.ops.dispatch import kernel_problem
from wan_s2v.runtime.apply import apply_preset
from wan_s2v.runtime.offload import Placement
from wan_s2v.runtime.precision import usable_dtype, vae_dtype
from wan_s2v.runtime.quantization import is_quantized


class ModelRuntime(LoRALoading, MemoryPlanning):
    """A pipeline whose runs are planned, placed and recorded."""

    vae: AutoencoderKLWan

    def __init__(self) -> None:
        super().__init__()
        self.notes: tuple[str, ...] = ()
        self.source: dict[str, Any] = {}
        self._vae_dtype: torch.dtype | None = None  # that it must have, whatever the device

    def describe(self, plan: RunPlan) -> dict[str, Any]:
        """What made a result: versions, devices, precision and the plan; once it is made, also what memory it took."""
        loras = [record for expert, adapters in self.adapters.items() for record in adapters.records(expert)]
        notes = [note for adapters in self.adapters.values() for note in adapters.notes]
        has_run = self._last_plan is plan
        return {
            "version": __version__,
            "torch": torch.__version__,
            "device": str(self._device(plan)),
            "dtype": str(self.transformer.dtype).removeprefix("torch."),
            "eight_bit": is_quantized(self.transformer),
            "attention": chosen_backends(),
            **self.source,
            **({"loras": loras} if loras else {}),
            **({"memory": self._memory} if self._memory and has_run else {}),
            **plan.summary(),
            "warnings": list(
                dict.fromkeys([*plan.warnings, *self.notes, *notes, *(self._fallbacks if has_run else ())])
            ),
        }

    def _settle(self, plan: RunPlan) -> None:
        """Give the transformers and the VAE the precision that this run computes in."""
        options, device = plan.options, self._device(plan)
        dtype, note = usable_dtype(torch.float16 if options.use_fp16 else self.transformer.dtype, device)
        wanted = self._vae_dtype or vae_dtype(self.vae.dtype, dtype, device)
        if self.vae.dtype != wanted:
            self.vae.to(wanted)
        problem = kernel_problem() if device.type == "cuda" else None
        slow = f"Our GPU kernels cannot run here ({problem}); plain PyTorch does their work, more slowly."
        self.notes = tuple(dict.fromkeys((*self.notes, *([note] if note else []), *([slow] if problem else []))))
        for name in ("transformer", "transformer_2"):
            model = getattr(self, name)
            if model is None:
                continue
            if model.dtype != dtype:
                model.to(dtype)
            apply_preset(model, self.adapters.get(name), options.preset, device)

    def _encode(self, placement: Placement, pixels: Tensor, encode: Callable[..., Tensor] = encode_pixels) -> Tensor:
        """(C, F, h, w) latents of (3, T, H, W) pixels."""
        return self._run_vae(
            placement, "encode", lambda: encode(placement.use("vae"), pixels, placement.policy.vae_strips)
        )

    def _run_vae(
        self, placement: Placement, stage: str, work: Callable[[], Tensor], forget: Callable[[], None] | None = None
    ) -> Tensor:
        """What the VAE makes; in float32 if it left the range of float16, and from then on."""
        made = self._attempt(placement, stage, work, forget)
        if self.vae.dtype != torch.float16 or torch.isfinite(made).all():
            return made
        if forget is not None:
            forget()
        placement.clear()
        self.vae.to(torch.float32)
        self._vae_dtype = torch.float32
        self._fallbacks.append(f"The VAE left the range of float16 ({stage}); it computes in float32 now.")
        return self._attempt(placement, stage, work, forget)
