"""The pipeline's methods for LoRAs, by the names that diffusers gives them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline
from torch import Tensor

from wan_s2v.errors import UsageError
from wan_s2v.models.backbone import Backbone
from wan_s2v.runtime.lora import Adapters
from wan_s2v.weights.lora import read_lora


class LoRALoading(DiffusionPipeline):
    """LoRAs on the transformers of a pipeline."""

    transformer: Backbone
    transformer_2: Any  # Backbone or None

    def __init__(self) -> None:
        super().__init__()
        self.adapters: dict[str, Adapters] = {}  # by the name of the transformer

    def load_lora_weights(
        self,
        pretrained_model_name_or_path_or_dict: str | Path | Mapping[str, Tensor],
        adapter_name: str | None = None,
        *,
        weight: float = 1.0,
        weight_name: str | None = None,
        load_into_transformer_2: bool = False,
    ) -> None:
        """Put a LoRA on a transformer, beside those that are on it; see docs/lora.md for the styles that are read.

        Args:
            pretrained_model_name_or_path_or_dict: file, folder with one, or tensors by name.
            adapter_name: to call it by in `set_adapters`; "default_0", "default_1", … if None.
            weight: how strongly it acts; 1 is as trained.
            weight_name: file in the folder.
            load_into_transformer_2: of two experts, change the one for low noise; the other one if False.
        Raises: UsageError and CheckpointError; then nothing is changed.
        """
        expert = "transformer_2" if load_into_transformer_2 else "transformer"
        transformer = getattr(self, expert)
        if transformer is None:
            raise UsageError("This model has no transformer_2. Leave load_into_transformer_2 out.")
        lora = read_lora(pretrained_model_name_or_path_or_dict, transformer.config, weight_name=weight_name)
        adapters = self.adapters.get(expert) or Adapters(transformer)
        adapters.add(f"default_{len(adapters.loras)}" if adapter_name is None else adapter_name, lora, weight)
        self.adapters[expert] = adapters

    def set_adapters(
        self, adapter_names: str | Sequence[str], adapter_weights: float | Sequence[float] | None = None
    ) -> None:
        """Have exactly these LoRAs on, on each transformer that has them; others stay loaded, but off.

        Args:
            adapter_weights: one for each name, or one for all; 1 if None.
        """
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        given = 1.0 if adapter_weights is None else adapter_weights
        weights = list(given) if isinstance(given, Sequence) else [given] * len(names)
        known = {name for adapters in self.adapters.values() for name in adapters.loras}
        if len(names) != len(weights) or not known.issuperset(names):
            raise UsageError(
                f"adapter_names={names} with adapter_weights={weights} is not accepted. Give one weight for each, and "
                f"names of loaded LoRAs: {', '.join(sorted(known)) or 'there are none'}."
            )
        for adapters in self.adapters.values():
            wanted = zip(names, weights, strict=True)
            adapters.set_weights({name: weight for name, weight in wanted if name in adapters.loras})

    def unload_lora_weights(self) -> None:
        """Take all LoRAs off; the transformers are what they were before, to the bit."""
        for adapters in self.adapters.values():
            adapters.clear()
        self.adapters = {}

    @property
    def has_lora(self) -> bool:
        """Whether a LoRA changes a transformer."""
        return any(adapters.active for adapters in self.adapters.values())

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> None:
        """As in diffusers. Raises: UsageError with LoRAs on, whose weights are not the model's."""
        if self.has_lora:
            raise UsageError(
                "The model has LoRAs on it, which a saved model would lose or hold half merged. Call "
                "unload_lora_weights() first, and load_lora_weights() again afterwards."
            )
        super().save_pretrained(save_directory, **options)
