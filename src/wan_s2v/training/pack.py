"""Write a trained pipeline as the small checkpoint that the package ships: diffusers layout, weights as int8."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from torch import Tensor

from wan_s2v.errors import OutputError, UsageError, reason_of
from wan_s2v.pipeline import WanS2VPipeline
from wan_s2v.weights.int8 import MAX_FILE_BYTES, write_int8

_TIED: Final = "encoder.embed_tokens.weight"  # the text encoder's shared.weight under a second name
_WEIGHT_FILES: Final = {
    "transformer": "diffusion_pytorch_model.safetensors",
    "transformer_2": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "audio_encoder": "model.safetensors",
    "text_encoder": "model.safetensors",
}


def write_small_checkpoint(
    pipeline: WanS2VPipeline,
    folder: Path,
    *,
    max_file_bytes: int = MAX_FILE_BYTES,
    report: Callable[[str], None] = print,
) -> int:
    """Write every component with its config; `WanS2VPipeline.from_pretrained(folder)` loads the result.

    Args:
        pipeline: its components may be on any device, in any floating-point dtype.
        folder: made if needed; must be empty, so that nothing of an older model stays in the package.
        max_file_bytes: size that no weight file exceeds, unless one tensor alone does.
        report: called with a line per model: its size and its largest relative error; at last with the size of all.
    Returns: the bytes of all files.
    Raises:
        UsageError: the folder holds something.
        CheckpointError: a weight is NaN or infinite.
        OutputError: the files cannot be written.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"folder={str(folder)!r} is not an empty folder. Remove it, or pass another.")
    try:
        pipeline.save_config(folder)
        for name, file in _WEIGHT_FILES.items():
            module = getattr(pipeline, name)
            if module is not None:
                _save_config(module, folder / name)
                errors = write_int8(_state(module), folder / name / file, max_file_bytes=max_file_bytes)
                report(_summary(name, errors, _folder_bytes(folder / name)))
        for name in ("tokenizer", "audio_processor"):
            if getattr(pipeline, name) is not None:
                getattr(pipeline, name).save_pretrained(folder / name)
    except OSError as error:
        raise OutputError(
            f"{folder} could not be written ({reason_of(error)}). Check the space and its permissions."
        ) from error
    total = _folder_bytes(folder)
    report(f"total: {total / 1e6:.2f} MB")
    return total


def _save_config(module: Any, folder: Path) -> None:
    if hasattr(module, "save_config"):  # of diffusers
        module.save_config(folder)
        return
    module.config.architectures = [type(module).__name__]
    module.config.save_pretrained(folder)


def _state(module: Any) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in module.state_dict().items() if name != _TIED}


def _summary(name: str, errors: dict[str, float], num_bytes: int) -> str:
    if not errors:
        return f"{name}: {num_bytes / 1e6:.2f} MB, nothing large enough for int8"
    worst = max(errors, key=lambda key: errors[key])
    return (
        f"{name}: {num_bytes / 1e6:.2f} MB, {len(errors)} tensors as int8, largest relative error"
        f" {errors[worst]:.2%} ({worst})"
    )


def _folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
