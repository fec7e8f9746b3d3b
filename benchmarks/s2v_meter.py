"""Seconds, peak memory and differences, as plain numbers, and the circumstances under which they were taken."""

from __future__ import annotations

import gc
import hashlib
import importlib.metadata
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import wan_s2v

Record = dict[str, Any]  # to be stored as JSON; seconds end in _s, bytes in _bytes


class Meter:
    """Seconds and peak memory of work on a device; the CPU's memory is not known."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._is_gpu = device.type == "cuda"

    def measure(self, operation: Callable[[], object], repeats: int) -> Record:
        """Spread of so many calls after one that does not count, and the peak of memory."""
        self.release()
        operation()
        self.forget_peak()
        seconds = []
        for _ in range(repeats):
            started = time.perf_counter()
            operation()
            self.wait()
            seconds.append(time.perf_counter() - started)
        return spread(seconds) | self.peak()

    def wait(self) -> None:
        """Until the device has done all that it was given."""
        if self._is_gpu:
            torch.cuda.synchronize(self.device)

    def forget_peak(self) -> None:
        self.wait()
        if self._is_gpu:
            torch.cuda.reset_peak_memory_stats(self.device)

    def peak(self) -> Record:
        """Most bytes in use, and most held by PyTorch, since `forget_peak`; weights included."""
        if not self._is_gpu:
            return {"allocated_bytes": None, "reserved_bytes": None}
        return {
            "allocated_bytes": torch.cuda.max_memory_allocated(self.device),
            "reserved_bytes": torch.cuda.max_memory_reserved(self.device),
        }

    def release(self) -> None:
        """Give memory back that nothing uses."""
        gc.collect()
        if self._is_gpu:
            torch.cuda.empty_cache()


def spread(seconds: Sequence[float]) -> Record:
    middle = statistics.median(seconds)
    return {"median_s": middle, "min_s": min(seconds), "max_s": max(seconds), "repeats": len(seconds)}


def largest(peaks: Sequence[Record]) -> Record:
    """The peak of work that had these peaks, one after the other."""
    return {
        name: max((peak[name] for peak in peaks if peak[name] is not None), default=None)
        for name in ("allocated_bytes", "reserved_bytes")
    }


def difference(found: Tensor, truth: Tensor) -> Record:
    """Relative L2 distance, and cosine of the angle between the two."""
    found, truth = found.float().flatten(), truth.float().flatten()
    error = (found - truth).norm() / truth.norm()
    return {"relative_l2": error.item(), "cosine": torch.cosine_similarity(found, truth, dim=0).item()}


def circumstances(model: str, dtype: str, device: torch.device) -> Record:
    """What the figures of one results file have in common."""
    is_gpu = device.type == "cuda"
    power, driver = _power_and_driver(device) if is_gpu else (None, None)
    return {
        "model": model,
        "dtype": dtype,
        "gpu": torch.cuda.get_device_name(device) if is_gpu else f"{platform.machine()} CPU",
        "power_limit_w": power,
        "driver": driver,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if is_gpu else None,
        "triton": _version("triton"),
        "commit": _output("git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD") or "unknown",
        "sources": _sources(),
    }


def _sources() -> str:
    """A short hash of the package's code: it tells versions apart where git is absent or the code is not committed."""
    folder = Path(wan_s2v.__file__).parent
    digest = hashlib.sha256()
    for file in sorted(folder.rglob("*.py")):
        digest.update(file.relative_to(folder).as_posix().encode() + file.read_bytes())
    return digest.hexdigest()[:12]


def _power_and_driver(device: torch.device) -> tuple[float | None, str | None]:
    """Watts and version, as nvidia-smi tells them; None where it does not."""
    gpu = f"--id=GPU-{torch.cuda.get_device_properties(device).uuid}"
    query = ("--query-gpu=power.limit,driver_version", "--format=csv,noheader,nounits")
    try:
        watts, driver = _output("nvidia-smi", gpu, *query).split(", ")
        return float(watts), driver
    except ValueError:
        return None, None


def _output(*command: str) -> str:
    """What a program prints; empty if it cannot be run or fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
