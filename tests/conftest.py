"""Paths and loaders that every test file shares."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # kernels run in Triton's interpreter; it looks when a kernel is defined

TESTS = Path(__file__).parent
GOLDENS = TESTS / "goldens"
MEDIA = TESTS / "media"


def load_golden(name: str) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors of one golden file, bfloat16 widened to float32, and its metadata."""
    with safe_open(GOLDENS / f"{name}.safetensors", "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
        metadata = dict(file.metadata() or {})
    return {k: v.float() if v.dtype == torch.bfloat16 else v for k, v in tensors.items()}, metadata


def assert_close(actual: torch.Tensor, expected: torch.Tensor, atol: float, what: str = "tensor") -> None:
    """Fail with maximum and mean error and cosine similarity where |actual - expected| exceeds `atol`."""
    assert actual.shape == expected.shape, f"{what}: shape {tuple(actual.shape)} is not {tuple(expected.shape)}"
    a, e = actual.detach().double().flatten(), expected.detach().double().flatten()
    error = (a - e).abs()
    cosine = torch.nn.functional.cosine_similarity(a, e, dim=0).item() if a.numel() else 1.0
    worst = error.max().item() if error.numel() else 0.0
    assert worst <= atol, f"{what}: max {worst:.3e} > {atol:.0e}, mean {error.mean().item():.3e}, cosine {cosine:.8f}"


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Tests run side by side; two thread pools on the same cores wait for each other and take ten times as long."""
    torch.set_num_threads(1)
