"""The VAE's norm and residual sum: the Triton kernels against plain PyTorch, and that against diffusers' norm.

On the GPU where there is one, else in Triton's interpreter on the CPU.
"""

from __future__ import annotations

import pytest
import torch
from conftest import assert_close
from diffusers.models.autoencoders.autoencoder_kl_wan import WanRMS_norm

from wan_s2v.ops.channel_norm import add_residual, channel_norm, plain_add_residual, plain_channel_norm

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
FORMATS = {"channels last": torch.channels_last_3d, "channels first": torch.contiguous_format}
SHAPES = [(1, 96, 3, 5, 7), (2, 20, 2, 3, 9), (1, 3, 1, 11, 13), (1, 160, 4, 6, 2)]


def _map(shape: tuple[int, ...], dtype: torch.dtype, layout: str = "channels last", seed: int = 0) -> torch.Tensor:
    drawn = 3 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return drawn.to(DEVICE, dtype).contiguous(memory_format=FORMATS[layout])


def _values(count: int, dtype: torch.dtype, seed: int) -> torch.Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def _assert_within_twice(made: torch.Tensor, plain: torch.Tensor, exact: torch.Tensor) -> None:
    """At most twice as far from float32 as plain PyTorch in the same dtype, or by float32's own rounding.

    Triton's interpreter cuts bfloat16 off where a GPU rounds it.
    """
    allowed = (2.0 if DEVICE == "cuda" else 2.4) * (plain.float() - exact).norm() + 1e-6 * exact.norm()
    assert made.isfinite().all()
    assert (made.float() - exact).norm() <= allowed


@pytest.fixture(scope="module")
def kernels():
    pytest.importorskip("triton", reason="Triton is not installed: it exists for Linux and, as triton-windows, Windows")
    from wan_s2v.ops import channel_norm_kernel

    return channel_norm_kernel


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("silu", [True, False])
@pytest.mark.parametrize("biased", [True, False])
def test_the_norm_kernel_is_as_exact_as_plain_pytorch(kernels, dtype, layout, shape, silu, biased):
    x, gamma = _map(shape, dtype, layout), _values(shape[1], dtype, 1).view(-1, 1, 1, 1)
    bias = _values(shape[1], dtype, 2) if biased else None
    wide_bias = None if bias is None else bias.float()
    exact = plain_channel_norm(x.float(), gamma.float(), bias=wide_bias, silu=silu)
    plain = plain_channel_norm(x, gamma, bias=bias, silu=silu)
    made = kernels.launch_channel_norm(x, gamma, bias, silu, torch.full_like(x, torch.nan))
    assert (made.dtype, made.stride()) == (plain.dtype, x.stride())
    _assert_within_twice(made, plain, exact)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("biased", [True, False])
def test_the_residual_kernel_is_as_exact_as_plain_pytorch(kernels, dtype, layout, shape, biased):
    x, residual = _map(shape, dtype, layout), _map(shape, dtype, layout, seed=1)
    bias = _values(shape[1], dtype, 2) if biased else None
    exact = x.float() + residual.float() + (0 if bias is None else bias.float().view(-1, 1, 1, 1))
    plain = plain_add_residual(x, residual, bias)
    _assert_within_twice(kernels.launch_add_residual(x.clone(), residual, bias), plain, exact)


@pytest.mark.parametrize("layout", FORMATS)
def test_the_norm_kernel_writes_into_frames_of_a_larger_map_and_nowhere_else(kernels, layout):
    x, gamma = _map((2, 20, 3, 4, 5), torch.float32, layout)[:, :, 1:], _values(20, torch.float32, 1)
    larger = _map((2, 20, 4, 4, 5), torch.float32, layout, seed=1)
    before = larger[:, :, :2].clone()
    kernels.launch_channel_norm(x, gamma, None, True, larger[:, :, 2:])
    assert torch.equal(larger[:, :, :2], before)
    assert_close(larger[:, :, 2:].cpu(), plain_channel_norm(x, gamma, silu=True).cpu(), 2e-6)


def test_the_kernels_take_maps_that_lie_differently(kernels):
    last, first = _map((2, 20, 3, 4, 5), torch.float32), _map((2, 20, 3, 4, 5), torch.float32, "channels first", seed=1)
    wanted, gamma = plain_channel_norm(last, _values(20, torch.float32, 1)), _values(20, torch.float32, 1)
    assert_close(kernels.launch_channel_norm(last, gamma, None, False, first.clone()).cpu(), wanted.cpu(), 2e-6)
    assert_close(kernels.launch_add_residual(last.clone(), first, None).cpu(), (last + first).cpu(), 0)


def test_a_position_without_length_stays_zero(kernels):
    x, gamma = torch.zeros(1, 16, 1, 2, 2, device=DEVICE), torch.ones(16, device=DEVICE)
    assert torch.equal(kernels.launch_channel_norm(x, gamma, None, False, x + 1), x)
    assert torch.equal(plain_channel_norm(x, gamma), x)


@pytest.mark.parametrize("layout", FORMATS)
@torch.no_grad()
def test_plain_norm_equals_the_one_of_diffusers(layout):
    x, theirs = _map((2, 20, 2, 3, 9), torch.float32, layout), WanRMS_norm(20, images=False).to(DEVICE)
    theirs.gamma.copy_(_values(20, torch.float32, 1).view(-1, 1, 1, 1))
    assert_close(plain_channel_norm(x, theirs.gamma).cpu(), theirs(x).cpu(), 2e-6)
    silu = torch.nn.functional.silu(theirs(x))
    assert_close(plain_channel_norm(x, theirs.gamma, silu=True).cpu(), silu.cpu(), 2e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@torch.no_grad()
def test_callers_get_the_same_whatever_runs(dtype):
    x, gamma, bias = _map((1, 96, 3, 5, 7), dtype), _values(96, dtype, 1), _values(96, dtype, 2)
    larger = torch.empty_like(x[:, :, [0, 0, 0, 1, 2]])
    normed = channel_norm(x, gamma, bias=bias, silu=True)
    channel_norm(x, gamma, bias=bias, silu=True, out=larger[:, :, 2:])
    assert torch.equal(larger[:, :, 2:], normed)
    assert (normed.dtype, normed.stride()) == (dtype, x.stride())
    _assert_within_twice(normed, normed, plain_channel_norm(x.float(), gamma.float(), bias=bias.float(), silu=True))
    exact = 2 * x.float() + bias.float().view(-1, 1, 1, 1)
    total = add_residual(x.clone(), x, bias)
    assert (total.float() - exact).norm() <= torch.finfo(dtype).eps * exact.norm()


def test_gradients_flow_through_the_norm():
    x = _map((1, 20, 2, 3, 3), torch.float32).requires_grad_()
    channel_norm(x, torch.ones(20, device=DEVICE), silu=True).square().sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0
