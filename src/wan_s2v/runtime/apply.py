"""What a preset asks of a built transformer; the only place where the order of techniques matters."""

from __future__ import annotations

import torch

from wan_s2v.errors import UsageError
from wan_s2v.models.backbone import Backbone
from wan_s2v.runtime.lora import Adapters
from wan_s2v.runtime.quantization import can_compute_in_eight_bits, compute_in_eight_bits, is_quantized


def apply_preset(transformer: Backbone, adapters: Adapters | None, preset: str, device: torch.device) -> None:
    """Have a transformer compute as the preset wants it.

    Args:
        adapters: LoRAs that are on it.
        device: where it will work.
    Raises: UsageError for "exact" after its weights were rounded.
    """
    if preset == "exact" and is_quantized(transformer):
        raise UsageError(
            'The transformer computes in 8 bits since preset="fast" was used. Load the model again for preset="exact".'
        )
    if preset == "fast" and can_compute_in_eight_bits(device) and not is_quantized(transformer):
        _round(transformer, adapters, device)


def _round(transformer: Backbone, adapters: Adapters | None, device: torch.device) -> None:
    """LoRAs stay above the rounded layers: their small changes would be lost below."""
    weights = dict(adapters.weights) if adapters else {}
    if adapters:
        adapters.set_weights({})
    compute_in_eight_bits(transformer, device)
    if adapters:
        adapters.set_weights(weights)
