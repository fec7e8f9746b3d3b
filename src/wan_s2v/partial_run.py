"""What is finished of a run, in a folder beside its output, so that a run which ended early goes on where it was.

Every file appears complete or not at all: it is written under another name, brought to the disk and renamed. A finished
clip is kept as its latents and the motion latents that it began with: decoding them again gives the same pixels, which
would take 25 times the space. Between clips the state of the steps is kept, at least every minute.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from wan_s2v.errors import OutputError, RunStoppedError, reason_of

SUFFIX: Final = ".partial"
_RUN, _STEPS = "run.json", "steps.safetensors"
_STEPS_EVERY_S: Final = 60.0


@dataclass(frozen=True)
class FinishedClip:
    """A clip before it is decoded.

    Args:
        latents: (1, C, F, h, w) float32.
        motion_latents: (C, Fm, h, w) that it began with; None for a first clip without motion.
        num_predictions: steps whose prediction was computed.
        seconds: that its stages took when it was made.
    """

    latents: Tensor
    motion_latents: Tensor | None
    num_predictions: int
    seconds: dict[str, float]


class PartialRun:
    """The folder of one run.

    Args:
        folder: made with the first thing that is kept.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._stopping = False
        self._kept_at = time.monotonic()

    @classmethod
    def beside(cls, output: Path) -> PartialRun:
        """That of an output file: `out.mp4.partial`."""
        return cls(output.with_name(output.name + SUFFIX))

    @property
    def unfinished_video(self) -> Path:
        """Where the video is written until it is whole."""
        return self.folder / "video.mp4"

    def read_run(self) -> dict[str, Any] | None:
        """What `write_run` wrote; None where nothing is kept or what is there cannot be read."""
        try:
            found = json.loads((self.folder / _RUN).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    def write_run(self, run: dict[str, Any]) -> None:
        """Keep what all clips share, as JSON."""
        self._write(_RUN, json.dumps(run, indent=1).encode())

    def change_run(self, **values: Any) -> None:
        """Replace some of what `write_run` wrote."""
        run = self.read_run()
        if run is not None and run != {**run, **values}:
            self.write_run({**run, **values})

    def clip(self, index: int) -> FinishedClip | None:
        """A finished clip, on the CPU; None where it is not there or damaged."""
        found = _read(self.folder / _clip_name(index))
        return None if found is None else FinishedClip(**found)

    def finished_clips(self) -> Iterator[int]:
        """Indices of the clips that are there."""
        for path in sorted(self.folder.glob("clip_*.safetensors")):
            yield int(path.stem.removeprefix("clip_"))

    def keep_clip(self, index: int, clip: FinishedClip) -> None:
        """Raises: RunStoppedError if there was word to stop; OutputError if it cannot be written."""
        self._write(_clip_name(index), _packed(vars(clip)))
        (self.folder / _STEPS).unlink(missing_ok=True)
        self._kept_at = time.monotonic()
        if self._stopping:
            raise _stopped(f"clip {index + 1}")

    def forget_from(self, index: int) -> None:
        """Remove a clip and those that follow from it."""
        (self.folder / _STEPS).unlink(missing_ok=True)
        for found in list(self.finished_clips()):
            if found >= index:
                (self.folder / _clip_name(found)).unlink()

    def steps(self, index: int, device: torch.device) -> dict[str, Any] | None:
        """The state of a clip's steps, as it was kept; None where that of another clip or nothing is there."""
        found = _read(self.folder / _STEPS, str(device))
        return found["state"] if found is not None and found["clip"] == index else None

    def after_step(self, index: int, step: int, state: Callable[[], dict[str, Any]]) -> None:
        """Keep the state of a clip's steps if it is time.

        Raises: RunStoppedError, once it is kept, if there was word to stop.
        """
        if not self._stopping and time.monotonic() - self._kept_at < _STEPS_EVERY_S:
            return
        self.keep_steps(index, state())
        if self._stopping:
            raise _stopped(f"step {step} of clip {index + 1}")

    def keep_steps(self, index: int, state: dict[str, Any]) -> None:
        """Keep the state of a clip's steps now."""
        self._write(_STEPS, _packed({"clip": index, "state": state}))
        self._kept_at = time.monotonic()

    def stop_soon(self) -> None:
        """Have the run end after its step, or after its clip where no step is under way."""
        self._stopping = True

    def remove(self) -> None:
        """The run is done."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def remove_if_empty(self) -> None:
        """Leave nothing behind where nothing was finished."""
        if not any(True for _ in self.finished_clips()) and not (self.folder / _STEPS).exists():
            self.remove()

    def _write(self, name: str, content: bytes) -> None:
        path, temporary = self.folder / name, self.folder / f".{name}.new"
        try:
            self.folder.mkdir(exist_ok=True)
            write_atomically(path, temporary, content)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise OutputError(
                f"{path} cannot be written ({reason_of(error)}). What was kept before is whole: free space, and give "
                "the same command again."
            ) from error


def _stopped(where: str) -> RunStoppedError:
    return RunStoppedError(f"Stopped after {where}, which is kept. The same command goes on from there.")


def write_atomically(path: Path, temporary: Path, content: bytes) -> None:
    """Put content under a name in one step, on the disk when it returns. Raises: OSError."""
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the name, too
    finally:
        os.close(folder)


def _clip_name(index: int) -> str:
    return f"clip_{index:05d}.safetensors"


def _packed(content: dict[str, Any]) -> bytes:
    """Plain values, lists, dicts and tensors in one safetensors file: the structure as JSON, tensors by number."""
    tensors: dict[str, Tensor] = {}

    def plain(value: Any) -> Any:
        if isinstance(value, Tensor):
            tensors[str(len(tensors))] = value.detach().cpu().contiguous().clone()
            return {"tensor": str(len(tensors) - 1)}
        if isinstance(value, dict):
            return {"dict": {key: plain(part) for key, part in value.items()}}
        return [plain(part) for part in value] if isinstance(value, list | tuple) else value

    structure = json.dumps(plain(content))
    return save(tensors, {"structure": structure})


def _read(path: Path, device: str = "cpu") -> dict[str, Any] | None:
    """What `_packed` packed; None where there is no such file or it is damaged."""
    try:
        with safe_open(path, "pt", device=device) as file:
            return _restored(json.loads(file.metadata()["structure"]), file.get_tensor)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError):
        return None


def _restored(value: Any, tensor: Callable[[str], torch.Tensor]) -> Any:
    if isinstance(value, list):
        return [_restored(part, tensor) for part in value]
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        return tensor(value["tensor"])
    return {key: _restored(part, tensor) for key, part in value["dict"].items()}
