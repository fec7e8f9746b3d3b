"""The training loop: budgets end it, an interrupted run goes on as if nothing had happened."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch import nn

from wan_s2v.errors import NumericsError
from wan_s2v.training.loop import Budget, Loop, learning_rate_scale


def _model(dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 32), nn.SiLU(), nn.Linear(32, 4)).to(dtype)


def _train(model, steps, stop_after=None, checkpoint=None, save_at=None):
    generator = torch.Generator().manual_seed(1)
    loop = Loop(
        model,
        muon_lr=1e-2,
        adamw_lr=1e-2,
        budget=Budget(600, steps),
        checkpoint=checkpoint,
        generators=(generator,),
        report=lambda _line: None,
    )
    dtype = next(model.parameters()).dtype
    for _ in loop:
        x = torch.randn(16, 32, generator=generator)
        loop.step((model(x.to(dtype)).float() - x[:, :4]).square().mean())
        if loop.steps == save_at:
            loop._save(checkpoint)
        if loop.steps == stop_after:
            return loop
    loop.finish()
    return loop


def test_an_interrupted_training_ends_as_an_uninterrupted_one(tmp_path):
    whole, parts, checkpoint = _model(), _model(), tmp_path / "state.safetensors"
    _train(whole, 40)
    _train(parts, 40, stop_after=25, checkpoint=checkpoint, save_at=20)
    resumed = _model()
    loop = _train(resumed, 40, checkpoint=checkpoint)
    assert loop.steps == 40
    for expected, found in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(expected, found)
    assert not checkpoint.exists()


def test_several_processes_go_on_from_any_step(tmp_path):
    """They agree on the time at every tenth step only; an interruption comes when it comes."""
    checkpoint = tmp_path / "state.safetensors"
    _train(_model(), 40, stop_after=13, checkpoint=checkpoint, save_at=13)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'meeting'}", rank=0, world_size=1)
    try:
        assert _train(_model(), 40, checkpoint=checkpoint).steps == 40
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_loss_falls(dtype):
    model = _model(dtype)
    loop = _train(model, 400)
    assert loop.losses[-1] < 0.5 * loop.losses[0]
    assert all(p.dtype == dtype for p in model.parameters())


def test_the_clock_ends_a_training():
    assert sum(1 for _ in Loop(_model(), muon_lr=0, adamw_lr=0, budget=Budget(1e-6), report=print)) <= 1


def test_the_learning_rate_warms_up_and_falls_to_zero():
    assert learning_rate_scale(0.0, 0) < 0.05
    assert learning_rate_scale(0.3, 1000) == 1
    assert learning_rate_scale(1.0, 1000) == 0


def test_a_loss_that_is_not_a_number_stops_the_training():
    model = _model()
    loop = Loop(model, muon_lr=1e-3, adamw_lr=1e-3, budget=Budget(600, 1), report=lambda _line: None)
    next(iter(loop))
    loop.step(model(torch.full((2, 32), torch.nan)).mean())
    with pytest.raises(NumericsError, match="not a number"):
        loop.finish()
