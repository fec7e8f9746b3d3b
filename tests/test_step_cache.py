"""Steps whose prediction is extrapolated."""

from __future__ import annotations

import pytest
import torch

from wan_s2v.runtime.step_cache import StepCache
from wan_s2v.schedulers import make_scheduler

NOISE = torch.randn(1, 4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
DATA = torch.tanh(2 * torch.randn(NOISE.shape, generator=torch.Generator().manual_seed(1)))


def _velocity(latents: torch.Tensor, sigma: float) -> torch.Tensor:
    """Of a model that knows the data within 0.6: curved where signal and noise are alike."""
    spread = 0.6
    share = (1 - sigma) * spread**2 / ((1 - sigma) ** 2 * spread**2 + sigma**2)
    data = DATA + share * (latents - (1 - sigma) * DATA)
    return (latents - data) / max(sigma, 1e-3)


def _run(cache: StepCache | None, num_steps: int = 40, switch: float = 0.0) -> tuple[torch.Tensor, list[int]]:
    """Latents at the end, and the steps that were computed."""
    scheduler = make_scheduler("unipc", num_steps, 3.0, "cpu")
    latents, computed = NOISE.clone(), []
    for step, timestep in enumerate(scheduler.timesteps):
        sigma = float(scheduler.sigmas[step])

        def compute(step=step, latents=latents, sigma=sigma):
            computed.append(step)
            return _velocity(latents, sigma)

        model = "high" if sigma >= switch else "low"
        velocity = compute() if cache is None else cache.predict(step, sigma, latents, model, compute)
        latents = scheduler.step(velocity, timestep, latents, return_dict=False)[0]
    return latents, computed


EXACT, _ = _run(None)


def _error(latents: torch.Tensor) -> float:
    return float((latents - EXACT).norm() / EXACT.norm())


def test_a_threshold_of_zero_computes_every_step():
    cache = StepCache(0.0, 40)
    latents, computed = _run(cache)
    assert torch.equal(latents, EXACT)
    assert computed == list(range(40))
    assert cache.num_computed == 40


def test_extrapolated_steps_cost_less_than_as_many_fewer_steps():
    cache = StepCache(0.05, 40)
    latents, computed = _run(cache)
    assert 8 < len(computed) == cache.num_computed < 30
    fewer, _ = _run(None, len(computed))
    assert _error(latents) < 0.5 * _error(fewer)


@pytest.mark.parametrize("threshold", [0.1, 10.0])
def test_the_first_steps_and_the_last_are_computed(threshold):
    _, computed = _run(StepCache(threshold, 40))
    assert computed[:4] == [0, 1, 2, 3]
    assert computed[-1] == 39
    assert len(computed) < 40


def test_a_higher_threshold_computes_less():
    counts = [len(_run(StepCache(threshold, 40))[1]) for threshold in (0.0, 0.05, 0.2, 10.0)]
    assert counts == sorted(counts, reverse=True)
    assert counts[-1] == 5


def test_another_model_starts_with_computed_steps():
    scheduler = make_scheduler("unipc", 40, 3.0, "cpu")
    first_low = next(step for step in range(40) if float(scheduler.sigmas[step]) < 0.875)
    _, computed = _run(StepCache(10.0, 40), switch=0.875)
    assert {first_low, first_low + 1} <= set(computed)


def test_runs_of_two_clips_do_not_mix():
    first, _ = _run(StepCache(0.1, 40))
    again, _ = _run(StepCache(0.1, 40))
    assert torch.equal(first, again)
