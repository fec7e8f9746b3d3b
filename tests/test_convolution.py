"""The VAE's convolutions over padded maps: the Triton kernel against plain PyTorch, and that against PyTorch's own.

On the GPU where there is one, else in Triton's interpreter on the CPU.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from conftest import assert_close

from wan_s2v.ops.convolution import convolve, make_padded, plain_convolve

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Triton's interpreter misreads bfloat16 that a descriptor loads.
DTYPES = [torch.float32, torch.float16] if DEVICE == "cpu" else [torch.float16, torch.bfloat16]
# channels, results, frames, height, width, kernel
CASES = {
    "3 x 3 x 3": (32, 48, 2, 5, 9, (3, 3, 3)),
    "few channels": (3, 20, 2, 6, 4, (3, 3, 3)),
    "few results": (48, 3, 1, 7, 11, (3, 3, 3)),
    "in time": (16, 80, 3, 4, 5, (3, 1, 1)),
    "one tap": (64, 160, 1, 3, 7, (1, 1, 1)),
    "two column tiles": (16, 200, 1, 19, 33, (1, 2, 2)),
    "wide": (16, 384, 1, 3, 3, (1, 3, 3)),
}


def _random(*shape: int, dtype: torch.dtype, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def _last(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous(memory_format=torch.channels_last_3d)


@pytest.fixture
def _kernel(monkeypatch):
    pytest.importorskip("triton.tools.tensor_descriptor", reason="the kernel needs Triton 3.4 or later")
    monkeypatch.setattr("wan_s2v.ops.convolution.runs_kernels", lambda x: True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("with_residual", [False, True])
@pytest.mark.usefixtures("_kernel")
@torch.no_grad()
def test_the_kernel_is_as_exact_as_plain_pytorch(case, dtype, with_residual):
    channels, results, frames, height, width, taps = CASES[case]
    seen = frames + taps[0] - 1
    video = _random(2, channels, seen, height, width, dtype=dtype, seed=0)
    weight = _random(results, channels, *taps, dtype=dtype, seed=1) / 8
    bias = _random(results, dtype=dtype, seed=2)
    residual = _last(_random(2, results, frames, height, width, dtype=dtype, seed=3)) if with_residual else None
    padded = make_padded(video, seen, around=taps[1] > 1)
    padded[:, :channels, :, :height, :width] = video
    origin = (taps[1] // 2, taps[2] // 2)
    out = _last(torch.zeros(2, results, frames, height, width, dtype=dtype, device=DEVICE))
    made = convolve(padded, weight, bias, origin=origin, out=out, residual=residual)
    before, after = origin, (taps[1] - 1 - origin[0], taps[2] - 1 - origin[1])
    bordered = F.pad(video, (before[1], after[1], before[0], after[0]))
    exact = F.conv3d(bordered.double(), weight.double(), bias.double())
    exact = exact if residual is None else exact + residual
    plain = plain_convolve(padded, weight, bias, origin=origin, size=(height, width), residual=residual)
    assert made is out
    assert (plain - exact).norm() < (1e-6 if dtype == torch.float32 else 4e-3) * exact.norm()
    assert (made - exact).norm() <= 2 * (plain - exact).norm() + 1e-6 * exact.norm()


@pytest.mark.usefixtures("_kernel")
@torch.no_grad()
def test_the_kernel_writes_every_second_pixel_and_leaves_the_others():
    video = _random(1, 16, 2, 4, 6, dtype=torch.float16, seed=0)
    weight, bias = _random(16, 16, 1, 2, 2, dtype=torch.float16, seed=1), torch.zeros(16, device=DEVICE).half()
    padded = make_padded(video, 2, around=True)
    padded[..., :4, :6] = video
    out = _last(torch.full((1, 16, 2, 8, 12), 7.0, dtype=torch.float16, device=DEVICE))
    convolve(padded, weight, bias, origin=(0, 1), out=out[..., 1::2, ::2])
    assert_close(out[..., 1::2, ::2].float(), F.conv3d(F.pad(video, (1, 0, 0, 1)).float(), weight.float()), 2e-2)
    out[..., 1::2, ::2] = 7
    assert (out == 7).all()


def test_a_padded_map_is_zero_beyond_its_sizes():
    like = torch.ones(1, 3, 2, 4, 5, dtype=torch.float16)
    padded = make_padded(like, 4, around=True)
    assert padded.shape == (1, 16, 4, 5, 6)
    assert padded.is_contiguous(memory_format=torch.channels_last_3d)
    assert not padded.any()
    padded = make_padded(torch.ones(1, 32, 1, 4, 5), 3, around=True)
    assert not padded[..., 4, :].any()
    assert not padded[..., 5].any()
    assert make_padded(torch.ones(1, 32, 1, 4, 5), 3, around=False).shape == (1, 32, 3, 4, 5)
