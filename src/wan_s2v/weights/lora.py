"""LoRA files, read: every tensor accounted for, checked against the model, and put together with its scale.

What a model does with them is in runtime/lora.py. An alpha apart from the tensors is that of PEFT's
`adapter_config.json` and of diffusers' metadata (`loaders/lora_base.py`); without any, alpha is the rank.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeAlias

import torch
from torch import Tensor

from wan_s2v.errors import CheckpointError, UsageError
from wan_s2v.experts import ExpertName
from wan_s2v.weights.files import iterate_tensors, read_headers, read_json, read_metadata
from wan_s2v.weights.lora_keys import Layout, Shape, Slot, hears_sound, lay_out, layer_of, listed

LoRASource: TypeAlias = str | Path | Mapping[str, Tensor]

MAX_WEIGHT: Final = 100.0
_NOISE: Final[dict[str, ExpertName]] = {"high": "transformer", "low": "transformer_2"}  # the expert for it
_NOISE_IN_NAME: Final = re.compile(r"((?i:high|low))[ _.-]?(?i:noise)|(?<![A-Za-z])(HIGH|LOW)(?![A-Za-z])")
_OF_SOUND: Final = ("audio_encoder.", "audio_injector.")
_USUAL_FILES: Final = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors")
_METADATA: Final = "lora_adapter_metadata"  # of diffusers: the config as JSON, its keys after the component's name


@dataclass(frozen=True)
class LoRAFile:
    """A LoRA file that somebody wants on the model, and how strongly.

    Args:
        expert: of two experts, the name of the one that it is for; None for both.
    """

    path: Path
    weight: float = 1.0
    expert: ExpertName | None = None

    @classmethod
    def parse(cls, text: str, folder: Path) -> LoRAFile:
        """From `FILE[:high|:low][:WEIGHT]`, relative to a folder; without high or low the file's name may say it.

        Raises: UsageError if there is no such file or the weight is not accepted.
        """
        path, weight, expert = folder / Path(text).expanduser(), 1.0, None
        head, _, tail = text.rpartition(":")
        if head and not path.exists() and _is_number(tail):
            path, weight, text = folder / Path(head).expanduser(), check_weight(float(tail)), head
            head, _, tail = text.rpartition(":")
        if head and not path.exists() and tail in _NOISE:
            path, expert = folder / Path(head).expanduser(), _NOISE[tail]
        if not path.exists():
            raise UsageError(f"lora={text!r}: there is no file {path}. Pass FILE, FILE:WEIGHT or FILE:high:WEIGHT.")
        return cls(path, weight, expert or _expert_in(path.name))

    def is_for(self, expert: str, experts: Collection[str]) -> bool:
        """Whether it goes on this one of a model's experts; a single transformer takes every LoRA."""
        return len(experts) == 1 or self.expert in (None, expert)

    def record(self) -> dict[str, Any]:
        """As plain strings and numbers."""
        where = {} if self.expert is None else {"transformer": self.expert}
        return {"file": str(self.path), "weight": self.weight, **where}


def _expert_in(name: str) -> ExpertName | None:
    """The expert that a file's name says a LoRA is for: as in high_noise_model.safetensors, or x_HIGH.safetensors."""
    found = {(match[1] or match[2]).lower() for match in _NOISE_IN_NAME.finditer(name)}
    return _NOISE[found.pop()] if len(found) == 1 else None


@dataclass(frozen=True)
class LowRank:
    """A change of a weight as scale · up · down.

    Args:
        down: (rank, inputs, …).
        up: (outputs, rank, 1…).
        scale: alpha / rank.
    """

    down: Tensor
    up: Tensor
    scale: float

    def product(self) -> Tensor:
        """The change in full, (outputs, inputs, …) float32."""
        full = self.up.float().flatten(1) @ self.down.float().flatten(1)
        return (full * self.scale).unflatten(1, self.down.shape[1:])


@dataclass(frozen=True)
class LoRA:
    """A LoRA as read, by our names; tensors on the CPU in their stored dtype.

    Args:
        source: file, or "tensors" where they were given as such.
        fingerprint: of names, dtypes and all values.
        pairs: by the name of the weight that they change.
        differences: by the name of the parameter that they are added to.
        notes: what the user should know about it.
    """

    source: str
    fingerprint: str
    pairs: Mapping[str, LowRank]
    differences: Mapping[str, Tensor]
    notes: tuple[str, ...]


class _Opened(NamedTuple):
    """A LoRA whose tensors were not read yet."""

    name: str
    shapes: Mapping[str, Shape]
    config: Mapping[str, Any]  # of PEFT, where it is stated
    made_for: str | None  # as its metadata say
    tensors: Iterable[tuple[str, Tensor]]


def read_lora(source: LoRASource, config: Mapping[str, Any], *, weight_name: str | None = None) -> LoRA:
    """A LoRA that fits the transformer of this config.

    Args:
        source: file, folder with one, or tensors by the names of any style.
        weight_name: file in the folder.
    Raises:
        UsageError: there is no such file.
        CheckpointError: damaged, not a LoRA, of another kind or size of model, or not finite.
    """
    opened = _open(source, weight_name)
    layout = _lay_out(opened, config)
    tensors = dict(opened.tensors)
    _require_values(tensors, opened.name)
    pairs, differences = {}, {name: tensors[key] for (name, role), key in layout.keys.items() if role == "diff"}
    for (name, role), key in layout.keys.items():
        if role == "down":
            up, alpha = tensors[layout.keys[Slot(name, "up")]], layout.keys.get(Slot(name, "alpha"))
            rank = tensors[key].shape[0]
            scale = _scale(opened, layer_of(key), rank, None if alpha is None else tensors[alpha].item())
            pairs[name] = LowRank(tensors[key], up, scale)
    for (name, role), key in layout.keys.items():
        if role == "up_bias":
            scale = pairs[f"{name.removesuffix('bias')}weight"].scale
            differences[name] = differences.get(name, 0.0) + scale * tensors[key].float()
    return LoRA(opened.name, _fingerprint(tensors), pairs, differences, _notes(opened, layout, hears_sound(config)))


def check_lora(file: LoRAFile, config: Mapping[str, Any]) -> tuple[str, ...]:
    """What `read_lora` can tell from the file's header: its notes, or the same errors but that for values."""
    opened = _open(file.path, None)
    return _notes(opened, _lay_out(opened, config), hears_sound(config))


def lora_shapes(file: LoRAFile, config: Mapping[str, Any]) -> dict[Slot, Shape]:
    """What a LoRA brings for which parameter, told from the file's header; the same errors as `check_lora`."""
    opened = _open(file.path, None)
    return {slot: opened.shapes[key] for slot, key in _lay_out(opened, config).keys.items()}


def _lay_out(opened: _Opened, config: Mapping[str, Any]) -> Layout:
    if opened.config.get("use_dora"):
        raise CheckpointError(f"{opened.name} is a DoRA, as its config says, which is not supported. Use a plain LoRA.")
    return lay_out(opened.name, opened.shapes, config)


def check_weight(value: Any) -> float:
    """A LoRA's weight. Raises: UsageError for what is not a number in -100…100."""
    good = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= MAX_WEIGHT
    if not good:
        raise UsageError(f"LoRA weight {value!r} is not accepted. Give a number in -100…100; 1 is as trained.")
    return float(value)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _open(source: LoRASource, weight_name: str | None) -> _Opened:
    if isinstance(source, Mapping):
        shapes = {key: tuple(tensor.shape) for key, tensor in source.items()}
        return _Opened("tensors", shapes, {}, None, source.items())
    file = _find_file(Path(source).expanduser(), weight_name)
    headers = read_headers([file])
    metadata = read_metadata(file) if file.suffix == ".safetensors" else {}
    made_for = metadata.get("modelspec.architecture") or metadata.get("ss_base_model_version")
    shapes = {key: stored.shape for key, stored in headers.items()}
    return _Opened(file.name, shapes, _stated_config(file, metadata), made_for, _read(headers.values()))


def _read(headers: Iterable[Any]) -> Iterator[tuple[str, Tensor]]:
    yield from ((stored.name, tensor) for stored, tensor in iterate_tensors(headers))


def _find_file(path: Path, weight_name: str | None) -> Path:
    if path.is_dir():
        found = sorted(path.glob("*.safetensors")) if weight_name is None else [path / weight_name]
        usual = [file for file in found if file.name in _USUAL_FILES]
        found = usual or found
        if len(found) == 1 and found[0].is_file():
            return found[0]
        names = ", ".join(file.name for file in found) or "none"
        raise UsageError(f"{path} does not hold one LoRA file ({names}). Pass the file itself, or weight_name=….")
    if not path.is_file():
        raise UsageError(f"There is no LoRA at {path}. Pass a .safetensors file; fetch one from the hub first.")
    return path


def _stated_config(file: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    """PEFT's config, from the metadata or from beside the file; {} where there is none."""
    beside = file.with_name("adapter_config.json")
    if _METADATA in metadata:
        try:
            stated = json.loads(metadata[_METADATA]).items()
        except (ValueError, AttributeError) as error:
            raise CheckpointError(f"{file}: its metadata key {_METADATA} is not a JSON object ({error}).") from error
        return {key.removeprefix("transformer."): value for key, value in stated}
    if file.name == "adapter_model.safetensors" and beside.is_file():
        return read_json(beside)
    return {"lora_alpha": metadata["lora_alpha"]} if _is_number(metadata.get("lora_alpha", "")) else {}


def _require_values(tensors: Mapping[str, Tensor], name: str) -> None:
    """Raises: CheckpointError for matrices of whole numbers, whose scale is not known, and for NaN."""
    for key, tensor in tensors.items():
        if tensor.numel() > 1 and not tensor.is_floating_point():
            raise CheckpointError(f"{name}: {key} is stored as {tensor.dtype}. Use a file in bf16, fp16 or fp32.")
        if not torch.isfinite(tensor.float()).all():
            raise CheckpointError(f"{name}: {key} holds NaN or infinite values. Fetch it again, or train it anew.")


def _scale(opened: _Opened, path: str, rank: int, alpha: float | None) -> float:
    """alpha / rank; alpha is the file's own, else the config's, else the rank.

    Raises: CheckpointError for a config whose alpha is none.
    """
    if alpha is not None:
        return alpha / rank
    config = opened.config
    stated = config.get("lora_alpha", rank)
    try:
        for pattern, value in (config.get("alpha_pattern") or {}).items():
            if re.fullmatch(rf"(.*\.)?({pattern})", path):
                stated = value
        return float(stated) / (math.sqrt(rank) if config.get("use_rslora") else rank)
    except (TypeError, ValueError, AttributeError, re.error) as error:
        raise CheckpointError(
            f"{opened.name}: the alpha of its config cannot be used ({error}). Correct it."
        ) from error


def _fingerprint(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for key in sorted(tensors):
        tensor = tensors[key].detach().cpu().contiguous()
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _notes(opened: _Opened, layout: Layout, hears: bool) -> tuple[str, ...]:
    """What the user should know of a LoRA for a model that hears sound, or does not."""
    name = opened.name
    notes = []
    if layout.left_out:
        count = len(layout.left_out)
        notes.append(f"{name} was made for another kind of model; {count} tensors of layers that this one has not are "
                     f"left out: {listed(layout.left_out)}.")  # fmt: skip
    elif not hears:
        return ()
    elif opened.made_for is not None and "s2v" not in opened.made_for.lower():
        notes.append(f"{name} was made for {opened.made_for}, as its metadata say.")
    elif not any(slot.parameter.startswith(_OF_SOUND) for slot in layout.keys):
        notes.append(f"{name} changes none of the layers for sound, as LoRAs of T2V and I2V models; check the lips.")
    return tuple(notes)
