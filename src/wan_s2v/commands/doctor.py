"""What this machine has and what it can run, for people who wonder why something does not work.

Looks, and changes nothing. Findings are plain values, so that the same answer goes to a terminal and to a program.
"""

from __future__ import annotations

import importlib.metadata
import itertools
import platform
import shutil
from pathlib import Path
from typing import Any, Final

import av
import torch
from huggingface_hub import constants
from rich.console import Console
from rich.table import Table

from wan_s2v import __version__
from wan_s2v.commands.progress import size_text
from wan_s2v.commands.request import model_sizes
from wan_s2v.errors import CheckpointError, UsageError
from wan_s2v.runtime.memory import choose_policy, device_budget, free_bytes, peak_bytes
from wan_s2v.runtime.sizes import S2V_14B_SIZES, Work
from wan_s2v.weights.checkpoint import Checkpoint, find_checkpoint
from wan_s2v.weights.files import iterate_tensors
from wan_s2v.weights.names import S2V_REPOSITORY, TASKS

_GIB: Final = 2**30
_PACKAGES: Final = (
    "torch",
    "diffusers",
    "transformers",
    "safetensors",
    "huggingface-hub",
    "tokenizers",
    "sentencepiece",
    "numpy",
    "Pillow",
    "av",
    "soxr",
    "opencv-python-headless",
    "typer",
    "rich",
)
_ENCODERS: Final = {"libx264": "H.264", "aac": "AAC"}
_PLACES: Final = ("tiny", f"./{S2V_REPOSITORY.rpartition('/')[2]}", S2V_REPOSITORY)
_CARDS: Final = (12, 16, 24, 32, 48, 80)  # GiB
_USABLE: Final = 0.94  # of a card's memory; the driver, the desktop and libraries take the rest
_SIZES: Final = {"480p": (480, 832), "720p": (720, 1280)}


def examine(model: str | None = None) -> dict[str, Any]:
    """Everything there is to say; `problems` lists what must be mended, as sentences.

    Args:
        model: a checkpoint to check in full; by default the usual places are looked at.
    """
    packages = {name: _version(name) for name in _PACKAGES}
    encoders = {label: _has_encoder(name) for name, label in _ENCODERS.items()}
    problems = [f"{name} is not installed. Install wan-s2v again." for name, found in packages.items() if not found]
    problems += [f"PyAV has no {label} encoder. Install av from PyPI." for label, ok in encoders.items() if not ok]
    models = [_model(name, required=model is not None) for name in ([model] if model else _PLACES)]
    problems += [found["problem"] for found in models if found.get("required") and "problem" in found]
    return {
        "version": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": packages,
        "devices": _devices(),
        "disk_free_gib": {str(place): _disk_free(place) for place in (Path.cwd(), Path(constants.HF_HUB_CACHE))},
        "encoders": encoders,
        "models": models,
        "fits_s2v_14b_bf16": _fits(),
        "problems": problems,
    }


def print_findings(console: Console, findings: dict[str, Any]) -> None:
    """Findings as one table."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("wan-s2v", findings["version"], f"Python {findings['python']}, {findings['platform']}")
    for heading, rows in _sections(findings):
        table.add_row()
        for number, (name, value) in enumerate(rows):
            table.add_row("" if number else heading, name, value)
    console.print(table)


def _sections(findings: dict[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    devices = [(d["name"], f"{_gib(d['free_gib'])} of {_gib(d['total_gib'])} free") for d in findings["devices"]]
    fits = [(f"{fit['device']}, {fit['size']}", _fit_text(fit)) for fit in findings["fits_s2v_14b_bf16"]]
    return [
        ("packages", [(name, found or "missing") for name, found in findings["packages"].items()]),
        ("encoders", [(name, "yes" if found else "missing") for name, found in findings["encoders"].items()]),
        ("memory", devices),
        ("disk", [(_gib(free), place) for place, free in findings["disk_free_gib"].items()]),
        ("models", [(_model_label(m), m.get("problem") or _model_text(m)) for m in findings["models"]]),
        ("S2V-14B in bf16", fits),
    ]


def _fit_text(fit: dict[str, Any]) -> str:
    if not fit["fits"]:
        return f"does not fit: about {_gib(fit['needs_gib'])} at the least"
    return f"about {_gib(fit['needs_gib'])}: {fit['policy']}"


def _model_label(found: dict[str, Any]) -> str:
    """The last part of a path that a person gave: a long path would leave no room for what was found there."""
    return Path(found["name"]).name if found["required"] else str(found["name"])


def _model_text(found: dict[str, Any]) -> str:
    read = ", all of them read and finite" if found["required"] else ""
    size = size_text(found["gib"] * _GIB)
    stored = ", ".join(f"{name} {storage}" for name, storage in found["storage"].items())
    about = f"{found['kind']}, {found['layout'].replace('_', ' ')} layout"
    return f"{about}, {size}, {found['tensors']} tensors{read} ({stored}): {found['path']}"


def _gib(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.1f} GiB"


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _has_encoder(name: str) -> bool:
    try:
        return bool(av.Codec(name, "w").is_encoder)
    except av.codec.codec.UnknownCodecError:
        return False


def _devices() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        name = f"cuda:{index} {torch.cuda.get_device_name(index)}"
        found.append({"name": name, "free_gib": round(free / _GIB, 2), "total_gib": round(total / _GIB, 2)})
    free_ram, total_ram = free_bytes(torch.device("cpu")), _total_ram()
    found.append(
        {
            "name": f"cpu, {torch.get_num_threads()} threads",
            "free_gib": None if free_ram is None else round(free_ram / _GIB, 2),
            "total_gib": None if total_ram is None else round(total_ram / _GIB, 2),
        }
    )
    return found


def _total_ram() -> int | None:
    try:
        fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines())
        return int(fields["MemTotal"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None


def _disk_free(place: Path) -> float:
    existing = next(path for path in (place, *place.parents) if path.is_dir())
    return round(shutil.disk_usage(existing).free / _GIB, 2)


def _model(name: str, *, required: bool) -> dict[str, Any]:
    try:
        checkpoint = find_checkpoint(name, tasks=TASKS)
        if required:
            _require_finite(checkpoint)
    except (CheckpointError, UsageError) as error:
        absent = not required and (isinstance(error, UsageError) or not _is_present(name))
        return {"name": name, "required": required, "problem": "not here" if absent else str(error)}
    tensors = sum(len(model.tensors) for model in checkpoint.models.values())
    parameters = sum(model_sizes(checkpoint).parameters.values())
    return {
        "name": name,
        "required": required,
        "path": str(checkpoint.root),
        "kind": checkpoint.kind,
        "layout": checkpoint.layout,
        "storage": {name: model.storage for name, model in checkpoint.models.items()},
        "gib": round(checkpoint.total_bytes / _GIB, 4),
        "tensors": tensors,
        "parameters": parameters,
    }


def _require_finite(checkpoint: Checkpoint) -> None:
    """Read every value. Raises: CheckpointError at the first that is not finite or cannot be read."""
    for model in checkpoint.models.values():
        for stored, tensor in iterate_tensors(model.tensors.values()):
            if not torch.isfinite(tensor).all():
                raise CheckpointError(f"{stored.file}: {stored.name} holds NaN or infinity. Fetch the file again.")


def _is_present(name: str) -> bool:
    cached = Path(constants.HF_HUB_CACHE) / f"models--{name.replace('/', '--')}"
    return Path(name).exists() or cached.is_dir()


def _fits() -> list[dict[str, Any]]:
    """How the published model runs on this GPU and on common ones, for clips of the usual length."""
    cards = [(f"{gib} GB card", int(gib * _GIB * _USABLE)) for gib in _CARDS]
    if torch.cuda.is_available():
        free = device_budget(torch.device("cuda", torch.cuda.current_device()))
        cards.insert(0, ("this GPU, now", free or 0))
    found = []
    for (card, budget), (size, (height, width)) in itertools.product(cards, _SIZES.items()):
        work = Work(height, width, 16, ((20, True),), num_inference_steps=40, passes=2)
        policy = choose_policy(S2V_14B_SIZES, work, torch.bfloat16, budget)
        needs = peak_bytes(S2V_14B_SIZES, work, torch.bfloat16, policy)
        found.append(
            {
                "device": card,
                "size": size,
                "fits": needs <= budget,
                "needs_gib": round(needs / _GIB, 1),
                "policy": policy.description,
            }
        )
    return found
